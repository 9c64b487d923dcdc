// Transformer blocks in sequence, in windows, as one kernel that all multiprocessors run together, a block of threads each, with a barrier of the whole device between
// its phases; and what it has in common with the kernel of sequences (block_flow.cuh). The phases of a pair of blocks:
//   heads   norm and product to queries, keys and values; within windows the attention of a head, too
//   attend  without windows: the attention of up to 64 queries of a head
//   merge   product of the heads' results, and the residual add
//   up      norm, first product of the MLP, GELU
//   down    second product, and the residual add; where tiles are few, they share out the contracted index. What is added between pairs is added here
// In windows there may be one ahead of the first pair:
//   quads   patch merge, that is norm of four tokens' channels together and product; it may share out the contracted index, too
// A phase is divided into units of up to 64 rows and some columns, which the blocks take by turns.
//
// Four warpgroups multiply, of up to 64 rows each. They share a unit's columns or its contracted index, the sums of which they then exchange. Two more warps
// drive the copy engine: one fills a ring with weights, which depend on nothing and so come before the barrier; one fetches a unit's rows, if other blocks
// made them in the phase before, after it. Such rows lie as the tensor cores want them, in pieces of 8 x 8 (warpgroup.cuh): [tile of rows][columns / 8][rows][8].
// Rows to be normalized are tokens, and pass through registers; two more warps find at the start which tokens the block's first windows have.
#pragma once

#include <math_constants.h>

#include "gelu.cuh"
#include "mbarrier.cuh"
#include "ptx.cuh"
#include "quad_map.cuh"
#include "score_weights.cuh"
#include "warpgroup.cuh"
#include "window_map.cuh"

namespace trt_opt {

// How the four warpgroups share a unit: COLUMNS each, in so many groups of columns, the groups' members sharing the contracted index.
template <int COLUMNS, int GROUPS> struct ChainTile {
    static constexpr int kColumns = COLUMNS, kGroups = GROUPS, kSharers = 4 / GROUPS, kWidth = COLUMNS * GROUPS;
    // Of a thread's elements those that it ends: tiles of 8 columns, of one row of two or of both.
    static constexpr int kTiles = kSharers == 4 ? COLUMNS / 16 : COLUMNS / 8, kHalves = kSharers == 1 ? 2 : 1;
};
// By number, as tactics have it.
constexpr int kChainTiles = 6;
using ChainTile0 = ChainTile<16, 1>;
using ChainTile1 = ChainTile<32, 1>;
using ChainTile2 = ChainTile<24, 2>;
using ChainTile3 = ChainTile<32, 2>;
using ChainTile4 = ChainTile<48, 2>;
using ChainTile5 = ChainTile<48, 4>;
constexpr int kChainWidths[kChainTiles] = {ChainTile0::kWidth, ChainTile1::kWidth, ChainTile2::kWidth, ChainTile3::kWidth, ChainTile4::kWidth, ChainTile5::kWidth};

constexpr int kChainRows = 64, kChainMath = 512, kChainThreads = kChainMath + 128;
// Weights in the ring: bytes of a stage, and stages. Four parts of a unit's rows are waited for one by one.
constexpr int kChainStage = 12 * 1024, kChainStages = 16, kChainParts = 4;
// Contracted elements of quads that are in shared memory at a time, tickets of those that share them out (of a slot: they are zeros again behind a launch), and widths of units, by number.
constexpr int kChainQuads = 384, kChainQuadTickets = 96, kChainQuadTiles = 2;

namespace chain {

enum Phase { kHeads, kAttend, kMerge, kUp, kDown, kPhases, kQuads = kPhases };  // quads are no phase of a pair

// What a phase's unit is: some columns of a tile of rows, and of the contracted index.
struct Unit {
    int tile, column, split;  // of rows; the first column, or the head; of the contracted index
    bool first;               // of the block in this phase
};
// A phase as a whole, worked out before the launch: divisions of what is not known to the compiler are a hundred instructions each.
struct Work {
    int units = 0, width = 0, columns = 0;       // columns of a unit, and of the weights
    int chunks = 0, stage = 16, depth = 16;      // stages of one unit; contracted elements of a stage, and of those that lie together
    uint32_t weights = 0;                        // offset into a pair's
    int column_step = 1;
    FastDiv by_columns, by_split;                // units of a tile and a part of the contracted index; those parts

    __device__ __forceinline__ Unit unit(uint32_t number) const {
        uint32_t split, part;
        const uint32_t tile = by_columns.divmod(by_split.divmod(number, split), part);
        return {static_cast<int>(tile), static_cast<int>(part) * column_step, static_cast<int>(split), number == blockIdx.x};
    }
};

}  // namespace chain

struct ChainArgs {
    const __half *x, *weights, *vectors;
    __half* y;
    __half* middle;             // [tokens, channels], between the two blocks of a pair
    __half *heads_out, *hidden; // in pieces
    __half* qkv;                // in pieces [image][queries, keys, values][head][dim / 8][padded tokens][8]; without windows
    float2* partial;
    uint32_t* barrier;
    int tokens, channels, heads, inner, hidden_columns, pairs;
    float each, epsilon, scale, mask_value;  // 1 / channels; the last two in log2 units
    ActivationPower power;
    uint32_t shifted;
    bool bias;
    bool one_wave;              // no block has more than one unit of a phase
    // A group is a window or an image; its tokens attend to each other. Its queries are cut into tiles, all of one in windows.
    int groups, group_tokens, group_tiles, tile_rows, bias_row;
    int row_tiles, rows;        // those of the MLP, in which tokens are cut without regard to groups; of a tile
    chain::Work work[chain::kPhases + 1];
    int tile_heads, tile_merge, tile_up, tile_down, split;
    int stages;
    int rows_bytes;             // shared memory of a unit's rows, and then of sums on their way between warpgroups
    int edge_y, cut_y, edge_x, cut_x;
    FastDiv by_group_tiles, by_windows, by_windows_x, by_window_w;
    WindowMap plain, rolled;
    // Of quads; no channels: there are none. What they give is `x`.
    QuadMap quads;
    const __half *quad_x, *quad_weights, *quad_vectors;
    float2 *quad_partial, *quad_sums;  // quad_sums: [tile][sharer][row]
    uint32_t* quad_tickets;
    float quad_each;            // 1 / contracted elements
    int quad_reads;             // stages that are in shared memory at a time
    int tile_quads, split_quads;
    const __half* between;      // of sequences: [pairs - 1, tokens, channels], added to what each pair but the last gives; or null
    // What pairs of sequences hand on within the kernel, three times over; pointers are to the first. Bytes from one to the next; 16 bytes of one, and a block's share of them.
    unsigned char* copies;
    __half* stream;
    uint32_t copy_bytes;
    int unset, unset_share;
};

namespace chain {

constexpr int kNormalStep = kChainRows * 16 + 16;  // bytes from eight contracted elements of normalized rows to the next: an odd number of 16 bytes
constexpr float kLog2 = 1.4426950408889634f;
constexpr int kExchange = 24 * 1024, kPacked = 12 * 1024;

// Shared memory: a unit's rows (and behind a product the exchange, and a head's queries, keys and values), the ring, and what is small.
struct Layout {
    uint32_t rows, packed, ring, stats, regions, tokens, start, barriers;
};
constexpr int kBarriers = 2 * kChainStages + kChainParts + 1;
constexpr int kTokens = kChainRows * 4;  // bytes of the tokens of a window's rows
constexpr int kFixedBytes = 4 * kChainRows * 8 + kChainRows + 4 * kTokens + 8 + kBarriers * 8;

// Of those that multiply, and 64 or 32 more: tokens of windows are found; the count of the device's barrier was read, which so is ahead of the block's first arrival.
constexpr int kTokensFound = 4, kStartRead = 5;
__device__ __forceinline__ void arrive_device(uint32_t* barrier) {
#if __CUDA_ARCH__ >= 900
    // The arrivals of all together are one in the upper half.
    const uint32_t add = blockIdx.x == 0 ? 0x10000u - (gridDim.x - 1) : 1u;
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(barrier), "r"(add) : "memory");
#endif
}
// Counts to `last` and begins anew; whether this was the last. What the block wrote before its barrier before this is seen by the last, and by its block behind the next.
__device__ __forceinline__ bool take_ticket(uint32_t* ticket, uint32_t last) {
    uint32_t before = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(ticket), "r"(last) : "memory");
#endif
    return before == last;
}
// Between what threads write and what the copy engine or the tensor cores read, and the other way round. One for both kinds of memory would wait for all stores to have landed, too.
__device__ __forceinline__ void fence_engines_global() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}
__device__ __forceinline__ void fence_engines_shared() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void math_barrier() { asm volatile("bar.sync 1, 512;" ::: "memory"); }
// What others of this launch have written must not come from the first-level cache.
__device__ __forceinline__ uint32_t load_pair(const __half* from) { return __ldcg(reinterpret_cast<const uint32_t*>(from)); }
// Two halves or a float that no result is: what is not a number comes out of conversions and sums as another pattern.
constexpr uint32_t kUnset = 0xffffffffu;
// What other blocks make at the same time, word by word.
__device__ __forceinline__ uint32_t load_made(const void* from) {
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}
// Until the barrier of the device has opened `times` times since it was `start`. Its upper half counts that, its lower half arrivals. An acquire is a tenth of a microsecond more, for throwing away
// what the first-level cache has; but of what other blocks write nothing is read through that.
__device__ __forceinline__ void wait_device(const uint32_t* barrier, uint32_t start, int times) {
    while (((load_made(barrier) >> 16) - (start >> 16) & 0xffffu) < static_cast<uint32_t>(times)) {
    }
}
__device__ __forceinline__ uint2 load_made2(const void* from) {
    uint2 v;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from) : "memory");
    return v;
}
__device__ __forceinline__ float2 load_made_floats(const void* from) {
    const uint2 v = load_made2(from);
    return make_float2(__uint_as_float(v.x), __uint_as_float(v.y));
}
__device__ __forceinline__ uint4 load_made4(const void* from) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}
__device__ __forceinline__ void store_made(void* to, uint32_t v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory"); }
__device__ __forceinline__ void store_made(void* to, uint2 v) { asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.x), "r"(v.y) : "memory"); }
__device__ __forceinline__ void store_made(void* to, uint4 v) { asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }
__device__ __forceinline__ void store_made(void* to, float2 v) { store_made(to, make_uint2(__float_as_uint(v.x), __float_as_uint(v.y))); }
__device__ __forceinline__ void store_shared(uint32_t at, uint32_t v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory"); }
__device__ __forceinline__ void store_shared(uint32_t at, float2 v) { asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at), "f"(v.x), "f"(v.y) : "memory"); }
__device__ __forceinline__ void store_shared(uint32_t at, uint4 v) { asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }
__device__ __forceinline__ float2 load_shared(uint32_t at) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
    return v;
}
__device__ __forceinline__ uint32_t load_shared_pair(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}
__device__ __forceinline__ uint32_t load_shared_byte(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}

// The ring's state of whoever walks through it.
struct Position {
    int slot = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void next(int stages) {
        if (++slot == stages) slot = 0, parity ^= 1;
    }
};

// Barriers. Of a unit's rows: they are there, part by part; their place is free.
struct Rings {
    uint32_t ring, full, empty, rows_full, rows_free;
};

// The first of the `i`-th eight columns of a head's queries, keys and values.
__device__ __forceinline__ int head_column(const ChainArgs& p, int head, int i) { return i / 4 * p.inner + head * 32 + i % 4 * 8; }

// The warp that fetches weights, eight columns of a stage a lane.
template <bool WINDOWS, bool QUADS> __device__ __forceinline__ void fetch_weights(const ChainArgs& p, const Rings& r, int lane) {
    Position at;
    const uint64_t policy = ptx::weight_policy(p.one_wave);
    const uint32_t pair_weights = 4 * p.channels * p.inner + 2 * p.channels * p.hidden_columns;
    const uint32_t pair_vectors = 3 * p.inner + 2 * p.channels + p.hidden_columns + (p.bias ? p.heads * p.group_tokens * p.bias_row : 0);
    const auto fetch = [&](Phase phase, const __half* weights, const __half* vectors) {
        const Work& work = p.work[phase];
        const uint32_t bytes = static_cast<uint32_t>(work.stage * 16);
        for (int number = blockIdx.x; number < work.units; number += gridDim.x) {
            const Unit u = work.unit(number);
            const int column = WINDOWS && phase == kHeads ? head_column(p, u.column, lane) : u.column + lane * 8;
            const __half* const from = weights + work.weights + static_cast<uint32_t>(column * work.depth);
            int k = u.split * work.chunks * work.stage;
            for (int chunk = 0; chunk < work.chunks; ++chunk, k += work.stage) {
                const uint32_t full = r.full + at.slot * 8;
                mbarrier::wait(r.empty + at.slot * 8, at.parity ^ 1);
                if (lane == 0) mbarrier::expect(full, bytes * static_cast<uint32_t>(work.width / 8));
                __syncwarp();
                if (lane < work.width / 8)
                    mbarrier::copy(r.ring + at.slot * kChainStage + lane * bytes, from + static_cast<uint32_t>((k & ~(work.depth - 1)) * work.columns + (k & (work.depth - 1)) * 8), bytes, full, policy);
                at.next(p.stages);
            }
            if (WINDOWS && phase == kHeads && p.bias) {
                // The bias of the head's scores, as one more stage.
                const uint32_t size = static_cast<uint32_t>(p.group_tokens * p.bias_row), full = r.full + at.slot * 8;
                mbarrier::wait(r.empty + at.slot * 8, at.parity ^ 1);
                if (lane == 0) {
                    mbarrier::expect(full, size * 2);
                    mbarrier::copy(r.ring + at.slot * kChainStage, vectors + 3 * p.inner + u.column * static_cast<int>(size), size * 2, full, policy);
                }
                at.next(p.stages);
            }
        }
    };
    if constexpr (QUADS) fetch(kQuads, p.quad_weights, nullptr);
    const __half *weights = p.weights, *vectors = p.vectors;
    for (int pair = 0; pair < p.pairs; ++pair, weights += pair_weights, vectors += pair_vectors) {
#pragma unroll 1
        for (int phase = 0; phase < kPhases; ++phase)
            if (phase != kAttend) fetch(static_cast<Phase>(phase), weights, vectors);
    }
}

// The thread that fetches rows which other blocks have made.
template <bool QUADS> __device__ __forceinline__ void fetch_rows(const ChainArgs& p, const Rings& r, uint32_t to, uint32_t start) {
    int opened = QUADS ? 1 : 0;
    uint32_t freed = 0;  // how often their place is given back before the next are fetched
    for (int pair = 0; pair < p.pairs; ++pair) {
#pragma unroll 1
        for (int phase = 0; phase < kPhases; ++phase) {
            if (phase == kAttend) continue;
            const int before = opened++;
            if (phase == kHeads || phase == kUp) {
                ++freed;
                continue;
            }
            const Work& work = p.work[phase];
            const int rows = phase == kDown ? p.rows : p.tile_rows, elements = work.chunks * work.stage * rows, of_part = (work.chunks + kChainParts - 1) / kChainParts * work.stage * rows;
            const __half* const all = phase == kDown ? p.hidden : p.heads_out;
            const int of_tile = (phase == kDown ? p.hidden_columns : p.inner) * rows;
            for (int number = blockIdx.x; number < work.units; number += gridDim.x) {
                const Unit u = work.unit(number);
                uint64_t from = reinterpret_cast<uint64_t>(all + (int64_t{u.tile} * of_tile + u.split * elements));
                // All of this before it waits, for one thread alone is slow.
                asm volatile("" : "+l"(from) :: "memory");
                if (u.first) wait_device(p.barrier, start, before), fence_engines_global();
                mbarrier::wait(r.rows_free, freed++ & 1 ^ 1);
#pragma unroll
                for (int part = 0; part < kChainParts; ++part) {
                    const int offset = part * of_part, here = min(elements - offset, of_part);
                    const uint32_t barrier = r.rows_full + part * 8;
                    if (here > 0) mbarrier::expect(barrier, here * 2), mbarrier::copy(to + offset * 2, reinterpret_cast<const __half*>(from) + offset, here * 2, barrier);
                    else mbarrier::arrive(barrier);
                }
            }
        }
    }
}

// Of windows: the token of a row, or -1.
__device__ __forceinline__ int token_of_window(const ChainArgs& p, const WindowMap& map, int window, int row) {
    return row < p.group_tokens ? static_cast<int>(map.source(static_cast<uint32_t>(window * p.group_tokens + row))) : -1;
}
// The region of the shift's mask that a token of a window is in.
__device__ __forceinline__ void find_region(const ChainArgs& p, const Layout& at, int window, int token) {
    uint32_t number, wx, ix;
    p.by_windows.divmod(static_cast<uint32_t>(window), number);
    const uint32_t wy = p.by_windows_x.divmod(number, wx), iy = p.by_window_w.divmod(static_cast<uint32_t>(token), ix);
    const int y = static_cast<int>(wy) * p.rolled.window_h + static_cast<int>(iy), x = static_cast<int>(wx) * p.rolled.window_w + static_cast<int>(ix);
    const uint32_t region = (y >= p.edge_y) + (y >= p.cut_y) + 4 * ((x >= p.edge_x) + (x >= p.cut_x));
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(at.regions + token), "r"(region) : "memory");
}
// What a row of the windows of the block's first units of heads and of merge is, in each pair the same, plain and rolled: its tokens and its region.
__device__ __forceinline__ void find_tokens(const ChainArgs& p, const Layout& at, int row) {
    const auto find = [&](const Work& work, int merge) {
        if (static_cast<int>(blockIdx.x) >= work.units) return;
        const int window = work.unit(blockIdx.x).tile;
        const uint32_t to = at.tokens + 2 * merge * kTokens + row * 4;
        store_shared(to, static_cast<uint32_t>(token_of_window(p, p.plain, window, row))), store_shared(to + kTokens, static_cast<uint32_t>(token_of_window(p, p.rolled, window, row)));
        if (!merge) find_region(p, at, window, row);
    };
    find(p.work[kHeads], 0), find(p.work[kMerge], 1);
}

// A thread that multiplies.
struct Math {
    int tid, lane, group, thread, g, t, row;  // thread: of its warpgroup; row: that of its first elements
    int opened = 0;  // barriers of the device before the phase that it is in
    uint32_t fetched = 0;  // units whose rows were fetched
    Position at;

    // What is worked out of these is worked out anew behind this. Where it would take more registers than there are if it were carried through all phases: memory in
    // their stead has no room in a first-level cache that is nearly all shared memory.
    __device__ __forceinline__ void forget() {
        asm volatile("" : "+r"(tid), "+r"(lane), "+r"(thread), "+r"(g), "+r"(t), "+r"(row));
        group = __shfl_sync(0xffffffffu, tid / 128, 0);
    }
};

// d += A B over a unit's stages, STEPS of 16 contracted elements each for a warpgroup. A are its rows, `along` bytes from eight contracted elements to the next; FETCHED: by the copy engine.
template <class Tile, bool FETCHED, int STEPS>
__device__ __forceinline__ void multiply_stages(const ChainArgs& p, const Rings& r, uint32_t a, uint32_t along, Math& m, int chunks, int stage, float (&acc)[Tile::kColumns / 2]) {
    const int sharer = m.group % Tile::kSharers, columns = m.group / Tile::kSharers;
    const uint32_t across_b = static_cast<uint32_t>(stage) * 16;
    const int part_chunks = (chunks + kChainParts - 1) / kChainParts;
    const warpgroup::Pieces first_a(a + 2 * sharer * along, along, 128), first_b(r.ring + columns * (Tile::kColumns / 8) * across_b + sharer * 256, 128, across_b);
    uint32_t behind_a = 0, last = 0;
    int until_part = 0, part = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        if (FETCHED && until_part-- == 0) mbarrier::wait(r.rows_full + part++ * 8, m.fetched & 1), until_part = part_chunks - 1;
        const uint32_t behind_b = m.at.slot * kChainStage;
        mbarrier::wait(r.full + m.at.slot * 8, m.at.parity);
        warpgroup::begin();
#pragma unroll
        for (int step = 0; step < STEPS; ++step) warpgroup::multiply(acc, first_a.at(behind_a + 2 * step * Tile::kSharers * along), first_b.at(behind_b + step * Tile::kSharers * 256));
        warpgroup::commit();
        behind_a += stage / 8 * along;
        // The stage before this one is done with.
        warpgroup::wait<1>();
        if (chunk > 0 && m.thread == 0) mbarrier::arrive(last);
        last = r.empty + m.at.slot * 8;
        m.at.next(p.stages);
    }
    warpgroup::settle(acc);
    warpgroup::wait<0>();
    warpgroup::settle(acc);
    if (m.thread == 0) mbarrier::arrive(last);
}
template <class Tile, bool FETCHED>
__device__ __forceinline__ void multiply_unit(const ChainArgs& p, const Rings& r, uint32_t a, uint32_t along, Math& m, int chunks, int stage, float (&acc)[Tile::kColumns / 2]) {
    // The sharers divide a stage's steps.
    switch (stage / (16 * Tile::kSharers)) {
        case 1: multiply_stages<Tile, FETCHED, 1>(p, r, a, along, m, chunks, stage, acc); break;
        case 2: multiply_stages<Tile, FETCHED, 2>(p, r, a, along, m, chunks, stage, acc); break;
        default: if constexpr (Tile::kSharers == 2) multiply_stages<Tile, FETCHED, 4>(p, r, a, along, m, chunks, stage, acc);
    }
}

template <Phase PHASE, class F> __device__ __forceinline__ void with_tile(int tile, const F& f) {
    switch (tile) {
        case 0: f(ChainTile0()); break;
        case 1: f(ChainTile1()); break;
        case 2: f(ChainTile2()); break;
        case 3: f(ChainTile3()); break;
        case 4: if constexpr (PHASE == kHeads || PHASE == kUp) f(ChainTile4()); break;
        default: if constexpr (PHASE == kUp) f(ChainTile5());
    }
}

// Sums of those that share the contracted index: `own` becomes what the thread ends, tile i of which is `first_tile` + i of the warpgroup's columns,
// rows m.row + 8 * half. `to`: the place of the unit's rows, which all are done with.
template <class Tile> struct Ended {
    int first_tile, half;
    float2 own[Tile::kHalves][Tile::kTiles];

    __device__ __forceinline__ static int half_of(const Math& m) { return Tile::kSharers == 1 ? 0 : m.group % Tile::kSharers % 2; }
    __device__ __forceinline__ static int first_of(const Math& m) { return Tile::kSharers == 4 ? m.group / 2 * Tile::kTiles : 0; }

    __device__ __forceinline__ explicit Ended(const Math& m) : first_tile(first_of(m)), half(half_of(m)) {}
    __device__ __forceinline__ Ended(const Math& m, const float (&acc)[Tile::kColumns / 2], uint32_t to) : Ended(m) {
        if constexpr (Tile::kSharers == 1) {
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int j = 0; j < Tile::kTiles; ++j) own[h][j] = make_float2(acc[4 * j + 2 * h], acc[4 * j + 2 * h + 1]);
        } else {
            math_barrier();
            deal(m, acc, to);
            if constexpr (Tile::kSharers == 4) math_barrier();
            else asm volatile("bar.sync %0, 256;" ::"r"(2 + m.group / Tile::kSharers) : "memory");
            gather(m, to, [](float2& sum, float2 v, int) { sum.x += v.x, sum.y += v.y; });
        }
    }
    // The thread's own share stays with it, those of the others go to their owners' places.
    __device__ __forceinline__ void deal(const Math& m, const float (&acc)[Tile::kColumns / 2], uint32_t to) {
        constexpr int kSharers = Tile::kSharers, kTiles = Tile::kTiles;
        const int sharer = m.group % kSharers;
#pragma unroll
        for (int o = 0; o < kSharers; ++o) {
            const int h = o % 2, first = kSharers == 4 ? o / 2 * kTiles : 0;
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
                const float2 v = make_float2(acc[4 * (first + i) + 2 * h], acc[4 * (first + i) + 2 * h + 1]);
                if (o == sharer) own[0][i] = v;
                else store_shared(address(m, to, o, sharer, i), v);
            }
        }
    }
    // Takes in what the others have dealt, in the order of the sharers behind this one, so that a result is the same each time. `add(sum, v, s)`: v is of the s-th behind it.
    template <class Add> __device__ __forceinline__ void gather(const Math& m, uint32_t to, const Add& add) {
        const int sharer = m.group % Tile::kSharers;
#pragma unroll
        for (int s = 1; s < Tile::kSharers; ++s)
#pragma unroll
            for (int i = 0; i < Tile::kTiles; ++i) add(own[0][i], load_shared(address(m, to, sharer, (sharer + s) % Tile::kSharers, i)), s);
    }

private:
    // Of what `from` deals to `owner`.
    __device__ __forceinline__ static uint32_t address(const Math& m, uint32_t to, int owner, int from, int i) {
        constexpr int kSharers = Tile::kSharers;
        const int columns = m.group / kSharers, place = (from - owner - 1 + kSharers) % kSharers;
        return to + static_cast<uint32_t>((((columns * kSharers + owner) * (kSharers - 1) + place) * Tile::kTiles + i) * 128 + m.thread) * 8;
    }
};

// Weights of keys for the rows g and g + 8 of a warp, from scores in log2 units; and each row's largest score and sum of weights.
template <int COUNT> __device__ __forceinline__ void soften(float (&s)[COUNT], float (&top)[2], float (&sum)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        top[h] = largest_of_row(s, h);
        const float base = top[h] == -CUDART_INF_F ? 0.f : top[h];
        float all = 0.f;
#pragma unroll
        for (int j = 0; j < COUNT / 4; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float& x = s[4 * j + 2 * h + e];
                x = exp2_fast(x - base), all += x;
            }
        all += __shfl_xor_sync(0xffffffffu, all, 1), all += __shfl_xor_sync(0xffffffffu, all, 2);
        sum[h] = all;
    }
}
template <int OUT, int COUNT> __device__ __forceinline__ void weigh_values(float (&out)[OUT], const float (&s)[COUNT], uint32_t values, uint32_t across) {
    uint32_t w[COUNT / 2];
#pragma unroll
    for (int i = 0; i < COUNT / 2; ++i) w[i] = pack_halves(s[2 * i], s[2 * i + 1]);
    warpgroup::begin();
#pragma unroll
    for (int k = 0; k < COUNT / 8; ++k) warpgroup::multiply_transposed(out, w[4 * k], w[4 * k + 1], w[4 * k + 2], w[4 * k + 3], warpgroup::pieces(values + k * 256, 128, across));
    warpgroup::commit();
    warpgroup::wait<0>();
    warpgroup::settle(out);
}

// So many pieces of a row each of its eight threads has whatever the channels are, since a kernel of fewer pieces takes fewer.
template <int DIM, int PIECES> constexpr int kFewerPieces = PIECES == 6 && DIM == 32 ? 3 : PIECES == 12 ? 6 : PIECES == 16 ? 12 : 0;

// What threads that multiply have in common in windows and of sequences.
struct Blocks {
    const ChainArgs& p;
    const Layout& at;
    Math m;

    // Offsets into a pair's vectors.
    __device__ __forceinline__ int bias_at() const { return 3 * p.inner; }
    __device__ __forceinline__ int merge_at() const { return bias_at() + (p.bias ? p.heads * p.group_tokens * p.bias_row : 0); }
    __device__ __forceinline__ int up_at() const { return merge_at() + p.channels; }
    __device__ __forceinline__ int down_at() const { return up_at() + p.hidden_columns; }
    __device__ __forceinline__ int64_t row_token(int tile, int row) const {
        const int token = tile * p.rows + row;
        return row < p.rows && token < p.tokens ? token : -1;
    }

    // What of a row, of eight channels each, its `part`-th thread normalizes: `raw`, and zeros where `there` is no token. To shared memory.
    template <int PIECES, class Exists> __device__ __forceinline__ void normalize(uint4 (&raw)[PIECES], const Exists& exists, int row, int part, bool there) const {
        const auto each_pair = [&](int i, const auto& f) {
            const uint32_t w[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
#pragma unroll
            for (int e = 0; e < 4; ++e) f(floats(w[e]));
        };
        float sum = 0.f, squares = 0.f;
#pragma unroll
        for (int i = 0; i < PIECES; ++i)
            if (exists(i)) each_pair(i, [&](float2 v) { sum += v.x, sum += v.y, squares = fmaf(v.x, v.x, squares), squares = fmaf(v.y, v.y, squares); });
        sum = group_sum<8>(sum), squares = group_sum<8>(squares);
        const float mean = sum * p.each;
        float variance = fmaf(-mean, mean, squares * p.each);
        if (constexpr float kFar = 1e-3f; variance < kFar * mean * mean) {
            // A mean so far from zero leaves the variance few digits.
            squares = 0.f;
#pragma unroll
            for (int i = 0; i < PIECES; ++i)
                if (exists(i)) each_pair(i, [&](float2 v) { squares = fmaf(v.x - mean, v.x - mean, squares), squares = fmaf(v.y - mean, v.y - mean, squares); });
            const uint32_t mask = 0xffu << (m.lane & ~7);
#pragma unroll
            for (int step = 4; step > 0; step /= 2) squares += __shfl_xor_sync(mask, squares, step);
            variance = squares * p.each;
        }
        // Two registers for each of so many are too many: they are widened anew.
        if constexpr (PIECES > 6) {
#pragma unroll
            for (int i = 0; i < PIECES; ++i) asm volatile("" : "+r"(raw[i].x), "+r"(raw[i].y), "+r"(raw[i].z), "+r"(raw[i].w));
        }
        const float factor = rsqrtf(variance + p.epsilon), offset = -mean * factor;
        const auto store = [&](int i, const auto& of_pair) {
            if (exists(i)) store_shared(at.rows + (part + 8 * i) * kNormalStep + row * 16, make_uint4(of_pair(raw[i].x), of_pair(raw[i].y), of_pair(raw[i].z), of_pair(raw[i].w)));
        };
        // In halves where a mean is so near that its own rounding is not more than that of a result, and a factor is one that two halves have all of: two instructions instead of five for two elements.
        constexpr float kNear = 1.f, kLeast = 1.f / 64, kMost = 512.f;
        if (PIECES <= 6 && __all_sync(0xffffffffu, fabsf(offset) <= kNear && factor >= kLeast && factor <= kMost)) {
            const __half2 high = __float2half2_rn(there ? factor : 0.f), low = __float2half2_rn(there ? factor - __low2float(high) : 0.f), add = __float2half2_rn(there ? offset : 0.f);
#pragma unroll
            for (int i = 0; i < PIECES; ++i)
                store(i, [&](uint32_t w) {
                    const __half2 x = *reinterpret_cast<const __half2*>(&w), y = __hfma2(x, high, __hfma2(x, low, add));
                    return *reinterpret_cast<const uint32_t*>(&y);
                });
        } else {
#pragma unroll
            for (int i = 0; i < PIECES; ++i)
                store(i, [&](uint32_t w) {
                    const float2 v = floats(w);
                    return there ? pack_halves(fmaf(v.x, factor, offset), fmaf(v.y, factor, offset)) : 0u;
                });
        }
        fence_engines_shared();
        math_barrier();
    }

    // Ends a thread's part of normalized rows by weights: column `first` + i of eight, with its offsets.
    template <class Tile, class End> __device__ __forceinline__ void end_normal(const Ended<Tile>& end, const uint32_t (&offset)[Tile::kTiles], int first, const End& end_with) const {
#pragma unroll
        for (int h = 0; h < Tile::kHalves; ++h)
#pragma unroll
            for (int i = 0; i < Tile::kTiles; ++i) {
                const float2 b = floats(offset[i]);
                float v[2] = {end.own[h][i].x + b.x, end.own[h][i].y + b.y};
                end_with(first + i, m.row + 8 * (h + end.half), v);
            }
    }

    // The place of a unit of so many of the channels among those of other rows and columns.
    __device__ __forceinline__ uint32_t tile_of(const Unit& u, int width) const { return static_cast<uint32_t>(u.tile * (p.channels / width) + u.column / width); }
    // Of those that share the contracted index each ends an equal part of a warpgroup's threads; whether this is one of them.
    __device__ __forceinline__ bool ends_share(const Unit& u) const { return m.thread * p.split >> 7 == u.split; }
    // What they exchange for that, through memory filled with a word that no sum is. RESET: it is filled with that again by those who take it, who alone do so.
    template <class Tile, bool RESET> __device__ __forceinline__ void end_shares(const Unit& u, int width, float2* partial, Ended<Tile>& end) const {
        constexpr int kPairs = Tile::kHalves * Tile::kTiles, kAtOnce = kPairs <= 2 ? 4 : 2;
        const uint32_t tile = tile_of(u, width);
        float2* const parts = partial + (int64_t{tile} * p.split) * (kPairs * kChainMath) + m.tid;
        const auto part_of = [&](int s, int i) { return parts + (s * kPairs + i) * kChainMath; };
        if (!ends_share(u)) {
#pragma unroll
            for (int i = 0; i < kPairs; ++i) store_made(part_of(u.split, i), end.own[i / Tile::kTiles][i % Tile::kTiles]);
            return;
        }
        // In their order, so that a result is the same each time.
        float2 sum[kPairs] = {};
#pragma unroll 1
        for (int first = 0; first < p.split; first += kAtOnce) {
            const auto others = [&](int s) { return first + s < p.split && first + s != u.split; };
            float2 part[kAtOnce][kPairs];
            uint32_t most;
            do {
                most = 0;
#pragma unroll
                for (int s = 0; s < kAtOnce; ++s)
#pragma unroll
                    for (int i = 0; i < kPairs; ++i) part[s][i] = others(s) ? load_made_floats(part_of(first + s, i)) : make_float2(0.f, 0.f);
#pragma unroll
                for (int s = 0; s < kAtOnce; ++s)
#pragma unroll
                    for (int i = 0; i < kPairs; ++i) most = max(most, max(__float_as_uint(part[s][i].x), __float_as_uint(part[s][i].y)));
            } while (most == kUnset);
#pragma unroll
            for (int s = 0; s < kAtOnce; ++s)
#pragma unroll
                for (int i = 0; i < kPairs; ++i) {
                    const float2 v = first + s == u.split ? end.own[i / Tile::kTiles][i % Tile::kTiles] : part[s][i];
                    sum[i].x += v.x, sum[i].y += v.y;
                    if (RESET && others(s)) store_made(part_of(first + s, i), make_uint2(kUnset, kUnset));
                }
        }
#pragma unroll
        for (int i = 0; i < kPairs; ++i) end.own[i / Tile::kTiles][i % Tile::kTiles] = sum[i];
    }

    // The attention of up to 64 queries of a head of DIM over KEYS keys a warpgroup. Their rows, and those of the values, lie `along` bytes apart for eight elements.
    // `offsets(j, added)`: what the scores of keys 8 j + 2 t and the next have added, for both rows, in log2 units. FREE: no operand lies where a unit's rows do.
    template <int DIM, int KEYS, bool FREE, class Offsets>
    __device__ __forceinline__ Ended<ChainTile<DIM, 1>> attend_keys(uint32_t queries, uint32_t query_along, uint32_t keys, uint32_t values, uint32_t along, const Offsets& offsets) const {
        const int first = m.group * KEYS;
        float out[DIM / 2] = {}, s[KEYS / 2] = {}, top[2] = {-CUDART_INF_F, -CUDART_INF_F}, sum[2] = {0.f, 0.f};
        if (first < p.group_tokens) {
            warpgroup::begin();
#pragma unroll
            for (int k = 0; k < DIM / 16; ++k)
                warpgroup::multiply(s, warpgroup::pieces(queries + 2 * k * query_along, query_along, 128), warpgroup::pieces(keys + first * 16 + 2 * k * along, along, 128));
            warpgroup::commit();
            // Where they are few, what is added comes while the product is under way.
            constexpr bool kEarly = KEYS <= 16;
            float early[kEarly ? KEYS / 8 : 1][2][2] = {};
            if constexpr (kEarly) {
#pragma unroll
                for (int j = 0; j < KEYS / 8; ++j) offsets(j, early[j]);
            }
            warpgroup::wait<0>();
            warpgroup::settle(s);
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j) {
                float late[2][2] = {};
                if constexpr (!kEarly) offsets(j, late);
                const auto& added = kEarly ? early[kEarly ? j : 0] : late;
#pragma unroll
                for (int h = 0; h < 2; ++h)
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float& x = s[4 * j + 2 * h + e];
                        x = first + 8 * j + 2 * m.t + e < p.group_tokens ? fmaf(x, p.scale, added[h][e]) : -CUDART_INF_F;
                    }
            }
            soften(s, top, sum);
            weigh_values(out, s, values + first * 16, along);
        }
        if constexpr (!FREE) math_barrier();
        // Each warpgroup's largest score and sum of a row, and its share of the result, by its own largest score.
        if (m.t == 0) {
#pragma unroll
            for (int h = 0; h < 2; ++h) store_shared(at.stats + (m.group * kChainRows + m.row + 8 * h) * 8, make_float2(top[h], sum[h]));
        }
        Ended<ChainTile<DIM, 1>> end(m);
        end.deal(m, out, at.rows);
        math_barrier();
        float2 of[4];
        float most = -CUDART_INF_F, all = 0.f;
#pragma unroll
        for (int i = 0; i < 4; ++i) of[i] = load_shared(at.stats + ((m.group + i) % 4 * kChainRows + m.row + 8 * end.half) * 8), most = fmaxf(most, of[i].x);
#pragma unroll
        for (int i = 0; i < 4; ++i) of[i].x = exp2_fast(of[i].x - most), all = fmaf(of[i].y, of[i].x, all);
        const float factor = reciprocal(all);
#pragma unroll
        for (int i = 0; i < ChainTile<DIM, 1>::kTiles; ++i) end.own[0][i].x *= of[0].x, end.own[0][i].y *= of[0].x;
        end.gather(m, at.rows, [&](float2& sum, float2 v, int i) { sum.x = fmaf(v.x, of[i].x, sum.x), sum.y = fmaf(v.y, of[i].x, sum.y); });
#pragma unroll
        for (int i = 0; i < ChainTile<DIM, 1>::kTiles; ++i) end.own[0][i].x *= factor, end.own[0][i].y *= factor;
        return end;
    }
};

// QUADS: they come first.
template <int PIECES, bool QUADS> struct Chain : Blocks {
    const Rings& r;
    const __half* from;      // what the pair reads
    const __half* vectors;   // the pair's
    bool masked;

    static constexpr int DIM = 32;                // of a head
    static constexpr bool kScarce = PIECES > 6;  // registers, for what all phases have in common

    // Token of a row of a unit of heads or merge, or -1.
    __device__ __forceinline__ int window_token(const Unit& u, bool merge, int row) const {
        if (u.first) return static_cast<int>(load_shared_pair(at.tokens + (2 * merge + masked) * kTokens + row * 4));
        return token_of_window(p, masked ? p.rolled : p.plain, u.tile, row);
    }

    __device__ __forceinline__ void wait_for_phase() {
        if (m.tid == 0) wait_device(p.barrier, load_shared_pair(at.start), m.opened);
        math_barrier();
    }
    // Behind the last unit of a phase, which ended with a barrier. `waited`: the block knows that the phase before was over.
    __device__ __forceinline__ void end_phase(bool waited, bool last) {
        if (!waited) wait_for_phase();
        if (m.opened == 0) ptx::barrier_wait(kStartRead, kChainMath + 32);
        if (m.tid == 0 && !last) arrive_device(p.barrier);
        ++m.opened;
    }
    // Behind the barrier at the end of a unit: the place of its rows is the copy engine's again.
    __device__ __forceinline__ void free_rows() {
        fence_engines_shared();
        if (m.thread == 0) mbarrier::arrive(r.rows_free);
        ++m.fetched;
    }

    // The end of a unit whose results the copy engine fetches, to where the unit's rows were.
    __device__ __forceinline__ void end_made_unit() const {
        fence_engines_global();
        math_barrier();
    }

    // Up to 64 rows of tokens, normalized, to shared memory; rows without a token are zeros. Eight threads have a row. `waits`: for the phase before.
    template <class Token> __device__ __forceinline__ void normalize_rows(const __half* stream, bool waits, const Token& token_of) {
        const int row = m.tid / 8, part = m.tid % 8;
        const int token = token_of(row);
        const int pieces = p.channels / 8;
        const uint4* const source = reinterpret_cast<const uint4*>(stream + static_cast<uint32_t>(max(token, 0) * p.channels));
        const auto exists = [&](int i) { return i < kFewerPieces<DIM, PIECES> || part + 8 * i < pieces; };
        uint4 raw[PIECES];
        if (waits) wait_for_phase();
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            // With registers scarce, all are asked for without a condition: what there is not is something else then.
            if constexpr (kScarce) raw[i] = __ldcg(source + (exists(i) ? part + 8 * i : 0));
            else raw[i] = token >= 0 && exists(i) ? __ldcg(source + part + 8 * i) : make_uint4(0, 0, 0, 0);
        }
        normalize(raw, exists, row, part, token >= 0);
    }

    // As they are, so that nothing waits for them before they are needed.
    __device__ __forceinline__ uint32_t pair_of_vector(int at) const { return __ldg(reinterpret_cast<const uint32_t*>(vectors + at)); }

    // Whoever comes last of those that share the contracted index of a tile of quads adds up what all of them have left in memory, and is told so: words to wait for (end_shares) would have to be
    // in memory before this launch.
    template <class Tile> __device__ __forceinline__ bool add_up_quads(Ended<Tile>& end, uint32_t tile, int sharer) const {
        constexpr int kTiles = Tile::kTiles, kHalves = Tile::kHalves;
        const int split = p.split_quads;
        const uint32_t flag = at.stats + 2 * kChainRows * 8;
        float2* const parts = p.quad_partial + (int64_t{tile} * split) * (kHalves * kTiles * kChainMath) + m.tid;
#pragma unroll
        for (int h = 0; h < kHalves; ++h)
#pragma unroll
            for (int i = 0; i < kTiles; ++i) __stcg(parts + (int64_t{sharer} * kHalves * kTiles + h * kTiles + i) * kChainMath, end.own[h][i]);
        math_barrier();
        if (m.tid == 0) store_shared(flag, take_ticket(p.quad_tickets + tile, static_cast<uint32_t>(split - 1)) ? 1u : 0u);
        math_barrier();
        if (load_shared_byte(flag) == 0) return false;
#pragma unroll
        for (int h = 0; h < kHalves; ++h)
#pragma unroll
            for (int i = 0; i < kTiles; ++i) end.own[h][i] = make_float2(0.f, 0.f);
#pragma unroll 4
        for (int s = 0; s < split; ++s)
#pragma unroll
            for (int h = 0; h < kHalves; ++h)
#pragma unroll
                for (int i = 0; i < kTiles; ++i) {
                    const float2 v = __ldcg(parts + (int64_t{s} * kHalves * kTiles + h * kTiles + i) * kChainMath);
                    end.own[h][i].x += v.x, end.own[h][i].y += v.y;
                }
        return true;
    }

    // Products with the residual add.
    template <class Tile, bool SPLIT, class Token>
    __device__ __forceinline__ void add_unit(const Work& work, const Unit& u, int rows, int bias, const __half* residual, __half* to, const Token& token_of) {
        constexpr int kTiles = Tile::kTiles, kHalves = Tile::kHalves;
        const int column = u.column + m.group / Tile::kSharers * Tile::kColumns + Ended<Tile>::first_of(m) * 8 + 2 * m.t;
        const bool mine = !SPLIT || ends_share(u);
        int place[kHalves];  // of its columns of the row's token, or -1
        uint32_t added[kHalves][kTiles];
        uint32_t offset[kTiles];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) offset[i] = pair_of_vector(bias + column + 8 * i);
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
            const int token = mine ? token_of(m.row + 8 * (h + Ended<Tile>::half_of(m))) : -1;
            place[h] = token >= 0 ? token * p.channels + column : -1;
#pragma unroll
            for (int i = 0; i < kTiles; ++i) added[h][i] = place[h] >= 0 ? load_pair(residual + static_cast<uint32_t>(place[h]) + 8 * i) : 0u;
        }
        float acc[Tile::kColumns / 2] = {};
        multiply_unit<Tile, true>(p, r, at.rows, static_cast<uint32_t>(rows) * 16, m, work.chunks, work.stage, acc);
        Ended<Tile> end(m, acc, at.rows);
        if constexpr (SPLIT) {
            if (p.split > 1) end_shares<Tile, true>(u, work.width, p.partial, end);
        }
        if (mine) {
#pragma unroll
            for (int h = 0; h < kHalves; ++h)
#pragma unroll
                for (int i = 0; i < kTiles; ++i) {
                    const float2 v = floats(added[h][i]), b = floats(offset[i]);
                    const uint32_t sum = pack_halves(end.own[h][i].x + b.x + v.x, end.own[h][i].y + b.y + v.y);
                    if (place[h] >= 0) *reinterpret_cast<uint32_t*>(to + static_cast<uint32_t>(place[h]) + 8 * i) = sum;
                }
        }
        math_barrier();
        free_rows();
    }

    // Rows of four tokens' channels, as they are, by weights with the norm's scale in them. The norm comes behind the product, of which it is a factor of each row and, times each column's
    // sum of weights, something to take away; so those that share the contracted index share the rows' sums, too. These are of what differs from a row's first element, from which the mean is
    // no more standard deviations away than the root of how many there are, so that float has enough digits.
    // `first`: of the block, which then has not begun.
    template <class Tile> __device__ __forceinline__ void quad_unit(const Work& work, const Unit& u, bool first) {
        constexpr int kTiles = Tile::kTiles, kPieces = kChainQuads / 64;
        const int first_column = u.column + m.group / Tile::kSharers * Tile::kColumns + Ended<Tile>::first_of(m) * 8 + 2 * m.t;
        float acc[Tile::kColumns / 2] = {};
        {
            const int row = m.tid / 8, part = m.tid % 8;
            const int64_t token = row_token(u.tile, row);
            const int corner = p.quads.corner(static_cast<uint32_t>(max(token, int64_t{0})));
            const bool pivots = token >= 0 && p.quads.has(corner, 0);
            const int first_element = (corner & (QuadMap::kMostTokens - 1)) * p.quads.channels;
            float pivot = 0.f, sum = 0.f, squares = 0.f;
            int k = u.split * work.chunks * work.stage, chunks = work.chunks;
#pragma unroll 1
            for (bool begins = true; chunks > 0; begins = false) {
                const int now = min(chunks, p.quad_reads), here = now * work.stage;
                // Where these lie depends on nothing that is waited for. Of what is not there, the first is asked for instead: so no load has a condition.
                int place[kPieces];
                bool there[kPieces];
#pragma unroll
                for (int i = 0; i < kPieces; ++i) {
                    const int c = k + (part + 8 * i) * 8;
                    there[i] = token >= 0 && (part + 8 * i) * 8 < here && p.quads.has_at(corner, c);
                    place[i] = there[i] ? static_cast<int>(static_cast<uint32_t>(first_element + p.quads.step_at(c) + c) / 8) : 0;
                }
                if (begins && first) begin_behind_previous();
                if (begins && pivots) pivot = __half2float(__ldcg(p.quad_x + p.quads.element(corner, 0, 0)));
                uint4 raw[kPieces];
#pragma unroll
                for (int i = 0; i < kPieces; ++i) raw[i] = __ldcg(reinterpret_cast<const uint4*>(p.quad_x) + place[i]);
                // What was read of these before is multiplied.
                if (!begins) math_barrier();
#pragma unroll
                for (int i = 0; i < kPieces; ++i) {
                    if ((part + 8 * i) * 8 >= here) continue;
                    if (!there[i]) raw[i] = make_uint4(0, 0, 0, 0);
                    const uint32_t w[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const float2 v = floats(w[e]);
                        const float x = v.x - pivot, y = v.y - pivot;
                        sum += x, sum += y, squares = fmaf(x, x, squares), squares = fmaf(y, y, squares);
                    }
                    store_shared(at.rows + (part + 8 * i) * kNormalStep + row * 16, raw[i]);
                }
                fence_engines_shared();
                math_barrier();
                multiply_unit<Tile, false>(p, r, at.rows, kNormalStep, m, now, work.stage, acc);
                k += here, chunks -= now;
            }
            sum = group_sum<8>(sum), squares = group_sum<8>(squares);
            if (part == 0) store_shared(at.stats + row * 8, make_float2(sum, squares)), store_shared(at.stats + (kChainRows + row) * 8, make_float2(pivot, 0.f));
        }
        uint32_t offset[3][kTiles];
#pragma unroll
        for (int v = 0; v < 3; ++v)
#pragma unroll
            for (int i = 0; i < kTiles; ++i) offset[v][i] = __ldg(reinterpret_cast<const uint32_t*>(p.quad_vectors + v * p.channels + first_column + 8 * i));
        static_assert(Tile::kSharers > 1, "a barrier between the rows' sums and their readers");
        Ended<Tile> end(m, acc, at.rows);
        const int row = m.row + 8 * Ended<Tile>::half_of(m);
        float2 sums = load_shared(at.stats + row * 8);
        bool complete = true;
        if (p.split_quads > 1) {
            const uint32_t tile = tile_of(u, work.width);
            float2* const of_tile = p.quad_sums + tile * p.split_quads * kChainRows;
            if (m.tid < kChainRows) __stcg(of_tile + u.split * kChainRows + m.tid, load_shared(at.stats + m.tid * 8));
            complete = add_up_quads<Tile>(end, tile, u.split);
            if (complete) {
                sums = make_float2(0.f, 0.f);
#pragma unroll 1
                for (int s = 0; s < p.split_quads; ++s) {
                    const float2 v = __ldcg(of_tile + s * kChainRows + row);
                    sums.x += v.x, sums.y += v.y;
                }
            }
        }
        if (const int64_t token = row_token(u.tile, row); complete && token >= 0) {
            const float difference = sums.x * p.quad_each, mean = load_shared(at.stats + (kChainRows + row) * 8).x + difference;
            const float factor = rsqrtf(fmaxf(fmaf(-difference, difference, sums.y * p.quad_each), 0.f) + p.epsilon);
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
                const float2 b = floats(offset[0][i]), s = floats(offset[1][i]), rest = floats(offset[2][i]), v = end.own[0][i];
                const uint32_t y = pack_halves(fmaf(fmaf(-mean, rest.x, fmaf(-mean, s.x, v.x)), factor, b.x), fmaf(fmaf(-mean, rest.y, fmaf(-mean, s.y, v.y)), factor, b.y));
                *reinterpret_cast<uint32_t*>(p.y + token * p.channels + first_column + 8 * i) = y;
            }
        }
        math_barrier();
    }

    // Normalized rows by weights.
    template <class Tile, class Token, class End>
    __device__ __forceinline__ void normal_unit(const Work& work, const Unit& u, const __half* stream, int bias, bool waits, const Token& token_of, const End& end_with) {
        const int first = u.column / 8 + m.group / Tile::kSharers * (Tile::kColumns / 8) + Ended<Tile>::first_of(m);
        uint32_t offset[Tile::kTiles];
#pragma unroll
        for (int i = 0; i < Tile::kTiles; ++i) offset[i] = pair_of_vector(bias + (first + i) * 8 + 2 * m.t);
        normalize_rows(stream, waits, token_of);
        float acc[Tile::kColumns / 2] = {};
        multiply_unit<Tile, false>(p, r, at.rows, kNormalStep, m, work.chunks, work.stage, acc);
        const Ended<Tile> end(m, acc, at.rows);
        fence_engines_shared();
        end_normal(end, offset, first, end_with);
        end_made_unit();
    }

    // The attention of up to 64 queries of a head over KEYS keys a warpgroup. Their rows, and those of the values, lie `along` bytes apart for eight elements.
    // `offsets(j, added)`: what the scores of keys 8 j + 2 t and the next have added, for both rows, in log2 units. The place of a unit's rows is free.
    template <int KEYS, class Offsets>
    __device__ __forceinline__ void attend(const Unit& u, uint32_t queries, uint32_t query_along, uint32_t keys, uint32_t values, uint32_t along, const Offsets& offsets) {
        const auto end = attend_keys<DIM, KEYS, true>(queries, query_along, keys, values, along, offsets);
        fence_engines_shared();
        __half* const to = p.heads_out + (int64_t{u.tile} * (p.inner / 8) + u.column * (DIM / 8) + end.first_tile) * p.tile_rows * 8;
        const int row = m.row + 8 * end.half;
#pragma unroll
        for (int i = 0; i < ChainTile<DIM, 1>::kTiles; ++i)
            if (row < p.tile_rows) *reinterpret_cast<uint32_t*>(to + (i * p.tile_rows + row) * 8 + 2 * m.t) = pack_halves(end.own[0][i].x, end.own[0][i].y);
        end_made_unit();
    }

    // What the scores of keys `key` + 2 t and the next have added in a window, of whose rows `own` are the regions.
    __device__ __forceinline__ void window_offsets(uint32_t bias, int key, const uint32_t (&own)[2], float (&added)[2][2]) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (p.bias && key < p.bias_row) {
                const float2 b = floats(load_shared_pair(bias + static_cast<uint32_t>(min(m.row + 8 * h, p.group_tokens - 1) * p.bias_row + key + 2 * m.t) * 2));
                added[h][0] = b.x * kLog2, added[h][1] = b.y * kLog2;
            }
            if (!masked) continue;
#pragma unroll
            for (int e = 0; e < 2; ++e)
                if (load_shared_byte(at.regions + key + 2 * m.t + e) != own[h]) added[h][e] += p.mask_value;
        }
    }

    // A head of a window.
    __device__ __forceinline__ void window_unit(const Work& work, const Unit& u, bool waits) {
        using Tile = ChainTile4;
        constexpr int kKeys = kChainRows / 4;
        const int columns = m.group / Tile::kSharers, half = Ended<Tile>::half_of(m);
        uint32_t offset[Tile::kTiles];
#pragma unroll
        for (int i = 0; i < Tile::kTiles; ++i) offset[i] = pair_of_vector(head_column(p, u.column, columns * Tile::kTiles + i) + 2 * m.t);
        if (masked && !p.one_wave && m.tid < kChainRows) find_region(p, at, u.tile, m.tid);
        normalize_rows(from, waits, [&](int row) { return window_token(u, false, row); });
        float acc[Tile::kColumns / 2] = {};
        multiply_unit<Tile, false>(p, r, at.rows, kNormalStep, m, work.chunks, work.stage, acc);
        {
            const Ended<Tile> end(m, acc, at.rows);
#pragma unroll
            for (int i = 0; i < Tile::kTiles; ++i) {
                const float2 b = floats(offset[i]);
                store_shared(at.packed + (columns * 6 + i) * 1024 + (m.row + 8 * half) * 16 + m.t * 4, pack_halves(end.own[0][i].x + b.x, end.own[0][i].y + b.y));
            }
        }
        fence_engines_shared();
        math_barrier();
        uint32_t own[2] = {};
        if (masked) own[0] = load_shared_byte(at.regions + m.row), own[1] = load_shared_byte(at.regions + m.row + 8);
        const uint32_t bias = r.ring + m.at.slot * kChainStage;
        if (p.bias) mbarrier::wait(r.full + m.at.slot * 8, m.at.parity);
        attend<kKeys>(u, at.packed, 1024, at.packed + 4096, at.packed + 8192, 1024, [&](int j, float (&added)[2][2]) {
            window_offsets(bias, m.group * kKeys + 8 * j, own, added);
        });
        if (p.bias) {
            if (m.thread == 0) mbarrier::arrive(r.empty + m.at.slot * 8);
            m.at.next(p.stages);
        }
    }

    template <Phase PHASE, class F> __device__ __forceinline__ void each_unit(const F& f, bool waits, bool last) {
        const Work& work = p.work[PHASE];
        bool any = false;
#pragma unroll 1
        for (int number = blockIdx.x; number < work.units; number += gridDim.x) {
            const Unit u = work.unit(number);
            if constexpr (kScarce) m.forget();
            f(work, u, waits && !any);
            any = true;
        }
        // Of rows that pass through registers the place is only given back with the phase. The device's barrier says as much to the thread that fetches rows, but by way of memory.
        if ((PHASE == kHeads || PHASE == kUp) && m.thread == 0) mbarrier::arrive(r.rows_free);
        end_phase(any, last);
    }

    // Behind the kernel before.
    __device__ __forceinline__ void begin_behind_previous() {
        ptx::wait_for_previous();
        for (int i = static_cast<int>(blockIdx.x) * kChainMath + m.tid; i < p.unset; i += static_cast<int>(gridDim.x) * kChainMath)
            store_made(reinterpret_cast<unsigned char*>(p.partial) + int64_t{i} * 16, make_uint4(kUnset, kUnset, kUnset, kUnset));
    }

    template <class Tile> __device__ __forceinline__ void run_quads() {
        const Work& work = p.work[kQuads];
        bool any = false;
#pragma unroll 1
        for (int number = blockIdx.x; number < work.units; number += gridDim.x) quad_unit<Tile>(work, work.unit(number), !any), any = true;
        if (!any) begin_behind_previous();
        end_phase(true, false);
        // Nothing of this is carried on.
        m.forget();
    }

    __device__ __forceinline__ void run() {
        if constexpr (QUADS) {
            if (p.tile_quads == 0) run_quads<ChainTile0>();
            else run_quads<ChainTile1>();
        } else {
            begin_behind_previous();
        }
        ptx::barrier_wait(kTokensFound, kChainMath + kChainRows);
        const int pair_vectors = down_at() + p.channels;
#pragma unroll 1
        for (int pair = 0; pair < p.pairs; ++pair) {
            from = pair == 0 ? p.x : p.y;
            vectors = p.vectors + static_cast<int64_t>(pair) * pair_vectors;
            masked = p.shifted >> pair & 1;

            each_unit<kHeads>([&](const Work& work, const Unit& u, bool waits) { window_unit(work, u, waits); }, QUADS || pair > 0, false);
            with_tile<kMerge>(p.tile_merge, [&](auto tile) {
                each_unit<kMerge>(
                    [&](const Work& work, const Unit& u, bool waits) {
                        add_unit<decltype(tile), false>(work, u, p.tile_rows, merge_at(), from, p.middle, [&](int row) { return window_token(u, true, row); });
                    },
                    false, false);
            });
            with_tile<kUp>(p.tile_up, [&](auto tile) {
                each_unit<kUp>(
                    [&](const Work& work, const Unit& u, bool waits) {
                        normal_unit<decltype(tile)>(work, u, p.middle, up_at(), waits, [&](int row) { return static_cast<int>(row_token(u.tile, row)); }, [&](int piece, int row, float (&v)[2]) {
                            activate_by_two<2>(v, p.power);
                            if (row < p.rows) *reinterpret_cast<uint32_t*>(p.hidden + ((int64_t{u.tile} * (p.hidden_columns / 8) + piece) * p.rows + row) * 8 + 2 * m.t) = pack_halves(v[0], v[1]);
                        });
                    },
                    true, false);
            });
            with_tile<kDown>(p.tile_down, [&](auto tile) {
                each_unit<kDown>(
                    [&](const Work& work, const Unit& u, bool waits) {
                        add_unit<decltype(tile), true>(work, u, p.rows, down_at(), p.middle, p.y, [&](int row) { return static_cast<int>(row_token(u.tile, row)); });
                    },
                    false, pair + 1 == p.pairs);
            });
        }
    }
};

}  // namespace chain

// PIECES: of 8 channels that one of a row's eight threads normalizes. QUADS: with a patch merge ahead.
template <int PIECES, bool QUADS> __global__ void __launch_bounds__(kChainThreads, 1) block_chain_kernel(const __grid_constant__ ChainArgs p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ __align__(128) unsigned char shared[];
    chain::Layout at;
    at.rows = ptx::shared_address(shared), at.packed = at.rows + chain::kExchange;
    at.ring = at.rows + p.rows_bytes;
    at.stats = at.ring + p.stages * kChainStage;
    at.regions = at.stats + 4 * kChainRows * 8;
    at.tokens = at.regions + kChainRows;
    at.start = at.tokens + 4 * chain::kTokens;
    at.barriers = at.start + 8;
    const chain::Rings r{at.ring, at.barriers, at.barriers + kChainStages * 8, at.barriers + 2 * kChainStages * 8, at.barriers + (2 * kChainStages + kChainParts) * 8};
    const int tid = threadIdx.x, group = __shfl_sync(0xffffffffu, tid / 128, 0);  // the same in a warp, as the compiler sees then
    if (tid % 32 == 0) {
        static_assert(kChainThreads / 32 == kChainStages + kChainParts);
        const int warp = __shfl_sync(1u, tid / 32, 0);
        if (warp < kChainStages) mbarrier::init(r.full + warp * 8, 1), mbarrier::init(r.empty + warp * 8, 4);
        else mbarrier::init(r.rows_full + (warp - kChainStages) * 8, 1);
        if (warp == kChainStages) mbarrier::init(r.rows_free, 4);
        mbarrier::publish();
        ptx::ask_for_arguments(p, at.tokens, warp);
    }
    ptx::let_next_start();
    __syncthreads();
    // Registers of the block: 640 threads have 96 each to begin with.
    if (group == kChainMath / 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 64;");
        if (tid / 32 == kChainMath / 32) {
            // Weights are constants, so they need not wait for the kernel before.
            chain::fetch_weights<true, QUADS>(p, r, tid % 32);
        } else if (tid / 32 == kChainMath / 32 + 1) {
            ptx::wait_for_previous();
            // Not before it is there.
            const uint32_t start = __shfl_sync(0xffffffffu, chain::load_made(p.barrier), 0);
            chain::store_shared(at.start, start);
            ptx::barrier_arrive(chain::kStartRead, kChainMath + 32);
            if (ptx::elect()) chain::fetch_rows<QUADS>(p, r, at.rows, start);
        } else {
            // Two warps that have nothing else to do.
            chain::find_tokens(p, at, tid - (kChainThreads - kChainRows));
            ptx::barrier_arrive(chain::kTokensFound, kChainMath + kChainRows);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
        const int lane = tid % 32, thread = tid % 128;
        chain::Math m{tid, lane, group, thread, lane / 4, lane % 4, thread / 32 * 16 + lane / 4};
        chain::Chain<PIECES, QUADS> chain{{p, at, m}, r, nullptr, nullptr, false};
        chain.run();
    }
#endif
}

}  // namespace trt_opt
