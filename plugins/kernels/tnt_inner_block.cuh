// The transformer block over the words of a patch on the tensor cores: a warp takes a patch from its tokens to its result in
// registers, and finds all weights in shared memory.
#pragma once

#include "common.cuh"
#include "gelu.cuh"
#include "mma.cuh"
#include "ptx.cuh"

namespace trt_opt {

constexpr int kInnerThreads = 128, kInnerWarps = kInnerThreads / 32;

// A tensor of weights on its way to shared memory: rows of segments, which lie further apart there. Sizes in units, which are
// what is copied at a time; places in elements.
struct InnerPart {
    const __half* from = nullptr;
    uint32_t units = 0;  // of all
    FastDiv row;         // units of a row
    FastDiv segment;     // units of a segment
    FastDiv group;       // rows of a group
    int to = 0, to_segment = 0, to_row = 0, to_group = 0;
};

// Where they are in shared memory. Columns of the products, and the rows that meet them, are padded with zeros to sixteens;
// rows then have eight halves more, so that those that are read at once lie in different banks.
enum InnerTensor { kScale1, kBias1, kScale2, kBias2, kProjBias, kUpBias, kDownBias, kProj, kUp, kDown, kQkv, kQkvBias, kInnerTensors };

struct InnerArgs {
    const __half* x;
    __half* y;
    int64_t patches;
    int tokens, channels, hidden;  // hidden: a multiple of 16
    int groups;                    // of 16 columns of heads
    int norm_row;                  // from a token's scales to the next one's; 0: they are the same
    int qkv_row, proj_row, up_row, down_row;
    float scale, epsilon1, epsilon2;  // scale: of the scores, times log2 e
    Activation activation;
    int unit, head_unit;  // halves copied at a time; head_unit: of kQkv and kQkvBias
    int shared;           // 16-byte words
    InnerPart parts[kInnerTensors];
};

namespace inner {

// Where unit `i` goes.
template <int UNIT> __device__ __forceinline__ int place(const InnerPart& p, uint32_t i) {
    uint32_t in_row, in_segment, in_group;
    const uint32_t row = p.row.divmod(i, in_row), segment = p.segment.divmod(in_row, in_segment), group = p.group.divmod(row, in_group);
    return p.to + group * p.to_group + in_group * p.to_row + segment * p.to_segment + in_segment * UNIT;
}
template <int UNIT> __device__ __forceinline__ void fetch(const InnerPart& p, __half* shared) {
    for (uint32_t i = threadIdx.x; i < p.units; i += kInnerThreads) {
        __half* const to = shared + place<UNIT>(p, i);
        const __half* const from = p.from + int64_t{i} * UNIT;
        if constexpr (UNIT == 1) *to = *from;
        else ptx::copy<2 * UNIT>(to, from);
    }
}

// The operand of 16 x 16 weights from `w` on: two tiles of eight columns. `lane`: where this lane's row begins.
__device__ __forceinline__ void load_pair(uint32_t (&b)[2][2], const __half* w, int lane) { ptx::load_transposed4(b[0][0], b[0][1], b[1][0], b[1][1], w + lane); }
__device__ __forceinline__ int lane_offset(int row) { return static_cast<int>(threadIdx.x % 16) * row + static_cast<int>(threadIdx.x % 32 / 16) * 8; }

__device__ __forceinline__ float2 floats(const __half* p) { return __half22float2(*reinterpret_cast<const __half2*>(p)); }

// Two tiles' worth of columns as a left operand.
__device__ __forceinline__ void pack_tiles(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack_halves(left[0], left[1]), a[1] = pack_halves(left[2], left[3]);
    a[2] = pack_halves(right[0], right[1]), a[3] = pack_halves(right[2], right[3]);
}

// acc = bias + A W, over 16 columns.
template <int STEPS> __device__ __forceinline__ void product(float (&acc)[2][4], const uint32_t (&a)[STEPS][4], const __half* w, int row, int lane, const __half* bias, int t) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float2 b = floats(bias + 8 * i + 2 * t);
        acc[i][0] = acc[i][2] = b.x, acc[i][1] = acc[i][3] = b.y;
    }
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
        uint32_t b[2][2];
        load_pair(b, w + 16 * k * row, lane);
        multiply(acc[0], a[k], b[0]), multiply(acc[1], a[k], b[1]);
    }
}

// s += A W, a step of 16
template <int STEPS> __device__ __forceinline__ void accumulate(float (&s)[2 * STEPS][4], const uint32_t (&a)[4], const __half* w, int lane) {
#pragma unroll
    for (int j = 0; j < STEPS; ++j) {
        uint32_t b[2][2];
        load_pair(b, w + 16 * j, lane);
        multiply(s[2 * j], a, b[0]), multiply(s[2 * j + 1], a, b[1]);
    }
}
template <int STEPS> __device__ __forceinline__ void add_bias(float (&s)[2 * STEPS][4], const __half* bias, int t) {
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j) {
        const float2 b = floats(bias + 8 * j + 2 * t);
        s[j][0] += b.x, s[j][1] += b.y, s[j][2] += b.x, s[j][3] += b.y;
    }
}

// The normalized tokens as a left operand. Columns beyond the channels are zero in `s` and in the scales.
template <int STEPS>
__device__ __forceinline__ void normalize(uint32_t (&a)[STEPS][4], const float (&s)[2 * STEPS][4], const InnerArgs& p, const __half* scale, const __half* bias, float epsilon, int g, int t) {
    const bool whole = p.norm_row > 0;
    float counted[2] = {1.f, 1.f};  // whether the rows are tokens
    if (whole) counted[0] = g < p.tokens ? 1.f : 0.f, counted[1] = g + 8 < p.tokens ? 1.f : 0.f;
    // Over the lanes of a row, or of all rows.
    const auto reduce = [&](float (&v)[2]) {
        if (whole) v[0] = v[1] = fmaf(v[0], counted[0], v[1] * counted[1]);
#pragma unroll
        for (int step = 1; step < 4; step *= 2) {
            v[0] += __shfl_xor_sync(0xffffffffu, v[0], step);
            v[1] += __shfl_xor_sync(0xffffffffu, v[1], step);
        }
        if (whole) {
#pragma unroll
            for (int step = 4; step < 32; step *= 2) v[0] += __shfl_xor_sync(0xffffffffu, v[0], step);
            v[1] = v[0];
        }
    };
    const float part = 1.f / static_cast<float>(whole ? p.tokens * p.channels : p.channels);
    float mean[2] = {0.f, 0.f}, factor[2] = {0.f, 0.f};
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j) mean[0] += s[j][0] + s[j][1], mean[1] += s[j][2] + s[j][3];
    reduce(mean);
    mean[0] *= part, mean[1] *= part;
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j) {
        if (8 * j + 2 * t >= p.channels) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float d = s[j][i] - mean[i / 2];
            factor[i / 2] = fmaf(d, d, factor[i / 2]);
        }
    }
    reduce(factor);
#pragma unroll
    for (int i = 0; i < 2; ++i) factor[i] = rsqrtf(fmaf(factor[i], part, epsilon));
    float v[2][4];
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int at = (g + 8 * i) * p.norm_row + 8 * j + 2 * t;
            const float2 m = floats(scale + at), b = floats(bias + at);
            v[j % 2][2 * i] = fmaf((s[j][2 * i] - mean[i]) * factor[i], m.x, b.x);
            v[j % 2][2 * i + 1] = fmaf((s[j][2 * i + 1] - mean[i]) * factor[i], m.y, b.y);
        }
        if (j % 2 == 1) pack_tiles(a[j / 2], v[0], v[1]);
    }
}

// Scores to weights that are not yet divided by their sums; those of keys that are no tokens become 0.
__device__ __forceinline__ void softmax(uint32_t (&weights)[4], float (&inverse)[2], float (&s)[2][4], float scale, int tokens, int t) {
    float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float& v = s[i / 4][i % 4];
        v = i / 4 * 8 + 2 * t + i % 2 < tokens ? v * scale : -INFINITY;
        most[i % 4 / 2] = fmaxf(most[i % 4 / 2], v);
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2)
        for (int i = 0; i < 2; ++i) most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], step));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        float& v = s[i / 4][i % 4];
        v = exp2_fast(v - most[i % 4 / 2]);
        sum[i % 4 / 2] += v;
    }
#pragma unroll
    for (int step = 1; step < 4; step *= 2)
        for (int i = 0; i < 2; ++i) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], step);
    inverse[0] = 1.f / sum[0], inverse[1] = 1.f / sum[1];
    pack_tiles(weights, s[0], s[1]);
}

// The heads in 16 columns, padded to HEAD (8 or 16) each: what they give, as a left operand.
template <int HEAD>
__device__ __forceinline__ void attend(uint32_t (&out)[4], const float (&q)[2][4], const float (&k)[2][4], const float (&v)[2][4], float scale, int tokens, int t) {
    uint32_t queries[4], keys[4], values[4];  // (tile, rows) as (0, g), (0, g + 8), (1, g), (1, g + 8)
    pack_tiles(queries, q[0], q[1]), pack_tiles(keys, k[0], k[1]), pack_tiles(values, v[0], v[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = ptx::transposed(values[i]);
    float sum[2][4] = {};
    constexpr int kHeads = 16 / HEAD;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
        float s[2][4] = {}, inverse[2];
        uint32_t weights[4];
        if constexpr (HEAD == 8) {
            // A row of an accumulator is a column of the right operand.
            multiply_k8(s[0], queries[2 * h], queries[2 * h + 1], keys[2 * h]);
            multiply_k8(s[1], queries[2 * h], queries[2 * h + 1], keys[2 * h + 1]);
        } else {
            multiply(s[0], queries, {keys[0], keys[2]}), multiply(s[1], queries, {keys[1], keys[3]});
        }
        softmax(weights, inverse, s, scale, tokens, t);
#pragma unroll
        for (int i = h; i < 2; i += kHeads) {
            multiply(sum[i], weights, {values[2 * i], values[2 * i + 1]});
            sum[i][0] *= inverse[0], sum[i][1] *= inverse[0], sum[i][2] *= inverse[1], sum[i][3] *= inverse[1];
        }
    }
    pack_tiles(out, sum[0], sum[1]);
}

// This lane's pairs of a patch: rows g and g + 8 of each tile.
template <int STEPS> __device__ __forceinline__ void load_patch(uint32_t (&raw)[2 * STEPS][2], const InnerArgs& p, int64_t patch, int g, int t) {
    const __half* const x = p.x + patch * p.tokens * p.channels;
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = g + 8 * i, column = 8 * j + 2 * t;
            raw[j][i] = patch < p.patches && row < p.tokens && column < p.channels ? *reinterpret_cast<const uint32_t*>(x + row * p.channels + column) : 0u;
        }
}

template <int STEPS> __device__ __forceinline__ void unpack_patch(float (&s)[2 * STEPS][4], const uint32_t (&raw)[2 * STEPS][2]) {
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float2 v = __half22float2(*reinterpret_cast<const __half2*>(&raw[j][i]));
            s[j][2 * i] = v.x, s[j][2 * i + 1] = v.y;
        }
}
// WARPS that all hold the patch share out its tiles; this one is `part`.
template <int STEPS, int WARPS = 1> __device__ __forceinline__ void store_patch(__half* words, const uint32_t (&raw)[2 * STEPS][2], const InnerArgs& p, int64_t patch, int g, int t, int part = 0) {
    __half* const y = words + patch * p.tokens * p.channels;
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = g + 8 * i, column = 8 * j + 2 * t;
            if (row < p.tokens && column < p.channels && j % WARPS == part) *reinterpret_cast<uint32_t*>(y + row * p.channels + column) = raw[j][i];
        }
}

// A patch through the block, in place. `shared`: the weights.
template <int STEPS, int HEAD> __device__ __forceinline__ void transform(float (&s)[2 * STEPS][4], const InnerArgs& p, const __half* shared, int g, int t) {
    const auto weights = [&](InnerTensor tensor) { return shared + p.parts[tensor].to; };
    const int qkv_lane = lane_offset(p.qkv_row), proj_lane = lane_offset(p.proj_row), up_lane = lane_offset(p.up_row), down_lane = lane_offset(p.down_row);
    uint32_t normal[STEPS][4];
    normalize<STEPS>(normal, s, p, weights(kScale1), weights(kBias1), p.epsilon1, g, t);
    add_bias<STEPS>(s, weights(kProjBias), t);
#pragma unroll 2
    for (int group = 0; group < p.groups; ++group) {
        float qkv[3][2][4];
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            const int column = 16 * (i * p.groups + group);
            product<STEPS>(qkv[i], normal, weights(kQkv) + column, p.qkv_row, qkv_lane, weights(kQkvBias) + column, t);
        }
        uint32_t context[4];
        attend<HEAD>(context, qkv[0], qkv[1], qkv[2], p.scale, p.tokens, t);
        accumulate<STEPS>(s, context, weights(kProj) + 16 * group * p.proj_row, proj_lane);
    }

    normalize<STEPS>(normal, s, p, weights(kScale2), weights(kBias2), p.epsilon2, g, t);
    add_bias<STEPS>(s, weights(kDownBias), t);
#pragma unroll 2
    for (int column = 0; column < p.hidden; column += 16) {
        float up[2][4];
        product<STEPS>(up, normal, weights(kUp) + column, p.up_row, up_lane, weights(kUpBias) + column, t);
        activate(up[0], p.activation), activate(up[1], p.activation);
        uint32_t active[4];
        pack_tiles(active, up[0], up[1]);
        accumulate<STEPS>(s, active, weights(kDown) + column * p.down_row, down_lane);
    }
}
template <int STEPS> __device__ __forceinline__ void pack_patch(uint32_t (&raw)[2 * STEPS][2], const float (&s)[2 * STEPS][4]) {
#pragma unroll
    for (int j = 0; j < 2 * STEPS; ++j) raw[j][0] = pack_halves(s[j][0], s[j][1]), raw[j][1] = pack_halves(s[j][2], s[j][3]);
}

}  // namespace inner

// STEPS: sixteens of channels, rounded up. HEAD: the head size, rounded up to 8 or 16.
template <int STEPS, int HEAD> __global__ void __launch_bounds__(kInnerThreads) tnt_inner_kernel(const __grid_constant__ InnerArgs p) {
#if __CUDA_ARCH__ >= 800
    using namespace inner;
    extern __shared__ uint4 inner_shared[];
    __half* const shared = reinterpret_cast<__half*>(inner_shared);
    ptx::let_next_start();
    for (int i = threadIdx.x; i < p.shared; i += kInnerThreads) inner_shared[i] = uint4{};
    __syncthreads();
    for (int i = 0; i < kQkv; ++i) {
        if (p.unit == 8) fetch<8>(p.parts[i], shared);
        else fetch<2>(p.parts[i], shared);
    }
    for (int i = kQkv; i < kInnerTensors; ++i) {
        if (p.head_unit == 8) fetch<8>(p.parts[i], shared);
        else if (p.head_unit == 2) fetch<2>(p.parts[i], shared);
        else fetch<1>(p.parts[i], shared);
    }
    ptx::commit_copies();
    ptx::wait_for_previous();

    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int64_t step = int64_t{gridDim.x} * kInnerWarps;
    int64_t patch = int64_t{blockIdx.x} * kInnerWarps + threadIdx.x / 32;
    uint32_t raw[2 * STEPS][2];
    load_patch<STEPS>(raw, p, patch, g, t);
    ptx::wait_copies<0>();
    __syncthreads();
    for (; patch < p.patches; patch += step) {
        float s[2 * STEPS][4];
        unpack_patch<STEPS>(s, raw);
        load_patch<STEPS>(raw, p, patch + step, g, t);

        transform<STEPS, HEAD>(s, p, shared, g, t);
        uint32_t result[2 * STEPS][2];
        pack_patch<STEPS>(result, s);
        store_patch<STEPS>(p.y, result, p, patch, g, t);
    }
#endif
}

}  // namespace trt_opt
