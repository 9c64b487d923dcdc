//! Ops that move elements.

use super::{Call, Data, Tensor, affine, both_types, broadcast, count, same_type, strides};
use crate::analysis::infer::{axis_of, slice_range};
use crate::onnx::DType;

fn signed(strides: &[usize]) -> Vec<isize> {
    strides.iter().map(|&s| s as isize).collect()
}

/// An index counted from the front.
fn index_of(index: i64, size: usize) -> Option<usize> {
    axis_of(index, size)
}

/// The sizes before, at and after an axis.
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

impl Call<'_> {
    /// `None`: not an op of this family.
    pub(super) fn movement(&self) -> Option<Option<Vec<Tensor>>> {
        let one = |t: Option<Tensor>| t.map(|t| vec![t]);
        Some(match self.node.op.as_str() {
            "Identity" => one(self.input(0).cloned()),
            "Reshape" => one(self.reshape()),
            "Flatten" => one(self.flatten()),
            "Squeeze" => one(self.squeeze()),
            "Unsqueeze" => one(self.unsqueeze()),
            "Transpose" => one(self.transpose()),
            "Slice" => one(self.slice()),
            "Concat" => one(self.concat()),
            "Split" => self.split(),
            "Gather" => one(self.gather()),
            "GatherElements" => one(self.gather_elements()),
            "GatherND" => one(self.gather_nd()),
            "ScatterND" => one(self.scatter_nd()),
            "ScatterElements" | "Scatter" => one(self.scatter_elements()),
            "Pad" => one(self.pad()),
            "Expand" => one(self.expand()),
            "Tile" => one(self.tile()),
            "Trilu" => one(self.trilu()),
            "OneHot" => one(self.one_hot()),
            "DepthToSpace" | "SpaceToDepth" => one(self.depth_space()),
            _ => return None,
        })
    }

    fn reshape(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let target = self.list("shape", 1)?;
        let allow_zero = self.int_or("allowzero", 0) != 0;
        let mut shape = Vec::with_capacity(target.len());
        let mut open = None;
        for (i, &d) in target.iter().enumerate() {
            shape.push(match d {
                0 if !allow_zero => *x.shape.get(i)?,
                -1 if open.is_none() => {
                    open = Some(i);
                    1
                }
                d => usize::try_from(d).ok()?,
            });
        }
        if let Some(open) = open {
            let rest = count(&shape)?;
            shape[open] = x.len().checked_div(rest)?;
        }
        x.reshaped(shape)
    }

    fn flatten(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let axis = self.int_or("axis", 1);
        let axis = if axis == x.shape.len() as i64 { x.shape.len() } else { axis_of(axis, x.shape.len())? };
        x.reshaped(vec![x.shape[..axis].iter().product(), x.shape[axis..].iter().product()])
    }

    fn squeeze(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let mut drop: Vec<bool> = x.shape.iter().map(|&d| d == 1).collect();
        if self.node.attribute("axes").is_some() || self.input(1).is_some() {
            let axes = self.list("axes", 1)?;
            drop.fill(false);
            for axis in axes {
                drop[axis_of(axis, x.shape.len()).filter(|&a| x.shape[a] == 1)?] = true;
            }
        }
        x.reshaped(x.shape.iter().zip(drop).filter(|(_, drop)| !drop).map(|(d, _)| *d).collect())
    }

    fn unsqueeze(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let axes = self.list("axes", 1)?;
        let mut new = vec![false; x.shape.len().checked_add(axes.len())?];
        for axis in axes {
            let axis = axis_of(axis, new.len())?;
            if std::mem::replace(&mut new[axis], true) {
                return None;
            }
        }
        let mut rest = x.shape.iter();
        x.reshaped(new.into_iter().map(|new| if new { Some(1) } else { rest.next().copied() }).collect::<Option<_>>()?)
    }

    fn transpose(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let rank = x.shape.len();
        let perm: Vec<usize> = match self.node.ints("perm") {
            Some(perm) => perm.iter().map(|&p| usize::try_from(p).ok().filter(|p| *p < rank)).collect::<Option<_>>()?,
            None => (0..rank).rev().collect(),
        };
        let mut sorted = perm.clone();
        sorted.sort_unstable();
        if sorted.into_iter().ne(0..rank) {
            return None;
        }
        let own = strides(&x.shape);
        let shape: Vec<usize> = perm.iter().map(|&p| x.shape[p]).collect();
        let steps: Vec<usize> = perm.iter().map(|&p| own[p]).collect();
        let from = affine(&shape, &signed(&steps), 0);
        x.pick(shape, &from)
    }

    fn slice(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let (starts, ends) = (self.list("starts", 1)?, self.list("ends", 2)?);
        let axes = match self.node.attribute("axes").is_some() || self.input(3).is_some() {
            true => self.list("axes", 3)?,
            false => (0..starts.len() as i64).collect(),
        };
        let steps = match self.input(4) {
            Some(steps) => steps.ints()?,
            None => vec![1; starts.len()],
        };
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return None;
        }
        let own = strides(&x.shape);
        let (mut shape, mut step, mut offset) = (x.shape.clone(), signed(&own), 0usize);
        let mut seen = vec![false; shape.len()];
        for i in 0..axes.len() {
            let axis = axis_of(axes[i], x.shape.len())?;
            if std::mem::replace(&mut seen[axis], true) {
                return None;
            }
            let (first, count) = slice_range(x.shape[axis] as i64, starts[i], ends[i], steps[i])?;
            shape[axis] = usize::try_from(count).ok()?;
            if count > 0 {
                offset += usize::try_from(first).ok()? * own[axis];
                // A lone element can have any step, also one that would overflow.
                step[axis] = if count > 1 { isize::try_from(steps[i]).ok()? * own[axis] as isize } else { 0 };
            }
        }
        let from = affine(&shape, &step, offset);
        x.pick(shape, &from)
    }

    fn concat(&self) -> Option<Tensor> {
        let parts = (0..self.inputs.len()).map(|i| self.input(i)).collect::<Option<Vec<_>>>()?;
        let first = *parts.first()?;
        let axis = self.axis("axis", 1, first.shape.len())?;
        let mut shape = first.shape.clone();
        shape[axis] = 0;
        for part in &parts {
            let fits = part.shape.len() == shape.len() && part.dtype == first.dtype;
            if !fits || (0..shape.len()).any(|i| i != axis && part.shape[i] != shape[i]) {
                return None;
            }
            shape[axis] = shape[axis].checked_add(part.shape[axis])?;
        }
        let total = count(&shape)?;
        let (outer, _, inner) = around(&shape, axis);
        macro_rules! join {
            ($variant:ident) => {{
                let mut all = Vec::with_capacity(total);
                for o in 0..outer {
                    for part in &parts {
                        let Data::$variant(v) = &part.data else { return None };
                        let run = part.shape[axis] * inner;
                        all.extend_from_slice(v.get(o * run..(o + 1) * run)?);
                    }
                }
                Data::$variant(all)
            }};
        }
        let data = match first.data {
            Data::F32(_) => join!(F32),
            Data::F64(_) => join!(F64),
            Data::I64(_) => join!(I64),
            Data::I32(_) => join!(I32),
            Data::I16(_) => join!(I16),
            Data::I8(_) => join!(I8),
            Data::U64(_) => join!(U64),
            Data::U32(_) => join!(U32),
            Data::U16(_) => join!(U16),
            Data::U8(_) => join!(U8),
            Data::Bool(_) => join!(Bool),
        };
        Tensor::new(first.dtype, shape, data)
    }

    fn split(&self) -> Option<Vec<Tensor>> {
        let x = self.input(0)?;
        let axis = self.axis("axis", 0, x.shape.len())?;
        let (n, parts) = (x.shape[axis], self.node.outputs.len());
        if parts == 0 {
            return None;
        }
        let sizes: Vec<usize> = if self.node.attribute("split").is_some() || self.input(1).is_some() {
            self.list("split", 1)?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?
        } else if n % parts == 0 {
            vec![n / parts; parts]
        } else if self.opset >= 18 {
            let chunk = n.div_ceil(parts);
            let mut sizes = vec![chunk; parts];
            sizes[parts - 1] = n.checked_sub(chunk * (parts - 1))?;
            sizes
        } else {
            return None;
        };
        if sizes.len() != parts || sizes.iter().try_fold(0usize, |s, d| s.checked_add(*d))? != n {
            return None;
        }
        let own = strides(&x.shape);
        let mut start = 0;
        let part = |size: usize| {
            let mut shape = x.shape.clone();
            shape[axis] = size;
            let from = affine(&shape, &signed(&own), start * own[axis]);
            start += size;
            x.pick(shape, &from)
        };
        sizes.into_iter().map(part).collect()
    }

    fn gather(&self) -> Option<Tensor> {
        let (x, indices) = (self.input(0)?, self.input(1)?);
        let axis = self.axis("axis", 0, x.shape.len())?;
        let (outer, n, inner) = around(&x.shape, axis);
        let shape: Vec<usize> =
            x.shape[..axis].iter().chain(&indices.shape).chain(&x.shape[axis + 1..]).copied().collect();
        let total = count(&shape)?;
        let picks = indices.ints()?.into_iter().map(|i| index_of(i, n)).collect::<Option<Vec<usize>>>()?;
        let mut from = Vec::with_capacity(total);
        for o in 0..outer {
            for pick in &picks {
                let start = (o * n + pick) * inner;
                from.extend(start..start + inner);
            }
        }
        x.pick(shape, &from)
    }

    fn gather_elements(&self) -> Option<Tensor> {
        let (x, indices) = (self.input(0)?, self.input(1)?);
        let axis = self.axis("axis", 0, x.shape.len())?;
        let from = self.element_targets(&x.shape, indices, axis)?;
        x.pick(indices.shape.clone(), &from)
    }

    /// Flat positions in a tensor of shape `shape` that GatherElements and ScatterElements address.
    fn element_targets(&self, shape: &[usize], indices: &Tensor, axis: usize) -> Option<Vec<usize>> {
        let inside = |i: usize| i == axis || indices.shape[i] <= shape[i];
        if indices.shape.len() != shape.len() || !(0..shape.len()).all(inside) {
            return None;
        }
        let own = strides(shape);
        let mut steps = signed(&own);
        steps[axis] = 0;
        let base = affine(&indices.shape, &steps, 0);
        let at = |(base, index): (usize, i64)| Some(base + index_of(index, shape[axis])? * own[axis]);
        base.into_iter().zip(indices.ints()?).map(at).collect()
    }

    /// Flat positions of the slices that the last axis of `indices` addresses, and the elements in each slice.
    fn slice_targets(shape: &[usize], indices: &Tensor) -> Option<(Vec<usize>, usize)> {
        let depth = *indices.shape.last()?;
        let inner: usize = shape.get(depth..)?.iter().product();
        let own = strides(shape);
        let ints = indices.ints()?;
        if depth == 0 {
            let slices = indices.shape[..indices.shape.len() - 1].iter().product();
            return Some((vec![0; slices], inner));
        }
        let at = |tuple: &[i64]| {
            let terms = tuple.iter().enumerate();
            terms.map(|(axis, &i)| Some(index_of(i, shape[axis])? * own[axis])).sum::<Option<usize>>()
        };
        Some((ints.chunks(depth).map(at).collect::<Option<_>>()?, inner))
    }

    fn gather_nd(&self) -> Option<Tensor> {
        let (x, indices) = (self.input(0)?, self.input(1)?);
        let batch = usize::try_from(self.int_or("batch_dims", 0)).ok()?;
        let (depth, front) = indices.shape.split_last()?;
        if batch > front.len() || x.shape.get(..batch)? != front.get(..batch)? {
            return None;
        }
        let item = x.shape.get(batch..)?;
        let shape: Vec<usize> = front.iter().chain(item.get(*depth..)?).copied().collect();
        let total = count(&shape)?;
        let (starts, inner) = Self::slice_targets(item, indices)?;
        let batches: usize = front[..batch].iter().product();
        let (per_batch, stride) = (starts.len().checked_div(batches.max(1))?, item.iter().product::<usize>());
        let mut from = Vec::with_capacity(total);
        for (i, start) in starts.into_iter().enumerate() {
            let start = start + i.checked_div(per_batch.max(1))? * stride;
            from.extend(start..start + inner);
        }
        x.pick(shape, &from)
    }

    fn scatter_nd(&self) -> Option<Tensor> {
        let (x, indices, updates) = (self.input(0)?, self.input(1)?, self.input(2)?);
        if !matches!(self.node.string("reduction"), None | Some("none")) {
            return None;
        }
        let (starts, inner) = Self::slice_targets(&x.shape, indices)?;
        if starts.len().checked_mul(inner)? != updates.len() {
            return None;
        }
        let to: Vec<usize> = starts.into_iter().flat_map(|s| s..s + inner).collect();
        scatter(x, &to, updates)
    }

    fn scatter_elements(&self) -> Option<Tensor> {
        let (x, indices, updates) = (self.input(0)?, self.input(1)?, self.input(2)?);
        if !matches!(self.node.string("reduction"), None | Some("none")) || indices.shape != updates.shape {
            return None;
        }
        let axis = self.axis("axis", 0, x.shape.len())?;
        scatter(x, &self.element_targets(&x.shape, indices, axis)?, updates)
    }

    fn pad(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let rank = x.shape.len();
        let pads = self.list("pads", 1)?;
        let axes: Vec<usize> = match self.input(3) {
            Some(axes) => axes.ints()?.into_iter().map(|a| axis_of(a, rank)).collect::<Option<_>>()?,
            None => (0..rank).collect(),
        };
        if pads.len() != axes.len() * 2 {
            return None;
        }
        let (mut before, mut shape) = (vec![0i64; rank], x.shape.clone());
        for (i, &axis) in axes.iter().enumerate() {
            let (begin, end) = (pads[i], pads[i + axes.len()]);
            before[axis] = begin;
            let size = i64::try_from(x.shape[axis]).ok()?.checked_add(begin)?.checked_add(end)?;
            shape[axis] = usize::try_from(size).ok()?;
        }
        let total = count(&shape)?;
        let mode = self.node.string("mode").unwrap_or("constant");
        // For each axis the source of each index; None is the fill value.
        let line = |axis: usize| -> Option<Vec<Option<usize>>> {
            let n = i64::try_from(x.shape[axis]).ok()?;
            let at = |i: usize| -> Option<Option<usize>> {
                let i = (i as i64).checked_sub(before[axis])?;
                let inside = (0..n).contains(&i);
                let from = match mode {
                    _ if inside => i,
                    "constant" => return Some(None),
                    _ if n == 0 => return None,
                    "edge" => i.clamp(0, n - 1),
                    "wrap" => i.rem_euclid(n),
                    "reflect" if n > 1 => {
                        let period = 2 * (n - 1);
                        let r = i.rem_euclid(period);
                        r.min(period - r)
                    }
                    _ => return None,
                };
                Some(usize::try_from(from).ok())
            };
            (0..shape[axis]).map(at).collect()
        };
        let lines = (0..rank).map(line).collect::<Option<Vec<_>>>()?;
        let own = strides(&x.shape);
        let mut from = vec![Some(0usize)];
        for axis in 0..rank {
            let step = |base: &Option<usize>, at: &Option<usize>| Some((*base)? + (*at)? * own[axis]);
            from = from.iter().flat_map(|base| lines[axis].iter().map(move |at| step(base, at))).collect();
        }
        if from.len() != total {
            return None;
        }
        let data = match self.input(2) {
            Some(fill) => {
                both_types!(&x.data, &fill.data, (v, w) => {
                    let fill = *w.first()?;
                    from.iter().map(|i| i.map_or(fill, |i| v[i])).collect()
                })
            }
            None => {
                let fill = self.node.float("value").filter(|_| self.opset < 11).unwrap_or(0.0);
                match &x.data {
                    Data::F32(v) => Data::F32(from.iter().map(|i| i.map_or(fill, |i| v[i])).collect()),
                    Data::F64(v) => Data::F64(from.iter().map(|i| i.map_or(f64::from(fill), |i| v[i])).collect()),
                    _ if fill != 0.0 => return None,
                    other => {
                        same_type!(other, v => from.iter().map(|i| i.map_or(Default::default(), |i| v[i])).collect())
                    }
                }
            }
        };
        Tensor::new(x.dtype, shape, data)
    }

    fn expand(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let target: Vec<usize> =
            self.input(1)?.ints()?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
        x.spread(&broadcast(&x.shape, &target)?)
    }

    fn tile(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let repeats: Vec<usize> =
            self.input(1)?.ints()?.into_iter().map(usize::try_from).collect::<Result<_, _>>().ok()?;
        if repeats.len() != x.shape.len() {
            return None;
        }
        let shape: Vec<usize> = x.shape.iter().zip(&repeats).map(|(d, r)| d.checked_mul(*r)).collect::<Option<_>>()?;
        count(&shape)?;
        // Each axis as [repeat, size], the repeats with stride 0.
        let own = strides(&x.shape);
        let split: Vec<usize> = x.shape.iter().zip(&repeats).flat_map(|(d, r)| [*r, *d]).collect();
        let steps: Vec<isize> = own.iter().flat_map(|s| [0, *s as isize]).collect();
        x.pick(shape, &affine(&split, &steps, 0))
    }

    fn trilu(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let upper = self.int_or("upper", 1) != 0;
        let k = match self.input(1) {
            Some(k) => *k.ints()?.first()?,
            None => 0,
        };
        let [.., rows, columns] = x.shape.as_slice() else { return None };
        let (rows, columns) = (*rows, *columns);
        let keep = |flat: usize| {
            let (row, column) = (flat / columns % rows, flat % columns);
            let above = (column as i64) - (row as i64);
            if upper { above >= k } else { above <= k }
        };
        let data = same_type!(&x.data, v => {
            v.iter().enumerate().map(|(i, v)| if keep(i) { *v } else { Default::default() }).collect()
        });
        Tensor::new(x.dtype, x.shape.clone(), data)
    }

    fn one_hot(&self) -> Option<Tensor> {
        let (indices, depth, values) = (self.input(0)?, self.input(1)?, self.input(2)?);
        let depth = usize::try_from(*depth.ints()?.first()?).ok()?;
        let axis = axis_of(self.int_or("axis", -1), indices.shape.len() + 1)?;
        let mut shape = indices.shape.clone();
        shape.insert(axis, depth);
        let total = count(&shape)?;
        let inner: usize = shape[axis + 1..].iter().product();
        let hot = indices.ints()?;
        let mut from = vec![0usize; total];
        for (i, &index) in hot.iter().enumerate() {
            // An index out of range leaves its row off.
            if let Some(at) = index_of(index, depth) {
                from[(i / inner * depth + at) * inner + i % inner] = 1;
            }
        }
        if values.len() != 2 {
            return None;
        }
        values.pick(shape, &from)
    }

    fn depth_space(&self) -> Option<Tensor> {
        let x = self.input(0)?;
        let [n, c, h, w] = *x.shape.as_slice() else { return None };
        let b = usize::try_from(self.node.int("blocksize")?).ok().filter(|b| *b > 0)?;
        let area = b.checked_mul(b)?;
        let (split, perm, shape): ([usize; 6], [usize; 6], _) = if self.node.op == "SpaceToDepth" {
            if h % b != 0 || w % b != 0 {
                return None;
            }
            ([n, c, h / b, b, w / b, b], [0, 3, 5, 1, 2, 4], vec![n, c.checked_mul(area)?, h / b, w / b])
        } else {
            if c % area != 0 {
                return None;
            }
            let shape = vec![n, c / area, h.checked_mul(b)?, w.checked_mul(b)?];
            match self.node.string("mode").unwrap_or("DCR") {
                "CRD" => ([n, c / area, b, b, h, w], [0, 1, 4, 2, 5, 3], shape),
                _ => ([n, b, b, c / area, h, w], [0, 3, 4, 1, 5, 2], shape),
            }
        };
        let own = strides(&split);
        let moved = perm.map(|p| split[p]);
        let steps: Vec<isize> = perm.iter().map(|&p| own[p] as isize).collect();
        x.pick(shape, &affine(&moved, &steps, 0))
    }
}

/// `x` with `updates` written to the flat positions `to`, in order.
fn scatter(x: &Tensor, to: &[usize], updates: &Tensor) -> Option<Tensor> {
    if to.len() != updates.len() || to.iter().any(|&i| i >= x.len()) || x.dtype == DType::String {
        return None;
    }
    let data = both_types!(&x.data, &updates.data, (v, w) => {
        let mut all = v.clone();
        for (&i, update) in to.iter().zip(w) {
            all[i] = *update;
        }
        all
    });
    Tensor::new(x.dtype, x.shape.clone(), data)
}
