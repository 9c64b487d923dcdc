// Queries, and keys and values of pooled tokens, as one kernel: what a block with pooled keys needs before its attention.
//
// A block of the first kind has 8 pooled tokens and 64 columns of keys and values: it normalizes and averages the tokens of its windows, multiplies by all of
// Wpool, normalizes again and multiplies by its slice of Wkv. What is before the slice is done anew for each. Of 256 channels, where Wpool is large, the blocks of a
// cluster, which have the same pooled tokens, share out its columns instead and send each other what they make (SHARED). One of the second kind has 32 tokens and 64 columns of queries. Weights are constants, so they are on their way before the wait for the
// kernel ahead.
#pragma once

#include "common.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "row_tile.cuh"

namespace trt_opt {

struct PooledHeads {
    const __half *x, *residual;         // [tokens of all images, C]; residual may be null
    const __half *scale, *shift;        // [C], of the first norm
    const __half *w_q, *b_q;            // [C, inner]
    const __half *w_pool, *b_pool;      // [C, C]
    const __half *pool_scale, *pool_shift;
    const __half *w_kv, *b_kv;          // [C, 2 * inner]
    __half *q, *kv;                     // [rows, inner], [pooled, 2 * inner]
    const void* next;                   // weights that a kernel after this one reads
    uint32_t next_bytes;                // a multiple of 16
    int rows, pooled;                   // tokens of all images, and pooled ones
    int inner;                          // columns of all heads, a multiple of 8
    int tokens, width;                  // of an image, of a line of its map
    int pool_h, pool_w;
    float epsilon, pool_epsilon, each;  // each: 1 / (pool_h * pool_w)
    int key_blocks, key_slices, query_slices;
    bool once;                          // all blocks run at once: how the second-level cache keeps the weights
    FastDiv by_image, by_across, by_pool_w;  // pooled tokens of an image, and of a line; tokens of a window's line
};

constexpr int kPooledThreads = 512, kPooledKeyRows = 8, kPooledQueryRows = 32, kPooledSlice = 64, kPooledSliceStride = kPooledSlice + 8;

template <int C, bool SHARED> struct PooledShape {
    static_assert(C == 64 || C == 128 || C == 256);
    static constexpr int kStride = C + 8;            // of rows in shared memory: their pieces of 16 bytes fall on different banks
    static constexpr int kLanes = C / 8;             // of a row: 16 bytes each
    static constexpr int kSlots = 32 / kLanes;       // rows that a warp has at once
    static constexpr int kAhead = C == 256 ? 2 : 4;  // of these under way at once
    static constexpr int kWarps = C / 16;            // that share the columns of Wpool
    static constexpr int kCluster = SHARED ? C / 32 : 1, kPoolColumns = C / kCluster, kPoolStride = kPoolColumns + 8;
    // SHARED: sums of kParts parts of the contracted index, [kParts][kPooledKeyRows][kPartStride], then what the cluster made, [kPooledKeyRows][C], and what counts it.
    static constexpr int kParts = 8, kPartStride = kPoolColumns + 4, kPartFloats = kParts * kPooledKeyRows * kPartStride;
    static constexpr int kFloats = SHARED ? kPartFloats + kPooledKeyRows * C + 4 : 2 * kPooledKeyRows * kWarps;
    static constexpr int kSliceHalves = C * kPooledSliceStride, kRowHalves = kPooledQueryRows * kStride, kPoolHalves = C * kPoolStride;
    static constexpr int kBytes = (kSliceHalves + kRowHalves + kPoolHalves) * 2 + kFloats * 4;
};

template <int C, bool SHARED> __global__ void __launch_bounds__(kPooledThreads) pooled_heads_kernel(const __grid_constant__ PooledHeads p) {
#if __CUDA_ARCH__ >= 900
    using S = PooledShape<C, SHARED>;
    using Row = Pack<__half, 8>;
    extern __shared__ __align__(16) unsigned char pooled_shared[];
    __half *const slice = reinterpret_cast<__half*>(pooled_shared), *const rows = slice + S::kSliceHalves, *const pool = rows + S::kRowHalves;
    float* const sums = reinterpret_cast<float*>(pool + S::kPoolHalves);
    [[maybe_unused]] float *const squares = sums + kPooledKeyRows * S::kWarps, *const received = sums + S::kPartFloats, *const counter = received + kPooledKeyRows * C;
    ptx::let_next_start();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    const bool keys = static_cast<int>(blockIdx.x) < p.key_blocks;
    const int index = static_cast<int>(blockIdx.x) - (keys ? 0 : p.key_blocks), slices = keys ? p.key_slices : p.query_slices, tile = index / slices;
    const int columns = keys ? 2 * p.inner : p.inner, column0 = index % slices * kPooledSlice;

    const int rank = index % slices;
    if constexpr (SHARED) {
        if (keys) {
            if (tid == 0) ptx::expect_bytes(counter, kPooledKeyRows * C * 4);
            ptx::cluster_arrive_relaxed();  // nothing is sent before all blocks have begun
        } else if (tile * kPooledQueryRows >= p.rows) {
            return;  // fills a cluster
        }
    }
    const uint64_t policy = ptx::weight_policy(p.once);
    constexpr int kPoolPieces = S::kPoolColumns / 8, kPoolBegin = SHARED ? S::kPoolColumns : 0;
    if (keys)
        for (int i = tid; i < C * kPoolPieces; i += kPooledThreads) ptx::copy16(pool + i / kPoolPieces * S::kPoolStride + i % kPoolPieces * 8, p.w_pool + i / kPoolPieces * C + rank * kPoolBegin + i % kPoolPieces * 8, true, policy);
    ptx::commit_copies();
    const __half* const w = keys ? p.w_kv : p.w_q;
    for (int i = tid; i < C * (kPooledSlice / 8); i += kPooledThreads) {
        const int row = i / (kPooledSlice / 8), part = i % (kPooledSlice / 8) * 8, column = column0 + part;
        ptx::copy16(slice + row * kPooledSliceStride + part, w + int64_t{row} * columns + (column < columns ? column : 0), column < columns, policy);
    }
    ptx::commit_copies();
    ptx::prefetch_weights(p.next, p.next_bytes, blockIdx.x * (kPooledThreads / 32) + warp, gridDim.x * (kPooledThreads / 32), policy);

    // This lane's columns of rows, and its two of the product's result.
    const int slot = lane / S::kLanes, part = lane % S::kLanes * 8, column = column0 + warp % 8 * 8 + 2 * t;
    float bias[2] = {};
    const Row packed_scale(*reinterpret_cast<const uint4*>(p.scale + part)), packed_shift(*reinterpret_cast<const uint4*>(p.shift + part));
    if (column < columns) Pack<__half, 2>(*reinterpret_cast<const uint32_t*>((keys ? p.b_kv : p.b_q) + column)).floats(bias);
    // Of the pooled tokens' own product a warp has 16 columns, and this lane two pairs of them.
    [[maybe_unused]] const bool active = keys && warp < S::kWarps;
    [[maybe_unused]] const int own = warp * 16 + 2 * t;
    [[maybe_unused]] uint32_t pool_offset[2], pool_by[2], pool_plus[2];
    // Where it is shared, four columns of a row of what this block makes, and then what this lane has of a row.
    [[maybe_unused]] uint2 shared_offset{};
    [[maybe_unused]] Row row_by, row_plus;
    if constexpr (SHARED) {
        if (keys) {
            shared_offset = *reinterpret_cast<const uint2*>(p.b_pool + rank * S::kPoolColumns + tid % 8 * 4);
            row_by.raw = *reinterpret_cast<const uint4*>(p.pool_scale + part), row_plus.raw = *reinterpret_cast<const uint4*>(p.pool_shift + part);
        }
    } else if (active) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            auto pair = [&](const __half* from) { return *reinterpret_cast<const uint32_t*>(from + own + 8 * n); };
            pool_offset[n] = pair(p.b_pool), pool_by[n] = pair(p.pool_scale), pool_plus[n] = pair(p.pool_shift);
        }
    }
    // Where this lane's elements of the rows are: those of every second token of the window of two warps, or of a warp's two tokens.
    const int window = p.pool_h * p.pool_w, part_of_window = warp / kPooledKeyRows, pooled_row = tile * kPooledKeyRows + warp % kPooledKeyRows, query_row = tile * kPooledQueryRows + warp * 2;
    int64_t first = query_row;
    if (keys) {
        uint32_t within, across;
        const uint32_t image = p.by_image.divmod(static_cast<uint32_t>(pooled_row < p.pooled ? pooled_row : 0), within), down = p.by_across.divmod(within, across);
        first = int64_t{image} * p.tokens + int64_t{down} * p.pool_h * p.width + across * p.pool_w;
    }
    const __half *x = p.x + first * C + part, *residual = p.residual ? p.residual + first * C + part : nullptr;
    int place[S::kAhead];  // behind x, or -1
    auto places = [&](int from) {
#pragma unroll
        for (int j = 0; j < S::kAhead; ++j) {
            const int i = from + j * S::kSlots + slot, token = 2 * i + part_of_window;
            uint32_t dx;
            const int dy = static_cast<int>(p.by_pool_w.divmod(static_cast<uint32_t>(token), dx));
            if (keys) place[j] = token < window ? (dy * p.width + static_cast<int>(dx)) * C : -1;
            else place[j] = i < 2 && query_row + i < p.rows ? i * C : -1;
        }
    };
    places(0);
    // Else the compiler does this behind the wait.
    asm volatile("" : "+l"(x), "+l"(residual));
#pragma unroll
    for (int j = 0; j < S::kAhead; ++j) asm volatile("" : "+r"(place[j]));
    ptx::wait_for_previous();

    const __half* left = rows;  // of the last product
    TileColumns<C, 1> own_slice;
    if (keys) {
        float sum[8] = {};
        // All of Wpool's rows; or those of a part of the contracted index, where warps share out a few columns.
        TileColumns<SHARED ? C / S::kParts : C, 2> own_pool;
        for (int from = 0; from < (window + 1) / 2; from += S::kAhead * S::kSlots) {
            if (from > 0) places(from);
            Row s[S::kAhead][1], r[S::kAhead];
#pragma unroll
            for (int j = 0; j < S::kAhead; ++j)
                if (place[j] >= 0) {
                    s[j][0] = Row(*reinterpret_cast<const uint4*>(x + place[j]));
                    if (residual) r[j] = Row(*reinterpret_cast<const uint4*>(residual + place[j]));
                }
            __syncwarp();
            if (from == 0) {  // while the rows are on their way
                ptx::wait_copies<0>();
                __syncthreads();
                if constexpr (SHARED) own_pool.load(pool + warp / 2 * (C / S::kParts) * S::kPoolStride + warp % 2 * 16, S::kPoolStride, lane);
                else if (active) own_pool.load(pool + warp * 16, S::kPoolStride, lane);
            }
            if (residual) {
#pragma unroll
                for (int j = 0; j < S::kAhead; ++j) add_packs(s[j][0], r[j]);
            }
            float f[S::kAhead][1][8];
            normalize_rows<C>(s, p.epsilon, f);
#pragma unroll
            for (int j = 0; j < S::kAhead; ++j)
#pragma unroll
                for (int e = 0; e < 8; ++e) sum[e] += f[j][0][e];
        }
        // The two parts of a window's mean are rows 8 apart, whose products are added.
        float mean[8], scale[8], shift[8];
        packed_scale.floats(scale), packed_shift.floats(shift);
#pragma unroll
        for (int e = 0; e < 8; ++e) {
#pragma unroll
            for (int step = S::kLanes; step < 32; step *= 2) sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], step);
            mean[e] = fmaf(sum[e] * p.each, scale[e], part_of_window == 0 ? shift[e] : 0.f);
        }
        if (slot == 0) *reinterpret_cast<uint4*>(rows + warp * S::kStride + part) = Row::of(mean).raw;
        __syncthreads();

        __half* const normal = rows + 2 * kPooledKeyRows * S::kStride;
        float made[2][4] = {};
        if constexpr (SHARED) {
            own_pool.multiply_rows(rows + warp / 2 * (C / S::kParts), S::kStride, lane, made);
            float* const to = sums + (warp / 2 * kPooledKeyRows + g) * S::kPartStride + warp % 2 * 16 + 2 * t;
#pragma unroll
            for (int n = 0; n < 2; ++n) *reinterpret_cast<float2*>(to + 8 * n) = make_float2(made[n][0] + made[n][2], made[n][1] + made[n][3]);
            if (warp < 8) own_slice.load(slice + warp * 8, kPooledSliceStride, lane);
            __syncthreads();
            // Each thread has four columns of a row for one of the blocks.
            static_assert(S::kPoolColumns == 32 && S::kCluster * kPooledKeyRows * 8 == kPooledThreads);
            const int row = tid % 64 / 8, from = tid % 8 * 4;
            float f[4];
            Pack<__half, 4>(shared_offset).floats(f);
#pragma unroll
            for (int i = 0; i < S::kParts; ++i) {
                const float4 v = *reinterpret_cast<const float4*>(sums + (i * kPooledKeyRows + row) * S::kPartStride + from);
                f[0] += v.x, f[1] += v.y, f[2] += v.z, f[3] += v.w;
            }
            ptx::cluster_wait();
            const auto owner = static_cast<uint32_t>(tid / 64);
            ptx::store_counted(ptx::remote(ptx::shared_address(received + row * C + rank * S::kPoolColumns + from), owner), uint4{__float_as_uint(f[0]), __float_as_uint(f[1]), __float_as_uint(f[2]), __float_as_uint(f[3])},
                               ptx::remote(ptx::shared_address(counter), owner));
            ptx::wait_bytes(counter);
            if (warp < kPooledKeyRows) {
                const float4 low = *reinterpret_cast<const float4*>(received + warp * C + part), high = *reinterpret_cast<const float4*>(received + warp * C + part + 4);
                float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}, by[8], plus[8];
                normalize_floats<C>(v, p.pool_epsilon);
                row_by.floats(by), row_plus.floats(plus);
#pragma unroll
                for (int e = 0; e < 8; ++e) v[e] = fmaf(v[e], by[e], plus[e]);
                *reinterpret_cast<uint4*>(normal + warp * S::kStride + part) = Row::of(v).raw;
            }
        } else {
            if (active) {
                own_pool.multiply_rows(rows, S::kStride, lane, made);
                // A row's mean over the warp's columns, and squares about that: they are put together behind one barrier.
                float mean = 0, square = 0;
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    float offset[2];
                    Pack<__half, 2>(pool_offset[n]).floats(offset);
#pragma unroll
                    for (int e = 0; e < 2; ++e) mean += made[n][e] = (made[n][e] + made[n][2 + e]) + offset[e];
                }
                mean = group_sum<4>(mean) * (1.f / 16);
#pragma unroll
                for (int n = 0; n < 2; ++n)
#pragma unroll
                    for (int e = 0; e < 2; ++e) square = fmaf(made[n][e] - mean, made[n][e] - mean, square);
                square = group_sum<4>(square);
                if (t == 0) sums[g * S::kWarps + warp] = mean, squares[g * S::kWarps + warp] = square;
            }
            if (warp < 8) own_slice.load(slice + warp * 8, kPooledSliceStride, lane);
            __syncthreads();
            if (active) {
                float means[S::kWarps], mean = 0, square = 0, between = 0;
#pragma unroll
                for (int i = 0; i < S::kWarps; i += 4) {
                    const float4 four = *reinterpret_cast<const float4*>(sums + g * S::kWarps + i), spread = *reinterpret_cast<const float4*>(squares + g * S::kWarps + i);
                    means[i] = four.x, means[i + 1] = four.y, means[i + 2] = four.z, means[i + 3] = four.w;
                    mean += (four.x + four.y) + (four.z + four.w), square += (spread.x + spread.y) + (spread.z + spread.w);
                }
                mean *= 1.f / S::kWarps;
#pragma unroll
                for (int i = 0; i < S::kWarps; ++i) between = fmaf(means[i] - mean, means[i] - mean, between);
                const float factor = rsqrtf(fmaf(between, 16, square) * (1.f / C) + p.pool_epsilon);
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    float by[2], plus[2];
                    Pack<__half, 2>(pool_by[n]).floats(by), Pack<__half, 2>(pool_plus[n]).floats(plus);
                    *reinterpret_cast<uint32_t*>(normal + g * S::kStride + own + 8 * n) = pack_halves(fmaf((made[n][0] - mean) * factor, by[0], plus[0]), fmaf((made[n][1] - mean) * factor, by[1], plus[1]));
                }
            }
        }
        left = normal;
    } else {
        // A warp has two rows.
        constexpr int kLoads = S::kSlots > 1 ? 1 : 2;
        Row s[kLoads][1], r[kLoads];
#pragma unroll
        for (int j = 0; j < kLoads; ++j)
            if (place[j] >= 0) {
                s[j][0] = Row(*reinterpret_cast<const uint4*>(x + place[j]));
                if (residual) r[j] = Row(*reinterpret_cast<const uint4*>(residual + place[j]));
            }
        ptx::wait_copies<0>();
        __syncthreads();
        own_slice.load(slice + warp % 8 * 8, kPooledSliceStride, lane);
        if (residual) {
#pragma unroll
            for (int j = 0; j < kLoads; ++j) add_packs(s[j][0], r[j]);
        }
        float f[kLoads][1][8], scale[8], shift[8];
        packed_scale.floats(scale), packed_shift.floats(shift);
        normalize_rows<C>(s, p.epsilon, f);
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
#pragma unroll
            for (int e = 0; e < 8; ++e) f[j][0][e] = fmaf(f[j][0][e], scale[e], shift[e]);
            if (const int i = j * S::kSlots + slot; i < 2) *reinterpret_cast<uint4*>(rows + (warp * 2 + i) * S::kStride + part) = Row::of(f[j][0]).raw;
        }
        left = rows + warp / 8 * 16 * S::kStride;
    }
    __syncthreads();
    if (keys && warp >= 8) return;

    float sum[1][4] = {};
    own_slice.multiply_rows(left, S::kStride, lane, sum);
    if (column >= columns) return;
    const int limit = keys ? min(p.pooled, (tile + 1) * kPooledKeyRows) : p.rows, row = tile * (keys ? kPooledKeyRows : kPooledQueryRows) + warp / 8 * 16 + g;
    __half* const out = (keys ? p.kv : p.q) + column;
#pragma unroll
    for (int r = 0; r < 2; ++r)
        if (row + 8 * r < limit) *reinterpret_cast<uint32_t*>(out + int64_t{row + 8 * r} * columns) = pack_halves(sum[0][2 * r] + bias[0], sum[0][2 * r + 1] + bias[1]);
#endif
}

}  // namespace trt_opt
