// Patches of an image to tokens: a product whose rows are read where the pixels lie, with a layer norm behind it if there is one.
//
// The contracted index is that of the weights, (channel, row, column) of a patch, so that a row of a patch is pixels side by side. Tokens with the channels
// innermost are one channel whose pixels are their elements, and the rows of a patch long runs.
// Launched ahead of the end of the kernel before it, a kernel fetches its weights and finds its pixels before it waits for that one.
#pragma once

#include <type_traits>

#include "block_gemm.cuh"

namespace trt_opt {

// Where the pixels of a patch are.
struct PatchMap {
    FastDiv by_grid_w, by_grid_h;    // tokens to places
    FastDiv by_patch_w, by_patch_h;  // elements of a patch to pixels
    int width, plane;                // pixels of a row, and of a channel
    int64_t image;                   // pixels of an image

    // The first pixel of a token's patch.
    __device__ __forceinline__ int64_t of_token(uint32_t token) const {
        uint32_t x, y;
        const uint32_t image_index = by_grid_h.divmod(by_grid_w.divmod(token, x), y);
        return image_index * image + static_cast<int64_t>(y * by_patch_h.divisor) * width + x * by_patch_w.divisor;
    }
    // From there to the patch's row `r` of pixels, counted over all channels.
    __device__ __forceinline__ int of_row(uint32_t r) const {
        uint32_t y;
        const uint32_t channel = by_patch_h.divmod(r, y);
        return static_cast<int>(channel) * plane + static_cast<int>(y) * width;
    }
    // And to its element `k`.
    __device__ __forceinline__ int of_element(uint32_t k) const {
        uint32_t x;
        const uint32_t r = by_patch_w.divmod(k, x);
        return of_row(r) + static_cast<int>(x);
    }
};

template <class X> struct PatchEmbedArgs {
    const X* x;
    const __half* w;       // [n, k]
    const __half* b;       // [n], or null
    const __half *scale, *shift;  // [n], or null: no norm
    __half* out;           // [rows, n]
    uint32_t rows;         // tokens, < 2^31
    int k, n;
    float epsilon;
    PatchMap map;
    // What only the tiles use.
    FastDiv by_columns;    // tiles of the same rows
    FastDiv by_pieces, by_row_pieces;  // pieces of a row of a patch; and of all patches of a tile
    bool whole;            // all of the weights of a tile are in shared memory at once
    bool once;             // all blocks run at once: how the second-level cache keeps w
};

// Four pixels, rounded: half of a fragment of A.
__device__ __forceinline__ uint2 four_pixels(const float* p) {
    const float4 v = *reinterpret_cast<const float4*>(p);
    return make_uint2(pack_halves(v.x, v.y), pack_halves(v.z, v.w));
}
__device__ __forceinline__ uint2 four_pixels(const __half* p) { return *reinterpret_cast<const uint2*>(p); }

constexpr int kEmbedSteps = 3;  // of 16 contracted elements: patches of up to 48 pixels, as 4 x 4 of 3 channels

// Small patches. A warp has 16 tokens at a time and all columns, and the weights stay in its registers: with no shared memory and no
// barrier there is nothing between the pixels' arrival and the products. Lane t of four takes elements [4t, 4t + 4) of every 16
// contracted ones, of A as of B; a fragment wants two pairs of a lane, and which does not matter if both agree. Rows of patches are
// multiples of four pixels.
template <class X, int TILES> __global__ void __launch_bounds__(128, TILES <= 12 ? 3 : 2) patch_embed_kernel(const __grid_constant__ PatchEmbedArgs<X> p) {
#if __CUDA_ARCH__ >= 800
    constexpr int kSteps = kEmbedSteps, kGroups = TILES / 4;
    static_assert(TILES % 4 == 0);
    ptx::let_next_start();
    __shared__ __half2 columns[3][4 * TILES];  // offsets, scales and shifts, a pair of columns each
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warps = static_cast<int>(blockDim.x) / 32;
    uint32_t w[kSteps][TILES][2];
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
            const int column = j * 8 + g, k = s * 16 + 4 * t;
            const uint2 v = column < p.n && k < p.k ? *reinterpret_cast<const uint2*>(p.w + column * p.k + k) : uint2{};
            w[s][j][0] = v.x, w[s][j][1] = v.y;
        }
    for (int i = static_cast<int>(threadIdx.x); i < 4 * TILES; i += static_cast<int>(blockDim.x)) {
        const bool exists = 2 * i < p.n;
        auto pair = [&](const __half* from) { return exists && from ? *reinterpret_cast<const __half2*>(from + 2 * i) : __half2{}; };
        columns[0][i] = pair(p.b), columns[1][i] = pair(p.scale), columns[2][i] = pair(p.shift);
    }
    int element[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
        const int k = s * 16 + 4 * t;
        element[s] = k < p.k ? p.map.of_element(static_cast<uint32_t>(k)) : -1;
    }
    __syncthreads();
    ptx::wait_for_previous();

    const uint32_t tiles = (p.rows + 15) / 16;
#pragma unroll 1
    for (uint32_t tile = blockIdx.x * static_cast<uint32_t>(warps) + threadIdx.x / 32; tile < tiles; tile += gridDim.x * static_cast<uint32_t>(warps)) {
        const uint32_t row[2] = {tile * 16 + g, tile * 16 + 8 + g};
        uint32_t a[kSteps][4];
        {
            // Rows past the last are copies of it.
            const X* const from[2] = {p.x + p.map.of_token(min(row[0], p.rows - 1)), p.x + p.map.of_token(min(row[1], p.rows - 1))};
#pragma unroll
            for (int s = 0; s < kSteps; ++s)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const uint2 v = element[s] >= 0 ? four_pixels(from[h] + element[s]) : uint2{};
                    a[s][h] = v.x, a[s][2 + h] = v.y;
                }
        }
        float acc[TILES][4];
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
            const float2 offset = __half22float2(columns[0][j * 4 + t]);
            acc[j][0] = acc[j][2] = offset.x, acc[j][1] = acc[j][3] = offset.y;
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s)
#pragma unroll
            for (int j = 0; j < TILES; ++j) multiply(acc[j], a[s], w[s][j]);
        if (p.scale) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float sum = 0, square = 0;
#pragma unroll
                for (int j = 0; j < TILES; ++j) sum += acc[j][2 * h] + acc[j][2 * h + 1];  // columns past the last are zeros
                const float mean = group_sum<4>(sum) / static_cast<float>(p.n);
#pragma unroll
                for (int j = 0; j < TILES; ++j) {
                    const float x = acc[j][2 * h] - mean, y = acc[j][2 * h + 1] - mean;
                    if (j * 8 < p.n) square = fmaf(x, x, fmaf(y, y, square));
                }
                const float factor = rsqrtf(group_sum<4>(square) / static_cast<float>(p.n) + p.epsilon);
#pragma unroll
                for (int j = 0; j < TILES; ++j) {
                    const float2 scale = __half22float2(columns[1][j * 4 + t]), shift = __half22float2(columns[2][j * 4 + t]);
                    acc[j][2 * h] = fmaf((acc[j][2 * h] - mean) * factor, scale.x, shift.x);
                    acc[j][2 * h + 1] = fmaf((acc[j][2 * h + 1] - mean) * factor, scale.y, shift.y);
                }
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int q = 0; q < kGroups; ++q) {
                uint32_t r[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) r[i] = pack_halves(acc[4 * q + i][2 * h], acc[4 * q + i][2 * h + 1]);
                exchange_tiles(r, t);
                const int column = q * 32 + 8 * t;
                if (row[h] < p.rows && column < p.n) *reinterpret_cast<uint4*>(p.out + int64_t{row[h]} * p.n + column) = make_uint4(r[0], r[1], r[2], r[3]);
            }
    }
#endif
}

// Any patches. A block has BM tokens and 64 columns; with a norm, the blocks of a cluster have all columns of their tokens and exchange
// each row's sum and sum of squared differences. The warps of a block share the contracted index if there are few rows.
template <int BM> struct EmbedTile {
    static constexpr int kRows = BM, kColumns = 64, kThreads = 256;
    static constexpr int kWarpsM = BM / 16, kWarpsN = 2, kWarpsK = 8 / (kWarpsM * kWarpsN);
    static constexpr int kSumRow = kColumns + 8;   // floats
    static constexpr int kChunk = 128;             // contracted elements of the weights that arrive at once, if not all do,
    static constexpr int kSlots = 3;               // and how many chunks there is room for
    static_assert(kWarpsM * kWarpsN * kWarpsK == 8);

    // Rows of an odd number of 16-byte pieces, so that ldmatrix meets no bank twice.
    __host__ __device__ static int row_of(int k) { return (k + 15) / 16 * 16 + 8; }
    static int shared_bytes(int k, bool whole) {
        return BM * 8 + BM * kBridgeMaxCluster * static_cast<int>(sizeof(RowMoments)) + 4 * kWarpsK * BM * kSumRow + 2 * BM * row_of(k) +
               2 * kColumns * (whole ? row_of(k) : kSlots * row_of(kChunk));
    }
};

template <class X, int VEC> __device__ __forceinline__ Pack<__half, VEC> pixels(const X* p) {
    if constexpr (std::is_same_v<X, __half>) {
        return Pack<__half, VEC>(*reinterpret_cast<const typename Pack<__half, VEC>::Raw*>(p));
    } else {
        float f[VEC];
        Pack<float, VEC>(*reinterpret_cast<const typename Pack<float, VEC>::Raw*>(p)).floats(f);
        return Pack<__half, VEC>::of(f);
    }
}

// Pixels are read VEC at a time, of which rows of patches are multiples; 8 halves go to shared memory by themselves.
template <class X, int VEC, int BM> __global__ void __launch_bounds__(256, 2) patch_embed_tile_kernel(const __grid_constant__ PatchEmbedArgs<X> p) {
#if __CUDA_ARCH__ >= 800
    using namespace ptx;
    using Tile = EmbedTile<BM>;
    constexpr int BN = Tile::kColumns, kThreads = Tile::kThreads, kWarpsK = Tile::kWarpsK, kSumRow = Tile::kSumRow, kChunk = Tile::kChunk, kSlots = Tile::kSlots;
    let_next_start();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    const int warp_k = warp / (Tile::kWarpsM * Tile::kWarpsN), warp_row = warp / Tile::kWarpsN % Tile::kWarpsM * 16, warp_column = warp % Tile::kWarpsN * 32;
    uint32_t column_tile;
    const uint32_t row0 = p.by_columns.divmod(blockIdx.x, column_tile) * BM;
    const int column = static_cast<int>(column_tile) * BN, columns = min(BN, p.n - column), padded = (p.k + 15) / 16 * 16;
    const bool exchanges = p.scale && p.by_columns.divisor > 1;

    auto* const starts = reinterpret_cast<int64_t*>(shared);
    auto* const moments = reinterpret_cast<RowMoments*>(starts + BM);
    auto* const sums = reinterpret_cast<float*>(moments + BM * kBridgeMaxCluster);
    auto* const a = reinterpret_cast<__half*>(sums + kWarpsK * BM * kSumRow);
    const int a_row = Tile::row_of(p.k);
    __half* const b = a + BM * a_row;
    const int depth = p.whole ? padded : kChunk, b_row = Tile::row_of(depth), chunks = (padded + depth - 1) / depth;

    // Columns and contracted elements past the last are zeros.
    auto fetch = [&](int chunk) {
        if (chunk >= chunks) return;
        __half* const to = b + chunk % kSlots * (BN * b_row);
        const int k0 = chunk * depth, pieces = min(depth, padded - k0) / 8;
#pragma unroll 1
        for (int r = warp; r < BN; r += kThreads / 32)
#pragma unroll 4
            for (int i = lane; i < pieces; i += 32) {
                const int k = k0 + 8 * i;
                const bool exists = r < columns && k < p.k;
                copy16(to + r * b_row + 8 * i, exists ? p.w + static_cast<int64_t>(column + r) * p.k + k : p.w, exists, weight_policy(p.once));
            }
    };
    fetch(0);
    commit_copies();
    fetch(1);
    commit_copies();
    if (tid < BM) starts[tid] = p.map.of_token(min(row0 + tid, p.rows - 1));
    if (p.k < padded && tid < BM) *reinterpret_cast<uint4*>(a + tid * a_row + p.k) = uint4{};
    if (exchanges) cluster_arrive();
    __syncthreads();
    wait_for_previous();
    if constexpr (VEC == 8) {
        // A warp has whole rows of the product, whose pieces lie side by side but for the end of a row of the patch. Where a piece is, is found once.
        static_assert(std::is_same_v<X, __half> && BM % (kThreads / 32) == 0);
#pragma unroll 1
        for (int i = lane; i < p.k / 8; i += 32) {
            uint32_t piece;
            const uint32_t r = p.by_pieces.divmod(static_cast<uint32_t>(i), piece);
            const X* const from = p.x + p.map.of_row(r) + piece * 8;
#pragma unroll
            for (int z = 0; z < BM / (kThreads / 32); ++z) {
                const int token = warp + z * (kThreads / 32);
                copy16(a + token * a_row + 8 * i, from + starts[token], true);
            }
        }
        commit_copies();
    } else {
        // In the order of memory: pieces of a row, tokens, rows of a patch. All of a batch are asked for before the first is put away.
        constexpr int kBatch = VEC == 4 ? 8 : 16;
        const int all = p.k / VEC * BM;
#pragma unroll 1
        for (int first = tid; first < all; first += kBatch * kThreads) {
            Pack<__half, VEC> v[kBatch];
            __half* to[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                const int item = first + i * kThreads;
                uint32_t within, piece;
                const uint32_t r = p.by_row_pieces.divmod(static_cast<uint32_t>(item), within), token = p.by_pieces.divmod(within, piece);
                to[i] = a + token * a_row + r * p.map.by_patch_w.divisor + piece * VEC;
                if (item < all) v[i] = pixels<X, VEC>(p.x + starts[token] + p.map.of_row(r) + piece * VEC);
            }
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (first + i * kThreads < all) *reinterpret_cast<typename Pack<__half, VEC>::Raw*>(to[i]) = v[i].raw;
        }
    }

    float acc[4][4] = {};
    const __half* const a_at = a + (warp_row + lane % 16) * a_row + lane / 16 * 8;
    const int b_at = (warp_column + lane / 16 * 8 + lane % 8) * b_row + lane / 8 % 2 * 8;
    if (p.whole) wait_copies<0>();
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        if (!p.whole) {
            // Pixels that are copied come behind two chunks.
            if (VEC == 8 && chunk == 0) wait_copies<0>();
            else wait_copies<1>();
        }
        __syncthreads();
        if (!p.whole) fetch(chunk + 2), commit_copies();
        const int k0 = chunk * depth, end = min(depth, padded - k0);
        const __half* const b_from = b + chunk % kSlots * (BN * b_row) + b_at;
#pragma unroll 2
        for (int k = warp_k * 16; k < end; k += kWarpsK * 16) {
            uint32_t x[4], y[2][4];
            load_matrices4(x, a_at + k0 + k);
            load_matrices4(y[0], b_from + k), load_matrices4(y[1], b_from + 16 * b_row + k);
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const uint32_t pair[2] = {y[n / 2][n % 2 * 2], y[n / 2][n % 2 * 2 + 1]};
                multiply(acc[n], x, pair);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float* const to = sums + (warp_k * BM + warp_row + h * 8 + g) * kSumRow + warp_column + 2 * t;
#pragma unroll
        for (int n = 0; n < 4; ++n) *reinterpret_cast<float2*>(to + n * 8) = make_float2(acc[n][2 * h], acc[n][2 * h + 1]);
    }
    __syncthreads();

    // Lanes of a row, of four columns each; rows of a thread.
    constexpr int kLanes = BN / 4, kStep = kThreads / kLanes, kItems = BM / kStep;
    const int c = tid % kLanes * 4, first = tid / kLanes;
    const bool exists = c < columns;
    auto four = [&](const __half* from, float (&f)[4]) { Pack<__half, 4>(exists && from ? *reinterpret_cast<const uint2*>(from + column + c) : uint2{}).floats(f); };
    float v[kItems][4], offset[4], scale[4], shift[4];
    four(p.b, offset), four(p.scale, scale), four(p.shift, shift);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        const float* const from = sums + (first + i * kStep) * kSumRow + c;
#pragma unroll
        for (int e = 0; e < 4; ++e) v[i][e] = offset[e];
#pragma unroll
        for (int z = 0; z < kWarpsK; ++z) {
            const float4 f = *reinterpret_cast<const float4*>(from + z * BM * kSumRow);
            v[i][0] += f.x, v[i][1] += f.y, v[i][2] += f.z, v[i][3] += f.w;
        }
    }
    if (p.scale) {
        if (exchanges) cluster_wait();  // all blocks are there to be written to
        RowMoments own[kItems];
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            float square = 0;
            own[i].sum = group_sum<kLanes>(v[i][0] + v[i][1] + v[i][2] + v[i][3]);
            const float mean = own[i].sum / static_cast<float>(columns);
#pragma unroll
            for (int e = 0; e < 4; ++e) square = fmaf(v[i][e] - mean, v[i][e] - mean, square);
            own[i].square = group_sum<kLanes>(exists ? square : 0.f);
            if (exchanges && c / 4 < static_cast<int>(p.by_columns.divisor))
                store_remote(remote(shared_address(moments + (first + i * kStep) * kBridgeMaxCluster + column_tile), c / 4), own[i].sum, own[i].square);
        }
        if (exchanges) cluster_arrive(), cluster_wait();
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            RowStatistics of{own[i].sum / static_cast<float>(p.n), rsqrtf(own[i].square / static_cast<float>(p.n) + p.epsilon)};
            if (exchanges) of = row_statistics(moments + (first + i * kStep) * kBridgeMaxCluster, p.by_columns.divisor, BN, p.n, p.epsilon);
#pragma unroll
            for (int e = 0; e < 4; ++e) v[i][e] = fmaf((v[i][e] - of.mean) * of.factor, scale[e], shift[e]);
        }
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i)
        if (const uint32_t row = row0 + first + i * kStep; exists && row < p.rows) *reinterpret_cast<uint2*>(p.out + int64_t{row} * p.n + column + c) = Pack<__half, 4>::of(v[i]).raw;
#endif
}

}  // namespace trt_opt
