//! Ops that compute: elementwise, reductions, matrix products, generators.

use super::{Call, Data, Tensor, both_types, broadcast, broadcast_map, count, strides};
use crate::analysis::infer::axis_of;
use crate::onnx::DType;

/// Multiplications that a matrix product may take.
const MAX_PRODUCTS: usize = 1 << 26;

/// The error function to about 1e-15.
fn erf(x: f64) -> f64 {
    let z = x.abs();
    if z.is_nan() {
        return x;
    }
    let value = if z < 3.0 {
        // erf(z) = 2/sqrt(pi) exp(-z^2) sum of 2^n z^(2n+1) / (1 3 5 .. (2n+1)): all terms positive.
        let (mut term, mut sum, mut n) = (z, z, 1.0);
        while term > sum * 1e-17 {
            term *= 2.0 * z * z / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        std::f64::consts::FRAC_2_SQRT_PI * (-z * z).exp() * sum
    } else if z < 6.5 {
        // The continued fraction of erfc, from its tail: z + 1/2/(z + 1/(z + 3/2/(z + ...))).
        let fraction = (1..=60).rev().fold(z, |tail, k| z + f64::from(k) / 2.0 / tail);
        1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    value.copysign(x)
}

fn round_half_even(v: f64) -> f64 {
    v.round_ties_even()
}

/// The remainder with the sign of the divisor.
fn floored_mod(a: i128, b: i128) -> Option<i128> {
    let r = a.checked_rem(b)?;
    Some(if r != 0 && (r < 0) != (b < 0) { r + b } else { r })
}

impl Call<'_> {
    /// `None`: not an op of this family.
    pub(super) fn math(&self) -> Option<Option<Vec<Tensor>>> {
        let one = |t: Option<Tensor>| t.map(|t| vec![t]);
        let op = self.node.op.as_str();
        Some(match op {
            "Add" => one(self.arithmetic(|a, b| a + b, |a, b| Some(a + b))),
            "Sub" => one(self.arithmetic(|a, b| a - b, |a, b| Some(a - b))),
            "Mul" => one(self.arithmetic(|a, b| a * b, |a, b| Some(a.wrapping_mul(b)))),
            "Div" => one(self.arithmetic(|a, b| a / b, i128::checked_div)),
            "Mod" => one(self.modulo()),
            "Pow" => one(self.pow()),
            "Min" | "Max" | "Sum" | "Mean" => one(self.variadic()),
            "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => one(self.compare()),
            "And" | "Or" | "Xor" => one(self.logic()),
            "Not" => one(self.not()),
            "Where" => one(self.select()),
            "Cast" => one(self.dtype_of("to").and_then(|to| self.cast(to))),
            "CastLike" => one(self.input(1).and_then(|like| self.cast(like.dtype))),
            "IsNaN" | "IsInf" => one(self.is_special()),
            "Clip" => one(self.clip()),
            "Shape" => one(self.shape()),
            "Size" => one(self.input(0).and_then(|x| Tensor::of_i64(vec![], vec![i64::try_from(x.len()).ok()?]))),
            "Constant" => one(self.constant()),
            "ConstantOfShape" => one(self.constant_of_shape()),
            "Range" => one(self.range()),
            "CumSum" => one(self.cum_sum()),
            "Softmax" | "LogSoftmax" => one(self.softmax()),
            "MatMul" => one(self.matmul()),
            "ArgMax" | "ArgMin" => one(self.arg()),
            _ if op.starts_with("Reduce") => one(self.reduce()),
            _ => return self.unary(op).map(one),
        })
    }

    fn unary(&self, op: &str) -> Option<Option<Tensor>> {
        let float: fn(f64) -> f64 = match op {
            "Neg" => |v| -v,
            "Abs" => f64::abs,
            "Sign" => |v| if v == 0.0 || v.is_nan() { v } else { v.signum() },
            "Floor" => f64::floor,
            "Ceil" => f64::ceil,
            "Round" => round_half_even,
            "Sqrt" => f64::sqrt,
            "Exp" => f64::exp,
            "Log" => f64::ln,
            "Sin" => f64::sin,
            "Cos" => f64::cos,
            "Tan" => f64::tan,
            "Tanh" => f64::tanh,
            "Erf" => erf,
            "Sigmoid" => |v| 1.0 / (1.0 + (-v).exp()),
            "Softplus" => |v| if v > 0.0 { v + (-v).exp().ln_1p() } else { v.exp().ln_1p() },
            "Reciprocal" => |v| 1.0 / v,
            "Relu" => |v| if v < 0.0 { 0.0 } else { v },
            _ => return None,
        };
        let int: Option<fn(i128) -> i128> = match op {
            "Neg" => Some(|v| -v),
            "Abs" => Some(i128::abs),
            "Sign" => Some(i128::signum),
            "Relu" => Some(|v| v.max(0)),
            _ => None,
        };
        let run = || {
            let x = self.input(0)?;
            let data = if x.dtype.is_float() {
                Data::of_floats(x.dtype, (0..x.len()).map(|i| float(x.data.float(i))))?
            } else {
                let int = int.filter(|_| x.dtype != DType::Bool)?;
                Data::of_ints(x.dtype, (0..x.len()).map(|i| int(x.data.int(i))))?
            };
            Tensor::new(x.dtype, x.shape.clone(), data)
        };
        Some(run())
    }

    /// Two operands of one type, broadcast: their common shape and, for each output element, the operands' elements.
    #[allow(clippy::type_complexity)]
    fn operands(&self, a: usize, b: usize) -> Option<(&Tensor, &Tensor, Vec<usize>, Vec<usize>, Vec<usize>)> {
        let (a, b) = (self.input(a)?, self.input(b)?);
        let shape = broadcast(&a.shape, &b.shape)?;
        count(&shape)?;
        let (from_a, from_b) = (broadcast_map(&a.shape, &shape), broadcast_map(&b.shape, &shape));
        Some((a, b, shape, from_a, from_b))
    }

    fn arithmetic(&self, float: impl Fn(f64, f64) -> f64, int: impl Fn(i128, i128) -> Option<i128>) -> Option<Tensor> {
        let (a, b, shape, from_a, from_b) = self.operands(0, 1)?;
        if a.dtype != b.dtype || a.dtype == DType::Bool {
            return None;
        }
        let pairs = from_a.iter().zip(&from_b);
        // In double precision and then rounded, the four operations on singles are exactly those of single precision.
        let data = if a.dtype.is_float() {
            Data::of_floats(a.dtype, pairs.map(|(&i, &j)| float(a.data.float(i), b.data.float(j))))?
        } else {
            let values = pairs.map(|(&i, &j)| int(a.data.int(i), b.data.int(j))).collect::<Option<Vec<_>>>()?;
            Data::of_ints(a.dtype, values.into_iter())?
        };
        Tensor::new(a.dtype, shape, data)
    }

    fn modulo(&self) -> Option<Tensor> {
        let fmod = self.int_or("fmod", 0) != 0;
        if !fmod && self.input(0)?.dtype.is_float() {
            return None;
        }
        let int = move |a: i128, b: i128| if fmod { a.checked_rem(b) } else { floored_mod(a, b) };
        self.arithmetic(|a, b| a % b, int)
    }

    fn pow(&self) -> Option<Tensor> {
        let (a, b, shape, from_a, from_b) = self.operands(0, 1)?;
        let pairs = from_a.iter().zip(&from_b);
        let data = if a.dtype.is_float() {
            Data::of_floats(a.dtype, pairs.map(|(&i, &j)| a.data.float(i).powf(b.data.float(j))))?
        } else {
            let power = |(&i, &j): (&usize, &usize)| {
                let (base, exponent) = (a.data.int(i), b.data.float(j));
                if a.dtype == DType::Bool || exponent < 0.0 || exponent.trunc() != exponent {
                    return None;
                }
                let result = base.checked_pow(u32::try_from(exponent as i64).ok()?)?;
                i64::try_from(result).ok().map(i128::from)
            };
            Data::of_ints(a.dtype, pairs.map(power).collect::<Option<Vec<_>>>()?.into_iter())?
        };
        Tensor::new(a.dtype, shape, data)
    }

    fn variadic(&self) -> Option<Tensor> {
        let op = self.node.op.as_str();
        let inputs = (0..self.inputs.len()).map(|i| self.input(i)).collect::<Option<Vec<_>>>()?;
        let first = *inputs.first()?;
        let dtype = first.dtype;
        let mut shape = first.shape.clone();
        for input in &inputs {
            if input.dtype != dtype {
                return None;
            }
            shape = broadcast(&shape, &input.shape)?;
        }
        let total = count(&shape)?;
        let maps: Vec<Vec<usize>> = inputs.iter().map(|x| broadcast_map(&x.shape, &shape)).collect();
        let parts = || inputs.iter().zip(&maps);
        let data = if dtype.is_float() {
            let pick = |a: f64, b: f64| match op {
                _ if a.is_nan() || b.is_nan() => f64::NAN,
                "Min" => a.min(b),
                "Max" => a.max(b),
                _ => a + b,
            };
            let divisor = if op == "Mean" { inputs.len() as f64 } else { 1.0 };
            let at = |i: usize| parts().map(|(x, map)| x.data.float(map[i])).reduce(pick).unwrap_or(0.0) / divisor;
            Data::of_floats(dtype, (0..total).map(at))?
        } else {
            if !matches!(op, "Min" | "Max") || dtype == DType::Bool {
                return None;
            }
            let pick = |a: i128, b: i128| if op == "Min" { a.min(b) } else { a.max(b) };
            let at = |i: usize| parts().map(|(x, map)| x.data.int(map[i])).reduce(pick).unwrap_or(0);
            Data::of_ints(dtype, (0..total).map(at))?
        };
        Tensor::new(dtype, shape, data)
    }

    fn compare(&self) -> Option<Tensor> {
        let (a, b, shape, from_a, from_b) = self.operands(0, 1)?;
        if a.dtype != b.dtype {
            return None;
        }
        let op = self.node.op.as_str();
        let test = |order: Option<std::cmp::Ordering>| match op {
            "Equal" => order.is_some_and(|o| o.is_eq()),
            "Less" => order.is_some_and(|o| o.is_lt()),
            "LessOrEqual" => order.is_some_and(|o| o.is_le()),
            "Greater" => order.is_some_and(|o| o.is_gt()),
            _ => order.is_some_and(|o| o.is_ge()),
        };
        let float = a.dtype.is_float();
        let order = |i: usize, j: usize| {
            if float { a.data.float(i).partial_cmp(&b.data.float(j)) } else { Some(a.data.int(i).cmp(&b.data.int(j))) }
        };
        let data = from_a.iter().zip(&from_b).map(|(&i, &j)| test(order(i, j))).collect();
        Tensor::new(DType::Bool, shape, Data::Bool(data))
    }

    fn logic(&self) -> Option<Tensor> {
        let (a, b, shape, from_a, from_b) = self.operands(0, 1)?;
        let (Data::Bool(x), Data::Bool(y)) = (&a.data, &b.data) else { return None };
        let op = self.node.op.as_str();
        let value = |a: bool, b: bool| match op {
            "And" => a && b,
            "Or" => a || b,
            _ => a != b,
        };
        Tensor::new(
            DType::Bool,
            shape,
            Data::Bool(from_a.iter().zip(&from_b).map(|(&i, &j)| value(x[i], y[j])).collect()),
        )
    }

    fn not(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let Data::Bool(v) = &x.data else { return None };
        Tensor::new(DType::Bool, x.shape.clone(), Data::Bool(v.iter().map(|b| !b).collect()))
    }

    fn select(&self) -> Option<Tensor> {
        let (condition, a, b) = (self.input(0)?, self.input(1)?, self.input(2)?);
        let shape = broadcast(&broadcast(&condition.shape, &a.shape)?, &b.shape)?;
        let total = count(&shape)?;
        if a.dtype != b.dtype {
            return None;
        }
        let Data::Bool(condition_data) = &condition.data else { return None };
        let maps = [&condition.shape, &a.shape, &b.shape].map(|s| broadcast_map(s, &shape));
        let data = both_types!(&a.data, &b.data, (x, y) => {
            (0..total).map(|i| if condition_data[maps[0][i]] { x[maps[1][i]] } else { y[maps[2][i]] }).collect()
        });
        Tensor::new(a.dtype, shape, data)
    }

    fn cast(&self, to: DType) -> Option<Tensor> {
        let x = self.input(0)?;
        if x.dtype == to {
            return Some(x.clone());
        }
        let n = 0..x.len();
        let data = match (x.dtype.is_float(), to.is_float()) {
            // Not by way of double precision, which would round twice.
            (false, true) if to != DType::F64 => Data::of_floats(to, n.map(|i| f64::from(x.data.int(i) as f32)))?,
            (_, true) => Data::of_floats(to, n.map(|i| x.data.float(i)))?,
            (true, false) if to == DType::Bool => Data::Bool(n.map(|i| x.data.float(i) != 0.0).collect()),
            (true, false) => {
                let bits = i32::try_from(to.bits()?).ok()?;
                let unsigned = matches!(to, DType::U8 | DType::U16 | DType::U32 | DType::U64);
                let (low, high) =
                    if unsigned { (0.0, 2f64.powi(bits)) } else { (-(2f64.powi(bits - 1)), 2f64.powi(bits - 1)) };
                // Beyond the type's range the result is not defined.
                let whole = |i: usize| {
                    let v = x.data.float(i).trunc();
                    (v >= low && v < high).then_some(v as i128)
                };
                Data::of_ints(to, n.map(whole).collect::<Option<Vec<_>>>()?.into_iter())?
            }
            (false, false) => Data::of_ints(to, n.map(|i| x.data.int(i)))?,
        };
        Tensor::new(to, x.shape.clone(), data)
    }

    fn is_special(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        if !x.dtype.is_float() {
            return None;
        }
        let (negative, positive) = (self.int_or("detect_negative", 1) != 0, self.int_or("detect_positive", 1) != 0);
        let nan = self.node.op == "IsNaN";
        let test = |v: f64| {
            if nan { v.is_nan() } else { v.is_infinite() && (if v > 0.0 { positive } else { negative }) }
        };
        let data = (0..x.len()).map(|i| test(x.data.float(i))).collect();
        Tensor::new(DType::Bool, x.shape.clone(), Data::Bool(data))
    }

    fn clip(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        if !x.dtype.is_float() {
            return None;
        }
        let bound = |slot: usize, name: &str, default: f64| -> Option<f64> {
            match self.input(slot) {
                Some(t) if t.dtype == x.dtype && t.len() == 1 => Some(t.data.float(0)),
                Some(_) => None,
                None => Some(self.node.float(name).filter(|_| self.opset < 11).map_or(default, f64::from)),
            }
        };
        let (low, high) = (bound(1, "min", f64::NEG_INFINITY)?, bound(2, "max", f64::INFINITY)?);
        let at = |i: usize| {
            let v = x.data.float(i);
            let v = if v < low { low } else { v };
            if v > high { high } else { v }
        };
        Tensor::new(x.dtype, x.shape.clone(), Data::of_floats(x.dtype, (0..x.len()).map(at))?)
    }

    fn shape(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let rank = i64::try_from(x.shape.len()).ok()?;
        let bound = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
        let (start, end) = (bound(self.int_or("start", 0)), bound(self.int_or("end", rank)));
        let dims: Vec<i64> = x.shape.get(start..end.max(start))?.iter().map(|&d| d as i64).collect();
        Tensor::of_i64(vec![dims.len()], dims)
    }

    fn constant(&self) -> Option<Tensor> {
        let node = self.node;
        if let Some(tensor) = node.tensor("value") {
            return Tensor::from_proto(tensor);
        }
        if let Some(value) = node.int("value_int") {
            return Tensor::of_i64(vec![], vec![value]);
        }
        if let Some(values) = node.ints("value_ints") {
            return Tensor::of_i64(vec![values.len()], values.to_vec());
        }
        if let Some(value) = node.float("value_float") {
            return Tensor::of_f32(vec![], vec![value]);
        }
        let floats = &node.attribute("value_floats")?.floats;
        Tensor::of_f32(vec![floats.len()], floats.clone())
    }

    fn constant_of_shape(&self) -> Option<Tensor> {
        let shape: Vec<usize> =
            self.input(0)?.ints()?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
        count(&shape)?;
        let fill = match self.node.tensor("value") {
            Some(value) => Tensor::from_proto(value).filter(|v| v.len() == 1)?.reshaped(vec![])?,
            None => Tensor::of_f32(vec![], vec![0.0])?,
        };
        fill.spread(&shape)
    }

    fn range(&self) -> Option<Tensor> {
        let (start, limit, delta) = (self.input(0)?, self.input(1)?, self.input(2)?);
        let dtype = start.dtype;
        if [limit.dtype, delta.dtype] != [dtype; 2] || [start.len(), limit.len(), delta.len()] != [1; 3] {
            return None;
        }
        if dtype.is_float() {
            let [s, l, d] = [start, limit, delta].map(|t| t.data.float(0));
            let steps = ((l - s) / d).ceil();
            if !(steps.is_finite() && steps <= super::MAX_ELEMENTS as f64) {
                return None;
            }
            let steps = steps.max(0.0) as usize;
            let data = Data::of_floats(dtype, (0..steps).map(|i| s + d * i as f64))?;
            return Tensor::new(dtype, vec![steps], data);
        }
        let [s, l, d] = [start, limit, delta].map(|t| t.data.int(0));
        let steps = match d.signum() {
            0 => return None,
            1 => (l - s + d - 1).div_euclid(d),
            _ => (s - l - d - 1).div_euclid(-d),
        };
        let steps = usize::try_from(steps.max(0)).ok().filter(|n| *n <= super::MAX_ELEMENTS)?;
        Tensor::new(dtype, vec![steps], Data::of_ints(dtype, (0..steps).map(|i| s + d * i as i128))?)
    }

    fn cum_sum(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let axis = axis_of(*self.input(1)?.ints()?.first()?, x.shape.len())?;
        let (exclusive, reverse) = (self.int_or("exclusive", 0) != 0, self.int_or("reverse", 0) != 0);
        let (n, inner) = (x.shape[axis], strides(&x.shape)[axis]);
        let lines = x.len().checked_div(n.max(1))?;
        let positions = |line: usize| {
            let start = line / inner * inner * n + line % inner;
            (0..n).map(move |i| start + (if reverse { n - 1 - i } else { i }) * inner)
        };
        let data = if x.dtype.is_float() {
            let mut out = vec![0.0; x.len()];
            for line in 0..lines {
                let mut sum = 0.0;
                for at in positions(line) {
                    let v = x.data.float(at);
                    out[at] = if exclusive { sum } else { sum + v };
                    sum += v;
                }
            }
            Data::of_floats(x.dtype, out.into_iter())?
        } else {
            let mut out = vec![0i128; x.len()];
            for line in 0..lines {
                let mut sum = 0i128;
                for at in positions(line) {
                    let v = x.data.int(at);
                    out[at] = if exclusive { sum } else { sum + v };
                    sum += v;
                }
            }
            Data::of_ints(x.dtype, out.into_iter()).filter(|_| x.dtype != DType::Bool)?
        };
        Tensor::new(x.dtype, x.shape.clone(), data)
    }

    fn softmax(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        if !x.dtype.is_float() {
            return None;
        }
        let rank = x.shape.len();
        let (n, inner) = if self.opset < 13 {
            // The axes from `axis` on count as one.
            let axis = self.int_or("axis", 1);
            let axis = if axis == rank as i64 { rank } else { axis_of(axis, rank)? };
            (x.shape[axis..].iter().product::<usize>(), 1)
        } else {
            let axis = self.axis("axis", -1, rank)?;
            (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>())
        };
        let log = self.node.op == "LogSoftmax";
        let mut out = x.floats();
        let lines = out.len().checked_div(n.max(1))?;
        for line in 0..lines {
            let start = line / inner * inner * n + line % inner;
            let at = |i: usize| start + i * inner;
            let max = (0..n).map(|i| out[at(i)]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..n).map(|i| (out[at(i)] - max).exp()).sum();
            for i in 0..n {
                let v = out[at(i)] - max;
                out[at(i)] = if log { v - sum.ln() } else { v.exp() / sum };
            }
        }
        Tensor::new(x.dtype, x.shape.clone(), Data::of_floats(x.dtype, out.into_iter())?)
    }

    fn matmul(&self) -> Option<Tensor> {
        let (a, b) = (self.input(0)?, self.input(1)?);
        if a.dtype != b.dtype || a.shape.is_empty() || b.shape.is_empty() {
            return None;
        }
        let (mut a_shape, mut b_shape) = (a.shape.clone(), b.shape.clone());
        if a_shape.len() == 1 {
            a_shape.insert(0, 1);
        }
        if b_shape.len() == 1 {
            b_shape.push(1);
        }
        let ([a_front @ .., m, k], [b_front @ .., kb, n]) = (a_shape.as_slice(), b_shape.as_slice()) else {
            return None;
        };
        let (m, k, n) = (*m, *k, *n);
        if k != *kb {
            return None;
        }
        let front = broadcast(a_front, b_front)?;
        let mut shape = front.clone();
        if a.shape.len() > 1 {
            shape.push(m);
        }
        if b.shape.len() > 1 {
            shape.push(n);
        }
        let total = count(&shape)?;
        if total.checked_mul(k)? > MAX_PRODUCTS {
            return None;
        }
        let (from_a, from_b) = (broadcast_map(a_front, &front), broadcast_map(b_front, &front));
        let element = |flat: usize| {
            let (batch, row, column) = (flat / (m * n), flat / n % m, flat % n);
            let (a_base, b_base) = (from_a[batch] * m * k + row * k, from_b[batch] * k * n + column);
            (0..k).map(move |i| (a_base + i, b_base + i * n))
        };
        let data = if a.dtype.is_float() {
            let dot = |flat| element(flat).map(|(i, j)| a.data.float(i) * b.data.float(j)).sum();
            Data::of_floats(a.dtype, (0..total).map(dot))?
        } else {
            // Sums wrap as the type does.
            let dot =
                |flat| element(flat).fold(0i128, |s, (i, j)| s.wrapping_add(a.data.int(i).wrapping_mul(b.data.int(j))));
            Data::of_ints(a.dtype, (0..total).map(dot)).filter(|_| a.dtype != DType::Bool)?
        };
        Tensor::new(a.dtype, shape, data)
    }

    /// For each output element the flat positions that it is reduced from, and the output shape.
    #[allow(clippy::type_complexity)]
    fn reduction(&self, axes: &[usize], keep: bool) -> Option<(Vec<usize>, Vec<usize>, Vec<usize>)> {
        let x = self.input(0)?;
        let own = strides(&x.shape);
        let (mut shape, mut outer, mut outer_steps, mut inner, mut inner_steps) =
            (vec![], vec![], vec![], vec![], vec![]);
        for (axis, (&size, &step)) in x.shape.iter().zip(&own).enumerate() {
            let reduced = axes.contains(&axis);
            let (sizes, steps) = if reduced { (&mut inner, &mut inner_steps) } else { (&mut outer, &mut outer_steps) };
            sizes.push(size);
            steps.push(step as isize);
            if !reduced || keep {
                shape.push(if reduced { 1 } else { size });
            }
        }
        count(&shape)?;
        Some((shape, super::affine(&outer, &outer_steps, 0), super::affine(&inner, &inner_steps, 0)))
    }

    fn reduce(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let op = self.node.op.as_str();
        let given = self.node.attribute("axes").is_some() || self.input(1).is_some();
        let axes = if given { self.list("axes", 1)? } else { vec![] };
        let noop = axes.is_empty() && self.int_or("noop_with_empty_axes", 0) != 0;
        let axes: Vec<usize> = if axes.is_empty() && !noop {
            (0..x.shape.len()).collect()
        } else {
            axes.into_iter().map(|a| axis_of(a, x.shape.len())).collect::<Option<_>>()?
        };
        let (shape, starts, offsets) = self.reduction(&axes, self.int_or("keepdims", 1) != 0)?;
        // The extreme of nothing depends on the type; nobody exports it.
        if offsets.is_empty() && !matches!(op, "ReduceSum" | "ReduceProd") {
            return None;
        }
        let data = if x.dtype.is_float() {
            let value = |start: &usize| {
                let values = offsets.iter().map(|o| x.data.float(start + o));
                let n = offsets.len() as f64;
                Some(match op {
                    "ReduceSum" => values.sum(),
                    "ReduceMean" => values.sum::<f64>() / n,
                    "ReduceProd" => values.product(),
                    "ReduceL1" => values.map(f64::abs).sum(),
                    "ReduceL2" => values.map(|v| v * v).sum::<f64>().sqrt(),
                    "ReduceSumSquare" => values.map(|v| v * v).sum(),
                    "ReduceLogSum" => values.sum::<f64>().ln(),
                    "ReduceLogSumExp" => {
                        let max = values.clone().fold(f64::NEG_INFINITY, f64::max);
                        max + values.map(|v| (v - max).exp()).sum::<f64>().ln()
                    }
                    "ReduceMax" => values.reduce(|a, b| if a.is_nan() || a > b { a } else { b })?,
                    "ReduceMin" => values.reduce(|a, b| if a.is_nan() || a < b { a } else { b })?,
                    _ => return None,
                })
            };
            Data::of_floats(x.dtype, starts.iter().map(value).collect::<Option<Vec<_>>>()?.into_iter())?
        } else {
            let value = |start: &usize| {
                let mut values = offsets.iter().map(|o| x.data.int(start + o));
                match op {
                    "ReduceSum" => Some(values.sum()),
                    "ReduceProd" => values.try_fold(1i128, i128::checked_mul),
                    "ReduceMax" => values.max(),
                    "ReduceMin" => values.min(),
                    _ => None,
                }
            };
            Data::of_ints(x.dtype, starts.iter().map(value).collect::<Option<Vec<_>>>()?.into_iter())
                .filter(|_| x.dtype != DType::Bool)?
        };
        Tensor::new(x.dtype, shape, data)
    }

    fn arg(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let axis = self.axis("axis", 0, x.shape.len())?;
        let (shape, starts, offsets) = self.reduction(&[axis], self.int_or("keepdims", 1) != 0)?;
        let last = self.int_or("select_last_index", 0) != 0;
        let max = self.node.op == "ArgMax";
        let float = x.dtype.is_float();
        let better = |a: usize, b: usize| {
            let order =
                if float { x.data.float(a).partial_cmp(&x.data.float(b))? } else { x.data.int(a).cmp(&x.data.int(b)) };
            Some(if max { order.is_gt() } else { order.is_lt() } || (last && order.is_eq()))
        };
        let value = |start: &usize| {
            let mut best = 0usize;
            for (i, offset) in offsets.iter().enumerate().skip(1) {
                if better(start + offset, start + offsets[best])? {
                    best = i;
                }
            }
            (!offsets.is_empty()).then_some(best as i64)
        };
        Tensor::of_i64(shape, starts.iter().map(value).collect::<Option<_>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::erf;

    #[test]
    fn error_function() {
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.9, 0.999_958_902_121_900_5),
            (3.1, 0.999_988_351_342_632_8),
            (-2.0, -0.995_322_265_018_952_7),
            (10.0, 1.0),
        ] {
            assert!((erf(x) - expected).abs() < 1e-14, "erf({x}) = {}", erf(x));
        }
        assert!(erf(f64::NAN).is_nan());
    }
}
