// The MLP block as two products, each launched ahead of the end of the kernel before it: gelu(norm(s) W1 + b1), and s + that W2 + b2.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "block_gemm.h"

namespace trt_opt {

struct MlpChainPlan {
    GemmPlan first, second;
    float cost = 0;  // an estimate, in nanoseconds

    static bool is_id(int32_t id) { return id >> 30 & 1; }
    static MlpChainPlan of(int32_t id) {
        constexpr int32_t mask = (1 << GemmPlan::kBits) - 1;
        return {GemmPlan::of(id & mask), GemmPlan::of(id >> GemmPlan::kBits & mask), 0};
    }
    int32_t id() const { return 1 << 30 | second.id() << GemmPlan::kBits | first.id(); }
};

// In these all sizes are multiples of 8, pointers aligned to 16 bytes, elements fp16.
bool mlp_chain_valid(const MlpChainPlan& plan, const MlpBlockProblem& problem);
// Best guess first; none where there are so many rows that the time is not latency.
std::vector<MlpChainPlan> mlp_chain_plans(const MlpBlockProblem& problem);
size_t mlp_chain_workspace(const MlpBlockProblem& problem);
cudaError_t mlp_chain(const MlpBlockProblem& problem, const MlpChainPlan& plan, void* workspace, cudaStream_t stream);

}  // namespace trt_opt
