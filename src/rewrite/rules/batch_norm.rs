//! Batch norms, and other scales and shifts of the channels of a map, move forward into the weights of the product that alone
//! reads them.
//!
//! ```text
//! x -> BatchNormalization | Mul | Add -> Conv(w, b) = y                      becomes   x -> Conv(w', b') = y
//! x -> BatchNormalization -> [Reshape] -> mean of places -> Gemm(w, b) = y   becomes   x -> [Reshape] -> mean of places -> Gemm(w', b') = y
//! ```
//!
//! `w' = w scale` along the input channels and `b' = b + w shift`, computed in float64 and rounded once to the type of `w`: what the
//! product gives differs by the rounding of its weights, 2^-24 of each in float32 and 2^-11 in float16. A convolution that
//! pads with zeros takes a scale, but no shift: the zeros would have to be shifted too.
//!
//! These are no sites of the ledger. Runs behind the rules of sites, which know the scales and shifts of their patterns.

use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::onnx::proto::AttributeProto;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::pattern::{only_user, reduce_axes};
use crate::rewrite::rules::block::{Outcome, output, rounded, weight};

const RULE: &str = "batch-norm";

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let products = graph.nodes().filter(|(_, node)| ["Conv", "Gemm", "MatMul"].iter().any(|op| node.is(op)));
    let products: Vec<NodeId> = products.map(|(id, _)| id).collect();
    for id in products {
        if !engine.runs(RULE) {
            return Ok(());
        }
        let graph = engine.graph();
        let Some(node) = graph.get(id) else { continue };
        let patch = if node.is("Conv") { into_conv(graph, id) } else { into_matrix(graph, id) };
        match patch {
            Ok(Some(patch)) => engine.apply_or_keep(patch, "batch norm")?,
            Ok(None) => {}
            Err(miss) => tracing::debug!(at = miss.at, reason = miss.reason, "batch norm kept"),
        }
    }
    Ok(())
}

/// `x scale + shift` for each channel, axis 1.
struct Affine {
    x: ValueId,
    scale: Vec<f64>,
    shift: Vec<f64>,
    covers: Vec<NodeId>,
}

impl Affine {
    /// What makes `value`, as far as it only scales and shifts the channels; `None` if it does not.
    fn before(graph: &Graph, value: ValueId) -> Outcome<Option<Self>> {
        let Some(mut whole) = Self::step(graph, value)? else { return Ok(None) };
        while let Ok(Some(inner)) = Self::step(graph, whole.x) {
            for ((scale, shift), (a, b)) in
                whole.scale.iter_mut().zip(&mut whole.shift).zip(inner.scale.iter().zip(&inner.shift))
            {
                *shift += *scale * b;
                *scale *= a;
            }
            whole.x = inner.x;
            whole.covers.extend(inner.covers);
        }
        Ok(Some(whole))
    }

    /// One node.
    fn step(graph: &Graph, value: ValueId) -> Outcome<Option<Self>> {
        let Some((id, node)) = graph.producer(value) else { return Ok(None) };
        let channels = graph.shape(value).filter(|s| s.len() >= 3).and_then(|s| s[1].int());
        let Some(channels) = channels else { return Ok(None) };
        let affine = if node.is("BatchNormalization") {
            Self::batch_norm(graph, id, channels)?
        } else if node.is("Mul") || node.is("Add") {
            let Some(affine) = Self::of_constant(graph, id, value, channels) else { return Ok(None) };
            affine
        } else {
            return Ok(None);
        };
        if only_user(graph, value).is_none() {
            let found = match graph.is_output(value) {
                true => "a graph output".into(),
                false => format!("{} uses", graph.uses(value).len()),
            };
            return Err(Miss::new(graph.node_label(id), "it is read otherwise too").expected("1 use", found));
        }
        Ok(Some(affine))
    }

    fn batch_norm(graph: &Graph, id: NodeId, channels: i64) -> Outcome<Self> {
        let (node, label) = (graph.node(id), graph.node_label(id));
        let miss = |reason: &str| Miss::new(&label, reason);
        // Until opset 13 its further outputs say so.
        if node.int("training_mode").unwrap_or(0) != 0 || node.outputs.iter().skip(1).any(Option::is_some) {
            return Err(miss("it takes its statistics from the batch"));
        }
        let parameter = |i: usize| {
            let constant = node.input(i).and_then(|v| graph.constant(v)).and_then(|t| t.to_f64_vec().ok());
            constant.filter(|values| values.len() as i64 == channels)
        };
        let parameters = (parameter(1), parameter(2), parameter(3), parameter(4));
        let (Some(x), (Some(gamma), Some(beta), Some(mean), Some(variance))) = (node.input(0), parameters) else {
            return Err(miss("its parameters are not constants of one value a channel"));
        };
        let epsilon = f64::from(node.float("epsilon").unwrap_or(1e-5));
        let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
        let shift = beta.iter().zip(mean.iter().zip(&scale)).map(|(b, (m, s))| b - m * s).collect();
        Ok(Self { x, scale, shift, covers: vec![id] })
    }

    /// A `Mul` or `Add` of one constant a channel; those of one for all belong to other patterns.
    fn of_constant(graph: &Graph, id: NodeId, value: ValueId, channels: i64) -> Option<Self> {
        let node = graph.node(id);
        let (a, b) = (node.input(0)?, node.input(1)?);
        let (x, constant) = if graph.constant(a).is_some() { (b, a) } else { (a, b) };
        (graph.shape(x)? == graph.shape(value)?).then_some(())?;
        let sizes = graph.static_shape(constant)?;
        let mut wanted = vec![1; graph.rank(value)?];
        wanted[1] = channels;
        let leading = wanted.len().checked_sub(sizes.len()).filter(|&n| n <= 1)?;
        (channels > 1 && sizes == wanted[leading..]).then_some(())?;
        let constant = graph.constant(constant)?.to_f64_vec().ok()?;
        let (scale, shift) = match node.op.as_str() {
            "Mul" => (constant, vec![0.0; channels as usize]),
            _ => (vec![1.0; channels as usize], constant),
        };
        Some(Self { x, scale, shift, covers: vec![id] })
    }
}

fn into_conv(graph: &Graph, id: NodeId) -> Outcome<Option<Patch>> {
    let (node, label) = (graph.node(id), graph.node_label(id));
    let (Some(x), Some(w)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let Some(affine) = Affine::before(graph, x)? else { return Ok(None) };
    let (dtype, sizes, mut values) = weight(graph, w)?;
    let channels = affine.scale.len();
    let group = usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(0);
    let kernel = sizes.get(2..).unwrap_or_default();
    let fits = sizes.len() >= 3 && sizes[0] > 0 && group > 0 && sizes[1] as usize * group == channels;
    if !fits || !(sizes[0] as usize).is_multiple_of(group) {
        return Err(Miss::new(label, "its weights are not of these channels")
            .expected(format!("[M, {channels} / {group}, ...]"), format!("{sizes:?}")));
    }
    let padded = match node.string("auto_pad") {
        Some("SAME_UPPER" | "SAME_LOWER") => kernel.iter().any(|&n| n != 1),
        Some("VALID") => false,
        _ => node.ints("pads").is_some_and(|pads| pads.iter().any(|&n| n != 0)),
    };
    if padded && affine.shift.iter().any(|&v| v != 0.0) {
        return Err(Miss::new(label, "the convolution pads with zeros, which would have to be shifted")
            .expected("no padding, or no shift", "both"));
    }
    let (rows, depth) = (sizes[0] as usize, sizes[1] as usize);
    let places: usize = kernel.iter().product::<i64>() as usize;
    let mut offset = match node.input(2) {
        Some(b) => weight(graph, b)?.2,
        None => vec![0.0; rows],
    };
    if offset.len() != rows || values.len() != rows * depth * places {
        return Err(Miss::new(label, "its offset is not one value a channel"));
    }
    for (i, (row, offset)) in values.chunks_exact_mut((depth * places).max(1)).zip(&mut offset).enumerate() {
        let first = i / (rows / group) * depth;
        for (j, channel) in row.chunks_exact_mut(places.max(1)).enumerate() {
            *offset += channel.iter().sum::<f64>() * affine.shift[first + j];
            channel.iter_mut().for_each(|v| *v *= affine.scale[first + j]);
        }
    }
    let mut patch = Patch::new(graph, RULE);
    let w = patch.constant(&format!("{label}/weight"), rounded(&label, dtype, &sizes, &values)?);
    let b = patch.constant(&format!("{label}/bias"), rounded(&label, dtype, &[sizes[0]], &offset)?);
    let old = output(graph, id)?;
    let y = patch.value_like(graph, &graph.value(old).name, old);
    let inputs = [affine.x, w, b].map(Some).into();
    patch.node(Node { inputs, ..node.clone() }, [y]);
    patch.replace(old, y);
    patch.cover(affine.covers.into_iter().chain([id]));
    Ok(Some(patch))
}

/// Into a `Gemm` or `MatMul` behind a mean of each channel.
fn into_matrix(graph: &Graph, id: NodeId) -> Outcome<Option<Patch>> {
    let (node, label) = (graph.node(id), graph.node_label(id));
    let (Some(rows), Some(w)) = (node.input(0), node.input(1)) else { return Ok(None) };
    let gemm = node.is("Gemm");
    if graph.rank(rows) != Some(2) || node.int("transA").unwrap_or(0) != 0 {
        return Ok(None);
    }
    let Some(map) = before_mean(graph, rows) else { return Ok(None) };
    let Some(affine) = Affine::before(graph, map)? else { return Ok(None) };
    let (dtype, sizes, mut values) = weight(graph, w)?;
    let transposed = gemm && node.int("transB").unwrap_or(0) != 0;
    let channels = affine.scale.len();
    let columns = match sizes[..] {
        [n, c] if transposed && c as usize == channels => n,
        [c, n] if !transposed && c as usize == channels => n,
        _ => {
            return Err(Miss::new(label, "its weights are not of these channels")
                .expected(format!("{channels} rows"), format!("{sizes:?}")));
        }
    };
    let factor = |name: &str| f64::from(node.float(name).filter(|_| gemm).unwrap_or(1.0));
    let (alpha, beta) = (factor("alpha"), factor("beta"));
    // The offset, which is an Add behind a MatMul.
    let product = output(graph, id)?;
    let add = only_user(graph, product).filter(|&user| !gemm && graph.node(user).is("Add"));
    let added = add.and_then(|user| {
        let inputs = &graph.node(user).inputs;
        let other = inputs.iter().flatten().copied().find(|&v| v != product)?;
        let sizes = graph.constant(other).and(graph.static_shape(other))?;
        ([&[columns][..], &[1, columns]].contains(&&sizes[..])).then_some((user, other))
    });
    let old = match (gemm, added) {
        (true, _) => node.input(2),
        (false, added) => added.map(|(_, other)| other),
    };
    let mut offset = vec![0.0; columns as usize];
    if let Some(old) = old {
        let (_, sizes, values) = weight(graph, old)?;
        let wide = [&[columns][..], &[1, columns]].contains(&&sizes[..]);
        if !wide && values.len() != 1 {
            return Err(Miss::new(label, "its offset is not one value a column")
                .expected(format!("[{columns}]"), format!("{sizes:?}")));
        }
        for (i, v) in offset.iter_mut().enumerate() {
            *v = beta * if wide { values[i] } else { values[0] };
        }
    }
    for (i, v) in values.iter_mut().enumerate() {
        let across = if transposed { channels } else { columns as usize };
        let (channel, column) = if transposed { (i % across, i / across) } else { (i / across, i % across) };
        offset[column] += alpha * *v * affine.shift[channel];
        *v *= affine.scale[channel];
    }
    let mut patch = Patch::new(graph, RULE);
    let w = patch.constant(&format!("{label}/weight"), rounded(&label, dtype, &sizes, &values)?);
    let b = patch.constant(&format!("{label}/bias"), rounded(&label, dtype, &[columns], &offset)?);
    let end = added.map_or(product, |(add, _)| graph.node(add).output(0).unwrap_or(product));
    let y = patch.value_like(graph, &graph.value(end).name, end);
    if gemm {
        let mut fused = Node { inputs: [rows, w, b].map(Some).into(), ..node.clone() };
        fused.set(AttributeProto::float("beta", 1.0));
        patch.node(fused, [y]);
    } else {
        let sum = patch.value_like(graph, &graph.value(product).name, product);
        patch.node(Node { inputs: [rows, w].map(Some).into(), ..node.clone() }, [sum]);
        let name = added.map_or_else(|| format!("{label}/Add"), |(add, _)| graph.node(add).name.clone());
        patch.node(Node { name, ..Node::new("Add", [sum, b]) }, [y]);
    }
    patch.replace(end, y);
    // What lies between reads the map as it was.
    patch.replace(map, affine.x);
    patch.cover(affine.covers.into_iter().chain([id]).chain(added.map(|(add, _)| add)));
    Ok(Some(patch))
}

/// The map of which the rows are means, each channel by itself, if nothing reads what lies between otherwise.
fn before_mean(graph: &Graph, rows: ValueId) -> Option<ValueId> {
    let (mut value, mut mean) = (rows, false);
    loop {
        let (_, node) = graph.producer(value)?;
        let averages = node.is("ReduceMean") || node.is("GlobalAveragePool");
        let regroups = ["Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"].iter().any(|op| node.is(op));
        if !averages && !regroups {
            return mean.then_some(value);
        }
        only_user(graph, value)?;
        let input = node.input(0)?;
        if node.is("ReduceMean") && reduce_axes(graph, node)?.iter().any(|&axis| axis < 2) {
            return None;
        }
        let (before, after) = (graph.shape(input)?, graph.shape(value)?);
        (before.len() >= 2 && after.len() >= 2 && before[..2] == after[..2]).then_some(())?;
        mean |= averages;
        value = input;
    }
}
