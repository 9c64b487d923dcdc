//! `trt-opt` rewrites ONNX vision transformers so that TensorRT runs them as few fused plugin nodes.
//!
//! [`onnx`] reads and writes files, [`ir`] is the graph, [`analysis`] knows shapes, contents, data movement and cost,
//! [`rewrite`] changes the graph and accounts for every site, and [`verify`] runs two models in ONNX Runtime and compares
//! them. [`measure`] times and compares what runs, and [`report`] makes tables, charts and a page of it. The command line is
//! no more than these:
//!
//! ```no_run
//! use std::path::Path;
//! use trt_opt::{onnx, rewrite, verify};
//!
//! let input = Path::new("swin.onnx");
//! let mut model = onnx::load(input)?;
//! let ledger = rewrite::fuse(&mut model.proto, "swin.onnx", &rewrite::Options::default(), &mut |_, _| {})?;
//! println!("{} of {} norms fused", ledger.count(rewrite::Kind::LayerNorm).fused, ledger.count(rewrite::Kind::LayerNorm).total);
//! let rewritten = verify::Source::Model { name: "rewritten", model: &model };
//! verify::compare(input, rewritten, &verify::Options::default())?.check()?;
//! onnx::save(&model, Path::new("swin.fused.onnx"), &onnx::SaveOptions::default())?;
//! # Ok::<(), trt_opt::Error>(())
//! ```

pub mod ablation;
pub mod analysis;
#[cfg(feature = "engine")]
pub mod bench;
pub mod contents;
pub mod doctor;
#[cfg(feature = "engine")]
pub mod engine;
pub mod error;
pub mod files;
pub mod ir;
mod machine;
pub mod measure;
pub mod onnx;
pub mod plugins;
pub mod report;
pub mod rewrite;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod verify;

pub use error::{Error, Result};
