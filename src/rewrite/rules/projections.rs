//! Projections of one value that one attention reads become one MatMul, their weights side by side.
//!
//! ```text
//! x -> MatMul Wqk -> qk --\
//! x -> MatMul Wv  -> v  --- TrtOptAttention qk_v      becomes   x -> MatMul [Wqk | Wv] -> TrtOptAttention qkv
//! ```
//!
//! Every column of the product is computed as before. These are no sites of the ledger.

use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::onnx::proto::{AttributeProto, TensorProto};
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Patch};
use crate::rewrite::ops::{self, Layout};
use crate::rewrite::pattern::only_user;

const RULE: &str = "projections";

pub fn run(engine: &mut Engine) -> Result<()> {
    let of_plugins = |n: &Node| n.domain == ops::DOMAIN && n.op == "TrtOptAttention";
    let attentions: Vec<NodeId> = engine.graph().nodes().filter(|(_, n)| of_plugins(n)).map(|(id, _)| id).collect();
    for id in attentions {
        if !engine.enabled(Kind::Attention, RULE) {
            return Ok(());
        }
        if let Some(patch) = patch(engine.graph(), id)
            && let Err(miss) = engine.apply(patch)?
        {
            tracing::debug!(at = miss.at, reason = miss.reason, "projections kept");
        }
    }
    Ok(())
}

/// `x W (+ b)`, read by nothing but the attention.
struct Projection<'a> {
    x: ValueId,
    /// `[K, N]`.
    weight: &'a TensorProto,
    /// Of `N` elements.
    bias: Option<&'a TensorProto>,
    nodes: Vec<NodeId>,
}

impl Projection<'_> {
    fn columns(&self) -> i64 {
        self.weight.dims[1]
    }
}

fn projection(graph: &Graph, value: ValueId) -> Option<Projection<'_>> {
    only_user(graph, value)?;
    let (id, node) = graph.producer(value)?;
    let (mut product, mut bias, mut nodes) = ((id, node), None, vec![id]);
    if node.is("Add") {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let (constant, other) = if graph.constant(a).is_some() { (a, b) } else { (b, a) };
        only_user(graph, other)?;
        bias = Some(graph.constant(constant)?);
        product = graph.producer(other)?;
        nodes.push(product.0);
    }
    let (_, matmul) = product;
    if !matmul.is("MatMul") {
        return None;
    }
    let weight = graph.constant(matmul.input(1)?)?;
    let &[_, columns] = &weight.dims[..] else { return None };
    let alone = |b: &TensorProto| b.dims.iter().rev().skip(1).all(|&d| d == 1) && b.dims.last() == Some(&columns);
    if bias.is_some_and(|b| !alone(b) || b.data_type != weight.data_type) {
        return None;
    }
    Some(Projection { x: matmul.input(0)?, weight, bias, nodes })
}

/// Which of the inputs become one, and the layout that the attention has then.
fn plan(layout: Layout, parts: &[Option<Projection>]) -> Option<(std::ops::Range<usize>, Layout)> {
    let same = |a: usize, b: usize| match (&parts[a], &parts[b]) {
        (Some(a), Some(b)) => a.x == b.x && a.weight.data_type == b.weight.data_type,
        _ => false,
    };
    // Heads of keys and values have one size in the packed layouts.
    let columns = |i: usize| parts[i].as_ref().map(Projection::columns);
    match layout {
        Layout::QKv if same(0, 1) => Some((0..2, Layout::Qkv)),
        Layout::QkV if same(0, 1) && columns(0) == columns(1).map(|v| 2 * v) => Some((0..2, Layout::Qkv)),
        Layout::QKV3 if same(0, 1) && same(1, 2) && columns(1) == columns(2) => Some((0..3, Layout::Qkv)),
        Layout::QKV3 if same(1, 2) && columns(1) == columns(2) => Some((1..3, Layout::QKv)),
        Layout::QKV3 if same(0, 1) => Some((0..2, Layout::QkV)),
        _ => None,
    }
}

fn patch(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let layout = Layout::parse(node.string("layout")?)?;
    let inputs: Vec<ValueId> = node.inputs.iter().copied().collect::<Option<_>>()?;
    let parts: Vec<Option<Projection>> = inputs.iter().take(layout.inputs()).map(|&v| projection(graph, v)).collect();
    let (range, packed) = plan(layout, &parts)?;
    let merged: Vec<&Projection> = parts[range.clone()].iter().flatten().collect();
    let first = merged[0];
    let dtype = first.weight.dtype().ok()?;

    let mut patch = Patch::new(graph, RULE);
    let weights: Vec<&TensorProto> = merged.iter().map(|p| p.weight).collect();
    let weight = patch.constant(&format!("{}/weight", node.name), side_by_side(&weights)?);
    let columns: i64 = merged.iter().map(|p| p.columns()).sum();
    let mut shape = graph.shape(first.x)?.to_vec();
    *shape.last_mut()? = columns.into();
    let name = format!("{}/{}", node.name, packed.name());
    let product = Node { name: format!("{name}/MatMul"), ..Node::new("MatMul", [first.x, weight]) };
    let mut value = patch.value(&name, graph.dtype(first.x), Some(shape.clone()));
    patch.node(product, [value]);
    if merged.iter().any(|p| p.bias.is_some()) {
        let mut data = vec![];
        for part in &merged {
            match part.bias {
                Some(bias) => data.extend_from_slice(&bias.data().ok()?),
                None => data.resize(data.len() + dtype.byte_len(usize::try_from(part.columns()).ok()?)?, 0),
            }
        }
        let bias = patch.constant(&format!("{name}/bias"), TensorProto::from_raw("", dtype, &[columns], data.into()));
        let sum = patch.value(&format!("{name}/sum"), graph.dtype(first.x), Some(shape));
        patch.node(Node { name: format!("{name}/Add"), ..Node::new("Add", [value, bias]) }, [sum]);
        value = sum;
    }

    let out = node.output(0)?;
    let mut attention = node.clone();
    attention.inputs = inputs.iter().map(|&v| Some(v)).collect();
    attention.inputs.splice(range, [Some(value)]);
    attention.set(AttributeProto::string("layout", packed.name()));
    let new = patch.value_like(graph, &graph.value(out).name, out);
    patch.node(attention, [new]);
    patch.replace(out, new);
    patch.cover(merged.iter().flat_map(|p| p.nodes.iter().copied()).chain([id]));
    Some(patch)
}

/// Matrices of as many rows and one type, joined along the columns.
fn side_by_side(matrices: &[&TensorProto]) -> Option<TensorProto> {
    let (rows, dtype) = (matrices[0].dims[0], matrices[0].dtype().ok()?);
    if matrices.iter().any(|m| m.dims[0] != rows) {
        return None;
    }
    let parts: Vec<(bytes::Bytes, usize)> = matrices
        .iter()
        .map(|m| Some((m.data().ok()?, dtype.byte_len(usize::try_from(m.dims[1]).ok()?)?)))
        .collect::<Option<_>>()?;
    let mut data = Vec::with_capacity(parts.iter().map(|(bytes, _)| bytes.len()).sum());
    for row in 0..usize::try_from(rows).ok()? {
        for (bytes, width) in &parts {
            data.extend_from_slice(bytes.get(row * width..(row + 1) * width)?);
        }
    }
    let columns = matrices.iter().map(|m| m.dims[1]).sum();
    Some(TensorProto::from_raw("", dtype, &[rows, columns], data.into()))
}
