//! Project chores: what a Makefile would do. One module a subcommand.

mod gpu_test;
mod lean_runtime;
mod plugins;
mod plugins_test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the trt-opt project")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build libtrt_opt_plugins.so
    Plugins(plugins::Args),
    /// Check the plugin library without a GPU: real TensorRT runtimes, creators, exports, machine code
    PluginsTest(plugins_test::Args),
    /// Fetch TensorRT's lean runtime of the headers' major version, and print the path of its library
    LeanRuntime,
    /// Check and time the kernels on this machine's GPU
    GpuTest(gpu_test::Args),
}

/// Repository root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_owned()
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Plugins(args) => plugins::run(&args),
        Command::PluginsTest(args) => plugins_test::run(&args),
        Command::LeanRuntime => lean_runtime::run(),
        Command::GpuTest(args) => gpu_test::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
