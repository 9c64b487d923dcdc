//! `TrtOptPatchMerge`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, pair, plugin_node, port, reshapeable};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptPatchMerge",
    summary: "2x2 neighbourhoods of x or x + residual gathered onto the channels, then layer norm",
    replaces: "Add, Slice x4 and Concat, or Reshape/Transpose/Reshape, then a norm",
    inputs: &[
        port("x", "[B, H*W, C] or [B, H, W, C]"),
        optional("residual", "shape of x; there if residual = 1"),
        port("scale", "[4C]"),
        port("bias", "[4C]"),
    ],
    outputs: &[port("y", "[B, ceil(H/2)*ceil(W/2), 4C] or [B, ceil(H/2), ceil(W/2), 4C]")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
        attribute("grid", AttributeKind::Ints(2), "height and width of the token map"),
        attribute("order", AttributeKind::Ints(4), "quadrant 2*dy + dx of each channel block"),
        attribute("rank", AttributeKind::Int, "rank of y: 3 or 4"),
    ],
    shapes,
    body,
    work: |node, _, outputs| {
        Some((count(outputs.first()?)?.checked_mul(8 + u64::from(node.int("residual")? != 0))?, 0))
    },
};

/// The attributes of a `TrtOptPatchMerge`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchMerge {
    pub epsilon: f32,
    pub grid: [i64; 2],
    /// Quadrant `2*dy + dx` of each channel block; Swin: `[0, 2, 1, 3]`.
    pub order: [i64; 4],
    /// Rank of the output: 3 or 4.
    pub rank: usize,
}

impl PatchMerge {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, scale: ValueId, bias: ValueId) -> Node {
        let inputs = std::iter::once(x).chain(residual).chain([scale, bias]);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        vec![
            AttributeProto::float("epsilon", self.epsilon),
            AttributeProto::int("residual", residual.into()),
            AttributeProto::ints("grid", &self.grid),
            AttributeProto::ints("order", &self.order),
            AttributeProto::int("rank", self.rank as i64),
        ]
    }

    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then(|| Self::read(node))?
    }

    /// The attributes of a node that has them all.
    pub(super) fn read(node: &Node) -> Option<Self> {
        Some(Self {
            epsilon: node.float("epsilon")?,
            grid: pair(node, "grid")?,
            order: node.ints("order")?.try_into().ok()?,
            rank: usize::try_from(node.int("rank")?).ok()?,
        })
    }

    /// Shape of the output for an input shape; `None` where it does not fit.
    pub fn shape(&self, input: &[Dim]) -> Option<Vec<Dim>> {
        let [h, w] = self.grid;
        let fits = match input {
            [_, n, _] => *n == Dim::Int(h.checked_mul(w)?),
            [_, y, x, _] => *y == Dim::Int(h) && *x == Dim::Int(w),
            _ => false,
        };
        if !fits || h < 1 || w < 1 {
            return None;
        }
        let channels = input.last()?.mul(&4.into())?;
        let (h, w) = ((h + 1) / 2, (w + 1) / 2);
        Some(match self.rank {
            3 => vec![input[0].clone(), (h * w).into(), channels],
            4 => vec![input[0].clone(), h.into(), w.into(), channels],
            _ => return None,
        })
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let x = node.input(0)?;
    Some(vec![Some((graph.dtype(x)?, PatchMerge::of(node)?.shape(graph.shape(x)?)?))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (merge, x) = (PatchMerge::of(node)?, node.input(0)?);
    let out = merge.shape(graph.shape(x)?)?;
    let s = stream(body, node)?;
    let (scale, bias) = (body.input("scale"), body.input("bias"));
    let y = normalized(body, graph, x, &merge, [&s, &scale, &bias])?;
    let dims: Vec<i64> = std::iter::once(Some(-1)).chain(out[1..].iter().map(Dim::int)).collect::<Option<_>>()?;
    let y = body.reshape(&y, &dims);
    body.output(&y, "y");
    Some(())
}

/// What an op reads: input `x`, or its sum with `residual`.
pub(super) fn stream(body: &mut Body, node: &Node) -> Option<String> {
    let x = body.input("x");
    if node.int("residual")? == 0 {
        return Some(x);
    }
    let r = body.input("residual");
    Some(body.op("Add", &[&x, &r], vec![]))
}

/// The merged and normalized map `[B, ceil(H/2), ceil(W/2), 4C]`, in the type of `x`.
pub(super) fn normalized(
    body: &mut Body,
    graph: &Graph,
    x: ValueId,
    merge: &PatchMerge,
    [s, scale, bias]: [&str; 3],
) -> Option<String> {
    let (dtype, channels) = (graph.dtype(x)?, *reshapeable(graph, x)?.last()?);
    let [h, w] = merge.grid;
    let map = body.reshape(s, &[-1, h, w, channels]);
    let map = body.pad_end(&map, &[0, h % 2, w % 2, 0], dtype);
    let mut parts = vec![];
    for quadrant in merge.order {
        let rows = body.slice(&map, 1, quadrant / 2, h + h % 2, 2);
        parts.push(body.slice(&rows, 2, quadrant % 2, w + w % 2, 2));
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let merged = body.concat(&parts, 3);
    let [wide, scale, bias] = [&merged, scale, bias].map(|v| body.cast(v, DType::F32));
    let normal = body.layer_norm(&wide, &scale, &bias, 1, merge.epsilon);
    Some(body.cast(&normal, dtype))
}
