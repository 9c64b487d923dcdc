// A convolution layer of tokens as one kernel: a block of threads has a tile of tokens and what is around them that it takes, and goes all the way.
//
// Depthwise convolutions are products, too: of 8 channels of 16 tokens with a diagonal matrix for each place of the kernel, whose sums are fp32 as any product's.
// What a place needs of a token is of the same 8 x 8 matrix as what the places above and below it need of others, so that a matrix is read once for them all.
// Weights of products come in squares of 64 x 64 through a ring, as many as there is room for before the wait for the kernel ahead.
#pragma once

#include <cuda.h>

#include "gelu.cuh"
#include "mbarrier.cuh"
#include "ptx.cuh"
#include "tensor_copy.cuh"
#include "warpgroup.cuh"
#include "wide_mma.cuh"

namespace trt_opt {

struct ConvLayerArgs {
    CUtensorMap w1, w2, up, down;  // in squares
    const __half* x;               // [images, height * width, C]
    const __half *position_w, *position_b, *b1, *w, *b, *b2, *up_b, *down_b;
    __half* y;
    int height, width, hidden;  // hidden: columns between the MLP's products
    FastDiv by_across, by_down;  // tiles
    Activation activation;
};

constexpr int kConvLayerSide = 64;  // of a square of weights

template <int C_, int HIGH, int K_> struct ConvLayerTile {
    static constexpr int C = C_, K = K_, R = K / 2;
    static constexpr int kHigh = HIGH, kWide = 4, kTokens = kHigh * kWide;
    static constexpr int kWarps = 16, kThreads = 32 * kWarps, kShares = kWarps / (C / 8);  // kShares: warps with the same eight channels of a depthwise convolution
    // Of the map that the convolution reads; its rows have 8 tokens, the last of which none reads where the kernel is small.
    static constexpr int kMapHigh = kHigh + 2 * R, kMapWide = 8, kInHigh = kMapHigh + 2, kInWide = kMapWide + 2;
    static_assert(kWide + 2 * R <= kMapWide && kMapHigh % 2 == 0 && kHigh % 4 == 0 && C % kConvLayerSide == 0);
    // In halves: a token; a row of the map, whose neighbour is four banks' width of 16 bytes away.
    static constexpr int kPitch = C + 8, kMapLine = kMapWide * kPitch + 32;
    static constexpr int kGroup = 256;  // columns between the MLP's products at a time
    static constexpr int kSides = C / kConvLayerSide, kWarpgroups = kWarps / 4;  // squares of the channels
    // Bytes. Operands of the tensor cores lie 64 columns after the other as swizzled rows of 128 bytes, a token each, that begin at multiples of 1024: what is encoded, in tiles of 64
    // rows, the last of which run on into what is behind; what the convolution gives; what the MLP reads; the columns between its products.
    static constexpr int kRow = 128, kUnit = 1024;
    static constexpr int units(int bytes) { return (bytes + kUnit - 1) / kUnit * kUnit; }
    static constexpr int kMapTokens = kMapHigh * kMapWide, kMapTiles = (kMapTokens + 63) / 64, kTile = kTokens * kRow * kSides, kHidden = kTokens * kRow * (kGroup / kConvLayerSide);
    // x; behind the encoding, in its place the map, behind that what the convolution gives; behind those the columns between the MLP's products.
    static constexpr int kIn = units(kInHigh * kInWide * kPitch * 2), kMixed = units(kMapHigh * kMapLine * 2);
    static constexpr int kEncoded = units(kMapTokens * kRow * kSides), kOver = (kMapTiles * 64 - kMapTokens) * kRow, kPad = kOver > kTile ? units(kOver - kTile) : 0;
    static constexpr int kHiddenBuffers = 2 * kHidden <= kIn ? 2 : 1;
    static_assert(kMixed + kTile <= kIn && kHidden <= kIn && kMapTiles * kSides == 2 && kTokens % (16 * kShares) == 0);
    static constexpr int kSquare = kConvLayerSide * kConvLayerSide * 2, kOperands = kIn + kEncoded + kTile + kPad;
    static constexpr int kMix = 2 * kSides * kSides;  // squares of both products around the convolution
    // All squares with the usual MLP of four times as many columns, or as many as there is room for.
    static constexpr int kAlign = 1024, kBarriers = 256, kRoom = 227 * 1024, kUsual = kMix + 2 * kSides * (4 * C / kConvLayerSide), kMost = (kRoom - kAlign - kBarriers - kOperands) / kSquare;
    static constexpr int kSlots = kUsual < kMost ? kUsual : kMost;
    static_assert(kSlots * 8 <= kBarriers);
    static constexpr int kShared = kAlign + kSlots * kSquare + kOperands + kBarriers;
    // No two blocks on a multiprocessor: where they begin while the kernel before has others, some would have two and others none.
    static_assert(kShared > 228 * 1024 / 2);
    // fp32 sums of parts of what is contracted, in place of the weights.
    static constexpr int kParts = kWarpgroups / kSides, kSumPitch = C + 4;
    static_assert(kParts * kTokens * kSumPitch * 4 <= kSlots * kSquare);
    static_assert(kSlots >= 2 * kSides * (kGroup / kConvLayerSide));  // a group's
};

template <class Tile> __global__ void __launch_bounds__(Tile::kThreads, 1) conv_layer_kernel(const __grid_constant__ ConvLayerArgs p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    constexpr int C = Tile::C, K = Tile::K, R = Tile::R, kPitch = Tile::kPitch, kSides = Tile::kSides, kMapHigh = Tile::kMapHigh, kMapWide = Tile::kMapWide, kSide = kConvLayerSide;
    constexpr int kTokens = Tile::kTokens, kTokenTiles = kTokens / 16, kRowPairs = kMapHigh / 2, kMix = Tile::kMix, kSteps = kSide / 16, kSums = kTokens / 2;
    extern __shared__ unsigned char conv_layer_shared[];
    ptx::let_next_start();
    unsigned char* const slots = conv_layer_shared + (0u - ptx::shared_address(conv_layer_shared)) % Tile::kAlign;
    __half* const in = reinterpret_cast<__half*>(slots + Tile::kSlots * Tile::kSquare);
    __half* const map = in;
    unsigned char* const mixed = slots + Tile::kSlots * Tile::kSquare + Tile::kMixed;
    unsigned char* const encoded = mixed - Tile::kMixed + Tile::kIn;
    unsigned char* const mid = encoded + Tile::kEncoded;  // what the MLP reads
    const uint32_t barriers = ptx::shared_address(mid + Tile::kTile + Tile::kPad), slots_at = ptx::shared_address(slots);
    const int thread = static_cast<int>(threadIdx.x), warp = __shfl_sync(0xffffffffu, thread / 32, 0), lane = thread % 32, g = lane / 4, t = lane % 4;
    const int warpgroup = warp / 4, quarter = warp % 4 * 16;  // its rows of a tile of 64
    const int groups = (p.hidden + Tile::kGroup - 1) / Tile::kGroup, total = kMix + 2 * kSides * (p.hidden / kSide);
    // Squares of a matrix with as many columns of squares as the group has, and what they begin with.
    auto blocks_of = [&](int group) { return min(Tile::kGroup / kSide, p.hidden / kSide - group * (Tile::kGroup / kSide)); };
    auto base_of = [&](int group) { return kMix + group * (2 * kSides * (Tile::kGroup / kSide)); };
    auto fetch = [&](int square) {
        const uint32_t slot = static_cast<uint32_t>(square) % Tile::kSlots, barrier = barriers + slot * 8;
        const CUtensorMap* from = &p.w1;
        int column, row, s = square;
        if (s < kMix) {
            if (s >= kMix / 2) from = &p.w2, s -= kMix / 2;
            column = s / kSides, row = s % kSides;
        } else {
            const int group = (s - kMix) / (2 * kSides * (Tile::kGroup / kSide)), blocks = blocks_of(group);
            s -= base_of(group);
            if (s < blocks * kSides) {
                from = &p.up, column = group * (Tile::kGroup / kSide) + s / kSides, row = s % kSides;
            } else {
                s -= blocks * kSides;
                from = &p.down, row = group * (Tile::kGroup / kSide) + s / kSides, column = s % kSides;
            }
        }
        mbarrier::expect(barrier, Tile::kSquare);
        tensor_copy::load(slots_at + slot * Tile::kSquare, *from, column * kSide, row * kSide, barrier);
    };
    // Those before `done` have been used by all. The warps take turns: asking for one takes a thread a while.
    int fetched = 0;
    auto fetch_behind = [&](int done) {
        const int end = min(total, done + Tile::kSlots);
        if (lane == 0)
            for (int s = fetched + warp; s < end; s += Tile::kWarps) fetch(s);
        fetched = max(fetched, end);
    };
    if (thread < Tile::kSlots) mbarrier::init(barriers + thread * 8, 1), mbarrier::publish();
    __syncthreads();
    fetch_behind(0);
    auto weights = [&](int square) {
        const uint32_t slot = static_cast<uint32_t>(square) % Tile::kSlots, round = static_cast<uint32_t>(square) / Tile::kSlots;
        mbarrier::wait(barriers + slot * 8, round & 1);
        return slots_at + slot * Tile::kSquare;
    };
    // Eight columns of a row of an operand of so many rows.
    auto place = [](unsigned char* operand, int rows, int row, int eighth) { return reinterpret_cast<__half*>(operand + (eighth / 8 * rows + row) * Tile::kRow + ((eighth % 8 ^ (row & 7)) << 4)); };
    // Contracted elements from a square's or an operand's on.
    auto columns_of = [](uint32_t square, int step) { return wide::descriptor(square + step * 16 * Tile::kRow, Tile::kSquare); };
    auto rows_of = [](uint32_t operand, int step) { return wide::descriptor(operand + step * 32, Tile::kSquare); };
    // The sums of a tile of 64 columns by all tokens: two by two eight by eight of them, columns first, as matrices of pairs of tokens.
    auto tokens_of = [&](int j) { return 8 * j + lane / 16 * 8 + lane % 8; };
    auto eighth_of = [&](int block) { return block * 8 + quarter / 8 + lane / 8 % 2; };

    // Of a channel's weights at a place of the kernel: those of the matrix whose diagonal they are that a lane has.
    const int channels = warp % (C / 8), share = warp / (C / 8), c0 = channels * 8, c = c0 + 2 * t;
    const uint32_t diagonal = g == 2 * t ? 0xffffu : g == 2 * t + 1 ? 0xffff0000u : 0u;
    // Not by the path of constants, whose loads the compiler takes to behind the wait.
    auto pair = [](const __half* from, int at) { return *reinterpret_cast<const uint32_t*>(from + at); };
    auto floats = [](uint32_t v) { return __half22float2(*reinterpret_cast<const __half2*>(&v)); };
    uint32_t position[9], conv[K * K];
#pragma unroll
    for (int i = 0; i < 9; ++i) position[i] = pair(p.position_w, i * C + c) & diagonal;
#pragma unroll
    for (int i = 0; i < K * K; ++i) conv[i] = pair(p.w, i * C + c) & diagonal;
    const uint32_t position_b = pair(p.position_b, c), conv_b = pair(p.b, c);
    auto single = [](const __half* from, int at) { return __half2float(from[at]); };
    constexpr int kUp = Tile::kGroup / kSide / Tile::kWarpgroups;  // squares of columns of a group that a warpgroup has
    float up_b[kUp][2];
    auto fetch_up_b = [&](int group) {
#pragma unroll
        for (int i = 0; i < kUp; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h)
                if (const int at = group * Tile::kGroup + (warpgroup * kUp + i) * kSide + quarter + 8 * h + g; at < p.hidden) up_b[i][h] = single(p.up_b, at);
    };
    fetch_up_b(0);
    // The first product: a tile of 64 tokens and 64 columns for each of two warpgroups; the second: 64 columns a warpgroup.
    constexpr bool kTall = kSides == 1;
    const int rows = kTall ? warpgroup * 64 : 0, columns = kTall ? 0 : warpgroup * kSide;
    uint32_t b1[kSide / 8] = {};
    float b2[2] = {};
    if (warpgroup < 2) {
#pragma unroll
        for (int i = 0; i < kSide / 8; ++i) b1[i] = pair(p.b1, columns + i * 8 + 2 * t);
    }
    if (warpgroup < kSides) {
#pragma unroll
        for (int h = 0; h < 2; ++h) b2[h] = single(p.b2, warpgroup * kSide + quarter + 8 * h + g);
    }
    constexpr int kEnd = Tile::kTokens * C / Tile::kThreads;  // columns of the result that a thread has
    using End = Pack<__half, kEnd>;
    const int end_c = thread % (C / kEnd) * kEnd, end_token = thread / (C / kEnd);
    ptx::prefetch_l2(p.down_b + end_c);

    uint32_t across, down;
    const uint32_t image = p.by_down.divmod(p.by_across.divmod(blockIdx.x, across), down);
    const int x0 = static_cast<int>(across) * Tile::kWide, y0 = static_cast<int>(down) * Tile::kHigh;
    const int64_t first = int64_t{image} * p.height * p.width;
    auto exists = [&](int y, int x) { return static_cast<unsigned>(y) < static_cast<unsigned>(p.height) && static_cast<unsigned>(x) < static_cast<unsigned>(p.width); };
    {
        constexpr int kEighths = C / 8, kStep = Tile::kThreads / kEighths, kInTokens = Tile::kInHigh * Tile::kInWide, kCopies = (kInTokens + kStep - 1) / kStep;
        const int eighth = thread % kEighths * 8;
        const __half* from[kCopies];
        int there = 0;
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            const int token = i * kStep + thread / kEighths, y = y0 - R - 1 + token / Tile::kInWide, x = x0 - R - 1 + token % Tile::kInWide;
            const bool inside = exists(y, x);
            there |= static_cast<int>(inside) << i;
            from[i] = p.x + (inside ? (first + int64_t{y} * p.width + x) * C + eighth : 0);
            // Found before the wait.
            asm volatile("" : "+l"(from[i]), "+r"(there));
        }
        ptx::wait_for_previous();
#pragma unroll
        for (int i = 0; i < kCopies; ++i) {
            const int token = i * kStep + thread / kEighths;
            if (token < kInTokens) ptx::copy16(in + token * kPitch + eighth, from[i], there >> i & 1);
        }
        ptx::commit_copies();
        ptx::wait_copies<0>();
        __syncthreads();
    }

    // The encoding of eight channels of the map's tokens, or of a share of its rows.
    {
        constexpr int kPairs = (kRowPairs + Tile::kShares - 1) / Tile::kShares, kFours = (2 * kPairs + 2 + 3) / 4;
        constexpr uint32_t kOnes = 0x3c003c00u;
        const int first_row = share * 2 * kPairs;
        float sums[kPairs][4] = {};
#pragma unroll
        for (int dx = 0; dx < 3; ++dx) {
            uint32_t m[kFours][4];  // a row of eight tokens each
#pragma unroll
            for (int i = 0; i < kFours; ++i) ptx::load_matrices4(m[i], in + (min(first_row + 4 * i + lane / 8, Tile::kInHigh - 1) * Tile::kInWide + dx + lane % 8) * kPitch + c0);
#pragma unroll
            for (int dy = 0; dy < 3; ++dy)
#pragma unroll
                for (int j = 0; j < kPairs; ++j) {
                    const uint32_t upper = m[(2 * j + dy) / 4][(2 * j + dy) % 4], lower = m[(2 * j + 1 + dy) / 4][(2 * j + 1 + dy) % 4];
                    multiply_k8(sums[j], upper, lower, position[dy * 3 + dx]);
                    if (dy == 1 && dx == 1) multiply_k8(sums[j], upper, lower, kOnes & diagonal);  // the residual
                }
        }
        const float2 b = floats(position_b);
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
            if (first_row + 2 * j >= kMapHigh) break;
#pragma unroll
            for (int lower = 0; lower < 2; ++lower)
                *reinterpret_cast<uint32_t*>(place(encoded, Tile::kMapTokens, (first_row + 2 * j + lower) * kMapWide + g, channels) + 2 * t) = pack_halves(sums[j][2 * lower] + b.x, sums[j][2 * lower + 1] + b.y);
        }
        tensor_copy::fence_shared();
        __syncthreads();
    }

    // The first product, zeros outside of the image.
    {
        if (warpgroup < 2) {
            float sums[kSide / 2] = {};
#pragma unroll
            for (int k = 0; k < kSides; ++k) {
                const uint32_t w = weights(columns / kSide * kSides + k), tokens = ptx::shared_address(encoded) + (k * Tile::kMapTokens + rows) * Tile::kRow;
                warpgroup::begin();
#pragma unroll
                for (int step = 0; step < kSteps; ++step) wide::multiply(sums, rows_of(tokens, step), columns_of(w, step), 1);
            }
            warpgroup::commit();
            warpgroup::wait<0>();
            warpgroup::settle(sums);
#pragma unroll
            for (int lower = 0; lower < 2; ++lower) {
                const int row = (rows + quarter) / kMapWide + lower;
                const bool there = exists(y0 - R + row, x0 - R + g);
                if (row >= kMapHigh) break;
#pragma unroll
                for (int n = 0; n < kSide / 8; ++n) {
                    const float2 b = floats(b1[n]);
                    const uint32_t v = pack_halves(sums[4 * n + 2 * lower] + b.x, sums[4 * n + 2 * lower + 1] + b.y);
                    *reinterpret_cast<uint32_t*>(map + row * Tile::kMapLine + g * kPitch + columns + n * 8 + 2 * t) = there ? v : 0u;
                }
            }
        }
        __syncthreads();
        fetch_behind(kMix / 2);
    }

    // The convolution of eight channels of the tile's tokens, or of a share of its rows: matrices of two rows of four tokens.
    {
        constexpr int kTiles = kTokenTiles / Tile::kShares, kFours = (4 * kTiles + K - 2 + 3) / 4;
        const int first_row = share * 4 * kTiles;
        float sums[kTiles][2][4] = {};  // of even and odd rows of the kernel: shorter chains
#pragma unroll
        for (int dx = 0; dx < K; ++dx) {
            uint32_t m[kFours][4];
#pragma unroll
            for (int i = 0; i < kFours; ++i) {
                const int row = min(first_row + 4 * i + lane / 8 + lane % 8 / 4, kMapHigh - 1);
                ptx::load_matrices4(m[i], map + row * Tile::kMapLine + (dx + lane % 4) * kPitch + c0);
            }
#pragma unroll
            for (int dy = 0; dy < K; ++dy)
#pragma unroll
                for (int j = 0; j < kTiles; ++j) multiply_k8(sums[j][dy % 2], m[(4 * j + dy) / 4][(4 * j + dy) % 4], m[(4 * j + 2 + dy) / 4][(4 * j + 2 + dy) % 4], conv[dy * K + dx]);
        }
        const float2 b = floats(conv_b);
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int lower = 0; lower < 2; ++lower)
                *reinterpret_cast<uint32_t*>(place(mixed, kTokens, 4 * first_row + 16 * j + 8 * lower + g, channels) + 2 * t) =
                    pack_halves(sums[j][0][2 * lower] + sums[j][1][2 * lower] + b.x, sums[j][0][2 * lower + 1] + sums[j][1][2 * lower + 1] + b.y);
        tensor_copy::fence_shared();
        __syncthreads();
    }

    // The second product and the encoded tokens. From here on the weights are left operands, and the tokens columns.
    {
        if (warpgroup < kSides) {
            float sums[kSums] = {};
#pragma unroll
            for (int k = 0; k < kSides; ++k) {
                const uint32_t w = weights(kMix / 2 + warpgroup * kSides + k), tokens = ptx::shared_address(mixed) + k * kTokens * Tile::kRow;
                warpgroup::begin();
#pragma unroll
                for (int step = 0; step < kSteps; ++step) wide::multiply_turned(sums, columns_of(w, step), rows_of(tokens, step));
            }
            warpgroup::commit();
            warpgroup::wait<0>();
            warpgroup::settle(sums);
#pragma unroll
            for (int j = 0; j < kTokens / 8; j += 2) {
                const int token = tokens_of(j), eighth = eighth_of(warpgroup);
                uint32_t v[4];
                ptx::load_transposed4(v[0], v[1], v[2], v[3], place(encoded, Tile::kMapTokens, (token / 4 + R) * kMapWide + token % 4 + R, eighth));
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 was = floats(v[i]);
                    const int at = 4 * (j + i / 2) + 2 * (i % 2);
                    v[i] = pack_halves(was.x + (sums[at] + b2[i % 2]), was.y + (sums[at + 1] + b2[i % 2]));
                }
                ptx::store_transposed4(place(mid, kTokens, token, eighth), v[0], v[1], v[2], v[3]);
            }
            tensor_copy::fence_shared();
        }
        __syncthreads();
        fetch_behind(kMix);
    }

    // The MLP, a group of columns between its products at a time, 64 columns a warpgroup; of the second product a half of what is contracted.
    const End down_b{*reinterpret_cast<const typename End::Raw*>(p.down_b + end_c)};
    float out[kSums] = {};
    const int part = warpgroup / kSides, block = warpgroup % kSides;
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
        const int blocks = blocks_of(group), base = base_of(group);
        unsigned char* const between = reinterpret_cast<unsigned char*>(in) + (Tile::kHiddenBuffers == 2 ? group % 2 * Tile::kHidden : 0);
        float sums[kUp][kSums] = {};
        // Where some of its columns are none, their sums are of others and not kept.
        if (warpgroup * kUp < blocks) {
#pragma unroll
            for (int i = 0; i < kUp; ++i)
#pragma unroll
                for (int k = 0; k < kSides; ++k) {
                    const uint32_t w = weights(base + min(warpgroup * kUp + i, blocks - 1) * kSides + k), tokens = ptx::shared_address(mid) + k * kTokens * Tile::kRow;
                    warpgroup::begin();
#pragma unroll
                    for (int step = 0; step < kSteps; ++step) wide::multiply_turned(sums[i], columns_of(w, step), rows_of(tokens, step));
                }
            warpgroup::commit();
            warpgroup::wait<0>();
#pragma unroll
            for (int i = 0; i < kUp; ++i) warpgroup::settle(sums[i]);
        }
        // The group before has been read.
        if (Tile::kHiddenBuffers == 1 && group > 0) __syncthreads();
#pragma unroll
        for (int i = 0; i < kUp; ++i) {
            if (warpgroup * kUp + i >= blocks) break;
#pragma unroll
            for (int j = 0; j < kTokens / 8; j += 2) {
                uint32_t v[4];
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    const int at = 4 * (j + m / 2) + 2 * (m % 2);
                    float e[2] = {sums[i][at] + up_b[i][m % 2], sums[i][at + 1] + up_b[i][m % 2]};
                    activate(e, p.activation);
                    v[m] = pack_halves(e[0], e[1]);
                }
                ptx::store_transposed4(place(between, kTokens, tokens_of(j), eighth_of(warpgroup * kUp + i)), v[0], v[1], v[2], v[3]);
            }
        }
        tensor_copy::fence_shared();
        if (group + 1 < groups) fetch_up_b(group + 1);
        __syncthreads();
        fetch_behind(base + blocks * kSides);
        constexpr int kPartBlocks = Tile::kGroup / kSide / Tile::kParts;
        if (part * kPartBlocks < blocks) {
#pragma unroll
            for (int k = 0; k < kPartBlocks; ++k) {
                const int row = part * kPartBlocks + k;
                if (row >= blocks) break;
                const uint32_t w = weights(base + blocks * kSides + row * kSides + block), tokens = ptx::shared_address(between) + row * kTokens * Tile::kRow;
                warpgroup::begin();
#pragma unroll
                for (int step = 0; step < kSteps; ++step) wide::multiply_turned(out, columns_of(w, step), rows_of(tokens, step));
            }
            warpgroup::commit();
            warpgroup::wait<0>();
            warpgroup::settle(out);
        }
    }
    __syncthreads();
    float* const parts = reinterpret_cast<float*>(slots);
#pragma unroll
    for (int i = 0; i < kSums; ++i) parts[(part * kTokens + i / 4 * 8 + 2 * t + i % 2) * Tile::kSumPitch + block * kSide + quarter + i / 2 % 2 * 8 + g] = out[i];
    __syncthreads();
    float sum[kEnd], was[kEnd];
    down_b.floats(sum);
#pragma unroll
    for (int i = 0; i < Tile::kParts; ++i)
#pragma unroll
        for (int e = 0; e < kEnd; e += 4) {
            const float4 v = *reinterpret_cast<const float4*>(parts + (i * Tile::kTokens + end_token) * Tile::kSumPitch + end_c + e);
            sum[e] += v.x, sum[e + 1] += v.y, sum[e + 2] += v.z, sum[e + 3] += v.w;
        }
    End(*reinterpret_cast<const typename End::Raw*>(place(mid, kTokens, end_token, end_c / 8) + end_c % 8)).floats(was);
#pragma unroll
    for (int e = 0; e < kEnd; ++e) sum[e] += was[e];
    const int y = y0 + end_token / Tile::kWide, x = x0 + end_token % Tile::kWide;
    if (exists(y, x)) *reinterpret_cast<typename End::Raw*>(p.y + (first + int64_t{y} * p.width + x) * C + end_c) = End::of(sum).raw;
#endif
}

}  // namespace trt_opt
