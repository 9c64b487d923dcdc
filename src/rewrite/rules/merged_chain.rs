//! Chains of blocks in windows with the patch merge ahead of them.
//!
//! ```text
//! x -> TrtOptPatchMergeBlock -> TrtOptBlockChain      becomes   TrtOptBlockChain(x), merged > 0
//! ```
//!
//! Runs on both ops as they are. Where they do not match, or are of sizes that the plugin does not take together, both stay.

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId};
use crate::onnx::DType;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{BlockChain, MergedChain, PatchMergeBlock, PatchMergeWeights};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::attn_block::ahead;
use crate::rewrite::rules::block::{Fusion, Outcome, Rule, output, shapes_unfit};
use crate::rewrite::rules::block_chain::{MULTIPLE, Tensors, has_pair_kernel};

const RULE: &str = "merged-chain";
const KIND: Kind = Kind::MergedChain;

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: KIND,
        name: RULE,
        part: Kind::PatchMergeBlock,
        part_of: &|_, anchor| vec![anchor],
        fusion: &|graph, anchor, label| Merged::of(graph, anchor, label)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, |graph, id| PatchMergeBlock::of(graph.node(id)).is_some())
}

/// A patch merge and the chain that alone reads what it gives.
struct Merged {
    op: BlockChain,
    x: ValueId,
    merge: PatchMergeWeights,
    /// Weights and vectors of the chain.
    chain: [ValueId; 2],
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Merged {
    fn of(graph: &Graph, anchor: NodeId, label: &str) -> Outcome<Self> {
        let node = graph.node(anchor);
        let odd = |id: NodeId| Miss::new(graph.node_label(id), "it has other inputs than its op");
        let block = PatchMergeBlock::of(node).ok_or_else(|| odd(anchor))?;
        let (x, weights) = node.input(0).zip(PatchMergeBlock::weights(node)).ok_or_else(|| odd(anchor))?;
        let mut covers = vec![anchor];
        let (merged, behind) = ahead(graph, output(graph, anchor)?, &mut covers)?;
        let user = graph.node(behind);
        let unlike = |found: String| {
            Miss::new(label, "no chain of blocks in windows is behind it")
                .expected("TrtOptBlockChain in windows", found)
        };
        let chain = BlockChain::of(user).filter(|_| user.input(0) == Some(merged));
        let chain = chain.ok_or_else(|| unlike(user.qualified_op()))?;
        if chain.map.is_none() {
            return Err(unlike("TrtOptBlockChain of sequences".into()));
        }
        if node.int("residual") != Some(0) {
            return Err(
                Miss::new(label, "a residual add is in its patch merge").expected("residual = 0", "residual = 1")
            );
        }
        let merge = block.merge;
        if merge.epsilon != chain.epsilon {
            return Err(Miss::new(label, "its norms add different epsilons to the variance")
                .expected(format!("{} as in the chain", chain.epsilon), format!("{} in the merge", merge.epsilon)));
        }
        let before = graph.shape(x).and_then(|shape| shape.last()?.int()).unwrap_or_default();
        if before % MULTIPLE != 0 {
            return Err(Miss::new(label, "the tensor cores take no such sizes")
                .expected(format!("a multiple of {MULTIPLE} channels before the merge"), before));
        }
        let columns = graph.static_shape(weights.b).and_then(|sizes| sizes.first().copied()).unwrap_or_default();
        if has_pair_kernel(&chain, columns) {
            let found = format!("{} heads in {columns} channels", chain.num_heads);
            return Err(Miss::new(label, "the chain behind it may be a kernel for each pair of blocks")
                .expected("sizes that have none", found));
        }
        let merged = MergedChain { channels: columns, grid: merge.grid, order: merge.order };
        let halved = merge.grid.map(|side| (side + 1) / 2);
        if halved != chain.map.grid {
            let [from, to] = [halved, chain.map.grid].map(|[h, w]| format!("a map of {h}x{w}"));
            return Err(Miss::new(label, "the chain is of another map than it makes").expected(to, from));
        }
        let tensors = user.input(1).zip(user.input(2)).ok_or_else(|| odd(behind))?;
        let out = output(graph, behind)?;
        covers.push(behind);
        let op = BlockChain { merged: Some(merged), ..chain };
        Ok(Self { op, x, merge: weights, chain: tensors.into(), out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let unfit = || shapes_unfit(label);
        let dtype = graph.dtype(self.x).unwrap_or(DType::F32);
        let mut tensors = Tensors::of(dtype);
        let norm = [self.merge.norm_scale, self.merge.norm_bias];
        tensors.product(graph, self.merge.w, self.merge.b, Some(norm))?;
        let sizes = graph.static_shape(self.merge.w).and_then(|sizes| <[i64; 2]>::try_from(sizes).ok());
        tensors.column_sums(&graph.value(self.merge.w).name, sizes.ok_or_else(unfit)?)?;
        tensors.append(graph, self.chain)?;

        let name = fused_name(graph, label, "TrtOptBlockChain");
        let mut patch = Patch::new(graph, RULE);
        let [weights, vectors] = tensors.finish(&mut patch, &name);
        let stream = graph.shape(self.x).and_then(|from| self.op.stream(from)).ok_or_else(unfit)?;
        let y = patch.value(&name, Some(dtype), Some(stream));
        let fused = self.op.node([self.x, weights, vectors], None);
        Fusion::giving(graph, patch, name, fused, [y, self.out], self.covers).ok_or_else(unfit)
    }
}
