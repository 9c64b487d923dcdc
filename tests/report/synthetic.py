#!/usr/bin/env python3
"""Makes synthetic_a.json and synthetic_b.json, report files of two runs on a GPU that does not exist.

Nothing in them was measured. The figures are plausible in size, so that a page made of them looks like a real one, and
the names of layers are of the form that TensorRT 8.6 gives.
"""

import json
import pathlib
import random

HERE = pathlib.Path(__file__).resolve().parent
KINDS = ["layernorm", "attention", "window", "patch-merge"]
DEPTHS = {"swin_t": [2, 2, 6, 2]}
RANDOM = random.Random(4)

# model: native us at batch 1 and 32 (fp16), kernels, engine MB, device MB, error, estimated MB and launches
MODELS = {
    "resnet50": ([326.0, 1136.0], 58, 52.1, 14.2, 9.1e-4, (92.0, 60)),
    "resnet101": ([598.0, 1890.0], 109, 90.3, 14.4, 9.9e-4, (151.0, 112)),
    "swin_t": ([676.0, 3774.0], 198, 62.7, 11.8, 1.3e-3, (171.0, 262)),
    "swin_s": ([1290.0, 6420.0], 384, 105.4, 11.8, 1.5e-3, (291.0, 502)),
    "tnt_s": ([1127.0, 6100.0], 382, 51.0, 15.1, 1.6e-3, (205.0, 455)),
    "ptnt_s": ([1064.0, 5210.0], 363, 68.9, 16.3, 1.9e-3, (188.0, 430)),
    "uniformer_s": ([663.0, 4015.0], 180, 49.8, 13.7, 1.1e-3, (160.0, 224)),
}
# variant: time and kernels as parts of native's
VARIANTS = {
    "canonical": (0.972, 0.97),
    "layernorm": (0.905, 0.90),
    "attention": (0.792, 0.78),
    "window": (0.938, 0.93),
    "patch-merge": (0.966, 0.965),
    "without-layernorm": (0.752, 0.72),
    "without-attention": (0.865, 0.83),
    "without-window": (0.712, 0.69),
    "without-patch-merge": (0.694, 0.665),
    "all": (0.689, 0.655),
    "tuned": (0.668, 0.650),
    "torch-compile": (1.112, None),
}


def environment(date, command, note):
    return {
        "gpu": "Synthetic GPU 80GB",
        "driver": "000.00",
        "cuda": "12.1",
        "tensorrt": "8.6.0",
        "headers": "8.6.0",
        "commit": "0000000000000000000000000000000000000000",
        "date": date,
        "command": command,
        "clocks": "not locked, 1980 MHz throughout",
        "plan": {"warmup": 50, "settle": 2, "rounds": 30, "per_round": 20, "seed": 0},
        "note": f"Synthetic figures for tests: nothing was measured. {note}",
    }


def row(run, model, variant, precision, batch, mode, us, kernels, **more):
    us *= RANDOM.uniform(0.995, 1.005)
    spread = RANDOM.uniform(0.002, 0.008)
    entry = {
        "model": model, "variant": variant, "precision": precision, "batch": batch, "mode": mode,
        "p50_us": round(us, 2), "p99_us": round(us * RANDOM.uniform(1.008, 1.03), 2),
        "interval_us": [round(us * (1 - spread), 2), round(us * (1 + spread), 2)],
        "kernels": kernels, "engine_mb": None, "device_mb": None, "rel_err": None, "x_resnet50": None, "run": run,
    }
    entry.update(more)
    return entry


def figures(model, variant, precision, batch):
    _, kernels, engine, device, error, _ = MODELS[model]
    half = precision == "fp16"
    fused = variant not in ("native", "canonical") and not variant.startswith("native-")
    error = error * (RANDOM.uniform(0.55, 1.2) if fused else 1.0) if half else RANDOM.uniform(1e-6, 4e-6)
    if model == "tnt_s" and variant == "tuned":
        error *= 1.9
    if variant == "torch-compile":
        return {"rel_err": round(error, 8)}
    scale = 1 if half else 2
    return {
        "engine_mb": round(engine * scale * RANDOM.uniform(0.96, 1.0), 1),
        "device_mb": round(device * scale * batch ** 0.8, 1),
        "rel_err": round(error, 8),
    }


def profile(native, total):
    """Layers of Swin-T: native as TensorRT 8.6 groups it, in a few large layers, or with plugins, in many small ones."""
    layers = [("/patch_embed/proj/Conv", "CaskConvolution", 3.0)]
    for stage, depth in enumerate(DEPTHS["swin_t"]):
        if stage > 0:
            at = f"/layers.{stage}/downsample"
            if native:
                layers.append((f"{{ForeignNode[{at}/Slice...{at}/reduction/MatMul]}}", "Myelin", 14.0 / stage))
            else:
                layers += [(f"{at}/TrtOptPatchMerge", "PluginV2", 3.1), (f"{at}/reduction/MatMul", "gemm", 4.2)]
        for block in range(depth):
            at = f"/layers.{stage}/blocks.{block}"
            if native:
                layers.append((f"{{ForeignNode[{at}/norm1/ReduceMean...{at}/attn/proj/Add]}}", "Myelin", 36.0 - 4 * stage))
                layers.append((f"{at}/Add", "ElementWise", 1.9))
                layers.append((f"{{ForeignNode[{at}/norm2/ReduceMean...{at}/mlp/fc2/Add]}}", "Myelin", 17.0 - stage))
                continue
            layers += [
                (f"{at}/norm1/TrtOptLayerNorm", "PluginV2", 2.9),
                (f"Reformatting CopyNode for Input Tensor 0 to {at}/attn/qkv/MatMul", "Reformat", 1.7),
                (f"{at}/attn/qkv/MatMul + {at}/attn/qkv/Add", "gemm", 4.4),
                (f"{at}/attn/TrtOptAttention", "PluginV2", 5.6),
                (f"{at}/attn/proj/MatMul", "gemm", 3.9),
                (f"{at}/TrtOptWindow", "PluginV2", 2.3),
                (f"{at}/norm2/TrtOptLayerNorm", "PluginV2", 2.6),
                (f"{at}/mlp/fc1/MatMul", "gemm", 4.8),
                (f"PWN(PWN({at}/mlp/act/Erf), {at}/mlp/act/Mul)", "PointWiseV2", 2.4),
                (f"{at}/mlp/fc2/MatMul + {at}/Add_1", "gemm", 5.1),
            ]
    layers += [("/norm/LayerNorm", "Normalization", 2.8), ("/head/GlobalAveragePool", "CaskPooling", 1.6),
               ("/head/fc/Gemm", "gemm", 3.3), ("(Unnamed Layer* 412) [Shuffle]", "NoOp", 0.0)]
    scale = total / sum(us for _, _, us in layers)
    return [{"name": n, "type": t, "us": round(us * scale * RANDOM.uniform(0.93, 1.07), 2)} for n, t, us in layers]


def rows_of(run, model, batches, variants, modes=("graph",), precision="fp16"):
    for batch in batches:
        us, kernels, _, _, _, (mb, launches) = MODELS[model]
        native = us[0 if batch == 1 else 1]
        if precision == "fp32":
            native *= 1.75 if model.startswith("resnet") else 1.38
        for variant in variants:
            time, count = (1.0, 1.0) if variant == "native" else VARIANTS[variant]
            engine = figures(model, variant, precision, batch)
            for mode in modes:
                if variant == "torch-compile" and mode == "enqueue":
                    continue
                more = dict(engine)
                if variant in ("all", "tuned"):
                    before = {"bytes": int(mb * 1e6 * batch ** 0.9), "launches": float(launches)}
                    after = {"bytes": int(before["bytes"] * 0.58), "launches": round(launches * 0.61, 1)}
                    more["estimate"] = {"before": before, "after": after}
                if variant == "tuned":
                    more["note"] = "Synthetic: window left native in stage 4, 41.2 us against 39.8 us"
                profiled = batch == 1 or variant == "tuned"
                if model == "swin_t" and profiled and precision == "fp16" and mode == "graph" and variant in ("native", "tuned"):
                    more["layers"] = profile(variant == "native", native * time * 1.3)
                host = 1.0 if mode == "graph" else 1.25
                yield row(run, model, variant, precision, batch, mode, native * time * host,
                          count and round(kernels * count), **more)


def ratios(rows):
    for r in rows:
        base = next((b for b in rows if b["model"] == "resnet50" and b["variant"] == "native" and b["precision"] == "fp16"
                     and (b["run"], b["batch"], b["mode"]) == (r["run"], r["batch"], r["mode"])), None)
        if base is not None:
            r["x_resnet50"] = r["p50_us"] / base["p50_us"]
            low, high = r["interval_us"]
            r["x_resnet50_interval"] = [low / base["p50_us"], high / base["p50_us"]]
    return rows


def write(name, environment, rows, goals):
    report = {"schema": 1, "environment": environment, "rows": ratios(rows), "goals": goals}
    (HERE / name).write_text(json.dumps(report, indent=1) + "\n")


def main():
    everything = ["native", *VARIANTS]
    swinless = [v for v in everything if v.split("without-")[-1] not in ("window", "patch-merge")]
    a = []
    for model in ("resnet50", "resnet101"):
        a += rows_of("synthetic-1", model, [1, 32], ["native"], ("graph", "enqueue"))
    a += rows_of("synthetic-1", "swin_t", [1], everything, ("graph", "enqueue"))
    a += rows_of("synthetic-1", "swin_t", [32], ["native", "canonical", "all", "tuned"])
    a += rows_of("synthetic-1", "tnt_s", [1], swinless)
    for model in ("resnet50", "swin_t", "tnt_s"):
        a += rows_of("synthetic-1", model, [1], ["native"], precision="fp32")
    a += rows_of("synthetic-1", "swin_t", [1], ["tuned"], precision="fp32")
    audit = [("native-cublas", 0.985), ("native-opset13", 1.06), ("native-o5", 1.002)]
    for variant, factor in audit:
        a.append(row("synthetic-1", "swin_t", variant, "fp16", 1, "graph", 676.0 * factor, 198, **figures("swin_t", variant, "fp16", 1)))

    b = list(rows_of("synthetic-2", "resnet50", [1, 32], ["native"]))
    for model in ("ptnt_s", "uniformer_s"):
        b += rows_of("synthetic-2", model, [1, 32], ["native", "canonical", "all", "tuned"])
    b += rows_of("synthetic-2", "swin_s", [1], ["native", "canonical", "all"])
    b += rows_of("synthetic-2", "swin_t", [1], ["native", "tuned"])

    goal = lambda model, batch, x: {"model": model, "precision": "fp16", "batch": batch, "mode": "graph", "x_resnet50": x}
    write("synthetic_a.json",
          {"synthetic-1": environment("2020-01-01T10:00:00Z", "trt-opt report --models swin_t,tnt_s -o report", "First.")},
          a, [goal("swin_t", 1, 1.5), goal("tnt_s", 1, 2.4), goal("swin_t", 32, 2.0)])
    write("synthetic_b.json",
          {"synthetic-2": environment("2020-01-02T10:00:00Z", "trt-opt report --models ptnt_s,uniformer_s -o report", "Second.")},
          b, [goal("ptnt_s", 1, 2.4), goal("swin_t", 1, 1.5)])


if __name__ == "__main__":
    main()
