//! How far apart two sets of outputs are.

use serde::Serialize;

use super::array::{Array, Data};
use crate::error::{Error, Result};

/// The outcome of a comparison. As JSON, numbers that are not finite are null.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub a: String,
    pub b: String,
    pub passed: bool,
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    pub library: String,
    /// Of the random inputs; none where they were given.
    pub seed: Option<u64>,
    pub inputs: Vec<InputReport>,
    pub outputs: Vec<OutputReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct InputReport {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<i64>,
}

/// One output of both models.
#[derive(Clone, Debug, Serialize)]
pub struct OutputReport {
    pub name: String,
    /// Its name in `b`, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_name: Option<String>,
    pub dtype: String,
    pub shape: Vec<i64>,
    pub passed: bool,
    /// `||a - b|| / ||a||`.
    pub relative: f64,
    pub tolerance: f64,
    pub max_abs: f64,
    pub worst: Option<Worst>,
    /// Elements that are NaN in either; none may be.
    pub nan: usize,
    /// Why they cannot be compared element by element, or what else is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The element that differs most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Worst {
    pub index: Vec<usize>,
    pub a: f64,
    pub b: f64,
}

impl Report {
    pub(super) fn settled(mut self) -> Self {
        self.passed = !self.outputs.is_empty() && self.outputs.iter().all(|o| o.passed);
        self
    }

    /// Failed outputs, worst first.
    pub fn failures(&self) -> Vec<&OutputReport> {
        let mut failed: Vec<&OutputReport> = self.outputs.iter().filter(|o| !o.passed).collect();
        let badness = |o: &OutputReport| if o.relative.is_nan() { f64::INFINITY } else { o.relative };
        failed.sort_by(|x, y| badness(y).total_cmp(&badness(x)));
        failed
    }

    /// An error that names the worst outputs, where the comparison failed.
    pub fn check(&self) -> Result<()> {
        if self.passed {
            return Ok(());
        }
        let failures = self.failures();
        if failures.is_empty() {
            return Err(Error::CheckFailed(format!("{}: there is no output to compare", self.a)));
        }
        let shown: Vec<String> = failures.iter().take(5).map(|o| format!("  {}", o.summary())).collect();
        Err(Error::CheckFailed(format!(
            "{} of {} outputs of {} differ from {}:\n{}",
            failures.len(),
            self.outputs.len(),
            self.b,
            self.a,
            shown.join("\n")
        )))
    }
}

impl OutputReport {
    pub(super) fn absent(name: &str, a: &Array) -> Self {
        Self { problem: Some("has no counterpart".into()), ..Self::empty(name, a, 0.0) }
    }

    fn empty(name: &str, a: &Array, tolerance: f64) -> Self {
        Self {
            name: name.into(),
            other_name: None,
            dtype: a.dtype.to_string(),
            shape: a.shape.clone(),
            passed: false,
            relative: f64::INFINITY,
            tolerance,
            max_abs: f64::INFINITY,
            worst: None,
            nan: 0,
            problem: None,
        }
    }

    /// The outcome in one line.
    pub fn summary(&self) -> String {
        let name = &self.name;
        if let Some(problem) = &self.problem {
            return format!("output '{name}': {problem}");
        }
        let mut text =
            format!("output '{name}': relative error {:.3e} (allowed {:.1e})", self.relative, self.tolerance);
        text += &format!(", largest difference {:.3e}", self.max_abs);
        if let Some(worst) = &self.worst {
            text += &format!(" at {:?}: {} against {}", worst.index, number(worst.a), number(worst.b));
        }
        if self.nan > 0 {
            text += &format!(", {} NaN", self.nan);
        }
        text
    }
}

fn number(value: f64) -> String {
    if value != 0.0 && value.is_finite() && !(1e-3..1e6).contains(&value.abs()) {
        format!("{value:.6e}")
    } else {
        format!("{value:.6}")
    }
}

/// Compares `b` with `a`. Integers, booleans and strings must be equal.
pub fn compare_arrays(name: &str, a: &Array, b: &Array, rtol: f64) -> OutputReport {
    let exact = !matches!(a.data, Data::Float(_));
    let mut report = OutputReport::empty(name, a, if exact { 0.0 } else { rtol });
    if a.shape != b.shape {
        report.problem = Some(format!("shape {:?} against {:?}", a.shape, b.shape));
        return report;
    }
    let difference = match (&a.data, &b.data) {
        (Data::Float(x), Data::Float(y)) => Difference::of(x.iter().copied().zip(y.iter().copied())),
        (Data::Int(x), Data::Int(y)) => {
            // The difference is exact even where both would round to the same float.
            let pairs = x.iter().zip(y);
            let differ = pairs.clone().any(|(x, y)| x != y);
            let mut d = Difference::of(pairs.map(|(&x, &y)| (x as f64, y as f64)));
            if differ && d.relative == 0.0 {
                d.relative = f64::MIN_POSITIVE;
            }
            d
        }
        (Data::Text(x), Data::Text(y)) => {
            let wrong = x.iter().zip(y).position(|(x, y)| x != y);
            if let Some(at) = wrong {
                report.problem = Some(format!("{:?} against {:?} at {:?}", x[at], y[at], index_of(at, &a.shape)));
            } else {
                (report.relative, report.max_abs, report.passed) = (0.0, 0.0, true);
            }
            return report;
        }
        _ => {
            report.problem = Some(format!("elements are {} against {}", a.dtype, b.dtype));
            return report;
        }
    };
    report.relative = difference.relative;
    report.max_abs = difference.max_abs;
    report.nan = difference.nan;
    report.worst = difference.worst.map(|(at, x, y)| Worst { index: index_of(at, &a.shape), a: x, b: y });
    // A NaN compares false, so it does not pass either.
    report.passed = difference.nan == 0 && difference.relative <= report.tolerance;
    report
}

struct Difference {
    relative: f64,
    max_abs: f64,
    nan: usize,
    worst: Option<(usize, f64, f64)>,
}

impl Difference {
    fn of(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let (mut sum, mut norm, mut nan) = (0.0f64, 0.0f64, 0usize);
        let mut worst: Option<(usize, f64, f64)> = None;
        let mut max_abs = 0.0f64;
        for (i, (x, y)) in pairs.enumerate() {
            if x.is_nan() || y.is_nan() {
                nan += 1;
                if nan == 1 {
                    worst = Some((i, x, y));
                }
                continue;
            }
            if x == y {
                // Infinities that agree stay out of the norm, which they would swamp.
                if x.is_finite() {
                    norm += x * x;
                }
                continue;
            }
            let difference = (x - y).abs();
            sum += difference * difference;
            norm += if x.is_finite() { x * x } else { 0.0 };
            if difference > max_abs {
                max_abs = difference;
                if nan == 0 {
                    worst = Some((i, x, y));
                }
            }
        }
        let relative = match (sum, norm) {
            _ if nan > 0 => f64::NAN,
            (0.0, _) => 0.0,
            (_, 0.0) => f64::INFINITY,
            (sum, norm) => (sum / norm).sqrt(),
        };
        Self { relative, max_abs: if nan > 0 { f64::NAN } else { max_abs }, nan, worst }
    }
}

fn index_of(mut at: usize, shape: &[i64]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &size) in shape.iter().enumerate().rev() {
        let size = (size.max(1)) as usize;
        index[i] = at % size;
        at /= size;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DType;

    fn floats(values: &[f64]) -> Array {
        Array { dtype: DType::F32, shape: vec![1, values.len() as i64], data: Data::Float(values.to_vec()) }
    }

    fn ints(values: &[i128]) -> Array {
        Array { dtype: DType::I64, shape: vec![values.len() as i64], data: Data::Int(values.to_vec()) }
    }

    #[test]
    fn the_worst_element_is_named() {
        let report = compare_arrays("y", &floats(&[3.0, 4.0]), &floats(&[3.0, 4.5]), 1e-5);
        assert!(!report.passed);
        assert_eq!(report.relative, 0.1);
        assert_eq!(report.worst, Some(Worst { index: vec![0, 1], a: 4.0, b: 4.5 }));
        assert!(compare_arrays("y", &floats(&[3.0, 4.0]), &floats(&[3.0, 4.5]), 0.2).passed);
    }

    #[test]
    fn nan_never_passes() {
        let nan = floats(&[1.0, f64::NAN]);
        let report = compare_arrays("y", &nan, &nan, f64::INFINITY);
        assert!(!report.passed);
        assert_eq!(report.nan, 1);
        assert!(report.summary().contains("1 NaN"), "{}", report.summary());
        assert!(!compare_arrays("y", &floats(&[1.0, 2.0]), &nan, 1.0).passed);
    }

    #[test]
    fn infinities_must_agree() {
        let inf = floats(&[1.0, f64::INFINITY]);
        assert!(compare_arrays("y", &inf, &inf, 1e-5).passed);
        assert!(!compare_arrays("y", &floats(&[1.0, 1.0]), &inf, 1e-5).passed);
        assert!(!compare_arrays("y", &inf, &floats(&[1.0, 1.0]), 1e-5).passed);
    }

    #[test]
    fn shapes_kinds_and_integers_are_exact() {
        assert!(!compare_arrays("y", &floats(&[1.0]), &floats(&[1.0, 1.0]), 1.0).passed);
        assert!(!compare_arrays("y", &ints(&[1]), &Array { shape: vec![1], ..floats(&[1.0]) }, 1.0).passed);
        let big = 1i128 << 60;
        assert!(compare_arrays("y", &ints(&[big]), &ints(&[big]), 0.0).passed);
        assert!(!compare_arrays("y", &ints(&[big]), &ints(&[big + 1]), 1.0).passed);
        assert!(!compare_arrays("y", &floats(&[0.0]), &floats(&[1e-9]), 1e-5).passed);
    }
}
