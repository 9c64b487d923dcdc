//! MLP blocks: a fused norm, two products with a GELU between them, and the residual add.
//!
//! ```text
//! s -> TrtOptLayerNorm -> MatMul w1 -> Add b1 -> GELU -> MatMul w2 -> Add b2 = m ;  y = s + m
//! becomes   TrtOptMlpBlock(s) -> y, or TrtOptMlpBlock(x, r) -> y where s = x + r is read by nothing else
//! ```
//!
//! Runs on what the rules of norms and GELUs have left. A block that does not match stays as it is, with its smaller
//! fusions.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{LayerNorm, MAX_CHANNELS, MAX_HIDDEN, MULTIPLE, MlpBlock, MlpWeights};
use crate::rewrite::pattern::{float_tensor, fused_name, only_user};
use crate::rewrite::rules::gelu::{Gelu, is_anchor, match_gelu};
use crate::rewrite::{Kind, Site, Status};

const RULE: &str = "mlp-block";
const KEPT: &str = "its parts: this target has no plugin for it";

type Outcome<T> = std::result::Result<T, Miss>;

pub fn run(engine: &mut Engine) -> Result<()> {
    // Blocks are sites only where they are asked for: their parts are accounted for by the other rules.
    if !engine.options().kinds.contains(&Kind::MlpBlock) {
        return Ok(());
    }
    let graph = engine.graph();
    let anchors: Vec<NodeId> =
        graph.order().iter().copied().filter(|&id| is_anchor(graph, id) && is_site(graph, id)).collect();
    for id in anchors {
        let label = label_of(engine, id);
        if !engine.enabled(Kind::MlpBlock, RULE) {
            let miss = engine.disabled_miss(Kind::MlpBlock, RULE);
            engine.record_miss(Kind::MlpBlock, &label, RULE, miss);
            continue;
        }
        if let Some(reason) = engine.standard(Kind::MlpBlock, &label, KEPT) {
            engine.record(Site::new(Kind::MlpBlock, Status::Kept, &label, RULE).because(reason));
            continue;
        }
        let graph = engine.graph();
        let outcome = match Block::of(graph, id, &label) {
            Err(miss) => Err(miss),
            Ok(block) => {
                let parts: BTreeSet<String> = block.covers.iter().map(|&id| graph.node_label(id)).collect();
                let (patch, name) = block.patch(graph, &label);
                let applied = engine.apply(patch)?;
                if applied.is_ok() {
                    engine.absorb_sites(&parts, &name);
                }
                applied.map(|()| name)
            }
        };
        match outcome {
            Ok(name) => engine.record(Site::new(Kind::MlpBlock, Status::Fused, &label, RULE).into_node(&name)),
            Err(miss) => engine.record_miss(Kind::MlpBlock, &label, RULE, miss),
        }
    }
    Ok(())
}

/// The name of the site: its GELU's, as it was before the rule of GELUs.
fn label_of(engine: &Engine, anchor: NodeId) -> String {
    let graph = engine.graph();
    let covers = match_gelu(graph, anchor).map(|gelu| gelu.covers).unwrap_or_default();
    let parts = covers.into_iter().map(|id| graph.node_label(id)).collect();
    engine.known_as(Kind::Gelu, &parts).map_or_else(|| graph.node_label(anchor), str::to_owned)
}

/// Whether a product goes into the GELU: else, as behind a convolution, it is no MLP's.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let Ok(gelu) = match_gelu(graph, id) else { return false };
    let product = |v: ValueId| graph.producer(v).is_some_and(|(_, n)| n.is("MatMul") || n.is("Gemm"));
    let sum = graph.producer(gelu.x).filter(|(_, n)| n.is("Add"));
    product(gelu.x) || sum.is_some_and(|(_, n)| n.inputs.iter().flatten().copied().any(product))
}

/// A product with a constant matrix and a constant offset, `y = x w + b`.
struct Linear {
    x: ValueId,
    w: ValueId,
    /// None: no offset.
    b: Option<ValueId>,
    /// Sizes of the matrix.
    sizes: [i64; 2],
    covers: Vec<NodeId>,
}

impl Linear {
    /// The product that makes `y`.
    fn before(graph: &Graph, y: ValueId, label: &str) -> Outcome<Self> {
        let (id, node) = graph.producer(y).ok_or_else(|| {
            Miss::new(label, "no product goes into the GELU").expected("MatMul, Add", "a graph input or weight")
        })?;
        if !node.is("Add") {
            return Self::product(graph, id);
        }
        let (offset, product) = offset_of(graph, id)?;
        let (matmul, _) = graph.producer(product).ok_or_else(|| {
            Miss::new(graph.node_label(id), "the offset is added to no product").expected("MatMul", "a graph input")
        })?;
        single_use(graph, product)?;
        let mut linear = Self::product(graph, matmul)?;
        linear.take_offset(graph, id, offset)?;
        Ok(linear)
    }

    /// The product that alone reads `x`, and what it makes.
    fn after(graph: &Graph, x: ValueId) -> Outcome<(Self, ValueId)> {
        let matmul = sole_reader(graph, x, "MatMul")?;
        let mut linear = Self::product(graph, matmul)?;
        let product = output(graph, matmul)?;
        let add = only_user(graph, product).filter(|&id| graph.node(id).is("Add"));
        match add.map(|id| (id, offset_of(graph, id))) {
            Some((id, Ok((offset, _)))) => {
                linear.take_offset(graph, id, offset)?;
                Ok((linear, output(graph, id)?))
            }
            // Without an offset the next add is that of the residual.
            _ => Ok((linear, product)),
        }
    }

    fn product(graph: &Graph, id: NodeId) -> Outcome<Self> {
        let (node, label) = (graph.node(id), graph.node_label(id));
        if !node.is("MatMul") {
            return Err(Miss::new(label, "it is no product with a weight").expected("MatMul", node.qualified_op()));
        }
        let (Some(x), Some(w)) = (node.input(0), node.input(1)) else {
            return Err(Miss::new(label, "it has no operands"));
        };
        if graph.constant(w).is_none() || graph.constant(x).is_some() {
            let found = if graph.constant(x).is_some() { "a weight on the left" } else { "a computed operand" };
            return Err(Miss::new(label, "the right operand is no weight").expected("a constant matrix", found));
        }
        let shape = graph.static_shape(w).unwrap_or_default();
        let sizes = <[i64; 2]>::try_from(shape.clone()).map_err(|_| {
            Miss::new(&label, "the weight is no matrix").expected("two axes", format!("{} axes", shape.len()))
        })?;
        Ok(Self { x, w, b: None, sizes, covers: vec![id] })
    }

    fn take_offset(&mut self, graph: &Graph, add: NodeId, offset: ValueId) -> Outcome<()> {
        let shape = graph.static_shape(offset).unwrap_or_default();
        if shape != [self.sizes[1]] {
            let found = graph.shape(offset).map_or_else(|| "an unknown shape".into(), shape_text);
            return Err(Miss::new(graph.node_label(add), "the offset is not one value a column")
                .expected(format!("[{}]", self.sizes[1]), found));
        }
        self.b = Some(offset);
        self.covers.push(add);
        Ok(())
    }
}

/// Of an Add with one constant operand: that one and the other.
fn offset_of(graph: &Graph, add: NodeId) -> Outcome<(ValueId, ValueId)> {
    let node = graph.node(add);
    match (node.input(0), node.input(1)) {
        (Some(a), Some(b)) if graph.constant(a).is_some() && graph.constant(b).is_none() => Ok((a, b)),
        (Some(a), Some(b)) if graph.constant(b).is_some() && graph.constant(a).is_none() => Ok((b, a)),
        _ => Err(Miss::new(graph.node_label(add), "it adds no weight").expected("a constant offset", "two tensors")),
    }
}

fn output(graph: &Graph, id: NodeId) -> Outcome<ValueId> {
    graph.node(id).output(0).ok_or_else(|| Miss::new(graph.node_label(id), "it has no output"))
}

/// A miss unless the value is read once and is no graph output.
fn single_use(graph: &Graph, value: ValueId) -> Outcome<NodeId> {
    only_user(graph, value).ok_or_else(|| {
        let name = &graph.value(value).name;
        let found =
            if graph.is_output(value) { "a graph output".into() } else { format!("{} uses", graph.uses(value).len()) };
        Miss::new(name, "an interior value is used otherwise too").expected("1 use", found)
    })
}

/// The only reader of the value, which must be of the op.
fn sole_reader(graph: &Graph, value: ValueId, op: &str) -> Outcome<NodeId> {
    let user = single_use(graph, value)?;
    let node = graph.node(user);
    if node.is(op) {
        Ok(user)
    } else {
        let reason = "another op follows than in an MLP block";
        Err(Miss::new(graph.node_label(user), reason).expected(op, node.qualified_op()))
    }
}

/// A whole block.
struct Block {
    op: MlpBlock,
    /// What is normalized; the residual stream.
    stream: ValueId,
    /// `stream` is the sum of these, which nothing else reads.
    added: Option<(ValueId, ValueId)>,
    scale: ValueId,
    bias: ValueId,
    up: Linear,
    down: Linear,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Block {
    fn of(graph: &Graph, anchor: NodeId, label: &str) -> Outcome<Self> {
        let gelu: Gelu = match_gelu(graph, anchor)?;
        let up = Linear::before(graph, gelu.x, label)?;
        let (down, result) = Linear::after(graph, gelu.out)?;
        let (norm_id, norm) = norm_before(graph, up.x)?;
        single_use(graph, up.x)?;
        let &[Some(stream), Some(scale), Some(bias)] = &graph.node(norm_id).inputs[..] else {
            return Err(Miss::new(graph.node_label(norm_id), "the norm has other inputs than x, scale and bias"));
        };
        let add = sole_reader(graph, result, "Add")?;
        let operands = [graph.node(add).input(0), graph.node(add).input(1)];
        if !operands.contains(&Some(stream)) {
            let reason = "what is added to the MLP's result is not what the norm reads";
            return Err(Miss::new(graph.node_label(add), reason)
                .expected(&graph.value(stream).name, other_name(graph, operands, result)));
        }
        let out = output(graph, add)?;
        check_sizes(graph, label, stream, &up, &down)?;

        let mut covers: Vec<NodeId> = up.covers.iter().chain(&down.covers).chain(&gelu.covers).copied().collect();
        covers.extend([norm_id, add]);
        let added = sum_of(graph, stream, [norm_id, add]);
        covers.extend(added.and_then(|_| graph.value(stream).producer));
        Ok(Self {
            op: MlpBlock { epsilon: norm.epsilon, tanh: gelu.tanh },
            stream,
            added,
            scale,
            bias,
            up,
            down,
            out,
            covers,
        })
    }

    fn patch(&self, graph: &Graph, label: &str) -> (Patch, String) {
        let name = fused_name(graph, label, "TrtOptMlpBlock");
        let mut patch = Patch::new(graph, RULE);
        let dtype = graph.dtype(self.stream).unwrap_or(DType::F32);
        let mut offset = |linear: &Linear, suffix: &str| {
            linear.b.unwrap_or_else(|| {
                let columns = linear.sizes[1];
                let zeros = float_tensor(dtype, &[columns], &vec![0.0; columns as usize]);
                // The type was checked, so there is a tensor of it.
                patch.constant(&format!("{name}/{suffix}"), zeros.unwrap_or_default())
            })
        };
        let (b1, b2) = (offset(&self.up, "b1"), offset(&self.down, "b2"));
        let weights = MlpWeights { scale: self.scale, bias: self.bias, w1: self.up.w, b1, w2: self.down.w, b2 };
        let (x, residual) = self.added.map_or((self.stream, None), |(a, b)| (a, Some(b)));
        let y = patch.value_like(graph, &name, self.out);
        let mut fused = self.op.node(x, residual, &weights);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        (patch, name)
    }
}

/// The operand that is not `this`, by name.
fn other_name(graph: &Graph, operands: [Option<ValueId>; 2], this: ValueId) -> String {
    let other = operands.into_iter().flatten().find(|&v| v != this);
    other.map_or("the same value twice".into(), |v| graph.value(v).name.clone())
}

/// The fused norm over the last axis that makes the value.
fn norm_before(graph: &Graph, value: ValueId) -> Outcome<(NodeId, LayerNorm)> {
    let name = &graph.value(value).name;
    let miss = |at: String, found: String| {
        Err(Miss::new(at, "no fused norm of the last axis goes into the first product")
            .expected("TrtOptLayerNorm", found))
    };
    let Some((id, node)) = graph.producer(value) else { return miss(name.clone(), "a graph input".into()) };
    let label = graph.node_label(id);
    let norm = LayerNorm::of(node);
    match norm {
        Some(norm) if norm.axes == 1 && norm.map.is_none() && node.int("residual") == Some(0) => Ok((id, norm)),
        Some(norm) if norm.axes != 1 => miss(label, format!("a norm over {} axes", norm.axes)),
        Some(_) => miss(label, "a norm with windows or a residual".into()),
        None => miss(label, node.qualified_op()),
    }
}

/// The operands of the Add that makes `stream`, if only `readers` read it and the plugin can do the add itself.
fn sum_of(graph: &Graph, stream: ValueId, readers: [NodeId; 2]) -> Option<(ValueId, ValueId)> {
    let (_, node) = graph.producer(stream).filter(|(_, n)| n.is("Add"))?;
    let (a, b) = (node.input(0)?, node.input(1)?);
    let same = |v: ValueId| {
        graph.shape(v) == graph.shape(stream) && graph.dtype(v) == graph.dtype(stream) && graph.constant(v).is_none()
    };
    let alone = !graph.is_output(stream)
        && !graph.is_named_elsewhere(stream)
        && graph.uses(stream).iter().all(|user| readers.contains(user));
    (alone && same(a) && same(b)).then_some((a, b))
}

/// Types and sizes that the plugin takes.
fn check_sizes(graph: &Graph, label: &str, stream: ValueId, up: &Linear, down: &Linear) -> Outcome<()> {
    let dtype = graph.dtype(stream);
    if !matches!(dtype, Some(DType::F32 | DType::F16)) {
        let found = dtype.map_or("an unknown type", DType::name);
        return Err(Miss::new(label, "the plugin takes no such type").expected("float or float16", found));
    }
    let weights = [Some(up.w), up.b, Some(down.w), down.b];
    if let Some(&odd) = weights.iter().flatten().find(|&&w| graph.dtype(w) != dtype) {
        let name = |t: Option<DType>| t.map_or("an unknown type", DType::name);
        return Err(Miss::new(&graph.value(odd).name, "a weight is of another type than the tokens")
            .expected(name(dtype), name(graph.dtype(odd))));
    }
    let [channels, hidden] = up.sizes;
    if down.sizes != [hidden, channels] {
        return Err(Miss::new(label, "the second product does not lead back to the channels")
            .expected(format!("[{hidden}, {channels}]"), format!("[{}, {}]", down.sizes[0], down.sizes[1])));
    }
    if channels % MULTIPLE != 0 || hidden % MULTIPLE != 0 {
        return Err(Miss::new(label, "the tensor cores take no such sizes")
            .expected(format!("multiples of {MULTIPLE}"), format!("{channels} channels, {hidden} hidden columns")));
    }
    if channels > MAX_CHANNELS || hidden > MAX_HIDDEN {
        return Err(Miss::new(label, "the block is too large").expected(
            format!("at most {MAX_CHANNELS} channels and {MAX_HIDDEN} hidden columns"),
            format!("{channels} and {hidden}"),
        ));
    }
    Ok(())
}
