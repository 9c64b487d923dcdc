//! `TrtOptNormPool`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptNormPool",
    summary: "layer norm over the last axis of x or x + residual, then the mean over all tokens of each image",
    replaces: "Add, norm, then ReduceMean or GlobalAveragePool over the tokens",
    inputs: &[
        port("x", "[B, ..., C], with one axis or more of tokens"),
        optional("residual", "shape of x; there if residual = 1"),
        port("scale", "[C]"),
        port("bias", "[C]"),
    ],
    outputs: &[port("y", "[B, C]")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
    ],
    shapes,
    body,
    // A norm counts as 8 an element, as in the cost model of standard ops; the mean is one add more.
    work: |node, inputs, _| Some((count(inputs.first()?)?.checked_mul(9 + u64::from(node.int("residual")? != 0))?, 0)),
};

/// The attributes of a `TrtOptNormPool`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormPool {
    pub epsilon: f32,
}

impl NormPool {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, scale: ValueId, bias: ValueId) -> Node {
        let inputs = std::iter::once(x).chain(residual).chain([scale, bias]);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        vec![AttributeProto::float("epsilon", self.epsilon), AttributeProto::int("residual", residual.into())]
    }

    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        Some(Self { epsilon: node.float("epsilon")? })
    }

    /// Shape of the output for an input shape; `None` where it has no tokens.
    pub fn shape(input: &[Dim]) -> Option<Vec<Dim>> {
        match input {
            [batch, _, .., channels] => Some(vec![batch.clone(), channels.clone()]),
            _ => None,
        }
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    NormPool::of(node)?;
    let x = node.input(0)?;
    if node.int("residual")? != 0 && graph.shape(node.input(1)?)? != graph.shape(x)? {
        return None;
    }
    Some(vec![Some((graph.dtype(x)?, NormPool::shape(graph.shape(x)?)?))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (pool, x) = (NormPool::of(node)?, node.input(0)?);
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    NormPool::shape(shape)?;
    let mut s = body.input("x");
    if node.int("residual")? != 0 {
        let r = body.input("residual");
        s = body.op("Add", &[&s, &r], vec![]);
    }
    let (scale, bias) = (body.input("scale"), body.input("bias"));
    let [wide, scale, bias] = [&s, &scale, &bias].map(|v| body.cast(v, DType::F32));
    let normal = body.layer_norm(&wide, &scale, &bias, 1, pool.epsilon);
    let tokens: Vec<i64> = (1..shape.len() as i64 - 1).collect();
    let mean = body.mean(&normal, &tokens);
    let y = body.cast(&mean, dtype);
    body.output(&y, "y");
    Some(())
}
