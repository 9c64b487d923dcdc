//! What can go wrong with TensorRT's libraries and with what is asked of them.

use std::path::{Path, PathBuf};

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
            Self::Refused { .. } => exit::BAD_INPUT,
            _ => exit::MISSING,
        }
    }
}
