#include "attn_fused_wide_launch.cuh"

namespace trt_opt {
TRT_OPT_ATTN_FUSED(kAttnFusedSplit128, 4, 4, 4, true);
}  // namespace trt_opt
