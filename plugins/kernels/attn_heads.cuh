// A head of a group of tokens (a window, a short sequence): layer norm, the product that gives its queries, keys and values, and its
// attention, by one block of threads. What block_gemm.cuh and attention_resident.cuh do one after the other, without the way through
// memory between them. Every head of a group fetches the group's rows anew, so this is for few heads, where the time is latency.
//
// Launched ahead like the products of a block, and with the norm folded into the product as block_gemm.cuh has it: before the wait
// there are the head's columns of the weights, B' = scale B, sum(B') and shift B; afterwards the rows and the bias of the scores.
// Twelve warps are four tiles of 16 rows times queries, keys and values, of 32 columns each. Each of the three takes one of
// the sums that a row needs: its elements, and its elements squared for the first and the second eight rows of the tile.
#pragma once

#include "attention_common.cuh"
#include "block_gemm.cuh"
#include "score_weights.cuh"

namespace trt_opt {

struct AttnHeadsArgs {
    const __half *a, *a2;         // [tokens, k]; a2 is added first, or null
    const __half* b;              // [k, 3 * heads * 32], columns as (3, heads, 32)
    const __half* bias;           // [3 * heads * 32]
    const __half *scale, *shift;  // [k]
    int k;
    float each;                   // 1 / k
    float epsilon;
    FastDiv by_heads;
    bool mapped;                // windows are cut: row r of a group is map.source(r)
    const unsigned char* next;  // what the kernel after this one reads, into the second-level cache
    uint32_t next_lines;        // of 128 bytes
    WindowMap map;
    AttentionArgs<__half> attend;  // all but q, k and v; a batch row is a group
};

// What a block has in shared memory, for a contracted index of `k`. Rows of A and B are odd numbers of 16-byte pieces, so that
// ldmatrix meets no bank twice.
struct AttnHeadsShared {
    static constexpr int kRows = 64, kHead = 32, kColumns = 3 * kHead, kTiles = kRows / 16, kWarps = 3 * kTiles, kThreads = 32 * kWarps;
    static constexpr int kBRow = kColumns + 8;
    static constexpr int kFloats = 2 * 2 * kColumns + 3 * kColumns + 2 * kRows;

    // Steps of 16 are shared by two warps where B' is made.
    __host__ __device__ static int padded(int k) { return (k + 31) / 32 * 32; }
    __host__ __device__ static int a_row(int k) { return padded(k) + 8; }
    // Queries, keys and values take the place of B.
    __host__ __device__ static int b_rows(int k) { return max(padded(k), kRows); }
    static int bytes(int k, int key_tiles) { return 16 * 32 * kTiles * key_tiles + 4 * (kFloats + kRows) + 2 * (kRows * a_row(k) + b_rows(k) * kBRow + 2 * padded(k)); }
    static_assert(4 * (kFloats + kRows) % 16 == 0);

private:
    __host__ __device__ static int max(int a, int b) { return a > b ? a : b; }
};

// TILES: tiles of 8 keys. Grid: groups * heads, heads fastest.
template <int TILES> __global__ void __launch_bounds__(AttnHeadsShared::kThreads, 2) attn_heads_kernel(const __grid_constant__ AttnHeadsArgs p) {
#if __CUDA_ARCH__ >= 900
    using namespace ptx;
    using Shared = AttnHeadsShared;
    constexpr int kRows = Shared::kRows, kHead = Shared::kHead, kColumns = Shared::kColumns, kBRow = Shared::kBRow, kTiles = Shared::kTiles, kWarps = Shared::kWarps, kThreads = Shared::kThreads;
    constexpr int kN = 4;      // 8-column tiles of a warp
    constexpr int kParts = 4;  // in which A arrives
    constexpr uint32_t kOnes[2] = {0x3c003c00u, 0x3c003c00u};

    let_next_start();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int tile = warp % kTiles, part = warp / kTiles;  // part: queries, keys or values
    uint32_t head;
    const uint32_t group = p.by_heads.divmod(blockIdx.x, head);
    const int inner = p.attend.heads * kHead, tokens = p.attend.n, row_tiles = (tokens + 15) / 16;
    const int padded = Shared::padded(p.k), a_row = Shared::a_row(p.k);

    // What is of one size comes first, so that its addresses are constants.
    float4* const score_bias = reinterpret_cast<float4*>(shared);  // [row tile][key tile][lane]
    // Of the columns: each half of the contracted index's sum(B') and shift B; then sum(B'), shift B + bias, bias. Of the rows: sums.
    float *const shares = reinterpret_cast<float*>(score_bias + kTiles * TILES * 32), *const column_sums = shares + 2 * 2 * kColumns;
    float *const offsets = column_sums + kColumns, *const biases = offsets + kColumns, *const row_sums = biases + kColumns, *const row_squares = row_sums + kRows;
    int* const mapped_rows = reinterpret_cast<int*>(row_squares + kRows);
    __half *const a = reinterpret_cast<__half*>(mapped_rows + kRows), *const b = a + kRows * a_row;
    __half *const scale = b + Shared::b_rows(p.k) * kBRow, *const shift = scale + padded;

    // Before the kernel before this one is done: weights, and where the rows are. Rows of B beyond the last are zeros.
    {
        constexpr int kPieces = kColumns / 8, kStep = kThreads / kPieces;
        const int piece = tid % kPieces * 8;
        const __half* from = p.b + piece / kHead * inner + static_cast<int>(head) * kHead + piece % kHead;
#pragma unroll 4
        for (int row = tid / kPieces; row < padded; row += kStep) copy16(b + row * kBRow + piece, row < p.k ? from + row * (3 * inner) : from, row < p.k);
        for (int c = 8 * tid; c < padded; c += 8 * kThreads) copy16(scale + c, c < p.k ? p.scale + c : p.scale, c < p.k), copy16(shift + c, c < p.k ? p.shift + c : p.shift, c < p.k);
    }
    commit_copies();
    if (tid < kRows) {
        const int64_t row = int64_t{group} * tokens + tid;
        mapped_rows[tid] = tid >= tokens ? -1 : static_cast<int>(p.mapped ? p.map.source(static_cast<uint32_t>(row)) : row);
    }
#pragma unroll 1
    for (uint32_t i = blockIdx.x * kThreads + tid; i < p.next_lines; i += gridDim.x * kThreads) prefetch_l2(p.next + size_t{i} * 128);
    wait_copies<0>();
    __syncthreads();
    {
        // 16 columns a warp, as rows of a left operand; ones and the shift are each column of a right one.
        static_assert(kWarps == 2 * (kColumns / 16));
        const int column = warp / 2 * 16, half = warp % 2;
        __half* at = b + (half * 16 + lane / 16 * 8 + lane % 8) * kBRow + column + lane / 8 % 2 * 8;
        float sum[4] = {}, shifted[4] = {};
        auto product = [](uint32_t x, uint32_t y) {
            const __half2 v = __hmul2(*reinterpret_cast<const __half2*>(&x), *reinterpret_cast<const __half2*>(&y));
            return *reinterpret_cast<const uint32_t*>(&v);
        };
        auto pair = [&](const __half* of, int row) { return *reinterpret_cast<const uint32_t*>(of + row + 2 * t); };
#pragma unroll 2
        for (int row = half * 16; row < padded; row += 32, at += 32 * kBRow) {
            uint32_t x[4];  // columns 0 to 7 and 8 to 15 of rows 0 to 7, then of rows 8 to 15
            load_transposed4(x[0], x[1], x[2], x[3], at);
            const uint32_t scales[2] = {pair(scale, row), pair(scale, row + 8)}, shifts[2] = {pair(shift, row), pair(shift, row + 8)};
            multiply(shifted, x, shifts);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = product(x[i], scales[i / 2]);
            store_transposed4(at, x[0], x[1], x[2], x[3]);
            multiply(sum, x, kOnes);
        }
        if (t == 0) {
            float* const to = shares + half * 2 * kColumns + column + g;
            to[0] = sum[0], to[8] = sum[2], to[kColumns] = shifted[0], to[kColumns + 8] = shifted[2];
        }
    }
    __syncthreads();
    if (tid < kColumns) {
        const float bias = __half2float(p.bias[tid / kHead * inner + static_cast<int>(head) * kHead + tid % kHead]);
        column_sums[tid] = shares[tid] + shares[2 * kColumns + tid];
        offsets[tid] = shares[kColumns + tid] + shares[3 * kColumns + tid] + bias, biases[tid] = bias;
    }

    {
        // A warp copies whole rows, in parts of as many pieces as lanes; from the fourth part on they are one. Padding is zeros.
        constexpr int kPart = 8 * 32;
        const int rows = row_tiles * 16;
        wait_for_previous();
#pragma unroll 1
        for (int i = 0; i < kParts; ++i) {
            const int begin = i * kPart, end = i + 1 < kParts ? min(begin + kPart, padded) : padded;
#pragma unroll 1
            for (int c = begin + 8 * lane; c < end; c += kPart) {
#pragma unroll 3
                for (int row = warp; row < rows; row += kWarps) {
                    const int64_t from = mapped_rows[row];
                    const bool exists = c < p.k && from >= 0;
                    const __half* at = p.a + (exists ? from * p.k + c : 0);
                    if (p.a2) {
                        Pack<__half, 8> x;
                        if (exists) x.raw = *reinterpret_cast<const uint4*>(at), add_packs<__half, 8>(x, Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.a2 + from * p.k + c)));
                        *reinterpret_cast<uint4*>(a + row * a_row + c) = x.raw;
                    } else {
                        copy16(a + row * a_row + c, at, exists);
                    }
                }
            }
            commit_copies();
        }
    }
    // While the rows are on their way. The three warps of a tile share its keys.
    if (tile < row_tiles) {
        const ScoreBias<__half> scores(p.attend, group, static_cast<int>(head));
        constexpr int kShare = (TILES + 2) / 3;
        float f[kShare][4];
        scores.fragments<kShare>(tile * 16 + g, tile * 16 + g + 8, part * kShare * 8 + 2 * t, f);
#pragma unroll
        for (int n = 0; n < kShare; ++n)
            if (part * kShare + n < TILES) score_bias[(tile * TILES + part * kShare + n) * 32 + lane] = make_float4(f[n][0], f[n][1], f[n][2], f[n][3]);
    }

    float acc[kN][4] = {};
    float norm[4] = {};  // row times ones in column 0, or rows times themselves on the diagonal
    {
        const __half* a_at = a + (tile * 16 + lane % 16) * a_row + lane / 16 * 8;
        const __half* b_at = b + lane % 16 * kBRow + part * kHead + lane / 16 * 8;
        int k = 0;
        auto load = [&](uint32_t (&x)[4], uint32_t (&y)[kN][2]) {
            load_matrices4(x, a_at);
#pragma unroll
            for (int n = 0; n < kN; n += 2) load_transposed4(y[n][0], y[n][1], y[n + 1][0], y[n + 1][1], b_at + n * 8);
            a_at += 16, b_at += 16 * kBRow;
        };
        auto multiply_all = [&](const uint32_t (&x)[4], const uint32_t (&y)[kN][2]) {
#pragma unroll
            for (int n = 0; n < kN; ++n) multiply(acc[n], x, y[n]);
            multiply(norm, x, {part == 0 ? kOnes[0] : part == 1 ? x[0] : x[1], part == 0 ? kOnes[1] : part == 1 ? x[2] : x[3]});
        };
        // The next step's operands are asked for before this step's are used.
        uint32_t x[2][4], y[2][kN][2];
#pragma unroll 1
        for (int i = 0; i < kParts && i * 256 < padded; ++i) {
            const int end = i + 1 < kParts ? min(padded, (i + 1) * 256) : padded;
            if (i == 0) wait_copies<3>();
            else if (i == 1) wait_copies<2>();
            else if (i == 2) wait_copies<1>();
            else wait_copies<0>();
            __syncthreads();
            if (tile >= row_tiles) continue;
            // Two steps at a time: there are no odd ones.
            load(x[0], y[0]);
#pragma unroll 1
            while (true) {
                load(x[1], y[1]);
                multiply_all(x[0], y[0]);
                const bool more = (k += 32) < end;
                if (more) load(x[0], y[0]);
                multiply_all(x[1], y[1]);
                if (!more) break;
            }
        }
    }
    if (part == 0) {
        if (t == 0) row_sums[tile * 16 + g] = norm[0], row_sums[tile * 16 + g + 8] = norm[2];
    } else if (t == g / 2) {
        const float low = g % 2 ? norm[1] : norm[0], high = g % 2 ? norm[3] : norm[2];
        row_squares[tile * 16 + (part - 1) * 8 + g] = part == 1 ? low : high;
    }
    __syncthreads();
    // The product's end; rounded, it takes the place of B.
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = tile * 16 + h * 8 + g;
        const bool exists = mapped_rows[row] >= 0;
        const float mean = row_sums[row] * p.each;
        float variance = fmaf(-mean, mean, row_squares[row] * p.each);
        // As exact_variance, which as a call would make the products wait in memory.
        if (exists && mean * mean > 64.f * variance) {
            float square = 0;
#pragma unroll 1
            for (int i = 0; i < p.k; i += 8) {
                float f[8];
                Pack<__half, 8>(*reinterpret_cast<const uint4*>(a + row * a_row + i)).floats(f);
#pragma unroll
                for (int e = 0; e < 8; ++e) f[e] -= mean, square = fmaf(f[e], f[e], square);
            }
            variance = square * p.each;
        }
        const float factor = rsqrtf(variance + p.epsilon);
#pragma unroll
        for (int n = 0; n < kN; ++n) {
            const int c = part * kHead + n * 8 + 2 * t;
            float v[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) v[e] = exists ? fmaf(acc[n][2 * h + e] - mean * column_sums[c + e], factor, offsets[c + e]) : biases[c + e];
            *reinterpret_cast<uint32_t*>(b + row * kBRow + c) = pack_halves(v[0], v[1]);
        }
    }
    __syncthreads();
    if (part != 0 || tile >= row_tiles) return;

    // 16 queries a warp, with all keys at once.
    uint32_t queries[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) load_matrices4(queries[i], b + (tile * 16 + lane % 16) * kBRow + i * 16 + lane / 16 * 8);
    float s[TILES][4];
    const float factor = p.attend.scale * kLog2e;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
        uint32_t keys[4];  // of 8 elements of the head each
        load_matrices4(keys, b + (n * 8 + lane % 8) * kBRow + kHead + lane / 8 * 8);
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
        multiply(s[n], queries[0], {keys[0], keys[1]}), multiply(s[n], queries[1], {keys[2], keys[3]});
        const float4 f = score_bias[(tile * TILES + n) * 32 + lane];
        s[n][0] = fmaf(s[n][0], factor, f.x), s[n][1] = fmaf(s[n][1], factor, f.y);
        s[n][2] = fmaf(s[n][2], factor, f.z), s[n][3] = fmaf(s[n][3], factor, f.w);
    }
    uint32_t weights[(TILES + 1) / 2 * 2][2];
    if constexpr (TILES % 2) weights[TILES][0] = weights[TILES][1] = 0;
    float sum0, sum1;
    score_weights<TILES>(s, weights, sum0, sum1);
    float o[kN][4] = {};
#pragma unroll
    for (int n = 0; n < TILES; n += 2) {
        const uint32_t x[4] = {weights[n][0], weights[n][1], weights[n + 1][0], weights[n + 1][1]};
#pragma unroll
        for (int j = 0; j < kN; j += 2) {
            uint32_t values[2][2];
            load_transposed4(values[0][0], values[0][1], values[1][0], values[1][1], b + (n * 8 + lane % 16) * kBRow + 2 * kHead + j * 8 + lane / 16 * 8);
            multiply(o[j], x, values[0]), multiply(o[j + 1], x, values[1]);
        }
    }
    sum0 += __shfl_xor_sync(0xffffffffu, sum0, 1);
    sum1 += __shfl_xor_sync(0xffffffffu, sum1, 1);
    sum0 += __shfl_xor_sync(0xffffffffu, sum0, 2);
    sum1 += __shfl_xor_sync(0xffffffffu, sum1, 2);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int row = tile * 16 + h * 8 + g;
        const float sum = h ? sum1 : sum0, part_of = sum > 0.f ? __fdividef(1.f, sum) : 0.f;
        uint32_t r[kN];
#pragma unroll
        for (int n = 0; n < kN; ++n) r[n] = pack_halves(o[n][2 * h] * part_of, o[n][2 * h + 1] * part_of);
        exchange_tiles(r, t);
        if (row < tokens) *reinterpret_cast<uint4*>(p.attend.out_row(group, static_cast<int>(head), row) + 8 * t) = make_uint4(r[0], r[1], r[2], r[3]);
    }
#endif
}

}  // namespace trt_opt
