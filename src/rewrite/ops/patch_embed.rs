//! `TrtOptPatchEmbed`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, pair, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptPatchEmbed",
    summary: "W p + b of the patches p of a map as tokens, normalized if norm = 1",
    replaces: "Conv whose strides are its kernel, Reshape, Transpose, norm",
    inputs: &[
        port("x", "[B, C, H, W], of T or float32; tokens [B, H*W, C] of T if grid = [H, W]"),
        port("w", "[D, C, ph, pw]; [D, ph, pw, C] if x are tokens"),
        optional("b", "[D]; there if bias = 1"),
        optional("norm_scale", "[D]; there if norm = 1"),
        optional("norm_bias", "[D]; there if norm = 1"),
    ],
    outputs: &[port("y", "[B, N, D] or [B, floor(H/ph), floor(W/pw), D], where N = floor(H/ph)*floor(W/pw), of T")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance of the norm"),
        attribute("bias", AttributeKind::Int, "1: b is there"),
        attribute("norm", AttributeKind::Int, "1: norm_scale and norm_bias are there"),
        attribute("rank", AttributeKind::Int, "rank of y, 3 or 4"),
        attribute("grid", AttributeKind::Ints(2), "height and width of the map with tokens x; [0, 0]: x is a map"),
    ],
    shapes,
    body,
    work,
};

/// The largest patch that the plugin takes, in values.
pub const MAX_PATCH: i64 = 16384;

/// The attributes of a `TrtOptPatchEmbed`, but for those that its inputs tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchEmbed {
    /// Of the norm; means nothing without one.
    pub epsilon: f32,
    /// Rank of the output, 3 or 4.
    pub rank: usize,
    /// Height and width of the map that the input is the tokens of; `None`: it is the map.
    pub grid: Option<[i64; 2]>,
}

#[derive(Clone, Copy, Debug)]
pub struct PatchEmbedWeights {
    pub w: ValueId,
    pub b: Option<ValueId>,
    /// Scale and bias of the norm behind it.
    pub norm: Option<[ValueId; 2]>,
}

impl PatchEmbed {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, weights: &PatchEmbedWeights) -> Node {
        let inputs = [x, weights.w].into_iter().chain(weights.b).chain(weights.norm.into_iter().flatten());
        let attributes = self.attributes(weights.b.is_some(), weights.norm.is_some());
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, attributes) }
    }

    pub(super) fn attributes(&self, bias: bool, norm: bool) -> Vec<AttributeProto> {
        vec![
            AttributeProto::float("epsilon", self.epsilon),
            AttributeProto::int("bias", bias.into()),
            AttributeProto::int("norm", norm.into()),
            AttributeProto::int("rank", self.rank as i64),
            AttributeProto::ints("grid", &self.grid.unwrap_or_default()),
        ]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let rank = node.int("rank").filter(|rank| [3, 4].contains(rank))?;
        let grid = pair(node, "grid").filter(|grid| grid.iter().all(|&n| n >= 0))?;
        let grid = (grid != [0; 2]).then_some(grid);
        Some(Self { epsilon: node.float("epsilon")?, rank: rank as usize, grid })
    }

    /// The weights of a node of this op.
    pub fn weights(node: &Node) -> Option<PatchEmbedWeights> {
        let mut rest = node.inputs.iter().copied().skip(2);
        let mut next_if = |name: &str| Some(if node.int(name)? != 0 { Some(rest.next()??) } else { None });
        let (b, scale) = (next_if("bias")?, next_if("norm")?);
        let norm = match scale {
            Some(scale) => Some([scale, rest.next()??]),
            None => None,
        };
        Some(PatchEmbedWeights { w: node.input(1)?, b, norm })
    }

    /// Columns, channels, and height and width of a patch, of weights of this shape.
    fn sizes(&self, w: [i64; 4]) -> [i64; 4] {
        match (self.grid, w) {
            (None, sizes) => sizes,
            (Some(_), [columns, patch_h, patch_w, channels]) => [columns, channels, patch_h, patch_w],
        }
    }

    /// Shape of the output for a map, or its tokens, and weights of these shapes; `None` if they do not fit each other.
    pub fn shape(&self, x: &[Dim], w: [i64; 4]) -> Option<Vec<Dim>> {
        let [columns, channels, patch_h, patch_w] = self.sizes(w);
        let (batch, depth, height, width) = match (self.grid, x) {
            (None, [batch, depth, height, width]) => (batch, depth, height.int()?, width.int()?),
            (Some([height, width]), [batch, line, depth]) => {
                (line.int()? == height.checked_mul(width)?).then_some((batch, depth, height, width))?
            }
            _ => return None,
        };
        (depth.int() == Some(channels) && columns > 0 && channels > 0 && patch_h > 0 && patch_w > 0).then_some(())?;
        let grid = [height / patch_h, width / patch_w];
        grid.iter().all(|&n| n > 0).then_some(())?;
        let tokens = match self.rank {
            3 => vec![grid[0].checked_mul(grid[1])?],
            _ => grid.to_vec(),
        };
        let axes = std::iter::once(batch.clone()).chain(tokens.into_iter().chain([columns]).map(Dim::Int));
        Some(axes.collect())
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (op, weights) = (PatchEmbed::of(node)?, PatchEmbed::weights(node)?);
    let x = node.input(0)?;
    let sizes: [i64; 4] = graph.static_shape(weights.w)?.try_into().ok()?;
    let (dtype, image) = (graph.dtype(weights.w)?, graph.dtype(x)?);
    (image == dtype || (image == DType::F32 && op.grid.is_none())).then_some(())?;
    let vectors = weights.b.into_iter().chain(weights.norm.into_iter().flatten());
    let fits = |v: ValueId| graph.static_shape(v).is_some_and(|found| found == sizes[..1]);
    vectors.into_iter().all(fits).then_some(())?;
    Some(vec![Some((dtype, op.shape(graph.shape(x)?, sizes)?))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (op, weights) = (PatchEmbed::of(node)?, PatchEmbed::weights(node)?);
    let dtype = graph.dtype(weights.w)?;
    let sizes: [i64; 4] = graph.static_shape(weights.w)?.try_into().ok()?;
    shapes(graph, node)?;
    // The product's operand is rounded, its sum is not.
    let x = body.input("x");
    let x = body.cast(&x, dtype);
    let mut x = body.cast(&x, DType::F32);
    let float = |body: &mut Body, name: &str| {
        let value = body.input(name);
        body.cast(&value, DType::F32)
    };
    let mut w = float(body, "w");
    let [columns, channels, patch @ ..] = op.sizes(sizes);
    if let Some([height, width]) = op.grid {
        let map = body.reshape(&x, &[-1, height, width, channels]);
        x = body.transpose(&map, &[0, 3, 1, 2]);
        w = body.transpose(&w, &[0, 3, 1, 2]);
    }
    let mut operands = vec![x, w];
    if weights.b.is_some() {
        operands.push(float(body, "b"));
    }
    let attributes = vec![AttributeProto::ints("kernel_shape", &patch), AttributeProto::ints("strides", &patch)];
    let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
    let map = body.op("Conv", &operands, attributes);
    let mut y = body.transpose(&map, &[0, 2, 3, 1]);
    if weights.norm.is_some() {
        let (scale, bias) = (float(body, "norm_scale"), float(body, "norm_bias"));
        y = body.layer_norm(&y, &scale, &bias, 1, op.epsilon);
    }
    if op.rank == 3 {
        y = body.reshape(&y, &[0, -1, columns]);
    }
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// A norm counts as 8 an element, as in the cost model of standard ops.
fn work(node: &Node, inputs: &[Vec<i64>], outputs: &[Vec<i64>]) -> Option<(u64, u64)> {
    let (_, patch) = inputs.get(1)?.split_first()?;
    let elements = count(outputs.first()?)?;
    let macs = elements.checked_mul(count(patch)?)?;
    let normalized = if node.int("norm")? != 0 { elements.checked_mul(8)? } else { 0 };
    Some((macs.checked_mul(2)?.checked_add(normalized)?, macs))
}
