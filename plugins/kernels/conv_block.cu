// A convolution block: a product, a depthwise convolution over what it gives, and a product with the residual add. Three kernels, each
// launched ahead of the end of the one before it.
#include <algorithm>

#include "block_gemm.h"
#include "gemm_plain.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "row_pieces.h"

namespace trt_opt {
namespace {

int64_t tokens(const ConvBlockProblem& q) { return int64_t{q.height} * q.width; }
int64_t element(const ConvBlockProblem& q) { return q.dtype == DType::kHalf ? 2 : 4; }

bool valid(const ConvBlockProblem& q) {
    auto fits = [](int32_t columns) { return columns > 0 && columns <= kMlpMaxChannels; };
    if (q.height < 1 || q.width < 1 || tokens(q) > kConvMaxTokens || !fits(q.channels) || !fits(q.hidden)) return false;
    if (q.kernel != 3 && q.kernel != 5 && q.kernel != 7) return false;
    return q.images >= 0 && q.images <= INT64_MAX / 64 / kMlpMaxChannels / tokens(q);
}

// What one of the two kernels before the last gives of so many images, in bytes.
int64_t between(const ConvBlockProblem& q, int64_t images) { return (images * tokens(q) * q.hidden * element(q) + 15) / 16 * 16; }

// Whole images, since the convolution reads all around a token: as many as a piece may have, and what each has, but for the last.
int64_t most_images(const ConvBlockProblem& q) { return std::max<int64_t>(1, kPieceBytes / (2 * between(q, 1))); }
int64_t images_a_piece(const ConvBlockProblem& q) {
    const int64_t pieces = (q.images + most_images(q) - 1) / most_images(q);
    return (q.images + pieces - 1) / std::max<int64_t>(1, pieces);
}

bool aligned(const ConvBlockProblem& q) { return aligned_to(16, q.x, q.w1, q.b1, q.w, q.b, q.w2, q.b2, q.y); }

BlockGemmProblem first_product(const ConvBlockProblem& q, int64_t images) {
    BlockGemmProblem g;
    g.rows = images * tokens(q), g.k = q.channels, g.n = q.hidden;
    g.a = q.x, g.b = q.w1, g.bias = q.b1;
    // The convolution is launched ahead of its end too, and asks for its own weights.
    g.next = q.w2, g.next_bytes = int64_t{2} * q.channels * q.hidden;
    return g;
}
BlockGemmProblem second_product(const ConvBlockProblem& q, int64_t images) {
    BlockGemmProblem g;
    g.rows = images * tokens(q), g.k = q.hidden, g.n = q.channels;
    g.b = q.w2, g.bias = q.b2, g.added = q.x, g.out = q.y;
    return g;
}

GemmProducts products(const ConvBlockProblem& q, int64_t images) { return {first_product(q, images), second_product(q, images)}; }
// Those of an MLP over as many channels, with the usual four times as many hidden ones and, as in UniFormer, its norm in its weights.
GemmProducts beside(const ConvBlockProblem& q, int64_t images) {
    GemmProducts mlp = products(q, images);
    mlp.first.n = mlp.second.k = 4 * q.channels;
    mlp.first.activation = Activation::kGelu;
    return mlp;
}

bool tiled(const ConvBlockProblem& q) { return q.dtype == DType::kHalf && q.channels % 8 == 0 && q.hidden % 8 == 0; }

bool pair_valid(const GemmPair& pair, const ConvBlockProblem& q) {
    const int64_t images = images_a_piece(q);
    return block_gemm_valid(pair.first, first_product(q, images)) && block_gemm_valid(pair.second, second_product(q, images));
}

// The second product where there are no tensor cores for it.
template <class T> struct ConvPlainOut {
    const T* bias;
    const T* x;
    T* y;
    int columns;

    __device__ __forceinline__ int64_t row(int64_t r) const { return r * columns; }
    __device__ __forceinline__ void put(int64_t at, int column, float sum) const { y[at + column] = from_float<T>(to_float(x[at + column]) + (sum + to_float(bias[column]))); }
};

// Of a piece, all of whose images are in the workspace at once. `pair`: null where there are no tensor cores for it; `again`: the piece before it has
// asked for the weights.
template <class T> cudaError_t run(const ConvBlockProblem& q, const GemmPair* pair, bool again, cudaStream_t stream) {
    auto in = [](const void* p) { return static_cast<const T*>(p); };
    void* const mixed = static_cast<unsigned char*>(q.workspace) + between(q, q.images);
    const int64_t rows = q.images * tokens(q);
    auto [first, second] = products(q, q.images);
    first.out = q.workspace, second.a = mixed;
    if (again) first.next = nullptr, first.next_bytes = 0;

    cudaError_t status = pair ? block_gemm(first, pair->first, stream)
                              : gemm_plain<T>({in(q.x), in(q.w1), rows, q.channels, q.hidden}, GemmPlainOut<T>{in(q.b1), static_cast<T*>(q.workspace), q.hidden}, stream);
    if (status != cudaSuccess) return status;

    DepthwiseConvProblem conv;
    conv.dtype = q.dtype, conv.images = q.images, conv.height = q.height, conv.width = q.width, conv.channels = q.hidden, conv.kernel = q.kernel;
    conv.x = q.workspace, conv.w = q.w, conv.b = q.b, conv.y = mixed;
    status = depthwise_conv(conv, stream);
    if (status != cudaSuccess) return status;

    if (pair) return block_gemm(second, pair->second, stream);
    return gemm_plain<T>({in(mixed), in(q.w2), rows, q.hidden, q.channels}, ConvPlainOut<T>{in(q.b2), in(q.x), static_cast<T*>(q.y), q.channels}, stream);
}

}  // namespace

cudaError_t conv_block(const ConvBlockProblem& q, cudaStream_t stream, int32_t tactic) {
    if (!valid(q)) return cudaErrorInvalidValue;
    if (q.images == 0) return cudaSuccess;
    if (!q.workspace || !aligned_to(16, q.workspace)) return cudaErrorInvalidValue;
    const int64_t step = images_a_piece(q);
    GemmPair pair;
    if (tiled(q) && aligned(q)) pair = conv_block_tactic_valid(q, tactic) ? GemmPair::of(tactic) : block_gemm_best_pair(products(q, step), beside(q, step));
    const bool tensor_cores = pair.first.tile >= 0 && pair.second.tile >= 0;
    for (int64_t from = 0; from < q.images; from += step) {
        const int64_t offset = from * tokens(q) * q.channels * element(q);
        ConvBlockProblem piece = q;
        piece.images = std::min(step, q.images - from);
        piece.x = static_cast<const unsigned char*>(q.x) + offset, piece.y = static_cast<unsigned char*>(q.y) + offset;
        const cudaError_t status = q.dtype == DType::kHalf ? run<__half>(piece, tensor_cores ? &pair : nullptr, from > 0, stream) : run<float>(piece, nullptr, from > 0, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

std::vector<int32_t> conv_block_tactics(const ConvBlockProblem& q) {
    constexpr size_t kWorthTiming = 24;
    if (!valid(q) || q.images == 0 || !tiled(q)) return {};
    const int64_t images = images_a_piece(q);
    std::vector<GemmPair> pairs = block_gemm_pairs(products(q, images), beside(q, images), false);
    // The best guess is of tiles that an MLP shares, and need not be the cheapest.
    if (!pairs.empty()) std::stable_sort(pairs.begin() + 1, pairs.end(), [](const GemmPair& a, const GemmPair& b) { return a.cost < b.cost; });
    pairs.resize(std::min(kWorthTiming, pairs.size()));
    std::vector<int32_t> tactics;
    for (const GemmPair& pair : pairs) tactics.push_back(pair.id());
    return tactics;
}

bool conv_block_tactic_valid(const ConvBlockProblem& q, int32_t tactic) {
    return GemmPair::is_id(tactic) && valid(q) && q.images > 0 && tiled(q) && GemmPair::of(tactic).id() == tactic && pair_valid(GemmPair::of(tactic), q);
}

int64_t conv_block_workspace(const ConvBlockProblem& q) { return valid(q) ? 2 * between(q, std::min(q.images, most_images(q))) : 0; }

}  // namespace trt_opt
