#!/usr/bin/env python3
"""Whole models in TensorRT: native and fused engines of one ONNX file, compared with ONNX Runtime in fp32.

    trt_models.py --trt-opt BINARY --tensorrt DIR --plugins LIB [--files A.onnx ...] [--batch 1,32] [--cache DIR]
                  [--json FILE] [--work DIR] [--layers DIR] NAME ...

NAME ... are exported with models/export.py (TorchScript, opset 17, fp32) or are the names of --files without
their ending. Engines are built with the fp16 flag, side by side, each with a timing cache of its own under
--cache, and the native and the fused engine of a model are timed in interleaved rounds. An engine's error is
||out - ref|| / ||ref|| over all outputs; a fused engine passes within 1e-2 and within 1.5 times the native engine's error.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

import engines

HERE = os.path.dirname(os.path.abspath(__file__))


def run(command, **kwargs):
    result = subprocess.run(command, capture_output=True, text=True, **kwargs)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout[-800:]}\n{result.stderr[-1500:]}")
    return result.stdout


def reference(model, folder, batch, seed):
    """Inputs, which are also written as .npy, and outputs of ONNX Runtime in fp32."""
    import onnxruntime
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feeds = {}
    for tensor in session.get_inputs():
        shape = [batch if not isinstance(d, int) else d for d in tensor.shape]
        feeds[tensor.name] = rng.standard_normal(shape).astype(np.float32)
        np.save(f"{folder}/{tensor.name}.in.npy", feeds[tensor.name])
    names = [o.name for o in session.get_outputs()]
    return feeds, dict(zip(names, session.run(None, feeds)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines.add_arguments(parser)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--files", nargs="*", default=[])
    parser.add_argument("--batch", default="1")
    parser.add_argument("--cache")
    parser.add_argument("--json")
    parser.add_argument("--work")
    parser.add_argument("--layers", help="folder for the engines' layer lists")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--timeout", type=int, default=400, help="seconds an engine may take")
    args = parser.parse_args()
    work = args.work or tempfile.mkdtemp()
    os.makedirs(work, exist_ok=True)
    for folder in (args.cache, args.layers):
        if folder:
            os.makedirs(folder, exist_ok=True)
    begin = time.time()
    results, jobs = [], []
    exports = {}
    for batch in args.batch.split(","):
        for name in args.names:
            folder = f"{work}/{name}-b{batch}"
            os.makedirs(folder, exist_ok=True)
            exports[name, batch] = subprocess.Popen(
                [sys.executable, f"{HERE}/../../models/export.py", name, "--exporter", "ts17", "--batch", batch, "--precision", "fp32", "-o", folder],
                stdout=open(f"{folder}/export.log", "w"), stderr=subprocess.STDOUT)
        for path in args.files:
            name = os.path.splitext(os.path.basename(path))[0]
            folder = f"{work}/{name}-b{batch}"
            os.makedirs(folder, exist_ok=True)
            shutil.copy(path, f"{folder}/{name}.onnx")
            exports[name, batch] = None

    for (name, batch), process in exports.items():
        folder = f"{work}/{name}-b{batch}"
        entry = {"model": name, "batch": int(batch), "pass": False}
        results.append(entry)
        try:
            if process and process.wait() != 0:
                raise RuntimeError(open(f"{folder}/export.log").read()[-1500:])
            native = next(f"{folder}/{f}" for f in sorted(os.listdir(folder)) if f.endswith(".onnx"))
            fused = f"{folder}/fused.onnx.model"
            entry["fuse"] = run([args.trt_opt, "fuse", native, "-o", fused])[-1500:]
            inputs, outputs = reference(native, folder, int(batch), 7)
            for kind, model in (("native", native), ("fused", fused)):
                cache = f"{args.cache}/{name}-b{batch}-{kind}.cache" if args.cache else None
                layers = f"{args.layers}/{name}-b{batch}-{kind}.json" if args.layers else None
                command = [args.trt_opt, "build", "--tensorrt", args.tensorrt, *engines.build_arguments(args, model, f"{folder}/{kind}.engine", inputs, plugins=kind == "fused", fp16=True, layers=layers, timing_cache=cache)]
                log = open(f"{folder}/{kind}.log", "w")
                jobs.append((entry, kind, folder, inputs, outputs, subprocess.Popen(command, stdout=log, stderr=log)))
        except Exception as e:  # keep the other models going
            entry["error"] = str(e)[-2500:]
    print(f"exported, fused and started {len(jobs)} builds after {time.time() - begin:.0f} s", flush=True)

    # Builds run side by side; timing runs one model after another, on an idle GPU.
    for *_, process in jobs:
        try:
            process.wait(timeout=max(1, args.timeout - (time.time() - begin)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    print(f"built after {time.time() - begin:.0f} s", flush=True)
    models = {}
    for entry, kind, folder, inputs, outputs, process in jobs:
        if process.returncode in engines.BUILT:
            models.setdefault(folder, (entry, inputs, outputs, []))[3].append(kind)
        else:
            entry[kind] = {"error": f"build: exit {process.returncode}: " + open(f"{folder}/{kind}.log").read()[-1500:]}
    for folder, (entry, inputs, outputs, kinds) in models.items():
        try:
            files = {n: f"{folder}/{n}.in.npy" for n in inputs}
            measured = engines.bench(args, [f"{folder}/{kind}.engine" for kind in kinds], files, folder, rounds=args.rounds)
        except RuntimeError as e:
            entry["error"] = str(e)[-2500:]
            continue
        for kind in kinds:
            entry[kind] = measured[kind]
            difference = sum(float(np.sum((np.load(f"{folder}/{kind}/{n}.npy").astype(np.float64) - ref) ** 2)) for n, ref in outputs.items())
            entry[kind]["error"] = (difference / sum(float(np.sum(ref.astype(np.float64) ** 2)) for ref in outputs.values())) ** 0.5
    for entry in results:
        native, fused = entry.get("native", {}), entry.get("fused", {})
        errors = [e.get("error") for e in (native, fused)]
        if all(isinstance(e, float) for e in errors):
            entry["pass"] = errors[1] <= 1e-2 and errors[1] <= 1.5 * errors[0]
            entry["speedup"] = native["graph_p50_us"] / fused["graph_p50_us"]
        print(entry["model"], "batch", entry["batch"], "ok" if entry["pass"] else "FAIL",
              {k: {m: entry[k].get(m) for m in ("graph_p50_us", "kernels", "error")} if k in entry else None for k in ("native", "fused")}, round(entry.get("speedup", 0), 3),
              entry.get("error", "")[-600:], flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(results, f, indent=1)
    return 0 if results and all(e["pass"] for e in results) else 1


if __name__ == "__main__":
    sys.exit(main())
