// The attention block with pooled keys and values: queries, keys and values as one kernel (pooled_heads.cuh) where it has the sizes, else step by step; the
// attention; and the product with the residual add. Each is launched ahead of the end of the one before it.
#include <algorithm>

#include "block_gemm.h"
#include "gemm_plain.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "pooled_heads.cuh"
#include "pooled_merge.cuh"

namespace trt_opt {
namespace {

bool valid(const PooledAttnBlockProblem& q) {
    auto positive = [](int32_t v) { return v > 0; };
    const AttentionProblem& a = q.attention;
    if (!positive(q.grid_h) || !positive(q.grid_w) || !positive(q.pool_h) || !positive(q.pool_w) || q.grid_h % q.pool_h != 0 || q.grid_w % q.pool_w != 0 || q.tokens() > kAttnMaxTokens) return false;
    if (!positive(q.channels) || q.channels > kAttnMaxChannels || !positive(a.heads) || !positive(a.dim) || a.dim > 128 || int64_t{a.heads} * a.dim > kAttnMaxChannels) return false;
    return a.mask_kind == AttentionMask::kNone && a.bias_kind != AttentionBias::kTable && !a.window.used() && q.images >= 0 && q.images <= INT64_MAX / 64 / kAttnMaxChannels / q.tokens();
}

// Where the steps leave what they give, in elements from the workspace's start.
struct Plan {
    int64_t rows, pooled;
    int32_t inner;
    int64_t q, kv, means, projected, total;  // normalized rows come first, and later the attention's result in their place

    explicit Plan(const PooledAttnBlockProblem& p) : rows(p.images * p.tokens()), pooled(p.images * p.pooled()), inner(p.attention.heads * p.attention.dim) {
        auto behind = [](int64_t from, int64_t elements) { return (from + elements + 127) / 128 * 128; };
        q = behind(0, rows * std::max(p.channels, inner)), kv = behind(q, rows * inner), means = behind(kv, pooled * 2 * inner);
        projected = behind(means, pooled * p.channels), total = behind(projected, pooled * p.channels);
    }
};

bool aligned(const PooledAttnBlockProblem& q) {
    return aligned_to(16, q.x, q.residual, q.norm_scale, q.norm_bias, q.w_q, q.b_q, q.w_pool, q.b_pool, q.pool_scale, q.pool_bias, q.w_kv, q.b_kv, q.w_proj, q.b_proj, q.y);
}

BlockGemmProblem product(int64_t rows, int32_t k, int32_t n, const void* a, const void* b, const void* bias, void* out) {
    BlockGemmProblem g;
    g.rows = rows, g.k = k, g.n = n, g.a = a, g.b = b, g.bias = bias, g.out = out;
    return g;
}
BlockGemmProblem last_product(const PooledAttnBlockProblem& q, const Plan& plan) {
    BlockGemmProblem g = product(plan.rows, plan.inner, q.channels, q.workspace, q.w_proj, q.b_proj, q.y);
    g.added = q.x, g.added2 = q.residual;
    return g;
}
// In tiles that an MLP over as many channels, with the usual four times as many hidden ones, has too.
GemmPlan last_plan(const PooledAttnBlockProblem& q, const Plan& plan) {
    const GemmProducts own{product(plan.rows, q.channels, plan.inner, q.x, q.w_q, q.b_q, q.y), last_product(q, plan)};
    GemmProducts mlp = own;
    mlp.first.norm = true, mlp.first.scale = q.norm_scale, mlp.first.shift = q.norm_bias;
    mlp.first.n = mlp.second.k = 4 * q.channels, mlp.first.activation = Activation::kGelu;
    const GemmPair pair = block_gemm_best_pair(own, mlp);
    return pair.first.tile >= 0 && pair.second.tile >= 0 ? pair.second : block_gemm_best(last_product(q, plan));
}

template <int C, bool SHARED> cudaError_t heads_of(const PooledHeads& p, int64_t blocks, cudaStream_t stream) {
    using S = PooledShape<C, SHARED>;
    return launch_ahead(pooled_heads_kernel<C, SHARED>, static_cast<uint32_t>((blocks + S::kCluster - 1) / S::kCluster * S::kCluster), kPooledThreads, S::kBytes, stream, S::kCluster, p);
}

int64_t key_blocks(const Plan& plan) { return (plan.pooled + kPooledKeyRows - 1) / kPooledKeyRows * ((2 * plan.inner + kPooledSlice - 1) / kPooledSlice); }
int64_t query_blocks(const Plan& plan) { return (plan.rows + kPooledQueryRows - 1) / kPooledQueryRows * ((plan.inner + kPooledSlice - 1) / kPooledSlice); }

// Wpool is shared out where a cluster's blocks have all columns of keys and values, too.
bool pool_shared(const PooledAttnBlockProblem& q, const Plan& plan) { return q.channels == 256 && plan.inner == 256; }
int shared_of(int32_t channels) { return channels == 64 ? PooledShape<64, false>::kBytes : channels == 128 ? PooledShape<128, false>::kBytes : channels == 256 ? PooledShape<256, false>::kBytes : INT32_MAX; }

// More blocks than two a multiprocessor fetch weights too often to be worth it: an estimate.
bool heads_fit(const PooledAttnBlockProblem& q, const Plan& plan) {
    return device().major >= 9 && shared_of(q.channels) <= device().shared && plan.inner % 8 == 0 && plan.rows <= INT32_MAX / 2 && aligned(q) &&
           key_blocks(plan) + query_blocks(plan) <= 2 * int64_t{device().multiprocessors};
}

cudaError_t heads(const PooledAttnBlockProblem& q, const Plan& plan, cudaStream_t stream) {
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    auto* const work = static_cast<__half*>(q.workspace);
    PooledHeads p;
    p.x = in(q.x), p.residual = in(q.residual), p.scale = in(q.norm_scale), p.shift = in(q.norm_bias);
    p.w_q = in(q.w_q), p.b_q = in(q.b_q), p.w_pool = in(q.w_pool), p.b_pool = in(q.b_pool), p.pool_scale = in(q.pool_scale), p.pool_shift = in(q.pool_bias);
    p.w_kv = in(q.w_kv), p.b_kv = in(q.b_kv), p.q = work + plan.q, p.kv = work + plan.kv;
    p.next = q.w_proj, p.next_bytes = static_cast<uint32_t>(2 * plan.inner * q.channels);
    p.rows = static_cast<int>(plan.rows), p.pooled = static_cast<int>(plan.pooled), p.inner = plan.inner;
    p.tokens = static_cast<int>(q.tokens()), p.width = q.grid_w, p.pool_h = q.pool_h, p.pool_w = q.pool_w, p.epsilon = q.epsilon, p.pool_epsilon = q.pool_epsilon, p.each = 1.f / static_cast<float>(q.pool_h * q.pool_w);
    p.key_blocks = static_cast<int>(key_blocks(plan)), p.key_slices = (2 * plan.inner + kPooledSlice - 1) / kPooledSlice, p.query_slices = (plan.inner + kPooledSlice - 1) / kPooledSlice;
    p.by_image = FastDiv(static_cast<uint32_t>(q.pooled())), p.by_across = FastDiv(static_cast<uint32_t>(q.grid_w / q.pool_w)), p.by_pool_w = FastDiv(static_cast<uint32_t>(q.pool_w));
    const int64_t blocks = key_blocks(plan) + query_blocks(plan);
    p.once = one_wave(blocks, kPooledThreads, static_cast<size_t>(shared_of(q.channels)));
    if (pool_shared(q, plan)) return heads_of<256, true>(p, blocks, stream);
    return q.channels == 64 ? heads_of<64, false>(p, blocks, stream) : q.channels == 128 ? heads_of<128, false>(p, blocks, stream) : heads_of<256, false>(p, blocks, stream);
}

// Calls f(shape, kernel) with the instance for so many heads, 2, 4 or 8.
template <class F> auto with_merge(int32_t heads, F&& f) {
    return heads == 2 ? f(PooledMergeShape<2>{}, pooled_merge_kernel<2>) : heads == 4 ? f(PooledMergeShape<4>{}, pooled_merge_kernel<4>) : f(PooledMergeShape<8>{}, pooled_merge_kernel<8>);
}
struct MergeBlocks {
    int64_t rows, slices;  // blocks of rows of an image, slices of columns

    explicit MergeBlocks(const PooledAttnBlockProblem& q) {
        with_merge(q.attention.heads, [&](auto shape, auto) { return rows = (q.tokens() + shape.kRows - 1) / shape.kRows, slices = (q.channels + shape.kColumns - 1) / shape.kColumns; });
    }
};
bool merge_fits(const PooledAttnBlockProblem& q) {
    const AttentionProblem& a = q.attention;
    if ((a.heads != 2 && a.heads != 4 && a.heads != 8) || a.dim != kPooledMergeDim || q.pooled() % 8 != 0 || q.pooled() > kPooledMergeKeys) return false;
    if (a.bias_kind == AttentionBias::kDense && (a.bias_period < 1 || (a.bias_heads != 1 && a.bias_heads != a.heads) || !aligned_to(16, a.bias))) return false;
    const MergeBlocks blocks(q);
    return with_merge(a.heads, [](auto shape, auto) { return shape.kBytes; }) <= device().shared && q.images * blocks.rows * blocks.slices <= 2 * int64_t{device().multiprocessors};
}

cudaError_t merge(const PooledAttnBlockProblem& q, const Plan& plan, cudaStream_t stream) {
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    const auto* const work = static_cast<const __half*>(q.workspace);
    const AttentionProblem& a = q.attention;
    PooledMerge p;
    p.q = work + plan.q, p.kv = work + plan.kv, p.bias = a.bias_kind == AttentionBias::kDense ? in(a.bias) : nullptr;
    p.w = in(q.w_proj), p.offset = in(q.b_proj), p.x = in(q.x), p.residual = in(q.residual), p.y = static_cast<__half*>(q.y);
    p.tokens = static_cast<int>(q.tokens()), p.keys = static_cast<int>(q.pooled()), p.channels = q.channels, p.bias_heads = a.bias_heads, p.scale = a.scale * kLog2e;
    const MergeBlocks blocks(q);
    p.by_slices = FastDiv(static_cast<uint32_t>(blocks.slices)), p.by_row_blocks = FastDiv(static_cast<uint32_t>(blocks.rows));
    if (p.bias) p.by_period = FastDiv(static_cast<uint32_t>(std::min<int64_t>(a.bias_period, INT32_MAX)));
    const auto all = static_cast<uint32_t>(q.images * blocks.rows * blocks.slices);
    return with_merge(a.heads, [&](auto shape, auto kernel) {
        p.once = one_wave(all, kPooledMergeThreads, shape.kBytes);
        return launch_ahead(kernel, all, kPooledMergeThreads, shape.kBytes, stream, 1, p);
    });
}

template <class T> struct MeansProblem {
    const T* x;  // [images, tokens, channels]
    T* y;        // [pooled, channels]
    int64_t count;  // elements of y
    int channels, width, across, pool_h, pool_w;
    int64_t pooled, tokens;  // of an image
};
// A thread an element.
template <class T> __global__ void __launch_bounds__(256) pooled_means_kernel(const MeansProblem<T> p) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    const int64_t row = i / p.channels, image = row / p.pooled, within = row % p.pooled;
    const int64_t first = image * p.tokens + within / p.across * p.pool_h * p.width + within % p.across * p.pool_w;
    float sum = 0;
    for (int dy = 0; dy < p.pool_h; ++dy)
        for (int dx = 0; dx < p.pool_w; ++dx) sum += to_float(p.x[(first + int64_t{dy} * p.width + dx) * p.channels + i % p.channels]);
    p.y[i] = from_float<T>(sum / static_cast<float>(p.pool_h * p.pool_w));
}
template <class T> cudaError_t means(const PooledAttnBlockProblem& q, const Plan& plan, const T* x, T* y, cudaStream_t stream) {
    MeansProblem<T> p;
    p.x = x, p.y = y, p.count = plan.pooled * q.channels, p.channels = q.channels, p.width = q.grid_w, p.across = q.grid_w / q.pool_w, p.pool_h = q.pool_h, p.pool_w = q.pool_w;
    p.pooled = q.pooled(), p.tokens = q.tokens();
    const int64_t blocks = (p.count + 255) / 256;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    pooled_means_kernel<T><<<static_cast<uint32_t>(blocks), 256, 0, stream>>>(p);
    return cudaGetLastError();
}

// The last product where there are no tensor cores for it; `stream` may be `y`.
template <class T> struct PooledPlainOut {
    const T *bias, *stream;
    T* y;
    int columns;

    __device__ __forceinline__ int64_t row(int64_t r) const { return r * columns; }
    __device__ __forceinline__ void put(int64_t at, int column, float sum) const { y[at + column] = from_float<T>(to_float(stream[at + column]) + (sum + to_float(bias[column]))); }
};

// Whether there are tensor cores for products of these sizes, which are all multiples of 8 then.
template <class T> bool tiled(const PooledAttnBlockProblem& q, const Plan& plan) { return sizeof(T) == 2 && q.channels % 8 == 0 && plan.inner % 8 == 0 && aligned(q); }

template <class T> cudaError_t run(const PooledAttnBlockProblem& q, cudaStream_t stream) {
    const Plan plan(q);
    auto in = [](const void* p) { return static_cast<const T*>(p); };
    T *const first = static_cast<T*>(q.workspace), *const queries = first + plan.q, *const kv = first + plan.kv, *const pooled = first + plan.means, *const projected = first + plan.projected;
    const bool tensor_cores = tiled<T>(q, plan);
    bool summed = false;  // x + residual waits in y
    if (tensor_cores && heads_fit(q, plan)) {
        if (const cudaError_t status = heads(q, plan, stream); status != cudaSuccess) return status;
        if (merge_fits(q)) return merge(q, plan, stream);
    } else {
        auto linear = [&](const T* a, const void* w, const void* b, int64_t rows, int k, int n, T* out) {
            const BlockGemmProblem g = product(rows, k, n, a, w, b, out);
            if (const GemmPlan best = tensor_cores ? block_gemm_best(g) : GemmPlan{}; best.tile >= 0) return block_gemm(g, best, stream);
            return gemm_plain<T>({a, in(w), rows, k, n}, GemmPlainOut<T>{in(b), out, n}, stream);
        };
        LayerNormProblem norm;
        norm.dtype = q.dtype, norm.rows = plan.rows, norm.row = q.channels, norm.epsilon = q.epsilon;
        norm.x = q.x, norm.residual = q.residual, norm.scale = q.norm_scale, norm.bias = q.norm_bias;
        summed = q.residual != nullptr;
        norm.y = first, norm.sum = summed ? q.y : nullptr;
        LayerNormProblem second;
        second.dtype = q.dtype, second.rows = plan.pooled, second.row = q.channels, second.epsilon = q.pool_epsilon;
        second.x = projected, second.scale = q.pool_scale, second.bias = q.pool_bias, second.y = pooled;
        cudaError_t status = layer_norm(norm, stream);
        if (status == cudaSuccess) status = linear(first, q.w_q, q.b_q, plan.rows, q.channels, plan.inner, queries);
        if (status == cudaSuccess) status = means<T>(q, plan, first, pooled, stream);
        if (status == cudaSuccess) status = linear(pooled, q.w_pool, q.b_pool, plan.pooled, q.channels, q.channels, projected);
        if (status == cudaSuccess) status = layer_norm(second, stream);
        if (status == cudaSuccess) status = linear(pooled, q.w_kv, q.b_kv, plan.pooled, q.channels, 2 * plan.inner, kv);
        if (status != cudaSuccess) return status;
    }

    AttentionProblem attend = q.attention;
    attend.dtype = q.dtype, attend.batch = q.images, attend.queries = static_cast<int32_t>(q.tokens()), attend.keys = static_cast<int32_t>(q.pooled()), attend.value_dim = attend.dim;
    auto keys = [&](int part) { return HeadView{kv + int64_t{part} * plan.inner, q.pooled() * 2 * plan.inner, 2 * plan.inner, attend.dim}; };
    attend.q = HeadView{queries, q.tokens() * plan.inner, plan.inner, attend.dim}, attend.k = keys(0), attend.v = keys(1), attend.out = first;
    if (const cudaError_t status = attention(attend, stream); status != cudaSuccess) return status;

    if (const GemmPlan best = tensor_cores ? last_plan(q, plan) : GemmPlan{}; best.tile >= 0) return block_gemm(last_product(q, plan), best, stream);
    return gemm_plain<T>({first, in(q.w_proj), plan.rows, plan.inner, q.channels}, PooledPlainOut<T>{in(q.b_proj), summed ? in(q.y) : in(q.x), static_cast<T*>(q.y), q.channels}, stream);
}

}  // namespace

cudaError_t pooled_attn_block(const PooledAttnBlockProblem& q, cudaStream_t stream) {
    if (!valid(q)) return cudaErrorInvalidValue;
    if (q.images == 0) return cudaSuccess;
    if (!q.workspace || !aligned_to(16, q.workspace)) return cudaErrorInvalidValue;
    return q.dtype == DType::kHalf ? run<__half>(q, stream) : run<float>(q, stream);
}

int64_t pooled_attn_block_workspace(const PooledAttnBlockProblem& q) { return valid(q) ? Plan(q).total * (q.dtype == DType::kHalf ? 2 : 4) : 0; }

}  // namespace trt_opt
