//! Finding ONNX Runtime's library and loading it, once in a process.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use crate::error::{Error, Result};
use crate::machine::{entries, library_folders, python_environments, python_package, site_packages};

/// A file that may be ONNX Runtime's library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub path: PathBuf,
    /// What led to it: `ORT_DYLIB_PATH`, `the environment in .env/py`, ...
    pub source: String,
}

/// ONNX Runtime, loaded.
pub struct Runtime {
    pub path: PathBuf,
    pub source: String,
    /// `1.22.0`; empty if neither the library nor its name tells.
    pub version: String,
    pub(super) environment: ort::environment::Environment,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("path", &self.path).field("version", &self.version).finish_non_exhaustive()
    }
}

/// The oldest minor version that can be used, as `1.N`.
pub const OLDEST_MINOR: u32 = ort::MINOR_VERSION;

const HINT: &str = "get it with 'pip install onnxruntime' in a Python environment that is active or in ./.env, \
                    or name the library by ORT_DYLIB_PATH or --onnxruntime";

/// Loads ONNX Runtime, or returns what was loaded before: a process can hold one only.
///
/// `explicit` is a library, or a folder that has one in it. Without it `ORT_DYLIB_PATH` decides, and without that
/// the first of [`candidates`] that loads.
pub fn runtime(explicit: Option<&Path>) -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static LOADING: Mutex<()> = Mutex::new(());
    let _guard = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let mut refused = vec![];
    for candidate in choices(explicit)? {
        match load(&candidate) {
            Ok(runtime) => {
                tracing::debug!(path = %runtime.path.display(), version = runtime.version, "ONNX Runtime");
                return Ok(RUNTIME.get_or_init(|| runtime));
            }
            Err(why) => refused.push(format!("{} (from {}): {why}", candidate.path.display(), candidate.source)),
        }
    }
    let why = match refused.is_empty() {
        true => "no library was found in Python environments, LD_LIBRARY_PATH and the system's folders".to_owned(),
        false => refused.join("; "),
    };
    Err(missing(why))
}

fn missing(why: String) -> Error {
    Error::Missing { what: "ONNX Runtime", why, hint: HINT.to_owned() }
}

/// What is tried: the one thing that was asked for, else everything that is found.
fn choices(explicit: Option<&Path>) -> Result<Vec<Candidate>> {
    let named = match explicit {
        Some(path) => Some(("--onnxruntime", path.to_owned())),
        None => env::var_os("ORT_DYLIB_PATH").filter(|p| !p.is_empty()).map(|p| ("ORT_DYLIB_PATH", p.into())),
    };
    let Some((source, path)) = named else { return Ok(candidates()) };
    if path.is_dir() {
        let inside = ["", "lib", "capi", "onnxruntime/capi"].iter().flat_map(|d| libraries_in(&path.join(d)));
        let mut found: Vec<PathBuf> = inside.collect();
        found.extend(site_packages(&path).iter().flat_map(|d| libraries_in(&d.join("onnxruntime/capi"))));
        if found.is_empty() {
            return Err(missing(format!(
                "{source} is the folder {}, which has no {} in it",
                path.display(),
                pattern()
            )));
        }
        return Ok(found.into_iter().map(|path| Candidate { path, source: source.into() }).collect());
    }
    if !path.exists() {
        return Err(missing(format!("{source} is {}, which does not exist", path.display())));
    }
    Ok(vec![Candidate { path, source: source.into() }])
}

/// The libraries that are found on this machine, best first, without loading any.
pub fn candidates() -> Vec<Candidate> {
    let mut found = vec![];
    let mut seen = BTreeSet::new();
    let mut add = |path: PathBuf, source: &str| {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if seen.insert(real) {
            found.push(Candidate { path, source: source.to_owned() });
        }
    };
    for (root, source) in python_environments() {
        for packages in site_packages(&root) {
            libraries_in(&packages.join("onnxruntime/capi")).into_iter().for_each(|p| add(p, &source));
        }
    }
    if let Some(package) = python_package("onnxruntime") {
        libraries_in(&package.join("capi")).into_iter().for_each(|p| add(p, "python3's package onnxruntime"));
    }
    for (dir, source) in library_folders() {
        libraries_in(&dir).into_iter().for_each(|p| add(p, source));
    }
    found
}

fn pattern() -> &'static str {
    if cfg!(windows) {
        "onnxruntime.dll"
    } else if cfg!(target_os = "macos") {
        "libonnxruntime*.dylib"
    } else {
        "libonnxruntime.so*"
    }
}

fn libraries_in(dir: &Path) -> Vec<PathBuf> {
    entries(dir, |name| {
        if cfg!(windows) {
            name.eq_ignore_ascii_case("onnxruntime.dll")
        } else if cfg!(target_os = "macos") {
            name.starts_with("libonnxruntime.") && name.ends_with(".dylib")
        } else {
            name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.")
        }
    })
}

fn load(candidate: &Candidate) -> Result<Runtime, String> {
    // A relative path would be looked up beside this program first.
    let path = std::path::absolute(&candidate.path).map_err(|e| e.to_string())?;
    let builder = ort::init_from(&path).map_err(|e| match e {
        ort::LoadDynamicError::Dlopen { error, .. } => format!("cannot be loaded: {error}"),
        ort::LoadDynamicError::MissingApi { .. } => "is not ONNX Runtime: it has no symbol OrtGetApiBase".to_owned(),
        ort::LoadDynamicError::BadVersion { version_str, .. } => {
            format!("is version {version_str}; 1.{OLDEST_MINOR} or newer is needed")
        }
        other => other.to_string(),
    })?;
    let environment = builder.with_name("trt-opt").build().map_err(|e| e.message().to_owned())?;
    environment.set_log_level(ort::logging::LogLevel::Error);
    Ok(Runtime { version: version_of(&path), path, source: candidate.source.clone(), environment })
}

/// From the file name, where packages put it, else from what the library says of its build.
fn version_of(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = real.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let from_name = name.split_once(".so.").map(|(_, v)| v).filter(|v| v.contains('.'));
    let build = || {
        let branch = ort::info().split("git-branch=").nth(1)?;
        let version = branch.split([',', ' ']).next()?.trim_start_matches("rel-");
        version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
    };
    from_name.map(str::to_owned).or_else(build).unwrap_or_default()
}
