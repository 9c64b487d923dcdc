// Kernels over a few rows of sizes known when they are compiled: the norm of rows in registers, and a warp's tile of a product of operands in shared memory.
#pragma once

#include "common.cuh"
#include "mma.cuh"
#include "ptx.cuh"

namespace trt_opt {

// What is normalized of rows of C elements, of which a lane has PIECES of 8 each, without scale and shift; zeros of zeros. The sums of all rows are made side by side,
// so that no row waits for another's shuffles.
template <int C, int ROWS, int PIECES> __device__ __forceinline__ void normalize_rows(const Pack<__half, 8> (&rows)[ROWS][PIECES], float epsilon, float (&f)[ROWS][PIECES][8]) {
    constexpr int kLanes = C / 8 / PIECES;
    float sum[ROWS];
#pragma unroll
    for (int j = 0; j < ROWS; ++j) {
        sum[j] = 0;
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            float(&v)[8] = f[j][i];
            rows[j][i].floats(v);
            sum[j] += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
        }
    }
    auto over_lanes = [&] {
#pragma unroll
        for (int step = kLanes / 2; step > 0; step /= 2)
#pragma unroll
            for (int j = 0; j < ROWS; ++j) sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], step);
    };
    over_lanes();
#pragma unroll
    for (int j = 0; j < ROWS; ++j) {
        const float mean = sum[j] * (1.f / C);
        sum[j] = 0;
#pragma unroll
        for (int i = 0; i < PIECES; ++i)
#pragma unroll
            for (int e = 0; e < 8; ++e) f[j][i][e] -= mean, sum[j] = fmaf(f[j][i][e], f[j][i][e], sum[j]);
    }
    over_lanes();
#pragma unroll
    for (int j = 0; j < ROWS; ++j) {
        const float factor = rsqrtf(fmaf(sum[j], 1.f / C, epsilon));
#pragma unroll
        for (int i = 0; i < PIECES; ++i)
#pragma unroll
            for (int e = 0; e < 8; ++e) f[j][i][e] *= factor;
    }
}

// 16 rows by 8 columns; `depth` contracted elements, a multiple of 32.
__device__ __forceinline__ void tile_product(const __half* rows, int stride, const __half* columns, int column_stride, int depth, int lane, float (&sum)[4]) {
    float other[4] = {};
#pragma unroll
    for (int k = 0; k < depth; k += 32) {
        uint32_t a[4], a2[4], b[2], b2[2];
        const __half* const from = rows + lane % 16 * stride + lane / 16 * 8 + k;
        ptx::load_matrices4(a, from), ptx::load_matrices4(a2, from + 16);
        ptx::load_transposed4(b[0], b[1], b2[0], b2[1], columns + (k + lane) * column_stride);
        multiply(sum, a, b), multiply(other, a2, b2);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += other[i];
}

// 16 rows by 16 columns a pair of `sum`, DEPTH contracted elements.
template <int DEPTH, int N> __device__ __forceinline__ void wide_tile_product(const __half* rows, int stride, const __half* columns, int column_stride, int lane, float (&sum)[N][4]) {
    static_assert(DEPTH % 32 == 0 && N % 2 == 0);
    float other[N][4] = {};
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        float(&to)[N][4] = k % 32 ? other : sum;
        uint32_t a[4];
        ptx::load_matrices4(a, rows + lane % 16 * stride + lane / 16 * 8 + k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[2][2];
            ptx::load_transposed4(b[0][0], b[0][1], b[1][0], b[1][1], columns + (k + lane % 16) * column_stride + n * 8 + lane / 16 * 8);
            multiply(to[n], a, b[0]), multiply(to[n + 1], a, b[1]);
        }
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[n][i] += other[n][i];
}

}  // namespace trt_opt
