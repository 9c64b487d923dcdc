//! `TrtOptConvBlock`.

use super::body::Body;
use super::depthwise_conv::{DepthwiseConv, KERNELS, steps};
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, pair, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptConvBlock",
    summary: "x + W2 conv(W1 x + b1) + b2, where conv is a depthwise convolution of tokens of a map, zeros around it",
    replaces: "MatMul, Add, depthwise Conv, MatMul, Add, Add",
    inputs: &[
        port("x", "[B, H*W, C]"),
        port("w1", "[C, D]"),
        port("b1", "[D]"),
        port("w", "[k*k, D], rows as (row, column) of the kernel"),
        port("b", "[D]"),
        port("w2", "[D, C]"),
        port("b2", "[C]"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("grid", AttributeKind::Ints(2), "height and width of the token map"),
        attribute("kernel", AttributeKind::Int, "height and width of the kernel: 3, 5 or 7"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptConvBlock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvBlock {
    pub grid: [i64; 2],
    pub kernel: i64,
}

/// The weights of a `TrtOptConvBlock`.
#[derive(Clone, Copy, Debug)]
pub struct ConvWeights {
    pub w1: ValueId,
    pub b1: ValueId,
    pub w: ValueId,
    pub b: ValueId,
    pub w2: ValueId,
    pub b2: ValueId,
}

impl ConvBlock {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, weights: &ConvWeights) -> Node {
        let w = weights;
        let inputs = [x, w.w1, w.b1, w.w, w.b, w.w2, w.b2];
        Node { inputs: inputs.map(Some).to_vec(), ..plugin_node(&DEF, self.attributes()) }
    }

    pub(super) fn attributes(&self) -> Vec<AttributeProto> {
        vec![AttributeProto::ints("grid", &self.grid), AttributeProto::int("kernel", self.kernel)]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let kernel = node.int("kernel").filter(|size| KERNELS.contains(size))?;
        Some(Self { grid: pair(node, "grid")?, kernel })
    }

    /// The weights of a node of this op.
    pub fn weights(node: &Node) -> Option<ConvWeights> {
        is(node, &DEF).then_some(())?;
        let [w1, b1, w, b, w2, b2] = [1, 2, 3, 4, 5, 6].map(|i| node.input(i));
        Some(ConvWeights { w1: w1?, b1: b1?, w: w?, b: b?, w2: w2?, b2: b2? })
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let op = ConvBlock::of(node)?;
    let x = node.input(0)?;
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    let [_, Dim::Int(tokens), Dim::Int(channels)] = shape else { return None };
    let fits = op.grid.iter().all(|&n| n > 0) && op.grid[0].checked_mul(op.grid[1]) == Some(*tokens);
    let hidden = columns(graph, node)?;
    let expected = [
        vec![*channels, hidden],
        vec![hidden],
        vec![op.kernel * op.kernel, hidden],
        vec![hidden],
        vec![hidden, *channels],
        vec![*channels],
    ];
    for (i, sizes) in expected.iter().enumerate() {
        (graph.static_shape(node.input(i + 1)?)? == *sizes).then_some(())?;
    }
    fits.then(|| vec![Some((dtype, shape.to_vec()))])
}

/// Of the first product.
fn columns(graph: &Graph, node: &Node) -> Option<i64> {
    graph.static_shape(node.input(1)?)?.last().copied()
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = ConvBlock::of(node)?;
    shapes(graph, node)?;
    let dtype = graph.dtype(node.input(0)?)?;
    let hidden = columns(graph, node)?;
    let values = ["x", "w1", "b1", "w", "b", "w2", "b2"].map(|name| body.input(name));
    let [x, weights @ ..] = values.each_ref().map(|value| body.cast(value, DType::F32));
    let y = block_steps(body, &op, hidden, &x, &weights, dtype);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// What the op computes of tokens and weights in the order of its inputs, all of them float values. `hidden`: columns of the first product.
pub(super) fn block_steps(
    body: &mut Body,
    op: &ConvBlock,
    hidden: i64,
    x: &str,
    [w1, b1, w, b, w2, b2]: &[String; 6],
    dtype: DType,
) -> String {
    // What is between the steps is rounded, sums are float.
    let product = |body: &mut Body, x: &str, w: &str, b: &str| {
        let product = body.op("MatMul", &[x, w], vec![]);
        body.op("Add", &[&product, b], vec![])
    };
    let up = product(body, x, w1, b1);
    let up = body.rounded(&up, dtype);
    let conv = DepthwiseConv { grid: op.grid, kernel: op.kernel, residual: false };
    let mixed = steps(body, &conv, hidden, &up, w, Some(b));
    let mixed = body.rounded(&mixed, dtype);
    let down = product(body, &mixed, w2, b2);
    body.op("Add", &[x, &down], vec![])
}

fn work(_: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let size = |n: i64| u64::try_from(n).ok();
    let (&[channels, hidden], &[places, _]) = (inputs.get(1)?.as_slice(), inputs.get(3)?.as_slice()) else {
        return None;
    };
    let (elements, [channels, hidden, places]) =
        (count(inputs.first()?)?, [size(channels)?, size(hidden)?, size(places)?]);
    work_of(elements, [channels, hidden], places)
}

/// The same from the sizes: elements of x; channels and columns of the first product; places of the kernel.
pub(super) fn work_of(elements: u64, [channels, hidden]: [u64; 2], places: u64) -> Option<(u64, u64)> {
    let mixed = (elements / channels.max(1)).checked_mul(hidden)?.checked_mul(places)?;
    let macs = elements.checked_mul(hidden)?.checked_mul(2)?.checked_add(mixed)?;
    Some((macs.checked_mul(2)?.checked_add(elements)?, macs))
}
