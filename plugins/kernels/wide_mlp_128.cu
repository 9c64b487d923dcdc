#include "wide_mlp_launch.cuh"

namespace trt_opt {
cudaError_t launch_wide_mlp_128(const WideMlpArgs& p, bool tanh_gelu, uint32_t blocks, cudaStream_t stream) { return launch_wide_mlp<128>(p, tanh_gelu, blocks, stream); }
}  // namespace trt_opt
