#include "attn_heads.h"

#include <cuda_fp16.h>

#include "attn_heads.cuh"
#include "launch.cuh"

namespace trt_opt {
namespace {

constexpr int kMostBlocks = 4;     // a multiprocessor: an estimate, not measured; two run at once where they have room
constexpr int kMostClustered = 2;  // a multiprocessor: with more, a head that is shared out takes turns with others

int64_t blocks(const AttnBlockProblem& q, int cluster_log2) { return q.images * q.groups() * q.attention.heads << cluster_log2; }

// Calls f(kernel, shared bytes) with the instance for so many tokens and blocks a head. Clusters have none of their own for few tokens.
template <class F> auto with_heads_kernel(const AttnBlockProblem& q, int cluster_log2, F&& f) {
    auto use = [&](auto tiles, auto cluster) {
        constexpr int kTiles = decltype(tiles)::value, kCluster = decltype(cluster)::value;
        return f(attn_heads_kernel<kTiles, kCluster>, AttnHeadsShared::bytes(q.channels, kTiles, kCluster));
    };
    using std::integral_constant;
    const int64_t tokens = q.group_tokens();
    auto cluster_of = [&](auto cluster) {
        if (tokens <= 56) return use(integral_constant<int, 7>{}, cluster);
        return use(integral_constant<int, 8>{}, cluster);
    };
    if (cluster_log2 == 2) return cluster_of(integral_constant<int, 4>{});
    if (cluster_log2 == 1) return cluster_of(integral_constant<int, 2>{});
    if (tokens <= 16) return use(integral_constant<int, 2>{}, integral_constant<int, 1>{});
    if (tokens <= 32) return use(integral_constant<int, 4>{}, integral_constant<int, 1>{});
    return cluster_of(integral_constant<int, 1>{});
}

AttentionProblem attention_of(const AttnBlockProblem& q) {
    AttentionProblem attend = q.attention;
    attend.dtype = q.dtype, attend.batch = q.images * q.groups();
    attend.queries = attend.keys = static_cast<int32_t>(q.group_tokens());
    attend.value_dim = attend.dim;
    return attend;
}

}  // namespace

bool attn_heads_fits(const AttnBlockProblem& q, int cluster_log2) {
    if (cluster_log2 < 0 || cluster_log2 > kAttnHeadsMaxClusterLog2) return false;
    const int cluster = 1 << cluster_log2;
    if ((cluster - 1) * AttnHeadsShared::slice(q.channels, cluster) >= q.channels) return false;
    AttentionArgs<__half> attend;
    return q.dtype == DType::kHalf && q.images > 0 && q.attention.dim == AttnHeadsShared::kHead && q.group_tokens() <= AttnHeadsShared::kRows && q.channels % 8 == 0 && device().major >= 9 &&
           q.images * q.groups() * q.group_tokens() < INT32_MAX && blocks(q, cluster_log2) <= INT32_MAX && attention_args(attention_of(q), attend) &&
           with_heads_kernel(q, cluster_log2, [](auto, int shared) { return shared <= device().shared; });
}

bool attn_heads_pays(const AttnBlockProblem& q, int cluster_log2) {
    return attn_heads_fits(q, cluster_log2) && blocks(q, cluster_log2) <= int64_t{kMostBlocks} * device().multiprocessors;
}

int attn_heads_best(const AttnBlockProblem& q) {
    for (int cluster_log2 = 0; cluster_log2 <= kAttnHeadsMaxClusterLog2; ++cluster_log2)
        if (attn_heads_fits(q, cluster_log2)) return attn_heads_pays(q, cluster_log2) ? cluster_log2 : -1;
    return -1;
}

std::vector<int> attn_heads_clusters(const AttnBlockProblem& q) {
    std::vector<int> clusters;
    for (int cluster_log2 = 0; cluster_log2 <= kAttnHeadsMaxClusterLog2; ++cluster_log2) {
        const bool few = blocks(q, cluster_log2) <= int64_t{kMostClustered} * device().multiprocessors;
        if (attn_heads_fits(q, cluster_log2) && (clusters.empty() || few)) clusters.push_back(cluster_log2);
    }
    return clusters;
}

cudaError_t attn_heads(const AttnBlockProblem& q, int cluster_log2, void* out, cudaStream_t stream) {
    if (!attn_heads_fits(q, cluster_log2)) return cudaErrorInvalidValue;
    AttentionProblem attend = attention_of(q);
    attend.out = out;
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    AttnHeadsArgs p{};
    if (!attention_args(attend, p.attend)) return cudaErrorInvalidValue;
    p.a = in(q.x), p.a2 = in(q.residual), p.b = in(q.w_qkv), p.bias = in(q.b_qkv), p.scale = in(q.norm_scale), p.shift = in(q.norm_bias);
    p.k = q.channels, p.each = 1.f / static_cast<float>(q.channels), p.epsilon = q.epsilon;
    p.by_heads = FastDiv(static_cast<uint32_t>(attend.heads));
    p.mapped = attend.window.used();
    if (p.mapped) p.map = WindowMap(attend.window);
    p.next = q.w_proj, p.next_bytes = static_cast<uint32_t>(2 * attend.heads * attend.dim * q.channels);
    return with_heads_kernel(q, cluster_log2, [&](auto kernel, int shared) {
        p.once = one_wave(blocks(q, cluster_log2), AttnHeadsShared::kThreads, static_cast<size_t>(shared));
        return launch_ahead(kernel, static_cast<uint32_t>(blocks(q, cluster_log2)), AttnHeadsShared::kThreads, static_cast<size_t>(shared), stream, 1 << cluster_log2, p);
    });
}

}  // namespace trt_opt
