// One product of a transformer's block, with what is before and after it: out = act(A B + bias) or A B + bias + added, where A
// may be the layer norm of its rows. Made for few rows, where the time is latency.
//
// A block of threads has BM rows, BN columns and all of the contracted index, or a slice of it that the blocks of a cluster
// share. Launched ahead of the end of the kernel before it, it fetches its weights, whole, and finds its rows before it
// waits for that kernel: afterwards there are only the rows to be fetched. The warps of a block may share the
// contracted index too, in steps of 16; partial sums meet in shared memory of the block that owns the row.
#pragma once

#include "gelu.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "window_map.cuh"

namespace trt_opt {

constexpr int kGemmNormPacks = 4;                         // of 8 elements of a row, that a lane normalizes
constexpr int kGemmMaxNorm = kGemmNormPacks * 32 * 8;     // elements of a normalized row

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
    int lanes_log2;                // of the lanes that normalize a row
    float epsilon;
    FastDiv by_columns;            // tiles of the same rows
    Activation activation;
    bool mapped;                   // windows are cut: row r of A (where it is normalized) or of the output is map.source(r)
    const unsigned char* next;     // what the kernel after this one reads, into the second-level cache
    uint32_t next_lines;           // of 128 bytes
    WindowMap map;
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
    static_assert(BM == 16 * WARPS_M * kM && BN == 32 * WARPS_N && kThreads % kPieces == 0 && BM <= kThreads);

    __host__ __device__ static int padded(int slice) { return (slice + 15) / 16 * 16; }
    __host__ __device__ static int a_row(int slice) { return padded(slice) + 8; }
    static int shared_bytes(bool norm, int k, int slice, int cluster) {
        return 2 * (BM * a_row(slice) + padded(slice) * kBRow + (norm ? 2 * k : 0)) + 4 * BM + (WARPS_K > 1 || cluster > 1 ? WARPS_K * BM * kSumRow * 4 : 0);
    }
};

// r[i]: this lane's two columns of tile i; becomes pair i of the tile that has the lane's number among its four. Its own inverse.
__device__ __forceinline__ void exchange_tiles(uint32_t (&r)[4], int t) {
    uint32_t a = t & 1 ? r[0] : r[1], b = t & 1 ? r[2] : r[3];
    a = __shfl_xor_sync(0xffffffffu, a, 1), b = __shfl_xor_sync(0xffffffffu, b, 1);
    if (t & 1) r[0] = a, r[2] = b;
    else r[1] = a, r[3] = b;
    a = t & 2 ? r[0] : r[2], b = t & 2 ? r[1] : r[3];
    a = __shfl_xor_sync(0xffffffffu, a, 2), b = __shfl_xor_sync(0xffffffffu, b, 2);
    if (t & 2) r[0] = a, r[1] = b;
    else r[2] = a, r[3] = b;
}

template <class Tile, bool NORM> __global__ void __launch_bounds__(Tile::kThreads, Tile::kThreads <= 256 ? 2 : 1) block_gemm_kernel(const __grid_constant__ BlockGemmArgs p) {
#if __CUDA_ARCH__ >= 900
    using namespace ptx;
    constexpr int BM = Tile::kRows, BN = Tile::kColumns, kThreads = Tile::kThreads, kWarps = Tile::kWarps;
    constexpr int kM = Tile::kM, kN = Tile::kN, kBRow = Tile::kBRow, kWarpsK = Tile::kWarpsK, kParts = Tile::kParts;

    let_next_start();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int warp_k = warp / (Tile::kWarpsM * Tile::kWarpsN);
    const int warp_row = warp / Tile::kWarpsN % Tile::kWarpsM * (16 * kM), warp_column = warp % Tile::kWarpsN * (8 * kN);
    const int cluster = 1 << p.cluster_log2;
    const uint32_t rank = blockIdx.x & (cluster - 1);
    uint32_t column_tile;
    const int64_t row0 = int64_t{p.by_columns.divmod(blockIdx.x >> p.cluster_log2, column_tile)} * BM;
    const int rows = static_cast<int>(min(int64_t{BM}, p.rows - row0)), column = static_cast<int>(column_tile) * BN;
    const int k0 = static_cast<int>(rank) * p.slice, depth = min(p.k - k0, p.slice), padded = Tile::padded(depth);

    const int a_row = Tile::a_row(p.slice);
    __half* const a = reinterpret_cast<__half*>(shared);
    __half* const b = a + BM * a_row;
    __half *const scale = b + Tile::padded(p.slice) * kBRow, *const shift = scale + (NORM ? p.k : 0);
    int* const mapped_rows = reinterpret_cast<int*>(shift + (NORM ? p.k : 0));
    float* const sums = reinterpret_cast<float*>(mapped_rows + BM);

    // Before the kernel before this one is done: weights, and where the rows are. Rows of B beyond the last are copies of it,
    // which A's zeros meet.
    {
        constexpr int kStep = kThreads / Tile::kPieces;
        const int piece = tid % Tile::kPieces * 8;
        const bool exists = column + piece < p.n;
        const __half* from = exists ? p.b + k0 * p.n + column + piece : p.b;
#pragma unroll 4
        for (int row = tid / Tile::kPieces; row < padded; row += kStep) copy16(b + row * kBRow + piece, from + (exists ? min(row, depth - 1) * p.n : 0), exists);
    }
    if constexpr (NORM) {
#pragma unroll 1
        for (int i = 8 * tid; i < p.k; i += 8 * kThreads) copy16(scale + i, p.scale + i, true), copy16(shift + i, p.shift + i, true);
    }
    commit_copies();
    if (tid < BM) mapped_rows[tid] = tid >= rows ? -1 : static_cast<int>(p.mapped ? p.map.source(static_cast<uint32_t>(row0 + tid)) : row0 + tid);
#pragma unroll 1
    for (uint32_t i = blockIdx.x * kThreads + tid; i < p.next_lines; i += gridDim.x * kThreads) prefetch_l2(p.next + size_t{i} * 128);

    // The sums begin with what is added to them.
    float acc[kM][kN][4];
    const bool leads = rank == 0 && warp_k == 0;
#pragma unroll
    for (int n = 0; n < kN; ++n) {
        const int c = column + warp_column + n * 8 + 2 * t;
        const float2 offset = leads && c < p.n ? __half22float2(*reinterpret_cast<const __half2*>(p.bias + c)) : float2{};
#pragma unroll
        for (int m = 0; m < kM; ++m) acc[m][n][0] = acc[m][n][2] = offset.x, acc[m][n][1] = acc[m][n][3] = offset.y;
    }
    if (cluster > 1) cluster_arrive();
    __syncthreads();
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

    if constexpr (NORM) {
        // Lanes take rows in groups, two rows each at a time. A lane has the same elements of all of its rows.
        constexpr int kAtOnce = 2;
        const int lanes = 1 << p.lanes_log2, mine = lane & (lanes - 1), together = 32 >> p.lanes_log2;
        const int packs = p.k / 8;
        int r[kAtOnce], from[kAtOnce];
        auto locate = [&](int first) {
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q) {
                r[q] = first + q * kWarps * together + (lane >> p.lanes_log2);
                from[q] = r[q] < BM ? mapped_rows[r[q]] : -1;
            }
        };
        int first = warp * together;
        locate(first);
        const float inverse = 1.f / static_cast<float>(p.k);
        wait_for_previous();
#pragma unroll 1
        while (first < BM) {
            Pack<__half, 8> x[kAtOnce][kGemmNormPacks];
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q)
#pragma unroll
                for (int i = 0; i < kGemmNormPacks; ++i) {
                    const int j = i * lanes + mine;
                    if (from[q] >= 0 && j < packs) x[q][i].raw = *(reinterpret_cast<const uint4*>(p.a + int64_t{from[q]} * p.k) + j);
                }
            if (p.a2) {
#pragma unroll
                for (int q = 0; q < kAtOnce; ++q)
#pragma unroll
                    for (int i = 0; i < kGemmNormPacks; ++i) {
                        const int j = i * lanes + mine;
                        if (from[q] >= 0 && j < packs) add_packs<__half, 8>(x[q][i], Pack<__half, 8>(*(reinterpret_cast<const uint4*>(p.a2 + int64_t{from[q]} * p.k) + j)));
                    }
            }
            if (first == warp * together) wait_copies<0>(), __syncthreads();  // scale and bias
            float sum[kAtOnce], square[kAtOnce];
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q) {
                sum[q] = square[q] = 0;
#pragma unroll
                for (int i = 0; i < kGemmNormPacks; ++i) {
                    if (i * lanes >= packs) break;
                    float f[8];
                    x[q][i].floats(f);
                    sum[q] += ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
                }
            }
#pragma unroll 1
            for (int step = lanes / 2; step > 0; step /= 2)
#pragma unroll
                for (int q = 0; q < kAtOnce; ++q) sum[q] += __shfl_xor_sync(0xffffffffu, sum[q], step);
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q) {
                sum[q] *= inverse;
#pragma unroll
                for (int i = 0; i < kGemmNormPacks; ++i) {
                    x[q][i].forget_floats();
                    if (i * lanes >= packs) break;
                    if (i * lanes + mine >= packs) continue;
                    float f[8];
                    x[q][i].floats(f);
#pragma unroll
                    for (int e = 0; e < 8; ++e) f[e] -= sum[q], square[q] = fmaf(f[e], f[e], square[q]);
                }
            }
#pragma unroll 1
            for (int step = lanes / 2; step > 0; step /= 2)
#pragma unroll
                for (int q = 0; q < kAtOnce; ++q) square[q] += __shfl_xor_sync(0xffffffffu, square[q], step);
#pragma unroll
            for (int q = 0; q < kAtOnce; ++q) square[q] = rsqrtf(fmaf(square[q], inverse, p.epsilon));
#pragma unroll
            for (int i = 0; i < kGemmNormPacks; ++i) {
                if (i * lanes >= packs) break;
                const int j = i * lanes + mine;
                if (j >= packs) continue;
                const int c = 8 * j - k0;
                if (c < 0 || c >= depth) continue;
                float w[8], offset[8];
                Pack<__half, 8>(*reinterpret_cast<const uint4*>(scale + 8 * j)).floats(w);
                Pack<__half, 8>(*reinterpret_cast<const uint4*>(shift + 8 * j)).floats(offset);
#pragma unroll
                for (int q = 0; q < kAtOnce; ++q) {
                    if (r[q] >= BM) continue;
                    x[q][i].forget_floats();
                    float f[8];
                    x[q][i].floats(f);
#pragma unroll
                    for (int e = 0; e < 8; ++e) f[e] = fmaf((f[e] - sum[q]) * square[q], w[e], offset[e]);
                    Pack<__half, 8> y = Pack<__half, 8>::of(f);
                    if (from[q] < 0) y = {};  // padding of a window
                    *reinterpret_cast<uint4*>(a + r[q] * a_row + c) = y.raw;
                }
            }
            if (depth % 16 != 0 && mine == 0) {
#pragma unroll
                for (int q = 0; q < kAtOnce; ++q)
                    if (r[q] < BM) *reinterpret_cast<uint4*>(a + r[q] * a_row + depth) = uint4{};
            }
            first += kAtOnce * kWarps * together;
            if (first < BM) locate(first);
        }
        __syncthreads();
    } else {
        // A warp copies whole rows; those past the end are copies of the last.
        constexpr int kPart = 8 * 32;  // elements that a warp copies at once
        const __half* from = p.a + row0 * p.k + k0 + 8 * lane;
        wait_for_previous();
        // Parts are as many pieces of rows as lanes; from the fourth on they are one.
#pragma unroll 1
        for (int part = 0; part < kParts; ++part) {
            const int begin = part * kPart, end = part + 1 < kParts ? min(begin + kPart, padded) : padded;
#pragma unroll 1
            for (int c = begin + 8 * lane; c < end; c += kPart) {
#pragma unroll 4
                for (int row = warp; row < BM; row += kWarps) copy16(a + row * a_row + c, c < depth ? from + min(row, rows - 1) * p.k + (c - 8 * lane) : p.a, c < depth);
            }
            commit_copies();
        }
        if (leads && p.added) {
            uint32_t start[kM][2][4];
#pragma unroll
            for (int m = 0; m < kM; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    Pack<__half, 8> s;
                    if (own_rows[m][h] >= 0) s.raw = *reinterpret_cast<const uint4*>(p.added + own_rows[m][h]);
                    if (p.added2 && own_rows[m][h] >= 0) add_packs<__half, 8>(s, Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.added2 + own_rows[m][h])));
                    start[m][h][0] = s.raw.x, start[m][h][1] = s.raw.y, start[m][h][2] = s.raw.z, start[m][h][3] = s.raw.w;
                }
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
    }

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
        };
        // The next step's operands are asked for before this step's are used.
        uint32_t x[2][kM][4], y[2][kN][2];
#pragma unroll 1
        for (int part = 0; part < (NORM ? 1 : kParts); ++part) {
            int end = padded;
            if constexpr (!NORM) {
                if (part + 1 < kParts) end = min(end, (part + 1) * 256);
                if (part * 256 >= padded) break;
                if (part == 0) wait_copies<3>();
                else if (part == 1) wait_copies<2>();
                else if (part == 2) wait_copies<1>();
                else wait_copies<0>();
                __syncthreads();
            }
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

    if (kWarpsK == 1 && cluster == 1) {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float v[2 * kN];
                uint32_t r[kN];
#pragma unroll
                for (int n = 0; n < kN; ++n) v[2 * n] = acc[m][n][2 * h], v[2 * n + 1] = acc[m][n][2 * h + 1];
                activate(v, p.activation);
#pragma unroll
                for (int n = 0; n < kN; ++n) r[n] = pack_halves(v[2 * n], v[2 * n + 1]);
                exchange_tiles(r, t);
                if (own_rows[m][h] >= 0) *reinterpret_cast<uint4*>(p.out + own_rows[m][h]) = make_uint4(r[0], r[1], r[2], r[3]);
            }
    } else {
        // sums[sender][row of the owner][column]
        constexpr int kSumRow = Tile::kSumRow;
        const int share_log2 = __ffs(BM) - 1 - p.cluster_log2, share = 1 << share_log2, sender = static_cast<int>(rank) * kWarpsK + warp_k;
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
            activate(v, p.activation);
            *reinterpret_cast<uint2*>(p.out + to * p.n + column + c) = make_uint2(pack_halves(v[0], v[1]), pack_halves(v[2], v[3]));
        }
    }
#endif
}

}  // namespace trt_opt
