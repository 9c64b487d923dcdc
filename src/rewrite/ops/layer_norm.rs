//! `TrtOptLayerNorm`.

use super::body::Body;
use super::window::MAP_ATTRIBUTES;
use super::{AttributeKind, OpDef, Shapes, WindowMap, attribute, count, optional, plugin_node, port, reshapeable};
use crate::ir::{Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptLayerNorm",
    summary: "layer norm over the last axes; optional residual add before it, optional window partition after it",
    replaces: "Add, norm (native or decomposed), roll, partition",
    inputs: &[
        port("x", "[..., C]; with windows [B, H*W, C] or [B, H, W, C]"),
        optional("residual", "shape of x; there if residual = 1"),
        port("scale", "the normalized axes"),
        port("bias", "the normalized axes"),
    ],
    outputs: &[
        port("y", "shape of x, or [B*nW, wh*ww, C]"),
        optional("sum", "x + residual, shape of x; there if residual = 1"),
    ],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance"),
        attribute("axis", AttributeKind::Int, "first normalized axis, negative"),
        attribute("residual", AttributeKind::Int, "1: residual and sum are there"),
        MAP_ATTRIBUTES[0],
        MAP_ATTRIBUTES[1],
        MAP_ATTRIBUTES[2],
        MAP_ATTRIBUTES[3],
    ],
    shapes,
    body,
    // A norm counts as 8 an element, as in the cost model of standard ops.
    work: |_, inputs, _| Some((count(inputs.first()?)?.checked_mul(8)?, 0)),
};

/// The attributes of a `TrtOptLayerNorm`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    pub epsilon: f32,
    /// Number of normalized trailing axes.
    pub axes: usize,
    pub map: WindowMap,
}

impl LayerNorm {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, scale: ValueId, bias: ValueId) -> Node {
        let inputs = std::iter::once(x).chain(residual).chain([scale, bias]).map(Some).collect();
        Node { inputs, ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        let mut attributes = vec![
            AttributeProto::float("epsilon", self.epsilon),
            AttributeProto::int("axis", -(self.axes as i64)),
            AttributeProto::int("residual", residual.into()),
        ];
        attributes.extend(self.map.attributes());
        attributes
    }

    pub fn of(node: &Node) -> Option<Self> {
        Some(Self {
            epsilon: node.float("epsilon")?,
            axes: usize::try_from(node.int("axis")?.checked_neg()?).ok().filter(|&a| a > 0)?,
            map: WindowMap::of(node)?,
        })
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (norm, x) = (LayerNorm::of(node)?, node.input(0)?);
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    let y = if norm.map.is_none() { shape.to_vec() } else { norm.map.partitioned(shape)? };
    let mut out = vec![Some((dtype, y))];
    if node.int("residual")? != 0 {
        out.push(Some((dtype, shape.to_vec())));
    }
    Some(out)
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (norm, x) = (LayerNorm::of(node)?, node.input(0)?);
    let dtype = graph.dtype(x)?;
    let channels = *reshapeable(graph, x)?.last()?;
    let mut s = body.input("x");
    let residual = node.int("residual")? != 0;
    if residual {
        let r = body.input("residual");
        s = body.op("Add", &[&s, &r], vec![]);
    }
    let (scale, bias) = (body.input("scale"), body.input("bias"));
    let [wide, scale, bias] = [&s, &scale, &bias].map(|v| body.cast(v, DType::F32));
    let normal = body.layer_norm(&wide, &scale, &bias, norm.axes as i64, norm.epsilon);
    let mut y = body.cast(&normal, dtype);
    if !norm.map.is_none() {
        norm.map.partitioned(graph.shape(x)?)?;
        y = norm.map.partition_body(body, &y, channels, dtype);
    }
    body.output(&y, "y");
    if residual {
        body.output(&s, "sum");
    }
    Some(())
}
