"""A small graph writer and the record of one spelling."""

from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np
import onnx
from onnx import helper, numpy_helper

INT64_MAX = 2**63 - 1


class Net:
    """Collects nodes; every `op` returns the name of its first output."""

    def __init__(self, opset, shape, dtype=np.float32, seed=0):
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.shape = shape
        self.nodes, self.initializers, self.weights = [], [], {}
        self.random = np.random.default_rng(seed)
        self._count = 0

    def name(self, stem):
        self._count += 1
        return f"{stem}_{self._count}"

    def op(self, kind, *inputs, outputs=1, **attributes):
        names = [self.name(kind.lower()) for _ in range(outputs)]
        attributes = {k: v for k, v in attributes.items() if v is not None}
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"n_{names[0]}", **attributes))
        return names[0] if outputs == 1 else names

    def const(self, value, dtype=None, node=False):
        """An initializer, or a Constant node, of the type of the net unless told."""
        array = np.asarray(value, dtype=self.dtype if dtype is None else dtype)
        if node:
            return self.op("Constant", value=numpy_helper.from_array(array))
        name = self.name("c")
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values, node=False):
        return self.const(list(values), np.int64, node)

    def scalar(self, value, dtype=None):
        return self.const(value, dtype, node=True)

    def weight(self, key, *shape, scale=1.0, shift=0.0):
        """A random initializer that the reference finds under `key`."""
        array = (self.random.standard_normal(shape) * scale + shift).astype(self.dtype)
        self.weights[key] = array.astype(np.float64)
        self.initializers.append(numpy_helper.from_array(array, key))
        return key

    def cast(self, x, dtype):
        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def reshape(self, x, *shape, allowzero=None):
        return self.op("Reshape", x, self.ints(*shape), allowzero=allowzero)

    def slice(self, x, axis, start, end, step=1):
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(axis), self.ints(step))

    def model(self, name, *outputs):
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = helper.make_graph(
            self.nodes, name,
            [helper.make_tensor_value_info("x", kind, self.shape)],
            [helper.make_empty_tensor_value_info(o) for o in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        # ONNX Runtime reads no IR below 3, and files of old opsets were written with IR 6 and up.
        version = max(6, helper.find_min_ir_version_for(opsets))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version,
                                  producer_name="trt-opt spellings")
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        for value, found in zip(model.graph.output, inferred.graph.output):
            value.CopyFrom(found)
        return model


@dataclass(frozen=True)
class Spelling:
    """`write(net)` adds the nodes and returns the output names; `reference(x, weights)` is what they compute.

    A name that begins with `not_` is a graph that looks like the pattern and must not be taken for it.
    """

    name: str
    opset: int
    shape: tuple
    write: Callable
    reference: Optional[Callable]
    dtype: type = np.float32

    def build(self):
        net = Net(self.opset, self.shape, self.dtype)
        outputs = self.write(net)
        outputs = (outputs,) if isinstance(outputs, str) else outputs
        return net.model(f"spelling_{self.name}", *outputs), net.weights
