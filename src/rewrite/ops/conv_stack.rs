//! `TrtOptConvStack`.

use super::body::Body;
use super::{AttributeKind, OpDef, Shapes, attribute, count, is, optional, pair, plugin_node, port};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;

/// What the plugin takes: layers, channels of the image, of what is between layers, and of the tokens, and words of a patch.
pub const MAX_LAYERS: usize = 5;
pub const MAX_IMAGE_CHANNELS: i64 = 4;
pub const MAX_BETWEEN: i64 = 64;
pub const MAX_TOKEN_CHANNELS: i64 = 128;
pub const MAX_STACK_WORDS: i64 = 256;
/// Values that a block of the kernel, which has tokens of 2 x 4 places, may keep of all maps.
pub const MAX_TILE_VALUES: i64 = 32768;
const TILE: [i64; 2] = [2, 4];

pub static DEF: OpDef = OpDef {
    name: "TrtOptConvStack",
    summary: "3 x 3 convolutions of an image one behind another, each with ReLU, as tokens, plus an offset; and words of a map between",
    replaces: "Conv, Relu, Transpose, Reshape, Add",
    inputs: &[
        port("x", "[B, C, H, W], of T or float32"),
        port("weights", "[S], those of all layers, then of the words, in a row; docs/ops.md lists the parts"),
        port("offset", "[h*w, D], where h, w are the sides of the last layer's map"),
        optional("word_offset", "[ph*pw, E]; there if word_channels > 0"),
    ],
    outputs: &[
        port("y", "[B, h*w, D], of T"),
        optional("words", "[B*patches, ph*pw, E], of T; there if word_channels > 0"),
    ],
    attributes: &[
        attribute("channels", AttributeKind::Ints(MAX_LAYERS), "of what each layer gives, the last D; then 0"),
        attribute("strides", AttributeKind::Ints(MAX_LAYERS), "1 or 2, of each layer, down and across; then 0"),
        attribute("word_layer", AttributeKind::Int, "whose map one more convolution makes words of, or -1"),
        attribute("word_channels", AttributeKind::Int, "E, or 0"),
        attribute("patch", AttributeKind::Ints(2), "words of a patch down and across, ph, pw; without words 1, 1"),
    ],
    shapes,
    body,
    work,
};

/// The convolution that makes words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackWords {
    /// The layer whose map it reads.
    pub layer: usize,
    pub channels: i64,
    pub patch: [i64; 2],
}

/// The attributes of a `TrtOptConvStack`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvStack {
    /// Channels that each layer gives, and its stride.
    pub layers: Vec<(i64, i64)>,
    pub words: Option<StackWords>,
}

/// One of the convolutions.
struct Part {
    /// The layer whose map it reads; none: the image.
    source: Option<usize>,
    /// Channels that it reads, and as many as they are filled up to.
    channels: i64,
    inner: i64,
    /// Channels that it gives, and as many as there are weights for.
    columns: i64,
    padded: i64,
    stride: i64,
    /// Where its weights begin.
    begin: i64,
}

/// Channels of a place of the image, and places of a row of the kernel, as the weights have them.
const IMAGE_INNER: i64 = 4;

impl Part {
    /// Contracted elements, with zeros.
    fn depth(&self) -> i64 {
        if self.source.is_none() { 3 * IMAGE_INNER * IMAGE_INNER } else { 9 * self.inner }
    }

    /// Of 16 contracted elements, or of 32, the number of which a lane of the tensor cores has four that follow each other, or twice four.
    fn twice(&self) -> i64 {
        if self.inner >= 32 { 2 } else { 1 }
    }

    /// Where among its weights the one is that leads to `column` from contracted element `depth`.
    fn place(&self, column: i64, depth: i64) -> i64 {
        let (twice, steps) = (self.twice(), self.depth() / 16);
        let chunk = 16 * twice;
        let (step, lane) = (depth / chunk * twice + depth / 4 % twice, depth % chunk / (4 * twice));
        let row = column % 16 / 4 * 2 + column % 2;
        ((column / 16 * steps + step) * 32 + 4 * row + lane) * 8 + column / 2 % 2 * 4 + depth % 4
    }

    /// The weights `[D, C, 3, 3]` of packed ones.
    fn weights(&self, body: &mut Body, packed: &str) -> String {
        let (tiles, chunks) = (self.padded / 16, self.depth() / (16 * self.twice()));
        let own = body.slice(packed, 0, self.begin, self.begin + self.padded * self.depth(), 1);
        let lanes = body.reshape(&own, &[tiles, chunks, self.twice(), 4, 2, 4, 2, 4]);
        let rows = body.transpose(&lanes, &[0, 3, 6, 4, 1, 5, 2, 7]);
        let across = if self.source.is_none() { IMAGE_INNER } else { 3 };
        let places = body.reshape(&rows, &[self.padded, 3, across, self.inner]);
        let mut w = body.transpose(&places, &[0, 3, 1, 2]);
        for (axis, size) in [(0, self.columns), (1, self.channels), (3, 3)] {
            w = body.slice(&w, axis, 0, size, 1);
        }
        w
    }

    fn offsets(&self, body: &mut Body, packed: &str) -> String {
        let begin = self.begin + self.padded * self.depth();
        body.slice(packed, 0, begin, begin + self.columns, 1)
    }
}

/// As many channels as the tensor cores contract of a place.
fn inner(channels: i64) -> i64 {
    [16, 32].into_iter().find(|&n| channels <= n).unwrap_or(MAX_BETWEEN)
}

impl ConvStack {
    /// The node, without outputs.
    pub fn node(&self, x: ValueId, weights: ValueId, offset: ValueId, word_offset: Option<ValueId>) -> Node {
        let inputs = [x, weights, offset].into_iter().chain(word_offset).map(Some).collect();
        Node { inputs, ..plugin_node(&DEF, self.attributes()) }
    }

    pub(super) fn attributes(&self) -> Vec<AttributeProto> {
        let filled = |of: &dyn Fn(&(i64, i64)) -> i64| {
            let mut values: Vec<i64> = self.layers.iter().map(of).collect();
            values.resize(MAX_LAYERS, 0);
            values
        };
        let words = self.words.unwrap_or(StackWords { layer: 0, channels: 0, patch: [1; 2] });
        vec![
            AttributeProto::ints("channels", &filled(&|layer| layer.0)),
            AttributeProto::ints("strides", &filled(&|layer| layer.1)),
            AttributeProto::int("word_layer", self.words.map_or(-1, |words| words.layer as i64)),
            AttributeProto::int("word_channels", words.channels),
            AttributeProto::ints("patch", &words.patch),
        ]
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let (channels, strides) = (node.ints("channels")?, node.ints("strides")?);
        (channels.len() == MAX_LAYERS && strides.len() == MAX_LAYERS).then_some(())?;
        let count = channels.iter().take_while(|&&n| n > 0).count();
        let (ends, starts) = (|v: &[i64]| v[count..].iter().all(|&n| n == 0), strides[..count].iter());
        (ends(channels) && ends(strides) && starts.clone().all(|stride| [1, 2].contains(stride))).then_some(())?;
        let layers = channels.iter().copied().zip(strides.iter().copied()).take(count).collect();
        let (layer, channels, patch) = (node.int("word_layer")?, node.int("word_channels")?, pair(node, "patch")?);
        let words = match usize::try_from(layer) {
            Ok(layer) => Some(StackWords { layer, channels, patch }),
            Err(_) => (layer == -1 && channels == 0 && patch == [1; 2]).then_some(None)?,
        };
        let op = Self { layers, words };
        op.fits().then_some(op)
    }

    /// Whether the plugin takes so many layers, channels and words.
    pub fn fits(&self) -> bool {
        let last = self.layers.len().saturating_sub(1);
        let most = |i: usize| if i < last { MAX_BETWEEN } else { MAX_TOKEN_CHANNELS };
        let layers = self.layers.iter().enumerate().all(|(i, layer)| (1..=most(i)).contains(&layer.0));
        let words = self.words.is_none_or(|words| {
            let [down, across] = words.patch;
            let patch = down.checked_mul(across).is_some_and(|n| n <= MAX_STACK_WORDS) && down > 0 && across > 0;
            words.layer < last && (1..=MAX_BETWEEN).contains(&words.channels) && patch
        });
        (2..=MAX_LAYERS).contains(&self.layers.len()) && layers && words
    }

    /// All convolutions, that of the words last, and how many weights there are.
    fn parts(&self, image: i64) -> (Vec<Part>, i64) {
        let last = self.layers.len() - 1;
        let layers =
            self.layers.iter().enumerate().map(|(i, &(columns, stride))| (i.checked_sub(1), columns, stride, i < last));
        let words = self.words.iter().map(|words| (Some(words.layer), words.channels, 1, false));
        let mut begin = 0;
        let mut parts = vec![];
        for (source, columns, stride, between) in layers.chain(words) {
            let channels = source.map_or(image, |layer| self.layers[layer].0);
            let padded = if between { inner(columns) } else { (columns + 15) / 16 * 16 };
            let inner = if source.is_none() { IMAGE_INNER } else { inner(channels) };
            let part = Part { source, channels, inner, columns, padded, stride, begin };
            begin += padded * (part.depth() + 1);
            parts.push(part);
        }
        (parts, begin)
    }

    /// Sides of the map of each layer for an image of these, which are positive.
    pub fn sides(&self, image: [i64; 2]) -> Vec<[i64; 2]> {
        let mut sides = image;
        let halved = |&(_, stride): &(i64, i64)| {
            sides = sides.map(|side| (side - 1) / stride + 1);
            sides
        };
        self.layers.iter().map(halved).collect()
    }

    /// The weights of each convolution `[D, C, 3, 3]` and its offsets, that of the words last, as the plugin takes them.
    pub fn packed(&self, image: i64, convolutions: &[(Vec<f64>, Vec<f64>)]) -> Option<Vec<f64>> {
        let (parts, total) = self.parts(image);
        let mut packed = vec![0.0; usize::try_from(total).ok()?];
        (parts.len() == convolutions.len()).then_some(())?;
        for (part, (w, b)) in parts.iter().zip(convolutions) {
            (w.len() as i64 == part.columns * part.channels * 9 && b.len() as i64 == part.columns).then_some(())?;
            for (i, &value) in (0..).zip(w) {
                let (column, channel, down, across) =
                    (i / (9 * part.channels), i / 9 % part.channels, i / 3 % 3, i % 3);
                let row = if part.source.is_none() { IMAGE_INNER } else { 3 };
                let depth = (down * row + across) * part.inner + channel;
                packed[(part.begin + part.place(column, depth)) as usize] = value;
            }
            let offsets = (part.begin + part.padded * part.depth()) as usize;
            packed[offsets..offsets + b.len()].copy_from_slice(b);
        }
        Some(packed)
    }

    /// Multiply-adds of one image.
    pub fn macs(&self, image: [i64; 3]) -> Option<i64> {
        let sides = self.sides([image[1], image[2]]);
        let (parts, _) = self.parts(image[0]);
        let layer = |i: usize| if i < self.layers.len() { i } else { self.words.map_or(0, |words| words.layer) };
        parts.iter().enumerate().try_fold(0i64, |sum, (i, part)| {
            let [down, across] = sides[layer(i)];
            let each = 9 * part.channels * part.columns;
            sum.checked_add(down.checked_mul(across)?.checked_mul(each)?)
        })
    }

    /// Values that a block of the kernel keeps of all maps, those that it shares with blocks beside it among them.
    pub fn tile_values(&self) -> i64 {
        let mut places = TILE.map(|n| (0, n, n));
        let mut values = 0;
        for (i, &(channels, stride)) in self.layers.iter().enumerate().rev() {
            if self.words.is_some_and(|words| words.layer == i) {
                places = places.map(|(begin, end, tile)| (begin.min(-1), end.max(tile + 1), tile));
            }
            let count: i64 = places.iter().map(|(begin, end, _)| end - begin).product();
            values += if i + 1 < self.layers.len() { count * inner(channels) } else { 0 };
            places = places.map(|(begin, end, tile)| (begin * stride - 1, (end - 1) * stride + 2, tile * stride));
        }
        values + places.iter().map(|(begin, end, _)| end - begin).product::<i64>() * IMAGE_INNER
    }

    /// Shapes of the outputs for an image of this shape; `None` if the words do not fill their map.
    pub fn outputs(&self, x: &[Dim]) -> Option<Vec<Vec<Dim>>> {
        let [batch, Dim::Int(channels), Dim::Int(height), Dim::Int(width)] = x else { return None };
        ((1..=MAX_IMAGE_CHANNELS).contains(channels) && *height > 0 && *width > 0).then_some(())?;
        let sides = self.sides([*height, *width]);
        let (last, &(columns, _)) = (sides.last()?, self.layers.last()?);
        let mut shapes = vec![vec![batch.clone(), last[0].checked_mul(last[1])?.into(), columns.into()]];
        if let Some(StackWords { layer, channels, patch }) = self.words {
            let map = sides[layer];
            (0..2).all(|i| map[i] % patch[i] == 0).then_some(())?;
            let patches = (map[0] / patch[0]).checked_mul(map[1] / patch[1])?;
            shapes.push(vec![batch.mul(&patches.into())?, (patch[0] * patch[1]).into(), channels.into()]);
        }
        Some(shapes)
    }
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let op = ConvStack::of(node)?;
    let (x, weights) = (node.input(0)?, node.input(1)?);
    let (dtype, image) = (graph.dtype(weights)?, graph.dtype(x)?);
    (image == dtype || image == DType::F32).then_some(())?;
    let outputs = op.outputs(graph.shape(x)?)?;
    let (_, total) = op.parts(graph.shape(x)?[1].int()?);
    (graph.static_shape(weights)? == [total]).then_some(())?;
    for (i, shape) in outputs.iter().enumerate() {
        let offset = graph.shape(node.input(2 + i)?)?;
        (offset == &shape[1..]).then_some(())?;
    }
    Some(outputs.into_iter().map(|shape| Some((dtype, shape))).collect())
}

fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let op = ConvStack::of(node)?;
    shapes(graph, node)?;
    let (dtype, image) = (graph.dtype(node.input(1)?)?, graph.shape(node.input(0)?)?);
    let [_, channels, height, width] = image else { return None };
    let sides = op.sides([height.int()?, width.int()?]);
    let (parts, _) = op.parts(channels.int()?);
    // Operands are rounded, sums are not.
    let x = body.input("x");
    let x = body.cast(&x, dtype);
    let x = body.cast(&x, DType::F32);
    let float = |body: &mut Body, name: &str| {
        let value = body.input(name);
        body.cast(&value, DType::F32)
    };
    let (packed, offset) = (float(body, "weights"), float(body, "offset"));
    let word_offset = op.words.map(|_| float(body, "word_offset"));
    let convolve = |body: &mut Body, part: &Part, x: &str| {
        let (w, b) = (part.weights(body, &packed), part.offsets(body, &packed));
        let attributes = vec![
            AttributeProto::ints("kernel_shape", &[3; 2]),
            AttributeProto::ints("strides", &[part.stride; 2]),
            AttributeProto::ints("pads", &[1; 4]),
        ];
        let map = body.op("Conv", &[x, &w, &b], attributes);
        body.op("Relu", &[&map], vec![])
    };
    let (mut map, mut maps) = (x, vec![]);
    for part in &parts[..op.layers.len()] {
        let whole = convolve(body, part, &map);
        map = body.rounded(&whole, dtype);
        maps.push((whole, map.clone()));
    }
    let (last, [h, w]) = (&maps.last()?.0, *sides.last()?);
    let tokens = body.transpose(last, &[0, 2, 3, 1]);
    let tokens = body.reshape(&tokens, &[-1, h.checked_mul(w)?, op.layers.last()?.0]);
    let y = body.op("Add", &[&tokens, &offset], vec![]);
    let y = body.cast(&y, dtype);
    let words = match (op.words, word_offset) {
        (Some(words), Some(offset)) => {
            let (part, [ph, pw], [h, w]) = (parts.last()?, words.patch, sides[words.layer]);
            let map = convolve(body, part, &maps[words.layer].1);
            let cut = body.reshape(&map, &[-1, words.channels, h / ph, ph, w / pw, pw]);
            let cut = body.transpose(&cut, &[0, 2, 4, 3, 5, 1]);
            let cut = body.reshape(&cut, &[-1, ph * pw, words.channels]);
            let sum = body.op("Add", &[&cut, &offset], vec![]);
            Some(body.cast(&sum, dtype))
        }
        _ => None,
    };
    body.output(&y, "y");
    if let Some(words) = words {
        body.output(&words, "words");
    }
    Some(())
}

fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let op = ConvStack::of(node)?;
    let &[images, channels, height, width] = &inputs.first()?[..] else { return None };
    let macs = count(&[images, op.macs([channels, height, width])?])?;
    Some((macs.checked_mul(2)?, macs))
}
