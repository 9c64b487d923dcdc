// Chooses the tile of the MLP block of many rows and launches it. TRT_OPT_SM90A: this file is compiled for sm_90a.
#include "wide_mlp.h"

#include <algorithm>
#include <iterator>

#include "launch.cuh"
#include "tensor_map.h"
#include "wide_mlp_launch.cuh"

namespace trt_opt {
namespace {

struct Shape {
    int channels, groups, first, second, slot, fixed;  // bytes of shared memory: a piece of W1 and one of W2 that stay, a slot, and all but the slots
    bool split;                                        // the warpgroups of a block share a tile
    bool overlaps;                                     // a warpgroup's first products and its own GELU
    WideMlpLauncher* launch;
};
template <int C, int GROUPS, bool SPLIT = false> constexpr Shape shape(WideMlpLauncher* launch) {
    using T = WideMlpTile<C, GROUPS, SPLIT>;
    return {C, GROUPS, T::kPacked ? T::kW1Bytes : T::kSlotBytes, T::kPacked ? T::kW2Bytes : T::kSlotBytes, T::kSlotBytes, T::kFixed, SPLIT, T::kOverlap == WideMlpOverlap::kBoth, launch};
}
const Shape kShapes[] = {shape<64, 2>(launch_wide_mlp_64_2), shape<96, 2>(launch_wide_mlp_96_2), shape<64, 3>(launch_wide_mlp_64_3), shape<96, 3>(launch_wide_mlp_96_3), shape<128, 3>(launch_wide_mlp_128_3), shape<192, 3>(launch_wide_mlp_192_3),
                         shape<64, 3, true>(launch_wide_mlp_64_split), shape<96, 3, true>(launch_wide_mlp_96_split)};
constexpr int kShapeCount = sizeof(kShapes) / sizeof(kShapes[0]);
constexpr int64_t kManyRows = 1500;

int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }
int chunks_of(const MlpBlockProblem& q) { return static_cast<int>(parts(q.hidden, kWideMlpChunk)); }

struct Ring {
    int slots, bytes;
};
// All pieces of the weights, or as many as there is room for.
Ring ring_of(const Shape& s, const MlpBlockProblem& q) {
    const int chunks = chunks_of(q), room = device().shared - s.fixed;
    if (2 * chunks <= kWideMlpMaxSlots && chunks * (s.first + s.second) <= room) return {2 * chunks, chunks * (s.first + s.second)};
    const int slots = std::min({2 * chunks - 1, kWideMlpMaxSlots, room / s.slot});
    return {slots, slots * s.slot};
}
// Whether no tile of fewer channels holds the problem's.
bool fits(const Shape& s, const MlpBlockProblem& q) {
    return q.channels <= s.channels && std::none_of(std::begin(kShapes), std::end(kShapes), [&](const Shape& other) { return other.channels < s.channels && q.channels <= other.channels; });
}

// Nanoseconds, an estimate that is fitted to nothing yet: a launch with the first weights and rows; chunks of a multiprocessor's warpgroups, of which GELU takes 512
// clocks and the tensor cores 4 for a channel, or of one alone; some 1.4 clocks a nanosecond with what waits for what; the start and end of a tile.
constexpr float kLaunch = 6000, kGeluClocks = 512, kAloneClocks = 700, kChannelClocks = 4, kClocks = 1.4f, kTile = 900;

float cost(const Shape& s, const MlpBlockProblem& q) {
    const int64_t each = parts(parts(q.rows, kWideMlpRows), device().multiprocessors), at_once = s.split ? 1 : s.groups;
    const int64_t chunks = s.split ? parts(chunks_of(q), s.groups) : chunks_of(q), working = s.split ? s.groups : std::min<int64_t>(each, s.groups);
    const float products = kChannelClocks * static_cast<float>(s.channels), alone = kAloneClocks + (s.overlaps ? 0 : products);
    const float together = static_cast<float>(working) * std::max(kGeluClocks, products);
    return kLaunch + static_cast<float>(parts(each, at_once)) * (static_cast<float>(chunks) * std::max(together, alone) / kClocks + kTile);
}

}  // namespace

bool wide_mlp_valid(const WideMlpPlan& plan, const MlpBlockProblem& q) {
#ifdef TRT_OPT_SM90A
    constexpr int kLeastSlots = 4;  // of a ring: three pieces are in use
    if (plan.tile < 0 || plan.tile >= kShapeCount || device().major != 9 || !encode_tiled()) return false;
    const Shape& s = kShapes[plan.tile];
    return q.dtype == DType::kHalf && q.rows > 0 && q.rows <= INT32_MAX / 2 && q.channels % 8 == 0 && q.hidden % 8 == 0 && q.hidden <= kWideMlpMaxHidden && fits(s, q) &&
           (s.split ? chunks_of(q) >= s.groups && ring_of(s, q).slots == 2 * chunks_of(q) : ring_of(s, q).slots >= std::min(kLeastSlots, 2 * chunks_of(q)));
#else
    return false;
#endif
}

std::vector<WideMlpPlan> wide_mlp_plans(const MlpBlockProblem& q) {
    std::vector<WideMlpPlan> all;
    if (q.rows < kManyRows) return all;
    for (int tile = 0; tile < kShapeCount; ++tile)
        if (WideMlpPlan plan{tile, 0}; wide_mlp_valid(plan, q)) plan.cost = cost(kShapes[tile], q), all.push_back(plan);
    std::sort(all.begin(), all.end(), [](const WideMlpPlan& a, const WideMlpPlan& b) { return a.cost < b.cost; });
    return all;
}

cudaError_t wide_mlp(const MlpBlockProblem& q, const WideMlpPlan& plan, cudaStream_t stream) {
    if (!wide_mlp_valid(plan, q)) return cudaErrorInvalidValue;
    const Shape& s = kShapes[plan.tile];
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    WideMlpArgs p{};
    if (!encode(p.w1, q.w1, q.channels, q.hidden, s.channels) || !encode(p.w2, q.w2, q.hidden, q.channels, kWideMlpChunk)) return cudaErrorInvalidValue;
    p.x = in(q.x), p.residual = in(q.residual), p.scale = in(q.scale), p.shift = in(q.bias), p.b1 = in(q.b1), p.b2 = in(q.b2), p.y = static_cast<__half*>(q.y);
    p.rows = static_cast<int>(q.rows), p.channels = q.channels, p.hidden = q.hidden;
    const Ring ring = ring_of(s, q);
    p.tiles = static_cast<int>(parts(q.rows, kWideMlpRows)), p.chunks = chunks_of(q), p.slots = ring.slots;
    p.epsilon = q.epsilon, p.each = 1.f / static_cast<float>(q.channels), p.norm = q.norm;
    WideMlpLaunch how;
    how.blocks = static_cast<uint32_t>(std::min(p.tiles, device().multiprocessors)), how.shared = s.fixed + ring.bytes, how.tanh_gelu = q.tanh_gelu;
    return s.launch(p, how, stream);
}

}  // namespace trt_opt
