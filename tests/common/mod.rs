//! Models and helpers that several tests share.
#![allow(dead_code)] // Each test file uses some of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trt_opt::onnx::proto::*;

/// The fixtures, sorted.
pub fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    assert!(!files.is_empty());
    files
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: Some(op.into()),
        name: Some(format!("{op}_{}", outputs.first().unwrap_or(&""))),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        ..NodeProto::default()
    }
}

pub fn transpose(x: &str, perm: &[i64], y: &str) -> NodeProto {
    NodeProto { attribute: vec![AttributeProto::ints("perm", perm)], ..node("Transpose", &[x], &[y]) }
}

pub fn reshape(x: &str, shape: &str, y: &str) -> NodeProto {
    node("Reshape", &[x, shape], &[y])
}

/// The types of a model's ops, in order.
pub fn ops(model: &ModelProto) -> Vec<String> {
    model.graph.as_ref().unwrap().node.iter().map(|n| n.op_type().to_owned()).collect()
}

/// A float value with fixed dims.
pub fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = dims.iter().map(|d| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::Value::DimValue(*d)),
        denotation: None,
    });
    let tensor = type_proto::Tensor { elem_type: Some(1), shape: Some(TensorShapeProto { dim: dim.collect() }) };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None }),
        ..ValueInfoProto::default()
    }
}

/// A value whose first axis is open.
pub fn open_value(name: &str, axis: &str, dims: &[i64]) -> ValueInfoProto {
    let mut value = value(name, &[&[1], dims].concat());
    if let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|t| t.value.as_mut())
        && let Some(first) = tensor.shape.as_mut().and_then(|s| s.dim.first_mut())
    {
        first.value = Some(tensor_shape_proto::Value::DimParam(axis.into()));
    }
    value
}

/// A model of opset 17 from float `x` of 4 elements to `y`.
pub fn model(nodes: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }],
        graph: Some(GraphProto {
            name: Some("g".into()),
            node: nodes,
            initializer,
            input: vec![value("x", &[4])],
            output: vec![value("y", &[4])],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

/// A tensor whose elements are said to be in another file.
pub fn external(name: &str, dtype: i32, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(dtype),
        dims: dims.to_vec(),
        data_location: Some(DataLocation::External as i32),
        external_data: entries
            .iter()
            .map(|(key, value)| StringStringEntryProto { key: Some(key.to_string()), value: Some(value.to_string()) })
            .collect(),
        ..TensorProto::default()
    }
}

/// Models that are sound protobuf with sound tensors, but whose graph breaks a rule of ONNX.
pub fn malformed_graphs() -> Vec<(&'static str, ModelProto)> {
    let two = |a, b| model(vec![a, b], vec![]);
    let mut no_outputs = model(vec![node("Relu", &["x"], &["y"])], vec![]);
    no_outputs.graph.as_mut().unwrap().output[0].name = None;
    let mut twice_input = model(vec![node("Relu", &["x"], &["y"])], vec![]);
    twice_input.graph.as_mut().unwrap().input.push(value("x", &[4]));
    let mut absurd_shape = model(vec![node("Relu", &["x"], &["y"])], vec![]);
    absurd_shape.graph.as_mut().unwrap().input[0] = value("x", &[i64::MAX, i64::MAX, -5]);
    let shape = TensorProto::from_i64("s", &[3], &[i64::MAX, i64::MAX, 7]);
    let wide = (0..20_000).map(|i| node("Relu", &[&format!("v{i}")], &[&format!("v{}", i + 1)])).rev().collect();
    vec![
        ("a cycle of two nodes", two(node("Relu", &["b"], &["y"]), node("Relu", &["y"], &["b"]))),
        ("a node that reads its own output", model(vec![node("Relu", &["y"], &["y"])], vec![])),
        ("an input that nothing makes", model(vec![node("Relu", &["nothing"], &["y"])], vec![])),
        ("an output that nothing makes", model(vec![node("Relu", &["x"], &["z"])], vec![])),
        ("two nodes with one output", two(node("Relu", &["x"], &["y"]), node("Neg", &["x"], &["y"]))),
        ("one node with an output twice", model(vec![node("Split", &["x"], &["y", "y"])], vec![])),
        ("an output that is an input", model(vec![node("Relu", &["x"], &["x"])], vec![])),
        ("a node and a weight of one name", {
            model(vec![node("Relu", &["x"], &["y"])], vec![TensorProto::from_f32("y", &[4], &[0.0; 4])])
        }),
        ("two weights of one name", {
            let weight = TensorProto::from_f32("w", &[4], &[0.0; 4]);
            model(vec![node("Add", &["x", "w"], &["y"])], vec![weight.clone(), weight])
        }),
        ("two inputs of one name", twice_input),
        ("a graph output without a name", no_outputs),
        ("a node without a type", model(vec![NodeProto { op_type: None, ..node("", &["x"], &["y"]) }], vec![])),
        ("nodes in reverse order", two(node("Relu", &["a"], &["y"]), node("Relu", &["x"], &["a"]))),
        ("a long chain in reverse order, from nothing to nowhere", model(wide, vec![])),
        ("an input of absurd shape", absurd_shape),
        ("Expand to an absurd shape", model(vec![node("Expand", &["x", "s"], &["y"])], vec![shape.clone()])),
        (
            "ConstantOfShape of an absurd shape",
            model(vec![node("ConstantOfShape", &["s"], &["y"])], vec![shape.clone()]),
        ),
        ("Tile by absurd counts", model(vec![node("Tile", &["x", "s"], &["y"])], vec![shape])),
        ("a graph without anything", model(vec![], vec![])),
    ]
}

/// Models with a tensor that is wrong in itself, and a part of the message that loading them gives.
pub fn malformed_tensors() -> Vec<(TensorProto, &'static str)> {
    let of = |dtype, dims: &[i64]| TensorProto {
        name: Some("w".into()),
        data_type: Some(dtype),
        dims: dims.to_vec(),
        raw_data: Some(Bytes::from_static(&[0; 16])),
        ..TensorProto::default()
    };
    vec![
        (of(1, &[5]), "float[5] needs 20 bytes in raw_data, found 16"),
        (of(1, &[i64::MAX]), "are too large"),
        (of(1, &[1 << 56]), "needs 288230376151711744 bytes in raw_data, found 16"),
        (of(1, &[1 << 32, 1 << 32]), "are too large"),
        (of(1, &[i64::MAX, i64::MAX, 0]), "needs 0 bytes in raw_data, found 16"),
        (of(1, &[-4]), "negative axis -4 in dims [-4]"),
        (of(1, &[-2, -2]), "negative axis -2"),
        (of(1, &[i64::MIN]), "negative axis"),
        (of(1, &[2; 64]), "are too large"),
        (of(1, &[1; 4000]), "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,... 4000 axes] needs 4 bytes"),
        (of(0, &[4]), "has no element type"),
        (of(27, &[4]), "unknown element type 27"),
        (of(-1, &[4]), "unknown element type -1"),
        (of(8, &[16]), "strings must be in string_data"),
        (TensorProto { raw_data: None, ..of(1, &[4]) }, "no data for 4 elements"),
        (TensorProto { raw_data: None, int64_data: vec![0; 4], ..of(1, &[4]) }, "int64_data, which is not for float"),
        (
            TensorProto { raw_data: None, float_data: vec![0.0; 3], ..of(1, &[4]) },
            "needs 4 entries in float_data, found 3",
        ),
        (TensorProto { float_data: vec![0.0; 4], ..of(1, &[4]) }, "in both raw_data and float_data"),
        (TensorProto { data_location: Some(7), ..of(1, &[4]) }, "unknown data_location 7"),
        (TensorProto { data_location: Some(1), ..of(1, &[4]) }, "both in the model and in external data"),
    ]
}

/// The most memory that this process has used at any time, in bytes, mapped files included.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Set in a process that [`in_child`] started.
const CHILD: &str = "TRT_OPT_TEST_CHILD";

/// Runs `work` in a process of its own, which runs the test `name` of this file and nothing else, and gives the
/// process's peak memory in bytes. The test must call this function once and return when it gives `None`.
pub fn in_child(name: &str, work: impl FnOnce()) -> Option<u64> {
    if std::env::var(CHILD).as_deref() == Ok(name) {
        work();
        println!("peak={}", peak_memory());
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--include-ignored"]).env(CHILD, name);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    print!("{text}");
    let peak = text.lines().find_map(|line| line.split_once("peak=")?.1.parse().ok());
    Some(peak.expect("the child tells its peak"))
}

/// Runs `work` and gives its time too.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

/// Pseudo-random numbers, the same in each run (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}
