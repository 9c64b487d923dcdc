//! `TrtOptSwinAttnBlock`.

use super::attention::{self, SCORE_ATTRIBUTES};
use super::body::Body;
use super::window::MAP_ATTRIBUTES;
use super::{
    Attention, AttributeKind, Layout, OpDef, Shapes, attribute, count, is, optional, plugin_node, port, reshapeable,
};
use crate::ir::{Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
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

/// The attributes and optional inputs of a `TrtOptSwinAttnBlock`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SwinAttnBlock {
    pub epsilon: f32,
    /// Of packed queries, keys and values; its map is that of the windows.
    pub attention: Attention,
}

/// The weights of a `TrtOptSwinAttnBlock`.
#[derive(Clone, Copy, Debug)]
pub struct SwinAttnWeights {
    pub norm_scale: ValueId,
    pub norm_bias: ValueId,
    pub w_qkv: ValueId,
    pub b_qkv: ValueId,
    pub w_proj: ValueId,
    pub b_proj: ValueId,
}

impl SwinAttnBlock {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, weights: &SwinAttnWeights) -> Node {
        let w = weights;
        let inputs = std::iter::once(x)
            .chain(residual)
            .chain([w.norm_scale, w.norm_bias, w.w_qkv, w.b_qkv])
            .chain(self.attention.inputs())
            .chain([w.w_proj, w.b_proj]);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        let mut attributes =
            vec![AttributeProto::float("epsilon", self.epsilon), AttributeProto::int("residual", residual.into())];
        attributes.extend(self.attention.score_attributes());
        attributes.extend(self.attention.map.attributes());
        attributes
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let attention = Attention::parse(node, Layout::Qkv, first_weight(node)? + 4)?;
        Some(Self { epsilon: node.float("epsilon")?, attention })
    }
}

/// The input that is the norm's scale.
fn first_weight(node: &Node) -> Option<usize> {
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
    let (block, x) = (SwinAttnBlock::of(node)?, node.input(0)?);
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    block.attention.map.partitioned(shape)?;
    let [channels, _] = sizes(graph, node, &block.attention)?;
    (shape.last()?.int()? == channels).then(|| vec![Some((dtype, shape.to_vec()))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (block, x) = (SwinAttnBlock::of(node)?, node.input(0)?);
    let (op, map, dtype) = (&block.attention, block.attention.map, graph.dtype(x)?);
    shapes(graph, node)?;
    let [channels, d] = sizes(graph, node, op)?;
    let mut s = body.input("x");
    if node.int("residual")? != 0 {
        let r = body.input("residual");
        s = body.op("Add", &[&s, &r], vec![]);
    }
    let [scale, bias, w_qkv, b_qkv] = ["norm_scale", "norm_bias", "w_qkv", "b_qkv"].map(|name| body.input(name));
    let [stream, scale, bias] = [&s, &scale, &bias].map(|v| body.cast(v, DType::F32));
    let normal = body.layer_norm(&stream, &scale, &bias, 1, block.epsilon);
    // What one step gives the next is rounded, sums are float.
    let rounded = |body: &mut Body, v: &str| {
        let narrow = body.cast(v, dtype);
        body.cast(&narrow, DType::F32)
    };
    let linear = |body: &mut Body, x: &str, w: &str, b: &str| {
        let [w, b] = [w, b].map(|v| body.cast(v, DType::F32));
        let product = body.op("MatMul", &[x, &w], vec![]);
        body.op("Add", &[&product, &b], vec![])
    };
    let normal = rounded(body, &normal);
    let windows = map.partition_body(body, &normal, channels, DType::F32);
    let qkv = linear(body, &windows, &w_qkv, &b_qkv);
    let qkv = rounded(body, &qkv);
    let context = attention::packed_body(body, graph, op, &qkv, map.tokens(), d)?;
    let context = rounded(body, &context);
    let [w_proj, b_proj] = ["w_proj", "b_proj"].map(|name| body.input(name));
    let projected = linear(body, &context, &w_proj, &b_proj);
    let mut tokens = map.reverse_body(body, &projected, channels);
    if let [_, count, _] = reshapeable(graph, x)?[..] {
        tokens = body.reshape(&tokens, &[-1, count, channels]);
    }
    let y = body.op("Add", &[&stream, &tokens], vec![]);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// A norm counts as 8 an element and a softmax as 5 a score, as in the cost model of standard ops.
fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let map = SwinAttnBlock::of(node)?.attention.map;
    let (x, &[channels, packed]) = (inputs.first()?, inputs.get(first_weight(node)? + 2)?.as_slice()) else {
        return None;
    };
    let (elements, inner, tokens) = (count(x)?, packed / 3, map.tokens());
    let rows = count(&[*x.first()?, map.windows(), tokens])?;
    let products = rows.checked_mul(count(&[channels, 4, inner])?)?;
    let macs = products.checked_add(rows.checked_mul(count(&[tokens, 2, inner])?)?)?;
    let scores = rows.checked_mul(count(&[tokens, node.int("num_heads")?])?)?;
    let flops = macs.checked_mul(2)?.checked_add(scores.checked_mul(5)?)?.checked_add(elements.checked_mul(10)?)?;
    Some((flops, macs))
}
