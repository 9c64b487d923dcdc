//! `TrtOptMlpBlock`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, optional, plugin_node, port};
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
    summary: "s + W2 gelu(W1 norm(s) + b1) + b2, where s = x or x + residual",
    replaces: "Add, norm, MatMul, Add, GELU, MatMul, Add, Add",
    inputs: &[
        port("x", "[..., C]"),
        optional("residual", "shape of x; there if residual = 1"),
        port("scale", "[C]"),
        port("bias", "[C]"),
        port("w1", "[C, H]"),
        port("b1", "[H]"),
        port("w2", "[H, C]"),
        port("b2", "[C]"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
        attribute("approximate", AttributeKind::String, "none: GELU by erf; tanh: by its tanh form"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptMlpBlock`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpBlock {
    pub epsilon: f32,
    /// The tanh form of GELU instead of erf.
    pub tanh: bool,
}

/// The weights of a `TrtOptMlpBlock`.
#[derive(Clone, Copy, Debug)]
pub struct MlpWeights {
    pub scale: ValueId,
    pub bias: ValueId,
    pub w1: ValueId,
    pub b1: ValueId,
    pub w2: ValueId,
    pub b2: ValueId,
}

impl MlpBlock {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, weights: &MlpWeights) -> Node {
        let w = weights;
        let inputs = std::iter::once(x).chain(residual).chain([w.scale, w.bias, w.w1, w.b1, w.w2, w.b2]);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        vec![
            AttributeProto::float("epsilon", self.epsilon),
            AttributeProto::int("residual", residual.into()),
            AttributeProto::string("approximate", if self.tanh { "tanh" } else { "none" }),
        ]
    }

    pub fn of(node: &Node) -> Option<Self> {
        Some(Self { epsilon: node.float("epsilon")?, tanh: is_tanh(node)? })
    }
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
    let first = if node.int("residual")? != 0 { 4 } else { 3 };
    graph.static_shape(node.input(first)?)?.try_into().ok()
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
    let mut s = body.input("x");
    if node.int("residual")? != 0 {
        let r = body.input("residual");
        s = body.op("Add", &[&s, &r], vec![]);
    }
    let [scale, bias, w1, b1, w2, b2] = ["scale", "bias", "w1", "b1", "w2", "b2"].map(|name| body.input(name));
    let [wide, scale, bias] = [&s, &scale, &bias].map(|v| body.cast(v, DType::F32));
    let normal = body.layer_norm(&wide, &scale, &bias, 1, block.epsilon);
    // Operands of the products are rounded, sums are float.
    let rounded = |body: &mut Body, v: &str| {
        let narrow = body.cast(v, dtype);
        body.cast(&narrow, DType::F32)
    };
    let [w1, b1, w2, b2, stream] = [&w1, &b1, &w2, &b2, &s].map(|v| body.cast(v, DType::F32));
    let normal = rounded(body, &normal);
    let up = body.op("MatMul", &[&normal, &w1], vec![]);
    let up = body.op("Add", &[&up, &b1], vec![]);
    let active = gelu(body, &up, block.tanh);
    let active = rounded(body, &active);
    let down = body.op("MatMul", &[&active, &w2], vec![]);
    let down = body.op("Add", &[&down, &b2], vec![]);
    let y = body.op("Add", &[&stream, &down], vec![]);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
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
    let first = if node.int("residual")? != 0 { 4 } else { 3 };
    let elements = count(inputs.first()?)?;
    let &[channels, hidden] = inputs.get(first)?.as_slice() else { return None };
    let (channels, hidden) = (u64::try_from(channels).ok()?, u64::try_from(hidden).ok()?);
    let macs = elements.checked_mul(hidden)?.checked_mul(2)?;
    let active = (elements / channels.max(1)).checked_mul(hidden)?.checked_mul(10)?;
    let flops = macs.checked_mul(2)?.checked_add(active)?.checked_add(elements.checked_mul(10)?)?;
    Some((flops, macs))
}
