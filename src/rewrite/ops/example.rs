//! A typical node of each op: what plugin libraries are tried with.

use super::{
    Attention, AttnBlock, BlockChain, Classifier, ConvBlock, ConvLayer, ConvStack, DepthwiseConv, Gelu, LayerNorm,
    Layout, Mask, MlpBlock, NormPool, OpDef, PatchConv, PatchEmbed, PatchMerge, PatchMergeBlock, PixelEmbed,
    PooledAttnBlock, StackWords, TntBridge, TntInnerBlock, TntWords, Window, WindowMap,
};
use crate::onnx::proto::AttributeProto;

/// Attributes of a node as a rewrite of Swin makes it.
pub fn example(def: &OpDef) -> Vec<AttributeProto> {
    let map = WindowMap::EXAMPLE;
    let mask = Some(Mask::Shift(-100.0));
    let attention = Attention { num_heads: 3, scale: 0.176_776_7, layout: Layout::Qkv, bias: None, mask, map };
    let merge = PatchMerge { epsilon: 1e-5, grid: [56; 2], order: [0, 2, 1, 3], rank: 3 };
    let layer = TntInnerBlock { epsilon: [1e-5; 2], whole: false, num_heads: 4, scale: 0.408_248_3, tanh: false };
    match def.name {
        "TrtOptLayerNorm" => LayerNorm { epsilon: 1e-5, axes: 1, map, reverse: false }.attributes(true, None),
        "TrtOptAttention" => attention.node(&[]).attributes,
        "TrtOptWindow" => Window { map, reverse: true, rank: 3 }.attributes(true),
        "TrtOptPatchMerge" => merge.attributes(true),
        "TrtOptPatchMergeBlock" => PatchMergeBlock { merge }.attributes(true),
        "TrtOptMlpBlock" => MlpBlock { epsilon: 1e-5, tanh: false }.attributes(true, true),
        "TrtOptSwinAttnBlock" => AttnBlock { epsilon: 1e-5, attention }.attributes(true),
        "TrtOptAttnBlock" => {
            let attention = Attention { mask: None, map: WindowMap::NONE, ..attention };
            AttnBlock { epsilon: 1e-6, attention }.attributes(true)
        }
        "TrtOptPooledAttnBlock" => {
            let attention = Attention { layout: Layout::QKv, mask: None, map: WindowMap::NONE, ..attention };
            PooledAttnBlock { epsilon: [1e-5; 2], grid: [16; 2], pool: [2; 2], attention }.attributes(true)
        }
        "TrtOptTntInnerBlock" => layer.attributes(),
        "TrtOptTntWords" => {
            let after = (1..=12).collect();
            let words = TntWords {
                layer,
                layers: 12,
                hidden: 96,
                width: 384,
                channels: 384,
                epsilon: [1e-5; 2],
                tokens: 197,
                begin: 1,
                covered: 196,
                after,
                words: false,
                stacked: 0,
            };
            words.attributes()
        }
        "TrtOptTntBridge" => TntBridge { epsilon: [1e-5; 2], begin: 1 }.attributes(true),
        "TrtOptNormPool" => NormPool { epsilon: 1e-5 }.attributes(true),
        "TrtOptGelu" => Gelu { tanh: false }.attributes(true),
        "TrtOptPatchEmbed" => PatchEmbed { epsilon: 1e-5, rank: 4, grid: None }.attributes(true, true),
        "TrtOptPixelEmbed" => {
            let pairs = [[7, 7], [4, 4], [3, 3], [14, 14], [4, 4]];
            let [kernel, strides, pads, grid, patch] = pairs;
            PixelEmbed { kernel, strides, pads, grid, patch, within: true }.attributes()
        }
        "TrtOptDepthwiseConv" => DepthwiseConv { grid: [14; 2], kernel: 3, residual: true }.attributes(true),
        "TrtOptConvBlock" => ConvBlock { grid: [56; 2], kernel: 5 }.attributes(),
        "TrtOptConvLayer" => ConvLayer { block: ConvBlock { grid: [56; 2], kernel: 5 }, tanh: false }.attributes(),
        "TrtOptClassifier" => Classifier { epsilon: Some(1e-5), token: None }.attributes(true),
        "TrtOptPatchConv" => PatchConv {
            epsilon: 1e-5,
            grid: [32; 2],
            kernel: [3; 2],
            strides: [2; 2],
            pads: [1; 4],
            cell: [1; 2],
            across: 1,
        }
        .attributes(true),
        "TrtOptConvStack" => {
            let words = Some(StackWords { layer: 0, channels: 8, patch: [4; 2] });
            ConvStack { layers: vec![(16, 2), (32, 2), (64, 2), (128, 1)], words }.attributes()
        }
        "TrtOptBlockChain" => BlockChain {
            epsilon: 1e-5,
            num_heads: 3,
            head_dim: 32,
            hidden: 384,
            scale: 0.176_776_7,
            tanh: false,
            bias: true,
            mask_value: -100.0,
            map,
            shifted: vec![false, true],
            between: false,
            merged: None,
        }
        .attributes(),
        other => panic!("op {other} has no example here"),
    }
}
