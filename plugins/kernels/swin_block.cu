// A Swin block whole: an attention block and the MLP block over its result, one behind the other.
#include <algorithm>

#include "kernels.h"

namespace trt_opt {
namespace {

constexpr int64_t kAlign = 16;

// The MLP's problem, whose sizes are those of the attention block's result.
MlpBlockProblem mlp_of(const SwinBlockProblem& p) {
    MlpBlockProblem mlp = p.mlp;
    mlp.dtype = p.attn.dtype;
    mlp.rows = p.attn.images * p.attn.image_tokens();
    mlp.channels = p.attn.channels;
    mlp.residual = nullptr;
    return mlp;
}
// Bytes of what the attention block gives.
int64_t middle(const SwinBlockProblem& p) {
    const int64_t bytes = p.attn.images * p.attn.image_tokens() * p.attn.channels * (p.attn.dtype == DType::kHalf ? 2 : 4);
    return (bytes + kAlign - 1) / kAlign * kAlign;
}

}  // namespace

cudaError_t swin_block(const SwinBlockProblem& p, cudaStream_t stream, int32_t) {
    void* const behind = static_cast<char*>(p.workspace) + middle(p);
    AttnBlockProblem attn = p.attn;
    attn.y = p.workspace;
    attn.workspace = behind;
    if (const cudaError_t status = attn_block(attn, stream); status != cudaSuccess) return status;
    MlpBlockProblem mlp = mlp_of(p);
    mlp.x = attn.y;
    mlp.y = p.y;
    return mlp_block(mlp, behind, stream);
}

std::vector<int32_t> swin_block_tactics(const SwinBlockProblem&) { return {}; }

bool swin_block_tactic_valid(const SwinBlockProblem&, int32_t) { return false; }

int64_t swin_block_workspace(const SwinBlockProblem& p) {
    return middle(p) + std::max<int64_t>(attn_block_workspace(p.attn), static_cast<int64_t>(mlp_block_workspace(mlp_of(p))));
}

}  // namespace trt_opt
