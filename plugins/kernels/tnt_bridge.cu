// Words of a patch onto its token: as one kernel, a product whose columns a cluster has between its blocks, or as several.
#include <algorithm>

#include "block_gemm.h"
#include "gemm_plain.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "tnt_bridge_launch.h"

namespace trt_opt {
namespace {

int64_t rows(const TntBridgeProblem& q) { return q.images * q.covered; }

template <class T> BridgeEnd<T> end_of(const TntBridgeProblem& q) {
    BridgeEnd<T> end;
    auto in = [](const void* p) { return static_cast<const T*>(p); };
    end.x = in(q.x), end.residual = in(q.residual), end.scale = in(q.scale2), end.shift = in(q.bias2), end.out = static_cast<T*>(q.y);
    end.n = q.channels, end.epsilon = q.epsilon2;
    end.at = BridgeTokens(static_cast<uint32_t>(q.images), static_cast<uint32_t>(q.tokens), static_cast<uint32_t>(q.begin), static_cast<uint32_t>(q.covered));
    return end;
}

struct Shape {
    int rows, columns;
    int (*shared)(int width);
    BridgeLauncher* launch;
};
template <class Tile> constexpr Shape shape(BridgeLauncher* launch) { return {Tile::kRows, Tile::kColumns, Tile::bridge_bytes, launch}; }
const Shape kShapes[] = {shape<GemmTile16x64>(launch_bridge_16x64), shape<GemmTile32x64>(launch_bridge_32x64), shape<GemmTile32x128>(launch_bridge_32x128), shape<GemmTile64x128>(launch_bridge_64x128)};

struct Cut {
    const Shape* shape = nullptr;  // null: the one kernel does not take the problem
    BridgeLaunch how;
    bool once = false;             // all blocks run at once
};

// The smallest tile whose blocks run all at once, for the least latency; or else the largest.
Cut cut(const TntBridgeProblem& q) {
    Cut best;
    if (q.dtype != DType::kHalf || device().major < 9 || q.width % 8 != 0 || q.channels % 8 != 0 || int64_t{q.width} * q.channels > INT32_MAX) return best;
    if (!aligned_to(16, q.x, q.residual, q.words, q.scale1, q.bias1, q.w, q.b, q.scale2, q.bias2, q.y)) return best;
    for (const Shape& s : kShapes) {
        const int cluster = (q.channels + s.columns - 1) / s.columns, shared = s.shared(q.width);
        const int64_t blocks = (rows(q) + s.rows - 1) / s.rows * cluster;
        if (cluster > kBridgeMaxCluster || shared > device().shared || blocks > INT32_MAX) continue;
        best.shape = &s, best.how = {static_cast<uint32_t>(blocks), shared, cluster};
        const int together = std::clamp(device().shared / (shared + 1024), 1, 2);
        best.once = blocks <= int64_t{together} * device().multiprocessors;
        if (best.once) break;
    }
    return best;
}

cudaError_t in_one(const TntBridgeProblem& q, const Cut& cut, cudaStream_t stream) {
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    BridgeGemmArgs p{};
    p.a = in(q.words), p.b = in(q.w), p.bias = in(q.b), p.scale = in(q.scale1), p.shift = in(q.bias1), p.epsilon = q.epsilon1;
    p.rows = rows(q), p.k = p.slice = q.width, p.n = q.channels;
    p.by_columns = FastDiv(static_cast<uint32_t>(cut.how.cluster));
    p.end = end_of<__half>(q), p.once = cut.once;
    return cut.shape->launch(p, cut.how, stream);
}

// A warp ends a row of the product after the other; then all threads copy the tokens that have none.
constexpr int kRowWarps = 8;
template <class T, class P> __global__ void __launch_bounds__(32 * kRowWarps) bridge_rows_kernel(const P* product, const __grid_constant__ BridgeEnd<T> p, uint32_t rows) {
    const uint32_t lane = threadIdx.x % 32, warp = blockIdx.x * kRowWarps + threadIdx.x / 32;
    for (uint32_t r = warp; r < rows; r += gridDim.x * kRowWarps) {
        const P* row = product + int64_t{r} * p.n;
        const int64_t token = p.at.of_row(r);
        float sum = 0, square = 0;
        for (int c = static_cast<int>(lane); c < p.n; c += 32) sum += to_float(row[c]);
        const float mean = group_sum<32>(sum) / static_cast<float>(p.n);
        for (int c = static_cast<int>(lane); c < p.n; c += 32) {
            const float difference = to_float(row[c]) - mean;
            square = fmaf(difference, difference, square);
        }
        const float factor = rsqrtf(group_sum<32>(square) / static_cast<float>(p.n) + p.epsilon);
        for (int c = static_cast<int>(lane); c < p.n; c += 32) {
            const float normal[1] = {(to_float(row[c]) - mean) * factor};
            p.template put<1>(token, c, p.template stream<1>(token * p.n + c), normal);
        }
    }
    p.template copy_others<1>(uint64_t{blockIdx.x} * blockDim.x + threadIdx.x, uint64_t{gridDim.x} * blockDim.x);
}
template <class T, class P> cudaError_t bridge_rows(const P* product, const TntBridgeProblem& q, cudaStream_t stream) {
    const auto blocks = static_cast<uint32_t>(std::min<int64_t>((rows(q) + kRowWarps - 1) / kRowWarps, int64_t{16} * multiprocessors()));
    bridge_rows_kernel<T, P><<<blocks, 32 * kRowWarps, 0, stream>>>(product, end_of<T>(q), static_cast<uint32_t>(rows(q)));
    return cudaGetLastError();
}

// Of the product without tensor cores: with its offset, not rounded.
template <class T> struct BridgeProductOut {
    const T* bias;
    float* y;
    int columns;

    __device__ __forceinline__ float* row(int64_t r) const { return y + r * columns; }
    __device__ __forceinline__ void put(float* at, int column, float sum) const { at[column] = sum + to_float(bias[column]); }
};

// Bytes of the workspace: normalized rows of words, then the product.
struct Rooms {
    int64_t product, total;

    Rooms(const TntBridgeProblem& q, int64_t rows) {
        product = (rows * q.width * (q.dtype == DType::kHalf ? 2 : 4) + 15) / 16 * 16;
        total = product + rows * q.channels * 4;
    }
};

template <class T> cudaError_t in_steps(const TntBridgeProblem& q, cudaStream_t stream) {
    auto* const normal = static_cast<T*>(q.workspace);
    void* const product = static_cast<unsigned char*>(q.workspace) + Rooms(q, rows(q)).product;
    LayerNormProblem norm;
    norm.dtype = q.dtype, norm.rows = rows(q), norm.row = q.width, norm.epsilon = q.epsilon1;
    norm.x = q.words, norm.scale = q.scale1, norm.bias = q.bias1, norm.y = normal;
    cudaError_t status = cudaSuccess;
    if constexpr (sizeof(T) == 2) {
        BlockGemmProblem g;
        g.rows = rows(q), g.k = q.width, g.n = q.channels, g.a = q.words, g.b = q.w, g.bias = q.b, g.out = product;
        g.norm = true, g.scale = q.scale1, g.shift = q.bias1, g.epsilon = q.epsilon1;
        const bool aligned = aligned_to(16, q.words, q.w, q.b, q.scale1, q.bias1);
        GemmPlan plan = aligned ? block_gemm_best(g) : GemmPlan{};
        if (aligned && plan.tile < 0) {
            g.norm = false, g.a = normal;
            plan = block_gemm_best(g);
            if (plan.tile >= 0) status = layer_norm(norm, stream);
        }
        if (plan.tile >= 0) {
            if (status == cudaSuccess) status = block_gemm(g, plan, stream);
            return status == cudaSuccess ? bridge_rows<T>(static_cast<const T*>(product), q, stream) : status;
        }
    }
    status = layer_norm(norm, stream);
    if (status == cudaSuccess)
        status = gemm_plain<T>({normal, static_cast<const T*>(q.w), rows(q), q.width, q.channels}, BridgeProductOut<T>{static_cast<const T*>(q.b), static_cast<float*>(product), q.channels}, stream);
    return status == cudaSuccess ? bridge_rows<T>(static_cast<const float*>(product), q, stream) : status;
}

}  // namespace

cudaError_t tnt_bridge(const TntBridgeProblem& whole, cudaStream_t stream) {
    if (!tnt_bridge_valid(whole)) return cudaErrorInvalidValue;
    if (whole.images == 0) return cudaSuccess;
    const int64_t bytes = whole.dtype == DType::kHalf ? 2 : 4, step = tnt_bridge_images(whole);
    auto on = [&](const void* p, int64_t elements) { return p ? static_cast<const unsigned char*>(p) + elements * bytes : nullptr; };
    for (int64_t from = 0; from < whole.images; from += step) {
        TntBridgeProblem q = whole;
        q.images = std::min(step, whole.images - from);
        const int64_t tokens = from * whole.tokens * whole.channels;
        q.x = on(whole.x, tokens), q.residual = on(whole.residual, tokens), q.y = static_cast<unsigned char*>(whole.y) + tokens * bytes;
        q.words = on(whole.words, from * whole.covered * whole.width);
        cudaError_t status;
        if (const Cut one = cut(q); one.shape) status = in_one(q, one, stream);
        else if (!q.workspace || !aligned_to(16, q.workspace)) status = cudaErrorInvalidValue;
        else status = q.dtype == DType::kHalf ? in_steps<__half>(q, stream) : in_steps<float>(q, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

// What the device and the pointers say is not looked at, so room is kept for the case that they do not suit the one kernel.
int64_t tnt_bridge_workspace(const TntBridgeProblem& q) { return tnt_bridge_valid(q) ? Rooms(q, tnt_bridge_images(q) * q.covered).total : 0; }

}  // namespace trt_opt
