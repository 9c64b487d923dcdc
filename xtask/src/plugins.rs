//! `cargo xtask plugins`

use std::path::PathBuf;

use trt_opt_plugin_build::{Built, Interface, Options, build};

#[derive(clap::Args)]
pub struct Args {
    /// Folder for libtrt_opt_plugins.so [default: target/plugins/trt<major>]
    #[arg(long)]
    out: Option<PathBuf>,
    /// CUDA architectures, such as `80,90` [default: $TRT_OPT_CUDA_ARCHS, else 75 80 86 89 90 100 120]
    #[arg(long, value_delimiter = ',')]
    archs: Option<Vec<String>>,
    /// TensorRT headers [default: $TENSORRT_INCLUDE_DIR, system folders, else TensorRT 11.4's]
    #[arg(long)]
    tensorrt_include: Option<PathBuf>,
    /// Plugin interface [default: v2 for TensorRT 8 headers, else v3]
    #[arg(long, value_parser = ["v2", "v3"])]
    interface: Option<String>,
    /// Compilers running at a time [default: number of CPUs]
    #[arg(long)]
    jobs: Option<usize>,
    /// Do not install nvcc or headers that are missing
    #[arg(long)]
    no_install: bool,
}

pub fn run(args: &Args) -> Result<(), String> {
    let mut options = Options::new(crate::root());
    options.out = args.out.clone();
    options.archs = args.archs.clone();
    options.tensorrt_include = args.tensorrt_include.clone();
    options.interface = args.interface.as_deref().map(|i| if i == "v2" { Interface::V2 } else { Interface::V3 });
    options.jobs = args.jobs;
    options.install = !args.no_install;
    print(&build(&options)?);
    Ok(())
}

pub fn print(built: &Built) {
    let o = &built.outcome;
    println!(
        "{}: {} for TensorRT {}, sm {}; {} compiled, {} up to date{}",
        built.library.display(),
        if built.interface == Interface::V2 { "IPluginV2DynamicExt" } else { "IPluginV3" },
        built.tensorrt_major,
        built.archs.join(" "),
        o.compiled.len(),
        o.kept,
        if o.linked { "" } else { ", not linked again" }
    );
}
