//! A model in memory.

use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::proto::ModelProto;
use crate::files::folder_of;

/// A model, the file that it came from, and the files that its external tensors are mapped from.
///
/// An external tensor has its elements in `raw_data`, a slice of the mapped file, next to the entries that say
/// where they come from. [`save`](super::save()) decides anew where they go.
#[derive(Clone)]
pub struct Model {
    pub proto: ModelProto,
    /// The file that the model was loaded from; need not exist for a model made in memory.
    pub path: PathBuf,
    /// The mapped files of external data, each file once.
    pub external: Vec<ExternalFile>,
}

impl Model {
    /// A model made in memory. `path` is what messages call it; no file is touched.
    pub fn new(proto: ModelProto, path: impl Into<PathBuf>) -> Self {
        Self { proto, path: path.into(), external: Vec::new() }
    }

    /// The folder that locations of external data are relative to.
    pub fn folder(&self) -> &Path {
        folder_of(&self.path)
    }
}

impl fmt::Debug for Model {
    // The weights would be printed otherwise.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("path", &self.path).field("external", &self.external).finish_non_exhaustive()
    }
}

/// A mapped file of external data.
#[derive(Clone)]
pub struct ExternalFile {
    /// The file, with links resolved.
    pub path: PathBuf,
    /// All of it.
    pub data: Bytes,
}

impl fmt::Debug for ExternalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.path.display(), self.data.len())
    }
}
