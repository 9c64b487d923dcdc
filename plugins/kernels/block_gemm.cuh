// One product of a transformer's block, with what is before and after it: out = act(A B + bias) + added, where A may be the
// layer norm of its rows. Made for few rows, where the time is latency: launched ahead of the end of the kernel before
// it, a block of threads fetches its first weights before it waits for that kernel.
//
// A block has BM rows and one or several tiles of BN columns after each other. The contracted index goes in chunks through a
// ring in shared memory, and may be cut twice: over the blocks of a cluster, and over the warps of a block in steps of
// 16; the partial sums then meet in shared memory of the block that owns the row.
#pragma once

#include "gelu.cuh"
#include "mma.cuh"
#include "normalize_rows.cuh"
#include "ptx.cuh"
#include "window_map.cuh"

namespace trt_opt {

struct BlockGemmArgs {
    const __half* a;               // [rows, k]
    const __half* b;               // [k, n]
    const __half* bias;            // [n]
    const __half *added, *added2;  // like out, or null
    __half* out;                   // [rows, n]
    NormArgs norm;                 // of A's rows, by the instances that normalize
    int64_t rows;
    int k, n;
    int slice;                     // contracted elements of a block; a multiple of 64, or k
    int cluster_log2;              // of the blocks of a cluster
    int sequence;                  // column tiles of a block
    int slots;                     // of the ring
    FastDiv by_groups;             // blocks (or clusters) of the same rows
    Activation activation;
    bool mapped;                   // windows are cut: row r of A (where it is normalized) or of the output is map.source(r)
    bool prefetch;                 // into the second-level cache, what the ring does not hold, and `next`
    const unsigned char* next;     // what the kernel after this one reads
    bool early;
    uint32_t next_lines;           // of 128 bytes
    WindowMap map;
};

template <int BM, int BN, int WARPS_M, int WARPS_N, int WARPS_K, int STAGES> struct GemmTile {
    static constexpr int kRows = BM, kColumns = BN, kWarpsM = WARPS_M, kWarpsN = WARPS_N, kWarpsK = WARPS_K, kStages = STAGES;
    static constexpr int kWarps = WARPS_M * WARPS_N * WARPS_K, kThreads = 32 * kWarps;
    static constexpr int kM = BM / 16 / WARPS_M;  // 16-row tiles of a warp
    static constexpr int kN = 4;                  // 8-column tiles of a warp: what four lanes exchange
    static constexpr int kDepth = 64;             // contracted elements of a chunk
    static constexpr int kARow = kDepth + 8, kBRow = BN + 8;  // an odd number of 16-byte pieces: ldmatrix meets no bank twice
    static constexpr int kSumRow = BN + 8;        // floats; 8 modulo 32, so that the pairs of a quarter-warp meet no bank twice
    static_assert(BM == 16 * WARPS_M * kM && BN == 32 * WARPS_N && kDepth % (16 * WARPS_K) == 0);

    __host__ __device__ static constexpr int slot(bool norm) { return (kDepth * kBRow + (norm ? 0 : BM * kARow)) * 2; }
    __host__ __device__ static int norm_row(int k) { return (k + 15) / 16 * 16 + 8; }
    static int shared_bytes(bool norm, int k, int slots, int cluster) {
        return slots * slot(norm) + (norm ? (BM * norm_row(k) + 2 * k) * 2 : 0) + (WARPS_K > 1 || cluster > 1 ? WARPS_K * BM * kSumRow * 4 : 0);
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
#if __CUDA_ARCH__ >= 800
    using namespace ptx;
    constexpr int BM = Tile::kRows, BN = Tile::kColumns, kThreads = Tile::kThreads, kStages = Tile::kStages, kDepth = Tile::kDepth;
    constexpr int kM = Tile::kM, kN = Tile::kN, kARow = Tile::kARow, kBRow = Tile::kBRow, kWarpsK = Tile::kWarpsK;

    if (p.early) let_next_start();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int warp_k = warp / (Tile::kWarpsM * Tile::kWarpsN);
    const int warp_row = warp / Tile::kWarpsN % Tile::kWarpsM * (16 * kM), warp_column = warp % Tile::kWarpsN * (8 * kN);
    const int cluster = 1 << p.cluster_log2;
    const uint32_t rank = blockIdx.x & (cluster - 1);
    uint32_t group;
    const int64_t row0 = int64_t{p.by_groups.divmod(blockIdx.x >> p.cluster_log2, group)} * BM;
    const int rows = static_cast<int>(min(int64_t{BM}, p.rows - row0));
    const int column0 = static_cast<int>(group) * p.sequence * BN;
    const int k0 = static_cast<int>(rank) * p.slice, k_end = min(p.k, k0 + p.slice);
    const int chunks = (k_end - k0 + kDepth - 1) / kDepth, total = chunks * min(p.sequence, (p.n - column0 + BN - 1) / BN);

    __half* const ring = reinterpret_cast<__half*>(shared);
    __half* const normal = reinterpret_cast<__half*>(shared + p.slots * Tile::slot(NORM));
    const int norm_row = NORM ? Tile::norm_row(p.k) : 0;
    __half *const scale = normal + (NORM ? BM * norm_row : 0), *const shift = scale + (NORM ? p.k : 0);
    float* const sums = reinterpret_cast<float*>(shift + (NORM ? p.k : 0));
    auto slot_of_b = [&](int slot) { return ring + slot * (Tile::slot(NORM) / 2) + (NORM ? 0 : BM * kARow); };
    auto slot_of_a = [&](int slot) { return ring + slot * (Tile::slot(NORM) / 2); };

    // Rows of B beyond the last are copies of it, which A's zeros meet.
    auto fetch_b = [&](int slot, int column, int k) {
        const int last = k_end - 1 - k;
        __half* to = slot_of_b(slot);
#pragma unroll
        for (int i = tid; i < kDepth * (BN / 8); i += kThreads) {
            const int row = i / (BN / 8), piece = i % (BN / 8) * 8;
            const bool exists = column + piece < p.n;
            if (row <= (last | 15)) copy16(to + row * kBRow + piece, exists ? p.b + (k + min(row, last)) * p.n + column + piece : p.b, exists);
        }
    };
    auto fetch_a = [&](int slot, int k) {
        __half* to = slot_of_a(slot);
#pragma unroll
        for (int i = tid; i < BM * (kDepth / 8); i += kThreads) {
            const int row = i / (kDepth / 8), piece = i % (kDepth / 8) * 8;
            const bool exists = row < rows && k + piece < k_end;
            copy16(to + row * kARow + piece, exists ? p.a + (row0 + row) * p.k + k + piece : p.a, exists);
        }
    };

    // What is known before the kernel before this one is done: weights.
    int fetched = 0, fetch_column = column0, fetch_k = k0, fetch_slot = 0;
    auto fetch_next = [&] {
        if (fetch_k += kDepth; fetch_k >= k_end) fetch_k = k0, fetch_column += BN;
        if (++fetch_slot == kStages) fetch_slot = 0;
        ++fetched;
    };
#pragma unroll 1
    while (fetched < kStages - 1 && fetched < total) fetch_b(fetch_slot, fetch_column, fetch_k), fetch_next();
    if constexpr (NORM) {
#pragma unroll 1
        for (int i = 8 * tid; i < p.k; i += 8 * kThreads) copy16(scale + i, p.norm.scale + i, true), copy16(shift + i, p.norm.bias + i, true);
    }
    commit_copies();
    if (p.prefetch) {
        constexpr int kLines = (BN * 2 + 127) / 128;
        if (total > fetched && chunks > fetched) {
#pragma unroll 1
            for (int i = tid; i < (k_end - fetch_k) * kLines; i += kThreads) {
                const int column = fetch_column + i % kLines * 64;
                if (column < p.n) prefetch_l2(p.b + (fetch_k + i / kLines) * p.n + column);
            }
        }
#pragma unroll 1
        for (uint32_t i = blockIdx.x * kThreads + tid; i < p.next_lines; i += gridDim.x * kThreads) prefetch_l2(p.next + size_t{i} * 128);
    }
    if (cluster > 1) cluster_arrive();
    wait_for_previous();
    if (!p.early) let_next_start();

    if constexpr (NORM) {
        fetch_rows<BM, Tile::kWarps>(normal, norm_row, p.a, p.norm, p.k, row0, rows, p.mapped ? &p.map : nullptr, lane, warp);
        commit_copies();
    } else {
        int k = k0;
#pragma unroll 1
        for (int i = 0; i < kStages - 1; ++i) {
            if (i < fetched) {
                fetch_a(i, k);
                if (k += kDepth; k >= k_end) k = k0;
            }
            commit_copies();
        }
    }

    float acc[kM][kN][4];
    const bool leads = rank == 0 && warp_k == 0;
    auto row_out = [&](int r) { return r >= rows ? int64_t{-1} : !NORM && p.mapped ? p.map.source(static_cast<uint32_t>(row0 + r)) : row0 + r; };
    // The sums begin with what is added to them.
    auto begin = [&](int column) {
        uint32_t start[kM][2][4];
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int c = column + warp_column + 8 * t;
                const int64_t r = leads && p.added && c < p.n ? row_out(warp_row + m * 16 + h * 8 + g) : -1;
                Pack<__half, 8> s;
                if (r >= 0) {
                    s.raw = *reinterpret_cast<const uint4*>(p.added + r * p.n + c);
                    if (p.added2) add_packs<__half, 8>(s, Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.added2 + r * p.n + c)));
                }
                start[m][h][0] = s.raw.x, start[m][h][1] = s.raw.y, start[m][h][2] = s.raw.z, start[m][h][3] = s.raw.w;
            }
#pragma unroll
        for (int n = 0; n < kN; ++n) {
            const int c = column + warp_column + n * 8 + 2 * t;
            const float2 offset = leads && c < p.n ? __half22float2(*reinterpret_cast<const __half2*>(p.bias + c)) : float2{};
#pragma unroll
            for (int m = 0; m < kM; ++m) acc[m][n][0] = acc[m][n][2] = offset.x, acc[m][n][1] = acc[m][n][3] = offset.y;
        }
        if (!leads || !p.added) return;
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
    };
    begin(column0);

    if constexpr (NORM) {
        wait_copies<0>();
        __syncthreads();
        normalize_rows<BM, Tile::kWarps>(normal, norm_row, p.norm, scale, shift, p.k, row0, rows, p.mapped ? &p.map : nullptr, lane, warp);
        __syncthreads();
    }

    int column = column0, chunk = 0, slot = 0;
#pragma unroll 1
    for (int i = 0; i < total; ++i) {
        // Normalized rows were waited for after all of the ring.
        if (!NORM || total >= kStages) {
            wait_copies<kStages - 2>();
            __syncthreads();
            if (fetched < total) {
                fetch_b(fetch_slot, fetch_column, fetch_k);
                if constexpr (!NORM) fetch_a(fetch_slot, fetch_k);
                fetch_next();
            }
            commit_copies();
        }
        const int deep = k_end - k0 - chunk * kDepth;
        const int a_row = NORM ? norm_row : kARow;
        const __half* a_at = (NORM ? normal + chunk * kDepth : slot_of_a(slot)) + (warp_row + lane % 16) * a_row + lane / 16 * 8;
        const __half* b_at = slot_of_b(slot) + lane % 16 * kBRow + warp_column + lane / 16 * 8;
        // The next step's operands are asked for before this step's are used.
        uint32_t a[2][kM][4], b[2][kN][2];
        auto load = [&](int k, int to) {
#pragma unroll
            for (int m = 0; m < kM; ++m) load_matrices4(a[to][m], a_at + m * 16 * a_row + k);
#pragma unroll
            for (int n = 0; n < kN; n += 2) load_transposed4(b[to][n][0], b[to][n][1], b[to][n + 1][0], b[to][n + 1][1], b_at + k * kBRow + n * 8);
        };
        if (warp_k * 16 < deep) load(warp_k * 16, 0);
#pragma unroll
        for (int step = 0; step < kDepth / 16 / kWarpsK; ++step) {
            const int k = (step * kWarpsK + warp_k) * 16;
            if (k >= deep) break;
            if (step + 1 < kDepth / 16 / kWarpsK && k + 16 * kWarpsK < deep) load(k + 16 * kWarpsK, (step + 1) % 2);
#pragma unroll
            for (int m = 0; m < kM; ++m)
#pragma unroll
                for (int n = 0; n < kN; ++n) multiply(acc[m][n], a[step % 2][m], b[step % 2][n]);
        }
        if (++slot == kStages) slot = 0;
        if (++chunk < chunks) continue;
        chunk = 0;

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
                    const int c = column + warp_column + 8 * t;
                    const int64_t to = row_out(warp_row + m * 16 + h * 8 + g);
                    if (to >= 0 && c < p.n) *reinterpret_cast<uint4*>(p.out + to * p.n + c) = make_uint4(r[0], r[1], r[2], r[3]);
                }
        } else {
            // sums[sender][row of the owner][column]
            constexpr int kSumRow = Tile::kSumRow;
            const int share_log2 = __ffs(BM) - 1 - p.cluster_log2, share = 1 << share_log2, sender = static_cast<int>(rank) * kWarpsK + warp_k;
            if (cluster > 1) cluster_wait();               // all blocks are there to be written to
            else if (column > column0) __syncthreads();    // the last tile's sums have been read
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
                const int r = item / (BN / 4), c = item % (BN / 4) * 4;
                const int64_t to = row_out((static_cast<int>(rank) << share_log2) + r);
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
        column += BN;
        if (i + 1 < total) begin(column);
    }
#endif
}

}  // namespace trt_opt
