// One product by warpgroups. A block has 128 rows and BN columns: two warpgroups with 64 rows each, and a warp that has the tensor copy engine fill a ring
// of stages, 64 contracted elements each. A stage's rows lie 128 bytes apart with the engine's swizzle: A's [rows, k] as they are, B's [k, n] in parts of
// 64 columns, which the tensor cores read transposed. Launched ahead, a block fetches its first weights before it waits for the kernel before it.
#pragma once

#include "gelu.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "tensor_copy.cuh"
#include "wide_mma.cuh"
#include "window_map.cuh"

namespace trt_opt {

struct WideArgs {
    CUtensorMap a, b;              // boxes of 64 x 128 rows of A, 64 x 64 rows of B
    const __half* bias;            // [n]
    const __half *added, *added2;  // like out, or null; may be out
    __half* out;                   // [rows, n]
    int rows, k, n;
    FastDiv by_columns;            // tiles of the same rows
    Activation activation;
    bool mapped;                   // row r of the output is map.source(r)
    WindowMap map;
};

constexpr int kWideRows = 128, kWideDepth = 64, kWideThreads = 288;

template <int BN, int STAGES, int BLOCKS> struct WideTile {
    static constexpr int kColumns = BN, kStages = STAGES, kBlocks = BLOCKS;
    static constexpr int kParts = (BN + 63) / 64;  // of B
    static constexpr int kABytes = kWideRows * kWideDepth * 2, kPartBytes = 64 * kWideDepth * 2, kStageBytes = kABytes + kParts * kPartBytes;
    static constexpr int kShared = 1024 + STAGES * kStageBytes + BN * 4 + STAGES * 16;
};

// ADDED: an instance of its own, since what is added takes registers.
template <class Tile, bool ADDED> __global__ void __launch_bounds__(kWideThreads, Tile::kBlocks) wide_gemm_kernel(const __grid_constant__ WideArgs p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using namespace ptx;
    constexpr int BN = Tile::kColumns, kStages = Tile::kStages, kGroups = BN / 32;
    let_next_start();
    extern __shared__ unsigned char unaligned[];
    const uint32_t unaligned_at = shared_address(unaligned), ring = (unaligned_at + 1023) & ~1023u;
    float* const bias = reinterpret_cast<float*>(unaligned + (ring - unaligned_at) + kStages * Tile::kStageBytes);
    const uint32_t full = ring + kStages * Tile::kStageBytes + BN * 4, empty = full + kStages * 8;
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    uint32_t column_tile;
    const int row0 = static_cast<int>(p.by_columns.divmod(blockIdx.x, column_tile)) * kWideRows, column = static_cast<int>(column_tile) * BN;
    const int steps = (p.k + kWideDepth - 1) / kWideDepth;

    if (tid < BN) bias[tid] = column + tid < p.n ? __half2float(p.bias[column + tid]) : 0.f;
    if (tid == 0) {
        for (int s = 0; s < kStages; ++s) mbarrier::init(full + s * 8, 1), mbarrier::init(empty + s * 8, 8);
        mbarrier::publish();
    }
    __syncthreads();

    if (warp == 8) {
        if (lane != 0) return;
        auto load_a = [&](int step, int s) { tensor_copy::load(ring + s * Tile::kStageBytes, p.a, step * kWideDepth, row0, full + s * 8); };
        auto load_b = [&](int step, int s) {
            mbarrier::expect(full + s * 8, Tile::kStageBytes);
#pragma unroll
            for (int part = 0; part < Tile::kParts; ++part)
                tensor_copy::load(ring + s * Tile::kStageBytes + Tile::kABytes + part * Tile::kPartBytes, p.b, column + part * 64, step * kWideDepth, full + s * 8);
        };
        const int ahead = min(steps, kStages);
        for (int i = 0; i < ahead; ++i) load_b(i, i);
        wait_for_previous();
        for (int i = 0; i < ahead; ++i) load_a(i, i);
        int s = 0;
        uint32_t parity = 0;
        for (int step = kStages; step < steps; ++step) {
            mbarrier::wait(empty + s * 8, parity);
            load_b(step, s), load_a(step, s);
            if (++s == kStages) s = 0, parity ^= 1;
        }
        return;
    }

    auto row_of_out = [&](int row) -> int64_t { return row >= p.rows ? -1 : p.mapped ? p.map.source(static_cast<uint32_t>(row)) : row; };
    wait_for_previous();
    if constexpr (ADDED) {
        // Two threads a row ask for what is added, which the end then finds in the second-level cache.
        const int64_t to = row_of_out(row0 + tid / 2);
        for (int c = column + tid % 2 * 64; to >= 0 && c < min(column + BN, p.n); c += 128) {
            prefetch_l2(p.added + to * p.n + c);
            if (p.added2) prefetch_l2(p.added2 + to * p.n + c);
        }
    }

    float acc[BN / 2];
    {
        const uint32_t a_at = ring + warp / 4 * (64 * 128), b_at = ring + Tile::kABytes;
        int s = 0;
        uint32_t parity = 0;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            mbarrier::wait(full + s * 8, parity);
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int i = 0; i < kWideDepth / 16; ++i)
                wide::multiply(acc, wide::descriptor(a_at + s * Tile::kStageBytes + i * 32, 16), wide::descriptor(b_at + s * Tile::kStageBytes + i * 2048, Tile::kPartBytes), step + i);
            asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            // The step before this one is done with its stage.
            asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (step > 0 && lane == 0) mbarrier::arrive(empty + (s == 0 ? kStages - 1 : s - 1) * 8);
            if (++s == kStages) s = 0, parity ^= 1;
        }
#pragma unroll
        for (int i = 0; i < BN / 2; ++i) asm volatile("" : "+f"(acc[i])::"memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int i = 0; i < BN / 2; ++i) asm volatile("" : "+f"(acc[i])::"memory");
    }

    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int64_t to = row_of_out(row0 + warp * 16 + h * 8 + g);
        // All loads of a row before its stores, which the compiler may not move them over.
        Pack<__half, 8> added[ADDED ? kGroups : 1];
        if constexpr (ADDED) {
#pragma unroll
            for (int i = 0; i < kGroups; ++i) {
                const int own = column + i * 32 + t * 8;
                if (to < 0 || own >= p.n) continue;
                added[i].raw = *reinterpret_cast<const uint4*>(p.added + to * p.n + own);
                if (p.added2) add_packs<__half, 8>(added[i], Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.added2 + to * p.n + own)));
            }
        }
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
            const int own = column + i * 32 + t * 8;
            const bool exists = to >= 0 && own < p.n;
            const int64_t at = to * p.n + own;
            float v[8];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 b = *reinterpret_cast<const float2*>(bias + i * 32 + j * 8 + 2 * t);
                v[2 * j] = acc[(i * 4 + j) * 4 + 2 * h] + b.x, v[2 * j + 1] = acc[(i * 4 + j) * 4 + 2 * h + 1] + b.y;
            }
            if constexpr (ADDED) {
                uint32_t r[4] = {added[i].raw.x, added[i].raw.y, added[i].raw.z, added[i].raw.w};
                exchange_tiles(r, t);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&r[j]));
                    v[2 * j] += f.x, v[2 * j + 1] += f.y;
                }
            }
            if constexpr (!ADDED) activate(v, p.activation);
            uint32_t r[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) r[j] = pack_halves(v[2 * j], v[2 * j + 1]);
            exchange_tiles(r, t);
            if (exists) *reinterpret_cast<uint4*>(p.out + at) = make_uint4(r[0], r[1], r[2], r[3]);
        }
    }
#endif
}

}  // namespace trt_opt
