// Fragments for the tensor cores: 16 x 8 tiles, fp16 operands, fp32 accumulators.
//
// A warp's lane is (g, t) = (lane / 4, lane % 4). Of an accumulator tile it holds (row g, columns
// 2t, 2t+1) and (row g + 8, the same). The contracted index may be permuted at will if A and B agree,
// and so may the columns of B if the reader of the result knows. Both freedoms are used below so that
// operands go from global memory to registers in wide accesses, with no shared memory in between.
#pragma once

#include "common.cuh"

namespace trt_opt {

// d += A (16 x 16) * B (16 x 8)
__device__ __forceinline__ void mma_k16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// As mma_k16, but free to be moved by the compiler.
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    mma_k16(d, a[0], a[1], a[2], a[3], b[0], b[1]);
#endif
}

// d += A (16 x 8) * B (8 x 8)
__device__ __forceinline__ void mma_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b0));
}

// As mma_k8, but free to be moved by the compiler.
__device__ __forceinline__ void multiply_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
    __half2 v = __floats2half2_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&v);
}
__device__ __forceinline__ float2 floats(uint32_t pair) { return __half22float2(*reinterpret_cast<const __half2*>(&pair)); }
__device__ __forceinline__ float exp2_fast(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ float reciprocal(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ float inverse_root(float v) {
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// W halves from `p`, of which `valid` exist (the rest are zero). WIDE: `p` is aligned to W halves and
// `valid` is a multiple of W or negative.
template <int W, bool WIDE>
__device__ __forceinline__ void load_halves(const __half* p, int valid, uint32_t (&r)[(W + 1) / 2]) {
    if constexpr (W == 1) {
        r[0] = valid > 0 ? *reinterpret_cast<const uint16_t*>(p) : 0u;
    } else if constexpr (WIDE) {
        using Raw = typename RawOf<2 * W>::type;
        Raw raw{};
        if (valid > 0) raw = *reinterpret_cast<const Raw*>(p);
        memcpy(r, &raw, sizeof(raw));
    } else {
        const uint16_t* s = reinterpret_cast<const uint16_t*>(p);
#pragma unroll
        for (int i = 0; i < W; i += 2) {
            uint32_t low = i < valid ? s[i] : 0u, high = i + 1 < valid ? s[i + 1] : 0u;
            r[i / 2] = low | high << 16;
        }
    }
}
template <int W, bool WIDE> __device__ __forceinline__ void store_halves(__half* p, int valid, const uint32_t (&r)[(W + 1) / 2]) {
    if constexpr (WIDE) {
        using Raw = typename RawOf<2 * W>::type;
        Raw raw;
        memcpy(&raw, r, sizeof(raw));
        if (valid > 0) *reinterpret_cast<Raw*>(p) = raw;
    } else {
        uint16_t* s = reinterpret_cast<uint16_t*>(p);
#pragma unroll
        for (int i = 0; i < W; ++i)
            if (i < valid) s[i] = static_cast<uint16_t>(r[i / 2] >> (16 * (i % 2)));
    }
}

// How a head of D (padded) elements is dealt to the lanes.
template <int D> struct HeadLayout {
    // Contracted index of Q K^T: lane t of a row's four takes kPack consecutive elements of each of kChunks chunks.
    static constexpr int kPack = D >= 32 ? 8 : D / 4;
    static constexpr int kChunks = D / (4 * kPack);
    static constexpr int kRegs = kPack / 2;             // a chunk of a row, in registers
    // Columns of V: lane g takes kTiles consecutive elements of each of kGroups groups, one for each tile of the group.
    static constexpr int kTiles = D >= 64 ? 8 : D / 8;
    static constexpr int kGroups = D / (8 * kTiles);
    static constexpr int kOut = 2 * kTiles;             // consecutive elements of the output a lane holds, each group
    static constexpr int kStore = kOut >= 8 ? 8 : kOut; // halves a store
};

// A row's part of one lane: chunks of Q or K.
template <int D, bool WIDE>
__device__ __forceinline__ void load_row(const __half* row, bool exists, int t, int d, uint32_t (&r)[HeadLayout<D>::kChunks][HeadLayout<D>::kRegs]) {
    using L = HeadLayout<D>;
#pragma unroll
    for (int c = 0; c < L::kChunks; ++c) {
        const int first = (c * 4 + t) * L::kPack;
        load_halves<L::kPack, WIDE>(row + first, exists ? d - first : 0, r[c]);
    }
}

// s += Q (rows g, g + 8) * K^T (key g of the tile)
template <int D>
__device__ __forceinline__ void score_tile(float (&s)[4], const uint32_t (&q0)[HeadLayout<D>::kChunks][HeadLayout<D>::kRegs],
                                           const uint32_t (&q1)[HeadLayout<D>::kChunks][HeadLayout<D>::kRegs],
                                           const uint32_t (&k)[HeadLayout<D>::kChunks][HeadLayout<D>::kRegs]) {
    using L = HeadLayout<D>;
#pragma unroll
    for (int c = 0; c < L::kChunks; ++c) {
        if constexpr (L::kRegs == 1) {
            mma_k8(s, q0[c][0], q1[c][0], k[c][0]);
        } else {
#pragma unroll
            for (int i = 0; i < L::kRegs; i += 2) mma_k16(s, q0[c][i], q1[c][i], q0[c][i + 1], q1[c][i + 1], k[c][i], k[c][i + 1]);
        }
    }
}

// Values of keys (key, key + 1) in columns of all tiles: B fragments of half a 16-key step.
template <int D, bool WIDE>
__device__ __forceinline__ void load_values(const __half* v, int64_t token, int key, int m, int g, int dv,
                                            uint32_t (&b)[HeadLayout<D>::kGroups][HeadLayout<D>::kTiles]) {
    using L = HeadLayout<D>;
#pragma unroll
    for (int c = 0; c < L::kGroups; ++c) {
        const int first = (c * 8 + g) * L::kTiles;
        uint32_t low[(L::kTiles + 1) / 2], high[(L::kTiles + 1) / 2];
        load_halves<L::kTiles, WIDE>(v + key * token + first, key < m ? dv - first : 0, low);
        load_halves<L::kTiles, WIDE>(v + (key + 1) * token + first, key + 1 < m ? dv - first : 0, high);
        if constexpr (L::kTiles == 1) {
            b[c][0] = low[0] | high[0] << 16;
        } else {
#pragma unroll
            for (int j = 0; j < L::kTiles; j += 2) {
                b[c][j] = __byte_perm(low[j / 2], high[j / 2], 0x5410);
                b[c][j + 1] = __byte_perm(low[j / 2], high[j / 2], 0x7632);
            }
        }
    }
}

// One row of a lane's output (first = 0: row g, 2: row g + 8) times `factor`, to `row` of the merged heads.
template <int D, bool WIDE>
__device__ __forceinline__ void store_row(__half* row, int t, int dv, const float (&o)[HeadLayout<D>::kGroups][HeadLayout<D>::kTiles][4], int first, float factor) {
    using L = HeadLayout<D>;
#pragma unroll
    for (int c = 0; c < L::kGroups; ++c) {
        float value[L::kOut];
#pragma unroll
        for (int j = 0; j < L::kTiles; ++j) value[j] = o[c][j][first] * factor, value[L::kTiles + j] = o[c][j][first + 1] * factor;
        const int begin = (c * 4 + t) * L::kOut;
#pragma unroll
        for (int i = 0; i < L::kOut; i += L::kStore) {
            uint32_t r[L::kStore / 2];
#pragma unroll
            for (int e = 0; e < L::kStore; e += 2) r[e / 2] = pack_halves(value[i + e], value[i + e + 1]);
            store_halves<L::kStore, WIDE>(row + begin + i, dv - begin - i, r);
        }
    }
}

// r[i]: this lane's two columns of tile i; becomes pair i of the tile that has the lane's number among its four. Its own inverse.
__device__ __forceinline__ void exchange_tiles(uint32_t (&r)[4], int t) {
    uint32_t a = t & 1 ? r[0] : r[1], b = t & 1 ? r[2] : r[3];
    a = __shfl_xor_sync(0xffffffffu, a, 1), b = __shfl_xor_sync(0xffffffffu, b, 1);
    if (t & 1) r[0] = a, r[2] = b;
    else r[1] = a, r[3] = b;
    a = t & 2 ? r[0] : r[2], b = t & 2 ? r[1] : r[3];
    a = __shfl_xor_sync(0xffffffffu, a, 2), b = __shfl_xor_sync(0xffffffffu, b, 2);
    if (t & 2) r[0] = a, r[1] = b;
    else r[2] = a, r[3] = b;
}

}  // namespace trt_opt
