//! Proof by running: two models in ONNX Runtime on the same inputs, all outputs compared.
//!
//! ONNX Runtime is loaded at run time ([`runtime`] says where it is looked for), with its own graph optimizations
//! off, so that what is compared is what the files say. Plugin nodes run by their reference bodies.

mod array;
mod calibrate;
mod inputs;
mod report;
mod runtime;
mod session;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use array::{Array, Data, read_numpy};
pub use calibrate::{BYTES_IN_A_RUN, calibrate};
pub use report::{InputReport, OutputReport, Report, Worst, compare_arrays};
pub use runtime::{Candidate, OLDEST_MINOR, Runtime, candidates, runtime};
pub use session::{Axis, InputSpec, Session, Source};

use crate::error::{Error, Result};

/// Default bound of `||a - b|| / ||a||` for models in float.
pub const RTOL_FLOAT: f64 = 1e-5;
/// The same for models with weights or activations in float16 or bfloat16.
pub const RTOL_HALF: f64 = 2e-3;
/// The same for a float model against its own conversion to float16, as for an fp16 engine against the float model.
pub const RTOL_CONVERTED: f64 = 1e-2;
/// Size of the batch axis where the models leave it open.
pub const DEFAULT_BATCH: i64 = 2;

/// How to compare.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// ONNX Runtime's library or a folder with it; searched for by default.
    pub onnxruntime: Option<PathBuf>,
    /// A `.npz` with an array for every input, or a `.npy` for the one input; random by default.
    pub inputs: Option<PathBuf>,
    /// Size of the first axis of inputs that leave it open.
    pub batch: Option<i64>,
    /// Sizes of open axes by their name, or by `INPUT.AXIS` where they have none.
    pub dims: BTreeMap<String, i64>,
    /// Bound of `||a - b|| / ||a||`, instead of the default of the type.
    pub rtol: Option<f64>,
    pub seed: u64,
    /// Threads inside an operator; a few by default.
    pub threads: Option<usize>,
}

impl Options {
    fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or(cores.min(4))
    }
}

/// Runs both models on the same inputs and compares all outputs. `a` is what `b` is measured against.
///
/// A difference is not an error of this function: see [`Report::passed`] and [`Report::check`].
pub fn compare<'a>(a: impl Into<Source<'a>>, b: impl Into<Source<'a>>, options: &Options) -> Result<Report> {
    let runtime = runtime(options.onnxruntime.as_deref())?;
    let threads = options.threads();
    let mut first = Session::new(runtime, a.into(), threads)?;
    let mut second = Session::new(runtime, b.into(), threads)?;
    let half = first.half || second.half;
    let rtol = options.rtol.unwrap_or(if half { RTOL_HALF } else { RTOL_FLOAT });

    let pairs = pair_inputs(&first, &second)?;
    let given = options.inputs.as_deref().map(read_numpy).transpose()?;
    let fed = inputs::make(&pairs, given, options)?;
    let for_second: Vec<Array> = order_for(&second.inputs()?, &pairs, &fed)?;

    let expected = first.run(&fed.iter().map(|(_, array)| array.clone()).collect::<Vec<_>>())?;
    let found = second.run(&for_second)?;
    let outputs = pair_outputs(&first, &second, expected, found)?;
    Ok(Report {
        a: first.name().to_owned(),
        b: second.name().to_owned(),
        onnxruntime: runtime.version.clone(),
        library: runtime.path.display().to_string(),
        seed: options.inputs.is_none().then_some(options.seed),
        inputs: fed
            .iter()
            .map(|(name, array)| InputReport {
                name: name.clone(),
                dtype: array.dtype.to_string(),
                shape: array.shape.clone(),
            })
            .collect(),
        passed: outputs.iter().all(|o| o.1.is_some()) && !outputs.is_empty(),
        outputs: outputs
            .iter()
            .map(|((name, a), b)| match b {
                Some((other, b)) => {
                    let mut report = compare_arrays(name, a, b, rtol);
                    report.other_name = (other != name).then(|| other.clone());
                    report
                }
                None => OutputReport::absent(name, a),
            })
            .collect(),
    }
    .settled())
}

/// What a model was run on and what it gave, by name.
#[derive(Clone, Debug)]
pub struct Run {
    pub inputs: Vec<(String, Array)>,
    pub outputs: Vec<(String, Array)>,
}

/// Runs one model, on the inputs that [`compare`] would take.
pub fn run<'a>(model: impl Into<Source<'a>>, options: &Options) -> Result<Run> {
    let runtime = runtime(options.onnxruntime.as_deref())?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut session = Session::new(runtime, model.into(), options.threads.unwrap_or(cores))?;
    let pairs: Vec<InputPair> = session.inputs()?.into_iter().map(|spec| (spec.clone(), spec)).collect();
    let given = options.inputs.as_deref().map(read_numpy).transpose()?;
    let inputs = inputs::make(&pairs, given, options)?;
    let outputs = session.run(&inputs.iter().map(|(_, array)| array.clone()).collect::<Vec<_>>())?;
    Ok(Run { inputs, outputs })
}

/// `||b - a|| / ||a||` over the elements of all floating-point outputs of `a`. NaN where one of them is NaN.
pub fn relative_error(a: &[(String, Array)], b: &[(String, Array)]) -> Result<f64> {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (name, x) in a {
        let Data::Float(expected) = &x.data else { continue };
        let found = b.iter().find(|(other, _)| other == name).map(|(_, y)| y);
        let (shape, data) = match found {
            Some(Array { shape, data: Data::Float(data), .. }) => (shape, data),
            Some(y) => {
                return Err(Error::CheckFailed(format!("output '{name}' is {}, expected {}", y.dtype, x.dtype)));
            }
            None => return Err(Error::CheckFailed(format!("output '{name}' is not there"))),
        };
        if *shape != x.shape {
            return Err(Error::CheckFailed(format!("output '{name}' has shape {shape:?}, expected {:?}", x.shape)));
        }
        for (x, y) in expected.iter().zip(data) {
            difference += (y - x) * (y - x);
            norm += x * x;
        }
    }
    match norm {
        0.0 => Ok(if difference == 0.0 { 0.0 } else { f64::INFINITY }),
        _ => Ok((difference / norm).sqrt()),
    }
}

type InputPair = (InputSpec, InputSpec);

/// Inputs of `a` with those of `b` that take the same array: by name, else by position.
fn pair_inputs(a: &Session, b: &Session) -> Result<Vec<InputPair>> {
    let (first, second) = (a.inputs()?, b.inputs()?);
    let names = |specs: &[InputSpec]| specs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
    if first.len() != second.len() {
        return Err(Error::CheckFailed(format!(
            "the models take different inputs: {} has {} ({}), {} has {} ({})",
            a.name(),
            first.len(),
            names(&first),
            b.name(),
            second.len(),
            names(&second)
        )));
    }
    let by_name = first.iter().all(|s| second.iter().any(|o| o.name == s.name));
    let partner = |(i, spec): (usize, &InputSpec)| match second.iter().find(|o| o.name == spec.name) {
        Some(other) if by_name => other.clone(),
        _ => second[i].clone(),
    };
    let pairs: Vec<InputPair> = first.iter().enumerate().map(|p| (p.1.clone(), partner(p))).collect();
    for (one, other) in &pairs {
        let (kind, kind_b) = (one.dtype.is_float(), other.dtype.is_float());
        if one.dtype != other.dtype && !(kind && kind_b) {
            return Err(Error::CheckFailed(format!(
                "input '{}' is {} in {} and {} in {}",
                one.name,
                one.dtype,
                a.name(),
                other.dtype,
                b.name()
            )));
        }
    }
    Ok(pairs)
}

/// The arrays in the order of `b`'s inputs, in its types.
fn order_for(specs: &[InputSpec], pairs: &[InputPair], fed: &[(String, Array)]) -> Result<Vec<Array>> {
    let find = |spec: &InputSpec| {
        let at = pairs.iter().position(|(_, b)| b.name == spec.name)?;
        fed[at].1.clone().cast(spec.dtype)
    };
    let missing = |spec: &InputSpec| Error::Usage(format!("no array can be made for input '{}'", spec.name));
    specs.iter().map(|spec| find(spec).ok_or_else(|| missing(spec))).collect()
}

type Named = (String, Array);

fn pair_outputs(
    a: &Session,
    b: &Session,
    first: Vec<Named>,
    mut second: Vec<Named>,
) -> Result<Vec<(Named, Option<Named>)>> {
    if first.len() != second.len() {
        return Err(Error::CheckFailed(format!(
            "the models have different outputs: {} has {} ({}), {} has {} ({})",
            a.name(),
            first.len(),
            a.output_names().join(", "),
            b.name(),
            second.len(),
            b.output_names().join(", ")
        )));
    }
    let by_name = first.iter().all(|(name, _)| second.iter().any(|(other, _)| other == name));
    let mut pairs = vec![];
    for named in first {
        let at = if by_name { second.iter().position(|(other, _)| *other == named.0) } else { Some(0) };
        let other = at.filter(|&i| i < second.len()).map(|i| second.remove(i));
        pairs.push((named, other));
    }
    Ok(pairs)
}
