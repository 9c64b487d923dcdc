//! `TrtOptPatchMergeBlock`.

use super::body::Body;
use super::patch_merge::{PatchMerge, normalized, stream};
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;

pub static DEF: OpDef = OpDef {
    name: "TrtOptPatchMergeBlock",
    summary: "norm(2x2 neighbourhoods of x or x + residual on the channels) W + b",
    replaces: "what TrtOptPatchMerge does, then MatMul, Add",
    inputs: &[
        port("x", "[B, H*W, C] or [B, H, W, C]"),
        optional("residual", "shape of x; there if residual = 1"),
        port("norm_scale", "[4C]"),
        port("norm_bias", "[4C]"),
        port("w", "[4C, D]"),
        port("b", "[D]"),
    ],
    outputs: &[port("y", "[B, ceil(H/2)*ceil(W/2), D] or [B, ceil(H/2), ceil(W/2), D]")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
        attribute("grid", AttributeKind::Ints(2), "height and width of the token map"),
        attribute("order", AttributeKind::Ints(4), "quadrant 2*dy + dx of each channel block"),
        attribute("rank", AttributeKind::Int, "rank of y: 3 or 4"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptPatchMergeBlock`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchMergeBlock {
    pub merge: PatchMerge,
}

/// The weights of the norm and of the product.
#[derive(Clone, Copy, Debug)]
pub struct PatchMergeWeights {
    pub norm_scale: ValueId,
    pub norm_bias: ValueId,
    pub w: ValueId,
    pub b: ValueId,
}

impl PatchMergeBlock {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, weights: &PatchMergeWeights) -> Node {
        let w = weights;
        let inputs = std::iter::once(x).chain(residual).chain([w.norm_scale, w.norm_bias, w.w, w.b]);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<crate::onnx::proto::AttributeProto> {
        self.merge.attributes(residual)
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then(|| PatchMerge::read(node))?.map(|merge| Self { merge })
    }

    /// The weights of a node of this op.
    pub fn weights(node: &Node) -> Option<PatchMergeWeights> {
        let first = first_weight(node)?;
        let input = |i: usize| node.input(first + i);
        Some(PatchMergeWeights { norm_scale: input(0)?, norm_bias: input(1)?, w: input(2)?, b: input(3)? })
    }

    /// Shape of the output for an input shape and so many columns of the product; `None` where it does not fit.
    pub fn shape(&self, input: &[Dim], columns: i64) -> Option<Vec<Dim>> {
        let mut shape = self.merge.shape(input)?;
        *shape.last_mut()? = columns.into();
        Some(shape)
    }
}

/// Where the weights begin among the inputs.
fn first_weight(node: &Node) -> Option<usize> {
    Some(if node.int("residual")? != 0 { 2 } else { 1 })
}

/// Shape of the output, if all shapes fit.
fn shape(graph: &Graph, node: &Node) -> Option<Vec<Dim>> {
    let (block, weights) = (PatchMergeBlock::of(node)?, PatchMergeBlock::weights(node)?);
    let x = graph.shape(node.input(0)?)?;
    let &[width, columns] = graph.static_shape(weights.w)?.as_slice() else { return None };
    let fits = |v: ValueId, size: i64| graph.static_shape(v).is_some_and(|found| found == [size]);
    let whole = x.last()?.mul(&4.into())? == Dim::Int(width)
        && fits(weights.norm_scale, width)
        && fits(weights.norm_bias, width)
        && fits(weights.b, columns);
    whole.then(|| block.shape(x, columns))?
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    Some(vec![Some((graph.dtype(node.input(0)?)?, shape(graph, node)?))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (block, x) = (PatchMergeBlock::of(node)?, node.input(0)?);
    let (dtype, out) = (graph.dtype(x)?, shape(graph, node)?);
    let s = stream(body, node)?;
    let [scale, bias, w, b] = ["norm_scale", "norm_bias", "w", "b"].map(|name| body.input(name));
    // The product's operand is rounded, its sum is not.
    let normal = normalized(body, graph, x, &block.merge, [&s, &scale, &bias])?;
    let y = product(body, [&normal, &w, &b], dtype, &out)?;
    body.output(&y, "y");
    Some(())
}

/// The product of normalized rows with `w`, and `b`, as a value of the type and shape.
pub(super) fn product(body: &mut Body, [normal, w, b]: [&str; 3], dtype: DType, shape: &[Dim]) -> Option<String> {
    let [normal, w, b] = [normal, w, b].map(|v| body.cast(v, DType::F32));
    let product = body.op("MatMul", &[&normal, &w], vec![]);
    let product = body.op("Add", &[&product, &b], vec![]);
    let y = body.cast(&product, dtype);
    let dims: Vec<i64> = std::iter::once(Some(-1)).chain(shape[1..].iter().map(Dim::int)).collect::<Option<_>>()?;
    Some(body.reshape(&y, &dims))
}

/// That of so many rows of merged channels without a residual.
pub(super) fn work_of(rows: u64, width: i64, columns: i64) -> Option<(u64, u64)> {
    let merged = rows.checked_mul(count(&[width])?)?;
    let macs = merged.checked_mul(count(&[columns])?)?;
    Some((macs.checked_mul(2)?.checked_add(merged.checked_mul(8)?)?, macs))
}

/// A norm counts as 8 an element, as in the cost model of standard ops.
fn work(node: &Node, inputs: &[Vec<i64>], outputs: &[Vec<i64>]) -> Option<(u64, u64)> {
    let [rows @ .., columns] = outputs.first()?.as_slice() else { return None };
    let &[width, _] = inputs.get(first_weight(node)? + 2)?.as_slice() else { return None };
    let rows = count(rows)?;
    let (flops, macs) = work_of(rows, width, *columns)?;
    let added = if node.int("residual")? == 0 { 0 } else { rows.checked_mul(count(&[width])?)? };
    Some((flops.checked_add(added)?, macs))
}
