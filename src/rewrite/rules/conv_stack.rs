//! Convolutions of an image one behind another, each with its ReLU, whose last map becomes tokens: the stem of PyramidTNT, which makes the words of
//! patches of one of the maps between, too.
//!
//! ```text
//! x -> Conv -> Relu -> Conv -> Relu -> ... -> Relu -> Transpose -> Reshape [-> Add] = tokens
//!                   -> Conv -> Relu -> Reshape -> Transpose -> Reshape [-> Add]     = words
//! becomes   TrtOptConvStack(x) -> tokens, words
//! ```
//!
//! Batch norms have been folded before. Index maps prove the order of the tokens, and of the words as for pixel embeddings. The image may be float32
//! where all else is float16: a cast before the first convolution is left out.

use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::onnx::DType;
use crate::rewrite::Kind;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{
    ConvStack, MAX_BETWEEN, MAX_IMAGE_CHANNELS, MAX_LAYERS, MAX_STACK_WORDS, MAX_TILE_VALUES, MAX_TOKEN_CHANNELS,
    PixelEmbed, StackWords,
};
use crate::rewrite::pattern::{fused_name, only_user};
use crate::rewrite::rules::block::{
    Fusion, Outcome, Rule, flops_text, limits, output, rounded, single_use, sole_reader, weight,
};
use crate::rewrite::rules::pixel_embed::{added, behind, cuts, is_words, position, rounding};
use crate::rewrite::rules::token_map::{Map, ends, is_tokens};

const RULE: &str = "conv-stack";

pub fn run(engine: &mut Engine) -> Result<()> {
    let rule = Rule {
        kind: Kind::ConvStack,
        name: RULE,
        // The site is called after the first convolution, which is no site of another kind.
        part: Kind::ConvStack,
        part_of: &|_, _| vec![],
        fusion: &|graph, conv, label| Stack::of(graph, conv, label)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, is_site)
}

/// A convolution of an image with few channels and patches that overlap, behind whose ReLU there is another convolution.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let site = || {
        let (map, shape) = (node.output(0).filter(|_| node.is("Conv"))?, graph.static_shape(node.input(1)?)?);
        let &[_, channels, ref kernel @ ..] = &shape[..] else { return None };
        // The next layers are part of the first's site.
        let next = graph.producer(node.input(0)?).is_some_and(|(_, before)| before.is("Relu"));
        let overlaps =
            !next && kernel.len() == 2 && node.ints("strides").unwrap_or(&[1; 2]) != kernel && kernel != [1, 1];
        let relus = graph.uses(map).iter().filter(|&&user| graph.node(user).is("Relu"));
        let mut maps = relus.filter_map(|&relu| graph.node(relu).output(0));
        let followed = maps.any(|map| !convolutions(graph, map).is_empty());
        Some(channels <= MAX_IMAGE_CHANNELS && overlaps && followed)
    };
    site().unwrap_or(false)
}

/// The convolutions that read a map.
fn convolutions(graph: &Graph, map: ValueId) -> Vec<NodeId> {
    let reads = |&&user: &&NodeId| graph.node(user).is("Conv") && graph.node(user).input(0) == Some(map);
    graph.uses(map).iter().filter(reads).copied().collect()
}

/// A convolution of three times three places with zeros around, and its ReLU.
struct Layer {
    dtype: DType,
    columns: i64,
    stride: i64,
    /// `[D, C, 3, 3]`, and offsets.
    weights: (Vec<f64>, Vec<f64>),
    /// What the ReLU gives.
    map: ValueId,
    covers: [NodeId; 2],
}

impl Layer {
    fn of(graph: &Graph, conv: NodeId) -> Outcome<Self> {
        let (node, label) = (graph.node(conv), graph.node_label(conv));
        let miss = |reason: &str| Miss::new(&label, reason);
        let (dtype, shape, w) = weight(graph, node.input(1).ok_or_else(|| miss("it has no operands"))?)?;
        let sizes: [i64; 4] = shape.try_into().map_err(|_| miss("the convolution is not of a map"))?;
        if !matches!(dtype, DType::F32 | DType::F16) {
            return Err(miss("the plugin takes no such type").expected("float or float16", dtype.name()));
        }
        let group = node.int("group").unwrap_or(1);
        if group != 1 {
            return Err(miss("the convolution is in groups").expected("one group", group));
        }
        let [columns, _, kernel @ ..] = sizes;
        if kernel != [3, 3] || node.ints("kernel_shape").is_some_and(|found| found != kernel) {
            let found = format!("{:?}", node.ints("kernel_shape").unwrap_or(&kernel));
            return Err(miss("the kernel is not of three times three places").expected("[3, 3]", found));
        }
        if let Some(dilations) = node.ints("dilations").filter(|found| *found != [1, 1]) {
            return Err(miss("the convolution is dilated").expected("[1, 1]", format!("{dilations:?}")));
        }
        let auto = node.string("auto_pad").unwrap_or("NOTSET");
        let pads = node.ints("pads").unwrap_or(&[0; 4]);
        if auto != "NOTSET" || pads != [1; 4] {
            let found = if auto == "NOTSET" { format!("{pads:?}") } else { auto.to_owned() };
            return Err(miss("there is not one row of zeros on each side").expected("pads [1, 1, 1, 1]", found));
        }
        let strides = node.ints("strides").unwrap_or(&[1; 2]);
        let stride = match strides {
            &[down, across] if down == across && [1, 2].contains(&down) => down,
            _ => {
                return Err(miss("its strides are others than the plugin has")
                    .expected("[1, 1] or [2, 2]", format!("{strides:?}")));
            }
        };
        let b = match node.input(2) {
            Some(b) => weight(graph, b).map(|(_, _, values)| values)?,
            None => vec![0.0; usize::try_from(columns).unwrap_or(0)],
        };
        let relu = sole_reader(graph, output(graph, conv)?, "Relu")?;
        let map = output(graph, relu)?;
        Ok(Self { dtype, columns, stride, weights: (w, b), map, covers: [conv, relu] })
    }
}

/// What is made of a map: a value in another order, with what is added to it.
struct End {
    out: ValueId,
    /// What is added; the same for all images.
    offset: Vec<f64>,
    covers: Vec<NodeId>,
}

/// The tokens that a map becomes, with what is added to each place.
fn tokens(graph: &Graph, map: ValueId) -> Outcome<End> {
    let label = &graph.value(map).name;
    let found = ends(graph, map, &|_| false);
    let (false, &[first]) = (found.map, &found.tokens[..]) else {
        return Err(Miss::new(label, "what the last convolution gives is read otherwise than as tokens once")
            .expected(
                "tokens",
                if found.map { "a map".to_owned() } else { format!("{} tokens", found.tokens.len()) },
            ));
    };
    let sizes = Map::of(graph, map).ok_or_else(|| Miss::new(label, "its map is of no known size"))?;
    let [_, places, columns] =
        sizes.tokens().ok_or_else(|| Miss::new(label, "its map is of no known size"))?.map(|dim| dim.int());
    let values = places.zip(columns).and_then(|(a, b)| usize::try_from(a.checked_mul(b)?).ok());
    let values = values.ok_or_else(|| Miss::new(label, "its map is of no known size"))?;
    let mut end = End { out: first, offset: vec![0.0; values], covers: vec![] };
    let mut passed = vec![];
    while let Some(id) = only_user(graph, end.out)
        && !graph.is_named_elsewhere(end.out)
        && let node = graph.node(id)
        && let Some(out) = node.output(0)
    {
        if let Some(constant) = added(graph, node, end.out) {
            let (dims, shape) = (graph.static_shape(constant).unwrap_or_default(), graph.shape(end.out));
            let own: i64 = dims.iter().product();
            // Of each place, and the same for all images.
            let spread = shape.is_some_and(|shape| {
                let places: Vec<_> = shape[1..].iter().map(|dim| dim.int()).collect();
                let dims: Vec<_> = dims.iter().copied().map(Some).collect();
                dims.ends_with(&places) && dims.len() <= shape.len() && graph.shape(out) == Some(shape)
            });
            if !spread || usize::try_from(own).ok() != Some(values) {
                break;
            }
            let (_, _, offset) = weight(graph, constant)?;
            end = End { out, offset, covers: [passed, vec![id]].concat() };
            break;
        }
        if node.input(0) != Some(end.out) || !is_tokens(graph, map, out) {
            break;
        }
        passed.push(id);
        end.out = out;
    }
    Ok(end)
}

/// The words that the map of a convolution becomes, with what is added to each; `images`: the axis of the image.
fn words(graph: &Graph, layer: &Layer) -> Option<([i64; 2], End)> {
    let Map { images, sides, .. } = Map::of(graph, layer.map)?;
    // Tokens are words of patches, too, of a whole map or a row of it.
    (layer.stride == 1 && tokens(graph, layer.map).is_err()).then_some(())?;
    let found = behind(graph, layer.map);
    let (last, op) = found.values.iter().enumerate().rev().find_map(|(last, &value)| {
        let of =
            |(grid, patch)| PixelEmbed { kernel: [3; 2], strides: [1; 2], pads: [1; 2], grid, patch, within: false };
        let mut patches = cuts(graph, value, sides).into_iter().map(of);
        patches.find(|op| is_words(graph, value, layer.map, &images, op, sides)).map(|op| (last, op))
    })?;
    let out = found.values[last];
    let count = op.words()?.checked_mul(layer.columns)?;
    let mut offset = vec![0.0; usize::try_from(count).ok()?];
    for &(_, at, constant) in found.adds.iter().filter(|(before, ..)| *before <= last) {
        let each = position(graph, at, constant, out, &images, &op, layer.columns)?;
        offset.iter_mut().zip(each).for_each(|(sum, value)| *sum += value);
    }
    Some((op.patch, End { out, offset, covers: found.nodes[..=last].to_vec() }))
}

/// A whole stack.
struct Stack {
    op: ConvStack,
    x: ValueId,
    dtype: DType,
    image: [i64; 3],
    /// Of all convolutions, that of the words last.
    weights: Vec<(Vec<f64>, Vec<f64>)>,
    tokens: End,
    words: Option<End>,
    covers: Vec<NodeId>,
}

impl Stack {
    fn of(graph: &Graph, conv: NodeId, label: &str) -> Outcome<Self> {
        let (mut layers, mut found): (Vec<Layer>, _) = (vec![Layer::of(graph, conv)?], None);
        while let Some(layer) = layers.last() {
            let next = convolutions(graph, layer.map);
            if next.is_empty() {
                break;
            }
            if graph.is_output(layer.map) || graph.is_named_elsewhere(layer.map) || graph.uses(layer.map).len() > 2 {
                return Err(several(graph, layer.map));
            }
            let next = match (graph.uses(layer.map), &next[..]) {
                (&[_], &[next]) => Layer::of(graph, next)?,
                (&[_, _], &[a, b]) if found.is_none() => {
                    // One of both makes words.
                    let branch =
                        |id| Layer::of(graph, id).ok().and_then(|layer| words(graph, &layer).map(|end| (layer, end)));
                    let (words, other) = match (branch(a), branch(b)) {
                        (Some(words), None) => (words, b),
                        (None, Some(words)) => (words, a),
                        _ => return Err(several(graph, layer.map)),
                    };
                    found = Some((layers.len() - 1, words));
                    Layer::of(graph, other)?
                }
                _ => return Err(several(graph, layer.map)),
            };
            layers.push(next);
        }
        let miss = |reason: &str| Miss::new(label, reason);
        let input = graph.node(conv).input(0).ok_or_else(|| miss("it has no operands"))?;
        let x = graph.producer(input).and_then(|(id, _)| rounding(graph, id)).unwrap_or(input);
        let dtype = layers[0].dtype;
        let image = graph.static_tail::<3>(x).filter(|sides| sides.iter().all(|&n| n > 0));
        let image = image.filter(|_| graph.rank(x) == Some(4)).ok_or_else(|| miss("the image is of no known size"))?;

        let stack = ConvStack {
            layers: layers.iter().map(|layer| (layer.columns, layer.stride)).collect(),
            words: found.as_ref().map(|&(layer, (ref words, (patch, _)))| StackWords {
                layer,
                channels: words.columns,
                patch,
            }),
        };
        let images = graph.shape(x).and_then(|shape| shape[0].eval(|_| Some(1))).unwrap_or(i64::MAX);
        check_sizes(label, &stack, images, image)?;
        let tokens = tokens(graph, layers[layers.len() - 1].map)?;
        let (words, end) = found.map(|(_, (layer, (_, end)))| (layer, end)).unzip();
        layers.extend(words);
        let other = |layer: &&Layer| layer.dtype != dtype;
        if let Some(odd) = layers.iter().find(other) {
            return Err(Miss::new(graph.node_label(odd.covers[0]), "weights are of several types")
                .expected(dtype.name(), odd.dtype.name()));
        }
        let ends = tokens.covers.iter().chain(end.iter().flat_map(|end| &end.covers)).copied();
        let covers = layers.iter().flat_map(|layer| layer.covers).chain(ends).collect();
        let weights = layers.into_iter().map(|layer| layer.weights).collect();
        Ok(Self { op: stack, x, dtype, image, weights, tokens, words: end, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let name = fused_name(graph, label, "TrtOptConvStack");
        let mut patch = Patch::new(graph, RULE);
        let unfit = || Miss::new(label, "the shapes do not suit the plugin");
        let shapes = self.op.outputs(graph.shape(self.x).unwrap_or_default()).ok_or_else(unfit)?;
        let packed = self.op.packed(self.image[0], &self.weights).ok_or_else(unfit)?;
        let weights = rounded(label, self.dtype, &[packed.len() as i64], &packed)?;
        let weights = patch.constant(&format!("{name}/weights"), weights);
        let ends: Vec<&End> = std::iter::once(&self.tokens).chain(&self.words).collect();
        let (mut offsets, mut outputs) = (vec![], vec![]);
        for ((end, shape), what) in ends.iter().zip(&shapes).zip(["offset", "word_offset"]) {
            let sizes: Option<Vec<i64>> = shape[1..].iter().map(|dim| dim.int()).collect();
            let tensor = rounded(label, self.dtype, &sizes.ok_or_else(unfit)?, &end.offset)?;
            offsets.push(patch.constant(&format!("{name}/{what}"), tensor));
            let own = if what == "offset" { name.clone() } else { format!("{name}/words") };
            outputs.push(patch.value(&own, Some(self.dtype), Some(shape.clone())));
        }
        let node = self.op.node(self.x, weights, offsets[0], offsets.get(1).copied());
        patch.node(Node { name: name.clone(), ..node }, outputs.iter().copied());
        for (end, &y) in ends.iter().zip(&outputs) {
            let to = graph.shape(end.out).ok_or_else(unfit)?;
            let shape = if y == outputs[0] { "shape" } else { "words_shape" };
            let y = patch.reshape(graph, y, to, &format!("{name}/{shape}")).ok_or_else(unfit)?;
            patch.replace(end.out, y);
        }
        patch.cover(self.covers.iter().copied());
        Ok(Fusion { patch, name, covers: self.covers })
    }
}

fn several(graph: &Graph, map: ValueId) -> Miss {
    // What a graph output is says more than how many read it.
    single_use(graph, map)
        .err()
        .unwrap_or_else(|| Miss::new(&graph.value(map).name, "it has another name, too"))
        .expected(
            "one convolution, or two of which one makes words",
            if graph.is_output(map) { "a graph output".to_owned() } else { format!("{} uses", graph.uses(map).len()) },
        )
}

fn check_sizes(label: &str, stack: &ConvStack, images: i64, image: [i64; 3]) -> Outcome<()> {
    let channels: Vec<i64> = stack.layers.iter().map(|layer| layer.0).collect();
    if !stack.fits() || !(1..=MAX_IMAGE_CHANNELS).contains(&image[0]) {
        return Err(Miss::new(label, "the plugin has no such layers").expected(
            format!(
                "2 to {MAX_LAYERS} of at most {MAX_BETWEEN} channels, the last of {MAX_TOKEN_CHANNELS}, words of {MAX_BETWEEN}, {MAX_STACK_WORDS} a patch"
            ),
            match stack.words {
                Some(words) => format!("{channels:?}, words of {}, {:?} a patch", words.channels, words.patch),
                None => format!("{channels:?}"),
            },
        ));
    }
    let values = stack.tile_values();
    if values > MAX_TILE_VALUES {
        return Err(Miss::new(label, "a few tokens depend on so much that the layers are better apart")
            .expected(format!("at most {MAX_TILE_VALUES} values of all maps for 8 tokens"), values));
    }
    let found = stack.macs(image).and_then(|macs| macs.checked_mul(2)?.checked_mul(images));
    if found.is_none_or(|flops| flops > limits::STACK_FLOPS) {
        return Err(Miss::new(label, "its convolutions are so large that TensorRT's are faster").expected(
            format!("at most {} in all of them, an open batch counted as 1", flops_text(limits::STACK_FLOPS)),
            found.map_or_else(|| "more than can be counted".into(), flops_text),
        ));
    }
    Ok(())
}
