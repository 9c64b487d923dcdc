//! `TrtOptTntWords`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, TntInnerBlock, attribute, count, is, optional, plugin_node, port};
use super::{tnt_bridge, tnt_inner_block};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

/// The most layers, and the most bridges.
pub const MAX_WORDS: usize = 32;

/// Each part of the packed weights begins at a multiple of so many elements, since the kernels read 16 bytes at a time.
pub const PART_MULTIPLE: usize = 8;

pub static DEF: OpDef = OpDef {
    name: "TrtOptTntWords",
    summary: "TrtOptTntInnerBlock after TrtOptTntInnerBlock over words, and what TrtOptTntBridge adds of any of their words",
    replaces: "TrtOptTntInnerBlock of all layers, and TrtOptTntBridge but for its add",
    // The weights are one tensor, since TensorRT 8.6 proposes no op of many tensors in float16.
    inputs: &[
        port("x", "[P, N, C]"),
        port("weights", "[S], those of all layers, then of all bridges, in a row; docs/ops.md lists the parts"),
    ],
    outputs: &[
        port("out", "J - stacked of them, each [B, tokens, D] with P*N*C = B*covered*width"),
        optional("stack", "[stacked, B, tokens, D], those of the last bridges; there if stacked > 0"),
        optional("words", "shape of x; there if words = 1"),
    ],
    attributes: &[
        attribute("epsilon1", AttributeKind::Float, "added to the variance of the first norm of a layer"),
        attribute("epsilon2", AttributeKind::Float, "added to the variance of the second norm of a layer"),
        attribute("whole", AttributeKind::Int, "1: the norms of a layer are over N and C together, 0: over C"),
        attribute("num_heads", AttributeKind::Int, "h"),
        attribute("scale", AttributeKind::Float, "multiplies the scores"),
        attribute("approximate", AttributeKind::String, "none: GELU by erf; tanh: by its tanh form"),
        attribute("layers", AttributeKind::Int, "L, 1 to 32"),
        attribute("hidden", AttributeKind::Int, "H, hidden columns of a layer"),
        attribute("width", AttributeKind::Int, "values that a bridge reads for a token, a multiple of N*C"),
        attribute("channels", AttributeKind::Int, "D, of a token in out"),
        attribute(
            "bridge_epsilon1",
            AttributeKind::Float,
            "added to the variance of a bridge's norm before its product",
        ),
        attribute("bridge_epsilon2", AttributeKind::Float, "added to the variance of the norm behind it"),
        attribute("tokens", AttributeKind::Int, "tokens of an image in out"),
        attribute("begin", AttributeKind::Int, "the first token that words are of"),
        attribute("covered", AttributeKind::Int, "how many tokens words are of"),
        attribute(
            "after",
            AttributeKind::Ints(MAX_WORDS),
            "layers behind which a bridge reads words, ascending; then -1",
        ),
        attribute("words", AttributeKind::Int, "1: the words behind the last layer are an output"),
        attribute("stacked", AttributeKind::Int, "how many of the last bridges have one output together"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptTntWords`.
#[derive(Clone, Debug, PartialEq)]
pub struct TntWords {
    /// Of each layer.
    pub layer: TntInnerBlock,
    pub layers: i64,
    /// Hidden columns of each layer.
    pub hidden: i64,
    /// What each bridge reads for a token, and what it makes of it.
    pub width: i64,
    pub channels: i64,
    /// Of the norms of each bridge.
    pub epsilon: [f32; 2],
    /// Tokens of an image, the first that words are of, and how many they are of.
    pub tokens: i64,
    pub begin: i64,
    pub covered: i64,
    /// The layer behind which each bridge reads; 0: before the first.
    pub after: Vec<i64>,
    /// The words behind the last layer are an output.
    pub words: bool,
    /// So many of the last bridges have one output together, before the words; the others have their own.
    pub stacked: usize,
}

/// Kinds of weights of a layer, and of a bridge.
pub const LAYER_WEIGHTS: usize = 12;
pub const BRIDGE_WEIGHTS: usize = 6;

/// One kind of weights of all layers or bridges: where it begins among the packed ones, and its shape in each of them.
struct Part {
    begin: i64,
    shape: Vec<i64>,
}

impl Part {
    /// The weights of layer or bridge `i`.
    fn weights(&self, body: &mut Body, packed: &str, i: i64) -> String {
        let elements: i64 = self.shape.iter().product();
        let begin = self.begin + i * elements;
        let one = body.slice(packed, 0, begin, begin + elements, 1);
        body.reshape(&one, &self.shape)
    }
}

impl TntWords {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, weights: ValueId) -> Node {
        Node { inputs: vec![Some(x), Some(weights)], ..plugin_node(&DEF, self.attributes()) }
    }

    /// The parts of the packed weights, in their order, and the elements of all, where a patch is of `n` words of `c` channels.
    fn parts(&self, [n, c]: [i64; 2]) -> Option<(Vec<Part>, i64)> {
        let (hidden, width, channels) = (self.hidden, self.width, self.channels);
        let normalized = if self.layer.whole { n.checked_mul(c)? } else { c };
        let of_qkv = c.checked_mul(3)?;
        let of_layers: [&[i64]; LAYER_WEIGHTS] = [
            &[normalized],
            &[normalized],
            &[c, of_qkv],
            &[of_qkv],
            &[c, c],
            &[c],
            &[normalized],
            &[normalized],
            &[c, hidden],
            &[hidden],
            &[hidden, c],
            &[c],
        ];
        let of_bridges: [&[i64]; BRIDGE_WEIGHTS] =
            [&[width], &[width], &[width, channels], &[channels], &[channels], &[channels]];
        let bridges = self.after.len() as i64;
        let all = of_layers.iter().map(|&s| (self.layers, s)).chain(of_bridges.iter().map(|&s| (bridges, s)));
        let (mut parts, mut end) = (vec![], 0u64);
        for (number, shape) in all {
            parts.push(Part { begin: end.try_into().ok()?, shape: shape.into() });
            let elements = count(&[&[number], shape].concat())?;
            end = end.checked_add(elements)?.checked_next_multiple_of(PART_MULTIPLE as u64)?;
        }
        Some((parts, end.try_into().ok()?))
    }

    pub(super) fn attributes(&self) -> Vec<AttributeProto> {
        let mut after = self.after.clone();
        after.resize(MAX_WORDS, -1);
        let mut attributes = self.layer.attributes();
        attributes.extend([
            AttributeProto::int("layers", self.layers),
            AttributeProto::int("hidden", self.hidden),
            AttributeProto::int("width", self.width),
            AttributeProto::int("channels", self.channels),
            AttributeProto::float("bridge_epsilon1", self.epsilon[0]),
            AttributeProto::float("bridge_epsilon2", self.epsilon[1]),
            AttributeProto::int("tokens", self.tokens),
            AttributeProto::int("begin", self.begin),
            AttributeProto::int("covered", self.covered),
            AttributeProto::ints("after", &after),
            AttributeProto::int("words", self.words.into()),
            AttributeProto::int("stacked", self.stacked as i64),
        ]);
        attributes
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let after: Vec<i64> = node.ints("after")?.iter().copied().take_while(|&layer| layer >= 0).collect();
        let given = node.ints("after")?[after.len()..].iter().all(|&layer| layer == -1);
        let positive = |name: &str| node.int(name).filter(|&n| n > 0);
        let words = Self {
            layer: TntInnerBlock::read(node)?,
            layers: positive("layers").filter(|&n| n <= MAX_WORDS as i64)?,
            hidden: positive("hidden")?,
            width: positive("width")?,
            channels: positive("channels")?,
            epsilon: [node.float("bridge_epsilon1")?, node.float("bridge_epsilon2")?],
            tokens: positive("tokens")?,
            begin: node.int("begin").filter(|&begin| begin >= 0)?,
            covered: positive("covered")?,
            words: node.int("words")? != 0,
            stacked: node.int("stacked")?.try_into().ok().filter(|&n| n <= after.len())?,
            after,
        };
        (given && words.after.is_sorted() && !words.after.is_empty()).then_some(words)
    }
}

/// Sizes of a node: images, words and channels of a patch, and the parts of its weights.
struct Sizes {
    images: Dim,
    n: i64,
    c: i64,
    parts: Vec<Part>,
}

/// The sizes, if the inputs fit the attributes.
fn sizes(graph: &Graph, node: &Node, op: &TntWords) -> Option<Sizes> {
    let [patches, n, c] = graph.shape(node.input(0)?)? else { return None };
    let (n, c) = (n.int()?, c.int()?);
    let (parts, elements) = op.parts([n, c])?;
    let patch = n.checked_mul(c)?;
    let whole = graph.static_shape(node.input(1)?)? == [elements]
        && c % op.layer.num_heads == 0
        && op.after.last()? <= &op.layers
        && op.begin.checked_add(op.covered)? <= op.tokens
        && op.width.checked_rem(patch) == Some(0);
    let rows = op.covered.checked_mul(op.width.checked_div(patch)?)?;
    let images = patches.div_exact(&rows.into())?;
    whole.then_some(Sizes { images, n, c, parts })
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (op, x) = (TntWords::of(node)?, node.input(0)?);
    let Sizes { images, .. } = sizes(graph, node, &op)?;
    let dtype = graph.dtype(x)?;
    let out = vec![images, op.tokens.into(), op.channels.into()];
    let mut shapes = vec![Some((dtype, out.clone())); op.after.len() - op.stacked];
    if op.stacked > 0 {
        shapes.push(Some((dtype, [&[Dim::from(op.stacked as i64)], &out[..]].concat())));
    }
    if op.words {
        shapes.push(Some((dtype, graph.shape(x)?.to_vec())));
    }
    Some(shapes)
}

/// Words are rounded between layers, as those of an op for each layer are.
fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = TntWords::of(node)?;
    let dtype: DType = graph.dtype(node.input(0)?)?;
    let Sizes { n, c, parts, .. } = sizes(graph, node, &op)?;
    let (of_layers, of_bridges) = parts.split_at(LAYER_WEIGHTS);
    let (x, packed) = (body.input("x"), body.input("weights"));
    let mut words = vec![x];
    for layer in 0..op.layers {
        let mut values = vec![words.last()?.clone()];
        values.extend(of_layers.iter().map(|part| part.weights(body, &packed, layer)));
        let y = tnt_inner_block::steps(body, &op.layer, &values, [n, c], dtype)?;
        words.push(body.cast(&y, dtype));
    }
    let behind = op.tokens - op.begin - op.covered;
    let (alone, mut stack) = (op.after.len() - op.stacked, vec![]);
    for (bridge, &after) in op.after.iter().enumerate() {
        let rows = body.reshape(words.get(usize::try_from(after).ok()?)?, &[-1, op.covered, op.width]);
        let mut values = vec![rows];
        values.extend(of_bridges.iter().map(|part| part.weights(body, &packed, bridge as i64)));
        let change = tnt_bridge::steps(body, values.try_into().ok()?, op.epsilon, [op.begin, behind], dtype);
        let out = body.cast(&change, dtype);
        match bridge < alone {
            true => body.output(&out, &format!("out{bridge}")),
            false => stack.push(body.reshape(&out, &[1, -1, op.tokens, op.channels])),
        }
    }
    if !stack.is_empty() {
        let stack = body.concat(&stack.iter().map(String::as_str).collect::<Vec<_>>(), 0);
        body.output(&stack, "stack");
    }
    if op.words {
        body.output(words.last()?, "words");
    }
    Some(())
}

/// That of all layers and bridges.
fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let op = TntWords::of(node)?;
    let &[patches, n, c] = inputs.first()?.as_slice() else { return None };
    let layer = tnt_inner_block::work_of(op.layer.num_heads, [patches, n, c, op.hidden])?;
    let rows = count(&[patches, n, c])? / count(&[op.width])?;
    let bridge = tnt_bridge::work_of(rows, [op.width, op.channels])?;
    let all = |of_layer: u64, of_bridge: u64| {
        of_layer.checked_mul(count(&[op.layers])?)?.checked_add(of_bridge.checked_mul(op.after.len() as u64)?)
    };
    Some((all(layer.0, bridge.0)?, all(layer.1, bridge.1)?))
}
