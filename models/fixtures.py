"""Writes tests/fixtures: miniatures of every model in every exporter's spelling.

    python models/fixtures.py [-o DIR] [NAME_PART...]

The files are the same on every run with the versions of requirements.txt. Each is checked before it
is written: it loads in the checker of onnx, runs in ONNX Runtime, agrees with PyTorch (hand-made
graphs: with NumPy) at every batch it claims to take, and its output depends on its input.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import torch

import onnx_files
from exporters import EXPORTERS, export_onnx
from minis import MINIS
from randomize import randomize
from spellings import SPELLINGS

ALL = tuple(EXPORTERS)
SIZE_LIMIT = 300_000

# family -> exporters by kind of file: static batch 1, open batch, fp16, static batch 2
PLAN = {
    "swin": dict(static=ALL, dyn=ALL, fp16=("ts13", "ts17", "dy20"), b2=("ts17", "dy18")),
    "vit": dict(static=ALL, dyn=ALL, fp16=("ts13", "ts17", "dy20", "dy23"), b2=("ts17", "dy18")),
    "swin_wide": dict(static=("ts17", "dy18")),
    "swin_pad": dict(static=("ts17", "dy18")),
    "swin_odd": dict(static=("ts17", "dy18")),
    "swin_sdpa": dict(static=("ts17", "dy18", "dy23")),
    "swin_torchvision": dict(static=ALL, dyn=("ts17", "dy18"), fp16=("ts13", "ts17", "dy20")),
    "swin_torchvision_pad": dict(static=("ts17", "dy18")),
    "swin_original": dict(static=ALL, dyn=("ts17", "dy18"), fp16=("ts13", "ts17", "dy20")),
    "swin_original_baked": dict(dyn=("ts17", "dy18")),
    "tnt": dict(static=ALL, dyn=("ts17", "dy18"), fp16=("ts13", "ts17", "dy20")),
    "ptnt": dict(static=ALL, dyn=("ts17", "dy18"), fp16=("ts13", "ts17", "dy20")),
    "uniformer": dict(static=ALL, dyn=("ts17", "dy18"), fp16=("ts13", "ts17", "dy20")),
    "vit_unfused": dict(static=("ts13", "ts17", "dy18"), dyn=("ts17", "dy18")),
}

# The batch of the example is baked in although the file calls it open.
BAKED = {"swin_original_baked"}

# Scoped names are half of a TorchScript file: only these families, and only at batch 1, keep them.
SCOPED_NAMES = {"swin", "swin_original", "swin_torchvision", "tnt", "ptnt", "uniformer", "vit", "vit_unfused"}

# These keep the metadata of the dynamo exporter, since a rewriter should not lose it.
WITH_METADATA = {"vit_dy20", "vit_dy18_dyn"}


def plan():
    """Yields (file name without suffix, family, exporter, kind)."""
    for family, kinds in PLAN.items():
        for kind, exporters in kinds.items():
            for exporter in exporters:
                suffix = "" if kind == "static" else f"_{kind}"
                yield f"{family}_{exporter}{suffix}", family, exporter, kind


def images(batch, image, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, 3, *image), generator=generator).to(dtype)


def compare(run, inputs, expect, limit):
    """Runs two inputs; returns the largest relative error against `expect`, if there is one."""
    worst, results = 0.0, []
    for x in inputs:
        outputs = run(**x)
        if not all(np.isfinite(y).all() for y in outputs):
            raise AssertionError("output is not finite")
        if expect:
            worst = max(worst, onnx_files.distance(outputs[0], expect(*x.values())))
        results.append(outputs)
    if min(map(onnx_files.distance, *results)) < 0.05:
        raise AssertionError("output hardly depends on the input")
    if worst > limit:
        raise AssertionError(f"relative error {worst:.2e}, limit {limit:.0e}")
    return worst


def verify(model, module, mini, dtype, batches):
    """Compares with PyTorch in fp32; returns the largest relative error."""
    run = onnx_files.runner(model)

    def expect(x):
        with torch.no_grad():
            return module(torch.from_numpy(x).float()).numpy()

    limit = 2e-2 if dtype == torch.float16 else 1e-4
    return max(
        compare(run, [{"input": images(b, mini.image, dtype, s).numpy()} for s in (1, 2)], expect, limit)
        for b in batches
    )


def write_mini(path, family, exporter, kind, keep_metadata):
    mini = MINIS[family]
    dtype = torch.float16 if kind == "fp16" else torch.float32
    # Parameters that fp16 can hold, so that the two precisions of a model are comparable.
    module = randomize(mini.build()).eval().half().float()
    exported = randomize(mini.build()).eval().half().to(dtype)
    # The dynamo exporter takes a batch of 1 in the example for a constant.
    batch = {"static": 1, "fp16": 1, "b2": 2, "dyn": 2}[kind]
    torch.manual_seed(0)
    export_onnx(exported, images(batch, mini.image, dtype, 0), path, exporter, kind == "dyn")
    model = onnx.load(path)
    (onnx_files.scrub_metadata if keep_metadata else onnx_files.strip_metadata)(model)
    if exporter.startswith("ts") and (kind != "static" or family not in SCOPED_NAMES):
        onnx_files.number_names(model)
    paths = onnx_files.absolute_paths(model)
    if paths:
        raise AssertionError(f"paths of this machine: {paths[:3]}")
    checked = onnx_files.check(model)
    error = verify(model, module, mini, dtype, (1, 2, 3) if kind == "dyn" and family not in BAKED else (batch,))
    onnx.save(model, path)
    return len(model.graph.node), checked, error


def write_spelling(path, spelling):
    model, weights = spelling.build()
    checked = onnx_files.check(model)
    shape, dtype = spelling.shape, spelling.dtype
    inputs = [{"x": np.random.default_rng(s).standard_normal(shape).astype(dtype)} for s in (1, 2)]
    expect = spelling.reference and (lambda x: spelling.reference(x.astype(np.float64), weights))
    limit = 5e-3 if dtype == np.float16 else 1e-5
    error = compare(onnx_files.runner(model), inputs, expect, limit)
    onnx.save(model, path)
    return len(model.graph.node), checked, error


def jobs():
    """Yields (file name without suffix, function that writes the file to a path)."""
    for name, family, exporter, kind in plan():
        keep = name in WITH_METADATA
        yield name, lambda path, a=(family, exporter, kind, keep): write_mini(path, *a)
    for spelling in SPELLINGS:
        yield f"spelling_{spelling.name}", lambda path, s=spelling: write_spelling(path, s)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"
    parser.add_argument("-o", "--output", type=pathlib.Path, default=default)
    parser.add_argument("part", nargs="*", help="only files whose name contains one of these")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    failed, total = [], 0
    for name, write in jobs():
        if args.part and not any(part in name for part in args.part):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            path = pathlib.Path(scratch) / f"{name}.onnx"
            try:
                nodes, checked, error = write(path)
                size = path.stat().st_size
                if size > SIZE_LIMIT:
                    raise AssertionError(f"{size} bytes, limit {SIZE_LIMIT}")
            except Exception as problem:
                failed.append(name)
                print(f"{name}: FAILED: {type(problem).__name__}: {str(problem)[:600]}", flush=True)
                continue
            total += size
            target = args.output / path.name
            target.write_bytes(path.read_bytes())
        print(f"{name}: {size} bytes, {nodes} nodes, {checked} check, error {error:.1e}", flush=True)
    print(f"{total} bytes in all, {len(failed)} failed", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
