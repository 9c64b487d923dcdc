//! What the rules of blocks have in common: their sites, products with weights, and the residual stream around them.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::pattern::{float_tensor, only_user};
use crate::rewrite::{ComputeCapability, Kind, Site, Status};

const KEPT: &str = "its parts: this target has no plugin for it";

pub type Outcome<T> = std::result::Result<T, Miss>;

/// A block about to become one node.
pub struct Fusion {
    pub patch: Patch,
    /// Of the node.
    pub name: String,
    /// The nodes that it stands for.
    pub covers: Vec<NodeId>,
}

impl Fusion {
    /// By a node that gives something like `stream`, of which `out` is another shape.
    pub fn reshaped(
        graph: &Graph,
        mut patch: Patch,
        label: &str,
        name: String,
        node: Node,
        [stream, out]: [ValueId; 2],
        covers: Vec<NodeId>,
    ) -> Outcome<Self> {
        let y = patch.value_like(graph, &name, stream);
        Self::giving(graph, patch, name, node, [y, out], covers)
            .ok_or_else(|| Miss::new(label, "the shape of its result is not known"))
    }

    /// By a node that gives `y`, of which `out` is another shape, unless that is not known.
    pub fn giving(
        graph: &Graph,
        mut patch: Patch,
        name: String,
        mut node: Node,
        [y, out]: [ValueId; 2],
        covers: Vec<NodeId>,
    ) -> Option<Self> {
        node.name.clone_from(&name);
        patch.node(node, [y]);
        let shaped = patch.reshape(graph, y, graph.shape(out)?, &format!("{name}/shape"))?;
        patch.replace(out, shaped);
        patch.cover(covers.iter().copied());
        Some(Self { patch, name, covers })
    }
}

/// Why there is no node where the plugin's op gives no such shape.
pub fn shapes_unfit(label: &str) -> Miss {
    Miss::new(label, "the shapes do not suit the plugin")
}

/// A kind of block, and how its sites are found and matched.
pub struct Rule<'a> {
    pub kind: Kind,
    pub name: &'a str,
    /// The fused part that a site is called after, as the ledger knows it.
    pub part: Kind,
    /// The nodes of that part.
    pub part_of: &'a dyn Fn(&Graph, NodeId) -> Vec<NodeId>,
    pub fusion: &'a dyn Fn(&Graph, NodeId, &str) -> Outcome<Fusion>,
}

impl Rule<'_> {
    /// Fuses the blocks around the nodes that are sites, where such blocks are asked for: else they are no sites, since their
    /// parts are accounted for by the other rules.
    pub fn run_if_asked(&self, engine: &mut Engine, is_site: impl Fn(&Graph, NodeId) -> bool) -> Result<()> {
        if !engine.options().kinds.contains(&self.kind) {
            return Ok(());
        }
        let graph = engine.graph();
        let anchors = graph.order().iter().copied().filter(|&id| is_site(graph, id)).collect();
        self.run(engine, anchors)
    }

    /// Fuses the blocks around these nodes, or says in the ledger why not.
    pub fn run(&self, engine: &mut Engine, anchors: Vec<NodeId>) -> Result<()> {
        for id in anchors {
            let graph = engine.graph();
            let part: BTreeSet<String> = (self.part_of)(graph, id).into_iter().map(|id| graph.node_label(id)).collect();
            let label = engine.known_as(self.part, &part).map_or_else(|| graph.node_label(id), str::to_owned);
            if !engine.enabled(self.kind, self.name) {
                let miss = engine.disabled_miss(self.kind, self.name);
                engine.record_miss(self.kind, &label, self.name, miss);
                continue;
            }
            if let Some(reason) = engine.standard(self.kind, &label, KEPT) {
                engine.record(Site::new(self.kind, Status::Kept, &label, self.name).because(reason));
                continue;
            }
            let outcome = match (self.fusion)(graph, id, &label) {
                Err(miss) => Err(miss),
                Ok(Fusion { patch, name, covers }) => {
                    let parts: BTreeSet<String> = covers.iter().map(|&id| graph.node_label(id)).collect();
                    let applied = engine.apply(patch)?;
                    if applied.is_ok() {
                        engine.absorb_sites(&parts, &name);
                    }
                    applied.map(|()| name)
                }
            };
            match outcome {
                Ok(name) => {
                    engine.record(Site::new(self.kind, Status::Fused, &label, self.name).into_node(&name));
                }
                Err(miss) => engine.record_miss(self.kind, &label, self.name, miss),
            }
        }
        Ok(())
    }
}

/// A product with a constant matrix and a constant offset, `y = x w + b`.
pub struct Linear {
    pub x: ValueId,
    pub w: ValueId,
    /// None: no offset.
    pub b: Option<ValueId>,
    /// Sizes of the matrix.
    pub sizes: [i64; 2],
    pub covers: Vec<NodeId>,
}

impl Linear {
    /// The product that makes `y`.
    pub fn before(graph: &Graph, y: ValueId, label: &str) -> Outcome<Self> {
        let (id, node) = graph.producer(y).ok_or_else(|| {
            Miss::new(label, "no product goes into it").expected("MatMul, Add", "a graph input or weight")
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
    pub fn after(graph: &Graph, x: ValueId) -> Outcome<(Self, ValueId)> {
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

    /// The offset, or zeros in its stead.
    pub fn offset(&self, patch: &mut Patch, dtype: DType, name: &str) -> ValueId {
        offset_or_zeros(self.b, patch, dtype, self.sizes[1], name)
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

/// The offset of so many columns, or zeros in its stead.
pub fn offset_or_zeros(b: Option<ValueId>, patch: &mut Patch, dtype: DType, columns: i64, name: &str) -> ValueId {
    b.unwrap_or_else(|| {
        let zeros = float_tensor(dtype, &[columns], &vec![0.0; columns as usize]);
        // The type was checked, so there is a tensor of it.
        patch.constant(name, zeros.unwrap_or_default())
    })
}

/// A weight as numbers, with its type and sizes.
pub fn weight(graph: &Graph, value: ValueId) -> Outcome<(DType, Vec<i64>, Vec<f64>)> {
    let name = &graph.value(value).name;
    let constant = graph.constant(value).ok_or_else(|| {
        Miss::new(name, "a weight that has to be known is computed").expected("a constant", "a computed value")
    })?;
    let known = || Some((graph.dtype(value)?, graph.static_shape(value)?, constant.to_f64_vec().ok()?));
    known().ok_or_else(|| Miss::new(name, "the weight cannot be read"))
}

/// The numbers as a weight; a miss where the type cannot hold them.
pub fn rounded(at: &str, dtype: DType, sizes: &[i64], values: &[f64]) -> Outcome<TensorProto> {
    let fits = |&v: &f64| match dtype {
        DType::F16 => half::f16::from_f64(v).is_finite(),
        _ => (v as f32).is_finite(),
    };
    let tensor = values.iter().all(fits).then(|| float_tensor(dtype, sizes, values)).flatten();
    tensor.ok_or_else(|| Miss::new(at, "the type of the weights does not hold what they would be"))
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

pub fn output(graph: &Graph, id: NodeId) -> Outcome<ValueId> {
    graph.node(id).output(0).ok_or_else(|| Miss::new(graph.node_label(id), "it has no output"))
}

/// A miss unless the value is read once and is no graph output.
pub fn single_use(graph: &Graph, value: ValueId) -> Outcome<NodeId> {
    only_user(graph, value).ok_or_else(|| {
        let name = &graph.value(value).name;
        let found =
            if graph.is_output(value) { "a graph output".into() } else { format!("{} uses", graph.uses(value).len()) };
        Miss::new(name, "an interior value is used otherwise too").expected("1 use", found)
    })
}

/// The only reader of the value, which must be of the op.
pub fn sole_reader(graph: &Graph, value: ValueId, op: &str) -> Outcome<NodeId> {
    let user = single_use(graph, value)?;
    let node = graph.node(user);
    if node.is(op) {
        Ok(user)
    } else {
        let reason = "another op follows than in a block";
        Err(Miss::new(graph.node_label(user), reason).expected(op, node.qualified_op()))
    }
}

/// The operand of the add that is not `this`, by name.
pub fn other_name(graph: &Graph, add: NodeId, this: ValueId) -> String {
    let other = graph.node(add).inputs.iter().flatten().find(|&&v| v != this);
    other.map_or("the same value twice".into(), |&v| graph.value(v).name.clone())
}

/// A miss unless the second product has the columns of the first as rows, and its rows as columns.
pub fn check_leads_back(label: &str, [up, down]: [&Linear; 2]) -> Outcome<()> {
    let [channels, hidden] = up.sizes;
    if down.sizes == [hidden, channels] {
        return Ok(());
    }
    Err(Miss::new(label, "the second product does not lead back to the channels")
        .expected(format!("[{hidden}, {channels}]"), format!("[{}, {}]", down.sizes[0], down.sizes[1])))
}

/// A miss unless the plugins take the stream's type, and the weights of both products are of it.
pub fn check_types(graph: &Graph, label: &str, stream: ValueId, products: [&Linear; 2]) -> Outcome<()> {
    let dtype = graph.dtype(stream);
    if !matches!(dtype, Some(DType::F32 | DType::F16)) {
        let found = dtype.map_or("an unknown type", DType::name);
        return Err(Miss::new(label, "the plugin takes no such type").expected("float or float16", found));
    }
    let mut weights = products.into_iter().flat_map(|linear| std::iter::once(linear.w).chain(linear.b));
    if let Some(odd) = weights.find(|&w| graph.dtype(w) != dtype) {
        let name = |t: Option<DType>| t.map_or("an unknown type", DType::name);
        return Err(Miss::new(&graph.value(odd).name, "a weight is of another type than the tokens")
            .expected(name(dtype), name(graph.dtype(odd))));
    }
    Ok(())
}

/// Up to where a block's own products, which are made for few rows, are faster than TensorRT's, and from where those for many
/// rows are. Set by runs on an H100 in float16; plugins/NOTES.md is the account of them.
pub mod limits {
    use crate::rewrite::ComputeCapability;

    /// The GPUs that have products of MLP and attention blocks for many rows, by warpgroups.
    pub const WIDE_PRODUCTS: ComputeCapability = ComputeCapability::HOPPER;
    /// The oldest GPUs that have products of few rows, and with them tensor cores for MLP blocks without a norm and convolution blocks.
    pub const FEW_ROWS: ComputeCapability = ComputeCapability::HOPPER;
    /// The GPUs that have a kernel for a whole convolution layer.
    pub const ONE_KERNEL_LAYERS: ComputeCapability = ComputeCapability::HOPPER;
    /// From so many rows on the plugins offer these products.
    pub const WIDE_ROWS: i64 = 1500;
    /// At 96, 192 and 384 channels blocks with them are faster than their parts, at 768 they are not. Between these nothing was
    /// measured.
    pub const WIDE_CHANNELS: i64 = 512;
    /// FLOPs of both products of an MLP block. All stages of Swin-T and the layers of ViT-S have 0.46e9 at batch 1; at
    /// twice that the block is slower.
    pub const MLP_FLOPS: i64 = 600_000_000;
    /// MLP blocks of so many channels or fewer are faster at any number of rows.
    pub const MLP_ANY_ROWS_CHANNELS: i64 = 96;
    /// FLOPs of both products of an attention block. The same models have 0.23e9 at batch 1.
    pub const ATTN_FLOPS: i64 = 350_000_000;
    /// FLOPs of both products of an MLP block in a chain, whose kernel is made for few rows: those that were measured have
    /// 0.46e9, and blocks of many rows have products of their own.
    pub const CHAIN_FLOPS: i64 = MLP_FLOPS;
    /// Up to so many channels, blocks in windows of many rows ([`WIDE_ROWS`]) and their MLP blocks are a kernel each. On an H200 the two pairs of Swin-T's first
    /// stage take 34.9 us so at batch 1, and 43.4 as a chain, but for those that have a kernel of a pair ([`CHAIN_PAIR_WINDOWS`]).
    pub const CHAIN_ONE_KERNEL_CHANNELS: i64 = 128;
    /// A chain in up to so many windows, each of which has a multiprocessor then, is a kernel a pair on an H100 or H200, for 3 or 4 heads of 32 in as many channels. The same two
    /// pairs take 23.9 us so.
    pub const CHAIN_PAIR_WINDOWS: i64 = 128;
    /// FLOPs of both products of a convolution block. Not measured: they are as those of an attention block, which has another kernel
    /// between two products of few rows. The first two stages of UniFormer-S have 0.051e9 at batch 1.
    pub const CONV_FLOPS: i64 = ATTN_FLOPS;
    /// FLOPs of a classifier's product. Not measured: each image reads all of the weights, which at batch 1 are 0.0015e9 in Swin-T and 0.002e9 at
    /// 1024 channels, so this is as many images as a product of their own reads them for in about the time that the launches take.
    pub const CLASSIFIER_FLOPS: i64 = 17_000_000;
    /// Values that a classifier's mean is of, an image, which are read by up to 16 clusters of blocks. Not measured: Swin-T has 37632, ViT-B with a
    /// mean instead of its class token 150528.
    pub const CLASSIFIER_POOLED: i64 = 1 << 18;
    /// FLOPs of a bridge's product. TNT-S has 0.058e9 at batch 1, where the bridge is 1.3 to 1.4 times as fast as its parts; at
    /// batch 32 it takes 3.6 times as long. Between these nothing was measured.
    pub const BRIDGE_FLOPS: i64 = 100_000_000;
    /// Outputs of all words of a chain. TensorRT 8.6 takes the op in float16 with the 13 of TNT-S, 15 tensors in all; one of 32 tensors it took
    /// in float32 only, and between these nothing was tried.
    pub const WORDS_OUTPUTS: usize = 13;
    /// FLOPs of the product of a patch merge. The three of Swin-T have 0.116e9 each at batch 1; above that nothing was measured.
    pub const MERGE_FLOPS: i64 = 250_000_000;
    /// FLOPs of the product that a convolution of tokens is. Not measured: they are as those of a patch merge. The largest of PyramidTNT-S have 0.151e9 at
    /// batch 1.
    pub const PATCH_CONV_FLOPS: i64 = MERGE_FLOPS;
    /// FLOPs of all convolutions of a stack, without those that blocks share. Not measured: they are as those of an attention block. The stem of
    /// PyramidTNT-S has 0.280e9 at batch 1; with more images launches are not what its convolutions cost.
    pub const STACK_FLOPS: i64 = ATTN_FLOPS;
    /// FLOPs of a patch embedding's product. Not measured: ViT-B/16 has 0.23e9 at batch 1, where its own reading of the image, conversion
    /// and transposition are what is saved; with many rows the product is what counts, and TensorRT's is the better one.
    pub const EMBED_FLOPS: i64 = 250_000_000;
    /// Patches of so many values or fewer and so many columns are bound by memory, which the op moves less of, at any number of rows:
    /// the kernel has all of their weights in registers. Not measured either.
    pub const EMBED_ANY_ROWS: [i64; 2] = [48, 128];
}

/// FLOPs of products with the rows of the leading `axes`, an open one of which counts as 1.
fn flops(axes: &[Dim], products: &[&Linear]) -> Option<i64> {
    let row = products.iter().try_fold(0i64, |sum, linear| {
        let [rows, columns] = linear.sizes;
        sum.checked_add(rows.checked_mul(columns)?.checked_mul(2)?)
    })?;
    axes.iter().try_fold(row, |product, axis| product.checked_mul(axis.eval(|_| Some(1))?))
}

/// Rounded up, so that what is over a limit looks so.
pub fn flops_text(flops: i64) -> String {
    format!("{:.3} GFLOP", (flops as f64 / 1e6).ceil() / 1e3)
}

/// A miss where the products have more than `limit` FLOPs. `small` says what is taken at any number of rows, if anything.
pub fn check_flops(label: &str, axes: &[Dim], products: &[&Linear], limit: i64, small: &str) -> Outcome<()> {
    // Where so many cannot be counted, they are over any limit.
    let found = flops(axes, products);
    if found.is_some_and(|flops| flops <= limit) {
        return Ok(());
    }
    let (text, found) = (flops_text, found.map_or_else(|| "more than can be counted".into(), flops_text));
    let axes = shape_text(axes);
    let which = if products.len() == 1 { "its product" } else { "both products" };
    Err(Miss::new(label, "its products are so large that TensorRT's are faster").expected(
        format!("at most {} in {which}{small}, an open batch counted as 1", text(limit)),
        format!("{found}, rows {axes}"),
    ))
}

/// What a block with products for many rows is judged by, beside its FLOPs.
pub struct Wide<'a> {
    /// Of the GPU that the model will run on, if it is known.
    pub gpu: Option<ComputeCapability>,
    /// That the products lead from and back to.
    pub channels: &'a [i64],
}

impl Wide<'_> {
    /// [`check_flops`], but for blocks of many rows where the GPU has products for them. A batch that is open may turn out
    /// to be a small one, so rows have to be known.
    pub fn check_flops(&self, label: &str, axes: &[Dim], products: &[&Linear], limit: i64, small: &str) -> Outcome<()> {
        use limits::{WIDE_CHANNELS, WIDE_PRODUCTS, WIDE_ROWS};
        let rows = axes.iter().try_fold(1i64, |rows, axis| rows.checked_mul(axis.int()?));
        let wide = rows.is_some_and(|rows| rows >= WIDE_ROWS) && self.channels.iter().all(|&c| c <= WIDE_CHANNELS);
        match self.gpu {
            Some(gpu) if gpu == WIDE_PRODUCTS && wide => Ok(()),
            Some(gpu) if gpu == WIDE_PRODUCTS => {
                let large = format!("{WIDE_ROWS} rows of a fixed batch and at most {WIDE_CHANNELS} channels");
                check_flops(label, axes, products, limit, &format!("{small}, or at least {large}"))
            }
            None if wide => check_flops(label, axes, products, limit, small).map_err(|miss| Miss {
                reason: format!("{}, unless --compute-capability {WIDE_PRODUCTS} is given", miss.reason),
                ..miss
            }),
            _ => check_flops(label, axes, products, limit, small),
        }
    }
}

/// A miss on a GPU that is known to have no products of few rows, for a block that has tensor cores in these alone.
pub fn check_products_of_few_rows(label: &str, gpu: Option<ComputeCapability>) -> Outcome<()> {
    match gpu {
        Some(gpu) if gpu < limits::FEW_ROWS => {
            Err(Miss::new(label, "the plugin has no tensor cores for it on this GPU")
                .expected(format!("compute capability {} or later", limits::FEW_ROWS), gpu.to_string()))
        }
        _ => Ok(()),
    }
}

/// The operands of the Add that makes `stream`, if only `readers` read it and the plugin can do the add itself.
pub fn sum_of(graph: &Graph, stream: ValueId, readers: &[NodeId]) -> Option<(ValueId, ValueId)> {
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
