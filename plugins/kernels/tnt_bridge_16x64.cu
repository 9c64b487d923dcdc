#include "tnt_bridge_launch.cuh"

namespace trt_opt {
cudaError_t launch_bridge_16x64(const BridgeGemmArgs& p, const BridgeLaunch& how, cudaStream_t stream) { return launch_bridge<GemmTile16x64>(p, how, stream); }
}  // namespace trt_opt
