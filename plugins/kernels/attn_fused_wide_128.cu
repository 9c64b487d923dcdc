#include "attn_fused_wide_launch.cuh"

namespace trt_opt {
TRT_OPT_ATTN_FUSED(kAttnFused128, 4, 3, 4);
}  // namespace trt_opt
