// The MLP block of many rows, for up to so many channels, with so many warpgroups a block. TRT_OPT_SM90A: files that include this are compiled for sm_90a.
#pragma once

#include "launch.cuh"
#include "wide_mlp.cuh"

namespace trt_opt {

struct WideMlpLaunch {
    uint32_t blocks = 0;
    int shared = 0;
    bool tanh_gelu = false;
};
using WideMlpLauncher = cudaError_t(const WideMlpArgs& p, const WideMlpLaunch& how, cudaStream_t stream);
WideMlpLauncher launch_wide_mlp_64_2, launch_wide_mlp_96_2, launch_wide_mlp_64_3, launch_wide_mlp_96_3, launch_wide_mlp_128_3, launch_wide_mlp_192_3, launch_wide_mlp_64_split, launch_wide_mlp_96_split;

template <int C, int GROUPS, bool SPLIT = false> cudaError_t launch_wide_mlp(const WideMlpArgs& p, const WideMlpLaunch& how, cudaStream_t stream) {
    using Tile = WideMlpTile<C, GROUPS, SPLIT>;
    const auto kernel = how.tanh_gelu ? wide_mlp_kernel<Tile, true> : wide_mlp_kernel<Tile, false>;
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return cudaGetLastError(), status;
    return launch_ahead(kernel, how.blocks, Tile::kThreads, static_cast<size_t>(how.shared), stream, 1, p);
}

}  // namespace trt_opt
