//! What this machine has of what the toolkit can use, and how to get the rest.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::files::same_file;
use crate::machine::{
    TensorRtFile, entries, library_folders, python_environments, site_packages, tensorrt_folders, tensorrt_libraries,
};
use crate::verify;

/// Something that is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Part {
    OnnxRuntime,
    Plugins,
    TensorRt,
    Nvcc,
    Gpu,
}

impl Part {
    pub const ALL: [Self; 5] = [Self::OnnxRuntime, Self::Plugins, Self::TensorRt, Self::Nvcc, Self::Gpu];

    /// What it is called, and what it is for.
    pub fn title(self) -> (&'static str, &'static str) {
        match self {
            Self::OnnxRuntime => ("ONNX Runtime", "verify, fuse --verify"),
            Self::Plugins => ("plugin library", "engines with fused nodes"),
            Self::TensorRt => ("TensorRT", "building and running engines"),
            Self::Nvcc => ("nvcc", "building the plugin library"),
            Self::Gpu => ("GPU", "running engines"),
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::OnnxRuntime => "onnxruntime",
            Self::Plugins => "plugins",
            Self::TensorRt => "tensorrt",
            Self::Nvcc => "nvcc",
            Self::Gpu => "gpu",
        })
    }
}

/// What was found of a part. Empty `found` means that it is missing, and then `hint` says how to get it.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub part: Part,
    pub found: Vec<Item>,
    /// What went wrong, where something is there and cannot be used.
    pub problem: Option<String>,
    pub hint: String,
}

/// One of the things found, the one that is used first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    pub version: String,
    pub path: Option<PathBuf>,
    /// What led to it.
    pub source: String,
}

impl Finding {
    pub fn ok(&self) -> bool {
        !self.found.is_empty()
    }
}

/// Looks for everything. ONNX Runtime is loaded to see that it can be; nothing else is.
pub fn examine(onnxruntime: Option<&Path>) -> Vec<Finding> {
    Part::ALL.into_iter().map(|part| look_for(part, onnxruntime)).collect()
}

fn look_for(part: Part, onnxruntime: Option<&Path>) -> Finding {
    let mut problem = None;
    let (found, hint) = match part {
        Part::OnnxRuntime => {
            let found = match verify::runtime(onnxruntime) {
                Ok(runtime) => vec![Item {
                    version: runtime.version.clone(),
                    path: Some(runtime.path.clone()),
                    source: runtime.source.clone(),
                }],
                Err(error) => {
                    if let crate::Error::Missing { why, .. } = error {
                        problem = Some(why);
                    }
                    vec![]
                }
            };
            (
                found,
                "pip install onnxruntime, in a Python environment that is active or in ./.env; or set ORT_DYLIB_PATH",
            )
        }
        Part::Plugins => (plugins(), "build it with 'cargo xtask plugins', or set TRT_OPT_PLUGINS to the library"),
        Part::TensorRt => (
            tensorrt(),
            "install TensorRT 8.6, 10 or 11 and put its lib folder into LD_LIBRARY_PATH, or set TENSORRT_LIB_DIR to it",
        ),
        Part::Nvcc => (
            nvcc(),
            "install the CUDA toolkit, or pip install nvidia-cuda-nvcc and its siblings; or set NVCC to the program",
        ),
        Part::Gpu => (gpus(), "an NVIDIA GPU and its driver; models can be rewritten and verified without"),
    };
    Finding { part, found, problem, hint: hint.to_owned() }
}

fn plugins() -> Vec<Item> {
    let is_plugin = |name: &str| name.starts_with("libtrt_opt_plugins") && name.contains(".so");
    let mut folders = vec![];
    let mut found = vec![];
    if let Some(named) = env::var_os("TRT_OPT_PLUGINS").filter(|p| !p.is_empty()) {
        let named = PathBuf::from(named);
        match named.is_dir() {
            true => folders.push((named, "TRT_OPT_PLUGINS".to_owned())),
            false if named.is_file() => {
                found.push(Item { version: String::new(), path: Some(named), source: "TRT_OPT_PLUGINS".into() });
            }
            false => {}
        }
    }
    let beside = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    folders.extend(beside.map(|dir| (dir, "beside the program".to_owned())));
    let here = env::current_dir().unwrap_or_default();
    let built = here.join("target/plugins");
    folders.extend(entries(&built, |_| true).into_iter().map(|dir| (dir, "cargo xtask plugins".to_owned())));
    folders.extend(library_folders().into_iter().map(|(dir, source)| (dir, source.to_owned())));
    for (dir, source) in folders {
        // The builder names folders after the version of TensorRT.
        let version = dir.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("trt"));
        let version = version.map(|v| format!("for TensorRT {v}")).unwrap_or_default();
        for path in entries(&dir, is_plugin) {
            push_new(&mut found, Item { version: version.clone(), path: Some(path), source: source.clone() });
        }
    }
    found
}

/// The TensorRT that this program was compiled for, as its major version and in full; `None` without the feature
/// `engine`.
pub fn tensorrt_headers() -> Option<(u32, String)> {
    #[cfg(feature = "engine")]
    {
        let version = crate::engine::compiled_for();
        Some((version.major, version.to_string()))
    }
    #[cfg(not(feature = "engine"))]
    None
}

fn tensorrt() -> Vec<Item> {
    let item = |file: TensorRtFile| {
        let mut version = file.version.clone();
        if file.lean {
            version += " (lean runtime: runs engines, builds none)";
        }
        if let (Some((expected, _)), Some(found)) = (tensorrt_headers(), file.major())
            && found != expected
        {
            version += &format!(" (not used: this program was compiled for TensorRT {expected})");
        }
        Item { version, path: Some(file.path), source: file.source }
    };
    tensorrt_libraries(&tensorrt_folders()).into_iter().map(item).collect()
}

/// Adds an item unless its file is there already under another name.
fn push_new(found: &mut Vec<Item>, item: Item) {
    let same = |other: &Item| match (&other.path, &item.path) {
        (Some(a), Some(b)) => same_file(a, b),
        _ => other.path == item.path,
    };
    if !found.iter().any(same) {
        found.push(item);
    }
}

fn nvcc() -> Vec<Item> {
    let mut programs: Vec<(PathBuf, String)> = vec![];
    for variable in ["NVCC", "CUDACXX"] {
        programs.extend(env::var_os(variable).filter(|p| !p.is_empty()).map(|p| (p.into(), variable.to_owned())));
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        let home = env::var_os(variable).filter(|p| !p.is_empty());
        programs.extend(home.map(|p| (PathBuf::from(p).join("bin/nvcc"), variable.to_owned())));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    programs.extend(env::split_paths(&path).map(|dir| (dir.join("nvcc"), "PATH".to_owned())));
    programs.push(("/usr/local/cuda/bin/nvcc".into(), "/usr/local/cuda".into()));
    for (root, source) in python_environments() {
        for packages in site_packages(&root) {
            let toolkits = entries(&packages.join("nvidia"), |name| name.starts_with("cu"));
            programs.extend(toolkits.into_iter().map(|dir| (dir.join("bin/nvcc"), source.clone())));
        }
    }
    let mut found = vec![];
    for (path, source) in programs.into_iter().filter(|(path, _)| path.is_file()) {
        let Some(text) = run(&path, &["--version"]) else { continue };
        let version = text.split("release ").nth(1).and_then(|t| t.split(',').next()).unwrap_or_default().trim();
        push_new(&mut found, Item { version: version.to_owned(), path: Some(path), source });
    }
    found
}

fn gpus() -> Vec<Item> {
    let query = ["--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"];
    if let Some(text) = run(Path::new("nvidia-smi"), &query) {
        let item = |line: &str| Item { version: line.trim().to_owned(), path: None, source: "nvidia-smi".into() };
        return text.lines().filter(|l| !l.trim().is_empty()).map(item).collect();
    }
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let driver = driver.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()) && w.contains('.'));
    let mut found = vec![];
    for gpu in entries(Path::new("/proc/driver/nvidia/gpus"), |_| true) {
        let information = std::fs::read_to_string(gpu.join("information")).unwrap_or_default();
        let model = information.lines().find_map(|l| l.strip_prefix("Model:")).unwrap_or("unknown").trim();
        let version = format!("{model}, {}", driver.unwrap_or("unknown driver"));
        found.push(Item { version, path: None, source: "/proc/driver/nvidia".into() });
    }
    found
}

/// What a program prints, if it runs and says that all went well.
fn run(program: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
