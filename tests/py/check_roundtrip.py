"""Reads and writes models with the onnx package, for tests/onnx_io.rs.

check_roundtrip.py fill OUT           a model in which every field of every message of the schema is set
check_roundtrip.py same A B [--full]  exits 1 unless A and B hold the same; with --full every field must be set
check_roundtrip.py external A B       the same for models whose data is external, compared element by element
"""

import sys

import numpy as np
import onnx
from onnx import numpy_helper

# The newest IR version that trt-opt reads, and the fields that newer schemas have added since.
IR_VERSION = 13
NEWER_FIELDS: set[str] = set()


def fields(descriptor):
    return [f for f in descriptor.fields if f.full_name not in NEWER_FIELDS]


def repeated(field):
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def scalar(field, i):
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64):
        return [-3, 0, 2**31 - 1][i % 3] if field.cpp_type == field.CPPTYPE_INT32 else [-(2**63), 5, 0][i % 3]
    if field.cpp_type == field.CPPTYPE_UINT64:
        return [2**64 - 1, 0, 7][i % 3]
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return [0.5, 0.0, -1.25][i % 3]
    if field.cpp_type == field.CPPTYPE_ENUM:
        values = field.enum_type.values
        return values[i % len(values)].number
    if field.type == field.TYPE_BYTES:
        return [b"\xff\x00bytes", b"", b"ascii"][i % 3]
    return [f"{field.name} \u00e9", "", f"{field.name}_{i}"][i % 3]


def tensors():
    """Tensors that are sound and together set every field of a tensor."""
    T = onnx.TensorProto
    out = []
    for kind, field, count, values in [
        (T.FLOAT, "float_data", 2, [0.0, -1.5]),
        (T.COMPLEX64, "float_data", 1, [0.0, -1.5]),
        (T.INT32, "int32_data", 3, [-1, 0, 2**31 - 1]),
        (T.BFLOAT16, "int32_data", 1, [0x3F80]),
        (T.INT4, "int32_data", 3, [0x21, 0x03]),
        (T.STRING, "string_data", 2, [b"\xff", b""]),
        (T.INT64, "int64_data", 2, [-(2**63), 0]),
        (T.DOUBLE, "double_data", 1, [1e300]),
        (T.UINT64, "uint64_data", 1, [2**64 - 1]),
    ]:
        tensor = T(name=f"t{len(out)}", data_type=kind, dims=[count], doc_string="d")
        getattr(tensor, field).extend(values)
        out.append(tensor)
    out.append(T(data_type=T.FLOAT, dims=[1, 2], raw_data=b"12345678"))
    out.append(T(data_type=T.FLOAT, dims=[0], raw_data=b"", name=""))
    part = T(data_type=T.FLOAT, dims=[4], raw_data=b"1234", data_location=T.DEFAULT)
    part.segment.begin, part.segment.end = 0, 1
    part.external_data.add(key="unused", value="entry")
    part.metadata_props.add(key="k", value="v")
    out.append(part)
    return out


def fill(message, depth, path=()):
    name = message.DESCRIPTOR.full_name
    for i, field in enumerate(fields(message.DESCRIPTOR)):
        if field.message_type is None:
            if repeated(field):
                getattr(message, field.name).extend([scalar(field, j) for j in range(3)])
            else:
                setattr(message, field.name, scalar(field, i + depth))
            continue
        kind = field.message_type.full_name
        # Each message may hold itself a few times, so that deep ones are reached and the model stays small.
        if path.count(kind) >= (2 if kind == "onnx.TypeProto" else 1) or depth > 14:
            continue
        if kind == "onnx.TensorProto":
            if repeated(field):
                getattr(message, field.name).extend(tensors())
            else:
                getattr(message, field.name).CopyFrom(tensors()[i % 9])
        elif repeated(field):
            for one_of in range(6 if kind in ("onnx.TypeProto", "onnx.ValueInfoProto") else 2):
                fill(getattr(message, field.name).add(), depth + 1 + one_of, (*path, kind))
        else:
            fill(getattr(message, field.name), depth + 1, (*path, kind))
    # Of a oneof the last field set has won: choose by depth instead.
    for one_of in message.DESCRIPTOR.oneofs:
        choice = one_of.fields[depth % len(one_of.fields)]
        message.ClearField(one_of.name)
        if choice.message_type is None:
            setattr(message, choice.name, scalar(choice, depth))
        elif depth <= 20:
            getattr(message, choice.name).SetInParent()
            fill(getattr(message, choice.name), depth + 1, (*path, choice.message_type.full_name))
    assert message.DESCRIPTOR.full_name == name
    return message


def present(message, seen):
    for field, value in message.ListFields():
        seen.add(field.full_name)
        if field.message_type is not None:
            for item in value if repeated(field) else [value]:
                present(item, seen)
    return seen


def schema(descriptor, seen):
    for field in fields(descriptor):
        if field.full_name not in seen:
            seen.add(field.full_name)
            if field.message_type is not None:
                schema(field.message_type, seen)
    return seen


def full(model):
    missing = schema(model.DESCRIPTOR, set()) - present(model, set())
    if missing:
        sys.exit(f"fields that are not set anywhere: {sorted(missing)}")


def parse(path):
    with open(path, "rb") as f:
        model = onnx.ModelProto()
        model.ParseFromString(f.read())
        return model


def same(a, b):
    if a.SerializeToString(deterministic=True) != b.SerializeToString(deterministic=True):
        sys.exit("the models differ")


def main(command, *args):
    if command == "fill":
        model = fill(onnx.ModelProto(), 0)
        model.ir_version = IR_VERSION
        full(model)
        with open(args[0], "wb") as f:
            f.write(model.SerializeToString())
    elif command == "same":
        a, b = parse(args[0]), parse(args[1])
        same(a, b)
        if "--full" in args:
            full(b)
    elif command == "external":
        a, b = onnx.load(args[0]), onnx.load(args[1])
        assert len(a.graph.initializer) == len(b.graph.initializer)
        for x, y in zip(a.graph.initializer, b.graph.initializer):
            assert x.name == y.name
            np.testing.assert_array_equal(numpy_helper.to_array(x), numpy_helper.to_array(y))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
