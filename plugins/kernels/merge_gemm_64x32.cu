#include "block_gemm_launch.cuh"

namespace trt_opt {
cudaError_t launch_merge_gemm_64x32(const MergeGemmArgs& p, const GemmLaunch& how, cudaStream_t stream) { return launch_merge_gemm<GemmTile64x32>(p, how, stream); }
}  // namespace trt_opt
