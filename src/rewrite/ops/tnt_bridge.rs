//! `TrtOptTntBridge`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, plugin_node, port};
use crate::ir::{Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptTntBridge",
    summary: "s + norm2(norm1(words) W + b) in the tokens from begin on, s in the others, where s = x or x + residual",
    replaces: "norm, MatMul, Add, norm, Slice, Add, Concat, Add",
    inputs: &[
        port("x", "[B, N, C]"),
        optional("residual", "shape of x; there if residual = 1"),
        port("words", "[B, M, K], where begin + M <= N"),
        port("scale1", "[K]"),
        port("bias1", "[K]"),
        port("w", "[K, C]"),
        port("b", "[C]"),
        port("scale2", "[C]"),
        port("bias2", "[C]"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("epsilon1", AttributeKind::Float, "added to the variance of the norm before the product"),
        attribute("epsilon2", AttributeKind::Float, "added to the variance of the norm behind it"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
        attribute("begin", AttributeKind::Int, "the first token that is added to"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptTntBridge`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TntBridge {
    /// Of the norms before and behind the product.
    pub epsilon: [f32; 2],
    /// The first token that is added to.
    pub begin: i64,
}

/// What is added to the tokens, and the weights: pairs are of the norms before and behind the product.
#[derive(Clone, Copy, Debug)]
pub struct TntBridgeWeights {
    pub words: ValueId,
    pub norm_scale: [ValueId; 2],
    pub norm_bias: [ValueId; 2],
    pub w: ValueId,
    pub b: ValueId,
}

impl TntBridge {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, weights: &TntBridgeWeights) -> Node {
        let w = weights;
        let ([scale1, scale2], [bias1, bias2]) = (w.norm_scale, w.norm_bias);
        let inputs = std::iter::once(x).chain(residual).chain([w.words, scale1, bias1, w.w, w.b, scale2, bias2]);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        vec![
            AttributeProto::float("epsilon1", self.epsilon[0]),
            AttributeProto::float("epsilon2", self.epsilon[1]),
            AttributeProto::int("residual", residual.into()),
            AttributeProto::int("begin", self.begin),
        ]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        Some(Self {
            epsilon: [node.float("epsilon1")?, node.float("epsilon2")?],
            begin: node.int("begin").filter(|&begin| begin >= 0)?,
        })
    }

    /// The words and the weights of a node of this op.
    pub fn weights(node: &Node) -> Option<TntBridgeWeights> {
        let first = first_input(node)?;
        let input = |i: usize| node.input(first + i);
        Some(TntBridgeWeights {
            words: input(0)?,
            norm_scale: [input(1)?, input(5)?],
            norm_bias: [input(2)?, input(6)?],
            w: input(3)?,
            b: input(4)?,
        })
    }
}

/// Where the words are among the inputs.
fn first_input(node: &Node) -> Option<usize> {
    Some(if node.int("residual")? != 0 { 2 } else { 1 })
}

/// The tokens before, with and behind the part that is added to, if all shapes fit.
fn parts(graph: &Graph, node: &Node) -> Option<[i64; 3]> {
    let (bridge, weights) = (TntBridge::of(node)?, TntBridge::weights(node)?);
    let [batch, tokens, channels] = graph.shape(node.input(0)?)? else { return None };
    let [images, covered, width] = graph.shape(weights.words)? else { return None };
    let (tokens, channels, covered, width) = (tokens.int()?, channels.int()?, covered.int()?, width.int()?);
    let behind = tokens.checked_sub(bridge.begin)?.checked_sub(covered)?;
    let fits = |v: ValueId, shape: &[i64]| graph.static_shape(v).is_some_and(|found| found == shape);
    let whole = fits(weights.w, &[width, channels])
        && [weights.norm_scale[0], weights.norm_bias[0]].iter().all(|&v| fits(v, &[width]))
        && [weights.b, weights.norm_scale[1], weights.norm_bias[1]].iter().all(|&v| fits(v, &[channels]));
    (whole && batch == images && behind >= 0 && covered > 0).then_some([bridge.begin, covered, behind])
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let x = node.input(0)?;
    parts(graph, node)?;
    Some(vec![Some((graph.dtype(x)?, graph.shape(x)?.to_vec()))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let bridge = TntBridge::of(node)?;
    let dtype = graph.dtype(node.input(0)?)?;
    let [before, _, behind] = parts(graph, node)?;
    let mut s = body.input("x");
    if node.int("residual")? != 0 {
        let r = body.input("residual");
        s = body.op("Add", &[&s, &r], vec![]);
    }
    let values = ["words", "scale1", "bias1", "w", "b", "scale2", "bias2"].map(|name| body.input(name));
    let change = steps(body, values, bridge.epsilon, [before, behind], dtype);
    let s = body.cast(&s, DType::F32);
    let y = body.op("Add", &[&s, &change], vec![]);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// What a bridge adds to the tokens, with zeros for so many before and behind those of the words, as a float value. `values`: the words and
/// the weights, in the order of the inputs.
pub(super) fn steps(
    body: &mut Body,
    values: [String; 7],
    epsilon: [f32; 2],
    [before, behind]: [i64; 2],
    dtype: DType,
) -> String {
    let [words, scale1, bias1, w, b, scale2, bias2] = values.map(|v| body.cast(&v, DType::F32));
    // The product's operand is rounded, its sum is not.
    let normal = body.layer_norm(&words, &scale1, &bias1, 1, epsilon[0]);
    let normal = body.cast(&normal, dtype);
    let normal = body.cast(&normal, DType::F32);
    let product = body.op("MatMul", &[&normal, &w], vec![]);
    let product = body.op("Add", &[&product, &b], vec![]);
    let change = body.layer_norm(&product, &scale2, &bias2, 1, epsilon[1]);
    body.pad(&change, &[0, before, 0], &[0, behind, 0], DType::F32)
}

/// A norm counts as 8 an element, as in the cost model of standard ops.
fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let first = first_input(node)?;
    let (words, &[_, channels]) = (inputs.get(first)?, inputs.get(first + 3)?.as_slice()) else { return None };
    let &[images, covered, width] = words.as_slice() else { return None };
    let (flops, macs) = work_of(count(&[images, covered])?, [width, channels])?;
    let added = count(inputs.first()?)?.checked_mul(2)?;
    Some((flops.checked_add(added)?, macs))
}

/// That of the norms and the product of so many rows.
pub(super) fn work_of(rows: u64, [width, channels]: [i64; 2]) -> Option<(u64, u64)> {
    let macs = rows.checked_mul(count(&[width, channels])?)?;
    let normalized = rows.checked_mul(count(&[width + channels, 8])?)?;
    Some((macs.checked_mul(2)?.checked_add(normalized)?, macs))
}
