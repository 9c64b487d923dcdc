//! Conversion to float16: each reason to stay in float32 with its near misses, and every fixture against its float
//! original. Models run in ONNX Runtime; `.ci/run` sets up the library, and without it these tests fail.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{node, value};
use trt_opt::analysis::infer::infer;
use trt_opt::ir::{Graph, check};
use trt_opt::onnx::proto::*;
use trt_opt::onnx::{DType, Model};
use trt_opt::rewrite::fp16::{self, CauseKind, Precision, Range, Ranges};
use trt_opt::rewrite::{Kind, Ledger, Options, Target, ops};
use trt_opt::verify::{self, Source};
use trt_opt::{testing, text};

// ---- models ----

type Port<'a> = (&'a str, &'a [i64]);

fn model(inputs: &[Port], nodes: Vec<NodeProto>, weights: Vec<TensorProto>, outputs: &[Port]) -> Model {
    let mut proto = common::model(nodes, weights);
    let graph = proto.graph.as_mut().unwrap();
    graph.input = inputs.iter().map(|(name, dims)| value(name, dims)).collect();
    graph.output = outputs.iter().map(|(name, dims)| value(name, dims)).collect();
    Model::new(proto, "model.onnx")
}

/// From `x` of 4 elements to `y`.
fn simple(nodes: Vec<NodeProto>, weights: Vec<TensorProto>) -> Model {
    model(&[("x", &[4])], nodes, weights, &[("y", &[4])])
}

/// A 4x4 matrix of one value.
fn square(name: &str, value: f32) -> TensorProto {
    TensorProto::from_f32(name, &[4, 4], &[value; 16])
}

fn scalar(name: &str, value: f32) -> TensorProto {
    TensorProto::from_f32(name, &[], &[value])
}

fn typed(info: ValueInfoProto, dtype: DType) -> ValueInfoProto {
    let mut info = info;
    if let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.elem_type = Some(dtype as i32);
    }
    info
}

fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.push(attribute);
    node
}

fn cast(input: &str, output: &str, to: DType) -> NodeProto {
    with(node("Cast", &[input], &[output]), AttributeProto::int("to", to as i64))
}

fn graph_attribute(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::Graph as i32),
        g: Some(Box::new(graph)),
        ..AttributeProto::default()
    }
}

// ---- conversion ----

struct Converted {
    model: Model,
    account: Precision,
    types: BTreeMap<String, DType>,
}

fn convert_with(model: &Model, ranges: Option<&Ranges>, options: &fp16::Options) -> Converted {
    let mut after = model.clone();
    let account = fp16::convert(&mut after.proto, ranges, options).unwrap();
    let graph = inferred(&after);
    check(&graph).unwrap();
    if account.converted {
        assert_account(&inferred(model), &graph, &account);
    }
    let named = |id| Some((graph.value(id).name.clone(), graph.dtype(id)?));
    Converted { types: graph.value_ids().filter_map(named).collect(), model: after, account }
}

fn inferred(model: &Model) -> Graph {
    let mut graph = Graph::take(&mut model.proto.clone()).unwrap();
    infer(&mut graph, &ops::shapes).unwrap();
    graph
}

/// Calibrated in ONNX Runtime, and proved there.
fn convert(model: &Model) -> Converted {
    let ranges = verify::calibrate(model, "model", &run_options(""), &mut |_, _| {}).unwrap();
    let converted = convert_with(model, Some(&ranges), &fp16::Options::default());
    assert_close(model, &converted.model);
    converted
}

/// With ranges that are given for some values and harmless for the others.
fn convert_seen(model: &Model, seen: &[(&str, f32)]) -> Converted {
    let mut ranges = Ranges::new("by hand");
    let graph = inferred(model);
    for id in graph.value_ids() {
        ranges.insert(&graph.value(id).name, Range { max_abs: 1.0, whole: false, nan: false });
    }
    for (name, max_abs) in seen {
        ranges.insert(name, Range { max_abs: *max_abs, whole: false, nan: false });
    }
    convert_with(model, Some(&ranges), &fp16::Options::default())
}

fn assert_close(a: &Model, b: &Model) {
    let options = verify::Options { rtol: Some(verify::RTOL_CONVERTED), ..run_options("") };
    let report =
        verify::compare(Source::Model { name: "float", model: a }, Source::Model { name: "half", model: b }, &options);
    report.unwrap().check().unwrap();
}

fn run_options(name: &str) -> verify::Options {
    verify::Options { batch: name.contains("_dyn").then_some(3), threads: Some(1), ..verify::Options::default() }
}

impl Converted {
    /// Nodes of all islands.
    fn stays(&self) -> BTreeSet<&str> {
        self.account.islands.iter().flat_map(|i| &i.nodes).map(String::as_str).collect()
    }

    fn kinds(&self) -> Vec<CauseKind> {
        self.account.islands.iter().flat_map(|i| &i.causes).map(|c| c.kind).collect()
    }

    #[track_caller]
    fn assert_all_half(&self) {
        assert!(self.account.converted && self.account.islands.is_empty(), "{:#?}", self.account);
        assert_eq!(self.account.nodes.float32, 0);
    }

    #[track_caller]
    fn assert_island(&self, kinds: &[CauseKind], nodes: &[&str]) {
        assert_eq!(self.stays(), nodes.iter().copied().collect(), "{:#?}", self.account);
        assert_eq!(self.kinds(), kinds, "{:#?}", self.account);
    }

    fn ops(&self) -> Vec<&str> {
        self.model.proto.graph.as_ref().unwrap().node.iter().map(|n| n.op_type()).collect()
    }
}

/// Ports that are float32 in every model that ONNX allows.
fn is_fixed(op: &str, input: Option<usize>, output: Option<usize>) -> bool {
    match op {
        "Resize" => matches!(input, Some(1 | 2)),
        "LayerNormalization" => matches!(output, Some(1 | 2)),
        // Casts are looked at by what they join.
        "Cast" => true,
        _ => false,
    }
}

/// No float32 outside the islands, no float16 inside, no cast that need not be, and the account counts right.
fn assert_account(before: &Graph, graph: &Graph, account: &Precision) {
    let old: BTreeSet<String> = before.nodes().map(|(id, _)| before.node_label(id)).collect();
    let islands: BTreeSet<&str> = account.islands.iter().flat_map(|i| &i.nodes).map(String::as_str).collect();
    assert_eq!(islands.len(), account.islands.iter().map(|i| i.nodes.len()).sum::<usize>());
    let (mut casts, mut float) = (0, 0);
    for (id, node) in graph.nodes() {
        let label = graph.node_label(id);
        let ports = |values: &[Option<trt_opt::ir::ValueId>]| -> Vec<(usize, DType)> {
            let typed = values.iter().enumerate().filter_map(|(i, v)| Some((i, graph.dtype((*v)?)?)));
            typed.collect()
        };
        let (inputs, outputs) = (ports(&node.inputs), ports(&node.outputs));
        let between = |a: DType, b: DType| inputs == [(0, a)] && outputs == [(0, b)];
        if node.op == "Cast" && (between(DType::F16, DType::F32) || between(DType::F32, DType::F16)) {
            // One that was there before is a node like others.
            casts += usize::from(!old.contains(&label));
            float += usize::from(islands.contains(label.as_str()));
            let feeds_cast = graph.uses(node.outputs[0].unwrap()).iter().any(|u| {
                let user = graph.node(*u);
                user.op == "Cast" && graph.dtype(user.outputs[0].unwrap()) == graph.dtype(node.inputs[0].unwrap())
            });
            assert!(!feeds_cast || graph.dtype(node.inputs[0].unwrap()) == Some(DType::F32), "{label}: cast back");
        } else if islands.contains(label.as_str()) {
            float += 1;
            assert!(inputs.iter().chain(&outputs).all(|(_, d)| *d != DType::F16), "float16 in an island: {label}");
        } else {
            let wrong = inputs.iter().find(|(i, d)| *d == DType::F32 && !is_fixed(&node.op, Some(*i), None));
            let wrong = wrong.or(outputs.iter().find(|(i, d)| *d == DType::F32 && !is_fixed(&node.op, None, Some(*i))));
            let reads = matches!(node.op.as_str(), "Shape" | "Size" | "NonZero" | "IsNaN");
            assert!(wrong.is_none() || reads, "float32 outside the islands: {label} ({})", node.op);
        }
    }
    assert_eq!(account.casts, casts, "{account:#?}");
    assert_eq!(account.nodes.float32, float, "{account:#?}");
    for island in &account.islands {
        assert!(!island.causes.is_empty(), "no reason for {:?}", island.nodes);
        for cause in &island.causes {
            assert!(!cause.reason.is_empty() && island.nodes.contains(&cause.node), "{cause:?}");
        }
    }
}

// ---- weights ----

#[test]
fn a_weight_beyond_float16_keeps_its_node() {
    let scaled = |w: f32| {
        let nodes = vec![
            node("MatMul", &["x", "m"], &["a"]),
            node("Mul", &["a", "w"], &["b"]),
            node("MatMul", &["b", "m"], &["y"]),
        ];
        simple(nodes, vec![TensorProto::from_f32("w", &[4], &[1.0, w, 2.0, -1.0]), square("m", 1e-3)])
    };
    let far = convert(&scaled(1e5));
    far.assert_island(&[CauseKind::Weight], &["Mul_b"]);
    let cause = &far.account.islands[0].causes[0];
    assert_eq!((cause.value.as_deref(), cause.figure, cause.limit), (Some("w"), Some(1e5), Some(65504.0)));
    assert_eq!(far.types["w"], DType::F32);
    assert_eq!(far.types["m"], DType::F16);
    assert_eq!((far.account.weight_bytes.float16, far.account.weight_bytes.float32), (32, 16));
    // The largest number that still rounds to a finite one.
    convert(&scaled(65519.0)).assert_all_half();
    assert_eq!(convert(&scaled(65520.0)).kinds(), [CauseKind::Weight]);
}

#[test]
fn bounds_and_infinities_may_be_infinite() {
    let nodes = vec![
        node("Clip", &["x", "low", "high"], &["a"]),
        node("Max", &["a", "low"], &["b"]),
        node("Add", &["b", "mask"], &["c"]),
        with(node("Softmax", &["c"], &["y"]), AttributeProto::int("axis", -1)),
    ];
    let mask = TensorProto::from_f32("mask", &[4], &[0.0, f32::NEG_INFINITY, 0.0, 0.0]);
    let weights = vec![scalar("low", f32::MIN), scalar("high", f32::MAX), mask];
    convert(&simple(nodes, weights)).assert_all_half();
    // A finite mask that large is a number like any other.
    let nodes = vec![
        node("Add", &["x", "mask"], &["c"]),
        with(node("Softmax", &["c"], &["y"]), AttributeProto::int("axis", -1)),
    ];
    let mask = TensorProto::from_f32("mask", &[4], &[0.0, -1e9, 0.0, 0.0]);
    let masked = convert(&simple(nodes, vec![mask]));
    assert_eq!(masked.stays(), ["Add_c", "Softmax_y"].into());
    assert_eq!(masked.kinds(), [CauseKind::Weight, CauseKind::Overflow]);
}

#[test]
fn a_factor_of_lost_digits_keeps_its_node_and_a_bias_does_not() {
    let by = |op: &str, w: f32| simple(vec![node(op, &["x", "w"], &["y"])], vec![scalar("w", w)]);
    let lost = convert_seen(&by("Mul", 1e-6), &[]);
    lost.assert_island(&[CauseKind::Weight], &["Mul_y"]);
    convert(&by("Mul", 1e-3)).assert_all_half();
    convert(&by("Mul", 0.0)).assert_all_half();
    convert(&by("Add", 1e-6)).assert_all_half();
}

#[test]
fn weights_that_vanish_are_noted() {
    let weights = |tiny: f32| {
        let w: Vec<f32> = (0..100).map(|i| if i < 5 { tiny } else { 1.0 }).collect();
        model(
            &[("x", &[2, 100])],
            vec![node("MatMul", &["x", "w"], &["y"])],
            vec![TensorProto::from_f32("w", &[100, 1], &w)],
            &[("y", &[2, 1])],
        )
    };
    let noted = convert(&weights(1e-9));
    noted.assert_all_half();
    assert_eq!(noted.account.notes.len(), 1);
    assert!(noted.account.notes[0].contains("weight 'w': 5.0 %"), "{:?}", noted.account.notes);
    assert!(convert(&weights(1e-6)).account.notes.is_empty());
}

#[test]
fn a_weight_that_both_read_is_kept_in_both_types() {
    let nodes = vec![
        node("MatMul", &["x", "m"], &["s"]),
        node("Mul", &["s", "w"], &["a"]),
        with(node("Celu", &["a"], &["b"]), AttributeProto::float("alpha", 1.0)),
        node("Mul", &["b", "w"], &["c"]),
        with(node("Celu", &["c"], &["d"]), AttributeProto::float("alpha", 1.0)),
        node("MatMul", &["d", "m"], &["e"]),
        node("Mul", &["e", "w"], &["y"]),
    ];
    let w = TensorProto::from_f32("w", &[4], &[1.0, 2.0, 3.0, 0.1]);
    let converted = convert(&simple(nodes, vec![w, square("m", 0.5)]));
    // The product between the two is not worth two casts.
    converted.assert_island(&[CauseKind::Op, CauseKind::Between], &["Celu_b", "Mul_c", "Celu_d"]);
    assert_eq!(converted.types["w"], DType::F32);
    assert_eq!(converted.types["w_fp16"], DType::F16);
    assert_eq!(converted.types["m"], DType::F16);
    assert_eq!((converted.account.weight_bytes.float16, converted.account.weight_bytes.float32), (40, 16));
}

#[test]
fn a_weight_that_is_listed_as_an_input_is_a_weight_in_old_files_only() {
    let old = |ir_version: i64| {
        let mut model = simple(vec![node("MatMul", &["x", "w"], &["y"])], vec![square("w", 0.3)]);
        model.proto.ir_version = Some(ir_version);
        model.proto.graph.as_mut().unwrap().input.push(value("w", &[4, 4]));
        convert(&model)
    };
    let constant = old(3);
    assert_eq!((constant.types["w"], constant.account.casts), (DType::F16, 2));
    assert_eq!(constant.account.weight_bytes.float32, 0);
    // Since version 4 it is a default, which whoever runs the model may replace.
    let default = old(8);
    assert_eq!((default.types["w"], default.types["w_fp16"], default.account.casts), (DType::F32, DType::F16, 3));
}

#[test]
fn filled_tensors_change_with_what_reads_them() {
    let fill = |value: f32| {
        let filler = AttributeProto::tensor("value", TensorProto::from_f32("", &[1], &[value]));
        let mut open = value_of("x", &["n", "4"]);
        open.name = Some("x".into());
        let nodes = vec![
            node("Shape", &["x"], &["s"]),
            with(node("ConstantOfShape", &["s"], &["c"]), filler),
            node("Add", &["x", "c"], &["y"]),
        ];
        let mut model = model(&[], nodes, vec![], &[]);
        let graph = model.proto.graph.as_mut().unwrap();
        (graph.input, graph.output) = (vec![open], vec![value_of("y", &["n", "4"])]);
        model
    };
    convert(&fill(0.5)).assert_all_half();
    assert_eq!(convert(&fill(1e6)).stays(), ["ConstantOfShape_c", "Add_y"].into());
}

/// A float value whose axes are numbers or names.
fn value_of(name: &str, axes: &[&str]) -> ValueInfoProto {
    let dim = |axis: &&str| tensor_shape_proto::Dimension {
        value: Some(match axis.parse() {
            Ok(size) => tensor_shape_proto::Value::DimValue(size),
            Err(_) => tensor_shape_proto::Value::DimParam((*axis).to_owned()),
        }),
        denotation: None,
    };
    let mut info = value(name, &[]);
    if let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.shape = Some(TensorShapeProto { dim: axes.iter().map(dim).collect() });
    }
    info
}

// ---- values ----

#[test]
fn values_near_the_limit_keep_who_makes_and_who_reads_them() {
    let chain = simple(
        vec![
            node("MatMul", &["x", "w"], &["a"]),
            node("MatMul", &["a", "w"], &["b"]),
            node("MatMul", &["b", "w"], &["c"]),
            node("MatMul", &["c", "w"], &["y"]),
        ],
        vec![square("w", 0.25)],
    );
    let limit = fp16::LIMIT as f32;
    let over = convert_seen(&chain, &[("b", limit + 1.0)]);
    over.assert_island(&[CauseKind::Overflow], &["MatMul_b", "MatMul_c"]);
    let cause = &over.account.islands[0].causes[0];
    assert_eq!((cause.node.as_str(), cause.value.as_deref()), ("MatMul_b", Some("b")));
    assert_eq!((cause.figure, cause.limit), (Some(f64::from(limit + 1.0)), Some(65504.0 / 8.0)));
    assert_eq!(over.account.casts, 4);
    assert_close(&chain, &over.model);
    convert_seen(&chain, &[("b", limit)]).assert_all_half();

    let under = convert_seen(&chain, &[("b", 6e-5)]);
    under.assert_island(&[CauseKind::Underflow], &["MatMul_b", "MatMul_c"]);
    convert_seen(&chain, &[("b", 6.2e-5)]).assert_all_half();
    convert_seen(&chain, &[("b", 0.0)]).assert_all_half();

    // An input has no node that makes it.
    convert_seen(&chain, &[("x", 1e5)]).assert_island(&[CauseKind::Overflow], &["MatMul_a"]);
}

#[test]
fn calibration_sees_every_value_of_the_given_inputs() {
    let chain = simple(
        vec![node("Mul", &["x", "k"], &["a"]), node("Mul", &["a", "k"], &["b"]), node("Tanh", &["b"], &["y"])],
        vec![scalar("k", 10.0)],
    );
    let dir = tempfile::tempdir().unwrap();
    let inputs = dir.path().join("large.npy");
    write_npy(&inputs, &[0.5, -300.0, 1.0, 0.0]);
    let options = verify::Options { inputs: Some(inputs), ..run_options("") };
    let mut told = vec![];
    let ranges = verify::calibrate(&chain, "model", &options, &mut |run, runs| told.push((run, runs))).unwrap();
    assert_eq!(told, [(1, 1)]);
    let reach: Vec<f32> = ["x", "a", "b", "y"].iter().map(|v| ranges.get(v).unwrap().max_abs).collect();
    assert_eq!(reach, [300.0, 3000.0, 30000.0, 1.0]);
    assert!(!ranges.get("x").unwrap().whole && ranges.get("b").unwrap().whole);
    let converted = convert_with(&chain, Some(&ranges), &fp16::Options::default());
    // What the first product makes are whole numbers beyond 2048, by chance.
    assert_eq!(converted.stays(), ["Mul_a", "Mul_b", "Tanh_y"].into());
    assert_eq!(converted.kinds(), [CauseKind::Integer, CauseKind::Overflow]);
    assert_eq!(converted.account.calibration.as_deref(), Some("large.npy"));
    // Random inputs do not get that far.
    let usual = convert(&chain);
    assert_eq!(usual.account.calibration.as_deref(), Some("random inputs, seed 0"));
    assert!(usual.stays().is_empty(), "{:?}", usual.account);
}

/// A `.npy` of float32, of one axis.
fn write_npy(path: &std::path::Path, values: &[f32]) {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", values.len());
    let padded = format!("{header:<117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((padded.len() as u16).to_le_bytes());
    bytes.extend(padded.as_bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn exponentials_are_let_through_where_they_cannot_grow() {
    let exp = simple(vec![node("Exp", &["x"], &["y"])], vec![]);
    convert_seen(&exp, &[("y", 1.0)]).assert_all_half();
    convert_seen(&exp, &[("y", 1.01)]).assert_island(&[CauseKind::Overflow], &["Exp_y"]);
    convert_with(&exp, None, &fp16::Options::default()).assert_island(&[CauseKind::Overflow], &["Exp_y"]);
}

#[test]
fn nan_of_the_calibration_is_noted() {
    let root = simple(vec![node("Sqrt", &["x"], &["y"])], vec![]);
    let ranges = verify::calibrate(&root, "model", &run_options(""), &mut |_, _| {}).unwrap();
    let converted = convert_with(&root, Some(&ranges), &fp16::Options::default());
    assert!(converted.account.notes[0].contains("'y' has NaN"), "{:?}", converted.account.notes);
}

// ---- sums and norms ----

#[test]
fn long_sums_stay() {
    let sum = |op: &str, count: i64| {
        let reduce = with(node(op, &["x"], &["y"]), AttributeProto::ints("axes", &[-1]));
        model(&[("x", &[2, count])], vec![reduce], vec![], &[("y", &[2, 1])])
    };
    for op in ["ReduceMean", "ReduceL1"] {
        convert(&sum(op, 256)).assert_all_half();
        let long = convert(&sum(op, 257));
        long.assert_island(&[CauseKind::Reduction], &[&format!("{op}_y")]);
        assert_eq!(long.account.islands[0].causes[0].figure, Some(257.0));
    }
    // Few elements, but large ones.
    convert_seen(&sum("ReduceMean", 100), &[("x", 81.0)]).assert_all_half();
    assert_eq!(convert_seen(&sum("ReduceMean", 100), &[("x", 82.0)]).kinds(), [CauseKind::Reduction]);
    // Squares reach the limit sooner.
    convert_seen(&sum("ReduceSumSquare", 100), &[("x", 9.0)]).assert_all_half();
    assert_eq!(convert_seen(&sum("ReduceSumSquare", 100), &[("x", 9.1)]).kinds(), [CauseKind::Reduction]);
    // The largest of many elements is no sum.
    convert(&sum("ReduceMax", 1000)).assert_all_half();
}

#[test]
fn sums_of_unknown_length_stay() {
    let reduce = with(node("ReduceMean", &["x"], &["y"]), AttributeProto::ints("axes", &[1]));
    let mut open = model(&[], vec![reduce], vec![], &[]);
    let graph = open.proto.graph.as_mut().unwrap();
    (graph.input, graph.output) = (vec![value_of("x", &["2", "n"])], vec![value_of("y", &["2", "1"])]);
    let converted = convert_seen(&open, &[]);
    converted.assert_island(&[CauseKind::Reduction], &["ReduceMean_y"]);
}

#[test]
fn pools_count_what_they_add_up() {
    let pool = |size: i64| {
        model(
            &[("x", &[1, 2, size, size])],
            vec![node("GlobalAveragePool", &["x"], &["y"])],
            vec![],
            &[("y", &[1, 2, 1, 1])],
        )
    };
    convert(&pool(16)).assert_all_half();
    assert_eq!(convert(&pool(17)).kinds(), [CauseKind::Reduction]);
}

/// A norm spelled out, with this epsilon, between two products.
fn norm(epsilon: f32) -> Model {
    let mean =
        |input: &str, output: &str| with(node("ReduceMean", &[input], &[output]), AttributeProto::ints("axes", &[-1]));
    let nodes = vec![
        node("MatMul", &["x", "w"], &["h"]),
        mean("h", "m"),
        node("Sub", &["h", "m"], &["d"]),
        node("Pow", &["d", "two"], &["q"]),
        mean("q", "v"),
        node("Add", &["v", "eps"], &["e"]),
        node("Sqrt", &["e"], &["r"]),
        node("Div", &["d", "r"], &["n"]),
        node("Mul", &["n", "gamma"], &["g"]),
        node("MatMul", &["g", "w"], &["y"]),
    ];
    let w = TensorProto::from_f32("w", &[4, 4], &std::array::from_fn::<f32, 16, _>(|i| 0.1 * i as f32 - 0.7));
    let gamma = TensorProto::from_f32("gamma", &[4], &[1.0, 1.5, 2.0, 0.5]);
    let weights = vec![w, gamma, scalar("two", 2.0), scalar("eps", epsilon)];
    model(&[("x", &[3, 4])], nodes, weights, &[("y", &[3, 4])])
}

const NORM: [&str; 7] = ["ReduceMean_m", "Sub_d", "Pow_q", "ReduceMean_v", "Add_e", "Sqrt_r", "Div_n"];

#[test]
fn a_norm_stays_from_the_mean_to_the_division() {
    for epsilon in [1e-5, 0.5] {
        let converted = convert(&norm(epsilon));
        converted.assert_island(&[CauseKind::Variance], &NORM);
        // One cast in, one out; the interface has its own two.
        assert_eq!(converted.account.casts, 4);
        assert_eq!(converted.types["gamma"], DType::F16);
        assert_eq!(converted.types["eps"], DType::F32);
    }
}

#[test]
fn a_mean_of_squares_that_nothing_is_divided_by_is_a_sum_like_others() {
    let mut energy = norm(1e-5);
    let graph = energy.proto.graph.as_mut().unwrap();
    graph.node.truncate(5);
    graph.node.push(node("Mul", &["v", "gamma"], &["y"]));
    convert(&energy).assert_all_half();
}

#[test]
fn a_norm_by_l2_stays() {
    let reduce = with(node("ReduceL2", &["x"], &["l"]), AttributeProto::ints("axes", &[-1]));
    let nodes = vec![
        node("Tanh", &["x"], &["t"]),
        reduce,
        node("Max", &["l", "eps"], &["c"]),
        node("Div", &["x", "c"], &["n"]),
        node("MatMul", &["n", "w"], &["p"]),
        node("Add", &["p", "t"], &["y"]),
    ];
    let w = square("w", 0.3);
    let l2 = model(&[("x", &[2, 4])], nodes, vec![w, scalar("eps", 1e-12)], &[("y", &[2, 4])]);
    convert(&l2).assert_island(&[CauseKind::Variance], &["ReduceL2_l", "Max_c", "Div_n"]);
}

#[test]
fn an_epsilon_below_float16_keeps_the_division() {
    let divided = |epsilon: f32, last: &str| {
        let nodes = vec![
            node("MatMul", &["x", "w"], &["a"]),
            node("Abs", &["a"], &["b"]),
            node("Add", &["b", "eps"], &["c"]),
            node(last, &["x", "c"], &["d"]),
            node("MatMul", &["d", "w"], &["y"]),
        ];
        simple(nodes, vec![square("w", 0.3), scalar("eps", epsilon)])
    };
    let lost = convert(&divided(1e-12, "Div"));
    lost.assert_island(&[CauseKind::Epsilon], &["Add_c", "Div_d"]);
    assert!(lost.account.islands[0].causes[0].reason.contains("rounds it to 0"));
    let coarse = convert(&divided(1e-6, "Div"));
    assert!(coarse.account.islands[0].causes[0].reason.contains("few digits"));
    convert(&divided(1e-4, "Div")).assert_all_half();
    // Nothing is divided.
    convert(&divided(1e-12, "Mul")).assert_all_half();
}

#[test]
fn batch_norms_of_small_variances_stay() {
    let norm = |variance: f32| {
        let vector = |name: &str, v: f32| TensorProto::from_f32(name, &[3], &[v, 1.0, 2.0]);
        let weights = vec![vector("s", 1.0), vector("b", 0.1), vector("m", 0.2), vector("v", variance)];
        model(
            &[("x", &[1, 3, 4, 4])],
            vec![node("BatchNormalization", &["x", "s", "b", "m", "v"], &["y"])],
            weights,
            &[("y", &[1, 3, 4, 4])],
        )
    };
    convert(&norm(1e-4)).assert_all_half();
    convert(&norm(1e-6)).assert_island(&[CauseKind::Variance], &["BatchNormalization_y"]);
}

// ---- whole numbers ----

#[test]
fn whole_numbers_stay_whole() {
    let nodes = vec![
        cast("x", "a", DType::F32),
        node("Div", &["a", "two"], &["b"]),
        node("Floor", &["b"], &["c"]),
        cast("c", "y", DType::I64),
    ];
    let mut halved = simple(nodes, vec![scalar("two", 2.0), scalar("unused", 1.0)]);
    let graph = halved.proto.graph.as_mut().unwrap();
    graph.input[0] = typed(graph.input[0].clone(), DType::I64);
    graph.output[0] = typed(graph.output[0].clone(), DType::I64);
    graph.node.extend([cast("x", "f", DType::F32), node("Mul", &["f", "two"], &["z"])]);
    graph.output.push(value("z", &[4]));
    let converted = convert(&halved);
    assert_eq!(converted.stays(), ["Cast_a", "Div_b", "Floor_c"].into());
    assert!(converted.kinds().iter().all(|k| *k == CauseKind::Integer));
    // Another reader of the same numbers computes in float16: they were small.
    assert_eq!(converted.types["z_fp16"], DType::F16);

    // Beyond 2048 float16 has gaps.
    let mut ranges = Ranges::new("by hand");
    for name in ["a", "b", "c", "f", "z"] {
        ranges.insert(name, Range { max_abs: 2049.0, whole: true, nan: false });
    }
    let large = convert_with(&halved, Some(&ranges), &fp16::Options::default());
    assert!(large.stays().contains("Mul_z"), "{:?}", large.account);
    // And without a calibration nobody knows.
    let unknown = convert_with(&halved, None, &fp16::Options::default());
    assert!(unknown.stays().contains("Mul_z"), "{:?}", unknown.account);
}

#[test]
fn resize_keeps_its_scales() {
    let resize = with(node("Resize", &["a", "", "scales"], &["b"]), AttributeProto::string("mode", "linear"));
    let nodes = vec![node("Tanh", &["x"], &["a"]), resize, node("Tanh", &["b"], &["y"])];
    let scales = TensorProto::from_f32("scales", &[4], &[1.0, 1.0, 2.0, 2.0]);
    let constant = model(&[("x", &[1, 2, 3, 3])], nodes.clone(), vec![scales.clone()], &[("y", &[1, 2, 6, 6])]);
    let converted = convert(&constant);
    converted.assert_all_half();
    assert_eq!((converted.types["scales"], converted.types["b"]), (DType::F32, DType::F16));
    assert_eq!(converted.account.weight_bytes.float32, 16);

    // Scales that are computed stay as far back as they are computed.
    let mut computed = model(&[("x", &[1, 2, 3, 3])], nodes, vec![scales], &[("y", &[1, 2, 6, 6])]);
    let graph = computed.proto.graph.as_mut().unwrap();
    graph.initializer[0].name = Some("half".into());
    graph.input.push(value("factor", &[1]));
    graph.node.insert(0, node("Abs", &["factor"], &["f"]));
    graph.node.insert(1, node("Mul", &["half", "f"], &["scales"]));
    let converted = convert_seen(&computed, &[]);
    assert_eq!(converted.stays(), ["Abs_f", "Mul_scales"].into());
}

// ---- borders ----

#[test]
fn an_output_that_is_also_read_inside_is_float_outside() {
    let nodes =
        vec![node("Tanh", &["x"], &["mid"]), node("MatMul", &["mid", "w"], &["a"]), node("Add", &["a", "mid"], &["y"])];
    let w = square("w", 0.3);
    let both = model(&[("x", &[4])], nodes, vec![w], &[("mid", &[4]), ("y", &[4])]);
    let converted = convert(&both);
    converted.assert_all_half();
    assert_eq!((converted.types["mid"], converted.types["mid_fp16"]), (DType::F32, DType::F16));
    assert_eq!(converted.ops(), ["Cast", "Tanh", "Cast", "MatMul", "Add", "Cast"]);
    let outputs: Vec<_> = converted.model.proto.graph.as_ref().unwrap().output.iter().map(|o| o.name()).collect();
    assert_eq!(outputs, ["mid", "y"]);
}

#[test]
fn the_interface_can_be_float16() {
    let nodes = vec![
        node("Tanh", &["x"], &["mid"]),
        with(node("Celu", &["mid"], &["c"]), AttributeProto::float("alpha", 1.0)),
        node("MatMul", &["mid", "w"], &["y"]),
    ];
    let w = square("w", 0.3);
    let both = model(&[("x", &[4])], nodes, vec![w], &[("mid", &[4]), ("c", &[4]), ("y", &[4])]);
    let ranges = verify::calibrate(&both, "model", &run_options(""), &mut |_, _| {}).unwrap();
    let options = fp16::Options { interface: true };
    let converted = convert_with(&both, Some(&ranges), &options);
    assert_close(&both, &converted.model);
    let graph = converted.model.proto.graph.as_ref().unwrap();
    for port in graph.input.iter().chain(&graph.output) {
        let Some(type_proto::Value::TensorType(t)) = port.r#type.as_ref().unwrap().value.as_ref() else { panic!() };
        assert_eq!(t.elem_type, Some(DType::F16 as i32), "{}", port.name());
    }
    // Into the island and out of it.
    assert_eq!(converted.ops(), ["Tanh", "Cast", "Celu", "Cast", "MatMul"]);
    assert!(converted.account.notes.is_empty());

    // What does not fit stays, and is told.
    let mut ranges = ranges;
    ranges.insert("x", Range { max_abs: 1e6, whole: false, nan: false });
    ranges.insert("y", Range { max_abs: 1e6, whole: false, nan: false });
    let far = convert_with(&both, Some(&ranges), &options);
    assert_eq!((far.types["x"], far.types["y"], far.types["mid"]), (DType::F32, DType::F32, DType::F16));
    assert_eq!(far.account.notes.len(), 2, "{:?}", far.account.notes);
}

#[test]
fn what_a_subgraph_reads_keeps_its_name_and_type() {
    let branch = |op: &str| GraphProto {
        name: Some(op.into()),
        node: vec![node(op, &["a", "k"], &[&format!("r_{op}")])],
        output: vec![value(&format!("r_{op}"), &[4])],
        ..GraphProto::default()
    };
    let choice = with(
        with(node("If", &["cond"], &["b"]), graph_attribute("then_branch", branch("Add"))),
        graph_attribute("else_branch", branch("Mul")),
    );
    let nodes = vec![
        node("Tanh", &["x"], &["a"]),
        choice,
        node("MatMul", &["b", "w"], &["c"]),
        node("Mul", &["a", "k"], &["d"]),
        node("Add", &["c", "d"], &["y"]),
    ];
    let weights = vec![square("w", 0.3), TensorProto::from_f32("k", &[4], &[1.0, 2.0, 3.0, 4.0])];
    let mut with_if = simple(nodes, weights);
    let graph = with_if.proto.graph.as_mut().unwrap();
    graph.input.push(typed(value("cond", &[]), DType::Bool));
    let converted = convert(&with_if);
    converted.assert_island(&[CauseKind::Op], &["If_b"]);
    assert_eq!((converted.types["a"], converted.types["a_fp16"]), (DType::F32, DType::F16));
    // The branches read it too.
    assert_eq!((converted.types["k"], converted.types["k_fp16"]), (DType::F32, DType::F16));
    assert_eq!(converted.types["w"], DType::F16);
}

#[test]
fn what_has_no_known_type_stays() {
    let graph_of = |op: &str| GraphProto {
        name: Some(op.into()),
        node: vec![node(op, &["a"], &[&format!("r_{op}")])],
        output: vec![ValueInfoProto { name: Some(format!("r_{op}")), ..ValueInfoProto::default() }],
        ..GraphProto::default()
    };
    let mut choice = node("If", &["cond"], &["b"]);
    choice.attribute =
        vec![graph_attribute("then_branch", graph_of("Neg")), graph_attribute("else_branch", graph_of("Abs"))];
    let nodes = vec![
        node("MatMul", &["x", "w"], &["a"]),
        choice,
        node("MatMul", &["b", "w"], &["c"]),
        node("Neg", &["c"], &["y"]),
    ];
    let mut model = simple(nodes, vec![square("w", 0.3)]);
    model.proto.graph.as_mut().unwrap().input.push(typed(value("cond", &[]), DType::Bool));
    let converted = convert(&model);
    assert_eq!(converted.stays(), ["MatMul_c", "Neg_y"].into());
    let reasons: Vec<&str> = converted.account.islands.iter().flat_map(|i| &i.causes).map(|c| &*c.reason).collect();
    assert_eq!(reasons, ["the type of 'b' is not known", "the type of 'c' is not known"]);
}

#[test]
fn statistics_of_a_norm_are_float() {
    let norm = node("LayerNormalization", &["x", "s", "b"], &["n", "mean", "inverse"]);
    let nodes = vec![norm, node("Add", &["n", "mean"], &["y"])];
    let vector = |name: &str| TensorProto::from_f32(name, &[4], &[1.0, 0.5, 0.25, 2.0]);
    let full = model(&[("x", &[2, 4])], nodes, vec![vector("s"), vector("b")], &[("y", &[2, 4]), ("inverse", &[2, 1])]);
    let converted = convert(&full);
    converted.assert_all_half();
    let types = ["n", "mean", "mean_fp16", "inverse"].map(|v| converted.types[v]);
    assert_eq!(types, [DType::F16, DType::F32, DType::F16, DType::F32]);
}

#[test]
fn simple_nodes_between_islands_join_them() {
    let celu = |input: &str, output: &str| with(node("Celu", &[input], &[output]), AttributeProto::float("alpha", 1.0));
    let two = |third: NodeProto| {
        let nodes = vec![celu("x", "a"), node("Neg", &["a"], &["b"]), celu("b", "c"), third];
        simple(nodes, vec![square("w", 0.3)])
    };
    let joined = convert(&two(node("MatMul", &["c", "w"], &["y"])));
    joined.assert_island(&[CauseKind::Op, CauseKind::Between], &["Celu_a", "Neg_b", "Celu_c"]);
    assert_eq!((joined.account.islands.len(), joined.account.casts), (1, 2));
    // A product between them is worth the casts.
    let nodes = vec![celu("x", "a"), node("MatMul", &["a", "w"], &["b"]), celu("b", "y")];
    let apart = convert(&simple(nodes, vec![square("w", 0.3)]));
    assert_eq!((apart.account.islands.len(), apart.account.casts), (2, 2));
    // So is a value that float16 nodes read as well.
    let mut shared = two(node("MatMul", &["c", "w"], &["p"]));
    shared
        .proto
        .graph
        .as_mut()
        .unwrap()
        .node
        .extend([node("MatMul", &["b", "w"], &["q"]), node("Add", &["p", "q"], &["y"])]);
    convert(&shared).assert_island(&[CauseKind::Op, CauseKind::Op], &["Celu_a", "Celu_c"]);
}

#[test]
fn casts_that_undo_a_widening_go() {
    // The numbers come in float16, are widened for whole-number arithmetic, and a product reads them too.
    let nodes = vec![
        cast("x", "wide", DType::F32),
        node("Floor", &["wide"], &["f"]),
        cast("f", "i", DType::I64),
        node("MatMul", &["wide", "w"], &["y"]),
    ];
    let mut mixed = simple(nodes, vec![square("w", 0.3)]);
    let graph = mixed.proto.graph.as_mut().unwrap();
    graph.input[0] = typed(graph.input[0].clone(), DType::F16);
    graph.output.push(typed(value("i", &[4]), DType::I64));
    let converted = convert(&mixed);
    assert_eq!(converted.stays(), ["Cast_wide", "Floor_f"].into());
    let graph = converted.model.proto.graph.as_ref().unwrap();
    let product = graph.node.iter().find(|n| n.op_type() == "MatMul").unwrap();
    assert_eq!(product.input[0], "x");
    assert_eq!(converted.account.casts, 1);
}

// ---- whole models ----

#[test]
fn a_half_model_is_left_as_it_is() {
    for (dtype, name) in [(DType::F16, "float16"), (DType::BF16, "bfloat16")] {
        let weight = match dtype {
            DType::F16 => TensorProto::from_f16("w", &[4], &[half::f16::ONE; 4]),
            _ => TensorProto::from_bf16("w", &[4], &[half::bf16::ONE; 4]),
        };
        let mut model = simple(vec![node("Add", &["x", "w"], &["y"])], vec![weight]);
        let graph = model.proto.graph.as_mut().unwrap();
        (graph.input[0], graph.output[0]) = (typed(value("x", &[4]), dtype), typed(value("y", &[4]), dtype));
        assert!(!fp16::is_convertible(&model.proto).unwrap());
        let converted = convert_with(&model, None, &fp16::Options::default());
        assert!(!converted.account.converted);
        assert!(converted.account.notes[0].contains(&format!("in {name} already")), "{:?}", converted.account.notes);
        assert_eq!(converted.ops(), ["Add"]);
    }
    let whole = typed(value("x", &[4]), DType::I64);
    let mut model = simple(vec![node("Add", &["x", "x"], &["y"])], vec![]);
    let graph = model.proto.graph.as_mut().unwrap();
    (graph.input[0], graph.output[0]) = (whole, typed(value("y", &[4]), DType::I64));
    let converted = convert_with(&model, None, &fp16::Options::default());
    assert!(converted.account.notes[0].contains("no float32"), "{:?}", converted.account.notes);
}

#[test]
fn attention_of_opset_23_keeps_its_softmax_in_float() {
    for name in ["spelling_attention_op23", "spelling_attention_op23_mask", "spelling_attention_op23_rank3"] {
        let path = std::path::PathBuf::from(format!("tests/fixtures/{name}.onnx"));
        let converted = convert(&trt_opt::onnx::load(&path).unwrap());
        let graph = converted.model.proto.graph.as_ref().unwrap();
        let attention = graph.node.iter().find(|n| n.op_type() == "Attention").unwrap();
        let precision = attention.attribute.iter().find(|a| a.name() == "softmax_precision").unwrap();
        assert_eq!(precision.i, Some(DType::F32 as i64), "{name}");
        assert!(!converted.stays().contains(attention.name()), "{name}: {:?}", converted.account);
    }
}

#[test]
fn double_precision_is_not_touched() {
    let nodes = vec![
        cast("x", "d", DType::F64),
        node("Mul", &["d", "d"], &["e"]),
        cast("e", "f", DType::F32),
        node("Tanh", &["f"], &["y"]),
    ];
    let converted = convert(&simple(nodes, vec![]));
    converted.assert_all_half();
    assert_eq!(
        (converted.types["d"], converted.types["e"], converted.types["f"]),
        (DType::F64, DType::F64, DType::F16)
    );
}

#[test]
fn broken_graphs_are_errors_or_left_sound() {
    for (what, proto) in common::malformed_graphs() {
        for interface in [false, true] {
            let outcome = fp16::convert(&mut proto.clone(), None, &fp16::Options { interface });
            assert!(outcome.is_ok_and(|p| !p.notes.is_empty() || p.converted) || !sound(&proto), "{what}");
        }
    }
}

fn sound(proto: &ModelProto) -> bool {
    let graph = Graph::take(&mut proto.clone());
    graph.is_ok_and(|mut graph| infer(&mut graph, &ops::shapes).is_ok() && check(&graph).is_ok())
}

fn all_fixtures(options: &Options) {
    let (mut wrong, mut converted) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let run = run_options(&name);
        let before = testing::rewrite_with(&path, options).unwrap();
        let (unconverted, fused) = (before.after(), inferred(before.model()));
        let after = before.to_fp16(&run).unwrap_or_else(|e| panic!("{name}: {e}"));
        let account = after.ledger().precision.clone().unwrap();
        let graph = inferred(after.model());
        check(&graph).unwrap();
        if !account.converted {
            assert_eq!(after.after(), unconverted, "{name}");
            assert_eq!(account.notes.len(), 1, "{name}");
            continue;
        }
        converted += 1;
        assert!(!name.contains("fp16"), "{name} was converted again");
        assert_account(&fused, &graph, &account);
        if let Err(error) = after.compare(&run).and_then(|report| report.check()) {
            wrong.push(format!("{name}: {error}\n{}", after.precision()));
        }
    }
    assert!(converted > 150, "only {converted} fixtures were converted");
    assert!(wrong.is_empty(), "{options:?}: {} fixtures differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn fixtures_with_plugins() {
    all_fixtures(&Options::default());
}

#[test]
fn fixtures_with_plugins_of_new_opsets() {
    all_fixtures(&Options { target: Target::Trt11, ..Options::default() });
}

#[test]
fn fixtures_without_plugins() {
    all_fixtures(&Options { target: Target::Native, ..Options::default() });
}

#[test]
fn fixtures_without_fusions() {
    let kinds = BTreeSet::<Kind>::new();
    all_fixtures(&Options { target: Target::Trt11, kinds, ..Options::default() });
}

#[test]
fn fused_miniatures_are_float16_throughout() {
    for family in ["swin", "swin_original", "swin_torchvision", "tnt", "ptnt", "uniformer", "vit"] {
        for target in [Target::Trt11, Target::Native] {
            let path = format!("tests/fixtures/{family}_ts17.onnx");
            let options = Options { target, ..Options::default() };
            let rewrite = testing::rewrite_with(&path, &options).unwrap().to_fp16(&run_options("")).unwrap();
            let account = rewrite.ledger().precision.clone().unwrap();
            assert!(account.islands.is_empty(), "{family} {target}\n{}", rewrite.precision());
            assert_eq!(account.casts, 2, "{family} {target}");
        }
    }
}

#[test]
fn the_text_of_a_small_conversion() {
    for (name, kinds) in [("spelling_not_layernorm_cubed", Kind::ALL.into()), ("vit_unfused_ts13", BTreeSet::new())] {
        let options = Options { target: Target::Trt11, kinds, ..Options::default() };
        let path = format!("tests/fixtures/{name}.onnx");
        let rewrite = testing::rewrite_with(&path, &options).unwrap();
        let before = rewrite.after();
        let after = rewrite.to_fp16(&run_options("")).unwrap();
        insta::with_settings!({ description => "before, after, precision", omit_expression => true }, {
            insta::assert_snapshot!(name, format!("{before}\n{}\n{}", after.after(), after.precision()));
        });
    }
}

#[test]
fn the_ledger_has_the_account() {
    let rewrite = testing::rewrite("tests/fixtures/spelling_not_layernorm_cubed.onnx").unwrap();
    assert!(!serde_json::to_string(rewrite.ledger()).unwrap().contains("precision"));
    let rewrite = rewrite.to_fp16(&run_options("")).unwrap();
    let json = serde_json::to_string(rewrite.ledger()).unwrap();
    let read: Ledger = serde_json::from_str(&json).unwrap();
    assert_eq!(&read, rewrite.ledger());
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["precision"]["islands"][0]["causes"][0]["kind"], "epsilon");
    assert_eq!(value["precision"]["calibration"], "random inputs, seed 0");
    assert_eq!(value["version"], 1);
    // Texts stay readable by the graph printer.
    assert!(text::graph(rewrite.model().proto.clone(), true).is_ok());
}
