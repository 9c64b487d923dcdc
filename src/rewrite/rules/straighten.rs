//! Chains by which nothing moves: a Reshape of a Reshape, the partition of a map that is one window, a cut joined again.
//!
//! ```text
//! x -> Reshape -> Transpose [0, 1, 3, 2, 4, 5] (of axes of size 1) -> Reshape -> Reshape -> y      becomes   x -> Reshape -> y
//! ```
//!
//! The index map proves that every element stays at its place. These are no sites of the ledger.

use std::collections::HashSet;

use crate::analysis::movement::{self, Walk};
use crate::error::Result;
use crate::ir::{Dim, Graph, NodeId, ValueId};
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Patch};

const RULE: &str = "straighten";

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let ends = movement::ends(graph);
    let outputs = graph.nodes().filter(|(_, node)| regroups(node.op.as_str())).filter_map(|(_, node)| node.output(0));
    let known: HashSet<ValueId> = ends.iter().copied().collect();
    let runs: Vec<ValueId> = outputs.filter(|out| !known.contains(out) && !regrouped_again(graph, *out)).collect();
    for out in ends.into_iter().chain(runs) {
        if !engine.enabled(Kind::Window, RULE) {
            return Ok(());
        }
        if let Some(patch) = patch(engine.graph(), out)
            && let Err(miss) = engine.apply(patch)?
        {
            tracing::debug!(at = miss.at, reason = miss.reason, "chain kept");
        }
    }
    Ok(())
}

/// Whether an operator moves nothing and only gives another shape.
pub fn regroups(op: &str) -> bool {
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"].contains(&op)
}

/// Whether all readers only regroup the value further.
fn regrouped_again(graph: &Graph, value: ValueId) -> bool {
    let uses = graph.uses(value);
    let regroup = |user: &NodeId| {
        let node = graph.node(*user);
        regroups(&node.op) && node.domain.is_empty() && node.input(0) == Some(value)
    };
    !graph.is_output(value) && !uses.is_empty() && uses.iter().all(regroup)
}

fn patch(graph: &Graph, out: ValueId) -> Option<Patch> {
    graph.value(out).producer?;
    if graph.is_output(out) {
        return None;
    }
    let (source, nodes) = idle(graph, out).or_else(|| run_of_reshapes(graph, out))?;
    let shape = graph.shape(out)?;
    let left = usize::from(graph.shape(source)? != shape);
    if nodes.len() <= left {
        return None;
    }
    let mut patch = Patch::new(graph, RULE);
    let new = patch.reshape(graph, source, shape, &graph.value(out).name)?;
    patch.replace(out, new);
    patch.cover(nodes);
    Some(patch)
}

/// The source of a whole chain that leaves every element at its place.
fn idle(graph: &Graph, out: ValueId) -> Option<(ValueId, Vec<NodeId>)> {
    let walk = Walk::default();
    let region = movement::region(graph, out, &walk)?;
    let &[source] = &region.sources[..] else { return None };
    let (before, after) = (Dim::product(graph.shape(source)?)?, Dim::product(graph.shape(out)?)?);
    if before != after || region.nodes.is_empty() {
        return None;
    }
    let view = movement::strided(graph, out, &[after], &walk)?;
    (view.offset == 0 && view.has(&[1])).then_some((source, region.nodes))
}

/// The value before the Reshapes that end in `out`.
fn run_of_reshapes(graph: &Graph, out: ValueId) -> Option<(ValueId, Vec<NodeId>)> {
    let (mut source, mut nodes) = (out, vec![]);
    while let Some((id, node)) = graph.producer(source)
        && regroups(&node.op)
        && node.domain.is_empty()
        && (source == out || graph.uses(source).len() == 1 && !graph.is_output(source))
    {
        source = node.input(0)?;
        nodes.push(id);
    }
    (!nodes.is_empty()).then_some((source, nodes))
}
