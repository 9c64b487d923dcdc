//! The error type of the crate, and the exit code that each kind of error leads to.

use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Every message names the file, node or tensor, what was found, what was expected,
/// and where it helps what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },

    /// The bytes are not an ONNX model that this crate can hold.
    #[error("{}: {what}", path.display())]
    Malformed { path: PathBuf, what: String },

    /// The model breaks a rule of ONNX, or a figure cannot be; `place` names the node, value, tensor or figure.
    #[error("{place}: {what}")]
    Invalid { place: String, what: String },

    /// External data that is missing, too short, or outside the model's folder.
    #[error("tensor '{tensor}': external data {location:?}: {what}")]
    ExternalData { tensor: String, location: String, what: String },

    /// A rewrite that would have changed what the graph computes or its interface; a bug of a rule.
    #[error(
        "rule '{rule}' proposed a wrong patch at {place}: {what}; please report it, and use --skip {rule} until it is mended"
    )]
    Patch { rule: String, place: String, what: String },

    /// A request that makes no sense for this model or this machine.
    #[error("{0}")]
    Usage(String),

    /// Something the program needs is not on this machine.
    #[error("{what} is not available: {why}\n  {hint}")]
    Missing { what: &'static str, why: String, hint: String },

    /// A run finished and its check said no (`verify`, `--require`).
    #[error("{0}")]
    CheckFailed(String),

    /// A library of TensorRT, or what it says.
    #[cfg(feature = "engine")]
    #[error(transparent)]
    Engine(#[from] crate::engine::Error),

    /// ONNX Runtime refused a model or an input.
    #[error("ONNX Runtime, {context}: {message}")]
    Runtime { context: String, message: String },
}

/// The exit codes of the program, as `trt-opt --help` documents them.
pub mod exit {
    pub const CHECK_FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const BAD_INPUT: u8 = 3;
    pub const MISSING: u8 = 4;
    pub const IO: u8 = 5;
    pub const INTERNAL: u8 = 70;
}

impl Error {
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub fn malformed(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.as_ref().to_owned(), what: what.into() }
    }

    pub fn invalid(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Invalid { place: place.into(), what: what.into() }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::CheckFailed(_) => exit::CHECK_FAILED,
            Self::Usage(_) => exit::USAGE,
            Self::Malformed { .. } | Self::Invalid { .. } | Self::ExternalData { .. } | Self::Runtime { .. } => {
                exit::BAD_INPUT
            }
            Self::Missing { .. } => exit::MISSING,
            Self::Io { .. } => exit::IO,
            #[cfg(feature = "engine")]
            Self::Engine(error) => error.exit_code(),
            Self::Patch { .. } => exit::INTERNAL,
        }
    }
}
