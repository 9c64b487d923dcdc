//! TensorRT's library: found, loaded, and asked for its version and functions.

use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL, RTLD_NOW};

use super::bridge::ffi;
use super::error::{Error, Result};
use crate::machine::{TensorRtFile, tensorrt_folders, tensorrt_libraries};

/// A version of TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// From `getInferLibVersion`: `8601` is 8.6.1, `101601` is 10.16.1.
    fn of_library(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        let (major, rest) =
            if number < 10_000 { (number / 1000, number % 1000) } else { (number / 10_000, number % 10_000) };
        Self { major, minor: rest / 100, patch: rest % 100 }
    }
}

/// The version of the TensorRT headers that this program was compiled with. Libraries of its major version can be used.
pub fn compiled_for() -> Version {
    let ffi::Version { major, minor, patch } = ffi::headers_version();
    Version { major, minor, patch }
}

/// A function of a loaded library, which is never unloaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub usize);

/// A shared library. It stays loaded to the end of the process: TensorRT and plugins keep threads, loggers and
/// addresses that outlive whoever loaded them.
#[derive(Debug)]
pub(super) struct Shared {
    pub path: PathBuf,
    handle: &'static Handle,
}

impl Shared {
    /// `global` for TensorRT itself, whose symbols its plugins and parser may look for.
    pub fn open(path: &Path, global: bool) -> Result<Self> {
        const ELF: &[u8] = b"\x7fELF";
        // A name without a folder would be looked up in the loader's own places.
        let path = std::path::absolute(path).map_err(|e| Error::not_a_library(path, e.to_string()))?;
        let mut start = [0; 4];
        let read = std::fs::File::open(&path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut start));
        match read {
            Ok(()) if start == ELF => {}
            Ok(()) => return Err(Error::not_a_library(&path, format!("it starts with {}", start.escape_ascii()))),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Error::not_a_library(&path, "it has fewer than 4 bytes"));
            }
            Err(e) => return Err(Error::NotLoaded { path, why: e.to_string() }),
        }
        // TensorRT's parser of 8.6 names functions of cuBLAS and cuDNN that it never calls; a plugin must be whole.
        let flags = if global { RTLD_LAZY | RTLD_GLOBAL } else { RTLD_NOW | RTLD_LOCAL };
        // SAFETY: runs the constructors of a library that the user named or installed for this.
        match unsafe { Handle::open(Some(&path), flags) } {
            Ok(handle) => Ok(Self { path, handle: Box::leak(Box::new(handle)) }),
            Err(error) => Err(Error::NotLoaded { path, why: words(&error) }),
        }
    }

    pub fn symbol(&self, name: &str, why: &str) -> Result<Function> {
        let missing = || Error::MissingSymbol { path: self.path.clone(), symbol: name.to_owned(), why: why.to_owned() };
        self.function(name).ok_or_else(missing)
    }

    pub fn function(&self, name: &str) -> Option<Function> {
        // SAFETY: only the address is taken; who calls it gives it its type.
        let symbol = unsafe { self.handle.get::<*mut ()>(name.as_bytes()) };
        symbol.ok().map(|s| Function(s.into_raw() as usize)).filter(|f| f.0 != 0)
    }
}

/// A path as TensorRT takes it.
pub(super) fn utf8(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::Option {
        what: path.display().to_string(),
        why: "is not valid UTF-8, which TensorRT wants of paths".into(),
    })
}

/// Plugin libraries as TensorRT takes them: it would search for a name without a folder elsewhere.
pub(super) fn plugin_paths(paths: &[PathBuf]) -> Result<Vec<String>> {
    let file = |path: &PathBuf| {
        let whole = path.canonicalize();
        utf8(&whole.map_err(|source| Error::File { action: "open", path: path.clone(), source })?)
    };
    paths.iter().map(file).collect()
}

/// What the loader says, not that it was `dlopen`.
fn words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// TensorRT, loaded.
#[derive(Debug)]
pub struct Library {
    shared: Shared,
    /// What led to it: `TENSORRT_LIB_DIR`, `the environment .env/trt`, ...
    pub source: String,
    pub version: Version,
    pub(super) registry: Function,
}

impl Library {
    /// Loads TensorRT. `explicit` is a library, or a folder that has one in it; without it the first is taken that is
    /// found of the right major version, a full TensorRT before a lean runtime: in `TENSORRT_LIB_DIR`,
    /// `LD_LIBRARY_PATH`, the system's folders, Python environments.
    pub fn load(explicit: Option<&Path>) -> Result<Self> {
        let (path, source) = choose(explicit)?;
        let shared = Shared::open(&path, true)?;
        let function = |name: &str| shared.symbol(name, "it is no library of TensorRT, or a damaged one");
        let version = function("getInferLibVersion")?;
        let registry = function("getPluginRegistry")?;
        // SAFETY: TensorRT declares it so: `extern "C" int32_t getInferLibVersion() noexcept`.
        let version: extern "C" fn() -> i32 = unsafe { std::mem::transmute(version.0) };
        let version = Version::of_library(version());
        let expected = compiled_for().major;
        if version.major != expected {
            return Err(Error::WrongMajor { path, found: version.to_string(), expected });
        }
        tracing::debug!(path = %path.display(), %version, source, "TensorRT");
        Ok(Self { shared, source, version, registry })
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(super) fn runtime(&self) -> Result<Function> {
        self.shared.symbol("createInferRuntime_INTERNAL", "it is no library of TensorRT, or a damaged one")
    }

    pub(super) fn builder(&self) -> Result<Function> {
        self.shared.symbol(
            "createInferBuilder_INTERNAL",
            "a lean runtime runs engines and builds none; the full libnvinfer.so is needed",
        )
    }

    /// The function that makes ONNX parsers, of the parser library beside this one or of the same search path.
    pub(super) fn parser(&self) -> Result<Function> {
        let name = format!("libnvonnxparser.so.{}", self.version.major);
        let beside = self.shared.path.parent().map(Path::to_owned);
        let folders: Vec<PathBuf> =
            beside.into_iter().chain(tensorrt_folders().into_iter().map(|(dir, _)| dir)).collect();
        let Some(path) = folders.iter().map(|dir| dir.join(&name)).find(|path| path.is_file()) else {
            let places: Vec<String> = folders.iter().map(|dir| dir.display().to_string()).collect();
            return Err(Error::NotFound {
                what: "TensorRT's ONNX parser".into(),
                names: name,
                places: places.join(", "),
            });
        };
        Shared::open(&path, true)?.symbol("createNvOnnxParser_INTERNAL", "it is no parser library of TensorRT")
    }
}

/// The library to load and what led to it.
fn choose(explicit: Option<&Path>) -> Result<(PathBuf, String)> {
    let major = compiled_for().major;
    let not_found = |places: String| Error::NotFound {
        what: format!("TensorRT {major}"),
        names: format!("libnvinfer.so.{major} or libnvinfer_lean.so.{major}"),
        places,
    };
    let folders = match explicit {
        Some(path) if path.is_dir() => vec![(path.to_owned(), "the folder that was named".to_owned())],
        Some(path) if path.is_file() => return Ok((path.to_owned(), "the library that was named".into())),
        Some(path) => return Err(not_found(format!("{}, which does not exist", path.display()))),
        None => tensorrt_folders(),
    };
    let found = tensorrt_libraries(&folders);
    let fits = |file: &&TensorRtFile| file.major().is_none_or(|m| m == major);
    if let Some(file) = found.iter().find(fits) {
        return Ok((file.path.clone(), file.source.clone()));
    }
    match found.into_iter().next() {
        Some(file) => Err(Error::WrongMajor { path: file.path, found: file.version, expected: major }),
        None => {
            let places: Vec<String> = folders.iter().map(|(dir, _)| dir.display().to_string()).collect();
            Err(not_found(places.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_versions_of_both_kinds_are_read() {
        let version = |n| Version::of_library(n).to_string();
        assert_eq!(version(8600), "8.6.0");
        assert_eq!(version(8601), "8.6.1");
        assert_eq!(version(101_601), "10.16.1");
        assert_eq!(version(110_400), "11.4.0");
    }
}
