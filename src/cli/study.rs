//! The measuring half of `trt-opt report`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use trt_opt::ablation::study::{self, Engines, Event, ModelFile};
use trt_opt::ablation::tune::By;
use trt_opt::ablation::workshop::Workshop;
use trt_opt::measure::stats::Bootstrap;
use trt_opt::report::{Class, Precision, Report, Variant};
use trt_opt::rewrite::Target;
use trt_opt::{Error, Result, verify};

use super::spinner::Spinner;
use super::workshop::{WorkshopArgs, environment};
use super::{Global, file_name, out};

#[derive(clap::Args)]
pub struct StudyArgs {
    /// Models to measure, by the names that the report has for them; a name may come again with a file of another batch,
    /// or as NAME:native-WHAT=FILE with another export, which is measured as it is
    #[arg(long, value_name = "NAME=FILE", num_args = 1.., value_parser = parse_model, help_heading = "Measuring")]
    models: Vec<ModelFile>,
    /// Variants to measure: native, canonical, a kind of site, without-KIND, all, blocks, blocks-with-KIND, blocks-without-KIND,
    /// tuned [default: all but the last three]
    #[arg(long, visible_alias = "fusions", value_name = "NAME,...", value_delimiter = ',', help_heading = "Measuring")]
    variants: Vec<String>,
    /// Precisions to build for
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "fp16", help_heading = "Measuring")]
    precision: Vec<Precision>,
    /// Batch sizes, where models leave the batch open [default: that of the model, or 1]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(i64).range(1..), help_heading = "Measuring")]
    batch: Vec<i64>,
    /// Which sites 'tuned' chooses together
    #[arg(long, value_name = "GROUP", default_value = "kind", help_heading = "Measuring")]
    by: By,
    /// The TensorRT that will run the models [default: that of the library]
    #[arg(long, help_heading = "Measuring")]
    target: Option<Target>,
    /// Time the layers of every engine, too
    #[arg(long, help_heading = "Measuring")]
    profile: bool,
    /// Build the engines and stop: measure nothing, write no report; a later run with the same --work finds them
    #[arg(long, requires = "models", conflicts_with_all = ["merge", "profile", "ask"], help_heading = "Measuring")]
    pub engines_only: bool,
    /// What the report calls this run [default: the time of its start]
    #[arg(long, value_name = "ID", help_heading = "Measuring")]
    run: Option<String>,
    /// ONNX Runtime's library, or a folder with it [default: ORT_DYLIB_PATH, else searched for]
    #[arg(long, value_name = "PATH", help_heading = "Measuring")]
    onnxruntime: Option<PathBuf>,
    #[command(flatten)]
    workshop: WorkshopArgs,
}

fn parse_model(text: &str) -> Result<ModelFile, String> {
    const WANTED: &str = "expected NAME=FILE, as in swin_t=swin.onnx, or NAME:native-WHAT=FILE";
    let (name, path) = text.split_once('=').filter(|(_, path)| !path.is_empty()).ok_or(WANTED)?;
    let (name, variant) = match name.split_once(':') {
        Some((name, variant)) => (name, Some(variant)),
        None => (name, None),
    };
    let native = |v: &str| Variant::new(v.to_owned()).is_ok_and(|v| v.class() == Class::Native) && v != "native";
    if name.is_empty() || !variant.is_none_or(native) {
        return Err(WANTED.into());
    }
    Ok(ModelFile { name: name.into(), variant: variant.map(str::to_owned), path: path.into() })
}

/// Inferences that layers are profiled over.
const PROFILED: usize = 50;

impl StudyArgs {
    /// Measures, if there is anything to measure. The report of this run alone, and warnings.
    pub fn run(&self, global: &Global) -> Result<Option<(Report, Vec<String>)>> {
        if self.models.is_empty() {
            return Ok(None);
        }
        self.check_files()?;
        self.workshop.with(|workshop| {
            let environment = environment(workshop, self.workshop.plan.plan());
            let id = match &self.run {
                Some(id) => id.clone(),
                None => environment.date.strftime("%Y%m%dT%H%M%SZ").to_string(),
            };
            let options = self.options(workshop, &id)?;
            let spinner = Spinner::new(global);
            let (rows, warnings) = study::run(&self.models, &options, workshop, &|event| show(&spinner, event))?;
            drop(spinner);
            if rows.is_empty() {
                warnings.iter().for_each(|w| out::warning(w));
                return Err(Error::CheckFailed("no engine could be measured".into()));
            }
            let environment = BTreeMap::from([(id, environment)]);
            Ok(Some((Report { environment, rows, ..Report::default() }, warnings)))
        })
    }

    /// Builds the engines and measures nothing.
    pub fn build(&self, global: &Global) -> Result<Engines> {
        self.check_files()?;
        self.workshop.with(|workshop| {
            let spinner = Spinner::new(global);
            study::build(&self.models, &self.options(workshop, "")?, workshop, &|event| show(&spinner, event))
        })
    }

    fn check_files(&self) -> Result<()> {
        for file in &self.models {
            std::fs::File::open(&file.path).map_err(Error::io("open", &file.path))?;
        }
        Ok(())
    }

    fn options(&self, workshop: &Workshop, run: &str) -> Result<study::Options> {
        let version = workshop.library.version;
        let target = match self.target.or_else(|| Target::of_major(version.major)) {
            Some(target) => target,
            None => return Err(Error::Usage(format!("there is no target for TensorRT {version}; give --target"))),
        };
        Ok(study::Options {
            target,
            variants: self.variants.iter().cloned().collect::<BTreeSet<_>>(),
            precisions: self.precision.clone(),
            batches: self.batch.clone(),
            by: self.by,
            plan: self.workshop.plan.plan(),
            bootstrap: Bootstrap::default(),
            profile: if self.profile { PROFILED } else { 0 },
            verify: verify::Options {
                onnxruntime: self.onnxruntime.clone(),
                seed: self.workshop.plan.seed,
                ..verify::Options::default()
            },
            run: run.to_owned(),
        })
    }
}

fn show(spinner: &Spinner, event: Event) {
    match event {
        Event::Phase(what) => {
            tracing::info!("{what}");
            spinner.start(&what);
        }
        Event::Built(job, Ok(())) => spinner.show(&format!("built {}", file_name(&job.model))),
        Event::Built(job, Err(why)) => {
            spinner.show(&format!("no engine of {}", file_name(&job.model)));
            tracing::debug!("{why}");
        }
        Event::Round(done, all) => spinner.show(&format!("round {done} of {all}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_parsed() {
        let file = |name: &str, variant: Option<&str>| ModelFile {
            name: name.into(),
            variant: variant.map(str::to_owned),
            path: "a.onnx".into(),
        };
        assert_eq!(parse_model("swin_t=a.onnx"), Ok(file("swin_t", None)));
        assert_eq!(parse_model("swin_t:native-opset13=a.onnx"), Ok(file("swin_t", Some("native-opset13"))));
        for bad in
            ["", "swin_t", "swin_t=", "=a.onnx", ":native-x=a.onnx", "s:all=a.onnx", "s:native=a.onnx", "s:=a.onnx"]
        {
            assert!(parse_model(bad).unwrap_err().contains("swin_t=swin.onnx"), "{bad}");
        }
    }
}
