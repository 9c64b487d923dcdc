//! Shape arithmetic: contents of small integer tensors, computed on polynomials.

use super::elementwise::broadcast;
use super::{CONTENTS_LIMIT, Cx, Inferred, always_positive, axis_of, never_negative};
use crate::ir::{Dim, Ints};
use crate::onnx::DType;

/// A shape of known integers with at most [`CONTENTS_LIMIT`] elements.
pub(super) fn small(shape: &[Dim]) -> Option<(Vec<usize>, usize)> {
    let mut count = 1usize;
    let mut sizes = Vec::with_capacity(shape.len());
    for dim in shape {
        let size = usize::try_from(dim.int()?).ok()?;
        count = count.checked_mul(size)?;
        sizes.push(size);
    }
    (count <= CONTENTS_LIMIT).then_some((sizes, count))
}

fn known_bool(value: bool) -> Option<Dim> {
    Some(Dim::Int(i64::from(value)))
}

/// `a < b`, where it is the same for all values of the symbols.
fn less(a: &Dim, b: &Dim) -> Option<bool> {
    let gap = b.sub(a)?;
    if always_positive(&gap) {
        return Some(true);
    }
    never_negative(&a.sub(b)?).then_some(false)
}

fn equal(a: &Dim, b: &Dim) -> Option<bool> {
    if a == b {
        return Some(true);
    }
    let apart = always_positive(&a.sub(b)?) || always_positive(&b.sub(a)?);
    apart.then_some(false)
}

/// Whole numbers that the type holds exactly. Polynomials are taken to be of the magnitude of sizes.
fn fits(value: &Dim, dtype: DType) -> bool {
    let Dim::Int(v) = value else {
        return matches!(dtype, DType::I64 | DType::I32 | DType::F32 | DType::F64);
    };
    let within = |bits: u32| v.unsigned_abs() <= 1u64 << bits;
    match dtype {
        DType::I64 => true,
        DType::I32 => i32::try_from(*v).is_ok(),
        DType::I16 => i16::try_from(*v).is_ok(),
        DType::I8 => i8::try_from(*v).is_ok(),
        DType::U8 => u8::try_from(*v).is_ok(),
        DType::U16 => u16::try_from(*v).is_ok(),
        DType::U32 => u32::try_from(*v).is_ok(),
        DType::U64 => *v >= 0,
        DType::Bool => *v == 0 || *v == 1,
        DType::F64 => within(53),
        DType::F32 => within(24),
        DType::F16 => within(11),
        DType::BF16 => within(8),
        _ => false,
    }
}

fn divide(a: &Dim, b: &Dim, float: bool) -> Option<Dim> {
    match (a, b) {
        // Integer division truncates; a float quotient is followed only if it is whole.
        (Dim::Int(a), Dim::Int(b)) if !float => a.checked_div(*b).map(Dim::Int),
        _ => a.div_exact(b),
    }
}

fn modulo(a: &Dim, b: &Dim, fmod: bool) -> Option<Dim> {
    match (a, b) {
        (Dim::Int(a), Dim::Int(b)) if fmod => a.checked_rem(*b).map(Dim::Int),
        (Dim::Int(a), Dim::Int(b)) => {
            let r = a.checked_rem(*b)?;
            Some(Dim::Int(if r != 0 && (r < 0) != (*b < 0) { r.checked_add(*b)? } else { r }))
        }
        (_, Dim::Int(b)) if *b > 0 => {
            let constant = a.eval(|_| Some(0))?;
            a.sub(&Dim::Int(constant))?.div_exact(&Dim::Int(*b))?;
            let r = constant.rem_euclid(*b);
            (r == 0 || !fmod).then_some(Dim::Int(r))
        }
        _ => (a.div_exact(b).is_some()).then_some(Dim::Int(0)),
    }
}

impl Cx<'_> {
    /// The elements of an elementwise op's output of shape `shape`, if the inputs' are followed.
    pub(super) fn elementwise_contents(&self, shape: Option<&[Dim]>, dtype: Option<DType>) -> Option<Ints> {
        let count = self.node.inputs.len();
        if !(0..count).any(|i| self.has_contents(i)) {
            return None;
        }
        let (shape, len) = small(shape?)?;
        let dtype = dtype?;
        let op = self.node.op.as_str();
        let float = dtype.is_float();
        let read = if op == "CastLike" || op == "Clip" { 1 } else { count };
        let mut inputs: Vec<Option<Ints>> = (0..read).map(|i| self.contents(i)).collect();
        // An unknown operand can still not matter: Where with a known condition.
        if op != "Where" && inputs.iter().any(Option::is_none) {
            return None;
        }
        for (i, input) in inputs.iter_mut().enumerate() {
            if input.is_none() {
                let (shape, len) = small(self.shape(i)?)?;
                *input = Some(Ints { shape, values: vec![None; len] });
            }
        }
        let inputs: Vec<Ints> = inputs.into_iter().flatten().collect();
        let at = |input: &Ints, flat: usize| -> Option<Dim> {
            if input.shape == shape {
                return input.values.get(flat)?.clone();
            }
            let (mut rest, mut index, mut stride) = (flat, 0usize, 1usize);
            for (axis, size) in shape.iter().enumerate().rev() {
                let i = rest % size;
                rest /= size;
                let behind = shape.len() - axis;
                if behind <= input.shape.len() {
                    let own = input.shape[input.shape.len() - behind];
                    index += if own == 1 { 0 } else { i * stride };
                    stride *= own;
                }
            }
            input.values.get(index)?.clone()
        };
        let fmod = self.int_or("fmod", 0) != 0;
        let source = self.dtype(0);
        let element = |flat: usize| -> Option<Dim> {
            let value = |i: usize| at(inputs.get(i)?, flat);
            let fold = |f: fn(&Dim, &Dim) -> Option<Dim>| {
                let mut all = (0..inputs.len()).map(value);
                let first = all.next()??;
                all.try_fold(first, |a, b| f(&a, &b?))
            };
            match op {
                "Add" | "Sum" => fold(Dim::add),
                "Sub" => fold(Dim::sub),
                "Mul" => fold(Dim::mul),
                "Div" => divide(&value(0)?, &value(1)?, float),
                "Mod" => modulo(&value(0)?, &value(1)?, fmod),
                "Max" => fold(|a, b| Some(if less(a, b)? { b.clone() } else { a.clone() })),
                "Min" => fold(|a, b| Some(if less(a, b)? { a.clone() } else { b.clone() })),
                "Neg" => Dim::Int(0).sub(&value(0)?),
                "Abs" => match value(0)? {
                    Dim::Int(v) => v.checked_abs().map(Dim::Int),
                    v => never_negative(&v).then_some(v),
                },
                "Sign" => match value(0)? {
                    Dim::Int(v) => Some(Dim::Int(v.signum())),
                    v => always_positive(&v).then_some(Dim::Int(1)),
                },
                "Floor" | "Ceil" | "Round" | "Identity" => value(0),
                "Cast" | "CastLike" if dtype == DType::Bool => {
                    let v = value(0)?;
                    known_bool(!equal(&v, &Dim::Int(0))?)
                }
                // A bool is 0 or 1 in any type; whole floats are kept by a cast to integers.
                "Cast" | "CastLike" => source.and_then(|_| value(0)),
                "Equal" => known_bool(equal(&value(0)?, &value(1)?)?),
                "Less" => known_bool(less(&value(0)?, &value(1)?)?),
                "Greater" => known_bool(less(&value(1)?, &value(0)?)?),
                "LessOrEqual" => known_bool(!less(&value(1)?, &value(0)?)?),
                "GreaterOrEqual" => known_bool(!less(&value(0)?, &value(1)?)?),
                "And" | "Or" | "Xor" => {
                    let (a, b) = (value(0).and_then(|d| d.int()), value(1).and_then(|d| d.int()));
                    match (op, a, b) {
                        ("And", Some(0), _) | ("And", _, Some(0)) => known_bool(false),
                        ("Or", Some(1), _) | ("Or", _, Some(1)) => known_bool(true),
                        ("And", Some(a), Some(b)) => known_bool(a != 0 && b != 0),
                        ("Or", Some(a), Some(b)) => known_bool(a != 0 || b != 0),
                        ("Xor", Some(a), Some(b)) => known_bool((a != 0) != (b != 0)),
                        _ => None,
                    }
                }
                "Not" => known_bool(value(0)?.int()? == 0),
                "Where" => match value(0).and_then(|d| d.int()) {
                    Some(0) => value(2),
                    Some(_) => value(1),
                    None => {
                        let (a, b) = (value(1)?, value(2)?);
                        (a == b).then_some(a)
                    }
                },
                _ => None,
            }
        };
        let values = (0..len).map(|flat| element(flat).filter(|v| fits(v, dtype))).collect();
        Some(Ints { shape, values })
    }

    /// `None`: not an op of this family.
    pub(super) fn shape_math(&self) -> Option<Option<Vec<Inferred>>> {
        Some(match self.node.op.as_str() {
            "Shape" => self.shape_op(),
            "Size" => {
                let count = self.shape(0).and_then(Dim::product);
                let ints = count.map(|c| Ints { shape: vec![], values: vec![Some(c)] });
                Some(vec![Inferred::new(Some(DType::I64), Some(vec![])).with_ints(ints)])
            }
            "Constant" => self.constant_op(),
            "ConstantOfShape" => self.constant_of_shape(),
            "Range" => self.range(),
            "Expand" => self.expand(),
            "NonZero" => {
                let rank = self.shape(0).map(|s| Dim::Int(s.len() as i64));
                Inferred::one(Some(DType::I64), vec![rank.unwrap_or_else(|| self.unknown(0, 0)), self.unknown(0, 1)])
            }
            op if op.starts_with("Reduce") => self.reduce(),
            _ => return None,
        })
    }

    fn shape_op(&self) -> Option<Vec<Inferred>> {
        let Some(shape) = self.shape(0) else {
            return Inferred::one(Some(DType::I64), vec![self.unknown(0, 0)]);
        };
        let rank = shape.len() as i64;
        let bound = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
        let start = bound(self.int_or("start", 0));
        let end = bound(self.int_or("end", rank)).max(start);
        let values: Vec<Option<Dim>> = shape[start..end].iter().cloned().map(Some).collect();
        let ints = Ints { shape: vec![values.len()], values };
        Some(vec![Inferred::new(Some(DType::I64), Some(vec![Dim::Int((end - start) as i64)])).with_ints(Some(ints))])
    }

    fn constant_op(&self) -> Option<Vec<Inferred>> {
        let node = self.node;
        if let Some(tensor) = node.tensor("value") {
            let dtype = tensor.data_type.and_then(DType::from_code);
            let shape = tensor.dims.iter().map(|&d| Dim::Int(d)).collect();
            let ints = dtype.filter(|d| !d.is_float()).and_then(|_| super::tensor_ints(tensor));
            return Some(vec![Inferred::new(dtype, Some(shape)).with_ints(ints)]);
        }
        if let Some(value) = node.int("value_int") {
            let ints = Ints { shape: vec![], values: vec![Some(Dim::Int(value))] };
            return Some(vec![Inferred::new(Some(DType::I64), Some(vec![])).with_ints(Some(ints))]);
        }
        if let Some(values) = node.ints("value_ints") {
            let ints = Ints { shape: vec![values.len()], values: values.iter().map(|&v| Some(Dim::Int(v))).collect() };
            let shape = vec![Dim::Int(values.len() as i64)];
            return Some(vec![Inferred::new(Some(DType::I64), Some(shape)).with_ints(Some(ints))]);
        }
        if node.attribute("value_float").is_some() {
            return Inferred::one(Some(DType::F32), vec![]);
        }
        if let Some(list) = node.attribute("value_floats") {
            return Inferred::one(Some(DType::F32), vec![Dim::Int(list.floats.len() as i64)]);
        }
        if node.attribute("value_string").is_some() {
            return Inferred::one(Some(DType::String), vec![]);
        }
        if let Some(list) = node.attribute("value_strings") {
            return Inferred::one(Some(DType::String), vec![Dim::Int(list.strings.len() as i64)]);
        }
        let sparse = node.attribute("sparse_value")?.sparse_tensor.as_ref()?;
        let dtype = sparse.values.as_ref().and_then(|v| v.data_type).and_then(DType::from_code);
        Inferred::one(dtype, sparse.dims.iter().map(|&d| Dim::Int(d)).collect())
    }

    /// The shape that the contents of input `slot` spell out, axes that are not known as symbols.
    pub(super) fn shape_from_contents(&self, slot: usize) -> Option<Vec<Dim>> {
        if let Some(ints) = self.contents(slot) {
            if ints.shape.len() != 1 {
                return None;
            }
            let axis = |(i, v): (usize, Option<Dim>)| v.unwrap_or_else(|| self.unknown(0, i));
            return Some(ints.values.into_iter().enumerate().map(axis).collect());
        }
        let [Dim::Int(rank)] = self.shape(slot)? else { return None };
        let rank = usize::try_from(*rank).ok().filter(|r| *r <= 64)?;
        Some((0..rank).map(|i| self.unknown(0, i)).collect())
    }

    fn constant_of_shape(&self) -> Option<Vec<Inferred>> {
        let value = self.node.tensor("value");
        let dtype = match value {
            Some(v) => v.data_type.and_then(DType::from_code),
            None => Some(DType::F32),
        };
        let shape = self.shape_from_contents(0);
        let ints = || {
            let (shape, count) = small(shape.as_deref()?)?;
            let value = value.filter(|v| !super::is_float_tensor(v))?;
            let fill = super::tensor_ints(value)?.values.first()?.clone();
            Some(Ints { shape, values: vec![fill; count] })
        };
        let ints = ints();
        Some(vec![Inferred::new(dtype, shape).with_ints(ints)])
    }

    fn range(&self) -> Option<Vec<Inferred>> {
        let dtype = (0..3).find_map(|i| self.dtype(i));
        let whole = dtype.is_some_and(|d| !d.is_float());
        let bounds = || Some((self.scalar(0)?, self.scalar(1)?, self.scalar(2)?));
        let (size, ints) = match bounds() {
            Some((Dim::Int(start), Dim::Int(limit), Dim::Int(delta))) if whole && delta != 0 => {
                let (span, delta) = (i128::from(limit) - i128::from(start), i128::from(delta));
                let (length, step) = if delta > 0 { (span, delta) } else { (-span, -delta) };
                let steps = (length + step - 1).div_euclid(step);
                let steps = i64::try_from(steps.max(0)).ok()?;
                let values = (steps <= CONTENTS_LIMIT as i64).then(|| {
                    let at = |i: i64| i64::try_from(i128::from(start) + delta * i128::from(i)).ok().map(Dim::Int);
                    Ints { shape: vec![steps as usize], values: (0..steps).map(at).collect() }
                });
                (Some(Dim::Int(steps)), values)
            }
            Some((start, limit, Dim::Int(1))) if whole => (limit.sub(&start).filter(never_negative), None),
            _ => (None, None),
        };
        let shape = vec![size.unwrap_or_else(|| self.unknown(0, 0))];
        Some(vec![Inferred::new(dtype, Some(shape)).with_ints(ints)])
    }

    fn expand(&self) -> Option<Vec<Inferred>> {
        let dtype = self.dtype(0);
        let shape = || {
            let target = self.shape_from_contents(1)?;
            // An axis that is not known can be 1, and then the input's size counts.
            broadcast(&[self.shape(0)?, &target], |axis| self.unknown(0, axis))
        };
        let shape = shape();
        let ints = || {
            let input = self.has_contents(0).then(|| self.contents(0))??;
            let (sizes, count) = small(shape.as_deref()?)?;
            let [one] = input.values.as_slice() else {
                return (input.shape == sizes).then_some(input);
            };
            Some(Ints { shape: sizes, values: vec![one.clone(); count] })
        };
        let ints = ints();
        Some(vec![Inferred::new(dtype, shape).with_ints(ints)])
    }

    fn reduce(&self) -> Option<Vec<Inferred>> {
        let op = self.node.op.as_str();
        let dtype = self.dtype(0);
        let keep = self.int_or("keepdims", 1) != 0;
        let Some(shape) = self.shape(0) else {
            return Some(vec![Inferred::new(dtype, None)]);
        };
        let axes = match self.list("axes", 1) {
            None if keep => {
                // Which axes is not known, so each may or may not be 1.
                let dims = (0..shape.len()).map(|i| self.unknown(0, i)).collect();
                return Inferred::one(dtype, dims);
            }
            None => return Some(vec![Inferred::new(dtype, None)]),
            Some(None) => vec![],
            Some(Some(axes)) => axes,
        };
        if axes.is_empty() && self.int_or("noop_with_empty_axes", 0) != 0 {
            return self.like(0);
        }
        let reduced: Vec<bool> = if axes.is_empty() {
            vec![true; shape.len()]
        } else {
            let mut reduced = vec![false; shape.len()];
            for axis in axes {
                reduced[axis_of(axis, shape.len())?] = true;
            }
            reduced
        };
        let dim = |(dim, reduced): (&Dim, &bool)| match (reduced, keep) {
            (false, _) => Some(dim.clone()),
            (true, true) => Some(Dim::Int(1)),
            (true, false) => None,
        };
        let out: Vec<Dim> = shape.iter().zip(&reduced).filter_map(dim).collect();
        let ints = || {
            if !self.has_contents(0) || !reduced.iter().all(|r| *r) {
                return None;
            }
            let values = self.contents(0)?.values.into_iter().collect::<Option<Vec<Dim>>>()?;
            let mut values = values.iter();
            let value = match op {
                "ReduceProd" => values.try_fold(Dim::Int(1), |a, b| a.mul(b))?,
                "ReduceSum" => values.try_fold(Dim::Int(0), |a, b| a.add(b))?,
                "ReduceMax" | "ReduceMin" => {
                    let first = values.next()?.clone();
                    let max = op == "ReduceMax";
                    values.try_fold(first, |a, b| Some(if less(&a, b)? == max { b.clone() } else { a }))?
                }
                _ => return None,
            };
            fits(&value, dtype?).then(|| Ints { shape: vec![1; out.len()], values: vec![Some(value)] })
        };
        let ints = ints();
        Some(vec![Inferred::new(dtype, Some(out)).with_ints(ints)])
    }
}
