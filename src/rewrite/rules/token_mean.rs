//! Means over all places of a map that is tokens before, such as that of UniFormer's classifier, become means of tokens: nothing is moved for
//! them.
//!
//! ```text
//! tokens [B, H*W, C] -> Transpose [-> Reshape] -> ReduceMean over places | GlobalAveragePool = y
//! becomes   tokens -> ReduceMean [1] [-> Reshape] = y
//! ```
//!
//! The index map proves that the map is the tokens. Only where what moves them is for the mean alone.
//!
//! These are no sites of the ledger. For all targets, since what is left is standard ops. Runs behind the norms that take the mean behind them.

use crate::analysis::movement::{self, Walk};
use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId};
use crate::onnx::proto::AttributeProto;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::pattern::reduce_axes;
use crate::rewrite::rules::block::{Outcome, output};
use crate::rewrite::rules::norm_pool::is_mean;
use crate::rewrite::rules::token_pool::{each, moved_for, over};

const RULE: &str = "token-mean";

pub fn run(engine: &mut Engine) -> Result<()> {
    each(engine, RULE, "mean", &is_mean, &patch)
}

fn patch(graph: &Graph, id: NodeId) -> Outcome<Patch> {
    let (node, label) = (graph.node(id), graph.node_label(id));
    let miss = |reason: &str| Miss::new(&label, reason);
    let unknown = || miss("it is of no map of known size");
    let map = node.input(0).ok_or_else(unknown)?;
    let shape = graph.shape(map).unwrap_or_default();
    let [images, channels, sides @ ..] = shape else { return Err(unknown()) };
    let axes = if node.is("ReduceMean") { reduce_axes(graph, node) } else { Some((2..shape.len()).collect()) };
    let axes = axes.unwrap_or_default();
    if sides.is_empty() || !axes.iter().copied().eq(2..shape.len()) {
        return Err(miss("it is not over all places of a map").expected("the axes from 2 on", format!("{axes:?}")));
    }
    let line = Dim::product(sides).and_then(|line| line.int()).ok_or_else(unknown)?;
    let sizes = [images.clone(), line.into(), channels.int().ok_or_else(unknown)?.into()];
    let source = source(graph, map, &sizes).ok_or_else(|| miss("its map is not made of tokens"))?;
    if !moved_for(graph, map, id) {
        return Err(miss("its map is read otherwise too"));
    }

    let mut patch = Patch::new(graph, RULE);
    let tokens = patch.reshape(graph, source, &sizes, &format!("{label}/tokens")).ok_or_else(unknown)?;
    let [images, _, channels] = sizes;
    let mean = patch.value(&format!("{label}/mean"), graph.dtype(map), Some(vec![images, channels]));
    let reduce = Node { name: label.clone(), ..Node::new("ReduceMean", [tokens]) };
    let reduce = over(&mut patch, graph.opset, reduce, &[1]).with(AttributeProto::int("keepdims", 0));
    patch.node(reduce, [mean]);
    let old = output(graph, id)?;
    let to = graph.shape(old).ok_or_else(unknown)?;
    let y = patch.reshape(graph, mean, to, &format!("{label}/shape")).ok_or_else(unknown)?;
    patch.replace(old, y);
    patch.cover([id]);
    Ok(patch)
}

/// The tokens `[B, N, C]` that the map `[B, C, ...]` is a view of, if it is another value.
fn source(graph: &Graph, map: ValueId, [images, line, channels]: &[Dim; 3]) -> Option<ValueId> {
    let (length, depth) = (line.int()?, channels.int()?);
    let view = movement::strided(graph, map, &[images.clone(), channels.clone(), line.clone()], &Walk::default())?;
    let whole = Dim::product(graph.shape(view.source)?) == Dim::product(graph.shape(map)?);
    let moved = view.source != map && graph.constant(view.source).is_none();
    let fits = view.offset == 0 && view.has(&[length.checked_mul(depth)?, 1, depth]);
    // Where there is one place or one channel, nothing is transposed.
    (whole && moved && fits && length > 1 && depth > 1).then_some(view.source)
}
