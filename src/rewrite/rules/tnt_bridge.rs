//! What TNT and PyramidTNT add of the words of a patch to its token: a product between two fused norms, and the add, which may
//! leave out tokens such as the class token.
//!
//! ```text
//! words -> TrtOptLayerNorm -> MatMul w [-> Add b] -> TrtOptLayerNorm = c ;  y = s + c
//!                                               or  y = Concat(Slice(s), Slice(s) + c)
//! becomes   TrtOptTntBridge(s, words) -> y, or TrtOptTntBridge(x, r, words) -> y where s = x + r is read by nothing else
//! ```
//!
//! Runs on what the rule of norms has left, before blocks over the tokens: what a bridge gives is their stream. A bridge that
//! does not match stays as it is, with its smaller fusions.

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{LayerNorm, MAX_CHANNELS, MAX_HIDDEN, TntBridge, TntBridgeWeights};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::attn_block::{ahead, back, regroups};
use crate::rewrite::rules::block::{
    Fusion, Linear, Outcome, Rule, check_flops, check_types, limits, output, single_use, sum_of,
};
use crate::rewrite::rules::residual::part_add;

const RULE: &str = "tnt-bridge";
const RESIDUAL: &str = "tnt-bridge-residual";

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: Kind::TntBridge,
        name: RULE,
        part: Kind::LayerNorm,
        part_of: &|_, anchor| vec![anchor],
        fusion: &|graph, anchor, label| Ok(Bridge::of(graph, anchor, label)?.fusion(graph, label)),
    };
    rule.run_if_asked(engine, is_site)
}

/// Moves the residual adds before bridges into them.
pub fn residuals(engine: &mut Engine) -> Result<()> {
    let bridges = engine.graph().nodes().filter(|(_, n)| TntBridge::of(n).is_some() && n.int("residual") == Some(0));
    for id in bridges.map(|(id, _)| id).collect::<Vec<_>>() {
        if engine.enabled(Kind::TntBridge, RESIDUAL)
            && let Some(patch) = absorb(engine.graph(), id)
        {
            engine.apply_or_keep(patch, "residual add")?;
        }
    }
    Ok(())
}

/// A fused norm of a product whose operand is a fused norm, where what it gives is added to something.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let normalized = |value: ValueId| {
        let (id, node) = before(graph, value)?;
        LayerNorm::of(node).is_some().then_some(id)
    };
    let product = || {
        let node = graph.node(id);
        LayerNorm::of(node)?;
        let (_, mut product) = before(graph, node.input(0)?)?;
        if product.is("Add") {
            let operands = [product.input(0)?, product.input(1)?];
            let computed = operands.into_iter().find(|&v| graph.constant(v).is_none())?;
            product = graph.producer(computed)?.1;
        }
        normalized(product.is("MatMul").then(|| product.input(0))??)
    };
    product().is_some() && added_in(graph, graph.node(id).output(0))
}

/// The node that makes the value, before those that only regroup it.
fn before(graph: &Graph, value: ValueId) -> Option<(NodeId, &crate::ir::Node)> {
    let (id, node) = graph.producer(value)?;
    if regroups(node) { before(graph, node.input(0)?) } else { Some((id, node)) }
}

/// Whether an Add reads the value, itself or regrouped.
fn added_in(graph: &Graph, value: Option<ValueId>) -> bool {
    value.is_some_and(|value| {
        graph.uses(value).iter().any(|&user| {
            let node = graph.node(user);
            node.is("Add") || (regroups(node) && added_in(graph, node.output(0)))
        })
    })
}

/// A whole bridge.
struct Bridge {
    op: TntBridge,
    /// What is added to.
    stream: ValueId,
    words: ValueId,
    /// Before and behind the product.
    norms: [Norm; 2],
    linear: Linear,
    out: ValueId,
    covers: Vec<NodeId>,
}

/// A fused norm of the last axis.
struct Norm {
    x: ValueId,
    scale: ValueId,
    bias: ValueId,
    epsilon: f32,
}

impl Bridge {
    fn of(graph: &Graph, anchor: NodeId, label: &str) -> Outcome<Self> {
        let mut covers = vec![anchor];
        let last = Norm::of(graph, anchor)?;
        let linear = Linear::before(graph, back(graph, last.x, &mut covers)?, label)?;
        let normal = back(graph, linear.x, &mut covers)?;
        let (first, _) = graph.producer(normal).ok_or_else(|| {
            Miss::new(label, "no fused norm goes into the product").expected("TrtOptLayerNorm", "a graph input")
        })?;
        covers.push(first);
        let first = Norm::of(graph, first)?;
        covers.extend(&linear.covers);

        let (change, add) = ahead(graph, output(graph, anchor)?, &mut covers)?;
        let (stream, begin, out) = arrival(graph, change, add, &mut covers)?;
        check_types(graph, label, stream, [&linear, &linear])?;
        let [width, channels] = check_sizes(graph, label, &linear, [&first, &last])?;
        check_shapes(graph, label, stream, first.x, change, [width, channels])?;
        let rows = graph.shape(first.x).and_then(|s| s.get(..2)).unwrap_or_default();
        check_flops(label, rows, &[&linear], limits::BRIDGE_FLOPS, "")?;
        let op = TntBridge { epsilon: [first.epsilon, last.epsilon], begin };
        Ok(Self { op, stream, words: first.x, norms: [first, last], linear, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Fusion {
        let name = fused_name(graph, label, "TrtOptTntBridge");
        let mut patch = Patch::new(graph, RULE);
        let dtype = graph.dtype(self.stream).unwrap_or(DType::F32);
        let b = self.linear.offset(&mut patch, dtype, &format!("{name}/b"));
        let weights = TntBridgeWeights {
            words: self.words,
            norm_scale: self.norms.each_ref().map(|norm| norm.scale),
            norm_bias: self.norms.each_ref().map(|norm| norm.bias),
            w: self.linear.w,
            b,
        };
        let y = patch.value_like(graph, &name, self.out);
        let mut fused = self.op.node(self.stream, None, &weights);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        Fusion { patch, name, covers: self.covers }
    }
}

impl Norm {
    fn of(graph: &Graph, id: NodeId) -> Outcome<Self> {
        let (node, label) = (graph.node(id), graph.node_label(id));
        let Some(norm) = LayerNorm::of(node) else {
            return Err(Miss::new(label, "no fused norm goes into the product")
                .expected("TrtOptLayerNorm", node.qualified_op()));
        };
        if norm.axes != 1 {
            return Err(Miss::new(label, "a norm is over several axes").expected("the last axis", norm.axes));
        }
        if !norm.map.is_none() || !LayerNorm::adds_nothing(node) {
            return Err(Miss::new(label, "a norm has windows or a residual"));
        }
        let &[Some(x), Some(scale), Some(bias)] = &node.inputs[..] else {
            return Err(Miss::new(label, "the norm has other inputs than x, scale and bias"));
        };
        Ok(Self { x, scale, bias, epsilon: norm.epsilon })
    }
}

/// Where the change is added: the stream, the first of its tokens that is added to, and the sum.
fn arrival(graph: &Graph, change: ValueId, add: NodeId, covers: &mut Vec<NodeId>) -> Outcome<(ValueId, i64, ValueId)> {
    let (node, label) = (graph.node(add), graph.node_label(add));
    let (Some(a), Some(b)) = (node.input(0).filter(|_| node.is("Add")), node.input(1)) else {
        return Err(Miss::new(label, "another op follows than in a bridge").expected("Add", node.qualified_op()));
    };
    covers.push(add);
    let sum = output(graph, add)?;
    // Of all tokens but some: the others are put beside the sum again.
    if let &[concat] = graph.uses(sum)
        && graph.node(concat).is("Concat")
        && let Some(found) = part_add(graph, graph.node(concat))
        && found.part.value == change
    {
        single_use(graph, sum)?;
        covers.push(concat);
        return Ok((found.base, found.part.begin, output(graph, concat)?));
    }
    let stream = if a == change { b } else { a };
    if graph.constant(stream).is_some() || graph.shape(stream) != graph.shape(change) {
        let text = |v: ValueId| graph.shape(v).map_or_else(|| "an unknown shape".into(), shape_text);
        let found = if graph.constant(stream).is_some() { "a weight".into() } else { text(stream) };
        return Err(Miss::new(label, "what the words are added to are no tokens").expected(text(change), found));
    }
    Ok((stream, 0, sum))
}

/// Columns of the words and of the tokens, if the plugin takes them and the norms are of them.
fn check_sizes(graph: &Graph, label: &str, linear: &Linear, norms: [&Norm; 2]) -> Outcome<[i64; 2]> {
    for (norm, columns) in norms.into_iter().zip(linear.sizes) {
        let found = graph.static_shape(norm.scale).unwrap_or_default();
        if found != [columns] {
            return Err(Miss::new(label, "a norm is not over the whole rows of the product")
                .expected(format!("[{columns}]"), format!("{found:?}")));
        }
    }
    let [width, channels] = linear.sizes;
    if width > MAX_HIDDEN || channels > MAX_CHANNELS {
        return Err(Miss::new(label, "the block is too large").expected(
            format!("at most {MAX_HIDDEN} values of a patch's words and {MAX_CHANNELS} channels"),
            format!("{width} and {channels}"),
        ));
    }
    Ok(linear.sizes)
}

/// Whether the words come as a row for each token that they are added to.
fn check_shapes(
    graph: &Graph,
    label: &str,
    stream: ValueId,
    words: ValueId,
    change: ValueId,
    [width, channels]: [i64; 2],
) -> Outcome<()> {
    let text = |v: ValueId| graph.shape(v).map_or_else(|| "an unknown shape".into(), shape_text);
    let of = |v: ValueId, columns: i64| match graph.shape(v) {
        Some([batch, rows, last]) if last.int() == Some(columns) && rows.int().is_some() => Some((batch, rows)),
        _ => None,
    };
    let rows = of(words, width);
    if rows.is_none() || rows != of(change, channels) {
        return Err(Miss::new(label, "the words are not in a row for each token").expected(
            format!("[B, M, {width}] before the first norm and [B, M, {channels}] behind the second"),
            format!("{} and {}", text(words), text(change)),
        ));
    }
    if of(stream, channels).map(|(batch, _)| batch) != rows.map(|(batch, _)| batch) {
        return Err(Miss::new(label, "what the words are added to are no tokens")
            .expected(format!("[B, N, {channels}]"), text(stream)));
    }
    Ok(())
}

/// The add before a bridge, moved into it.
fn absorb(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let (bridge, weights) = (TntBridge::of(node)?, TntBridge::weights(node)?);
    let (stream, old) = (node.input(0)?, node.output(0)?);
    let (a, b) = sum_of(graph, stream, &[id])?;
    let mut patch = Patch::new(graph, RESIDUAL);
    let y = patch.value_like(graph, &format!("{}/y", node.name), old);
    let mut fused = bridge.node(a, Some(b), &weights);
    fused.name.clone_from(&node.name);
    patch.node(fused, [y]);
    patch.replace(old, y);
    patch.cover([id, graph.value(stream).producer?]);
    Some(patch)
}
