//! Convolution blocks on tokens: those of every export of UniFormer are products and depthwise convolutions of tokens, which compute the
//! same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{Block, Net, Parts, comparison, int, nodes, only_if_asked_for, weight, with};
use common::{ops, transpose};
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Status};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptDepthwiseConv";
const BATCH: i64 = 2;
const CHANNELS: i64 = 8;
const HIDDEN: i64 = 12;
const SIDES: [i64; 2] = [3, 5];

/// The first stage of UniFormer's miniature, alone and with all other kinds, with no more Transposes than before.
#[test]
fn exports_have_their_convolution_blocks_on_tokens_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !["uniformer", "swin", "vit"].contains(&name.split('_').next().unwrap()) {
            continue;
        }
        let uniformer = name.starts_with("uniformer");
        seen += usize::from(uniformer);
        let others: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|k| *k != Kind::TokenConv && !k.made_of().contains(&Kind::TokenConv))
            .collect();
        // Without the other kinds, the encodings of the two attention blocks and the patches stay convolutions.
        for (kinds, expected) in [(vec![], [2, 4]), (others, [4, 0])] {
            let before = testing::rewrite_with(&path, &with(&kinds)).unwrap();
            let rewrite = testing::rewrite_with(&path, &with(&[&[Kind::TokenConv], &kinds[..]].concat())).unwrap();
            let model = &rewrite.model().proto;
            let found = [OP, "Conv"].map(|op| nodes(model, op).len());
            let expected = if uniformer { expected } else { [0, nodes(&before.model().proto, "Conv").len()] };
            let sites = rewrite.ledger().count(Kind::TokenConv);
            if found != expected || [sites.total, sites.fused] != [usize::from(uniformer); 2] {
                wrong.push(format!("{name}: {found:?} instead of {expected:?}; {sites:?}"));
            }
            let [more, less] = [model, &before.model().proto].map(|model| nodes(model, "Transpose").len());
            if more > less {
                wrong.push(format!("{name}: {more} transpositions, {less} before"));
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 10);
}

struct Tokens;

impl Block for Tokens {
    const KIND: Kind = Kind::TokenConv;
    const OP: &'static str = OP;
}

fn conv(x: &str, name: &str, y: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto { attribute, ..common::node("Conv", &[x, &format!("w_{name}"), &format!("b_{name}")], &[y]) }
}

fn depthwise(size: i64) -> Vec<AttributeProto> {
    vec![AttributeProto::int("group", CHANNELS), AttributeProto::ints("pads", &[size / 2; 4])]
}

/// A convolution block, tokens before it and behind it: an encoding, a 5x5 convolution between two products, an MLP, each with its add.
fn parts() -> Parts<Tokens> {
    let [h, w] = SIDES;
    let nodes = vec![
        common::node("Exp", &["x"], &["t"]),
        transpose("t", &[0, 2, 1], "l"),
        common::node("Reshape", &["l", "map"], &["m"]),
        conv("m", "position", "p", depthwise(3)),
        common::node("Add", &["m", "p"], &["s"]),
        conv("s", "in", "i", vec![]),
        conv("i", "mix", "c", depthwise(5)),
        conv("c", "out", "o", vec![]),
        common::node("Add", &["s", "o"], &["u"]),
        conv("u", "up", "h", vec![]),
        common::node("Div", &["h", "root"], &["d"]),
        common::node("Erf", &["d"], &["e"]),
        common::node("Add", &["e", "one"], &["e1"]),
        common::node("Mul", &["h", "e1"], &["g1"]),
        common::node("Mul", &["g1", "half"], &["g"]),
        conv("g", "down", "n", vec![]),
        common::node("Add", &["u", "n"], &["v"]),
        common::node("Reshape", &["v", "line"], &["r"]),
        transpose("r", &[0, 2, 1], "z"),
        common::node("Tanh", &["z"], &["y"]),
    ];
    let mut weights = vec![block::ints("map", &[-1, CHANNELS, h, w]), block::ints("line", &[0, 0, -1])];
    let sizes = [
        ("position", [CHANNELS, 1, 3, 3]),
        ("in", [CHANNELS, CHANNELS, 1, 1]),
        ("mix", [CHANNELS, 1, 5, 5]),
        ("out", [CHANNELS, CHANNELS, 1, 1]),
        ("up", [HIDDEN, CHANNELS, 1, 1]),
        ("down", [CHANNELS, HIDDEN, 1, 1]),
    ];
    for (name, dims) in sizes {
        weights.extend([weight(&format!("w_{name}"), &dims), weight(&format!("b_{name}"), &dims[..1])]);
    }
    for (name, value) in [("root", std::f32::consts::SQRT_2), ("one", 1.0), ("half", 0.5)] {
        weights.push(TensorProto::from_f32(name, &[], &[value]));
    }
    let [inputs, outputs] = ["x", "y"].map(|name| vec![(name, vec![BATCH, h * w, CHANNELS])]);
    Parts { nodes, weights, inputs, outputs, block: Tokens }
}

fn map() -> Vec<i64> {
    vec![BATCH, CHANNELS, SIDES[0], SIDES[1]]
}

/// How many MLP blocks the model has without a norm.
fn blocks_without_norm(model: &ModelProto) -> usize {
    nodes(model, "TrtOptMlpBlock").into_iter().filter(|node| int(node, "norm") == 0).count()
}

/// The MLPs of convolution blocks are products of tokens only where `token-conv` makes them so.
#[test]
fn mlps_of_convolution_blocks_are_one_node() {
    let path = common::fixtures().into_iter().find(|path| path.ends_with("uniformer_ts17.onnx")).unwrap();
    for (kinds, expected) in [
        (&[Kind::MlpBlock][..], [0, 2]),
        (&[Kind::TokenConv], [0, 0]),
        (&[Kind::TokenConv, Kind::MlpBlock], [1, 2]),
        (&[Kind::TokenConv, Kind::MlpBlock, Kind::BiasGelu, Kind::DepthwiseConv], [1, 2]),
    ] {
        let rewrite = testing::rewrite_with(&path, &with(kinds)).unwrap();
        let (model, ledger) = (&rewrite.model().proto, rewrite.ledger());
        let [without, total] = [blocks_without_norm(model), nodes(model, "TrtOptMlpBlock").len()];
        assert_eq!([without, total - without], expected, "{kinds:?}");
        let count = ledger.count(Kind::MlpBlock);
        assert_eq!([count.total, count.fused], [total; 2], "{kinds:?}");
        // Every GELU is one site, which says where it is.
        let in_blocks = |name: &str| nodes(model, "TrtOptMlpBlock").iter().any(|node| node.name() == name);
        let gelus: Vec<_> = ledger.sites.iter().filter(|site| site.kind == Kind::Gelu).collect();
        let taken = gelus.iter().filter(|site| site.into.as_deref().is_some_and(in_blocks)).count();
        assert_eq!([gelus.len(), taken], [3, total], "{gelus:?}");
        rewrite.compare(&comparison("uniformer_ts17")).unwrap().check().unwrap();
    }
}

/// The block of the region is fused with all of its parts, or says why not, once.
#[test]
fn the_mlp_of_a_region_is_a_block_or_says_why_not() {
    let both = with(&[Kind::TokenConv, Kind::MlpBlock]);
    let wide = || {
        let mut net = parts();
        net.set(weight("w_up", &[16, CHANNELS, 1, 1]));
        net.set(weight("b_up", &[16]));
        net.set(weight("w_down", &[CHANNELS, 16, 1, 1]));
        net
    };
    let made = |net: &Parts<Tokens>| {
        let rewrite = net.rewrite(&both);
        rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
        let sites = rewrite.ledger().sites.iter().filter(|site| site.kind == Kind::MlpBlock).cloned();
        (blocks_without_norm(&rewrite.model().proto), sites.collect::<Vec<_>>(), rewrite)
    };
    let (blocks, sites, rewrite) = made(&wide());
    assert_eq!((blocks, sites.len(), sites[0].status), (1, 1, Status::Fused));
    assert_eq!(
        ops(&rewrite.model().proto).len(),
        whole().len() - [&PRODUCT[..], &GELU, &PRODUCT, &["Add"]].concat().len() + 1
    );
    let gelu = rewrite.ledger().sites.iter().find(|site| site.kind == Kind::Gelu).unwrap();
    assert_eq!((gelu.status, gelu.into.as_deref()), (Status::Fused, sites[0].into.as_deref()));
    assert_eq!(gelu.node, sites[0].node);
    // Hidden columns that are no multiple of 8, and another map added.
    let mut other = wide();
    other.input("v", 0, "s");
    for (net, reason) in [(parts(), "the tensor cores take no such sizes"), (other, "no fused norm of the last axis")] {
        let (blocks, sites, _) = made(&net);
        assert_eq!((blocks, sites.len(), sites[0].status), (0, 1, Status::Missed), "{sites:?}");
        assert!(sites[0].reason.as_deref().is_some_and(|r| r.contains(reason)), "{sites:?}");
    }
    // Of a GELU behind a convolution there is no site.
    let rewrite = wide().rewrite(&with(&[Kind::MlpBlock]));
    assert_eq!(rewrite.ledger().count(Kind::MlpBlock).total, 0);
}

const PRODUCT: [&str; 2] = ["MatMul", "Add"];
const GELU: [&str; 5] = ["Div", "Erf", "Add", "Mul", "Mul"];

/// The ops of the whole block on tokens, in the order of the graph.
fn whole() -> Vec<&'static str> {
    let mixed = [&["Exp", OP][..], &PRODUCT, &[OP], &PRODUCT, &["Add"]].concat();
    let mlp = [&PRODUCT[..], &GELU, &PRODUCT, &["Add", "Tanh"]].concat();
    [mixed, mlp].concat()
}

/// The ops that are left of a net that has one site, which is fused; it computes the same.
fn left(net: &Parts<Tokens>) -> Vec<String> {
    let (model, ledger) = net.fuse();
    let count = ledger.count(Kind::TokenConv);
    assert_eq!((count.total, count.fused), (1, 1), "{:?}", ledger.sites);
    ops(&model)
}

fn missed_because(net: &Parts<Tokens>, reason: &str) {
    let site = net.missed();
    assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
}

fn no_site(net: &Parts<Tokens>) {
    let (model, ledger) = net.fuse();
    assert!(nodes(&model, OP).is_empty());
    assert_eq!(ledger.count(Kind::TokenConv).total, 0, "{:?}", ledger.sites);
}

/// The same with another attribute of the convolution that makes `output`.
fn attribute(output: &str, attributes: Vec<AttributeProto>) -> Parts<Tokens> {
    let mut net = parts();
    let found = &mut net.node(output).attribute;
    found.retain(|a| attributes.iter().all(|new| new.name != a.name));
    found.extend(attributes);
    net
}

#[test]
fn a_whole_block_is_products_and_convolutions_of_tokens() {
    let net = parts();
    assert_eq!(left(&net), whole());
    let (model, ledger) = net.fuse();
    let found = nodes(&model, OP);
    assert_eq!(found.iter().map(|n| [int(n, "kernel"), int(n, "residual")]).collect::<Vec<_>>(), [[3, 1], [5, 0]]);
    let site = ledger.sites.iter().find(|s| s.kind == Kind::TokenConv).unwrap();
    // Known by the convolution between products, whoever has the encoding.
    assert_eq!((site.node.as_str(), site.into.as_deref()), ("Conv_c", found[1].name.as_deref()));
    let both = net.rewrite(&with(&[Kind::DepthwiseConv, Kind::TokenConv]));
    assert_eq!(ops(&both.model().proto), whole());
    let sites = [Kind::DepthwiseConv, Kind::TokenConv].map(|kind| both.ledger().sites.iter().find(|s| s.kind == kind));
    assert_eq!(sites.map(|site| site.map(|s| s.node.as_str())), [Some("Conv_p"), Some("Conv_c")]);
    // The GELU is where the ledger says that it is.
    let gelu = ledger.sites.iter().find(|s| s.kind == Kind::Gelu).unwrap();
    assert_eq!(gelu.status, Status::Kept);
    let name = gelu.into.as_deref().unwrap_or(&gelu.node);
    assert!(model.graph.as_ref().unwrap().node.iter().any(|n| n.name() == name), "{name}");
    let mut names: Vec<&str> = model.graph.as_ref().unwrap().node.iter().map(|n| n.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), whole().len(), "{names:?}");
    only_if_asked_for(&net, "token-conv");
}

#[test]
fn blocks_one_behind_the_other_are_one_site() {
    let mut net = parts();
    let tail = net.nodes.split_off(17);
    let renamed = |name: &str| match name {
        "m" => "v".to_owned(),
        n if net.nodes.iter().any(|node| node.output[0] == n) => format!("{n}_2"),
        n => n.to_owned(),
    };
    let mut second = net.nodes[3..].to_vec();
    for node in &mut second {
        node.name = None;
        node.input.iter_mut().chain(&mut node.output).for_each(|name| *name = renamed(name));
    }
    net.nodes.extend(second);
    net.nodes.extend(tail);
    net.input("r", 0, "v_2");
    let block = &whole()[1..whole().len() - 1];
    assert_eq!(left(&net), [&["Exp"], block, block, &["Tanh"]].concat());
}

#[test]
fn other_spellings_are_the_same_block() {
    // Padding by another name, of both forms, and a kernel that is named.
    let same = || vec![AttributeProto::string("auto_pad", "SAME_UPPER")];
    let mut net = attribute("c", same());
    net.node("c").attribute.retain(|a| a.name() != "pads");
    net.node("i").attribute = same();
    net.node("o").attribute =
        vec![AttributeProto::ints("kernel_shape", &[1, 1]), AttributeProto::ints("pads", &[0; 4])];
    assert_eq!(left(&net), whole());
    // No offset.
    let mut net = parts();
    net.node("i").input.truncate(2);
    assert_eq!(left(&net).len(), whole().len() - 1);
    // Another function of elements than a GELU, and nothing around the convolutions.
    let mut net = parts();
    net.nodes.drain(10..15);
    net.before("n", vec![common::node("Relu", &["h"], &["g"])]);
    assert_eq!(left(&net).len(), whole().len() - 4);
    let mut net = parts();
    net.nodes.drain(8..17);
    net.nodes.drain(3..5);
    net.input("i", 0, "m");
    net.input("r", 0, "o");
    assert_eq!(left(&net), [&["Exp"][..], &PRODUCT, &[OP], &PRODUCT, &["Tanh"]].concat());
}

#[test]
fn a_map_on_one_side_costs_no_more_than_before() {
    // A map stays behind it, as where patches are made of it.
    let mut net = parts();
    net.nodes.truncate(17);
    net.nodes.push(common::node("Cos", &["v"], &["y"]));
    net.outputs[0].1 = map();
    let found = left(&net);
    assert_eq!(found[found.len() - 3..], ["Reshape", "Transpose", "Cos"]);
    // A map comes.
    let mut net = parts();
    net.before("p", vec![common::node("Sin", &["m"], &["k"])]);
    net.input("p", 0, "k");
    net.input("s", 0, "k");
    let found = left(&net);
    assert_eq!(found[..6], ["Exp", "Transpose", "Reshape", "Sin", "Transpose", "Reshape"]);
    // On both sides.
    net.nodes.truncate(18);
    net.nodes.push(common::node("Cos", &["v"], &["y"]));
    net.outputs[0].1 = map();
    missed_because(&net, "more would be moved than now");
}

#[test]
fn values_that_are_read_elsewhere_too_are_given() {
    // A map of what is inside takes the place of that behind the block.
    let mut net = parts();
    net.nodes.truncate(17);
    net.nodes.push(common::node("Cos", &["u"], &["y"]));
    net.nodes.retain(|n| !["h", "d", "e", "e1", "g1", "g", "n", "v"].contains(&n.output[0].as_str()));
    net.outputs[0].1 = map();
    assert_eq!(left(&net).last().map(String::as_str), Some("Cos"));
    // Two maps more than before: an output, and what another node reads.
    for inside in ["u", "i", "h"] {
        let mut net = parts();
        let dims = |name: &str| if name == "h" { vec![BATCH, HIDDEN, SIDES[0], SIDES[1]] } else { map() };
        net.nodes.truncate(17);
        net.nodes.push(common::node("Cos", &["v"], &["y"]));
        net.outputs = vec![("y", map()), (inside, dims(inside))];
        missed_because(&net, "more would be moved than now");
    }
}

#[test]
fn other_convolutions_say_why() {
    let ints = AttributeProto::ints;
    // The encoding is left out, so that the convolution between products is the only one.
    let without = |mut net: Parts<Tokens>| {
        net.nodes.drain(3..5);
        for (output, slot) in [("i", 0), ("u", 0)] {
            net.input(output, slot, "m");
        }
        net
    };
    assert_eq!(left(&without(parts())).len(), whole().len() - 1);
    let dilated = vec![ints("dilations", &[2, 2]), ints("pads", &[4; 4])];
    missed_because(&without(attribute("c", dilated)), "in other steps");
    let mut net = without(attribute("c", vec![ints("pads", &[4, 2, 0, 2])]));
    missed_because(&net, "padded otherwise");
    net = without(attribute("c", vec![ints("pads", &[4; 4])]));
    net.set(weight("w_mix", &[CHANNELS, 1, 9, 9]));
    missed_because(&net, "no such kernel");
    // Every second place: what is behind it is another map, so what is added to it goes.
    let mut net = without(attribute("c", vec![ints("strides", &[2, 2])]));
    net.nodes.retain(|n| n.output[0] != "u");
    net.input("h", 0, "o");
    net.input("v", 0, "o");
    net.outputs[0].1 = vec![BATCH, 6, CHANNELS];
    missed_because(&net, "in other steps");
}

#[test]
fn what_has_no_depthwise_convolution_beside_a_product_is_no_site() {
    // In groups of two channels, and the encoding behind it alone.
    let mut net = attribute("c", vec![AttributeProto::int("group", CHANNELS / 2)]);
    net.set(weight("w_mix", &[CHANNELS, 2, 5, 5]));
    no_site(&net);
    // 1x1 convolutions of every second place, of groups, or of a padded map.
    for other in [AttributeProto::int("group", 2), AttributeProto::ints("pads", &[1; 4])] {
        let mut net = parts();
        net.nodes.drain(7..17);
        net.nodes.drain(3..5);
        net.input("i", 0, "m");
        net.input("r", 0, "c");
        if other.name() == "group" {
            net.set(weight("w_in", &[CHANNELS, CHANNELS / 2, 1, 1]));
        } else {
            net.outputs[0].1 = vec![BATCH, 35, CHANNELS];
        }
        net.node("i").attribute = vec![other];
        no_site(&net);
    }
}

#[test]
fn what_is_not_of_single_elements_stays_a_map() {
    let transposes = |net: &Parts<Tokens>| left(net).iter().filter(|op| *op == "Transpose").count();
    // As many Transposes as before, around another op and around a constant of more axes than tokens have.
    let bend = |net: &mut Parts<Tokens>, output: &str, x: &str| {
        let bent = format!("{x}_bent");
        net.before(output, vec![common::node("Sin", &[x], &[&bent])]);
        net.input(output, 0, &bent);
    };
    let mut net = parts();
    bend(&mut net, "n", "g");
    assert_eq!(transposes(&net), 2);
    bend(&mut net, "c", "i");
    missed_because(&net, "more would be moved than now");
    let mut net = parts();
    net.set(TensorProto::from_f32("one", &[1, 1, 1, 1], &[1.0]));
    assert_eq!(transposes(&net), 2);
}
