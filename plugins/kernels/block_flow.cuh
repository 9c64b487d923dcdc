// A chain of blocks over sequences, in the phases of block_chain.cuh but without barriers of the device between them: whatever a phase hands on is in memory that has been
// filled with words that no result is, and whoever needs it loads it until none of these words is left. So a result is on its way as soon as it is stored, and nothing waits for stores to have
// landed, nor for blocks that it takes nothing from. What the sharers of a contracted index exchange goes the same way, each of which ends a part of the rows.
//
// Such memory is filled anew before each use, by two more warps: there are three copies of it, which the pairs take by turns, so that one is filled while the two
// others are in use. A barrier of the device, which nothing on the way of the data waits for, says when all blocks are done with a copy and when all have filled their
// shares of the next.
#pragma once

#include "block_chain.cuh"

namespace trt_opt {

namespace flow {

using namespace chain;

constexpr int kHelpers = 64, kCopies = 3;

// Barriers: the ring's; the copies of pairs by turns are to be written; a pair is over.
struct FlowRings : Rings {
    uint32_t permitted, finished;
};

__device__ __forceinline__ uint32_t most_of(uint4 v) { return max(max(v.x, v.y), max(v.z, v.w)); }

// Until a word is there: few ask for one each while nothing is there yet, so that others have the cache.
__device__ __forceinline__ void await(const void* at) {
    while (load_made(at) == kUnset) {
    }
}
// Until all are set; once if they need not be waited for.
template <int COUNT, class Load> __device__ __forceinline__ void until_set(uint4 (&v)[COUNT], const Load& load, bool waits = true) {
    uint32_t most;
    do {
        most = 0;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) v[i] = load(i);
#pragma unroll
        for (int i = 0; i < COUNT; ++i) most = max(most, most_of(v[i]));
    } while (waits && most == kUnset);
}

// The warps that fill the copies. A copy is a pair's for all but what the pair gives, which lies in the next one's. The device's barrier opens for the `pair`-th time when
// all blocks have filled their shares of the copy of this pair and are done with the pair two before it, so that the copy of the pair after this one may be filled.
__device__ __forceinline__ void fill_copies(const ChainArgs& p, const FlowRings& r, int thread) {
    const uint32_t start = load_made(p.barrier);
    const int first = static_cast<int>(blockIdx.x) * p.unset_share, end = min(first + p.unset_share, p.unset);
    const auto open = [&](int pair) {
        if (thread == 0) {
            wait_device(p.barrier, start, pair + 1);
            mbarrier::arrive(r.permitted + (pair & 1) * 8);
        }
        ptx::barrier_wait(5, kHelpers);
    };
    unsigned char* to = p.copies;
    const int vectors = 3 * p.inner + (p.bias ? p.heads * p.group_tokens * p.bias_row : 0) + p.hidden_columns + 2 * p.channels, tokens = p.tokens * p.channels;
    // What a pair adds to its products is asked of memory a pair ahead of its use.
    const auto prefetch = [&](const __half* from, int count) {
        constexpr int kLine = 64;
        for (int i = static_cast<int>(blockIdx.x) * kHelpers + thread; i < count / kLine; i += static_cast<int>(gridDim.x) * kHelpers) ptx::prefetch_l2(from + i * kLine);
    };
#pragma unroll 1
    for (int pair = 0; pair < p.pairs; ++pair) {
        if (pair > 0) open(pair - 1);
        prefetch(p.vectors + static_cast<int64_t>(pair) * vectors, vectors);
        if (p.between && pair + 1 < p.pairs) prefetch(p.between + static_cast<int64_t>(pair) * tokens, tokens);
        for (int i = first + thread; i < end; i += kHelpers) store_made(to + int64_t{i} * 16, make_uint4(kUnset, kUnset, kUnset, kUnset));
        if (pair >= 2) mbarrier::wait(r.finished, pair & 1);
        ptx::barrier_wait(5, kHelpers);
        if (thread == 0) arrive_device(p.barrier);
        to = pair % kCopies == kCopies - 1 ? p.copies : to + p.copy_bytes;
    }
    open(p.pairs - 1);
}

template <int DIM, int PIECES> struct Flow : Blocks {
    const FlowRings& r;
    int pair;

    static constexpr int kBatch = PIECES <= 6 ? 6 : 8;

    // What is added to what a pair gives; or null.
    __device__ __forceinline__ const __half* between_of(int pair) const {
        return p.between && pair + 1 < p.pairs ? p.between + int64_t{pair} * p.tokens * p.channels : nullptr;
    }

    // Token of a row of a tile of a group's queries, or -1.
    __device__ __forceinline__ int64_t group_token(int tile, int row) const {
        uint32_t part;
        const int group = static_cast<int>(p.by_group_tiles.divmod(static_cast<uint32_t>(tile), part)), at = static_cast<int>(part) * p.tile_rows + row;
        return row < p.tile_rows && at < p.group_tokens ? group * p.group_tokens + at : -1;
    }

    // All of this follows from the pair alone, which is hidden from the compiler as thread numbers are, so that it takes no registers while it is not needed.
    __device__ __forceinline__ bool made() const { return pair > 0; }  // what the pair reads, in this kernel
    __device__ __forceinline__ bool last() const { return pair + 1 == p.pairs; }
    // A pair's copy of what the first has at `first`.
    template <class T> __device__ __forceinline__ T* copy_of(T* first, int of) const {
        return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(first) + static_cast<uint32_t>(of) % kCopies * p.copy_bytes);
    }
    template <class T> __device__ __forceinline__ T* own(T* first) const { return copy_of(first, pair); }
    __device__ __forceinline__ const __half* from() const { return made() ? own(p.stream) : p.x; }
    __device__ __forceinline__ const __half* vectors() const { return p.vectors + static_cast<int64_t>(pair) * (down_at() + p.channels); }
    __device__ __forceinline__ void forget() {
        m.forget();
        asm volatile("" : "+r"(pair));
    }

    // Before the first pair hands on or takes what the kernel makes, for all of which that holds already.
    __device__ __forceinline__ void await_first_copy() const {
        if (!made()) mbarrier::wait(r.permitted, 0);
    }

    // Pieces of rows that other blocks make, as they lie, to shared memory: 16 bytes each, up to BATCH a thread at a time. Behind a barrier they are the tensor cores'.
    template <int BATCH> __device__ __forceinline__ void take_rows(const __half* rows, int count) const {
        if (m.lane == 0 && m.tid < count) await(rows + m.tid * 8);
        __syncwarp();
#pragma unroll 1
        for (int begin = m.tid; begin < count; begin += BATCH * kChainMath) {
            uint4 v[BATCH];
            const __half* const first = rows + begin * 8;
            until_set<BATCH>(v, [&](int i) { return begin + i * kChainMath < count ? load_made4(first + i * kChainMath * 8) : make_uint4(0, 0, 0, 0); });
#pragma unroll
            for (int i = 0; i < BATCH; ++i)
                if (begin + i * kChainMath < count) store_shared(at.rows + (begin + i * kChainMath) * 16, v[i]);
        }
        fence_engines_shared();
        math_barrier();
    }

    // Up to 64 rows of tokens, normalized, to shared memory; rows without a token are zeros. Eight threads have a row. `made`: in this kernel.
    template <class Token> __device__ __forceinline__ void normalize_rows(const __half* stream, bool made, const Token& token_of) {
        const int row = m.tid / 8, part = m.tid % 8;
        const int64_t token = token_of(row);
        const int pieces = p.channels / 8;
        const uint4* const source = reinterpret_cast<const uint4*>(stream + max(token, int64_t{0}) * p.channels);
        const auto exists = [&](int i) { return i < kFewerPieces<DIM, PIECES> || part + 8 * i < pieces; };
        uint4 raw[PIECES];
        // Registers are scarce, so all are asked for without a condition: what there is not is something else then.
        const auto load = [&](int i) { return load_made4(source + (exists(i) ? part + 8 * i : 0)); };
        if (made) {
            if (part == 0 && token >= 0) await(source);
            __syncwarp();
        }
        until_set(raw, load, made);
        normalize(raw, exists, row, part, token >= 0);
    }

    // As they are, so that nothing waits for them before they are needed.
    __device__ __forceinline__ uint32_t pair_of_vector(int at) const { return __ldg(reinterpret_cast<const uint32_t*>(vectors() + at)); }

    // Products with the residual add, and with that of `between`, if there is one: their sum is rounded once.
    template <class Tile, bool SPLIT, class Token>
    __device__ __forceinline__ void add_unit(const Work& work, const Unit& u, const __half* rows, int tile_rows, int bias, const __half* residual, bool made, const __half* between, __half* to, const Token& token_of) {
        constexpr int kTiles = Tile::kTiles, kHalves = Tile::kHalves;
        // Asked for early, but where there are no registers to keep it in.
        constexpr bool kEarly = PIECES <= 6;
        const int column = u.column + m.group / Tile::kSharers * Tile::kColumns + Ended<Tile>::first_of(m) * 8 + 2 * m.t;
        const bool shares = SPLIT && p.split > 1, mine = !shares || ends_share(u);
        const auto load_between = [&](int64_t token, int i) { return between && token >= 0 ? load_pair(between + token * p.channels + column + 8 * i) : 0u; };
        int64_t token[kHalves];
        uint32_t added[kHalves][kTiles], more[kHalves][kTiles];
        uint32_t offset[kTiles];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) offset[i] = pair_of_vector(bias + column + 8 * i);
        take_rows<kBatch>(rows + u.split * work.chunks * work.stage * tile_rows, work.chunks * work.stage / 8 * tile_rows);
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
            token[h] = mine ? token_of(u.tile, m.row + 8 * (h + Ended<Tile>::half_of(m))) : -1;
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
                added[h][i] = token[h] >= 0 ? load_made(residual + token[h] * p.channels + column + 8 * i) : 0u;
                if constexpr (SPLIT && kEarly) more[h][i] = load_between(token[h], i);
            }
        }
        float acc[Tile::kColumns / 2] = {};
        multiply_unit<Tile, false>(p, r, at.rows, static_cast<uint32_t>(tile_rows) * 16, m, work.chunks, work.stage, acc);
        Ended<Tile> end(m, acc, at.rows);
        if constexpr (SPLIT) {
            if (shares) end_shares<Tile, false>(u, work.width, own(p.partial), end);
        }
        if (mine) {
#pragma unroll
            for (int h = 0; h < kHalves; ++h)
#pragma unroll
                for (int i = 0; i < kTiles; ++i) {
                    while (made && added[h][i] == kUnset) added[h][i] = load_made(residual + token[h] * p.channels + column + 8 * i);
                    float2 v = floats(added[h][i]);
                    const float2 b = floats(offset[i]);
                    if constexpr (SPLIT) {
                        if (const float2 of = floats(kEarly ? more[h][i] : load_between(token[h], i)); between) v.x += of.x, v.y += of.y;
                    }
                    const uint32_t sum = pack_halves(end.own[h][i].x + b.x + v.x, end.own[h][i].y + b.y + v.y);
                    if (token[h] >= 0) store_made(to + token[h] * p.channels + column + 8 * i, sum);
                }
        }
        math_barrier();
    }

    // Normalized rows by weights.
    template <class Tile, class Token, class End>
    __device__ __forceinline__ void normal_unit(const Work& work, const Unit& u, const __half* stream, bool made, int bias, const Token& token_of, const End& end_with) {
        const int first = u.column / 8 + m.group / Tile::kSharers * (Tile::kColumns / 8) + Ended<Tile>::first_of(m);
        uint32_t offset[Tile::kTiles];
#pragma unroll
        for (int i = 0; i < Tile::kTiles; ++i) offset[i] = pair_of_vector(bias + (first + i) * 8 + 2 * m.t);
        normalize_rows(stream, made, token_of);
        float acc[Tile::kColumns / 2] = {};
        multiply_unit<Tile, false>(p, r, at.rows, kNormalStep, m, work.chunks, work.stage, acc);
        end_normal(Ended<Tile>(m, acc, at.rows), offset, first, end_with);
        math_barrier();
    }

    // The attention of up to 64 queries of a head over KEYS keys a warpgroup. Their rows, and those of the values, lie `along` bytes apart for eight elements.
    // `offsets(j, added)`: what the scores of keys 8 j + 2 t and the next have added, for both rows, in log2 units.
    template <int KEYS, class Offsets>
    __device__ __forceinline__ void attend(const Unit& u, uint32_t queries, uint32_t query_along, uint32_t keys, uint32_t values, uint32_t along, const Offsets& offsets) {
        const auto end = attend_keys<DIM, KEYS, false>(queries, query_along, keys, values, along, offsets);
        await_first_copy();
        __half* const to = own(p.heads_out) + (int64_t{u.tile} * (p.inner / 8) + u.column * (DIM / 8) + end.first_tile) * p.tile_rows * 8;
        const int row = m.row + 8 * end.half;
#pragma unroll
        for (int i = 0; i < ChainTile<DIM, 1>::kTiles; ++i)
            if (row < p.tile_rows) store_made(to + (i * p.tile_rows + row) * 8 + 2 * m.t, pack_halves(end.own[0][i].x, end.own[0][i].y));
        math_barrier();
    }

    // Up to 64 queries of a head.
    __device__ __forceinline__ void attend_unit(const Unit& u) {
        constexpr int kKeys = kChainMaxTokens / 4;
        uint32_t tile;
        const uint32_t group = p.by_group_tiles.divmod(static_cast<uint32_t>(u.tile), tile);
        const uint32_t padded = static_cast<uint32_t>(p.group_tiles * p.tile_rows), values = at.rows, keys = values + padded * DIM * 2, queries = keys + padded * DIM * 2;
        {
            // Values, keys, queries: what a product reads beyond the last value is a key.
            constexpr int kEach = kChainMaxTokens * DIM / 8 / kChainMath;
            const int count = static_cast<int>(padded * DIM / 8), piece = m.tid / 64, row = m.tid % 64;
            const bool asks = piece < DIM / 8 && row < p.tile_rows;
            const __half* const q = own(p.qkv) + (int64_t{group} * 3 * p.heads + u.column) * (count * 8);
            const __half *const k = q + int64_t{p.heads} * (count * 8) + m.tid * 8, *const v = k + int64_t{p.heads} * (count * 8);
            const __half* const own = q + (piece * static_cast<int>(padded) + static_cast<int>(tile) * p.tile_rows + row) * 8;
            if (m.lane == 0 && m.tid < count) await(k);
            __syncwarp();
            uint4 got[2 * kEach + 1];
            until_set<2 * kEach + 1>(got, [&](int i) {
                const bool is_query = i == 2 * kEach, exists = is_query ? asks : m.tid + i % kEach * kChainMath < count;
                return exists ? load_made4(is_query ? own : (i < kEach ? v : k) + i % kEach * kChainMath * 8) : make_uint4(0, 0, 0, 0);
            });
#pragma unroll
            for (int i = 0; i < 2 * kEach; ++i) {
                const int at_piece = m.tid + i % kEach * kChainMath;
                if (at_piece < count) store_shared((i < kEach ? values : keys) + at_piece * 16, got[i]);
            }
            if (asks) store_shared(queries + (piece * p.tile_rows + row) * 16, got[2 * kEach]);
            fence_engines_shared();
            math_barrier();
        }
        const int query = static_cast<int>(tile) * p.tile_rows + m.row;
        attend<kKeys>(u, queries, static_cast<uint32_t>(p.tile_rows) * 16, keys, values, padded * 16, [&](int j, float (&added)[2][2]) {
            const int key = m.group * kKeys + 8 * j;
            if (!p.bias || key >= p.bias_row) return;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float2 b = floats(pair_of_vector(bias_at() + (u.column * p.group_tokens + min(query + 8 * h, p.group_tokens - 1)) * p.bias_row + key + 2 * m.t));
                added[h][0] = b.x * kLog2, added[h][1] = b.y * kLog2;
            }
        });
    }

    template <Phase PHASE, class F> __device__ __forceinline__ void each_unit(const F& f) {
        const Work& work = p.work[PHASE];
#pragma unroll 1
        for (int number = blockIdx.x; number < work.units; number += gridDim.x) {
            const Unit u = work.unit(number);
            forget();
            f(work, u);
        }
    }

    __device__ __forceinline__ void run() {
#pragma unroll 1
        for (; pair < p.pairs; ++pair) {
            await_first_copy();
            with_tile<kHeads>(p.tile_heads, [&](auto tile) {
                each_unit<kHeads>([&](const Work& work, const Unit& u) {
                    uint32_t part;
                    const int group = static_cast<int>(p.by_group_tiles.divmod(static_cast<uint32_t>(u.tile), part)), padded = p.group_tiles * p.tile_rows;
                    normal_unit<decltype(tile)>(work, u, from(), made(), 0, [&](int row) { return group_token(u.tile, row); }, [&](int piece, int row, const float (&v)[2]) {
                        // A head's pieces of columns lie behind each other, and so do heads, and queries, keys and values.
                        const int64_t column = int64_t{group} * (3 * p.inner / 8) + piece;
                        if (row < p.tile_rows) store_made(own(p.qkv) + (column * padded + static_cast<int>(part) * p.tile_rows + row) * 8 + 2 * m.t, pack_halves(v[0], v[1]));
                    });
                });
            });
            each_unit<kAttend>([&](const Work&, const Unit& u) { attend_unit(u); });
            await_first_copy();
            with_tile<kMerge>(p.tile_merge, [&](auto tile) {
                each_unit<kMerge>([&](const Work& work, const Unit& u) {
                    add_unit<decltype(tile), false>(work, u, own(p.heads_out) + int64_t{u.tile} * p.inner * p.tile_rows, p.tile_rows, merge_at(), from(), made(), nullptr, own(p.middle),
                                                    [&](int at, int row) { return group_token(at, row); });
                });
            });
            with_tile<kUp>(p.tile_up, [&](auto tile) {
                each_unit<kUp>([&](const Work& work, const Unit& u) {
                    normal_unit<decltype(tile)>(work, u, own(p.middle), true, up_at(), [&](int row) { return row_token(u.tile, row); }, [&](int piece, int row, float (&v)[2]) {
                        activate_by_two<2>(v, p.power);
                        if (row < p.rows) store_made(own(p.hidden) + ((int64_t{u.tile} * (p.hidden_columns / 8) + piece) * p.rows + row) * 8 + 2 * m.t, pack_halves(v[0], v[1]));
                    });
                });
            });
            // What the pair gives is the next one's.
            if (!last()) mbarrier::wait(r.permitted + (pair + 1 & 1) * 8, pair + 1 >> 1 & 1);
            with_tile<kDown>(p.tile_down, [&](auto tile) {
                each_unit<kDown>([&](const Work& work, const Unit& u) {
                    add_unit<decltype(tile), true>(work, u, own(p.hidden) + int64_t{u.tile} * p.hidden_columns * p.rows, p.rows, down_at(), own(p.middle), true, between_of(pair),
                                                   last() ? p.y : copy_of(p.stream, pair + 1), [&](int at, int row) { return row_token(at, row); });
                });
            });
            // Each unit ended with a barrier of those that multiply.
            if (m.tid == 0) mbarrier::arrive(r.finished);
        }
    }
};

}  // namespace flow

// DIM: of a head. PIECES: of 8 channels that one of a row's eight threads normalizes.
template <int DIM, int PIECES> __global__ void __launch_bounds__(kChainThreads, 1) block_flow_kernel(const __grid_constant__ ChainArgs p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(128) unsigned char shared[];
    chain::Layout at;
    at.rows = ptx::shared_address(shared), at.packed = at.rows + chain::kExchange;
    at.ring = at.rows + p.rows_bytes;
    at.stats = at.ring + p.stages * kChainStage;
    at.regions = at.stats + 4 * kChainRows * 8;
    at.barriers = at.regions + kChainRows;
    flow::FlowRings r;
    r.ring = at.ring, r.full = at.barriers, r.empty = r.full + kChainStages * 8, r.permitted = r.empty + kChainStages * 8, r.finished = r.permitted + 16, r.rows_full = r.rows_free = 0;
    const int tid = threadIdx.x, group = __shfl_sync(0xffffffffu, tid / 128, 0);  // the same in a warp, as the compiler sees then
    if (tid == 0) {
        for (int s = 0; s < p.stages; ++s) mbarrier::init(r.full + s * 8, 1), mbarrier::init(r.empty + s * 8, 4);
        mbarrier::init(r.permitted, 1), mbarrier::init(r.permitted + 8, 1), mbarrier::init(r.finished, 1);
        mbarrier::publish();
    }
    ptx::let_next_start();
    __syncthreads();
    // Registers of the block: 640 threads have 96 each to begin with.
    if (group == kChainMath / 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 64;");
        if (tid / 32 == kChainMath / 32) {
            // Weights are constants, so they need not wait for the kernel before.
            chain::fetch_weights<false, false>(p, r, tid % 32);
        } else if (tid >= kChainThreads - flow::kHelpers) {
            ptx::wait_for_previous();
            flow::fill_copies(p, r, tid - (kChainThreads - flow::kHelpers));
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
        ptx::wait_for_previous();
        const int lane = tid % 32, thread = tid % 128;
        chain::Math m{tid, lane, group, thread, lane / 4, lane % 4, thread / 32 * 16 + lane / 4};
        flow::Flow<DIM, PIECES> chain{{p, at, m}, r, 0};
        chain.run();
    }
#endif
}

}  // namespace trt_opt
