#include "tnt_inner_launch.cuh"

namespace trt_opt {
cudaError_t launch_tnt_inner_16(const InnerArgs& p, cudaStream_t stream) { return launch_tnt_inner<16>(p, stream); }
}  // namespace trt_opt
