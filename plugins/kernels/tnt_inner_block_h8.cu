#include "tnt_inner_launch.cuh"

namespace trt_opt {
cudaError_t launch_tnt_inner_8(const InnerArgs& p, cudaStream_t stream) { return launch_tnt_inner<8>(p, stream); }
}  // namespace trt_opt
