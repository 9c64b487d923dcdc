// The end of a bridge from words to tokens, behind a product: y = s + norm(row) in the tokens that have a row, y = s in the others.
#pragma once

#include "common.cuh"
#include "ptx.cuh"

namespace trt_opt {

// Until the words behind `after` layers are there, as each of the chain's `telling` blocks tells; or, where `all_told` is null, until the whole chain is done. The chain lets its bridges'
// kernel start when all that was before it is done, and none of its blocks is yet to come, so that they may be waited for.
template <int THREADS> __device__ __forceinline__ void wait_for_words(const uint32_t* all_told, uint32_t telling, const int& after) {
    if (all_told) {
        if (const int layers = after; layers > 0) {
            const uint32_t* const told = all_told + (layers - 1) * telling;
            for (uint32_t i = threadIdx.x; i < telling; i += THREADS)
                while (ptx::load_acquire(told + i) != 1) __nanosleep(50);
            __syncthreads();
        }
    } else {
        ptx::wait_for_previous();
    }
}

// Tokens of all images, by rows of the product and by those that have none.
struct BridgeTokens {
    FastDiv by_covered, by_others;  // tokens of an image with a row, and without (1 if there are none)
    uint32_t tokens = 0, begin = 0; // of an image; the first with a row
    uint32_t others = 0;            // of all images

    BridgeTokens() = default;
    BridgeTokens(uint32_t images, uint32_t tokens, uint32_t begin, uint32_t covered)
        : by_covered(covered), by_others(tokens > covered ? tokens - covered : 1), tokens(tokens), begin(begin), others(images * (tokens - covered)) {}

    __device__ __forceinline__ int64_t of_row(uint32_t r) const {
        uint32_t n;
        const uint32_t image = by_covered.divmod(r, n);
        return int64_t{image} * tokens + begin + n;
    }
    __device__ __forceinline__ int64_t of_other(uint32_t r) const {
        uint32_t n;
        const uint32_t image = by_others.divmod(r, n);
        return int64_t{image} * tokens + (n < begin ? n : n + by_covered.divisor);
    }
};

// STREAM: there is one; else it is 0.
template <class T, bool STREAM = true> struct BridgeEnd {
    const T *x, *residual;   // [images, tokens, n]; residual may be null
    const T *scale, *shift;  // [n]
    T* out;                  // like x
    int n;
    float epsilon;
    BridgeTokens at;

    // s, from element `i` on.
    template <int VEC> __device__ __forceinline__ Pack<T, VEC> stream(int64_t i) const {
        using Raw = typename Pack<T, VEC>::Raw;
        if constexpr (STREAM) {
            Pack<T, VEC> s(*reinterpret_cast<const Raw*>(x + i));
            if (residual) add_packs<T, VEC>(s, Pack<T, VEC>(*reinterpret_cast<const Raw*>(residual + i)));
            return s;
        } else {
            return Pack<T, VEC>();
        }
    }
    // Columns [c, c + VEC) of a row that is normalized already, onto the stream.
    template <int VEC> __device__ __forceinline__ void put(int64_t token, int c, const Pack<T, VEC>& s, const float (&normal)[VEC]) const {
        using Raw = typename Pack<T, VEC>::Raw;
        float v[VEC], factor[VEC], offset[VEC];
        s.floats(v);
        Pack<T, VEC>(*reinterpret_cast<const Raw*>(scale + c)).floats(factor);
        Pack<T, VEC>(*reinterpret_cast<const Raw*>(shift + c)).floats(offset);
#pragma unroll
        for (int e = 0; e < VEC; ++e) v[e] += fmaf(normal[e], factor[e], offset[e]);
        *reinterpret_cast<Raw*>(out + token * n + c) = Pack<T, VEC>::of(v).raw;
    }
    // The tokens without a row, by `threads` threads.
    template <int VEC> __device__ __forceinline__ void copy_others(uint64_t thread, uint64_t threads) const {
        const uint32_t pieces = static_cast<uint32_t>(n) / VEC;
#pragma unroll 1
        for (uint64_t i = thread; i < uint64_t{at.others} * pieces; i += threads) {
            const int64_t from = at.of_other(static_cast<uint32_t>(i / pieces)) * n + static_cast<int64_t>(i % pieces) * VEC;
            *reinterpret_cast<typename Pack<T, VEC>::Raw*>(out + from) = stream<VEC>(from).raw;
        }
    }
};

// Of some of a row's values: their sum, and the sum of the squares of their differences from their mean.
struct RowMoments {
    float sum, square;
};
constexpr int kBridgeMaxCluster = 8;

// Mean and factor of a row of n values, from the moments of its parts: `width` values each, but for the last.
struct RowStatistics {
    float mean, factor;
};
__device__ __forceinline__ RowStatistics row_statistics(const RowMoments* parts, uint32_t count, int width, int n, float epsilon) {
    float sum = 0, square = 0;
    for (uint32_t z = 0; z < count; ++z) sum += parts[z].sum;
    const float mean = sum / static_cast<float>(n);
    for (uint32_t z = 0; z < count; ++z) {
        const auto values = static_cast<float>(min(width, n - static_cast<int>(z) * width));
        const float difference = parts[z].sum / values - mean;
        square += fmaf(values * difference, difference, parts[z].square);
    }
    return {mean, rsqrtf(square / static_cast<float>(n) + epsilon)};
}

// Ends BM rows of BN columns of the product, from `row0` and `column` on, of which the blocks of a cluster have the n columns
// between them. Row r of them begins at v + r * stride, in shared memory; columns [4c, 4c + 4) of it are written by thread
// r * BN / 4 + c, modulo their number. `moments`: BM * kBridgeMaxCluster of them, in shared memory that no block of
// the cluster needs for anything else. All blocks have arrived at the cluster's barrier, and not waited for it. Block `block` of `blocks` copies
// tokens without a row.
template <int BM, int BN, int THREADS, class End>
__device__ __forceinline__ void end_bridge(const End& p, const float* v, int stride, RowMoments* moments, int rows, int64_t row0, int column, uint32_t rank, uint32_t cluster, uint32_t block,
                                           uint32_t blocks) {
    using namespace ptx;
    constexpr int kLanes = BN / 4, kStep = THREADS / kLanes, kItems = BM / kStep;  // lanes of a row; rows of a thread
    static_assert(32 % kLanes == 0 && kLanes >= kBridgeMaxCluster && THREADS % kLanes == 0 && BM % kStep == 0);
    const int lane = threadIdx.x % kLanes, first = threadIdx.x / kLanes, c = 4 * lane, columns = min(BN, p.n - column);
    const bool exists = c < columns;
    auto token = [&](int i) { return p.at.of_row(static_cast<uint32_t>(row0) + first + i * kStep); };
    auto ends = [&](int i) { return exists && first + i * kStep < rows; };

    Pack<__half, 4> s[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i)
        if (ends(i)) s[i] = p.template stream<4>(token(i) * p.n + column + c);
    cluster_wait();  // all blocks are there to be written to
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        const int r = first + i * kStep;
        const float4 f = exists ? *reinterpret_cast<const float4*>(v + r * stride + c) : float4{};
        const float sum = group_sum<kLanes>(f.x + f.y + f.z + f.w), mean = sum / static_cast<float>(columns);
        const float4 d{f.x - mean, f.y - mean, f.z - mean, f.w - mean};
        const float square = group_sum<kLanes>(exists ? d.x * d.x + d.y * d.y + d.z * d.z + d.w * d.w : 0.f);
        if (lane < static_cast<int>(cluster)) store_remote(remote(shared_address(moments + r * kBridgeMaxCluster + rank), lane), sum, square);
    }
    cluster_arrive();
    p.template copy_others<8>(uint64_t{block} * THREADS + threadIdx.x, uint64_t{blocks} * THREADS);
    cluster_wait();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
        if (!ends(i)) continue;
        const int r = first + i * kStep;
        const auto [mean, factor] = row_statistics(moments + r * kBridgeMaxCluster, cluster, BN, p.n, p.epsilon);
        const float4 f = *reinterpret_cast<const float4*>(v + r * stride + c);
        const float normal[4] = {(f.x - mean) * factor, (f.y - mean) * factor, (f.z - mean) * factor, (f.w - mean) * factor};
        p.template put<4>(token(i), column + c, s[i], normal);
    }
}

}  // namespace trt_opt
