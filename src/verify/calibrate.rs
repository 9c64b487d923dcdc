//! Runs of a model that look at every float32 value in it, for the conversion to float16.

use std::collections::HashMap;

use super::array::{Array, Data, read_numpy};
use super::runtime::runtime;
use super::session::{Axis, InputSpec, Session};
use super::{Options, inputs};
use crate::analysis::infer::infer;
use crate::error::{Error, Result};
use crate::ir::{Dim, Graph, ValueId};
use crate::onnx::proto::{TypeProto, ValueInfoProto, type_proto};
use crate::onnx::{self, DType, Model, SaveOptions};
use crate::rewrite::fp16::{Range, Ranges};
use crate::rewrite::{self, ops};

/// Values are looked at in several runs, in each at most this many bytes of them.
pub const BYTES_IN_A_RUN: u64 = 256 << 20;

/// Runs the model in ONNX Runtime and notes the range of every float32 value that a node makes or that is an input.
///
/// `name` is how messages call the model. Inputs are those of [`super::compare`]. The values are read in as many runs as
/// keep within [`BYTES_IN_A_RUN`], so memory does not grow with the depth of the model; `progress` is told the number of
/// the run and how many there are.
///
/// # Errors
/// Those of [`super::compare`], and [`Error::Io`] where a copy of the model cannot be written to the folder for
/// temporary files.
pub fn calibrate(
    model: &Model,
    name: &str,
    options: &Options,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Ranges> {
    let runtime = runtime(options.onnxruntime.as_deref())?;
    let given = options.inputs.as_deref().map(read_numpy).transpose()?;

    let mut graph = Graph::take(&mut model.proto.clone())?;
    infer(&mut graph, &ops::shapes)?;
    let pairs = input_specs(&graph)?.into_iter().map(|spec| (spec.clone(), spec)).collect::<Vec<_>>();
    let fed = inputs::make(&pairs, given, options)?;
    let sizes = symbol_sizes(&graph, &fed);

    let mut ranges = Ranges::new(source(options));
    for (name, array) in &fed {
        if let (Data::Float(values), DType::F32) = (&array.data, array.dtype) {
            ranges.insert(name, Range::of(&values.iter().map(|&v| v as f32).collect::<Vec<_>>()));
        }
    }

    // The weights are written once, and the models of all runs refer to them.
    let dir = tempfile::tempdir().map_err(Error::io("make a folder in", std::env::temp_dir()))?;
    let (base, probe) = (dir.path().join("model.onnx"), dir.path().join("probe.onnx"));
    let mut copy = model.clone();
    rewrite::add_reference_bodies(&mut copy.proto)?;
    onnx::save(&copy, &base, &SaveOptions { external_data: Some("model.data".into()), ..SaveOptions::default() })?;
    let mut copy = onnx::load(&base)?;

    let arrays: Vec<Array> = fed.into_iter().map(|(_, array)| array).collect();
    let runs = runs(&graph, &sizes, BYTES_IN_A_RUN);
    for (i, values) in runs.iter().enumerate() {
        progress(i + 1, runs.len());
        if let Some(proto) = &mut copy.proto.graph {
            proto.output = values.iter().map(|v| declaration(&graph, *v)).collect();
        }
        onnx::save(&copy, &probe, &SaveOptions::default())?;
        let mut session = Session::open(runtime, name, &probe, options.threads())?;
        session.visit(&arrays, &mut |name, value| {
            let (_, values) = value.try_extract_tensor::<f32>().map_err(|e| Error::Runtime {
                context: format!("reading value '{name}'"),
                message: e.message().to_owned(),
            })?;
            ranges.insert(name, Range::of(values));
            Ok(())
        })?;
    }
    tracing::debug!(values = ranges.len(), runs = runs.len(), "calibrated");
    Ok(ranges)
}

/// What the ledger says of the inputs.
fn source(options: &Options) -> String {
    match &options.inputs {
        Some(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        None => format!("random inputs, seed {}", options.seed),
    }
}

fn input_specs(graph: &Graph) -> Result<Vec<InputSpec>> {
    let axis = |dim: &Dim| match dim {
        Dim::Int(size) => Axis::Fixed(*size),
        dim if dim.symbols().iter().any(|s| s.starts_with('?')) => Axis::Open(String::new()),
        dim => Axis::Open(dim.to_string()),
    };
    let spec = |value: &ValueId| {
        let value = graph.value(*value);
        let (Some(dtype), Some(shape)) = (value.dtype, &value.shape) else {
            let what = "is no tensor of known type and rank; a calibration can feed tensors only";
            return Err(Error::invalid(format!("input '{}'", value.name), what));
        };
        Ok(InputSpec { name: value.name.clone(), dtype, shape: shape.iter().map(axis).collect() })
    };
    graph.inputs.iter().filter(|v| graph.value(**v).tensor.is_none()).map(spec).collect()
}

/// What the symbols of the inputs' shapes stand for in this run.
fn symbol_sizes(graph: &Graph, fed: &[(String, Array)]) -> HashMap<String, i64> {
    let mut sizes = HashMap::new();
    for (name, array) in fed {
        let shape = graph.by_name(name).and_then(|v| graph.shape(v)).unwrap_or_default();
        for (dim, size) in shape.iter().zip(&array.shape) {
            if let [symbol] = dim.symbols().as_slice()
                && *dim == Dim::symbol(symbol)
            {
                sizes.insert(symbol.to_string(), *size);
            }
        }
    }
    sizes
}

/// The float32 values that nodes make, in groups of at most `most` bytes. A larger value is a group of its own.
fn runs(graph: &Graph, sizes: &HashMap<String, i64>, most: u64) -> Vec<Vec<ValueId>> {
    let bytes = |value: ValueId| {
        let size = |d: &Dim| d.eval(|symbol| sizes.get(symbol).copied()).and_then(|n| u64::try_from(n).ok());
        let count = graph.shape(value)?.iter().map(size).try_fold(1u64, |n, d| n.checked_mul(d?))?;
        count.checked_mul(4)
    };
    let (mut runs, mut room): (Vec<Vec<ValueId>>, u64) = (vec![], 0);
    for value in graph.nodes().flat_map(|(_, n)| n.outputs.iter().flatten().copied()) {
        if graph.dtype(value) != Some(DType::F32) || graph.constant(value).is_some() {
            continue;
        }
        let bytes = bytes(value).unwrap_or(most / 4);
        match runs.last_mut().filter(|_| bytes <= room) {
            Some(run) => run.push(value),
            None => {
                runs.push(vec![value]);
                room = most;
            }
        }
        room = room.saturating_sub(bytes);
    }
    runs
}

/// The value as an output of the graph, of whatever shape.
fn declaration(graph: &Graph, value: ValueId) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: Some(DType::F32 as i32), shape: None };
    ValueInfoProto {
        name: Some(graph.value(value).name.clone()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None }),
        ..ValueInfoProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Node, Value};

    #[test]
    fn runs_keep_within_their_bytes() {
        let (batch, unknown) = (Dim::symbol("batch"), Dim::symbol("?a.0"));
        let mut graph = Graph::default();
        let x = graph.add_value(Value::new("x", Some(DType::F32), Some(vec![batch.clone(), 5.into()])));
        let mut add = |dtype: DType, dim: Dim, size: i64| {
            let value = graph.add_value(Value::new("v", Some(dtype), Some(vec![dim, size.into()])));
            let mut node = Node::new("Op", [x]);
            node.outputs = vec![Some(value)];
            graph.add_node(node);
            value
        };
        // 40, 56, 80 that are not looked at, 8, a quarter of a run for the unknown, 400, 40 bytes.
        let a = add(DType::F32, batch.clone(), 5);
        let b = add(DType::F32, batch.clone(), 7);
        add(DType::I64, batch.clone(), 5);
        let c = add(DType::F32, 2.into(), 1);
        let d = add(DType::F32, unknown, 1);
        let e = add(DType::F32, 100.into(), 1);
        let f = add(DType::F32, 10.into(), 1);
        let sizes = HashMap::from([("batch".to_owned(), 2)]);
        assert_eq!(runs(&graph, &sizes, 100), [vec![a, b], vec![c, d], vec![e], vec![f]]);
        assert_eq!(runs(&graph, &sizes, 1 << 20), [vec![a, b, c, d, e, f]]);
    }
}
