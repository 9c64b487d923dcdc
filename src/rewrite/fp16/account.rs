//! The account of a conversion to float16, part of the ledger; `docs/ledger.md` describes it.

use serde::{Deserialize, Serialize};

/// Why a node stays in float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CauseKind {
    /// ONNX, or this table of ops, does not have it in float16.
    Op,
    /// A weight or constant is beyond the range of float16.
    Weight,
    /// A value came near the limit of float16 in the calibration run.
    Overflow,
    /// A value is below the normal numbers of float16, where digits are lost.
    Underflow,
    /// It adds up too much for a float16 sum.
    Reduction,
    /// It computes a variance or norm, and divides by it.
    Variance,
    /// An epsilon that float16 cannot hold.
    Epsilon,
    /// It computes whole numbers: sizes, positions, indices.
    Integer,
    /// Between nodes that stay, so that casts are saved.
    Between,
}

impl CauseKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Op => "op",
            Self::Weight => "weight",
            Self::Overflow => "overflow",
            Self::Underflow => "underflow",
            Self::Reduction => "reduction",
            Self::Variance => "variance",
            Self::Epsilon => "epsilon",
            Self::Integer => "integer",
            Self::Between => "between",
        }
    }
}

/// One reason for a node to stay in float32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    pub kind: CauseKind,
    pub node: String,
    /// The value or weight that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<String>,
    pub reason: String,
    /// What was measured or counted, and what is allowed of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub figure: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit: Option<f64>,
}

/// Nodes in float32 that are joined by float32 values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Island {
    /// In topological order.
    pub nodes: Vec<String>,
    /// At least one.
    pub causes: Vec<Cause>,
}

/// Bytes of weights by type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightBytes {
    pub float16: u64,
    pub float32: u64,
}

/// Nodes by the type that they compute in, casts between the two types not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCounts {
    pub float16: usize,
    pub float32: usize,
    /// Integers, booleans, shapes.
    pub other: usize,
}

/// The account of a conversion to float16.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Precision {
    /// Whether anything was converted. A model that is in float16 already is left as it is.
    pub converted: bool,
    /// What the calibration ran on; none if there was no such run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub calibration: Option<String>,
    pub weight_bytes: WeightBytes,
    pub nodes: NodeCounts,
    /// Casts between float16 and float32 that were added.
    pub casts: usize,
    pub islands: Vec<Island>,
    /// What else is worth knowing: weights that lose digits, a model that was in float16 already.
    pub notes: Vec<String>,
}
