//! Elementwise operators, with broadcasting.

use super::{Cx, Inferred};
use crate::ir::Dim;
use crate::onnx::DType;

/// The common size of two axes, or `None` if it is not known; `Err` if they do not go together.
fn broadcast_axis(a: &Dim, b: &Dim) -> Result<Option<Dim>, ()> {
    match (a, b) {
        _ if a == b => Ok(Some(a.clone())),
        (Dim::Int(1), other) | (other, Dim::Int(1)) => Ok(Some(other.clone())),
        (Dim::Int(_), Dim::Int(_)) => Err(()),
        // The symbol can only stand for 1 or for the same size.
        (int @ Dim::Int(_), _) | (_, int @ Dim::Int(_)) => Ok(Some(int.clone())),
        _ => Ok(None),
    }
}

/// The shape that shapes broadcast to; `unknown(axis)` makes a symbol where it depends on the symbols' values.
pub(super) fn broadcast(shapes: &[&[Dim]], unknown: impl Fn(usize) -> Dim) -> Option<Vec<Dim>> {
    let rank = shapes.iter().map(|s| s.len()).max()?;
    let mut result = vec![Dim::Int(1); rank];
    for shape in shapes {
        let offset = rank - shape.len();
        for (i, dim) in shape.iter().enumerate() {
            let axis = offset + i;
            result[axis] = broadcast_axis(&result[axis], dim).ok()?.unwrap_or_else(|| unknown(axis));
        }
    }
    Some(result)
}

impl Cx<'_> {
    pub(super) fn broadcast_inputs(&self, inputs: impl Iterator<Item = usize>) -> Option<Vec<Dim>> {
        let shapes = inputs.filter(|&i| self.given(i)).map(|i| self.shape(i)).collect::<Option<Vec<_>>>()?;
        broadcast(&shapes, |axis| self.unknown(0, axis))
    }

    /// `None`: not an elementwise op. The contents of integers are followed in `shape_math`.
    pub(super) fn elementwise(&self) -> Option<Option<Vec<Inferred>>> {
        let count = self.node.inputs.len();
        let all = |dtype: Option<DType>| {
            let shape = self.broadcast_inputs(0..count);
            let ints = self.elementwise_contents(shape.as_deref(), dtype);
            Some(vec![Inferred::new(dtype, shape).with_ints(ints)])
        };
        let unary = |dtype: Option<DType>| {
            let shape = self.shape(0).map(<[Dim]>::to_vec);
            let ints = self.elementwise_contents(shape.as_deref(), dtype);
            Some(vec![Inferred::new(dtype, shape).with_ints(ints)])
        };
        Some(match self.node.op.as_str() {
            "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Max" | "Min" | "Sum" | "Mean" | "BitShift" | "BitwiseAnd"
            | "BitwiseOr" | "BitwiseXor" => {
                let dtype = (0..count).find_map(|i| self.dtype(i));
                all(dtype)
            }
            "Pow" | "PRelu" => all(self.dtype(0)),
            "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "And" | "Or" | "Xor" => {
                all(Some(DType::Bool))
            }
            "Where" => all(self.dtype(1).or(self.dtype(2))),
            "Not" | "IsNaN" | "IsInf" => unary(Some(DType::Bool)),
            "Cast" => unary(self.node.int("to").and_then(|c| DType::from_code(i32::try_from(c).ok()?))),
            "CastLike" => unary(self.dtype(1)),
            "Abs" | "Acos" | "Acosh" | "Asin" | "Asinh" | "Atan" | "Atanh" | "BitwiseNot" | "Ceil" | "Celu"
            | "Clip" | "Cos" | "Cosh" | "Elu" | "Erf" | "Exp" | "Floor" | "Gelu" | "HardSigmoid" | "HardSwish"
            | "Identity" | "LeakyRelu" | "Log" | "Mish" | "Neg" | "Reciprocal" | "Relu" | "Round" | "Selu"
            | "Shrink" | "Sigmoid" | "Sign" | "Sin" | "Sinh" | "Softplus" | "Softsign" | "Sqrt" | "Swish" | "Tan"
            | "Tanh" | "ThresholdedRelu" => unary(self.dtype(0)),
            "Softmax"
            | "LogSoftmax"
            | "Hardmax"
            | "LRN"
            | "LpNormalization"
            | "MeanVarianceNormalization"
            | "InstanceNormalization"
            | "GroupNormalization"
            | "RMSNormalization"
            | "Trilu"
            | "CumSum"
            | "ReverseSequence"
            | "ScatterND"
            | "ScatterElements"
            | "Scatter"
            | "RotaryEmbedding"
            | "TensorScatter" => self.like(0),
            "RandomNormalLike" | "RandomUniformLike" | "Bernoulli" | "EyeLike" => {
                let named = self.node.int("dtype").and_then(|c| DType::from_code(i32::try_from(c).ok()?));
                Some(vec![Inferred::new(named.or(self.dtype(0)), self.shape(0).map(<[Dim]>::to_vec))])
            }
            _ => return None,
        })
    }
}
