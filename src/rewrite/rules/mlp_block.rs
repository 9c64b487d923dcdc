//! MLP blocks: a fused norm or none, two products with a GELU between them, and the residual add.
//!
//! ```text
//! s -> TrtOptLayerNorm -> MatMul w1 -> Add b1 -> GELU -> MatMul w2 -> Add b2 = m ;  y = s + m
//! becomes   TrtOptMlpBlock(s) -> y, or TrtOptMlpBlock(x, r) -> y where s = x + r is read by nothing else
//!
//! x -> MatMul w1 -> Add b1 -> GELU -> MatMul w2 -> Add b2 = m ;  y = x + m
//! becomes   TrtOptMlpBlock(x) -> y
//! ```
//!
//! Runs on what the rules of norms and GELUs have left, and once more on the products that convolutions of tokens become. A block that
//! does not match stays as it is, with its smaller fusions.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{LayerNorm, MAX_CHANNELS, MAX_HIDDEN, MULTIPLE, MlpBlock, MlpWeights};
use crate::rewrite::pattern::{fused_name, only_user};
use crate::rewrite::rules::block::{
    Fusion, Linear, Outcome, Rule, Wide, check_leads_back, check_products_of_few_rows, check_types, limits, other_name,
    output, single_use, sole_reader, sum_of,
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
        part_of: &part_of,
        fusion: &|graph, anchor, label| Ok(Block::of(graph, anchor, label, gpu)?.fusion(graph, label)),
    };
    // Of those that were sites before, the ledger has what became of them.
    let told: BTreeSet<NodeId> = engine.graph().order().iter().copied().filter(|&id| is_told(engine, id)).collect();
    rule.run_if_asked(engine, |graph, id| is_anchor(graph, id) && is_site(graph, id) && !told.contains(&id))
}

fn part_of(graph: &Graph, anchor: NodeId) -> Vec<NodeId> {
    match_gelu(graph, anchor).map(|gelu| gelu.covers).unwrap_or_default()
}

/// Whether the ledger has a site of the GELU.
fn is_told(engine: &Engine, anchor: NodeId) -> bool {
    let graph = engine.graph();
    if !is_anchor(graph, anchor) {
        return false;
    }
    let part = part_of(graph, anchor).into_iter().map(|id| graph.node_label(id)).collect();
    let label = engine.known_as(Kind::Gelu, &part).map_or_else(|| graph.node_label(anchor), str::to_owned);
    engine.has_site(Kind::MlpBlock, &label)
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
    /// What is normalized, or without a norm goes into the first product; the residual stream.
    stream: ValueId,
    /// `stream`, which is normalized, is the sum of these, which nothing else reads.
    added: Option<(ValueId, ValueId)>,
    /// Scale and bias.
    norm: Option<[ValueId; 2]>,
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
        let mut covers: Vec<NodeId> = up.covers.iter().chain(&down.covers).chain(&gelu.covers).copied().collect();
        let norm = if is_added(graph, up.x, result) { None } else { Some(Norm::before(graph, up.x, result)?) };
        if norm.is_none() {
            check_products_of_few_rows(label, gpu)?;
        }
        let stream = norm.as_ref().map_or(up.x, |norm| norm.x);
        let add = sole_reader(graph, result, "Add")?;
        if !is_added(graph, stream, result) {
            let reason = "what is added to the MLP's result is not what the norm reads";
            return Err(Miss::new(graph.node_label(add), reason)
                .expected(&graph.value(stream).name, other_name(graph, add, result)));
        }
        let out = output(graph, add)?;
        check_sizes(graph, label, stream, &up, &down)?;
        check_rows(graph, label, stream, [&up, &down], gpu)?;

        covers.extend(norm.iter().map(|norm| norm.id).chain([add]));
        // Without a norm the op adds nothing before.
        let added = norm.as_ref().and_then(|norm| sum_of(graph, stream, &[norm.id, add]));
        covers.extend(added.and_then(|_| graph.value(stream).producer));
        let (epsilon, norm) = norm.map_or((0.0, None), |norm| (norm.epsilon, Some(norm.parameters)));
        Ok(Self { op: MlpBlock { epsilon, tanh: gelu.tanh }, stream, added, norm, up, down, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Fusion {
        let name = fused_name(graph, label, "TrtOptMlpBlock");
        let mut patch = Patch::new(graph, RULE);
        let dtype = graph.dtype(self.stream).unwrap_or(DType::F32);
        let [b1, b2] = [(&self.up, "b1"), (&self.down, "b2")]
            .map(|(linear, suffix)| linear.offset(&mut patch, dtype, &format!("{name}/{suffix}")));
        let weights = MlpWeights { norm: self.norm, w1: self.up.w, b1, w2: self.down.w, b2 };
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

/// Whether an Add alone reads the MLP's result, and adds this value.
fn is_added(graph: &Graph, value: ValueId, result: ValueId) -> bool {
    let add = only_user(graph, result).map(|id| graph.node(id)).filter(|node| node.is("Add"));
    add.is_some_and(|node| node.inputs.contains(&Some(value)))
}

/// The fused norm over the last axis before a block.
struct Norm {
    id: NodeId,
    x: ValueId,
    /// Scale and bias.
    parameters: [ValueId; 2],
    epsilon: f32,
}

impl Norm {
    /// The one that makes the value, which is not added to the MLP's result.
    fn before(graph: &Graph, value: ValueId, result: ValueId) -> Outcome<Self> {
        let name = &graph.value(value).name;
        let (reason, op) = ("no fused norm of the last axis goes into the first product", "TrtOptLayerNorm");
        let neither = |at: String, found: String| {
            let other = other_name(graph, sole_reader(graph, result, "Add")?, result);
            Err(Miss::new(at, format!("{reason}, nor is what goes into it added to the MLP's result"))
                .expected(format!("{op}, or {name} added"), format!("{found}, and {other} added")))
        };
        let Some((id, node)) = graph.producer(value) else { return neither(name.clone(), "a graph input".into()) };
        let label = graph.node_label(id);
        let norm = match LayerNorm::of(node) {
            Some(norm) if norm.axes == 1 && norm.map.is_none() && LayerNorm::adds_nothing(node) => norm,
            Some(norm) => {
                let of_axes = || format!("a norm over {} axes", norm.axes);
                let found = if norm.axes == 1 { "a norm with windows or a residual".into() } else { of_axes() };
                return Err(Miss::new(label, reason).expected(op, found));
            }
            None => return neither(label, node.qualified_op()),
        };
        single_use(graph, value)?;
        let &[Some(x), Some(scale), Some(bias)] = &node.inputs[..] else {
            return Err(Miss::new(label, "the norm has other inputs than x, scale and bias"));
        };
        Ok(Self { id, x, parameters: [scale, bias], epsilon: norm.epsilon })
    }
}

/// Types and sizes that the plugin takes.
fn check_sizes(graph: &Graph, label: &str, stream: ValueId, up: &Linear, down: &Linear) -> Outcome<()> {
    check_types(graph, label, stream, [up, down])?;
    let [channels, hidden] = up.sizes;
    check_leads_back(label, [up, down])?;
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
