//! Standard ops brought from one opset's form into another's: what a target's parser can read.
//!
//! Opsets 11 to 23 can be raised, and 18 to 23 lowered as far as 17. An op that did not exist yet is written out in
//! ops that did, in the spelling that exporters use for it.

use std::collections::HashSet;

use crate::analysis::eval::Tensor;
use crate::analysis::infer::{axis_of, infer};
use crate::error::{Error, Result};
use crate::ir::{Dim, Graph, Node, NodeId, Value, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, GraphProto, TensorProto};

/// The oldest and the newest opset that is converted from or to.
const OLDEST: i64 = 11;
const NEWEST: i64 = 23;
/// Nothing is lowered below this.
const LOWEST: i64 = 17;

/// Why a node cannot be converted.
type Refusal = String;

/// Converts the graph to opset `wanted`.
///
/// Returns an empty list when that is done; else one message for each node that cannot be converted, and the graph is
/// as it was. Fails as [`infer`] does.
pub fn to_opset(graph: &mut Graph, wanted: i64) -> Result<Vec<String>> {
    let from = graph.opset;
    if from == wanted {
        return Ok(vec![]);
    }
    if !(OLDEST..=NEWEST).contains(&from) || !(OLDEST..=NEWEST).contains(&wanted) {
        return Ok(vec![format!("opset {from} is left as it is: opsets {OLDEST} to {NEWEST} can be converted")]);
    }
    if wanted < from && wanted < LOWEST {
        return Ok(vec![format!("opset {from} is left as it is: no opset is lowered below {LOWEST}")]);
    }
    // Changed in a copy, which shares the weights, so that a refusal leaves nothing half done.
    let mut copy = graph.clone();
    infer(&mut copy, &|_, _| None)?;
    let mut refused = vec![];
    for id in copy.order().to_vec() {
        let node = copy.node(id);
        if !node.domain.is_empty() {
            continue;
        }
        let (label, op) = (copy.node_label(id), node.op.clone());
        let done = match subgraph_trouble(node, from, wanted) {
            Some(why) => Err(why),
            None if wanted > from => raise(&mut copy, id, wanted),
            None => lower(&mut copy, id, wanted),
        };
        if let Err(why) = done {
            refused.push(format!("node '{label}' ({op}) has no form in opset {wanted}: {why}"));
        }
    }
    if !refused.is_empty() {
        return Ok(refused);
    }
    copy.opset = wanted;
    name_apart(&mut copy, graph);
    copy.sort().map_err(|node| Error::invalid(format!("node '{}'", copy.node_label(node)), "is on a cycle"))?;
    copy.remove_unused_initializers();
    *graph = copy;
    Ok(vec![])
}

/// Renames new nodes that are called as another one is.
fn name_apart(graph: &mut Graph, old: &Graph) {
    let is_new = |id: NodeId| old.get(id).is_none();
    let mut names: HashSet<String> =
        graph.nodes().filter(|(id, _)| !is_new(*id)).map(|(_, node)| node.name.clone()).collect();
    for id in graph.order().to_vec() {
        let name = graph.node(id).name.clone();
        if !is_new(id) || name.is_empty() || names.insert(name.clone()) {
            continue;
        }
        let mut counted = (2u64..).map(|i| format!("{name}_{i}"));
        if let Some(name) = counted.find(|n| !names.contains(n)) {
            names.insert(name.clone());
            graph.edit_node(id, |node| node.name = name);
        }
    }
}

/// Opsets at which the form of an op changed, or its meaning, and the one that brought it.
fn changes(op: &str) -> &'static [i64] {
    match op {
        "Dropout" => &[12],
        "Celu" | "Einsum" | "GreaterOrEqual" | "LessOrEqual" => &[12],
        "Squeeze" | "Unsqueeze" | "ReduceSum" | "Softmax" | "LogSoftmax" | "Hardmax" => &[13],
        "Split" => &[13, 18],
        "BatchNormalization" | "HardSwish" | "Trilu" | "CumSum" => &[14],
        "Bernoulli" | "CastLike" | "Optional" => &[15],
        "GridSample" => &[16, 20],
        "LayerNormalization" | "BlackmanWindow" | "HammingWindow" | "HannWindow" | "MelWeightMatrix" | "STFT"
        | "SequenceMap" => &[17],
        "DFT" => &[17, 20],
        "Resize" => &[13, 18, 19],
        "Pad" => &[18, 19],
        "LpPool" | "ScatterElements" | "ScatterND" | "OptionalGetElement" | "OptionalHasElement" => &[16, 18],
        "BitwiseAnd" | "BitwiseNot" | "BitwiseOr" | "BitwiseXor" | "CenterCropPad" | "Col2Im" | "Mish" => &[18],
        "GroupNormalization" => &[18, 21],
        "AveragePool" | "Cast" | "DeformConv" => &[19],
        "QuantizeLinear" | "DequantizeLinear" => &[13, 19, 21, 23],
        "AffineGrid" | "Gelu" | "ImageDecoder" | "RegexFullMatch" | "StringConcat" | "StringSplit" => &[20],
        "Attention" | "RMSNormalization" | "RotaryEmbedding" => &[23],
        op if op.starts_with("Reduce") => &[18],
        _ => &[],
    }
}

/// Nodes of subgraphs are not converted, so none may need it.
fn subgraph_trouble(node: &Node, from: i64, to: i64) -> Option<Refusal> {
    let (low, high) = (from.min(to), from.max(to));
    let touched = |op: &str| changes(op).iter().any(|c| low < *c && *c <= high);
    let mut graphs: Vec<&GraphProto> =
        node.attributes.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs)).collect();
    while let Some(graph) = graphs.pop() {
        for node in &graph.node {
            if matches!(node.domain.as_deref(), None | Some("" | "ai.onnx")) && touched(node.op_type()) {
                return Some(format!("its subgraph has a {}, whose form changed in between", node.op_type()));
            }
            graphs.extend(node.attribute.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs)));
        }
    }
    None
}

/// Writes the nodes that stand in for one.
struct Editor<'a> {
    graph: &'a mut Graph,
    old: NodeId,
    first_new: usize,
}

impl<'a> Editor<'a> {
    fn new(graph: &'a mut Graph, old: NodeId) -> Self {
        let first_new = graph.order().len();
        Self { graph, old, first_new }
    }

    fn name(&self, op: &str) -> String {
        let name = &self.graph.node(self.old).name;
        if name.is_empty() { op.to_owned() } else { format!("{name}_{op}") }
    }

    fn node(&mut self, op: &str, inputs: &[Option<ValueId>], attributes: Vec<AttributeProto>) -> Node {
        let mut node = Node::new(op, []);
        node.name = self.name(op);
        node.inputs = inputs.to_vec();
        node.attributes = attributes;
        node
    }

    /// A new node with one new output.
    fn emit(&mut self, op: &str, inputs: &[ValueId], attributes: Vec<AttributeProto>) -> ValueId {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let mut node = self.node(op, &inputs, attributes);
        let output = self.graph.add_value(Value::new(&node.name, None, None));
        node.outputs = vec![Some(output)];
        self.graph.add_node(node);
        output
    }

    /// The last node, which makes all of the old one's outputs.
    fn finish(self, mut node: Node) {
        node.outputs = self.graph.node(self.old).outputs.clone();
        self.close(node);
    }

    fn close(self, mut node: Node) {
        let old = self.graph.node(self.old);
        (node.name, node.doc_string, node.metadata) = (old.name.clone(), old.doc_string.clone(), old.metadata.clone());
        self.graph.add_node(node);
        self.graph.place_new_nodes(self.first_new, self.old);
        self.graph.remove_node(self.old);
    }

    /// The last node, which makes the first of the old one's outputs; the others are unused, as its rule has checked.
    fn finish_with(mut self, op: &str, inputs: &[ValueId], attributes: Vec<AttributeProto>) {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let mut node = self.node(op, &inputs, attributes);
        node.outputs = self.graph.node(self.old).outputs.iter().take(1).copied().collect();
        self.close(node);
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_initializer("ints", TensorProto::from_i64("", &[values.len() as i64], values))
    }

    /// A constant of a float type.
    fn float(&mut self, dtype: DType, shape: &[usize], value: f64) -> Result<ValueId, Refusal> {
        let tensor = Tensor::filled(dtype, shape, value).ok_or_else(|| format!("{dtype} is not a float type"))?;
        Ok(self.graph.add_initializer("constant", tensor.to_proto("")))
    }

    /// A mean that keeps its axes, in the form of the opset.
    fn mean(&mut self, x: ValueId, axes: &[i64], opset: i64) -> ValueId {
        let keep = AttributeProto::int("keepdims", 1);
        if opset >= 18 {
            let axes = self.ints(axes);
            return self.emit("ReduceMean", &[x, axes], vec![keep]);
        }
        self.emit("ReduceMean", &[x], vec![AttributeProto::ints("axes", axes), keep])
    }

    fn cast(&mut self, x: ValueId, to: DType) -> ValueId {
        self.emit("Cast", &[x], vec![AttributeProto::int("to", to as i64)])
    }
}

fn constant_ints(graph: &Graph, value: ValueId) -> Option<Vec<i64>> {
    Tensor::from_proto(graph.constant(value)?)?.ints()
}

fn unused(graph: &Graph, node: &Node, output: usize) -> bool {
    node.output(output).is_none_or(|v| graph.uses(v).is_empty() && !graph.is_output(v))
}

fn drop_attributes(graph: &mut Graph, id: NodeId, names: &[&str]) {
    graph.edit_node(id, |node| node.attributes.retain(|a| !a.name.as_deref().is_some_and(|n| names.contains(&n))));
}

// ---- raising ----

fn raise(graph: &mut Graph, id: NodeId, to: i64) -> Result<(), Refusal> {
    let from = graph.opset;
    let crosses = |at: i64| from < at && at <= to;
    let op = graph.node(id).op.clone();
    match op.as_str() {
        "Dropout" if crosses(12) => drop_attributes(graph, id, &["ratio"]),
        "Squeeze" | "Unsqueeze" | "ReduceSum" if crosses(13) => list_to_input(graph, id, "axes", 1),
        "Split" if crosses(13) || crosses(18) => {
            let listed = graph.node(id).ints("split").is_some() || graph.node(id).input(1).is_some();
            if listed {
                list_to_input(graph, id, "split", 1);
            } else if crosses(18) {
                let parts = graph.node(id).outputs.len() as i64;
                graph.edit_node(id, |node| node.set(AttributeProto::int("num_outputs", parts)));
            }
        }
        "Softmax" | "LogSoftmax" | "Hardmax" if crosses(13) => raise_softmax(graph, id)?,
        "BatchNormalization" if crosses(14) => {
            let node = graph.node(id);
            if (1..node.outputs.len()).any(|i| !unused(graph, node, i)) {
                return Err("it returns statistics, as for training".into());
            }
            if node.outputs.len() > 1 {
                let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
                let attributes = node.attributes.clone();
                Editor::new(graph, id).finish_with("BatchNormalization", &inputs, attributes);
            }
        }
        "Resize"
            if crosses(13)
                && graph.node(id).string("coordinate_transformation_mode") == Some("tf_half_pixel_for_nn") =>
        {
            return Err("coordinate_transformation_mode tf_half_pixel_for_nn is gone".into());
        }
        "GridSample" if crosses(20) => {
            let mode = match graph.node(id).string("mode") {
                Some("bicubic") => "cubic",
                Some("nearest") => "nearest",
                _ => "linear",
            };
            graph.edit_node(id, |node| node.set(AttributeProto::string("mode", mode)));
        }
        "DFT" if crosses(20) => return Err("its axis became an input".into()),
        "GroupNormalization" if crosses(21) => return Err("its scale is for groups, and now is for channels".into()),
        op if op.starts_with("Reduce") && op != "ReduceSum" && crosses(18) => list_to_input(graph, id, "axes", 1),
        _ => {}
    }
    Ok(())
}

/// Attribute `name` becomes input `slot`.
fn list_to_input(graph: &mut Graph, id: NodeId, name: &str, slot: usize) {
    let Some(list) = graph.node(id).ints(name).map(<[i64]>::to_vec) else { return };
    let mut node = graph.node(id).clone();
    let mut editor = Editor::new(graph, id);
    let value = editor.ints(&list);
    node.inputs.resize(slot + 1, None);
    node.inputs[slot] = Some(value);
    node.attributes.retain(|a| a.name.as_deref() != Some(name));
    editor.finish(node);
}

/// Before opset 13 the axes from `axis` on, 1 by default, counted as one.
fn raise_softmax(graph: &mut Graph, id: NodeId) -> Result<(), Refusal> {
    let node = graph.node(id);
    let (Some(x), op) = (node.input(0), node.op.clone()) else { return Err("it has no input".into()) };
    let axis = node.int("axis").unwrap_or(1);
    let shape = graph.shape(x).ok_or("the rank of its input is not known")?.to_vec();
    let start = if axis == shape.len() as i64 { Some(shape.len()) } else { axis_of(axis, shape.len()) };
    let start = start.ok_or("its axis is out of range")?;
    let spread: Vec<usize> = (start..shape.len()).filter(|&i| shape[i] != Dim::Int(1)).collect();
    // One axis that is not 1 is the same in both readings; none gives ones on any axis of size 1.
    let one = match (spread.as_slice(), shape.len()) {
        ([axis], _) => Some(*axis),
        ([], rank) if start < rank => Some(start),
        _ => None,
    };
    if let Some(axis) = one {
        graph.edit_node(id, |node| node.set(AttributeProto::int("axis", axis as i64)));
        return Ok(());
    }
    let mut editor = Editor::new(graph, id);
    let target = editor.emit("Shape", &[x], vec![]);
    let flat = editor.emit("Flatten", &[x], vec![AttributeProto::int("axis", start as i64)]);
    let soft = editor.emit(&op, &[flat], vec![AttributeProto::int("axis", 1)]);
    editor.finish_with("Reshape", &[soft, target], vec![]);
    Ok(())
}

// ---- lowering ----

/// Ops of the standard domain newer than opset 17 that are not written out in older ones.
const NO_OLDER_FORM: [(&str, i64); 14] = [
    ("BitwiseAnd", 18),
    ("BitwiseNot", 18),
    ("BitwiseOr", 18),
    ("BitwiseXor", 18),
    ("CenterCropPad", 18),
    ("Col2Im", 18),
    ("DeformConv", 19),
    ("AffineGrid", 20),
    ("ImageDecoder", 20),
    ("RegexFullMatch", 20),
    ("StringConcat", 20),
    ("StringSplit", 20),
    ("RotaryEmbedding", 23),
    ("DFT", 20),
];

fn lower(graph: &mut Graph, id: NodeId, to: i64) -> Result<(), Refusal> {
    let from = graph.opset;
    let crosses = |at: i64| to < at && at <= from;
    element_types(graph, id, to)?;
    let node = graph.node(id);
    let op = node.op.clone();
    if let Some((_, since)) = NO_OLDER_FORM.iter().find(|(name, _)| *name == op)
        && crosses(*since)
    {
        return Err(format!("the op, or the form it has, came with opset {since}"));
    }
    match op.as_str() {
        "Attention" if crosses(23) => attention(graph, id)?,
        "RMSNormalization" if crosses(23) => rms_norm(graph, id, to)?,
        "Gelu" if crosses(20) => gelu(graph, id)?,
        "GridSample" if crosses(20) => {
            if node.input(0).and_then(|x| graph.rank(x)) != Some(4) {
                return Err("only images of two axes can be sampled".into());
            }
            let mode = match node.string("mode") {
                Some("cubic") => "bicubic",
                Some("nearest") => "nearest",
                _ => "bilinear",
            };
            graph.edit_node(id, |node| node.set(AttributeProto::string("mode", mode)));
        }
        "GroupNormalization" if crosses(18) || crosses(21) => group_norm(graph, id, from)?,
        "Mish" if crosses(18) => {
            let x = node.input(0).ok_or("it has no input")?;
            let mut editor = Editor::new(graph, id);
            let soft = editor.emit("Softplus", &[x], vec![]);
            let tanh = editor.emit("Tanh", &[soft], vec![]);
            editor.finish_with("Mul", &[x, tanh], vec![]);
        }
        "AveragePool" | "LpPool" if crosses(19) || crosses(18) => {
            if node.ints("dilations").is_some_and(|d| d.iter().any(|d| *d != 1)) {
                return Err("it has dilations".into());
            }
            if op == "LpPool" && crosses(18) && node.int("ceil_mode").unwrap_or(0) != 0 {
                return Err("it has ceil_mode".into());
            }
            let dropped: &[&str] =
                if op == "LpPool" && crosses(18) { &["dilations", "ceil_mode"] } else { &["dilations"] };
            if crosses(19) || op == "LpPool" {
                drop_attributes(graph, id, dropped);
            }
        }
        "Cast" | "CastLike" if crosses(19) => drop_attributes(graph, id, &["saturate"]),
        "QuantizeLinear" | "DequantizeLinear" => {
            if crosses(21) && node.int("block_size").unwrap_or(0) != 0 {
                return Err("it quantizes by blocks".into());
            }
            if crosses(23) {
                drop_attributes(graph, id, &["precision"]);
            }
            if crosses(21) {
                if node_int(graph, id, "output_dtype") != 0 {
                    return Err("it names its output type".into());
                }
                drop_attributes(graph, id, &["block_size", "output_dtype"]);
            }
            if crosses(19) {
                drop_attributes(graph, id, &["saturate"]);
            }
        }
        "Pad" => lower_pad(graph, id, crosses(18), crosses(19))?,
        "Resize" => lower_resize(graph, id, crosses(18), crosses(19))?,
        "ScatterND" | "ScatterElements" if crosses(18) => {
            if matches!(node.string("reduction"), Some("max" | "min")) {
                return Err("its reduction came with opset 18".into());
            }
        }
        "Split" if crosses(18) => lower_split(graph, id)?,
        op if op.starts_with("Reduce") && op != "ReduceSum" && crosses(18) => lower_reduce(graph, id)?,
        _ => {}
    }
    Ok(())
}

fn node_int(graph: &Graph, id: NodeId, name: &str) -> i64 {
    graph.node(id).int(name).unwrap_or(0)
}

/// Element types that ops took later than the wanted opset.
fn element_types(graph: &Graph, id: NodeId, to: i64) -> Result<(), Refusal> {
    let node = graph.node(id);
    let types = node.inputs.iter().chain(&node.outputs).flatten().filter_map(|v| graph.dtype(*v));
    for dtype in types {
        let since = match dtype {
            DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ => 19,
            DType::U4 | DType::I4 => 21,
            DType::F4E2M1 => 23,
            DType::F8E8M0 | DType::U2 | DType::I2 => 24,
            DType::BF16 if OPS_WITH_BF16_SINCE_22.contains(&node.op.as_str()) => 22,
            _ => continue,
        };
        if to < since && graph.opset >= since {
            return Err(format!("its element type {dtype} came with opset {since}"));
        }
    }
    Ok(())
}

const OPS_WITH_BF16_SINCE_22: [&str; 40] = [
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "DeformConv",
    "Det",
    "Elu",
    "EyeLike",
    "GRU",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GridSample",
    "HardSigmoid",
    "HardSwish",
    "InstanceNormalization",
    "LSTM",
    "LpNormalization",
    "LpPool",
    "MaxPool",
    "MaxRoiPool",
    "MaxUnpool",
    "Mish",
    "RNN",
    "RoiAlign",
    "Round",
    "Selu",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Tan",
    "ThresholdedRelu",
];

fn lower_reduce(graph: &mut Graph, id: NodeId) -> Result<(), Refusal> {
    let node = graph.node(id);
    let x = node.input(0).ok_or("it has no input")?;
    let axes = match node.input(1) {
        Some(axes) => constant_ints(graph, axes).ok_or("its axes are not constant")?,
        None => vec![],
    };
    if axes.is_empty() && node_int(graph, id, "noop_with_empty_axes") != 0 {
        let elementwise = match graph.node(id).op.as_str() {
            "ReduceSumSquare" | "ReduceL1" | "ReduceL2" | "ReduceLogSum" => Err("it reduces no axis"),
            _ => Ok(()),
        };
        elementwise?;
        Editor::new(graph, id).finish_with("Identity", &[x], vec![]);
        return Ok(());
    }
    graph.truncate_inputs(id, 1);
    drop_attributes(graph, id, &["noop_with_empty_axes"]);
    if !axes.is_empty() {
        graph.edit_node(id, |node| node.set(AttributeProto::ints("axes", &axes)));
    }
    Ok(())
}

fn lower_split(graph: &mut Graph, id: NodeId) -> Result<(), Refusal> {
    let node = graph.node(id);
    let parts = node.outputs.len() as i64;
    if node.input(1).is_some() || node.attribute("num_outputs").is_none() {
        return Ok(());
    }
    let size = || {
        let shape = graph.shape(node.input(0)?)?;
        Some(&shape[axis_of(node.int("axis").unwrap_or(0), shape.len())?])
    };
    let size = size().ok_or("the size of the axis is not known")?.clone();
    if size.div_exact(&Dim::Int(parts)).is_some() {
        drop_attributes(graph, id, &["num_outputs"]);
        return Ok(());
    }
    let size = size.int().ok_or("the parts are not known to be equal")?;
    // All parts but the last are of one size.
    let chunk = size.checked_add(parts - 1).map(|n| n / parts).ok_or("the axis is too large")?;
    let last = size - chunk * (parts - 1);
    if last < 0 {
        return Err("the axis is too short for its parts".into());
    }
    let mut sizes = vec![chunk; node.outputs.len()];
    if let Some(end) = sizes.last_mut() {
        *end = last;
    }
    let mut node = node.clone();
    let mut editor = Editor::new(graph, id);
    let value = editor.ints(&sizes);
    node.inputs.resize(2, None);
    node.inputs[1] = Some(value);
    node.attributes.retain(|a| a.name.as_deref() != Some("num_outputs"));
    editor.finish(node);
    Ok(())
}

fn lower_pad(graph: &mut Graph, id: NodeId, axes_gone: bool, wrap_gone: bool) -> Result<(), Refusal> {
    let node = graph.node(id);
    if wrap_gone && node.string("mode") == Some("wrap") {
        return Err("mode wrap came with opset 19".into());
    }
    let Some(axes) = node.input(3).filter(|_| axes_gone) else { return Ok(()) };
    let rank = node.input(0).and_then(|x| graph.rank(x)).ok_or("the rank of its input is not known")?;
    let axes = constant_ints(graph, axes).ok_or("its axes are not constant")?;
    let pads = node.input(1).and_then(|p| constant_ints(graph, p)).ok_or("its pads are not constant")?;
    if pads.len() != axes.len() * 2 {
        return Err("it has other than two pads an axis".into());
    }
    let mut all = vec![0; rank * 2];
    for (i, axis) in axes.iter().enumerate() {
        let axis = axis_of(*axis, rank).ok_or("an axis is out of range")?;
        all[axis] = pads[i];
        all[axis + rank] = pads[i + axes.len()];
    }
    let value = graph.add_initializer("pads", TensorProto::from_i64("", &[all.len() as i64], &all));
    graph.set_input(id, 1, value);
    graph.truncate_inputs(id, 3);
    Ok(())
}

fn lower_resize(graph: &mut Graph, id: NodeId, to_17: bool, to_18: bool) -> Result<(), Refusal> {
    let node = graph.node(id);
    if to_18 && node.string("coordinate_transformation_mode") == Some("half_pixel_symmetric") {
        return Err("coordinate_transformation_mode half_pixel_symmetric came with opset 19".into());
    }
    if !to_17 {
        return Ok(());
    }
    if node.int("antialias").unwrap_or(0) != 0 {
        return Err("antialias came with opset 18".into());
    }
    if node.string("keep_aspect_ratio_policy").is_some_and(|p| p != "stretch") {
        return Err("keep_aspect_ratio_policy came with opset 18".into());
    }
    if let Some(axes) = node.ints("axes").map(<[i64]>::to_vec) {
        let rank = node.input(0).and_then(|x| graph.rank(x)).ok_or("the rank of its input is not known")?;
        let scales = node.input(2).and_then(|s| graph.constant(s)).and_then(Tensor::from_proto);
        let scales = scales.filter(|s| s.len() == axes.len()).ok_or("it resizes some axes, not by constant scales")?;
        let mut all = vec![1f32; rank];
        for (axis, scale) in axes.iter().zip(scales.floats()) {
            all[axis_of(*axis, rank).ok_or("an axis is out of range")?] = scale as f32;
        }
        if node.input(1).is_some() && node.string("coordinate_transformation_mode") == Some("tf_crop_and_resize") {
            return Err("it crops along some axes".into());
        }
        let value = graph.add_initializer("scales", TensorProto::from_f32("", &[rank as i64], &all));
        graph.set_input(id, 2, value);
    }
    drop_attributes(graph, id, &["antialias", "axes", "keep_aspect_ratio_policy"]);
    Ok(())
}

fn float_type(graph: &Graph, value: ValueId) -> Result<DType, Refusal> {
    graph.dtype(value).filter(|d| d.is_float()).ok_or_else(|| "its element type is not known".into())
}

fn gelu(graph: &mut Graph, id: NodeId) -> Result<(), Refusal> {
    let node = graph.node(id);
    let x = node.input(0).ok_or("it has no input")?;
    let tanh = match node.string("approximate") {
        None | Some("none") => false,
        Some("tanh") => true,
        Some(other) => return Err(format!("its approximation {other:?} is not known")),
    };
    let dtype = float_type(graph, x)?;
    let mut editor = Editor::new(graph, id);
    let one = editor.float(dtype, &[], 1.0)?;
    let half = editor.float(dtype, &[], 0.5)?;
    if tanh {
        let cubic = editor.float(dtype, &[], 0.044715)?;
        let outer = editor.float(dtype, &[], (2.0 / std::f64::consts::PI).sqrt())?;
        let square = editor.emit("Mul", &[x, x], vec![]);
        let cube = editor.emit("Mul", &[x, square], vec![]);
        let term = editor.emit("Mul", &[cube, cubic], vec![]);
        let sum = editor.emit("Add", &[x, term], vec![]);
        let scaled = editor.emit("Mul", &[sum, outer], vec![]);
        let tanh = editor.emit("Tanh", &[scaled], vec![]);
        let shifted = editor.emit("Add", &[tanh, one], vec![]);
        let halved = editor.emit("Mul", &[x, half], vec![]);
        editor.finish_with("Mul", &[halved, shifted], vec![]);
        return Ok(());
    }
    let root = editor.float(dtype, &[], std::f64::consts::SQRT_2)?;
    let scaled = editor.emit("Div", &[x, root], vec![]);
    let erf = editor.emit("Erf", &[scaled], vec![]);
    let shifted = editor.emit("Add", &[erf, one], vec![]);
    let product = editor.emit("Mul", &[x, shifted], vec![]);
    editor.finish_with("Mul", &[product, half], vec![]);
    Ok(())
}

fn rms_norm(graph: &mut Graph, id: NodeId, to: i64) -> Result<(), Refusal> {
    let node = graph.node(id);
    let (x, scale) = (node.input(0).ok_or("it has no input")?, node.input(1).ok_or("it has no scale")?);
    let rank = graph.rank(x).ok_or("the rank of its input is not known")?;
    let axis = axis_of(node.int("axis").unwrap_or(-1), rank).ok_or("its axis is out of range")?;
    let epsilon = f64::from(node.float("epsilon").unwrap_or(1e-5));
    let stash = i32::try_from(node.int("stash_type").unwrap_or(1)).ok().and_then(DType::from_code);
    let stash = stash.ok_or("its stash_type is not known")?;
    let (dtype, scale_type) = (float_type(graph, x)?, float_type(graph, scale)?);
    let axes: Vec<i64> = (axis as i64..rank as i64).collect();
    let mut editor = Editor::new(graph, id);
    let wide = if dtype == stash { x } else { editor.cast(x, stash) };
    let square = editor.emit("Mul", &[wide, wide], vec![]);
    let mean = editor.mean(square, &axes, to);
    let epsilon = editor.float(stash, &[], epsilon)?;
    let sum = editor.emit("Add", &[mean, epsilon], vec![]);
    let root = editor.emit("Sqrt", &[sum], vec![]);
    let mut normal = editor.emit("Div", &[wide, root], vec![]);
    // The output has the type of the scale.
    if stash != scale_type {
        normal = editor.cast(normal, scale_type);
    }
    editor.finish_with("Mul", &[normal, scale], vec![]);
    Ok(())
}

fn group_norm(graph: &mut Graph, id: NodeId, from: i64) -> Result<(), Refusal> {
    let node = graph.node(id);
    let input = |i: usize| node.input(i).ok_or("an input is missing");
    let (x, scale, bias) = (input(0)?, input(1)?, input(2)?);
    let groups = node.int("num_groups").filter(|g| *g > 0).ok_or("it has no num_groups")?;
    let epsilon = AttributeProto::float("epsilon", node.float("epsilon").unwrap_or(1e-5));
    let dtype = float_type(graph, x)?;
    let rank = graph.rank(x).filter(|r| *r >= 3).ok_or("the rank of its input is not known or below 3")?;
    let mut editor = Editor::new(graph, id);
    let shape = editor.emit("Shape", &[x], vec![]);
    let grouped = editor.ints(&[0, groups, -1]);
    let grouped = editor.emit("Reshape", &[x, grouped], vec![]);
    if from < 21 {
        // Scale and bias are one for each group, as those of an instance norm over groups.
        let normal = editor.emit("InstanceNormalization", &[grouped, scale, bias], vec![epsilon]);
        editor.finish_with("Reshape", &[normal, shape], vec![]);
        return Ok(());
    }
    let count = usize::try_from(groups).map_err(|_| "it has too many groups")?;
    let one = editor.float(dtype, &[count], 1.0)?;
    let zero = editor.float(dtype, &[count], 0.0)?;
    let normal = editor.emit("InstanceNormalization", &[grouped, one, zero], vec![epsilon]);
    let normal = editor.emit("Reshape", &[normal, shape], vec![]);
    let axes: Vec<i64> = (1..rank as i64 - 1).collect();
    let axes = editor.ints(&axes);
    let scale = editor.emit("Unsqueeze", &[scale, axes], vec![]);
    let bias = editor.emit("Unsqueeze", &[bias, axes], vec![]);
    let scaled = editor.emit("Mul", &[normal, scale], vec![]);
    editor.finish_with("Add", &[scaled, bias], vec![]);
    Ok(())
}

fn attention(graph: &mut Graph, id: NodeId) -> Result<(), Refusal> {
    let node = graph.node(id);
    let input = |i: usize| node.input(i).ok_or("an input is missing");
    let (q, k, v) = (input(0)?, input(1)?, input(2)?);
    let mask = node.input(3);
    if (1..4).any(|i| !unused(graph, node, i)) || node.input(4).is_some() || node.input(5).is_some() {
        return Err("it keeps keys and values, or returns its scores".into());
    }
    if node.float("softcap").unwrap_or(0.0) != 0.0 {
        return Err("it has a softcap".into());
    }
    let rank = graph.rank(q).ok_or("the rank of its query is not known")?;
    if [k, v].iter().any(|x| graph.rank(*x) != Some(rank)) || !matches!(rank, 3 | 4) {
        return Err("its operands are not all of rank 3 or 4".into());
    }
    let size = |x: ValueId, axis: usize| graph.shape(x).and_then(|s| s[axis].int());
    let heads = |x: ValueId, name: &str| if rank == 4 { size(x, 1) } else { node.int(name).filter(|h| *h > 0) };
    let q_heads = heads(q, "q_num_heads").ok_or("its number of heads is not known")?;
    if heads(k, "kv_num_heads") != Some(q_heads) || heads(v, "kv_num_heads") != Some(q_heads) {
        return Err("it shares keys and values among heads".into());
    }
    let width = |x: ValueId| {
        let width = size(x, rank - 1)?;
        if rank == 4 { Some(width) } else { (width % q_heads == 0).then_some(width / q_heads) }
    };
    let depth = width(q).filter(|d| *d > 0).ok_or("its head size is not known")?;
    let v_depth = width(v).ok_or("its head size is not known")?;
    let scale = node.float("scale").map_or(1.0 / (depth as f64).sqrt(), f64::from);
    if scale < 0.0 {
        return Err("its scale is negative".into());
    }
    let dtype = float_type(graph, q)?;
    let precision = node.int("softmax_precision").filter(|p| *p != 0);
    let precision = match precision {
        Some(code) => {
            i32::try_from(code).ok().and_then(DType::from_code).ok_or("its softmax_precision is not known")?
        }
        None => dtype,
    };
    let mask_type = mask.map(|m| graph.dtype(m).ok_or("the type of its mask is not known")).transpose()?;
    let causal = node.int("is_causal").unwrap_or(0) != 0;
    let causal = if causal {
        let lengths = size(q, rank - 2).zip(size(k, rank - 2));
        let (rows, keys) = lengths.ok_or("it is causal and its lengths are not known")?;
        let total = rows.checked_mul(keys).filter(|n| *n <= 1 << 24);
        total.ok_or("it is causal and its lengths are too large")?;
        let below = |i: i64| if i % keys <= i / keys { 0.0 } else { f64::NEG_INFINITY };
        let values: Vec<f64> = (0..rows * keys).map(below).collect();
        let shape = [rows as usize, keys as usize];
        Some(Tensor::of_floats(dtype, &shape, values).ok_or("its element type is not a float")?)
    } else {
        None
    };

    let mut editor = Editor::new(graph, id);
    // The scale is put on both operands, as the definition of the op does, half of it on each.
    let root = editor.float(dtype, &[], scale.sqrt())?;
    let perm = |p: &[i64]| vec![AttributeProto::ints("perm", p)];
    let (q, k, v) = if rank == 3 {
        let split = editor.ints(&[0, 0, q_heads, -1]);
        let [q, k, v] = [q, k, v].map(|x| editor.emit("Reshape", &[x, split], vec![]));
        let q = editor.emit("Transpose", &[q], perm(&[0, 2, 1, 3]));
        let k = editor.emit("Transpose", &[k], perm(&[0, 2, 3, 1]));
        let v = editor.emit("Transpose", &[v], perm(&[0, 2, 1, 3]));
        (q, k, v)
    } else {
        (q, editor.emit("Transpose", &[k], perm(&[0, 1, 3, 2])), v)
    };
    let q = editor.emit("Mul", &[q, root], vec![]);
    let k = editor.emit("Mul", &[k, root], vec![]);
    let mut scores = editor.emit("MatMul", &[q, k], vec![]);
    if let Some(causal) = causal {
        let causal = editor.graph.add_initializer("causal", causal.to_proto(""));
        scores = editor.emit("Add", &[scores, causal], vec![]);
    }
    if let (Some(mut mask), Some(mask_type)) = (mask, mask_type) {
        if mask_type == DType::Bool {
            let open = editor.float(dtype, &[], 0.0)?;
            let closed = editor.float(dtype, &[], f64::NEG_INFINITY)?;
            mask = editor.emit("Where", &[mask, open, closed], vec![]);
        } else if mask_type != dtype {
            mask = editor.cast(mask, dtype);
        }
        scores = editor.emit("Add", &[scores, mask], vec![]);
    }
    if precision != dtype {
        scores = editor.cast(scores, precision);
    }
    let mut weights = editor.emit("Softmax", &[scores], vec![AttributeProto::int("axis", -1)]);
    if precision != dtype {
        weights = editor.cast(weights, dtype);
    }
    if rank == 4 {
        editor.finish_with("MatMul", &[weights, v], vec![]);
        return Ok(());
    }
    let mixed = editor.emit("MatMul", &[weights, v], vec![]);
    let rows = editor.emit("Transpose", &[mixed], perm(&[0, 2, 1, 3]));
    let width = q_heads.checked_mul(v_depth).ok_or("its width is too large")?;
    let merged = editor.ints(&[0, 0, width]);
    editor.finish_with("Reshape", &[rows, merged], vec![]);
    Ok(())
}
