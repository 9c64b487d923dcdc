//! What `tune` and `report` build and time engines with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use trt_opt::ablation::store::{Job, Store};
use trt_opt::ablation::workshop::Workshop;
use trt_opt::engine::{self, Gpu};
use trt_opt::measure::Plan;
use trt_opt::{Error, Result};

use super::build::{EngineArgs, PlanArgs};
use super::builder::Pool;

#[derive(clap::Args)]
#[command(next_help_heading = "Building and timing")]
pub struct WorkshopArgs {
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub plan: PlanArgs,
    /// Folder for models, engines and timings of layers: what is there is not built again
    #[arg(long, value_name = "DIR", default_value = "target/trt-opt")]
    work: PathBuf,
    /// Engines that are built at a time; tactics are chosen by timing, so more than a few disturb each other
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    jobs: u8,
    /// Stop building after this many seconds: engines that are not there by then are left out
    #[arg(long, value_name = "SECONDS")]
    build_time: Option<u64>,
}

impl WorkshopArgs {
    /// Opens the GPU, TensorRT and the folder, and does something with them.
    pub fn with<T>(&self, act: impl FnOnce(&Workshop) -> Result<T>) -> Result<T> {
        let library = self.engine.library()?;
        let gpu = Gpu::first()?;
        let tactics: Vec<&str> = self.engine.tactics.iter().map(|t| t.name()).collect();
        let context = format!(
            "TensorRT {} on {} {}, level {:?}, tactics {tactics:?}",
            library.version, gpu.description.name, gpu.description.compute_capability, self.engine.opt_level
        );
        let store = Store::open(&self.work, &context, &self.engine.plugins)?;
        let pool = Pool::new(self.engine.tensorrt.as_deref(), self.build_time.map(Duration::from_secs))?;
        let builder = |job: &Job| pool.build(&self.arguments(job)).map_err(|why| not_built(job, &why));
        act(&Workshop {
            library: &library,
            gpu: &gpu,
            store: &store,
            builder: &builder,
            parallel: self.jobs.into(),
            plugins: self.engine.plugins.clone(),
            seed: self.plan.seed,
        })
    }

    /// Of `trt-opt build`.
    fn arguments(&self, job: &Job) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let mut arguments = vec![path(&job.model), "-o".into(), path(&job.engine)];
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("--timing-cache", path(&job.timing_cache));
        self.engine.plugins.iter().for_each(|p| option("--plugins", path(p)));
        self.engine.tactics.iter().for_each(|t| option("--tactics", t.name().into()));
        if let Some(level) = self.engine.opt_level {
            option("--opt-level", level.to_string());
        }
        if let Some(batch) = job.batch {
            option("--batch", batch.to_string());
        }
        if job.fp16 {
            arguments.push("--fp16".into());
        }
        // What only this engine has goes before what all have.
        for extra in job.extra.chunks(2) {
            if let Some(at) = arguments.iter().position(|a| a == extra[0]) {
                arguments.drain(at..at + 2);
            }
            arguments.extend(extra.iter().map(|e| (*e).to_owned()));
        }
        arguments
    }
}

fn not_built(job: &Job, why: &Error) -> Error {
    Error::CheckFailed(format!("building {}: {why}", job.model.display()))
}

/// What measurements depend on, for a report.
pub fn environment(workshop: &Workshop, plan: Plan) -> trt_opt::report::Environment {
    let gpu = &workshop.gpu.description;
    trt_opt::report::Environment {
        gpu: gpu.name.clone(),
        driver: gpu.driver.clone().unwrap_or_else(|| "unknown".into()),
        cuda: gpu.cuda.clone(),
        tensorrt: workshop.library.version.to_string(),
        headers: engine::compiled_for().to_string(),
        commit: option_env!("TRT_OPT_COMMIT").unwrap_or("unknown").into(),
        date: jiff::Timestamp::now(),
        command: command(std::env::args().skip(1)),
        clocks: None,
        plan: Some(plan),
        note: None,
    }
}

/// The command that a report shows. Folders of this machine are nobody's business: absolute paths lose them.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let shown = |argument: String| {
        let (name, value) = argument.split_once('=').map_or(("", argument.as_str()), |(name, value)| (name, value));
        let path = Path::new(value);
        match path.file_name() {
            Some(file) if path.is_absolute() => {
                let equals = if name.is_empty() { "" } else { "=" };
                format!("{name}{equals}{}", file.to_string_lossy())
            }
            _ => argument,
        }
    };
    std::iter::once("trt-opt".to_owned()).chain(arguments.map(shown)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_command_is_shown_without_folders_of_the_machine() {
        let given =
            ["report", "--models", "swin_t=/home/me/swin.onnx", "r=r.onnx", "--work", "/tmp/w", "-o", "report/a"];
        let shown = super::command(given.iter().map(|s| (*s).to_owned()));
        assert_eq!(shown, "trt-opt report --models swin_t=swin.onnx r=r.onnx --work w -o report/a");
    }
}
