"""Words and patch tokens of TNT: unfold, class token, update of all tokens but the class token."""

import numpy as np

from .graph import INT64_MAX, Spelling

ALL = []
B, P, C = 2, 4, 8


def spelling(name, opset=17, shape=(B, P + 1, C), ref=None):
    def register(write):
        ALL.append(Spelling(name, opset, shape, write, ref))
        return write

    return register


def _update_reference(x, w):
    y = x.copy()
    y[:, 1:] += x[:, 1:] @ w["proj"]
    return y


def _change(net):
    rest = net.slice("x", 1, 1, INT64_MAX)
    return rest, net.op("MatMul", rest, net.weight("proj", C, C, scale=0.35))


@spelling("tnt_update_concat", ref=_update_reference)
def _(net):
    rest, change = _change(net)
    return net.op("Concat", net.slice("x", 1, 0, 1), net.op("Add", rest, change), axis=1)


@spelling("tnt_update_scatternd", opset=18, ref=_update_reference)
def _(net):
    rest, change = _change(net)
    at = np.stack(np.meshgrid(np.arange(B), np.arange(1, P + 1), indexing="ij"), -1)
    return net.op("ScatterND", "x", net.const(at, np.int64), net.op("Add", rest, change))


@spelling("tnt_update_scatternd_transposed", opset=18, ref=_update_reference)
def _(net):
    """Scatter over the first axis, as dynamo writes an assignment to a slice of the second."""
    rest, change = _change(net)
    total = net.op("Transpose", net.op("Add", rest, change), perm=[1, 0, 2])
    base = net.op("Transpose", "x", perm=[1, 0, 2])
    at = net.const(np.arange(1, P + 1)[:, None], np.int64)
    return net.op("Transpose", net.op("ScatterND", base, at, total), perm=[1, 0, 2])


@spelling("tnt_update_pad", ref=_update_reference)
def _(net):
    _, change = _change(net)
    return net.op("Add", "x", net.op("Pad", change, net.ints(0, 1, 0, 0, 0, 0)))


@spelling("not_tnt_update_last_token")
def _(net):
    """All but the last token: the same shapes as the update of all but the first."""
    rest = net.slice("x", 1, 0, -1)
    change = net.op("MatMul", rest, net.weight("proj", C, C, scale=0.35))
    return net.op("Concat", net.op("Add", rest, change), net.slice("x", 1, -1, INT64_MAX), axis=1)


def _class_token_reference(x, w):
    token = np.broadcast_to(w["cls_token"], (B, 1, C))
    return np.concatenate([token, x], 1) + w["patch_pos"]


@spelling("tnt_class_token", shape=(B, P, C), ref=_class_token_reference)
def _(net):
    token = net.op("Expand", net.weight("cls_token", 1, 1, C), net.ints(B, 1, C))
    return net.op("Add", net.op("Concat", token, "x", axis=1), net.weight("patch_pos", 1, P + 1, C))


def _words(x):
    """[B, c, 8, 8] to [B * 4, 16, c]: sixteen words of each of the 4x4 patches."""
    x = x.reshape(B, 3, 2, 4, 2, 4).transpose(0, 2, 4, 3, 5, 1)
    return x.reshape(B * 4, 16, 3)


@spelling("tnt_unfold_gather", shape=(B, 3, 8, 8), ref=lambda x, w: _words(x))
def _(net):
    """Unfold as the TorchScript exporter writes it: a Gather of index blocks along each axis."""
    index = np.array([[0, 4], [1, 5], [2, 6], [3, 7]])
    x = net.op("Gather", "x", net.const(index, np.int64), axis=2)
    x = net.op("Gather", x, net.const(index, np.int64), axis=4)
    x = net.op("Transpose", x, perm=[0, 1, 2, 4, 3, 5])
    x = net.op("Transpose", net.reshape(x, B, 48, 4), perm=[0, 2, 1])
    x = net.reshape(x, B * 4, 3, 16)
    return net.op("Transpose", x, perm=[0, 2, 1])


@spelling("tnt_unfold_reshape", shape=(B, 3, 8, 8), ref=lambda x, w: _words(x))
def _(net):
    x = net.op("Transpose", net.reshape("x", B, 3, 2, 4, 2, 4), perm=[0, 2, 4, 3, 5, 1])
    return net.reshape(x, B * 4, 16, 3)


def _bridge_reference(x, w):
    def norm(v, name):
        centred = v - v.mean(-1, keepdims=True)
        v = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return v * w[f"{name}_scale"] + w[f"{name}_bias"]

    return w["patches"] + norm(norm(x.reshape(1, 4, 48), "in") @ w["proj"], "out")


@spelling("tnt_bridge", shape=(4, 16, 3), ref=_bridge_reference)
def _(net):
    def norm(v, name, width):
        scale = net.weight(f"{name}_scale", width, scale=0.2, shift=1.0)
        bias = net.weight(f"{name}_bias", width, scale=0.2)
        return net.op("LayerNormalization", v, scale, bias, axis=-1, epsilon=1e-5)

    x = norm(net.reshape("x", 1, 4, -1), "in", 48)
    x = norm(net.op("MatMul", x, net.weight("proj", 48, C, scale=0.15)), "out", C)
    return net.op("Add", net.weight("patches", 1, 4, C), x)
