//! Layer norms, native or decomposed.
//!
//! ```text
//! x -> ReduceMean -> Sub(x, .) = d -> Pow 2 | Mul(d, d) -> ReduceMean -> Add eps -> Sqrt | Pow +-0.5 = r   (seed)
//! y = w * d / r + b     in any association: Div, Reciprocal + Mul, Div(1, r) + Mul, w * (d * r), (w * r) * d, ...
//! ```
//!
//! Casts between floating types may stand anywhere, and reshapes that restore a reduced axis. A norm over other than
//! the last axes is another op and is refused, and so is one that subtracts no mean.

use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::AttributeProto;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{Addends, LayerNorm, WindowMap};
use crate::rewrite::pattern::{
    Product, float_tensor, follow_casts, fused_name, is_scalar, normalize_axis, only_user, product, reduce_axes,
    scalar, strip_casts, strip_unit_axes,
};
use crate::rewrite::{Kind, Site, Status};

const RULE: &str = "layernorm";
const NATIVE: &str = "TensorRT has its own layer for it";
/// How deep a product of the parts of a norm may nest.
const DEPTH: u32 = 8;

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let anchors: Vec<NodeId> = graph.order().iter().copied().filter(|&id| is_anchor(graph, id)).collect();
    for id in anchors {
        let label = engine.graph().node_label(id);
        if !engine.enabled(Kind::LayerNorm, RULE) {
            let miss = engine.disabled_miss(Kind::LayerNorm, RULE);
            engine.record_miss(Kind::LayerNorm, &label, RULE, miss);
            continue;
        }
        let graph = engine.graph();
        let standard = engine.standard(Kind::LayerNorm, &label, NATIVE);
        if let Some(reason) = &standard
            && graph.node(id).is("LayerNormalization")
        {
            let site = Site::new(Kind::LayerNorm, Status::Kept, &label, RULE).because(reason);
            engine.record(site);
            continue;
        }
        let outcome = match match_norm(graph, id).and_then(|norm| norm.patch(graph, &label, standard.is_none())) {
            Ok((patch, name)) => engine.apply(patch)?.map(|()| name),
            Err(miss) => Err(miss),
        };
        match outcome {
            Ok(name) => {
                let status = if standard.is_none() { Status::Fused } else { Status::Kept };
                let site = Site::new(Kind::LayerNorm, status, &label, RULE).into_node(&name);
                engine.record(match standard {
                    Some(reason) => site.because(reason),
                    None => site,
                });
            }
            Err(miss) => engine.record_miss(Kind::LayerNorm, &label, RULE, miss),
        }
    }
    Ok(())
}

/// Every node that a norm has just one of.
fn is_anchor(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let native = ["LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"];
    native.iter().any(|op| node.is(op))
        || root_power(graph, node).is_some_and(|(_, variance)| variance_mean(graph, variance).is_some())
}

/// For a square root or its reciprocal: +1 or -1, and the value under it.
fn root_power(graph: &Graph, node: &Node) -> Option<(i32, ValueId)> {
    let input = node.input(0)?;
    if node.is("Sqrt") {
        return Some((1, input));
    }
    if node.is("Pow") {
        let exponent = node.input(1)?;
        if is_scalar(graph, exponent, 0.5) {
            return Some((1, input));
        }
        if is_scalar(graph, exponent, -0.5) {
            return Some((-1, input));
        }
    }
    None
}

/// For `ReduceMean(..) + epsilon` (or without the addition): the mean's node and epsilon.
fn variance_mean(graph: &Graph, value: ValueId) -> Option<(NodeId, Option<f64>)> {
    let (id, node) = graph.producer(strip_unit_axes(graph, value))?;
    if node.is("ReduceMean") {
        return Some((id, None));
    }
    if !node.is("Add") {
        return None;
    }
    [(0, 1), (1, 0)].into_iter().find_map(|(mean, epsilon)| {
        let epsilon = scalar(graph, node.input(epsilon)?)?;
        let (id, mean) = graph.producer(strip_unit_axes(graph, node.input(mean)?))?;
        mean.is("ReduceMean").then_some((id, Some(epsilon)))
    })
}

/// A recognized norm.
struct Norm {
    x: ValueId,
    out: ValueId,
    /// Number of normalized trailing axes.
    axes: usize,
    epsilon: f64,
    scale: Affine,
    bias: Affine,
    covers: Vec<NodeId>,
}

/// A scale or bias.
enum Affine {
    None,
    /// A value of the right type and shape.
    Value(ValueId),
    /// The elements over the normalized axes.
    Elements(Vec<f64>),
}

fn match_norm(graph: &Graph, id: NodeId) -> Result<Norm, Miss> {
    let node = graph.node(id);
    if node.is("LayerNormalization") {
        match_native(graph, id)
    } else if root_power(graph, node).is_some() {
        match_decomposed(graph, id)
    } else {
        Err(Miss::new(graph.node_label(id), format!("{} is another norm than layer norm", node.op))
            .expected("LayerNormalization or its decomposition", &node.op))
    }
}

fn match_native(graph: &Graph, id: NodeId) -> Result<Norm, Miss> {
    let node = graph.node(id);
    let label = graph.node_label(id);
    let miss = |reason: &str| Miss::new(&label, reason);
    let (x, out) = node.input(0).zip(node.output(0)).ok_or_else(|| miss("it has no input or output"))?;
    let rank = graph.rank(x).ok_or_else(|| miss("the rank of its input is not known"))?;
    let axis = normalize_axis(node.int("axis").unwrap_or(-1), rank).ok_or_else(|| miss("its axis is out of range"))?;
    for (i, name) in [(1, "Mean"), (2, "InvStdDev")] {
        if node.output(i).is_some_and(|extra| !graph.uses(extra).is_empty() || graph.is_output(extra)) {
            return Err(miss("an output besides Y is used").expected("Y alone", name));
        }
    }
    // A cast to float32 before and back after belongs to the norm: the plugin computes in float32 anyway.
    let (after, before) = (follow_casts(graph, out), strip_casts(graph, x));
    let (x, out) = if after != out && graph.dtype(after) == graph.dtype(before) { (before, after) } else { (x, out) };
    let normal = normalized(graph, x, axis, &label)?;
    let dtype = supported(graph, x, &label)?;
    let affine = |i: usize| match node.input(i) {
        None => Ok(Affine::None),
        Some(v) => affine_of(graph, v, &normal, dtype).ok_or_else(|| {
            let found = graph.shape(v).map_or("an unknown shape".into(), shape_text);
            miss("scale or bias does not fit the normalized axes").expected(shape_text(&normal), found)
        }),
    };
    let epsilon = f64::from(node.float("epsilon").unwrap_or(1e-5));
    Ok(Norm { x, out, axes: rank - axis, epsilon, scale: affine(1)?, bias: affine(2)?, covers: vec![id] })
}

/// The shape of the axes from `axis` on, which must be integers.
fn normalized(graph: &Graph, x: ValueId, axis: usize, label: &str) -> Result<Vec<Dim>, Miss> {
    let shape = graph.shape(x).ok_or_else(|| Miss::new(label, "the shape of its input is not known"))?;
    let normal = shape[axis..].to_vec();
    if normal.iter().all(|d| d.int().is_some_and(|d| d > 0)) {
        return Ok(normal);
    }
    Err(Miss::new(label, "the size of a normalized axis is not static").expected("integers", shape_text(&normal)))
}

fn supported(graph: &Graph, x: ValueId, label: &str) -> Result<DType, Miss> {
    match graph.dtype(x) {
        Some(dtype @ (DType::F16 | DType::F32)) => Ok(dtype),
        other => Err(Miss::new(label, "its element type is not supported")
            .expected("float16 or float", other.map_or("unknown", DType::name))),
    }
}

fn match_decomposed(graph: &Graph, seed: NodeId) -> Result<Norm, Miss> {
    let label = graph.node_label(seed);
    let node = graph.node(seed);
    let internal = || Miss::new(&label, "it is not the root of a variance");
    let (power, variance) = root_power(graph, node).ok_or_else(internal)?;
    let (mean_square, epsilon) = variance_mean(graph, variance).ok_or_else(internal)?;
    let epsilon = epsilon.ok_or_else(|| {
        Miss::new(&label, "no constant epsilon is added to the variance").expected("Add epsilon", "ReduceMean")
    })?;
    let mut covers = vec![seed, mean_square];
    covers.extend(graph.producer(strip_unit_axes(graph, variance)).map(|(id, _)| id));

    // Up: the square, the difference, the mean.
    let missing = |at: NodeId, expected: &str| {
        let reason = "the variance is computed otherwise";
        Miss::new(graph.node_label(at), reason).expected(expected, &graph.node(at).op)
    };
    let (square, square_node) = graph
        .node(mean_square)
        .input(0)
        .and_then(|v| graph.producer(strip_casts(graph, v)))
        .ok_or_else(|| missing(mean_square, "ReduceMean of a square"))?;
    covers.push(square);
    let squared = strip_casts(graph, square_node.input(0).ok_or_else(internal)?);
    let other = square_node.input(1).map(|v| strip_casts(graph, v));
    let is_square = (square_node.is("Pow") && other.is_some_and(|e| is_scalar(graph, e, 2.0)))
        || (square_node.is("Mul") && other == Some(squared));
    if !is_square {
        return Err(missing(square, "Pow(d, 2) or Mul(d, d)"));
    }
    let Some((difference, difference_node)) = graph.producer(squared).filter(|(_, n)| n.is("Sub")) else {
        let found = graph.producer(squared).map_or("a graph input", |(_, n)| n.op.as_str());
        let reason = "no mean is subtracted: this is an RMS norm, not a layer norm";
        return Err(Miss::new(graph.node_label(square), reason).expected("Sub(x, mean)", found));
    };
    let (x, mean) = difference_node.input(0).zip(difference_node.input(1)).ok_or_else(internal)?;
    let subtracted = strip_unit_axes(graph, mean);
    let Some((mean_id, mean_node)) = graph.producer(subtracted).filter(|(_, n)| n.is("ReduceMean")) else {
        return Err(missing(difference, "Sub(x, ReduceMean(x))"));
    };
    if mean_node.input(0).map(|v| strip_casts(graph, v)) != Some(strip_casts(graph, x)) {
        return Err(missing(mean_id, "ReduceMean of the value it is subtracted from"));
    }
    covers.extend([difference, mean_id]);
    let axes = last_axes(graph, x, [mean_id, mean_square], &label)?;
    let rank = graph.rank(x).ok_or_else(internal)?;
    let axis = rank - axes;
    let normal = normalized(graph, x, axis, &label)?;
    let mut reduced = graph.shape(x).ok_or_else(internal)?.to_vec();
    reduced[axis..].fill(Dim::Int(1));
    if graph.shape(mean) != Some(&reduced[..]) {
        let found = graph.shape(mean).map_or("an unknown shape".into(), shape_text);
        let reason = "the mean is not subtracted along the axis that it was taken over";
        return Err(Miss::new(graph.node_label(difference), reason).expected(shape_text(&reduced), found));
    }

    // Down: the product of difference and reciprocal deviation, then scale and bias.
    let root = node.output(0).ok_or_else(internal)?;
    let is_difference = |v: ValueId| {
        let same = |n: &Node, i: usize, w: ValueId| {
            n.input(i).map(|v| strip_unit_axes(graph, v)) == Some(strip_unit_axes(graph, w))
        };
        v == squared || graph.producer(v).is_some_and(|(_, n)| n.is("Sub") && same(n, 0, x) && same(n, 1, subtracted))
    };
    let atom = |v: ValueId| {
        if v == root { Some((1, power)) } else { is_difference(v).then_some((0, 1)) }
    };
    let ends = ends_of(graph, root, power, &atom, &label)?;

    // The furthest end whose type the input has too, before or after its casts, and whose constants fit.
    let mut miss = Miss::new(&label, "input and output of the norm differ in element type or shape");
    for end in ends.into_iter().rev() {
        let same_type = |&v: &ValueId| graph.dtype(v) == graph.dtype(end.out) && graph.shape(v) == graph.shape(end.out);
        let Some(x) = [x, strip_casts(graph, x)].into_iter().find(same_type) else { continue };
        let dtype = supported(graph, x, &label)?;
        let scale = scale_of(graph, &end.parts, &normal, dtype);
        let bias = end.bias.map_or(Some(Affine::None), |v| affine_of(graph, v, &normal, dtype));
        let (Some(scale), Some(bias)) = (scale, bias) else {
            let reason = "scale or bias does not fit the normalized axes";
            miss = Miss::new(&label, reason).expected(shape_text(&normal), "another shape");
            continue;
        };
        covers.extend(end.parts.nodes);
        covers.extend(graph.producer(strip_casts(graph, end.out)).map(|(id, _)| id));
        covers.sort_unstable();
        covers.dedup();
        // Casts on the way up may serve others; they die by themselves where they do not.
        covers.retain(|&id| !graph.node(id).is("Cast"));
        return Ok(Norm { x, out: end.out, axes, epsilon, scale, bias, covers });
    }
    Err(miss)
}

/// How many axes both means reduce, which must be the same and the last ones.
fn last_axes(graph: &Graph, x: ValueId, means: [NodeId; 2], label: &str) -> Result<usize, Miss> {
    let rank = graph.rank(x).ok_or_else(|| Miss::new(label, "the rank of its input is not known"))?;
    let axes_of = |at: NodeId| {
        reduce_axes(graph, graph.node(at))
            .ok_or_else(|| Miss::new(graph.node_label(at), "its axes are not constant, or not axes of its input"))
    };
    let (axes, variance_axes) = (axes_of(means[0])?, axes_of(means[1])?);
    if axes != variance_axes {
        return Err(Miss::new(graph.node_label(means[1]), "mean and variance are over different axes")
            .expected(format!("axes {axes:?}"), format!("axes {variance_axes:?}")));
    }
    let last: Vec<usize> = (rank - axes.len().min(rank)..rank).collect();
    if axes != last || axes.is_empty() {
        let reason = "it normalizes other than the last axes (a channel norm is another op)";
        return Err(Miss::new(graph.node_label(means[0]), reason)
            .expected(format!("axes {last:?} of rank {rank}"), format!("axes {axes:?}")));
    }
    Ok(axes.len())
}

/// A value at which the norm may end: the normalized product so far, and a bias added to it.
struct End {
    out: ValueId,
    parts: Product,
    bias: Option<ValueId>,
}

/// Follows the only reader of each value from the deviation on, and returns where the norm is complete, nearest first.
fn ends_of(
    graph: &Graph,
    root: ValueId,
    power: i32,
    atom: &dyn Fn(ValueId) -> Option<(usize, i32)>,
    label: &str,
) -> Result<Vec<End>, Miss> {
    const COMPLETE: [i32; 2] = [1, -1];
    let mut current = root;
    let mut parts = Product { powers: [0, power], ..Product::default() };
    let mut ends: Vec<End> = vec![];
    while let Some(user) = only_user(graph, current) {
        let node = graph.node(user);
        let Some(out) = node.output(0) else { break };
        if let Some(next) = product(graph, out, atom, DEPTH) {
            if parts.powers == COMPLETE && next.powers != COMPLETE {
                break;
            }
            parts = next;
            current = out;
            if parts.powers == COMPLETE {
                ends.push(End { out, parts: parts.clone(), bias: None });
            }
            continue;
        }
        if parts.powers != COMPLETE {
            let reason = "what follows the square root is not the normalization";
            let expected = "a product of x - mean and 1 / sqrt(variance)";
            return Err(Miss::new(graph.node_label(user), reason).expected(expected, &node.op));
        }
        let bias = node.inputs.iter().flatten().copied().find(|&v| graph.constant(v).is_some());
        if node.is("Add") && bias.is_some() {
            ends.push(End { out, parts: parts.clone(), bias });
            let after = follow_casts(graph, out);
            if after != out {
                ends.push(End { out: after, parts, bias });
            }
        }
        break;
    }
    if ends.is_empty() {
        let found = if graph.is_output(current) {
            "a graph output".into()
        } else {
            format!("{} uses", graph.uses(current).len())
        };
        return Err(Miss::new(label, "the deviation is not used once, to normalize").expected("1 use", found));
    }
    Ok(ends)
}

fn affine_of(graph: &Graph, value: ValueId, normal: &[Dim], dtype: DType) -> Option<Affine> {
    if graph.dtype(value) == Some(dtype) && graph.shape(value) == Some(normal) {
        return Some(Affine::Value(value));
    }
    broadcast(graph, value, normal).map(Affine::Elements)
}

/// The product of all constant factors over the normalized axes.
fn scale_of(graph: &Graph, parts: &Product, normal: &[Dim], dtype: DType) -> Option<Affine> {
    if let [(value, false)] = parts.constants.as_slice() {
        return affine_of(graph, *value, normal, dtype);
    }
    let mut scale: Option<Vec<f64>> = None;
    for &(value, inverse) in &parts.constants {
        let factor = broadcast(graph, value, normal)?;
        let old = scale.unwrap_or_else(|| vec![1.0; factor.len()]);
        scale = Some(old.iter().zip(&factor).map(|(a, b)| if inverse { a / b } else { a * b }).collect());
    }
    // Div(1, r) leaves a factor of 1.
    Some(match scale {
        Some(elements) if elements.iter().any(|&v| v != 1.0) => Affine::Elements(elements),
        _ => Affine::None,
    })
}

/// A constant spread over the normalized axes; `None` if it varies along other axes.
fn broadcast(graph: &Graph, value: ValueId, normal: &[Dim]) -> Option<Vec<f64>> {
    let tensor = graph.constant(value)?;
    let normal: Vec<i64> = normal.iter().map(Dim::int).collect::<Option<_>>()?;
    let wide = |dims: &[i64]| dims.iter().copied().skip_while(|&d| d == 1).collect::<Vec<_>>();
    let count = usize::try_from(normal.iter().product::<i64>()).ok()?;
    let elements = tensor.to_f64_vec().ok()?;
    let dims = wide(&tensor.dims);
    if dims.is_empty() {
        return Some(vec![*elements.first()?; count]);
    }
    (dims == wide(&normal) && elements.len() == count).then_some(elements)
}

impl Norm {
    fn patch(&self, graph: &Graph, label: &str, plugins: bool) -> Result<(Patch, String), Miss> {
        let op = if plugins { "TrtOptLayerNorm" } else { "LayerNormalization" };
        if !plugins && graph.opset < 17 {
            let reason = "the model's opset has no LayerNormalization, and it could not be raised";
            return Err(Miss::new(label, reason).expected("opset 17 or later", graph.opset));
        }
        let name = fused_name(graph, label, op);
        let dtype = supported(graph, self.x, label)?;
        let unsupported = || Miss::new(label, "the size of a normalized axis is not static");
        let shape = graph.shape(self.x).ok_or_else(unsupported)?;
        let normal: Option<Vec<i64>> = shape[shape.len() - self.axes..].iter().map(Dim::int).collect();
        let normal = normal.ok_or_else(unsupported)?;
        let mut patch = Patch::new(graph, RULE);
        let mut parameter = |affine: &Affine, default: f64, what: &str| {
            let elements = match affine {
                Affine::Value(value) => return Some(*value),
                Affine::Elements(elements) => elements.clone(),
                Affine::None => vec![default; usize::try_from(normal.iter().product::<i64>()).ok()?],
            };
            Some(patch.constant(&format!("{name}/{what}"), float_tensor(dtype, &normal, &elements)?))
        };
        let scale = parameter(&self.scale, 1.0, "scale").ok_or_else(unsupported)?;
        let bias = parameter(&self.bias, 0.0, "bias").ok_or_else(unsupported)?;
        let y = patch.value_like(graph, &format!("{name}/y"), self.x);
        let epsilon = self.epsilon as f32;
        let mut node = if plugins {
            let norm = LayerNorm { epsilon, axes: self.axes, map: WindowMap::NONE, reverse: false };
            norm.node(self.x, &Addends::default(), scale, bias)
        } else {
            Node::new(op, [self.x, scale, bias])
                .with(AttributeProto::int("axis", -(self.axes as i64)))
                .with(AttributeProto::float("epsilon", epsilon))
        };
        node.name.clone_from(&name);
        patch.node(node, [y]);
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        Ok((patch, name))
    }
}
