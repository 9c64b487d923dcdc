// Chooses the tile of the MLP block of many rows and launches it. TRT_OPT_SM90A: this file is compiled for sm_90a.
#include "wide_mlp.h"

#include <algorithm>

#include "launch.cuh"
#include "tensor_map.h"
#include "wide_mlp_launch.cuh"

namespace trt_opt {
namespace {

struct Shape {
    int channels, groups, slot, fixed;  // slot, fixed: bytes of shared memory
    bool overlaps;                      // a warpgroup's first products and its own GELU
    cudaError_t (*launch)(const WideMlpArgs&, bool, uint32_t, cudaStream_t);
};
template <int C> constexpr Shape shape(cudaError_t (*launch)(const WideMlpArgs&, bool, uint32_t, cudaStream_t)) {
    return {C, WideMlpTile<C>::kGroups, WideMlpTile<C>::kSlotBytes, WideMlpTile<C>::shared_bytes(0), WideMlpTile<C>::kOverlap == WideMlpOverlap::kBoth, launch};
}
const Shape kShapes[] = {shape<64>(launch_wide_mlp_64), shape<96>(launch_wide_mlp_96), shape<128>(launch_wide_mlp_128), shape<192>(launch_wide_mlp_192)};
constexpr int kShapeCount = sizeof(kShapes) / sizeof(kShapes[0]), kLeastSlots = 4;
constexpr int64_t kManyRows = 1500;

int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }
int chunks_of(const MlpBlockProblem& q) { return static_cast<int>(parts(q.hidden, kWideMlpChunk)); }
// Pieces of the weights that there is room for, no more than there are.
int slots_of(const Shape& s, const MlpBlockProblem& q) { return std::min({2 * chunks_of(q), kWideMlpMaxSlots, (device().shared - s.fixed) / s.slot}); }
// The fewest channels that hold the problem's.
int tile_of(const MlpBlockProblem& q) {
    int tile = 0;
    while (tile < kShapeCount && kShapes[tile].channels < q.channels) ++tile;
    return tile;
}

// Nanoseconds, an estimate that is fitted to nothing yet: a launch with the first weights and rows; chunks of a multiprocessor's warpgroups, of which GELU takes 512
// clocks and the tensor cores 4 for a channel, or of one alone; some 1.4 clocks a nanosecond with what waits for what; the start and end of a tile.
constexpr float kLaunch = 6000, kGeluClocks = 512, kAloneClocks = 700, kChannelClocks = 4, kClocks = 1.4f, kTile = 900;

float cost(const Shape& s, const MlpBlockProblem& q) {
    const int64_t each = parts(parts(q.rows, kWideMlpRows), device().multiprocessors);
    const float products = kChannelClocks * static_cast<float>(s.channels), alone = kAloneClocks + (s.overlaps ? 0 : products);
    const float together = static_cast<float>(std::min<int64_t>(each, s.groups)) * std::max(kGeluClocks, products);
    return kLaunch + static_cast<float>(parts(each, s.groups)) * (static_cast<float>(chunks_of(q)) * std::max(together, alone) / kClocks + kTile);
}

}  // namespace

bool wide_mlp_valid(const WideMlpPlan& plan, const MlpBlockProblem& q) {
#ifdef TRT_OPT_SM90A
    if (plan.tile < 0 || plan.tile >= kShapeCount || plan.tile != tile_of(q) || device().major != 9 || !encode_tiled()) return false;
    // A ring needs the pieces that are in use and some that are under way.
    const int slots = slots_of(kShapes[plan.tile], q);
    return q.dtype == DType::kHalf && q.rows > 0 && q.rows <= INT32_MAX / 2 && q.channels % 8 == 0 && q.hidden % 8 == 0 && q.hidden <= kWideMlpMaxHidden &&
           slots >= std::min(kLeastSlots, 2 * chunks_of(q));
#else
    return false;
#endif
}

std::vector<WideMlpPlan> wide_mlp_plans(const MlpBlockProblem& q) {
    WideMlpPlan plan{tile_of(q), 0};
    if (q.rows < kManyRows || !wide_mlp_valid(plan, q)) return {};
    plan.cost = cost(kShapes[plan.tile], q);
    return {plan};
}

cudaError_t wide_mlp(const MlpBlockProblem& q, const WideMlpPlan& plan, cudaStream_t stream) {
    if (!wide_mlp_valid(plan, q)) return cudaErrorInvalidValue;
    const Shape& s = kShapes[plan.tile];
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    WideMlpArgs p{};
    if (!encode(p.w1, q.w1, q.channels, q.hidden, s.channels) || !encode(p.w2, q.w2, q.hidden, q.channels, kWideMlpChunk)) return cudaErrorInvalidValue;
    p.x = in(q.x), p.residual = in(q.residual), p.scale = in(q.scale), p.shift = in(q.bias), p.b1 = in(q.b1), p.b2 = in(q.b2), p.y = static_cast<__half*>(q.y);
    p.rows = static_cast<int>(q.rows), p.channels = q.channels, p.hidden = q.hidden;
    p.tiles = static_cast<int>(parts(q.rows, kWideMlpRows)), p.chunks = chunks_of(q), p.slots = slots_of(s, q);
    p.epsilon = q.epsilon, p.each = 1.f / static_cast<float>(q.channels), p.norm = q.norm;
    return s.launch(p, q.tanh_gelu, static_cast<uint32_t>(std::min(p.tiles, device().multiprocessors)), stream);
}

}  // namespace trt_opt
