//! The forms of a model that are compared with each other.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::onnx::Model;
use crate::onnx::proto::ModelProto;
use crate::rewrite::{self, ComputeCapability, Kind, Ledger, Standard, Target};

/// A form of a model.
#[derive(Clone, Debug)]
pub struct Variant {
    /// `native`, `canonical`, a kind of site, `without-KIND`, `all` or `blocks`; `docs/report.md` describes them.
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

/// The variant with all kinds of site fused, blocks and chains of them too, but for those that only `tune` tries.
pub const BLOCKS: &str = "blocks";

/// Not in [`BLOCKS`]: by themselves they were slower than the blocks that they are made of.
const FOR_TUNE: [Kind; 1] = [Kind::SequenceChain];

/// In [`BLOCKS`] in float16 on Hopper alone. Elsewhere chains are their blocks, with weights that are laid out anew each time, convolution blocks
/// and convolutions of tokens have no tensor cores, convolution layers no kernel of their own, and TNT's words and pixels and stacks of convolutions were measured on Hopper alone.
const FOR_HOPPER: [Kind; 9] = [
    Kind::BlockChain,
    Kind::ConvBlock,
    Kind::ConvLayer,
    Kind::ConvStack,
    Kind::MergedChain,
    Kind::PatchConv,
    Kind::TntWords,
    Kind::TokenChain,
    Kind::PixelEmbed,
];

/// `blocks-with-KIND` and `blocks-without-KIND`: blocks with one kind of them more, or one less.
const MORE: &str = "blocks-with-";
const LESS: &str = "blocks-without-";

/// Other ways to build a model as exported, which may give faster baselines, and what tells them to `trt-opt build`.
pub const AUDITS: [(&str, &[&str]); 2] =
    [("native-o5", &["--opt-level", "5"]), ("native-cublas", &["--tactics", "cublas,cublas-lt"])];

/// As exported, and in the form that TensorRT's own fusions recognise: no plugin in either.
pub fn without_plugins() -> [Variant; 2] {
    let canonical = rewrite::Options { target: Target::Native, ..Default::default() };
    [Variant { name: "native".into(), rewrite: None }, Variant::rewritten("canonical", canonical)]
}

fn kinds_of_blocks(default: &rewrite::Options) -> BTreeSet<Kind> {
    let hopper = default.compute_capability == Some(ComputeCapability::HOPPER);
    let left = |kind: &Kind| FOR_TUNE.contains(kind) || (FOR_HOPPER.contains(kind) && !hopper);
    Kind::ALL.into_iter().filter(|kind| !left(kind)).collect()
}

fn with_kinds(name: &str, kinds: BTreeSet<Kind>, default: &rewrite::Options) -> Variant {
    Variant::rewritten(name, rewrite::Options { kinds, ..default.clone() })
}

/// The variant `blocks-with-KIND` or `blocks-without-KIND`, if the name is one, and the kind makes a difference to the model.
pub fn of_blocks(name: &str, model: &Model, file: &str, default: &rewrite::Options) -> Result<Option<Variant>> {
    let kind = |prefix: &str| {
        let kind = name.strip_prefix(prefix)?;
        Kind::ALL.into_iter().find(|k| k.is_block() && k.name() == kind)
    };
    let mut kinds = kinds_of_blocks(default);
    let (kind, more) = match (kind(MORE), kind(LESS)) {
        (Some(kind), _) => (kind, true),
        (_, Some(kind)) => (kind, false),
        _ => return Ok(None),
    };
    if more {
        kinds.insert(kind);
    }
    let (_, ledger) = with_kinds(name, kinds.clone(), default).apply(model, file)?;
    let differs = ledger.is_some_and(|l| l.count(kind).fused > 0);
    if !more {
        kinds.remove(&kind);
    }
    Ok(differs.then(|| with_kinds(name, kinds, default)))
}

/// All variants: without plugins, with each fusion alone, with all but each, with all, and with blocks made of them, if the
/// model has any. But for kinds and sites, `default` says how they are rewritten.
///
/// What a variant does not fuse it has in its canonical form, so that no fusion is credited with the clean-up.
pub fn ladder(model: &Model, file: &str, default: &rewrite::Options) -> Result<Vec<Variant>> {
    let all = Variant::rewritten("all", default.clone());
    let blocks = with_kinds(BLOCKS, kinds_of_blocks(default), default);
    let (_, ledger) = all.apply(model, file)?;
    let fused = |kind: &Kind| ledger.as_ref().is_some_and(|l| l.count(*kind).fused > 0);
    let kinds: Vec<Kind> = Kind::DEFAULT.into_iter().filter(fused).collect();
    let leaving = |left: &dyn Fn(Kind) -> bool, name: String| {
        let standard = Kind::DEFAULT.into_iter().filter(|&k| left(k)).map(|kind| Standard {
            kind,
            node: None,
            reason: format!("the variant {name} leaves {kind} to TensorRT"),
        });
        let options = rewrite::Options { standard: standard.collect(), ..default.clone() };
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
    let (_, ledger) = blocks.apply(model, file)?;
    if ledger.is_some_and(|l| Kind::ALL.into_iter().any(|k| k.is_block() && l.count(k).fused > 0)) {
        variants.push(blocks);
    }
    Ok(variants)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn names(fixture: &str) -> Vec<String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{fixture}.onnx"));
        let model = crate::onnx::load(&path).unwrap();
        ladder(&model, fixture, &rewrite::Options::default()).unwrap().into_iter().map(|v| v.name).collect()
    }

    #[test]
    fn a_model_with_blocks_has_a_variant_of_them() {
        let vit = names("vit_ts17");
        assert_eq!(vit[..2], ["native", "canonical"]);
        assert_eq!(vit[vit.len() - 2..], ["all", BLOCKS]);
        let swin = names("swin_ts17");
        let alone = ["layernorm", "attention", "window", "patch-merge"];
        assert!(alone.iter().all(|kind| swin.iter().filter(|n| n.ends_with(kind)).count() == 2), "{swin:?}");
        assert!(!swin.iter().any(|n| n.contains("block") && n != BLOCKS), "{swin:?}");
        assert_eq!(names("spelling_attention_gather").last().map(String::as_str), Some("all"));
    }

    #[test]
    fn blocks_come_with_one_kind_more_or_less() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/swin_ts17.onnx");
        let model = crate::onnx::load(&path).unwrap();
        let variant = |name| of_blocks(name, &model, "swin", &rewrite::Options::default()).unwrap();
        let less = variant("blocks-without-mlp-block").unwrap();
        let (_, ledger) = less.apply(&model, "swin").unwrap();
        let ledger = ledger.unwrap();
        assert_eq!([Kind::MlpBlock, Kind::SwinAttnBlock].map(|k| ledger.count(k).fused), [0, 3]);
        // Of kinds that the model has not, of no kinds, and of other variants there are none.
        for name in [
            "blocks-with-tnt-words",
            "blocks-without-tnt-bridge",
            "blocks-without-gelu",
            "blocks-with-",
            "blocks",
            "all",
        ] {
            assert!(variant(name).is_none(), "{name}");
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tnt_ts17.onnx");
        let model = crate::onnx::load(&path).unwrap();
        let more = of_blocks("blocks-with-tnt-words", &model, "tnt", &rewrite::Options::default()).unwrap().unwrap();
        assert_eq!(more.apply(&model, "tnt").unwrap().1.unwrap().count(Kind::TntWords).fused, 1);
    }

    #[test]
    fn blocks_are_in_their_variant_and_in_no_other() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/swin_ts17.onnx");
        let model = crate::onnx::load(&path).unwrap();
        let hopper = rewrite::Options { compute_capability: Some(ComputeCapability::HOPPER), ..Default::default() };
        let blocks = |default: &rewrite::Options| with_kinds(BLOCKS, kinds_of_blocks(default), default);
        let asked = |v: Variant| {
            let asked = |kind| v.rewrite.as_ref().is_some_and(|options| options.kinds.contains(&kind));
            FOR_HOPPER.map(asked)
        };
        assert_eq!(
            [&hopper, &rewrite::Options::default()].map(|default| asked(blocks(default))),
            [[true; FOR_HOPPER.len()], [false; FOR_HOPPER.len()]]
        );
        for variant in ladder(&model, "swin", &hopper).unwrap() {
            let (_, ledger) = variant.apply(&model, "swin").unwrap();
            let count = |kind| ledger.as_ref().map_or(0, |l| l.count(kind).fused);
            let expected = if variant.name == BLOCKS { [3, 3, 0] } else { [0; 3] };
            let kinds = [Kind::MlpBlock, Kind::SwinAttnBlock, Kind::AttnBlock];
            assert_eq!(kinds.map(count), expected, "{}", variant.name);
            let asked = |kind| variant.rewrite.as_ref().is_some_and(|options| options.kinds.contains(&kind));
            let blocks = variant.name == BLOCKS;
            assert_eq!(FOR_HOPPER.map(asked), [blocks; FOR_HOPPER.len()], "{}", variant.name);
            assert_eq!(FOR_TUNE.map(asked), [false; FOR_TUNE.len()], "{}", variant.name);
        }
    }
}
