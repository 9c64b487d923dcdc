//! `TrtOptTntWords`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, TntInnerBlock, attribute, count, is, optional, plugin_node, port};
use super::{tnt_bridge, tnt_inner_block};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

/// The most layers, and the most bridges.
pub const MAX_WORDS: usize = 32;

pub static DEF: OpDef = OpDef {
    name: "TrtOptTntWords",
    summary: "TrtOptTntInnerBlock after TrtOptTntInnerBlock over words, and what TrtOptTntBridge adds of any of their words",
    replaces: "TrtOptTntInnerBlock of all layers, and TrtOptTntBridge but for its add",
    inputs: &[
        port("x", "[P, N, C]"),
        port("scale1", "[L, C]; with whole = 1 [L, N*C]"),
        port("bias1", "shape of scale1"),
        port("w_qkv", "[L, C, 3*C], columns as (3, h, d)"),
        port("b_qkv", "[L, 3*C]"),
        port("w_proj", "[L, C, C]"),
        port("b_proj", "[L, C]"),
        port("scale2", "shape of scale1"),
        port("bias2", "shape of scale1"),
        port("w1", "[L, C, H]"),
        port("b1", "[L, H]"),
        port("w2", "[L, H, C]"),
        port("b2", "[L, C]"),
        port("bridge_scale1", "[J, K], K words in a row, a multiple of N*C"),
        port("bridge_bias1", "[J, K]"),
        port("bridge_w", "[J, K, D]"),
        port("bridge_b", "[J, D]"),
        port("bridge_scale2", "[J, D]"),
        port("bridge_bias2", "[J, D]"),
    ],
    outputs: &[
        port("out", "J of them, each [B, tokens, D] with P*N*C = B*covered*K"),
        optional("words", "shape of x; there if words = 1"),
    ],
    attributes: &[
        attribute("epsilon1", AttributeKind::Float, "added to the variance of the first norm of a layer"),
        attribute("epsilon2", AttributeKind::Float, "added to the variance of the second norm of a layer"),
        attribute("whole", AttributeKind::Int, "1: the norms of a layer are over N and C together, 0: over C"),
        attribute("num_heads", AttributeKind::Int, "h"),
        attribute("scale", AttributeKind::Float, "multiplies the scores"),
        attribute("approximate", AttributeKind::String, "none: GELU by erf; tanh: by its tanh form"),
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
}

/// Inputs of a layer, and of a bridge, but for the words.
const LAYER_INPUTS: usize = 12;
const BRIDGE_INPUTS: usize = 6;

impl TntWords {
    /// The node, without outputs; the weights of all layers, then of all bridges, in the order of the op's inputs.
    pub fn node(&self, x: ValueId, weights: &[ValueId]) -> Node {
        let inputs = std::iter::once(x).chain(weights.iter().copied()).map(Some).collect();
        Node { inputs, ..plugin_node(&DEF, self.attributes()) }
    }

    pub(super) fn attributes(&self) -> Vec<AttributeProto> {
        let mut after = self.after.clone();
        after.resize(MAX_WORDS, -1);
        let mut attributes = self.layer.attributes();
        attributes.extend([
            AttributeProto::float("bridge_epsilon1", self.epsilon[0]),
            AttributeProto::float("bridge_epsilon2", self.epsilon[1]),
            AttributeProto::int("tokens", self.tokens),
            AttributeProto::int("begin", self.begin),
            AttributeProto::int("covered", self.covered),
            AttributeProto::ints("after", &after),
            AttributeProto::int("words", self.words.into()),
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
            epsilon: [node.float("bridge_epsilon1")?, node.float("bridge_epsilon2")?],
            tokens: positive("tokens")?,
            begin: node.int("begin").filter(|&begin| begin >= 0)?,
            covered: positive("covered")?,
            words: node.int("words")? != 0,
            after,
        };
        (given && words.after.is_sorted() && !words.after.is_empty()).then_some(words)
    }
}

/// Sizes of a node: layers, images, tokens and channels of a patch; the rows of bridges and their columns.
struct Sizes {
    layers: i64,
    images: Dim,
    n: i64,
    c: i64,
    width: i64,
    channels: i64,
}

/// The sizes, if the weights fit each other and the attributes.
fn sizes(graph: &Graph, node: &Node, op: &TntWords) -> Option<Sizes> {
    let [patches, n, c] = graph.shape(node.input(0)?)? else { return None };
    let (n, c) = (n.int()?, c.int()?);
    let shape = |i: usize| graph.static_shape(node.input(i)?);
    let &[layers, _, hidden] = shape(9)?.as_slice() else { return None };
    let &[bridges, width, channels] = shape(LAYER_INPUTS + 3)?.as_slice() else { return None };
    let normalized = if op.layer.whole { n.checked_mul(c)? } else { c };
    let of_layers: [&[i64]; LAYER_INPUTS] = [
        &[normalized],
        &[normalized],
        &[c, 3 * c],
        &[3 * c],
        &[c, c],
        &[c],
        &[normalized],
        &[normalized],
        &[c, hidden],
        &[hidden],
        &[hidden, c],
        &[c],
    ];
    let of_bridges: [&[i64]; BRIDGE_INPUTS] =
        [&[width], &[width], &[width, channels], &[channels], &[channels], &[channels]];
    let expected = of_layers.iter().map(|&s| (layers, s)).chain(of_bridges.iter().map(|&s| (bridges, s)));
    let fits = expected.enumerate().all(|(i, (count, rest))| shape(i + 1) == Some([&[count], rest].concat()));
    let last = op.after.last().copied()?;
    let whole = fits
        && c % op.layer.num_heads == 0
        && usize::try_from(bridges).ok()? == op.after.len()
        && layers >= 1
        && last <= layers
        && op.begin.checked_add(op.covered)? <= op.tokens
        && width % n.checked_mul(c)? == 0;
    let rows = op.covered.checked_mul(width / n.checked_mul(c)?)?;
    let images = patches.div_exact(&rows.into())?;
    whole.then_some(Sizes { layers, images, n, c, width, channels })
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (op, x) = (TntWords::of(node)?, node.input(0)?);
    let Sizes { images, channels, .. } = sizes(graph, node, &op)?;
    let dtype = graph.dtype(x)?;
    let out = Some((dtype, vec![images, op.tokens.into(), channels.into()]));
    let mut shapes = vec![out; op.after.len()];
    if op.words {
        shapes.push(Some((dtype, graph.shape(x)?.to_vec())));
    }
    Some(shapes)
}

/// Words are rounded between layers, as those of an op for each layer are.
fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = TntWords::of(node)?;
    let dtype: DType = graph.dtype(node.input(0)?)?;
    let Sizes { layers, n, c, width, .. } = sizes(graph, node, &op)?;
    let inputs: Vec<String> = DEF.inputs.iter().map(|port| body.input(port.name)).collect();
    // Number `i` of the weights `input`.
    let weight = |body: &mut Body, input: usize, i: i64| -> Option<String> {
        let shape = graph.static_shape(node.input(input)?)?;
        let one = body.slice(&inputs[input], 0, i, i + 1, 1);
        Some(body.reshape(&one, &shape[1..]))
    };
    let mut words = vec![inputs[0].clone()];
    for layer in 0..layers {
        let mut values = vec![words.last()?.clone()];
        for input in 1..=LAYER_INPUTS {
            values.push(weight(body, input, layer)?);
        }
        let y = tnt_inner_block::steps(body, &op.layer, &values, [n, c], dtype)?;
        words.push(body.cast(&y, dtype));
    }
    let behind = op.tokens - op.begin - op.covered;
    for (bridge, &after) in op.after.iter().enumerate() {
        let rows = body.reshape(words.get(usize::try_from(after).ok()?)?, &[-1, op.covered, width]);
        let mut values = vec![rows];
        for input in LAYER_INPUTS + 1..=LAYER_INPUTS + BRIDGE_INPUTS {
            values.push(weight(body, input, bridge as i64)?);
        }
        let change = tnt_bridge::steps(body, values.try_into().ok()?, op.epsilon, [op.begin, behind], dtype);
        let out = body.cast(&change, dtype);
        body.output(&out, &format!("out{bridge}"));
    }
    if op.words {
        body.output(words.last()?, "words");
    }
    Some(())
}

/// That of all layers and bridges.
fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let op = TntWords::of(node)?;
    let (&[patches, n, c], &[layers, _, hidden]) = (inputs.first()?.as_slice(), inputs.get(9)?.as_slice()) else {
        return None;
    };
    let &[bridges, width, channels] = inputs.get(LAYER_INPUTS + 3)?.as_slice() else { return None };
    let layer = tnt_inner_block::work_of(op.layer.num_heads, [patches, n, c, hidden])?;
    let bridge = tnt_bridge::work_of(count(&[patches, n, c])? / count(&[width])?.max(1), [width, channels])?;
    let all = |of_layer: u64, of_bridge: u64| {
        of_layer.checked_mul(count(&[layers])?)?.checked_add(of_bridge.checked_mul(count(&[bridges])?)?)
    };
    Some((all(layer.0, bridge.0)?, all(layer.1, bridge.1)?))
}
