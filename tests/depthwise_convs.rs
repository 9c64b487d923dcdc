//! Depthwise convolutions of tokens as one op: the position encodings of every export are nodes, no map is made between them, all computes the
//! same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{Net, comparison, costs_less_than_its_parts, int, nodes, only_if_asked_for, rewritten, weight, with};
use common::{reshape, transpose};
use trt_opt::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options, Status};
use trt_opt::testing;

const OP: &str = "TrtOptDepthwiseConv";
const BATCH: i64 = 2;
const CHANNELS: i64 = 8;
const SIDES: [i64; 2] = [3, 5];

/// UniFormer's: one a convolution block, where a map is made behind it, and one an attention block.
#[test]
fn exports_have_all_their_encodings_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !["uniformer", "swin", "vit"].contains(&name.split('_').next().unwrap()) {
            continue;
        }
        let blocks = with(&[Kind::AttnBlock, Kind::MlpBlock, Kind::PatchEmbed, Kind::DepthwiseConv]);
        for (options, blocks) in [(with(&[Kind::DepthwiseConv]), false), (blocks, true)] {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            let model = &rewrite.model().proto;
            let found: Vec<i64> = nodes(model, OP).iter().map(|n| int(n, "residual")).collect();
            let missed: Vec<_> = rewrite.ledger().missed(Kind::DepthwiseConv).collect();
            let uniformer = name.starts_with("uniformer");
            seen += usize::from(uniformer);
            let expected = if uniformer { vec![1; 3] } else { vec![] };
            if found != expected || !missed.is_empty() {
                wrong.push(format!("{name}: {found:?} instead of {expected:?}; missed {missed:?}"));
            }
            if uniformer && blocks {
                // Of the map behind the first block.
                let transposes = nodes(model, "Transpose");
                let encodings: Vec<&NodeProto> = nodes(model, OP);
                let producer = |value: &str| {
                    let all = &model.graph.as_ref().unwrap().node;
                    all.iter().find(|n| n.output.iter().any(|o| o == value)).map_or("", |n| n.op_type())
                };
                let before: Vec<&str> = encodings.iter().map(|n| producer(&n.input[0])).collect();
                let expected = ["TrtOptPatchEmbed", "TrtOptPatchEmbed", "TrtOptMlpBlock"];
                if transposes.len() != 1 || before != expected {
                    wrong.push(format!("{name}: {} transpositions, encodings behind {before:?}", transposes.len()));
                }
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen >= 20, "{seen}");
}

/// Tokens made a map, encoded and made tokens again, to spoil.
struct Parts {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    outputs: Vec<(&'static str, Vec<i64>)>,
    open: bool,
}

impl Net for Parts {
    const KIND: Kind = Kind::DepthwiseConv;
    const OP: &'static str = OP;

    fn nodes(&mut self) -> &mut Vec<NodeProto> {
        &mut self.nodes
    }

    fn weights(&mut self) -> &mut Vec<TensorProto> {
        &mut self.weights
    }

    fn rewrite(&self, options: &Options) -> testing::Rewrite {
        let mut proto = common::model(self.nodes.clone(), self.weights.clone());
        let graph = proto.graph.as_mut().unwrap();
        let value = |name: &str, dims: &[i64]| match self.open {
            true => common::open_value(name, "batch", &dims[1..]),
            false => common::value(name, dims),
        };
        graph.input = vec![value("x", &tokens())];
        graph.output = self.outputs.iter().map(|(name, dims)| value(name, dims)).collect();
        rewritten(proto, options)
    }
}

fn tokens() -> Vec<i64> {
    vec![BATCH, SIDES[0] * SIDES[1], CHANNELS]
}

fn map() -> Vec<i64> {
    vec![BATCH, CHANNELS, SIDES[0], SIDES[1]]
}

impl Parts {
    /// `x` is exp of the input, so that there are tokens before it, and something reads those behind it.
    fn new() -> Self {
        let [h, w] = SIDES;
        let nodes = vec![
            common::node("Exp", &["x"], &["t"]),
            transpose("t", &[0, 2, 1], "l"),
            reshape("l", "map", "m"),
            common::node("Conv", &["m", "w", "b"], &["c"]),
            common::node("Add", &["m", "c"], &["s"]),
            reshape("s", "line", "r"),
            transpose("r", &[0, 2, 1], "u"),
            common::node("Tanh", &["u"], &["y"]),
        ];
        let net = Self {
            nodes,
            weights: vec![
                block::ints("map", &[-1, CHANNELS, h, w]),
                block::ints("line", &[0, 0, -1]),
                weight("b", &[CHANNELS]),
            ],
            outputs: vec![("y", tokens())],
            open: false,
        };
        net.kernel(3)
    }

    fn kernel(mut self, size: i64) -> Self {
        self.set(weight("w", &[CHANNELS, 1, size, size]));
        let attribute = vec![AttributeProto::int("group", CHANNELS), AttributeProto::ints("pads", &[size / 2; 4])];
        self.node("c").attribute = attribute;
        self
    }

    fn attribute(mut self, attribute: AttributeProto) -> Self {
        let conv = self.node("c");
        conv.attribute.retain(|a| a.name != attribute.name);
        conv.attribute.push(attribute);
        self
    }

    /// The nodes that are left, which compute the same.
    fn left(&self) -> Vec<String> {
        let (model, ledger) = self.fuse();
        assert_eq!(ledger.count(Kind::DepthwiseConv).fused, 1, "{:?}", ledger.sites);
        model.graph.as_ref().unwrap().node.iter().map(|n| n.op_type().to_owned()).collect()
    }

    fn missed_because(&self, reason: &str) {
        let site = self.missed();
        assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
    }
}

#[test]
fn an_encoding_of_tokens_is_one_node_with_all_its_attributes() {
    for size in [3, 5, 7] {
        let net = Parts::new().kernel(size);
        assert_eq!(net.left(), ["Exp", OP, "Tanh"]);
        let (model, ledger) = net.fuse();
        let node = nodes(&model, OP)[0];
        assert_eq!(["kernel", "bias", "residual"].map(|name| int(node, name)), [size, 1, 1]);
        assert_eq!(node.attribute.iter().find(|a| a.name() == "grid").unwrap().ints, SIDES);
        assert_eq!((ledger.sites[0].status, ledger.sites[0].node.as_str()), (Status::Fused, "Conv_c"));
    }
    let mut net = Parts::new();
    net.open = true;
    assert_eq!(net.left(), ["Exp", OP, "Tanh"]);
    only_if_asked_for(&Parts::new(), "depthwise-conv");
    costs_less_than_its_parts(&Parts::new());
}

#[test]
fn other_spellings_are_the_same_encoding() {
    let alone = ["Exp", OP, "Tanh"];
    // No offset; the operands of the Add the other way; padding by another name.
    let mut net = Parts::new();
    net.node("c").input.truncate(2);
    assert_eq!(net.left(), alone);
    let mut net = Parts::new();
    net.node("s").input.reverse();
    assert_eq!(net.left(), alone);
    let mut net = Parts::new().attribute(AttributeProto::string("auto_pad", "SAME_LOWER"));
    net.node("c").attribute.retain(|a| a.name() != "pads");
    assert_eq!(net.left(), alone);
    // Height and width split before the channels move.
    let [h, w] = SIDES;
    let mut net = Parts::new();
    net.set(block::ints("map", &[-1, h, w, CHANNELS]));
    net.nodes.splice(1..3, [reshape("t", "map", "l"), transpose("l", &[0, 3, 1, 2], "m")]);
    assert_eq!(net.left(), alone);
    // Without a residual, and with that of something else.
    let mut net = Parts::new();
    net.nodes.remove(4);
    net.input("r", 0, "c");
    assert_eq!(net.left(), alone);
    let (model, _) = net.fuse();
    assert_eq!(int(nodes(&model, OP)[0], "residual"), 0);
}

#[test]
fn a_map_on_one_side_costs_no_more_than_before() {
    // What comes is a map, and tokens are made of it.
    let mut net = Parts::new();
    net.before("c", vec![common::node("Sin", &["m"], &["n"])]);
    net.input("c", 0, "n");
    net.input("s", 0, "n");
    assert_eq!(net.left(), ["Exp", "Transpose", "Reshape", "Sin", "Transpose", "Reshape", OP, "Tanh"]);
    // Tokens come, and a map stays.
    let mut net = Parts::new();
    net.nodes.truncate(5);
    net.nodes.push(common::node("Tanh", &["s"], &["y"]));
    net.outputs = vec![("y", map())];
    assert_eq!(net.left(), ["Exp", OP, "Reshape", "Transpose", "Tanh"]);
    // The tokens before it and what is behind it are read as a map too: as many as before.
    let mut net = Parts::new();
    net.nodes.push(common::node("Cos", &["s"], &["z"]));
    net.outputs.push(("z", map()));
    assert_eq!(net.left().iter().filter(|op| *op == "Transpose").count(), 1);
    // And what is before it: one more would be made.
    net.nodes.remove(6);
    net.nodes.remove(5);
    net.input("y", 0, "m");
    net.outputs[0].1 = map();
    net.missed_because("more would be moved than now");
}

#[test]
fn other_convolutions_say_why() {
    let ints = AttributeProto::ints;
    Parts::new()
        .attribute(ints("dilations", &[2, 2]))
        .attribute(ints("pads", &[2; 4]))
        .missed_because("in other steps");
    let mut net = Parts::new().attribute(ints("pads", &[2, 1, 0, 1]));
    net.missed_because("padded otherwise");
    net = Parts::new().attribute(ints("pads", &[1, 2, 1, 2]));
    net.set(weight("w", &[CHANNELS, 1, 3, 5]));
    net.missed_because("no such kernel");
    Parts::new().kernel(9).missed_because("no such kernel");
    let mut net = Parts::new();
    net.weights.retain(|w| w.name() != "w");
    net.nodes.insert(0, common::node("Exp", &["wx"], &["w"]));
    net.weights.push(weight("wx", &[CHANNELS, 1, 3, 3]));
    // Of constants, so that it is one.
    assert_eq!(net.left(), ["Exp", OP, "Tanh"]);
}

#[test]
fn what_is_no_depthwise_convolution_of_tokens_is_no_site() {
    let no_site = |net: &Parts| {
        let (model, ledger) = net.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert_eq!(ledger.count(Kind::DepthwiseConv).total, 0, "{:?}", ledger.sites);
    };
    // In groups of two channels.
    let mut net = Parts::new().attribute(AttributeProto::int("group", CHANNELS / 2));
    net.set(weight("w", &[CHANNELS, 2, 3, 3]));
    no_site(&net);
    // A map on both sides.
    let mut net = Parts::new();
    net.before("c", vec![common::node("Sin", &["m"], &["n"])]);
    net.input("c", 0, "n");
    net.input("s", 0, "n");
    net.nodes.truncate(6);
    net.nodes.push(common::node("Tanh", &["s"], &["y"]));
    net.outputs = vec![("y", map())];
    no_site(&net);
    // Channels and places mixed.
    let mut net = Parts::new();
    net.nodes.remove(1);
    net.input("m", 0, "t");
    net.nodes.truncate(4);
    net.nodes.push(common::node("Tanh", &["s"], &["y"]));
    net.outputs = vec![("y", map())];
    no_site(&net);
}
