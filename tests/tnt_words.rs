//! Chains over words of TNT and PyramidTNT, with their bridges: every export has its own, they compute the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{Block, Net, comparison, costs_less_than_its_parts, int, ints, nodes, only_if_asked_for, weight};
use trt_opt::onnx::DType;
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options, Status};
use trt_opt::testing;

const OP: &str = "TrtOptTntWords";
const LAYER: &str = "TrtOptTntInnerBlock";
const BRIDGE: &str = "TrtOptTntBridge";

/// The layers behind which the bridges of a node read.
fn after(node: &NodeProto) -> Vec<i64> {
    let after = &node.attribute.iter().find(|a| a.name() == "after").unwrap().ints;
    assert_eq!(after.len(), 32);
    after.iter().copied().filter(|&layer| layer >= 0).collect()
}

/// All exports, with the words alone and with all blocks beside them. Those of TNT have two layers, those of PyramidTNT a layer at each of two
/// stages.
#[test]
fn exports_have_all_their_words_and_compute_the_same() {
    let mut wrong = vec![];
    let mut seen = [0, 0];
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let pyramid = name.starts_with("ptnt");
        if !pyramid && !name.starts_with("tnt") {
            continue;
        }
        seen[usize::from(pyramid)] += 1;
        for options in [block::with(&[Kind::TntWords]), block::with(&Kind::ALL)] {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            let (proto, ledger) = (&rewrite.model().proto, rewrite.ledger());
            let found: Vec<_> = nodes(proto, OP).iter().map(|n| (after(n), int(n, "whole"), int(n, "words"))).collect();
            // The words of PyramidTNT's first stage go on to the second.
            let expected = match pyramid {
                // The first tokens of TNT are made of words too.
                false => vec![(vec![0, 1, 2], 0, 0)],
                true => vec![(vec![1], 1, 1), (vec![1], 1, 0)],
            };
            if found != expected || !nodes(proto, BRIDGE).is_empty() {
                wrong.push(format!("{name}: {found:?} instead of {expected:?}"));
            }
            // Bridges are where the words are; what is left of the blocks over few tokens are those over the tokens.
            let words: Vec<_> = ledger.sites.iter().filter(|s| s.kind == Kind::TntWords).collect();
            let into = |site: &&trt_opt::rewrite::Site| words.iter().any(|w| w.into == site.into);
            let bridges = ledger.sites.iter().filter(|s| s.kind == Kind::TntBridge).filter(into).count();
            if bridges != 2 || words.iter().any(|s| s.status != Status::Fused) {
                wrong.push(format!("{name}: {bridges} bridges in words: {words:?}"));
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, [10, 10]);
}

/// Layers and bridges as nodes to spoil: what their rules make of a model.
type Parts = block::Parts<Words>;

struct Words;

impl Block for Words {
    const KIND: Kind = Kind::TntWords;
    const OP: &'static str = OP;
}

const IMAGES: i64 = 2;
const PATCHES: i64 = 4;
const WORDS: i64 = 4;
const INNER: i64 = 8;
const HIDDEN: i64 = 16;
const WIDTH: i64 = WORDS * INNER;
const CHANNELS: i64 = 16;
const TOKENS: i64 = PATCHES + 1;

fn plugin(op: &str, inputs: Vec<String>, output: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    NodeProto { domain: Some("trt.opt".into()), attribute: attributes, ..common::node(op, &inputs, &[output]) }
}

impl Parts {
    /// Words w0 to wL; tokens s0, s1, ... of which each but the first is a bridge's result.
    fn new(layers: usize) -> Self {
        let mut net = Self {
            nodes: vec![],
            weights: vec![ints("rows", &[IMAGES, PATCHES, WIDTH])],
            inputs: vec![("w0", vec![IMAGES * PATCHES, WORDS, INNER]), ("s0", vec![IMAGES, TOKENS, CHANNELS])],
            outputs: vec![],
            block: Words,
        };
        for i in 1..=layers {
            net.layer(i);
            net.bridge(i, &format!("w{i}"), &format!("s{}", i - 1), &format!("s{i}"));
        }
        // Leaked, since outputs have static names: a handful of bytes a test.
        net.outputs.push((String::leak(format!("s{layers}")), vec![IMAGES, TOKENS, CHANNELS]));
        net
    }

    /// Weights of these shapes, called after a node.
    fn weights_of(&mut self, node: &str, shapes: &[(&str, &[i64])]) -> Vec<String> {
        let names: Vec<String> = shapes.iter().map(|(name, _)| format!("{node}_{name}")).collect();
        self.weights.extend(names.iter().zip(shapes).map(|(name, (_, dims))| weight(name, dims)));
        names
    }

    fn layer(&mut self, i: usize) {
        let (c, h) = (INNER, HIDDEN);
        let weights = self.weights_of(
            &format!("layer{i}"),
            &[
                ("scale1", &[c]),
                ("bias1", &[c]),
                ("w_qkv", &[c, 3 * c]),
                ("b_qkv", &[3 * c]),
                ("w_proj", &[c, c]),
                ("b_proj", &[c]),
                ("scale2", &[c]),
                ("bias2", &[c]),
                ("w1", &[c, h]),
                ("b1", &[h]),
                ("w2", &[h, c]),
                ("b2", &[c]),
            ],
        );
        let inputs = [vec![format!("w{}", i - 1)], weights].concat();
        let attributes = vec![
            AttributeProto::float("epsilon1", 1e-5),
            AttributeProto::float("epsilon2", 1e-3),
            AttributeProto::int("whole", 0),
            AttributeProto::int("num_heads", 2),
            AttributeProto::float("scale", 0.5),
            AttributeProto::string("approximate", "none"),
        ];
        self.nodes.push(plugin(LAYER, inputs, &format!("w{i}"), attributes));
    }

    fn bridge(&mut self, i: usize, words: &str, from: &str, to: &str) {
        let (k, c) = (WIDTH, CHANNELS);
        let weights = self.weights_of(
            &format!("bridge{i}"),
            &[("scale1", &[k]), ("bias1", &[k]), ("w", &[k, c]), ("b", &[c]), ("scale2", &[c]), ("bias2", &[c])],
        );
        let rows = format!("rows{i}");
        self.nodes.push(common::node("Reshape", &[words, "rows"], &[&rows]));
        let inputs = [vec![from.to_owned(), rows], weights].concat();
        let attributes = vec![
            AttributeProto::float("epsilon1", 1e-5),
            AttributeProto::float("epsilon2", 1e-3),
            AttributeProto::int("residual", 0),
            AttributeProto::int("begin", 1),
        ];
        self.nodes.push(plugin(BRIDGE, inputs, to, attributes));
    }

    fn attribute(&mut self, output: &str, attribute: AttributeProto) {
        let node = self.node(output);
        node.attribute.retain(|a| a.name() != attribute.name());
        node.attribute.push(attribute);
    }

    /// What is left: the nodes of the chain, and all others by op.
    fn fused(&self) -> (Vec<NodeProto>, Vec<String>) {
        let (model, ledger) = self.fuse();
        let made: Vec<NodeProto> = nodes(&model, OP).into_iter().cloned().collect();
        assert_eq!((made.len(), ledger.count(Kind::TntWords).missed), (ledger.sites.len(), 0), "{:?}", ledger.sites);
        (made, others(&model))
    }

    /// The weights of the one node.
    fn packed(&self) -> Vec<f64> {
        let (model, _) = self.fuse();
        let graph = model.graph.as_ref().unwrap();
        let name = &nodes(&model, OP)[0].input[1];
        graph.initializer.iter().find(|t| t.name() == name).unwrap().to_f64_vec().unwrap()
    }

    fn missed_because(&self, reason: &str) {
        let site = self.missed();
        assert!(site.reason.as_ref().is_some_and(|found| found.contains(reason)), "expected {reason}: {site:?}");
        let layers = self.nodes.iter().filter(|n| n.op_type() == LAYER).count();
        assert_eq!(nodes(&self.fuse().0, LAYER).len(), layers);
    }
}

/// With first tokens as TNT has them, of the words before the first layer: a class token beside what a bridge would add, and all embedded.
fn with_front() -> Parts {
    let mut net = Parts::new(2);
    let (k, c) = (WIDTH, CHANNELS);
    net.inputs.pop();
    net.weights_of("front", &[("scale1", &[k]), ("bias1", &[k]), ("w", &[k, c]), ("scale2", &[c]), ("bias2", &[c])]);
    net.weights.extend([weight("class", &[IMAGES, 1, c]), weight("embedding", &[1, TOKENS, c])]);
    // The same class token for every image.
    let class = weight("class", &[1, 1, c]).to_f64_vec().unwrap().repeat(IMAGES as usize);
    net.set(TensorProto::from_f32("class", &[IMAGES, 1, c], &class.iter().map(|&v| v as f32).collect::<Vec<_>>()));
    let concat = NodeProto {
        attribute: vec![AttributeProto::int("axis", 1)],
        ..common::node("Concat", &["class", "f3"], &["joined"])
    };
    net.nodes.splice(
        0..0,
        [
            common::node("Reshape", &["w0", "rows"], &["f0"]),
            block::norm("f0", "front_scale1", "front_bias1", "f1", 1e-5),
            common::node("MatMul", &["f1", "front_w"], &["f2"]),
            block::norm("f2", "front_scale2", "front_bias2", "f3", 1e-3),
            concat,
            common::node("Add", &["joined", "embedding"], &["s0"]),
        ],
    );
    net
}

#[test]
fn the_first_tokens_are_one_bridge_more() {
    let net = with_front();
    let (model, ledger) = net.fuse();
    let node = nodes(&model, OP)[0];
    assert_eq!((after(node), node.output.len()), (vec![0, 1, 2], 3));
    // Two adds of bridges, and one of the class token and the embedding.
    assert_eq!(others(&model), ["Add"; 3]);
    // Their two norms are where the words are.
    let norms: Vec<_> = ledger.sites.iter().filter(|s| s.kind == Kind::LayerNorm).collect();
    assert_eq!(norms.len(), 2);
    assert!(norms.iter().all(|s| s.into.as_deref() == node.name.as_deref()), "{norms:?}");
    // With an offset; without an embedding.
    let mut net = with_front();
    net.before("f3", vec![common::node("Add", &["f2", "front_b"], &["f2b"])]);
    net.input("f3", 0, "f2b");
    net.set(weight("front_b", &[CHANNELS]));
    assert_eq!(after(nodes(&net.fuse().0, OP)[0]), [0, 1, 2]);
    let mut net = with_front();
    net.node("s0").op_type = Some("Tanh".into());
    net.node("s0").input.pop();
    let (model, _) = net.fuse();
    assert_eq!((after(nodes(&model, OP)[0]), others(&model).len()), (vec![0, 1, 2], 4));
    // Not by the name of their rule.
    let mut options = block::with(&[Kind::TntWords]);
    options.skip.insert("tnt-words-front".into());
    let model = with_front().rewrite(&options).model().proto.clone();
    assert_eq!(after(nodes(&model, OP)[0]), [1, 2]);
}

/// What is not made as a bridge makes it stays as it is; the words are fused all the same.
#[test]
fn other_first_tokens_stay_as_they_are() {
    let kept = |net: &Parts, what: &str| {
        let (model, ledger) = net.fuse();
        let found: Vec<_> = nodes(&model, OP).iter().map(|n| after(n)).collect();
        assert_eq!(found, [[1, 2]], "{what}: {:?}", ledger.sites);
    };
    let mut net = with_front();
    net.node("f1").attribute.retain(|a| a.name() != "epsilon");
    net.node("f1").attribute.push(AttributeProto::float("epsilon", 1e-2));
    kept(&net, "another epsilon");
    let mut net = with_front();
    net.weights.retain(|w| w.name() != "class");
    net.inputs.push(("class", vec![IMAGES, 1, CHANNELS]));
    kept(&net, "a computed class token");
    let mut net = with_front();
    net.set(weight("class", &[IMAGES, 1, CHANNELS]));
    kept(&net, "a class token for each image");
    let mut net = with_front();
    net.node("joined").input.reverse();
    kept(&net, "the class token last");
    let mut net = with_front();
    net.outputs.push(("f3", vec![IMAGES, PATCHES, CHANNELS]));
    kept(&net, "tokens read otherwise");
    let mut net = with_front();
    net.input("f3", 0, "f1");
    net.nodes.retain(|n| n.output[0] != "f2");
    net.set(weight("front_scale2", &[WIDTH]));
    net.set(weight("front_bias2", &[WIDTH]));
    net.before("joined", vec![common::node("MatMul", &["f3", "front_w"], &["f4"])]);
    net.input("joined", 1, "f4");
    kept(&net, "both norms before the product");
}

fn others(model: &ModelProto) -> Vec<String> {
    let all = model.graph.as_ref().unwrap().node.iter();
    all.filter(|n| n.op_type() != OP).map(|n| n.op_type().to_owned()).collect()
}

#[test]
fn the_words_are_one_node_and_the_tokens_add_what_it_gives() {
    let net = Parts::new(3);
    let (made, others) = net.fused();
    assert_eq!(others, ["Add"; 3]);
    let node = &made[0];
    let float = |name: &str| node.attribute.iter().find(|a| a.name() == name).unwrap().f.unwrap();
    let epsilons = ["epsilon1", "epsilon2", "bridge_epsilon1", "bridge_epsilon2"].map(float);
    assert_eq!(epsilons, [1e-5, 1e-3, 1e-5, 1e-3]);
    assert_eq!(["tokens", "begin", "covered", "words"].map(|name| int(node, name)), [TOKENS, 1, PATCHES, 0]);
    assert_eq!((after(node), node.input.len(), node.output.len()), (vec![1, 2, 3], 2, 3));
    let sizes = ["layers", "hidden", "width", "channels"].map(|name| int(node, name));
    assert_eq!(sizes, [3, HIDDEN, WIDTH, CHANNELS]);
    // Of all layers, then of all bridges, kind by kind.
    assert_eq!(net.packed(), in_a_row(&net, 3));
}

/// The weights that layers and bridges 1 to `count` have, as their node should.
fn in_a_row(net: &Parts, count: usize) -> Vec<f64> {
    let layer = ["scale1", "bias1", "w_qkv", "b_qkv", "w_proj", "b_proj", "scale2", "bias2", "w1", "b1", "w2", "b2"];
    let bridge = ["scale1", "bias1", "w", "b", "scale2", "bias2"];
    let kinds = layer.map(|kind| ("layer", kind)).into_iter().chain(bridge.map(|kind| ("bridge", kind)));
    let mut packed = vec![];
    for (of, kind) in kinds {
        for i in 1..=count {
            let name = format!("{of}{i}_{kind}");
            packed.extend(net.weights.iter().find(|w| w.name() == name).unwrap().to_f64_vec().unwrap());
        }
        packed.resize(packed.len().next_multiple_of(8), 0.0);
    }
    packed
}

/// Each kind of weights begins at a multiple of 16 bytes of float16.
#[test]
fn parts_are_filled_up_to_multiples_of_eight() {
    let mut net = Parts::new(1);
    let (hidden, channels) = (HIDDEN + 3, CHANNELS - 3);
    for (name, dims) in [
        ("layer1_w1", vec![INNER, hidden]),
        ("layer1_b1", vec![hidden]),
        ("layer1_w2", vec![hidden, INNER]),
        ("bridge1_w", vec![WIDTH, channels]),
        ("bridge1_b", vec![channels]),
        ("bridge1_scale2", vec![channels]),
        ("bridge1_bias2", vec![channels]),
    ] {
        net.set(weight(name, &dims));
    }
    net.inputs[1].1[2] = channels;
    net.outputs[0].1[2] = channels;
    let (made, _) = net.fused();
    assert_eq!((int(&made[0], "hidden"), int(&made[0], "channels")), (hidden, channels));
    let (packed, plain) = (net.packed(), net.weights.iter().filter(|w| w.name() != "rows"));
    // 5 zeros behind b1, and 3 behind each of the bridge's last three.
    assert_eq!(packed.len() as i64, plain.map(|w| w.dims.iter().product::<i64>()).sum::<i64>() + 5 + 3 * 3);
    assert_eq!(packed, in_a_row(&net, 1));
}

/// A node whose weights are not as many as its attributes say has no body, and its outputs no shape.
#[test]
fn other_numbers_of_weights_or_sizes_are_refused() {
    let (model, _) = Parts::new(2).fuse();
    let bodies = |spoil: &dyn Fn(&mut NodeProto)| {
        let mut model = model.clone();
        spoil(model.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op_type() == OP).unwrap());
        trt_opt::rewrite::ops::add_reference_bodies(&mut model)
    };
    bodies(&|_| {}).unwrap();
    for (name, value) in [
        ("layers", 1),
        ("layers", 3),
        ("layers", 33),
        ("hidden", 8),
        ("width", 16),
        ("width", 0),
        ("channels", i64::MAX),
    ] {
        let spoil = |node: &mut NodeProto| {
            node.attribute.iter_mut().find(|a| a.name() == name).unwrap().i = Some(value);
        };
        let error = bodies(&spoil).unwrap_err().to_string();
        assert!(error.contains("its inputs do not fit its attributes"), "{name} = {value}: {error}");
    }
}

#[test]
fn bridges_may_be_fewer_or_more_than_layers() {
    // None behind the second layer; two behind the third; one of the words before the first.
    let mut net = Parts::new(3);
    net.nodes.retain(|n| !["rows2", "s2"].contains(&n.output[0].as_str()));
    net.input("s3", 0, "s1");
    net.bridge(4, "w3", "s3", "s4");
    net.bridge(5, "w0", "s4", "s5");
    net.outputs[0].0 = "s5";
    let (made, others) = net.fused();
    assert_eq!((after(&made[0]), others.len()), (vec![0, 1, 3, 3], 4));
    // One layer with its bridge.
    let (made, _) = Parts::new(1).fused();
    assert_eq!(after(&made[0]), [1]);
    // No bridge: no site.
    let mut net = Parts::new(2);
    net.nodes.retain(|n| n.op_type() == LAYER);
    net.outputs = vec![("w2", vec![IMAGES * PATCHES, WORDS, INNER])];
    let (model, ledger) = net.fuse();
    assert!(nodes(&model, OP).is_empty() && ledger.sites.is_empty());
}

#[test]
fn the_last_words_are_given_where_somebody_reads_them() {
    let mut net = Parts::new(2);
    net.outputs.push(("w2", vec![IMAGES * PATCHES, WORDS, INNER]));
    let (made, _) = net.fused();
    assert_eq!((int(&made[0], "words"), made[0].output.len()), (1, 3));
}

/// Words that are read otherwise are given by the chain that ends with them.
#[test]
fn words_read_otherwise_end_a_chain() {
    let mut net = Parts::new(4);
    net.outputs.push(("w2", vec![IMAGES * PATCHES, WORDS, INNER]));
    let (made, _) = net.fused();
    let found: Vec<_> = made.iter().map(|n| (after(n), int(n, "words"))).collect();
    assert_eq!(found, [(vec![1, 2], 1), (vec![1, 2], 0)]);
    assert_eq!(made[1].input[0], "w2");
}

/// The words of a layer that needs tokens are another chain's, behind the bridge of those tokens.
#[test]
fn words_that_depend_on_tokens_begin_another_chain() {
    let mut net = Parts::new(2);
    let at = net.nodes.iter().position(|n| n.output[0] == "w2").unwrap();
    let mean = NodeProto {
        attribute: vec![AttributeProto::int("keepdims", 1)],
        ..common::node("ReduceMean", &["s1"], &["mean"])
    };
    net.nodes.splice(at..at, [mean, common::node("Add", &["w1", "mean"], &["mixed"])]);
    net.input("w2", 0, "mixed");
    let (made, _) = net.fused();
    assert_eq!(made.iter().map(|n| (after(n), int(n, "words"))).collect::<Vec<_>>(), [(vec![1], 1), (vec![1], 0)]);
}

#[test]
fn layers_of_other_attributes_begin_another_chain() {
    let mut net = Parts::new(4);
    for words in ["w3", "w4"] {
        net.attribute(words, AttributeProto::int("num_heads", 4));
    }
    let (made, _) = net.fused();
    assert_eq!(made.iter().map(|n| int(n, "num_heads")).collect::<Vec<_>>(), [2, 4]);
    assert_eq!(made.iter().map(|n| int(n, "words")).collect::<Vec<_>>(), [1, 0]);
}

/// What is added goes into the attention blocks behind the bridges.
#[test]
fn attention_blocks_take_the_adds() {
    let mut net = Parts::new(2);
    for i in 1..=2 {
        let (c, to) = (CHANNELS, format!("a{i}"));
        let weights = net.weights_of(
            &to,
            &[
                ("scale", &[c]),
                ("bias", &[c]),
                ("w_qkv", &[c, 3 * c]),
                ("b_qkv", &[3 * c]),
                ("w_proj", &[c, c]),
                ("b_proj", &[c]),
            ],
        );
        let attributes = vec![
            AttributeProto::float("epsilon", 1e-5),
            AttributeProto::int("residual", 0),
            AttributeProto::int("num_heads", 2),
            AttributeProto::float("scale", 0.4),
            AttributeProto::int("bias", 0),
        ];
        let attention = plugin("TrtOptAttnBlock", [vec![format!("s{i}")], weights].concat(), &to, attributes);
        let at = net.nodes.iter().position(|n| n.output[0] == format!("s{i}")).unwrap() + 1;
        net.nodes.insert(at, attention);
    }
    net.input("s2", 0, "a1");
    net.outputs[0].0 = "a2";
    let rewrite = net.rewrite(&block::with(&[Kind::TntWords, Kind::AttnBlock]));
    rewrite.compare(&trt_opt::verify::Options::default()).unwrap().check().unwrap();
    let model = &rewrite.model().proto;
    assert_eq!(others(model), ["TrtOptAttnBlock"; 2]);
    assert!(nodes(model, "TrtOptAttnBlock").iter().all(|n| int(n, "residual") == 1));
    // A bridge that has taken an add already leaves two, of which the block takes one.
    net.attribute("s2", AttributeProto::int("residual", 1));
    net.node("s2").input.insert(1, "s0".into());
    let model = net.rewrite(&block::with(&[Kind::TntWords, Kind::AttnBlock])).model().proto.clone();
    assert_eq!(others(&model), ["TrtOptAttnBlock", "Add", "TrtOptAttnBlock"]);
    net.fused();
}

#[test]
fn bridges_of_other_attributes_are_missed() {
    for (reason, attribute) in
        [("epsilon1", AttributeProto::float("epsilon1", 1e-2)), ("begin", AttributeProto::int("begin", 0))]
    {
        let mut net = Parts::new(2);
        net.attribute("s2", attribute);
        net.missed_because("its bridges are of different sizes");
        assert!(net.missed().found.is_some(), "{reason}");
    }
}

#[test]
fn computed_weights_are_missed() {
    for name in ["layer2_w1", "bridge1_w"] {
        let mut net = Parts::new(2);
        let dims = net.weights.iter().find(|w| w.name() == name).unwrap().dims.clone();
        net.weights.retain(|w| w.name() != name);
        net.inputs.push((name, dims));
        net.missed_because("a weight is computed");
    }
}

#[test]
fn weights_of_another_type_are_missed() {
    let mut net = Parts::new(2);
    let halves = net.weights.iter().find(|w| w.name() == "layer2_b1").unwrap().to_f64_vec().unwrap();
    let bytes: Vec<u8> = halves.iter().flat_map(|&v| half::f16::from_f64(v).to_le_bytes()).collect();
    net.set(TensorProto::from_raw("layer2_b1", DType::F16, &[HIDDEN], bytes.into()));
    let rewrite = net.rewrite(&block::with(&[Kind::TntWords]));
    let missed: Vec<_> = rewrite.ledger().missed(Kind::TntWords).collect();
    let texts = [&missed[0].reason, &missed[0].expected, &missed[0].found].map(|t| t.as_deref().unwrap());
    let reason = "the weights of its layers are of different types or shapes (at layer2_b1)";
    assert_eq!((missed.len(), texts), (1, [reason, "float [16]", "float16 [16]"]));
}

#[test]
fn rows_of_parts_of_patches_are_missed() {
    let mut net = Parts::new(1);
    net.set(ints("rows", &[IMAGES, 2 * PATCHES, WIDTH / 2]));
    for (name, dims) in [("scale1", vec![WIDTH / 2]), ("bias1", vec![WIDTH / 2]), ("w", vec![WIDTH / 2, CHANNELS])] {
        net.set(weight(&format!("bridge1_{name}"), &dims));
    }
    net.inputs[1].1[1] = 2 * PATCHES + 1;
    net.outputs[0].1[1] = 2 * PATCHES + 1;
    net.missed_because("a bridge's rows are not of whole patches of words");
    // Rows of two patches each are whole.
    let mut net = Parts::new(1);
    net.set(ints("rows", &[IMAGES, PATCHES / 2, 2 * WIDTH]));
    for (name, dims) in [("scale1", vec![2 * WIDTH]), ("bias1", vec![2 * WIDTH]), ("w", vec![2 * WIDTH, CHANNELS])] {
        net.set(weight(&format!("bridge1_{name}"), &dims));
    }
    let (made, _) = net.fused();
    assert_eq!((int(&made[0], "covered"), int(&made[0], "tokens")), (PATCHES / 2, TOKENS));
}

#[test]
fn more_layers_than_the_plugin_takes_are_missed() {
    // The first layer is bridged, and the last words are an output.
    let of = |layers: usize| {
        let mut net = Parts::new(1);
        (2..=layers).for_each(|i| net.layer(i));
        net.outputs.push((String::leak(format!("w{layers}")), vec![IMAGES * PATCHES, WORDS, INNER]));
        net
    };
    let (made, _) = of(32).fused();
    assert_eq!((int(&made[0], "layers"), after(&made[0])), (32, vec![1]));
    of(33).missed_because("it has more layers than the plugin takes");
}

#[test]
fn more_outputs_than_are_taken_in_float16_are_missed() {
    let (made, _) = Parts::new(13).fused();
    assert_eq!(after(&made[0]).len(), 13);
    Parts::new(14).missed_because("it has more outputs than TensorRT takes in float16");
    let mut words = Parts::new(13);
    words.outputs.push(("w13", vec![IMAGES * PATCHES, WORDS, INNER]));
    words.missed_because("it has more outputs than TensorRT takes in float16");
}

#[test]
fn words_are_not_fused_unless_asked_for_and_can_be_left() {
    only_if_asked_for(&Parts::new(2), "tnt-words");
}

/// Groups of `tune`: the words come behind their layers and bridges, and have these and all in them as their parts.
#[test]
fn words_are_a_group_made_of_their_layers_and_bridges() {
    use trt_opt::ablation::tune::{self, By};
    let path = common::fixtures().into_iter().find(|p| p.ends_with("tnt_ts17.onnx")).unwrap();
    let rewrite = |options: &Options| testing::rewrite_with(&path, options).unwrap();
    let graph = |of: &testing::Rewrite| trt_opt::ir::Graph::take(&mut of.model().proto.clone()).unwrap();
    let parts = rewrite(&Options { kinds: tune::kinds_without_wholes(), ..Options::default() });
    let all = rewrite(&block::with(&Kind::ALL));
    let blocks = tune::blocks(parts.ledger(), &graph(&parts), By::Kind);
    let wholes = tune::wholes(all.ledger(), &graph(&all), By::Kind);
    assert_eq!(wholes.iter().map(|g| g.kind).collect::<Vec<_>>(), [Kind::TntWords]);
    let of = |kind: Kind| wholes[0].parts.iter().filter(|(part, _)| *part == kind).count();
    let kinds = [Kind::TntInnerBlock, Kind::TntBridge, Kind::Attention, Kind::Gelu, Kind::LayerNorm];
    // Of two layers: two norms in each, two in each bridge, and the two before the first tokens.
    assert_eq!(kinds.map(of), [2, 2, 2, 2, 10]);

    let number = |kind: Kind| blocks.iter().position(|g| g.kind == kind).unwrap();
    let (inner, bridges, words) = (number(Kind::TntInnerBlock), number(Kind::TntBridge), blocks.len());
    let groups = [blocks.clone(), wholes.clone()].concat();
    let made = |left: &[usize]| {
        let standard = tune::standard(&groups, &left.iter().copied().collect());
        let proto = rewrite(&Options { standard, ..block::with(&Kind::ALL) }).model().proto.clone();
        // Layers over words alone: the tokens of this model are few, too.
        let layers = nodes(&proto, LAYER).into_iter().filter(|n| int(n, "num_heads") == 2).count();
        [nodes(&proto, OP).len(), layers, nodes(&proto, BRIDGE).len()]
    };
    // With both of its parts left out and the whole taken, the whole is made of them all the same.
    assert_eq!(made(&[inner, bridges]), [1, 0, 0]);
    assert_eq!(made(&[words]), [0, 2, 2]);
    assert_eq!(made(&[inner, words]), [0, 0, 2]);
    assert_eq!(made(&[inner, bridges, words]), [0; 3]);
}

#[test]
fn the_cost_of_the_words_is_less_than_that_of_their_parts() {
    let [parts, words] = costs_less_than_its_parts(&Parts::new(3));
    assert_eq!(words, parts);
}
