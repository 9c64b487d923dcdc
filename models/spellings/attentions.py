"""Self-attention: how heads are split, where the scale sits, how bias and mask are added."""

import numpy as np

from .graph import INT64_MAX, Spelling

ALL = []
B, N, C, H = 2, 6, 24, 3
D = C // H
SCALE = D**-0.5


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heads(x, count, width):
    return x.reshape(*x.shape[:-1], count, width).swapaxes(-2, -3)


def attend(q, k, v, bias=0.0, scale=SCALE):
    y = (softmax(q @ k.swapaxes(-1, -2) * scale + bias) @ v).swapaxes(1, 2)
    return y.reshape(*y.shape[:2], -1)


def packed(x, w, bias=0.0, scale=SCALE):
    q, k, v = np.split(x @ w["qkv"] + w["qkv_bias"], 3, -1)
    return attend(*(heads(t, H, D) for t in (q, k, v)), bias, scale) @ w["proj"]


def spelling(name, opset=17, shape=(B, N, C), dtype=np.float32, ref=packed):
    def register(write):
        ALL.append(Spelling(name, opset, shape, write, ref, dtype))
        return write

    return register


def linear(net, x, key, width, out, bias=True):
    y = net.op("MatMul", x, net.weight(key, width, out, scale=width**-0.5))
    return net.op("Add", net.weight(f"{key}_bias", out, scale=0.2), y) if bias else y


def five(net):
    """[B, N, 3, h, d] moved to [3, B, h, N, d]."""
    x = net.reshape(linear(net, "x", "qkv", C, 3 * C), B, N, 3, H, D)
    return net.op("Transpose", x, perm=[2, 0, 3, 1, 4])


def gathered(net):
    x = five(net)
    return [net.op("Gather", x, net.scalar(i, np.int64), axis=0) for i in range(3)]


def project(net, y, n=N):
    y = net.op("Transpose", y, perm=[0, 2, 1, 3])
    return linear(net, net.reshape(y, B, n, C), "proj", C, C, bias=False)


def transposed(net, k):
    return net.op("Transpose", k, perm=[0, 1, 3, 2])


def scores(net, q, k, scale=SCALE):
    return net.op("Mul", net.op("MatMul", q, transposed(net, k)), net.scalar(scale))


def finish(net, logits, v, axis=-1):
    return project(net, net.op("MatMul", net.op("Softmax", logits, axis=axis), v))


@spelling("attention_gather")
def _(net):
    q, k, v = gathered(net)
    return finish(net, scores(net, q, k), v)


@spelling("attention_split_squeeze")
def _(net):
    parts = net.op("Split", five(net), net.ints(1, 1, 1), outputs=3, axis=0)
    q, k, v = (net.op("Squeeze", p, net.ints(0)) for p in parts)
    return finish(net, scores(net, q, k), v)


@spelling("attention_slice_squeeze")
def _(net):
    x = five(net)
    q, k, v = (net.op("Squeeze", net.slice(x, 0, i, i + 1), net.ints(0)) for i in range(3))
    return finish(net, scores(net, q, k), v)


@spelling("attention_split_channels")
def _(net):
    x = linear(net, "x", "qkv", C, 3 * C)
    q, k, v = (
        net.op("Transpose", net.reshape(p, 0, 0, H, D), perm=[0, 2, 1, 3])
        for p in net.op("Split", x, outputs=3, axis=-1)
    )
    return finish(net, scores(net, q, k), v)


@spelling("attention_split_then_transpose")
def _(net):
    x = net.reshape(linear(net, "x", "qkv", C, 3 * C), B, N, 3, H, D)
    q, k, v = (
        net.op("Transpose", net.op("Gather", x, net.scalar(i, np.int64), axis=2), perm=[0, 2, 1, 3])
        for i in range(3)
    )
    return finish(net, scores(net, q, k), v)


def _separate_reference(x, w):
    q, k, v = (heads(x @ w[n] + w[f"{n}_bias"], H, D) for n in "qkv")
    return attend(q, k, v) @ w["proj"]


def one(net, x, key, perm=(0, 2, 1, 3), n=N):
    return net.op("Transpose", net.reshape(linear(net, x, key, C, C), B, n, H, D), perm=list(perm))


@spelling("attention_q_k_v", ref=_separate_reference)
def _(net):
    q, k, v = (one(net, "x", n) for n in "qkv")
    return finish(net, scores(net, q, k), v)


@spelling("attention_key_transposed_once", ref=_separate_reference)
def _(net):
    q, k, v = one(net, "x", "q"), one(net, "x", "k", (0, 2, 3, 1)), one(net, "x", "v")
    logits = net.op("Mul", net.op("MatMul", q, k), net.scalar(SCALE))
    return finish(net, logits, v)


def _joint_qk_reference(x, w):
    q, k = np.split(x @ w["qk"], 2, -1)
    return attend(heads(q, H, D), heads(k, H, D), heads(x @ w["v"], H, D)) @ w["proj"]


@spelling("attention_qk_v", ref=_joint_qk_reference)
def _(net):
    x = net.reshape(linear(net, "x", "qk", C, 2 * C, bias=False), B, N, 2, H, D)
    x = net.op("Transpose", x, perm=[2, 0, 3, 1, 4])
    q, k = (net.op("Gather", x, net.scalar(i, np.int64), axis=0) for i in range(2))
    v = net.reshape(linear(net, "x", "v", C, C, bias=False), B, N, H, -1)
    return finish(net, scores(net, q, k), net.op("Transpose", v, perm=[0, 2, 1, 3]))


def _wide_value_reference(x, w):
    q, k = np.split(x @ w["qk"], 2, -1)
    return attend(heads(q, H, D), heads(k, H, D), heads(x @ w["v"], H, 2 * D)) @ w["out"]


@spelling("attention_qk_v_wide", ref=_wide_value_reference)
def _(net):
    x = net.reshape(linear(net, "x", "qk", C, 2 * C, bias=False), B, N, 2, H, D)
    x = net.op("Transpose", x, perm=[2, 0, 3, 1, 4])
    q, k = (net.op("Gather", x, net.scalar(i, np.int64), axis=0) for i in range(2))
    v = net.reshape(linear(net, "x", "v", C, 2 * C, bias=False), B, N, H, 2 * D)
    v = net.op("Transpose", v, perm=[0, 2, 1, 3])
    out = net.op("MatMul", net.op("Softmax", scores(net, q, k), axis=-1), v)
    out = net.reshape(net.op("Transpose", out, perm=[0, 2, 1, 3]), B, N, 2 * C)
    return net.op("MatMul", out, net.weight("out", 2 * C, C, scale=0.2))


def _value_elsewhere_reference(x, w):
    q, k = (heads(x @ w[n] + w[f"{n}_bias"], H, D) for n in "qk")
    v = heads(np.tanh(x) @ w["v"] + w["v_bias"], H, D)
    return attend(q, k, v) @ w["proj"]


@spelling("attention_q_k_v_value_elsewhere", ref=_value_elsewhere_reference)
def _(net):
    q, k = one(net, "x", "q"), one(net, "x", "k")
    return finish(net, scores(net, q, k), one(net, net.op("Tanh", "x"), "v"))


def _query_elsewhere_reference(x, w):
    k, v = (heads(x @ w[n] + w[f"{n}_bias"], H, D) for n in "kv")
    q = heads(np.tanh(x) @ w["q"] + w["q_bias"], H, D)
    return attend(q, k, v) @ w["proj"]


@spelling("attention_q_k_v_query_elsewhere", ref=_query_elsewhere_reference)
def _(net):
    k, v = one(net, "x", "k"), one(net, "x", "v")
    return finish(net, scores(net, one(net, net.op("Tanh", "x"), "q"), k), v)


def _no_key_bias_reference(x, w):
    q, v = (heads(x @ w[n] + w[f"{n}_bias"], H, D) for n in "qv")
    return attend(q, heads(x @ w["k"], H, D), v) @ w["proj"]


@spelling("attention_q_k_v_no_key_bias", ref=_no_key_bias_reference)
def _(net):
    k = net.reshape(linear(net, "x", "k", C, C, bias=False), B, N, H, D)
    k = net.op("Transpose", k, perm=[0, 2, 1, 3])
    return finish(net, scores(net, one(net, "x", "q"), k), one(net, "x", "v"))


def _query_read_twice_reference(x, w):
    q = x @ w["q"] + w["q_bias"]
    k, v = (heads(x @ w[n] + w[f"{n}_bias"], H, D) for n in "kv")
    return attend(heads(q, H, D), k, v) @ w["proj"] + np.tanh(q)


@spelling("attention_q_k_v_query_read_twice", ref=_query_read_twice_reference)
def _(net):
    flat = linear(net, "x", "q", C, C)
    q = net.op("Transpose", net.reshape(flat, B, N, H, D), perm=[0, 2, 1, 3])
    k, v = one(net, "x", "k"), one(net, "x", "v")
    return net.op("Add", finish(net, scores(net, q, k), v), net.op("Tanh", flat))


def _pooled_reference(x, w):
    short = x.reshape(B, N // 2, 2, C).mean(2)
    k, v = np.split(short @ w["kv"], 2, -1)
    q = heads(x @ w["q"], H, D)
    return attend(q, heads(k, H, D), heads(v, H, D), w["relative_pos"]) @ w["proj"]


@spelling("attention_q_kv_pooled", ref=_pooled_reference)
def _(net):
    short = net.op("ReduceMean", net.reshape("x", B, N // 2, 2, C), axes=[2], keepdims=0)
    x = net.reshape(linear(net, short, "kv", C, 2 * C, bias=False), B, -1, 2, H, D)
    x = net.op("Transpose", x, perm=[2, 0, 3, 1, 4])
    k, v = (net.op("Gather", x, net.scalar(i, np.int64), axis=0) for i in range(2))
    q = net.reshape(linear(net, "x", "q", C, C, bias=False), B, N, H, D)
    q = net.op("Transpose", q, perm=[0, 2, 1, 3])
    bias = net.weight("relative_pos", 1, H, N, N // 2)
    return finish(net, net.op("Add", scores(net, q, k), bias), v)


@spelling("attention_scale_on_query")
def _(net):
    q, k, v = gathered(net)
    q = net.op("Mul", q, net.scalar(SCALE))
    return finish(net, net.op("MatMul", q, transposed(net, k)), v)


@spelling("attention_scale_on_key")
def _(net):
    q, k, v = gathered(net)
    k = net.op("Mul", net.scalar(SCALE), transposed(net, k))
    return finish(net, net.op("MatMul", q, k), v)


@spelling("attention_scale_shape_1")
def _(net):
    q, k, v = gathered(net)
    logits = net.op("Mul", net.op("MatMul", q, transposed(net, k)), net.const([SCALE]))
    return finish(net, logits, v)


@spelling("attention_div_sqrt_d")
def _(net):
    q, k, v = gathered(net)
    logits = net.op("Div", net.op("MatMul", q, transposed(net, k)), net.op("Sqrt", net.scalar(float(D))))
    return finish(net, logits, v)


@spelling("attention_no_scale", ref=lambda x, w: packed(x, w, scale=1.0))
def _(net):
    q, k, v = gathered(net)
    return finish(net, net.op("MatMul", q, transposed(net, k)), v)


@spelling("attention_sqrt_scale_both", opset=18)
def _(net):
    q, k, v = gathered(net)
    k = net.reshape(net.op("Transpose", net.reshape(k, -1, N, D), perm=[0, 2, 1]), B, H, D, N)
    q = net.op("Mul", q, net.const([SCALE**0.5]))
    k = net.op("Mul", k, net.const([SCALE**0.5]))
    return finish(net, net.op("MatMul", q, k), v)


@spelling("attention_sqrt_scale_from_shape", opset=14)
def _(net):
    q, k, v = gathered(net)
    width = net.op("Slice", net.op("Shape", q), net.ints(-1, node=True), net.ints(INT64_MAX, node=True))
    root = net.op("Sqrt", net.cast(width, np.float32))
    root = net.op("Sqrt", net.op("Div", net.const([1.0], node=True), net.cast(root, np.float32)))
    q, k = net.op("Mul", q, root), net.op("Mul", transposed(net, k), root)
    return finish(net, net.op("MatMul", q, k), v)


@spelling("attention_op23", opset=23)
def _(net):
    return project(net, net.op("Attention", *gathered(net), scale=SCALE))


@spelling("attention_op23_mask", opset=23, ref=lambda x, w: packed(x, w, w["mask"]))
def _(net):
    mask = net.weight("mask", 1, H, N, N)
    return project(net, net.op("Attention", *gathered(net), mask))


@spelling("attention_op23_rank3", opset=23)
def _(net):
    q, k, v = net.op("Split", linear(net, "x", "qkv", C, 3 * C), outputs=3, axis=-1, num_outputs=3)
    y = net.op("Attention", q, k, v, q_num_heads=H, kv_num_heads=H)
    return linear(net, y, "proj", C, C, bias=False)


@spelling("attention_isnan_guard", opset=18)
def _(net):
    q, k, v = gathered(net)
    p = net.op("Softmax", scores(net, q, k), axis=-1)
    p = net.op("Where", net.op("IsNaN", p), net.scalar(0.0), p)
    return project(net, net.op("MatMul", p, v))


@spelling("attention_softmax_cast", dtype=np.float16)
def _(net):
    q, k, v = gathered(net)
    p = net.op("Softmax", net.cast(scores(net, q, k), np.float32), axis=-1)
    return project(net, net.op("MatMul", net.cast(p, np.float16), v))


@spelling("attention_softmax_positive_axis")
def _(net):
    q, k, v = gathered(net)
    return finish(net, scores(net, q, k), v, axis=3)


@spelling("attention_softmax_default_axis")
def _(net):
    q, k, v = gathered(net)
    return finish(net, scores(net, q, k), v, axis=None)


@spelling("attention_softmax_opset11", opset=11)
def _(net):
    q, k, v = gathered(net)
    return finish(net, scores(net, q, k), v, axis=3)


@spelling("attention_einsum")
def _(net):
    q, k, v = gathered(net)
    logits = net.op("Mul", net.op("Einsum", q, k, equation="bhnd,bhmd->bhnm"), net.scalar(SCALE))
    p = net.op("Softmax", logits, axis=-1)
    y = net.op("Einsum", p, v, equation="bhnm,bhmd->bnhd")
    return linear(net, net.reshape(y, B, N, C), "proj", C, C, bias=False)


@spelling("attention_bias_constant", ref=lambda x, w: packed(x, w, w["bias"]))
def _(net):
    q, k, v = gathered(net)
    return finish(net, net.op("Add", scores(net, q, k), net.weight("bias", 1, H, N, N)), v)


# Below opset 13 Softmax flattens from its axis, which without the attribute is 1: all heads together.
@spelling("not_attention_softmax_flattened", opset=11, ref=None)
def _(net):
    q, k, v = gathered(net)
    return finish(net, scores(net, q, k), v, axis=None)


@spelling("not_attention_query_axis", ref=None)
def _(net):
    q, k, v = gathered(net)
    return finish(net, scores(net, q, k), v, axis=2)


@spelling("not_attention_scale_per_head", ref=None)
def _(net):
    q, k, v = gathered(net)
    logits = net.op("MatMul", q, transposed(net, k))
    return finish(net, net.op("Mul", logits, net.weight("temperature", H, 1, 1, scale=0.2, shift=0.5)), v)


@spelling("not_attention_probabilities_output", ref=None)
def _(net):
    q, k, v = gathered(net)
    p = net.op("Softmax", scores(net, q, k), axis=-1)
    return project(net, net.op("MatMul", p, v)), p


# N equals d here, so that a key that was never transposed still multiplies.
@spelling("not_attention_key_not_transposed", shape=(B, D, C), ref=None)
def _(net):
    x = net.reshape(linear(net, "x", "qkv", C, 3 * C), B, D, 3, H, D)
    x = net.op("Transpose", x, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", x, net.scalar(i, np.int64), axis=0) for i in range(3))
    logits = net.op("Mul", net.op("MatMul", q, k), net.scalar(SCALE))
    return project(net, net.op("MatMul", net.op("Softmax", logits, axis=-1), v), n=D)


# Window attention: two images of an 8x8 map in four windows of 4x4, two heads of 4.
WINDOW = dict(shape=(8, 16, 8))
WN, WH, WD = 16, 2, 4


def window_index():
    y, x = np.divmod(np.arange(WN), 4)
    return (y[:, None] - y[None] + 3) * 7 + (x[:, None] - x[None] + 3)


def shift_regions():
    """Region of every token of a map shifted by 2, window by window."""
    line = np.array([0] * 4 + [1] * 2 + [2] * 2)
    grid = line[:, None] * 3 + line[None]
    return grid.reshape(2, 4, 2, 4).swapaxes(1, 2).reshape(4, WN)


def shift_mask():
    region = shift_regions()
    return np.where(region[:, None] != region[:, :, None], -100.0, 0.0)


def windowed(x, w, mask=False):
    q, k, v = (heads(t, WH, WD) for t in np.split(x @ w["qkv"] + w["qkv_bias"], 3, -1))
    bias = w["table"][window_index()].transpose(2, 0, 1)[None]
    if mask:
        bias = bias + np.tile(shift_mask()[:, None], (2, 1, 1, 1))
    return attend(q, k, v, bias, WD**-0.5)


def window_scores(net):
    x = net.reshape(linear(net, "x", "qkv", 8, 24), 8, WN, 3, WH, WD)
    x = net.op("Transpose", x, perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", x, net.scalar(i, np.int64), axis=0) for i in range(3))
    q = net.op("Mul", q, net.scalar(WD**-0.5))
    return net.op("MatMul", q, transposed(net, k)), v


def table_bias(net):
    flat = net.op("Gather", net.weight("table", 49, WH), net.const(window_index().ravel(), np.int64), axis=0)
    bias = net.op("Transpose", net.reshape(flat, WN, WN, -1), perm=[2, 0, 1])
    return net.op("Unsqueeze", bias, net.ints(0))


def window_finish(net, logits, v):
    y = net.op("MatMul", net.op("Softmax", logits, axis=-1), v)
    return net.reshape(net.op("Transpose", y, perm=[0, 2, 1, 3]), 8, WN, 8)


def masked(net, logits, mask):
    wide = net.reshape(net.op("Add", logits, table_bias(net)), -1, 4, WH, WN, WN)
    return net.reshape(net.op("Add", wide, mask), -1, WH, WN, WN)


@spelling("attention_bias_table_gather", **WINDOW, ref=windowed)
def _(net):
    logits, v = window_scores(net)
    return window_finish(net, net.op("Add", logits, table_bias(net)), v)


@spelling("attention_bias_table_gather_2d", **WINDOW, ref=windowed)
def _(net):
    logits, v = window_scores(net)
    bias = net.op("Gather", net.weight("table", 49, WH), net.const(window_index(), np.int64), axis=0)
    bias = net.op("Transpose", bias, perm=[2, 0, 1])
    return window_finish(net, net.op("Add", logits, bias), v)


@spelling("attention_window_mask", **WINDOW, ref=lambda x, w: windowed(x, w, True))
def _(net):
    logits, v = window_scores(net)
    return window_finish(net, masked(net, logits, net.const(shift_mask()[None, :, None])), v)


@spelling("attention_window_mask_unsqueezed", **WINDOW, ref=lambda x, w: windowed(x, w, True))
def _(net):
    logits, v = window_scores(net)
    mask = net.op("Unsqueeze", net.op("Unsqueeze", net.const(shift_mask()), net.ints(1)), net.ints(0))
    return window_finish(net, masked(net, logits, mask), v)


@spelling("attention_window_mask_in_graph", opset=18, **WINDOW, ref=lambda x, w: windowed(x, w, True))
def _(net):
    """The mask built as torchvision does: nine assignments into a map of regions."""
    logits, v = window_scores(net)
    regions = net.op("ConstantOfShape", net.ints(8, 8))
    spans = (range(0, 4), range(4, 6), range(6, 8))
    for count, (rows, columns) in enumerate((r, c) for r in spans for c in spans):
        at = np.array([[[y, x] for x in columns] for y in rows], dtype=np.int64)
        regions = net.op("ScatterND", regions, net.const(at, np.int64),
                         net.const(np.full(at.shape[:2], count)))
    tiles = net.op("Transpose", net.reshape(regions, 2, 4, 2, 4), perm=[0, 2, 1, 3])
    tiles = net.reshape(tiles, 4, WN)
    gap = net.op("Sub", net.op("Unsqueeze", tiles, net.ints(1)), net.op("Unsqueeze", tiles, net.ints(2)))
    other = net.op("Not", net.op("Equal", gap, net.scalar(0.0)))
    mask = net.op("Where", other, net.scalar(-100.0), gap)
    mask = net.op("Where", net.op("Equal", gap, net.scalar(0.0)), net.scalar(0.0), mask)
    mask = net.op("Unsqueeze", net.op("Unsqueeze", mask, net.ints(1)), net.ints(0))
    return window_finish(net, masked(net, logits, mask), v)


@spelling("not_attention_mask_of_other_windows", **WINDOW, ref=None)
def _(net):
    """A valid dense mask, but not the shift mask: the windows come in another order."""
    logits, v = window_scores(net)
    return window_finish(net, masked(net, logits, net.const(shift_mask()[None, [1, 0, 3, 2], None])), v)
