#pragma once

#include "block_gemm_tiles.h"
#include "launch.cuh"

namespace trt_opt {

template <class Tile> cudaError_t launch_gemm(const BlockGemmArgs& p, const GemmLaunch& how, cudaStream_t stream) {
    auto launch = [&](auto kernel) { return launch_ahead(kernel, how.blocks, Tile::kThreads, how.shared, stream, 1 << p.cluster_log2, p); };
    return how.norm ? launch(block_gemm_kernel<Tile, true>) : launch(block_gemm_kernel<Tile, false>);
}

template <class Tile> cudaError_t launch_merge_gemm(const MergeGemmArgs& p, const GemmLaunch& how, cudaStream_t stream) {
    return launch_ahead(block_gemm_kernel<Tile, true, MergeGemmArgs>, how.blocks, Tile::kThreads, how.shared, stream, 1, p);
}

}  // namespace trt_opt
