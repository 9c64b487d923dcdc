#include "mlp_block_launch.cuh"

namespace trt_opt {
cudaError_t launch_mlp_128_96_3(const MlpArgs& p, const MlpLaunch& how, cudaStream_t stream) { return launch_mlp<128, 96, 3>(p, how, stream); }
}  // namespace trt_opt
