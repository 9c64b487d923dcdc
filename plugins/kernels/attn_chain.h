// The attention block on the tensor cores: norm, partition (if any) and the first product as one kernel, attention as another, or
// all of these as one (attn_heads.h); and the second product with the reverse and the add. Each is launched ahead of the end of the
// kernel before it.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "block_gemm.h"
#include "kernels.h"

namespace trt_opt {

// Rows of both products, and the columns of all heads together.
inline int64_t product_rows(const AttnBlockProblem& q) { return q.images * q.groups() * q.group_tokens(); }
inline int32_t head_columns(const AttnBlockProblem& q) { return q.attention.heads * q.attention.dim; }

// In these the problem is valid. True if the device, the sizes and the pointers' alignment suit; of null pointers all do.
bool attn_chain_fits(const AttnBlockProblem& problem);
// A pair whose first plan has no tile (tile < 0) is attn_heads, with as many blocks a head as the plan's cluster, and the second product.
bool attn_chain_valid(const GemmPair& pair, const AttnBlockProblem& problem);
// Those worth timing: with attn_heads, if that fits, and then the others; of each (and of each number of blocks a head) best guess first.
std::vector<GemmPair> attn_chain_pairs(const AttnBlockProblem& problem);

// The attention between the two products, fp16: from queries, keys and values side by side, `qkv` elements into the workspace, to its beginning.
cudaError_t attend_packed(const AttnBlockProblem& problem, int64_t qkv, cudaStream_t stream);

// The attention's result begins the workspace; queries, keys and values are `qkv` elements on. `pair`: null for the best guess.
cudaError_t attn_chain(const AttnBlockProblem& problem, int64_t qkv, const GemmPair* pair, cudaStream_t stream);

}  // namespace trt_opt
