//! What each fusion is worth: variants of a model, the engines of all of them, and the search for the fastest.
//!
//! [`variants`] says which forms of a model are compared, [`store`] builds and keeps their engines, and [`tune`] looks
//! for the sites that are faster left to TensorRT.

pub mod store;
pub mod tune;
pub mod variants;
