"""Speed and memory of `trt-opt fuse` on a large model against other tools, as ratios in one run.

    python benches/frontend.py MODEL.onnx [--binary target/release/trt-opt] [--rounds 5] [-o reports/frontend.md]

Needs onnx, onnxslim and onnxsim from PyPI in the Python that runs it. Every figure is wall-clock time and peak resident
memory of a process of its own, the start of Python and its imports included; `fuse` runs in rounds with
`onnx.save(onnx.load(..))`, the slow tools once.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path


def measure(command):
    """Seconds and peak bytes of one process; it must succeed."""
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.execvp(command[0], command)
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))} failed with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--binary", type=Path, default=Path("target/release/trt-opt"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/frontend.md"))
    args = parser.parse_args()
    size = args.model.stat().st_size

    with tempfile.TemporaryDirectory() as work:
        out = str(Path(work, "out.onnx"))
        python = sys.executable
        fuse = [str(args.binary), "fuse", str(args.model), "-o", out, "--quiet"]
        resave = [python, "-c", "import onnx,sys; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])", str(args.model), out]
        slim = [python, "-c", "import onnxslim,sys; onnxslim.slim(sys.argv[1], sys.argv[2])", str(args.model), out]
        simplify = "import onnx,onnxsim,sys; m,ok=onnxsim.simplify(sys.argv[1]); assert ok; onnx.save(m, sys.argv[2])"
        sim = [python, "-c", simplify, str(args.model), out]
        results = {"trt-opt fuse": [], "onnx.save(onnx.load())": []}
        for _ in range(args.rounds):
            Path(out).unlink(missing_ok=True)
            results["trt-opt fuse"].append(measure(fuse))
            Path(out).unlink(missing_ok=True)
            results["onnx.save(onnx.load())"].append(measure(resave))
        for name, command in (("onnxslim", slim), ("onnxsim", sim)):
            Path(out).unlink(missing_ok=True)
            results[name] = [measure(command)]

    base = statistics.median(t for t, _ in results["trt-opt fuse"])
    lines = [
        "# Speed of the front end",
        "",
        f"`python benches/frontend.py {args.model.name}`: {size / 1e6:.0f} MB, {os.cpu_count()} cores; onnx {version('onnx')},",
        f"onnxslim {version('onnxslim')}, onnxsim {version('onnxsim')}. Median of {args.rounds} interleaved rounds; the slow tools once.",
        "",
        "| tool | seconds | x trt-opt | peak memory, MB | x the file |",
        "|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        seconds, peak = statistics.median(t for t, _ in runs), max(m for _, m in runs)
        lines.append(f"| {name} | {seconds:.2f} | {seconds / base:.1f} | {peak / 1e6:.0f} | {peak / size:.2f} |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
