// TrtOptGelu: y = gelu(x + bias), nothing but memory traffic: every element is read and written once.
//
// A block has a stretch of the tensor as it lies in memory, kUnroll accesses a thread, all of them under way before the first is used. Small
// tensors have one access a thread, so that more multiprocessors take part.
#include <algorithm>

#include "gelu.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace trt_opt {
namespace {

constexpr int kThreads = 256, kUnroll = 4;
constexpr int kBytes = 16;  // of an access, where the tensors allow it

// `count` accesses of VEC elements, by_row of them a row; y may be x.
template <class T, int VEC, int UNROLL, bool BIAS, bool TANH>
__global__ void __launch_bounds__(kThreads) gelu_kernel(const T* x, const T* bias, T* y, const uint32_t count, const FastDiv by_row) {
    using Raw = typename Pack<T, VEC>::Raw;
    ptx::let_next_start();
    ptx::wait_for_previous();
    const uint32_t first = blockIdx.x * (kThreads * UNROLL) + threadIdx.x;
    Pack<T, VEC> v[UNROLL], b[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        const uint32_t at = first + i * kThreads;
        // Read once, so that the cache may keep what the next kernel reads.
        if (at < count) v[i].raw = __ldcs(reinterpret_cast<const Raw*>(x) + at);
    }
    if constexpr (BIAS) {
#pragma unroll
        for (int i = 0; i < UNROLL; ++i) {
            const uint32_t at = first + i * kThreads;
            uint32_t column;
            by_row.divmod(at, column);
            if (at < count) b[i].raw = *(reinterpret_cast<const Raw*>(bias) + column);
        }
    }
#pragma unroll
    for (int i = 0; i < UNROLL; ++i) {
        const uint32_t at = first + i * kThreads;
        float f[VEC];
        v[i].floats(f);
        if constexpr (BIAS) {
            float o[VEC];
            b[i].floats(o);
#pragma unroll
            for (int e = 0; e < VEC; ++e) f[e] += o[e];
        }
#pragma unroll
        for (int e = 0; e < VEC; ++e) f[e] = TANH ? gelu_tanh(f[e]) : gelu_erf(f[e]);
        if (at < count) *(reinterpret_cast<Raw*>(y) + at) = Pack<T, VEC>::of(f).raw;
    }
}

template <class T, int VEC, int UNROLL, bool BIAS> cudaError_t launch(const T* x, const T* bias, T* y, uint32_t count, const FastDiv& by_row, bool tanh, cudaStream_t stream) {
    constexpr uint32_t kBlock = kThreads * UNROLL;
    const uint32_t blocks = (count + kBlock - 1) / kBlock;
    return tanh ? launch_ahead(gelu_kernel<T, VEC, UNROLL, BIAS, true>, blocks, kThreads, 0, stream, 1, x, bias, y, count, by_row)
                : launch_ahead(gelu_kernel<T, VEC, UNROLL, BIAS, false>, blocks, kThreads, 0, stream, 1, x, bias, y, count, by_row);
}

template <class T, int VEC, bool BIAS> cudaError_t gelu_rows(const GeluProblem& q, cudaStream_t stream) {
    const int64_t across = q.row / VEC, step = std::max<int64_t>(1, (int64_t{1} << 30) / across);  // accesses a row, rows a launch
    const FastDiv by_row(static_cast<uint32_t>(across));
    for (int64_t first = 0; first < q.rows; first += step) {
        const T* const x = static_cast<const T*>(q.x) + first * q.row;
        T* const y = static_cast<T*>(q.y) + first * q.row;
        const T* const bias = static_cast<const T*>(q.bias);
        const auto count = static_cast<uint32_t>(std::min(step, q.rows - first) * across);
        // Two blocks a multiprocessor at least.
        const bool large = count >= uint32_t{2} * kThreads * kUnroll * static_cast<uint32_t>(device().multiprocessors);
        const cudaError_t status = large ? launch<T, VEC, kUnroll, BIAS>(x, bias, y, count, by_row, q.tanh, stream) : launch<T, VEC, 1, BIAS>(x, bias, y, count, by_row, q.tanh, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

template <class T> cudaError_t gelu_typed(GeluProblem q, cudaStream_t stream) {
    constexpr int kVec = kBytes / static_cast<int>(sizeof(T));
    if (!q.bias) {
        // Where a row ends does not matter.
        const int64_t all = q.rows * q.row;
        q.row = all % kVec == 0 ? kVec : 1, q.rows = all / q.row;
    }
    const bool whole = q.row % kVec == 0 && aligned_to(kBytes, q.x, q.bias, q.y);
    if (q.bias) return whole ? gelu_rows<T, kVec, true>(q, stream) : gelu_rows<T, 1, true>(q, stream);
    return whole ? gelu_rows<T, kVec, false>(q, stream) : gelu_rows<T, 1, false>(q, stream);
}

}  // namespace

cudaError_t gelu(const GeluProblem& q, cudaStream_t stream) {
    constexpr int64_t kMost = int64_t{1} << 30;  // elements of a row
    if (q.rows < 0 || q.row < 0 || q.row > kMost) return cudaErrorInvalidValue;
    if (q.rows == 0 || q.row == 0) return cudaSuccess;
    return q.dtype == DType::kHalf ? gelu_typed<__half>(q, stream) : gelu_typed<float>(q, stream);
}

}  // namespace trt_opt
