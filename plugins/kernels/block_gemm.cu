// Chooses how a product of a block is cut up.
#include "block_gemm.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "block_gemm_tiles.h"
#include "launch.cuh"

namespace trt_opt {
namespace {

struct Shape {
    int rows, columns, warps, warps_k, warp_rows, stages;
    int (*shared)(bool norm, int k, int slots, int cluster);
    GemmLauncher* launch;
};
template <class Tile> constexpr Shape shape(GemmLauncher* launch) {
    return {Tile::kRows, Tile::kColumns, Tile::kWarps, Tile::kWarpsK, 16 * Tile::kM, Tile::kStages, Tile::shared_bytes, launch};
}
const Shape kShapes[] = {shape<GemmTile16x64>(launch_gemm_16x64),     shape<GemmTile32x32>(launch_gemm_32x32),   shape<GemmTile32x64>(launch_gemm_32x64),   shape<GemmTile32x96>(launch_gemm_32x96),
                         shape<GemmTile32x128>(launch_gemm_32x128),   shape<GemmTile64x32>(launch_gemm_64x32),   shape<GemmTile64x64>(launch_gemm_64x64),   shape<GemmTile64x96>(launch_gemm_64x96),
                         shape<GemmTile64x128>(launch_gemm_64x128),   shape<GemmTile128x96>(launch_gemm_128x96), shape<GemmTile128x128>(launch_gemm_128x128)};
constexpr int kShapeCount = sizeof(kShapes) / sizeof(kShapes[0]);
constexpr int kDepth = 64, kAllColumns = 7;

int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }

// A plan in numbers.
struct Cut {
    const Shape& shape;
    int cluster, column_tiles, sequence, slice, chunks, slots, shared;
    int64_t row_tiles, groups, blocks;

    Cut(const GemmPlan& plan, const BlockGemmProblem& q) : shape(kShapes[plan.tile]), cluster(1 << plan.cluster_log2) {
        column_tiles = static_cast<int>(parts(q.n, shape.columns));
        sequence = plan.sequence_log2 == kAllColumns ? column_tiles : std::min(1 << plan.sequence_log2, column_tiles);
        slice = cluster == 1 ? q.k : static_cast<int>(parts(parts(q.k, cluster), kDepth) * kDepth);
        chunks = static_cast<int>(parts(slice, kDepth));
        slots = std::min(shape.stages, chunks * sequence);
        shared = shape.shared(q.norm, q.k, slots, cluster);
        row_tiles = parts(q.rows, shape.rows), groups = parts(column_tiles, sequence), blocks = row_tiles * groups * cluster;
    }
};

bool valid_problem(const BlockGemmProblem& q) {
    return q.rows > 0 && q.k > 0 && q.n > 0 && q.k % 8 == 0 && q.n % 8 == 0 && int64_t{q.k} * q.n <= INT32_MAX && (!q.window.used() || q.rows <= INT32_MAX) &&
           (!q.norm || (q.k <= kBlockGemmMaxNorm && !q.added)) && device().major >= 8;
}

// Nanoseconds, roughly: the order of plans is what matters.
float cost(const Cut& cut, const BlockGemmProblem& q) {
    const Shape& s = cut.shape;
    const float sm = static_cast<float>(device().multiprocessors);
    const float chunk = 40.f + 0.5f * static_cast<float>(s.rows * s.columns) / static_cast<float>(s.warps * s.warps_k) * 0.25f;
    const float norm = q.norm ? static_cast<float>(s.rows * q.k) * 0.025f : 0.f;
    const float end = static_cast<float>(s.rows * s.columns / cut.cluster) * (q.activation == Activation::kNone ? 0.02f : 0.1f) + (cut.cluster > 1 ? 600.f : s.warps_k > 1 ? 150.f : 0.f);
    const float block = 900.f + norm + static_cast<float>(cut.sequence) * (static_cast<float>(cut.chunks) * chunk + end);
    const int together = std::max(1, std::min({device().shared / (cut.shared + 1024), 2048 / (32 * s.warps), 2}));
    const auto blocks = static_cast<float>(cut.blocks);
    const float waves = std::ceil(blocks / (sm * static_cast<float>(together)));
    const float shared_by = std::min(static_cast<float>(together), std::ceil(blocks / sm));
    return 1200.f + waves * block * (1 + 0.4f * (shared_by - 1));
}

}  // namespace

bool block_gemm_valid(const GemmPlan& plan, const BlockGemmProblem& q) {
    if (!valid_problem(q) || plan.tile < 0 || plan.tile >= kShapeCount || plan.cluster_log2 < 0 || plan.cluster_log2 > 3 || plan.sequence_log2 < 0) return false;
    if (plan.sequence_log2 != kAllColumns && plan.sequence_log2 > 2) return false;
    const Cut cut(plan, q);
    if (plan.sequence_log2 > 0 && (plan.sequence_log2 == kAllColumns ? cut.column_tiles == 1 : cut.column_tiles <= 1 << plan.sequence_log2)) return false;  // a name for another plan
    if (cut.cluster > 1 && (q.norm || plan.sequence_log2 > 0 || device().major < 9 || int64_t{cut.cluster - 1} * cut.slice >= q.k)) return false;
    return cut.shared <= device().shared && cut.blocks <= INT32_MAX;
}

std::vector<GemmPlan> block_gemm_plans(const BlockGemmProblem& q) {
    std::vector<GemmPlan> all;
    for (int tile = 0; tile < kShapeCount; ++tile)
        for (int cluster = 0; cluster <= 3; ++cluster)
            for (int sequence : {0, 1, 2, kAllColumns}) {
                GemmPlan plan{tile, cluster, sequence, 0};
                if (!block_gemm_valid(plan, q)) continue;
                plan.cost = cost(Cut(plan, q), q);
                all.push_back(plan);
            }
    std::sort(all.begin(), all.end(), [](const GemmPlan& a, const GemmPlan& b) { return a.cost < b.cost; });
    return all;
}

cudaError_t block_gemm(const BlockGemmProblem& q, const GemmPlan& plan, cudaStream_t stream) {
    if (!block_gemm_valid(plan, q)) return cudaErrorInvalidValue;
    const Cut cut(plan, q);
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    BlockGemmArgs p{};
    p.a = in(q.a), p.b = in(q.b), p.bias = in(q.bias), p.added = in(q.added), p.added2 = in(q.added2), p.out = static_cast<__half*>(q.out);
    p.rows = q.rows, p.k = q.k, p.n = q.n;
    p.slice = cut.slice, p.cluster_log2 = plan.cluster_log2, p.sequence = cut.sequence, p.slots = cut.slots;
    p.by_groups = FastDiv(static_cast<uint32_t>(cut.groups));
    p.activation = q.activation;
    static const bool late = getenv("LATE");
    p.early = !late;
    p.mapped = q.window.used();
    if (p.mapped) p.map = WindowMap(q.window);
    p.prefetch = cut.blocks <= int64_t{4} * device().multiprocessors;
    p.next = static_cast<const unsigned char*>(q.next), p.next_lines = static_cast<uint32_t>(q.next_bytes / 128);
    if (q.norm) {
        int lanes_log2 = 0;
        while (kNormPacks * 8 << lanes_log2 < q.k) ++lanes_log2;
        while (lanes_log2 < 5 && (32 >> lanes_log2) * cut.shape.warps > cut.shape.rows) ++lanes_log2;
        p.norm = {in(q.scale), in(q.shift), in(q.a2), q.epsilon, lanes_log2};
    }
    GemmLaunch how;
    how.norm = q.norm, how.blocks = static_cast<uint32_t>(cut.blocks), how.shared = cut.shared;
    return cut.shape.launch(p, how, stream);
}

}  // namespace trt_opt
