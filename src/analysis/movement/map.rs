//! The index map of a tensor that is nothing but moved elements of other tensors.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::ir::ValueId;

/// The table entry of an element that is zero and comes from no source.
pub const HOLE: i64 = i64::MIN;

/// Entries that one table may have. Beyond it a map is given up; the largest Swin at 384 x 384 needs 1 % of it.
const MAX_TABLE: usize = 1 << 20;
/// Elements of the largest tensor that is looked at.
const MAX_ELEMENTS: i64 = 1 << 40;

/// A tensor whose elements are read; the sources of one map share an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub value: ValueId,
    /// Address of its first element.
    pub base: i64,
    /// Number of its elements.
    pub len: i64,
}

/// Part of an axis: an index over it adds `stride` to the address and `table` to the place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Factor {
    size: i64,
    stride: i64,
    table: i64,
}

impl Factor {
    /// The outer part of this size, which divides that of the factor.
    fn outer(self, size: i64) -> Self {
        let inner = self.size / size;
        Self { size, stride: self.stride * inner, table: self.table * inner }
    }
}

/// Where each element of a tensor comes from.
///
/// Every axis is a product of factors, the outermost first. With one index over every factor, the element's address is
/// `table[table_offset + sum of index * factor.table] + offset + sum of index * factor.stride`, or it is a hole. Reshape,
/// Transpose and Slice only regroup and rescale factors; the table grows at Concat, Pad and Gather, by no more than the
/// axes they work on. So an axis that a chain never touches (images, channels) costs nothing, however long.
#[derive(Clone, Debug)]
pub struct Map {
    sources: Arc<[Source]>,
    axes: Vec<Vec<Factor>>,
    offset: i64,
    /// At least one entry; row major over the factors that have a `table` step, but for slicing and permuting.
    table: Arc<[i64]>,
    table_offset: i64,
}

/// The indices that are kept of an axis.
pub(super) enum Pick<'a> {
    Range { start: i64, step: i64, count: i64 },
    List(&'a [i64]),
}

/// Sizes of all axes, multiplied; `None` for an empty tensor, a negative size, or one too large to look at.
pub(super) fn elements(shape: &[i64]) -> Option<i64> {
    let product = shape.iter().try_fold(1i64, |n, &d| if d > 0 { n.checked_mul(d) } else { None })?;
    (product <= MAX_ELEMENTS).then_some(product)
}

impl Map {
    /// The map of `sources[index]` itself.
    pub(super) fn of_source(sources: &Arc<[Source]>, index: usize, shape: &[i64]) -> Option<Self> {
        let source = sources.get(index)?;
        if elements(shape)? != source.len {
            return None;
        }
        let mut stride = 1;
        let mut axes: Vec<Vec<Factor>> = vec![];
        for &size in shape.iter().rev() {
            axes.push(if size == 1 { vec![] } else { vec![Factor { size, stride, table: 0 }] });
            stride *= size;
        }
        axes.reverse();
        Some(Self { sources: sources.clone(), axes, offset: source.base, table: [0].into(), table_offset: 0 })
    }

    fn holes(&self, shape: &[i64]) -> Option<Self> {
        elements(shape)?;
        let axis = |&size: &i64| if size == 1 { vec![] } else { vec![Factor { size, stride: 0, table: 0 }] };
        let axes = shape.iter().map(axis).collect();
        Some(Self { sources: self.sources.clone(), axes, offset: 0, table: [HOLE].into(), table_offset: 0 })
    }

    /// Entries of the table: what the map costs.
    pub(super) fn cost(&self) -> usize {
        self.table.len()
    }

    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    pub fn shape(&self) -> Vec<i64> {
        self.axes.iter().map(|factors| factors.iter().map(|f| f.size).product()).collect()
    }

    /// The source and the place in it that an address means.
    pub fn locate(&self, address: i64) -> Option<(ValueId, i64)> {
        let source = self.sources.iter().find(|s| (s.base..s.base + s.len).contains(&address))?;
        Some((source.value, address - source.base))
    }

    // ---- operations ----

    /// The same elements in the same order with other axes.
    pub fn reshape(&self, shape: &[i64]) -> Option<Self> {
        if elements(shape)? != self.shape().iter().product::<i64>() {
            return None;
        }
        let mut map = self.clone();
        map.regroup(shape, false)?;
        Some(map)
    }

    pub(super) fn transpose(mut self, perm: &[usize]) -> Option<Self> {
        let mut seen = vec![false; self.axes.len()];
        if perm.len() != seen.len() {
            return None;
        }
        for &axis in perm {
            if std::mem::replace(seen.get_mut(axis)?, true) {
                return None;
            }
        }
        self.axes = perm.iter().map(|&axis| self.axes[axis].clone()).collect();
        Some(self)
    }

    /// Keeps the picked indices of an axis, which must lie inside it.
    pub(super) fn take(mut self, axis: usize, pick: &Pick<'_>) -> Option<Self> {
        let size = *self.shape().get(axis)?;
        let inside = |i: i64| (0..size).contains(&i);
        let (start, step, count) = match *pick {
            Pick::Range { start, step, count } => (start, step, count),
            Pick::List(list) => {
                if list.is_empty() || !list.iter().all(|&i| inside(i)) {
                    return None;
                }
                let step = if list.len() > 1 { list[1] - list[0] } else { 1 };
                if list.windows(2).any(|w| w[1] - w[0] != step) {
                    self.solidify(axis)?;
                    let factors = &mut self.axes[axis];
                    if factors.is_empty() {
                        factors.push(Factor { size: 1, stride: 0, table: 0 });
                    }
                    self.tabulate(|a, _| a == axis, |a, _| (a == axis).then_some(list))?;
                    return Some(self);
                }
                (list[0], step, list.len() as i64)
            }
        };
        if count < 1 {
            return None;
        }
        let last = step.checked_mul(count - 1)?.checked_add(start)?;
        if !inside(start) || !inside(last) {
            return None;
        }
        if (start, step, count) == (0, 1, size) {
            return Some(self);
        }
        self.solidify(axis)?;
        let factor = self.axes[axis].first().copied().unwrap_or(Factor { size: 1, stride: 0, table: 0 });
        self.offset += start * factor.stride;
        self.table_offset += start * factor.table;
        let strides = if count == 1 { (0, 0) } else { (step * factor.stride, step * factor.table) };
        self.axes[axis] = match count {
            1 => vec![],
            size => vec![Factor { size, stride: strides.0, table: strides.1 }],
        };
        Some(self)
    }

    /// Joins maps over the same sources along an axis.
    pub(super) fn concat(mut parts: Vec<Self>, axis: usize) -> Option<Self> {
        if parts.len() == 1 {
            return parts.pop();
        }
        // One factorization for all parts, so that their factors correspond.
        let shapes: Vec<Vec<i64>> = parts.iter().map(Self::shape).collect();
        let rank = shapes.first()?.len();
        if axis >= rank || shapes.iter().any(|s| s.len() != rank) {
            return None;
        }
        let mut common: Vec<Vec<i64>> = vec![];
        for j in (0..rank).filter(|&j| j != axis) {
            if shapes.iter().any(|s| s[j] != shapes[0][j]) {
                return None;
            }
            common.push(refinement(&parts, j, shapes[0][j]));
        }
        common.insert(axis, vec![]);
        for (part, shape) in parts.iter_mut().zip(&shapes) {
            common[axis] = vec![shape[axis]];
            part.refactor(&common)?;
        }
        let all_holes = |m: &Self| m.table.len() == 1 && m.table[0] == HOLE;
        let real: Vec<usize> = (0..parts.len()).filter(|&i| !all_holes(&parts[i])).collect();
        let Some(&first) = real.first() else {
            let mut shape = shapes[0].clone();
            shape[axis] = shapes.iter().map(|s| s[axis]).sum();
            return parts[0].holes(&shape);
        };
        for part in parts.iter_mut() {
            let slot = part.axes.get_mut(axis)?;
            if slot.is_empty() {
                slot.push(Factor { size: 1, stride: 0, table: 0 });
            }
        }
        let shared = |a: usize, i: usize| {
            let of = |p: usize| parts[p].axes[a][i];
            a != axis && real.iter().all(|&p| of(p).table == 0 && of(p).stride == of(first).stride)
        };
        let picked: Vec<Vec<bool>> =
            parts[0].axes.iter().enumerate().map(|(a, f)| (0..f.len()).map(|i| !shared(a, i)).collect()).collect();
        // Holes take any stride; make them follow the others'.
        let model = parts[first].axes.clone();
        for part in parts.iter_mut().filter(|p| all_holes(p)) {
            for (a, factors) in part.axes.iter_mut().enumerate() {
                for (i, f) in factors.iter_mut().enumerate().filter(|(i, _)| !picked[a][*i]) {
                    f.stride = model[a][i].stride;
                }
            }
        }
        for part in parts.iter_mut() {
            part.tabulate(|a, i| picked[a][i], |_, _| None)?;
        }
        let sizes: Vec<i64> = parts.iter().map(|p| p.axes[axis][0].size).collect();
        let rows = parts[0].axes[..axis].iter().zip(&picked).flat_map(|(f, p)| f.iter().zip(p));
        let rows: i64 = rows.filter(|(_, picked)| **picked).map(|(f, _)| f.size).product();
        let total: usize = parts.iter().map(|p| p.table.len()).sum();
        if total > MAX_TABLE {
            return None;
        }
        let mut table = Vec::with_capacity(total);
        for row in 0..rows as usize {
            for part in &parts {
                let chunk = part.table.len() / rows as usize;
                table.extend_from_slice(&part.table[row * chunk..(row + 1) * chunk]);
            }
        }
        let mut joined = parts.swap_remove(first);
        joined.axes[axis][0].size = sizes.iter().sum();
        joined.table = table.into();
        joined.lay_out(|a, i| picked[a][i]);
        joined.simplify()?;
        Some(joined)
    }

    /// Adds holes before and after an axis; negative widths cut.
    pub(super) fn pad(self, axis: usize, before: i64, after: i64) -> Option<Self> {
        let mut shape = self.shape();
        let size = *shape.get(axis)?;
        let (cut, cut_after) = (before.min(0).checked_neg()?, after.min(0).checked_neg()?);
        let count = size.checked_sub(cut)?.checked_sub(cut_after)?;
        let inner = self.take(axis, &Pick::Range { start: cut, step: 1, count })?;
        let mut parts = vec![];
        for width in [before, after] {
            if width > 0 {
                shape[axis] = width;
                parts.push(inner.holes(&shape)?);
            }
        }
        parts.insert(usize::from(before > 0), inner);
        Self::concat(parts, axis)
    }

    /// Repeats axes of size 1, and missing leading axes, as broadcasting does.
    pub(super) fn expand(mut self, shape: &[i64]) -> Option<Self> {
        elements(shape)?;
        let missing = shape.len().checked_sub(self.axes.len())?;
        self.axes.splice(0..0, vec![vec![]; missing]);
        let have = self.shape();
        for (axis, (&want, have)) in self.axes.iter_mut().zip(shape.iter().zip(have)) {
            match (have, want) {
                (have, want) if have == want => {}
                (1, size) => *axis = vec![Factor { size, stride: 0, table: 0 }],
                _ => return None,
            }
        }
        Some(self)
    }

    pub(super) fn tile(mut self, repeats: &[i64]) -> Option<Self> {
        if repeats.len() != self.axes.len() {
            return None;
        }
        let shape: Option<Vec<i64>> = self.shape().iter().zip(repeats).map(|(d, r)| d.checked_mul(*r)).collect();
        elements(&shape?)?;
        for (axis, &size) in self.axes.iter_mut().zip(repeats) {
            if size > 1 {
                axis.insert(0, Factor { size, stride: 0, table: 0 });
            }
        }
        Some(self)
    }
}

/// Regrouping of factors, and the table.
impl Map {
    /// Gives the map the axes `shape`, whose product must be its number of elements. With `solid` every axis becomes a
    /// single factor. Factors that do not divide the new axes are joined by way of the table, but only those parts of them
    /// that have to be: what a neighbour steps over as one may be long.
    fn regroup(&mut self, shape: &[i64], solid: bool) -> Option<()> {
        loop {
            let mut flat = merged(self.axes.iter().flatten().copied());
            let Uneven { mut at, left, need } = match split(&flat, shape, solid) {
                Ok(axes) => {
                    self.axes = axes;
                    return Some(());
                }
                Err(uneven) => uneven?,
            };
            if at + 1 >= flat.len() {
                return None;
            }
            // The least that makes an axis of what is left of the factor; else all of the next one.
            let part = need / gcd(left, need);
            if flat[at + 1].size % part == 0 {
                cut(&mut flat, at + 1, part);
            }
            if left < flat[at].size {
                let outer = flat[at].size / left;
                cut(&mut flat, at, outer);
                at += 1;
            }
            self.axes = vec![flat];
            self.tabulate(|_, i| i == at || i == at + 1, |_, _| None)?;
        }
    }

    /// Gives every axis the factor sizes listed for it (sizes of 1 leave no factor).
    fn refactor(&mut self, sizes: &[Vec<i64>]) -> Option<()> {
        self.regroup(&sizes.concat(), true)?;
        let mut factors = std::mem::take(&mut self.axes).into_iter();
        self.axes = sizes.iter().map(|axis| factors.by_ref().take(axis.len()).flatten().collect()).collect();
        Some(())
    }

    /// Makes an axis a single factor, or none where its size is 1.
    fn solidify(&mut self, axis: usize) -> Option<()> {
        if self.axes[axis].len() <= 1 {
            return Some(());
        }
        let mut sizes: Vec<Vec<i64>> = self.axes.iter().map(|f| f.iter().map(|f| f.size).collect()).collect();
        sizes[axis] = vec![sizes[axis].iter().product()];
        self.refactor(&sizes)
    }

    /// Writes a new table, row major over the factors that `pick(axis, factor)` names and those that have a table step
    /// already. Where `list(axis, factor)` is given, it says which indices of the factor are kept, in order.
    fn tabulate<'a>(
        &mut self,
        pick: impl Fn(usize, usize) -> bool,
        list: impl Fn(usize, usize) -> Option<&'a [i64]>,
    ) -> Option<()> {
        let mut places = vec![(self.offset, self.table_offset)];
        for (a, factors) in self.axes.iter_mut().enumerate() {
            for (i, f) in factors.iter_mut().enumerate() {
                if f.table == 0 && !pick(a, i) {
                    continue;
                }
                let list = list(a, i);
                let count = list.map_or(f.size, |l| l.len() as i64);
                let total = places.len().checked_mul(usize::try_from(count).ok()?)?;
                if total > MAX_TABLE {
                    return None;
                }
                let mut next = Vec::with_capacity(total);
                for &(address, place) in &places {
                    let at = |index: i64| (address + index * f.stride, place + index * f.table);
                    match list {
                        Some(list) => next.extend(list.iter().map(|&index| at(index))),
                        None => next.extend((0..f.size).map(at)),
                    }
                }
                places = next;
                // The step is set by `lay_out`; not 0, so that the factor is known to be in the table.
                *f = Factor { size: count, stride: 0, table: 1 };
            }
        }
        let entry = |(address, place): (i64, i64)| match self.table[place as usize] {
            HOLE => HOLE,
            entry => entry + address,
        };
        self.table = places.into_iter().map(entry).collect();
        (self.offset, self.table_offset) = (0, 0);
        self.lay_out(|_, _| false);
        Some(())
    }

    /// Sets the table steps, row major over the factors that have one or that `pick` names.
    fn lay_out(&mut self, pick: impl Fn(usize, usize) -> bool) {
        let mut step = 1;
        for (a, factors) in self.axes.iter_mut().enumerate().rev() {
            for (i, f) in factors.iter_mut().enumerate().rev() {
                if f.table != 0 || pick(a, i) {
                    f.table = step;
                    step *= f.size;
                }
            }
        }
    }

    /// Turns the factors along which the table is linear into strides.
    fn simplify(&mut self) -> Option<()> {
        self.linearize(false)
    }

    /// As [`Map::simplify`]; with `pieces` a factor is also cut in two where the table is linear along the inner part alone, such as that
    /// of two pieces joined.
    fn linearize(&mut self, pieces: bool) -> Option<()> {
        if self.table.len() == 1 {
            return Some(());
        }
        self.tabulate(|_, _| false, |_, _| None)?;
        for a in 0..self.axes.len() {
            let mut i = 0;
            while let Some(&f) = self.axes[a].get(i) {
                i += 1;
                if f.table == 0 {
                    continue;
                }
                let step = f.table as usize;
                // The longest: where a shorter one is too short, it goes on in the same steps.
                let mut lengths = (1..=f.size).rev().filter(|n| f.size % n == 0 && (*n == f.size || pieces && *n > 1));
                let found = lengths.find_map(|n| Some((n, linear(&self.table, step, n as usize)?)));
                let Some((size, delta)) = found else { continue };
                let kept = self.table.iter().enumerate().filter(|(at, _)| (at / step).is_multiple_of(size as usize));
                self.table = kept.map(|(_, &entry)| entry).collect();
                self.axes[a][i - 1] = Factor { size, stride: delta, table: 0 };
                if size < f.size {
                    // The outer part is next.
                    i -= 1;
                    self.axes[a].insert(i, Factor { size: f.size / size, stride: 0, table: f.table });
                }
                self.lay_out(|_, _| false);
            }
        }
        Some(())
    }

    // ---- queries ----

    /// The address of every element, or [`HOLE`]; see [`Map::locate`]. `None` where there are too many.
    pub fn addresses(&self) -> Option<Vec<i64>> {
        let mut map = self.clone();
        map.tabulate(|_, _| true, |_, _| None)?;
        Some(map.table.to_vec())
    }

    /// The map as strides over one source, where that is what it is.
    pub fn affine(&self) -> Option<Affine> {
        let mut map = self.clone();
        map.linearize(true)?;
        let &[entry] = &map.table[..] else { return None };
        if entry == HOLE {
            return None;
        }
        let (source, offset) = self.locate(entry + map.offset)?;
        let axes = merged(map.axes.into_iter().flatten()).into_iter().map(|f| (f.size, f.stride)).collect();
        Some(Affine { source, offset, axes })
    }

    /// The map at the granularity of runs of `run` elements, where every one of `images` equal parts of the tensor
    /// reads its own part of the one source, all in the same way.
    ///
    /// This is what proves that a chain acts per image.
    pub fn per_image(&self, images: i64, run: i64) -> Option<PerImage> {
        let total = elements(&self.shape())?;
        if images < 1 || run < 1 || total % images.checked_mul(run)? != 0 {
            return None;
        }
        let mut map = self.clone();
        map.simplify()?;
        // Not as solid axes: joining the factors inside an image would draw those of the images into the table.
        map.regroup(&[images, total / images / run, run], false)?;
        map.simplify()?;
        let whole = |axis: usize| merged(map.axes[axis].iter().copied());
        let (outer, inner) = (whole(0), whole(2));
        let one_run = |f: &[Factor]| f.len() <= 1 && f.iter().all(|f| f.table == 0);
        if !one_run(&outer) || !one_run(&inner) || inner.first().is_some_and(|f| f.stride != 1) {
            return None;
        }
        let stride = outer.first().map(|f| f.stride);
        map.tabulate(|a, _| a == 1, |_, _| None)?;
        let first = map.table.iter().find(|e| **e != HOLE)?;
        let source = *self.sources.iter().find(|s| (s.base..s.base + s.len).contains(first))?;
        let image = source.len / images;
        if source.len % images != 0 || stride.is_some_and(|s| s != image) {
            return None;
        }
        let mut starts = map.table.to_vec();
        for start in starts.iter_mut().filter(|s| **s != HOLE) {
            *start -= source.base;
            if *start < 0 || *start + run > image {
                return None;
            }
        }
        Some(PerImage { source: source.value, image, run, starts })
    }
}

/// A strided view of a source: element `(i0, i1, ...)` is the source's element `offset + sum of i * stride`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affine {
    pub source: ValueId,
    /// In elements.
    pub offset: i64,
    /// Size and stride, outermost first; adjacent axes that form one run are merged, axes of size 1 left out.
    axes: Vec<(i64, i64)>,
}

impl Affine {
    /// The strides in elements when the view's elements, in their order, are given the axes `sizes`. An axis of size 1
    /// has stride 0. `None` where the view has no strides over these axes, or another number of elements.
    pub fn strides(&self, sizes: &[i64]) -> Option<Vec<i64>> {
        let factors = self.axes.iter().map(|&(size, stride)| Factor { size, stride, table: 0 });
        if elements(sizes)? != factors.clone().map(|f| f.size).product::<i64>() {
            return None;
        }
        let axes = split(&merged(factors), sizes, true).ok()?;
        Some(axes.iter().map(|f| f.first().map_or(0, |f| f.stride)).collect())
    }

    /// The axes of the source, cut as the view needs them, and which of them each axis of the view is; where the view has each of
    /// the first elements of the source once.
    pub fn permutation(&self) -> Option<(Vec<i64>, Vec<usize>)> {
        let mut order: Vec<usize> = (0..self.axes.len()).collect();
        order.sort_unstable_by_key(|&i| Reverse(self.axes[i].1));
        // Elements of the axes further in, over which an axis has to step.
        let mut inner = 1;
        for &i in order.iter().rev() {
            let (size, stride) = self.axes[i];
            if stride != inner {
                return None;
            }
            inner *= size;
        }
        let mut perm = vec![0; order.len()];
        for (place, &i) in order.iter().enumerate() {
            perm[i] = place;
        }
        (self.offset == 0).then(|| (order.iter().map(|&i| self.axes[i].0).collect(), perm))
    }

    /// Whether the view has these strides over these axes; an axis of size 1 may have any.
    pub fn is(&self, sizes: &[i64], strides: &[i64]) -> bool {
        sizes.len() == strides.len()
            && self
                .strides(sizes)
                .is_some_and(|found| found.iter().zip(strides).zip(sizes).all(|((f, s), size)| *size == 1 || f == s))
    }
}

/// The map of one image; see [`Map::per_image`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerImage {
    pub source: ValueId,
    /// Elements of one image of the source.
    pub image: i64,
    /// Elements that stay together.
    pub run: i64,
    /// For every run of the output image its first element in the source image, or [`HOLE`].
    pub starts: Vec<i64>,
}

/// Without factors of size 1, and with neighbours joined where they step as one.
fn merged(factors: impl Iterator<Item = Factor>) -> Vec<Factor> {
    let mut out: Vec<Factor> = vec![];
    for f in factors.filter(|f| f.size != 1) {
        match out.last_mut() {
            Some(outer) if outer.stride == f.stride * f.size && outer.table == f.table * f.size => {
                *outer = Factor { size: outer.size * f.size, ..f };
            }
            _ => out.push(f),
        }
    }
    out
}

/// A factor that cannot be distributed over axes by itself.
struct Uneven {
    /// Its place among the factors.
    at: usize,
    /// The size of what is left of it, its inner part.
    left: i64,
    /// What the axis still needs, of which that is no part.
    need: i64,
}

/// Distributes factors over axes, splitting them where that comes out even. `Err` is the factor that has to be joined with
/// the next one first, or none where there are too few factors.
fn split(flat: &[Factor], shape: &[i64], solid: bool) -> Result<Vec<Vec<Factor>>, Option<Uneven>> {
    let mut rest: VecDeque<(usize, Factor)> = flat.iter().copied().enumerate().collect();
    let mut axes = Vec::with_capacity(shape.len());
    for &size in shape {
        let (mut need, mut axis) = (size, vec![]);
        while need > 1 {
            let (at, f) = rest.pop_front().ok_or(None)?;
            if f.size == need || (f.size < need && need % f.size == 0 && !solid) {
                need /= f.size;
                axis.push(f);
            } else if f.size > need && f.size % need == 0 {
                let inner = f.size / need;
                axis.push(f.outer(need));
                rest.push_front((at, Factor { size: inner, ..f }));
                need = 1;
            } else {
                return Err(Some(Uneven { at, left: f.size, need }));
            }
        }
        axes.push(axis);
    }
    Ok(axes)
}

/// Cuts a factor into an outer one of the size `outer`, which divides it, and an inner one.
fn cut(flat: &mut Vec<Factor>, at: usize, outer: i64) {
    let f = flat[at];
    if outer < f.size {
        flat.splice(at..=at, [f.outer(outer), Factor { size: f.size / outer, ..f }]);
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Factor sizes for axis `j` that suit all parts, or else the axis as one.
fn refinement(parts: &[Map], j: usize, size: i64) -> Vec<i64> {
    let mut bounds = vec![1, size];
    for part in parts {
        let mut inner = 1;
        for f in part.axes[j].iter().rev() {
            inner *= f.size;
            bounds.push(inner);
        }
    }
    bounds.sort_unstable();
    bounds.dedup();
    if bounds.windows(2).any(|w| w[1] % w[0] != 0) {
        return vec![size];
    }
    bounds.windows(2).map(|w| w[1] / w[0]).rev().collect()
}

/// The difference between neighbours along one axis of a table, where it is the same everywhere.
fn linear(table: &[i64], step: usize, size: usize) -> Option<i64> {
    let mut delta = None;
    for at in 0..table.len() - step {
        if at / step % size + 1 == size {
            continue;
        }
        match (table[at], table[at + step]) {
            (HOLE, HOLE) => {}
            (HOLE, _) | (_, HOLE) => return None,
            (a, b) if *delta.get_or_insert(b - a) != b - a => return None,
            _ => {}
        }
    }
    Some(delta.unwrap_or(0))
}
