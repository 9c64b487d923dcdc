//! Swin blocks: a window attention block and the MLP block that reads what it gives.
//!
//! ```text
//! TrtOptSwinAttnBlock(x [, r]) = m -> TrtOptMlpBlock(m) -> y      becomes   TrtOptSwinBlock(x [, r]) -> y
//! ```
//!
//! Runs on what the rules of the two halves have left, when the residual adds are in them. Where one kernel does not take the whole, the
//! halves stay as they are, and the ledger says why.

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId, shape_text};
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{AttnBlock, AttnWeights, MlpBlock, MlpWeights, SwinBlock};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::attn_block::{ahead, regroups};
use crate::rewrite::rules::block::{Fusion, Outcome, Rule, output};

const RULE: &str = "swin-block";

/// What the one kernel takes, a cluster of a block for each head at work on a window.
const HEAD: i64 = 32;
const MAX_HEADS: i64 = 16;
const MAX_TOKENS: i64 = 64;
/// Hidden columns of each head's share: a multiple of so many, and the most.
const HIDDEN_MULTIPLE: i64 = 32;
const MAX_HIDDEN: i64 = 128;
/// Windows and heads of all images, each of which is a block of the kernel. An estimate: up to about two rounds over the multiprocessors
/// of an H100. Swin-T has 192 at stage 1 of one image; nothing was measured.
const MAX_BLOCKS: i64 = 256;

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: Kind::SwinBlock,
        name: RULE,
        part: Kind::SwinAttnBlock,
        part_of: &|_, anchor| vec![anchor],
        fusion: &|graph, anchor, label| Block::of(graph, anchor, label)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, |graph, id| AttnBlock::of(graph.node(id)).is_some_and(|block| block.in_windows()))
}

/// A whole block.
struct Block {
    op: SwinBlock,
    x: ValueId,
    residual: Option<ValueId>,
    attn: AttnWeights,
    mlp: MlpWeights,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Block {
    fn of(graph: &Graph, anchor: NodeId, label: &str) -> Outcome<Self> {
        let node = graph.node(anchor);
        let odd = |at: &str| Miss::new(at, "it has other inputs than its op");
        let attn = AttnBlock::of(node).ok_or_else(|| odd(label))?;
        let attn_weights = AttnBlock::weights(node).ok_or_else(|| odd(label))?;
        let x = node.input(0).ok_or_else(|| odd(label))?;
        let residual = node.input(1).filter(|_| node.int("residual") == Some(1));

        let mut covers = vec![anchor];
        let m = output(graph, anchor)?;
        if !read_by_mlp(graph, m) {
            let readers = graph.uses(m).iter().map(|&id| graph.node(id).qualified_op()).collect::<Vec<_>>().join(", ");
            return Err(Miss::new(label, "no MLP block reads what the attention block gives")
                .expected("TrtOptMlpBlock", if readers.is_empty() { "no reader".into() } else { readers }));
        }
        let (m, reader) = ahead(graph, m, &mut covers)?;
        let (next, at) = (graph.node(reader), graph.node_label(reader));
        let mlp = MlpBlock::of(next).ok_or_else(|| odd(&at))?;
        if next.int("residual") != Some(0) {
            return Err(Miss::new(&at, "the MLP block adds something else to what the attention block gives")
                .expected("no residual", "a residual"));
        }
        let mlp_weights = MlpBlock::weights(next).ok_or_else(|| odd(&at))?;
        covers.push(reader);
        check_sizes(graph, label, x, m, &attn, [attn_weights.w_proj, mlp_weights.w1])?;
        let out = output(graph, reader)?;
        Ok(Self { op: SwinBlock { attn, mlp }, x, residual, attn: attn_weights, mlp: mlp_weights, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let name = fused_name(graph, label, "TrtOptSwinBlock");
        let mut patch = Patch::new(graph, RULE);
        let y = patch.value_like(graph, &name, self.x);
        let mut fused = self.op.node(self.x, self.residual, &self.attn, &self.mlp);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        let out = graph
            .shape(self.out)
            .and_then(|shape| patch.reshape(graph, y, shape, &format!("{name}/shape")))
            .ok_or_else(|| Miss::new(label, "the shape of its result is not known"))?;
        patch.replace(self.out, out);
        patch.cover(self.covers.iter().copied());
        Ok(Fusion { patch, name, covers: self.covers })
    }
}

/// Whether an MLP block reads the value, itself or regrouped.
fn read_by_mlp(graph: &Graph, value: ValueId) -> bool {
    graph.uses(value).iter().any(|&user| {
        let node = graph.node(user);
        let regrouped = || regroups(node) && node.output(0).is_some_and(|out| read_by_mlp(graph, out));
        MlpBlock::of(node).is_some() || regrouped()
    })
}

/// Sizes that the one kernel takes, and is thought to be faster at. `x` is what the block reads, `m` what its MLP does; `proj` and `up` are
/// weights of the two.
fn check_sizes(
    graph: &Graph,
    label: &str,
    x: ValueId,
    m: ValueId,
    attn: &AttnBlock,
    [proj, up]: [ValueId; 2],
) -> Outcome<()> {
    let matrix = |v: ValueId| <[i64; 2]>::try_from(graph.static_shape(v)?).ok();
    let (Some([inner, channels]), Some([read, hidden])) = (matrix(proj), matrix(up)) else {
        return Err(Miss::new(label, "the sizes of its weights are not known"));
    };
    if read != channels || graph.shape(m).and_then(|s| s.last()?.int()) != Some(channels) {
        let found = graph.shape(m).map_or_else(|| "an unknown shape".into(), shape_text);
        return Err(Miss::new(label, "the MLP is not over the channels of the attention")
            .expected(format!("[..., {channels}]"), found));
    }
    let (heads, map) = (attn.attention.num_heads, attn.attention.map);
    let head = inner / heads;
    if head != HEAD || heads > MAX_HEADS || channels != inner || map.tokens() > MAX_TOKENS {
        return Err(Miss::new(label, "one kernel takes no such attention").expected(
            format!("at most {MAX_HEADS} heads of {HEAD} that share the channels, and {MAX_TOKENS} tokens a window"),
            format!("{heads} heads of {head}, {channels} channels, {} tokens", map.tokens()),
        ));
    }
    if hidden % (HIDDEN_MULTIPLE * heads) != 0 || hidden > MAX_HIDDEN * heads {
        return Err(Miss::new(label, "one kernel takes no such MLP").expected(
            format!("a multiple of {} hidden columns, at most {}", HIDDEN_MULTIPLE * heads, MAX_HIDDEN * heads),
            hidden,
        ));
    }
    let images = graph.shape(x).and_then(|s| s.first()?.eval(|_| Some(1)));
    let blocks = images.and_then(|images| images.checked_mul(map.windows())?.checked_mul(heads));
    if blocks.is_none_or(|blocks| blocks > MAX_BLOCKS) {
        let text = |n: Option<i64>| n.map_or_else(|| "an unknown number of".into(), |n| n.to_string());
        return Err(Miss::new(label, "it has so many windows that its halves are faster").expected(
            format!("at most {MAX_BLOCKS} windows and heads, an open batch counted as 1"),
            format!("{} images of {} windows with {heads} heads", text(images), map.windows()),
        ));
    }
    Ok(())
}
