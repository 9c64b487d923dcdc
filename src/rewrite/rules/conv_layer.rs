//! Convolution layers: the position encoding, the convolution block and the MLP of a layer as in the first stages of UniFormer, as one op.
//!
//! ```text
//! x -> TrtOptDepthwiseConv (3 x 3, residual) -> TrtOptConvBlock -> TrtOptMlpBlock (without a norm) -> y      becomes   TrtOptConvLayer(x) -> y
//! ```
//!
//! Runs on the blocks that there are. A layer that does not match, and one of sizes that the plugin has no kernel of its own for, stays as it is.

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{
    ConvBlock, ConvLayer, ConvLayerWeights, ConvWeights, DepthwiseConv, MlpBlock, POSITION_KERNEL,
};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::block::limits::ONE_KERNEL_LAYERS;
use crate::rewrite::rules::block::{Fusion, Outcome, Rule, offset_or_zeros, output, single_use};
use crate::rewrite::{ComputeCapability, Kind};

const RULE: &str = "conv-layer";
/// Channels that the plugin has a kernel of its own for, kernels of its convolutions, and of what the MLP's columns must be multiples.
const CHANNELS: [i64; 2] = [64, 128];
const CONVOLUTIONS: [i64; 2] = [3, 5];
const MULTIPLE: i64 = 64;

pub fn run(engine: &mut Engine) -> Result<()> {
    let gpu = engine.options().compute_capability;
    let rule = Rule {
        kind: Kind::ConvLayer,
        name: RULE,
        part: Kind::ConvBlock,
        part_of: &|_, anchor| vec![anchor],
        fusion: &|graph, anchor, label| Layer::of(graph, anchor, label, gpu)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, |graph, id| ConvBlock::of(graph.node(id)).is_some())
}

/// A whole layer.
struct Layer {
    op: ConvLayer,
    x: ValueId,
    position_w: ValueId,
    position_b: Option<ValueId>,
    block: ConvWeights,
    mlp: [ValueId; 4],
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Layer {
    fn of(graph: &Graph, anchor: NodeId, label: &str, gpu: Option<ComputeCapability>) -> Outcome<Self> {
        let node = graph.node(anchor);
        let odd = |id: NodeId| Miss::new(graph.node_label(id), "it has other inputs than its op");
        let block = ConvBlock::of(node).ok_or_else(|| odd(anchor))?;
        let (encoded, weights) = node.input(0).zip(ConvBlock::weights(node)).ok_or_else(|| odd(anchor))?;

        let unlike = |found: String| {
            let reason = "no position encoding goes into it";
            Miss::new(label, reason)
                .expected(format!("TrtOptDepthwiseConv of {POSITION_KERNEL} x {POSITION_KERNEL}, residual = 1"), found)
        };
        let (position, encoding) = graph.producer(encoded).ok_or_else(|| unlike("a graph input".into()))?;
        let conv = DepthwiseConv::of(encoding).ok_or_else(|| unlike(encoding.qualified_op()))?;
        if !conv.residual || conv.kernel != POSITION_KERNEL {
            return Err(unlike(format!("{0} x {0}, residual = {1}", conv.kernel, i32::from(conv.residual))));
        }
        if conv.grid != block.grid {
            let [from, to] = [conv.grid, block.grid].map(|[h, w]| format!("{h} x {w}"));
            return Err(Miss::new(label, "the position encoding is of another map").expected(to, from));
        }
        let (x, position_w) = encoding.input(0).zip(encoding.input(1)).ok_or_else(|| odd(position))?;
        single_use(graph, encoded)?;

        let behind = single_use(graph, output(graph, anchor)?)?;
        let user = graph.node(behind);
        let unfit = |found: String| {
            Miss::new(graph.node_label(behind), "no MLP without a norm is behind it")
                .expected("TrtOptMlpBlock, norm = 0", found)
        };
        let mlp = MlpBlock::of(user).ok_or_else(|| unfit(user.qualified_op()))?;
        let products = MlpBlock::weights(user).ok_or_else(|| odd(behind))?;
        if products.norm.is_some() {
            return Err(unfit("norm = 1".into()));
        }
        let out = output(graph, behind)?;
        let op = ConvLayer { block, tanh: mlp.tanh };
        check_sizes(graph, label, &block, &weights, products.w1)?;
        check_gpu(label, gpu)?;
        Ok(Self {
            op,
            x,
            position_w,
            position_b: encoding.input(2),
            block: weights,
            mlp: [products.w1, products.b1, products.w2, products.b2],
            out,
            covers: vec![position, anchor, behind],
        })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let name = fused_name(graph, label, "TrtOptConvLayer");
        let mut patch = Patch::new(graph, RULE);
        let dtype = graph.dtype(self.x).unwrap_or(DType::F32);
        let channels = graph.static_shape(self.position_w).and_then(|sizes| sizes.last().copied()).unwrap_or_default();
        let b = offset_or_zeros(self.position_b, &mut patch, dtype, channels, &format!("{name}/position_b"));
        let weights = ConvLayerWeights { position: [self.position_w, b], block: self.block, mlp: self.mlp };
        let node = self.op.node(self.x, &weights);
        Fusion::reshaped(graph, patch, label, name, node, [self.x, self.out], self.covers)
    }
}

/// Sizes that the plugin has a kernel of its own for: of others the parts are as fast, and may choose how each goes about it.
fn check_sizes(graph: &Graph, label: &str, block: &ConvBlock, weights: &ConvWeights, up: ValueId) -> Outcome<()> {
    let sizes = |w: ValueId| graph.static_shape(w).and_then(|sizes| <[i64; 2]>::try_from(sizes).ok());
    let ([channels, between], [_, hidden]) =
        sizes(weights.w1).zip(sizes(up)).ok_or_else(|| Miss::new(label, "the sizes of its weights are not known"))?;
    let fits = CHANNELS.contains(&channels)
        && between == channels
        && CONVOLUTIONS.contains(&block.kernel)
        && hidden % MULTIPLE == 0;
    if fits {
        return Ok(());
    }
    let [small, large] = CHANNELS;
    let [small_kernel, large_kernel] = CONVOLUTIONS;
    Err(Miss::new(label, "the plugin has no kernel of its own for such sizes").expected(
        format!("{small} or {large} channels, as many between the products around a convolution of {small_kernel} x {small_kernel} or {large_kernel} x {large_kernel}, and a multiple of {MULTIPLE} in the MLP"),
        format!("{channels} channels, {between} between the products, {0} x {0}, and {hidden} in the MLP", block.kernel),
    ))
}

/// A miss on a GPU that is known to have no kernel of the op's own.
fn check_gpu(label: &str, gpu: Option<ComputeCapability>) -> Outcome<()> {
    match gpu {
        Some(gpu) if gpu != ONE_KERNEL_LAYERS => {
            Err(Miss::new(label, "the plugin has no kernel of its own for it on this GPU")
                .expected(format!("compute capability {ONE_KERNEL_LAYERS}"), gpu.to_string()))
        }
        _ => Ok(()),
    }
}
