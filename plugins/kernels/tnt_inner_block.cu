// Chooses between the one kernel for a block over words and several, and runs the several.
#include <algorithm>

#include "gemm_plain.cuh"
#include "kernels.h"
#include "tnt_inner_launch.cuh"

namespace trt_opt {
namespace {

// What the device and the pointers say is not asked for in `workspace`, so room is kept for the case that they do not suit.
bool fits(const TntInnerBlockProblem& q, InnerArgs& p) { return device().major >= 8 && tnt_inner_arguments(q, p) && 16 * p.shared <= device().shared; }

// Of a product: with its offset, then through GELU or added to `stream`.
template <class T> struct InnerOut {
    const T* bias;
    const T* stream;  // or null
    T* y;
    int columns;
    Activation activation;

    __device__ __forceinline__ int64_t row(int64_t r) const { return r * columns; }
    __device__ __forceinline__ void put(int64_t at, int column, float sum) const {
        float v = sum + to_float(bias[column]);
        if (activation == Activation::kGelu) v *= 0.5f * (1.f + erff(v * 0.70710678f));
        if (activation == Activation::kGeluTanh) v *= 0.5f * (1.f + tanhf(0.79788456f * (v + 0.044715f * v * v * v)));
        if (stream) v += to_float(stream[at + column]);
        y[at + column] = from_float<T>(v);
    }
};

// Elements of the workspace: normalized rows, and later the attention's result; queries, keys and values, and later the hidden
// columns; the residual stream between the two halves.
struct Rooms {
    int64_t wide, stream, total;

    explicit Rooms(const TntInnerBlockProblem& q) {
        const int64_t rows = q.patches * q.tokens;
        auto room = [](int64_t elements) { return (elements + 127) / 128 * 128; };
        wide = room(rows * q.channels);
        stream = wide + room(rows * std::max(3 * q.channels, q.hidden));
        total = stream + room(rows * q.channels);
    }
};

template <class T> cudaError_t in_steps(const TntInnerBlockProblem& q, cudaStream_t stream) {
    const Rooms rooms(q);
    const int c = q.channels, d = c / q.heads;
    const int64_t rows = q.patches * q.tokens;
    T *const first = static_cast<T*>(q.workspace), *const wide = first + rooms.wide, *const sum = first + rooms.stream;
    auto in = [](const void* p) { return static_cast<const T*>(p); };
    auto normalize = [&](const void* x, const void* scale, const void* bias, float epsilon) {
        LayerNormProblem norm;
        norm.dtype = q.dtype, norm.epsilon = epsilon, norm.x = x, norm.scale = scale, norm.bias = bias, norm.y = first;
        norm.rows = q.whole ? q.patches : rows, norm.row = q.whole ? int64_t{q.tokens} * c : c;
        return layer_norm(norm, stream);
    };
    auto product = [&](const T* a, int k, const void* w, const void* bias, int n, const void* added, T* y, Activation activation) {
        return gemm_plain<T>({a, in(w), rows, k, n}, InnerOut<T>{in(bias), in(added), y, n, activation}, stream);
    };
    auto attend = [&] {
        AttentionProblem a;
        a.dtype = q.dtype, a.batch = q.patches, a.heads = q.heads, a.queries = a.keys = q.tokens, a.dim = a.value_dim = d, a.scale = q.scale;
        auto part = [&](int i) { return HeadView{wide + int64_t{i} * c, int64_t{q.tokens} * 3 * c, 3 * c, d}; };
        a.q = part(0), a.k = part(1), a.v = part(2), a.out = first;
        return attention(a, stream);
    };
    cudaError_t status = normalize(q.x, q.scale1, q.bias1, q.epsilon1);
    if (status == cudaSuccess) status = product(first, c, q.w_qkv, q.b_qkv, 3 * c, nullptr, wide, Activation::kNone);
    if (status == cudaSuccess) status = attend();
    if (status == cudaSuccess) status = product(first, c, q.w_proj, q.b_proj, c, q.x, sum, Activation::kNone);
    if (status == cudaSuccess) status = normalize(sum, q.scale2, q.bias2, q.epsilon2);
    if (status == cudaSuccess) status = product(first, c, q.w1, q.b1, q.hidden, nullptr, wide, q.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu);
    if (status == cudaSuccess) status = product(wide, q.hidden, q.w2, q.b2, c, sum, static_cast<T*>(q.y), Activation::kNone);
    return status;
}

}  // namespace

cudaError_t tnt_inner_block(const TntInnerBlockProblem& q, cudaStream_t stream) {
    if (!tnt_inner_valid(q)) return cudaErrorInvalidValue;
    if (q.patches == 0) return cudaSuccess;
    InnerArgs p;
    if (fits(q, p)) return q.channels / q.heads <= 8 ? launch_tnt_inner_8(p, stream) : launch_tnt_inner_16(p, stream);
    if (!q.workspace || !aligned_to(16, q.workspace)) return cudaErrorInvalidValue;
    return q.dtype == DType::kHalf ? in_steps<__half>(q, stream) : in_steps<float>(q, stream);
}

int64_t tnt_inner_block_workspace(const TntInnerBlockProblem& q) {
    if (!tnt_inner_valid(q)) return 0;
    return Rooms(q).total * (q.dtype == DType::kHalf ? 2 : 4);
}

}  // namespace trt_opt
