"""The five ways in which a model is exported: two of the TorchScript exporter, three of dynamo."""

import logging
import os
import warnings

import torch

# name -> (dynamo, opset)
EXPORTERS = {
    "ts13": (False, 13),
    "ts17": (False, 17),
    "dy18": (True, 18),
    "dy20": (True, 20),
    "dy23": (True, 23),
}


def set_fused_attention(model, fused):
    """Switches timm's blocks between scaled_dot_product_attention and separate matmuls."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused


def _fused_modules(model):
    return [m for m in model.modules() if getattr(m, "fused_attn", False)]


def export_onnx(model, example, path, exporter, dynamic=False):
    """Writes `model` to `path`, all weights inside; `dynamic` leaves the batch open."""
    dynamo, opset = EXPORTERS[exporter]
    path = os.fspath(path)
    partial = f"{path}.{os.getpid()}.tmp"
    # Opset 13 has no export of scaled_dot_product_attention: whoever needs it turns it off.
    switched = _fused_modules(model) if opset < 14 else []
    for module in switched:
        module.fused_attn = False
    for noisy in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if hasattr(model, "set_open_batch"):
        model.set_open_batch(dynamic)
    options = dict(input_names=["input"], output_names=["output"], opset_version=opset)
    if dynamo:
        options.update(external_data=False, verbose=False)
        if dynamic:
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif dynamic:
        options["dynamic_axes"] = {"input": {0: "batch"}, "output": {0: "batch"}}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (example,), partial, dynamo=dynamo, **options)
        os.replace(partial, path)
    finally:
        for module in switched:
            module.fused_attn = True
        if os.path.exists(partial):
            os.remove(partial)
