#!/usr/bin/env python3
"""Runs each plugin op inside TensorRT, in graphs made by hand, and compares with docs/ops.md in float64.

    trt_ops.py --trt-opt BINARY --tensorrt DIR --plugins LIB [--json FILE] [--work DIR]

Every graph is built twice, in fp32 and with the fp16 flag; limits on ||out - ref|| / ||ref||
are 1e-5 and 2e-3 (fp16 also rounds the graph's fp32 inputs and outputs).
"""
import argparse
import concurrent.futures
import json
import math
import os
import queue
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import engines

DOMAIN = {"plugin_version": "1", "plugin_namespace": "trt_opt"}


def window_rows(h, w, window, shift, after):
    """Source token of each partitioned row of an image, or -1."""
    wh, ww = window
    hp, wp = -(-h // wh) * wh, -(-w // ww) * ww
    rows = []
    for wy in range(hp // wh):
        for wx in range(wp // ww):
            for iy in range(wh):
                for ix in range(ww):
                    py, px = wy * wh + iy, wx * ww + ix
                    if after:
                        inside = py < h and px < w
                        y, x = (py + shift[0]) % h, (px + shift[1]) % w
                    else:
                        y, x = (py + shift[0]) % hp, (px + shift[1]) % wp
                        inside = y < h and x < w
                    rows.append(y * w + x if inside else -1)
    return np.array(rows), (hp // wh) * (wp // ww)


def partition(x, h, w, window, shift, after):
    rows, windows = window_rows(h, w, window, shift, after)
    x = x.reshape(x.shape[0], h * w, x.shape[-1])
    y = np.where(rows[None, :, None] >= 0, x[:, np.maximum(rows, 0)], 0.0)
    return y.reshape(x.shape[0] * windows, window[0] * window[1], x.shape[-1])


def reverse(x, h, w, window, shift, after):
    rows, windows = window_rows(h, w, window, shift, after)
    x = x.reshape(x.shape[0] // windows, windows * window[0] * window[1], x.shape[-1])
    y = np.zeros((x.shape[0], h * w, x.shape[-1]))
    y[:, rows[rows >= 0]] = x[:, rows >= 0]
    return y


def layer_norm(x, scale, bias, epsilon, axes):
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes, keepdims=True) + epsilon) * scale + bias


def attention(q, k, v, scale, bias=0.0):
    """q, k, v: [B, h, tokens, d]; the heads of the result are merged."""
    s = q @ k.transpose(0, 1, 3, 2) * scale + bias
    s = np.exp(s - s.max(-1, keepdims=True))
    o = s / s.sum(-1, keepdims=True) @ v
    return o.transpose(0, 2, 1, 3).reshape(o.shape[0], o.shape[2], -1)


def gelu(v, tanh=False):
    return v / 2 * (1 + (np.tanh((2 / np.pi) ** 0.5 * (v + 0.044715 * v**3)) if tanh else np.vectorize(math.erf)(v / 2**0.5)))


def mlp(s, w, epsilon, axes=(-1,)):
    """An MLP block over s, by the weights w: those of its norm, if it has one, of its products."""
    *norm, w1, b1, w2, b2 = w
    u = (layer_norm(s, *norm, epsilon, axes) if norm else s) @ w1 + b1
    return s + gelu(u) @ w2 + b2


def inner_block(x, w, count, epsilons, axes):
    """A block over words, by its twelve weights."""
    g, b, w_qkv, b_qkv, w_proj, b_proj = w[:6]
    c = x.shape[-1]
    qkv = layer_norm(x, g, b, epsilons[0], axes) @ w_qkv + b_qkv
    q, k, v = (heads(qkv[..., i * c:(i + 1) * c], count) for i in range(3))
    return mlp(x + attention(q, k, v, (c // count)**-0.5) @ w_proj + b_proj, w[6:], epsilons[1], axes)


def bridge(words, w, epsilons):
    """What a bridge adds, by its six weights."""
    g1, b1, m, b, g2, b2 = w
    return layer_norm(layer_norm(words, g1, b1, epsilons[0], (-1,)) @ m + b, g2, b2, epsilons[1], (-1,))


def heads(x, h):
    return x.reshape(*x.shape[:2], h, -1).transpose(0, 2, 1, 3)


def packed(w):
    """A matrix in the order that docs/ops.md gives for chains of blocks."""
    k, n = w.shape
    d = next(d for d in (128, 64, 32, 16) if k % d == 0)
    return w.reshape(k // d, d // 8, 8, n // 8, 8).transpose(0, 3, 1, 4, 2).ravel()


def table_bias(table, wh, ww):
    y, x = np.meshgrid(np.arange(wh), np.arange(ww), indexing="ij")
    y, x = y.ravel(), x.ravel()
    index = (y[:, None] - y[None] + wh - 1) * (2 * ww - 1) + x[:, None] - x[None] + ww - 1
    return table[index].transpose(2, 0, 1)[None]


def shift_mask(h, w, window, shift, value):
    wh, ww = window
    hp, wp = -(-h // wh) * wh, -(-w // ww) * ww

    def regions(length, size, by):
        p = np.arange(length)
        return np.zeros(length, int) if by == 0 else (p >= length - size).astype(int) + (p >= length - by)

    r = regions(hp, wh, shift[0])[:, None] * 3 + regions(wp, ww, shift[1])[None]
    r = r.reshape(hp // wh, wh, wp // ww, ww).transpose(0, 2, 1, 3).reshape(-1, wh * ww)
    return np.where(r[:, :, None] != r[:, None], value, 0.0)[:, None]


class Case:
    """One graph: run-time inputs, constants, nodes, outputs and their references."""

    def __init__(self, name, inputs, constants, nodes, outputs, dynamic=False):
        self.name, self.inputs, self.constants, self.nodes, self.outputs, self.dynamic = name, inputs, constants, nodes, outputs, dynamic

    def save(self, path):
        def shape(a):
            # A symbol for each size: TensorRT takes axes of one name for equal.
            return [f"batch{a.shape[0]}", *a.shape[1:]] if self.dynamic else list(a.shape)

        graph = helper.make_graph(
            self.nodes, self.name,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape(a)) for n, a in self.inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None if self.dynamic else list(a.shape)) for n, a in self.outputs.items()],
            [numpy_helper.from_array(a.astype(np.float32), n) for n, a in self.constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("trt.opt", 1)], ir_version=8)
        onnx.save(model, path)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, domain="trt.opt", **attributes, **DOMAIN)


def cases():
    rng = np.random.default_rng(0)

    def rand(*shape, scale=1.0):
        # values that fp16 holds exactly, so that both precisions have the same inputs
        return (rng.standard_normal(shape) * scale).astype(np.float16).astype(np.float64)

    none = {"grid": [0, 0], "window": [0, 0], "shift": [0, 0]}
    c, h, w = 96, 56, 56
    x, r, g, b = rand(2, h * w, c), rand(2, h * w, c), 1 + rand(c, scale=0.2), rand(c, scale=0.2)
    swin = {"grid": [h, w], "window": [7, 7], "shift": [3, 3]}
    yield Case("layer_norm", {"x": x}, {"g": g, "b": b},
               [node("TrtOptLayerNorm", ["x", "g", "b"], ["y"], epsilon=1e-5, axis=-1, residual=0, part_begin=-1, reverse=0, pad_after_roll=0, **none)],
               {"y": layer_norm(x, g, b, 1e-5, (-1,))}, dynamic=True)
    yield Case("layer_norm_residual_window", {"x": x, "r": r}, {"g": g, "b": b},
               [node("TrtOptLayerNorm", ["x", "r", "g", "b"], ["y", "s"], epsilon=1e-5, axis=-1, residual=1, part_begin=-1, reverse=0, pad_after_roll=0, **swin)],
               {"y": partition(layer_norm(x + r, g, b, 1e-5, (-1,)), h, w, (7, 7), (3, 3), 0), "s": x + r}, dynamic=True)
    tokens, patches, r2 = rand(2, 197, c), rand(2, 196, c), rand(2, 197, c)
    for residual in (0, 1):
        for name, begin, part in (("", 1, patches), ("_middle", 90, patches[:, :7]), ("_begin", 0, patches[:, :1])):
            total = tokens + r2 if residual else tokens.copy()
            total[:, begin:begin + part.shape[1]] += part
            yield Case(f"layer_norm_part{name}{'_residual' if residual else ''}", {"x": tokens, **({"r": r2} if residual else {}), "p": part}, {"g": g, "b": b},
                       [node("TrtOptLayerNorm", ["x", *(["r"] if residual else []), "p", "g", "b"], ["y", "s"], epsilon=1e-5, axis=-1, residual=residual, part_begin=begin, reverse=0,
                             pad_after_roll=0, **none)],
                       {"y": layer_norm(total, g, b, 1e-5, (-1,)), "s": total}, dynamic=not name)
    words = rand(3, 5, 16, 24)
    g2, b2 = 1 + rand(16, 24, scale=0.2), rand(16, 24, scale=0.2)
    yield Case("layer_norm_two_axes", {"x": words}, {"g": g2, "b": b2},
               [node("TrtOptLayerNorm", ["x", "g", "b"], ["y"], epsilon=1e-6, axis=-2, residual=0, part_begin=-1, reverse=0, pad_after_roll=0, **none)],
               {"y": layer_norm(words, g2, b2, 1e-6, (-2, -1))})
    odd = rand(2, 13, 17, 40)
    grid = {"grid": [13, 17], "window": [4, 5], "shift": [2, 3]}
    for after in (0, 1):
        cut = partition(odd, 13, 17, (4, 5), (2, 3), after)
        yield Case(f"window_partition_{after}", {"x": odd}, {},
                   [node("TrtOptWindow", ["x"], ["y"], reverse=0, rank=3, residual=0, pad_after_roll=after, **grid)], {"y": cut}, dynamic=True)
        back = reverse(cut, 13, 17, (4, 5), (2, 3), after).reshape(odd.shape)
        g3, b3 = 1 + rand(40, scale=0.2), rand(40, scale=0.2)
        yield Case(f"layer_norm_reverse_{after}", {"x": cut, "r": odd}, {"g": g3, "b": b3},
                   [node("TrtOptLayerNorm", ["x", "r", "g", "b"], ["y", "s"], epsilon=1e-5, axis=-1, residual=1, part_begin=-1, reverse=1, pad_after_roll=after, **grid)],
                   {"y": layer_norm(back + odd, g3, b3, 1e-5, (-1,)), "s": back + odd}, dynamic=True)
        yield Case(f"window_reverse_{after}", {"x": cut, "r": odd}, {},
                   [node("TrtOptWindow", ["x", "r"], ["y"], reverse=1, rank=4, residual=1, pad_after_roll=after, **grid)], {"y": back + odd})
    m, mg, mb = rand(2, 14, 14, 64), 1 + rand(256, scale=0.2), rand(256, scale=0.2)
    quads = np.concatenate([m[:, dy::2, dx::2] for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    yield Case("patch_merge", {"x": m}, {"g": mg, "b": mb},
               [node("TrtOptPatchMerge", ["x", "g", "b"], ["y"], epsilon=1e-5, residual=0, grid=[14, 14], order=[0, 2, 1, 3], rank=4)],
               {"y": layer_norm(quads, mg, mb, 1e-5, (-1,))}, dynamic=True)
    mr = rand(2, 14, 14, 64)
    quads = np.concatenate([(m + mr)[:, dy::2, dx::2] for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    yield Case("patch_merge_residual", {"x": m, "r": mr}, {"g": mg, "b": mb},
               [node("TrtOptPatchMerge", ["x", "r", "g", "b"], ["y"], epsilon=1e-5, residual=1, grid=[14, 14], order=[0, 2, 1, 3], rank=3)],
               {"y": layer_norm(quads, mg, mb, 1e-5, (-1,)).reshape(2, 49, 256)}, dynamic=True)
    for name, mh, mw, extra, rank in (("patch_merge_block", 14, 14, False, 4), ("patch_merge_block_odd", 7, 9, True, 3)):
        m, mr = rand(2, mh, mw, 64), rand(2, mh, mw, 64)
        constants = {"g": 1 + rand(256, scale=0.2), "bn": rand(256, scale=0.2), "w": rand(256, 128, scale=1 / 16), "b": rand(128, scale=0.2)}
        padded = np.pad(m + mr if extra else m, ((0, 0), (0, mh % 2), (0, mw % 2), (0, 0)))
        quads = np.concatenate([padded[:, dy::2, dx::2] for dy, dx in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
        y = layer_norm(quads, constants["g"], constants["bn"], 1e-5, (-1,)) @ constants["w"] + constants["b"]
        yield Case(name, {"x": m, "r": mr} if extra else {"x": m}, constants,
                   [node("TrtOptPatchMergeBlock", ["x", *(["r"] if extra else []), *constants], ["y"], epsilon=1e-5, residual=int(extra), grid=[mh, mw], order=[0, 2, 1, 3], rank=rank)],
                   {"y": y if rank == 4 else y.reshape(2, -1, 128)}, dynamic=True)

    for name, shape, extra in (("norm_pool", (2, 49, 768), False), ("norm_pool_residual", (2, 7, 7, 768), True), ("norm_pool_rows_of_no_access", (3, 10, 30), True)):
        x, r, g, b = rand(*shape), rand(*shape), 1 + rand(shape[-1], scale=0.2), rand(shape[-1], scale=0.2)
        yield Case(name, {"x": x, "r": r} if extra else {"x": x}, {"g": g, "b": b},
                   [node("TrtOptNormPool", ["x", *(["r"] if extra else []), "g", "b"], ["y"], epsilon=1e-5, residual=int(extra))],
                   {"y": layer_norm(x + r if extra else x, g, b, 1e-5, (-1,)).mean(tuple(range(1, len(shape) - 1)))}, dynamic=name == "norm_pool_residual")

    for name, shape, extra, normal, token in (("classifier", (2, 49, 768), False, True, -1), ("classifier_residual", (2, 7, 7, 768), True, True, -1), ("classifier_no_norm", (1, 49, 512), False, False, -1), ("classifier_token", (2, 197, 384), False, True, 0),
                                              ("classifier_rows_of_no_access", (3, 10, 30), True, True, 4)):
        x, r, weights, b = rand(*shape), rand(*shape), rand(100, shape[-1], scale=shape[-1]**-0.5), rand(100, scale=0.2)
        s = (x + r if extra else x).reshape(shape[0], -1, shape[-1])
        s = layer_norm(s, 1, 0, 1e-5, (-1,)) if normal else s
        yield Case(name, {"x": x, "r": r} if extra else {"x": x}, {"w": weights, "b": b},
                   [node("TrtOptClassifier", ["x", *(["r"] if extra else []), "w", "b"], ["y"], epsilon=1e-5, norm=int(normal), residual=int(extra), token=token)],
                   {"y": (s.mean(1) if token < 0 else s[:, token]) @ weights.T + b}, dynamic=name == "classifier_residual")

    for name, shape, extra, form in (("gelu", (2, 784, 768), True, "none"), ("gelu_tanh", (2, 14, 14, 96), True, "tanh"), ("gelu_no_bias", (2, 49, 768), False, "none"), ("gelu_rows_of_no_access", (3, 10, 30), True, "none")):
        x, b = rand(*shape, scale=2), rand(shape[-1], scale=0.5)
        v = x + b if extra else x
        yield Case(name, {"x": x}, {"b": b} if extra else {}, [node("TrtOptGelu", ["x", *(["b"] if extra else [])], ["y"], bias=int(extra), approximate=form)],
                   {"y": gelu(v, form == "tanh")}, dynamic=name != "gelu_no_bias")

    for name, images, (gh, gw), channels, kernel, offset, extra in (("depthwise_conv", 2, (14, 14), 320, 3, True, True), ("depthwise_conv_5", 1, (9, 5), 24, 5, False, False), ("depthwise_conv_odd", 2, (4, 3), 33, 7, True, True)):
        x = rand(images, gh * gw, channels)
        constants = {"w": rand(kernel * kernel, channels, scale=1 / kernel)}
        edge = kernel // 2
        padded = np.pad(x.reshape(images, gh, gw, channels), ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        y = sum(padded[:, i // kernel:i // kernel + gh, i % kernel:i % kernel + gw] * constants["w"][i] for i in range(kernel * kernel))
        if offset:
            constants["b"] = rand(channels, scale=0.2)
            y = y + constants["b"]
        y = y.reshape(x.shape) + (x if extra else 0)
        yield Case(name, {"x": x}, constants, [node("TrtOptDepthwiseConv", ["x", *constants], ["y"], grid=[gh, gw], kernel=kernel, bias=int(offset), residual=int(extra))], {"y": y}, dynamic=images == 2)

    for name, images, (gh, gw), channels, hidden, kernel in (("conv_block", 2, (14, 14), 64, 64, 5), ("conv_block_3", 1, (9, 5), 24, 40, 3), ("conv_block_odd", 2, (4, 3), 20, 33, 7)):
        x = rand(images, gh * gw, channels)
        constants = {"w1": rand(channels, hidden, scale=channels**-0.5), "b1": rand(hidden, scale=0.2), "w": rand(kernel * kernel, hidden, scale=1 / kernel), "b": rand(hidden, scale=0.2),
                     "w2": rand(hidden, channels, scale=hidden**-0.5), "b2": rand(channels, scale=0.2)}
        edge = kernel // 2
        up = (x @ constants["w1"] + constants["b1"]).reshape(images, gh, gw, hidden)
        padded = np.pad(up, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        mixed = sum(padded[:, i // kernel:i // kernel + gh, i % kernel:i % kernel + gw] * constants["w"][i] for i in range(kernel * kernel)) + constants["b"]
        y = x + mixed.reshape(images, gh * gw, hidden) @ constants["w2"] + constants["b2"]
        yield Case(name, {"x": x}, constants, [node("TrtOptConvBlock", ["x", *constants], ["y"], grid=[gh, gw], kernel=kernel)], {"y": y}, dynamic=images == 2)

    for name, images, (gh, gw), channels, columns, hidden, kernel, tanh in (("conv_layer", 2, (14, 14), 64, 64, 256, 5, False), ("conv_layer_wide", 1, (9, 5), 128, 128, 512, 5, False), ("conv_layer_3", 1, (9, 5), 64, 64, 128, 3, True), ("conv_layer_odd", 2, (4, 3), 20, 33, 50, 7, False)):
        x = rand(images, gh * gw, channels)
        constants = {"position_w": rand(9, channels, scale=1 / 3), "position_b": rand(channels, scale=0.2), "w1": rand(channels, columns, scale=channels**-0.5), "b1": rand(columns, scale=0.2),
                     "w": rand(kernel * kernel, columns, scale=1 / kernel), "b": rand(columns, scale=0.2), "w2": rand(columns, channels, scale=columns**-0.5), "b2": rand(channels, scale=0.2),
                     "up": rand(channels, hidden, scale=channels**-0.5), "up_b": rand(hidden, scale=0.2), "down": rand(hidden, channels, scale=hidden**-0.5), "down_b": rand(channels, scale=0.2)}

        def depthwise(tokens, w, b, size):
            padded = np.pad(tokens.reshape(images, gh, gw, -1), ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
            return (sum(padded[:, i // size:i // size + gh, i % size:i % size + gw] * w[i] for i in range(size * size)) + b).reshape(tokens.shape)

        encoded = x + depthwise(x, constants["position_w"], constants["position_b"], 3)
        mid = encoded + depthwise(encoded @ constants["w1"] + constants["b1"], constants["w"], constants["b"], kernel) @ constants["w2"] + constants["b2"]
        y = mid + gelu(mid @ constants["up"] + constants["up_b"], tanh) @ constants["down"] + constants["down_b"]
        yield Case(name, {"x": x}, constants, [node("TrtOptConvLayer", ["x", *constants], ["y"], grid=[gh, gw], kernel=kernel, approximate="tanh" if tanh else "none")], {"y": y}, dynamic=images == 2)

    for name, images, (gh, gw), channels, columns, (kh, kw), (sh, sw), (top, left, below, right), (ch, cw), across, norm in (
            ("patch_conv", 2, (16, 16), 64, 128, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, True), ("patch_conv_words", 8, (8, 8), 16, 32, (3, 3), (2, 2), (1, 1, 1, 1), (4, 4), 4, True),
            ("patch_conv_odd", 3, (6, 8), 20, 33, (2, 3), (1, 2), (0, 2, 1, 1), (3, 2), 3, False)):
        x = rand(images, gh * gw, channels)
        depth = kh * kw * channels
        constants = {"w": rand(depth, columns, scale=depth**-0.5), "b": rand(columns, scale=0.2)}
        normal = x
        if norm:
            constants |= {"s": 1 + rand(channels, scale=0.2), "t": rand(channels, scale=0.2)}
            normal = layer_norm(x, constants["s"], constants["t"], 1e-5, (-1,))
        map_ = normal.reshape(images // across, gh // ch, across, gw // cw, ch, cw, channels).transpose(0, 2, 1, 4, 3, 5, 6).reshape(images, gh, gw, channels)
        padded = np.pad(map_, ((0, 0), (top, below), (left, right), (0, 0)))
        oh, ow = (gh + top + below - kh) // sh + 1, (gw + left + right - kw) // sw + 1
        under = np.concatenate([padded[:, i:i + sh * (oh - 1) + 1:sh, j:j + sw * (ow - 1) + 1:sw] for i in range(kh) for j in range(kw)], -1)
        y = under.reshape(images, oh * ow, depth) @ constants["w"] + constants["b"]
        yield Case(name, {"x": x}, constants, [node("TrtOptPatchConv", ["x", *constants], ["y"], epsilon=1e-5, norm=int(norm), grid=[gh, gw], kernel=[kh, kw], strides=[sh, sw], pads=[top, left, below, right],
                                                    cell=[ch, cw], across=across)], {"y": y}, dynamic=images == 2)

    for name, images, channels, (height, width), layers, strides, word_layer, word_channels, (ph, pw) in (("conv_stack", 2, 3, (64, 32), (16, 32, 64, 128), (2, 2, 2, 1), 0, 8, (4, 4)), ("conv_stack_plain", 1, 3, (22, 30), (10, 48), (1, 2), -1, 0, (1, 1)),
                                                                                                  ("conv_stack_odd", 1, 2, (9, 24), (5, 20, 33), (1, 1, 2), 1, 7, (3, 2))):
        x = rand(images, channels, height, width)
        inner = lambda n: 16 if n <= 16 else 32 if n <= 32 else 64
        up = lambda n, m: -(-n // m) * m

        def convolution(map_, depth, columns, stride, image, padded):
            """The map of a 3 x 3 convolution with zeros around and ReLU, and its weights and offsets as the plugin takes them."""
            weight, bias = rand(columns, depth, 3, 3, scale=(4.5 * depth) ** -0.5), rand(columns, scale=0.2)
            oh, ow = (map_.shape[2] - 1) // stride + 1, (map_.shape[3] - 1) // stride + 1
            wide = np.pad(map_, ((0, 0), (0, 0), (1, 2), (1, 2)))
            seen = np.stack([wide[:, :, i:i + stride * (oh - 1) + 1:stride, j:j + stride * (ow - 1) + 1:stride] for i in range(3) for j in range(3)], -1)
            y = np.maximum(np.einsum("bcijk,dck->bdij", seen, weight.reshape(columns, depth, 9)) + bias[None, :, None, None], 0)
            places = np.zeros((padded, 3, 4 if image else 3, 4 if image else inner(depth)), weight.dtype)
            places[:columns, :, :3, :depth] = weight.transpose(0, 2, 3, 1)
            twice = 2 if not image and depth > 16 else 1
            # Columns as tile, four of them, half and pair; contracted elements as chunk, lane, step and four.
            lanes = places.reshape(padded // 16, 4, 2, 2, -1, 4, twice, 4).transpose(0, 4, 6, 1, 3, 5, 2, 7)
            return y, [lanes.reshape(-1), np.pad(bias, (0, padded - columns))]

        maps, depth, weights = [x], channels, []
        for i, (columns, stride) in enumerate(zip(layers, strides)):
            y, own = convolution(maps[-1], depth, columns, stride, i == 0, inner(columns) if i + 1 < len(layers) else up(columns, 16))
            maps.append(y)
            weights += own
            depth = columns
        tokens = maps[-1].reshape(images, depth, -1).transpose(0, 2, 1)
        outputs, offsets = {}, {"o": rand(*tokens.shape[1:], scale=0.2)}
        outputs["y"] = tokens + offsets["o"]
        if word_layer >= 0:
            y, own = convolution(maps[word_layer + 1], layers[word_layer], word_channels, 1, False, up(word_channels, 16))
            weights += own
            offsets["q"] = rand(ph * pw, word_channels, scale=0.2)
            cut = y.reshape(images, word_channels, y.shape[2] // ph, ph, y.shape[3] // pw, pw).transpose(0, 2, 4, 3, 5, 1)
            outputs["z"] = cut.reshape(-1, ph * pw, word_channels) + offsets["q"]
        fill = lambda values: [*values, *[0] * (5 - len(values))]
        yield Case(name, {"x": x}, {"w": np.concatenate(weights), **offsets}, [node("TrtOptConvStack", ["x", "w", *offsets], [*outputs], channels=fill(layers), strides=fill(strides), word_layer=word_layer,
                                                                              word_channels=word_channels, patch=[ph, pw])], outputs, dynamic=images == 2)

    heads3 = {"num_heads": 3, "scale": 32**-0.5}
    qkv, table = rand(128, 49, 3 * 96), rand(169, 3)
    q, k, v = (heads(qkv[..., i * 96:(i + 1) * 96], 3) for i in range(3))
    bias = table_bias(table, 7, 7)
    masked = bias + np.tile(shift_mask(h, w, (7, 7), (3, 3), -100.0), (2, 1, 1, 1))
    yield Case("attention_window", {"x": qkv}, {"t": table},
               [node("TrtOptAttention", ["x", "t"], ["y"], layout="qkv", bias=2, mask=2, mask_value=-100.0, **heads3, **swin)],
               {"y": attention(q, k, v, 32**-0.5, masked)}, dynamic=True)
    dense, mask = bias, shift_mask(h, w, (7, 7), (3, 3), -100.0)[:, 0]
    yield Case("attention_dense", {"x": qkv}, {"t": dense, "m": mask},
               [node("TrtOptAttention", ["x", "t", "m"], ["y"], layout="qkv", bias=1, mask=1, mask_value=0.0, **heads3, **none)],
               {"y": attention(q, k, v, 32**-0.5, masked)})
    qk, vv = rand(196, 16, 2 * 24), rand(196, 16, 24)
    yield Case("attention_words", {"qk": qk, "v": vv}, {},
               [node("TrtOptAttention", ["qk", "v"], ["y"], layout="qk_v", bias=0, mask=0, mask_value=0.0, num_heads=4, scale=6**-0.5, **none)],
               {"y": attention(heads(qk[..., :24], 4), heads(qk[..., 24:], 4), heads(vv, 4), 6**-0.5)}, dynamic=True)
    vit = rand(2, 197, 3 * 384)
    yield Case("attention_global", {"x": vit}, {},
               [node("TrtOptAttention", ["x"], ["y"], layout="qkv", bias=0, mask=0, mask_value=0.0, num_heads=6, scale=0.125, **none)],
               {"y": attention(*(heads(vit[..., i * 384:(i + 1) * 384], 6) for i in range(3)), 0.125)}, dynamic=True)
    qq, kv, rel = rand(2, 256, 80), rand(2, 64, 160), rand(1, 2, 256, 64)
    yield Case("attention_reduced", {"q": qq, "kv": kv}, {"t": rel},
               [node("TrtOptAttention", ["q", "kv", "t"], ["y"], layout="q_kv", bias=1, mask=0, mask_value=0.0, num_heads=2, scale=40**-0.5, **none)],
               {"y": attention(heads(qq, 2), heads(kv[..., :80], 2), heads(kv[..., 80:], 2), 40**-0.5, rel)})
    bq, bk, bv = rand(2, 3, 50, 64), rand(2, 3, 70, 64), rand(2, 3, 70, 32)
    yield Case("attention_bhnd", {"q": bq, "k": bk, "v": bv}, {},
               [node("TrtOptAttention", ["q", "k", "v"], ["y"], layout="bhnd", bias=0, mask=0, mask_value=0.0, num_heads=3, scale=0.125, **none)],
               {"y": attention(bq, bk, bv, 0.125)})
    for name, rows, c, hidden, extra, norm in (("mlp_block", (2, 784), 192, 768, True, True), ("mlp_block_words", (196, 16), 24, 96, False, True), ("mlp_block_few_rows", (1, 49), 768, 3072, False, True),
                                               ("mlp_block_no_norm", (2, 784), 128, 512, False, False)):
        x, r = rand(*rows, c), rand(*rows, c)
        of_norm = {"g": 1 + rand(c, scale=0.2), "b": rand(c, scale=0.2)} if norm else {}
        constants = {**of_norm, "w1": rand(c, hidden, scale=c**-0.5), "b1": rand(hidden, scale=0.2), "w2": rand(hidden, c, scale=hidden**-0.5), "b2": rand(c, scale=0.2)}
        s = x + r if extra else x
        yield Case(name, {"x": x, "r": r} if extra else {"x": x}, constants,
                   [node("TrtOptMlpBlock", ["x", *(["r"] if extra else []), *constants], ["y"], epsilon=1e-5, residual=int(extra), norm=int(norm), approximate="none")],
                   {"y": mlp(s, list(constants.values()), 1e-5)}, dynamic=extra or not norm)
    for name, patches, n, count, size, hidden, whole in (("tnt_inner_block", 196, 16, 4, 6, 96, 0), ("tnt_inner_block_whole", 64, 16, 4, 4, 64, 1), ("tnt_inner_block_tokens", 12, 49, 4, 8, 128, 0)):
        c = count * size
        axes, row = ((-2, -1), (n, c)) if whole else ((-1,), (c,))
        x = rand(patches, n, c)
        constants = {"g1": 1 + rand(*row, scale=0.2), "bn1": rand(*row, scale=0.2), "w_qkv": rand(c, 3 * c, scale=c**-0.5), "b_qkv": rand(3 * c, scale=0.2),
                     "w_proj": rand(c, c, scale=2 * c**-0.5), "b_proj": rand(c, scale=0.2), "g2": 1 + rand(*row, scale=0.2), "bn2": rand(*row, scale=0.2),
                     "w1": rand(c, hidden, scale=c**-0.5), "b1": rand(hidden, scale=0.2), "w2": rand(hidden, c, scale=hidden**-0.5), "b2": rand(c, scale=0.2)}
        yield Case(name, {"x": x}, constants,
                   [node("TrtOptTntInnerBlock", ["x", *constants], ["y"], epsilon1=1e-5, epsilon2=1e-6, whole=whole, num_heads=count, scale=size**-0.5, approximate="none")],
                   {"y": inner_block(x, list(constants.values()), count, (1e-5, 1e-6), axes)}, dynamic=not whole)
    for name, images, n, begin, covered, k, c, extra in (("tnt_bridge", 2, 197, 1, 196, 384, 384, True), ("tnt_bridge_all", 1, 256, 0, 256, 256, 256, False), ("tnt_bridge_wide", 2, 11, 1, 9, 640, 640, False)):
        x, r, words = rand(images, n, c), rand(images, n, c), rand(images, covered, k)
        constants = {"g1": 1 + rand(k, scale=0.2), "bn1": rand(k, scale=0.2), "w": rand(k, c, scale=k**-0.5), "b": rand(c, scale=0.2), "g2": 1 + rand(c, scale=0.2), "bn2": rand(c, scale=0.2)}
        y = x + r if extra else x.copy()
        y[:, begin:begin + covered] += bridge(words, list(constants.values()), (1e-5, 1e-6))
        yield Case(name, {"x": x, "r": r, "words": words} if extra else {"x": x, "words": words}, constants,
                   [node("TrtOptTntBridge", ["x", *(["r"] if extra else []), "words", *constants], ["y"], epsilon1=1e-5, epsilon2=1e-6, residual=int(extra), begin=begin)],
                   {"y": y}, dynamic=extra)
    for name, images, covered, begin, tokens, n, count, size, hidden, c, layers, after, last, whole, together in (
            ("tnt_words", 1, 196, 1, 197, 16, 4, 6, 96, 384, 4, (0, 1, 2, 3, 4), False, 0, 0), ("tnt_words_given", 2, 12, 1, 14, 16, 4, 6, 96, 64, 3, (1, 3, 3), True, 0, 0),
            ("tnt_words_whole", 2, 16, 0, 16, 16, 4, 4, 64, 96, 2, (1, 2), True, 1, 0), ("tnt_words_stacked", 1, 196, 1, 197, 16, 4, 6, 96, 384, 4, (0, 1, 2, 3, 4), False, 0, 3)):
        inner, patches = count * size, images * covered
        norm, k = (n * inner if whole else inner), n * inner
        x = rand(patches, n, inner)

        def stacked(number, sizes):
            # Scales of norms, then their biases, and products with their offsets.
            return {name: (1 if scale is None else 0) + rand(number, *shape, scale=scale or 0.2) for name, shape, scale in sizes}

        of_layers = stacked(layers, (("g1", (norm,), None), ("bn1", (norm,), 0.2), ("w_qkv", (inner, 3 * inner), inner**-0.5), ("b_qkv", (3 * inner,), 0.2),
                                     ("w_proj", (inner, inner), 2 * inner**-0.5), ("b_proj", (inner,), 0.2), ("g2", (norm,), None), ("bn2", (norm,), 0.2),
                                     ("w1", (inner, hidden), inner**-0.5), ("b1", (hidden,), 0.2), ("w2", (hidden, inner), hidden**-0.5), ("b2", (inner,), 0.2)))
        of_bridges = stacked(len(after), (("bg1", (k,), None), ("bb1", (k,), 0.2), ("bw", (k, c), k**-0.5), ("bb", (c,), 0.2), ("bg2", (c,), None), ("bb2", (c,), 0.2)))
        words = [x]
        for i in range(layers):
            one = [w[i].reshape(n, inner) if whole and name in ("g1", "bn1", "g2", "bn2") else w[i] for name, w in of_layers.items()]
            words.append(inner_block(words[-1], one, count, (1e-5, 1e-6), (-2, -1) if whole else (-1,)))
        outputs = {}
        for j, layer in enumerate(after):
            outputs[f"y{j}"] = np.zeros((images, tokens, c))
            outputs[f"y{j}"][:, begin:begin + covered] = bridge(words[layer].reshape(images, covered, k), [w[j] for w in of_bridges.values()], (1e-6, 1e-5))
        if together:
            outputs["stack"] = np.stack([outputs.pop(f"y{j}") for j in range(len(after) - together, len(after))])
        if last:
            outputs["words"] = words[-1]
        # In a row, each filled up to 16 bytes of float16.
        constants = {"w": np.concatenate([np.pad(w.ravel(), (0, -w.size % 8)) for w in (*of_layers.values(), *of_bridges.values())])}
        yield Case(name, {"x": x}, constants,
                   [node("TrtOptTntWords", ["x", *constants], list(outputs), epsilon1=1e-5, epsilon2=1e-6, whole=whole, num_heads=count, scale=size**-0.5, approximate="none",
                         layers=layers, hidden=hidden, width=k, channels=c, bridge_epsilon1=1e-6, bridge_epsilon2=1e-5, tokens=tokens, begin=begin, covered=covered, after=[*after, *[-1] * (32 - len(after))], words=int(last), stacked=together)],
                   outputs)
    for name, images, channels, (h, w), patch, columns, offset, norm, rank in (("patch_embed", 2, 3, (56, 56), 4, 96, True, True, 4), ("patch_embed_map", 2, 64, (14, 14), 2, 128, True, True, 3), ("patch_embed_16", 1, 3, (64, 48), 16, 384, True, False, 3),
                                                                              ("patch_embed_edges", 2, 3, (19, 23), 4, 64, False, True, 3), ("patch_embed_odd", 1, 5, (9, 9), 3, 50, True, True, 4),
                                                                              ("patch_embed_tokens", 2, 64, (14, 14), 2, 128, True, True, 3), ("patch_embed_tokens_edges", 1, 40, (13, 9), 2, 64, False, True, 4), ("patch_embed_tokens_odd", 2, 5, (9, 9), 3, 50, True, False, 3)):
        x = rand(images, channels, h, w)
        of_tokens, constants = "tokens" in name, {"w": rand(columns, channels, patch, patch, scale=(channels * patch * patch) ** -0.5)}
        gh, gw = h // patch, w // patch
        patches = x[:, :, :gh * patch, :gw * patch].reshape(images, channels, gh, patch, gw, patch).transpose(0, 2, 4, 1, 3, 5).reshape(images, gh, gw, -1)
        y = patches @ constants["w"].reshape(columns, -1).T
        if offset:
            constants["b"] = rand(columns, scale=0.2)
            y = y + constants["b"]
        if norm:
            constants.update({"g": 1 + rand(columns, scale=0.2), "bn": rand(columns, scale=0.2)})
            y = layer_norm(y, constants["g"], constants["bn"], 1e-5, (-1,))
        if of_tokens:
            x, constants["w"] = x.reshape(images, channels, h * w).transpose(0, 2, 1), constants["w"].transpose(0, 2, 3, 1)
        yield Case(name, {"x": x}, constants, [node("TrtOptPatchEmbed", ["x", *constants], ["y"], epsilon=1e-5, bias=int(offset), norm=int(norm), rank=rank, grid=[h, w] if of_tokens else [0, 0])],
                   {"y": y if rank == 4 else y.reshape(images, gh * gw, columns)}, dynamic=rank == 4)
    for name, images, channels, kernel, stride, pad, (gh, gw), (ph, pw), columns, within in (("pixel_embed", 2, 3, 7, 4, 3, (3, 2), (4, 4), 24, True), ("pixel_embed_whole", 2, 3, 7, 4, 3, (3, 2), (4, 4), 24, False),
                                                                                             ("pixel_embed_odd", 1, 2, 5, 3, 2, (2, 4), (2, 3), 13, True)):
        h, w = gh * ph * stride, gw * pw * stride
        x = rand(images, channels, h, w)
        weight, offset = rand(columns, channels, kernel, kernel, scale=(channels * kernel * kernel) ** -0.5), rand(ph * pw, columns, scale=0.2)
        # Images of a patch each, or of all of them.
        parts = x.reshape(images, channels, gh, h // gh, gw, w // gw).transpose(0, 2, 4, 1, 3, 5).reshape(-1, channels, h // gh, w // gw) if within else x
        padded = np.pad(parts, ((0, 0), (0, 0), (pad, kernel), (pad, kernel)))
        rows, across = parts.shape[2] // stride, parts.shape[3] // stride
        seen = np.stack([padded[:, :, i:i + rows * stride:stride, j:j + across * stride:stride] for i in range(kernel) for j in range(kernel)], -1)
        y = np.einsum("bcijk,dck->bijd", seen, weight.reshape(columns, channels, -1))
        if not within:
            y = y.reshape(images, gh, ph, gw, pw, columns).transpose(0, 1, 3, 2, 4, 5)
        yield Case(name, {"x": x}, {"w": np.pad(weight, ((0, 0), (0, 0), (0, 0), (0, 8 - kernel))), "offset": offset},
                   [node("TrtOptPixelEmbed", ["x", "w", "offset"], ["y"], kernel=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 2, grid=[gh, gw], patch=[ph, pw], within=int(within))],
                   {"y": y.reshape(-1, ph * pw, columns) + offset}, dynamic=images == 2)
    for name, images, (gh, gw), window, shift, after, extra, dense in (("swin_attn_block", 2, (28, 28), (7, 7), (3, 3), 0, True, False), ("swin_attn_block_one_window", 1, (7, 7), (7, 7), (0, 0), 0, False, False),
                                                                       ("swin_attn_block_padded", 2, (13, 17), (4, 5), (2, 3), 1, False, False), ("swin_attn_block_dense", 2, (14, 14), (7, 7), (3, 3), 0, True, True)):
        c, count, size = 64, 4, 16
        inner = count * size
        # One of them as a map of rank 4.
        shape = (images, gh, gw, c) if dense else (images, gh * gw, c)
        x, r = rand(*shape), rand(*shape)
        table, mask = rand((2 * window[0] - 1) * (2 * window[1] - 1), count), shift_mask(gh, gw, window, shift, -100.0)
        bias = table_bias(table, *window)
        norm = {"g": 1 + rand(c, scale=0.2), "b": rand(c, scale=0.2), "w_qkv": rand(c, 3 * inner, scale=c**-0.5), "b_qkv": rand(3 * inner, scale=0.2)}
        proj = {"w_proj": rand(inner, c, scale=2 * inner**-0.5), "b_proj": rand(c, scale=0.2)}
        constants = {**norm, **({"t": bias, "m": mask[:, 0]} if dense else {"t": table}), **proj}
        s = x + r if extra else x
        cut = partition(layer_norm(s, norm["g"], norm["b"], 1e-5, (-1,)), gh, gw, window, shift, after) @ norm["w_qkv"] + norm["b_qkv"]
        q, k, v = (heads(cut[..., i * inner:(i + 1) * inner], count) for i in range(3))
        out = attention(q, k, v, size**-0.5, bias + np.tile(mask, (images, 1, 1, 1))) @ proj["w_proj"] + proj["b_proj"]
        kinds = {"bias": 1, "mask": 1, "mask_value": 0.0} if dense else {"bias": 2, "mask": 2 if any(shift) else 0, "mask_value": -100.0}
        yield Case(name, {"x": x, "r": r} if extra else {"x": x}, constants,
                   [node("TrtOptSwinAttnBlock", ["x", *(["r"] if extra else []), *constants], ["y"], epsilon=1e-5, residual=int(extra), num_heads=count, scale=size**-0.5, **kinds,
                         grid=[gh, gw], window=list(window), shift=list(shift), pad_after_roll=after)],
                   {"y": s + reverse(out, gh, gw, window, shift, after).reshape(shape)}, dynamic=extra)
    for name, (images, tokens), c, count, size, extra, dense in (("attn_block", (2, 197), 384, 6, 64, True, False), ("attn_block_words", (196, 16), 24, 4, 6, False, False), ("attn_block_dense", (2, 50), 64, 4, 16, True, True)):
        inner = count * size
        x, r = rand(images, tokens, c), rand(images, tokens, c)
        norm = {"g": 1 + rand(c, scale=0.2), "b": rand(c, scale=0.2), "w_qkv": rand(c, 3 * inner, scale=c**-0.5), "b_qkv": rand(3 * inner, scale=0.2)}
        bias = rand(1, count, tokens, tokens) if dense else 0
        constants = {**norm, **({"t": bias} if dense else {}), "w_proj": rand(inner, c, scale=2 * inner**-0.5), "b_proj": rand(c, scale=0.2)}
        s = x + r if extra else x
        rows = layer_norm(s, norm["g"], norm["b"], 1e-5, (-1,)) @ norm["w_qkv"] + norm["b_qkv"]
        q, k, v = (heads(rows[..., i * inner:(i + 1) * inner], count) for i in range(3))
        out = attention(q, k, v, size**-0.5, bias) @ constants["w_proj"] + constants["b_proj"]
        yield Case(name, {"x": x, "r": r} if extra else {"x": x}, constants,
                   [node("TrtOptAttnBlock", ["x", *(["r"] if extra else []), *constants], ["y"], epsilon=1e-5, residual=int(extra), num_heads=count, scale=size**-0.5, bias=int(dense))],
                   {"y": s + out}, dynamic=extra)
    for name, images, (gh, gw), (ph, pw), c, count, size, extra, dense in (("pooled_attn_block", 2, (16, 16), (2, 2), 256, 8, 32, True, True), ("pooled_attn_block_wide", 1, (32, 32), (4, 4), 128, 4, 32, False, True),
                                                                          ("pooled_attn_block_steps", 2, (6, 12), (3, 2), 72, 3, 24, True, False)):
        inner, tokens, pooled = count * size, gh * gw, gh // ph * (gw // pw)
        x, r = rand(images, tokens, c), rand(images, tokens, c)
        matrices = {"w_q": rand(c, inner, scale=c**-0.5), "w_pool": rand(c, c, scale=c**-0.5), "w_kv": rand(c, 2 * inner, scale=c**-0.5), "w_proj": rand(inner, c, scale=2 * inner**-0.5)}
        g1, b1, bq, bpool, g2, b2, bkv, bproj = vectors = [1 + rand(c, scale=0.2), rand(c, scale=0.2), rand(inner, scale=0.2), rand(c, scale=0.2), 1 + rand(c, scale=0.2), rand(c, scale=0.2), rand(2 * inner, scale=0.2), rand(c, scale=0.2)]
        bias = rand(1, count, tokens, pooled) if dense else 0
        constants = {**matrices, "vectors": np.concatenate(vectors), **({"t": bias} if dense else {})}
        s = x + r if extra else x
        normal = layer_norm(s, g1, b1, 1e-5, (-1,))
        means = normal.reshape(images, gh // ph, ph, gw // pw, pw, c).mean((2, 4)).reshape(images, pooled, c)
        kv = layer_norm(means @ matrices["w_pool"] + bpool, g2, b2, 1e-5, (-1,)) @ matrices["w_kv"] + bkv
        out = attention(heads(normal @ matrices["w_q"] + bq, count), heads(kv[..., :inner], count), heads(kv[..., inner:], count), size**-0.5, bias) @ matrices["w_proj"] + bproj
        yield Case(name, {"x": x, "r": r} if extra else {"x": x}, constants,
                   [node("TrtOptPooledAttnBlock", ["x", *(["r"] if extra else []), *constants], ["y"], epsilon=1e-5, pool_epsilon=1e-5, residual=int(extra), grid=[gh, gw], pool=[ph, pw], num_heads=count, scale=size**-0.5,
                         bias=int(dense))], {"y": s + out}, dynamic=images == 2)
    # `before`: channels of twice the map, of which a patch merge is ahead; 0: none is.
    for name, images, (gh, gw), window, shift, shifted, c, count, size, hidden, dense, added, before in (
            ("block_chain", 2, (14, 14), (7, 7), (3, 3), (0, 1, 0), 96, 3, 32, 384, True, False, 0), ("block_chain_one_window", 1, (7, 7), (7, 7), (0, 0), (0, 0), 256, 8, 32, 512, True, False, 0),
            ("block_chain_uneven", 2, (8, 6), (4, 3), (1, 2), (1, 0), 48, 2, 32, 80, False, False, 0), ("block_chain_tokens", 2, (1, 197), None, (0, 0), (0, 0), 192, 3, 64, 768, False, False, 0),
            ("block_chain_tokens_bias", 1, (1, 50), None, (0, 0), (0,), 64, 2, 32, 256, True, False, 0), ("block_chain_between", 1, (1, 197), None, (0, 0), (0, 0, 0), 384, 6, 64, 1536, False, True, 0),
            ("block_chain_merged", 2, (14, 14), (7, 7), (3, 3), (0, 1), 96, 3, 32, 384, True, False, 48), ("block_chain_merged_odd", 1, (7, 7), (7, 7), (0, 0), (0,), 256, 8, 32, 512, True, False, 192)):
        inner, tokens = count * size, window[0] * window[1] if window else gw
        row = -(-tokens // 8) * 8
        # One of them as a map of rank 4.
        shape = (images, gh, gw, c) if name == "block_chain_uneven" else (images, gh * gw, c)
        weights, vectors = [], []
        if before:
            # One of them as a map of rank 4, of an odd height.
            odd = int(name == "block_chain_merged_odd")
            fine, order = (2 * gh - odd, 2 * gw), [0, 2, 1, 3]
            x = rand(images, *fine, before)
            quads = np.concatenate([np.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0)))[:, q // 2::2, q % 2::2] for q in order], -1).reshape(images, gh * gw, 4 * before)
            w, b = rand(4 * before, c, scale=0.5 * before**-0.5), rand(c, scale=0.2)
            sums = w.astype(np.float16).astype(np.float64).sum(0)
            first = sums.astype(np.float16)
            weights, vectors = [packed(w)], [b, first.astype(np.float32), (sums - first).astype(np.float16).astype(np.float32)]
            y = layer_norm(quads, 1, 0, 1e-5, (-1,)) @ w + b
            x, shape = (x, (images, gh, gw, c)) if odd else (x.reshape(images, -1, before), shape)
        else:
            x = rand(*shape)
            y = x.reshape(images, gh * gw, c)
        between = rand(len(shifted) - 1, images, gh * gw, c) if added else []
        for pair, of in enumerate(shifted):
            w_qkv, b_qkv, w_proj, b_proj = rand(c, 3 * inner, scale=c**-0.5), rand(3 * inner, scale=0.2), rand(inner, c, scale=2 * inner**-0.5), rand(c, scale=0.2)
            w1, b1, w2, b2 = rand(c, hidden, scale=c**-0.5), rand(hidden, scale=0.2), rand(hidden, c, scale=hidden**-0.5), rand(c, scale=0.2)
            bias = rand(1, count, tokens, tokens) if dense else 0
            weights += [packed(w) for w in (w_qkv, w_proj, w1, w2)]
            vectors += [b_qkv, *([np.pad(bias, ((0, 0),) * 3 + ((0, row - tokens),)).ravel()] if dense else []), b_proj, b1, b2]
            rows, by = layer_norm(y, 1, 0, 1e-5, (-1,)), shift if of else (0, 0)
            if window:
                rows = partition(rows, gh, gw, window, by, 0)
                bias = bias + np.tile(shift_mask(gh, gw, window, by, -100.0), (images, 1, 1, 1))
            rows = rows @ w_qkv + b_qkv
            q, k, v = (heads(rows[..., i * inner:(i + 1) * inner], count) for i in range(3))
            out = attention(q, k, v, size**-0.5, bias) @ w_proj + b_proj
            y = mlp(y + (reverse(out, gh, gw, window, by, 0) if window else out), (1, 0, w1, b1, w2, b2), 1e-5)
            if pair < len(between):
                y = y + between[pair]
        grid = {"grid": [gh, gw], "window": list(window), "shift": list(shift)} if window else none
        yield Case(name, {"x": x, "b": between} if added else {"x": x}, {"w": np.concatenate(weights), "v": np.concatenate(vectors)},
                   [node("TrtOptBlockChain", ["x", "w", "v", *(["b"] if added else [])], ["y"], epsilon=1e-5, num_heads=count, head_dim=size, hidden=hidden, scale=size**-0.5, approximate="none", bias=int(dense),
                         mask_value=-100.0, **grid, pad_after_roll=0, shifted=[*shifted, *[-1] * (32 - len(shifted))], between=int(added),
                         merged=c if before else 0, merged_grid=list(fine) if before else [0, 0], order=order if before else [0] * 4)],
                   {"y": y.reshape(shape)}, dynamic=images == 2)


def check(args, builders, case, folder):
    """Results of a case in both precisions."""
    os.makedirs(folder, exist_ok=True)
    case.save(f"{folder}/model.onnx")
    files = {}
    for name, a in case.inputs.items():
        files[name] = f"{folder}/{name}.in.npy"
        np.save(files[name], a.astype(np.float32))
    results = {}
    builder = builders.get()
    for precision in ("fp32", "fp16"):
        results[precision] = {"case": case.name, "precision": precision, "pass": False, "errors": {}}
        code, error = builder.build(engines.build_arguments(
            args, f"{folder}/model.onnx", f"{folder}/{precision}.engine", case.inputs, plugins=True, fp16=precision == "fp16", layers=f"{folder}/{precision}.layers.json"))
        if code not in engines.BUILT:
            results[precision]["log"] = f"build: exit {code}: {error}"
    builders.put(builder)
    built = [precision for precision, result in results.items() if "log" not in result]
    try:
        measured = engines.bench(args, [f"{folder}/{precision}.engine" for precision in built], files, folder, rounds=5) if built else {}
        for precision, numbers in measured.items():
            # Several cases run at a time, so their times mean nothing.
            result = results[precision]
            result |= {key: value for key, value in numbers.items() if not key.endswith("_us")}
            for name, ref in case.outputs.items():
                got = np.load(f"{folder}/{precision}/{name}.npy").astype(np.float64)
                result["errors"][name] = float(np.linalg.norm(got - ref) / np.linalg.norm(ref)) if got.shape == ref.shape else float("inf")
            result["pass"] = all(error <= (1e-5 if precision == "fp32" else 2e-3) for error in result["errors"].values())
    except (RuntimeError, OSError) as e:
        for precision in built:
            results[precision]["log"] = str(e)[-900:]
    return list(results.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines.add_arguments(parser)
    parser.add_argument("--json")
    parser.add_argument("--work")
    parser.add_argument("--jobs", type=int, default=4, help="builders at a time")
    args = parser.parse_args()
    work = args.work or tempfile.mkdtemp()
    os.makedirs(work, exist_ok=True)
    builders = queue.Queue()
    for _ in range(args.jobs):
        builders.put(engines.Builder(args))
    with concurrent.futures.ThreadPoolExecutor(2 * args.jobs) as pool:
        results = []
        for outcome in pool.map(lambda case: check(args, builders, case, os.path.join(work, case.name)), list(cases())):
            for result in outcome:
                print(result["case"], result["precision"], "ok" if result["pass"] else "FAIL", result["errors"], result.get("kernels", ""), result.get("log", ""), flush=True)
            results += outcome
    if args.json:
        with open(args.json, "w") as f:
            json.dump(results, f, indent=1)
    failed = sum(not r["pass"] for r in results)
    print(f"{len(results)} graphs, {failed} failed")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
