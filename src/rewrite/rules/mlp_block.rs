//! MLP blocks: a fused norm, two products with a GELU between them, and the residual add.
//!
//! ```text
//! s -> TrtOptLayerNorm -> MatMul w1 -> Add b1 -> GELU -> MatMul w2 -> Add b2 = m ;  y = s + m
//! becomes   TrtOptMlpBlock(s) -> y, or TrtOptMlpBlock(x, r) -> y where s = x + r is read by nothing else
//! ```
//!
//! Runs on what the rules of norms and GELUs have left. A block that does not match stays as it is, with its smaller
//! fusions.

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{LayerNorm, MAX_CHANNELS, MAX_HIDDEN, MULTIPLE, MlpBlock, MlpWeights};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::block::{
    Fusion, Linear, Outcome, Rule, Wide, check_types, limits, output, single_use, sole_reader, sum_of,
};
use crate::rewrite::rules::gelu::{Gelu, is_anchor, match_gelu};
use crate::rewrite::{ComputeCapability, Kind};

const RULE: &str = "mlp-block";

pub fn run(engine: &mut Engine) -> Result<()> {
    let gpu = engine.options().compute_capability;
    let rule = Rule {
        kind: Kind::MlpBlock,
        name: RULE,
        part: Kind::Gelu,
        part_of: &|graph, anchor| match_gelu(graph, anchor).map(|gelu| gelu.covers).unwrap_or_default(),
        fusion: &|graph, anchor, label| Ok(Block::of(graph, anchor, label, gpu)?.fusion(graph, label)),
    };
    rule.run_if_asked(engine, |graph, id| is_anchor(graph, id) && is_site(graph, id))
}

/// Whether a product goes into the GELU: else, as behind a convolution, it is no MLP's.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let Ok(gelu) = match_gelu(graph, id) else { return false };
    let product = |v: ValueId| graph.producer(v).is_some_and(|(_, n)| n.is("MatMul") || n.is("Gemm"));
    let sum = graph.producer(gelu.x).filter(|(_, n)| n.is("Add"));
    product(gelu.x) || sum.is_some_and(|(_, n)| n.inputs.iter().flatten().copied().any(product))
}

/// A whole block.
struct Block {
    op: MlpBlock,
    /// What is normalized; the residual stream.
    stream: ValueId,
    /// `stream` is the sum of these, which nothing else reads.
    added: Option<(ValueId, ValueId)>,
    scale: ValueId,
    bias: ValueId,
    up: Linear,
    down: Linear,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Block {
    fn of(graph: &Graph, anchor: NodeId, label: &str, gpu: Option<ComputeCapability>) -> Outcome<Self> {
        let gelu: Gelu = match_gelu(graph, anchor)?;
        let up = Linear::before(graph, gelu.x, label)?;
        let (down, result) = Linear::after(graph, gelu.out)?;
        let (norm_id, norm) = norm_before(graph, up.x)?;
        single_use(graph, up.x)?;
        let &[Some(stream), Some(scale), Some(bias)] = &graph.node(norm_id).inputs[..] else {
            return Err(Miss::new(graph.node_label(norm_id), "the norm has other inputs than x, scale and bias"));
        };
        let add = sole_reader(graph, result, "Add")?;
        let operands = [graph.node(add).input(0), graph.node(add).input(1)];
        if !operands.contains(&Some(stream)) {
            let reason = "what is added to the MLP's result is not what the norm reads";
            return Err(Miss::new(graph.node_label(add), reason)
                .expected(&graph.value(stream).name, other_name(graph, operands, result)));
        }
        let out = output(graph, add)?;
        check_sizes(graph, label, stream, &up, &down)?;
        check_rows(graph, label, stream, [&up, &down], gpu)?;

        let mut covers: Vec<NodeId> = up.covers.iter().chain(&down.covers).chain(&gelu.covers).copied().collect();
        covers.extend([norm_id, add]);
        let added = sum_of(graph, stream, &[norm_id, add]);
        covers.extend(added.and_then(|_| graph.value(stream).producer));
        Ok(Self {
            op: MlpBlock { epsilon: norm.epsilon, tanh: gelu.tanh },
            stream,
            added,
            scale,
            bias,
            up,
            down,
            out,
            covers,
        })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Fusion {
        let name = fused_name(graph, label, "TrtOptMlpBlock");
        let mut patch = Patch::new(graph, RULE);
        let dtype = graph.dtype(self.stream).unwrap_or(DType::F32);
        let [b1, b2] = [(&self.up, "b1"), (&self.down, "b2")]
            .map(|(linear, suffix)| linear.offset(&mut patch, dtype, &format!("{name}/{suffix}")));
        let weights = MlpWeights { scale: self.scale, bias: self.bias, w1: self.up.w, b1, w2: self.down.w, b2 };
        let (x, residual) = self.added.map_or((self.stream, None), |(a, b)| (a, Some(b)));
        let y = patch.value_like(graph, &name, self.out);
        let mut fused = self.op.node(x, residual, &weights);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        Fusion { patch, name, covers: self.covers }
    }
}

/// The operand that is not `this`, by name.
fn other_name(graph: &Graph, operands: [Option<ValueId>; 2], this: ValueId) -> String {
    let other = operands.into_iter().flatten().find(|&v| v != this);
    other.map_or("the same value twice".into(), |v| graph.value(v).name.clone())
}

/// The fused norm over the last axis that makes the value.
fn norm_before(graph: &Graph, value: ValueId) -> Outcome<(NodeId, LayerNorm)> {
    let name = &graph.value(value).name;
    let miss = |at: String, found: String| {
        Err(Miss::new(at, "no fused norm of the last axis goes into the first product")
            .expected("TrtOptLayerNorm", found))
    };
    let Some((id, node)) = graph.producer(value) else { return miss(name.clone(), "a graph input".into()) };
    let label = graph.node_label(id);
    let norm = LayerNorm::of(node);
    match norm {
        Some(norm) if norm.axes == 1 && norm.map.is_none() && LayerNorm::adds_nothing(node) => Ok((id, norm)),
        Some(norm) if norm.axes != 1 => miss(label, format!("a norm over {} axes", norm.axes)),
        Some(_) => miss(label, "a norm with windows or a residual".into()),
        None => miss(label, node.qualified_op()),
    }
}

/// Types and sizes that the plugin takes.
fn check_sizes(graph: &Graph, label: &str, stream: ValueId, up: &Linear, down: &Linear) -> Outcome<()> {
    check_types(graph, label, stream, [up, down])?;
    let [channels, hidden] = up.sizes;
    if down.sizes != [hidden, channels] {
        return Err(Miss::new(label, "the second product does not lead back to the channels")
            .expected(format!("[{hidden}, {channels}]"), format!("[{}, {}]", down.sizes[0], down.sizes[1])));
    }
    if channels % MULTIPLE != 0 || hidden % MULTIPLE != 0 {
        return Err(Miss::new(label, "the tensor cores take no such sizes")
            .expected(format!("multiples of {MULTIPLE}"), format!("{channels} channels, {hidden} hidden columns")));
    }
    if channels > MAX_CHANNELS || hidden > MAX_HIDDEN {
        return Err(Miss::new(label, "the block is too large").expected(
            format!("at most {MAX_CHANNELS} channels and {MAX_HIDDEN} hidden columns"),
            format!("{channels} and {hidden}"),
        ));
    }
    Ok(())
}

/// A number of rows at which the plugin is faster.
fn check_rows(
    graph: &Graph,
    label: &str,
    stream: ValueId,
    products: [&Linear; 2],
    gpu: Option<ComputeCapability>,
) -> Outcome<()> {
    let channels = products[0].sizes[0];
    if channels <= limits::MLP_ANY_ROWS_CHANNELS {
        return Ok(());
    }
    let rows = match graph.shape(stream) {
        Some([rows @ .., _]) => rows,
        _ => return Err(Miss::new(label, "the shape of its tokens is not known")),
    };
    let small = format!(", or at most {} channels", limits::MLP_ANY_ROWS_CHANNELS);
    Wide { gpu, channels: &[channels] }.check_flops(label, rows, &products, limits::MLP_FLOPS, &small)
}
