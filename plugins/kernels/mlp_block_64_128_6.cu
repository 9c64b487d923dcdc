#include "mlp_block_launch.cuh"

namespace trt_opt {
cudaError_t launch_mlp_64_128_6(const MlpArgs& p, const MlpLaunch& how, cudaStream_t stream) { return launch_mlp<64, 128, 6>(p, how, stream); }
}  // namespace trt_opt
