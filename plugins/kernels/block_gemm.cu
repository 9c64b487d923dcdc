// Chooses how a product of a block is cut up.
#include "block_gemm.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "block_gemm_tiles.h"
#include "launch.cuh"

namespace trt_opt {
namespace {

struct Shape {
    int rows, columns, warps, warps_k, warp_rows;
    int (*shared)(bool norm, int slice, int cluster);
    GemmLauncher* launch;
    MergeGemmLauncher* merge;  // null: cannot merge patches
};
template <class Tile> constexpr Shape shape(GemmLauncher* launch, MergeGemmLauncher* merge = nullptr) {
    return {Tile::kRows, Tile::kColumns, Tile::kWarps, Tile::kWarpsK, 16 * Tile::kM, Tile::shared_bytes, launch, merge};
}
const Shape kShapes[] = {shape<GemmTile16x64>(launch_gemm_16x64, launch_merge_gemm_16x64), shape<GemmTile32x32>(launch_gemm_32x32, launch_merge_gemm_32x32),
                         shape<GemmTile32x64>(launch_gemm_32x64, launch_merge_gemm_32x64), shape<GemmTile32x96>(launch_gemm_32x96),
                         shape<GemmTile32x128>(launch_gemm_32x128),                        shape<GemmTile64x32>(launch_gemm_64x32, launch_merge_gemm_64x32),
                         shape<GemmTile64x64>(launch_gemm_64x64, launch_merge_gemm_64x64), shape<GemmTile64x64w16>(launch_gemm_64x64w16),
                         shape<GemmTile64x96>(launch_gemm_64x96),   shape<GemmTile64x128>(launch_gemm_64x128), shape<GemmTile128x64>(launch_gemm_128x64), shape<GemmTile128x128>(launch_gemm_128x128)};
constexpr int kShapeCount = sizeof(kShapes) / sizeof(kShapes[0]);
constexpr int kMostBlocks = 4;      // a multiprocessor: with more, arithmetic counts, and the library is better at it
constexpr int kMaxClusterLog2 = 3;  // clusters of more are not for every device

int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }

// A plan in numbers.
struct Cut {
    const Shape& shape;
    int cluster, slice, shared;
    int64_t columns, blocks;  // tiles

    Cut(const GemmPlan& plan, const BlockGemmProblem& q) : shape(kShapes[plan.tile]), cluster(1 << plan.cluster_log2) {
        slice = cluster == 1 ? q.k : static_cast<int>(parts(parts(q.k, cluster), 16) * 16);
        shared = shape.shared(q.norm, slice, cluster);
        columns = parts(q.n, shape.columns), blocks = parts(q.rows, shape.rows) * columns * cluster;
    }
};

bool valid_quads(const BlockGemmProblem& q) {
    const QuadGrid& g = q.quads;
    if (!q.norm || q.window.used() || q.k % 32 != 0 || g.grid_w <= 0 || int64_t{2} * g.grid_w * q.k > INT32_MAX || q.rows % g.merged() != 0) return false;
    return q.rows / g.merged() <= QuadMap::kMostTokens / g.tokens();
}
bool valid_problem(const BlockGemmProblem& q) {
    if (q.quads.used() && !valid_quads(q)) return false;
    return q.rows > 0 && q.rows < INT32_MAX && q.k > 0 && q.n > 0 && q.k % 8 == 0 && q.n % 8 == 0 && int64_t{q.k} * q.n <= INT32_MAX && (!q.norm || !q.added) &&
           (q.activation == Activation::kNone || !q.added) && device().major >= 9;
}

// The estimate's constants, in nanoseconds, fitted to some 270 pairs of products of six MLP blocks on an H100 (plugins/NOTES.md): a
// kernel; 1000 elements of A; a step of 16 contracted elements for 16 rows of a warp; an element that a thread gives to GELU; a
// cluster, and each doubling of it; sums over a block's warps; a kilobyte of shared memory, where blocks are next to each other;
// as a factor, each further block of a multiprocessor; and of a norm its start, an element of B that a thread scales, and what it
// adds to a step.
constexpr float kKernel = 2182, kRowElements = 48.9f, kStep = 18.5f, kGelu = 72.f, kCluster = 363, kClusterDoubled = 1132, kWarpSums = 796, kShared = 6.81f, kCrowd = 0.34f, kNorm = 524, kScaled = 18.7f,
                kNormStep = 4.4f;

// Nanoseconds, roughly: the order of plans is what matters.
float cost(const Cut& cut, const GemmPlan& plan, const BlockGemmProblem& q) {
    const Shape& s = cut.shape;
    const int64_t sm = device().multiprocessors;
    const int threads = 32 * s.warps;
    const int64_t together = std::clamp<int64_t>(std::min(device().shared / (cut.shared + 1024), 65536 / (72 * threads)), 1, 4);
    const float steps = static_cast<float>(cut.slice) / 16 / static_cast<float>(s.warps_k) * static_cast<float>(s.warp_rows / 16);
    float block = kRowElements * static_cast<float>(s.rows) * static_cast<float>(cut.slice) / 1000 + (kStep + (q.norm ? kNormStep : 0)) * steps +
                  (plan.cluster_log2 > 0 ? kCluster + kClusterDoubled * static_cast<float>(plan.cluster_log2) : s.warps_k > 1 ? kWarpSums : 0);
    if (q.activation != Activation::kNone) block += kGelu * static_cast<float>(s.rows * s.columns / cut.cluster) / static_cast<float>(threads);
    const float crowd = 1 + kCrowd * static_cast<float>(std::min(together, parts(cut.blocks, sm)) - 1);
    const auto waves = static_cast<float>(parts(cut.blocks, sm * together));
    const float norm = q.norm ? kNorm + waves * kScaled * static_cast<float>(q.k) * static_cast<float>(s.columns) / static_cast<float>(threads) : 0;
    return kKernel + norm + waves * crowd * block + (2 * cut.blocks > sm ? kShared * static_cast<float>(cut.shared) / 1000 : 0);
}

}  // namespace

bool block_gemm_valid(const GemmPlan& plan, const BlockGemmProblem& q) {
    if (!valid_problem(q) || plan.tile < 0 || plan.tile >= kShapeCount || plan.cluster_log2 < 0 || plan.cluster_log2 > kMaxClusterLog2) return false;
    if (q.norm && plan.cluster_log2 > 0) return false;
    if (q.quads.used() && !kShapes[plan.tile].merge) return false;
    const Cut cut(plan, q);
    return int64_t{cut.cluster - 1} * cut.slice < q.k && cut.shared <= device().shared && cut.blocks <= INT32_MAX;
}

std::vector<GemmPlan> block_gemm_plans(const BlockGemmProblem& q, bool few_rows) {
    std::vector<GemmPlan> all;
    for (int tile = 0; tile < kShapeCount; ++tile)
        for (int cluster = 0; cluster <= kMaxClusterLog2; ++cluster) {
            GemmPlan plan{tile, cluster, 0};
            if (!block_gemm_valid(plan, q)) continue;
            const Cut cut(plan, q);
            if (few_rows && cut.blocks > int64_t{kMostBlocks} * device().multiprocessors) continue;
            plan.cost = cost(cut, plan, q);
            all.push_back(plan);
        }
    std::sort(all.begin(), all.end(), [](const GemmPlan& a, const GemmPlan& b) { return a.cost < b.cost; });
    return all;
}

namespace {

// The plans of a product, best tile for it and for `beside` first, of a tile the best plan first.
std::vector<GemmPlan> shared_plans(const BlockGemmProblem& own, const BlockGemmProblem& beside, bool few_rows, size_t most_tiles) {
    const std::vector<GemmPlan> plans = block_gemm_plans(own, few_rows), others = block_gemm_plans(beside, false);
    auto best = [](const std::vector<GemmPlan>& of, int tile) { return std::find_if(of.begin(), of.end(), [&](const GemmPlan& plan) { return plan.tile == tile; }); };
    std::vector<std::pair<float, int>> tiles;
    for (int tile = 0; tile < kShapeCount; ++tile) {
        const auto a = best(plans, tile), b = best(others, tile);
        constexpr float kUnshared = 1e9f;  // last
        if (a != plans.end()) tiles.emplace_back(a->cost + (b != others.end() ? b->cost : kUnshared), tile);
    }
    std::sort(tiles.begin(), tiles.end());
    tiles.resize(std::min(most_tiles, tiles.size()));
    std::vector<GemmPlan> shared;
    for (const auto& [sum, tile] : tiles) std::copy_if(plans.begin(), plans.end(), std::back_inserter(shared), [&, tile = tile](const GemmPlan& plan) { return plan.tile == tile; });
    return shared;
}

}  // namespace

std::vector<GemmPair> block_gemm_pairs(const GemmProducts& own, const GemmProducts& beside, bool few_rows) {
    constexpr size_t kTiles = 2;  // that the estimate may take one for the other
    const std::vector<GemmPlan> a = shared_plans(own.first, beside.first, few_rows, kTiles), b = shared_plans(own.second, beside.second, few_rows, kTiles);
    std::vector<GemmPair> pairs;
    for (const GemmPlan& i : a)
        for (const GemmPlan& j : b) pairs.push_back({i, j, i.cost + j.cost});
    return pairs;
}

GemmPair block_gemm_best_pair(const GemmProducts& own, const GemmProducts& beside) {
    // What the choice depends on. Blocks differ in this alone; what is beside them follows from it.
    struct Sizes {
        int64_t rows = 0;
        int k = 0, hidden = 0, n = 0;
        bool norm = false, activated = false;
        bool operator==(const Sizes& o) const { return rows == o.rows && k == o.k && hidden == o.hidden && n == o.n && norm == o.norm && activated == o.activated; }
    };
    struct Entry {
        int device = -1;
        Sizes sizes;
        GemmPair pair;
    };
    thread_local Entry entries[16];
    const int id = device().id;
    const Sizes sizes{own.first.rows, own.first.k, own.first.n, own.second.n, own.first.norm, own.first.activation != Activation::kNone};
    Entry& e = entries[static_cast<uint64_t>(sizes.rows * 31 + sizes.k * 7 + sizes.hidden) % 16];
    if (id < 0 || e.device != id || !(e.sizes == sizes)) {
        const std::vector<GemmPair> pairs = block_gemm_pairs(own, beside, false);
        e = {id, sizes, pairs.empty() ? GemmPair{} : pairs.front()};
    }
    return e.pair;
}

GemmPlan block_gemm_best(const BlockGemmProblem& q) {
    struct Entry {
        int device = -1, k = 0, n = 0;
        int64_t rows = 0;
        bool norm = false, activated = false, merges = false;
        GemmPlan plan;
    };
    thread_local Entry entries[16];
    const int id = device().id;
    const bool activated = q.activation != Activation::kNone;
    Entry& e = entries[static_cast<uint64_t>(q.rows * 31 + q.k * 7 + q.n) % 16];
    if (id < 0 || e.device != id || e.k != q.k || e.n != q.n || e.rows != q.rows || e.norm != q.norm || e.activated != activated || e.merges != q.quads.used()) {
        const std::vector<GemmPlan> plans = block_gemm_plans(q, false);
        e = {id, q.k, q.n, q.rows, q.norm, activated, q.quads.used(), plans.empty() ? GemmPlan{} : plans.front()};
    }
    return e.plan;
}

cudaError_t block_gemm(const BlockGemmProblem& q, const GemmPlan& plan, cudaStream_t stream) {
    if (!block_gemm_valid(plan, q)) return cudaErrorInvalidValue;
    const Cut cut(plan, q);
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    MergeGemmArgs p{};
    p.a = in(q.a), p.b = in(q.b), p.bias = in(q.bias), p.added = in(q.added), p.added2 = in(q.added2), p.out = static_cast<__half*>(q.out);
    p.a2 = in(q.a2), p.scale = in(q.scale), p.shift = in(q.shift), p.epsilon = q.epsilon;
    p.rows = q.rows, p.k = q.k, p.n = q.n, p.slice = cut.slice, p.cluster_log2 = plan.cluster_log2;
    p.by_columns = FastDiv(static_cast<uint32_t>(cut.columns));
    p.activation = q.activation;
    p.mapped = q.window.used();
    if (p.mapped) p.map = WindowMap(q.window);
    p.next = q.next, p.next_bytes = static_cast<uint32_t>(q.next_bytes);
    GemmLaunch how;
    how.norm = q.norm, how.blocks = static_cast<uint32_t>(cut.blocks), how.shared = cut.shared;
    p.once = one_wave(cut.blocks, 32 * cut.shape.warps, static_cast<size_t>(cut.shared));
    if (!q.quads.used()) return cut.shape.launch(p, how, stream);
    p.quads = QuadMap(q.quads.grid_h, q.quads.grid_w, q.quads.order, q.k / 4);
    return cut.shape.merge(p, how, stream);
}

}  // namespace trt_opt
