//! Patch merges with the product behind them, which brings the merged channels to those of the next stage.
//!
//! ```text
//! x [, r] -> TrtOptPatchMerge -> MatMul w [-> Add b]      becomes   TrtOptPatchMergeBlock(x [, r])
//! ```
//!
//! Runs on what the rule of patch merges has left, when the residual adds are in them. Where the norm comes behind the product, as in
//! Swin v2, there is no fused patch merge; the ledger says so.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::ir::{Dim, Graph, NodeId, ValueId};
use crate::onnx::DType;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{
    LayerNorm, MAX_CHANNELS, MAX_HIDDEN, MULTIPLE, PatchMerge, PatchMergeBlock, PatchMergeWeights,
};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::attn_block::ahead;
use crate::rewrite::rules::block::{
    Fusion, Linear, Outcome, Rule, check_flops, check_types, limits, output, shapes_unfit,
};
use crate::rewrite::rules::patch_merge;

const RULE: &str = "patch-merge-block";

pub fn run(engine: &mut Engine) -> Result<()> {
    let asked = engine.options().kinds.contains(&Kind::PatchMergeBlock);
    let late = if asked { norms_behind_products(engine.graph()) } else { BTreeSet::new() };
    let rule = Rule {
        kind: Kind::PatchMergeBlock,
        name: RULE,
        part: Kind::PatchMerge,
        part_of: &|_, anchor| vec![anchor],
        fusion: &|graph, anchor, label| {
            if late.contains(&anchor) {
                let (expected, found) = ("a norm of the merged channels, then the product", "the product, then a norm");
                return Err(
                    Miss::new(label, "the norm comes behind the product, as in Swin v2").expected(expected, found)
                );
            }
            Block::of(graph, anchor, label)?.fusion(graph, label)
        },
    };
    rule.run_if_asked(engine, |graph, id| PatchMerge::of(graph.node(id)).is_some() || late.contains(&id))
}

/// The merges that are followed by a product and then a fused norm, by the nodes that the ledger knows them by.
fn norms_behind_products(graph: &Graph) -> BTreeSet<NodeId> {
    let norm_behind = |out: ValueId| -> Outcome<bool> {
        let (merged, _) = ahead(graph, out, &mut vec![])?;
        let (_, product) = Linear::after(graph, merged)?;
        let (_, next) = ahead(graph, product, &mut vec![])?;
        Ok(LayerNorm::of(graph.node(next)).is_some())
    };
    let late = patch_merge::unfused(graph).into_iter().filter(|&(_, out)| norm_behind(out).unwrap_or(false));
    late.map(|(anchor, _)| anchor).collect()
}

/// A whole block.
struct Block {
    merge: PatchMerge,
    x: ValueId,
    residual: Option<ValueId>,
    scale: ValueId,
    bias: ValueId,
    linear: Linear,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Block {
    fn of(graph: &Graph, anchor: NodeId, label: &str) -> Outcome<Self> {
        let node = graph.node(anchor);
        let merge = PatchMerge::of(node).ok_or_else(|| {
            Miss::new(label, "its patch merge is not fused").expected("TrtOptPatchMerge", node.qualified_op())
        })?;
        let (x, residual, scale, bias) = match node.inputs[..] {
            [Some(x), Some(scale), Some(bias)] => (x, None, scale, bias),
            [Some(x), residual @ Some(_), Some(scale), Some(bias)] => (x, residual, scale, bias),
            _ => {
                let found = format!("{} inputs", node.inputs.len());
                return Err(Miss::new(label, "its patch merge has other inputs than the op").expected("3 or 4", found));
            }
        };
        let mut covers = vec![anchor];
        let (normal, _) = ahead(graph, output(graph, anchor)?, &mut covers)?;
        let (linear, out) = Linear::after(graph, normal)?;
        covers.extend(&linear.covers);
        check_types(graph, label, x, [&linear, &linear])?;
        check_sizes(label, &linear, graph.static_shape(scale).as_deref().unwrap_or_default())?;
        let merged = graph.shape(x).and_then(|from| merge.shape(from)).ok_or_else(|| shapes_unfit(label))?;
        check_flops(label, &merged[..merged.len() - 1], &[&linear], limits::MERGE_FLOPS, "")?;
        Ok(Self { merge, x, residual, scale, bias, linear, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let unfit = || shapes_unfit(label);
        let name = fused_name(graph, label, "TrtOptPatchMergeBlock");
        let mut patch = Patch::new(graph, RULE);
        let dtype = graph.dtype(self.x);
        let b = self.linear.offset(&mut patch, dtype.unwrap_or(DType::F32), &format!("{name}/b"));
        let weights = PatchMergeWeights { norm_scale: self.scale, norm_bias: self.bias, w: self.linear.w, b };
        let (from, to) = (graph.shape(self.x).ok_or_else(unfit)?, graph.shape(self.out).ok_or_else(unfit)?.to_vec());
        let [_, columns] = self.linear.sizes;
        let of_rank = |rank: usize| {
            let block = PatchMergeBlock { merge: PatchMerge { rank, ..self.merge } };
            Some((block, block.shape(from, columns)?))
        };
        let whole = |found: &(PatchMergeBlock, Vec<Dim>)| found.1 == to;
        let (block, shape) = of_rank(4).filter(whole).or_else(|| of_rank(3)).ok_or_else(unfit)?;
        let y = patch.value(&name, dtype, Some(shape));
        let fused = block.node(self.x, self.residual, &weights);
        Fusion::giving(graph, patch, name, fused, [y, self.out], self.covers).ok_or_else(unfit)
    }
}

/// Sizes that the plugin takes, and is made for.
fn check_sizes(label: &str, linear: &Linear, scale: &[i64]) -> Outcome<()> {
    let [width, columns] = linear.sizes;
    if scale != [width] {
        return Err(Miss::new(label, "the product is not of the merged channels")
            .expected(format!("{scale:?} rows of its weight"), width));
    }
    let channels = width / 4;
    if width % (4 * MULTIPLE) != 0 || columns % MULTIPLE != 0 {
        return Err(Miss::new(label, "the tensor cores take no such sizes").expected(
            format!("multiples of {MULTIPLE}"),
            format!("{channels} channels before the merge, {columns} behind the product"),
        ));
    }
    if width > MAX_HIDDEN || columns > MAX_CHANNELS {
        return Err(Miss::new(label, "the block is too large").expected(
            format!("at most {} channels before the merge, {MAX_CHANNELS} behind the product", MAX_HIDDEN / 4),
            format!("{channels} and {columns}"),
        ));
    }
    Ok(())
}
