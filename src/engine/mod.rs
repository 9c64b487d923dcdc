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

mod bridge;
mod error;
mod library;
mod log;
mod plugins;

pub use error::{Error, Result};
pub use library::{Library, Version, compiled_for};
pub use plugins::{Creator, Field, FieldType, Interface, PluginLibrary, Registered, Value};
