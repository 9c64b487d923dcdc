// Kernels over a few rows of sizes known when they are compiled: the norm of rows in registers, and a warp's tile of a product.
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

// The same of one row that is in fp32, 8 elements a lane of C / 8.
template <int C> __device__ __forceinline__ void normalize_floats(float (&f)[8], float epsilon) {
    const float mean = group_sum<C / 8>(((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]))) * (1.f / C);
    float square = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) f[e] -= mean, square = fmaf(f[e], f[e], square);
    const float factor = rsqrtf(fmaf(group_sum<C / 8>(square), 1.f / C, epsilon));
#pragma unroll
    for (int e = 0; e < 8; ++e) f[e] *= factor;
}

// A warp's right operand of DEPTH contracted elements and N times 8 columns. It is of constants, so that it may be fetched while rows are on their way: shared memory
// gives a warp's tile no faster than the tensor cores take it.
template <int DEPTH, int N> struct TileColumns {
    static_assert(DEPTH % 32 == 0 && (N == 1 || N % 2 == 0));
    uint32_t b[DEPTH / 16][N][2];

    __device__ __forceinline__ void load(const __half* columns, int stride, int lane) {
        if constexpr (N == 1) {
#pragma unroll
            for (int k = 0; k < DEPTH / 16; k += 2) ptx::load_transposed4(b[k][0][0], b[k][0][1], b[k + 1][0][0], b[k + 1][0][1], columns + (k * 16 + lane) * stride);
        } else {
#pragma unroll
            for (int k = 0; k < DEPTH / 16; ++k)
#pragma unroll
                for (int n = 0; n < N; n += 2) ptx::load_transposed4(b[k][n][0], b[k][n][1], b[k][n + 1][0], b[k][n + 1][1], columns + (k * 16 + lane % 16) * stride + n * 8 + lane / 16 * 8);
        }
    }
    // sum += 16 rows times these.
    __device__ __forceinline__ void multiply_rows(const __half* rows, int stride, int lane, float (&sum)[N][4]) const {
        float other[N][4] = {};
        const __half* const from = rows + lane % 16 * stride + lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < DEPTH / 16; ++k) {
            float(&to)[N][4] = k % 2 ? other : sum;
            uint32_t a[4];
            ptx::load_matrices4(a, from + k * 16);
#pragma unroll
            for (int n = 0; n < N; ++n) multiply(to[n], a, b[k][n]);
        }
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[n][i] += other[n][i];
    }
};

}  // namespace trt_opt
