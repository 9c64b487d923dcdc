// GELU in fp32, to well under the rounding of fp16.
#pragma once

#include "mma.cuh"

namespace trt_opt {

enum class Activation : int32_t { kNone, kGelu, kGeluTanh };

// x Phi(x) = x / (1 + exp(-u)), u = logit(Phi(x)), which is odd and smooth: a least-squares fit of u / x in x^2 over
// |x| < 6, weighted for the error of the product, which stays below 4e-6. Beyond, the result is x or less than 1e-8.
__device__ __forceinline__ float gelu_erf_power(float v) {
    constexpr float kUnit = -1.4426950408889634f;
    const float t = fminf(v * v, 36.f);
    float p = fmaf(t, 2.22506155e-06f * kUnit, -6.09307911e-05f * kUnit);
    p = fmaf(t, p, -2.50972104e-04f * kUnit);
    p = fmaf(t, p, 7.29398986e-02f * kUnit);
    p = fmaf(t, p, 1.59565513e+00f * kUnit);
    return v * p;
}
__device__ __forceinline__ float gelu_erf(float v) { return v * reciprocal(1.f + exp2_fast(gelu_erf_power(v))); }
// x / 2 (1 + tanh u) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
__device__ __forceinline__ float gelu_tanh_power(float v) {
    const float u = v * fmaf(v * v, 0.044715f * 0.79788456f, 0.79788456f);
    return u * (-2.f * 1.44269504f);
}
__device__ __forceinline__ float gelu_tanh(float v) { return v * reciprocal(1.f + exp2_fast(gelu_tanh_power(v))); }
template <int N> __device__ __forceinline__ void activate(float (&v)[N], Activation how) {
    if (how == Activation::kGelu) {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = gelu_erf(v[i]);
    } else if (how == Activation::kGeluTanh) {
#pragma unroll
        for (int i = 0; i < N; ++i) v[i] = gelu_tanh(v[i]);
    }
}

// The powers of both as one polynomial in x^2, times x, so that there is one code for them; what it is beyond 6 is not less than there.
struct ActivationPower {
    float c[5];
    explicit ActivationPower(Activation how) {
        constexpr float kUnit = -1.4426950408889634f, kTanh = 2.f * kUnit * 0.79788456f;
        const float erf[5] = {1.59565513e+00f * kUnit, 7.29398986e-02f * kUnit, -2.50972104e-04f * kUnit, -6.09307911e-05f * kUnit, 2.22506155e-06f * kUnit}, tanh[5] = {kTanh, kTanh * 0.044715f, 0, 0, 0};
        for (int i = 0; i < 5; ++i) c[i] = how == Activation::kGelu ? erf[i] : tanh[i];
    }
    ActivationPower() = default;
};
// With a reciprocal for two, where special functions and instructions are what takes longest: powers of what is not below -6 are so far bounded that the product is finite, and results beyond are still below 1e-9 of x.
template <int N> __device__ __forceinline__ void activate_by_two(float* v, const ActivationPower& power) {
    static_assert(N % 2 == 0);
    const auto exponential = [&](float x) {
        const float y = fmaxf(x, -6.f), t = y * y;
        return exp2_fast(y * fmaf(t, fmaf(t, fmaf(t, fmaf(t, power.c[4], power.c[3]), power.c[2]), power.c[1]), power.c[0]));
    };
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        const float a = 1.f + exponential(v[i]), b = 1.f + exponential(v[i + 1]), r = reciprocal(a * b);
        v[i] *= r * b, v[i + 1] *= r * a;
    }
}

}  // namespace trt_opt
