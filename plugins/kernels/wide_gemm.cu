// Chooses the tile of a wide product and launches it. TRT_OPT_SM90A: this file is compiled for sm_90a.
#include "wide_gemm.h"

#include <algorithm>

#include "launch.cuh"
#include "tensor_map.h"
#include "wide_gemm.cuh"

namespace trt_opt {
namespace {

// A matrix [rows, columns] in boxes of `box_rows` rows and 64 columns; what is outside reads as zeros.
bool encode(CUtensorMap& map, const void* matrix, int64_t rows, int columns, int box_rows) {
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)}, strides[1] = {static_cast<cuuint64_t>(columns) * 2};
    const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
    return encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, const_cast<void*>(matrix), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class Tile> cudaError_t launch(const WideArgs& p, uint32_t blocks, cudaStream_t stream) {
    const auto kernel = p.added ? wide_gemm_kernel<Tile, true> : wide_gemm_kernel<Tile, false>;
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return cudaGetLastError(), status;
    return launch_ahead(kernel, blocks, kWideThreads, Tile::kShared, stream, 1, p);
}

struct Shape {
    int columns, shared, together;
    cudaError_t (*launch)(const WideArgs&, uint32_t, cudaStream_t);
};
template <class Tile> constexpr Shape shape() { return {Tile::kColumns, Tile::kShared, Tile::kBlocks, launch<Tile>}; }
const Shape kShapes[] = {shape<WideTile<96, 3, 2>>(), shape<WideTile<128, 3, 2>>(), shape<WideTile<192, 4, 1>>()};
constexpr int kShapeCount = sizeof(kShapes) / sizeof(kShapes[0]);
constexpr int64_t kManyRows = 1500;

int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }
int64_t blocks_of(const Shape& s, const BlockGemmProblem& q) { return parts(q.rows, kWideRows) * parts(q.n, s.columns); }

// Nanoseconds, roughly: a launch; a stage's bytes, which the second-level cache gives a multiprocessor; the end of a tile, by elements, which a second block
// of a multiprocessor hides; and what memory takes for all.
constexpr float kLaunch = 3000, kStageBytes = 70.f, kEnd = 0.035f, kGeluEnd = 0.07f, kMemoryBytes = 2600;

float cost(const Shape& s, const BlockGemmProblem& q) {
    const float stage = static_cast<float>(2 * kWideDepth * (kWideRows + s.columns)) / kStageBytes;
    const float loop = stage * static_cast<float>(parts(q.k, kWideDepth));
    const float end = static_cast<float>(kWideRows * s.columns) * (q.activation == Activation::kNone ? kEnd : kGeluEnd);
    const int64_t at_once = int64_t{device().multiprocessors} * s.together;
    const float block = s.together > 1 ? static_cast<float>(s.together) * std::max(loop, end) : loop + end;
    const float bytes = 2.f * static_cast<float>(q.rows) * static_cast<float>(q.k + q.n * (q.added ? 2 : 1));
    return kLaunch + std::max(static_cast<float>(parts(blocks_of(s, q), at_once)) * block, bytes / kMemoryBytes);
}

}  // namespace

bool wide_gemm_valid(const WidePlan& plan, const BlockGemmProblem& q) {
#ifdef TRT_OPT_SM90A
    if (plan.tile < 0 || plan.tile >= kShapeCount || device().major != 9 || !encode_tiled()) return false;
    return !q.norm && !q.quads.used() && q.rows > 0 && q.rows < INT32_MAX - kWideRows && q.k > 0 && q.n > 0 && q.k % 8 == 0 && q.n % 8 == 0 && int64_t{q.k} * q.n <= INT32_MAX &&
           (q.activation == Activation::kNone || !q.added) && kShapes[plan.tile].shared <= device().shared && blocks_of(kShapes[plan.tile], q) <= INT32_MAX;
#else
    return false;
#endif
}

std::vector<WidePlan> wide_gemm_plans(const BlockGemmProblem& q) {
    std::vector<WidePlan> all;
    for (int tile = 0; tile < kShapeCount; ++tile)
        if (WidePlan plan{tile, 0}; wide_gemm_valid(plan, q)) plan.cost = cost(kShapes[tile], q), all.push_back(plan);
    std::sort(all.begin(), all.end(), [](const WidePlan& a, const WidePlan& b) { return a.cost < b.cost; });
    return all;
}

std::vector<WidePair> wide_gemm_pairs(const BlockGemmProblem& first, const BlockGemmProblem& second) {
    constexpr size_t kPairs = 4;
    std::vector<WidePair> pairs;
    if (first.rows < kManyRows) return pairs;
    const std::vector<WidePlan> seconds = wide_gemm_plans(second);
    for (const WidePlan& a : wide_gemm_plans(first))
        for (const WidePlan& b : seconds) pairs.push_back({a, b, a.cost + b.cost});
    std::sort(pairs.begin(), pairs.end(), [](const WidePair& a, const WidePair& b) { return a.cost < b.cost; });
    pairs.resize(std::min(kPairs, pairs.size()));
    return pairs;
}

cudaError_t wide_gemm(const BlockGemmProblem& q, const WidePlan& plan, cudaStream_t stream) {
    if (!wide_gemm_valid(plan, q)) return cudaErrorInvalidValue;
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    WideArgs p{};
    if (!encode(p.a, q.a, q.rows, q.k, kWideRows) || !encode(p.b, q.b, q.k, q.n, kWideDepth)) return cudaErrorInvalidValue;
    p.bias = in(q.bias), p.added = in(q.added), p.added2 = in(q.added2), p.out = static_cast<__half*>(q.out);
    p.rows = static_cast<int>(q.rows), p.k = q.k, p.n = q.n;
    const Shape& s = kShapes[plan.tile];
    p.by_columns = FastDiv(static_cast<uint32_t>(parts(q.n, s.columns)));
    p.activation = q.activation;
    p.mapped = q.window.used();
    if (p.mapped) p.map = WindowMap(q.window);
    return s.launch(p, static_cast<uint32_t>(blocks_of(s, q)), stream);
}

}  // namespace trt_opt
