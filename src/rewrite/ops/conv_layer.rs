//! `TrtOptConvLayer`.

use super::body::Body;
use super::conv_block::{block_steps, work_of};
use super::depthwise_conv::{DepthwiseConv, KERNELS, steps};
use super::mlp_block::{self, MlpBlock, is_tanh};
use super::{AttributeKind, ConvBlock, ConvWeights, OpDef, Shapes, attribute, count, is, pair, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

/// Of the position encoding.
pub const POSITION_KERNEL: i64 = 3;

pub static DEF: OpDef = OpDef {
    name: "TrtOptConvLayer",
    summary: "TrtOptDepthwiseConv of 3 x 3 and x, TrtOptConvBlock, and TrtOptMlpBlock without a norm, in turn",
    replaces: "depthwise Conv, Add, MatMul, Add, depthwise Conv, MatMul, Add, Add, MatMul, Add, GELU, MatMul, Add, Add",
    inputs: &[
        port("x", "[B, H*W, C]"),
        port("position_w", "[9, C], rows as (row, column) of the kernel"),
        port("position_b", "[C]"),
        port("w1", "[C, D]"),
        port("b1", "[D]"),
        port("w", "[k*k, D], rows as (row, column) of the kernel"),
        port("b", "[D]"),
        port("w2", "[D, C]"),
        port("b2", "[C]"),
        port("up", "[C, H]"),
        port("up_b", "[H]"),
        port("down", "[H, C]"),
        port("down_b", "[C]"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("grid", AttributeKind::Ints(2), "height and width of the token map"),
        attribute("kernel", AttributeKind::Int, "height and width of the block's kernel: 3, 5 or 7"),
        attribute("approximate", AttributeKind::String, "none: GELU by erf; tanh: by its tanh form"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptConvLayer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvLayer {
    /// The convolution block in it.
    pub block: ConvBlock,
    /// The tanh form of GELU instead of erf.
    pub tanh: bool,
}

/// The weights of a `TrtOptConvLayer`.
#[derive(Clone, Copy, Debug)]
pub struct ConvLayerWeights {
    /// Of the position encoding, with its offset.
    pub position: [ValueId; 2],
    pub block: ConvWeights,
    /// Of the MLP's products, with their offsets.
    pub mlp: [ValueId; 4],
}

impl ConvLayer {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, weights: &ConvLayerWeights) -> Node {
        let ConvWeights { w1, b1, w, b, w2, b2 } = weights.block;
        let inputs = std::iter::once(x).chain(weights.position).chain([w1, b1, w, b, w2, b2]).chain(weights.mlp);
        Node { inputs: inputs.map(Some).collect(), ..plugin_node(&DEF, self.attributes()) }
    }

    pub(super) fn attributes(&self) -> Vec<AttributeProto> {
        vec![
            AttributeProto::ints("grid", &self.block.grid),
            AttributeProto::int("kernel", self.block.kernel),
            AttributeProto::string("approximate", if self.tanh { "tanh" } else { "none" }),
        ]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let kernel = node.int("kernel").filter(|size| KERNELS.contains(size))?;
        Some(Self { block: ConvBlock { grid: pair(node, "grid")?, kernel }, tanh: is_tanh(node)? })
    }
}

/// Columns of the block's first product, and of the MLP's.
fn columns(graph: &Graph, node: &Node) -> Option<[i64; 2]> {
    let of = |input: usize| graph.static_shape(node.input(input)?)?.last().copied();
    Some([of(3)?, of(9)?])
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let block = ConvLayer::of(node)?.block;
    let x = node.input(0)?;
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    let [_, Dim::Int(tokens), Dim::Int(channels)] = shape else { return None };
    let fits = block.grid.iter().all(|&n| n > 0) && block.grid[0].checked_mul(block.grid[1]) == Some(*tokens);
    let (channels, [between, hidden]) = (*channels, columns(graph, node)?);
    let expected = [
        vec![POSITION_KERNEL * POSITION_KERNEL, channels],
        vec![channels],
        vec![channels, between],
        vec![between],
        vec![block.kernel * block.kernel, between],
        vec![between],
        vec![between, channels],
        vec![channels],
        vec![channels, hidden],
        vec![hidden],
        vec![hidden, channels],
        vec![channels],
    ];
    for (i, sizes) in expected.iter().enumerate() {
        (graph.static_shape(node.input(i + 1)?)? == *sizes).then_some(())?;
    }
    fits.then(|| vec![Some((dtype, shape.to_vec()))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = ConvLayer::of(node)?;
    shapes(graph, node)?;
    let x = node.input(0)?;
    let (dtype, channels) = (graph.dtype(x)?, graph.shape(x)?.last()?.int()?);
    let [between, _] = columns(graph, node)?;
    let mut float = |port: &str| {
        let value = body.input(port);
        body.cast(&value, DType::F32)
    };
    let (x, [w, b]) = (float("x"), ["position_w", "position_b"].map(&mut float));
    let weights = ["w1", "b1", "w", "b", "w2", "b2"].map(&mut float);
    let mlp = ["up", "up_b", "down", "down_b"].map(&mut float);
    // Each of the three rounds what it gives.
    let conv = DepthwiseConv { grid: op.block.grid, kernel: POSITION_KERNEL, residual: true };
    let encoded = steps(body, &conv, channels, &x, &w, Some(&b));
    let encoded = body.rounded(&encoded, dtype);
    let mixed = block_steps(body, &op.block, between, &encoded, &weights, dtype);
    let mixed = body.rounded(&mixed, dtype);
    let block = MlpBlock { epsilon: 0.0, tanh: op.tanh };
    let y = mlp_block::steps(body, &block, &mixed, None, &mlp, dtype);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

fn work(_: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let size = |n: i64| u64::try_from(n).ok();
    let of = |input: usize, axis: usize| size(*inputs.get(input)?.get(axis)?);
    let (elements, channels) = (count(inputs.first()?)?, of(3, 0)?);
    let position = elements.checked_mul(of(1, 0)?)?;
    let (block_flops, block_macs) = work_of(elements, [channels, of(3, 1)?], of(5, 0)?)?;
    let (mlp_flops, mlp_macs) = mlp_block::work_of(elements, [channels, of(9, 1)?], false)?;
    let position_flops = position.checked_mul(2)?.checked_add(elements)?;
    let flops = position_flops.checked_add(block_flops)?.checked_add(mlp_flops)?;
    Some((flops, position.checked_add(block_macs)?.checked_add(mlp_macs)?))
}
