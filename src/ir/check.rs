//! The validator: what must hold of a graph before and after every rewrite.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::ir::{Graph, ValueId};

/// Checks single assignment, topological order, use lists, unique names, and that every value that is read has a
/// definition. The first violation is the error.
pub fn check(graph: &Graph) -> Result<()> {
    let mut names: HashMap<&str, ValueId> = HashMap::new();
    let mut defined: HashSet<ValueId> = HashSet::new();
    let inputs: HashSet<ValueId> = graph.inputs.iter().copied().collect();
    let mut uses: HashMap<ValueId, usize> = HashMap::new();

    for id in graph.value_ids() {
        let value = graph.value(id);
        if value.tensor.is_some() || inputs.contains(&id) || (value.pinned && value.producer.is_none()) {
            if value.producer.is_some() {
                return Err(Error::invalid(
                    format!("value '{}'", value.name),
                    "is a graph input or weight and also a node's output",
                ));
            }
            defined.insert(id);
        }
        if (value.producer.is_some() || defined.contains(&id))
            && let Some(other) = names.insert(&value.name, id)
        {
            return Err(Error::invalid(
                format!("value '{}'", value.name),
                format!("has the name of another ({other:?})"),
            ));
        }
    }
    for (id, node) in graph.nodes() {
        let place = || format!("node '{}' ({})", graph.node_label(id), node.op);
        for &input in node.inputs.iter().flatten().chain(&node.captures) {
            if !defined.contains(&input) {
                let what = format!("reads '{}' before anything defines it", graph.value(input).name);
                return Err(Error::invalid(place(), what));
            }
            *uses.entry(input).or_default() += 1;
        }
        for &output in node.outputs.iter().flatten() {
            if !defined.insert(output) {
                return Err(Error::invalid(place(), format!("defines '{}' again", graph.value(output).name)));
            }
            if graph.value(output).producer != Some(id) {
                return Err(Error::invalid(
                    place(),
                    format!("is not the noted producer of '{}'", graph.value(output).name),
                ));
            }
        }
    }
    for &output in &graph.outputs {
        if !defined.contains(&output) {
            return Err(Error::invalid(format!("graph output '{}'", graph.value(output).name), "is not defined"));
        }
    }
    for id in graph.value_ids() {
        let (noted, found) = (graph.uses(id).len(), uses.get(&id).copied().unwrap_or(0));
        if noted != found {
            let what = format!("has {noted} noted uses and {found} real ones");
            return Err(Error::invalid(format!("value '{}'", graph.value(id).name), what));
        }
    }
    Ok(())
}
