// Chooses between one kernel, ones of clusters for a few rows, two, and for many rows a norm with two wide products or a wide kernel of all, for an MLP block and how the one is cut up, and sums
// what its groups of blocks give. Without a norm there are two kernels, of few rows or wide, or the wide one.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels.h"
#include "launch.cuh"
#include "mlp_block_launch.cuh"
#include "mlp_chain.h"
#include "mlp_cluster.h"
#include "mlp_rows.h"
#include "wide_blocks.h"
#include "wide_mlp.h"

namespace trt_opt {

cudaError_t mlp_plain_f16(const MlpBlockProblem&, cudaStream_t);
cudaError_t mlp_plain_f32(const MlpBlockProblem&, cudaStream_t);

namespace {

constexpr int kReduceThreads = 128;
constexpr int64_t kMaxWorkspace = int64_t{8} << 20;
constexpr int kMaxGroups = 16;

// The estimate's constants, in nanoseconds, fitted to all tactics of six sizes on an H100 (plugins/NOTES.md): a launch; a
// block's start and end; a weight tile, and what each 32 rows above 32 add to it; an element of a row for a thread; the sums
// of a cluster; the second kernel; and the bytes of the second-level cache in one.
constexpr float kLaunch = 1970, kStart = 2960, kWeightTile = 370, kTallTile = 290, kNormalized = 69, kCluster = 2150, kReduce = 1600;
constexpr float kReducedBytes = 1700, kCacheBytes = 3000;

// y = s + b2 + the groups' sums, four columns a thread.
__global__ void __launch_bounds__(kReduceThreads) mlp_reduce_kernel(const MlpArgs p, uint32_t count, FastDiv by_row) {
    ptx::wait_for_previous();
    ptx::let_next_start();
    const uint32_t i = blockIdx.x * kReduceThreads + threadIdx.x;
    if (i >= count) return;
    uint32_t column;
    by_row.divmod(i, column);
    const auto* x = reinterpret_cast<const uint2*>(p.x) + i;
    Pack<__half, 4> s(*x);
    if (p.residual) add_packs<__half, 4>(s, Pack<__half, 4>(*(reinterpret_cast<const uint2*>(p.residual) + i)));
    float sum[4], b[4];
    s.floats(sum);
    Pack<__half, 4>(*(reinterpret_cast<const uint2*>(p.b2) + column)).floats(b);
    const auto* from = reinterpret_cast<const float4*>(p.partial) + i;
    float4 total{};
#pragma unroll 4
    for (int k = 0; k < p.groups; ++k) {
        const float4 v = from[int64_t{k} * count];
        total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
    }
    sum[0] += total.x + b[0], sum[1] += total.y + b[1], sum[2] += total.z + b[2], sum[3] += total.w + b[3];
    *(reinterpret_cast<uint2*>(p.y) + i) = Pack<__half, 4>::of(sum).raw;
}

cudaError_t launch_reduce(const MlpArgs& p, cudaStream_t stream) {
    const auto count = static_cast<uint32_t>(p.rows * p.channels / 4);
    return launch_ahead(mlp_reduce_kernel, (count + kReduceThreads - 1) / kReduceThreads, kReduceThreads, 0, stream, 1, p, count, FastDiv(static_cast<uint32_t>(p.channels / 4)));
}

struct Tile {
    int rows, columns, threads, consumers;
    int (*shared)(int channels, int slice, int chunks);
    MlpLauncher* launch;
};
template <int BM, int BN, int STAGES> constexpr Tile tile(MlpLauncher* launch) {
    using T = MlpTile<BM, BN, STAGES>;
    return {BM, BN, T::kThreads, T::kConsumers, T::shared_bytes, launch};
}
const Tile kTiles[] = {tile<32, 96, 3>(launch_mlp_32_96_3), tile<64, 96, 3>(launch_mlp_64_96_3), tile<128, 96, 3>(launch_mlp_128_96_3), tile<128, 128, 3>(launch_mlp_128_128_3)};
constexpr int kTileCount = sizeof(kTiles) / sizeof(kTiles[0]);

struct Plan {
    int tile = -1, cluster_log2 = 0, groups = 1;
    float cost = 0;  // an estimate, in nanoseconds

    static Plan of(int32_t id) { return {(id & 15) - 1, id >> 4 & 15, id >> 8, 0}; }
    int32_t id() const { return tile + 1 | cluster_log2 << 4 | groups << 8; }
    int split() const { return groups << cluster_log2; }
    int slice(int hidden) const { return ((hidden + split() - 1) / split() + 15) / 16 * 16; }
};

// Column tiles of the output that are summed at a time: as many as there is room for; 0: there is none.
int chunks_of(const Plan& plan, const MlpBlockProblem& q, const Device& d) {
    const Tile& t = kTiles[plan.tile];
    int chunks = (q.channels + t.columns - 1) / t.columns;
    while (chunks > 0 && t.shared(q.channels, plan.slice(q.hidden), chunks) > d.shared) --chunks;
    return chunks;
}

int64_t blocks_of(const Plan& plan, int64_t rows) { return (rows + kTiles[plan.tile].rows - 1) / kTiles[plan.tile].rows * plan.split(); }

// Whether the device can run the plan, as far as sizes tell.
bool sizes_fit(const Plan& plan, const MlpBlockProblem& q, const Device& d) {
    if (!q.norm || plan.tile < 0 || plan.tile >= kTileCount || plan.cluster_log2 < 0 || plan.cluster_log2 > 4 || plan.groups < 1 || plan.groups > kMaxGroups) return false;
    const Tile& t = kTiles[plan.tile];
    if (d.major < (plan.cluster_log2 > 0 ? 9 : 8)) return false;
    const int slice = plan.slice(q.hidden);
    if (int64_t{plan.split() - 1} * slice >= q.hidden) return false;  // a block without work
    if (plan.groups > 1 && plan.groups * q.rows * q.channels * 4 > kMaxWorkspace) return false;
    return t.rows >> plan.cluster_log2 >= 1 && chunks_of(plan, q, d) > 0 && blocks_of(plan, q.rows) <= INT32_MAX;
}

// Nanoseconds, roughly: the order of plans is what matters. Few blocks run at a time on a multiprocessor, so that latencies
// add up.
float cost(const Plan& plan, const MlpBlockProblem& q, const Device& d) {
    const Tile& t = kTiles[plan.tile];
    const int slice = plan.slice(q.hidden), cluster = 1 << plan.cluster_log2;
    auto parts = [](int v, int of) { return static_cast<float>((v + of - 1) / of); };
    const float tiles = parts(slice, t.columns) * parts(q.channels, 64) + parts(q.channels, t.columns) * parts(slice, 64);
    const float tall = static_cast<float>(std::max(0, t.rows - 32)) / 32;
    const float latency = kStart + (kWeightTile + kTallTile * tall) * tiles + (cluster > 1 ? kCluster : 0) +
                          kNormalized * static_cast<float>(t.rows) * static_cast<float>(q.channels) / static_cast<float>(t.consumers);

    // Clusters of 8 and 16 leave some multiprocessors of each part of the device idle.
    const int usable = std::max(1, d.multiprocessors * (cluster >= 8 ? 112 : cluster == 4 ? 124 : 132) / 132);
    const int together = std::max(1, std::min(d.shared / (t.shared(q.channels, slice, chunks_of(plan, q, d)) + 1024), 2048 / t.threads));
    const auto blocks = static_cast<float>(blocks_of(plan, q.rows));
    const float waves = std::ceil(blocks / static_cast<float>(usable * together));
    const float shared_by = std::min(static_cast<float>(together), std::ceil(blocks / static_cast<float>(usable)));
    float time = kLaunch + waves * latency * (1 + 0.4f * (shared_by - 1));
    const float bytes = 4 * static_cast<float>(slice) * static_cast<float>(q.channels) + 2 * static_cast<float>(t.rows) * static_cast<float>(q.channels);
    time = std::max(time, kLaunch + blocks * bytes / kCacheBytes);
    if (plan.groups > 1) time += kReduce + static_cast<float>(plan.groups * q.rows * q.channels) * 8 / kReducedBytes;
    return time;
}

MlpArgs arguments(const Plan& plan, const MlpBlockProblem& q, void* workspace) {
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    const int chunks = chunks_of(plan, q, device());
    int lanes_log2 = 0;
    while (lanes_log2 < 5 && 8 << lanes_log2 < q.channels) ++lanes_log2;
    MlpArgs p{in(q.x), in(q.residual), in(q.scale), in(q.bias), in(q.w1), in(q.b1), in(q.w2), in(q.b2), static_cast<__half*>(q.y),
              static_cast<float*>(workspace), q.rows, q.channels, q.hidden, plan.slice(q.hidden), plan.cluster_log2, plan.groups, chunks,
              lanes_log2, FastDiv(static_cast<uint32_t>(chunks * kTiles[plan.tile].columns / 4)), q.epsilon, false};
    p.prefetch = blocks_of(plan, q.rows) <= 4 * device().multiprocessors;
    return p;
}

// Clusters of more than 8 are not for every device.
bool runs(const Plan& plan, const MlpBlockProblem& q) {
    if (plan.cluster_log2 <= 3) return true;
    MlpLaunch how;
    how.probe = true, how.tanh_gelu = q.tanh_gelu;
    return kTiles[plan.tile].launch(arguments(plan, q, nullptr), how, nullptr) == cudaSuccess;
}

// The plans that fit, cheapest first by the estimate.
std::vector<Plan> plans(const MlpBlockProblem& q) {
    const Device& d = device();
    std::vector<Plan> all;
    for (int tile = 0; tile < kTileCount; ++tile) {
        if (tile > 0 && kTiles[tile].rows >= 2 * std::max<int64_t>(q.rows, 16)) continue;
        for (int cluster = 0; cluster <= 4; ++cluster)
            for (int groups : {1, 2, 3, 4, 6, 8, 12, 16}) {
                Plan plan{tile, cluster, groups, 0};
                if (!sizes_fit(plan, q, d)) continue;
                plan.cost = cost(plan, q, d);
                all.push_back(plan);
            }
    }
    std::sort(all.begin(), all.end(), [](const Plan& a, const Plan& b) { return a.cost < b.cost; });
    return all;
}

bool tiled(const MlpBlockProblem& q) { return q.dtype == DType::kHalf && q.channels % 8 == 0 && q.hidden % 8 == 0; }

bool valid(const MlpBlockProblem& q) {
    return q.rows >= 0 && q.channels > 0 && q.channels <= kMlpMaxChannels && q.hidden > 0 && q.hidden <= kMlpMaxHidden;
}

// The tactics that are worth timing, of one kernel and of two, cheapest first by the estimates. Those of clusters that share out a few rows, those of
// wide products and the wide kernel are before all others or behind them, as the best of them would be: their estimates are not fitted to anything yet.
std::vector<int32_t> candidates(const MlpBlockProblem& q, size_t most) {
    const std::vector<Plan> one = plans(q);
    const std::vector<GemmPair> two = mlp_chain_plans(q);
    const std::vector<MlpClusterPlan> clusters = mlp_cluster_plans(q);
    const std::vector<MlpRowsPlan> rows = mlp_rows_plans(q);
    float others = std::numeric_limits<float>::infinity();
    if (!one.empty()) others = one.front().cost;
    if (!two.empty()) others = std::min(others, two.front().cost);
    const std::vector<WidePair> wide = mlp_wide_pairs(q);
    std::vector<int32_t> tactics, last;
    auto add = [&](const auto& plans, bool first) {
        if (plans.empty() || (plans.front().cost <= others) != first) return;
        for (const auto& plan : plans)
            if (tactics.size() + last.size() < most) (first ? tactics : last).push_back(plan.id());
    };
    const std::vector<WideMlpPlan> kernel = wide_mlp_plans(q);
    const bool before = !kernel.empty() && (wide.empty() || kernel.front().cost <= wide.front().cost);
    for (bool first : {true, false}) {
        add(rows, first);
        add(clusters, first);
        if (before) add(kernel, first);
        add(wide, first);
        if (!before) add(kernel, first);
    }
    const bool others_first = tactics.empty() && others < std::numeric_limits<float>::infinity();
    if (others_first && last.size() == most) last.pop_back();
    const size_t room = most - last.size();
    size_t i = 0, j = 0;
    while (tactics.size() < room && (i < one.size() || j < two.size())) {
        if (i == one.size() || (j < two.size() && two[j].cost <= one[i].cost)) tactics.push_back(two[j++].id());
        else if (const Plan& plan = one[i++]; runs(plan, q)) tactics.push_back(plan.id());
    }
    tactics.insert(tactics.end(), last.begin(), last.end());
    return tactics;
}

// The best tactic by the estimates, remembered for the sizes that this thread met last. 0: none fits.
int32_t best_tactic(const MlpBlockProblem& q) {
    struct Entry {
        int device = -1, channels = 0, hidden = 0;
        int64_t rows = 0;
        bool norm = true;
        int32_t tactic = 0;
    };
    thread_local Entry entries[16];
    const int id = device().id;
    Entry& e = entries[static_cast<uint64_t>(q.rows * 31 + q.channels * 7 + q.hidden) % 16];
    if (e.device == id && e.channels == q.channels && e.hidden == q.hidden && e.rows == q.rows && e.norm == q.norm) return e.tactic;
    const std::vector<int32_t> best = candidates(q, 1);
    e.device = id, e.channels = q.channels, e.hidden = q.hidden, e.rows = q.rows, e.norm = q.norm, e.tactic = best.empty() ? 0 : best.front();
    return e.tactic;
}

}  // namespace

cudaError_t mlp_block(const MlpBlockProblem& q, void* workspace, cudaStream_t stream, int32_t tactic) {
    if (!valid(q) || (!q.norm && q.residual)) return cudaErrorInvalidValue;
    if (q.rows == 0) return cudaSuccess;
    if (q.dtype == DType::kFloat) return mlp_plain_f32(q, stream);
    if (!tiled(q) || !aligned_to(16, q.x, q.residual, q.scale, q.bias, q.w1, q.b1, q.w2, q.b2, q.y)) return mlp_plain_f16(q, stream);

    if (!mlp_block_tactic_valid(q, tactic)) tactic = best_tactic(q);
    if (tactic == 0) return mlp_plain_f16(q, stream);
    if (GemmPair::is_id(tactic)) return workspace && aligned_to(16, workspace) ? mlp_chain(q, GemmPair::of(tactic), workspace, stream) : cudaErrorInvalidValue;
    if (MlpRowsPlan::is_id(tactic)) return mlp_rows(q, stream);
    if (MlpClusterPlan::is_id(tactic)) return mlp_cluster(q, MlpClusterPlan::of(tactic), stream);
    if (WideMlpPlan::is_id(tactic)) return wide_mlp(q, WideMlpPlan::of(tactic), stream);
    if (WidePair::is_id(tactic)) return workspace && aligned_to(16, workspace) ? mlp_wide(q, WidePair::of(tactic), workspace, stream) : cudaErrorInvalidValue;
    const Plan plan = Plan::of(tactic);
    if (plan.groups > 1 && (!workspace || !aligned_to(16, workspace))) return cudaErrorInvalidValue;

    const MlpArgs p = arguments(plan, q, workspace);
    MlpLaunch how;
    how.blocks = static_cast<uint32_t>(blocks_of(plan, q.rows));
    how.tanh_gelu = q.tanh_gelu;
    const cudaError_t status = kTiles[plan.tile].launch(p, how, stream);
    return status == cudaSuccess && plan.groups > 1 ? launch_reduce(p, stream) : status;
}

size_t mlp_block_workspace(const MlpBlockProblem& q) {
    if (!valid(q) || !tiled(q)) return 0;
    const size_t products = std::max(mlp_chain_workspace(q), mlp_wide_workspace(q));
    return q.norm ? std::max(static_cast<size_t>(std::min(kMaxWorkspace, kMaxGroups * q.rows * q.channels * 4)), products) : products;
}

std::vector<int32_t> mlp_block_tactics(const MlpBlockProblem& q) {
    constexpr size_t kWorthTiming = 32;
    if (!valid(q) || !tiled(q) || q.rows <= 0) return {};
    std::vector<int32_t> tactics = candidates(q, kWorthTiming);
    // Among kernels of other layers the one kernel takes half as long again as behind itself, which is how tactics are timed.
    if (std::any_of(tactics.begin(), tactics.end(), GemmPair::is_id))
        tactics.erase(std::remove_if(tactics.begin(), tactics.end(), [](int32_t id) { return !MlpRowsPlan::is_id(id) && !MlpClusterPlan::is_id(id) && !GemmPair::is_id(id) && !WidePair::is_id(id) && !WideMlpPlan::is_id(id); }), tactics.end());
    return tactics;
}

bool mlp_block_tactic_valid(const MlpBlockProblem& q, int32_t tactic) {
    if (GemmPair::is_id(tactic)) return valid(q) && tiled(q) && q.rows > 0 && mlp_chain_valid(GemmPair::of(tactic), q);
    if (WideMlpPlan::is_id(tactic)) return valid(q) && tiled(q) && wide_mlp_valid(WideMlpPlan::of(tactic), q);
    if (WidePair::is_id(tactic)) return valid(q) && tiled(q) && mlp_wide_valid(WidePair::of(tactic), q);
    if (MlpRowsPlan::is_id(tactic)) return tactic == MlpRowsPlan{}.id() && valid(q) && tiled(q) && mlp_rows_valid(q);
    if (MlpClusterPlan::is_id(tactic)) return valid(q) && tiled(q) && mlp_cluster_valid(MlpClusterPlan::of(tactic), q);
    return tactic > 0 && valid(q) && tiled(q) && sizes_fit(Plan::of(tactic), q, device()) && runs(Plan::of(tactic), q);
}

}  // namespace trt_opt
