// One product of a transformer's block, with what is before and after it: out = act(A B + bias) or A B + bias + added, where A
// may be the layer norm of its rows. Made for few rows, where the time is latency.
//
// A block of threads has BM rows, BN columns and all of the contracted index, or a slice of it that the blocks of a cluster
// share. Launched ahead of the end of the kernel before it, it fetches its weights, whole, and finds its rows before it
// waits for that kernel: afterwards there are only the rows to be fetched. The warps of a block may share the
// contracted index too, in steps of 16; partial sums meet in shared memory of the block that owns the row.
//
// A layer norm is folded into the product, so that most of it is done before the wait. With f = 1 / sqrt(variance + epsilon),
//   norm(x) B + bias = f (x B' - mean sum(B')) + shift B + bias,  B' = scale B, sums over the contracted index,
// where B' is rounded to fp16 as the normalized rows would have been. Means and variances come from the tensor cores: a row times
// ones, and times itself.
#pragma once

#include <type_traits>

#include "bridge_end.cuh"
#include "gelu.cuh"
#include "mma.cuh"
#include "norm_fold.cuh"
#include "ptx.cuh"
#include "quad_map.cuh"
#include "window_map.cuh"

namespace trt_opt {

struct BlockGemmArgs {
    const __half* a;               // [rows, k]
    const __half* b;               // [k, n]
    const __half* bias;            // [n]
    const __half *added, *added2;  // like out, or null
    __half* out;                   // [rows, n]
    const __half* a2;              // instances that normalize: added to A's rows first, or null
    const __half *scale, *shift;   // and [k]
    int64_t rows;
    int k, n;
    int slice;                     // contracted elements of a block; a multiple of 16, or k
    int cluster_log2;              // of the blocks of a cluster
    float epsilon;
    FastDiv by_columns;            // tiles of the same rows
    Activation activation;
    bool once;                     // all blocks run at once: how the second-level cache keeps B
    bool mapped;                   // windows are cut: row r of A (where it is normalized) or of the output is map.source(r)
    const void* next;              // weights of the kernel after this one, into the second-level cache
    uint32_t next_bytes;           // a multiple of 16
    WindowMap map;
};

// A product that ends in a bridge: its columns are shared out in a cluster, `added` and `out` are not used.
struct BridgeGemmArgs : BlockGemmArgs {
    BridgeEnd<__half> end;
};

// A product over merged patches: a row of A, which is normalized, is four tokens.
struct MergeGemmArgs : BlockGemmArgs {
    QuadMap quads;
};

template <int BM, int BN, int WARPS_M, int WARPS_N, int WARPS_K> struct GemmTile {
    static constexpr int kRows = BM, kColumns = BN, kWarpsM = WARPS_M, kWarpsN = WARPS_N, kWarpsK = WARPS_K;
    static constexpr int kWarps = WARPS_M * WARPS_N * WARPS_K, kThreads = 32 * kWarps;
    static constexpr int kM = BM / 16 / WARPS_M;  // 16-row tiles of a warp
    static constexpr int kN = 4;                  // 8-column tiles of a warp: what four lanes exchange
    static constexpr int kPieces = BN / 8;        // 16-byte pieces of a row of B
    static constexpr int kParts = 4;              // in which A arrives
    static constexpr int kBRow = BN + 8;          // an odd number of 16-byte pieces, so that ldmatrix meets no bank twice
    static constexpr int kSumRow = BN + 8;        // floats; 8 modulo 32, so that the pairs of a quarter-warp meet no bank twice
    // Of an instance that normalizes: its sums over columns, which so many warps share; moments of a bridge take the shares' place.
    static constexpr int kShares = kWarps * kFoldColumns / BN, kShareFloats = 2 * kShares * BN;
    static constexpr int kMomentFloats = BM * kBridgeMaxCluster * static_cast<int>(sizeof(RowMoments) / sizeof(float));
    static_assert(BM == 16 * WARPS_M * kM && BN == 32 * WARPS_N && kThreads % kPieces == 0 && kWarps * kFoldColumns % BN == 0 && BM <= kThreads);

    __host__ __device__ static int padded(int slice) { return (slice + 15) / 16 * 16; }
    __host__ __device__ static int a_row(int slice) { return padded(slice) + 8; }
    static int shared_bytes(bool norm, int slice, int cluster) { return bytes(slice, WARPS_K > 1 || cluster > 1) + (norm ? norm_bytes(slice, kShareFloats) : 0); }
    // Of an instance that normalizes what comes out too: its sums always wait in shared memory.
    static int bridge_bytes(int width) { return bytes(width, true) + norm_bytes(width, kShareFloats > kMomentFloats ? kShareFloats : kMomentFloats); }

private:
    static int bytes(int slice, bool sums) { return 2 * (BM * a_row(slice) + padded(slice) * kBRow) + 4 * (BM + (sums ? WARPS_K * BM * kSumRow : 0)); }
    // Scale and shift, and what is of the columns.
    static int norm_bytes(int slice, int floats) { return 2 * 2 * padded(slice) + 4 * (3 * BN + floats); }
};

// For rows whose mean is so far from zero that the difference of squares loses digits.
inline __device__ __noinline__ float exact_variance(const __half* row, int k, float mean) {
    float square = 0;
    for (int i = 0; i < k; i += 8) {
        float f[8];
        Pack<__half, 8>(*reinterpret_cast<const uint4*>(row + i)).floats(f);
#pragma unroll
        for (int e = 0; e < 8; ++e) f[e] -= mean, square = fmaf(f[e], f[e], square);
    }
    return square / static_cast<float>(k);
}

template <class Tile, bool NORM, class Args = BlockGemmArgs> __global__ void __launch_bounds__(Tile::kThreads, Tile::kThreads <= 256 ? 2 : 1) block_gemm_kernel(const __grid_constant__ Args p) {
#if __CUDA_ARCH__ >= 900
    using namespace ptx;
    constexpr bool kBridge = std::is_same_v<Args, BridgeGemmArgs>;
    constexpr bool kMerge = std::is_same_v<Args, MergeGemmArgs>;
    static_assert(NORM || (!kBridge && !kMerge));
    constexpr int BM = Tile::kRows, BN = Tile::kColumns, kThreads = Tile::kThreads, kWarps = Tile::kWarps;
    constexpr int kM = Tile::kM, kN = Tile::kN, kBRow = Tile::kBRow, kWarpsK = Tile::kWarpsK, kParts = Tile::kParts;

    let_next_start();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int warp_k = warp / (Tile::kWarpsM * Tile::kWarpsN);
    const int warp_row = warp / Tile::kWarpsN % Tile::kWarpsM * (16 * kM), warp_column = warp % Tile::kWarpsN * (8 * kN);
    // Where A is normalized a block has all of the contracted index; of a bridge's cluster its end knows.
    const int cluster_log2 = NORM ? 0 : p.cluster_log2, cluster = 1 << cluster_log2;
    const uint32_t rank = blockIdx.x & (cluster - 1);
    uint32_t column_tile;
    const int64_t row0 = int64_t{p.by_columns.divmod(blockIdx.x >> cluster_log2, column_tile)} * BM;
    const int rows = static_cast<int>(min(int64_t{BM}, p.rows - row0)), column = static_cast<int>(column_tile) * BN;
    const int k0 = static_cast<int>(rank) * p.slice, depth = min(p.k - k0, p.slice), padded = Tile::padded(depth);

    const int a_row = Tile::a_row(p.slice);
    __half* const a = reinterpret_cast<__half*>(shared);
    __half* const b = a + BM * a_row;
    [[maybe_unused]] __half *const scale = b + Tile::padded(p.slice) * kBRow, *const shift = scale + Tile::padded(p.slice);
    int* const mapped_rows = reinterpret_cast<int*>(NORM ? shift + Tile::padded(p.slice) : scale);
    float* const sums = reinterpret_cast<float*>(mapped_rows + BM);
    // Of the columns: sum(B'), shift B + bias, bias; then shares of sum(B') and shift B.
    float *const column_sums = sums + (kWarpsK > 1 || cluster > 1 || kBridge ? kWarpsK * BM * Tile::kSumRow : 0), *const offsets = column_sums + BN, *const biases = offsets + BN;
    float* const shares = biases + BN;

    // Before the kernel before this one is done: weights, and where the rows are. Rows of B beyond the last are copies of it,
    // which A's zeros meet, and where A is normalized zeros of the scale and the shift.
    {
        constexpr int kStep = kThreads / Tile::kPieces;
        const int piece = tid % Tile::kPieces * 8;
        const bool exists = column + piece < p.n;
        const __half* from = exists ? p.b + k0 * p.n + column + piece : p.b;
        const uint64_t policy = weight_policy(p.once);
#pragma unroll 4
        for (int row = tid / Tile::kPieces; row < padded; row += kStep) copy16(b + row * kBRow + piece, from + (exists ? min(row, depth - 1) * p.n : 0), exists, policy);
        if constexpr (NORM)
            for (int c = 8 * tid; c < padded; c += 8 * kThreads) copy16(scale + c, c < depth ? p.scale + c : p.scale, c < depth), copy16(shift + c, c < depth ? p.shift + c : p.shift, c < depth);
    }
    commit_copies();
    if constexpr (kMerge) {
        if (tid < BM) mapped_rows[tid] = tid >= rows ? -1 : p.quads.corner(static_cast<uint32_t>(row0 + tid));
    } else if (tid < BM) mapped_rows[tid] = tid >= rows ? -1 : static_cast<int>(p.mapped ? p.map.source(static_cast<uint32_t>(row0 + tid)) : row0 + tid);
    prefetch_weights(p.next, p.next_bytes, blockIdx.x * kWarps + warp, gridDim.x * kWarps, weight_policy(p.once));

    float acc[kM][kN][4];
    const bool leads = rank == 0 && warp_k == 0;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
        const int c = column + warp_column + n * 8 + 2 * t;
        const float2 offset = !NORM && leads && c < p.n ? __half22float2(*reinterpret_cast<const __half2*>(p.bias + c)) : float2{};
#pragma unroll
        for (int m = 0; m < kM; ++m) acc[m][n][0] = acc[m][n][2] = offset.x, acc[m][n][1] = acc[m][n][3] = offset.y;
    }
    [[maybe_unused]] const float column_bias = NORM && tid < BN && column + tid < p.n ? __half2float(p.bias[column + tid]) : 0.f;
    if constexpr (NORM) {
        constexpr int kGroups = BN / kFoldColumns;
        const int c = warp % kGroups * kFoldColumns, share = warp / kGroups;
        wait_copies<0>();
        __syncthreads();
        fold_norm(b + c, kBRow, scale, shift, 16 * share, padded, 16 * Tile::kShares, shares + 2 * share * BN + c, shares + (2 * share + 1) * BN + c);
    }
    [[maybe_unused]] auto sum_columns = [&] {
        __syncthreads();
        if (tid >= BN) return;
        float sum = 0, shifted = column_bias;
#pragma unroll
        for (int i = 0; i < Tile::kShares; ++i) sum += shares[2 * i * BN + tid], shifted += shares[(2 * i + 1) * BN + tid];
        column_sums[tid] = sum, offsets[tid] = shifted, biases[tid] = column_bias;
    };
    // A bridge's cluster writes to where the shares are.
    if constexpr (kBridge) sum_columns();
    if (kBridge || cluster > 1) cluster_arrive();
    if constexpr (!NORM) __syncthreads();
    // Where this lane's rows of the output are, in elements; < 0: nowhere.
    const int own_column = column + warp_column + 8 * t;
    int64_t own_rows[kM][2];
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = warp_row + m * 16 + h * 8 + g;
            const int64_t to = NORM ? (r < rows ? row0 + r : -1) : mapped_rows[r];
            own_rows[m][h] = to < 0 || own_column >= p.n ? -1 : to * p.n + own_column;
        }

    // What is added, in 16-byte pieces: a lane's pair of columns is exchanged at the end.
    uint32_t start[kM][2][4];
    const bool adds = !NORM && leads && p.added;
    {
        // A warp copies whole rows, in parts of as many pieces as lanes; from the fourth part on they are one. Rows past the end
        // are copies of the last, those of a window's padding zeros.
        constexpr int kPart = 8 * 32;
        wait_for_previous();
#pragma unroll 1
        for (int part = 0; part < kParts; ++part) {
            const int begin = part * kPart, end = part + 1 < kParts ? min(begin + kPart, padded) : padded;
#pragma unroll 1
            for (int c = begin + 8 * lane; c < end; c += kPart) {
                int block = 0;
                if constexpr (kMerge) block = p.quads.block(c);
#pragma unroll 4
                for (int row = warp; row < BM; row += kWarps) {
                    const int64_t from = NORM ? int64_t{mapped_rows[row]} : row0 + min(row, rows - 1);
                    bool exists = c < depth && from >= 0;
                    int64_t merged = 0;
                    if constexpr (kMerge) exists = exists && p.quads.has(mapped_rows[row], block), merged = p.quads.element(mapped_rows[row], block, c);
                    const __half* at = p.a + (exists ? kMerge ? merged : from * p.k + k0 + c : 0);
                    if (NORM && p.a2) {
                        Pack<__half, 8> x;
                        if (exists) x.raw = *reinterpret_cast<const uint4*>(at), add_packs<__half, 8>(x, Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.a2 + (kMerge ? merged : from * p.k + c))));
                        *reinterpret_cast<uint4*>(a + row * a_row + c) = x.raw;
                    } else {
                        copy16(a + row * a_row + c, at, exists);
                    }
                }
            }
            commit_copies();
        }
        if (adds) {
#pragma unroll
            for (int m = 0; m < kM; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    Pack<__half, 8> s;
                    if (own_rows[m][h] >= 0) s.raw = *reinterpret_cast<const uint4*>(p.added + own_rows[m][h]);
                    if (p.added2 && own_rows[m][h] >= 0) add_packs<__half, 8>(s, Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.added2 + own_rows[m][h])));
                    start[m][h][0] = s.raw.x, start[m][h][1] = s.raw.y, start[m][h][2] = s.raw.z, start[m][h][3] = s.raw.w;
                }
        }
    }

    if constexpr (NORM && !kBridge) sum_columns();  // while the rows are on their way

    // Row g times ones is in element 0, row g + 8 in element 2; rows times themselves are on the diagonals.
    float row_sum[NORM ? kM : 1][4] = {}, row_square[NORM ? kM : 1][2][4] = {};
    {
        const __half* a_at = a + (warp_row + lane % 16) * a_row + lane / 16 * 8 + warp_k * 16;
        const __half* b_at = b + (lane % 16 + warp_k * 16) * kBRow + warp_column + lane / 16 * 8;
        constexpr int kStep = 16 * kWarpsK;
        int k = warp_k * 16;
        auto load = [&](uint32_t (&x)[kM][4], uint32_t (&y)[kN][2]) {
#pragma unroll
            for (int m = 0; m < kM; ++m) load_matrices4(x[m], a_at + m * 16 * a_row);
#pragma unroll
            for (int n = 0; n < kN; n += 2) load_transposed4(y[n][0], y[n][1], y[n + 1][0], y[n + 1][1], b_at + n * 8);
            a_at += kStep, b_at += kStep * kBRow;
        };
        auto multiply_all = [&](const uint32_t (&x)[kM][4], const uint32_t (&y)[kN][2]) {
#pragma unroll
            for (int m = 0; m < kM; ++m)
#pragma unroll
                for (int n = 0; n < kN; ++n) multiply(acc[m][n], x[m], y[n]);
            if constexpr (NORM) {
                constexpr uint32_t kOnes[2] = {0x3c003c00u, 0x3c003c00u};
#pragma unroll
                for (int m = 0; m < kM; ++m) {
                    const uint32_t low[2] = {x[m][0], x[m][2]}, high[2] = {x[m][1], x[m][3]};
                    multiply(row_sum[m], x[m], kOnes), multiply(row_square[m][0], x[m], low), multiply(row_square[m][1], x[m], high);
                }
            }
        };
        // The next step's operands are asked for before this step's are used.
        uint32_t x[2][kM][4], y[2][kN][2];
#pragma unroll 1
        for (int part = 0; part < kParts && part * 256 < padded; ++part) {
            const int end = part + 1 < kParts ? min(padded, (part + 1) * 256) : padded;
            if (part == 0) wait_copies<3>();
            else if (part == 1) wait_copies<2>();
            else if (part == 2) wait_copies<1>();
            else wait_copies<0>();
            __syncthreads();
            if (k >= end) continue;
            load(x[0], y[0]);
#pragma unroll 1
            while (true) {
                if (k + kStep < end) load(x[1], y[1]);
                multiply_all(x[0], y[0]);
                if ((k += kStep) >= end) break;
                if (k + kStep < end) load(x[0], y[0]);
                multiply_all(x[1], y[1]);
                if ((k += kStep) >= end) break;
            }
        }
    }

    if (adds) {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                exchange_tiles(start[m][h], t);
#pragma unroll
                for (int n = 0; n < kN; ++n) {
                    const float2 s = __half22float2(*reinterpret_cast<const __half2*>(&start[m][h][n]));
                    acc[m][n][2 * h] += s.x, acc[m][n][2 * h + 1] += s.y;
                }
            }
    }
    auto square_of = [&](int m, int h) {
        const float(&d)[4] = row_square[NORM ? m : 0][h];
        return __shfl_sync(0xffffffffu, g % 2 ? d[2 * h + 1] : d[2 * h], (lane & ~3) | g / 2);
    };
    // Mean and factor of a row of the block.
    auto statistics = [&](int r, float sum, float square) {
        const float mean = sum / static_cast<float>(p.k);
        float variance = fmaf(-mean, mean, square / static_cast<float>(p.k));
        if (mean * mean > 64.f * variance) variance = exact_variance(a + r * a_row, p.k, mean);
        return float2{mean, rsqrtf(variance + p.epsilon)};
    };
    // The end of a normalized row's product, columns [c, c + N) of the block.
    auto end_norm = [&](auto& v, int r, float2 of, int c) {
#pragma unroll
        for (int e = 0; e < static_cast<int>(sizeof(v) / sizeof(v[0])); ++e)
            v[e] = mapped_rows[r] < 0 ? biases[c + e] : fmaf(v[e] - of.x * column_sums[c + e], of.y, offsets[c + e]);
    };
    if (!kBridge && kWarpsK == 1 && (NORM || cluster == 1)) {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float v[2 * kN];
                uint32_t r[kN];
#pragma unroll
                for (int n = 0; n < kN; ++n) v[2 * n] = acc[m][n][2 * h], v[2 * n + 1] = acc[m][n][2 * h + 1];
                if constexpr (NORM) {
                    const int row = warp_row + m * 16 + h * 8 + g;
                    const float2 of = statistics(row, row_sum[m][2 * h], square_of(m, h));
#pragma unroll
                    for (int n = 0; n < kN; ++n) {
                        float pair[2] = {v[2 * n], v[2 * n + 1]};
                        end_norm(pair, row, of, warp_column + n * 8 + 2 * t);
                        v[2 * n] = pair[0], v[2 * n + 1] = pair[1];
                    }
                }
                activate(v, p.activation);
#pragma unroll
                for (int n = 0; n < kN; ++n) r[n] = pack_halves(v[2 * n], v[2 * n + 1]);
                exchange_tiles(r, t);
                if (own_rows[m][h] >= 0) *reinterpret_cast<uint4*>(p.out + own_rows[m][h]) = make_uint4(r[0], r[1], r[2], r[3]);
            }
    } else {
        // sums[sender][row of the owner][column]
        constexpr int kSumRow = Tile::kSumRow;
        const int share_log2 = __ffs(BM) - 1 - cluster_log2, share = 1 << share_log2, sender = static_cast<int>(rank) * kWarpsK + warp_k;
        if (cluster > 1) cluster_wait();  // all blocks are there to be written to
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = warp_row + m * 16 + h * 8 + g;
                uint32_t to = shared_address(sums + ((sender << share_log2) + (r & (share - 1))) * kSumRow + warp_column + 2 * t);
                if (cluster > 1) to = remote(to, r >> share_log2);
#pragma unroll
                for (int n = 0; n < kN; ++n) store_remote(to + n * 32, acc[m][n][2 * h], acc[m][n][2 * h + 1]);
                if constexpr (NORM) {
                    const float square = square_of(m, h);
                    if (warp_column == 0 && t == 0) store_remote(to + BN * 4, row_sum[m][2 * h], square);
                }
            }
        if (cluster > 1) cluster_arrive(), cluster_wait();
        else __syncthreads();
#pragma unroll 1
        for (int item = tid; item < share * (BN / 4); item += kThreads) {
            const int r = item / (BN / 4), c = item % (BN / 4) * 4, owned = (static_cast<int>(rank) << share_log2) + r;
            const int64_t to = NORM ? (owned < rows ? row0 + owned : -1) : mapped_rows[owned];
            if (to < 0 || column + c >= p.n) continue;
            const float* from = sums + r * kSumRow + c;
            float4 sum = *reinterpret_cast<const float4*>(from);
#pragma unroll 4
            for (int z = 1; z < cluster * kWarpsK; ++z) {
                const float4 v = *reinterpret_cast<const float4*>(from + (z << share_log2) * kSumRow);
                sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
            }
            float v[4] = {sum.x, sum.y, sum.z, sum.w};
            if constexpr (NORM) {
                float row = 0, square = 0;
#pragma unroll
                for (int z = 0; z < kWarpsK; ++z) row += sums[(z * BM + r) * kSumRow + BN], square += sums[(z * BM + r) * kSumRow + BN + 1];
                end_norm(v, r, statistics(r, row, square), c);
            }
            if constexpr (kBridge) {
                *reinterpret_cast<float4*>(sums + r * kSumRow + c) = make_float4(v[0], v[1], v[2], v[3]);
                continue;
            }
            activate(v, p.activation);
            *reinterpret_cast<uint2*>(p.out + to * p.n + column + c) = make_uint2(pack_halves(v[0], v[1]), pack_halves(v[2], v[3]));
        }
        if constexpr (kBridge) end_bridge<BM, BN, kThreads>(p.end, sums, kSumRow, reinterpret_cast<RowMoments*>(shares), rows, row0, column, column_tile, p.by_columns.divisor, blockIdx.x, gridDim.x);
    }
#endif
}

}  // namespace trt_opt
