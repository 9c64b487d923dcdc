//! Project chores: what a Makefile would do.
fn main() {}
