// The MLP block without tensor cores: fp32, and fp16 whose pointers or sizes do not suit 16-byte accesses.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace trt_opt {

template <class T> struct MlpPlainArgs {
    const T *x, *residual, *scale, *bias, *w1, *b1, *w2, *b2;
    T* y;
    int64_t rows;
    int channels, hidden;
    float epsilon;
    bool tanh_gelu, norm;
};

constexpr int kMlpPlainThreads = 256;

// A block takes ROWS rows; a thread a hidden column, then output columns. Roundings are those of the fp16 kernel.
template <class T, int ROWS> __global__ void __launch_bounds__(kMlpPlainThreads) mlp_plain_kernel(const MlpPlainArgs<T> p) {
    extern __shared__ float floats[];
    const int channels = p.channels, tid = threadIdx.x, lane = tid % 32;
    float *const normal = floats, *const sums = normal + ROWS * channels, *const hidden = sums + ROWS * channels;
    const int64_t row0 = int64_t{blockIdx.x} * ROWS;
    auto rounded = [](float v) { return to_float(from_float<T>(v)); };
    auto stream = [&](int r, int c) {
        if (row0 + r >= p.rows) return 0.f;
        const int64_t at = (row0 + r) * channels + c;
        const float v = to_float(p.x[at]);
        return p.residual ? rounded(v + to_float(p.residual[at])) : v;
    };
    for (int r = tid / 32; r < ROWS; r += kMlpPlainThreads / 32) {
        if (!p.norm) {
            for (int c = lane; c < channels; c += 32) normal[r * channels + c] = stream(r, c), sums[r * channels + c] = 0;
            continue;
        }
        float sum = 0, square = 0;
        for (int c = lane; c < channels; c += 32) sum += stream(r, c);
        const float mean = group_sum<32>(sum) / static_cast<float>(channels);
        for (int c = lane; c < channels; c += 32) {
            const float d = stream(r, c) - mean;
            square = fmaf(d, d, square);
        }
        const float factor = 1.f / sqrtf(group_sum<32>(square) / static_cast<float>(channels) + p.epsilon);
        for (int c = lane; c < channels; c += 32) {
            normal[r * channels + c] = rounded(fmaf((stream(r, c) - mean) * factor, to_float(p.scale[c]), to_float(p.bias[c])));
            sums[r * channels + c] = 0;
        }
    }
    for (int first = 0; first < p.hidden; first += kMlpPlainThreads) {
        __syncthreads();
        const int column = first + tid, columns = min(kMlpPlainThreads, p.hidden - first);
        if (column < p.hidden) {
            float sum[ROWS] = {};
            for (int c = 0; c < channels; ++c) {
                const float w = to_float(p.w1[int64_t{c} * p.hidden + column]);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) sum[r] = fmaf(normal[r * channels + c], w, sum[r]);
            }
            const float b = to_float(p.b1[column]);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float v = sum[r] + b;
                const float phi = p.tanh_gelu ? 0.5f * (1.f + tanhf(0.79788456f * (v + 0.044715f * v * v * v))) : 0.5f * (1.f + erff(v * 0.70710678f));
                hidden[r * kMlpPlainThreads + tid] = rounded(v * phi);
            }
        }
        __syncthreads();
        for (int c = tid; c < channels; c += kMlpPlainThreads) {
            float sum[ROWS] = {};
            for (int j = 0; j < columns; ++j) {
                const float w = to_float(p.w2[int64_t{first + j} * channels + c]);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) sum[r] = fmaf(hidden[r * kMlpPlainThreads + j], w, sum[r]);
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) sums[r * channels + c] += sum[r];
        }
    }
    // Each thread finds the sums that it made itself.
    for (int c = tid; c < channels; c += kMlpPlainThreads) {
        const float b = to_float(p.b2[c]);
        for (int r = 0; r < ROWS && row0 + r < p.rows; ++r) p.y[(row0 + r) * channels + c] = from_float<T>(stream(r, c) + (sums[r * channels + c] + b));
    }
}

template <class T, int ROWS> cudaError_t launch_mlp_plain(const MlpPlainArgs<T>& p, cudaStream_t stream) {
    const int64_t blocks = (p.rows + ROWS - 1) / ROWS;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    const size_t shared = sizeof(float) * ROWS * (2 * p.channels + kMlpPlainThreads);
    mlp_plain_kernel<T, ROWS><<<static_cast<uint32_t>(blocks), kMlpPlainThreads, shared, stream>>>(p);
    return cudaGetLastError();
}

template <class T> cudaError_t mlp_plain(const MlpBlockProblem& q, cudaStream_t stream) {
    auto in = [](const void* p) { return static_cast<const T*>(p); };
    const MlpPlainArgs<T> p{in(q.x), in(q.residual), in(q.scale), in(q.bias), in(q.w1), in(q.b1), in(q.w2), in(q.b2), static_cast<T*>(q.y),
                            q.rows, q.channels, q.hidden, q.epsilon, q.tanh_gelu, q.norm};
    // Within the 48 KB that need no leave.
    return q.channels <= 1408 ? launch_mlp_plain<T, 4>(p, stream) : launch_mlp_plain<T, 2>(p, stream);
}

}  // namespace trt_opt
