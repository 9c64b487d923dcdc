// Queries, and keys and values of pooled tokens, as one kernel: what a block with pooled keys needs before its attention.
//
// A block of the first kind has 16 pooled tokens and 64 columns of keys and values: it normalizes and averages the tokens of its windows, multiplies by all of
// Wpool, normalizes again and multiplies by its slice of Wkv. What is before the slice is done anew for each, which costs less than a kernel or a cluster's
// exchange would. One of the second kind has 32 tokens and 64 columns of queries. Weights are constants, so they are on their way before the wait for the
// kernel ahead.
#pragma once

#include "common.cuh"
#include "mma.cuh"
#include "ptx.cuh"

namespace trt_opt {

struct PooledHeads {
    const __half *x, *residual;         // [tokens of all images, C]; residual may be null
    const __half *scale, *shift;        // [C], of the first norm
    const __half *w_q, *b_q;            // [C, inner]
    const __half *w_pool, *b_pool;      // [C, C]
    const __half *pool_scale, *pool_shift;
    const __half *w_kv, *b_kv;          // [C, 2 * inner]
    __half *q, *kv;                     // [rows, inner], [pooled, 2 * inner]
    const unsigned char* next;          // constants that a kernel after this one reads
    int next_lines;                     // of 128 bytes
    int rows, pooled;                   // tokens of all images, and pooled ones
    int inner;                          // columns of all heads, a multiple of 8
    int tokens, width;                  // of an image, of a line of its map
    int pool_h, pool_w;
    float epsilon, pool_epsilon;
    int key_blocks, key_slices, query_slices;
    FastDiv by_image, by_across, by_pool_w;  // pooled tokens of an image, and of a line; tokens of a window's line
};

constexpr int kPooledThreads = 512, kPooledKeyRows = 16, kPooledQueryRows = 32, kPooledSlice = 64, kPooledSliceStride = kPooledSlice + 8;

template <int C> struct PooledShape {
    static_assert(C == 64 || C == 128 || C == 256);
    static constexpr int kStride = C + 8;            // of rows in shared memory: their pieces of 16 bytes fall on different banks
    static constexpr int kLanes = C / 8;             // of a row: 16 bytes each
    static constexpr int kSlots = 32 / kLanes;       // rows that a warp has at once
    static constexpr int kAhead = C == 256 ? 4 : 8;  // of these under way at once
    static constexpr int kWarps = C / 16;            // that share the columns of Wpool
    static constexpr int kSliceHalves = C * kPooledSliceStride, kRowHalves = kPooledQueryRows * kStride, kPoolHalves = C * kStride;
    static constexpr int kBytes = (kSliceHalves + kRowHalves + kPoolHalves) * 2 + 2 * kPooledKeyRows * kWarps * 4;
};

// What is normalized of a row, 8 elements a lane of kLanes, without scale and shift; zeros of zeros.
template <int C> __device__ __forceinline__ void pooled_normal(const Pack<__half, 8>& row, float epsilon, float (&f)[8]) {
    constexpr int kLanes = PooledShape<C>::kLanes;
    row.floats(f);
    float sum = 0, squares = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) sum += f[e];
    const float mean = group_sum<kLanes>(sum) / C;
#pragma unroll
    for (int e = 0; e < 8; ++e) f[e] -= mean, squares = fmaf(f[e], f[e], squares);
    const float factor = rsqrtf(group_sum<kLanes>(squares) / C + epsilon);
#pragma unroll
    for (int e = 0; e < 8; ++e) f[e] *= factor;
}

// 16 rows of C by 8 columns of a slice.
template <int C> __device__ __forceinline__ void pooled_product(const __half* rows, const __half* slice, int lane, float (&sum)[4]) {
    constexpr int kStride = PooledShape<C>::kStride;
    float other[4] = {};
#pragma unroll
    for (int k = 0; k < C; k += 32) {
        uint32_t a[4], a2[4], b[2], b2[2];
        const __half* const from = rows + lane % 16 * kStride + lane / 16 * 8 + k;
        ptx::load_matrices4(a, from), ptx::load_matrices4(a2, from + 16);
        ptx::load_transposed4(b[0], b[1], b2[0], b2[1], slice + (k + lane) * kPooledSliceStride);
        multiply(sum, a, b), multiply(other, a2, b2);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += other[i];
}

template <int C> __global__ void __launch_bounds__(kPooledThreads) pooled_heads_kernel(const __grid_constant__ PooledHeads p) {
#if __CUDA_ARCH__ >= 900
    using S = PooledShape<C>;
    using Row = Pack<__half, 8>;
    extern __shared__ __align__(16) unsigned char pooled_shared[];
    __half *const slice = reinterpret_cast<__half*>(pooled_shared), *const rows = slice + S::kSliceHalves, *const pool = rows + S::kRowHalves;
    float *const sums = reinterpret_cast<float*>(pool + S::kPoolHalves), *const squares = sums + kPooledKeyRows * S::kWarps;
    ptx::let_next_start();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const bool keys = static_cast<int>(blockIdx.x) < p.key_blocks;
    const int index = static_cast<int>(blockIdx.x) - (keys ? 0 : p.key_blocks), slices = keys ? p.key_slices : p.query_slices, tile = index / slices;
    const int columns = keys ? 2 * p.inner : p.inner, column0 = index % slices * kPooledSlice;

    if (keys)
        for (int i = tid; i < C * S::kLanes; i += kPooledThreads) ptx::copy16(pool + i / S::kLanes * S::kStride + i % S::kLanes * 8, p.w_pool + i * 8, true);
    ptx::commit_copies();
    const __half* const w = keys ? p.w_kv : p.w_q;
    for (int i = tid; i < C * (kPooledSlice / 8); i += kPooledThreads) {
        const int row = i / (kPooledSlice / 8), part = i % (kPooledSlice / 8) * 8, column = column0 + part;
        ptx::copy16(slice + row * kPooledSliceStride + part, w + int64_t{row} * columns + (column < columns ? column : 0), column < columns);
    }
    ptx::commit_copies();
    for (int i = static_cast<int>(blockIdx.x) * kPooledThreads + tid; i < p.next_lines; i += static_cast<int>(gridDim.x) * kPooledThreads) ptx::prefetch_l2(p.next + int64_t{i} * 128);

    // This lane's columns of rows, and its two of the product's result.
    const int slot = lane / S::kLanes, part = lane % S::kLanes * 8, column = column0 + warp % 8 * 8 + 2 * t;
    float scale[8], shift[8], bias[2] = {};
    Row(*reinterpret_cast<const uint4*>(p.scale + part)).floats(scale), Row(*reinterpret_cast<const uint4*>(p.shift + part)).floats(shift);
    if (column < columns) Pack<__half, 2>(*reinterpret_cast<const uint32_t*>((keys ? p.b_kv : p.b_q) + column)).floats(bias);
    ptx::wait_for_previous();

    auto fetch = [&](const __half* from, int64_t token) { return Row(*reinterpret_cast<const uint4*>(from + token * C + part)); };
    const __half* left = rows;  // of the last product
    if (keys) {
        // A warp has a window.
        const int row = tile * kPooledKeyRows + warp, window = p.pool_h * p.pool_w;
        uint32_t within, across;
        const uint32_t image = p.by_image.divmod(static_cast<uint32_t>(row < p.pooled ? row : 0), within), down = p.by_across.divmod(within, across);
        const int64_t first = int64_t{image} * p.tokens + int64_t{down} * p.pool_h * p.width + across * p.pool_w;
        float sum[8] = {};
        for (int from = 0; from < window; from += S::kAhead * S::kSlots) {
            Row s[S::kAhead], r[S::kAhead];
#pragma unroll
            for (int j = 0; j < S::kAhead; ++j)
                if (const int i = from + j * S::kSlots + slot; i < window) {
                    uint32_t dx;
                    const uint32_t dy = p.by_pool_w.divmod(static_cast<uint32_t>(i), dx);
                    const int64_t token = first + int64_t{dy} * p.width + dx;
                    s[j] = fetch(p.x, token);
                    if (p.residual) r[j] = fetch(p.residual, token);
                }
            __syncwarp();
#pragma unroll
            for (int j = 0; j < S::kAhead; ++j) {
                if (p.residual) add_packs(s[j], r[j]);
                float f[8];
                pooled_normal<C>(s[j], p.epsilon, f);
#pragma unroll
                for (int e = 0; e < 8; ++e) sum[e] += f[e];
            }
        }
        float mean[8];
#pragma unroll
        for (int e = 0; e < 8; ++e) {
#pragma unroll
            for (int step = S::kLanes; step < 32; step *= 2) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], step);
            mean[e] = fmaf(sum[e] / static_cast<float>(window), scale[e], shift[e]);
        }
        if (slot == 0) *reinterpret_cast<uint4*>(rows + warp * S::kStride + part) = Row::of(mean).raw;
        ptx::wait_copies<1>();
        __syncthreads();

        // A warp has 16 columns of the pooled tokens' own product.
        const bool active = warp < S::kWarps;
        float made[2][4] = {};
        const int own = warp * 16 + 2 * t;  // and the 8th after
        if (active) {
#pragma unroll
            for (int k = 0; k < C; k += 16) {
                uint32_t a[4], b[2][2];
                ptx::load_matrices4(a, rows + lane % 16 * S::kStride + lane / 16 * 8 + k);
                ptx::load_transposed4(b[0][0], b[0][1], b[1][0], b[1][1], pool + (k + lane % 16) * S::kStride + warp * 16 + lane / 16 * 8);
                multiply(made[0], a, b[0]), multiply(made[1], a, b[1]);
            }
            float low = 0, high = 0;
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                float offset[2];
                Pack<__half, 2>(*reinterpret_cast<const uint32_t*>(p.b_pool + own + 8 * n)).floats(offset);
#pragma unroll
                for (int e = 0; e < 2; ++e) low += made[n][e] += offset[e], high += made[n][2 + e] += offset[e];
            }
            low = group_sum<4>(low), high = group_sum<4>(high);
            if (t == 0) sums[g * S::kWarps + warp] = low, sums[(g + 8) * S::kWarps + warp] = high;
        }
        __syncthreads();
        auto total = [&](const float* of, int r) {
            float sum = 0;
#pragma unroll
            for (int i = 0; i < S::kWarps; ++i) sum += of[r * S::kWarps + i];
            return sum / C;
        };
        if (active) {
            const float below[2] = {total(sums, g), total(sums, g + 8)};
            float low = 0, high = 0;
#pragma unroll
            for (int n = 0; n < 2; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    made[n][e] -= below[0], made[n][2 + e] -= below[1];
                    low = fmaf(made[n][e], made[n][e], low), high = fmaf(made[n][2 + e], made[n][2 + e], high);
                }
            low = group_sum<4>(low), high = group_sum<4>(high);
            if (t == 0) squares[g * S::kWarps + warp] = low, squares[(g + 8) * S::kWarps + warp] = high;
        }
        __syncthreads();
        __half* const normal = rows + kPooledKeyRows * S::kStride;
        if (active) {
            const float factor[2] = {rsqrtf(total(squares, g) + p.pool_epsilon), rsqrtf(total(squares, g + 8) + p.pool_epsilon)};
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                float by[2], plus[2];
                Pack<__half, 2>(*reinterpret_cast<const uint32_t*>(p.pool_scale + own + 8 * n)).floats(by), Pack<__half, 2>(*reinterpret_cast<const uint32_t*>(p.pool_shift + own + 8 * n)).floats(plus);
#pragma unroll
                for (int r = 0; r < 2; ++r)
                    *reinterpret_cast<uint32_t*>(normal + (g + 8 * r) * S::kStride + own + 8 * n) = pack_halves(fmaf(made[n][2 * r] * factor[r], by[0], plus[0]), fmaf(made[n][2 * r + 1] * factor[r], by[1], plus[1]));
            }
        }
        left = normal;
    } else {
        // A warp has two rows.
        constexpr int kLoads = S::kSlots > 1 ? 1 : 2;
        const int first = tile * kPooledQueryRows + warp * 2;
        Row s[kLoads], r[kLoads];
#pragma unroll
        for (int j = 0; j < kLoads; ++j)
            if (const int i = j * S::kSlots + slot; i < 2 && first + i < p.rows) {
                s[j] = fetch(p.x, first + i);
                if (p.residual) r[j] = fetch(p.residual, first + i);
            }
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
            if (p.residual) add_packs(s[j], r[j]);
            float f[8];
            pooled_normal<C>(s[j], p.epsilon, f);
#pragma unroll
            for (int e = 0; e < 8; ++e) f[e] = fmaf(f[e], scale[e], shift[e]);
            if (const int i = j * S::kSlots + slot; i < 2) *reinterpret_cast<uint4*>(rows + (warp * 2 + i) * S::kStride + part) = Row::of(f).raw;
        }
        left = rows + warp / 8 * 16 * S::kStride;
    }
    ptx::wait_copies<0>();
    __syncthreads();
    if (keys && warp >= 8) return;

    float sum[4] = {};
    pooled_product<C>(left, slice + warp % 8 * 8, lane, sum);
    if (column >= columns) return;
    const int limit = keys ? p.pooled : p.rows, row = tile * (keys ? kPooledKeyRows : kPooledQueryRows) + warp / 8 * 16 + g;
    __half* const out = (keys ? p.kv : p.q) + column;
#pragma unroll
    for (int r = 0; r < 2; ++r)
        if (row + 8 * r < limit) *reinterpret_cast<uint32_t*>(out + int64_t{row + 8 * r} * columns) = pack_halves(sum[2 * r] + bias[0], sum[2 * r + 1] + bias[1]);
#endif
}

}  // namespace trt_opt
