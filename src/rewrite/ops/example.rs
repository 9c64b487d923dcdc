//! A typical node of each op: what plugin libraries are tried with.

use super::{Attention, LayerNorm, Layout, Mask, MlpBlock, OpDef, PatchMerge, Window, WindowMap};
use crate::onnx::proto::AttributeProto;

/// Attributes of a node as a rewrite of Swin makes it.
pub fn example(def: &OpDef) -> Vec<AttributeProto> {
    let map = WindowMap::EXAMPLE;
    match def.name {
        "TrtOptLayerNorm" => LayerNorm { epsilon: 1e-5, axes: 1, map, reverse: false }.attributes(true),
        "TrtOptAttention" => {
            let mask = Some(Mask::Shift(-100.0));
            let op = Attention { num_heads: 3, scale: 0.176_776_7, layout: Layout::Qkv, bias: None, mask, map };
            op.node(&[]).attributes
        }
        "TrtOptWindow" => Window { map, reverse: true, rank: 3 }.attributes(true),
        "TrtOptPatchMerge" => PatchMerge { epsilon: 1e-5, grid: [56; 2], order: [0, 2, 1, 3], rank: 3 }.attributes(),
        "TrtOptMlpBlock" => MlpBlock { epsilon: 1e-5, tanh: false }.attributes(true),
        other => panic!("op {other} has no example here"),
    }
}
