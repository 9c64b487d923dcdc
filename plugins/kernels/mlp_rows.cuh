// The MLP block of a few rows of 128 or 256 channels with four times as many hidden ones, as one kernel of clusters whose sizes are known when it is compiled.
//
// A cluster has 32 rows, a block of it 128 hidden columns and a slice of the result's. A block normalizes all rows, two a warp, and what is hidden never leaves it;
// its sums of the result go to the blocks that own them, counted there. Weights are whole in shared memory before the wait for the kernel ahead, and behind it
// every address is known.
#pragma once

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
};

constexpr int kMlpRowsThreads = 512;

template <int C> struct MlpRowsShape {
    static_assert(C == 128 || C == 256);
    static constexpr int kRows = 32, kHidden = 4 * C, kSlice = 128, kCluster = kHidden / kSlice;
    // Of rows in shared memory: their pieces of 16 bytes fall on different banks.
    static constexpr int kStride = C + 8, kSliceStride = kSlice + 8;
    // What a block owns of the result are four tiles of 16 x 16, which come from each block of the cluster as the lanes of a warp have them, in fp16.
    static constexpr int kOwn = 4, kOwnColumns = 32, kTileBytes = 512, kReceived = kCluster * kOwn * kTileBytes;
    static_assert(kOwn * kTileBytes == 4 * kMlpRowsThreads && kOwnColumns * kCluster == C && kRows * kOwnColumns * 2 == kOwn * kTileBytes);
    static constexpr int kFirstHalves = C * kSliceStride, kSecondHalves = kSlice * kStride, kRowHalves = kRows * kStride, kHiddenHalves = kRows * kSliceStride;
    static constexpr int kBytes = 2 * (kFirstHalves + kSecondHalves + kRowHalves + kHiddenHalves) + kReceived + 16;
};

template <int C> __global__ void __launch_bounds__(kMlpRowsThreads) mlp_rows_kernel(const __grid_constant__ MlpRowsArgs p) {
#if __CUDA_ARCH__ >= 900
    using S = MlpRowsShape<C>;
    using Row = Pack<__half, 8>;
    using Pair = Pack<__half, 2>;
    constexpr int kWarpColumns = C / 8;  // of the result
    extern __shared__ __align__(16) unsigned char mlp_rows_shared[];
    __half *const first = reinterpret_cast<__half*>(mlp_rows_shared), *const second = first + S::kFirstHalves, *const rows = second + S::kSecondHalves, *const hidden = rows + S::kRowHalves;
    unsigned char *const received = reinterpret_cast<unsigned char*>(hidden + S::kHiddenHalves), *const counter = received + S::kReceived;
    ptx::let_next_start();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const int rank = static_cast<int>(blockIdx.x) % S::kCluster, row0 = static_cast<int>(blockIdx.x) / S::kCluster * S::kRows, hidden0 = rank * S::kSlice;

    if (tid == 0) ptx::expect_bytes(counter, S::kReceived);
    ptx::cluster_arrive_relaxed();  // nothing is sent before all blocks have begun
    auto fetch = [&](__half* to, int to_stride, const __half* from, int from_stride, auto columns, auto depth) {
        constexpr int kPieces = decltype(columns)::value / 8, kDepth = decltype(depth)::value, kStep = kMlpRowsThreads / kPieces;
        static_assert(kDepth % kStep == 0);
        const int row = tid / kPieces, part = tid % kPieces * 8;
        from += row * from_stride + part, to += row * to_stride + part;
#pragma unroll
        for (int r = 0; r < kDepth; r += kStep) ptx::copy16(to + r * to_stride, from + r * from_stride, true);
        ptx::commit_copies();
    };
    fetch(first, S::kSliceStride, p.w1 + hidden0, S::kHidden, std::integral_constant<int, S::kSlice>{}, std::integral_constant<int, C>{});
    fetch(second, S::kStride, p.w2 + int64_t{hidden0} * C, C, std::integral_constant<int, C>{}, std::integral_constant<int, S::kSlice>{});

    // A warp normalizes two rows, and then has 16 rows and an eighth of the columns of either product.
    constexpr int kLanes = C / 8, kSlots = 32 / kLanes, kLoads = 2 / kSlots;
    const int slot = lane / kLanes, part = lane % kLanes * 8, tile = warp % 2, group = warp / 2;
    const Row scale(*reinterpret_cast<const uint4*>(p.scale + part)), shift(*reinterpret_cast<const uint4*>(p.shift + part));
    float bias[2][2], bias2[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) Pair(*reinterpret_cast<const uint32_t*>(p.b1 + hidden0 + group * 16 + 8 * n + 2 * t)).floats(bias[n]);
    // A thread owns two columns of a row of the result: a word of what is received.
    const int word = tid % 4, from_lane = tid % 128 / 4, own_tile = tid / 128;
    const int own_row = row0 + own_tile % 2 * 16 + from_lane / 4 + word % 2 * 8, own_column = rank * S::kOwnColumns + own_tile / 2 * 16 + word / 2 * 8 + from_lane % 4 * 2;
    Pair(*reinterpret_cast<const uint32_t*>(p.b2 + own_column)).floats(bias2);
    const int own_at = own_row * C + own_column, at = (row0 + warp * 2 + slot) * C + part;
    const __half *x = p.x + at, *own_x = p.x + own_at, *residual = p.residual ? p.residual + at : nullptr, *own_residual = p.residual ? p.residual + own_at : nullptr;
    asm volatile("" : "+l"(x), "+l"(own_x), "+l"(residual), "+l"(own_residual));  // else the compiler computes them behind the wait
    ptx::wait_for_previous();

    Row s[kLoads], r[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
        if (row0 + warp * 2 + slot + j * kSlots < p.rows) {
            s[j].raw = *reinterpret_cast<const uint4*>(x + j * kSlots * C);
            if (residual) r[j].raw = *reinterpret_cast<const uint4*>(residual + j * kSlots * C);
        }
    Pair stream, more;
    if (own_row < p.rows) {
        stream.raw = *reinterpret_cast<const uint32_t*>(own_x);
        if (own_residual) more.raw = *reinterpret_cast<const uint32_t*>(own_residual);
    }
    if (residual) {
#pragma unroll
        for (int j = 0; j < kLoads; ++j) add_packs(s[j], r[j]);
    }
    {
        float f[kLoads][8], by[8], plus[8];
        normalize_rows<C>(s, p.epsilon, f);
        scale.floats(by), shift.floats(plus);
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
#pragma unroll
            for (int e = 0; e < 8; ++e) f[j][e] = fmaf(f[j][e], by[e], plus[e]);
            *reinterpret_cast<uint4*>(rows + (warp * 2 + slot + j * kSlots) * S::kStride + part) = Row::of(f[j]).raw;
        }
    }
    ptx::wait_copies<1>();
    __syncthreads();

    {
        float sum[2][4] = {};
        wide_tile_product<C>(rows + tile * 16 * S::kStride, S::kStride, first + group * 16, S::kSliceStride, lane, sum);
        float v[8];
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) v[4 * n + e] = sum[n][e] + bias[n][e % 2];
        activate(v, p.activation);
        __half* const to = hidden + (tile * 16 + g) * S::kSliceStride + group * 16 + 2 * t;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            *reinterpret_cast<uint32_t*>(to + 8 * n) = pack_halves(v[4 * n], v[4 * n + 1]);
            *reinterpret_cast<uint32_t*>(to + 8 * S::kSliceStride + 8 * n) = pack_halves(v[4 * n + 2], v[4 * n + 3]);
        }
    }
    ptx::wait_copies<0>();
    __syncthreads();

    float sum[kWarpColumns / 8][4] = {};
    wide_tile_product<S::kSlice>(hidden + tile * 16 * S::kSliceStride, S::kSliceStride, second + group * kWarpColumns, S::kStride, lane, sum);
    ptx::cluster_wait();
#pragma unroll
    for (int n = 0; n < kWarpColumns / 8; n += 2) {
        const int column_tile = group * (kWarpColumns / 16) + n / 2, owner = column_tile / 2;
        const uint32_t to = ptx::remote(ptx::shared_address(received + (rank * S::kOwn + column_tile % 2 * 2 + tile) * S::kTileBytes + lane * 16), static_cast<uint32_t>(owner));
        const uint4 sent{pack_halves(sum[n][0], sum[n][1]), pack_halves(sum[n][2], sum[n][3]), pack_halves(sum[n + 1][0], sum[n + 1][1]), pack_halves(sum[n + 1][2], sum[n + 1][3])};
        ptx::store_counted(to, sent, ptx::remote(ptx::shared_address(counter), static_cast<uint32_t>(owner)));
    }
    ptx::wait_bytes(counter);
    float total[2] = {};
#pragma unroll
    for (int z = 0; z < S::kCluster; ++z) {
        float f[2];
        Pair(*reinterpret_cast<const uint32_t*>(received + z * S::kOwn * S::kTileBytes + tid * 4)).floats(f);
        total[0] += f[0], total[1] += f[1];
    }
    if (own_row >= p.rows) return;
    if (own_residual) add_packs(stream, more);
    float f[2];
    stream.floats(f);
    *reinterpret_cast<uint32_t*>(p.y + own_at) = pack_halves(f[0] + (total[0] + bias2[0]), f[1] + (total[1] + bias2[1]));
#endif
}

}  // namespace trt_opt
