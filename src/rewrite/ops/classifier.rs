//! `TrtOptClassifier`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, TensorProto};

pub static DEF: OpDef = OpDef {
    name: "TrtOptClassifier",
    summary: "W p + b, where p is the mean over all tokens of each image, or one token, of x or x + residual, normalized if norm = 1",
    replaces: "Add, norm, then ReduceMean, GlobalAveragePool or Gather, then Gemm or MatMul and Add, and Cast",
    inputs: &[
        port("x", "[B, ..., C], with one axis or more of tokens"),
        optional("residual", "shape of x; there if residual = 1"),
        port("w", "[N, C]"),
        port("b", "[N], of T or float32"),
    ],
    outputs: &[port("y", "[B, N], of the type of b")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance of the norm"),
        attribute("norm", AttributeKind::Int, "1: tokens are normalized, without scale and bias, which are in w and b"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
        attribute("token", AttributeKind::Int, "the token that counts; -1: the mean over all"),
    ],
    shapes,
    body,
    work,
};

/// What the plugin takes at most: channels and classes.
pub const MAX_SIZES: [i64; 2] = [8192, 1 << 20];

/// The attributes of a `TrtOptClassifier`, but for those that its inputs tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Classifier {
    /// Of the norm, if there is one.
    pub epsilon: Option<f32>,
    /// The token that counts; `None`: the mean over all.
    pub token: Option<i64>,
}

impl Classifier {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, w: ValueId, b: ValueId) -> Node {
        let inputs = std::iter::once(x).chain(residual).chain([w, b]);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        vec![
            AttributeProto::float("epsilon", self.epsilon.unwrap_or(0.0)),
            AttributeProto::int("norm", self.epsilon.is_some().into()),
            AttributeProto::int("residual", residual.into()),
            AttributeProto::int("token", self.token.unwrap_or(-1)),
        ]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let epsilon = node.float("epsilon")?;
        let token = node.int("token").filter(|&token| token >= -1)?;
        Some(Self {
            epsilon: (node.int("norm")? != 0).then_some(epsilon),
            token: Some(token).filter(|&token| token >= 0),
        })
    }

    /// The input slot of `b`, of whose type the output is.
    pub fn typed_by(node: &Node) -> Option<usize> {
        Self::of(node)?;
        node.inputs.len().checked_sub(1)
    }

    /// Tokens of an image; `None` for a shape without any, or of which they are not known.
    fn tokens(x: &[Dim]) -> Option<i64> {
        match x {
            [_, tokens @ .., _] if !tokens.is_empty() => Dim::product(tokens)?.int(),
            _ => None,
        }
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let op = Classifier::of(node)?;
    let (x, residual) = (node.input(0)?, node.int("residual")? != 0);
    let (w, b) = if residual { (node.input(2)?, node.input(3)?) } else { (node.input(1)?, node.input(2)?) };
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    let [classes, channels]: [i64; 2] = graph.static_shape(w)?.try_into().ok()?;
    let tokens = Classifier::tokens(shape)?;
    let fits = tokens > 0
        && op.token.is_none_or(|token| token < tokens)
        && shape.last()? == &Dim::Int(channels)
        && graph.static_shape(b)? == [classes]
        && graph.dtype(w)? == dtype
        && (!residual || graph.shape(node.input(1)?)? == shape);
    let out = graph.dtype(b).filter(|&out| out == dtype || out == DType::F32)?;
    fits.then(|| vec![Some((out, vec![shape[0].clone(), classes.into()]))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (op, x) = (Classifier::of(node)?, node.input(0)?);
    let shape = graph.shape(x)?;
    let (tokens, channels) = (Classifier::tokens(shape)?, shape.last()?.int()?);
    let dtype = graph.dtype(node.input(Classifier::typed_by(node)?)?)?;
    shapes(graph, node)?;
    let mut s = body.input("x");
    if node.int("residual")? != 0 {
        let r = body.input("residual");
        s = body.op("Add", &[&s, &r], vec![]);
    }
    let (w, b) = (body.input("w"), body.input("b"));
    let [mut s, w, b] = [&s, &w, &b].map(|v| body.cast(v, DType::F32));
    s = body.reshape(&s, &[-1, tokens, channels]);
    if let Some(token) = op.token {
        s = body.slice(&s, 1, token, token + 1, 1);
    }
    if let Some(epsilon) = op.epsilon {
        let size = usize::try_from(channels).ok()?;
        let [scale, bias] = [1.0, 0.0].map(|v| body.constant(TensorProto::from_f32("", &[channels], &vec![v; size])));
        s = body.layer_norm(&s, &scale, &bias, 1, epsilon);
    }
    let pooled = body.mean(&s, &[1]);
    let y = body.op("Gemm", &[&pooled, &w, &b], vec![AttributeProto::int("transB", 1)]);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// A norm counts as 8 an element, as in the cost model of standard ops; a mean and an add are one more each.
fn work(node: &Node, inputs: &[Vec<i64>], outputs: &[Vec<i64>]) -> Option<(u64, u64)> {
    let op = Classifier::of(node)?;
    let (x, channels) = (inputs.first()?, u64::try_from(*inputs.first()?.last()?).ok()?);
    let macs = count(outputs.first()?)?.checked_mul(channels)?;
    let read = match op.token {
        Some(_) => u64::try_from(*x.first()?).ok()?.checked_mul(channels)?,
        None => count(x)?,
    };
    let an_element =
        8 * u64::from(op.epsilon.is_some()) + u64::from(op.token.is_none()) + u64::from(node.int("residual")? != 0);
    Some((macs.checked_mul(2)?.checked_add(read.checked_mul(an_element)?)?, macs))
}
