//! The forms of a model that are compared with each other.

use crate::error::Result;
use crate::onnx::Model;
use crate::onnx::proto::ModelProto;
use crate::rewrite::{self, Kind, Ledger, Standard, Target};

/// A form of a model.
#[derive(Clone, Debug)]
pub struct Variant {
    /// `native`, `canonical`, a kind of site, `without-KIND` or `all`; `docs/report.md` describes them.
    pub name: String,
    /// `None`: as it was exported.
    pub rewrite: Option<rewrite::Options>,
}

impl Variant {
    fn rewritten(name: impl Into<String>, options: rewrite::Options) -> Self {
        Self { name: name.into(), rewrite: Some(options) }
    }

    /// The model in this form, and what became of its sites.
    pub fn apply(&self, model: &Model, file: &str) -> Result<(ModelProto, Option<Ledger>)> {
        let mut proto = model.proto.clone();
        let ledger = match &self.rewrite {
            Some(options) => Some(rewrite::fuse(&mut proto, file, options, &mut |_, _| {})?),
            None => None,
        };
        Ok((proto, ledger))
    }
}

/// As exported, and in the form that TensorRT's own fusions recognise: no plugin in either.
pub fn without_plugins() -> [Variant; 2] {
    let canonical = rewrite::Options { target: Target::Native, ..Default::default() };
    [Variant { name: "native".into(), rewrite: None }, Variant::rewritten("canonical", canonical)]
}

/// All variants: without plugins, with each fusion alone, with all but each, and with all.
///
/// What a variant does not fuse it has in its canonical form, so that no fusion is credited with the clean-up.
pub fn ladder(model: &Model, file: &str, target: Target) -> Result<Vec<Variant>> {
    let all = Variant::rewritten("all", rewrite::Options { target, ..Default::default() });
    let (_, ledger) = all.apply(model, file)?;
    let fused = |kind: &Kind| ledger.as_ref().is_some_and(|l| l.count(*kind).fused > 0);
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(fused).collect();
    let leaving = |left: &dyn Fn(Kind) -> bool, name: String| {
        let standard = Kind::ALL.into_iter().filter(|&k| left(k)).map(|kind| Standard {
            kind,
            node: None,
            reason: format!("the variant {name} leaves {kind} to TensorRT"),
        });
        let options = rewrite::Options { target, standard: standard.collect(), ..Default::default() };
        Variant::rewritten(name, options)
    };
    let mut variants: Vec<Variant> = without_plugins().into();
    // Of one kind of fusion all is that fusion alone.
    if kinds.len() > 1 {
        variants.extend(kinds.iter().map(|&kind| leaving(&|k| k != kind, kind.name().to_owned())));
        variants.extend(kinds.iter().map(|&kind| leaving(&|k| k == kind, format!("without-{kind}"))));
    }
    if !kinds.is_empty() {
        variants.push(all);
    }
    Ok(variants)
}
