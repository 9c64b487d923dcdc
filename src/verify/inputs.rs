//! What the models are run on: arrays that the user gives, or random ones.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::array::{Array, Data};
use super::session::{Axis, InputSpec};
use super::{DEFAULT_BATCH, InputPair, Options};
use crate::error::{Error, Result};
use crate::onnx::DType;

/// More elements than this are refused: a model that asks for them is broken or hostile.
const MOST_ELEMENTS: i64 = 1 << 28;

/// An array for every input of `a`, by name.
pub(super) fn make(
    pairs: &[InputPair],
    given: Option<Vec<(String, Array)>>,
    options: &Options,
) -> Result<Vec<(String, Array)>> {
    if let Some(given) = given {
        return take_given(pairs, given);
    }
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut unused: Vec<&String> = options.dims.keys().collect();
    let mut arrays = vec![];
    for (a, b) in pairs {
        let shape = resolve(a, b, options, &mut unused)?;
        arrays.push((a.name.clone(), fill(a.dtype, shape, &mut random)));
    }
    if let Some(name) = unused.first() {
        let open = pairs.iter().flat_map(|(a, b)| open_axes(a).into_iter().chain(open_axes(b)));
        let mut open: Vec<String> = open.collect();
        open.sort();
        open.dedup();
        let open = if open.is_empty() { "none".to_owned() } else { open.join(", ") };
        return Err(Error::Usage(format!("--dim {name}: no input has an open axis of that name (open axes: {open})")));
    }
    Ok(arrays)
}

fn take_given(pairs: &[InputPair], mut given: Vec<(String, Array)>) -> Result<Vec<(String, Array)>> {
    let names = given.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>().join(", ");
    let mut arrays = vec![];
    for (a, _) in pairs {
        let at = given.iter().position(|(name, _)| *name == a.name || (name.is_empty() && pairs.len() == 1));
        let Some(at) = at else {
            return Err(Error::Usage(format!(
                "--inputs: no array for input '{}' (found: {}); np.savez(file, {}=array, ...) makes such a file",
                a.name,
                if names.is_empty() { "none" } else { &names },
                a.name
            )));
        };
        let (_, array) = given.remove(at);
        let fits = array.shape.len() == a.shape.len()
            && array.shape.iter().zip(&a.shape).all(|(size, axis)| match axis {
                Axis::Fixed(want) => size == want,
                Axis::Open(_) => true,
            });
        if !fits {
            return Err(Error::Usage(format!(
                "--inputs: the array for input '{}' has shape {:?}, and the model takes {}",
                a.name,
                array.shape,
                shape_text(a)
            )));
        }
        let found = array.dtype;
        let array = array.cast(a.dtype).ok_or_else(|| {
            Error::Usage(format!(
                "--inputs: the array for input '{}' is {found}, and the model takes {}",
                a.name, a.dtype
            ))
        })?;
        arrays.push((a.name.clone(), array));
    }
    Ok(arrays)
}

fn shape_text(spec: &InputSpec) -> String {
    let axis = |a: &Axis| match a {
        Axis::Fixed(size) => size.to_string(),
        Axis::Open(name) if name.is_empty() => "?".to_owned(),
        Axis::Open(name) => name.clone(),
    };
    format!("[{}]", spec.shape.iter().map(axis).collect::<Vec<_>>().join(", "))
}

fn open_axes(spec: &InputSpec) -> Vec<String> {
    let name = |(i, axis): (usize, &Axis)| match axis {
        Axis::Fixed(_) => None,
        Axis::Open(name) if name.is_empty() => Some(format!("{}.{i}", spec.name)),
        Axis::Open(name) => Some(name.clone()),
    };
    spec.shape.iter().enumerate().filter_map(name).collect()
}

/// Sizes for all axes: those that either model fixes, then `--dim`, then for the first axis `--batch`.
fn resolve(a: &InputSpec, b: &InputSpec, options: &Options, unused: &mut Vec<&String>) -> Result<Vec<i64>> {
    if a.shape.len() != b.shape.len() {
        return Err(Error::CheckFailed(format!(
            "input '{}' has {} axes in one model and {} in the other",
            a.name,
            a.shape.len(),
            b.shape.len()
        )));
    }
    let mut shape = vec![];
    for (i, axes) in a.shape.iter().zip(&b.shape).enumerate() {
        let fixed = match axes {
            (Axis::Fixed(x), Axis::Fixed(y)) if x != y => {
                return Err(Error::CheckFailed(format!(
                    "input '{}' is {} in one model and {} in the other",
                    a.name,
                    shape_text(a),
                    shape_text(b)
                )));
            }
            (Axis::Fixed(x), _) | (_, Axis::Fixed(x)) => Some(*x),
            _ => None,
        };
        let names = [axes.0, axes.1].map(|axis| match axis {
            Axis::Open(name) if !name.is_empty() => Some(name.clone()),
            _ => None,
        });
        let positional = format!("{}.{i}", a.name);
        let asked = names.into_iter().flatten().chain([positional.clone()]).find_map(|name| {
            let size = *options.dims.get(&name)?;
            unused.retain(|n| **n != name);
            Some((name, size))
        });
        let size = match (fixed, asked) {
            (Some(fixed), Some((name, size))) if fixed != size => {
                return Err(Error::Usage(format!("--dim {name}={size}: a model fixes that axis at {fixed}")));
            }
            (Some(fixed), _) => fixed,
            (None, Some((_, size))) => size,
            (None, None) if i == 0 => options.batch.unwrap_or(DEFAULT_BATCH),
            (None, None) => {
                let name = open_axes(a).into_iter().chain(open_axes(b)).nth(shape_open_before(a, i));
                return Err(Error::Usage(format!(
                    "input '{}' is {}: give the size of axis {i} with --dim {}=SIZE",
                    a.name,
                    shape_text(a),
                    name.unwrap_or(positional)
                )));
            }
        };
        shape.push(size);
    }
    if let (Some(batch), Some(&Axis::Fixed(fixed))) = (options.batch, a.shape.first())
        && batch != fixed
        && a.shape.len() > 1
    {
        return Err(Error::Usage(format!("--batch {batch}: input '{}' is {} in the model", a.name, shape_text(a))));
    }
    match shape.iter().try_fold(1i64, |n, &d| n.checked_mul(d)) {
        Some(n) if n <= MOST_ELEMENTS => Ok(shape),
        _ => Err(Error::Usage(format!("input '{}' of shape {shape:?} is too large to be made", a.name))),
    }
}

fn shape_open_before(spec: &InputSpec, axis: usize) -> usize {
    spec.shape[..axis].iter().filter(|a| matches!(a, Axis::Open(_))).count()
}

impl Array {
    /// Random elements, the same for the same seed and shape.
    pub fn random(dtype: DType, shape: Vec<i64>, seed: u64) -> Self {
        fill(dtype, shape, &mut StdRng::seed_from_u64(seed))
    }
}

/// Floats are normal, bytes take their whole range (they are pixels), and other integers are 0 or 1, since they may be
/// indices into something short.
fn fill(dtype: DType, shape: Vec<i64>, random: &mut StdRng) -> Array {
    let count = shape.iter().product::<i64>() as usize;
    let data = match dtype {
        dtype if dtype.is_float() => {
            // Values that every type holds exactly, so that a float16 twin reads the same input.
            Data::Float((0..count).map(|_| half::f16::from_f64(normal(random)).to_f64()).collect())
        }
        DType::U8 => Data::Int((0..count).map(|_| i128::from(random.random::<u8>())).collect()),
        DType::I8 => Data::Int((0..count).map(|_| i128::from(random.random::<i8>())).collect()),
        _ => Data::Int((0..count).map(|_| i128::from(random.random::<bool>())).collect()),
    };
    Array { dtype, shape, data }
}

/// Box-Muller.
fn normal(random: &mut StdRng) -> f64 {
    let (u, v): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(shape: &[Axis]) -> InputSpec {
        InputSpec { name: "x".into(), dtype: DType::F32, shape: shape.to_vec() }
    }

    fn open(name: &str) -> Axis {
        Axis::Open(name.into())
    }

    #[test]
    fn open_axes_are_filled_in() {
        let dynamic = spec(&[open("batch"), Axis::Fixed(3), open("height")]);
        let fixed = spec(&[Axis::Fixed(1), Axis::Fixed(3), Axis::Fixed(8)]);
        let with = |dims: &[(&str, i64)], batch| Options {
            dims: dims.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect(),
            batch,
            ..Options::default()
        };
        let shape = |a: &InputSpec, b: &InputSpec, options: &Options| {
            make(&[(a.clone(), b.clone())], None, options).map(|arrays| arrays[0].1.shape.clone())
        };
        assert_eq!(shape(&dynamic, &fixed, &with(&[], None)).unwrap(), [1, 3, 8]);
        assert_eq!(shape(&dynamic, &dynamic, &with(&[("height", 5)], None)).unwrap(), [2, 3, 5]);
        assert_eq!(shape(&dynamic, &dynamic, &with(&[("x.2", 5)], Some(4))).unwrap(), [4, 3, 5]);

        let error = shape(&dynamic, &dynamic, &with(&[], None)).unwrap_err().to_string();
        assert!(error.contains("--dim height=SIZE"), "{error}");
        let error = shape(&dynamic, &dynamic, &with(&[("height", 5), ("width", 5)], None)).unwrap_err().to_string();
        assert!(error.contains("--dim width") && error.contains("batch, height"), "{error}");
        let error = shape(&fixed, &fixed, &with(&[], Some(3))).unwrap_err().to_string();
        assert!(error.contains("--batch 3"), "{error}");
    }

    #[test]
    fn the_seed_decides() {
        let x = spec(&[Axis::Fixed(100)]);
        let run = |seed| make(&[(x.clone(), x.clone())], None, &Options { seed, ..Options::default() }).unwrap();
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
