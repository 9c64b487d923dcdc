//! Blocks of the second family: where they are taken, that they compute the same, and every near miss.

#[path = "common/block.rs"]
mod block;
mod common;

use std::path::Path;

use block::{
    Net, comparison, costs_less_than_its_parts, int, left_for_its_gpu, nodes, on, only_if_asked_for, rewritten, weight,
    with,
};
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, type_proto};
use trt_opt::onnx::{self, Model};
use trt_opt::rewrite::{Kind, Ledger, Options, Site, Standard, Status, Target, ops};
use trt_opt::{testing, verify};

fn with_blocks() -> Options {
    with(&[Kind::MlpBlock])
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// The first stage of torchvision's miniature has 12 channels.
const TWELVE_CHANNELS: &str = "the tensor cores take no such sizes";

/// The mini exports of Swin, UniFormer and ViT: every MLP becomes one node, and their twins compute the same.
#[test]
fn exports_have_all_their_blocks_and_compute_the_same() {
    let mut wrong = vec![];
    let mut blocks = 0;
    let models = ["swin", "uniformer", "vit"];
    for path in common::fixtures().iter().filter(|p| models.iter().any(|m| name(p).starts_with(m))) {
        let name = name(path);
        let options = comparison(&name);
        let rewrite = testing::rewrite_with(path, &with_blocks()).unwrap();
        let count = rewrite.ledger().count(Kind::MlpBlock);
        for site in rewrite.ledger().missed(Kind::MlpBlock) {
            if !(name.contains("torchvision") && site.reason.as_deref() == Some(TWELVE_CHANNELS)) {
                wrong.push(format!("{name}: missed at {}: {:?}", site.node, site.reason));
            }
        }
        if count.fused == 0 {
            wrong.push(format!("{name}: no block"));
        }
        blocks += count.fused;
        if let Err(error) = rewrite.compare(&options).and_then(|report| report.check()) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(blocks > 150, "only {blocks} blocks");
}

/// Words of four channels do not suit the tensor cores, nor does a norm over all words of a patch: both say so.
#[test]
fn small_blocks_say_why_they_are_missed() {
    for (model, reason) in [("tnt_ts17", "the tensor cores take no such sizes"), ("ptnt_ts17", "no fused norm")] {
        let path = common::fixtures().into_iter().find(|p| name(p) == model).unwrap();
        let rewrite = testing::rewrite_with(&path, &with_blocks()).unwrap();
        let reasons: Vec<&str> =
            rewrite.ledger().missed(Kind::MlpBlock).map(|s| s.reason.as_deref().unwrap()).collect();
        assert!(reasons.iter().any(|r| r.contains(reason)), "{model}: {reasons:?}");
        rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
    }
}

/// A norm, an MLP and its residual add, as nodes and weights to spoil.
struct Parts {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    outputs: Vec<(&'static str, Vec<i64>)>,
}

const ROWS: i64 = 5;
const CHANNELS: i64 = 16;
const HIDDEN: i64 = 24;

impl Net for Parts {
    const KIND: Kind = Kind::MlpBlock;
    const OP: &'static str = "TrtOptMlpBlock";

    fn nodes(&mut self) -> &mut Vec<NodeProto> {
        &mut self.nodes
    }

    fn weights(&mut self) -> &mut Vec<TensorProto> {
        &mut self.weights
    }

    fn rewrite(&self, options: &Options) -> testing::Rewrite {
        rewritten(self.proto(), options)
    }

    /// The one site, which is missed; the norm, if there is one, is fused all the same.
    fn missed(&self) -> Site {
        let (model, ledger) = self.fuse();
        assert_eq!(count(&model, "TrtOptMlpBlock"), 0);
        let norms = self.nodes.iter().filter(|n| n.op_type() == "LayerNormalization").count();
        assert_eq!(ledger.count(Kind::LayerNorm).fused, norms);
        let sites: Vec<&Site> = ledger.missed(Kind::MlpBlock).collect();
        assert_eq!(sites.len(), 1, "{:?}", ledger.sites);
        sites[0].clone()
    }
}

impl Parts {
    fn new() -> Self {
        let norm = NodeProto {
            attribute: vec![AttributeProto::int("axis", -1), AttributeProto::float("epsilon", 1e-5)],
            ..common::node("LayerNormalization", &["s", "scale", "bias"], &["n"])
        };
        let nodes = vec![
            common::node("Add", &["x", "r"], &["s"]),
            norm,
            common::node("MatMul", &["n", "w1"], &["h"]),
            common::node("Add", &["b1", "h"], &["hb"]),
            common::node("Div", &["hb", "root"], &["d"]),
            common::node("Erf", &["d"], &["e"]),
            common::node("Add", &["e", "one"], &["e1"]),
            common::node("Mul", &["hb", "e1"], &["m"]),
            common::node("Mul", &["m", "half"], &["g"]),
            common::node("MatMul", &["g", "w2"], &["o"]),
            common::node("Add", &["o", "b2"], &["ob"]),
            common::node("Add", &["s", "ob"], &["y"]),
        ];
        let scalar = |name: &str, v: f32| TensorProto::from_f32(name, &[], &[v]);
        let weights = vec![
            weight("scale", &[CHANNELS]),
            weight("bias", &[CHANNELS]),
            weight("w1", &[CHANNELS, HIDDEN]),
            weight("b1", &[HIDDEN]),
            weight("w2", &[HIDDEN, CHANNELS]),
            weight("b2", &[CHANNELS]),
            scalar("root", std::f32::consts::SQRT_2),
            scalar("one", 1.0),
            scalar("half", 0.5),
        ];
        Self { nodes, weights, outputs: vec![("y", vec![2, ROWS, CHANNELS])] }
    }

    /// The same without the norm.
    fn without_norm() -> Self {
        let mut net = Self::new();
        net.nodes.retain(|n| n.output[0] != "n");
        net.weights.retain(|w| !["scale", "bias"].contains(&w.name()));
        net.input("h", 0, "s");
        net
    }

    fn proto(&self) -> ModelProto {
        let mut model = common::model(self.nodes.clone(), self.weights.clone());
        let graph = model.graph.as_mut().unwrap();
        let tokens = [2, ROWS, CHANNELS];
        graph.input = ["x", "r"].map(|name| common::value(name, &tokens)).into();
        graph.output = self.outputs.iter().map(|(name, dims)| common::value(name, dims)).collect();
        model
    }

    fn missed_because(&self, reason: &str) {
        let site = self.missed();
        let text = site.reason.clone().unwrap();
        assert!(text.contains(reason), "expected a miss because {reason}, found {site:?}");
    }
}

/// Any model file: a path for models in memory.
fn fixture() -> std::path::PathBuf {
    common::fixtures().swap_remove(0)
}

fn count(model: &ModelProto, op: &str) -> usize {
    model.graph.as_ref().unwrap().node.iter().filter(|n| n.op_type() == op).count()
}

#[test]
fn the_block_itself_is_fused_with_the_add_before_it() {
    let (model, ledger) = Parts::new().fuse();
    let nodes = &model.graph.as_ref().unwrap().node;
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    assert_eq!((nodes[0].op_type(), nodes[0].input.len()), ("TrtOptMlpBlock", 8));
    // The sites of its parts say where they are now.
    let parts: Vec<_> = ledger.sites.iter().filter(|s| s.kind != Kind::MlpBlock).collect();
    assert_eq!(parts.len(), 2);
    let gelu = ledger.sites.iter().find(|s| s.kind == Kind::Gelu).unwrap();
    let block = ledger.sites.iter().find(|s| s.kind == Kind::MlpBlock).unwrap();
    assert_eq!((gelu.node.as_str(), block.node.as_str()), ("Erf_e", "Erf_e"));
    for site in &ledger.sites {
        assert_eq!((site.status, site.into.as_deref()), (Status::Fused, nodes[0].name.as_deref()), "{site:?}");
    }
}

/// The sum stays outside: the op adds nothing before it where it has no norm.
#[test]
fn a_block_without_a_norm_is_fused() {
    let net = Parts::without_norm();
    let (model, ledger) = net.fuse();
    assert_eq!(common::ops(&model), ["Add", "TrtOptMlpBlock"]);
    let node = nodes(&model, "TrtOptMlpBlock")[0];
    assert_eq!(node.input, ["s", "w1", "b1", "w2", "b2"]);
    assert_eq!(["norm", "residual"].map(|name| int(node, name)), [0, 0]);
    let sites: Vec<_> = ledger.sites.iter().map(|s| (s.kind, s.status, s.into.as_deref())).collect();
    assert_eq!(sites, [Kind::Gelu, Kind::MlpBlock].map(|kind| (kind, Status::Fused, node.name.as_deref())));
    let [_, block] = costs_less_than_its_parts(&net);
    assert_eq!(block, 2 * (2 * ROWS * CHANNELS * HIDDEN) as u64);
    only_if_asked_for(&net, "mlp-block");
    assert_eq!(int(nodes(&Parts::new().fuse().0, "TrtOptMlpBlock")[0], "norm"), 1);
}

/// What one step gives the next is rounded as with a norm, and sums are float.
#[test]
fn a_block_without_a_norm_in_float16_computes_the_same() {
    let mut proto = Parts::without_norm().proto();
    let graph = proto.graph.as_mut().unwrap();
    for tensor in &mut graph.initializer {
        let values: Vec<f64> = tensor.to_f64_vec().unwrap();
        let halves = values.iter().flat_map(|&v| half::f16::from_f64(v).to_le_bytes()).collect::<Vec<u8>>();
        *tensor =
            TensorProto { data_type: Some(10), raw_data: Some(halves.into()), float_data: vec![], ..tensor.clone() };
    }
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            tensor.elem_type = Some(10);
        }
    }
    let rewrite = rewritten(proto, &with_blocks());
    assert_eq!(count(&rewrite.model().proto, "TrtOptMlpBlock"), 1);
    rewrite.compare(&comparison("fp16")).unwrap().check().unwrap();
}

/// A norm whose result is added to the MLP's is none of the block.
#[test]
fn a_norm_that_is_the_stream_stays_outside() {
    let mut net = Parts::new();
    net.input("y", 0, "n");
    let (model, ledger) = net.fuse();
    assert_eq!(common::ops(&model), ["TrtOptLayerNorm", "TrtOptMlpBlock"]);
    assert_eq!(int(nodes(&model, "TrtOptMlpBlock")[0], "norm"), 0);
    assert_eq!(ledger.count(Kind::LayerNorm).fused, 1);
}

#[test]
fn a_residual_without_a_norm_is_refused() {
    let (mut model, _) = Parts::without_norm().fuse();
    let graph = model.graph.as_mut().unwrap();
    let node = graph.node.iter_mut().find(|n| n.op_type() == "TrtOptMlpBlock").unwrap();
    node.attribute.iter_mut().find(|a| a.name() == "residual").unwrap().i = Some(1);
    node.input.insert(1, "r".into());
    let error = ops::add_reference_bodies(&mut model).unwrap_err().to_string();
    assert!(error.contains("its inputs do not fit its attributes"), "{error}");
}

#[test]
fn blocks_are_not_fused_unless_asked_for() {
    let rewrite = Parts::new().rewrite(&Options::default());
    assert_eq!(count(&rewrite.model().proto, "TrtOptMlpBlock"), 0);
    assert!(rewrite.ledger().sites.iter().all(|s| s.kind != Kind::MlpBlock));
}

#[test]
fn blocks_can_be_skipped_or_left_to_the_target() {
    let mut options = with_blocks();
    options.skip.insert("mlp-block".into());
    let ledger = Parts::new().rewrite(&options).ledger().clone();
    let missed: Vec<_> = ledger.missed(Kind::MlpBlock).map(|s| s.reason.as_deref()).collect();
    assert_eq!(missed, [Some("--skip mlp-block")]);

    let native = Options { target: Target::Native, ..with_blocks() };
    let left = Options {
        standard: vec![Standard { kind: Kind::MlpBlock, node: None, reason: "slower".into() }],
        ..with_blocks()
    };
    for options in [native, left] {
        let rewrite = Parts::new().rewrite(&options);
        assert_eq!(rewrite.ledger().count(Kind::MlpBlock).kept, 1);
        assert_eq!(count(&rewrite.model().proto, "TrtOptMlpBlock"), 0);
    }
}

#[test]
fn other_spellings_are_the_same_block() {
    // No offsets.
    let mut net = Parts::new();
    net.nodes.retain(|n| n.output[0] != "ob" && n.output[0] != "hb");
    net.input("y", 1, "o");
    net.input("d", 0, "h");
    net.input("m", 0, "h");
    let (model, _) = net.fuse();
    assert_eq!(count(&model, "TrtOptMlpBlock"), 1);
    // The residual add the other way round.
    let mut net = Parts::new();
    net.node("y").input.reverse();
    assert_eq!(count(&net.fuse().0, "TrtOptMlpBlock"), 1);
    // The tanh form.
    let mut net = Parts::new();
    for (name, v) in [("cubic", 0.044715), ("scale_of_tanh", 0.797_884_6)] {
        net.set(TensorProto::from_f32(name, &[], &[v]));
    }
    let at = net.nodes.iter().position(|n| n.output[0] == "d").unwrap();
    net.nodes.splice(
        at..at + 2,
        [
            common::node("Mul", &["hb", "hb"], &["hb2"]),
            common::node("Mul", &["hb2", "hb"], &["hb3"]),
            common::node("Mul", &["hb3", "cubic"], &["c"]),
            common::node("Add", &["hb", "c"], &["p"]),
            common::node("Mul", &["p", "scale_of_tanh"], &["d"]),
            common::node("Tanh", &["d"], &["e"]),
        ],
    );
    let (model, _) = net.fuse();
    let block = model.graph.as_ref().unwrap().node.iter().find(|n| n.op_type() == "TrtOptMlpBlock").unwrap();
    assert!(block.attribute.iter().any(|a| a.name() == "approximate" && a.s() == b"tanh"));
}

#[test]
fn a_sum_read_elsewhere_stays_outside() {
    let mut net = Parts::new();
    net.outputs.push(("s", vec![2, ROWS, CHANNELS]));
    let (model, _) = net.fuse();
    assert_eq!((count(&model, "TrtOptMlpBlock"), count(&model, "Add")), (1, 1));
}

#[test]
fn interior_values_used_elsewhere_keep_their_parts() {
    for (value, columns) in [("h", HIDDEN), ("g", HIDDEN), ("o", CHANNELS), ("ob", CHANNELS), ("n", CHANNELS)] {
        let mut net = Parts::new();
        net.outputs.push((value, vec![2, ROWS, columns]));
        net.missed();
        let mut net = Parts::new();
        net.nodes.push(common::node("Neg", &[value], &["z"]));
        net.outputs.push(("z", vec![2, ROWS, columns]));
        net.missed();
    }
}

#[test]
fn what_only_looks_like_a_block_is_left_alone() {
    // Another residual than what is normalized.
    let mut net = Parts::new();
    net.input("y", 0, "x");
    net.missed_because("is not what the norm reads");
    // No residual at all.
    let mut net = Parts::new();
    net.nodes.pop();
    net.nodes.push(common::node("Mul", &["s", "ob"], &["y"]));
    net.missed_because("another op follows");
    // One offset for all columns.
    let mut net = Parts::new();
    net.set(weight("b1", &[1]));
    net.missed_because("the offset is not one value a column");
    // A weight that is computed.
    let mut net = Parts::new();
    net.nodes.insert(0, common::node("ReduceMean", &["x"], &["mean"]));
    net.nodes.insert(1, common::node("Mul", &["w1", "mean_of_all"], &["w1_scaled"]));
    net.nodes.insert(1, common::node("Reshape", &["mean", "one_by_one"], &["mean_of_all"]));
    net.weights.push(TensorProto::from_i64("one_by_one", &[2], &[1, 1]));
    net.input("h", 1, "w1_scaled");
    net.missed_because("the right operand is no weight");
    // A weight for each image.
    let mut net = Parts::new();
    net.set(weight("w1", &[2, CHANNELS, HIDDEN]));
    net.missed_because("the weight is no matrix");
    // Another activation's input: the norm is not the first product's operand.
    let mut net = Parts::new();
    net.nodes.insert(2, common::node("Neg", &["n"], &["nn"]));
    net.input("h", 0, "nn");
    net.missed_because("no fused norm of the last axis");
}

#[test]
fn what_only_looks_like_a_block_without_a_norm_is_left_alone() {
    let missed = |net: &Parts, reason: &str, [expected, found]: [&str; 2]| {
        let site = net.missed();
        assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "{reason}: {site:?}");
        assert_eq!([site.expected.as_deref(), site.found.as_deref()], [expected, found].map(Some), "{reason}");
    };
    const NEITHER: &str = "no fused norm of the last axis goes into the first product, nor is what goes into it added";
    // Another x, which is an input or a sum.
    let mut net = Parts::without_norm();
    net.input("y", 0, "x");
    missed(&net, NEITHER, ["TrtOptLayerNorm, or s added", "Add, and x added"]);
    let mut net = Parts::without_norm();
    net.input("h", 0, "x");
    missed(&net, NEITHER, ["TrtOptLayerNorm, or x added", "a graph input, and s added"]);
    // The result added to itself.
    let mut net = Parts::without_norm();
    net.input("y", 0, "ob");
    missed(&net, "an interior value is used otherwise too", ["1 use", "2 uses"]);
    // No residual, or one to a scaled result.
    let mut net = Parts::without_norm();
    net.node("y").op_type = Some("Mul".into());
    missed(&net, "another op follows than in a block", ["Add", "Mul"]);
    let mut net = Parts::without_norm();
    net.before("y", vec![common::node("Mul", &["ob", "half"], &["scaled"])]);
    net.input("y", 1, "scaled");
    missed(&net, "another op follows than in a block", ["Add", "Mul"]);
    // The second product leads to one column, which the add spreads over the channels.
    let mut net = Parts::without_norm();
    net.set(weight("w2", &[HIDDEN, 1]));
    net.set(weight("b2", &[1]));
    missed(&net, "does not lead back to the channels", ["[24, 16]", "[24, 1]"]);
    // One offset for all columns.
    let mut net = Parts::without_norm();
    net.set(weight("b1", &[1]));
    missed(&net, "the offset is not one value a column", ["[24]", "[1]"]);
    let mut net = Parts::without_norm();
    net.set(weight("w1", &[CHANNELS, 20]));
    net.set(weight("b1", &[20]));
    net.set(weight("w2", &[20, CHANNELS]));
    missed(&net, "the tensor cores take no such sizes", ["multiples of 8", "16 channels, 20 hidden columns"]);
    // Interior values that are outputs or read otherwise; the stream may be.
    for (value, columns) in [("h", HIDDEN), ("hb", HIDDEN), ("g", HIDDEN), ("o", CHANNELS), ("ob", CHANNELS)] {
        let mut net = Parts::without_norm();
        net.outputs.push((value, vec![2, ROWS, columns]));
        net.missed();
        let mut net = Parts::without_norm();
        net.nodes.push(common::node("Neg", &[value], &["z"]));
        net.outputs.push(("z", vec![2, ROWS, columns]));
        net.missed();
    }
    let mut net = Parts::without_norm();
    net.outputs.push(("s", vec![2, ROWS, CHANNELS]));
    assert_eq!(count(&net.fuse().0, "TrtOptMlpBlock"), 1);
}

/// A Gemm is no such product, whatever it scales its operands by.
#[test]
fn products_with_factors_are_left_alone() {
    for alpha in [1.0, 0.5] {
        let mut net = Parts::without_norm();
        net.nodes.retain(|n| !["s", "hb"].contains(&n.output[0].as_str()));
        let rows = common::reshape("x", "rows", "s");
        let gemm = NodeProto {
            attribute: vec![AttributeProto::float("alpha", alpha)],
            ..common::node("Gemm", &["s", "w1", "b1"], &["hb"])
        };
        net.nodes.retain(|n| n.output[0] != "h");
        net.nodes.splice(0..0, [rows, gemm]);
        net.weights.push(TensorProto::from_i64("rows", &[2], &[-1, CHANNELS]));
        net.outputs = vec![("y", vec![2 * ROWS, CHANNELS])];
        let site = net.missed();
        let found = ["it is no product with a weight", "MatMul", "Gemm"].map(Some);
        assert!(site.reason.as_deref().is_some_and(|r| r.contains(found[0].unwrap())), "{site:?}");
        assert_eq!([site.expected.as_deref(), site.found.as_deref()], [found[1], found[2]]);
    }
}

#[test]
fn sizes_that_the_tensor_cores_do_not_take_are_refused() {
    let mut net = Parts::new();
    net.set(weight("w1", &[CHANNELS, 20]));
    net.set(weight("b1", &[20]));
    net.set(weight("w2", &[20, CHANNELS]));
    net.missed_because("the tensor cores take no such sizes");
    let mut net = Parts::new();
    net.set(weight("w1", &[CHANNELS, 16392]));
    net.set(weight("b1", &[16392]));
    net.set(weight("w2", &[16392, CHANNELS]));
    net.missed_because("the block is too large");
}

/// A block of these sizes alone, with the first axis given, or open.
fn of_size(batch: Option<i64>, rows: i64, channels: i64, hidden: i64) -> (usize, Ledger) {
    of_size_with(&with_blocks(), batch, [rows, channels, hidden])
}

fn of_size_with(options: &Options, batch: Option<i64>, sizes: [i64; 3]) -> (usize, Ledger) {
    net_of_size_with(Parts::new(), options, batch, sizes)
}

fn net_of_size_with(
    mut net: Parts,
    options: &Options,
    batch: Option<i64>,
    [rows, channels, hidden]: [i64; 3],
) -> (usize, Ledger) {
    let sizes = [
        ("scale", vec![channels]),
        ("bias", vec![channels]),
        ("w1", vec![channels, hidden]),
        ("b1", vec![hidden]),
        ("w2", vec![hidden, channels]),
        ("b2", vec![channels]),
    ];
    for (name, dims) in sizes {
        net.set(weight(name, &dims));
    }
    let mut proto = net.proto();
    let graph = proto.graph.as_mut().unwrap();
    let tokens = |name: &str| match batch {
        Some(batch) => common::value(name, &[batch, rows, channels]),
        None => common::open_value(name, "batch", &[rows, channels]),
    };
    graph.input = ["x", "r"].map(tokens).into();
    graph.output = vec![tokens("y")];
    let model = Model { proto, ..onnx::load(&fixture()).unwrap() };
    let rewrite = testing::rewrite_model(model, options).unwrap();
    (count(&rewrite.model().proto, "TrtOptMlpBlock"), rewrite.ledger().clone())
}

/// At 0.6 GFLOP a block is taken, above it left to its parts, unless it has few channels.
#[test]
fn blocks_above_the_size_where_they_pay_are_left_to_their_parts() {
    let taken = |(blocks, ledger): &(usize, Ledger)| (*blocks, ledger.count(Kind::MlpBlock).fused) == (1, 1);
    // 4 * 1250 * 200 * 600 are 0.6 GFLOP.
    for (batch, rows) in [(Some(1), 1250), (Some(2), 625), (None, 1250)] {
        assert!(taken(&of_size(batch, rows, 200, 600)), "{batch:?} x {rows}");
    }
    for (batch, rows) in [(Some(1), 1251), (Some(2), 626), (None, 1251)] {
        let (blocks, ledger) = of_size(batch, rows, 200, 600);
        assert_eq!((blocks, ledger.count(Kind::LayerNorm).fused), (0, 1), "{batch:?} x {rows}");
        let site = ledger.missed(Kind::MlpBlock).next().unwrap();
        assert_eq!(site.reason.as_deref(), Some("its products are so large that TensorRT's are faster"));
        let expected = site.expected.as_deref().unwrap();
        assert!(expected.contains("0.600 GFLOP") && expected.contains("at most 96 channels"), "{expected}");
        let axis = batch.map_or_else(|| "batch".to_owned(), |b| b.to_string());
        assert_eq!(site.found, Some(format!("0.601 GFLOP, rows [{axis}, {rows}]")));
    }
    // The first stage of Swin-T at batch 32, and one of a few more channels.
    assert!(taken(&of_size(Some(32), 3136, 96, 384)));
    assert!(!taken(&of_size(Some(32), 3136, 104, 384)));
    // The others at batch 1, the layers of ViT-S, and its at batch 2.
    for (rows, channels) in [(784, 192), (196, 384), (49, 768), (197, 384)] {
        assert!(taken(&of_size(Some(1), rows, channels, 4 * channels)), "{rows} x {channels}");
    }
    assert!(!taken(&of_size(Some(2), 197, 384, 1536)));
}

/// As with a norm: the first stages of UniFormer-S, the limit of one row more, and what Hopper takes.
#[test]
fn blocks_without_a_norm_are_fused_up_to_the_same_sizes() {
    let made = |options: &Options, batch: i64, sizes: [i64; 3]| {
        let (blocks, ledger) = net_of_size_with(Parts::without_norm(), options, Some(batch), sizes);
        assert_eq!(ledger.count(Kind::MlpBlock).fused, blocks);
        (blocks, ledger.missed(Kind::MlpBlock).next().and_then(|site| site.found.clone()))
    };
    let hopper = on(with_blocks(), 9, 0);
    for (batch, sizes) in [(1, [3136, 64, 256]), (1, [784, 128, 512]), (32, [3136, 64, 256]), (1, [1250, 200, 600])] {
        assert_eq!(made(&with_blocks(), batch, sizes), (1, None), "{batch} x {sizes:?}");
    }
    assert_eq!(made(&with_blocks(), 1, [1251, 200, 600]), (0, Some("0.601 GFLOP, rows [1, 1251]".into())));
    assert_eq!(made(&with_blocks(), 32, [784, 128, 512]).0, 0);
    assert_eq!(made(&hopper, 32, [784, 128, 512]), (1, None));
    // What is known to be older has no tensor cores for them, and for those with a norm it has.
    for (gpu, expected) in [((8, 9), (0, Some("8.9".into()))), ((9, 1), (1, None)), ((10, 0), (1, None))] {
        assert_eq!(made(&on(with_blocks(), gpu.0, gpu.1), 1, [3136, 64, 256]), expected, "{gpu:?}");
    }
    assert_eq!(of_size_with(&on(with_blocks(), 8, 9), Some(1), [3136, 64, 256]).0, 1);
}

/// On a GPU with products for them, blocks of 1500 rows and more and at most 512 channels are made, and nothing else changes.
#[test]
fn blocks_of_many_rows_are_made_for_the_gpu_that_has_products_for_them() {
    let hopper = on(with_blocks(), 9, 0);
    for (batch, sizes) in [(1, [1500, 512, 2048]), (2, [750, 512, 2048]), (32, [196, 384, 1536])] {
        let (blocks, ledger) = of_size_with(&hopper, Some(batch), sizes);
        assert_eq!((blocks, ledger.count(Kind::MlpBlock).fused), (1, 1), "{batch} x {sizes:?}");
        // No other GPU is known to have them; only where none is named, the one that has is.
        left_for_its_gpu(&of_size_with(&with_blocks(), Some(batch), sizes).1, Kind::MlpBlock);
        for (major, minor) in [(8, 9), (9, 1), (10, 0)] {
            let (blocks, ledger) = of_size_with(&on(with_blocks(), major, minor), Some(batch), sizes);
            let reason = ledger.missed(Kind::MlpBlock).next().unwrap().reason.as_deref();
            assert_eq!((blocks, reason), (0, Some("its products are so large that TensorRT's are faster")));
        }
    }
    // One row less, too many channels, a batch that may be 1.
    for (batch, sizes) in [
        (Some(1), [1499, 512, 2048]),
        (Some(1), [1500, 520, 2048]),
        (None, [1500, 512, 2048]),
        (None, [196, 384, 6144]),
    ] {
        for options in [&hopper, &with_blocks()] {
            let (blocks, ledger) = of_size_with(options, batch, sizes);
            assert_eq!(blocks, 0, "{batch:?} x {sizes:?}");
            let site = ledger.missed(Kind::MlpBlock).next().unwrap();
            assert_eq!(site.reason.as_deref(), Some("its products are so large that TensorRT's are faster"));
            let wide = ", or at least 1500 rows of a fixed batch and at most 512 channels";
            let said = site.expected.as_deref().unwrap().contains(wide);
            assert_eq!(said, options.compute_capability.is_some(), "{site:?}");
        }
    }
    // Few rows and few channels are taken as without.
    for (batch, sizes) in [(Some(1), [1250, 200, 600]), (Some(32), [3136, 96, 384]), (None, [197, 384, 1536])] {
        assert_eq!(of_size_with(&hopper, batch, sizes).0, 1, "{batch:?} x {sizes:?}");
    }
}

/// A GELU with its offset is the smaller op's where no block has it.
#[test]
fn gelus_are_those_of_the_blocks_that_are_left() {
    let both = with(&[Kind::MlpBlock, Kind::BiasGelu]);
    for (options, expected) in [(both.clone(), [0, 1]), (on(both, 9, 0), [1, 0])] {
        let (blocks, ledger) = of_size_with(&options, Some(32), [196, 384, 1536]);
        let fused = [Kind::MlpBlock, Kind::BiasGelu].map(|kind| ledger.count(kind).fused);
        assert_eq!((blocks, fused), (expected[0], expected));
    }
}

#[test]
fn the_cost_of_a_block_is_less_than_that_of_its_parts() {
    let [_, block] = costs_less_than_its_parts(&Parts::new());
    assert_eq!(block, 2 * (2 * ROWS * CHANNELS * HIDDEN) as u64);
}
