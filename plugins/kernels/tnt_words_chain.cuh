// All blocks over words of a chain: a warp takes a patch through all of them, and words leave its registers only for those who read
// them. One more warp of the block has no patch: it fetches the weights of the layers ahead.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "tnt_inner_block.cuh"

namespace trt_opt {

constexpr int kChainMaxWarps = 8, kChainMaxStages = 3;  // warps: with a patch

struct WordsChainArgs {
    InnerArgs inner;                 // weights of the first layer, which the others' follow; y is not used
    int layers, stages;              // stages: room for the weights of so many layers
    __half* words[kWordsMaxLayers];  // what a layer gives, or null where nobody reads it
};

namespace inner {

// Where units go in a stage is the same for all layers, so it is worked out once.
template <int UNIT> __device__ __forceinline__ void list_places(const InnerPart& p, uint16_t* places) {
    for (uint32_t i = threadIdx.x; i < p.units; i += blockDim.x) places[i] = static_cast<uint16_t>(place<UNIT>(p, i));
}
// A warp fetches a layer's tensor.
template <int UNIT> __device__ __forceinline__ void fetch_layer(const InnerPart& p, int layer, const uint16_t* places, __half* stage) {
    const __half* const from = p.from + int64_t{layer} * p.units * UNIT;
#pragma unroll 4
    for (uint32_t i = threadIdx.x % 32; i < p.units; i += 32) {
        __half* const to = stage + places[i];
        if constexpr (UNIT == 1) *to = from[i];
        else ptx::copy<2 * UNIT>(to, from + i * UNIT);
    }
}
// `what(part, unit)` for all tensors, with the halves that are copied at a time as a constant.
template <class What> __device__ __forceinline__ void each_part(const InnerArgs& p, What&& what) {
    for (int i = 0; i < kQkv; ++i) {
        if (p.unit == 8) what(p.parts[i], std::integral_constant<int, 8>());
        else what(p.parts[i], std::integral_constant<int, 2>());
    }
    for (int i = kQkv; i < kInnerTensors; ++i) {
        if (p.head_unit == 8) what(p.parts[i], std::integral_constant<int, 8>());
        else if (p.head_unit == 2) what(p.parts[i], std::integral_constant<int, 2>());
        else what(p.parts[i], std::integral_constant<int, 1>());
    }
}

}  // namespace inner

// STEPS: sixteens of channels, rounded up. HEAD: the head size, rounded up to 8 or 16. Barriers: 1 + stage where its weights are there, 1 +
// stages + stage where they are no longer read.
template <int STEPS, int HEAD> __global__ void __launch_bounds__(32 * (kChainMaxWarps + 1)) tnt_words_chain_kernel(const __grid_constant__ WordsChainArgs p) {
#if __CUDA_ARCH__ >= 800
    using namespace inner;
    extern __shared__ uint4 inner_shared[];
    __half* const shared = reinterpret_cast<__half*>(inner_shared);
    uint16_t* const places = reinterpret_cast<uint16_t*>(inner_shared + p.stages * p.inner.shared);
    ptx::let_next_start();
    const int threads = static_cast<int>(blockDim.x), warps = threads / 32 - 1, warp = static_cast<int>(threadIdx.x) / 32;
    // What is not fetched stays zero.
    for (int i = threadIdx.x; i < p.stages * p.inner.shared; i += threads) inner_shared[i] = uint4{};
    {
        uint16_t* to = places;
        each_part(p.inner, [&](const InnerPart& part, auto unit) { list_places<decltype(unit)::value>(part, to), to += part.units; });
    }
    __syncthreads();

    const int64_t first = int64_t{blockIdx.x} * warps, step = int64_t{gridDim.x} * warps;
    int64_t left = (p.inner.patches - first + step - 1) / step * p.layers;  // layers of all patches of a warp
    int stage = 0;
    const auto next_stage = [&] { stage = stage + 1 == p.stages ? 0 : stage + 1; };
    if (warp == warps) {
        int layer = 0, filled = 0;
        for (; left > 0; --left) {
            if (filled == p.stages) ptx::barrier_wait(1 + p.stages + stage, threads);
            else ++filled;
            const uint16_t* from = places;
            each_part(p.inner, [&](const InnerPart& part, auto unit) { fetch_layer<decltype(unit)::value>(part, layer, from, shared + stage * p.inner.shared * 8), from += part.units; });
            ptx::commit_copies();
            ptx::wait_copies<0>();
            ptx::barrier_arrive(1 + stage, threads);
            next_stage();
            layer = layer + 1 == p.layers ? 0 : layer + 1;
        }
        return;
    }

    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    ptx::wait_for_previous();
    for (int64_t base = first; base < p.inner.patches; base += step) {
        const int64_t patch = base + warp;
        uint32_t raw[2 * STEPS][2];
        load_patch<STEPS>(raw, p.inner, patch, g, t);
#pragma unroll 1
        for (int layer = 0; layer < p.layers; ++layer, --left) {
            ptx::barrier_wait(1 + stage, threads);
            if (patch < p.inner.patches) {
                float s[2 * STEPS][4];
                unpack_patch<STEPS>(s, raw);
                transform<STEPS, HEAD>(s, p.inner, shared + stage * p.inner.shared * 8, g, t);
                pack_patch<STEPS>(raw, s);
            }
            if (left > p.stages) ptx::barrier_arrive(1 + p.stages + stage, threads);  // or nothing more comes here
            if (__half* const words = p.words[layer]; words && patch < p.inner.patches) store_patch<STEPS>(words, raw, p.inner, patch, g, t);
            next_stage();
        }
    }
#endif
}

}  // namespace trt_opt
