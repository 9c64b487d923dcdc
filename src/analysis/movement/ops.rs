//! The operators that only move elements.

use super::map::{Map, Pick, elements};
use crate::ir::{Dim, Graph, Node, NodeId, ValueId};

/// What a movement node does, with everything that its attributes and constant inputs say.
pub(super) enum Movement {
    /// Same elements in the same order; the shape of the output says how they are grouped.
    Reshape,
    Transpose(Vec<usize>),
    Slice(Vec<Slice>),
    Concat(usize),
    /// Axis, holes before, holes after.
    Pad(Vec<(usize, i64, i64)>),
    /// Axis, indices (not negative) in the order of the output.
    Gather(usize, Vec<i64>),
    Expand,
    Tile(Vec<i64>),
    /// Rows of the data with its first `axes` axes joined, taken in this order.
    GatherRows {
        axes: usize,
        rows: Vec<i64>,
    },
    /// `ScatterND`: row `at` of the data is row `i` of the updates.
    ScatterRows {
        axes: usize,
        at: Vec<i64>,
    },
    /// Block size, and whether the block comes before the channels (mode DCR).
    DepthToSpace(i64, bool),
    SpaceToDepth(i64),
}

pub(super) struct Slice {
    axis: usize,
    start: i64,
    step: i64,
    count: i64,
}

/// Elements of constants (indices, pads) that are read.
const MAX_INDICES: i64 = 1 << 20;

/// What output `output` of a node does with the values in the second part of the result, if it only moves elements.
///
/// An axis of unknown size may be copied, permuted, split or joined, but not cut at fixed places: what that does depends
/// on the size.
pub(super) fn movement(graph: &Graph, id: NodeId, output: ValueId) -> Option<(Movement, Vec<ValueId>)> {
    let node = graph.node(id);
    if !node.domain.is_empty() {
        return None;
    }
    let x = node.input(0)?;
    if node.op != "Split" && node.output(0) != Some(output) {
        return None;
    }
    let rank = graph.rank(x)?;
    let one = |movement| Some((movement, vec![x]));
    match node.op.as_str() {
        "Identity" | "Flatten" | "Squeeze" | "Unsqueeze" => one(Movement::Reshape),
        "Reshape" => {
            let target = node.input(1).and_then(|t| ints(graph, t));
            let shape = graph.shape(output)?;
            let agrees = |(t, d): (&i64, &Dim)| *t <= 0 || d.int().is_none_or(|d| d == *t);
            let agree = target.is_none_or(|t| t.len() == shape.len() && t.iter().zip(shape).all(agrees));
            agree.then_some(())?;
            one(Movement::Reshape)
        }
        "Transpose" => {
            let perm = match node.attribute("perm") {
                Some(perm) => perm.ints.iter().map(|&p| usize::try_from(p).ok()).collect::<Option<_>>()?,
                None => (0..rank).rev().collect(),
            };
            one(Movement::Transpose(perm))
        }
        "Slice" => one(Movement::Slice(slices(graph, node, x)?)),
        "Split" => {
            let axis = axis_of(node.int("axis").unwrap_or(0), rank)?;
            let size = fixed(graph, x, axis)?;
            let sizes = match (node.attribute("split"), node.input(1)) {
                (Some(split), _) => split.ints.clone(),
                (_, Some(split)) => ints(graph, split)?,
                _ => {
                    let parts = i64::try_from(node.outputs.len()).ok()?;
                    let each = size.checked_add(parts - 1)? / parts;
                    (0..parts).map(|i| (size - i * each).clamp(0, each)).collect()
                }
            };
            let at = node.outputs.iter().position(|o| *o == Some(output))?;
            let start = sizes.get(..at)?.iter().try_fold(0i64, |sum, s| sum.checked_add(*s))?;
            one(Movement::Slice(vec![Slice { axis, start, step: 1, count: *sizes.get(at)? }]))
        }
        "Concat" => {
            let axis = axis_of(node.int("axis").unwrap_or(1), rank)?;
            let mut inputs = node.inputs.iter().copied().collect::<Option<Vec<_>>>()?;
            // A roll by nothing joins with an empty slice.
            inputs.retain(|v| !is_empty(graph, *v));
            if inputs.is_empty() { None } else { Some((Movement::Concat(axis), inputs)) }
        }
        "Pad" => one(Movement::Pad(pads(graph, node, x)?)),
        "Gather" => {
            let axis = axis_of(node.int("axis").unwrap_or(0), rank)?;
            let size = fixed(graph, x, axis)?;
            let indices = ints(graph, node.input(1)?)?;
            let indices = indices.into_iter().map(|i| if i < 0 { i.checked_add(size) } else { Some(i) });
            one(Movement::Gather(axis, indices.collect::<Option<_>>()?))
        }
        "Expand" => one(Movement::Expand),
        "Tile" if graph.opset >= 6 => one(Movement::Tile(ints(graph, node.input(1)?)?)),
        "GatherND" if node.int("batch_dims").unwrap_or(0) == 0 => {
            let (axes, rows) = rows(graph, x, node.input(1)?)?;
            one(Movement::GatherRows { axes, rows })
        }
        "ScatterND" if node.string("reduction").unwrap_or("none") == "none" => {
            let (axes, at) = rows(graph, x, node.input(1)?)?;
            Some((Movement::ScatterRows { axes, at }, vec![x, node.input(2)?]))
        }
        "DepthToSpace" => {
            let block = node.int("blocksize").filter(|b| *b > 0)?;
            match node.string("mode").unwrap_or("DCR") {
                "DCR" => one(Movement::DepthToSpace(block, true)),
                "CRD" => one(Movement::DepthToSpace(block, false)),
                _ => None,
            }
        }
        "SpaceToDepth" => one(Movement::SpaceToDepth(node.int("blocksize").filter(|b| *b > 0)?)),
        _ => None,
    }
}

/// Whether the value has no elements.
pub(super) fn is_empty(graph: &Graph, value: ValueId) -> bool {
    graph.shape(value).is_some_and(|shape| shape.contains(&Dim::Int(0)))
}

/// The map of a node's output, given those of the values it moves and the output's shape.
pub(super) fn apply(movement: &Movement, inputs: &[&Map], shape: &[i64]) -> Option<Map> {
    elements(shape)?;
    let x = || inputs[0].clone();
    let map = match movement {
        Movement::Reshape => inputs[0].reshape(shape)?,
        Movement::Transpose(perm) => x().transpose(perm)?,
        Movement::Slice(slices) => slices
            .iter()
            .try_fold(x(), |m, s| m.take(s.axis, &Pick::Range { start: s.start, step: s.step, count: s.count }))?,
        Movement::Concat(axis) => Map::concat(inputs.iter().copied().cloned().collect(), *axis)?,
        Movement::Pad(pads) => pads.iter().try_fold(x(), |m, &(axis, before, after)| m.pad(axis, before, after))?,
        Movement::Gather(axis, indices) => x().take(*axis, &Pick::List(indices))?.reshape(shape)?,
        Movement::Expand => x().expand(shape)?,
        Movement::Tile(repeats) => x().tile(repeats)?,
        Movement::GatherRows { axes, rows } => joined(inputs[0], *axes)?.take(0, &Pick::List(rows))?.reshape(shape)?,
        Movement::ScatterRows { axes, at } => {
            let data = joined(inputs[0], *axes)?;
            let rows = data.shape()[0];
            let mut order: Vec<i64> = (0..rows).collect();
            let mut written = vec![false; order.len()];
            for (i, &row) in at.iter().enumerate() {
                let row = usize::try_from(row).ok()?;
                // Which of two updates of one row wins is undefined.
                if std::mem::replace(written.get_mut(row)?, true) {
                    return None;
                }
                order[row] = rows + i as i64;
            }
            let updates = inputs[1].reshape(&[&[at.len() as i64], &data.shape()[1..]].concat())?;
            Map::concat(vec![data, updates], 0)?.take(0, &Pick::List(&order))?.reshape(shape)?
        }
        &Movement::DepthToSpace(block, block_first) => {
            let &[n, c, h, w] = &inputs[0].shape()[..] else { return None };
            let deep = c / block.checked_mul(block)?;
            let (dims, perm) = if block_first {
                ([n, block, block, deep, h, w], [0, 3, 4, 1, 5, 2])
            } else {
                ([n, deep, block, block, h, w], [0, 1, 4, 2, 5, 3])
            };
            inputs[0].reshape(&dims)?.transpose(&perm)?.reshape(shape)?
        }
        &Movement::SpaceToDepth(block) => {
            let &[n, c, h, w] = &inputs[0].shape()[..] else { return None };
            let dims = [n, c, h / block, block, w / block, block];
            inputs[0].reshape(&dims)?.transpose(&[0, 3, 5, 1, 2, 4])?.reshape(shape)?
        }
    };
    (map.shape() == shape).then_some(map)
}

/// The first axes joined to one.
fn joined(map: &Map, axes: usize) -> Option<Map> {
    let shape = map.shape();
    let rows = elements(shape.get(..axes)?)?;
    map.reshape(&[&[rows], &shape[axes..]].concat())
}

/// The elements of a constant.
fn ints(graph: &Graph, value: ValueId) -> Option<Vec<i64>> {
    if let Some(tensor) = graph.constant(value) {
        let count = elements(&tensor.dims).or_else(|| tensor.dims.contains(&0).then_some(0))?;
        return if count <= MAX_INDICES { tensor.to_i64_vec().ok() } else { None };
    }
    graph.value(value).ints.as_ref()?.known()
}

fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis + rank } else { axis };
    if (0..rank).contains(&axis) { usize::try_from(axis).ok() } else { None }
}

/// The size of an axis where it does not depend on a symbol.
fn fixed(graph: &Graph, value: ValueId, axis: usize) -> Option<i64> {
    graph.shape(value)?.get(axis)?.int()
}

fn slices(graph: &Graph, node: &Node, x: ValueId) -> Option<Vec<Slice>> {
    let rank = graph.rank(x)?;
    let list = |slot: usize, name: &str| match node.attribute(name) {
        Some(attribute) => Some(Some(attribute.ints.clone())),
        None => node.input(slot).map(|v| ints(graph, v)),
    };
    let (starts, ends) = (list(1, "starts")??, list(2, "ends")??);
    let axes = match list(3, "axes") {
        Some(axes) => axes?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = match list(4, "steps") {
        Some(steps) => steps?,
        None => vec![1; starts.len()],
    };
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return None;
    }
    let mut out: Vec<Slice> = vec![];
    for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let axis = axis_of(axis, rank)?;
        if out.iter().any(|s| s.axis == axis) || step == 0 {
            return None;
        }
        let Some(size) = fixed(graph, x, axis) else {
            if (start, step) == (0, 1) && end >= i64::from(i32::MAX) {
                continue;
            }
            return None;
        };
        if size < 1 {
            return None;
        }
        let wrap = |i: i64| if i < 0 { i.saturating_add(size) } else { i };
        let (start, end) = if step > 0 {
            (wrap(start).clamp(0, size), wrap(end).clamp(0, size))
        } else {
            (wrap(start).clamp(0, size - 1), wrap(end).clamp(-1, size - 1))
        };
        let span = if step > 0 { end - start } else { start - end };
        let stride = i64::try_from(step.unsigned_abs()).unwrap_or(i64::MAX);
        let count = if span <= 0 { 0 } else { (span - 1) / stride + 1 };
        out.push(Slice { axis, start, step, count });
    }
    Some(out)
}

fn pads(graph: &Graph, node: &Node, x: ValueId) -> Option<Vec<(usize, i64, i64)>> {
    let rank = graph.rank(x)?;
    let pads = match node.attribute("pads") {
        Some(pads) => pads.ints.clone(),
        None => ints(graph, node.input(1)?)?,
    };
    let axes = match node.input(3) {
        Some(axes) => ints(graph, axes)?,
        None => (0..rank as i64).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return None;
    }
    let mut out: Vec<(usize, i64, i64)> = vec![];
    for (i, &axis) in axes.iter().enumerate() {
        let (axis, before, after) = (axis_of(axis, rank)?, pads[i], pads[i + axes.len()]);
        if (before, after) == (0, 0) {
            continue;
        }
        fixed(graph, x, axis)?;
        if out.iter().any(|p| p.0 == axis) {
            return None;
        }
        out.push((axis, before, after));
    }
    let zero = || {
        if node.attribute("value").is_some_and(|v| v.f.unwrap_or(0.0) != 0.0) {
            return Some(false);
        }
        match node.input(2) {
            Some(value) => Some(graph.constant(value)?.to_f64_vec().ok()?.iter().all(|v| *v == 0.0)),
            None => Some(true),
        }
    };
    if !out.is_empty() && (node.string("mode").unwrap_or("constant") != "constant" || !zero()?) {
        return None;
    }
    Some(out)
}

/// For `GatherND` and `ScatterND`: how many axes an index covers, and the row of the data, with these axes joined, that
/// every index means.
fn rows(graph: &Graph, data: ValueId, indices: ValueId) -> Option<(usize, Vec<i64>)> {
    let depth = usize::try_from(fixed(graph, indices, graph.rank(indices)?.checked_sub(1)?)?).ok()?;
    if depth == 0 || depth > graph.rank(data)? {
        return None;
    }
    let sizes: Option<Vec<i64>> = (0..depth).map(|axis| fixed(graph, data, axis)).collect();
    let sizes = sizes?;
    elements(&sizes)?;
    let row = |index: &[i64]| {
        index.iter().zip(&sizes).try_fold(0i64, |row, (&i, &size)| {
            let i = if i < 0 { i.checked_add(size)? } else { i };
            (0..size).contains(&i).then(|| row * size + i)
        })
    };
    let rows = ints(graph, indices)?.chunks_exact(depth).map(row).collect::<Option<_>>()?;
    Some((depth, rows))
}
