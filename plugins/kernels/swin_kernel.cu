#include <type_traits>

#include "launch.cuh"
#include "swin_block.cuh"
#include "swin_block.h"

namespace trt_opt {
namespace {

static_assert(kSwinRows == kSwinMaxTokens && kSwinHead == kSwinHeadSize && kSwinMaxCluster == kSwinMaxHeads && kSwinMaxSlice == kSwinMaxHiddenOfHead);

constexpr int kPortableCluster = 8;

int slice_of(const SwinBlockProblem& q) { return q.mlp.hidden / q.attn.attention.heads; }

AttentionProblem attention_of(const AttnBlockProblem& q) {
    AttentionProblem attend = q.attention;
    attend.dtype = q.dtype, attend.batch = q.images * q.groups();
    attend.queries = attend.keys = static_cast<int32_t>(q.group_tokens());
    attend.value_dim = attend.dim;
    return attend;
}

// Calls f(kernel, key tiles) with the instance for so many tokens.
template <class F> auto with_swin_kernel(const SwinBlockProblem& q, F&& f) {
    if (q.attn.group_tokens() <= 56) return f(swin_block_kernel<7>, 7);
    return f(swin_block_kernel<8>, 8);
}

bool plan(const SwinBlockProblem& q, int tiles, SwinPlan& at) {
    return at.make(q.attn.channels, slice_of(q), static_cast<int>(q.attn.group_tokens()), tiles, device().shared);
}

bool sizes_fit(const SwinBlockProblem& q) {
    const AttnBlockProblem& a = q.attn;
    const int32_t heads = a.attention.heads;
    const int64_t groups = a.images * a.groups();
    AttentionArgs<__half> attend;
    SwinPlan at;
    return a.dtype == DType::kHalf && device().major >= 9 && a.images > 0 && heads >= 1 && heads <= kSwinMaxCluster && a.attention.dim == kSwinHead && a.channels == heads * kSwinHead &&
           a.group_tokens() <= kSwinRows && q.mlp.hidden % (heads * kFoldColumns) == 0 && q.mlp.hidden > 0 && slice_of(q) <= kSwinMaxSlice && groups * a.group_tokens() < INT32_MAX &&
           groups * heads <= INT32_MAX && attention_args(attention_of(a), attend) && with_swin_kernel(q, [&](auto, int tiles) { return plan(q, tiles, at); });
}

// What the device can run at once, as this thread found it for the sizes that it met last.
int clusters_at_once(int heads, int tiles, int shared, void (*kernel)(SwinBlockArgs)) {
    struct Entry {
        int device = -1, heads = 0, tiles = 0, shared = 0, count = 0;
    };
    thread_local Entry entries[16];
    const int id = device().id;
    Entry& e = entries[static_cast<unsigned>(heads * 2 + tiles) % 16];
    if (e.device == id && e.heads == heads && e.tiles == tiles && e.shared == shared) return e.count;
    int count = 0;
    const bool allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared) == cudaSuccess &&
                         (heads <= kPortableCluster || cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess);
    if (allowed) {
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {static_cast<unsigned>(heads), 1, 1};
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(static_cast<unsigned>(heads)), config.blockDim = dim3(kSwinThreads), config.dynamicSmemBytes = static_cast<size_t>(shared);
        config.attrs = &attribute, config.numAttrs = 1;
        if (cudaOccupancyMaxActiveClusters(&count, kernel, &config) != cudaSuccess) count = 0;
    }
    cudaGetLastError();
    e = {id, heads, tiles, shared, count};
    return count;
}

}  // namespace

int64_t swin_kernel_clusters(const SwinBlockProblem& q) { return q.attn.images * q.attn.groups(); }

int swin_kernel_at_once(const SwinBlockProblem& q) {
    if (!sizes_fit(q)) return 0;
    return with_swin_kernel(q, [&](auto kernel, int tiles) {
        SwinPlan at;
        return plan(q, tiles, at) ? clusters_at_once(q.attn.attention.heads, tiles, at.shared, kernel) : 0;
    });
}

bool swin_kernel_fits(const SwinBlockProblem& q) { return swin_kernel_at_once(q) > 0; }

cudaError_t swin_kernel(const SwinBlockProblem& q, cudaStream_t stream) {
    if (!swin_kernel_fits(q)) return cudaErrorInvalidValue;
    const AttnBlockProblem& a = q.attn;
    const MlpBlockProblem& m = q.mlp;
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    SwinBlockArgs p{};
    if (!attention_args(attention_of(a), p.attend)) return cudaErrorInvalidValue;
    p.a = in(a.x), p.a2 = in(a.residual), p.scale1 = in(a.norm_scale), p.shift1 = in(a.norm_bias);
    p.w_qkv = in(a.w_qkv), p.b_qkv = in(a.b_qkv), p.w_proj = in(a.w_proj), p.b_proj = in(a.b_proj);
    p.scale2 = in(m.scale), p.shift2 = in(m.bias), p.w1 = in(m.w1), p.b1 = in(m.b1), p.w2 = in(m.w2), p.b2 = in(m.b2);
    p.out = static_cast<__half*>(q.y);
    p.k = a.channels, p.slice = slice_of(q), p.each = 1.f / static_cast<float>(a.channels), p.epsilon1 = a.epsilon, p.epsilon2 = m.epsilon;
    p.activation = m.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu;
    p.slice_pieces = SwinPieces(p.slice), p.row_pieces = SwinPieces(p.k), p.by_fold = FastDiv(static_cast<uint32_t>(p.slice / kFoldColumns));
    p.by_heads = FastDiv(static_cast<uint32_t>(a.attention.heads));
    p.mapped = a.attention.window.used();
    if (p.mapped) p.map = WindowMap(a.attention.window);
    return with_swin_kernel(q, [&](auto kernel, int tiles) {
        if (!plan(q, tiles, p.at)) return cudaErrorInvalidValue;
        if (a.attention.heads > kPortableCluster) {
            const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
            if (status != cudaSuccess) return cudaGetLastError(), status;
        }
        return launch_ahead(kernel, static_cast<uint32_t>(swin_kernel_clusters(q) * a.attention.heads), kSwinThreads, static_cast<size_t>(p.at.shared), stream, a.attention.heads, p);
    });
}

}  // namespace trt_opt
