//! Patch embeddings as one op: exports and spellings of them are one node each and compute the same, and every near miss
//! says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{
    Net, comparison, costs_less_than_its_parts, int, ints, made_up_to_its_size, nodes, only_if_asked_for, rewritten,
    weight, with,
};
use common::{ops, reshape, transpose};
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options, Status, fp16};
use trt_opt::testing;
use trt_opt::verify::{self, Source};

const OP: &str = "TrtOptPatchEmbed";

fn with_embed() -> Options {
    with(&[Kind::PatchEmbed])
}

/// All exports, with the embedding alone and with all blocks beside it.
#[test]
fn exports_have_all_their_embeddings_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Of each embedding, whether a norm is behind it. TNT and PyramidTNT have convolutions that overlap.
        let expected: &[i64] = match name.split('_').next().unwrap() {
            "swin" => &[1],
            "vit" => &[0],
            "uniformer" => &[1, 1],
            "tnt" | "ptnt" => &[],
            _ => continue,
        };
        seen += expected.len();
        for options in [with_embed(), with(&Kind::ALL)] {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            let found: Vec<i64> = nodes(&rewrite.model().proto, OP).iter().map(|n| int(n, "norm")).collect();
            let missed: Vec<_> = rewrite.ledger().missed(Kind::PatchEmbed).map(|s| s.reason.clone().unwrap()).collect();
            // The merges of PyramidTNT.
            let overlap =
                if name.starts_with("ptnt") { vec!["patches overlap or leave pixels out"; 2] } else { vec![] };
            // Where its first stage is on tokens, the second embedding of UniFormer reads them.
            let model = rewrite.model();
            let of_tokens = nodes(&model.proto, OP).iter().filter(|n| grid(n) != [0; 2]).count();
            let tokens = usize::from(name.starts_with("uniformer") && options.kinds.contains(&Kind::TokenConv));
            if of_tokens != tokens {
                wrong.push(format!("{name}: {of_tokens} embeddings of tokens instead of {tokens}"));
            }
            if found != expected || missed != overlap {
                wrong.push(format!("{name}: embeddings {found:?} instead of {expected:?}; missed {missed:?}"));
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 80, "{seen}");
}

fn grid(node: &NodeProto) -> Vec<i64> {
    node.attribute.iter().find(|a| a.name() == "grid").unwrap().ints.clone()
}

/// An embedding whose parts are nodes to spoil.
struct Parts {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    inputs: Vec<(&'static str, Vec<i64>)>,
    outputs: Vec<(&'static str, Vec<i64>)>,
    open: bool,
}

const BATCH: i64 = 2;
const COLUMNS: i64 = 16;

fn conv(inputs: &[&str], attributes: &[(&str, &[i64])]) -> NodeProto {
    let attribute = attributes.iter().map(|(name, values)| AttributeProto::ints(name, values)).collect();
    NodeProto { attribute, ..common::node("Conv", inputs, &["map"]) }
}

fn norm(x: &str, y: &str) -> NodeProto {
    block::norm(x, "scale", "bias", y, 1e-3)
}

impl Net for Parts {
    const KIND: Kind = Kind::PatchEmbed;
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
        let value = |(name, dims): &(&str, Vec<i64>)| match self.open {
            true => common::open_value(name, "batch", &dims[1..]),
            false => common::value(name, dims),
        };
        graph.input = self.inputs.iter().map(value).collect();
        graph.output = self.outputs.iter().map(value).collect();
        rewritten(proto, options)
    }
}

impl Parts {
    /// A map of 2 by 3 patches of 4 by 4 pixels, as a line of tokens, normalized.
    fn new() -> Self {
        let nodes = vec![
            conv(&["x", "w", "b"], &[("strides", &[4, 4]), ("kernel_shape", &[4, 4])]),
            common::node("Reshape", &["map", "line"], &["l"]),
            transpose("l", &[0, 2, 1], "t"),
            norm("t", "y"),
        ];
        let weights = vec![
            ints("line", &[0, 0, -1]),
            ints("tokens", &[0, -1, COLUMNS]),
            weight("w", &[COLUMNS, 3, 4, 4]),
            weight("b", &[COLUMNS]),
            weight("scale", &[COLUMNS]),
            weight("bias", &[COLUMNS]),
        ];
        Self {
            nodes,
            weights,
            inputs: vec![("x", vec![BATCH, 3, 8, 12])],
            outputs: vec![("y", vec![BATCH, 6, COLUMNS])],
            open: false,
        }
    }

    /// A map of 4 by 6 places, of patches of such sides, that is made of tokens.
    fn of_tokens(channels: i64, patch: [i64; 2]) -> Self {
        let mut net = Self::new();
        let conv = conv(&["m", "w", "b"], &[("strides", &patch), ("kernel_shape", &patch)]);
        let map =
            [common::node("Exp", &["x"], &["e"]), transpose("e", &[0, 2, 1], "c"), reshape("c", "places", "m"), conv];
        net.nodes.splice(..1, map);
        net.inputs[0].1 = vec![BATCH, 24, channels];
        net.outputs[0].1[1] = 4 / patch[0] * (6 / patch[1]);
        net.weights.push(ints("places", &[-1, channels, 4, 6]));
        net.set(weight("w", &[COLUMNS, channels, patch[0], patch[1]]));
        net
    }

    /// The embedding, which says of itself why it reads a map, or none.
    fn reads(&self, why: Option<&str>) -> (Vec<String>, NodeProto) {
        let (model, ledger) = self.fuse();
        let site = ledger.sites.iter().find(|s| s.kind == Kind::PatchEmbed).unwrap();
        assert_eq!(site.status, Status::Fused, "{site:?}");
        let said = site.reason.as_deref();
        assert!(why.map_or(said.is_none(), |why| said.is_some_and(|r| r.contains(why))), "{site:?}");
        (ops(&model), nodes(&model, OP)[0].clone())
    }

    /// The tokens stay a map.
    fn of_map() -> Self {
        let mut net = Self::new();
        net.nodes.splice(1..3, [transpose("map", &[0, 2, 3, 1], "t")]);
        net.outputs[0].1 = vec![BATCH, 2, 3, COLUMNS];
        net
    }

    fn without_norm(mut self) -> Self {
        self.nodes.pop();
        self.nodes.last_mut().unwrap().output[0] = "y".into();
        self
    }

    fn attribute(mut self, attribute: AttributeProto) -> Self {
        self.nodes[0].attribute.retain(|a| a.name != attribute.name);
        self.nodes[0].attribute.push(attribute);
        self
    }

    /// Of a map of other size.
    fn size(mut self, [height, width]: [i64; 2], tokens: i64) -> Self {
        self.inputs[0].1[2..].copy_from_slice(&[height, width]);
        self.outputs[0].1[1] = tokens;
        self
    }

    /// All of it becomes one node, and these after it.
    fn fused(&self, after: &[&str]) -> NodeProto {
        let (model, ledger) = self.fuse();
        let all = &model.graph.as_ref().unwrap().node;
        let ops: Vec<_> = all.iter().map(|n| n.op_type()).collect();
        assert_eq!(ops, [&[OP][..], after].concat(), "{:?}", ledger.sites);
        all[0].clone()
    }

    fn missed_because(&self, reason: &str) {
        let site = self.missed();
        assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
    }

    fn no_site(&self) {
        let (model, ledger) = self.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert!(ledger.sites.iter().all(|s| s.kind != Kind::PatchEmbed), "{:?}", ledger.sites);
    }
}

#[test]
fn the_embedding_is_one_node_with_all_its_attributes() {
    for (net, rank) in [(Parts::new(), 3), (Parts::of_map(), 4)] {
        let node = net.fused(&[]);
        assert_eq!(node.attribute.iter().find(|a| a.name() == "epsilon").unwrap().f, Some(1e-3));
        assert_eq!([int(&node, "bias"), int(&node, "norm"), int(&node, "rank")], [1, 1, rank]);
        assert_eq!(grid(&node), [0, 0]);
        assert_eq!((node.input.len(), node.input[0].as_str()), (5, "x"));
        // The sites of its parts say where they are now: the norm and the embedding.
        let (_, ledger) = net.fuse();
        assert_eq!(ledger.sites.len(), 2);
        for site in &ledger.sites {
            assert_eq!((site.status, site.into.as_deref()), (Status::Fused, node.name.as_deref()), "{site:?}");
        }
        let node = net.without_norm().fused(&[]);
        assert_eq!([int(&node, "norm"), node.input.len() as i64], [0, 3]);
    }
}

#[test]
fn other_spellings_are_the_same_embedding() {
    // No offset; attributes that say what is so without them.
    let mut net = Parts::new();
    net.nodes[0].input.pop();
    assert_eq!(int(&net.fused(&[]), "bias"), 0);
    let net = Parts::new().attribute(AttributeProto::ints("dilations", &[1, 1]));
    net.attribute(AttributeProto::ints("pads", &[0; 4])).attribute(AttributeProto::int("group", 1)).fused(&[]);
    Parts::new().attribute(AttributeProto::string("auto_pad", "VALID")).fused(&[]);
    // Patches fill the map, so that nothing is padded.
    Parts::new().attribute(AttributeProto::string("auto_pad", "SAME_UPPER")).fused(&[]);
    // A map that becomes a line, before the norm or behind it.
    let mut net = Parts::of_map();
    net.before("y", vec![common::node("Reshape", &["t", "tokens"], &["n"])]);
    net.node("y").input[0] = "n".into();
    net.outputs[0].1 = vec![BATCH, 6, COLUMNS];
    net.fused(&[]);
    let mut net = Parts::of_map();
    net.node("y").output[0] = "n".into();
    net.nodes.push(common::node("Reshape", &["n", "tokens"], &["y"]));
    net.outputs[0].1 = vec![BATCH, 6, COLUMNS];
    assert!(net.fuse().0.graph.unwrap().node.iter().all(|n| [OP, "Reshape"].contains(&n.op_type())));
    // Patches that are no squares.
    let mut net = Parts::new().size([8, 12], 24);
    net.set(weight("w", &[COLUMNS, 3, 2, 2]));
    for name in ["strides", "kernel_shape"] {
        net = net.attribute(AttributeProto::ints(name, &[2, 2]));
    }
    net.fused(&[]);
    net.set(weight("w", &[COLUMNS, 3, 1, 6]));
    net.outputs[0].1[1] = 16;
    for name in ["strides", "kernel_shape"] {
        net = net.attribute(AttributeProto::ints(name, &[1, 6]));
    }
    net.fused(&[]);
}

#[test]
fn pixels_that_fill_no_patch_are_left_out() {
    for size in [[9, 12], [8, 15], [11, 14]] {
        Parts::new().size(size, 6).fused(&[]);
    }
}

#[test]
fn an_open_batch_is_the_same_embedding() {
    for mut net in [Parts::new(), Parts::of_map(), Parts::new().without_norm()] {
        net.open = true;
        net.fused(&[]);
    }
}

/// Of a model in float16 with a float32 image, the cast is left out.
#[test]
fn the_image_may_be_of_another_type() {
    let cast = |x: &str, to: i64, y: &str| NodeProto {
        attribute: vec![AttributeProto::int("to", to)],
        ..common::node("Cast", &[x], &[y])
    };
    let mut net = Parts::new();
    for name in ["w", "b", "scale", "bias"] {
        let values = net.weights.iter().find(|w| w.name() == name).unwrap().clone();
        let halves: Vec<_> = values.to_f64_vec().unwrap().into_iter().map(half::f16::from_f64).collect();
        net.set(TensorProto::from_f16(name, &values.dims, &halves));
    }
    net.nodes.insert(0, cast("x", 10, "h"));
    net.node("map").input[0] = "h".into();
    net.node("y").output[0] = "n".into();
    net.nodes.push(cast("n", 1, "y"));
    let rewrite = net.rewrite(&with_embed());
    let options = verify::Options { rtol: Some(1e-2), ..Default::default() };
    rewrite.compare(&options).unwrap().check().unwrap();
    let ops = |model: &ModelProto| model.graph.as_ref().unwrap().node.iter().map(|n| n.op_type().to_owned()).collect();
    let found: Vec<String> = ops(&rewrite.model().proto);
    assert_eq!(found, [OP, "Cast"], "{:?}", rewrite.ledger().sites);
    assert_eq!(nodes(&rewrite.model().proto, OP)[0].input[0], "x");
}

/// The conversion to float16 leaves the image to the op, where the op's weights change type.
#[test]
fn the_image_stays_float32_in_a_float16_graph() {
    let rewrite = Parts::new().rewrite(&with_embed());
    let mut model = rewrite.model().clone();
    let account = fp16::convert(&mut model.proto, None, &fp16::Options::default()).unwrap();
    assert!(account.converted && account.islands.is_empty(), "{account:?}");
    let found: Vec<&str> = model.proto.graph.as_ref().unwrap().node.iter().map(|n| n.op_type()).collect();
    assert_eq!(found, [OP, "Cast"]);
    assert_eq!(nodes(&model.proto, OP)[0].input[0], "x");
    let types = |model: &ModelProto| {
        let weights = &model.graph.as_ref().unwrap().initializer;
        weights.iter().map(|w| w.data_type.unwrap()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(types(&model.proto).into_iter().collect::<Vec<_>>(), [10]);
    let options = verify::Options { rtol: Some(1e-2), ..Default::default() };
    let (float, half) = (rewrite.model(), &model);
    verify::compare(
        Source::Model { name: "float", model: float },
        Source::Model { name: "half", model: half },
        &options,
    )
    .unwrap()
    .check()
    .unwrap();
}

#[test]
fn tokens_are_read_where_they_lie() {
    for channels in [8, 24] {
        for patch in [[2, 2], [4, 4], [3, 2], [1, 5], [4, 6]] {
            let (ops, node) = Parts::of_tokens(channels, patch).reads(None);
            assert_eq!((ops, grid(&node)), (vec!["Exp".into(), OP.into()], vec![4, 6]), "{channels} {patch:?}");
            assert_eq!([int(&node, "bias"), int(&node, "norm"), int(&node, "rank")], [1, 1, 3]);
        }
    }
    let all = ["Exp".to_owned(), OP.to_owned()];
    let mut net = Parts::of_tokens(8, [2, 2]);
    net.open = true;
    assert_eq!(net.reads(None).0, all);
    assert_eq!(Parts::of_tokens(8, [2, 2]).without_norm().reads(None).0, all);
    // Rows made a map in another way, and kept as one behind it.
    let mut net = Parts::of_tokens(8, [2, 2]);
    net.nodes.splice(1..3, [reshape("e", "places", "g"), transpose("g", &[0, 3, 1, 2], "m")]);
    net.set(ints("places", &[-1, 4, 6, 8]));
    assert_eq!(net.reads(None).0, all);
    let mut net = Parts::of_tokens(8, [2, 2]);
    net.nodes.splice(4..6, [transpose("map", &[0, 2, 3, 1], "t")]);
    net.outputs[0].1 = vec![BATCH, 2, 3, COLUMNS];
    let (ops, node) = net.reads(None);
    assert_eq!((ops, int(&node, "rank")), (all.into(), 4));
}

/// The Transpose is left to what else reads the map.
#[test]
fn tokens_are_read_beside_their_map() {
    let mut net = Parts::of_tokens(8, [2, 2]);
    net.nodes.push(common::node("Sin", &["m"], &["s"]));
    net.outputs.push(("s", vec![BATCH, 8, 4, 6]));
    let (ops, node) = net.reads(None);
    assert_eq!(ops.iter().filter(|op| *op == "Transpose").count(), 1);
    assert_eq!((node.input[0].as_str(), grid(&node)), ("e", vec![4, 6]));
}

#[test]
fn other_maps_are_read_as_such() {
    let (ops, node) = Parts::of_tokens(12, [2, 2]).reads(Some("whose channels are no whole accesses"));
    assert_eq!((ops.len(), grid(&node)), (4, vec![0, 0]));
    let of_map = |net: Parts, what: &str| assert_eq!(grid(&net.reads(None).1), [0, 0], "{what}");
    // No tokens: channels first already, or another order of the places.
    let mut net = Parts::of_tokens(8, [2, 2]);
    net.nodes.remove(1);
    net.node("m").input[0] = "e".into();
    of_map(net, "channels first");
    let mut net = Parts::of_tokens(8, [2, 2]);
    net.nodes.splice(1..3, [reshape("e", "places", "g"), transpose("g", &[0, 3, 2, 1], "m")]);
    net.set(ints("places", &[-1, 6, 4, 8]));
    of_map(net, "columns first");
    // Computed of the map.
    let mut net = Parts::of_tokens(8, [2, 2]);
    net.before("map", vec![common::node("Tanh", &["m"], &["n"])]);
    net.node("map").input[0] = "n".into();
    of_map(net, "a computed map");
    // Left by name.
    let options = Options { skip: ["patch-embed-tokens".into()].into(), ..with_embed() };
    let rewrite = Parts::of_tokens(8, [2, 2]).rewrite(&options);
    assert_eq!(grid(nodes(&rewrite.model().proto, OP)[0]), [0, 0]);
}

/// An image may be float32 where all else is float16; tokens may not.
#[test]
fn tokens_of_another_type_are_read_as_a_map() {
    let cast = |x: &str, to: i64, y: &str| NodeProto {
        attribute: vec![AttributeProto::int("to", to)],
        ..common::node("Cast", &[x], &[y])
    };
    let mut net = Parts::of_tokens(8, [2, 2]);
    for name in ["w", "b", "scale", "bias"] {
        let values = net.weights.iter().find(|w| w.name() == name).unwrap().clone();
        let halves: Vec<_> = values.to_f64_vec().unwrap().into_iter().map(half::f16::from_f64).collect();
        net.set(TensorProto::from_f16(name, &values.dims, &halves));
    }
    net.before("map", vec![cast("m", 10, "h")]);
    net.node("map").input[0] = "h".into();
    net.node("y").output[0] = "n".into();
    net.nodes.push(cast("n", 1, "y"));
    let rewrite = net.rewrite(&with_embed());
    assert_eq!(grid(nodes(&rewrite.model().proto, OP)[0]), [0, 0]);
    let site = rewrite.ledger().sites.iter().find(|s| s.kind == Kind::PatchEmbed).unwrap();
    assert!(site.reason.as_deref().is_some_and(|r| r.contains("which are of another type")), "{site:?}");
    // Converted as a whole, tokens are float16 as all else.
    let rewrite = Parts::of_tokens(8, [2, 2]).rewrite(&with_embed());
    let mut model = rewrite.model().clone();
    fp16::convert(&mut model.proto, None, &fp16::Options::default()).unwrap();
    assert_eq!(ops(&model.proto).iter().filter(|op| *op == "Cast").count(), 2, "{:?}", ops(&model.proto));
    let options = verify::Options { rtol: Some(1e-2), ..Default::default() };
    let (float, half) = (rewrite.model(), &model);
    let of = |name, model| Source::Model { name, model };
    verify::compare(of("float", float), of("half", half), &options).unwrap().check().unwrap();
}

#[test]
fn other_convolutions_are_missed() {
    let stride = |by: i64| AttributeProto::ints("strides", &[by, by]);
    Parts::new().size([8, 12], 15).attribute(stride(2)).missed_because("patches overlap or leave pixels out");
    Parts::new()
        .size([8, 12], 6)
        .attribute(stride(5))
        .size([9, 14], 6)
        .missed_because("patches overlap or leave pixels out");
    let padded = Parts::new().attribute(AttributeProto::ints("pads", &[0, 2, 0, 2]));
    padded.size([8, 12], 8).missed_because("the map is padded");
    let padded = Parts::new().attribute(AttributeProto::string("auto_pad", "SAME_UPPER"));
    padded.size([6, 11], 6).missed_because("the map is padded");
    let dilated = Parts::new().attribute(AttributeProto::ints("dilations", &[2, 1]));
    dilated.size([11, 12], 6).missed_because("the convolution is dilated");
    let mut grouped = Parts::new().attribute(AttributeProto::int("group", 2));
    grouped.inputs[0].1[1] = 6;
    grouped.missed_because("the convolution is in groups");
}

#[test]
fn operands_that_are_computed_are_missed() {
    for (slot, dims) in [(1, vec![COLUMNS, 3, 4, 4]), (2, vec![COLUMNS])] {
        let mut net = Parts::new();
        net.inputs.push(("z", dims));
        net.nodes[0].input[slot] = "z".into();
        net.missed_because("an operand of the convolution is no weight");
    }
}

#[test]
fn maps_that_are_read_otherwise_are_missed() {
    for (value, dims) in [("map", vec![BATCH, COLUMNS, 2, 3]), ("l", vec![BATCH, COLUMNS, 6])] {
        let mut net = Parts::new();
        net.outputs.push((value, dims));
        net.missed_because("an interior value is used otherwise too");
    }
    // Tokens may be read by others than the norm, which then stays.
    let mut net = Parts::new();
    net.outputs.push(("t", vec![BATCH, 6, COLUMNS]));
    assert_eq!(int(&net.fused(&["TrtOptLayerNorm"]), "norm"), 0);
}

#[test]
fn other_norms_stay_behind_it() {
    let mut net = Parts::new();
    net.node("y").attribute[0] = AttributeProto::int("axis", -2);
    for name in ["scale", "bias"] {
        net.set(weight(name, &[6, COLUMNS]));
    }
    assert_eq!(int(&net.fused(&["TrtOptLayerNorm"]), "norm"), 0);
}

#[test]
fn maps_that_become_no_tokens_are_missed() {
    // Two columns a channel.
    let mut net = Parts::new();
    net.set(ints("line", &[BATCH, COLUMNS / 2, 12]));
    net.outputs[0].1 = vec![BATCH, 12, COLUMNS / 2];
    for name in ["scale", "bias"] {
        net.set(weight(name, &[COLUMNS / 2]));
    }
    net.missed_because("the map is regrouped otherwise than to tokens");
    // Another op between.
    let mut net = Parts::new();
    net.before("l", vec![common::node("Relu", &["map"], &["r"])]);
    net.node("l").input[0] = "r".into();
    net.no_site();
    // Places the other way round.
    let mut net = Parts::of_map();
    net.node("t").attribute[0] = AttributeProto::ints("perm", &[0, 3, 2, 1]);
    net.outputs[0].1 = vec![BATCH, 3, 2, COLUMNS];
    net.no_site();
    // One pixel a patch is a product already.
    let mut net = Parts::new().size([2, 3], 6);
    net.set(weight("w", &[COLUMNS, 3, 1, 1]));
    for name in ["strides", "kernel_shape"] {
        net = net.attribute(AttributeProto::ints(name, &[1, 1]));
    }
    net.no_site();
}

/// Where nothing but the transposition would be saved, which comes back.
#[test]
fn tokens_that_become_a_map_again_are_missed_without_a_norm() {
    let back = |norm: bool| {
        let mut net = Parts::of_map();
        net.node("y").output[0] = "n".into();
        net.nodes.extend([common::node("Reshape", &["n", "tokens"], &["m"]), transpose("m", &[0, 2, 1], "y")]);
        net.outputs[0].1 = vec![BATCH, COLUMNS, 6];
        if !norm {
            net.nodes.retain(|n| n.output[0] != "n");
            net.node("m").input[0] = "t".into();
        }
        net
    };
    assert_eq!(int(&back(true).fused(&["Reshape", "Transpose"]), "norm"), 1);
    back(false).missed_because("its tokens become a map again");
}

#[test]
fn more_than_the_plugin_takes_is_missed() {
    let mut net = Parts::new().size([80, 240], 3);
    net.set(weight("w", &[COLUMNS, 3, 80, 80]));
    for name in ["strides", "kernel_shape"] {
        net = net.attribute(AttributeProto::ints(name, &[80, 80]));
    }
    net.missed_because("the patches are too large");
}

/// Patches of 4 by 4 by 3 are taken at any number of rows, 2 * 2048 * 512 * 120 = 0.252 GFLOP of larger ones are not.
#[test]
fn embeddings_above_the_size_where_they_pay_are_left_to_their_parts() {
    for (channels, columns, fused) in [(32, 119, true), (32, 120, false), (3, 120, true)] {
        let mut net = Parts::new();
        net.inputs[0].1 = vec![1, channels, 256, 128];
        net.outputs[0].1 = vec![1, 2048, columns];
        net.set(weight("w", &[columns, channels, 4, 4]));
        for name in ["b", "scale", "bias"] {
            net.set(weight(name, &[columns]));
        }
        made_up_to_its_size(
            &net,
            fused,
            [
                "at most 0.250 GFLOP in its product, or 48 values a patch and 128 columns",
                "0.252 GFLOP, rows [1, 64, 32]",
            ],
        );
    }
}

#[test]
fn embeddings_are_not_fused_unless_asked_for_and_can_be_left() {
    only_if_asked_for(&Parts::new(), "patch-embed");
}

#[test]
fn the_cost_of_an_embedding_is_less_than_that_of_its_parts() {
    let [parts, block] = costs_less_than_its_parts(&Parts::new());
    assert_eq!(block, parts);
}
