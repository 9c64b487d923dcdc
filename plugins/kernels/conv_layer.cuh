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
    static constexpr int kWarps = C / 8, kThreads = 32 * kWarps;
    // Of the map that the convolution reads; its rows have 8 tokens, the last of which none reads where the kernel is small.
    static constexpr int kMapHigh = kHigh + 2 * R, kMapWide = 8, kInHigh = kMapHigh + 2, kInWide = kMapWide + 2;
    static_assert(kWide + 2 * R <= kMapWide && kMapHigh % 2 == 0 && kHigh % 4 == 0 && C % kConvLayerSide == 0);
    // In halves: a token; a row of the map, whose neighbour is four banks' width of 16 bytes away.
    static constexpr int kPitch = C + 8, kMapLine = kMapWide * kPitch + 32;
    static constexpr int kGroup = 256, kHiddenPitch = kGroup + 8;  // columns between the MLP's products at a time
    // x; behind the encoding, in its place the map, behind that what the convolution gives; behind those the columns between the MLP's products.
    static constexpr int kIn = kInHigh * kInWide * kPitch, kMixed = kMapHigh * kMapLine, kEncoded = kMapHigh * kMapWide * kPitch, kTile = kTokens * kPitch;
    static constexpr int kHiddenBuffers = 2 * kTokens * kHiddenPitch <= kIn ? 2 : 1;
    static_assert(kMixed + kTile <= kIn && kTokens * kHiddenPitch <= kIn);
    // Bytes. Blocks of 256 threads share a multiprocessor with those of the next kernel.
    static constexpr int kSquare = kConvLayerSide * kConvLayerSide * 2, kHalves = (kIn + kEncoded + kTile) * 2;
    static constexpr int kBlocks = kThreads <= 256 ? 2 : 1, kReserved = 1024, kAlign = 1024, kBarriers = 256;
    static constexpr int kRoom = kBlocks == 2 ? (228 * 1024) / 2 - kReserved : 227 * 1024;
    static constexpr int kSlots = (kRoom - kAlign - kBarriers - kHalves) / kSquare;
    static_assert(kSlots * 8 <= kBarriers);
    static constexpr int kShared = kAlign + kSlots * kSquare + kHalves + kBarriers;
    // fp32 sums of four parts of what is contracted, in place of the weights.
    static constexpr int kParts = 4, kSumPitch = C + 8;
    static_assert(kParts * kTokens * kSumPitch * 4 <= kSlots * kSquare);
    static constexpr int kSides = C / kConvLayerSide, kMix = 2 * kSides * kSides;  // squares of the channels; of both products around the convolution
    static_assert(kSlots >= 2 * kSides * (kGroup / kConvLayerSide));  // a group's
};

template <class Tile> __global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) conv_layer_kernel(const __grid_constant__ ConvLayerArgs p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    constexpr int C = Tile::C, K = Tile::K, R = Tile::R, kPitch = Tile::kPitch, kSides = Tile::kSides, kMapHigh = Tile::kMapHigh, kMapWide = Tile::kMapWide, kSide = kConvLayerSide;
    constexpr int kTokenTiles = Tile::kTokens / 16, kMapTiles = kMapHigh / 2, kMix = Tile::kMix, kSteps = kSide / 16;
    extern __shared__ unsigned char conv_layer_shared[];
    ptx::let_next_start();
    unsigned char* const slots = conv_layer_shared + (0u - ptx::shared_address(conv_layer_shared)) % Tile::kAlign;
    __half* const in = reinterpret_cast<__half*>(slots + Tile::kSlots * Tile::kSquare);
    __half* const map = in;
    __half* const mixed = in + Tile::kMixed;
    __half* const encoded = in + Tile::kIn;
    __half* const mid = encoded + Tile::kEncoded;  // what the MLP reads
    const uint32_t barriers = ptx::shared_address(mid + Tile::kTile), slots_at = ptx::shared_address(slots);
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
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
    // Those before `done` have been used by all.
    int fetched = min(total, Tile::kSlots);
    auto fetch_behind = [&](int done) {
        const int end = min(total, done + Tile::kSlots);
        if (thread == 0)
            for (int s = fetched; s < end; ++s) fetch(s);
        fetched = max(fetched, end);
    };
    if (thread == 0) {
        for (int s = 0; s < Tile::kSlots; ++s) mbarrier::init(barriers + s * 8, 1);
        mbarrier::publish();
        for (int s = 0; s < fetched; ++s) fetch(s);
    }
    auto weights = [&](int square) {
        const uint32_t slot = static_cast<uint32_t>(square) % Tile::kSlots, round = static_cast<uint32_t>(square) / Tile::kSlots;
        mbarrier::wait(barriers + slot * 8, round & 1);
        return reinterpret_cast<const __half*>(slots + slot * Tile::kSquare);
    };
    // Eight columns of a row of a square.
    auto place = [](const __half* square, int row, int eighth) { return square + row * kSide + ((eighth ^ (row & 7)) << 3); };

    // Of a channel's weights at a place of the kernel: those of the matrix whose diagonal they are that a lane has.
    const int c0 = warp * 8, c = c0 + 2 * t;
    const uint32_t diagonal = g == 2 * t ? 0xffffu : g == 2 * t + 1 ? 0xffff0000u : 0u;
    auto pair = [](const __half* from, int at) { return __ldg(reinterpret_cast<const uint32_t*>(from + at)); };
    auto floats = [](uint32_t v) { return __half22float2(*reinterpret_cast<const __half2*>(&v)); };
    uint32_t position[9], conv[K * K];
#pragma unroll
    for (int i = 0; i < 9; ++i) position[i] = pair(p.position_w, i * C + c) & diagonal;
#pragma unroll
    for (int i = 0; i < K * K; ++i) conv[i] = pair(p.w, i * C + c) & diagonal;
    const uint32_t position_b = pair(p.position_b, c), conv_b = pair(p.b, c), b2 = pair(p.b2, c);
    // The first product's columns are 16 a warp, of half of the rows.
    constexpr int kSixteens = C / 16, kHalfTiles = (kMapTiles + 1) / 2;
    const int half = warp / kSixteens, sixteen = warp % kSixteens;
    uint32_t b1[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) b1[i] = pair(p.b1, sixteen * 16 + i * 8 + 2 * t);
    constexpr int kUp = Tile::kGroup / Tile::kWarps;  // columns of a group that a warp has
    uint32_t up_b[kUp / 8];
    auto fetch_up_b = [&](int group) {
#pragma unroll
        for (int i = 0; i < kUp / 8; ++i)
            if (const int at = group * Tile::kGroup + warp * kUp + i * 8 + 2 * t; at < p.hidden) up_b[i] = pair(p.up_b, at);
    };
    // Those of the MLP are read when there are registers for them.
    if (warp * kUp < p.hidden) ptx::prefetch_l2(p.up_b + warp * kUp);
    constexpr int kEnd = Tile::kTokens * C / Tile::kThreads;  // columns of the result that a thread has
    using End = Pack<__half, kEnd>;
    const int end_c = thread % (C / kEnd) * kEnd, end_token = thread / (C / kEnd);
    ptx::prefetch_l2(p.down_b + end_c);

    uint32_t across, down;
    const uint32_t image = p.by_down.divmod(p.by_across.divmod(blockIdx.x, across), down);
    const int x0 = static_cast<int>(across) * Tile::kWide, y0 = static_cast<int>(down) * Tile::kHigh;
    const int64_t first = int64_t{image} * p.height * p.width;
    auto exists = [&](int y, int x) { return static_cast<unsigned>(y) < static_cast<unsigned>(p.height) && static_cast<unsigned>(x) < static_cast<unsigned>(p.width); };
    ptx::wait_for_previous();

    {
        constexpr int kEighths = C / 8, kStep = Tile::kThreads / kEighths;
        const int eighth = thread % kEighths * 8;
#pragma unroll
        for (int from = 0; from < Tile::kInHigh * Tile::kInWide; from += kStep) {
            const int token = from + thread / kEighths, y = y0 - R - 1 + token / Tile::kInWide, x = x0 - R - 1 + token % Tile::kInWide;
            if (token >= Tile::kInHigh * Tile::kInWide) break;
            const bool there = exists(y, x);
            ptx::copy16(in + token * kPitch + eighth, p.x + (there ? (first + int64_t{y} * p.width + x) * C + eighth : 0), there);
        }
        ptx::commit_copies();
        ptx::wait_copies<0>();
        __syncthreads();
    }

    // The encoding of eight channels of all of the map's tokens.
    {
        constexpr int kFours = (Tile::kInHigh + 3) / 4;
        constexpr uint32_t kOnes = 0x3c003c00u;
        float sums[kMapTiles][4] = {};
#pragma unroll
        for (int dx = 0; dx < 3; ++dx) {
            uint32_t m[kFours][4];  // a row of eight tokens each
#pragma unroll
            for (int i = 0; i < kFours; ++i) ptx::load_matrices4(m[i], in + (min(4 * i + lane / 8, Tile::kInHigh - 1) * Tile::kInWide + dx + lane % 8) * kPitch + c0);
#pragma unroll
            for (int dy = 0; dy < 3; ++dy)
#pragma unroll
                for (int j = 0; j < kMapTiles; ++j) {
                    const uint32_t upper = m[(2 * j + dy) / 4][(2 * j + dy) % 4], lower = m[(2 * j + 1 + dy) / 4][(2 * j + 1 + dy) % 4];
                    multiply_k8(sums[j], upper, lower, position[dy * 3 + dx]);
                    if (dy == 1 && dx == 1) multiply_k8(sums[j], upper, lower, kOnes & diagonal);  // the residual
                }
        }
        const float2 b = floats(position_b);
#pragma unroll
        for (int j = 0; j < kMapTiles; ++j)
#pragma unroll
            for (int lower = 0; lower < 2; ++lower)
                *reinterpret_cast<uint32_t*>(encoded + ((2 * j + lower) * kMapWide + g) * kPitch + c) = pack_halves(sums[j][2 * lower] + b.x, sums[j][2 * lower + 1] + b.y);
        __syncthreads();
    }

    // The first product, zeros outside of the image.
    {
        float sums[kHalfTiles][2][4] = {};
#pragma unroll
        for (int k = 0; k < kSides; ++k) {
            const __half* const w = weights(sixteen / 4 * kSides + k);
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                uint32_t b[2][2];
                ptx::load_transposed4(b[0][0], b[0][1], b[1][0], b[1][1], place(w, step * 16 + lane % 16, sixteen % 4 * 2 + lane / 16));
#pragma unroll
                for (int i = 0; i < kHalfTiles; ++i) {
                    const int j = half * kHalfTiles + i;
                    if (j >= kMapTiles) break;
                    uint32_t a[4];
                    ptx::load_matrices4(a, encoded + (j * 16 + lane % 16) * kPitch + k * kSide + step * 16 + lane / 16 * 8);
                    multiply(sums[i][0], a, b[0]), multiply(sums[i][1], a, b[1]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < kHalfTiles; ++i) {
            const int j = half * kHalfTiles + i;
            if (j >= kMapTiles) break;
#pragma unroll
            for (int lower = 0; lower < 2; ++lower) {
                const int row = 2 * j + lower;
                const bool there = exists(y0 - R + row, x0 - R + g);
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const float2 b = floats(b1[n]);
                    const uint32_t v = pack_halves(sums[i][n][2 * lower] + b.x, sums[i][n][2 * lower + 1] + b.y);
                    *reinterpret_cast<uint32_t*>(map + row * Tile::kMapLine + g * kPitch + sixteen * 16 + n * 8 + 2 * t) = there ? v : 0u;
                }
            }
        }
        __syncthreads();
        fetch_behind(kMix / 2);
    }

    // The convolution of eight channels of the tile's tokens: matrices of two rows of four tokens.
    {
        constexpr int kFours = (kMapHigh - 1 + 3) / 4;
        float sums[kTokenTiles][2][4] = {};  // of even and odd rows of the kernel: shorter chains
#pragma unroll
        for (int dx = 0; dx < K; ++dx) {
            uint32_t m[kFours][4];
#pragma unroll
            for (int i = 0; i < kFours; ++i) {
                const int row = min(4 * i + lane / 8 + lane % 8 / 4, kMapHigh - 1);
                ptx::load_matrices4(m[i], map + row * Tile::kMapLine + (dx + lane % 4) * kPitch + c0);
            }
#pragma unroll
            for (int dy = 0; dy < K; ++dy)
#pragma unroll
                for (int j = 0; j < kTokenTiles; ++j) multiply_k8(sums[j][dy % 2], m[(4 * j + dy) / 4][(4 * j + dy) % 4], m[(4 * j + 2 + dy) / 4][(4 * j + 2 + dy) % 4], conv[dy * K + dx]);
        }
        const float2 b = floats(conv_b);
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
            for (int lower = 0; lower < 2; ++lower)
                *reinterpret_cast<uint32_t*>(mixed + (16 * j + 8 * lower + g) * kPitch + c) =
                    pack_halves(sums[j][0][2 * lower] + sums[j][1][2 * lower] + b.x, sums[j][0][2 * lower + 1] + sums[j][1][2 * lower + 1] + b.y);
        __syncthreads();
    }

    // The second product, eight columns a warp, and the encoded tokens.
    {
        float sums[kTokenTiles][2][4] = {};
#pragma unroll
        for (int k = 0; k < kSides; ++k) {
            const __half* const w = weights(kMix / 2 + warp / 8 * kSides + k);
#pragma unroll
            for (int step = 0; step < kSteps; step += 2) {
                uint32_t b[2][2];
                ptx::load_transposed4(b[0][0], b[0][1], b[1][0], b[1][1], place(w, step * 16 + lane, warp % 8));
#pragma unroll
                for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
                    for (int s = 0; s < 2; ++s) {
                        uint32_t a[4];
                        ptx::load_matrices4(a, mixed + (j * 16 + lane % 16) * kPitch + k * kSide + (step + s) * 16 + lane / 16 * 8);
                        multiply(sums[j][s], a, b[s]);
                    }
            }
        }
        const float2 b = floats(b2);
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
            for (int lower = 0; lower < 2; ++lower) {
                const int token = 16 * j + 8 * lower + g;
                const float2 was = floats(*reinterpret_cast<const uint32_t*>(encoded + ((token / 4 + R) * kMapWide + token % 4 + R) * kPitch + c));
                *reinterpret_cast<uint32_t*>(mid + token * kPitch + c) = pack_halves(was.x + (sums[j][0][2 * lower] + sums[j][1][2 * lower] + b.x), was.y + (sums[j][0][2 * lower + 1] + sums[j][1][2 * lower + 1] + b.y));
            }
        __syncthreads();
        fetch_behind(kMix);
    }

    // The MLP, a group of columns between its products at a time: a warp has some of the first's columns, and of the second a quarter of what is contracted and 32 columns.
    float out[kTokenTiles][4][4] = {};
    fetch_up_b(0);
    const int part = warp % Tile::kParts, columns = warp / Tile::kParts * 32;
    uint32_t a[C / 16][kTokenTiles][4];
#pragma unroll
    for (int k = 0; k < C / 16; ++k)
#pragma unroll
        for (int j = 0; j < kTokenTiles; ++j) ptx::load_matrices4(a[k][j], mid + (j * 16 + lane % 16) * kPitch + k * 16 + lane / 16 * 8);
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
        const int blocks = blocks_of(group), base = base_of(group), column = warp * kUp;
        __half* const between = in + (Tile::kHiddenBuffers == 2 ? group % 2 * (Tile::kTokens * Tile::kHiddenPitch) : 0);
        float sums[kTokenTiles][kUp / 8][4] = {};
        if (column < blocks * kSide) {
#pragma unroll
            for (int k = 0; k < kSides; ++k) {
                const __half* const w = weights(base + column / kSide * kSides + k);
#pragma unroll
                for (int step = 0; step < kSteps; ++step)
#pragma unroll
                    for (int n = 0; n < kUp / 8; n += 2) {
                        uint32_t b[2][2];
                        ptx::load_transposed4(b[0][0], b[0][1], b[1][0], b[1][1], place(w, step * 16 + lane % 16, column % kSide / 8 + n + lane / 16));
#pragma unroll
                        for (int j = 0; j < kTokenTiles; ++j) multiply(sums[j][n], a[k * kSteps + step][j], b[0]), multiply(sums[j][n + 1], a[k * kSteps + step][j], b[1]);
                    }
            }
        }
        // The group before has been read.
        if (Tile::kHiddenBuffers == 1 && group > 0) __syncthreads();
        if (column < blocks * kSide) {
#pragma unroll
            for (int n = 0; n < kUp / 8; ++n) {
                const float2 b = floats(up_b[n]);
#pragma unroll
                for (int j = 0; j < kTokenTiles; ++j) {
                    float v[4] = {sums[j][n][0] + b.x, sums[j][n][1] + b.y, sums[j][n][2] + b.x, sums[j][n][3] + b.y};
                    activate(v, p.activation);
                    __half* const to = between + (16 * j + g) * Tile::kHiddenPitch + column + n * 8 + 2 * t;
                    *reinterpret_cast<uint32_t*>(to) = pack_halves(v[0], v[1]), *reinterpret_cast<uint32_t*>(to + 8 * Tile::kHiddenPitch) = pack_halves(v[2], v[3]);
                }
            }
        }
        if (group + 1 < groups) fetch_up_b(group + 1);
        __syncthreads();
        fetch_behind(base + blocks * kSides);
        if (part < blocks) {
            const __half* const w = weights(base + blocks * kSides + part * kSides + columns / kSide);
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                uint32_t rows[kTokenTiles][4];
#pragma unroll
                for (int j = 0; j < kTokenTiles; ++j) ptx::load_matrices4(rows[j], between + (j * 16 + lane % 16) * Tile::kHiddenPitch + part * kSide + step * 16 + lane / 16 * 8);
#pragma unroll
                for (int n = 0; n < 4; n += 2) {
                    uint32_t b[2][2];
                    ptx::load_transposed4(b[0][0], b[0][1], b[1][0], b[1][1], place(w, step * 16 + lane % 16, columns % kSide / 8 + n + lane / 16));
#pragma unroll
                    for (int j = 0; j < kTokenTiles; ++j) multiply(out[j][n], rows[j], b[0]), multiply(out[j][n + 1], rows[j], b[1]);
                }
            }
        }
    }
    const End down_b{__ldg(reinterpret_cast<const typename End::Raw*>(p.down_b + end_c))};
    __syncthreads();
    float* const parts = reinterpret_cast<float*>(slots);
#pragma unroll
    for (int j = 0; j < kTokenTiles; ++j)
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int lower = 0; lower < 2; ++lower)
                *reinterpret_cast<float2*>(parts + (part * Tile::kTokens + 16 * j + 8 * lower + g) * Tile::kSumPitch + columns + n * 8 + 2 * t) = float2{out[j][n][2 * lower], out[j][n][2 * lower + 1]};
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
    End(*reinterpret_cast<const typename End::Raw*>(mid + end_token * kPitch + end_c)).floats(was);
#pragma unroll
    for (int e = 0; e < kEnd; ++e) sum[e] += was[e];
    const int y = y0 + end_token / Tile::kWide, x = x0 + end_token % Tile::kWide;
    if (exists(y, x)) *reinterpret_cast<typename End::Raw*>(p.y + (first + int64_t{y} * p.width + x) * C + end_c) = End::of(sum).raw;
#endif
}

}  // namespace trt_opt
