// The attention block of many windows as one kernel (attn_fused_wide.cuh), on sm_90a.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace trt_opt {

// With all weights in shared memory and heads in straight code, for some numbers of channels and as many heads of 32; or by a loop over heads; or, for few windows, a warpgroup for each head
// of a window.
enum class AttnFusedForm { kStraight, kLoop, kSplit };
struct AttnFusedPlan {
    AttnFusedForm form = AttnFusedForm::kStraight;

    static bool is_id(int32_t id) { return id >> 27 == 1 && (id & 15) <= static_cast<int32_t>(AttnFusedForm::kSplit); }
    static AttnFusedPlan of(int32_t id) { return {static_cast<AttnFusedForm>(id & 15)}; }
    int32_t id() const { return 1 << 27 | static_cast<int32_t>(form); }
};

// In these the problem is valid. True if the build, the device and the sizes suit: fp16, heads of 32, channels a multiple of 32, up to 64 tokens that attend to each other, room for
// the weights of two heads at once; no mask but that of shifted windows, no bias of scores that differs between windows. Pointers are not looked at.
bool attn_fused_valid(const AttnFusedPlan& plan, const AttnBlockProblem& problem);
// Those worth timing, best guess first; none where there are so few rows that the time is latency.
std::vector<AttnFusedPlan> attn_fused_plans(const AttnBlockProblem& problem);
// An estimate, in nanoseconds.
float attn_fused_cost(const AttnFusedPlan& plan, const AttnBlockProblem& problem);
// All pointers are aligned to 16 bytes, but for the scores' bias.
cudaError_t attn_fused(const AttnBlockProblem& problem, const AttnFusedPlan& plan, cudaStream_t stream);

// Instances, a file each.
struct AttnFusedArgs;
struct AttnFusedShape {
    AttnFusedForm form;
    int channels, keys, groups, heads;  // heads: 0 for any number
    int stage, threads, bias_row;       // bytes of a stage; elements of a row of the scores' bias
    int (*fixed)(int heads, int tokens, int planes);  // bytes of shared memory without the stages
    cudaError_t (*launch)(const AttnFusedArgs& args, int shared, uint32_t blocks, cudaStream_t stream);
};
extern const AttnFusedShape kAttnFused96[2], kAttnFused128[2], kAttnFusedRing32[2], kAttnFusedRing64[2], kAttnFusedRing96[2], kAttnFusedRing128[2], kAttnFusedRing160[2], kAttnFusedRing192[2],
    kAttnFusedSplit96[2], kAttnFusedSplit128[2];

}  // namespace trt_opt
