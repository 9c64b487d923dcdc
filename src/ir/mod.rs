//! The graph that analyses read and rewrites change: typed ids into arenas, maintained use lists.
//!
//! [`Graph`] holds the main graph of a model; subgraphs of control flow stay protobuf inside their node's
//! attributes, and the outer values they read count as uses of that node.

mod check;
mod convert;
pub mod diff;
mod dim;
mod graph;
pub mod print;

pub use check::check;
pub use convert::opset;
pub use diff::diff;
pub use dim::{Dim, Ints, Symbol, shape_text};
pub use graph::{Graph, Node, NodeId, Value, ValueId};
pub use print::print;
