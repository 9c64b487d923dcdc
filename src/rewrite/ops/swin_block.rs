//! `TrtOptSwinBlock`.

use super::attention::{self, SCORE_ATTRIBUTES};
use super::attn_block::{self, AttnBlock, AttnWeights};
use super::body::Body;
use super::mlp_block::{self, MlpBlock, MlpWeights};
use super::window::MAP_ATTRIBUTES;
use super::{AttributeKind, OpDef, Shapes, attribute, is, optional, plugin_node, port};
use crate::ir::{Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptSwinBlock",
    summary: "m + W2 gelu(W1 norm2(m) + b1) + b2, where m is what TrtOptSwinAttnBlock computes",
    replaces: "TrtOptSwinAttnBlock, TrtOptMlpBlock",
    inputs: &[
        port("x", "[B, H*W, C] or [B, H, W, C]"),
        optional("residual", "shape of x; there if residual = 1"),
        port("norm_scale", "[C]"),
        port("norm_bias", "[C]"),
        port("w_qkv", "[C, 3*h*d], columns as (3, h, d)"),
        port("b_qkv", "[3*h*d]"),
        attention::BIAS,
        attention::MASK,
        port("w_proj", "[h*d, C]"),
        port("b_proj", "[C]"),
        port("mlp_scale", "[C]"),
        port("mlp_bias", "[C]"),
        port("w1", "[C, H]"),
        port("b1", "[H]"),
        port("w2", "[H, C]"),
        port("b2", "[C]"),
    ],
    outputs: &[port("y", "shape of x")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance of the norm before the attention"),
        attribute("residual", AttributeKind::Int, "1: residual is there"),
        SCORE_ATTRIBUTES[0],
        SCORE_ATTRIBUTES[1],
        SCORE_ATTRIBUTES[2],
        SCORE_ATTRIBUTES[3],
        SCORE_ATTRIBUTES[4],
        MAP_ATTRIBUTES[0],
        MAP_ATTRIBUTES[1],
        MAP_ATTRIBUTES[2],
        MAP_ATTRIBUTES[3],
        attribute("mlp_epsilon", AttributeKind::Float, "added to the variance of the norm before the MLP"),
        attribute("approximate", AttributeKind::String, "none: GELU by erf; tanh: by its tanh form"),
    ],
    shapes,
    body,
    work,
};

/// Inputs of the MLP, which are the last.
const MLP_INPUTS: [&str; 6] = ["mlp_scale", "mlp_bias", "w1", "b1", "w2", "b2"];

/// The attributes and optional inputs of a `TrtOptSwinBlock`: those of its halves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SwinBlock {
    /// In windows.
    pub attn: AttnBlock,
    pub mlp: MlpBlock,
}

impl SwinBlock {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>, attn: &AttnWeights, mlp: &MlpWeights) -> Node {
        let mut inputs = self.attn.node(x, residual, attn).inputs;
        inputs.extend([mlp.scale, mlp.bias, mlp.w1, mlp.b1, mlp.w2, mlp.b2].map(Some));
        Node { inputs, ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        let mut attributes = self.attn.attributes(residual);
        attributes.push(AttributeProto::float("mlp_epsilon", self.mlp.epsilon));
        attributes.extend(self.mlp.attributes(residual).into_iter().filter(|a| a.name() == "approximate"));
        attributes
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        let attn = AttnBlock::of(&attn_half(node)?)?;
        let mlp = MlpBlock { epsilon: node.float("mlp_epsilon")?, tanh: mlp_block::is_tanh(node)? };
        Some(Self { attn, mlp })
    }
}

/// The node of the attention block in a node of this op.
fn attn_half(node: &Node) -> Option<Node> {
    is(node, &DEF).then_some(())?;
    let inputs = node.inputs[..first_of_mlp(node)?].to_vec();
    Some(Node { op: attn_block::SWIN_DEF.name.into(), inputs, ..node.clone() })
}

/// The input that is the scale of the MLP's norm.
fn first_of_mlp(node: &Node) -> Option<usize> {
    node.inputs.len().checked_sub(MLP_INPUTS.len())
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    SwinBlock::of(node)?;
    let shapes = attn_block::shapes(graph, &attn_half(node)?)?;
    let weights = mlp_block::weights_from(node, first_of_mlp(node)?)?;
    let [channels, hidden] = <[i64; 2]>::try_from(graph.static_shape(weights.w1)?).ok()?;
    let fits = |v: ValueId, shape: &[i64]| graph.static_shape(v).is_some_and(|found| found == shape);
    let whole = [weights.scale, weights.bias, weights.b2].iter().all(|&v| fits(v, &[channels]))
        && fits(weights.b1, &[hidden])
        && fits(weights.w2, &[hidden, channels])
        && graph.shape(node.input(0)?)?.last()?.int() == Some(channels);
    whole.then_some(shapes)
}

/// What the attention block gives stays float for the MLP.
fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let dtype: DType = graph.dtype(node.input(0)?)?;
    shapes(graph, node)?;
    let m = attn_block::steps(body, graph, &attn_half(node)?)?;
    let weights = MLP_INPUTS.map(|name| body.input(name));
    let y = mlp_block::steps(body, &m, weights, &SwinBlock::of(node)?.mlp, dtype);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

/// That of both halves.
fn work(node: &Node, inputs: &[Vec<i64>], outputs: &[Vec<i64>]) -> Option<(u64, u64)> {
    let first = first_of_mlp(node)?;
    let (flops, macs) = attn_block::work(&attn_half(node)?, &inputs[..first], outputs)?;
    let (mlp_flops, mlp_macs) = mlp_block::work_of(inputs.first()?, inputs.get(first + 2)?)?;
    Some((flops.checked_add(mlp_flops)?, macs.checked_add(mlp_macs)?))
}
