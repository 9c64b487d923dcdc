// The MLP block of a few rows of certain sizes as one kernel of clusters, which those sizes are compiled into.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels.h"

namespace trt_opt {

struct MlpRowsPlan {
    float cost = 0;  // an estimate, in nanoseconds

    static bool is_id(int32_t id) { return id >> 26 == 1; }
    int32_t id() const { return 1 << 26 | 1; }
};

// In these the problem is valid, all sizes are multiples of 8, pointers aligned to 16 bytes, elements fp16. True if the device can run it: 128, 256 or 512 channels with
// four times as many hidden ones, and a norm.
bool mlp_rows_valid(const MlpBlockProblem& problem);
// One where all clusters run at once, so that the time is latency, which the kernel is made for; else none.
std::vector<MlpRowsPlan> mlp_rows_plans(const MlpBlockProblem& problem);
cudaError_t mlp_rows(const MlpBlockProblem& problem, cudaStream_t stream);

}  // namespace trt_opt
