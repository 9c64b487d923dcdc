//! `TrtOptPatchConv`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, pair, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptPatchConv",
    summary: "a convolution of the tokens of maps, which makes tokens, of their norm if norm = 1; zeros around it",
    replaces: "norm, Transpose, Conv, Transpose",
    inputs: &[
        port("x", "[B, H*W, C]"),
        port("w", "[kh*kw*C, D], rows as (row, column) of the kernel and channel"),
        port("b", "[D]"),
        optional("norm_scale", "[C]; there if norm = 1"),
        optional("norm_bias", "[C]; there if norm = 1"),
    ],
    outputs: &[port("y", "[B, H'*W', D]")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance of the norm"),
        attribute("norm", AttributeKind::Int, "1: norm_scale and norm_bias are there"),
        attribute("grid", AttributeKind::Ints(2), "height and width of a map H, W"),
        attribute("kernel", AttributeKind::Ints(2), "height and width of the kernel kh, kw"),
        attribute("strides", AttributeKind::Ints(2), "of the kernel, down and across"),
        attribute("pads", AttributeKind::Ints(4), "zeros above, left, below and right of a map"),
        attribute("cell", AttributeKind::Ints(2), "height and width of what lies together of a map's tokens ch, cw"),
        attribute("across", AttributeKind::Int, "maps side by side s"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptPatchConv`. Its tokens lie as `[B/s, H/ch, s, W/cw, ch, cw]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PatchConv {
    /// Of the norm; means nothing without one.
    pub epsilon: f32,
    pub grid: [i64; 2],
    pub kernel: [i64; 2],
    pub strides: [i64; 2],
    /// As those of a `Conv`.
    pub pads: [i64; 4],
    pub cell: [i64; 2],
    pub across: i64,
}

#[derive(Clone, Copy, Debug)]
pub struct PatchConvWeights {
    pub w: ValueId,
    pub b: ValueId,
    /// Scale and bias of the norm before it.
    pub norm: Option<[ValueId; 2]>,
}

impl PatchConv {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, weights: &PatchConvWeights) -> Node {
        let inputs = [x, weights.w, weights.b].into_iter().chain(weights.norm.into_iter().flatten());
        let attributes = self.attributes(weights.norm.is_some());
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, attributes) }
    }

    pub(super) fn attributes(&self, norm: bool) -> Vec<AttributeProto> {
        vec![
            AttributeProto::float("epsilon", self.epsilon),
            AttributeProto::int("norm", norm.into()),
            AttributeProto::ints("grid", &self.grid),
            AttributeProto::ints("kernel", &self.kernel),
            AttributeProto::ints("strides", &self.strides),
            AttributeProto::ints("pads", &self.pads),
            AttributeProto::ints("cell", &self.cell),
            AttributeProto::int("across", self.across),
        ]
    }

    /// The attributes of a node of this op; `None` of any other, and where they do not fit each other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let op = Self {
            epsilon: node.float("epsilon")?,
            grid: pair(node, "grid")?,
            kernel: pair(node, "kernel")?,
            strides: pair(node, "strides")?,
            pads: node.ints("pads")?.try_into().ok()?,
            cell: pair(node, "cell")?,
            across: node.int("across")?,
        };
        op.out_grid().map(|_| op)
    }

    /// Height and width of the map that it makes; `None` where it makes none.
    pub fn out_grid(&self) -> Option<[i64; 2]> {
        let side = |axis: usize| {
            let (size, kernel, stride, cell) =
                (self.grid[axis], self.kernel[axis], self.strides[axis], self.cell[axis]);
            let pads = [self.pads[axis], self.pads[axis + 2]];
            let positive = [size, kernel, stride, cell, self.across].iter().all(|&n| n > 0);
            let fits = positive && size % cell == 0 && pads.iter().all(|&n| n >= 0 && n < kernel);
            let room = size.checked_add(pads[0])?.checked_add(pads[1])?.checked_sub(kernel)?;
            (fits && room >= 0).then(|| room / stride + 1)
        };
        Some([side(0)?, side(1)?])
    }

    /// Rows of the weights for so many channels.
    pub fn depth(&self, channels: i64) -> Option<i64> {
        self.kernel[0].checked_mul(self.kernel[1])?.checked_mul(channels)
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let op = PatchConv::of(node)?;
    let x = node.input(0)?;
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    let [images, Dim::Int(tokens), Dim::Int(channels)] = shape else { return None };
    (op.grid[0].checked_mul(op.grid[1]) == Some(*tokens)).then_some(())?;
    images.int().is_none_or(|images| images % op.across == 0).then_some(())?;
    let columns = *graph.static_shape(node.input(1)?)?.last()?;
    let norm = node.int("norm")? != 0;
    let parameters = if norm { vec![vec![*channels]; 2] } else { vec![] };
    let expected = [vec![op.depth(*channels)?, columns], vec![columns]].into_iter().chain(parameters);
    for (i, sizes) in expected.enumerate() {
        (graph.static_shape(node.input(i + 1)?)? == sizes).then_some(())?;
    }
    let [height, width] = op.out_grid()?;
    Some(vec![Some((dtype, vec![images.clone(), height.checked_mul(width)?.into(), columns.into()]))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = PatchConv::of(node)?;
    shapes(graph, node)?;
    let x = node.input(0)?;
    let (dtype, channels) = (graph.dtype(x)?, graph.shape(x)?.last()?.int()?);
    let columns = *graph.static_shape(node.input(1)?)?.last()?;
    let float = |body: &mut Body, name: &str| {
        let value = body.input(name);
        body.cast(&value, DType::F32)
    };
    let (x, w, b) = (float(body, "x"), float(body, "w"), float(body, "b"));
    let mut normal = x;
    if node.int("norm")? != 0 {
        let (scale, bias) = (float(body, "norm_scale"), float(body, "norm_bias"));
        let y = body.layer_norm(&normal, &scale, &bias, 1, op.epsilon);
        normal = body.rounded(&y, dtype);
    }
    let ([h, w_], [ch, cw]) = (op.grid, op.cell);
    let cells = body.reshape(&normal, &[-1, h / ch, op.across, w_ / cw, ch, cw, channels]);
    let cells = body.transpose(&cells, &[0, 2, 6, 1, 4, 3, 5]);
    let map = body.reshape(&cells, &[-1, channels, h, w_]);
    let w = body.reshape(&w, &[op.kernel[0], op.kernel[1], channels, columns]);
    let w = body.transpose(&w, &[3, 2, 0, 1]);
    let attributes = vec![
        AttributeProto::ints("kernel_shape", &op.kernel),
        AttributeProto::ints("strides", &op.strides),
        AttributeProto::ints("pads", &op.pads),
    ];
    let map = body.op("Conv", &[&map, &w, &b], attributes);
    let tokens = body.transpose(&map, &[0, 2, 3, 1]);
    let [out_h, out_w] = op.out_grid()?;
    let y = body.reshape(&tokens, &[-1, out_h.checked_mul(out_w)?, columns]);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// A norm counts as 8 an element, as in the cost model of standard ops.
fn work(node: &Node, inputs: &[Vec<i64>], outputs: &[Vec<i64>]) -> Option<(u64, u64)> {
    let depth = u64::try_from(*inputs.get(1)?.first()?).ok()?;
    let macs = count(outputs.first()?)?.checked_mul(depth)?;
    let normalized = if node.int("norm")? != 0 { count(inputs.first()?)?.checked_mul(8)? } else { 0 };
    Some((macs.checked_mul(2)?.checked_add(normalized)?, macs))
}
