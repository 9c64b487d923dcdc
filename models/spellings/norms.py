"""Layer norm: its parts take turns in the ways that exporters and hand-written models spell them."""

from functools import partial

import numpy as np

from .graph import INT64_MAX, Spelling

ALL = []
EPS = 1e-5
SHAPE = (2, 5, 16)


def reference(x, w, axes=(-1,)):
    centred = x - x.mean(axes, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + EPS)
    return y * w.get("scale", 1.0) + w.get("bias", 0.0)


def spelling(name, opset=13, shape=SHAPE, dtype=np.float32, ref=reference):
    def register(write):
        ALL.append(Spelling(name, opset, shape, write, ref, dtype))
        return write

    return register


def mean(net, x, axes=(-1,), keepdims=None):
    """ReduceMean as its opset wants it: axes as attribute below 18, as input from 18."""
    if net.opset < 18:
        return net.op("ReduceMean", x, axes=list(axes), keepdims=keepdims)
    return net.op("ReduceMean", x, net.ints(*axes), keepdims=keepdims)


def affine(net, y, width=16):
    scaled = net.op("Mul", y, net.weight("scale", width, scale=0.2, shift=1.0))
    return net.op("Add", scaled, net.weight("bias", width, scale=0.2))


def deviation(net, centred, square=None, axes=(-1,), keepdims=None):
    square = square or net.op("Pow", centred, net.scalar(2.0))
    variance = mean(net, square, axes, keepdims)
    return net.op("Sqrt", net.op("Add", variance, net.scalar(EPS)))


def normalized(net, x, axes=(-1,), keepdims=None):
    centred = net.op("Sub", x, mean(net, x, axes, keepdims))
    return net.op("Div", centred, deviation(net, centred, None, axes, keepdims))


@spelling("layernorm_decomposed")
def _(net):
    return affine(net, normalized(net, "x"))


@spelling("layernorm_keepdims_written")
def _(net):
    return affine(net, normalized(net, "x", keepdims=1))


@spelling("layernorm_identity_weights")
def _(net):
    scale = net.op("Identity", net.weight("scale", 16, scale=0.2, shift=1.0))
    bias = net.op("Identity", net.weight("bias", 16, scale=0.2))
    return net.op("Add", net.op("Mul", normalized(net, "x"), scale), bias)


@spelling("layernorm_positive_axis")
def _(net):
    return affine(net, normalized(net, "x", axes=(2,)))


@spelling("layernorm_axes_input", opset=18)
def _(net):
    def reduced(x):
        return net.op("ReduceMean", x, net.ints(-1), keepdims=1, noop_with_empty_axes=0)

    centred = net.op("Sub", "x", reduced("x"))
    variance = reduced(net.op("Mul", centred, centred))
    return affine(net, net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.const([EPS])))))


@spelling("layernorm_double", dtype=np.float16)
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    wide = net.cast(centred, np.float64)
    variance = mean(net, net.op("Pow", wide, net.scalar(2.0, np.float64)))
    root = net.op("Sqrt", net.op("Add", variance, net.scalar(EPS, np.float64)))
    return affine(net, net.cast(net.op("Div", wide, root), np.float16))


@spelling("layernorm_double_exponent_f32", dtype=np.float16)
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    wide = net.cast(centred, np.float64)
    variance = mean(net, net.op("Pow", wide, net.scalar(2.0, np.float32)))
    root = net.op("Sqrt", net.op("Add", variance, net.scalar(EPS, np.float64)))
    return affine(net, net.cast(net.op("Div", wide, root), np.float16))


def _wide_constants(net):
    """Weights as fp32 copies, for a norm computed in fp32 inside an fp16 graph."""
    scale = net.cast(net.weight("scale", 16, scale=0.2, shift=1.0), np.float32)
    return scale, net.cast(net.weight("bias", 16, scale=0.2), np.float32)


@spelling("layernorm_cast_around", dtype=np.float16)
def _(net):
    wide = net.cast("x", np.float32)
    centred = net.op("Sub", wide, mean(net, wide))
    variance = mean(net, net.op("Pow", centred, net.scalar(2.0, np.float32)))
    root = net.op("Sqrt", net.op("Add", variance, net.scalar(EPS, np.float32)))
    scale, bias = _wide_constants(net)
    y = net.op("Add", net.op("Mul", net.op("Div", centred, root), scale), bias)
    return net.cast(y, np.float16)


@spelling("layernorm_cast_inside_affine", dtype=np.float16)
def _(net):
    wide = net.cast("x", np.float32)
    centred = net.op("Sub", wide, mean(net, wide))
    variance = mean(net, net.op("Pow", centred, net.scalar(2.0, np.float32)))
    root = net.op("Sqrt", net.op("Add", variance, net.scalar(EPS, np.float32)))
    return affine(net, net.cast(net.op("Div", centred, root), np.float16))


@spelling("layernorm_native_cast_around", opset=17, dtype=np.float16)
def _(net):
    scale, bias = _wide_constants(net)
    y = net.op("LayerNormalization", net.cast("x", np.float32), scale, bias, axis=-1, epsilon=EPS)
    return net.cast(y, np.float16)


@spelling("layernorm_no_affine")
def _(net):
    return normalized(net, "x")


@spelling("layernorm_scale_only")
def _(net):
    return net.op("Mul", normalized(net, "x"), net.weight("scale", 16, scale=0.2, shift=1.0))


@spelling("layernorm_duplicate_sub")
def _(net):
    u = mean(net, "x")
    top, below = net.op("Sub", "x", u), net.op("Sub", "x", u)
    return affine(net, net.op("Div", top, deviation(net, below)))


@spelling("layernorm_duplicate_mean")
def _(net):
    top = net.op("Sub", "x", mean(net, "x"))
    below = net.op("Sub", "x", mean(net, "x"))
    return affine(net, net.op("Div", top, deviation(net, below)))


@spelling("layernorm_cast_before_pow")
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    square = net.op("Pow", net.cast(centred, np.float32), net.scalar(2.0))
    return affine(net, net.op("Div", centred, deviation(net, centred, square)))


@spelling("layernorm_cast_exponent")
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    square = net.op("Pow", centred, net.cast(net.scalar(2, np.int64), np.float32))
    return affine(net, net.op("Div", centred, deviation(net, centred, square)))


@spelling("layernorm_integer_exponent")
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    square = net.op("Pow", centred, net.scalar(2, np.int64))
    return affine(net, net.op("Div", centred, deviation(net, centred, square)))


@spelling("layernorm_div_cast_mul")
def _(net):
    return affine(net, net.cast(normalized(net, "x"), np.float32))


@spelling("layernorm_reciprocal")
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    return affine(net, net.op("Mul", centred, net.op("Reciprocal", deviation(net, centred))))


@spelling("layernorm_one_over_sqrt")
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    return affine(net, net.op("Mul", centred, net.op("Div", net.scalar(1.0), deviation(net, centred))))


@spelling("layernorm_pow_minus_half")
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    variance = mean(net, net.op("Mul", centred, centred))
    inverse = net.op("Pow", net.op("Add", variance, net.scalar(EPS)), net.scalar(-0.5))
    return affine(net, net.op("Mul", centred, inverse))


@spelling("layernorm_mul_square")
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    square = net.op("Mul", centred, centred)
    return affine(net, net.op("Div", centred, deviation(net, centred, square)))


@spelling("layernorm_eps_first")
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    variance = mean(net, net.op("Mul", centred, centred))
    root = net.op("Sqrt", net.op("Add", net.const([[EPS]]), variance))
    scale = net.weight("scale", 16, scale=0.2, shift=1.0)
    y = net.op("Mul", scale, net.op("Div", centred, root))
    return net.op("Add", net.weight("bias", 16, scale=0.2), y)


def _parts(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    inverse = net.op("Reciprocal", deviation(net, centred))
    return centred, inverse, net.weight("scale", 16, scale=0.2, shift=1.0), net.weight("bias", 16, scale=0.2)


@spelling("layernorm_scale_centred_first")
def _(net):
    centred, inverse, scale, bias = _parts(net)
    return net.op("Add", net.op("Mul", net.op("Mul", scale, centred), inverse), bias)


@spelling("layernorm_scale_inverse_first")
def _(net):
    centred, inverse, scale, bias = _parts(net)
    return net.op("Add", net.op("Mul", centred, net.op("Mul", inverse, scale)), bias)


@spelling("layernorm_keepdims0_reshape")
def _(net):
    u = net.reshape(mean(net, "x", keepdims=0), 2, 5, 1)
    centred = net.op("Sub", "x", u)
    variance = net.reshape(mean(net, net.op("Mul", centred, centred), keepdims=0), 2, 5, 1)
    return affine(net, net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.scalar(EPS)))))


@spelling("layernorm_keepdims0_unsqueeze")
def _(net):
    u = net.op("Unsqueeze", mean(net, "x", keepdims=0), net.ints(-1))
    centred = net.op("Sub", "x", u)
    variance = net.op("Unsqueeze", mean(net, net.op("Mul", centred, centred), keepdims=0), net.ints(2))
    return affine(net, net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.scalar(EPS)))))


@spelling("layernorm_two_axes", ref=lambda x, w: reference(x, w, (-2, -1)))
def _(net):
    y = net.op("Mul", normalized(net, "x", axes=(-2, -1)), net.weight("scale", 5, 16, scale=0.2, shift=1.0))
    return net.op("Add", y, net.weight("bias", 5, 16, scale=0.2))


def _native(net, x="x", bias=True, width=16, outputs=1, **attributes):
    inputs = [x, net.weight("scale", width, scale=0.2, shift=1.0)]
    if bias:
        inputs.append(net.weight("bias", width, scale=0.2))
    return net.op("LayerNormalization", *inputs, outputs=outputs, **attributes)


@spelling("layernorm_native_defaults", opset=17)
def _(net):
    return _native(net)


@spelling("layernorm_native_positive_axis", opset=17)
def _(net):
    return _native(net, axis=2, epsilon=EPS)


@spelling("layernorm_native_no_bias", opset=17)
def _(net):
    return _native(net, bias=False, axis=-1, epsilon=EPS)


@spelling("layernorm_native_stash_type", opset=17, dtype=np.float16)
def _(net):
    return _native(net, axis=-1, epsilon=EPS, stash_type=1)


@spelling("layernorm_native_extra_outputs", opset=17)
def _(net):
    return _native(net, axis=-1, epsilon=EPS, outputs=3)[0]


@spelling("layernorm_native_two_axes", opset=17, ref=lambda x, w: reference(x, w, (-2, -1)))
def _(net):
    scale = net.weight("scale", 5, 16, scale=0.2, shift=1.0)
    return net.op("LayerNormalization", "x", scale, net.weight("bias", 5, 16, scale=0.2), axis=-2, epsilon=EPS)


def _residual_reference(x, w):
    total = x + x @ w["branch"]
    return total + np.tanh(reference(total, w))


@spelling("layernorm_residual", ref=_residual_reference)
def _(net):
    total = net.op("Add", "x", net.op("MatMul", "x", net.weight("branch", 16, 16, scale=0.25)))
    return net.op("Add", total, net.op("Tanh", affine(net, normalized(net, total))))


@spelling("layernorm_residual_native", opset=17, ref=_residual_reference)
def _(net):
    total = net.op("Add", net.op("MatMul", "x", net.weight("branch", 16, 16, scale=0.25)), "x")
    return net.op("Add", net.op("Tanh", _native(net, total, axis=-1, epsilon=EPS)), total)


def _branch(net, value):
    return net.op("MatMul", value, net.weight("branch", 16, 16, scale=0.25))


def _part_reference(x, w, before=1, after=None, swap=False, other=False):
    """Something is added to some of the tokens only, as TNT adds its words to all tokens but the class token."""
    end = x.shape[1] if after is None else x.shape[1] - after
    kept = np.tanh(x) if other else x
    changed = x[:, before:end] + x[:, before:end] @ w["branch"]
    parts = [kept[:, :before], changed, kept[:, end:]]
    total = np.concatenate(parts[::-1] if swap else parts, 1)
    return total + np.tanh(reference(total, w))


def _finish_part(net, total):
    return net.op("Add", total, net.op("Tanh", _native(net, total, axis=-1, epsilon=EPS)))


@spelling("layernorm_add_to_part", opset=17, shape=(2, 5, 16), ref=_part_reference)
def _(net):
    first, rest = net.slice("x", 1, 0, 1), net.slice("x", 1, 1, INT64_MAX)
    changed = net.op("Add", rest, _branch(net, rest))
    return _finish_part(net, net.op("Concat", first, changed, axis=1))


@spelling("layernorm_add_to_part_middle", opset=17, shape=(2, 5, 16), ref=partial(_part_reference, after=2))
def _(net):
    first, middle, last = net.op("Split", "x", net.ints(1, 2, 2), axis=1, outputs=3)
    changed = net.op("Add", _branch(net, middle), middle)
    return _finish_part(net, net.op("Concat", first, changed, last, axis=1))


# What follows is a norm, but no residual add of a part: the parts are in another order, or of another tensor.
@spelling("layernorm_add_to_part_swapped", opset=17, shape=(2, 5, 16), ref=partial(_part_reference, swap=True))
def _(net):
    first, rest = net.slice("x", 1, 0, 1), net.slice("x", 1, 1, INT64_MAX)
    changed = net.op("Add", rest, _branch(net, rest))
    return _finish_part(net, net.op("Concat", changed, first, axis=1))


@spelling("layernorm_add_to_part_of_other", opset=17, shape=(2, 5, 16), ref=partial(_part_reference, other=True))
def _(net):
    first, rest = net.slice(net.op("Tanh", "x"), 1, 0, 1), net.slice("x", 1, 1, INT64_MAX)
    changed = net.op("Add", rest, _branch(net, rest))
    return _finish_part(net, net.op("Concat", first, changed, axis=1))


def _part_used_reference(x, w):
    return _part_reference(x, w) + np.pad(np.tanh(x[:, 1:] + x[:, 1:] @ w["branch"]), ((0, 0), (1, 0), (0, 0)))


@spelling("layernorm_add_to_part_used", opset=17, shape=(2, 5, 16), ref=_part_used_reference)
def _(net):
    first, rest = net.slice("x", 1, 0, 1), net.slice("x", 1, 1, INT64_MAX)
    changed = net.op("Add", rest, _branch(net, rest))
    y = _finish_part(net, net.op("Concat", first, changed, axis=1))
    return net.op("Add", y, net.op("Pad", net.op("Tanh", changed), net.ints(0, 1, 0, 0, 0, 0)))


def _part_of_sum_reference(x, w, read=False):
    total = x + x @ w["full"]
    update = (total[:, 1:3] if read else np.tanh(x[:, 1:3])) @ w["branch"]
    total = total + np.pad(update, ((0, 0), (1, 2), (0, 0)))
    return total + np.tanh(reference(total, w))


def _part_of_sum(net, read=False):
    """What a part is added to is a sum itself, as behind TNT's outer MLP; `read`: and is read by the branch, too."""
    total = net.op("Add", "x", net.op("MatMul", "x", net.weight("full", 16, 16, scale=0.25)))
    first, middle, last = net.op("Split", total, net.ints(1, 2, 2), axis=1, outputs=3)
    update = middle if read else net.op("Tanh", net.slice("x", 1, 1, 3))
    changed = net.op("Add", middle, _branch(net, update))
    return _finish_part(net, net.op("Concat", first, changed, last, axis=1))


@spelling("layernorm_add_to_part_of_sum", opset=17, shape=(2, 5, 16), ref=_part_of_sum_reference)
def _(net):
    return _part_of_sum(net)


# Something else reads the inner sum, which the norm does not give.
@spelling("layernorm_add_to_part_of_sum_read", opset=17, shape=(2, 5, 16), ref=partial(_part_of_sum_reference, read=True))
def _(net):
    return _part_of_sum(net, read=True)


def _part_of_channels_reference(x, w):
    total = x.copy()
    total[..., 4:] += np.tanh(x[..., :12])
    return total + np.tanh(reference(total, w))


# A part of the channels is no part of the tokens.
@spelling("layernorm_add_to_part_of_channels", opset=17, shape=(2, 5, 16), ref=_part_of_channels_reference)
def _(net):
    first, rest = net.slice("x", 2, 0, 4), net.slice("x", 2, 4, INT64_MAX)
    changed = net.op("Add", rest, net.op("Tanh", net.slice("x", 2, 0, 12)))
    return _finish_part(net, net.op("Concat", first, changed, axis=2))


def _part_two_axes_reference(x, w):
    total = x + np.pad(x[:, 1:] @ w["branch"], ((0, 0), (1, 0), (0, 0)))
    return total + np.tanh(reference(total, w, (-2, -1)))


# The norm's row is not a token.
@spelling("layernorm_add_to_part_two_axes", opset=17, shape=(2, 5, 16), ref=_part_two_axes_reference)
def _(net):
    first, rest = net.slice("x", 1, 0, 1), net.slice("x", 1, 1, INT64_MAX)
    total = net.op("Concat", first, net.op("Add", rest, _branch(net, rest)), axis=1)
    scale = net.weight("scale", 5, 16, scale=0.2, shift=1.0)
    y = net.op("LayerNormalization", total, scale, net.weight("bias", 5, 16, scale=0.2), axis=-2, epsilon=EPS)
    return net.op("Add", total, net.op("Tanh", y))


def _residual_map_reference(x, w):
    flat = (x + x @ w["branch"]).reshape(2, 12, 16)
    return flat + np.tanh(reference(flat, w))


@spelling("layernorm_residual_reshape", opset=17, shape=(2, 3, 4, 16), ref=_residual_map_reference)
def _(net):
    total = net.op("Add", "x", net.op("MatMul", "x", net.weight("branch", 16, 16, scale=0.25)))
    flat = net.reshape(total, 2, -1, 16)
    return net.op("Add", flat, net.op("Tanh", _native(net, flat, axis=-1, epsilon=EPS)))


def _words_reference(x, w):
    total = x + x @ w["branch"]
    return total + np.tanh(reference(total.reshape(2, 3, 64), w).reshape(6, 16, 4))


@spelling("layernorm_words", opset=17, shape=(6, 16, 4), ref=_words_reference)
def _(net):
    total = net.op("Add", "x", net.op("MatMul", "x", net.weight("branch", 4, 4, scale=0.5)))
    y = _native(net, net.reshape(total, 2, 3, -1), width=64, axis=-1, epsilon=EPS)
    return net.op("Add", total, net.op("Tanh", net.reshape(y, 6, 16, -1)))


@spelling("layernorm_words_decomposed", shape=(6, 16, 4), ref=_words_reference)
def _(net):
    total = net.op("Add", "x", net.op("MatMul", "x", net.weight("branch", 4, 4, scale=0.5)))
    y = affine(net, normalized(net, net.reshape(total, 2, 3, -1)), width=64)
    return net.op("Add", total, net.op("Tanh", net.reshape(y, 6, 16, -1)))


# Height and width equal the channels, so that shapes alone do not tell the axes apart.
@spelling("not_layernorm_channel", shape=(1, 8, 8, 8), ref=None)
def _(net):
    y = net.op("Mul", normalized(net, "x", axes=(1,)), net.weight("scale", 8, 1, 1, scale=0.2, shift=1.0))
    return net.op("Add", y, net.weight("bias", 8, 1, 1, scale=0.2))


@spelling("not_layernorm_scale_of_other_axis", shape=(1, 8, 8), ref=None)
def _(net):
    y = net.op("Mul", normalized(net, "x"), net.weight("scale", 8, 1, scale=0.2, shift=1.0))
    return net.op("Add", y, net.weight("bias", 8, 1, scale=0.2))


@spelling("not_layernorm_rms", ref=None)
def _(net):
    root = deviation(net, "x")
    return net.op("Mul", net.op("Div", "x", root), net.weight("scale", 16, scale=0.2, shift=1.0))


@spelling("not_layernorm_eps_outside", ref=None)
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    root = net.op("Sqrt", mean(net, net.op("Mul", centred, centred)))
    return affine(net, net.op("Div", centred, net.op("Add", root, net.scalar(EPS))))


@spelling("not_layernorm_cubed", ref=None)
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    cube = net.op("Abs", net.op("Pow", centred, net.scalar(3.0)))
    return affine(net, net.op("Div", centred, deviation(net, centred, cube)))


@spelling("not_layernorm_other_mean", ref=None)
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    other = net.op("Sub", "x", mean(net, "x", axes=(1,)))
    return affine(net, net.op("Div", centred, deviation(net, other)))


@spelling("not_layernorm_interior_output", ref=None)
def _(net):
    centred = net.op("Sub", "x", mean(net, "x"))
    root = deviation(net, centred)
    return affine(net, net.op("Div", centred, root)), root


@spelling("not_layernorm_mean_output_used", opset=17, ref=None)
def _(net):
    y, centre, _ = _native(net, axis=-1, epsilon=EPS, outputs=3)
    return net.op("Add", y, centre)
