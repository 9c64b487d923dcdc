//! Attention blocks whose keys and values are of pooled tokens, as in PyramidTNT.
//!
//! ```text
//! s -> TrtOptLayerNorm = n -> MatMul Wq = q
//! n -> Transpose, Reshape -> AveragePool -> Reshape, Transpose -> MatMul Wpool -> Add -> TrtOptLayerNorm -> MatMul Wkv = kv
//! q, kv -> TrtOptAttention -> MatMul Wproj -> Add -> Add s -> y
//! becomes   TrtOptPooledAttnBlock(s) -> y, or TrtOptPooledAttnBlock(x, r) -> y where s = x + r is read by nothing else
//! ```
//!
//! Any product may have an offset or none. The index map proves that the pooled map is the tokens, and that tokens are made of it. These are
//! sites of `attn-block`. All vectors become one constant: TensorRT 8.6 takes no op of many tensors in float16.

use crate::error::Result;
use crate::ir::{Dim, Graph, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{Attention, Bias, Layout, MAX_CHANNELS, MULTIPLE, PooledAttnBlock, PooledAttnWeights};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::attn_block::{MAX_TOKENS, ahead, arrival, back, norm_before, root};
use crate::rewrite::rules::block::{
    Fusion, Linear, Outcome, check_flops, check_products_of_few_rows, check_types, limits, output, rounded, sum_of,
    weight,
};
use crate::rewrite::rules::token_map::{Map, ends, tokens_before};
use crate::rewrite::rules::token_pool::window;
use crate::rewrite::{ComputeCapability, Kind};

const OP: &str = "TrtOptPooledAttnBlock";

/// The block around the attention, or why it is none; `None` where no average pool leads to keys and values.
pub fn fusion(
    graph: &Graph,
    anchor: NodeId,
    label: &str,
    rule: &'static str,
    gpu: Option<ComputeCapability>,
) -> Option<Outcome<Fusion>> {
    let attention = Attention::of(graph.node(anchor)).filter(|op| op.layout == Layout::QKv)?;
    let keys = graph.node(anchor).input(1)?;
    let pool = pool_before(graph, keys)?;
    Some(Block::of(graph, anchor, label, attention, pool, gpu).and_then(|block| block.fusion(graph, label, rule)))
}

/// How many nodes a pool may be before keys and values.
const DEPTH: u32 = 16;

/// The average pool that leads to the value, by one operand of each node between them.
fn pool_before(graph: &Graph, mut value: ValueId) -> Option<NodeId> {
    for _ in 0..DEPTH {
        let (id, node) = graph.producer(value)?;
        if node.is("AveragePool") {
            return Some(id);
        }
        let mut operands = node.inputs.iter().flatten().filter(|&&v| graph.constant(v).is_none());
        value = *operands.next()?;
        if operands.next().is_some() {
            return None;
        }
    }
    None
}

/// A whole block.
struct Block {
    op: PooledAttnBlock,
    /// What is normalized; the residual stream.
    stream: ValueId,
    /// Scale and bias of the norm of all tokens, and of that of pooled ones.
    norms: [[ValueId; 2]; 2],
    q: Linear,
    pool: Linear,
    kv: Linear,
    proj: Linear,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Block {
    fn of(
        graph: &Graph,
        anchor: NodeId,
        label: &str,
        attention: Attention,
        pool: NodeId,
        gpu: Option<ComputeCapability>,
    ) -> Outcome<Self> {
        let node = graph.node(anchor);
        let unknown = || Miss::new(label, "the shapes of its tokens are not known");
        let [queries, keys] = [node.input(0).ok_or_else(unknown)?, node.input(1).ok_or_else(unknown)?];
        let mut covers = vec![anchor];
        let q = Linear::before(graph, back(graph, queries, &mut covers)?, label)?;
        let kv = Linear::before(graph, back(graph, keys, &mut covers)?, label)?;
        let (pooled_norm, [stream_norm, ..]) = {
            let (id, norm) = norm_before(graph, back(graph, kv.x, &mut covers)?)?;
            ((id, norm), [root(graph, q.x)])
        };
        let (norm_id, norm) = norm_before(graph, stream_norm)?;
        let parameters = |id: NodeId| match graph.node(id).inputs[..] {
            [Some(x), Some(scale), Some(bias)] => Ok((x, [scale, bias])),
            _ => Err(Miss::new(graph.node_label(id), "the norm has other inputs than x, scale and bias")),
        };
        let ((projected, pool_norm), (stream, own_norm)) = (parameters(pooled_norm.0)?, parameters(norm_id)?);
        let linear = Linear::before(graph, back(graph, projected, &mut covers)?, label)?;

        let [grid, windows] = pooled_map(graph, label, pool, stream_norm, linear.x)?;
        let op = PooledAttnBlock { epsilon: [norm.epsilon, pooled_norm.1.epsilon], grid, pool: windows, attention };
        let tokens = op.tokens().ok_or_else(unknown)?;
        check_tokens(
            graph,
            label,
            &attention,
            [(stream, tokens[0]), (queries, tokens[0]), (keys, tokens[1]), (linear.x, tokens[1])],
        )?;
        covers.extend([norm_id, pooled_norm.0]);
        let (context, _) = ahead(graph, output(graph, anchor)?, &mut covers)?;
        let (proj, result) = Linear::after(graph, context)?;
        let out = arrival(graph, result, stream, None, &mut covers)?;

        check_sizes(graph, label, stream, [&q, &linear, &kv, &proj])?;
        check_products_of_few_rows(label, gpu)?;
        let rows = graph.shape(stream).and_then(|s| s.get(..2)).unwrap_or_default();
        check_flops(label, rows, &[&q, &proj], limits::ATTN_FLOPS, "")?;
        covers.extend([&q, &linear, &kv, &proj].into_iter().flat_map(|linear| &linear.covers));
        for from in [q.x, linear.x] {
            between(graph, from, stream_norm, &mut covers);
        }
        alone(graph, &covers, out)?;
        Ok(Self { op, stream, norms: [own_norm, pool_norm], q, pool: linear, kv, proj, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str, rule: &'static str) -> Outcome<Fusion> {
        let name = fused_name(graph, label, OP);
        let mut patch = Patch::new(graph, rule);
        let dtype = graph.dtype(self.stream).unwrap_or(DType::F32);
        let [[scale, bias], [pool_scale, pool_bias]] = self.norms;
        let offsets = [&self.q, &self.pool, &self.kv, &self.proj].map(|linear| (linear.b, linear.sizes[1]));
        let channels = self.pool.sizes[0];
        let parts = [
            (Some(scale), channels),
            (Some(bias), channels),
            offsets[0],
            offsets[1],
            (Some(pool_scale), channels),
            (Some(pool_bias), channels),
            offsets[2],
            offsets[3],
        ];
        let mut vectors = vec![];
        for (value, size) in parts {
            match value {
                Some(value) => vectors.extend(vector(graph, value, dtype, size)?),
                None => vectors.resize(vectors.len() + size as usize, 0.0),
            }
        }
        let vectors = rounded(label, dtype, &[vectors.len() as i64], &vectors)?;
        let weights = PooledAttnWeights {
            w_q: self.q.w,
            w_pool: self.pool.w,
            w_kv: self.kv.w,
            w_proj: self.proj.w,
            vectors: patch.constant(&format!("{name}/vectors"), vectors),
        };
        let fused = self.op.node(self.stream, None, &weights);
        Fusion::reshaped(graph, patch, label, name, fused, [self.stream, self.out], self.covers)
    }
}

/// Height and width of the map that the pool is of, and of its windows, if that map is `tokens` and nothing but `pooled`, as tokens, is made of it.
fn pooled_map(graph: &Graph, label: &str, pool: NodeId, tokens: ValueId, pooled: ValueId) -> Outcome<[[i64; 2]; 2]> {
    let (node, at) = (graph.node(pool), graph.node_label(pool));
    let unknown = || Miss::new(&at, "it is of no map of known size");
    let name = |value: ValueId| graph.value(value).name.clone();
    let map = node.input(0).ok_or_else(unknown)?;
    let sides = Map::of(graph, map).ok_or_else(unknown)?.sides;
    let windows = window(graph, node, map, sides, &at)?;
    let source = tokens_before(graph, map).ok_or_else(|| {
        let found = shape_text(graph.shape(map).unwrap_or_default());
        Miss::new(&at, "its map is not made of tokens").expected("tokens, channels last, as a map", found)
    })?;
    if root(graph, source) != tokens {
        let reason = "keys and values come of other tokens than queries, and not of these pooled";
        return Err(Miss::new(label, reason).expected(name(tokens), name(source)));
    }
    let ends = ends(graph, output(graph, pool)?, &|_| false);
    match ends.tokens[..] {
        [end] if !ends.map && root(graph, end) == root(graph, pooled) => Ok([sides, windows]),
        _ => Err(Miss::new(&at, "what it gives is read otherwise than as tokens of keys and values")
            .expected(name(pooled), format!("{} of tokens, {} of the map", ends.tokens.len(), usize::from(ends.map)))),
    }
}

/// A miss unless the values have these many tokens of three axes, and the scores have nothing of windows.
fn check_tokens(graph: &Graph, label: &str, attention: &Attention, values: [(ValueId, i64); 4]) -> Outcome<()> {
    let images = graph.shape(values[0].0).and_then(<[Dim]>::first);
    for (value, tokens) in values {
        let fits = matches!(graph.shape(value), Some([batch, Dim::Int(n), _]) if *n == tokens && Some(batch) == images);
        if !fits {
            let found = graph.shape(value).map_or_else(|| "an unknown shape".into(), shape_text);
            return Err(Miss::new(label, "the attention is not over the tokens of each sequence")
                .expected(format!("[B, {tokens}, C]"), found));
        }
    }
    if values[0].1 > MAX_TOKENS {
        return Err(Miss::new(label, "the block is too large")
            .expected(format!("at most {MAX_TOKENS} tokens"), values[0].1.to_string()));
    }
    if attention.mask.is_some() || matches!(attention.bias, Some(Bias::Table(_))) {
        return Err(Miss::new(label, "the plugin takes no mask and no bias table").expected("none", "one"));
    }
    Ok(())
}

/// Types and sizes that the plugin takes.
fn check_sizes(graph: &Graph, label: &str, stream: ValueId, products: [&Linear; 4]) -> Outcome<()> {
    let [q, pool, kv, proj] = products;
    check_types(graph, label, stream, [q, proj])?;
    check_types(graph, label, stream, [pool, kv])?;
    let channels = graph.shape(stream).and_then(|s| s.last()?.int()).unwrap_or_default();
    let inner = proj.sizes[0];
    let expected = [[channels, inner], [channels, channels], [channels, 2 * inner], [inner, channels]];
    let found = products.map(|linear| linear.sizes);
    if found != expected {
        return Err(Miss::new(label, "the products do not lead from the channels to the heads and back")
            .expected(format!("{expected:?}"), format!("{found:?}")));
    }
    if channels % MULTIPLE != 0 || inner % MULTIPLE != 0 {
        return Err(Miss::new(label, "the tensor cores take no such sizes")
            .expected(format!("multiples of {MULTIPLE}"), format!("{channels} channels, {inner} of all heads")));
    }
    if channels > MAX_CHANNELS || inner > MAX_CHANNELS {
        return Err(Miss::new(label, "the block is too large").expected(
            format!("at most {MAX_CHANNELS} channels, and of all heads"),
            format!("{channels} and {inner}"),
        ));
    }
    Ok(())
}

/// Adds the nodes that lead from one value to another, by operands that are no constants, to those that the block covers.
fn between(graph: &Graph, mut value: ValueId, to: ValueId, covers: &mut Vec<NodeId>) {
    while value != to {
        let Some((id, node)) = graph.producer(value) else { return };
        covers.push(id);
        let Some(&operand) = node.inputs.iter().flatten().find(|&&v| graph.constant(v).is_none()) else { return };
        value = operand;
    }
}

/// A miss where what the nodes give, but for `out`, is read otherwise, too.
fn alone(graph: &Graph, covers: &[NodeId], out: ValueId) -> Outcome<()> {
    let outputs = covers.iter().flat_map(|&id| graph.node(id).outputs.iter().flatten());
    for &value in outputs.filter(|&&value| value != out) {
        let others = graph.uses(value).iter().filter(|user| !covers.contains(user)).count();
        if graph.is_output(value) || graph.is_named_elsewhere(value) || others > 0 {
            let found = if others > 0 { format!("{others} other uses") } else { "a graph output".into() };
            return Err(Miss::new(&graph.value(value).name, "an interior value is used otherwise too")
                .expected("uses in the block", found));
        }
    }
    Ok(())
}

/// The numbers of a constant vector of this type and size.
fn vector(graph: &Graph, value: ValueId, dtype: DType, size: i64) -> Outcome<Vec<f64>> {
    let (found, sizes, values) = weight(graph, value)?;
    if found != dtype || sizes.iter().product::<i64>() != size {
        return Err(Miss::new(&graph.value(value).name, "a weight is of another type or size than the tokens")
            .expected(format!("{}[{size}]", dtype.name()), format!("{}{sizes:?}", found.name())));
    }
    Ok(values)
}

/// Moves the residual adds before blocks into them.
pub fn residuals(engine: &mut Engine, kind: Kind, rule: &'static str) -> Result<()> {
    let graph = engine.graph();
    let blocks: Vec<NodeId> =
        graph.nodes().filter(|(_, n)| PooledAttnBlock::of(n).is_some()).map(|(id, _)| id).collect();
    for id in blocks {
        if engine.enabled(kind, rule)
            && let Some(patch) = absorb(engine.graph(), id, rule)
        {
            engine.apply_or_keep(patch, "residual add")?;
        }
    }
    Ok(())
}

/// The add before a block, moved into it.
fn absorb(graph: &Graph, id: NodeId, rule: &'static str) -> Option<Patch> {
    let node = graph.node(id);
    let block = PooledAttnBlock::of(node).filter(|_| node.int("residual") == Some(0))?;
    let (old, mut covers) = (node.output(0)?, vec![id]);
    let sum = back(graph, node.input(0)?, &mut covers).ok()?;
    let (add, _) = graph.producer(sum)?;
    let (a, b) = sum_of(graph, sum, graph.uses(sum))?;
    if graph.shape(sum) != graph.shape(old) {
        return None;
    }
    covers.push(add);
    let weights = PooledAttnBlock::weights(node)?;
    let mut patch = Patch::new(graph, rule);
    let y = patch.value_like(graph, &format!("{}/y", node.name), sum);
    let mut fused = block.node(a, Some(b), &weights);
    fused.name.clone_from(&node.name);
    patch.node(fused, [y]);
    patch.replace(old, y);
    patch.cover(covers);
    Some(patch)
}
