//! `TrtOptMlpBlock`.

use super::attn_block::first_weight;
use super::body::Body;
use super::patch_merge::stream;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, plugin_node, port};
use crate::ir::{Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

/// The most channels that the plugin takes.
pub const MAX_CHANNELS: i64 = 2048;
/// The most hidden columns that the plugin takes.
pub const MAX_HIDDEN: i64 = 16384;
/// Channels and hidden columns must be multiples of this for the tensor cores.
pub const MULTIPLE: i64 = 8;

pub static DEF: OpDef = OpDef {
    name: "TrtOptMlpBlock",
    summary: "s + W2 gelu(W1 n + b1) + b2, where s = x or x + residual, n = norm(s) or s",
    replaces: "Add, norm, MatMul, Add, GELU, MatMul, Add, Add",
    inputs: &[
        port("x", "[..., C]"),
        optional("residual", "shape of x; there if residual = 1"),
        optional("scale", "[C]; there if norm = 1"),
        optional("bias", "[C]; there if norm = 1"),
        port("w1", "[C, H]"),
        port("b1", "[H]"),
        port("w2", "[H, C]"),
        port("b2", "[C]"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance of the norm"),
        attribute("residual", AttributeKind::Int, "1: residual is there; 0 without a norm"),
        attribute("norm", AttributeKind::Int, "1: scale and bias are there"),
        attribute("approximate", AttributeKind::String, "none: GELU by erf; tanh: by its tanh form"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptMlpBlock`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpBlock {
    /// Of the norm; means nothing without one.
    pub epsilon: f32,
    /// The tanh form of GELU instead of erf.
    pub tanh: bool,
}

/// The weights of a `TrtOptMlpBlock`.
#[derive(Clone, Copy, Debug)]
pub struct MlpWeights {
    /// Scale and bias of the norm before it.
    pub norm: Option<[ValueId; 2]>,
    pub w1: ValueId,
    pub b1: ValueId,
    pub w2: ValueId,
    pub b2: ValueId,
}

impl MlpBlock {
    /// The node, without outputs. There is no residual without a norm.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, weights: &MlpWeights) -> Node {
        let w = weights;
        let norm = w.norm.into_iter().flatten();
        let inputs = std::iter::once(x).chain(residual).chain(norm).chain([w.w1, w.b1, w.w2, w.b2]);
        let attributes = self.attributes(residual.is_some(), w.norm.is_some());
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, attributes) }
    }

    pub fn attributes(&self, residual: bool, norm: bool) -> Vec<AttributeProto> {
        vec![
            AttributeProto::float("epsilon", self.epsilon),
            AttributeProto::int("residual", residual.into()),
            AttributeProto::int("norm", norm.into()),
            AttributeProto::string("approximate", if self.tanh { "tanh" } else { "none" }),
        ]
    }

    /// The attributes of a node of this op; `None` of any other, and of one with a residual but no norm.
    pub fn of(node: &Node) -> Option<Self> {
        (is(node, &DEF) && (has_norm(node)? || node.int("residual")? == 0)).then_some(())?;
        Some(Self { epsilon: node.float("epsilon")?, tanh: is_tanh(node)? })
    }

    /// The weights of a node of this op.
    pub fn weights(node: &Node) -> Option<MlpWeights> {
        let (norm, first) = (first_weight(node)?, first_matrix(node)?);
        let norm = match has_norm(node)? {
            true => Some([node.input(norm)?, node.input(norm + 1)?]),
            false => None,
        };
        let [w1, b1, w2, b2] = [0, 1, 2, 3].map(|i| node.input(first + i));
        Some(MlpWeights { norm, w1: w1?, b1: b1?, w2: w2?, b2: b2? })
    }
}

fn has_norm(node: &Node) -> Option<bool> {
    Some(node.int("norm")? != 0)
}

/// The input that is the first product's matrix.
fn first_matrix(node: &Node) -> Option<usize> {
    Some(first_weight(node)? + if has_norm(node)? { 2 } else { 0 })
}

/// Whether a node's attribute `approximate` says the tanh form of GELU.
pub(super) fn is_tanh(node: &Node) -> Option<bool> {
    match node.string("approximate")? {
        "none" => Some(false),
        "tanh" => Some(true),
        _ => None,
    }
}

/// Channels and hidden columns, from the first weight matrix.
fn sizes(graph: &Graph, node: &Node) -> Option<[i64; 2]> {
    graph.static_shape(node.input(first_matrix(node)?)?)?.try_into().ok()
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let x = node.input(0)?;
    MlpBlock::of(node)?;
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    let [channels, _] = sizes(graph, node)?;
    (shape.last()?.int()? == channels).then(|| vec![Some((dtype, shape.to_vec()))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (block, x) = (MlpBlock::of(node)?, node.input(0)?);
    let dtype = graph.dtype(x)?;
    shapes(graph, node)?;
    let s = stream(body, node)?;
    let norm = has_norm(node)?.then(|| ["scale", "bias"].map(|name| body.input(name)));
    let products = ["w1", "b1", "w2", "b2"].map(|name| body.input(name));
    let y = steps(body, &block, &s, norm.as_ref(), &products, dtype);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// What a block computes of the stream `s`, as a float value. `norm`: scale and bias; `products`: their weights, in the order of the
/// op's inputs.
pub(super) fn steps(
    body: &mut Body,
    block: &MlpBlock,
    s: &str,
    norm: Option<&[String; 2]>,
    products: &[String; 4],
    dtype: DType,
) -> String {
    // Operands of the products are rounded, sums are float.
    let stream = body.cast(s, DType::F32);
    let norm = norm.map(|norm| norm.each_ref().map(|v| body.cast(v, DType::F32)));
    let [w1, b1, w2, b2] = products.each_ref().map(|v| body.cast(v, DType::F32));
    let rows = match norm {
        Some([scale, bias]) => {
            let normal = body.layer_norm(&stream, &scale, &bias, 1, block.epsilon);
            body.rounded(&normal, dtype)
        }
        None => stream.clone(),
    };
    let up = body.op("MatMul", &[&rows, &w1], vec![]);
    let up = body.op("Add", &[&up, &b1], vec![]);
    let active = gelu(body, &up, block.tanh);
    let active = body.rounded(&active, dtype);
    let down = body.op("MatMul", &[&active, &w2], vec![]);
    let down = body.op("Add", &[&down, &b2], vec![]);
    body.op("Add", &[&stream, &down], vec![])
}

/// GELU of a float value.
pub(super) fn gelu(body: &mut Body, x: &str, tanh: bool) -> String {
    let argument = if tanh {
        let factors = [0.044_715, (2.0 / std::f64::consts::PI).sqrt()].map(|c| c as f32);
        let [cubic, root] = factors.map(|c| body.float(c));
        let square = body.op("Mul", &[x, x], vec![]);
        let cube = body.op("Mul", &[&square, x], vec![]);
        let term = body.op("Mul", &[&cube, &cubic], vec![]);
        let sum = body.op("Add", &[x, &term], vec![]);
        body.op("Mul", &[&sum, &root], vec![])
    } else {
        let root = body.float(std::f32::consts::SQRT_2);
        body.op("Div", &[x, &root], vec![])
    };
    let bent = body.op(if tanh { "Tanh" } else { "Erf" }, &[&argument], vec![]);
    let [one, half] = [1.0, 0.5].map(|c| body.float(c));
    let sum = body.op("Add", &[&bent, &one], vec![]);
    let product = body.op("Mul", &[x, &sum], vec![]);
    body.op("Mul", &[&product, &half], vec![])
}

/// A norm counts as 8 an element and a GELU as 10, as in the cost model of standard ops.
fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let &[channels, hidden] = inputs.get(first_matrix(node)?)?.as_slice() else { return None };
    work_of(count(inputs.first()?)?, [u64::try_from(channels).ok()?, u64::try_from(hidden).ok()?], has_norm(node)?)
}

/// The same from the sizes: elements of x; channels and hidden columns.
pub(super) fn work_of(elements: u64, [channels, hidden]: [u64; 2], norm: bool) -> Option<(u64, u64)> {
    let macs = elements.checked_mul(hidden)?.checked_mul(2)?;
    let active = (elements / channels.max(1)).checked_mul(hidden)?.checked_mul(10)?;
    let flops =
        macs.checked_mul(2)?.checked_add(active)?.checked_add(elements.checked_mul(if norm { 10 } else { 2 })?)?;
    Some((flops, macs))
}
