// A patch merge and the product behind it: as one kernel, a product that gathers and normalizes its rows itself, or as two, each
// launched ahead of the end of the kernel before it.
#include <algorithm>

#include "block_gemm.h"
#include "gemm_plain.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "quad_map.cuh"

namespace trt_opt {
namespace {

// More images than have this many bytes between two kernels are taken in pieces, so that these stay in the second-level cache.
constexpr int64_t kMaxWorkspace = int64_t{32} << 20;

static_assert(kMergeMaxTokens <= QuadMap::kMostTokens);

bool valid(const PatchMergeBlockProblem& q) {
    const PatchMergeProblem& m = q.merge;
    if (m.images < 0 || m.grid_h <= 0 || m.grid_w <= 0 || int64_t{m.grid_h} * m.grid_w > kMergeMaxTokens) return false;
    if (m.channels <= 0 || m.channels > kMlpMaxHidden / 4 || q.columns <= 0 || q.columns > kMlpMaxChannels) return false;
    if (m.images > INT64_MAX / 64 / kMlpMaxHidden / (int64_t{m.grid_h} * m.grid_w)) return false;
    return std::all_of(m.order, m.order + 4, [](int quadrant) { return quadrant >= 0 && quadrant <= 3; });
}

int64_t tokens(const PatchMergeBlockProblem& q) { return int64_t{q.merge.grid_h} * q.merge.grid_w; }
int64_t merged(const PatchMergeBlockProblem& q) { return int64_t{(q.merge.grid_h + 1) / 2} * ((q.merge.grid_w + 1) / 2); }
int32_t width(const PatchMergeBlockProblem& q) { return 4 * static_cast<int32_t>(q.merge.channels); }
int64_t element(const PatchMergeBlockProblem& q) { return q.merge.dtype == DType::kHalf ? 2 : 4; }
int64_t image_bytes(const PatchMergeBlockProblem& q) { return merged(q) * width(q) * element(q); }

// Images of a launch of the one kernel, and of the two.
int64_t images_of_one(const PatchMergeBlockProblem& q) { return std::min(q.merge.images, kMergeMaxTokens / tokens(q)); }
int64_t images_of_two(const PatchMergeBlockProblem& q) { return std::min(images_of_one(q), std::max<int64_t>(1, kMaxWorkspace / image_bytes(q))); }

bool aligned(const PatchMergeBlockProblem& q) { return aligned_to(16, q.merge.x, q.merge.residual, q.merge.scale, q.merge.bias, q.w, q.b, q.y); }

// The product alone, of rows that are normalized already.
BlockGemmProblem product(const PatchMergeBlockProblem& q, int64_t images) {
    BlockGemmProblem g;
    g.rows = images * merged(q), g.k = width(q), g.n = q.columns;
    g.b = q.w, g.bias = q.b, g.out = q.y;
    return g;
}
BlockGemmProblem whole(const PatchMergeBlockProblem& q, int64_t images) {
    const PatchMergeProblem& m = q.merge;
    BlockGemmProblem g = product(q, images);
    g.norm = true, g.a = m.x, g.a2 = m.residual, g.scale = m.scale, g.shift = m.bias, g.epsilon = m.epsilon;
    g.quads.grid_h = m.grid_h, g.quads.grid_w = m.grid_w;
    std::copy(m.order, m.order + 4, g.quads.order);
    return g;
}

// How a problem is solved on the tensor cores.
struct Plan {
    GemmPlan gemm;
    bool one = false;  // kernel
    float cost = 0;    // an estimate, in nanoseconds

    static constexpr int32_t kOne = 1 << GemmPlan::kBits;
    static Plan of(int32_t id) { return {GemmPlan::of(id & (kOne - 1)), (id & kOne) != 0, 0}; }
    int32_t id() const { return gemm.id() | (one ? kOne : 0); }
};

// Of the estimate, in nanoseconds: what a patch merge adds to a product that is launched ahead of its end, and 1000 elements of it for
// a multiprocessor. From its times behind itself (plugins/NOTES.md), not fitted.
constexpr float kMerge = 1700, kMergeElements = 350;

Plan plan_of_one(const PatchMergeBlockProblem& q, const GemmPlan& gemm) {
    const auto launches = static_cast<float>((q.merge.images + images_of_one(q) - 1) / images_of_one(q));
    return {gemm, true, launches * gemm.cost};
}
Plan plan_of_two(const PatchMergeBlockProblem& q, const GemmPlan& gemm) {
    const int64_t images = images_of_two(q);
    const auto pieces = static_cast<float>((q.merge.images + images - 1) / images);
    const float elements = static_cast<float>(images * merged(q)) * static_cast<float>(width(q)) / static_cast<float>(device().multiprocessors);
    return {gemm, false, pieces * (kMerge + kMergeElements * elements / 1000 + gemm.cost)};
}

bool tiled(const PatchMergeBlockProblem& q) { return q.merge.dtype == DType::kHalf; }

bool plan_valid(const Plan& plan, const PatchMergeBlockProblem& q) {
    return block_gemm_valid(plan.gemm, plan.one ? whole(q, images_of_one(q)) : product(q, images_of_two(q)));
}

// The best guess; gemm.tile < 0: none fits.
Plan best_plan(const PatchMergeBlockProblem& q) {
    if (!tiled(q)) return {};
    const GemmPlan one = block_gemm_best(whole(q, images_of_one(q))), two = block_gemm_best(product(q, images_of_two(q)));
    if (one.tile < 0) return two.tile < 0 ? Plan{} : plan_of_two(q, two);
    const Plan a = plan_of_one(q, one);
    if (two.tile < 0) return a;
    const Plan b = plan_of_two(q, two);
    return a.cost <= b.cost ? a : b;
}

// The images [from, from + count).
PatchMergeBlockProblem some(const PatchMergeBlockProblem& q, int64_t from, int64_t count) {
    PatchMergeBlockProblem part = q;
    auto on = [&](const void* p, int64_t elements) { return p ? static_cast<const unsigned char*>(p) + elements * element(q) : nullptr; };
    const int64_t read = from * tokens(q) * q.merge.channels;
    part.merge.images = count, part.merge.x = on(q.merge.x, read), part.merge.residual = on(q.merge.residual, read);
    part.y = static_cast<unsigned char*>(q.y) + from * merged(q) * q.columns * element(q);
    return part;
}

// `plan`: null where there are no tensor cores for it.
template <class T> cudaError_t in_two(const PatchMergeBlockProblem& q, const GemmPlan* plan, cudaStream_t stream) {
    if (!q.workspace || !aligned_to(16, q.workspace)) return cudaErrorInvalidValue;
    PatchMergeProblem merge = q.merge;
    merge.y = q.workspace;
    if (const cudaError_t status = patch_merge(merge, stream); status != cudaSuccess) return status;
    if (plan) {
        BlockGemmProblem g = product(q, merge.images);
        g.a = q.workspace;
        return block_gemm(g, *plan, stream);
    }
    const GemmPlainArgs<T> plain{static_cast<const T*>(q.workspace), static_cast<const T*>(q.w), merge.images * merged(q), width(q), q.columns};
    return gemm_plain<T>(plain, GemmPlainOut<T>{static_cast<const T*>(q.b), static_cast<T*>(q.y), q.columns}, stream);
}

}  // namespace

cudaError_t patch_merge_block(const PatchMergeBlockProblem& q, cudaStream_t stream, int32_t tactic) {
    if (!valid(q)) return cudaErrorInvalidValue;
    if (q.merge.images == 0) return cudaSuccess;
    const Plan plan = !aligned(q) ? Plan{} : patch_merge_block_tactic_valid(q, tactic) ? Plan::of(tactic) : best_plan(q);
    const int64_t step = plan.one ? images_of_one(q) : images_of_two(q);
    for (int64_t from = 0; from < q.merge.images; from += step) {
        const PatchMergeBlockProblem part = some(q, from, std::min(step, q.merge.images - from));
        const GemmPlan* const gemm = plan.gemm.tile >= 0 ? &plan.gemm : nullptr;
        const cudaError_t status = plan.one                           ? block_gemm(whole(part, part.merge.images), *gemm, stream)
                                   : part.merge.dtype == DType::kHalf ? in_two<__half>(part, gemm, stream)
                                                                      : in_two<float>(part, nullptr, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

std::vector<int32_t> patch_merge_block_tactics(const PatchMergeBlockProblem& q) {
    constexpr size_t kWorthTiming = 6;  // of either form
    if (!valid(q) || q.merge.images == 0 || !tiled(q)) return {};
    std::vector<Plan> plans;
    auto take = [&](const std::vector<GemmPlan>& best, auto plan_of) {
        for (size_t i = 0; i < std::min(kWorthTiming, best.size()); ++i) plans.push_back(plan_of(q, best[i]));
    };
    take(block_gemm_plans(whole(q, images_of_one(q))), plan_of_one), take(block_gemm_plans(product(q, images_of_two(q))), plan_of_two);
    std::sort(plans.begin(), plans.end(), [](const Plan& a, const Plan& b) { return a.cost < b.cost; });
    std::vector<int32_t> tactics;
    for (const Plan& plan : plans) tactics.push_back(plan.id());
    return tactics;
}

bool patch_merge_block_tactic_valid(const PatchMergeBlockProblem& q, int32_t tactic) {
    return tactic > 0 && valid(q) && q.merge.images > 0 && tiled(q) && Plan::of(tactic).id() == tactic && plan_valid(Plan::of(tactic), q);
}

// What the device and the pointers say is not looked at, so room is kept for the two kernels in any case.
int64_t patch_merge_block_workspace(const PatchMergeBlockProblem& q) { return valid(q) ? images_of_two(q) * image_bytes(q) : 0; }

}  // namespace trt_opt
