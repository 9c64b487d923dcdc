// The MLP block of many rows by warpgroups, in one kernel: what is hidden stays in registers. A warpgroup has a tile of 64 rows, whose output it sums in
// registers over chunks of 64 hidden columns: a product of the chunk's columns of W1, bias and GELU, and a product with the chunk's rows of W2, whose left
// operand lies in registers just as the first product leaves it. The two or three warpgroups of a block read the same weights, pieces (a chunk's columns of
// W1 or rows of W2) that the tensor copy engine brings to a ring of slots in the order in which they are needed. The warp that is the last one done with a
// slot has the next piece brought there: a warp that does nothing but copy would take registers that the sums need. Where all pieces have slots they stay.
//
// GELU is what takes longest up to 128 channels, and what overlaps it is one warpgroup's products with another's GELU, and as far as there are registers
// with its own.
//
// Of fewer tiles than there are multiprocessors, the warpgroups of a block share one (SPLIT): each takes every third chunk and has a third of the output, whose sums are
// exchanged through shared memory.
#pragma once

#include "gelu.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "tensor_copy.cuh"
#include "warpgroup.cuh"
#include "warpgroup_registers.cuh"
#include "wide_mma.cuh"

namespace trt_opt {

struct WideMlpArgs {
    CUtensorMap w1, w2;            // boxes of 64 columns and as many rows as a tile has channels, or 64
    const __half *x, *residual;    // [rows, channels]; residual: or null
    const __half *scale, *shift;   // [channels]
    const __half *b1, *b2;         // [hidden], [channels]
    __half* y;                     // [rows, channels]
    int rows, channels, hidden;
    int tiles, chunks, slots;      // tiles: of 64 rows
    float epsilon, each;           // each: 1 / channels
    bool norm;
};

constexpr int kWideMlpRows = 64, kWideMlpChunk = 64, kWideMlpMaxHidden = 1024, kWideMlpMaxSlots = 16;

// What a warpgroup's tensor cores do during a chunk's GELU, as far as there are registers: the next chunk's first product and the last one's second, that
// second product, or nothing.
enum class WideMlpOverlap { kBoth, kSecond, kNone };

// Of up to C channels, and more than the tile before has. GROUPS warpgroups: three have 168 registers a thread, two 255. Offsets are of shared memory, in bytes.
template <int C, int GROUPS, bool SPLIT = false> struct WideMlpTile {
    static_assert(C == 64 || C == 96 || C == 128 || C == 192);
    static_assert(GROUPS == 2 || GROUPS == 3);
    static constexpr int kChannels = C, kGroups = GROUPS, kThreads = 128 * GROUPS;
    static constexpr bool kSplit = SPLIT;
    static constexpr int kUnits = C / 32;               // of eight channels that a thread has of a row
    static constexpr int kSureUnits = C == 64 ? 0 : C == 96 ? 64 / 32 : C == 128 ? 96 / 32 : 128 / 32;  // that are there with the fewest channels
    static constexpr int kParts = (C + 63) / 64;        // of 64 channels, of W2's and the normalized rows
    static constexpr int kW1Bytes = C * 128, kW2Bytes = kParts * 64 * 128, kSlotBytes = kW1Bytes > kW2Bytes ? kW1Bytes : kW2Bytes;
    static constexpr bool kRowsInRegisters = GROUPS == 2;  // those that go into the first product: else they are in shared memory
    static constexpr WideMlpOverlap kOverlap = GROUPS == 2 ? WideMlpOverlap::kBoth : C <= 128 ? WideMlpOverlap::kSecond : WideMlpOverlap::kNone;

    static constexpr int kFull = 0, kCounts = kWideMlpMaxSlots * 8, kB1 = kCounts + kWideMlpMaxSlots * 4, kB2 = kB1 + kWideMlpMaxHidden * 4, kScale = kB2 + C * 4, kShift = kScale + C * 2;
    static constexpr int kRows = (kShift + C * 2 + 1023) / 1024 * 1024;
    // Of a warpgroup: its rows, and then the sums of a tile that it shares that others end. A share of a thread is eight columns of a row.
    static constexpr int kShares = 2 * kUnits, kShareBytes = 128 * 8 * 4, kOthers = SPLIT ? kShares - kShares / GROUPS : 0;
    static constexpr int kRowBytes = kParts * kWideMlpRows * 128, kGroupRowsBytes = kRowsInRegisters ? 0 : kRowBytes > kOthers * kShareBytes ? kRowBytes : kOthers * kShareBytes;
    static_assert(!SPLIT || (!kRowsInRegisters && kOverlap == WideMlpOverlap::kSecond));
    static constexpr int kRing = kRows + kGroups * kGroupRowsBytes;
    static constexpr bool kPacked = GROUPS == 3 && kW1Bytes < kSlotBytes && kW2Bytes == kSlotBytes;  // pieces that stay lie close to each other, for want of room
    static constexpr int kFixed = 1024 + kRing;                           // and the slots
};

namespace wide {

// Counts up to `last`, then back to 0: what it was. What was read before has been read when who finds the last count goes on.
__device__ __forceinline__ uint32_t count_round(uint32_t at, uint32_t last) {
    uint32_t was = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("atom.acq_rel.cta.shared::cta.inc.u32 %0, [%1], %2;" : "=r"(was) : "r"(at), "r"(last) : "memory");
#endif
    return was;
}
// Keeps the compiler from computing operands behind the fence that is before their product.
template <int COUNT> __device__ __forceinline__ void settle(uint32_t (&r)[COUNT][4]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(r[i][0]), "+r"(r[i][1]), "+r"(r[i][2]), "+r"(r[i][3])::"memory");
}

}  // namespace wide

// A thread's part of a block: the kernel's body.
template <class TILE, bool TANH> struct WideMlp {
    using Tile = TILE;
    using Unit = Pack<__half, 8>;
    static constexpr int C = Tile::kChannels, kUnits = Tile::kUnits, kSteps = C / 16, kHiddenSteps = kWideMlpChunk / 16, kWarps = Tile::kThreads / 32;
    static constexpr bool kBoth = Tile::kOverlap == WideMlpOverlap::kBoth, kNone = Tile::kOverlap == WideMlpOverlap::kNone;

    const WideMlpArgs& p;
    unsigned char* shared;
    uint32_t at;                     // of it
    int g, t, group, warp;           // warp: of the group
    int pieces;                      // of a tile
    bool stay;
    // Where the next piece is, and the oldest that is not given back; which of its tile the first one is that has no slot yet, and how many there are of these.
    int slot = 0, old_slot = 0, coming, left;
    int saved = 0;  // bytes that the pieces before leave of their slots
    uint32_t parity = 0;
    int chunks;  // that this warpgroup has, and the number of one of them
    __device__ __forceinline__ int number(int chunk) const { return Tile::kSplit ? group + chunk * Tile::kGroups : chunk; }

    template <class T> __device__ __forceinline__ const T* shared_as(int offset) const { return reinterpret_cast<const T*>(shared + offset); }
    // What so many of a tile's first pieces leave of their slots where they stay: all of W1 do.
    __device__ __forceinline__ int saved_by(int pieces) const { return Tile::kPacked && stay ? (pieces < 2 ? pieces : pieces / 2 + 1) * (Tile::kSlotBytes - Tile::kW1Bytes) : 0; }
    // A tile's pieces in order: W1 0, W1 1, W2 0, W1 2, W2 1, ... W2 n - 1; where nothing overlaps W1 0, W2 0, W1 1, W2 1, ...
    __device__ __forceinline__ void fetch(int i, int to_slot) const {
        const bool last = kNone || i == pieces - 1, second = kNone ? i % 2 == 1 : last || (i > 0 && i % 2 == 0);
        const int chunk = second ? i / 2 - (last ? 0 : 1) : (i + (kNone ? 0 : 1)) / 2;
        const uint32_t to = at + Tile::kRing + to_slot * Tile::kSlotBytes - saved_by(i), barrier = at + Tile::kFull + to_slot * 8;
        mbarrier::expect(barrier, second ? Tile::kW2Bytes : Tile::kW1Bytes);
        if (second) {
#pragma unroll
            for (int part = 0; part < Tile::kParts; ++part) tensor_copy::load(to + part * (64 * 128), p.w2, part * 64, chunk * kWideMlpChunk, barrier);
        } else {
            tensor_copy::load(to, p.w1, chunk * kWideMlpChunk, 0, barrier);
        }
    }
    // The next piece, when it is there.
    __device__ __forceinline__ uint32_t take(int bytes) {
        mbarrier::wait(at + Tile::kFull + slot * 8, parity);
        uint32_t piece = at + Tile::kRing + slot * Tile::kSlotBytes;
        if constexpr (Tile::kPacked) piece -= saved, saved += stay ? Tile::kSlotBytes - bytes : 0;
        if (++slot == p.slots) slot = 0, parity ^= stay ? 0 : 1;
        if (Tile::kPacked && slot == 0) saved = 0;
        return piece;
    }
    // Piece i of those that stay, when it is there.
    __device__ __forceinline__ uint32_t await(int i) const {
        mbarrier::wait(at + Tile::kFull + i * 8, 0);
        return at + Tile::kRing + i * Tile::kSlotBytes - saved_by(i);
    }
    // This warp is done with the oldest piece.
    __device__ __forceinline__ void give_back() {
        if (!Tile::kSplit && left > 0) {
            if (g + t == 0 && wide::count_round(at + Tile::kCounts + old_slot * 4, kWarps - 1) == kWarps - 1) fetch(coming, old_slot);
            --left;
            if (++coming == pieces) coming = 0;
            if (++old_slot == p.slots) old_slot = 0;
        }
    }

    __device__ __forceinline__ bool exists(int i) const { return i < Tile::kSureUnits || (i * 4 + t) * 8 < p.channels; }
    // Eight channels after eight of a row of s, four threads a row; zeros where there is nothing.
    __device__ __forceinline__ void load_row(int row, Unit (&s)[kUnits]) const {
        const int64_t from = int64_t{row} * p.channels + t * 8;
        auto load = [&](const __half* rows, Unit (&v)[kUnits]) {
#pragma unroll
            for (int i = 0; i < kUnits; ++i) v[i].raw = row < p.rows && exists(i) ? *reinterpret_cast<const uint4*>(rows + from + i * 32) : make_uint4(0, 0, 0, 0);
        };
        load(p.x, s);
        if (p.residual) {
            Unit added[kUnits];
            load(p.residual, added);
#pragma unroll
            for (int i = 0; i < kUnits; ++i) add_packs<__half, 8>(s[i], added[i]);
        }
    }
    // The eight of them in unit i.
    __device__ __forceinline__ void load_unit(int row, int i, Unit& s) const {
        const int64_t from = int64_t{row} * p.channels + (i * 4 + t) * 8;
        const bool there = row < p.rows && exists(i);
        s.raw = there ? *reinterpret_cast<const uint4*>(p.x + from) : make_uint4(0, 0, 0, 0);
        if (p.residual && there) add_packs<__half, 8>(s, Unit(*reinterpret_cast<const uint4*>(p.residual + from)));
    }
    __device__ __forceinline__ void normalize(Unit (&s)[kUnits]) const {
        float sum = 0.f, squares = 0.f, v[8];
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
            s[i].floats(v);
#pragma unroll
            for (int e = 0; e < 8; ++e) sum += v[e];
            s[i].forget_floats();
        }
        const float mean = group_sum<4>(sum) * p.each;
        // Of differences to the mean, which may be far from zero. What does not exist is zeros.
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
            const float from = exists(i) ? mean : 0.f;
            s[i].floats(v);
#pragma unroll
            for (int e = 0; e < 8; ++e) squares = fmaf(v[e] - from, v[e] - from, squares);
            s[i].forget_floats();
        }
        const float factor = rsqrtf(fmaf(group_sum<4>(squares), p.each, p.epsilon)), offset = -mean * factor;
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
            float a[8], b[8];
            s[i].floats(v);
            Unit(shared_as<uint4>(Tile::kScale)[i * 4 + t]).floats(a), Unit(shared_as<uint4>(Tile::kShift)[i * 4 + t]).floats(b);
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] = fmaf(fmaf(v[e], factor, offset), a[e], b[e]);
            s[i] = Unit::of(v);
        }
    }

    // The first product's left operand, and where it is in shared memory.
    uint32_t a[Tile::kRowsInRegisters ? kSteps : 1][4];
    __device__ __forceinline__ void prepare_rows(int row0) {
        Unit s[2][kUnits];
#pragma unroll
        for (int h = 0; h < 2; ++h) load_row(row0 + warp * 16 + h * 8 + g, s[h]);
        if constexpr (Tile::kRowsInRegisters) {
            if (p.norm) normalize(s[0]), normalize(s[1]);
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int i = 0; i < kUnits; ++i) {
                    uint32_t r[4] = {s[h][i].raw.x, s[h][i].raw.y, s[h][i].raw.z, s[h][i].raw.w};
                    exchange_tiles(r, t);
#pragma unroll
                    for (int j = 0; j < 4; ++j) a[2 * i + j / 2][h + j % 2 * 2] = r[j];
                }
            wide::settle(a);
        } else {
            // The group's products of its last tile are done, or what the others read of it has been read.
            if constexpr (Tile::kSplit) __syncthreads();
            else ptx::barrier_wait(1 + group, 128);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                if (p.norm) normalize(s[h]);
                const uint32_t row = at + Tile::kRows + group * Tile::kGroupRowsBytes + (warp * 16 + h * 8 + g) * 128;
#pragma unroll
                for (int i = 0; i < kUnits; ++i) {
                    const uint4& v = s[h][i].raw;
                    const int unit = i * 4 + t;
                    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(row + unit / 8 * (64 * 128) + ((unit % 8 ^ g) << 4)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
                }
            }
            tensor_copy::fence_shared();
            ptx::barrier_wait(1 + group, 128);
        }
    }

    // `chunk`: of this warpgroup's.
    __device__ __forceinline__ void start_first(float (&s)[32], int chunk) {
        const uint32_t w = Tile::kSplit ? await(max(2 * number(chunk) - 1, 0)) : take(Tile::kW1Bytes);
        warpgroup::begin();
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
            const uint64_t b = wide::descriptor(w + k * 2048, 16);
            if constexpr (Tile::kRowsInRegisters) warpgroup::multiply_rows(s, a[k][0], a[k][1], a[k][2], a[k][3], b, k);
            else wide::multiply(s, wide::descriptor(at + Tile::kRows + group * Tile::kGroupRowsBytes + k / 4 * (64 * 128) + k % 4 * 32, 16), b, k);
        }
        warpgroup::commit();
    }
    __device__ __forceinline__ void start_second(float (&o)[C / 2], uint32_t (&h)[kHiddenSteps][4], int chunk) {
        const uint32_t w = Tile::kSplit ? await(min(2 * number(chunk) + 2, pieces - 1)) : take(Tile::kW2Bytes);
        warpgroup::begin();
#pragma unroll
        for (int k = 0; k < kHiddenSteps; ++k) warpgroup::multiply_rows(o, h[k][0], h[k][1], h[k][2], h[k][3], wide::descriptor(w + k * 2048, 64 * 128), 1);
        warpgroup::commit();
    }
    // Rounded, as the second product's left operand: pair 2 j + i of s is that of row g + 8 i, columns 8 j + 2 t.
    __device__ __forceinline__ void activate_chunk(const float (&s)[32], int chunk, uint32_t (&h)[kHiddenSteps][4]) const {
        const float* const bias = shared_as<float>(Tile::kB1) + number(chunk) * kWideMlpChunk + 2 * t;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const float2 b = *reinterpret_cast<const float2*>(bias + 8 * j);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float v[2] = {s[4 * j + 2 * i] + b.x, s[4 * j + 2 * i + 1] + b.y};
                activate(v, TANH ? Activation::kGeluTanh : Activation::kGelu);
                h[j / 2][j % 2 * 2 + i] = pack_halves(v[0], v[1]);
            }
        }
        wide::settle(h);
    }

    // Unit i of a row, o: pairs of its columns 8 j + 2 t.
    __device__ __forceinline__ void finish_unit(const float2 (&o)[4], int row, int i, const Unit& added) const {
        uint32_t r[4] = {added.raw.x, added.raw.y, added.raw.z, added.raw.w};
        exchange_tiles(r, t);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 b = *shared_as<float2>(Tile::kB2 + (i * 32 + j * 8 + 2 * t) * 4), s = __half22float2(*reinterpret_cast<const __half2*>(&r[j]));
            r[j] = pack_halves(o[j].x + b.x + s.x, o[j].y + b.y + s.y);
        }
        exchange_tiles(r, t);
        if (row < p.rows && exists(i)) *reinterpret_cast<uint4*>(p.y + int64_t{row} * p.channels + (i * 4 + t) * 8) = make_uint4(r[0], r[1], r[2], r[3]);
    }
    static __device__ __forceinline__ void unit_of(const float (&o)[C / 2], int i, int h, float2 (&pairs)[4]) {
#pragma unroll
        for (int j = 0; j < 4; ++j) pairs[j] = make_float2(o[(i * 4 + j) * 4 + 2 * h], o[(i * 4 + j) * 4 + 2 * h + 1]);
    }
    __device__ __forceinline__ void finish_row(const float (&o)[C / 2], int row, int h, const Unit (&added)[kUnits]) const {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
            float2 pairs[4];
            unit_of(o, i, h, pairs);
            finish_unit(pairs, row, i, added[i]);
        }
    }

    // Share q = 2 i + h of a tile that the warpgroups share, unit i of row 8 h, is ended by warpgroup q % GROUPS. Where one has what another ends.
    __device__ __forceinline__ float4* share_at(int of, int q) const {
        const int own_before = (q + Tile::kGroups - 1 - of) / Tile::kGroups;
        return reinterpret_cast<float4*>(shared + Tile::kRows + of * Tile::kGroupRowsBytes + (q - own_before) * Tile::kShareBytes) + threadIdx.x % 128;
    }
    __device__ __forceinline__ void finish_shares(float (&o)[C / 2], int row) const {
        Unit added[(Tile::kShares + Tile::kGroups - 1) / Tile::kGroups];
#pragma unroll
        for (int q = 0; q < Tile::kShares; ++q)
            if (q % Tile::kGroups == group) load_unit(row + q % 2 * 8, q / 2, added[q / Tile::kGroups]);
        warpgroup::wait<0>();
        warpgroup::settle(o);
        ptx::barrier_wait(1 + group, 128);  // no warp's products still read the rows that shares are written over
#pragma unroll
        for (int q = 0; q < Tile::kShares; ++q) {
            if (q % Tile::kGroups == group) continue;
            float2 v[4];
            unit_of(o, q / 2, q % 2, v);
            float4* const to = share_at(group, q);
            to[0] = make_float4(v[0].x, v[0].y, v[1].x, v[1].y), to[128] = make_float4(v[2].x, v[2].y, v[3].x, v[3].y);
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < Tile::kShares; ++q) {
            if (q % Tile::kGroups != group) continue;
            float2 v[4];
            unit_of(o, q / 2, q % 2, v);
#pragma unroll
            for (int k = 1; k < Tile::kGroups; ++k) {
                const float4* const from = share_at((group + k) % Tile::kGroups, q);
                const float4 a = from[0], b = from[128];
                v[0].x += a.x, v[0].y += a.y, v[1].x += a.z, v[1].y += a.w, v[2].x += b.x, v[2].y += b.y, v[3].x += b.z, v[3].y += b.w;
            }
            finish_unit(v, row + q % 2 * 8, q / 2, added[q / Tile::kGroups]);
        }
    }

    __device__ __forceinline__ void tile(int row0) {
        prepare_rows(row0);
        float s[32] = {}, o[C / 2] = {};
        uint32_t even[kHiddenSteps][4], odd[kHiddenSteps][4];
        start_first(s, 0);
        warpgroup::wait<0>();
        warpgroup::settle(s);
        give_back();

        auto chunk = [&](int i, uint32_t (&h)[kHiddenSteps][4]) {
            float next[32] = {};  // the first step does not add, but without a value the compiler makes products wait for each other
            if constexpr (kBoth) start_first(next, i + 1);
            activate_chunk(s, i, h);
            if constexpr (!kNone) warpgroup::wait<0>();
            if constexpr (kNone) {
                start_second(o, h, i);
                warpgroup::wait<0>();
                give_back();
            }
            if constexpr (!kBoth) start_first(next, i + 1);
            if constexpr (!kNone) start_second(o, h, i);
            if constexpr (!kBoth) warpgroup::wait<kNone ? 0 : 1>();
            warpgroup::settle(next);
#pragma unroll
            for (int j = 0; j < 32; ++j) s[j] = next[j];
            if (!kNone && i > 0) give_back();
            give_back();
        };
        auto last = [&](int i, uint32_t (&h)[kHiddenSteps][4]) {
            activate_chunk(s, i, h);
            warpgroup::wait<0>();
            start_second(o, h, i);
        };
        int i = 0;
        if constexpr (kNone) {
#pragma unroll 1
            for (; i + 1 < chunks; ++i) chunk(i, even);
            last(i, even);
        } else {
#pragma unroll 1
            for (; i + 2 < chunks; i += 2) chunk(i, even), chunk(i + 1, odd);
            if (i + 1 < chunks) chunk(i, even), last(++i, odd);
            else last(i, even);
        }

        const int row = row0 + warp * 16 + g;
        if constexpr (Tile::kSplit) {
            finish_shares(o, row);
            return;
        }
        Unit added[2][kUnits];
        load_row(row, added[0]);
        warpgroup::wait<0>();
        warpgroup::settle(o);
        if (!kNone && i > 0) give_back();
        give_back();
        // All loads before the stores, which the compiler may not move them over, if there are registers.
        if constexpr (!kNone) load_row(row + 8, added[1]);
        finish_row(o, row, 0, added[0]);
        if constexpr (kNone) load_row(row + 8, added[1]);
        finish_row(o, row + 8, 1, added[1]);
    }
};

template <class Tile, bool TANH> __global__ void __launch_bounds__(Tile::kThreads, 1) wide_mlp_kernel(const __grid_constant__ WideMlpArgs p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    constexpr int C = Tile::kChannels;
    ptx::let_next_start();
    extern __shared__ unsigned char unaligned[];
    const uint32_t unaligned_at = ptx::shared_address(unaligned), at = (unaligned_at + 1023) & ~1023u;
    unsigned char* const shared = unaligned + (at - unaligned_at);
    const int tid = threadIdx.x;
    // A round of tiles: one of each warpgroup of each block, the first warpgroups' before the second ones'.
    const int blocks = static_cast<int>(gridDim.x), first = static_cast<int>(blockIdx.x), round = (Tile::kSplit ? 1 : Tile::kGroups) * blocks;

    WideMlp<Tile, TANH> m{p, shared, at};
    m.g = tid % 32 / 4, m.t = tid % 4, m.group = __shfl_sync(0xffffffffu, tid / 128, 0), m.warp = tid / 32 % 4;
    m.pieces = 2 * p.chunks, m.stay = p.slots == m.pieces;
    m.chunks = Tile::kSplit ? (p.chunks - m.group + Tile::kGroups - 1) / Tile::kGroups : p.chunks;
    m.left = m.stay ? 0 : (p.tiles - first + round - 1) / round * m.pieces - p.slots, m.coming = p.slots;

    if (tid == 0) {
        for (int s = 0; s < p.slots; ++s) {
            mbarrier::init(at + Tile::kFull + s * 8, 1);
            reinterpret_cast<uint32_t*>(shared + Tile::kCounts)[s] = 0;
        }
        mbarrier::publish();
        for (int s = 0; s < p.slots; ++s) m.fetch(s, s);
    }
    for (int i = tid; i < p.chunks * kWideMlpChunk; i += Tile::kThreads) reinterpret_cast<float*>(shared + Tile::kB1)[i] = i < p.hidden ? __half2float(p.b1[i]) : 0.f;
    if (tid < C) {
        const bool exists = tid < p.channels;
        reinterpret_cast<float*>(shared + Tile::kB2)[tid] = exists ? __half2float(p.b2[tid]) : 0.f;
        if (p.norm) {
            reinterpret_cast<__half*>(shared + Tile::kScale)[tid] = exists ? p.scale[tid] : __half();
            reinterpret_cast<__half*>(shared + Tile::kShift)[tid] = exists ? p.shift[tid] : __half();
        }
    }
    __syncthreads();
    ptx::wait_for_previous();

    for (int base = first; base < p.tiles; base += round) {
        const int tile = base + (Tile::kSplit ? 0 : m.group * blocks);
        if (tile < p.tiles) {
            // The next tile's rows, to the second-level cache.
            const int64_t next = (int64_t{tile} + round) * kWideMlpRows * p.channels, end = int64_t{p.rows} * p.channels;
            for (int i = tid % 128 * 64; i < kWideMlpRows * p.channels && next + i < end; i += 128 * 64) {
                ptx::prefetch_l2(p.x + next + i);
                if (p.residual) ptx::prefetch_l2(p.residual + next + i);
            }
            m.tile(tile * kWideMlpRows);
        } else if (!m.stay) {
            for (int i = 0; i < m.pieces; ++i) m.take(0), m.give_back();
        }
    }
#endif
}

}  // namespace trt_opt
