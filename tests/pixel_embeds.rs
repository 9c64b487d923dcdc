//! Pixel embeddings as one op: TNT's words of an image are one node, all computes the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{
    Block, Net, Parts, comparison, costs_less_than_its_parts, int, ints, nodes, only_if_asked_for, weight, with,
};
use common::{ops, reshape, transpose};
use trt_opt::onnx::DType;
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use trt_opt::rewrite::Kind;
use trt_opt::{testing, verify};

const OP: &str = "TrtOptPixelEmbed";
const IMAGES: i64 = 2;
/// Patches of an image, words of a patch, pixels from a word to the next, and channels before and behind.
const GRID: [i64; 2] = [2, 3];
const PATCH: [i64; 2] = [2, 4];
const STRIDE: i64 = 4;
const CHANNELS: [i64; 2] = [3, 8];

/// TNT's miniature has one; alone, and with all other kinds.
#[test]
fn exports_have_their_pixel_embedding_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let expected = usize::from(name.starts_with("tnt_"));
        seen += expected;
        for kinds in [&[Kind::PixelEmbed][..], &Kind::ALL] {
            let rewrite = testing::rewrite_with(&path, &with(kinds)).unwrap();
            let (model, count) = (&rewrite.model().proto, rewrite.ledger().count(Kind::PixelEmbed));
            if nodes(model, OP).len() != expected || [count.total, count.fused] != [expected; 2] {
                wrong.push(format!("{name}: {count:?}"));
            }
            if expected == 1
                && let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check())
            {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 10);
}

struct Pixels;

impl Block for Pixels {
    const KIND: Kind = Kind::PixelEmbed;
    const OP: &'static str = OP;
}

fn conv(x: &str, strides: i64, pads: i64, y: &str) -> NodeProto {
    let attribute = vec![AttributeProto::ints("strides", &[strides; 2]), AttributeProto::ints("pads", &[pads; 4])];
    NodeProto { attribute, ..common::node("Conv", &[x, "w", "b"], &[y]) }
}

fn net(nodes: Vec<NodeProto>, mut weights: Vec<TensorProto>) -> Parts<Pixels> {
    let ([gh, gw], [ph, pw], [channels, columns]) = (GRID, PATCH, CHANNELS);
    weights.extend([weight("w", &[columns, channels, 7, 7]), weight("b", &[columns])]);
    weights.push(weight("position", &[1, columns, ph, pw]));
    let inputs = vec![("x", vec![IMAGES, channels, gh * ph * STRIDE, gw * pw * STRIDE])];
    let outputs = vec![("y", vec![IMAGES * gh * gw, ph * pw, columns])];
    Parts { nodes, weights, inputs, outputs, block: Pixels }
}

/// As timm's TNT has it: patches that are convolved one by one.
fn of_patches() -> Parts<Pixels> {
    let ([gh, gw], [ph, pw], [channels, columns]) = (GRID, PATCH, CHANNELS);
    let [down, across] = [ph * STRIDE, pw * STRIDE];
    let nodes = vec![
        reshape("x", "cut", "c"),
        transpose("c", &[0, 2, 4, 1, 3, 5], "t"),
        reshape("t", "patches", "p"),
        conv("p", STRIDE, 3, "m"),
        common::node("Add", &["m", "position"], &["a"]),
        reshape("a", "line", "l"),
        transpose("l", &[0, 2, 1], "words"),
        common::node("Tanh", &["words"], &["y"]),
    ];
    let weights = vec![
        ints("cut", &[IMAGES, channels, gh, down, gw, across]),
        ints("patches", &[-1, channels, down, across]),
        ints("line", &[0, columns, -1]),
    ];
    net(nodes, weights)
}

/// As the first TNT had it: the map of the whole image is cut.
fn of_image() -> Parts<Pixels> {
    let ([gh, gw], [ph, pw], [_, columns]) = (GRID, PATCH, CHANNELS);
    let nodes = vec![
        conv("x", STRIDE, 3, "m"),
        reshape("m", "cut", "c"),
        transpose("c", &[0, 2, 4, 1, 3, 5], "t"),
        reshape("t", "patches", "p"),
        common::node("Add", &["p", "position"], &["a"]),
        reshape("a", "line", "l"),
        transpose("l", &[0, 2, 1], "words"),
        common::node("Tanh", &["words"], &["y"]),
    ];
    let weights = vec![
        ints("cut", &[IMAGES, columns, gh, ph, gw, pw]),
        ints("patches", &[-1, columns, ph, pw]),
        ints("line", &[0, columns, -1]),
    ];
    net(nodes, weights)
}

fn fused(net: &Parts<Pixels>) -> ModelProto {
    let (model, ledger) = net.fuse();
    assert_eq!(ledger.count(Kind::PixelEmbed).fused, 1, "{:?}", ledger.sites);
    assert_eq!(ops(&model), [OP, "Tanh"]);
    model
}

fn missed_because(net: &Parts<Pixels>, reason: &str, [expected, found]: [&str; 2]) {
    let site = net.missed();
    assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
    let of = |text: Option<String>| text.unwrap_or_default();
    assert!(of(site.expected.clone()).contains(expected) && of(site.found.clone()).contains(found), "{site:?}");
}

#[test]
fn a_whole_embedding_is_one_node_with_all_its_attributes() {
    for (net, within) in [(of_patches(), 1), (of_image(), 0)] {
        let model = fused(&net);
        let node = nodes(&model, OP)[0];
        let pair = |name: &str| node.attribute.iter().find(|a| a.name() == name).unwrap().ints.clone();
        let found = ["kernel", "strides", "pads", "grid", "patch"].map(pair);
        assert_eq!(found, [[7; 2], [STRIDE; 2], [3; 2], GRID, PATCH].map(Vec::from));
        assert_eq!(int(node, "within"), within);
        let [parts_macs, block_macs] = costs_less_than_its_parts(&net);
        assert_eq!(parts_macs, block_macs);
        only_if_asked_for(&net, "pixel-embed");
    }
}

#[test]
fn other_spellings_are_the_same_embedding() {
    let ([gh, gw], [ph, pw], [_, columns]) = (GRID, PATCH, CHANNELS);
    for (net, before) in [(of_patches as fn() -> Parts<Pixels>, "m"), (of_image, "p")] {
        // Without a position, with one a word, one for all words, two, and a copy a patch.
        let mut of_words = net();
        of_words.nodes.retain(|n| n.output[0] != "a");
        of_words.input("l", 0, before);
        fused(&of_words);
        of_words.before("y", vec![common::node("Add", &["late", "words"], &["sum"])]);
        of_words.input("y", 0, "sum");
        of_words.set(weight("late", &[ph * pw, columns]));
        fused(&of_words);
        of_words.set(weight("late", &[1, 1, columns]));
        fused(&of_words);
        let mut twice = net();
        twice.before("y", vec![common::node("Add", &["words", "late"], &["sum"])]);
        twice.input("y", 0, "sum");
        twice.set(weight("late", &[1, ph * pw, 1]));
        fused(&twice);
        let mut copies = net();
        let one = weight("position", &[1, columns, ph, pw]).to_f64_vec().unwrap();
        let all: Vec<f32> = (0..IMAGES * gh * gw).flat_map(|_| one.iter().map(|&v| v as f32)).collect();
        copies.set(TensorProto::from_f32("position", &[IMAGES * gh * gw, columns, ph, pw], &all));
        fused(&copies);
        // No bias.
        let mut plain = net();
        plain.node("m").input.truncate(2);
        fused(&plain);
        // Channels last from the map on.
        if before == "m" {
            let mut last = net();
            last.nodes.retain(|n| !["a", "l", "words"].contains(&n.output[0].as_str()));
            last.before("y", vec![transpose("m", &[0, 2, 3, 1], "l"), reshape("l", "tokens", "words")]);
            last.set(ints("tokens", &[-1, ph * pw, columns]));
            fused(&last);
        }
    }
}

/// The image stays float32 where all else is float16.
#[test]
fn a_cast_of_the_image_is_left_out() {
    let half = |name: &str, dims: &[i64]| {
        let values = weight(name, dims).to_f64_vec().unwrap();
        let bytes = values.iter().flat_map(|&v| half::f16::from_f64(v).to_le_bytes()).collect();
        TensorProto {
            raw_data: Some(bytes),
            float_data: vec![],
            data_type: Some(DType::F16 as i32),
            ..weight(name, dims)
        }
    };
    let mut net = of_patches();
    let ([ph, pw], [channels, columns]) = (PATCH, CHANNELS);
    for (name, dims) in [("w", &[columns, channels, 7, 7][..]), ("b", &[columns]), ("position", &[1, columns, ph, pw])]
    {
        net.set(half(name, dims));
    }
    let cast = |x: &str, to: DType, y: &str| NodeProto {
        attribute: vec![AttributeProto::int("to", to as i64)],
        ..common::node("Cast", &[x], &[y])
    };
    net.before("c", vec![cast("x", DType::F16, "h")]);
    net.input("c", 0, "h");
    net.before("y", vec![cast("words", DType::F32, "f")]);
    net.input("y", 0, "f");
    let rewrite = net.rewrite(&with(&[Kind::PixelEmbed]));
    assert_eq!(ops(&rewrite.model().proto), [OP, "Cast", "Tanh"]);
    rewrite.compare(&verify::Options { rtol: Some(1e-2), ..verify::Options::default() }).unwrap().check().unwrap();
}

#[test]
fn another_order_says_why() {
    for net in [of_patches as fn() -> Parts<Pixels>, of_image] {
        // Patches across before down, and words.
        let mut other = net();
        other.node("t").attribute = vec![AttributeProto::ints("perm", &[0, 4, 2, 1, 3, 5])];
        other.missed();
        // Channels first.
        let mut other = net();
        other.nodes.retain(|n| n.output[0] != "words");
        other.input("y", 0, "l");
        other.outputs[0].1.swap(1, 2);
        let (model, ledger) = other.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert_eq!(ledger.count(Kind::PixelEmbed).fused, 0);
    }
}

#[test]
fn other_convolutions_say_why() {
    let [channels, columns] = CHANNELS;
    for net in [of_patches as fn() -> Parts<Pixels>, of_image] {
        let mut wide = net();
        wide.set(weight("w", &[columns, channels, 9, 9]));
        wide.node("m").attribute[1] = AttributeProto::ints("pads", &[4; 4]);
        missed_because(&wide, "the kernel is too large", ["of 8 values", "9 x 9"]);
        let mut dilated = net();
        dilated.set(weight("w", &[columns, channels, 3, 3]));
        dilated.node("m").attribute[1] = AttributeProto::ints("pads", &[2; 4]);
        dilated.node("m").attribute.push(AttributeProto::ints("dilations", &[2; 2]));
        missed_because(&dilated, "the convolution is dilated", ["[1, 1]", "[2, 2]"]);
        let mut auto = net();
        auto.node("m").attribute.remove(1);
        auto.node("m").attribute.push(AttributeProto::string("auto_pad", "SAME_UPPER"));
        missed_because(&auto, "its padding is for the runtime to choose", ["pads", "SAME_UPPER"]);
        let mut computed = net();
        computed.weights.retain(|w| w.name() != "w");
        computed.inputs.push(("w", vec![columns, channels, 7, 7]));
        missed_because(&computed, "a weight that has to be known is computed", ["a constant", "a computed value"]);
    }
}

#[test]
fn positions_that_differ_from_patch_to_patch_say_why() {
    let ([gh, gw], [ph, pw], [_, columns]) = (GRID, PATCH, CHANNELS);
    for net in [of_patches as fn() -> Parts<Pixels>, of_image] {
        let mut other = net();
        other.set(weight("position", &[IMAGES * gh * gw, columns, ph, pw]));
        missed_because(
            &other,
            "what is added is not the same for all patches",
            ["8 words and 8 channels", "[12, 8, 2, 4]"],
        );
    }
}

#[test]
fn interior_values_that_are_read_elsewhere_say_why() {
    for net in [of_patches as fn() -> Parts<Pixels>, of_image] {
        let mut other = net();
        other.nodes.push(common::node("Cos", &["l"], &["given"]));
        other.outputs.push(("given", vec![IMAGES * GRID[0] * GRID[1], CHANNELS[1], PATCH[0] * PATCH[1]]));
        let (model, ledger) = other.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert_eq!(ledger.count(Kind::PixelEmbed).fused, 0);
    }
}

/// A convolution whose patches do not overlap is a patch embedding, and one behind which images stay images is none.
#[test]
fn other_embeddings_are_no_sites() {
    for name in ["swin_ts17", "vit_ts17", "uniformer_ts17", "ptnt_ts17"] {
        let path = common::fixtures().into_iter().find(|path| path.ends_with(format!("{name}.onnx"))).unwrap();
        let rewrite = testing::rewrite_with(&path, &with(&[Kind::PixelEmbed])).unwrap();
        assert_eq!(rewrite.ledger().count(Kind::PixelEmbed).total, 0, "{name}");
    }
}
