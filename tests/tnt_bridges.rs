//! Bridges from words to tokens of TNT and PyramidTNT: every export has its own, they compute the same, and every near miss
//! says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{
    Block, Net, comparison, costs_less_than_its_parts, int, ints, made_up_to_its_size, nodes, only_if_asked_for,
    weight, with,
};
use trt_opt::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options, Status};
use trt_opt::testing;

const OP: &str = "TrtOptTntBridge";

fn with_bridge() -> Options {
    with(&[Kind::TntBridge])
}

/// All exports, with the bridge alone and with all blocks beside it.
#[test]
fn exports_have_all_their_bridges_and_compute_the_same() {
    let mut wrong = vec![];
    let mut seen = [0, 0];
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let pyramid = name.starts_with("ptnt");
        if !pyramid && !name.starts_with("tnt") {
            continue;
        }
        seen[usize::from(pyramid)] += 1;
        // Words would take the bridges.
        let kinds = trt_opt::ablation::tune::kinds_without_wholes();
        let all = Options { kinds, ..Options::default() };
        for (options, blocks) in [(with_bridge(), false), (all, true)] {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            let bridges = nodes(&rewrite.model().proto, OP);
            // TNT leaves out the class token.
            let begins: Vec<i64> = bridges.iter().map(|n| int(n, "begin")).collect();
            let expected = vec![i64::from(!pyramid); 2];
            let residuals: i64 = bridges.iter().map(|n| int(n, "residual")).sum();
            // The second of two blocks of one stage takes the add of the MLP before it, unless that is a block itself;
            // PyramidTNT's second bridge is the first of its stage.
            let taken = i64::from(!pyramid && !blocks);
            if begins != expected || (!blocks && residuals != taken) {
                let sites: Vec<_> = rewrite.ledger().sites.iter().filter(|s| s.kind == Kind::TntBridge).collect();
                wrong.push(format!(
                    "{name}: bridges from {begins:?} instead of {expected:?}, {residuals} adds: {sites:?}"
                ));
            }
            if rewrite.ledger().count(Kind::TntBridge).missed != 0 {
                wrong.push(format!("{name}: {:?}", rewrite.ledger().missed(Kind::TntBridge).collect::<Vec<_>>()));
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, [10, 10]);
}

/// A bridge whose parts are nodes to spoil.
type Parts = block::Parts<Bridge>;

struct Bridge;

impl Block for Bridge {
    const KIND: Kind = Kind::TntBridge;
    const OP: &'static str = OP;
}

const BATCH: i64 = 2;
const PATCHES: i64 = 4;
const WIDTH: i64 = 48;
const CHANNELS: i64 = 16;

fn norm(x: &str, name: &str, y: &str, epsilon: f32) -> NodeProto {
    block::norm(x, &format!("{name}_scale"), &format!("{name}_bias"), y, epsilon)
}

fn slice(x: &str, start: &str, end: &str, y: &str) -> NodeProto {
    common::node("Slice", &[x, start, end, "one"], &[y])
}

fn concat(parts: &[&str], y: &str) -> NodeProto {
    NodeProto { attribute: vec![AttributeProto::int("axis", 1)], ..common::node("Concat", parts, &[y]) }
}

impl Parts {
    /// To all tokens.
    fn new() -> Self {
        let nodes = vec![
            common::node("Reshape", &["words", "rows"], &["r"]),
            norm("r", "in", "n1", 1e-5),
            common::node("MatMul", &["n1", "w"], &["p"]),
            norm("p", "out", "n2", 1e-3),
            common::node("Add", &["x", "n2"], &["y"]),
        ];
        let mut weights = vec![
            ints("rows", &[BATCH, PATCHES, WIDTH]),
            ints("zero", &[0]),
            ints("one", &[1]),
            ints("two", &[2]),
            ints("last", &[-1]),
            ints("end", &[i64::MAX]),
        ];
        let vectors = [("in", WIDTH), ("out", CHANNELS), ("again", CHANNELS)];
        for (name, size) in vectors {
            weights.push(weight(&format!("{name}_scale"), &[size]));
            weights.push(weight(&format!("{name}_bias"), &[size]));
        }
        weights.extend([weight("w", &[WIDTH, CHANNELS]), weight("b", &[CHANNELS])]);
        Self {
            nodes,
            weights,
            inputs: vec![("words", vec![BATCH * PATCHES, 16, WIDTH / 16]), ("x", vec![BATCH, PATCHES, CHANNELS])],
            outputs: vec![("y", vec![BATCH, PATCHES, CHANNELS])],
            block: Bridge,
        }
    }

    /// To all tokens but those before the second.
    fn but_the_first() -> Self {
        let mut net = Self::new();
        net.nodes.pop();
        net.nodes.extend([
            slice("x", "zero", "one", "class"),
            slice("x", "one", "end", "rest"),
            common::node("Add", &["n2", "rest"], &["s"]),
            concat(&["class", "s"], "y"),
        ]);
        net.tokens(PATCHES + 1);
        net
    }

    fn tokens(&mut self, tokens: i64) {
        self.inputs[1].1[1] = tokens;
        self.outputs[0].1[1] = tokens;
    }

    /// All of it becomes one node, but for the Reshape before it.
    fn fused(&self) -> NodeProto {
        let (model, ledger) = self.fuse();
        let all = &model.graph.as_ref().unwrap().node;
        assert_eq!(all.iter().map(|n| n.op_type()).collect::<Vec<_>>(), ["Reshape", OP], "{:?}", ledger.sites);
        all[1].clone()
    }

    /// The one site is missed, for this reason, and its norms are fused all the same.
    fn missed_because(&self, reason: &str) {
        let (model, ledger) = self.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert!(ledger.count(Kind::LayerNorm).fused >= 2);
        let missed: Vec<_> = ledger.missed(Kind::TntBridge).map(|s| s.reason.clone().unwrap()).collect();
        assert!(matches!(&missed[..], [found] if found.contains(reason)), "expected {reason}, found {missed:?}");
    }

    fn no_site(&self) {
        let (model, ledger) = self.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert!(ledger.sites.iter().all(|s| s.kind != Kind::TntBridge), "{:?}", ledger.sites);
    }
}

#[test]
fn the_bridge_is_one_node_with_all_its_attributes() {
    for (net, begin) in [(Parts::new(), 0), (Parts::but_the_first(), 1)] {
        let node = net.fused();
        let float = |name: &str| node.attribute.iter().find(|a| a.name() == name).unwrap().f.unwrap();
        assert_eq!([float("epsilon1"), float("epsilon2")], [1e-5, 1e-3]);
        assert_eq!([int(&node, "begin"), int(&node, "residual")], [begin, 0]);
        assert_eq!((node.input.len(), node.input[0].as_str()), (8, "x"));
        // The sites of its parts say where they are now: two norms and the bridge.
        let (_, ledger) = net.fuse();
        assert_eq!(ledger.sites.len(), 3);
        for site in &ledger.sites {
            assert_eq!((site.status, site.into.as_deref()), (Status::Fused, node.name.as_deref()), "{site:?}");
        }
    }
}

#[test]
fn other_spellings_are_the_same_bridge() {
    // An offset, on either side.
    for operands in [["p", "b"], ["b", "p"]] {
        let mut net = Parts::but_the_first();
        net.before("n2", vec![common::node("Add", &operands, &["pb"])]);
        net.node("n2").input[0] = "pb".into();
        net.fused();
    }
    // The words' rows without their images until the add.
    let mut net = Parts::new();
    net.before("y", vec![common::node("Reshape", &["n2", "tokens"], &["n3"])]);
    net.node("y").input[1] = "n3".into();
    net.set(TensorProto::from_i64("tokens", &[3], &[BATCH, PATCHES, CHANNELS]));
    net.fused();
    // Kept tokens behind the words' too.
    let mut net = Parts::but_the_first();
    net.tokens(PATCHES + 3);
    net.node("rest").input[2] = "minus_two".into();
    net.set(TensorProto::from_i64("minus_two", &[1], &[-2]));
    net.before("y", vec![slice("x", "minus_two", "end", "behind")]);
    net.node("y").input.push("behind".into());
    assert_eq!(int(&net.fused(), "begin"), 1);
}

#[test]
fn an_add_before_the_bridge_goes_into_it() {
    for mut net in [Parts::new(), Parts::but_the_first()] {
        let shape = net.inputs[1].1.clone();
        net.inputs.extend([("a", shape.clone()), ("c", shape)]);
        net.inputs.remove(1);
        net.nodes.insert(0, common::node("Add", &["a", "c"], &["x"]));
        let node = net.fused();
        assert_eq!((int(&node, "residual"), node.input.len()), (1, 9));
        assert_eq!(node.input[..2], ["a", "c"]);
        // Not where the sum is read otherwise.
        net.outputs.push(("x", net.inputs[1].1.clone()));
        let (model, _) = net.fuse();
        assert_eq!(nodes(&model, OP).iter().map(|n| int(n, "residual")).collect::<Vec<_>>(), [0]);
    }
}

#[test]
fn the_other_tokens_are_another_stream_or_order() {
    let mut net = Parts::but_the_first();
    net.inputs.push(("z", net.inputs[1].1.clone()));
    net.node("class").input[0] = "z".into();
    // What is added to is then only a part of x.
    assert_eq!(nodes(&net.fuse().0, "Slice").len(), 2);
    let mut net = Parts::but_the_first();
    net.node("y").input.reverse();
    let (model, _) = net.fuse();
    assert_eq!(nodes(&model, "Concat").len(), 1);
}

#[test]
fn norms_over_other_rows_are_missed() {
    // Each word by itself, as older TNTs have it.
    let mut net = Parts::new();
    net.nodes.remove(0);
    net.before("p", vec![common::node("Reshape", &["n1", "rows"], &["r"])]);
    net.node("n1").input[0] = "words".into();
    net.node("p").input[0] = "r".into();
    for name in ["in_scale", "in_bias"] {
        net.set(weight(name, &[WIDTH / 16]));
    }
    net.missed_because("a norm is not over the whole rows of the product");
    // All words of an image.
    let mut net = Parts::new();
    net.set(TensorProto::from_i64("rows", &[3], &[1, BATCH * PATCHES, WIDTH]));
    net.before("y", vec![common::node("Reshape", &["n2", "tokens"], &["n3"])]);
    net.node("y").input[1] = "n3".into();
    net.set(TensorProto::from_i64("tokens", &[3], &[BATCH, PATCHES, CHANNELS]));
    net.missed_because("the words are not in a row for each token");
}

#[test]
fn without_one_of_its_norms_it_is_no_site() {
    let mut net = Parts::new();
    net.node("p").input[0] = "r".into();
    net.no_site();
    let mut net = Parts::new();
    net.node("y").input[1] = "p".into();
    net.no_site();
    // Nor where nothing is added, as before the first block.
    let mut net = Parts::but_the_first();
    net.node("y").input[1] = "n2".into();
    net.no_site();
}

#[test]
fn what_is_added_to_must_be_tokens() {
    let mut net = Parts::new();
    net.node("y").input[0] = "b".into();
    net.missed_because("what the words are added to are no tokens");
    let mut net = Parts::new();
    net.inputs[1].1 = vec![1, PATCHES, CHANNELS];
    net.missed_because("what the words are added to are no tokens");
}

#[test]
fn a_product_of_two_tensors_is_missed() {
    let mut net = Parts::new();
    net.inputs.push(("m", vec![WIDTH, CHANNELS]));
    net.node("p").input[1] = "m".into();
    net.missed_because("the right operand is no weight");
}

#[test]
fn values_that_are_read_otherwise_are_missed() {
    for (value, columns) in [("n1", WIDTH), ("p", CHANNELS), ("n2", CHANNELS)] {
        let mut net = Parts::new();
        net.outputs.push((value, vec![BATCH, PATCHES, columns]));
        net.missed_because("an interior value is used otherwise too");
    }
    // What is put beside the other tokens is read as it is, too: then a bridge gives that.
    let mut net = Parts::but_the_first();
    net.outputs.push(("s", vec![BATCH, PATCHES, CHANNELS]));
    let (model, _) = net.fuse();
    assert_eq!(nodes(&model, OP).iter().map(|n| int(n, "begin")).collect::<Vec<_>>(), [0]);
    assert_eq!(nodes(&model, "Concat").len(), 1);
}

#[test]
fn more_than_the_plugin_takes_is_missed() {
    let mut net = Parts::new();
    net.inputs[1].1[2] = 2056;
    net.outputs[0].1[2] = 2056;
    for (name, dims) in [("w", &[WIDTH, 2056][..]), ("out_scale", &[2056]), ("out_bias", &[2056])] {
        net.set(weight(name, dims));
    }
    net.missed_because("the block is too large");
}

/// 2 * 8 * 16384 * 376 are 0.099 GFLOP, eight channels more 0.101.
#[test]
fn bridges_above_the_size_where_they_pay_are_left_to_their_parts() {
    for (channels, fused) in [(376, true), (384, false)] {
        let mut net = Parts::new();
        net.inputs = vec![("words", vec![BATCH * PATCHES, 16, 1024]), ("x", vec![BATCH, PATCHES, channels])];
        net.outputs[0].1[2] = channels;
        net.set(TensorProto::from_i64("rows", &[3], &[BATCH, PATCHES, 16384]));
        net.set(weight("w", &[16384, channels]));
        for (name, size) in [("in_scale", 16384), ("in_bias", 16384), ("out_scale", channels), ("out_bias", channels)] {
            net.set(weight(name, &[size]));
        }
        made_up_to_its_size(&net, fused, ["at most 0.100 GFLOP in its product", "0.101 GFLOP, rows [2, 4]"]);
    }
}

#[test]
fn bridges_are_not_fused_unless_asked_for_and_can_be_left() {
    only_if_asked_for(&Parts::new(), "tnt-bridge");
}

#[test]
fn the_cost_of_a_bridge_is_less_than_that_of_its_parts() {
    let [parts, block] = costs_less_than_its_parts(&Parts::but_the_first());
    assert_eq!(block, parts);
}
