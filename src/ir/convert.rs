//! Between the protobuf form and the graph.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ir::{Dim, Graph, Node, Value, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::{
    GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorAnnotation, TensorShapeProto, TypeProto,
    ValueInfoProto, tensor_shape_proto, type_proto,
};

/// Fields of the file that no analysis reads, kept for writing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rest {
    quantization_annotation: Vec<TensorAnnotation>,
    sparse_initializer: Vec<SparseTensorProto>,
    /// Since IR version 4 a graph input of an initializer's name makes that a default, not a constant.
    pub(super) overridable: bool,
}

impl Graph {
    /// Moves the main graph out of a model; [`Graph::restore`] puts it back.
    ///
    /// Fails on a graph that is not in single-assignment form, reads names that nothing defines, or has a cycle.
    pub fn take(model: &mut ModelProto) -> Result<Self> {
        let proto = model.graph.take().ok_or_else(|| Error::invalid("model", "has no graph"))?;
        let mut graph = Self::default();
        graph.opset = opset(model);
        graph.rest.overridable = model.ir_version.unwrap_or(0) >= 4;
        graph.fill(proto)?;
        graph.sort().map_err(|node| {
            Error::invalid(
                format!("node '{}'", graph.node_label(node)),
                "is on a cycle: it needs its own output; the file was not written by a working exporter",
            )
        })?;
        Ok(graph)
    }

    fn fill(&mut self, proto: GraphProto) -> Result<()> {
        let mut ids: HashMap<String, ValueId> = HashMap::new();
        self.name = proto.name.unwrap_or_default();
        self.doc_string = proto.doc_string;
        self.metadata = proto.metadata_props;

        for info in proto.input {
            let id = self.define(&mut ids, info_name(&info, "graph input")?, "graph input")?;
            self.set_info(id, info);
            self.inputs.push(id);
        }
        for mut tensor in proto.initializer {
            let name = tensor.name.take().unwrap_or_default();
            if name.is_empty() {
                return Err(Error::invalid("initializer", "has no name"));
            }
            let id = match ids.get(&name) {
                // Listed among the inputs too: a default, or before IR version 4 the rule.
                Some(&id) if self.is_input(id) && self.value(id).tensor.is_none() => id,
                Some(_) => return Err(Error::invalid(format!("initializer '{name}'"), "is defined twice")),
                None => self.define(&mut ids, name.clone(), "initializer")?,
            };
            let of_tensor = Value::of_tensor(&name, tensor);
            let value = self.value_mut(id);
            value.tensor = of_tensor.tensor;
            value.dtype = of_tensor.dtype;
            value.shape = of_tensor.shape;
        }
        for sparse in &proto.sparse_initializer {
            let name = sparse.values.as_ref().and_then(|v| v.name.clone()).unwrap_or_default();
            let id = self.define(&mut ids, name, "sparse initializer")?;
            let value = self.value_mut(id);
            value.pinned = true;
            value.dtype = sparse.values.as_ref().and_then(|v| v.data_type).and_then(DType::from_code);
            value.shape = Some(sparse.dims.iter().map(|&d| Dim::Int(d)).collect());
        }

        // Two passes over the nodes, so that a file that is not sorted can still be read.
        for node in &proto.node {
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                let what = format!("output of node '{}'", label(node));
                self.define(&mut ids, output.clone(), &what)?;
            }
        }
        for mut node in proto.node {
            let place = format!("node '{}' ({})", label(&node), node.op_type());
            let find = |name: &String| {
                if name.is_empty() {
                    return Ok(None);
                }
                ids.get(name).copied().map(Some).ok_or_else(|| {
                    let what = format!("reads '{name}', which no input, initializer or node of the graph defines");
                    Error::invalid(place.clone(), what)
                })
            };
            if node.op_type().is_empty() {
                return Err(Error::invalid(place, "has no op type"));
            }
            let inputs = node.input.iter().map(find).collect::<Result<Vec<_>>>()?;
            let outputs = node.output.iter().map(|n| ids.get(n).copied()).collect();
            let mut captured = BTreeSet::new();
            for subgraph in subgraphs(&node) {
                free_names(subgraph, &HashSet::new(), &mut captured);
            }
            let captures = captured.iter().map(|name| find(name).map(|v| v.expect("free names are not empty")));
            let captures = captures.collect::<Result<Vec<_>>>()?;
            let domain = node.domain.take().unwrap_or_default();
            self.add_node(Node {
                name: node.name.unwrap_or_default(),
                op: node.op_type.unwrap_or_default(),
                domain: if domain == "ai.onnx" { String::new() } else { domain },
                overload: node.overload,
                inputs,
                outputs,
                attributes: node.attribute,
                captures,
                doc_string: node.doc_string,
                metadata: node.metadata_props,
                device_configurations: node.device_configurations,
            });
        }

        for info in proto.output {
            let name = info_name(&info, "graph output")?;
            let Some(&id) = ids.get(&name) else {
                return Err(Error::invalid(
                    format!("graph output '{name}'"),
                    "is not defined by any node, input or initializer",
                ));
            };
            if self.outputs.contains(&id) {
                return Err(Error::invalid(format!("graph output '{name}'"), "is listed twice"));
            }
            self.outputs.push(id);
            self.set_info(id, info);
        }
        for info in proto.value_info {
            // Infos of values that do not exist are harmless leftovers of other tools.
            if let Some(&id) = info.name.as_ref().and_then(|name| ids.get(name))
                && self.value(id).info.is_none()
            {
                self.set_info(id, info);
            }
        }
        for annotation in &proto.quantization_annotation {
            let parameters = annotation.quant_parameter_tensor_names.iter().filter_map(|e| e.value.as_ref());
            for name in annotation.tensor_name.iter().chain(parameters) {
                if let Some(&id) = ids.get(name) {
                    self.value_mut(id).pinned = true;
                }
            }
        }
        self.rest.quantization_annotation = proto.quantization_annotation;
        self.rest.sparse_initializer = proto.sparse_initializer;
        Ok(())
    }

    fn define(&mut self, ids: &mut HashMap<String, ValueId>, name: String, what: &str) -> Result<ValueId> {
        if name.is_empty() {
            return Err(Error::invalid(what, "has no name"));
        }
        if ids.contains_key(&name) {
            return Err(Error::invalid(format!("value '{name}' ({what})"), "is defined twice"));
        }
        let id = self.add_value(Value::new(&name, None, None));
        ids.insert(name, id);
        Ok(id)
    }

    fn set_info(&mut self, id: ValueId, info: ValueInfoProto) {
        let value = self.value_mut(id);
        match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
            Some(type_proto::Value::TensorType(tensor)) => {
                value.dtype = value.dtype.or(tensor.elem_type.and_then(DType::from_code));
                if value.shape.is_none() {
                    value.shape = tensor.shape.as_ref().map(|s| dims_of(s, &value.name));
                }
            }
            Some(_) => value.other_type = info.r#type.clone(),
            None => {}
        }
        value.info = Some(Box::new(info));
    }

    /// Puts the graph back into the model that it was taken from.
    pub fn restore(&self, model: &mut ModelProto) {
        let name_of = |v: &Option<ValueId>| v.map(|id| self.value(id).name.clone()).unwrap_or_default();
        let info_of = |id: &ValueId| {
            let value = self.value(*id);
            let mut info = value
                .info
                .as_deref()
                .cloned()
                .unwrap_or_else(|| ValueInfoProto { r#type: type_of(value), ..ValueInfoProto::default() });
            info.name = Some(value.name.clone());
            info
        };
        let mut proto = GraphProto {
            name: Some(self.name.clone()),
            doc_string: self.doc_string.clone(),
            metadata_props: self.metadata.clone(),
            input: self.inputs.iter().map(info_of).collect(),
            output: self.outputs.iter().map(info_of).collect(),
            quantization_annotation: self.rest.quantization_annotation.clone(),
            sparse_initializer: self.rest.sparse_initializer.clone(),
            ..GraphProto::default()
        };
        for (_, node) in self.nodes() {
            proto.node.push(NodeProto {
                input: node.inputs.iter().map(name_of).collect(),
                output: node.outputs.iter().map(name_of).collect(),
                name: (!node.name.is_empty()).then(|| node.name.clone()),
                op_type: Some(node.op.clone()),
                domain: (!node.domain.is_empty()).then(|| node.domain.clone()),
                overload: node.overload.clone(),
                attribute: node.attributes.clone(),
                doc_string: node.doc_string.clone(),
                metadata_props: node.metadata.clone(),
                device_configurations: node.device_configurations.clone(),
            });
        }
        let interface: HashSet<ValueId> = self.inputs.iter().chain(&self.outputs).copied().collect();
        for id in self.value_ids() {
            let value = self.value(id);
            if let Some(tensor) = &value.tensor {
                let mut tensor = (**tensor).clone();
                tensor.name = Some(value.name.clone());
                proto.initializer.push(tensor);
            }
            let plugin_output = self.producer(id).is_some_and(|(_, node)| !node.domain.is_empty());
            if !interface.contains(&id)
                && (value.producer.is_some() || value.tensor.is_some())
                && (value.info.is_some() || (plugin_output && type_of(value).is_some()))
            {
                proto.value_info.push(info_of(&id));
            }
        }
        model.graph = Some(proto);
        for import in &mut model.opset_import {
            if matches!(import.domain.as_deref(), None | Some("" | "ai.onnx")) {
                import.version = Some(self.opset);
            }
        }
    }

    /// Drops weights that nothing reads, and keeps those that a graph output, a subgraph or an annotation names.
    pub fn remove_unused_initializers(&mut self) {
        for id in self.value_ids() {
            let value = self.value(id);
            let kept = value.pinned || !self.uses(id).is_empty() || self.is_output(id) || self.is_input(id);
            if value.tensor.is_some() && !kept {
                self.value_mut(id).tensor = None;
            }
        }
    }

    /// The tensor of a value, shared.
    pub fn tensor_arc(&self, id: ValueId) -> Option<Arc<crate::onnx::proto::TensorProto>> {
        self.value(id).tensor.clone()
    }
}

/// Version of the standard operator set that the model imports; 0 if it imports none.
pub fn opset(model: &ModelProto) -> i64 {
    let standard = |d: Option<&str>| matches!(d, None | Some("" | "ai.onnx"));
    model.opset_import.iter().find(|o| standard(o.domain.as_deref())).and_then(|o| o.version).unwrap_or(0)
}

fn label(node: &NodeProto) -> String {
    match (node.name.as_deref(), node.output.first()) {
        (Some(name), _) if !name.is_empty() => name.to_owned(),
        (_, Some(output)) => format!("{}:{output}", node.op_type()),
        _ => node.op_type().to_owned(),
    }
}

fn info_name(info: &ValueInfoProto, what: &str) -> Result<String> {
    match info.name.as_deref() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Error::invalid(what, "has no name")),
    }
}

fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.as_deref().into_iter().chain(&a.graphs))
}

/// Names that a subgraph reads and does not define.
fn free_names(graph: &GraphProto, outer: &HashSet<&str>, free: &mut BTreeSet<String>) {
    let mut bound = outer.clone();
    bound.extend(graph.input.iter().filter_map(|i| i.name.as_deref()));
    bound.extend(graph.initializer.iter().filter_map(|t| t.name.as_deref()));
    bound.extend(graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref()?.name.as_deref()));
    bound.extend(graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)));
    let outputs = graph.output.iter().filter_map(|o| o.name.as_deref());
    for name in graph.node.iter().flat_map(|n| n.input.iter().map(String::as_str)).chain(outputs) {
        if !name.is_empty() && !bound.contains(name) {
            free.insert(name.to_owned());
        }
    }
    for node in &graph.node {
        for inner in subgraphs(node) {
            free_names(inner, &bound, free);
        }
    }
}

/// Unknown axes get a symbol of their own, made from the value's name.
fn dims_of(shape: &TensorShapeProto, value: &str) -> Vec<Dim> {
    let dim = |(i, d): (usize, &tensor_shape_proto::Dimension)| match &d.value {
        Some(tensor_shape_proto::Value::DimValue(v)) if *v >= 0 => Dim::Int(*v),
        Some(tensor_shape_proto::Value::DimParam(name)) if !name.is_empty() => Dim::symbol(name),
        _ => Dim::symbol(&format!("?{value}.{i}")),
    };
    shape.dim.iter().enumerate().map(dim).collect()
}

/// The protobuf type of a value whose element type is known.
pub(crate) fn type_of(value: &Value) -> Option<TypeProto> {
    if value.other_type.is_some() {
        return value.other_type.clone();
    }
    let dim = |d: &Dim| tensor_shape_proto::Dimension {
        value: match d {
            Dim::Int(i) => Some(tensor_shape_proto::Value::DimValue(*i)),
            // A name of ours for an unknown axis says nothing to a reader.
            d if d.symbols().iter().any(|s| s.starts_with('?')) => None,
            d => Some(tensor_shape_proto::Value::DimParam(d.to_string())),
        },
        denotation: None,
    };
    let shape = value.shape.as_ref().map(|s| TensorShapeProto { dim: s.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(value.dtype? as i32), shape };
    Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None })
}
