#include "attn_chain.h"

#include <cuda_fp16.h>

#include "attn_heads.h"
#include "block_gemm.h"
#include "common.cuh"

namespace trt_opt {
namespace {

BlockGemmProblem first_product(const AttnBlockProblem& q) {
    BlockGemmProblem g;
    g.rows = product_rows(q), g.k = q.channels, g.n = 3 * head_columns(q);
    g.a = q.x, g.b = q.w_qkv, g.bias = q.b_qkv;
    g.norm = true, g.a2 = q.residual, g.scale = q.norm_scale, g.shift = q.norm_bias, g.epsilon = q.epsilon;
    g.window = q.attention.window;
    g.next = q.w_proj, g.next_bytes = int64_t{2} * head_columns(q) * q.channels;
    return g;
}
BlockGemmProblem second_product(const AttnBlockProblem& q) {
    BlockGemmProblem g;
    g.rows = product_rows(q), g.k = head_columns(q), g.n = q.channels;
    g.b = q.w_proj, g.bias = q.b_proj, g.added = q.x, g.added2 = q.residual, g.out = q.y;
    g.window = q.attention.window;
    return g;
}

GemmProducts products(const AttnBlockProblem& q) { return {first_product(q), second_product(q)}; }
// Those of an MLP over as many channels, with the usual four times as many hidden ones.
GemmProducts beside(const AttnBlockProblem& q) {
    GemmProducts mlp = products(q);
    mlp.first.n = mlp.second.k = 4 * q.channels;
    mlp.first.activation = Activation::kGelu;
    return mlp;
}

// The best guess; without a tile in the second plan there is none.
GemmPair best(const AttnBlockProblem& q) {
    GemmPair pair = block_gemm_best_pair(products(q), beside(q));
    if (const int cluster_log2 = attn_heads_best(q); cluster_log2 >= 0) {
        // More channels than the first product has room for, the blocks of a cluster may have it for.
        if (pair.first.tile < 0) pair.second = block_gemm_best(second_product(q));
        pair.first = GemmPlan{-1, cluster_log2, 0};
    }
    return pair;
}

}  // namespace

bool attn_chain_fits(const AttnBlockProblem& q) {
    return q.dtype == DType::kHalf && aligned_to(16, q.x, q.residual, q.norm_scale, q.norm_bias, q.w_qkv, q.b_qkv, q.w_proj, q.b_proj, q.y) &&
           best(q).second.tile >= 0;
}

bool attn_chain_valid(const GemmPair& pair, const AttnBlockProblem& q) {
    const bool first = pair.first.tile < 0 ? attn_heads_fits(q, pair.first.cluster_log2) : block_gemm_valid(pair.first, first_product(q));
    return first && block_gemm_valid(pair.second, second_product(q));
}

std::vector<GemmPair> attn_chain_pairs(const AttnBlockProblem& q) {
    const std::vector<GemmPair> chains = block_gemm_pairs(products(q), beside(q), false);
    std::vector<GemmPlan> seconds;
    for (const GemmPair& pair : chains)
        if (pair.first.id() == chains.front().first.id()) seconds.push_back(pair.second);
    if (chains.empty()) seconds.push_back(block_gemm_best(second_product(q)));
    std::vector<GemmPair> pairs;
    for (const int cluster_log2 : attn_heads_clusters(q))
        for (const GemmPlan& second : seconds) pairs.push_back({GemmPlan{-1, cluster_log2, 0}, second, second.cost});
    pairs.insert(pairs.end(), chains.begin(), chains.end());
    return pairs;
}

cudaError_t attend_packed(const AttnBlockProblem& q, int64_t qkv, cudaStream_t stream) {
    auto* const rows = static_cast<__half*>(q.workspace);
    AttentionProblem attend = q.attention;
    attend.dtype = q.dtype, attend.batch = q.images * q.groups();
    attend.queries = attend.keys = static_cast<int32_t>(q.group_tokens());
    attend.value_dim = attend.dim;
    auto part = [&](int i) { return HeadView{rows + qkv + int64_t{i} * head_columns(q), int64_t{attend.queries} * 3 * head_columns(q), 3 * head_columns(q), attend.dim}; };
    attend.q = part(0), attend.k = part(1), attend.v = part(2), attend.out = rows;
    return attention(attend, stream);
}

cudaError_t attn_chain(const AttnBlockProblem& q, int64_t qkv, const GemmPair* pair, cudaStream_t stream) {
    auto* const rows = static_cast<__half*>(q.workspace);
    const GemmPair chosen = pair ? *pair : best(q);
    auto [first, second] = products(q);
    first.out = rows + qkv, second.a = rows;
    if (chosen.first.tile < 0) {
        const cudaError_t status = attn_heads(q, chosen.first.cluster_log2, rows, stream);
        return status != cudaSuccess ? status : block_gemm(second, chosen.second, stream);
    }
    if (const cudaError_t status = block_gemm(first, chosen.first, stream); status != cudaSuccess) return status;

    if (const cudaError_t status = attend_packed(q, qkv, stream); status != cudaSuccess) return status;
    return block_gemm(second, chosen.second, stream);
}

}  // namespace trt_opt
