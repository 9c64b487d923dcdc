//! `trt-opt tune`: the fusions of a model that pay on this machine.

use std::path::{Path, PathBuf};

use serde::Serialize;
use trt_opt::ablation::tune::{By, Candidate, Decision, Trial};
use trt_opt::ablation::tuning::{Tuned, Tuning};
use trt_opt::measure::stats::{Bootstrap, Summary};
use trt_opt::onnx;
use trt_opt::rewrite::Target;
use trt_opt::{Error, Result, files};

use super::out::{self, BOLD, RESET};
use super::spinner::Spinner;
use super::workshop::WorkshopArgs;
use super::{Global, file_name, load, tables};

/// Choose the fusions of a model by measured latency
#[derive(clap::Args)]
#[command(after_help = "\
Starts with everything fused, with blocks or without, and leaves out one group of sites at a time. Both
engines are timed in the same interleaved rounds, as CUDA graphs; a group that is faster left to TensorRT,
beyond noise, is left out, and the ledger says so with both figures. The model as exported is the outcome
if no choice of fusions beats it. A group whose engine cannot be built stays as it is, and is said to.

Examples:
  trt-opt tune swin.onnx --fp16 --plugins libtrt_opt_plugins.so
  trt-opt tune swin.onnx -o swin.tuned.onnx --fp16 --plugins lib.so --batch 32 --by kind")]
pub struct Args {
    model: PathBuf,
    /// The tuned model [default: MODEL with the ending .tuned.onnx]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Which sites are chosen together: all of a kind, or those of a kind and one stage of the network
    #[arg(long, value_name = "GROUP", default_value = "stage")]
    by: By,
    /// Let TensorRT choose float16 layers
    #[arg(long)]
    fp16: bool,
    /// Size of the batch axis, where the model leaves it open
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    batch: Option<i64>,
    /// The TensorRT that will run it [default: that of the library]
    #[arg(long)]
    target: Option<Target>,
    /// Write the ledger of the tuned model, with the figures of what was left out
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    workshop: WorkshopArgs,
}

#[derive(Serialize)]
struct Json<'a> {
    model: &'a Path,
    output: &'a Path,
    /// `native`, `canonical` or `fused`.
    choice: &'static str,
    native: &'a Summary,
    canonical: Option<&'a Summary>,
    fused: &'a Summary,
    decisions: &'a [Decision],
}

pub fn run(args: Args, global: &Global) -> Result<u8> {
    let output = args.output.clone().unwrap_or_else(|| args.model.with_extension("tuned.onnx"));
    for (option, path) in [("--output", Some(&output)), ("--ledger", args.ledger.as_ref())] {
        if path.is_some_and(|path| files::same_file(path, &args.model)) {
            return Err(Error::Usage(format!("{option} is the model, which is never written to; give another name")));
        }
    }
    let model = load(&args.model)?;
    let name = args.model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let tuned = args.workshop.with(|workshop| {
        let target = match args.target {
            Some(Target::Native) => return Err(Error::Usage("--target native has no plugins to choose among".into())),
            Some(target) => target,
            None => Target::of_major(workshop.library.version.major).ok_or_else(|| {
                Error::Usage(format!("there is no target for TensorRT {}; give --target", workshop.library.version))
            })?,
        };
        let spinner = Spinner::new(global);
        spinner.start("tuning");
        let tuning = Tuning {
            workshop,
            model: &model,
            name: &name,
            target,
            by: args.by,
            fp16: args.fp16,
            batch: args.batch,
            plan: args.workshop.plan.plan(),
            bootstrap: Bootstrap::default(),
        };
        tuning.run(&|job, _| spinner.show(&format!("built {}", file_name(&job.model))), &mut |decision| {
            spinner.show(&line(decision));
        })
    })?;
    onnx::save(&tuned.saved.model, &output, &onnx::SaveOptions::default())?;
    if let (Some(path), Some(ledger)) = (&args.ledger, &tuned.saved.ledger) {
        files::write(path, out::to_json(ledger)?.as_bytes())?;
    }
    if args.json {
        let outcome = &tuned.outcome;
        out::json(&Json {
            model: &args.model,
            output: &output,
            choice: match outcome.choice {
                Candidate::Native => "native",
                Candidate::Canonical => "canonical",
                Candidate::Without(_) => "fused",
            },
            native: &outcome.native,
            canonical: outcome.canonical.as_ref(),
            fused: &outcome.fused,
            decisions: &outcome.decisions,
        })?;
    } else if !global.quiet {
        out::text(&describe(&tuned, &args.model, &output))?;
    }
    Ok(0)
}

fn line(decision: &Decision) -> String {
    match (&decision.trial, &decision.untried) {
        (Some(Trial { fused_us, left_us, .. }), _) => {
            format!("{}: {fused_us:.1} us fused, {left_us:.1} us left: {}", decision.group, decision.verdict())
        }
        (None, why) => format!("{}: not timed: {}", decision.group, why.as_deref().unwrap_or_default()),
    }
}

fn describe(tuned: &Tuned, model: &Path, output: &Path) -> String {
    let mut table = tables::new(["fusion", "sites", "fused us", "left us", "ratio", "choice"]);
    let mut untried = String::new();
    for decision in &tuned.outcome.decisions {
        let figure = |of: &dyn Fn(&Trial) -> String| decision.trial.as_ref().map_or("-".to_owned(), of);
        table.add_row([
            decision.group.to_string(),
            decision.group.nodes.len().to_string(),
            figure(&|t| format!("{:.1}", t.fused_us)),
            figure(&|t| format!("{:.1}", t.left_us)),
            figure(&|t| format!("{:.3}", t.ratio.ratio)),
            decision.verdict().to_owned(),
        ]);
        if let Some(why) = &decision.untried {
            untried += &format!("\n{} was not timed and is as it was: {why}", decision.group);
        }
    }
    tables::align(&mut table, 1..5);
    let outcome = &tuned.outcome;
    let choice = match outcome.choice {
        Candidate::Native => "the model as exported: no choice of fusions was faster",
        Candidate::Canonical => "the model without plugins: no choice of fusions was faster",
        Candidate::Without(_) => "with plugins",
    };
    format!(
        "{}\n{untried}\nnative {:.1} us, canonical {}, with plugins {:.1} us; chosen: {BOLD}{choice}{RESET}\n{} -> {}\n",
        tables::text(&table),
        outcome.native.p50_us,
        outcome.canonical.as_ref().map_or("not timed".to_owned(), |c| format!("{:.1} us", c.p50_us)),
        outcome.fused.p50_us,
        model.display(),
        output.display()
    )
}
