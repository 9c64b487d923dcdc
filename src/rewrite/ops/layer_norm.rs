//! `TrtOptLayerNorm`.

use super::body::Body;
use super::window::MAP_ATTRIBUTES;
use super::{AttributeKind, OpDef, Shapes, WindowMap, attribute, count, is, optional, plugin_node, port, reshapeable};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptLayerNorm",
    summary: "layer norm over the last axes; optional residual add before it; windows on the way in or out",
    replaces: "Add, norm (native or decomposed), roll, partition, reverse",
    inputs: &[
        port("x", "[..., C]; with windows [B, H*W, C] or [B, H, W, C]; with reverse = 1 [B*nW, wh*ww, C]"),
        optional("residual", "shape of x, or with reverse = 1 of y; there if residual = 1"),
        port("scale", "the normalized axes"),
        port("bias", "the normalized axes"),
    ],
    outputs: &[
        port("y", "shape of x; with windows [B*nW, wh*ww, C]; with reverse = 1 shape of residual"),
        optional("sum", "x + residual, shape of residual; there if residual = 1"),
    ],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance"),
        attribute("axis", AttributeKind::Int, "first normalized axis, negative"),
        attribute("residual", AttributeKind::Int, "1: residual and sum are there"),
        attribute("reverse", AttributeKind::Int, "1: x comes in windows and is put back first; needs a residual"),
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
    /// Whether the input comes in windows; otherwise, with a map, the output leaves in windows.
    pub reverse: bool,
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
            AttributeProto::int("reverse", self.reverse.into()),
        ];
        attributes.extend(self.map.attributes());
        attributes
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        Some(Self {
            epsilon: node.float("epsilon")?,
            axes: usize::try_from(node.int("axis")?.checked_neg()?).ok().filter(|&a| a > 0)?,
            map: WindowMap::of(node)?,
            reverse: node.int("reverse")? != 0,
        })
    }

    /// Whether the map and the shapes of a reverse belong together.
    fn reverses(&self, x: &[Dim], residual: &[Dim]) -> bool {
        self.map.fits(residual) && self.map.partitioned(residual).is_some_and(|windows| windows == x)
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (norm, x) = (LayerNorm::of(node)?, node.input(0)?);
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    if norm.reverse {
        let map = graph.shape(node.input(1)?)?;
        let whole = (node.int("residual")? != 0 && norm.reverses(shape, map)).then(|| map.to_vec())?;
        return Some(vec![Some((dtype, whole.clone())), Some((dtype, whole))]);
    }
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
    if norm.reverse {
        let map = node.input(1).filter(|_| residual)?;
        norm.reverses(graph.shape(x)?, graph.shape(map)?).then_some(())?;
        let shape = reshapeable(graph, map)?;
        s = norm.map.reverse_body(body, &s, channels);
        if shape.len() == 3 {
            s = body.reshape(&s, &[-1, shape[1], channels]);
        }
    }
    if residual {
        let r = body.input("residual");
        s = body.op("Add", &[&s, &r], vec![]);
    }
    let (scale, bias) = (body.input("scale"), body.input("bias"));
    let [wide, scale, bias] = [&s, &scale, &bias].map(|v| body.cast(v, DType::F32));
    let normal = body.layer_norm(&wide, &scale, &bias, norm.axes as i64, norm.epsilon);
    let mut y = body.cast(&normal, dtype);
    if !norm.map.is_none() && !norm.reverse {
        norm.map.partitioned(graph.shape(x)?)?;
        y = norm.map.partition_body(body, &y, channels, dtype);
    }
    body.output(&y, "y");
    if residual {
        body.output(&s, "sum");
    }
    Some(())
}
