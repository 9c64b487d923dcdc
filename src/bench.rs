//! Timing engines against each other: what `trt-opt bench` does.
//!
//! A [`Loader`] makes a [`Subject`] of every engine, building those of ONNX models first; [`measure()`] times all subjects in
//! interleaved rounds, by plain enqueuing or by replaying CUDA graphs, and [`Row`] is what is then said of each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::engine::{self, BuildOptions, Engine, Gpu, GraphSize, Layers, Library, Precision, Progress, Session};
use crate::error::{Error, Result};
use crate::measure::stats::{Bootstrap, Comparison, Summary, compare};
use crate::measure::{self, Samples};
use crate::report::Mode;
use crate::verify::{Array, Data};

/// An engine that is to be timed.
pub struct Subject {
    pub name: String,
    pub file: PathBuf,
    /// Size of the first axis of the first input.
    pub batch: i64,
    pub session: Session,
    pub layers: Layers,
    /// `None` if CUDA does not capture it; then why.
    pub graph: std::result::Result<GraphSize, String>,
    pub engine_bytes: usize,
    pub device_bytes: u64,
    /// `None` for an engine that was read from a file.
    pub build_seconds: Option<f64>,
}

/// Whether the file is a serialized engine, by its first bytes.
pub fn is_engine(path: &Path) -> Result<bool> {
    const MAGIC: [&[u8]; 2] = [b"ftrt", b"ptrt"];
    let mut start = [0; 4];
    let mut file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    match std::io::Read::read_exact(&mut file, &mut start) {
        Ok(()) => Ok(MAGIC.contains(&start.as_slice())),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

/// What subjects are made with.
pub struct Loader<'a> {
    pub library: &'a Library,
    pub gpu: &'a Gpu,
    /// How models are built. Engines take its plugins and batch size.
    pub options: &'a BuildOptions,
    /// Arrays for inputs by name; the others are random.
    pub inputs: &'a BTreeMap<String, Array>,
    pub seed: u64,
}

impl Loader<'_> {
    /// A subject of an ONNX model, which is built, or of a serialized engine.
    pub fn load(&self, name: &str, file: &Path, progress: Option<Progress>) -> Result<Subject> {
        if is_engine(file)? {
            let bytes = std::fs::read(file).map_err(Error::io("read", file))?;
            return self.subject(name, file, &bytes, None);
        }
        let plan = engine::build(self.library, file, self.options, progress)?;
        plan.check_half()?;
        self.subject(name, file, &plan.bytes, Some(plan.seconds))
    }

    /// A subject of a serialized engine in memory, at the batch size of the options; without one, at the size that it
    /// has or was optimized for.
    pub fn subject(&self, name: &str, file: &Path, plan: &[u8], build_seconds: Option<f64>) -> Result<Subject> {
        let engine = Engine::deserialize(self.library, plan, &self.options.plugins)?;
        let mut session = Session::new(&engine, self.gpu, &self.shapes(&engine, file)?)?;
        session.fill_random(self.seed)?;
        let names: Vec<String> = session.inputs().map(|(name, ..)| name.to_owned()).collect();
        for (name, array) in self.inputs.iter().filter(|(name, _)| names.contains(name)) {
            session.set_input(name, array)?;
        }
        let batch = session.inputs().next().and_then(|(_, _, shape)| shape.first().copied()).unwrap_or(1);
        let graph = session.capture().map_err(|e| e.to_string());
        // A failed capture leaves the stream usable, or the error shows here.
        session.run()?;
        Ok(Subject {
            name: name.to_owned(),
            file: file.to_owned(),
            batch,
            layers: engine.layers(),
            graph,
            engine_bytes: engine.size,
            device_bytes: engine.device_memory(),
            build_seconds,
            session,
        })
    }

    /// Shapes of the inputs that leave axes open.
    fn shapes(&self, engine: &Engine, file: &Path) -> Result<BTreeMap<String, Vec<i64>>> {
        let mut shapes = BTreeMap::new();
        for input in engine.inputs() {
            let batch = self.options.batch;
            if let (Some(batch), Some(&is)) = (batch, input.shape.first())
                && is >= 0
                && is != batch
            {
                return Err(Error::Usage(format!(
                    "{}: input '{}' is {:?} in the engine, so its batch cannot be {batch}",
                    file.display(),
                    input.name,
                    input.shape
                )));
            }
            let Some(profile) = &input.profile else { continue };
            let mut shape = self.inputs.get(&input.name).map_or_else(|| profile.opt.clone(), |a| a.shape.clone());
            if let (Some(batch), Some(first), Some(-1)) = (batch, shape.first_mut(), input.shape.first()) {
                *first = batch;
            }
            shapes.insert(input.name.clone(), shape);
        }
        Ok(shapes)
    }
}

impl Subject {
    /// Outputs of an inference that was started this way, which nothing written before can be taken for.
    pub fn outputs(&mut self, mode: Mode) -> Result<Vec<(String, Array)>> {
        self.session.poison_outputs()?;
        match mode {
            Mode::Enqueue => self.session.run()?,
            Mode::Graph => self.session.replay()?,
        }
        Ok(self.session.outputs()?)
    }
}

/// Elements that are NaN or infinite.
pub fn not_finite(outputs: &[(String, Array)]) -> usize {
    let count = |array: &Array| match &array.data {
        Data::Float(v) => v.iter().filter(|x| !x.is_finite()).count(),
        Data::Int(_) | Data::Text(_) => 0,
    };
    outputs.iter().map(|(_, array)| count(array)).sum()
}

/// A subject in one of its modes.
struct Timed<'a> {
    subject: &'a mut Subject,
    mode: Mode,
}

impl measure::Subject for Timed<'_> {
    fn name(&self) -> &str {
        &self.subject.name
    }

    fn sample(&mut self) -> Result<f64> {
        Ok(match self.mode {
            Mode::Enqueue => self.subject.session.time_enqueue()?,
            Mode::Graph => self.subject.session.time_graph()?,
        })
    }
}

/// Times all subjects in one mode, in interleaved rounds.
pub fn measure(
    subjects: &mut [Subject],
    mode: Mode,
    plan: &measure::Plan,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Samples>> {
    let mut timed: Vec<Timed> = subjects.iter_mut().map(|subject| Timed { subject, mode }).collect();
    let mut turns: Vec<&mut dyn measure::Subject> = timed.iter_mut().map(|t| t as &mut dyn measure::Subject).collect();
    measure::interleave_with(&mut turns, plan, progress)
}

/// What was found of a subject in one mode.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub file: PathBuf,
    pub batch: i64,
    pub mode: Mode,
    #[serde(flatten)]
    pub time: Summary,
    /// Elements of the batch a second, at the median.
    pub throughput: f64,
    /// Against the baseline of the same batch and mode: its time is 1.
    pub x_baseline: Option<Comparison>,
    /// In the CUDA graph of an inference; null if it cannot be captured.
    pub kernels: Option<usize>,
    pub graph_nodes: Option<usize>,
    pub layers: usize,
    pub precisions: BTreeMap<Precision, usize>,
    /// Powers of ten.
    pub engine_mb: f64,
    /// Beside weights, inputs and outputs.
    pub device_mb: f64,
    pub build_s: Option<f64>,
    /// Elements of the outputs that are NaN or infinite.
    pub not_finite: usize,
}

impl Row {
    pub fn new(
        subject: &Subject,
        mode: Mode,
        samples: &Samples,
        baseline: Option<&Samples>,
        not_finite: usize,
        bootstrap: &Bootstrap,
    ) -> Result<Self> {
        let time = Summary::of(samples, bootstrap)?;
        let graph = subject.graph.as_ref().ok();
        Ok(Self {
            name: subject.name.clone(),
            file: subject.file.clone(),
            batch: subject.batch,
            mode,
            throughput: subject.batch as f64 * 1e6 / time.p50_us,
            time,
            x_baseline: baseline.map(|b| compare(samples, b, bootstrap)).transpose()?,
            kernels: graph.map(|g| g.kernels),
            graph_nodes: graph.map(|g| g.nodes),
            layers: subject.layers.layers.len(),
            precisions: subject.layers.precisions(),
            engine_mb: subject.engine_bytes as f64 / 1e6,
            device_mb: subject.device_bytes as f64 / 1e6,
            build_s: subject.build_seconds,
            not_finite,
        })
    }
}

/// A layer of a profile, with what is known of it.
#[derive(Clone, Debug, Serialize)]
pub struct ProfiledLayer {
    pub name: String,
    pub kind: Option<String>,
    pub precision: Option<Precision>,
    pub mean_us: f64,
}

/// Times of the layers of a subject, in order of execution.
pub fn profile(subject: &mut Subject, inferences: usize) -> Result<Vec<ProfiledLayer>> {
    let times = subject.session.profile(inferences)?;
    let known: BTreeMap<&str, &engine::Layer> = subject.layers.layers.iter().map(|l| (l.name.as_str(), l)).collect();
    let layer = |time: engine::LayerTime| {
        let layer = known.get(time.name.as_str());
        ProfiledLayer {
            kind: layer.map(|l| l.kind.clone()),
            precision: layer.map(|l| l.precision),
            mean_us: time.mean_us,
            name: time.name,
        }
    };
    Ok(times.into_iter().map(layer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DType;

    #[test]
    fn engines_are_known_by_their_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let file = |bytes: &[u8]| {
            let path = dir.path().join("file");
            std::fs::write(&path, bytes).unwrap();
            is_engine(&path)
        };
        assert!(file(b"ftrt....").unwrap() && file(b"ptrt....").unwrap());
        assert!(!file(b"\x08\x08..").unwrap() && !file(b"").unwrap() && !file(b"ftr").unwrap());
        assert!(is_engine(&dir.path().join("none")).is_err());
    }

    #[test]
    fn what_is_not_finite_is_counted() {
        let array = |data| Array { dtype: DType::F32, shape: vec![3], data };
        let outputs = [
            ("a".to_owned(), array(Data::Float(vec![1.0, f64::NAN, f64::INFINITY]))),
            ("b".to_owned(), array(Data::Float(vec![f64::NEG_INFINITY, 0.0, 1.0]))),
            ("c".to_owned(), array(Data::Int(vec![1, 2, 3]))),
        ];
        assert_eq!(not_finite(&outputs), 3);
    }
}
