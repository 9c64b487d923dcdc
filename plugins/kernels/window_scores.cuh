// The attention of a head of 32 in a window, by a warpgroup: rows g and g + 8 of a warp's sixteen as results of products have them (warpgroup.cuh).
#pragma once

#include <math_constants.h>

#include "common.cuh"
#include "mma.cuh"
#include "warpgroup.cuh"
#include "warpgroup_registers.cuh"

namespace trt_opt {

__device__ __forceinline__ float2 floats(uint32_t pair) { return __half22float2(*reinterpret_cast<const __half2*>(&pair)); }
__device__ __forceinline__ float2 bias_pair(const __half* p) { return floats(*reinterpret_cast<const uint32_t*>(p)); }
__device__ __forceinline__ float2 bias_pair(const float* p) { return *reinterpret_cast<const float2*>(p); }

// `bias`: of each of the rows, from the lane's first key on. `others`: of keys that are masked (WindowRegions). Weights are left operands, and still to be multiplied with `inverse`.
template <int KEYS, class Bias>
__device__ __forceinline__ void weigh_keys(float (&s)[KEYS / 2], const Bias* const (&bias)[2], uint32_t (&others)[2][2], float scale, float mask_value, uint32_t (&weight)[KEYS / 4], float (&inverse)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
            const float2 v = bias_pair(bias[h] + 8 * j);
            s[4 * j + 2 * h] = fmaf(s[4 * j + 2 * h], scale, v.x), s[4 * j + 2 * h + 1] = fmaf(s[4 * j + 2 * h + 1], scale, v.y);
        }
    if (others[0][0] | others[0][1] | others[1][0] | others[1][1]) {
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
    constexpr float kLog2 = 1.4426950408889634f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float top = -CUDART_INF_F;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) top = fmaxf(top, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1)), top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const float base = top == -CUDART_INF_F ? 0.f : -top * kLog2;
        float sum = 0.f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
            const float u = exp2_fast(fmaf(s[4 * j + 2 * h], kLog2, base)), v = exp2_fast(fmaf(s[4 * j + 2 * h + 1], kLog2, base));
            sum += u, sum += v;
            weight[2 * j + h] = pack_halves(u, v);
        }
        sum = group_sum<4>(sum);
        inverse[h] = sum > 0.f ? __fdividef(1.f, sum) : 0.f;
    }
}

template <int KEYS> __device__ __forceinline__ void score_keys(float (&s)[KEYS / 2], const uint32_t (&queries)[8], uint32_t keys) {
    warpgroup::begin();
#pragma unroll
    for (int k = 0; k < 2; ++k) warpgroup::multiply_columns(s, queries[4 * k], queries[4 * k + 1], queries[4 * k + 2], queries[4 * k + 3], warpgroup::swizzled(keys + k * 32, 16), k);
    warpgroup::commit();
    warpgroup::wait<0>();
    warpgroup::settle(s);
}
// Beyond KEYS there are weights of 0 for values that are finite: those of rows of zeros.
template <int KEYS> __device__ __forceinline__ void weigh_values(float (&o)[16], const uint32_t (&weight)[KEYS / 4], uint32_t values) {
    const auto weight_of = [&](int i) { return i < KEYS / 4 ? weight[i] : 0u; };
    warpgroup::begin();
#pragma unroll
    for (int k = 0; k < 4; ++k)
        warpgroup::multiply_rows(o, weight_of(4 * k), weight_of(4 * k + 1), weight_of(4 * k + 2), weight_of(4 * k + 3), warpgroup::swizzled(values + k * 1024, 16), k);
    warpgroup::commit();
    warpgroup::wait<0>();
    warpgroup::settle(o);
}

}  // namespace trt_opt
