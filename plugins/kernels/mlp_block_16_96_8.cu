#include "mlp_block_launch.cuh"

namespace trt_opt {
cudaError_t launch_mlp_16_96_8(const MlpArgs& p, const MlpLaunch& how, cudaStream_t stream) { return launch_mlp<16, 96, 8>(p, how, stream); }
}  // namespace trt_opt
