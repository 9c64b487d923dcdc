// Blocks of many rows: a layer norm as a kernel of its own, and two wide products (wide_gemm.h); between them, in an attention block, the attention.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "wide_gemm.h"

namespace trt_opt {

// In these the problem is valid, all sizes are multiples of 8, pointers aligned to 16 bytes, elements fp16. The lists are best guess first; none where
// there are few rows, or the build or the device has no such products.
bool mlp_wide_valid(const WidePair& pair, const MlpBlockProblem& problem);
std::vector<WidePair> mlp_wide_pairs(const MlpBlockProblem& problem);
// Enough for all problems with fewer rows, too.
size_t mlp_wide_workspace(const MlpBlockProblem& problem);
cudaError_t mlp_wide(const MlpBlockProblem& problem, const WidePair& pair, void* workspace, cudaStream_t stream);

// The workspace begins with the normalized rows and later the attention's result; queries, keys and values are `qkv` elements on.
bool attn_wide_valid(const WidePair& pair, const AttnBlockProblem& problem);
std::vector<WidePair> attn_wide_pairs(const AttnBlockProblem& problem);
// An estimate of all four kernels, in nanoseconds.
float attn_wide_cost(const WidePair& pair, const AttnBlockProblem& problem);
cudaError_t attn_wide(const AttnBlockProblem& problem, int64_t qkv, const WidePair& pair, cudaStream_t stream);

}  // namespace trt_opt
