// Products with a weight matrix without tensor cores, of any size.
#pragma once

#include "common.cuh"

namespace trt_opt {

template <class T> struct GemmPlainArgs {
    const T* a;  // [rows, k]
    const T* b;  // [k, n]
    int64_t rows;
    int k, n;
};

constexpr int kGemmPlainTile = 64, kGemmPlainDepth = 16, kGemmPlainThreads = 256;

// What a thread's 4 x 4 elements of a tile get of kGemmPlainDepth contracted ones in shared memory: rows `down` to `down` + 3, and of columns
// `across` and each sixteenth after it.
template <int A, int B>
__device__ __forceinline__ void gemm_plain_step(const float (&a)[kGemmPlainDepth][A], const float (&b)[kGemmPlainDepth][B], int down, int across, float (&sum)[4][4]) {
#pragma unroll 4
    for (int k = 0; k < kGemmPlainDepth; ++k) {
        float left[4], right[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) left[i] = a[k][down + i], right[i] = b[k][across + 16 * i];
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(left[i], right[j], sum[i][j]);
    }
}

// A block makes a 64 x 64 tile of the product, a thread 4 x 4 elements of it. `out(row, column, sum)` has the rest.
template <class T, class Out> __global__ void __launch_bounds__(kGemmPlainThreads) gemm_plain_kernel(const GemmPlainArgs<T> p, const Out out) {
    constexpr int kTile = kGemmPlainTile, kDepth = kGemmPlainDepth;
    // A column more than there are: else the stores of `a`, which go down a column, would fall on few banks.
    __shared__ float a[kDepth][kTile + 1], b[kDepth][kTile];
    const int tid = threadIdx.x, down = tid / 16 * 4, across = tid % 16;
    const int64_t row0 = int64_t{blockIdx.x} * kTile;
    const int column0 = static_cast<int>(blockIdx.y) * kTile;
    float sum[4][4] = {};
    for (int depth = 0; depth < p.k; depth += kDepth) {
        for (int i = tid; i < kTile * kDepth; i += kGemmPlainThreads) {
            const int row = i / kDepth, k = i % kDepth;
            a[k][row] = row0 + row < p.rows && depth + k < p.k ? to_float(p.a[(row0 + row) * p.k + depth + k]) : 0.f;
        }
        for (int i = tid; i < kTile * kDepth; i += kGemmPlainThreads) {
            const int k = i / kTile, column = i % kTile;
            b[k][column] = depth + k < p.k && column0 + column < p.n ? to_float(p.b[int64_t{depth + k} * p.n + column0 + column]) : 0.f;
        }
        __syncthreads();
        gemm_plain_step(a, b, down, across, sum);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int64_t row = row0 + down + i;
        if (row >= p.rows) break;
        const auto at = out.row(row);
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (const int column = column0 + across + 16 * j; column < p.n) out.put(at, column, sum[i][j]);
    }
}

// What a product is without more: with its offset, rounded.
template <class T> struct GemmPlainOut {
    const T* bias;
    T* y;
    int columns;

    __device__ __forceinline__ T* row(int64_t r) const { return y + r * columns; }
    __device__ __forceinline__ void put(T* at, int column, float sum) const { at[column] = from_float<T>(sum + to_float(bias[column])); }
};

template <class T, class Out> cudaError_t gemm_plain(const GemmPlainArgs<T>& p, const Out& out, cudaStream_t stream) {
    const int64_t blocks = (p.rows + kGemmPlainTile - 1) / kGemmPlainTile;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    if (blocks == 0) return cudaSuccess;
    const dim3 grid(static_cast<uint32_t>(blocks), static_cast<uint32_t>((p.n + kGemmPlainTile - 1) / kGemmPlainTile));
    gemm_plain_kernel<T><<<grid, kGemmPlainThreads, 0, stream>>>(p, out);
    return cudaGetLastError();
}

}  // namespace trt_opt
