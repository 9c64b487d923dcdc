//! The mean over all tokens of an image behind a fused norm, which a classifier reads.
//!
//! ```text
//! x -> TrtOptLayerNorm -> [Reshape, Transpose, ...] -> ReduceMean | GlobalAveragePool = y
//! becomes   TrtOptNormPool(x) -> y, or TrtOptNormPool(x, r) -> y where the norm adds r
//! ```
//!
//! Between the two anything may stand that only moves elements, and casts: the index map proves that the mean is over all
//! tokens, whatever their order. These are sites of the norms; one that keeps its mean says why in its reason.
//!
//! Runs when the norms have taken their residual adds.

use crate::analysis::movement::{self, Walk};
use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{Addends, LayerNorm, NormPool};
use crate::rewrite::pattern::{follow_casts, fused_name, is_float_cast, reduce_axes};
use crate::rewrite::rules::block::{Outcome, output};

const RULE: &str = "norm-pool";

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let sites = graph.nodes().filter(|(_, node)| LayerNorm::of(node).is_some());
    let sites: Vec<(NodeId, NodeId)> =
        sites.filter_map(|(norm, node)| Some((norm, mean_after(graph, node.output(0)?, DEPTH)?))).collect();
    for (norm, mean) in sites {
        let graph = engine.graph();
        // A patch before this one may have taken the mean.
        let (Some(node), Some(_)) = (graph.get(norm), graph.get(mean)) else { continue };
        let old = node.name.clone();
        let outcome = if engine.enabled(Kind::LayerNorm, RULE) {
            match Pool::of(graph, norm, mean).and_then(|pool| pool.patch(graph, &old)) {
                Ok((patch, name)) => engine.apply(patch)?.map(|()| name),
                Err(miss) => Err(miss),
            }
        } else {
            Err(engine.disabled_miss(Kind::LayerNorm, RULE))
        };
        match outcome {
            Ok(name) => engine.absorb_sites(&[old].into(), &name),
            Err(miss) => {
                let reason = format!("the mean behind it stays: {}", miss.reason);
                engine.note(&old, &Miss { reason, ..miss });
            }
        }
    }
    Ok(())
}

/// How many nodes a mean may be behind a norm.
const DEPTH: u32 = 8;

/// The nearest mean that reads the value, after nodes that only move elements or change their type.
fn mean_after(graph: &Graph, value: ValueId, depth: u32) -> Option<NodeId> {
    let users = graph.uses(value);
    if let Some(&mean) = users.iter().find(|&&user| is_mean(graph.node(user))) {
        return Some(mean);
    }
    let on = |&user: &NodeId| {
        let node = graph.node(user);
        let out = node.output(0)?;
        let moves = node.input(0) == Some(value) && (movement::is_moved(graph, out) || is_float_cast(graph, node));
        mean_after(graph, moves.then_some(out)?, depth - 1)
    };
    if depth == 0 { None } else { users.iter().find_map(on) }
}

pub fn is_mean(node: &Node) -> bool {
    node.is("ReduceMean") || node.is("GlobalAveragePool")
}

/// The axes of its input that a mean is over.
pub fn axes_of(graph: &Graph, mean: NodeId) -> Outcome<Vec<usize>> {
    let node = graph.node(mean);
    let axes = if node.is("ReduceMean") {
        reduce_axes(graph, node)
    } else {
        node.input(0).and_then(|x| graph.rank(x)).map(|rank| (2..rank).collect())
    };
    axes.ok_or_else(|| {
        Miss::new(
            graph.node_label(mean),
            "its axes are not constant, or not axes of its input, whose rank must be known",
        )
    })
}

/// A norm and the mean over its tokens.
struct Pool {
    op: NormPool,
    x: ValueId,
    residual: Option<ValueId>,
    scale: ValueId,
    bias: ValueId,
    dtype: DType,
    /// Images, tokens and channels.
    sizes: [Dim; 3],
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Pool {
    fn of(graph: &Graph, norm: NodeId, mean: NodeId) -> Outcome<Self> {
        let (node, label) = (graph.node(norm), graph.node_label(norm));
        let unknown = || Miss::new(&label, "the type or shape of its output is not known");
        let plain = LayerNorm::of(node).filter(|norm| norm.map.is_none() && !norm.reverse);
        let added = Addends::of(node).filter(|added| added.part.is_none());
        let (Some(layer_norm), Some(added)) = (plain, added) else {
            return Err(Miss::new(&label, "the norm has windows, or adds to some of the tokens only"));
        };
        if layer_norm.axes != 1 {
            return Err(Miss::new(&label, "the norm is over several axes").expected("the last axis", layer_norm.axes));
        }
        let &[Some(x), .., Some(scale), Some(bias)] = &node.inputs[..] else { return Err(unknown()) };
        let y = output(graph, norm)?;
        let dtype = graph.dtype(y).ok_or_else(unknown)?;
        let channels = graph.shape(y).and_then(<[Dim]>::last).and_then(Dim::int).ok_or_else(unknown)?;

        let axes = axes_of(graph, mean)?;
        let (sizes, moves) = tokens_of(graph, y, channels, mean, &axes)?;
        let mut out = output(graph, mean)?;
        if graph.dtype(out) != Some(dtype) {
            // A mean in float32 between casts: the plugin computes in float32 anyway.
            out = follow_casts(graph, out);
        }
        if graph.dtype(out) != Some(dtype) {
            let found = graph.dtype(out).map_or("an unknown type", DType::name);
            let reason = "what it gives is of another type than the tokens";
            return Err(Miss::new(graph.node_label(mean), reason).expected(dtype.name(), found));
        }
        let covers = [norm, mean].into_iter().chain(moves).collect();
        let op = NormPool { epsilon: layer_norm.epsilon };
        Ok(Self { op, x, residual: added.residual, scale, bias, dtype, sizes, out, covers })
    }

    /// The patch, and the name of its node; `norm` is that of the norm's.
    fn patch(self, graph: &Graph, norm: &str) -> Outcome<(Patch, String)> {
        let name = fused_name(graph, norm, "TrtOptNormPool");
        let open = || Miss::new(norm, "more than one axis of the tokens is not an integer");
        let [images, _, channels] = &self.sizes;
        let mut patch = Patch::new(graph, RULE);
        let mut tokens =
            |value: ValueId, what: &str| as_tokens(&mut patch, graph, value, &self.sizes, &format!("{name}/{what}"));
        let x = tokens(self.x, "x").ok_or_else(open)?;
        let residual = self.residual.map(|r| tokens(r, "residual").ok_or_else(open)).transpose()?;
        let y = patch.value(&format!("{name}/y"), Some(self.dtype), Some(vec![images.clone(), channels.clone()]));
        let mut fused = self.op.node(x, residual, self.scale, self.bias);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        let shape = graph.shape(self.out).ok_or_else(open)?;
        let y = patch.reshape(graph, y, shape, &format!("{name}/shape")).ok_or_else(open)?;
        patch.replace(self.out, y);
        patch.cover(self.covers);
        Ok((patch, name))
    }
}

/// The value as tokens of these sizes, which may be in several axes: itself, or a Reshape of it.
pub fn as_tokens(patch: &mut Patch, graph: &Graph, value: ValueId, sizes: &[Dim; 3], name: &str) -> Option<ValueId> {
    let [images, count, channels] = sizes;
    let fits = match graph.shape(value).unwrap_or_default() {
        [first, middle @ .., last] if !middle.is_empty() => {
            first == images && Dim::product(middle).as_ref() == Some(count) && last == channels
        }
        _ => false,
    };
    if fits { Some(value) } else { patch.reshape(graph, value, sizes, name) }
}

/// Images, tokens and channels, if the mean is over all tokens of each image and nothing else, and the nodes that bring
/// them to it.
pub fn tokens_of(
    graph: &Graph,
    y: ValueId,
    channels: i64,
    mean: NodeId,
    axes: &[usize],
) -> Outcome<([Dim; 3], Vec<NodeId>)> {
    let label = graph.node_label(mean);
    let unproved = |found: &str| {
        Miss::new(&label, "what it reads are not shown to be the tokens of the norm")
            .expected("the tokens in any order", found)
    };
    let read = graph.node(mean).input(0).ok_or_else(|| unproved("no input"))?;
    let shape = graph.shape(read).ok_or_else(|| unproved("an unknown shape"))?;
    let text = |value: ValueId| graph.shape(value).map_or_else(|| "an unknown shape".into(), shape_text);
    if graph.shape(y).and_then(Dim::product) != Dim::product(shape) {
        return Err(
            Miss::new(&label, "it is over some of the tokens only").expected(format!("all of {}", text(y)), text(read))
        );
    }
    let stop = |value| value == y;
    let through = |id| graph.node(id).input(0).filter(|_| is_float_cast(graph, graph.node(id)));
    let walk = Walk { stop: &stop, through: &through };
    let region = movement::region(graph, read, &walk).ok_or_else(|| unproved("too long a chain"))?;
    let view = movement::strided(graph, read, shape, &walk).filter(|view| view.source == y && view.offset == 0);
    let view = view.ok_or_else(|| unproved("another movement of them"))?;

    let axis = |i: usize| (view.sizes[i].clone(), view.strides[i]);
    let wide = |i: &usize| view.sizes[*i] != Dim::Int(1);
    let other = || {
        let kept: Vec<usize> = (0..shape.len()).filter(|i| !axes.contains(i)).collect();
        Miss::new(&label, "it is not over the tokens, or not over them alone").expected(
            format!("a mean for each image and each of {channels} channels"),
            format!("axes {axes:?} of {} averaged, {kept:?} kept", text(read)),
        )
    };
    // The tokens, whichever axis runs fastest.
    let mut pooled: Vec<(Dim, i64)> = axes.iter().copied().filter(wide).map(axis).collect();
    pooled.sort_by_key(|&(_, stride)| stride);
    let mut count = 1i64;
    for (size, stride) in pooled {
        let size = size.int().ok_or_else(other)?;
        if channels.checked_mul(count) != Some(stride) {
            return Err(other());
        }
        count = count.checked_mul(size).ok_or_else(other)?;
    }
    let kept: Vec<(Dim, i64)> = (0..shape.len()).filter(|i| !axes.contains(i)).filter(wide).map(axis).collect();
    let (images, last) = match &kept[..] {
        [last] => (Dim::Int(1), last),
        [(images, stride), last] if channels.checked_mul(count) == Some(*stride) => (images.clone(), last),
        _ => return Err(other()),
    };
    if *last != (Dim::Int(channels), 1) {
        return Err(other());
    }
    Ok(([images, count.into(), channels.into()], region.nodes))
}
