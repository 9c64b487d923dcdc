//! Patch embeddings: a convolution whose strides are its kernel, its map as tokens, and the norm behind it if there is one.
//!
//! ```text
//! x -> Conv -> Reshape -> Transpose(0, 2, 1)    \
//! x -> Conv -> Transpose(0, 2, 3, 1) [-> Reshape] -> [TrtOptLayerNorm] = y     becomes   TrtOptPatchEmbed(x) -> y
//! ```
//!
//! Runs on what the rule of norms has left. The image may be float32 where all else is float16: a cast before the convolution is
//! left out.
//!
//! ```text
//! tokens -> Transpose = m ;  TrtOptPatchEmbed(m)     becomes   TrtOptPatchEmbed(tokens)
//! ```
//!
//! Where the map turns out to be a view of tokens, once the rules behind have put the stage before on them, the op reads these: a
//! patch is then a few runs of channels, and nothing is moved for it.

use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{LayerNorm, MAX_CHANNELS, MAX_PATCH, MULTIPLE, PatchEmbed, PatchEmbedWeights};
use crate::rewrite::pattern::{float_tensor, fused_name, is_float_cast, only_user};
use crate::rewrite::rules::attn_block::regroups;
use crate::rewrite::rules::block::{
    Fusion, Linear, Outcome, Rule, check_flops, check_types, limits, output, single_use,
};
use crate::rewrite::rules::token_map::{self, Map, tokens_before};

const RULE: &str = "patch-embed";
const OF_TOKENS: &str = "patch-embed-tokens";

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: Kind::PatchEmbed,
        name: RULE,
        // The site is called after the convolution, which is no site of another kind.
        part: Kind::PatchEmbed,
        part_of: &|_, _| vec![],
        fusion: &|graph, conv, label| Embedding::of(graph, conv, label)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, is_site)
}

/// Embeddings of maps that are views of tokens read the tokens, or the ledger says why not.
pub fn of_tokens(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let maps: Vec<NodeId> = graph
        .nodes()
        .filter(|(_, n)| PatchEmbed::of(n).is_some_and(|op| op.grid.is_none()))
        .map(|(id, _)| id)
        .collect();
    for id in maps {
        if !engine.enabled(Kind::PatchEmbed, OF_TOKENS) {
            return Ok(());
        }
        let graph = engine.graph();
        let name = graph.node(id).name.clone();
        let made = match read_tokens(graph, id) {
            None => continue,
            Some(Ok(patch)) => engine.apply(patch)?,
            Some(Err(miss)) => Err(miss),
        };
        if let Err(miss) = made {
            engine.note(&name, &miss);
        }
    }
    Ok(())
}

/// The embedding of the tokens that its map is a view of; `None` where it is not.
fn read_tokens(graph: &Graph, id: NodeId) -> Option<Outcome<Patch>> {
    let node = graph.node(id);
    let (op, weights) = (PatchEmbed::of(node)?, PatchEmbed::weights(node)?);
    let map = node.input(0)?;
    let source = tokens_before(graph, map)?;
    let Map { channels, sides, .. } = Map::of(graph, map)?;
    let miss = |reason: &str| Miss::new(&graph.value(map).name, format!("it reads the map of its tokens, {reason}"));
    if channels % MULTIPLE != 0 {
        let miss = miss("whose channels are no whole accesses");
        return Some(Err(miss.expected(format!("a multiple of {MULTIPLE}"), channels)));
    }
    let [own, dtype] = [source, weights.w].map(|v| graph.dtype(v));
    if own != dtype {
        let name = |t: Option<DType>| t.map_or("an unknown type", DType::name);
        return Some(Err(miss("which are of another type").expected(name(dtype), name(own))));
    }
    let Some(w) = channels_innermost(graph, weights.w) else {
        return Some(Err(miss("since its weights cannot be read")));
    };
    let mut patch = Patch::new(graph, OF_TOKENS);
    let x = token_map::enter(&mut patch, graph, map, &node.name)?;
    let w = patch.constant(&format!("{}/w", node.name), w);
    let old = node.output(0)?;
    let y = patch.value_like(graph, &format!("{}/y", node.name), old);
    let of_tokens = PatchEmbed { grid: Some(sides), ..op }.node(x, &PatchEmbedWeights { w, ..weights });
    patch.node(Node { name: node.name.clone(), ..of_tokens }, [y]);
    patch.replace(old, y);
    patch.cover([id]);
    Some(Ok(patch))
}

/// The weights `[D, C, h, w]` as `[D, h, w, C]`.
fn channels_innermost(graph: &Graph, w: ValueId) -> Option<TensorProto> {
    let [columns, channels, height, width]: [i64; 4] = graph.static_shape(w)?.try_into().ok()?;
    let values = graph.constant(w)?.to_f64_vec().ok()?;
    let (channels, pixels) = (usize::try_from(channels).ok()?, usize::try_from(height.checked_mul(width)?).ok()?);
    let patch = channels.checked_mul(pixels).filter(|&patch| patch > 0)?;
    (usize::try_from(columns).ok()?.checked_mul(patch) == Some(values.len())).then_some(())?;
    let moved: Vec<f64> = values
        .chunks(patch)
        .flat_map(|row| (0..row.len()).map(move |i| row[i % channels * pixels + i / channels]))
        .collect();
    float_tensor(graph.dtype(w)?, &[columns, height, width, channels as i64], &moved)
}

/// A convolution of a map with strides, the result of which is made tokens.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let map = node.output(0).filter(|&map| graph.rank(map) == Some(4));
    let strides = node.ints("strides").is_some_and(|s| s.iter().any(|&stride| stride > 1));
    node.is("Conv") && strides && map.is_some_and(|map| becomes(graph, map, CHANNELS_LAST))
}

/// Permutations that bring the channels of a map behind its places, and back.
const CHANNELS_LAST: [&[i64]; 2] = [&[0, 2, 3, 1], &[0, 2, 1]];
const CHANNELS_FIRST: [&[i64]; 2] = [&[0, 3, 1, 2], &[0, 2, 1]];

fn permutes(node: &Node, order: [&[i64]; 2]) -> bool {
    node.is("Transpose") && node.ints("perm").is_some_and(|perm| order.contains(&perm))
}

/// Whether a reader of the value permutes it so, itself or regrouped.
fn becomes(graph: &Graph, value: ValueId, order: [&[i64]; 2]) -> bool {
    graph.uses(value).iter().any(|&user| {
        let node = graph.node(user);
        permutes(node, order) || (regroups(node) && node.output(0).is_some_and(|out| becomes(graph, out, order)))
    })
}

/// A whole patch embedding.
struct Embedding {
    op: PatchEmbed,
    x: ValueId,
    weights: PatchEmbedWeights,
    /// Of the weights.
    sizes: [i64; 4],
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Embedding {
    fn of(graph: &Graph, conv: NodeId, label: &str) -> Outcome<Self> {
        let node = graph.node(conv);
        let (linear, sizes) = convolution(graph, node, label)?;
        let shape = graph.shape(linear.x).unwrap_or_default().to_vec();
        let map = PatchEmbed { epsilon: 0.0, rank: 4, grid: None }.shape(&shape, sizes).ok_or_else(|| {
            Miss::new(label, "the convolution is of no map of known size")
                .expected(format!("[B, {}, H, W] of integers but for B", sizes[1]), shape_text(&shape))
        })?;
        let mut covers = vec![conv];
        let tokens = tokens(graph, output(graph, conv)?, &map, &mut covers)?;
        check_types(graph, label, linear.x, [&linear, &linear])?;
        check_sizes(label, &linear)?;
        if !limits::EMBED_ANY_ROWS.iter().zip(linear.sizes).all(|(&most, size)| size <= most) {
            let [pixels, columns] = limits::EMBED_ANY_ROWS;
            let small = format!(", or {pixels} values a patch and {columns} columns");
            check_flops(label, &map[..3], &[&linear], limits::EMBED_FLOPS, &small)?;
        }
        let norm = norm_behind(graph, tokens, &linear);
        if norm.is_none() && goes_back(graph, tokens) {
            return Err(Miss::new(label, "its tokens become a map again, so that nothing would be saved")
                .expected("a reader of tokens", "a Transpose of the channels to the front"));
        }
        let (out, epsilon) = match &norm {
            Some(norm) => {
                covers.extend(&norm.covers);
                (norm.out, norm.epsilon)
            }
            None => (tokens, 0.0),
        };
        let rank = if graph.shape(out) == Some(&map[..]) { 4 } else { 3 };
        let weights = PatchEmbedWeights { w: linear.w, b: linear.b, norm: norm.map(|norm| norm.parameters) };
        let op = PatchEmbed { epsilon, rank, grid: None };
        Ok(Self { op, x: before_cast(graph, linear.x), weights, sizes, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let name = fused_name(graph, label, "TrtOptPatchEmbed");
        let mut patch = Patch::new(graph, RULE);
        let unfit = || Miss::new(label, "the shapes do not suit the plugin");
        let shape = self.op.shape(graph.shape(self.x).unwrap_or_default(), self.sizes).ok_or_else(unfit)?;
        let y = patch.value(&name, graph.dtype(self.weights.w), Some(shape));
        let mut fused = self.op.node(self.x, &self.weights);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        let to = graph.shape(self.out).ok_or_else(unfit)?;
        let y = patch.reshape(graph, y, to, &format!("{name}/shape")).ok_or_else(unfit)?;
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        Ok(Fusion { patch, name, covers: self.covers })
    }
}

/// The convolution as a product of patches, and the sizes of its weights.
fn convolution(graph: &Graph, node: &Node, label: &str) -> Outcome<(Linear, [i64; 4])> {
    let miss = |reason: &str| Miss::new(label, reason);
    let (Some(x), Some(w)) = (node.input(0), node.input(1)) else {
        return Err(miss("it has no operands"));
    };
    for v in std::iter::once(w).chain(node.input(2)) {
        if graph.constant(v).is_none() {
            return Err(Miss::new(&graph.value(v).name, "an operand of the convolution is no weight")
                .expected("a constant", "a computed value"));
        }
    }
    let shape = graph.static_shape(w).unwrap_or_default();
    let sizes: [i64; 4] = shape.clone().try_into().map_err(|_| {
        miss("the convolution is not of a map").expected("weights of four axes", format!("{} axes", shape.len()))
    })?;
    let [columns, channels, patch @ ..] = sizes;
    let group = node.int("group").unwrap_or(1);
    if group != 1 {
        return Err(miss("the convolution is in groups").expected("one group", group));
    }
    let all = |name: &str, wanted: &[i64]| match node.ints(name) {
        Some(found) if found != wanted => Some((format!("{wanted:?}"), format!("{found:?}"))),
        _ => None,
    };
    if let Some((wanted, found)) = all("dilations", &[1, 1]) {
        return Err(miss("the convolution is dilated").expected(wanted, found));
    }
    if let Some((wanted, found)) = all("kernel_shape", &patch) {
        return Err(miss("the kernel is not that of the weights").expected(wanted, found));
    }
    // A site has strides.
    if let Some((wanted, found)) = all("strides", &patch) {
        return Err(miss("patches overlap or leave pixels out").expected(format!("strides {wanted}"), found));
    }
    let whole = graph.static_tail::<2>(x).is_some_and(|size| size.iter().zip(patch).all(|(n, by)| n % by == 0));
    let padded = match node.string("auto_pad") {
        // Where patches fill the map, no padding is the same.
        Some(auto @ ("SAME_UPPER" | "SAME_LOWER")) if !whole => Some(auto.to_owned()),
        Some("SAME_UPPER" | "SAME_LOWER" | "VALID") => None,
        _ => all("pads", &[0; 4]).map(|(_, found)| found),
    };
    if let Some(found) = padded {
        return Err(miss("the map is padded").expected("no padding", found));
    }
    let size = patch[0].checked_mul(patch[1]).and_then(|n| n.checked_mul(channels));
    let size = size.ok_or_else(|| miss("the weights are too large"))?;
    Ok((Linear { x, w, b: node.input(2), sizes: [size, columns], covers: vec![] }, sizes))
}

/// What the map of the convolution is as tokens: after nodes that only regroup it and a permutation, none of which is read otherwise.
fn tokens(graph: &Graph, map: ValueId, shape: &[Dim], covers: &mut Vec<NodeId>) -> Outcome<ValueId> {
    let [batch, height, width, columns] = shape else {
        return Err(Miss::new(&graph.value(map).name, "the convolution makes no map"));
    };
    let mut value = map;
    let transpose = loop {
        let user = single_use(graph, value)?;
        covers.push(user);
        let node = graph.node(user);
        if !regroups(node) {
            break user;
        }
        value = output(graph, user)?;
    };
    let (node, label) = (graph.node(transpose), graph.node_label(transpose));
    let line = height.mul(width).ok_or_else(|| Miss::new(&label, "the map is too large"))?;
    let wanted: Vec<Dim> = match node.ints("perm") {
        Some([0, 2, 3, 1]) => [batch, columns, height, width].map(Clone::clone).into(),
        _ => vec![batch.clone(), columns.clone(), line],
    };
    let found = graph.shape(value).unwrap_or_default();
    if !permutes(node, CHANNELS_LAST) || found != wanted {
        return Err(Miss::new(label, "the map is regrouped otherwise than to tokens").expected(
            format!("a Transpose of {}", shape_text(&wanted)),
            format!("{} of {}", node.op, shape_text(found)),
        ));
    }
    output(graph, transpose)
}

fn check_sizes(label: &str, linear: &Linear) -> Outcome<()> {
    let [pixels, columns] = linear.sizes;
    if pixels > MAX_PATCH || columns > MAX_CHANNELS {
        return Err(Miss::new(label, "the patches are too large").expected(
            format!("at most {MAX_PATCH} values a patch and {MAX_CHANNELS} columns"),
            format!("{pixels} and {columns}"),
        ));
    }
    Ok(())
}

/// The value before a cast of float32 to the type of the weights.
fn before_cast(graph: &Graph, x: ValueId) -> ValueId {
    let cast = graph.producer(x).filter(|(_, node)| is_float_cast(graph, node)).and_then(|(_, node)| node.input(0));
    match cast {
        Some(float) if graph.dtype(float) == Some(DType::F32) && graph.dtype(x) == Some(DType::F16) => float,
        _ => x,
    }
}

/// The norm that alone reads the tokens.
struct Norm {
    parameters: [ValueId; 2],
    epsilon: f32,
    out: ValueId,
    covers: Vec<NodeId>,
}

fn norm_behind(graph: &Graph, tokens: ValueId, linear: &Linear) -> Option<Norm> {
    let (mut value, mut covers) = (tokens, vec![]);
    loop {
        let user = only_user(graph, value)?;
        covers.push(user);
        let node = graph.node(user);
        if regroups(node) {
            value = node.output(0)?;
            continue;
        }
        let norm = LayerNorm::of(node)?;
        let &[Some(x), Some(scale), Some(bias)] = &node.inputs[..] else { return None };
        let parameter = |v: ValueId| {
            graph.static_shape(v).is_some_and(|s| s == linear.sizes[1..]) && graph.dtype(v) == graph.dtype(linear.w)
        };
        let plain = norm.axes == 1 && norm.map.is_none() && LayerNorm::adds_nothing(node);
        let fits =
            plain && x == value && [scale, bias].into_iter().all(|v| parameter(v) && graph.constant(v).is_some());
        return fits.then_some(Norm { parameters: [scale, bias], epsilon: norm.epsilon, out: node.output(0)?, covers });
    }
}

/// Whether the tokens are only read to be made a map again.
fn goes_back(graph: &Graph, value: ValueId) -> bool {
    let users = graph.uses(value);
    let back = |&user: &NodeId| {
        let node = graph.node(user);
        permutes(node, CHANNELS_FIRST) || (regroups(node) && node.output(0).is_some_and(|out| goes_back(graph, out)))
    };
    !users.is_empty() && !graph.is_output(value) && users.iter().all(back)
}
