//! Cuts and joins that together are one transposition, such as that of words when PyramidTNT merges 2x2 patches, become that.
//!
//! ```text
//! x [B, 4, 6, 4, 4, C] -> Slice x6 -> Concat x3 -> Reshape -> Transpose = y [B*6, C, 8, 8]
//! becomes   x -> Reshape [B*2, 2, 3, 2, 4, 4, C] -> Transpose [0, 2, 6, 1, 4, 3, 5] -> Reshape = y
//! ```
//!
//! The index map proves that all elements of one value are there, in the order of its axes transposed. Only where fewer nodes move
//! elements than before, those left to other readers not counted, and not where all are transpositions already.
//!
//! These are no sites of the ledger. For all targets, since what is left is standard ops.

use std::collections::HashSet;

use crate::analysis::movement::{self, Permutation, Walk};
use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId};
use crate::rewrite::engine::{Engine, Patch};
use crate::rewrite::rules::straighten::regroups;

const RULE: &str = "permutation";

/// TensorRT takes no more.
const MAX_AXES: usize = 8;

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let mut moved: Vec<ValueId> = movement::ends(graph).into_iter().map(|end| before_shapes(graph, end)).collect();
    // Several shapes of one value are one movement.
    let mut seen = HashSet::new();
    moved.retain(|&value| seen.insert(value));
    for value in moved {
        if !engine.runs(RULE) {
            return Ok(());
        }
        if let Some(patch) = patch(engine.graph(), value) {
            engine.apply_or_keep(patch, "movement")?;
        }
    }
    Ok(())
}

/// What a value is before it is only given other shapes.
fn before_shapes(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some((_, node)) = graph.producer(value).filter(|(_, node)| regroups(&node.op) && node.domain.is_empty())
        && let Some(before) = node.input(0)
    {
        value = before;
    }
    value
}

fn patch(graph: &Graph, out: ValueId) -> Option<Patch> {
    if graph.is_named_elsewhere(out) {
        return None;
    }
    let walk = Walk::default();
    let going = superfluous(graph, &movement::region(graph, out, &walk)?.nodes, out);
    let count = |counted: &dyn Fn(&str) -> bool| going.iter().filter(|&&id| counted(&graph.node(id).op)).count();
    let (cuts, joins) = (count(&|op| ["Slice", "Split", "Gather"].contains(&op)), count(&|op| op == "Concat"));
    if joins == 0 && cuts < 2 {
        return None;
    }
    let Permutation { source, sizes, perm } = movement::permutation(graph, out, &walk)?;
    // What stays at its place is no transposition, and straightened.
    if perm.is_sorted() || count(&|op| !regroups(op)) < 2 || sizes.len() > MAX_AXES {
        return None;
    }

    let label = graph.node_label(graph.value(out).producer?);
    let mut patch = Patch::new(graph, RULE);
    let axes = patch.reshape(graph, source, &sizes, &format!("{label}/axes"))?;
    let moved = patch.transpose(graph, axes, &perm, &format!("{label}/moved"))?;
    let new = patch.reshape(graph, moved, graph.shape(out)?, &format!("{label}/shape"))?;
    patch.replace(out, new);
    patch.cover(going);
    Some(patch)
}

/// The nodes of a region that nothing needs once `out` comes from elsewhere.
fn superfluous(graph: &Graph, nodes: &[NodeId], out: ValueId) -> HashSet<NodeId> {
    let mut going = HashSet::new();
    for &id in nodes.iter().rev() {
        let read = |&value: &ValueId| {
            value != out
                && (graph.is_output(value)
                    || graph.is_named_elsewhere(value)
                    || !graph.uses(value).iter().all(|user| going.contains(user)))
        };
        if !graph.node(id).outputs.iter().flatten().any(read) {
            going.insert(id);
        }
    }
    going
}
