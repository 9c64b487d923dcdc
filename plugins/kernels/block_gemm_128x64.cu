#include "block_gemm_launch.cuh"

namespace trt_opt {
cudaError_t launch_gemm_128x64(const BlockGemmArgs& p, const GemmLaunch& how, cudaStream_t stream) { return launch_gemm<GemmTile128x64>(p, how, stream); }
}  // namespace trt_opt
