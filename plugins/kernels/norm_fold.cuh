// The weights of a product with a layer norm folded into it (block_gemm.cuh): B' = scale B, sum(B') and shift B.
#pragma once

#include "mma.cuh"
#include "ptx.cuh"

namespace trt_opt {

constexpr int kFoldColumns = 32;

// What one warp does, for so many columns of B and the rows that it takes: 16 from `row` on, then 16 more each `step` rows, below
// `rows`. B is in shared memory, its rows `b_row` apart, and becomes B'; each column's sum(B') and shift B go to `sums` and
// `shifteds`. Columns are rows of the tensor cores' left operand; ones and the shift are each column of a right one.
__device__ __forceinline__ void fold_norm(__half* b, int b_row, const __half* scale, const __half* shift, int row, int rows, int step, float* sums, float* shifteds) {
    using namespace ptx;
    // A step's stores wait for its loads and the next step's loads for its stores, so that one tile of 16 columns would leave gaps.
    constexpr int kTiles = kFoldColumns / 16;
    constexpr uint32_t kOnes[2] = {0x3c003c00u, 0x3c003c00u};
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    __half* at = b + (row + lane / 16 * 8 + lane % 8) * b_row + lane / 8 % 2 * 8;
    float sum[kTiles][4] = {}, shifted[kTiles][4] = {};
    auto product = [](uint32_t x, uint32_t y) {
        const __half2 v = __hmul2(*reinterpret_cast<const __half2*>(&x), *reinterpret_cast<const __half2*>(&y));
        return *reinterpret_cast<const uint32_t*>(&v);
    };
    auto pair = [&](const __half* of, int first) { return *reinterpret_cast<const uint32_t*>(of + first + 2 * t); };
#pragma unroll 1
    for (; row < rows; row += step, at += step * b_row) {
        uint32_t x[kTiles][4];  // columns 0 to 7 and 8 to 15 of rows 0 to 7, then of rows 8 to 15
#pragma unroll
        for (int i = 0; i < kTiles; ++i) load_transposed4(x[i][0], x[i][1], x[i][2], x[i][3], at + i * 16);
        const uint32_t scales[2] = {pair(scale, row), pair(scale, row + 8)}, shifts[2] = {pair(shift, row), pair(shift, row + 8)};
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
            multiply(shifted[i], x[i], shifts);
#pragma unroll
            for (int j = 0; j < 4; ++j) x[i][j] = product(x[i][j], scales[j / 2]);
            store_transposed4(at + i * 16, x[i][0], x[i][1], x[i][2], x[i][3]);
            multiply(sum[i], x[i], kOnes);
        }
    }
    if (t == 0) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
            sums[i * 16 + g] = sum[i][0], sums[i * 16 + g + 8] = sum[i][2];
            shifteds[i * 16 + g] = shifted[i][0], shifteds[i * 16 + g + 8] = shifted[i][2];
        }
    }
}

}  // namespace trt_opt
