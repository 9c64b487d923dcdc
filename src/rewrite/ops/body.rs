//! Builder of function bodies out of standard ops, for the opset of the model.

use crate::ir::Node;
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, TensorProto};
use crate::rewrite::ops::{DOMAIN, OpDef};

/// Nodes so far. Values are names local to the function.
pub struct Body {
    opset: i64,
    nodes: Vec<NodeProto>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Body {
    pub fn new(opset: i64) -> Self {
        Self { opset, nodes: vec![], inputs: vec![], outputs: vec![] }
    }

    /// Declares the next input of the function.
    pub fn input(&mut self, name: &str) -> String {
        self.inputs.push(name.into());
        name.into()
    }

    /// Declares `value` as the next output.
    pub fn output(&mut self, value: &str, name: &str) {
        self.nodes.push(NodeProto {
            input: vec![value.into()],
            output: vec![name.into()],
            op_type: Some("Identity".into()),
            ..NodeProto::default()
        });
        self.outputs.push(name.into());
    }

    pub fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let out = format!("t{}", self.nodes.len());
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&s| s.into()).collect(),
            output: vec![out.clone()],
            op_type: Some(op.into()),
            attribute: attributes,
            ..NodeProto::default()
        });
        out
    }

    pub fn constant(&mut self, tensor: TensorProto) -> String {
        self.op("Constant", &[], vec![AttributeProto::tensor("value", tensor)])
    }

    pub fn ints(&mut self, values: &[i64]) -> String {
        self.constant(TensorProto::from_i64("", &[values.len() as i64], values))
    }

    pub fn float(&mut self, value: f32) -> String {
        self.constant(TensorProto::from_f32("", &[], &[value]))
    }

    pub fn cast(&mut self, value: &str, to: DType) -> String {
        self.op("Cast", &[value], vec![AttributeProto::int("to", to as i64)])
    }

    /// A float value as one of the type would hold it.
    pub fn rounded(&mut self, value: &str, dtype: DType) -> String {
        let narrow = self.cast(value, dtype);
        self.cast(&narrow, DType::F32)
    }

    pub fn reshape(&mut self, value: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[value, &shape], vec![])
    }

    pub fn transpose(&mut self, value: &str, perm: &[i64]) -> String {
        self.op("Transpose", &[value], vec![AttributeProto::ints("perm", perm)])
    }

    /// Elements `start..end` with a step along one axis.
    pub fn slice(&mut self, value: &str, axis: i64, start: i64, end: i64, step: i64) -> String {
        let inputs = [self.ints(&[start]), self.ints(&[end]), self.ints(&[axis]), self.ints(&[step])];
        self.op("Slice", &[value, &inputs[0], &inputs[1], &inputs[2], &inputs[3]], vec![])
    }

    pub fn concat(&mut self, values: &[&str], axis: i64) -> String {
        self.op("Concat", values, vec![AttributeProto::int("axis", axis)])
    }

    /// Zeros before and after the elements of each axis.
    pub fn pad(&mut self, value: &str, starts: &[i64], ends: &[i64], dtype: DType) -> String {
        let pads = [starts, ends].concat();
        if pads.iter().all(|&n| n == 0) {
            return value.into();
        }
        let pads = self.ints(&pads);
        let zero = self.float(0.0);
        let zero = self.cast(&zero, dtype);
        self.op("Pad", &[value, &pads, &zero], vec![])
    }

    /// Zeros after the elements of each axis.
    pub fn pad_end(&mut self, value: &str, ends: &[i64], dtype: DType) -> String {
        self.pad(value, &vec![0; ends.len()], ends, dtype)
    }

    /// `y[i] = x[(i + by) mod size]` along one axis.
    pub fn roll(&mut self, value: &str, axis: i64, by: i64, size: i64) -> String {
        let by = by.rem_euclid(size.max(1));
        if by == 0 {
            return value.into();
        }
        let (head, tail) = (self.slice(value, axis, by, size, 1), self.slice(value, axis, 0, by, 1));
        self.concat(&[&head, &tail], axis)
    }

    /// Layer norm in float32 over the last `axes` axes; all operands float32.
    pub fn layer_norm(&mut self, x: &str, scale: &str, bias: &str, axes: i64, epsilon: f32) -> String {
        if self.opset >= 17 {
            let attributes = vec![AttributeProto::int("axis", -axes), AttributeProto::float("epsilon", epsilon)];
            return self.op("LayerNormalization", &[x, scale, bias], attributes);
        }
        let reduced: Vec<i64> = (1..=axes).map(|a| -a).collect();
        let mean = |body: &mut Self, v: &str| body.op("ReduceMean", &[v], vec![AttributeProto::ints("axes", &reduced)]);
        let mu = mean(self, x);
        let d = self.op("Sub", &[x, &mu], vec![]);
        let square = self.op("Mul", &[&d, &d], vec![]);
        let variance = mean(self, &square);
        let epsilon = self.float(epsilon);
        let shifted = self.op("Add", &[&variance, &epsilon], vec![]);
        let deviation = self.op("Sqrt", &[&shifted], vec![]);
        let normal = self.op("Div", &[&d, &deviation], vec![]);
        let scaled = self.op("Mul", &[&normal, scale], vec![]);
        self.op("Add", &[&scaled, bias], vec![])
    }

    /// The mean over these axes, which go.
    pub fn mean(&mut self, x: &str, axes: &[i64]) -> String {
        let drop = AttributeProto::int("keepdims", 0);
        // The axes became an input with opset 18.
        if self.opset >= 18 {
            let axes = self.ints(axes);
            return self.op("ReduceMean", &[x, &axes], vec![drop]);
        }
        self.op("ReduceMean", &[x], vec![AttributeProto::ints("axes", axes), drop])
    }

    pub fn finish(self, def: &OpDef, node: &Node) -> FunctionProto {
        FunctionProto {
            name: Some(def.name.into()),
            domain: Some(DOMAIN.into()),
            input: self.inputs,
            output: self.outputs,
            // Declared so that the nodes may keep them; the body has their values built in.
            attribute: node.attributes.iter().filter_map(|a| a.name.clone()).collect(),
            node: self.nodes,
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(self.opset) }],
            doc_string: Some(def.summary.into()),
            ..FunctionProto::default()
        }
    }
}
