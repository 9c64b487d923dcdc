// Attention over any number of keys: a warp has 16 queries and streams the keys through the tensor
// cores with a running softmax. The warps of a block are (query tiles) x (parts of the keys); the
// parts are merged in shared memory at the end. Operands come straight from global memory; query
// tiles of a block share keys and values through the L1 cache.
#pragma once

#include "attention_common.cuh"
#include "mma.cuh"
#include "ptx.cuh"

namespace trt_opt {

// BIASED: there is a bias or a mask. Grid: heads * ceil(query tiles / tiles a block) * batch rows. `parts` warps share a query tile.
// Shared memory: (warps - warps / parts) * kFloats * 32 floats.
template <int D, bool WIDE> struct StreamShape {
    static constexpr int kKeys = D >= 128 ? 16 : 32;  // a step
    static constexpr int kFloats = D / 2 + 4;         // a lane's accumulators, maxima and sums
};

template <int D, bool WIDE, bool BIASED>
__global__ void __launch_bounds__(128, D <= 32 || (D == 64 && !BIASED) ? 3 : 2) attention_stream_kernel(const __grid_constant__ AttentionArgs<__half> p, int parts, FastDiv by_heads, FastDiv by_tiles) {
    using L = HeadLayout<D>;
    constexpr int kKeys = StreamShape<D, WIDE>::kKeys, kTiles = kKeys / 8;
    ptx::let_next_start();
    ptx::wait_for_previous();
    extern __shared__ float merge[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int g = lane / 4, t = lane % 4;
    uint32_t h, group;
    const int64_t b = by_tiles.divmod(by_heads.divmod(blockIdx.x, h), group);
    const int part = warp % parts;
    const int tile = group * (warps / parts) + warp / parts;
    const int r0 = tile * 16 + g, r1 = r0 + 8;
    // Each part is a whole number of steps.
    const int steps = (p.m + kKeys - 1) / kKeys, each = (steps + parts - 1) / parts;
    const int begin = part * each * kKeys, end = min(p.m, begin + each * kKeys);

    const ScoreBias<__half> bias(p, static_cast<uint32_t>(b), h);
    const __half* k = p.k.rows(b, h);
    const __half* v = p.v.rows(b, h);
    const __half* q = p.q.rows(b, h);
    uint32_t q0[L::kChunks][L::kRegs], q1[L::kChunks][L::kRegs];
    load_row<D, WIDE>(q + int64_t{r0} * p.q.token, r0 < p.n, t, p.d, q0);
    load_row<D, WIDE>(q + int64_t{r1} * p.q.token, r1 < p.n, t, p.d, q1);
    const float scale = p.scale * kLog2e;

    float o[L::kGroups][L::kTiles][4] = {};
    float top0 = -CUDART_INF_F, top1 = -CUDART_INF_F, sum0 = 0.f, sum1 = 0.f;
    const int last = tile * 16 < p.n ? end : begin;  // a tile beyond the queries does nothing
    uint32_t keys[kTiles][L::kChunks][L::kRegs];
    auto load_keys = [&](int first) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
            const int key = min(first + n * 8 + g, p.m - 1);
            load_row<D, WIDE>(k + int64_t{key} * p.k.token, true, t, p.d, keys[n]);
        }
    };
    load_keys(begin);
    for (int first = begin; first < last; first += kKeys) {
        uint32_t values[kTiles][L::kGroups][L::kTiles];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) load_values<D, WIDE>(v, p.v.token, first + n * 8 + 2 * t, p.m, g, p.dv, values[n]);
        float s[kTiles][4], f[kTiles][4];
        if constexpr (BIASED) bias.fragments<kTiles>(r0, r1, first + 2 * t, f);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
            s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
            score_tile<D>(s[n], q0, q1, keys[n]);
        }
        if constexpr (BIASED) {
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) s[n][e] = fmaf(s[n][e], scale, f[n][e]);
        } else {
#pragma unroll
            for (int n = 0; n < kTiles; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) s[n][e] = first + n * 8 + 2 * t + e % 2 < p.m ? s[n][e] * scale : -CUDART_INF_F;
        }
        load_keys(first + kKeys);  // of the next step, while this one goes on
        float new0 = top0, new1 = top1;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) new0 = fmaxf(new0, fmaxf(s[n][0], s[n][1])), new1 = fmaxf(new1, fmaxf(s[n][2], s[n][3]));
        new0 = fmaxf(new0, __shfl_xor_sync(0xffffffffu, new0, 1));
        new1 = fmaxf(new1, __shfl_xor_sync(0xffffffffu, new1, 1));
        new0 = fmaxf(new0, __shfl_xor_sync(0xffffffffu, new0, 2));
        new1 = fmaxf(new1, __shfl_xor_sync(0xffffffffu, new1, 2));
        const float base0 = new0 == -CUDART_INF_F ? 0.f : new0, base1 = new1 == -CUDART_INF_F ? 0.f : new1;
        const float fade0 = exp2_fast(top0 - base0), fade1 = exp2_fast(top1 - base1);
        top0 = new0, top1 = new1;
        sum0 *= fade0, sum1 *= fade1;
        uint32_t weights[kTiles][2];
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
            s[n][0] = exp2_fast(s[n][0] - base0), s[n][1] = exp2_fast(s[n][1] - base0);
            s[n][2] = exp2_fast(s[n][2] - base1), s[n][3] = exp2_fast(s[n][3] - base1);
            sum0 += s[n][0] + s[n][1], sum1 += s[n][2] + s[n][3];
            weights[n][0] = pack_halves(s[n][0], s[n][1]);
            weights[n][1] = pack_halves(s[n][2], s[n][3]);
        }
#pragma unroll
        for (int c = 0; c < L::kGroups; ++c)
#pragma unroll
            for (int j = 0; j < L::kTiles; ++j) o[c][j][0] *= fade0, o[c][j][1] *= fade0, o[c][j][2] *= fade1, o[c][j][3] *= fade1;
#pragma unroll
        for (int n = 0; n < kTiles; n += 2) {
#pragma unroll
            for (int c = 0; c < L::kGroups; ++c)
#pragma unroll
                for (int j = 0; j < L::kTiles; ++j)
                    mma_k16(o[c][j], weights[n][0], weights[n][1], weights[n + 1][0], weights[n + 1][1], values[n][c][j], values[n + 1][c][j]);
        }
    }
    sum0 += __shfl_xor_sync(0xffffffffu, sum0, 1);
    sum1 += __shfl_xor_sync(0xffffffffu, sum1, 1);
    sum0 += __shfl_xor_sync(0xffffffffu, sum0, 2);
    sum1 += __shfl_xor_sync(0xffffffffu, sum1, 2);

    if (parts > 1) {
        constexpr int kFloats = StreamShape<D, WIDE>::kFloats;
        float* mine = merge + (warp / parts * (parts - 1) + part - 1) * kFloats * 32 + lane;
        if (part > 0) {
#pragma unroll
            for (int c = 0; c < L::kGroups; ++c)
#pragma unroll
                for (int j = 0; j < L::kTiles; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) mine[((c * L::kTiles + j) * 4 + e) * 32] = o[c][j][e];
            mine[(kFloats - 4) * 32] = top0, mine[(kFloats - 3) * 32] = top1;
            mine[(kFloats - 2) * 32] = sum0, mine[(kFloats - 1) * 32] = sum1;
        }
        __syncthreads();
        if (part > 0) return;
        for (int other = 1; other < parts; ++other) {
            const float* theirs = merge + (warp / parts * (parts - 1) + other - 1) * kFloats * 32 + lane;
            const float their0 = theirs[(kFloats - 4) * 32], their1 = theirs[(kFloats - 3) * 32];
            const float new0 = fmaxf(top0, their0), new1 = fmaxf(top1, their1);
            const float base0 = new0 == -CUDART_INF_F ? 0.f : new0, base1 = new1 == -CUDART_INF_F ? 0.f : new1;
            const float a0 = exp2_fast(top0 - base0), a1 = exp2_fast(top1 - base1);
            const float b0 = exp2_fast(their0 - base0), b1 = exp2_fast(their1 - base1);
            top0 = new0, top1 = new1;
            sum0 = sum0 * a0 + theirs[(kFloats - 2) * 32] * b0;
            sum1 = sum1 * a1 + theirs[(kFloats - 1) * 32] * b1;
#pragma unroll
            for (int c = 0; c < L::kGroups; ++c)
#pragma unroll
                for (int j = 0; j < L::kTiles; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const float value = theirs[((c * L::kTiles + j) * 4 + e) * 32];
                        o[c][j][e] = e < 2 ? o[c][j][e] * a0 + value * b0 : o[c][j][e] * a1 + value * b1;
                    }
        }
    }
    if (r0 < p.n) store_row<D, WIDE>(p.out_row(b, h, r0), t, p.dv, o, 0, sum0 > 0.f ? 1.f / sum0 : 0.f);
    if (r1 < p.n) store_row<D, WIDE>(p.out_row(b, h, r1), t, p.dv, o, 2, sum1 > 0.f ? 1.f / sum1 : 0.f);
}

}  // namespace trt_opt
