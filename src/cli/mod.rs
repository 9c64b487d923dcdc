//! The command line: one file a subcommand, each with its raw arguments, what they resolve to, and the printing of
//! what the library returns.

#[cfg(feature = "engine")]
mod bench;
#[cfg(feature = "engine")]
mod build;
#[cfg(feature = "engine")]
mod builder;
mod completions;
mod diff;
mod doctor;
mod fuse;
mod inspect;
mod out;
mod plugins;
mod print;
mod report;
mod spinner;
#[cfg(feature = "engine")]
mod study;
mod tables;
#[cfg(feature = "engine")]
mod tune;
mod verify;
#[cfg(feature = "engine")]
mod workshop;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use trt_opt::error::exit;
use trt_opt::onnx::{self, Model};
use trt_opt::{Error, Result};

const EXIT_CODES: &str = "\
Exit codes:
  0   success
  1   a check said no: verify found a difference, diff found one, --require missed a site,
      plugins check found a fault, an engine is not the fp16 engine that was asked for
  2   wrong usage
  3   the input is no model, breaks a rule of ONNX, or ONNX Runtime or TensorRT refuses it
  4   something needed is not on this machine (doctor says what, and how to get it)
  5   a file cannot be read or written
  70  a bug of trt-opt";

const EXAMPLES: &str = "\
Examples:
  trt-opt fuse swin.onnx                        rewrite, to swin.fused.onnx
  trt-opt fuse swin.onnx --verify               and prove in ONNX Runtime that it computes the same
  trt-opt inspect swin.onnx                     what is in it, and what would be fused
  trt-opt doctor                                what this machine has";

/// Heading of the options of every command.
const COMMON: &str = "Common options";

/// Rewrites ONNX vision transformers so that TensorRT runs them as few fused nodes.
#[derive(Parser)]
#[command(name = "trt-opt", version, long_version = long_version(), after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"), max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(clap::Args)]
pub struct Global {
    /// Print only what was asked for and errors: no tables, progress or warnings
    #[arg(short, long, global = true, help_heading = COMMON, conflicts_with = "verbose")]
    quiet: bool,
    /// Print more: all missed sites, and what the program does (-vv and -vvv for more)
    #[arg(short, long, global = true, help_heading = COMMON, action = ArgAction::Count)]
    verbose: u8,
    /// When to use colour
    #[arg(long, global = true, help_heading = COMMON, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Subcommand)]
enum Command {
    Fuse(fuse::Args),
    Inspect(inspect::Args),
    Print(print::Args),
    Diff(diff::Args),
    Verify(verify::Args),
    #[cfg(feature = "engine")]
    Build(build::Args),
    #[cfg(feature = "engine")]
    Builder(builder::Args),
    #[cfg(feature = "engine")]
    Bench(bench::Args),
    #[cfg(feature = "engine")]
    Tune(tune::Args),
    Plugins(plugins::Args),
    Report(report::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
}

/// The version, and the TensorRT that the program was compiled for.
fn long_version() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let tensorrt = match trt_opt::doctor::tensorrt_headers() {
            Some((_, version)) => format!("compiled for TensorRT {version}"),
            None => "compiled without TensorRT".to_owned(),
        };
        format!("{}\n{tensorrt}", env!("CARGO_PKG_VERSION"))
    });
    &TEXT
}

pub fn main() -> ExitCode {
    run(std::env::args_os())
}

fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version come this way too; a closed pipe is not worth a word.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    cli.global.set_up();
    let global = &cli.global;
    let outcome = match cli.command {
        Command::Fuse(args) => fuse::run(args, global),
        Command::Inspect(args) => inspect::run(args, global),
        Command::Print(args) => print::run(args, global),
        Command::Diff(args) => diff::run(args, global),
        Command::Verify(args) => verify::run(args, global),
        #[cfg(feature = "engine")]
        Command::Build(args) => build::run(args, global),
        #[cfg(feature = "engine")]
        Command::Builder(args) => builder::run(args, global),
        #[cfg(feature = "engine")]
        Command::Bench(args) => bench::run(args, global),
        #[cfg(feature = "engine")]
        Command::Tune(args) => tune::run(args, global),
        Command::Plugins(args) => plugins::run(args, global),
        Command::Report(args) => report::run(args, global),
        Command::Doctor(args) => doctor::run(args, global),
        Command::Completions(args) => completions::run(args, global),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        // `trt-opt print model.onnx | head` closes the pipe early, and that is fine.
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            out::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

impl Global {
    fn set_up(&self) {
        let choice = match self.color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
        let level = match (self.quiet, self.verbose) {
            (true, _) => "error",
            (_, 0) => "warn",
            (_, 1) => "info",
            (_, 2) => "debug",
            _ => "trace",
        };
        let filter = tracing_subscriber::EnvFilter::try_from_env("TRT_OPT_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("error,trt_opt={level}")));
        let ansi = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(|| spinner::Stderr)
            .with_ansi(ansi)
            .without_time()
            .with_target(false)
            .init();
    }
}

/// Loads a model that will be rewritten or read as a graph.
fn load(path: &Path) -> Result<Model> {
    let model = onnx::load(path)?;
    onnx::check_supported(&model)?;
    Ok(model)
}

/// File name of a path, for messages and the ledger.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
