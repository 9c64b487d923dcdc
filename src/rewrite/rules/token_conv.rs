//! Depthwise convolutions between 1x1 convolutions on tokens, with all that is around them of the same map: the convolution blocks
//! of UniFormer.
//!
//! ```text
//! tokens -> Transpose -> Conv 1x1 -> depthwise Conv -> Conv 1x1 -> Add ... -> Conv 1x1 -> GELU -> Conv 1x1 -> Add -> map
//! becomes   tokens -> MatMul, Add -> TrtOptDepthwiseConv -> MatMul, Add -> Add ... -> MatMul, Add -> GELU -> MatMul, Add -> Add -> Transpose -> map
//! ```
//!
//! A site is a region: a depthwise convolution and all nodes joined to it that compute every place of the map by itself, or are such
//! convolutions too. Each node of it becomes one of tokens; what goes in and comes out is tokens already or is transposed, and a site
//! that would need more Transposes than before is missed.
//!
//! Runs behind the batch norms, which are folded into 1x1 convolutions, and before the GELUs with offsets, which it makes.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::block::{Fusion, Outcome, Rule};
use crate::rewrite::rules::depthwise_conv::{Depthwise, channels_last, check_operands, is_depthwise};
use crate::rewrite::rules::token_map::{self, Ends, Map, Moves, ends};

const RULE: &str = "token-conv";

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: Kind::TokenConv,
        name: RULE,
        // The site is called after a convolution, which is no site of another kind.
        part: Kind::TokenConv,
        part_of: &|_, _| vec![],
        fusion: &|graph, conv, label| Region::of(graph, conv, label)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, is_site)
}

/// The first depthwise convolution of a region that is beside a 1x1 convolution: position encodings may be of the region or not, as
/// the rule of them has left them. One that cannot be of tokens is by itself.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    if !is_between(graph, id) {
        return false;
    }
    let region = joined(graph, id);
    let first = graph.order().iter().find(|&&id| region.contains(&id) && is_between(graph, id));
    first.is_none_or(|&first| first == id)
}

/// Whether the node is a depthwise convolution of what a 1x1 convolution makes, or one reads what it makes.
fn is_between(graph: &Graph, id: NodeId) -> bool {
    if !is_depthwise(graph, id) {
        return false;
    }
    let node = graph.node(id);
    let before = node.input(0).and_then(|x| graph.producer(x)).is_some_and(|(id, _)| is_pointwise(graph, id));
    let users = node.output(0).map_or(&[][..], |y| graph.uses(y));
    before || users.iter().any(|&user| is_pointwise(graph, user))
}

/// Whether the node is a 1x1 convolution of every place of a map.
fn is_pointwise(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let (Some(x), Some(y), Some(w)) = (node.input(0), node.output(0), node.input(1)) else { return false };
    let (Some(from), Some(to)) = (Map::of(graph, x), Map::of(graph, y)) else { return false };
    let weights = graph.static_shape(w).is_some_and(|shape| shape == [to.channels, from.channels, 1, 1]);
    // Places beyond the map would be those of a padded one.
    let inside = node.ints("pads").is_none_or(|pads| pads.iter().all(|&pad| pad == 0));
    let each = node.ints("strides").is_none_or(|strides| strides.iter().all(|&stride| stride == 1));
    node.is("Conv") && node.int("group").unwrap_or(1) == 1 && weights && inside && each && from.same_places(&to)
}

/// Ops of elements that are the same of a map and of its tokens.
const OF_ELEMENTS: [&str; 9] = ["Add", "Sub", "Mul", "Div", "Pow", "Erf", "Tanh", "Gelu", "Relu"];

/// Whether the node computes every element by itself, of maps of one shape and single constants.
fn is_of_elements(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let Some(y) = node.output(0) else { return false };
    // A constant of more axes than tokens have would give the result more.
    let single =
        |v: ValueId| graph.constant(v).is_some_and(|t| t.len().is_ok_and(|n| n == 1)) && graph.rank(v) < Some(4);
    let map = |v: ValueId| graph.constant(v).is_none() && graph.shape(v) == graph.shape(y);
    let mut inputs = node.inputs.iter().flatten();
    OF_ELEMENTS.iter().any(|op| node.is(op)) && node.outputs.len() == 1 && inputs.all(|&v| single(v) || map(v))
}

/// What a node of a region is.
enum Part {
    Product,
    Depthwise(Depthwise),
    Elements,
}

impl Part {
    /// Of a map of these places.
    fn of(graph: &Graph, id: NodeId, places: &Map) -> Option<Self> {
        let node = graph.node(id);
        let (x, y) = (node.input(0)?, node.output(0)?);
        if !Map::of(graph, y)?.same_places(places) {
            return None;
        }
        if is_pointwise(graph, id) {
            let operands = node.inputs[1..].iter().flatten().copied();
            return check_operands(graph, "", x, operands).is_ok().then_some(Self::Product);
        }
        if is_depthwise(graph, id) {
            return Depthwise::of(graph, id, "").ok().map(Self::Depthwise);
        }
        is_of_elements(graph, id).then_some(Self::Elements)
    }
}

/// The nodes of the region of a depthwise convolution.
fn joined(graph: &Graph, seed: NodeId) -> BTreeSet<NodeId> {
    let mut found = BTreeSet::new();
    let Some(places) = graph.node(seed).output(0).and_then(|y| Map::of(graph, y)) else { return found };
    let mut stack = vec![seed];
    while let Some(id) = stack.pop() {
        if found.contains(&id) || Part::of(graph, id, &places).is_none() {
            continue;
        }
        found.insert(id);
        let node = graph.node(id);
        stack.extend(node.inputs.iter().flatten().filter_map(|&v| Some(graph.producer(v)?.0)));
        stack.extend(node.outputs.iter().flatten().flat_map(|&v| graph.uses(v)));
    }
    found
}

/// A whole site.
struct Region {
    /// What it is called after.
    seed: NodeId,
    /// In order.
    parts: Vec<(NodeId, Part)>,
    /// Maps that come from elsewhere.
    inputs: BTreeSet<ValueId>,
    /// Maps that are read elsewhere.
    outputs: Vec<(ValueId, Ends)>,
}

impl Region {
    fn of(graph: &Graph, seed: NodeId, label: &str) -> Outcome<Self> {
        // Of a convolution that cannot be of tokens, the reason is its own.
        let conv = Depthwise::of(graph, seed, label)?;
        let places = Map::of(graph, conv.x).ok_or_else(|| Miss::new(label, "it is of no map of known size"))?;
        let nodes = joined(graph, seed);
        let own = |id: NodeId| nodes.contains(&id);
        let (mut parts, mut inputs, mut outputs) = (vec![], BTreeSet::new(), vec![]);
        let mut moves = Moves::default();
        for &id in graph.order().iter().filter(|&&id| own(id)) {
            let node = graph.node(id);
            let elsewhere =
                |v: &ValueId| graph.constant(*v).is_none() && !graph.producer(*v).is_some_and(|(n, _)| own(n));
            inputs.extend(node.inputs.iter().flatten().copied().filter(elsewhere));
            for &out in node.outputs.iter().flatten() {
                let ends = ends(graph, out, &own);
                moves.leave(&ends);
                if !ends.is_empty() {
                    outputs.push((out, ends));
                }
            }
            if let Some(part) = Part::of(graph, id, &places) {
                parts.push((id, part));
            }
        }
        inputs.iter().for_each(|&map| moves.enter(graph, map, &own));
        moves.check(label)?;
        Ok(Self { seed, parts, inputs, outputs })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let mut patch = Patch::new(graph, RULE);
        let name = fused_name(graph, label, "TrtOptDepthwiseConv");
        let unfit = || Miss::new(label, "the shapes do not suit the plugin");
        self.make(graph, &mut patch, &name).ok_or_else(unfit)?;
        // Elements keep their nodes' names, and what the ledger has of them.
        let covers = self.parts.iter().filter(|(_, part)| !matches!(part, Part::Elements)).map(|&(id, _)| id).collect();
        patch.cover(self.parts.iter().map(|&(id, _)| id));
        Ok(Fusion { patch, name, covers })
    }

    /// Adds the nodes of tokens; that of the seed is called `name`.
    fn make(&self, graph: &Graph, patch: &mut Patch, name: &str) -> Option<()> {
        let mut names = Names { graph, taken: BTreeSet::from([name.to_owned()]) };
        let mut tokens = BTreeMap::new();
        for (i, &map) in self.inputs.iter().enumerate() {
            let of = if i == 0 { name.to_owned() } else { format!("{name}/{i}") };
            tokens.insert(map, token_map::enter(patch, graph, map, &of)?);
        }
        for (id, part) in &self.parts {
            let node = graph.node(*id);
            let (out, y) = match part {
                Part::Depthwise(conv) => {
                    let name = match *id == self.seed {
                        true => name.to_owned(),
                        false => names.of(*id, "TrtOptDepthwiseConv"),
                    };
                    (conv.out, conv.node(patch, graph, *tokens.get(&conv.x)?, &name)?)
                }
                Part::Product => {
                    let x = *tokens.get(&node.input(0)?)?;
                    (node.output(0)?, product(graph, patch, *id, x, &mut names)?)
                }
                // The add around a convolution is in its node.
                Part::Elements if tokens.contains_key(&node.output(0)?) => continue,
                Part::Elements => {
                    let mut of_tokens = node.clone();
                    for input in of_tokens.inputs.iter_mut().flatten().filter(|v| graph.constant(**v).is_none()) {
                        *input = *tokens.get(input)?;
                    }
                    let out = node.output(0)?;
                    let y = value(graph, patch, out, &graph.value(out).name)?;
                    patch.node(of_tokens, [y]);
                    (out, y)
                }
            };
            tokens.insert(out, y);
        }
        for (i, (map, ends)) in self.outputs.iter().enumerate() {
            let of = if i == 0 { name.to_owned() } else { format!("{name}/{i}") };
            token_map::leave(patch, graph, *tokens.get(map)?, *map, ends, &of)?;
        }
        Some(())
    }
}

/// The names of the nodes that a region becomes.
struct Names<'a> {
    graph: &'a Graph,
    taken: BTreeSet<String>,
}

impl Names<'_> {
    /// For what a node becomes: that of [`fused_name`], unless a node of the patch has it.
    fn of(&mut self, node: NodeId, op: &str) -> String {
        let name = fused_name(self.graph, &self.graph.node_label(node), op);
        let numbered = (2u64..).map(|i| format!("{name}_{i}"));
        let free = |name: &String| !self.taken.contains(name) && self.graph.nodes().all(|(_, n)| n.name != *name);
        let name = std::iter::once(name.clone()).chain(numbered).find(free).unwrap_or(name);
        self.taken.insert(name.clone());
        name
    }
}

/// A new value, the tokens of a map.
fn value(graph: &Graph, patch: &mut Patch, map: ValueId, name: &str) -> Option<ValueId> {
    let shape = Map::of(graph, map)?.tokens()?;
    Some(patch.value(name, graph.dtype(map), Some(shape.to_vec())))
}

/// The 1x1 convolution as a product with its offset.
fn product(graph: &Graph, patch: &mut Patch, conv: NodeId, x: ValueId, names: &mut Names) -> Option<ValueId> {
    let node = graph.node(conv);
    let out = node.output(0)?;
    let name = names.of(conv, "MatMul");
    let w = patch.constant(&format!("{name}/w"), channels_last(graph, node.input(1)?)?);
    let y = value(graph, patch, out, &name)?;
    patch.node(Node { name, ..Node::new("MatMul", [x, w]) }, [y]);
    let Some(b) = node.input(2) else { return Some(y) };
    let name = names.of(conv, "Add");
    let sum = value(graph, patch, out, &name)?;
    patch.node(Node { name, ..Node::new("Add", [y, b]) }, [sum]);
    Some(sum)
}
