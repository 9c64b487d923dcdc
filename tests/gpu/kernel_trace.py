#!/usr/bin/env python3
"""One inference of a trace of kernel_trace.cpp, kernel by kernel.

    kernel_trace.py TRACE.tsv [--kernels N]

Of the graphs in the trace the last one's replays are taken (without a graph: N kernels at a time from the end), and for each
kernel in order the medians over them: how long after the end of the kernel before it starts (negative where they overlap), how
long it runs, and by how much it moves the end of all that is done, which adds up to the inference. Microseconds.
"""
import argparse
import re
import statistics
import subprocess


def read(path):
    rows = []
    with open(path) as file:
        for line in file:
            start, end, blocks, threads, shared, registers, stream, graph, name = line.rstrip("\n").split("\t")
            rows.append((int(start), int(end), int(blocks), int(threads), int(shared), int(registers), int(stream), int(graph), name))
    rows.sort()
    return rows


def short(name):
    """A kernel's name without its parameters and namespaces."""
    name = re.sub(r"\(anonymous namespace\)|void |trt_opt::", "", name)
    return re.sub(r"\((?!anonymous).*", "", name)[:110]


def replays(rows, count):
    graph = next((r[7] for r in reversed(rows) if r[7]), 0)
    if not graph:
        if not count:
            raise SystemExit("no graph in the trace: say with --kernels how many kernels an inference has")
        return [rows[i - count:i] for i in range(len(rows), count - 1, -count)]
    rows = [r for r in rows if r[7] == graph]
    if not count:
        # The period of the sequence of names.
        names = [r[8] for r in rows]
        count = next((p for p in range(1, len(names) // 2 + 1) if all(names[i] == names[i + p] for i in range(len(names) - p))), len(names))
    return [rows[i:i + count] for i in range(0, len(rows) - count + 1, count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--kernels", type=int, default=0, help="kernels of an inference [default: what repeats]")
    args = parser.parse_args()
    runs = replays(read(args.trace), args.kernels)
    if not runs:
        raise SystemExit("the trace holds no whole inference")
    names = subprocess.run(["c++filt"], input="\n".join(r[8] for r in runs[0]), capture_output=True, text=True, check=True).stdout.splitlines()
    print(f"{len(runs)} inferences of {len(names)} kernels")
    print("   gap     time    moves  blocks threads shared regs  kernel")
    total = 0.0
    for i, name in enumerate(names):
        gaps, times, moves = [], [], []
        for run in runs:
            before = max((r[1] for r in run[:i]), default=run[i][0])
            gaps.append((run[i][0] - before) / 1000)
            times.append((run[i][1] - run[i][0]) / 1000)
            moves.append(max(0, run[i][1] - before) / 1000)
        total += statistics.median(moves)
        _, _, blocks, threads, shared, registers, *_ = runs[0][i]
        print(f"{statistics.median(gaps):7.2f} {statistics.median(times):8.2f} {statistics.median(moves):8.2f} {blocks:7} {threads:7} {shared:6} {registers:4}  {short(name)}")
    print(f"{total:.1f} us from the first start to the last end")


if __name__ == "__main__":
    main()
