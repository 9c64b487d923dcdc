#pragma once

#include "attention_launch.cuh"
#include "attention_stream.cuh"
#include "launch.cuh"

namespace trt_opt {

template <int D> cudaError_t launch_stream(const AttentionArgs<__half>& p, const StreamLaunch& how, cudaStream_t stream) {
    const int tiles = how.warps / how.parts;  // query tiles a block
    const FastDiv by_heads(p.heads), by_tiles(((p.n + 15) / 16 + tiles - 1) / tiles);
    const size_t shared = sizeof(float) * 32 * StreamShape<D, true>::kFloats * (how.warps - tiles);
    const bool biased = p.bias_kind != AttentionBias::kNone || p.mask_kind != AttentionMask::kNone;
    auto launch = [&](auto kernel) { return launch_ahead(kernel, how.blocks, how.warps * 32, shared, stream, 1, p, how.parts, by_heads, by_tiles); };
    if (how.wide) return biased ? launch(attention_stream_kernel<D, true, true>) : launch(attention_stream_kernel<D, true, false>);
    return biased ? launch(attention_stream_kernel<D, false, true>) : launch(attention_stream_kernel<D, false, false>);
}

}  // namespace trt_opt
