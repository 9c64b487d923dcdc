//! What is known of a graph: how its data moves.

pub mod movement;
