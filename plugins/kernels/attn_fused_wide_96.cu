#include "attn_fused_wide_launch.cuh"

namespace trt_opt {
TRT_OPT_ATTN_FUSED(kAttnFused96, 3, 4, 3);
}  // namespace trt_opt
