//! Control flow, as far as the graphs inside declare what they give.

use super::{Cx, Inferred};
use crate::ir::Dim;
use crate::onnx::DType;
use crate::onnx::proto::{GraphProto, ValueInfoProto, tensor_shape_proto, type_proto};

impl Cx<'_> {
    /// `None`: not an op of this family.
    pub(super) fn control(&self) -> Option<Option<Vec<Inferred>>> {
        self.node.is("If").then(|| self.choice())
    }

    /// What both branches of an `If` declare alike.
    fn choice(&self) -> Option<Vec<Inferred>> {
        let branch = |name: &str| self.node.attribute(name)?.g.as_deref();
        let (one, other) = (branch("then_branch")?, branch("else_branch")?);
        let declared = |graph: &GraphProto| graph.output.iter().map(declared).collect::<Vec<_>>();
        let both = declared(one).into_iter().zip(declared(other));
        let alike = |(a, b): (Inferred, Inferred)| Inferred {
            dtype: a.dtype.filter(|d| Some(*d) == b.dtype),
            shape: a.shape.filter(|s| Some(s) == b.shape.as_ref()),
            ints: None,
        };
        Some(both.map(alike).collect())
    }
}

/// Type of a graph's output, and its shape where that is all numbers: a name means nothing outside.
fn declared(info: &ValueInfoProto) -> Inferred {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|t| t.value.as_ref()) else {
        return Inferred::default();
    };
    let size = |dim: &tensor_shape_proto::Dimension| match dim.value {
        Some(tensor_shape_proto::Value::DimValue(size)) if size >= 0 => Some(Dim::Int(size)),
        _ => None,
    };
    let shape = tensor.shape.as_ref().and_then(|s| s.dim.iter().map(size).collect());
    Inferred::new(tensor.elem_type.and_then(DType::from_code), shape)
}
