// Small device tools shared by all kernels.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

namespace trt_opt {

// Division by a divisor fixed at launch, exact for dividends below 2^31.
struct FastDiv {
    uint32_t divisor = 1, multiplier = 0, shift = 0;

    FastDiv() = default;
    explicit FastDiv(uint32_t d) : divisor(d) {
        if (d <= 1) return;
        uint32_t bits = 0;
        while ((uint64_t{1} << bits) < d) ++bits;
        multiplier = static_cast<uint32_t>(((uint64_t{1} << (31 + bits)) + d - 1) / d);
        shift = bits - 1;
    }
    __device__ __forceinline__ uint32_t div(uint32_t n) const {
        return divisor == 1 ? n : __umulhi(n, multiplier) >> shift;
    }
    __device__ __forceinline__ uint32_t divmod(uint32_t n, uint32_t& remainder) const {
        uint32_t q = div(n);
        remainder = n - q * divisor;
        return q;
    }
};

// One memory access of BYTES bytes.
template <int BYTES> struct RawOf;
template <> struct RawOf<16> { using type = uint4; };
template <> struct RawOf<8> { using type = uint2; };
template <> struct RawOf<4> { using type = uint32_t; };
template <> struct RawOf<2> { using type = uint16_t; };

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ __half from_float<__half>(float v) { return __float2half_rn(v); }

// VEC elements of T, loaded and stored as one access and kept packed: two halves a register.
template <class T, int VEC> struct Pack {
    using Raw = typename RawOf<sizeof(T) * VEC>::type;
    Raw raw;

    __device__ __forceinline__ Pack() : raw{} {}
    __device__ __forceinline__ explicit Pack(const Raw& r) : raw(r) {}
    __device__ __forceinline__ void floats(float (&f)[VEC]) const {
        if constexpr (sizeof(T) == 4) {
            memcpy(f, &raw, sizeof(raw));
        } else if constexpr (VEC == 1) {
            f[0] = to_float(*reinterpret_cast<const __half*>(&raw));
        } else {
            __half2 h[VEC / 2];
            memcpy(h, &raw, sizeof(raw));
#pragma unroll
            for (int i = 0; i < VEC / 2; ++i) {
                const float2 v = __half22float2(h[i]);
                f[2 * i] = v.x, f[2 * i + 1] = v.y;
            }
        }
    }
    __device__ __forceinline__ static Pack of(const float (&f)[VEC]) {
        Pack p;
        if constexpr (sizeof(T) == 4) {
            memcpy(&p.raw, f, sizeof(p.raw));
        } else if constexpr (VEC == 1) {
            const __half h = __float2half_rn(f[0]);
            memcpy(&p.raw, &h, sizeof(h));
        } else {
            __half2 h[VEC / 2];
#pragma unroll
            for (int i = 0; i < VEC / 2; ++i) h[i] = __floats2half2_rn(f[2 * i], f[2 * i + 1]);
            memcpy(&p.raw, h, sizeof(h));
        }
        return p;
    }
    // Keeps the compiler from carrying the elements' fp32 values from one use to the next: converting again
    // costs next to nothing, and the packed form takes half the registers.
    __device__ __forceinline__ void forget_floats() {
        if constexpr (sizeof(T) == 2 && VEC == 8) asm volatile("" : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w));
    }
};

// a + b, rounded to T, element by element.
template <class T, int VEC> __device__ __forceinline__ void add_packs(Pack<T, VEC>& a, const Pack<T, VEC>& b) {
    float x[VEC], y[VEC];
    a.floats(x), b.floats(y);
#pragma unroll
    for (int i = 0; i < VEC; ++i) x[i] += y[i];
    a = Pack<T, VEC>::of(x);
}

// Sum over aligned groups of LANES threads of a warp; every thread of the warp takes part.
template <int LANES> __device__ __forceinline__ float group_sum(float v) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

// True if every pointer is null or a multiple of `bytes`.
template <class... P> bool aligned_to(int bytes, P... pointers) {
    return (((reinterpret_cast<uintptr_t>(pointers) % bytes) == 0) && ...);
}

// Multiprocessors of the current device.
inline int multiprocessors() {
    static std::atomic<int> known[64];
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device < 0) return 1;
    int count = device < 64 ? known[device].load(std::memory_order_relaxed) : 0;
    if (count == 0) {
        if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1)
            count = 1;
        if (device < 64) known[device].store(count, std::memory_order_relaxed);
    }
    return count;
}

}  // namespace trt_opt
