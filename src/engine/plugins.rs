//! Plugin libraries and TensorRT's registry of plugins.

use std::path::{Path, PathBuf};

use super::bridge::ffi;
use super::error::{Error, Result, refused};
use super::library::{Library, Shared, compiled_for, utf8};

/// The kinds of plugin library that TensorRT has had, by the function that lists the creators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `getPluginCreators`: TensorRT 8 and 9, and those of 10 that still take it.
    V2,
    /// `getCreators`: TensorRT 10 and later.
    V3,
}

impl Interface {
    /// The interface that this program can call: that of the headers that it was compiled with.
    pub fn compiled_for() -> Self {
        if compiled_for().major >= 10 { Self::V3 } else { Self::V2 }
    }

    fn entry(self) -> &'static str {
        match self {
            Self::V2 => "getPluginCreators",
            Self::V3 => "getCreators",
        }
    }
}

impl std::fmt::Display for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V2 => "V2 (for TensorRT 8)",
            Self::V3 => "V3 (for TensorRT 10 and later)",
        })
    }
}

/// The type of a field; TensorRT has more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    Int32,
    Float32,
    Char,
    Other,
}

/// A field that a creator lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub kind: FieldType,
    /// Elements.
    pub length: i32,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int32(Vec<i32>),
    Float32(f32),
    Char(String),
}

/// A creator of plugins. It is there as long as its library is loaded, and libraries stay loaded.
#[derive(Clone, Debug)]
pub struct Creator {
    raw: ffi::Creator,
    fields: Vec<Field>,
}

impl Creator {
    fn new(raw: ffi::Creator) -> Self {
        let kind = |kind| match kind {
            ffi::FieldType::Int32 => FieldType::Int32,
            ffi::FieldType::Float32 => FieldType::Float32,
            ffi::FieldType::Char => FieldType::Char,
            _ => FieldType::Other,
        };
        let field = |f: &ffi::Field| Field { name: f.name.clone(), kind: kind(f.kind), length: f.length };
        let fields = raw.fields.iter().map(field).collect();
        Self { raw, fields }
    }

    /// The creator's own interface, in TensorRT's words: `PLUGIN CREATOR_V3ONE`. Of other interfaces than those that
    /// [`Self::make`] can call nothing but this is known.
    pub fn kind(&self) -> &str {
        &self.raw.kind
    }

    pub fn name(&self) -> &str {
        &self.raw.name
    }

    pub fn version(&self) -> &str {
        &self.raw.version
    }

    pub fn namespace(&self) -> &str {
        &self.raw.space
    }

    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Makes a plugin for an engine that is being built, looks whether it is the one that its creator promises, and
    /// drops it.
    pub fn make(&self, values: &[(&str, Value)]) -> Result<()> {
        let values: Vec<ffi::FieldValue> = values.iter().map(|(name, value)| field_value(name, value)).collect();
        let action = || format!("{} cannot be made from valid fields", self.name());
        // SAFETY: the address is that of a creator whose library is loaded.
        refused(action, || unsafe { ffi::make_plugin(self.raw.address, &values) })
    }
}

fn field_value(name: &str, value: &Value) -> ffi::FieldValue {
    let (kind, bytes, length) = match value {
        Value::Int32(v) => (ffi::FieldType::Int32, v.iter().flat_map(|x| x.to_ne_bytes()).collect(), v.len()),
        Value::Float32(v) => (ffi::FieldType::Float32, v.to_ne_bytes().to_vec(), 1),
        Value::Char(v) => (ffi::FieldType::Char, v.clone().into_bytes(), v.len()),
    };
    ffi::FieldValue { name: name.to_owned(), kind, bytes, length: i32::try_from(length).unwrap_or(i32::MAX) }
}

/// A plugin library, loaded without TensorRT.
#[derive(Debug)]
pub struct PluginLibrary {
    pub path: PathBuf,
    pub interface: Interface,
    creators: Option<Vec<Creator>>,
}

impl PluginLibrary {
    /// Loads a library and lists what it makes. Every symbol that it needs must be found.
    ///
    /// A library of the other interface than this program was compiled for is loaded, and its creators are not known.
    pub fn open(path: &Path) -> Result<Self> {
        let shared = Shared::open(path, false)?;
        let own = Interface::compiled_for();
        let other = if own == Interface::V2 { Interface::V3 } else { Interface::V2 };
        let Some(entry) = shared.function(own.entry()) else {
            if shared.function(other.entry()).is_some() {
                return Ok(Self { path: shared.path, interface: other, creators: None });
            }
            return Err(Error::MissingSymbol {
                path: shared.path,
                symbol: format!("{} or {}", own.entry(), other.entry()),
                why: "it is no TensorRT plugin library".into(),
            });
        };
        let action = || format!("{} does not list its plugins", shared.path.display());
        if let Some(set_logger) = shared.function("setLoggerFinder") {
            // SAFETY: TensorRT's documentation gives the function of this name this type.
            refused(action, || unsafe { ffi::give_logger(set_logger.0) })?;
        }
        // SAFETY: as above, and the headers' interface was asked for by name.
        let creators = refused(action, || unsafe { ffi::creators(entry.0) })?;
        let creators = Some(creators.into_iter().map(Creator::new).collect());
        Ok(Self { path: shared.path, interface: own, creators })
    }

    /// The creators; `None` if they are of the other interface than this program can call.
    pub fn creators(&self) -> Option<&[Creator]> {
        self.creators.as_deref()
    }
}

/// A plugin library in TensorRT's global registry, taken out again when this is dropped.
#[derive(Debug)]
pub struct Registered<'a> {
    library: &'a Library,
    handle: usize,
}

impl Library {
    /// Loads a plugin library through TensorRT's global registry.
    pub fn register(&self, plugins: &Path) -> Result<Registered<'_>> {
        let path = std::path::absolute(plugins).map_err(|e| Error::not_a_library(plugins, e.to_string()))?;
        let action = || format!("TensorRT {} does not load {}", self.version, path.display());
        let text = utf8(&path)?;
        // SAFETY: the function is `getPluginRegistry` of a TensorRT of the headers' major version.
        let handle = refused(action, || unsafe { ffi::registry_load(self.registry.0, &text) })?;
        Ok(Registered { library: self, handle })
    }

    /// A creator in the global registry.
    pub fn creator(&self, name: &str, version: &str, namespace: &str) -> Result<Option<Creator>> {
        let action = || format!("TensorRT {} does not look up {name}", self.version);
        let [n, v, s] = [name, version, namespace].map(str::to_owned);
        // SAFETY: as in `register`.
        let found = refused(action, || unsafe { ffi::registry_find(self.registry.0, &n, &v, &s) })?;
        Ok(found.into_iter().next().map(Creator::new))
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from this registry and is given back once.
        if let Err(error) = unsafe { ffi::registry_unload(self.library.registry.0, self.handle) } {
            tracing::warn!("a plugin library stays in TensorRT's registry: {error}");
        }
    }
}
