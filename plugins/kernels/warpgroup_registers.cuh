// Products by a warpgroup (wgmma, sm_90a) of 64 rows whose fp16 left operands are in registers, as those of mma.sync. The right ones lie in shared memory as their descriptor has it:
// `swizzled`, `pieces`, or wide::descriptor. Results and the rest are those of warpgroup.cuh.
#pragma once

#include <cstdint>

namespace trt_opt::warpgroup {

// Rows of 32 elements with the copy engine's swizzle of 64 bytes: the 16 bytes c of row r are at c ^ r / 2 % 4. Rows are contracted elements, read transposed, and there are more of them `part` bytes on for each 32 further columns; or rows are columns.
__device__ __forceinline__ uint64_t swizzled(uint32_t address, uint32_t part) { return uint64_t{2} << 62 | uint64_t{512 >> 4} << 32 | uint64_t{part >> 4} << 16 | (address & 0x3ffff) >> 4; }
// The same `offset` bytes behind an address, both multiples of 16 (Pieces).
__device__ __forceinline__ uint64_t swizzled_at(uint32_t address, uint32_t offset, uint32_t part) { return uint64_t{2} << 62 | uint64_t{512 >> 4} << 32 | ((address >> 4) + ((part >> 4 << 16) + (offset >> 4))); }

#define TRT_OPT_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TRT_OPT_D16(i) TRT_OPT_D4(i), TRT_OPT_D4(i + 4), TRT_OPT_D4(i + 8), TRT_OPT_D4(i + 12)
#define TRT_OPT_N16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define TRT_OPT_N28 TRT_OPT_N16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27"
#define TRT_OPT_N32 TRT_OPT_N28 ",%28,%29,%30,%31"
#define TRT_OPT_N48 TRT_OPT_N32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define TRT_OPT_N64 TRT_OPT_N48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define TRT_OPT_N80 TRT_OPT_N64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define TRT_OPT_N96 TRT_OPT_N80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define TRT_OPT_WGMMA(columns, list, a, b, more, transposed)                                                                      \
    "{.reg .pred p;\n\tsetp.ne.b32 p, " more ", 0;\n\t"                                                                           \
    "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.f16.f16 {" list "}, {" a "}, " b ", p, 1, 1, " transposed ";}"
#define TRT_OPT_IN "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(more)

// d (+)= A (64 x 16) B (16 x 2 COUNT), B's rows being contracted elements.
template <int COUNT> __device__ __forceinline__ void multiply_rows(float (&d)[COUNT], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, int more) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (COUNT == 16) {
        asm volatile(TRT_OPT_WGMMA("32", TRT_OPT_N16, "%16,%17,%18,%19", "%20", "%21", "1") : TRT_OPT_D16(0) : TRT_OPT_IN);
    } else if constexpr (COUNT == 32) {
        asm volatile(TRT_OPT_WGMMA("64", TRT_OPT_N32, "%32,%33,%34,%35", "%36", "%37", "1") : TRT_OPT_D16(0), TRT_OPT_D16(16) : TRT_OPT_IN);
    } else if constexpr (COUNT == 48) {
        asm volatile(TRT_OPT_WGMMA("96", TRT_OPT_N48, "%48,%49,%50,%51", "%52", "%53", "1") : TRT_OPT_D16(0), TRT_OPT_D16(16), TRT_OPT_D16(32) : TRT_OPT_IN);
    } else if constexpr (COUNT == 64) {
        asm volatile(TRT_OPT_WGMMA("128", TRT_OPT_N64, "%64,%65,%66,%67", "%68", "%69", "1") : TRT_OPT_D16(0), TRT_OPT_D16(16), TRT_OPT_D16(32), TRT_OPT_D16(48) : TRT_OPT_IN);
    } else if constexpr (COUNT == 80) {
        asm volatile(TRT_OPT_WGMMA("160", TRT_OPT_N80, "%80,%81,%82,%83", "%84", "%85", "1")
                     : TRT_OPT_D16(0), TRT_OPT_D16(16), TRT_OPT_D16(32), TRT_OPT_D16(48), TRT_OPT_D16(64)
                     : TRT_OPT_IN);
    } else {
        static_assert(COUNT == 96);
        asm volatile(TRT_OPT_WGMMA("192", TRT_OPT_N96, "%96,%97,%98,%99", "%100", "%101", "1")
                     : TRT_OPT_D16(0), TRT_OPT_D16(16), TRT_OPT_D16(32), TRT_OPT_D16(48), TRT_OPT_D16(64), TRT_OPT_D16(80)
                     : TRT_OPT_IN);
    }
#endif
}
// The same, B's rows being columns.
template <int COUNT> __device__ __forceinline__ void multiply_columns(float (&d)[COUNT], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint64_t b, int more) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    if constexpr (COUNT == 28) {
        asm volatile(TRT_OPT_WGMMA("56", TRT_OPT_N28, "%28,%29,%30,%31", "%32", "%33", "0") : TRT_OPT_D16(0), TRT_OPT_D4(16), TRT_OPT_D4(20), TRT_OPT_D4(24) : TRT_OPT_IN);
    } else if constexpr (COUNT == 32) {
        asm volatile(TRT_OPT_WGMMA("64", TRT_OPT_N32, "%32,%33,%34,%35", "%36", "%37", "0") : TRT_OPT_D16(0), TRT_OPT_D16(16) : TRT_OPT_IN);
    } else if constexpr (COUNT == 48) {
        asm volatile(TRT_OPT_WGMMA("96", TRT_OPT_N48, "%48,%49,%50,%51", "%52", "%53", "0") : TRT_OPT_D16(0), TRT_OPT_D16(16), TRT_OPT_D16(32) : TRT_OPT_IN);
    } else {
        static_assert(COUNT == 64);
        asm volatile(TRT_OPT_WGMMA("128", TRT_OPT_N64, "%64,%65,%66,%67", "%68", "%69", "0") : TRT_OPT_D16(0), TRT_OPT_D16(16), TRT_OPT_D16(32), TRT_OPT_D16(48) : TRT_OPT_IN);
    }
#endif
}
#undef TRT_OPT_D4
#undef TRT_OPT_D16
#undef TRT_OPT_N16
#undef TRT_OPT_N28
#undef TRT_OPT_N32
#undef TRT_OPT_N48
#undef TRT_OPT_N64
#undef TRT_OPT_N80
#undef TRT_OPT_N96
#undef TRT_OPT_WGMMA
#undef TRT_OPT_IN

// Four 8 x 8 matrices of halves, a row's pair a lane each, to shared memory; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void store_matrices4(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
#endif
}

}  // namespace trt_opt::warpgroup
