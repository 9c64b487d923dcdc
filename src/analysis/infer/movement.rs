//! Operators that move elements: reshaping, slicing, gathering, padding, resizing.

use super::shape_math::small;
use super::{Cx, Inferred, axis_of, never_negative};
use crate::ir::{Dim, Ints};
use crate::onnx::DType;

/// Bounds at or beyond this mean "to the end" in exported slices.
const TO_THE_END: i64 = i32::MAX as i64;

/// The size of `start:end:step` on an axis; `None` where it depends on the values of the symbols.
fn slice_size(size: &Dim, start: &Dim, end: &Dim, step: i64) -> Option<Dim> {
    if step == 0 {
        return None;
    }
    if let (Dim::Int(n), Dim::Int(start), Dim::Int(end)) = (size, start, end) {
        return slice_range(*n, *start, *end, step).map(|(_, count)| Dim::Int(count));
    }
    if step < 0 {
        // The whole axis backwards.
        let whole = step == -1 && start.int().is_some_and(|s| s == -1 || s >= TO_THE_END);
        return (whole && end.int().is_some_and(|e| e <= -TO_THE_END)).then(|| size.clone());
    }
    // Negative integers count from the end; both bounds are then clamped to the axis.
    let bound = |b: &Dim| match b {
        Dim::Int(i) if *i >= TO_THE_END => Some(size.clone()),
        Dim::Int(i) if *i < 0 => size.add(b).filter(never_negative),
        _ if never_negative(&size.sub(b)?) => never_negative(b).then(|| b.clone()),
        _ => never_negative(&b.sub(size)?).then(|| size.clone()),
    };
    let (start, end) = (bound(start)?, bound(end)?);
    let length = end.sub(&start)?;
    if never_negative(&length) {
        return super::ceil_div(&length, step);
    }
    never_negative(&start.sub(&end)?).then_some(Dim::Int(0))
}

/// First index and number of elements of `start:end:step` on an axis of `n`, as ONNX clamps them.
pub(crate) fn slice_range(n: i64, start: i64, end: i64, step: i64) -> Option<(i64, i64)> {
    if step == 0 || n < 0 {
        return None;
    }
    let from_end = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    let (start, end) = (from_end(start), from_end(end));
    let (start, end) = if step > 0 {
        (start.clamp(0, n), end.clamp(0, n))
    } else {
        (start.clamp(-1, n - 1).max(if n == 0 { -1 } else { 0 }), end.clamp(-1, n - 1))
    };
    let (span, step) = (i128::from(end) - i128::from(start), i128::from(step));
    let (span, step) = if step > 0 { (span, step) } else { (-span, -step) };
    let count = (span + step - 1).div_euclid(step).max(0);
    Some((start, i64::try_from(count).ok()?))
}

/// Contents of shape `sizes` whose element at an index is `input`'s at the index that `source` writes.
fn rearranged(input: &Ints, sizes: Vec<usize>, source: impl Fn(&[usize], &mut [usize])) -> Option<Ints> {
    let dims: Vec<Dim> = sizes.iter().map(|&n| i64::try_from(n).map(Dim::Int)).collect::<Result<_, _>>().ok()?;
    let (_, count) = small(&dims)?;
    let mut index = vec![0usize; sizes.len()];
    let mut from = vec![0usize; input.shape.len()];
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        source(&index, &mut from);
        let inside = from.iter().zip(&input.shape).all(|(i, n)| i < n);
        let flat = from.iter().zip(&input.shape).try_fold(0usize, |f, (i, n)| f.checked_mul(*n)?.checked_add(*i))?;
        values.push(if inside { input.values.get(flat)?.clone() } else { None });
        for axis in (0..sizes.len()).rev() {
            index[axis] += 1;
            if index[axis] < sizes[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Some(Ints { shape: sizes, values })
}

impl Cx<'_> {
    /// `None`: not an op of this family.
    pub(super) fn movement(&self) -> Option<Option<Vec<Inferred>>> {
        Some(match self.node.op.as_str() {
            "Reshape" => self.reshape(),
            "Transpose" => self.transpose(),
            "Squeeze" => self.squeeze(),
            "Unsqueeze" => self.unsqueeze(),
            "Flatten" => self.flatten(),
            "Slice" => self.slice(),
            "Concat" => self.concat(),
            "Split" => self.split(),
            "Gather" => self.gather(),
            "GatherElements" => Some(vec![Inferred::new(self.dtype(0), self.shape(1).map(<[Dim]>::to_vec))]),
            "GatherND" => self.gather_nd(),
            "Pad" => self.pad(),
            "Tile" => self.tile(),
            "DepthToSpace" | "SpaceToDepth" => self.depth_space(),
            "Resize" | "Upsample" => self.resize(),
            "OneHot" => self.one_hot(),
            "TopK" => self.top_k(),
            "ArgMax" | "ArgMin" => self.arg_max(),
            "Compress" => self.compress(),
            _ => return None,
        })
    }

    /// One output whose elements are those of input 0 in the same order.
    fn same_elements(&self, shape: Option<Vec<Dim>>) -> Option<Vec<Inferred>> {
        let ints = || {
            let input = self.has_contents(0).then(|| self.contents(0))??;
            let (sizes, count) = small(shape.as_deref()?)?;
            (count == input.values.len()).then_some(Ints { shape: sizes, values: input.values })
        };
        let ints = ints();
        Some(vec![Inferred::new(self.dtype(0), shape).with_ints(ints)])
    }

    fn reshape(&self) -> Option<Vec<Inferred>> {
        let input = self.shape(0);
        let target: Vec<Option<Dim>> = if let Some(list) = self.node.ints("shape").filter(|_| self.opset < 5) {
            list.iter().map(|&v| Some(Dim::Int(v))).collect()
        } else {
            match self.contents(1) {
                Some(ints) if ints.shape.len() == 1 => ints.values,
                Some(_) => return None,
                None => match self.shape(1) {
                    Some([Dim::Int(rank)]) => vec![None; usize::try_from(*rank).ok().filter(|r| *r <= 64)?],
                    _ => return Some(vec![Inferred::new(self.dtype(0), None)]),
                },
            }
        };
        self.same_elements(self.reshaped(input, &target))
    }

    fn reshaped(&self, input: Option<&[Dim]>, target: &[Option<Dim>]) -> Option<Vec<Dim>> {
        let allow_zero = self.int_or("allowzero", 0) != 0;
        let mut open = vec![];
        let mut out = Vec::with_capacity(target.len());
        for (i, entry) in target.iter().enumerate() {
            out.push(match entry {
                Some(Dim::Int(0)) if !allow_zero => match input {
                    Some(shape) => shape.get(i)?.clone(),
                    None => self.unknown(0, i),
                },
                Some(Dim::Int(-1)) | None => {
                    open.push(i);
                    self.unknown(0, i)
                }
                Some(Dim::Int(v)) if *v < 0 => return None,
                Some(dim) => dim.clone(),
            });
        }
        let Some(total) = input.and_then(Dim::product) else { return Some(out) };
        let fixed = || Dim::product(out.iter().enumerate().filter(|(i, _)| !open.contains(i)).map(|(_, d)| d));
        match open.as_slice() {
            [] => {
                if let (Dim::Int(total), Some(Dim::Int(product))) = (&total, fixed())
                    && *total != product
                {
                    return None;
                }
            }
            [axis] => {
                if let Some(fixed) = fixed() {
                    if let Some(size) = total.div_exact(&fixed) {
                        out[*axis] = size;
                    } else if let (Dim::Int(_), Dim::Int(f)) = (&total, &fixed)
                        && *f != 0
                    {
                        return None;
                    }
                }
            }
            _ => {}
        }
        Some(out)
    }

    fn transpose(&self) -> Option<Vec<Inferred>> {
        let Some(shape) = self.shape(0) else { return self.like(0) };
        let rank = shape.len();
        let out = match self.node.ints("perm") {
            Some(perm) => {
                let mut seen = vec![false; rank];
                let mut out = Vec::with_capacity(rank);
                for &p in perm {
                    let p = usize::try_from(p).ok().filter(|p| *p < rank && !seen[*p])?;
                    seen[p] = true;
                    out.push(shape[p].clone());
                }
                (out.len() == rank).then_some(out)?
            }
            None => shape.iter().rev().cloned().collect(),
        };
        let ints = || {
            let input = self.has_contents(0).then(|| self.contents(0))??;
            let perm: Vec<usize> = match self.node.ints("perm") {
                Some(perm) => perm.iter().map(|&p| p as usize).collect(),
                None => (0..rank).rev().collect(),
            };
            let sizes = perm.iter().map(|&p| input.shape.get(p).copied()).collect::<Option<Vec<usize>>>()?;
            rearranged(&input, sizes, |index, from| {
                for (i, &p) in perm.iter().enumerate() {
                    from[p] = index[i];
                }
            })
        };
        let ints = ints();
        Some(vec![Inferred::new(self.dtype(0), Some(out)).with_ints(ints)])
    }

    fn squeeze(&self) -> Option<Vec<Inferred>> {
        let shape = || {
            let shape = self.shape(0)?;
            match self.list("axes", 1)? {
                Some(axes) => {
                    let mut drop = vec![false; shape.len()];
                    for axis in axes {
                        drop[axis_of(axis, shape.len())?] = true;
                    }
                    // A squeezed axis can only be 1.
                    let bad = shape.iter().zip(&drop).any(|(d, drop)| *drop && d.int().is_some_and(|d| d != 1));
                    (!bad).then(|| shape.iter().zip(drop).filter(|(_, drop)| !drop).map(|(d, _)| d.clone()).collect())
                }
                None => {
                    let known = shape.iter().all(|d| d.int().is_some());
                    known.then(|| shape.iter().filter(|d| **d != Dim::Int(1)).cloned().collect())
                }
            }
        };
        self.same_elements(shape())
    }

    fn unsqueeze(&self) -> Option<Vec<Inferred>> {
        let shape = || {
            let shape = self.shape(0)?;
            let axes = self.list("axes", 1)??;
            let rank = shape.len().checked_add(axes.len())?;
            let mut new = vec![false; rank];
            for axis in axes {
                let axis = axis_of(axis, rank)?;
                if std::mem::replace(&mut new[axis], true) {
                    return None;
                }
            }
            let mut rest = shape.iter();
            new.into_iter().map(|new| if new { Some(Dim::Int(1)) } else { rest.next().cloned() }).collect()
        };
        self.same_elements(shape())
    }

    fn flatten(&self) -> Option<Vec<Inferred>> {
        let shape = || {
            let shape = self.shape(0)?;
            let axis = self.int_or("axis", 1);
            let axis = if axis == shape.len() as i64 { shape.len() } else { axis_of(axis, shape.len())? };
            let half = |i: usize, dims: &[Dim]| Dim::product(dims).unwrap_or_else(|| self.unknown(0, i));
            Some(vec![half(0, &shape[..axis]), half(1, &shape[axis..])])
        };
        self.same_elements(shape())
    }

    fn slice(&self) -> Option<Vec<Inferred>> {
        let dtype = self.dtype(0);
        let Some(shape) = self.shape(0) else { return self.like(0) };
        let (starts, ends, axes, steps) = if self.opset < 10 && self.node.ints("starts").is_some() {
            let list = |name| {
                let values = self.node.ints(name)?.iter().map(|&v| Some(Dim::Int(v))).collect();
                Some(values)
            };
            (list("starts"), list("ends"), self.node.ints("axes").map(<[i64]>::to_vec), None)
        } else {
            let list = |slot| Some(self.contents(slot)?.values);
            let axes = match self.given(3) {
                true => match self.known(3) {
                    Some(axes) => Some(axes),
                    None => return Inferred::one(dtype, (0..shape.len()).map(|i| self.unknown(0, i)).collect()),
                },
                false => None,
            };
            let steps = match self.given(4) {
                true => Some(self.contents(4).map(|c| c.values).unwrap_or_default()),
                false => None,
            };
            (list(1), list(2), axes, steps)
        };
        let (starts, ends): (Vec<Option<Dim>>, Vec<Option<Dim>>) =
            (starts.unwrap_or_default(), ends.unwrap_or_default());
        let axes = axes.unwrap_or_else(|| (0..starts.len().max(ends.len()).min(64) as i64).collect());
        if axes.is_empty() && starts.is_empty() && !self.known(1).is_some_and(|s| s.is_empty()) {
            return Inferred::one(dtype, (0..shape.len()).map(|i| self.unknown(0, i)).collect());
        }
        let mut out = shape.to_vec();
        for (i, &axis) in axes.iter().enumerate() {
            let axis = axis_of(axis, shape.len())?;
            let size = || {
                let step = match &steps {
                    Some(steps) => steps.get(i)?.as_ref()?.int()?,
                    None => 1,
                };
                slice_size(&shape[axis], starts.get(i)?.as_ref()?, ends.get(i)?.as_ref()?, step)
            };
            out[axis] = size().unwrap_or_else(|| self.unknown(0, axis));
        }
        let ints = || {
            let input = self.has_contents(0).then(|| self.contents(0))??;
            let (mut sizes, mut start, mut step) =
                (input.shape.clone(), vec![0i64; shape.len()], vec![1i64; shape.len()]);
            for (i, &axis) in axes.iter().enumerate() {
                let axis = axis_of(axis, shape.len())?;
                if let Some(steps) = &steps {
                    step[axis] = steps.get(i)?.as_ref()?.int()?;
                }
                let bound = |b: &[Option<Dim>]| b.get(i)?.as_ref()?.int();
                let n = i64::try_from(*input.shape.get(axis)?).ok()?;
                let (first, count) = slice_range(n, bound(&starts)?, bound(&ends)?, step[axis])?;
                (start[axis], sizes[axis]) = (first, usize::try_from(count).ok()?);
            }
            rearranged(&input, sizes, |index, from| {
                for (axis, at) in from.iter_mut().enumerate() {
                    *at = (start[axis] + index[axis] as i64 * step[axis]) as usize;
                }
            })
        };
        let ints = ints();
        Some(vec![Inferred::new(dtype, Some(out)).with_ints(ints)])
    }

    fn concat(&self) -> Option<Vec<Inferred>> {
        let count = self.node.inputs.len();
        let dtype = (0..count).find_map(|i| self.dtype(i));
        let shapes = (0..count).map(|i| self.shape(i)).collect::<Option<Vec<_>>>();
        let Some(shapes) = shapes else { return Some(vec![Inferred::new(dtype, None)]) };
        let rank = shapes.first()?.len();
        if shapes.iter().any(|s| s.len() != rank) {
            return None;
        }
        let axis = axis_of(self.int_or("axis", 1), rank)?;
        let mut out = Vec::with_capacity(rank);
        for i in 0..rank {
            let mut dims = shapes.iter().map(|s| &s[i]);
            let dim = if i == axis {
                dims.try_fold(Dim::Int(0), |sum, d| sum.add(d)).unwrap_or_else(|| self.unknown(0, i))
            } else {
                // Equal in every input; the most definite one says it.
                let rank_of = |d: &&Dim| (d.int().is_none(), super::is_unknown(d));
                let best = dims.clone().min_by_key(rank_of)?;
                if dims.any(|d| d.int().is_some() && d != best) {
                    return None;
                }
                best.clone()
            };
            out.push(dim);
        }
        let ints = || {
            if rank != 1 || !(0..count).any(|i| self.has_contents(i)) {
                return None;
            }
            small(&out)?;
            let mut values = vec![];
            for (i, shape) in shapes.iter().enumerate() {
                let len = usize::try_from(shape[0].int()?).ok()?;
                match self.contents(i) {
                    Some(ints) if ints.values.len() == len => values.extend(ints.values),
                    _ => values.extend(std::iter::repeat_n(None, len)),
                }
            }
            Some(Ints { shape: vec![values.len()], values })
        };
        let ints = ints();
        Some(vec![Inferred::new(dtype, Some(out)).with_ints(ints)])
    }

    fn split(&self) -> Option<Vec<Inferred>> {
        let dtype = self.dtype(0);
        let outputs = self.node.outputs.len();
        let Some(shape) = self.shape(0) else {
            return Some(vec![Inferred::new(dtype, None); outputs]);
        };
        let axis = axis_of(self.int_or("axis", 0), shape.len())?;
        let listed = if self.node.ints("split").is_some() || self.given(1) {
            match self.list("split", 1) {
                Some(Some(sizes)) if sizes.len() == outputs => Some(sizes.into_iter().map(Dim::Int).collect()),
                Some(_) => return None,
                None => self.contents(1).and_then(|c| c.values.into_iter().collect()),
            }
        } else {
            let parts = i64::try_from(outputs).ok()?;
            let chunk = if self.opset >= 18 { super::ceil_div(&shape[axis], parts) } else { None };
            let chunk = shape[axis].div_exact(&Dim::Int(parts)).or(chunk);
            let sizes = |chunk: Dim| {
                let before = chunk.mul(&Dim::Int(parts - 1))?;
                let last = shape[axis].sub(&before).filter(never_negative)?;
                let mut sizes = vec![chunk; outputs];
                *sizes.last_mut()? = last;
                Some(sizes)
            };
            chunk.and_then(sizes)
        };
        let sizes: Option<Vec<Dim>> = listed.filter(|l: &Vec<Dim>| l.len() == outputs);
        let contents = if self.has_contents(0) && shape.len() == 1 { self.contents(0) } else { None };
        let mut start = Some(0usize);
        let mut result = Vec::with_capacity(outputs);
        for i in 0..outputs {
            let mut out = shape.to_vec();
            out[axis] = match &sizes {
                Some(sizes) => sizes[i].clone(),
                None => self.unknown(i, axis),
            };
            let len = out[axis].int().and_then(|d| usize::try_from(d).ok());
            let end = start.zip(len).and_then(|(s, l)| s.checked_add(l));
            let ints = contents.as_ref().zip(start.zip(end)).and_then(|(all, (start, end))| {
                Some(Ints { shape: vec![end - start], values: all.values.get(start..end)?.to_vec() })
            });
            start = end;
            result.push(Inferred::new(dtype, Some(out)).with_ints(ints));
        }
        Some(result)
    }

    fn gather(&self) -> Option<Vec<Inferred>> {
        let dtype = self.dtype(0);
        let (Some(data), Some(indices)) = (self.shape(0), self.shape(1)) else {
            return Some(vec![Inferred::new(dtype, None)]);
        };
        let axis = axis_of(self.int_or("axis", 0), data.len())?;
        let out: Vec<Dim> = data[..axis].iter().chain(indices).chain(&data[axis + 1..]).cloned().collect();
        let ints = || {
            let input = self.has_contents(0).then(|| self.contents(0))??;
            let picks = self.contents(1)?;
            let n = i64::try_from(*input.shape.get(axis)?).ok()?;
            let at = |at: &Option<Dim>| {
                let at = at.as_ref()?.int()?;
                usize::try_from(if at < 0 { at.checked_add(n)? } else { at }).ok()
            };
            let at: Vec<usize> = picks.values.iter().map(at).collect::<Option<_>>()?;
            let (behind, depth) = (axis + picks.shape.len(), picks.shape.len());
            let sizes: Vec<usize> =
                input.shape[..axis].iter().chain(&picks.shape).chain(&input.shape[axis + 1..]).copied().collect();
            rearranged(&input, sizes, |index, from| {
                let pick = index[axis..behind].iter().zip(&picks.shape).fold(0, |flat, (i, n)| flat * n + i);
                from[..axis].copy_from_slice(&index[..axis]);
                from[axis] = at[pick];
                from[axis + 1..].copy_from_slice(&index[axis + depth..]);
            })
        };
        let ints = ints();
        Some(vec![Inferred::new(dtype, Some(out)).with_ints(ints)])
    }

    fn gather_nd(&self) -> Option<Vec<Inferred>> {
        let shape = || {
            let (data, indices) = (self.shape(0)?, self.shape(1)?);
            let batch = usize::try_from(self.int_or("batch_dims", 0)).ok()?;
            let (last, front) = indices.split_last()?;
            let depth = usize::try_from(last.int()?).ok()?;
            let rest = data.get(batch.checked_add(depth)?..)?;
            Some(front.iter().chain(rest).cloned().collect())
        };
        Some(vec![Inferred::new(self.dtype(0), shape())])
    }

    fn pad(&self) -> Option<Vec<Inferred>> {
        let Some(shape) = self.shape(0) else { return self.like(0) };
        let rank = shape.len();
        let pads: Option<Vec<Option<Dim>>> = match self.node.ints("pads") {
            Some(pads) => Some(pads.iter().map(|&p| Some(Dim::Int(p))).collect()),
            None => self.contents(1).map(|c| c.values),
        };
        let axes = if self.given(3) {
            let axes = self.known(3).map(|axes| axes.into_iter().map(|a| axis_of(a, rank)).collect());
            match axes {
                Some(axes) => axes,
                None => return Inferred::one(self.dtype(0), (0..rank).map(|i| self.unknown(0, i)).collect()),
            }
        } else {
            Some((0..rank).collect::<Vec<usize>>())
        };
        let axes: Vec<usize> = axes?;
        let Some(pads) = pads else {
            let mut out = shape.to_vec();
            for &axis in &axes {
                out[axis] = self.unknown(0, axis);
            }
            return Inferred::one(self.dtype(0), out);
        };
        if pads.len() != axes.len().checked_mul(2)? {
            return None;
        }
        let mut out = shape.to_vec();
        for (i, &axis) in axes.iter().enumerate() {
            let padded = || shape[axis].add(pads[i].as_ref()?)?.add(pads[i + axes.len()].as_ref()?);
            out[axis] = padded().unwrap_or_else(|| self.unknown(0, axis));
        }
        Inferred::one(self.dtype(0), out)
    }

    fn tile(&self) -> Option<Vec<Inferred>> {
        let Some(shape) = self.shape(0) else { return self.like(0) };
        let repeats = self.contents(1).map(|c| c.values);
        if repeats.as_ref().is_some_and(|r| r.len() != shape.len()) {
            return None;
        }
        let size = |(axis, dim): (usize, &Dim)| {
            let repeat = repeats.as_ref().and_then(|r| r[axis].clone());
            repeat.and_then(|r| dim.mul(&r)).unwrap_or_else(|| self.unknown(0, axis))
        };
        let out: Vec<Dim> = shape.iter().enumerate().map(size).collect();
        let ints = || {
            let input = self.has_contents(0).then(|| self.contents(0))??;
            let ([n], (sizes, count)) = (input.shape.as_slice(), small(&out)?) else { return None };
            let values = (0..count).map(|i| input.values.get(i % n)?.clone()).collect();
            Some(Ints { shape: sizes, values })
        };
        let ints = ints();
        Some(vec![Inferred::new(self.dtype(0), Some(out)).with_ints(ints)])
    }

    fn depth_space(&self) -> Option<Vec<Inferred>> {
        let shape = || {
            let [n, c, h, w] = self.shape(0)? else { return None };
            let block = Dim::Int(self.node.int("blocksize").filter(|b| *b > 0)?);
            let area = block.mul(&block)?;
            Some(if self.node.is("DepthToSpace") {
                vec![n.clone(), c.div_exact(&area)?, h.mul(&block)?, w.mul(&block)?]
            } else {
                vec![n.clone(), c.mul(&area)?, h.div_exact(&block)?, w.div_exact(&block)?]
            })
        };
        Some(vec![Inferred::new(self.dtype(0), shape())])
    }

    fn resize(&self) -> Option<Vec<Inferred>> {
        let Some(shape) = self.shape(0) else { return self.like(0) };
        let rank = shape.len();
        let unknown = || Inferred::one(self.dtype(0), (0..rank).map(|i| self.unknown(0, i)).collect());
        let axes: Vec<usize> = match self.node.ints("axes").filter(|_| self.opset >= 18) {
            Some(axes) => axes.iter().map(|&a| axis_of(a, rank)).collect::<Option<_>>()?,
            None => (0..rank).collect(),
        };
        let old = self.opset < 11 || self.node.is("Upsample");
        let (scales_at, sizes_at) = if old { (1, usize::MAX) } else { (2, 3) };
        let scales = || -> Option<Vec<f32>> {
            if let Some(list) = self.node.attribute("scales") {
                return Some(list.floats.clone());
            }
            let tensor = self.graph.constant(self.node.input(scales_at)?)?;
            let few = tensor.dims.len() == 1 && (0..=64).contains(&tensor.dims[0]);
            few.then(|| tensor.to_f32_vec().ok())?
        };
        let mut out = shape.to_vec();
        // An empty constant in the place of the scales means that they are not given.
        if let Some(scales) = scales().filter(|s| !s.is_empty()) {
            if scales.len() != axes.len() {
                return None;
            }
            for (&axis, scale) in axes.iter().zip(scales) {
                out[axis] = match &shape[axis] {
                    dim if scale == 1.0 => dim.clone(),
                    Dim::Int(size) => {
                        // In single precision, as ONNX Runtime computes it.
                        let scaled = (*size as f32 * scale).floor();
                        (scaled.is_finite() && (0.0..9e15).contains(&scaled)).then_some(Dim::Int(scaled as i64))?
                    }
                    dim if scale.trunc() == scale && scale > 0.0 && scale < 1e6 => {
                        dim.mul(&Dim::Int(scale as i64)).unwrap_or_else(|| self.unknown(0, axis))
                    }
                    _ => self.unknown(0, axis),
                };
            }
            return Inferred::one(self.dtype(0), out);
        }
        let policy = self.node.string("keep_aspect_ratio_policy").unwrap_or("stretch");
        let Some(sizes) = (if policy == "stretch" { self.contents(sizes_at) } else { None }) else {
            return unknown();
        };
        if sizes.values.len() != axes.len() {
            return None;
        }
        for (&axis, size) in axes.iter().zip(sizes.values) {
            out[axis] = size.unwrap_or_else(|| self.unknown(0, axis));
        }
        Inferred::one(self.dtype(0), out)
    }

    fn one_hot(&self) -> Option<Vec<Inferred>> {
        let shape = || {
            let indices = self.shape(0)?;
            let axis = axis_of(self.int_or("axis", -1), indices.len() + 1)?;
            let mut out = indices.to_vec();
            out.insert(axis, self.scalar(1).unwrap_or_else(|| self.unknown(0, axis)));
            Some(out)
        };
        Some(vec![Inferred::new(self.dtype(2), shape())])
    }

    fn top_k(&self) -> Option<Vec<Inferred>> {
        let shape = |output: usize| {
            let mut out = self.shape(0)?.to_vec();
            let axis = axis_of(self.int_or("axis", -1), out.len())?;
            let k = self.node.int("k").map(Dim::Int).or_else(|| self.scalar(1));
            out[axis] = k.unwrap_or_else(|| self.unknown(output, axis));
            Some(out)
        };
        Some(vec![Inferred::new(self.dtype(0), shape(0)), Inferred::new(Some(DType::I64), shape(1))])
    }

    fn arg_max(&self) -> Option<Vec<Inferred>> {
        let shape = || {
            let mut out = self.shape(0)?.to_vec();
            let axis = axis_of(self.int_or("axis", 0), out.len())?;
            if self.int_or("keepdims", 1) != 0 {
                out[axis] = Dim::Int(1);
            } else {
                out.remove(axis);
            }
            Some(out)
        };
        Some(vec![Inferred::new(Some(DType::I64), shape())])
    }

    fn compress(&self) -> Option<Vec<Inferred>> {
        let shape = || match self.node.int("axis") {
            None => Some(vec![self.unknown(0, 0)]),
            Some(axis) => {
                let mut out = self.shape(0)?.to_vec();
                let axis = axis_of(axis, out.len())?;
                out[axis] = self.unknown(0, axis);
                Some(out)
            }
        };
        Some(vec![Inferred::new(self.dtype(0), shape())])
    }
}
