//! Batch norms that move forward into weights: every form computes the same without them, and every near miss keeps its own.
//!
//! Tolerances are those of `verify` for float32 (weights are rounded once more, 2^-24 of each), 1e-2 for float16.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{comparison, ints, rewritten_parts, weight};
use common::{ops, reshape};
use trt_opt::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Options, Target};
use trt_opt::{testing, verify};

const NORM: &str = "BatchNormalization";
const BATCH: i64 = 2;
const CHANNELS: i64 = 8;
const MAP: [i64; 4] = [BATCH, CHANNELS, 3, 5];

/// What each of these exports has left: no batch norm at all, on any target.
#[test]
fn exports_lose_all_of_them_and_compute_the_same() {
    let mut seen = 0;
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("uniformer") {
            continue;
        }
        seen += 1;
        for target in [Target::Native, Target::Trt8] {
            let rewrite = testing::rewrite_with(&path, &Options { target, ..Options::default() }).unwrap();
            assert_eq!(ops(&rewrite.model().proto).iter().filter(|op| *op == NORM).count(), 0, "{name}");
            assert_eq!(rewrite.ledger().patches.get("batch-norm"), Some(&3), "{name}");
            rewrite
                .compare(&comparison(&name))
                .and_then(|report| report.check())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
    assert!(seen >= 10, "{seen}");
}

/// A model to spoil: a batch norm, `n`, and what reads it.
struct Parts {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    inputs: Vec<(&'static str, Vec<i64>)>,
    outputs: Vec<(&'static str, Vec<i64>)>,
}

fn with(mut node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    node.attribute.extend(attributes);
    node
}

fn conv(attributes: Vec<AttributeProto>) -> NodeProto {
    with(common::node("Conv", &["n", "w", "b"], &["y"]), attributes)
}

fn mean(x: &str, axes: &[i64], keep: bool, y: &str) -> NodeProto {
    let attributes = vec![AttributeProto::ints("axes", axes), AttributeProto::int("keepdims", keep.into())];
    with(common::node("ReduceMean", &[x], &[y]), attributes)
}

fn positive(name: &str) -> TensorProto {
    let values: Vec<f32> = weight(name, &[CHANNELS]).to_f32_vec().unwrap().iter().map(|v| v.abs() + 0.25).collect();
    TensorProto::from_f32(name, &[CHANNELS], &values)
}

impl Parts {
    fn of(readers: Vec<NodeProto>, weights: Vec<TensorProto>, y: &[i64]) -> Self {
        let norm = with(
            common::node(NORM, &["x", "gamma", "beta", "mu", "var"], &["n"]),
            vec![AttributeProto::float("epsilon", 1e-3)],
        );
        let vectors = ["gamma", "beta", "mu"].map(|name| weight(name, &[CHANNELS]));
        Self {
            nodes: [vec![norm], readers].concat(),
            weights: [vectors.to_vec(), vec![positive("var")], weights].concat(),
            inputs: vec![("x", MAP.to_vec())],
            outputs: vec![("y", y.to_vec())],
        }
    }

    /// A convolution of one place.
    fn new() -> Self {
        Self::of(vec![conv(vec![])], vec![weight("w", &[6, CHANNELS, 1, 1]), weight("b", &[6])], &[BATCH, 6, 3, 5])
    }

    fn set(mut self, tensor: TensorProto) -> Self {
        self.weights.retain(|w| w.name != tensor.name);
        self.weights.push(tensor);
        self
    }

    fn rewrite(&self, options: &Options) -> testing::Rewrite {
        rewritten_parts(&self.nodes, &self.weights, [&self.inputs, &self.outputs], options)
    }

    /// Rewrites it, proves that it computes the same, and says what is left.
    fn left(&self) -> Vec<String> {
        self.left_with(&Options::default())
    }

    fn left_with(&self, options: &Options) -> Vec<String> {
        let rewrite = self.rewrite(options);
        rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
        ops(&rewrite.model().proto)
    }
}

#[test]
fn a_norm_goes_into_the_convolution_behind_it() {
    assert_eq!(Parts::new().left(), ["Conv"]);
    assert_eq!(Parts::new().left_with(&Options { target: Target::Native, ..Options::default() }), ["Conv"]);
    // Without an offset, with strides and a kernel of several places, in groups of different rows and depths.
    let mut net = Parts::new();
    net.nodes[1].input.truncate(2);
    assert_eq!(net.left(), ["Conv"]);
    let mut net = Parts::new().set(weight("w", &[6, CHANNELS, 2, 3]));
    net.nodes[1] = conv(vec![AttributeProto::ints("strides", &[1, 2])]);
    net.outputs[0].1 = vec![BATCH, 6, 2, 2];
    assert_eq!(net.left(), ["Conv"]);
    for (groups, rows) in [(2, 6), (4, 8), (CHANNELS, CHANNELS), (CHANNELS, 2 * CHANNELS)] {
        let mut net = Parts::new().set(weight("w", &[rows, CHANNELS / groups, 2, 2])).set(weight("b", &[rows]));
        net.nodes[1] = conv(vec![AttributeProto::int("group", groups)]);
        net.outputs[0].1 = vec![BATCH, rows, 2, 4];
        assert_eq!(net.left(), ["Conv"], "{groups} groups");
    }
    // Padding that is asked for and is none.
    let mut net = Parts::new();
    net.nodes[1] = conv(vec![AttributeProto::string("auto_pad", "SAME_UPPER")]);
    assert_eq!(net.left(), ["Conv"]);
}

#[test]
fn scales_and_shifts_spelled_out_go_the_same_way() {
    let vectors = |shape: &[i64]| [weight("scale", shape), weight("shift", shape)];
    for (shape, swapped) in [(&[CHANNELS, 1, 1][..], false), (&[1, CHANNELS, 1, 1], true)] {
        let mut net = Parts::new();
        let [a, c] = if swapped { ["scale", "x"] } else { ["x", "scale"] };
        net.nodes.splice(0..1, [common::node("Mul", &[a, c], &["m"]), common::node("Add", &["m", "shift"], &["n"])]);
        net.weights.extend(vectors(shape));
        assert_eq!(net.left(), ["Conv"]);
    }
    // In front of a norm as well.
    let mut net = Parts::new();
    net.nodes.insert(0, common::node("Add", &["x", "shift"], &["moved"]));
    net.nodes[1].input[0] = "moved".into();
    net.weights.extend(vectors(&[CHANNELS, 1, 1]));
    assert_eq!(net.left(), ["Conv"]);
    // One value for all channels, and one a place, are other things.
    for shape in [&[1][..], &[3, 1], &[CHANNELS, 3, 5]] {
        let mut net = Parts::new();
        net.nodes[0] = common::node("Mul", &["x", "scale"], &["n"]);
        net.weights.extend(vectors(shape));
        assert_eq!(net.left(), ["Mul", "Conv"], "{shape:?}");
    }
}

#[test]
fn padding_takes_a_scale_but_no_shift() {
    let padded = || vec![AttributeProto::ints("pads", &[1, 1, 1, 1])];
    for pads in [padded(), vec![AttributeProto::string("auto_pad", "SAME_LOWER")]] {
        let mut net = Parts::new().set(weight("w", &[6, CHANNELS, 3, 3]));
        net.nodes[1] = conv(pads);
        assert_eq!(net.left(), [NORM, "Conv"]);
        for name in ["beta", "mu"] {
            net = net.set(TensorProto::from_f32(name, &[CHANNELS], &[0.0; CHANNELS as usize]));
        }
        assert_eq!(net.left(), ["Conv"]);
    }
}

#[test]
fn what_is_read_otherwise_stays() {
    // By another node.
    let mut net = Parts::new();
    net.nodes.push(common::node("Relu", &["n"], &["r"]));
    net.outputs.push(("r", MAP.to_vec()));
    assert_eq!(net.left(), [NORM, "Conv", "Relu"]);
    // By the same node twice over, by two convolutions.
    let mut net = Parts::new();
    net.nodes.push(common::node("Conv", &["n", "w", "b"], &["z"]));
    net.outputs.push(("z", net.outputs[0].1.clone()));
    assert_eq!(net.left(), [NORM, "Conv", "Conv"]);
    // As an output.
    let mut net = Parts::new();
    net.outputs.push(("n", MAP.to_vec()));
    assert_eq!(net.left(), [NORM, "Conv"]);
}

#[test]
fn what_is_no_constant_stays() {
    for (name, left) in [("gamma", NORM), ("var", NORM), ("w", NORM), ("b", NORM)] {
        let mut net = Parts::new();
        let at = net.weights.iter().position(|w| w.name() == name).unwrap();
        let dims = net.weights.remove(at).dims;
        // Positive, as a variance must be.
        let input = ["gamma_in", "var_in", "w_in", "b_in"].into_iter().find(|i| i.starts_with(name)).unwrap();
        net.nodes.insert(0, common::node("Exp", &[input], &[name]));
        net.inputs.push((input, dims));
        assert_eq!(net.left(), ["Exp", left, "Conv"], "{name}");
    }
}

/// ONNX Runtime has no training of batch norms without its training build, so that nothing is run.
#[test]
fn statistics_of_the_batch_stay() {
    let mut net = Parts::new();
    net.nodes[0].attribute.push(AttributeProto::int("training_mode", 1));
    net.nodes[0].output.extend(["mean_out".into(), "var_out".into()]);
    assert_eq!(ops(&net.rewrite(&Options::default()).model().proto), [NORM, "Conv"]);
}

#[test]
fn shared_weights_are_copied() {
    // Two convolutions share both weights; only one has a norm before it.
    let mut net = Parts::new();
    net.nodes.push(common::node("Conv", &["x", "w", "b"], &["z"]));
    net.outputs.push(("z", net.outputs[0].1.clone()));
    assert_eq!(net.left(), ["Conv", "Conv"]);
}

#[test]
fn weights_that_their_type_cannot_hold_stay() {
    let mut net = Parts::new();
    net = net.set(TensorProto::from_f32("gamma", &[CHANNELS], &[1e30; CHANNELS as usize]));
    net = net.set(TensorProto::from_f32("w", &[6, CHANNELS, 1, 1], &[1e20; 6 * CHANNELS as usize]));
    assert_eq!(ops(&net.rewrite(&Options::default()).model().proto), [NORM, "Conv"]);
}

#[test]
fn a_rule_left_out_leaves_them() {
    let options = Options { skip: ["batch-norm".to_owned()].into(), ..Options::default() };
    assert_eq!(Parts::new().left_with(&options), [NORM, "Conv"]);
}

/// The norm and these nodes, which end in rows `r` for a product of `w`.
fn pooled(nodes: Vec<NodeProto>, product: Vec<NodeProto>, transposed: bool) -> Parts {
    let sizes = if transposed { [6, CHANNELS] } else { [CHANNELS, 6] };
    let weights = vec![weight("w", &sizes), weight("b", &[6]), ints("line", &[0, 0, -1]), ints("rows", &[0, -1])];
    Parts::of([nodes, product].concat(), weights, &[BATCH, 6])
}

fn gemm(attributes: Vec<AttributeProto>) -> Vec<NodeProto> {
    vec![with(common::node("Gemm", &["r", "w", "b"], &["y"]), attributes)]
}

fn average() -> Vec<NodeProto> {
    vec![mean("n", &[2, 3], false, "r")]
}

#[test]
fn a_norm_goes_through_a_mean_into_the_classifier() {
    let transposed = || vec![AttributeProto::int("transB", 1)];
    let cases = [
        (average(), &["ReduceMean", "Gemm"][..]),
        (vec![reshape("n", "line", "l"), mean("l", &[-1], false, "r")], &["Reshape", "ReduceMean", "Gemm"]),
        (
            vec![common::node("GlobalAveragePool", &["n"], &["p"]), reshape("p", "rows", "r")],
            &["GlobalAveragePool", "Reshape", "Gemm"],
        ),
        (
            vec![mean("n", &[3], true, "a"), mean("a", &[2], true, "p"), common::node("Flatten", &["p"], &["r"])],
            &["ReduceMean", "ReduceMean", "Flatten", "Gemm"],
        ),
    ];
    for (nodes, left) in cases {
        assert_eq!(pooled(nodes, gemm(transposed()), true).left(), left);
    }
    // All of what a Gemm can have.
    let factors = || vec![AttributeProto::float("alpha", 0.5), AttributeProto::float("beta", 3.0)];
    let left = ["ReduceMean", "Gemm"];
    assert_eq!(pooled(average(), gemm(factors()), false).left(), left);
    for offset in [weight("b", &[1, 6]), weight("b", &[1]), weight("b", &[])] {
        assert_eq!(pooled(average(), gemm(factors()), false).set(offset).left(), left);
    }
    let mut net = pooled(average(), gemm(factors()), false);
    net.nodes[2].input.truncate(2);
    assert_eq!(net.left(), left);
    // A MatMul, with an Add behind it and without.
    let matmul = |y: &str| common::node("MatMul", &["r", "w"], &[y]);
    let left = ["ReduceMean", "MatMul", "Add"];
    assert_eq!(pooled(average(), vec![matmul("y")], false).left(), left);
    let add = common::node("Add", &["b", "p"], &["y"]);
    assert_eq!(pooled(average(), vec![matmul("p"), add], false).left(), left);
}

#[test]
fn what_does_not_commute_with_the_mean_stays() {
    // Something else between.
    let net = pooled(vec![common::node("Relu", &["n"], &["a"]), mean("a", &[2, 3], false, "r")], gemm(vec![]), false);
    assert_eq!(net.left(), [NORM, "Relu", "ReduceMean", "Gemm"]);
    // The mean is read otherwise too.
    let mut net = pooled(average(), gemm(vec![]), false);
    net.outputs.push(("r", vec![BATCH, CHANNELS]));
    assert_eq!(net.left(), [NORM, "ReduceMean", "Gemm"]);
    // An offset a row.
    let net = pooled(average(), gemm(vec![]), false).set(weight("b", &[BATCH, 1]));
    assert_eq!(net.left(), [NORM, "ReduceMean", "Gemm"]);
    // Over the channels.
    let mut net = pooled(vec![mean("n", &[1, 3], false, "r")], gemm(vec![]), false);
    net = net.set(weight("w", &[3, 6]));
    assert_eq!(net.left(), [NORM, "ReduceMean", "Gemm"]);
}
