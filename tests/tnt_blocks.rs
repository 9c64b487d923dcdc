//! Inner blocks of TNT and PyramidTNT: every export has its own, they compute the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use std::path::Path;

use block::{
    Net, comparison, costs_less_than_its_parts, int, nodes, norm, only_if_asked_for, rewritten_parts, weight, with,
};
use trt_opt::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options, Status};
use trt_opt::testing;

const OP: &str = "TrtOptTntInnerBlock";

fn with_block() -> Options {
    with(&[Kind::TntInnerBlock])
}

/// All exports, with the block alone and with the smaller blocks beside it, which must not take its parts.
#[test]
fn exports_have_all_their_blocks_and_compute_the_same() {
    let mut wrong = vec![];
    let stem = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    let mut seen = [0, 0];
    for path in common::fixtures() {
        let name = stem(&path);
        let pyramid = name.starts_with("ptnt");
        if !pyramid && !name.starts_with("tnt") {
            continue;
        }
        seen[usize::from(pyramid)] += 1;
        for options in [with_block(), with(&[Kind::TntInnerBlock, Kind::MlpBlock, Kind::SwinAttnBlock])] {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            // Two blocks each; 16 words a patch, and those of PyramidTNT are normalized together.
            let inner = nodes(&rewrite.model().proto, OP).into_iter().filter(|n| int(n, "whole") == i64::from(pyramid));
            let words: Vec<i64> = inner.map(|n| int(n, "num_heads")).filter(|&h| h < 3).collect();
            let expected = if pyramid { vec![1, 2] } else { vec![2, 2] };
            if words != expected {
                let sites: Vec<_> = rewrite.ledger().sites.iter().filter(|s| s.kind == Kind::TntInnerBlock).collect();
                wrong.push(format!("{name}: blocks of {words:?} heads instead of {expected:?}: {sites:?}"));
            }
            let check = comparison(&name);
            if let Err(error) = rewrite.compare(&check).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, [10, 10]);
}

/// A block over words, as nodes and weights to spoil.
struct Parts {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    outputs: Vec<(&'static str, Vec<i64>)>,
    tokens: i64,
    channels: i64,
}

const PATCHES: i64 = 3;

fn transpose(x: &str, y: &str, perm: &[i64]) -> NodeProto {
    NodeProto { attribute: vec![AttributeProto::ints("perm", perm)], ..common::node("Transpose", &[x], &[y]) }
}

impl Net for Parts {
    const KIND: Kind = Kind::TntInnerBlock;
    const OP: &'static str = OP;

    fn nodes(&mut self) -> &mut Vec<NodeProto> {
        &mut self.nodes
    }

    fn weights(&mut self) -> &mut Vec<TensorProto> {
        &mut self.weights
    }

    fn rewrite(&self, options: &Options) -> testing::Rewrite {
        let inputs = ["x", "r"].map(|name| (name, vec![PATCHES, self.tokens, self.channels]));
        rewritten_parts(&self.nodes, &self.weights, [&inputs, &self.outputs], options)
    }
}

impl Parts {
    /// 9 words of 24 channels, 4 heads of 6.
    fn new() -> Self {
        Self::of(9, 4, 6, 32)
    }

    fn of(tokens: i64, heads: i64, size: i64, hidden: i64) -> Self {
        let channels = heads * size;
        let part = |index: &str, y: &str| NodeProto {
            attribute: vec![AttributeProto::int("axis", 0)],
            ..common::node("Gather", &["parts", index], &[y])
        };
        let nodes = vec![
            norm("x", "scale1", "bias1", "n1", 1e-5),
            common::node("MatMul", &["n1", "w_qkv"], &["p"]),
            common::node("Add", &["p", "b_qkv"], &["pb"]),
            common::node("Reshape", &["pb", "split"], &["heads"]),
            transpose("heads", "parts", &[2, 0, 3, 1, 4]),
            part("zero", "q"),
            part("one_index", "k"),
            part("two", "v"),
            transpose("k", "k_t", &[0, 1, 3, 2]),
            common::node("MatMul", &["q", "k_t"], &["raw"]),
            common::node("Mul", &["raw", "factor"], &["scores"]),
            NodeProto {
                attribute: vec![AttributeProto::int("axis", -1)],
                ..common::node("Softmax", &["scores"], &["weights"])
            },
            common::node("MatMul", &["weights", "v"], &["context"]),
            transpose("context", "merged", &[0, 2, 1, 3]),
            common::node("Reshape", &["merged", "tokens"], &["c"]),
            common::node("MatMul", &["c", "w_proj"], &["a"]),
            common::node("Add", &["b_proj", "a"], &["ab"]),
            common::node("Add", &["x", "ab"], &["s"]),
            norm("s", "scale2", "bias2", "n2", 1e-3),
            common::node("MatMul", &["n2", "w1"], &["h"]),
            common::node("Add", &["h", "b1"], &["hb"]),
            common::node("Div", &["hb", "root"], &["d"]),
            common::node("Erf", &["d"], &["e"]),
            common::node("Add", &["e", "one"], &["e1"]),
            common::node("Mul", &["hb", "e1"], &["m"]),
            common::node("Mul", &["m", "half"], &["g"]),
            common::node("MatMul", &["g", "w2"], &["o"]),
            common::node("Add", &["o", "b2"], &["ob"]),
            common::node("Add", &["ob", "s"], &["y"]),
        ];
        let scalar = |name: &str, v: f32| TensorProto::from_f32(name, &[], &[v]);
        let mut weights = vec![
            scalar("factor", 0.4),
            scalar("root", std::f32::consts::SQRT_2),
            scalar("one", 1.0),
            scalar("half", 0.5),
            TensorProto::from_i64("split", &[5], &[PATCHES, tokens, 3, heads, size]),
            TensorProto::from_i64("tokens", &[3], &[PATCHES, tokens, channels]),
            TensorProto::from_i64("flat", &[2], &[PATCHES, tokens * channels]),
        ];
        weights.extend(
            [("zero", 0), ("one_index", 1), ("two", 2)].map(|(name, i)| TensorProto::from_i64(name, &[], &[i])),
        );
        for (name, dims) in [
            ("scale1", &[channels][..]),
            ("bias1", &[channels]),
            ("w_qkv", &[channels, 3 * channels]),
            ("b_qkv", &[3 * channels]),
            ("w_proj", &[channels, channels]),
            ("b_proj", &[channels]),
            ("scale2", &[channels]),
            ("bias2", &[channels]),
            ("w1", &[channels, hidden]),
            ("b1", &[hidden]),
            ("w2", &[hidden, channels]),
            ("b2", &[channels]),
        ] {
            weights.push(weight(name, dims));
        }
        let outputs = vec![("y", vec![PATCHES, tokens, channels])];
        Self { nodes, weights, outputs, tokens, channels }
    }

    /// The norm number `i`, which gives `n`, over all words of a patch.
    fn whole(mut self, i: usize, x: &str, n: &str, user: &str) -> Self {
        let (flat, normal) = (format!("flat{i}"), format!("normal{i}"));
        self.before(n, vec![common::node("Reshape", &[x, "flat"], &[&flat])]);
        self.input(n, 0, &flat);
        self.before(user, vec![common::node("Reshape", &[n, "tokens"], &[&normal])]);
        self.input(user, 0, &normal);
        for name in ["scale", "bias"] {
            self.set(weight(&format!("{name}{i}"), &[self.tokens * self.channels]));
        }
        self
    }

    /// All of it becomes one node.
    fn fused(&self) -> NodeProto {
        let (model, ledger) = self.fuse();
        let all = &model.graph.as_ref().unwrap().node;
        assert_eq!(all.iter().map(|n| n.op_type()).collect::<Vec<_>>(), [OP], "{:?}", ledger.sites);
        all[0].clone()
    }

    /// The one site is missed, for this reason, and its parts are fused all the same.
    fn missed_because(&self, reason: &str) {
        let (model, ledger) = self.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert_eq!(ledger.count(Kind::Attention).fused, 1);
        let missed: Vec<_> = ledger.missed(Kind::TntInnerBlock).map(|s| s.reason.clone().unwrap()).collect();
        assert!(matches!(&missed[..], [found] if found.contains(reason)), "expected {reason}, found {missed:?}");
    }

    /// Nothing in it is a site.
    fn no_site(&self) {
        let (model, ledger) = self.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert_eq!(ledger.count(Kind::Attention).fused, 1);
        assert!(ledger.sites.iter().all(|s| s.kind != Kind::TntInnerBlock));
    }
}

#[test]
fn the_block_is_one_node_with_all_its_attributes() {
    let net = Parts::new();
    let node = net.fused();
    let float = |name: &str| node.attribute.iter().find(|a| a.name() == name).unwrap().f.unwrap();
    assert_eq!([float("epsilon1"), float("epsilon2"), float("scale")], [1e-5, 1e-3, 0.4]);
    assert_eq!([int(&node, "whole"), int(&node, "num_heads")], [0, 4]);
    assert_eq!((node.input.len(), node.input[0].as_str()), (13, "x"));
    // The sites of its parts say where they are now: two norms, the attention, the GELU and the block.
    let (_, ledger) = net.fuse();
    assert_eq!(ledger.sites.len(), 5);
    for site in &ledger.sites {
        assert_eq!((site.status, site.into.as_deref()), (Status::Fused, node.name.as_deref()), "{site:?}");
    }
}

#[test]
fn norms_over_all_words_are_the_same_block() {
    let node = Parts::new().whole(1, "x", "n1", "p").whole(2, "s", "n2", "h").fused();
    assert_eq!(int(&node, "whole"), 1);
}

#[test]
fn other_spellings_are_the_same_block() {
    // No offsets.
    let mut net = Parts::new();
    net.nodes.retain(|n| !["pb", "ab", "hb", "ob"].contains(&n.output[0].as_str()));
    for (output, slot, value) in [("heads", 0, "p"), ("s", 1, "a"), ("d", 0, "h"), ("m", 0, "h"), ("y", 0, "o")] {
        net.input(output, slot, value);
    }
    net.fused();
    // The largest that the one kernel takes, and the smallest.
    Parts::of(16, 4, 16, 256).fused();
    Parts::of(1, 1, 2, 2).fused();
    Parts::of(16, 2, 5, 6).fused();
}

#[test]
fn sizes_that_the_kernel_does_not_take_are_missed() {
    for net in [
        Parts::of(9, 4, 6, 258),
        Parts::of(9, 6, 11, 32),
        Parts::of(9, 1, 17, 32),
        Parts::of(9, 2, 18, 32),
        Parts::of(9, 3, 5, 32),
        Parts::of(9, 2, 8, 15),
    ] {
        net.missed_because("the one kernel takes no such sizes");
    }
}

#[test]
fn more_tokens_or_a_bias_are_no_site() {
    Parts::of(17, 4, 6, 32).no_site();
    let mut net = Parts::new();
    net.before("weights", vec![common::node("Add", &["scores", "position"], &["biased"])]);
    net.input("weights", 0, "biased");
    net.set(weight("position", &[1, 4, 9, 9]));
    net.no_site();
}

#[test]
fn other_streams_are_missed() {
    let mut net = Parts::new();
    net.input("s", 0, "r");
    net.missed_because("what is added is not what the norm reads");
    let mut net = Parts::new();
    net.input("y", 1, "x");
    net.missed_because("what is added is not what the norm reads");
    let mut net = Parts::new();
    net.input("n2", 0, "x");
    net.missed_because("no fused norm reads the stream");
}

#[test]
fn norms_that_differ_in_their_axes_are_missed() {
    Parts::new().whole(1, "x", "n1", "p").missed_because("one norm is over the channels, the other over all tokens");
    Parts::new().whole(2, "s", "n2", "h").missed_because("one norm is over the channels, the other over all tokens");
}

#[test]
fn another_activation_is_missed() {
    let mut net = Parts::new();
    net.nodes.retain(|n| !["d", "e", "e1", "m"].contains(&n.output[0].as_str()));
    net.nodes.iter_mut().filter(|n| n.output[0] == "g").for_each(|n| *n = common::node("Relu", &["hb"], &["g"]));
    net.missed_because("no GELU follows");
}

#[test]
fn values_that_are_read_otherwise_are_missed() {
    for (value, columns) in [("s", 24), ("hb", 32), ("ab", 24)] {
        let mut net = Parts::new();
        net.outputs.push((value, vec![PATCHES, 9, columns]));
        let (model, ledger) = net.fuse();
        assert!(nodes(&model, OP).is_empty());
        assert_eq!(ledger.missed(Kind::TntInnerBlock).count(), 1, "{value}: {:?}", ledger.sites);
    }
}

#[test]
fn a_product_of_two_tensors_is_missed() {
    let mut net = Parts::new();
    net.before("c", vec![transpose("r", "r_t", &[0, 2, 1]), common::node("MatMul", &["r_t", "r"], &["square"])]);
    net.input("a", 1, "square");
    net.missed_because("the right operand is no weight");
}

#[test]
fn blocks_are_not_fused_unless_asked_for_and_can_be_left() {
    only_if_asked_for(&Parts::new(), "tnt-inner-block");
}

#[test]
fn the_cost_of_a_block_is_less_than_that_of_its_parts() {
    let [parts, block] = costs_less_than_its_parts(&Parts::new());
    assert_eq!(block, parts);
}
