//! `trt-opt report`: what fusions are worth, measured and as a page.

use std::path::{Path, PathBuf};

use serde::Serialize;
#[cfg(feature = "engine")]
use trt_opt::error::exit;
use trt_opt::report::{self, Goal, Mode, Precision, Report, Table, Tone, tables, view::View};
use trt_opt::{Error, Result};

use super::out::{self, GREEN, RED, RESET};
use super::{Global, tables as terminal};

/// Measure variants of models, and make a report of it: report.json, report.md and index.html
#[derive(clap::Args)]
#[command(after_help = "\
For each model of --models: as exported (native), without plugins in the form that TensorRT's own fusions
recognise (canonical), each fusion alone, all but each, all; and what 'trt-opt tune' chooses, if --variants
names 'tuned'. Every engine is compared with ONNX Runtime in fp32. All engines of a batch size are timed in
the same interleaved rounds, with the model called resnet50, which ratios are to.

Files to merge are report.json of earlier runs, all of the same kind of GPU and version of TensorRT.
Ratios to ResNet-50 and speed-ups are formed inside each run, never across runs.

Examples:
  trt-opt report --models resnet50=resnet50.onnx swin_t=swin.onnx --plugins libtrt_opt_plugins.so -o report
  trt-opt report --models resnet50=r50.onnx swin_t=swin.onnx --variants native,all,tuned --batch 1,32 --plugins lib.so
  trt-opt report --models resnet50=r50.onnx swin_t=swin.onnx --plugins lib.so --jobs 16 --engines-only
  trt-opt report --merge swin/report.json tnt/report.json -o report
  trt-opt report --merge report.json -o report --ask swin_t@1=1.5 --ask swin_t@32=2.0")]
pub struct Args {
    /// Report files to put together
    #[arg(long, value_name = "FILE", num_args = 1..)]
    merge: Vec<PathBuf>,
    #[cfg(feature = "engine")]
    #[command(flatten)]
    study: super::study::StudyArgs,
    /// Folder for the report; made if it is not there
    #[arg(short, long, value_name = "DIR", default_value = "report")]
    output: PathBuf,
    /// What is asked for: at most X times ResNet-50 at a batch size, fp16, in a CUDA graph; may be repeated
    #[arg(long, value_name = "MODEL@BATCH=X", value_parser = parse_goal)]
    ask: Vec<Goal>,
    /// Print what was written, goals and warnings as JSON
    #[arg(long)]
    json: bool,
}

fn parse_goal(text: &str) -> Result<Goal, String> {
    let parse = || {
        let (subject, x) = text.split_once('=')?;
        let (model, batch) = subject.rsplit_once('@')?;
        let (batch, x) = (batch.parse().ok()?, x.parse::<f64>().ok()?);
        let sound = !model.is_empty() && batch > 0 && x.is_finite() && x > 0.0;
        sound.then(|| Goal { model: model.into(), precision: Precision::Fp16, batch, mode: Mode::Graph, x_resnet50: x })
    };
    parse().ok_or_else(|| "expected MODEL@BATCH=X with a ratio above 0, as in swin_t@1=1.5".into())
}

/// The outcome as JSON.
#[derive(Serialize)]
struct Json<'a> {
    files: &'a [PathBuf],
    runs: usize,
    rows: usize,
    goals: Vec<GoalJson<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct GoalJson<'a> {
    #[serde(flatten)]
    goal: &'a Goal,
    /// The engine that was held against it.
    variant: Option<&'a str>,
    measured: Option<f64>,
    met: Option<bool>,
}

/// The outcome of --engines-only as JSON.
#[cfg(feature = "engine")]
#[derive(Serialize)]
struct EnginesJson<'a> {
    engines: usize,
    missing: &'a [String],
}

/// Builds engines only: 1 if one is missing.
#[cfg(feature = "engine")]
fn build(args: &Args, global: &Global) -> Result<u8> {
    let engines = args.study.build(global)?;
    if args.json {
        out::json(&EnginesJson { engines: engines.there, missing: &engines.missing })?;
    } else {
        if !global.quiet {
            engines.missing.iter().for_each(|w| out::warning(w));
        }
        out::text(&format!("{} engines are there, {} are missing\n", engines.there, engines.missing.len()))?;
    }
    Ok(if engines.missing.is_empty() { 0 } else { exit::CHECK_FAILED })
}

pub fn run(args: Args, global: &Global) -> Result<u8> {
    #[cfg(feature = "engine")]
    if args.study.engines_only {
        return build(&args, global);
    }
    let mut reports: Vec<(PathBuf, Report)> = vec![];
    for path in &args.merge {
        reports.push((path.clone(), report::load(path)?));
    }
    #[allow(unused_mut, reason = "only measuring warns before merging")]
    let mut warnings: Vec<String> = vec![];
    #[cfg(feature = "engine")]
    if let Some((measured, said)) = args.study.run(global)? {
        reports.push(("the measurement".into(), measured));
        warnings.extend(said);
    }
    let (mut merged, said) = merge(reports)?;
    warnings.extend(said);
    for goal in args.ask {
        // What is asked for here replaces what a file says.
        merged.goals.retain(|g| g.model != goal.model || g.setting() != goal.setting());
        merged.goals.push(goal);
    }
    let files = report::write(&merged, &warnings, &args.output)?;
    let view = View::new(&merged);
    warnings.extend(view.warnings());
    if args.json {
        let goals = view.outcomes();
        let goals = goals.iter().map(|o| GoalJson {
            goal: o.goal,
            variant: o.best.map(|b| b.variant.as_str()),
            measured: o.best.and_then(|b| b.x_resnet50),
            met: o.met(),
        });
        return out::json(&Json {
            files: &files,
            runs: merged.environment.len(),
            rows: merged.rows.len(),
            goals: goals.collect(),
            warnings: &warnings,
        })
        .map(|()| 0);
    }
    if !global.quiet {
        warnings.iter().for_each(|w| out::warning(w));
        out::text(&describe(&view, &args.output))?;
    }
    Ok(0)
}

fn merge(reports: Vec<(PathBuf, Report)>) -> Result<(Report, Vec<String>)> {
    if reports.is_empty() {
        return Err(Error::Usage("there is nothing to report: give --models to measure, or --merge with files".into()));
    }
    let names: Vec<String> = reports.iter().map(|(path, _)| path.display().to_string()).collect();
    let (merged, warnings) = report::merge(reports)?;
    if merged.rows.is_empty() {
        return Err(Error::Usage(format!("there are no rows in {}, so there is nothing to report", names.join(", "))));
    }
    Ok((merged, warnings))
}

/// The report in short: accuracy, latency and memory, and what became of the goals.
fn describe(view: &View, folder: &Path) -> String {
    let mut text = String::new();
    for table in tables::article(view).iter().chain(&tables::goals(view)) {
        text += &format!("{}\n\n", as_text(table));
    }
    text += &format!("{} has index.html, report.md and report.json\n", folder.display());
    text
}

/// A table of a report on the terminal.
fn as_text(table: &Table) -> String {
    let mut shown = terminal::new(&table.header);
    for row in &table.rows {
        shown.add_row(row.iter().map(|cell| cell.text.clone()));
    }
    terminal::align(&mut shown, table.text..);
    let mut text = terminal::text(&shown);
    // Colours after the layout, which would count them as characters.
    for cell in table.rows.iter().flatten() {
        let colour = match cell.tone {
            Tone::Plain => continue,
            Tone::Good => GREEN,
            Tone::Bad => RED,
        };
        let coloured = format!("{colour}{}{RESET}", cell.text);
        if !text.contains(&coloured) {
            text = text.replace(&cell.text, &coloured);
        }
    }
    format!("{}\n{text}", table.caption)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read() {
        let goal = parse_goal("swin_t@32=2.5").unwrap();
        assert_eq!((goal.model.as_str(), goal.batch, goal.x_resnet50), ("swin_t", 32, 2.5));
        for bad in ["", "swin_t=1.5", "swin_t@1", "@1=1.5", "swin_t@0=1.5", "swin_t@1=0", "swin_t@1=nan", "swin_t@x=1"]
        {
            assert!(parse_goal(bad).unwrap_err().contains("swin_t@1=1.5"), "{bad}");
        }
    }
}
