//! External data: reading the entries that say where it is, and mapping the files.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;

use super::model::ExternalFile;
use super::proto::TensorProto;

/// Where the elements of an external tensor are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Location<'a> {
    /// A path relative to the model's folder.
    pub file: &'a str,
    /// In bytes.
    pub offset: u64,
    /// In bytes; unset means as many as the tensor takes.
    pub length: Option<u64>,
}

impl<'a> Location<'a> {
    /// Reads the `external_data` entries of a tensor. Keys that ONNX does not define are ignored, and so is
    /// `checksum`, which nothing verifies.
    pub fn of(tensor: &'a TensorProto) -> Result<Self, String> {
        let (mut file, mut offset, mut length) = (None, None, None);
        for entry in &tensor.external_data {
            let slot = match entry.key() {
                "location" => &mut file,
                "offset" => &mut offset,
                "length" => &mut length,
                _ => continue,
            };
            if slot.replace(entry.value()).is_some() {
                return Err(format!("'{}' is given twice", entry.key()));
            }
        }
        let number = |key: &str, text: Option<&str>| {
            text.map(|text| {
                text.trim().parse::<u64>().map_err(|_| format!("{key} {text:?} is not a non-negative 64-bit integer"))
            })
            .transpose()
        };
        let file = file.filter(|file| !file.is_empty()).ok_or("no location is given")?;
        Ok(Self { file, offset: number("offset", offset)?.unwrap_or(0), length: number("length", length)? })
    }
}

/// The external files of one model.
pub(super) struct ExternalFiles {
    /// As it was given, for messages.
    folder: PathBuf,
    /// With links resolved; found when it is first needed.
    resolved_folder: Option<PathBuf>,
    by_location: HashMap<String, usize>,
    pub files: Vec<ExternalFile>,
}

impl ExternalFiles {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), resolved_folder: None, by_location: HashMap::new(), files: Vec::new() }
    }

    /// The mapped bytes of an external tensor that takes `want` bytes. An error is a location and what is wrong.
    pub fn resolve(&mut self, tensor: &TensorProto, want: usize) -> Result<Bytes, (String, String)> {
        let Location { file, offset, length } = Location::of(tensor).map_err(|what| {
            let location = tensor.external_data.iter().find(|e| e.key() == "location");
            (location.map_or_else(String::new, |e| e.value().to_owned()), what)
        })?;
        let fail = |what: String| (file.to_owned(), what);
        if let Some(length) = length.filter(|length| *length != want as u64) {
            return Err(fail(format!("length is {length} bytes, but dims and element type need {want}")));
        }
        let mapped = self.file(file).map_err(fail)?;
        let range = usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(want)?));
        match range.filter(|range| range.end <= mapped.data.len()) {
            Some(range) => Ok(mapped.data.slice(range)),
            None => Err(fail(format!(
                "{want} bytes from offset {offset} reach past the end of the file, which has {} bytes",
                mapped.data.len()
            ))),
        }
    }

    fn file(&mut self, location: &str) -> Result<&ExternalFile, String> {
        let index = match self.by_location.get(location) {
            Some(index) => *index,
            None => {
                let path = self.locate(location)?;
                let index = match self.files.iter().position(|file| file.path == path) {
                    Some(index) => index,
                    None => {
                        let data = map_file(&path)?;
                        self.files.push(ExternalFile { path, data });
                        self.files.len() - 1
                    }
                };
                self.by_location.insert(location.to_owned(), index);
                index
            }
        };
        self.files.get(index).ok_or_else(|| "is not mapped".to_owned())
    }

    /// The file of a location, with links resolved; an error if it is not inside the model's folder.
    fn locate(&mut self, location: &str) -> Result<PathBuf, String> {
        let relative = Path::new(location);
        // A path of another system's style must not mean something else here than there.
        let windows = location.contains('\\') || location.as_bytes().get(1) == Some(&b':');
        if relative.is_absolute() || windows {
            return Err("is not a relative path with '/' between its parts; only files in the model's folder are read"
                .to_owned());
        }
        if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err("leaves the model's folder, which is not allowed".to_owned());
        }
        let folder = match &self.resolved_folder {
            Some(folder) => folder,
            None => {
                let folder = self.folder.canonicalize();
                let folder = folder.map_err(|e| format!("cannot find the folder {}: {e}", self.folder.display()))?;
                self.resolved_folder.insert(folder)
            }
        };
        let path = self.folder.join(relative);
        let resolved = path.canonicalize().map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                format!("there is no such file in {}; it has to lie beside the model", self.folder.display())
            }
            _ => format!("cannot open {}: {e}", path.display()),
        })?;
        if !resolved.starts_with(folder) {
            return Err(format!(
                "leaves the model's folder through a symbolic link, to {}; copy the file beside the model",
                resolved.display()
            ));
        }
        Ok(resolved)
    }
}

/// Maps a file whose path has no links left.
fn map_file(path: &Path) -> Result<Bytes, String> {
    let fail = |e: io::Error| format!("cannot open {}: {e}", path.display());
    // Before opening, since that would wait at a named pipe.
    let before = fs::symlink_metadata(path).map_err(fail)?;
    if !before.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let file = File::open(path).map_err(fail)?;
    let opened = file.metadata().map_err(fail)?;
    if !opened.is_file() || !same_file(&before, &opened) {
        return Err("was replaced while it was being opened".to_owned());
    }
    map(&file, opened.len()).map_err(fail)
}

/// Maps a file of `len` bytes read-only.
pub(super) fn map(file: &File, len: u64) -> io::Result<Bytes> {
    if len == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is read-only. That no one changes the file meanwhile cannot be ensured; `load` says so.
    let mapped = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(mapped))
}

/// Whether two results of `stat` are of one file.
#[cfg(unix)]
pub(super) fn same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
pub(super) fn same_file(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}
