//! `trt-opt doctor`: what this machine has, and how to get the rest.

use std::path::PathBuf;

use serde::Serialize;
use trt_opt::doctor::{Finding, Part, examine, tensorrt_headers};
use trt_opt::{Error, Result};

use super::Global;
use super::out::{self, BOLD, DIM, GREEN, RESET, YELLOW};

/// Show what is found on this machine, what is missing, and how to get it
#[derive(clap::Args)]
#[command(after_help = "\
Rewriting needs none of it. Exits with 0 whatever is missing, unless --require names it.

Examples:
  trt-opt doctor
  trt-opt doctor --require onnxruntime,gpu")]
pub struct Args {
    /// Exit with 4 if one of these is missing
    #[arg(long, value_name = "PART,...", value_delimiter = ',')]
    require: Vec<Part>,
    /// ONNX Runtime's library, or a folder with it [default: ORT_DYLIB_PATH, else searched for]
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    version: &'a str,
    /// The TensorRT that the program was compiled for; null if without.
    compiled_for_tensorrt: Option<String>,
    findings: &'a [Finding],
}

pub fn run(args: Args, global: &Global) -> Result<u8> {
    let findings = examine(args.onnxruntime.as_deref());
    if args.json {
        out::json(&Json {
            version: env!("CARGO_PKG_VERSION"),
            compiled_for_tensorrt: tensorrt_headers().map(|(_, version)| version),
            findings: &findings,
        })?;
    } else if !global.quiet {
        let program = format!("{BOLD}trt-opt{RESET} {}\n", super::long_version().replace('\n', ", "));
        out::text(&(program + &findings.iter().map(describe).collect::<String>()))?;
    }
    match findings.into_iter().find(|f| args.require.contains(&f.part) && !f.ok()) {
        Some(missing) => Err(Error::Missing {
            what: missing.part.title().0,
            why: missing.problem.unwrap_or_else(|| "it was not found".into()),
            hint: missing.hint,
        }),
        None => Ok(0),
    }
}

fn describe(finding: &Finding) -> String {
    let (title, purpose) = finding.part.title();
    let mut text = String::new();
    for item in &finding.found {
        let version = if item.version.is_empty() { "found" } else { &item.version };
        let path = item.path.as_ref().map(|p| format!(" {}", p.display())).unwrap_or_default();
        text += &format!("{GREEN}ok{RESET}      {BOLD}{title}{RESET} {version}{path} {DIM}({}){RESET}\n", item.source);
    }
    if !finding.ok() {
        text += &format!("{YELLOW}missing{RESET} {BOLD}{title}{RESET} {DIM}(for {purpose}){RESET}\n");
        if let Some(problem) = &finding.problem {
            text += &format!("        {problem}\n");
        }
        text += &format!("        {}\n", finding.hint);
    }
    text
}
