"""Exports every benchmark transformer in every combination, for tables over models and exporters.

    python models/sweep.py -o DIR [--models swin_t,tnt_s] [--precisions fp32]

Files that exist are skipped, so a broken run is taken up where it stopped.
"""

import argparse
import pathlib
import sys
import time

import torch

from export import DTYPES, Subject
from exporters import EXPORTERS
from zoo import MODELS

# Light ones first; the convolutional baselines have nothing to fuse.
ORDER = (
    "vit_s", "uniformer_s", "tnt_s", "swin_t", "ptnt_s",
    "swin_t_original", "swin_t_torchvision", "swin_s", "swin_b",
)
BATCHES = ("1", "dynamic", "32")


def plan(models, exporters, batches, precisions):
    """Batch 1 of all models comes before any larger batch."""
    for batch in batches:
        for precision in precisions:
            for model in models:
                yield model, batch, precision, exporters


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, metavar="DIR")
    for name, known in (("models", ORDER), ("exporters", tuple(EXPORTERS)), ("batches", BATCHES),
                        ("precisions", tuple(DTYPES))):
        parser.add_argument(f"--{name}", type=lambda t: t.split(","), default=list(known),
                            help=f"comma separated (default {','.join(known)})")
    parser.add_argument("--dry-run", action="store_true", help="print what would be exported")
    args = parser.parse_args()
    unknown = [m for m in args.models if m not in MODELS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    began, written, failed = time.perf_counter(), 0, []
    for name, batch, precision, exporters in plan(
        args.models, args.exporters, args.batches, args.precisions
    ):
        subject = None
        for exporter in exporters:
            # Built late: a resumed run should not build models that it has nothing to do with.
            path = args.output / Subject.file_name_of(name, exporter, batch, precision)
            if path.exists():
                continue
            if args.dry_run:
                print(path)
                continue
            start = time.perf_counter()
            try:
                if subject is None:
                    subject = Subject(name)
                    subject.probe(precision)
                subject.export(path, exporter, batch, precision)
            except Exception as problem:
                failed.append(path.name)
                print(f"{path.name} FAILED {type(problem).__name__}: {str(problem)[:300]}", flush=True)
                continue
            written += 1
            now = time.perf_counter()
            print(f"{path.name} {path.stat().st_size / 1e6:.1f} MB {now - start:.1f} s "
                  f"(at {now - began:.0f} s)", flush=True)
    print(f"{written} written, {len(failed)} failed", *failed, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
