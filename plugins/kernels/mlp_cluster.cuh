// The MLP block of a few rows by a cluster of blocks: y = s + gelu(norm(s) W1 + b1) W2 + b2 as one kernel. Each block has the rows whole and a
// slice of the hidden columns, which so never leave it; what the blocks sum is the output, each the part that it owns.
//
// Launched ahead like the products of a block, and with the norm folded into the first one as block_gemm.cuh has it: before the wait a block
// fetches its slices of both weights, whole, and makes B' = scale W1, sum(B') and shift W1. Afterwards there are only the rows to be
// fetched. What the products then take is the time to read the weights from shared memory once for each 32 rows.
//
// Blocks push their sums of the output to the block that owns them, 16 x 16 elements at a time as the tensor cores' lanes have them, in 512-byte
// stores. Two barriers of the cluster: all are done with what lay where sums will be; all sums are there. In place of the second a block may count
// what has come to it.
#pragma once

#include "gelu.cuh"
#include "mma.cuh"
#include "norm_fold.cuh"
#include "ptx.cuh"

namespace trt_opt {

// A tile of BM rows (32 or 64) by blocks of THREADS threads. HALF_SUMS: a block's sums of the output are rounded to fp16 where they are
// sent, which halves what the cluster exchanges. Each is about as large as their sum over the root of their number, so that all of them together cost one rounding
// of the sum to fp16, as two kernels with the sum in memory between them would have it. COUNTED: a block waits for the bytes that are sent to it, not
// for a barrier.
template <int BM, int THREADS, bool HALF_SUMS, bool COUNTED = false> struct ClusterMlpTile {
    static constexpr bool kHalfSums = HALF_SUMS, kCounted = COUNTED;
    static constexpr int kRows = BM, kThreads = THREADS, kWarps = THREADS / 32;
    static constexpr int kUnit = 32;                   // rows and columns of a warp's tile of either product
    static constexpr int kRowGroups = BM / kUnit;
    static constexpr int kMinSlice = 3 * kUnit;        // three warps of the same rows share out the rows' sums
    static constexpr int kMaxSlice = (kWarps / kRowGroups < 8 ? kWarps / kRowGroups : 8) * kUnit;
    static constexpr int kTileBytes = 16 * 16 * (HALF_SUMS ? 2 : 4);  // of the output, as it is sent
    static constexpr int kRowFloats = 4 * BM + (COUNTED ? 4 : 0);  // sums and squares of rows, by halves of the contracted index, and a barrier
    static_assert(BM % kUnit == 0 && THREADS % 32 == 0 && kMaxSlice >= kMinSlice);

    // Elements of a row of what is in shared memory: odd numbers of 16-byte pieces, so that ldmatrix meets no bank twice.
    __host__ __device__ static int padded(int k) { return (k + 15) / 16 * 16; }
    __host__ __device__ static int padded_columns(int k) { return (k + kUnit - 1) / kUnit * kUnit; }
    __host__ __device__ static int rows_row(int k) { return padded(k) + 8; }             // rows: BM of them
    __host__ __device__ static int first_row(int slice) { return slice + 8; }            // B': padded(k) of them
    __host__ __device__ static int hidden_row(int slice) { return slice + 8; }           // hidden: BM of them
    __host__ __device__ static int second_row(int k) { return padded_columns(k) + 8; }   // W2: `slice` of them
    // Warps that share the contracted index of the first product.
    __host__ __device__ static int split(int slice) { return 2 * kRowGroups * (slice / kUnit) <= kWarps ? 2 : 1; }
    // Tiles of the output, 16 x 16, and those of a block.
    __host__ __device__ static int tiles(int k) { return BM / 16 * ((k + 15) / 16); }
    __host__ __device__ static int own_tiles(int k, int cluster) { return (tiles(k) + cluster - 1) / cluster; }
    __host__ __device__ static int hidden_bytes(int slice) { return 2 * BM * hidden_row(slice); }
    // Sums of the output from all blocks; before that halves of the first product are exchanged there.
    __host__ __device__ static int received_bytes(int k, int slice, int cluster) {
        const int received = cluster * own_tiles(k, cluster) * kTileBytes, exchanged = split(slice) == 2 ? kWarps * 2048 : 0;
        return received > exchanged ? received : exchanged;
    }
    __host__ __device__ static bool slice_valid(int slice) { return slice % kUnit == 0 && slice >= kMinSlice && slice <= kMaxSlice; }

    // What the norm's fold needs besides the weights: scale and shift, and shares of the columns' sums.
    __host__ __device__ static int fold_bytes(int k) { return 2 * 2 * padded(k) + 2 * 4 * kUnit * kWarps; }
};

// B' = scale W1 in place, its column sums, and the columns' shift W1 + b1, by all threads. W1, scale and shift ([padded(k)], zeros beyond k) are there for all
// threads to see; `shares`: kWarps * kUnit * 2 floats. `bias`: of column `threadIdx.x` of the block's, where there is one. Afterwards all is there
// for all threads to see, and scale, shift and shares are free.
template <class Tile> __device__ __forceinline__ void fold_cluster_mlp(__half* b, const __half* scale, const __half* shift, int k, int slice, float* shares, float bias, float* column_sums, float* offsets) {
    const int tid = threadIdx.x, warp = tid / 32, groups = slice / Tile::kUnit, sharers = Tile::kWarps / groups;
    const int share = warp / groups, column = warp % groups * Tile::kUnit;
    static_assert(Tile::kUnit == kFoldColumns);
    if (share < sharers)
        fold_norm(b + column, Tile::first_row(slice), scale, shift, 16 * share, Tile::padded(k), 16 * sharers, shares + 2 * share * slice + column, shares + (2 * share + 1) * slice + column);
    __syncthreads();
    if (tid < slice) {
        float sum = 0, shifted = bias;
#pragma unroll 1
        for (int i = 0; i < sharers; ++i) sum += shares[2 * i * slice + tid], shifted += shares[(2 * i + 1) * slice + tid];
        column_sums[tid] = sum, offsets[tid] = shifted;
    }
    __syncthreads();
}

struct ClusterMlp {
    int k, slice;        // channels, a multiple of 8; hidden columns of a block, slice_valid
    int cluster, rank;   // blocks of the cluster, up to 16, and which of them this is
    FastDiv by_own;      // own_tiles(k, cluster)
    float each, epsilon; // 1 / k
    Activation activation;
    // In shared memory of this block, aligned to 16 bytes, at the same address in every block of the cluster.
    const __half* rows;               // [BM][rows_row], the stream s: zeros beyond k and in rows past the end
    const __half* first;              // [padded(k)][first_row], B': zeros beyond k and in columns past the end
    const float *column_sums, *offsets;  // [slice]: sum(B'), shift W1 + b1; zeros past the end
    const __half* second;             // [slice][second_row], this block's rows of W2: zeros past the end; columns beyond k may be anything
    const __half* bias2;              // [k]
    float* row_floats;                // [kRowFloats]
    __half* hidden;                   // [BM][hidden_row]
    unsigned char* received;          // received_bytes
};

// From the rows to the result, by all threads of all blocks of a cluster, which have called no cluster_arrive without its cluster_wait.
//   int arrived(int part): for part = 0, 1, ... until it returns padded(k): waits until all threads see elements [0, the result) of all rows (copies
//     are waited for, and a barrier of the block if there were any), a multiple of 16. The first time B', column_sums and offsets are seen too.
//   void first_done(): the block is done with B'. `hidden` and `received` are not written to before, so they may be in its place (but may
//     not overlap each other); what else is there may be overwritten from here on, and by first_done itself: it may begin to fetch `second`.
//   void second_there(): waits until this thread's copies of `second` and bias2 are done; a barrier of the block follows.
//   __half* out(int row): where row `row` of the tile goes, [k], aligned to 4 bytes; null: nowhere.
// Every block needs `rows` (s is added from it), all four callables are called by all threads. After it returns no other block writes to this one or reads
// from it: a block may end. With counted sums it is called once a kernel. Nothing in shared memory but `rows`, B', the sums of columns, `second` and bias2 is kept.
template <class Tile, class Arrived, class FirstDone, class SecondThere, class Out>
__device__ __forceinline__ void cluster_mlp(const ClusterMlp& p, Arrived&& arrived, FirstDone&& first_done, SecondThere&& second_there, Out&& out) {
    using namespace ptx;
    constexpr int kWarps = Tile::kWarps, kRowGroups = Tile::kRowGroups, kUnit = Tile::kUnit, BM = Tile::kRows, kN = kUnit / 8;
    constexpr uint32_t kOnes = 0x3c003c00u;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int rows_row = Tile::rows_row(p.k), hidden_row = Tile::hidden_row(p.slice);

    [[maybe_unused]] float* const counter = p.row_floats + 4 * BM;
    const int own = static_cast<int>(p.by_own.divisor);  // tiles of the output
    if constexpr (Tile::kCounted) {
        const int first = p.rank * own, last = min(first + own, Tile::tiles(p.k));
        if (threadIdx.x == 0) expect_bytes(counter, static_cast<uint32_t>(p.cluster * max(last - first, 0) * Tile::kTileBytes));
    }

    // acc += 32 rows of A times 32 columns of B, from step `k` to `end`. The next step's operands are asked for before this step's are used.
    auto product = [&](const __half*& a, int a_row, const __half*& b, int b_row, int& k, int end, int step, auto&& multiply_all) {
        uint32_t x[2][2][4], y[2][kN][2];
        auto load = [&](int i) {
            load_matrices4(x[i][0], a), load_matrices4(x[i][1], a + 16 * a_row);
#pragma unroll
            for (int n = 0; n < kN; n += 2) load_transposed4(y[i][n][0], y[i][n][1], y[i][n + 1][0], y[i][n + 1][1], b + n * 8);
            a += step, b += step * b_row;
        };
        load(0);
#pragma unroll 1
        while (true) {
            if (k + step < end) load(1);
            multiply_all(x[0], y[0]);
            if ((k += step) >= end) break;
            if (k + step < end) load(0);
            multiply_all(x[1], y[1]);
            if ((k += step) >= end) break;
        }
    };

    // The first product. Where there are warps enough, two share the contracted index of a tile, in steps of 16.
    float acc[2][kN][4] = {};
    const int column_groups = p.slice / kUnit, units = kRowGroups * column_groups, split = Tile::split(p.slice), padded = Tile::padded(p.k);
    const int half = warp / units, unit = warp - half * units, row0 = unit % kRowGroups * kUnit, role = unit / kRowGroups, column0 = role * kUnit;
    const bool active = half < split;
    {
        float norm[2][4] = {};  // of both 16 rows, times ones (role 0); of the first or the last 16, times themselves (roles 1 and 2)
        const __half* a = p.rows + (row0 + lane % 16) * rows_row + lane / 16 * 8 + half * 16;
        const __half* b = p.first + (lane % 16 + half * 16) * Tile::first_row(p.slice) + column0 + lane / 16 * 8;
        const int step = 16 * split;
        int k = half * 16;
#pragma unroll 1
        for (int part = 0, end = 0; end < padded; ++part) {
            end = arrived(part);
            if (!active || k >= end) continue;
            product(a, rows_row, b, Tile::first_row(p.slice), k, end, step, [&](const uint32_t (&x)[2][4], const uint32_t (&y)[kN][2]) {
#pragma unroll
                for (int m = 0; m < 2; ++m)
#pragma unroll
                    for (int n = 0; n < kN; ++n) multiply(acc[m][n], x[m], y[n]);
                if (role > 2) return;
                uint32_t low[4], high[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) low[i] = role == 2 ? x[1][i] : x[0][i], high[i] = role == 1 ? x[0][i] : x[1][i];
                multiply(norm[0], low, {role == 0 ? kOnes : low[0], role == 0 ? kOnes : low[2]});
                multiply(norm[1], high, {role == 0 ? kOnes : high[1], role == 0 ? kOnes : high[3]});
            });
        }
        if (active) {
            float* const sums = p.row_floats + half * BM + row0 + g;
            if (role == 0 && t == 0) {
#pragma unroll
                for (int m = 0; m < 2; ++m) sums[m * 16] = norm[m][0], sums[m * 16 + 8] = norm[m][2];
            }
            // Squares are on the diagonals.
            if ((role == 1 || role == 2) && t == g / 2) {
                float* const squares = sums + 2 * BM + (role - 1) * 16;
                squares[0] = g % 2 ? norm[0][1] : norm[0][0], squares[8] = g % 2 ? norm[1][3] : norm[1][2];
            }
        }
    }
    __syncthreads();
    first_done();
    // Of two warps each ends 16 rows.
    int row = row0 + g, passes = 2 * 2;
    if (split == 2) {
        float4* const exchange = reinterpret_cast<float4*>(p.received) + lane;
        if (active) {
#pragma unroll
            for (int n = 0; n < kN; ++n)
                exchange[(warp * kN + n) * 32] = half ? make_float4(acc[0][n][0], acc[0][n][1], acc[0][n][2], acc[0][n][3]) : make_float4(acc[1][n][0], acc[1][n][1], acc[1][n][2], acc[1][n][3]);
        }
        __syncthreads();
        if (active) {
            const int other = unit + (half ? 0 : units);
#pragma unroll
            for (int n = 0; n < kN; ++n) {
                const float4 v = exchange[(other * kN + n) * 32];
                const float sent[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int e = 0; e < 4; ++e) acc[0][n][e] = (half ? acc[1][n][e] : acc[0][n][e]) + sent[e];
            }
        }
        row += half * 16, passes = 2;
    }
    if (active) {
        // Eight rows at a time, which are first in line: half of the machine code is GELU.
#pragma unroll 1
        for (int pass = 0; pass < passes; ++pass, row += 8) {
            float sum = p.row_floats[row], square = p.row_floats[2 * BM + row];
            if (split == 2) sum += p.row_floats[BM + row], square += p.row_floats[3 * BM + row];
            const float mean = sum * p.each;
            float variance = fmaf(-mean, mean, square * p.each);
            // For rows whose mean is so far from zero that the difference of squares loses digits; four lanes have the same row.
            const bool far = mean * mean > 64.f * variance;
            if (__any_sync(0xffffffffu, far)) {
                float exact = 0;
#pragma unroll 1
                for (int i = 8 * t; i < p.k; i += 32) {
                    float f[8];
                    Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.rows + row * rows_row + i)).floats(f);
#pragma unroll
                    for (int e = 0; e < 8; ++e) f[e] -= mean, exact = fmaf(f[e], f[e], exact);
                }
                exact += __shfl_xor_sync(0xffffffffu, exact, 1);
                exact += __shfl_xor_sync(0xffffffffu, exact, 2);
                if (far) variance = exact * p.each;
            }
            const float factor = rsqrtf(variance + p.epsilon);
            float v[2 * kN];
#pragma unroll
            for (int n = 0; n < kN; ++n) {
                const int c = column0 + n * 8 + 2 * t;
                const float2 sums = *reinterpret_cast<const float2*>(p.column_sums + c), offsets = *reinterpret_cast<const float2*>(p.offsets + c);
                v[2 * n] = fmaf(acc[0][n][0] - mean * sums.x, factor, offsets.x), v[2 * n + 1] = fmaf(acc[0][n][1] - mean * sums.y, factor, offsets.y);
                acc[0][n][0] = acc[0][n][2], acc[0][n][1] = acc[0][n][3];
                acc[0][n][2] = acc[1][n][0], acc[0][n][3] = acc[1][n][1], acc[1][n][0] = acc[1][n][2], acc[1][n][1] = acc[1][n][3];
            }
            activate(v, p.activation);
            __half* const to = p.hidden + row * hidden_row + column0 + 2 * t;
#pragma unroll
            for (int n = 0; n < kN; ++n) *reinterpret_cast<uint32_t*>(to + n * 8) = pack_halves(v[2 * n], v[2 * n + 1]);
        }
    }
    cluster_arrive_relaxed();  // from here on this block's `received` may be written to
    second_there();
    __syncthreads();

    // The second product, sent as it comes.
    const int column_units = Tile::padded_columns(p.k) / kUnit;
#pragma unroll 1
    for (int u = warp; u < kRowGroups * column_units || u < kWarps; u += kWarps) {
        const int rows0 = u % kRowGroups * kUnit, c0 = u / kRowGroups * kUnit;
        const bool exists = c0 < p.k;
        if (exists) {
            const __half* a = p.hidden + (rows0 + lane % 16) * hidden_row + lane / 16 * 8;
            const __half* b = p.second + lane % 16 * Tile::second_row(p.k) + c0 + lane / 16 * 8;
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < kN; ++n) acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0.f;
            int k = 0;
            product(a, hidden_row, b, Tile::second_row(p.k), k, p.slice, 16, [&](const uint32_t (&x)[2][4], const uint32_t (&y)[kN][2]) {
#pragma unroll
                for (int m = 0; m < 2; ++m)
#pragma unroll
                    for (int n = 0; n < kN; ++n) multiply(acc[m][n], x[m], y[n]);
            });
        }
        if (u < kWarps) cluster_wait();  // all blocks may be written to
        if (!exists) continue;
#pragma unroll
        for (int m = 0; m < 2; ++m)
#pragma unroll
            for (int n = 0; n < kN; n += 2) {
                if (c0 + n * 8 >= p.k) continue;
                uint32_t slot;
                const uint32_t owner = p.by_own.divmod(static_cast<uint32_t>((c0 / 16 + n / 2) * (BM / 16) + rows0 / 16 + m), slot);
                const uint32_t at = remote(shared_address(p.received + (p.rank * own + static_cast<int>(slot)) * Tile::kTileBytes + lane * 16), owner);
                [[maybe_unused]] const uint32_t count = Tile::kCounted ? remote(shared_address(counter), owner) : 0;
                auto send = [&](uint32_t to, uint4 v) {
                    if constexpr (Tile::kCounted) store_counted(to, v, count);
                    else store_remote(to, v);
                };
                if constexpr (Tile::kHalfSums) {
                    send(at, make_uint4(pack_halves(acc[m][n][0], acc[m][n][1]), pack_halves(acc[m][n][2], acc[m][n][3]), pack_halves(acc[m][n + 1][0], acc[m][n + 1][1]),
                                                pack_halves(acc[m][n + 1][2], acc[m][n + 1][3])));
                } else {
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        send(at + e * 512, make_uint4(__float_as_uint(acc[m][n + e][0]), __float_as_uint(acc[m][n + e][1]), __float_as_uint(acc[m][n + e][2]), __float_as_uint(acc[m][n + e][3])));
                }
            }
    }
    if constexpr (Tile::kCounted) wait_bytes(counter);
    else cluster_arrive(), cluster_wait();

    // What this block owns: eight columns of 16 rows a warp.
#pragma unroll 1
    for (int item = warp; item < 2 * own; item += kWarps) {
        const int tile = p.rank * own + item / 2, r = tile % (BM / 16) * 16 + g, c = tile / (BM / 16) * 16 + item % 2 * 8;
        if (c >= p.k) continue;
        float4 sum{};
        const unsigned char* from = p.received + item / 2 * Tile::kTileBytes + (Tile::kHalfSums ? lane * 16 + item % 2 * 8 : item % 2 * 512 + lane * 16);
#pragma unroll 4
        for (int z = 0; z < p.cluster; ++z, from += own * Tile::kTileBytes) {
            float v[4];
            if constexpr (Tile::kHalfSums) Pack<__half, 4>(*reinterpret_cast<const uint2*>(from)).floats(v);
            else Pack<float, 4>(*reinterpret_cast<const uint4*>(from)).floats(v);
            sum.x += v[0], sum.y += v[1], sum.z += v[2], sum.w += v[3];
        }
        const float2 bias = __half22float2(*reinterpret_cast<const __half2*>(p.bias2 + c + 2 * t));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            __half* const to = out(r + h * 8);
            if (!to) continue;
            const float2 s = __half22float2(*reinterpret_cast<const __half2*>(p.rows + (r + h * 8) * rows_row + c + 2 * t));
            *reinterpret_cast<uint32_t*>(to + c + 2 * t) = pack_halves(s.x + (h ? sum.z : sum.x) + bias.x, s.y + (h ? sum.w : sum.y) + bias.y);
        }
    }
}

}  // namespace trt_opt
