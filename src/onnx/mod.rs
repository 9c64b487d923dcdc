//! ONNX files: the schema, reading and writing, external data. Nothing here knows the graph's meaning.

mod attribute;
mod dtype;
pub mod proto;
mod tensor;

pub use dtype::DType;
