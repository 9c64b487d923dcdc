#pragma once

#include "launch.cuh"
#include "tnt_bridge_launch.h"

namespace trt_opt {

template <class Tile> cudaError_t launch_bridge(const BridgeGemmArgs& p, const BridgeLaunch& how, cudaStream_t stream) {
    return launch_ahead(block_gemm_kernel<Tile, true, BridgeGemmArgs>, how.blocks, Tile::kThreads, how.shared, stream, how.cluster, p);
}

}  // namespace trt_opt
