//! ONNX files: the schema, reading and writing, external data. Nothing here knows the graph's meaning.

mod dtype;
pub mod proto;

pub use dtype::DType;
