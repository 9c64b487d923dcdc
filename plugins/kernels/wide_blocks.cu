#include "wide_blocks.h"

#include <cuda_fp16.h>

#include <algorithm>

#include "attn_chain.h"
#include "row_pieces.h"

namespace trt_opt {
namespace {

constexpr float kNorm = 3500, kNormBytes = 2000;      // an estimate of the norm in nanoseconds: a kernel, and bytes in one
constexpr float kAttend = 3000, kAttendBytes = 1900;  // of the attention, from what is left of a measured block

float norm_cost(int64_t rows, int channels) { return kNorm + static_cast<float>(4 * rows * channels) / kNormBytes; }

int64_t row_bytes(const MlpBlockProblem& q) { return int64_t{2} * ((q.norm ? q.channels : 0) + q.hidden); }
int64_t piece_rows(const MlpBlockProblem& q) { return rows_a_piece(q.rows, row_bytes(q)); }

BlockGemmProblem first_product(const MlpBlockProblem& q, int64_t rows) {
    BlockGemmProblem g;
    g.rows = rows, g.k = q.channels, g.n = q.hidden;
    g.b = q.w1, g.bias = q.b1;
    g.activation = q.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu;
    return g;
}
// What is added is s = x + residual, and with a residual has been written to y, element by element where the product puts its sum.
BlockGemmProblem second_product(const MlpBlockProblem& q, int64_t rows) {
    BlockGemmProblem g;
    g.rows = rows, g.k = q.hidden, g.n = q.channels;
    g.b = q.w2, g.bias = q.b2, g.out = q.y;
    g.added = q.residual ? q.y : q.x;
    return g;
}

BlockGemmProblem first_product(const AttnBlockProblem& q) {
    BlockGemmProblem g;
    g.rows = product_rows(q), g.k = q.channels, g.n = 3 * head_columns(q);
    g.b = q.w_qkv, g.bias = q.b_qkv;
    return g;
}
BlockGemmProblem second_product(const AttnBlockProblem& q) {
    BlockGemmProblem g;
    g.rows = product_rows(q), g.k = head_columns(q), g.n = q.channels;
    g.b = q.w_proj, g.bias = q.b_proj, g.out = q.y;
    g.added = q.residual ? q.y : q.x;
    g.window = q.attention.window;
    return g;
}

}  // namespace

bool mlp_wide_valid(const WidePair& pair, const MlpBlockProblem& q) {
    if (q.rows <= 0) return false;
    // Valid without x, too: pointers are not looked at.
    const int64_t rows = piece_rows(q);
    return wide_gemm_valid(pair.first, first_product(q, rows)) && wide_gemm_valid(pair.second, second_product(q, rows));
}

std::vector<WidePair> mlp_wide_pairs(const MlpBlockProblem& q) {
    if (q.rows <= 0) return {};
    const int64_t rows = piece_rows(q);
    std::vector<WidePair> pairs = wide_gemm_pairs(first_product(q, rows), second_product(q, rows));
    const auto pieces = static_cast<float>((q.rows + rows - 1) / rows);
    for (WidePair& pair : pairs) pair.cost = (pair.cost + (q.norm ? norm_cost(rows, q.channels) : 0)) * pieces;
    return pairs;
}

size_t mlp_wide_workspace(const MlpBlockProblem& q) { return static_cast<size_t>(std::min(q.rows, most_piece_rows(row_bytes(q))) * row_bytes(q)); }

cudaError_t mlp_wide(const MlpBlockProblem& whole, const WidePair& pair, void* workspace, cudaStream_t stream) {
    const int64_t step = piece_rows(whole);
    auto* const normal = static_cast<__half*>(workspace);  // without a norm the first product's result is there
    MlpBlockProblem q = whole;
    for (int64_t begin = 0; begin < whole.rows; begin += step) {
        const int64_t rows = std::min(step, whole.rows - begin), offset = 2 * begin * whole.channels;
        q.x = static_cast<const unsigned char*>(whole.x) + offset, q.y = static_cast<unsigned char*>(whole.y) + offset;
        if (whole.residual) q.residual = static_cast<const unsigned char*>(whole.residual) + offset;

        BlockGemmProblem first = first_product(q, rows), second = second_product(q, rows);
        first.a = q.x, first.out = normal;
        if (q.norm) {
            LayerNormProblem norm;
            norm.dtype = q.dtype, norm.rows = rows, norm.row = q.channels, norm.epsilon = q.epsilon;
            norm.x = q.x, norm.residual = q.residual, norm.scale = q.scale, norm.bias = q.bias;
            norm.y = normal, norm.sum = q.residual ? q.y : nullptr;
            if (const cudaError_t status = layer_norm(norm, stream); status != cudaSuccess) return status;
            first.a = normal, first.out = normal + rows * q.channels;
        }
        second.a = first.out;
        if (const cudaError_t status = wide_gemm(first, pair.first, stream); status != cudaSuccess) return status;
        if (const cudaError_t status = wide_gemm(second, pair.second, stream); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

bool attn_wide_valid(const WidePair& pair, const AttnBlockProblem& q) {
    return q.dtype == DType::kHalf && wide_gemm_valid(pair.first, first_product(q)) && wide_gemm_valid(pair.second, second_product(q));
}

std::vector<WidePair> attn_wide_pairs(const AttnBlockProblem& q) {
    if (q.dtype != DType::kHalf) return {};
    return wide_gemm_pairs(first_product(q), second_product(q));
}

float attn_wide_cost(const WidePair& pair, const AttnBlockProblem& q) {
    return pair.cost + norm_cost(product_rows(q), q.channels) + kAttend + static_cast<float>(8 * product_rows(q) * head_columns(q)) / kAttendBytes;
}

cudaError_t attn_wide(const AttnBlockProblem& q, int64_t qkv, const WidePair& pair, cudaStream_t stream) {
    auto* const rows = static_cast<__half*>(q.workspace);
    LayerNormProblem norm;
    norm.dtype = q.dtype, norm.rows = q.images * q.image_tokens(), norm.row = q.channels, norm.epsilon = q.epsilon, norm.window = q.attention.window;
    norm.x = q.x, norm.residual = q.residual, norm.scale = q.norm_scale, norm.bias = q.norm_bias;
    norm.y = rows, norm.sum = q.residual ? q.y : nullptr;
    if (const cudaError_t status = layer_norm(norm, stream); status != cudaSuccess) return status;

    BlockGemmProblem first = first_product(q), second = second_product(q);
    first.a = rows, first.out = rows + qkv, second.a = rows;
    if (const cudaError_t status = wide_gemm(first, pair.first, stream); status != cudaSuccess) return status;

    if (const cudaError_t status = attend_packed(q, qkv, stream); status != cudaSuccess) return status;
    return wide_gemm(second, pair.second, stream);
}

}  // namespace trt_opt
