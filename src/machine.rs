//! Where programs and libraries may be on this machine.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::files::same_file;

/// Virtual environments: the active one, and those of the folder at work or the nearest above it that has some.
pub(crate) fn python_environments() -> Vec<(PathBuf, String)> {
    let mut found = vec![];
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(root) = env::var_os(variable).filter(|p| !p.is_empty()) {
            found.push((PathBuf::from(root), variable.to_owned()));
        }
    }
    let here = env::current_dir().unwrap_or_default();
    for above in here.ancestors() {
        let mut local = entries(&above.join(".env"), |_| true);
        local.extend([above.join(".env"), above.join(".venv")]);
        let before = found.len();
        for root in local {
            if !site_packages(&root).is_empty() {
                let source = format!("the environment {}", root.display());
                found.push((root, source));
            }
        }
        if found.len() > before || above.join(".git").exists() {
            break;
        }
    }
    found
}

/// `lib/python3.*/site-packages` of an environment.
pub(crate) fn site_packages(root: &Path) -> Vec<PathBuf> {
    let pythons = entries(&root.join("lib"), |name| name.starts_with("python3"));
    let windows = root.join("Lib");
    let dirs = pythons.into_iter().chain([windows]).map(|p| p.join("site-packages"));
    dirs.filter(|d| d.is_dir()).collect()
}

/// Where `python3` would import a package from. Nothing of it is imported, and the current folder is no source.
pub(crate) fn python_package(name: &str) -> Option<PathBuf> {
    const FIND: &str = "import sys; sys.path = [p for p in sys.path if p]; import importlib.util as u; \
                        s = u.find_spec(sys.argv[1]); print((list(s.submodule_search_locations or []) + [''])[0] if s else '')";
    let output = Command::new("python3").args(["-c", FIND, name]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    let path = path.trim();
    (output.status.success() && !path.is_empty()).then(|| path.into())
}

/// Folders of libraries, those of the environment first.
pub(crate) fn library_folders() -> Vec<(PathBuf, &'static str)> {
    let mut folders = vec![];
    for variable in ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"] {
        let paths = env::var_os(variable).unwrap_or_default();
        folders.extend(env::split_paths(&paths).filter(|p| p.is_absolute()).map(|p| (p, variable)));
    }
    let system = [
        "/usr/local/lib",
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/opt/onnxruntime/lib",
        "/opt/homebrew/lib",
    ];
    folders.extend(system.iter().map(|p| (PathBuf::from(p), "the system's library folders")));
    folders
}

/// Entries of a folder by name, sorted; none if it cannot be read.
pub(crate) fn entries(dir: &Path, mut keep: impl FnMut(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    let mut paths: Vec<PathBuf> =
        entries.flatten().filter(|e| e.file_name().to_str().is_some_and(&mut keep)).map(|e| e.path()).collect();
    paths.sort();
    paths
}

/// A library of TensorRT: the builder and runtime, or a lean runtime, which runs engines and builds none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorRtFile {
    pub path: PathBuf,
    /// As far as the file's name tells it: `8.6.0`, `11`, or nothing.
    pub version: String,
    pub lean: bool,
    /// What led to it.
    pub source: String,
}

impl TensorRtFile {
    pub fn major(&self) -> Option<u32> {
        self.version.split('.').next()?.parse().ok()
    }
}

/// Where TensorRT may be, each with what led to it: `TENSORRT_LIB_DIR`, the folders of libraries, and the wheels of
/// Python environments.
pub(crate) fn tensorrt_folders() -> Vec<(PathBuf, String)> {
    let mut folders: Vec<(PathBuf, String)> = vec![];
    if let Some(dir) = env::var_os("TENSORRT_LIB_DIR").filter(|d| !d.is_empty()) {
        folders.push((dir.into(), "TENSORRT_LIB_DIR".to_owned()));
    }
    folders.extend(library_folders().into_iter().map(|(dir, source)| (dir, source.to_owned())));
    for (root, source) in python_environments() {
        for packages in site_packages(&root) {
            let wheels = entries(&packages, |name| {
                // Up to 8.6.0 the libraries lie in the package itself.
                name == "tensorrt" || name.starts_with("tensorrt") && name.ends_with("libs")
            });
            folders.extend(wheels.into_iter().map(|dir| (dir, source.clone())));
        }
    }
    folders
}

/// The libraries of TensorRT in these folders, full ones before lean runtimes.
pub(crate) fn tensorrt_libraries(folders: &[(PathBuf, String)]) -> Vec<TensorRtFile> {
    let mut libraries: Vec<TensorRtFile> = vec![];
    for file in folders.iter().flat_map(|(dir, source)| tensorrt_libraries_in(dir, source)) {
        if !libraries.iter().any(|other| same_file(&other.path, &file.path)) {
            libraries.push(file);
        }
    }
    libraries.sort_by_key(|file| file.lean);
    libraries
}

fn tensorrt_libraries_in(dir: &Path, source: &str) -> Vec<TensorRtFile> {
    let is_library = |name: &str| name.starts_with("libnvinfer.so") || name.starts_with("libnvinfer_lean.so");
    let mut files: Vec<TensorRtFile> = vec![];
    for path in entries(dir, is_library) {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        let name = real.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let version = name.split_once(".so.").map(|(_, v)| v.to_owned()).unwrap_or_default();
        let file = TensorRtFile { version, lean: name.contains("_lean"), path, source: source.to_owned() };
        files.push(file);
    }
    files
}
