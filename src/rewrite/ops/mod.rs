//! The plugin ops: one definition each, which the rewriter, the verifier, the documentation and (by a test) the
//! C++ plugins follow. `docs/ops.md` is the prose form.

mod attention;
mod attn_block;
mod block_chain;
mod body;
mod classifier;
mod conv_block;
mod conv_layer;
mod conv_stack;
mod depthwise_conv;
mod example;
mod gelu;
mod layer_norm;
mod mlp_block;
mod norm_pool;
mod patch_conv;
mod patch_embed;
mod patch_merge;
mod patch_merge_block;
mod pixel_embed;
mod pooled_attn_block;
mod tnt_bridge;
mod tnt_inner_block;
mod tnt_words;
mod window;

use std::collections::BTreeMap;

pub use attention::{Attention, Bias, Layout, Mask, region, table_index};
pub use attn_block::{AttnBlock, AttnWeights};
pub use block_chain::{BlockChain, MAX_PAIRS, MergedChain, packed, padded};
pub use classifier::{Classifier, MAX_SIZES};
pub use conv_block::{ConvBlock, ConvWeights};
pub use conv_layer::{ConvLayer, ConvLayerWeights, POSITION_KERNEL};
pub use conv_stack::{
    ConvStack, MAX_BETWEEN, MAX_IMAGE_CHANNELS, MAX_LAYERS, MAX_STACK_WORDS, MAX_TILE_VALUES, MAX_TOKEN_CHANNELS,
    StackWords,
};
pub use depthwise_conv::{DepthwiseConv, KERNELS};
pub use example::example;
pub use gelu::Gelu;
pub use layer_norm::{Addends, LayerNorm, Part};
pub use mlp_block::{MAX_CHANNELS, MAX_HIDDEN, MULTIPLE, MlpBlock, MlpWeights};
pub use norm_pool::NormPool;
pub use patch_conv::{PatchConv, PatchConvWeights};
pub use patch_embed::{MAX_PATCH, PatchEmbed, PatchEmbedWeights};
pub use patch_merge::PatchMerge;
pub use patch_merge_block::{PatchMergeBlock, PatchMergeWeights};
pub use pixel_embed::{MAX_COLUMNS, MAX_PATCH_WORDS, MAX_ROWS, PixelEmbed, SLOTS};
pub use pooled_attn_block::{PooledAttnBlock, PooledAttnWeights};
pub use tnt_bridge::{TntBridge, TntBridgeWeights};
pub use tnt_inner_block::{TntInnerBlock, TntInnerWeights};
pub use tnt_words::{BRIDGE_WEIGHTS, LAYER_WEIGHTS, MAX_WORDS, PART_MULTIPLE, TntWords};
pub use window::{Window, WindowMap};

use crate::analysis::cost::{Cost, byte_size};
use crate::error::{Error, Result};
use crate::ir::{self, Dim, Graph, Node};
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, FunctionProto, ModelProto, OperatorSetIdProto};

/// Domain of the plugin ops.
pub const DOMAIN: &str = "trt.opt";
/// Version of the domain in `opset_import`.
pub const DOMAIN_VERSION: i64 = 1;
/// Version and namespace of the plugins.
pub const PLUGIN_VERSION: &str = "1";
pub const PLUGIN_NAMESPACE: &str = "trt_opt";

/// The types of tensors that every op takes; all tensors of a node are of one type, but for what a port's `doc` says.
pub const TYPES: [DType; 2] = [DType::F32, DType::F16];

/// The type of an attribute, as TensorRT's `PluginFieldType` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeKind {
    /// `kINT32`, one element.
    Int,
    /// `kFLOAT32`, one element.
    Float,
    /// `kCHAR`.
    String,
    /// `kINT32`, so many elements.
    Ints(usize),
}

impl std::fmt::Display for AttributeKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int => f.write_str("INT"),
            Self::Float => f.write_str("FLOAT"),
            Self::String => f.write_str("STRING"),
            Self::Ints(n) => write!(f, "INTS[{n}]"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct AttributeDef {
    pub name: &'static str,
    pub kind: AttributeKind,
    pub doc: &'static str,
}

/// An input or output.
#[derive(Clone, Copy, Debug)]
pub struct PortDef {
    pub name: &'static str,
    /// Shapes, and for an optional port the attribute that says that it is there.
    pub doc: &'static str,
    pub optional: bool,
}

type Work = fn(&Node, &[Vec<i64>], &[Vec<i64>]) -> Option<(u64, u64)>;
type Shapes = Vec<Option<(DType, Vec<Dim>)>>;

/// What there is to know of a plugin op.
pub struct OpDef {
    pub name: &'static str,
    pub summary: &'static str,
    /// The pattern that it stands for.
    pub replaces: &'static str,
    pub inputs: &'static [PortDef],
    pub outputs: &'static [PortDef],
    pub attributes: &'static [AttributeDef],
    shapes: fn(&Graph, &Node) -> Option<Shapes>,
    body: fn(&mut body::Body, &Graph, &Node) -> Option<()>,
    /// FLOPs, and multiply-adds of matrix products, from the integer shapes of inputs and outputs.
    work: Work,
}

/// All plugin ops.
pub static OPS: &[&OpDef] = &[
    &layer_norm::DEF,
    &attention::DEF,
    &window::DEF,
    &patch_merge::DEF,
    &mlp_block::DEF,
    &attn_block::SWIN_DEF,
    &attn_block::DEF,
    &pooled_attn_block::DEF,
    &tnt_inner_block::DEF,
    &tnt_bridge::DEF,
    &norm_pool::DEF,
    &patch_merge_block::DEF,
    &patch_embed::DEF,
    &pixel_embed::DEF,
    &tnt_words::DEF,
    &gelu::DEF,
    &depthwise_conv::DEF,
    &conv_block::DEF,
    &conv_layer::DEF,
    &classifier::DEF,
    &patch_conv::DEF,
    &conv_stack::DEF,
    &block_chain::DEF,
];

const fn port(name: &'static str, doc: &'static str) -> PortDef {
    PortDef { name, doc, optional: false }
}

const fn optional(name: &'static str, doc: &'static str) -> PortDef {
    PortDef { name, doc, optional: true }
}

const fn attribute(name: &'static str, kind: AttributeKind, doc: &'static str) -> AttributeDef {
    AttributeDef { name, kind, doc }
}

/// The definition of a node's op, if it is a plugin op.
pub fn definition(node: &Node) -> Option<&'static OpDef> {
    (node.domain == DOMAIN).then(|| OPS.iter().find(|d| d.name == node.op).copied())?
}

/// Whether the node is of this plugin op.
fn is(node: &Node, def: &OpDef) -> bool {
    node.domain == DOMAIN && node.op == def.name
}

/// The shape rule of plugin ops: what [`crate::analysis`] asks for ops that are not standard.
pub fn shapes(graph: &Graph, node: &Node) -> Option<Shapes> {
    (definition(node)?.shapes)(graph, node)
}

/// The cost of a plugin node at a batch size: what [`crate::analysis::cost`] asks for ops that are not standard.
pub fn cost(graph: &Graph, node: &Node, batch: i64) -> Option<Cost> {
    let def = definition(node)?;
    let sizes = |ports: &[Option<ir::ValueId>]| -> Option<Vec<Vec<i64>>> {
        let size = |v: &ir::ValueId| graph.shape(*v)?.iter().map(|d| d.eval(|_| Some(batch))).collect();
        ports.iter().flatten().map(size).collect()
    };
    let (inputs, outputs) = (sizes(&node.inputs)?, sizes(&node.outputs)?);
    let values = node.inputs.iter().chain(&node.outputs).flatten();
    let bytes = values.map(|&v| byte_size(graph, v, batch)).sum::<Option<u64>>()?;
    let (flops, macs) = (def.work)(node, &inputs, &outputs)?;
    Some(Cost { bytes, flops, macs, launches: 1.0 })
}

/// Elements of a shape.
fn count(shape: &[i64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))
}

/// A node of the op with the attributes that TensorRT's parser wants, to which the op's own are added.
fn plugin_node(def: &OpDef, attributes: Vec<AttributeProto>) -> Node {
    let mut node = Node { op: def.name.into(), domain: DOMAIN.into(), attributes, ..Node::default() };
    node.set(AttributeProto::string("plugin_version", PLUGIN_VERSION));
    node.set(AttributeProto::string("plugin_namespace", PLUGIN_NAMESPACE));
    node
}

fn pair(node: &Node, name: &str) -> Option<[i64; 2]> {
    node.ints(name)?.try_into().ok()
}

/// Gives every plugin node of the model a function body of standard ops, so that any ONNX runtime can run it.
///
/// Nodes that differ in attributes or shapes need different bodies: node `TrtOptAttention` becomes
/// `TrtOptAttention_1`, `TrtOptAttention_2`, ... A model with such functions is not for TensorRT, which would prefer
/// the function to the plugin.
pub fn add_reference_bodies(model: &mut ModelProto) -> Result<()> {
    let mut graph = Graph::take(model)?;
    crate::analysis::infer::infer(&mut graph, &shapes)?;
    let mut variants: BTreeMap<String, Vec<FunctionProto>> = BTreeMap::new();
    let nodes: Vec<_> = graph.nodes().filter(|(_, n)| n.domain == DOMAIN).map(|(id, _)| id).collect();
    for id in nodes {
        let node = graph.node(id);
        let place = || format!("node '{}'", graph.node_label(id));
        let def = definition(node).ok_or_else(|| {
            let known: Vec<_> = OPS.iter().map(|d| d.name).collect();
            Error::invalid(place(), format!("found op {}, expected one of {}", node.qualified_op(), known.join(", ")))
        })?;
        check_attributes(def, node).map_err(|what| Error::invalid(place(), what))?;
        let mut body = body::Body::new(graph.opset);
        (def.body)(&mut body, &graph, node).ok_or_else(|| {
            Error::invalid(
                place(),
                "its inputs do not fit its attributes, or their shapes are not known; see docs/ops.md",
            )
        })?;
        let mut function = body.finish(def, node);
        let known = variants.entry(def.name.into()).or_default();
        let same =
            |f: &FunctionProto| f.node == function.node && f.input == function.input && f.output == function.output;
        let variant = match known.iter().position(same) {
            Some(i) => i + 1,
            None => {
                function.name = Some(format!("{}_{}", def.name, known.len() + 1));
                known.push(function);
                known.len()
            }
        };
        graph.edit_node(id, |n| n.op = format!("{}_{variant}", def.name));
    }
    graph.restore(model);
    model.functions.extend(variants.into_values().flatten());
    // Functions came with IR version 8.
    model.ir_version = Some(model.ir_version.unwrap_or(0).max(8));
    import_domain(model);
    Ok(())
}

/// Adds the plugin domain to the opset imports if a node is of it.
pub fn import_domain(model: &mut ModelProto) {
    let used = model.graph.as_ref().is_some_and(|g| g.node.iter().any(|n| n.domain.as_deref() == Some(DOMAIN)));
    let imported = model.opset_import.iter().any(|o| o.domain.as_deref() == Some(DOMAIN));
    if used && !imported {
        model.opset_import.push(OperatorSetIdProto { domain: Some(DOMAIN.into()), version: Some(DOMAIN_VERSION) });
    }
}

/// Whether the node has every attribute of its definition, of the right type.
pub fn check_attributes(def: &OpDef, node: &Node) -> std::result::Result<(), String> {
    for a in def.attributes {
        let found = node.attribute(a.name);
        let ok = match a.kind {
            AttributeKind::Int => found.is_some_and(|f| f.i.is_some()),
            AttributeKind::Float => found.is_some_and(|f| f.f.is_some()),
            AttributeKind::String => found.is_some_and(|f| f.s.is_some()),
            AttributeKind::Ints(n) => found.is_some_and(|f| f.ints.len() == n),
        };
        if !ok {
            let what = if found.is_some() { "another type or length" } else { "none" };
            return Err(format!("attribute '{}': expected {}, found {what}", a.name, a.kind));
        }
    }
    Ok(())
}

/// The ops as a Markdown table: name, inputs, outputs, what each replaces.
pub fn markdown_table() -> String {
    let ports = |ports: &[PortDef]| {
        ports
            .iter()
            .map(|p| if p.optional { format!("[{}]", p.name) } else { p.name.into() })
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut out = "| op | inputs | outputs | computes | replaces |\n|---|---|---|---|---|\n".to_owned();
    for d in OPS {
        let row =
            format!("| `{}` | {} | {} | {} | {} |\n", d.name, ports(d.inputs), ports(d.outputs), d.summary, d.replaces);
        out.push_str(&row);
    }
    out
}

/// Shape of the value as integers, with symbolic axes as -1; `None` if more than one axis is symbolic.
fn reshapeable(graph: &Graph, value: ir::ValueId) -> Option<Vec<i64>> {
    crate::rewrite::engine::reshape_target(graph.shape(value)?)
}
