#pragma once

#include "launch.cuh"
#include "patch_embed_launch.h"

namespace trt_opt {

template <class X> cudaError_t launch_patch_embed(const PatchEmbedArgs<X>& p, const PatchEmbedLaunch& how, cudaStream_t stream) {
    auto go = [&](auto* kernel) { return launch_ahead(kernel, how.blocks, how.threads, how.shared, stream, how.cluster, p); };
    switch (how.tiles) {
        case 8: return go(patch_embed_kernel<X, 8>);
        case 12: return go(patch_embed_kernel<X, 12>);
        case 16: return go(patch_embed_kernel<X, 16>);
    }
    if constexpr (std::is_same_v<X, __half>) {
        if (how.vec == 8) switch (how.rows) {
            case 16: return go(patch_embed_tile_kernel<X, 8, 16>);
            case 32: return go(patch_embed_tile_kernel<X, 8, 32>);
            case 64: return go(patch_embed_tile_kernel<X, 8, 64>);
        }
    }
    const bool wide = how.vec == 4;
    switch (how.rows) {
        case 16: return wide ? go(patch_embed_tile_kernel<X, 4, 16>) : go(patch_embed_tile_kernel<X, 2, 16>);
        case 32: return wide ? go(patch_embed_tile_kernel<X, 4, 32>) : go(patch_embed_tile_kernel<X, 2, 32>);
        case 64: return wide ? go(patch_embed_tile_kernel<X, 4, 64>) : go(patch_embed_tile_kernel<X, 2, 64>);
    }
    return cudaErrorInvalidValue;
}

}  // namespace trt_opt
