//! Models as text: what `trt-opt print` and snapshot tests show.

use std::collections::BTreeMap;

use crate::analysis::infer;
use crate::error::Result;
use crate::ir::Graph;
use crate::onnx::proto::ModelProto;
use crate::rewrite::{cleanup, ops};

/// The graph of a model, ready for [`crate::ir::print()`] and [`crate::ir::diff()`].
///
/// Shapes are filled in as far as they can be inferred, so that the text does not depend on what the exporter wrote
/// down. Where the file contradicts itself, its own words stand. With `clean`, shape arithmetic is folded and what
/// computes nothing is dropped, as a rewrite does before anything else.
pub fn graph(mut model: ModelProto, clean: bool) -> Result<Graph> {
    let mut graph = Graph::take(&mut model)?;
    if clean {
        cleanup::cleanup(&mut graph, &ops::shapes, &mut BTreeMap::new())?;
        return Ok(graph);
    }
    let mut inferred = graph.clone();
    match infer::infer(&mut inferred, &ops::shapes) {
        Ok(()) => graph = inferred,
        Err(error) => tracing::warn!("shapes are shown as the file has them: {error}"),
    }
    Ok(graph)
}
