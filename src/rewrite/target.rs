//! What the rewritten model is for.

use serde::{Deserialize, Serialize};

/// The runtime that the output model is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// TensorRT 8.5 and 8.6 with the plugin library; standard ops as of opset 17.
    Trt8,
    /// TensorRT 10 with the plugin library.
    Trt10,
    /// TensorRT 11 with the plugin library.
    Trt11,
    /// Any TensorRT without plugins: standard ops in the form that its own fusions recognise.
    Native,
}

impl Target {
    pub fn name(self) -> &'static str {
        match self {
            Self::Trt8 => "trt8",
            Self::Trt10 => "trt10",
            Self::Trt11 => "trt11",
            Self::Native => "native",
        }
    }

    /// The one with plugins for a major version of TensorRT.
    pub fn of_major(major: u32) -> Option<Self> {
        match major {
            8 => Some(Self::Trt8),
            10 => Some(Self::Trt10),
            11 => Some(Self::Trt11),
            _ => None,
        }
    }

    /// Whether fused nodes may be plugin ops.
    pub fn plugins(self) -> bool {
        self != Self::Native
    }

    /// The newest opset whose ops the runtime's parser reads.
    pub fn newest_opset(self) -> i64 {
        match self {
            // 8.6's parser knows opset 17; a native model has to suit it too.
            Self::Trt8 | Self::Native => 17,
            Self::Trt10 => 20,
            Self::Trt11 => 23,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
