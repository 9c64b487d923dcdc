//! What the rewritten model is for.

use serde::{Deserialize, Serialize, Serializer};

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

/// What a GPU can do, as CUDA numbers it: `9.0` is Hopper, sm_90.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComputeCapability {
    pub major: u32,
    pub minor: u32,
}

impl ComputeCapability {
    /// H100, H200.
    pub const HOPPER: Self = Self { major: 9, minor: 0 };
}

impl std::str::FromStr for ComputeCapability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.parse().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
        let parts = text.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
        let (major, minor) = parts.ok_or("expected MAJOR.MINOR, as 9.0 of an H100")?;
        Ok(Self { major, minor })
    }
}

impl std::fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Serialize for ComputeCapability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compute_capabilities_are_read_as_they_are_written() {
        for text in ["9.0", "8.6", "12.1"] {
            assert_eq!(text.parse::<ComputeCapability>().unwrap().to_string(), text);
        }
        for wrong in ["", "9", "90", "sm_90", "9.", ".0", "9.0.0", "-9.0", "+9.0", "9.0a", "9. 0"] {
            assert!(wrong.parse::<ComputeCapability>().unwrap_err().contains("MAJOR.MINOR"), "{wrong}");
        }
    }
}
