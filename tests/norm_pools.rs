//! Norms with the mean over all tokens behind them: every export of such a model has one node for both, every spelling computes
//! the same, and every near miss says why in the site of its norm, which is fused all the same.

#[path = "common/block.rs"]
mod block;
mod common;

use std::collections::BTreeMap;

use block::{comparison, int, ints, nodes, rewritten, weight};
use common::transpose;
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options, Site, Status, Target};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptNormPool";
const NORM: &str = "TrtOptLayerNorm";
const BATCH: i64 = 2;
const SIDES: [i64; 2] = [3, 5];
const CHANNELS: i64 = 8;

/// All exports of models that end in a norm and a mean, and of those that do not: by family, how many of them have the node.
#[test]
fn exports_have_theirs_and_compute_the_same() {
    let mut wrong = vec![];
    let mut seen: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let family = name.split('_').next().unwrap().to_owned();
        if family == "spelling" {
            continue;
        }
        let rewrite = testing::rewrite(&path).unwrap();
        let made = nodes(&rewrite.model().proto, OP);
        seen.entry(family.clone()).or_default().push(made.len());
        // What is left of the end is the node and the classifier, but where the exporter put movements of its own between.
        if let [pool] = &made[..] {
            assert_eq!(int(pool, "residual"), 1, "{name}");
            let y = pool.output[0].as_str();
            let all = &rewrite.model().proto.graph.as_ref().unwrap().node;
            let reader = all.iter().find(|n| n.input.iter().any(|input| input == y)).unwrap();
            let gathered = name.ends_with("dy18_dyn") && (name.contains("torchvision") || name.contains("original"));
            if reader.op_type() != "Gemm" && !gathered {
                wrong.push(format!("{name}: {} reads the mean", reader.op_type()));
            }
            let sites: Vec<&Site> =
                rewrite.ledger().sites.iter().filter(|s| s.into.as_deref() == pool.name.as_deref()).collect();
            assert!(
                matches!(sites[..], [site] if site.kind == Kind::LayerNorm && site.status == Status::Fused),
                "{sites:?}"
            );
        }
        // Two batches in a file whose name says that it was baked run at that batch only.
        let options = verify::Options {
            batch: name.contains("baked").then_some(2).or(comparison(&name).batch),
            ..comparison(&name)
        };
        if let Err(error) = rewrite.compare(&options).and_then(|report| report.check()) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let expected = [("ptnt", 1), ("swin", 1), ("tnt", 0), ("uniformer", 0), ("vit", 0)];
    assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), expected.map(|(family, _)| family));
    for (family, count) in expected {
        assert!(seen[family].iter().all(|&found| found == count), "{family}: {:?}", seen[family]);
    }
}

/// A norm of `[B, H, W, C]` whose mean over H and W is what it gives, to spoil.
struct Parts {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    inputs: Vec<(&'static str, Vec<i64>)>,
    outputs: Vec<(&'static str, Vec<i64>)>,
    opset: i64,
}

fn with_ints(mut node: NodeProto, name: &str, values: &[i64]) -> NodeProto {
    node.attribute.push(AttributeProto::ints(name, values));
    node
}

fn mean(x: &str, axes: &[i64], keep: bool, y: &str) -> NodeProto {
    let mut node = with_ints(common::node("ReduceMean", &[x], &[y]), "axes", axes);
    node.attribute.push(AttributeProto::int("keepdims", keep.into()));
    node
}

fn cast(x: &str, to: i64, y: &str) -> NodeProto {
    NodeProto { attribute: vec![AttributeProto::int("to", to)], ..common::node("Cast", &[x], &[y]) }
}

impl Parts {
    fn new() -> Self {
        let [h, w] = SIDES;
        let norm = NodeProto {
            attribute: vec![AttributeProto::int("axis", -1), AttributeProto::float("epsilon", 1e-3)],
            ..common::node("LayerNormalization", &["x", "scale", "bias"], &["n"])
        };
        Self {
            nodes: vec![norm, mean("n", &[1, 2], false, "y")],
            weights: vec![weight("scale", &[CHANNELS]), weight("bias", &[CHANNELS])],
            inputs: vec![("x", vec![BATCH, h, w, CHANNELS])],
            outputs: vec![("y", vec![BATCH, CHANNELS])],
            opset: 17,
        }
    }

    /// With this behind the norm's output `n` instead of the mean.
    fn ending(nodes: Vec<NodeProto>, y: &[i64]) -> Self {
        let mut net = Self::new();
        net.nodes.truncate(1);
        net.nodes.extend(nodes);
        net.outputs[0].1 = y.to_vec();
        net
    }

    fn proto(&self) -> ModelProto {
        let mut proto = common::model(self.nodes.clone(), self.weights.clone());
        proto.opset_import[0].version = Some(self.opset);
        let graph = proto.graph.as_mut().unwrap();
        graph.input = self.inputs.iter().map(|(name, dims)| common::value(name, dims)).collect();
        graph.output = self.outputs.iter().map(|(name, dims)| common::value(name, dims)).collect();
        proto
    }

    /// Rewrites it, and proves that it computes the same.
    fn rewrite(&self, options: &Options) -> testing::Rewrite {
        let rewrite = rewritten(self.proto(), options);
        rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
        rewrite
    }

    /// The norm and the mean are one node, and besides it there are only these ops.
    fn fused(&self, besides: &[&str]) -> NodeProto {
        let rewrite = self.rewrite(&Options::default());
        let model = &rewrite.model().proto;
        let pools = nodes(model, OP);
        assert_eq!(pools.len(), 1, "{}", rewrite.sites());
        let others: Vec<_> =
            model.graph.as_ref().unwrap().node.iter().map(|n| n.op_type()).filter(|op| *op != OP).collect();
        assert_eq!(others, besides);
        let sites = &rewrite.ledger().sites;
        assert_eq!(
            (sites.len(), sites[0].status, sites[0].into.as_deref()),
            (1, Status::Fused, pools[0].name.as_deref())
        );
        assert_eq!(sites[0].reason, None);
        pools[0].clone()
    }

    /// The norm is fused without the mean, and its site says why.
    fn apart(&self, reason: &str) -> Site {
        self.apart_with(&Options::default(), reason)
    }

    fn apart_with(&self, options: &Options, reason: &str) -> Site {
        let rewrite = self.rewrite(options);
        let (made, site) = (&rewrite.model().proto, &rewrite.ledger().sites[0]);
        assert_eq!((nodes(made, OP).len(), nodes(made, NORM).len()), (0, 1));
        assert_eq!((site.kind, site.status), (Kind::LayerNorm, Status::Fused));
        let found = site.reason.as_deref().unwrap_or_default();
        assert!(
            found.starts_with("the mean behind it stays: ") && found.contains(reason),
            "expected {reason}, found {site:?}"
        );
        site.clone()
    }
}

#[test]
fn norm_and_mean_are_one_node_with_all_attributes() {
    let node = Parts::new().fused(&[]);
    assert_eq!(node.attribute.iter().find(|a| a.name() == "epsilon").unwrap().f, Some(1e-3));
    assert_eq!((int(&node, "residual"), node.input.len()), (0, 3));
    assert_eq!(node.input, ["x", "scale", "bias"]);
}

/// The shape of the output, the ops that must be left besides the node, the nodes behind the norm, and the target of a Reshape.
type Spelling<'a> = (&'a [i64], &'a [&'a str], Vec<NodeProto>, Vec<i64>);

#[test]
fn other_spellings_are_the_same_mean() {
    let [h, w] = SIDES;
    let tokens = h * w;
    let (kept, first) = ([BATCH, 1, 1, CHANNELS], [BATCH, CHANNELS, 1, 1]);
    let to_channels_first = || transpose("n", &[0, 3, 1, 2], "t");
    let reshape = |x: &str, y: &str| common::node("Reshape", &[x, "shape"], &[y]);
    let pool = |x: &str, y: &str| common::node("GlobalAveragePool", &[x], &[y]);
    let flatten = |x: &str| NodeProto {
        attribute: vec![AttributeProto::int("axis", 1)],
        ..common::node("Flatten", &[x], &["y"])
    };
    let cases: Vec<Spelling> = vec![
        // Negative and unordered axes, and axes that stay.
        (&[BATCH, CHANNELS], &[], vec![mean("n", &[-2, 1], false, "y")], vec![]),
        (&kept, &["Reshape"], vec![mean("n", &[2, 1], true, "y")], vec![]),
        // Channels first: by ReduceMean, by GlobalAveragePool.
        (&first, &["Reshape"], vec![to_channels_first(), mean("t", &[-1, -2], true, "y")], vec![]),
        (&first, &["Reshape"], vec![to_channels_first(), pool("t", "y")], vec![]),
        // The other axis of the map first.
        (&[BATCH, CHANNELS], &[], vec![transpose("n", &[0, 2, 3, 1], "t"), mean("t", &[1, 3], false, "y")], vec![]),
        // Tokens in one axis, before and behind the channels.
        (&[BATCH, CHANNELS], &[], vec![reshape("n", "r"), mean("r", &[1], false, "y")], vec![BATCH, tokens, CHANNELS]),
        (
            &[BATCH, CHANNELS, 1],
            &["Reshape"],
            vec![reshape("n", "r"), transpose("r", &[0, 2, 1], "t"), pool("t", "y")],
            vec![BATCH, tokens, CHANNELS],
        ),
        // All images as one.
        (&[CHANNELS], &["Reshape", "Reshape"], vec![mean("n", &[0, 1, 2], false, "y")], vec![]),
        // An axis of size 1 more, which the mean is over too.
        (
            &[BATCH, CHANNELS],
            &[],
            vec![reshape("n", "r"), mean("r", &[1, 2, 3], false, "y")],
            vec![BATCH, h, 1, w, CHANNELS],
        ),
    ];
    for (y, besides, nodes, shape) in cases {
        let mut net = Parts::ending(nodes, y);
        net.weights.push(ints("shape", &shape));
        net.fused(besides);
    }
    // Reshapes behind it that end in [B, C] go.
    let mut net = Parts::ending(vec![to_channels_first(), pool("t", "p"), flatten("p")], &[BATCH, CHANNELS]);
    net.nodes[3].output = vec!["f".into()];
    net.nodes.push(common::node("Relu", &["f"], &["y"]));
    net.fused(&["Relu"]);
    // Axes as an input, from opset 18 on.
    let mut net = Parts::ending(vec![common::node("ReduceMean", &["n", "axes"], &["y"])], &[BATCH, 1, 1, CHANNELS]);
    (net.opset, net.weights) = (18, [net.weights, vec![ints("axes", &[1, 2])]].concat());
    net.fused(&["Reshape"]);
    // Before LayerNormalization, where the body of the op has to do without it too.
    let mut net = Parts::new();
    net.opset = 13;
    net.nodes.splice(
        0..1,
        [
            mean("x", &[-1], true, "m"),
            common::node("Sub", &["x", "m"], &["d"]),
            common::node("Mul", &["d", "d"], &["q"]),
            mean("q", &[-1], true, "v"),
            common::node("Add", &["v", "epsilon"], &["e"]),
            common::node("Sqrt", &["e"], &["s"]),
            common::node("Div", &["d", "s"], &["z"]),
            common::node("Mul", &["z", "scale"], &["a"]),
            common::node("Add", &["a", "bias"], &["n"]),
        ],
    );
    net.weights.push(TensorProto::from_f32("epsilon", &[], &[1e-3]));
    net.fused(&[]);
}

#[test]
fn tokens_of_all_images_in_one_axis_get_their_images_back() {
    let tokens = SIDES[0] * SIDES[1];
    let mut net = Parts::ending(
        vec![common::node("Reshape", &["n", "shape"], &["r"]), mean("r", &[1], false, "y")],
        &[BATCH, CHANNELS],
    );
    net.inputs[0].1 = vec![BATCH * tokens, CHANNELS];
    net.weights.push(ints("shape", &[BATCH, tokens, CHANNELS]));
    net.fused(&["Reshape"]);
}

#[test]
fn an_add_before_the_norm_goes_into_it_unless_the_sum_is_read_otherwise() {
    let mut net = Parts::new();
    let shape = net.inputs[0].1.clone();
    net.inputs = vec![("a", shape.clone()), ("c", shape.clone())];
    net.nodes.insert(0, common::node("Add", &["a", "c"], &["x"]));
    let node = net.fused(&[]);
    assert_eq!((int(&node, "residual"), &node.input[..2]), (1, &["a".to_string(), "c".into()][..]));
    net.outputs.push(("x", shape));
    net.apart("is a graph output");
    net.outputs.pop();
    net.nodes.push(common::node("Sigmoid", &["x"], &["g"]));
    net.outputs.push(("g", net.inputs[0].1.clone()));
    net.apart("is also used by 'Sigmoid_g'");
}

#[test]
fn a_computed_scale_is_taken_too() {
    let mut net = Parts::new();
    net.weights.retain(|w| w.name() != "scale");
    net.inputs.push(("scale", vec![CHANNELS]));
    assert_eq!(net.fused(&[]).input[1], "scale");
}

#[test]
fn a_mean_in_float32_between_casts_is_taken() {
    let half = |name: &str, dims: &[i64]| {
        let mut value = common::value(name, dims);
        block_type(&mut value, 10);
        value
    };
    for casts in [true, false] {
        let mut net = Parts::ending(vec![cast("n", 1, "wide"), mean("wide", &[1, 2], false, "m")], &[BATCH, CHANNELS]);
        if casts {
            net.nodes.push(cast("m", 10, "y"));
        } else {
            net.nodes.push(common::node("Relu", &["m"], &["y"]));
        }
        let to_half = |w: &TensorProto| {
            let values: Vec<half::f16> = w.to_f64_vec().unwrap().iter().map(|&v| half::f16::from_f64(v)).collect();
            TensorProto::from_f16(w.name(), &w.dims, &values)
        };
        net.weights = net.weights.iter().map(to_half).collect();
        let mut proto = net.proto();
        let graph = proto.graph.as_mut().unwrap();
        graph.input = vec![half("x", &net.inputs[0].1)];
        if casts {
            graph.output = vec![half("y", &net.outputs[0].1)];
        }
        let rewrite = rewritten(proto, &Options::default());
        rewrite.compare(&comparison("fp16")).unwrap().check().unwrap();
        assert_eq!(nodes(&rewrite.model().proto, OP).len(), usize::from(casts));
        let reason = rewrite.ledger().sites[0].reason.clone().unwrap_or_default();
        assert!(casts || reason.contains("of another type than the tokens"), "{reason}");
    }
}

fn block_type(value: &mut trt_opt::onnx::proto::ValueInfoProto, dtype: i32) {
    use trt_opt::onnx::proto::type_proto::Value;
    if let Some(Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        tensor.elem_type = Some(dtype);
    }
}

#[test]
fn means_over_other_axes_stay() {
    let [h, w] = SIDES;
    let reason = "it is not over the tokens, or not over them alone";
    for (axes, y) in [
        (&[1][..], vec![BATCH, w, CHANNELS]),
        (&[2], vec![BATCH, h, CHANNELS]),
        (&[3], vec![BATCH, h, w]),
        (&[1, 2, 3], vec![BATCH]),
        (&[0], vec![h, w, CHANNELS]),
    ] {
        let site = Parts::ending(vec![mean("n", axes, false, "y")], &y).apart(reason);
        assert_eq!(site.expected.as_deref(), Some("a mean for each image and each of 8 channels"));
        assert!(
            site.found.as_deref().is_some_and(|f| f.starts_with(&format!("axes {axes:?} of [2, 3, 5, 8]"))),
            "{site:?}"
        );
    }
    // Channels that the map's sides are taken for.
    Parts::ending(vec![common::node("GlobalAveragePool", &["n"], &["y"])], &[BATCH, h, 1, 1]).apart(reason);
    // The output's images behind its channels.
    let swapped = vec![transpose("n", &[3, 1, 2, 0], "t"), mean("t", &[1, 2], false, "y")];
    Parts::ending(swapped, &[CHANNELS, BATCH]).apart(reason);
    // Rows of images mixed: as many tokens, but not those of one image.
    let mut mixed = Parts::ending(
        vec![
            transpose("n", &[1, 0, 2, 3], "t"),
            common::node("Reshape", &["t", "shape"], &["r"]),
            mean("r", &[1], false, "y"),
        ],
        &[BATCH, CHANNELS],
    );
    mixed.weights.push(ints("shape", &[BATCH, h * w, CHANNELS]));
    mixed.apart("the tokens of the norm");
}

#[test]
fn a_mean_over_some_of_the_tokens_stays() {
    let mut net = Parts::ending(
        vec![common::node("Slice", &["n", "one", "end", "axis"], &["s"]), mean("s", &[1, 2], false, "y")],
        &[BATCH, CHANNELS],
    );
    net.weights.extend([ints("one", &[1]), ints("end", &[i64::MAX]), ints("axis", &[2])]);
    let site = net.apart("it is over some of the tokens only");
    assert_eq!((site.expected.as_deref(), site.found.as_deref()), (Some("all of [2, 3, 5, 8]"), Some("[2, 3, 4, 8]")));
    // One token twice, another not at all.
    let mut net = Parts::ending(
        vec![common::node("Gather", &["n", "rows"], &["s"]), mean("s", &[1, 2], false, "y")],
        &[BATCH, CHANNELS],
    );
    net.nodes[1].attribute.push(AttributeProto::int("axis", 1));
    net.weights.push(ints("rows", &[0, 1, 1]));
    net.apart("what it reads are not shown to be the tokens of the norm");
}

#[test]
fn norms_that_are_read_otherwise_keep_their_mean() {
    let [h, w] = SIDES;
    let mut net = Parts::new();
    net.outputs.push(("n", vec![BATCH, h, w, CHANNELS]));
    net.apart("is a graph output");
    let mut net = Parts::new();
    net.nodes.push(common::node("Relu", &["n"], &["z"]));
    net.outputs.push(("z", vec![BATCH, h, w, CHANNELS]));
    net.apart("is also used by 'Relu_z'");
    // By a second mean.
    let mut net = Parts::new();
    net.nodes.push(mean("n", &[1, 2], true, "z"));
    net.outputs.push(("z", vec![BATCH, 1, 1, CHANNELS]));
    net.apart("is also used by 'ReduceMean_z'");
    // Moved, and then read by a mean and by something else.
    let mut net = Parts::ending(
        vec![
            transpose("n", &[0, 3, 1, 2], "t"),
            common::node("GlobalAveragePool", &["t"], &["y"]),
            common::node("Relu", &["t"], &["z"]),
        ],
        &[BATCH, CHANNELS, 1, 1],
    );
    net.outputs.push(("z", vec![BATCH, CHANNELS, h, w]));
    net.apart("is also used by 'Relu_z'");
}

#[test]
fn other_norms_keep_their_mean() {
    let [h, w] = SIDES;
    let mut net = Parts::new();
    net.nodes[0].attribute[0] = AttributeProto::int("axis", -2);
    net.weights = vec![weight("scale", &[w, CHANNELS]), weight("bias", &[w, CHANNELS])];
    net.apart("the norm is over several axes");
    // An add to some of the tokens.
    let mut net = Parts::new();
    net.inputs = vec![("a", vec![BATCH, h * w, CHANNELS]), ("c", vec![BATCH, h * w - 1, CHANNELS])];
    net.nodes.splice(
        0..0,
        [
            common::node("Slice", &["a", "zero", "one", "one"], &["head"]),
            common::node("Slice", &["a", "one", "end", "one"], &["tail"]),
            common::node("Add", &["tail", "c"], &["sum"]),
            NodeProto {
                attribute: vec![AttributeProto::int("axis", 1)],
                ..common::node("Concat", &["head", "sum"], &["x"])
            },
        ],
    );
    net.nodes[5] = mean("n", &[1], false, "y");
    net.weights.extend([ints("zero", &[0]), ints("one", &[1]), ints("end", &[i64::MAX])]);
    net.apart("adds to some of the tokens only");
}

/// No mean, no reason; nor where a product stands between.
#[test]
fn without_a_mean_there_is_nothing_to_say() {
    let [h, w] = SIDES;
    for (nodes_, y) in [
        (vec![common::node("Relu", &["n"], &["y"])], vec![BATCH, h, w, CHANNELS]),
        (vec![common::node("Relu", &["n"], &["r"]), mean("r", &[1, 2], false, "y")], vec![BATCH, CHANNELS]),
    ] {
        let rewrite = Parts::ending(nodes_, &y).rewrite(&Options::default());
        assert_eq!((nodes(&rewrite.model().proto, OP).len(), rewrite.ledger().sites[0].reason.clone()), (0, None));
    }
}

#[test]
fn it_can_be_left_out() {
    let skip = |name: &str| Options { skip: [name.to_owned()].into(), ..Options::default() };
    let native = Options { target: Target::Native, ..Options::default() };
    for (options, norms) in [(skip("norm-pool"), 1), (skip("layernorm"), 0), (native, 0)] {
        let rewrite = Parts::new().rewrite(&options);
        let made = &rewrite.model().proto;
        assert_eq!((nodes(made, OP).len(), nodes(made, NORM).len()), (0, norms));
    }
    Parts::new().apart_with(&skip("norm-pool"), "--skip norm-pool");
}

#[test]
fn the_cost_is_less_than_that_of_norm_and_mean() {
    let estimate = |options: &Options| {
        let rewrite = Parts::new().rewrite(options);
        trt_opt::contents::Contents::of(rewrite.model(), 1).unwrap().estimate
    };
    let apart = estimate(&Options { skip: ["norm-pool".to_owned()].into(), ..Options::default() });
    let pool = estimate(&Options::default());
    assert!(pool.launches < apart.launches && pool.bytes < apart.bytes, "{pool:?} against {apart:?}");
}
