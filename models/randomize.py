"""Gives every parameter and statistic of a model its own random values.

A freshly built network has many equal tensors (zero biases, unit scales). Exporters store such
tensors once and share them, which no trained model does, so a benchmark on them would be wrong.
"""

import math
import zlib

import torch
from torch import nn

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _draw(name, tensor, seed):
    # Seeded by name, so that the values of one tensor do not hang on the order or presence of others.
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) ^ seed)
    return torch.randn(tensor.shape, generator=generator)


def _rule(module, field):
    """Maps standard normal values to the range that the tensor needs to keep activations near 1."""
    if isinstance(module, _LAYERS):
        if field == "weight":
            scale = 1 / math.sqrt(module.weight[0].numel())
            # A depthwise filter sits on a residual path of its own, once a block: keep its gain low.
            if getattr(module, "groups", 1) > 1:
                scale *= 0.5
            return lambda r: r * scale
        return lambda r: r * 0.1
    if isinstance(module, _NORMS):
        if field == "weight":
            return lambda r: (1 + 0.2 * r).clamp(0.5, 1.5)
        if field == "running_var":
            return lambda r: (1 + 0.2 * r).clamp(0.5, 1.5)
        return lambda r: r * 0.1
    if "relative_pos" in field:
        return lambda r: r * 0.5
    return lambda r: r * 0.2


@torch.no_grad()
def randomize(model, seed=0):
    """Fills all parameters and all running statistics in place and returns the model."""
    for prefix, module in model.named_modules():
        statistics = ("running_mean", "running_var") if isinstance(module, _NORMS) else ()
        fields = list(module.named_parameters(recurse=False))
        fields += [(n, b) for n, b in module.named_buffers(recurse=False) if n in statistics]
        for field, tensor in fields:
            name = f"{prefix}.{field}"
            tensor.copy_(_rule(module, field)(_draw(name, tensor, seed)))
    return model
