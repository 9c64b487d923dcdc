//! `TrtOptGelu`.

use super::body::Body;
use super::mlp_block::{gelu, is_tanh};
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, plugin_node, port};
use crate::ir::{Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptGelu",
    summary: "gelu(x + bias), or gelu(x)",
    replaces: "Add, GELU",
    inputs: &[port("x", "[..., C]"), optional("bias", "[C]; there if bias = 1")],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("bias", AttributeKind::Int, "1: bias is there"),
        attribute("approximate", AttributeKind::String, "none: GELU by erf; tanh: by its tanh form"),
    ],
    shapes,
    body,
    // A GELU counts as 10 an element, as in the cost model of standard ops.
    work: |node, inputs, _| Some((count(inputs.first()?)?.checked_mul(10 + u64::from(node.int("bias")? != 0))?, 0)),
};

/// The attributes of a `TrtOptGelu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gelu {
    /// The tanh form of GELU instead of erf.
    pub tanh: bool,
}

impl Gelu {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, bias: Option<ValueId>) -> Node {
        let inputs = std::iter::once(x).chain(bias).map(Some).collect();
        Node { inputs, ..plugin_node(&DEF, self.attributes(bias.is_some())) }
    }

    pub(super) fn attributes(&self, bias: bool) -> Vec<AttributeProto> {
        vec![
            AttributeProto::int("bias", bias.into()),
            AttributeProto::string("approximate", if self.tanh { "tanh" } else { "none" }),
        ]
    }

    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        Some(Self { tanh: is_tanh(node)? })
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    Gelu::of(node)?;
    let x = node.input(0)?;
    let shape = graph.shape(x)?;
    if node.int("bias")? != 0 && graph.shape(node.input(1)?)? != std::slice::from_ref(shape.last()?) {
        return None;
    }
    Some(vec![Some((graph.dtype(x)?, shape.to_vec()))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = Gelu::of(node)?;
    let dtype = graph.dtype(node.input(0)?)?;
    shapes(graph, node)?;
    let x = body.input("x");
    let mut v = body.cast(&x, DType::F32);
    if node.int("bias")? != 0 {
        let bias = body.input("bias");
        let bias = body.cast(&bias, DType::F32);
        v = body.op("Add", &[&v, &bias], vec![]);
    }
    let y = gelu(body, &v, op.tanh);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}
