//! Data movement proved by index maps.
//!
//! A region of Slice, Concat, Pad, Reshape, Transpose, Gather and their like moves elements and computes nothing.
//! [`trace`] evaluates it to a [`Map`]: for every element of its output the element of a source that it is, or a hole
//! (a zero of padding). Two regions with the same map compute the same, however they are spelled.
//!
//! Sizes that depend on the batch are bound to numbers first. [`strided`] and [`per_image`] bind the batch to 2 and to 3
//! and accept a region only if both show the same map on every image; since no operator may cut an axis of unknown
//! size at a fixed place, a region that treats images 0, 1 and 2 alike treats all alike.

pub mod classify;
mod map;
mod ops;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub use classify::{Class, Grid, Hints, Mismatch, Windows};
pub use map::{Affine, HOLE, Map, PerImage, Source};

use crate::ir::{Dim, Graph, NodeId, Symbol, ValueId};

/// Nodes that one region may have.
const MAX_NODES: usize = 1024;
/// Table entries that the maps of one region may have together.
const MAX_COST: usize = 1 << 22;

/// How far to walk back, and through what.
#[derive(Clone, Copy)]
pub struct Walk<'a> {
    /// Values that are sources even if a movement node makes them.
    pub stop: &'a dyn Fn(ValueId) -> bool,
    /// The input of a node that is taken as moving its elements unchanged, though it does more (a scalar factor, a cast).
    pub through: &'a dyn Fn(NodeId) -> Option<ValueId>,
}

impl Default for Walk<'_> {
    fn default() -> Self {
        Self { stop: &|_| false, through: &|_| None }
    }
}

/// What lies between a value and the values that it moves.
#[derive(Clone, Debug, Default)]
pub struct Region {
    /// The values that are read: graph inputs, weights, outputs of nodes that compute, and values named by `stop`.
    pub sources: Vec<ValueId>,
    /// The nodes that move them, each after those it reads from.
    pub nodes: Vec<NodeId>,
}

/// A region with the operations worked out: everything but sizes.
struct Plan {
    region: Region,
    steps: Vec<Step>,
}

struct Step {
    movement: ops::Movement,
    inputs: Vec<ValueId>,
    output: ValueId,
}

/// Walks back from `value` over nodes that only move elements, but not past values for which `walk.stop` is true
/// (`value` itself is not asked). A region without nodes has `value` as its only source. `None` where the region is too large.
pub fn region(graph: &Graph, value: ValueId, walk: &Walk) -> Option<Region> {
    Some(plan(graph, value, walk)?.region)
}

fn plan(graph: &Graph, value: ValueId, walk: &Walk) -> Option<Plan> {
    let mut plan = Plan { region: Region::default(), steps: vec![] };
    let mut done: HashSet<ValueId> = HashSet::new();
    let mut nodes: HashSet<NodeId> = HashSet::new();
    // A value is opened, then closed once all that it reads is done.
    let mut stack: Vec<(ValueId, Option<(NodeId, Step)>)> = vec![(value, None)];
    while let Some((v, opened)) = stack.pop() {
        if let Some((node, step)) = opened {
            if done.insert(v) {
                // What makes the empty parts of a Concat belongs to the region too, though it moves nothing.
                let parts = graph.node(node).inputs.iter().flatten().filter(|v| ops::is_empty(graph, **v));
                let idle = parts.filter(|v| is_moved(graph, **v)).filter_map(|v| graph.value(*v).producer);
                for node in idle.chain([node]) {
                    if nodes.insert(node) {
                        plan.region.nodes.push(node);
                    }
                }
                plan.steps.push(step);
            }
            continue;
        }
        if done.contains(&v) {
            continue;
        }
        let step = graph.value(v).producer.filter(|_| v == value || !(walk.stop)(v)).and_then(|id| {
            let (movement, inputs) = match (walk.through)(id) {
                Some(input) => (ops::Movement::Reshape, vec![input]),
                None => ops::movement(graph, id, v)?,
            };
            Some((id, Step { movement, inputs, output: v }))
        });
        match step {
            Some((id, step)) => {
                if plan.steps.len() + stack.len() > MAX_NODES {
                    return None;
                }
                let inputs = step.inputs.clone();
                stack.push((v, Some((id, step))));
                stack.extend(inputs.into_iter().rev().map(|input| (input, None)));
            }
            None => {
                done.insert(v);
                plan.region.sources.push(v);
            }
        }
    }
    Some(plan)
}

/// The index map of `value`, with every symbol in its region's shapes bound to a number.
///
/// `None` where a shape is unknown, a tensor is empty, or the map is too large to be written down (over a million entries
/// besides the axes that the region leaves alone).
pub fn trace(graph: &Graph, value: ValueId, binding: &dyn Fn(&str) -> Option<i64>, walk: &Walk) -> Option<Map> {
    evaluate(graph, &plan(graph, value, walk)?, value, binding)
}

fn evaluate(graph: &Graph, plan: &Plan, value: ValueId, binding: &dyn Fn(&str) -> Option<i64>) -> Option<Map> {
    let shape = |v: ValueId| -> Option<Vec<i64>> { graph.shape(v)?.iter().map(|d| d.eval(binding)).collect() };
    let mut base = 0i64;
    let mut sources = vec![];
    for &source in &plan.region.sources {
        let len = map::elements(&shape(source)?)?;
        sources.push(Source { value: source, base, len });
        base = base.checked_add(len)?;
    }
    let sources: Arc<[Source]> = sources.into();
    let (mut maps, mut cost): (HashMap<ValueId, Map>, usize) = (HashMap::new(), 0);
    for (i, source) in sources.iter().enumerate() {
        maps.insert(source.value, Map::of_source(&sources, i, &shape(source.value)?)?);
    }
    for step in &plan.steps {
        let inputs: Option<Vec<&Map>> = step.inputs.iter().map(|v| maps.get(v)).collect();
        let map = ops::apply(&step.movement, &inputs?, &shape(step.output)?)?;
        cost += map.cost();
        if cost > MAX_COST {
            return None;
        }
        maps.insert(step.output, map);
    }
    maps.remove(&value)
}

/// The map as a strided view of one source, where it is one.
pub fn affine(map: &Map) -> Option<Affine> {
    map.affine()
}

/// A strided view of a source over axes whose sizes may depend on the batch; the strides and the offset do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strided {
    pub source: ValueId,
    /// In elements.
    pub offset: i64,
    pub sizes: Vec<Dim>,
    /// In elements; 0 for an axis of size 1.
    pub strides: Vec<i64>,
}

impl Strided {
    /// Whether the strides are these; an axis of size 1 may have any.
    pub fn has(&self, strides: &[i64]) -> bool {
        self.strides.len() == strides.len()
            && self.strides.iter().zip(strides).zip(&self.sizes).all(|((a, b), size)| a == b || *size == Dim::Int(1))
    }
}

/// `value`, its elements taken in order over the axes `sizes`, as a strided view of the one source of its region.
///
/// With an open batch this holds for all batches.
pub fn strided(graph: &Graph, value: ValueId, sizes: &[Dim], walk: &Walk) -> Option<Strided> {
    for_all_batches(graph, value, sizes, walk, |map, sizes| {
        let affine = map.affine()?;
        let strides = affine.strides(sizes)?;
        Some((affine.source, affine.offset, strides))
    })
    .map(|(source, offset, strides)| Strided { source, offset, sizes: sizes.to_vec(), strides })
}

/// The elements of a source in another order: its axes, cut or joined to `sizes`, are transposed by `perm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    pub source: ValueId,
    /// The fewest that will do. All but the first are integers.
    pub sizes: Vec<Dim>,
    pub perm: Vec<usize>,
}

/// `value` as all of the one source of its region, transposed.
///
/// With an open batch this holds for all batches.
pub fn permutation(graph: &Graph, value: ValueId, walk: &Walk) -> Option<Permutation> {
    let (source, inner, perm) = for_all_batches(graph, value, &[], walk, |map, _| {
        let &[source] = map.sources() else { return None };
        let (sizes, perm) = map.affine()?.permutation()?;
        // Of the images, so not the same for every batch: what the others leave.
        let (_, inner) = sizes.split_first()?;
        (sizes.iter().product::<i64>() == source.len).then(|| (source.value, inner.to_vec(), perm))
    })?;
    let first = Dim::product(graph.shape(source)?)?.div_exact(&inner.iter().product::<i64>().into())?;
    let sizes = [first].into_iter().chain(inner.into_iter().map(Dim::Int)).collect();
    Some(Permutation { source, sizes, perm })
}

/// The map of one image of `value`, where each of `images` equal parts of it reads the same part of the one source of its
/// region, all in the same way, in runs of `run` elements.
pub fn per_image(graph: &Graph, value: ValueId, images: &Dim, run: i64, walk: &Walk) -> Option<PerImage> {
    for_all_batches(graph, value, std::slice::from_ref(images), walk, |map, images| map.per_image(images[0], run))
}

/// What `view` says of the map, where it says the same for every batch. `sizes` are handed to it as numbers.
fn for_all_batches<T: PartialEq>(
    graph: &Graph,
    value: ValueId,
    sizes: &[Dim],
    walk: &Walk,
    view: impl Fn(&Map, &[i64]) -> Option<T>,
) -> Option<T> {
    let plan = plan(graph, value, walk)?;
    let symbol = symbol(graph, &plan, sizes)?;
    let at = |batch: i64| {
        let binding = |s: &str| symbol.as_deref().filter(|symbol| *symbol == s).map(|_| batch);
        let map = evaluate(graph, &plan, value, &binding)?;
        let sizes: Option<Vec<i64>> = sizes.iter().map(|d| d.eval(binding)).collect();
        view(&map, &sizes?)
    };
    let first = at(2)?;
    (symbol.is_none() || at(3)? == first).then_some(first)
}

/// The one symbol of a region, `Some(None)` if it has none; `None` if it has several, which nothing is proved for.
fn symbol(graph: &Graph, plan: &Plan, sizes: &[Dim]) -> Option<Option<Symbol>> {
    let values = plan.region.sources.iter().copied().chain(plan.steps.iter().map(|s| s.output));
    let mut found: Option<Symbol> = None;
    for dim in values.flat_map(|v| graph.shape(v).unwrap_or_default()).chain(sizes) {
        for symbol in dim.symbols() {
            match &found {
                Some(other) if *other != symbol => return None,
                _ => found = Some(symbol),
            }
        }
    }
    Some(found)
}

/// Whether the producer of `value` only moves elements.
pub fn is_moved(graph: &Graph, value: ValueId) -> bool {
    graph.value(value).producer.is_some_and(|id| ops::movement(graph, id, value).is_some())
}

/// Values at which a movement ends: made by a node that only moves elements, and read by one that computes, or a graph
/// output. In topological order.
pub fn ends(graph: &Graph) -> Vec<ValueId> {
    let mut ends = vec![];
    for (_, node) in graph.nodes() {
        for &value in node.outputs.iter().flatten().filter(|v| is_moved(graph, **v) && !ops::is_empty(graph, **v)) {
            let moves_on = |&user: &NodeId| {
                // Whoever asks for the shape does not read the elements.
                if graph.node(user).is("Shape") || graph.node(user).is("Size") {
                    return true;
                }
                let outputs = graph.node(user).outputs.iter().flatten();
                outputs.filter_map(|out| ops::movement(graph, user, *out)).any(|(_, inputs)| inputs.contains(&value))
            };
            if graph.is_output(value) || !graph.uses(value).iter().all(moves_on) {
                ends.push(value);
            }
        }
    }
    ends
}
