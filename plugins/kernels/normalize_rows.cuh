// Layer norm of a block's rows on their way into shared memory, as the left operand of a product.
#pragma once

#include "common.cuh"
#include "ptx.cuh"
#include "window_map.cuh"

namespace trt_opt {

constexpr int kNormPacks = 4;                            // of 8 elements of a row, that a lane has
constexpr int kNormMaxRow = kNormPacks * 32 * 8;         // elements

struct NormArgs {
    const __half *scale, *bias;  // [k]
    const __half* residual;      // [rows, k], added to the rows first; or null
    float epsilon;
    int lanes_log2;              // of the lanes of a row: the fewest whose packs cover it
};

namespace norm_rows {

// Row of the input that row `r` of the block is, or -1: past the end, or padding of a window, which becomes zeros.
__device__ __forceinline__ int64_t source(int r, int64_t row0, int rows, const WindowMap* map) {
    return r >= rows ? -1 : map ? map->source(static_cast<uint32_t>(row0 + r)) : row0 + r;
}

}  // namespace norm_rows

// Starts the copies of the rows to where they will be normalized. Each lane copies what it will read itself.
template <int BM, int WARPS>
__device__ __forceinline__ void fetch_rows(__half* normal, int norm_row, const __half* x, const NormArgs& p, int k, int64_t row0, int rows, const WindowMap* map, int lane, int warp) {
    const int lanes = 1 << p.lanes_log2, mine = lane & (lanes - 1), together = 32 >> p.lanes_log2;
#pragma unroll 1
    for (int r = warp * together + (lane >> p.lanes_log2); r < BM; r += WARPS * together) {
        const int64_t from = norm_rows::source(r, row0, rows, map);
        if (from < 0) continue;
#pragma unroll
        for (int i = 0; i < kNormPacks; ++i) {
            const int j = 8 * (i * lanes + mine);
            if (j < k) ptx::copy16(normal + r * norm_row + j, x + from * k + j, true);
        }
    }
}

// Normalizes them in place, after this thread's copies have landed; two rows of a lane at a time. Scale and bias are in shared
// memory. The columns from k to the next
// multiple of 16 become zeros.
template <int BM, int WARPS>
__device__ __forceinline__ void normalize_rows(__half* normal, int norm_row, const NormArgs& p, const __half* scale, const __half* bias, int k, int64_t row0, int rows, const WindowMap* map, int lane, int warp) {
    constexpr int kAtOnce = 2;
    const int lanes = 1 << p.lanes_log2, mine = lane & (lanes - 1), together = 32 >> p.lanes_log2;
    const float inverse = 1.f / static_cast<float>(k);
#pragma unroll 1
    for (int first = warp * together; first < BM; first += kAtOnce * WARPS * together) {
        Pack<__half, 8> x[kAtOnce][kNormPacks];
        int64_t from[kAtOnce];
        float sum[kAtOnce], square[kAtOnce];
#pragma unroll
        for (int q = 0; q < kAtOnce; ++q) {
            const int r = first + q * WARPS * together + (lane >> p.lanes_log2);
            from[q] = norm_rows::source(r, row0, rows, map);
            if (r >= BM) from[q] = -1;
            sum[q] = square[q] = 0;
#pragma unroll
            for (int i = 0; i < kNormPacks; ++i) {
                const int j = 8 * (i * lanes + mine);
                if (from[q] < 0 || j >= k) continue;
                x[q][i].raw = *reinterpret_cast<const uint4*>(normal + r * norm_row + j);
                if (p.residual) add_packs<__half, 8>(x[q][i], Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.residual + from[q] * k + j)));
                float f[8];
                x[q][i].floats(f);
                sum[q] += ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
            }
        }
#pragma unroll 1
        for (int step = lanes / 2; step > 0; step /= 2)
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q) sum[q] += __shfl_xor_sync(0xffffffffu, sum[q], step);
#pragma unroll
        for (int q = 0; q < kAtOnce; ++q) {
            sum[q] *= inverse;
#pragma unroll
            for (int i = 0; i < kNormPacks; ++i) {
                x[q][i].forget_floats();
                if (from[q] < 0 || 8 * (i * lanes + mine) >= k) continue;
                float f[8];
                x[q][i].floats(f);
#pragma unroll
                for (int e = 0; e < 8; ++e) f[e] -= sum[q], square[q] = fmaf(f[e], f[e], square[q]);
            }
        }
#pragma unroll 1
        for (int step = lanes / 2; step > 0; step /= 2)
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q) square[q] += __shfl_xor_sync(0xffffffffu, square[q], step);
#pragma unroll
        for (int q = 0; q < kAtOnce; ++q) {
            const int r = first + q * WARPS * together + (lane >> p.lanes_log2);
            if (r >= BM) continue;
            const float factor = rsqrtf(fmaf(square[q], inverse, p.epsilon));
#pragma unroll
            for (int i = 0; i < kNormPacks; ++i) {
                const int j = 8 * (i * lanes + mine);
                if (j >= k) continue;
                x[q][i].forget_floats();
                Pack<__half, 8> y;
                if (from[q] >= 0) {
                    float f[8], w[8], b[8];
                    x[q][i].floats(f);
                    Pack<__half, 8>(*reinterpret_cast<const uint4*>(scale + j)).floats(w);
                    Pack<__half, 8>(*reinterpret_cast<const uint4*>(bias + j)).floats(b);
#pragma unroll
                    for (int e = 0; e < 8; ++e) f[e] = fmaf((f[e] - sum[q]) * factor, w[e], b[e]);
                    y = Pack<__half, 8>::of(f);
                }
                *reinterpret_cast<uint4*>(normal + r * norm_row + j) = y.raw;
            }
            if (k % 16 != 0 && mine == 0) *reinterpret_cast<uint4*>(normal + r * norm_row + k) = uint4{};
        }
    }
}

}  // namespace trt_opt
