//! Rewriting: the engine of rules, the ledger of sites, the plugin ops, and the rules themselves.
//!
//! [`fuse`] is the whole of it: clean-up, lowering to what the target reads, the rules of each kind, clean-up again.

pub mod cleanup;
pub mod engine;
pub mod fp16;
pub mod ledger;
pub mod legalize;
pub mod ops;
mod pattern;
mod rules;
mod target;

use std::collections::{BTreeMap, BTreeSet};

pub use ledger::{Kind, Ledger, Site, Status};
pub use ops::add_reference_bodies;
pub use target::{ComputeCapability, Target};

use crate::error::Result;
use crate::ir::{self, Graph};
use crate::onnx::proto::ModelProto;

/// What to rewrite.
#[derive(Clone, Debug)]
pub struct Options {
    pub target: Target,
    /// Of the GPU that the model will run on. Not known: only blocks that pay without the products of any one are made.
    pub compute_capability: Option<ComputeCapability>,
    /// Kinds to fuse; [`Kind::DEFAULT`] by default.
    pub kinds: BTreeSet<Kind>,
    /// Rules, by name, that are left out.
    pub skip: BTreeSet<String>,
    /// Sites that get no plugin node though the target has one.
    pub standard: Vec<Standard>,
    /// Stop after this many patches, to find a bad one by bisection.
    pub stop_after: Option<usize>,
}

/// Sites that are brought into the form that TensorRT fuses by itself, as all are for [`Target::Native`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standard {
    pub kind: Kind,
    /// The site that the ledger knows by this node; all of the kind by default.
    pub node: Option<String>,
    /// What the ledger says of them.
    pub reason: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            target: Target::Trt8,
            compute_capability: None,
            kinds: Kind::DEFAULT.into(),
            skip: BTreeSet::new(),
            standard: vec![],
            stop_after: None,
        }
    }
}

/// Rewrites the model in place. `name` is the file name that the ledger gives.
///
/// `progress` is told the rule at work and the patches made so far. On an error the model is left without its graph.
pub fn fuse(
    model: &mut ModelProto,
    name: &str,
    options: &Options,
    progress: &mut dyn FnMut(&str, usize),
) -> Result<Ledger> {
    let mut counts = BTreeMap::new();
    let mut graph = Graph::take(model)?;
    ir::check(&graph)?;
    cleanup::cleanup(&mut graph, &ops::shapes, &mut counts)?;
    if let Some(wanted) = wanted_opset(&graph, options.target) {
        let refusals = legalize::to_opset(&mut graph, wanted)?;
        for refusal in &refusals {
            tracing::warn!("the model stays at opset {}: {refusal}", graph.opset);
        }
        if refusals.is_empty() {
            cleanup::cleanup(&mut graph, &ops::shapes, &mut counts)?;
        }
    }
    let mut engine = engine::Engine::new(graph, options, progress);
    rules::run(&mut engine)?;
    let (mut graph, sites, patches) = engine.into_parts();
    cleanup::cleanup(&mut graph, &ops::shapes, &mut counts)?;
    cleanup::separate_shared_initializers(&mut graph);
    graph.remove_unused_initializers();
    ir::check(&graph)?;
    graph.restore(model);
    ops::import_domain(model);
    counts.extend(patches);
    Ok(Ledger::new(name, options.target.name(), sites, counts))
}

/// The opset that the rules and the target want, where it is not the model's.
fn wanted_opset(graph: &Graph, target: Target) -> Option<i64> {
    // `LayerNormalization`, which a model without plugins is given, came with 17.
    let oldest = if target == Target::Native { 17 } else { graph.opset };
    // The rules know attentions by their parts; `Attention` came with 23.
    let whole_attention = graph.nodes().any(|(_, n)| n.is("Attention"));
    let newest = if whole_attention { target.newest_opset().min(22) } else { target.newest_opset() };
    let wanted = graph.opset.clamp(oldest.min(newest), newest);
    (wanted != graph.opset).then_some(wanted)
}
