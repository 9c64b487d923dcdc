//! Writing models.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::BufMut;
use prost::Message;
use tempfile::TempPath;

use super::external::{Location, same_file};
use super::model::Model;
use super::proto::{DataLocation, ModelProto, StringStringEntryProto, TensorProto};
use super::sink::Sink;
use super::walk::{Owner, tensors, tensors_mut};
use crate::error::{Error, Result};
use crate::files::{create_temporary, folder_of, rename};

/// The most bytes that protobuf allows a message.
const MAX_MESSAGE: usize = i32::MAX as usize;
/// Tensors from this size on start at a page in external data, so that they can be mapped one by one.
const PAGE_ALIGNED_FROM: usize = 1 << 20;
const PAGE: u64 = 4096;
/// What smaller tensors are aligned to: enough for any vector instruction.
const ALIGN: u64 = 64;

/// How to save a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveOptions {
    /// Name of a file beside the model that takes the weights. `None` keeps every tensor where it is: inside
    /// the model, or external.
    pub external_data: Option<String>,
    /// Weights of fewer bytes stay inside the model in spite of `external_data`. 1024 by default.
    pub external_threshold: usize,
    /// Whether the files that the model was loaded from may be replaced. They are replaced as a whole, by a
    /// rename, so a model that is in memory stays valid.
    pub replace_input: bool,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { external_data: None, external_threshold: 1024, replace_input: false }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveStats {
    /// Bytes of the model file.
    pub model_bytes: u64,
    /// The file of external data, if one was written.
    pub external_file: Option<PathBuf>,
    /// Bytes of that file.
    pub external_bytes: u64,
    /// Tensors in that file.
    pub external_tensors: usize,
    /// Tensors that still refer to the external files of the input.
    pub kept_tensors: usize,
}

/// Where a tensor's elements go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placement {
    /// The tensor is written as it is.
    AsIs,
    /// Into the model, though it was external.
    Inline,
    /// It stays external, in the file that it was loaded from.
    Keep,
    /// Into the file of external data.
    Pack { offset: u64, len: usize },
}

/// One placement for each tensor, in the order of the walk.
struct Plan {
    placements: Vec<Placement>,
    /// The name of the file of external data, if anything goes there.
    data_file: Option<String>,
}

/// Saves a model.
///
/// The model is written to a temporary file in the target's folder, which is then renamed, so there is never
/// half a model at `path`; the same holds for external data. Nothing is left behind if it fails. If `path` is a
/// symbolic link, the link is replaced. Weights are streamed: memory use does not grow with them.
///
/// Tensors that were loaded from external files stay external. If `path` is in the folder that they were loaded
/// from and none of them has changed, they keep referring to the same files; otherwise all are packed into
/// `<file name>.data` beside the model.
///
/// # Errors
/// [`Error::Io`] if a file cannot be written, [`Error::Usage`] if the target cannot be a model or is an input
/// that `options` do not allow to be replaced, or if the model takes 2 GiB or more without external data, and
/// [`Error::Invalid`] if a tensor's data does not match its dims and element type.
pub fn save(model: &Model, path: &Path, options: &SaveOptions) -> Result<SaveStats> {
    let name = path.file_name().ok_or_else(|| Error::Usage(format!("{}: is not a file name", path.display())))?;
    let folder = folder_of(path);
    check_target(path)?;
    check_input_kept(model, path, options.replace_input)?;

    let plan = plan(model, path, options)?;
    let placed;
    let proto = match plan.placements.iter().all(|p| *p == Placement::AsIs) {
        true => &model.proto,
        false => {
            placed = place(&model.proto, &plan)?;
            &placed
        }
    };
    check_message_size(proto, path, options.external_data.is_some())?;

    let mut stats = SaveStats {
        model_bytes: 0,
        external_file: None,
        external_bytes: 0,
        external_tensors: plan.placements.iter().filter(|p| matches!(p, Placement::Pack { .. })).count(),
        kept_tensors: plan.placements.iter().filter(|p| matches!(p, Placement::Keep)).count(),
    };
    let mut data = None;
    if let Some(file) = &plan.data_file {
        let target = folder.join(file);
        if file.as_str() == name {
            return Err(Error::Usage(format!("{file}: the model and its external data need different names")));
        }
        check_target(&target)?;
        check_data_kept(model, &target, options.replace_input)?;
        let (temporary, bytes) = write_data(model, &plan, &target)?;
        stats.external_bytes = bytes;
        stats.external_file = Some(target.clone());
        data = Some((temporary, target));
    }
    let mut sink = Sink::new(create_temporary(path)?);
    proto.encode(&mut sink).map_err(|error| Error::Usage(format!("{}: {error}", path.display())))?;
    let (temporary, bytes) = sink.finish().map_err(Error::io("write", path))?;
    stats.model_bytes = bytes;

    match data {
        None => rename(temporary.into_temp_path(), path)?,
        Some((data, target)) => rename_both((data, &target), (temporary.into_temp_path(), path))?,
    }
    Ok(stats)
}

/// The bytes of a model file with all data inside, for small models and for other libraries in this process.
///
/// # Errors
/// [`Error::Usage`] if it takes 2 GiB or more, and [`Error::Invalid`] as for [`save`].
pub fn to_vec(model: &Model) -> Result<Vec<u8>> {
    let mut placements = Vec::new();
    tensors::model(&model.proto, &mut |owner, tensor| {
        check_tensor(owner, tensor)?;
        placements.push(if tensor.is_external() { Placement::Inline } else { Placement::AsIs });
        Ok(())
    })?;
    let plan = Plan { placements, data_file: None };
    let placed;
    let proto = match plan.placements.contains(&Placement::Inline) {
        true => {
            placed = place(&model.proto, &plan)?;
            &placed
        }
        false => &model.proto,
    };
    check_message_size(proto, &model.path, false)?;
    Ok(proto.encode_to_vec())
}

fn check_tensor(owner: Owner<'_>, tensor: &TensorProto) -> Result<()> {
    tensor.check().map_err(|error| match error {
        Error::Invalid { what, .. } => Error::invalid(owner.place(tensor), what),
        other => other,
    })
}

fn check_message_size(proto: &ModelProto, path: &Path, external: bool) -> Result<()> {
    let bytes = proto.encoded_len();
    if bytes <= MAX_MESSAGE {
        return Ok(());
    }
    let advice = match external {
        true => "even with external data; lower the size from which tensors are external",
        false => "so its weights must be beside it: use --external-data FILE",
    };
    let path = path.display();
    Err(Error::Usage(format!("{path}: the model takes {bytes} bytes and protobuf allows {MAX_MESSAGE}, {advice}")))
}

fn plan(model: &Model, path: &Path, options: &SaveOptions) -> Result<Plan> {
    let mut external = Vec::new();
    tensors::model(&model.proto, &mut |owner, tensor| {
        check_tensor(owner, tensor)?;
        external.push(tensor.is_external());
        Ok(())
    })?;
    let any_external = external.contains(&true);

    let data_file = match &options.external_data {
        Some(file) => {
            let plain = Path::new(file).file_name().is_some_and(|name| name == file.as_str());
            if !plain || file.contains(['\\', '\0']) {
                return Err(Error::Usage(format!(
                    "external data {file:?}: give a file name without a folder; the file is written beside the model"
                )));
            }
            file.clone()
        }
        None if any_external && same_folder(model.folder(), folder_of(path)) && all_unchanged(model) => {
            let keep = |external| if external { Placement::Keep } else { Placement::AsIs };
            return Ok(Plan { placements: external.into_iter().map(keep).collect(), data_file: None });
        }
        None => {
            let name =
                path.file_name().unwrap_or_default().to_str().ok_or_else(|| {
                    Error::Usage(format!("{}: external data needs a file name in UTF-8", path.display()))
                });
            // Only needed, and only an error, if there is something to pack.
            if any_external { format!("{}.data", name?) } else { String::new() }
        }
    };

    let mut placements = Vec::new();
    let mut end = 0u64;
    // Tensors that share their bytes, tied weights for instance, share them in the file too.
    let mut seen: HashMap<(*const u8, usize), u64> = HashMap::new();
    tensors::model(&model.proto, &mut |owner, tensor| {
        let was_external = tensor.is_external();
        let packs = match options.external_data {
            None => was_external,
            Some(_) => {
                let numbers = tensor.segment.is_none() && tensor.string_data.is_empty();
                numbers
                    && (was_external || matches!(owner, Owner::Weight))
                    && tensor.byte_len().is_ok_and(|len| len >= options.external_threshold)
            }
        };
        if !packs {
            placements.push(if was_external { Placement::Inline } else { Placement::AsIs });
            return Ok(());
        }
        let len = tensor.byte_len()?;
        let key = tensor.raw_data.as_ref().filter(|raw| !raw.is_empty()).map(|raw| (raw.as_ptr(), raw.len()));
        let offset = match key.and_then(|key| seen.get(&key)) {
            Some(offset) => *offset,
            None => {
                let offset = end.next_multiple_of(if len >= PAGE_ALIGNED_FROM { PAGE } else { ALIGN });
                end = offset + len as u64;
                key.map(|key| seen.insert(key, offset));
                offset
            }
        };
        placements.push(Placement::Pack { offset, len });
        Ok(())
    })?;
    let packs = placements.iter().any(|p| matches!(p, Placement::Pack { .. }));
    Ok(Plan { placements, data_file: packs.then_some(data_file) })
}

/// Whether every external tensor is just what its entries say, in a file that the model maps.
fn all_unchanged(model: &Model) -> bool {
    // Most models have one location, some have one a tensor: each is looked up once.
    let mut locations: HashMap<String, Option<&[u8]>> = HashMap::new();
    let mut unchanged = |tensor: &TensorProto| {
        let Location { file, offset, length } = Location::of(tensor).ok()?;
        let mapped = match locations.get(file) {
            Some(mapped) => *mapped,
            None => {
                let path = model.folder().join(file).canonicalize().ok();
                let mapped = model.external.iter().find(|mapped| Some(&mapped.path) == path.as_ref());
                let mapped = mapped.map(|mapped| &mapped.data[..]);
                locations.insert(file.to_owned(), mapped);
                mapped
            }
        };
        let raw = tensor.raw_data.as_ref().map_or(&[][..], |raw| &raw[..]);
        let found = mapped?.get(usize::try_from(offset).ok()?..)?.get(..raw.len())?;
        let same_length = length.is_none_or(|length| length == raw.len() as u64);
        Some(same_length && (raw.is_empty() || std::ptr::eq(found.as_ptr(), raw.as_ptr())))
    };
    let mut all = true;
    let walked = tensors::model(&model.proto, &mut |_, tensor| {
        all = all && (!tensor.is_external() || unchanged(tensor).unwrap_or(false));
        Ok(())
    });
    walked.is_ok() && all
}

/// The model with every tensor's elements where the plan wants them. Weights are shared, not copied.
fn place(proto: &ModelProto, plan: &Plan) -> Result<ModelProto> {
    let mut proto = proto.clone();
    let mut placements = plan.placements.iter();
    tensors_mut::model(&mut proto, &mut |_, tensor| {
        match *placements.next().unwrap_or(&Placement::AsIs) {
            Placement::AsIs => {}
            Placement::Keep => tensor.raw_data = None,
            Placement::Inline => {
                tensor.external_data.clear();
                tensor.data_location = None;
            }
            Placement::Pack { offset, len } => {
                *tensor = TensorProto {
                    dims: std::mem::take(&mut tensor.dims),
                    data_type: tensor.data_type,
                    name: tensor.name.take(),
                    doc_string: tensor.doc_string.take(),
                    metadata_props: std::mem::take(&mut tensor.metadata_props),
                    data_location: Some(DataLocation::External as i32),
                    external_data: [
                        ("location", plan.data_file.clone().unwrap_or_default()),
                        ("offset", offset.to_string()),
                        ("length", len.to_string()),
                    ]
                    .map(|(key, value)| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) })
                    .to_vec(),
                    ..TensorProto::default()
                };
            }
        }
        Ok(())
    })?;
    Ok(proto)
}

/// Writes external data to a temporary file beside its target; gives its number of bytes too.
fn write_data(model: &Model, plan: &Plan, target: &Path) -> Result<(TempPath, u64)> {
    let mut sink = Sink::new(create_temporary(target)?);
    let mut placements = plan.placements.iter();
    tensors::model(&model.proto, &mut |_, tensor| {
        let Some(Placement::Pack { offset, .. }) = placements.next() else { return Ok(()) };
        // A tensor that shares the bytes of an earlier one has an offset that is behind already.
        if let Some(padding) = offset.checked_sub(sink.position()) {
            sink.put_bytes(0, padding as usize);
            sink.put(tensor.data()?);
        }
        Ok(())
    })?;
    let (temporary, bytes) = sink.finish().map_err(Error::io("write", target))?;
    Ok((temporary.into_temp_path(), bytes))
}

/// An error if there is something at `path` that is not a file, such as a folder or a device.
fn check_target(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(Error::Usage(format!("{}: is a folder", path.display()))),
        Ok(found) if !found.is_file() => {
            Err(Error::Usage(format!("{}: is not a regular file, so it cannot be replaced", path.display())))
        }
        _ => Ok(()),
    }
}

/// An error if writing the model to `path` would replace the input without leave, or a file that it maps.
fn check_input_kept(model: &Model, path: &Path, allowed: bool) -> Result<()> {
    if !allowed && is_same(path, &model.path) {
        return Err(Error::Usage(format!("{}: is the input; give another file for the output", path.display())));
    }
    if model.external.iter().any(|file| is_same(path, &file.path)) {
        return Err(Error::Usage(format!("{}: is external data of the input; give another file", path.display())));
    }
    Ok(())
}

/// The same for external data.
fn check_data_kept(model: &Model, path: &Path, allowed: bool) -> Result<()> {
    if is_same(path, &model.path) {
        return Err(Error::Usage(format!("{}: is the input; external data needs another file", path.display())));
    }
    if !allowed && model.external.iter().any(|file| is_same(path, &file.path)) {
        return Err(Error::Usage(format!(
            "{}: is external data of the input; use --external-data with another file name",
            path.display()
        )));
    }
    Ok(())
}

/// Whether both paths exist and are one file.
fn is_same(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(x), Ok(y)) if cfg!(unix) => same_file(&x, &y),
        (Ok(_), Ok(_)) => same_folder(a, b),
        _ => false,
    }
}

fn same_folder(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Renames the data, then the model that refers to it; if the second fails, what was at `data` is back.
fn rename_both(data: (TempPath, &Path), model: (TempPath, &Path)) -> Result<()> {
    let old = match fs::symlink_metadata(data.1) {
        Ok(_) => {
            let aside = create_temporary(data.1)?.into_temp_path();
            fs::rename(data.1, &aside).map_err(Error::io("replace", data.1))?;
            Some(aside)
        }
        Err(_) => None,
    };
    let renamed = rename(data.0, data.1).and_then(|()| rename(model.0, model.1));
    if renamed.is_err() {
        match old {
            Some(old) => old.persist(data.1).map_err(|failed| Error::io("restore", data.1)(failed.error))?,
            None => drop(fs::remove_file(data.1)),
        }
    }
    renamed
}
