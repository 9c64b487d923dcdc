// All blocks over words of a chain: a warp takes a patch through all of them, and words leave its registers only for those who read
// them. More warps of the block have no patch: they fetch the weights of the layers ahead.
#pragma once

#include "kernels.h"
#include "tnt_inner_block.cuh"

namespace trt_opt {

constexpr int kChainMaxWarps = 9, kChainMaxStages = 3;

struct WordsChainArgs {
    InnerArgs inner;                 // weights of the first layer, which the others' follow; y is not used
    int layers, stages;              // stages: room for the weights of so many layers
    int warps;                       // of a block, with a patch
    int copies, head_copies;         // of a layer: units, of which those of the heads are the last
    __half* words[kWordsMaxLayers];  // what a layer gives, or null where nobody reads it
};

namespace inner {

// A unit of a layer's weights: what is the same for all layers is worked out once.
struct alignas(16) Copy {
    const __half* from;       // of the first layer
    uint32_t layer;           // from a layer to the next, in halves
    uint32_t to;              // in a stage, in halves
};

template <int UNIT> __device__ __forceinline__ Copy* list_copies(const InnerPart& p, Copy* list) {
    for (uint32_t i = threadIdx.x; i < p.units; i += blockDim.x) list[i] = {p.from + i * UNIT, p.units * UNIT, static_cast<uint32_t>(place<UNIT>(p, i))};
    return list + p.units;
}
template <int UNIT> __device__ __forceinline__ void copy_layer(const Copy* list, int begin, int end, int thread, int threads, int layer, __half* stage) {
    const auto copy = [&](const Copy& c) {
        const __half* const from = c.from + uint64_t{c.layer} * static_cast<uint32_t>(layer);
        if constexpr (UNIT == 1) stage[c.to] = *from;
        else ptx::copy<2 * UNIT>(stage + c.to, from);
    };
    constexpr int kAtOnce = 4;
    int i = begin + thread;
#pragma unroll 1
    for (; i + (kAtOnce - 1) * threads < end; i += kAtOnce * threads) {
        Copy c[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) c[j] = list[i + j * threads];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) copy(c[j]);
    }
#pragma unroll 1
    for (; i < end; i += threads) copy(list[i]);
}

}  // namespace inner

// STEPS: sixteens of channels, rounded up. HEAD: the head size, rounded up to 8 or 16. Barriers: 1 + stage where its weights are there, 1 +
// stages + stage where they are no longer read.
template <int STEPS, int HEAD> __global__ void __launch_bounds__(32 * kChainMaxWarps) tnt_words_chain_kernel(const __grid_constant__ WordsChainArgs p) {
#if __CUDA_ARCH__ >= 800
    using namespace inner;
    extern __shared__ uint4 inner_shared[];
    __half* const shared = reinterpret_cast<__half*>(inner_shared);
    Copy* const copies = reinterpret_cast<Copy*>(inner_shared + p.stages * p.inner.shared);
    ptx::let_next_start();
    const int threads = static_cast<int>(blockDim.x), warps = p.warps, warp = static_cast<int>(threadIdx.x) / 32;
    // What is not fetched stays zero.
    for (int i = threadIdx.x; i < p.stages * p.inner.shared; i += threads) inner_shared[i] = uint4{};
    {
        Copy* list = copies;
        for (int i = 0; i < kQkv; ++i) list = p.inner.unit == 8 ? list_copies<8>(p.inner.parts[i], list) : list_copies<2>(p.inner.parts[i], list);
        for (int i = kQkv; i < kInnerTensors; ++i)
            list = p.inner.head_unit == 8 ? list_copies<8>(p.inner.parts[i], list) : p.inner.head_unit == 2 ? list_copies<2>(p.inner.parts[i], list) : list_copies<1>(p.inner.parts[i], list);
    }
    __syncthreads();

    const int64_t first = int64_t{blockIdx.x} * warps, step = int64_t{gridDim.x} * warps;
    int64_t left = (p.inner.patches - first + step - 1) / step * p.layers;  // layers of all patches of a warp
    int stage = 0;
    const auto next_stage = [&] { stage = stage + 1 == p.stages ? 0 : stage + 1; };
    if (warp >= warps) {
        const int fetchers = threads - 32 * warps, thread = static_cast<int>(threadIdx.x) - 32 * warps, heads = p.copies - p.head_copies;
        int layer = 0, filled = 0;
        for (; left > 0; --left) {
            if (filled == p.stages) ptx::barrier_wait(1 + p.stages + stage, threads);
            else ++filled;
            __half* const to = shared + stage * p.inner.shared * 8;
            if (p.inner.unit == 8) copy_layer<8>(copies, 0, heads, thread, fetchers, layer, to);
            else copy_layer<2>(copies, 0, heads, thread, fetchers, layer, to);
            if (p.inner.head_unit == 8) copy_layer<8>(copies, heads, p.copies, thread, fetchers, layer, to);
            else if (p.inner.head_unit == 2) copy_layer<2>(copies, heads, p.copies, thread, fetchers, layer, to);
            else copy_layer<1>(copies, heads, p.copies, thread, fetchers, layer, to);
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
