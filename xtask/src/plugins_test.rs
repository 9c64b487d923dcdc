//! `cargo xtask plugins-test`: everything about the plugin library that needs no GPU.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use trt_opt_plugin_build::{
    Environment, Headers, Interface, Options, Toolkit, build, find_headers, find_toolkit, python_packages,
    run as output_of,
};

/// Real TensorRT without a GPU: major version, its pinned wheel, the library in it.
const RUNTIMES: &[(u32, &str, &str)] = &[
    (10, "tensorrt-lean-cu13-libs==10.16.1.11", "tensorrt_lean_libs/libnvinfer_lean.so.10"),
    (11, "tensorrt-lean-cu13-libs==11.4.0.106", "tensorrt_lean_libs/libnvinfer_lean.so.11"),
];
/// TensorRT 10 headers (the registry's virtual functions differ between 10 and 11).
const HEADERS_10: (&str, &str) = ("kernel-lens==2.0.1", "kernel_lens/include/tensorrt");
const DISASSEMBLERS: &[&str] = &["nvidia-cuda-cuobjdump==13.2.86", "nvidia-cuda-nvdisasm==13.2.86"];

#[derive(clap::Args)]
pub struct Args {
    /// CUDA architectures to build and disassemble [default: $TRT_OPT_CUDA_ARCHS, else 80 90]
    #[arg(long, value_delimiter = ',')]
    archs: Option<Vec<String>>,
    /// Write the creators' field lists to plugins/ops.json instead of comparing them with it
    #[arg(long)]
    bless: bool,
}

pub fn run(args: &Args) -> Result<(), String> {
    let root = crate::root();
    let environment = Environment::new(&root, true);
    let toolkit = find_toolkit(&environment)?;
    let headers = find_headers(&environment, None)?;
    let mut options = Options::new(&root);
    options.archs = args.archs.clone();
    if options.archs.is_none() && std::env::var_os("TRT_OPT_CUDA_ARCHS").is_none() {
        options.archs = Some(vec!["80".into(), "90".into()]);
    }
    options.interface = Some(Interface::V3);
    let v3 = build(&options)?;
    crate::plugins::print(&v3);
    options.interface = Some(Interface::V2);
    options.out = Some(root.join(format!("target/plugins/trt{}-v2", headers.major)));
    let v2 = build(&options)?;
    crate::plugins::print(&v2);

    exports(&root, &v3.library, Interface::V3)?;
    exports(&root, &v2.library, Interface::V2)?;
    self_contained(&v3.library)?;
    machine_code(&environment, &v3.library, &v3.archs)?;

    let tools = root.join("target/plugins/check");
    std::fs::create_dir_all(&tools).map_err(|e| format!("{}: {e}", tools.display()))?;
    let check_v2 = checker(&root, &toolkit, &headers, "check_v2", &tools)?;
    show(&output_of(Command::new(check_v2).arg(&v2.library))?);
    let check_v3 = checker(&root, &toolkit, &headers, "check_v3", &tools)?;
    show(&output_of(Command::new(&check_v3).arg(&v3.library))?);
    fields(&root, &output_of(Command::new(&check_v3).arg(&v3.library).arg("--dump"))?, args.bless)?;
    let program = program(&root)?;
    let (loadable, other) = if headers.major >= 10 { (&v3, &v2) } else { (&v2, &v3) };
    show(&output_of(Command::new(&program).args(["plugins", "check"]).arg(&loadable.library))?);
    refused(Command::new(&program).args(["plugins", "check"]).arg(&other.library), 1, "of interface")?;

    for (major, wheel, library) in RUNTIMES {
        let library = lean_library(&environment, *major, wheel, library)?;
        let of_major = if headers.major == *major {
            headers.clone()
        } else if *major == 10 {
            Headers::at(installed(&environment, "tensorrt-headers-10", &[HEADERS_10.0])?.join(HEADERS_10.1))?
        } else {
            return Err(format!("no headers of TensorRT {major} to check with"));
        };
        let tool = checker(&root, &toolkit, &of_major, "check_v3", &tools)?;
        show(&output_of(Command::new(tool).arg(&v3.library).arg("--tensorrt").arg(&library))?);
        let mut check = Command::new(&program);
        check.args(["plugins", "check"]).arg(&loadable.library).arg("--tensorrt").arg(&library);
        if headers.major == *major {
            show(&output_of(&mut check)?);
        } else {
            refused(&mut check, 4, "compiled for TensorRT")?;
        }
    }
    println!("the plugin library passes");
    Ok(())
}

/// The library of TensorRT's lean runtime of a major version, installed if it is not there.
pub fn lean_runtime(environment: &Environment, major: u32) -> Result<PathBuf, String> {
    let (_, wheel, library) = RUNTIMES
        .iter()
        .find(|(of, ..)| *of == major)
        .ok_or_else(|| format!("there is no lean runtime of TensorRT {major} on PyPI"))?;
    lean_library(environment, major, wheel, library)
}

fn lean_library(environment: &Environment, major: u32, wheel: &str, library: &str) -> Result<PathBuf, String> {
    Ok(installed(environment, &format!("tensorrt-lean-{major}"), &[wheel])?.join(library))
}

/// The program `trt-opt`, built.
fn program(root: &Path) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    output_of(Command::new(cargo).current_dir(root).args([
        "build",
        "--quiet",
        "--package",
        "trt-opt",
        "--bin",
        "trt-opt",
    ]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("debug/trt-opt"))
}

/// The command ends with this exit code and says so.
fn refused(command: &mut Command, code: i32, message: &str) -> Result<(), String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|e| format!("{shown}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() != Some(code) || !text.contains(message) {
        return Err(format!("{shown}: {}, expected exit code {code} and \"{message}\"\n{text}", output.status));
    }
    print!("refused as it should be: {text}");
    Ok(())
}

fn show(text: &str) {
    print!("{text}");
}

fn installed(environment: &Environment, name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    python_packages(environment, name, packages)?
        .ok_or_else(|| format!("{} could not be installed", packages.join(", ")))
}

fn checker(root: &Path, toolkit: &Toolkit, headers: &Headers, name: &str, folder: &Path) -> Result<PathBuf, String> {
    let tool = folder.join(format!("{name}_{}", headers.major));
    let mut command = Command::new(&toolkit.cxx);
    command.args(["-std=c++17", "-O1", "-Wall", "-Wno-deprecated-declarations"]);
    for include in [&headers.include, &toolkit.include] {
        command.arg("-isystem").arg(include);
    }
    command.arg(root.join(format!("tests/plugins/{name}.cpp"))).arg("-o").arg(&tool).arg("-ldl");
    output_of(&mut command)?;
    Ok(tool)
}

/// Exported symbols equal the linker map's global names.
fn exports(root: &Path, library: &Path, interface: Interface) -> Result<(), String> {
    let map = root.join(format!("plugins/adapters/exports_{}.map", interface.name()));
    let text = std::fs::read_to_string(&map).map_err(|e| format!("{}: {e}", map.display()))?;
    let named = text
        .split_once("global:")
        .and_then(|(_, rest)| rest.split_once("local:"))
        .map(|(names, _)| names)
        .ok_or_else(|| format!("{} is not understood", map.display()))?;
    let wanted: BTreeSet<String> = named.split(';').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect();
    let listed = output_of(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(library))?;
    let found: BTreeSet<String> =
        listed.lines().filter_map(|l| l.split_whitespace().next().map(str::to_owned)).collect();
    if wanted != found {
        return Err(format!("{} exports {found:?}; {} says {wanted:?}", library.display(), map.display()));
    }
    println!("exports of {}: {}", interface.name(), found.into_iter().collect::<Vec<_>>().join(" "));
    Ok(())
}

/// Neither TensorRT nor a CUDA runtime is needed to load the library.
fn self_contained(library: &Path) -> Result<(), String> {
    let dynamic = output_of(Command::new("readelf").args(["-d"]).arg(library))?;
    let needed: Vec<&str> = dynamic
        .lines()
        .filter(|l| l.contains("(NEEDED)"))
        .filter_map(|l| l.split('[').nth(1)?.split(']').next())
        .collect();
    match needed.iter().find(|n| n.starts_with("libnvinfer") || n.starts_with("libcuda")) {
        Some(bad) => Err(format!("{} is linked to {bad}", library.display())),
        None => {
            println!("needs {}", needed.join(" "));
            Ok(())
        }
    }
}

/// The attention and block kernels of each architecture use the tensor cores.
fn machine_code(environment: &Environment, library: &Path, archs: &[String]) -> Result<(), String> {
    let bin = installed(environment, "cuda-disassembler", DISASSEMBLERS)?.join("nvidia/cu13/bin");
    let path = std::env::join_paths(
        std::iter::once(bin.clone()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )
    .map_err(|e| e.to_string())?;
    for arch in archs {
        let sass = output_of(
            Command::new(bin.join("cuobjdump"))
                .env("PATH", &path)
                .args(["-sass", "-arch", &format!("sm_{arch}")])
                .arg(library),
        )?;
        let (mut kernels, mut with) = (0, 0);
        for kernel in sass.split("Function : ").skip(1) {
            let name = kernel.lines().next().unwrap_or_default();
            let attention = name.contains("attention_resident_kernel") || name.contains("attention_stream_kernel");
            // Empty for sm_75, where the plain kernel runs, and for all before sm_90.
            let mlp = (name.contains("mlp_block_kernel")
                || name.contains("tnt_inner_kernel")
                || name.contains("pixel_embed_kernel")
                || name.contains("conv_stack_kernel"))
                && arch != "75";
            let product = (name.contains("block_gemm_kernel")
                || name.contains("attn_heads_kernel")
                || name.contains("pooled_heads_kernel")
                || name.contains("pooled_merge_kernel")
                || name.contains("mlp_cluster_kernel")
                || name.contains("mlp_rows_kernel"))
                && arch.parse().is_ok_and(|a: u32| a >= 90);
            if attention || mlp || product {
                kernels += 1;
                with += usize::from(kernel.contains("HMMA"));
            }
        }
        if kernels == 0 || with != kernels {
            return Err(format!(
                "sm_{arch}: {with} of {kernels} attention and block kernels use tensor-core instructions"
            ));
        }
        println!("sm_{arch}: all {kernels} fp16 attention and block kernels use tensor-core instructions");
    }
    Ok(())
}

/// plugins/ops.json holds the creators' field lists for whoever has no built library.
fn fields(root: &Path, dumped: &str, bless: bool) -> Result<(), String> {
    let path = root.join("plugins/ops.json");
    if bless {
        std::fs::write(&path, dumped).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let kept = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    if kept != dumped {
        return Err(format!(
            "{} differs from the creators' fields; `cargo xtask plugins-test --bless` writes it",
            path.display()
        ));
    }
    println!("plugins/ops.json agrees with the creators");
    Ok(())
}
