"""Exports the benchmark models to ONNX with random weights.

    python models/export.py swin_t tnt_s --exporter ts17 --batch 1 --precision fp16 -o out
    python models/export.py --list
    python models/export.py all --check

Files are named MODEL_EXPORTER_bBATCH_PRECISION.onnx. Several exporters, batches or precisions are
given with commas.
"""

import argparse
import copy
import pathlib
import sys
import time

import torch

import count
from exporters import EXPORTERS, export_onnx
from minis import MINIS
from randomize import randomize
from zoo import MODELS

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
TOLERANCE = (0.01, 0.03)  # of published parameters and MACs


def images(batch, image, dtype=torch.float32, seed=0):
    """Random images of blobs under noise: pooled over a map, noise alone is the same for every seed."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.randn((batch, 3, 4, 4), generator=generator)
    blobs = torch.nn.functional.interpolate(blobs, size=image, mode="bilinear")
    return (blobs + 0.5 * torch.randn((batch, 3, *image), generator=generator)).to(dtype)


class Subject:
    """A model with its weights set, in each precision once it has been asked for."""

    def __init__(self, name, mini=False):
        entry = MODELS[name]
        if mini:
            if entry.family is None:
                raise LookupError(f"{name} has no miniature")
            source = MINIS[entry.family]
        else:
            source = entry
        self.label = f"{name}_mini" if mini else name
        self.image = source.image
        self.published = None if mini else entry.published
        # Weights that fp16 can hold, so that both precisions are the same model.
        self._models = {"fp32": randomize(source.build()).eval().half().float()}

    def model(self, precision):
        if precision not in self._models:
            self._models[precision] = copy.deepcopy(self._models["fp32"]).to(DTYPES[precision])
        return self._models[precision]

    def facts(self):
        model = self.model("fp32")
        return count.parameters(model) / 1e6, count.macs(model, images(1, self.image)) / 1e9

    def probe(self, precision):
        """Spread of the output and its change between two inputs; an error where a benchmark would be hollow."""
        with torch.no_grad():
            a, b = (
                self.model(precision)(images(1, self.image, DTYPES[precision], seed)).float() for seed in (1, 2)
            )
        spread, change = a.std().item(), (a - b).std().item()
        if not torch.isfinite(a).all() or not 0.05 < spread < 100 or change < 0.03 * spread:
            raise ArithmeticError(
                f"{self.label} {precision}: output spread {spread:.3g}, change with the input {change:.3g}"
            )
        return spread, change

    @staticmethod
    def file_name_of(label, exporter, batch, precision):
        return f"{label}_{exporter}_b{'dyn' if batch == 'dynamic' else batch}_{precision}.onnx"

    def export(self, path, exporter, batch, precision):
        dynamic = batch == "dynamic"
        # The dynamo exporter takes a batch of 1 in the example for a constant.
        example = images(2 if dynamic else int(batch), self.image, DTYPES[precision])
        export_onnx(self.model(precision), example, path, exporter, dynamic)


def misses(subject, params, gmacs):
    """What differs from the published facts by more than the tolerance."""
    if subject.published is None:
        return []
    pairs = zip(("M parameters", "GMACs"), (params, gmacs), subject.published, TOLERANCE)
    return [
        f"{subject.label}: {found:.3f} {what}, published {wanted}"
        for what, found, wanted, tolerance in pairs
        if abs(found / wanted - 1) > tolerance
    ]


def parse(argv):
    def choices(known):
        def read(text):
            values = list(known) if text == "all" else text.split(",")
            for value in values:
                if value not in known:
                    raise argparse.ArgumentTypeError(f"{value!r} is none of {', '.join(known)}")
            return values

        return read

    def batches(text):
        values = text.split(",")
        for value in values:
            if value != "dynamic" and not (value.isdigit() and int(value) > 0):
                raise argparse.ArgumentTypeError(f"{value!r} is neither a batch size nor 'dynamic'")
        return values

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names as in --list, or all")
    parser.add_argument("--exporter", type=choices(tuple(EXPORTERS)), default=["ts17"],
                        help=f"{', '.join(EXPORTERS)} or all (default ts17)")
    parser.add_argument("--batch", type=batches, default=["1"], help="sizes or dynamic (default 1)")
    parser.add_argument("--precision", type=choices(tuple(DTYPES)), default=["fp32"], help="fp32 or fp16")
    parser.add_argument("-o", "--output", type=pathlib.Path, metavar="DIR", help="(default: here)")
    parser.add_argument("--mini", action="store_true", help="the miniature of the model's family")
    parser.add_argument("--check", action="store_true",
                        help="compare with published figures; exports only if -o is given too")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args(argv)
    if not args.models and not args.list:
        parser.error("no model given (see --list)")
    if args.models == ["all"]:
        args.models = list(MODELS)
    unknown = [m for m in args.models if m not in MODELS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)} (see --list)")
    return args


def main(argv=None):
    args = parse(argv)
    if args.list:
        for name, entry in MODELS.items():
            print(f"{name:20} {entry.image[0]}x{entry.image[1]}  miniature: {entry.family or '-'}")
        return 0
    output = args.output or pathlib.Path(".")
    output.mkdir(parents=True, exist_ok=True)
    missed = []
    for name in args.models:
        subject = Subject(name, args.mini)
        params, gmacs = subject.facts()
        spread, change = subject.probe("fp32")
        digits = 4 if args.mini else 2
        print(f"{subject.label}: {params:.{digits}f} M parameters, {gmacs:.{digits}f} GMACs, "
              f"output spread {spread:.2f}, change with the input {change:.2f}", flush=True)
        missed += misses(subject, params, gmacs)
        if args.check and args.output is None:
            continue
        for precision in args.precision:
            subject.probe(precision)
            for exporter in args.exporter:
                for batch in args.batch:
                    path = output / subject.file_name_of(subject.label, exporter, batch, precision)
                    start = time.perf_counter()
                    subject.export(path, exporter, batch, precision)
                    size = path.stat().st_size / 1e6
                    print(f"  {path} {size:.1f} MB in {time.perf_counter() - start:.1f} s", flush=True)
    if args.check:
        for miss in missed:
            print(f"MISS {miss}", file=sys.stderr)
        return 1 if missed else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
