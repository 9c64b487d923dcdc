//! The clean-up that runs before and between the rules: constants folded, shape arithmetic gone, no-ops dropped,
//! duplicate nodes merged. It never changes what the graph computes.

use std::collections::{BTreeMap, HashMap};

use prost::Message;

use crate::analysis::eval::{Tensor, eval};
use crate::analysis::infer::{ShapeRule, infer, infer_into, infer_node, tensor_ints};
use crate::error::{Error, Result};
use crate::ir::{Dim, Graph, Node, NodeId, ValueId, check};
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, TensorProto};

/// A folded output is at most this large, and
const FOLDED_BYTES: usize = 32 << 20;
/// at most [`GROWTH`] times what it is computed from, plus this.
const FOLDED_EXTRA: usize = 1 << 20;
const GROWTH: usize = 4;
/// Each round works on what the one before made possible; exported models take two or three.
const MAX_ROUNDS: usize = 32;

/// Names under which [`cleanup`] counts its changes.
pub mod step {
    /// A node whose inputs are constants became an initializer.
    pub const FOLD: &str = "fold-constant";
    /// A value that follows from shapes alone became an initializer.
    pub const SHAPE: &str = "fold-shape";
    /// A Reshape target that depends on the batch became a constant with -1 or 0.
    pub const TARGET: &str = "fold-reshape-target";
    /// A computed shape that depends on the batch became `Shape -> Gather -> Concat`.
    pub const CHAIN: &str = "shorten-shape-chain";
    /// A node that returns its input was dropped.
    pub const NO_OP: &str = "drop-no-op";
    /// A node that computes what another one does was merged with it.
    pub const DUPLICATE: &str = "merge-duplicate";
    /// A consumer of a shared weight got a copy of its own.
    pub const SEPARATE: &str = "separate-initializer";
}

/// Cleans the graph up until nothing changes, and leaves it with shapes inferred, sorted and checked.
///
/// `count` is told the changes made, by the names in [`step`]. Names of inputs and outputs stay. Errors are those of
/// [`infer`] and [`check`].
pub fn cleanup(graph: &mut Graph, custom: ShapeRule, count: &mut BTreeMap<String, usize>) -> Result<()> {
    for _ in 0..MAX_ROUNDS {
        infer(graph, custom)?;
        let mut pass = Pass { graph, custom, count, changed: false, chains: HashMap::new() };
        pass.nodes()?;
        pass.duplicates();
        let changed = pass.changed;
        graph.remove_dead();
        sort(graph)?;
        if !changed {
            break;
        }
    }
    graph.remove_unused_initializers();
    check(graph)
}

fn sort(graph: &mut Graph) -> Result<()> {
    graph.sort().map_err(|node| Error::invalid(format!("node '{}'", graph.node_label(node)), "is on a cycle"))
}

/// Gives every reader of a float initializer of rank 0 or 1 an initializer of its own; a bias or scale that several
/// nodes share keeps TensorRT from fusing it into each of them. The elements are not copied in memory. Returns the
/// number of initializers added.
pub fn separate_shared_initializers(graph: &mut Graph) -> usize {
    let mut added = 0;
    for id in graph.value_ids() {
        let value = graph.value(id);
        let small = value.dtype.is_some_and(DType::is_float) && value.shape.as_ref().is_some_and(|s| s.len() <= 1);
        if !small || graph.is_input(id) || graph.is_output(id) || graph.is_named_elsewhere(id) {
            continue;
        }
        let Some(tensor) = graph.tensor_arc(id) else { continue };
        let mut users = graph.uses(id).to_vec();
        users.sort_unstable();
        users.dedup();
        for user in users.into_iter().skip(1) {
            let name = graph.value(id).name.clone();
            let own = graph.add_initializer(&name, (*tensor).clone());
            for slot in slots_of(graph, user, id) {
                graph.set_input(user, slot, own);
            }
            added += 1;
        }
    }
    added
}

fn slots_of(graph: &Graph, user: NodeId, value: ValueId) -> Vec<usize> {
    let inputs = &graph.node(user).inputs;
    (0..inputs.len()).filter(|&i| inputs[i] == Some(value)).collect()
}

/// Ops whose outputs differ from run to run, or have an effect.
fn is_random(op: &str) -> bool {
    op.starts_with("Random") || matches!(op, "Multinomial" | "Bernoulli" | "Dropout")
}

fn has_subgraph(node: &Node) -> bool {
    node.attributes.iter().any(|a| a.g.is_some() || !a.graphs.is_empty() || a.ref_attr_name.is_some())
}

/// What replaces the outputs of a node.
enum Outcome {
    Keep,
    /// Each output, in order, is this tensor.
    Constants(Vec<TensorProto>, &'static str),
    /// The first output equals this value; the others are not used.
    Same(ValueId),
}

struct Pass<'a, 'b> {
    graph: &'a mut Graph,
    custom: ShapeRule<'b>,
    count: &'a mut BTreeMap<String, usize>,
    changed: bool,
    /// Values already built for a shape that depends on the symbols.
    chains: HashMap<Vec<Dim>, ValueId>,
}

impl Pass<'_, '_> {
    fn note(&mut self, step: &str) {
        *self.count.entry(step.to_owned()).or_default() += 1;
        self.changed = true;
    }

    fn nodes(&mut self) -> Result<()> {
        for id in self.graph.order().to_vec() {
            let node = self.graph.node(id);
            if !node.domain.is_empty() {
                continue;
            }
            let live = |v: &ValueId| !self.graph.uses(*v).is_empty() || self.graph.is_output(*v);
            if !node.outputs.iter().flatten().any(live) {
                continue;
            }
            match self.outcome(id) {
                Outcome::Constants(tensors, step) => self.make_constant(id, tensors, step),
                Outcome::Same(value) => self.drop_no_op(id, value),
                Outcome::Keep => self.shapes(id)?,
            }
        }
        Ok(())
    }

    fn outcome(&self, id: NodeId) -> Outcome {
        let node = self.graph.node(id);
        // Outputs of the graph stay outputs of a node, and subgraphs find what they read by name.
        let fixed = |v: &ValueId| self.graph.is_output(*v) || self.graph.is_named_elsewhere(*v);
        if !node.outputs.iter().flatten().any(fixed) {
            if let Some(tensors) = self.known_contents(node) {
                return Outcome::Constants(tensors, step::SHAPE);
            }
            if let Some(tensors) = self.folded(node) {
                return Outcome::Constants(tensors, step::FOLD);
            }
        }
        match self.same_as(node) {
            Some(value) if self.may_replace(node, value) => Outcome::Same(value),
            _ => Outcome::Keep,
        }
    }

    /// The outputs as tensors, where inference knows every element of them.
    fn known_contents(&self, node: &Node) -> Option<Vec<TensorProto>> {
        if node.is("Constant") {
            return None;
        }
        let tensor = |output: &Option<ValueId>| {
            let value = self.graph.value((*output)?);
            let ints = value.ints.as_ref()?;
            let known = ints.known()?;
            let dims: Vec<i64> = ints.shape.iter().map(|&d| i64::try_from(d)).collect::<Result<_, _>>().ok()?;
            // Floats are left to folding, which knows of negative zero.
            Some(match value.dtype? {
                DType::I64 => TensorProto::from_i64(&value.name, &dims, &known),
                DType::I32 => {
                    let known: Vec<i32> = known.iter().map(|&v| i32::try_from(v)).collect::<Result<_, _>>().ok()?;
                    TensorProto::from_i32(&value.name, &dims, &known)
                }
                DType::Bool => {
                    let known: Vec<bool> = known.iter().map(|&v| v != 0).collect();
                    TensorProto::from_bool(&value.name, &dims, &known)
                }
                _ => return None,
            })
        };
        node.outputs.iter().map(tensor).collect()
    }

    /// The outputs, computed from constant inputs.
    fn folded(&self, node: &Node) -> Option<Vec<TensorProto>> {
        if is_random(&node.op) || has_subgraph(node) || !node.captures.is_empty() {
            return None;
        }
        if let Some(tensor) = node.tensor("value").filter(|_| node.is("Constant")) {
            return Some(vec![tensor.clone()]);
        }
        let constants = node.inputs.iter().map(|slot| match slot {
            Some(value) => self.graph.constant(*value).map(Some),
            None => Some(None),
        });
        let constants: Vec<Option<&TensorProto>> = constants.collect::<Option<_>>()?;
        let mut read = 0usize;
        for tensor in constants.iter().flatten() {
            read = read.checked_add(tensor.byte_len().ok()?)?;
        }
        let limit = read.saturating_mul(GROWTH).saturating_add(FOLDED_EXTRA).min(FOLDED_BYTES);
        let mut written = 0usize;
        for output in node.outputs.iter().flatten() {
            let shape = self.graph.static_shape(*output)?;
            let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))?;
            written = written.checked_add(self.graph.dtype(*output)?.byte_len(elements)?)?;
        }
        if written > limit {
            return None;
        }
        let tensors = constants.iter().map(|t| t.map(|t| Tensor::from_proto(t).ok_or(())).transpose());
        let tensors: Vec<Option<Tensor>> = tensors.collect::<Result<_, _>>().ok()?;
        let inputs: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
        let results = eval(node, self.graph.opset, &inputs)?;
        let mut named = vec![];
        for (output, tensor) in node.outputs.iter().zip(results) {
            let Some(output) = output else { continue };
            let value = self.graph.value(*output);
            // A contradiction of inference would be a bug; the node is kept then.
            if value.dtype != Some(tensor.dtype) {
                return None;
            }
            named.push(tensor.to_proto(&value.name));
        }
        Some(named)
    }

    fn make_constant(&mut self, id: NodeId, tensors: Vec<TensorProto>, step: &str) {
        let outputs: Vec<ValueId> = self.graph.node(id).outputs.iter().flatten().copied().collect();
        self.graph.remove_node(id);
        for (output, tensor) in outputs.into_iter().zip(tensors) {
            let value = self.graph.value_mut(output);
            let made = crate::ir::Value::of_tensor("", tensor);
            value.dtype = made.dtype;
            value.shape = made.shape;
            value.ints = match (&made.tensor, value.dtype) {
                (Some(tensor), Some(dtype)) if !dtype.is_float() => tensor_ints(tensor).map(Into::into),
                _ => None,
            };
            value.tensor = made.tensor;
        }
        self.note(step);
    }

    fn drop_no_op(&mut self, id: NodeId, value: ValueId) {
        if let Some(output) = self.graph.node(id).output(0) {
            self.graph.replace_uses(output, value);
            self.note(step::NO_OP);
        }
    }

    /// Whether the first output of the node can be replaced by `value` without changing the interface.
    fn may_replace(&self, node: &Node, value: ValueId) -> bool {
        let g = &*self.graph;
        let Some(output) = node.output(0) else { return false };
        if node.outputs.iter().skip(1).flatten().any(|v| !g.uses(*v).is_empty() || g.is_output(*v)) {
            return false;
        }
        if g.is_named_elsewhere(output) || g.dtype(output) != g.dtype(value) {
            return false;
        }
        // A graph output passes its name on, so what takes it must be free to be renamed.
        let free = g.value(value).producer.is_some() && !g.is_output(value) && !g.is_named_elsewhere(value);
        !g.is_output(output) || free
    }

    /// The input that the node returns unchanged.
    fn same_as(&self, node: &Node) -> Option<ValueId> {
        let g = &*self.graph;
        let input = node.input(0)?;
        let constant = |slot: usize| g.constant(node.input(slot)?).and_then(Tensor::from_proto);
        let same_type = || g.dtype(input).is_some_and(|d| Some(d) == node.output(0).and_then(|o| g.dtype(o)));
        // As inferred from the inputs: a declared shape proves nothing.
        let inferred = || infer_node(g, node, self.custom).into_iter().next()?.shape;
        let same_shape = || g.shape(input).is_some() && inferred().as_deref() == g.shape(input);
        let all = |slot: usize, value: f64| constant(slot).is_some_and(|t| t.floats().iter().all(|v| *v == value));
        let is_same = match node.op.as_str() {
            "Identity" => true,
            "Cast" | "CastLike" => same_type(),
            "Dropout" => {
                let training = node.input(2).is_some() && !all(2, 0.0);
                !training && g.opset >= 7
            }
            "Concat" | "Max" | "Min" | "Sum" | "Mean" => node.inputs.len() == 1,
            "Transpose" => match node.ints("perm") {
                Some(perm) => perm.iter().copied().eq(0..perm.len() as i64),
                None => g.rank(input).is_some_and(|r| r <= 1),
            },
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" => same_shape(),
            "Tile" => all(1, 1.0),
            "Split" => node.outputs.len() == 1 && same_shape(),
            "Slice" => (node.input(4).is_none() || all(4, 1.0)) && same_shape(),
            "Pad" => match node.ints("pads") {
                Some(pads) => pads.iter().all(|p| *p == 0),
                None => all(1, 0.0),
            },
            "Mul" | "Add" => {
                // Adding +0 would turn -0 into +0, so only integers are let through.
                let neutral = if node.op == "Mul" { 1.0 } else { 0.0 };
                let float = g.dtype(input).is_none_or(DType::is_float);
                let other = node.input(1)?;
                let usable = node.op == "Mul" || !float;
                if usable && all(0, neutral) && g.shape(other).is_some() && inferred().as_deref() == g.shape(other) {
                    return Some(other);
                }
                usable && all(1, neutral) && same_shape()
            }
            "Div" => all(1, 1.0) && same_shape(),
            "Sub" => {
                // x - (+0) is x for every x, x - (-0) is not for -0.
                let plus = constant(1).is_some_and(|t| t.floats().iter().all(|v| *v == 0.0 && v.is_sign_positive()));
                plus && same_shape()
            }
            _ => false,
        };
        is_same.then_some(input)
    }

    /// Shape operands that depend on the symbols.
    fn shapes(&mut self, id: NodeId) -> Result<()> {
        let node = self.graph.node(id);
        let slots: &[usize] = match node.op.as_str() {
            "Reshape" => {
                if let Some(target) = self.reshape_target(node) {
                    let hint = match node.output(0) {
                        Some(output) => format!("{}_shape", self.graph.value(output).name),
                        None => String::new(),
                    };
                    let tensor = TensorProto::from_i64("", &[target.len() as i64], &target);
                    let value = self.graph.add_initializer(&hint, tensor);
                    let ints = self.graph.constant(value).and_then(tensor_ints);
                    self.graph.value_mut(value).ints = ints.map(Into::into);
                    self.graph.set_input(id, 1, value);
                    self.note(step::TARGET);
                    return Ok(());
                }
                &[1]
            }
            "Expand" | "Tile" => &[1],
            "ConstantOfShape" => &[0],
            "Slice" => &[1, 2],
            "Resize" => &[3],
            _ => &[],
        };
        for &slot in slots {
            self.shorten(id, slot)?;
        }
        Ok(())
    }

    /// A constant for the computed target of a Reshape, with -1 or 0 for sizes that depend on the symbols.
    fn reshape_target(&self, node: &Node) -> Option<Vec<i64>> {
        let g = &*self.graph;
        let target = node.input(1)?;
        if g.constant(target).is_some() {
            return None;
        }
        let contents = g.value(target).ints.as_ref().filter(|i| i.shape.len() == 1)?;
        let allow_zero = node.int("allowzero").unwrap_or(0) != 0;
        let input = node.input(0).and_then(|v| g.shape(v));
        let shape = infer_node(g, node, self.custom).into_iter().next()?.shape?;
        if shape.len() != contents.values.len() {
            return None;
        }
        let mut out = Vec::with_capacity(shape.len());
        let mut open = vec![];
        for (i, (entry, dim)) in contents.values.iter().zip(&shape).enumerate() {
            let known = match entry {
                Some(Dim::Int(v)) if *v > 0 => Some(*v),
                // -1 and 0 mean what was inferred, if that is a number.
                Some(Dim::Int(0)) if allow_zero => return None,
                Some(Dim::Int(_)) => dim.int().filter(|d| *d > 0),
                _ => None,
            };
            // A computed size could come out as 0 for a batch of 0 only, where any target fits.
            if known.is_none() {
                open.push(i);
            }
            out.push(known.unwrap_or(-1));
        }
        if open.len() > 1 {
            if allow_zero {
                return None;
            }
            let same = |i: &usize| input.and_then(|s| s.get(*i)) == Some(&shape[*i]);
            for &i in open.iter().filter(|i| same(i)) {
                out[i] = 0;
            }
            if out.iter().filter(|d| **d == -1).count() > 1 {
                return None;
            }
        }
        Some(out)
    }

    /// Replaces a long computation of a shape by `Shape -> Gather -> Concat`.
    fn shorten(&mut self, id: NodeId, slot: usize) -> Result<()> {
        let Some(value) = self.graph.node(id).input(slot) else { return Ok(()) };
        if self.graph.dtype(value) != Some(DType::I64) || self.is_short(value, true) {
            return Ok(());
        }
        let contents = self.graph.value(value).ints.as_ref().filter(|i| i.shape.len() == 1);
        let dims = contents.and_then(|i| i.values.iter().cloned().collect::<Option<Vec<Dim>>>());
        let Some(dims) = dims.filter(|d| !d.is_empty() && d.iter().any(|d| d.int().is_none())) else { return Ok(()) };
        let built = match self.chains.get(&dims) {
            Some(&built) => built,
            None => {
                let Some(built) = self.build_chain(&dims)? else { return Ok(()) };
                self.chains.insert(dims, built);
                built
            }
        };
        self.graph.set_input(id, slot, built);
        self.note(step::CHAIN);
        Ok(())
    }

    /// Whether a shape is computed in the form that [`Self::build_chain`] makes.
    fn is_short(&self, value: ValueId, whole: bool) -> bool {
        let g = &*self.graph;
        if g.constant(value).is_some() {
            return true;
        }
        let Some((_, node)) = g.producer(value) else { return true };
        let of_input = |v: Option<ValueId>| {
            v.and_then(|v| g.producer(v))
                .is_some_and(|(_, n)| n.is("Shape") && n.input(0).is_some_and(|x| g.is_input(x)))
        };
        match node.op.as_str() {
            "Concat" => whole && node.inputs.iter().flatten().all(|v| self.is_short(*v, false)),
            "Gather" => of_input(node.input(0)),
            "Shape" => of_input(Some(value)),
            "Mul" => node.inputs.iter().flatten().all(|v| self.is_short(*v, false)),
            _ => false,
        }
    }

    fn build_chain(&mut self, dims: &[Dim]) -> Result<Option<ValueId>> {
        enum Part {
            Known(Vec<i64>),
            /// `factor` times the size of an axis of an input.
            Size(ValueId, i64, i64),
        }
        // Everything is looked up before anything is built.
        let mut parts: Vec<Part> = vec![];
        for dim in dims {
            if let Dim::Int(v) = dim {
                match parts.last_mut() {
                    Some(Part::Known(ints)) => ints.push(*v),
                    _ => parts.push(Part::Known(vec![*v])),
                }
                continue;
            }
            let symbols = dim.symbols();
            let [symbol] = symbols.as_slice() else { return Ok(None) };
            let symbol = Dim::symbol(symbol);
            let Some(Dim::Int(factor)) = dim.div_exact(&symbol) else { return Ok(None) };
            let axis_of = |input: &ValueId| {
                let axis = self.graph.shape(*input)?.iter().position(|d| *d == symbol)?;
                Some((*input, axis as i64))
            };
            let Some((input, axis)) = self.graph.inputs.iter().find_map(axis_of) else { return Ok(None) };
            parts.push(Part::Size(input, axis, factor));
        }
        let mut values = vec![];
        for part in parts {
            let (input, axis, factor) = match part {
                Part::Known(ints) => {
                    values.push(self.index(&ints));
                    continue;
                }
                Part::Size(input, axis, factor) => (input, axis, factor),
            };
            let shape = self.chained("Shape", "shape", vec![input], None)?;
            let at = self.index(&[axis]);
            let mut size = self.chained("Gather", "size", vec![shape, at], Some(AttributeProto::int("axis", 0)))?;
            if factor != 1 {
                let by = self.index(&[factor]);
                size = self.chained("Mul", "size", vec![size, by], None)?;
            }
            values.push(size);
        }
        Ok(Some(match values.as_slice() {
            [one] => *one,
            _ => self.chained("Concat", "shape", values, Some(AttributeProto::int("axis", 0)))?,
        }))
    }

    fn index(&mut self, values: &[i64]) -> ValueId {
        let tensor = TensorProto::from_i64("", &[values.len() as i64], values);
        let id = self.graph.add_initializer("sizes", tensor);
        let ints = self.graph.constant(id).and_then(tensor_ints);
        self.graph.value_mut(id).ints = ints.map(Into::into);
        id
    }

    fn chained(
        &mut self,
        op: &str,
        hint: &str,
        inputs: Vec<ValueId>,
        attribute: Option<AttributeProto>,
    ) -> Result<ValueId> {
        let output = self.graph.add_value(crate::ir::Value::new(hint, None, None));
        let mut node = Node::new(op, inputs);
        let name = &self.graph.value(output).name;
        if !self.graph.nodes().any(|(_, n)| n.name == *name) {
            node.name = name.clone();
        }
        node.attributes.extend(attribute);
        node.outputs = vec![Some(output)];
        let id = self.graph.add_node(node);
        infer_into(self.graph, id, self.custom)?;
        Ok(output)
    }

    /// Merges nodes of one op with equal attributes and inputs; small constants count as equal by their elements.
    fn duplicates(&mut self) {
        #[derive(PartialEq, Eq, Hash)]
        enum Operand {
            None,
            Value(ValueId),
            Small(Option<i32>, Vec<i64>, Vec<u8>),
        }
        // Chains added in this pass are last in the order, after their readers.
        if self.graph.sort().is_err() {
            return;
        }
        let mut seen: HashMap<(String, Vec<u8>, usize, Vec<Operand>), NodeId> = HashMap::new();
        for id in self.graph.order().to_vec() {
            let g = &*self.graph;
            let node = g.node(id);
            let pure = node.domain.is_empty()
                && !is_random(&node.op)
                && !has_subgraph(node)
                && node.captures.is_empty()
                && !node.inputs.is_empty();
            if !pure {
                continue;
            }
            let operand = |slot: &Option<ValueId>| match slot {
                None => Operand::None,
                Some(value) => match g.constant(*value) {
                    Some(t) if t.byte_len().is_ok_and(|n| n <= 256) => match t.data() {
                        Ok(data) => Operand::Small(t.data_type, t.dims.clone(), data.to_vec()),
                        Err(_) => Operand::Value(*value),
                    },
                    _ => Operand::Value(*value),
                },
            };
            let operands = node.inputs.iter().map(operand).collect();
            let key = (node.op.clone(), attribute_bytes(&node.attributes), node.outputs.len(), operands);
            let Some(&first) = seen.get(&key) else {
                seen.insert(key, id);
                continue;
            };
            let pairs: Vec<_> = g.node(first).outputs.iter().copied().zip(node.outputs.iter().copied()).collect();
            let replaceable = |(a, b): &(Option<ValueId>, Option<ValueId>)| match (a, b) {
                (_, None) => true,
                (Some(_), Some(b)) => !g.is_output(*b) && !g.is_named_elsewhere(*b),
                (None, Some(b)) => g.uses(*b).is_empty() && !g.is_output(*b),
            };
            let used = |(_, b): &(Option<ValueId>, Option<ValueId>)| b.is_some_and(|b| !g.uses(b).is_empty());
            if !pairs.iter().all(replaceable) || !pairs.iter().any(used) {
                continue;
            }
            for (a, b) in pairs {
                if let (Some(a), Some(b)) = (a, b) {
                    self.graph.replace_uses(b, a);
                }
            }
            self.note(step::DUPLICATE);
        }
    }
}

/// Attributes as bytes that are equal for equal attributes: sorted and without comments.
fn attribute_bytes(attributes: &[AttributeProto]) -> Vec<u8> {
    let mut parts: Vec<Vec<u8>> = attributes
        .iter()
        .map(|a| {
            let mut a = a.clone();
            a.doc_string = None;
            a.encode_length_delimited_to_vec()
        })
        .collect();
    parts.sort();
    parts.concat()
}
