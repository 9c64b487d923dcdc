// Products by a warpgroup (wgmma, sm_90a) of 64 rows, with fp16 operands that lie in shared memory as pieces of 8 x 8: eight rows of 16 bytes behind each
// other. `across` and `along` are the bytes from a piece to the next one of other rows (for B: other columns), and of further contracted elements.
//
// A warp of the four has 16 rows of the result. Element 4 j + 2 h + e of d is row g + 8 h, column 8 j + 2 t + e, where (g, t) = (lane / 4, lane % 4).
#pragma once

#include <cstdint>

namespace trt_opt::warpgroup {

// A row of a piece has eight contracted elements, or, of a right operand that is read transposed, eight columns.
__device__ __forceinline__ uint64_t pieces(uint32_t address, uint32_t along, uint32_t across) {
    return uint64_t{across >> 4} << 32 | uint64_t{along >> 4} << 16 | (address & 0x3ffff) >> 4;
}

// The same of many places: an addition each. All are multiples of 16.
struct Pieces {
    uint32_t low, high;

    __device__ __forceinline__ Pieces(uint32_t address, uint32_t along, uint32_t across) : low((along >> 4 << 16) + (address >> 4)), high(across >> 4) {}
    __device__ __forceinline__ uint64_t at(uint32_t offset) const { return uint64_t{high} << 32 | (low + (offset >> 4)); }
};

__device__ __forceinline__ void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until no more than the N latest groups are under way.
template <int N> __device__ __forceinline__ void wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// Keeps the compiler from moving what it does with the results to before the wait.
template <int COUNT> __device__ __forceinline__ void settle(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define TRT_OPT_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TRT_OPT_D8(i) TRT_OPT_D4(i), TRT_OPT_D4(i + 4)
#define TRT_OPT_L8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define TRT_OPT_L12 TRT_OPT_L8 ",%8,%9,%10,%11"
#define TRT_OPT_L16 TRT_OPT_L12 ",%12,%13,%14,%15"
#define TRT_OPT_L24 TRT_OPT_L16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define TRT_OPT_L32 TRT_OPT_L24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define TRT_OPT_WGMMA(columns, list, a, rest) \
    "{.reg .pred p;\n\tsetp.eq.b32 p, 0, 0;\n\twgmma.mma_async.sync.aligned.m64n" columns "k16.f32.f16.f16 {" list "}, " a ", " rest ";}"

// d += A (64 x 16) B (16 x 2 COUNT)
template <int COUNT> __device__ __forceinline__ void multiply(float (&d)[COUNT], uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (COUNT == 8) {
        asm volatile(TRT_OPT_WGMMA("16", TRT_OPT_L8, "%8", "%9, p, 1, 1, 0, 0") : TRT_OPT_D8(0) : "l"(a), "l"(b));
    } else if constexpr (COUNT == 12) {
        asm volatile(TRT_OPT_WGMMA("24", TRT_OPT_L12, "%12", "%13, p, 1, 1, 0, 0") : TRT_OPT_D8(0), TRT_OPT_D4(8) : "l"(a), "l"(b));
    } else if constexpr (COUNT == 16) {
        asm volatile(TRT_OPT_WGMMA("32", TRT_OPT_L16, "%16", "%17, p, 1, 1, 0, 0") : TRT_OPT_D8(0), TRT_OPT_D8(8) : "l"(a), "l"(b));
    } else if constexpr (COUNT == 24) {
        asm volatile(TRT_OPT_WGMMA("48", TRT_OPT_L24, "%24", "%25, p, 1, 1, 0, 0") : TRT_OPT_D8(0), TRT_OPT_D8(8), TRT_OPT_D8(16) : "l"(a), "l"(b));
    } else {
        static_assert(COUNT == 32);
        asm volatile(TRT_OPT_WGMMA("64", TRT_OPT_L32, "%32", "%33, p, 1, 1, 0, 0") : TRT_OPT_D8(0), TRT_OPT_D8(8), TRT_OPT_D8(16), TRT_OPT_D8(24) : "l"(a), "l"(b));
    }
#endif
}

// The same with A in registers, as left operands of mma.sync have it, and B read transposed.
template <int COUNT> __device__ __forceinline__ void multiply_transposed(float (&d)[COUNT], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (COUNT == 16) {
        asm volatile(TRT_OPT_WGMMA("32", TRT_OPT_L16, "{%16,%17,%18,%19}", "%20, p, 1, 1, 1") : TRT_OPT_D8(0), TRT_OPT_D8(8) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
    } else {
        static_assert(COUNT == 32);
        asm volatile(TRT_OPT_WGMMA("64", TRT_OPT_L32, "{%32,%33,%34,%35}", "%36, p, 1, 1, 1")
                     : TRT_OPT_D8(0), TRT_OPT_D8(8), TRT_OPT_D8(16), TRT_OPT_D8(24)
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
    }
#endif
}
#undef TRT_OPT_D4
#undef TRT_OPT_D8
#undef TRT_OPT_L8
#undef TRT_OPT_L12
#undef TRT_OPT_L16
#undef TRT_OPT_L24
#undef TRT_OPT_L32
#undef TRT_OPT_WGMMA

}  // namespace trt_opt::warpgroup
