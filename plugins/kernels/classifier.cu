// TrtOptClassifier: the mean over the tokens of an image, or one of them, normalized, times the weights of the classes.
//
// A warp has the weights of a class in registers before the kernel before is done, and takes in the pooled row as they lie. Of one token every warp
// normalizes the row itself. A mean is one of each cluster: its blocks share the rows of the image, all of them get all sums, and nothing goes through
// memory between the mean and the product. So a mean is computed by every cluster of an image, which for few tokens takes less than another kernel.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace trt_opt {
namespace {

template <class T> struct Classifier {
    const T *x, *residual;  // [images, tokens, row]
    const T* w;             // [classes, row]
    const void* b;          // [classes]
    void* y;                // [images, classes]
    int tokens, row, classes;
    int token;              // the one that counts, or -1
    bool norm, half_bias, half_out;
    float epsilon, inverse_row, inverse_tokens;
    int cluster;            // a power of two
    FastDiv by_blocks;      // of an image
    bool once;              // of one image: how the second-level cache keeps the weights

    __device__ __forceinline__ float bias(int column) const {
        return half_bias ? to_float(static_cast<const __half*>(b)[column]) : static_cast<const float*>(b)[column];
    }
    __device__ __forceinline__ void give(int64_t image, int column, float v) const {
        const int64_t at = image * classes + column;
        if (half_out) static_cast<__half*>(y)[at] = from_float<__half>(v);
        else static_cast<float*>(y)[at] = v;
    }
};

constexpr int kWarps = 8, kThreads = 32 * kWarps, kVec = 16;  // of a block; bytes of an access
constexpr int kMaxCluster = 8;

// The weights of a class, VPL accesses a lane; zeros past the end of the row and behind the last class.
template <class T, int VPL> __device__ __forceinline__ void load_weights(Pack<T, kVec / sizeof(T)> (&w)[VPL], float& b, const Classifier<T>& p, int column, int packs, int lane) {
    const bool exists = column < p.classes;
    const uint64_t policy = ptx::weight_policy(p.once);
    const auto* const from = reinterpret_cast<const uint4*>(p.w + int64_t{column} * p.row);
#pragma unroll
    for (int i = 0; i < VPL; ++i) {
        w[i] = {};
        if (exists && i * 32 + lane < packs) w[i].raw = ptx::load16(from + i * 32 + lane, policy);
    }
    b = exists ? p.bias(column) : 0.f;
}

// A whole row a warp, VPL accesses a lane. Blocks: those of an image, a multiple of the cluster, for each image. Shared memory, but for one token: sums of
// each warp's rows [warps, row], which the pooled row then takes the place of, and the sums of each block of the cluster [cluster, row].
template <class T, int VPL> __global__ void __launch_bounds__(kThreads) classifier_kernel(const __grid_constant__ Classifier<T> p) {
    using namespace ptx;
    constexpr int VEC = kVec / sizeof(T);
    extern __shared__ float4 memory[];
    let_next_start();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, packs = p.row / VEC, cluster = p.cluster;
    uint32_t block;
    const int64_t image = p.by_blocks.divmod(blockIdx.x, block);
    const int rank = static_cast<int>(block) & (cluster - 1), step = static_cast<int>(p.by_blocks.divisor) * kWarps;
    int column = static_cast<int>(block) * kWarps + warp;
    // Constants: no need to wait for the kernels before.
    Pack<T, VEC> w[VPL];
    float b;
    load_weights<T, VPL>(w, b, p, column, packs, lane);
    if (cluster > 1) cluster_arrive_relaxed();
    wait_for_previous();

    const bool one = p.token >= 0;
    const int64_t begin = image * p.tokens * p.row;
    const int end = one ? p.token + 1 : p.tokens;
    float pooled[VPL][VEC] = {};
#pragma unroll 1
    for (int t = one ? p.token : rank * kWarps + warp; t < end; t += cluster * kWarps) {
        const int64_t at = begin + int64_t{t} * p.row;
        Pack<T, VEC> s[VPL];
#pragma unroll
        for (int i = 0; i < VPL; ++i)
            if (i * 32 + lane < packs) s[i].raw = *(reinterpret_cast<const uint4*>(p.x + at) + i * 32 + lane);
        if (p.residual) {
            Pack<T, VEC> r[VPL];
#pragma unroll
            for (int i = 0; i < VPL; ++i)
                if (i * 32 + lane < packs) r[i].raw = *(reinterpret_cast<const uint4*>(p.residual + at) + i * 32 + lane);
#pragma unroll
            for (int i = 0; i < VPL; ++i) add_packs<T, VEC>(s[i], r[i]);
        }
        float mean = 0.f, factor = 1.f;
        if (p.norm) {
            // Past the end of the row are zeros.
            float sum = 0.f, square = 0.f;
#pragma unroll
            for (int i = 0; i < VPL; ++i) {
                float v[VEC], part = 0.f;
                s[i].floats(v);
#pragma unroll
                for (int e = 0; e < VEC; ++e) part += v[e];
                sum += part;
            }
            mean = group_sum<32>(sum) * p.inverse_row;
#pragma unroll
            for (int i = 0; i < VPL; ++i) {
                float v[VEC], part = 0.f;
                s[i].floats(v);
#pragma unroll
                for (int e = 0; e < VEC; ++e) {
                    const float d = v[e] - mean;
                    part = fmaf(d, d, part);
                }
                if (i * 32 + lane < packs) square += part;
            }
            factor = rsqrtf(group_sum<32>(square) * p.inverse_row + p.epsilon);
        }
        // What comes past the end of the row meets weights of zero.
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            float v[VEC];
            s[i].floats(v);
#pragma unroll
            for (int e = 0; e < VEC; ++e) pooled[i][e] = fmaf(v[e] - mean, factor, pooled[i][e]);
        }
    }
    if (!one) {
        float *const sums = reinterpret_cast<float*>(memory), *const received = sums + kWarps * p.row;
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            const int c = (i * 32 + lane) * VEC;
            if (c >= p.row) continue;
#pragma unroll
            for (int e = 0; e < VEC; e += 4)
                *reinterpret_cast<float4*>(sums + warp * p.row + c + e) = make_float4(pooled[i][e], pooled[i][e + 1], pooled[i][e + 2], pooled[i][e + 3]);
        }
        __syncthreads();
        if (cluster > 1) cluster_wait();  // all blocks are there to be written to
        const auto add = [](float4& a, const float4& b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; };
        for (int c = 4 * threadIdx.x; c < p.row; c += 4 * kThreads) {
            float4 total{};
#pragma unroll
            for (int i = 0; i < kWarps; ++i) add(total, *reinterpret_cast<const float4*>(sums + i * p.row + c));
            float* const to = received + rank * p.row + c;
            if (cluster > 1) {
                uint4 raw;
                memcpy(&raw, &total, sizeof(raw));
                for (int z = 0; z < cluster; ++z) store_remote(remote(shared_address(to), z), raw);
            } else {
                *reinterpret_cast<float4*>(to) = total;
            }
        }
        if (cluster > 1) {
            cluster_arrive();
            cluster_wait();
        } else {
            __syncthreads();
        }
        for (int c = 4 * threadIdx.x; c < p.row; c += 4 * kThreads) {
            float4 total{};
            for (int z = 0; z < cluster; ++z) add(total, *reinterpret_cast<const float4*>(received + z * p.row + c));
            total.x *= p.inverse_tokens, total.y *= p.inverse_tokens, total.z *= p.inverse_tokens, total.w *= p.inverse_tokens;
            *reinterpret_cast<float4*>(sums + c) = total;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            const int c = (i * 32 + lane) * VEC;
            if (c >= p.row) continue;
#pragma unroll
            for (int e = 0; e < VEC; e += 4) {
                const float4 v = *reinterpret_cast<const float4*>(sums + c + e);
                pooled[i][e] = v.x, pooled[i][e + 1] = v.y, pooled[i][e + 2] = v.z, pooled[i][e + 3] = v.w;
            }
        }
    }
#pragma unroll 1
    while (column < p.classes) {
        Pack<T, VEC> next[VPL];
        float next_b;
        load_weights<T, VPL>(next, next_b, p, column + step, packs, lane);
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            float v[VEC], part = 0.f;
            w[i].floats(v);
#pragma unroll
            for (int e = 0; e < VEC; ++e) part = fmaf(v[e], pooled[i][e], part);
            sum += part;
        }
        sum = group_sum<32>(sum);
        if (lane == 0) p.give(image, column, sum + b);
#pragma unroll
        for (int i = 0; i < VPL; ++i) w[i] = next[i];
        b = next_b;
        column += step;
    }
}

// Rows of any length and alignment: a block pools an image, kTokens tokens at once, for some of the classes. Shared memory: the pooled row.
constexpr int kTokens = 128;
template <class T> __global__ void __launch_bounds__(kThreads) classifier_any_kernel(const __grid_constant__ Classifier<T> p) {
    __shared__ float means[kTokens], factors[kTokens];
    extern __shared__ float4 memory[];
    float* const pooled = reinterpret_cast<float*>(memory);
    ptx::let_next_start();
    ptx::wait_for_previous();
    uint32_t block;
    const int64_t image = p.by_blocks.divmod(blockIdx.x, block);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t begin = image * p.tokens * p.row;
    auto value = [&](int t, int c) {
        const int64_t at = begin + int64_t{t} * p.row + c;
        return p.residual ? to_float(from_float<T>(to_float(p.x[at]) + to_float(p.residual[at]))) : to_float(p.x[at]);
    };
    // A thread has the same columns all the time.
    for (int c = threadIdx.x; c < p.row; c += kThreads) pooled[c] = 0.f;
    const int end = p.token >= 0 ? p.token + 1 : p.tokens;
    for (int from = p.token >= 0 ? p.token : 0; from < end; from += kTokens) {
        const int count = min(kTokens, end - from);
        for (int t = warp; t < count; t += kWarps) {
            float mean = 0.f, factor = 1.f;
            if (p.norm) {
                float sum = 0.f, square = 0.f;
                for (int c = lane; c < p.row; c += 32) sum += value(from + t, c);
                mean = group_sum<32>(sum) * p.inverse_row;
                for (int c = lane; c < p.row; c += 32) {
                    const float d = value(from + t, c) - mean;
                    square = fmaf(d, d, square);
                }
                factor = rsqrtf(group_sum<32>(square) * p.inverse_row + p.epsilon);
            }
            if (lane == 0) means[t] = mean, factors[t] = factor;
        }
        __syncthreads();
        for (int c = threadIdx.x; c < p.row; c += kThreads) {
            float sum = pooled[c];
            for (int t = 0; t < count; ++t) sum = fmaf(value(from + t, c) - means[t], factors[t], sum);
            pooled[c] = sum;
        }
        __syncthreads();
    }
    for (int column = static_cast<int>(block) * kWarps + warp; column < p.classes; column += static_cast<int>(p.by_blocks.divisor) * kWarps) {
        const T* const w = p.w + int64_t{column} * p.row;
        float sum = 0.f;
        for (int c = lane; c < p.row; c += 32) sum = fmaf(to_float(w[c]), pooled[c], sum);
        sum = group_sum<32>(sum);
        if (lane == 0) p.give(image, column, fmaf(sum, p.inverse_tokens, p.bias(column)));
    }
}

// How an image is spread over blocks: a class a warp as long as there are multiprocessors for it.
struct Cut {
    int blocks = 1, cluster = 1;
    size_t shared = 0;
};
Cut cut_of(int64_t images, int tokens, int row, int classes, bool one) {
    Cut cut;
    const int free = static_cast<int>(std::max<int64_t>(1, device().multiprocessors / images));
    // Up to where there are rows for all warps.
    if (device().major >= 9 && !one)
        while (cut.cluster < kMaxCluster && cut.cluster * 2 <= free && cut.cluster * kWarps < tokens) cut.cluster *= 2;
    // Of clusters.
    const int possible = std::max(1, free / cut.cluster), wanted = (classes - 1) / (kWarps * cut.cluster) + 1;
    cut.blocks = cut.cluster * std::min(possible, wanted);
    cut.shared = one ? 0 : sizeof(float) * size_t{1} * (kWarps + cut.cluster) * row;
    return cut;
}

// Accesses of a lane, at most: rows of 4 KB of halves, of 6 KB of floats.
template <class T> constexpr int kMostAccesses = sizeof(T) == 2 ? 8 : 12;
template <class T> cudaError_t classifier_rows(const Classifier<T>& p, uint32_t blocks, const Cut& cut, cudaStream_t stream) {
    const auto launch = [&](auto kernel) { return launch_ahead(kernel, blocks, kThreads, cut.shared, stream, cut.cluster, p); };
    const int accesses = (p.row * static_cast<int>(sizeof(T)) / kVec + 31) / 32;
    if (accesses <= 1) return launch(classifier_kernel<T, 1>);
    if (accesses <= 2) return launch(classifier_kernel<T, 2>);
    if (accesses <= 3) return launch(classifier_kernel<T, 3>);
    if (accesses <= 4) return launch(classifier_kernel<T, 4>);
    if (accesses <= 6) return launch(classifier_kernel<T, 6>);
    if (accesses <= 8) return launch(classifier_kernel<T, 8>);
    if constexpr (kMostAccesses<T> > 8) return launch(classifier_kernel<T, kMostAccesses<T>>);
    return cudaErrorInvalidValue;
}

template <class T> cudaError_t classifier_typed(const ClassifierProblem& q, cudaStream_t stream) {
    const int tokens = static_cast<int>(q.tokens), row = q.row, classes = q.classes;
    const size_t out = q.out == DType::kHalf ? sizeof(__half) : sizeof(float);
    const bool one = q.token >= 0;
    constexpr int64_t kStep = int64_t{1} << 15;  // images a launch
    for (int64_t first = 0; first < q.images; first += kStep) {
        const int64_t images = std::min(kStep, q.images - first), begin = first * q.tokens * row;
        Cut cut = cut_of(images, tokens, row, classes, one);
        Classifier<T> p{static_cast<const T*>(q.x) + begin, q.residual ? static_cast<const T*>(q.residual) + begin : nullptr, static_cast<const T*>(q.w), q.b,
                        static_cast<char*>(q.y) + first * classes * out, tokens, row, classes, q.token, q.norm, q.bias == DType::kHalf, q.out == DType::kHalf, q.epsilon,
                        1.f / static_cast<float>(row), one ? 1.f : 1.f / static_cast<float>(tokens), cut.cluster, FastDiv(static_cast<uint32_t>(cut.blocks)), images == 1};
        const uint32_t blocks = static_cast<uint32_t>(images * cut.blocks);
        const bool whole = row % (kVec / static_cast<int>(sizeof(T))) == 0 && row * static_cast<int64_t>(sizeof(T)) <= int64_t{32} * kVec * kMostAccesses<T> &&
                           aligned_to(kVec, p.x, p.residual, p.w) && cut.shared <= static_cast<size_t>(device().shared);
        const cudaError_t status = whole ? classifier_rows(p, blocks, cut, stream) : launch_ahead(classifier_any_kernel<T>, blocks, kThreads, sizeof(float) * size_t{1} * row, stream, 1, p);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace

cudaError_t classifier(const ClassifierProblem& q, cudaStream_t stream) {
    constexpr int64_t kMost = int64_t{1} << 30;  // tokens
    const bool valid = q.images >= 0 && q.tokens >= 1 && q.tokens <= kMost && q.token < q.tokens && q.token >= -1 && q.row >= 1 && q.row <= kClassifierMaxRow && q.classes >= 0 && q.classes <= kClassifierMaxClasses;
    if (!valid) return cudaErrorInvalidValue;
    if (q.images == 0 || q.classes == 0) return cudaSuccess;
    return q.dtype == DType::kHalf ? classifier_typed<__half>(q, stream) : classifier_typed<float>(q, stream);
}

}  // namespace trt_opt
