//! The rules, one file a kind of site.
//!
//! Order matters, and [`run`] says why. Every rule notes each of its sites in the ledger, fused or not.

mod attention;
mod attn_block;
mod batch_norm;
mod bias_gelu;
mod block;
mod block_chain;
mod classifier;
mod conv_block;
mod conv_layer;
mod conv_stack;
mod depthwise_conv;
mod gelu;
mod layer_norm;
mod merged_chain;
mod mlp_block;
mod norm_pool;
mod patch_conv;
mod patch_embed;
mod patch_merge;
mod patch_merge_block;
mod permutation;
mod pixel_embed;
mod pooled_attn_block;
mod projections;
mod residual;
mod straighten;
mod tnt_bridge;
mod tnt_front;
mod tnt_inner_block;
mod tnt_words;
mod token_conv;
mod token_map;
mod token_mean;
mod token_pool;
mod window;

use crate::error::Result;
use crate::rewrite::engine::Engine;

pub fn run(engine: &mut Engine) -> Result<()> {
    // Norms and GELUs first: they are closed patterns, and the others build on the fused norms.
    layer_norm::run(engine)?;
    gelu::run(engine)?;
    // Before the windows: a window's reverse ends at what the attention gives.
    attention::run(engine)?;
    projections::run(engine)?;
    window::run(engine)?;
    patch_merge::run(engine)?;
    // Blocks are made of fused norms, attentions, windows and canonical GELUs, and take the residual adds around them:
    // each kind first the one after it, and attention blocks then the one before, which may be that of an MLP block.
    // The whole before its halves.
    tnt_inner_block::run(engine)?;
    // What an embedding and a bridge give is the stream of the blocks after them.
    patch_embed::run(engine)?;
    // On the tokens of embeddings.
    depthwise_conv::run(engine)?;
    tnt_bridge::run(engine)?;
    // The adds that it leaves go into the attention blocks.
    tnt_words::run(engine)?;
    attn_block::run(engine)?;
    mlp_block::run(engine)?;
    // Of blocks as they are, before they take residual adds: those in front of a chain stay outside.
    block_chain::run(engine)?;
    attn_block::residuals(engine)?;
    tnt_bridge::residuals(engine)?;
    // What residual adds the windows and blocks have left goes into the patch merges and norms.
    patch_merge::residuals(engine)?;
    // With that add.
    patch_merge_block::run(engine)?;
    // Of these and the chains behind them.
    merged_chain::run(engine)?;
    residual::run(engine)?;
    // Takes the norms with the adds that they have taken.
    norm_pool::run(engine)?;
    // Behind all that may know a scale or shift as part of its pattern.
    batch_norm::run(engine)?;
    // Behind the norms with a mean over all tokens, which is another pattern.
    token_pool::run(engine)?;
    // With the norms in its products.
    token_conv::run(engine)?;
    // The MLPs of its products, which have no norm.
    mlp_block::run(engine)?;
    // Of what that leaves.
    conv_block::run(engine)?;
    // Of these with the MLPs behind them.
    conv_layer::run(engine)?;
    // Once stages are on tokens.
    patch_embed::of_tokens(engine)?;
    // The norms that no residual add has gone into, and words in one movement or several.
    patch_conv::run(engine)?;
    // The GELUs that no block has taken, those behind its products too.
    bias_gelu::run(engine)?;
    // With what is left of the maps of tokens.
    token_mean::run(engine)?;
    // The means that the rules of norms and pools have left.
    classifier::run(engine)?;
    // The movements around a convolution, behind the words that it makes.
    pixel_embed::run(engine)?;
    // Likewise, and with the adds that follow.
    conv_stack::run(engine)?;
    // Behind all that know a movement as part of their pattern.
    permutation::run(engine)?;
    // Last: the others leave Reshapes behind each other.
    straighten::run(engine)?;
    Ok(())
}
