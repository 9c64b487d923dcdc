#!/usr/bin/env python3
"""Times the kernels against a device-to-device copy and against PyTorch, all in one run.

    bench.py LIB [--json FILE] [--quick]

LIB is kernel_c_api built as a shared library. Each variant is captured as one CUDA graph of many
launches over rotating buffers (several times the L2 cache), variants are interleaved in rounds, and
the median per launch is reported in microseconds.
"""
import argparse
import ctypes
import json
import os
import statistics

import torch
import torch.nn.functional as F

FLOAT, HALF = 0, 1


def pointer(t):
    return ctypes.c_void_p(t.data_ptr() if t is not None else None)


class Library:
    def __init__(self, path):
        self.lib = ctypes.CDLL(os.path.abspath(path))  # a name alone would be looked up elsewhere

    def call(self, name, *args):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = getattr(self.lib, name)(*args, stream)
        if status != 0:
            raise RuntimeError(f"{name}: CUDA error {status}")

    @staticmethod
    def window(w):
        return (ctypes.c_int32 * 7)(*w) if w else None

    def layer_norm(self, x, residual, scale, bias, y, total, row, window=None, reverse=False, part=None, tokens=0):
        """`part`: [images, M, row], added to the last M of each image's tokens."""
        covered = part.shape[1] if part is not None else 0
        rows = x.numel() // row
        self.call("trt_opt_layer_norm", HALF, ctypes.c_int64(rows), ctypes.c_int64(row), ctypes.c_float(1e-5), pointer(x),
                  pointer(residual), pointer(scale), pointer(bias), pointer(y), pointer(total), self.window(window), int(reverse),
                  pointer(part), ctypes.c_int64(tokens), ctypes.c_int64(tokens - covered), ctypes.c_int64(covered))

    def attention(self, qkv, out, heads, dim, bias_kind=0, bias=None, bias_period=1, mask_kind=0, mask_value=-100.0, window=None, tactic=0):
        batch, tokens = qkv.shape[0], qkv.shape[1]
        self.call("trt_opt_attention_qkv", HALF, ctypes.c_int64(batch), heads, tokens, dim, ctypes.c_float(dim**-0.5), pointer(qkv),
                  pointer(out), bias_kind, pointer(bias), ctypes.c_int64(bias_period), mask_kind, None, ctypes.c_int64(1),
                  ctypes.c_float(mask_value), self.window(window), tactic)

    def move(self, x, residual, y, images, channels, reverse, window):
        self.call("trt_opt_window", HALF, ctypes.c_int64(images), ctypes.c_int64(channels), int(reverse), pointer(x), pointer(residual), pointer(y),
                  self.window(window))

    def patch_merge(self, x, scale, bias, y, images, channels, h, w):
        self.call("trt_opt_patch_merge", HALF, ctypes.c_int64(images), ctypes.c_int64(channels), h, w, ctypes.c_float(1e-5), pointer(x),
                  pointer(scale), pointer(bias), pointer(y))

    def norm_pool(self, x, residual, scale, bias, y):
        images, tokens, row = x.shape
        self.call("trt_opt_norm_pool", HALF, ctypes.c_int64(images), ctypes.c_int64(tokens), ctypes.c_int64(row), ctypes.c_float(1e-5), pointer(x), pointer(residual),
                  pointer(scale), pointer(bias), pointer(y))

    def classifier(self, x, residual, w, b, y, token, norm):
        images, tokens, row = x.shape
        self.call("trt_opt_classifier", HALF, int(y.dtype == torch.float32), ctypes.c_int64(images), ctypes.c_int64(tokens), token, row, w.shape[0], int(norm), ctypes.c_float(1e-5), pointer(x),
                  pointer(residual), pointer(w), pointer(b), pointer(y))

    def gelu(self, x, bias, y, tanh=False):
        rows, row = x.shape
        self.call("trt_opt_gelu", HALF, ctypes.c_int64(rows), ctypes.c_int64(row), int(tanh), pointer(x), pointer(bias), pointer(y))

    def depthwise_conv(self, x, w, b, y, side, residual):
        images, _, channels = x.shape
        kernel = round(w.shape[0] ** 0.5)
        self.call("trt_opt_depthwise_conv", HALF, ctypes.c_int64(images), side, side, channels, kernel, int(residual), pointer(x), pointer(w), pointer(b), pointer(y))

    def conv_block(self, x, p, y, workspace, side, tactic=0):
        images, _, channels = x.shape
        kernel = round(p["w"].shape[0] ** 0.5)
        self.call("trt_opt_conv_block", HALF, ctypes.c_int64(images), side, side, channels, p["w1"].shape[1], kernel, pointer(x), pointer(p["w1"]), pointer(p["b1"]), pointer(p["w"]), pointer(p["b"]),
                  pointer(p["w2"]), pointer(p["b2"]), pointer(y), pointer(workspace), ctypes.c_int64(workspace.numel()), tactic)

    def conv_block_tactics(self, images, side, channels, hidden, kernel):
        found = (ctypes.c_int32 * 64)()
        count = self.lib.trt_opt_conv_block_tactics(HALF, ctypes.c_int64(images), side, side, channels, hidden, kernel, found, 64)
        return list(found)[:count]

    LAYER = "position_w", "position_b", "w1", "b1", "w", "b", "w2", "b2", "up", "up_b", "down", "down_b"

    def conv_layer(self, x, p, y, workspace, side, tactic=0):
        images, _, channels = x.shape
        kernel, weights = round(p["w"].shape[0] ** 0.5), (ctypes.c_void_p * len(self.LAYER))(*(p[name].data_ptr() for name in self.LAYER))
        self.call("trt_opt_conv_layer", ctypes.c_int64(images), side, channels, p["up"].shape[1], kernel, pointer(x), weights, pointer(y), pointer(workspace), ctypes.c_int64(workspace.numel()), tactic)

    def conv_layer_tactics(self, images, side, channels, hidden, kernel):
        found = (ctypes.c_int32 * 4)()
        count = self.lib.trt_opt_conv_layer_tactics(ctypes.c_int64(images), side, channels, hidden, kernel, found, 4)
        return list(found)[:count]

    def patch_conv(self, x, p, y, workspace, shape, tactic=0):
        """`shape`: images, side, channels, columns, kernel, stride, pad, cell, across."""
        images, *sizes = shape
        self.call("trt_opt_patch_conv", ctypes.c_int64(images), *sizes, ctypes.c_float(1e-5), pointer(x), pointer(p["w"]), pointer(p["b"]), pointer(p.get("scale")), pointer(p.get("bias")), pointer(y),
                  pointer(workspace), ctypes.c_int64(workspace.numel()), tactic)

    def patch_conv_tactics(self, images, *sizes):
        found = (ctypes.c_int32 * 64)()
        count = self.lib.trt_opt_patch_conv_tactics(ctypes.c_int64(images), *sizes, found, 64)
        return list(found)[:count]

    def patch_merge_block(self, x, p, y, workspace, side, tactic=0):
        images, _, channels = x.shape
        self.call("trt_opt_patch_merge_block", HALF, ctypes.c_int64(images), channels, side, side, p["w"].shape[1], ctypes.c_float(1e-5), pointer(x), pointer(p["scale"]), pointer(p["bias"]),
                  pointer(p["w"]), pointer(p["b"]), pointer(y), pointer(workspace), ctypes.c_int64(workspace.numel()), tactic)

    def patch_merge_block_tactics(self, images, channels, side, columns):
        found = (ctypes.c_int32 * 64)()
        count = self.lib.trt_opt_patch_merge_block_tactics(HALF, ctypes.c_int64(images), channels, side, side, columns, found, 64)
        return list(found)[:count]

    def mlp_block(self, x, residual, p, y, workspace, tactic=0):
        rows, channels = x.shape
        self.call("trt_opt_mlp_block", HALF, ctypes.c_int64(rows), channels, p["w1"].shape[1], ctypes.c_float(1e-5), 0, pointer(x), pointer(residual),
                  pointer(p.get("scale")), pointer(p.get("bias")), pointer(p["w1"]), pointer(p["b1"]), pointer(p["w2"]), pointer(p["b2"]), pointer(y), pointer(workspace), tactic)

    def pooled_attn_block(self, x, residual, p, y, workspace, side, pool, heads):
        images, _, channels = x.shape
        self.call("trt_opt_pooled_attn_block", ctypes.c_int64(images), side, pool, channels, heads, pointer(x), pointer(residual), *(pointer(p[n]) for n in ("w_q", "w_pool", "w_kv", "w_proj", "vectors", "position")),
                  pointer(y), pointer(workspace), ctypes.c_int64(workspace.numel()))

    def attn_block(self, x, p, y, workspace, heads, window=None, tactic=0, residual=None):
        images, tokens, channels = x.shape
        self.call("trt_opt_attn_block", HALF, ctypes.c_int64(images), tokens, channels, heads, ctypes.c_float(1e-5), pointer(x), pointer(residual), pointer(p["scale"]), pointer(p["bias"]), pointer(p["w_qkv"]),
                  pointer(p["b_qkv"]), pointer(p["w_proj"]), pointer(p["b_proj"]), pointer(p.get("table")), self.window(window), pointer(y), pointer(workspace), tactic)

    def attn_block_forms(self, images, tokens, channels, heads, window=None):
        """The best guess of each form of the block that its sizes have (plugins/kernels/attn_chain.h): name -> tactic."""
        found = (ctypes.c_int32 * 64)()
        count = self.lib.trt_opt_attn_block_tactics(HALF, ctypes.c_int64(images), tokens, channels, heads, self.window(window), found, 64)
        forms = {}
        for tactic in list(found)[:count]:
            blocks = 1 << (tactic >> 4 & 15)
            name = f"one kernel{('', ', ring', ', a head a warpgroup')[tactic & 15]}" if tactic >> 27 == 1 else f"four kernels, wide {tactic & 15} and {tactic >> 4 & 15}" if tactic >> 28 == 1 else "three kernels" if tactic & 15 else "two kernels" if blocks == 1 else f"two kernels, clusters of {blocks}"
            forms.setdefault(name, tactic)
        return forms

    def tnt_inner_block(self, x, p, y, workspace, heads):
        patches, tokens, channels = x.shape
        names = ["scale1", "bias1", "w_qkv", "b_qkv", "w_proj", "b_proj", "scale2", "bias2", "w1", "b1", "w2", "b2"]
        weights = (ctypes.c_void_p * len(names))(*[p[n].data_ptr() for n in names])
        self.call("trt_opt_tnt_inner_block", HALF, ctypes.c_int64(patches), tokens, channels, p["w1"].shape[1], heads, ctypes.c_float(1e-5), pointer(x), weights, pointer(y), pointer(workspace))

    def mlp_block_tactics(self, rows, channels, hidden, norm=True):
        found = (ctypes.c_int32 * 64)()
        count = self.lib.trt_opt_mlp_block_tactics(HALF, ctypes.c_int64(rows), channels, hidden, int(norm), found, 64)
        return list(found)[:count]


    def patch_embed(self, x, p, y, norm, grid=None):
        # grid: x are the tokens of such a map.
        w = p["w_tokens"] if grid else p["w"]
        (images, channels, height, width), (columns, _, patch_h, patch_w) = (x.shape[0], x.shape[2], *grid) if grid else x.shape, p["w"].shape
        self.call("trt_opt_patch_embed", HALF if x.dtype == torch.float16 else FLOAT, HALF, ctypes.c_int64(images), channels, height, width, patch_h, patch_w, columns, int(grid is not None), ctypes.c_float(1e-5), pointer(x),
                  pointer(w), pointer(p["b"]), pointer(p["scale"] if norm else None), pointer(p["bias"] if norm else None), pointer(y))

    def pixel_embed(self, x, p, y, kernel, stride, pad, grid, words, within):
        images, channels, height, width = x.shape
        sizes = (ctypes.c_int32 * 10)(*[v for v in (kernel, stride, pad, grid, words) for _ in range(2)])
        self.call("trt_opt_pixel_embed", HALF if x.dtype == torch.float16 else FLOAT, HALF, ctypes.c_int64(images), channels, height, width, sizes, int(within), p["w"].shape[0], pointer(x), pointer(p["packed"]),
                  pointer(p["offset"]), pointer(y))

    @staticmethod
    def stack_arguments(x, columns, strides, branch, words):
        images, channels, height, width = x.shape
        ints = lambda values: (ctypes.c_int32 * len(values))(*values)
        return HALF if x.dtype == torch.float16 else FLOAT, ctypes.c_int64(images), channels, height, width, len(columns), ints(columns), ints(strides), branch, ints(words)

    def conv_stack_weights(self, x, ps, columns, strides, branch, words):
        """Of convolutions' weights and offsets, the branch's last, as conv_stack takes them."""
        values = torch.cat([v.flatten() for p in ps for v in p]).cpu()
        places = (ctypes.c_int64 * values.numel())()
        self.lib.trt_opt_conv_stack_places.restype = ctypes.c_int64
        total = self.lib.trt_opt_conv_stack_places(*self.stack_arguments(x, columns, strides, branch, words), places)
        packed = torch.zeros(total, dtype=torch.float16)
        packed[torch.tensor(list(places))] = values
        return packed.cuda()

    def conv_stack(self, x, w, offset, word_offset, y, word, shape, tactic=0):
        """`shape`: columns, strides, branch, and of words columns, down and across."""
        self.call("trt_opt_conv_stack", *self.stack_arguments(x, *shape), pointer(x), pointer(w), pointer(offset), pointer(word_offset), pointer(y), pointer(word), tactic)

    def tnt_bridge(self, x, words, p, y, workspace):
        (images, tokens, channels), (_, covered, width) = x.shape, words.shape
        self.call("trt_opt_tnt_bridge", HALF, ctypes.c_int64(images), tokens, covered, width, channels, ctypes.c_float(1e-5), pointer(x), pointer(words),
                  *(pointer(p[k]) for k in ("scale1", "bias1", "w", "b", "scale2", "bias2")), pointer(y), pointer(workspace), ctypes.c_int64(workspace.numel()))

    def chain_arguments(self, images, tokens, channels, heads, dim, hidden, pairs, bias, window, shifted, before=0):
        return ctypes.c_int64(images), tokens, channels, heads, dim, hidden, pairs, int(bias), self.window(window), shifted, before

    def block_chain_sizes(self, *shape):
        sizes = (ctypes.c_int64 * 3)()
        self.lib.trt_opt_block_chain_sizes(*self.chain_arguments(*shape), sizes)
        return list(sizes)

    def block_chain_tactics(self, *shape):
        found = (ctypes.c_int32 * 64)()
        count = self.lib.trt_opt_block_chain_tactics(*self.chain_arguments(*shape), found, 64)
        return list(found[:min(count, 64)])

    def block_chain(self, x, weights, vectors, between, y, workspace, tactic, slot, *shape):
        self.call("trt_opt_block_chain", *self.chain_arguments(*shape), pointer(x), pointer(weights), pointer(vectors), pointer(between), pointer(y), pointer(workspace), tactic, slot)

    def tnt_words(self, x, p, bridges, after, tokens, outs, y, workspace, heads, way=0):
        (patches, words, channels), (_, width, out_channels) = x.shape, bridges["w"].shape
        names, bridge_names = ["scale1", "bias1", "w_qkv", "b_qkv", "w_proj", "b_proj", "scale2", "bias2", "w1", "b1", "w2", "b2"], ["scale1", "bias1", "w", "b", "scale2", "bias2"]
        weights = (ctypes.c_void_p * 18)(*[p[n].data_ptr() for n in names], *[bridges[n].data_ptr() for n in bridge_names])
        images = outs[0].shape[0]
        self.call("trt_opt_tnt_words", HALF, ctypes.c_int64(images), tokens, patches // images, words, channels, p["w1"].shape[2], heads, p["w1"].shape[0], out_channels, len(after),
                  (ctypes.c_int32 * len(after))(*after), ctypes.c_float(1e-5), pointer(x), weights, (ctypes.c_void_p * len(outs))(*[o.data_ptr() for o in outs]), pointer(y), pointer(workspace),
                  ctypes.c_int64(workspace.numel()), way)


def capture(launches):
    """One graph of all launches, run once before for lazy set-up."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        launches[0]()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    return graph


def time_variants(variants, rounds):
    """variants: name -> list of launches over rotating buffers. Median microseconds a launch."""
    graphs = {}
    failed = {}
    for name, launches in variants.items():
        try:
            graphs[name] = (capture(launches), len(launches))
        except Exception as e:  # a variant of PyTorch may not take the shape
            failed[name] = str(e).splitlines()[0][:120]
            torch.cuda.synchronize()
    times = {name: [] for name in graphs}
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for i in range(rounds + 3):
        for name, (graph, count) in graphs.items():
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if i >= 3:
                times[name].append(begin.elapsed_time(end) * 1000 / count)
    return {name: statistics.median(t) for name, t in times.items()}, failed


def rotation(bytes_a_set):
    """Sets of buffers so that together they are several times the cache; launches in a graph."""
    sets = max(2, min(64, -(-400_000_000 // max(1, bytes_a_set))))
    launches = max(sets, 20)
    return sets, [i % sets for i in range(launches)]


def rand(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.float16)


def bench_layer_norm(lib, rows, row, residual, window, rounds, reverse=False):
    size = rows * row * 2
    sets, order = rotation(size * (4 if residual else 2))
    xs = [rand(rows, row) for _ in range(sets)]
    ys = [torch.empty_like(xs[0]) for _ in range(sets)]
    rs = [rand(rows, row) for _ in range(sets)] if residual else [None] * sets
    ss = [torch.empty_like(xs[0]) for _ in range(sets)] if residual else [None] * sets
    scale, bias = rand(row), rand(row)

    def torch_norm(i):
        if residual:
            torch.add(xs[i], rs[i], out=ss[i])
            return F.layer_norm(ss[i], (row,), scale, bias, 1e-5)
        return F.layer_norm(xs[i], (row,), scale, bias, 1e-5)

    variants = {"ours": [lambda i=i: lib.layer_norm(xs[i], rs[i], scale, bias, ys[i], ss[i], row, window, reverse) for i in order],
                "torch": [lambda i=i: torch_norm(i) for i in order]}
    if residual:
        variants["copy"] = [lambda i=i: (ys[i].copy_(xs[i]), ss[i].copy_(rs[i])) for i in order]
    else:
        variants["copy"] = [lambda i=i: ys[i].copy_(xs[i]) for i in order]
    times, failed = time_variants(variants, rounds)
    moved = size * (4 if residual else 2)
    return {"op": "layer_norm", "shape": [rows, row], "residual": residual, "window": window, "reverse": reverse, "us": times, "failed": failed, "bytes": moved,
            "bandwidth_of_copy": times["copy"] / times["ours"], "speedup_over_torch": times["torch"] / times["ours"],
            "tb_s": moved / times["ours"] * 1e-6}


def bench_layer_norm_part(lib, images, tokens, row, rounds):
    """Before a block of TNT: a residual add, an add to all tokens but the first, and a norm."""
    size = images * tokens * row * 2
    sets, order = rotation(size * 5)
    xs, rs = ([rand(images, tokens, row) for _ in range(sets)] for _ in range(2))
    ps = [rand(images, tokens - 1, row) for _ in range(sets)]
    ys, ss = ([torch.empty_like(xs[0]) for _ in range(sets)] for _ in range(2))
    scale, bias = rand(row), rand(row)

    def ours(i):
        lib.layer_norm(xs[i], rs[i], scale, bias, ys[i], ss[i], row, part=ps[i], tokens=tokens)

    def torch_norm(i):
        torch.add(xs[i], rs[i], out=ss[i])
        ss[i][:, 1:] += ps[i]
        return F.layer_norm(ss[i], (row,), scale, bias, 1e-5)

    ours(0)
    total = xs[0] + rs[0]
    total[:, 1:] += ps[0]
    reference = F.layer_norm(total.float(), (row,), scale.float(), bias.float(), 1e-5)
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    variants = {"ours": ours, "torch": torch_norm, "copy": lambda i: (ys[i].copy_(xs[i]), ss[i].copy_(rs[i])),
                "without the part": lambda i: lib.layer_norm(xs[i], rs[i], scale, bias, ys[i], ss[i], row)}
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in variants.items()}, rounds)
    moved = 4 * size + images * (tokens - 1) * row * 2
    return {"op": "layer_norm", "shape": [images, tokens, row], "residual": True, "part": True, "error": error, "us": times, "failed": failed, "bytes": moved,
            "bandwidth_of_copy": times["copy"] / times["ours"] * moved / (4 * size), "speedup_over_torch": times["torch"] / times["ours"], "tb_s": moved / times["ours"] * 1e-6}


def bench_norm_pool(lib, images, tokens, row, residual, rounds):
    """Beside our norm with PyTorch's mean behind it, and beside PyTorch's norm and mean."""
    size = images * tokens * row * 2
    read = size * (2 if residual else 1)
    sets, order = rotation(2 * read)
    xs = [rand(images, tokens, row) for _ in range(sets)]
    rs = [rand(images, tokens, row) for _ in range(sets)] if residual else [None] * sets
    normals, totals = ([torch.empty_like(xs[0]) for _ in range(sets)] for _ in range(2))
    ys = [torch.empty(images, row, device="cuda", dtype=torch.float16) for _ in range(sets)]
    scale, bias = rand(row), rand(row)

    def ours(i):
        lib.norm_pool(xs[i], rs[i], scale, bias, ys[i])

    def pieces(i):
        lib.layer_norm(xs[i], rs[i], scale, bias, normals[i], totals[i] if residual else None, row)
        torch.mean(normals[i], 1, out=ys[i])

    def torch_pool(i):
        x = torch.add(xs[i], rs[i], out=totals[i]) if residual else xs[i]
        return torch.mean(F.layer_norm(x, (row,), scale, bias, 1e-5), 1, out=ys[i])

    ours(0)
    x = (xs[0] + rs[0] if residual else xs[0]).float()
    reference = F.layer_norm(x, (row,), scale.float(), bias.float(), 1e-5).mean(1)
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    functions = {"ours": ours, "our norm, torch mean": pieces, "torch": torch_pool, "copy": lambda i: normals[i].copy_(xs[i])}
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "norm_pool", "shape": [images, tokens, row], "residual": residual, "error": error, "us": times, "failed": failed, "bytes": read,
            "speedup_over_pieces": times["our norm, torch mean"] / times["ours"], "speedup_over_torch": times["torch"] / times["ours"],
            "bandwidth_of_copy": times["copy"] / times["ours"] * read / (2 * size), "tb_s": read / times["ours"] * 1e-6}


def bench_classifier(lib, images, tokens, row, token, norm, rounds):
    """Beside the ops that it is made of, ours where there is one, PyTorch's product and conversion to fp32, and all by PyTorch; weights rotate. Behind an MLP block the start may be hidden."""
    classes, size = 1000, images * tokens * row * 2
    weights = 2 * classes * row
    sets, order = rotation(size + weights)
    xs = [rand(images, tokens, row) for _ in range(sets)]
    ws = [rand(classes, row) * row**-0.5 for _ in range(sets)]
    ys = [torch.empty(images, classes, device="cuda", dtype=torch.float32) for _ in range(sets)]
    rows = [torch.empty(images, row, device="cuda", dtype=torch.float16) for _ in range(sets)]
    normals = [torch.empty_like(xs[0]) for _ in range(sets)]
    b, scale, bias = rand(classes), torch.ones(row, device="cuda", dtype=torch.float16), torch.zeros(row, device="cuda", dtype=torch.float16)
    wide, narrow = b.float(), torch.empty(images, classes, device="cuda", dtype=torch.float16)
    hidden = 4 * row
    mlp = {"scale": rand(row), "bias": rand(row), "w1": rand(row, hidden) * row**-0.5, "b1": rand(hidden), "w2": rand(hidden, row) * hidden**-0.5, "b2": rand(row)}
    source, other = rand(images * tokens, row), torch.empty(64 << 20, device="cuda", dtype=torch.uint8)

    def ours(i):
        lib.classifier(xs[i], None, ws[i], wide, ys[i], token, norm)

    def half_out(i):
        lib.classifier(xs[i], None, ws[i], b, narrow, token, norm)

    def product(i, pooled):
        ys[i].copy_(F.linear(pooled, ws[i], b))

    def pieces(i):
        if token >= 0:
            lib.layer_norm(xs[i], None, scale, bias, normals[i], None, row)
            product(i, normals[i][:, token])
        else:
            lib.norm_pool(xs[i], None, scale, bias, rows[i])
            product(i, rows[i])

    def torch_tail(i):
        x = F.layer_norm(xs[i], (row,), scale, bias, 1e-5) if norm else xs[i]
        product(i, x[:, token] if token >= 0 else x.mean(1))

    def block(i):
        lib.mlp_block(source, None, mlp, xs[i].view(-1, row), other)

    ours(0)
    x = F.layer_norm(xs[0].float(), (row,), None, None, 1e-5) if norm else xs[0].float()
    reference = F.linear(x[:, token] if token >= 0 else x.mean(1), ws[0].float(), wide)
    error = ((ys[0] - reference).norm() / reference.norm()).item()
    functions = {"ours": ours, "ours, fp16 out": half_out, "torch": torch_tail, "an MLP block": block, "ours, behind an MLP block": lambda i: (block(i), ours(i))}
    if norm:
        functions["our norm, torch's product"] = pieces
        functions["our norm, torch's product, behind an MLP block"] = lambda i: (block(i), pieces(i))
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    read = weights + (images * row * 2 if token >= 0 else size)
    return {"op": "classifier", "shape": [images, tokens, row, classes], "token": token, "norm": norm, "error": error, "us": times, "failed": failed, "bytes": read,
            "speedup_over_torch": times["torch"] / times["ours"], "tb_s": read / times["ours"] * 1e-6}


def bench_gelu(lib, rows, row, rounds):
    """Beside PyTorch's add and GELU, and beside its GELU alone, which moves as much as ours."""
    size = rows * row * 2
    sets, order = rotation(2 * size)
    xs = [rand(rows, row) for _ in range(sets)]
    ys = [torch.empty_like(xs[0]) for _ in range(sets)]
    bias = rand(row)
    lib.gelu(xs[0], bias, ys[0])
    reference = F.gelu(xs[0].float() + bias.float())
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    functions = {"ours": lambda i: lib.gelu(xs[i], bias, ys[i]), "ours, tanh": lambda i: lib.gelu(xs[i], bias, ys[i], True), "ours, no bias": lambda i: lib.gelu(xs[i], None, ys[i]),
                 "torch": lambda i: F.gelu(torch.add(xs[i], bias, out=ys[i])), "torch, no bias": lambda i: F.gelu(xs[i]), "copy": lambda i: ys[i].copy_(xs[i])}
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "gelu", "shape": [rows, row], "error": error, "us": times, "failed": failed, "bytes": 2 * size, "speedup_over_torch": times["torch"] / times["ours"],
            "bandwidth_of_copy": times["copy"] / times["ours"], "tb_s": 2 * size / times["ours"] * 1e-6}


def bench_depthwise_conv(lib, images, side, channels, kernel, rounds):
    """Position encoding of tokens, beside PyTorch's on the tokens as a map, channels last in memory, and a copy."""
    size = images * side * side * channels * 2
    sets, order = rotation(2 * size)
    xs = [rand(images, side * side, channels) for _ in range(sets)]
    ys = [torch.empty_like(xs[0]) for _ in range(sets)]
    w, b = rand(kernel * kernel, channels), rand(channels)
    kernels = w.t().reshape(channels, 1, kernel, kernel).contiguous(memory_format=torch.channels_last)

    def map_of(x):
        return x.view(images, side, side, channels).permute(0, 3, 1, 2)

    def torch_conv(i):
        x = map_of(xs[i])
        return torch.add(x, F.conv2d(x, kernels, b, padding=kernel // 2, groups=channels), out=map_of(ys[i]))

    lib.depthwise_conv(xs[0], w, b, ys[0], side, True)
    x = map_of(xs[0]).float()
    reference = (x + F.conv2d(x, kernels.float(), b.float(), padding=kernel // 2, groups=channels)).permute(0, 2, 3, 1).reshape(xs[0].shape)
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    functions = {"ours": lambda i: lib.depthwise_conv(xs[i], w, b, ys[i], side, True), "torch": torch_conv, "copy": lambda i: ys[i].copy_(xs[i])}
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "depthwise_conv", "shape": [images, side, channels, kernel], "residual": True, "error": error, "us": times, "failed": failed, "bytes": 2 * size,
            "speedup_over_torch": times["torch"] / times["ours"], "bandwidth_of_copy": times["copy"] / times["ours"], "tb_s": 2 * size / times["ours"] * 1e-6}


def bench_conv_block(lib, images, side, channels, kernel, rounds, tactics):
    """Against PyTorch's products around our convolution and around its own; weights rotate as in bench_mlp. Behind an MLP block the start may be hidden."""
    size, weights = images * side * side * channels * 2, 2 * channels * (2 * channels + kernel * kernel)
    sets, order = rotation(2 * size + weights)
    xs = [rand(images, side * side, channels) for _ in range(sets)]
    ys, ups, mixeds = ([torch.empty_like(xs[0]) for _ in range(sets)] for _ in range(3))
    scale = channels**-0.5
    ps = [{"w1": rand(channels, channels) * scale, "b1": rand(channels), "w": rand(kernel * kernel, channels) / kernel, "b": rand(channels), "w2": rand(channels, channels) * scale, "b2": rand(channels)} for _ in range(sets)]
    kernels = [p["w"].t().reshape(channels, 1, kernel, kernel).contiguous(memory_format=torch.channels_last) for p in ps]
    hidden = 4 * channels
    mlp = {"scale": rand(channels), "bias": rand(channels), "w1": rand(channels, hidden) * scale, "b1": rand(hidden), "w2": rand(hidden, channels) * hidden**-0.5, "b2": rand(channels)}
    source = rand(images * side * side, channels)
    workspace, other = (torch.empty(64 << 20, device="cuda", dtype=torch.uint8) for _ in range(2))

    def map_of(x):
        return x.view(images, side, side, channels).permute(0, 3, 1, 2)

    def ours(i, tactic=0):
        lib.conv_block(xs[i], ps[i], ys[i], workspace, side, tactic)

    def end(i, mixed):
        torch.add(xs[i], torch.addmm(ps[i]["b2"], mixed.reshape(-1, channels), ps[i]["w2"]).view_as(xs[i]), out=ys[i])

    def begin(i):
        torch.addmm(ps[i]["b1"], xs[i].view(-1, channels), ps[i]["w1"], out=ups[i].view(-1, channels))

    def pieces(i):
        begin(i)
        lib.depthwise_conv(ups[i], ps[i]["w"], ps[i]["b"], mixeds[i], side, False)
        end(i, mixeds[i])

    def torch_block(i):
        begin(i)
        end(i, F.conv2d(map_of(ups[i]), kernels[i], ps[i]["b"], padding=kernel // 2, groups=channels).permute(0, 2, 3, 1))

    def block(i):
        lib.mlp_block(source, None, mlp, xs[i].view(-1, channels), other)

    ours(0)
    x, p = xs[0].float(), {k: v.float() for k, v in ps[0].items()}
    mixed = F.conv2d(map_of(x @ p["w1"] + p["b1"]), kernels[0].float(), p["b"], padding=kernel // 2, groups=channels).permute(0, 2, 3, 1).reshape(x.shape)
    reference = x + mixed @ p["w2"] + p["b2"]
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    best = lib.conv_block_tactics(images, side, channels, channels, kernel)
    label = lambda t: f"tile {t & 15} cluster {1 << (t >> 4 & 15)}, tile {t >> 8 & 15} cluster {1 << (t >> 12 & 15)}"
    functions = {"ours": ours, "our convolution, torch's products": pieces, "torch": torch_block, "an MLP block": block, "ours, behind an MLP block": lambda i: (block(i), ours(i))}
    for t in best if tactics else ():
        functions[label(t)] = lambda i, t=t: ours(i, t)
        functions[label(t) + ", behind an MLP block"] = lambda i, t=t: (block(i), ours(i, t))
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "conv_block", "shape": [images, side, channels, kernel], "tactic": label(best[0]) if best else "none", "error": error, "us": times, "failed": failed, "bytes": 2 * size + weights,
            "flop": 4 * images * side * side * channels * channels, "speedup_over_torch": times["torch"] / times["ours"]}


def bench_conv_layer(lib, images, side, channels, kernel, rounds):
    """A layer as one kernel and as its three ops, by the kernel library and one by one, in rows of four layers each of which reads what the one before gives; weights rotate as in bench_mlp."""
    hidden, rows = 4 * channels, images * side * side
    size, weights = rows * channels * 2, 2 * channels * (2 * channels + 2 * hidden + kernel * kernel + 9)
    sets, order = rotation(2 * size + weights)
    xs = [rand(images, side * side, channels) for _ in range(sets)]
    ys = [torch.empty_like(xs[0]) for _ in range(sets)]
    one, two = torch.empty_like(xs[0]), torch.empty_like(xs[0])
    scale = channels**-0.5
    ps = [{"position_w": rand(9, channels) / 6, "position_b": rand(channels), "w1": rand(channels, channels) * scale, "b1": rand(channels), "w": rand(kernel * kernel, channels) / kernel, "b": rand(channels),
           "w2": rand(channels, channels) * scale, "b2": rand(channels), "up": rand(channels, hidden) * scale, "up_b": rand(hidden), "down": rand(hidden, channels) * hidden**-0.5, "down_b": rand(channels)} for _ in range(sets)]
    mlps = [{"w1": p["up"], "b1": p["up_b"], "w2": p["down"], "b2": p["down_b"]} for p in ps]
    workspace = torch.empty((64 << 20) + size, device="cuda", dtype=torch.uint8)

    def source(i):
        return ys[i - 1] if i % 4 else xs[i]

    def ours(i, tactic=0):
        lib.conv_layer(source(i), ps[i], ys[i], workspace, side, tactic)

    def ops(i):
        lib.depthwise_conv(source(i), ps[i]["position_w"], ps[i]["position_b"], one, side, True)
        lib.conv_block(one, ps[i], two, workspace, side)
        lib.mlp_block(two.view(-1, channels), None, mlps[i], ys[i].view(-1, channels), workspace)

    x, p = xs[0].float(), {k: v.float() for k, v in ps[0].items()}

    def conv(x, w, b, size):
        of_map = x.view(images, side, side, channels).permute(0, 3, 1, 2)
        return F.conv2d(of_map, w.t().reshape(channels, 1, size, size), b, padding=size // 2, groups=channels).permute(0, 2, 3, 1).reshape(x.shape)

    encoded = x + conv(x, p["position_w"], p["position_b"], 3)
    mid = encoded + conv(encoded @ p["w1"] + p["b1"], p["w"], p["b"], kernel) @ p["w2"] + p["b2"]
    reference = mid + F.gelu(mid @ p["up"] + p["up_b"]) @ p["down"] + p["down_b"]
    names = {1: "one kernel", 2: "one by one"}
    tactics = lib.conv_layer_tactics(images, side, channels, hidden, kernel)
    error = 0.0
    for tactic in [0, *tactics]:
        ours(0, tactic)
        error = max(error, ((ys[0].float() - reference).norm() / reference.norm()).item())
    functions = {"ours": ours, "three ops": ops, **{names[t]: lambda i, t=t: ours(i, t) for t in tactics}}
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "conv_layer", "shape": [images, side, channels, kernel], "tactic": names.get(tactics[0] if tactics else 0, "none"), "error": error, "us": times, "failed": failed, "bytes": 2 * size + weights,
            "flop": 4 * rows * channels * (channels + hidden), "speedup_over_ops": times["three ops"] / times["ours"]}


def bench_patch_conv(lib, images, side, channels, columns, cell, across, rounds, tactics):
    """A norm and a 3 x 3 convolution of stride 2, against PyTorch's; weights rotate as in bench_mlp. Behind an MLP block, where patches are merged behind one, the start may be hidden."""
    shape = (images, side, channels, columns, 3, 2, 1, cell, across)
    tokens, rows, depth = images * side * side, images * (side // 2) ** 2, 9 * channels
    weights, size = 2 * depth * columns, 2 * (tokens * channels + rows * columns)
    sets, order = rotation(size + weights)
    xs = [rand(images, side * side, channels) for _ in range(sets)]
    ys = [torch.empty(images, rows // images, columns, device="cuda", dtype=torch.float16) for _ in range(sets)]
    ps = [{"w": rand(depth, columns) * depth**-0.5, "b": rand(columns), "scale": rand(channels), "bias": rand(channels)} for _ in range(sets)]
    kernels = [p["w"].view(3, 3, channels, columns).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last) for p in ps]
    workspace, other = (torch.empty(64 << 20, device="cuda", dtype=torch.uint8) for _ in range(2))

    def map_of(x):
        if cell > 1:
            cells = side // cell
            x = x.view(images // across, cells, across, cells, cell, cell, channels).permute(0, 2, 1, 4, 3, 5, 6)
        return x.reshape(images, side, side, channels).permute(0, 3, 1, 2)

    def ours(i, tactic=0):
        lib.patch_conv(xs[i], ps[i], ys[i], workspace, shape, tactic)

    def torch_conv(i):
        x = F.layer_norm(xs[i], (channels,), ps[i]["scale"], ps[i]["bias"], 1e-5)
        ys[i].copy_(F.conv2d(map_of(x), kernels[i], ps[i]["b"], stride=2, padding=1).permute(0, 2, 3, 1).reshape(ys[i].shape))

    ours(0)
    p = {k: v.float() for k, v in ps[0].items()}
    reference = F.conv2d(map_of(F.layer_norm(xs[0].float(), (channels,), p["scale"], p["bias"], 1e-5)), kernels[0].float(), p["b"], stride=2, padding=1).permute(0, 2, 3, 1).reshape(ys[0].shape)
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    best = lib.patch_conv_tactics(*shape)
    label = lambda t: f"tile {t & 15} cluster {1 << (t >> 4 & 15)}"
    functions = {"ours": ours, "torch": torch_conv}
    if cell == 1:
        hidden, source = 4 * channels, rand(tokens, channels)
        mlp = {"scale": rand(channels), "bias": rand(channels), "w1": rand(channels, hidden) * channels**-0.5, "b1": rand(hidden), "w2": rand(hidden, channels) * hidden**-0.5, "b2": rand(channels)}
        block = lambda i: lib.mlp_block(source, None, mlp, xs[i].view(-1, channels), other)
        functions |= {"an MLP block": block, "ours, behind an MLP block": lambda i: (block(i), ours(i))}
    for t in best if tactics else ():
        functions[label(t)] = lambda i, t=t: ours(i, t)
        if cell == 1:
            functions[label(t) + ", behind an MLP block"] = lambda i, t=t: (block(i), ours(i, t))
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "patch_conv", "shape": list(shape), "tactic": label(best[0]) if best else "none", "error": error, "us": times, "failed": failed, "bytes": size + weights, "flop": 2 * rows * depth * columns,
            "speedup_over_torch": times["torch"] / times["ours"]}


def bench_attention(lib, stage, batch, shifted, rounds, tactics):
    side, heads = 56 >> stage, 3 << stage
    windows, n, dim = (side // 7) ** 2, 49, 32
    b = batch * windows
    grid = [side, side, 7, 7, 3, 3, 0] if shifted else [side, side, 7, 7, 0, 0, 0]
    size = b * n * heads * dim * 2
    sets, order = rotation(size * 4)
    qkv = [rand(b, n, 3, heads, dim) for _ in range(sets)]
    out = [torch.empty(b, n, heads * dim, device="cuda", dtype=torch.float16) for _ in range(sets)]
    table = rand(169, heads)
    y, x = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
    y, x = y.flatten(), x.flatten()
    index = ((y[:, None] - y[None] + 6) * 13 + x[:, None] - x[None] + 6).cuda()
    bias = table[index.flatten()].view(n, n, heads).permute(2, 0, 1).contiguous()  # [h, N, N]
    dense, period = bias[None].contiguous(), 1
    if shifted:
        def region(length):
            p = torch.arange(length)
            return (p >= length - 7).int() + (p >= length - 3).int()
        r = region(side)[:, None] * 3 + region(side)[None]
        r = r.view(side // 7, 7, side // 7, 7).permute(0, 2, 1, 3).reshape(windows, n)
        mask = torch.where(r[:, :, None] != r[:, None], -100.0, 0.0).half().cuda()  # [nW, N, N]
        dense, period = (bias[None] + mask[:, None]).contiguous(), windows
    big = dense.repeat(b // period, 1, 1, 1) if period > 1 else dense.expand(b, -1, -1, -1)  # what SDPA takes
    padded = torch.zeros(big.shape[0] if period > 1 else 1, heads, n, 56, device="cuda", dtype=torch.float16)
    padded[..., :n] = big if period > 1 else dense
    aligned = padded[..., :n].expand(b, -1, -1, -1)
    views = [t.permute(2, 0, 3, 1, 4) for t in qkv]      # q, k, v as views of the packed tensor
    flat = [v.contiguous() for v in views]               # the same, dense

    def ours_dense(i, tactic=0):
        lib.attention(qkv[i], out[i], heads, dim, 1, dense, period, tactic=tactic)

    def ours_table(i, tactic=0):
        lib.attention(qkv[i], out[i], heads, dim, 2, table, 1, 2 if shifted else 0, -100.0, grid, tactic=tactic)

    def sdpa(source, m):
        return lambda i: F.scaled_dot_product_attention(source[i][0], source[i][1], source[i][2], attn_mask=m)

    reference = F.scaled_dot_product_attention(*[t.float() for t in flat[0]], attn_mask=big.float()).transpose(1, 2).reshape(b, n, -1)
    ours_dense(0)
    error_dense = ((out[0].float() - reference).norm() / reference.norm()).item()
    ours_table(0)
    error_table = ((out[0].float() - reference).norm() / reference.norm()).item()
    half = F.scaled_dot_product_attention(*flat[0], attn_mask=big).transpose(1, 2).reshape(b, n, -1)
    error_torch = ((half.float() - reference).norm() / reference.norm()).item()
    del reference, half

    functions = {"ours dense": ours_dense, "ours table": ours_table, "sdpa views": sdpa(views, big), "sdpa dense": sdpa(flat, big),
                 "sdpa views, aligned bias": sdpa(views, aligned), "sdpa dense, aligned bias": sdpa(flat, aligned),
                 "copy": lambda i: (flat[i][0].copy_(flat[i][1]), flat[i][2].view(-1).copy_(out[i].view(-1)))}
    for tactic in tactics:
        functions[f"ours dense, tactic {tactic}"] = lambda i, t=tactic: ours_dense(i, t)
        functions[f"ours table, tactic {tactic}"] = lambda i, t=tactic: ours_table(i, t)
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    best = min(t for k, t in times.items() if k.startswith("sdpa"))
    return {"op": "attention", "stage": stage + 1, "batch": batch, "shifted": shifted, "us": times, "failed": failed, "bytes": size * 4,
            "error_dense": error_dense, "error_table": error_table, "error_torch": error_torch, "best_sdpa_us": best,
            "speedup_dense": best / times["ours dense"], "speedup_table": best / times["ours table"], "bandwidth_of_copy": times["copy"] / times["ours dense"],
            "tb_s": size * 4 / times["ours dense"] * 1e-6}


def bench_global(lib, batch, tokens, heads, dim, rounds, tactics):
    size = batch * tokens * heads * dim * 2
    sets, order = rotation(size * 4)
    qkv = [rand(batch, tokens, 3, heads, dim) for _ in range(sets)]
    out = [torch.empty(batch, tokens, heads * dim, device="cuda", dtype=torch.float16) for _ in range(sets)]
    views = [t.permute(2, 0, 3, 1, 4) for t in qkv]
    functions = {"ours": lambda i: lib.attention(qkv[i], out[i], heads, dim), "sdpa": lambda i: F.scaled_dot_product_attention(*views[i])}
    for tactic in tactics:
        functions[f"ours, tactic {tactic}"] = lambda i, t=tactic: lib.attention(qkv[i], out[i], heads, dim, tactic=t)
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "attention", "shape": [batch, tokens, heads, dim], "us": times, "failed": failed, "speedup": times["sdpa"] / times["ours"]}


def bench_move(lib, batch, side, channels, reverse, residual, rounds):
    size = batch * side * side * channels * 2
    sets, order = rotation(size * (3 if residual else 2))
    xs = [rand(batch, side * side, channels) for _ in range(sets)]
    ys = [torch.empty_like(xs[0]) for _ in range(sets)]
    rs = [rand(batch, side * side, channels) for _ in range(sets)] if residual else [None] * sets
    grid = [side, side, 7, 7, 3, 3, 0]
    times, failed = time_variants({"ours": [lambda i=i: lib.move(xs[i], rs[i], ys[i], batch, channels, reverse, grid) for i in order],
                                   "copy": [lambda i=i: ys[i].copy_(xs[i]) for i in order]}, rounds)
    return {"op": "window", "shape": [batch, side, side, channels], "reverse": reverse, "residual": residual, "us": times, "failed": failed,
            "tb_s": size * (3 if residual else 2) / times["ours"] * 1e-6, "bandwidth_of_copy": times["copy"] / times["ours"] * (1.5 if residual else 1)}


def chain_tactic(first, second):
    """first, second: (tile, log2 of the cluster), see plugins/kernels/mlp_chain.h."""
    pack = lambda tile, cluster: tile | cluster << 4
    return 1 << 30 | pack(*second) << 8 | pack(*first)


def tactic_name(tactic):
    if tactic >> 30 & 1:
        product = lambda i: f"({i & 15}, {1 << (i >> 4 & 15)})"
        return f"chain {product(tactic) if tactic & 255 else 'heads'}, {product(tactic >> 8)}"
    if tactic >> 28 == 1:
        return f"wide {tactic & 15}, {tactic >> 4 & 15}"
    if tactic >> 27 == 1:
        channels, warpgroups = ((64, 2), (96, 2), (64, 3), (96, 3), (128, 3), (192, 3), (64, "3 sharing"), (96, "3 sharing"))[(tactic & 15) - 1]
        return f"wide kernel, up to {channels} channels, {warpgroups} warpgroups"
    if tactic >> 29 & 1:
        return f"cluster of {32 << (tactic & 1)} rows, slice {(tactic >> 4 & 15) * 32}" + (", fp16 sums" if tactic & 2 else "") + (", counted" if tactic & 4 else "")
    return f"tile {tactic & 15} cluster {1 << (tactic >> 4 & 15)} groups {tactic >> 8}"


WIDE_TILES = 3


def bench_wide_gemm(lib, rows, k, n, end, rounds):
    """One wide product with its end ("gelu", "added" or "bias"), against the library's with a bias alone."""
    sets, order = rotation(2 * (rows * (k + 2 * n) + k * n))
    a, added, out = ([rand(rows, c) for _ in range(sets)] for c in (k, n, n))
    b, bias = [rand(k, n) * k**-0.5 for _ in range(sets)], rand(n)
    bt = [w.t().contiguous() for w in b]

    def ours(i, tile):
        lib.call("trt_opt_wide_gemm", ctypes.c_int64(rows), k, n, pointer(a[i]), pointer(b[i]), pointer(bias), pointer(added[i] if end == "added" else None), pointer(out[i]), int(end == "gelu"), tile)

    errors = {}
    reference = a[0].float() @ b[0].float() + bias.float()
    reference = F.gelu(reference) if end == "gelu" else reference + added[0].float() if end == "added" else reference
    for tile in range(WIDE_TILES):
        out[0].fill_(float("nan"))
        ours(0, tile)
        errors[tile + 1] = ((out[0].float() - reference).norm() / reference.norm()).item()
    variants = {"torch": [lambda i=i: F.linear(a[i], bt[i], bias) for i in order]}
    for tile in range(WIDE_TILES):
        variants[f"wide {tile + 1}"] = [lambda i=i, tile=tile: ours(i, tile) for i in order]
    times, failed = time_variants(variants, rounds)
    times["ours"] = min(t for name, t in times.items() if name != "torch")
    return {"op": "wide_gemm", "shape": [rows, k, n], "end": end, "errors": errors, "us": times, "failed": failed}


def bench_mlp(lib, rows, channels, hidden, rounds, tactics, norm=True):
    """Weights rotate too: at batch 1 a network's weights are more than the cache holds."""
    sets, order = rotation(2 * (2 * rows * channels + 2 * channels * hidden))
    xs, ys = [rand(rows, channels) for _ in range(sets)], [torch.empty(rows, channels, device="cuda", dtype=torch.float16) for _ in range(sets)]
    rs = [rand(rows, channels) for _ in range(sets)]
    ps = [{"w1": rand(channels, hidden) * channels**-0.5, "b1": rand(hidden), "w2": rand(hidden, channels) * hidden**-0.5, "b2": rand(channels)} for _ in range(sets)]
    for p in ps:
        if norm:
            p["scale"], p["bias"] = rand(channels), rand(channels)
        p["w1t"], p["w2t"] = p["w1"].t().contiguous(), p["w2"].t().contiguous()
    normal = torch.empty_like(xs[0])
    workspace = torch.empty(64 << 20, device="cuda", dtype=torch.uint8)

    def mlp(i, y):
        p = ps[i]
        return xs[i] + F.linear(F.gelu(F.linear(y, p["w1t"], p["b1"])), p["w2t"], p["b2"])

    def normalized(x, p):
        return F.layer_norm(x, (channels,), p["scale"], p["bias"], 1e-5) if norm else x

    def torch_block(i):
        return mlp(i, normalized(xs[i], ps[i]))

    def pieces(i):
        lib.layer_norm(xs[i], None, ps[i]["scale"], ps[i]["bias"], normal, None, channels)
        return mlp(i, normal)

    def ours(i, tactic=0):
        lib.mlp_block(xs[i], None, ps[i], ys[i], workspace, tactic)

    def after_add(i):
        torch.add(rs[i], 1.0, out=xs[i])
        ours(i)

    ours(0)
    p = {k: v.float() for k, v in ps[0].items()}
    x = xs[0].float()
    reference = x + F.linear(F.gelu(F.linear(normalized(x, p), p["w1t"], p["b1"])), p["w2t"], p["b2"])
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    functions = {"ours": ours, "torch": torch_block, "an add and ours": after_add, "an add": lambda i: torch.add(rs[i], 1.0, out=xs[i])}
    if norm:
        functions["our norm, torch's rest"] = pieces
    variants = {k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}
    variants["ours, weights in the cache"] = [lambda: ours(0) for _ in order]
    variants["torch, weights in the cache"] = [lambda: torch_block(0) for _ in order]
    best = lib.mlp_block_tactics(rows, channels, hidden, norm)
    valid = lambda tactics: [t for t in dict.fromkeys(tactics) if lib.lib.trt_opt_mlp_block_tactic_valid(HALF, ctypes.c_int64(rows), channels, hidden, int(norm), t)]

    # As in a network: a block's input is what the block before it wrote.
    stream = [torch.empty_like(xs[0]) for _ in range(2)]
    stream[0].copy_(xs[0])

    def chained(i, tactic=0):
        lib.mlp_block(stream[i % 2], None, ps[i], stream[1 - i % 2], workspace, tactic)

    def chained_pieces(i):
        x = stream[i % 2]
        lib.layer_norm(x, None, ps[i]["scale"], ps[i]["bias"], normal, None, channels)
        return x + F.linear(F.gelu(F.linear(normal, ps[i]["w1t"], ps[i]["b1"])), ps[i]["w2t"], ps[i]["b2"])

    def time_tactics(tactics):
        times, failed = time_variants({t: [lambda i=i, t=t: chained(i, t) for i in order] for t in valid(tactics)}, 4)
        assert not failed, failed
        return times

    variants["chained"] = [lambda i=i: chained(i) for i in order]
    if norm:
        variants["our norm, torch's rest, chained"] = [lambda i=i: chained_pieces(i) for i in order]
    scanned = {}
    usual = next((t for t in best if t >> 30 & 1), None)
    if tactics:
        scanned.update(time_tactics(best))
    if tactics and usual:
        # First products with one second, then second products with the best first.
        products = [(tile, cluster) for tile in range(1, 13) for cluster in range(4)]
        usual_second = (usual >> 8 & 15, usual >> 12 & 15)
        firsts = time_tactics([chain_tactic(product, usual_second) for product in products])
        first = min(firsts, key=firsts.get)
        more = time_tactics([chain_tactic((first & 15, first >> 4 & 15), product) for product in products])
        scanned.update(firsts), scanned.update(more)
    others = [t for t in best if t >> 29 == 1 or t >> 28 == 1 or t >> 27 == 1] + [t for t in best if t < 1 << 27][:1]
    for tactic in dict.fromkeys(best[:1] + others + ([usual] if usual else []) + sorted(scanned, key=scanned.get)[:3]):
        variants["chained, " + tactic_name(tactic)] = [lambda i=i, t=tactic: chained(i, t) for i in order]
    times, failed = time_variants(variants, rounds)
    return {"op": "mlp_block", "shape": [rows, channels, hidden], "norm": norm, "tactic": tactic_name(best[0]), "error": error, "us": times, "failed": failed, "scanned": {tactic_name(t): v for t, v in scanned.items()},
            "bytes": 2 * (2 * rows * channels + 2 * channels * hidden), "flop": 4 * rows * channels * hidden, "speedup_over_torch": times["torch"] / times["ours"],
            "tflop_s": 4e-6 * rows * channels * hidden / times["ours"]}


def bench_bridge(lib, images, tokens, covered, width, channels, rounds):
    """Against the kernels that it replaces, with the norm behind it that takes the add; weights rotate as in bench_mlp."""
    moved = 2 * (2 * images * tokens * channels + images * covered * width + width * channels)
    sets, order = rotation(moved)
    xs, ys = [rand(images, tokens, channels) for _ in range(sets)], [torch.empty(images, tokens, channels, device="cuda", dtype=torch.float16) for _ in range(sets)]
    words = [rand(images, covered, width) for _ in range(sets)]
    ps = [{"scale1": rand(width), "bias1": rand(width), "w": rand(width, channels) * width**-0.5, "b": rand(channels), "scale2": rand(channels), "bias2": rand(channels)} for _ in range(sets)]
    for p in ps:
        p["wt"] = p["w"].t().contiguous()
    normal, change, total, after = torch.empty_like(words[0]), rand(images, covered, channels), torch.empty_like(xs[0]), torch.empty_like(xs[0])
    workspace = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)

    def ours(i):
        lib.tnt_bridge(xs[i], words[i], ps[i], ys[i], workspace)

    def ours_and_norm(i):
        ours(i)
        lib.layer_norm(ys[i], None, ps[i]["scale2"], ps[i]["bias2"], after, None, channels)

    def pieces_and_norm(i):
        p = ps[i]
        lib.layer_norm(words[i], None, p["scale1"], p["bias1"], normal, None, width)
        lib.layer_norm(F.linear(normal, p["wt"], p["b"]), None, p["scale2"], p["bias2"], change, None, channels)
        lib.layer_norm(xs[i], None, p["scale2"], p["bias2"], after, total, channels, part=change, tokens=tokens)

    ours(0)
    p = {k: v.float() for k, v in ps[0].items()}
    product = F.linear(F.layer_norm(words[0].float(), (width,), p["scale1"], p["bias1"], 1e-5), p["wt"], p["b"])
    reference = xs[0].float()
    reference[:, tokens - covered:] += F.layer_norm(product, (channels,), p["scale2"], p["bias2"], 1e-5)
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    functions = {"ours": ours, "ours and the norm after it": ours_and_norm, "first-family norms, torch's product": pieces_and_norm}
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "tnt_bridge", "shape": [images, tokens, covered, width, channels], "error": error, "us": times, "failed": failed, "bytes": moved, "flop": 2 * images * covered * width * channels}


def bench_tnt_words(lib, images, covered, words, channels, heads, layers, out_channels, rounds):
    """A bridge behind each layer, against the ops that it replaces: a block and a bridge a layer. Words and weights rotate."""
    hidden, width, tokens = 4 * channels, words * channels, covered + 1
    patches = images * covered
    moved = 2 * (patches * width + layers * (12 * channels * channels + width * out_channels + images * tokens * out_channels))
    sets, order = rotation(moved)
    xs = [rand(patches, words, channels) for _ in range(sets)]
    ps, bridges = [], []
    for _ in range(sets):
        w = lambda *shape: rand(layers, *shape) * shape[0] ** -0.5
        ps.append({"w_qkv": w(channels, 3 * channels), "w_proj": w(channels, channels), "w1": w(channels, hidden), "w2": w(hidden, channels), "b_qkv": rand(layers, 3 * channels), "b_proj": rand(layers, channels),
                   "b1": rand(layers, hidden), "b2": rand(layers, channels), **{f"{n}{i}": rand(layers, channels) for n in ("scale", "bias") for i in (1, 2)}})
        bridges.append({"scale1": rand(layers, width), "bias1": rand(layers, width), "w": w(width, out_channels), "b": rand(layers, out_channels), "scale2": rand(layers, out_channels), "bias2": rand(layers, out_channels)})
    outs = [[torch.empty(images, tokens, out_channels, device="cuda", dtype=torch.float16) for _ in range(layers)] for _ in range(sets)]
    alone, stream, zeros = torch.empty_like(outs[0][0]), [torch.empty_like(xs[0]) for _ in range(layers + 1)], torch.zeros_like(outs[0][0])
    workspace = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    part = lambda p, j: {k: v[j] for k, v in p.items()}
    after = list(range(1, layers + 1))

    def ours(i, way=0):
        lib.tnt_words(xs[i], ps[i], bridges[i], after, tokens, outs[i], None, workspace, heads, way)

    def chain_only(i):
        lib.tnt_words(xs[i], ps[i], bridges[i], [], tokens, outs[i], stream[-1], workspace, heads)

    def separate(i, to=None):
        for j in range(layers):
            x = xs[i] if j == 0 else stream[j]
            lib.tnt_inner_block(x, part(ps[i], j), stream[j + 1], workspace, heads)
            lib.tnt_bridge(zeros, stream[j + 1].view(images, covered, width), part(bridges[i], j), to[j] if to else alone, workspace)

    ours(0)
    expected = [torch.empty_like(o) for o in outs[0]]
    separate(0, expected)
    error = max(((o.double() - e.double()).norm() / e.double().norm()).item() for o, e in zip(outs[0], expected))
    ways = {1: "tiles", 2: "64 columns", 3: "128 columns"}
    functions = {"ours": ours, "ours without bridges": chain_only, "block by block, bridge by bridge": separate, **{f"ours, bridges in {name}": lambda i, way=way: ours(i, way) for way, name in ways.items()}}
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "tnt_words", "shape": [images, covered, words, channels, heads, layers, out_channels], "error": error, "us": times, "failed": failed, "bytes": moved,
            "flop": layers * patches * words * (24 * channels * channels + 4 * words * channels + 2 * channels * out_channels)}


def bench_block_chain(lib, name, images, tokens, channels, heads, dim, pairs, window, added, rounds, every, before=0):
    """A chain against the ops that it replaces, block after block, by turns; if something is `added` between pairs, against one without, too, and behind a patch merge of `before` channels, if there are any, or with it. Weights rotate."""
    shape = (images, tokens, channels, heads, dim, 4 * channels, pairs, window is not None, window, 0x2AAAAAAA if window and window[4] else 0)
    weights, vectors, bytes_ = lib.block_chain_sizes(*shape)
    sets, order = rotation(2 * (weights + vectors))
    ws, vs = [[rand(n) * scale for _ in range(sets)] for n, scale in ((weights, channels**-0.5), (vectors, 0.1))]
    x, y = [rand(images, tokens, channels) for _ in range(2)]
    workspace, slot = torch.empty(max(bytes_, 256 << 20), device="cuda", dtype=torch.uint8), lib.lib.trt_opt_chain_slot()
    stream = [torch.empty_like(x) for _ in range(2)]
    betweens = [rand(pairs - 1, images, tokens, channels) for _ in range(sets)] if added else [None] * sets

    def attn(i, j):
        c = channels
        p = parts[(i * pairs + j) % len(parts)]
        grid = window and [*window[:4], *((window[4:6]) if j % 2 else (0, 0)), 0]
        lib.attn_block(stream[0], p[0], stream[1], workspace, heads, grid, residual=betweens[i][j - 1] if added and j else None)
        lib.mlp_block(stream[1].view(-1, c), None, p[1], stream[0].view(-1, c), workspace)

    def block_by_block(i):
        for j in range(pairs):
            attn(i, j)

    parts = []
    for _ in range(sets * pairs):
        c = channels
        a = {"scale": rand(c), "bias": rand(c), "table": rand((2 * window[2] - 1) * (2 * window[3] - 1), heads) if window else None, **linears(("qkv", (c, 3 * heads * dim)), ("proj", (heads * dim, c)))}
        m = linears(("1", (c, 4 * c)), ("2", (4 * c, c)))
        parts.append((a, {"scale": rand(c), "bias": rand(c), "w1": m["w_1"], "b1": m["b_1"], "w2": m["w_2"], "b2": m["b_2"]}))
    variants = {"block by block": [lambda i=i: block_by_block(i) for i in order]}
    tactics = lib.block_chain_tactics(*shape)
    # Where a kernel of a pair is the best guess, that and the best one as one kernel.
    for tactic in tactics if every else tactics[: 2 if tactics[:1] == [CHAIN_PAIRS] else 1]:
        variants[f"chain {tactic_text(tactic)}"] = [lambda i=i, t=tactic: lib.block_chain(stream[0], ws[i], vs[i], betweens[i], stream[1], workspace, t, slot, *shape) for i in order]
        if added:
            variants[f"chain {tactic_text(tactic)}, nothing added"] = [lambda i=i, t=tactic: lib.block_chain(stream[0], ws[i], vs[i], None, stream[1], workspace, t, slot, *shape) for i in order]
    if before:
        side, merged, best = 2 * window[0], (*shape, before), tactics[0]
        more = [size - of_chain for size, of_chain in zip(lib.block_chain_sizes(*merged), (weights, vectors))]
        merged_ws, merged_vs = [torch.cat((rand(more[0]) * (4 * before)**-0.5, w)) for w in ws], [torch.cat((rand(more[1]) * 0.1, v)) for v in vs]
        fine, merge_workspace = rand(images, side * side, before), torch.empty(64 << 20, device="cuda", dtype=torch.uint8)
        ps = [{"scale": rand(4 * before), "bias": rand(4 * before), "w": rand(4 * before, channels) * (4 * before)**-0.5, "b": rand(channels)} for _ in range(sets)]

        def behind_merge(i, of_merge):
            lib.patch_merge_block(fine, ps[i], stream[0], merge_workspace, side, of_merge)
            lib.block_chain(stream[0], ws[i], vs[i], None, stream[1], workspace, best, slot, *shape)

        for t in lib.patch_merge_block_tactics(images, before, side, channels)[:4 if every else 1]:
            variants[f"patch merge {'as one kernel' if t >> 8 & 1 else 'as two'}, tile {t & 15} cluster {1 << (t >> 4 & 15)}, then the chain"] = [lambda i=i, t=t: behind_merge(i, t) for i in order]
        found = lib.block_chain_tactics(*merged)
        for tactic in found if every else found[:1]:
            variants[f"with patch merge {quads_text(tactic)}, {tactic_text(tactic)}"] = [lambda i=i, t=tactic: lib.block_chain(fine, merged_ws[i], merged_vs[i], None, stream[1], workspace, t, slot, *merged) for i in order]
    stream[0].copy_(x), stream[1].copy_(y)
    times, failed = time_variants(variants, rounds)
    return {"op": "block_chain", "name": name, "shape": shape[:7], "us": times, "failed": failed, "bytes": 2 * (weights + vectors), "flop": pairs * images * tokens * 2 * 12 * channels * channels}


CHAIN_PAIRS = 1 << 16  # the tactic of a chain as a kernel a pair


def quads_text(tactic):
    return f"{(16, 32)[tactic - 1 >> 15 & 7]} in {1 << (tactic - 1 >> 18)}"


def tactic_text(tactic):
    if tactic == CHAIN_PAIRS:
        return "as a kernel a pair"
    t, widths = tactic - 1, (16, 32, 48, 64, 96, 192)
    return f"heads {t & 7}, merge {widths[t >> 3 & 7]}, up {widths[t >> 6 & 7]}, down {widths[t >> 9 & 7]} in {1 << (t >> 12 & 7)}"


class SwinStage:
    """The blocks of a stage of Swin-T at batch 1 as in the network, with weights of their own for `blocks` blocks."""

    def __init__(self, lib, stage, blocks, workspace):
        self.side, self.channels, self.heads = 56 >> stage, 96 << stage, 3 << stage
        c = self.channels
        self.lib, self.workspace, self.blocks = lib, workspace, blocks
        self.attn = [{"scale": rand(c), "bias": rand(c), "table": rand(169, self.heads), **linears(("qkv", (c, 3 * c)), ("proj", (c, c)))} for _ in range(blocks)]
        self.mlp = []
        for _ in range(blocks):
            p = linears(("1", (c, 4 * c)), ("2", (4 * c, c)))
            self.mlp.append({"scale": rand(c), "bias": rand(c), "w1": p["w_1"], "b1": p["b_1"], "w2": p["w_2"], "b2": p["b_2"]})
        self.x, self.y = rand(1, self.side**2, c), rand(1, self.side**2, c)
        self.forms = lib.attn_block_forms(1, self.side**2, c, self.heads, self.window(0))
        self.tactic = self.mlp_tactic = 0  # of the attention blocks, of the MLP blocks

    def window(self, i):
        shift = 3 * (i % 2) if self.side > 7 else 0
        return [self.side, self.side, 7, 7, shift, shift, 0]

    def attention(self, i, a, b):
        self.lib.attn_block(a, self.attn[i], b, self.workspace, self.heads, self.window(i), self.tactic)

    def perceptron(self, i, a, b):
        self.lib.mlp_block(a[0], None, self.mlp[i], b[0], self.workspace, self.mlp_tactic)

    def mlp_tactics(self):
        """One kernel of clusters in the ways that are worth timing, and the best guess of two products."""
        found = self.lib.mlp_block_tactics(self.side**2, self.channels, 4 * self.channels)
        return [t for t in found if t >> 29 == 1] + [t for t in found if t >> 30 & 1][:1]

    def by_turns(self, i):
        self.attention(i, self.x, self.y)
        self.perceptron(i, self.y, self.x)

    def twice(self, block):
        return lambda i: (block(i, self.x, self.y), block(i, self.y, self.x))

    def in_form(self, name, call):
        """`call` with attention blocks of a form, or of tactic 0 where their sizes do not have it."""
        def run(*args):
            self.tactic = self.forms.get(name, 0)
            call(*args)
            self.tactic = 0
        return run


def bench_stage(lib, stage, rounds):
    """Attention and MLP by turns, and each kind by itself: what it costs that the kernels of one are not those that ran just before."""
    sets, order = rotation(24 * (96 << stage)**2)
    s = SwinStage(lib, stage, sets, torch.empty(256 << 20, device="cuda", dtype=torch.uint8))
    functions = {"attention, then MLP": s.by_turns, "attention twice": s.twice(s.attention), "MLP twice": s.twice(s.perceptron)}
    for name in s.forms:
        functions[f"attention, then MLP, {name}"], functions[f"attention twice, {name}"] = s.in_form(name, s.by_turns), s.in_form(name, s.twice(s.attention))
    for tactic in s.mlp_tactics():
        def run(i, tactic=tactic):
            s.mlp_tactic = tactic
            s.by_turns(i)
            s.mlp_tactic = 0
        functions[f"attention, then MLP in {tactic_name(tactic)}"] = run
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    times["by turns, more than each by itself"] = times["attention, then MLP"] - (times["attention twice"] + times["MLP twice"]) / 2
    return {"op": "stage", "stage": stage + 1, "us": times, "failed": failed}


def bench_pooled_stage(lib, side, pool, channels, heads, rounds):
    """Attention with pooled keys and MLP by turns, as in a stage of PyramidTNT-S at batch 1, with the MLP's tactics."""
    rows, keys, c = side * side, (side // pool) ** 2, channels
    sets, order = rotation(2 * (13 * c * c + heads * rows * keys))
    workspace = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    attn, mlp = [], []
    for _ in range(sets):
        p = linears(("q", (c, c)), ("pool", (c, c)), ("kv", (c, 2 * c)), ("proj", (c, c)), ("1", (c, 4 * c)), ("2", (4 * c, c)))
        names = ("b_q", "b_pool", "b_kv", "b_proj")
        vectors = [rand(c), rand(c), p[names[0]], p[names[1]], rand(c), rand(c), p[names[2]], p[names[3]]]
        attn.append({**p, "vectors": torch.cat(vectors), "position": rand(1, heads, rows, keys)})
        mlp.append({"scale": rand(c), "bias": rand(c), "w1": p["w_1"], "b1": p["b_1"], "w2": p["w_2"], "b2": p["b_2"]})
    x, y = rand(1, rows, c), rand(1, rows, c)

    def by_turns(i, tactic=0):
        lib.pooled_attn_block(x, None, attn[i], y, workspace, side, pool, heads)
        lib.mlp_block(y[0], None, mlp[i], x[0], workspace, tactic)

    def mlp_twice(i, tactic=0):
        lib.mlp_block(x[0], None, mlp[i], y[0], workspace, tactic)
        lib.mlp_block(y[0], None, mlp[i], x[0], workspace, tactic)

    found = lib.mlp_block_tactics(rows, c, 4 * c)
    # A few of each kind.
    kinds = {"rows": [t for t in found if t >> 26 == 1], "clusters": [t for t in found if t >> 29 == 1], "two products": [t for t in found if t >> 30 & 1]}
    functions = {}
    for name, tactics in kinds.items():
        for n, t in enumerate(tactics[:3]):
            functions[f"by turns, MLP {name} {n}"] = lambda i, t=t: by_turns(i, t)
        if tactics:
            functions[f"MLP twice, {name} 0"] = lambda i, t=tactics[0]: mlp_twice(i, t)
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "pooled_stage", "shape": [rows, c, heads, keys], "us": times, "failed": failed}


def bench_network(lib, rounds):
    """The twelve blocks of Swin-T at batch 1 in their order, and each stage's share by itself; without embedding, merges and head."""
    workspace = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    stages = [SwinStage(lib, stage, depth, workspace) for stage, depth in enumerate((2, 2, 6, 2))]

    def run(stages, form=None):
        for s in stages:
            for i in range(s.blocks):
                s.in_form(form, s.by_turns)(i)

    forms = sorted({name for s in stages for name in s.forms})
    variants = {"all": [lambda: run(stages)] * 8}
    variants.update({f"stage {i + 1}": [lambda s=s: run([s])] * 8 for i, s in enumerate(stages)})
    variants.update({f"all, attention in {name}": [lambda name=name: run(stages, name)] * 8 for name in forms})
    times, failed = time_variants(variants, rounds)
    return {"op": "network", "us": times, "failed": failed}


def bench_swin(lib, rounds):
    """All ops of Swin-T at batch 1 in their order, eight inferences a graph, with patch merges in chains and by themselves; and without each op, which says by how much it moves the end. Unlike behind itself, an op's weights, rows
    and machine code have left the caches, or not, as in an engine."""
    inferences = 8
    rows = [rand(1, (56 >> stage)**2, 96 << stage) for stage in range(4)]
    image, embed = torch.randn(1, 3, 224, 224, device="cuda"), {"w": rand(96, 3, 4, 4) * 48**-0.5, "b": rand(96), "scale": rand(96), "bias": rand(96)}
    classes, offsets, result = rand(1000, 768) * 768**-0.5, rand(1000).float(), torch.empty(1, 1000, device="cuda")
    embedded, workspace = torch.empty_like(rows[0]), torch.empty(256 << 20, device="cuda", dtype=torch.uint8)

    def chain(stage, x, before):
        side, channels, pairs = 56 >> stage, 96 << stage, (2, 2, 6, 2)[stage]
        shift = 3 if side > 7 else 0
        shape = (1, side * side, channels, channels // 32, 32, 4 * channels, pairs, True, [side, side, 7, 7, shift, shift, 0], 0x2AAAAAAA if shift else 0, channels // 2 if before else 0)
        weights, vectors, _ = lib.block_chain_sizes(*shape)
        w, v, tactic, slot = rand(weights) * channels**-0.5, rand(vectors) * 0.1, lib.block_chain_tactics(*shape)[0], lib.lib.trt_opt_chain_slot()
        return lambda: lib.block_chain(x, w, v, None, rows[stage], workspace, tactic, slot, *shape)

    def merge(stage, to):
        side, channels = 56 >> stage, 96 << stage
        p = {"scale": rand(2 * channels), "bias": rand(2 * channels), "w": rand(2 * channels, channels) * (2 * channels)**-0.5, "b": rand(channels)}
        return lambda: lib.patch_merge_block(rows[stage - 1], p, to, workspace, 2 * side)

    def network(merged):
        ops = {"embedding": lambda: lib.patch_embed(image, embed, embedded, True), "stage 1": chain(0, embedded, False)}
        for stage in (1, 2, 3):
            between = torch.empty_like(rows[stage])
            if not merged:
                ops[f"merge {stage + 1}"] = merge(stage, between)
            ops[f"stage {stage + 1}"] = chain(stage, rows[stage - 1] if merged else between, merged)
        ops["classifier"] = lambda: lib.classifier(rows[3], None, classes, offsets, result, -1, True)
        return ops

    def run(ops):
        for op in ops:
            op()

    variants = {}
    for name, merged in (("merges in chains", True), ("merges by themselves", False)):
        ops = network(merged)
        run(ops.values())
        variants[name] = [lambda ops=ops: run(ops.values())] * inferences
        variants.update({f"{name}, without {left}": [lambda ops=ops, left=left: run([op for n, op in ops.items() if n != left])] * inferences for left in ops})
    times, failed = time_variants(variants, rounds)
    return {"op": "swin", "us": times, "failed": failed}


def bench_sequence(lib, stage, rounds):
    """Norm into windows, attention, norm out of them with its add: what is launched ahead of the kernel before shows here."""
    side, heads = 56 >> stage, 3 << stage
    windows, channels = (side // 7) ** 2, 32 * heads
    grid = [side, side, 7, 7, 3, 3, 0] if side > 7 else [side, side, 7, 7, 0, 0, 0]
    x, y = [torch.randn(side * side, channels, device="cuda", dtype=torch.float16) for _ in range(2)]
    total = torch.empty_like(x)
    normal, out = [torch.empty(windows * 49, channels, device="cuda", dtype=torch.float16) for _ in range(2)]
    qkv, table, scale, bias = rand(windows, 49, 3, heads, 32), rand(169, heads), rand(channels), rand(channels)

    def ours():
        lib.layer_norm(x, None, scale, bias, normal, None, channels, grid)
        lib.attention(qkv, out.view(windows, 49, channels), heads, 32, 2, table, 1, 2 if side > 7 else 0, -100.0, grid)
        lib.layer_norm(x, out, scale, bias, y, total, channels)

    times, failed = time_variants({"ours": [ours] * 40}, rounds)
    return {"op": "sequence", "stage": stage + 1, "us": times, "failed": failed}


def linears(*shapes):
    """name -> (in, out): weights and biases as the ops take them, and transposed as PyTorch does."""
    p = {}
    for name, (n_in, n_out) in shapes:
        p["w_" + name], p["b_" + name] = rand(n_in, n_out) * n_in**-0.5, rand(n_out)
        p["t_" + name] = p["w_" + name].t().contiguous()
    return p


def compare_blocks(op, shape, xs, ours, torch_block, pieces, bytes_, rounds, order, forms={}):
    """ours(x, i, y), torch_block(x, i), pieces(x, i) -> y: a block by itself, and as in a network, where a block's input is what the block before it wrote.
    `forms`: other ways of ours, by name."""
    ys = [torch.empty_like(x) for x in xs]
    reference = torch_block(xs[0], 0, float)
    error = 0.0
    for form in [ours, *forms.values()]:
        form(xs[0], 0, ys[0])
        error = max(error, ((ys[0].double() - reference).norm() / reference.norm()).item())
    stream = [xs[0].clone(), xs[0].clone()]
    variants = {
        "ours": [lambda i=i: ours(xs[i], i, ys[i]) for i in order],
        "torch": [lambda i=i: torch_block(xs[i], i) for i in order],
        "chained": [lambda i=i: ours(stream[i % 2], i, stream[1 - i % 2]) for i in order],
        "our first family, torch's linears, chained": [lambda i=i: pieces(stream[i % 2], i) for i in order],
    }
    variants.update({f"chained, {name}": [lambda i=i, f=f: f(stream[i % 2], i, stream[1 - i % 2]) for i in order] for name, f in forms.items()})
    times, failed = time_variants(variants, rounds)
    return {"op": op, "shape": shape, "error": error, "us": times, "failed": failed, "bytes": bytes_, "speedup_over_torch": times["torch"] / times["ours"]}


def bench_attn_block(lib, images, side, channels, heads, shift, rounds):
    """side: of the map in tokens, cut into windows of 7 x 7; or, shift < 0, all tokens of an image and one more."""
    tokens = side * side + (shift < 0)
    grid = None if shift < 0 else [side, side, 7, 7, shift, shift, 0]
    dim = channels // heads
    sets, order = rotation(2 * (2 * images * tokens * channels + 4 * channels * channels))
    xs = [rand(images, tokens, channels) for _ in range(sets)]
    ps = [{"scale": rand(channels), "bias": rand(channels), **({"table": rand(169, heads)} if grid else {}), **linears(("qkv", (channels, 3 * channels)), ("proj", (channels, channels)))}
          for _ in range(sets)]
    workspace = torch.empty(512 << 20, device="cuda", dtype=torch.uint8)
    position = torch.arange(49, device="cuda")
    index = ((position[:, None] // 7 - position[None] // 7 + 6) * 13 + position[:, None] % 7 - position[None] % 7 + 6).view(-1)
    region = torch.bucketize(torch.arange(side, device="cuda"), torch.tensor([side - 7, side - shift], device="cuda"), right=True)
    cut = lambda x: x.view(images, side // 7, 7, side // 7, 7, -1).transpose(2, 3).reshape(-1, 49, x.shape[-1])
    mask = None
    if shift > 0:
        regions = (region[:, None] * 3 + region[None]).view(1, side, side).expand(images, -1, -1).reshape(images, -1, 1)
        regions = cut(regions)[..., 0]
        mask = torch.where(regions[:, None] == regions[..., None], 0.0, -100.0).to(torch.float16)[:, None]

    def torch_block(x, i, to=lambda t: t):
        p = {k: to(v) if to is not float else v.double() for k, v in ps[i].items()}
        x = x.double() if to is float else x
        y = F.layer_norm(x, (channels,), p["scale"], p["bias"], 1e-5)
        if grid:
            y = y.view(images, side, side, channels)
            y = cut(torch.roll(y, (-shift, -shift), (1, 2)) if shift else y)
        q, k, v = F.linear(y, p["t_qkv"], p["b_qkv"]).view(y.shape[0], -1, 3, heads, dim).permute(2, 0, 3, 1, 4)
        bias = None
        if grid:
            bias = p["table"][index].view(49, 49, heads).permute(2, 0, 1)[None]
            bias = bias if mask is None else bias + mask.to(bias.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(y.shape)
        y = F.linear(y, p["t_proj"], p["b_proj"])
        if grid:
            y = y.view(images, side // 7, side // 7, 7, 7, channels).transpose(2, 3).reshape(images, side, side, channels)
            y = (torch.roll(y, (shift, shift), (1, 2)) if shift else y).view(x.shape)
        return x + y

    windows = side * side // 49 * images if grid else images
    normal = torch.empty(windows, tokens if not grid else 49, channels, device="cuda", dtype=torch.float16)
    heads_out, back = torch.empty_like(normal), torch.empty_like(xs[0])

    def pieces(x, i):
        p = ps[i]
        lib.layer_norm(x, None, p["scale"], p["bias"], normal, None, channels, window=grid)
        qkv = F.linear(normal, p["t_qkv"], p["b_qkv"])
        lib.attention(qkv, heads_out, heads, dim, 2 if grid else 0, p.get("table"), 1, 2 if shift > 0 else 0, window=grid)
        y = F.linear(heads_out, p["t_proj"], p["b_proj"])
        if not grid:
            return x + y
        lib.move(y, x, back, images, channels, True, grid)
        return back

    def ours(tactic):
        return lambda x, i, y: lib.attn_block(x, ps[i], y, workspace, heads, grid, tactic)

    forms = {name: ours(tactic) for name, tactic in lib.attn_block_forms(images, tokens, channels, heads, grid).items()}
    return compare_blocks("attn_block", [images, tokens, channels, heads, shift], xs, ours(0), torch_block, pieces,
                          2 * (2 * images * tokens * channels + 4 * channels * channels), rounds, order, forms)


def bench_pooled_attn_block(lib, images, side, pool, channels, heads, rounds):
    """Against our norms and attention with PyTorch's products and means, and PyTorch's alone; weights rotate as in bench_mlp."""
    tokens, keys, dim = side * side, (side // pool) ** 2, channels // heads
    bytes_ = 2 * (2 * images * tokens * channels + 5 * channels * channels + heads * tokens * keys)
    sets, order = rotation(bytes_)
    xs = [rand(images, tokens, channels) for _ in range(sets)]
    names = ("scale", "bias", "b_q", "b_pool", "pool_scale", "pool_bias", "b_kv", "b_proj")
    ps = []
    for _ in range(sets):
        p = linears(("q", (channels, channels)), ("pool", (channels, channels)), ("kv", (channels, 2 * channels)), ("proj", (channels, channels)))
        p.update({n: rand(channels) for n in ("scale", "bias", "pool_scale", "pool_bias")}, position=rand(1, heads, tokens, keys))
        p["vectors"] = torch.cat([p[n] for n in names])
        ps.append(p)
    workspace = torch.empty(512 << 20, device="cuda", dtype=torch.uint8)

    def means(y):
        return y.view(images, side // pool, pool, side // pool, pool, channels).mean((2, 4)).view(images, keys, channels)

    def torch_block(x, i, to=lambda t: t):
        p = {k: to(v) if to is not float else v.double() for k, v in ps[i].items()}
        x = x.double() if to is float else x
        y = F.layer_norm(x, (channels,), p["scale"], p["bias"], 1e-5)
        m = F.layer_norm(F.linear(means(y), p["t_pool"], p["b_pool"]), (channels,), p["pool_scale"], p["pool_bias"], 1e-5)
        q = F.linear(y, p["t_q"], p["b_q"]).view(images, tokens, heads, dim).transpose(1, 2)
        k, v = F.linear(m, p["t_kv"], p["b_kv"]).view(images, keys, 2, heads, dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=p["position"]).transpose(1, 2).reshape(x.shape)
        return x + F.linear(y, p["t_proj"], p["b_proj"])

    normal, small = torch.empty_like(xs[0]), torch.empty(images, keys, channels, device="cuda", dtype=torch.float16)

    def pieces(x, i):
        p = ps[i]
        lib.layer_norm(x, None, p["scale"], p["bias"], normal, None, channels)
        q = F.linear(normal, p["t_q"], p["b_q"]).view(images, tokens, heads, dim).transpose(1, 2)
        lib.layer_norm(F.linear(means(normal), p["t_pool"], p["b_pool"]), None, p["pool_scale"], p["pool_bias"], small, None, channels)
        k, v = F.linear(small, p["t_kv"], p["b_kv"]).view(images, keys, 2, heads, dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=p["position"]).transpose(1, 2).reshape(x.shape)
        return x + F.linear(y, p["t_proj"], p["b_proj"])

    return compare_blocks("pooled_attn_block", [images, side, pool, channels, heads], xs, lambda x, i, y: lib.pooled_attn_block(x, None, ps[i], y, workspace, side, pool, heads), torch_block, pieces, bytes_, rounds, order)


def bench_tnt_inner(lib, patches, tokens, channels, heads, rounds):
    hidden, dim = 4 * channels, channels // heads
    sets, order = rotation(2 * (2 * patches * tokens * channels + 12 * channels * channels))
    xs = [rand(patches, tokens, channels) for _ in range(sets)]
    ps = []
    for _ in range(sets):
        p = linears(("qkv", (channels, 3 * channels)), ("proj", (channels, channels)), ("1", (channels, hidden)), ("2", (hidden, channels)))
        p.update({"w1": p["w_1"], "b1": p["b_1"], "w2": p["w_2"], "b2": p["b_2"], **{f"{n}{i}": rand(channels) for n in ("scale", "bias") for i in (1, 2)}})
        ps.append(p)
    workspace = torch.empty(512 << 20, device="cuda", dtype=torch.uint8)

    def torch_block(x, i, to=None):
        p = {k: v.double() for k, v in ps[i].items()} if to is float else ps[i]
        x = x.double() if to is float else x
        q, k, v = F.linear(F.layer_norm(x, (channels,), p["scale1"], p["bias1"], 1e-5), p["t_qkv"], p["b_qkv"]).view(patches, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4)
        x = x + F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape), p["t_proj"], p["b_proj"])
        return x + F.linear(F.gelu(F.linear(F.layer_norm(x, (channels,), p["scale2"], p["bias2"], 1e-5), p["t_1"], p["b1"])), p["t_2"], p["b2"])

    normal, heads_out, total = (torch.empty_like(xs[0]) for _ in range(3))

    def pieces(x, i):
        p = ps[i]
        lib.layer_norm(x, None, p["scale1"], p["bias1"], normal, None, channels)
        lib.attention(F.linear(normal, p["t_qkv"], p["b_qkv"]), heads_out, heads, dim)
        lib.layer_norm(x, F.linear(heads_out, p["t_proj"], p["b_proj"]), p["scale2"], p["bias2"], normal, total, channels)
        return total + F.linear(F.gelu(F.linear(normal, p["t_1"], p["b1"])), p["t_2"], p["b2"])

    return compare_blocks("tnt_inner_block", [patches, tokens, channels, heads], xs, lambda x, i, y: lib.tnt_inner_block(x, ps[i], y, workspace, heads), torch_block, pieces,
                          2 * (2 * patches * tokens * channels + 12 * channels * channels), rounds, order)


def bench_stack(lib, images, side, columns, strides, words, rounds, tactics):
    """PyramidTNT's stem of a float image against torch's convolutions, cut into words and adds, and against single convolutions. Inputs and weights rotate."""
    shape = (columns, strides, 0, [words, 4, 4])
    grid, maps = side, [side]
    for stride in strides:
        maps.append(maps[-1] // stride)
    grid = maps[-1]
    depths = [3, *columns[:-1], columns[0]]
    outs, steps = [*columns, words], [*strides, 1]
    flop = sum(2 * 9 * c * d * s * s for c, d, s in zip(depths, outs, [*maps[1:], maps[1]])) * images
    size = images * (4 * 3 * side * side + 2 * grid * grid * columns[-1] + 2 * maps[1] ** 2 * words)
    sets, order = rotation(size + 2 * sum(9 * c * d for c, d in zip(depths, outs)))
    floats = [torch.randn(images, 3, side, side, device="cuda") for _ in range(sets)]
    ps = [[(rand(d, c, 3, 3) * (4.5 * c) ** -0.5, rand(d) * 0.5) for c, d in zip(depths, outs)] for _ in range(sets)]
    packed = [lib.conv_stack_weights(floats[0], p, *shape) for p in ps]
    offsets, kinds = [rand(grid * grid, columns[-1]) for _ in range(sets)], [rand(16, words) for _ in range(sets)]
    ys, word = [torch.empty(images, grid * grid, columns[-1], device="cuda", dtype=torch.float16) for _ in range(sets)], [torch.empty(images * (maps[1] // 4) ** 2, 16, words, device="cuda", dtype=torch.float16) for _ in range(sets)]

    def ours(i, tactic=0):
        lib.conv_stack(floats[i], packed[i], offsets[i], kinds[i], ys[i], word[i], shape, tactic)

    def convolved(x, p, channels_last):
        x, common = (x.contiguous(memory_format=torch.channels_last) if channels_last else x), None
        for j in range(len(columns)):
            x = F.relu(F.conv2d(x, *p[j], stride=steps[j], padding=1))
            common = x if j == 0 else common
        return x, F.relu(F.conv2d(common, *p[-1], padding=1))

    def torch_of(x, i, p, channels_last=True):
        tokens, cut = convolved(x, p, channels_last)
        patches = maps[1] // 4
        cut = cut.reshape(images, words, patches, 4, patches, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, words)
        return tokens.flatten(2).transpose(1, 2) + offsets[i], cut + kinds[i]

    ours(0)
    reference = torch_of(floats[0].half().float(), 0, [(w.float(), b.float()) for w, b in ps[0]], False)
    error = max(((a.float() - b).norm() / b.norm()).item() for a, b in zip((ys[0], word[0]), reference))
    layouts = [[(w.contiguous(memory_format=torch.channels_last), b) for w, b in p] for p in ps]
    functions = {"ours": ours, "torch": lambda i: torch_of(floats[i].half(), i, layouts[i]), "torch's convolutions alone": lambda i: convolved(floats[i].half(), layouts[i], True)}
    for t in (1, 2, 4) if tactics else ():
        functions[f"clusters of {t}"] = lambda i, t=t: ours(i, t)
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "conv_stack", "shape": [images, side, columns, strides, words], "error": error, "us": times, "failed": failed, "bytes": size, "flop": flop, "speedup_over_torch": times["torch"] / times["ours"]}


def bench_pixels(lib, images, side, grid, columns, within, rounds, kernel=7, stride=4, pad=3):
    """TNT's words of a float image, and of a half one, against torch's patches, convolution and add. Inputs and weights rotate."""
    words, patch = side // grid // stride, side // grid
    sets, order = rotation(images * (2 * 3 * side * side + 2 * (side // stride) ** 2 * columns))
    xs, ys = [rand(images, 3, side, side) for _ in range(sets)], [torch.empty(images * grid * grid, words * words, columns, device="cuda", dtype=torch.float16) for _ in range(sets)]
    floats = [x.float() for x in xs]
    ps = [{"w": rand(columns, 3, kernel, kernel) * (3 * kernel * kernel) ** -0.5, "b": rand(columns), "position": rand(1, columns, words, words)} for _ in range(sets)]
    for p in ps:
        p["packed"] = F.pad(p["w"], (0, 8 - kernel)).contiguous()
        p["offset"] = (p["position"].flatten(2).transpose(1, 2)[0].float() + p["b"].float()).half().contiguous()

    def torch_of(x, p):
        if within:
            x = x.reshape(images, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, patch, patch)
        y = F.conv2d(x, p["w"], p["b"], stride=stride, padding=pad)
        if not within:
            y = y.reshape(images, columns, grid, words, grid, words).permute(0, 2, 4, 1, 3, 5).reshape(-1, columns, words, words)
        return (y + p["position"]).flatten(2).transpose(1, 2).contiguous()

    def ours(x, i):
        lib.pixel_embed(x, ps[i], ys[i], kernel, stride, pad, grid, words, within)

    ours(floats[0], 0)
    reference = torch_of(xs[0].float(), {k: v.float() for k, v in ps[0].items()})
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    functions = {"ours of float": lambda i: ours(floats[i], i), "ours of half": lambda i: ours(xs[i], i), "torch of float": lambda i: torch_of(floats[i].half(), ps[i]), "torch of half": lambda i: torch_of(xs[i], ps[i])}
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    places = images * (side // stride) ** 2
    return {"op": "pixel_embed", "shape": [images, side, grid, words, columns], "within": within, "error": error, "us": times, "failed": failed, "bytes": images * 4 * 3 * side * side + 2 * places * columns,
            "flop": 2 * places * columns * 3 * kernel * kernel}


def bench_embed(lib, images, channels, side, patch, columns, norm, rounds):
    """From a float image, as a network has it, from a half one, and where there are channels enough from tokens, against torch's convolution
    (channels last, its best form) and our norm. Inputs and weights rotate."""
    tokens = (side // patch) ** 2
    sets, order = rotation(images * (2 * channels * side * side + 2 * tokens * columns) + 2 * columns * channels * patch * patch)
    xs, ys = [rand(images, channels, side, side) for _ in range(sets)], [torch.empty(images, tokens, columns, device="cuda", dtype=torch.float16) for _ in range(sets)]
    floats = [x.float() for x in xs]
    lasts = [x.to(memory_format=torch.channels_last) for x in xs]
    ps = [{"w": rand(columns, channels, patch, patch) * (channels * patch * patch) ** -0.5, "b": rand(columns), "scale": rand(columns), "bias": rand(columns)} for _ in range(sets)]
    for p in ps:
        p["last"] = p["w"].to(memory_format=torch.channels_last)
        p["w_tokens"] = p["w"].permute(0, 2, 3, 1).contiguous()
    tokens_of = [x.flatten(2).transpose(1, 2).contiguous() for x in xs] if channels % 8 == 0 else None

    def torch_of(x, i):
        # With the channels last, tokens are but another view.
        y = F.conv2d(x, ps[i]["last"], ps[i]["b"], stride=patch).permute(0, 2, 3, 1).reshape(images, tokens, columns)
        if norm:
            lib.layer_norm(y, None, ps[i]["scale"], ps[i]["bias"], ys[i], None, columns)

    lib.patch_embed(floats[0], ps[0], ys[0], norm)
    p = {k: v.float() for k, v in ps[0].items()}
    reference = F.conv2d(xs[0].float(), p["w"], p["b"], stride=patch).flatten(2).transpose(1, 2)
    if norm:
        reference = F.layer_norm(reference, (columns,), p["scale"], p["bias"], 1e-5)
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    functions = {"ours of float": lambda i: lib.patch_embed(floats[i], ps[i], ys[i], norm), "ours of half": lambda i: lib.patch_embed(xs[i], ps[i], ys[i], norm),
                 "torch of float": lambda i: torch_of(floats[i].to(torch.float16, memory_format=torch.channels_last), i), "torch of half channels last": lambda i: torch_of(lasts[i], i)}
    if tokens_of:
        lib.patch_embed(tokens_of[0], ps[0], ys[0], norm, (side, side))
        error = max(error, ((ys[0].float() - reference).norm() / reference.norm()).item())
        functions = {"ours of tokens": lambda i: lib.patch_embed(tokens_of[i], ps[i], ys[i], norm, (side, side)), **functions}
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "patch_embed", "shape": [images, channels, side, patch, columns], "norm": norm, "error": error, "us": times, "failed": failed,
            "bytes": images * (4 * channels * side * side + 2 * tokens * columns) + 2 * columns * channels * patch * patch, "flop": 2 * images * tokens * columns * channels * patch * patch}


def bench_merge(lib, batch, side, channels, rounds):
    size = batch * side * side * channels * 2
    sets, order = rotation(size * 2)
    xs = [rand(batch, side * side, channels) for _ in range(sets)]
    ys = [torch.empty_like(xs[0]) for _ in range(sets)]
    scale, bias = rand(4 * channels), rand(4 * channels)
    times, failed = time_variants({"ours": [lambda i=i: lib.patch_merge(xs[i], scale, bias, ys[i], batch, channels, side, side) for i in order],
                                   "copy": [lambda i=i: ys[i].copy_(xs[i]) for i in order]}, rounds)
    return {"op": "patch_merge", "shape": [batch, side, side, channels], "us": times, "failed": failed, "bandwidth_of_copy": times["copy"] / times["ours"],
            "tb_s": size * 2 / times["ours"] * 1e-6}


def bench_merge_block(lib, batch, side, channels, rounds, tactics):
    """Against the merge and PyTorch's product; weights rotate as in bench_mlp. Behind an MLP block, as in Swin, the start may be hidden."""
    rows, width, columns = batch * side * side // 4, 4 * channels, 2 * channels
    moved = 2 * (batch * side * side * channels + width * columns + rows * columns)
    sets, order = rotation(moved)
    xs = [rand(batch, side * side, channels) for _ in range(sets)]
    ys = [torch.empty(batch, side * side // 4, columns, device="cuda", dtype=torch.float16) for _ in range(sets)]
    ps = [{"scale": rand(width), "bias": rand(width), "w": rand(width, columns) * width**-0.5, "b": rand(columns)} for _ in range(sets)]
    for p in ps:
        p["wt"] = p["w"].t().contiguous()
    mlp = {"scale": rand(channels), "bias": rand(channels), "w1": rand(channels, width) * channels**-0.5, "b1": rand(width), "w2": rand(width, channels) * width**-0.5, "b2": rand(channels)}
    source, normal = rand(batch * side * side, channels), torch.empty(batch, side * side // 4, width, device="cuda", dtype=torch.float16)
    workspace, other = (torch.empty(64 << 20, device="cuda", dtype=torch.uint8) for _ in range(2))

    def ours(i, tactic=0):
        lib.patch_merge_block(xs[i], ps[i], ys[i], workspace, side, tactic)

    def pieces(i):
        p = ps[i]
        lib.patch_merge(xs[i], p["scale"], p["bias"], normal, batch, channels, side, side)
        return F.linear(normal, p["wt"], p["b"])

    def block(i):
        lib.mlp_block(source, None, mlp, xs[i].view(-1, channels), other)

    ours(0)
    p = {k: v.float() for k, v in ps[0].items()}
    grid = xs[0].float().view(batch, side, side, channels)
    quads = torch.cat([grid[:, dy::2, dx::2] for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))], -1).view(batch, -1, width)
    reference = F.linear(F.layer_norm(quads, (width,), p["scale"], p["bias"], 1e-5), p["wt"], p["b"])
    error = ((ys[0].float() - reference).norm() / reference.norm()).item()
    best = lib.patch_merge_block_tactics(batch, channels, side, columns)
    label = lambda t: f"{'one kernel' if t >> 8 & 1 else 'two kernels'}, tile {t & 15} cluster {1 << (t >> 4 & 15)}"
    forms = {}
    for t in best:
        forms.setdefault(t >> 8 & 1, t)
    functions = {"ours": ours, "our merge, torch's product": pieces, "an MLP block": block, "our merge, torch's product behind an MLP block": lambda i: (block(i), pieces(i))}
    for t in best if tactics else forms.values():
        functions[label(t)] = lambda i, t=t: ours(i, t)
        functions[label(t) + ", behind an MLP block"] = lambda i, t=t: (block(i), ours(i, t))
    times, failed = time_variants({k: [lambda i=i, f=f: f(i) for i in order] for k, f in functions.items()}, rounds)
    return {"op": "patch_merge_block", "shape": [batch, side, side, channels], "tactic": label(best[0]) if best else "none", "error": error, "us": times, "failed": failed, "bytes": moved,
            "flop": 2 * rows * width * columns}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lib")
    parser.add_argument("--json")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tactics", action="store_true", help="time every tactic too")
    parser.add_argument("--only", help="one op: layer_norm, attention, window, patch_merge, patch_merge_block, norm_pool, classifier, gelu, depthwise_conv, conv_block, conv_layer, patch_conv, block_chain, merged_chain, sequence, stage, swin, wide_gemm, mlp_block, attn_block, pooled_attn_block, pooled_stage, tnt_inner_block, tnt_bridge, tnt_words, patch_embed, pixel_embed or conv_stack")
    parser.add_argument("--batch", type=int, action="append", help="batch sizes of blocks [default: 1 and 32]")
    args = parser.parse_args()
    lib = Library(args.lib)
    torch.manual_seed(0)
    results = []

    def add(r):
        results.append(r)
        head = {k: v for k, v in r.items() if k not in ("us", "failed", "bytes", "scanned")}
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in head.items()}))
        print("   ", ", ".join(f"{k} {v:.2f}" for k, v in r["us"].items()), r["failed"] or "", flush=True)

    tactics = [1, 2, 3, 4] if args.tactics else []
    wanted = lambda op: args.only in (None, op)
    with torch.inference_mode():
        if wanted("layer_norm"):
            for rows, row in [(32 * 3136, 96), (32 * 49, 768), (32 * 784, 192), (32 * 196, 384), (3136, 96), (49, 768), (32 * 196 * 16, 24), (32 * 197, 384)]:
                add(bench_layer_norm(lib, rows, row, False, None, args.rounds))
            add(bench_layer_norm(lib, 32 * 3136, 96, True, None, args.rounds))
            add(bench_layer_norm(lib, 32 * 3136, 96, True, [56, 56, 7, 7, 3, 3, 0], args.rounds))
            add(bench_layer_norm(lib, 32 * 3136, 96, True, [56, 56, 7, 7, 3, 3, 0], args.rounds, reverse=True))
            for images in (1, 32):
                add(bench_layer_norm_part(lib, images, 197, 384, args.rounds))
        if wanted("attention"):
            for batch in (32, 1):
                for stage in range(4):
                    for shifted in (False, True) if stage < 3 else (False,):
                        add(bench_attention(lib, stage, batch, shifted, args.rounds, tactics))
            for shape in [(32, 197, 6, 64), (1, 197, 6, 64), (32 * 196, 16, 4, 6), (196, 16, 4, 6), (32, 196, 5, 64), (1, 144, 4, 32)]:
                add(bench_global(lib, *shape, args.rounds, [5, 6, 7] if args.tactics and shape[1] > 96 else tactics[:1] + [5] if args.tactics else []))
        if wanted("window"):
            add(bench_move(lib, 32, 56, 96, False, False, args.rounds))
            add(bench_move(lib, 32, 56, 96, True, True, args.rounds))
        if wanted("patch_merge"):
            add(bench_merge(lib, 32, 56, 96, args.rounds))
            add(bench_merge(lib, 32, 14, 384, args.rounds))
        if wanted("patch_merge_block"):
            for batch in args.batch or (1, 32):
                for side, channels in [(56, 96), (28, 192), (14, 384)]:
                    add(bench_merge_block(lib, batch, side, channels, args.rounds, args.tactics))
        if wanted("norm_pool"):
            for images in args.batch or (1, 32):
                for tokens, row, residual in [(49, 768, True), (49, 768, False), (49, 1024, True), (64, 512, True)]:
                    add(bench_norm_pool(lib, images, tokens, row, residual, args.rounds))
        if wanted("classifier"):
            # Swin-T, TNT-S, UniFormer-S, PyramidTNT-S, ViT-B.
            for images in args.batch or (1, 8):
                for tokens, row, token, norm in [(49, 768, -1, True), (197, 384, 0, True), (49, 512, -1, False), (64, 512, -1, True), (197, 768, 0, True)]:
                    add(bench_classifier(lib, images, tokens, row, token, norm, args.rounds))
        if wanted("gelu"):
            for batch in args.batch or (1, 32):
                for rows, row in [(3136, 384), (784, 768), (196, 1536), (49, 3072), (197, 1536), (3136, 96)]:
                    add(bench_gelu(lib, batch * rows, row, args.rounds))
        if wanted("depthwise_conv"):
            for images in args.batch or (1, 32):
                for side, channels in [(56, 64), (28, 128), (14, 320), (7, 512)]:
                    add(bench_depthwise_conv(lib, images, side, channels, 3, args.rounds))
        if wanted("conv_block"):
            # The two stages of UniFormer-S that have them.
            for images in args.batch or (1, 4, 32):
                for side, channels in [(56, 64), (28, 128)]:
                    add(bench_conv_block(lib, images, side, channels, 5, args.rounds, args.tactics))
        if wanted("conv_layer"):
            for images in args.batch or (1, 4, 32):
                for side, channels in [(56, 64), (28, 128)]:
                    add(bench_conv_layer(lib, images, side, channels, 5, args.rounds))
        if wanted("patch_conv"):
            # Patches and words between the stages of PyramidTNT-S.
            for batch in args.batch or (1, 32):
                for side, channels, columns in [(32, 128, 256), (16, 256, 512), (8, 512, 512)]:
                    add(bench_patch_conv(lib, batch, side, channels, columns, 1, 1, args.rounds, args.tactics))
                for across, channels, columns in [(16, 8, 16), (8, 16, 32), (4, 32, 32)]:
                    add(bench_patch_conv(lib, batch * across * across, 8, channels, columns, 4, across, args.rounds, args.tactics))
        # Stages of Swin-T, and those behind a patch merge with it.
        for op in ("block_chain", "merged_chain"):
            for batch in args.batch or (1,) if wanted(op) else ():
                for stage, pairs in enumerate((2, 2, 6, 2)):
                    if op == "merged_chain" and stage == 0:
                        continue
                    side, channels = 56 >> stage, 96 << stage
                    window = [side, side, 7, 7, 3 if side > 7 else 0, 3 if side > 7 else 0, 0]
                    add(bench_block_chain(lib, f"Swin-T stage {stage + 1}", batch, side * side, channels, channels // 32, 32, pairs, window, False, args.rounds, args.tactics, channels // 2 if op == "merged_chain" else 0))
        if wanted("block_chain"):
            for batch in args.batch or (1,):
                # TNT-S's layers with what its words add between them.
                for name, tokens, channels, heads, pairs, added in [("TNT-S's layer", 197, 384, 6, 1, False), ("TNT-S", 197, 384, 6, 12, True), ("ViT-S", 197, 384, 6, 12, False),
                                                                    ("UniFormer-S stage 3", 196, 320, 5, 1, False), ("UniFormer-S stage 4", 49, 512, 8, 1, False)]:
                    add(bench_block_chain(lib, name, batch, tokens, channels, heads, 64, pairs, None, added, args.rounds, args.tactics))
        if wanted("sequence"):
            for stage in range(4):
                add(bench_sequence(lib, stage, args.rounds))
        if wanted("wide_gemm"):
            for batch in args.batch or (32,):
                for rows, channels in [(196, 384), (3136, 96), (784, 192), (49, 768), (197, 384)]:
                    for k, n, end in [(channels, 4 * channels, "gelu"), (4 * channels, channels, "added"), (channels, 3 * channels, "bias"), (channels, channels, "added")]:
                        add(bench_wide_gemm(lib, batch * rows, k, n, end, args.rounds))
        if wanted("mlp_block"):
            for batch in args.batch or (1, 32):
                for rows, channels in [(3136, 96), (784, 192), (196, 384), (49, 768), (197, 384), (3136, 24), (1024, 128), (256, 256), (64, 512), (16, 512)]:
                    add(bench_mlp(lib, batch * rows, channels, 4 * channels, args.rounds, args.tactics))
                # UniFormer-S's convolution blocks
                for rows, channels in [(3136, 64), (784, 128)]:
                    add(bench_mlp(lib, batch * rows, channels, 4 * channels, args.rounds, args.tactics, norm=False))
        if wanted("stage"):
            for stage in range(4):
                add(bench_stage(lib, stage, args.rounds))
            add(bench_network(lib, args.rounds))
        if wanted("swin"):
            add(bench_swin(lib, args.rounds))
        if wanted("attn_block"):
            for batch in args.batch or (1, 32):
                for side, channels, heads, shift in [(56, 96, 3, 0), (56, 96, 3, 3), (28, 192, 6, 3), (14, 384, 12, 3), (7, 768, 24, 0), (14, 384, 6, -1)]:
                    add(bench_attn_block(lib, batch, side, channels, heads, shift, args.rounds))
        if wanted("pooled_attn_block"):
            # The two stages of PyramidTNT-S that pool.
            for batch in args.batch or (1, 32):
                for side, pool, channels, heads in [(32, 4, 128, 4), (16, 2, 256, 8)]:
                    add(bench_pooled_attn_block(lib, batch, side, pool, channels, heads, args.rounds))
        if wanted("pooled_stage"):
            for side, pool, channels, heads in [(32, 4, 128, 4), (16, 2, 256, 8)]:
                add(bench_pooled_stage(lib, side, pool, channels, heads, args.rounds))
        if wanted("tnt_inner_block"):
            for batch in args.batch or (1, 32):
                for patches, tokens, channels, heads in [(196, 16, 24, 4), (256, 16, 32, 2)]:
                    add(bench_tnt_inner(lib, batch * patches, tokens, channels, heads, args.rounds))
        if wanted("tnt_bridge"):
            for batch in args.batch or (1, 32):
                for tokens, covered, width, channels in [(197, 196, 384, 384), (1024, 1024, 128, 128), (256, 256, 256, 256), (64, 64, 512, 512)]:
                    add(bench_bridge(lib, batch, tokens, covered, width, channels, args.rounds))
        if wanted("tnt_words"):
            # TNT-S, and wider words.
            for batch in args.batch or (1, 32):
                for covered, words, channels, heads, layers, out_channels in [(196, 16, 24, 4, 12, 384), (256, 16, 32, 2, 6, 256)]:
                    add(bench_tnt_words(lib, batch, covered, words, channels, heads, layers, out_channels, args.rounds))
        if wanted("patch_embed"):
            # Swin-T, the four of UniFormer-S, ViT-S and ViT-B.
            for batch in args.batch or (1, 32):
                for channels, side, patch, columns, norm in [(3, 224, 4, 96, True), (3, 224, 4, 64, True), (64, 56, 2, 128, True), (128, 28, 2, 320, True), (320, 14, 2, 512, True), (3, 224, 16, 384, False), (3, 224, 16, 768, False)]:
                    add(bench_embed(lib, batch, channels, side, patch, columns, norm, args.rounds))
        if wanted("pixel_embed"):
            # TNT-S and TNT-B, and TNT-S with a convolution of the whole image.
            for batch in args.batch or (1, 32):
                for columns, within in [(24, True), (40, True), (24, False)]:
                    add(bench_pixels(lib, batch, 224, 14, columns, within, args.rounds))
        if wanted("conv_stack"):
            # PyramidTNT-S and Ti.
            for batch in args.batch or (1, 4, 32):
                for side, columns, words in [(256, [16, 32, 64, 128], 8), (192, [10, 20, 40, 80], 5)]:
                    add(bench_stack(lib, batch, side, columns, [2, 2, 2, 1], words, args.rounds, args.tactics))
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "results": results}, f, indent=1)


if __name__ == "__main__":
    main()
