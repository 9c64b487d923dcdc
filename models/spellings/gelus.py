"""GELU between two linears, in the orders and with the constants that exporters write."""

import math

import numpy as np

from .graph import Spelling

ALL = []
SHAPE = (2, 5, 8)
_erf = np.vectorize(math.erf)


def gelu(x):
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mlp(act):
    return lambda x, w: act(x @ w["w1"] + w["b1"]) @ w["w2"]


def spelling(name, opset=13, dtype=np.float32, act=gelu, bias_first=True):
    def register(write):
        def full(net):
            product = net.op("MatMul", "x", net.weight("w1", 8, 16, scale=0.35))
            bias = net.weight("b1", 16, scale=0.2)
            hidden = net.op("Add", *((bias, product) if bias_first else (product, bias)))
            return net.op("MatMul", write(net, hidden), net.weight("w2", 16, 8, scale=0.25))

        ALL.append(Spelling(name, opset, SHAPE, full, _mlp(act) if act else None, dtype))
        return write

    return register


def half_of_one_plus_erf(net, x, root=None):
    scaled = net.op("Div", x, root or net.scalar(math.sqrt(2)))
    return net.op("Add", net.op("Erf", scaled), net.scalar(1.0))


@spelling("gelu_ts")
def _(net, x):
    return net.op("Mul", net.op("Mul", x, half_of_one_plus_erf(net, x)), net.scalar(0.5))


@spelling("gelu_dy18", opset=18, bias_first=False)
def _(net, x):
    return net.op("Mul", x, net.op("Mul", net.scalar(0.5), half_of_one_plus_erf(net, x)))


@spelling("gelu_half_branch")
def _(net, x):
    return net.op("Mul", net.op("Mul", x, net.scalar(0.5)), half_of_one_plus_erf(net, x))


@spelling("gelu_mul_0_7071")
def _(net, x):
    erf = net.op("Erf", net.op("Mul", x, net.scalar(0.7071067811865476)))
    return net.op("Mul", net.op("Mul", x, net.op("Add", erf, net.scalar(1.0))), net.scalar(0.5))


@spelling("gelu_sqrt_node")
def _(net, x):
    tail = half_of_one_plus_erf(net, x, net.op("Sqrt", net.scalar(2.0)))
    return net.op("Mul", net.op("Mul", x, tail), net.scalar(0.5))


@spelling("gelu_shaped_constants")
def _(net, x):
    erf = net.op("Erf", net.op("Div", x, net.const([math.sqrt(2)])))
    tail = net.op("Add", net.const([1.0]), erf)
    return net.op("Mul", net.const([[[0.5]]]), net.op("Mul", tail, x))


@spelling("gelu_div_by_two")
def _(net, x):
    return net.op("Div", net.op("Mul", x, half_of_one_plus_erf(net, x)), net.scalar(2.0))


@spelling("gelu_fp16", dtype=np.float16)
def _(net, x):
    return net.op("Mul", net.op("Mul", x, half_of_one_plus_erf(net, x)), net.scalar(0.5))


@spelling("gelu_cast_around", dtype=np.float16)
def _(net, x):
    wide = net.cast(x, np.float32)
    erf = net.op("Erf", net.op("Div", wide, net.scalar(math.sqrt(2), np.float32)))
    tail = net.op("Add", erf, net.scalar(1.0, np.float32))
    return net.cast(net.op("Mul", net.op("Mul", wide, tail), net.scalar(0.5, np.float32)), np.float16)


def tanh_tail(net, x, cube):
    inner = net.op("Add", x, net.op("Mul", cube, net.scalar(0.044715)))
    tanh = net.op("Tanh", net.op("Mul", inner, net.scalar(math.sqrt(2 / math.pi))))
    return net.op("Add", tanh, net.scalar(1.0))


@spelling("gelu_tanh_ts", act=gelu_tanh)
def _(net, x):
    cube = net.op("Mul", x, net.op("Mul", x, x))
    return net.op("Mul", net.op("Mul", net.scalar(0.5), x), tanh_tail(net, x, cube))


@spelling("gelu_tanh_pow", opset=18, act=gelu_tanh, bias_first=False)
def _(net, x):
    cube = net.op("Pow", x, net.scalar(3.0))
    return net.op("Mul", net.op("Mul", net.scalar(0.5), x), tanh_tail(net, x, cube))


@spelling("gelu_tanh_factored", act=gelu_tanh)
def _(net, x):
    square = net.op("Mul", x, x)
    factor = net.op("Add", net.op("Mul", square, net.scalar(0.044715)), net.scalar(1.0))
    inner = net.op("Mul", net.op("Mul", x, net.scalar(math.sqrt(2 / math.pi))), factor)
    tail = net.op("Add", net.op("Tanh", inner), net.scalar(1.0))
    return net.op("Mul", x, net.op("Mul", net.scalar(0.5), tail))


@spelling("gelu_native", opset=20)
def _(net, x):
    return net.op("Gelu", x)


@spelling("gelu_native_tanh", opset=20, act=gelu_tanh, bias_first=False)
def _(net, x):
    return net.op("Gelu", x, approximate="tanh")


@spelling("not_gelu_factor", act=None)
def _(net, x):
    return net.op("Mul", net.op("Mul", x, half_of_one_plus_erf(net, x)), net.scalar(0.75))


@spelling("not_gelu_root_of_three", act=None)
def _(net, x):
    tail = half_of_one_plus_erf(net, x, net.scalar(math.sqrt(3)))
    return net.op("Mul", net.op("Mul", x, tail), net.scalar(0.5))


@spelling("not_gelu_other_operand", act=None)
def _(net, x):
    other = net.op("Neg", x)
    return net.op("Mul", net.op("Mul", other, half_of_one_plus_erf(net, x)), net.scalar(0.5))


def _conv(net):
    hidden = net.op("Conv", "x", net.weight("w1", 8, 4, 1, 1, scale=0.5), net.weight("b1", 8, scale=0.2))
    active = net.op("Mul", net.op("Mul", hidden, half_of_one_plus_erf(net, hidden)), net.scalar(0.5))
    return net.op("Conv", active, net.weight("w2", 4, 8, 1, 1, scale=0.35), net.weight("b2", 4, scale=0.2))


def _conv_reference(x, w):
    hidden = gelu(np.einsum("bchw,oc->bohw", x, w["w1"][..., 0, 0]) + w["b1"][:, None, None])
    return np.einsum("bchw,oc->bohw", hidden, w["w2"][..., 0, 0]) + w["b2"][:, None, None]


ALL.append(Spelling("gelu_conv", 13, (1, 4, 3, 3), _conv, _conv_reference))
