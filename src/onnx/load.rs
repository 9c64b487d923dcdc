//! Reading models.

use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::DType;
use super::external::{self, ExternalFiles};
use super::model::Model;
use super::proto::{DataLocation, ModelProto, TensorProto};
use super::walk::tensors_mut;
use crate::error::{Error, Result};
use crate::files::folder_of;

/// The newest IR version whose fields are all known here, so that saving loses none.
pub const MAX_IR_VERSION: i64 = 13;
/// The oldest and the newest opset of the default domain that rewriting knows.
pub const OPSETS: std::ops::RangeInclusive<i64> = 11..=23;

/// Loads a model and maps its external data.
///
/// Weights are not copied and not even read: they are slices of memory-mapped files. Nothing may change or
/// truncate those files while the model lives, or the weights change with them (a truncated file even ends the
/// process with a bus error).
///
/// Every tensor's data is checked against its dims and element type. Whether the operators are supported is
/// not: that is [`check_supported`].
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Malformed`] if it is not an ONNX model, is newer than
/// [`MAX_IR_VERSION`], or has a tensor with wrong data, and [`Error::ExternalData`] if external data is missing,
/// has another size, or is not a regular file inside the model's folder.
pub fn load(path: &Path) -> Result<Model> {
    // Before opening, since that would wait at a named pipe.
    let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if metadata.is_dir() {
        return Err(Error::malformed(path, "is a folder; expected an ONNX file"));
    }
    if !metadata.is_file() {
        return Err(Error::malformed(path, "is not a regular file, so it cannot be memory-mapped"));
    }
    let file = File::open(path).map_err(Error::io("open", path))?;
    let len = file.metadata().map_err(Error::io("read", path))?.len();
    let bytes = external::map(&file, len).map_err(Error::io("map", path))?;
    from_bytes(bytes, path)
}

/// Loads a model from memory. External data is looked for in the folder of `origin`, which is also what messages
/// name. See [`load`].
pub fn from_bytes(bytes: Bytes, origin: &Path) -> Result<Model> {
    if bytes.is_empty() {
        return Err(Error::malformed(origin, "is empty (0 bytes); expected an ONNX model"));
    }
    let not_onnx = |why: String| {
        let why = guess(&bytes).unwrap_or(why);
        Error::malformed(origin, format!("not an ONNX protobuf: {why}, {} bytes", bytes.len()))
    };
    let mut proto = ModelProto::decode(bytes.clone()).map_err(|error| {
        let text = error.to_string();
        let why = text.strip_prefix("failed to decode Protobuf message: ").unwrap_or(&text);
        not_onnx(match why.contains("underflow") {
            true => format!("it ends in the middle of a field, so it may be truncated ({why})"),
            false => why.to_owned(),
        })
    })?;
    if proto.graph.is_none() {
        return Err(not_onnx("it has no graph".to_owned()));
    }
    match proto.ir_version {
        None => return Err(not_onnx("it has no ir_version".to_owned())),
        Some(version @ ..=0) => return Err(Error::malformed(origin, format!("IR version {version} does not exist"))),
        Some(version) if version > MAX_IR_VERSION => {
            return Err(Error::malformed(
                origin,
                format!(
                    "IR version {version} is not supported, versions up to {MAX_IR_VERSION} are; \
                     export it again with an older onnx package or a lower opset"
                ),
            ));
        }
        Some(_) => {}
    }

    let mut files = ExternalFiles::new(folder_of(origin));
    tensors_mut::model(&mut proto, &mut |owner, tensor| {
        prepare(tensor, &mut files).map_err(|problem| match problem {
            Problem::External { location, what } => Error::ExternalData { tensor: owner.name(tensor), location, what },
            Problem::Tensor(what) => Error::malformed(origin, format!("{}: {what}", owner.place(tensor))),
        })
    })?;
    Ok(Model { proto, path: origin.to_owned(), external: files.files })
}

enum Problem {
    Tensor(String),
    External { location: String, what: String },
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid { what, .. } => Self::Tensor(what),
            other => Self::Tensor(other.to_string()),
        }
    }
}

/// Resolves a tensor's external data and checks its size.
fn prepare(tensor: &mut TensorProto, files: &mut ExternalFiles) -> Result<(), Problem> {
    let wrong = |what: &str| Err(Problem::Tensor(what.to_owned()));
    match tensor.data_location.map_or(Ok(DataLocation::Default), DataLocation::try_from) {
        Ok(DataLocation::Default) => {}
        Ok(DataLocation::External) => {
            if tensor.segment.is_some() {
                return wrong("is external and a segment of a larger tensor, which is not supported");
            }
            if tensor.has_elements() {
                return wrong("has elements both in the model and in external data");
            }
            if tensor.dtype()? == DType::String {
                return wrong("strings cannot be in external data");
            }
            let want = tensor.byte_len()?;
            let data = files.resolve(tensor, want).map_err(|(location, what)| Problem::External { location, what })?;
            tensor.raw_data = Some(data);
        }
        Err(_) => {
            let code = tensor.data_location.unwrap_or_default();
            return wrong(&format!("unknown data_location {code} (known: 0 and 1)"));
        }
    }
    Ok(tensor.check()?)
}

/// Checks that the operators are of versions that rewriting knows.
///
/// # Errors
/// [`Error::Malformed`] if the default domain's opset is not imported or not in [`OPSETS`].
pub fn check_supported(model: &Model) -> Result<()> {
    let default = |domain: &str| domain.is_empty() || domain == "ai.onnx";
    let mut imports = model.proto.opset_import.iter().filter(|import| default(import.domain())).peekable();
    if imports.peek().is_none() {
        return Err(Error::malformed(&model.path, "imports no opset of the default domain"));
    }
    match imports.map(|import| import.version()).find(|version| !OPSETS.contains(version)) {
        None => Ok(()),
        Some(version) => Err(Error::malformed(
            &model.path,
            format!(
                "opset {version} is not supported, opsets {} to {} are; export it again with one of these, \
                 or convert it with onnx.version_converter",
                OPSETS.start(),
                OPSETS.end()
            ),
        )),
    }
}

/// What a file that is no ONNX model seems to be.
fn guess(bytes: &[u8]) -> Option<String> {
    let known: [(usize, &[u8], &str); 8] = [
        (0, b"version https://git-lfs", "it is a pointer of Git LFS (`git lfs pull` fetches the model)"),
        (0, b"PK\x03\x04", "it looks like a zip archive, such as a PyTorch checkpoint"),
        (0, b"\x1f\x8b", "it looks like a gzip archive"),
        (0, b"\x89HDF\r\n", "it looks like an HDF5 file, such as a Keras model"),
        (0, b"ftrt", "it looks like a TensorRT engine"),
        (0, b"\x80\x02", "it looks like a Python pickle, such as a PyTorch checkpoint"),
        (4, b"ORTM", "it is in ONNX Runtime's own format"),
        (4, b"TFL3", "it looks like a TensorFlow Lite model"),
    ];
    if let Some((_, _, what)) =
        known.iter().find(|(at, magic, _)| bytes.get(*at..).is_some_and(|b| b.starts_with(magic)))
    {
        return Some((*what).to_owned());
    }
    let head = &bytes[..bytes.len().min(32)];
    let printable = |b: &u8| matches!(b, b' '..=b'~' | b'\n' | b'\r' | b'\t');
    // A short run of printable bytes may well be protobuf.
    let text = bytes.len() >= 8 && bytes.iter().take(256).all(printable);
    text.then(|| format!("it looks like text that starts with {:?}", String::from_utf8_lossy(head)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_recognized() {
        let says =
            |bytes: &'static [u8]| from_bytes(Bytes::from_static(bytes), Path::new("m.onnx")).unwrap_err().to_string();
        assert!(says(b"PK\x03\x04aaaaaaaaaaaaa").contains("zip archive"));
        assert!(says(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert_eq!(
            says(b"{\"hello\": 1}"),
            "m.onnx: not an ONNX protobuf: it looks like text that starts with \"{\\\"hello\\\": 1}\", 12 bytes"
        );
        assert!(says(b"").contains("is empty (0 bytes)"));
        assert!(says(b"\x08\x0a").contains("it has no graph, 2 bytes"));
        assert!(says(b"\x3a\x00").contains("it has no ir_version"));
        assert!(says(b"\x08\x0e\x3a\x00").contains("IR version 14 is not supported, versions up to 13 are"));
        assert!(says(b"\x08\x00\x3a\x00").contains("IR version 0 does not exist"));
    }
}
