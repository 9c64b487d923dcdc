//! The words of TNT: the blocks over words of all layers, each of which reads what the one before gives, and the bridges that read any of these
//! words.
//!
//! ```text
//! x -> TrtOptTntInnerBlock = words1 -> TrtOptTntInnerBlock = words2 -> ...
//! s1, words1 -> TrtOptTntBridge -> y1 ;  s2, words2 -> TrtOptTntBridge -> y2 ;  ...
//! becomes   TrtOptTntWords(x, all weights in a row) -> out1, out2, ... [, words] ;  y1 = s1 + out1 ;  y2 = s2 + out2 ;  ...
//! ```
//!
//! What TNT makes its first tokens of is one more bridge, of the words before the first layer (see [`Front`]). No token goes into the words of a chain, since each block reads nothing but the words before it and weights: so the op needs nothing of the
//! tokens, and there can be no cycle through a bridge. Words that are read otherwise end a chain, and the next layer begins another. Runs before
//! blocks over the tokens, which take the adds.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{
    BRIDGE_WEIGHTS, LAYER_WEIGHTS, MAX_WORDS, PART_MULTIPLE, TntBridge, TntBridgeWeights, TntInnerBlock, TntWords,
};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::attn_block::{regroups, root};
use crate::rewrite::rules::block::limits::WORDS_OUTPUTS;
use crate::rewrite::rules::block::{Fusion, Outcome, Rule, output};
use crate::rewrite::rules::tnt_front::Front;

const RULE: &str = "tnt-words";
const FRONT: &str = "tnt-words-front";

pub fn run(engine: &mut Engine) -> Result<()> {
    let asked = engine.options().kinds.contains(&Kind::TntWords);
    let chains = if asked { chains(engine.graph()) } else { BTreeMap::new() };
    let front = engine.enabled(Kind::TntWords, FRONT);
    let rule = Rule {
        kind: Kind::TntWords,
        name: RULE,
        part: Kind::TntInnerBlock,
        part_of: &|_, anchor| vec![anchor],
        fusion: &|graph, anchor, label| {
            let chain = chains.get(&anchor).ok_or_else(|| Miss::new(label, "its words are of no chain"))?;
            Words::of(graph, chain, label, front)?.fusion(graph, label)
        },
    };
    rule.run_if_asked(engine, |_, id| chains.contains_key(&id))
}

/// Blocks over words, each of which reads what the one before gives, and the bridges that read these words or what the first one reads.
struct Chain {
    layers: Vec<NodeId>,
    /// With the layer behind which each reads, ascending.
    bridges: Vec<(i64, NodeId)>,
    /// Whether something else reads the last words.
    read: bool,
}

/// What reads words, themselves or regrouped.
#[derive(Default)]
struct Readers {
    blocks: Vec<NodeId>,
    bridges: Vec<NodeId>,
    others: bool,
}

impl Readers {
    fn of(graph: &Graph, words: ValueId) -> Self {
        let mut readers = Self::default();
        let mut values = vec![words];
        while let Some(value) = values.pop() {
            readers.others |= graph.is_output(value) || graph.is_named_elsewhere(value);
            for &user in graph.uses(value) {
                let node = graph.node(user);
                let bridged = || TntBridge::weights(node).is_some_and(|w| w.words == value);
                if regroups(node) {
                    values.extend(node.output(0).filter(|_| node.input(0) == Some(value)));
                } else if TntInnerBlock::of(node).is_some() && node.input(0) == Some(value) {
                    readers.blocks.push(user);
                } else if TntBridge::of(node).is_some() && bridged() {
                    readers.bridges.push(user);
                } else {
                    readers.others = true;
                }
            }
        }
        readers
    }
}

/// All chains that a bridge reads words of, by their first block.
fn chains(graph: &Graph) -> BTreeMap<NodeId, Chain> {
    let blocks = graph.order().iter().copied().filter(|&id| TntInnerBlock::of(graph.node(id)).is_some());
    let mut chained = BTreeSet::new();
    let mut chains = BTreeMap::new();
    // In the order of the graph the first block of a chain comes first.
    for first in blocks {
        if chained.contains(&first) {
            continue;
        }
        let chain = Chain::from(graph, first);
        chained.extend(chain.layers.iter().copied());
        if !chain.bridges.is_empty() {
            chains.insert(first, chain);
        }
    }
    chains
}

impl Chain {
    fn from(graph: &Graph, first: NodeId) -> Self {
        let mut chain = Self { layers: vec![first], bridges: vec![], read: false };
        // Bridges that read the words before the first block, unless a chain ends there, which has them.
        if let Some(x) = graph.node(first).input(0).map(|x| root(graph, x))
            && graph.producer(x).is_none_or(|(_, node)| TntInnerBlock::of(node).is_none())
        {
            chain.bridges.extend(Readers::of(graph, x).bridges.into_iter().map(|bridge| (0, bridge)));
        }
        let mut last = first;
        while let Some(words) = graph.node(last).output(0) {
            let readers = Readers::of(graph, words);
            let after = chain.layers.len() as i64;
            chain.bridges.extend(readers.bridges.into_iter().map(|bridge| (after, bridge)));
            match readers.blocks[..] {
                [next] if !readers.others && alike(graph, first, next) => {
                    chain.layers.push(next);
                    last = next;
                }
                _ => {
                    chain.read = readers.others || !readers.blocks.is_empty();
                    break;
                }
            }
        }
        chain
    }
}

/// Whether two blocks have the same sizes and attributes.
fn alike(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    let (a, b) = (graph.node(a), graph.node(b));
    let shapes =
        |node: &Node| -> Option<Vec<Vec<i64>>> { node.inputs[1..].iter().map(|v| graph.static_shape((*v)?)).collect() };
    let x = |node: &Node| node.input(0).and_then(|v| Some((graph.shape(v)?.to_vec(), graph.dtype(v)?)));
    TntInnerBlock::of(a) == TntInnerBlock::of(b) && x(a).is_some() && x(a) == x(b) && shapes(a) == shapes(b)
}

/// A bridge of a chain.
struct Bridge<'a> {
    node: &'a Node,
    weights: TntBridgeWeights,
    /// What the words are added to, and what is added to that before.
    stream: ValueId,
    residual: Option<ValueId>,
    out: ValueId,
}

impl<'a> Bridge<'a> {
    fn of(graph: &'a Graph, id: NodeId) -> Outcome<Self> {
        let node = graph.node(id);
        let odd = || Miss::new(graph.node_label(id), "it has other inputs than its op");
        let weights = TntBridge::weights(node).ok_or_else(odd)?;
        let stream = node.input(0).ok_or_else(odd)?;
        let residual = node.input(1).filter(|_| node.int("residual") == Some(1));
        Ok(Self { node, weights, stream, residual, out: output(graph, id)? })
    }
}

/// A chain about to become one node.
struct Words<'a> {
    op: TntWords,
    chain: &'a Chain,
    /// Before the bridges.
    front: Option<Front>,
    bridges: Vec<Bridge<'a>>,
    x: ValueId,
    /// What reads it reads the last words.
    last: ValueId,
    weights: TensorProto,
}

impl<'a> Words<'a> {
    fn of(graph: &'a Graph, chain: &'a Chain, label: &str, with_front: bool) -> Outcome<Self> {
        let odd = || Miss::new(label, "it has other inputs than its op");
        let (first, last) = (chain.layers[0], chain.layers[chain.layers.len() - 1]);
        let block = graph.node(first);
        let layer = TntInnerBlock::of(block).ok_or_else(odd)?;
        let x = block.input(0).ok_or_else(odd)?;
        let bridges = chain.bridges.iter().map(|&(_, id)| Bridge::of(graph, id)).collect::<Outcome<Vec<_>>>()?;
        if chain.layers.len() > MAX_WORDS {
            return Err(Miss::new(label, "it has more layers than the plugin takes")
                .expected(format!("at most {MAX_WORDS}"), chain.layers.len().to_string()));
        }
        let outputs = bridges.len() + usize::from(chain.read);
        if outputs > WORDS_OUTPUTS {
            return Err(Miss::new(label, "it has more outputs than TensorRT takes in float16")
                .expected(format!("at most {WORDS_OUTPUTS}"), outputs.to_string()));
        }
        let like = bridges.first().ok_or_else(odd)?;
        let bridge = TntBridge::of(like.node).ok_or_else(odd)?;
        for (other, &(_, id)) in bridges.iter().zip(&chain.bridges) {
            check_alike(graph, like, other, graph.node_label(id))?;
        }
        let rows = Rows::of(graph, label, x, like)?;
        let hidden = block.input(9).and_then(|w1| graph.static_shape(w1)?.last().copied()).ok_or_else(odd)?;
        let like = [like.weights.words, like.out];
        let front = (with_front && outputs < WORDS_OUTPUTS).then(|| Front::of(graph, root(graph, x), &bridge, like));
        let front = front.flatten();
        let bridged = chain.bridges.iter().map(|&(after, _)| after);
        let op = TntWords {
            layer,
            layers: chain.layers.len() as i64,
            hidden,
            width: rows.width,
            channels: rows.channels,
            epsilon: bridge.epsilon,
            tokens: rows.tokens,
            begin: bridge.begin,
            covered: rows.covered,
            after: front.iter().map(|_| 0).chain(bridged).collect(),
            words: chain.read,
            // Chains of blocks over the tokens stack what they read.
            stacked: 0,
        };
        let mut packed = Packed::new(graph.dtype(x).ok_or_else(odd)?);
        for i in 1..=LAYER_WEIGHTS {
            let all: Option<Vec<_>> = chain.layers.iter().map(|&id| graph.node(id).input(i).map(Some)).collect();
            packed.push(graph, &all.ok_or_else(odd)?)?;
        }
        for i in 0..BRIDGE_WEIGHTS {
            let first = front.iter().map(|front| front_weights(front)[i]);
            let all: Vec<_> = first.chain(bridges.iter().map(|b| Some(bridge_weights(&b.weights)[i]))).collect();
            packed.push(graph, &all)?;
        }
        let weights = packed.tensor();
        Ok(Self { op, chain, front, bridges, x, last: output(graph, last)?, weights })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let unknown = || Miss::new(label, "the shapes of its words and tokens are not known");
        let name = fused_name(graph, label, "TrtOptTntWords");
        let mut patch = Patch::new(graph, RULE);
        let weights = patch.constant(&format!("{name}/weights"), self.weights);
        let tokens = self.front.iter().map(|front| front.out).chain(self.bridges.iter().map(|bridge| bridge.out));
        let outs: Vec<ValueId> =
            tokens.enumerate().map(|(i, like)| patch.value_like(graph, &format!("{name}/out{i}"), like)).collect();
        let mut outputs = outs.clone();
        if self.chain.read {
            let shape = graph.shape(self.x).ok_or_else(unknown)?;
            let words = patch.value(&format!("{name}/words"), graph.dtype(self.x), Some(shape.to_vec()));
            outputs.push(words);
            let last = graph.shape(self.last).ok_or_else(unknown)?.to_vec();
            let last = patch.reshape(graph, words, &last, &format!("{name}/shape")).ok_or_else(unknown)?;
            patch.replace(self.last, last);
        }
        let mut fused = self.op.node(self.x, weights);
        fused.name.clone_from(&name);
        patch.node(fused, outputs);
        let mut outs = outs.into_iter();
        let mut covers =
            [&self.chain.layers[..], &self.chain.bridges.iter().map(|&(_, id)| id).collect::<Vec<_>>()].concat();
        if let Some(front) = self.front {
            let out = outs.next().ok_or_else(unknown)?;
            let name = format!("{name}/first_tokens");
            let constant = patch.constant(&format!("{name}/embedding"), front.constant);
            let y = patch.value_like(graph, &name, front.out);
            patch.node(Node { name, ..Node::new("Add", [out, constant]) }, [y]);
            patch.replace(front.out, y);
            covers.extend(front.covers);
        }
        for (bridge, out) in self.bridges.iter().zip(outs) {
            let mut sum = bridge.stream;
            for (what, addend) in [("residual", bridge.residual), ("sum", Some(out))] {
                let Some(addend) = addend else { continue };
                let name = format!("{}/{what}", bridge.node.name);
                let y = patch.value_like(graph, &name, bridge.out);
                patch.node(Node { name, ..Node::new("Add", [sum, addend]) }, [y]);
                sum = y;
            }
            patch.replace(bridge.out, sum);
        }
        patch.cover(covers.iter().copied());
        Ok(Fusion { patch, name, covers })
    }
}

/// The same of the first tokens, where a product may have no offset.
fn front_weights(front: &Front) -> [Option<ValueId>; BRIDGE_WEIGHTS] {
    let [[scale1, bias1], [scale2, bias2]] = front.norms;
    [Some(scale1), Some(bias1), Some(front.linear.w), front.linear.b, Some(scale2), Some(bias2)]
}

/// Weights of a bridge, in the order in which they are packed.
fn bridge_weights(w: &TntBridgeWeights) -> [ValueId; BRIDGE_WEIGHTS] {
    [w.norm_scale[0], w.norm_bias[0], w.w, w.b, w.norm_scale[1], w.norm_bias[1]]
}

/// A miss unless two bridges have the same sizes and attributes.
fn check_alike(graph: &Graph, like: &Bridge, other: &Bridge, label: String) -> Outcome<()> {
    let text = |bridge: &Bridge| {
        let shape = |v: ValueId| graph.shape(v).map_or_else(|| "an unknown shape".into(), shape_text);
        let op = TntBridge::of(bridge.node);
        let op = op.map_or_else(String::new, |op| format!("from token {} on, epsilons {:?}", op.begin, op.epsilon));
        format!("{} to {}, {op}", shape(bridge.weights.words), shape(bridge.out))
    };
    if text(like) == text(other) {
        return Ok(());
    }
    Err(Miss::new(label, "its bridges are of different sizes").expected(text(like), text(other)))
}

/// What all bridges of a chain have in common.
struct Rows {
    /// Tokens of an image, and how many of them words are of.
    tokens: i64,
    covered: i64,
    /// Values of a row of words, and of a token.
    width: i64,
    channels: i64,
}

impl Rows {
    /// Those of this bridge, if its rows are of whole patches.
    fn of(graph: &Graph, label: &str, x: ValueId, bridge: &Bridge) -> Outcome<Self> {
        let sizes = || {
            let ([_, n, c], [_, tokens, channels]) = (graph.shape(x)?, graph.shape(bridge.out)?) else { return None };
            let [_, covered, width] = graph.shape(bridge.weights.words)? else { return None };
            let (tokens, covered, width, channels) = (tokens.int()?, covered.int()?, width.int()?, channels.int()?);
            Some((n.int()?.checked_mul(c.int()?)?, Self { tokens, covered, width, channels }))
        };
        let (patch, rows) =
            sizes().ok_or_else(|| Miss::new(label, "the shapes of its words and tokens are not known"))?;
        if rows.width % patch != 0 {
            return Err(Miss::new(label, "a bridge's rows are not of whole patches of words")
                .expected(format!("a multiple of {patch} values"), rows.width));
        }
        Ok(rows)
    }
}

/// Weights in a row, as the op takes them.
struct Packed {
    dtype: DType,
    data: Vec<u8>,
}

impl Packed {
    fn new(dtype: DType) -> Self {
        Self { dtype, data: vec![] }
    }

    fn bytes(&self, elements: usize) -> usize {
        self.dtype.byte_len(elements).unwrap_or(0)
    }

    /// Adds weights of one shape, one behind the other, as a part; zeros for one that is not there.
    fn push(&mut self, graph: &Graph, weights: &[Option<ValueId>]) -> Outcome<()> {
        let first = weights.iter().flatten().next().copied().ok_or_else(|| Miss::new("", "it has no weights"))?;
        let shape = graph.static_shape(first);
        let elements = shape.iter().flatten().product::<i64>();
        let zeros = self.bytes(elements.try_into().unwrap_or(0));
        for &weight in weights {
            let Some(weight) = weight else {
                self.data.resize(self.data.len() + zeros, 0);
                continue;
            };
            let at = &graph.value(weight).name;
            let tensor = graph.constant(weight).ok_or_else(|| {
                Miss::new(at, "a weight is computed, so that those of all layers cannot be one")
                    .expected("an initializer", "a computed tensor")
            })?;
            let found = (graph.dtype(weight), graph.static_shape(weight));
            if found != (Some(self.dtype), shape.clone()) {
                let text = |dtype: Option<DType>, shape: Option<Vec<i64>>| {
                    let dtype = dtype.map_or_else(|| "an unknown type".into(), |dtype| dtype.to_string());
                    format!("{dtype} {:?}", shape.unwrap_or_default())
                };
                return Err(Miss::new(at, "the weights of its layers are of different types or shapes")
                    .expected(text(Some(self.dtype), shape), text(found.0, found.1)));
            }
            let bytes = tensor.data().map_err(|error| Miss::new(at, format!("a weight cannot be read: {error}")))?;
            self.data.extend_from_slice(&bytes);
        }
        let multiple = self.bytes(PART_MULTIPLE).max(1);
        self.data.resize(self.data.len().next_multiple_of(multiple), 0);
        Ok(())
    }

    fn tensor(self) -> TensorProto {
        let elements = self.data.len() / self.bytes(1).max(1);
        TensorProto::from_raw("", self.dtype, &[elements as i64], self.data.into())
    }
}
