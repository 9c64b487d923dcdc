//! What TNT makes of the words before the first layer: the tokens that it starts from, which are those of a bridge that adds to weights.
//!
//! ```text
//! words -> TrtOptLayerNorm -> MatMul w [-> Add b] -> TrtOptLayerNorm = t ;  y = Concat(class token, t) [+ position embedding]
//! is   y = out + c   of a bridge `out` that leaves the class token out, and c = Concat(class token, 0) [+ position embedding]
//! ```

use crate::ir::{Graph, NodeId, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;
use crate::rewrite::ops::{LayerNorm, TntBridge};
use crate::rewrite::pattern::{float_tensor, normalize_axis};
use crate::rewrite::rules::attn_block::{ahead, regroups};
use crate::rewrite::rules::block::{Linear, output, single_use};

/// The first tokens, as a bridge of the words.
pub struct Front {
    /// Scale and bias of the norm before the product and of the one behind it.
    pub norms: [[ValueId; 2]; 2],
    pub linear: Linear,
    /// What is added to the bridge's result, `[1, N, C]`.
    pub constant: TensorProto,
    /// The tokens.
    pub out: ValueId,
    pub covers: Vec<NodeId>,
}

impl Front {
    /// The first tokens of these words, which come as `rows` does, if they are made as the bridges like `bridge` that give `tokens` make theirs.
    pub fn of(graph: &Graph, words: ValueId, bridge: &TntBridge, [rows, tokens]: [ValueId; 2]) -> Option<Self> {
        let mut values = vec![words];
        while let Some(value) = values.pop() {
            for &user in graph.uses(value) {
                if regroups(graph.node(user)) {
                    values.extend(graph.node(user).output(0));
                } else if graph.shape(value) == graph.shape(rows)
                    && let Some(front) = Self::behind(graph, user, bridge, tokens)
                {
                    return Some(front);
                }
            }
        }
        None
    }

    /// The tokens that this norm leads to.
    fn behind(graph: &Graph, first: NodeId, bridge: &TntBridge, tokens: ValueId) -> Option<Self> {
        let before = norm(graph, first, bridge.epsilon[0])?;
        let mut covers = vec![first];
        let (normal, _) = ahead(graph, output(graph, first).ok()?, &mut covers).ok()?;
        let (linear, product) = Linear::after(graph, normal).ok()?;
        covers.extend(&linear.covers);
        let (_, second) = ahead(graph, product, &mut covers).ok()?;
        let behind = norm(graph, second, bridge.epsilon[1])?;
        covers.push(second);
        let (part, concat) = ahead(graph, output(graph, second).ok()?, &mut covers).ok()?;
        let node = graph.node(concat);
        let rank = graph.rank(part)?;
        let &[Some(class), Some(rest)] = &node.inputs[..] else { return None };
        let joined = node.is("Concat") && normalize_axis(node.int("axis")?, rank)? == 1 && rest == part;
        let dims = graph.shape(tokens)?;
        let [_, count, channels] = dims else { return None };
        let (count, channels) = (count.int()?, channels.int()?);
        let vectors = |norm: &[ValueId; 2], size: i64| {
            norm.iter().all(|&v| graph.static_shape(v).is_some_and(|shape| shape == [size]))
        };
        let fits = vectors(&before, linear.sizes[0]) && vectors(&behind, channels) && linear.sizes[1] == channels;
        let kept = graph.shape(class)?.get(1)?.int()?;
        if !joined || !fits || rank != 3 || kept != bridge.begin {
            return None;
        }
        covers.push(concat);
        let mut out = output(graph, concat).ok()?;
        let mut values = repeated(graph, class, [kept, channels])?;
        values.resize(usize::try_from(count.checked_mul(channels)?).ok()?, 0.0);
        // The position embedding.
        if let Ok(add) = single_use(graph, out)
            && let Some(embedding) = other_operand(graph, add, out)
            && let Some(embedding) = repeated(graph, embedding, [count, channels])
        {
            values.iter_mut().zip(&embedding).for_each(|(value, embedded)| *value += embedded);
            covers.push(add);
            out = output(graph, add).ok()?;
        }
        let alike = graph.shape(out)? == dims && graph.dtype(out) == graph.dtype(tokens);
        let constant = float_tensor(graph.dtype(tokens)?, &[1, count, channels], &values)?;
        alike.then_some(Self { norms: [before, behind], linear, constant, out, covers })
    }
}

/// Scale and bias of a fused norm over the last axis with this epsilon, which does nothing else.
fn norm(graph: &Graph, id: NodeId, epsilon: f32) -> Option<[ValueId; 2]> {
    let node = graph.node(id);
    let norm = LayerNorm::of(node)?;
    let plain = norm.axes == 1 && norm.map.is_none() && LayerNorm::adds_nothing(node) && norm.epsilon == epsilon;
    match node.inputs[..] {
        [_, Some(scale), Some(bias)] if plain => Some([scale, bias]),
        _ => None,
    }
}

/// What an Add adds to the value.
fn other_operand(graph: &Graph, add: NodeId, value: ValueId) -> Option<ValueId> {
    let node = graph.node(add);
    let (a, b) = (node.input(0).filter(|_| node.is("Add"))?, node.input(1)?);
    Some(if a == value { b } else { a })
}

/// A weight of `rows` rows, or many copies of one, as exporters have it for a batch of images: the values of one.
fn repeated(graph: &Graph, value: ValueId, [rows, columns]: [i64; 2]) -> Option<Vec<f64>> {
    let expanded = graph.producer(value).filter(|(_, node)| node.is("Expand")).and_then(|(_, node)| node.input(0));
    let tensor = graph.constant(expanded.unwrap_or(value))?;
    let whole = matches!(tensor.dims[..], [_, r, c] if [r, c] == [rows, columns]) || tensor.dims == [rows, columns];
    let values = tensor.to_f64_vec().ok().filter(|_| whole && matches!(tensor.dtype(), Ok(DType::F32 | DType::F16)))?;
    let one = usize::try_from(rows.checked_mul(columns)?).ok().filter(|&one| one > 0)?;
    values.chunks(one).all(|copy| copy == &values[..one]).then(|| values[..one].to_vec())
}
