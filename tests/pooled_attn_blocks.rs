//! Attention blocks with pooled keys and values: every export of PyramidTNT has its own, they compute the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{
    Block, Net, comparison, costs_less_than_its_parts, int, ints, made_up_to_its_size, nodes, norm, on,
    only_if_asked_for, weight, with,
};
use common::{node, reshape, transpose};
use trt_opt::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options, Status};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptPooledAttnBlock";

struct Pooled;
impl Block for Pooled {
    const KIND: Kind = Kind::AttnBlock;
    const OP: &'static str = OP;
}
type Parts = block::Parts<Pooled>;

/// Two layers of each export, alone and with all other blocks.
#[test]
fn exports_have_all_their_blocks_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("ptnt") {
            continue;
        }
        seen += 1;
        for options in [with(&[Kind::AttnBlock]), on(with(&Kind::ALL), 9, 0)] {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            let (proto, all) = (&rewrite.model().proto, options.kinds.len() == Kind::ALL.len());
            // Both follow an add: that of a bridge, unless it gives the sum itself, and that of an MLP, unless a block has taken it.
            let residuals: Vec<i64> = nodes(proto, OP).iter().map(|n| int(n, "residual")).collect();
            let left = ["AveragePool", "ReduceMean"].map(|op| nodes(proto, op).len());
            if residuals != if all { [1, 0] } else { [1, 1] } || left != [0, 0] {
                wrong.push(format!("{name}: residuals {residuals:?}, pools left {left:?}"));
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 10);
}

// ---- a block by hand, to spoil ----

const IMAGES: i64 = 2;
const GRID: [i64; 2] = [4, 6];
const POOL: [i64; 2] = [2, 3];

#[derive(Clone, Copy)]
struct Form {
    images: i64,
    channels: i64,
    heads: i64,
    head: i64,
    grid: [i64; 2],
    pool: [i64; 2],
}

const USUAL: Form = Form { images: IMAGES, channels: 16, heads: 2, head: 8, grid: GRID, pool: POOL };

/// `s` is the stream, `n` normalized, `q` and `kv` the products before the attention, `m` the map, `p` the pooled one, `u` its tokens, `y` the result.
fn parts(form: Form) -> Parts {
    let Form { images, channels: c, heads: h, head: d, grid, pool } = form;
    let (inner, tokens, keys) = (h * d, grid[0] * grid[1], grid[0] / pool[0] * (grid[1] / pool[1]));
    let shaped = vec![
        ints("map", &[images, c, grid[0], grid[1]]),
        ints("line", &[images, c, keys]),
        ints("q_split", &[images, tokens, h, d]),
        ints("kv_split", &[images, keys, 2, h, d]),
        ints("merged_shape", &[images, tokens, inner]),
        TensorProto::from_i64("zero", &[], &[0]),
        TensorProto::from_i64("one", &[], &[1]),
        TensorProto::from_f32("root", &[], &[0.35]),
    ];
    let trained = [
        ("scale", vec![c]),
        ("bias", vec![c]),
        ("w_q", vec![c, inner]),
        ("b_q", vec![inner]),
        ("w_pool", vec![c, c]),
        ("b_pool", vec![c]),
        ("pool_scale", vec![c]),
        ("pool_bias", vec![c]),
        ("w_kv", vec![c, 2 * inner]),
        ("b_kv", vec![2 * inner]),
        ("w_proj", vec![inner, c]),
        ("b_proj", vec![c]),
    ];
    let attribute = |node: NodeProto, attributes: Vec<AttributeProto>| NodeProto { attribute: attributes, ..node };
    let last = || vec![AttributeProto::int("axis", -1)];
    let first = || vec![AttributeProto::int("axis", 0)];
    let linear = |x: &str, name: &str| {
        let (product, sum) = (format!("{name}_product"), format!("{name}_sum"));
        [
            node("MatMul", &[x, &format!("w_{name}")], &[&product]),
            node("Add", &[&product, &format!("b_{name}")], &[&sum]),
        ]
    };
    let windows = vec![AttributeProto::ints("kernel_shape", &pool), AttributeProto::ints("strides", &pool)];
    let mut all = vec![node("Add", &["x", "r"], &["s"]), norm("s", "scale", "bias", "n", 1e-5)];
    all.extend(linear("n", "q"));
    all.extend([
        reshape("q_sum", "q_split", "q_heads"),
        transpose("q_heads", &[0, 2, 1, 3], "q"),
        transpose("n", &[0, 2, 1], "l"),
        reshape("l", "map", "m"),
        attribute(node("AveragePool", &["m"], &["p"]), windows),
        reshape("p", "line", "t"),
        transpose("t", &[0, 2, 1], "u"),
    ]);
    all.extend(linear("u", "pool"));
    all.push(norm("pool_sum", "pool_scale", "pool_bias", "normal", 1e-6));
    all.extend(linear("normal", "kv"));
    all.extend([
        reshape("kv_sum", "kv_split", "kv_heads"),
        transpose("kv_heads", &[2, 0, 3, 1, 4], "kv"),
        attribute(node("Gather", &["kv", "zero"], &["k"]), first()),
        attribute(node("Gather", &["kv", "one"], &["v"]), first()),
        transpose("k", &[0, 1, 3, 2], "k_t"),
        node("MatMul", &["q", "k_t"], &["raw"]),
        node("Mul", &["raw", "root"], &["scores"]),
        attribute(node("Softmax", &["scores"], &["weights"]), last()),
        node("MatMul", &["weights", "v"], &["mixed"]),
        transpose("mixed", &[0, 2, 1, 3], "merged"),
        reshape("merged", "merged_shape", "context"),
    ]);
    all.extend(linear("context", "proj"));
    all.push(node("Add", &["s", "proj_sum"], &["y"]));
    Parts {
        nodes: all,
        weights: shaped.into_iter().chain(trained.map(|(name, dims)| weight(name, &dims))).collect(),
        inputs: ["x", "r"].map(|name| (name, vec![images, tokens, c])).into(),
        outputs: vec![("y", vec![images, tokens, c])],
        block: Pooled,
    }
}

fn usual() -> Parts {
    parts(USUAL)
}

fn fused(net: &Parts) -> NodeProto {
    let (model, ledger) = net.fuse();
    assert_eq!(ledger.count(Kind::AttnBlock).fused, 1, "{:?}", ledger.sites);
    nodes(&model, OP)[0].clone()
}

#[track_caller]
fn missed_because(net: &Parts, reason: &str) {
    let site = net.missed();
    assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
    assert!(site.expected.is_some() && site.found.is_some(), "{site:?}");
}

/// Puts a node behind `value`, which all readers of it read instead.
fn behind(net: &mut Parts, value: &str, op: &str) {
    let new = format!("{value}_bent");
    for node in &mut net.nodes {
        node.input.iter_mut().filter(|v| *v == value).for_each(|v| v.clone_from(&new));
    }
    let at = net.nodes.iter().position(|n| n.output[0] == value).unwrap();
    net.nodes.insert(at + 1, node(op, &[value], &[&new]));
}

fn attribute(net: &mut Parts, output: &str, attribute: AttributeProto) {
    let node = net.node(output);
    node.attribute.retain(|a| a.name != attribute.name);
    node.attribute.push(attribute);
}

#[test]
fn the_block_itself_is_one_node_with_the_add_before_it() {
    let (model, ledger) = usual().fuse();
    let all = &model.graph.as_ref().unwrap().node;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((all[0].op_type(), all[0].input.len(), int(&all[0], "residual")), (OP, 7, 1));
    let pairs = ["grid", "pool"].map(|name| all[0].attribute.iter().find(|a| a.name() == name).unwrap().ints.clone());
    assert_eq!(pairs, [GRID.to_vec(), POOL.to_vec()]);
    let epsilons =
        ["epsilon", "pool_epsilon"].map(|name| all[0].attribute.iter().find(|a| a.name() == name).unwrap().f);
    assert_eq!(epsilons, [Some(1e-5), Some(1e-6)]);
    // The sites of its parts say where they are now.
    let kinds: Vec<Kind> = ledger.sites.iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [Kind::LayerNorm, Kind::LayerNorm, Kind::Attention, Kind::AttnBlock]);
    for site in &ledger.sites {
        assert_eq!((site.status, site.into.as_deref()), (Status::Fused, all[0].name.as_deref()), "{site:?}");
    }
    assert_eq!(
        (ledger.sites[3].node.as_str(), ledger.sites[3].rule.as_deref()),
        ("Softmax_weights", Some("attn-block"))
    );
}

#[test]
fn blocks_are_made_only_where_they_are_asked_for() {
    only_if_asked_for(&usual(), "attn-block");
    // The add stays where it is, by name; means of tokens are no part of it.
    let rewrite = |skip: &str| usual().rewrite(&Options { skip: [skip.into()].into(), ..with(&[Kind::AttnBlock]) });
    let count = |of: &testing::Rewrite, op: &str| nodes(&of.model().proto, op).len();
    let made = rewrite("attn-block-residual");
    assert_eq!([OP, "Add"].map(|op| count(&made, op)), [1, 1]);
    assert_eq!(count(&rewrite("token-pool"), OP), 1);
    // Without tensor cores for few rows it is left to its parts.
    let older = usual().rewrite(&on(with(&[Kind::AttnBlock]), 8, 9));
    let missed: Vec<_> = older.ledger().missed(Kind::AttnBlock).map(|s| s.reason.as_deref()).collect();
    assert_eq!((count(&older, OP), missed), (0, vec![Some("the plugin has no tensor cores for it on this GPU")]));
    assert_eq!(count(&usual().rewrite(&on(with(&[Kind::AttnBlock]), 9, 0)), OP), 1);
}

#[test]
fn other_forms_are_the_same_block() {
    // Heads narrower and wider than the channels; windows of a line, of a column, of one line of tokens less.
    for (heads, head) in [(2, 4), (2, 16), (4, 6)] {
        assert_eq!(int(&fused(&parts(Form { heads, head, ..USUAL })), "num_heads"), heads);
    }
    for (grid, pool) in [([4, 6], [1, 3]), ([4, 6], [4, 1]), ([1, 6], [1, 2]), ([6, 4], [3, 2])] {
        fused(&parts(Form { grid, pool, ..USUAL }));
    }
    // One image, of which the axes of images may go.
    fused(&parts(Form { images: 1, ..USUAL }));
    // No offsets.
    let mut net = usual();
    net.nodes.retain(|n| !["q_sum", "pool_sum", "kv_sum", "proj_sum"].contains(&n.output[0].as_str()));
    for (reader, slot, product) in [
        ("q_heads", 0, "q_product"),
        ("normal", 0, "pool_product"),
        ("kv_heads", 0, "kv_product"),
        ("y", 1, "proj_product"),
    ] {
        net.input(reader, slot, product);
    }
    fused(&net);
    // The residual add the other way round.
    let mut net = usual();
    net.node("y").input.reverse();
    fused(&net);
    // Dense biases: of all images, of all heads, of each image.
    let (tokens, keys) = (24, 4);
    for dims in [vec![1, 2, tokens, keys], vec![1, 1, tokens, keys], vec![IMAGES, 2, tokens, keys]] {
        let mut net = usual();
        net.set(weight("position", &dims));
        net.before("weights", vec![node("Add", &["scores", "position"], &["sum"])]);
        net.input("weights", 0, "sum");
        let made = fused(&net);
        assert_eq!((int(&made, "bias"), made.input.len()), (1, 8), "{dims:?}");
    }
    // A stream that is no sum, and one that is read otherwise too.
    let mut net = usual();
    net.node("s").op_type = Some("Mul".into());
    assert_eq!(int(&fused(&net), "residual"), 0);
    let mut net = usual();
    net.outputs.push(("s", net.outputs[0].1.clone()));
    assert_eq!(int(&fused(&net), "residual"), 0);
}

#[test]
fn interior_values_used_elsewhere_keep_their_parts() {
    let (c, inner) = (16, 16);
    let [all, pooled] = [24, 4].map(|n| vec![IMAGES, n]);
    let of = |rows: &[i64], columns: i64| [rows, &[columns]].concat();
    for (value, shape) in [
        ("n", of(&all, c)),
        ("q_product", of(&all, inner)),
        ("q_sum", of(&all, inner)),
        ("l", vec![IMAGES, c, 24]),
        ("m", vec![IMAGES, c, 4, 6]),
        ("p", vec![IMAGES, c, 2, 2]),
        ("u", of(&pooled, c)),
        ("pool_product", of(&pooled, c)),
        ("pool_sum", of(&pooled, c)),
        ("normal", of(&pooled, c)),
        ("kv_sum", of(&pooled, 2 * inner)),
        ("context", of(&all, inner)),
        ("proj_product", of(&all, c)),
        ("proj_sum", of(&all, c)),
    ] {
        let mut net = usual();
        net.outputs.push((value, shape.clone()));
        net.missed();
        let mut net = usual();
        net.nodes.push(node("Neg", &[value], &["z"]));
        net.outputs.push(("z", shape));
        net.missed();
    }
}

#[test]
fn what_only_looks_like_a_block_is_left_alone() {
    // Windows that overlap, leave tokens out, or are padded.
    let mut net = usual();
    attribute(&mut net, "p", AttributeProto::ints("strides", &[2, 1]));
    net.set(ints("line", &[IMAGES, 16, 8]));
    net.set(ints("kv_split", &[IMAGES, 8, 2, 2, 8]));
    missed_because(&net, "its windows overlap or leave values out");
    let mut net = usual();
    attribute(&mut net, "p", AttributeProto::ints("pads", &[0, 1, 0, 2]));
    net.set(ints("line", &[IMAGES, 16, 6]));
    net.set(ints("kv_split", &[IMAGES, 6, 2, 2, 8]));
    missed_because(&net, "its map is padded");
    // Pools of the stream, of another norm of it, and of a map with height and width in each other's place.
    let mut net = usual();
    net.input("l", 0, "s");
    missed_because(&net, "keys and values come of other tokens than queries");
    let mut net = usual();
    net.nodes.insert(1, norm("s", "pool_scale", "bias", "other", 1e-5));
    net.input("l", 0, "other");
    missed_because(&net, "keys and values come of other tokens than queries");
    let mut net = parts(Form { grid: [6, 6], pool: [2, 3], ..USUAL });
    net.node("m").op_type = Some("Reshape".into());
    net.before("p", vec![transpose("m", &[0, 1, 3, 2], "turned")]);
    net.input("p", 0, "turned");
    missed_because(&net, "its map is not made of tokens");
    // Pooled tokens in another order.
    let mut net = usual();
    net.before("t", vec![transpose("p", &[0, 1, 3, 2], "turned")]);
    net.input("t", 0, "turned");
    missed_because(&net, "what it gives is read otherwise than as tokens of keys and values");
    // Something between two steps.
    for (value, reason) in [
        ("q_sum", "it is no product with a weight"),
        ("p", "what it gives is read otherwise than as tokens of keys and values"),
        ("pool_sum", "it is no product with a weight"),
        ("normal", "no fused norm of the last axis"),
        ("kv_sum", "it is no product with a weight"),
        ("context", "another op follows than in a block"),
        ("proj_sum", "is not what the norm reads"),
    ] {
        let mut net = usual();
        behind(&mut net, value, "Tanh");
        if value == "proj_sum" {
            net = usual();
            net.input("y", 0, "x");
        }
        missed_because(&net, reason);
    }
    // No norm of the tokens, and none of the pooled ones.
    let mut net = usual();
    *net.node("n") = node("Tanh", &["s"], &["n"]);
    missed_because(&net, "no fused norm of the last axis");
    let mut net = usual();
    *net.node("normal") = node("Tanh", &["pool_sum"], &["normal"]);
    missed_because(&net, "no fused norm of the last axis");
    // A maximum is no mean: there is no pool that the block knows.
    let mut net = usual();
    net.node("p").op_type = Some("MaxPool".into());
    missed_because(&net, "keys and values come of other tokens than queries");
    // A weight that is computed.
    let mut net = usual();
    net.before("pool_product", vec![node("Tanh", &["w"], &["w_pool"])]);
    net.weights.retain(|w| w.name() != "w_pool");
    net.inputs.push(("w", vec![16, 16]));
    assert!(nodes(&net.fuse().0, OP).is_empty());
    // Scores that have a mask besides a bias.
    let mut net = usual();
    net.set(weight("position", &[1, 2, 24, 4]));
    net.set(weight("mask", &[IMAGES, 1, 24, 4]));
    net.before(
        "weights",
        vec![node("Add", &["scores", "position"], &["sum"]), node("Add", &["sum", "mask"], &["masked"])],
    );
    net.input("weights", 0, "masked");
    missed_because(&net, "the plugin takes no mask");
}

#[test]
fn sizes_that_the_plugin_does_not_take_are_refused() {
    missed_because(&parts(Form { channels: 12, ..USUAL }), "the tensor cores take no such sizes");
    missed_because(&parts(Form { heads: 3, head: 4, ..USUAL }), "the tensor cores take no such sizes");
    missed_because(&parts(Form { channels: 2056, grid: [2, 2], pool: [2, 1], ..USUAL }), "the block is too large");
    // A product for the pooled tokens that does not lead back to the channels.
    let mut net = usual();
    for (name, dims) in [
        ("w_pool", vec![16, 24]),
        ("b_pool", vec![24]),
        ("pool_scale", vec![24]),
        ("pool_bias", vec![24]),
        ("w_kv", vec![24, 32]),
    ] {
        net.set(weight(name, &dims));
    }
    missed_because(&net, "the products do not lead from the channels to the heads and back");
}

/// 4 * 48 * channels * 1600 are 0.35 GFLOP at 1139 channels.
#[test]
fn blocks_above_the_size_where_they_pay_are_left_to_their_parts() {
    let net = |channels: i64| parts(Form { channels, heads: 20, head: 80, ..USUAL });
    made_up_to_its_size(&net(1136), true, ["", ""]);
    made_up_to_its_size(&net(1144), false, ["at most 0.350 GFLOP in both products", "0.352 GFLOP, rows [2, 24]"]);
}

#[test]
fn the_cost_of_a_block_is_less_than_that_of_its_parts() {
    let [parts, block] = costs_less_than_its_parts(&usual());
    assert_eq!(parts, block);
    let (tokens, keys, c) = (48, 8, 16);
    assert_eq!(block, tokens * c * c * 2 + keys * c * 3 * c + tokens * 4 * 2 * c);
}

/// In half precision the body rounds where the plugin does.
#[test]
fn half_precision_agrees_with_the_parts() {
    let path = common::fixtures().into_iter().find(|p| p.ends_with("ptnt_ts17_fp16.onnx")).unwrap();
    let rewrite = testing::rewrite_with(&path, &with(&[Kind::AttnBlock])).unwrap();
    assert_eq!(nodes(&rewrite.model().proto, OP).len(), 2);
    let options = verify::Options { rtol: Some(5e-3), threads: Some(1), ..verify::Options::default() };
    rewrite.compare(&options).unwrap().check().unwrap();
}
