// Chooses how a product of a block is cut up.
#include "block_gemm.h"

#include <algorithm>
#include <cmath>

#include "block_gemm_tiles.h"
#include "launch.cuh"

namespace trt_opt {
namespace {

struct Shape {
    int rows, columns, warps, warps_k;
    int (*shared)(bool norm, int k, int slice, int cluster);
    GemmLauncher* launch;
};
template <class Tile> constexpr Shape shape(GemmLauncher* launch) { return {Tile::kRows, Tile::kColumns, Tile::kWarps, Tile::kWarpsK, Tile::shared_bytes, launch}; }
const Shape kShapes[] = {shape<GemmTile16x64>(launch_gemm_16x64),   shape<GemmTile32x32>(launch_gemm_32x32), shape<GemmTile32x64>(launch_gemm_32x64),       shape<GemmTile32x96>(launch_gemm_32x96),
                         shape<GemmTile32x128>(launch_gemm_32x128), shape<GemmTile64x32>(launch_gemm_64x32), shape<GemmTile64x64>(launch_gemm_64x64),       shape<GemmTile64x64w16>(launch_gemm_64x64w16),
                         shape<GemmTile64x96>(launch_gemm_64x96),   shape<GemmTile64x128>(launch_gemm_64x128), shape<GemmTile128x64>(launch_gemm_128x64), shape<GemmTile128x128>(launch_gemm_128x128)};
constexpr int kShapeCount = sizeof(kShapes) / sizeof(kShapes[0]);
constexpr int kMaxClusterLog2 = 3;  // clusters of more are not for every device
static_assert(kBlockGemmMaxNorm == kGemmMaxNorm);

int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }

// A plan in numbers.
struct Cut {
    const Shape& shape;
    int cluster, slice, shared;
    int64_t columns, blocks;  // tiles

    Cut(const GemmPlan& plan, const BlockGemmProblem& q) : shape(kShapes[plan.tile]), cluster(1 << plan.cluster_log2) {
        slice = cluster == 1 ? q.k : static_cast<int>(parts(parts(q.k, cluster), 16) * 16);
        shared = shape.shared(q.norm, q.k, slice, cluster);
        columns = parts(q.n, shape.columns), blocks = parts(q.rows, shape.rows) * columns * cluster;
    }
};

bool valid_problem(const BlockGemmProblem& q) {
    return q.rows > 0 && q.rows < INT32_MAX && q.k > 0 && q.n > 0 && q.k % 8 == 0 && q.n % 8 == 0 && int64_t{q.k} * q.n <= INT32_MAX && (!q.norm || (q.k <= kBlockGemmMaxNorm && !q.added)) &&
           device().major >= 9;
}

// Nanoseconds, roughly: the order of plans is what matters.
float cost(const Cut& cut, const BlockGemmProblem& q) {
    const Shape& s = cut.shape;
    const float sm = static_cast<float>(device().multiprocessors);
    const float steps = static_cast<float>(cut.slice) / 16.f / static_cast<float>(s.warps_k) * (15.f + static_cast<float>(s.rows * s.columns) / static_cast<float>(512 * s.warps / s.warps_k) * 5.f);
    const float norm = q.norm ? static_cast<float>(s.rows * q.k) / static_cast<float>(s.warps) * 0.15f : static_cast<float>(s.rows * cut.slice) * 0.01f;
    const float end = static_cast<float>(s.rows * s.columns / cut.cluster / s.warps) * (q.activation == Activation::kNone ? 0.1f : 0.6f) + (cut.cluster > 1 ? 800.f : s.warps_k > 1 ? 200.f : 0.f);
    const int together = std::max(1, std::min(device().shared / (cut.shared + 1024), s.warps <= 8 ? 2 : 1));
    const auto blocks = static_cast<float>(cut.blocks);
    const float waves = std::ceil(blocks / (sm * static_cast<float>(together)));
    const float shared_by = std::min(static_cast<float>(together), std::ceil(blocks / sm));
    return 1200.f + waves * (500.f + norm + steps + end) * (1 + 0.4f * (shared_by - 1));
}

}  // namespace

bool block_gemm_valid(const GemmPlan& plan, const BlockGemmProblem& q) {
    if (!valid_problem(q) || plan.tile < 0 || plan.tile >= kShapeCount || plan.cluster_log2 < 0 || plan.cluster_log2 > kMaxClusterLog2) return false;
    const Cut cut(plan, q);
    return int64_t{cut.cluster - 1} * cut.slice < q.k && cut.shared <= device().shared && cut.blocks <= INT32_MAX;
}

std::vector<GemmPlan> block_gemm_plans(const BlockGemmProblem& q) {
    std::vector<GemmPlan> all;
    for (int tile = 0; tile < kShapeCount; ++tile)
        for (int cluster = 0; cluster <= kMaxClusterLog2; ++cluster) {
            GemmPlan plan{tile, cluster, 0};
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
    p.a2 = in(q.a2), p.scale = in(q.scale), p.shift = in(q.shift), p.epsilon = q.epsilon;
    p.rows = q.rows, p.k = q.k, p.n = q.n, p.slice = cut.slice, p.cluster_log2 = plan.cluster_log2;
    p.by_columns = FastDiv(static_cast<uint32_t>(cut.columns));
    p.activation = q.activation;
    p.mapped = q.window.used();
    if (p.mapped) p.map = WindowMap(q.window);
    p.next = static_cast<const unsigned char*>(q.next), p.next_lines = static_cast<uint32_t>(q.next_bytes / 128);
    // The fewest lanes whose packs cover a row, but every warp has rows.
    while (kGemmNormPacks * 8 << p.lanes_log2 < q.k) ++p.lanes_log2;
    while (p.lanes_log2 < 5 && (32 >> p.lanes_log2) * cut.shape.warps > cut.shape.rows) ++p.lanes_log2;
    GemmLaunch how;
    how.norm = q.norm, how.blocks = static_cast<uint32_t>(cut.blocks), how.shared = cut.shared;
    return cut.shape.launch(p, how, stream);
}

}  // namespace trt_opt
