// The attention over pooled keys and values, and the product with the residual add behind it, as one kernel.
//
// A block has some rows of an image and a slice of the result's columns. It attends for all heads, a warp a head of 16 rows, and multiplies what the heads
// give, which never leaves it, by its slice of Wproj. The attention is done anew for each slice, which costs less than another kernel or a cluster's exchange
// would. The slice is a constant, so it is on its way before the wait for the kernel ahead; all else is asked for at once behind it.
#pragma once

#include "attention_common.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "row_tile.cuh"
#include "score_weights.cuh"

namespace trt_opt {

struct PooledMerge {
    const __half *q, *kv;        // [tokens of all images, inner], [pooled of all images, 2 * inner]
    const __half* bias;          // [period, 1 or heads, tokens, keys], or null
    const __half *w, *offset;    // [inner, channels], [channels]
    const __half *x, *residual;  // [tokens of all images, channels]; residual may be null
    __half* y;
    int tokens, keys;            // of an image; keys: a multiple of 8, at most kPooledMergeKeys
    int channels;                // a multiple of 8
    int bias_heads;              // 1 or all
    bool once;                   // all blocks run at once: how the second-level cache keeps w
    float scale;                 // of scores, which are in log2 units
    FastDiv by_slices, by_row_blocks, by_period;  // slices of columns; blocks of rows of an image; rows of the bias
};

constexpr int kPooledMergeThreads = 512, kPooledMergeKeys = 64, kPooledMergeDim = 32;

// As many rows that each of 16 warps has a head of 16 of them, and as many columns that it has a tile of 16 x 8 of the last product.
template <int HEADS> struct PooledMergeShape {
    static_assert(HEADS == 2 || HEADS == 4 || HEADS == 8);
    static constexpr int kRowTiles = 16 / HEADS, kRows = 16 * kRowTiles, kColumns = 8 * HEADS, kInner = kPooledMergeDim * HEADS;
    // Pieces of 16 bytes of neighbouring rows fall on different banks, and so do those of the keys of a tile of scores.
    static constexpr int kStride = kInner + 8, kSliceStride = kColumns + 8, kKeyStride = 2 * kInner + 8, kKeyGroup = 16 * kKeyStride + 16;
    static constexpr int kSliceHalves = kInner * kSliceStride, kRowHalves = kRows * kStride, kBytes = 2 * (kSliceHalves + kRowHalves + kPooledMergeKeys / 16 * kKeyGroup);
};

template <int HEADS> __global__ void __launch_bounds__(kPooledMergeThreads) pooled_merge_kernel(const __grid_constant__ PooledMerge p) {
#if __CUDA_ARCH__ >= 900
    using S = PooledMergeShape<HEADS>;
    constexpr int kTiles = kPooledMergeKeys / 8, kSlicePieces = S::kColumns / 8, kRowPieces = S::kInner / 8;
    extern __shared__ __align__(16) unsigned char pooled_shared[];
    __half *const slice = reinterpret_cast<__half*>(pooled_shared), *const rows = slice + S::kSliceHalves, *const kv = rows + S::kRowHalves;
    ptx::let_next_start();
    const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    uint32_t cut, down;
    const uint32_t image = p.by_row_blocks.divmod(p.by_slices.divmod(blockIdx.x, cut), down);
    const int row0 = static_cast<int>(down) * S::kRows, column0 = static_cast<int>(cut) * S::kColumns;
    const int64_t first = int64_t{image} * p.tokens;

    // All addresses come of one for each operand, so that little is left to do behind the wait.
    {
        constexpr int kStep = kPooledMergeThreads / kSlicePieces;
        const int from = tid / kSlicePieces, part = tid % kSlicePieces * 8;
        const bool exists = column0 + part < p.channels;
        const __half* const weights = p.w + int64_t{from} * p.channels + (exists ? column0 + part : 0);
        __half* const to = slice + from * S::kSliceStride + part;
        const uint64_t policy = ptx::weight_policy(p.once);
#pragma unroll
        for (int r = 0; r < S::kInner; r += kStep)
            if (kStep <= S::kInner || from < S::kInner) ptx::copy16(to + r * S::kSliceStride, weights + int64_t{r} * p.channels, exists, policy);
    }
    ptx::commit_copies();
    // A warp has a head of 16 rows, and then two rows' two columns a lane of the result.
    const int tile = warp % S::kRowTiles, head = warp / S::kRowTiles, row = row0 + tile * 16 + g, column = column0 + head * 8 + 2 * t;
    float offset[2] = {};
    if (column < p.channels) Pack<__half, 2>(*reinterpret_cast<const uint32_t*>(p.offset + column)).floats(offset);
    constexpr int kStep = kPooledMergeThreads / kRowPieces;
    static_assert(kStep % 16 == 0 && S::kRows % kStep == 0 && kPooledMergeKeys % kStep == 0);
    const int from = tid / kRowPieces, part = tid % kRowPieces * 8;
    const __half *queries = p.q + (first + row0 + from) * S::kInner + part, *keys = p.kv + (int64_t{image} * p.keys + from) * 2 * S::kInner + part;
    __half *const to_rows = rows + from * S::kStride + part, *const to_keys = kv + from / 16 * S::kKeyGroup + from % 16 * S::kKeyStride + part;
    // Column 2 t + e of tile n of the scores is key 16 t + 2 n + e, so that what is added to a lane's scores lies side by side.
    const __half* bias = p.bias;
    if (bias) {
        uint32_t bias_row;
        p.by_period.divmod(image, bias_row);
        bias += ((int64_t{bias_row} * p.bias_heads + (p.bias_heads == 1 ? 0 : head)) * p.tokens + row) * p.keys + 16 * t;
    }
    const int64_t at = (first + row) * p.channels + column;
    const __half *stream_from = p.x + at, *more_from = p.residual ? p.residual + at : nullptr;
    const bool owns[2] = {column < p.channels && row < p.tokens, column < p.channels && row + 8 < p.tokens};
    asm volatile("" : "+l"(queries), "+l"(keys), "+l"(bias), "+l"(stream_from), "+l"(more_from));  // else the compiler computes them behind the wait
    ptx::wait_for_previous();

#pragma unroll
    for (int r = 0; r < S::kRows; r += kStep) ptx::copy16(to_rows + r * S::kStride, queries + r * S::kInner, row0 + from + r < p.tokens);
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // keys, then values
#pragma unroll
        for (int k = 0; k < kPooledMergeKeys; k += kStep) ptx::copy16(to_keys + k / 16 * S::kKeyGroup + half * S::kInner, keys + k * 2 * S::kInner + half * S::kInner, from + k < p.keys);
        ptx::commit_copies();
    }
    Pack<__half, 8> added[2][2];
    if (bias) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int j = 0; j < 2; ++j)
                if (row + 8 * r < p.tokens && 16 * t + 8 * j < p.keys) added[r][j].raw = *reinterpret_cast<const uint4*>(bias + 8 * r * p.keys + 8 * j);
    }
    Pack<__half, 2> stream[2], more[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
        if (owns[r]) {
            stream[r].raw = *reinterpret_cast<const uint32_t*>(stream_from + 8 * r * p.channels);
            if (more_from) more[r].raw = *reinterpret_cast<const uint32_t*>(more_from + 8 * r * p.channels);
        }

    // Where this lane has the address of a row of eight of tile n: its key's, 2 n keys back.
    const __half* const of_key = kv + lane % 8 / 2 * S::kKeyGroup + lane % 2 * S::kKeyStride + head * kPooledMergeDim;
    __half* const own = rows + tile * 16 * S::kStride + head * kPooledMergeDim;
    ptx::wait_copies<1>();
    __syncthreads();
    float s[kTiles][4] = {};
    {
        uint32_t a[2][4];
#pragma unroll
        for (int c = 0; c < 2; ++c) ptx::load_matrices4(a[c], own + lane % 16 * S::kStride + lane / 16 * 8 + 16 * c);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
            uint32_t raw[4];
            ptx::load_matrices4(raw, of_key + 2 * n * S::kKeyStride + lane / 8 * 8);
            const uint32_t b[2][2] = {{raw[0], raw[1]}, {raw[2], raw[3]}};
            multiply(s[n], a[0], b[0]), multiply(s[n], a[1], b[1]);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            float f[8];
            added[r][j].floats(f);
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                float& score = s[4 * j + e / 2][2 * r + e % 2];
                score = fmaf(score, p.scale, f[e] * kLog2e);
            }
        }
    if (p.keys < kPooledMergeKeys) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (16 * t + 8 * (n / 4) >= p.keys) s[n][e] = -CUDART_INF_F;
    }
    float low_sum, high_sum;
    uint32_t weights[kTiles][2];
    score_weights<kTiles>(s, weights, low_sum, high_sum);
    low_sum = group_sum<4>(low_sum), high_sum = group_sum<4>(high_sum);
    // While other warps have their softmax, and shared memory has time.
    TileColumns<S::kInner, 1> columns;
    columns.load(slice + head * 8, S::kSliceStride, lane);
    ptx::wait_copies<0>();
    __syncthreads();
    float o[kPooledMergeDim / 8][4] = {};
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
        const uint32_t a[4] = {weights[n][0], weights[n][1], weights[n + 1][0], weights[n + 1][1]};
#pragma unroll
        for (int j = 0; j < kPooledMergeDim / 8; j += 2) {
            uint32_t b[2][2];
            ptx::load_transposed4(b[0][0], b[0][1], b[1][0], b[1][1], of_key + 2 * (n + lane / 8 % 2) * S::kKeyStride + S::kInner + 8 * (j + lane / 16));
            multiply(o[j], a, b[0]), multiply(o[j + 1], a, b[1]);
        }
    }
    // What the head gives comes into the place of its queries, which no other warp reads.
    const float factor[2] = {low_sum > 0.f ? __fdividef(1.f, low_sum) : 0.f, high_sum > 0.f ? __fdividef(1.f, high_sum) : 0.f};
#pragma unroll
    for (int j = 0; j < kPooledMergeDim / 8; ++j)
#pragma unroll
        for (int r = 0; r < 2; ++r) *reinterpret_cast<uint32_t*>(own + (g + 8 * r) * S::kStride + 8 * j + 2 * t) = pack_halves(o[j][2 * r] * factor[r], o[j][2 * r + 1] * factor[r]);
    __syncthreads();

    float sum[1][4] = {};
    columns.multiply_rows(rows + tile * 16 * S::kStride, S::kStride, lane, sum);
#pragma unroll
    for (int r = 0; r < 2; ++r)
        if (owns[r]) {
            if (more_from) add_packs(stream[r], more[r]);
            float f[2];
            stream[r].floats(f);
            *reinterpret_cast<uint32_t*>(p.y + at + 8 * r * p.channels) = pack_halves(f[0] + (sum[0][2 * r] + offset[0]), f[1] + (sum[0][2 * r + 1] + offset[1]));
        }
#endif
}

}  // namespace trt_opt
