#include "attn_fused_wide_launch.cuh"

namespace trt_opt {
TRT_OPT_ATTN_FUSED(kAttnFusedSplit96, 3, 3, 3, true);
}  // namespace trt_opt
