//! What can be known of a graph without running it: shapes and small contents, constants, data movement, cost.

pub mod cost;
pub mod eval;
pub mod infer;
pub mod movement;
