// The MLP block of a few rows as one kernel of clusters: blocks of a cluster share out the hidden columns of a tile of rows.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels.h"

namespace trt_opt {

struct MlpClusterPlan {
    int rows = 0, slice = 0;  // of a cluster: 32 or 64; hidden columns of a block: a multiple of 32
    bool half_sums = false;   // blocks send their sums of the output in fp16
    bool counted = false;     // and count what has come to them instead of waiting for each other
    float cost = 0;           // an estimate, in nanoseconds

    static bool is_id(int32_t id) { return id >> 29 == 1; }
    static MlpClusterPlan of(int32_t id) { return {32 << (id & 1), (id >> 4 & 15) * 32, (id >> 1 & 1) == 1, (id >> 2 & 1) == 1, 0}; }
    int32_t id() const { return 1 << 29 | (slice / 32) << 4 | (counted ? 4 : 0) | (half_sums ? 2 : 0) | (rows == 64 ? 1 : 0); }
};

// In these all sizes are multiples of 8, pointers aligned to 16 bytes, elements fp16. True if the device can run the plan.
bool mlp_cluster_valid(const MlpClusterPlan& plan, const MlpBlockProblem& problem);
// Those worth timing, best guess first: where all clusters run at once, so that the time is latency, which the kernel is made for.
std::vector<MlpClusterPlan> mlp_cluster_plans(const MlpBlockProblem& problem);
cudaError_t mlp_cluster(const MlpBlockProblem& problem, const MlpClusterPlan& plan, cudaStream_t stream);

}  // namespace trt_opt
