// TrtOptNormPool: layer norm of every token, then the mean over the tokens of each image.
//
// The mean is linear in scale and bias, so it is taken of (s - mean) * factor: scale and bias come once, at the end. A warp has a
// row at a time in registers, and keeps the sums of its rows there. On sm_90 few images are spread over clusters, whose blocks
// share the rows of an image; each block then ends some of its columns.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace trt_opt {
namespace {

template <class T> struct NormPool {
    const T *x, *residual;   // [images, tokens, row]
    const T *scale, *bias;   // [row]
    T* y;                    // [images, row]
    int tokens, row;
    float epsilon, inverse_row, inverse_tokens;
    int own;                 // columns that a block of a cluster ends; even
    FastDiv by_cluster, by_own_pairs;
};

constexpr int kWarps = 8, kVec = 16;  // warps of a block at most; bytes of an access
constexpr int kMaxCluster = 8;
constexpr int kShared = 48 * 1024;    // what every device gives a block without being asked

// A whole row a warp, VPL accesses a lane. Blocks: images * cluster. Shared memory: sums of each warp's rows [warps, row], then the
// sums of all blocks of the cluster over this one's columns [cluster, own].
template <class T, bool RESIDUAL, int VPL> __global__ void __launch_bounds__(32 * kWarps) norm_pool_kernel(const __grid_constant__ NormPool<T> p) {
    using namespace ptx;
    constexpr int VEC = kVec / sizeof(T);
    extern __shared__ float4 memory[];
    let_next_start();
    float* const sums = reinterpret_cast<float*>(memory);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32, threads = blockDim.x;
    float* const received = sums + warps * p.row;
    uint32_t rank;
    const int64_t image = p.by_cluster.divmod(blockIdx.x, rank);
    const int cluster = p.by_cluster.divisor, packs = p.row / VEC, first = static_cast<int>(rank) * p.own, columns = min(p.own, p.row - first);
    // Only asks the second-level cache, which has what the kernels before write: no need to wait for them.
    constexpr int kLine = 128 / sizeof(T);
    for (int c = threadIdx.x * kLine; c < columns + kLine; c += threads * kLine) {
        const int at = min(first + c, p.row - 1);
        prefetch_l2(p.scale + at), prefetch_l2(p.bias + at);
    }
    if (cluster > 1) cluster_arrive();
    wait_for_previous();

    const int64_t begin = image * p.tokens * p.row;
    float acc[VPL][VEC] = {};
#pragma unroll 1
    for (int t = static_cast<int>(rank) * warps + warp; t < p.tokens; t += cluster * warps) {
        const int64_t at = begin + int64_t{t} * p.row;
        Pack<T, VEC> s[VPL];
#pragma unroll
        for (int i = 0; i < VPL; ++i)
            if (i * 32 + lane < packs) s[i].raw = *(reinterpret_cast<const uint4*>(p.x + at) + i * 32 + lane);
        if constexpr (RESIDUAL) {
            Pack<T, VEC> r[VPL];
#pragma unroll
            for (int i = 0; i < VPL; ++i)
                if (i * 32 + lane < packs) r[i].raw = *(reinterpret_cast<const uint4*>(p.residual + at) + i * 32 + lane);
#pragma unroll
            for (int i = 0; i < VPL; ++i) add_packs<T, VEC>(s[i], r[i]);
        }
        // Past the end of the row are zeros.
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            float v[VEC], part = 0.f;
            s[i].floats(v);
#pragma unroll
            for (int e = 0; e < VEC; ++e) part += v[e];
            sum += part;
        }
        const float mean = group_sum<32>(sum) * p.inverse_row;
        float square = 0.f;
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
        const float factor = rsqrtf(group_sum<32>(square) * p.inverse_row + p.epsilon);
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            float v[VEC];
            s[i].floats(v);
#pragma unroll
            for (int e = 0; e < VEC; ++e) acc[i][e] = fmaf(v[e] - mean, factor, acc[i][e]);
        }
    }
#pragma unroll
    for (int i = 0; i < VPL; ++i) {
        const int c = (i * 32 + lane) * VEC;
        if (c >= p.row) continue;
#pragma unroll
        for (int e = 0; e < VEC; e += 4) *reinterpret_cast<float4*>(sums + warp * p.row + c + e) = make_float4(acc[i][e], acc[i][e + 1], acc[i][e + 2], acc[i][e + 3]);
    }
    __syncthreads();
    if (cluster > 1) cluster_wait();  // all blocks are there to be written to
    // The warps' sums, a pair of columns a thread, to the block that ends the pair.
    for (int pair = threadIdx.x; 2 * pair < p.row; pair += threads) {
        float2 total{0.f, 0.f};
        for (int w = 0; w < warps; ++w) {
            const float2 v = *reinterpret_cast<const float2*>(sums + w * p.row + 2 * pair);
            total.x += v.x, total.y += v.y;
        }
        uint32_t column;
        const uint32_t owner = p.by_own_pairs.divmod(pair, column);
        float* const to = received + rank * p.own + 2 * column;
        if (cluster > 1) store_remote(remote(shared_address(to), owner), total.x, total.y);
        else *reinterpret_cast<float2*>(to) = total;
    }
    if (cluster > 1) {
        cluster_arrive();
        cluster_wait();
    } else {
        __syncthreads();
    }
    for (int c = 2 * threadIdx.x; c < columns; c += 2 * threads) {
        float2 total{0.f, 0.f};
        for (int z = 0; z < cluster; ++z) {
            const float2 v = *reinterpret_cast<const float2*>(received + z * p.own + c);
            total.x += v.x, total.y += v.y;
        }
        using Raw = typename Pack<T, 2>::Raw;
        float w[2], b[2];
        Pack<T, 2>(*reinterpret_cast<const Raw*>(p.scale + first + c)).floats(w);
        Pack<T, 2>(*reinterpret_cast<const Raw*>(p.bias + first + c)).floats(b);
        const float out[2] = {fmaf(total.x * p.inverse_tokens, w[0], b[0]), fmaf(total.y * p.inverse_tokens, w[1], b[1])};
        *reinterpret_cast<Raw*>(p.y + image * p.row + first + c) = Pack<T, 2>::of(out).raw;
    }
}

// Rows of any length and alignment: a block has kStrip columns of an image, and the moments of kTokens tokens at once.
constexpr int kThreads = 256, kPerThread = 8, kStrip = kThreads * kPerThread, kTokens = 128;
template <class T> __global__ void __launch_bounds__(kThreads) norm_pool_strip_kernel(const __grid_constant__ NormPool<T> p, const FastDiv by_strips) {
    __shared__ float means[kTokens], factors[kTokens];
    ptx::let_next_start();
    ptx::wait_for_previous();
    uint32_t strip;
    const int64_t image = by_strips.divmod(blockIdx.x, strip);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t begin = image * p.tokens * p.row;
    auto value = [&](int t, int c) {
        const int64_t at = begin + int64_t{t} * p.row + c;
        return p.residual ? to_float(from_float<T>(to_float(p.x[at]) + to_float(p.residual[at]))) : to_float(p.x[at]);
    };
    float acc[kPerThread] = {};
    for (int from = 0; from < p.tokens; from += kTokens) {
        const int count = min(kTokens, p.tokens - from);
        for (int t = warp; t < count; t += kThreads / 32) {
            float sum = 0.f, square = 0.f;
            for (int c = lane; c < p.row; c += 32) sum += value(from + t, c);
            const float mean = group_sum<32>(sum) * p.inverse_row;
            for (int c = lane; c < p.row; c += 32) {
                const float d = value(from + t, c) - mean;
                square = fmaf(d, d, square);
            }
            square = group_sum<32>(square);
            if (lane == 0) means[t] = mean, factors[t] = rsqrtf(square * p.inverse_row + p.epsilon);
        }
        __syncthreads();
        for (int t = 0; t < count; ++t) {
#pragma unroll
            for (int i = 0; i < kPerThread; ++i) {
                const int c = static_cast<int>(strip) * kStrip + i * kThreads + threadIdx.x;
                if (c < p.row) acc[i] = fmaf(value(from + t, c) - means[t], factors[t], acc[i]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
        const int c = static_cast<int>(strip) * kStrip + i * kThreads + threadIdx.x;
        if (c < p.row) p.y[image * p.row + c] = from_float<T>(fmaf(acc[i] * p.inverse_tokens, to_float(p.scale[c]), to_float(p.bias[c])));
    }
}

// How an image is spread over blocks.
struct Cut {
    int threads = 0, cluster = 1, own = 0;
    size_t shared = 0;
};
Cut cut_of(int64_t images, int tokens, int row) {
    Cut cut;
    const auto shared = [&](int warps) { return sizeof(float) * (size_t{1} * warps * row + row + 2 * kMaxCluster); };
    cut.threads = shared(kWarps) <= kShared ? 32 * kWarps : 16 * kWarps;
    const int warps = cut.threads / 32;
    // As long as there are multiprocessors for twice as many blocks, and rows for all warps of them.
    if (device().major >= 9)
        while (cut.cluster < kMaxCluster && images * cut.cluster * 2 <= device().multiprocessors && cut.cluster * warps < tokens) cut.cluster *= 2;
    cut.own = 2 * ((row / 2 + cut.cluster - 1) / cut.cluster);
    cut.shared = sizeof(float) * (size_t{1} * warps * row + size_t{1} * cut.cluster * cut.own);
    return cut;
}

template <class T, bool RESIDUAL, int VPL> cudaError_t launch_rows(NormPool<T> p, int64_t images, const Cut& cut, cudaStream_t stream) {
    p.own = cut.own, p.by_cluster = FastDiv(static_cast<uint32_t>(cut.cluster)), p.by_own_pairs = FastDiv(static_cast<uint32_t>(cut.own / 2));
    return launch_ahead(norm_pool_kernel<T, RESIDUAL, VPL>, static_cast<uint32_t>(images * cut.cluster), cut.threads, cut.shared, stream, cut.cluster, p);
}
// Accesses of a lane, at most: rows of 4 KB of halves, of 6 KB of floats.
template <class T> constexpr int kMostAccesses = sizeof(T) == 2 ? 8 : 12;
template <class T, bool RESIDUAL> cudaError_t norm_pool_rows(const NormPool<T>& p, int64_t images, cudaStream_t stream) {
    const Cut cut = cut_of(images, p.tokens, p.row);
    const int accesses = (p.row * static_cast<int>(sizeof(T)) / kVec + 31) / 32;
    if (accesses <= 1) return launch_rows<T, RESIDUAL, 1>(p, images, cut, stream);
    if (accesses <= 2) return launch_rows<T, RESIDUAL, 2>(p, images, cut, stream);
    if (accesses <= 3) return launch_rows<T, RESIDUAL, 3>(p, images, cut, stream);
    if (accesses <= 4) return launch_rows<T, RESIDUAL, 4>(p, images, cut, stream);
    if (accesses <= 6) return launch_rows<T, RESIDUAL, 6>(p, images, cut, stream);
    if (accesses <= 8) return launch_rows<T, RESIDUAL, 8>(p, images, cut, stream);
    if constexpr (kMostAccesses<T> > 8) return launch_rows<T, RESIDUAL, kMostAccesses<T>>(p, images, cut, stream);
    return cudaErrorInvalidValue;
}

template <class T> cudaError_t norm_pool_typed(const NormPoolProblem& q, cudaStream_t stream) {
    const int row = static_cast<int>(q.row), strips = (row - 1) / kStrip + 1;
    const int64_t step = std::max<int64_t>(1, (int64_t{1} << 30) / std::max(strips, kMaxCluster));  // images a launch
    const int64_t image = q.tokens * q.row;
    for (int64_t first = 0; first < q.images; first += step) {
        const int64_t images = std::min(step, q.images - first);
        NormPool<T> p{static_cast<const T*>(q.x) + first * image, q.residual ? static_cast<const T*>(q.residual) + first * image : nullptr, static_cast<const T*>(q.scale),
                      static_cast<const T*>(q.bias), static_cast<T*>(q.y) + first * q.row, static_cast<int>(q.tokens), row,
                      q.epsilon, 1.f / static_cast<float>(row), 1.f / static_cast<float>(q.tokens), row, {}, {}};
        const bool whole = row % (kVec / static_cast<int>(sizeof(T))) == 0 && row * static_cast<int64_t>(sizeof(T)) <= int64_t{32} * kVec * kMostAccesses<T> &&
                           aligned_to(kVec, p.x, p.residual) && aligned_to(2 * sizeof(T), p.scale, p.bias, p.y);
        cudaError_t status;
        if (!whole) status = launch_ahead(norm_pool_strip_kernel<T>, static_cast<uint32_t>(images * strips), kThreads, 0, stream, 1, p, FastDiv(static_cast<uint32_t>(strips)));
        else status = q.residual ? norm_pool_rows<T, true>(p, images, stream) : norm_pool_rows<T, false>(p, images, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace

cudaError_t norm_pool(const NormPoolProblem& q, cudaStream_t stream) {
    constexpr int64_t kMost = int64_t{1} << 30;  // tokens, and elements of a row
    if (q.images < 0 || q.tokens < 1 || q.tokens > kMost || q.row < 0 || q.row > kMost) return cudaErrorInvalidValue;
    if (q.images == 0 || q.row == 0) return cudaSuccess;
    return q.dtype == DType::kHalf ? norm_pool_typed<__half>(q, stream) : norm_pool_typed<float>(q, stream);
}

}  // namespace trt_opt
