//! Patch merges: 2x2 neighbourhoods gathered onto the channels, and the norm after them.
//!
//! ```text
//! x -> Slice x4 -> Concat                  \
//! x -> Reshape -> Transpose -> Reshape ... -> norm over 4C      in any spelling: the index map decides
//! ```
//!
//! Runs when the norms are fused, since it takes the parameters from the fused norm.

use crate::analysis::movement::classify::{Hints, hints, patch_merge};
use crate::analysis::movement::{self, Mismatch, Region, Walk};
use crate::error::Result;
use crate::ir::{Dim, Graph, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{LayerNorm, PatchMerge};
use crate::rewrite::pattern::{fused_name, only_user};
use crate::rewrite::rules::block::sum_of;
use crate::rewrite::{Kind, Site, Status};

const RULE: &str = "patch-merge";
const RESIDUAL: &str = "patch-merge-residual";
const KEPT: &str = "standard ops: this target has no plugin for it";

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let merges: Vec<Merge> = movement::ends(graph).into_iter().filter_map(|out| merge(graph, out)).collect();
    for merge in merges {
        if !engine.enabled(Kind::PatchMerge, RULE) {
            let miss = engine.disabled_miss(Kind::PatchMerge, RULE);
            engine.record_miss(Kind::PatchMerge, &merge.label, RULE, miss);
            continue;
        }
        let standard = engine.standard(Kind::PatchMerge, &merge.label, KEPT);
        let outcome = match &merge.map {
            Err(miss) => Err(miss.clone()),
            Ok(_) if standard.is_some() => Ok(None),
            // A patch before this one may have taken part of the chain.
            Ok(map) if self::merge(engine.graph(), merge.out).and_then(|now| now.map.ok()) != Some(*map) => {
                Err(Miss::new(&merge.label, "an earlier patch took part of the chain"))
            }
            Ok(map) => match merge.patch(engine.graph(), *map) {
                Err(miss) => Err(miss),
                Ok((patch, name)) => {
                    let norm = merge.norm_after(engine.graph()).map(|(id, _)| engine.graph().node_label(id)).ok();
                    let applied = engine.apply(patch)?;
                    if applied.is_ok() {
                        engine.absorb_sites(&norm.into_iter().collect(), &name);
                    }
                    applied.map(|()| Some(name))
                }
            },
        };
        let label = &merge.label;
        match outcome {
            Ok(Some(name)) => engine.record(Site::new(Kind::PatchMerge, Status::Fused, label, RULE).into_node(&name)),
            Ok(None) => {
                let reason = standard.unwrap_or_else(|| KEPT.to_owned());
                engine.record(Site::new(Kind::PatchMerge, Status::Kept, label, RULE).because(reason));
            }
            Err(miss) => engine.record_miss(Kind::PatchMerge, label, RULE, miss),
        }
    }
    Ok(())
}

/// Moves the residual adds before patch merges into them.
///
/// ```text
/// a, b -> Add -> [Reshape] -> TrtOptPatchMerge      becomes   TrtOptPatchMerge(a, b)
/// ```
pub fn residuals(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let merges: Vec<NodeId> = graph.nodes().filter(|(_, n)| PatchMerge::of(n).is_some()).map(|(id, _)| id).collect();
    for id in merges {
        if !engine.enabled(Kind::PatchMerge, RESIDUAL) {
            return Ok(());
        }
        if let Some(patch) = absorb(engine.graph(), id) {
            engine.apply_or_keep(patch, "residual add")?;
        }
    }
    Ok(())
}

fn absorb(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let merge = PatchMerge::of(node)?;
    let [Some(x), Some(scale), Some(bias)] = node.inputs[..] else { return None };
    let (mut sum, mut covers) = (x, vec![id]);
    only_user(graph, x)?;
    if let Some((reshape, producer)) = graph.producer(x).filter(|(_, n)| n.is("Reshape")) {
        sum = producer.input(0)?;
        covers.push(reshape);
    }
    let (a, b) = sum_of(graph, sum, &[only_user(graph, sum)?])?;
    covers.push(graph.producer(sum)?.0);
    let mut patch = Patch::new(graph, RESIDUAL);
    let shape = graph.shape(x)?;
    let [a, b] =
        [(a, "x"), (b, "residual")].map(|(v, name)| patch.reshape(graph, v, shape, &format!("{}/{name}", node.name)));
    let old = node.output(0)?;
    let y = patch.value_like(graph, &format!("{}/y", node.name), old);
    let mut fused = merge.node(a?, Some(b?), scale, bias);
    fused.name.clone_from(&node.name);
    patch.node(fused, [y]);
    patch.replace(old, y);
    patch.cover(covers);
    Some(patch)
}

/// Merges that are not fused: the nodes that the ledger knows them by, and what they give.
pub fn unfused(graph: &Graph) -> Vec<(NodeId, ValueId)> {
    let merges = movement::ends(graph).into_iter().filter_map(|out| merge(graph, out));
    merges.filter(|merge| merge.map.is_ok()).map(|merge| (merge.anchor, merge.out)).collect()
}

/// Grid and order of a merge.
type MergeMap = ([i64; 2], [i64; 4]);

/// A chain that puts tokens side by side on the channel axis.
struct Merge {
    /// What it is called after.
    anchor: NodeId,
    out: ValueId,
    label: String,
    map: std::result::Result<MergeMap, Miss>,
}

/// The chain that ends at `out`, if it is a patch merge or looks like one.
fn merge(graph: &Graph, out: ValueId) -> Option<Merge> {
    let region = movement::region(graph, out, &Walk::default())?;
    let &[source] = &region.sources[..] else { return None };
    let (from, to) = (graph.shape(source)?, graph.shape(out)?);
    let channels = from.last()?.int()?;
    if to.last()?.int()? != channels.checked_mul(4)? || from.len() < 3 || to.len() < 2 {
        return None;
    }
    let anchor = region.nodes.iter().rev().copied().find(|&id| gathers_tokens(graph, id))?;
    let label = graph.node_label(anchor);
    let map = classified(graph, out, from, channels, &region).map_err(|mismatch| {
        Miss::new(&label, "the chain is no patch merge").expected(mismatch.expected, mismatch.found)
    });
    Some(Merge { anchor, out, label, map })
}

/// A join of four on the last axis, or a transposition of a map cut in two along both axes.
fn gathers_tokens(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let rank = node.output(0).and_then(|out| graph.rank(out)).unwrap_or(0) as i64;
    let last = |axis: i64| axis == -1 || axis == rank - 1;
    (node.is("Concat") && node.inputs.len() == 4 && last(node.int("axis").unwrap_or(0)))
        || (node.is("Transpose") && rank == 6)
        || node.is("SpaceToDepth")
}

fn classified(
    graph: &Graph,
    out: ValueId,
    from: &[Dim],
    channels: i64,
    region: &Region,
) -> std::result::Result<MergeMap, Mismatch> {
    let hints: Hints = hints(graph, region);
    match movement::per_image(graph, out, &from[0], channels, &Walk::default()) {
        Some(map) => patch_merge(&map, &hints),
        None => Err(Mismatch {
            expected: "a movement of whole tokens that is the same for every image".into(),
            found: format!("{} from {}", shape_text(graph.shape(out).unwrap_or_default()), shape_text(from)),
        }),
    }
}

impl Merge {
    fn patch(&self, graph: &Graph, (grid, order): MergeMap) -> std::result::Result<(Patch, String), Miss> {
        let gone = || Miss::new(&self.label, "an earlier patch took part of the chain");
        let region = movement::region(graph, self.out, &Walk::default()).ok_or_else(gone)?;
        let &[source] = &region.sources[..] else { return Err(gone()) };
        let (id, norm) = self.norm_after(graph)?;
        let node = graph.node(id);
        let unfit = || Miss::new(&self.label, "the shapes do not suit the plugin");
        let dtype = graph.dtype(source);
        if !matches!(dtype, Some(DType::F32 | DType::F16)) {
            let found = dtype.map_or("an unknown type", DType::name);
            return Err(Miss::new(&self.label, "the plugin takes no such type").expected("float or float16", found));
        }
        let (old, scale, bias) = match (node.output(0), &node.inputs[..]) {
            (Some(old), &[_, Some(scale), Some(bias)]) => (old, scale, bias),
            _ => return Err(unfit()),
        };
        let name = fused_name(graph, &self.label, "TrtOptPatchMerge");
        let mut patch = Patch::new(graph, RULE);
        let from = graph.shape(source).ok_or_else(unfit)?;
        let to = graph.shape(old).ok_or_else(unfit)?.to_vec();
        let mut merge = PatchMerge { epsilon: norm.epsilon, grid, order, rank: to.len().clamp(3, 4) };
        let mut x = source;
        if merge.shape(from).is_none() {
            let channels = from.last().ok_or_else(unfit)?.clone();
            let shape = [from[0].clone(), (grid[0] * grid[1]).into(), channels];
            x = patch.reshape(graph, source, &shape, &format!("{name}/tokens")).ok_or_else(unfit)?;
        }
        let x_shape = patch.describe(graph, x).shape.clone().ok_or_else(unfit)?;
        let mut shape = merge.shape(&x_shape).ok_or_else(unfit)?;
        if shape != to {
            merge.rank = 3;
            shape = merge.shape(&x_shape).ok_or_else(unfit)?;
        }
        let y = patch.value(&name, dtype, Some(shape));
        let mut fused = merge.node(x, None, scale, bias);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        let y = patch.reshape(graph, y, &to, &format!("{name}/shape")).ok_or_else(unfit)?;
        patch.replace(old, y);
        patch.cover(region.nodes);
        patch.cover([id]);
        Ok((patch, name))
    }

    /// The fused norm over the merged channels that alone reads the merge.
    fn norm_after(&self, graph: &Graph) -> std::result::Result<(NodeId, LayerNorm), Miss> {
        let miss = |found: String| {
            Err(Miss::new(&self.label, "no norm over the merged channels follows").expected("one fused norm", found))
        };
        let Some(id) = only_user(graph, self.out) else {
            let uses = graph.uses(self.out).len();
            return miss(if graph.is_output(self.out) { "a graph output".into() } else { format!("{uses} readers") });
        };
        let node = graph.node(id);
        let norm = LayerNorm::of(node);
        match norm {
            Some(norm) if norm.axes == 1 && norm.map.is_none() && LayerNorm::adds_nothing(node) => Ok((id, norm)),
            Some(norm) if norm.axes != 1 => miss(format!("a norm over {} axes", norm.axes)),
            Some(_) => miss("a norm with a residual or windows".into()),
            None => miss(node.qualified_op()),
        }
    }
}
