#include "block_gemm_launch.cuh"

namespace trt_opt {
cudaError_t launch_gemm_64x64w16(const BlockGemmArgs& p, const GemmLaunch& how, cudaStream_t stream) { return launch_gemm<GemmTile64x64w16>(p, how, stream); }
}  // namespace trt_opt
