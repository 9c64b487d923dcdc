//! Opset conversion changes no result: fixtures raised and lowered, and ops one by one, in ONNX Runtime.

mod common;

use trt_opt::ir::{Dim, Graph, Node, Value, ValueId, check};
use trt_opt::onnx::proto::{AttributeProto, ModelProto, OperatorSetIdProto, TensorProto};
use trt_opt::onnx::{self, DType, Model};
use trt_opt::rewrite::cleanup::cleanup;
use trt_opt::rewrite::legalize::to_opset;
use trt_opt::verify::{self, Options, Source};

fn converted(model: &Model, opset: i64) -> Result<Model, Vec<String>> {
    let mut model = model.clone();
    let mut graph = Graph::take(&mut model.proto).unwrap();
    let refused = to_opset(&mut graph, opset).unwrap();
    check(&graph).unwrap();
    if !refused.is_empty() {
        assert_ne!(graph.opset, opset);
        return Err(refused);
    }
    assert_eq!(graph.opset, opset);
    // Shapes must follow for the new nodes, and the result must be fit for clean-up.
    let mut again = graph.clone();
    cleanup(&mut again, &|_, _| None, &mut Default::default()).unwrap();
    let unknown = again.nodes().find(|(_, n)| n.outputs.iter().flatten().any(|v| again.shape(*v).is_none()));
    assert!(unknown.is_none(), "{unknown:?}");
    graph.restore(&mut model.proto);
    Ok(model)
}

fn assert_same(name: &str, a: &Model, b: &Model, options: &Options) {
    let report =
        verify::compare(Source::Model { name: "before", model: a }, Source::Model { name: "after", model: b }, options);
    let report = report.unwrap_or_else(|e| panic!("{name}: {e}"));
    report.check().unwrap_or_else(|e| panic!("{name}: {e}"));
}

fn fixtures_to(opset: i64, wanted: impl Fn(&str) -> bool) {
    for path in common::fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !wanted(&name) {
            continue;
        }
        let before = onnx::load(&path).unwrap();
        let after = converted(&before, opset).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let batch = if name.contains("_dyn") { Some(3) } else { None };
        assert_same(&name, &before, &after, &Options { batch, ..Options::default() });
    }
}

#[test]
fn fixtures_at_opset_17() {
    fixtures_to(17, |name| !name.contains("ts17"));
}

#[test]
fn fixtures_at_opset_20_and_23() {
    fixtures_to(20, |name| name.contains("ts13") || name.contains("dy23"));
    fixtures_to(23, |name| name.contains("ts17") || name.contains("softmax"));
}

// ---- single ops ----

struct Net {
    graph: Graph,
    x: ValueId,
}

impl Net {
    /// One input `x` of known type and shape.
    fn new(opset: i64, dtype: DType, shape: &[i64]) -> Self {
        let mut graph = Graph::default();
        graph.opset = opset;
        graph.name = "net".into();
        let shape = shape.iter().map(|&d| Dim::Int(d)).collect();
        let x = graph.add_value(Value::new("x", Some(dtype), Some(shape)));
        graph.inputs.push(x);
        Self { graph, x }
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_initializer("c", TensorProto::from_i64("", &[values.len() as i64], values))
    }

    fn floats(&mut self, shape: &[i64]) -> ValueId {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: i64| (i % 7) as f32 / 4.0 - 0.5).collect();
        self.graph.add_initializer("c", TensorProto::from_f32("", shape, &values))
    }

    fn node(&mut self, op: &str, inputs: &[ValueId], attributes: &[AttributeProto], outputs: usize) {
        let mut node = Node::new(op, inputs.iter().copied());
        node.attributes = attributes.to_vec();
        for _ in 0..outputs {
            let output = self.graph.add_value(Value::new("y", None, None));
            self.graph.outputs.push(output);
            node.outputs.push(Some(output));
        }
        self.graph.add_node(node);
    }

    fn op(&mut self, op: &str, inputs: &[ValueId], attributes: &[AttributeProto]) {
        self.node(op, inputs, attributes, 1);
    }

    fn model(mut self) -> Model {
        trt_opt::analysis::infer::infer(&mut self.graph, &|_, _| None).unwrap();
        let mut proto = ModelProto { ir_version: Some(10), ..Default::default() };
        proto.opset_import.push(OperatorSetIdProto { domain: None, version: Some(self.graph.opset) });
        self.graph.restore(&mut proto);
        Model::new(proto, "before.onnx")
    }

    /// Converts and compares.
    fn to(self, opset: i64) -> Vec<String> {
        let before = self.model();
        let after = converted(&before, opset).unwrap();
        assert_same("net", &before, &after, &Options::default());
        let ops = after.proto.graph.as_ref().unwrap().node.iter();
        ops.map(|n| n.op_type().to_owned()).collect()
    }

    fn refused(self, opset: i64) -> String {
        let before = self.model();
        let refused = converted(&before, opset).unwrap_err();
        assert_eq!(refused.len(), 1, "{refused:?}");
        refused.into_iter().next().unwrap()
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto::int(name, value)
}

#[test]
fn lists_become_inputs() {
    let mut n = Net::new(11, DType::F32, &[1, 4, 1, 6]);
    let x = n.x;
    n.op("Squeeze", &[x], &[AttributeProto::ints("axes", &[0])]);
    n.op("Squeeze", &[x], &[]);
    n.op("Unsqueeze", &[x], &[AttributeProto::ints("axes", &[1])]);
    n.op("ReduceSum", &[x], &[AttributeProto::ints("axes", &[1, -1]), int("keepdims", 0)]);
    n.op("ReduceMax", &[x], &[AttributeProto::ints("axes", &[1])]);
    n.node("Split", &[x], &[int("axis", 1), AttributeProto::ints("split", &[1, 3])], 2);
    n.node("Split", &[x], &[int("axis", 1)], 2);
    n.op("Dropout", &[x], &[AttributeProto::float("ratio", 0.5)]);
    let ops = n.to(20);
    assert_eq!(ops.len(), 8);
}

#[test]
fn softmax_over_several_axes_is_flattened() {
    for axis in [0, 1, 2, 3, -1, -2] {
        let mut n = Net::new(11, DType::F32, &[2, 3, 4, 5]);
        let x = n.x;
        n.op("Softmax", &[x], &[int("axis", axis)]);
        let ops = n.to(17);
        assert_eq!(ops.len(), if matches!(axis, 3 | -1) { 1 } else { 4 }, "{ops:?}");
    }
    let mut n = Net::new(11, DType::F32, &[2, 5]);
    let x = n.x;
    n.op("LogSoftmax", &[x], &[]);
    assert_eq!(n.to(13), ["LogSoftmax"]);
}

#[test]
fn newer_ops_are_written_out() {
    for dtype in [DType::F32, DType::F16] {
        let mut n = Net::new(20, dtype, &[2, 6, 4, 5]);
        let x = n.x;
        n.op("Gelu", &[x], &[]);
        n.op("Gelu", &[x], &[AttributeProto::string("approximate", "tanh")]);
        if dtype == DType::F32 {
            n.op("Mish", &[x], &[]);
        }
        assert!(n.to(17).iter().all(|op| op != "Gelu"));
    }
    let mut n = Net::new(23, DType::F32, &[2, 6, 8]);
    let (x, scale, wide) = (n.x, n.floats(&[8]), n.floats(&[6, 8]));
    n.op("RMSNormalization", &[x, scale], &[AttributeProto::float("epsilon", 1e-3)]);
    n.op("RMSNormalization", &[x, wide], &[int("axis", 1)]);
    assert!(n.to(17).iter().all(|op| op != "RMSNormalization"));

    for opset in [18, 21] {
        let mut n = Net::new(opset, DType::F32, &[2, 6, 4, 5]);
        let parameters = if opset == 18 { 3 } else { 6 };
        let (x, scale, bias) = (n.x, n.floats(&[parameters]), n.floats(&[parameters]));
        n.op("GroupNormalization", &[x, scale, bias], &[int("num_groups", 3)]);
        assert!(n.to(17).contains(&"InstanceNormalization".to_owned()));
    }
}

#[test]
fn attention_is_written_out() {
    // Rank 4, with a mask of floats, of booleans, and causal.
    let heads = [2, 3, 5, 8];
    for mask in ["none", "float", "bool", "causal"] {
        let mut n = Net::new(23, DType::F32, &heads);
        let (x, k, v) = (n.x, n.floats(&[2, 3, 7, 8]), n.floats(&[2, 3, 7, 4]));
        let mut inputs = vec![x, k, v];
        let mut attributes = vec![AttributeProto::float("scale", 0.25)];
        match mask {
            "float" => inputs.push(n.floats(&[5, 7])),
            "bool" => {
                let open: Vec<bool> = (0..35).map(|i| i % 3 != 0).collect();
                inputs.push(n.graph.add_initializer("mask", TensorProto::from_bool("", &[1, 1, 5, 7], &open)));
            }
            "causal" => attributes.push(int("is_causal", 1)),
            _ => {}
        }
        n.op("Attention", &inputs, &attributes);
        assert!(n.to(17).contains(&"Softmax".to_owned()), "{mask}");
    }
    // Rank 3: heads inside the last axis, the scale by default.
    let mut n = Net::new(23, DType::F32, &[2, 5, 24]);
    let (x, k, v) = (n.x, n.floats(&[2, 7, 24]), n.floats(&[2, 7, 12]));
    n.op("Attention", &[x, k, v], &[int("q_num_heads", 3), int("kv_num_heads", 3)]);
    let ops = n.to(20);
    assert_eq!(ops.iter().filter(|op| *op == "MatMul").count(), 2);
}

#[test]
fn inputs_become_lists() {
    let mut n = Net::new(18, DType::F32, &[2, 3, 5]);
    let x = n.x;
    let axes = n.ints(&[-1]);
    n.op("ReduceMean", &[x, axes], &[]);
    n.op("ReduceL2", &[x], &[int("keepdims", 0)]);
    n.op("ReduceMax", &[x], &[int("noop_with_empty_axes", 1)]);
    n.op("ReduceSum", &[x, axes], &[]);
    n.node("Split", &[x], &[int("axis", 2), int("num_outputs", 2)], 2);
    n.node("Split", &[x], &[int("axis", 1), int("num_outputs", 3)], 3);
    let (pads, fill, axis) = (n.ints(&[1, 2]), n.floats(&[]), n.ints(&[1]));
    n.op("Pad", &[x, pads, fill, axis], &[]);
    let ops = n.to(17);
    assert!(ops.contains(&"Identity".to_owned()), "{ops:?}");
}

#[test]
fn what_has_no_older_form_is_refused_and_left() {
    let mut n = Net::new(18, DType::F32, &[2, 3, 4]);
    let x = n.x;
    let axes = n.graph.add_value(Value::new("axes", Some(DType::I64), Some(vec![1.into()])));
    n.graph.inputs.push(axes);
    n.op("ReduceMean", &[x, axes], &[]);
    let message = n.refused(17);
    assert!(message.contains("ReduceMean") && message.contains("its axes are not constant"), "{message}");

    let mut n = Net::new(19, DType::F32, &[2, 3, 4]);
    let (x, pads) = (n.x, n.ints(&[0, 1, 1, 0, 1, 1]));
    n.op("Pad", &[x, pads], &[AttributeProto::string("mode", "wrap")]);
    assert!(n.refused(17).contains("mode wrap"));

    let mut n = Net::new(23, DType::F32, &[2, 4, 5, 8]);
    let (x, k) = (n.x, n.floats(&[2, 2, 7, 8]));
    n.op("Attention", &[x, k, k], &[]);
    assert!(n.refused(17).contains("shares keys and values"));

    let mut n = Net::new(17, DType::F32, &[2]);
    let x = n.x;
    n.op("Relu", &[x], &[]);
    assert!(n.refused(13).contains("no opset is lowered below 17"));
}
