//! GELUs behind a matrix product, with the add of the product's offset, as one memory-bound op.
//!
//! ```text
//! MatMul | Gemm -> [Add b] -> GELU = y   becomes   MatMul | Gemm -> TrtOptGelu(b) -> y
//! ```
//!
//! Runs on what the rule of GELUs and the blocks have left. TensorRT fuses a GELU into a convolution before it, but not into
//! a product.

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::Gelu;
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::block::{Fusion, Outcome, Rule, single_use};
use crate::rewrite::rules::gelu::{is_anchor, match_gelu};
use crate::rewrite::{Kind, Site, Status};

const RULE: &str = "bias-gelu";
const CONVOLUTION: &str = "TensorRT fuses it into the convolution before it";

pub fn run(engine: &mut Engine) -> Result<()> {
    if !engine.options().kinds.contains(&Kind::BiasGelu) {
        return Ok(());
    }
    let graph = engine.graph();
    let anchors = graph.order().iter().copied().filter(|&id| is_anchor(graph, id));
    let (behind, others): (Vec<NodeId>, Vec<NodeId>) = anchors.partition(|&id| is_behind_convolution(graph, id));
    let kept: Vec<String> = behind.into_iter().map(|id| label_of(engine, id)).collect();
    for label in kept {
        engine.record(Site::new(Kind::BiasGelu, Status::Kept, &label, RULE).because(CONVOLUTION));
    }
    let rule = Rule {
        kind: Kind::BiasGelu,
        name: RULE,
        part: Kind::Gelu,
        part_of: &part_of,
        fusion: &|graph, anchor, label| Ok(Behind::of(graph, anchor, label)?.fusion(graph, label)),
    };
    rule.run(engine, others)
}

fn part_of(graph: &Graph, anchor: NodeId) -> Vec<NodeId> {
    match_gelu(graph, anchor).map(|gelu| gelu.covers).unwrap_or_default()
}

/// The node that the ledger knows a GELU by.
fn label_of(engine: &Engine, anchor: NodeId) -> String {
    let graph = engine.graph();
    let part = part_of(graph, anchor).into_iter().map(|id| graph.node_label(id)).collect();
    engine.known_as(Kind::Gelu, &part).map_or_else(|| graph.node_label(anchor), str::to_owned)
}

/// Whether a convolution goes into the GELU, by itself or with an offset or a folded norm behind it.
fn is_behind_convolution(graph: &Graph, anchor: NodeId) -> bool {
    let Ok(gelu) = match_gelu(graph, anchor) else { return false };
    let mut value = gelu.x;
    while let Some((_, node)) = graph.producer(value) {
        let constant = |i: usize| node.input(i).is_some_and(|v| graph.constant(v).is_some());
        value = match node.op.as_str() {
            "Conv" => return true,
            "BatchNormalization" => match node.input(0) {
                Some(x) => x,
                None => return false,
            },
            "Add" | "Mul" => match (node.input(0), node.input(1)) {
                (Some(x), _) if constant(1) => x,
                (_, Some(x)) if constant(0) => x,
                _ => return false,
            },
            _ => return false,
        };
    }
    false
}

/// A GELU behind a product.
struct Behind {
    op: Gelu,
    x: ValueId,
    bias: Option<ValueId>,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Behind {
    fn of(graph: &Graph, anchor: NodeId, label: &str) -> Outcome<Self> {
        let gelu = match_gelu(graph, anchor)?;
        let mut covers = gelu.covers;
        let (x, bias) = match graph.producer(gelu.x) {
            Some((add, node)) if node.is("Add") => {
                let (x, bias) = offset(graph, add, gelu.x)?;
                single_use(graph, x)?;
                covers.push(add);
                (x, Some(bias))
            }
            _ => (gelu.x, None),
        };
        if !graph.producer(x).is_some_and(|(_, n)| n.is("MatMul") || n.is("Gemm")) {
            let found = graph.producer(x).map_or_else(|| "a graph input".into(), |(_, n)| n.qualified_op());
            return Err(Miss::new(label, "no matrix product goes into it").expected("MatMul or Gemm", found));
        }
        let name = |t: Option<DType>| t.map_or("an unknown type", DType::name);
        let dtype = graph.dtype(x);
        if !matches!(dtype, Some(DType::F32 | DType::F16)) {
            let reason = "the plugin takes no such type";
            return Err(Miss::new(label, reason).expected("float or float16", name(dtype)));
        }
        if let Some(odd) = bias.into_iter().chain([gelu.out]).find(|&v| graph.dtype(v) != dtype) {
            return Err(Miss::new(&graph.value(odd).name, "it is of another type than the product")
                .expected(name(dtype), name(graph.dtype(odd))));
        }
        Ok(Self { op: Gelu { tanh: gelu.tanh }, x, bias, out: gelu.out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Fusion {
        let name = fused_name(graph, label, "TrtOptGelu");
        let mut patch = Patch::new(graph, RULE);
        let y = patch.value_like(graph, &name, self.out);
        let mut fused = self.op.node(self.x, self.bias);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        Fusion { patch, name, covers: self.covers }
    }
}

/// What the add that makes `sum` adds its offset to, and the offset: one constant a column.
fn offset(graph: &Graph, add: NodeId, sum: ValueId) -> Outcome<(ValueId, ValueId)> {
    let (node, label) = (graph.node(add), graph.node_label(add));
    let is_constant = |v: ValueId| graph.constant(v).is_some();
    let (x, bias) = match (node.input(0), node.input(1)) {
        (Some(x), Some(b)) if is_constant(b) && !is_constant(x) => (x, b),
        (Some(b), Some(x)) if is_constant(b) && !is_constant(x) => (x, b),
        _ => {
            let reason = "what goes into the GELU is no product with an offset";
            return Err(Miss::new(label, reason).expected("a constant offset", "two tensors"));
        }
    };
    let text = |v: ValueId| graph.shape(v).map_or_else(|| "an unknown shape".into(), shape_text);
    let columns = graph.shape(sum).and_then(<[_]>::last).filter(|columns| columns.int().is_some());
    if columns.is_none() || graph.shape(bias) != columns.map(std::slice::from_ref) || graph.shape(x) != graph.shape(sum)
    {
        return Err(Miss::new(label, "the offset is not one value a column")
            .expected(format!("the last axis of {}", text(sum)), text(bias)));
    }
    Ok((x, bias))
}
