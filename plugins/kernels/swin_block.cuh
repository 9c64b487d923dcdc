// A Swin block whole: y = m + gelu(norm2(m) W1 + b1) W2 + b2, m = x + attention(norm1(x) Wqkv + bqkv) Wproj + bproj, over the tokens of
// a window (or of a short sequence), by a cluster of a block a head. Made for few windows, where the time is latency.
//
// Block h makes the queries, keys and values of head h and attends (as attn_heads.cuh), then has columns [32h, 32h + 32) of everything
// that is as wide as a token, and 1 / heads of the hidden columns. Three exchanges: results of the heads to all blocks, m to all
// blocks, partial sums of the last product to the block that has the columns. Barriers of the cluster, each arrived at as soon as what it
// guards is done:
//   1. Wqkv is read: results of the heads may be written where it was     (all have started, too)
//   2. results of the heads are there
//   3. m is there
//   4. W1 is read: sums may be written where it was
//   5. sums are there
// Partial sums are rounded to fp16. That adds to the error what the rounding of the hidden columns has added already: a slice's sum is as
// large as the root of its squared terms, or larger only where the terms agree in sign, and then so is the result.
//
// Both norms are folded into their products (block_gemm.cuh). Before the wait the head's weights are asked for, and all others in the second-level
// cache. These are fetched behind the rows, so that those need not queue. Wqkv becomes B' while the rows are on their way, W1 while m is.
#pragma once

#include "attention_common.cuh"
#include "block_gemm.cuh"
#include "score_weights.cuh"

namespace trt_opt {

constexpr int kSwinRows = 64, kSwinHead = 32, kSwinMaxSlice = 128, kSwinMaxCluster = 16;

// Where things are in a block's shared memory, in bytes, for `k` channels, `slice` hidden columns a block and `tokens` a window. What begins
// every plan: sums of columns, offsets, sums of rows, scale and shift of the second norm, the rows. Then, where there is room:
//   Wproj | W1, later sums | W2 | Wqkv and what its norm needs, later queries, keys, values and results of the heads, later hidden columns | scores
// and otherwise, over one range of memory (Swin-T's stage 3):
//   until the first product    W1 in part                    | Wqkv and what its norm needs | Wproj | scores
//   until the heads are done   W1 up to              | q k v | results of the heads         | Wproj | scores
//   until the projection       W1 ---------------------------| results of the heads         | Wproj |
//   until the third product    W1 ---------------------------| W2 from row `w2_late` on
//   to the end                 hidden columns, sums  | W2 --------------------------------------------
struct SwinPlan {
    int shared = 0;
    int x = 0, w_qkv = 0, start = 0, w_proj = 0, w1 = 0, w2 = 0, qkv = 0, merged = 0, scores = 0, hidden = 0, sums = 0, fold = 0;
    int w1_first = 0, w1_second = 0;  // rows of W1 that are fetched before the first product, and behind it; the others when the heads are done
    int w2_first = 0, w2_late = 0;    // W2 is fetched from row w2_first on before the first product, rows below that behind the projection; rows below w2_late behind the third product

    static constexpr int kRowBytes = 2 * (3 * kSwinHead + 8), kProjBytes = 2 * (kSwinHead + 8);
    static constexpr int kFoldBytes = 4 * 768;  // shares of the sums over columns, of either norm
    static constexpr int kFixedBytes = 4 * (3 * kSwinMaxSlice + kSwinMaxSlice + 2 * kSwinHead + 3 * kSwinRows);

    // False if `limit` bytes are not enough.
    bool make(int k, int slice, int tokens, int tiles, int limit) {
        const int cluster = k / kSwinHead, row = 2 * (k + 8), w1_row = 2 * (slice + 8);
        const int qkv_bytes = tokens * kRowBytes, merged_bytes = tokens * row, hidden_bytes = tokens * w1_row, sums_bytes = cluster * tokens * 2 * kSwinHead;
        const int w_qkv_bytes = k * kRowBytes, start_bytes = kFoldBytes + 4 * k, proj_bytes = k * kProjBytes, w1_bytes = k * w1_row, w2_bytes = slice * row;
        const int scores_bytes = (tokens + 15) / 16 * tiles * 512;
        x = kFixedBytes + 4 * k;
        const int base = x + merged_bytes;
        auto most = [](int a, int b) { return a > b ? a : b; };

        w_proj = base, w1 = w_proj + proj_bytes, w2 = w1 + most(w1_bytes, sums_bytes), w_qkv = w2 + w2_bytes;
        scores = w_qkv + most(most(w_qkv_bytes + start_bytes, qkv_bytes + merged_bytes), most(hidden_bytes, kFoldBytes));
        start = w_qkv + w_qkv_bytes, qkv = hidden = fold = w_qkv, merged = qkv + qkv_bytes, sums = w1;
        w1_first = w1_second = k, w2_first = w2_late = 0;
        shared = scores + scores_bytes;
        if (shared <= limit) return true;

        const int w1_end = base + w1_bytes;
        w1 = base, qkv = w1_end - qkv_bytes, merged = w1_end;
        w_proj = most(merged + merged_bytes, base + w_qkv_bytes + start_bytes), scores = w_proj + proj_bytes;
        start = w_proj - start_bytes, w_qkv = start - w_qkv_bytes;
        auto w1_rows = [&](int end) { return (end - base) / w1_row / 16 * 16; };
        w1_second = w1_rows(qkv), w1_first = w_qkv < qkv ? w1_rows(w_qkv) : w1_second;
        shared = most(scores + scores_bytes, w1_end + w2_bytes + kFoldBytes);
        if (shared > limit) shared = limit;
        fold = shared - kFoldBytes, w2 = fold - w2_bytes, w2_first = slice, w2_late = w2 < w1_end ? (w1_end - w2 + row - 1) / row : 0;
        hidden = base, sums = hidden + hidden_bytes;
        return scores + scores_bytes <= shared && qkv >= base && w2_late < slice && fold >= w1_end && sums + sums_bytes <= w2;
    }
};

constexpr int kSwinWarps = 12, kSwinThreads = 32 * kSwinWarps;

// How the rows of a matrix are dealt to the threads of a block: so many at a time, a thread a piece of 16 bytes.
struct SwinPieces {
    FastDiv by_pieces;  // of a row
    int step = 0;

    SwinPieces() = default;
    explicit SwinPieces(int columns) : by_pieces(static_cast<uint32_t>(columns / 8)), step(kSwinThreads / (columns / 8)) {}
};

struct SwinBlockArgs {
    const __half *a, *a2;           // [tokens, k]; a2 is added first, or null
    const __half *scale1, *shift1;  // [k]
    const __half *w_qkv, *b_qkv;    // [k, 3 * k], columns as (3, heads, 32); [3 * k]
    const __half *w_proj, *b_proj;  // [k, k], [k]
    const __half *scale2, *shift2;  // [k]
    const __half *w1, *b1;          // [k, heads * slice], [heads * slice]
    const __half *w2, *b2;          // [heads * slice, k], [k]
    __half* out;                    // like a
    int k, slice;
    float each;                     // 1 / k
    float epsilon1, epsilon2;
    Activation activation;
    FastDiv by_heads;
    bool mapped;                    // windows are cut: row r of a group is map.source(r)
    WindowMap map;
    AttentionArgs<__half> attend;   // all but q, k, v and out; a batch row is a group
    SwinPieces slice_pieces, row_pieces;  // of W1, of W2
    FastDiv by_fold;                // groups of columns of a slice that become B' together
    SwinPlan at;
};

// acc += 16 rows of A (`a` is this lane's ldmatrix address) times pairs of 8-column tiles of B, `b` + columns[i], over the next `depth`
// contracted elements, a multiple of 32; a and b move on. SUMS: of the rows, in column 0 their sum (part 0), or on the diagonal the squares of rows 0 to 7
// (part 1) or 8 to 15 (part 2). The next step's operands are asked for before this step's are used.
template <int PAIRS, bool SUMS>
__device__ __forceinline__ void multiply_rows(float (&acc)[2 * PAIRS][4], float (&sums)[4], const __half*& a, const __half*& b, const int (&columns)[PAIRS], int b_row, int depth, int part) {
    using namespace ptx;
    constexpr uint32_t kOnes[2] = {0x3c003c00u, 0x3c003c00u};
    auto load = [&](uint32_t (&x)[4], uint32_t (&y)[2 * PAIRS][2]) {
        load_matrices4(x, a);
#pragma unroll
        for (int n = 0; n < PAIRS; ++n) load_transposed4(y[2 * n][0], y[2 * n][1], y[2 * n + 1][0], y[2 * n + 1][1], b + columns[n]);
        a += 16, b += 16 * b_row;
    };
    auto multiply_all = [&](const uint32_t (&x)[4], const uint32_t (&y)[2 * PAIRS][2]) {
#pragma unroll
        for (int n = 0; n < 2 * PAIRS; ++n) multiply(acc[n], x, y[n]);
        if constexpr (SUMS) multiply(sums, x, {part == 0 ? kOnes[0] : part == 1 ? x[0] : x[1], part == 0 ? kOnes[1] : part == 1 ? x[2] : x[3]});
    };
    uint32_t x[2][4], y[2][2 * PAIRS][2];
    load(x[0], y[0]);
#pragma unroll 1
    while (true) {
        load(x[1], y[1]);
        multiply_all(x[0], y[0]);
        const bool more = (depth -= 32) > 0;
        if (more) load(x[0], y[0]);
        multiply_all(x[1], y[1]);
        if (!more) break;
    }
}

// TILES: tiles of 8 keys. Grid: groups * heads, in clusters of the heads.
template <int TILES> __global__ void __launch_bounds__(kSwinThreads, 2) swin_block_kernel(const __grid_constant__ SwinBlockArgs p) {
#if __CUDA_ARCH__ >= 900
    using namespace ptx;
    constexpr int kRows = kSwinRows, kHead = kSwinHead, kColumns = 3 * kHead, kBRow = kColumns + 8, kProjRow = kHead + 8, kWarps = kSwinWarps, kThreads = kSwinThreads;
    static_assert(2 * kBRow == SwinPlan::kRowBytes && 2 * kProjRow == SwinPlan::kProjBytes);

    let_next_start();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int tile = warp % 4, part = warp / 4;  // of all products: 16 rows; a third of the columns, or a sum of the rows
    uint32_t own;
    const uint32_t group = p.by_heads.divmod(blockIdx.x, own);
    const int rank = static_cast<int>(own), cluster = static_cast<int>(p.by_heads.divisor), k = p.k, slice = p.slice;
    const int tokens = p.attend.n, row_tiles = (tokens + 15) / 16, a_row = k + 8, w1_row = slice + 8;

    // Of the columns of a product with a norm: sum(B'), shift B + bias, and of the first one the bias. Offsets of the other products. Of the rows: sums.
    float *const column_sums = reinterpret_cast<float*>(shared), *const offsets = column_sums + kSwinMaxSlice, *const biases = offsets + kSwinMaxSlice;
    float *const b1 = biases + kSwinMaxSlice, *const b_proj = b1 + kSwinMaxSlice, *const b2 = b_proj + kHead, *const row_sums = b2 + kHead, *const row_squares = row_sums + kRows;
    int* const mapped_rows = reinterpret_cast<int*>(row_squares + kRows);
    static_assert(SwinPlan::kFixedBytes == 4 * (4 * kSwinMaxSlice + 2 * kHead + 3 * kRows));
    __half *const scale2 = reinterpret_cast<__half*>(mapped_rows + kRows), *const shift2 = scale2 + k;
    auto at = [&](int bytes) { return reinterpret_cast<__half*>(shared + bytes); };
    __half *const a = at(p.at.x), *const w_qkv = at(p.at.w_qkv), *const w_proj = at(p.at.w_proj), *const w1 = at(p.at.w1), *const w2 = at(p.at.w2);
    __half *const qkv = at(p.at.qkv), *const merged = at(p.at.merged), *const hidden = at(p.at.hidden), *const sums = at(p.at.sums);
    float4* const scores = reinterpret_cast<float4*>(shared + p.at.scores);  // [row tile][key tile][lane]

    // Rows [begin, end) of a matrix in global memory, whose pieces of 16 bytes are dealt to the threads.
    auto fetch = [&](__half* to, int to_row, const __half* from, int from_row, const SwinPieces& of, int begin, int end) {
        uint32_t piece;
        const int first = static_cast<int>(of.by_pieces.divmod(static_cast<uint32_t>(tid), piece));
        if (first >= of.step) return;
        to += 8 * piece, from += 8 * piece;
#pragma unroll 1
        for (int row = begin + first; row < end; row += of.step) copy16(to + row * to_row, from + int64_t{row} * from_row, true);
    };
    auto fetch_w1 = [&](int begin, int end) { fetch(w1, w1_row, p.w1 + rank * slice, cluster * slice, p.slice_pieces, begin, end); };
    auto fetch_w2 = [&](int begin, int end) { fetch(w2, a_row, p.w2 + int64_t{rank} * slice * k, k, p.row_pieces, begin, end); };
    // A row of A as ldmatrix reads it; rows that do not exist are copies of the last.
    auto rows_of = [&](const __half* rows, int row) { return rows + min(tile * 16 + lane % 16, tokens - 1) * row + lane / 16 * 8; };
    // Mean of a row of `a`, and the factor of the norm, from the sums.
    auto statistics = [&](int row, float epsilon) {
        const float mean = row_sums[row] * p.each;
        float variance = fmaf(-mean, mean, row_squares[row] * p.each);
        // As exact_variance, which as a call would make the products wait in memory.
        if (row < tokens && mean * mean > 64.f * variance) {
            float square = 0;
#pragma unroll 1
            for (int i = 0; i < k; i += 8) {
                float f[8];
                Pack<__half, 8>(*reinterpret_cast<const uint4*>(a + row * a_row + i)).floats(f);
#pragma unroll
                for (int e = 0; e < 8; ++e) f[e] -= mean, square = fmaf(f[e], f[e], square);
            }
            variance = square * p.each;
        }
        return float2{mean, rsqrtf(variance + epsilon)};
    };
    // Of a row this lane's sum, if it has one.
    auto keep_sums = [&](const float (&of)[4]) {
        if (t != (part == 0 ? 0 : g / 2)) return;
        if (part == 0) row_sums[tile * 16 + g] = of[0], row_sums[tile * 16 + g + 8] = of[2];
        else row_squares[tile * 16 + (part - 1) * 8 + g] = part == 1 ? (g % 2 ? of[1] : of[0]) : (g % 2 ? of[3] : of[2]);
    };
    // 16 bytes to all blocks of the cluster, beginning with the next; then 16 bytes `apart` from there.
    auto push = [&](__half* to, bool first, uint4 piece, int apart, bool second, uint4 other) {
        const uint32_t address = shared_address(to);
#pragma unroll 4
        for (int i = 1; i <= cluster; ++i) {
            const int z = rank + i;
            const uint32_t there = remote(address, static_cast<uint32_t>(z < cluster ? z : z - cluster));
            if (first) store_remote(there, piece);
            if (second) store_remote(there + 2 * apart, other);
        }
    };

    // Before the kernel before this one is done: the head's weights, and where the rows are.
    float* const qkv_shares = reinterpret_cast<float*>(shared + p.at.start);
    __half *const scale1 = reinterpret_cast<__half*>(qkv_shares + SwinPlan::kFoldBytes / 4), *const shift1 = scale1 + k;
    {
        constexpr int kPieces = kColumns / 8, kStep = kThreads / kPieces;
        const int piece = tid % kPieces * 8;
        const __half* from = p.w_qkv + piece / kHead * k + rank * kHead + piece % kHead;
#pragma unroll 4
        for (int row = tid / kPieces; row < k; row += kStep) copy16(w_qkv + row * kBRow + piece, from + row * (3 * k), true);
        if (const int c = 8 * tid; c < k) copy16(scale1 + c, p.scale1 + c, true), copy16(shift1 + c, p.shift1 + c, true), copy16(scale2 + c, p.scale2 + c, true), copy16(shift2 + c, p.shift2 + c, true);
        commit_copies();
        if (tid < kRows) {
            const int64_t row = int64_t{group} * tokens + tid;
            mapped_rows[tid] = tid >= tokens ? -1 : static_cast<int>(p.mapped ? p.map.source(static_cast<uint32_t>(row)) : row);
        }
        if (tid < kColumns) biases[tid] = __half2float(p.b_qkv[tid / kHead * k + rank * kHead + tid % kHead]);
        if (tid < slice) b1[tid] = __half2float(p.b1[rank * slice + tid]);
        if (tid < kHead) b_proj[tid] = __half2float(p.b_proj[rank * kHead + tid]), b2[tid] = __half2float(p.b2[rank * kHead + tid]);
        auto prefetch = [&](const __half* of, int elements) {
#pragma unroll 1
            for (uint32_t i = blockIdx.x * kThreads + tid; i < static_cast<uint32_t>(elements) / 64; i += gridDim.x * kThreads) prefetch_l2(of + size_t{i} * 64);
        };
        prefetch(p.w_proj, k * k), prefetch(p.w1, k * cluster * slice), prefetch(p.w2, k * cluster * slice);
    }
    __syncthreads();

    // Rows in two parts, a warp a row; padding is zeros.
    constexpr int kPart = 8 * 32;
    wait_for_previous();
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {
        const int begin = i * kPart, end = i == 0 ? min(kPart, k) : k;
#pragma unroll 1
        for (int c = begin + 8 * lane; c < end; c += kPart) {
            if (p.a2) {
#pragma unroll 2
                for (int row = warp; row < tokens; row += kWarps) {
                    const int64_t from = mapped_rows[row];
                    Pack<__half, 8> s;
                    if (from >= 0) s.raw = *reinterpret_cast<const uint4*>(p.a + from * k + c), add_packs<__half, 8>(s, Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.a2 + from * k + c)));
                    *reinterpret_cast<uint4*>(a + row * a_row + c) = s.raw;
                }
            } else {
#pragma unroll 4
                for (int row = warp; row < tokens; row += kWarps) {
                    const int64_t from = mapped_rows[row];
                    copy16(a + row * a_row + c, p.a + (from >= 0 ? from * k + c : 0), from >= 0);
                }
            }
        }
        commit_copies();
    }
    // While the rows are on their way: the bias of the scores, of which the warps of a row tile share the keys, then the weights of what comes
    // next, and B'. A block that begins late so waits once for its weights and its rows.
    if (tile < row_tiles) {
        const ScoreBias<__half> bias(p.attend, group, rank);
        constexpr int kShare = (TILES + 2) / 3;
        const int first = part * kShare;
        float f[kShare][4];
        bias.fragments<kShare>(tile * 16 + g, tile * 16 + g + 8, first * 8 + 2 * t, f);
#pragma unroll
        for (int n = 0; n < kShare; ++n)
            if (first + n < TILES) scores[(tile * TILES + first + n) * 32 + lane] = make_float4(f[n][0], f[n][1], f[n][2], f[n][3]);
    }
#pragma unroll 1
    for (int row = tid / (kHead / 8), piece = tid % (kHead / 8) * 8; row < k; row += kThreads / (kHead / 8)) copy16(w_proj + row * kProjRow + piece, p.w_proj + row * k + rank * kHead + piece, true);
    commit_copies();
    fetch_w1(0, p.at.w1_first), fetch_w2(p.at.w2_first, slice);
    commit_copies();
    wait_copies<4>();  // Wqkv
    __syncthreads();
    {
        constexpr int kGroups = kColumns / kFoldColumns, kShares = kWarps / kGroups;
        const int c = warp % kGroups * kFoldColumns, share = warp / kGroups;
        static_assert(2 * kShares * kColumns * 4 <= SwinPlan::kFoldBytes);
        fold_norm(w_qkv + c, kBRow, scale1, shift1, 16 * share, k, 16 * kShares, qkv_shares + 2 * share * kColumns + c, qkv_shares + (2 * share + 1) * kColumns + c);
        __syncthreads();
        if (tid < kColumns) {
            float sum = 0, shifted = biases[tid];
#pragma unroll
            for (int i = 0; i < kShares; ++i) sum += qkv_shares[2 * i * kColumns + tid], shifted += qkv_shares[(2 * i + 1) * kColumns + tid];
            column_sums[tid] = sum, offsets[tid] = shifted;
        }
    }

    // Queries, keys and values.
    {
        constexpr int kN = 4;
        float acc[kN][4] = {}, norm[4] = {};
        const __half *a_at = rows_of(a, a_row), *b_at = w_qkv + lane % 16 * kBRow + part * kHead + lane / 16 * 8;
#pragma unroll 1
        for (int i = 0; i < 2 && i * kPart < k; ++i) {
            if (i == 0) wait_copies<3>();
            else wait_copies<2>();
            __syncthreads();
            if (tile < row_tiles) multiply_rows<kN / 2, true>(acc, norm, a_at, b_at, {0, 16}, kBRow, i == 0 ? min(kPart, k) : k - kPart, part);
        }
        if (tile < row_tiles) keep_sums(norm);
        __syncthreads();
        cluster_arrive();  // 1
        fetch_w1(p.at.w1_first, p.at.w1_second);
        commit_copies();
        if (tile < row_tiles) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = tile * 16 + h * 8 + g;
                const bool exists = mapped_rows[row] >= 0;
                const auto [mean, factor] = statistics(row, p.epsilon1);
#pragma unroll
                for (int n = 0; n < kN; ++n) {
                    const int c = part * kHead + n * 8 + 2 * t;
                    float v[2];
#pragma unroll
                    for (int e = 0; e < 2; ++e) v[e] = exists ? fmaf(acc[n][2 * h + e] - mean * column_sums[c + e], factor, offsets[c + e]) : biases[c + e];
                    if (row < tokens) *reinterpret_cast<uint32_t*>(qkv + row * kBRow + c) = pack_halves(v[0], v[1]);
                }
            }
        }
        __syncthreads();
    }

    // 16 queries a warp, with all keys at once.
    {
        constexpr int kN = kHead / 8;
        const bool attends = part == 0 && tile < row_tiles;
        uint32_t r[2][kN];
        if (attends) {
            uint32_t queries[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) load_matrices4(queries[i], rows_of(qkv, kBRow) + i * 16);
            float s[TILES][4];
            const float scale = p.attend.scale * kLog2e;
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                uint32_t keys[4];  // of 8 elements of the head each
                load_matrices4(keys, qkv + min(n * 8 + lane % 8, tokens - 1) * kBRow + kHead + lane / 8 * 8);
                s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
                multiply(s[n], queries[0], {keys[0], keys[1]}), multiply(s[n], queries[1], {keys[2], keys[3]});
                const float4 f = scores[(tile * TILES + n) * 32 + lane];
                s[n][0] = fmaf(s[n][0], scale, f.x), s[n][1] = fmaf(s[n][1], scale, f.y);
                s[n][2] = fmaf(s[n][2], scale, f.z), s[n][3] = fmaf(s[n][3], scale, f.w);
            }
            uint32_t weights[(TILES + 1) / 2 * 2][2];
            if constexpr (TILES % 2) weights[TILES][0] = weights[TILES][1] = 0;
            float sum0, sum1;
            score_weights<TILES>(s, weights, sum0, sum1);
            float o[kN][4] = {};
#pragma unroll
            for (int n = 0; n < TILES; n += 2) {
                const uint32_t x[4] = {weights[n][0], weights[n][1], weights[n + 1][0], weights[n + 1][1]};
                const __half* const values_at = qkv + min(n * 8 + lane % 16, tokens - 1) * kBRow + 2 * kHead + lane / 16 * 8;
#pragma unroll
                for (int j = 0; j < kN; j += 2) {
                    uint32_t values[2][2];
                    load_transposed4(values[0][0], values[0][1], values[1][0], values[1][1], values_at + j * 8);
                    multiply(o[j], x, values[0]), multiply(o[j + 1], x, values[1]);
                }
            }
            sum0 += __shfl_xor_sync(0xffffffffu, sum0, 1);
            sum1 += __shfl_xor_sync(0xffffffffu, sum1, 1);
            sum0 += __shfl_xor_sync(0xffffffffu, sum0, 2);
            sum1 += __shfl_xor_sync(0xffffffffu, sum1, 2);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float sum = h ? sum1 : sum0, part_of = sum > 0.f ? __fdividef(1.f, sum) : 0.f;
#pragma unroll
                for (int n = 0; n < kN; ++n) r[h][n] = pack_halves(o[n][2 * h] * part_of, o[n][2 * h + 1] * part_of);
                exchange_tiles(r[h], t);
            }
        }
        cluster_wait();  // 1
        if (attends) {
            const int row = tile * 16 + g;
            push(merged + row * a_row + rank * kHead + 8 * t, row < tokens, make_uint4(r[0][0], r[0][1], r[0][2], r[0][3]), 8 * a_row, row + 8 < tokens, make_uint4(r[1][0], r[1][1], r[1][2], r[1][3]));
        }
        wait_copies<2>();  // Wproj
        cluster_arrive(), cluster_wait();  // 2
    }
    fetch_w1(p.at.w1_second, k);
    commit_copies();

    // The projection, 16 columns a warp, two warps a row tile. In `a`, m takes the place of the rows.
    if (part < 2 && tile < row_tiles) {
        float acc[2][2][4] = {};  // [step modulo 2][column tile]
        const __half *a_at = rows_of(merged, a_row), *b_at = w_proj + lane % 16 * kProjRow + part * 16 + lane / 16 * 8;
#pragma unroll 2
        for (int i = 0; i < k; i += 32) {
            uint32_t x[2][4], y[2][2][2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                load_matrices4(x[j], a_at);
                load_transposed4(y[j][0][0], y[j][0][1], y[j][1][0], y[j][1][1], b_at);
                a_at += 16, b_at += 16 * kProjRow;
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) multiply(acc[j][0], x[j], y[j][0]), multiply(acc[j][1], x[j], y[j][1]);
        }
        uint32_t r[4];  // rows g and g + 8 of either column tile
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = min(tile * 16 + h * 8 + g, tokens - 1);
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const int c = part * 16 + n * 8 + 2 * t;
                const float2 s = __half22float2(*reinterpret_cast<const __half2*>(a + row * a_row + rank * kHead + c));
                r[2 * h + n] = pack_halves(s.x + (acc[0][n][2 * h] + acc[1][n][2 * h] + b_proj[c]), s.y + (acc[0][n][2 * h + 1] + acc[1][n][2 * h + 1] + b_proj[c + 1]));
            }
        }
        exchange_tiles(r, t);
        const int row = tile * 16 + t / 2 * 8 + g;
        push(a + row * a_row + rank * kHead + part * 16 + t % 2 * 8, mapped_rows[row] >= 0, make_uint4(r[0], r[1], r[2], r[3]), 0, false, {});
    }
    cluster_arrive();  // 3
    __syncthreads();
    // While m is on its way.
    if (p.at.w2_first > 0) fetch_w2(p.at.w2_late, slice);
    commit_copies();
    wait_copies<1>();  // W1
    __syncthreads();
    float* const shares = reinterpret_cast<float*>(shared + p.at.fold);
    const int share_count = static_cast<int>(p.by_fold.div(kWarps));
    {
        uint32_t column_group;
        const int share = static_cast<int>(p.by_fold.divmod(static_cast<uint32_t>(warp), column_group)), c = static_cast<int>(column_group) * kFoldColumns;
        if (share < share_count) fold_norm(w1 + c, w1_row, scale2, shift2, 16 * share, k, 16 * share_count, shares + 2 * share * slice + c, shares + (2 * share + 1) * slice + c);
    }
    __syncthreads();
    if (tid < slice) {
        float sum = 0, shifted = b1[tid];
#pragma unroll 1
        for (int i = 0; i < share_count; ++i) sum += shares[2 * i * slice + tid], shifted += shares[(2 * i + 1) * slice + tid];
        column_sums[tid] = sum, offsets[tid] = shifted;
    }
    cluster_wait();  // 3

    // The hidden columns: a warp has up to three pairs of 8-column tiles, and makes some anew where there are fewer.
    {
        constexpr int kPairs = 3;
        static_assert(kSwinMaxSlice <= 16 * 3 * kPairs);
        const int pairs = slice / 16, each = (pairs + 2) / 3, pair0 = part * each;
        int columns[kPairs];
#pragma unroll
        for (int j = 0; j < kPairs; ++j) columns[j] = 16 * min(pair0 + j, pairs - 1);
        float acc[2 * kPairs][4] = {}, norm[4] = {};
        if (tile < row_tiles) {
            const __half *a_at = rows_of(a, a_row), *b_at = w1 + lane % 16 * w1_row + lane / 16 * 8;
            multiply_rows<kPairs, true>(acc, norm, a_at, b_at, columns, w1_row, k, part);
            keep_sums(norm);
        }
        __syncthreads();
        cluster_arrive();  // 4
        fetch_w2(0, p.at.w2_late);
        commit_copies();
        if (tile < row_tiles) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = tile * 16 + h * 8 + g;
                const auto [mean, factor] = statistics(row, p.epsilon2);
                float v[4 * kPairs];
#pragma unroll
                for (int n = 0; n < 2 * kPairs; ++n) {
                    const int c = columns[n / 2] + n % 2 * 8 + 2 * t;
#pragma unroll
                    for (int e = 0; e < 2; ++e) v[2 * n + e] = fmaf(acc[n][2 * h + e] - mean * column_sums[c + e], factor, offsets[c + e]);
                }
                activate(v, p.activation);
#pragma unroll
                for (int n = 0; n < 2 * kPairs; ++n)
                    if (row < tokens && n / 2 < each && pair0 + n / 2 < pairs) *reinterpret_cast<uint32_t*>(hidden + row * w1_row + columns[n / 2] + n % 2 * 8 + 2 * t) = pack_halves(v[2 * n], v[2 * n + 1]);
            }
        }
        wait_copies<0>();
        __syncthreads();
        cluster_wait();  // 4
    }

    // This slice's part of the result, 32 columns at a time, to the blocks that have them: [block][row][column].
    if (tile < row_tiles) {
#pragma unroll 1
        for (int i = part; i < cluster; i += 3) {
            const int owner = i + rank < cluster ? i + rank : i + rank - cluster;
            constexpr int kN = kHead / 8;
            float acc[kN][4] = {}, none[4];
            const __half *a_at = rows_of(hidden, w1_row), *b_at = w2 + lane % 16 * a_row + owner * kHead + lane / 16 * 8;
            multiply_rows<kN / 2, false>(acc, none, a_at, b_at, {0, 16}, a_row, slice, 0);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = tile * 16 + h * 8 + g;
                uint32_t r[kN];
#pragma unroll
                for (int n = 0; n < kN; ++n) r[n] = pack_halves(acc[n][2 * h], acc[n][2 * h + 1]);
                exchange_tiles(r, t);
                if (row < tokens) store_remote(remote(shared_address(sums + (rank * tokens + row) * kHead + 8 * t), static_cast<uint32_t>(owner)), make_uint4(r[0], r[1], r[2], r[3]));
            }
        }
    }
    cluster_arrive(), cluster_wait();  // 5: nothing is written to another block from here on
    for (int i = tid; i < tokens * (kHead / 8); i += kThreads) {
        const int row = i / (kHead / 8), c = i % (kHead / 8) * 8;
        const int64_t to = mapped_rows[row];
        if (to < 0) continue;
        float v[8];
        Pack<__half, 8>(*reinterpret_cast<const uint4*>(a + row * a_row + rank * kHead + c)).floats(v);
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] += b2[c + e];
#pragma unroll 4
        for (int z = 0; z < cluster; ++z) {
            float f[8];
            Pack<__half, 8>(*reinterpret_cast<const uint4*>(sums + (z * tokens + row) * kHead + c)).floats(f);
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] += f[e];
        }
        *reinterpret_cast<uint4*>(p.out + to * k + rank * kHead + c) = Pack<__half, 8>::of(v).raw;
    }
#endif
}

}  // namespace trt_opt
