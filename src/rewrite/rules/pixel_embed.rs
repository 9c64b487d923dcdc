//! Pixel embeddings of TNT: a convolution whose map is cut into patches of words, or of patches that an image is cut into, with the
//! position that is added to the words.
//!
//! ```text
//! x [-> Reshape -> Transpose -> Reshape] -> Conv [-> Add] -> Reshape -> Transpose [-> Reshape] [-> Add] = words
//! becomes   TrtOptPixelEmbed(x) -> words
//! ```
//!
//! Index maps prove the order of the patches and of the words in them, however it is spelled, and what is added to each word. The image
//! may be float32 where all else is float16: a cast before the convolution is left out.

use crate::analysis::movement::{self, Walk};
use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{MAX_COLUMNS, MAX_PATCH_WORDS, MAX_ROWS, PixelEmbed, SLOTS};
use crate::rewrite::pattern::{fused_name, is_float_cast, only_user};
use crate::rewrite::rules::block::{Fusion, Outcome, Rule, output, rounded, single_use, weight};

const RULE: &str = "pixel-embed";

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: Kind::PixelEmbed,
        name: RULE,
        // The site is called after the convolution, which is no site of another kind.
        part: Kind::PixelEmbed,
        part_of: &|_, _| vec![],
        fusion: &|graph, conv, label| Embedding::of(graph, conv, label)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, is_site)
}

/// A convolution of images with patches that overlap, behind which there are tokens of more sequences than there were images.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let site = || {
        let map = node.output(0).filter(|&map| node.is("Conv") && graph.rank(map) == Some(4))?;
        let ([columns, channels, kernel @ ..], [images, depth, _, _]) =
            (&graph.static_shape(node.input(1)?)?[..], graph.shape(before(graph, node.input(0)?)?)?)
        else {
            return None;
        };
        let overlaps = node.ints("strides").unwrap_or(&[1; 2]) != kernel;
        let tokens = |value: &ValueId| match graph.shape(*value) {
            Some([sequences @ .., _, last]) if !sequences.is_empty() => {
                last.int() == Some(*columns) && Dim::product(sequences).is_some_and(|count| count != *images)
            }
            _ => false,
        };
        Some(overlaps && depth.int() == Some(*channels) && behind(graph, map).values.iter().any(tokens))
    };
    site().unwrap_or(false)
}

/// What is moved, rounded and cast before the value.
fn before(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let through = |id| rounding(graph, id);
    let region = movement::region(graph, value, &Walk { through: &through, ..Walk::default() })?;
    <[ValueId; 1]>::try_from(region.sources).ok().map(|[source]| source)
}

/// The input of a cast from float32 to float16.
pub(super) fn rounding(graph: &Graph, id: NodeId) -> Option<ValueId> {
    let node = graph.node(id);
    let x = node.input(0).filter(|_| is_float_cast(graph, node))?;
    let types = [Some(x), node.output(0)].map(|v| v.and_then(|v| graph.dtype(v)));
    (types == [Some(DType::F32), Some(DType::F16)]).then_some(x)
}

/// The constant that an Add adds to the value.
pub(super) fn added(graph: &Graph, node: &Node, value: ValueId) -> Option<ValueId> {
    let (a, b) = (node.input(0).filter(|_| node.is("Add"))?, node.input(1)?);
    let other = if a == value { b } else { a };
    graph.constant(other).map(|_| other)
}

/// What is made of a map by moves and adds of constants, as long as nothing else reads it.
pub(super) struct Behind {
    /// In order, the map not among them.
    pub values: Vec<ValueId>,
    /// Makes each value.
    pub nodes: Vec<NodeId>,
    /// What is added to which value, and how many values there are before.
    pub adds: Vec<(usize, ValueId, ValueId)>,
}

pub(super) fn behind(graph: &Graph, map: ValueId) -> Behind {
    let mut behind = Behind { values: vec![], nodes: vec![], adds: vec![] };
    let mut value = map;
    while let Some(id) = only_user(graph, value)
        && let node = graph.node(id)
        && let Some(out) = node.output(0)
    {
        match added(graph, node, value) {
            // What the constant is spread over would be more words.
            Some(constant) if graph.shape(out) == graph.shape(value) => {
                behind.adds.push((behind.values.len(), value, constant));
            }
            None if node.input(0) == Some(value) && !node.is("Concat") && movement::is_moved(graph, out) => {}
            _ => break,
        }
        behind.values.push(out);
        behind.nodes.push(id);
        value = out;
    }
    behind
}

/// A whole pixel embedding.
struct Embedding {
    op: PixelEmbed,
    x: ValueId,
    dtype: DType,
    channels: i64,
    columns: i64,
    /// `[D, C, kh, 8]`.
    w: Vec<f64>,
    /// `[words, D]`.
    offset: Vec<f64>,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Embedding {
    fn of(graph: &Graph, conv: NodeId, label: &str) -> Outcome<Self> {
        let (node, map) = (graph.node(conv), output(graph, conv)?);
        let Convolution { dtype, sizes, w, b, strides, pads } = Convolution::of(graph, node, label)?;
        let [columns, channels, kernel @ ..] = sizes;
        let input = node.input(0).ok_or_else(|| Miss::new(label, "it has no operands"))?;
        let (x, cut) = image(graph, input, channels, label)?;
        let unfit = || Miss::new(label, "the convolution is of no map of known size");
        let Some([_, _, Dim::Int(height), Dim::Int(width)]) = graph.shape(map) else { return Err(unfit()) };
        let of = |grid: [i64; 2], patch: [i64; 2]| PixelEmbed {
            kernel,
            strides,
            pads: [pads[0], pads[1]],
            grid,
            patch,
            within: cut.is_some(),
        };
        let behind = behind(graph, map);
        let images = graph.shape(x).and_then(|shape| shape.first()).ok_or_else(unfit)?;
        let words = behind.values.iter().enumerate().rev().find_map(|(last, &value)| {
            let patches = match cut {
                Some(grid) => vec![of(grid, [*height, *width])],
                None => {
                    cuts(graph, value, [*height, *width]).into_iter().map(|(grid, patch)| of(grid, patch)).collect()
                }
            };
            patches
                .into_iter()
                .find(|op| is_words(graph, value, map, images, op, [*height, *width]))
                .map(|op| (last, op))
        });
        let Some((last, op)) = words else {
            // Another reader on the way says more than that there are no words.
            let end = behind.values.last().copied().unwrap_or(map);
            single_use(graph, end)?;
            return Err(Miss::new(label, "its map does not become the words of patches")
                .expected("[patches, words, channels]", graph.shape(end).map_or_else(String::new, shape_text)));
        };
        let out = behind.values[last];
        check_sizes(label, &op, channels, columns)?;
        let shape = op.shape(graph.shape(x).unwrap_or_default(), channels, columns).ok_or_else(|| {
            Miss::new(label, "the patches do not fill what is convolved").expected(
                format!("patches of {:?} words at strides of {strides:?}", op.patch),
                shape_text(graph.shape(input).unwrap_or_default()),
            )
        })?;
        let words = shape[1].int().unwrap_or_default();
        let mut offset = b.repeat(words as usize);
        for &(_, at, constant) in behind.adds.iter().filter(|(before, ..)| *before <= last) {
            let position = position(graph, at, constant, out, images, &op, columns).ok_or_else(|| {
                Miss::new(&graph.value(constant).name, "what is added is not the same for all patches").expected(
                    format!("a value for each of {words} words and {columns} channels"),
                    graph.shape(constant).map_or_else(String::new, shape_text),
                )
            })?;
            offset.iter_mut().zip(position).for_each(|(sum, value)| *sum += value);
        }
        let covers = std::iter::once(conv).chain(behind.nodes[..=last].iter().copied()).collect();
        Ok(Self { op, x, dtype, channels, columns, w, offset, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let name = fused_name(graph, label, "TrtOptPixelEmbed");
        let mut patch = Patch::new(graph, RULE);
        let unfit = || Miss::new(label, "the shapes do not suit the plugin");
        let shape =
            self.op.shape(graph.shape(self.x).unwrap_or_default(), self.channels, self.columns).ok_or_else(unfit)?;
        let words = self.op.words().ok_or_else(unfit)?;
        let w = rounded(label, self.dtype, &[self.columns, self.channels, self.op.kernel[0], SLOTS], &self.w)?;
        let offset = rounded(label, self.dtype, &[words, self.columns], &self.offset)?;
        let (w, offset) = (patch.constant(&format!("{name}/w"), w), patch.constant(&format!("{name}/offset"), offset));
        let y = patch.value(&name, Some(self.dtype), Some(shape));
        let mut fused = self.op.node(self.x, w, offset);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        let to = graph.shape(self.out).ok_or_else(unfit)?;
        let y = patch.reshape(graph, y, to, &format!("{name}/shape")).ok_or_else(unfit)?;
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        Ok(Fusion { patch, name, covers: self.covers })
    }
}

struct Convolution {
    dtype: DType,
    /// Of the weights.
    sizes: [i64; 4],
    /// Weights, rows filled up with zeros.
    w: Vec<f64>,
    /// Offsets, or zeros.
    b: Vec<f64>,
    strides: [i64; 2],
    /// Above, left, below, right.
    pads: [i64; 4],
}

impl Convolution {
    fn of(graph: &Graph, node: &Node, label: &str) -> Outcome<Self> {
        let miss = |reason: &str| Miss::new(label, reason);
        let (dtype, shape, values) = weight(graph, node.input(1).ok_or_else(|| miss("it has no operands"))?)?;
        let sizes: [i64; 4] = shape.try_into().map_err(|_| miss("the convolution is not of a map"))?;
        if !matches!(dtype, DType::F32 | DType::F16) {
            return Err(miss("the plugin takes no such type").expected("float or float16", dtype.name()));
        }
        let group = node.int("group").unwrap_or(1);
        if group != 1 {
            return Err(miss("the convolution is in groups").expected("one group", group));
        }
        if let Some(dilations) = node.ints("dilations").filter(|found| *found != [1, 1]) {
            return Err(miss("the convolution is dilated").expected("[1, 1]", format!("{dilations:?}")));
        }
        if let Some(kernel) = node.ints("kernel_shape").filter(|found| *found != &sizes[2..]) {
            return Err(miss("the kernel is not that of the weights")
                .expected(format!("{:?}", &sizes[2..]), format!("{kernel:?}")));
        }
        let auto = node.string("auto_pad").unwrap_or("NOTSET");
        if !["NOTSET", "VALID"].contains(&auto) {
            return Err(miss("its padding is for the runtime to choose").expected("pads", auto));
        }
        let pads = node.ints("pads").filter(|_| auto == "NOTSET").unwrap_or(&[0; 4]);
        let strides = node.ints("strides").unwrap_or(&[1; 2]);
        let (Ok(pads), Ok(strides)) = (<[i64; 4]>::try_from(pads), <[i64; 2]>::try_from(strides)) else {
            return Err(miss("the convolution is not of a map"));
        };
        if (0..2).any(|i| pads[i] >= sizes[2 + i] || pads[i] < 0 || strides[i] < 1) {
            return Err(miss("words see nothing of the image")
                .expected(format!("pads below {:?}", &sizes[2..]), format!("{pads:?}")));
        }
        let [columns, channels, height, width] = sizes;
        if channels.saturating_mul(height) > MAX_ROWS || width > SLOTS {
            return Err(miss("the kernel is too large").expected(
                format!("at most {MAX_ROWS} rows in all channels, of {SLOTS} values"),
                format!("{channels} channels of {height} x {width}"),
            ));
        }
        let w = values.chunks(width as usize).flat_map(|row| {
            row.iter().copied().chain(std::iter::repeat_n(0.0, (SLOTS - width) as usize)).collect::<Vec<_>>()
        });
        let b = match node.input(2) {
            Some(b) => weight(graph, b).map(|(_, _, values)| values)?,
            None => vec![0.0; columns as usize],
        };
        Ok(Self { dtype, sizes, w: w.collect(), b, strides, pads })
    }
}

/// The image of which the convolution's input is made, and its patches down and across where that is cut into patches.
fn image(graph: &Graph, input: ValueId, channels: i64, label: &str) -> Outcome<(ValueId, Option<[i64; 2]>)> {
    let through = |id| rounding(graph, id);
    let walk = Walk { through: &through, ..Walk::default() };
    let x = before(graph, input).ok_or_else(|| Miss::new(label, "what is convolved is not of one image"))?;
    let whole = |view: &[Dim], strides: &[i64]| {
        movement::strided(graph, input, view, &walk)
            .is_some_and(|found| found.source == x && found.offset == 0 && found.has(strides))
    };
    let found = || {
        let ([images, _, height, width], [_, _, down, across]) = (graph.shape(x)?, graph.shape(input)?) else {
            return None;
        };
        let (height, width, down, across) = (height.int()?, width.int()?, down.int()?, across.int()?);
        let plane = height.checked_mul(width)?;
        if [height, width] == [down, across] {
            let same = x == input || whole(&[Dim::product([images, &channels.into()])?, plane.into()], &[plane, 1]);
            return same.then_some(None);
        }
        let grid = [height / down, width / across];
        let view = [grid[0], grid[1], channels, down, across].map(Dim::Int);
        let view: Vec<Dim> = std::iter::once(images.clone()).chain(view).collect();
        let strides = [channels.checked_mul(plane)?, down * width, across, plane, width, 1];
        (grid[0] * down == height && grid[1] * across == width && whole(&view, &strides)).then_some(Some(grid))
    };
    let cut = found().ok_or_else(|| {
        Miss::new(label, "what is convolved is no image, nor patches of one")
            .expected("an image cut into patches", shape_text(graph.shape(input).unwrap_or_default()))
    })?;
    Ok((x, cut))
}

/// The ways to cut a map into patches of as many words as the value has: patches down and across, and the words of one.
pub(super) fn cuts(graph: &Graph, value: ValueId, sizes: [i64; 2]) -> Vec<([i64; 2], [i64; 2])> {
    let words = match graph.shape(value) {
        Some([.., Dim::Int(words), _]) if (1..=MAX_PATCH_WORDS).contains(words) => *words,
        _ => return vec![],
    };
    let heights = (1..=words).filter(|height| words % height == 0);
    let patches = heights.map(|height| [height, words / height]);
    let fits = |patch: &[i64; 2]| sizes.iter().zip(patch).all(|(size, words)| size % words == 0);
    patches.filter(fits).map(|patch| ([sizes[0] / patch[0], sizes[1] / patch[1]], patch)).collect()
}

/// The axes of words: image, patch down and across, word down and across, channel.
fn axes(images: &Dim, op: &PixelEmbed, columns: i64) -> Vec<Dim> {
    let inner = [op.grid, op.patch].concat().into_iter().chain([columns]).map(Dim::Int);
    std::iter::once(images.clone()).chain(inner).collect()
}

/// Whether the value is the map in the order of patches and words, with the channels last.
pub(super) fn is_words(
    graph: &Graph,
    value: ValueId,
    map: ValueId,
    images: &Dim,
    op: &PixelEmbed,
    [height, width]: [i64; 2],
) -> bool {
    let view = || {
        let Some([.., Dim::Int(words), Dim::Int(columns)]) = graph.shape(value) else { return None };
        (Some(*words) == op.words() && graph.shape(map)?[1] == Dim::Int(*columns)).then_some(())?;
        let (plane, [gh, gw], [ph, pw]) = (height.checked_mul(width)?, op.grid, op.patch);
        let each = columns.checked_mul(plane)?;
        let strides = match op.within {
            true => [gh * gw * each, gw * each, each, width, 1, plane],
            false => [each, ph * width, pw, width, 1, plane],
        };
        let through = |id| source_of_add(graph, id);
        let stop = |v| v == map;
        let view =
            movement::strided(graph, value, &axes(images, op, *columns), &Walk { stop: &stop, through: &through })?;
        Some(view.source == map && view.offset == 0 && view.has(&strides))
    };
    view().unwrap_or(false)
}

/// What an Add adds a constant to.
fn source_of_add(graph: &Graph, id: NodeId) -> Option<ValueId> {
    let node = graph.node(id);
    node.inputs.iter().flatten().copied().find(|&v| graph.constant(v).is_none() && added(graph, node, v).is_some())
}

/// What the constant that is added to `at` adds to each word and channel of `out`, where that is the same for all patches.
pub(super) fn position(
    graph: &Graph,
    at: ValueId,
    constant: ValueId,
    out: ValueId,
    images: &Dim,
    op: &PixelEmbed,
    columns: i64,
) -> Option<Vec<f64>> {
    let (_, dims, values) = weight(graph, constant).ok()?;
    let shape = graph.shape(at)?;
    let through = |id| source_of_add(graph, id);
    let stop = |v| v == at;
    let view = movement::strided(graph, out, &axes(images, op, columns), &Walk { stop: &stop, through: &through })?;
    (view.source == at && view.offset == 0).then_some(())?;
    // Of each axis of what it is added to, the last first: its size and the step of the constant along it. Only the first may be open.
    let mut steps = vec![];
    let mut step = 1;
    for (axis, size) in shape.iter().enumerate().rev() {
        let own = (dims.len() + axis).checked_sub(shape.len()).map_or(1, |i| dims[i]);
        let size = if axis == 0 { size.int().unwrap_or(i64::MAX) } else { size.int()? };
        (own == 1 || own == size).then_some(())?;
        steps.push((size, if own == 1 { 0 } else { step }));
        step *= own;
    }
    // What is spread over the first axis is the same for all images.
    let counted = if steps.last()?.1 == 0 { 1 } else { images.int()? };
    let words = [op.patch[0], op.patch[1], columns];
    let mut found: Option<Vec<f64>> = None;
    for image in 0..counted {
        for patch in 0..op.grid[0] * op.grid[1] {
            let [first, down, across, strides @ ..] = &view.strides[..] else { return None };
            let start = image * first + patch / op.grid[1] * down + patch % op.grid[1] * across;
            let mut own = Vec::with_capacity(words.iter().product::<i64>() as usize);
            for i in 0..words.iter().product::<i64>() {
                let index = [i / (words[1] * words[2]), i / words[2] % words[1], i % words[2]];
                let mut rest = start + index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<i64>();
                let mut place = 0;
                for &(size, step) in &steps {
                    place += rest % size * step;
                    rest /= size;
                }
                own.push(*values.get(usize::try_from(place).ok()?)?);
            }
            match &found {
                Some(other) if *other != own => return None,
                _ => found = Some(own),
            }
        }
    }
    found
}

fn check_sizes(label: &str, op: &PixelEmbed, channels: i64, columns: i64) -> Outcome<()> {
    let words = op.words().unwrap_or(i64::MAX);
    if words > MAX_PATCH_WORDS || columns > MAX_COLUMNS {
        return Err(Miss::new(label, "the patches are too large").expected(
            format!("at most {MAX_PATCH_WORDS} words of {MAX_COLUMNS} channels"),
            format!("{words} of {columns}, from {channels}"),
        ));
    }
    Ok(())
}
