// A Swin block as one kernel where it suits, and otherwise as an attention block and an MLP block.
#include "swin_block.h"

#include <algorithm>

#include "common.cuh"

namespace trt_opt {
namespace {

// Two steps under the first of either block's tactics are kTwoSteps + i * kMlpForms + j, the i-th and the j-th.
constexpr int32_t kOneKernel = 1, kTwoSteps = 2, kAttnForms = 4, kMlpForms = 4;
constexpr int64_t kMostTurns = 4;  // of all clusters that run at once, for the one kernel to be worth timing: an estimate, not measured

int64_t element_size(const SwinBlockProblem& q) { return q.attn.dtype == DType::kHalf ? 2 : 4; }
int64_t rows_of(const SwinBlockProblem& q) { return q.attn.images * q.attn.image_tokens(); }
int64_t rounded(int64_t bytes) { return (bytes + 15) / 16 * 16; }
int64_t between_bytes(const SwinBlockProblem& q) { return rounded(rows_of(q) * q.attn.channels * element_size(q)); }

MlpBlockProblem second_step(const SwinBlockProblem& q) {
    MlpBlockProblem mlp = q.mlp;
    mlp.dtype = q.attn.dtype, mlp.rows = rows_of(q), mlp.channels = q.attn.channels;
    mlp.x = q.workspace, mlp.residual = nullptr, mlp.y = q.y;
    return mlp;
}

bool valid(const SwinBlockProblem& q) {
    const bool hidden = q.mlp.hidden > 0 && q.mlp.hidden <= kMlpMaxHidden && q.attn.channels <= kMlpMaxChannels;
    // An attention block that is not valid needs no workspace, and any other some.
    return hidden && (q.attn.images == 0 || attn_block_workspace(q.attn) > 0);
}

bool aligned(const SwinBlockProblem& q) {
    const AttnBlockProblem& a = q.attn;
    const MlpBlockProblem& m = q.mlp;
    return aligned_to(16, a.x, a.residual, a.norm_scale, a.norm_bias, a.w_qkv, a.b_qkv, a.w_proj, a.b_proj) && aligned_to(16, m.scale, m.bias, m.w1, m.b1, m.w2, m.b2, q.y);
}

}  // namespace

cudaError_t swin_block(const SwinBlockProblem& q, cudaStream_t stream, int32_t tactic) {
    if (!valid(q)) return cudaErrorInvalidValue;
    if (q.attn.images == 0) return cudaSuccess;
    if (tactic != 0 && !swin_block_tactic_valid(q, tactic)) tactic = 0;
    const bool chosen = tactic == kOneKernel || (tactic == 0 && swin_kernel_clusters(q) <= swin_kernel_at_once(q));
    if (chosen && aligned(q)) return swin_kernel(q, stream);

    if (!q.workspace || !aligned_to(16, q.workspace)) return cudaErrorInvalidValue;
    AttnBlockProblem attn = q.attn;
    MlpBlockProblem mlp = second_step(q);
    void* const scratch = static_cast<unsigned char*>(q.workspace) + between_bytes(q);
    attn.y = q.workspace, attn.workspace = scratch;
    int32_t attn_tactic = 0, mlp_tactic = 0;
    if (tactic >= kTwoSteps) {
        const std::vector<int32_t> first = attn_block_tactics(attn), second = mlp_block_tactics(mlp);
        const auto i = static_cast<size_t>((tactic - kTwoSteps) / kMlpForms), j = static_cast<size_t>((tactic - kTwoSteps) % kMlpForms);
        if (i < first.size()) attn_tactic = first[i];
        if (j < second.size()) mlp_tactic = second[j];
    }
    const cudaError_t status = attn_block(attn, stream, attn_tactic);
    return status != cudaSuccess ? status : mlp_block(mlp, scratch, stream, mlp_tactic);
}

std::vector<int32_t> swin_block_tactics(const SwinBlockProblem& q) {
    if (!valid(q) || q.attn.images == 0) return {};
    std::vector<int32_t> tactics;
    const int64_t at_once = swin_kernel_at_once(q);
    if (at_once > 0 && swin_kernel_clusters(q) <= kMostTurns * at_once) tactics.push_back(kOneKernel);
    const auto forms = [](const std::vector<int32_t>& found, int32_t most) { return std::clamp<int32_t>(static_cast<int32_t>(found.size()), 1, most); };
    const int32_t first = forms(attn_block_tactics(q.attn), kAttnForms), second = forms(mlp_block_tactics(second_step(q)), kMlpForms);
    for (int32_t sum = 0; sum <= first + second - 2; ++sum)
        for (int32_t i = std::max(0, sum - second + 1); i <= std::min(sum, first - 1); ++i) tactics.push_back(kTwoSteps + i * kMlpForms + sum - i);
    return tactics;
}

bool swin_block_tactic_valid(const SwinBlockProblem& q, int32_t tactic) {
    if (!valid(q) || q.attn.images == 0 || tactic < kOneKernel) return false;
    if (tactic == kOneKernel) return swin_kernel_fits(q);
    const int32_t form = tactic - kTwoSteps, i = form / kMlpForms, j = form % kMlpForms;
    const auto has = [](const std::vector<int32_t>& found, int32_t at) { return at == 0 || at < static_cast<int32_t>(found.size()); };
    return i < kAttnForms && has(attn_block_tactics(q.attn), i) && has(mlp_block_tactics(second_step(q)), j);
}

int64_t swin_block_workspace(const SwinBlockProblem& q) {
    if (!valid(q) || q.attn.images == 0) return 0;
    return between_bytes(q) + std::max(rounded(attn_block_workspace(q.attn)), static_cast<int64_t>(mlp_block_workspace(second_step(q))));
}

}  // namespace trt_opt
