//! Residual adds that feed a fused norm move into it.
//!
//! ```text
//! a, b -> Add = s -> [Reshape] -> TrtOptLayerNorm       becomes   TrtOptLayerNorm(a, b) -> y, s
//! ```
//!
//! An add to some of the tokens only, the others kept (TNT adds to all but the class token), is an add of zeros to those:
//!
//! ```text
//! a -> Slice ---------------> Concat = s -> TrtOptLayerNorm     becomes   b -> Pad -> TrtOptLayerNorm(a, .) -> y, s
//! a -> Slice -> Add (with b) ---^
//! ```
//!
//! Runs after the windows. A window reverse has taken its residual add by then; together they move into the norm:
//!
//! ```text
//! w, r -> TrtOptWindow reverse = s -> TrtOptLayerNorm   becomes   TrtOptLayerNorm reverse (w, r) -> y, s
//! ```

use crate::analysis::movement::{self, Walk};
use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId};
use crate::onnx::proto::TensorProto;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Patch};
use crate::rewrite::ops::{LayerNorm, Window};
use crate::rewrite::pattern::{normalize_axis, only_user};

const RULE: &str = "layernorm-residual";

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let norms: Vec<NodeId> = graph.nodes().filter(|(_, n)| LayerNorm::of(n).is_some()).map(|(id, _)| id).collect();
    for id in norms {
        if !engine.enabled(Kind::LayerNorm, RULE) {
            return Ok(());
        }
        let graph = engine.graph();
        let Some(found) = graph.get(id).and_then(|_| Found::of(graph, id)) else { continue };
        let norm = found.node.name.clone();
        if let Some((patch, window)) = absorb_reverse(graph, &found) {
            match engine.apply(patch)? {
                Ok(()) => engine.absorb_sites(&[window].into(), &norm),
                Err(miss) => tracing::debug!(at = miss.at, reason = miss.reason, "window reverse kept"),
            }
        } else if let Some(patch) = absorb(graph, &found)
            && let Err(miss) = engine.apply(patch)?
        {
            tracing::debug!(at = miss.at, reason = miss.reason, "residual add kept");
        }
    }
    Ok(())
}

/// A fused norm without a residual, and the value before the Reshape that may lead to it.
struct Found<'a> {
    node: &'a Node,
    norm: LayerNorm,
    x: ValueId,
    sum: ValueId,
    scale: ValueId,
    bias: ValueId,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl<'a> Found<'a> {
    fn of(graph: &'a Graph, id: NodeId) -> Option<Self> {
        let node = graph.node(id);
        let norm = LayerNorm::of(node)?;
        let [Some(x), Some(scale), Some(bias)] = node.inputs[..] else { return None };
        let mut sum = x;
        let mut covers = vec![id];
        if let Some((reshape, producer)) = graph.producer(x).filter(|(_, n)| n.is("Reshape")) {
            sum = producer.input(0)?;
            // The reshape may serve others too; then it stays.
            covers.extend((graph.uses(x).len() == 1 && !graph.is_output(x)).then_some(reshape));
        }
        // What is normalized must stay whole when the reshape is left out.
        let tail = |v: ValueId| graph.shape(v).map(|s| s[s.len().saturating_sub(norm.axes)..].to_vec());
        (tail(x) == tail(sum)).then_some(Self { node, norm, x, sum, scale, bias, out: node.output(0)?, covers })
    }

    /// Puts `norm` of `a + b` into the patch, which gives the sum too; `y` is the shape of its first output.
    fn fuse(
        &self,
        mut patch: Patch,
        graph: &Graph,
        norm: &LayerNorm,
        [a, b]: [ValueId; 2],
        y: Vec<Dim>,
        covers: impl IntoIterator<Item = NodeId>,
    ) -> Option<Patch> {
        let name = &self.node.name;
        let sum = patch.value_like(graph, &format!("{name}/sum"), self.sum);
        let y = patch.value(&format!("{name}/y"), graph.dtype(self.out), Some(y));
        let mut fused = norm.node(a, Some(b), self.scale, self.bias);
        fused.name.clone_from(name);
        patch.node(fused, [y, sum]);
        let out = patch.reshape(graph, y, graph.shape(self.out)?, &format!("{name}/reshape"))?;
        patch.replace(self.out, out);
        patch.replace(self.sum, sum);
        patch.cover(self.covers.iter().copied().chain(covers));
        Some(patch)
    }
}

fn absorb(graph: &Graph, found: &Found) -> Option<Patch> {
    let Found { node, norm, sum, .. } = *found;
    let (add, add_node) = graph.producer(sum)?;
    let mut covers = vec![add];
    let mut patch = Patch::new(graph, RULE);
    let (a, b) = if add_node.is("Add") {
        let (a, b) = (add_node.input(0)?, add_node.input(1)?);
        if graph.constant(a).is_some() || graph.constant(b).is_some() {
            return None;
        }
        (a, b)
    } else if add_node.is("Concat") {
        let part = add_to_part(graph, add_node)?;
        covers.push(part.add);
        let mut pads = vec![0; 2 * part.rank];
        (pads[part.axis], pads[part.rank + part.axis]) = (part.before, part.after);
        let pads = TensorProto::from_i64("", &[pads.len() as i64], &pads);
        let pads = patch.constant(&format!("{}/pads", node.name), pads);
        let padded = patch.value_like(graph, &format!("{}/padded", node.name), sum);
        let pad = Node { name: format!("{}/Pad", node.name), ..Node::new("Pad", [part.update, pads]) };
        patch.node(pad, [padded]);
        (part.base, padded)
    } else {
        return None;
    };
    let same = |v: ValueId| {
        let (v, sum) = (patch.describe(graph, v), graph.value(sum));
        v.shape == sum.shape && v.dtype == sum.dtype
    };
    if !same(a) || !same(b) || graph.dtype(sum) != graph.dtype(found.x) {
        return None;
    }
    let shape = graph.shape(sum)?;
    // Windows need the map's shape.
    if !norm.map.is_none() && !norm.map.fits(shape) {
        return None;
    }
    let whole = if norm.map.is_none() { shape } else { graph.shape(found.out)? }.to_vec();
    found.fuse(patch, graph, &norm, [a, b], whole, covers)
}

/// The window reverse with a residual that the norm follows, moved into it; and that node's name.
fn absorb_reverse(graph: &Graph, found: &Found) -> Option<(Patch, String)> {
    if found.norm.axes != 1 || !found.norm.map.is_none() {
        return None;
    }
    let (reverse, window) = graph.producer(found.sum)?;
    let map = Window::of(window).filter(|w| w.reverse)?.map;
    let [Some(windows), Some(residual)] = window.inputs[..] else { return None };
    let norm = LayerNorm { map, reverse: true, ..found.norm };
    let shape = graph.shape(found.sum)?.to_vec();
    let patch = found.fuse(Patch::new(graph, RULE), graph, &norm, [windows, residual], shape, [reverse])?;
    Some((patch, window.name.clone()))
}

/// `base` with `update` added from index `before` of an axis on, and nothing in the last `after`.
struct Part {
    base: ValueId,
    update: ValueId,
    rank: usize,
    axis: usize,
    before: i64,
    after: i64,
    add: NodeId,
}

/// The Concat of all of a tensor's parts in order, one of them with something added.
fn add_to_part(graph: &Graph, concat: &Node) -> Option<Part> {
    let sum = concat.output(0)?;
    let shape = graph.shape(sum)?;
    let axis = normalize_axis(concat.int("axis")?, shape.len())?;
    let mut found = None;
    let mut base = None;
    let mut at = 0;
    for &part in &concat.inputs {
        let part = part?;
        let size = graph.shape(part)?.get(axis)?.int()?;
        let mut piece = piece_at(graph, part, shape, axis, at);
        if piece.is_none()
            && let Some((add, node)) = graph.producer(part).filter(|(_, n)| n.is("Add"))
        {
            only_user(graph, part)?;
            let (x, y) = (node.input(0)?, node.input(1)?);
            let of = |v| piece_at(graph, v, shape, axis, at);
            let (source, update) = of(x).map(|s| (s, y)).or_else(|| of(y).map(|s| (s, x)))?;
            if found.is_some() || graph.shape(update) != graph.shape(part) || graph.dtype(update) != graph.dtype(sum) {
                return None;
            }
            found = Some((update, at, size, add));
            piece = Some(source);
        }
        if *base.get_or_insert(piece?) != piece? {
            return None;
        }
        at += size;
    }
    let (update, before, size, add) = found?;
    Some(Part { base: base?, update, rank: shape.len(), axis, before, after: at - before - size, add })
}

/// The tensor of this shape that `value` is a part of, from index `at` of the axis on.
fn piece_at(graph: &Graph, value: ValueId, shape: &[Dim], axis: usize, at: i64) -> Option<ValueId> {
    let (_, producer) = graph.producer(value)?;
    let base = producer.input(0).filter(|&v| graph.shape(v) == Some(shape))?;
    let stop = |v: ValueId| v == base;
    let walk = Walk { stop: &stop, ..Walk::default() };
    let view = movement::strided(graph, value, graph.shape(value)?, &walk)?;
    let strides: Vec<i64> = (0..shape.len()).map(|i| Dim::product(&shape[i + 1..])?.int()).collect::<Option<_>>()?;
    (view.source == base && view.offset == at * strides[axis] && view.has(&strides)).then_some(base)
}
