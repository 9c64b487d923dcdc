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
use crate::rewrite::ops::{self, LayerNorm, Window};
use crate::rewrite::pattern::{normalize_axis, only_user};

const RULE: &str = "layernorm-residual";

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let norms: Vec<NodeId> =
        graph.nodes().filter(|(_, n)| n.domain == ops::DOMAIN && n.op == "TrtOptLayerNorm").map(|(id, _)| id).collect();
    for id in norms {
        if !engine.enabled(Kind::LayerNorm, RULE) {
            return Ok(());
        }
        let graph = engine.graph();
        if graph.get(id).is_none() {
            continue;
        }
        if let Some((patch, window)) = absorb_reverse(graph, id) {
            let norm = graph.node(id).name.clone();
            match engine.apply(patch)? {
                Ok(()) => engine.moved(&window, &norm),
                Err(miss) => tracing::debug!(at = miss.at, reason = miss.reason, "window reverse kept"),
            }
        } else if let Some(patch) = absorb(graph, id)
            && let Err(miss) = engine.apply(patch)?
        {
            tracing::debug!(at = miss.at, reason = miss.reason, "residual add kept");
        }
    }
    Ok(())
}

fn absorb(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let norm = LayerNorm::of(node)?;
    let [Some(x), Some(scale), Some(bias)] = node.inputs[..] else { return None };
    let old = node.output(0)?;
    let mut sum = x;
    let mut covers = vec![id];
    if let Some((reshape, producer)) = graph.producer(x).filter(|(_, n)| n.is("Reshape")) {
        sum = producer.input(0)?;
        // The reshape may serve others too; then it stays.
        covers.extend((graph.uses(x).len() == 1 && !graph.is_output(x)).then_some(reshape));
    }
    let (add, add_node) = graph.producer(sum)?;
    let mut patch = Patch::new(graph, RULE);
    let (a, b) = match add_node.op.as_str() {
        "Add" if add_node.is("Add") => {
            let (a, b) = (add_node.input(0)?, add_node.input(1)?);
            if graph.constant(a).is_some() || graph.constant(b).is_some() {
                return None;
            }
            (a, b)
        }
        "Concat" if add_node.is("Concat") => {
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
        }
        _ => return None,
    };
    let same = |v: ValueId| {
        let (v, sum) = (patch.describe(graph, v), graph.value(sum));
        v.shape == sum.shape && v.dtype == sum.dtype
    };
    if !same(a) || !same(b) || graph.dtype(sum) != graph.dtype(x) {
        return None;
    }
    covers.push(add);
    // What is normalized must stay whole when the reshape is left out, and windows need the map's shape.
    let shape = graph.shape(sum)?;
    let tail = |v: ValueId| graph.shape(v).map(|s| s[s.len().saturating_sub(norm.axes)..].to_vec());
    if tail(x) != tail(sum) || (!norm.map.is_none() && !norm.map.fits(shape)) {
        return None;
    }
    let new_sum = patch.value_like(graph, &format!("{}/sum", node.name), sum);
    let whole = norm.map.is_none().then(|| shape.to_vec()).or_else(|| graph.shape(old).map(<[_]>::to_vec))?;
    let y = patch.value(&format!("{}/y", node.name), graph.dtype(old), Some(whole));
    let mut fused = norm.node(a, Some(b), scale, bias);
    fused.name.clone_from(&node.name);
    patch.node(fused, [y, new_sum]);
    let out = patch.reshape(graph, y, graph.shape(old)?, &format!("{}/reshape", node.name))?;
    patch.replace(old, out);
    patch.replace(sum, new_sum);
    patch.cover(covers);
    Some(patch)
}

/// The window reverse with a residual that the norm follows, moved into it; and that node's name.
fn absorb_reverse(graph: &Graph, id: NodeId) -> Option<(Patch, String)> {
    let node = graph.node(id);
    let norm = LayerNorm::of(node).filter(|n| n.axes == 1 && n.map.is_none())?;
    let [Some(x), Some(scale), Some(bias)] = node.inputs[..] else { return None };
    let old = node.output(0)?;
    let mut sum = x;
    let mut covers = vec![id];
    if let Some((reshape, producer)) = graph.producer(x).filter(|(_, n)| n.is("Reshape")) {
        sum = producer.input(0)?;
        covers.extend((graph.uses(x).len() == 1 && !graph.is_output(x)).then_some(reshape));
    }
    let (reverse, window) = graph.producer(sum)?;
    if window.domain != ops::DOMAIN || window.op != "TrtOptWindow" {
        return None;
    }
    let map = Window::of(window).filter(|w| w.reverse)?.map;
    let [Some(windows), Some(residual)] = window.inputs[..] else { return None };
    if graph.shape(x)?.last() != graph.shape(sum)?.last() {
        return None;
    }
    covers.push(reverse);
    let mut patch = Patch::new(graph, RULE);
    let new_sum = patch.value_like(graph, &format!("{}/sum", node.name), sum);
    let y = patch.value_like(graph, &format!("{}/y", node.name), sum);
    let mut fused = LayerNorm { map, reverse: true, ..norm }.node(windows, Some(residual), scale, bias);
    fused.name.clone_from(&node.name);
    patch.node(fused, [y, new_sum]);
    let out = patch.reshape(graph, y, graph.shape(old)?, &format!("{}/reshape", node.name))?;
    patch.replace(old, out);
    patch.replace(sum, new_sum);
    patch.cover(covers);
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
