#include "mlp_chain.h"

#include <algorithm>

#include "row_pieces.h"

namespace trt_opt {
namespace {

int64_t row_bytes(const MlpBlockProblem& q) { return int64_t{2} * q.hidden; }
int64_t piece_rows(const MlpBlockProblem& q) { return rows_a_piece(q.rows, row_bytes(q)); }

BlockGemmProblem first_product(const MlpBlockProblem& q, int64_t rows) {
    BlockGemmProblem g;
    g.rows = rows, g.k = q.channels, g.n = q.hidden;
    g.a = q.x, g.b = q.w1, g.bias = q.b1;
    g.activation = q.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu;
    g.norm = q.norm, g.a2 = q.residual, g.scale = q.scale, g.shift = q.bias, g.epsilon = q.epsilon;
    g.next = q.w2, g.next_bytes = int64_t{2} * q.channels * q.hidden;
    return g;
}
BlockGemmProblem second_product(const MlpBlockProblem& q, int64_t rows) {
    BlockGemmProblem g;
    g.rows = rows, g.k = q.hidden, g.n = q.channels;
    g.b = q.w2, g.bias = q.b2, g.added = q.x, g.added2 = q.residual, g.out = q.y;
    return g;
}

// Those of an attention over as many channels.
GemmProducts beside(const MlpBlockProblem& q, int64_t rows) {
    GemmProducts attention{first_product(q, rows), second_product(q, rows)};
    attention.first.n = 3 * q.channels, attention.first.activation = Activation::kNone;
    attention.second.k = q.channels;
    return attention;
}

}  // namespace

bool mlp_chain_valid(const GemmPair& plan, const MlpBlockProblem& q) {
    const int64_t rows = piece_rows(q);
    return block_gemm_valid(plan.first, first_product(q, rows)) && block_gemm_valid(plan.second, second_product(q, rows));
}

std::vector<GemmPair> mlp_chain_plans(const MlpBlockProblem& q) {
    const int64_t rows = piece_rows(q);
    const GemmProducts own{first_product(q, rows), second_product(q, rows)};
    std::vector<GemmPair> pairs;
    if (q.norm) {
        pairs = block_gemm_pairs(own, beside(q, rows));
    } else {
        // No attention takes turns with the block, and for many rows not every device has other kernels with tensor cores.
        pairs = block_gemm_pairs(own, own, false);
        std::sort(pairs.begin(), pairs.end(), [](const GemmPair& a, const GemmPair& b) { return a.cost < b.cost; });
    }
    const auto pieces = static_cast<float>((q.rows + rows - 1) / std::max<int64_t>(1, rows));
    for (GemmPair& pair : pairs) pair.cost *= pieces;
    return pairs;
}

size_t mlp_chain_workspace(const MlpBlockProblem& q) { return static_cast<size_t>(std::min(q.rows, most_piece_rows(row_bytes(q))) * row_bytes(q)); }

cudaError_t mlp_chain(const MlpBlockProblem& whole, const GemmPair& plan, void* workspace, cudaStream_t stream) {
    const int64_t step = piece_rows(whole);
    MlpBlockProblem q = whole;
    for (int64_t begin = 0; begin < whole.rows; begin += step) {
        const int64_t rows = std::min(step, whole.rows - begin), offset = 2 * begin * whole.channels;
        q.x = static_cast<const unsigned char*>(whole.x) + offset, q.y = static_cast<unsigned char*>(whole.y) + offset;
        if (whole.residual) q.residual = static_cast<const unsigned char*>(whole.residual) + offset;

        BlockGemmProblem first = first_product(q, rows), second = second_product(q, rows);
        first.out = workspace, second.a = workspace;
        if (begin > 0) first.next = nullptr, first.next_bytes = 0;
        if (const cudaError_t status = block_gemm(first, plan.first, stream); status != cudaSuccess) return status;
        if (const cudaError_t status = block_gemm(second, plan.second, stream); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace trt_opt
