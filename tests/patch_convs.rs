//! Convolutions of tokens as one op: the merges of patches and words of PyramidTNT are nodes, all computes the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{
    Block, Net, Parts, comparison, costs_less_than_its_parts, int, ints, made_up_to_its_size, nodes, norm,
    only_if_asked_for, weight, with,
};
use common::{ops, reshape, transpose};
use trt_opt::onnx::proto::{AttributeProto, NodeProto};
use trt_opt::rewrite::{ComputeCapability, Kind, Options};
use trt_opt::testing;

const OP: &str = "TrtOptPatchConv";
const NORM: &str = "TrtOptLayerNorm";
const BATCH: i64 = 2;
const SIDES: [i64; 2] = [5, 6];
/// Channels and columns.
const SIZES: [i64; 2] = [8, 16];

fn of<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    &node.attribute.iter().find(|a| a.name() == name).unwrap().ints
}

/// One merge of patches in each export, alone and with all other kinds; its words have two channels, which the plugin is not made for.
#[test]
fn exports_merge_their_tokens_as_nodes_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !["ptnt", "uniformer", "vit"].contains(&name.split('_').next().unwrap()) {
            continue;
        }
        let expected = usize::from(name.starts_with("ptnt"));
        seen += expected;
        for kinds in [&[Kind::PatchConv][..], &Kind::ALL] {
            let rewrite = testing::rewrite_with(&path, &with(kinds)).unwrap();
            let (model, ledger) = (&rewrite.model().proto, rewrite.ledger());
            let (found, count) = (nodes(model, OP), ledger.count(Kind::PatchConv));
            // Without blocks the norm takes the add before it, and stays.
            let normed = found.iter().all(|node| int(node, "norm") == i64::from(kinds.len() > 1));
            if found.len() != expected || [count.fused, count.missed] != [expected; 2] || !normed {
                wrong.push(format!("{name}: {} nodes, {count:?}", found.len()));
            }
            let missed = ledger.missed(Kind::PatchConv).map(|site| site.found.as_deref());
            wrong.extend(
                missed.filter(|found| *found != Some("2 channels, 4 columns")).map(|f| format!("{name}: {f:?}")),
            );
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 10);
}

struct Merge;

impl Block for Merge {
    const KIND: Kind = Kind::PatchConv;
    const OP: &'static str = OP;
}

/// A norm of tokens, a convolution of them as a map, and tokens of what that gives.
fn of_sizes(images: i64, [h, w]: [i64; 2], [channels, columns]: [i64; 2], kernel: i64, stride: i64) -> Parts<Merge> {
    let pad = kernel / 2;
    let side = |n: i64| (n + 2 * pad - kernel) / stride + 1;
    let conv = NodeProto {
        attribute: vec![AttributeProto::ints("pads", &[pad; 4]), AttributeProto::ints("strides", &[stride; 2])],
        ..common::node("Conv", &["m", "w", "b"], &["c"])
    };
    let nodes = vec![
        common::node("Exp", &["x"], &["t"]),
        norm("t", "scale", "bias", "n", 1e-5),
        transpose("n", &[0, 2, 1], "l"),
        reshape("l", "map", "m"),
        conv,
        reshape("c", "line", "r"),
        transpose("r", &[0, 2, 1], "z"),
        common::node("Tanh", &["z"], &["y"]),
    ];
    let weights = vec![
        ints("map", &[-1, channels, h, w]),
        ints("line", &[0, 0, -1]),
        weight("w", &[columns, channels, kernel, kernel]),
        weight("b", &[columns]),
        weight("scale", &[channels]),
        weight("bias", &[channels]),
    ];
    let (inputs, outputs) =
        (vec![("x", vec![images, h * w, channels])], vec![("y", vec![images, side(h) * side(w), columns])]);
    Parts { nodes, weights, inputs, outputs, block: Merge }
}

fn parts() -> Parts<Merge> {
    of_sizes(BATCH, SIDES, SIZES, 3, 2)
}

/// The same of words of patches that lie beside each other.
fn of_words(across: i64) -> Parts<Merge> {
    let ([channels, columns], patches) = (SIZES, 2 * 2 * 3 * across);
    let mut net = of_sizes(1, [8, 6], SIZES, 3, 2);
    net.node("l").attribute = vec![AttributeProto::ints("perm", &[0, 2, 6, 1, 4, 3, 5])];
    net.before("l", vec![reshape("n", "cells", "k")]);
    net.input("l", 0, "k");
    net.set(ints("cells", &[-1, 2, across, 3, 4, 2, channels]));
    net.inputs = vec![("x", vec![patches, 8, channels])];
    net.outputs = vec![("y", vec![2 * across, 12, columns])];
    net
}

const WHOLE: [&str; 3] = ["Exp", OP, "Tanh"];

/// The ops that are left of a net that has one site, which is fused; it computes the same.
fn left(net: &Parts<Merge>) -> Vec<String> {
    let (model, ledger) = net.fuse();
    let count = ledger.count(Kind::PatchConv);
    assert_eq!((count.total, count.fused), (1, 1), "{:?}", ledger.sites);
    ops(&model)
}

fn missed_because(net: &Parts<Merge>, reason: &str, [expected, found]: [&str; 2]) {
    let site = net.missed();
    assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    assert!(text(&site.expected).contains(expected) && text(&site.found).contains(found), "{site:?}");
}

fn no_site(net: &Parts<Merge>) {
    let (model, ledger) = net.fuse();
    assert!(nodes(&model, OP).is_empty());
    assert_eq!(ledger.count(Kind::PatchConv).total, 0, "{:?}", ledger.sites);
}

#[test]
fn a_whole_merge_is_one_node_with_all_its_attributes() {
    for (kernel, stride) in [(3, 2), (3, 1), (2, 1), (5, 3)] {
        let net = of_sizes(BATCH, SIDES, SIZES, kernel, stride);
        assert_eq!(left(&net), WHOLE);
        let (model, ledger) = net.fuse();
        let node = nodes(&model, OP)[0];
        let expected = [("grid", &SIDES[..]), ("kernel", &[kernel; 2]), ("strides", &[stride; 2]), ("cell", &[1; 2])];
        assert!(expected.iter().all(|(name, values)| of(node, name) == *values), "{node:?}");
        assert_eq!((of(node, "pads"), int(node, "across"), int(node, "norm")), (&[kernel / 2; 4][..], 1, 1));
        // The norm is there, too.
        let sites: Vec<_> = ledger.sites.iter().map(|s| (s.kind, s.into.as_deref())).collect();
        assert_eq!(sites, [Kind::LayerNorm, Kind::PatchConv].map(|kind| (kind, node.name.as_deref())));
    }
    let [parts_macs, node_macs] = costs_less_than_its_parts(&parts());
    assert_eq!(parts_macs, node_macs);
    only_if_asked_for(&parts(), "patch-conv");
}

#[test]
fn words_of_patches_are_maps() {
    for across in [1, 2, 3] {
        let net = of_words(across);
        let left = left(&net);
        let moved = ["Reshape"];
        let rest: Vec<_> = left.iter().filter(|op| !moved.contains(&op.as_str())).collect();
        assert_eq!(rest, WHOLE, "{left:?}");
        let (model, _) = net.fuse();
        let node = nodes(&model, OP)[0];
        assert_eq!((of(node, "grid"), of(node, "cell"), int(node, "across")), (&[8, 6][..], &[4, 2][..], across));
    }
    // In another order.
    let mut net = of_words(3);
    net.node("l").attribute = vec![AttributeProto::ints("perm", &[0, 2, 6, 1, 4, 5, 3])];
    no_site(&net);
}

#[test]
fn other_spellings_are_the_same_merge() {
    let mut net = parts();
    net.node("c").input.truncate(2);
    assert_eq!(left(&net), WHOLE);
    // No padding, and more on one side.
    for pads in [[0; 4], [0, 1, 2, 1]] {
        let mut net = parts();
        net.node("c").attribute[0] = AttributeProto::ints("pads", &pads);
        net.outputs[0].1[1] = if pads == [0; 4] { 4 } else { 9 };
        assert_eq!(left(&net), WHOLE);
    }
    // Without a norm.
    let mut net = parts();
    net.nodes.remove(1);
    net.input("l", 0, "t");
    assert_eq!(left(&net), WHOLE);
    let (model, _) = net.fuse();
    assert_eq!(int(nodes(&model, OP)[0], "norm"), 0);
}

#[test]
fn a_norm_that_is_read_elsewhere_stays() {
    for read in [true, false] {
        let mut net = parts();
        if read {
            net.nodes.push(common::node("Cos", &["n"], &["given"]));
            net.outputs.push(("given", vec![BATCH, SIDES[0] * SIDES[1], SIZES[0]]));
        } else {
            net.outputs.push(("n", vec![BATCH, SIDES[0] * SIDES[1], SIZES[0]]));
        }
        let ops = left(&net);
        assert!(ops.contains(&NORM.to_owned()), "{ops:?}");
    }
}

#[test]
fn another_convolution_says_why_or_is_no_site() {
    let attribute = |value: AttributeProto| {
        let mut net = parts();
        net.node("c").attribute.push(value);
        net
    };
    let mut net = attribute(AttributeProto::ints("dilations", &[2, 1]));
    net.outputs[0].1[1] = 6;
    missed_because(&net, "do not lie side by side", ["dilations [1, 1]", "[2, 1]"]);
    let mut net = parts();
    net.node("c").attribute[0] = AttributeProto::string("auto_pad", "SAME_UPPER");
    missed_because(&net, "its padding depends on the map", ["pads", "SAME_UPPER"]);
    let mut net = parts();
    net.node("c").attribute[0] = AttributeProto::ints("pads", &[3, 1, 1, 1]);
    net.outputs[0].1[1] = 12;
    missed_because(&net, "goes over the map in other steps", ["pads smaller", "[3, 1, 1, 1]"]);
    let mut net = attribute(AttributeProto::int("group", 2));
    net.set(weight("w", &[SIZES[1], SIZES[0] / 2, 3, 3]));
    no_site(&net);
    no_site(&of_sizes(BATCH, SIDES, SIZES, 1, 2));
    let mut net = parts();
    net.weights.retain(|w| w.name() != "w");
    net.inputs.push(("w", vec![SIZES[1], SIZES[0], 3, 3]));
    missed_because(&net, "is no weight of its type", ["a constant of float", ""]);
}

#[test]
fn other_ends_say_why_or_are_no_site() {
    // A map behind it.
    let mut net = parts();
    net.nodes.push(common::node("Cos", &["c"], &["given"]));
    net.outputs.push(("given", vec![BATCH, SIZES[1], 3, 3]));
    missed_because(&net, "is read otherwise than as tokens", ["tokens", "a map"]);
    // A map before it.
    let mut net = parts();
    net.before("c", vec![common::node("Relu", &["m"], &["k"])]);
    net.input("c", 0, "k");
    no_site(&net);
}

#[test]
fn other_sizes_say_why() {
    for sizes in [[12, 16], [8, 20]] {
        let found = format!("{} channels, {} columns", sizes[0], sizes[1]);
        let net = of_sizes(BATCH, SIDES, sizes, 3, 2);
        missed_because(&net, "the tensor cores take no such sizes", ["multiples of 8", &found]);
    }
    let net = of_sizes(1, SIDES, [1824, 8], 3, 2);
    missed_because(&net, "its kernel is too large", ["at most 16384", "16416 and 8"]);
    let net = of_sizes(1, SIDES, [8, 2056], 3, 2);
    missed_because(&net, "its kernel is too large", ["2048 columns", "72 and 2056"]);
}

#[test]
fn merges_are_made_up_to_the_size_where_they_pay() {
    // 2 * 9 * 128 * 256 of a row.
    for (images, made) in [(1, true), (2, false)] {
        let net = of_sizes(images, [20, 21], [128, 256], 3, 1);
        let flops = (images * 420 * 2 * 9 * 128 * 256 + 999_999) / 1_000_000;
        let found = format!("0.{flops} GFLOP, rows [{images}, 20, 21]");
        made_up_to_its_size(&net, made, ["at most 0.250 GFLOP", &found]);
    }
}

/// Its product has tensor cores on Hopper and later only, which is asked of GPUs that are named.
#[test]
fn merges_are_left_to_their_parts_on_older_gpus() {
    for (major, minor, made) in [(9, 0, 1), (10, 0, 1), (8, 9, 0)] {
        let compute_capability = Some(ComputeCapability { major, minor });
        let rewrite = parts().rewrite(&Options { compute_capability, ..with(&[Kind::PatchConv]) });
        assert_eq!(nodes(&rewrite.model().proto, OP).len(), made, "{major}.{minor}");
        let missed: Vec<_> = rewrite.ledger().missed(Kind::PatchConv).map(|s| s.reason.as_deref()).collect();
        let expected = (made == 0).then_some(Some("the plugin has no tensor cores for it on this GPU"));
        assert_eq!(missed, expected.into_iter().collect::<Vec<_>>());
    }
}
