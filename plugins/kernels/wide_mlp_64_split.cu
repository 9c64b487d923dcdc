#include "wide_mlp_launch.cuh"

namespace trt_opt {
cudaError_t launch_wide_mlp_64_split(const WideMlpArgs& p, const WideMlpLaunch& how, cudaStream_t stream) { return launch_wide_mlp<64, 3, true>(p, how, stream); }
}  // namespace trt_opt
