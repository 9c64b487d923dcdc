//! What ONNX lets be float16: for every op, which of its float32 ports change type together, and which stay.
//!
//! The table holds for opsets 11 to 23. An op that it does not name stays in float32.

use crate::ir::Node;
use crate::rewrite::ops::{self, ConvStack, PatchEmbed, PixelEmbed};

/// Which float32 ports of a node become float16 if the node does; all of them but for those listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Input slots that ONNX fixes at float32.
    pub fixed_inputs: &'static [usize],
    /// Output slots that ONNX fixes at float32.
    pub fixed_outputs: &'static [usize],
    /// Input slots that may be of either type where the node is float16.
    pub any_inputs: &'static [usize],
    /// Its inputs may be of either type, whatever the type of its outputs: casts, and ops that ask for a shape.
    pub reads_any: bool,
}

const ALL: Ports = Ports { fixed_inputs: &[], fixed_outputs: &[], any_inputs: &[], reads_any: false };
const READS: Ports = Ports { reads_any: true, ..ALL };

/// The ports of a node that may be float16, or why it must stay in float32.
pub fn ports(node: &Node, opset: i64) -> Result<Ports, &'static str> {
    if node.attributes.iter().any(|a| a.g.is_some() || !a.graphs.is_empty()) {
        return Err("the graph inside it stays in float32");
    }
    if !node.domain.is_empty() {
        // Plugin ops take float16 and compute statistics, softmax and sums in float32.
        return match ops::definition(node) {
            // Rounds its image itself.
            Some(_)
                if PatchEmbed::of(node).is_some_and(|op| op.grid.is_none())
                    || PixelEmbed::of(node).is_some()
                    || ConvStack::of(node).is_some() =>
            {
                Ok(Ports { any_inputs: &[0], ..ALL })
            }
            Some(_) => Ok(ALL),
            None => Err("the op is not known here"),
        };
    }
    let op = node.op.as_str();
    if node.string("reduction").is_some_and(|how| how != "none") {
        return Err("it adds up what is scattered");
    }
    if is_elementwise(op) || is_movement(op) {
        return Ok(ALL);
    }
    Ok(match op {
        "Cast" | "Shape" | "Size" | "NonZero" | "IsNaN" => READS,
        "Constant" => return Err("its value is the output of a node"),
        // Positions and scales; only the image changes type.
        "Resize" => Ports { fixed_inputs: &[1, 2], ..ALL },
        "Upsample" => Ports { fixed_inputs: &[1], ..ALL },
        "Dropout" => Ports { fixed_inputs: &[1], ..ALL },
        // Indices and depth may be floats; they are exact in float32 only.
        "OneHot" => Ports { fixed_inputs: &[0, 1], ..ALL },
        "LayerNormalization" if node.int("stash_type").unwrap_or(1) != 1 => {
            return Err("its stash_type is not float32");
        }
        // Mean and inverse deviation have the type that stash_type says.
        "LayerNormalization" => Ports { fixed_outputs: &[1, 2], ..ALL },
        "GroupNormalization" | "RMSNormalization" if node.int("stash_type").unwrap_or(1) != 1 => {
            return Err("its stash_type is not float32");
        }
        "GroupNormalization" if opset < 21 => return Err(STATISTICS),
        "InstanceNormalization" | "MeanVarianceNormalization" | "LpNormalization" | "LRN" => return Err(STATISTICS),
        "BatchNormalization" if node.int("training_mode").unwrap_or(0) != 0 || node.outputs.len() > 1 => {
            return Err("it returns statistics, as for training");
        }
        "GroupNormalization" | "RMSNormalization" | "BatchNormalization" => ALL,
        "MatMul" | "Gemm" | "Einsum" | "Conv" | "ConvTranspose" | "Attention" | "RotaryEmbedding" => ALL,
        "Softmax" | "LogSoftmax" | "Hardmax" => ALL,
        "MaxPool" | "AveragePool" | "GlobalMaxPool" | "GlobalAveragePool" => ALL,
        "TopK" | "ArgMax" | "ArgMin" | "ConstantOfShape" => ALL,
        "ReduceMax" | "ReduceMin" | "ReduceMean" | "ReduceSum" | "ReduceL1" | "ReduceL2" | "ReduceSumSquare" => ALL,
        "IsInf" if opset >= 20 => READS,
        "ReduceLogSum" | "ReduceLogSumExp" | "ReduceProd" | "Softplus" | "Mish" => {
            return Err("what it computes inside can overflow float16 where its result does not");
        }
        "QuantizeLinear" | "DequantizeLinear" | "DynamicQuantizeLinear" | "QLinearConv" | "QLinearMatMul" => {
            return Err("quantization keeps its scales in float32");
        }
        "GridSample" | "RoiAlign" | "AffineGrid" => return Err("positions in float16 would be off by pixels"),
        "Range" | "IsInf" | "Celu" => return Err("ONNX does not define it in float16"),
        "CumSum" => return Err("its sum is carried from element to element"),
        _ => return Err("the op is not known here"),
    })
}

/// Of an op whose result is of the type of its input `slot`, 2 or 3: both in float32, all else in float16.
pub fn float_result(slot: usize) -> Ports {
    Ports { fixed_inputs: if slot == 2 { &[2] } else { &[3] }, fixed_outputs: &[0], ..ALL }
}

const STATISTICS: &str = "ONNX does not say that its statistics are float32, as it does of LayerNormalization";

/// Ops that compute each element from those at its place, float16 in every opset that is read.
pub fn is_elementwise(op: &str) -> bool {
    matches!(
        op,
        "Abs"
            | "Acos"
            | "Acosh"
            | "Add"
            | "Asin"
            | "Asinh"
            | "Atan"
            | "Atanh"
            | "Ceil"
            | "Clip"
            | "Cos"
            | "Cosh"
            | "Div"
            | "Elu"
            | "Equal"
            | "Erf"
            | "Exp"
            | "Floor"
            | "Gelu"
            | "Greater"
            | "GreaterOrEqual"
            | "HardSigmoid"
            | "HardSwish"
            | "LeakyRelu"
            | "Less"
            | "LessOrEqual"
            | "Log"
            | "Max"
            | "Mean"
            | "Min"
            | "Mod"
            | "Mul"
            | "Neg"
            | "PRelu"
            | "Pow"
            | "Reciprocal"
            | "Relu"
            | "Round"
            | "Selu"
            | "Shrink"
            | "Sigmoid"
            | "Sign"
            | "Sin"
            | "Sinh"
            | "Softsign"
            | "Sqrt"
            | "Sub"
            | "Sum"
            | "Tan"
            | "Tanh"
            | "ThresholdedRelu"
            | "Where"
    )
}

/// Ops that move elements and compute none.
pub fn is_movement(op: &str) -> bool {
    matches!(
        op,
        "Compress"
            | "Concat"
            | "DepthToSpace"
            | "Expand"
            | "Flatten"
            | "Gather"
            | "GatherElements"
            | "GatherND"
            | "Identity"
            | "Pad"
            | "Reshape"
            | "ReverseSequence"
            | "ScatterElements"
            | "ScatterND"
            | "Slice"
            | "SpaceToDepth"
            | "Split"
            | "Squeeze"
            | "Tile"
            | "Transpose"
            | "Trilu"
            | "Unsqueeze"
    )
}

/// Whether an operand multiplies or divides, so that a loss of its digits is a loss of the result's.
pub fn is_factor(node: &Node, slot: usize) -> bool {
    match node.op.as_str() {
        "Mul" | "Div" | "MatMul" | "Einsum" => true,
        "Gemm" => slot < 2,
        "Conv" | "ConvTranspose" | "PRelu" => slot == 1,
        _ => false,
    }
}

/// Whether an operand is a bound: one beyond the range of float16 becomes infinite, and bounds the same.
pub fn is_bound(node: &Node, slot: usize) -> bool {
    match node.op.as_str() {
        "Clip" => slot > 0,
        "Max" | "Min" => true,
        _ => false,
    }
}
