//! Building engines.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::bridge::ffi;
use super::error::{Error, Result, refused};
use super::gpu::Gpu;
use super::layers::Layers;
use super::library::{Library, plugin_paths, utf8};
use super::progress::{Monitor, Progress};
use super::run::Engine;
use super::timings;
use crate::onnx::DType;
use crate::onnx::proto::GraphProto;
use crate::{files, onnx};

/// How to build an engine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct BuildOptions {
    /// Lets TensorRT choose float16 layers; where it is strongly typed, the model must hold float16 itself. Whether the
    /// engine then has such layers is looked at: [`Plan::check_half`].
    pub fp16: bool,
    /// Types are those of the model: TensorRT 10 on demand, 11 always.
    pub strongly_typed: bool,
    pub plugins: Vec<PathBuf>,
    /// Of inputs with open axes.
    pub shapes: BTreeMap<String, Shape>,
    /// Size of the first axis of the other inputs.
    pub batch: Option<i64>,
    /// Read if it is there, and written. Timings of another GPU or TensorRT are dropped, with a warning.
    pub timing_cache: Option<PathBuf>,
    /// 0 to 5, the higher the longer it builds; TensorRT's default is 3.
    pub optimization_level: Option<u8>,
    /// Bytes that a layer may use for the time of its run.
    pub workspace: Option<usize>,
    pub tactic_sources: TacticSources,
}

/// Sizes of an input's axes that an engine is built for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    pub min: Vec<i64>,
    /// What it is fastest at.
    pub opt: Vec<i64>,
    pub max: Vec<i64>,
}

impl Shape {
    pub fn fixed(sizes: Vec<i64>) -> Self {
        Self { min: sizes.clone(), opt: sizes.clone(), max: sizes }
    }
}

/// Libraries beside TensorRT's own that layers may come from; all off, so that none is needed. TensorRT 11 has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TacticSources {
    pub cublas: bool,
    pub cublas_lt: bool,
    pub cudnn: bool,
}

impl TacticSources {
    fn any(self) -> bool {
        self.cublas || self.cublas_lt || self.cudnn
    }
}

/// A built engine.
#[derive(Debug)]
pub struct Plan {
    /// What [`Engine::deserialize`] takes, in this version of TensorRT and on this kind of GPU.
    pub bytes: Vec<u8>,
    /// How long the building took.
    pub seconds: f64,
    pub layers: Layers,
    fp16: bool,
    model: PathBuf,
}

/// Less than this part of the computing layers in float16 is no fp16 engine.
const LEAST_HALF: f64 = 0.1;

/// An engine that keeps the model's float32 weights has at least this part of their bytes; one with all of them in float16 half of them and some 10 %
/// for everything else.
const FULL_WEIGHTS: f64 = 0.75;
/// Bytes of weights beside which the rest of an engine does not count.
const TELLING_WEIGHTS: u64 = 16 << 20;

impl Plan {
    /// If float16 was asked for, whether the engine has it: refused if nearly all layers compute in float32. What a layer of TensorRT's compiler computes in
    /// does not show where it reads and writes nothing but the network's own float32 tensors, as one that is the whole network does: then the weights tell.
    pub fn check_half(&self) -> Result<()> {
        if !self.fp16 {
            return Ok(());
        }
        let why = match super::compiled_for().major {
            11.. => {
                "TensorRT 11 takes all types from the model: rewrite it with 'trt-opt fuse --fp16' and build the result"
            }
            _ => "TensorRT found float32 faster, or the model's types hold it to float32",
        };
        match self.layers.half_share() {
            Some((share, _)) if share < LEAST_HALF && self.weights_are_half() => {
                tracing::info!("the layers' tensors are float32, and the weights of the engine float16");
                Ok(())
            }
            Some((share, all)) if share < LEAST_HALF => {
                Err(Error::NotHalf { share: format!("{} of {all}", (share * all as f64).round()), why: why.to_owned() })
            }
            Some(_) => {
                self.warn_of_plugins();
                Ok(())
            }
            None => {
                tracing::warn!("whether the engine computes in fp16 cannot be told: its layers do not say");
                Ok(())
            }
        }
    }

    /// Whether the engine is too small to have the model's float32 weights as they are.
    fn weights_are_half(&self) -> bool {
        onnx::load(&self.model)
            .ok()
            .and_then(|model| model.proto.graph)
            .is_some_and(|graph| too_small(self.bytes.len() as u64, float32_bytes(&graph)))
    }

    /// The plugins run in float16 on every input that they take, so one that does not is slower than it need be, often by
    /// far, with conversions around it.
    fn warn_of_plugins(&self) {
        let names = self.layers.plugins_in_full();
        let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
        let more = if names.len() > 3 { ", ..." } else { "" };
        if !names.is_empty() {
            tracing::warn!(
                "{} plugin nodes compute in float32 though fp16 was asked for: {shown}{more}; TensorRT says with -vvv what it timed",
                names.len()
            );
        }
    }
}

/// Bytes of a graph's float32 weights.
fn float32_bytes(graph: &GraphProto) -> u64 {
    let floats = graph.initializer.iter().filter(|t| t.data_type == Some(DType::F32 as i32));
    floats
        .map(|t| t.dims.iter().fold(4, |n: u64, &d| n.saturating_mul(u64::try_from(d).unwrap_or(0))))
        .fold(0, u64::saturating_add)
}

/// Whether an engine of so many bytes has not kept so many bytes of weights as they are.
fn too_small(engine: u64, weights: u64) -> bool {
    weights >= TELLING_WEIGHTS && (engine as f64) < FULL_WEIGHTS * weights as f64
}

/// TensorRT's builder on the first GPU. Starting it takes seconds, and what it has learnt of the times of layers serves
/// all engines that it builds.
pub struct Builder<'a> {
    library: &'a Library,
    inner: cxx::UniquePtr<ffi::Builder>,
}

impl<'a> Builder<'a> {
    /// # Errors
    /// [`Error::NoGpu`] before anything else; a [`Library`] that only runs engines.
    pub fn new(library: &'a Library) -> Result<Self> {
        Gpu::first()?.bind()?;
        let create = library.builder()?;
        // SAFETY: TensorRT's function of this name, of the headers' major version.
        let inner = refused(|| "starting TensorRT's builder".into(), || unsafe { ffi::new_builder(create.0) })?;
        Ok(Self { library, inner })
    }

    /// Builds the engine of an ONNX file. `progress` is told what is being done.
    ///
    /// # Errors
    /// [`Error::Parse`] with the node that the parser does not take; [`Error::Refused`] with TensorRT's words.
    pub fn build(&mut self, model: &Path, options: &BuildOptions, progress: Option<Progress>) -> Result<Plan> {
        self.build_request(model, options, request(model, options)?, progress)
    }

    fn build_request(
        &mut self,
        model: &Path,
        options: &BuildOptions,
        request: ffi::BuildRequest,
        progress: Option<Progress>,
    ) -> Result<Plan> {
        Gpu::first()?.bind()?;
        let parser = self.library.parser()?;
        let monitor = Monitor::new(progress);
        let action = || format!("building the engine of {}", model.display());
        // SAFETY: TensorRT's function of this name, of the headers' major version.
        let built = refused(action, || unsafe { self.inner.pin_mut().build(parser.0, &request, &monitor) })?;
        drop(monitor);
        if !built.errors.is_empty() {
            return Err(parse_error(model, &built.errors));
        }
        if let Some(path) = &options.timing_cache {
            if built.timings_refused {
                tracing::warn!("TensorRT does not take the timings in {}: they are made anew", path.display());
            }
            self.save_timings(path, (!built.timings_refused).then_some(&request.timings))?;
        }
        let layers = Engine::deserialize(self.library, &built.plan, &options.plugins)?.layers();
        Ok(Plan { bytes: built.plan, seconds: built.seconds, layers, fp16: options.fp16, model: model.to_owned() })
    }

    /// Writes the timings after a build that began with `begun_with`, none if those were refused. Builds that run at
    /// the same time share a file: what another has written since is kept.
    fn save_timings(&mut self, path: &Path, begun_with: Option<&Vec<u8>>) -> Result<()> {
        let lock = PathBuf::from([path.as_os_str(), OsStr::new(".lock")].into_iter().collect::<OsString>());
        let failed = |action| {
            let path = lock.clone();
            move |source| Error::File { action, path, source }
        };
        let guard = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&lock);
        let guard = guard.map_err(failed("open"))?;
        guard.lock().map_err(failed("lock"))?;
        let now = timings::read(path)?;
        let others = if begun_with == Some(&now) { &[][..] } else { &now };
        let action = || format!("adding the timings in {}", path.display());
        let whole = match refused(action, || self.inner.pin_mut().timings(others)) {
            Ok(whole) => whole,
            // As when a build begins with them.
            Err(why) => {
                tracing::warn!("{why}; they are replaced");
                refused(action, || self.inner.pin_mut().timings(&[]))?
            }
        };
        if !whole.is_empty() {
            files::write(path, &whole).map_err(Box::new)?;
        }
        Ok(())
    }
}

/// Builds a single engine: [`Builder::build`]. What is wrong with the request is said before TensorRT is started.
pub fn build(library: &Library, model: &Path, options: &BuildOptions, progress: Option<Progress>) -> Result<Plan> {
    let request = request(model, options)?;
    Builder::new(library)?.build_request(model, options, request, progress)
}

fn request(model: &Path, options: &BuildOptions) -> Result<ffi::BuildRequest> {
    let major = super::compiled_for().major;
    let unknown = |what: &str, why: &str| Err(Error::Option { what: what.to_owned(), why: why.to_owned() });
    if options.strongly_typed && major < 10 {
        return unknown("strong typing", "came with TensorRT 9.1, and this program was compiled for TensorRT 8");
    }
    if options.strongly_typed && options.fp16 && major < 11 {
        return unknown("fp16", "lets TensorRT choose types, which strong typing forbids: ask for one of both");
    }
    if options.tactic_sources.any() && major >= 11 {
        return unknown("tactic sources", "were dropped with TensorRT 11, which never uses cuBLAS or cuDNN");
    }
    // The parser's own error names neither the reason nor what to do.
    std::fs::File::open(model).map_err(|source| Error::File { action: "open", path: model.to_owned(), source })?;
    let timings = options.timing_cache.as_deref().map_or(Ok(vec![]), timings::read)?;
    let shape = |(name, s): (&String, &Shape)| ffi::InputShape {
        name: name.clone(),
        min: s.min.clone(),
        opt: s.opt.clone(),
        max: s.max.clone(),
    };
    Ok(ffi::BuildRequest {
        model: utf8(model)?,
        plugins: plugin_paths(&options.plugins)?,
        shapes: options.shapes.iter().map(shape).collect(),
        batch: options.batch.unwrap_or(0),
        fp16: options.fp16,
        strongly_typed: options.strongly_typed,
        cublas: options.tactic_sources.cublas,
        cublas_lt: options.tactic_sources.cublas_lt,
        cudnn: options.tactic_sources.cudnn,
        optimization_level: options.optimization_level.map_or(-1, i32::from),
        workspace: options.workspace.unwrap_or(0),
        timing_cache: options.timing_cache.is_some(),
        timings,
    })
}

/// The parser's errors with the nodes that they are about. TensorRT 8 gives a node's number only.
fn parse_error(model: &Path, errors: &[ffi::ParserError]) -> Error {
    let file = errors.iter().any(|e| e.node >= 0 && e.name.is_empty()).then(|| onnx::load(model).ok()).flatten();
    let nodes = file.as_ref().and_then(|m| m.proto.graph.as_ref()).map(|g| g.node.as_slice()).unwrap_or_default();
    let describe = |e: &ffi::ParserError| {
        let node = usize::try_from(e.node).ok().and_then(|i| nodes.get(i));
        let name = [Some(e.name.as_str()), node.and_then(|n| n.name.as_deref())];
        let op = [Some(e.op.as_str()), node.and_then(|n| n.op_type.as_deref())];
        let [name, op] = [name, op].map(|t| t.into_iter().flatten().find(|t| !t.is_empty()).unwrap_or("?").to_owned());
        match e.node {
            ..0 => e.description.clone(),
            number => format!("node {number} '{name}' ({op}): {}", e.description),
        }
    };
    Error::Parse { path: model.to_owned(), errors: errors.iter().map(describe).collect::<Vec<_>>().join("\n  ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::TensorProto;

    #[test]
    fn weights_tell_what_an_engine_computes_in() {
        let tensor = |dtype: DType, dims: &[i64]| TensorProto {
            data_type: Some(dtype as i32),
            dims: dims.to_vec(),
            ..Default::default()
        };
        let graph = |initializer| GraphProto { initializer, ..Default::default() };
        let weights = float32_bytes(&graph(vec![
            tensor(DType::F32, &[6000, 4000]),
            tensor(DType::F32, &[]),
            tensor(DType::F16, &[9999, 9999]),
            tensor(DType::I64, &[9999]),
            tensor(DType::F32, &[-1, 7]),
        ]));
        assert_eq!(weights, 96_000_004);
        // TNT-S as TensorRT 8.6 builds it, and with its weights as they are.
        assert!(too_small(48_500_000, weights));
        assert!(!too_small(97_000_000, weights));
        // Too few weights to tell.
        assert!(!too_small(1_000_000, 8_000_000));
        let huge = tensor(DType::F32, &[i64::MAX, i64::MAX, 8]);
        assert_eq!(float32_bytes(&graph(vec![huge.clone(), huge])), u64::MAX);
    }
}
