//! `trt-opt` rewrites ONNX vision transformers so that TensorRT runs them as few fused plugin nodes.

pub mod analysis;
pub mod error;
pub mod ir;
pub mod onnx;
pub mod rewrite;

pub use error::{Error, Result};
