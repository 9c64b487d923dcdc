//! `trt-opt build`: an ONNX model in, a TensorRT engine out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use trt_opt::engine::{self, BuildOptions, Builder, Engine, Gpu, Layers, Library, Precision, Shape, TacticSources};
use trt_opt::measure::Plan;
use trt_opt::{Error, Result, files};

use super::out::{self, BOLD, DIM, RESET};
use super::spinner::Spinner;
use super::{Global, tables};

/// Build a TensorRT engine of a model
#[derive(clap::Args)]
#[command(after_help = "\
The engine runs in this version of TensorRT and on this kind of GPU. With --fp16, an engine
whose layers nearly all compute in float32 is not written: exit code 1.

Examples:
  trt-opt build swin.fused.onnx --fp16 --plugins libtrt_opt_plugins.so
  trt-opt build swin.onnx -o swin.engine --shapes x:1x3x224x224/8x3x224x224/32x3x224x224
  trt-opt build swin.onnx --timing-cache h100.cache --opt-level 5 --workspace 2G")]
pub struct Args {
    model: PathBuf,
    /// The engine [default: MODEL with the ending .engine]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    pub build: BuildArgs,
    /// Size of the first axis of inputs that leave it open and have no --shapes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    batch: Option<i64>,
    /// Write TensorRT's account of the engine's layers, as JSON
    #[arg(long, value_name = "FILE")]
    layers: Option<PathBuf>,
    /// Write the engine even if it is not the fp16 engine that was asked for; the exit code stays
    #[arg(long)]
    force: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// How an engine is built; `bench` takes it too.
#[derive(clap::Args)]
pub struct BuildArgs {
    /// Let TensorRT choose float16 layers; where it is strongly typed, check that the model's are
    #[arg(long)]
    pub fp16: bool,
    /// Take all types from the model (TensorRT 10; 11 always does)
    #[arg(long)]
    strongly_typed: bool,
    /// Sizes of an input with open axes, or the smallest, best and largest; may be repeated
    #[arg(long, value_name = "NAME:AxBxC[/AxBxC/AxBxC]", value_parser = parse_shape)]
    shapes: Vec<(String, Shape)>,
    /// Timings of layers to read, if the file is there, and to write
    #[arg(long, value_name = "FILE")]
    timing_cache: Option<PathBuf>,
    /// Memory that a layer may use while it runs, as in 512M or 2G [default: TensorRT's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    workspace: Option<usize>,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// What all that builds engines takes.
#[derive(clap::Args)]
pub struct EngineArgs {
    /// Plugin library that models need; may be repeated
    #[arg(long, value_name = "LIB")]
    pub plugins: Vec<PathBuf>,
    /// How long to look for fast layers: 0 to 5 [default: TensorRT's, 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=5))]
    pub opt_level: Option<u8>,
    /// Libraries that layers may also come from (TensorRT 8 and 10) [default: none]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub tactics: Vec<Tactics>,
    /// TensorRT's library, or a folder with it [default: TENSORRT_LIB_DIR, else searched for]
    #[arg(long, value_name = "PATH")]
    pub tensorrt: Option<PathBuf>,
}

impl EngineArgs {
    pub fn library(&self) -> Result<Library> {
        Ok(Library::load(self.tensorrt.as_deref())?)
    }
}

/// How much is measured; `bench` and `report` take it.
#[derive(clap::Args)]
pub struct PlanArgs {
    /// Rounds of measurement
    #[arg(long, value_name = "N", default_value_t = 30)]
    rounds: usize,
    /// Samples that every engine contributes to a round
    #[arg(long, value_name = "N", default_value_t = 20)]
    per_round: usize,
    /// Seed of random inputs and of the order in rounds
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

impl PlanArgs {
    pub fn plan(&self) -> Plan {
        Plan { rounds: self.rounds, per_round: self.per_round, seed: self.seed, ..Plan::default() }
    }
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
pub enum Tactics {
    Cublas,
    CublasLt,
    Cudnn,
}

impl Tactics {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cublas => "cublas",
            Self::CublasLt => "cublas-lt",
            Self::Cudnn => "cudnn",
        }
    }
}

impl BuildArgs {
    pub fn options(&self, batch: Option<i64>) -> Result<BuildOptions> {
        let mut shapes = BTreeMap::new();
        for (name, shape) in &self.shapes {
            if shapes.insert(name.clone(), shape.clone()).is_some() {
                return Err(Error::Usage(format!("--shapes names input '{name}' twice")));
            }
        }
        Ok(BuildOptions {
            fp16: self.fp16,
            strongly_typed: self.strongly_typed,
            plugins: self.engine.plugins.clone(),
            shapes,
            batch,
            timing_cache: self.timing_cache.clone(),
            optimization_level: self.engine.opt_level,
            workspace: self.workspace,
            tactic_sources: TacticSources {
                cublas: self.engine.tactics.contains(&Tactics::Cublas),
                cublas_lt: self.engine.tactics.contains(&Tactics::CublasLt),
                cudnn: self.engine.tactics.contains(&Tactics::Cudnn),
            },
        })
    }
}

/// `x:1x3x224x224` or `x:1x3x224x224/8x3x224x224/32x3x224x224`. Names may hold colons.
fn parse_shape(text: &str) -> Result<(String, Shape), String> {
    const WANTED: &str = "expected NAME:SIZES, as in x:1x3x224x224, or NAME:MIN/OPT/MAX";
    let (name, sizes) = text.rsplit_once(':').filter(|(name, _)| !name.is_empty()).ok_or(WANTED)?;
    let parse = |sizes: &str| {
        let sizes = sizes.split('x').map(|n| n.parse::<i64>().ok().filter(|n| *n > 0));
        sizes.collect::<Option<Vec<i64>>>().ok_or_else(|| format!("{WANTED}; a size is a number of 1 or more"))
    };
    let parts: Vec<Vec<i64>> = sizes.split('/').map(parse).collect::<Result<_, _>>()?;
    match <[Vec<i64>; 3]>::try_from(parts) {
        Ok([min, opt, max]) => {
            let ordered = min.len() == opt.len()
                && opt.len() == max.len()
                && min.iter().zip(&opt).zip(&max).all(|((a, b), c)| a <= b && b <= c);
            if !ordered {
                return Err(
                    "expected MIN/OPT/MAX with as many axes each and no size smaller than the one before".into()
                );
            }
            Ok((name.to_owned(), Shape { min, opt, max }))
        }
        Err(mut parts) if parts.len() == 1 => Ok((name.to_owned(), Shape::fixed(parts.remove(0)))),
        Err(_) => Err(WANTED.into()),
    }
}

/// `1048576`, `512M`, `2G`, in powers of 1024.
fn parse_size(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => Some(1),
        "K" => Some(1usize << 10),
        "M" => Some(1 << 20),
        "G" => Some(1 << 30),
        _ => None,
    };
    let size = unit.and_then(|unit| digits.parse::<usize>().ok()?.checked_mul(unit)).filter(|size| *size > 0);
    size.ok_or_else(|| "expected a size of 1 byte or more, as in 512M or 2G".into())
}

#[derive(Serialize)]
struct Json<'a> {
    model: &'a Path,
    /// Null if it was not written.
    engine: Option<&'a Path>,
    engine_bytes: usize,
    device_bytes: u64,
    build_seconds: f64,
    layers: usize,
    /// Computing layers by the type that they compute in.
    precisions: BTreeMap<Precision, usize>,
    tensorrt: String,
    gpu: engine::Description,
    options: &'a BuildOptions,
}

pub fn run(args: Args, global: &Global) -> Result<u8> {
    let job = Job::new(&args)?;
    let library = args.build.engine.library()?;
    job.run(&library, &mut Builder::new(&library)?, global)
}

/// An engine to build, its arguments checked as far as that goes without TensorRT.
pub struct Job<'a> {
    args: &'a Args,
    output: PathBuf,
    options: BuildOptions,
}

impl<'a> Job<'a> {
    pub fn new(args: &'a Args) -> Result<Self> {
        let output = args.output.clone().unwrap_or_else(|| args.model.with_extension("engine"));
        for (option, path) in [("--output", Some(&output)), ("--layers", args.layers.as_ref())] {
            if path.is_some_and(|path| files::same_file(path, &args.model)) {
                return Err(Error::Usage(format!(
                    "{option} is the model, which is never written to; give another name"
                )));
            }
        }
        std::fs::File::open(&args.model).map_err(Error::io("open", &args.model))?;
        Ok(Self { args, output, options: args.build.options(args.batch)? })
    }

    pub fn run(&self, library: &Library, builder: &mut Builder, global: &Global) -> Result<u8> {
        let Self { args, output, options } = self;
        let gpu = Gpu::first()?;
        let spinner = Spinner::new(global);
        spinner.start(&format!("building {}", output.display()));
        let plan = builder.build(&args.model, options, spinner.progress())?;
        drop(spinner);
        let engine = Engine::deserialize(library, &plan.bytes, &options.plugins)?;
        let half = plan.check_half();
        let write = half.is_ok() || args.force;
        if write {
            files::write(output, &plan.bytes)?;
        }
        if let Some(path) = &args.layers {
            files::write(path, plan.layers.json.as_bytes())?;
        }
        let json = Json {
            model: &args.model,
            engine: write.then_some(output),
            engine_bytes: plan.bytes.len(),
            device_bytes: engine.device_memory(),
            build_seconds: plan.seconds,
            layers: plan.layers.layers.len(),
            precisions: plan.layers.precisions(),
            tensorrt: library.version.to_string(),
            gpu: gpu.description,
            options,
        };
        if args.json {
            out::json(&json)?;
        } else if !global.quiet {
            out::text(&describe(&json, &plan.layers))?;
        }
        match half {
            Err(error) if !write => Err(Error::CheckFailed(format!(
                "{error}\n{} was not written; --force writes it all the same",
                output.display()
            ))),
            half => {
                half?;
                Ok(0)
            }
        }
    }
}

fn describe(json: &Json, layers: &Layers) -> String {
    let name = json.engine.map_or_else(|| "the engine".to_owned(), |path| path.display().to_string());
    let mut text = format!(
        "{BOLD}{name}{RESET} {}, {} of device memory, built in {:.0} s {DIM}(TensorRT {}, {}){RESET}\n",
        tables::bytes(json.engine_bytes as f64),
        tables::bytes(json.device_bytes as f64),
        json.build_seconds,
        json.tensorrt,
        json.gpu.name,
    );
    let reformats = layers.layers.iter().filter(|l| l.is_reformat()).count();
    text += &format!("{} layers", json.layers);
    for (precision, count) in &json.precisions {
        text += &format!(", {count} in {precision}");
    }
    text += &match reformats {
        0 => "\n".to_owned(),
        n => format!(", {n} that only convert\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_parsed() {
        assert_eq!(parse_shape("x:1x3x8x8"), Ok(("x".into(), Shape::fixed(vec![1, 3, 8, 8]))));
        assert_eq!(
            parse_shape("a:0:1x3/2x3/4x3"),
            Ok(("a:0".into(), Shape { min: vec![1, 3], opt: vec![2, 3], max: vec![4, 3] }))
        );
        for bad in [
            "x",
            ":1x3",
            "x:",
            "x:1x",
            "x:0x3",
            "x:-1x3",
            "x:1x3/2x3",
            "x:2x3/1x3/4x3",
            "x:1/1x1/1",
            "x:1x3/1x3/1x3/1x3",
        ] {
            assert!(parse_shape(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_parsed() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("1k"), Ok(1024));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        for bad in ["", "G", "1T", "0", "-1M", "1.5G", "99999999999G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
