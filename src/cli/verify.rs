//! `trt-opt verify`: two models, the same inputs, all outputs compared.

use std::collections::BTreeMap;
use std::path::PathBuf;

use trt_opt::verify::{self, Options, Report};
use trt_opt::{Error, Result};

use super::out::{self, GREEN, RED, RESET};
use super::{Global, tables};

/// Run two models in ONNX Runtime and compare all their outputs
#[derive(clap::Args)]
#[command(after_help = "\
Inputs are random unless --inputs is given: normal for floats, the whole range for 8-bit integers,
0 or 1 for others. The error of an output is ||a - b|| / ||a||; 1e-5 is allowed, 2e-3 where a model
holds float16. Integers must be equal, and NaN never passes. Plugin nodes run by their reference
bodies. Exits with 1 if an output differs.

Examples:
  trt-opt verify swin.onnx swin.fused.onnx
  trt-opt verify swin.onnx swin.fused.onnx --batch 8 --seed 1
  trt-opt verify a.onnx b.onnx --inputs images.npz --rtol 1e-4 --json")]
pub struct Args {
    /// What is measured against
    a: PathBuf,
    /// What is measured
    b: PathBuf,
    /// Arrays for the inputs: .npz by input name, or .npy for a model of one input
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// How a comparison runs; `fuse --verify` takes them too.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Size of the first axis of inputs where the model leaves it open [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    pub batch: Option<i64>,
    /// Size of an open axis, by its name or as INPUT.AXIS; may be repeated
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = parse_dim)]
    dims: Vec<(String, i64)>,
    /// Allowed relative error, instead of the default of the type
    #[arg(long, value_name = "X", value_parser = parse_rtol)]
    rtol: Option<f64>,
    /// Seed of the random inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// ONNX Runtime's library, or a folder with it [default: ORT_DYLIB_PATH, else searched for]
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// Threads of ONNX Runtime [default: 4 at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

fn parse_dim(text: &str) -> Result<(String, i64), String> {
    let (name, size) = text.rsplit_once('=').ok_or("expected NAME=SIZE, as in height=224")?;
    match size.parse() {
        Ok(size) if size > 0 && !name.is_empty() => Ok((name.to_owned(), size)),
        _ => Err("expected NAME=SIZE with a size of 1 or more, as in height=224".into()),
    }
}

fn parse_rtol(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x >= 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a number of 0 or more, as in 1e-5".into()),
    }
}

impl RunArgs {
    pub fn resolve(self, inputs: Option<PathBuf>) -> Options {
        Options {
            onnxruntime: self.onnxruntime,
            inputs,
            batch: self.batch,
            dims: self.dims.into_iter().collect::<BTreeMap<_, _>>(),
            rtol: self.rtol,
            seed: self.seed,
            threads: self.threads.map(usize::from),
        }
    }
}

pub fn run(args: Args, global: &Global) -> Result<u8> {
    let options = args.run.resolve(args.inputs);
    let report = verify::compare(&args.a, &args.b, &options)?;
    if args.json {
        out::json(&report)?;
    } else if !global.quiet {
        out::text(&table(&report))?;
    }
    report.check()?;
    Ok(0)
}

/// The report for people.
pub fn table(report: &Report) -> String {
    let mut table = tables::new(["output", "type", "shape", "relative error", "allowed", "largest difference", ""]);
    for output in &report.outputs {
        let shape: Vec<String> = output.shape.iter().map(i64::to_string).collect();
        table.add_row([
            output.name.clone(),
            output.dtype.clone(),
            format!("[{}]", shape.join(", ")),
            output.problem.clone().unwrap_or_else(|| format!("{:.3e}", output.relative)),
            format!("{:.1e}", output.tolerance),
            format!("{:.3e}", output.max_abs),
            if output.passed { "ok" } else { "DIFFERS" }.to_owned(),
        ]);
    }
    let inputs = report.inputs.iter().map(|input| {
        let shape: Vec<String> = input.shape.iter().map(i64::to_string).collect();
        format!("{} {}[{}]", input.name, input.dtype, shape.join(", "))
    });
    let source = match report.seed {
        Some(seed) => format!("random, seed {seed}"),
        None => "given".to_owned(),
    };
    let verdict = match report.passed {
        true => format!("{GREEN}equal{RESET} within the tolerance"),
        false => format!("{RED}different{RESET}"),
    };
    format!(
        "{}\ninputs: {} ({source}); ONNX Runtime {}\n{verdict}\n",
        tables::text(&table),
        inputs.collect::<Vec<_>>().join(", "),
        report.onnxruntime
    )
}

/// A failed check of a model that was not written.
pub fn refuse(error: Error, output: &std::path::Path) -> Error {
    match error {
        Error::CheckFailed(text) => {
            Error::CheckFailed(format!("{text}\n{} was not written; --force writes it all the same", output.display()))
        }
        other => other,
    }
}
