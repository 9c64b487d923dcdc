//! `TrtOptBlockChain`.

use super::attention::{self, Term};
use super::body::Body;
use super::mlp_block::is_tanh;
use super::patch_merge::{self, PatchMerge};
use super::window::MAP_ATTRIBUTES;
use super::{
    Attention, AttnBlock, AttributeKind, Layout, MlpBlock, OpDef, Shapes, WindowMap, attn_block, attribute, count, is,
    mlp_block, optional, pair, patch_merge_block, plugin_node, port,
};
use crate::ir::{Dim, Graph, Node, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, TensorProto};

/// The most pairs of blocks.
pub const MAX_PAIRS: usize = 32;

pub static DEF: OpDef = OpDef {
    name: "TrtOptBlockChain",
    summary: "TrtOptSwinAttnBlock or TrtOptAttnBlock, then TrtOptMlpBlock, then the next two: as often as there are pairs of them; in windows with a TrtOptPatchMergeBlock ahead, if there is one",
    replaces: "TrtOptSwinAttnBlock or TrtOptAttnBlock, and TrtOptMlpBlock, of all layers of a stage, and the TrtOptPatchMergeBlock ahead of it",
    inputs: &[
        port(
            "x",
            "[B, N, C]; in windows [B, H*W, C] or [B, H, W, C]; with merged > 0 the map before the merge, of E channels",
        ),
        port(
            "weights",
            "[L*(C*3*h*d + h*d*C + C*H + H*C)], packed matrices of each pair: w_qkv, w_proj, w1, w2; with merged > 0 4E*C more ahead",
        ),
        port(
            "vectors",
            "[L*(3*h*d + C + H + C)], of each pair: b_qkv, b_proj, b1, b2; with bias = 1 h*T*Tp more; with merged > 0 3C more ahead",
        ),
        optional("between", "[L-1, B, N, C], added to what each pair but the last gives; there if between = 1"),
    ],
    outputs: &[port("y", "shape of x; with merged > 0 [B, H*W, C] or [B, H, W, C], as x is")],
    attributes: &[
        attribute("epsilon", AttributeKind::Float, "added to the variance of every norm"),
        attribute("num_heads", AttributeKind::Int, "h"),
        attribute("head_dim", AttributeKind::Int, "d"),
        attribute("hidden", AttributeKind::Int, "H"),
        attribute("scale", AttributeKind::Float, "multiplies the scores"),
        attribute("approximate", AttributeKind::String, "none: GELU by erf; tanh: by its tanh form"),
        attribute("bias", AttributeKind::Int, "0 none, 1 dense: behind b_qkv, [h, T, Tp] of each pair"),
        attribute("mask_value", AttributeKind::Float, "what shifted pairs add between regions"),
        MAP_ATTRIBUTES[0],
        MAP_ATTRIBUTES[1],
        attribute("shift", AttributeKind::Ints(2), "cyclic shift of shifted pairs, vertical and horizontal"),
        MAP_ATTRIBUTES[3],
        attribute(
            "shifted",
            AttributeKind::Ints(MAX_PAIRS),
            "of each pair 1: its windows are shifted, 0: they are not; then -1",
        ),
        attribute("between", AttributeKind::Int, "1: between is there; not in windows"),
        attribute(
            "merged",
            AttributeKind::Int,
            "C, to which a patch merge ahead brings the channels; 0: there is none",
        ),
        attribute(
            "merged_grid",
            AttributeKind::Ints(2),
            "height and width of the token map before the merge; 0 without",
        ),
        attribute("order", AttributeKind::Ints(4), "of the merge, quadrant 2*dy + dx of each channel block; 0 without"),
    ],
    shapes,
    body,
    work,
};

/// The attributes of a `TrtOptBlockChain`.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockChain {
    /// Of all norms.
    pub epsilon: f32,
    pub num_heads: i64,
    pub head_dim: i64,
    pub hidden: i64,
    /// Of the scores.
    pub scale: f32,
    /// The tanh form of GELU instead of erf.
    pub tanh: bool,
    /// Scores have a dense bias.
    pub bias: bool,
    pub mask_value: f32,
    /// Its shift is that of the shifted pairs; [`WindowMap::NONE`]: no windows.
    pub map: WindowMap,
    /// Of each pair, whether its windows are shifted.
    pub shifted: Vec<bool>,
    /// Something is added between pairs; not in windows.
    pub between: bool,
    /// A patch merge ahead; in windows only.
    pub merged: Option<MergedChain>,
}

/// The patch merge ahead of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergedChain {
    /// Behind its product.
    pub channels: i64,
    /// Of the map before it.
    pub grid: [i64; 2],
    pub order: [i64; 4],
}

/// Vectors of a patch merge ahead, of a value each column: its offset and two of its weights' sum.
const MERGE_VECTORS: i64 = 3;

/// Sizes of a pair.
struct Sizes {
    channels: i64,
    /// Of all heads.
    inner: i64,
    hidden: i64,
    /// That attend to each other.
    tokens: i64,
    /// Contracted elements of a patch merge ahead, or 0.
    merged: i64,
}

impl BlockChain {
    /// The node, without outputs.
    pub fn node(&self, [x, weights, vectors]: [ValueId; 3], between: Option<ValueId>) -> Node {
        let inputs = [x, weights, vectors].into_iter().chain(between).map(Some).collect();
        Node { inputs, ..plugin_node(&DEF, self.attributes()) }
    }

    pub(super) fn attributes(&self) -> Vec<AttributeProto> {
        let mut shifted: Vec<i64> = self.shifted.iter().copied().map(i64::from).collect();
        shifted.resize(MAX_PAIRS, -1);
        let mut attributes = vec![
            AttributeProto::float("epsilon", self.epsilon),
            AttributeProto::int("num_heads", self.num_heads),
            AttributeProto::int("head_dim", self.head_dim),
            AttributeProto::int("hidden", self.hidden),
            AttributeProto::float("scale", self.scale),
            AttributeProto::string("approximate", if self.tanh { "tanh" } else { "none" }),
            AttributeProto::int("bias", self.bias.into()),
            AttributeProto::float("mask_value", self.mask_value),
        ];
        attributes.extend(self.map.attributes());
        attributes.push(AttributeProto::ints("shifted", &shifted));
        attributes.push(AttributeProto::int("between", self.between.into()));
        let merged = self.merged.unwrap_or(MergedChain { channels: 0, grid: [0; 2], order: [0; 4] });
        attributes.push(AttributeProto::int("merged", merged.channels));
        attributes.push(AttributeProto::ints("merged_grid", &merged.grid));
        attributes.push(AttributeProto::ints("order", &merged.order));
        attributes
    }

    /// The attributes of a node of this op; `None` of any other.
    pub fn of(node: &Node) -> Option<Self> {
        is(node, &DEF).then_some(())?;
        let values = node.ints("shifted")?;
        let pairs = values.iter().take_while(|&&v| v >= 0).count();
        let given = values[..pairs].iter().all(|&v| v <= 1) && values[pairs..].iter().all(|&v| v == -1);
        let positive = |name: &str| node.int(name).filter(|&n| n > 0);
        let flag = |name: &str| match node.int(name)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        let chain = Self {
            epsilon: node.float("epsilon")?,
            num_heads: positive("num_heads")?,
            head_dim: positive("head_dim")?,
            hidden: positive("hidden")?,
            scale: node.float("scale")?,
            tanh: is_tanh(node)?,
            bias: flag("bias")?,
            mask_value: node.float("mask_value")?,
            map: WindowMap::of(node)?,
            shifted: values[..pairs].iter().map(|&v| v == 1).collect(),
            between: flag("between")?,
            merged: match node.int("merged")? {
                0 => None,
                channels => {
                    let order: [i64; 4] = node.ints("order")?.try_into().ok()?;
                    let grid = pair(node, "merged_grid").filter(|grid| grid.iter().all(|&side| side > 0))?;
                    let known = channels > 0 && order.iter().all(|quadrant| (0..4).contains(quadrant));
                    known.then_some(Some(MergedChain { channels, grid, order }))?
                }
            },
        };
        // Without windows there is nothing to shift.
        let shifts = !chain.shifted.contains(&true) || !chain.map.is_none();
        let added = !chain.between || (chain.map.is_none() && pairs > 1);
        let halved = chain.merged.is_none_or(|merged| chain.map.grid == merged.grid.map(|side| (side - 1) / 2 + 1));
        (given && pairs > 0 && shifts && added && halved).then_some(chain)
    }

    /// The patch merge ahead, of an input of this shape.
    fn merge(&self, x: &[Dim]) -> Option<PatchMerge> {
        let MergedChain { grid, order, .. } = self.merged?;
        Some(PatchMerge { epsilon: self.epsilon, grid, order, rank: x.len() })
    }

    /// The shape of what pairs give, for that of the input.
    pub fn stream(&self, x: &[Dim]) -> Option<Vec<Dim>> {
        let Some(merged) = self.merged else { return Some(x.to_vec()) };
        let mut shape = self.merge(x)?.shape(x)?;
        *shape.last_mut()? = merged.channels.into();
        Some(shape)
    }

    /// The attention block of each pair, but for a bias and a mask.
    fn attention_block(&self, shifted: bool) -> AttnBlock {
        let map = if shifted { self.map } else { WindowMap { shift: [0; 2], ..self.map } };
        let (num_heads, scale, layout) = (self.num_heads, self.scale, Layout::Qkv);
        let attention = Attention { num_heads, scale, layout, bias: None, mask: None, map };
        AttnBlock { epsilon: self.epsilon, attention }
    }

    fn sizes(&self, x: &[Dim]) -> Option<Sizes> {
        let stream = self.stream(x)?;
        let tokens = self.attention_block(false).tokens(&stream)?;
        let inner = self.num_heads.checked_mul(self.head_dim)?;
        let merged = if self.merged.is_some() { x.last()?.int()?.checked_mul(4)? } else { 0 };
        Some(Sizes { channels: stream.last()?.int().filter(|&c| c > 0)?, inner, hidden: self.hidden, tokens, merged })
    }

    /// Sizes of the dense bias of a pair, rows padded.
    fn bias_size(&self, tokens: i64) -> [i64; 3] {
        [self.num_heads, tokens, padded(tokens)]
    }

    /// Elements of `weights` and of `vectors`.
    fn elements(&self, s: &Sizes) -> Option<[i64; 2]> {
        let pairs = i64::try_from(self.shifted.len()).ok()?;
        let of = |sizes: &[i64]| i64::try_from(count(sizes)?).ok();
        let matrices = s.matrices().iter().try_fold(0i64, |sum, size| sum.checked_add(of(size)?))?;
        let bias = if self.bias { of(&self.bias_size(s.tokens))? } else { 0 };
        let offsets = s.matrices().iter().try_fold(bias, |sum, [_, columns]| sum.checked_add(*columns))?;
        let of_merge = s.merged.checked_mul(s.channels)?;
        let vectors = if self.merged.is_some() { s.channels.checked_mul(MERGE_VECTORS)? } else { 0 };
        Some([matrices.checked_mul(pairs)?.checked_add(of_merge)?, offsets.checked_mul(pairs)?.checked_add(vectors)?])
    }
}

impl Sizes {
    /// Of `w_qkv`, `w_proj`, `w1` and `w2`.
    fn matrices(&self) -> [[i64; 2]; 4] {
        let (c, inner, hidden) = (self.channels, self.inner, self.hidden);
        [[c, 3 * inner], [inner, c], [c, hidden], [hidden, c]]
    }
}

/// The row of so many tokens of a dense bias, padded.
pub fn padded(tokens: i64) -> i64 {
    (tokens + 7) / 8 * 8
}

/// The axes of a matrix `[rows, columns]` once it is packed; `None` for one that cannot be.
fn packed_axes([rows, columns]: [i64; 2]) -> Option<[i64; 5]> {
    let depth = [128, 64, 32, 16].into_iter().find(|depth| rows % depth == 0)?;
    (columns % 8 == 0).then_some([rows / depth, columns / 8, depth / 8, 8, 8])
}

/// The elements of a matrix `[rows, columns]` in the order that the tensor cores read them in; `None` for sizes that they do not take.
pub fn packed<T: Copy>(matrix: &[T], sizes: [i64; 2]) -> Option<Vec<T>> {
    let across = usize::try_from(sizes[1]).ok()?;
    let axes = packed_axes(sizes)?.map(|n| usize::try_from(n).unwrap_or(0));
    let [deep, wide, slices, ..] = axes;
    let mut packed = Vec::with_capacity(matrix.len());
    for (block, column) in (0..deep).flat_map(|a| (0..wide).map(move |b| (a, b * 8))) {
        for row in (0..slices).map(|slice| (block * slices + slice) * 8) {
            for lane in 0..8 {
                packed.extend((0..8).map(|f| matrix.get((row + f) * across + column + lane).copied()));
            }
        }
    }
    packed.into_iter().collect()
}

fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    let (chain, x) = (BlockChain::of(node)?, node.input(0)?);
    let (dtype, shape) = (graph.dtype(x)?, graph.shape(x)?);
    let expected = chain.elements(&chain.sizes(shape)?)?;
    let found = [1, 2].map(|i| graph.static_shape(node.input(i)?));
    if chain.between {
        let addends = Dim::from(i64::try_from(chain.shifted.len()).ok()? - 1);
        let [first, of_pair @ ..] = graph.shape(node.input(3)?)? else { return None };
        (*first == addends && of_pair == shape).then_some(())?;
    }
    let stream = chain.stream(shape)?;
    (found == expected.map(|n| Some(vec![n]))).then(|| vec![Some((dtype, stream))])
}

/// Reads a one-dimensional input from its beginning on.
struct Reader<'a> {
    input: &'a str,
    next: i64,
}

impl Reader<'_> {
    fn take(&mut self, body: &mut Body, size: &[i64]) -> String {
        let elements: i64 = size.iter().product();
        let part = body.slice(self.input, 0, self.next, self.next + elements, 1);
        self.next += elements;
        if size.len() == 1 { part } else { body.reshape(&part, size) }
    }

    fn matrix(&mut self, body: &mut Body, size: [i64; 2]) -> Option<String> {
        let packed = self.take(body, &packed_axes(size)?);
        let unpacked = body.transpose(&packed, &[0, 2, 4, 1, 3]);
        Some(body.reshape(&unpacked, &size))
    }
}

/// Values are rounded between blocks, as those of an op for each block are; what is added between pairs is so before.
fn body(body: &mut Body, graph: &Graph, node: &Node) -> Option<()> {
    let (chain, x) = (BlockChain::of(node)?, node.input(0)?);
    let dtype = graph.dtype(x)?;
    shapes(graph, node)?;
    let shape = graph.shape(x)?;
    let (s, of_stream) = (chain.sizes(shape)?, chain.stream(shape)?);
    let steps = attn_block::Steps {
        tokens: s.tokens,
        channels: s.channels,
        head: chain.head_dim,
        rows: attn_block::rows_of(&of_stream)?,
        dtype,
    };
    let mut stream = body.input("x");
    let [weights, vectors] = ["weights", "vectors"].map(|name| body.input(name));
    let between = chain.between.then(|| body.input("between"));
    let [mut weights, mut vectors] = [&weights, &vectors].map(|input| Reader { input, next: 0 });
    // The norms are folded into the weights.
    let norm_of = |body: &mut Body, channels: i64| {
        let of = |v: f32| TensorProto::from_f32("", &[channels], &vec![v; usize::try_from(channels).unwrap_or(0)]);
        [1.0, 0.0].map(|v| body.constant(of(v)))
    };
    if let Some(merge) = chain.merge(shape) {
        let w = weights.matrix(body, [s.merged, s.channels])?;
        let b = vectors.take(body, &[s.channels]);
        // Sums of weights, which are for the norm behind the product alone.
        vectors.next += (MERGE_VECTORS - 1) * s.channels;
        let [scale, shift] = norm_of(body, s.merged);
        let merged = patch_merge::normalized(body, graph, x, &merge, [&stream, &scale, &shift])?;
        stream = patch_merge_block::product(body, [&merged, &w, &b], dtype, &of_stream)?;
    }
    let [scale, shift] = norm_of(body, s.channels);
    let mask = match chain.shifted.contains(&true) {
        true => Some(attention::shift_term(body, &chain.map, chain.mask_value, [s.tokens; 2])?),
        false => None,
    };
    let [of_qkv, of_proj, of_w1, of_w2] = s.matrices();
    for (pair, &shifted) in (0..).zip(&chain.shifted) {
        let w_qkv = weights.matrix(body, of_qkv)?;
        let w_proj = weights.matrix(body, of_proj)?;
        let b_qkv = vectors.take(body, &[3 * s.inner]);
        let mut terms = vec![];
        if chain.bias {
            let [heads, tokens, row] = chain.bias_size(s.tokens);
            let bias = vectors.take(body, &[1, heads, tokens, row]);
            let bias = body.slice(&bias, 3, 0, tokens, 1);
            terms.push(Term { value: body.cast(&bias, DType::F32), period: 1 });
        }
        terms.extend(mask.clone().filter(|_| shifted));
        let b_proj = vectors.take(body, &[s.channels]);
        let block = chain.attention_block(shifted);
        let of_block = [scale.clone(), shift.clone(), w_qkv, b_qkv, w_proj, b_proj];
        let attended = attn_block::steps(body, &block, &stream, &of_block, &terms, &steps);
        stream = body.cast(&attended, dtype);

        let w1 = weights.matrix(body, of_w1)?;
        let w2 = weights.matrix(body, of_w2)?;
        let b1 = vectors.take(body, &[s.hidden]);
        let b2 = vectors.take(body, &[s.channels]);
        let block = MlpBlock { epsilon: chain.epsilon, tanh: chain.tanh };
        let norm = [scale.clone(), shift.clone()];
        let mut y = mlp_block::steps(body, &block, &stream, Some(&norm), &[w1, b1, w2, b2], dtype);
        if let Some(between) = between.as_ref().filter(|_| pair + 1 < chain.shifted.len() as i64) {
            let added = body.slice(between, 0, pair, pair + 1, 1);
            let added = body.cast(&added, DType::F32);
            let added = body.reshape(&added, &[-1, s.tokens, s.channels]);
            y = body.op("Add", &[&y, &added], vec![]);
        }
        stream = body.cast(&y, dtype);
    }
    body.output(&stream, "y");
    Some(())
}

/// That of all blocks.
fn work(node: &Node, inputs: &[Vec<i64>], _: &[Vec<i64>]) -> Option<(u64, u64)> {
    let (chain, x) = (BlockChain::of(node)?, inputs.first()?);
    let dims: Vec<Dim> = x.iter().copied().map(Dim::Int).collect();
    let s = chain.sizes(&dims)?;
    let windows = if chain.map.is_none() { 1 } else { chain.map.windows() };
    let rows = count(&[*x.first()?, windows, s.tokens])?;
    let elements = rows.checked_mul(count(&[s.channels])?)?;
    let [channels, inner, hidden] = [count(&[s.channels])?, count(&[s.inner])?, count(&[s.hidden])?];
    let attention = attn_block::work_of(chain.num_heads, rows, s.tokens, [elements, channels, inner])?;
    let mlp = mlp_block::work_of(elements, [channels, hidden], true)?;
    let pairs = u64::try_from(chain.shifted.len()).ok()?;
    let of_all = |attention: u64, mlp: u64| attention.checked_add(mlp)?.checked_mul(pairs);
    let adds = if chain.between { elements.checked_mul(pairs - 1)? } else { 0 };
    let merged = patch_merge_block::work_of(rows, s.merged, s.channels)?;
    let flops = of_all(attention.0, mlp.0)?.checked_add(adds)?.checked_add(merged.0)?;
    Some((flops, of_all(attention.1, mlp.1)?.checked_add(merged.1)?))
}
