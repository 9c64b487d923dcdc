#!/usr/bin/env python3
"""Times torch.compile on the models of a report, in fp16, and adds a row `torch-compile` for each to the report.

    torch_compile.py REPORT.json OUT.json --run ID NAME:BATCH ... [--mode max-autotune] [--after FILE]

To be run right after the report, on the same GPU: the rows join its run ID, though they are timed after its engines and not
between them, which their note says. With --after models are compiled at once, which takes minutes, and timed when FILE is there:
the report may be made meanwhile. The compiled model is captured as one CUDA graph, as the engines of the report are, and a sample is one replay between two events of the GPU: what
Python does before a call is not in it. Errors are ||out - ref|| / ||ref|| against the same weights in fp32 without TF32.
"""
import argparse
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "models"))
from export import Subject, images  # noqa: E402

ROUNDS, PER_ROUND, WARMUP = 30, 20, 50


def captured(model, x):
    """A replay of the model's kernels on x, and what it writes."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(x)
    return graph.replay, out


def samples(call):
    """Microseconds, [ROUNDS, PER_ROUND]."""
    for _ in range(WARMUP):
        call()
    out = np.empty((ROUNDS, PER_ROUND))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for r in range(ROUNDS):
        for i in range(PER_ROUND):
            begin.record()
            call()
            end.record()
            end.synchronize()
            out[r, i] = 1000 * begin.elapsed_time(end)
    return out


def interval(times, rng):
    """95 % bootstrap interval of the median, over rounds."""
    medians = [np.median(times[rng.integers(0, len(times), len(times))]) for _ in range(2000)]
    return [float(np.quantile(medians, q)) for q in (0.025, 0.975)]


def measure(name, batch, mode, run, after):
    subject = Subject(name)
    x = images(batch, subject.image).cuda()
    with torch.inference_mode():
        reference = subject.model("fp32").cuda()(x).double()
        model = torch.compile(subject.model("fp16").cuda(), mode=mode)
        half = x.half()
        model(half)
        print(f"{name}:{batch}: compiled", flush=True)
        replay, out = captured(model, half)
        replay()
        error = float((out.double() - reference).norm() / reference.norm())
        while after and not os.path.exists(after):
            time.sleep(0.2)
        times = samples(replay)
    return {
        "model": name, "variant": "torch-compile", "precision": "fp16", "batch": batch, "mode": "graph",
        "p50_us": float(np.median(times)), "p99_us": float(np.quantile(times, 0.99)), "interval_us": interval(times, np.random.default_rng(0)),
        "kernels": None, "engine_mb": None, "device_mb": None, "rel_err": error, "x_resnet50": None, "run": run,
        "note": f"PyTorch {torch.__version__}, torch.compile(mode={mode!r}), captured as one CUDA graph, timed after the engines of the run",
    }


def read(args):
    """The report, which has to have the run, of this kind of GPU."""
    with open(args.report) as f:
        report = json.load(f)
    gpu = torch.cuda.get_device_name()
    if args.run not in report["environment"]:
        sys.exit(f"{args.report} has no run {args.run!r}: {', '.join(report['environment'])}")
    if report["environment"][args.run]["gpu"] != gpu:
        sys.exit(f"run {args.run} is of {report['environment'][args.run]['gpu']}, and this is {gpu}")
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report")
    parser.add_argument("out")
    parser.add_argument("--run", required=True, help="the run of the report to join")
    parser.add_argument("--mode", default="max-autotune-no-cudagraphs", help="a mode without CUDA graphs of its own [default: %(default)s]")
    parser.add_argument("--after", metavar="FILE", help="time nothing, and read no report, before this file is there")
    parser.add_argument("models", nargs="+", metavar="NAME:BATCH")
    args = parser.parse_args()
    if not args.after:
        read(args)  # before minutes of compiling
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report, failed = None, 0
    for subject in args.models:
        name, _, batch = subject.partition(":")
        try:
            row = measure(name, int(batch or 1), args.mode, args.run, args.after)
        except Exception as e:  # a model that does not compile leaves the others
            print(f"{subject}: {e}", file=sys.stderr)
            failed += 1
            continue
        report = report or read(args)
        report["rows"].append(row)
        print(f"{subject}: {row['p50_us']:.1f} us, error {row['rel_err']:.2e}", flush=True)
        with open(args.out + ".tmp", "w") as f:
            json.dump(report, f, indent=1)
        os.replace(args.out + ".tmp", args.out)
        torch._dynamo.reset()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
