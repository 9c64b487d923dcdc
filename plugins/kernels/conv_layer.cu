// A convolution layer of tokens: as one kernel where there is one of its sizes, or as its three ops one by one. TRT_OPT_SM90A: this file is compiled for sm_90a.
#include "conv_layer.cuh"

#include <algorithm>
#include <iterator>

#include "kernels.h"
#include "launch.cuh"
#include "row_pieces.h"
#include "tensor_map.h"

namespace trt_opt {
namespace {

constexpr int32_t kOneKernel = 1, kOneByOne = 2;  // tactics

struct Shape {
    int channels, kernel, high, wide;  // high, wide: of a block's tokens
    int rounds;                        // of blocks on all multiprocessors, up to which it is faster than the ops, whose time grows less with the images
    cudaError_t (*launch)(const ConvLayerArgs&, uint32_t blocks, cudaStream_t);
};
template <class Tile> cudaError_t launch(const ConvLayerArgs& p, uint32_t blocks, cudaStream_t stream) {
    return launch_ahead(conv_layer_kernel<Tile>, blocks, Tile::kThreads, Tile::kShared, stream, 1, p);
}
template <int C, int HIGH, int K> constexpr Shape shape(int rounds) {
    using Tile = ConvLayerTile<C, HIGH, K>;
    return {C, K, Tile::kHigh, Tile::kWide, rounds, launch<Tile>};
}
const Shape kShapes[] = {shape<64, 8, 3>(6), shape<64, 8, 5>(6), shape<128, 4, 3>(2), shape<128, 4, 5>(2)};

int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }
int64_t tokens(const ConvLayerProblem& q) { return int64_t{q.conv.height} * q.conv.width; }
int64_t blocks_of(const Shape& s, const ConvLayerProblem& q) { return q.conv.images * parts(q.conv.height, s.high) * parts(q.conv.width, s.wide); }

#ifdef TRT_OPT_SM90A
constexpr bool kWarpgroups = true;
#else
constexpr bool kWarpgroups = false;
#endif

const Shape* shape_of(const ConvLayerProblem& q) {
    const ConvBlockProblem& c = q.conv;
    if (!kWarpgroups || c.dtype != DType::kHalf || c.hidden != c.channels || c.images < 1 || device().major != 9 || !encode_tiled()) return nullptr;
    if (q.mlp.hidden < kConvLayerSide || q.mlp.hidden % kConvLayerSide != 0 || q.mlp.hidden > kMlpMaxHidden) return nullptr;
    const auto found = std::find_if(std::begin(kShapes), std::end(kShapes), [&](const Shape& s) { return s.channels == c.channels && s.kernel == c.kernel; });
    return found != std::end(kShapes) && blocks_of(*found, q) <= INT32_MAX ? found : nullptr;
}

MlpBlockProblem mlp_of(const ConvLayerProblem& q) {
    MlpBlockProblem m = q.mlp;
    m.dtype = q.conv.dtype, m.rows = q.conv.images * tokens(q), m.channels = q.conv.channels, m.norm = false, m.residual = nullptr, m.y = q.y;
    return m;
}
// Of the tokens of an image, and in a workspace of all of a problem's, in bytes.
int64_t image_bytes(const ConvLayerProblem& q) { return tokens(q) * q.conv.channels * (q.conv.dtype == DType::kHalf ? 2 : 4); }
int64_t map_bytes(const ConvLayerProblem& q) { return parts(q.conv.images * image_bytes(q), 16) * 16; }
// As many images as go from op to op at a time.
ConvLayerProblem piece(const ConvLayerProblem& q) {
    ConvLayerProblem p = q;
    p.conv.images = std::min(q.conv.images, std::max<int64_t>(1, kPieceBytes / image_bytes(q)));
    return p;
}

bool valid(const ConvLayerProblem& q) {
    // Of a convolution block that is not valid no workspace is needed.
    ConvBlockProblem one = q.conv;
    one.images = 1;
    return q.conv.images >= 0 && q.conv.images <= INT64_MAX / 64 / kMlpMaxChannels / std::max<int64_t>(1, tokens(q)) && conv_block_workspace(one) > 0 && q.mlp.hidden > 0 && q.mlp.hidden <= kMlpMaxHidden;
}

bool aligned(const ConvLayerProblem& q) {
    return aligned_to(16, q.conv.x, q.conv.w1, q.conv.b1, q.conv.w, q.conv.b, q.conv.w2, q.conv.b2, q.position_w, q.position_b) && aligned_to(16, q.mlp.w1, q.mlp.b1, q.mlp.w2, q.mlp.b2, q.y);
}

cudaError_t one_kernel(const ConvLayerProblem& q, const Shape& s, cudaStream_t stream) {
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    const ConvBlockProblem& c = q.conv;
    ConvLayerArgs p{};
    if (!encode(p.w1, c.w1, c.channels, c.channels, kConvLayerSide) || !encode(p.w2, c.w2, c.channels, c.channels, kConvLayerSide) ||
        !encode(p.up, q.mlp.w1, c.channels, q.mlp.hidden, kConvLayerSide) || !encode(p.down, q.mlp.w2, q.mlp.hidden, c.channels, kConvLayerSide))
        return cudaErrorInvalidValue;
    p.x = in(c.x), p.position_w = in(q.position_w), p.position_b = in(q.position_b), p.b1 = in(c.b1), p.w = in(c.w), p.b = in(c.b), p.b2 = in(c.b2), p.up_b = in(q.mlp.b1), p.down_b = in(q.mlp.b2);
    p.y = static_cast<__half*>(q.y);
    p.height = c.height, p.width = c.width, p.hidden = q.mlp.hidden;
    p.by_across = FastDiv(static_cast<uint32_t>(parts(c.width, s.wide))), p.by_down = FastDiv(static_cast<uint32_t>(parts(c.height, s.high)));
    p.activation = q.mlp.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu;
    return s.launch(p, static_cast<uint32_t>(blocks_of(s, q)), stream);
}

// What is encoded lies where the result will, until the convolution block has read it.
cudaError_t piece_by_ops(const ConvLayerProblem& q, cudaStream_t stream) {
    unsigned char* const behind = static_cast<unsigned char*>(q.workspace) + map_bytes(q);
    DepthwiseConvProblem position;
    position.dtype = q.conv.dtype, position.images = q.conv.images, position.height = q.conv.height, position.width = q.conv.width, position.channels = q.conv.channels;
    position.kernel = kLayerPositionKernel, position.residual = true;
    position.x = q.conv.x, position.w = q.position_w, position.b = q.position_b, position.y = q.y;
    cudaError_t status = depthwise_conv(position, stream);
    if (status != cudaSuccess) return status;
    ConvBlockProblem conv = q.conv;
    conv.x = q.y, conv.y = q.workspace, conv.workspace = behind;
    status = conv_block(conv, stream);
    if (status != cudaSuccess) return status;
    MlpBlockProblem mlp = mlp_of(q);
    mlp.x = q.workspace;
    return mlp_block(mlp, behind, stream);
}
cudaError_t one_by_one(const ConvLayerProblem& q, cudaStream_t stream) {
    if (!q.workspace || !aligned_to(16, q.workspace)) return cudaErrorInvalidValue;
    const int64_t step = piece(q).conv.images;
    for (int64_t from = 0; from < q.conv.images; from += step) {
        ConvLayerProblem p = q;
        p.conv.images = std::min(step, q.conv.images - from);
        p.conv.x = static_cast<const unsigned char*>(q.conv.x) + from * image_bytes(q), p.y = static_cast<unsigned char*>(q.y) + from * image_bytes(q);
        if (const cudaError_t status = piece_by_ops(p, stream); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

bool few(const Shape& s, const ConvLayerProblem& q) { return blocks_of(s, q) <= int64_t{s.rounds} * device().multiprocessors; }

}  // namespace

cudaError_t conv_layer(const ConvLayerProblem& q, cudaStream_t stream, int32_t tactic) {
    if (!valid(q)) return cudaErrorInvalidValue;
    if (q.conv.images == 0) return cudaSuccess;
    const Shape* const s = aligned(q) ? shape_of(q) : nullptr;
    if (s && (conv_layer_tactic_valid(q, tactic) ? tactic == kOneKernel : few(*s, q))) return one_kernel(q, *s, stream);
    return one_by_one(q, stream);
}

std::vector<int32_t> conv_layer_tactics(const ConvLayerProblem& q) {
    const Shape* const s = valid(q) ? shape_of(q) : nullptr;
    if (!s) return {};
    return few(*s, q) ? std::vector<int32_t>{kOneKernel, kOneByOne} : std::vector<int32_t>{kOneByOne, kOneKernel};
}

bool conv_layer_tactic_valid(const ConvLayerProblem& q, int32_t tactic) { return (tactic == kOneKernel || tactic == kOneByOne) && valid(q) && shape_of(q); }

int64_t conv_layer_workspace(const ConvLayerProblem& q) {
    if (!valid(q)) return 0;
    const ConvLayerProblem p = piece(q);
    return map_bytes(p) + std::max(conv_block_workspace(p.conv), static_cast<int64_t>(mlp_block_workspace(mlp_of(p))));
}

}  // namespace trt_opt
