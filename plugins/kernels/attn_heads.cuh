// A head of a group of tokens (a window, a short sequence): layer norm, the product that gives its queries, keys and values, and its
// attention, by one block of threads. What block_gemm.cuh and attention_resident.cuh do one after the other, without the way through
// memory between them. Every head of a group fetches the group's rows anew, so this is for few heads, where the time is latency.
//
// Launched ahead like the products of a block, and with the norm folded into the product as block_gemm.cuh has it: before the wait
// there are the head's columns of the weights, B' = scale B, sum(B') and shift B; afterwards the rows and the bias of the scores.
// Twelve warps are four tiles of 16 rows times queries, keys and values, of 32 columns each. Each of the three takes one of
// the sums that a row needs: its elements, and its elements squared for the first and the second eight rows of the tile.
//
// Blocks of a cluster may share a head: for more channels than one has room for, or where there are few heads. Each then has a slice of
// the contracted index, and the row tiles that are its own in turn with the others. What it has of another's tile it sends there, sums
// that are not complete yet; a tile's owner completes them, gives its keys and values to all, and attends with its queries.
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
    bool once;                  // all blocks run at once: how the second-level cache keeps B
    bool mapped;                // windows are cut: row r of a group is map.source(r)
    const void* next;           // weights of the kernel after this one, into the second-level cache
    uint32_t next_bytes;        // a multiple of 16
    WindowMap map;
    AttentionArgs<__half> attend;  // all but q, k and v; a batch row is a group
};

// What a block has in shared memory, for a contracted index of `k` that `cluster` blocks share. Rows of A and B are odd numbers of 16-byte pieces, so that
// ldmatrix meets no bank twice.
struct AttnHeadsShared {
    static constexpr int kRows = 64, kHead = 32, kColumns = 3 * kHead, kTiles = kRows / 16, kWarps = 3 * kTiles, kThreads = 32 * kWarps;
    static constexpr int kBRow = kColumns + 8;
    static constexpr int kFloats = 2 * 2 * kColumns + 3 * kColumns + 2 * kRows;

    // What the blocks of a cluster send: of each column sum(B') and shift B, of each tile that another block owns its sums and those
    // of its rows.
    __host__ __device__ static constexpr int sent_tiles(int cluster) { return (cluster - 1) * (kTiles / cluster) * 3; }
    __host__ __device__ static constexpr int sent_bytes(int cluster) { return cluster == 1 ? 0 : 8 * cluster * kColumns + sent_tiles(cluster) * (16 * 32 * (kHead / 8) + 8 * 8); }

    // Steps of 16 are shared by two warps where B' is made.
    __host__ __device__ static int padded(int k) { return (k + 31) / 32 * 32; }
    __host__ __device__ static int a_row(int k) { return padded(k) + 8; }
    // The contracted elements of a block, but for the last of a cluster, which may have fewer. One block has them all.
    __host__ __device__ static int slice(int k, int cluster) { return cluster == 1 ? k : padded((k + cluster - 1) / cluster); }
    // Queries, keys and values take the place of B.
    __host__ __device__ static int b_rows(int k) { return max(padded(k), kRows); }
    static int bytes(int k, int key_tiles, int cluster) {
        const int own = slice(k, cluster);
        return 16 * 32 * (kTiles / cluster) * key_tiles + sent_bytes(cluster) + 4 * (kFloats + kRows) + 2 * (kRows * a_row(own) + b_rows(own) * kBRow + 2 * padded(own));
    }
    static_assert(4 * (kFloats + kRows) % 16 == 0);

private:
    __host__ __device__ static int max(int a, int b) { return a > b ? a : b; }
};

// TILES: tiles of 8 keys. CLUSTER: blocks that share a head. Grid: groups * heads * CLUSTER, heads faster than groups.
template <int TILES, int CLUSTER> __global__ void __launch_bounds__(AttnHeadsShared::kThreads, 2) attn_heads_kernel(const __grid_constant__ AttnHeadsArgs p) {
#if __CUDA_ARCH__ >= 900
    using namespace ptx;
    using Shared = AttnHeadsShared;
    constexpr int kRows = Shared::kRows, kHead = Shared::kHead, kColumns = Shared::kColumns, kBRow = Shared::kBRow, kTiles = Shared::kTiles, kWarps = Shared::kWarps, kThreads = Shared::kThreads;
    constexpr int kN = 4;      // 8-column tiles of a warp
    constexpr int kOwn = kTiles / CLUSTER;  // row tiles of a block; tile i is that of block i % CLUSTER
    constexpr int kParts = 4;  // in which A arrives
    constexpr uint32_t kOnes[2] = {0x3c003c00u, 0x3c003c00u};

    let_next_start();
    if constexpr (CLUSTER > 1) cluster_arrive();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int tile = warp % kTiles, part = warp / kTiles;  // part: queries, keys or values
    uint32_t head;
    const uint32_t group = p.by_heads.divmod(blockIdx.x / CLUSTER, head);
    const int rank = static_cast<int>(blockIdx.x % CLUSTER), slice = Shared::slice(p.k, CLUSTER), k0 = rank * slice, depth = CLUSTER == 1 ? p.k : min(p.k - k0, slice);
    const int inner = p.attend.heads * kHead, tokens = p.attend.n, row_tiles = (tokens + 15) / 16;
    const int padded = Shared::padded(depth), a_row = Shared::a_row(slice);

    // What is of one size comes first, so that its addresses are constants.
    float4* const score_bias = reinterpret_cast<float4*>(shared);  // [own row tile][key tile][lane]
    // From other blocks: [block][own row tile][queries, keys or values][column tile][lane], and of the rows [...][g]; from all: [block][column].
    static_assert(Shared::sent_bytes(CLUSTER) % 16 == 0);
    float4* const sent = score_bias + kOwn * TILES * 32;
    float2 *const sent_rows = reinterpret_cast<float2*>(sent + Shared::sent_tiles(CLUSTER) * kN * 32), *const sent_columns = sent_rows + Shared::sent_tiles(CLUSTER) * 8;
    // Of the columns: each half of the contracted index's sum(B') and shift B; then sum(B'), shift B + bias, bias. Of the rows: sums.
    float *const shares = reinterpret_cast<float*>(sent) + Shared::sent_bytes(CLUSTER) / 4, *const column_sums = shares + 2 * 2 * kColumns;
    float *const offsets = column_sums + kColumns, *const biases = offsets + kColumns, *const row_sums = biases + kColumns, *const row_squares = row_sums + kRows;
    int* const mapped_rows = reinterpret_cast<int*>(row_squares + kRows);
    __half *const a = reinterpret_cast<__half*>(mapped_rows + kRows), *const b = a + kRows * a_row;
    __half *const scale = b + Shared::b_rows(slice) * kBRow, *const shift = scale + padded;

    // Before the kernel before this one is done: weights, and where the rows are. Rows of B beyond the last are zeros.
    {
        constexpr int kPieces = kColumns / 8, kStep = kThreads / kPieces;
        const int piece = tid % kPieces * 8;
        const __half* from = p.b + k0 * (3 * inner) + piece / kHead * inner + static_cast<int>(head) * kHead + piece % kHead;
        const uint64_t policy = weight_policy(p.once);
#pragma unroll 4
        for (int row = tid / kPieces; row < padded; row += kStep) copy16(b + row * kBRow + piece, row < depth ? from + row * (3 * inner) : from, row < depth, policy);
        for (int c = 8 * tid; c < padded; c += 8 * kThreads)
            copy16(scale + c, c < depth ? p.scale + k0 + c : p.scale, c < depth), copy16(shift + c, c < depth ? p.shift + k0 + c : p.shift, c < depth);
    }
    commit_copies();
    if (tid < kRows) {
        const int64_t row = int64_t{group} * tokens + tid;
        mapped_rows[tid] = tid >= tokens ? -1 : static_cast<int>(p.mapped ? p.map.source(static_cast<uint32_t>(row)) : row);
    }
    prefetch_weights(p.next, p.next_bytes, blockIdx.x * kWarps + warp, gridDim.x * kWarps, weight_policy(p.once));
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
    if constexpr (CLUSTER > 1) cluster_wait();  // all blocks are there to be written to
    if (tid < kColumns) {
        const float bias = __half2float(p.bias[tid / kHead * inner + static_cast<int>(head) * kHead + tid % kHead]);
        biases[tid] = bias;
        const float sum = shares[tid] + shares[2 * kColumns + tid], shifted = shares[kColumns + tid] + shares[3 * kColumns + tid];
        if constexpr (CLUSTER > 1) {
            const uint32_t to = shared_address(sent_columns + rank * kColumns + tid);
#pragma unroll
            for (int z = 0; z < CLUSTER; ++z) store_remote(remote(to, z), sum, shifted);
        } else {
            column_sums[tid] = sum, offsets[tid] = shifted + bias;
        }
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
                    const bool exists = c < depth && from >= 0;
                    const __half* at = p.a + (exists ? from * p.k + k0 + c : 0);
                    if (p.a2) {
                        Pack<__half, 8> x;
                        if (exists) x.raw = *reinterpret_cast<const uint4*>(at), add_packs<__half, 8>(x, Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.a2 + from * p.k + k0 + c)));
                        *reinterpret_cast<uint4*>(a + row * a_row + c) = x.raw;
                    } else {
                        copy16(a + row * a_row + c, at, exists);
                    }
                }
            }
            commit_copies();
        }
    }
    // While the rows are on their way. A block's warps share the keys of its own tiles.
    if (const int own = warp % kOwn, own_tile = own * CLUSTER + rank; own_tile < row_tiles) {
        const ScoreBias<__half> scores(p.attend, group, static_cast<int>(head));
        constexpr int kSharers = kWarps / kOwn, kShare = (TILES + kSharers - 1) / kSharers;
        const int first = warp / kOwn * kShare;
        float f[kShare][4];
        scores.fragments<kShare>(own_tile * 16 + g, own_tile * 16 + g + 8, first * 8 + 2 * t, f);
#pragma unroll
        for (int n = 0; n < kShare; ++n)
            if (first + n < TILES) score_bias[(own * TILES + first + n) * 32 + lane] = make_float4(f[n][0], f[n][1], f[n][2], f[n][3]);
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
    // Of a row this lane's sum, or none: of elements (rows g and g + 8 of the tile), or of squares.
    const bool has_sums = t == (part == 0 ? 0 : g / 2);
    float2 sums = make_float2(norm[0], norm[2]);
    if (part == 1) sums.x = g % 2 ? norm[1] : norm[0];
    if (part == 2) sums.x = g % 2 ? norm[3] : norm[2];
    const bool owned = CLUSTER == 1 || tile % CLUSTER == rank;
    if constexpr (CLUSTER > 1) {
        const auto sent_tile = [&](int block) { return (block * kOwn + tile / CLUSTER) * 3 + part; };
        if (!owned && tile < row_tiles) {
            const int owner = tile % CLUSTER, to = sent_tile((rank - owner + CLUSTER - 1) % CLUSTER);
            const uint32_t at = remote(shared_address(sent + to * kN * 32 + lane), owner);
#pragma unroll
            for (int n = 0; n < kN; ++n)
                store_remote(at + n * 32 * 16, make_uint4(__float_as_uint(acc[n][0]), __float_as_uint(acc[n][1]), __float_as_uint(acc[n][2]), __float_as_uint(acc[n][3])));
            if (has_sums) store_remote(remote(shared_address(sent_rows + to * 8 + g), owner), sums.x, sums.y);
        }
        cluster_arrive(), cluster_wait();
        if (tid < kColumns) {
            float2 sum{};
#pragma unroll
            for (int z = 0; z < CLUSTER; ++z) sum.x += sent_columns[z * kColumns + tid].x, sum.y += sent_columns[z * kColumns + tid].y;
            column_sums[tid] = sum.x, offsets[tid] = sum.y + biases[tid];
        }
        if (owned && tile < row_tiles) {
#pragma unroll 1
            for (int block = 0; block < CLUSTER - 1; ++block) {
                const int from = sent_tile(block);
#pragma unroll
                for (int n = 0; n < kN; ++n) {
                    const float4 v = sent[(from * kN + n) * 32 + lane];
                    acc[n][0] += v.x, acc[n][1] += v.y, acc[n][2] += v.z, acc[n][3] += v.w;
                }
                if (has_sums) sums.x += sent_rows[from * 8 + g].x, sums.y += sent_rows[from * 8 + g].y;
            }
        }
    }
    if (has_sums && owned) {
        if (part == 0) row_sums[tile * 16 + g] = sums.x, row_sums[tile * 16 + g + 8] = sums.y;
        else row_squares[tile * 16 + (part - 1) * 8 + g] = sums.x;
    }
    __syncthreads();
    // The product's end; rounded, it takes the place of B.
    if (owned) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = tile * 16 + h * 8 + g;
            const bool exists = mapped_rows[row] >= 0;
            const float mean = row_sums[row] * p.each;
            float variance = fmaf(-mean, mean, row_squares[row] * p.each);
            // As exact_variance, which as a call would make the products wait in memory.
            const bool far = exists && mean * mean > 64.f * variance;
            auto add_squares = [&](uint4 piece, float& square) {
                float f[8];
                Pack<__half, 8>(piece).floats(f);
#pragma unroll
                for (int e = 0; e < 8; ++e) f[e] -= mean, square = fmaf(f[e], f[e], square);
            };
            if constexpr (CLUSTER == 1) {
                if (far) {
                    float square = 0;
#pragma unroll 1
                    for (int i = 0; i < p.k; i += 8) add_squares(*reinterpret_cast<const uint4*>(a + row * a_row + i), square);
                    variance = square * p.each;
                }
            } else if (__any_sync(0xffffffffu, far)) {
                // The others' slices are read where they are; four lanes have the same row.
                float square = 0;
#pragma unroll 1
                for (int z = 0; z < CLUSTER; ++z) {
                    const uint32_t at = remote(shared_address(a + row * a_row + 8 * t), z);
                    const int end = min(p.k - z * slice, slice) - 8 * t;
#pragma unroll 1
                    for (int i = 0; i < end; i += 32) add_squares(load_remote(at + 2 * i), square);
                }
                square += __shfl_xor_sync(0xffffffffu, square, 1);
                square += __shfl_xor_sync(0xffffffffu, square, 2);
                if (far) variance = square * p.each;
            }
            const float factor = rsqrtf(variance + p.epsilon);
            uint32_t r[kN];
#pragma unroll
            for (int n = 0; n < kN; ++n) {
                const int c = part * kHead + n * 8 + 2 * t;
                float v[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) v[e] = exists ? fmaf(acc[n][2 * h + e] - mean * column_sums[c + e], factor, offsets[c + e]) : biases[c + e];
                r[n] = pack_halves(v[0], v[1]);
            }
            __half* const to = b + row * kBRow + part * kHead;
            if constexpr (CLUSTER == 1) {
#pragma unroll
                for (int n = 0; n < kN; ++n) *reinterpret_cast<uint32_t*>(to + n * 8 + 2 * t) = r[n];
            } else {
                exchange_tiles(r, t);
                const uint4 piece = make_uint4(r[0], r[1], r[2], r[3]);
                if (part == 0) {
                    *reinterpret_cast<uint4*>(to + 8 * t) = piece;
                } else {
#pragma unroll
                    for (int z = 0; z < CLUSTER; ++z) store_remote(remote(shared_address(to + 8 * t), z), piece);
                }
            }
        }
    }
    if constexpr (CLUSTER > 1) cluster_arrive(), cluster_wait();  // nothing is written to another block from here on
    else __syncthreads();
    if (part != 0 || tile >= row_tiles || !owned) return;

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
        const float4 f = score_bias[(tile / CLUSTER * TILES + n) * 32 + lane];
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
