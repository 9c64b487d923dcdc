#pragma once

#include "launch.cuh"
#include "tnt_bridge_launch.h"

namespace trt_opt {

template <class Tile> cudaError_t launch_bridge(const BridgeGemmArgs& p, const BridgeLaunch& how, cudaStream_t stream) {
    const auto kernel = block_gemm_kernel<Tile, true, BridgeGemmArgs>;
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, how.shared);
    if (status != cudaSuccess) return cudaGetLastError(), status;
    return launch_ahead(kernel, how.blocks, Tile::kThreads, how.shared, stream, how.cluster, p);
}

}  // namespace trt_opt
