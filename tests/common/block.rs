//! What the tests of all kinds of block share.
#![allow(dead_code)] // Each test file uses some of it.

use trt_opt::onnx::proto::{ModelProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options};
use trt_opt::{testing, verify};

use super::common;

/// The default kinds and these.
pub fn with(kinds: &[Kind]) -> Options {
    let mut options = Options::default();
    options.kinds.extend(kinds);
    options
}

pub fn nodes<'a>(model: &'a ModelProto, op: &str) -> Vec<&'a NodeProto> {
    model.graph.as_ref().unwrap().node.iter().filter(|n| n.op_type() == op).collect()
}

pub fn int(node: &NodeProto, name: &str) -> i64 {
    node.attribute.iter().find(|a| a.name() == name).unwrap().i.unwrap()
}

/// Weights that their name chooses.
pub fn weight(name: &str, dims: &[i64]) -> TensorProto {
    let count = dims.iter().product::<i64>();
    let mut random = common::Random(name.bytes().map(u64::from).sum());
    let values: Vec<f32> = (0..count).map(|_| (random.below(2000) as f32 - 1000.0) / 2000.0).collect();
    TensorProto::from_f32(name, dims, &values)
}

/// How a rewritten export is compared with the original.
pub fn comparison(export: &str) -> verify::Options {
    verify::Options {
        batch: export.contains("_dyn").then_some(3),
        threads: Some(1),
        // A block rounds less than its parts do.
        rtol: export.contains("fp16").then_some(1e-2),
        ..verify::Options::default()
    }
}

/// The one attention block is missed for its size, just over the limit, and its parts are fused.
pub fn left_for_its_size(rewrite: &testing::Rewrite, kind: Kind, rows: &str) {
    let ledger = rewrite.ledger();
    let missed: Vec<_> = ledger.missed(kind).collect();
    assert_eq!((missed.len(), ledger.count(kind).total), (1, 1), "{missed:?}");
    assert_eq!(missed[0].reason.as_deref(), Some("its products are so large that TensorRT's are faster"));
    assert_eq!(missed[0].found, Some(format!("0.351 GFLOP, rows {rows}")));
    assert!(missed[0].expected.as_deref().is_some_and(|e| e.starts_with("at most 0.350 GFLOP")), "{missed:?}");
    assert_eq!([Kind::LayerNorm, Kind::Attention].map(|k| ledger.count(k).fused), [1, 1]);
}
