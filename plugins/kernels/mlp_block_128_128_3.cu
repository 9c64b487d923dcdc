#include "mlp_block_launch.cuh"

namespace trt_opt {
cudaError_t launch_mlp_128_128_3(const MlpArgs& p, const MlpLaunch& how, cudaStream_t stream) { return launch_mlp<128, 128, 3>(p, how, stream); }
}  // namespace trt_opt
