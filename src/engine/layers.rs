//! The layers of an engine, as TensorRT's inspector lists them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};

/// The type that a layer computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp8,
    Int8,
    Fp16,
    Bf16,
    Fp32,
    /// Integers and booleans, or nothing that is known.
    Other,
}

impl Precision {
    /// From the inspector's words: `Row major linear FP16 format` (8), `Half`, `Float` (10, 11).
    fn of_format(format: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|w| format.contains(w));
        match () {
            () if has(&["FP8", "Fp8"]) => Self::Fp8,
            () if has(&["BF16", "BFloat16", "BFLOAT16"]) => Self::Bf16,
            () if has(&["FP16", "Half", "HALF"]) => Self::Fp16,
            () if has(&["FP32", "Float", "FLOAT"]) => Self::Fp32,
            () if has(&["Int8", "INT8"]) => Self::Int8,
            () => Self::Other,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp32 => "fp32",
            Self::Other => "other",
        })
    }
}

/// A layer of an engine. TensorRT's layers are what remains after its fusions, so one may stand for many nodes.
#[derive(Clone, Debug, Serialize)]
pub struct Layer {
    pub name: String,
    /// `Reformat`, `CaskConvolution`, `PluginV2`, `kgen`, ...
    pub kind: String,
    /// The narrowest type among its floating-point inputs and outputs.
    pub precision: Precision,
    pub tactic: Option<String>,
}

impl Layer {
    /// Whether the layer only copies data into another format or type.
    pub fn is_reformat(&self) -> bool {
        self.kind == "Reformat"
    }

    /// Whether it computes something: no constant, no-op, copy or shape arithmetic.
    pub fn computes(&self) -> bool {
        let idle = ["Reformat", "Constant", "NoOp", "Shuffle", "ShapeHostToDevice", "Signal", "Wait"];
        self.precision != Precision::Other && !idle.contains(&self.kind.as_str())
    }
}

/// All layers in the order of execution, and TensorRT's own text.
#[derive(Clone, Debug)]
pub struct Layers {
    pub layers: Vec<Layer>,
    /// JSON as the inspector gives it.
    pub json: String,
}

#[derive(Deserialize)]
struct Information {
    #[serde(rename = "Layers")]
    layers: Vec<Entry>,
}

/// An engine built with less verbosity has names only.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Detailed(Detailed),
    Name(String),
}

#[derive(Deserialize)]
struct Detailed {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "LayerType", default)]
    kind: String,
    #[serde(rename = "Inputs", default)]
    inputs: Vec<Port>,
    #[serde(rename = "Outputs", default)]
    outputs: Vec<Port>,
    #[serde(rename = "TacticName")]
    tactic: Option<String>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(rename = "Format/Datatype", default)]
    format: String,
}

impl From<Entry> for Layer {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::Name(name) => Self { name, kind: String::new(), precision: Precision::Other, tactic: None },
            Entry::Detailed(d) => {
                let ports = d.inputs.iter().chain(&d.outputs);
                let precision = ports.map(|p| Precision::of_format(&p.format)).min().unwrap_or(Precision::Other);
                let tactic = d.tactic.filter(|t| !t.is_empty() && t != "0x0000000000000000");
                Self { name: d.name, kind: d.kind, precision, tactic }
            }
        }
    }
}

/// TensorRT writes parameters of layers as C does, and `inf` and `nan` are no JSON: they become null. Nor does it escape
/// the line breaks and other control characters in the names of tactics: they become spaces.
fn mended(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut inside, mut escaped) = (false, false);
    let mut rest = json;
    while let Some(c) = rest.chars().next() {
        if !inside && let Some(word) = ["-inf", "inf", "-nan", "nan"].into_iter().find(|w| rest.starts_with(w)) {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        inside ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        out.push(if inside && c.is_control() { ' ' } else { c });
        rest = &rest[c.len_utf8()..];
    }
    out
}

impl Layers {
    /// Reads the inspector's JSON.
    pub(super) fn parse(json: Vec<u8>) -> Result<Self> {
        let unread = |what: String| Error::Refused {
            action: "reading the layers of the engine".into(),
            message: format!("TensorRT's inspector gives {what}"),
        };
        let json = String::from_utf8(json).map_err(|e| unread(format!("text that is not UTF-8: {e}")))?;
        let information: Information = serde_json::from_str(&json)
            .or_else(|_| serde_json::from_str(&mended(&json)))
            .map_err(|e| unread(format!("JSON that is not understood: {e}")))?;
        Ok(Self { layers: information.layers.into_iter().map(Layer::from).collect(), json })
    }

    /// Computing layers by precision.
    pub fn precisions(&self) -> BTreeMap<Precision, usize> {
        let mut counts = BTreeMap::new();
        for layer in self.layers.iter().filter(|l| l.computes()) {
            *counts.entry(layer.precision).or_insert(0) += 1;
        }
        counts
    }

    /// The part of the computing layers that works in 16 bits or fewer, and how many layers compute; `None` if no layer
    /// tells.
    pub fn half_share(&self) -> Option<(f64, usize)> {
        let counts = self.precisions();
        let all: usize = counts.values().sum();
        let full = counts.get(&Precision::Fp32).copied().unwrap_or(0);
        (all > 0).then(|| ((all - full) as f64 / all as f64, all))
    }

    /// The plugin nodes that compute in float32.
    pub fn plugins_in_full(&self) -> Vec<&str> {
        let full = |layer: &&Layer| layer.kind.starts_with("Plugin") && layer.precision == Precision::Fp32;
        self.layers.iter().filter(full).map(|layer| layer.name.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(json: &str) -> Layers {
        Layers::parse(json.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn what_is_no_json_is_mended() {
        let found = layers(
            "{\"Layers\": [\n{\"Name\": \"a\", \"LayerType\": \"kgen\", \"Alpha\": -inf, \"TacticName\": \"a\\\"\nb inf\u{1}\"}]}",
        );
        assert_eq!(found.layers[0].tactic.as_deref(), Some("a\" b inf "));
    }

    #[test]
    fn layers_of_tensorrt_8_are_read() {
        let found = layers(
            r#"{"Layers": [{
                "Name": "Reformatting CopyNode for Input Tensor 0 to Conv_0",
                "LayerType": "Reformat",
                "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [1,3,224,224], "Format/Datatype": "Row major linear FP32"}],
                "Outputs": [{"Name": "y", "Location": "Device", "Dimensions": [1,3,224,224], "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
                "ParameterType": "Reformat", "Origin": "REFORMAT", "TacticValue": "0x0000000000000000"
            },{
                "Name": "Conv_0", "LayerType": "CaskConvolution",
                "Inputs": [{"Name": "y", "Dimensions": [1,3,224,224], "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
                "Outputs": [{"Name": "z", "Dimensions": [1,96,56,56], "Format/Datatype": "Row major linear FP32"}],
                "TacticName": "sm80_xmma_fprop", "TacticValue": "0x2"
            },{
                "Name": "Norm_1", "LayerType": "PluginV2",
                "Inputs": [{"Format/Datatype": "Row major linear FP32"}],
                "Outputs": [{"Format/Datatype": "Row major linear FP32"}]
            },{
                "Name": "Gather_2", "LayerType": "Gather",
                "Inputs": [{"Format/Datatype": "Row major Int32 format"}], "Outputs": []
            }], "Bindings": ["x", "z"]}"#,
        );
        let list: Vec<_> = found.layers.iter().map(|l| (l.kind.as_str(), l.precision, l.computes())).collect();
        assert_eq!(
            list,
            [
                ("Reformat", Precision::Fp16, false),
                ("CaskConvolution", Precision::Fp16, true),
                ("PluginV2", Precision::Fp32, true),
                ("Gather", Precision::Other, false),
            ]
        );
        assert_eq!(found.plugins_in_full(), ["Norm_1"]);
        assert_eq!(found.layers[1].tactic.as_deref(), Some("sm80_xmma_fprop"));
        assert_eq!(found.half_share(), Some((0.5, 2)));
    }

    #[test]
    fn formats_of_later_versions_are_read() {
        for (format, precision) in [
            ("Half", Precision::Fp16),
            ("Float", Precision::Fp32),
            ("BFloat16", Precision::Bf16),
            ("Row major linear FP16 format", Precision::Fp16),
            ("Two wide channel vectorized row major Int8 format", Precision::Int8),
            ("Int64", Precision::Other),
            ("Bool", Precision::Other),
            ("", Precision::Other),
        ] {
            assert_eq!(Precision::of_format(format), precision, "{format}");
        }
    }

    #[test]
    fn numbers_that_are_no_json_are_read() {
        let found = layers(
            r#"{"Layers": [{"Name": "inf \" nan", "LayerType": "NoOp", "Alpha": -inf, "Beta": [nan, inf, 1.0]}]}"#,
        );
        assert_eq!(found.layers[0].name, "inf \" nan");
    }

    #[test]
    fn names_alone_tell_no_precision() {
        let found = layers(r#"{"Layers": ["Conv_0", "Norm_1"], "Bindings": []}"#);
        assert_eq!(found.layers.len(), 2);
        assert_eq!(found.half_share(), None);
        assert!(Layers::parse(b"{}".to_vec()).is_err());
        assert!(Layers::parse(b"\xff".to_vec()).is_err());
    }
}
