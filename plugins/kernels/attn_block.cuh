// The attention block for one element type: norm, product, attention, product, each a kernel of its own.
#pragma once

#include <algorithm>

#include "gemm_plain.cuh"
#include "kernels.h"
#include "window_map.cuh"

namespace trt_opt {

// Row `r` of the second product: added to its token, if it has one; row `r` is token `r` unless windows map it. `stream` may be `y`.
template <class T> struct AttnProjOut {
    const T* bias;
    const T* stream;
    T* y;
    int columns;
    bool mapped;
    WindowMap map;

    __device__ __forceinline__ int64_t row(int64_t r) const { return (mapped ? map.source(static_cast<uint32_t>(r)) : r) * columns; }
    __device__ __forceinline__ void put(int64_t at, int column, float sum) const {
        if (at >= 0) y[at + column] = from_float<T>(to_float(stream[at + column]) + (sum + to_float(bias[column])));
    }
};

// Where the steps leave what they give, in elements from the workspace's start.
struct AttnPlan {
    int64_t rows;        // of all groups of tokens
    int64_t qkv, total;  // normalized rows come first, and later the attention's result in their place

    // Of problems that are valid.
    explicit AttnPlan(const AttnBlockProblem& q) {
        const int64_t inner = int64_t{q.attention.heads} * q.attention.dim;
        rows = q.images * q.groups() * q.group_tokens();
        qkv = (rows * std::max<int64_t>(q.channels, inner) + 127) / 128 * 128;
        total = qkv + rows * 3 * inner;
    }
};

template <class T> cudaError_t attn_block_typed(const AttnBlockProblem& q, cudaStream_t stream) {
    const AttnPlan plan(q);
    const WindowGrid& g = q.attention.window;
    const int inner = q.attention.heads * q.attention.dim;
    const int64_t image = q.image_tokens(), cut = q.groups() * q.group_tokens();  // rows
    T *const first = static_cast<T*>(q.workspace), *const qkv = first + plan.qkv, *const y = static_cast<T*>(q.y);

    LayerNormProblem norm;
    norm.dtype = q.dtype, norm.rows = q.images * image, norm.row = q.channels, norm.epsilon = q.epsilon, norm.window = g;
    norm.x = q.x, norm.residual = q.residual, norm.scale = q.norm_scale, norm.bias = q.norm_bias;
    // The sum waits where it is read and written last, element by element.
    norm.y = first, norm.sum = q.residual ? y : nullptr;
    cudaError_t status = layer_norm(norm, stream);
    if (status != cudaSuccess) return status;

    status = gemm_plain<T>({first, static_cast<const T*>(q.w_qkv), plan.rows, q.channels, 3 * inner}, GemmPlainOut<T>{static_cast<const T*>(q.b_qkv), qkv, 3 * inner}, stream);
    if (status != cudaSuccess) return status;

    AttentionProblem attend = q.attention;
    attend.dtype = q.dtype, attend.batch = q.images * q.groups();
    attend.queries = attend.keys = static_cast<int32_t>(q.group_tokens());
    attend.value_dim = attend.dim;
    auto part = [&](int i) { return HeadView{qkv + int64_t{i} * inner, q.group_tokens() * 3 * inner, 3 * inner, attend.dim}; };
    attend.q = part(0), attend.k = part(1), attend.v = part(2);
    attend.out = first;
    status = attention(attend, stream);
    if (status != cudaSuccess) return status;

    const T* s = q.residual ? y : static_cast<const T*>(q.x);
    const int64_t step = std::max<int64_t>(1, (int64_t{1} << 30) / std::max(image, cut));  // images a launch
    for (int64_t from = 0; from < q.images; from += step) {
        const int64_t rows = std::min(step, q.images - from) * cut, token = from * image * q.channels;
        const GemmPlainArgs<T> product{first + from * cut * inner, static_cast<const T*>(q.w_proj), rows, inner, q.channels};
        status = gemm_plain<T>(product, AttnProjOut<T>{static_cast<const T*>(q.b_proj), s + token, y + token, q.channels, g.used(), g.used() ? WindowMap(g) : WindowMap()}, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace trt_opt
