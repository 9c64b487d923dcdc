//! Average pools of a map that is tokens before and behind it, such as those of PyramidTNT's keys and values, become means of tokens: nothing is
//! moved for them.
//!
//! ```text
//! tokens [B, H*W, C] -> Transpose -> Reshape -> AveragePool k x l -> Reshape -> Transpose = y
//! becomes   tokens -> Reshape [B, H/k, k, W/l, l, C] -> ReduceMean [2, 4] -> Reshape = y
//! ```
//!
//! Only where the windows lie side by side and cover the map: then each value of the map is in one window, and no window is of fewer values than
//! another. The index map proves that the map is the tokens, and that tokens are made of it. Where a pooled map is read as such too, one Transpose
//! of it is left.
//!
//! These are no sites of the ledger. For all targets, since what is left is standard ops.

use crate::analysis::movement::{self, Walk};
use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::proto::{AttributeProto, TensorProto};
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::rules::block::{Outcome, output};
use crate::rewrite::rules::token_map::{Map, ends, tokens_before};

const RULE: &str = "token-pool";

pub fn run(engine: &mut Engine) -> Result<()> {
    each(engine, RULE, "average pool", &|node| node.is("AveragePool"), &patch)
}

/// Patches each of the nodes, unless it misses.
pub fn each(
    engine: &mut Engine,
    rule: &'static str,
    what: &'static str,
    is: &dyn Fn(&Node) -> bool,
    patch: &dyn Fn(&Graph, NodeId) -> Outcome<Patch>,
) -> Result<()> {
    let found: Vec<NodeId> = engine.graph().nodes().filter(|(_, node)| is(node)).map(|(id, _)| id).collect();
    for id in found {
        if !engine.runs(rule) {
            return Ok(());
        }
        match patch(engine.graph(), id) {
            Ok(patch) => engine.apply_or_keep(patch, what)?,
            Err(miss) => tracing::debug!(
                at = miss.at,
                reason = miss.reason,
                expected = miss.expected,
                found = miss.found,
                "{what} kept"
            ),
        }
    }
    Ok(())
}

fn patch(graph: &Graph, id: NodeId) -> Outcome<Patch> {
    let (node, label) = (graph.node(id), graph.node_label(id));
    let miss = |reason: &str| Miss::new(&label, reason);
    let unknown = || miss("it is of no map of known size");
    let map = node.input(0).ok_or_else(unknown)?;
    let Map { images, channels, sides: [height, width] } = Map::of(graph, map).ok_or_else(unknown)?;
    let [k, l] = window(graph, node, map, [height, width], &label)?;
    let source = tokens_before(graph, map).ok_or_else(|| miss("its map is not made of tokens"))?;
    let pooled = output(graph, id)?;
    let ends = ends(graph, pooled, &|_| false);
    let before = usize::from(moved_for(graph, map, id)) + ends.tokens.len();
    let after = usize::from(ends.map);
    if after >= before {
        return Err(
            miss("as much would be moved as now").expected(format!("more than {after} transpositions to save"), before)
        );
    }

    let mut patch = Patch::new(graph, RULE);
    let grid = [images.clone(), (height / k).into(), k.into(), (width / l).into(), l.into(), channels.into()];
    let grid = patch.reshape(graph, source, &grid, &format!("{label}/windows")).ok_or_else(unknown)?;
    let tokens = [images, (height / k).into(), (width / l).into(), channels.into()];
    let mean = patch.value(&format!("{label}/mean"), graph.dtype(map), Some(tokens.to_vec()));
    let reduce = Node { name: label.clone(), ..Node::new("ReduceMean", [grid]) };
    let reduce = over(&mut patch, graph.opset, reduce, &[2, 4]).with(AttributeProto::int("keepdims", 0));
    patch.node(reduce, [mean]);
    for (i, &end) in ends.tokens.iter().enumerate() {
        let shape = graph.shape(end).ok_or_else(unknown)?;
        let new = patch.reshape(graph, mean, shape, &format!("{label}/tokens_{i}")).ok_or_else(unknown)?;
        patch.replace(end, new);
    }
    if ends.map {
        let y = patch.transpose(graph, mean, &[0, 3, 1, 2], &format!("{label}/map")).ok_or_else(unknown)?;
        patch.replace(pooled, y);
    }
    patch.cover([id]);
    Ok(patch)
}

/// The reduction with these axes, which became an input with opset 18.
pub fn over(patch: &mut Patch, opset: i64, mut node: Node, axes: &[i64]) -> Node {
    if opset < 18 {
        return node.with(AttributeProto::ints("axes", axes));
    }
    let axes = patch.constant(&format!("{}/axes", node.name), TensorProto::from_i64("", &[axes.len() as i64], axes));
    node.inputs.push(Some(axes));
    node
}

/// Height and width of the windows, if they lie side by side and cover the map. How values that are not there would count does not
/// matter then, nor how sizes would be rounded.
pub fn window(graph: &Graph, node: &Node, map: ValueId, sides: [i64; 2], label: &str) -> Outcome<[i64; 2]> {
    let miss = |reason: &str| Miss::new(label, reason);
    let &[k, l] = node.ints("kernel_shape").unwrap_or_default() else {
        return Err(miss("its windows have no two sides"));
    };
    let strides = node.ints("strides").unwrap_or(&[1; 2]);
    if strides != [k, l] || node.ints("dilations").is_some_and(|steps| steps != [1; 2]) {
        let found = format!("strides {strides:?}, dilations {:?}", node.ints("dilations").unwrap_or(&[1; 2]));
        return Err(miss("its windows overlap or leave values out").expected(format!("strides [{k}, {l}]"), found));
    }
    let fits = k > 0 && l > 0 && sides[0] % k == 0 && sides[1] % l == 0;
    if !fits || k.checked_mul(l) == Some(1) {
        return Err(miss("its windows do not divide the map").expected(
            format!("a map of windows of {k} x {l}, of several values each"),
            shape_text(graph.shape(map).unwrap_or_default()),
        ));
    }
    // What is called SAME has nothing to add where the windows divide the map.
    let pads = node.ints("pads").filter(|_| matches!(node.string("auto_pad"), None | Some("NOTSET")));
    match pads {
        Some(pads) if pads.iter().any(|&n| n != 0) => {
            Err(miss("its map is padded").expected("no padding", format!("pads {pads:?}")))
        }
        _ => Ok([k, l]),
    }
}

/// Whether the map is made for the pool alone, so that what moves its elements goes with it.
pub fn moved_for(graph: &Graph, map: ValueId, pool: NodeId) -> bool {
    movement::region(graph, map, &Walk::default()).is_some_and(|region| {
        let own = |user: &NodeId| *user == pool || region.nodes.contains(user);
        let outputs = region.nodes.iter().flat_map(|&id| graph.node(id).outputs.iter().flatten());
        let mut outputs = outputs.copied();
        outputs.all(|v| !graph.is_output(v) && !graph.is_named_elsewhere(v) && graph.uses(v).iter().all(own))
    })
}
