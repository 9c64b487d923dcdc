//! Residual adds that feed a fused norm move into it.
//!
//! ```text
//! a, b -> Add = s -> [Reshape] -> TrtOptLayerNorm       becomes   TrtOptLayerNorm(a, b) -> y, s
//! ```
//!
//! Runs after the windows: a window reverse takes the residual add first, which moves fewer bytes.

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId};
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Patch};
use crate::rewrite::ops::{self, LayerNorm};

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
        let Some(patch) = graph.get(id).and_then(|_| absorb(graph, id)) else { continue };
        if let Err(miss) = engine.apply(patch)? {
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
    let (add, add_node) = graph.producer(sum).filter(|(_, n)| n.is("Add"))?;
    let (a, b) = (add_node.input(0)?, add_node.input(1)?);
    let same = |v: ValueId| graph.shape(v) == graph.shape(sum) && graph.dtype(v) == graph.dtype(x);
    if !same(a) || !same(b) || graph.constant(a).is_some() || graph.constant(b).is_some() {
        return None;
    }
    covers.push(add);
    // What is normalized must stay whole when the reshape is left out, and windows need the map's shape.
    let shape = graph.shape(sum)?;
    let tail = |v: ValueId| graph.shape(v).map(|s| s[s.len().saturating_sub(norm.axes)..].to_vec());
    if tail(x) != tail(sum) || (!norm.map.is_none() && !norm.map.fits(shape)) {
        return None;
    }
    let mut patch = Patch::new(graph, RULE);
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
