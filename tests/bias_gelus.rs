//! GELUs behind products, with their offsets, as one op: exports and spellings of them compute the same, blocks come first,
//! and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{Block, Net, Parts, comparison, int, nodes, only_if_asked_for, weight, with};
use trt_opt::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options, Standard, Status};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptGelu";
const CHANNELS: i64 = 16;
const COLUMNS: i64 = 24;

/// All exports, alone and with MLP blocks beside it: every GELU behind a product is one of the two, and those behind
/// convolutions stay.
#[test]
fn exports_have_all_their_gelus_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !["swin", "vit", "uniformer", "tnt", "ptnt"].contains(&name.split('_').next().unwrap()) {
            continue;
        }
        for kinds in [&[Kind::BiasGelu][..], &[Kind::BiasGelu, Kind::MlpBlock]] {
            let rewrite = testing::rewrite_with(&path, &with(kinds)).unwrap();
            let ledger = rewrite.ledger();
            let found = nodes(&rewrite.model().proto, OP).len();
            let [gelus, mlps] = [Kind::BiasGelu, Kind::MlpBlock].map(|kind| ledger.count(kind));
            let behind = "TensorRT fuses it into the convolution before it";
            let kept = ledger.sites.iter().filter(|s| s.kind == Kind::BiasGelu && s.status == Status::Kept);
            let kept = kept.filter(|s| s.reason.as_deref() == Some(behind)).count();
            if found != gelus.fused || gelus.missed > 0 || gelus.kept != kept {
                wrong.push(format!("{name}: {found} nodes, {gelus:?}"));
            }
            if gelus.fused + gelus.kept + mlps.fused != ledger.count(Kind::Gelu).total {
                wrong.push(format!("{name}: {gelus:?} and {mlps:?} of {:?}", ledger.count(Kind::Gelu)));
            }
            if name.starts_with("uniformer") != (kept > 0) {
                wrong.push(format!("{name}: {kept} behind convolutions"));
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
            seen += found;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 200, "{seen}");
}

struct Gelu;

impl Block for Gelu {
    const KIND: Kind = Kind::BiasGelu;
    const OP: &'static str = OP;
}

fn scalar(name: &str, value: f32) -> TensorProto {
    TensorProto::from_f32(name, &[], &[value])
}

/// A product, its offset and a GELU by erf.
fn parts() -> Parts<Gelu> {
    let nodes = vec![
        common::node("MatMul", &["x", "w"], &["h"]),
        common::node("Add", &["h", "b"], &["hb"]),
        common::node("Div", &["hb", "root"], &["d"]),
        common::node("Erf", &["d"], &["e"]),
        common::node("Add", &["e", "one"], &["e1"]),
        common::node("Mul", &["hb", "e1"], &["m"]),
        common::node("Mul", &["m", "half"], &["y"]),
    ];
    let weights = vec![
        weight("w", &[CHANNELS, COLUMNS]),
        weight("b", &[COLUMNS]),
        scalar("root", std::f32::consts::SQRT_2),
        scalar("one", 1.0),
        scalar("half", 0.5),
    ];
    let [inputs, outputs] = [("x", CHANNELS), ("y", COLUMNS)].map(|(name, last)| vec![(name, vec![2, 7, last])]);
    Parts { nodes, weights, inputs, outputs, block: Gelu }
}

/// The net is its product and this op alone. The op's node.
fn fused(net: &Parts<Gelu>) -> NodeProto {
    let (model, ledger) = net.fuse();
    let ops: Vec<_> = model.graph.as_ref().unwrap().node.iter().map(|n| n.op_type()).collect();
    assert_eq!((ops.len(), ops[1]), (2, OP), "{ops:?} {:?}", ledger.sites);
    let node = nodes(&model, OP)[0].clone();
    // The site of the GELU says where it is now.
    assert_eq!(ledger.sites.len(), 2);
    for site in &ledger.sites {
        assert_eq!((site.status, site.into.as_deref()), (Status::Fused, node.name.as_deref()), "{site:?}");
    }
    node
}

fn approximate(node: &NodeProto) -> String {
    let found = node.attribute.iter().find(|a| a.name() == "approximate").and_then(|a| a.s.clone());
    String::from_utf8(found.unwrap().to_vec()).unwrap()
}

fn missed_because(net: &Parts<Gelu>, reason: &str) {
    let site = net.missed();
    assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
}

#[test]
fn the_op_has_the_offset_and_all_its_attributes() {
    let node = fused(&parts());
    assert_eq!((node.input.len(), int(&node, "bias"), approximate(&node).as_str()), (2, 1, "none"));
    // The operands the other way round, and a GELU in another order.
    let mut net = parts();
    net.node("hb").input.reverse();
    net.node("m").input.reverse();
    assert_eq!(fused(&net).input.len(), 2);
    // Without an offset.
    let mut net = parts();
    net.nodes.remove(1);
    net.input("d", 0, "h");
    net.input("m", 0, "h");
    let node = fused(&net);
    assert_eq!((node.input.len(), int(&node, "bias")), (1, 0));
}

#[test]
fn the_tanh_form_is_told_from_the_other() {
    let mut net = parts();
    let root = (2.0 / std::f32::consts::PI).sqrt();
    net.weights.extend([scalar("cubic", 0.044_715), scalar("scale", root), scalar("three", 3.0)]);
    net.nodes.splice(
        2..4,
        [
            common::node("Pow", &["hb", "three"], &["p"]),
            common::node("Mul", &["p", "cubic"], &["c"]),
            common::node("Add", &["hb", "c"], &["s"]),
            common::node("Mul", &["s", "scale"], &["d"]),
            common::node("Tanh", &["d"], &["e"]),
        ],
    );
    assert_eq!(approximate(&fused(&net)), "tanh");
}

#[test]
fn a_gemm_keeps_its_own_offset() {
    let mut net = parts();
    net.nodes.splice(0..2, [common::node("Gemm", &["x", "w", "b"], &["hb"])]);
    net.inputs[0].1 = vec![7, CHANNELS];
    net.outputs[0].1 = vec![7, COLUMNS];
    assert_eq!(int(&fused(&net), "bias"), 0);
}

#[test]
fn near_misses_say_why() {
    // One offset for all columns, and one for each token.
    for dims in [&[1][..], &[7, COLUMNS]] {
        let mut net = parts();
        net.set(weight("b", dims));
        missed_because(&net, "the offset is not one value a column");
    }
    // An offset that is computed.
    let mut net = parts();
    net.inputs.push(("r", vec![2, 7, COLUMNS]));
    net.input("hb", 1, "r");
    missed_because(&net, "what goes into the GELU is no product with an offset");
    // No product.
    let mut net = parts();
    net.nodes[0] = common::node("Neg", &["x"], &["h"]);
    net.inputs[0].1 = vec![2, 7, COLUMNS];
    missed_because(&net, "no matrix product goes into it");
    // The product, or the sum, is read otherwise too.
    for value in ["h", "hb"] {
        let mut net = parts();
        net.outputs.push((if value == "h" { "h" } else { "hb" }, vec![2, 7, COLUMNS]));
        assert!(net.missed().reason.is_some_and(|r| r.contains("use") || r.contains("output")), "{value}");
    }
    // No GELU.
    let mut net = parts();
    net.set(scalar("half", 0.25));
    missed_because(&net, "it is not multiplied by x and 0.5");
}

#[test]
fn gelus_behind_convolutions_stay() {
    let conv = |attribute| NodeProto { attribute, ..common::node("Conv", &["x", "w"], &["h"]) };
    let kernel = AttributeProto::ints("kernel_shape", &[1, 1]);
    let mut net = parts();
    net.nodes[0] = conv(vec![kernel]);
    net.set(weight("w", &[COLUMNS, CHANNELS, 1, 1]));
    net.set(weight("b", &[COLUMNS, 1, 1]));
    net.inputs[0].1 = vec![2, CHANNELS, 5, 6];
    net.outputs[0].1 = vec![2, COLUMNS, 5, 6];
    let (model, ledger) = net.fuse();
    assert!(nodes(&model, OP).is_empty());
    let count = ledger.count(Kind::BiasGelu);
    assert_eq!((count.total, count.kept), (1, 1), "{:?}", ledger.sites);
    let site = ledger.sites.iter().find(|s| s.kind == Kind::BiasGelu).unwrap();
    assert_eq!(site.reason.as_deref(), Some("TensorRT fuses it into the convolution before it"));
    assert_eq!(site.node, ledger.sites.iter().find(|s| s.kind == Kind::Gelu).unwrap().node);
}

#[test]
fn it_is_made_only_if_asked_for() {
    only_if_asked_for(&parts(), "bias-gelu");
}

/// MLP blocks take theirs; what they leave, for its size or because it is left out, is this op's.
#[test]
fn mlp_blocks_come_first() {
    let path = common::fixtures().into_iter().find(|p| p.ends_with("swin_ts17.onnx")).unwrap();
    let both = with(&[Kind::MlpBlock, Kind::BiasGelu]);
    let standard = vec![Standard { kind: Kind::MlpBlock, node: None, reason: "slower".into() }];
    let left = Options { standard, ..both.clone() };
    for (options, expected) in [(&both, [3, 0]), (&left, [0, 3])] {
        let rewrite = testing::rewrite_with(&path, options).unwrap();
        let proto = &rewrite.model().proto;
        assert_eq!(["TrtOptMlpBlock", OP].map(|op| nodes(proto, op).len()), expected);
        // The ledger does not take one for the other.
        assert_eq!([Kind::MlpBlock, Kind::BiasGelu].map(|kind| rewrite.ledger().count(kind).fused), expected);
        rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
    }
}
