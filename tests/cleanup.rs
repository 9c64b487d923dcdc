//! The clean-up changes no result: every op of the evaluator and every fixture, before and after, in ONNX Runtime.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::Random;
use trt_opt::ir::{Dim, Graph, Node, Value, ValueId, check};
use trt_opt::onnx::proto::{AttributeProto, ModelProto, OperatorSetIdProto, TensorProto};
use trt_opt::onnx::{self, DType, Model};
use trt_opt::rewrite::cleanup::{cleanup, separate_shared_initializers, step};
use trt_opt::verify::{self, Options, Source};

fn clean(graph: &mut Graph) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    cleanup(graph, &|_, _| None, &mut count).unwrap();
    count
}

/// Cleans up a copy of the model.
fn cleaned(model: &Model) -> (Model, BTreeMap<String, usize>) {
    let mut model = model.clone();
    let mut graph = Graph::take(&mut model.proto).unwrap();
    let count = clean(&mut graph);
    check(&graph).unwrap();
    graph.restore(&mut model.proto);
    (model, count)
}

fn assert_same(name: &str, a: &Model, b: &Model, options: &Options) {
    let report =
        verify::compare(Source::Model { name: "before", model: a }, Source::Model { name: "after", model: b }, options);
    let report = report.unwrap_or_else(|e| panic!("{name}: {e}"));
    report.check().unwrap_or_else(|e| panic!("{name}: {e}"));
}

fn ops(model: &Model) -> Vec<&str> {
    model.proto.graph.as_ref().unwrap().node.iter().map(|n| n.op_type()).collect()
}

// ---- fixtures ----

#[test]
fn fixtures_compute_the_same() {
    for path in common::fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let before = onnx::load(&path).unwrap();
        let (after, _) = cleaned(&before);
        let (again, more) = cleaned(&after);
        assert!(more.is_empty(), "{name}: not clean after the first time: {more:?}");
        assert_eq!(ops(&after), ops(&again), "{name}");
        assert!(!ops(&after).contains(&"Constant"), "{name}");
        let batch = if name.contains("_dyn") { Some(3) } else { None };
        assert_same(&name, &before, &after, &Options { batch, ..Options::default() });
    }
}

#[test]
fn shape_arithmetic_of_a_dynamic_batch_goes() {
    for family in ["swin", "swin_torchvision", "swin_original", "vit", "vit_unfused", "tnt", "ptnt", "uniformer"] {
        let load = |kind: &str| {
            let path = Path::new("tests/fixtures").join(format!("{family}_ts17{kind}.onnx"));
            cleaned(&onnx::load(&path).unwrap()).0
        };
        let (fixed, open) = (load(""), load("_dyn"));
        // Only a class token has to be repeated for each image: Shape, Gather, Concat, Expand.
        let extra = ops(&open).len() - ops(&fixed).len();
        assert!(extra <= 4, "{family}: {extra} nodes more with an open batch: {:?}", ops(&open));
        let shapes = ops(&open).iter().filter(|op| **op == "Shape").count();
        assert!(shapes <= 1, "{family}: {shapes} Shape nodes");
        for op in ["Constant", "Unsqueeze", "Mod", "Range", "Where", "ScatterND", "ConstantOfShape", "Cast"] {
            assert!(!ops(&fixed).contains(&op), "{family}: {op} is left");
        }
    }
}

// ---- single ops ----

/// A graph under construction whose outputs are what the nodes compute from constants.
struct Net {
    graph: Graph,
    random: Random,
    outputs: usize,
}

impl Net {
    fn new(opset: i64) -> Self {
        let mut graph = Graph::default();
        graph.opset = opset;
        graph.name = "net".into();
        Self { graph, random: Random(opset as u64), outputs: 0 }
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_initializer("c", TensorProto::from_i64("", &[values.len() as i64], values))
    }

    fn scalar(&mut self, value: i64) -> ValueId {
        self.graph.add_initializer("c", TensorProto::from_i64("", &[], &[value]))
    }

    fn floats(&mut self, shape: &[i64]) -> ValueId {
        let count = shape.iter().product::<i64>();
        let values: Vec<f32> = (0..count).map(|_| self.random.below(4001) as f32 / 1000.0 - 2.0).collect();
        self.graph.add_initializer("c", TensorProto::from_f32("", shape, &values))
    }

    fn given(&mut self, shape: &[i64], values: &[f32]) -> ValueId {
        self.graph.add_initializer("c", TensorProto::from_f32("", shape, values))
    }

    fn integers(&mut self, shape: &[i64], low: i64, high: i64) -> ValueId {
        let count = shape.iter().product::<i64>();
        let values: Vec<i64> = (0..count).map(|_| low + self.random.below((high - low + 1) as usize) as i64).collect();
        self.graph.add_initializer("c", TensorProto::from_i64("", shape, &values))
    }

    fn bools(&mut self, shape: &[i64]) -> ValueId {
        let count = shape.iter().product::<i64>();
        let values: Vec<bool> = (0..count).map(|_| self.random.below(2) == 1).collect();
        self.graph.add_initializer("c", TensorProto::from_bool("", shape, &values))
    }

    /// The op on constants, and an output of the graph for each of its outputs.
    fn op(&mut self, op: &str, inputs: &[ValueId], attributes: &[AttributeProto]) {
        self.node(op, &inputs.iter().copied().map(Some).collect::<Vec<_>>(), attributes, 1);
    }

    fn node(&mut self, op: &str, inputs: &[Option<ValueId>], attributes: &[AttributeProto], outputs: usize) {
        let mut node = Node::new(op, []);
        node.inputs = inputs.to_vec();
        node.attributes = attributes.to_vec();
        let made: Vec<ValueId> = (0..outputs).map(|_| self.graph.add_value(Value::new("t", None, None))).collect();
        node.outputs = made.iter().copied().map(Some).collect();
        self.graph.add_node(node);
        for value in made {
            self.outputs += 1;
            // Outputs stay outputs of a node, so this is what remains.
            let name = format!("out_{:03}_{op}", self.outputs);
            let output = self.graph.add_value(Value::new(&name, None, None));
            let mut keep = Node::new("Identity", [value]);
            keep.outputs = vec![Some(output)];
            self.graph.add_node(keep);
            self.graph.outputs.push(output);
        }
    }

    /// Folds everything and compares with ONNX Runtime.
    fn check(mut self) {
        trt_opt::analysis::infer::infer(&mut self.graph, &|_, _| None).unwrap();
        let untyped: Vec<String> = self
            .graph
            .nodes()
            .filter(|(_, n)| n.outputs.iter().flatten().any(|v| self.graph.static_shape(*v).is_none()))
            .map(|(_, n)| n.op.clone())
            .collect();
        assert!(untyped.is_empty(), "shapes are not known of {untyped:?}");
        let mut proto = ModelProto { ir_version: Some(8), ..Default::default() };
        proto.opset_import.push(OperatorSetIdProto { domain: None, version: Some(self.graph.opset) });
        self.graph.restore(&mut proto);
        let before = Model::new(proto, "before.onnx");
        let (after, count) = cleaned(&before);
        let graph = after.proto.graph.as_ref().unwrap();
        let left: Vec<&str> = graph.node.iter().map(|n| n.op_type()).filter(|op| *op != "Identity").collect();
        assert!(left.is_empty(), "not folded at opset {}: {left:?}, {count:?}", self.graph.opset);
        assert_same(&format!("opset {}", self.graph.opset), &before, &after, &Options::default());
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto::int(name, value)
}

fn list(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto::ints(name, values)
}

fn data_movement(n: &mut Net) {
    let x = n.floats(&[2, 3, 4, 5]);
    for target in [&[6i64, 20][..], &[0, -1, 5], &[-1], &[2, 3, 0, 5], &[1, 120, 1]] {
        let target = n.ints(target);
        n.op("Reshape", &[x, target], &[]);
    }
    n.op("Transpose", &[x], &[]);
    n.op("Transpose", &[x], &[list("perm", &[2, 0, 3, 1])]);
    n.op("Flatten", &[x], &[]);
    n.op("Flatten", &[x], &[int("axis", -2)]);
    n.op("Flatten", &[x], &[int("axis", 4)]);
    for (starts, ends, axes, steps) in [
        (&[1i64, 0][..], &[9i64, -1][..], &[2i64, 3][..], &[1i64, 2][..]),
        (&[-1, 3], &[i64::MIN, 0], &[1, 3], &[-1, -2]),
        (&[-3], &[i64::MAX], &[-1], &[1]),
        (&[2], &[1], &[0], &[1]),
        (&[100], &[-100], &[2], &[-3]),
    ] {
        let operands = [starts, ends, axes, steps].map(|v| n.ints(v));
        n.op("Slice", &[x, operands[0], operands[1], operands[2], operands[3]], &[]);
    }
    let (starts, ends) = (n.ints(&[1, 1]), n.ints(&[2, 3]));
    n.op("Slice", &[x, starts, ends], &[]);
    let y = n.floats(&[2, 1, 4, 5]);
    n.op("Concat", &[x, y, x], &[int("axis", 1)]);
    n.op("Concat", &[x, x], &[int("axis", -1)]);
    for axis in [0, 1, -1] {
        let indices = n.integers(&[2, 3], -2, 1);
        n.op("Gather", &[x, indices], &[int("axis", axis)]);
    }
    let index = n.scalar(-1);
    n.op("Gather", &[x, index], &[int("axis", 2)]);
    let indices = n.integers(&[1, 3, 2, 5], -4, 3);
    n.op("GatherElements", &[x, indices], &[int("axis", 2)]);
    let indices = n.integers(&[4, 2], -2, 1);
    n.op("GatherND", &[x, indices], &[]);
    let indices = n.integers(&[2, 3, 1], -3, 3);
    n.op("GatherND", &[x, indices], &[int("batch_dims", 2)]);
    let indices = n.graph.add_initializer("c", TensorProto::from_i64("", &[2, 2], &[0, 2, 1, -3]));
    let updates = n.floats(&[2, 4, 5]);
    n.op("ScatterND", &[x, indices, updates], &[]);
    let indices = n.graph.add_initializer("c", TensorProto::from_i64("", &[1, 1, 2, 3], &[3, 1, -4, -2, 0, 3]));
    let updates = n.floats(&[1, 1, 2, 3]);
    n.op("ScatterElements", &[x, indices, updates], &[int("axis", 2)]);
    let (pads, fill) = (n.ints(&[0, 1, 0, 2, 1, 0, -1, 0]), n.given(&[], &[7.5]));
    n.op("Pad", &[x, pads], &[]);
    n.op("Pad", &[x, pads, fill], &[]);
    let pads = n.ints(&[0, 0, 2, 3, 0, 0, 1, 1]);
    n.op("Pad", &[x, pads], &[AttributeProto::string("mode", "edge")]);
    n.op("Pad", &[x, pads], &[AttributeProto::string("mode", "reflect")]);
    let y = n.floats(&[3, 1, 5]);
    for shape in [&[3i64, 4, 5][..], &[2, 3, 1, 5], &[1, 1], &[3, 2, 1]] {
        let shape = n.ints(shape);
        n.op("Expand", &[y, shape], &[]);
    }
    let repeats = n.ints(&[2, 3, 1]);
    n.op("Tile", &[y, repeats], &[]);
    let z = n.floats(&[1, 8, 3, 2]);
    for mode in ["DCR", "CRD"] {
        n.op("DepthToSpace", &[z], &[int("blocksize", 2), AttributeProto::string("mode", mode)]);
    }
    let z = n.floats(&[1, 2, 4, 6]);
    n.op("SpaceToDepth", &[z], &[int("blocksize", 2)]);
    let (indices, depth) = (n.integers(&[2, 3], -3, 4), n.scalar(4));
    let values = n.given(&[2], &[-1.0, 3.0]);
    n.op("OneHot", &[indices, depth, values], &[]);
    n.op("OneHot", &[indices, depth, values], &[int("axis", 1)]);
}

fn arithmetic(n: &mut Net) {
    let (x, y) = (n.floats(&[2, 1, 4]), n.floats(&[3, 1]));
    let (i, j) = (n.integers(&[2, 1, 4], -9, 9), n.given(&[1], &[2.5]));
    let k = n.graph.add_initializer("c", TensorProto::from_i64("", &[3, 1], &[4, -3, 7]));
    for op in ["Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal"] {
        n.op(op, &[x, y], &[]);
        n.op(op, &[i, k], &[]);
    }
    n.op("Equal", &[i, i], &[]);
    n.op("Mod", &[i, k], &[]);
    n.op("Mod", &[i, k], &[int("fmod", 1)]);
    n.op("Mod", &[x, y], &[int("fmod", 1)]);
    let positive = n.given(&[4], &[0.5, 1.0, 2.0, 9.0]);
    n.op("Pow", &[positive, j], &[]);
    let two = n.given(&[], &[2.0]);
    n.op("Pow", &[x, two], &[]);
    for op in ["Min", "Max", "Sum", "Mean"] {
        n.op(op, &[x, y, two], &[]);
    }
    for op in ["Sqrt", "Log", "Reciprocal"] {
        n.op(op, &[positive], &[]);
    }
    for op in [
        "Neg", "Abs", "Sign", "Floor", "Ceil", "Round", "Exp", "Sin", "Cos", "Tan", "Tanh", "Erf", "Sigmoid",
        "Softplus", "Relu",
    ] {
        n.op(op, &[x], &[]);
    }
    let halves = n.given(&[6], &[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]);
    n.op("Round", &[halves], &[]);
    for op in ["Neg", "Abs", "Sign"] {
        n.op(op, &[i], &[]);
    }
    let special = n.given(&[4], &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0]);
    n.op("IsNaN", &[special], &[]);
    n.op("IsInf", &[special], &[int("detect_negative", 0)]);
    let (a, b) = (n.bools(&[2, 3]), n.bools(&[3]));
    for op in ["And", "Or", "Xor"] {
        n.op(op, &[a, b], &[]);
    }
    n.op("Not", &[a], &[]);
    let condition = n.bools(&[3, 1]);
    n.op("Where", &[condition, x, y], &[]);
    n.op("Where", &[condition, i, k], &[]);
    let (low, high) = (n.given(&[], &[-0.5]), n.given(&[], &[0.75]));
    n.op("Clip", &[x, low, high], &[]);
    n.node("Clip", &[Some(x), None, Some(high)], &[], 1);
    for (from, to) in [
        (x, DType::I64),
        (x, DType::F64),
        (x, DType::F16),
        (x, DType::Bool),
        (x, DType::I32),
        (i, DType::F32),
        (i, DType::I32),
        (i, DType::U8),
        (i, DType::Bool),
        (a, DType::F32),
        (a, DType::I64),
    ] {
        n.op("Cast", &[from], &[int("to", to as i64)]);
    }
    n.op("Shape", &[x], &[]);
    n.op("Size", &[x], &[]);
    let shape = n.ints(&[2, 0, 3]);
    n.op("ConstantOfShape", &[shape], &[]);
    let shape = n.ints(&[2, 3]);
    let value = AttributeProto::tensor("value", TensorProto::from_i64("", &[1], &[-1]));
    n.op("ConstantOfShape", &[shape], &[value]);
    for (start, limit, delta) in [(0, 7, 2), (5, -4, -3), (3, 3, 1), (4, 1, 1)] {
        let bounds = [start, limit, delta].map(|v| n.scalar(v));
        n.op("Range", &bounds, &[]);
    }
    let axis = n.scalar(2);
    n.op("CumSum", &[x, axis], &[]);
    n.op("CumSum", &[x, axis], &[int("exclusive", 1), int("reverse", 1)]);
    let (p, q) = (n.floats(&[2, 1, 3, 4]), n.floats(&[5, 4, 2]));
    n.op("MatMul", &[p, q], &[]);
    let v = n.floats(&[4]);
    n.op("MatMul", &[p, v], &[]);
    n.op("MatMul", &[v, q], &[]);
    n.op("MatMul", &[v, v], &[]);
    for op in ["ArgMax", "ArgMin"] {
        n.op(op, &[i], &[int("axis", 2)]);
        n.op(op, &[x], &[int("axis", -1), int("keepdims", 0)]);
    }
    for op in ["ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"] {
        n.op(op, &[i], &[]);
    }
}

const REDUCTIONS: [&str; 9] = [
    "ReduceMean",
    "ReduceProd",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
];

#[test]
fn constant_nodes_at_opset_12() {
    let mut n = Net::new(12);
    data_movement(&mut n);
    arithmetic(&mut n);
    let x = n.floats(&[2, 1, 4, 3]);
    n.op("Squeeze", &[x], &[list("axes", &[-3])]);
    n.op("Squeeze", &[x], &[]);
    n.op("Unsqueeze", &[x], &[list("axes", &[0, -1])]);
    n.op("ReduceSum", &[x], &[list("axes", &[-1, 0])]);
    n.node("Split", &[Some(x)], &[int("axis", 2)], 2);
    n.node("Split", &[Some(x)], &[int("axis", 2), list("split", &[1, 3])], 2);
    // Axes from the given one on are one.
    for axis in [0, 1, 2, 3, -1, -2] {
        n.op("Softmax", &[x], &[int("axis", axis)]);
        n.op("LogSoftmax", &[x], &[int("axis", axis)]);
    }
    n.op("Softmax", &[x], &[]);
    n.check();
}

#[test]
fn constant_nodes_at_opset_17() {
    let mut n = Net::new(17);
    data_movement(&mut n);
    arithmetic(&mut n);
    let x = n.floats(&[2, 1, 4, 3]);
    let axes = n.ints(&[1]);
    n.op("Squeeze", &[x, axes], &[]);
    let axes = n.ints(&[0, -1]);
    n.op("Unsqueeze", &[x, axes], &[]);
    n.op("ReduceSum", &[x, axes], &[int("keepdims", 0)]);
    n.op("ReduceSum", &[x], &[]);
    n.op("ReduceSum", &[x], &[int("noop_with_empty_axes", 1)]);
    let positive = n.given(&[2, 3], &[0.5, 1.5, 2.0, 0.25, 3.0, 1.0]);
    for op in REDUCTIONS {
        n.op(op, &[positive], &[list("axes", &[-1])]);
        n.op(op, &[positive], &[int("keepdims", 0)]);
    }
    let sizes = n.ints(&[3, 0, 1]);
    n.node("Split", &[Some(x), Some(sizes)], &[int("axis", 2)], 3);
    for axis in [0, 1, 2, -1] {
        n.op("Softmax", &[x], &[int("axis", axis)]);
    }
    n.op("LogSoftmax", &[x], &[]);
    for (upper, k) in [(1, 0), (0, 0), (1, 1), (0, -1), (0, 2)] {
        let k = n.scalar(k);
        n.op("Trilu", &[x, k], &[int("upper", upper)]);
    }
    n.op("Shape", &[x], &[int("start", -2)]);
    n.op("Shape", &[x], &[int("start", 1), int("end", -1)]);
    let like = n.integers(&[1], 0, 1);
    n.op("CastLike", &[x, like], &[]);
    let half = AttributeProto::int("to", DType::F16 as i64);
    n.op("Cast", &[x], &[half]);
    n.op("LessOrEqual", &[x, x], &[]);
    n.op("GreaterOrEqual", &[x, x], &[]);
    n.check();
}

#[test]
fn constant_nodes_at_opset_18() {
    let mut n = Net::new(18);
    let x = n.given(&[2, 5], &[0.5, 1.5, 2.0, 0.25, 3.0, 1.0, 2.0, 4.0, 0.125, 6.0]);
    let axes = n.ints(&[-1]);
    for op in REDUCTIONS {
        n.op(op, &[x, axes], &[]);
        n.op(op, &[x], &[int("keepdims", 0)]);
    }
    n.node("Split", &[Some(x)], &[int("axis", 1), int("num_outputs", 2)], 2);
    let (pads, axes, fill) = (n.ints(&[1, 2]), n.ints(&[-1]), n.given(&[], &[3.0]));
    n.op("Pad", &[x, pads, fill, axes], &[]);
    let wide = n.ints(&[0, 3, 0, 4]);
    n.op("Pad", &[x, wide], &[AttributeProto::string("mode", "reflect")]);
    n.check();
}

// ---- what it must leave, and what it must find ----

fn float_input(graph: &mut Graph, name: &str, shape: &[Dim]) -> ValueId {
    let id = graph.add_value(Value::new(name, Some(DType::F32), Some(shape.to_vec())));
    graph.inputs.push(id);
    id
}

fn add(graph: &mut Graph, op: &str, inputs: &[ValueId], attributes: &[AttributeProto]) -> ValueId {
    let output = graph.add_value(Value::new(&format!("{op}_out"), None, None));
    let mut node = Node::new(op, inputs.iter().copied());
    node.attributes = attributes.to_vec();
    node.outputs = vec![Some(output)];
    graph.add_node(node);
    output
}

fn graph_of(opset: i64) -> Graph {
    let mut graph = Graph::default();
    graph.opset = opset;
    graph
}

#[test]
fn names_of_inputs_and_outputs_stay() {
    let mut g = graph_of(17);
    let x = float_input(&mut g, "x", &[Dim::symbol("n"), 4.into()]);
    let relu = add(&mut g, "Relu", &[x], &[]);
    let same = add(&mut g, "Identity", &[relu], &[]);
    let through = add(&mut g, "Identity", &[x], &[]);
    g.outputs.extend([same, through]);
    let names: Vec<String> = g.outputs.iter().map(|o| g.value(*o).name.clone()).collect();
    let count = clean(&mut g);
    assert_eq!(count.get(step::NO_OP), Some(&1));
    assert_eq!(g.outputs.iter().map(|o| g.value(*o).name.clone()).collect::<Vec<_>>(), names);
    let left: Vec<&str> = g.nodes().map(|(_, n)| n.op.as_str()).collect();
    // An input cannot be renamed to the output's name, so that copy stays.
    assert_eq!(left, ["Relu", "Identity"]);
}

#[test]
fn random_and_plugin_nodes_are_not_folded_or_merged() {
    let mut g = graph_of(17);
    let shape = g.add_initializer("c", TensorProto::from_f32("", &[2], &[0.0; 2]));
    let a = add(&mut g, "RandomNormalLike", &[shape], &[]);
    let b = add(&mut g, "RandomNormalLike", &[shape], &[]);
    let sum = add(&mut g, "Sub", &[a, b], &[]);
    let plugin = |g: &mut Graph| {
        let output = g.add_value(Value::new("p", Some(DType::F32), Some(vec![2.into()])));
        let mut node = Node::new("TrtOptWindow", [shape]);
        node.domain = "trt.opt".into();
        node.outputs = vec![Some(output)];
        g.add_node(node);
        output
    };
    let (p, q) = (plugin(&mut g), plugin(&mut g));
    g.outputs.extend([sum, p, q]);
    assert!(clean(&mut g).is_empty());
    assert_eq!(g.order().len(), 5);
}

#[test]
fn zeros_are_added_only_where_that_changes_nothing() {
    for (op, dtype, value, dropped) in [
        ("Add", DType::F32, 0.0, false),
        ("Sub", DType::F32, 0.0, true),
        ("Sub", DType::F32, -0.0, false),
        ("Mul", DType::F32, 1.0, true),
        ("Div", DType::F32, 1.0, true),
        ("Mul", DType::F32, 1.5, false),
    ] {
        let mut g = graph_of(17);
        let x = float_input(&mut g, "x", &[Dim::symbol("n"), 4.into()]);
        assert_eq!(dtype, DType::F32);
        let c = g.add_initializer("c", TensorProto::from_f32("", &[1], &[value]));
        let y = add(&mut g, op, &[x, c], &[]);
        let y = add(&mut g, "Relu", &[y], &[]);
        g.outputs.push(y);
        clean(&mut g);
        assert_eq!(g.order().len() == 1, dropped, "{op} by {value}");
    }
    // A constant of higher rank changes the shape.
    let mut g = graph_of(17);
    let x = float_input(&mut g, "x", &[4.into()]);
    let c = g.add_initializer("c", TensorProto::from_f32("", &[1, 1], &[1.0]));
    let y = add(&mut g, "Mul", &[x, c], &[]);
    let y = add(&mut g, "Relu", &[y], &[]);
    g.outputs.push(y);
    clean(&mut g);
    assert_eq!(g.order().len(), 2);
}

#[test]
fn duplicates_are_found_through_equal_constants() {
    let mut g = graph_of(17);
    let x = float_input(&mut g, "x", &[Dim::symbol("n"), 4.into()]);
    let scaled = |g: &mut Graph, by: f32| {
        let c = g.add_initializer("c", TensorProto::from_f32("", &[], &[by]));
        add(g, "Mul", &[x, c], &[])
    };
    let (a, b, c) = (scaled(&mut g, 2.0), scaled(&mut g, 2.0), scaled(&mut g, 3.0));
    let sum = add(&mut g, "Sub", &[a, b], &[]);
    let sum = add(&mut g, "Add", &[sum, c], &[]);
    g.outputs.push(sum);
    assert_eq!(clean(&mut g).get(step::DUPLICATE), Some(&1));
    assert_eq!(g.order().len(), 4);
}

#[test]
fn a_small_weight_is_not_blown_up() {
    let mut g = graph_of(17);
    let c = g.add_initializer("c", TensorProto::from_f32("", &[1], &[1.0]));
    let shape = g.add_initializer("s", TensorProto::from_i64("", &[1], &[4 << 20]));
    let y = add(&mut g, "Expand", &[c, shape], &[]);
    let y = add(&mut g, "Relu", &[y], &[]);
    g.outputs.push(y);
    assert!(clean(&mut g).is_empty());
}

#[test]
fn values_that_subgraphs_read_keep_their_names() {
    use trt_opt::onnx::proto::{GraphProto, NodeProto};
    let mut g = graph_of(17);
    let x = float_input(&mut g, "x", &[4.into()]);
    let same = add(&mut g, "Identity", &[x], &[]);
    let branch = GraphProto {
        name: Some("branch".into()),
        node: vec![NodeProto {
            op_type: Some("Relu".into()),
            input: vec![g.value(same).name.clone()],
            output: vec!["inner".into()],
            ..NodeProto::default()
        }],
        output: vec![common::value("inner", &[4])],
        ..GraphProto::default()
    };
    let condition = g.add_initializer("c", TensorProto::from_bool("", &[], &[true]));
    let y = g.add_value(Value::new("y", None, None));
    let mut node = Node::new("If", [condition]);
    let attribute = |name: &str| AttributeProto {
        name: Some(name.into()),
        g: Some(Box::new(branch.clone())),
        r#type: Some(5),
        ..AttributeProto::default()
    };
    node.attributes = vec![attribute("then_branch"), attribute("else_branch")];
    node.captures = vec![same];
    node.outputs = vec![Some(y)];
    g.add_node(node);
    g.outputs.push(y);
    assert!(clean(&mut g).is_empty());
    assert_eq!(g.order().len(), 2);
}

#[test]
fn overridable_weights_are_not_constants() {
    let mut proto = common::model(
        vec![common::node("Neg", &["w"], &["t"]), common::node("Add", &["x", "t"], &["y"])],
        vec![TensorProto::from_f32("w", &[4], &[1.0; 4])],
    );
    proto.graph.as_mut().unwrap().input.push(common::value("w", &[4]));
    let mut model = proto.clone();
    let mut graph = Graph::take(&mut model).unwrap();
    assert!(clean(&mut graph).is_empty());
    // Without the input of that name it is one.
    proto.graph.as_mut().unwrap().input.pop();
    let mut graph = Graph::take(&mut proto).unwrap();
    assert_eq!(clean(&mut graph).get(step::FOLD), Some(&1));
}

#[test]
fn shared_biases_are_separated() {
    let mut g = graph_of(17);
    let x = float_input(&mut g, "x", &[1.into(), 4.into()]);
    let bias = g.add_initializer("bias", TensorProto::from_f32("", &[4], &[0.0; 4]));
    let matrix = g.add_initializer("w", TensorProto::from_f32("", &[4, 4], &[1.0; 16]));
    let mut y = x;
    for _ in 0..3 {
        y = add(&mut g, "Gemm", &[y, matrix, bias], &[]);
    }
    g.outputs.push(y);
    assert_eq!(separate_shared_initializers(&mut g), 2);
    assert_eq!(separate_shared_initializers(&mut g), 0);
    check(&g).unwrap();
    let biases: std::collections::BTreeSet<_> = g.nodes().map(|(_, n)| n.input(2)).collect();
    assert_eq!(biases.len(), 3);
    assert_eq!(g.uses(matrix).len(), 3);
}
