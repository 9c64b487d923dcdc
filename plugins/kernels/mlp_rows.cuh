// The MLP block of a few rows of 128, 256 or 512 channels with four times as many hidden ones, as one kernel of clusters whose sizes are known when it is compiled.
//
// A cluster has 32 rows, or 16, a block of it 128 hidden columns and a slice of the result's. A block normalizes all rows, and what is hidden never leaves it; its
// sums of the result go to the blocks that own them, counted there. Weights are in shared memory before the wait for the kernel ahead, and behind it every address is
// known. Of 512 channels a half of W2 is late: it comes into the place of W1.
#pragma once

#include <type_traits>

#include "gelu.cuh"
#include "ptx.cuh"
#include "row_tile.cuh"

namespace trt_opt {

struct MlpRowsArgs {
    const __half *x, *residual;  // [rows, C]; residual may be null
    const __half *scale, *shift, *w1, *b1, *w2, *b2;
    __half* y;
    int rows;
    float epsilon;
    Activation activation;
    bool once;                   // all clusters run at once: how the second-level cache keeps the weights
};

constexpr int kMlpRowsThreads = 512;

template <int C> struct MlpRowsShape {
    static_assert(C == 128 || C == 256 || C == 512);
    static constexpr int kWarps = kMlpRowsThreads / 32, kRowTiles = C == 512 ? 1 : 2, kRows = 16 * kRowTiles, kHidden = 4 * C, kSlice = 128, kCluster = kHidden / kSlice;
    static constexpr int kGroups = kWarps / kRowTiles;  // of warps, which share the columns of either product
    static constexpr int kEarly = C == 512 ? kSlice / 2 : kSlice;  // rows of W2
    // Of rows in shared memory: their pieces of 16 bytes fall on different banks.
    static constexpr int kStride = C + 8, kSliceStride = kSlice + 8;
    // What a block owns of the result are tiles of 16 x 16, which come from each block of the cluster as the lanes of a warp have them, in fp16.
    static constexpr int kOwnColumns = C / kCluster, kOwn = kRowTiles * kOwnColumns / 16, kTileBytes = 512, kWords = kOwn * kTileBytes / 4, kReceived = kCluster * kOwn * kTileBytes;
    static_assert(kOwnColumns == 32 && kWords <= kMlpRowsThreads);
    static constexpr int kFirstHalves = C * kSliceStride, kSecondHalves = kEarly * kStride, kRowHalves = kRows * kStride, kHiddenHalves = kRows * kSliceStride;
    // W1 is in registers when the rows are there, and free then.
    static_assert((kSlice - kEarly) * kStride <= kFirstHalves && kReceived <= 2 * kRowHalves);
    static constexpr int kBytes = 2 * (kFirstHalves + kSecondHalves + kRowHalves + kHiddenHalves) + 16;
};

template <int C> __global__ void __launch_bounds__(kMlpRowsThreads) mlp_rows_kernel(const __grid_constant__ MlpRowsArgs p) {
#if __CUDA_ARCH__ >= 900
    using S = MlpRowsShape<C>;
    using Row = Pack<__half, 8>;
    using Pair = Pack<__half, 2>;
    extern __shared__ __align__(16) unsigned char mlp_rows_shared[];
    __half *const first = reinterpret_cast<__half*>(mlp_rows_shared), *const second = first + S::kFirstHalves, *const rows = second + S::kSecondHalves, *const hidden = rows + S::kRowHalves;
    // What other blocks send comes into the place of the rows, which is free when the first product is done.
    unsigned char *const received = reinterpret_cast<unsigned char*>(rows), *const counter = reinterpret_cast<unsigned char*>(hidden + S::kHiddenHalves);
    ptx::let_next_start();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int rank = static_cast<int>(blockIdx.x) % S::kCluster, row0 = static_cast<int>(blockIdx.x) / S::kCluster * S::kRows, hidden0 = rank * S::kSlice;

    if (tid == 0) ptx::expect_bytes(counter, S::kReceived);
    const uint64_t policy = ptx::weight_policy(p.once);
    auto fetch = [&](__half* to, int to_stride, const __half* from, int from_stride, auto columns, auto depth) {
        constexpr int kPieces = decltype(columns)::value / 8, kDepth = decltype(depth)::value, kStep = kMlpRowsThreads / kPieces;
        static_assert(kDepth % kStep == 0);
        const int row = tid / kPieces, part = tid % kPieces * 8;
        from += row * from_stride + part, to += row * to_stride + part;
#pragma unroll
        for (int r = 0; r < kDepth; r += kStep) ptx::copy16(to + r * to_stride, from + r * from_stride, true, policy);
        ptx::commit_copies();
    };
    using Columns = std::integral_constant<int, C>;
    constexpr int kLate = S::kSlice - S::kEarly;
    fetch(first, S::kSliceStride, p.w1 + hidden0, S::kHidden, std::integral_constant<int, S::kSlice>{}, Columns{});
    fetch(second, S::kStride, p.w2 + hidden0 * C, C, Columns{}, std::integral_constant<int, S::kEarly>{});
    [[maybe_unused]] const __half* const late = p.w2 + (hidden0 + S::kEarly) * C;
    if constexpr (kLate > 0) ptx::prefetch_weights(late, kLate * C * 2, warp, S::kWarps, policy);

    // A warp normalizes its share of the rows, and then has 16 rows and a group's columns of either product.
    constexpr int kPieces = C > 256 ? C / 256 : 1, kLanes = C / 8 / kPieces, kSlots = 32 / kLanes, kOfWarp = S::kRows / S::kWarps, kLoads = kOfWarp / kSlots;
    static_assert(kLoads * kSlots == kOfWarp);
    const int slot = lane / kLanes, part = lane % kLanes * 8, tile = warp % S::kRowTiles, group = warp / S::kRowTiles;
    Row scale[kPieces], shift[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) scale[i].raw = *reinterpret_cast<const uint4*>(p.scale + part + i * 256), shift[i].raw = *reinterpret_cast<const uint4*>(p.shift + part + i * 256);
    constexpr int kN = S::kSlice / S::kGroups / 8, kN2 = C / S::kGroups / 8;  // tiles of 8 columns of a warp
    float bias[kN][2], bias2[2];
#pragma unroll
    for (int n = 0; n < kN; ++n) Pair(*reinterpret_cast<const uint32_t*>(p.b1 + hidden0 + (group * kN + n) * 8 + 2 * t)).floats(bias[n]);
    // A thread owns two columns of a row of the result: a word of what is received.
    const int word = tid % 4, from_lane = tid % 128 / 4, own_tile = tid / 128;
    const int own_row = row0 + own_tile % S::kRowTiles * 16 + from_lane / 4 + word % 2 * 8, own_column = rank * S::kOwnColumns + own_tile / S::kRowTiles % 2 * 16 + word / 2 * 8 + from_lane % 4 * 2;
    const bool owns = tid < S::kWords && own_row < p.rows;
    Pair(*reinterpret_cast<const uint32_t*>(p.b2 + own_column)).floats(bias2);
    const int own_at = own_row * C + own_column, at = (row0 + warp * kOfWarp + slot) * C + part;
    const __half *x = p.x + at, *own_x = p.x + own_at, *residual = p.residual ? p.residual + at : nullptr, *own_residual = p.residual ? p.residual + own_at : nullptr;
    asm volatile("" : "+l"(x), "+l"(own_x), "+l"(residual), "+l"(own_residual));  // else the compiler computes them behind the wait
    ptx::wait_for_previous();

    Row s[kLoads][kPieces], r[kLoads][kPieces];
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
        if (row0 + warp * kOfWarp + slot + j * kSlots < p.rows) {
#pragma unroll
            for (int i = 0; i < kPieces; ++i) {
                s[j][i].raw = *reinterpret_cast<const uint4*>(x + j * kSlots * C + i * 256);
                if (residual) r[j][i].raw = *reinterpret_cast<const uint4*>(residual + j * kSlots * C + i * 256);
            }
        }
    Pair stream, more;
    if (owns) {
        stream.raw = *reinterpret_cast<const uint32_t*>(own_x);
        if (own_residual) more.raw = *reinterpret_cast<const uint32_t*>(own_residual);
    }
    // While the rows are on their way.
    ptx::wait_copies<1>();
    __syncthreads();
    TileColumns<C, kN> w1;
    w1.load(first + group * kN * 8, S::kSliceStride, lane);
    if (residual) {
#pragma unroll
        for (int j = 0; j < kLoads; ++j)
#pragma unroll
            for (int i = 0; i < kPieces; ++i) add_packs(s[j][i], r[j][i]);
    }
    {
        float f[kLoads][kPieces][8];
        normalize_rows<C>(s, p.epsilon, f);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            float by[8], plus[8];
            scale[i].floats(by), shift[i].floats(plus);
#pragma unroll
            for (int j = 0; j < kLoads; ++j) {
#pragma unroll
                for (int e = 0; e < 8; ++e) f[j][i][e] = fmaf(f[j][i][e], by[e], plus[e]);
                *reinterpret_cast<uint4*>(rows + (warp * kOfWarp + slot + j * kSlots) * S::kStride + part + i * 256) = Row::of(f[j][i]).raw;
            }
        }
    }
    ptx::wait_copies<0>();
    __syncthreads();

    if constexpr (kLate > 0) fetch(first, S::kStride, late, C, Columns{}, std::integral_constant<int, kLate>{});
    TileColumns<S::kEarly, kN2> w2;
    {
        float sum[kN][4] = {};
        w1.multiply_rows(rows + tile * 16 * S::kStride, S::kStride, lane, sum);
        w2.load(second + group * kN2 * 8, S::kStride, lane);
        float v[4 * kN];
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) v[4 * n + e] = sum[n][e] + bias[n][e % 2];
        activate(v, p.activation);
        __half* const to = hidden + (tile * 16 + g) * S::kSliceStride + group * kN * 8 + 2 * t;
#pragma unroll
        for (int n = 0; n < kN; ++n) {
            *reinterpret_cast<uint32_t*>(to + 8 * n) = pack_halves(v[4 * n], v[4 * n + 1]);
            *reinterpret_cast<uint32_t*>(to + 8 * S::kSliceStride + 8 * n) = pack_halves(v[4 * n + 2], v[4 * n + 3]);
        }
    }
    ptx::cluster_arrive_relaxed();  // this block's rows may be written to, and it has begun to count
    __syncthreads();

    float sum[kN2][4] = {};
    const __half* const left = hidden + tile * 16 * S::kSliceStride;
    w2.multiply_rows(left, S::kSliceStride, lane, sum);
    if constexpr (kLate > 0) {
        ptx::wait_copies<0>();
        __syncthreads();
        TileColumns<kLate, kN2> rest;
        rest.load(first + group * kN2 * 8, S::kStride, lane);
        rest.multiply_rows(left + S::kEarly, S::kSliceStride, lane, sum);
    }
    ptx::cluster_wait();
#pragma unroll
    for (int n = 0; n < kN2; n += 2) {
        const int column_tile = (group * kN2 + n) / 2, owner = column_tile / 2;
        const uint32_t to = ptx::remote(ptx::shared_address(received + (rank * S::kOwn + column_tile % 2 * S::kRowTiles + tile) * S::kTileBytes + lane * 16), static_cast<uint32_t>(owner));
        const uint4 sent{pack_halves(sum[n][0], sum[n][1]), pack_halves(sum[n][2], sum[n][3]), pack_halves(sum[n + 1][0], sum[n + 1][1]), pack_halves(sum[n + 1][2], sum[n + 1][3])};
        ptx::store_counted(to, sent, ptx::remote(ptx::shared_address(counter), static_cast<uint32_t>(owner)));
    }
    ptx::wait_bytes(counter);
    if (!owns) return;
    float total[2] = {};
#pragma unroll
    for (int z = 0; z < S::kCluster; ++z) {
        float f[2];
        Pair(*reinterpret_cast<const uint32_t*>(received + z * S::kOwn * S::kTileBytes + tid * 4)).floats(f);
        total[0] += f[0], total[1] += f[1];
    }
    if (own_residual) add_packs(stream, more);
    float f[2];
    stream.floats(f);
    *reinterpret_cast<uint32_t*>(p.y + own_at) = pack_halves(f[0] + (total[0] + bias2[0]), f[1] + (total[1] + bias2[1]));
#endif
}

}  // namespace trt_opt
