#include "block_gemm_launch.cuh"

namespace trt_opt {
cudaError_t launch_gemm_64x128(const BlockGemmArgs& p, const GemmLaunch& how, cudaStream_t stream) { return launch_gemm<GemmTile64x128>(p, how, stream); }
}  // namespace trt_opt
