//! Golden texts: what the rewrite makes of the fixtures.
//!
//! A text that changes on purpose is accepted with
//!
//! ```text
//! INSTA_UPDATE=always cargo test --test golden
//! ```
//!
//! and its difference belongs into the review. Whether a rewrite is right is not for this file to say:
//! `tests/equivalence.rs` proves that in ONNX Runtime.

use std::path::Path;

use trt_opt::rewrite::{Kind, Options, Target};
use trt_opt::testing;

/// The hand-made spellings of one pattern each, before and after.
#[test]
fn spellings() {
    insta::glob!("fixtures/spelling_*.onnx", |path| {
        insta::with_settings!({ description => "before and after, sites", omit_expression => true }, {
            insta::assert_snapshot!(testing::rewrite(path).unwrap().before_after());
        });
    });
}

/// Miniatures of whole models, after.
#[test]
fn models() {
    insta::glob!("fixtures/{swin,vit,tnt,ptnt,uniformer}_{ts17_dyn,dy20}.onnx", |path| {
        insta::with_settings!({ description => "after, sites", omit_expression => true }, {
            let rewrite = testing::rewrite(path).unwrap();
            insta::assert_snapshot!(format!("{}\n{}", rewrite.after(), rewrite.sites()));
        });
    });
}

/// The same without plugins.
#[test]
fn native() {
    for name in ["swin_ts17_dyn", "vit_dy23"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.onnx"));
        let options = Options { target: Target::Native, ..Options::default() };
        let rewrite = testing::rewrite_with(path, &options).unwrap();
        insta::with_settings!({ description => "after for --target native, sites", omit_expression => true }, {
            insta::assert_snapshot!(format!("native_{name}"), format!("{}\n{}", rewrite.after(), rewrite.sites()));
        });
    }
}

/// With GELUs that have their offsets; those behind convolutions stay.
#[test]
fn bias_gelus() {
    for name in ["vit_ts17_dyn", "uniformer_ts17_dyn"] {
        with_kind(Kind::BiasGelu, "bias_gelu", name);
    }
}

/// With the convolution blocks of the first stage on tokens.
#[test]
fn token_convs() {
    with_kind(Kind::TokenConv, "token_conv", "uniformer_ts17_dyn");
}

/// With the token mixers of these blocks as one node each.
#[test]
fn conv_blocks() {
    with_kind(Kind::ConvBlock, "conv_block", "uniformer_ts17_dyn");
}

/// With an embedding of the tokens that this puts the first stage on.
#[test]
fn embeddings_of_tokens() {
    with_kinds(&[Kind::TokenConv, Kind::PatchEmbed], "patch_embed", "uniformer_ts17_dyn");
}

/// With the words of the image as one node.
#[test]
fn pixel_embeds() {
    with_kind(Kind::PixelEmbed, "pixel_embed", "tnt_ts17_dyn");
}

/// With the ends of models as one node each: a mean behind a norm, a class token, a mean alone.
#[test]
fn classifiers() {
    for name in ["swin_ts17_dyn", "vit_ts17_fp16", "uniformer_ts17_dyn"] {
        with_kind(Kind::Classifier, "classifier", name);
    }
}

/// With the stem as one node.
#[test]
fn conv_stacks() {
    with_kind(Kind::ConvStack, "conv_stack", "ptnt_ts17_dyn");
}

/// With the merges of patches and words as one node each.
#[test]
fn patch_convs() {
    with_kind(Kind::PatchConv, "patch_conv", "ptnt_ts17_dyn");
}

fn with_kind(kind: Kind, snapshot: &str, name: &str) {
    with_kinds(&[kind], snapshot, name);
}

fn with_kinds(kinds: &[Kind], snapshot: &str, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.onnx"));
    let mut options = Options::default();
    options.kinds.extend(kinds.iter().flat_map(|kind| kind.made_of().iter().chain([kind])));
    let rewrite = testing::rewrite_with(path, &options).unwrap();
    let also: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    let description = format!("after for --also {}, sites", also.join(","));
    insta::with_settings!({ description => description, omit_expression => true }, {
        insta::assert_snapshot!(format!("{snapshot}_{name}"), format!("{}\n{}", rewrite.after(), rewrite.sites()));
    });
}
