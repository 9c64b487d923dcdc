//! `TrtOptPooledAttnBlock`.

use super::attention::{self, SCORE_ATTRIBUTES};
use super::attn_block::first_weight;
use super::body::Body;
use super::patch_merge::stream;
use super::{
    Attention, AttributeKind, Bias, Layout, OpDef, Shapes, WindowMap, attribute, count, is, optional, pair,
    plugin_node, port,
};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptPooledAttnBlock",
    summary: "s + attention(n Wq + bq, norm'(mean(n) Wpool + bpool) Wkv + bkv) Wproj + bproj, where n = norm(s), mean is of windows of tokens, s = x or x + residual",
    replaces: "Add, norm, MatMul, average pool, MatMul, Add, norm, MatMul, attention, MatMul, Add, Add",
    inputs: &[
        port("x", "[B, H*W, C]"),
        optional("residual", "shape of x; there if residual = 1"),
        port("w_q", "[C, h*d]"),
        port("w_pool", "[C, C]"),
        port("w_kv", "[C, 2*h*d], columns as (2, h, d)"),
        port("w_proj", "[h*d, C]"),
        port("vectors", "[6*C + 3*h*d]: scale and bias of norm, bq, bpool, scale and bias of norm', bkv, bproj"),
        optional("bias", "[P, h or 1, H*W, M], M the windows of an image; there if bias = 1"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance, of norm"),
        attribute("pool_epsilon", AttributeKind::Float, "the same of norm'"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
        attribute("grid", AttributeKind::Ints(2), "height and width of the token map"),
        attribute("pool", AttributeKind::Ints(2), "height and width of a window, which divide the map's"),
        SCORE_ATTRIBUTES[0],
        SCORE_ATTRIBUTES[1],
        attribute("bias", AttributeKind::Int, "0 none, 1 dense"),
    ],
    shapes,
    body,
    work,
};

/// The attributes and optional inputs of a `TrtOptPooledAttnBlock`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PooledAttnBlock {
    /// Of the norm of all tokens, and of that of pooled ones.
    pub epsilon: [f32; 2],
    pub grid: [i64; 2],
    pub pool: [i64; 2],
    /// Of queries, and of keys and values; without windows, mask and bias table.
    pub attention: Attention,
}

/// The weights of such a block.
#[derive(Clone, Copy, Debug)]
pub struct PooledAttnWeights {
    pub w_q: ValueId,
    pub w_pool: ValueId,
    pub w_kv: ValueId,
    pub w_proj: ValueId,
    /// In the order that the op's definition gives.
    pub vectors: ValueId,
}

impl PooledAttnBlock {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, weights: &PooledAttnWeights) -> Node {
        let w = weights;
        let inputs = std::iter::once(x)
            .chain(residual)
            .chain([w.w_q, w.w_pool, w.w_kv, w.w_proj, w.vectors])
            .chain(self.attention.inputs());
        let node = plugin_node(&DEF, self.attributes(residual.is_some()));
        Node { inputs: inputs.map(Some).collect(), ..node }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        let [epsilon, pool_epsilon] = self.epsilon;
        let mut attributes = vec![
            AttributeProto::float("epsilon", epsilon),
            AttributeProto::float("pool_epsilon", pool_epsilon),
            AttributeProto::int("residual", residual.into()),
            AttributeProto::ints("grid", &self.grid),
            AttributeProto::ints("pool", &self.pool),
        ];
        attributes.extend(self.attention.score_attributes());
        attributes.retain(|a| DEF.attributes.iter().any(|def| def.name == a.name()));
        attributes
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let bias = match node.int("bias")? {
            0 => None,
            1 => Some(Bias::Dense(node.input(first_weight(node)? + 5)?)),
            _ => return None,
        };
        let num_heads = node.int("num_heads").filter(|&h| h > 0)?;
        let (scale, map) = (node.float("scale")?, WindowMap::NONE);
        let attention = Attention { num_heads, scale, layout: Layout::QKv, bias, mask: None, map };
        let epsilon = [node.float("epsilon")?, node.float("pool_epsilon")?];
        Some(Self { epsilon, grid: pair(node, "grid")?, pool: pair(node, "pool")?, attention })
    }

    /// The weights of a node of this op.
    pub fn weights(node: &Node) -> Option<PooledAttnWeights> {
        let first = first_weight(node)?;
        let [w_q, w_pool, w_kv, w_proj, vectors] = [0, 1, 2, 3, 4].map(|i| node.input(first + i));
        Some(PooledAttnWeights { w_q: w_q?, w_pool: w_pool?, w_kv: w_kv?, w_proj: w_proj?, vectors: vectors? })
    }

    /// Tokens and pooled tokens of an image; `None` where the windows do not divide the map.
    pub fn tokens(&self) -> Option<[i64; 2]> {
        let ([h, w], [k, l]) = (self.grid, self.pool);
        let fits = k > 0 && l > 0 && h > 0 && w > 0 && h % k == 0 && w % l == 0;
        fits.then_some([h.checked_mul(w)?, (h / k) * (w / l)])
    }
}

/// Elements of the input `vectors`, part by part.
fn vectors(channels: i64, inner: i64) -> [i64; 8] {
    [channels, channels, inner, channels, channels, channels, 2 * inner, channels]
}

/// Channels and columns of all heads, if the weights fit each other.
fn sizes(graph: &Graph, node: &Node, op: &Attention) -> Option<[i64; 2]> {
    let w = PooledAttnBlock::weights(node)?;
    let [channels, inner] = <[i64; 2]>::try_from(graph.static_shape(w.w_q)?).ok()?;
    let expected = [
        (w.w_pool, vec![channels; 2]),
        (w.w_kv, vec![channels, 2 * inner]),
        (w.w_proj, vec![inner, channels]),
        (w.vectors, vec![vectors(channels, inner).iter().sum()]),
    ];
    let fits = expected.into_iter().all(|(value, shape)| graph.static_shape(value) == Some(shape));
    (fits && inner % op.num_heads == 0).then_some([channels, inner])
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (block, x) = (PooledAttnBlock::of(node)?, node.input(0)?);
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    let [_, Dim::Int(tokens), Dim::Int(channels)] = shape else { return None };
    let fits = block.tokens()?[0] == *tokens && sizes(graph, node, &block.attention)?[0] == *channels;
    fits.then(|| vec![Some((dtype, shape.to_vec()))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let block = PooledAttnBlock::of(node)?;
    shapes(graph, node)?;
    let (op, dtype) = (&block.attention, graph.dtype(node.input(0)?)?);
    let [tokens, pooled] = block.tokens()?;
    let [channels, inner] = sizes(graph, node, op)?;
    let s = stream(body, node)?;
    let weights = ["w_q", "w_pool", "w_kv", "w_proj", "vectors"].map(|name| body.input(name));
    let terms = attention::terms(body, graph, op, [tokens, pooled])?;
    let stream = body.cast(&s, DType::F32);
    let [w_q, w_pool, w_kv, w_proj, packed] = weights.each_ref().map(|v| body.cast(v, DType::F32));
    let mut from = 0;
    let [scale, bias, b_q, b_pool, pool_scale, pool_bias, b_kv, b_proj] = vectors(channels, inner).map(|size| {
        from += size;
        body.slice(&packed, 0, from - size, from, 1)
    });
    // What one step gives the next is rounded, sums are float.
    let linear = |body: &mut Body, x: &str, w: &str, b: &str| {
        let product = body.op("MatMul", &[x, w], vec![]);
        body.op("Add", &[&product, b], vec![])
    };
    let normal = body.layer_norm(&stream, &scale, &bias, 1, block.epsilon[0]);
    let normal = body.rounded(&normal, dtype);
    let queries = linear(body, &normal, &w_q, &b_q);
    let queries = body.rounded(&queries, dtype);
    let ([h, w], [k, l]) = (block.grid, block.pool);
    let windows = body.reshape(&normal, &[-1, h / k, k, w / l, l, channels]);
    let means = body.mean(&windows, &[2, 4]);
    let means = body.reshape(&means, &[-1, pooled, channels]);
    let means = body.rounded(&means, dtype);
    let made = linear(body, &means, &w_pool, &b_pool);
    let made = body.rounded(&made, dtype);
    let made = body.layer_norm(&made, &pool_scale, &pool_bias, 1, block.epsilon[1]);
    let made = body.rounded(&made, dtype);
    let kv = linear(body, &made, &w_kv, &b_kv);
    let kv = body.rounded(&kv, dtype);
    let context = attention::pooled_body(body, op, [&queries, &kv], [tokens, pooled], inner / op.num_heads, &terms);
    let context = body.rounded(&context, dtype);
    let branch = linear(body, &context, &w_proj, &b_proj);
    let y = body.op("Add", &[&stream, &branch], vec![]);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// A norm counts as 8 an element and a softmax as 5 a score, as in the cost model of standard ops.
fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let block = PooledAttnBlock::of(node)?;
    let (&[images, tokens, channels], &[_, inner]) =
        (inputs.first()?.as_slice(), inputs.get(first_weight(node)?)?.as_slice())
    else {
        return None;
    };
    let pooled = block.tokens()?[1];
    let queries = count(&[images, tokens, channels, inner])?.checked_mul(2)?;
    let keys = count(&[images, pooled, channels, channels.checked_add(inner.checked_mul(2)?)?])?;
    let scores = count(&[images, tokens, pooled])?;
    let macs = queries.checked_add(keys)?.checked_add(scores.checked_mul(count(&[2, inner])?)?)?;
    let scores = scores.checked_mul(count(&[block.attention.num_heads])?)?.checked_mul(5)?;
    let elements = count(&[images, tokens, channels])?
        .checked_mul(11)?
        .checked_add(count(&[images, pooled, channels])?.checked_mul(8)?)?;
    Some((macs.checked_mul(2)?.checked_add(scores)?.checked_add(elements)?, macs))
}
