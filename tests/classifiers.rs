//! Classifiers as one op: every export of a model that ends in one has the node and computes the same, so does every spelling, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{
    Block, Net, Parts, comparison, costs_less_than_its_parts, int, ints, made_up_to_its_size, nodes, norm,
    only_if_asked_for, rewritten, weight, with,
};
use common::{ops, reshape, transpose};
use trt_opt::onnx::proto::type_proto::Value;
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use trt_opt::rewrite::{Kind, Options, Status, fp16};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptClassifier";
const BATCH: i64 = 2;
const TOKENS: i64 = 6;
const CHANNELS: i64 = 8;
const CLASSES: i64 = 5;

/// Alone, and with all other kinds. Three exporters' dynamic means are gathers of their own, which are proved by no rule.
#[test]
fn exports_have_theirs_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let family = name.split('_').next().unwrap();
        if family == "spelling" {
            continue;
        }
        let gathered = name.ends_with("dy18_dyn") && (name.contains("torchvision") || name.contains("original"));
        let attributes = match family {
            "vit" | "tnt" => (0, 1),
            "uniformer" => (-1, 0),
            _ => (-1, 1),
        };
        let both = ["ts17", "dy20", "dyn", "fp16"].iter().any(|end| name.ends_with(end));
        for kinds in [&[Kind::Classifier][..], &Kind::ALL].into_iter().take(1 + usize::from(both)) {
            let rewrite = testing::rewrite_with(&path, &with(kinds)).unwrap();
            let (found, count) = (nodes(&rewrite.model().proto, OP), rewrite.ledger().count(Kind::Classifier));
            match found[..] {
                [] if gathered && count.total == 0 => {}
                [node] if [count.total, count.fused] == [1; 2] && !gathered => {
                    seen += 1;
                    let y = &rewrite.model().proto.graph.as_ref().unwrap().output[0];
                    if (int(node, "token"), int(node, "norm")) != attributes || y.name() != node.output[0] {
                        wrong.push(format!("{name}: {node:?}"));
                    }
                    let into = rewrite.ledger().sites.iter().filter(|s| s.into == node.name).map(|s| s.kind);
                    let (into, (_, norm)) = (into.collect::<Vec<_>>(), attributes);
                    if into != [Kind::LayerNorm, Kind::Classifier][usize::from(norm == 0)..] {
                        wrong.push(format!("{name}: {into:?}"));
                    }
                }
                _ => wrong.push(format!("{name}: {} nodes, {count:?}", found.len())),
            }
            let options = verify::Options {
                batch: name.contains("baked").then_some(2).or(comparison(&name).batch),
                ..comparison(&name)
            };
            if let Err(error) = rewrite.compare(&options).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 100, "{seen}");
}

struct Head;

impl Block for Head {
    const KIND: Kind = Kind::Classifier;
    const OP: &'static str = OP;
}

fn with_int(mut node: NodeProto, name: &str, value: i64) -> NodeProto {
    node.attribute.push(AttributeProto::int(name, value));
    node
}

fn mean(x: &str, axes: &[i64], y: &str) -> NodeProto {
    let mut node = with_int(common::node("ReduceMean", &[x], &[y]), "keepdims", 0);
    node.attribute.push(AttributeProto::ints("axes", axes));
    node
}

fn gather(x: &str, index: &str, y: &str) -> NodeProto {
    with_int(common::node("Gather", &[x, index], &[y]), "axis", 1)
}

fn scalar(name: &str, value: i64) -> TensorProto {
    TensorProto::from_i64(name, &[], &[value])
}

/// The value `p` of `nodes`, times weights.
fn of(nodes: Vec<NodeProto>) -> Parts<Head> {
    of_sizes(nodes, [BATCH, TOKENS, CHANNELS, CLASSES])
}

fn of_sizes(mut nodes: Vec<NodeProto>, [images, tokens, channels, classes]: [i64; 4]) -> Parts<Head> {
    nodes.push(with_int(common::node("Gemm", &["p", "w", "b"], &["y"]), "transB", 1));
    let weights = vec![
        weight("scale", &[channels]),
        weight("bias", &[channels]),
        weight("w", &[classes, channels]),
        weight("b", &[classes]),
        scalar("first", 0),
        ints("shape", &[images, channels]),
    ];
    let [inputs, outputs] =
        [("x", vec![images, tokens, channels]), ("y", vec![images, classes])].map(|value| vec![value]);
    Parts { nodes, weights, inputs, outputs, block: Head }
}

fn pooled() -> Parts<Head> {
    of(vec![norm("x", "scale", "bias", "n", 1e-3), mean("n", &[1], "p")])
}

fn token() -> Parts<Head> {
    of(vec![norm("x", "scale", "bias", "n", 1e-3), gather("n", "first", "p")])
}

/// As in UniFormer, where a batch norm is in the weights.
fn plain() -> Parts<Head> {
    of(vec![common::node("Exp", &["x"], &["e"]), transpose("e", &[0, 2, 1], "t"), mean("t", &[-1], "p")])
}

/// The one node of a net that has one classifier, besides these ops; it computes the same.
fn whole(net: &Parts<Head>, besides: &[&str]) -> NodeProto {
    let (model, ledger) = net.fuse();
    let count = ledger.count(Kind::Classifier);
    assert_eq!((count.total, count.fused), (1, 1), "{:?}", ledger.sites);
    let (found, left): (Vec<_>, Vec<_>) = ops(&model).into_iter().partition(|op| op == OP);
    assert_eq!((found.len(), left), (1, besides.iter().map(|op| (*op).to_owned()).collect()));
    let node = nodes(&model, OP)[0].clone();
    let into = ledger.sites.iter().filter(|site| site.kind != Kind::Classifier);
    assert!(into.into_iter().all(|site| site.status == Status::Fused && site.into == node.name), "{:?}", ledger.sites);
    node
}

/// The one site is missed for this reason, and the model stays what it is without such nodes.
fn missed_because(net: &Parts<Head>, reason: &str, [expected, found]: [&str; 2]) {
    let site = net.missed();
    assert!(site.reason.as_deref().is_some_and(|r| r.contains(reason)), "expected {reason}, found {site:?}");
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    assert!(of(&site.expected).contains(expected) && of(&site.found).contains(found), "{site:?}");
    let [left, without] = [with(&[Kind::Classifier]), Options::default()].map(|o| net.rewrite(&o));
    assert_eq!(ops(&left.model().proto), ops(&without.model().proto));
}

fn no_site(net: &Parts<Head>) {
    let (model, ledger) = net.fuse();
    assert!(nodes(&model, OP).is_empty());
    assert_eq!(ledger.count(Kind::Classifier).total, 0, "{:?}", ledger.sites);
}

#[test]
fn norm_mean_and_product_are_one_node_with_all_attributes() {
    let float = |node: &NodeProto| node.attribute.iter().find(|a| a.name() == "epsilon").unwrap().f;
    let found = |node: &NodeProto| ["norm", "residual", "token"].map(|name| int(node, name));
    let node = whole(&pooled(), &[]);
    assert_eq!((found(&node), float(&node), node.input.len()), ([1, 0, -1], Some(1e-3), 3));
    let node = whole(&token(), &[]);
    assert_eq!((found(&node), float(&node), node.input.len()), ([1, 0, 0], Some(1e-3), 3));
    let node = whole(&plain(), &["Exp"]);
    assert_eq!((found(&node), float(&node), node.input.len()), ([0, 0, -1], Some(0.0), 3));
    // The product is what the site is called after.
    let (_, ledger) = pooled().fuse();
    let sites: Vec<_> = ledger.sites.iter().map(|s| (s.kind, s.node.as_str())).collect();
    assert_eq!(sites, [(Kind::LayerNorm, "LayerNormalization_n"), (Kind::Classifier, "Gemm_y")]);
    for net in [pooled(), token(), plain()] {
        let [parts, node] = costs_less_than_its_parts(&net);
        assert_eq!(parts, node);
        only_if_asked_for(&net, "classifier");
    }
}

#[test]
fn an_add_before_the_norm_goes_into_it() {
    for mut net in [pooled(), token()] {
        let shape = net.inputs[0].1.clone();
        net.inputs = vec![("a", shape.clone()), ("c", shape.clone())];
        net.nodes.insert(0, common::node("Add", &["a", "c"], &["x"]));
        let node = whole(&net, &[]);
        assert_eq!((int(&node, "residual"), &node.input[..2]), (1, &["a".to_string(), "c".into()][..]));
        // Where the sum is given, the norm stays, with its mean for the rule.
        net.outputs.push(("x", shape));
        if net.nodes[2].op_type() == "Gather" {
            assert!(net.missed().reason.is_some_and(|reason| reason.contains("is a graph output")));
        } else {
            let (model, _) = net.fuse();
            assert_eq!(ops(&model), ["TrtOptLayerNorm", OP]);
        }
    }
}

#[test]
fn other_spellings_of_the_product_are_the_same() {
    let gemm = |inputs: &[&str], attributes: Vec<AttributeProto>| {
        let mut net = pooled();
        *net.node("y") = NodeProto { attribute: attributes, ..common::node("Gemm", inputs, &["y"]) };
        net
    };
    let untransposed = |mut net: Parts<Head>| {
        net.set(weight("w", &[CHANNELS, CLASSES]));
        net
    };
    whole(&untransposed(gemm(&["p", "w", "b"], vec![])), &[]);
    let factors = vec![AttributeProto::float("alpha", 0.5), AttributeProto::float("beta", 3.0)];
    whole(&untransposed(gemm(&["p", "w", "b"], factors)), &[]);
    let mut net = gemm(&["p", "w"], vec![AttributeProto::int("transB", 1)]);
    whole(&net, &[]);
    for dims in [vec![1, CLASSES], vec![1], vec![]] {
        net = pooled();
        net.set(weight("b", &dims));
        whole(&net, &[]);
    }
    for (offset, dims) in [("b", vec![CLASSES]), ("b", vec![1, CLASSES]), ("", vec![])] {
        let mut net = untransposed(pooled());
        net.set(weight("b", &dims));
        net.nodes.pop();
        net.nodes.push(common::node("MatMul", &["p", "w"], &[if offset.is_empty() { "y" } else { "q" }]));
        if !offset.is_empty() {
            net.nodes.push(common::node("Add", &["b", "q"], &["y"]));
        }
        whole(&net, &[]);
    }
}

#[test]
fn other_spellings_of_the_mean_are_the_same() {
    let norm = || norm("x", "scale", "bias", "n", 1e-3);
    let turned = || transpose("n", &[0, 2, 1], "t");
    let pool = || common::node("GlobalAveragePool", &["t"], &["k"]);
    whole(&of(vec![norm(), turned(), mean("t", &[2], "p")]), &[]);
    whole(&of(vec![norm(), turned(), pool(), with_int(common::node("Flatten", &["k"], &["p"]), "axis", 1)]), &[]);
    whole(&of(vec![norm(), turned(), pool(), reshape("k", "shape", "p")]), &[]);
    let mut net = of(vec![norm(), turned(), reshape("t", "map", "m"), mean("m", &[2, 3], "p")]);
    net.set(ints("map", &[BATCH, CHANNELS, 2, 3]));
    whole(&net, &[]);
    // Without a norm, of a map whose channels are last.
    let mut net = of(vec![common::node("Exp", &["x"], &["e"]), mean("e", &[1, 2], "p")]);
    net.inputs[0].1 = vec![BATCH, 2, 3, CHANNELS];
    whole(&net, &["Exp"]);
    // The norm that another rule leaves apart.
    let mut options = with(&[Kind::Classifier]);
    options.skip.insert("norm-pool".into());
    let rewrite = pooled().rewrite(&options);
    rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
    assert_eq!(ops(&rewrite.model().proto), ["TrtOptLayerNorm", OP]);
    assert_eq!(int(nodes(&rewrite.model().proto, OP)[0], "norm"), 0);
}

#[test]
fn other_spellings_of_the_token_are_the_same() {
    let norm = || norm("x", "scale", "bias", "n", 1e-3);
    for last in [3, TOKENS - 1, -1] {
        let mut net = token();
        net.set(scalar("first", last));
        assert_eq!(int(&whole(&net, &[]), "token"), last.rem_euclid(TOKENS));
    }
    let slice = || common::node("Slice", &["n", "begin", "end", "axis"], &["s"]);
    let mut net = of(vec![norm(), slice(), reshape("s", "shape", "p")]);
    net.weights.extend([ints("begin", &[2]), ints("end", &[3]), ints("axis", &[1])]);
    assert_eq!(int(&whole(&net, &[]), "token"), 2);
    net.nodes[2] = common::node("Squeeze", &["s", "axis"], &["p"]);
    assert_eq!(int(&whole(&net, &[]), "token"), 2);
    // Of a map.
    let mut net = of(vec![norm(), reshape("n", "line", "l"), gather("l", "first", "p")]);
    net.inputs[0].1 = vec![BATCH, 2, 3, CHANNELS];
    net.set(ints("line", &[BATCH, TOKENS, CHANNELS]));
    net.set(scalar("first", 4));
    assert_eq!(int(&whole(&net, &[]), "token"), 4);
}

#[test]
fn what_is_read_otherwise_says_why() {
    let reader = |net: &mut Parts<Head>, value: &str, dims: &[i64]| {
        net.nodes.push(common::node("Cos", &[value], &["z"]));
        net.outputs.push(("z", dims.to_vec()));
    };
    for make in [pooled, token, plain] {
        let mut net = make();
        reader(&mut net, "p", &[BATCH, CHANNELS]);
        missed_because(&net, "is also used by 'Cos_z'", ["no use outside the pattern", ""]);
        let mut net = make();
        net.outputs.push(("p", vec![BATCH, CHANNELS]));
        missed_because(&net, "is a graph output", ["an interior value", ""]);
    }
    let mut net = token();
    reader(&mut net, "n", &[BATCH, TOKENS, CHANNELS]);
    missed_because(&net, "is also used by 'Cos_z'", ["no use outside the pattern", ""]);
    // The offset's sum has two readers, which is none of its business; a product that has two has no offset of its own.
    let mut net = pooled();
    reader(&mut net, "y", &[BATCH, CLASSES]);
    whole(&net, &["Cos"]);
}

#[test]
fn several_heads_say_why() {
    for make in [pooled, token, plain] {
        let mut net = make();
        net.nodes.push(with_int(common::node("Gemm", &["p", "w", "b"], &["z"]), "transB", 1));
        net.outputs.push(("z", vec![BATCH, CLASSES]));
        // Another weight: equal nodes become one.
        net.input("z", 1, "w2");
        net.weights.push(weight("w2", &[CLASSES, CHANNELS]));
        let (model, ledger) = net.fuse();
        assert!(nodes(&model, OP).is_empty());
        let missed: Vec<_> = ledger.missed(Kind::Classifier).map(|s| s.reason.clone().unwrap()).collect();
        assert_eq!(missed.len(), 2);
        assert!(missed.iter().all(|reason| reason.contains("is also used by 'Gemm_")), "{missed:?}");
    }
}

#[test]
fn means_of_other_axes_and_of_some_tokens_say_why() {
    // The channels, as many as there are tokens.
    let square = |nodes| of_sizes(nodes, [BATCH, CHANNELS, CHANNELS, CLASSES]);
    let net = square(vec![norm("x", "scale", "bias", "n", 1e-3), mean("n", &[2], "p")]);
    missed_because(&net, "it is not over the tokens, or not over them alone", ["a mean for each image", "axes [2]"]);
    let net = square(vec![common::node("Exp", &["x"], &["e"]), mean("e", &[2], "p")]);
    missed_because(&net, "it is not over the tokens, or not over them alone", ["a mean for each image", "axes [2]"]);
    // The images.
    let mut net = of(vec![common::node("Exp", &["x"], &["e"]), mean("e", &[0], "p")]);
    net.outputs[0].1 = vec![TOKENS, CLASSES];
    missed_because(&net, "it is not over the tokens, or not over them alone", ["a mean for each image", "axes [0]"]);
    let mut net = of(vec![
        common::node("Exp", &["x"], &["e"]),
        common::node("Slice", &["e", "one", "end", "one"], &["s"]),
        mean("s", &[1], "p"),
    ]);
    net.weights.extend([ints("one", &[1]), ints("end", &[i64::MAX])]);
    missed_because(&net, "it is over some of the tokens only", ["[2, 6, 8]", "[2, 5, 8]"]);
    let mut net = of(vec![
        common::node("Exp", &["x"], &["e"]),
        common::node("Sin", &["x"], &["i"]),
        with_int(common::node("Concat", &["e", "i"], &["s"]), "axis", 1),
        mean("s", &[1], "p"),
    ]);
    missed_because(&net, "its mean is of several tensors", ["", ""]);
    // Channels cut up.
    net = of(vec![common::node("Exp", &["x"], &["e"]), mean("e", &[1], "k"), reshape("k", "halves", "p")]);
    net.set(ints("halves", &[2 * BATCH, CHANNELS / 2]));
    net.set(weight("w", &[CLASSES, CHANNELS / 2]));
    net.outputs[0].1 = vec![2 * BATCH, CLASSES];
    let site = net.missed();
    assert!(site.reason.is_some(), "{site:?}");
}

#[test]
fn tokens_that_are_not_the_same_of_each_image_say_why() {
    let mut net = of(vec![
        norm("x", "scale", "bias", "n", 1e-3),
        reshape("n", "line", "l"),
        with_int(common::node("Gather", &["l", "two"], &["p"]), "axis", 0),
    ]);
    net.weights.extend([ints("line", &[BATCH * TOKENS, CHANNELS]), ints("two", &[0, TOKENS + 1])]);
    missed_because(&net, "its rows are not the same token of each image", ["a token of [2, 6, 8]", ""]);
    // All rows of one image.
    net.set(ints("two", &[0, 1]));
    missed_because(&net, "its rows are not the same token of each image", ["a token of [2, 6, 8]", ""]);
}

#[test]
fn other_products_are_no_sites() {
    // Of all tokens of a norm, of no norm's token, and with a computed operand.
    let mut net = of(vec![norm("x", "scale", "bias", "n", 1e-3), reshape("n", "line", "p")]);
    net.set(ints("line", &[-1, CHANNELS]));
    net.outputs[0].1 = vec![BATCH * TOKENS, CLASSES];
    no_site(&net);
    no_site(&of(vec![common::node("Exp", &["x"], &["e"]), gather("e", "first", "p")]));
    let mut net = pooled();
    net.weights.retain(|w| w.name() != "w");
    net.inputs.push(("w", vec![CLASSES, CHANNELS]));
    no_site(&net);
    let mut net =
        of(vec![norm("x", "scale", "bias", "n", 1e-3), mean("n", &[1], "k"), common::node("Tanh", &["k"], &["p"])]);
    no_site(&net);
    net.nodes[2] = common::node("Identity", &["k"], &["p"]);
    whole(&net, &[]);
}

#[test]
fn computed_parameters_say_why() {
    for name in ["scale", "bias"] {
        let mut net = pooled();
        net.weights.retain(|w| w.name() != name);
        net.inputs.push((name, vec![CHANNELS]));
        missed_because(&net, "a weight that has to be known is computed", ["a constant", "a computed value"]);
    }
    let mut net = pooled();
    net.weights.retain(|w| w.name() != "b");
    net.inputs.push(("b", vec![CLASSES]));
    missed_because(&net, "a weight that has to be known is computed", ["a constant", "a computed value"]);
    let mut net = pooled();
    net.set(weight("b", &[BATCH, 1]));
    missed_because(&net, "its offset is not one value a class", ["[5]", "[2, 1]"]);
    let mut net = of_sizes(
        vec![common::node("Exp", &["x"], &["e"]), mean("e", &[1], "p")],
        [CHANNELS, TOKENS, CHANNELS, CLASSES],
    );
    net.node("y").attribute.push(AttributeProto::int("transA", 1));
    missed_because(&net, "its rows are transposed", ["transA = 0", "transA = 1"]);
}

#[test]
fn nodes_are_made_up_to_the_size_where_they_pay() {
    let of = |sizes| of_sizes(vec![norm("x", "scale", "bias", "n", 1e-3), mean("n", &[1], "p")], sizes);
    for (images, made) in [(8, true), (11, true), (12, false)] {
        let expected = "at most 0.017 GFLOP in its product, an open batch counted as 1";
        made_up_to_its_size(&of([images, 4, 768, 1000]), made, [expected, "0.019 GFLOP, rows [12]"]);
    }
    let most = "at most 8192 channels and 1048576 classes";
    missed_because(&of([1, 2, 8200, 2]), "the classifier is too large", [most, "8200, 2"]);
    let reason = "its mean is over so many tokens that a kernel of its own is faster";
    missed_because(&of([1, 257, 1024, 2]), reason, ["at most 262144 values an image", "257 tokens of 1024"]);
    whole(&of([1, 256, 1024, 2]), &[]);
    // A token is a token.
    let net = of_sizes(vec![norm("x", "scale", "bias", "n", 1e-3), gather("n", "first", "p")], [1, 257, 1024, 2]);
    whole(&net, &[]);
}

/// The net in float16, with a cast of its result to float32 where `wide`.
fn in_half(net: &Parts<Head>, wide: bool) -> ModelProto {
    let half = |value: &mut ValueInfoProto| {
        if let Some(Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            tensor.elem_type = Some(10);
        }
    };
    let to_half = |w: &TensorProto| {
        if w.data_type() != 1 {
            return w.clone();
        }
        let values: Vec<half::f16> = w.to_f64_vec().unwrap().iter().map(|&v| half::f16::from_f64(v)).collect();
        TensorProto::from_f16(w.name(), &w.dims, &values)
    };
    let mut nodes = net.nodes.clone();
    if wide {
        nodes.last_mut().unwrap().output[0] = "q".into();
        nodes.push(with_int(common::node("Cast", &["q"], &["y"]), "to", 1));
    }
    let mut proto = common::model(nodes, net.weights.iter().map(to_half).collect());
    let graph = proto.graph.as_mut().unwrap();
    graph.input = net.inputs.iter().map(|(name, dims)| common::value(name, dims)).collect();
    graph.output = net.outputs.iter().map(|(name, dims)| common::value(name, dims)).collect();
    graph.input.iter_mut().for_each(half);
    if !wide {
        graph.output.iter_mut().for_each(half);
    }
    proto
}

fn offset_type(model: &ModelProto) -> i32 {
    let b = nodes(model, OP)[0].input.last().unwrap().clone();
    model.graph.as_ref().unwrap().initializer.iter().find(|w| w.name() == b).unwrap().data_type()
}

#[test]
fn a_cast_of_the_result_to_float32_is_part_of_it() {
    for net in [pooled(), token(), plain()] {
        for (wide, dtype) in [(true, 1), (false, 10)] {
            let rewrite = rewritten(in_half(&net, wide), &with(&[Kind::Classifier]));
            rewrite.compare(&comparison("fp16")).unwrap().check().unwrap();
            let model = &rewrite.model().proto;
            assert_eq!((nodes(model, OP).len(), nodes(model, "Cast").len(), offset_type(model)), (1, 0, dtype));
        }
    }
    // A mean in float32 between casts is that of the tokens; weights in float32 are not theirs.
    let to = |x: &str, to: i64, y: &str| with_int(common::node("Cast", &[x], &[y]), "to", to);
    let exp = || common::node("Exp", &["x"], &["e"]);
    let mut net = of(vec![exp(), to("e", 1, "f"), mean("f", &[1], "k"), to("k", 10, "p")]);
    let rewrite = rewritten(in_half(&net, false), &with(&[Kind::Classifier]));
    rewrite.compare(&comparison("fp16")).unwrap().check().unwrap();
    assert_eq!(ops(&rewrite.model().proto), ["Exp", OP]);
    net.nodes.truncate(3);
    net.nodes.push(with_int(common::node("Gemm", &["k", "single", "offset"], &["r"]), "transB", 1));
    net.nodes.push(to("r", 10, "y"));
    let mut proto = in_half(&net, false);
    let single = [weight("single", &[CLASSES, CHANNELS]), weight("offset", &[CLASSES])];
    proto.graph.as_mut().unwrap().initializer.extend(single);
    let rewrite = rewritten(proto, &with(&[Kind::Classifier]));
    let missed: Vec<_> = rewrite.ledger().missed(Kind::Classifier).map(|s| s.reason.clone().unwrap()).collect();
    assert_eq!(missed, ["its weights or what it gives are of another type than the tokens"]);
}

/// What the model gives in float32 the op gives so in float16, without a cast.
#[test]
fn the_conversion_to_float16_leaves_the_result_in_float32() {
    for (net, interface, casts, dtype) in [(pooled(), false, 1, 1), (token(), false, 1, 1), (pooled(), true, 0, 10)] {
        let mut model = net.rewrite(&with(&[Kind::Classifier])).model().proto.clone();
        let account = fp16::convert(&mut model, None, &fp16::Options { interface }).unwrap();
        assert!(account.islands.is_empty(), "{account:?}");
        // One of the input.
        assert_eq!((nodes(&model, "Cast").len(), offset_type(&model)), (casts, dtype));
    }
    let mut net = pooled();
    net.node("y").output[0] = "q".into();
    net.nodes.push(common::node("Relu", &["q"], &["y"]));
    let mut model = net.rewrite(&with(&[Kind::Classifier])).model().proto.clone();
    fp16::convert(&mut model, None, &fp16::Options::default()).unwrap();
    assert_eq!((nodes(&model, "Cast").len(), offset_type(&model)), (2, 10));
}
