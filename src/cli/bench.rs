//! `trt-opt bench`: engines timed against each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use trt_opt::bench::{self, Loader, ProfiledLayer, Row, Subject};
use trt_opt::engine::{self, Gpu};
use trt_opt::measure::Plan;
use trt_opt::measure::stats::Bootstrap;
use trt_opt::report::Mode;
use trt_opt::verify::{Array, read_numpy};
use trt_opt::{Error, Result, files};

use super::build::{BuildArgs, PlanArgs};
use super::out::{self, BOLD, DIM, RESET};
use super::spinner::Spinner;
use super::{Global, tables};

/// Time models or engines against each other
#[derive(clap::Args)]
#[command(after_help = "\
Models are built first, as with 'trt-opt build'. All subjects of a batch size are timed in
interleaved rounds, on inputs that lie on the GPU already; a sample is one inference between two
events of the GPU. Intervals are 95 % bootstrap intervals of the median over the rounds. Exits
with 1 if an output holds NaN or infinity.

Examples:
  trt-opt bench swin.engine swin.fused.engine --plugins libtrt_opt_plugins.so --graph
  trt-opt bench swin.onnx tnt.onnx --fp16 --batch 1,8,32 --baseline resnet50.onnx --json times.json
  trt-opt bench swin.engine --profile")]
pub struct Args {
    /// ONNX models or serialized engines
    #[arg(required = true, value_name = "MODEL|ENGINE")]
    files: Vec<PathBuf>,
    /// Batch sizes, each with an engine of its own [default: that of the model]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(i64).range(1..))]
    batch: Vec<i64>,
    /// Model or engine whose time is 1
    #[arg(long, value_name = "MODEL|ENGINE")]
    baseline: Option<PathBuf>,
    /// Time replays of a CUDA graph, too
    #[arg(long)]
    graph: bool,
    /// Time every layer
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    plan: PlanArgs,
    /// Array for an input; may be repeated [default: random]
    #[arg(long, value_name = "NAME=FILE.npy", value_parser = parse_input)]
    input: Vec<(String, PathBuf)>,
    /// Write the outputs of every subject to DIR/SUBJECT/OUTPUT.npy
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
    /// Write everything as JSON, with all samples
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Building")]
    build: BuildArgs,
}

fn parse_input(text: &str) -> Result<(String, PathBuf), String> {
    match text.rsplit_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("expected NAME=FILE.npy, as in x=image.npy".into()),
    }
}

/// What `--json` writes.
#[derive(Serialize)]
struct Json {
    version: &'static str,
    tensorrt: String,
    gpu: engine::Description,
    options: engine::BuildOptions,
    plan: Plan,
    baseline: Option<String>,
    rows: Vec<Measured>,
    profiles: Vec<Profile>,
}

#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    row: Row,
    /// Microseconds, by round.
    samples: Vec<Vec<f64>>,
}

#[derive(Serialize)]
struct Profile {
    name: String,
    batch: i64,
    layers: Vec<ProfiledLayer>,
}

/// Inferences of a profile.
const PROFILED: usize = 50;

pub fn run(args: Args, global: &Global) -> Result<u8> {
    let plan = args.plan.plan();
    let given = args.input.iter().map(|(name, path)| Ok((name.clone(), read_array(path)?)));
    let given: BTreeMap<String, Array> = given.collect::<Result<_>>()?;
    let mut files = args.files.clone();
    if let Some(baseline) = &args.baseline
        && !files.contains(baseline)
    {
        files.insert(0, baseline.clone());
    }
    let names = names(&files);
    let baseline = args.baseline.as_ref().and_then(|b| files.iter().position(|f| f == b));
    let batches: Vec<Option<i64>> =
        if args.batch.is_empty() { vec![None] } else { args.batch.iter().copied().map(Some).collect() };
    // Everything that can be wrong with the arguments is found before the first build.
    let options = args.build.options(None)?;
    for file in &files {
        bench::is_engine(file)?;
    }
    let library = args.build.engine.library()?;
    let gpu = Gpu::first()?;
    let spinner = Spinner::new(global);

    let (mut rows, mut profiles) = (vec![], vec![]);
    for batch in batches {
        let options = args.build.options(batch)?;
        let loader = Loader { library: &library, gpu: &gpu, options: &options, inputs: &given, seed: args.plan.seed };
        let mut subjects = vec![];
        for (name, file) in names.iter().zip(&files) {
            let at = batch.map(|b| format!(" at batch {b}")).unwrap_or_default();
            spinner.start(&format!("{}/{} {name}{at}", subjects.len() + 1, files.len()));
            subjects.push(loader.load(name, file, spinner.progress())?);
        }
        check_inputs(&subjects, &given)?;
        for subject in &subjects {
            if let Err(why) = &subject.graph {
                out::warning(&format!("{} is not captured as a CUDA graph: {why}", subject.name));
            }
        }
        let mut modes = vec![Mode::Enqueue];
        if args.graph {
            if let Some(subject) = subjects.iter().find(|s| s.graph.is_err()) {
                return Err(Error::CheckFailed(format!(
                    "--graph: {} cannot be captured as a CUDA graph",
                    subject.name
                )));
            }
            modes.push(Mode::Graph);
        }
        for &mode in &modes {
            spinner.start(&format!("timing by {mode}"));
            let samples = bench::measure(&mut subjects, mode, &plan, &mut |done| {
                spinner.show(&format!("round {done}/{}", plan.rounds));
            })?;
            for (i, subject) in subjects.iter_mut().enumerate() {
                let outputs = subject.outputs(mode)?;
                if let (Some(folder), true) = (&args.dump, Some(&mode) == modes.last()) {
                    let name = match batch {
                        Some(batch) => format!("{}-b{batch}", subject.name),
                        None => subject.name.clone(),
                    };
                    dump(&folder.join(name), &outputs)?;
                }
                let base = baseline.map(|b| &samples[b]);
                let bad = bench::not_finite(&outputs);
                let row = Row::new(subject, mode, &samples[i], base, bad, &Bootstrap::default())?;
                rows.push(Measured { row, samples: samples[i].rounds().to_vec() });
            }
        }
        if args.profile {
            for subject in &mut subjects {
                spinner.start(&format!("profiling {}", subject.name));
                let layers = bench::profile(subject, PROFILED)?;
                profiles.push(Profile { name: subject.name.clone(), batch: subject.batch, layers });
            }
        }
    }
    drop(spinner);

    let json = Json {
        version: env!("CARGO_PKG_VERSION"),
        tensorrt: library.version.to_string(),
        gpu: gpu.description,
        options,
        plan,
        baseline: baseline.map(|b| names[b].clone()),
        rows,
        profiles,
    };
    if let Some(path) = &args.json {
        files::write(path, (out::to_json(&json)? + "\n").as_bytes())?;
    }
    if !global.quiet {
        out::text(&describe(&json, global.verbose > 0))?;
    }
    let bad: Vec<&str> = json.rows.iter().filter(|r| r.row.not_finite > 0).map(|r| r.row.name.as_str()).collect();
    match bad.first() {
        Some(name) => Err(Error::CheckFailed(format!("the outputs of {name} hold NaN or infinity"))),
        None => Ok(0),
    }
}

/// The one array of a `.npy` file.
fn read_array(path: &Path) -> Result<Array> {
    let mut arrays = read_numpy(path)?;
    match (arrays.len(), arrays.pop()) {
        (1, Some((_, array))) => Ok(array),
        (n, _) => Err(Error::Usage(format!("--input: {} holds {n} arrays, expected 1", path.display()))),
    }
}

/// Names of subjects: the files' without folder and ending, with as much of the path as tells them apart.
fn names(files: &[PathBuf]) -> Vec<String> {
    let stem = |path: &Path| path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let stems: Vec<String> = files.iter().map(|f| stem(f)).collect();
    let name = |(i, path): (usize, &PathBuf)| {
        let alone = stems.iter().filter(|s| **s == stems[i]).count() == 1;
        let whole = || {
            let text = path.to_string_lossy().replace(['/', '\\'], "_");
            // The same file twice is a way to see the noise.
            match files[..i].iter().filter(|f| *f == path).count() {
                0 => text,
                n => format!("{text}#{}", n + 1),
            }
        };
        if alone { stems[i].clone() } else { whole() }
    };
    files.iter().enumerate().map(name).collect()
}

/// Every array that was given is of some subject's input.
fn check_inputs(subjects: &[Subject], given: &BTreeMap<String, Array>) -> Result<()> {
    let has = |name: &str| subjects.iter().any(|s| s.session.inputs().any(|(input, ..)| input == name));
    match given.keys().find(|name| !has(name)) {
        Some(name) => {
            let all: Vec<&str> = subjects.iter().flat_map(|s| s.session.inputs().map(|(name, ..)| name)).collect();
            Err(Error::Usage(format!("--input {name}: no subject has such an input (inputs: {})", all.join(", "))))
        }
        None => Ok(()),
    }
}

fn dump(folder: &Path, outputs: &[(String, Array)]) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("make the folder", folder))?;
    for (name, array) in outputs {
        array.write_npy(&folder.join(format!("{}.npy", name.replace(['/', '\\'], "_"))))?;
    }
    Ok(())
}

fn describe(json: &Json, all: bool) -> String {
    let mut header = vec!["", "batch", "mode", "p50 us", "95 % interval", "p99 us", "per second"];
    let compared = json.baseline.is_some();
    if compared {
        header.push("x baseline");
    }
    header.extend(["kernels", "engine", "memory"]);
    let mut table = tables::new(header);
    for Measured { row, .. } in &json.rows {
        let mut cells = vec![
            row.name.clone(),
            row.batch.to_string(),
            row.mode.to_string(),
            format!("{:.1}", row.time.p50_us),
            format!("{:.1} to {:.1}", row.time.interval_us[0], row.time.interval_us[1]),
            format!("{:.1}", row.time.p99_us),
            format!("{:.0}", row.throughput),
        ];
        if compared {
            cells.push(row.x_baseline.map(|c| format!("{:.3}", c.ratio)).unwrap_or_default());
        }
        cells.extend([
            row.kernels.map(|k| k.to_string()).unwrap_or_default(),
            tables::bytes(row.engine_mb * 1e6),
            tables::bytes(row.device_mb * 1e6),
        ]);
        table.add_row(cells);
    }
    tables::align_numbers(&mut table);
    let mut text = format!(
        "{}\n{DIM}TensorRT {} on {}, driver {}; {} rounds of {}{RESET}\n",
        tables::text(&table),
        json.tensorrt,
        json.gpu.name,
        json.gpu.driver.as_deref().unwrap_or("unknown"),
        json.plan.rounds,
        json.plan.per_round
    );
    for profile in &json.profiles {
        text += &describe_profile(profile, all);
    }
    text
}

/// The layers that take longest, in order of execution; all of them if asked for.
fn describe_profile(profile: &Profile, all: bool) -> String {
    const SHOWN: usize = 25;
    let sum: f64 = profile.layers.iter().map(|l| l.mean_us).sum();
    let mut times: Vec<f64> = profile.layers.iter().map(|l| l.mean_us).collect();
    times.sort_by(|a, b| b.total_cmp(a));
    let least = if all { 0.0 } else { times.get(SHOWN - 1).copied().unwrap_or(0.0) };
    let mut table = tables::new(["layer", "type", "computes in", "us", ""]);
    let mut left_out = (0, 0.0);
    for layer in &profile.layers {
        if layer.mean_us < least {
            left_out = (left_out.0 + 1, left_out.1 + layer.mean_us);
            continue;
        }
        table.add_row([
            shortened(&layer.name),
            layer.kind.clone().unwrap_or_default(),
            layer.precision.map(|p| p.to_string()).unwrap_or_default(),
            format!("{:.1}", layer.mean_us),
            tables::percent(layer.mean_us, sum),
        ]);
    }
    tables::align_numbers(&mut table);
    let mut text = format!(
        "\n{BOLD}{}{RESET} batch {}: {} layers, {sum:.1} us one by one\n{}\n",
        profile.name,
        profile.batch,
        profile.layers.len(),
        tables::text(&table)
    );
    if left_out.0 > 0 {
        text += &format!("... and {} shorter ones, {:.1} us (--verbose shows all)\n", left_out.0, left_out.1);
    }
    text
}

/// Fused layers have names of hundreds of characters.
fn shortened(name: &str) -> String {
    const LONGEST: usize = 60;
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    let start: String = name.chars().take(LONGEST / 2 - 1).collect();
    let end: Vec<char> = name.chars().rev().take(LONGEST / 2 - 2).collect();
    format!("{start}...{}", end.into_iter().rev().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_have_names_that_differ() {
        let names = |files: &[&str]| names(&files.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["a/swin.onnx", "b/tnt.engine"]), ["swin", "tnt"]);
        assert_eq!(names(&["a/swin.onnx", "b/swin.onnx", "r.onnx"]), ["a_swin.onnx", "b_swin.onnx", "r"]);
        assert_eq!(names(&["swin.onnx", "swin.engine"]), ["swin.onnx", "swin.engine"]);
        assert_eq!(names(&["a.engine", "a.engine"]), ["a.engine", "a.engine#2"]);
    }

    #[test]
    fn long_names_are_cut_in_the_middle() {
        assert_eq!(shortened("Conv_0"), "Conv_0");
        let long = format!("{}{}", "a".repeat(100), "é".repeat(100));
        let short = shortened(&long);
        assert_eq!(short.chars().count(), 60);
        assert!(short.starts_with("aa") && short.ends_with("éé") && short.contains("..."));
    }
}
