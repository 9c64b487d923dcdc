//! Blocks over few tokens, such as the words of a patch in TNT and PyramidTNT: a fused attention and an MLP, each with its
//! norm and residual add, as one node.
//!
//! ```text
//! x -> TrtOptLayerNorm -> MatMul Wqkv -> Add -> TrtOptAttention -> MatMul Wproj -> Add = a ;  s = x + a
//! s -> TrtOptLayerNorm -> MatMul W1 -> Add -> GELU -> MatMul W2 -> Add = m ;  y = s + m
//! becomes   TrtOptTntInnerBlock(x) -> y
//! ```
//!
//! The norms may be over the channels or, behind Reshapes, over all tokens of a patch. Runs on what the rules of norms, GELUs
//! and attentions have left, and before those of smaller blocks. A block that does not match stays as it is, with its smaller
//! fusions.

use crate::error::Result;
use crate::ir::{Dim, Graph, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{Attention, LayerNorm, Layout, TntInnerBlock, TntInnerWeights};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::attn_block::{ahead, back, regroups, root};
use crate::rewrite::rules::block::{Fusion, Linear, Outcome, Rule, check_types, output};
use crate::rewrite::rules::gelu::{Gelu, is_anchor, match_gelu};

const RULE: &str = "tnt-inner-block";

/// What the one kernel takes.
const MAX_TOKENS: i64 = 16;
const MAX_CHANNELS: i64 = 64;
const MAX_HIDDEN: i64 = 256;
const MAX_HEAD: i64 = 16;

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: Kind::TntInnerBlock,
        name: RULE,
        part: Kind::Attention,
        part_of: &|_, anchor| vec![anchor],
        fusion: &|graph, anchor, label| Ok(Block::of(graph, anchor, label)?.fusion(graph, label)),
    };
    rule.run_if_asked(engine, is_site)
}

/// A fused attention over few tokens, with nothing but its scores: those with a bias or a mask are of windows.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let tokens = || tokens_of(graph, node.input(0)?);
    Attention::of(node).is_some_and(|op| op.bias.is_none() && op.mask.is_none() && op.layout != Layout::Bhnd)
        && tokens().is_some_and(|n| n <= MAX_TOKENS)
}

/// The axis before the last of three.
fn tokens_of(graph: &Graph, value: ValueId) -> Option<i64> {
    match graph.shape(value)? {
        [_, n, _] => n.int(),
        _ => None,
    }
}

/// A fused norm in front of a product.
struct Norm {
    stream: ValueId,
    scale: ValueId,
    bias: ValueId,
    epsilon: f32,
    /// Over all tokens of a patch.
    whole: bool,
}

/// A whole block.
struct Block {
    op: TntInnerBlock,
    x: ValueId,
    norms: [Norm; 2],
    qkv: Linear,
    proj: Linear,
    up: Linear,
    down: Linear,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Block {
    fn of(graph: &Graph, anchor: NodeId, label: &str) -> Outcome<Self> {
        let node = graph.node(anchor);
        let attention = Attention::of(node).ok_or_else(|| Miss::new(label, "its attention is not fused"))?;
        if attention.layout != Layout::Qkv {
            return Err(Miss::new(label, "queries, keys and values do not come of one product")
                .expected(format!("layout {}", Layout::Qkv.name()), format!("layout {}", attention.layout.name())));
        }
        let packed = node.input(0).ok_or_else(|| Miss::new(label, "it has no input"))?;
        let tokens = tokens_of(graph, packed).ok_or_else(|| Miss::new(label, "its tokens are not known"))?;
        let mut covers = vec![anchor];
        let qkv = Linear::before(graph, back(graph, packed, &mut covers)?, label)?;
        let channels = qkv.sizes[0];
        let normal = back(graph, qkv.x, &mut covers)?;
        let (id, _) = graph.producer(normal).ok_or_else(|| {
            Miss::new(label, "no fused norm goes into the first product").expected("TrtOptLayerNorm", "a graph input")
        })?;
        let first = Norm::of(graph, id, [tokens, channels])?;
        covers.push(id);

        let (context, _) = ahead(graph, output(graph, anchor)?, &mut covers)?;
        let (proj, attended) = Linear::after(graph, context)?;
        let (x, s) = residual(graph, attended, first.stream, &mut covers)?;
        let shape = graph.shape(x).unwrap_or_default();
        let batch = graph.shape(packed).and_then(|s| s.first());
        if shape.len() != 3 || shape.first() != batch || shape[1..] != [Dim::Int(tokens), Dim::Int(channels)] {
            return Err(Miss::new(label, "the stream is not in the tokens of the attention")
                .expected(format!("[B, {tokens}, {channels}]"), shape_text(shape)));
        }

        let second = norm_after(graph, s, &mut covers)?;
        let (normal, _) = ahead(graph, output(graph, second)?, &mut covers)?;
        covers.push(second);
        let second = Norm::of(graph, second, [tokens, channels])?;
        let (up, hidden) = Linear::after(graph, normal)?;
        let gelu = gelu_after(graph, hidden)?;
        let (down, result) = Linear::after(graph, gelu.out)?;
        let (again, out) = residual(graph, result, s, &mut covers)?;
        if graph.shape(again) != graph.shape(x) {
            return Err(Miss::new(label, "the stream changes its shape within the block").expected(
                shape_text(shape),
                graph.shape(again).map_or_else(|| "an unknown shape".into(), shape_text),
            ));
        }
        if first.whole != second.whole {
            return Err(Miss::new(label, "one norm is over the channels, the other over all tokens"));
        }
        check_types(graph, label, x, [&qkv, &proj])?;
        check_types(graph, label, x, [&up, &down])?;
        check_sizes(label, attention.num_heads, channels, [&qkv, &proj, &up, &down])?;

        covers.extend([&qkv, &proj, &up, &down].into_iter().flat_map(|linear| &linear.covers));
        covers.extend(&gelu.covers);
        let op = TntInnerBlock {
            epsilon: [first.epsilon, second.epsilon],
            whole: first.whole,
            num_heads: attention.num_heads,
            scale: attention.scale,
            tanh: gelu.tanh,
        };
        Ok(Self { op, x, norms: [first, second], qkv, proj, up, down, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Fusion {
        let name = fused_name(graph, label, "TrtOptTntInnerBlock");
        let mut patch = Patch::new(graph, RULE);
        let dtype = graph.dtype(self.x).unwrap_or(DType::F32);
        let offsets = [(&self.qkv, "b_qkv"), (&self.proj, "b_proj"), (&self.up, "b1"), (&self.down, "b2")];
        let [b_qkv, b_proj, b1, b2] =
            offsets.map(|(linear, suffix)| linear.offset(&mut patch, dtype, &format!("{name}/{suffix}")));
        let weights = TntInnerWeights {
            norm_scale: self.norms.each_ref().map(|norm| norm.scale),
            norm_bias: self.norms.each_ref().map(|norm| norm.bias),
            w_qkv: self.qkv.w,
            b_qkv,
            w_proj: self.proj.w,
            b_proj,
            w1: self.up.w,
            b1,
            w2: self.down.w,
            b2,
        };
        let y = patch.value_like(graph, &name, self.out);
        let mut fused = self.op.node(self.x, &weights);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        Fusion { patch, name, covers: self.covers }
    }
}

impl Norm {
    /// The fused norm, which must be over the channels of each token or over all tokens of each patch.
    fn of(graph: &Graph, id: NodeId, [tokens, channels]: [i64; 2]) -> Outcome<Self> {
        let (node, label) = (graph.node(id), graph.node_label(id));
        let Some(norm) = LayerNorm::of(node) else {
            return Err(Miss::new(label, "no fused norm goes into a product of the block")
                .expected("TrtOptLayerNorm", node.qualified_op()));
        };
        if !norm.map.is_none() || !LayerNorm::adds_nothing(node) {
            return Err(Miss::new(label, "a norm of the block has windows or a residual"));
        }
        let &[Some(stream), Some(scale), Some(bias)] = &node.inputs[..] else {
            return Err(Miss::new(label, "the norm has other inputs than x, scale and bias"));
        };
        let normalized = graph.static_shape(scale).unwrap_or_default();
        let whole = match normalized[..] {
            [n] if n == channels => false,
            [n] if n == tokens * channels => true,
            [n, c] if [n, c] == [tokens, channels] => true,
            _ => {
                return Err(Miss::new(label, "the norm is neither over the channels nor over all tokens of a patch")
                    .expected(format!("{channels} or {} elements", tokens * channels), format!("{normalized:?}")));
            }
        };
        Ok(Self { stream, scale, bias, epsilon: norm.epsilon, whole })
    }
}

/// The norm that reads the stream, itself or regrouped.
fn norm_after(graph: &Graph, stream: ValueId, covers: &mut Vec<NodeId>) -> Outcome<NodeId> {
    for &user in graph.uses(stream) {
        let (mut at, mut between) = (user, vec![]);
        while regroups(graph.node(at)) {
            between.push(at);
            match graph.node(at).output(0).map(|v| graph.uses(v)) {
                Some(&[next]) => at = next,
                _ => break,
            }
        }
        if LayerNorm::of(graph.node(at)).is_some() {
            covers.extend(between);
            return Ok(at);
        }
    }
    Err(Miss::new(&graph.value(stream).name, "no fused norm reads the stream behind the attention"))
}

/// The GELU of the value.
fn gelu_after(graph: &Graph, value: ValueId) -> Outcome<Gelu> {
    let anchors = graph.order().iter().copied().filter(|&id| is_anchor(graph, id));
    let found = anchors.filter_map(|id| match_gelu(graph, id).ok()).find(|gelu| gelu.x == value);
    found.ok_or_else(|| Miss::new(&graph.value(value).name, "no GELU follows the MLP's first product"))
}

/// The add of what a half of the block computes to the stream: the stream as it is read there, and the sum.
fn residual(graph: &Graph, result: ValueId, stream: ValueId, covers: &mut Vec<NodeId>) -> Outcome<(ValueId, ValueId)> {
    let (value, user) = ahead(graph, result, covers)?;
    let (node, label) = (graph.node(user), graph.node_label(user));
    let (Some(a), Some(b)) = (node.input(0).filter(|_| node.is("Add")), node.input(1)) else {
        let reason = "another op follows than in a block";
        return Err(Miss::new(label, reason).expected("Add", node.qualified_op()));
    };
    let other = if a == value { b } else { a };
    if root(graph, other) != root(graph, stream) || graph.shape(other) != graph.shape(value) {
        return Err(Miss::new(label, "what is added is not what the norm reads")
            .expected(&graph.value(root(graph, stream)).name, &graph.value(root(graph, other)).name));
    }
    covers.push(user);
    Ok((other, output(graph, user)?))
}

/// Sizes that the one kernel takes.
fn check_sizes(label: &str, heads: i64, channels: i64, products: [&Linear; 4]) -> Outcome<()> {
    let hidden = products[2].sizes[1];
    let expected = [[channels, 3 * channels], [channels; 2], [channels, hidden], [hidden, channels]];
    for (linear, expected) in products.into_iter().zip(expected) {
        if linear.sizes != expected {
            return Err(Miss::new(label, "a product is not of the channels of the block")
                .expected(format!("{expected:?}"), format!("{:?}", linear.sizes)));
        }
    }
    let head = channels / heads.max(1);
    let small = channels <= MAX_CHANNELS && hidden <= MAX_HIDDEN && head <= MAX_HEAD;
    if !small || channels % 2 != 0 || hidden % 2 != 0 {
        return Err(Miss::new(label, "the one kernel takes no such sizes").expected(
            format!(
                "at most {MAX_CHANNELS} channels, {MAX_HIDDEN} hidden columns and heads of {MAX_HEAD}, even numbers"
            ),
            format!("{channels} channels, {hidden} hidden columns, heads of {head}"),
        ));
    }
    Ok(())
}
