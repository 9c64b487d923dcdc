// A product of many rows on the warpgroup instructions of sm_90a: out = act(A B + bias) or A B + bias + added + added2. Where there are few rows
// block_gemm.h is faster, which is latency's; here arithmetic and bandwidth count.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "block_gemm.h"

namespace trt_opt {

struct WidePlan {
    int tile = -1;
    float cost = 0;  // an estimate, in nanoseconds
};

// Of a BlockGemmProblem without norm and quads; windows are those of out. False, too, where the build or the device has no such instructions.
bool wide_gemm_valid(const WidePlan& plan, const BlockGemmProblem& problem);
// Those that fit, best guess first.
std::vector<WidePlan> wide_gemm_plans(const BlockGemmProblem& problem);
cudaError_t wide_gemm(const BlockGemmProblem& problem, const WidePlan& plan, cudaStream_t stream);

// Plans of two products, one after the other.
struct WidePair {
    WidePlan first, second;
    float cost = 0;  // an estimate, in nanoseconds

    static bool is_id(int32_t id) { return id >> 28 == 1; }
    static WidePair of(int32_t id) { return {{(id & 15) - 1, 0}, {(id >> 4 & 15) - 1, 0}, 0}; }
    int32_t id() const { return 1 << 28 | (second.tile + 1) << 4 | (first.tile + 1); }
};
// Those worth timing, best guess first; none where there are so few rows that the time is latency.
std::vector<WidePair> wide_gemm_pairs(const BlockGemmProblem& first, const BlockGemmProblem& second);

}  // namespace trt_opt
