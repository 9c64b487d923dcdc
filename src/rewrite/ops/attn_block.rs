//! `TrtOptSwinAttnBlock`, and `TrtOptAttnBlock`, which is the same without windows.

use super::attention::{self, SCORE_ATTRIBUTES, Term};
use super::body::Body;
use super::patch_merge::stream;
use super::window::MAP_ATTRIBUTES;
use super::{
    Attention, AttributeKind, Bias, Layout, OpDef, Shapes, WindowMap, attribute, count, is, optional, plugin_node, port,
};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;
use crate::rewrite::engine::reshape_target;

pub static SWIN_DEF: OpDef = OpDef {
    name: "TrtOptSwinAttnBlock",
    summary: "s + reverse(attention(partition(norm(s)) Wqkv + bqkv) Wproj + bproj), where s = x or x + residual",
    replaces: "Add, norm, roll, partition, MatMul, Add, attention, MatMul, Add, reverse, roll, Add",
    inputs: &[
        port("x", "[B, H*W, C] or [B, H, W, C]"),
        optional("residual", "shape of x; there if residual = 1"),
        port("norm_scale", "[C]"),
        port("norm_bias", "[C]"),
        port("w_qkv", "[C, 3*h*d], columns as (3, h, d)"),
        port("b_qkv", "[3*h*d]"),
        attention::BIAS,
        attention::MASK,
        port("w_proj", "[h*d, C]"),
        port("b_proj", "[C]"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
        SCORE_ATTRIBUTES[0],
        SCORE_ATTRIBUTES[1],
        SCORE_ATTRIBUTES[2],
        SCORE_ATTRIBUTES[3],
        SCORE_ATTRIBUTES[4],
        MAP_ATTRIBUTES[0],
        MAP_ATTRIBUTES[1],
        MAP_ATTRIBUTES[2],
        MAP_ATTRIBUTES[3],
    ],
    shapes,
    body,
    work,
};

pub static DEF: OpDef = OpDef {
    name: "TrtOptAttnBlock",
    summary: "s + attention(norm(s) Wqkv + bqkv) Wproj + bproj, where s = x or x + residual",
    replaces: "Add, norm, MatMul, Add, attention, MatMul, Add, Add",
    inputs: &[
        port("x", "[B, N, C]"),
        optional("residual", "shape of x; there if residual = 1"),
        port("norm_scale", "[C]"),
        port("norm_bias", "[C]"),
        port("w_qkv", "[C, 3*h*d], columns as (3, h, d)"),
        port("b_qkv", "[3*h*d]"),
        optional("bias", "[P, h or 1, N, N]; there if bias = 1"),
        port("w_proj", "[h*d, C]"),
        port("b_proj", "[C]"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
        SCORE_ATTRIBUTES[0],
        SCORE_ATTRIBUTES[1],
        attribute("bias", AttributeKind::Int, "0 none, 1 dense"),
    ],
    shapes,
    body,
    work,
};

/// The attributes and optional inputs of a `TrtOptSwinAttnBlock`, or of a `TrtOptAttnBlock`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttnBlock {
    pub epsilon: f32,
    /// Of packed queries, keys and values; its map is that of the windows. Without windows it has no mask and no bias
    /// table.
    pub attention: Attention,
}

/// The weights of such a block.
#[derive(Clone, Copy, Debug)]
pub struct AttnWeights {
    pub norm_scale: ValueId,
    pub norm_bias: ValueId,
    pub w_qkv: ValueId,
    pub b_qkv: ValueId,
    pub w_proj: ValueId,
    pub b_proj: ValueId,
}

impl AttnBlock {
    /// Whether the attention is within windows.
    pub fn in_windows(&self) -> bool {
        !self.attention.map.is_none()
    }

    fn definition(&self) -> &'static OpDef {
        if self.in_windows() { &SWIN_DEF } else { &DEF }
    }

    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, weights: &AttnWeights) -> Node {
        let w = weights;
        let inputs = std::iter::once(x)
            .chain(residual)
            .chain([w.norm_scale, w.norm_bias, w.w_qkv, w.b_qkv])
            .chain(self.attention.inputs())
            .chain([w.w_proj, w.b_proj]);
        let node = plugin_node(self.definition(), self.attributes(residual.is_some()));
        Node { inputs: inputs.map(Some).collect(), ..node }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        let mut attributes =
            vec![AttributeProto::float("epsilon", self.epsilon), AttributeProto::int("residual", residual.into())];
        attributes.extend(self.attention.score_attributes());
        attributes.extend(self.attention.map.attributes());
        let known = self.definition().attributes;
        attributes.retain(|a| known.iter().any(|def| def.name == a.name()));
        attributes
    }

    /// The attributes of a node of either op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        let next = first_weight(node).map(|i| i + 4);
        let attention = if is(node, &SWIN_DEF) {
            Attention::parse(node, Layout::Qkv, next?)?
        } else if is(node, &DEF) {
            let bias = match node.int("bias")? {
                0 => None,
                1 => Some(Bias::Dense(node.input(next?)?)),
                _ => return None,
            };
            let num_heads = node.int("num_heads").filter(|&h| h > 0)?;
            let (scale, map) = (node.float("scale")?, WindowMap::NONE);
            Attention { num_heads, scale, layout: Layout::Qkv, bias, mask: None, map }
        } else {
            return None;
        };
        Some(Self { epsilon: node.float("epsilon")?, attention })
    }

    /// The weights of a node of either op.
    pub fn weights(node: &Node) -> Option<AttnWeights> {
        let (first, last) = (first_weight(node)?, node.inputs.len());
        let [norm_scale, norm_bias, w_qkv, b_qkv] = [0, 1, 2, 3].map(|i| node.input(first + i));
        let [w_proj, b_proj] = [2, 1].map(|back| node.input(last.checked_sub(back)?));
        Some(AttnWeights {
            norm_scale: norm_scale?,
            norm_bias: norm_bias?,
            w_qkv: w_qkv?,
            b_qkv: b_qkv?,
            w_proj: w_proj?,
            b_proj: b_proj?,
        })
    }

    /// The tokens that attend to each other; `None` where x is of no shape that the op takes.
    pub fn tokens(&self, x: &[Dim]) -> Option<i64> {
        if self.in_windows() {
            self.attention.map.partitioned(x)?;
            return Some(self.attention.map.tokens());
        }
        match x {
            [_, n, _] => n.int(),
            _ => None,
        }
    }
}

/// The input that is the norm's scale, of a node with a `residual` or without.
pub(super) fn first_weight(node: &Node) -> Option<usize> {
    Some(if node.int("residual")? != 0 { 2 } else { 1 })
}

/// Channels and head size, if the weights fit the attributes.
fn sizes(graph: &Graph, node: &Node, op: &Attention) -> Option<[i64; 2]> {
    let last = node.inputs.len();
    let matrix = |i: usize| <[i64; 2]>::try_from(graph.static_shape(node.input(i)?)?).ok();
    let ([channels, packed], [inner, out]) = (matrix(first_weight(node)? + 2)?, matrix(last.checked_sub(2)?)?);
    let fits = packed == 3 * inner && out == channels && inner % op.num_heads == 0;
    fits.then_some([channels, inner / op.num_heads])
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (block, x) = (AttnBlock::of(node)?, node.input(0)?);
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    block.tokens(shape)?;
    let [channels, _] = sizes(graph, node, &block.attention)?;
    (shape.last()?.int()? == channels).then(|| vec![Some((dtype, shape.to_vec()))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (block, x) = (AttnBlock::of(node)?, node.input(0)?);
    let (op, dtype) = (&block.attention, graph.dtype(x)?);
    shapes(graph, node)?;
    let tokens = block.tokens(graph.shape(x)?)?;
    let [channels, head] = sizes(graph, node, op)?;
    let s = stream(body, node)?;
    let [scale, bias, w_qkv, b_qkv] = ["norm_scale", "norm_bias", "w_qkv", "b_qkv"].map(|name| body.input(name));
    let terms = attention::terms(body, graph, op, [tokens; 2])?;
    let [w_proj, b_proj] = ["w_proj", "b_proj"].map(|name| body.input(name));
    let weights = [scale, bias, w_qkv, b_qkv, w_proj, b_proj];
    let of = Steps { tokens, channels, head, rows: rows(graph, x)?, dtype };
    let y = steps(body, &block, &s, &weights, &terms, &of);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// Tokens of an image, where it is no map `[B, H, W, C]`.
pub(super) fn rows(graph: &Graph, x: ValueId) -> Option<Option<i64>> {
    rows_of(graph.shape(x)?)
}

/// The same of a shape.
pub(super) fn rows_of(shape: &[Dim]) -> Option<Option<i64>> {
    Some(match reshape_target(shape)?[..] {
        [_, count, _] => Some(count),
        _ => None,
    })
}

/// Sizes of what [`steps`] computes.
pub(super) struct Steps {
    /// That attend to each other.
    pub tokens: i64,
    pub channels: i64,
    /// Size of a head.
    pub head: i64,
    /// Of [`rows`].
    pub rows: Option<i64>,
    pub dtype: DType,
}

/// What a block computes of the stream `s`, as a float value. `weights`: in the order of the op's inputs; `terms`: of the scores.
pub(super) fn steps(
    body: &mut Body,
    block: &AttnBlock,
    s: &str,
    weights: &[String; 6],
    terms: &[Term],
    of: &Steps,
) -> String {
    let map = block.attention.map;
    // What one step gives the next is rounded, sums are float.
    let linear = |body: &mut Body, x: &str, w: &str, b: &str| {
        let product = body.op("MatMul", &[x, w], vec![]);
        body.op("Add", &[&product, b], vec![])
    };
    let stream = body.cast(s, DType::F32);
    let [scale, bias, w_qkv, b_qkv, w_proj, b_proj] = weights.each_ref().map(|v| body.cast(v, DType::F32));
    let normal = body.layer_norm(&stream, &scale, &bias, 1, block.epsilon);
    let normal = body.rounded(&normal, of.dtype);
    let rows = if block.in_windows() { map.partition_body(body, &normal, of.channels, DType::F32) } else { normal };
    let qkv = linear(body, &rows, &w_qkv, &b_qkv);
    let qkv = body.rounded(&qkv, of.dtype);
    let context = attention::packed_body(body, &block.attention, &qkv, of.tokens, of.head, terms);
    let context = body.rounded(&context, of.dtype);
    let mut branch = linear(body, &context, &w_proj, &b_proj);
    if block.in_windows() {
        branch = map.reverse_body(body, &branch, of.channels);
        if let Some(count) = of.rows {
            branch = body.reshape(&branch, &[-1, count, of.channels]);
        }
    }
    body.op("Add", &[&stream, &branch], vec![])
}

/// A norm counts as 8 an element and a softmax as 5 a score, as in the cost model of standard ops.
fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let block = AttnBlock::of(node)?;
    let (x, &[channels, packed]) = (inputs.first()?, inputs.get(first_weight(node)? + 2)?.as_slice()) else {
        return None;
    };
    let windows = if block.in_windows() { block.attention.map.windows() } else { 1 };
    let tokens = if block.in_windows() { block.attention.map.tokens() } else { *x.get(1)? };
    let rows = count(&[*x.first()?, windows, tokens])?;
    work_of(node.int("num_heads")?, rows, tokens, [count(x)?, count(&[channels])?, count(&[packed / 3])?])
}

/// The same from the sizes: heads, rows of windows, tokens that attend to each other; elements of x, channels, columns of all heads.
pub(super) fn work_of(heads: i64, rows: u64, tokens: i64, [elements, channels, inner]: [u64; 3]) -> Option<(u64, u64)> {
    let products = rows.checked_mul(channels.checked_mul(4)?.checked_mul(inner)?)?;
    let macs = products.checked_add(rows.checked_mul(count(&[tokens, 2])?.checked_mul(inner)?)?)?;
    let scores = rows.checked_mul(count(&[tokens, heads])?)?;
    let flops = macs.checked_mul(2)?.checked_add(scores.checked_mul(5)?)?.checked_add(elements.checked_mul(10)?)?;
    Some((flops, macs))
}
