// The one kernel of a bridge from words to tokens: its tile shapes, one source file each.
#pragma once

#include "block_gemm_tiles.h"

namespace trt_opt {

struct BridgeLaunch {
    uint32_t blocks = 0;
    int shared = 0;   // bytes
    int cluster = 1;  // blocks
};
using BridgeLauncher = cudaError_t(const BridgeGemmArgs&, const BridgeLaunch&, cudaStream_t);
BridgeLauncher launch_bridge_16x64, launch_bridge_32x64, launch_bridge_32x128, launch_bridge_64x128;

}  // namespace trt_opt
