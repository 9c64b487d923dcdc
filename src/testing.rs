//! Snapshot tests of rewrites of your own models.
//!
//! Three lines pin down what the toolkit makes of a model, and a fourth proves that it still computes the same:
//!
//! ```no_run
//! let rewrite = trt_opt::testing::rewrite("model.onnx")?;
//! # #[cfg(any())]
//! insta::assert_snapshot!(rewrite.before_after());
//! rewrite.assert_equivalent();
//! # Ok::<(), trt_opt::Error>(())
//! ```
//!
//! `examples/snapshot.rs` is such a test. The texts are those of [`crate::ir::print()`] without hashes of weights, so
//! they change when the graph does and not when the model is trained again.

use std::fmt::Write as _;
use std::path::Path;

use crate::error::Result;
use crate::ir::{Graph, diff, print};
use crate::onnx::{self, Model};
use crate::rewrite::{self, Ledger, Options, Status, fp16};
use crate::text;
use crate::verify::{self, Report, Source};

/// A model before and after its rewrite.
#[derive(Debug)]
pub struct Rewrite {
    name: String,
    before: Model,
    after: Model,
    ledger: Ledger,
    print: print::Options,
}

/// Rewrites the model of a file with the default options: everything is fused, for TensorRT 8 with plugins.
pub fn rewrite(path: impl AsRef<Path>) -> Result<Rewrite> {
    rewrite_with(path, &Options::default())
}

/// Rewrites the model of a file.
pub fn rewrite_with(path: impl AsRef<Path>, options: &Options) -> Result<Rewrite> {
    let model = onnx::load(path.as_ref())?;
    onnx::check_supported(&model)?;
    rewrite_model(model, options)
}

/// Rewrites a model in memory.
pub fn rewrite_model(model: Model, options: &Options) -> Result<Rewrite> {
    let name = model.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut after = model.clone();
    let ledger = rewrite::fuse(&mut after.proto, &name, options, &mut |_, _| {})?;
    let print = print::Options { hashes: false, ..print::Options::default() };
    Ok(Rewrite { name, before: model, after, ledger, print })
}

impl Rewrite {
    /// Converts the rewritten model to float16, calibrated in ONNX Runtime on the inputs that the options say.
    pub fn to_fp16(mut self, options: &verify::Options) -> Result<Self> {
        let ranges = match fp16::is_convertible(&self.after.proto)? {
            true => Some(verify::calibrate(&self.after, "rewritten", options, &mut |_, _| {})?),
            false => None,
        };
        let account = fp16::convert(&mut self.after.proto, ranges.as_ref(), &fp16::Options::default())?;
        self.ledger.precision = Some(account);
        Ok(self)
    }

    /// Changes what the texts show.
    pub fn show(mut self, options: print::Options) -> Self {
        self.print = options;
        self
    }

    /// The text of the model as it was.
    pub fn before(&self) -> String {
        self.text(&self.before)
    }

    /// The text of the rewritten model.
    pub fn after(&self) -> String {
        self.text(&self.after)
    }

    /// Both texts and the account of the sites: what to keep as a snapshot.
    pub fn before_after(&self) -> String {
        format!("== before\n{}\n== after\n{}\n== sites\n{}", self.before(), self.after(), self.sites())
    }

    /// The difference of the texts, in unified form. Shorter than both texts where little changes.
    pub fn diff(&self) -> String {
        match (graph(&self.before), graph(&self.after)) {
            (Ok(a), Ok(b)) => diff(&a, &b, &self.print).unified("before", "after", 2),
            (Err(error), _) | (_, Err(error)) => format!("{error}\n"),
        }
    }

    /// Every site of the model in one line: its kind, what became of it, and why.
    pub fn sites(&self) -> String {
        let mut text = String::new();
        for site in &self.ledger.sites {
            let status = match site.status {
                Status::Fused => "fused",
                Status::Kept => "kept",
                Status::Missed => "missed",
            };
            let _ = write!(text, "{status} {} {:?}", site.kind, site.node);
            if let Some(rule) = &site.rule {
                let _ = write!(text, " ({rule})");
            }
            for (label, part) in [("", &site.reason), ("expected ", &site.expected), ("found ", &site.found)] {
                if let Some(part) = part {
                    let _ = write!(text, "; {label}{part}");
                }
            }
            text.push('\n');
        }
        text
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The rewritten model.
    pub fn model(&self) -> &Model {
        &self.after
    }

    /// What stays in float32 after [`Rewrite::to_fp16`]: a line for each island and for each of its reasons.
    pub fn precision(&self) -> String {
        let Some(account) = &self.ledger.precision else { return String::new() };
        let (nodes, casts) = (account.nodes, account.casts);
        let mut text = format!("float16 {}, float32 {}, casts {casts}\n", nodes.float16, nodes.float32);
        for island in &account.islands {
            let _ = writeln!(text, "island {}", island.nodes.join(", "));
            for cause in &island.causes {
                let _ = writeln!(text, "  {} at {:?}: {}", cause.kind.name(), cause.node, cause.reason);
            }
        }
        for note in &account.notes {
            let _ = writeln!(text, "note {note}");
        }
        text
    }

    /// Runs both models in ONNX Runtime on the same inputs and compares their outputs.
    pub fn compare(&self, options: &verify::Options) -> Result<Report> {
        let converted = self.ledger.precision.as_ref().is_some_and(|p| p.converted);
        let rtol = options.rtol.or(converted.then_some(verify::RTOL_CONVERTED));
        let options = &verify::Options { rtol, ..options.clone() };
        let before = Source::Model { name: &self.name, model: &self.before };
        verify::compare(before, Source::Model { name: "rewritten", model: &self.after }, options)
    }

    /// Panics unless both models compute the same in ONNX Runtime, within the default tolerances.
    #[track_caller]
    pub fn assert_equivalent(&self) {
        self.assert_equivalent_with(&verify::Options::default());
    }

    /// Panics unless both models compute the same in ONNX Runtime.
    #[track_caller]
    pub fn assert_equivalent_with(&self, options: &verify::Options) {
        if let Err(error) = self.compare(options).and_then(|report| report.check()) {
            panic!("{}: the rewrite is not proved equivalent: {error}", self.name);
        }
    }

    fn text(&self, model: &Model) -> String {
        match graph(model) {
            Ok(graph) => print::print_with(&graph, &self.print),
            Err(error) => format!("{error}\n"),
        }
    }
}

fn graph(model: &Model) -> Result<Graph> {
    text::graph(model.proto.clone(), false)
}
