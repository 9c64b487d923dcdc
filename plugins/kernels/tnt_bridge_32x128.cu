#include "tnt_bridge_launch.cuh"

namespace trt_opt {
cudaError_t launch_bridge_32x128(const BridgeGemmArgs& p, const BridgeLaunch& how, cudaStream_t stream) { return launch_bridge<GemmTile32x128>(p, how, stream); }
}  // namespace trt_opt
