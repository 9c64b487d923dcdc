"""Parameters and multiply-accumulates of a model, matmuls of attention included."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def macs(model, example):
    # The math backend splits fused attention into matmuls, which every version of the counter knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(example)
    return counter.get_total_flops() / 2 / example.shape[0]
