//! What can go wrong with TensorRT's libraries and with what is asked of them.

use std::path::{Path, PathBuf};

use super::log::Scope;
use crate::error::exit;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{what} was not found: no {names} in {places}\n  put its folder into LD_LIBRARY_PATH, name it by \
         TENSORRT_LIB_DIR, or pip install the tensorrt package of that version in an environment that is active or in \
         ./.env"
    )]
    NotFound { what: String, names: String, places: String },

    #[error("{} is not a shared library: {why}", path.display())]
    NotALibrary { path: PathBuf, why: String },

    /// The loader refuses it: a library that it needs is missing, or a symbol.
    #[error("{} cannot be loaded: {why}", path.display())]
    NotLoaded { path: PathBuf, why: String },

    #[error(
        "{} is of TensorRT {found}; this program was compiled for TensorRT {expected}: use a library of that major \
         version, or compile with TENSORRT_INCLUDE_DIR naming the headers of TensorRT {found}", path.display()
    )]
    WrongMajor { path: PathBuf, found: String, expected: u32 },

    #[error("{} has no symbol {symbol}: {why}", path.display())]
    MissingSymbol { path: PathBuf, symbol: String, why: String },

    #[error("no GPU can be used: {why}\n  engines are built and run on an NVIDIA GPU with its driver only")]
    NoGpu { why: String },

    /// The parser does not take the model; every error with its node.
    #[error("TensorRT does not take {}:\n  {errors}", path.display())]
    Parse { path: PathBuf, errors: String },

    #[error("the engine was to be fp16, and {share} layers that compute do so in 16 bits: {why}")]
    NotHalf { share: String, why: String },

    /// A request that this TensorRT or engine cannot meet.
    #[error("{what}: {why}")]
    Option { what: String, why: String },

    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: std::io::Error },

    /// A file that could not be written.
    #[error(transparent)]
    Write(#[from] Box<crate::error::Error>),

    #[error("CUDA, {action}: {message}")]
    Cuda { action: String, message: String },

    /// TensorRT, or a plugin, said no.
    #[error("{action}: {message}")]
    Refused { action: String, message: String },
}

impl Error {
    pub(super) fn not_a_library(path: &Path, why: impl Into<String>) -> Self {
        Self::NotALibrary { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. } | Self::Parse { .. } | Self::Cuda { .. } => exit::BAD_INPUT,
            Self::NotHalf { .. } => exit::CHECK_FAILED,
            Self::Option { .. } => exit::USAGE,
            Self::File { .. } => exit::IO,
            Self::Write(error) => error.exit_code(),
            _ => exit::MISSING,
        }
    }
}

/// Runs a call of the bridge; what TensorRT logged meanwhile becomes part of the error.
pub(super) fn refused<T>(
    action: impl Fn() -> String,
    call: impl FnOnce() -> std::result::Result<T, cxx::Exception>,
) -> Result<T> {
    let scope = Scope::open();
    call().map_err(|error| {
        let said = scope.take();
        let message = if said.is_empty() { error.to_string() } else { format!("{error}: {said}") };
        Error::Refused { action: action(), message }
    })
}
