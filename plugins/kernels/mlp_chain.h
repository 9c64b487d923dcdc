// The MLP block as two products, each launched ahead of the end of the kernel before it: gelu(norm(s) W1 + b1), and s + that W2 + b2.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "block_gemm.h"

namespace trt_opt {

// In these all sizes are multiples of 8, pointers aligned to 16 bytes, elements fp16.
bool mlp_chain_valid(const GemmPair& plan, const MlpBlockProblem& problem);
// Best guess first; none where there are so many rows that the time is not latency.
std::vector<GemmPair> mlp_chain_plans(const MlpBlockProblem& problem);
size_t mlp_chain_workspace(const MlpBlockProblem& problem);
cudaError_t mlp_chain(const MlpBlockProblem& problem, const GemmPair& plan, void* workspace, cudaStream_t stream);

}  // namespace trt_opt
