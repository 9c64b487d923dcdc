//! ONNX files: the schema, reading and writing, external data. Nothing here knows the graph's meaning.

mod attribute;
mod dtype;
mod external;
mod load;
mod model;
pub mod proto;
mod save;
mod sink;
mod tensor;
mod walk;

pub use dtype::DType;
pub use load::{MAX_IR_VERSION, OPSETS, check_supported, from_bytes, load};
pub use model::{ExternalFile, Model};
pub use save::{SaveOptions, SaveStats, save, to_vec};
