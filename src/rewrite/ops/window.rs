//! `TrtOptWindow`, and the window map that other ops share.

use super::body::Body;
use super::{
    AttributeDef, AttributeKind, OpDef, Shapes, attribute, count, is, optional, pair, plugin_node, port, reshapeable,
};
use crate::analysis::movement::Windows;
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

/// The correspondence between the tokens of a map and those of its (shifted) windows; see `docs/ops.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowMap {
    /// Height and width of the map, in tokens.
    pub grid: [i64; 2],
    pub window: [i64; 2],
    pub shift: [i64; 2],
    /// Whether padding to whole windows comes after the cyclic shift (timm) and not before it (Swin).
    pub pad_after_roll: bool,
}

impl WindowMap {
    /// Shifted windows of the first stage of Swin at 224 pixels.
    pub(super) const EXAMPLE: Self = Self { grid: [56; 2], window: [7; 2], shift: [3; 2], pad_after_roll: false };

    /// The map that stands for "no windows" in attributes.
    pub const NONE: Self = Self { grid: [0; 2], window: [0; 2], shift: [0; 2], pad_after_roll: false };

    pub fn is_none(&self) -> bool {
        self.window == [0; 2]
    }

    /// Size of the map padded to whole windows.
    pub fn padded(&self) -> [i64; 2] {
        [0, 1].map(|i| (self.grid[i] + self.window[i] - 1) / self.window[i] * self.window[i])
    }

    /// Windows of an image.
    pub fn windows(&self) -> i64 {
        let padded = self.padded();
        (padded[0] / self.window[0]) * (padded[1] / self.window[1])
    }

    /// Tokens of a window.
    pub fn tokens(&self) -> i64 {
        self.window[0] * self.window[1]
    }

    /// The token of an image at padded position `(y, x)`; `None` is padding.
    pub fn source(&self, y: i64, x: i64) -> Option<i64> {
        let ([h, w], [hp, wp], [sh, sw]) = (self.grid, self.padded(), self.shift);
        let (y, x) = if self.pad_after_roll {
            if y >= h || x >= w {
                return None;
            }
            ((y + sh) % h, (x + sw) % w)
        } else {
            ((y + sh) % hp, (x + sw) % wp)
        };
        (y < h && x < w).then_some(y * w + x)
    }

    /// Whether grid, window and shift make sense and stay within int32.
    pub fn is_valid(&self) -> bool {
        let limit = 1 << 20;
        (0..2).all(|i| {
            (1..limit).contains(&self.grid[i])
                && (1..limit).contains(&self.window[i])
                && (0..self.window[i]).contains(&self.shift[i])
        })
    }

    pub fn attributes(&self) -> Vec<AttributeProto> {
        vec![
            AttributeProto::ints("grid", &self.grid),
            AttributeProto::ints("window", &self.window),
            AttributeProto::ints("shift", &self.shift),
            AttributeProto::int("pad_after_roll", self.pad_after_roll.into()),
        ]
    }

    pub fn of(node: &Node) -> Option<Self> {
        Some(Self {
            grid: pair(node, "grid")?,
            window: pair(node, "window")?,
            shift: pair(node, "shift")?,
            pad_after_roll: node.int("pad_after_roll").unwrap_or(0) != 0,
        })
    }

    /// `[B * windows, tokens, C]` for an input `[B, H*W, C]` or `[B, H, W, C]`.
    pub fn partitioned(&self, input: &[Dim]) -> Option<Vec<Dim>> {
        if !self.is_valid() || !self.fits(input) {
            return None;
        }
        Some(vec![input[0].mul(&self.windows().into())?, self.tokens().into(), input.last()?.clone()])
    }

    /// Whether the shape is that of a map of this grid.
    pub fn fits(&self, shape: &[Dim]) -> bool {
        let [h, w] = self.grid.map(Dim::Int);
        match shape {
            [_, n, _] => *n == Dim::Int(self.grid[0] * self.grid[1]),
            [_, y, x, _] => *y == h && *x == w,
            _ => false,
        }
    }

    /// Partition of `x` into `[-1, tokens, C]`.
    pub(super) fn partition_body(&self, body: &mut Body, x: &str, channels: i64, dtype: DType) -> String {
        let ([h, w], [wh, ww], [hp, wp]) = (self.grid, self.window, self.padded());
        let mut y = body.reshape(x, &[-1, h, w, channels]);
        let pads = [0, hp - h, wp - w, 0];
        if self.pad_after_roll {
            y = body.roll(&y, 1, self.shift[0], h);
            y = body.roll(&y, 2, self.shift[1], w);
            y = body.pad_end(&y, &pads, dtype);
        } else {
            y = body.pad_end(&y, &pads, dtype);
            y = body.roll(&y, 1, self.shift[0], hp);
            y = body.roll(&y, 2, self.shift[1], wp);
        }
        let y = body.reshape(&y, &[-1, hp / wh, wh, wp / ww, ww, channels]);
        let y = body.transpose(&y, &[0, 1, 3, 2, 4, 5]);
        body.reshape(&y, &[-1, wh * ww, channels])
    }

    /// Reverse of `x` `[B * windows, tokens, C]` into `[-1, H, W, C]`.
    pub(super) fn reverse_body(&self, body: &mut Body, x: &str, channels: i64) -> String {
        let ([h, w], [wh, ww], [hp, wp]) = (self.grid, self.window, self.padded());
        let y = body.reshape(x, &[-1, hp / wh, wp / ww, wh, ww, channels]);
        let y = body.transpose(&y, &[0, 1, 3, 2, 4, 5]);
        let mut y = body.reshape(&y, &[-1, hp, wp, channels]);
        if !self.pad_after_roll {
            y = body.roll(&y, 1, -self.shift[0], hp);
            y = body.roll(&y, 2, -self.shift[1], wp);
        }
        if hp > h {
            y = body.slice(&y, 1, 0, h, 1);
        }
        if wp > w {
            y = body.slice(&y, 2, 0, w, 1);
        }
        if self.pad_after_roll {
            y = body.roll(&y, 1, -self.shift[0], h);
            y = body.roll(&y, 2, -self.shift[1], w);
        }
        y
    }
}

impl std::fmt::Display for WindowMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { grid, window, shift, pad_after_roll } = *self;
        Windows { grid, window, shift, pad_after_roll }.fmt(f)
    }
}

pub(super) const MAP_ATTRIBUTES: [AttributeDef; 4] = [
    attribute("grid", AttributeKind::Ints(2), "height and width of the token map; [0, 0]: not used"),
    attribute("window", AttributeKind::Ints(2), "height and width of a window; [0, 0]: no windows"),
    attribute("shift", AttributeKind::Ints(2), "cyclic shift, vertical and horizontal"),
    attribute(
        "pad_after_roll",
        AttributeKind::Int,
        "1: the map is padded to whole windows after the shift, 0: before it",
    ),
];

pub static DEF: OpDef = OpDef {
    name: "TrtOptWindow",
    summary: "window partition with cyclic shift, or its reverse with an optional residual add",
    replaces: "Slice/Concat (roll), Pad, Reshape/Transpose chains, Add",
    inputs: &[
        port("x", "partition: [B, H*W, C] or [B, H, W, C]; reverse: [B*nW, wh*ww, C]"),
        optional("residual", "shape of y; there if residual = 1"),
    ],
    outputs: &[port("y", "partition: [B*nW, wh*ww, C]; reverse: [B, H*W, C] or [B, H, W, C]")],
    attributes: &[
        attribute("reverse", AttributeKind::Int, "0 partition, 1 reverse"),
        attribute("rank", AttributeKind::Int, "rank of y: 3 or 4"),
        attribute("residual", AttributeKind::Int, "1: residual is added (reverse only)"),
        MAP_ATTRIBUTES[0],
        MAP_ATTRIBUTES[1],
        MAP_ATTRIBUTES[2],
        MAP_ATTRIBUTES[3],
    ],
    shapes,
    body,
    work: |node, _, outputs| Some((if node.int("residual") == Some(1) { count(outputs.first()?)? } else { 0 }, 0)),
};

/// The attributes of a `TrtOptWindow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub map: WindowMap,
    pub reverse: bool,
    /// Rank of the output: 3, or on reverse also 4.
    pub rank: usize,
}

impl Window {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, residual: Option<ValueId>) -> Node {
        let inputs = std::iter::once(x).chain(residual).map(Some).collect();
        Node { inputs, ..plugin_node(&DEF, self.attributes(residual.is_some())) }
    }

    pub(super) fn attributes(&self, residual: bool) -> Vec<AttributeProto> {
        let mut attributes = vec![
            AttributeProto::int("reverse", self.reverse.into()),
            AttributeProto::int("rank", self.rank as i64),
            AttributeProto::int("residual", residual.into()),
        ];
        attributes.extend(self.map.attributes());
        attributes
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        Some(Self {
            map: WindowMap::of(node)?,
            reverse: node.int("reverse")? != 0,
            rank: usize::try_from(node.int("rank")?).ok()?,
        })
    }

    /// Shape of the output for an input shape; `None` where it does not fit.
    pub fn shape(&self, input: &[Dim]) -> Option<Vec<Dim>> {
        if !self.reverse {
            return self.map.partitioned(input);
        }
        let [rows, tokens, channels] = input else { return None };
        if !self.map.is_valid() || *tokens != Dim::Int(self.map.tokens()) {
            return None;
        }
        let (batch, [h, w]) = (rows.div_exact(&self.map.windows().into())?, self.map.grid);
        Some(match self.rank {
            3 => vec![batch, (h * w).into(), channels.clone()],
            4 => vec![batch, h.into(), w.into(), channels.clone()],
            _ => return None,
        })
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let x = node.input(0)?;
    Some(vec![Some((graph.dtype(x)?, Window::of(node)?.shape(graph.shape(x)?)?))])
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (window, x) = (Window::of(node)?, node.input(0)?);
    let (dtype, channels) = (graph.dtype(x)?, *reshapeable(graph, x)?.last()?);
    let out = window.shape(graph.shape(x)?)?;
    let input = body.input("x");
    if !window.reverse {
        let y = window.map.partition_body(body, &input, channels, dtype);
        body.output(&y, "y");
        return Some(());
    }
    let mut y = window.map.reverse_body(body, &input, channels);
    if window.rank == 3 {
        y = body.reshape(&y, &[-1, out[1].int()?, channels]);
    }
    if node.int("residual")? != 0 {
        let residual = body.input("residual");
        y = body.op("Add", &[&residual, &y], vec![]);
    }
    body.output(&y, "y");
    Some(())
}
