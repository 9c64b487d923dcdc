//! The ablation of several models in one run: every variant built, checked and timed, interleaved with ResNet-50.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::store::Job;
use super::tune::By;
use super::tuning::Tuning;
use super::variants::{self, Variant};
use super::workshop::Workshop;
use crate::bench;
use crate::contents::Contents;
use crate::error::{Error, Result};
use crate::ir::{Dim, Graph};
use crate::measure::stats::{Bootstrap, Summary, compare};
use crate::measure::{Plan, Samples};
use crate::onnx::{self, Model};
use crate::report::{BeforeAfter, Estimate, Layer, Mode, Precision, REFERENCE_MODEL, Row, Variant as Name};
use crate::rewrite::Target;
use crate::verify;

/// The variant that [`super::tune::search`] finds.
pub const TUNED: &str = "tuned";

/// A model to compare variants of. Files of one name are the same model at other batch sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// What the report calls it: `swin_t`.
    pub name: String,
    /// Of another export of the model, which is measured as it is: `native-opset13`.
    pub variant: Option<String>,
    pub path: PathBuf,
}

impl ModelFile {
    /// Whether fusions can be chosen for it: not what is measured as it is.
    fn is_tuned(&self) -> bool {
        self.name != REFERENCE_MODEL && self.variant.is_none()
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    pub target: Target,
    /// Names of variants; by default all but [`TUNED`] and [`variants::AUDITS`].
    pub variants: BTreeSet<String>,
    pub precisions: Vec<Precision>,
    /// Sizes of an open batch axis, and which of the fixed ones are wanted; empty takes files as they are.
    pub batches: Vec<i64>,
    /// How sites are grouped for [`TUNED`].
    pub by: By,
    pub plan: Plan,
    pub bootstrap: Bootstrap,
    /// Inferences that the layers are profiled over; none by default.
    pub profile: usize,
    /// Where ONNX Runtime is, and the seed of the inputs.
    pub verify: verify::Options,
    /// Id of the run.
    pub run: String,
}

/// What is going on, for a progress display.
pub enum Event<'a> {
    Phase(String),
    /// An engine was built, or not.
    Built(&'a Job, &'a Result<()>),
    /// Rounds done of all.
    Round(usize, usize),
}

/// An engine of the study.
struct Planned {
    model: String,
    variant: String,
    precision: Precision,
    batch: i64,
    job: Job,
    estimate: BeforeAfter,
    note: Option<String>,
    /// Inputs and outputs of the model as exported.
    reference: usize,
}

impl Planned {
    /// For warnings.
    fn describe(&self) -> String {
        format!("{} {} {} batch {}", self.model, self.variant, self.precision, self.batch)
    }

    /// Whether ratios may be to it.
    fn is_reference(&self) -> bool {
        self.model == REFERENCE_MODEL && self.precision == Precision::Fp16
    }
}

/// A file at a batch size.
struct Setting<'a> {
    file: &'a ModelFile,
    batch: Batch,
}

/// What [`build`] left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Engines {
    /// Engines that are there, whether they were before or not.
    pub there: usize,
    /// Of the others, which and why not.
    pub missing: Vec<String>,
}

impl Engines {
    /// Of what was tried, in order: an engine, what it is of, and why it is not there. Equal variants share an engine, and
    /// what came of it last counts.
    fn of(tried: impl IntoIterator<Item = (PathBuf, String, Result<()>)>) -> Self {
        let mut engines: Vec<(PathBuf, Option<String>)> = vec![];
        for (engine, name, outcome) in tried {
            let missing = outcome.err().map(|why| format!("{name}: no engine: {why}"));
            match engines.iter_mut().find(|(known, _)| *known == engine) {
                Some((_, known)) => *known = missing,
                None => engines.push((engine, missing)),
            }
        }
        let there = engines.iter().filter(|(_, missing)| missing.is_none()).count();
        Self { there, missing: engines.into_iter().filter_map(|(_, missing)| missing).collect() }
    }
}

/// Builds the engines that [`run`] measures, and of [`TUNED`] those that a search asks for if every group pays. Measures
/// nothing and needs no ONNX Runtime.
pub fn build(
    files: &[ModelFile],
    options: &Options,
    workshop: &Workshop,
    event: &(dyn Fn(Event) + Sync),
) -> Result<Engines> {
    let (settings, planned) = planned(files, options, workshop, event)?;
    let outcomes = built(&planned, workshop, event);
    let mut tried: Vec<_> =
        planned.iter().zip(outcomes).map(|(p, outcome)| (p.job.engine.clone(), p.describe(), outcome)).collect();
    if options.variants.contains(TUNED) {
        for Setting { file, batch } in settings.iter().filter(|s| s.file.is_tuned()) {
            let model = onnx::load(&file.path)?;
            for &precision in &options.precisions {
                let name = stem(file, batch.size, precision);
                event(Event::Phase(format!("building what tuning {} in {precision} asks for", file.name)));
                let tuning = tuning(&model, &name, *batch, precision, options, workshop);
                for candidate in tuning.build(&|job, outcome| event(Event::Built(job, outcome)))? {
                    let name = format!("{} {TUNED} ({}) {precision} batch {}", file.name, candidate.name, batch.size);
                    tried.push((candidate.job.engine, name, candidate.outcome));
                }
            }
        }
    }
    Ok(Engines::of(tried))
}

/// Measures all variants of all models. The rows, and warnings about what is not in them.
pub fn run(
    files: &[ModelFile],
    options: &Options,
    workshop: &Workshop,
    event: &(dyn Fn(Event) + Sync),
) -> Result<(Vec<Row>, Vec<String>)> {
    let mut warnings = vec![];
    let (settings, mut planned) = planned(files, options, workshop, event)?;
    let mut references = vec![];
    for Setting { file, batch } in &settings {
        event(Event::Phase(format!("running {} in ONNX Runtime", file.name)));
        let verify = verify::Options { batch: batch.open.then_some(batch.size), ..options.verify.clone() };
        references.push(verify::run(&file.path, &verify)?);
    }
    let mut outcomes = built(&planned, workshop, event).into_iter();
    planned.retain(|p| match outcomes.next() {
        Some(Err(why)) => {
            warnings.push(format!("{}: no engine: {why}", p.describe()));
            false
        }
        _ => true,
    });
    if options.variants.contains(TUNED) {
        for (number, setting) in settings.iter().enumerate().filter(|(_, s)| s.file.is_tuned()) {
            for &precision in &options.precisions {
                match tuned(setting, precision, number, options, workshop, event) {
                    Ok(found) => planned.push(found),
                    // The others are still worth their time.
                    Err(why) => {
                        let Setting { file, batch } = setting;
                        warnings.push(format!("{} {precision} batch {} is not tuned: {why}", file.name, batch.size));
                    }
                }
            }
        }
    }
    let sizes: BTreeSet<i64> = planned.iter().map(|p| p.batch).collect();
    let mut rows = vec![];
    for size in sizes {
        let group: Vec<&Planned> = planned.iter().filter(|p| p.batch == size).collect();
        rows.extend(measure(&group, &references, options, workshop, event, &mut warnings)?);
    }
    Ok((rows, warnings))
}

/// The settings of the study and its engines but those of [`TUNED`], in the order that they are built in.
fn planned<'a>(
    files: &'a [ModelFile],
    options: &Options,
    workshop: &Workshop,
    event: &(dyn Fn(Event) + Sync),
) -> Result<(Vec<Setting<'a>>, Vec<Planned>)> {
    let mut settings = vec![];
    let mut planned = vec![];
    for file in files {
        event(Event::Phase(format!("rewriting {}", file.name)));
        let model = onnx::load(&file.path)?;
        for batch in batches(&model, &options.batches)? {
            plan(file, &model, batch, settings.len(), options, workshop, &mut planned)?;
            settings.push(Setting { file, batch });
        }
    }
    let known = |name: &String| name == TUNED || planned.iter().any(|p| p.variant == *name);
    if let Some(unknown) = options.variants.iter().find(|name| !known(name)) {
        let mut names: Vec<&str> = planned.iter().map(|p| p.variant.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        return Err(Error::Usage(format!(
            "no model has a variant '{unknown}' (there are {}, {TUNED})",
            names.join(", ")
        )));
    }
    // What says most first, for the case that time runs out.
    planned.sort_by_key(|p| match p.variant.as_str() {
        native if native.starts_with("native") => 0,
        "all" => 1,
        variants::BLOCKS => 2,
        "canonical" => 3,
        _ => 4,
    });
    Ok((settings, planned))
}

/// Builds what is missing. For each, why it has no engine.
fn built(planned: &[Planned], workshop: &Workshop, event: &(dyn Fn(Event) + Sync)) -> Vec<Result<()>> {
    let jobs: Vec<Job> = planned.iter().map(|p| p.job.clone()).collect();
    event(Event::Phase(format!("building {} engines", missing(&jobs))));
    workshop.build(&jobs, &|job, outcome| event(Event::Built(job, outcome)))
}

#[derive(Clone, Copy)]
struct Batch {
    size: i64,
    /// Whether the model leaves it open.
    open: bool,
}

/// The batch sizes that a model is measured at.
fn batches(model: &Model, wanted: &[i64]) -> Result<Vec<Batch>> {
    let graph = Graph::take(&mut model.proto.clone())?;
    let first = graph.inputs.iter().find(|&&v| graph.constant(v).is_none()).and_then(|&v| graph.shape(v)?.first());
    let place = || model.path.display().to_string();
    match first {
        Some(Dim::Int(size)) if wanted.is_empty() || wanted.contains(size) => {
            Ok(vec![Batch { size: *size, open: false }])
        }
        Some(Dim::Int(size)) => {
            Err(Error::Usage(format!("{}: its batch is {size}, and --batch asks for {wanted:?}", place())))
        }
        Some(_) if wanted.is_empty() => Ok(vec![Batch { size: 1, open: true }]),
        Some(_) => Ok(wanted.iter().map(|&size| Batch { size, open: true }).collect()),
        None => Err(Error::invalid(place(), "has no input with a batch axis")),
    }
}

fn missing(jobs: &[Job]) -> usize {
    let engines: BTreeSet<_> = jobs.iter().map(|j| &j.engine).collect();
    engines.into_iter().filter(|e| !e.exists()).count()
}

/// The engines of a model at a batch size. ResNet-50, which ratios are to, is measured as exported only.
fn plan(
    file: &ModelFile,
    model: &Model,
    batch: Batch,
    reference: usize,
    options: &Options,
    workshop: &Workshop,
    planned: &mut Vec<Planned>,
) -> Result<()> {
    let is_reference = file.name == REFERENCE_MODEL;
    let wanted = |v: &Variant| match is_reference {
        true => v.name == "native",
        false => options.variants.is_empty() || options.variants.contains(&v.name),
    };
    let native = |name: &str| Variant { name: name.to_owned(), rewrite: None };
    let before = estimate(model, batch.size)?;
    let mut precisions = options.precisions.clone();
    if is_reference && !precisions.contains(&Precision::Fp16) {
        precisions.push(Precision::Fp16);
    }
    for precision in precisions {
        let fp16 = precision == Precision::Fp16;
        let mut forms: Vec<(Variant, &'static [&'static str])> = vec![];
        match &file.variant {
            Some(name) => forms.push((native(name), &[])),
            None => {
                let default = workshop.rewriting(options.target, fp16);
                let ladder = variants::ladder(model, &file.name, &default)?.into_iter().filter(wanted);
                forms.extend(ladder.map(|variant| (variant, &[][..])));
                for name in options.variants.iter().filter(|_| !is_reference) {
                    forms.extend(
                        variants::of_blocks(name, model, &file.name, &default)?.map(|variant| (variant, &[][..])),
                    );
                }
                let audits = variants::AUDITS.into_iter().filter(|(name, _)| options.variants.contains(*name));
                forms.extend(audits.map(|(name, extra)| (native(name), extra)));
            }
        }
        for (variant, extra) in forms {
            let saved = workshop.save(&stem(file, batch.size, precision), model, &variant)?;
            let after = match saved.ledger {
                Some(_) => estimate(&saved.model, batch.size)?,
                None => before,
            };
            planned.push(Planned {
                model: file.name.clone(),
                variant: variant.name.clone(),
                precision,
                batch: batch.size,
                job: workshop.store.job(&saved.path, fp16, batch.open.then_some(batch.size), extra)?,
                estimate: BeforeAfter { before, after },
                note: None,
                reference,
            });
        }
    }
    Ok(())
}

/// What files of the store are called after. The precision is one of what blocks are made by.
fn stem(file: &ModelFile, batch: i64, precision: Precision) -> String {
    format!("{}-b{batch}-{precision}", file.name)
}

fn estimate(model: &Model, batch: i64) -> Result<Estimate> {
    let estimate = Contents::of(model, batch)?.estimate;
    Ok(Estimate { bytes: estimate.bytes, launches: estimate.launches })
}

/// Searches for the fastest choice of fusions of a model. `reference`: the number of the setting.
fn tuned(
    Setting { file, batch }: &Setting,
    precision: Precision,
    reference: usize,
    options: &Options,
    workshop: &Workshop,
    event: &(dyn Fn(Event) + Sync),
) -> Result<Planned> {
    let model = onnx::load(&file.path)?;
    event(Event::Phase(format!("tuning {} in {precision} at batch {}", file.name, batch.size)));
    let name = stem(file, batch.size, precision);
    let tuning = tuning(&model, &name, *batch, precision, options, workshop);
    let found = tuning.run(&|job, outcome| event(Event::Built(job, outcome)), &mut |_| {})?;
    let (before, after) = (estimate(&model, batch.size)?, estimate(&found.saved.model, batch.size)?);
    Ok(Planned {
        model: file.name.clone(),
        variant: TUNED.to_owned(),
        precision,
        batch: batch.size,
        job: workshop.store.job(&found.saved.path, tuning.fp16, tuning.batch, &[])?,
        estimate: BeforeAfter { before, after },
        note: Some(found.outcome.describe()),
        reference,
    })
}

fn tuning<'a>(
    model: &'a Model,
    name: &'a str,
    batch: Batch,
    precision: Precision,
    options: &Options,
    workshop: &'a Workshop<'a>,
) -> Tuning<'a> {
    Tuning {
        workshop,
        model,
        name,
        target: options.target,
        by: options.by,
        fp16: precision == Precision::Fp16,
        batch: batch.open.then_some(batch.size),
        plan: options.plan,
        bootstrap: options.bootstrap,
    }
}

/// Times the engines of one batch size in interleaved rounds, in each mode.
fn measure(
    group: &[&Planned],
    references: &[verify::Run],
    options: &Options,
    workshop: &Workshop,
    event: &(dyn Fn(Event) + Sync),
    warnings: &mut Vec<String>,
) -> Result<Vec<Row>> {
    let batch = group.first().map_or(1, |p| p.batch);
    event(Event::Phase(format!("timing {} engines at batch {batch}", group.len())));
    // Equal variants share an engine: it is loaded and timed once, as that of the first of them.
    let mut engines: Vec<&Planned> = vec![];
    for &planned in group {
        if !engines.iter().any(|first| first.job.engine == planned.job.engine) {
            engines.push(planned);
        }
    }
    let mut subjects = vec![];
    let mut errors = vec![];
    engines.retain(|first| {
        let name = format!("{} {} {}", first.model, first.variant, first.precision);
        match tried(&name, first, &references[first.reference], workshop) {
            Ok((subject, error)) => {
                if !error.is_finite() {
                    warnings.push(format!("{name} batch {batch}: its outputs are not finite"));
                }
                subjects.push(subject);
                errors.push(error);
                true
            }
            // The others are still worth their time.
            Err(why) => {
                warnings.push(format!("{name} batch {batch}: its engine does not run: {why}"));
                false
            }
        }
    });
    let place = |planned: &Planned| engines.iter().position(|first| first.job.engine == planned.job.engine);
    let (group, at): (Vec<&Planned>, Vec<usize>) = group.iter().filter_map(|&p| Some((p, place(p)?))).unzip();
    let mut rows = vec![];
    for mode in [Mode::Graph, Mode::Enqueue] {
        if mode == Mode::Graph
            && let Some((subject, why)) = subjects.iter().find_map(|s| Some((&s.name, s.graph.as_ref().err()?)))
        {
            warnings.push(format!("batch {batch} is not timed by CUDA graphs: {subject} cannot be captured: {why}"));
            continue;
        }
        let samples = bench::measure(&mut subjects, mode, &options.plan, &mut |done| {
            event(Event::Round(done, options.plan.rounds));
        })?;
        let mut baseline: Option<(f64, &Samples)> = None;
        for (_, &at) in group.iter().zip(&at).filter(|(p, _)| p.is_reference()) {
            let p50 = Summary::of(&samples[at], &options.bootstrap)?.p50_us;
            // The fastest, if ResNet-50 was built in several ways.
            if baseline.is_none_or(|(least, _)| p50 < least) {
                baseline = Some((p50, &samples[at]));
            }
        }
        let baseline = baseline.map(|(_, samples)| samples);
        for (planned, &at) in group.iter().zip(&at) {
            let mut row = row(planned, mode, &subjects[at], &samples[at], baseline, errors[at], options)?;
            // As where a fusion takes part in another only, and alone finds nothing to do.
            let first = engines[at];
            if row.note.is_none() && first.variant != planned.variant {
                row.note = Some(format!("the same engine as {}", first.variant));
            }
            rows.push(row);
        }
    }
    if options.profile > 0 {
        let mut profiles: Vec<Vec<Layer>> = vec![];
        for subject in &mut subjects {
            let layers = bench::profile(subject, options.profile).unwrap_or_else(|why| {
                warnings.push(format!("{} batch {batch}: no profile: {why}", subject.name));
                vec![]
            });
            let layer =
                |l: bench::ProfiledLayer| Layer { name: l.name, r#type: l.kind.unwrap_or_default(), us: l.mean_us };
            profiles.push(layers.into_iter().map(layer).collect());
        }
        // Rows of a mode are in the order of the group.
        for (row, &at) in rows.iter_mut().filter(|r| r.mode == Mode::Graph).zip(&at) {
            row.layers.clone_from(&profiles[at]);
        }
    }
    Ok(rows)
}

/// An engine that has run once, and the error of what it computed.
fn tried(name: &str, planned: &Planned, run: &verify::Run, workshop: &Workshop) -> Result<(bench::Subject, f64)> {
    let given: BTreeMap<_, _> = run.inputs.iter().cloned().collect();
    let mut subject = workshop.subject(name, &planned.job, &given)?;
    let mode = if subject.graph.is_ok() { Mode::Graph } else { Mode::Enqueue };
    let error = verify::relative_error(&run.outputs, &subject.outputs(mode)?)?;
    Ok((subject, error))
}

fn row(
    planned: &Planned,
    mode: Mode,
    subject: &bench::Subject,
    samples: &Samples,
    baseline: Option<&Samples>,
    error: f64,
    options: &Options,
) -> Result<Row> {
    let time = Summary::of(samples, &options.bootstrap)?;
    let ratio = baseline.map(|b| compare(samples, b, &options.bootstrap)).transpose()?;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Row {
        model: planned.model.clone(),
        variant: Name::new(planned.variant.clone())?,
        precision: planned.precision,
        batch: u32::try_from(planned.batch)
            .map_err(|_| Error::Usage(format!("a batch of {} is too large", planned.batch)))?,
        mode,
        p50_us: time.p50_us,
        p99_us: time.p99_us,
        interval_us: time.interval_us,
        kernels: subject.graph.as_ref().ok().map(|g| count(g.kernels)),
        engine_mb: Some(subject.engine_bytes as f64 / 1e6),
        device_mb: Some(subject.device_bytes as f64 / 1e6),
        rel_err: error.is_finite().then_some(error),
        x_resnet50: ratio.map(|r| r.ratio),
        x_resnet50_interval: ratio.map(|r| r.interval),
        run: options.run.clone(),
        estimate: Some(planned.estimate),
        layers: vec![],
        note: planned.note.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_engines_are_counted_once_and_by_what_came_last() {
        let tried = |engine: &str, name: &str, why: Option<&str>| {
            let outcome = why.map_or(Ok(()), |why| Err(Error::CheckFailed(why.into())));
            (PathBuf::from(engine), name.to_owned(), outcome)
        };
        let engines = Engines::of([
            tried("a", "swin_t native", None),
            tried("b", "swin_t all", Some("node 7 is not supported")),
            tried("c", "swin_t gelu", Some("too late")),
            tried("a", "swin_t gelu", None),
            tried("b", "swin_t tuned (left-1)", Some("node 7 is not supported")),
            tried("c", "swin_t tuned (left-2)", None),
        ]);
        let missing = vec!["swin_t tuned (left-1): no engine: node 7 is not supported".to_owned()];
        assert_eq!(engines, Engines { there: 2, missing });
        assert_eq!(Engines::of([]), Engines::default());
    }
}
