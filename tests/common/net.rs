//! Building graphs of data movement by hand, with shapes.
#![allow(dead_code)] // Each test file uses some of it.

use trt_opt::analysis::movement::{self, Map, Walk};
use trt_opt::ir::{Dim, Graph, Node, Value, ValueId};
use trt_opt::onnx::DType;
use trt_opt::onnx::proto::{AttributeProto, ModelProto, OperatorSetIdProto, TensorProto};

/// A graph under construction.
pub struct Net {
    pub graph: Graph,
}

pub fn dims(sizes: &[i64]) -> Vec<Dim> {
    sizes.iter().map(|&d| Dim::Int(d)).collect()
}

pub fn batch() -> Dim {
    Dim::symbol("batch")
}

impl Net {
    pub fn new(opset: i64) -> Self {
        let mut graph = Graph::default();
        graph.opset = opset;
        Self { graph }
    }

    pub fn input(&mut self, name: &str, shape: &[Dim]) -> ValueId {
        let id = self.graph.add_value(Value::new(name, Some(DType::F32), Some(shape.to_vec())));
        self.graph.inputs.push(id);
        id
    }

    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_initializer("ints", TensorProto::from_i64("ints", &[values.len() as i64], values))
    }

    pub fn index(&mut self, shape: &[i64], values: &[i64]) -> ValueId {
        self.graph.add_initializer("index", TensorProto::from_i64("index", shape, values))
    }

    pub fn push(&mut self, node: Node, shape: &[Dim]) -> ValueId {
        self.outputs(node, &[shape])[0]
    }

    pub fn outputs(&mut self, mut node: Node, shapes: &[&[Dim]]) -> Vec<ValueId> {
        let add = |shape: &&[Dim]| self.graph.add_value(Value::new("y", Some(DType::F32), Some(shape.to_vec())));
        let outputs: Vec<ValueId> = shapes.iter().map(add).collect();
        node.outputs = outputs.iter().copied().map(Some).collect();
        self.graph.add_node(node);
        outputs
    }

    pub fn reshape(&mut self, x: ValueId, shape: &[Dim]) -> ValueId {
        let target: Vec<i64> = shape.iter().map(|d| d.int().unwrap_or(-1)).collect();
        let target = self.ints(&target);
        self.push(Node::new("Reshape", [x, target]), shape)
    }

    pub fn transpose(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        let shape = self.shape(x);
        let shape: Vec<Dim> = perm.iter().map(|&p| shape[p as usize].clone()).collect();
        self.push(Node::new("Transpose", [x]).with(AttributeProto::ints("perm", perm)), &shape)
    }

    pub fn gather(&mut self, x: ValueId, axis: usize, index_shape: &[i64], values: &[i64]) -> ValueId {
        let mut shape = self.shape(x);
        shape.splice(axis..=axis, dims(index_shape));
        let index = self.index(index_shape, values);
        self.push(Node::new("Gather", [x, index]).with(AttributeProto::int("axis", axis as i64)), &shape)
    }

    pub fn slice(&mut self, x: ValueId, axis: usize, start: i64, end: i64, count: i64) -> ValueId {
        let mut shape = self.shape(x);
        shape[axis] = Dim::Int(count);
        let inputs = [x, self.ints(&[start]), self.ints(&[end]), self.ints(&[axis as i64])];
        self.push(Node::new("Slice", inputs), &shape)
    }

    pub fn concat(&mut self, parts: &[ValueId], axis: usize) -> ValueId {
        let mut shape = self.shape(parts[0]);
        for part in &parts[1..] {
            shape[axis] = shape[axis].add(&self.shape(*part)[axis]).unwrap();
        }
        let node = Node::new("Concat", parts.iter().copied()).with(AttributeProto::int("axis", axis as i64));
        self.push(node, &shape)
    }

    pub fn roll(&mut self, x: ValueId, axis: usize, shift: i64) -> ValueId {
        let size = self.shape(x)[axis].int().unwrap();
        let tail = self.slice(x, axis, shift, i64::MAX, size - shift);
        let head = self.slice(x, axis, 0, shift, shift);
        self.concat(&[tail, head], axis)
    }

    pub fn shape(&self, x: ValueId) -> Vec<Dim> {
        self.graph.shape(x).unwrap().to_vec()
    }

    pub fn trace(&self, x: ValueId) -> Option<Map> {
        movement::trace(&self.graph, x, &|_| None, &Walk::default())
    }

    /// The model with these outputs.
    pub fn model(mut self, outputs: &[ValueId]) -> ModelProto {
        self.graph.outputs = outputs.to_vec();
        self.graph.name = "net".into();
        let mut model = ModelProto { ir_version: Some(8), ..ModelProto::default() };
        model.opset_import.push(OperatorSetIdProto { domain: None, version: Some(self.graph.opset) });
        self.graph.restore(&mut model);
        model
    }

    pub fn unary(&mut self, op: &str, x: ValueId) -> ValueId {
        let shape = self.shape(x);
        self.push(Node::new(op, [x]), &shape)
    }

    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        let shape = self.shape(a);
        self.push(Node::new("Add", [a, b]), &shape)
    }
}
