//! The graph arena and its editing operations.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use crate::ir::{Dim, Ints};
use crate::onnx::DType;
use crate::onnx::proto::{
    AttributeProto, NodeDeviceConfigurationProto, StringStringEntryProto, TensorProto, TypeProto, ValueInfoProto,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

impl NodeId {
    pub(crate) fn at(self) -> usize {
        self.0 as usize
    }
}

impl ValueId {
    pub(crate) fn at(self) -> usize {
        self.0 as usize
    }
}

/// One application of an operator.
#[derive(Clone, Debug, Default)]
pub struct Node {
    pub name: String,
    pub op: String,
    /// Empty for the standard operators (`ai.onnx` is normalized to it).
    pub domain: String,
    pub overload: Option<String>,
    /// `None` is an optional input left out.
    pub inputs: Vec<Option<ValueId>>,
    pub outputs: Vec<Option<ValueId>>,
    pub attributes: Vec<AttributeProto>,
    /// Values of this graph that subgraphs in the attributes read.
    pub captures: Vec<ValueId>,
    pub doc_string: Option<String>,
    pub metadata: Vec<StringStringEntryProto>,
    pub device_configurations: Vec<NodeDeviceConfigurationProto>,
}

impl Node {
    pub fn new(op: &str, inputs: impl IntoIterator<Item = ValueId>) -> Self {
        Self { op: op.into(), inputs: inputs.into_iter().map(Some).collect(), ..Self::default() }
    }

    /// Whether it is the standard operator `op`.
    pub fn is(&self, op: &str) -> bool {
        self.domain.is_empty() && self.op == op
    }

    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }

    pub fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.attributes.iter().find(|a| a.name.as_deref() == Some(name))
    }

    pub fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name)?.i
    }

    pub fn float(&self, name: &str) -> Option<f32> {
        self.attribute(name)?.f
    }

    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        Some(&self.attribute(name)?.ints)
    }

    pub fn string(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.attribute(name)?.s.as_ref()?).ok()
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attribute(name)?.t.as_deref()
    }

    /// Sets or replaces an attribute; see [`AttributeProto::int`] and its siblings.
    pub fn set(&mut self, attribute: AttributeProto) {
        self.attributes.retain(|a| a.name != attribute.name);
        self.attributes.push(attribute);
    }

    pub fn with(mut self, attribute: AttributeProto) -> Self {
        self.set(attribute);
        self
    }

    /// The op with its domain: `LayerNormalization`, `trt.opt.TrtOptLayerNorm`.
    pub fn qualified_op(&self) -> String {
        if self.domain.is_empty() { self.op.clone() } else { format!("{}.{}", self.domain, self.op) }
    }
}

/// A value: graph input, weight, or output of a node.
#[derive(Clone, Debug, Default)]
pub struct Value {
    pub name: String,
    pub dtype: Option<DType>,
    pub shape: Option<Vec<Dim>>,
    /// The elements of a small integer tensor as far as shape inference knows them.
    pub ints: Option<Arc<Ints>>,
    /// The type where it is not a tensor's.
    pub other_type: Option<TypeProto>,
    pub producer: Option<NodeId>,
    /// The weight, if it is an initializer; its `name` field is not kept up to date.
    pub tensor: Option<Arc<TensorProto>>,
    /// What the file says of it beyond type and shape.
    pub info: Option<Box<ValueInfoProto>>,
    /// Named by something outside the nodes (quantization annotation, sparse initializer): stays as it is.
    pub pinned: bool,
    uses: Vec<NodeId>,
}

/// The main graph of a model.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    /// Version of the standard operator set.
    pub opset: i64,
    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,
    pub doc_string: Option<String>,
    pub metadata: Vec<StringStringEntryProto>,
    pub(super) rest: super::convert::Rest,
    nodes: Vec<Option<Node>>,
    values: Vec<Value>,
    order: Vec<NodeId>,
    names: HashMap<String, ValueId>,
}

impl Graph {
    // ---- reading ----

    /// Live nodes in topological order.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.order.iter().map(|&id| (id, self.node(id)))
    }

    /// The node; panics if it was removed (ids come from this graph, so that is a bug of the caller).
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.at()].as_ref().expect("a removed node's id")
    }

    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.at())?.as_ref()
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.at()]
    }

    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        &mut self.values[id.at()]
    }

    pub fn value_ids(&self) -> impl ExactSizeIterator<Item = ValueId> + use<> {
        (0..self.values.len() as u32).map(ValueId)
    }

    pub fn by_name(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    pub fn producer(&self, value: ValueId) -> Option<(NodeId, &Node)> {
        let id = self.value(value).producer?;
        Some((id, self.node(id)))
    }

    /// Nodes that read the value, once for each input slot or captured name.
    pub fn uses(&self, value: ValueId) -> &[NodeId] {
        &self.value(value).uses
    }

    pub fn is_output(&self, value: ValueId) -> bool {
        self.outputs.contains(&value)
    }

    pub fn is_input(&self, value: ValueId) -> bool {
        self.inputs.contains(&value)
    }

    /// The tensor of a value that is the same in every run: an initializer that no graph input can
    /// override, or the output of a `Constant` node that holds a tensor.
    pub fn constant(&self, value: ValueId) -> Option<&TensorProto> {
        let v = self.value(value);
        if let Some(tensor) = &v.tensor {
            return (!self.rest.overridable || !self.is_input(value)).then_some(&**tensor);
        }
        let (_, node) = self.producer(value)?;
        if node.is("Constant") { node.tensor("value") } else { None }
    }

    pub fn shape(&self, value: ValueId) -> Option<&[Dim]> {
        self.value(value).shape.as_deref()
    }

    /// The shape where all of it is known and an integer.
    pub fn static_shape(&self, value: ValueId) -> Option<Vec<i64>> {
        self.shape(value)?.iter().map(Dim::int).collect()
    }

    /// The last `N` axes of a shape where they are integers and there are that many.
    pub fn static_tail<const N: usize>(&self, value: ValueId) -> Option<[i64; N]> {
        let tail: &[Dim; N] = self.shape(value)?.last_chunk()?;
        let sizes: Option<Vec<i64>> = tail.iter().map(Dim::int).collect();
        sizes?.try_into().ok()
    }

    pub fn rank(&self, value: ValueId) -> Option<usize> {
        Some(self.shape(value)?.len())
    }

    pub fn dtype(&self, value: ValueId) -> Option<DType> {
        self.value(value).dtype
    }

    /// How a node is called in messages: its name, or its op and first output.
    pub fn node_label(&self, id: NodeId) -> String {
        match self.get(id) {
            None => format!("removed node {}", id.0),
            Some(node) if !node.name.is_empty() => node.name.clone(),
            Some(node) => match node.output(0) {
                Some(out) => format!("{}:{}", node.op, self.value(out).name),
                None => node.op.clone(),
            },
        }
    }

    // ---- editing ----

    /// Adds a value under a name made unique from `hint`.
    pub fn add_value(&mut self, mut value: Value) -> ValueId {
        value.name = self.fresh_name(&value.name);
        let id = ValueId(self.values.len() as u32);
        self.names.insert(value.name.clone(), id);
        self.values.push(value);
        id
    }

    pub fn add_initializer(&mut self, hint: &str, tensor: TensorProto) -> ValueId {
        self.add_value(Value::of_tensor(hint, tensor))
    }

    /// A name that no value has yet: `hint`, else `hint_2`, `hint_3`, ...
    pub fn fresh_name(&self, hint: &str) -> String {
        let hint = if hint.is_empty() { "value" } else { hint };
        if !self.names.contains_key(hint) {
            return hint.to_owned();
        }
        (2u64..).map(|i| format!("{hint}_{i}")).find(|n| !self.names.contains_key(n)).expect("u64 names suffice")
    }

    /// Adds a node at the end of the order; call [`Graph::sort`] when all edits are done.
    pub fn add_node(&mut self, node: Node) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        for &value in node.inputs.iter().flatten().chain(&node.captures) {
            self.values[value.at()].uses.push(id);
        }
        for &value in node.outputs.iter().flatten() {
            self.values[value.at()].producer = Some(id);
        }
        self.nodes.push(Some(node));
        self.order.push(id);
        id
    }

    /// Removes a node; its outputs lose their producer.
    pub fn remove_node(&mut self, id: NodeId) {
        let Some(node) = self.nodes[id.at()].take() else { return };
        for &value in node.inputs.iter().flatten().chain(&node.captures) {
            self.drop_use(value, id);
        }
        for &value in node.outputs.iter().flatten() {
            let v = &mut self.values[value.at()];
            if v.producer == Some(id) {
                v.producer = None;
            }
        }
        self.order.retain(|&n| n != id);
    }

    fn drop_use(&mut self, value: ValueId, node: NodeId) {
        let uses = &mut self.values[value.at()].uses;
        if let Some(at) = uses.iter().position(|&n| n == node) {
            uses.remove(at);
        }
    }

    /// Changes what input `slot` of a node reads.
    pub fn set_input(&mut self, id: NodeId, slot: usize, value: ValueId) {
        let node = self.nodes[id.at()].as_mut().expect("a removed node's id");
        let old = node.inputs[slot].replace(value);
        if let Some(old) = old {
            self.drop_use(old, id);
        }
        self.values[value.at()].uses.push(id);
    }

    /// Makes output `slot` of a node produce `value`, which nothing produced before. The old output is left without a
    /// producer, for another node to take over under its name.
    pub fn set_output(&mut self, id: NodeId, slot: usize, value: ValueId) {
        let node = self.nodes[id.at()].as_mut().expect("a removed node's id");
        if let Some(old) = node.outputs[slot].replace(value) {
            self.values[old.at()].producer = None;
        }
        self.values[value.at()].producer = Some(id);
    }

    /// Changes attributes, name or op of a node; inputs and outputs must stay as they are.
    pub fn edit_node(&mut self, id: NodeId, edit: impl FnOnce(&mut Node)) {
        let node = self.nodes[id.at()].as_mut().expect("a removed node's id");
        let before = (node.inputs.clone(), node.outputs.clone(), node.captures.clone());
        edit(node);
        assert!(
            before == (node.inputs.clone(), node.outputs.clone(), node.captures.clone()),
            "edit_node rewired a node"
        );
    }

    /// Drops input slots from `keep` on.
    pub fn truncate_inputs(&mut self, id: NodeId, keep: usize) {
        let node = self.nodes[id.at()].as_mut().expect("a removed node's id");
        let dropped: Vec<ValueId> = node.inputs.drain(keep.min(node.inputs.len())..).flatten().collect();
        for value in dropped {
            self.drop_use(value, id);
        }
    }

    /// Every reader of `old` reads `new` instead. Where `old` is a graph output, `new` takes over its name and its
    /// place, so the interface stays. Uses captured by subgraphs go by name and are left alone.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        let users: BTreeSet<NodeId> = self.values[old.at()].uses.iter().copied().collect();
        for user in users {
            let slots: Vec<usize> = (0..self.node(user).inputs.len())
                .filter(|&i| self.node(user).inputs[i] == Some(old) && !self.node(user).outputs.contains(&Some(new)))
                .collect();
            for slot in slots {
                self.set_input(user, slot, new);
            }
        }
        if self.is_output(old) {
            for out in &mut self.outputs {
                if *out == old {
                    *out = new;
                }
            }
            self.swap_names(old, new);
            let info = self.values[old.at()].info.take();
            self.values[new.at()].info = info;
        }
    }

    fn swap_names(&mut self, a: ValueId, b: ValueId) {
        let (name_a, name_b) = (self.values[a.at()].name.clone(), self.values[b.at()].name.clone());
        self.names.insert(name_a.clone(), b);
        self.names.insert(name_b.clone(), a);
        self.values[a.at()].name = name_b;
        self.values[b.at()].name = name_a;
    }

    /// Whether a subgraph somewhere reads the value by name, or something else holds its name.
    pub fn is_named_elsewhere(&self, value: ValueId) -> bool {
        let v = self.value(value);
        v.pinned || v.uses.iter().any(|&n| self.node(n).captures.contains(&value))
    }

    /// Removes nodes whose outputs nobody reads and weights that only they read. Returns how many nodes went.
    pub fn remove_dead(&mut self) -> usize {
        let outputs: BTreeSet<ValueId> = self.outputs.iter().copied().collect();
        let mut dead = vec![];
        for &id in self.order.clone().iter().rev() {
            let live = |v: &ValueId| outputs.contains(v) || self.value(*v).pinned || !self.value(*v).uses.is_empty();
            let node = self.node(id);
            if !node.outputs.iter().flatten().any(live) {
                let node = self.nodes[id.at()].take().expect("live nodes are in the order");
                for &value in node.inputs.iter().flatten().chain(&node.captures) {
                    self.drop_use(value, id);
                    let v = &mut self.values[value.at()];
                    if v.uses.is_empty() && !v.pinned && !outputs.contains(&value) && !self.inputs.contains(&value) {
                        self.values[value.at()].tensor = None;
                    }
                }
                for &value in node.outputs.iter().flatten() {
                    self.values[value.at()].producer = None;
                }
                dead.push(id);
            }
        }
        let dead: BTreeSet<NodeId> = dead.into_iter().collect();
        self.order.retain(|n| !dead.contains(n));
        dead.len()
    }

    /// Restores topological order, moving nodes as little as it can. `Err` holds a node on a cycle.
    pub fn sort(&mut self) -> Result<(), NodeId> {
        let mut position = vec![usize::MAX; self.nodes.len()];
        for (i, &id) in self.order.iter().enumerate() {
            position[id.at()] = i;
        }
        let mut waiting = vec![0u32; self.nodes.len()];
        let mut ready = BinaryHeap::new();
        for &id in &self.order {
            let node = self.node(id);
            let inputs: BTreeSet<ValueId> = node.inputs.iter().flatten().chain(&node.captures).copied().collect();
            let count = inputs.iter().filter(|v| self.value(**v).producer.is_some()).count() as u32;
            waiting[id.at()] = count;
            if count == 0 {
                ready.push(Reverse((position[id.at()], id)));
            }
        }
        let mut order = Vec::with_capacity(self.order.len());
        while let Some(Reverse((_, id))) = ready.pop() {
            order.push(id);
            for &out in self.node(id).outputs.iter().flatten() {
                let users: BTreeSet<NodeId> = self.value(out).uses.iter().copied().collect();
                for user in users {
                    waiting[user.at()] -= 1;
                    if waiting[user.at()] == 0 {
                        ready.push(Reverse((position[user.at()], user)));
                    }
                }
            }
        }
        if order.len() != self.order.len() {
            let done: BTreeSet<NodeId> = order.into_iter().collect();
            let stuck = self.order.iter().find(|n| !done.contains(n)).copied();
            return Err(stuck.expect("fewer nodes were sorted than there are"));
        }
        self.order = order;
        Ok(())
    }

    /// Moves the nodes from `first_new` on (added last) to just before the node `before` in the order.
    pub fn place_new_nodes(&mut self, first_new: usize, before: NodeId) {
        let new: Vec<NodeId> = self.order.split_off(first_new);
        let at = self.order.iter().position(|&n| n == before).unwrap_or(self.order.len());
        self.order.splice(at..at, new);
    }
}

impl Value {
    /// A value of known type, to be produced by a node.
    pub fn new(name: &str, dtype: Option<DType>, shape: Option<Vec<Dim>>) -> Self {
        Self { name: name.into(), dtype, shape, ..Self::default() }
    }

    pub fn of_tensor(name: &str, tensor: TensorProto) -> Self {
        Self {
            name: name.into(),
            dtype: tensor.data_type.and_then(DType::from_code),
            shape: Some(tensor.dims.iter().map(|&d| Dim::Int(d)).collect()),
            tensor: Some(Arc::new(tensor)),
            ..Self::default()
        }
    }
}
