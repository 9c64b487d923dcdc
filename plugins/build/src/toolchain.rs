//! Finding nvcc and the TensorRT headers, or installing them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::env::{Environment, python_packages, run};

/// nvcc and the runtime it compiles against, as PyPI packages: no root needed.
pub const CUDA_PACKAGES: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// The crate whose sources hold the TensorRT 11.4 headers; only its files are used, it is not built.
const HEADERS_CRATE: (&str, &str) = ("trtx-sys", "0.9.1+rtx1.7");
const HEADERS_FOLDER: &str = "TensorRT-Headers/TRT-Enterprise-11.4";

#[derive(Clone, Debug)]
pub struct Toolkit {
    pub nvcc: PathBuf,
    pub include: PathBuf,
    /// Holds `libcudart_static.a`.
    pub lib: PathBuf,
    pub cxx: PathBuf,
}

impl Toolkit {
    fn at(nvcc: PathBuf) -> Result<Self, String> {
        let nvcc = nvcc.canonicalize().map_err(|e| format!("{}: {e}", nvcc.display()))?;
        let root = nvcc.parent().and_then(Path::parent).unwrap_or(Path::new("/")).to_owned();
        let machine = if cfg!(target_arch = "aarch64") { "sbsa-linux" } else { "x86_64-linux" };
        let target = root.join("targets").join(machine);
        let holding = |folders: &[PathBuf], file: &str| {
            folders.iter().find(|f| f.join(file).exists()).cloned().ok_or_else(|| {
                format!(
                    "{} lies in none of {}",
                    file,
                    folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
                )
            })
        };
        let system = Path::new("/usr/lib").join(if cfg!(target_arch = "aarch64") {
            "aarch64-linux-gnu"
        } else {
            "x86_64-linux-gnu"
        });
        Ok(Toolkit {
            include: holding(
                &[root.join("include"), target.join("include"), "/usr/include".into()],
                "cuda_runtime_api.h",
            )?,
            lib: holding(&[root.join("lib64"), root.join("lib"), target.join("lib"), system], "libcudart_static.a")?,
            cxx: std::env::var_os("CXX").map_or_else(|| PathBuf::from("c++"), PathBuf::from),
            nvcc,
        })
    }

    /// Architectures that this nvcc makes machine code for, such as `90`.
    pub fn architectures(&self) -> Result<Vec<String>, String> {
        let listed = run(Command::new(&self.nvcc).arg("--list-gpu-code"))?;
        Ok(listed.lines().filter_map(|l| l.trim().strip_prefix("sm_").map(str::to_owned)).collect())
    }
}

/// nvcc by `NVCC`, `CUDA_HOME`, `CUDA_PATH`, the search path or `/usr/local/cuda`; else the project's own.
pub fn find_toolkit(environment: &Environment) -> Result<Toolkit, String> {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return Toolkit::at(nvcc.into()).map_err(|e| format!("NVCC: {e}"));
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = std::env::var_os(variable) {
            return Toolkit::at(Path::new(&home).join("bin/nvcc")).map_err(|e| format!("{variable}: {e}"));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|f| f.join("nvcc"))
        .chain(["/usr/local/cuda/bin/nvcc".into()])
        .find(|nvcc| nvcc.is_file());
    if let Some(toolkit) = found.and_then(|nvcc| Toolkit::at(nvcc).ok()) {
        return Ok(toolkit);
    }
    match python_packages(environment, "cuda", CUDA_PACKAGES)? {
        Some(site) => Toolkit::at(site.join("nvidia/cu13/bin/nvcc")),
        None => {
            Err("nvcc was not found: set NVCC or CUDA_HOME, or let the build install it with `cargo xtask plugins`"
                .into())
        }
    }
}

#[derive(Clone, Debug)]
pub struct Headers {
    pub include: PathBuf,
    pub major: u32,
}

impl Headers {
    pub fn at(include: PathBuf) -> Result<Self, String> {
        let file = include.join("NvInferVersion.h");
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let define = |name: &str| {
            text.lines().find_map(|line| {
                let mut words = line.split_whitespace();
                (words.next() == Some("#define") && words.next() == Some(name))
                    .then(|| words.next().unwrap_or_default().to_owned())
            })
        };
        // The major version is a number, or the name of another macro that is.
        let value = define("NV_TENSORRT_MAJOR")
            .ok_or_else(|| format!("{} does not define NV_TENSORRT_MAJOR", file.display()))?;
        let number = value.parse().ok().or_else(|| define(&value)?.parse().ok());
        match number {
            Some(major) if major >= 8 => Ok(Headers { include, major }),
            Some(major) => Err(format!("{} is of TensorRT {major}; 8 or later is needed", file.display())),
            None => Err(format!("{} has an unreadable NV_TENSORRT_MAJOR", file.display())),
        }
    }
}

/// TensorRT headers: `given`, `TENSORRT_INCLUDE_DIR`, the usual system folders, else those inside crate trtx-sys.
pub fn find_headers(environment: &Environment, given: Option<&Path>) -> Result<Headers, String> {
    if let Some(include) = given {
        return Headers::at(include.to_owned());
    }
    if let Some(include) = std::env::var_os("TENSORRT_INCLUDE_DIR") {
        return Headers::at(include.into()).map_err(|e| format!("TENSORRT_INCLUDE_DIR: {e}"));
    }
    let system = [
        "/usr/include/x86_64-linux-gnu",
        "/usr/include/aarch64-linux-gnu",
        "/usr/include",
        "/usr/local/tensorrt/include",
        "/usr/local/TensorRT/include",
        "/opt/tensorrt/include",
    ];
    match system.iter().find(|f| Path::new(f).join("NvInferVersion.h").exists()) {
        Some(include) => Headers::at(include.into()),
        None => crate_headers(environment),
    }
}

/// The headers of TensorRT 11.4 inside crate trtx-sys: fetched by cargo through a manifest that depends on it.
pub fn crate_headers(environment: &Environment) -> Result<Headers, String> {
    let folder = environment.folder.join("tensorrt-headers");
    let manifest = folder.join("Cargo.toml");
    let text = format!(
        "[package]\nname = \"tensorrt-headers\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[dependencies]\n{} = \"={}\"\n\n[workspace]\n",
        HEADERS_CRATE.0, HEADERS_CRATE.1
    );
    let write = |path: &Path, text: &str| {
        if std::fs::read_to_string(path).is_ok_and(|have| have == text) {
            return Ok(());
        }
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
            .and_then(|()| std::fs::write(path, text))
            .map_err(|e| format!("{}: {e}", path.display()))
    };
    write(&manifest, &text)?;
    write(&folder.join("src/lib.rs"), "")?;
    let cargo = || {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&folder);
        command
    };
    let metadata = |offline: bool| {
        let mut command = cargo();
        command.args(["metadata", "--format-version", "1"]);
        if offline {
            command.arg("--offline");
        }
        run(&mut command)
    };
    let mut listed = metadata(true);
    if listed.is_err() && environment.install {
        listed = metadata(false);
    }
    let listed =
        listed.map_err(|e| format!("the TensorRT headers of crate {} could not be fetched: {e}", HEADERS_CRATE.0))?;
    // "manifest_path":"/.../trtx-sys-VERSION/Cargo.toml"
    let ending = format!("/{}-{}/Cargo.toml", HEADERS_CRATE.0, HEADERS_CRATE.1);
    let root = listed
        .split("\"manifest_path\":\"")
        .filter_map(|rest| rest.split('"').next())
        .find_map(|path| {
            path.strip_suffix(&ending).map(|parent| format!("{parent}/{}-{}", HEADERS_CRATE.0, HEADERS_CRATE.1))
        })
        .ok_or_else(|| format!("cargo metadata does not list crate {}", HEADERS_CRATE.0))?;
    Headers::at(Path::new(&root).join(HEADERS_FOLDER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(version: &str) -> Result<Headers, String> {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("trt-opt-headers-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("NvInferVersion.h"), version).unwrap();
        let found = Headers::at(folder.clone());
        std::fs::remove_dir_all(folder).unwrap();
        found
    }

    #[test]
    fn header_version_is_a_number_or_another_macro() {
        assert_eq!(headers("#define NV_TENSORRT_MAJOR 8 //!< major\n").unwrap().major, 8);
        assert_eq!(
            headers("#define TRT_MAJOR_ENTERPRISE 11\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< x\n")
                .unwrap()
                .major,
            11
        );
        assert!(headers("#define NV_TENSORRT_MAJOR 7\n").unwrap_err().contains("8 or later"));
        assert!(headers("#define NV_TENSORRT_MAJOR OTHER\n").unwrap_err().contains("unreadable"));
        assert!(headers("").unwrap_err().contains("does not define"));
    }
}
