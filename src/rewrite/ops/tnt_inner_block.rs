//! `TrtOptTntInnerBlock`.

use super::body::Body;
use super::mlp_block::{gelu, is_tanh};
use super::{
    Attention, AttributeKind, Layout, OpDef, Shapes, WindowMap, attention, attribute, count, is, plugin_node, port,
};
use crate::ir::{Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptTntInnerBlock",
    summary: "s + W2 gelu(W1 norm2(s) + b1) + b2, where s = x + attention(norm1(x) Wqkv + bqkv) Wproj + bproj",
    replaces: "norm, MatMul, Add, attention, MatMul, Add, Add, norm, MatMul, Add, GELU, MatMul, Add, Add",
    inputs: &[
        port("x", "[B, N, C]"),
        port("scale1", "[C]; with whole = 1 [N*C] or [N, C]"),
        port("bias1", "shape of scale1"),
        port("w_qkv", "[C, 3*C], columns as (3, h, d)"),
        port("b_qkv", "[3*C]"),
        port("w_proj", "[C, C]"),
        port("b_proj", "[C]"),
        port("scale2", "as scale1"),
        port("bias2", "shape of scale2"),
        port("w1", "[C, H]"),
        port("b1", "[H]"),
        port("w2", "[H, C]"),
        port("b2", "[C]"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("epsilon1", AttributeKind::Float, "added to the variance of the first norm"),
        attribute("epsilon2", AttributeKind::Float, "added to the variance of the second norm"),
        attribute("whole", AttributeKind::Int, "1: the norms are over N and C together, 0: over C"),
        attribute("num_heads", AttributeKind::Int, "h"),
        attribute("scale", AttributeKind::Float, "multiplies the scores"),
        attribute("approximate", AttributeKind::String, "none: GELU by erf; tanh: by its tanh form"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptTntInnerBlock`, or of all layers of a `TrtOptTntWords`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TntInnerBlock {
    /// Of the two norms.
    pub epsilon: [f32; 2],
    /// The norms are over all tokens of a patch together.
    pub whole: bool,
    pub num_heads: i64,
    pub scale: f32,
    /// The tanh form of GELU instead of erf.
    pub tanh: bool,
}

/// The weights of a `TrtOptTntInnerBlock`; pairs are those of the attention's half and of the MLP's.
#[derive(Clone, Copy, Debug)]
pub struct TntInnerWeights {
    pub norm_scale: [ValueId; 2],
    pub norm_bias: [ValueId; 2],
    pub w_qkv: ValueId,
    pub b_qkv: ValueId,
    pub w_proj: ValueId,
    pub b_proj: ValueId,
    pub w1: ValueId,
    pub b1: ValueId,
    pub w2: ValueId,
    pub b2: ValueId,
}

impl TntInnerBlock {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, weights: &TntInnerWeights) -> Node {
        let w = weights;
        let ([scale1, scale2], [bias1, bias2]) = (w.norm_scale, w.norm_bias);
        let first = [x, scale1, bias1, w.w_qkv, w.b_qkv, w.w_proj, w.b_proj];
        let inputs = first.into_iter().chain([scale2, bias2, w.w1, w.b1, w.w2, w.b2]);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes()) }
    }

    pub(super) fn attributes(&self) -> Vec<AttributeProto> {
        vec![
            AttributeProto::float("epsilon1", self.epsilon[0]),
            AttributeProto::float("epsilon2", self.epsilon[1]),
            AttributeProto::int("whole", self.whole.into()),
            AttributeProto::int("num_heads", self.num_heads),
            AttributeProto::float("scale", self.scale),
            AttributeProto::string("approximate", if self.tanh { "tanh" } else { "none" }),
        ]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then(|| Self::read(node))?
    }

    pub(super) fn read(node: &Node) -> Option<Self> {
        let tanh = is_tanh(node)?;
        Some(Self {
            epsilon: [node.float("epsilon1")?, node.float("epsilon2")?],
            whole: node.int("whole")? != 0,
            num_heads: node.int("num_heads").filter(|&h| h > 0)?,
            scale: node.float("scale")?,
            tanh,
        })
    }
}

/// Tokens, channels and hidden columns, if the weights fit each other and the attributes.
fn sizes(graph: &Graph, node: &Node, block: &TntInnerBlock) -> Option<[i64; 3]> {
    let [_, n, c] = graph.shape(node.input(0)?)? else { return None };
    let (n, c) = (n.int()?, c.int()?);
    let matrix = |i: usize| <[i64; 2]>::try_from(graph.static_shape(node.input(i)?)?).ok();
    let [_, hidden] = matrix(9)?;
    let products = [(3, [c, 3 * c]), (5, [c, c]), (9, [c, hidden]), (11, [hidden, c])];
    let normalized = if block.whole { n.checked_mul(c)? } else { c };
    let norms = [1, 2, 7, 8];
    let fits = products.iter().all(|&(i, shape)| matrix(i) == Some(shape))
        && norms.iter().all(|&i| {
            let shape = node.input(i).and_then(|v| graph.static_shape(v));
            shape.is_some_and(|shape| shape.iter().product::<i64>() == normalized)
        })
        && c % block.num_heads == 0;
    fits.then_some([n, c, hidden])
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (block, x) = (TntInnerBlock::of(node)?, node.input(0)?);
    sizes(graph, node, &block)?;
    Some(vec![Some((graph.dtype(x)?, graph.shape(x)?.to_vec()))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (block, x) = (TntInnerBlock::of(node)?, node.input(0)?);
    let dtype = graph.dtype(x)?;
    let [n, c, _] = sizes(graph, node, &block)?;
    let values: Vec<String> = DEF.inputs.iter().map(|port| body.input(port.name)).collect();
    let y = steps(body, &block, &values, [n, c], dtype)?;
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// What a block computes of its inputs `values`, over `n` tokens of `c` channels, as a float value.
pub(super) fn steps(
    body: &mut Body,
    block: &TntInnerBlock,
    values: &[String],
    [n, c]: [i64; 2],
    dtype: DType,
) -> Option<String> {
    // What one step gives the next is rounded; sums and the residual stream are float.
    let normalize = |body: &mut Body, s: &str, scale: &str, bias: &str, epsilon: f32| {
        let normal = if block.whole {
            let [s, scale, bias] =
                [(s, [-1, n * c]), (scale, [1, n * c]), (bias, [1, n * c])].map(|(v, shape)| body.reshape(v, &shape));
            let [scale, bias] = [scale, bias].map(|v| body.reshape(&v, &[n * c]));
            let normal = body.layer_norm(&s, &scale, &bias, 1, epsilon);
            body.reshape(&normal, &[-1, n, c])
        } else {
            body.layer_norm(s, scale, bias, 1, epsilon)
        };
        body.rounded(&normal, dtype)
    };
    let linear = |body: &mut Body, x: &str, w: &str, b: &str| {
        let product = body.op("MatMul", &[x, w], vec![]);
        body.op("Add", &[&product, b], vec![])
    };
    let values: Vec<String> = values.iter().map(|v| body.cast(v, DType::F32)).collect();
    let [x, scale1, bias1, w_qkv, b_qkv, w_proj, b_proj, scale2, bias2, w1, b1, w2, b2] = &values[..] else {
        return None;
    };

    let normal = normalize(body, x, scale1, bias1, block.epsilon[0]);
    let qkv = linear(body, &normal, w_qkv, b_qkv);
    let qkv = body.rounded(&qkv, dtype);
    let op = Attention {
        num_heads: block.num_heads,
        scale: block.scale,
        layout: Layout::Qkv,
        bias: None,
        mask: None,
        map: WindowMap::NONE,
    };
    let context = attention::packed_body(body, &op, &qkv, n, c / block.num_heads, &[]);
    let context = body.rounded(&context, dtype);
    let projected = linear(body, &context, w_proj, b_proj);
    let s = body.op("Add", &[x, &projected], vec![]);

    let normal = normalize(body, &s, scale2, bias2, block.epsilon[1]);
    let up = linear(body, &normal, w1, b1);
    let active = gelu(body, &up, block.tanh);
    let active = body.rounded(&active, dtype);
    let down = linear(body, &active, w2, b2);
    Some(body.op("Add", &[&s, &down], vec![]))
}

/// A norm counts as 8 an element, a softmax as 5 a score and a GELU as 10, as in the cost model of standard ops.
fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let heads = TntInnerBlock::of(node)?.num_heads;
    let (&[patches, n, c], &[_, hidden]) = (inputs.first()?.as_slice(), inputs.get(9)?.as_slice()) else { return None };
    work_of(heads, [patches, n, c, hidden])
}

/// The same from the sizes: patches, their tokens, channels, hidden columns.
pub(super) fn work_of(heads: i64, [patches, n, c, hidden]: [i64; 4]) -> Option<(u64, u64)> {
    let rows = count(&[patches, n])?;
    let macs = rows.checked_mul(count(&[c, 4 * c + 2 * hidden + 2 * n])?)?;
    let scores = rows.checked_mul(count(&[n, heads])?)?.checked_mul(5)?;
    let active = rows.checked_mul(count(&[hidden, 10])?)?;
    let elements = rows.checked_mul(count(&[c, 18])?)?;
    let flops = macs.checked_mul(2)?.checked_add(scores)?.checked_add(active)?.checked_add(elements)?;
    Some((flops, macs))
}
