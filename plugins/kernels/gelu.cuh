// GELU in fp32, to well under the rounding of fp16.
#pragma once

#include "mma.cuh"

namespace trt_opt {

enum class Activation : int32_t { kNone, kGelu, kGeluTanh };

__device__ __forceinline__ float reciprocal(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
// x Phi(x) = x / (1 + exp(-u)), u = logit(Phi(x)), which is odd and smooth: a least-squares fit of u / x in x^2 over
// |x| < 6, weighted for the error of the product, which stays below 4e-6. Beyond, the result is x or less than 1e-8.
__device__ __forceinline__ float gelu_erf(float v) {
    constexpr float kUnit = -1.4426950408889634f;
    const float t = fminf(v * v, 36.f);
    float p = fmaf(t, 2.22506155e-06f * kUnit, -6.09307911e-05f * kUnit);
    p = fmaf(t, p, -2.50972104e-04f * kUnit);
    p = fmaf(t, p, 7.29398986e-02f * kUnit);
    p = fmaf(t, p, 1.59565513e+00f * kUnit);
    return v * reciprocal(1.f + exp2_fast(v * p));
}
// x / 2 (1 + tanh u) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
__device__ __forceinline__ float gelu_tanh(float v) {
    const float u = v * fmaf(v * v, 0.044715f * 0.79788456f, 0.79788456f);
    return v * reciprocal(1.f + exp2_fast(u * (-2.f * 1.44269504f)));
}
template <int N> __device__ __forceinline__ void activate(float (&v)[N], Activation how) {
    if (how == Activation::kGelu) {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = gelu_erf(v[i]);
    } else if (how == Activation::kGeluTanh) {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = gelu_tanh(v[i]);
    }
}

}  // namespace trt_opt
