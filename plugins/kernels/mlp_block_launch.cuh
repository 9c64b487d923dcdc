// How the MLP block's kernels are launched: one instance of the tile a source file, so that they compile side by side.
#pragma once

#include "launch.cuh"
#include "mlp_block.cuh"

namespace trt_opt {

// What is asked of an instance.
struct MlpLaunch {
    uint32_t blocks = 0;
    bool tanh_gelu = false;
    bool probe = false;  // only says whether it could be launched
};

template <int BM, int BN, int STAGES, bool TANH> cudaError_t launch_mlp_instance(const MlpArgs& p, const MlpLaunch& how, cudaStream_t stream) {
    using Tile = MlpTile<BM, BN, STAGES>;
    const auto kernel = mlp_block_kernel<BM, BN, STAGES, TANH>;
    const int cluster = 1 << p.cluster_log2, shared = Tile::shared_bytes(p.channels, p.slice, p.chunks);
    cudaError_t status = allow_all_shared(kernel);
    if (status != cudaSuccess) return status;
    if (how.probe) return cluster <= 8 || active_clusters(kernel, cluster, Tile::kThreads, shared) > 0 ? cudaSuccess : cudaErrorInvalidClusterSize;
    if (cluster > 8) {
        status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
        if (status != cudaSuccess) return cudaGetLastError(), status;
    }
    return launch_ahead(kernel, how.blocks, Tile::kThreads, shared, stream, cluster, p);
}

template <int BM, int BN, int STAGES> cudaError_t launch_mlp(const MlpArgs& p, const MlpLaunch& how, cudaStream_t stream) {
    return how.tanh_gelu ? launch_mlp_instance<BM, BN, STAGES, true>(p, how, stream) : launch_mlp_instance<BM, BN, STAGES, false>(p, how, stream);
}

using MlpLauncher = cudaError_t(const MlpArgs&, const MlpLaunch&, cudaStream_t);
MlpLauncher launch_mlp_32_96_3, launch_mlp_64_96_3, launch_mlp_128_96_3, launch_mlp_128_128_3;

}  // namespace trt_opt
