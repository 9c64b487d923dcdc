#include "wide_mlp_launch.cuh"

namespace trt_opt {
cudaError_t launch_wide_mlp_128_3(const WideMlpArgs& p, const WideMlpLaunch& how, cudaStream_t stream) { return launch_wide_mlp<128, 3>(p, how, stream); }
}  // namespace trt_opt
