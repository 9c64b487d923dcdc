"""What is done to a written ONNX file: metadata stripped or scrubbed, results checked."""

import pathlib
import re

import numpy as np
import onnx
import onnxruntime

_PACKAGES = re.compile(r"""[^\s"']*/(?:site-packages|dist-packages|lib/python[\d.]+)/""")
_CHECKOUT = f"{pathlib.Path(__file__).resolve().parent.parent}/"


def _nodes(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _carriers(model):
    graph = model.graph
    yield from (model, graph)
    yield from _nodes(graph)
    yield from graph.input
    yield from graph.output
    yield from graph.value_info
    yield from graph.initializer


def strip_metadata(model):
    """Drops every metadata entry and doc string: they hold stack traces, most of a small file."""
    for carrier in _carriers(model):
        carrier.ClearField("metadata_props")
        carrier.ClearField("doc_string")


def scrub_metadata(model):
    """Keeps metadata but cuts the directories of the exporting machine out of it."""
    for carrier in _carriers(model):
        carrier.ClearField("doc_string")
        for entry in carrier.metadata_props:
            entry.value = _PACKAGES.sub("", entry.value).replace(_CHECKOUT, "")


def number_names(model):
    """Numbers for the names of nodes and inner values, as exporters before scoped names wrote them."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    new = {}
    for node in _nodes(graph):
        for name in node.output:
            if name and name not in outputs:
                new[name] = str(len(new))
    for index, node in enumerate(_nodes(graph)):
        node.name = f"{node.op_type}_{index}"
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for value in attribute.g.output:
                value.name = new.get(value.name, value.name)
    for value in graph.value_info:
        value.name = new.get(value.name, value.name)


def absolute_paths(model):
    """Strings in the file that still look like a path of the exporting machine."""
    found = re.findall(rb"(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]+\.py", model.SerializeToString())
    return sorted({path.decode() for path in found})


def check(model):
    """Full check where shape inference of the onnx package manages the model, else the plain one."""
    try:
        onnx.checker.check_model(model, full_check=True)
        return "full"
    except onnx.shape_inference.InferenceError:
        onnx.checker.check_model(model)
        return "plain"


def runner(model):
    """A function from named inputs to the list of outputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda **inputs: session.run(None, inputs)


def distance(value, reference):
    value, reference = np.float64(value), np.float64(reference)
    return float(np.linalg.norm(value - reference) / max(np.linalg.norm(reference), 1e-12))
