//! Attentions: softmax(Q K^T * scale + bias + mask) V, with the head split before and the head merge after it.
//!
//! ```text
//! source -> Reshape, Transpose, Gather, Split, Slice, Mul scalar ... -> Q ----\
//! source -> ...                                                    -> K^T -> MatMul -> (Mul | Add | Reshape)* -> Softmax
//! source -> ...                                                    -> V -----------------------------> MatMul <-/
//!                                                             Transpose, Reshape -> [B, N, heads * size] <-/
//! ```
//!
//! The seed is the Softmax. Splits and merges are not matched by their nodes: index maps prove which elements of which
//! source every operand is made of. An operand that is no plain split of its source is passed as it is (layout `bhnd`).

use crate::analysis::movement::{self, Strided, Walk};
use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{Attention, Bias, Layout, Mask, WindowMap, region, table_index};
use crate::rewrite::pattern::{
    float_tensor, follow_casts, fused_name, is_float_cast, normalize_axis, only_user, scalar, strip_casts, with_scalar,
};
use crate::rewrite::{Kind, Site, Status};

const RULE: &str = "attention";
const KEPT: &str = "TensorRT's own attention fusion takes this form";
/// Head sizes that the plugin takes.
const HEAD_SIZES: std::ops::RangeInclusive<i64> = 1..=128;
/// Windows beyond this are no windows of any paper; looking for their tables and masks would take long.
const MAX_WINDOW_TOKENS: i64 = 4096;
/// The smallest head size that TensorRT's own fusion takes.
const NATIVE_HEAD_SIZE: i64 = 16;

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let anchors: Vec<NodeId> =
        graph.nodes().filter(|(_, n)| n.is("Softmax") || n.is("Attention")).map(|(id, _)| id).collect();
    for id in anchors {
        let graph = engine.graph();
        let label = graph.node_label(id);
        if graph.node(id).is("Softmax") && weighted(graph, id).is_none() {
            let site = Site::new(Kind::Attention, Status::Kept, &label, RULE);
            engine.record(site.because("its output weights nothing by a MatMul: a softmax, not an attention"));
            continue;
        }
        if !engine.enabled(Kind::Attention, RULE) {
            let miss = engine.disabled_miss(Kind::Attention, RULE);
            engine.record_miss(Kind::Attention, &label, RULE, miss);
            continue;
        }
        let standard = engine.standard(Kind::Attention, &label, KEPT);
        let outcome = match match_attention(engine.graph(), id) {
            Err(miss) => Err(miss),
            Ok(found) if standard.is_some() => match found.native_patch(engine.graph(), &label) {
                // What was asked to stay as it is need not suit TensorRT's fusion.
                Err(_) if engine.target().plugins() => Ok((None, None)),
                outcome => outcome.map(|patch| (patch, None)),
            },
            Ok(found) => found.patch(engine.graph(), &label).map(|(patch, name)| (Some(patch), Some(name))),
        };
        let outcome = match outcome {
            Ok((Some(patch), name)) => engine.apply(patch)?.map(|()| name),
            Ok((None, name)) => Ok(name),
            Err(miss) => Err(miss),
        };
        match outcome {
            Ok(Some(name)) => engine.record(Site::new(Kind::Attention, Status::Fused, &label, RULE).into_node(&name)),
            Ok(None) => {
                let site = Site::new(Kind::Attention, Status::Kept, &label, RULE);
                engine.record(site.because(standard.unwrap_or_else(|| KEPT.to_owned())));
            }
            Err(miss) => engine.record_miss(Kind::Attention, &label, RULE, miss),
        }
    }
    Ok(())
}

/// Whether a node only rearranges leading axes: its last two axes stay as they are.
fn keeps_matrices(graph: &Graph, node: &Node) -> bool {
    let tail = |v: Option<ValueId>| graph.shape(v?).and_then(|s| s.last_chunk::<2>());
    let moves = node.is("Reshape") || node.is("Unsqueeze") || node.is("Squeeze") || node.is("Flatten");
    moves && matches!((tail(node.input(0)), tail(node.output(0))), (Some(a), Some(b)) if a == b)
}

/// The MatMul that the softmax weights the values with, and what lies between.
pub fn weighted(graph: &Graph, softmax: NodeId) -> Option<(NodeId, Vec<NodeId>)> {
    let mut value = graph.node(softmax).output(0)?;
    let mut between = vec![];
    for _ in 0..8 {
        if let Some((guard, nodes)) = nan_guard(graph, value) {
            between.extend(nodes);
            value = guard;
            continue;
        }
        // Of several users one may be the MatMul: the patch is refused later, with the reason.
        let user = graph.uses(value).iter().copied().find(|&u| {
            let node = graph.node(u);
            node.is("MatMul") || is_float_cast(graph, node) || keeps_matrices(graph, node)
        })?;
        let node = graph.node(user);
        if node.is("MatMul") {
            return (node.input(0) == Some(value)).then_some((user, between));
        }
        between.push(user);
        value = node.output(0)?;
    }
    None
}

/// `Where(IsNaN(p), 0, p)`, which exporters put after a softmax whose rows may be fully masked.
fn nan_guard(graph: &Graph, p: ValueId) -> Option<(ValueId, [NodeId; 2])> {
    let users = graph.uses(p);
    let is_nan = *users.iter().find(|&&u| graph.node(u).is("IsNaN"))?;
    let select = *users.iter().find(|&&u| graph.node(u).is("Where"))?;
    let node = graph.node(select);
    let guards = users.len() == 2
        && !graph.is_output(p)
        && node.input(0) == graph.node(is_nan).output(0)
        && node.input(2) == Some(p)
        && scalar(graph, node.input(1)?) == Some(0.0);
    guards.then_some((node.output(0)?, [is_nan, select]))
}

/// Something added to the scores.
struct Term {
    value: ValueId,
    /// Shape of the scores where it is added: `[.., N, M]`.
    at: Vec<Dim>,
    /// What the sum is multiplied by before the softmax.
    scale: f64,
    node: NodeId,
}

/// An operand of one of the products, with the scalars on its way.
struct Operand {
    value: ValueId,
    view: Option<Strided>,
    scale: f64,
}

struct Found {
    dtype: DType,
    heads: i64,
    batch: Dim,
    /// Query tokens, key tokens, head sizes of keys and of values.
    n: i64,
    m: i64,
    d: i64,
    dv: i64,
    q: Operand,
    k: Operand,
    v: Operand,
    /// Scalar between product and softmax, and the node that applies it if it is one.
    scale: f64,
    scale_nodes: Vec<NodeId>,
    terms: Vec<Term>,
    product: NodeId,
    context: ValueId,
    /// Everything between the first product and the second, both included.
    interior: Vec<NodeId>,
}

fn match_attention(graph: &Graph, id: NodeId) -> Result<Found, Miss> {
    let label = graph.node_label(id);
    let node = graph.node(id);
    if node.is("Attention") {
        return Err(Miss::new(&label, "this form of the Attention operator is not lowered")
            .expected("MatMul, Softmax, MatMul", "Attention"));
    }
    let input = node.input(0).ok_or_else(|| Miss::new(&label, "it has no input"))?;
    let rank = graph.rank(input).ok_or_else(|| Miss::new(&label, "the rank of its input is not known"))?;
    let axis = normalize_axis(node.int("axis").unwrap_or(if graph.opset < 13 { 1 } else { -1 }), rank);
    if axis != Some(rank.wrapping_sub(1)) {
        let found = axis.map_or("an axis out of range".into(), |a| format!("axis {a} of rank {rank}"));
        return Err(Miss::new(&label, "it is not a softmax over the last axis").expected("the last axis", found));
    }
    let (weighting, between) =
        weighted(graph, id).ok_or_else(|| Miss::new(&label, "no MatMul weights values with it"))?;
    let mut interior = vec![id, weighting];
    interior.extend(between);

    // Up, from the softmax to the product.
    let mut current = input;
    let mut scale = 1.0;
    let mut scale_nodes = vec![];
    let mut terms: Vec<Term> = vec![];
    let product = loop {
        let Some((at, node)) = graph.producer(current) else {
            return Err(Miss::new(&label, "the scores are a graph input").expected("MatMul", "a graph input"));
        };
        if node.is("MatMul") {
            break at;
        }
        interior.push(at);
        if is_float_cast(graph, node) || keeps_matrices(graph, node) {
            current = node.input(0).ok_or_else(|| Miss::new(graph.node_label(at), "it has no input"))?;
        } else if node.is("Add") {
            let (scores, term) = split_sum(graph, node).ok_or_else(|| {
                Miss::new(graph.node_label(at), "neither operand of the sum is a product of queries and keys")
                    .expected("MatMul", "other values")
            })?;
            let shape = node.output(0).and_then(|v| graph.shape(v)).map(<[_]>::to_vec);
            let shape = shape.ok_or_else(|| Miss::new(graph.node_label(at), "the shape of the scores is not known"))?;
            if graph.shape(scores) != Some(&shape[..]) {
                return Err(Miss::new(graph.node_label(at), "the bias enlarges the scores")
                    .expected(shape_text(&shape), "a smaller shape"));
            }
            terms.push(Term { value: term, at: shape, scale, node: at });
            current = scores;
        } else if let Some((value, factor)) = scaling(graph, node) {
            scale *= factor;
            scale_nodes.push(at);
            current = value;
        } else {
            let reason = "the scores are changed by another op than a scalar factor or a bias";
            return Err(Miss::new(graph.node_label(at), reason).expected("Mul, Div, Add or Reshape", &node.op));
        }
        if interior.len() > 32 {
            return Err(Miss::new(&label, "no MatMul of queries and keys is near"));
        }
    };
    interior.push(product);

    // Sizes.
    let unknown = |what: &str| Miss::new(&label, format!("{what} is not known or not static"));
    let product_node = graph.node(product);
    let (q, k) = product_node.input(0).zip(product_node.input(1)).ok_or_else(|| unknown("an operand"))?;
    let v = graph.node(weighting).input(1).ok_or_else(|| unknown("an operand"))?;
    let context = graph.node(weighting).output(0).ok_or_else(|| unknown("the result"))?;
    let scores =
        product_node.output(0).and_then(|v| graph.shape(v)).ok_or_else(|| unknown("the shape of the scores"))?;
    let int = |value: ValueId, from_end: usize, what: &str| {
        graph
            .shape(value)
            .and_then(|s| s.len().checked_sub(from_end).and_then(|i| s[i].int()))
            .ok_or_else(|| unknown(what))
    };
    let (n, d) = (int(q, 2, "the number of queries")?, int(q, 1, "the head size")?);
    let (m, dv) = (int(k, 1, "the number of keys")?, int(v, 1, "the head size of the values")?);
    if scores.len() < 3
        || graph.rank(q) != Some(scores.len())
        || graph.rank(k) != Some(scores.len())
        || graph.rank(v) != graph.rank(context)
    {
        let reason = "queries and keys have no batch of their own";
        return Err(
            Miss::new(graph.node_label(product), reason).expected("rank 3 or more on both sides", shape_text(scores))
        );
    }
    for (size, what) in [(d, "keys"), (dv, "values")] {
        if !HEAD_SIZES.contains(&size) {
            let reason = format!("the head size of the {what} is out of range");
            return Err(Miss::new(&label, reason).expected(format!("{HEAD_SIZES:?}"), size));
        }
    }
    let lead = &scores[..scores.len() - 2];
    let heads = heads_of(graph, &[q, k, v], lead, [n, m, d, dv]).ok_or_else(|| unknown("the number of heads"))?;
    let rows = Dim::product(lead).ok_or_else(|| unknown("the batch"))?;
    let batch = rows.div_exact(&heads.into()).ok_or_else(|| unknown("the batch"))?;
    let all = |a: ValueId, tail: [i64; 2]| {
        let sizes = [rows.clone(), tail[0].into(), tail[1].into()];
        graph.shape(a).and_then(Dim::product) == Dim::product(&sizes)
    };
    if !all(q, [n, d]) || !all(k, [d, m]) || !all(v, [m, dv]) {
        return Err(Miss::new(&label, "queries, keys and values do not have the same heads (grouped or broadcast)"));
    }
    let dtype = match graph.dtype(follow_casts(graph, context)) {
        Some(dtype @ (DType::F16 | DType::F32)) => dtype,
        other => {
            let found = other.map_or("unknown", DType::name);
            return Err(Miss::new(&label, "its element type is not supported").expected("float16 or float", found));
        }
    };
    let sizes = |a: i64, b: i64| vec![batch.clone(), heads.into(), a.into(), b.into()];
    let (q, k, v) =
        (operand(graph, q, &sizes(n, d)), operand(graph, k, &sizes(d, m)), operand(graph, v, &sizes(m, dv)));
    Ok(Found { dtype, heads, batch, n, m, d, dv, q, k, v, scale, scale_nodes, terms, product, context, interior })
}

/// For a multiplication or division by one constant: the other factor, and the factor that the constant is.
fn scaling(graph: &Graph, node: &Node) -> Option<(ValueId, f64)> {
    let (value, constant) = with_scalar(graph, node)?;
    match node.op.as_str() {
        "Mul" if node.domain.is_empty() => Some((value, constant)),
        "Div" if node.domain.is_empty() && node.input(0) == Some(value) && constant != 0.0 => {
            Some((value, 1.0 / constant))
        }
        _ => None,
    }
}

/// Which operand of a sum are the scores, and which the bias.
fn split_sum(graph: &Graph, node: &Node) -> Option<(ValueId, ValueId)> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    let reaches = |mut value: ValueId| {
        for _ in 0..12 {
            let Some((_, node)) = graph.producer(value) else { return false };
            if node.is("MatMul") {
                return true;
            }
            let next = if is_float_cast(graph, node) || keeps_matrices(graph, node) {
                node.input(0)
            } else if node.is("Add") {
                node.inputs.iter().flatten().copied().find(|&v| graph.constant(v).is_none())
            } else {
                scaling(graph, node).map(|(value, _)| value)
            };
            match next {
                Some(next) => value = next,
                None => return false,
            }
        }
        false
    };
    match (graph.constant(a).is_none() && reaches(a), graph.constant(b).is_none() && reaches(b)) {
        (true, false) => Some((a, b)),
        (false, true) => Some((b, a)),
        // Two products: the bias is made of one of smaller rank or shape; else there is no telling.
        (true, true) => {
            let out = node.output(0).and_then(|v| graph.shape(v));
            match (graph.shape(a) == out, graph.shape(b) == out) {
                (true, false) => Some((a, b)),
                (false, true) => Some((b, a)),
                _ => None,
            }
        }
        (false, false) => None,
    }
}

/// The number of heads: the axis before the matrices where scores have rank 4 or more, else that of a 4-D value on the
/// way to an operand, else one.
fn heads_of(graph: &Graph, operands: &[ValueId], lead: &[Dim], sizes: [i64; 4]) -> Option<i64> {
    if lead.len() > 1 {
        return lead.last()?.int();
    }
    let [n, m, d, dv] = sizes;
    for &operand in operands {
        let walk = Walk { through: &|id| transparent(graph, id), ..Walk::default() };
        let region = movement::region(graph, operand, &walk)?;
        for &node in &region.nodes {
            let shape = graph.node(node).output(0).and_then(|v| graph.static_tail::<3>(v));
            if let Some([heads, a, b]) = shape {
                let matrices = [[n, d], [m, d], [d, m], [m, dv]];
                if matrices.contains(&[a, b]) && lead[0].div_exact(&heads.into()).is_some() && heads > 0 {
                    return Some(heads);
                }
            }
        }
    }
    Some(1)
}

/// The input of a node that changes elements by nothing but a scalar factor or a cast.
fn transparent(graph: &Graph, id: NodeId) -> Option<ValueId> {
    let node = graph.node(id);
    if is_float_cast(graph, node) { node.input(0) } else { scaling(graph, node).map(|(value, _)| value) }
}

/// An operand as a view of what it is split from.
fn operand(graph: &Graph, value: ValueId, sizes: &[Dim]) -> Operand {
    let through = |id: NodeId| transparent(graph, id);
    let walk = Walk { through: &through, ..Walk::default() };
    let plain = Operand { value, view: None, scale: 1.0 };
    let Some(region) = movement::region(graph, value, &walk) else { return plain };
    let view = movement::strided(graph, value, sizes, &walk);
    // A factor on one part of several that are put together again is not a factor of the whole.
    let mut scale = 1.0;
    for &id in &region.nodes {
        if let Some((_, factor)) = scaling(graph, graph.node(id)) {
            scale *= factor;
        }
    }
    match view {
        Some(view) if region.sources.len() == 1 => Operand { value, view: Some(view), scale },
        _ => plain,
    }
}

/// One of the parts that the channels of a source are split into.
#[derive(Clone, Copy)]
struct Part {
    tokens: i64,
    /// Of a head.
    size: i64,
    index: i64,
    of: i64,
    /// Channels before tokens: K^T.
    transposed: bool,
}

/// An input of a packed layout, to be given the shape `[B, tokens, channels]`.
struct Packed {
    value: ValueId,
    tokens: i64,
    channels: i64,
}

impl Found {
    /// Whether the view is that part of `[B, tokens, parts * heads * size]`.
    fn is_part(&self, graph: &Graph, view: &Strided, part: Part) -> bool {
        let Part { tokens, size, index, of, transposed } = part;
        let row = of * self.heads * size;
        let strides = if transposed { [tokens * row, size, 1, row] } else { [tokens * row, size, row, 1] };
        let whole = self.batch.mul(&(tokens * row).into());
        view.has(&strides)
            && view.offset == index * self.heads * size
            && whole.is_some()
            && graph.shape(view.source).and_then(Dim::product) == whole
            && graph.dtype(view.source) == Some(self.dtype)
    }

    /// The layout that the operands have, with its inputs; `None` if it is none of the packed ones.
    fn layout(&self, graph: &Graph) -> Option<(Layout, Vec<Packed>)> {
        let (q, k, v) = (self.q.view.as_ref()?, self.k.view.as_ref()?, self.v.view.as_ref()?);
        let (h, n, m, d, dv) = (self.heads, self.n, self.m, self.d, self.dv);
        let part = |tokens, size, index, of| Part { tokens, size, index, of, transposed: false };
        let is_q = |index, of| self.is_part(graph, q, part(n, d, index, of));
        let is_k = |index, of| self.is_part(graph, k, Part { transposed: true, ..part(m, d, index, of) });
        let is_v = |index, of| self.is_part(graph, v, part(m, dv, index, of));
        let packed = |view: &Strided, tokens, channels| Packed { value: view.source, tokens, channels };
        let (qk, kv) = (q.source == k.source, k.source == v.source);
        if qk && kv && n == m && d == dv && is_q(0, 3) && is_k(1, 3) && is_v(2, 3) {
            return Some((Layout::Qkv, vec![packed(q, n, 3 * h * d)]));
        }
        if kv && d == dv && is_q(0, 1) && is_k(0, 2) && is_v(1, 2) {
            return Some((Layout::QKv, vec![packed(q, n, h * d), packed(k, m, 2 * h * d)]));
        }
        if qk && n == m && is_q(0, 2) && is_k(1, 2) && is_v(0, 1) {
            return Some((Layout::QkV, vec![packed(q, n, 2 * h * d), packed(v, m, h * dv)]));
        }
        if is_q(0, 1) && is_k(0, 1) && is_v(0, 1) {
            return Some((Layout::QKV3, vec![packed(q, n, h * d), packed(k, m, h * d), packed(v, m, h * dv)]));
        }
        None
    }

    fn patch(&self, graph: &Graph, label: &str) -> Result<(Patch, String), Miss> {
        let name = fused_name(graph, label, "TrtOptAttention");
        let mut patch = Patch::new(graph, RULE);
        patch.cover(self.interior.iter().copied());
        let unknown = || Miss::new(label, "a shape is not known well enough");
        let (h, n, m, d, dv) = (self.heads, self.n, self.m, self.d, self.dv);

        let mut scale = self.scale;
        let (layout, inputs) = match self.layout(graph) {
            Some((layout, inputs)) => {
                scale *= self.q.scale * self.k.scale * self.v_scale_is_one(label)?;
                let mut values = vec![];
                for (i, input) in inputs.into_iter().enumerate() {
                    let shape = [self.batch.clone(), input.tokens.into(), input.channels.into()];
                    values.push(
                        patch.reshape(graph, input.value, &shape, &format!("{name}/input_{i}")).ok_or_else(unknown)?,
                    );
                }
                (layout, values)
            }
            None => {
                let mut heads_first = |value: ValueId, a: i64, b: i64, what: &str| {
                    if graph.dtype(value) != Some(self.dtype) {
                        let found = graph.dtype(value).map_or("unknown", DType::name);
                        return Err(Miss::new(label, format!("{what} have another type than the result"))
                            .expected(self.dtype, found));
                    }
                    let shape = [self.batch.clone(), h.into(), a.into(), b.into()];
                    patch.reshape(graph, value, &shape, &format!("{name}/{what}")).ok_or_else(unknown)
                };
                let q = heads_first(self.q.value, n, d, "queries")?;
                let keys = heads_first(self.k.value, d, m, "keys")?;
                let v = heads_first(self.v.value, m, dv, "values")?;
                let shape = vec![self.batch.clone(), h.into(), m.into(), d.into()];
                let k = patch.value(&format!("{name}/keys_transposed"), Some(self.dtype), Some(shape));
                let transpose = Node::new("Transpose", [keys]).with(AttributeProto::ints("perm", &[0, 1, 3, 2]));
                patch.node(Node { name: format!("{name}/keys_transpose"), ..transpose }, [k]);
                (Layout::Bhnd, vec![q, k, v])
            }
        };
        let (bias, mask, map) = self.additions(graph, &mut patch, &name)?;
        let op = Attention { num_heads: h, scale: scale as f32, layout, bias, mask, map };
        let out_shape = vec![self.batch.clone(), n.into(), (h * dv).into()];
        let out = patch.value(&format!("{name}/out"), Some(self.dtype), Some(out_shape));
        patch.node(Node { name: name.clone(), ..op.node(&inputs) }, [out]);

        let context = follow_casts(graph, self.context);
        match self.merged(graph, context) {
            Some((merged, nodes)) => {
                let shape = graph.shape(merged).ok_or_else(unknown)?.to_vec();
                let new = patch.reshape(graph, out, &shape, &format!("{name}/reshape")).ok_or_else(unknown)?;
                patch.replace(merged, new);
                patch.cover(nodes);
            }
            None => {
                // Used otherwise than merged: split the heads again.
                let split = [self.batch.clone(), n.into(), h.into(), dv.into()];
                let split = patch.reshape(graph, out, &split, &format!("{name}/split")).ok_or_else(unknown)?;
                let shape = vec![self.batch.clone(), h.into(), n.into(), dv.into()];
                let heads_first = patch.value(&format!("{name}/heads"), Some(self.dtype), Some(shape));
                let transpose = Node::new("Transpose", [split]).with(AttributeProto::ints("perm", &[0, 2, 1, 3]));
                patch.node(Node { name: format!("{name}/transpose"), ..transpose }, [heads_first]);
                let shape = graph.shape(context).ok_or_else(unknown)?.to_vec();
                let new = patch.reshape(graph, heads_first, &shape, &format!("{name}/reshape")).ok_or_else(unknown)?;
                patch.replace(context, new);
            }
        }
        Ok((patch, name))
    }

    fn v_scale_is_one(&self, label: &str) -> Result<f64, Miss> {
        if self.v.scale == 1.0 {
            return Ok(1.0);
        }
        Err(Miss::new(label, "the values are scaled too").expected(1.0, self.v.scale))
    }

    /// The furthest value after the context, by movement that alone reads it, that has heads merged: `[B, N, h, dv]` in
    /// row-major order, whatever its axes.
    fn merged(&self, graph: &Graph, context: ValueId) -> Option<(ValueId, Vec<NodeId>)> {
        let (h, n, dv) = (self.heads, self.n, self.dv);
        let sizes = [self.batch.clone(), n.into(), h.into(), dv.into()];
        let strides = [h * n * dv, dv, n * dv, 1];
        let stop = |v: ValueId| v == context;
        let walk = Walk { stop: &stop, ..Walk::default() };
        let (mut value, mut nodes, mut best) = (context, vec![], None);
        while let Some(user) = only_user(graph, value) {
            let node = graph.node(user);
            if !(node.is("Transpose") || keeps_order(node)) || node.input(0) != Some(value) {
                break;
            }
            let Some(out) = node.output(0) else { break };
            value = out;
            nodes.push(user);
            let view = movement::strided(graph, value, &sizes, &walk);
            if view.is_some_and(|view| view.source == context && view.offset == 0 && view.has(&strides)) {
                best = Some((value, nodes.clone()));
            } else if best.is_some() {
                break;
            }
        }
        best
    }

    /// Bias and mask inputs out of all that is added to the scores.
    fn additions(
        &self,
        graph: &Graph,
        patch: &mut Patch,
        name: &str,
    ) -> Result<(Option<Bias>, Option<Mask>, WindowMap), Miss> {
        let mut bias: Option<Spread> = None;
        let mut mask: Option<Spread> = None;
        for term in &self.terms {
            let spread = self.spread(graph, term)?;
            let slot = if spread.heads == 1 && spread.period != Dim::Int(1) { &mut mask } else { &mut bias };
            *slot = Some(match slot.take() {
                None => spread,
                Some(other) => other.plus(spread).ok_or_else(|| {
                    let reason = "more than one bias is added, and they cannot be summed beforehand";
                    Miss::new(graph.node_label(term.node), reason).expected("one bias", "several")
                })?,
            });
        }
        let mut map = WindowMap::NONE;
        let mask = match mask {
            None => None,
            Some(spread) => {
                let shift =
                    spread.elements.as_deref().and_then(|e| shift_mask_of(e, spread.period.int()?, self.n, self.m));
                Some(match shift {
                    Some((found, value)) => {
                        map = found;
                        Mask::Shift(value as f32)
                    }
                    None => Mask::Dense(self.dense(graph, patch, spread, &format!("{name}/mask"), true)?),
                })
            }
        };
        let bias = match bias {
            None => None,
            Some(spread) => {
                let table =
                    spread.elements.as_deref().filter(|_| spread.heads == self.heads && spread.period == Dim::Int(1));
                match table.and_then(|e| table_of(e, self.heads, self.n, self.m, &map)) {
                    Some((window, table)) => {
                        map.window = window;
                        let rows = table.len() as i64 / self.heads;
                        let tensor = float_tensor(self.dtype, &[rows, self.heads], &table);
                        let tensor = tensor.ok_or_else(|| Miss::new(name, "its element type is not supported"))?;
                        Some(Bias::Table(patch.constant(&format!("{name}/bias_table"), tensor)))
                    }
                    None => Some(Bias::Dense(self.dense(graph, patch, spread, &format!("{name}/bias"), false)?)),
                }
            }
        };
        Ok((bias, mask, map))
    }

    /// A term over `[P, 1 or h, N, M]`.
    fn spread(&self, graph: &Graph, term: &Term) -> Result<Spread, Miss> {
        let at = graph.node_label(term.node);
        let found = graph.shape(term.value).map_or("an unknown shape".into(), shape_text);
        let miss = |reason: &str| Miss::new(&at, reason).expected("[1 or windows, 1 or heads, N, M]", &found);
        let shape = graph.shape(term.value).ok_or_else(|| miss("the shape of the bias is not known"))?;
        let one = Dim::Int(1);
        let rank = term.at.len();
        if shape.len() > rank {
            return Err(miss("the bias has more axes than the scores"));
        }
        let mut wide = vec![one.clone(); rank - shape.len()];
        wide.extend_from_slice(shape);
        let (lead, tail) = wide.split_at(rank - 2);
        let matrix = [Dim::Int(self.n), Dim::Int(self.m)];
        let fits = |a: &Dim, b: &Dim| *a == one || a == b;
        if !tail.iter().zip(&matrix).all(|(a, b)| fits(a, b)) || !lead.iter().zip(&term.at).all(|(a, b)| fits(a, b)) {
            return Err(miss("the bias does not fit the scores"));
        }
        // Leading axes of the scores: [.., images, windows, heads], heads merged with the rest where there is but one.
        let (outer, heads) = match lead {
            [merged] if self.heads > 1 && *merged != one => {
                return Err(miss("the bias varies over merged batch and heads"));
            }
            [merged] if self.heads > 1 => (vec![], merged.clone()),
            [merged] => (vec![merged.clone()], one.clone()),
            [outer @ .., heads] => (outer.to_vec(), heads.clone()),
            [] => return Err(miss("the scores have no batch")),
        };
        let period = match outer.iter().position(|d| *d != one) {
            None => one.clone(),
            // Constant over the axes before: it repeats every so many rows.
            Some(i) if outer[i..].iter().zip(&term.at[i..]).all(|(a, b)| a == b) => {
                Dim::product(&outer[i..]).ok_or_else(|| miss("the bias is too large"))?
            }
            Some(_) => return Err(miss("the bias varies over an outer axis and not over an inner one")),
        };
        let heads = heads.int().ok_or_else(|| miss("the number of heads is not static"))?;
        let constant = graph.constant(term.value).and_then(|t| t.to_f64_vec().ok());
        let elements = match (constant, period.int()) {
            (Some(elements), Some(period)) => {
                let sizes = [tail[0].int().unwrap_or(1), tail[1].int().unwrap_or(1)];
                Some(expand(&elements, period * heads, sizes, [self.n, self.m], term.scale))
            }
            _ => None,
        };
        if elements.is_none() && (term.scale != 1.0 || tail != matrix) {
            return Err(miss("a bias that is computed is scaled or broadcast"));
        }
        Ok(Spread { period, heads, elements, value: term.value })
    }

    /// The term as an input of the node.
    fn dense(&self, graph: &Graph, patch: &mut Patch, spread: Spread, name: &str, mask: bool) -> Result<ValueId, Miss> {
        let [n, m] = [Dim::Int(self.n), Dim::Int(self.m)];
        let shape = if mask { vec![spread.period, n, m] } else { vec![spread.period, spread.heads.into(), n, m] };
        let unsupported = || Miss::new(name, "the bias has another element type than the result, or an open shape");
        match spread.elements {
            Some(elements) => {
                let dims: Option<Vec<i64>> = shape.iter().map(Dim::int).collect();
                let tensor =
                    dims.and_then(|dims| float_tensor(self.dtype, &dims, &elements)).ok_or_else(unsupported)?;
                Ok(patch.constant(name, tensor))
            }
            None => {
                let value = strip_casts(graph, spread.value);
                let value = if graph.dtype(value) == Some(self.dtype) { value } else { spread.value };
                if graph.dtype(value) != Some(self.dtype) {
                    return Err(unsupported());
                }
                patch.reshape(graph, value, &shape, name).ok_or_else(unsupported)
            }
        }
    }

    /// For a target without plugins: the scale moved onto the queries, where TensorRT's fusion looks for it.
    fn native_patch(&self, graph: &Graph, label: &str) -> Result<Option<Patch>, Miss> {
        if self.d < NATIVE_HEAD_SIZE {
            let reason = "TensorRT's own attention fusion does not take heads this small";
            return Err(
                Miss::new(label, reason).expected(format!("a head size of at least {NATIVE_HEAD_SIZE}"), self.d)
            );
        }
        let [node] = self.scale_nodes[..] else { return Ok(None) };
        // Only a factor right after the product can move before it without touching the bias.
        let product = graph.node(self.product).output(0);
        let scaled = graph.node(node).output(0);
        let (Some(product), Some(scaled)) = (product, scaled) else { return Ok(None) };
        if scaling(graph, graph.node(node)).map(|(v, _)| v) != Some(product) {
            return Ok(None);
        }
        let dtype = graph.dtype(self.q.value);
        let Some(factor) = dtype.and_then(|t| float_tensor(t, &[], &[self.scale])) else { return Ok(None) };
        let name = fused_name(graph, label, "scale_queries");
        let mut patch = Patch::new(graph, "attention-scale");
        let factor = patch.constant(&format!("{name}/factor"), factor);
        let q = patch.value_like(graph, &name, self.q.value);
        patch.node(Node { name: name.clone(), ..Node::new("Mul", [self.q.value, factor]) }, [q]);
        let new = patch.value_like(graph, &format!("{name}/scores"), product);
        patch.node(Node { name: format!("{name}/MatMul"), ..Node::new("MatMul", [q, self.k.value]) }, [new]);
        patch.replace(scaled, new);
        patch.cover([node, self.product]);
        Ok(Some(patch))
    }
}

/// Whether the node leaves the elements in their order.
fn keeps_order(node: &Node) -> bool {
    ["Reshape", "Flatten", "Squeeze", "Unsqueeze"].iter().any(|op| node.is(op))
}

/// What is added to the scores, over `[period, heads or 1, N, M]`.
struct Spread {
    period: Dim,
    heads: i64,
    /// Its elements if it is constant.
    elements: Option<Vec<f64>>,
    value: ValueId,
}

impl Spread {
    /// The sum of two constants of the same period, where one has all heads or both have the same.
    fn plus(self, other: Self) -> Option<Self> {
        let (large, small) = if self.heads >= other.heads { (self, other) } else { (other, self) };
        let (mut elements, addend) = (large.elements?, small.elements?);
        let period = usize::try_from(large.period.int()?).ok()?;
        if small.period != large.period || !(small.heads == 1 || small.heads == large.heads) {
            return None;
        }
        let matrix = addend.len() / period / small.heads as usize;
        let row = matrix * large.heads as usize;
        for (i, e) in elements.iter_mut().enumerate() {
            let (p, h, at) = (i / row, i % row / matrix, i % matrix);
            let h = if small.heads == 1 { 0 } else { h };
            *e += addend[(p * small.heads as usize + h) * matrix + at];
        }
        Some(Self { elements: Some(elements), ..large })
    }
}

/// `rows` matrices of `from` elements, each axis of size one repeated to `to`, times a factor.
fn expand(elements: &[f64], rows: i64, from: [i64; 2], to: [i64; 2], factor: f64) -> Vec<f64> {
    let mut out = Vec::with_capacity((rows * to[0] * to[1]) as usize);
    for row in 0..rows {
        for i in 0..to[0] {
            for j in 0..to[1] {
                let (a, b) = (if from[0] == 1 { 0 } else { i }, if from[1] == 1 { 0 } else { j });
                out.push(elements[((row * from[0] + a) * from[1] + b) as usize] * factor);
            }
        }
    }
    out
}

/// Factor pairs of `n`, the squarest first.
fn factors(n: i64) -> Vec<[i64; 2]> {
    let mut pairs: Vec<[i64; 2]> = (1..=n).filter(|a| n % a == 0).map(|a| [a, n / a]).collect();
    pairs.sort_by_key(|[a, b]| (a - b).abs());
    pairs
}

/// The map and value of which the mask `[windows, n, n]` is the shift mask.
fn shift_mask_of(mask: &[f64], windows: i64, n: i64, m: i64) -> Option<(WindowMap, f64)> {
    if n != m || n > MAX_WINDOW_TOKENS || windows > 1 << 16 {
        return None;
    }
    let value = *mask.iter().find(|&&v| v != 0.0)?;
    if mask.iter().any(|&v| v != 0.0 && v != value) {
        return None;
    }
    for window in factors(n) {
        for [down, across] in factors(windows) {
            let grid = [down * window[0], across * window[1]];
            // The shift is half a window as the papers have it; any other is tried after.
            let shifts = |w: i64| std::iter::once(w / 2).chain((0..w).filter(move |&s| s != w / 2));
            for sh in shifts(window[0]) {
                for sw in shifts(window[1]) {
                    let map = WindowMap { grid, window, shift: [sh, sw], pad_after_roll: false };
                    if (sh, sw) != (0, 0) && is_shift_mask(mask, &map) {
                        return Some((map, value));
                    }
                }
            }
        }
    }
    None
}

fn is_shift_mask(mask: &[f64], map: &WindowMap) -> bool {
    let ([wh, ww], n) = (map.window, map.tokens());
    let across = map.grid[1] / ww;
    // The last window has all regions there are: looked at first, it settles most wrong maps at once.
    (0..map.windows()).rev().all(|window| {
        let (top, left) = (window / across * wh, window % across * ww);
        let regions: Vec<_> = (0..n).map(|t| region(map, top + t / ww, left + t % ww)).collect();
        (0..n).all(|q| {
            let row = &mask[((window * n + q) * n) as usize..][..n as usize];
            row.iter().zip(&regions).all(|(&v, key)| (v == 0.0) == (*key == regions[q as usize]))
        })
    })
}

/// The relative-position table `[(2*wh-1)*(2*ww-1), heads]` that the bias `[heads, n, n]` is looked up from, with its
/// window. The window of `map` is the only one tried if there is one.
fn table_of(bias: &[f64], heads: i64, n: i64, m: i64, map: &WindowMap) -> Option<([i64; 2], Vec<f64>)> {
    if n != m || !(2..=MAX_WINDOW_TOKENS).contains(&n) {
        return None;
    }
    let windows = if map.is_none() { factors(n) } else { vec![map.window] };
    // A window of one row or column fits whatever depends on the distance alone; squarer ones come first.
    windows.into_iter().filter(|w| !map.is_none() || w[0] > 1 && w[1] > 1).find_map(|window| {
        let index = table_index(window);
        let rows = (2 * window[0] - 1) * (2 * window[1] - 1);
        let mut table = vec![f64::NAN; (rows * heads) as usize];
        for head in 0..heads {
            let matrix = &bias[(head * n * n) as usize..][..(n * n) as usize];
            for (&row, &value) in index.iter().zip(matrix) {
                let slot = &mut table[(row * heads + head) as usize];
                if slot.is_nan() {
                    *slot = value;
                } else if *slot != value {
                    return None;
                }
            }
        }
        table.iter().all(|v| !v.is_nan()).then_some((window, table))
    })
}
