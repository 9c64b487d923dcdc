//! Patch merges with the product behind them: every export of Swin has its own, they compute the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{
    Block, Net, comparison, costs_less_than_its_parts, int, ints, made_up_to_its_size, nodes, only_if_asked_for,
    weight, with,
};
use trt_opt::onnx::proto::{AttributeProto, NodeProto};
use trt_opt::rewrite::{Kind, Options, Status};
use trt_opt::testing;

const OP: &str = "TrtOptPatchMergeBlock";

fn with_block() -> Options {
    with(&[Kind::PatchMergeBlock])
}

/// Torchvision's miniature has 12 channels before its merge.
const TWELVE_CHANNELS: &str = "the tensor cores take no such sizes";

/// All exports, with the block alone and with all blocks beside it.
#[test]
fn exports_have_all_their_blocks_and_compute_the_same() {
    let mut wrong = vec![];
    let (mut blocks, mut residuals) = (0, 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("swin") {
            continue;
        }
        for options in [with_block(), with(&Kind::ALL)] {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            let [count, merges] = [Kind::PatchMergeBlock, Kind::PatchMerge].map(|k| rewrite.ledger().count(k));
            let twelve = rewrite
                .ledger()
                .missed(Kind::PatchMergeBlock)
                .filter(|s| name.contains("torchvision") && s.reason.as_deref() == Some(TWELVE_CHANNELS))
                .count();
            if merges.total == 0 || (count.total, count.fused + twelve) != (merges.total, merges.total) {
                let missed: Vec<_> = rewrite.ledger().missed(Kind::PatchMergeBlock).collect();
                wrong.push(format!("{name}: {} of {} merges: {missed:?}", count.fused, merges.total));
            }
            let made = nodes(&rewrite.model().proto, OP);
            blocks += made.len();
            residuals += made.iter().map(|n| int(n, "residual")).sum::<i64>();
            if made.len() != count.fused || nodes(&rewrite.model().proto, "TrtOptPatchMerge").len() != twelve {
                wrong.push(format!("{name}: {} nodes of {} blocks", made.len(), count.fused));
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(blocks > 40, "only {blocks} blocks");
    assert!(residuals > 20, "only {residuals} of {blocks} blocks take an add");
}

/// A merge whose parts are nodes to spoil.
type Parts = block::Parts<Merge>;

struct Merge;

impl Block for Merge {
    const KIND: Kind = Kind::PatchMergeBlock;
    const OP: &'static str = OP;
}

const BATCH: i64 = 2;
const SIDE: i64 = 4;
const CHANNELS: i64 = 8;
const COLUMNS: i64 = 16;

fn norm(x: &str, name: &str, y: &str) -> NodeProto {
    block::norm(x, &format!("{name}_scale"), &format!("{name}_bias"), y, 1e-3)
}

impl Parts {
    /// A map of a square of tokens.
    fn new(side: i64, channels: i64, columns: i64) -> Self {
        let half = side / 2;
        let nodes = vec![
            common::node("Reshape", &["x", "cut"], &["r"]),
            NodeProto {
                attribute: vec![AttributeProto::ints("perm", &[0, 1, 3, 4, 2, 5])],
                ..common::node("Transpose", &["r"], &["t"])
            },
            common::node("Reshape", &["t", "joined"], &["m"]),
            norm("m", "in", "n"),
            common::node("MatMul", &["n", "w"], &["y"]),
        ];
        let mut weights = vec![
            ints("cut", &[BATCH, half, 2, half, 2, channels]),
            ints("joined", &[BATCH, half, half, 4 * channels]),
            weight("w", &[4 * channels, columns]),
            weight("b", &[columns]),
        ];
        for (name, size) in [("in", 4 * channels), ("out", columns)] {
            weights.extend([weight(&format!("{name}_scale"), &[size]), weight(&format!("{name}_bias"), &[size])]);
        }
        Self {
            nodes,
            weights,
            inputs: vec![("x", vec![BATCH, side, side, channels])],
            outputs: vec![("y", vec![BATCH, half, half, columns])],
            block: Merge,
        }
    }

    fn usual() -> Self {
        Self::new(SIDE, CHANNELS, COLUMNS)
    }

    /// All of it becomes one node.
    fn fused(&self) -> NodeProto {
        let (model, ledger) = self.fuse();
        let all = &model.graph.as_ref().unwrap().node;
        assert_eq!(all.iter().map(|n| n.op_type()).collect::<Vec<_>>(), [OP], "{:?}", ledger.sites);
        all[0].clone()
    }

    /// The one site is missed, for this reason, and its patch merge is fused all the same.
    fn missed_because(&self, reason: &str) {
        assert!(
            self.missed().reason.is_some_and(|found| found.contains(reason)),
            "expected {reason}: {:?}",
            self.missed()
        );
        assert_eq!(self.fuse().1.count(Kind::PatchMerge).fused, 1);
    }

    fn no_site(&self) {
        let (model, ledger) = self.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert!(ledger.sites.iter().all(|s| s.kind != Kind::PatchMergeBlock), "{:?}", ledger.sites);
    }
}

#[test]
fn the_block_is_one_node_with_all_its_attributes() {
    let net = Parts::usual();
    let node = net.fused();
    let attribute = |name: &str| node.attribute.iter().find(|a| a.name() == name).unwrap();
    assert_eq!(attribute("epsilon").f, Some(1e-3));
    assert_eq!(
        (attribute("grid").ints.as_slice(), attribute("order").ints.as_slice()),
        (&[4, 4][..], &[0, 2, 1, 3][..])
    );
    assert_eq!([int(&node, "rank"), int(&node, "residual")], [4, 0]);
    // Without an offset, zeros are one.
    assert_eq!((node.input.len(), node.input[0].as_str(), node.input[3].as_str()), (5, "x", "w"));
    // The sites of its parts say where they are now: a norm, a merge and the block.
    let (_, ledger) = net.fuse();
    assert_eq!(ledger.sites.len(), 3);
    for site in &ledger.sites {
        assert_eq!((site.status, site.into.as_deref()), (Status::Fused, node.name.as_deref()), "{site:?}");
    }
}

#[test]
fn other_spellings_are_the_same_block() {
    // An offset, on either side.
    for operands in [["p", "b"], ["b", "p"]] {
        let mut net = Parts::usual();
        net.node("y").output[0] = "p".into();
        net.nodes.push(common::node("Add", &operands, &["y"]));
        assert_eq!(net.fused().input[4], "b");
    }
    // Tokens in a row, before the norm or behind it.
    let tokens = [BATCH, SIDE * SIDE / 4];
    let mut net = Parts::usual();
    net.set(ints("joined", &[tokens[0], tokens[1], 4 * CHANNELS]));
    net.outputs[0].1 = vec![tokens[0], tokens[1], COLUMNS];
    assert_eq!(int(&net.fused(), "rank"), 3);
    let mut net = Parts::usual();
    net.before("y", vec![common::node("Reshape", &["n", "row"], &["flat"])]);
    net.input("y", 0, "flat");
    net.set(ints("row", &[tokens[0], tokens[1], 4 * CHANNELS]));
    net.outputs[0].1 = vec![tokens[0], tokens[1], COLUMNS];
    assert_eq!(int(&net.fused(), "rank"), 3);
    // The tokens of all images in a row: a Reshape stays behind the block.
    net.set(ints("row", &[tokens[0] * tokens[1], 4 * CHANNELS]));
    net.outputs[0].1 = vec![tokens[0] * tokens[1], COLUMNS];
    let (model, _) = net.fuse();
    let ops: Vec<_> = model.graph.as_ref().unwrap().node.iter().map(|n| n.op_type()).collect();
    assert_eq!(ops, [OP, "Reshape"]);
}

#[test]
fn an_add_before_the_block_goes_into_it() {
    let mut net = Parts::usual();
    let shape = net.inputs[0].1.clone();
    net.inputs = vec![("a", shape.clone()), ("c", shape)];
    net.nodes.insert(0, common::node("Add", &["a", "c"], &["x"]));
    let node = net.fused();
    assert_eq!((int(&node, "residual"), node.input.len()), (1, 6));
    assert_eq!(node.input[..2], ["a", "c"]);
    // Not where the sum is read otherwise.
    net.outputs.push(("x", net.inputs[0].1.clone()));
    let (model, _) = net.fuse();
    assert_eq!(nodes(&model, OP).iter().map(|n| int(n, "residual")).collect::<Vec<_>>(), [0]);
}

/// As in Swin v2.
#[test]
fn a_norm_behind_the_product_is_another_block() {
    let mut net = Parts::usual();
    net.nodes.truncate(3);
    net.nodes.extend([common::node("MatMul", &["m", "w"], &["p"]), norm("p", "out", "y")]);
    let site = net.missed();
    assert_eq!(site.reason.as_deref(), Some("the norm comes behind the product, as in Swin v2"));
    assert_eq!(site.found.as_deref(), Some("the product, then a norm"));
    // The rule of patch merges says so in its words.
    let (_, ledger) = net.fuse();
    assert_eq!(ledger.count(Kind::PatchMerge).missed, 1);
    assert_eq!(ledger.missed(Kind::PatchMerge).next().unwrap().node, site.node);
}

#[test]
fn merges_without_their_norm_are_no_sites() {
    let mut net = Parts::usual();
    net.input("y", 0, "m");
    net.nodes.retain(|n| n.output[0] != "n");
    net.no_site();
    // Nor what is no merge: the channels of the four tokens interleave.
    let mut net = Parts::usual();
    net.node("t").attribute = vec![AttributeProto::ints("perm", &[0, 1, 3, 5, 4, 2])];
    net.no_site();
}

#[test]
fn a_merge_without_a_product_is_missed() {
    let mut net = Parts::usual();
    net.nodes.pop();
    net.nodes.push(common::node("Tanh", &["n"], &["y"]));
    net.outputs[0].1[3] = 4 * CHANNELS;
    net.missed_because("another op follows than in a block");
}

#[test]
fn a_product_of_two_tensors_is_missed() {
    let mut net = Parts::usual();
    net.inputs.push(("v", vec![4 * CHANNELS, COLUMNS]));
    net.input("y", 1, "v");
    net.missed_because("the right operand is no weight");
}

#[test]
fn a_norm_that_is_read_otherwise_is_missed() {
    let mut net = Parts::usual();
    net.outputs.push(("n", vec![BATCH, SIDE / 2, SIDE / 2, 4 * CHANNELS]));
    net.missed_because("an interior value is used otherwise too");
}

/// A product over parts of the merged channels.
#[test]
fn a_product_of_other_rows_is_missed() {
    let mut net = Parts::usual();
    net.before("y", vec![common::node("Reshape", &["n", "halves"], &["h"])]);
    net.input("y", 0, "h");
    net.set(ints("halves", &[BATCH, SIDE / 2, SIDE, 2 * CHANNELS]));
    net.set(weight("w", &[2 * CHANNELS, COLUMNS]));
    net.outputs[0].1 = vec![BATCH, SIDE / 2, SIDE, COLUMNS];
    net.missed_because("the product is not of the merged channels");
}

#[test]
fn sizes_that_the_plugin_does_not_take_are_missed() {
    Parts::new(SIDE, 12, COLUMNS).missed_because(TWELVE_CHANNELS);
    Parts::new(SIDE, CHANNELS, 12).missed_because(TWELVE_CHANNELS);
    Parts::new(SIDE, CHANNELS, 2056).missed_because("the block is too large");
}

/// 2 * 2 * 784 * 384 * 192 are 0.231 GFLOP, 24 columns more 0.261.
#[test]
fn blocks_above_the_size_that_was_measured_are_left_to_their_parts() {
    for (columns, fused) in [(192, true), (216, false)] {
        made_up_to_its_size(
            &Parts::new(56, 96, columns),
            fused,
            ["at most 0.250 GFLOP in its product", "0.261 GFLOP, rows [2, 28, 28]"],
        );
    }
}

#[test]
fn blocks_are_not_fused_unless_asked_for_and_can_be_left() {
    only_if_asked_for(&Parts::usual(), "patch-merge-block");
}

#[test]
fn the_cost_of_a_block_is_less_than_that_of_its_parts() {
    let [parts, block] = costs_less_than_its_parts(&Parts::usual());
    assert_eq!(block, parts);
}
