#pragma once

#include "block_gemm_tiles.h"
#include "launch.cuh"

namespace trt_opt {

template <class Tile> cudaError_t launch_gemm(const BlockGemmArgs& p, const GemmLaunch& how, cudaStream_t stream) {
    auto launch = [&](auto kernel) { return launch_ahead(kernel, how.blocks, Tile::kThreads, how.shared, stream, 1 << p.cluster_log2, p); };
    if (!how.norm) return launch(block_gemm_kernel<Tile, false>);
    if constexpr (Tile::kNorms) return launch(block_gemm_kernel<Tile, true>);
    else return cudaErrorInvalidValue;
}

template <class Tile> cudaError_t launch_merge_gemm(const MergeGemmArgs& p, const GemmLaunch& how, cudaStream_t stream) {
    return launch_ahead(block_gemm_kernel<Tile, true, MergeGemmArgs>, how.blocks, Tile::kThreads, how.shared, stream, 1, p);
}

}  // namespace trt_opt
