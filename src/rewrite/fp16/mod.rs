//! Conversion of a float32 graph to float16, typed throughout: what TensorRT 11 needs, which takes the types of the graph
//! as they are and has no fp16 flag.
//!
//! Weights and activations become float16, all but islands of nodes for which that would be wrong, or that ONNX does not
//! define in it. [`convert`] decides node by node and says why a node stays; casts stand at the borders of the islands.
//! Integers, booleans and float64 are not touched.

mod account;
mod apply;
mod between;
mod causes;
mod limits;
mod norms;
mod ops;
mod ranges;
mod survey;
mod weights;

use std::collections::{BTreeMap, HashSet};

pub use account::{Cause, CauseKind, Island, NodeCounts, Precision, WeightBytes};
pub use limits::{EXACT, HEADROOM, LARGEST, LIMIT, MOST_SUMMED, NOTED_LOSS, SMALLEST_NORMAL};
pub use ranges::{Range, Ranges};

use crate::analysis::infer::infer;
use crate::error::Result;
use crate::ir::{self, Graph, NodeId};
use crate::onnx::DType;
use crate::onnx::proto::ModelProto;
use crate::rewrite::cleanup;

/// How to convert.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Inputs and outputs of the model become float16 too; else they stay, with casts behind and before them.
    pub interface: bool,
}

/// Whether the model has float32 to convert, so that a calibration run is worth its time. Errors are those of [`convert`].
pub fn is_convertible(model: &ModelProto) -> Result<bool> {
    let mut graph = Graph::take(&mut model.clone())?;
    infer(&mut graph, &super::ops::shapes)?;
    Ok(nothing_to_convert(&graph).is_none())
}

/// Converts the model in place, plugin nodes included. `ranges` are of a run of this very model
/// ([`crate::verify::calibrate`]); without them only what the graph itself tells is used.
///
/// A model that is in float16 or bfloat16 already is left as it is, and the account says so.
///
/// # Errors
/// [`crate::Error::Invalid`] where the graph breaks a rule of ONNX. The model is then left without its graph.
pub fn convert(model: &mut ModelProto, ranges: Option<&Ranges>, options: &Options) -> Result<Precision> {
    let mut graph = Graph::take(model)?;
    infer(&mut graph, &super::ops::shapes)?;
    if let Some(note) = nothing_to_convert(&graph) {
        let account = Precision {
            nodes: node_counts(&graph, &HashSet::new()),
            weight_bytes: weight_bytes(&graph),
            notes: vec![note],
            ..Precision::default()
        };
        graph.restore(model);
        return Ok(account);
    }
    let survey = survey::Survey::new(&graph, ranges, options.interface)?;
    let (islands, mut notes) = (survey.islands(), survey.notes.clone());
    let work = apply::Work::new(&graph, &survey, options.interface, &mut notes);
    let casts: HashSet<_> = work.apply(&mut graph)?.into_iter().collect();
    // Casts to the type that a value has by now go, and what was declared is held against what follows.
    cleanup::cleanup(&mut graph, &super::ops::shapes, &mut BTreeMap::new())?;
    apply::cancel_casts(&mut graph);
    ir::check(&graph)?;
    let account = Precision {
        converted: true,
        calibration: ranges.map(|r| r.source.clone()),
        weight_bytes: weight_bytes(&graph),
        nodes: node_counts(&graph, &casts),
        casts: graph.order().iter().filter(|id| casts.contains(id)).count(),
        islands,
        notes,
    };
    graph.restore(model);
    Ok(account)
}

/// Why there is nothing to do, if so: by the elements of the weights, or where there are none by the nodes' outputs.
fn nothing_to_convert(graph: &Graph) -> Option<String> {
    let elements = |dtype: DType| -> usize {
        let weights = graph.value_ids().filter(|v| graph.dtype(*v) == Some(dtype) && !graph.uses(*v).is_empty());
        weights.filter_map(|v| graph.constant(v)?.len().ok()).sum()
    };
    let outputs = |dtype: DType| {
        graph.nodes().flat_map(|(_, n)| n.outputs.iter().flatten()).filter(|v| graph.dtype(**v) == Some(dtype)).count()
    };
    let [half, brain, float] = [DType::F16, DType::BF16, DType::F32].map(|d| (elements(d), outputs(d)));
    let by_weights = half.0 + brain.0 + float.0 > 0;
    let [half, brain, float] = [half, brain, float].map(|count| if by_weights { count.0 } else { count.1 });
    if float == 0 && half + brain == 0 {
        return Some("the model has no float32 weights or activations: nothing was converted".into());
    }
    if half + brain < float {
        return None;
    }
    let what = if by_weights { "weights" } else { "values" };
    let dtype = if half >= brain { DType::F16 } else { DType::BF16 };
    Some(format!("the model is in {dtype} already, and was left as it is: most of its {what} are"))
}

fn node_counts(graph: &Graph, casts: &HashSet<NodeId>) -> NodeCounts {
    let mut counts = NodeCounts::default();
    for (_, node) in graph.nodes().filter(|(id, _)| !casts.contains(id)) {
        let takes_any = ops::ports(node, graph.opset).is_ok_and(|p| p.reads_any);
        let inputs = node.inputs.iter().filter(|_| !takes_any);
        let types: Vec<DType> = inputs.chain(&node.outputs).flatten().filter_map(|v| graph.dtype(*v)).collect();
        if types.contains(&DType::F16) {
            counts.float16 += 1;
        } else if types.contains(&DType::F32) {
            counts.float32 += 1;
        } else {
            counts.other += 1;
        }
    }
    counts
}

fn weight_bytes(graph: &Graph) -> WeightBytes {
    let bytes = |dtype: DType| {
        let read = graph.value_ids().filter(|v| !graph.uses(*v).is_empty() || graph.is_output(*v));
        let tensors = read.filter(|v| graph.dtype(*v) == Some(dtype)).filter_map(|v| graph.constant(v));
        tensors.map(|t| t.byte_len().unwrap_or(0) as u64).sum()
    };
    WeightBytes { float16: bytes(DType::F16), float32: bytes(DType::F32) }
}
