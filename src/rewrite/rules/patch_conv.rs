//! Convolutions of tokens that make tokens, with the norm before them, such as those between the stages of PyramidTNT.
//!
//! ```text
//! x -> [TrtOptLayerNorm] -> Transpose -> Conv -> Transpose = y     becomes   TrtOptPatchConv(x) -> y
//! ```
//!
//! The index map proves that the map is the tokens and that tokens are made of it, through whatever Reshapes and Transposes. The maps may also be
//! words of patches that lie beside each other, each patch's together.
//!
//! Runs on what residual adds have left of the norms.

use crate::analysis::movement::{self, Walk};
use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{LayerNorm, MAX_CHANNELS, MAX_HIDDEN, MULTIPLE, PatchConv, PatchConvWeights};
use crate::rewrite::pattern::{float_tensor, fused_name};
use crate::rewrite::rules::block::{
    Fusion, Linear, Outcome, Rule, check_flops, check_products_of_few_rows, limits, offset_or_zeros, output,
};
use crate::rewrite::rules::depthwise_conv::check_operands;
use crate::rewrite::rules::token_map::{Map, ends, tokens_before};
use crate::rewrite::{ComputeCapability, Kind};

const RULE: &str = "patch-conv";

pub fn run(engine: &mut Engine) -> Result<()> {
    let gpu = engine.options().compute_capability;
    let rule = Rule {
        kind: Kind::PatchConv,
        name: RULE,
        // The site is called after the convolution, which is no site of another kind.
        part: Kind::PatchConv,
        part_of: &|_, _| vec![],
        fusion: &|graph, conv, label| Merge::of(graph, conv, label, gpu)?.fusion(graph, label),
    };
    rule.run_if_asked(engine, is_site)
}

/// A convolution of all channels of a map that is made of tokens, with a kernel of several places.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let (Some(map), Some(w)) = (node.input(0), node.input(1)) else { return false };
    let several = graph.static_tail::<2>(w).is_some_and(|kernel| kernel != [1, 1]);
    node.is("Conv") && node.int("group").unwrap_or(1) == 1 && several && Tokens::of(graph, map).is_some()
}

/// The tokens that a map is made of, and how they lie.
struct Tokens {
    source: ValueId,
    cell: [i64; 2],
    across: i64,
}

impl Tokens {
    fn of(graph: &Graph, map: ValueId) -> Option<Self> {
        if let Some(source) = tokens_before(graph, map) {
            return Some(Self { source, cell: [1; 2], across: 1 });
        }
        let Map { channels, sides, .. } = Map::of(graph, map)?;
        let moved = movement::permutation(graph, map, &Walk::default())?;
        // One axis less where no maps lie side by side.
        let source = moved.source;
        let inner: Option<Vec<i64>> = moved.sizes.get(1..)?.iter().map(|size| size.int()).collect();
        let (across, [down, right], cell, last) = match (inner?.as_slice(), moved.perm.as_slice()) {
            (&[down, across, right, ch, cw, last], [0, 2, 6, 1, 4, 3, 5]) => (across, [down, right], [ch, cw], last),
            (&[down, right, ch, cw, last], [0, 5, 1, 3, 2, 4]) => (1, [down, right], [ch, cw], last),
            _ => return None,
        };
        let fits = last == channels && [down.checked_mul(cell[0])?, right.checked_mul(cell[1])?] == sides;
        (fits && graph.constant(source).is_none()).then_some(Self { source, cell, across })
    }
}

/// A whole site.
struct Merge {
    op: PatchConv,
    x: ValueId,
    map: Map,
    w: TensorProto,
    b: Option<ValueId>,
    norm: Option<[ValueId; 2]>,
    columns: i64,
    /// Tokens that are made of what the convolution gives.
    tokens: Vec<ValueId>,
    covers: Vec<NodeId>,
}

impl Merge {
    fn of(graph: &Graph, conv: NodeId, label: &str, gpu: Option<ComputeCapability>) -> Outcome<Self> {
        let node = graph.node(conv);
        let miss = |reason: &str| Miss::new(label, reason);
        let (Some(value), Some(w), b) = (node.input(0), node.input(1), node.input(2)) else {
            return Err(miss("it has no operands"));
        };
        let map = Map::of(graph, value).ok_or_else(|| miss("it is of no map of known size"))?;
        let from = Tokens::of(graph, value).ok_or_else(|| miss("its map is not made of tokens"))?;
        check_operands(graph, label, value, std::iter::once(w).chain(b))?;
        let (op, columns) = convolution(graph, node, w, &map, &from, label)?;
        let ends = ends(graph, output(graph, conv)?, &|_| false);
        if ends.map || ends.tokens.is_empty() {
            return Err(miss("what it gives is read otherwise than as tokens").expected("tokens", "a map"));
        }
        let unfit = || miss("the shapes do not suit the plugin");
        let depth = op.depth(map.channels).ok_or_else(unfit)?;
        check_sizes(label, [map.channels, depth, columns])?;
        let [height, width] = op.out_grid().ok_or_else(unfit)?;
        check_products_of_few_rows(label, gpu)?;
        let product = Linear { x: from.source, w, b, sizes: [depth, columns], covers: vec![] };
        let rows = [map.images.clone(), height.into(), width.into()];
        check_flops(label, &rows, &[&product], limits::PATCH_CONV_FLOPS, "")?;
        let w = places_first(graph, w).ok_or_else(|| miss("the weights cannot be read"))?;

        let norm = norm_before(graph, conv, value, &from, map.channels);
        let covers = std::iter::once(conv).chain(norm.as_ref().map(|norm| norm.id)).collect();
        let x = norm.as_ref().map_or(from.source, |norm| norm.x);
        let op = PatchConv { epsilon: norm.as_ref().map_or(0.0, |norm| norm.epsilon), ..op };
        let norm = norm.map(|norm| norm.parameters);
        Ok(Self { op, x, map, w, b, norm, columns, tokens: ends.tokens, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Outcome<Fusion> {
        let name = fused_name(graph, label, "TrtOptPatchConv");
        let mut patch = Patch::new(graph, RULE);
        let dtype = graph.dtype(self.x).unwrap_or(DType::F32);
        let make = |patch: &mut Patch| {
            let x = patch.reshape(graph, self.x, &self.map.tokens()?, &format!("{name}/x"))?;
            let w = patch.constant(&format!("{name}/w"), self.w);
            let b = offset_or_zeros(self.b, patch, dtype, self.columns, &format!("{name}/b"));
            let [height, width] = self.op.out_grid()?;
            let shape = vec![self.map.images, height.checked_mul(width)?.into(), self.columns.into()];
            let y = patch.value(&name, Some(dtype), Some(shape));
            let weights = PatchConvWeights { w, b, norm: self.norm };
            patch.node(Node { name: name.clone(), ..self.op.node(x, &weights) }, [y]);
            for (i, &end) in self.tokens.iter().enumerate() {
                let new = patch.reshape(graph, y, graph.shape(end)?, &format!("{name}/tokens_{i}"))?;
                patch.replace(end, new);
            }
            Some(())
        };
        make(&mut patch).ok_or_else(|| Miss::new(label, "the shapes do not suit the plugin"))?;
        patch.cover(self.covers.iter().copied());
        Ok(Fusion { patch, name, covers: self.covers })
    }
}

/// The convolution, without a norm, and its columns.
fn convolution(
    graph: &Graph,
    node: &Node,
    w: ValueId,
    map: &Map,
    from: &Tokens,
    label: &str,
) -> Outcome<(PatchConv, i64)> {
    let miss = |reason: &str| Miss::new(label, reason);
    let shape = graph.static_shape(w).unwrap_or_default();
    let [columns, channels, kernel @ ..] = <[i64; 4]>::try_from(shape.clone())
        .map_err(|_| miss("the convolution is not of a map").expected("weights of four axes", format!("{shape:?}")))?;
    let differs = |name: &str, wanted: &[i64]| node.ints(name).filter(|found| *found != wanted);
    for (name, wanted) in [("dilations", [1; 2]), ("kernel_shape", kernel)] {
        if let Some(found) = differs(name, &wanted) {
            return Err(miss("the places of its kernel do not lie side by side")
                .expected(format!("{name} {wanted:?}"), format!("{found:?}")));
        }
    }
    if let Some(auto @ ("SAME_UPPER" | "SAME_LOWER")) = node.string("auto_pad") {
        return Err(miss("its padding depends on the map").expected("pads", auto));
    }
    let valid = node.string("auto_pad") == Some("VALID");
    let sizes = |name: &str| node.ints(name).and_then(|found| found.try_into().ok());
    let op = PatchConv {
        epsilon: 0.0,
        grid: map.sides,
        kernel,
        strides: sizes("strides").unwrap_or([1; 2]),
        pads: node.ints("pads").filter(|_| !valid).and_then(|pads| pads.try_into().ok()).unwrap_or([0; 4]),
        cell: from.cell,
        across: from.across,
    };
    if op.out_grid().is_none() || channels != map.channels {
        let found = format!("kernel {kernel:?}, strides {:?}, pads {:?}", op.strides, op.pads);
        return Err(miss("it goes over the map in other steps").expected("pads smaller than the kernel", found));
    }
    Ok((op, columns))
}

fn check_sizes(label: &str, [channels, depth, columns]: [i64; 3]) -> Outcome<()> {
    if channels % MULTIPLE != 0 || columns % MULTIPLE != 0 {
        return Err(Miss::new(label, "the tensor cores take no such sizes")
            .expected(format!("multiples of {MULTIPLE}"), format!("{channels} channels, {columns} columns")));
    }
    if depth > MAX_HIDDEN || columns > MAX_CHANNELS {
        return Err(Miss::new(label, "its kernel is too large").expected(
            format!("at most {MAX_HIDDEN} values under it and {MAX_CHANNELS} columns"),
            format!("{depth} and {columns}"),
        ));
    }
    Ok(())
}

/// The weights `[D, C, kh, kw]` as a matrix `[kh*kw*C, D]`.
fn places_first(graph: &Graph, w: ValueId) -> Option<TensorProto> {
    let shape: [i64; 4] = graph.static_shape(w)?.try_into().ok()?;
    let sizes = shape.iter().map(|&n| usize::try_from(n)).collect::<std::result::Result<Vec<_>, _>>().ok()?;
    let &[columns, channels, height, width] = &sizes[..] else { return None };
    let places = height.checked_mul(width)?;
    let depth = places.checked_mul(channels)?;
    let values = graph.constant(w)?.to_f64_vec().ok().filter(|v| Some(v.len()) == depth.checked_mul(columns))?;
    let at = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        values[(column * channels + row % channels) * places + row / channels]
    };
    let moved: Vec<f64> = (0..values.len()).map(at).collect();
    float_tensor(graph.dtype(w)?, &[depth.try_into().ok()?, shape[0]], &moved)
}

/// The norm of the tokens.
struct Norm {
    id: NodeId,
    x: ValueId,
    parameters: [ValueId; 2],
    epsilon: f32,
}

/// The norm that is made for the convolution alone.
fn norm_before(graph: &Graph, conv: NodeId, map: ValueId, from: &Tokens, channels: i64) -> Option<Norm> {
    let (id, node) = graph.producer(from.source)?;
    let norm = LayerNorm::of(node).filter(|_| LayerNorm::adds_nothing(node))?;
    let &[Some(x), Some(scale), Some(bias)] = &node.inputs[..] else { return None };
    let fits = |v: ValueId| {
        graph.static_shape(v).is_some_and(|s| s == [channels])
            && graph.dtype(v) == graph.dtype(x)
            && graph.constant(v).is_some()
    };
    let region = movement::region(graph, map, &Walk::default())?;
    let own = |user: &NodeId| *user == conv || region.nodes.contains(user);
    let alone = |v: ValueId| !graph.is_output(v) && !graph.is_named_elsewhere(v) && graph.uses(v).iter().all(own);
    let mut moved = region.nodes.iter().flat_map(|&id| graph.node(id).outputs.iter().flatten().copied());
    let taken = norm.axes == 1 && norm.map.is_none() && fits(scale) && fits(bias);
    (taken && alone(from.source) && moved.all(alone)).then_some(Norm {
        id,
        x,
        parameters: [scale, bias],
        epsilon: norm.epsilon,
    })
}
