//! Residual adds that feed a fused norm move into it.
//!
//! ```text
//! a, b -> Add = s -> [Reshape] -> TrtOptLayerNorm       becomes   TrtOptLayerNorm(a, b) -> y, s
//! ```
//!
//! So does an add to some of the tokens only, the others kept (TNT adds to all but the class token):
//!
//! ```text
//! a -> Slice ---------------> Concat = s -> TrtOptLayerNorm     becomes   TrtOptLayerNorm(a, part b) -> y, s
//! a -> Slice -> Add (with b) ---^
//! ```
//!
//! and then the add that makes `a`, if nothing else reads that:
//!
//! ```text
//! c, d -> Add = a -> TrtOptLayerNorm(a, part b)         becomes   TrtOptLayerNorm(c, d, part b) -> y, s
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
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Patch};
use crate::rewrite::ops::{Addends, LayerNorm, Part, Window};
use crate::rewrite::pattern::{normalize_axis, only_user};

const RULE: &str = "layernorm-residual";

pub fn run(engine: &mut Engine) -> Result<()> {
    for id in norms(engine.graph(), |added| added.is_empty()) {
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
        } else if let Some(patch) = absorb(graph, &found) {
            engine.apply_or_keep(patch, "residual add")?;
        }
    }
    for id in norms(engine.graph(), |added| added.part.is_some() && added.residual.is_none()) {
        if !engine.enabled(Kind::LayerNorm, RULE) {
            return Ok(());
        }
        if let Some(patch) = absorb_beside_part(engine.graph(), id) {
            engine.apply_or_keep(patch, "residual add beside that to a part")?;
        }
    }
    Ok(())
}

/// The fused norms with such operands.
fn norms(graph: &Graph, with: impl Fn(&Addends) -> bool) -> Vec<NodeId> {
    graph.nodes().filter(|(_, n)| Addends::of(n).is_some_and(|added| with(&added))).map(|(id, _)| id).collect()
}

/// A fused norm that adds nothing, and the value before the Reshape that may lead to it.
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

    /// Puts `norm` of `x` and what is added to it into the patch, which gives the sum too; `y` is the shape of its first
    /// output.
    fn fuse(
        &self,
        graph: &Graph,
        norm: &LayerNorm,
        (x, added): (ValueId, Addends),
        y: Vec<Dim>,
        covers: impl IntoIterator<Item = NodeId>,
    ) -> Option<Patch> {
        let name = &self.node.name;
        let mut patch = Patch::new(graph, RULE);
        let sum = patch.value_like(graph, &format!("{name}/sum"), self.sum);
        let y = patch.value(&format!("{name}/y"), graph.dtype(self.out), Some(y));
        let mut fused = norm.node(x, &added, self.scale, self.bias);
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
    let Found { norm, sum, .. } = *found;
    if graph.dtype(sum) != graph.dtype(found.x) {
        return None;
    }
    let (add, node) = graph.producer(sum)?;
    let shape = graph.shape(sum)?;
    if node.is("Concat") {
        let PartAdd { base, part, covered, add: inner } = part_add(graph, node)?;
        norm.takes_part(shape, covered, part.begin).then_some(())?;
        let added = Addends { part: Some(part), residual: None };
        return found.fuse(graph, &norm, (base, added), shape.to_vec(), [add, inner]);
    }
    let [a, b] = full_add(graph, sum)?;
    // Windows need the map's shape.
    if !norm.map.is_none() && !norm.map.fits(shape) {
        return None;
    }
    let whole = if norm.map.is_none() { shape } else { graph.shape(found.out)? }.to_vec();
    found.fuse(graph, &norm, (a, Addends { residual: Some(b), part: None }), whole, [add])
}

/// The operands of the Add that makes the value, if they are computed and neither is broadcast.
fn full_add(graph: &Graph, sum: ValueId) -> Option<[ValueId; 2]> {
    let (_, add) = graph.producer(sum).filter(|(_, n)| n.is("Add"))?;
    let operands = [add.input(0)?, add.input(1)?];
    let full = |&v: &ValueId| graph.constant(v).is_none() && same_kind(graph, v, sum);
    operands.iter().all(full).then_some(operands)
}

fn same_kind(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    graph.shape(a) == graph.shape(b) && graph.dtype(a) == graph.dtype(b)
}

/// The add before a norm that adds to a part already.
fn absorb_beside_part(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let (norm, added) = (LayerNorm::of(node)?, Addends::of(node)?);
    let ([Some(x), .., Some(scale), Some(bias)], &[Some(y), Some(sum)]) = (&node.inputs[..], &node.outputs[..]) else {
        return None;
    };
    let (x, scale, bias) = (*x, *scale, *bias);
    let [a, b] = full_add(graph, x)?;
    let mut patch = Patch::new(graph, RULE);
    let outputs = [y, sum].map(|old| {
        let new = patch.value_like(graph, &graph.value(old).name, old);
        patch.replace(old, new);
        new
    });
    let added = Addends { residual: Some(b), ..added };
    patch.node(Node { name: node.name.clone(), ..norm.node(a, &added, scale, bias) }, outputs);
    patch.cover([id, graph.value(x).producer?]);
    Some(patch)
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
    let added = Addends { residual: Some(residual), part: None };
    let patch = found.fuse(graph, &norm, (windows, added), shape, [reverse])?;
    Some((patch, window.name.clone()))
}

/// `base` with a part added.
pub struct PartAdd<'a> {
    pub base: ValueId,
    pub part: Part,
    /// Shape of the part.
    covered: &'a [Dim],
    add: NodeId,
}

/// The Concat of all of the tokens of `[B, N, C]` in order, some of them with something added.
pub fn part_add<'a>(graph: &'a Graph, concat: &Node) -> Option<PartAdd<'a>> {
    let sum = concat.output(0)?;
    let shape = graph.shape(sum)?;
    let axis = normalize_axis(concat.int("axis")?, shape.len()).filter(|&axis| axis == 1)?;
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
            if found.is_some() || !same_kind(graph, update, part) {
                return None;
            }
            found = Some((Part { value: update, begin: at }, add));
            piece = Some(source);
        }
        if *base.get_or_insert(piece?) != piece? {
            return None;
        }
        at += size;
    }
    let (part, add) = found?;
    let base = base.filter(|&base| same_kind(graph, base, sum))?;
    Some(PartAdd { base, part, covered: graph.shape(part.value)?, add })
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
