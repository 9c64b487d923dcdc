//! Convolution layers as one op: position encodings, convolution blocks and MLPs in turn are a node each, all computes the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{
    Block, Net, Parts, comparison, costs_less_than_its_parts, int, nodes, on, only_if_asked_for, weight, with,
};
use common::{ops, reshape, transpose};
use trt_opt::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Status};
use trt_opt::testing;

const OP: &str = "TrtOptConvLayer";
const BATCH: i64 = 2;
const SIDES: [i64; 2] = [3, 5];
/// Channels, columns between the block's products, and those between the MLP's.
const SIZES: [i64; 3] = [64, 64, 128];
const PARTS: [&str; 5] = ["Exp", "TrtOptDepthwiseConv", "TrtOptConvBlock", "TrtOptMlpBlock", "Tanh"];
const WHOLE: [&str; 3] = ["Exp", OP, "Tanh"];

struct Layer;

impl Block for Layer {
    const KIND: Kind = Kind::ConvLayer;
    const OP: &'static str = OP;
}

/// A layer as UniFormer has it, of a map with tokens before it and behind it. Kernels: of the encoding, and of the block.
fn of_sizes([channels, between, hidden]: [i64; 3], [position, kernel]: [i64; 2]) -> Parts<Layer> {
    let [h, w] = SIDES;
    let conv = |x: &str, name: &str, y: &str, attribute: Vec<AttributeProto>| NodeProto {
        attribute,
        ..common::node("Conv", &[x, &format!("w_{name}"), &format!("b_{name}")], &[y])
    };
    let depthwise = |channels: i64, kernel: i64| {
        vec![AttributeProto::int("group", channels), AttributeProto::ints("pads", &[kernel / 2; 4])]
    };
    let nodes = vec![
        common::node("Exp", &["x"], &["t"]),
        transpose("t", &[0, 2, 1], "l"),
        reshape("l", "map", "m"),
        conv("m", "position", "d", depthwise(channels, position)),
        common::node("Add", &["m", "d"], &["e"]),
        conv("e", "in", "i", vec![]),
        conv("i", "mix", "c", depthwise(between, kernel)),
        conv("c", "out", "o", vec![]),
        common::node("Add", &["e", "o"], &["u"]),
        conv("u", "up", "p", vec![]),
        common::node("Div", &["p", "root"], &["q"]),
        common::node("Erf", &["q"], &["f"]),
        common::node("Add", &["f", "one"], &["g"]),
        common::node("Mul", &["p", "g"], &["n"]),
        common::node("Mul", &["n", "half"], &["a"]),
        conv("a", "down", "v", vec![]),
        common::node("Add", &["u", "v"], &["r"]),
        reshape("r", "line", "k"),
        transpose("k", &[0, 2, 1], "z"),
        common::node("Tanh", &["z"], &["y"]),
    ];
    let mut weights = vec![block::ints("map", &[-1, channels, h, w]), block::ints("line", &[0, 0, -1])];
    for (name, value) in [("root", std::f32::consts::SQRT_2), ("one", 1.0), ("half", 0.5)] {
        weights.push(TensorProto::from_f32(name, &[], &[value]));
    }
    for (name, dims) in [
        ("position", [channels, 1, position, position]),
        ("in", [between, channels, 1, 1]),
        ("mix", [between, 1, kernel, kernel]),
        ("out", [channels, between, 1, 1]),
        ("up", [hidden, channels, 1, 1]),
        ("down", [channels, hidden, 1, 1]),
    ] {
        weights.extend([weight(&format!("w_{name}"), &dims), weight(&format!("b_{name}"), &dims[..1])]);
    }
    let [inputs, outputs] = ["x", "y"].map(|name| vec![(name, vec![BATCH, h * w, channels])]);
    Parts { nodes, weights, inputs, outputs, block: Layer }
}

fn parts() -> Parts<Layer> {
    of_sizes(SIZES, [3, 5])
}

/// The one site is missed for this reason, with what was expected and found, and its parts stay what they are.
fn missed_because(net: &Parts<Layer>, reason: &str, [expected, found]: [&str; 2]) {
    let site = net.missed();
    assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    assert!(of(&site.expected).contains(expected) && of(&site.found).contains(found), "{site:?}");
    let without = net.rewrite(&with(Kind::ConvLayer.made_of()));
    assert_eq!(ops(&net.fuse().0), ops(&without.model().proto));
}

#[test]
fn a_whole_layer_is_one_node_with_all_its_attributes() {
    for kernel in [3, 5] {
        let net = of_sizes(SIZES, [3, kernel]);
        let (model, ledger) = net.fuse();
        assert_eq!(ops(&model), WHOLE);
        let node = nodes(&model, OP)[0];
        assert_eq!((int(node, "kernel"), node.input.len()), (kernel, 13));
        assert_eq!(node.attribute.iter().find(|a| a.name() == "grid").unwrap().ints, SIDES);
        // All of its parts are in it, and it is known as the block is.
        let fused: Vec<_> = ledger.sites.iter().filter(|s| s.status == Status::Fused).collect();
        assert!(fused.iter().all(|s| s.into == node.name), "{fused:?}");
        let layer = fused.iter().find(|s| s.kind == Kind::ConvLayer).unwrap();
        assert_eq!(layer.node, "Conv_c");
    }
    assert_eq!(ops(&parts().rewrite(&with(Kind::ConvLayer.made_of())).model().proto), PARTS);
    let [parts_macs, layer_macs] = costs_less_than_its_parts(&parts());
    assert_eq!(parts_macs, layer_macs);
    only_if_asked_for(&parts(), "conv-layer");
}

#[test]
fn other_spellings_are_the_same_layer() {
    // Offsets that are missing.
    let mut net = parts();
    for output in ["d", "i", "c", "o", "p", "v"] {
        net.node(output).input.truncate(2);
    }
    assert_eq!(ops(&net.fuse().0), WHOLE);
    // As many channels as the other kernel is for, and what it gives read twice.
    assert_eq!(ops(&of_sizes([128, 128, 192], [3, 5]).fuse().0), WHOLE);
    let mut net = parts();
    net.nodes.push(common::node("Cos", &["z"], &["twice"]));
    net.outputs.push(("twice", vec![BATCH, SIDES[0] * SIDES[1], SIZES[0]]));
    assert_eq!(nodes(&net.fuse().0, OP).len(), 1);
}

#[test]
fn layers_in_a_row_are_a_node_each() {
    let mut net = parts();
    let tail = net.nodes.split_off(17);
    let mut second = net.nodes[3..].to_vec();
    for node in &mut second {
        node.name = node.name.as_ref().map(|name| format!("{name}_2"));
        for value in node.input.iter_mut().chain(&mut node.output) {
            match value.as_str() {
                "m" => *value = "r".into(),
                "d" | "e" | "i" | "c" | "o" | "u" | "p" | "q" | "f" | "g" | "n" | "a" | "v" | "r" => *value += "_2",
                _ => {}
            }
        }
    }
    net.nodes.extend(second);
    net.nodes.extend(tail);
    net.input("k", 0, "r_2");
    assert_eq!(ops(&net.fuse().0), ["Exp", OP, OP, "Tanh"]);
}

#[test]
fn another_encoding_says_why() {
    let reason = "no position encoding goes into it";
    missed_because(&of_sizes(SIZES, [5, 5]), reason, ["3 x 3, residual = 1", "5 x 5, residual = 1"]);
    // None, and one without its add.
    let mut net = parts();
    net.input("i", 0, "m");
    net.input("u", 0, "m");
    net.nodes.retain(|n| !["d", "e"].contains(&n.output[0].as_str()));
    missed_because(&net, reason, ["TrtOptDepthwiseConv", "Exp"]);
    // One that is read otherwise, too.
    let mut net = parts();
    net.nodes.extend([reshape("e", "line", "h"), transpose("h", &[0, 2, 1], "given")]);
    net.outputs.push(("given", vec![BATCH, SIDES[0] * SIDES[1], SIZES[0]]));
    missed_because(&net, "an interior value is used otherwise too", ["1 use", ""]);
}

#[test]
fn another_end_says_why() {
    // Another activation: products that are no MLP.
    let mut net = parts();
    net.nodes.retain(|n| !["q", "f", "g", "n"].contains(&n.output[0].as_str()));
    *net.node("a") = common::node("Relu", &["p"], &["a"]);
    let site = net.missed();
    assert!(site.reason.is_some_and(|r| r.contains("an interior value is used otherwise too")), "{:?}", site.found);
    // Nothing but the block.
    let mut net = parts();
    net.nodes.retain(|n| !["p", "q", "f", "g", "n", "a", "v", "r"].contains(&n.output[0].as_str()));
    net.input("k", 0, "u");
    missed_because(&net, "no MLP without a norm is behind it", ["TrtOptMlpBlock", "Tanh"]);
}

#[test]
fn other_sizes_say_why() {
    let reason = "the plugin has no kernel of its own for such sizes";
    for (sizes, kernel) in [
        ([32, 32, 128], 5),
        ([96, 96, 384], 5),
        ([64, 128, 256], 5),
        ([128, 64, 512], 3),
        ([64, 64, 96], 5),
        ([64, 64, 128], 7),
    ] {
        let found = format!(
            "{} channels, {} between the products, {kernel} x {kernel}, and {} in the MLP",
            sizes[0], sizes[1], sizes[2]
        );
        missed_because(&of_sizes(sizes, [3, kernel]), reason, ["64 or 128 channels", &found]);
    }
}

#[test]
fn other_gpus_say_why() {
    let net = parts();
    let made = |major: u32, minor: u32| {
        let rewrite = net.rewrite(&on(with(&[Kind::ConvLayer]), major, minor));
        let reasons: Vec<_> = rewrite.ledger().missed(Kind::ConvLayer).filter_map(|s| s.reason.clone()).collect();
        (nodes(&rewrite.model().proto, OP).len(), reasons)
    };
    assert_eq!(made(9, 0), (1, vec![]));
    assert_eq!(made(10, 0), (0, vec!["the plugin has no kernel of its own for it on this GPU".to_owned()]));
    // There is no block there that could be part of one.
    assert_eq!(made(8, 6), (0, vec![]));
}

/// The miniatures have too few channels.
#[test]
fn exports_say_why_and_compute_the_same() {
    let mut seen = 0;
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("uniformer") {
            continue;
        }
        seen += 1;
        let rewrite = testing::rewrite_with(&path, &with(&[Kind::ConvLayer])).unwrap();
        let missed: Vec<_> = rewrite.ledger().missed(Kind::ConvLayer).filter_map(|s| s.found.clone()).collect();
        assert_eq!(missed, ["8 channels, 8 between the products, 5 x 5, and 32 in the MLP"], "{name}");
        rewrite.compare(&comparison(&name)).and_then(|report| report.check()).unwrap();
    }
    assert_eq!(seen, 10);
}
