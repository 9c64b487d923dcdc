//! `cargo xtask gpu-test`: tests/gpu/run.sh with the toolkit that the plugin build uses.

use std::path::PathBuf;
use std::process::Command;

use trt_opt_plugin_build::{Environment, find_toolkit};

#[derive(clap::Args)]
pub struct Args {
    /// Folder for results [default: target/gpu]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Arguments of tests/gpu/run.sh
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

pub fn run(args: &Args) -> Result<(), String> {
    let root = crate::root();
    let toolkit = find_toolkit(&Environment::new(&root, true))?;
    let out = args.out.clone().unwrap_or_else(|| root.join("target/gpu"));
    let status = Command::new(root.join("tests/gpu/run.sh"))
        .env("NVCC", &toolkit.nvcc)
        .env("CUDA_LIB", &toolkit.lib)
        .env("OUT", &out)
        .args(&args.rest)
        .status()
        .map_err(|e| format!("tests/gpu/run.sh: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("tests/gpu/run.sh: {status}")) }
}
