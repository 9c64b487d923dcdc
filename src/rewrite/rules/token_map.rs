//! Maps `[B, C, H, W]` as tokens `[B, H*W, C]`: what tokens a map is a view of, what tokens are made of it, and the Transposes that
//! a patch needs where there are none.

use crate::analysis::movement::{self, Walk};
use crate::ir::{Dim, Graph, NodeId, ValueId};
use crate::rewrite::engine::{Miss, Patch};
use crate::rewrite::rules::block::Outcome;

/// The sizes of a map.
#[derive(Clone, PartialEq, Eq)]
pub struct Map {
    pub images: Dim,
    pub channels: i64,
    /// Height and width.
    pub sides: [i64; 2],
}

impl Map {
    pub fn of(graph: &Graph, value: ValueId) -> Option<Self> {
        let [images, Dim::Int(channels), Dim::Int(height), Dim::Int(width)] = graph.shape(value)? else { return None };
        Some(Self { images: images.clone(), channels: *channels, sides: [*height, *width] })
    }

    /// Whether both are of the same places of the same images.
    pub fn same_places(&self, other: &Self) -> bool {
        (&self.images, self.sides) == (&other.images, other.sides)
    }

    /// Of its tokens.
    pub fn tokens(&self) -> Option<[Dim; 3]> {
        let line = self.sides[0].checked_mul(self.sides[1])?;
        Some([self.images.clone(), line.into(), self.channels.into()])
    }

    /// Of its tokens, height and width apart.
    fn grid(&self) -> [Dim; 4] {
        [self.images.clone(), self.sides[0].into(), self.sides[1].into(), self.channels.into()]
    }
}

/// The tokens that the map is a view of, channels last.
pub fn tokens_before(graph: &Graph, map: ValueId) -> Option<ValueId> {
    let Map { channels, sides: [_, width], .. } = Map::of(graph, map)?;
    let view = movement::strided(graph, map, graph.shape(map)?, &Walk::default())?;
    let image = Dim::product(&graph.shape(map)?[1..])?.int()?;
    let whole = Dim::product(graph.shape(view.source)?) == Dim::product(graph.shape(map)?);
    let moved = view.source != map && graph.constant(view.source).is_none();
    let fits = view.offset == 0 && view.has(&[image, 1, width * channels, channels]);
    (whole && moved && fits).then_some(view.source)
}

/// What is made of a map.
#[derive(Default)]
pub struct Ends {
    /// Values that are its tokens, channels last.
    pub tokens: Vec<ValueId>,
    /// Whether it is read otherwise too.
    pub map: bool,
}

impl Ends {
    /// Whether nothing is made of it.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && !self.map
    }
}

/// What is made of a map by other nodes than its `own`.
pub fn ends(graph: &Graph, map: ValueId, own: &dyn Fn(NodeId) -> bool) -> Ends {
    let mut ends = Ends { tokens: vec![], map: graph.is_output(map) || graph.is_named_elsewhere(map) };
    collect(graph, map, map, own, DEPTH, &mut ends);
    ends
}

/// How many nodes tokens may be behind a map.
const DEPTH: u32 = 8;

fn collect(graph: &Graph, map: ValueId, value: ValueId, own: &dyn Fn(NodeId) -> bool, depth: u32, ends: &mut Ends) {
    for &user in graph.uses(value).iter().filter(|&&user| !own(user)) {
        let node = graph.node(user);
        let moved = node.output(0).filter(|&out| node.input(0) == Some(value) && movement::is_moved(graph, out));
        match moved {
            Some(out) if is_tokens(graph, map, out) => ends.tokens.push(out),
            Some(out) if depth > 0 && !graph.is_output(out) && !graph.is_named_elsewhere(out) => {
                collect(graph, map, out, own, depth - 1, ends);
            }
            _ => ends.map = true,
        }
    }
}

/// Whether the value is the tokens of the map, channels last.
pub fn is_tokens(graph: &Graph, map: ValueId, value: ValueId) -> bool {
    let view = || {
        let shape = Map::of(graph, map)?.tokens()?;
        let (line, channels) = (shape[1].int()?, shape[2].int()?);
        let stop = |v| v == map;
        let walk = Walk { stop: &stop, ..Walk::default() };
        let view = movement::strided(graph, value, &shape, &walk)?;
        Some(view.source == map && view.offset == 0 && view.has(&[line.checked_mul(channels)?, 1, line]))
    };
    view().unwrap_or(false)
}

/// The Transposes around what becomes tokens.
#[derive(Default)]
pub struct Moves {
    before: usize,
    after: usize,
}

impl Moves {
    /// A map that is read, by its `own` nodes and maybe others.
    pub fn enter(&mut self, graph: &Graph, map: ValueId, own: &dyn Fn(NodeId) -> bool) {
        // That before it goes where nothing else reads the map.
        let alone = !graph.is_output(map) && graph.uses(map).iter().all(|&user| own(user));
        match tokens_before(graph, map) {
            Some(_) => self.before += usize::from(alone),
            None => self.after += 1,
        }
    }

    /// A map that is given.
    pub fn leave(&mut self, ends: &Ends) {
        self.before += ends.tokens.len();
        self.after += usize::from(ends.map);
    }

    /// A miss where there would be more of them than now.
    pub fn check(&self, label: &str) -> Outcome<()> {
        if self.after <= self.before {
            return Ok(());
        }
        Err(Miss::new(label, "more would be moved than now")
            .expected(format!("at most {} transpositions", self.before), self.after.to_string()))
    }
}

/// The tokens of a map, for a node called `name`: those that it is a view of, or its Transpose.
pub fn enter(patch: &mut Patch, graph: &Graph, map: ValueId, name: &str) -> Option<ValueId> {
    let sizes = Map::of(graph, map)?;
    let source = match tokens_before(graph, map) {
        Some(source) => source,
        None => patch.transpose(graph, map, &[0, 2, 3, 1], &format!("{name}/tokens"))?,
    };
    patch.reshape(graph, source, &sizes.tokens()?, &format!("{name}/x"))
}

/// Gives the readers of a map its `tokens`, which a node called `name` makes, or their Transpose.
pub fn leave(patch: &mut Patch, graph: &Graph, tokens: ValueId, map: ValueId, ends: &Ends, name: &str) -> Option<()> {
    for (i, &end) in ends.tokens.iter().enumerate() {
        let new = patch.reshape(graph, tokens, graph.shape(end)?, &format!("{name}/tokens_{i}"))?;
        patch.replace(end, new);
    }
    if ends.map {
        let grid = patch.reshape(graph, tokens, &Map::of(graph, map)?.grid(), &format!("{name}/grid"))?;
        let new = patch.transpose(graph, grid, &[0, 3, 1, 2], &format!("{name}/map"))?;
        patch.replace(map, new);
    }
    Some(())
}
