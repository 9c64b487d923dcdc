//! Window partitions and their reverses.
//!
//! ```text
//! x -> [Reshape] [roll] [Pad] Reshape -> Transpose -> Reshape -> windows     in any spelling: the index map decides
//! windows -> Reshape -> Transpose -> Reshape [Slice] [roll] [Reshape] -> y [-> Add]
//! ```
//!
//! A site is the partition and the reverse of one block. A partition and the reverse that what it computes arrives at
//! have to agree on grid, window and shift; one without the other is a site of its own. A map that is one window without
//! padding needs no partition: nothing moves there, and it is no site.
//!
//! A partition moves into the fused norm before it where only the partition reads that norm, and a residual add into
//! the reverse.

use std::collections::{HashMap, HashSet};

use crate::analysis::movement::classify::{hints, is_identity, window_partition, window_reverse, window_size};
use crate::analysis::movement::{self, Mismatch, PerImage, Region, Walk, Windows};
use crate::error::Result;
use crate::ir::{Dim, Graph, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{Addends, LayerNorm, Window, WindowMap};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::{Kind, Site, Status};

const RULE: &str = "window";
const KEPT: &str = "standard ops: this target has no plugin for it";

pub fn run(engine: &mut Engine) -> Result<()> {
    for site in sites(engine.graph()) {
        let label = site.label().to_owned();
        if !engine.enabled(Kind::Window, RULE) {
            let miss = engine.disabled_miss(Kind::Window, RULE);
            engine.record_miss(Kind::Window, &label, RULE, miss);
            continue;
        }
        let standard = engine.standard(Kind::Window, &label, KEPT);
        let outcome = match site.check() {
            Err(miss) => Err(miss),
            Ok(()) if standard.is_some() => Ok(None),
            Ok(()) => match site.patch(engine.graph(), &label) {
                Err(miss) => Err(miss),
                Ok((patch, name)) => engine.apply(patch)?.map(|()| Some(name)),
            },
        };
        match outcome {
            Ok(Some(name)) => engine.record(Site::new(Kind::Window, Status::Fused, &label, RULE).into_node(&name)),
            Ok(None) => {
                let reason = standard.unwrap_or_else(|| KEPT.to_owned());
                engine.record(Site::new(Kind::Window, Status::Kept, &label, RULE).because(reason));
            }
            Err(miss) => engine.record_miss(Kind::Window, &label, RULE, miss),
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Partition,
    Reverse,
}

/// A chain that takes tokens to windows or back.
#[derive(Debug)]
struct Half {
    out: ValueId,
    source: ValueId,
    direction: Direction,
    /// The node that it is called by.
    label: String,
    windows: std::result::Result<Windows, Miss>,
}

/// A partition, the reverse that belongs to it, or both.
#[derive(Debug, Default)]
struct Pair {
    partition: Option<Half>,
    reverse: Option<Half>,
}

/// All sites, in the order of the graph.
fn sites(graph: &Graph) -> Vec<Pair> {
    let mut reverses: Vec<Option<Half>> = vec![];
    let mut partitions: Vec<(usize, Half)> = vec![];
    for half in movement::ends(graph).into_iter().filter_map(|out| half(graph, out)) {
        match half.direction {
            Direction::Partition => partitions.push((reverses.len(), half)),
            Direction::Reverse => reverses.push(Some(half)),
        }
    }
    let sources: HashMap<ValueId, usize> =
        reverses.iter().flatten().enumerate().map(|(i, reverse)| (reverse.source, i)).collect();
    let mut pairs: Vec<(usize, Pair)> = vec![];
    for (at, half) in partitions {
        let reverse = reached(graph, half.out, &sources).and_then(|i| Some((i, reverses[i].take()?)));
        let at = reverse.as_ref().map_or(at, |(i, _)| *i);
        pairs.push((at, Pair { partition: Some(half), reverse: reverse.map(|(_, r)| r) }));
    }
    let alone =
        reverses.into_iter().enumerate().filter_map(|(i, r)| Some((i, Pair { reverse: Some(r?), partition: None })));
    pairs.extend(alone);
    pairs.sort_by_key(|(at, _)| *at);
    pairs.into_iter().map(|(_, pair)| pair).collect()
}

/// The first reverse whose source is computed from `value` without passing another reverse.
fn reached(graph: &Graph, value: ValueId, sources: &HashMap<ValueId, usize>) -> Option<usize> {
    let mut seen = HashSet::from([value]);
    let mut stack = vec![value];
    let mut first: Option<usize> = None;
    while let Some(v) = stack.pop() {
        if let Some(&i) = sources.get(&v) {
            first = Some(first.map_or(i, |f| f.min(i)));
            continue;
        }
        for &user in graph.uses(v) {
            stack.extend(graph.node(user).outputs.iter().flatten().copied().filter(|out| seen.insert(*out)));
        }
    }
    first
}

/// The chain that ends at `out`, if it is one between tokens and windows, or looks like one.
fn half(graph: &Graph, out: ValueId) -> Option<Half> {
    let region = movement::region(graph, out, &Walk::default())?;
    let anchor = region.nodes.iter().copied().find(|&id| reorders_tokens(graph, id));
    let moves = |&id: &NodeId| {
        ["Transpose", "Slice", "Concat", "Gather", "Split", "GatherND", "DepthToSpace", "SpaceToDepth"]
            .contains(&graph.node(id).op.as_str())
    };
    let first = anchor.or_else(|| region.nodes.iter().copied().find(moves))?;
    let &[source] = &region.sources[..] else { return None };
    let (from, to) = (graph.shape(source)?, graph.shape(out)?);
    if from.last()? != to.last()? || from.len() < 2 || to.len() < 2 {
        return None;
    }
    // A cyclic shift alone, or nothing at all.
    if from == to && anchor.is_none() {
        return None;
    }
    let direction = match to[0].div_exact(&from[0]) {
        Some(Dim::Int(n)) if n > 1 => Direction::Partition,
        _ if to[0] == from[0] => Direction::Partition,
        _ => Direction::Reverse,
    };
    let label = graph.node_label(first);
    let windows = match classified(graph, out, source, &region, direction) {
        Ok(windows) => windows.map(Ok)?,
        // Without the transposition of windows it is some other movement.
        Err(_) if anchor.is_none() => return None,
        Err(mismatch) => {
            let what = match direction {
                Direction::Partition => "the chain is no window partition",
                Direction::Reverse => "the chain is no reverse of a window partition",
            };
            Err(Miss::new(&label, what).expected(mismatch.expected, mismatch.found))
        }
    };
    Some(Half { out, source, direction, label, windows })
}

/// A transposition as between the rows of a map and the rows of its windows: `[0, 1, 3, 2, 4, 5]` or some other
/// permutation of the four inner axes.
pub fn reorders_tokens(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let perm = node.ints("perm").unwrap_or_default();
    node.is("Transpose") && perm.len() == 6 && perm[0] == 0 && perm[5] == 5 && perm[1..5] != [1, 2, 3, 4]
}

/// The window map of a chain; `Ok(None)` where nothing moves.
fn classified(
    graph: &Graph,
    out: ValueId,
    source: ValueId,
    region: &Region,
    direction: Direction,
) -> std::result::Result<Option<Windows>, Mismatch> {
    let shape = |v: ValueId| graph.shape(v).unwrap_or_default();
    let (map_side, window_side) = match direction {
        Direction::Partition => (shape(source), shape(out)),
        Direction::Reverse => (shape(out), shape(source)),
    };
    let other = |expected: &str| Mismatch {
        expected: expected.into(),
        found: format!("{} from {}", shape_text(shape(out)), shape_text(shape(source))),
    };
    let channels = shape(out).last().and_then(Dim::int).ok_or_else(|| other("a known number of channels"))?;
    let size = window_size(window_side)
        .or_else(|| window_tokens(graph, region, channels))
        .ok_or_else(|| other("windows [B * nW, wh * ww, C]"))?;
    let map = images(graph, map_side, region)
        .into_iter()
        .find_map(|images| movement::per_image(graph, out, &images, channels, &Walk::default()));
    let Some(map) = map else {
        return Err(other("a movement of whole tokens that is the same for every image"));
    };
    if is_identity(&map) {
        return Ok(None);
    }
    let hints = hints(graph, region);
    let recognised = |map: &PerImage| match direction {
        Direction::Partition => window_partition(map, size, &hints),
        Direction::Reverse => window_reverse(map, size, &hints),
    };
    recognised(&map).map(Some)
}

/// What may be the number of images: the leading axis of the map; where that is `[B * H * W, C]`, the leading axes inside.
fn images(graph: &Graph, map_side: &[Dim], region: &Region) -> Vec<Dim> {
    if map_side.len() > 2 {
        return vec![map_side[0].clone()];
    }
    let mut out: Vec<Dim> = vec![];
    for value in region.nodes.iter().filter_map(|&n| graph.node(n).output(0)) {
        if let Some([first, _, _, _, _, _] | [first, _, _, _]) = graph.shape(value)
            && !out.contains(first)
        {
            out.push(first.clone());
        }
    }
    out
}

/// Tokens of a window, where the shape at the windows' end does not tell: from a shape `[.., wh, ww, C]` inside.
fn window_tokens(graph: &Graph, region: &Region, channels: i64) -> Option<i64> {
    region.nodes.iter().filter_map(|&n| graph.shape(graph.node(n).output(0)?)).find_map(|shape| match shape {
        [_, _, _, h, w, c] if *c == Dim::Int(channels) => h.int()?.checked_mul(w.int()?),
        _ => None,
    })
}

impl Pair {
    fn halves(&self) -> impl Iterator<Item = &Half> {
        self.partition.iter().chain(&self.reverse)
    }

    fn label(&self) -> &str {
        self.halves().next().map_or("", |half| &half.label)
    }

    /// Whether both halves are window maps, and the same.
    fn check(&self) -> std::result::Result<(), Miss> {
        for half in self.halves() {
            half.windows.as_ref().map_err(Miss::clone)?;
        }
        if let (Some(partition), Some(reverse)) = (&self.partition, &self.reverse)
            && let (Ok(a), Ok(b)) = (&partition.windows, &reverse.windows)
            && a != b
        {
            return Err(Miss::new(&reverse.label, "the reverse is not that of the partition").expected(a, b));
        }
        Ok(())
    }

    /// The patch, and the name of the node that makes the windows (for a reverse alone, the tokens).
    fn patch(&self, graph: &Graph, label: &str) -> std::result::Result<(Patch, String), Miss> {
        let mut patch = Patch::new(graph, RULE);
        let mut name = None;
        for half in self.halves() {
            let made = match half.direction {
                Direction::Partition => half.partition(graph, &mut patch)?,
                Direction::Reverse => half.reverse(graph, &mut patch)?,
            };
            name.get_or_insert(made);
        }
        Ok((patch, name.unwrap_or_else(|| label.to_owned())))
    }
}

impl Half {
    fn map(&self) -> std::result::Result<WindowMap, Miss> {
        let w = self.windows.as_ref().map_err(Miss::clone)?;
        let map = WindowMap { grid: w.grid, window: w.window, shift: w.shift, pad_after_roll: w.pad_after_roll };
        if !map.is_valid() {
            return Err(
                Miss::new(&self.label, "the plugin takes no such windows").expected("a shift by less than a window", w)
            );
        }
        Ok(map)
    }

    /// The region as it is now, and its source: patches before this one may have changed it.
    fn region(&self, graph: &Graph) -> std::result::Result<(Region, ValueId), Miss> {
        let gone = || Miss::new(&self.label, "an earlier patch took part of the chain");
        let now = half(graph, self.out).ok_or_else(gone)?;
        if now.windows.ok() != self.windows.as_ref().ok().copied() || now.direction != self.direction {
            return Err(gone());
        }
        let region = movement::region(graph, self.out, &Walk::default()).ok_or_else(gone)?;
        match (&region.sources[..], graph.dtype(self.out)) {
            (_, dtype) if !matches!(dtype, Some(DType::F32 | DType::F16)) => {
                let found = dtype.map_or("an unknown type", DType::name);
                Err(Miss::new(&self.label, "the plugin takes no such type").expected("float or float16", found))
            }
            (&[source], _) => Ok((region, source)),
            _ => Err(gone()),
        }
    }

    fn partition(&self, graph: &Graph, patch: &mut Patch) -> std::result::Result<String, Miss> {
        let map = self.map()?;
        let (region, source) = self.region(graph)?;
        let unfit = || Miss::new(&self.label, "the shapes do not suit the plugin");
        let shape = graph.shape(self.out).ok_or_else(unfit)?.to_vec();
        let (name, y) = match norm_before(graph, source, &region, &map) {
            Some((id, norm)) => {
                let node = graph.node(id);
                let added = Addends::of(node).ok_or_else(unfit)?;
                let &[Some(x), .., Some(scale), Some(bias)] = &node.inputs[..] else { return Err(unfit()) };
                let mut fused = norm.node(x, &added, scale, bias);
                fused.name.clone_from(&node.name);
                let out = map.partitioned(graph.shape(x).ok_or_else(unfit)?).ok_or_else(unfit)?;
                let y = patch.value(&format!("{}/windows", node.name), graph.dtype(self.out), Some(out));
                let mut outputs = vec![y];
                if let Some(sum) = node.output(1) {
                    let new = patch.value_like(graph, &format!("{}/sum", node.name), sum);
                    patch.replace(sum, new);
                    outputs.push(new);
                }
                patch.node(fused, outputs);
                patch.cover([id]);
                (node.name.clone(), y)
            }
            None => {
                let name = fused_name(graph, &self.label, "TrtOptWindow");
                let mut x = source;
                if !map.fits(graph.shape(source).ok_or_else(unfit)?) {
                    let channels = shape.last().ok_or_else(unfit)?.clone();
                    let windows = Dim::product(&shape[..shape.len() - 1]).ok_or_else(unfit)?;
                    let images = windows.div_exact(&(map.windows() * map.tokens()).into()).ok_or_else(unfit)?;
                    let tokens = (map.grid[0] * map.grid[1]).into();
                    x = patch
                        .reshape(graph, source, &[images, tokens, channels], &format!("{name}/tokens"))
                        .ok_or_else(unfit)?;
                }
                let window = Window { map, reverse: false, rank: 3 };
                let x_shape = patch.describe(graph, x).shape.clone().ok_or_else(unfit)?;
                let out = window.shape(&x_shape).ok_or_else(unfit)?;
                let y = patch.value(&name, graph.dtype(self.out), Some(out));
                let mut node = window.node(x, None);
                node.name.clone_from(&name);
                patch.node(node, [y]);
                (name, y)
            }
        };
        let out = patch.reshape(graph, y, &shape, &format!("{name}/shape")).ok_or_else(unfit)?;
        patch.replace(self.out, out);
        patch.cover(region.nodes);
        Ok(name)
    }

    fn reverse(&self, graph: &Graph, patch: &mut Patch) -> std::result::Result<String, Miss> {
        let map = self.map()?;
        let (region, source) = self.region(graph)?;
        let unfit = || Miss::new(&self.label, "the shapes do not suit the plugin");
        let name = fused_name(graph, &self.label, "TrtOptWindowReverse");
        let shape = graph.shape(self.out).ok_or_else(unfit)?.to_vec();
        let channels = shape.last().ok_or_else(unfit)?.clone();
        let tokens = Dim::product(&shape[..shape.len() - 1]).ok_or_else(unfit)?;
        let images = tokens.div_exact(&(map.grid[0] * map.grid[1]).into()).ok_or_else(unfit)?;
        let windows = images.mul(&map.windows().into()).ok_or_else(unfit)?;
        let x = patch
            .reshape(graph, source, &[windows, map.tokens().into(), channels], &format!("{name}/windows"))
            .ok_or_else(unfit)?;
        let fits = map.fits(&shape) && shape[0] == images;
        let add = residual_after(graph, self.out).filter(|_| fits);
        let window = Window { map, reverse: true, rank: if fits { shape.len() } else { 3 } };
        let x_shape = patch.describe(graph, x).shape.clone().ok_or_else(unfit)?;
        let y_shape = window.shape(&x_shape).ok_or_else(unfit)?;
        let y = patch.value(&name, graph.dtype(self.out), Some(y_shape));
        let mut node = window.node(x, add.map(|add| add.residual));
        node.name.clone_from(&name);
        patch.node(node, [y]);
        let out = patch.reshape(graph, y, &shape, &format!("{name}/shape")).ok_or_else(unfit)?;
        patch.replace(add.map_or(self.out, |add| add.out), out);
        patch.cover(region.nodes);
        patch.cover(add.map(|add| add.node));
        Ok(name)
    }
}

/// The fused norm that makes `source`, if only the partition reads it and it can partition.
fn norm_before(graph: &Graph, source: ValueId, region: &Region, map: &WindowMap) -> Option<(NodeId, LayerNorm)> {
    let (id, node) = graph.producer(source)?;
    let norm = LayerNorm::of(node)?;
    let inside = |user: &NodeId| region.nodes.contains(user);
    let alone = !graph.is_output(source) && !graph.is_named_elsewhere(source) && graph.uses(source).iter().all(inside);
    let suits =
        norm.map.is_none() && norm.axes == 1 && node.output(0) == Some(source) && map.fits(graph.shape(source)?);
    // A part has no place beside windows.
    let suits = suits && Addends::of(node)?.part.is_none();
    (alone && suits).then_some((id, LayerNorm { map: *map, ..norm }))
}

#[derive(Clone, Copy)]
struct Residual {
    node: NodeId,
    residual: ValueId,
    out: ValueId,
}

/// The add of two values of the same type and shape that alone reads `value`.
fn residual_after(graph: &Graph, value: ValueId) -> Option<Residual> {
    let &[id] = graph.uses(value) else { return None };
    let node = graph.node(id);
    let (a, b, out) = (node.input(0)?, node.input(1)?, node.output(0)?);
    let residual = if a == value { b } else { a };
    let same = |v: ValueId| graph.shape(v) == graph.shape(value) && graph.dtype(v) == graph.dtype(value);
    let ok = node.is("Add")
        && !graph.is_output(value)
        && residual != value
        && same(residual)
        && same(out)
        && graph.constant(residual).is_none();
    ok.then_some(Residual { node: id, residual, out })
}
