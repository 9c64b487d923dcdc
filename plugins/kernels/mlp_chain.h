// The MLP block as two products (and a norm before them, where the first does not normalize), each launched ahead of the end of
// the one before.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "block_gemm.h"

namespace trt_opt {

struct MlpChainPlan {
    bool apart = false;  // the norm is a kernel of its own
    GemmPlan first, second;
    float cost = 0;      // an estimate, in nanoseconds

    static bool is_id(int32_t id) { return id >> 30 & 1; }
    static MlpChainPlan of(int32_t id) {
        constexpr int32_t mask = (1 << GemmPlan::kBits) - 1;
        return {(id >> 2 * GemmPlan::kBits & 1) != 0, GemmPlan::of(id & mask), GemmPlan::of(id >> GemmPlan::kBits & mask), 0};
    }
    int32_t id() const { return 1 << 30 | (apart ? 1 : 0) << 2 * GemmPlan::kBits | second.id() << GemmPlan::kBits | first.id(); }
};

// All sizes in these are multiples of 8, pointers aligned to 16 bytes, elements fp16.
bool mlp_chain_valid(const MlpChainPlan& plan, const MlpBlockProblem& problem);
std::vector<MlpChainPlan> mlp_chain_plans(const MlpBlockProblem& problem);  // best guess first
size_t mlp_chain_workspace(const MlpBlockProblem& problem);
cudaError_t mlp_chain(const MlpBlockProblem& problem, const MlpChainPlan& plan, void* workspace, cudaStream_t stream);

}  // namespace trt_opt
