#include "attn_fused_wide_launch.cuh"

namespace trt_opt {
TRT_OPT_ATTN_FUSED(kAttnFusedRing64, 2, 3, 0);
}  // namespace trt_opt
