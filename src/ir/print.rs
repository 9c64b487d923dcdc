//! A graph as text: what a user reads, diffs and keeps as a snapshot.
//!
//! The text depends on what the graph computes, not on how the file spells it: nodes come in the order of a
//! depth-first walk from the outputs, values are numbered in that order, names of nodes and inner values do not
//! appear, and a constant looks the same whether it is an initializer or a `Constant` node.
//!
//! ```text
//! opset 17
//! input %0 "input": float[batch, 3, 32, 32]
//! %1 = Conv(%0, const float[8, 3, 4, 4] #9f3a2c71, const float[8] {0.0}) {kernel_shape = [4, 4]}: float[batch, 8, 8, 8]
//! %2 = Reshape(%1, [0, 8, -1]): float[batch, 8, 64]
//! output "output" = %2: float[batch, 8, 64]
//! ```
//!
//! Weights show a hash of their elements, small constants their elements, and a constant of equal elements that one
//! element in braces. `_` is an optional input or output left out.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;

use crate::ir::{Dim, Graph, NodeId, Value, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, AttributeType, GraphProto, TensorProto, type_proto};

/// What the text shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Types and shapes of values.
    pub types: bool,
    /// Hashes of weights. Without them the text is the same for all weights of a shape.
    pub hashes: bool,
    /// Names of nodes, as comments.
    pub names: bool,
    /// Integer constants of at most this many elements are written out, floats of at most half as many.
    pub inline: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { types: true, hashes: true, names: false, inline: 8 }
    }
}

/// The text of a graph, with the default options.
pub fn print(graph: &Graph) -> String {
    print_with(graph, &Options::default())
}

/// The text of a graph, one line for each input, node and output. Subgraphs follow their node, indented.
pub fn print_with(graph: &Graph, options: &Options) -> String {
    let listing = Listing::new(graph, options);
    let mut text = String::new();
    for line in &listing.lines {
        text += &line.text(&mut |v| listing.number(v));
        text.push('\n');
    }
    text
}

/// A piece of a line.
#[derive(Clone, Debug)]
pub(super) enum Token {
    Text(String),
    /// A reference to a value of the graph.
    Value(ValueId),
}

/// A line of the text; a node with subgraphs is one line with line breaks in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    /// What the line defines.
    pub defines: Vec<ValueId>,
    /// Everything after the definitions.
    pub tokens: Vec<Token>,
    /// The op, of a node.
    pub op: Option<String>,
    head: Head,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Head {
    /// No definition in front.
    #[default]
    None,
    /// `%1, _ = `; the flags say which outputs are there.
    Node,
    Input,
}

impl Line {
    fn push(&mut self, text: impl Into<String>) {
        let text = text.into();
        match self.tokens.last_mut() {
            Some(Token::Text(last)) => *last += &text,
            _ => self.tokens.push(Token::Text(text)),
        }
    }

    /// The values that it reads, in order.
    pub fn reads(&self) -> impl Iterator<Item = ValueId> {
        self.tokens.iter().filter_map(|t| match t {
            Token::Value(v) => Some(*v),
            Token::Text(_) => None,
        })
    }

    pub fn text(&self, number: &mut dyn FnMut(ValueId) -> String) -> String {
        let defines: Vec<String> = self.defines.iter().map(|&v| number(v)).collect();
        let mut text = match self.head {
            Head::None => String::new(),
            Head::Node if defines.is_empty() => String::new(),
            Head::Node => format!("{} = ", defines.join(", ")),
            Head::Input => format!("input {}", defines.join(", ")),
        };
        for token in &self.tokens {
            match token {
                Token::Text(t) => text += t,
                Token::Value(v) => text += &number(*v),
            }
        }
        text
    }

    /// The line without its numbers: equal for lines that differ at most in what they read.
    pub fn key(&self) -> String {
        self.text(&mut |_| "%".to_owned())
    }
}

/// The lines of a graph, before values are turned into numbers.
pub(super) struct Listing {
    pub lines: Vec<Line>,
    numbers: HashMap<ValueId, usize>,
}

impl Listing {
    pub fn new(graph: &Graph, options: &Options) -> Self {
        let printer = Printer { graph, options, constants: RefCell::default() };
        let mut lines = vec![printer.header()];
        lines.extend(graph.inputs.iter().filter(|v| graph.constant(**v).is_none()).map(|&v| printer.input(v)));
        let (live, dead) = canonical_order(graph);
        lines.extend(live.into_iter().map(|n| printer.node(n)));
        lines.extend(graph.outputs.iter().map(|&v| printer.output(v)));
        if !dead.is_empty() {
            let mut line = Line::default();
            line.push("# nothing reads these");
            lines.push(line);
            lines.extend(dead.into_iter().map(|n| printer.node(n)));
        }
        let mut numbers = HashMap::new();
        for &value in lines.iter().flat_map(|l| &l.defines) {
            let next = numbers.len();
            numbers.entry(value).or_insert(next);
        }
        Self { lines, numbers }
    }

    pub fn number(&self, value: ValueId) -> String {
        match self.numbers.get(&value) {
            Some(n) => format!("%{n}"),
            None => "%?".to_owned(),
        }
    }
}

/// Nodes that the outputs need, in the order of a depth-first walk from the outputs, and the rest, likewise.
pub(super) fn canonical_order(graph: &Graph) -> (Vec<NodeId>, Vec<NodeId>) {
    let mut seen = HashSet::new();
    let mut live = vec![];
    for &output in &graph.outputs {
        if let Some(node) = graph.value(output).producer {
            walk(graph, node, &mut seen, &mut live);
        }
    }
    let mut sinks: Vec<NodeId> = vec![];
    for &id in graph.order() {
        let read = graph.node(id).outputs.iter().flatten().any(|&v| !graph.uses(v).is_empty());
        if !seen.contains(&id) && !read {
            sinks.push(id);
        }
    }
    sinks.sort_by_key(|&id| graph.node(id).qualified_op());
    let mut dead = vec![];
    for sink in sinks {
        walk(graph, sink, &mut seen, &mut dead);
    }
    let hidden = |n: &NodeId| is_constant_node(graph, *n);
    live.retain(|n| !hidden(n));
    dead.retain(|n| !hidden(n));
    (live, dead)
}

fn walk(graph: &Graph, root: NodeId, seen: &mut HashSet<NodeId>, order: &mut Vec<NodeId>) {
    if !seen.insert(root) {
        return;
    }
    let reads = |id: NodeId| {
        let node = graph.node(id);
        node.inputs.iter().flatten().chain(&node.captures).copied().collect::<Vec<_>>().into_iter()
    };
    let mut stack = vec![(root, reads(root))];
    while let Some((node, operands)) = stack.last_mut() {
        match operands.next() {
            Some(value) => {
                if let Some(producer) = graph.value(value).producer
                    && seen.insert(producer)
                {
                    stack.push((producer, reads(producer)));
                }
            }
            None => {
                order.push(*node);
                stack.pop();
            }
        }
    }
}

/// A `Constant` node is shown where it is read.
fn is_constant_node(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    node.is("Constant") && node.attributes.iter().any(|a| constant_of(a).is_some())
}

/// The tensor that an attribute of a `Constant` node stands for.
fn constant_of(attribute: &AttributeProto) -> Option<TensorProto> {
    match attribute.name.as_deref()? {
        "value" => attribute.t.as_deref().cloned(),
        "value_int" => Some(TensorProto::from_i64("", &[], &[attribute.i?])),
        "value_float" => Some(TensorProto::from_f32("", &[], &[attribute.f?])),
        "value_ints" => Some(TensorProto::from_i64("", &[attribute.ints.len() as i64], &attribute.ints)),
        "value_floats" => Some(TensorProto::from_f32("", &[attribute.floats.len() as i64], &attribute.floats)),
        _ => None,
    }
}

struct Printer<'a> {
    graph: &'a Graph,
    options: &'a Options,
    /// Texts of constants, since weights can be shared and hashing them takes time.
    constants: RefCell<HashMap<ValueId, String>>,
}

impl Printer<'_> {
    fn header(&self) -> Line {
        let mut line = Line::default();
        line.push(format!("opset {}", self.graph.opset));
        let domains: BTreeSet<&str> =
            self.graph.nodes().map(|(_, n)| n.domain.as_str()).filter(|d| !d.is_empty()).collect();
        for domain in domains {
            line.push(format!(", {domain}"));
        }
        line
    }

    fn input(&self, id: ValueId) -> Line {
        let value = self.graph.value(id);
        let mut line = Line { defines: vec![id], head: Head::Input, ..Line::default() };
        line.push(format!(" {:?}", value.name));
        self.types(&mut line, &[Some(id)]);
        if let Some(tensor) = &value.tensor {
            line.push(format!(" = {}", self.tensor(tensor)));
        }
        line
    }

    fn output(&self, id: ValueId) -> Line {
        let mut line = Line::default();
        line.push(format!("output {:?} = ", self.graph.value(id).name));
        self.operand(&mut line, Some(id));
        self.types(&mut line, &[Some(id)]);
        line
    }

    fn node(&self, id: NodeId) -> Line {
        let node = self.graph.node(id);
        let present = node.outputs.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
        let outputs = &node.outputs[..present];
        let op = node.qualified_op();
        let mut line = Line {
            defines: outputs.iter().flatten().copied().collect(),
            head: Head::Node,
            op: Some(op.clone()),
            ..Line::default()
        };
        line.push(op);
        if let Some(overload) = node.overload.as_deref().filter(|o| !o.is_empty()) {
            line.push(format!(":{overload}"));
        }
        line.push("(");
        let given = node.inputs.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
        for (i, &input) in node.inputs[..given].iter().enumerate() {
            if i > 0 {
                line.push(", ");
            }
            self.operand(&mut line, input);
        }
        line.push(")");
        let mut attributes: Vec<&AttributeProto> = node.attributes.iter().collect();
        attributes.sort_by_key(|a| a.name.as_deref());
        let (graphs, plain): (Vec<&AttributeProto>, Vec<_>) =
            attributes.into_iter().partition(|a| a.g.is_some() || !a.graphs.is_empty());
        if !plain.is_empty() {
            let texts: Vec<String> = plain.iter().map(|a| self.attribute(a)).collect();
            line.push(format!(" {{{}}}", texts.join(", ")));
        }
        if outputs.iter().any(Option::is_none) {
            // Which outputs are left out.
            let shown: Vec<&str> = outputs.iter().map(|o| if o.is_some() { "%" } else { "_" }).collect();
            line.push(format!(" -> ({})", shown.join(", ")));
        }
        self.types(&mut line, outputs);
        if self.options.names && !node.name.is_empty() {
            line.push(format!("  # {}", node.name.escape_debug()));
        }
        for attribute in graphs {
            for graph in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
                line.push(format!("\n  {} = {{", attribute.name()));
                self.subgraph(&mut line, graph, 1, &HashMap::new());
                line.push("\n  }");
            }
        }
        line
    }

    fn operand(&self, line: &mut Line, value: Option<ValueId>) {
        let Some(id) = value else { return line.push("_") };
        match self.constant(id) {
            Some(text) => line.push(text),
            None if self.is_extern(id) => line.push(format!("sparse {:?}", self.graph.value(id).name)),
            None => line.tokens.push(Token::Value(id)),
        }
    }

    /// Whether the value comes from neither a node, an input nor a dense initializer.
    fn is_extern(&self, id: ValueId) -> bool {
        self.graph.value(id).producer.is_none() && !self.graph.is_input(id)
    }

    fn constant(&self, id: ValueId) -> Option<String> {
        if let Some(text) = self.constants.borrow().get(&id) {
            return Some(text.clone());
        }
        let text = match self.graph.constant(id) {
            Some(tensor) => self.tensor(tensor),
            None => {
                let (node, _) = self.graph.producer(id).filter(|(n, _)| is_constant_node(self.graph, *n))?;
                self.tensor(&self.graph.node(node).attributes.iter().find_map(constant_of)?)
            }
        };
        self.constants.borrow_mut().insert(id, text.clone());
        Some(text)
    }

    fn types(&self, line: &mut Line, values: &[Option<ValueId>]) {
        if self.options.types && !values.is_empty() {
            let texts = values.iter().flatten().map(|&v| type_text(self.graph.value(v)));
            line.push(format!(": {}", texts.collect::<Vec<_>>().join(", ")));
        }
    }

    fn attribute(&self, a: &AttributeProto) -> String {
        format!("{} = {}", a.name(), self.attribute_value(a))
    }

    fn attribute_value(&self, a: &AttributeProto) -> String {
        if let Some(reference) = a.ref_attr_name.as_deref().filter(|r| !r.is_empty()) {
            return format!("@{reference}");
        }
        // Old files leave the type out; then the field that is there decides.
        let kind = a.r#type.and_then(|t| AttributeType::try_from(t).ok()).unwrap_or(AttributeType::Undefined);
        let kind = match kind {
            AttributeType::Undefined if a.f.is_some() => AttributeType::Float,
            AttributeType::Undefined if a.i.is_some() => AttributeType::Int,
            AttributeType::Undefined if a.s.is_some() => AttributeType::String,
            AttributeType::Undefined if a.t.is_some() => AttributeType::Tensor,
            AttributeType::Undefined if !a.floats.is_empty() => AttributeType::Floats,
            AttributeType::Undefined if !a.strings.is_empty() => AttributeType::Strings,
            AttributeType::Undefined => AttributeType::Ints,
            kind => kind,
        };
        let list = |items: Vec<String>| format!("[{}]", items.join(", "));
        match kind {
            AttributeType::Float => format!("{:?}", a.f.unwrap_or(0.0)),
            AttributeType::Int => a.i.unwrap_or(0).to_string(),
            AttributeType::String => quoted(a.s.as_deref().unwrap_or_default()),
            AttributeType::Floats => list(a.floats.iter().map(|f| format!("{f:?}")).collect()),
            AttributeType::Ints => list(a.ints.iter().map(i64::to_string).collect()),
            AttributeType::Strings => list(a.strings.iter().map(|s| quoted(s)).collect()),
            AttributeType::Tensor => a.t.as_deref().map_or_else(|| "none".into(), |t| self.tensor(t)),
            AttributeType::Tensors => list(a.tensors.iter().map(|t| self.tensor(t)).collect()),
            AttributeType::TypeProto | AttributeType::TypeProtos => "type".to_owned(),
            AttributeType::SparseTensor | AttributeType::SparseTensors => "sparse tensor".to_owned(),
            AttributeType::Graph | AttributeType::Graphs | AttributeType::Undefined => "graph".to_owned(),
        }
    }

    /// A constant as it stands in an operand list.
    fn tensor(&self, tensor: &TensorProto) -> String {
        let Ok(dtype) = tensor.dtype() else { return "const ?".into() };
        let dims: Vec<String> = tensor.dims.iter().map(i64::to_string).collect();
        let typed = format!("const {dtype}[{}]", dims.join(", "));
        let count = match tensor.check().and_then(|()| tensor.len()) {
            Ok(count) => count,
            Err(_) => return format!("{typed} (broken)"),
        };
        // Many axes of length 1 would nest deeply.
        let limit = if dtype.is_float() { self.options.inline / 2 } else { self.options.inline };
        if count <= limit
            && tensor.dims.len() <= 8
            && let Some(elements) = elements(tensor, dtype)
        {
            // Bare elements are float or int64, told apart by the point.
            let suffix = if matches!(dtype, DType::F32 | DType::I64) { String::new() } else { format!(":{dtype}") };
            return format!("{}{suffix}", nested(&tensor.dims, &elements));
        }
        if let Some(element) = splat(tensor, dtype) {
            return format!("{typed} {{{element}}}");
        }
        if !self.options.hashes {
            return typed;
        }
        match content_hash(tensor) {
            Some(hash) => format!("{typed} #{:08x}", (hash ^ (hash >> 32)) as u32),
            None => typed,
        }
    }

    /// The lines of a subgraph. Its values are numbered on their own, with one more dot for each level.
    fn subgraph(&self, line: &mut Line, graph: &GraphProto, depth: usize, outer: &HashMap<&str, String>) {
        let indent = "  ".repeat(depth + 1);
        let dots = ".".repeat(depth);
        let mut names: HashMap<&str, String> = outer.clone();
        let mut next = 0usize;
        let mut define = |names: &mut HashMap<_, _>, name| {
            let number = format!("%{dots}{next}");
            next += 1;
            names.insert(name, number.clone());
            number
        };
        for tensor in &graph.initializer {
            names.insert(tensor.name(), self.tensor(tensor));
        }
        for input in &graph.input {
            if !names.contains_key(input.name()) || outer.contains_key(input.name()) {
                let number = define(&mut names, input.name());
                line.push(format!("\n{indent}input {number}"));
            }
        }
        for node in &graph.node {
            line.push(format!("\n{indent}"));
            // Reads before definitions, since a name may be defined again by an outer scope only.
            let reads: Vec<&str> = node.input.iter().map(String::as_str).collect();
            let known: Vec<Option<String>> = reads.iter().map(|r| names.get(r).cloned()).collect();
            let outputs: Vec<String> = node
                .output
                .iter()
                .map(|o| if o.is_empty() { "_".to_owned() } else { define(&mut names, o.as_str()) })
                .collect();
            let domain = node.domain.as_deref().filter(|d| !d.is_empty() && *d != "ai.onnx");
            let domain = domain.map(|d| format!("{d}.")).unwrap_or_default();
            line.push(format!("{} = {domain}{}(", outputs.join(", "), node.op_type()));
            for (i, (name, known)) in reads.iter().zip(known).enumerate() {
                if i > 0 {
                    line.push(", ");
                }
                match known {
                    Some(text) => line.push(text),
                    None if name.is_empty() => line.push("_"),
                    None => self.operand(line, self.graph.by_name(name)),
                }
            }
            line.push(")");
            let mut attributes: Vec<&AttributeProto> = node.attribute.iter().collect();
            attributes.sort_by_key(|a| a.name.as_deref());
            let plain = attributes.iter().filter(|a| a.g.is_none() && a.graphs.is_empty());
            let texts: Vec<String> = plain.map(|a| self.attribute(a)).collect();
            if !texts.is_empty() {
                line.push(format!(" {{{}}}", texts.join(", ")));
            }
            // Depth is bounded by the protobuf decoder's own limit.
            for a in attributes {
                for inner in a.g.as_deref().into_iter().chain(&a.graphs) {
                    line.push(format!("\n{indent}  {} = {{", a.name()));
                    self.subgraph(line, inner, depth + 2, &names);
                    line.push(format!("\n{indent}  }}"));
                }
            }
        }
        for output in &graph.output {
            line.push(format!("\n{indent}output "));
            match names.get(output.name()) {
                Some(text) => line.push(text.clone()),
                None => self.operand(line, self.graph.by_name(output.name())),
            }
        }
    }
}

fn quoted(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(bytes))
}

/// `float[batch, 3, 224, 224]`; `?` stands for what is not known.
pub fn type_text(value: &Value) -> String {
    if let Some(other) = &value.other_type {
        let name = match other.value {
            Some(type_proto::Value::SequenceType(_)) => "sequence",
            Some(type_proto::Value::MapType(_)) => "map",
            Some(type_proto::Value::OptionalType(_)) => "optional",
            Some(type_proto::Value::SparseTensorType(_)) => "sparse tensor",
            _ => "opaque",
        };
        return name.to_owned();
    }
    let dtype = value.dtype.map_or("?", DType::name);
    let Some(shape) = &value.shape else {
        return if value.dtype.is_some() { format!("{dtype}[*]") } else { "?".to_owned() };
    };
    let dim = |d: &Dim| match d.symbols().iter().any(|s| s.starts_with('?')) {
        // A symbol made from a value's name.
        true => "?".to_owned(),
        false => d.to_string(),
    };
    format!("{dtype}[{}]", shape.iter().map(dim).collect::<Vec<_>>().join(", "))
}

fn elements(tensor: &TensorProto, dtype: DType) -> Option<Vec<String>> {
    if dtype == DType::String {
        return Some(tensor.string_data.iter().map(|s| quoted(s)).collect());
    }
    if dtype == DType::Bool {
        return Some(tensor.to_i64_vec().ok()?.iter().map(|&b| (b != 0).to_string()).collect());
    }
    if dtype == DType::F64 {
        return Some(tensor.to_f64_vec().ok()?.iter().map(|x| format!("{x:?}")).collect());
    }
    if let Ok(values) = tensor.to_i64_vec() {
        return Some(values.iter().map(i64::to_string).collect());
    }
    Some(tensor.to_f32_vec().ok()?.iter().map(|x| format!("{x:?}")).collect())
}

/// Elements in brackets as the dims say: `0.5`, `[1, 2]`, `[[1, 2], [3, 4]]`.
fn nested(dims: &[i64], elements: &[String]) -> String {
    let Some((&first, rest)) = dims.split_first() else {
        return elements.first().cloned().unwrap_or_default();
    };
    let step = rest.iter().product::<i64>().max(0) as usize;
    // Axes of an empty tensor can be long.
    let rows = if elements.is_empty() { first.clamp(0, 1) } else { first };
    let rows = (0..rows as usize).map(|i| nested(rest, elements.get(i * step..(i + 1) * step).unwrap_or_default()));
    format!("[{}]", rows.collect::<Vec<_>>().join(", "))
}

/// The one element of a tensor whose elements are all the same.
fn splat(tensor: &TensorProto, dtype: DType) -> Option<String> {
    let size = dtype.bits().filter(|b| b % 8 == 0)? / 8;
    let data = tensor.data().ok()?;
    let first = data.get(..size)?;
    if !data.chunks_exact(size).all(|c| c == first) {
        return None;
    }
    let one = TensorProto::from_raw("", dtype, &[], data.slice(..size));
    elements(&one, dtype)?.pop()
}

/// A hash of type, dims and elements, the same for every way to store them.
pub fn content_hash(tensor: &TensorProto) -> Option<u64> {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(FACTOR).rotate_left(29);
    let mut hash = mix(0x7472_745f_6f70_7431, tensor.data_type? as u64);
    for &dim in &tensor.dims {
        hash = mix(hash, dim as u64);
    }
    if tensor.string_data.is_empty() {
        let data = tensor.data().ok()?;
        let (words, rest) = data.as_chunks::<8>();
        // Four lanes, since each step has to wait for the one before it.
        let (quads, odd) = words.as_chunks::<4>();
        let mut lanes = [hash, hash ^ 1, hash ^ 2, hash ^ 3];
        for quad in quads {
            for (lane, word) in lanes.iter_mut().zip(quad) {
                *lane = mix(*lane, u64::from_le_bytes(*word));
            }
        }
        hash = lanes.iter().fold(hash, |hash, lane| mix(hash, *lane));
        for word in odd {
            hash = mix(hash, u64::from_le_bytes(*word));
        }
        let mut last = [0u8; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = mix(hash, u64::from_le_bytes(last));
    } else {
        for string in &tensor.string_data {
            for &byte in &string[..] {
                hash = mix(hash, byte.into());
            }
            hash = mix(hash, 0x100);
        }
    }
    Some(mix(hash, hash >> 32))
}

/// How often each op appears, as `Op` or `domain.Op`.
pub fn op_counts(graph: &Graph) -> std::collections::BTreeMap<String, usize> {
    let mut counts = std::collections::BTreeMap::new();
    for (_, node) in graph.nodes() {
        *counts.entry(node.qualified_op()).or_insert(0) += 1;
    }
    counts
}

/// Counts as text, for messages: `12 MatMul, 3 Add`.
pub(super) fn counts_text(counts: &std::collections::BTreeMap<String, usize>) -> String {
    let mut sorted: Vec<(&String, &usize)> = counts.iter().collect();
    sorted.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let mut text = String::new();
    for (op, n) in sorted {
        let _ = write!(text, "{}{n} {op}", if text.is_empty() { "" } else { ", " });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Node;

    fn text(tensor: &TensorProto) -> String {
        let (graph, options) = (Graph::default(), Options::default());
        Printer { graph: &graph, options: &options, constants: RefCell::default() }.tensor(tensor)
    }

    #[test]
    fn constants_are_short() {
        assert_eq!(text(&TensorProto::from_f32("", &[], &[0.5])), "0.5");
        assert_eq!(text(&TensorProto::from_f32("", &[1], &[1e-5])), "[1e-5]");
        assert_eq!(text(&TensorProto::from_i64("", &[3], &[1, 3, -1])), "[1, 3, -1]");
        assert_eq!(text(&TensorProto::from_i32("", &[2, 2], &[1, 2, 3, 4])), "[[1, 2], [3, 4]]:int32");
        assert_eq!(text(&TensorProto::from_f16("", &[1], &[half::f16::from_f32(1.0)])), "[1.0]:float16");
        assert_eq!(text(&TensorProto::from_bool("", &[2], &[true, false])), "[true, false]:bool");
        assert_eq!(text(&TensorProto::from_i64("", &[0], &[])), "[]");
        assert_eq!(text(&TensorProto::from_i64("", &[2, 0, 1 << 40], &[])), "[[]]");
        assert_eq!(text(&TensorProto::from_f32("", &[64], &[0.0; 64])), "const float[64] {0.0}");
        assert_eq!(text(&TensorProto::from_f32("", &[-1], &[])), "const float[-1] (broken)");
        assert_eq!(text(&TensorProto::default()), "const ?");
    }

    #[test]
    fn hashes_tell_contents_type_and_shape() {
        let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let hash = |t: &TensorProto| content_hash(t).unwrap();
        let tensor = TensorProto::from_f32("a", &[1000], &values);
        let typed = TensorProto { raw_data: None, float_data: values.clone(), ..tensor.clone() };
        assert_eq!(hash(&tensor), hash(&typed));
        assert_ne!(hash(&tensor), hash(&TensorProto::from_f32("a", &[10, 100], &values)));
        let bytes = tensor.data().unwrap();
        assert_ne!(hash(&tensor), hash(&TensorProto::from_raw("a", DType::I32, &[1000], bytes)));
        for i in [0, 1, 3, 7, 500, 998, 999] {
            let mut other = values.clone();
            other[i] += 1.0;
            assert_ne!(hash(&tensor), hash(&TensorProto::from_f32("a", &[1000], &other)), "{i}");
        }
        let mut swapped = values.clone();
        swapped.swap(2, 10);
        assert_ne!(hash(&tensor), hash(&TensorProto::from_f32("a", &[1000], &swapped)));
    }

    #[test]
    fn dead_nodes_and_left_out_slots_are_shown() {
        let mut graph = Graph::default();
        graph.opset = 17;
        let x = graph.add_value(Value::new("x", Some(DType::F32), Some(vec![Dim::symbol("n"), 4.into()])));
        graph.inputs.push(x);
        let y = graph.add_value(Value::new("y", Some(DType::F32), None));
        let mut clip = Node::new("Clip", [x, x, x]);
        clip.inputs[1] = None;
        clip.outputs = vec![Some(y)];
        graph.add_node(clip);
        let (mean, dead) = (Value::new("mean", None, None), Value::new("dead", None, None));
        let (mean, dead) = (graph.add_value(mean), graph.add_value(dead));
        let mut norm =
            Node::new("Dropout", [x]).with(AttributeProto::int("seed", 3)).with(AttributeProto::float("a", 0.5));
        norm.outputs = vec![None, Some(mean)];
        graph.add_node(norm);
        let mut relu = Node::new("Relu", [mean]);
        relu.outputs = vec![Some(dead)];
        relu.domain = "my".into();
        graph.add_node(relu);
        graph.outputs.push(y);
        assert_eq!(
            print(&graph),
            "opset 17, my\n\
             input %0 \"x\": float[n, 4]\n\
             %1 = Clip(%0, _, %0): float[*]\n\
             output \"y\" = %1: float[*]\n\
             # nothing reads these\n\
             %2 = Dropout(%0) {a = 0.5, seed = 3} -> (_, %): ?\n\
             %3 = my.Relu(%2): ?\n"
        );
    }
}
