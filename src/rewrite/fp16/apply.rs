//! The graph with the types that the survey decided: weights, declared types, attributes, and casts at the borders.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::survey::{Survey, Wants};
use super::weights::to_half;
use crate::error::{Error, Result};
use crate::ir::{Graph, Node, NodeId, Value, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, TensorProto, type_proto};

/// A node, an input slot of it, the value there that was float32, and what the node wants of it.
type Read = (NodeId, usize, ValueId, Wants);

/// What is done to the graph, decided before anything is changed.
pub struct Work {
    order: Vec<NodeId>,
    /// Output slots that become float16.
    halves: BTreeSet<(NodeId, usize)>,
    /// Of constants too.
    wants: Vec<Read>,
    /// Inputs of the graph that become float16, and outputs.
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
}

impl Work {
    /// `interface`: inputs and outputs of the graph become float16 too, where nothing speaks against it; what does is
    /// added to the notes.
    pub fn new(graph: &Graph, survey: &Survey<'_>, interface: bool, notes: &mut Vec<String>) -> Self {
        let order = graph.order().to_vec();
        let float = |v: ValueId| graph.dtype(v) == Some(DType::F32);
        let (mut halves, mut wants) = (BTreeSet::new(), vec![]);
        for &id in &order {
            let node = graph.node(id);
            halves.extend((0..node.outputs.len()).filter(|&slot| survey.makes_half(id, slot)).map(|slot| (id, slot)));
            for (slot, value) in node.inputs.iter().enumerate() {
                if let Some(value) = value.filter(|v| float(*v)) {
                    wants.push((id, slot, value, survey.wants(id, slot)));
                }
            }
        }
        let (mut inputs, mut outputs) = (vec![], vec![]);
        if interface {
            let named = |v: ValueId| graph.is_named_elsewhere(v) || graph.value(v).tensor.is_some();
            for &value in graph.inputs.iter().filter(|v| float(**v)) {
                let name = &graph.value(value).name;
                if survey.unfits(value) {
                    notes.push(format!("input '{name}' stays float32: its values do not fit float16"));
                } else if named(value) || graph.is_output(value) {
                    notes
                        .push(format!("input '{name}' stays float32: a subgraph, a default or an output has its name"));
                } else {
                    inputs.push(value);
                }
            }
            for &value in graph.outputs.iter().filter(|v| float(**v)) {
                let name = &graph.value(value).name;
                if survey.unfits(value) {
                    notes.push(format!("output '{name}' stays float32: its values do not fit float16"));
                } else if graph.value(value).producer.is_none() || named(value) {
                    notes.push(format!(
                        "output '{name}' stays float32: it is an input or weight, or a subgraph reads it"
                    ));
                } else {
                    outputs.push(value);
                }
            }
        }
        Self { order, halves, wants, inputs, outputs }
    }

    /// Makes the changes, and gives the casts that were added.
    pub fn apply(self, graph: &mut Graph) -> Result<Vec<NodeId>> {
        let mut editor = Editor::new(graph);
        for &value in &self.inputs {
            editor.make_half(value);
        }
        for &(id, slot) in &self.halves {
            editor.half_output(id, slot, &self)?;
        }
        for &value in &self.outputs {
            editor.float_output(value, &self);
        }
        for &read in &self.wants {
            editor.input(read, &self)?;
        }
        let casts = editor.casts;
        let cycle = |place| Error::invalid(place, "is on a cycle after the conversion");
        graph.sort().map_err(|id| cycle(format!("node '{}'", graph.node_label(id))))?;
        graph.remove_unused_initializers();
        Ok(casts)
    }

    /// The node that comes after one in the order.
    fn next(&self, id: NodeId) -> Option<NodeId> {
        let at = self.order.iter().position(|n| *n == id)?;
        self.order.get(at + 1).copied()
    }
}

/// The two forms of a value, where they are there already.
#[derive(Clone, Copy, Default)]
struct Forms {
    half: Option<ValueId>,
    float: Option<ValueId>,
}

struct Editor<'a> {
    graph: &'a mut Graph,
    /// Forms of values that were float32, for those that are no longer alone.
    forms: HashMap<ValueId, Forms>,
    names: HashSet<String>,
    casts: Vec<NodeId>,
}

impl<'a> Editor<'a> {
    fn new(graph: &'a mut Graph) -> Self {
        let names = graph.nodes().map(|(_, n)| n.name.clone()).collect();
        Self { graph, forms: HashMap::new(), names, casts: vec![] }
    }

    /// The value itself becomes float16, in its declared type too.
    fn make_half(&mut self, value: ValueId) {
        let v = self.graph.value_mut(value);
        v.dtype = Some(DType::F16);
        let declared = v.info.as_mut().and_then(|i| i.r#type.as_mut()).and_then(|t| t.value.as_mut());
        if let Some(type_proto::Value::TensorType(tensor)) = declared {
            tensor.elem_type = Some(DType::F16 as i32);
        }
        self.forms.insert(value, Forms { half: Some(value), float: None });
    }

    /// Output `slot` of a node that becomes float16. Where the float32 value has to stay under its name, for the
    /// interface or a subgraph, a cast makes it.
    fn half_output(&mut self, id: NodeId, slot: usize, work: &Work) -> Result<()> {
        self.attributes(id)?;
        let Some(value) = self.graph.node(id).output(slot) else { return Ok(()) };
        let interface = self.graph.is_output(value) && !work.outputs.contains(&value);
        if !interface && !self.graph.is_named_elsewhere(value) {
            self.make_half(value);
            return Ok(());
        }
        let old = self.graph.value(value);
        let half = Value::new(&format!("{}_fp16", old.name), Some(DType::F16), old.shape.clone());
        let half = self.graph.add_value(half);
        self.graph.set_output(id, slot, half);
        self.cast(half, value, DType::F32, work.next(id));
        self.forms.insert(value, Forms { half: Some(half), float: Some(value) });
        Ok(())
    }

    /// An output of the graph that becomes float16 although its node stays: a cast makes it.
    fn float_output(&mut self, value: ValueId, work: &Work) {
        if self.forms.contains_key(&value) {
            return;
        }
        let Some((id, node)) = self.graph.producer(value) else { return };
        let slot = node.outputs.iter().position(|v| *v == Some(value)).unwrap_or_default();
        let old = self.graph.value(value);
        let float = Value::new(&format!("{}_fp32", old.name), Some(DType::F32), old.shape.clone());
        let float = self.graph.add_value(float);
        self.graph.set_output(id, slot, float);
        self.make_half(value);
        self.cast(float, value, DType::F16, work.next(id));
        self.forms.insert(value, Forms { half: Some(value), float: Some(float) });
    }

    /// Attributes that name the type of what the node makes.
    fn attributes(&mut self, id: NodeId) -> Result<()> {
        let node = self.graph.node(id);
        let attribute = match node.op.as_str() {
            _ if !node.domain.is_empty() => return Ok(()),
            "Cast" => AttributeProto::int("to", DType::F16 as i64),
            "ConstantOfShape" => {
                let zero = TensorProto::from_f32("", &[1], &[0.0]);
                AttributeProto::tensor("value", to_half(node.tensor("value").unwrap_or(&zero))?)
            }
            // Without it the softmax would be in the type of the queries.
            "Attention" if node.int("softmax_precision").is_none() => {
                AttributeProto::int("softmax_precision", DType::F32 as i64)
            }
            _ => return Ok(()),
        };
        self.graph.edit_node(id, |n| n.set(attribute));
        Ok(())
    }

    /// Input `slot` of a node, which was the float32 `value`.
    fn input(&mut self, (id, slot, value, wants): Read, work: &Work) -> Result<()> {
        let forms = self.forms.get(&value).copied().unwrap_or(Forms { half: None, float: Some(value) });
        let read = match wants {
            Wants::Any => forms.half.or(forms.float),
            Wants::Half => forms.half,
            Wants::Float => forms.float,
        };
        let read = match read {
            Some(read) => read,
            None if self.graph.constant(value).is_some() => self.half_weight(value, work)?,
            None => {
                let (from, to, suffix) = match (wants, forms.half, forms.float) {
                    (Wants::Half, _, Some(float)) => (float, DType::F16, "fp16"),
                    (_, Some(half), _) => (half, DType::F32, "fp32"),
                    _ => return Ok(()),
                };
                let old = self.graph.value(value);
                let new = Value::new(&format!("{}_{suffix}", old.name), Some(to), old.shape.clone());
                let new = self.graph.add_value(new);
                self.cast(from, new, to, Some(id));
                let known = self.forms.entry(value).or_insert(forms);
                match to {
                    DType::F16 => known.half = Some(new),
                    _ => known.float = Some(new),
                }
                new
            }
        };
        if self.graph.node(id).input(slot) != Some(read) {
            self.graph.set_input(id, slot, read);
        }
        Ok(())
    }

    /// A constant in float16. Where something reads it in float32, or by its name, that is a copy.
    fn half_weight(&mut self, value: ValueId, work: &Work) -> Result<ValueId> {
        let Some(tensor) = self.graph.constant(value) else { return Ok(value) };
        let (half, old) = (to_half(tensor)?, self.graph.value(value));
        let keeps = work.wants.iter().any(|(_, _, v, wants)| *v == value && *wants == Wants::Float)
            || old.tensor.is_none()
            || self.graph.is_output(value)
            || self.graph.is_named_elsewhere(value);
        if !keeps {
            self.make_half(value);
            self.graph.value_mut(value).tensor = Some(Arc::new(half));
            return Ok(value);
        }
        let half = self.graph.add_initializer(&format!("{}_fp16", old.name), half);
        self.forms.insert(value, Forms { half: Some(half), float: Some(value) });
        Ok(half)
    }

    /// A cast from one value to another, placed before a node.
    fn cast(&mut self, from: ValueId, to: ValueId, dtype: DType, before: Option<NodeId>) {
        let name = format!("{}_Cast", self.graph.value(to).name);
        let mut names = std::iter::once(name.clone()).chain((2u64..).map(|i| format!("{name}_{i}")));
        let name = names.find(|n| !self.names.contains(n)).unwrap_or(name);
        self.names.insert(name.clone());
        let mut node = Node { name, ..Node::new("Cast", [from]) }.with(AttributeProto::int("to", dtype as i64));
        node.outputs = vec![Some(to)];
        let last = self.graph.order().len();
        let id = self.graph.add_node(node);
        if let Some(before) = before {
            self.graph.place_new_nodes(last, before);
        }
        self.casts.push(id);
    }
}

/// Drops casts that undo a widening: float16 to float32 and back is the identity, the other way round is not.
pub fn cancel_casts(graph: &mut Graph) {
    for id in graph.order().to_vec() {
        let node = graph.node(id);
        let Some(out) = node.output(0).filter(|v| node.is("Cast") && graph.dtype(*v) == Some(DType::F16)) else {
            continue;
        };
        let Some((_, widening)) = node.input(0).and_then(|v| graph.producer(v)).filter(|(_, n)| n.is("Cast")) else {
            continue;
        };
        let Some(narrow) = widening.input(0).filter(|v| graph.dtype(*v) == Some(DType::F16)) else { continue };
        let wide = widening.output(0).and_then(|v| graph.dtype(v));
        if wide == Some(DType::F32) && !graph.is_output(out) && !graph.is_named_elsewhere(out) {
            graph.replace_uses(out, narrow);
        }
    }
    graph.remove_dead();
}
