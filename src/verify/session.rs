//! A model in ONNX Runtime: what it takes, and a run of it.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ort::session::SessionInputValue;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynValue, Outlet, ValueType};

use super::array::{Array, dtype_of};
use super::runtime::Runtime;
use crate::error::{Error, Result};
use crate::onnx::proto::ModelProto;
use crate::onnx::{self, DType, Model, SaveOptions};
use crate::rewrite;

/// The domain of the plugin ops.
const DOMAIN: &str = "trt.opt";

/// A model to run: a file, or one in memory.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    File(&'a Path),
    /// `name` is how messages call it.
    Model {
        name: &'a str,
        model: &'a Model,
    },
}

impl Source<'_> {
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Model { name, .. } => (*name).to_owned(),
        }
    }
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for Source<'a> {
    fn from(path: &'a P) -> Self {
        Self::File(path.as_ref())
    }
}

/// The size of an axis of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    Fixed(i64),
    /// Any size; the name that the model gives it, or nothing.
    Open(String),
}

/// An input of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<Axis>,
}

/// A model that ONNX Runtime has loaded.
pub struct Session {
    name: String,
    inner: ort::session::Session,
    /// Whether weights or inputs are in a type of 16 bits.
    pub half: bool,
    _files: Option<tempfile::TempDir>,
}

impl Session {
    /// Loads the model with ONNX Runtime's own optimizations off. Plugin nodes get their reference bodies, in a copy.
    pub fn new(runtime: &Runtime, source: Source<'_>, threads: usize) -> Result<Self> {
        let name = source.name();
        let loaded;
        let model = match source {
            Source::File(path) => {
                loaded = onnx::load(path)?;
                &loaded
            }
            Source::Model { model, .. } => model,
        };
        let half = is_half(&model.proto);
        let (path, files): (PathBuf, _) = match source {
            Source::File(path) if !lacks_bodies(&model.proto) => (path.to_owned(), None),
            _ => {
                let mut copy = model.clone();
                rewrite::add_reference_bodies(&mut copy.proto)?;
                let dir = tempfile::tempdir().map_err(Error::io("make a folder in", std::env::temp_dir()))?;
                let path = dir.path().join("model.onnx");
                let options = SaveOptions { external_data: Some("model.data".into()), ..SaveOptions::default() };
                onnx::save(&copy, &path, &options)?;
                (path, Some(dir))
            }
        };
        let inner = Self::open(runtime, &name, &path, threads)?.inner;
        Ok(Self { name, inner, half, _files: files })
    }

    /// Loads a file that ONNX Runtime can run as it is, with its own optimizations off. `name` is what messages call it.
    pub(super) fn open(runtime: &Runtime, name: &str, path: &Path, threads: usize) -> Result<Self> {
        let context = || format!("loading {name}");
        let error = |e: ort::Error| runtime_error(context(), &e);
        let with = |e: ort::Error<_>| runtime_error(context(), &e);
        let builder = ort::session::Session::builder(&runtime.environment).map_err(error)?;
        let builder = builder.with_optimization_level(GraphOptimizationLevel::Disable).map_err(with)?;
        let builder = builder.with_intra_threads(threads).map_err(with)?;
        let mut builder = builder.with_log_level(ort::logging::LogLevel::Error).map_err(with)?;
        let inner = builder.commit_from_file(path).map_err(|e| runtime_error(context(), &e))?;
        Ok(Self { name: name.to_owned(), inner, half: false, _files: None })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn inputs(&self) -> Result<Vec<InputSpec>> {
        self.inner.inputs().iter().map(|outlet| self.spec(outlet)).collect()
    }

    pub fn output_names(&self) -> Vec<String> {
        self.inner.outputs().iter().map(|o| o.name().to_owned()).collect()
    }

    fn spec(&self, outlet: &Outlet) -> Result<InputSpec> {
        let unusable = |what: String| Error::invalid(format!("input '{}' of {}", outlet.name(), self.name), what);
        let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
            return Err(unusable(format!("is {}; verify can feed tensors only", outlet.dtype())));
        };
        let dtype = dtype_of(*ty)
            .filter(|d| *d != DType::String)
            .ok_or_else(|| unusable(format!("has elements of type {ty}, which verify cannot make")))?;
        let axis = |(i, &size): (usize, &i64)| match size {
            0.. => Axis::Fixed(size),
            _ => Axis::Open(dimension_symbols.get(i).cloned().unwrap_or_default()),
        };
        Ok(InputSpec { name: outlet.name().to_owned(), dtype, shape: shape.iter().enumerate().map(axis).collect() })
    }

    /// Runs the model on arrays in the order of its inputs; all its outputs, by name.
    pub fn run(&mut self, inputs: &[Array]) -> Result<Vec<(String, Array)>> {
        let mut arrays = vec![];
        self.visit(inputs, &mut |name, value| {
            arrays.push((name.to_owned(), Array::of_value(name, value)?));
            Ok(())
        })?;
        Ok(arrays)
    }

    /// Runs the model and shows all its outputs by name, as ONNX Runtime holds them.
    pub(super) fn visit(
        &mut self,
        inputs: &[Array],
        show: &mut dyn FnMut(&str, &DynValue) -> Result<()>,
    ) -> Result<()> {
        let names: Vec<String> = self.inner.inputs().iter().map(|i| i.name().to_owned()).collect();
        let mut feed: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = vec![];
        for (name, array) in names.iter().zip(inputs) {
            feed.push((name.as_str().into(), array.to_value(name)?.into()));
        }
        let context = format!("running {}", self.name);
        let outputs = self.inner.run(feed).map_err(|e| runtime_error(context, &e))?;
        for (name, value) in outputs.iter() {
            show(name, &value)?;
        }
        Ok(())
    }
}

fn runtime_error<R>(context: String, error: &ort::Error<R>) -> Error {
    Error::Runtime { context, message: error.message().to_owned() }
}

/// Whether plugin nodes are there that no function of the model gives a body.
fn lacks_bodies(model: &ModelProto) -> bool {
    let has_body = |op: Option<&str>| {
        model.functions.iter().any(|f| f.domain.as_deref() == Some(DOMAIN) && f.name.as_deref() == op)
    };
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    nodes.filter(|n| n.domain.as_deref() == Some(DOMAIN)).any(|n| !has_body(n.op_type.as_deref()))
}

fn is_half(model: &ModelProto) -> bool {
    let half = |code: Option<i32>| matches!(code.and_then(DType::from_code), Some(DType::F16 | DType::BF16));
    let Some(graph) = &model.graph else { return false };
    let constants = graph.node.iter().flat_map(|n| &n.attribute).filter_map(|a| a.t.as_deref());
    let casts = graph.node.iter().filter(|n| n.op_type.as_deref() == Some("Cast"));
    graph.initializer.iter().chain(constants).any(|t| half(t.data_type))
        || casts.flat_map(|n| &n.attribute).any(|a| a.name.as_deref() == Some("to") && half(a.i.map(|i| i as i32)))
}
