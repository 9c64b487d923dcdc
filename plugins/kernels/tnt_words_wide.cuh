// Bridges from words to tokens, as many as there are, on the warpgroup instructions of sm_90a: what tnt_words_bridges.cuh does, with products of 64 rows whose weights the tensor copy
// engine brings before the words are there. Rows are normalized where they lie, so that a tile behind its words is: rows, norm, one product in straight code, one exchange of the
// cluster, and the end out of registers.
#pragma once

#include <cuda.h>

#include "bridge_end.cuh"
#include "kernels.h"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "tensor_copy.cuh"
#include "warpgroup.cuh"
#include "wide_mma.cuh"

namespace trt_opt {

struct WideBridgesArgs {
    CUtensorMap b;                      // [bridges * k, n], in boxes of 64 x 64
    const __half* a[kWordsMaxBridges];  // [rows, k]
    __half* out[kWordsMaxBridges];      // like end.out
    const __half* bias;                 // [bridges, n]
    const __half *scale, *shift;        // [bridges, k]
    BridgeEnd<__half, false> end;       // scale and shift: [bridges, n]; out is that of the bridge
    int64_t rows;
    float epsilon, each, last_each;     // one over n, and over the columns of the last 64
    FastDiv by_columns;                 // blocks of a cluster
    FastDiv by_groups;                  // clusters of a bridge
    uint32_t tiles, last;               // of rows; the last bridge
    const uint32_t* told;               // of the chain's blocks: whether a layer's words are there; or null, and the whole chain is waited for
    uint32_t telling;                   // such blocks
    bool once;                          // a bridge's blocks run at once: how the second-level cache keeps its weights
    int after[kWordsMaxBridges];        // layers
};

// CHUNKS: of 64 contracted elements. All eight warps normalize; one warpgroup for each 64 columns multiplies.
template <int CHUNKS, int COLUMNS> struct WideBridgesTile {
    static constexpr int kChunks = CHUNKS, kRows = 64, kColumns = COLUMNS, kGroups = COLUMNS / 64, kThreads = 256, kWidth = 64 * CHUNKS;
    static constexpr int kPart = kWidth * 128, kBBytes = kGroups * kPart, kABytes = kRows * kWidth * 2;
    static constexpr int kParts = kGroups * kBridgeMaxCluster, kPartMoments = kRows / 2 * 16;  // a part has 64 columns; of rows r and r + 8: sum and square of each
    // Beside a block of TNT-S's chain, of 125 KB, there are 101 KB: to the byte what 384 columns take.
    static constexpr int kFixed = kBBytes + kABytes + 2 * (2 * kWidth + 3 * COLUMNS) + 16;
    static constexpr int shared(int n) { return kFixed + (n + 63) / 64 * kPartMoments; }
    static constexpr int kBound = COLUMNS == 64 ? 576 : kThreads;  // leaves a thread so few registers that a block has room beside one of the chain, or another one
    static_assert(COLUMNS == 64 || COLUMNS == 128);
};

// Mean and factor of two rows of a lane, as row_statistics has them, by the four lanes that share them. `moments`: of both, a part of 64 columns each `stride` from the next.
template <int MOST> __device__ __forceinline__ void wide_statistics(RowStatistics (&rows)[2], const float4* moments, int stride, const WideBridgesArgs& p, int t) {
    const int parts = (p.end.n + 63) / 64;
    float4 m[MOST / 4];
#pragma unroll
    for (int i = 0; i < MOST / 4; ++i) m[i] = t + 4 * i < parts ? moments[(t + 4 * i) * stride] : float4{};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float sum = 0, square = 0;
#pragma unroll
        for (int i = 0; i < MOST / 4; ++i) sum += h == 0 ? m[i].x : m[i].z;
        const float mean = group_sum<4>(sum) * p.each;
#pragma unroll
        for (int i = 0; i < MOST / 4; ++i) {
            const int z = t + 4 * i;
            const bool last = z + 1 == parts;
            const float difference = fmaf(h == 0 ? m[i].x : m[i].z, last ? p.last_each : 1.f / 64, -mean), values = static_cast<float>(last ? p.end.n - 64 * z : 64);
            if (z < parts) square += fmaf(values * difference, difference, h == 0 ? m[i].y : m[i].w);
        }
        rows[h] = {mean, rsqrtf(fmaf(group_sum<4>(square), p.each, p.end.epsilon))};
    }
}

template <class Tile> __global__ void __launch_bounds__(Tile::kBound) tnt_words_wide_kernel(const __grid_constant__ WideBridgesArgs p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using namespace ptx;
    constexpr int kChunks = Tile::kChunks, kRows = Tile::kRows, kColumns = Tile::kColumns, kWidth = Tile::kWidth, kThreads = Tile::kThreads, kGroups = Tile::kGroups, kParts = Tile::kParts;
    static_assert(kParts % 4 == 0 && kRows == 64);

    let_next_start();
    extern __shared__ __align__(1024) unsigned char wide_shared[];
    const uint32_t b_at = shared_address(wide_shared), a_at = b_at + Tile::kBBytes;
    unsigned char* const a = wide_shared + Tile::kBBytes;
    __half *const scale = reinterpret_cast<__half*>(a + Tile::kABytes), *const shift = scale + kWidth, *const bias = shift + kWidth, *const scale2 = bias + kColumns, *const shift2 = scale2 + kColumns;
    __half *const met = shift2 + kColumns, *const moments_at = met + 8;  // the barrier where the cluster's moments are there, and then that of the weights
    const uint32_t full = shared_address(met + 4);
    float4* const moments = reinterpret_cast<float4*>(moments_at);

    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4, group = warp / 4, n = p.end.n;
    uint32_t rank, first;
    const uint32_t bridge = p.by_groups.divmod(p.by_columns.divmod(blockIdx.x, rank), first);
    const int column = static_cast<int>(rank) * kColumns;
    const uint32_t moment_bytes = static_cast<uint32_t>((n + 63) / 64 * Tile::kPartMoments);

    // Before the kernel before this one is done: weights. Columns beyond the last are zeros.
    if (tid == 0) {
        mbarrier::init(full, 1);
        mbarrier::publish();
        tensor_copy::fence_shared();
        expect_bytes(met, moment_bytes);
        mbarrier::expect(full, Tile::kBBytes);
#pragma unroll 1
        for (int i = 0; i < kChunks; ++i)
#pragma unroll
            for (int part = 0; part < kGroups; ++part)
                tensor_copy::load(b_at + part * Tile::kPart + i * 8192, p.b, column + part * 64, static_cast<int>(bridge) * kWidth + i * 64, full, weight_policy(p.once));
    }
    for (int c = tid; c < kColumns; c += kThreads) {
        const int64_t at = int64_t{bridge} * n + column + c;
        const bool exists = column + c < n;
        bias[c] = exists ? p.bias[at] : __half(), scale2[c] = exists ? p.end.scale[at] : __half(), shift2[c] = exists ? p.end.shift[at] : __half();
    }
    for (int c = 8 * tid; c < 2 * kWidth; c += 8 * kThreads)
        *reinterpret_cast<uint4*>(scale + c) = *reinterpret_cast<const uint4*>((c < kWidth ? p.scale + c : p.shift + (c - kWidth)) + int64_t{bridge} * kWidth);
    BridgeEnd<__half, false> end = p.end;
    end.out = p.out[bridge];
    __syncthreads();
    cluster_arrive();

    // Eight lanes have a row, 8 elements of each 64 each, and the row 32 on: a thread normalizes what it has fetched. Rows past the end are zeros.
    const int piece = tid % 8, row = tid / 8;
    __half* const own = reinterpret_cast<__half*>(a + row * 128 + (piece ^ row % 8) * 16);
    constexpr int kHalf = 32 * 64, kChunk = kRows * 64;  // elements to the other row, and to the next 64
    const __half* const words = p.a[bridge] + 8 * piece;
    auto fetch = [&](uint32_t tile) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int64_t r = int64_t{tile} * kRows + row + 32 * h;
            const bool exists = r < p.rows;
            const __half* const from = words + (exists ? r : 0) * kWidth;
#pragma unroll
            for (int i = 0; i < kChunks; ++i) copy16(own + h * kHalf + i * kChunk, from + 64 * i, exists);
        }
        commit_copies();
    };
    wait_for_words<kThreads>(p.told, p.telling, p.after[bridge]);
    fetch(first);
    uint32_t parity = 0;
#pragma unroll 1
    for (uint32_t tile = first; tile < p.tiles; tile += p.by_groups.divisor) {
        const int64_t row0 = int64_t{tile} * kRows;
        {
            // Loops, or their fp32 values would be kept from one to the next.
            auto each = [&](const auto& f) {
#pragma unroll 2
                for (int i = 0; i < kChunks; ++i)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        float v[8];
                        Pack<__half, 8>(*reinterpret_cast<const uint4*>(own + h * kHalf + i * kChunk)).floats(v);
                        f(h, v);
                    }
            };
            float mean[2] = {}, variance[2] = {}, factor[2], offset[2];
            wait_copies<0>();
            each([&](int h, const float(&v)[8]) {
#pragma unroll
                for (int e = 0; e < 8; ++e) mean[h] += v[e], variance[h] = fmaf(v[e], v[e], variance[h]);
            });
#pragma unroll
            for (int h = 0; h < 2; ++h) mean[h] = group_sum<8>(mean[h]) * (1.f / kWidth), variance[h] = fmaf(-mean[h], mean[h], group_sum<8>(variance[h]) * (1.f / kWidth));
            // A mean so far from zero leaves the variance few digits.
            if (__any_sync(0xffffffffu, mean[0] * mean[0] > 64.f * variance[0] || mean[1] * mean[1] > 64.f * variance[1])) {
                variance[0] = variance[1] = 0.f;
                each([&](int h, const float(&v)[8]) {
#pragma unroll
                    for (int e = 0; e < 8; ++e) variance[h] = fmaf(v[e] - mean[h], v[e] - mean[h], variance[h]);
                });
#pragma unroll
                for (int h = 0; h < 2; ++h) variance[h] = group_sum<8>(variance[h]) * (1.f / kWidth);
            }
#pragma unroll
            for (int h = 0; h < 2; ++h) factor[h] = rsqrtf(variance[h] + p.epsilon), offset[h] = -mean[h] * factor[h];
#pragma unroll 2
            for (int i = 0; i < kChunks; ++i) {
                float s[8], b[8];
                Pack<__half, 8>(*reinterpret_cast<const uint4*>(scale + 64 * i + 8 * piece)).floats(s), Pack<__half, 8>(*reinterpret_cast<const uint4*>(shift + 64 * i + 8 * piece)).floats(b);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    uint4* const at = reinterpret_cast<uint4*>(own + h * kHalf + i * kChunk);
                    float v[8];
                    Pack<__half, 8>(*at).floats(v);
#pragma unroll
                    for (int e = 0; e < 8; ++e) v[e] = fmaf(fmaf(v[e], factor[h], offset[h]), s[e], b[e]);
                    *at = Pack<__half, 8>::of(v).raw;
                }
            }
        }
        tensor_copy::fence_shared();
        __syncthreads();

        const bool multiplies = group < kGroups;
        const int columns = min(64, n - column - 64 * group);  // none if it is not above 0
        const int part = static_cast<int>(rank) * kGroups + group, r0 = warp % 4 * 16 + g;
        float acc[32];
        if (multiplies) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const float2 b = __half22float2(*reinterpret_cast<const __half2*>(bias + 64 * group + 8 * j + 2 * t));
                acc[4 * j] = acc[4 * j + 2] = b.x, acc[4 * j + 1] = acc[4 * j + 3] = b.y;
            }
            mbarrier::wait(full, 0);
            const uint32_t weights_at = b_at + (kGroups > 1 ? __shfl_sync(0xffffffffu, group, 0) * Tile::kPart : 0);  // the same in all lanes, as descriptors have to be
            warpgroup::settle(acc);
            warpgroup::begin();
#pragma unroll
            for (int i = 0; i < kChunks; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    wide::multiply(acc, wide::descriptor(a_at + i * 8192 + j * 32, 16), wide::descriptor(weights_at + i * 8192 + j * 2048, Tile::kPart), 1);
            warpgroup::commit();
            warpgroup::wait<0>();
            warpgroup::settle(acc);
        }
        const uint32_t next = tile + p.by_groups.divisor;
        cluster_wait();  // all blocks are there to be written to, and have read the moments of the tile before
        const int pair = warp % 4 * 8 + g;
        if (multiplies && columns > 0) {
            float sums[2], squares[2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float sum = 0, square = 0;
#pragma unroll
                for (int j = 0; j < 8; ++j) sum += acc[4 * j + 2 * h] + acc[4 * j + 2 * h + 1];
                sums[h] = group_sum<4>(sum);
                const float mean = sums[h] * (columns >= 64 ? 1.f / 64 : p.last_each);
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    if (8 * j >= columns) continue;
                    const float x = acc[4 * j + 2 * h] - mean, y = acc[4 * j + 2 * h + 1] - mean;
                    square = fmaf(x, x, square), square = fmaf(y, y, square);
                }
                squares[h] = group_sum<4>(square);
            }
            const uint4 both = make_uint4(__float_as_uint(sums[0]), __float_as_uint(squares[0]), __float_as_uint(sums[1]), __float_as_uint(squares[1]));
            const uint32_t to = shared_address(moments + part * (kRows / 2) + pair);
            for (uint32_t z = t; z < p.by_columns.divisor; z += 4) store_counted(remote(to, z), both, remote(shared_address(met), z));
        }
        end.template copy_others<8>(uint64_t{first * p.by_columns.divisor + rank} * kThreads + tid, uint64_t{p.by_groups.divisor * p.by_columns.divisor} * kThreads);
        end.at.others = 0;
        wait_bytes(met, parity);
        parity ^= 1;
        if (next < p.tiles) {
            if (tid == 0) mbarrier::expect(shared_address(met), moment_bytes);
            fetch(next);  // who has told of moments has multiplied this tile's rows
        }
        if (multiplies && columns > 0) {
            RowStatistics of[2];
            wide_statistics<kParts>(of, moments + pair, kRows / 2, p, t);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = r0 + 8 * h;
                const float mean = of[h].mean, factor = of[h].factor;
                const bool exists = row0 + r < p.rows;
                __half* const to = end.out + (exists ? end.at.of_row(static_cast<uint32_t>(row0 + r)) : 0) * n + column + 64 * group + 8 * t;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    uint32_t pairs[4];
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        const int c = 64 * group + 32 * i + 8 * j + 2 * t, from = 16 * i + 4 * j + 2 * h;
                        const float2 s = __half22float2(*reinterpret_cast<const __half2*>(scale2 + c)), b = __half22float2(*reinterpret_cast<const __half2*>(shift2 + c));
                        pairs[j] = pack_halves(fmaf((acc[from] - mean) * factor, s.x, b.x), fmaf((acc[from + 1] - mean) * factor, s.y, b.y));
                    }
                    exchange_tiles(pairs, t);
                    if (exists && 32 * i + 8 * t < columns) *reinterpret_cast<uint4*>(to + 32 * i) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
                }
            }
        }
        if (next < p.tiles) cluster_arrive();  // its moments have been read
    }
    // Who waits for this kernel waits for the chain. Others than the last bridge's blocks make room.
    if (p.told && bridge == p.last) wait_for_previous();
#endif
}

}  // namespace trt_opt
