"""Table of the sites that `trt-opt fuse` takes in a folder of exports, and how well the reference twin agrees.

    python benches/sites.py FOLDER [--binary target/release/trt-opt] [--also KIND,...]
                                   [--compute-capability X.Y] [--verify REGEX] [-o reports/sites.md]

FOLDER holds MODEL_EXPORTER_BATCH_PRECISION.onnx as `models/sweep.py` writes them. Every model is fused for TensorRT 8,
with the kinds of `--also` besides, which get columns of their own; those whose name matches REGEX are also run in ONNX
Runtime and compared with the original (`trt-opt verify`).
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

KINDS = ["layernorm", "attention", "gelu", "window", "patch-merge"]
NAME = re.compile(r"(?P<model>.+)_(?P<exporter>ts13|ts17|dy18|dy20|dy23)_(?P<batch>b\w+)_(?P<precision>fp32|fp16)")


def run(command):
    return subprocess.run(command, capture_output=True, text=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--binary", type=Path, default=Path("target/release/trt-opt"))
    parser.add_argument("--also", type=lambda text: text.split(","), default=[], metavar="KIND,...")
    parser.add_argument("--compute-capability", metavar="X.Y")
    parser.add_argument("--verify", type=re.compile, default=None)
    parser.add_argument("-o", "--output", type=Path, default=Path("reports/sites.md"))
    args = parser.parse_args()
    kinds = KINDS + args.also
    options = [f"--also={','.join(args.also)}"] if args.also else []
    if args.compute_capability:
        options.append(f"--compute-capability={args.compute_capability}")

    rows = defaultdict(dict)
    errors = {}
    failed = []
    for path in sorted(args.folder.glob("*.onnx")):
        parts = NAME.fullmatch(path.stem)
        if not parts:
            continue
        with tempfile.TemporaryDirectory() as work:
            fused, ledger = Path(work, "fused.onnx"), Path(work, "ledger.json")
            done = run([args.binary, "fuse", path, "-o", fused, "--ledger", ledger, "--quiet", *options])
            if done.returncode:
                failed.append(f"{path.name}: {done.stderr.strip()}")
                continue
            summary = json.loads(ledger.read_text())["summary"]
            counts = tuple((s["fused"] + s["kept"], s["total"]) for s in map(summary.get, kinds))
            rows[parts["model"], parts["precision"], parts["batch"]][parts["exporter"]] = counts
            if args.verify and args.verify.search(path.stem):
                done = run([args.binary, "verify", path, fused, "--json"])
                try:
                    outputs = json.loads(done.stdout)["outputs"]
                    errors[path.stem] = (max(o["relative"] for o in outputs), done.returncode == 0)
                except (ValueError, KeyError) as problem:
                    failed.append(f"{path.name}: verify: {problem!r} {done.stderr.strip()}")
        print(path.name, counts, errors.get(path.stem, ""), flush=True)

    def cell(counts):
        return "-" if counts[1] == 0 else f"{counts[0]}/{counts[1]}"

    lines = [
        "# Sites fused in full-size exports",
        "",
        f"Written by `python benches/sites.py {' '.join(['FOLDER', *options])}`,",
        "with the exports of `models/sweep.py` (seeded random weights), target trt8. A cell is sites fused or kept / sites",
        "found; GELUs are kept in the form that TensorRT fuses by itself. `ts`: TorchScript exporter, `dy`: dynamo exporter,",
        "each with its opset.",
        "",
        "| model | precision | batch | exporters | " + " | ".join(kinds) + " |",
        "|---|---|---|---|" + "---|" * len(kinds),
    ]
    complete = total = 0
    for (model, precision, batch), exporters in sorted(rows.items()):
        same = defaultdict(list)
        for exporter, counts in exporters.items():
            same[counts].append(exporter)
            complete += sum(c[0] for c in counts)
            total += sum(c[1] for c in counts)
        for counts, names in same.items():
            cells = " | ".join(cell(c) for c in counts)
            lines.append(f"| {model} | {precision} | {batch[1:]} | {' '.join(sorted(names))} | {cells} |")
    exports = sum(len(e) for e in rows.values())
    lines += ["", f"{exports} exports, {complete} of {total} sites taken."]
    if errors:
        lines += [
            "",
            "## Agreement of the reference twin with the original",
            "",
            "`trt-opt verify` in ONNX Runtime on the CPU, random inputs: ||out - ref|| / ||ref||, the bound being 1e-5 for",
            "fp32 and 2e-3 for fp16.",
            "",
            "| model | precision | batch | exporters | largest error | within the bound |",
            "|---|---|---|---|---|---|",
        ]
        groups = defaultdict(list)
        for stem, (error, passed) in errors.items():
            parts = NAME.fullmatch(stem)
            groups[parts["model"], parts["precision"], parts["batch"]].append((parts["exporter"], error, passed))
        for (model, precision, batch), found in sorted(groups.items()):
            names = " ".join(sorted(f[0] for f in found))
            passed = sum(f[2] for f in found)
            lines.append(
                f"| {model} | {precision} | {batch[1:]} | {names} | {max(f[1] for f in found):.1e} | {passed}/{len(found)} |"
            )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("\n".join(lines) + "\n")
    print("\n".join(failed), file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
