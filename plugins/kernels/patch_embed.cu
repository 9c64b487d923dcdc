// Patches of an image to tokens: which kernel, and the one without tensor cores.
#include <algorithm>
#include <type_traits>

#include "gemm_plain.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "patch_embed_launch.h"

namespace trt_opt {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 30;  // of a launch; positions are 32-bit

bool valid(const PatchEmbedProblem& q) {
    auto within = [](int64_t v, int64_t most) { return v > 0 && v <= most; };
    const bool types = q.image == q.dtype || (q.image == DType::kFloat && q.dtype == DType::kHalf);
    const bool patch = q.patch_h > 0 && q.patch_w > 0 && q.channels > 0 && int64_t{q.patch_h} * q.patch_w <= kEmbedMaxPatch / q.channels;
    return types && q.images >= 0 && patch && q.height >= q.patch_h && q.width >= q.patch_w && int64_t{q.height} * q.width <= INT32_MAX / q.channels &&
           within(q.columns, kMlpMaxChannels) && (q.scale == nullptr) == (q.bias == nullptr) && q.images <= INT64_MAX / 8 / (int64_t{q.channels} * q.height * q.width) &&
           q.images <= INT64_MAX / 8 / q.tokens() / q.columns;
}

PatchMap map_of(const PatchEmbedProblem& q) {
    PatchMap m;
    m.by_grid_w = FastDiv(static_cast<uint32_t>(q.width / q.patch_w)), m.by_grid_h = FastDiv(static_cast<uint32_t>(q.height / q.patch_h));
    m.by_patch_w = FastDiv(static_cast<uint32_t>(q.patch_w)), m.by_patch_h = FastDiv(static_cast<uint32_t>(q.patch_h));
    m.width = q.width, m.plane = q.height * q.width, m.image = int64_t{q.channels} * m.plane;
    return m;
}

template <class X, class T> struct PlainArgs {
    const X* x;
    const T *w, *b;  // [n, k], [n] or null
    T* y;
    uint32_t rows;
    int k, n;
    PatchMap map;
};

// A block makes a 64 x 64 tile of the product, a thread 4 x 4 elements of it.
template <class X, class T> __global__ void __launch_bounds__(kGemmPlainThreads) patch_embed_plain_kernel(const __grid_constant__ PlainArgs<X, T> p) {
    constexpr int kTile = kGemmPlainTile, kDepth = kGemmPlainDepth;
    __shared__ int64_t starts[kTile];
    __shared__ float a[kDepth][kTile + 1], b[kDepth][kTile + 1];
    const int tid = threadIdx.x, down = tid / 16 * 4, across = tid % 16;
    const uint32_t row0 = blockIdx.x * kTile;
    const int column0 = static_cast<int>(blockIdx.y) * kTile;
    if (tid < kTile) starts[tid] = p.map.of_token(min(row0 + tid, p.rows - 1));
    __syncthreads();
    float sum[4][4] = {};
    for (int depth = 0; depth < p.k; depth += kDepth) {
        // Neighbouring tokens have neighbouring pixels; weights lie side by side along k.
        for (int i = tid; i < kTile * kDepth; i += kGemmPlainThreads) {
            const int k = i / kTile, row = i % kTile;
            // Rounded as the operand of a product of T.
            a[k][row] = depth + k < p.k ? to_float(from_float<T>(to_float(p.x[starts[row] + p.map.of_element(static_cast<uint32_t>(depth + k))]))) : 0.f;
        }
        for (int i = tid; i < kTile * kDepth; i += kGemmPlainThreads) {
            const int column = i / kDepth, k = i % kDepth;
            b[k][column] = depth + k < p.k && column0 + column < p.n ? to_float(p.w[static_cast<int64_t>(column0 + column) * p.k + depth + k]) : 0.f;
        }
        __syncthreads();
        gemm_plain_step(a, b, down, across, sum);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const uint32_t row = row0 + static_cast<uint32_t>(down + i);
        if (row >= p.rows) break;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (const int column = column0 + across + 16 * j; column < p.n) p.y[int64_t{row} * p.n + column] = from_float<T>(sum[i][j] + (p.b ? to_float(p.b[column]) : 0.f));
    }
}

template <class X, class T> cudaError_t plain(const PatchEmbedProblem& q, cudaStream_t stream) {
    const auto rows = static_cast<uint32_t>(q.images * q.tokens());
    const PlainArgs<X, T> p{static_cast<const X*>(q.x), static_cast<const T*>(q.w), static_cast<const T*>(q.b), static_cast<T*>(q.y), rows, q.patch(), q.columns, map_of(q)};
    const dim3 grid((rows + kGemmPlainTile - 1) / kGemmPlainTile, static_cast<uint32_t>((q.columns + kGemmPlainTile - 1) / kGemmPlainTile));
    patch_embed_plain_kernel<<<grid, kGemmPlainThreads, 0, stream>>>(p);
    return cudaGetLastError();
}

// How the tensor cores do it; neither `tiles` nor `rows`: they do not.
struct Cut : PatchEmbedLaunch {
    bool norm = false, whole = false;  // the kernel normalizes, too; all weights of a tile are in shared memory at once
};

template <int BM> bool tile(const PatchEmbedProblem& q, bool norm, Cut& cut) {
    using Tile = EmbedTile<BM>;
    const int columns = (q.columns + Tile::kColumns - 1) / Tile::kColumns;
    const bool whole = Tile::shared_bytes(q.patch(), true) <= device().shared;
    const int shared = Tile::shared_bytes(q.patch(), whole);
    const int64_t blocks = (q.images * q.tokens() + BM - 1) / BM * columns;
    if (shared > device().shared || blocks > INT32_MAX) return false;
    cut.rows = BM, cut.blocks = static_cast<uint32_t>(blocks), cut.threads = Tile::kThreads, cut.shared = shared, cut.whole = whole;
    cut.norm = norm && (columns == 1 || (device().major >= 9 && columns <= kBridgeMaxCluster));
    cut.cluster = cut.norm ? columns : 1;
    // Small tiles are for the least latency, as long as all blocks run at once.
    return blocks <= int64_t{std::clamp(device().shared / (shared + 1024), 1, 2)} * device().multiprocessors;
}

Cut cut(const PatchEmbedProblem& q) {
    Cut cut;
    if (q.dtype != DType::kHalf || device().major < 8) return cut;
    const int bytes = q.image == DType::kHalf ? 2 : 4, k = q.patch();
    auto fits = [&](int vec) { return q.patch_w % vec == 0 && q.width % vec == 0 && aligned_to(vec * bytes, q.x); };
    cut.vec = fits(4) ? 4 : fits(2) ? 2 : 0;
    if (cut.vec == 0 || !aligned_to(16, q.w, q.b, q.scale, q.bias, q.y)) return cut;
    const bool norm = q.scale != nullptr;
    if (cut.vec == 4 && k <= 16 * kEmbedSteps && q.columns <= 128 && q.columns % 8 == 0) {
        cut.tiles = q.columns <= 64 ? 8 : q.columns <= 96 ? 12 : 16, cut.norm = norm;
        const int64_t warps = (q.images * q.tokens() + 15) / 16, multiprocessors = device().multiprocessors;
        // As many blocks as run at once, so that weights are fetched once; a warp each if there are few.
        const int of_block = warps <= 2 * multiprocessors ? 1 : 4;
        cut.threads = 32 * of_block;
        cut.blocks = static_cast<uint32_t>(std::min((warps + of_block - 1) / of_block, (cut.tiles <= 12 ? 3 : 2) * multiprocessors));
    } else if (k % 8 == 0 && q.columns % 4 == 0) {
        if (q.image == DType::kHalf && fits(8)) cut.vec = 8;
        if (!tile<16>(q, norm, cut) && !tile<32>(q, norm, cut)) tile<64>(q, norm, cut);
    }
    return cut;
}

template <class X> cudaError_t on_tensor_cores(const PatchEmbedProblem& q, const Cut& cut, PatchEmbedLauncher<X>* launch, cudaStream_t stream) {
    PatchEmbedArgs<X> p{};
    auto in = [](const void* v) { return static_cast<const __half*>(v); };
    p.x = static_cast<const X*>(q.x), p.w = in(q.w), p.b = in(q.b), p.out = static_cast<__half*>(q.y);
    if (cut.norm) p.scale = in(q.scale), p.shift = in(q.bias);
    p.rows = static_cast<uint32_t>(q.images * q.tokens()), p.k = q.patch(), p.n = q.columns, p.epsilon = q.epsilon;
    p.map = map_of(q);
    if (cut.tiles == 0) {
        const auto pieces = static_cast<uint32_t>(q.patch_w / cut.vec);
        p.by_columns = FastDiv(static_cast<uint32_t>((q.columns + 63) / 64)), p.by_pieces = FastDiv(pieces), p.by_row_pieces = FastDiv(pieces * static_cast<uint32_t>(cut.rows));
        p.whole = cut.whole, p.once = one_wave(cut.blocks, cut.threads, static_cast<size_t>(cut.shared));
    }
    return launch(p, cut, stream);
}

// What the kernel before has left to do, in place.
cudaError_t normalize(const PatchEmbedProblem& q, cudaStream_t stream) {
    LayerNormProblem n;
    n.dtype = q.dtype, n.rows = q.images * q.tokens(), n.row = q.columns, n.epsilon = q.epsilon;
    n.x = q.y, n.scale = q.scale, n.bias = q.bias, n.y = q.y;
    return layer_norm(n, stream);
}

}  // namespace

cudaError_t patch_embed(const PatchEmbedProblem& whole, cudaStream_t stream) {
    if (!valid(whole)) return cudaErrorInvalidValue;
    const int64_t step = std::max<int64_t>(kMostTokens / whole.tokens(), 1), pixel = whole.image == DType::kHalf ? 2 : 4, element = whole.dtype == DType::kHalf ? 2 : 4;
    for (int64_t from = 0; from < whole.images; from += step) {
        PatchEmbedProblem q = whole;
        q.images = std::min(step, whole.images - from);
        q.x = static_cast<const unsigned char*>(whole.x) + from * q.channels * q.height * q.width * pixel;
        q.y = static_cast<unsigned char*>(whole.y) + from * q.tokens() * q.columns * element;
        const Cut how = cut(q);
        const bool cores = how.tiles > 0 || how.rows > 0, floats = q.image == DType::kFloat;
        cudaError_t status;
        if (cores) status = floats ? on_tensor_cores<float>(q, how, launch_patch_embed_float, stream) : on_tensor_cores<__half>(q, how, launch_patch_embed_half, stream);
        else if (q.dtype == DType::kFloat) status = plain<float, float>(q, stream);
        else status = floats ? plain<float, __half>(q, stream) : plain<__half, __half>(q, stream);
        if (status == cudaSuccess && q.scale && !(cores && how.norm)) status = normalize(q, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace trt_opt
