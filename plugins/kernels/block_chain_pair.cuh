// An attention block in windows and the MLP block behind it as one kernel on the warpgroup instructions of sm_90a, for few windows: a block of threads has a window, of up to 64 tokens, whose
// rows stay on the multiprocessor from the first norm to the second residual add. It has as many warpgroups as there are heads of 32 and 32 channels. A warpgroup has
//   of what is as wide as a token: 32 channels, in the layout of results of products (a lane has pairs 8 j + 2 t of the rows g and g + 8)
//   of the attention: a head
//   of the MLP: every so many-th unit of hidden columns; of the sums over all of them, its 32 channels.
// What is a left operand for all passes through shared memory, in pieces of 8 x 8 (warpgroup.cuh), as do sums of rows for the norms, and the MLP's sums between warpgroups.
//
// Weights, packed for chains, are in the same pieces, and all of the attention's are in shared memory before the kernel ahead is waited for. The MLP's are pieces of another kind: a unit's columns
// of W1 or rows of W2. A warpgroup has a ring of places for its own: places that are only that; in the place of its head's weights, as soon as queries, keys and values are made; and in its shares of
// the places of Wproj and of the heads' results, keys and values, as soon as that product is done.
#pragma once

#include <math_constants.h>

#include "gelu.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "tensor_copy.cuh"
#include "warpgroup.cuh"
#include "warpgroup_registers.cuh"
#include "block_chain_pair.h"
#include "window_map.cuh"
#include "window_regions.cuh"
#include "window_scores.cuh"

namespace trt_opt {

struct ChainPairArgs {
    const __half *x, *w_qkv, *w_proj, *w1, *w2;                  // weights: packed
    const __half *b_qkv, *scores_bias, *b_proj, *b1, *b2;        // scores_bias: [heads, tokens, bias_row], or null
    __half* y;                                                   // not x
    uint32_t windows;
    int tokens, bias_row, hidden, hidden_depth;                  // hidden_depth: contracted elements that lie together in W2
    int own, slots;                                              // of a warpgroup: places for pieces alone; places in its ring
    // Where its ring's places are: from the start of shared memory for the first warpgroup, and from there to those of the next ones.
    struct Place {
        uint32_t first, step;
    } places[kChainPairMaxSlots];
    float epsilon, scale, mask_value;
    ActivationPower power;
    bool shifted;
    WindowMap map;
    WindowRegions regions;
};

// KEYS: the window's tokens rounded up, 56 or 64. GROUPS: warpgroups.
template <int GROUPS, int KEYS> struct ChainPairTile {
    static constexpr int kGroups = GROUPS, kKeys = KEYS, kChannels = 32 * GROUPS, kThreads = 128 * GROUPS;
    static constexpr int kColumns = GROUPS < 4 ? 64 : 32;  // hidden columns of a unit: for four warpgroups there are 128 registers a thread
    static constexpr int kDepth = kChannels % 128 == 0 ? 128 : kChannels % 64 == 0 ? 64 : 32;  // contracted elements that lie together in weights, of channels
    static constexpr int kPiece = kChannels * kColumns * 2;
    static constexpr int kHead = kChannels * 96 * 2, kProj = kChannels * kChannels * 2;  // weights of a head's keys, values and queries; Wproj
    static constexpr int kRows = 64 * kChannels * 2;       // of a left operand: [channels / 8][64][8]
    static constexpr int kPairs = 2 * 64 * 64;             // a head's keys and values
    static constexpr int kInHead = kHead / kPiece, kInProj = kProj / GROUPS / kPiece, kInResults = (kRows / GROUPS + kPairs) / kPiece;
    // Sums of 32 channels on their way to another warpgroup, in the place of a head's weights.
    static constexpr int kShare = 64 * 32 * 4;
    static_assert(kInHead >= 1 && (GROUPS - 1) * kShare <= kHead);

    // Shared memory. Keys and values have the copy engine's swizzle, so their place is a multiple of 1024.
    static constexpr int kProjAt = GROUPS * kHead, kRowsAt = kProjAt + kProj, kResultsAt = kRowsAt + kRows, kPairsAt = kResultsAt + kRows;
    static_assert(kPairsAt % 1024 == 0 && kRows == kThreads * 32);
    static constexpr int kQkvFull = kPairsAt + GROUPS * kPairs, kProjFull = kQkvFull + GROUPS * 8, kVectorsFull = kProjFull + 8, kFull = kVectorsFull + 8, kBarriers = GROUPS * (1 + kChainPairMaxSlots) + 2;
    static constexpr int kParts = (kQkvFull + kBarriers * 8 + 15) / 16 * 16, kPart = 64 * 8;  // means and squares of a warpgroup's 32 channels of rows
    static constexpr int kVectors = kParts + GROUPS * kPart;  // b_qkv, b_proj, b2, b1, and the scores' bias, of whose last row as many elements are read as there may be keys
    __host__ __device__ static constexpr int bias_at(int hidden) { return kVectors + (5 * kChannels + hidden) * 2; }
    __host__ __device__ static constexpr int places_at(int tokens, int hidden) { return (bias_at(hidden) + GROUPS * tokens * KEYS * 2 + 127) / 128 * 128; }
    static constexpr int fixed(int tokens, int hidden) { return 1024 + places_at(tokens, hidden); }
    // The ring of a warpgroup: `own` places that are only that; in the place of its head's weights; in its shares of the places of Wproj and of the heads' results, keys and values, which are behind each other.
    static void set_places(ChainPairArgs& p) {
        for (int i = 0; i < p.slots; ++i) {
            const int in_head = i - p.own, in_proj = in_head - kInHead, in_results = in_proj - kInProj;
            if (in_head < 0) p.places[i] = {static_cast<uint32_t>(places_at(p.tokens, p.hidden) + i * GROUPS * kPiece), kPiece};
            else if (in_proj < 0) p.places[i] = {static_cast<uint32_t>(in_head * kPiece), kHead};
            else if (in_results < 0) p.places[i] = {static_cast<uint32_t>(kProjAt + in_proj * kPiece), kInProj * kPiece};
            else p.places[i] = {static_cast<uint32_t>(kResultsAt + in_results * kPiece), kInResults * kPiece};
        }
    }
};

template <class TILE> struct ChainPair {
    using Tile = TILE;
    static constexpr int G = Tile::kGroups, C = Tile::kChannels, kKeys = Tile::kKeys, kColumns = Tile::kColumns, kDepth = Tile::kDepth;
    static constexpr bool kEarly = G < 4;     // there are registers for what is added to from before there is anything to add
    static constexpr int kRowStep = 64 * 16;  // from eight channels of a left operand to the next

    const ChainPairArgs& p;
    unsigned char* const shared;
    const uint32_t at;           // of it
    const int group, lane, warp, t, row;  // warp: of the group; row: the first of the window's two that this lane has a part of; 8 on is the other
    const int pieces;            // of this warpgroup
    int slot = 0, coming = 0, coming_slot = 0;  // where the next piece is; the first that has not been asked for, and where it will be
    uint32_t phases = 0;         // of the ring's barriers; the top bit is that of the others, which a window uses once

    __device__ __forceinline__ const __half* vectors(int from) const { return reinterpret_cast<const __half*>(shared + Tile::kVectors) + from; }

    // Where this lane's part of a row begins, or a negative number if there is no such row.
    __device__ __forceinline__ int offset(uint32_t window, int r) const {
        const int token = r < p.tokens ? static_cast<int>(p.map.source(window * static_cast<uint32_t>(p.tokens) + static_cast<uint32_t>(r))) : -1;
        return token < 0 ? -1 : token * C + group * 32 + t * 8;
    }

    // Weights.

    // Read by all blocks at about the same time, unless some have several windows.
    __device__ __forceinline__ uint64_t policy() const { return ptx::weight_policy(p.windows <= gridDim.x); }
    __device__ __forceinline__ uint32_t head() const { return at + group * Tile::kHead; }
    __device__ __forceinline__ uint32_t place(int i) const { return at + p.places[i].first + group * p.places[i].step; }
    __device__ __forceinline__ uint32_t full(int slot) const { return at + Tile::kFull + (group * kChainPairMaxSlots + slot) * 8; }
    __device__ __forceinline__ int unit_of(int i) const { return group + i * G; }

    // A head's keys, values and queries, a warp each, of kDepth contracted elements behind each other.
    __device__ __forceinline__ void fetch_head() const {
        constexpr int kBytes = 32 * kDepth * 2;
        if (warp >= 3 || !ptx::elect()) return;
        const uint32_t barrier = at + Tile::kQkvFull + group * 8;
        mbarrier::expect(barrier, Tile::kHead / 3);
#pragma unroll
        for (int deep = 0; deep < C / kDepth; ++deep)
            mbarrier::copy(head() + (3 * deep + warp) * kBytes, p.w_qkv + (deep * 3 * C + (warp == 2 ? 0 : warp + 1) * C + group * 32) * kDepth, kBytes, barrier, policy());
    }
    // A warpgroup's next piece, a quarter a warp. In order: W1 0, W2 0, W1 1, W2 1, ...
    __device__ __forceinline__ void fetch_piece() {
        if (ptx::elect()) {
            const int column = unit_of(coming / 2) * kColumns;
            const uint32_t to = place(coming_slot), barrier = full(coming_slot);
            mbarrier::expect(barrier, Tile::kPiece / 4);
            if (coming & 1) {
                constexpr int kBytes = kColumns * 16;
                const uint32_t inside = column & (p.hidden_depth - 1), from = (column - inside) * C + (warp * p.hidden_depth + inside) * 8;
#pragma unroll
                for (int i = 0; i < G; ++i)  // this warpgroup's channels first
                    mbarrier::copy(to + (4 * i + warp) * kBytes, p.w2 + (from + (i + group < G ? i + group : i + group - G) * 32u * p.hidden_depth), kBytes, barrier, policy());
            } else {
                constexpr int kBytes = kColumns * kDepth / 2;
#pragma unroll
                for (int i = 0; i < C / kDepth; ++i) mbarrier::copy(to + (4 * i + warp) * kBytes, p.w1 + ((i * p.hidden + column) * uint32_t{kDepth} + warp * uint32_t{kBytes / 2}), kBytes, barrier, policy());
            }
        }
        ++coming;
        if (++coming_slot == p.slots) coming_slot = 0;
    }
    // Those that have places among the first `places` of the ring, once `taken` have been used.
    __device__ __forceinline__ int reach(int places, int taken) const { return min(pieces, min(places, p.slots) + taken); }
    __device__ __forceinline__ void fetch_pieces(int places, int taken) {
        for (const int end = reach(places, taken); coming < end;) fetch_piece();
    }
    __device__ __forceinline__ uint32_t take() {
        const uint32_t piece = place(slot);
        mbarrier::wait(full(slot), phases >> slot & 1);
        phases ^= 1u << slot;
        if (++slot == p.slots) slot = 0;
        return piece;
    }
    __device__ __forceinline__ void wait_group() const { ptx::barrier_wait(1 + group, 128); }

    // This warpgroup's columns of rows, to a left operand in shared memory.
    __device__ __forceinline__ void store_columns(int to, const uint32_t (&r)[2][4]) const {
        const uint32_t matrix = at + to + (4 * group + lane / 8) * kRowStep + 2 * warp * 128 + lane % 8 * 16;
        warpgroup::store_matrices4(matrix, r[0][0], r[0][1], r[0][2], r[0][3]), warpgroup::store_matrices4(matrix + 128, r[1][0], r[1][1], r[1][2], r[1][3]);
        tensor_copy::fence_shared();
    }
    __device__ __forceinline__ uint64_t rows_at(int rows, int step) const { return warpgroup::Pieces(at, kRowStep, 128).at(rows + step * 2 * kRowStep); }
    // Columns of a matrix of which `columns` are here, of channels as contracted elements.
    static __device__ __forceinline__ uint64_t weights_at(uint32_t weights, int columns, int step) {
        const int k = step * 16;
        return warpgroup::Pieces(weights, 128, kDepth * 16).at(k / kDepth * (columns * kDepth * 2) + k % kDepth * 16);
    }

    // Two rows of 32 channels, normalized with those that the other warpgroups have, as the left operand of what follows; zeros where `of` is negative. All threads are behind a barrier then.
    __device__ __forceinline__ void normalize(const float (&v)[16], const int (&of)[2]) const {
        constexpr float kPart = 1.f / 32, kAll = 1.f / G;
        unsigned char* const parts = shared + Tile::kParts + row * 8;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float sums[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[j] = v[4 * j + 2 * h] + v[4 * j + 2 * h + 1];
            const float mean = group_sum<4>((sums[0] + sums[1]) + (sums[2] + sums[3])) * kPart;
            // Two at a time, since there is little else to do meanwhile.
            float even = 0.f, odd = 0.f;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float a = v[4 * j + 2 * h] - mean, b = v[4 * j + 2 * h + 1] - mean;
                even = fmaf(a, a, even), odd = fmaf(b, b, odd);
            }
            const float squares = group_sum<4>(even + odd);
            if (t == 0) *reinterpret_cast<float2*>(parts + group * Tile::kPart + h * 64) = make_float2(mean, squares);
        }
        __syncthreads();
        uint32_t normal[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float2 part[G];
#pragma unroll
            for (int i = 0; i < G; ++i) part[i] = *reinterpret_cast<const float2*>(parts + i * Tile::kPart + h * 64);
            float mean = part[0].x, squares = part[0].y;
#pragma unroll
            for (int i = 1; i < G; ++i) mean += part[i].x, squares += part[i].y;
            mean *= kAll;
            float between = 0.f;
#pragma unroll
            for (int i = 0; i < G; ++i) between = fmaf(part[i].x - mean, part[i].x - mean, between);
            const float root = inverse_root(fmaf(between, kAll, fmaf(squares, kPart * kAll, p.epsilon))), factor = of[h] >= 0 ? root : 0.f, offset = -mean * factor;
#pragma unroll
            for (int j = 0; j < 4; ++j) normal[h][j] = pack_halves(fmaf(v[4 * j + 2 * h], factor, offset), fmaf(v[4 * j + 2 * h + 1], factor, offset));
        }
        store_columns(Tile::kRowsAt, normal);
        __syncthreads();
    }

    // What scores are added to: their bias, -inf for keys that the window has not, and what masks add.
    __device__ __forceinline__ void start_scores(uint32_t window, float (&s)[kKeys / 2]) const {
        const __half* const table = reinterpret_cast<const __half*>(shared + Tile::bias_at(p.hidden)) + 2 * t;
        const int left = p.tokens - 2 * t;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const __half* const bias = table + (group * p.tokens + min(row + 8 * h, p.tokens - 1)) * p.bias_row;
#pragma unroll
            for (int j = 0; j < kKeys / 8; ++j) {
                const float2 v = p.scores_bias ? bias_pair(bias + 8 * j) : make_float2(0.f, 0.f);
                s[4 * j + 2 * h] = 8 * j < left ? v.x : -CUDART_INF_F, s[4 * j + 2 * h + 1] = 8 * j + 1 < left ? v.y : -CUDART_INF_F;
            }
        }
        if (!p.shifted) return;
        uint32_t others[2][2];
        p.regions.find_others(window, row, lane, others);
        mask_keys<kKeys>(s, others, p.mask_value);
    }
    // What queries, and keys and values, are added to.
    __device__ __forceinline__ void start_heads(float (&q)[16], float (&kv)[32]) const {
        const __half* const b = vectors(group * 32 + 2 * t);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 bq = bias_pair(b + 8 * j), bk = bias_pair(b + C + 8 * j), bv = bias_pair(b + 2 * C + 8 * j);
#pragma unroll
            for (int h = 0; h < 2; ++h)
                q[4 * j + 2 * h] = bq.x, q[4 * j + 2 * h + 1] = bq.y, kv[4 * j + 2 * h] = bk.x, kv[4 * j + 2 * h + 1] = bk.y, kv[16 + 4 * j + 2 * h] = bv.x, kv[16 + 4 * j + 2 * h + 1] = bv.y;
        }
    }
    // Of the head's results, this lane's two rows.
    __device__ __forceinline__ void attend(uint32_t window, float (&q)[16], float (&kv)[32], float (&s)[kKeys / 2], uint32_t (&out)[2][4]) {
        if constexpr (!kEarly) start_heads(q, kv);
        mbarrier::wait(at + Tile::kQkvFull + group * 8, phases >> 31);
        warpgroup::settle(q), warpgroup::settle(kv);
        warpgroup::begin();
#pragma unroll
        for (int k = 0; k < C / 16; ++k) warpgroup::multiply(kv, rows_at(Tile::kRowsAt, k), weights_at(head(), 96, k));
        warpgroup::commit();
#pragma unroll
        for (int k = 0; k < C / 16; ++k) warpgroup::multiply(q, rows_at(Tile::kRowsAt, k), weights_at(head() + 64 * kDepth * 2, 96, k));
        warpgroup::commit();

        // Keys and values, while the queries are made.
        warpgroup::wait<1>();
        warpgroup::settle(kv);
        const uint32_t keys = at + Tile::kPairsAt + group * Tile::kPairs, values = keys + Tile::kPairs / 2;
        // Rows 8 apart, so that the bits of the swizzle are the lane's alone.
        const uint32_t to = keys + (warp * 16 + lane % 8) * 64 + (lane / 8 ^ lane % 8 / 2) * 16;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                uint32_t r[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) r[j] = pack_halves(kv[16 * half + 4 * j + 2 * h], kv[16 * half + 4 * j + 2 * h + 1]);
                warpgroup::store_matrices4(to + half * (Tile::kPairs / 2) + h * 512, r[0], r[1], r[2], r[3]);
            }
        tensor_copy::fence_shared();
        warpgroup::wait<0>();
        warpgroup::settle(q);
        uint32_t queries[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) queries[i] = pack_halves(q[2 * i] * p.scale, q[2 * i + 1] * p.scale);
        if constexpr (!kEarly) start_scores(window, s);
        wait_group();
        // The head's weights have been used. Whoever has no places of its own needs pieces there soon.
        score_keys<kKeys, true>(s, queries, keys, [&] {
            if (p.own == 0) fetch_pieces(Tile::kInHead, 0);
        });
        uint32_t weight[2 * (kKeys / 8)];
        float o[16], sum[2], inverse[2];
        exponentiate_keys<kKeys>(s, weight, sum);
        weigh_values<kKeys>(o, weight, values, [&] { inverse[0] = inverse_sum(sum[0]), inverse[1] = inverse_sum(sum[1]); });
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int j = 0; j < 4; ++j) out[h][j] = pack_halves(o[4 * j + 2 * h] * inverse[h], o[4 * j + 2 * h + 1] * inverse[h]);
    }

    // The rows and the product of the heads' results with 32 columns of Wproj.
    template <class Meanwhile> __device__ __forceinline__ void project(const uint32_t (&r)[2][4], float (&y)[16], const Meanwhile& meanwhile) const {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 b = bias_pair(vectors(3 * C + group * 32 + 8 * j + 2 * t));
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float2 x = floats(r[h][j]);
                y[4 * j + 2 * h] = x.x + b.x, y[4 * j + 2 * h + 1] = x.y + b.y;
            }
        }
        __syncthreads();  // the heads' results are there
        mbarrier::wait(at + Tile::kProjFull, phases >> 31);
        warpgroup::settle(y);
        warpgroup::begin();
#pragma unroll
        for (int k = 0; k < C / 16; ++k) warpgroup::multiply(y, rows_at(Tile::kResultsAt, k), weights_at(at + Tile::kProjAt + group * 32 * kDepth * 2, C, k));
        warpgroup::commit();
        meanwhile();
        warpgroup::wait<0>();
        warpgroup::settle(y);
    }

    // The MLP.

    // What hidden columns of a unit are added to.
    __device__ __forceinline__ void start_unit(float (&s)[kColumns / 2], int i) const {
        const __half* const b = vectors(5 * C + unit_of(i) * kColumns + 2 * t);
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j) {
            const float2 v = bias_pair(b + 8 * j);
#pragma unroll
            for (int h = 0; h < 2; ++h) s[4 * j + 2 * h] = v.x, s[4 * j + 2 * h + 1] = v.y;
        }
    }
    __device__ __forceinline__ void multiply_first(float (&s)[kColumns / 2]) {
        const uint32_t w = take();
        warpgroup::settle(s);
        warpgroup::begin();
#pragma unroll
        for (int k = 0; k < C / 16; ++k) warpgroup::multiply(s, rows_at(Tile::kRowsAt, k), weights_at(w, kColumns, k));
        warpgroup::commit();
    }
    // So many pieces have been used: what comes next may have their places.
    __device__ __forceinline__ void give_back(int taken) {
        if (coming >= reach(p.slots, taken)) return;
        wait_group();
        fetch_pieces(p.slots, taken);
    }
    // A half of a unit's columns, activated, into its second product.
    template <int HALF> __device__ __forceinline__ void multiply_half(float (&o)[C / 2], uint32_t w, const float (&s)[kColumns / 2], uint32_t (&hidden)[kColumns / 8]) const {
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j) hidden[j] = pack_halves(s[HALF * kColumns / 4 + 2 * j], s[HALF * kColumns / 4 + 2 * j + 1]);
        // Not behind the fence before their product.
#pragma unroll
        for (int j = 0; j < kColumns / 8; ++j) asm volatile("" : "+r"(hidden[j])::"memory");
        warpgroup::begin();
#pragma unroll
        for (int k = 0; k < kColumns / 32; ++k)
            warpgroup::multiply_columns(o, hidden[4 * k], hidden[4 * k + 1], hidden[4 * k + 2], hidden[4 * k + 3], warpgroup::Pieces(w, 128, kColumns * 16).at(HALF * kColumns * 8 + k * 256), 1);
        warpgroup::commit();
    }
    // A half of a unit is activated while the half before is in its second product, and, with NEXT, the next unit in its first. The last half's product is still under way at the end.
    template <bool NEXT> __device__ __forceinline__ void multiply_unit(float (&o)[C / 2], float (&s)[kColumns / 2], int i) {
        constexpr int kHalf = kColumns / 4;
        uint32_t hidden[2][kColumns / 8];
        activate_by_two<kHalf>(s, p.power);
        float next[kColumns / 2];
        if constexpr (NEXT) start_unit(next, i + 1);
        const uint32_t w = take();
        multiply_half<0>(o, w, s, hidden[0]);
        warpgroup::wait<1>();  // not ahead of this product: compilers move a wait to before what does not need it
        give_back(2 * i + 1);
        if constexpr (NEXT) multiply_first(next);
        activate_by_two<kHalf>(s + kHalf, p.power);
        multiply_half<1>(o, w, s, hidden[1]);
        if constexpr (NEXT) {
            warpgroup::wait<1>();
            warpgroup::settle(next);
#pragma unroll
            for (int j = 0; j < kColumns / 2; ++j) s[j] = next[j];
        }
    }
    // Sums over this warpgroup's units. `s`: what the first unit is added to. 32 channels at a time, the first those of this warpgroup, with what is added to them, then those of the next ones.
    __device__ __forceinline__ void multiply_units(float (&o)[C / 2], float (&s)[kColumns / 2], const float (&rows)[16]) {
        const auto start = [&] {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 b = bias_pair(vectors(4 * C + group * 32 + 8 * j + 2 * t));
#pragma unroll
                for (int h = 0; h < 2; ++h) o[4 * j + 2 * h] = rows[4 * j + 2 * h] + b.x, o[4 * j + 2 * h + 1] = rows[4 * j + 2 * h + 1] + b.y;
            }
#pragma unroll
            for (int i = 16; i < C / 2; ++i) o[i] = 0.f;
        };
        const int units = pieces / 2;
        if (units == 0) return start();
        multiply_first(s);
        fetch_pieces(p.slots, 0);  // nobody reads Wproj any more, nor the heads' results
        start();
        warpgroup::wait<0>();
        warpgroup::settle(s);
        give_back(1);
#pragma unroll 1
        for (int i = 0; i + 1 < units; ++i) multiply_unit<true>(o, s, i);
        multiply_unit<false>(o, s, units - 1);
        warpgroup::wait<0>();
        warpgroup::settle(o);
    }
    // Where warpgroup `of` leaves its sums of the k-th warpgroup behind it: of each thread as they are in its registers, four at a time.
    __device__ __forceinline__ float4* share_at(int of, int k) const { return reinterpret_cast<float4*>(shared + of * Tile::kHead + (k - 1) * Tile::kShare) + threadIdx.x % 128; }
    __device__ __forceinline__ void finish(float (&o)[C / 2], const int (&of)[2]) const {
        wait_group();  // no warp's products still read the pieces that sums are written over
#pragma unroll
        for (int k = 1; k < G; ++k) {
            float4* const to = share_at(group, k);
#pragma unroll
            for (int j = 0; j < 4; ++j) to[128 * j] = make_float4(o[16 * k + 4 * j], o[16 * k + 4 * j + 1], o[16 * k + 4 * j + 2], o[16 * k + 4 * j + 3]);
        }
        __syncthreads();
#pragma unroll
        for (int k = 1; k < G; ++k) {
            const float4* const from = share_at(group >= k ? group - k : group - k + G, k);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float4 a = from[128 * j];
                o[4 * j] += a.x, o[4 * j + 1] += a.y, o[4 * j + 2] += a.z, o[4 * j + 3] += a.w;
            }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            uint32_t r[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) r[j] = pack_halves(o[4 * j + 2 * h], o[4 * j + 2 * h + 1]);
            exchange_tiles(r, t);
            if (of[h] >= 0) ptx::store(p.y + of[h], make_uint4(r[0], r[1], r[2], r[3]));
        }
    }

    __device__ __forceinline__ void fetch_vectors() const {
        if (group != 1 || warp != 3 || !ptx::elect()) return;
        const uint32_t barrier = at + Tile::kVectorsFull, bias = p.scores_bias ? static_cast<uint32_t>(G * p.tokens * p.bias_row * 2) : 0;
        mbarrier::expect(barrier, (5 * C + p.hidden) * 2 + bias);
        const auto copy = [&](int to, const __half* from, int count) { mbarrier::copy(at + Tile::kVectors + to * 2, from, count * 2, barrier, policy()); };
        copy(0, p.b_qkv, 3 * C), copy(3 * C, p.b_proj, C), copy(4 * C, p.b2, C), copy(5 * C, p.b1, p.hidden);
        if (bias > 0) mbarrier::copy(at + Tile::bias_at(p.hidden), p.scores_bias, bias, barrier, policy());
    }
    // All weights that have places.
    __device__ __forceinline__ void fetch() {
        fetch_head();
        if (group == 0 && warp == 3 && ptx::elect()) {
            const uint32_t barrier = at + Tile::kProjFull;
            mbarrier::expect(barrier, Tile::kProj);
            mbarrier::copy(at + Tile::kProjAt, p.w_proj, Tile::kProj, barrier, policy());
        }
        slot = 0, coming = 0, coming_slot = 0;
        fetch_pieces(p.own, 0);
    }

    __device__ __forceinline__ void run(uint32_t window) {
        const int of[2] = {offset(window, row), offset(window, row + 8)};
        // Worked out before the wait.
        const __half* from[2] = {p.x + of[0], p.x + of[1]};
        mbarrier::wait(at + Tile::kVectorsFull, 0);
        float q[16], kv[32], s[kKeys / 2];
        if constexpr (kEarly) {
            start_heads(q, kv), start_scores(window, s);
            warpgroup::settle(q), warpgroup::settle(kv), warpgroup::settle(s);
        }
        asm volatile("" : "+l"(from[0]), "+l"(from[1]));
        ptx::wait_for_previous();
        uint32_t r[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const uint4 raw = of[h] >= 0 ? __ldcg(reinterpret_cast<const uint4*>(from[h])) : make_uint4(0, 0, 0, 0);
            r[h][0] = raw.x, r[h][1] = raw.y, r[h][2] = raw.z, r[h][3] = raw.w;
        }
        exchange_tiles(r[0], t), exchange_tiles(r[1], t);
        float v[16];
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float2 x = floats(r[h][j]);
                v[4 * j + 2 * h] = x.x, v[4 * j + 2 * h + 1] = x.y;
            }
        normalize(v, of);
        {
            uint32_t out[2][4];
            attend(window, q, kv, s, out);
            store_columns(Tile::kResultsAt, out);
        }
        float o[C / 2], hidden[kColumns / 2];
        project(r, v, [&] {
            fetch_pieces(p.own + Tile::kInHead, 0);
            if constexpr (kEarly) start_unit(hidden, 0);
        });
        normalize(v, of);
        if constexpr (!kEarly) start_unit(hidden, 0);
        multiply_units(o, hidden, v);
        finish(o, of);
        phases ^= 1u << 31;
    }
};

template <class Tile> __global__ void __launch_bounds__(Tile::kThreads, 1) chain_pair_kernel(const __grid_constant__ ChainPairArgs p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    ptx::let_next_start();
    extern __shared__ unsigned char unaligned[];
    const uint32_t unaligned_at = ptx::shared_address(unaligned), at = (unaligned_at + 1023) & ~1023u;
    unsigned char* const shared = unaligned + (at - unaligned_at);
    const int tid = threadIdx.x, group = __shfl_sync(0xffffffffu, tid / 128, 0), warp = __shfl_sync(0xffffffffu, tid / 32 % 4, 0), lane = tid % 32;
    const int units = p.hidden / Tile::kColumns;
    ChainPair<Tile> block{p, shared, at, group, lane, warp, lane % 4, warp * 16 + lane / 4, 2 * ((units - group + Tile::kGroups - 1) / Tile::kGroups)};
    if (tid == 0) {
        for (int i = 0; i < Tile::kBarriers; ++i) mbarrier::init(at + Tile::kQkvFull + i * 8, i < Tile::kGroups ? 3 : i < Tile::kGroups + 2 ? 1 : 4);
        mbarrier::publish();
    }
    if (tid % 32 == 1) ptx::ask_for_arguments(p, at + Tile::kParts, tid / 32);
    __syncthreads();
    // Weights are constants, so they need not wait for the kernel before.
    block.fetch_vectors();
#pragma unroll 1
    for (uint32_t window = blockIdx.x; window < p.windows; window += gridDim.x) {
        if (window != blockIdx.x) {
            // Sums have been read from where weights come to.
            tensor_copy::fence_shared();
            __syncthreads();
        }
        block.fetch();
        block.run(window);
    }
#endif
}

}  // namespace trt_opt
