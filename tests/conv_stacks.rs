//! Stacks of convolutions as one op: the stem of PyramidTNT is one node with both of its results, all computes the same, and every near miss
//! says why.

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

const OP: &str = "TrtOptConvStack";
const IMAGES: i64 = 2;
/// Sides of the image, channels of it, of the layers and of the words, and words of a patch.
const IMAGE: [i64; 2] = [64, 96];
const CHANNELS: [i64; 4] = [3, 5, 18, 10];
const WORDS: i64 = 4;
const PATCH: [i64; 2] = [2, 4];

/// PyramidTNT's miniature has one; alone, and with all other kinds.
#[test]
fn exports_have_their_stem_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let expected = usize::from(name.starts_with("ptnt_"));
        seen += expected;
        for kinds in [&[Kind::ConvStack][..], &Kind::ALL] {
            let rewrite = testing::rewrite_with(&path, &with(kinds)).unwrap();
            let (model, count) = (&rewrite.model().proto, rewrite.ledger().count(Kind::ConvStack));
            if nodes(model, OP).len() != expected || [count.total, count.fused] != [expected; 2] {
                wrong.push(format!("{name}: {count:?}"));
            }
            if expected == 1 {
                if !nodes(model, "Relu").is_empty() {
                    wrong.push(format!("{name}: a ReLU is left"));
                }
                if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                    wrong.push(format!("{name}: {error}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 10);
}

struct Stem;

impl Block for Stem {
    const KIND: Kind = Kind::ConvStack;
    const OP: &'static str = OP;
}

fn conv(x: &str, layer: &str, stride: i64, y: &str) -> NodeProto {
    let attribute = vec![AttributeProto::ints("strides", &[stride; 2]), AttributeProto::ints("pads", &[1; 4])];
    NodeProto { attribute, ..common::node("Conv", &[x, &format!("w{layer}"), &format!("b{layer}")], &[y]) }
}

fn relu(x: &str, y: &str) -> NodeProto {
    common::node("Relu", &[x], &[y])
}

fn add(x: &str, constant: &str, y: &str) -> NodeProto {
    common::node("Add", &[x, constant], &[y])
}

fn tanh(x: &str, y: &str) -> NodeProto {
    common::node("Tanh", &[x], &[y])
}

/// Three layers of strides 2, 2 and 1 that make tokens, and words of the first map if `words`.
fn stem(words: bool) -> Parts<Stem> {
    let [image, first, second, last] = CHANNELS;
    let ([height, width], [h, w]) = (IMAGE, IMAGE.map(|side| side / 4));
    let mut nodes = vec![
        conv("x", "0", 2, "c0"),
        relu("c0", "m0"),
        conv("m0", "1", 2, "c1"),
        relu("c1", "m1"),
        conv("m1", "2", 1, "c2"),
        relu("c2", "m2"),
        transpose("m2", &[0, 2, 3, 1], "t"),
        reshape("t", "line", "l"),
        add("l", "position", "tokens"),
        tanh("tokens", "y"),
    ];
    let layers = [("0", image, first), ("1", first, second), ("2", second, last)];
    let of = |name: &str, from: i64, to: i64| {
        [weight(&format!("w{name}"), &[to, from, 3, 3]), weight(&format!("b{name}"), &[to])]
    };
    let mut weights: Vec<TensorProto> = layers.iter().flat_map(|&(name, from, to)| of(name, from, to)).collect();
    weights.extend([ints("line", &[IMAGES, -1, last]), weight("position", &[1, h * w, last])]);
    let mut outputs = vec![("y", vec![IMAGES, h * w, last])];
    if words {
        let ([down, across], [ph, pw]) = ([height / 2, width / 2], PATCH);
        nodes.extend([
            conv("m0", "w", 1, "cw"),
            relu("cw", "mw"),
            reshape("mw", "cut", "k"),
            transpose("k", &[0, 2, 4, 3, 5, 1], "s"),
            reshape("s", "patches", "p"),
            add("p", "word_position", "words"),
            tanh("words", "z"),
        ]);
        weights.extend(of("w", first, WORDS));
        weights.push(ints("cut", &[IMAGES, WORDS, down / ph, ph, across / pw, pw]));
        weights.extend([ints("patches", &[-1, ph * pw, WORDS]), weight("word_position", &[1, ph * pw, WORDS])]);
        outputs.push(("z", vec![IMAGES * down / ph * across / pw, ph * pw, WORDS]));
    }
    Parts { nodes, weights, inputs: vec![("x", vec![IMAGES, image, height, width])], outputs, block: Stem }
}

fn fused(net: &Parts<Stem>) -> ModelProto {
    let (model, ledger) = net.fuse();
    assert_eq!(ledger.count(Kind::ConvStack).fused, 1, "{:?}", ledger.sites);
    model
}

fn missed_because(net: &Parts<Stem>, reason: &str, [expected, found]: [&str; 2]) {
    let site = net.missed();
    assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
    let of = |text: Option<String>| text.unwrap_or_default();
    assert!(of(site.expected.clone()).contains(expected) && of(site.found.clone()).contains(found), "{site:?}");
}

#[test]
fn a_whole_stem_is_one_node_with_all_its_attributes() {
    for words in [true, false] {
        let net = stem(words);
        let model = fused(&net);
        let mut left = vec![OP, "Tanh"];
        left.extend(words.then_some("Tanh"));
        assert_eq!(ops(&model), left);
        let node = nodes(&model, OP)[0];
        let list = |name: &str| node.attribute.iter().find(|a| a.name() == name).unwrap().ints.clone();
        let [_, first, second, last] = CHANNELS;
        assert_eq!(list("channels"), [first, second, last, 0, 0]);
        assert_eq!(list("strides"), [2, 2, 1, 0, 0]);
        assert_eq!(list("patch"), if words { PATCH } else { [1; 2] });
        assert_eq!([int(node, "word_layer"), int(node, "word_channels")], if words { [0, WORDS] } else { [-1, 0] });
        let [parts_macs, block_macs] = costs_less_than_its_parts(&net);
        assert_eq!(parts_macs, block_macs);
        only_if_asked_for(&net, "conv-stack");
    }
}

#[test]
fn other_spellings_are_the_same_stem() {
    let ([h, w], [_, first, second, last]) = (IMAGE.map(|side| side / 4), CHANNELS);
    // Nothing added; no offsets; a position of fewer axes, and before the line.
    let mut plain = stem(true);
    plain.nodes.retain(|n| !["tokens", "words"].contains(&&*n.output[0]));
    plain.input("y", 0, "l");
    plain.input("z", 0, "p");
    fused(&plain);
    let mut without = stem(true);
    for map in ["c0", "c1", "c2", "cw"] {
        without.node(map).input.truncate(2);
    }
    fused(&without);
    let mut fewer = stem(true);
    fewer.set(weight("position", &[h * w, last]));
    fused(&fewer);
    let mut before = stem(true);
    before.nodes.retain(|n| n.output[0] != "tokens");
    before.before("l", vec![add("t", "position", "sum")]);
    before.input("l", 0, "sum");
    before.input("y", 0, "l");
    before.set(weight("position", &[1, h, w, last]));
    fused(&before);
    // Flat and then turned.
    let mut flat = stem(true);
    flat.nodes.retain(|n| !["t", "l"].contains(&&*n.output[0]));
    flat.before("tokens", vec![reshape("m2", "flat", "t"), transpose("t", &[0, 2, 1], "l")]);
    flat.set(ints("flat", &[IMAGES, last, -1]));
    fused(&flat);
    // Words of the second map, whose convolution comes first; and as many channels as the tensor cores contract at once.
    for (channels, all) in [([first, second], true), ([16, 32], true), ([33, 64], false)] {
        let mut other = stem(all);
        for (name, from, to) in [("0", 3, channels[0]), ("1", channels[0], channels[1]), ("2", channels[1], last)] {
            other.set(weight(&format!("w{name}"), &[to, from, 3, 3]));
            other.set(weight(&format!("b{name}"), &[to]));
        }
        if all {
            other.set(weight("ww", &[WORDS, channels[1], 3, 3]));
            other.input("cw", 0, "m1");
            other.set(ints("cut", &[IMAGES, WORDS, h / 2, 2, w / 2, 2]));
            other.set(ints("patches", &[-1, 4, WORDS]));
            other.set(weight("word_position", &[1, 4, WORDS]));
            other.outputs[1].1 = vec![IMAGES * h / 2 * w / 2, 4, WORDS];
            let place = other.nodes.iter().position(|n| n.output[0] == "cw").unwrap();
            let node = other.nodes.remove(place);
            other.before("c2", vec![node]);
        }
        let model = fused(&other);
        assert_eq!(int(nodes(&model, OP)[0], "word_layer"), if all { 1 } else { -1 });
    }
    // What is added to all tokens stays behind.
    let mut spread = stem(false);
    spread.set(weight("position", &[1, 1, last]));
    assert_eq!(ops(&fused(&spread)), [OP, "Add", "Tanh"]);
}

/// The image stays float32 where all else is float16.
#[test]
fn a_cast_of_the_image_is_left_out() {
    let mut net = stem(true);
    let floats: Vec<(String, Vec<i64>)> = net
        .weights
        .iter()
        .filter(|w| w.data_type == Some(DType::F32 as i32))
        .map(|w| (w.name().to_owned(), w.dims.clone()))
        .collect();
    for (name, dims) in floats {
        let one = weight(&name, &dims);
        let values = one.to_f64_vec().unwrap();
        let bytes = values.iter().flat_map(|&v| half::f16::from_f64(v).to_le_bytes()).collect();
        net.set(TensorProto { raw_data: Some(bytes), float_data: vec![], data_type: Some(DType::F16 as i32), ..one });
    }
    let cast = |x: &str, to: DType, y: &str| NodeProto {
        attribute: vec![AttributeProto::int("to", to as i64)],
        ..common::node("Cast", &[x], &[y])
    };
    net.before("c0", vec![cast("x", DType::F16, "h")]);
    net.input("c0", 0, "h");
    for (end, value) in [("y", "tokens"), ("z", "words")] {
        let name = format!("{end}_float");
        net.before(end, vec![cast(value, DType::F32, &name)]);
        net.input(end, 0, &name);
    }
    let rewrite = net.rewrite(&with(&[Kind::ConvStack]));
    let found = ops(&rewrite.model().proto);
    assert_eq!(found.iter().filter(|op| *op == "Cast").count(), 2, "{found:?}");
    assert!(found[0] == OP && !found.iter().any(|op| op == "Conv"), "{found:?}");
    rewrite.compare(&verify::Options { rtol: Some(1e-2), ..verify::Options::default() }).unwrap().check().unwrap();
}

#[test]
fn other_convolutions_say_why() {
    let [_, first, second, _] = CHANNELS;
    let attribute = |node: &mut NodeProto, value: AttributeProto| {
        node.attribute.retain(|a| a.name() != value.name());
        node.attribute.push(value);
    };
    let net = || stem(false);
    let mut dilated = net();
    attribute(dilated.node("c2"), AttributeProto::ints("dilations", &[2; 2]));
    attribute(dilated.node("c2"), AttributeProto::ints("pads", &[2; 4]));
    missed_because(&dilated, "the convolution is dilated", ["[1, 1]", "[2, 2]"]);
    let mut groups = net();
    groups.set(weight("w1", &[20, 1, 3, 3]));
    groups.set(weight("b1", &[20]));
    groups.set(weight("w2", &[10, 20, 3, 3]));
    attribute(groups.node("c1"), AttributeProto::int("group", first));
    missed_because(&groups, "the convolution is in groups", ["one group", "5"]);
    let mut uneven = net();
    attribute(uneven.node("c1"), AttributeProto::ints("pads", &[0, 0, 2, 2]));
    missed_because(&uneven, "one row of zeros on each side", ["[1, 1, 1, 1]", "[0, 0, 2, 2]"]);
    let mut auto = net();
    auto.node("c1").attribute.retain(|a| a.name() != "pads");
    attribute(auto.node("c1"), AttributeProto::string("auto_pad", "SAME_UPPER"));
    missed_because(&auto, "one row of zeros on each side", ["pads", "SAME_UPPER"]);
    let mut strides = net();
    attribute(strides.node("c0"), AttributeProto::ints("strides", &[2, 1]));
    attribute(strides.node("c1"), AttributeProto::ints("strides", &[2, 4]));
    missed_because(&strides, "its strides are others", ["[2, 2]", "[2, 1]"]);
    let mut wide = net();
    wide.set(weight("w2", &[10, second, 5, 5]));
    attribute(wide.node("c2"), AttributeProto::ints("pads", &[2; 4]));
    missed_because(&wide, "the kernel is not of three times three", ["[3, 3]", "[5, 5]"]);
    let mut computed = net();
    computed.weights.retain(|w| w.name() != "w1");
    computed.inputs.push(("w1", vec![second, first, 3, 3]));
    missed_because(&computed, "a weight that has to be known is computed", ["a constant", "a computed value"]);
    // A slope for each channel is no ReLU.
    let mut sloped = net();
    let place = sloped.nodes.iter().position(|n| n.output[0] == "m1").unwrap();
    sloped.nodes[place] = common::node("PRelu", &["c1", "slope"], &["m1"]);
    sloped.weights.push(weight("slope", &[second, 1, 1]));
    missed_because(&sloped, "another op follows", ["Relu", "PRelu"]);
}

#[test]
fn values_that_are_read_elsewhere_say_why() {
    let [height, width] = IMAGE;
    let [_, first, second, last] = CHANNELS;
    // A map that is read twice, is an output, or is read before its ReLU.
    let mut twice = stem(false);
    twice.nodes.push(tanh("m1", "given"));
    twice.outputs.push(("given", vec![IMAGES, second, height / 4, width / 4]));
    missed_because(&twice, "used otherwise too", ["one convolution", "2 uses"]);
    let mut output = stem(true);
    output.outputs.push(("m0", vec![IMAGES, first, height / 2, width / 2]));
    missed_because(&output, "used otherwise too", ["one convolution", "a graph output"]);
    let mut early = stem(false);
    early.nodes.push(tanh("c1", "given"));
    early.outputs.push(("given", vec![IMAGES, second, height / 4, width / 4]));
    missed_because(&early, "used otherwise too", ["1 use", "2 uses"]);
    // The last map as a map, and as tokens too.
    let mut map = stem(false);
    map.nodes.retain(|n| !["t", "l", "tokens"].contains(&&*n.output[0]));
    map.input("y", 0, "m2");
    map.outputs[0].1 = vec![IMAGES, last, height / 4, width / 4];
    missed_because(&map, "read otherwise than as tokens", ["tokens", "a map"]);
    let mut both = stem(false);
    both.nodes.push(tanh("m2", "given"));
    both.outputs.push(("given", vec![IMAGES, last, height / 4, width / 4]));
    missed_because(&both, "read otherwise than as tokens", ["tokens", "a map"]);
}

#[test]
fn branches_that_make_no_words_say_why() {
    let [height, width] = IMAGE;
    // Its map stays one, is of another stride, or is in another order.
    let mut map = stem(true);
    map.nodes.retain(|n| !["k", "s", "p", "words"].contains(&&*n.output[0]));
    map.input("z", 0, "mw");
    map.outputs[1].1 = vec![IMAGES, WORDS, height / 2, width / 2];
    missed_because(&map, "used otherwise too", ["two of which one makes words", "2 uses"]);
    let mut order = stem(true);
    order.node("s").attribute = vec![AttributeProto::ints("perm", &[0, 4, 2, 3, 5, 1])];
    missed_because(&order, "used otherwise too", ["two of which one makes words", "2 uses"]);
    let mut strided = stem(true);
    strided.node("cw").attribute[0] = AttributeProto::ints("strides", &[2; 2]);
    let [h, w] = [height / 4, width / 4];
    strided.set(ints("cut", &[IMAGES, WORDS, h / 2, 2, w / 2, 2]));
    strided.set(ints("patches", &[-1, 4, WORDS]));
    strided.set(weight("word_position", &[1, 4, WORDS]));
    strided.outputs[1].1 = vec![IMAGES * h / 2 * w / 2, 4, WORDS];
    missed_because(&strided, "used otherwise too", ["two of which one makes words", "2 uses"]);
    // Another position for each patch.
    let mut position = stem(true);
    position.set(weight(
        "word_position",
        &[IMAGES * height / 2 * width / 2 / (PATCH[0] * PATCH[1]), PATCH[0] * PATCH[1], WORDS],
    ));
    missed_because(&position, "used otherwise too", ["two of which one makes words", "2 uses"]);
}

#[test]
fn stems_of_other_sizes_say_why() {
    let image = |net: &mut Parts<Stem>, images: i64, [height, width]: [i64; 2]| {
        let (last, places) = (CHANNELS[3], height / 4 * (width / 4));
        net.inputs[0].1 = vec![images, CHANNELS[0], height, width];
        net.set(ints("line", &[images, -1, last]));
        net.set(weight("position", &[1, places, last]));
        net.outputs[0].1 = vec![images, places, last];
    };
    let channels = |net: &mut Parts<Stem>, first: i64, second: i64, last: i64| {
        for (name, from, to) in [("0", 3, first), ("1", first, second), ("2", second, last)] {
            net.set(weight(&format!("w{name}"), &[to, from, 3, 3]));
            net.set(weight(&format!("b{name}"), &[to]));
        }
        net.set(ints("line", &[IMAGES, -1, last]));
        net.set(weight("position", &[1, net.outputs[0].1[1], last]));
        net.outputs[0].1[2] = last;
    };
    let mut between = stem(false);
    channels(&mut between, 16, 65, 10);
    missed_because(&between, "the plugin has no such layers", ["at most 64 channels", "[16, 65, 10]"]);
    let mut last = stem(false);
    channels(&mut last, 16, 64, 129);
    missed_because(&last, "the plugin has no such layers", ["the last of 128", "[16, 64, 129]"]);
    // One layer more, and all of many channels.
    let mut wide = stem(false);
    channels(&mut wide, 64, 64, 64);
    wide.node("c2").attribute[0] = AttributeProto::ints("strides", &[2; 2]);
    wide.before("t", vec![conv("m2", "3", 2, "c3"), relu("c3", "m3")]);
    wide.input("t", 0, "m3");
    let places = IMAGE[0] / 16 * (IMAGE[1] / 16);
    for tensor in [weight("w3", &[64, 64, 3, 3]), weight("b3", &[64]), weight("position", &[1, places, 64])] {
        wide.set(tensor);
    }
    wide.outputs[0].1 = vec![IMAGES, places, 64];
    missed_because(&wide, "depend on so much", ["32768", "88516"]);
    // Images so many or so large that launches are not what the convolutions cost.
    let mut large = stem(false);
    image(&mut large, 1, [1024, 2048]);
    missed_because(&large, "so large that TensorRT's are faster", ["at most 0.350 GFLOP", "GFLOP"]);
    let mut many = stem(false);
    image(&mut many, 256, IMAGE);
    missed_because(&many, "so large that TensorRT's are faster", ["at most 0.350 GFLOP", "GFLOP"]);
}

/// A convolution with patches that do not overlap, and one behind which there is none, are no sites; nor is an image of many channels.
#[test]
fn other_stems_are_no_sites() {
    for name in ["swin_ts17", "vit_ts17", "uniformer_ts17", "tnt_ts17"] {
        let path = common::fixtures().into_iter().find(|path| path.ends_with(format!("{name}.onnx"))).unwrap();
        let rewrite = testing::rewrite_with(&path, &with(&[Kind::ConvStack])).unwrap();
        assert_eq!(rewrite.ledger().count(Kind::ConvStack).total, 0, "{name}");
    }
    let mut many = stem(false);
    many.inputs[0].1[1] = 5;
    many.set(weight("w0", &[CHANNELS[1], 5, 3, 3]));
    let (_, ledger) = many.fuse();
    assert_eq!(ledger.count(Kind::ConvStack).total, 0);
}
