// The attention block of many windows as one kernel on the warpgroup instructions of sm_90a: queries, keys, values, scores and what the heads give never leave the multiprocessor.
// A warpgroup has a window of up to 64 tokens, a row of which is in four lanes of a warp from the norm to the end. The normalized rows stay in registers, as left operands, and so do a
// head's queries, the weights of its keys and what it gives, since results of one product have the layout that the next one wants on its left; only keys and values, on the right, pass
// through shared memory, so that a head has one barrier of its warpgroup. All warpgroups of a block share the weights.
//
// A lane loads and stores 8 channels at a time: lane t of a row's four has 8 t to 8 t + 7 of each 32. As left operands they are the contracted elements 2 t, 2 t + 1 of the four times
// eight, so the copy engine fetches the rows of Wqkv in that order.
//
// HEADS > 0, as many as there are 32 channels: all weights stay in shared memory, heads are straight code, and what they give is kept for one product. 0: as many heads as there are, each
// added to the block's result at once; a warp has weights fetched into a ring, or once if it has as many stages as there are heads. SPLIT: a block has a window, a warpgroup a head of it;
// what the heads give goes through shared memory once, and each warpgroup has 32 columns of the result.
#pragma once

#include <cuda.h>
#include <math_constants.h>

#include <type_traits>

#include "attn_fused_wide.h"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "tensor_copy.cuh"
#include "warpgroup.cuh"
#include "warpgroup_registers.cuh"
#include "window_map.cuh"
#include "window_regions.cuh"
#include "window_scores.cuh"

namespace trt_opt {

struct AttnFusedArgs {
    CUtensorMap qkv, proj;  // 32 columns of all of Wqkv's rows, ordered as above; of 32 rows of Wproj
    const __half *x, *residual, *norm_scale, *norm_bias, *b_qkv, *b_proj, *bias;
    __half* y;
    uint32_t windows;
    int tokens, heads, stages;
    int planes;             // of the scores' bias in shared memory: one for all heads, or one for each
    bool dense, table;      // what the bias is
    bool mapped;            // row r of the windows is map.source(r)
    bool shifted;           // with the mask of shifted windows
    float epsilon, each, scale, mask_value;
    FastDiv by_tokens;
    WindowMap map;
    WindowRegions regions;
};

// KEYS: the window's tokens rounded up, 56 or 64. GROUPS: warpgroups.
template <int CHUNKS, int KEYS, int GROUPS, int HEADS, bool SPLIT = false> struct AttnFusedTile {
    static_assert(!SPLIT || (GROUPS == HEADS && HEADS == CHUNKS));
    static constexpr int kChunks = CHUNKS, kKeys = KEYS, kGroups = GROUPS, kHeads = HEADS, kChannels = 32 * CHUNKS;
    static constexpr bool kSplit = SPLIT;
    static constexpr int kOwnChunks = SPLIT ? 1 : CHUNKS;  // of 32 columns of the result, that a warpgroup has
    static constexpr int kThreads = GROUPS * 128 + (HEADS > 0 ? 0 : 128);  // the last 128 are there for their registers, and one of them to fetch weights
    // A head's weights: 32 columns each for queries, keys and values, and 32 rows of Wproj, in parts of 32 columns.
    static constexpr int kPart = kChannels * 64, kProjPart = 32 * 64, kStage = 3 * kPart + CHUNKS * kProjPart;
    static constexpr int kPairs = 2 * 64 * 64, kPairsBytes = GROUPS * (SPLIT ? 1 : 2) * kPairs;  // a head's keys and values, twice a warpgroup that has several heads
    static constexpr int kResults = GROUPS * 128 * 32, kResultsBytes = SPLIT ? 2 * kResults : 0;  // of a window's heads, by turns
    static constexpr int kBiasRow = KEYS % 16 == 8 ? KEYS : KEYS + 8;             // elements: an odd number of eight, so that eight rows lie in different banks
    using Bias = std::conditional_t<(HEADS > 0 && CHUNKS <= 3), float, __half>;   // where there is room, what need not be converted

    // Bytes of shared memory, and of what is behind the ring.
    static constexpr int fixed(int heads, int tokens, int planes) {
        return 1024 + kPairsBytes + kResultsBytes + planes * tokens * kBiasRow * static_cast<int>(sizeof(Bias)) + 3 * 32 * heads * 4 + kChannels * 8;
    }
    static constexpr int shared(int heads, int tokens, int planes, int stages) { return fixed(heads, tokens, planes) + stages * (kStage + 32); }
};

namespace fused {

// A place in the ring.
struct Position {
    int slot = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void next(int stages) {
        if (++slot == stages) slot = 0, parity ^= 1;
    }
};

// What a block has in shared memory: addresses of what the engines use, pointers to the rest.
template <class Tile> struct Shared {
    uint32_t ring, pairs;
    uint4* results;
    typename Tile::Bias* bias;
    float *b_qkv, *b_proj;
    __half *norm_scale, *norm_bias;
    uint32_t full, empty;  // barriers of the stages, two each: of Wqkv's columns and of Wproj's rows
};

// What some kernels know.
template <class Tile> __device__ __forceinline__ int heads_of(const AttnFusedArgs& p) { return Tile::kHeads > 0 ? Tile::kHeads : p.heads; }
template <class Tile> __device__ __forceinline__ int stages_of(const AttnFusedArgs& p) { return Tile::kHeads > 0 ? Tile::kHeads : p.stages; }

template <class Tile> struct Block {
    static constexpr int kChunks = Tile::kChunks, kKeys = Tile::kKeys, kChannels = Tile::kChannels, kOwnChunks = Tile::kOwnChunks;
    static constexpr bool kRing = Tile::kHeads == 0;

    const AttnFusedArgs& p;
    const Shared<Tile>& at;
    int group, lane, t, row;     // row: the first of the window's two that this lane has a part of; 8 on is the other
    uint32_t to_pairs;           // where this lane's row of a matrix of keys goes
    Position stage;
    uint32_t other_pairs = 0;    // 0 or the bytes of a head's keys and values, by turns
    int other_results = 0;
    uint32_t a[kChunks][2][4];   // the rows
    uint32_t others[2][2];       // keys 8 j + 2 t + e, at 8 j + e, that are in other regions than the rows

    __device__ __forceinline__ int token(uint32_t window, int r) const {
        if (window >= p.windows || r >= p.tokens) return -1;
        const uint32_t number = window * static_cast<uint32_t>(p.tokens) + static_cast<uint32_t>(r);
        return static_cast<int>(p.mapped ? p.map.source(number) : int64_t{number});
    }
    __device__ __forceinline__ int64_t offset(int of) const { return int64_t{of} * kChannels + t * 8; }
    __device__ __forceinline__ int own_chunk(int i) const { return Tile::kSplit ? group : i; }

    __device__ __forceinline__ void prefetch(uint32_t window) const {
        const int of[2] = {token(window, row), token(window, row + 8)};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (of[h] < 0) continue;
#pragma unroll
            for (int i = 0; i < kChunks; ++i) {
                ptx::prefetch_l2(p.x + offset(of[h]) + i * 32);
                if (p.residual) ptx::prefetch_l2(p.residual + offset(of[h]) + i * 32);
            }
        }
    }

    template <class F> __device__ __forceinline__ void each_pair(int h, const F& f) {
#pragma unroll
        for (int i = 0; i < kChunks; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) f(i, e, floats(a[i][h][e]));
    }

    // The rows of two tokens, normalized; zeros where there is none.
    __device__ __forceinline__ void normalize(const int (&of)[2]) {
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int i = 0; i < kChunks; ++i) {
                uint4 raw = make_uint4(0, 0, 0, 0);
                if (of[h] >= 0) raw = __ldcg(reinterpret_cast<const uint4*>(p.x + offset(of[h]) + i * 32));
                a[i][h][0] = raw.x, a[i][h][1] = raw.y, a[i][h][2] = raw.z, a[i][h][3] = raw.w;
            }
        if (p.residual) {
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int i = 0; i < kChunks; ++i) {
                    if (of[h] < 0) continue;
                    const uint4 raw = __ldcg(reinterpret_cast<const uint4*>(p.residual + offset(of[h]) + i * 32));
                    const uint32_t w[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const float2 v = floats(a[i][h][e]), r = floats(w[e]);
                        a[i][h][e] = pack_halves(v.x + r.x, v.y + r.y);
                    }
                }
        }
        float mean[2], variance[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float sum = 0.f, squares = 0.f;
            each_pair(h, [&](int, int, float2 v) { sum += v.x, sum += v.y, squares = fmaf(v.x, v.x, squares), squares = fmaf(v.y, v.y, squares); });
            sum = group_sum<4>(sum), squares = group_sum<4>(squares);
            mean[h] = sum * p.each, variance[h] = fmaf(-mean[h], mean[h], squares * p.each);
        }
        constexpr float kFar = 1e-3f;
        if (__any_sync(0xffffffffu, variance[0] < kFar * mean[0] * mean[0] || variance[1] < kFar * mean[1] * mean[1])) {
            // A mean so far from zero leaves the variance few digits.
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float squares = 0.f;
                each_pair(h, [&](int, int, float2 v) { squares = fmaf(v.x - mean[h], v.x - mean[h], squares), squares = fmaf(v.y - mean[h], v.y - mean[h], squares); });
                variance[h] = group_sum<4>(squares) * p.each;
            }
        }
        float factor[2], shift[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) factor[h] = rsqrtf(variance[h] + p.epsilon), shift[h] = -mean[h] * factor[h];
#pragma unroll
        for (int i = 0; i < kChunks; ++i) {
            const uint4 s = *reinterpret_cast<const uint4*>(at.norm_scale + i * 32 + t * 8), b = *reinterpret_cast<const uint4*>(at.norm_bias + i * 32 + t * 8);
            const uint32_t scales[4] = {s.x, s.y, s.z, s.w}, biases[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float2 scale = floats(scales[e]), bias = floats(biases[e]);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const float2 v = floats(a[i][h][e]);
                    const uint32_t pair = pack_halves(fmaf(fmaf(v.x, factor[h], shift[h]), scale.x, bias.x), fmaf(fmaf(v.y, factor[h], shift[h]), scale.y, bias.y));
                    a[i][h][e] = of[h] >= 0 ? pair : 0u;
                }
            }
        }
    }

    __device__ __forceinline__ void find_regions(uint32_t window) {
        others[0][0] = others[0][1] = others[1][0] = others[1][1] = 0;
        if (p.shifted) p.regions.find_others(window, row, lane, others);
    }

    // Of the head's results by the lane's two rows: left operands of the product with 32 rows of Wproj.
    __device__ __forceinline__ void attend(int head, uint32_t (&out)[8]) {
        const uint32_t weights = at.ring + stage.slot * Tile::kStage;
        float q[16], kv[32];
        const float* const b = at.b_qkv + head * 32 + 2 * t;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 bq = *reinterpret_cast<const float2*>(b + 8 * j), bk = *reinterpret_cast<const float2*>(b + 32 * heads_of<Tile>(p) + 8 * j), bv = *reinterpret_cast<const float2*>(b + 64 * heads_of<Tile>(p) + 8 * j);
#pragma unroll
            for (int h = 0; h < 2; ++h)
                q[4 * j + 2 * h] = bq.x, q[4 * j + 2 * h + 1] = bq.y, kv[4 * j + 2 * h] = bk.x, kv[4 * j + 2 * h + 1] = bk.y, kv[16 + 4 * j + 2 * h] = bv.x, kv[16 + 4 * j + 2 * h + 1] = bv.y;
        }
        mbarrier::wait(at.full + stage.slot * 16, stage.parity);
        warpgroup::settle(q), warpgroup::settle(kv);
        warpgroup::begin();
#pragma unroll
        for (int k = 0; k < 2 * kChunks; ++k) {
            const auto& r = a[k / 2];
            const int e = k % 2 * 2;
            warpgroup::multiply_rows(kv, r[0][e], r[1][e], r[0][e + 1], r[1][e + 1], warpgroup::swizzled(weights + Tile::kPart + k * 1024, Tile::kPart), 1);
        }
        warpgroup::commit();
#pragma unroll
        for (int k = 0; k < 2 * kChunks; ++k) {
            const auto& r = a[k / 2];
            const int e = k % 2 * 2;
            warpgroup::multiply_rows(q, r[0][e], r[1][e], r[0][e + 1], r[1][e + 1], warpgroup::swizzled(weights + k * 1024, 16), 1);
        }
        warpgroup::commit();

        // Keys and values, while the queries are made. All warps are behind the barrier of the head before, so none reads what the head before that had here.
        warpgroup::wait<1>();
        warpgroup::settle(kv);
        const uint32_t keys = at.pairs + group * (Tile::kPairsBytes / Tile::kGroups) + other_pairs, values = keys + Tile::kPairs / 2;
        if constexpr (!Tile::kSplit) other_pairs ^= Tile::kPairs;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                uint32_t r[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) r[j] = pack_halves(kv[16 * half + 4 * j + 2 * h], kv[16 * half + 4 * j + 2 * h + 1]);
                warpgroup::store_matrices4(keys + to_pairs + half * (Tile::kPairs / 2) + h * 512, r[0], r[1], r[2], r[3]);
            }
        tensor_copy::fence_shared();
        warpgroup::wait<0>();
        warpgroup::settle(q);
        if (kRing && p.stages < p.heads && lane == 0) mbarrier::arrive(at.empty + stage.slot * 16);
        uint32_t queries[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) queries[i] = pack_halves(q[2 * i], q[2 * i + 1]);
        ptx::barrier_wait(1 + group, 128);

        float s[kKeys / 2];
        score_keys<kKeys>(s, queries, keys);

        const typename Tile::Bias* const plane = at.bias + (p.planes == 1 ? 0 : head * p.tokens) * Tile::kBiasRow + 2 * t;
        const auto bias_of = [&](int r) { return plane + min(r, p.tokens - 1) * Tile::kBiasRow; };
        uint32_t weight[2 * (kKeys / 8)];
        float inverse[2];
        weigh_keys<kKeys>(s, {bias_of(row), bias_of(row + 8)}, others, p.scale, p.mask_value, weight, inverse);

        float o[16];
        weigh_values<kKeys>(o, weight, values);
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] = pack_halves(o[2 * i] * inverse[i % 2], o[2 * i + 1] * inverse[i % 2]);
        if constexpr (!kRing && !Tile::kSplit) {
            // Never stored. The assembler would pack them where they are used, behind the last head, and so keep twice the registers.
#pragma unroll
            for (int i = 0; i < 8; i += 4)
                asm volatile("{.reg .pred p;\n\tsetp.eq.s32 p, %0, 0;\n\t@p st.shared.v4.u32 [%1], {%2, %3, %4, %5};}" ::"r"(p.tokens), "r"(keys), "r"(out[i]), "r"(out[i + 1]), "r"(out[i + 2]), "r"(out[i + 3]));
        }
    }

    __device__ __forceinline__ void begin_sums(float (&y)[16 * kOwnChunks]) const {
#pragma unroll
        for (int j = 0; j < 4 * kOwnChunks; ++j) {
            const float2 b = *reinterpret_cast<const float2*>(at.b_proj + 32 * own_chunk(j / 4) + 8 * (j % 4) + 2 * t);
#pragma unroll
            for (int h = 0; h < 2; ++h) y[4 * j + 2 * h] = b.x, y[4 * j + 2 * h + 1] = b.y;
        }
    }
    // y += what a head gives, by its rows of Wproj, which are in stage `slot`.
    __device__ __forceinline__ void project(float (&y)[16 * kOwnChunks], const uint32_t (&out)[8], int slot) const {
        const uint32_t weights = at.ring + slot * Tile::kStage + 3 * Tile::kPart + own_chunk(0) * Tile::kProjPart;
#pragma unroll
        for (int k = 0; k < 2; ++k) warpgroup::multiply_rows(y, out[4 * k], out[4 * k + 1], out[4 * k + 2], out[4 * k + 3], warpgroup::swizzled(weights + k * 1024, Tile::kProjPart), 1);
    }

    struct Added {
        uint4 raw[2][kOwnChunks];
    };
    __device__ __forceinline__ void load_added(const int (&of)[2], Added& added) const {
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int i = 0; i < kOwnChunks; ++i) added.raw[h][i] = of[h] >= 0 ? __ldcg(reinterpret_cast<const uint4*>(p.x + offset(of[h]) + own_chunk(i) * 32)) : make_uint4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void store(const int (&of)[2], const float (&y)[16 * kOwnChunks], Added& added) const {
        if (p.residual) {
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int i = 0; i < kOwnChunks; ++i) {
                    if (of[h] < 0) continue;
                    Pack<__half, 8> s(added.raw[h][i]);
                    add_packs<__half, 8>(s, Pack<__half, 8>(__ldcg(reinterpret_cast<const uint4*>(p.residual + offset(of[h]) + own_chunk(i) * 32))));
                    added.raw[h][i] = s.raw;
                }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int i = 0; i < kOwnChunks; ++i) {
                uint32_t r[4] = {added.raw[h][i].x, added.raw[h][i].y, added.raw[h][i].z, added.raw[h][i].w};
                exchange_tiles(r, t);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const float2 s = floats(r[j]);
                    const int from = (i * 4 + j) * 4 + 2 * h;
                    r[j] = pack_halves(y[from] + s.x, y[from + 1] + s.y);
                }
                exchange_tiles(r, t);
                if (of[h] >= 0) *reinterpret_cast<uint4*>(p.y + offset(of[h]) + own_chunk(i) * 32) = make_uint4(r[0], r[1], r[2], r[3]);
            }
    }

    // A window; `next`: the one after it.
    __device__ __forceinline__ void run(uint32_t window, uint32_t next) {
        const int of[2] = {token(window, row), token(window, row + 8)};
        normalize(of);
        prefetch(next);
        find_regions(window);
        float y[16 * kOwnChunks];
        Added added;
        if constexpr (kRing) {
            begin_sums(y);
#pragma unroll 1
            for (int head = 0; head < p.heads; ++head) {
                uint32_t out[8];
                attend(head, out);
                mbarrier::wait(at.full + stage.slot * 16 + 8, stage.parity);
                warpgroup::settle(y);
                warpgroup::begin();
                project(y, out, stage.slot);
                warpgroup::commit();
                warpgroup::wait<0>();
                warpgroup::settle(y);
                pass(true);
            }
            load_added(of, added);
        } else {
            uint32_t out[Tile::kHeads][8];
            if constexpr (Tile::kSplit) {
                stage.slot = group, attend(group, out[0]);
                load_added(of, added);
                // A lane of each warpgroup has these rows. Who is behind the barrier has read what the window before last had here, and keys and values of this one.
                uint4* const results = at.results + other_results + threadIdx.x % 128;
                other_results ^= Tile::kResults / 16;
                results[group * 256] = make_uint4(out[0][0], out[0][1], out[0][2], out[0][3]), results[group * 256 + 128] = make_uint4(out[0][4], out[0][5], out[0][6], out[0][7]);
                __syncthreads();
#pragma unroll
                for (int head = 0; head < Tile::kHeads; ++head)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const uint4 r = results[head * 256 + half * 128];
                        out[head][4 * half] = r.x, out[head][4 * half + 1] = r.y, out[head][4 * half + 2] = r.z, out[head][4 * half + 3] = r.w;
                    }
            } else {
#pragma unroll
                for (int head = 0; head < Tile::kHeads; ++head) stage.slot = head, attend(head, out[head]);
            }
            begin_sums(y);
            for (int head = 0; head < Tile::kHeads; ++head) mbarrier::wait(at.full + head * 16 + 8, 0);
            warpgroup::settle(y);
            warpgroup::begin();
#pragma unroll
            for (int head = 0; head < Tile::kHeads; ++head) project(y, out[head], head);
            warpgroup::commit();
            if constexpr (!Tile::kSplit) load_added(of, added);
            warpgroup::wait<0>();
            warpgroup::settle(y);
        }
        store(of, y, added);
    }

    // To the next stage; done with this one's part of Wproj, and with that of Wqkv unless that was said before.
    __device__ __forceinline__ void pass(bool said) {
        if (p.stages >= p.heads) {
            if (++stage.slot == p.heads) stage.slot = 0;
            return;
        }
        if (lane == 0) {
            if (!said) mbarrier::arrive(at.empty + stage.slot * 16);
            mbarrier::arrive(at.empty + stage.slot * 16 + 8);
        }
        stage.next(p.stages);
    }
    // Through the weights of a window that another warpgroup of the block has and this one has not.
    __device__ __forceinline__ void skip() {
        if (p.stages >= p.heads) return;
        for (int head = 0; head < p.heads; ++head) {
            mbarrier::wait(at.full + stage.slot * 16, stage.parity), mbarrier::wait(at.full + stage.slot * 16 + 8, stage.parity);
            __syncwarp();  // no lane may still wait when the stage is filled anew
            pass(false);
        }
    }
};

// A head's weights to a stage: Wqkv's columns, or Wproj's rows.
template <class Tile> __device__ __forceinline__ void fetch_qkv(const AttnFusedArgs& p, const Shared<Tile>& at, int head, int slot) {
    const uint32_t full = at.full + slot * 16;
    mbarrier::expect(full, 3 * Tile::kPart);
    for (int part = 0; part < 3; ++part) tensor_copy::load5(at.ring + slot * Tile::kStage + part * Tile::kPart, p.qkv, (part * heads_of<Tile>(p) + head) * 32, full);
}
template <class Tile> __device__ __forceinline__ void fetch_proj(const AttnFusedArgs& p, const Shared<Tile>& at, int head, int slot) {
    const uint32_t full = at.full + slot * 16 + 8;
    mbarrier::expect(full, Tile::kChunks * Tile::kProjPart);
    for (int part = 0; part < Tile::kChunks; ++part) tensor_copy::load(at.ring + slot * Tile::kStage + 3 * Tile::kPart + part * Tile::kProjPart, p.proj, part * 32, head * 32, full);
}

// The scores' bias, with -inf for keys that the window has not.
template <class Tile> __device__ __forceinline__ void gather_bias(const AttnFusedArgs& p, typename Tile::Bias* to, int tid) {
    const auto key_row = [&](int token) { return token + static_cast<int>(p.regions.by_window_w.div(static_cast<uint32_t>(token))) * (p.map.window_w - 1); };
    const int center = (p.map.window_h - 1) * (2 * p.map.window_w - 1) + p.map.window_w - 1;
    const int count = p.planes * p.tokens * Tile::kBiasRow;
    const auto gather = [&](const auto& place) {
        // So many loads at once as hide their way.
        constexpr int kOnce = 8;
        for (int first = tid; first < count; first += kOnce * Tile::kThreads) {
            __half raw[kOnce];
#pragma unroll
            for (int u = 0; u < kOnce; ++u) {
                const int i = min(first + u * Tile::kThreads, count - 1), line = i / Tile::kBiasRow, key = min(i % Tile::kBiasRow, p.tokens - 1);
                raw[u] = p.bias[place(line, key)];
            }
#pragma unroll
            for (int u = 0; u < kOnce; ++u)
                if (const int i = first + u * Tile::kThreads; i < count) to[i] = from_float<typename Tile::Bias>(i % Tile::kBiasRow < p.tokens ? __half2float(raw[u]) : -CUDART_INF_F);
        }
    };
    if (p.dense) {
        gather([&](int line, int key) { return line * p.tokens + key; });
    } else if (p.table) {
        gather([&](int line, int key) {
            uint32_t query;
            const int head = static_cast<int>(p.by_tokens.divmod(static_cast<uint32_t>(line), query));
            return (key_row(static_cast<int>(query)) + center - key_row(key)) * p.heads + head;
        });
    } else {
        for (int i = tid; i < count; i += Tile::kThreads) to[i] = from_float<typename Tile::Bias>(i % Tile::kBiasRow < p.tokens ? 0.f : -CUDART_INF_F);
    }
}

}  // namespace fused

template <class Tile> __global__ void __launch_bounds__(Tile::kThreads, 1) attn_fused_kernel(const __grid_constant__ AttnFusedArgs p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    using namespace fused;
    constexpr bool kRing = Tile::kHeads == 0;
    extern __shared__ unsigned char unaligned[];
    const uint32_t unaligned_at = ptx::shared_address(unaligned), start = (unaligned_at + 1023) & ~1023u;
    Shared<Tile> at;
    const int heads = heads_of<Tile>(p), stages = stages_of<Tile>(p);
    at.ring = start, at.pairs = at.ring + stages * Tile::kStage, at.full = at.pairs + Tile::kPairsBytes + Tile::kResultsBytes, at.empty = at.full + stages * 16;
    at.results = reinterpret_cast<uint4*>(unaligned + (at.pairs + Tile::kPairsBytes - unaligned_at));
    at.b_proj = reinterpret_cast<float*>(unaligned + (at.empty + stages * 16 - unaligned_at));
    at.norm_scale = reinterpret_cast<__half*>(at.b_proj + Tile::kChannels), at.norm_bias = at.norm_scale + Tile::kChannels;
    at.b_qkv = reinterpret_cast<float*>(at.norm_bias + Tile::kChannels);
    at.bias = reinterpret_cast<typename Tile::Bias*>(at.b_qkv + 96 * heads);
    const int tid = threadIdx.x, group = __shfl_sync(0xffffffffu, tid / 128, 0);  // the same in a warp, as the compiler sees then
    const uint32_t step = gridDim.x * (Tile::kSplit ? 1 : Tile::kGroups);

    ptx::let_next_start();
    if (tid == 0) {
        for (int i = 0; i < 2 * stages; ++i) mbarrier::init(at.full + i * 8, 1), mbarrier::init(at.empty + i * 8, 4 * Tile::kGroups);
        mbarrier::publish();
        // Weights are constants, so they need not wait for the kernel before.
#pragma unroll 1
        for (int head = 0; head < stages; ++head) fetch_qkv<Tile>(p, at, head, head);
#pragma unroll 1
        for (int head = 0; head < stages; ++head) fetch_proj<Tile>(p, at, head, head);
    }
    for (int i = tid; i < 96 * heads; i += Tile::kThreads) at.b_qkv[i] = __half2float(p.b_qkv[i]);
    for (int i = tid; i < Tile::kChannels; i += Tile::kThreads) at.b_proj[i] = __half2float(p.b_proj[i]), at.norm_scale[i] = p.norm_scale[i], at.norm_bias[i] = p.norm_bias[i];
    const int lane = tid % 32, row = tid % 128 / 32 * 16 + lane / 4;
    // Rows 8 apart, so that the bits of the swizzle are the lane's alone.
    const uint32_t to_pairs = static_cast<uint32_t>((tid % 128 / 32 * 16 + lane % 8) * 64 + (lane / 8 ^ lane % 8 / 2) * 16);
    Block<Tile> block{p, at, group, lane, lane % 4, row, to_pairs};
    // Windows by turns, the first of a block's warpgroups before the second of any.
    uint32_t window = blockIdx.x + (Tile::kSplit || (kRing && group == Tile::kGroups) ? 0 : group * gridDim.x);
    ptx::wait_for_previous();
    if (!kRing || group < Tile::kGroups) block.prefetch(window);
    gather_bias<Tile>(p, at.bias, tid);
    __syncthreads();

    if (kRing && group == Tile::kGroups) {
        if constexpr (Tile::kGroups == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        else asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        if (tid % 128 != 0) return;
        if (p.stages >= p.heads) return;
        // The first weights for each stage are under way.
        Position stage;
        int head = p.stages;
        for (; window < p.windows; window += step, head = 0)
            for (; head < p.heads; ++head, stage.next(p.stages)) {
                mbarrier::wait(at.empty + stage.slot * 16, stage.parity);
                fetch_qkv<Tile>(p, at, head, stage.slot);
                mbarrier::wait(at.empty + stage.slot * 16 + 8, stage.parity);
                fetch_proj<Tile>(p, at, head, stage.slot);
            }
        return;
    }

    if constexpr (kRing && Tile::kGroups == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    else if constexpr (kRing) asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
#pragma unroll 1
    for (uint32_t first = blockIdx.x; kRing ? first < p.windows : window < p.windows; first += step, window += step) {
        if (!kRing || window < p.windows) block.run(window, window + step);
        else block.skip();
    }
#endif
}

}  // namespace trt_opt
