//! Convolution blocks: a depthwise convolution of tokens between two products, and the residual add, as in the first stages of UniFormer.
//!
//! ```text
//! x -> MatMul w1 -> Add b1 -> TrtOptDepthwiseConv -> MatMul w2 -> Add b2 = m ;  y = x + m      becomes   TrtOptConvBlock(x) -> y
//! ```
//!
//! Runs on what the rules of depthwise convolutions have left. A block that does not match stays as it is.

use crate::error::Result;
use crate::ir::{Graph, NodeId, ValueId};
use crate::onnx::DType;
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::ops::{ConvBlock, ConvWeights, DepthwiseConv, MAX_CHANNELS, MULTIPLE};
use crate::rewrite::pattern::fused_name;
use crate::rewrite::rules::block::{
    Fusion, Linear, Outcome, Rule, check_flops, check_leads_back, check_products_of_few_rows, check_types, limits,
    offset_or_zeros, other_name, output, single_use, sole_reader,
};
use crate::rewrite::rules::depthwise_conv::check_operands;
use crate::rewrite::{ComputeCapability, Kind};

const RULE: &str = "conv-block";

pub fn run(engine: &mut Engine) -> Result<()> {
    let gpu = engine.options().compute_capability;
    let rule = Rule {
        kind: Kind::ConvBlock,
        name: RULE,
        part: Kind::TokenConv,
        part_of: &|_, anchor| vec![anchor],
        fusion: &|graph, anchor, label| Ok(Block::of(graph, anchor, label, gpu)?.fusion(graph, label)),
    };
    rule.run_if_asked(engine, is_site)
}

/// Whether a product, with an offset or without, goes into the fused depthwise convolution: else, as a position encoding, it is of no
/// such block.
fn is_site(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let Some(x) = DepthwiseConv::of(node).and_then(|_| node.input(0)) else { return false };
    let product = |v: ValueId| graph.producer(v).is_some_and(|(_, n)| n.is("MatMul"));
    let sum = graph.producer(x).filter(|(_, n)| n.is("Add"));
    product(x)
        || sum.is_some_and(|(_, n)| {
            let mut operands = n.inputs.iter().flatten().copied();
            operands.clone().any(product) && operands.any(|v| graph.constant(v).is_some())
        })
}

/// A whole block.
struct Block {
    op: ConvBlock,
    x: ValueId,
    up: Linear,
    w: ValueId,
    b: Option<ValueId>,
    down: Linear,
    out: ValueId,
    covers: Vec<NodeId>,
}

impl Block {
    fn of(graph: &Graph, anchor: NodeId, label: &str, gpu: Option<ComputeCapability>) -> Outcome<Self> {
        let node = graph.node(anchor);
        let (Some(conv), Some(mixed), Some(w)) = (DepthwiseConv::of(node), node.input(0), node.input(1)) else {
            return Err(Miss::new(label, "its depthwise convolution is not fused")
                .expected("TrtOptDepthwiseConv", node.qualified_op()));
        };
        let b = node.input(2);
        if conv.residual {
            let reason = "the depthwise convolution has an add around itself";
            return Err(Miss::new(label, reason).expected("residual = 0", "residual = 1"));
        }
        check_operands(graph, label, mixed, std::iter::once(w).chain(b))?;
        let up = Linear::before(graph, mixed, label)?;
        single_use(graph, mixed)?;
        let (down, result) = Linear::after(graph, output(graph, anchor)?)?;
        let x = up.x;
        let add = sole_reader(graph, result, "Add")?;
        if !graph.node(add).inputs.contains(&Some(x)) {
            let reason = "what is added to the last product is not what the first one reads";
            return Err(
                Miss::new(graph.node_label(add), reason).expected(&graph.value(x).name, other_name(graph, add, result))
            );
        }
        let out = output(graph, add)?;
        check_sizes(graph, label, x, [&up, &down])?;
        check_products_of_few_rows(label, gpu)?;
        let covers = up.covers.iter().chain(&down.covers).copied().chain([anchor, add]).collect();
        Ok(Self { op: ConvBlock { grid: conv.grid, kernel: conv.kernel }, x, up, w, b, down, out, covers })
    }

    fn fusion(self, graph: &Graph, label: &str) -> Fusion {
        let name = fused_name(graph, label, "TrtOptConvBlock");
        let mut patch = Patch::new(graph, RULE);
        let dtype = graph.dtype(self.x).unwrap_or(DType::F32);
        let [b1, b2] = [(&self.up, "b1"), (&self.down, "b2")]
            .map(|(linear, suffix)| linear.offset(&mut patch, dtype, &format!("{name}/{suffix}")));
        let [_, hidden] = self.up.sizes;
        let b = offset_or_zeros(self.b, &mut patch, dtype, hidden, &format!("{name}/b"));
        let weights = ConvWeights { w1: self.up.w, b1, w: self.w, b, w2: self.down.w, b2 };
        let y = patch.value_like(graph, &name, self.out);
        let mut fused = self.op.node(self.x, &weights);
        fused.name.clone_from(&name);
        patch.node(fused, [y]);
        patch.replace(self.out, y);
        patch.cover(self.covers.iter().copied());
        Fusion { patch, name, covers: self.covers }
    }
}

/// Types and sizes that the plugin takes, and is made for.
fn check_sizes(graph: &Graph, label: &str, x: ValueId, products: [&Linear; 2]) -> Outcome<()> {
    check_types(graph, label, x, products)?;
    check_leads_back(label, products)?;
    let [channels, hidden] = products[0].sizes;
    if channels % MULTIPLE != 0 || hidden % MULTIPLE != 0 {
        return Err(Miss::new(label, "the tensor cores take no such sizes").expected(
            format!("multiples of {MULTIPLE}"),
            format!("{channels} channels, {hidden} between the products"),
        ));
    }
    if channels > MAX_CHANNELS || hidden > MAX_CHANNELS {
        return Err(Miss::new(label, "the block is too large").expected(
            format!("at most {MAX_CHANNELS} channels, between the products too"),
            format!("{channels}, {hidden} between the products"),
        ));
    }
    let Some([rows @ .., _]) = graph.shape(x) else {
        return Err(Miss::new(label, "the shape of its tokens is not known"));
    };
    check_flops(label, rows, &products, limits::CONV_FLOPS, "")
}
