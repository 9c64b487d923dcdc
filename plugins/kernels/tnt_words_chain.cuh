// All blocks over words of a chain: a warp takes a patch through all of them, or two warps do, and words leave their registers only for those
// who read them. More warps of the block have no patch: they fetch the weights of the layers ahead.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "tnt_inner_block.cuh"

namespace trt_opt {

constexpr int kChainMaxWarps = 9, kChainMaxStages = 3;
constexpr int kChainMaxTelling = 1024;   // blocks that tell of their words
constexpr int kChainSharedWarps = 8;  // of a block whose patches have two warps each

struct WordsChainArgs {
    InnerArgs inner;                 // weights of the first layer, which the others' follow; y is not used
    int layers, stages;              // stages: room for the weights of so many layers
    int warps;                       // of a block, with a patch or a share of one
    int copies, head_copies;         // of a layer: units, of which those of the heads are the last
    __half* words[kWordsMaxLayers];  // what a layer gives, or null where nobody reads it
    uint32_t* told;                  // [layers, blocks]: becomes 1 when a block's words of a layer are there; or null. Of patches of two warps, which have no other behind it
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

// Softmax and weighted sums of `attend`, the heads side by side: each step waits for the one before it, so that more of them at once take no longer.
template <int HEAD>
__device__ __forceinline__ void attend_abreast(uint32_t (&out)[4], const float (&q)[2][4], const float (&k)[2][4], const float (&v)[2][4], float scale, int tokens, int t) {
    constexpr int kHeads = 16 / HEAD;
    uint32_t queries[4], keys[4], values[4];
    pack_tiles(queries, q[0], q[1]), pack_tiles(keys, k[0], k[1]), pack_tiles(values, v[0], v[1]);
    float s[kHeads][2][4] = {}, most[kHeads][2], sum[kHeads][2] = {};
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        if constexpr (HEAD == 8) {
            multiply_k8(s[h][0], queries[2 * h], queries[2 * h + 1], keys[2 * h]);
            multiply_k8(s[h][1], queries[2 * h], queries[2 * h + 1], keys[2 * h + 1]);
        } else {
            multiply(s[h][0], queries, {keys[0], keys[2]}), multiply(s[h][1], queries, {keys[1], keys[3]});
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = ptx::transposed(values[i]);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        most[h][0] = most[h][1] = -INFINITY;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float& x = s[h][i / 4][i % 4];
            x = i / 4 * 8 + 2 * t + i % 2 < tokens ? x * scale : -INFINITY;
            most[h][i % 4 / 2] = fmaxf(most[h][i % 4 / 2], x);
        }
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        float other[kHeads][2];
#pragma unroll
        for (int i = 0; i < 2 * kHeads; ++i) other[i / 2][i % 2] = __shfl_xor_sync(0xffffffffu, most[i / 2][i % 2], step);
#pragma unroll
        for (int i = 0; i < 2 * kHeads; ++i) most[i / 2][i % 2] = fmaxf(most[i / 2][i % 2], other[i / 2][i % 2]);
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            float& x = s[h][i / 4][i % 4];
            x = exp2_fast(x - most[h][i % 4 / 2]);
            sum[h][i % 4 / 2] += x;
        }
    // The weights are not yet divided by their sums, which are on their way while they are used.
    float result[2][4] = {};
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        uint32_t weights[4];
        pack_tiles(weights, s[h][0], s[h][1]);
#pragma unroll
        for (int i = h; i < 2; i += kHeads) multiply(result[i], weights, {values[2 * i], values[2 * i + 1]});
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
        float other[kHeads][2];
#pragma unroll
        for (int i = 0; i < 2 * kHeads; ++i) other[i / 2][i % 2] = __shfl_xor_sync(0xffffffffu, sum[i / 2][i % 2], step);
#pragma unroll
        for (int i = 0; i < 2 * kHeads; ++i) sum[i / 2][i % 2] += other[i / 2][i % 2];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float low = 1.f / sum[i % kHeads][0], high = 1.f / sum[i % kHeads][1];
        result[i][0] *= low, result[i][1] *= low, result[i][2] *= high, result[i][3] *= high;
    }
    pack_tiles(out, result[0], result[1]);
}

// s += second product of the activated first one, over N sixteens of hidden columns from `column` on, at once.
template <int STEPS, int N>
__device__ __forceinline__ void hidden_columns(float (&s)[2 * STEPS][4], const uint32_t (&normal)[STEPS][4], const InnerArgs& p, const __half* shared, int column, int up_lane, int down_lane, int t) {
    float up[N][2][4];
#pragma unroll
    for (int i = 0; i < N; ++i)
        product<STEPS>(up[i], normal, shared + p.parts[kUp].to + column + 16 * i, p.up_row, up_lane, shared + p.parts[kUpBias].to + column + 16 * i, t);
    activate(reinterpret_cast<float(&)[8 * N]>(up), p.activation);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        uint32_t active[4];
        pack_tiles(active, up[i][0], up[i][1]);
        accumulate<STEPS>(s, active, shared + p.parts[kDown].to + (column + 16 * i) * p.down_row, down_lane);
    }
}

// Of shared memory, in 16-byte words: what the two warps of a patch tell each other, twice a layer, each time in another place, so that one
// barrier will do: who writes to a place again knows from the barrier between that the other one has read it.
template <int STEPS> constexpr int kMeetingPlace = 2 * 2 * STEPS * 32;
template <int STEPS> constexpr int kMeeting = 2 * kMeetingPlace<STEPS>;

// The sums of both warps, in both: bits do not depend on whose is added to whose.
template <int STEPS> __device__ __forceinline__ void add_other(float (&s)[2 * STEPS][4], float4* place, int part, int barrier) {
    const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j) place[(part * 2 * STEPS + j) * 32 + lane] = make_float4(s[j][0], s[j][1], s[j][2], s[j][3]);
    ptx::barrier_wait(barrier, 64);
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j) {
        const float4 v = place[((1 - part) * 2 * STEPS + j) * 32 + lane];
        s[j][0] += v.x, s[j][1] += v.y, s[j][2] += v.z, s[j][3] += v.w;
    }
}

// `transform` by two warps: each takes half of the groups of heads and half of the hidden columns, and both have all of the result.
template <int STEPS, int HEAD> __device__ __forceinline__ void transform_shared(float (&s)[2 * STEPS][4], const InnerArgs& p, const __half* shared, float4* meeting, int part, int barrier, int g, int t) {
    const auto weights = [&](InnerTensor tensor) { return shared + p.parts[tensor].to; };
    const int qkv_lane = lane_offset(p.qkv_row), proj_lane = lane_offset(p.proj_row), up_lane = lane_offset(p.up_row), down_lane = lane_offset(p.down_row);
    // The stream and the bias are in the first warp's sums.
    const auto start = [&](InnerTensor bias) {
        if (part == 0) {
            add_bias<STEPS>(s, weights(bias), t);
        } else {
#pragma unroll
            for (int j = 0; j < 2 * STEPS; ++j) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.f;
        }
    };
    uint32_t normal[STEPS][4];
    normalize<STEPS>(normal, s, p, weights(kScale1), weights(kBias1), p.epsilon1, g, t);
    start(kProjBias);
#pragma unroll 1
    for (int group = part; group < p.groups; group += 2) {
        float qkv[3][2][4];
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            const int column = 16 * (i * p.groups + group);
            product<STEPS>(qkv[i], normal, weights(kQkv) + column, p.qkv_row, qkv_lane, weights(kQkvBias) + column, t);
        }
        uint32_t context[4];
        attend_abreast<HEAD>(context, qkv[0], qkv[1], qkv[2], p.scale, p.tokens, t);
        accumulate<STEPS>(s, context, weights(kProj) + 16 * group * p.proj_row, proj_lane);
    }
    add_other<STEPS>(s, meeting, part, barrier);

    normalize<STEPS>(normal, s, p, weights(kScale2), weights(kBias2), p.epsilon2, g, t);
    start(kDownBias);
    const int sixteens = p.hidden / 16, half = (sixteens + 1) / 2;
    int column = part * half * 16;
#pragma unroll 1
    for (int left = part == 0 ? half : sixteens - half; left > 0;) {
        const int n = left == 5 || left == 6 ? 3 : min(left, 4);
        const auto next = [&](auto count) { hidden_columns<STEPS, decltype(count)::value>(s, normal, p, shared, column, up_lane, down_lane, t); };
        switch (n) {
            case 4: next(std::integral_constant<int, 4>()); break;
            case 3: next(std::integral_constant<int, 3>()); break;
            case 2: next(std::integral_constant<int, 2>()); break;
            default: next(std::integral_constant<int, 1>());
        }
        left -= n, column += 16 * n;
    }
    add_other<STEPS>(s, meeting + kMeetingPlace<STEPS>, part, barrier);
}

}  // namespace inner

// Blocks of a multiprocessor that registers are meant for; 0 leaves it to the compiler, which in one instance would spill for a third.
template <int STEPS, int HEAD, int SHARE> constexpr int kChainBlocks = SHARE > 1 ? 1 : STEPS == 2 && HEAD == 16 ? 2 : 0;

// STEPS: sixteens of channels, rounded up. HEAD: the head size, rounded up to 8 or 16. SHARE: warps of a patch, 1 or 2. Barriers: 1 + stage where its
// weights are there, 1 + stages + stage where they are no longer read, and one for each patch of two warps.
template <int STEPS, int HEAD, int SHARE> __global__ void __launch_bounds__(32 * (SHARE == 1 ? kChainMaxWarps : kChainSharedWarps), kChainBlocks<STEPS, HEAD, SHARE>) tnt_words_chain_kernel(const __grid_constant__ WordsChainArgs p) {
#if __CUDA_ARCH__ >= 800
    using namespace inner;
    extern __shared__ uint4 inner_shared[];
    __half* const shared = reinterpret_cast<__half*>(inner_shared);
    Copy* const copies = reinterpret_cast<Copy*>(inner_shared + p.stages * p.inner.shared);
    [[maybe_unused]] float4* const meetings = reinterpret_cast<float4*>(copies + p.copies);
    const bool telling = SHARE > 1 && p.told;
    if (!telling) ptx::let_next_start();
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

    const int patches = warps / SHARE;
    const int64_t first = int64_t{blockIdx.x} * patches, step = int64_t{gridDim.x} * patches;
    int64_t left = (p.inner.patches - first + step - 1) / step * p.layers;  // layers of all patches that a warp has a share of
    int stage = 0;
    const auto next_stage = [&] { stage = stage + 1 == p.stages ? 0 : stage + 1; };
    if (warp >= warps) {
        const int fetchers = threads - 32 * warps, thread = static_cast<int>(threadIdx.x) - 32 * warps, heads = p.copies - p.head_copies;
        int layer = 0, filled = 0, done = 0;
        // A layer is done where its room is free; its words are on their way then, and are told of when they are there.
        const auto wait_room = [&] {
            ptx::barrier_wait(1 + p.stages + stage, threads);
            if (!telling) return;
            if (done == 0) ptx::let_next_start();
            if (thread == 0) ptx::store_release(p.told + done * gridDim.x + blockIdx.x, 1);
            ++done;
        };
        for (; left > 0; --left) {
            if (filled == p.stages) wait_room();
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
        for (; telling && filled > 0; --filled, next_stage()) wait_room();
        return;
    }

    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    ptx::wait_for_previous();
    // Nobody may look before all blocks have been here: the next kernel starts behind the barrier of the first layer.
    if (telling && warp == 0) {
        if (lane < p.layers) p.told[lane * gridDim.x + blockIdx.x] = 0;
        __threadfence();
    }
    for (int64_t base = first; base < p.inner.patches; base += step) {
        const int slot = warp / SHARE, part = warp % SHARE;
        const int64_t patch = base + slot;
        uint32_t raw[2 * STEPS][2];
        load_patch<STEPS>(raw, p.inner, patch, g, t);
#pragma unroll 1
        for (int layer = 0; layer < p.layers; ++layer, --left) {
            ptx::barrier_wait(1 + stage, threads);
            if (telling && layer == 0) ptx::let_next_start();
            if (patch < p.inner.patches) {
                float s[2 * STEPS][4];
                unpack_patch<STEPS>(s, raw);
                const __half* const weights = shared + stage * p.inner.shared * 8;
                if constexpr (SHARE == 1) transform<STEPS, HEAD>(s, p.inner, weights, g, t);
                else transform_shared<STEPS, HEAD>(s, p.inner, weights, meetings + slot * kMeeting<STEPS>, part, 1 + 2 * p.stages + slot, g, t);
                pack_patch<STEPS>(raw, s);
            }
            const auto store = [&] {
                if (__half* const words = p.words[layer]; words && patch < p.inner.patches) store_patch<STEPS, SHARE>(words, raw, p.inner, patch, g, t, part);
            };
            if (telling) {
                store();
                ptx::barrier_arrive(1 + p.stages + stage, threads);
            } else {
                if (left > p.stages) ptx::barrier_arrive(1 + p.stages + stage, threads);  // or nothing more comes here
                store();
            }
            next_stage();
        }
    }
#endif
}

}  // namespace trt_opt
