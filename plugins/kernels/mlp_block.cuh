// A transformer's MLP block in one kernel, on the tensor cores.
//
// A block of threads takes BM rows and a slice of the hidden columns: it normalizes its rows into shared memory,
// multiplies by its columns of W1, keeps gelu of that in shared memory, and multiplies by its rows of W2. What the
// slices of the same rows give is summed over the blocks of a cluster through distributed shared memory, and over
// groups of clusters through a workspace and a second kernel. Weights stream through a ring of tiles in shared memory,
// which warps of their own fill, so that no address is computed between two products.
#pragma once

#include <cuda_fp16.h>

#include "common.cuh"
#include "gelu.cuh"
#include "mma.cuh"
#include "ptx.cuh"

namespace trt_opt {

struct MlpArgs {
    const __half *x, *residual, *scale, *bias, *w1, *b1, *w2, *b2;
    __half* y;
    float* partial;    // [groups, rows, channels] where groups > 1
    int64_t rows;
    int channels, hidden;
    int slice;         // hidden columns of a block, a multiple of 16
    int cluster_log2;  // of the blocks of a cluster
    int groups;
    int chunks;        // column tiles of the output that are summed at a time
    int lanes_log2;    // of the lanes that normalize a row
    FastDiv by_span;   // chunks of columns, in fours
    float epsilon;
    bool prefetch;     // the weights, into the second-level cache
};

template <int BM, int BN, int STAGES> struct MlpTile {
    static constexpr int kRows = BM, kColumns = BN, kStages = STAGES;
    static constexpr int kWarpsN = 4, kWarpsM = BM >= 128 ? 4 : BM >= 32 ? 2 : 1;
    static constexpr int kConsumers = 32 * kWarpsM * kWarpsN;  // threads that compute
    static constexpr int kProducers = 128;                     // threads that fetch weights
    static constexpr int kThreads = kConsumers + kProducers;
    static constexpr int kM = BM / 16 / kWarpsM;  // 16-row tiles of a warp
    static constexpr int kN = BN / 8 / kWarpsN;   // 8-column tiles of a warp
    static constexpr int kDepth = 64;             // contracted elements of a weight tile
    static constexpr int kPieces = BN / 8;        // 16-byte pieces of a weight tile's row
    static constexpr int kLead = 8;               // its rows copied at a time: kLead * kPieces <= kProducers
    static_assert(kLead * kPieces <= kProducers);
    // Rows in shared memory are an odd number of 16-byte pieces, so that ldmatrix meets no bank twice.
    static constexpr int kWeightRow = BN + 8;
    static_assert(BN % 32 == 0);
    __host__ __device__ static int normal_row(int channels) { return (channels + 15) / 16 * 16 + 8; }
    // In floats: 8 modulo 32, so that the pairs of a quarter-warp's rows meet no bank twice.
    __host__ __device__ static int partial_row(int chunks) { return chunks * BN + 8; }

    // In bytes. Normalized rows, and later the sums that the cluster's blocks send, take the same place.
    __host__ __device__ static int rows_bytes(int channels, int chunks) {
        const int rows = BM * normal_row(channels) * 2, partial = BM * partial_row(chunks) * 4;
        return rows > partial ? rows : partial;
    }
    __host__ __device__ static int hidden_bytes(int slice) { return BM * (slice + 8) * 2; }
    __host__ __device__ static int vector_bytes(int channels, int slice) { return (3 * channels + slice) * 2; }
    static constexpr int kRing = STAGES * kDepth * kWeightRow * 2;
    static constexpr int kBarriers = (2 * STAGES + 2) * 8;  // a full and a free one for each tile, and the cluster's two
    __host__ __device__ static int shared_bytes(int channels, int slice, int chunks) {
        return rows_bytes(channels, chunks) + hidden_bytes(slice) + vector_bytes(channels, slice) + kRing + kBarriers;
    }
};

namespace mlp {

using namespace ptx;

__device__ __forceinline__ void load_transposed2(uint32_t& a, uint32_t& b, const __half* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(a), "=r"(b) : "r"(shared_address(p)) : "memory");
}

// A barrier of all of the cluster's threads.
__device__ __forceinline__ void cluster_barrier() { cluster_arrive(), cluster_wait(); }
// A barrier of `threads` of the block.
template <int THREADS> __device__ __forceinline__ void barrier_of() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// Barriers in shared memory, which count arrivals (PTX mbarrier).
__device__ __forceinline__ void make_barrier(uint32_t at, int arrivals) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
#endif
}
__device__ __forceinline__ void arrive(uint32_t at) {
#if __CUDA_ARCH__ >= 800
    asm volatile("{.reg .b64 state;\n\tmbarrier.arrive.shared.b64 state, [%0];}" ::"r"(at) : "memory");
#endif
}
// Arrives when this thread's copies so far have landed.
__device__ __forceinline__ void arrive_with_copies(uint32_t at) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(at) : "memory");
#endif
}
// At a barrier of any block of the cluster, after all that this thread knows of has been written.
__device__ __forceinline__ void arrive_remote(uint32_t at) {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.acq_rel.cluster;\n\tmbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(at) : "memory");
#endif
}
// Until the barrier has gone through its phase number `phase` (modulo 2).
template <bool CLUSTER = false> __device__ __forceinline__ void wait_for(uint32_t at, int phase) {
#if __CUDA_ARCH__ >= 900
    if constexpr (CLUSTER)
        asm volatile("{.reg .pred p;\n\tWAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n\t@!p bra WAIT;}" ::"r"(at), "r"(phase & 1) : "memory");
    else
        asm volatile("{.reg .pred p;\n\tWAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n\t@!p bra WAIT;}" ::"r"(at), "r"(phase & 1) : "memory");
#elif __CUDA_ARCH__ >= 800
    asm volatile("{.reg .pred p;\n\tWAIT: mbarrier.test_wait.parity.shared.b64 p, [%0], %1;\n\t@!p bra WAIT;}" ::"r"(at), "r"(phase & 1) : "memory");
#endif
}
// Normalizes rows in shared memory in place; the columns from `channels` to the next multiple of 16 become zero. A row's
// lanes are aligned groups of 2^lanes_log2; AT_ONCE rows of each are under way at a time. Loops over a row are not
// unrolled: machine code that runs once costs more to fetch than to run.
template <int BM, int WARPS, int AT_ONCE>
__device__ __forceinline__ void normalize_rows(__half* normal, int normal_row, const __half* scale, const __half* bias, int channels, int lanes_log2, int lane, int warp, float epsilon) {
    const int pieces = channels / 8, lanes = 1 << lanes_log2, mine = lane & (lanes - 1), together = 32 >> lanes_log2;
    const float inverse = 1.f / static_cast<float>(channels);
#pragma unroll 1
    for (int first = warp * together; first < BM; first += AT_ONCE * WARPS * together) {
        __half* row[AT_ONCE];
        float sum[AT_ONCE], square[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) {
            row[k] = normal + min(first + k * WARPS * together + (lane >> lanes_log2), BM - 1) * normal_row;
            sum[k] = square[k] = 0;
        }
#pragma unroll 1
        for (int j = mine; j < pieces; j += lanes) {
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                float f[8];
                Pack<__half, 8>(*reinterpret_cast<const uint4*>(row[k] + 8 * j)).floats(f);
                sum[k] += ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
            }
        }
#pragma unroll 1
        for (int step = lanes / 2; step > 0; step /= 2)
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], step);
#pragma unroll 1
        for (int j = mine; j < pieces; j += lanes) {
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                float f[8];
                Pack<__half, 8>(*reinterpret_cast<const uint4*>(row[k] + 8 * j)).floats(f);
#pragma unroll
                for (int e = 0; e < 8; ++e) {
                    const float d = fmaf(sum[k], -inverse, f[e]);
                    square[k] = fmaf(d, d, square[k]);
                }
            }
        }
#pragma unroll 1
        for (int step = lanes / 2; step > 0; step /= 2)
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) square[k] += __shfl_xor_sync(0xffffffffu, square[k], step);
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k) square[k] = rsqrtf(fmaf(square[k], inverse, epsilon)), sum[k] *= inverse;
#pragma unroll 1
        for (int j = mine; j < pieces; j += lanes) {
            float w[8], b[8];
            Pack<__half, 8>(*reinterpret_cast<const uint4*>(scale + 8 * j)).floats(w);
            Pack<__half, 8>(*reinterpret_cast<const uint4*>(bias + 8 * j)).floats(b);
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                if (first + k * WARPS * together + (lane >> lanes_log2) >= BM) continue;
                float f[8];
                Pack<__half, 8>(*reinterpret_cast<const uint4*>(row[k] + 8 * j)).floats(f);
#pragma unroll
                for (int e = 0; e < 8; ++e) f[e] = fmaf((f[e] - sum[k]) * square[k], w[e], b[e]);
                *reinterpret_cast<uint4*>(row[k] + 8 * j) = Pack<__half, 8>::of(f).raw;
            }
        }
        if (channels % 16 != 0 && mine == 0) {
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) *reinterpret_cast<uint4*>(row[k] + channels) = uint4{};
        }
    }
}

// s of 8 elements: x plus the residual, rounded.
__device__ __forceinline__ uint4 stream8(const __half* x, const __half* residual, int64_t at) {
    Pack<__half, 8> v(*reinterpret_cast<const uint4*>(x + at));
    add_packs<__half, 8>(v, Pack<__half, 8>(*reinterpret_cast<const uint4*>(residual + at)));
    return v.raw;
}

}  // namespace mlp

// The order of weight tiles: for each BN columns of the hidden slice all of W1's rows, then for each BN output columns all
// of the slice's rows of W2.
template <int DEPTH, int BN> struct MlpCursor {
    int slice, channels, padded;  // hidden columns; channels, and rounded up to 16
    int phase = 0, column = 0, depth = 0, slot = 0, round = 0;

    __device__ __forceinline__ MlpCursor(int slice_, int channels_) : slice(slice_), channels(channels_), padded((channels_ + 15) / 16 * 16) {}
    __device__ __forceinline__ int contracted() const { return phase == 0 ? padded : slice; }
    __device__ __forceinline__ int columns() const { return phase == 0 ? slice : channels; }
    __device__ __forceinline__ void advance(int stages) {
        if (++slot == stages) slot = 0, ++round;
        depth += DEPTH;
        if (depth < contracted()) return;
        depth = 0, column += BN;
        if (column < columns()) return;
        column = 0, ++phase;
    }
};

template <int BM, int BN, int STAGES, bool TANH>
__global__ void __launch_bounds__(MlpTile<BM, BN, STAGES>::kThreads) mlp_block_kernel(const MlpArgs p) {
#if __CUDA_ARCH__ >= 800
    using namespace mlp;
    using Tile = MlpTile<BM, BN, STAGES>;
    using Cursor = MlpCursor<Tile::kDepth, BN>;
    constexpr int kThreads = Tile::kThreads, kConsumers = Tile::kConsumers, kWarps = kConsumers / 32;
    constexpr int kDepth = Tile::kDepth, kM = Tile::kM, kN = Tile::kN;
    constexpr int kWeightRow = Tile::kWeightRow, kPieces = Tile::kPieces, kLead = Tile::kLead;

    extern __shared__ __align__(16) unsigned char shared[];
    __half* const normal = reinterpret_cast<__half*>(shared);
    float* const sums = reinterpret_cast<float*>(shared);
    unsigned char* place = shared + Tile::rows_bytes(p.channels, p.chunks);
    __half* const hidden = reinterpret_cast<__half*>(place);
    place += Tile::hidden_bytes(p.slice);
    __half* const scale = reinterpret_cast<__half*>(place);
    __half *const bias = scale + p.channels, *const b2 = bias + p.channels, *const b1 = b2 + p.channels;
    place += Tile::vector_bytes(p.channels, p.slice);
    __half* const ring = reinterpret_cast<__half*>(place);
    const uint32_t full = shared_address(place + Tile::kRing), empty = full + 8 * STAGES, free = empty + 8 * STAGES, sent = free + 8;

    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const int cluster = 1 << p.cluster_log2;
    const uint32_t rank = blockIdx.x & (cluster - 1), rest = blockIdx.x >> p.cluster_log2;
    const uint32_t tile = p.groups == 1 ? rest : rest / p.groups;
    const int group = static_cast<int>(rest - tile * p.groups);
    const int64_t row0 = int64_t{tile} * BM;
    const int rows = static_cast<int>(min(int64_t{BM}, p.rows - row0));
    const int first = (group * cluster + static_cast<int>(rank)) * p.slice;  // hidden column
    const int width = max(0, min(p.slice, p.hidden - first));
    const int channels = p.channels, pieces = channels / 8;

    if (tid == 0) {
        for (int s = 0; s < STAGES; ++s) make_barrier(full + 8 * s, Tile::kProducers), make_barrier(empty + 8 * s, kWarps);
        make_barrier(free, kWarps * cluster), make_barrier(sent, kWarps * cluster);
    }
    // The weights may be on their way from memory while the kernel before still runs. Asking for them in the second-level
    // cache is harmless even if that kernel is what writes them.
    if (p.prefetch) {
#pragma unroll 1
        for (int r = tid; r < channels; r += kThreads)
#pragma unroll 1
            for (int c = 0; c < width; c += 64) prefetch_l2(p.w1 + int64_t{r} * p.hidden + first + c);
#pragma unroll 1
        for (int r = warp; r < width; r += kThreads / 32)
#pragma unroll 1
            for (int c = lane * 64; c < channels; c += 32 * 64) prefetch_l2(p.w2 + int64_t{first + r} * channels + c);
    }
    // The barriers are there.
    if (cluster > 1) cluster_barrier();
    else __syncthreads();
    wait_for_previous();
    let_next_start();

    if (warp >= kWarps) {
        // A thread copies the same piece of each kLead-th row.
        const int thread = tid - kConsumers, lead = thread / kPieces, piece = thread % kPieces * 8;
        Cursor c(p.slice, channels);
#pragma unroll 1
        while (c.phase < 2) {
            if (c.round > 0) wait_for(empty + 8 * c.slot, c.round - 1);
            if (lead < kLead) {
                const bool up = c.phase == 0;
                const int stride = up ? p.hidden : channels, row = c.depth + lead, column = c.column + piece;
                const __half* from = (up ? p.w1 + first : p.w2 + int64_t{first} * channels) + int64_t{row} * stride + column;
                const int exist = column < (up ? width : channels) ? (up ? channels : width) - row : 0;  // of the rows from here
                const int read = c.contracted() - row;
                __half* to = ring + (c.slot * kDepth + lead) * kWeightRow + piece;
#pragma unroll
                for (int i = 0; i < kDepth; i += kLead) {
                    if (i < read) copy16(to + i * kWeightRow, i < exist ? from : p.w1, i < exist);
                    from += kLead * stride;
                }
            }
            arrive_with_copies(full + 8 * c.slot);
            c.advance(STAGES);
        }
        wait_copies<0>();
        return;
    }

    const int g = lane / 4, t = lane % 4;
    const int row_of_warp = warp / Tile::kWarpsN * kM * 16, column_of_warp = warp % Tile::kWarpsN * kN * 8;
    const int normal_row = Tile::normal_row(channels), hidden_row = p.slice + 8;
    {
        const int lanes = 1 << p.lanes_log2, together = 32 >> p.lanes_log2;
#pragma unroll 1
        for (int r = warp * together + (lane >> p.lanes_log2); r < BM; r += kWarps * together) {
            const int64_t at = (row0 + min(r, rows - 1)) * channels;
#pragma unroll 1
            for (int j = lane & (lanes - 1); j < pieces; j += lanes) {
                __half* to = normal + r * normal_row + 8 * j;
                if (!p.residual) copy16(to, p.x + at + 8 * j, r < rows);
                else *reinterpret_cast<uint4*>(to) = r < rows ? stream8(p.x, p.residual, at + 8 * j) : uint4{};
            }
        }
    }
#pragma unroll 1
    for (int i = tid; i < pieces; i += kConsumers) {
        copy16(scale + 8 * i, p.scale + 8 * i, true);
        copy16(bias + 8 * i, p.bias + 8 * i, true);
        copy16(b2 + 8 * i, p.b2 + 8 * i, true);
    }
#pragma unroll 1
    for (int c = 8 * tid; c < p.slice; c += 8 * kConsumers) copy16(b1 + c, p.b1 + (c < width ? first + c : 0), c < width);
    commit_copies();
    wait_copies<0>();
    barrier_of<kConsumers>();
    normalize_rows<BM, kWarps, 4>(normal, normal_row, scale, bias, channels, p.lanes_log2, lane, warp, p.epsilon);
    barrier_of<kConsumers>();

    float acc[kM][kN][4];
    auto clear = [&] {
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int n = 0; n < kN; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) acc[m][n][e] = 0;
    };
    clear();
    const int partial_row = Tile::partial_row(p.chunks), share_log2 = __ffs(BM) - 1 - p.cluster_log2, share = 1 << share_log2;
    int turn = 0;  // how often the place of the sums was used
    // Tells all blocks of the cluster, from this warp.
    auto tell = [&](uint32_t barrier) {
        __syncwarp();
        if (lane < cluster) arrive_remote(remote(barrier, lane));
    };
    Cursor now(p.slice, channels);
#pragma unroll 1
    while (now.phase < 2) {
        const bool up = now.phase == 0;
        const int deep = now.contracted() - now.depth, slot = now.slot;
        wait_for(full + 8 * slot, now.round);
        if (column_of_warp < now.columns() - now.column) {
            const int stride = up ? normal_row : hidden_row;
            const __half* a_at = (up ? normal : hidden) + (row_of_warp + lane % 16) * stride + now.depth + lane / 16 * 8;
            const __half* b_at = ring + slot * kDepth * kWeightRow + lane % 16 * kWeightRow + column_of_warp + lane / 16 * 8;
            // The next step's operands are asked for before this step's are used.
            uint32_t a[2][kM][4], b[2][kN][2];
            auto load = [&](int k, int to) {
#pragma unroll
                for (int m = 0; m < kM; ++m) load_matrices4(a[to][m], a_at + m * 16 * stride + k);
#pragma unroll
                for (int n = 0; n + 1 < kN; n += 2) load_transposed4(b[to][n][0], b[to][n][1], b[to][n + 1][0], b[to][n + 1][1], b_at + k * kWeightRow + n * 8);
                if constexpr (kN % 2 == 1) load_transposed2(b[to][kN - 1][0], b[to][kN - 1][1], b_at + k * kWeightRow + (kN - 1) * 8 - lane / 16 * 8);
            };
            load(0, 0);
#pragma unroll
            for (int k = 0; k < kDepth; k += 16) {
                if (k >= deep) break;
                const int of = k / 16 % 2;
                if (k + 16 < kDepth && k + 16 < deep) load(k + 16, of ^ 1);
#pragma unroll
                for (int m = 0; m < kM; ++m)
#pragma unroll
                    for (int n = 0; n < kN; ++n) multiply(acc[m][n], a[of][m], b[of][n]);
            }
        }
        __syncwarp();
        if (lane == 0) arrive(empty + 8 * slot);
        const int column = now.column;
        now.advance(STAGES);
        if (now.phase == (up ? 0 : 1) && now.column == column) continue;

        // All of BN columns are summed.
        if (up) {
            // The normalized rows are not read any more: the cluster's blocks may send their sums to that place.
            if (now.phase == 1 && cluster > 1) tell(free);
#pragma unroll
            for (int n = 0; n < kN; ++n) {
                const int c = column + column_of_warp + n * 8 + 2 * t;
                if (c < p.slice) {
                    const float2 offset = __half22float2(*reinterpret_cast<const __half2*>(b1 + c));
#pragma unroll
                    for (int m = 0; m < kM; ++m)
#pragma unroll
                        for (int h = 0; h < 2; ++h) {
                            const float u = acc[m][n][2 * h] + offset.x, v = acc[m][n][2 * h + 1] + offset.y;
                            *reinterpret_cast<uint32_t*>(hidden + (row_of_warp + m * 16 + h * 8 + g) * hidden_row + c) =
                                TANH ? pack_halves(gelu_tanh(u), gelu_tanh(v)) : pack_halves(gelu_erf(u), gelu_erf(v));
                        }
                }
            }
            clear();
            if (now.phase == 1) barrier_of<kConsumers>();
            continue;
        }

        // Each row's sums go to the block of the cluster that owns the row: sums[sender][row of the owner][column].
        const int chunk = column / BN, held = chunk % p.chunks;
        if (held == 0 && cluster > 1) wait_for<true>(free, turn);
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = row_of_warp + m * 16 + h * 8 + g;
                uint32_t to = shared_address(sums + ((static_cast<int>(rank) << share_log2) + (r & (share - 1))) * partial_row + held * BN + column_of_warp + 2 * t);
                if (cluster > 1) to = remote(to, r >> share_log2);
#pragma unroll
                for (int n = 0; n < kN; ++n) store_remote(to + n * 32, acc[m][n][2 * h], acc[m][n][2 * h + 1]);
            }
        clear();
        if (held + 1 < p.chunks && now.phase < 2) continue;

        const int begin = column - held * BN, owned = static_cast<int>(rank) << share_log2;
        const int items = min(share, max(0, rows - owned)) * (p.chunks * (BN / 4));
        const int64_t corner = (row0 + owned) * channels + begin;
        uint32_t r, c;
        uint2 x{}, added{};
        auto locate = [&](int i) {  // row, column, and what is added to the sums there
            r = p.by_span.divmod(static_cast<uint32_t>(i), c);
            c *= 4;
            if (i >= items || begin + static_cast<int>(c) >= channels || p.groups > 1) return;
            x = *reinterpret_cast<const uint2*>(p.x + corner + int64_t{r} * channels + c);
            if (p.residual) added = *reinterpret_cast<const uint2*>(p.residual + corner + int64_t{r} * channels + c);
        };
        if (cluster > 1) tell(sent);
        locate(tid);
        if (cluster > 1) wait_for<true>(sent, turn);
        else barrier_of<kConsumers>();
#pragma unroll 1
        for (int i = tid; i < items; i += kConsumers) {
            if (begin + static_cast<int>(c) < channels) {
                const float* from = sums + static_cast<int>(r) * partial_row + c;
                float4 sum = *reinterpret_cast<const float4*>(from);
#pragma unroll 4
                for (int z = 1; z < cluster; ++z) {
                    const float4 v = *reinterpret_cast<const float4*>(from + (z << share_log2) * partial_row);
                    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
                }
                const int64_t at = corner + int64_t{r} * channels + c;
                if (p.groups > 1) {
                    *reinterpret_cast<float4*>(p.partial + int64_t{group} * p.rows * channels + at) = sum;
                } else {
                    Pack<__half, 4> s(x);
                    if (p.residual) add_packs<__half, 4>(s, Pack<__half, 4>(added));
                    float f[4], b[4];
                    s.floats(f);
                    Pack<__half, 4>(*reinterpret_cast<const uint2*>(b2 + begin + c)).floats(b);
                    f[0] += sum.x + b[0], f[1] += sum.y + b[1], f[2] += sum.z + b[2], f[3] += sum.w + b[3];
                    *reinterpret_cast<uint2*>(p.y + at) = Pack<__half, 4>::of(f).raw;
                }
            }
            locate(i + kConsumers);
        }
        // The place is written anew when all have read.
        if (now.phase < 2) {
            if (cluster > 1) tell(free);
            else barrier_of<kConsumers>();
        }
        ++turn;
    }
#endif
}

}  // namespace trt_opt
