// Attention over few keys (windows, the words of a patch): a warp keeps all keys and values of one
// (batch row, head) in registers and goes over the query tiles with the whole score row at once.
// No shared memory but for the bias, which a block gathers once for all the batch rows that share it.
#pragma once

#include "attention_common.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "score_weights.cuh"

namespace trt_opt {

// TILES: tiles of 8 keys. `split` warps share a (batch row, head).
// STAGED: a block has one head and batch rows phase, phase + period, ..., `per_block` of them; their bias is gathered
// into shared memory, [query tiles][TILES][32] float4. Grid: heads * period * parts of the rows of a phase.
// Otherwise a block has (warps / split) neighbours of the (batch row, head) pairs, heads fastest, and reads their bias in place.
template <int D, int TILES, bool WIDE, bool STAGED>
__global__ void __launch_bounds__(128) attention_resident_kernel(const __grid_constant__ AttentionArgs<__half> p, int split, FastDiv by_heads, FastDiv by_period) {
    using L = HeadLayout<D>;
    constexpr int kSteps = (TILES + 1) / 2;  // of 16 keys
    ptx::let_next_start();
    ptx::wait_for_previous();
    extern __shared__ float4 staged[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int g = lane / 4, t = lane % 4;
    const int part = warp % split;
    const int query_tiles = (p.n + 15) / 16;

    uint32_t h, phase;
    int64_t b, end, step;
    if constexpr (STAGED) {
        const int64_t chunk = by_period.divmod(by_heads.divmod(blockIdx.x, h), phase);
        b = (chunk * p.per_block + warp / split) * p.period + phase;
        end = min(p.batch, (chunk + 1) * p.per_block * p.period);
        step = warps / split * p.period;
        const ScoreBias<__half> bias(p, phase, h);
        for (int tile = warp; tile < query_tiles; tile += warps) {
            float f[TILES][4];
            bias.fragments<TILES>(tile * 16 + g, tile * 16 + g + 8, 2 * t, f);
#pragma unroll
            for (int n = 0; n < TILES; ++n) staged[(tile * TILES + n) * 32 + lane] = make_float4(f[n][0], f[n][1], f[n][2], f[n][3]);
        }
        __syncthreads();
    } else {
        b = by_heads.divmod(blockIdx.x * (warps / split) + warp / split, h);
        end = min(p.batch, b + 1);
        step = 1;
    }
    for (; b < end; b += step) {
        const __half* q = p.q.rows(b, h);
        const __half* k = p.k.rows(b, h);
        const __half* v = p.v.rows(b, h);

        uint32_t keys[TILES][L::kChunks][L::kRegs];
#pragma unroll
        for (int n = 0; n < TILES; ++n) load_row<D, WIDE>(k + int64_t{n * 8 + g} * p.k.token, n * 8 + g < p.m, t, p.d, keys[n]);
        uint32_t values[2 * kSteps][L::kGroups][L::kTiles];  // half steps of 8 keys
#pragma unroll
        for (int n = 0; n < TILES; ++n) load_values<D, WIDE>(v, p.v.token, n * 8 + 2 * t, p.m, g, p.dv, values[n]);

        for (int tile = part; tile < query_tiles; tile += split) {
            const int r0 = tile * 16 + g, r1 = r0 + 8;
            uint32_t q0[L::kChunks][L::kRegs], q1[L::kChunks][L::kRegs];
            load_row<D, WIDE>(q + int64_t{r0} * p.q.token, r0 < p.n, t, p.d, q0);
            load_row<D, WIDE>(q + int64_t{r1} * p.q.token, r1 < p.n, t, p.d, q1);

            float s[TILES][4];
            const float scale = p.scale * kLog2e;
            if constexpr (STAGED) {
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
                    s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
                    score_tile<D>(s[n], q0, q1, keys[n]);
                    const float4 f = staged[(tile * TILES + n) * 32 + lane];
                    s[n][0] = fmaf(s[n][0], scale, f.x), s[n][1] = fmaf(s[n][1], scale, f.y);
                    s[n][2] = fmaf(s[n][2], scale, f.z), s[n][3] = fmaf(s[n][3], scale, f.w);
                }
            } else {
                float f[TILES][4];
                ScoreBias<__half>(p, static_cast<uint32_t>(b), h).fragments<TILES>(r0, r1, 2 * t, f);
#pragma unroll
                for (int n = 0; n < TILES; ++n) {
                    s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
                    score_tile<D>(s[n], q0, q1, keys[n]);
#pragma unroll
                    for (int e = 0; e < 4; ++e) s[n][e] = fmaf(s[n][e], scale, f[n][e]);
                }
            }
            float sum0, sum1;
            uint32_t weights[2 * kSteps][2];  // A fragments: rows g, g + 8 of keys 2t, 2t + 1 of each tile
            score_weights<TILES>(s, weights, sum0, sum1);
            float o[L::kGroups][L::kTiles][4];
#pragma unroll
            for (int c = 0; c < L::kGroups; ++c)
#pragma unroll
                for (int j = 0; j < L::kTiles; ++j) {
                    o[c][j][0] = o[c][j][1] = o[c][j][2] = o[c][j][3] = 0.f;
#pragma unroll
                    for (int n = 0; n + 1 < TILES; n += 2)
                        mma_k16(o[c][j], weights[n][0], weights[n][1], weights[n + 1][0], weights[n + 1][1], values[n][c][j], values[n + 1][c][j]);
                    if constexpr (TILES % 2) mma_k8(o[c][j], weights[TILES - 1][0], weights[TILES - 1][1], values[TILES - 1][c][j]);
                }
            sum0 += __shfl_xor_sync(0xffffffffu, sum0, 1);
            sum1 += __shfl_xor_sync(0xffffffffu, sum1, 1);
            sum0 += __shfl_xor_sync(0xffffffffu, sum0, 2);
            sum1 += __shfl_xor_sync(0xffffffffu, sum1, 2);
            if (r0 < p.n) store_row<D, WIDE>(p.out_row(b, h, r0), t, p.dv, o, 0, sum0 > 0.f ? 1.f / sum0 : 0.f);
            if (r1 < p.n) store_row<D, WIDE>(p.out_row(b, h, r1), t, p.dv, o, 2, sum1 > 0.f ? 1.f / sum1 : 0.f);
        }
    }
}

}  // namespace trt_opt
