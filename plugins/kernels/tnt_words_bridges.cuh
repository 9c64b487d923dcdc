// Bridges from words to tokens, as many as there are: products with a norm before and one behind (block_gemm.cuh, bridge_end.cuh), each of
// words of its own. A block keeps its columns of one bridge's weights, the norm folded in, and takes one tile of rows after the other: all of that is
// done before the kernel ahead is. Where the chain tells of a layer's words when they are there, its bridges are done while the chain goes on.
#pragma once

#include "block_gemm.cuh"
#include "kernels.h"

namespace trt_opt {

struct WordsBridgesArgs {
    const __half* a[kWordsMaxBridges];  // [rows, k]
    __half* out[kWordsMaxBridges];      // like end.out
    const __half *b, *bias;             // [bridges, k, n], [bridges, n]
    const __half *scale, *shift;        // [bridges, k]
    BridgeEnd<__half, false> end;       // scale and shift: [bridges, n]; out is that of the bridge
    int64_t rows;
    int k, n;
    float epsilon;
    FastDiv by_columns;                 // blocks of a cluster
    FastDiv by_groups;                  // clusters of a bridge
    uint32_t tiles, last;               // of rows; the last bridge
    const uint32_t* told;               // of the chain's blocks: whether a layer's words are there; or null, and the whole chain is waited for
    uint32_t telling;                   // such blocks
    bool once;                          // a bridge's blocks run at once: how the second-level cache keeps its weights
    int after[kWordsMaxBridges];        // layers
};

// Tile: one whose warps do not share the contracted index.
template <class Tile> __global__ void __launch_bounds__(Tile::kThreads) tnt_words_bridges_kernel(const __grid_constant__ WordsBridgesArgs p) {
#if __CUDA_ARCH__ >= 900
    using namespace ptx;
    static_assert(Tile::kWarpsK == 1);
    constexpr int BM = Tile::kRows, BN = Tile::kColumns, kThreads = Tile::kThreads, kWarps = Tile::kWarps;
    constexpr int kM = Tile::kM, kN = Tile::kN, kBRow = Tile::kBRow, kSumRow = Tile::kSumRow;

    let_next_start();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int warp_row = warp / Tile::kWarpsN * (16 * kM), warp_column = warp % Tile::kWarpsN * (8 * kN);
    uint32_t rank, group;
    const uint32_t bridge = p.by_groups.divmod(p.by_columns.divmod(blockIdx.x, rank), group);
    const int column = static_cast<int>(rank) * BN, padded = Tile::padded(p.k), a_row = Tile::a_row(p.k);

    __half *const a = reinterpret_cast<__half*>(shared), *const b = a + BM * a_row, *const scale = b + padded * kBRow, *const shift = scale + padded;
    // Of the columns: sum(B'), shift B + bias; then shares of sum(B') and shift B, whose place moments take.
    float *const sums = reinterpret_cast<float*>(shift + padded), *const column_sums = sums + BM * kSumRow, *const offsets = column_sums + BN, *const shares = offsets + BN;

    // Before the kernel before this one is done: weights. Rows of B beyond the last are copies of it, which meet zeros of the scale and the shift.
    {
        constexpr int kStep = kThreads / Tile::kPieces;
        const int piece = tid % Tile::kPieces * 8;
        const bool exists = column + piece < p.n;
        const __half *const weights = p.b + int64_t{bridge} * p.k * p.n, *const from = exists ? weights + column + piece : weights;
        const uint64_t policy = weight_policy(p.once);
#pragma unroll 4
        for (int row = tid / Tile::kPieces; row < padded; row += kStep) copy16(b + row * kBRow + piece, from + (exists ? min(row, p.k - 1) * p.n : 0), exists, policy);
        const __half *const scales = p.scale + int64_t{bridge} * p.k, *const shifts = p.shift + int64_t{bridge} * p.k;
        for (int c = 8 * tid; c < padded; c += 8 * kThreads) copy16(scale + c, c < p.k ? scales + c : scales, c < p.k), copy16(shift + c, c < p.k ? shifts + c : shifts, c < p.k);
    }
    commit_copies();
    BridgeEnd<__half, false> end = p.end;
    end.scale += int64_t{bridge} * p.n, end.shift += int64_t{bridge} * p.n, end.out = p.out[bridge];
    const float column_bias = tid < BN && column + tid < p.n ? __half2float(p.bias[int64_t{bridge} * p.n + column + tid]) : 0.f;
    {
        constexpr int kGroups = BN / kFoldColumns;
        const int c = warp % kGroups * kFoldColumns, share = warp / kGroups;
        wait_copies<0>();
        __syncthreads();
        fold_norm(b + c, kBRow, scale, shift, 16 * share, padded, 16 * Tile::kShares, shares + 2 * share * BN + c, shares + (2 * share + 1) * BN + c);
        __syncthreads();
        if (tid < BN) {
            float sum = 0, shifted = column_bias;
#pragma unroll
            for (int i = 0; i < Tile::kShares; ++i) sum += shares[2 * i * BN + tid], shifted += shares[(2 * i + 1) * BN + tid];
            column_sums[tid] = sum, offsets[tid] = shifted;
        }
    }
    cluster_arrive();

    // A warp copies whole rows, in two parts: as many pieces as lanes, and the rest. Rows past the end are zeros.
    constexpr int kPart = 8 * 32;
    const __half* const words = p.a[bridge];
    auto fetch_rows = [&](int64_t row0) {
        const int rows = static_cast<int>(min(int64_t{BM}, p.rows - row0));
        const __half* const from = words + row0 * p.k;
#pragma unroll 1
        for (int part = 0; part < 2; ++part) {
#pragma unroll 1
            for (int c = part * kPart + 8 * lane; c < (part == 0 ? min(kPart, padded) : padded); c += kPart) {
#pragma unroll 4
                for (int row = warp; row < BM; row += kWarps) {
                    const bool exists = c < p.k && row < rows;
                    copy16(a + row * a_row + c, exists ? from + int64_t{row} * p.k + c : words, exists);
                }
            }
            commit_copies();
        }
    };
    wait_for_words<kThreads>(p.told, p.telling, p.after[bridge]);
    fetch_rows(int64_t{group} * BM);
#pragma unroll 1
    for (uint32_t tile = group; tile < p.tiles; tile += p.by_groups.divisor) {
        const int64_t row0 = int64_t{tile} * BM;
        const int rows = static_cast<int>(min(int64_t{BM}, p.rows - row0));
        float acc[kM][kN][4] = {};
        // Row g times ones is in element 0, row g + 8 in element 2; rows times themselves are on the diagonals.
        float row_sum[kM][4] = {}, row_square[kM][2][4] = {};
        {
            const __half* a_at = a + (warp_row + lane % 16) * a_row + lane / 16 * 8;
            const __half* b_at = b + lane % 16 * kBRow + warp_column + lane / 16 * 8;
            auto load = [&](uint32_t (&x)[kM][4], uint32_t (&y)[kN][2]) {
#pragma unroll
                for (int m = 0; m < kM; ++m) load_matrices4(x[m], a_at + m * 16 * a_row);
#pragma unroll
                for (int n = 0; n < kN; n += 2) load_transposed4(y[n][0], y[n][1], y[n + 1][0], y[n + 1][1], b_at + n * 8);
                a_at += 16, b_at += 16 * kBRow;
            };
            auto multiply_all = [&](const uint32_t (&x)[kM][4], const uint32_t (&y)[kN][2]) {
                constexpr uint32_t kOnes[2] = {0x3c003c00u, 0x3c003c00u};
#pragma unroll
                for (int m = 0; m < kM; ++m) {
#pragma unroll
                    for (int n = 0; n < kN; ++n) multiply(acc[m][n], x[m], y[n]);
                    const uint32_t low[2] = {x[m][0], x[m][2]}, high[2] = {x[m][1], x[m][3]};
                    multiply(row_sum[m], x[m], kOnes), multiply(row_square[m][0], x[m], low), multiply(row_square[m][1], x[m], high);
                }
            };
            // The next step's operands are asked for before this step's are used.
            uint32_t x[2][kM][4], y[2][kN][2];
            int k = 0;
#pragma unroll 1
            for (int part = 0; part < 2; ++part) {
                const int end_of_part = part == 0 ? min(kPart, padded) : padded;
                if (part == 0) wait_copies<1>();
                else wait_copies<0>();
                __syncthreads();
                if (k >= end_of_part) continue;
                load(x[0], y[0]);
#pragma unroll 1
                while (true) {
                    if (k + 16 < end_of_part) load(x[1], y[1]);
                    multiply_all(x[0], y[0]);
                    if ((k += 16) >= end_of_part) break;
                    if (k + 16 < end_of_part) load(x[0], y[0]);
                    multiply_all(x[1], y[1]);
                    if ((k += 16) >= end_of_part) break;
                }
            }
        }
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float* const to = sums + (warp_row + m * 16 + h * 8 + g) * kSumRow + warp_column + 2 * t;
#pragma unroll
                for (int n = 0; n < kN; ++n) *reinterpret_cast<float2*>(to + 8 * n) = make_float2(acc[m][n][2 * h], acc[m][n][2 * h + 1]);
                const float(&d)[4] = row_square[m][h];
                const float square = __shfl_sync(0xffffffffu, g % 2 ? d[2 * h + 1] : d[2 * h], (lane & ~3) | g / 2);
                if (warp_column == 0 && t == 0) to[BN] = row_sum[m][2 * h], to[BN + 1] = square;
            }
        __syncthreads();
#pragma unroll 1
        for (int item = tid; item < BM * (BN / 4); item += kThreads) {
            const int r = item / (BN / 4), c = item % (BN / 4) * 4;
            if (r >= rows || column + c >= p.n) continue;
            float* const row = sums + r * kSumRow;
            const float mean = row[BN] / static_cast<float>(p.k);
            float variance = fmaf(-mean, mean, row[BN + 1] / static_cast<float>(p.k));
            if (mean * mean > 64.f * variance) variance = exact_variance(a + r * a_row, p.k, mean);
            const float factor = rsqrtf(variance + p.epsilon);
            const float4 v = *reinterpret_cast<const float4*>(row + c), of = *reinterpret_cast<const float4*>(column_sums + c), offset = *reinterpret_cast<const float4*>(offsets + c);
            *reinterpret_cast<float4*>(row + c) = make_float4(fmaf(v.x - mean * of.x, factor, offset.x), fmaf(v.y - mean * of.y, factor, offset.y), fmaf(v.z - mean * of.z, factor, offset.z),
                                                              fmaf(v.w - mean * of.w, factor, offset.w));
        }
        const uint32_t next = tile + p.by_groups.divisor;
        if (next < p.tiles) {
            __syncthreads();  // the rows have been read
            fetch_rows(int64_t{next} * BM);
        }
        end_bridge<BM, BN, kThreads>(end, sums, kSumRow, reinterpret_cast<RowMoments*>(shares), rows, row0, column, rank, p.by_columns.divisor, group * p.by_columns.divisor + rank,
                                     p.by_groups.divisor * p.by_columns.divisor);
        end.at.others = 0;
        if (next < p.tiles) cluster_arrive();  // its moments have been read
    }
    // Who waits for this kernel waits for the chain. Others than the last bridge's blocks make room for those yet to come.
    if (p.told && bridge == p.last) wait_for_previous();
#endif
}

}  // namespace trt_opt
