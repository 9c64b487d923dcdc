//! `TrtOptLayerNorm`.

use super::body::Body;
use super::window::MAP_ATTRIBUTES;
use super::{AttributeKind, OpDef, Shapes, WindowMap, attribute, count, is, optional, plugin_node, port, reshapeable};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptLayerNorm",
    summary: "layer norm over the last axes; optional adds before it, to all tokens and to a part; windows on the way in or out",
    replaces: "Add, norm (native or decomposed), roll, partition, reverse",
    inputs: &[
        port("x", "[..., C]; with windows [B, H*W, C] or [B, H, W, C]; with reverse = 1 [B*nW, wh*ww, C]"),
        optional("residual", "shape of x, or with reverse = 1 of y; there if residual = 1"),
        optional("part", "[B, M, C], where x is [B, N, C]; there if part_begin >= 0"),
        port("scale", "the normalized axes"),
        port("bias", "the normalized axes"),
    ],
    outputs: &[
        port("y", "shape of x; with windows [B*nW, wh*ww, C]; with reverse = 1 shape of residual"),
        optional("sum", "what is normalized, in the shape of residual or x; there if anything is added"),
    ],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance"),
        attribute("axis", AttributeKind::Int, "first normalized axis, negative"),
        attribute("residual", AttributeKind::Int, "1: residual and sum are there"),
        attribute("part_begin", AttributeKind::Int, "-1, or: part and sum are there, part from this token on"),
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

/// What a `TrtOptLayerNorm` adds to its input before the norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addends {
    pub residual: Option<ValueId>,
    pub part: Option<Part>,
}

/// An operand for some of the tokens, which are the axis before the last of three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub value: ValueId,
    /// The first token that it is added to.
    pub begin: i64,
}

impl Addends {
    /// The operands of a node of the op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let residual = if node.int("residual")? != 0 { Some(node.input(1)?) } else { None };
        let begin = node.int("part_begin")?;
        let part = if begin >= 0 {
            Some(Part { value: node.input(if residual.is_some() { 2 } else { 1 })?, begin })
        } else {
            None
        };
        Some(Self { residual, part })
    }

    pub fn is_empty(&self) -> bool {
        self.residual.is_none() && self.part.is_none()
    }
}

impl LayerNorm {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, added: &Addends, scale: ValueId, bias: ValueId) -> Node {
        let added_values = added.residual.into_iter().chain(added.part.map(|part| part.value));
        let inputs = std::iter::once(x).chain(added_values).chain([scale, bias]).map(Some).collect();
        let attributes = self.attributes(added.residual.is_some(), added.part.map(|part| part.begin));
        Node { inputs, ..plugin_node(&DEF, attributes) }
    }

    pub(super) fn attributes(&self, residual: bool, part_begin: Option<i64>) -> Vec<AttributeProto> {
        let mut attributes = vec![
            AttributeProto::float("epsilon", self.epsilon),
            AttributeProto::int("axis", -(self.axes as i64)),
            AttributeProto::int("residual", residual.into()),
            AttributeProto::int("part_begin", part_begin.unwrap_or(-1)),
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

    /// Whether the node normalizes its input as it is.
    pub fn adds_nothing(node: &Node) -> bool {
        Addends::of(node).is_some_and(|added| added.is_empty())
    }

    /// Whether the map and the shapes of a reverse belong together.
    fn reverses(&self, x: &[Dim], residual: &[Dim]) -> bool {
        self.map.fits(residual) && self.map.partitioned(residual).is_some_and(|windows| windows == x)
    }

    /// Whether a part of this shape may be added to an x of that from token `begin` on.
    pub fn takes_part(&self, x: &[Dim], part: &[Dim], begin: i64) -> bool {
        let ([batch, tokens, channels], [images, covered, width]) = (x, part) else { return false };
        let (Some(tokens), Some(covered)) = (tokens.int(), covered.int()) else { return false };
        let plain = self.axes == 1 && self.map.is_none() && !self.reverse;
        let inside = begin >= 0 && covered > 0 && begin.checked_add(covered).is_some_and(|end| end <= tokens);
        plain && inside && batch == images && channels == width
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (norm, added, x) = (LayerNorm::of(node)?, Addends::of(node)?, node.input(0)?);
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    if let Some(Part { value, begin }) = added.part {
        norm.takes_part(shape, graph.shape(value)?, begin).then_some(())?;
    }
    if norm.reverse {
        let map = graph.shape(added.residual?)?;
        let whole = norm.reverses(shape, map).then(|| map.to_vec())?;
        return Some(vec![Some((dtype, whole.clone())), Some((dtype, whole))]);
    }
    let y = if norm.map.is_none() { shape.to_vec() } else { norm.map.partitioned(shape)? };
    let mut out = vec![Some((dtype, y))];
    if !added.is_empty() {
        out.push(Some((dtype, shape.to_vec())));
    }
    Some(out)
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (norm, added, x) = (LayerNorm::of(node)?, Addends::of(node)?, node.input(0)?);
    let dtype = graph.dtype(x)?;
    let channels = *reshapeable(graph, x)?.last()?;
    let mut s = body.input("x");
    if norm.reverse {
        let map = added.residual?;
        norm.reverses(graph.shape(x)?, graph.shape(map)?).then_some(())?;
        let shape = reshapeable(graph, map)?;
        s = norm.map.reverse_body(body, &s, channels);
        if shape.len() == 3 {
            s = body.reshape(&s, &[-1, shape[1], channels]);
        }
    }
    if added.residual.is_some() {
        let r = body.input("residual");
        s = body.op("Add", &[&s, &r], vec![]);
    }
    if let Some(Part { value, begin }) = added.part {
        let (shape, part) = (graph.shape(x)?, graph.shape(value)?);
        norm.takes_part(shape, part, begin).then_some(())?;
        let after = shape[1].int()? - begin - part[1].int()?;
        let part = body.input("part");
        let whole = body.pad(&part, &[0, begin, 0], &[0, after, 0], dtype);
        s = body.op("Add", &[&s, &whole], vec![]);
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
    if !added.is_empty() {
        body.output(&s, "sum");
    }
    Some(())
}
