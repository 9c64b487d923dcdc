// The attention of a head of 32 in a window, by a warpgroup: rows g and g + 8 of a warp's sixteen as results of products have them (warpgroup.cuh).
#pragma once

#include <math_constants.h>

#include "common.cuh"
#include "mma.cuh"
#include "score_weights.cuh"
#include "warpgroup.cuh"
#include "warpgroup_registers.cuh"

namespace trt_opt {

__device__ __forceinline__ float2 bias_pair(const __half* p) { return floats(*reinterpret_cast<const uint32_t*>(p)); }
__device__ __forceinline__ float2 bias_pair(const float* p) { return *reinterpret_cast<const float2*>(p); }

// What masks add. `others`: of keys that are masked (WindowRegions).
template <int KEYS> __device__ __forceinline__ void mask_keys(float (&s)[KEYS / 2], uint32_t (&others)[2][2], float mask_value) {
    if (!(others[0][0] | others[0][1] | others[1][0] | others[1][1])) return;
    // What is worked out of these is worked out anew for each head, for want of registers.
    asm volatile("" : "+r"(others[0][0]), "+r"(others[0][1]), "+r"(others[1][0]), "+r"(others[1][1]));
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (others[h][j / 4] >> (j % 4 * 8 + e) & 1) s[4 * j + 2 * h + e] += mask_value;
}
// Weights of scores, as left operands, and this lane's part of their sums.
template <int KEYS> __device__ __forceinline__ void exponentiate_keys(const float (&s)[KEYS / 2], uint32_t (&weight)[KEYS / 4], float (&sum)[2]) {
    constexpr float kLog2 = 1.4426950408889634f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float top = largest_of_row(s, h), base = top == -CUDART_INF_F ? 0.f : -top * kLog2;
        float even = 0.f, odd = 0.f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
            const float u = exp2_fast(fmaf(s[4 * j + 2 * h], kLog2, base)), v = exp2_fast(fmaf(s[4 * j + 2 * h + 1], kLog2, base));
            even += u, odd += v;
            weight[2 * j + h] = pack_halves(u, v);
        }
        sum[h] = even + odd;
    }
}
__device__ __forceinline__ float inverse_sum(float part) {
    const float sum = group_sum<4>(part);
    return sum > 0.f ? reciprocal(sum) : 0.f;
}
// `bias`: of each of the rows, from the lane's first key on. Weights are still to be multiplied with `inverse`.
template <int KEYS, class Bias>
__device__ __forceinline__ void weigh_keys(float (&s)[KEYS / 2], const Bias* const (&bias)[2], uint32_t (&others)[2][2], float scale, float mask_value, uint32_t (&weight)[KEYS / 4], float (&inverse)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
            const float2 v = bias_pair(bias[h] + 8 * j);
            s[4 * j + 2 * h] = fmaf(s[4 * j + 2 * h], scale, v.x), s[4 * j + 2 * h + 1] = fmaf(s[4 * j + 2 * h + 1], scale, v.y);
        }
    mask_keys<KEYS>(s, others, mask_value);
    float sum[2];
    exponentiate_keys<KEYS>(s, weight, sum);
    inverse[0] = inverse_sum(sum[0]), inverse[1] = inverse_sum(sum[1]);
}

// s = the products, or with ADDED are what s had and the products. `meanwhile` is done while they are under way.
template <int KEYS, bool ADDED = false, class Meanwhile> __device__ __forceinline__ void score_keys(float (&s)[KEYS / 2], const uint32_t (&queries)[8], uint32_t keys, const Meanwhile& meanwhile) {
    if constexpr (ADDED) warpgroup::settle(s);
    warpgroup::begin();
#pragma unroll
    for (int k = 0; k < 2; ++k) warpgroup::multiply_columns(s, queries[4 * k], queries[4 * k + 1], queries[4 * k + 2], queries[4 * k + 3], warpgroup::swizzled_at(keys, k * 32, 16), ADDED ? 1 : k);
    warpgroup::commit();
    meanwhile();
    warpgroup::wait<0>();
    warpgroup::settle(s);
}
template <int KEYS> __device__ __forceinline__ void score_keys(float (&s)[KEYS / 2], const uint32_t (&queries)[8], uint32_t keys) { score_keys<KEYS>(s, queries, keys, [] {}); }
// Beyond KEYS there are weights of 0 for values that are finite: those of rows of zeros.
template <int KEYS, class Meanwhile> __device__ __forceinline__ void weigh_values(float (&o)[16], const uint32_t (&weight)[KEYS / 4], uint32_t values, const Meanwhile& meanwhile) {
    const auto weight_of = [&](int i) { return i < KEYS / 4 ? weight[i] : 0u; };
    warpgroup::begin();
#pragma unroll
    for (int k = 0; k < 4; ++k)
        warpgroup::multiply_rows(o, weight_of(4 * k), weight_of(4 * k + 1), weight_of(4 * k + 2), weight_of(4 * k + 3), warpgroup::swizzled_at(values, k * 1024, 16), k);
    warpgroup::commit();
    meanwhile();
    warpgroup::wait<0>();
    warpgroup::settle(o);
}
template <int KEYS> __device__ __forceinline__ void weigh_values(float (&o)[16], const uint32_t (&weight)[KEYS / 4], uint32_t values) { weigh_values<KEYS>(o, weight, values, [] {}); }

}  // namespace trt_opt
