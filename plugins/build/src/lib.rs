//! Builds `libtrt_opt_plugins.so`.
//!
//! Used by `cargo xtask plugins` and, behind the feature `plugins`, by the package's build script. Only the
//! standard library is used, so that it costs a build script nothing.
//!
//! An object is compiled again if its command line, its source or any header it includes changed (the
//! compilers write dependency files), so editing a kernel header rebuilds only what includes it.

mod compile;
mod env;
mod toolchain;

use std::path::{Path, PathBuf};

pub use compile::Outcome;
pub use env::{Environment, python_packages, run};
pub use toolchain::{Headers, Toolkit, find_headers, find_toolkit};

/// Architectures built when nothing else is asked for: `sm_` code for each, and PTX of the last.
pub const DEFAULT_ARCHS: &[&str] = &["75", "80", "86", "89", "90", "100", "120"];

/// Environment variables that change the result; a build script should rerun when they do.
pub const VARIABLES: &[&str] =
    &["NVCC", "CUDA_HOME", "CUDA_PATH", "CXX", "TENSORRT_INCLUDE_DIR", "TRT_OPT_CUDA_ARCHS", "TRT_OPT_ENV"];

/// Which plugin interface the library implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `IPluginV2DynamicExt`, TensorRT 8.
    V2,
    /// `IPluginV3`, TensorRT 10 and 11.
    V3,
}

impl Interface {
    pub fn name(self) -> &'static str {
        match self {
            Interface::V2 => "v2",
            Interface::V3 => "v3",
        }
    }
}

/// What to build. `Options::new` has the defaults.
#[derive(Clone, Debug)]
pub struct Options {
    /// Repository root: the folder that holds `plugins/`.
    pub root: PathBuf,
    /// Where the library goes; default `target/plugins/trt<major>`.
    pub out: Option<PathBuf>,
    /// Where objects go; default `target/plugins/obj`.
    pub objects: Option<PathBuf>,
    /// Compute capabilities such as `90`; default `TRT_OPT_CUDA_ARCHS`, else [`DEFAULT_ARCHS`] as far as nvcc knows them.
    pub archs: Option<Vec<String>>,
    /// TensorRT headers; default `TENSORRT_INCLUDE_DIR`, system folders, else those of crate trtx-sys.
    pub tensorrt_include: Option<PathBuf>,
    /// Default: V2 for headers of TensorRT 8, V3 otherwise.
    pub interface: Option<Interface>,
    /// Compilers running at a time; default the number of CPUs.
    pub jobs: Option<usize>,
    /// Whether missing tools may be installed into the project's environment.
    pub install: bool,
}

impl Options {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Options {
            root: root.into(),
            out: None,
            objects: None,
            archs: None,
            tensorrt_include: None,
            interface: None,
            jobs: None,
            install: true,
        }
    }
}

/// What came out of [`build`].
#[derive(Clone, Debug)]
pub struct Built {
    pub library: PathBuf,
    pub interface: Interface,
    pub tensorrt_major: u32,
    pub archs: Vec<String>,
    pub outcome: Outcome,
}

/// Finds the tools, compiles what changed and links the library.
pub fn build(options: &Options) -> Result<Built, String> {
    let environment = Environment::new(&options.root, options.install);
    let toolkit = find_toolkit(&environment)?;
    let headers = find_headers(&environment, options.tensorrt_include.as_deref())?;
    let interface = options.interface.unwrap_or(if headers.major <= 9 { Interface::V2 } else { Interface::V3 });
    let archs = architectures(options, &toolkit)?;
    let target = options.root.join("target/plugins");
    let objects = options.objects.clone().unwrap_or_else(|| target.join("obj"));
    let out = options.out.clone().unwrap_or_else(|| {
        target.join(format!(
            "trt{}{}",
            headers.major,
            if interface == Interface::V2 && headers.major > 9 { "-v2" } else { "" }
        ))
    });
    let plan = compile::Plan {
        root: &options.root,
        toolkit: &toolkit,
        headers: &headers,
        interface,
        archs: &archs,
        objects: &objects,
        out: &out,
    };
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (library, outcome) = plan.build(jobs)?;
    Ok(Built { library, interface, tensorrt_major: headers.major, archs, outcome })
}

/// All sources and headers of the library, for `cargo:rerun-if-changed`.
pub fn inputs(root: &Path) -> Vec<PathBuf> {
    ["plugins/kernels", "plugins/adapters"].map(|folder| root.join(folder)).to_vec()
}

fn architectures(options: &Options, toolkit: &Toolkit) -> Result<Vec<String>, String> {
    let split =
        |text: &str| text.split([' ', ',', ';']).filter(|a| !a.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let asked = options
        .archs
        .clone()
        .or_else(|| std::env::var("TRT_OPT_CUDA_ARCHS").ok().map(|v| split(&v)).filter(|v| !v.is_empty()));
    if let Some(asked) = asked {
        let cleaned: Vec<String> =
            asked.iter().flat_map(|a| split(a)).map(|a| a.trim_start_matches("sm_").replace('.', "")).collect();
        for arch in &cleaned {
            let digits = arch.trim_end_matches(|c: char| c.is_ascii_lowercase());
            match digits.parse::<u32>() {
                Ok(n) if n >= 75 && arch.len() - digits.len() <= 1 => {}
                Ok(n) if n < 75 => {
                    return Err(format!(
                        "architecture {arch} is not supported: 75 (Turing) is the oldest with the tensor-core instructions used"
                    ));
                }
                _ => return Err(format!("'{arch}' is not a CUDA architecture such as 80, 90 or sm_90")),
            }
        }
        if cleaned.is_empty() {
            return Err("no CUDA architecture was given".into());
        }
        return Ok(cleaned);
    }
    let known = toolkit.architectures()?;
    let archs: Vec<String> =
        DEFAULT_ARCHS.iter().filter(|a| known.iter().any(|k| k == *a)).map(|a| (*a).to_owned()).collect();
    if archs.is_empty() {
        return Err(format!("{} knows none of the architectures {}", toolkit.nvcc.display(), DEFAULT_ARCHS.join(" ")));
    }
    Ok(archs)
}
