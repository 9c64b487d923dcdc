//! TensorRT: its library, plugin libraries, engines.
//!
//! The C++ side is `cpp/`, the one place besides the plugins that includes TensorRT's headers. The program is compiled
//! with the headers of one major version ([`compiled_for`]) and loads a library of that version at run time
//! ([`Library::load`]); nothing is linked, so all else works where there is no TensorRT.
//!
//! ```no_run
//! use std::path::Path;
//! use trt_opt::engine::{Library, PluginLibrary};
//!
//! let plugins = PluginLibrary::open(Path::new("libtrt_opt_plugins.so"))?;
//! let tensorrt = Library::load(None)?;
//! let registered = tensorrt.register(&plugins.path)?;
//! for creator in plugins.creators().unwrap_or_default() {
//!     assert!(tensorrt.creator(creator.name(), creator.version(), creator.namespace())?.is_some());
//! }
//! # drop(registered);
//! # Ok::<(), trt_opt::engine::Error>(())
//! ```
//!
//! [`build()`] makes an engine of an ONNX file, [`Engine`] is one deserialized, and a [`Session`] is an engine with
//! memory for its inputs and outputs on a [`Gpu`], which runs, is captured as a CUDA graph, timed and profiled:
//!
//! ```no_run
//! use std::path::Path;
//! use trt_opt::engine::{BuildOptions, Engine, Gpu, Library, Session, build};
//!
//! let tensorrt = Library::load(None)?;
//! let options = BuildOptions { fp16: true, plugins: vec!["libtrt_opt_plugins.so".into()], ..Default::default() };
//! let plan = build(&tensorrt, Path::new("swin.fused.onnx"), &options, None)?;
//! plan.check_half()?;
//! let engine = Engine::deserialize(&tensorrt, &plan.bytes, &options.plugins)?;
//! let mut session = Session::new(&engine, &Gpu::first()?, &Default::default())?;
//! session.fill_random(0)?;
//! let kernels = session.capture()?.kernels;
//! println!("{kernels} kernels, {:.0} us", session.time_graph()?);
//! # Ok::<(), trt_opt::engine::Error>(())
//! ```
//!
//! Whatever needs a GPU fails with [`Error::NoGpu`] where there is none, before TensorRT is asked: it does not check.

mod bridge;
mod build;
mod error;
mod gpu;
mod layers;
mod library;
mod log;
mod plugins;
mod progress;
mod run;
mod timings;

pub use build::{BuildOptions, Builder, Plan, Shape, TacticSources, build};
pub use error::{Error, Result};
pub use gpu::{Description, Gpu};
pub use layers::{Layer, Layers, Precision};
pub use library::{Library, Version, compiled_for};
pub use plugins::{Creator, Field, FieldType, Interface, PluginLibrary, Registered, Value};
pub use progress::Progress;
pub use run::{Engine, GraphSize, LayerTime, Session, TensorInfo};
