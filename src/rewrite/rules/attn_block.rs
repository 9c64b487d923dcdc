//! Attention blocks: a fused norm, attention with both of its projections, and the residual add.
//!
//! ```text
//! s -> TrtOptLayerNorm to windows -> MatMul Wqkv -> Add -> TrtOptAttention -> MatMul Wproj -> Add
//!                                                            -> TrtOptWindow reverse (w, s) -> y
//! becomes   TrtOptSwinAttnBlock(s) -> y, or TrtOptSwinAttnBlock(x, r) -> y where s = x + r is read by nothing else
//!
//! s -> TrtOptLayerNorm -> MatMul Wqkv -> Add -> TrtOptAttention -> MatMul Wproj -> Add -> Add (w, s) -> y
//! becomes   TrtOptAttnBlock(s) -> y, or TrtOptAttnBlock(x, r) -> y
//! ```
//!
//! Where keys and values are of pooled tokens it is a `TrtOptPooledAttnBlock`, which has a file of its own.
//!
//! Where the windows are whole rows of the map nothing moves: the norm then gives tokens, and an Add takes the place of
//! the reverse. An attention that no windows lead to is over all tokens of a sequence. Runs on what the rules of norms,
//! attentions and windows have left, before residual adds go into norms. A block that does not match stays as it is, with
//! its smaller fusions.

use std::collections::HashSet;

use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{
    Attention, AttnBlock, AttnWeights, Bias, LayerNorm, Layout, MAX_CHANNELS, MULTIPLE, Mask, Window, WindowMap,
};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::attention::weighted;
use crate::rewrite::rules::block::{
    Fusion, Linear, Outcome, Rule, Wide, check_types, limits, output, single_use, sum_of,
};
use crate::rewrite::rules::window::reorders_tokens;
use crate::rewrite::rules::{pooled_attn_block, straighten};
use crate::rewrite::{ComputeCapability, Kind};

/// The longest sequence that the plugin takes.
pub const MAX_TOKENS: i64 = 1 << 16;

/// A kind of attention block, and what its rules and its op are called.
struct Form {
    kind: Kind,
    rule: &'static str,
    residual: &'static str,
    op: &'static str,
}

const IN_WINDOWS: Form = Form {
    kind: Kind::SwinAttnBlock,
    rule: "swin-attn-block",
    residual: "swin-attn-block-residual",
    op: "TrtOptSwinAttnBlock",
};
const OF_SEQUENCES: Form =
    Form { kind: Kind::AttnBlock, rule: "attn-block", residual: "attn-block-residual", op: "TrtOptAttnBlock" };

impl Form {
    fn of(in_windows: bool) -> &'static Self {
        if in_windows { &IN_WINDOWS } else { &OF_SEQUENCES }
    }
}

pub fn run(engine: &mut Engine) -> Result<()> {
    // Blocks are sites only where they are asked for: their parts are accounted for by the other rules.
    let asked = |form: &&Form| engine.options().kinds.contains(&form.kind);
    let forms: Vec<&Form> = [&IN_WINDOWS, &OF_SEQUENCES].into_iter().filter(asked).collect();
    if forms.is_empty() {
        return Ok(());
    }
    // Partitions of a map that is one window go first: they hide what norm an attention follows.
    straighten::run(engine)?;
    let gpu = engine.options().compute_capability;
    // All are found before any is fused: what an attention is in shows in the nodes before it.
    let graph = engine.graph();
    let attentions = graph.order().iter().copied().filter(|&id| is_attention(graph, id));
    let (in_windows, others): (Vec<NodeId>, Vec<NodeId>) = attentions.partition(|&id| of_windows(graph, id));
    for form in forms {
        let rule = Rule {
            kind: form.kind,
            name: form.rule,
            part: Kind::Attention,
            part_of: &|_, anchor| vec![anchor],
            fusion: &|graph, anchor, label| match pooled_attn_block::fusion(graph, anchor, label, form.rule, gpu) {
                Some(outcome) if form.kind == OF_SEQUENCES.kind => outcome,
                _ => Block::of(graph, anchor, label, form, gpu)?.fusion(graph, label, form),
            },
        };
        rule.run(engine, if form.kind == IN_WINDOWS.kind { in_windows.clone() } else { others.clone() })?;
    }
    Ok(())
}

/// Moves the residual adds before blocks into them.
pub fn residuals(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let forms = graph.nodes().filter_map(|(id, n)| Some((id, Form::of(AttnBlock::of(n)?.in_windows()))));
    for (id, form) in forms.collect::<Vec<_>>() {
        if engine.enabled(form.kind, form.residual)
            && let Some(patch) = absorb(engine.graph(), id, form)
        {
            engine.apply_or_keep(patch, "residual add")?;
        }
    }
    pooled_attn_block::residuals(engine, OF_SEQUENCES.kind, OF_SEQUENCES.residual)
}

/// An attention, fused or not.
fn is_attention(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    Attention::of(node).is_some() || node.is("Attention") || (node.is("Softmax") && weighted(graph, id).is_some())
}

/// Whether an attention is in windows or knows of some.
fn of_windows(graph: &Graph, id: NodeId) -> bool {
    let knows = |op: Attention| matches!(op.bias, Some(Bias::Table(_))) || matches!(op.mask, Some(Mask::Shift(_)));
    Attention::of(graph.node(id)).is_some_and(knows) || in_windows(graph, id)
}

/// Whether a partition into windows leads to the node, without another attention or a reverse between them.
fn in_windows(graph: &Graph, id: NodeId) -> bool {
    let mut seen = HashSet::new();
    let mut stack: Vec<ValueId> = graph.node(id).inputs.iter().flatten().copied().collect();
    while let Some(value) = stack.pop() {
        let Some((id, node)) = graph.producer(value).filter(|(id, _)| seen.insert(*id)) else { continue };
        if partition(graph, id).is_some() || looks_like_partition(graph, id) {
            return true;
        }
        if !(node.is("Softmax") || Attention::of(node).is_some() || Window::of(node).is_some()) {
            stack.extend(node.inputs.iter().flatten());
        }
    }
    false
}

/// A transposition as in a partition that was not fused: what it gives becomes windows, more than there are images.
fn looks_like_partition(graph: &Graph, id: NodeId) -> bool {
    let images = |node: &Node| node.output(0).and_then(|v| graph.shape(v)?.first());
    let node = graph.node(id);
    let user = node.output(0).and_then(|v| graph.uses(v).first()).map(|&user| graph.node(user));
    reorders_tokens(graph, id) && user.is_some_and(|user| regroups(user) && images(user) != images(node))
}

/// The windows that the node's result comes in.
fn partition(graph: &Graph, id: NodeId) -> Option<WindowMap> {
    let node = graph.node(id);
    let norm = LayerNorm::of(node).filter(|n| !n.reverse && !n.map.is_none()).map(|n| n.map);
    norm.or_else(|| Window::of(node).filter(|w| !w.reverse).map(|w| w.map))
}

/// Whether the node leaves elements in their order.
pub fn regroups(node: &Node) -> bool {
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"].iter().any(|op| node.is(op))
}

/// The value before nodes that only regroup it.
pub fn root(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some((_, node)) = graph.producer(value).filter(|(_, node)| regroups(node)) {
        match node.input(0) {
            Some(input) => value = input,
            None => break,
        }
    }
    value
}

/// The value before nodes that only regroup it, none of which is read otherwise.
pub fn back(graph: &Graph, mut value: ValueId, covers: &mut Vec<NodeId>) -> Outcome<ValueId> {
    loop {
        single_use(graph, value)?;
        match graph.producer(value).and_then(|(id, node)| Some((id, node.input(0).filter(|_| regroups(node))?))) {
            Some((id, input)) => {
                covers.push(id);
                value = input;
            }
            None => return Ok(value),
        }
    }
}

/// The value after nodes that only regroup it, and its only reader.
pub fn ahead(graph: &Graph, mut value: ValueId, covers: &mut Vec<NodeId>) -> Outcome<(ValueId, NodeId)> {
    loop {
        let user = single_use(graph, value)?;
        if !regroups(graph.node(user)) {
            return Ok((value, user));
        }
        covers.push(user);
        value = output(graph, user)?;
    }
}

/// A whole block.
struct Block {
    op: AttnBlock,
    /// What is normalized; the residual stream.
    stream: ValueId,
    scale: ValueId,
    bias: ValueId,
    qkv: Linear,
    proj: Linear,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Block {
    fn of(graph: &Graph, anchor: NodeId, label: &str, form: &Form, gpu: Option<ComputeCapability>) -> Outcome<Self> {
        let node = graph.node(anchor);
        let attention = Attention::of(node).ok_or_else(|| {
            Miss::new(label, "its attention is not fused").expected("TrtOptAttention", node.qualified_op())
        })?;
        if attention.layout != Layout::Qkv {
            same_tokens(graph, label, node)?;
            return Err(Miss::new(label, "queries, keys and values do not come of one product")
                .expected(format!("layout {}", Layout::Qkv.name()), format!("layout {}", attention.layout.name())));
        }
        let packed = node.input(0).ok_or_else(|| Miss::new(label, "it has no input"))?;
        let mut covers = vec![anchor];
        let qkv = Linear::before(graph, back(graph, packed, &mut covers)?, label)?;
        let (norm_id, norm) = norm_before(graph, back(graph, qkv.x, &mut covers)?)?;
        covers.push(norm_id);
        let &[Some(stream), Some(scale), Some(bias)] = &graph.node(norm_id).inputs[..] else {
            return Err(Miss::new(graph.node_label(norm_id), "the norm has other inputs than x, scale and bias"));
        };
        let map = match form.kind == IN_WINDOWS.kind {
            true => windows(graph, label, stream, &norm, packed, &attention)?,
            false => sequence(graph, label, stream, packed, &attention)?,
        };

        let (context, _) = ahead(graph, output(graph, anchor)?, &mut covers)?;
        let (proj, result) = Linear::after(graph, context)?;
        let reversed = (!norm.map.is_none()).then_some(&map);
        let out = arrival(graph, result, stream, reversed, &mut covers)?;
        check_types(graph, label, stream, [&qkv, &proj])?;
        check_sizes(graph, label, stream, &qkv, &proj)?;
        // Those of the windows, padding included.
        let rows = graph.shape(packed).and_then(|s| s.get(..2)).unwrap_or_default();
        Wide { gpu, channels: &[qkv.sizes[0], proj.sizes[0]] }.check_flops(
            label,
            rows,
            &[&qkv, &proj],
            limits::ATTN_FLOPS,
            "",
        )?;
        covers.extend(qkv.covers.iter().chain(&proj.covers));
        let op = AttnBlock { epsilon: norm.epsilon, attention: Attention { map, ..attention } };
        Ok(Self { op, stream, scale, bias, qkv, proj, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str, form: &Form) -> Outcome<Fusion> {
        let name = fused_name(graph, label, form.op);
        let mut patch = Patch::new(graph, form.rule);
        let dtype = graph.dtype(self.stream).unwrap_or(DType::F32);
        let [b_qkv, b_proj] = [(&self.qkv, "b_qkv"), (&self.proj, "b_proj")]
            .map(|(linear, suffix)| linear.offset(&mut patch, dtype, &format!("{name}/{suffix}")));
        let weights = AttnWeights {
            norm_scale: self.scale,
            norm_bias: self.bias,
            w_qkv: self.qkv.w,
            b_qkv,
            w_proj: self.proj.w,
            b_proj,
        };
        let fused = self.op.node(self.stream, None, &weights);
        Fusion::reshaped(graph, patch, label, name, fused, [self.stream, self.out], self.covers)
    }
}

/// The fused norm over the last axis that makes the value.
pub fn norm_before(graph: &Graph, value: ValueId) -> Outcome<(NodeId, LayerNorm)> {
    let miss = |at: String, found: String| {
        Err(Miss::new(at, "no fused norm of the last axis goes into the first product")
            .expected("TrtOptLayerNorm", found))
    };
    let Some((id, node)) = graph.producer(value) else {
        return miss(graph.value(value).name.clone(), "a graph input".into());
    };
    let label = graph.node_label(id);
    match LayerNorm::of(node) {
        Some(norm) if norm.axes == 1 && !norm.reverse && LayerNorm::adds_nothing(node) => Ok((id, norm)),
        Some(norm) if norm.axes != 1 => miss(label, format!("a norm over {} axes", norm.axes)),
        Some(_) => miss(label, "a norm with a residual".into()),
        None if partition(graph, id).is_some() => miss(label, "a partition of what is read otherwise, too".into()),
        None => miss(label, node.qualified_op()),
    }
}

/// A miss where queries, keys and values are products of different tokens.
fn same_tokens(graph: &Graph, label: &str, attention: &Node) -> Outcome<()> {
    let layout = Attention::of(attention).map_or(0, |op| op.layout.inputs());
    let source = |v: &ValueId| Some(root(graph, Linear::before(graph, root(graph, *v), label).ok()?.x));
    let sources: Vec<Option<ValueId>> = attention.inputs.iter().flatten().take(layout).map(source).collect();
    let Some(&Some(of_queries)) = sources.first() else { return Ok(()) };
    match sources.into_iter().flatten().find(|&v| v != of_queries) {
        Some(other) => {
            Err(Miss::new(label, "keys and values come of other tokens than queries (pooled ones, for example)")
                .expected(&graph.value(of_queries).name, &graph.value(other).name))
        }
        None => Ok(()),
    }
}

/// The map that stands for no windows, if the attention is over all tokens of each sequence and has nothing of windows.
fn sequence(graph: &Graph, label: &str, stream: ValueId, packed: ValueId, attention: &Attention) -> Outcome<WindowMap> {
    let unknown = || Miss::new(label, "the shapes of its tokens are not known");
    let (shape, packed) = (graph.shape(stream).ok_or_else(unknown)?, graph.shape(packed).ok_or_else(unknown)?);
    if shape.len() != 3 || packed.len() != 3 || shape[..2] != packed[..2] {
        return Err(Miss::new(label, "the attention is not over the tokens of each sequence")
            .expected("[B, N, C] before the norm and [B, N, 3*h*d] after the product", {
                format!("{} and {}", shape_text(shape), shape_text(packed))
            }));
    }
    let tokens = packed[1].int().ok_or_else(unknown)?;
    if tokens > MAX_TOKENS {
        return Err(Miss::new(label, "the block is too large")
            .expected(format!("at most {MAX_TOKENS} tokens"), tokens.to_string()));
    }
    if attention.mask.is_some() {
        return Err(Miss::new(label, "the plugin takes no mask").expected("no mask", "a mask"));
    }
    Ok(WindowMap::NONE)
}

/// The windows that the attention is in, which have to be those of its bias and mask too.
fn windows(
    graph: &Graph,
    label: &str,
    stream: ValueId,
    norm: &LayerNorm,
    packed: ValueId,
    attention: &Attention,
) -> Outcome<WindowMap> {
    let unknown = || Miss::new(label, "the shapes of its tokens are not known");
    let (shape, packed) = (graph.shape(stream).ok_or_else(unknown)?, graph.shape(packed).ok_or_else(unknown)?);
    let tokens = packed.get(1).and_then(Dim::int).filter(|_| packed.len() == 3).ok_or_else(unknown)?;
    let table = matches!(attention.bias, Some(Bias::Table(_))).then_some(attention.map.window);
    let map = match norm.map.is_none() {
        false => norm.map,
        true => whole_rows(shape, tokens, table).ok_or_else(|| {
            Miss::new(label, "nothing partitions the tokens, and they are no map of whole windows")
                .expected(format!("[B, H*W, C] or [B, H, W, C] in windows of {tokens}"), shape_text(shape))
        })?,
    };
    let cut = map.partitioned(shape).ok_or_else(unknown)?;
    if cut[..2] != packed[..2] {
        return Err(Miss::new(label, "the attention is not over the tokens of each window")
            .expected(shape_text(&cut[..2]), shape_text(&packed[..2])));
    }
    if let Some(window) = table.filter(|w| *w != map.window) {
        let text = |[h, w]: [i64; 2]| format!("{h}x{w}");
        return Err(Miss::new(label, "the bias table is of other windows").expected(text(map.window), text(window)));
    }
    let mask = attention.map;
    if matches!(attention.mask, Some(Mask::Shift(_)))
        && (mask.window, mask.shift, mask.padded()) != (map.window, map.shift, map.padded())
    {
        return Err(Miss::new(label, "the mask is of other windows").expected(map, mask));
    }
    Ok(map)
}

/// The map whose windows of so many tokens are whole rows of it, so that nothing moves.
fn whole_rows(shape: &[Dim], tokens: i64, table: Option<[i64; 2]>) -> Option<WindowMap> {
    let (grid, window) = match shape {
        [_, n, _] => {
            let window = table.unwrap_or([1, tokens]);
            ([n.int().filter(|n| n % window[1] == 0)? / window[1], window[1]], window)
        }
        [_, h, w, _] => {
            let (h, w) = (h.int()?, w.int()?);
            ([h, w], [(tokens % w == 0).then_some(tokens / w)?, w])
        }
        _ => return None,
    };
    let whole = window[0] * window[1] == tokens && window[0] > 0 && grid[0] % window[0] == 0;
    whole.then_some(WindowMap { grid, window, shift: [0; 2], pad_after_roll: false })
}

/// What the block computes: the second product's result, back from its windows if there are any, and added to the stream.
pub fn arrival(
    graph: &Graph,
    result: ValueId,
    stream: ValueId,
    map: Option<&WindowMap>,
    covers: &mut Vec<NodeId>,
) -> Outcome<ValueId> {
    let other = |at: NodeId, residual: ValueId| {
        Miss::new(graph.node_label(at), "what is added to the attention's result is not what the norm reads")
            .expected(&graph.value(root(graph, stream)).name, &graph.value(root(graph, residual)).name)
    };
    let (mut value, mut user) = ahead(graph, result, covers)?;
    if let Some(map) = map {
        let node = graph.node(user);
        let Some(window) = Window::of(node).filter(|w| w.reverse && node.input(0) == Some(value)) else {
            return Err(Miss::new(graph.node_label(user), "no reverse of the windows follows the second product")
                .expected("TrtOptWindow", node.qualified_op()));
        };
        if window.map != *map {
            let reason = "the reverse is not that of the partition";
            return Err(Miss::new(graph.node_label(user), reason).expected(map, window.map));
        }
        covers.push(user);
        let tokens = output(graph, user)?;
        if let Some(residual) = node.input(1) {
            return if root(graph, residual) == root(graph, stream) { Ok(tokens) } else { Err(other(user, residual)) };
        }
        (value, user) = ahead(graph, tokens, covers)?;
    }
    let node = graph.node(user);
    let (Some(a), Some(b)) = (node.input(0), node.input(1)) else {
        return Err(Miss::new(graph.node_label(user), "it has no operands"));
    };
    if !node.is("Add") {
        return Err(Miss::new(graph.node_label(user), "another op follows than in a block")
            .expected("Add", node.qualified_op()));
    }
    let residual = if a == value { b } else { a };
    if root(graph, residual) != root(graph, stream) || graph.shape(residual) != graph.shape(value) {
        return Err(other(user, residual));
    }
    covers.push(user);
    output(graph, user)
}

/// Sizes that the plugin takes.
fn check_sizes(graph: &Graph, label: &str, stream: ValueId, qkv: &Linear, proj: &Linear) -> Outcome<()> {
    let channels = graph.shape(stream).and_then(|s| s.last()?.int()).unwrap_or_default();
    let [inner, back] = proj.sizes;
    if qkv.sizes != [channels, 3 * inner] || back != channels {
        let text = |[a, b]: [i64; 2]| format!("[{a}, {b}]");
        return Err(Miss::new(label, "the products do not lead from the channels to the heads and back").expected(
            format!("{} and {}", text([channels, 3 * inner]), text([inner, channels])),
            format!("{} and {}", text(qkv.sizes), text(proj.sizes)),
        ));
    }
    if channels % MULTIPLE != 0 || inner % MULTIPLE != 0 {
        return Err(Miss::new(label, "the tensor cores take no such sizes")
            .expected(format!("multiples of {MULTIPLE}"), format!("{channels} channels, {inner} of all heads")));
    }
    if channels > MAX_CHANNELS || inner > MAX_CHANNELS {
        return Err(Miss::new(label, "the block is too large").expected(
            format!("at most {MAX_CHANNELS} channels, and of all heads"),
            format!("{channels} and {inner}"),
        ));
    }
    Ok(())
}

/// The add before a block, moved into it.
fn absorb(graph: &Graph, id: NodeId, form: &Form) -> Option<Patch> {
    let node = graph.node(id);
    let block = AttnBlock::of(node).filter(|_| node.int("residual") == Some(0))?;
    let (old, mut covers) = (node.output(0)?, vec![id]);
    let sum = back(graph, node.input(0)?, &mut covers).ok()?;
    let (add, _) = graph.producer(sum)?;
    let (a, b) = sum_of(graph, sum, graph.uses(sum))?;
    block.tokens(graph.shape(sum)?)?;
    covers.push(add);
    let weights = AttnBlock::weights(node)?;
    let mut patch = Patch::new(graph, form.residual);
    let y = patch.value_like(graph, &format!("{}/y", node.name), sum);
    let mut fused = block.node(a, Some(b), &weights);
    fused.name.clone_from(&node.name);
    patch.node(fused, [y]);
    let out = patch.reshape(graph, y, graph.shape(old)?, &format!("{}/reshape", node.name))?;
    patch.replace(old, out);
    patch.cover(covers);
    Some(patch)
}
