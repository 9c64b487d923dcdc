//! The account of every place where a fusion could have happened.
//!
//! [`Ledger`] serializes to the JSON that `trt-opt fuse --ledger` writes; `docs/ledger.md` describes it.
//! Its `version` changes when a field is removed or changes meaning, not when one is added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fp16::Precision;

pub const VERSION: u32 = 1;

/// What kind of pattern a site is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[clap(rename_all = "kebab-case")]
pub enum Kind {
    #[value(name = "layernorm")]
    #[serde(rename = "layernorm")]
    LayerNorm,
    Attention,
    Gelu,
    Window,
    PatchMerge,
    /// A norm, two products with a GELU between them, and the residual add, as one op.
    MlpBlock,
    /// A norm, a window attention with both of its projections, and the residual add, as one op.
    SwinAttnBlock,
    /// A norm, an attention without windows with both of its projections, and the residual add, as one op.
    AttnBlock,
    /// A transformer block over few tokens, such as the words of TNT: attention and MLP with their norms and adds, as one op.
    TntInnerBlock,
    /// What TNT adds of the words of a patch to its token: a product between two norms, and the add, as one op.
    TntBridge,
    /// A patch merge, with its norm, and the product behind it, as one op.
    PatchMergeBlock,
    /// A convolution whose strides are its kernel, as tokens, and the norm behind it, as one op.
    PatchEmbed,
    /// The blocks over words of all layers of TNT, and the bridges from any of these words to tokens, as one op.
    TntWords,
    /// A GELU and the offset of the matrix product before it, as one op.
    BiasGelu,
    /// A depthwise convolution of a map that lies as tokens, with the residual add around it, as one op.
    DepthwiseConv,
    /// Attention blocks in windows and MLP blocks in turn, each of which reads what the one before gives, as one op.
    BlockChain,
    /// Depthwise convolutions between 1x1 convolutions, and all that is around them of the same map, on tokens.
    TokenConv,
    /// As [`Kind::BlockChain`], of attention blocks without windows.
    SequenceChain,
    /// As [`Kind::SequenceChain`], with what the words of TNT add to the tokens between its pairs.
    TokenChain,
    /// As [`Kind::BlockChain`], with the patch merge ahead of it.
    MergedChain,
    /// A depthwise convolution between two products on tokens, and the residual add around them, as one op.
    ConvBlock,
    /// A position encoding, a convolution block and an MLP block in turn, each of which reads what the one before gives, as one op.
    ConvLayer,
    /// A norm, the mean over all tokens or one of them, and the product with the weights of the classes, as one op.
    Classifier,
    /// A convolution of tokens that makes tokens, such as a merge of patches between two stages, and the norm before it, as one op.
    PatchConv,
    /// A convolution that makes the words of patches, such as those of TNT, with what is added to them, as one op.
    PixelEmbed,
    /// Convolutions of an image one behind another with their ReLUs, such as the stem of PyramidTNT, which make tokens and words of patches, as one op.
    ConvStack,
}

impl Kind {
    pub const ALL: [Self; 26] = [
        Self::LayerNorm,
        Self::Attention,
        Self::Gelu,
        Self::Window,
        Self::PatchMerge,
        Self::MlpBlock,
        Self::SwinAttnBlock,
        Self::AttnBlock,
        Self::TntInnerBlock,
        Self::TntBridge,
        Self::PatchMergeBlock,
        Self::PatchEmbed,
        Self::TntWords,
        Self::BiasGelu,
        Self::DepthwiseConv,
        Self::BlockChain,
        Self::TokenConv,
        Self::SequenceChain,
        Self::TokenChain,
        Self::MergedChain,
        Self::ConvBlock,
        Self::ConvLayer,
        Self::Classifier,
        Self::PatchConv,
        Self::PixelEmbed,
        Self::ConvStack,
    ];
    /// The kinds that are fused unless something else is asked for: blocks are not, since whether one is faster than
    /// its parts depends on the sizes and the GPU.
    pub const DEFAULT: [Self; 5] = [Self::LayerNorm, Self::Attention, Self::Gelu, Self::Window, Self::PatchMerge];

    /// Whether sites of this kind are made of fused sites of other kinds.
    pub fn is_block(self) -> bool {
        !Self::DEFAULT.contains(&self)
    }

    /// Of a kind that is made of blocks of other kinds: those.
    pub fn made_of(self) -> &'static [Self] {
        match self {
            Self::TntWords => &[Self::TntInnerBlock, Self::TntBridge],
            Self::BlockChain => &[Self::SwinAttnBlock, Self::MlpBlock],
            Self::SequenceChain => &[Self::AttnBlock, Self::MlpBlock],
            Self::TokenChain => {
                &[Self::AttnBlock, Self::MlpBlock, Self::TntInnerBlock, Self::TntBridge, Self::TntWords]
            }
            Self::MergedChain => &[Self::PatchMergeBlock, Self::SwinAttnBlock, Self::MlpBlock, Self::BlockChain],
            Self::ConvBlock => &[Self::TokenConv],
            Self::ConvLayer => &[Self::TokenConv, Self::MlpBlock, Self::ConvBlock],
            _ => &[],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::LayerNorm => "layernorm",
            Self::Attention => "attention",
            Self::Gelu => "gelu",
            Self::Window => "window",
            Self::PatchMerge => "patch-merge",
            Self::MlpBlock => "mlp-block",
            Self::SwinAttnBlock => "swin-attn-block",
            Self::AttnBlock => "attn-block",
            Self::TntInnerBlock => "tnt-inner-block",
            Self::TntBridge => "tnt-bridge",
            Self::PatchMergeBlock => "patch-merge-block",
            Self::PatchEmbed => "patch-embed",
            Self::TntWords => "tnt-words",
            Self::BiasGelu => "bias-gelu",
            Self::DepthwiseConv => "depthwise-conv",
            Self::BlockChain => "block-chain",
            Self::TokenConv => "token-conv",
            Self::SequenceChain => "sequence-chain",
            Self::TokenChain => "token-chain",
            Self::MergedChain => "merged-chain",
            Self::ConvBlock => "conv-block",
            Self::ConvLayer => "conv-layer",
            Self::Classifier => "classifier",
            Self::PatchConv => "patch-conv",
            Self::PixelEmbed => "pixel-embed",
            Self::ConvStack => "conv-stack",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Replaced by the node `into`.
    Fused,
    /// Left in, or brought into, the form that the target fuses by itself.
    Kept,
    /// Not fused; `reason` says why.
    Missed,
}

/// One place of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    pub kind: Kind,
    pub status: Status,
    /// The node of the original model that the site is known by.
    pub node: String,
    /// The rule that fused it, or that came closest.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<String>,
    /// The node of the new model that computes it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub into: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub found: Option<String>,
}

impl Site {
    pub fn new(kind: Kind, status: Status, node: &str, rule: &str) -> Self {
        Self {
            kind,
            status,
            node: node.into(),
            rule: Some(rule.into()),
            into: None,
            reason: None,
            expected: None,
            found: None,
        }
    }

    /// Names the node that computes the site now.
    pub fn into_node(mut self, name: &str) -> Self {
        self.into = Some(name.into());
        self
    }

    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub total: usize,
    pub fused: usize,
    pub kept: usize,
    pub missed: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    pub version: u32,
    /// File name of the model.
    pub model: String,
    pub target: String,
    pub sites: Vec<Site>,
    /// A count for every kind, also where there is no site.
    pub summary: BTreeMap<String, Count>,
    /// Patches that each rule made, clean-up included.
    #[serde(default)]
    pub patches: BTreeMap<String, usize>,
    /// The conversion to float16, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub precision: Option<Precision>,
}

impl Ledger {
    pub fn new(model: &str, target: &str, sites: Vec<Site>, patches: BTreeMap<String, usize>) -> Self {
        let mut summary: BTreeMap<String, Count> =
            Kind::ALL.iter().map(|k| (k.name().to_owned(), Count::default())).collect();
        for site in &sites {
            let count = summary.entry(site.kind.name().to_owned()).or_default();
            count.total += 1;
            match site.status {
                Status::Fused => count.fused += 1,
                Status::Kept => count.kept += 1,
                Status::Missed => count.missed += 1,
            }
        }
        Self { version: VERSION, model: model.into(), target: target.into(), sites, summary, patches, precision: None }
    }

    pub fn count(&self, kind: Kind) -> Count {
        self.summary.get(kind.name()).copied().unwrap_or_default()
    }

    /// Sites of the kind that were neither fused nor kept.
    pub fn missed(&self, kind: Kind) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(move |s| s.kind == kind && s.status == Status::Missed)
    }
}
