//! What a model consists of and costs, in numbers.

use serde::Serialize;

use crate::analysis::cost::{self, Cost};
use crate::error::Result;
use crate::ir::Graph;
use crate::onnx::Model;
use crate::rewrite::ops;
use crate::text;

/// Counts and estimated costs of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Contents {
    pub nodes: usize,
    /// Elements of the weights in floating point.
    pub parameters: u64,
    pub weight_bytes: u64,
    /// The batch size that the estimates are for, where the model leaves it open.
    pub batch: i64,
    pub estimate: Estimate,
    /// By op, the most bytes first.
    pub ops: Vec<Op>,
}

/// Estimated cost of one run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Estimate {
    /// Read and written in GPU memory.
    pub bytes: u64,
    /// A multiply-add counts as 2.
    pub flops: u64,
    /// Multiply-adds of matrix products and convolutions.
    pub macs: u64,
    /// Kernels launched.
    pub launches: f64,
}

/// All nodes of one op.
#[derive(Clone, Debug, Serialize)]
pub struct Op {
    /// `MatMul`, or with its domain, `trt.opt.TrtOptLayerNorm`.
    pub op: String,
    pub nodes: usize,
    #[serde(flatten)]
    pub estimate: Estimate,
}

impl From<Cost> for Estimate {
    fn from(cost: Cost) -> Self {
        Self { bytes: cost.bytes, flops: cost.flops, macs: cost.macs, launches: cost.launches }
    }
}

impl Contents {
    pub fn of(model: &Model, batch: i64) -> Result<Self> {
        Ok(Self::of_graph(&text::graph(model.proto.clone(), false)?, batch))
    }

    /// Of a graph whose shapes have been inferred.
    pub fn of_graph(graph: &Graph, batch: i64) -> Self {
        let (mut parameters, mut weight_bytes) = (0, 0);
        for value in graph.value_ids().filter(|v| !graph.uses(*v).is_empty() || graph.is_output(*v)) {
            let Some(tensor) = graph.constant(value) else { continue };
            weight_bytes += tensor.byte_len().unwrap_or(0) as u64;
            if tensor.dtype().is_ok_and(|d| d.is_float()) {
                parameters += tensor.len().unwrap_or(0) as u64;
            }
        }
        let table = cost::table(graph, batch, &ops::cost);
        let total: Cost = table.iter().map(|row| row.cost).sum();
        let ops = table.into_iter().map(|row| Op { op: row.op, nodes: row.nodes, estimate: row.cost.into() }).collect();
        Self { nodes: graph.order().len(), parameters, weight_bytes, batch, estimate: total.into(), ops }
    }

    /// Nodes of an op.
    pub fn count(&self, op: &str) -> usize {
        self.ops.iter().find(|o| o.op == op).map_or(0, |o| o.nodes)
    }
}
