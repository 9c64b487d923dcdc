"""Cyclic shift, window partition and reverse, patch merge: chains that only move data."""

import numpy as np

from .graph import INT64_MAX, Spelling

ALL = []
H = W = 8
C = 4
MAP = (2, H, W, C)


def spelling(name, opset=17, shape=MAP, ref=None):
    def register(write):
        ALL.append(Spelling(name, opset, shape, write, ref))
        return write

    return register


def roll_two_slices(net, x, axis, shift):
    """Slices with an open end, as the TorchScript exporter writes them."""
    start = -shift
    tail = net.slice(x, axis, start, INT64_MAX)
    return net.op("Concat", tail, net.slice(x, axis, 0, start), axis=axis)


def roll_finite(net, x, axis, shift, size):
    """Finite ends and the head cut first, as the dynamo exporter writes them."""
    at = -shift % size
    head = net.slice(x, axis, 0, at)
    return net.op("Concat", net.slice(x, axis, at, size), head, axis=axis)


def rolled(shift):
    return lambda x, w: np.roll(x, shift, (1, 2))


@spelling("roll_ts", ref=rolled((-2, -2)))
def _(net):
    return roll_two_slices(net, roll_two_slices(net, "x", 1, -2), 2, -2)


@spelling("roll_ts_back", ref=rolled((2, 2)))
def _(net):
    return roll_two_slices(net, roll_two_slices(net, "x", 1, 2), 2, 2)


@spelling("roll_dy", opset=18, ref=rolled((-2, -2)))
def _(net):
    return roll_finite(net, roll_finite(net, "x", 1, -2, H), 2, -2, W)


@spelling("roll_dy_back", opset=18, ref=rolled((2, 2)))
def _(net):
    return roll_finite(net, roll_finite(net, "x", 1, 2, H), 2, 2, W)


@spelling("roll_uneven", ref=rolled((-3, -1)))
def _(net):
    return roll_two_slices(net, roll_finite(net, "x", 2, -1, W), 1, -3)


@spelling("roll_between_no_ops", ref=rolled((-2, -2)))
def _(net):
    x = net.op("Pad", roll_two_slices(net, "x", 1, -2), net.ints(*[0] * 8), net.scalar(0.0))
    x = net.slice(net.op("Identity", x), 1, 0, INT64_MAX)
    x = net.op("Pad", roll_two_slices(net, x, 2, -2), net.ints(*[0] * 8), mode="constant")
    return net.slice(x, 2, 0, W)


@spelling("roll_gather", ref=rolled((-2, -2)))
def _(net):
    index = net.const(np.roll(np.arange(8), -2), np.int64)
    return net.op("Gather", net.op("Gather", "x", index, axis=1), index, axis=2)


@spelling("roll_split", ref=rolled((-2, -2)))
def _(net):
    x = "x"
    for axis in (1, 2):
        head, tail = net.op("Split", x, net.ints(2, 6), outputs=2, axis=axis)
        x = net.op("Concat", tail, head, axis=axis)
    return x


@spelling("not_roll_identity")
def _(net):
    """Cut and put together again in the old order."""
    x = "x"
    for axis in (1, 2):
        x = net.op("Concat", net.slice(x, axis, 0, 2), net.slice(x, axis, 2, INT64_MAX), axis=axis)
    return net.op("Tanh", x)


@spelling("not_roll_repeated_rows")
def _(net):
    """Right in size, but rows 0 and 1 come twice and rows 2 and 3 never."""
    x = net.op("Concat", net.slice("x", 1, 4, INT64_MAX), net.slice("x", 1, 0, 2),
               net.slice("x", 1, 0, 2), axis=1)
    return roll_two_slices(net, x, 2, -2)


@spelling("not_roll_across_images")
def _(net):
    return roll_two_slices(net, roll_two_slices(net, "x", 0, -1), 1, -2)


def partitioned(x, window=4):
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, window * window, c)


def partition(net, x, dims=(-1, 2, 4, 2, 4, C), perm=(0, 1, 3, 2, 4, 5)):
    return net.op("Transpose", net.reshape(x, *dims), perm=list(perm))


@spelling("window_partition_ts", ref=lambda x, w: partitioned(x))
def _(net):
    x = net.reshape(partition(net, "x"), -1, 4, 4, C)
    return net.reshape(x, -1, 16, C)


@spelling("window_partition_dy", opset=18, ref=lambda x, w: partitioned(x))
def _(net):
    return net.reshape(partition(net, "x", (2, 2, 4, 2, 4, C)), 8, 16, C, allowzero=1)


@spelling("window_partition_tokens", shape=(2, 64, C), ref=lambda x, w: partitioned(x.reshape(MAP)))
def _(net):
    x = net.reshape("x", -1, H, W, C)
    return net.reshape(net.reshape(partition(net, x), -1, 4, 4, C), -1, 16, C)


@spelling("window_partition_slices", ref=lambda x, w: partitioned(x))
def _(net):
    """Every window cut out by Slice."""
    cuts = []
    for top in (0, 4):
        for left in (0, 4):
            cut = net.op("Slice", "x", net.ints(top, left), net.ints(top + 4, left + 4), net.ints(1, 2))
            cuts.append(net.op("Unsqueeze", cut, net.ints(1)))
    return net.reshape(net.op("Concat", *cuts, axis=1), -1, 16, C)


@spelling("window_shift_partition", ref=lambda x, w: partitioned(np.roll(x, (-2, -2), (1, 2))))
def _(net):
    x = roll_two_slices(net, roll_two_slices(net, "x", 1, -2), 2, -2)
    return net.reshape(net.reshape(partition(net, x), -1, 4, 4, C), -1, 16, C)


@spelling("window_shift_partition_wide", shape=(1, 4, 12, C),
          ref=lambda x, w: partitioned(np.roll(x, (0, -2), (1, 2))))
def _(net):
    x = roll_finite(net, "x", 2, -2, 12)
    return net.reshape(partition(net, x, (1, 1, 4, 3, 4, C)), -1, 16, C)


def _padded(x):
    return np.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0)))


# On a map of 6x6 in windows of 4x4 the two orders give different windows.
@spelling("window_pad_then_roll", shape=(2, 6, 6, C),
          ref=lambda x, w: partitioned(np.roll(_padded(x), (-2, -2), (1, 2))))
def _(net):
    x = net.op("Pad", "x", net.ints(0, 0, 0, 0, 0, 2, 2, 0))
    x = roll_two_slices(net, roll_two_slices(net, x, 1, -2), 2, -2)
    return net.reshape(partition(net, x), -1, 16, C)


@spelling("window_roll_then_pad", shape=(2, 6, 6, C),
          ref=lambda x, w: partitioned(_padded(np.roll(x, (-2, -2), (1, 2)))))
def _(net):
    x = roll_two_slices(net, roll_two_slices(net, "x", 1, -2), 2, -2)
    x = net.op("Pad", x, net.ints(0, 0, 0, 0, 0, 2, 2, 0))
    return net.reshape(partition(net, x), -1, 16, C)


def reversed_windows(x, h=H, w=W):
    x = x.reshape(-1, h // 4, w // 4, 4, 4, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, h, w, C)


def reverse(net, x):
    x = net.op("Transpose", net.reshape(x, -1, 2, 2, 4, 4, C), perm=[0, 1, 3, 2, 4, 5])
    return net.reshape(x, -1, H, W, C)


@spelling("window_reverse", shape=(8, 16, C), ref=lambda x, w: reversed_windows(x))
def _(net):
    return reverse(net, net.reshape("x", -1, 4, 4, C))


@spelling("window_reverse_unshift", shape=(8, 16, C),
          ref=lambda x, w: np.roll(reversed_windows(x), (2, 2), (1, 2)))
def _(net):
    x = reverse(net, net.reshape("x", -1, 4, 4, C))
    return roll_two_slices(net, roll_two_slices(net, x, 1, 2), 2, 2)


@spelling("window_reverse_crop", shape=(8, 16, C), ref=lambda x, w: reversed_windows(x)[:, :6, :6])
def _(net):
    x = reverse(net, net.reshape("x", -1, 4, 4, C))
    return net.slice(net.slice(x, 1, 0, 6), 2, 0, 6)


def _residual_reference(x, w):
    tokens = x.reshape(2, 64, C)
    y = partitioned(np.roll(x, (-2, -2), (1, 2)))
    y = np.roll(reversed_windows(np.tanh(y)), (2, 2), (1, 2)).reshape(2, 64, C)
    return tokens + y


@spelling("window_round_trip_residual", ref=_residual_reference)
def _(net):
    x = roll_two_slices(net, roll_two_slices(net, "x", 1, -2), 2, -2)
    x = net.reshape(net.reshape(partition(net, x), -1, 4, 4, C), -1, 16, C)
    x = reverse(net, net.reshape(net.op("Tanh", x), -1, 4, 4, C))
    x = roll_two_slices(net, roll_two_slices(net, x, 1, 2), 2, 2)
    return net.op("Add", net.reshape("x", 2, 64, C), net.reshape(x, 2, 64, C))


@spelling("not_window_columns_first")
def _(net):
    """Windows in column order: the right shapes, the wrong rows."""
    return net.reshape(partition(net, "x", perm=(0, 3, 1, 2, 4, 5)), -1, 16, C)


@spelling("not_window_transposed_tokens")
def _(net):
    return net.reshape(partition(net, "x", perm=(0, 1, 3, 4, 2, 5)), -1, 16, C)


@spelling("not_window_dilated")
def _(net):
    """Every second token: the same rank and sizes as a partition if the map is 4x4 of 2x2."""
    return net.reshape(partition(net, "x", (-1, 4, 2, 4, 2, C), (0, 2, 4, 1, 3, 5)), -1, 16, C)


QUADRANTS = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (1, 1)}


def merged(order):
    def reference(x, w):
        parts = [x[:, dy::2, dx::2] for dy, dx in (QUADRANTS[q] for q in order)]
        x = np.concatenate(parts, -1)
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return (x * w["scale"] + w["bias"]) @ w["reduction"]

    return reference


def norm_and_reduce(net, x):
    scale = net.weight("scale", 4 * C, scale=0.2, shift=1.0)
    x = net.op("LayerNormalization", x, scale, net.weight("bias", 4 * C, scale=0.2), axis=-1, epsilon=1e-5)
    return net.op("MatMul", x, net.weight("reduction", 4 * C, 2 * C, scale=0.25))


def quadrant(net, q):
    dy, dx = QUADRANTS[q]
    return net.slice(net.slice("x", 1, dy, INT64_MAX, 2), 2, dx, INT64_MAX, 2)


@spelling("merge_slices", ref=merged((0, 2, 1, 3)))
def _(net):
    return norm_and_reduce(net, net.op("Concat", *(quadrant(net, q) for q in (0, 2, 1, 3)), axis=-1))


@spelling("merge_slices_both_axes", opset=18, ref=merged((0, 2, 1, 3)))
def _(net):
    def cut(q):
        return net.op("Slice", "x", net.ints(*QUADRANTS[q]), net.ints(H, W), net.ints(1, 2), net.ints(2, 2))

    return norm_and_reduce(net, net.op("Concat", *(cut(q) for q in (0, 2, 1, 3)), axis=3))


@spelling("merge_slices_tokens", shape=(2, 64, C),
          ref=lambda x, w: merged((0, 2, 1, 3))(x.reshape(MAP), w).reshape(2, 16, 2 * C))
def _(net):
    grid = net.reshape("x", 2, H, W, C)
    cuts = [net.slice(net.slice(grid, 1, dy, INT64_MAX, 2), 2, dx, INT64_MAX, 2)
            for dy, dx in (QUADRANTS[q] for q in (0, 2, 1, 3))]
    return norm_and_reduce(net, net.reshape(net.op("Concat", *cuts, axis=-1), 2, -1, 4 * C))


@spelling("merge_reshape", ref=merged((0, 2, 1, 3)))
def _(net):
    x = partition(net, "x", (2, 4, 2, 4, 2, C), (0, 1, 3, 4, 2, 5))
    return norm_and_reduce(net, net.reshape(x, 2, 4, 4, 4 * C))


@spelling("merge_row_order", ref=merged((0, 1, 2, 3)))
def _(net):
    return norm_and_reduce(net, net.op("Concat", *(quadrant(net, q) for q in (0, 1, 2, 3)), axis=-1))


@spelling("not_merge_repeated_quadrant", ref=merged((0, 2, 2, 3)))
def _(net):
    return norm_and_reduce(net, net.op("Concat", *(quadrant(net, q) for q in (0, 2, 2, 3)), axis=-1))


@spelling("not_merge_channels_interleaved")
def _(net):
    """The channel before the quadrant: channels of the four tokens interleave."""
    x = partition(net, "x", (2, 4, 2, 4, 2, C), (0, 1, 3, 5, 4, 2))
    return norm_and_reduce(net, net.reshape(x, 2, 4, 4, 4 * C))
