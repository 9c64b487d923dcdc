//! Convolution blocks as one op: the token mixers of UniFormer's first stages are nodes, all computes the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{
    Block, Net, Parts, comparison, costs_less_than_its_parts, int, made_up_to_its_size, nodes, only_if_asked_for,
    weight, with,
};
use common::{ops, reshape, transpose};
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto};
use trt_opt::rewrite::{ComputeCapability, Kind, Ledger, Options, Status};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptConvBlock";
const CONV: &str = "TrtOptDepthwiseConv";
const BATCH: i64 = 2;
const SIDES: [i64; 2] = [3, 5];
/// Channels, and columns between the products.
const SIZES: [i64; 2] = [8, 16];

/// The first stage of UniFormer's miniature has one; alone, and with all other kinds.
#[test]
fn exports_have_their_convolution_blocks_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !["uniformer", "swin", "vit"].contains(&name.split('_').next().unwrap()) {
            continue;
        }
        let expected = usize::from(name.starts_with("uniformer"));
        seen += expected;
        for kinds in [&[Kind::ConvBlock][..], &Kind::ALL] {
            let rewrite = testing::rewrite_with(&path, &with(kinds)).unwrap();
            let (model, ledger) = (&rewrite.model().proto, rewrite.ledger());
            let found = nodes(model, OP);
            let sites = [Kind::TokenConv, Kind::ConvBlock].map(|kind| ledger.count(kind));
            if found.len() != expected || sites.iter().any(|count| [count.total, count.fused] != [expected; 2]) {
                wrong.push(format!("{name}: {} blocks, {sites:?}", found.len()));
            }
            for node in found {
                let kinds: Vec<Kind> = ledger.sites.iter().filter(|s| s.into == node.name).map(|s| s.kind).collect();
                if kinds != [Kind::TokenConv, Kind::ConvBlock] || int(node, "kernel") != 5 {
                    wrong.push(format!("{name}: {node:?} is of {kinds:?}"));
                }
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 10);
}

struct Mixer;

impl Block for Mixer {
    const KIND: Kind = Kind::ConvBlock;
    const OP: &'static str = OP;
}

/// A depthwise convolution between two 1x1 convolutions, with the add around them, tokens before it and behind it.
fn of_sizes(images: i64, [h, w]: [i64; 2], [channels, hidden]: [i64; 2], kernel: i64) -> Parts<Mixer> {
    let conv = |x: &str, name: &str, y: &str, attribute: Vec<AttributeProto>| NodeProto {
        attribute,
        ..common::node("Conv", &[x, &format!("w_{name}"), &format!("b_{name}")], &[y])
    };
    let depthwise = vec![AttributeProto::int("group", hidden), AttributeProto::ints("pads", &[kernel / 2; 4])];
    let nodes = vec![
        common::node("Exp", &["x"], &["t"]),
        transpose("t", &[0, 2, 1], "l"),
        reshape("l", "map", "m"),
        conv("m", "in", "i", vec![]),
        conv("i", "mix", "c", depthwise),
        conv("c", "out", "o", vec![]),
        common::node("Add", &["m", "o"], &["u"]),
        reshape("u", "line", "r"),
        transpose("r", &[0, 2, 1], "z"),
        common::node("Tanh", &["z"], &["y"]),
    ];
    let mut weights = vec![block::ints("map", &[-1, channels, h, w]), block::ints("line", &[0, 0, -1])];
    for (name, dims) in
        [("in", [hidden, channels, 1, 1]), ("mix", [hidden, 1, kernel, kernel]), ("out", [channels, hidden, 1, 1])]
    {
        weights.extend([weight(&format!("w_{name}"), &dims), weight(&format!("b_{name}"), &dims[..1])]);
    }
    let [inputs, outputs] = ["x", "y"].map(|name| vec![(name, vec![images, h * w, channels])]);
    Parts { nodes, weights, inputs, outputs, block: Mixer }
}

fn parts() -> Parts<Mixer> {
    of_sizes(BATCH, SIDES, SIZES, 5)
}

/// The same of tokens, but for the convolution itself.
fn of_tokens() -> Parts<Mixer> {
    let ([h, w], [channels, hidden]) = (SIDES, SIZES);
    let mut net = parts();
    let conv = net.nodes.remove(4);
    net.nodes.truncate(1);
    net.nodes.extend([
        common::node("MatMul", &["t", "w1"], &["p"]),
        common::node("Add", &["p", "b_in"], &["s"]),
        transpose("s", &[0, 2, 1], "l"),
        reshape("l", "map", "i"),
        conv,
        reshape("c", "line", "r"),
        transpose("r", &[0, 2, 1], "n"),
        common::node("MatMul", &["n", "w2"], &["q"]),
        common::node("Add", &["q", "b_out"], &["o"]),
        common::node("Add", &["t", "o"], &["u"]),
        common::node("Tanh", &["u"], &["y"]),
    ]);
    net.set(block::ints("map", &[-1, hidden, h, w]));
    net.set(weight("w1", &[channels, hidden]));
    net.set(weight("w2", &[hidden, channels]));
    net
}

const WHOLE: [&str; 3] = ["Exp", OP, "Tanh"];

/// The ops that are left of a net that has one block, which is fused; it computes the same.
fn left(net: &Parts<Mixer>) -> Vec<String> {
    let (model, ledger) = net.fuse();
    let count = ledger.count(Kind::ConvBlock);
    assert_eq!((count.total, count.fused), (1, 1), "{:?}", ledger.sites);
    ops(&model)
}

/// The one site is missed for this reason, with what was expected and found, and stays what it is without such blocks.
fn missed_because(net: &Parts<Mixer>, reason: &str, [expected, found]: [&str; 2]) {
    let (model, ledger) = net.fuse();
    missed(&model, &ledger, reason, [expected, found]);
    let without = net.rewrite(&with(&[Kind::TokenConv]));
    assert_eq!(ops(&model), ops(&without.model().proto));
}

fn missed(model: &ModelProto, ledger: &Ledger, reason: &str, [expected, found]: [&str; 2]) {
    assert_eq!((nodes(model, OP).len(), nodes(model, CONV).len()), (0, 1));
    let sites: Vec<_> = ledger.sites.iter().filter(|s| s.kind == Kind::ConvBlock).collect();
    let [site] = sites[..] else { panic!("{:?}", ledger.sites) };
    assert_eq!(site.status, Status::Missed);
    assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    assert!(of(&site.expected).contains(expected) && of(&site.found).contains(found), "{site:?}");
}

fn no_site(net: &Parts<Mixer>) {
    let (model, ledger) = net.fuse();
    assert!(nodes(&model, OP).is_empty());
    assert_eq!(ledger.count(Kind::ConvBlock).total, 0, "{:?}", ledger.sites);
}

/// With the depthwise convolutions that need no products beside them, too; it computes the same.
fn fuse_of_tokens(net: &Parts<Mixer>) -> (ModelProto, Ledger) {
    let rewrite = net.rewrite(&with(&[Kind::DepthwiseConv, Kind::ConvBlock]));
    rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
    (rewrite.model().proto.clone(), rewrite.ledger().clone())
}

/// Has the map `value` of so many channels given as tokens, too, or read by another node as such.
fn give(net: &mut Parts<Mixer>, value: &str, channels: i64, read: bool) {
    let end = if read { "k" } else { "given" };
    net.nodes.extend([reshape(value, "line", "v"), transpose("v", &[0, 2, 1], end)]);
    net.nodes.extend(read.then(|| common::node("Cos", &["k"], &["given"])));
    net.outputs.push(("given", vec![BATCH, SIDES[0] * SIDES[1], channels]));
}

#[test]
fn a_whole_block_is_one_node_with_all_its_attributes() {
    for kernel in [3, 5, 7] {
        let net = of_sizes(BATCH, SIDES, SIZES, kernel);
        assert_eq!(left(&net), WHOLE);
        let (model, ledger) = net.fuse();
        let node = nodes(&model, OP)[0];
        assert_eq!(int(node, "kernel"), kernel);
        assert_eq!(node.attribute.iter().find(|a| a.name() == "grid").unwrap().ints, SIDES);
        // Known as the depthwise convolution is.
        let sites: Vec<_> = ledger.sites.iter().map(|s| (s.kind, s.node.as_str(), s.into.as_deref())).collect();
        assert_eq!(sites, [Kind::TokenConv, Kind::ConvBlock].map(|kind| (kind, "Conv_c", node.name.as_deref())));
    }
    let [parts_macs, block_macs] = costs_less_than_its_parts(&parts());
    assert_eq!(parts_macs, block_macs);
    only_if_asked_for(&parts(), "conv-block");
}

#[test]
fn blocks_one_behind_the_other_are_a_site_each() {
    let mut net = parts();
    let tail = net.nodes.split_off(7);
    let mut second = net.nodes[3..].to_vec();
    for node in &mut second {
        node.name = node.name.as_ref().map(|name| format!("{name}_2"));
        for value in node.input.iter_mut().chain(&mut node.output) {
            match value.as_str() {
                "m" => *value = "u".into(),
                "i" | "c" | "o" | "u" => *value += "_2",
                _ => {}
            }
        }
    }
    net.nodes.extend(second);
    net.nodes.extend(tail);
    net.input("r", 0, "u_2");
    let (model, ledger) = net.fuse();
    assert_eq!(ops(&model), ["Exp", OP, OP, "Tanh"]);
    let names: Vec<_> = nodes(&model, OP).iter().map(|n| n.name.as_deref()).collect();
    let into = |kind| ledger.sites.iter().filter(move |s| s.kind == kind).map(|s| s.into.as_deref());
    assert_eq!(into(Kind::ConvBlock).collect::<Vec<_>>(), names);
    assert_eq!(into(Kind::TokenConv).collect::<Vec<_>>(), names[..1]);
    assert_ne!(names[0], names[1]);
}

#[test]
fn other_spellings_are_the_same_block() {
    // Operands of the add the other way, and offsets that are missing.
    let mut net = parts();
    net.node("u").input.reverse();
    assert_eq!(left(&net), WHOLE);
    for output in ["i", "c", "o"] {
        let mut net = parts();
        net.node(output).input.truncate(2);
        assert_eq!(left(&net), WHOLE);
    }
    // Products of tokens already.
    let (model, ledger) = fuse_of_tokens(&of_tokens());
    assert_eq!(ops(&model), WHOLE);
    let fused = [Kind::DepthwiseConv, Kind::TokenConv, Kind::ConvBlock].map(|kind| ledger.count(kind).fused);
    assert_eq!(fused, [1, 0, 1]);
    // What it gives may be read otherwise, and be an output.
    for read in [true, false] {
        let mut net = parts();
        give(&mut net, "u", SIZES[0], read);
        left(&net);
    }
}

#[test]
fn another_add_says_why() {
    // Of something else than what the first product reads.
    let mut net = parts();
    net.before("u", vec![common::node("Relu", &["m"], &["k"])]);
    net.input("u", 0, "k");
    missed_because(&net, "is not what the first one reads", ["", ""]);
    // Of the result and itself, and of none.
    let mut net = parts();
    net.input("u", 0, "o");
    missed_because(&net, "an interior value is used otherwise too", ["1 use", "2 uses"]);
    let mut net = parts();
    net.nodes.remove(6);
    net.input("r", 0, "o");
    missed_because(&net, "another op follows than in a block", ["Add", "Tanh"]);
    // Around the depthwise convolution.
    let mut net = parts();
    net.before("o", vec![common::node("Add", &["i", "c"], &["k"])]);
    net.input("o", 0, "k");
    missed_because(&net, "has an add around itself", ["residual = 0", "residual = 1"]);
}

#[test]
fn interior_values_that_are_read_elsewhere_say_why() {
    let [channels, hidden] = SIZES;
    for (value, columns) in [("i", hidden), ("c", hidden), ("o", channels)] {
        for (read, found) in [(true, "2 uses"), (false, "a graph output")] {
            let mut net = parts();
            give(&mut net, value, columns, read);
            missed_because(&net, "an interior value is used otherwise too", ["1 use", found]);
        }
    }
}

#[test]
fn another_op_inside_says_why_or_is_no_site() {
    let mut net = parts();
    net.before("o", vec![common::node("Relu", &["c"], &["k"])]);
    net.input("o", 0, "k");
    missed_because(&net, "another op follows than in a block", ["MatMul", "Relu"]);
    // No product goes into the depthwise convolution.
    let mut net = parts();
    net.before("c", vec![common::node("Relu", &["i"], &["k"])]);
    net.input("c", 0, "k");
    no_site(&net);
    // A position encoding behind a product without an offset and its add, as behind an MLP.
    let mut net = of_sizes(BATCH, SIDES, [SIZES[0]; 2], 5);
    net.node("i").input.truncate(2);
    net.before("c", vec![common::node("Add", &["m", "i"], &["k"])]);
    net.input("c", 0, "k");
    no_site(&net);
}

#[test]
fn weights_that_are_computed_say_why() {
    let ([channels, hidden], reason) = (SIZES, "the right operand is no weight");
    for (name, dims) in [("w1", [channels, hidden]), ("w2", [hidden, channels])] {
        let mut net = of_tokens();
        net.weights.retain(|w| w.name() != name);
        net.inputs.push((name, dims.to_vec()));
        let (model, ledger) = fuse_of_tokens(&net);
        missed(&model, &ledger, reason, ["a constant matrix", "a computed operand"]);
    }
}

#[test]
fn other_sizes_say_why() {
    let reason = "the tensor cores take no such sizes";
    for sizes in [[12, 16], [8, 20], [9, 16]] {
        let found = format!("{} channels, {} between the products", sizes[0], sizes[1]);
        missed_because(&of_sizes(BATCH, SIDES, sizes, 3), reason, ["multiples of 8", &found]);
    }
    for sizes in [[2056, 8], [8, 2056]] {
        let found = format!("{}, {} between the products", sizes[0], sizes[1]);
        missed_because(&of_sizes(1, SIDES, sizes, 3), "the block is too large", ["at most 2048", &found]);
    }
    assert_eq!(left(&of_sizes(1, SIDES, [2048, 8], 3)), WHOLE);
    assert_eq!(left(&of_sizes(1, SIDES, [8, 2048], 3)), WHOLE);
    // A column that the add spreads over all channels.
    let mut net = of_tokens();
    net.set(weight("w2", &[SIZES[1], 1]));
    net.set(weight("b_out", &[1]));
    let (model, ledger) = fuse_of_tokens(&net);
    missed(&model, &ledger, "does not lead back to the channels", ["[16, 8]", "[16, 1]"]);
}

#[test]
fn blocks_are_made_up_to_the_size_where_they_pay() {
    let sides = |rows: i64| if rows % 5 == 0 { [5, rows / 5] } else { [8, rows / 8] };
    for (images, rows, made) in [(1, 1335, true), (1, 1336, false), (3, 445, true), (3, 448, false)] {
        let net = of_sizes(images, sides(rows), [256; 2], 5);
        let flops = (images * rows * 4 * 256 * 256 + 999_999) / 1_000_000;
        let found = format!("0.{flops} GFLOP, rows [{images}, {rows}]");
        made_up_to_its_size(&net, made, ["at most 0.350 GFLOP in both products, an open batch", &found]);
    }
}

/// Its products have tensor cores on Hopper and later only, which is asked of GPUs that are named.
#[test]
fn blocks_are_left_to_their_parts_on_older_gpus() {
    let on = |major: u32, minor: u32| {
        let compute_capability = Some(ComputeCapability { major, minor });
        let rewrite =
            of_tokens().rewrite(&Options { compute_capability, ..with(&[Kind::DepthwiseConv, Kind::ConvBlock]) });
        (nodes(&rewrite.model().proto, OP).len(), rewrite.ledger().missed(Kind::ConvBlock).next().cloned())
    };
    for (major, minor) in [(9, 0), (9, 1), (10, 0)] {
        assert_eq!(on(major, minor), (1, None), "{major}.{minor}");
    }
    let (blocks, missed) = on(8, 9);
    let missed = missed.unwrap();
    let texts = [missed.reason, missed.expected, missed.found].map(Option::unwrap);
    let expected = ["the plugin has no tensor cores for it on this GPU", "compute capability 9.0 or later", "8.9"];
    assert_eq!((blocks, texts.each_ref().map(String::as_str)), (0, expected));
}
