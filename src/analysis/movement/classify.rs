//! The movements of vision transformers, recognised by their maps.
//!
//! Every function here reads the parameters (grid, window, shift, order) off the map of one image and then checks all
//! tokens against the definition in `docs/ops.md`. Shapes seen on the way only decide between parameters that give the
//! same map, such as those of a map that is a single window.

use std::fmt;

use super::map::{HOLE, PerImage};
use super::{Region, Walk};
use crate::ir::{Dim, Graph, ValueId};

/// Sizes of a token map or a window, `[vertical, horizontal]`.
pub type Grid = [i64; 2];

/// A window map: which token of an image is which of a window. See "The window map" in `docs/ops.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    pub grid: Grid,
    pub window: Grid,
    pub shift: Grid,
    /// Where the windows do not divide the grid: whether it is rolled before it is padded. `false` where both are the same.
    pub pad_after_roll: bool,
}

/// What a movement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing moves; only the axes may change.
    Identity,
    CyclicShift {
        grid: Grid,
        shift: Grid,
    },
    WindowPartition(Windows),
    WindowReverse(Windows),
    /// 2x2 neighbourhoods onto the channel axis; `order` is the quadrant (`2 * dy + dx`) of each channel block.
    PatchMerge {
        grid: Grid,
        order: [i64; 4],
    },
    /// Patches of a map, none overlapping, cut out for further work.
    Unfold {
        kernel: Grid,
    },
}

/// How a map differs from the nearest map of the class that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub expected: String,
    pub found: String,
}

/// Sizes that occur in the shapes of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub grids: Vec<Grid>,
    pub windows: Vec<Grid>,
}

impl Windows {
    /// The grid with its padding.
    pub fn padded(&self) -> Grid {
        [0, 1].map(|a| (self.grid[a] + self.window[a] - 1) / self.window[a] * self.window[a])
    }

    /// Windows of an image, `[down, across]`.
    pub fn counts(&self) -> Grid {
        let padded = self.padded();
        [0, 1].map(|a| padded[a] / self.window[a])
    }

    /// Windows of an image.
    pub fn count(&self) -> i64 {
        self.counts().iter().product()
    }

    /// Tokens of a window.
    pub fn tokens(&self) -> i64 {
        self.window.iter().product()
    }

    /// Whether every token stays where it is: one window, not shifted.
    pub fn is_identity(&self) -> bool {
        self.grid == self.window && self.shift == [0, 0]
    }

    /// The length along axis `a` that the shift goes around.
    fn cycle(&self, a: usize) -> i64 {
        if self.pad_after_roll { self.grid[a] } else { self.padded()[a] }
    }

    /// The token of the image that is token `at % tokens` of window `at / tokens`; `None` in the padding.
    pub fn source(&self, at: i64) -> Option<i64> {
        let (window, token) = (at / self.tokens(), at % self.tokens());
        let across = self.counts()[1];
        let p = [
            window / across * self.window[0] + token / self.window[1],
            window % across * self.window[1] + token % self.window[1],
        ];
        if self.pad_after_roll && (p[0] >= self.grid[0] || p[1] >= self.grid[1]) {
            return None;
        }
        let s = [0, 1].map(|a| (p[a] + self.shift[a]) % self.cycle(a));
        (s[0] < self.grid[0] && s[1] < self.grid[1]).then_some(s[0] * self.grid[1] + s[1])
    }

    /// Where the token `at` of the image is among the tokens of its windows.
    pub fn place(&self, at: i64) -> i64 {
        let s = [at / self.grid[1], at % self.grid[1]];
        let p = [0, 1].map(|a| (s[a] - self.shift[a]).rem_euclid(self.cycle(a)));
        let window = p[0] / self.window[0] * self.counts()[1] + p[1] / self.window[1];
        window * self.tokens() + p[0] % self.window[0] * self.window[1] + p[1] % self.window[1]
    }

    /// The same map, with `pad_after_roll` only where it matters.
    fn canonical(self) -> Self {
        let same = |a: usize| self.grid[a] % self.window[a] == 0 || self.shift[a] == 0;
        Self { pad_after_roll: self.pad_after_roll && !(same(0) && same(1)), ..self }
    }
}

impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([h, w], [wh, ww], [sh, sw]) = (self.grid, self.window, self.shift);
        write!(f, "{h}x{w} tokens in {wh}x{ww} windows")?;
        if self.shift != [0, 0] {
            write!(f, ", shifted by {sh},{sw}")?;
        }
        if self.pad_after_roll {
            write!(f, ", padded after the shift")?;
        }
        Ok(())
    }
}

/// The sizes in the shapes of a region that may be those of a grid or a window.
pub fn hints(graph: &Graph, region: &Region) -> Hints {
    let mut hints = Hints::default();
    let outputs = region.nodes.iter().filter_map(|&n| graph.node(n).output(0));
    for value in region.sources.iter().copied().chain(outputs) {
        let shape = graph.shape(value).unwrap_or_default();
        match shape.iter().map(Dim::int).collect::<Vec<_>>()[..] {
            [_, Some(h), Some(w), Some(_)] => push(&mut hints.grids, [h, w]),
            [_, Some(a), Some(b), Some(c), Some(d), Some(_)] => {
                // [B, H/wh, wh, W/ww, ww, C], or [B, H/wh, W/ww, wh, ww, C].
                push(&mut hints.windows, [b, d]);
                push(&mut hints.windows, [c, d]);
                if let (Some(h), Some(w)) = (a.checked_mul(b), c.checked_mul(d)) {
                    push(&mut hints.grids, [h, w]);
                }
            }
            _ => {}
        }
    }
    hints
}

fn push(list: &mut Vec<Grid>, grid: Grid) {
    if grid.iter().all(|d| *d > 0) && !list.contains(&grid) {
        list.push(grid);
    }
}

/// Ways to write `area` as a product, hinted ones first, then the squarest.
fn rectangles(area: i64, hinted: &[Grid]) -> Vec<Grid> {
    let mut out: Vec<Grid> = hinted.iter().copied().filter(|g| g[0].checked_mul(g[1]) == Some(area)).collect();
    let root = (1..).take_while(|d| d * d <= area);
    for small in root.filter(|d| area % d == 0).collect::<Vec<_>>().into_iter().rev() {
        push(&mut out, [small, area / small]);
        push(&mut out, [area / small, small]);
    }
    out
}

/// Tokens of one image in the order of the output, `None` for zeros; `None` where runs do not start at tokens.
fn tokens(map: &PerImage) -> Option<Vec<Option<i64>>> {
    let token = |&start: &i64| match start {
        HOLE => Some(None),
        _ => (start % map.run == 0).then_some(Some(start / map.run)),
    };
    map.starts.iter().map(token).collect()
}

/// The best candidate so far that does not hold.
struct Nearest {
    agreed: usize,
    mismatch: Mismatch,
}

fn token_text(token: Option<i64>, grid: Grid) -> String {
    match token {
        Some(t) => format!("({}, {})", t / grid[1], t % grid[1]),
        None => "zero".into(),
    }
}

/// The most area of an image or a window that is looked at: beyond it the search for divisors takes long.
const MAX_AREA: i64 = 1 << 24;

fn no_match(nearest: Option<Nearest>, expected: &str, map: &PerImage) -> Mismatch {
    nearest.map_or_else(
        || Mismatch {
            expected: expected.into(),
            found: format!(
                "{} tokens of {} elements out of {} an image",
                map.starts.len(),
                map.run,
                map.image / map.run
            ),
        },
        |n| n.mismatch,
    )
}

/// Recognises a window partition, `size` tokens to a window, with or without a cyclic shift and padding.
pub fn window_partition(map: &PerImage, size: i64, hints: &Hints) -> Result<Windows, Mismatch> {
    let expected = "a window partition";
    let (found, area) = (tokens(map).unwrap_or_default(), map.image / map.run);
    let total = found.len() as i64;
    let mut nearest: Option<Nearest> = None;
    if total == 0 || size < 1 || total % size != 0 || area.max(size) > MAX_AREA {
        return Err(no_match(nearest, expected, map));
    }
    let Some((at, first)) = found.iter().enumerate().find_map(|(i, t)| Some((i as i64, (*t)?))) else {
        return Err(no_match(nearest, expected, map));
    };
    for grid in rectangles(area, &hints.grids) {
        for window in rectangles(size, &hints.windows) {
            for pad_after_roll in [false, true] {
                let mut windows = Windows { grid, window, shift: [0, 0], pad_after_roll };
                if windows.count() != total / size {
                    continue;
                }
                // The shift is what takes the padded position of the first token that is not padding to that token.
                let plain = Windows { grid: windows.padded(), pad_after_roll: false, ..windows };
                let Some(p) = plain.source(at) else { continue };
                let position = [p / plain.grid[1], p % plain.grid[1]];
                let source = [first / grid[1], first % grid[1]];
                windows.shift = [0, 1].map(|a| (source[a] - position[a]).rem_euclid(windows.cycle(a)));
                let wrong = found.iter().enumerate().position(|(i, t)| windows.source(i as i64) != *t);
                let Some(wrong) = wrong else { return Ok(windows.canonical()) };
                if nearest.as_ref().is_none_or(|n| n.agreed < wrong) {
                    let (k, i) = (wrong as i64 / size, wrong as i64 % size);
                    let which = format!("token ({}, {}) of window {k}", i / window[1], i % window[1]);
                    let mismatch = Mismatch {
                        expected: format!("{windows}: {which} is {}", token_text(windows.source(wrong as i64), grid)),
                        found: token_text(found[wrong], grid),
                    };
                    nearest = Some(Nearest { agreed: wrong, mismatch });
                }
            }
        }
    }
    Err(no_match(nearest, expected, map))
}

/// Recognises the reverse of a window partition, `size` tokens to a window, padding cropped.
pub fn window_reverse(map: &PerImage, size: i64, hints: &Hints) -> Result<Windows, Mismatch> {
    let expected = "the reverse of a window partition";
    let (found, total) = (tokens(map).unwrap_or_default(), map.image / map.run);
    let area = found.len() as i64;
    let mut nearest: Option<Nearest> = None;
    let Some(&Some(first)) = found.first() else {
        return Err(no_match(nearest, expected, map));
    };
    if size < 1 || total % size != 0 || area.max(size) > MAX_AREA {
        return Err(no_match(nearest, expected, map));
    }
    for grid in rectangles(area, &hints.grids) {
        for window in rectangles(size, &hints.windows) {
            for pad_after_roll in [false, true] {
                let mut windows = Windows { grid, window, shift: [0, 0], pad_after_roll };
                if windows.count() != total / size {
                    continue;
                }
                // The first token of the image is at minus the shift.
                let plain = Windows { grid: windows.padded(), pad_after_roll: false, ..windows };
                let Some(p) = plain.source(first) else { continue };
                let position = [p / plain.grid[1], p % plain.grid[1]];
                windows.shift = [0, 1].map(|a| (-position[a]).rem_euclid(windows.cycle(a)));
                let wrong = found.iter().enumerate().position(|(i, t)| Some(windows.place(i as i64)) != *t);
                let Some(wrong) = wrong else { return Ok(windows.canonical()) };
                if nearest.as_ref().is_none_or(|n| n.agreed < wrong) {
                    let in_window = |t: i64| {
                        let i = t % size;
                        format!("token ({}, {}) of window {}", i / window[1], i % window[1], t / size)
                    };
                    let token = token_text(Some(wrong as i64), grid);
                    let mismatch = Mismatch {
                        expected: format!("{windows}: {token} is {}", in_window(windows.place(wrong as i64))),
                        found: found[wrong].map_or_else(|| "zero".into(), in_window),
                    };
                    nearest = Some(Nearest { agreed: wrong, mismatch });
                }
            }
        }
    }
    Err(no_match(nearest, expected, map))
}

/// Recognises a cyclic shift of a token map.
pub fn cyclic_shift(map: &PerImage, hints: &Hints) -> Option<(Grid, Grid)> {
    let (found, area) = (tokens(map)?, map.image / map.run);
    let &Some(first) = found.first()? else { return None };
    if found.len() as i64 != area || area > MAX_AREA {
        return None;
    }
    rectangles(area, &hints.grids).into_iter().find_map(|grid| {
        let shift = [first / grid[1], first % grid[1]];
        let source = |at: i64| (at / grid[1] + shift[0]) % grid[0] * grid[1] + (at % grid[1] + shift[1]) % grid[1];
        let all = found.iter().enumerate().all(|(i, t)| *t == Some(source(i as i64)));
        all.then_some((grid, shift))
    })
}

/// Recognises a patch merge: 2x2 neighbourhoods onto the channel axis, an odd edge padded with zeros.
///
/// `map.run` is the number of channels before the merge.
pub fn patch_merge(map: &PerImage, hints: &Hints) -> Result<(Grid, [i64; 4]), Mismatch> {
    let expected = "2x2 neighbourhoods on the channel axis";
    let (found, area) = (tokens(map).unwrap_or_default(), map.image / map.run);
    let mut nearest: Option<Nearest> = None;
    if found.len() < 4 || found.len() % 4 != 0 || area > MAX_AREA {
        return Err(no_match(nearest, expected, map));
    }
    for grid in rectangles(area, &hints.grids) {
        let across = (grid[1] + 1) / 2;
        if (grid[0] + 1) / 2 * across != found.len() as i64 / 4 {
            continue;
        }
        // The first neighbourhood shows the order, unless the map is a single row or column.
        let quadrant = |block: usize| {
            let t = found[block]?;
            let at = [t / grid[1], t % grid[1]];
            (at[0] < 2 && at[1] < 2).then_some(2 * at[0] + at[1])
        };
        let order = [0, 1, 2, 3].map(quadrant);
        let mut sorted = order;
        sorted.sort_unstable();
        if sorted != [Some(0), Some(1), Some(2), Some(3)] {
            let text: Vec<String> = (0..4).map(|i| token_text(found[i], grid)).collect();
            let mismatch =
                Mismatch { expected: "the first 2x2 neighbourhood, every token once".into(), found: text.join(" ") };
            nearest.get_or_insert(Nearest { agreed: 0, mismatch });
            continue;
        }
        let order = order.map(Option::unwrap_or_default);
        let source = |at: i64| {
            let (token, q) = (at / 4, order[(at % 4) as usize]);
            let s = [token / across * 2 + q / 2, token % across * 2 + q % 2];
            (s[0] < grid[0] && s[1] < grid[1]).then_some(s[0] * grid[1] + s[1])
        };
        let wrong = found.iter().enumerate().position(|(i, t)| source(i as i64) != *t);
        let Some(wrong) = wrong else { return Ok((grid, order)) };
        if nearest.as_ref().is_none_or(|n| n.agreed < wrong) {
            let (token, block) = (wrong as i64 / 4, wrong % 4);
            let mismatch = Mismatch {
                expected: format!(
                    "block {block} of merged token ({}, {}) is {}",
                    token / across,
                    token % across,
                    token_text(source(wrong as i64), grid)
                ),
                found: token_text(found[wrong], grid),
            };
            nearest = Some(Nearest { agreed: wrong, mismatch });
        }
    }
    Err(no_match(nearest, expected, map))
}

/// Whether every run stays where it is.
pub fn is_identity(map: &PerImage) -> bool {
    map.starts.len() as i64 * map.run == map.image
        && map.starts.iter().enumerate().all(|(i, &s)| s == i as i64 * map.run)
}

/// What the movement before `value` is, with the value that it moves.
///
/// Looks at the whole chain back to what computes; where that is not one movement of one source, or none of
/// [`Class`], the answer is `None`.
pub fn classify(graph: &Graph, value: ValueId) -> Option<(ValueId, Class)> {
    let walk = Walk::default();
    let region = super::region(graph, value, &walk)?;
    let (&[source], false) = (&region.sources[..], region.nodes.is_empty()) else { return None };
    let (from, to) = (graph.shape(source)?, graph.shape(value)?);
    let all = Dim::product(to)?;
    if let Some(view) = super::strided(graph, value, &[all], &walk)
        && view.offset == 0
        && view.has(&[1])
        && Dim::product(from) == Dim::product(to)
    {
        return Some((source, Class::Identity));
    }
    let hints = hints(graph, &region);
    let channels = from.last()?.int()?;
    let (images, reverse_images) = (from.first()?, to.first()?);
    if let Some(map) = super::per_image(graph, value, images, channels, &walk) {
        if let Some((grid, shift)) = cyclic_shift(&map, &hints).filter(|_| from == to) {
            return Some((source, Class::CyclicShift { grid, shift }));
        }
        if let Some(size) = window_size(to)
            && let Ok(windows) = window_partition(&map, size, &hints)
        {
            return Some((source, Class::WindowPartition(windows)));
        }
        if let Ok((grid, order)) = patch_merge(&map, &hints)
            && to.last()?.int() == channels.checked_mul(4)
        {
            return Some((source, Class::PatchMerge { grid, order }));
        }
    }
    if let Some(size) = window_size(from)
        && let Some(map) = super::per_image(graph, value, reverse_images, channels, &walk)
        && let Ok(windows) = window_reverse(&map, size, &hints)
    {
        return Some((source, Class::WindowReverse(windows)));
    }
    let kernel = unfold(graph, source, value)?;
    Some((source, Class::Unfold { kernel }))
}

/// Tokens of a window in a shape `[windows, tokens, C]` or `[windows, wh, ww, C]`.
pub fn window_size(shape: &[Dim]) -> Option<i64> {
    match shape {
        [_, n, _] => n.int(),
        [_, h, w, _] => h.int()?.checked_mul(w.int()?),
        _ => None,
    }
}

/// The kernel of an unfold of `[B, C, H, W]` or `[B, H, W, C]` into patches that do not overlap: every element once, the
/// two spatial axes each cut in two, in whatever order the pieces then come.
fn unfold(graph: &Graph, source: ValueId, value: ValueId) -> Option<Grid> {
    let from = graph.shape(source)?;
    let [b, sizes @ ..] = from else { return None };
    let &[x, y, z] = &sizes.iter().map(Dim::int).collect::<Option<Vec<_>>>()?[..] else { return None };
    let all = Dim::product([x, y, z].map(Dim::Int).iter())?.int()?;
    let map = super::per_image(graph, value, b, 1, &Walk::default())?;
    if map.starts.len() as i64 != all {
        return None;
    }
    // The strides of the five pieces, [C, H/kh, kh, W/kw, kw] in either layout.
    let pieces = |kh: i64, kw: i64, [c, h, w]: Grid3, [sc, sh, sw]: Grid3| {
        [(c, sc), (h / kh, kh * sh), (kh, sh), (w / kw, kw * sw), (kw, sw)]
    };
    let found = factors(&map.starts)?;
    for (dims, strides) in [([x, y, z], [y * z, z, 1]), ([z, x, y], [1, y * z, z])] {
        for kh in (1..=dims[1]).filter(|k| dims[1] % k == 0) {
            for kw in (1..=dims[2]).filter(|k| dims[2] % k == 0 && kh * k > 1) {
                let mut wanted: Vec<(i64, i64)> =
                    pieces(kh, kw, dims, strides).into_iter().filter(|(n, _)| *n > 1).collect();
                let mut have = found.clone();
                wanted.sort_unstable();
                have.sort_unstable();
                if wanted == have {
                    return Some([kh, kw]);
                }
            }
        }
    }
    None
}

type Grid3 = [i64; 3];

/// The sizes and strides of a table that is a strided view, innermost first; `None` if it is not one.
fn factors(starts: &[i64]) -> Option<Vec<(i64, i64)>> {
    if starts.contains(&HOLE) {
        return None;
    }
    let (mut out, mut inner) = (vec![], 1usize);
    while inner < starts.len() {
        let stride = starts.get(inner)?.checked_sub(starts[0])?;
        let more = |k: usize| starts.get(k * inner).is_some_and(|&s| s == starts[0] + k as i64 * stride);
        let size = (1..).take_while(|&k| more(k)).count() + 1;
        if !starts.len().is_multiple_of(size * inner) {
            return None;
        }
        out.push((size as i64, stride));
        inner *= size;
    }
    let linear = |at: usize| {
        let (mut rest, mut sum) = (at as i64, starts[0]);
        for &(size, stride) in &out {
            sum += rest % size * stride;
            rest /= size;
        }
        sum
    };
    starts.iter().enumerate().all(|(at, &s)| s == linear(at)).then_some(out)
}
