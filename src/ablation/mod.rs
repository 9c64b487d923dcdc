//! What each fusion is worth: variants of a model, the engines of all of them, and the search for the fastest.
//!
//! [`variants`] says which forms of a model are compared, [`store`] builds and keeps their engines, and [`tune`] looks
//! for the sites that are faster left to TensorRT. These know no GPU. [`workshop`] builds and times on one, [`tuning`]
//! finds the fastest form of a model there, and [`study`] measures all variants of several models in one run.

pub mod store;
#[cfg(feature = "engine")]
pub mod study;
pub mod tune;
#[cfg(feature = "engine")]
pub mod tuning;
pub mod variants;
#[cfg(feature = "engine")]
pub mod workshop;
