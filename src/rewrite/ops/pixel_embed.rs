//! `TrtOptPixelEmbed`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, pair, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

pub static DEF: OpDef = OpDef {
    name: "TrtOptPixelEmbed",
    summary: "the words of the patches of an image: a convolution in the order of patches, plus an offset a word",
    replaces: "Reshape, Transpose, Conv, Add, Reshape, Transpose",
    inputs: &[
        port("x", "[B, C, H, W], of T or float32"),
        port("w", "[D, C, kh, 8], zeros from kw on"),
        port("offset", "[m, D], where m = ph*pw"),
    ],
    outputs: &[port("y", "[B*gh*gw, m, D], of T")],
    attributes: &[
        attribute("kernel", AttributeKind::Ints(2), "height and width of the kernel, kh, kw"),
        attribute("strides", AttributeKind::Ints(2), "pixels from a word to the next, down and across"),
        attribute("pads", AttributeKind::Ints(2), "zeros above and left of what is convolved"),
        attribute("grid", AttributeKind::Ints(2), "patches down and across, gh, gw"),
        attribute("patch", AttributeKind::Ints(2), "words of a patch down and across, ph, pw"),
        attribute("within", AttributeKind::Int, "1: pixels of other patches are zeros, too"),
    ],
    shapes,
    body,
    work,
};

/// What the plugin takes: rows of the kernel in all channels, weights of a row, words of a patch, and columns.
pub const MAX_ROWS: i64 = 128;
pub const SLOTS: i64 = 8;
pub const MAX_PATCH_WORDS: i64 = 256;
pub const MAX_COLUMNS: i64 = 128;

/// The attributes of a `TrtOptPixelEmbed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelEmbed {
    pub kernel: [i64; 2],
    pub strides: [i64; 2],
    /// Before the first pixel, down and across. What follows the last is zeros as far as the kernel reaches.
    pub pads: [i64; 2],
    pub grid: [i64; 2],
    pub patch: [i64; 2],
    /// Whether a patch is convolved by itself.
    pub within: bool,
}

impl PixelEmbed {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, w: ValueId, offset: ValueId) -> Node {
        Node { inputs: [x, w, offset].map(Some).to_vec(), ..plugin_node(&DEF, self.attributes()) }
    }

    pub(super) fn attributes(&self) -> Vec<AttributeProto> {
        vec![
            AttributeProto::ints("kernel", &self.kernel),
            AttributeProto::ints("strides", &self.strides),
            AttributeProto::ints("pads", &self.pads),
            AttributeProto::ints("grid", &self.grid),
            AttributeProto::ints("patch", &self.patch),
            AttributeProto::int("within", self.within.into()),
        ]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let [kernel, strides, pads, grid, patch] =
            ["kernel", "strides", "pads", "grid", "patch"].map(|name| pair(node, name));
        let op = Self {
            kernel: kernel?,
            strides: strides?,
            pads: pads?,
            grid: grid?,
            patch: patch?,
            within: node.int("within")? != 0,
        };
        let positive = [op.kernel, op.strides, op.grid, op.patch].iter().flatten().all(|&n| n > 0);
        let padded = op.pads.iter().zip(op.kernel).all(|(&pad, kernel)| (0..kernel).contains(&pad));
        (positive && padded && op.kernel[1] <= SLOTS).then_some(op)
    }

    /// Words of a patch.
    pub fn words(&self) -> Option<i64> {
        self.patch[0].checked_mul(self.patch[1])
    }

    /// Sizes of what is convolved at a time: a patch, or the image.
    fn convolved(&self, image: [i64; 2]) -> Option<[i64; 2]> {
        if !self.within {
            return Some(image);
        }
        let patch = [self.patch[0].checked_mul(self.strides[0])?, self.patch[1].checked_mul(self.strides[1])?];
        (0..2).all(|i| patch[i].checked_mul(self.grid[i]) == Some(image[i])).then_some(patch)
    }

    /// The zeros behind the last pixel of an image of this size; `None` where the words are not those of a convolution of it.
    fn pads_behind(&self, image: [i64; 2]) -> Option<[i64; 2]> {
        let sizes = self.convolved(image)?;
        let mut pads = [0; 2];
        for i in 0..2 {
            let words = if self.within { self.patch[i] } else { self.patch[i].checked_mul(self.grid[i])? };
            let reach = (words - 1).checked_mul(self.strides[i])?.checked_add(self.kernel[i])?;
            let left = sizes[i].checked_add(self.pads[i])?.checked_sub(reach)?;
            (left < self.strides[i] && -left <= self.kernel[i]).then_some(())?;
            pads[i] = (-left).max(0);
        }
        Some(pads)
    }

    /// Shape of the output for an image of this shape and so many columns; `None` if they do not fit each other.
    pub fn shape(&self, x: &[Dim], channels: i64, columns: i64) -> Option<Vec<Dim>> {
        let [batch, depth, height, width] = x else { return None };
        (depth.int() == Some(channels)).then_some(())?;
        self.pads_behind([height.int()?, width.int()?])?;
        let patches = batch.mul(&self.grid[0].checked_mul(self.grid[1])?.into())?;
        Some(vec![patches, self.words()?.into(), columns.into()])
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let op = PixelEmbed::of(node)?;
    let &[Some(x), Some(w), Some(offset)] = &node.inputs[..] else { return None };
    let sizes: [i64; 4] = graph.static_shape(w)?.try_into().ok()?;
    let [columns, channels, ..] = sizes;
    (sizes[2..] == [op.kernel[0], SLOTS] && graph.static_shape(offset)? == [op.words()?, columns]).then_some(())?;
    let (dtype, image) = (graph.dtype(w)?, graph.dtype(x)?);
    (image == dtype || image == DType::F32).then_some(())?;
    Some(vec![Some((dtype, op.shape(graph.shape(x)?, channels, columns)?))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = PixelEmbed::of(node)?;
    shapes(graph, node)?;
    let (dtype, image) = (graph.dtype(node.input(1)?)?, graph.shape(node.input(0)?)?);
    let [_, channels, height, width] = image else { return None };
    let (channels, image) = (channels.int()?, [height.int()?, width.int()?]);
    let columns = graph.static_shape(node.input(1)?)?[0];
    let ([gh, gw], [ph, pw], sizes) = (op.grid, op.patch, op.convolved(image)?);
    let behind = op.pads_behind(image)?;
    // The product's operand is rounded, its sum is not.
    let x = body.input("x");
    let x = body.cast(&x, dtype);
    let mut x = body.cast(&x, DType::F32);
    let float = |body: &mut Body, name: &str| {
        let value = body.input(name);
        body.cast(&value, DType::F32)
    };
    let (w, offset) = (float(body, "w"), float(body, "offset"));
    let w = body.slice(&w, 3, 0, op.kernel[1], 1);
    if op.within {
        let cut = body.reshape(&x, &[-1, channels, gh, sizes[0], gw, sizes[1]]);
        let patches = body.transpose(&cut, &[0, 2, 4, 1, 3, 5]);
        x = body.reshape(&patches, &[-1, channels, sizes[0], sizes[1]]);
    }
    let attributes = vec![
        AttributeProto::ints("kernel_shape", &op.kernel),
        AttributeProto::ints("strides", &op.strides),
        AttributeProto::ints("pads", &[op.pads[0], op.pads[1], behind[0], behind[1]]),
    ];
    let map = body.op("Conv", &[&x, &w], attributes);
    let words = if op.within {
        body.transpose(&map, &[0, 2, 3, 1])
    } else {
        let cut = body.reshape(&map, &[-1, columns, gh, ph, gw, pw]);
        body.transpose(&cut, &[0, 2, 4, 3, 5, 1])
    };
    let words = body.reshape(&words, &[-1, op.words()?, columns]);
    let y = body.op("Add", &[&words, &offset], vec![]);
    let y = body.cast(&y, dtype);
    body.output(&y, "y");
    Some(())
}

fn work(node: &Node, inputs: &[Vec<i64>], outputs: &[Vec<i64>]) -> Option<(u64, u64)> {
    let op = PixelEmbed::of(node)?;
    let macs = count(outputs.first()?)?.checked_mul(count(&[*inputs.get(1)?.get(1)?, op.kernel[0], op.kernel[1]])?)?;
    Some((macs.checked_mul(2)?, macs))
}
