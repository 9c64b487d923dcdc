// The MLP block of many rows as one kernel on the warpgroup instructions of sm_90a, which leaves what is hidden in registers. For few channels: the output
// of a tile of rows is summed in registers, too.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels.h"

namespace trt_opt {

struct WideMlpPlan {
    int tile = -1;
    float cost = 0;  // an estimate, in nanoseconds

    static bool is_id(int32_t id) { return id >> 27 == 1; }
    static WideMlpPlan of(int32_t id) { return {(id & 15) - 1, 0}; }
    int32_t id() const { return 1 << 27 | (tile + 1); }
};

// In these the problem is valid, all sizes are multiples of 8, pointers aligned to 16 bytes, elements fp16. False, too, where the build or the device has
// no such instructions.
bool wide_mlp_valid(const WideMlpPlan& plan, const MlpBlockProblem& problem);
// Those that fit, best guess first; none where there are few rows.
std::vector<WideMlpPlan> wide_mlp_plans(const MlpBlockProblem& problem);
cudaError_t wide_mlp(const MlpBlockProblem& problem, const WideMlpPlan& plan, cudaStream_t stream);

}  // namespace trt_opt
