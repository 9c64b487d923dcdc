#include "attn_block.cuh"
#include "attn_chain.h"
#include "attn_fused_wide.h"
#include "wide_blocks.h"

namespace trt_opt {
namespace {

bool valid(const AttnBlockProblem& q) {
    const AttentionProblem& a = q.attention;
    const WindowGrid& g = a.window;
    auto positive = [](int32_t v) { return v > 0; };
    const bool sizes = q.images >= 0 && positive(q.channels) && q.channels <= kAttnMaxChannels && positive(a.heads) && positive(a.dim) && a.dim <= 128 &&
                       int64_t{a.heads} * a.dim <= kAttnMaxChannels;
    if (!g.used()) return sizes && positive(q.tokens) && q.tokens <= kAttnMaxTokens;
    return sizes && positive(g.window_w) && positive(g.grid_h) && positive(g.grid_w) && g.shift_h >= 0 && g.shift_w >= 0 &&
           int64_t{g.grid_h} * g.grid_w <= (int64_t{1} << 30) && g.window_tokens() <= kAttnMaxTokens && g.windows() * g.window_tokens() <= (int64_t{1} << 30);
}

bool wide_fits(const AttnBlockProblem& q, int32_t tactic) {
    return WidePair::is_id(tactic) && attn_wide_valid(WidePair::of(tactic), q) &&
           aligned_to(16, q.x, q.residual, q.norm_scale, q.norm_bias, q.w_qkv, q.b_qkv, q.w_proj, q.b_proj, q.y);
}

bool fused_fits(const AttnBlockProblem& q, int32_t tactic) {
    return AttnFusedPlan::is_id(tactic) && attn_fused_valid(AttnFusedPlan::of(tactic), q) && aligned_to(16, q.x, q.residual, q.norm_scale, q.norm_bias, q.w_qkv, q.b_qkv, q.w_proj, q.b_proj, q.y);
}

// Those for many rows, best guess first.
std::vector<int32_t> many_rows_tactics(const AttnBlockProblem& q) {
    std::vector<int32_t> tactics;
    const std::vector<WidePair> pairs = attn_wide_pairs(q);
    for (const WidePair& pair : pairs) tactics.push_back(pair.id());
    const std::vector<AttnFusedPlan> plans = attn_fused_plans(q);
    const bool first = !plans.empty() && (pairs.empty() || attn_fused_cost(plans.front(), q) < attn_wide_cost(pairs.front(), q));
    auto at = first ? tactics.begin() : tactics.end();
    for (const AttnFusedPlan& plan : plans) at = tactics.insert(at, plan.id()) + 1;
    return tactics;
}

}  // namespace

cudaError_t attn_block(const AttnBlockProblem& q, cudaStream_t stream, int32_t tactic) {
    if (!valid(q)) return cudaErrorInvalidValue;
    if (q.images == 0) return cudaSuccess;
    if (!q.workspace || !aligned_to(16, q.workspace)) return cudaErrorInvalidValue;
    // Of many rows the wide products were the fastest at every size that was measured (plugins/NOTES.md); the one kernel was not among them.
    const bool chain = GemmPair::is_id(tactic) && attn_chain_fits(q) && attn_chain_valid(GemmPair::of(tactic), q);
    if (!chain && !wide_fits(q, tactic) && !fused_fits(q, tactic))
        if (const std::vector<int32_t> tactics = many_rows_tactics(q); !tactics.empty()) tactic = tactics.front();
    if (fused_fits(q, tactic)) return attn_fused(q, AttnFusedPlan::of(tactic), stream);
    if (wide_fits(q, tactic)) return attn_wide(q, AttnPlan(q).qkv, WidePair::of(tactic), stream);
    if (attn_chain_fits(q)) {
        const GemmPair pair = GemmPair::of(tactic);
        return attn_chain(q, AttnPlan(q).qkv, GemmPair::is_id(tactic) && attn_chain_valid(pair, q) ? &pair : nullptr, stream);
    }
    return q.dtype == DType::kHalf ? attn_block_typed<__half>(q, stream) : attn_block_typed<float>(q, stream);
}

std::vector<int32_t> attn_block_tactics(const AttnBlockProblem& q) {
    if (!valid(q) || q.images <= 0) return {};
    std::vector<int32_t> tactics = many_rows_tactics(q);
    if (attn_chain_fits(q))
        for (const GemmPair& pair : attn_chain_pairs(q)) tactics.push_back(pair.id());
    return tactics;
}

int64_t attn_block_workspace(const AttnBlockProblem& q) {
    if (!valid(q)) return 0;
    return AttnPlan(q).total * (q.dtype == DType::kHalf ? 2 : 4);
}

}  // namespace trt_opt
