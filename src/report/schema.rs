//! What a report file holds. `docs/report.md` describes the JSON.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::measure::Plan;

/// Changes when a field is removed or changes its meaning, and when one is added: readers of this crate refuse what they
/// do not know, so that merging never loses a field.
pub const SCHEMA: u32 = 1;

/// The model that all ratios are to.
pub const REFERENCE_MODEL: &str = "resnet50";

/// The measurements of one or several runs on one kind of GPU with one version of TensorRT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// By run id. A run is one process that measured its subjects interleaved; only figures of one run are compared.
    pub environment: BTreeMap<String, Environment>,
    pub rows: Vec<Row>,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub goals: Vec<Goal>,
}

impl Default for Report {
    fn default() -> Self {
        Self { schema: SCHEMA, environment: BTreeMap::new(), rows: vec![], goals: vec![] }
    }
}

/// Where and how a run was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// As the driver names it: `NVIDIA H100 80GB HBM3`.
    pub gpu: String,
    pub driver: String,
    /// Of the CUDA runtime.
    pub cuda: String,
    /// Of the library that built and ran the engines.
    pub tensorrt: String,
    /// Version of the TensorRT headers that the program was built against.
    pub headers: String,
    /// Of the program.
    pub commit: String,
    /// When the run started.
    pub date: Timestamp,
    pub command: String,
    /// Clocks during the run: locked or not, and at what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clocks: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One engine, measured in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// `swin_t`, `resnet50`, ...
    pub model: String,
    pub variant: Variant,
    pub precision: Precision,
    pub batch: u32,
    pub mode: Mode,
    /// Microseconds of one inference of the whole batch.
    pub p50_us: f64,
    pub p99_us: f64,
    /// Bootstrap interval of `p50_us`.
    pub interval_us: [f64; 2],
    /// Kernel nodes in the captured CUDA graph.
    pub kernels: Option<u32>,
    /// Size of the serialized engine in 10^6 bytes.
    pub engine_mb: Option<f64>,
    /// GPU memory that the execution context needs for activations and workspace, in 10^6 bytes.
    pub device_mb: Option<f64>,
    /// `||out - ref|| / ||ref||` of the outputs against fp32 in ONNX Runtime.
    pub rel_err: Option<f64>,
    /// `p50_us` over that of the `native` [`REFERENCE_MODEL`] in fp16, of the same run, batch and mode.
    /// [`Report::form_ratios`] fills it in.
    pub x_resnet50: Option<f64>,
    /// Of `x_resnet50`, paired by round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_resnet50_interval: Option<[f64; 2]>,
    /// Id of the run, a key of [`Report::environment`].
    pub run: String,
    /// Estimates of the cost model for the model as exported, and as this engine has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<BeforeAfter>,
    /// A profile of the engine, in the order of execution. Layers that never run are not written.
    #[serde(default, skip_serializing_if = "none_runs", serialize_with = "those_that_run")]
    pub layers: Vec<Layer>,
    /// What has to be said of the build: what a tuned engine chose, what was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What the cost model expects, before and after a rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeforeAfter {
    pub before: Estimate,
    pub after: Estimate,
}

/// What the cost model expects of one inference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// Read and written in GPU memory.
    pub bytes: u64,
    /// Kernels launched.
    pub launches: f64,
}

/// One layer of an engine, as TensorRT's profiler reports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    pub name: String,
    /// As the engine inspector names it; empty if it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub r#type: String,
    /// Median over the profiled inferences, in microseconds.
    pub us: f64,
}

impl Layer {
    /// TensorRT's profiler lists layers, too, that have no work left.
    pub fn runs(&self) -> bool {
        self.us != 0.0
    }
}

fn none_runs(layers: &[Layer]) -> bool {
    !layers.iter().any(Layer::runs)
}

fn those_that_run<S: serde::Serializer>(layers: &[Layer], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(layers.iter().filter(|layer| layer.runs()))
}

/// A ratio to ResNet-50 that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    pub model: String,
    pub precision: Precision,
    pub batch: u32,
    pub mode: Mode,
    /// At most this.
    pub x_resnet50: f64,
}

impl Goal {
    pub fn setting(&self) -> Setting {
        Setting { precision: self.precision, batch: self.batch, mode: self.mode }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    Fp16,
    Fp32,
}

/// How inferences are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Replay of a captured CUDA graph.
    Graph,
    /// A call of `enqueue` each.
    Enqueue,
}

impl Precision {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Fp32 => "fp32",
        }
    }
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Enqueue => "enqueue",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What has to be equal for two engines of a model to be comparable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Setting {
    pub precision: Precision,
    pub batch: u32,
    pub mode: Mode,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, batch {}, {}", self.precision, self.batch, self.mode)
    }
}

/// What was done to the model: lower-case letters, digits and single hyphens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Variant(String);

/// What kind of variant a name stands for. The order is that of tables and charts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// `native`, `native-cublas`, `native-opset13`, `native-o5`, ...: the model as exported, built in one way or another.
    Native,
    /// `canonical`: after `fuse --target native`, without any plugin.
    Canonical,
    /// Any other name: that fusion and no other.
    Alone,
    /// `without-NAME`: all fusions but one.
    Without,
    /// `all`, or `all-...`; `blocks`: also those of whole blocks.
    All,
    /// `tuned`, or `tuned-...`: what was measured to be fastest.
    Tuned,
    /// `torch-compile`, or `torch-...`: not TensorRT at all.
    Torch,
}

impl Variant {
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !name.split('-').all(word) {
            return Err(Error::Usage(format!(
                "variant {name:?}: expected words of lower-case letters and digits, joined by single hyphens"
            )));
        }
        Ok(Self(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn class(&self) -> Class {
        let first = self.0.split('-').next().unwrap_or_default();
        match (first, self.0.as_str()) {
            ("native", _) => Class::Native,
            (_, "canonical") => Class::Canonical,
            ("all" | "blocks", _) => Class::All,
            ("tuned", _) => Class::Tuned,
            ("torch", _) => Class::Torch,
            _ if self.left_out().is_some() => Class::Without,
            _ => Class::Alone,
        }
    }

    /// The fusion that `without-NAME` leaves out.
    pub fn left_out(&self) -> Option<&str> {
        self.0.strip_prefix("without-")
    }
}

impl TryFrom<String> for Variant {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<Variant> for String {
    fn from(variant: Variant) -> Self {
        variant.0
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Row {
    pub fn setting(&self) -> Setting {
        Setting { precision: self.precision, batch: self.batch, mode: self.mode }
    }

    /// For messages.
    pub fn place(&self) -> String {
        format!("{} {} ({}, run {})", self.model, self.variant, self.setting(), self.run)
    }

    /// Whether two rows measure the same thing, be it in different runs.
    pub fn same_subject(&self, other: &Self) -> bool {
        self.model == other.model && self.variant == other.variant && self.setting() == other.setting()
    }
}

impl Report {
    /// The row that ratios to ResNet-50 are formed with, for rows of this run, batch and mode: its fastest native engine.
    pub fn reference(&self, run: &str, batch: u32, mode: Mode) -> Option<&Row> {
        let setting = Setting { precision: Precision::Fp16, batch, mode };
        let native = |r: &&Row| r.run == run && r.setting() == setting && r.variant.class() == Class::Native;
        let rows = self.rows.iter().filter(native).filter(|r| r.model == REFERENCE_MODEL);
        rows.min_by(|a, b| a.p50_us.total_cmp(&b.p50_us))
    }

    /// Fills in `x_resnet50` of every row, from its own run alone. Where that run did not measure ResNet-50 it is
    /// null, which the warnings returned say, once for each run, batch and mode.
    pub fn form_ratios(&mut self) -> Vec<String> {
        let mut warnings = vec![];
        let ratios: Vec<Option<f64>> = self
            .rows
            .iter()
            .map(|row| match self.reference(&row.run, row.batch, row.mode) {
                Some(reference) => Some(row.p50_us / reference.p50_us),
                None => {
                    let warning = format!(
                        "run {} has no native {REFERENCE_MODEL} (fp16, batch {}, {}): its rows have no ratio to it",
                        row.run, row.batch, row.mode
                    );
                    if !warnings.contains(&warning) {
                        warnings.push(warning);
                    }
                    None
                }
            })
            .collect();
        for (row, ratio) in self.rows.iter_mut().zip(ratios) {
            row.x_resnet50 = ratio;
            if ratio.is_none() {
                row.x_resnet50_interval = None;
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variants_have_a_class() {
        for (name, class) in [
            ("native", Class::Native),
            ("native-cublas", Class::Native),
            ("native-o5", Class::Native),
            ("canonical", Class::Canonical),
            ("layernorm", Class::Alone),
            ("patch-merge", Class::Alone),
            ("without-patch-merge", Class::Without),
            ("all", Class::All),
            ("all-first-family", Class::All),
            ("blocks", Class::All),
            ("tuned", Class::Tuned),
            ("torch-compile", Class::Torch),
            ("nativelike", Class::Alone),
        ] {
            assert_eq!(Variant::new(name).unwrap().class(), class, "{name}");
        }
        assert_eq!(Variant::new("without-patch-merge").unwrap().left_out(), Some("patch-merge"));
        for bad in ["", "All", "a b", "a--b", "-a", "a-", "a_b", "é"] {
            let error = Variant::new(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
