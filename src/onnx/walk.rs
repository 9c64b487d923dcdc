//! Visiting every tensor of a model, wherever the schema lets one be, always in the same order.

use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, TrainingInfoProto,
};
use crate::error::Result;

/// What a tensor belongs to.
#[derive(Clone, Copy)]
pub(super) enum Owner<'a> {
    /// A weight of the model's graph or of a graph nested in it.
    Weight,
    /// A weight of a graph that says how to train, or of a function.
    OtherWeight,
    /// Values or indices of a sparse tensor.
    Sparse,
    /// The attribute of a node.
    Attribute { node: &'a str, attribute: &'a str },
}

impl Owner<'_> {
    /// The tensor's name; an attribute's tensor often has none of its own.
    pub fn name(&self, tensor: &TensorProto) -> String {
        match (self, tensor.name()) {
            (Self::Attribute { node, attribute }, "") => format!("attribute {attribute} of node {node}"),
            (Self::Sparse, "") => "indices of a sparse tensor".to_owned(),
            (_, name) => name.to_owned(),
        }
    }

    /// The tensor as messages begin with it.
    pub fn place(&self, tensor: &TensorProto) -> String {
        match tensor.name() {
            "" if !matches!(self, Self::Weight | Self::OtherWeight) => self.name(tensor),
            _ => tensor.place(),
        }
    }
}

macro_rules! walker {
    ($module:ident, $($mutable:tt)?) => {
        pub(super) mod $module {
            use super::*;

            type Visit<'v> = dyn FnMut(Owner<'_>, &$($mutable)? TensorProto) -> Result<()> + 'v;

            pub fn model(model: &$($mutable)? ModelProto, visit: &mut Visit<'_>) -> Result<()> {
                let ModelProto { graph: main, training_info, functions, .. } = model;
                if let Some(main) = main {
                    graph(main, Owner::Weight, visit)?;
                }
                for TrainingInfoProto { initialization, algorithm, .. } in training_info {
                    if let Some(initialization) = initialization {
                        graph(initialization, Owner::OtherWeight, visit)?;
                    }
                    if let Some(algorithm) = algorithm {
                        graph(algorithm, Owner::OtherWeight, visit)?;
                    }
                }
                for FunctionProto { node: nodes, attribute_proto, name, .. } in functions {
                    for item in nodes {
                        node(item, Owner::OtherWeight, visit)?;
                    }
                    for item in attribute_proto {
                        attribute(item, name.as_deref().unwrap_or_default(), Owner::OtherWeight, visit)?;
                    }
                }
                Ok(())
            }

            fn graph(graph: &$($mutable)? GraphProto, weight: Owner<'_>, visit: &mut Visit<'_>) -> Result<()> {
                let GraphProto { node: nodes, initializer, sparse_initializer, .. } = graph;
                for item in nodes {
                    node(item, weight, visit)?;
                }
                for item in initializer {
                    visit(weight, item)?;
                }
                for item in sparse_initializer {
                    sparse(item, visit)?;
                }
                Ok(())
            }

            fn node(node: &$($mutable)? NodeProto, weight: Owner<'_>, visit: &mut Visit<'_>) -> Result<()> {
                let NodeProto { attribute: attributes, name, op_type, .. } = node;
                let label = name.as_deref().filter(|n| !n.is_empty()).or(op_type.as_deref()).unwrap_or_default();
                for item in attributes {
                    attribute(item, label, weight, visit)?;
                }
                Ok(())
            }

            fn attribute(
                attribute: &$($mutable)? AttributeProto,
                node: &str,
                weight: Owner<'_>,
                visit: &mut Visit<'_>,
            ) -> Result<()> {
                let AttributeProto { name, t, g, tensors, graphs, sparse_tensor, sparse_tensors, .. } = attribute;
                let owner = Owner::Attribute { node, attribute: name.as_deref().unwrap_or_default() };
                if let Some(item) = t {
                    visit(owner, item)?;
                }
                if let Some(item) = g {
                    graph(item, weight, visit)?;
                }
                for item in tensors {
                    visit(owner, item)?;
                }
                for item in graphs {
                    graph(item, weight, visit)?;
                }
                if let Some(item) = sparse_tensor {
                    sparse(item, visit)?;
                }
                for item in sparse_tensors {
                    sparse(item, visit)?;
                }
                Ok(())
            }

            fn sparse(sparse: &$($mutable)? SparseTensorProto, visit: &mut Visit<'_>) -> Result<()> {
                let SparseTensorProto { values, indices, .. } = sparse;
                if let Some(values) = values {
                    visit(Owner::Sparse, values)?;
                }
                if let Some(indices) = indices {
                    visit(Owner::Sparse, indices)?;
                }
                Ok(())
            }
        }
    };
}

walker!(tensors,);
walker!(tensors_mut, mut);
