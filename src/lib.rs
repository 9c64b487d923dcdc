//! `trt-opt` rewrites ONNX vision transformers so that TensorRT runs them as few fused plugin nodes.

pub mod analysis;
pub mod contents;
pub mod doctor;
pub mod error;
pub mod ir;
mod machine;
pub mod onnx;
pub mod rewrite;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod verify;

pub use error::{Error, Result};
