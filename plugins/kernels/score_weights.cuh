// A softmax over whole rows of scores that a warp has in its registers.
#pragma once

#include <math_constants.h>

#include "mma.cuh"

namespace trt_opt {

// The largest score of row g + 8 h, of four lanes: elements 4 j + 2 h and the next of each.
template <int COUNT> __device__ __forceinline__ float largest_of_row(const float (&s)[COUNT], int h) {
    float top = -CUDART_INF_F;
#pragma unroll
    for (int j = 0; j < COUNT / 4; ++j) top = fmaxf(top, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    return fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
}

// From scores in log2 units, rows g and g + 8 of TILES tiles of 8 keys: weights, the largest of a row 1, as left operands of the
// tensor cores, and this lane's part of each row's sum. A row of nothing but -inf has weights of 0.
template <int TILES> __device__ __forceinline__ void score_weights(float (&s)[TILES][4], uint32_t (*weights)[2], float& sum0, float& sum1) {
    float top0 = -CUDART_INF_F, top1 = -CUDART_INF_F;
#pragma unroll
    for (int n = 0; n < TILES; ++n) top0 = fmaxf(top0, fmaxf(s[n][0], s[n][1])), top1 = fmaxf(top1, fmaxf(s[n][2], s[n][3]));
    top0 = fmaxf(top0, __shfl_xor_sync(0xffffffffu, top0, 1));
    top1 = fmaxf(top1, __shfl_xor_sync(0xffffffffu, top1, 1));
    top0 = fmaxf(top0, __shfl_xor_sync(0xffffffffu, top0, 2));
    top1 = fmaxf(top1, __shfl_xor_sync(0xffffffffu, top1, 2));
    if (top0 == -CUDART_INF_F) top0 = 0.f;
    if (top1 == -CUDART_INF_F) top1 = 0.f;
    sum0 = 0.f, sum1 = 0.f;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
        s[n][0] = exp2_fast(s[n][0] - top0), s[n][1] = exp2_fast(s[n][1] - top0);
        s[n][2] = exp2_fast(s[n][2] - top1), s[n][3] = exp2_fast(s[n][3] - top1);
        sum0 += s[n][0] + s[n][1], sum1 += s[n][2] + s[n][3];
        weights[n][0] = pack_halves(s[n][0], s[n][1]);
        weights[n][1] = pack_halves(s[n][2], s[n][3]);
    }
}

}  // namespace trt_opt
