// Products by a warpgroup of operands as the tensor copy engine leaves them in shared memory: rows 128 bytes apart, swizzled. B is [k, n] as it is, in parts
// of 64 columns, which the tensor cores read transposed.
#pragma once

#include <cstdint>

namespace trt_opt::wide {

// Of a matrix in shared memory with rows of 128 swizzled bytes, eight of them 1024 bytes from the next eight; `part`: bytes from 64 columns to the next.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t part) {
    return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{part >> 4} << 16 | (address & 0x3ffff) >> 4;
}

#define TRT_OPT_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TRT_OPT_D16(i) TRT_OPT_D4(i), TRT_OPT_D4(i + 4), TRT_OPT_D4(i + 8), TRT_OPT_D4(i + 12)
#define TRT_OPT_D32 TRT_OPT_D16(0), TRT_OPT_D16(16)
#define TRT_OPT_D48 TRT_OPT_D32, TRT_OPT_D16(32)
#define TRT_OPT_D64 TRT_OPT_D48, TRT_OPT_D16(48)
#define TRT_OPT_D96 TRT_OPT_D64, TRT_OPT_D16(64), TRT_OPT_D16(80)
#define TRT_OPT_N32                                                                                                                                      \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define TRT_OPT_N48 TRT_OPT_N32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define TRT_OPT_N64 TRT_OPT_N48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define TRT_OPT_N96                                                                                                                                   \
    TRT_OPT_N64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define TRT_OPT_WGMMA(columns, list, a, b, more)                                                                                  \
    "{.reg .pred p;\n\tsetp.ne.b32 p, " more ", 0;\n\t"                                                                           \
    "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.f16.f16 {" list "}, " a ", " b ", p, 1, 1, 0, 1;}"

// d (+)= A (64 x 16) B (16 x N); element 4 j + 2 h + e of d is row g + 8 h of the warp's sixteen, column 8 j + 2 t + e.
template <int COUNT> __device__ __forceinline__ void multiply(float (&d)[COUNT], uint64_t a, uint64_t b, int more) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (COUNT == 32) {
        asm volatile(TRT_OPT_WGMMA("64", TRT_OPT_N32, "%32", "%33", "%34") : TRT_OPT_D32 : "l"(a), "l"(b), "r"(more));
    } else if constexpr (COUNT == 48) {
        asm volatile(TRT_OPT_WGMMA("96", TRT_OPT_N48, "%48", "%49", "%50") : TRT_OPT_D48 : "l"(a), "l"(b), "r"(more));
    } else if constexpr (COUNT == 64) {
        asm volatile(TRT_OPT_WGMMA("128", TRT_OPT_N64, "%64", "%65", "%66") : TRT_OPT_D64 : "l"(a), "l"(b), "r"(more));
    } else {
        static_assert(COUNT == 96);
        asm volatile(TRT_OPT_WGMMA("192", TRT_OPT_N96, "%96", "%97", "%98") : TRT_OPT_D96 : "l"(a), "l"(b), "r"(more));
    }
#endif
}

// The same of operands the other way: d += A (64 x 16) B (16 x 2 COUNT), A is what lies as [k, 64 columns], read transposed, and B what lies as rows of contracted elements.
#define TRT_OPT_TURNED(columns, list, a, b) "{.reg .pred p;\n\tsetp.eq.b32 p, 0, 0;\n\twgmma.mma_async.sync.aligned.m64n" columns "k16.f32.f16.f16 {" list "}, " a ", " b ", p, 1, 1, 1, 0;}"
template <int COUNT> __device__ __forceinline__ void multiply_turned(float (&d)[COUNT], uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (COUNT == 8) {
        asm volatile(TRT_OPT_TURNED("16", "%0,%1,%2,%3,%4,%5,%6,%7", "%8", "%9") : TRT_OPT_D4(0), TRT_OPT_D4(4) : "l"(a), "l"(b));
    } else {
        static_assert(COUNT == 16);
        asm volatile(TRT_OPT_TURNED("32", "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15", "%16", "%17") : TRT_OPT_D16(0) : "l"(a), "l"(b));
    }
#endif
}
#undef TRT_OPT_TURNED
#undef TRT_OPT_D4
#undef TRT_OPT_D16
#undef TRT_OPT_D32
#undef TRT_OPT_D48
#undef TRT_OPT_D64
#undef TRT_OPT_D96
#undef TRT_OPT_N32
#undef TRT_OPT_N48
#undef TRT_OPT_N64
#undef TRT_OPT_N96
#undef TRT_OPT_WGMMA

}  // namespace trt_opt::wide
