// Layer norm over the rows of a matrix, one pass over memory: a group of LANES threads holds a row
// in registers, VPL accesses of VEC elements a thread. Where a row's elements come from (and what
// else is done with them) is the Source's business.
//
//   struct Source {
//     struct Row;                                        // what one thread knows of its row
//     Row locate(uint32_t r);                            // r < rows
//     bool padding(const Row&);                          // the row's output is zeros
//     Pack<T, VEC> load<VEC>(const Row&, int j);         // elements [j*VEC, j*VEC + VEC)
//     void keep<VEC>(const Row&, int j, const Pack&);    // called once for each pack loaded
//   }
#pragma once

#include "launch.cuh"
#include "ptx.cuh"

namespace trt_opt {

template <class T> struct RowNorm {
    T* y;            // [rows, row]
    const T* scale;  // [row]
    const T* bias;   // [row]
    uint32_t rows;   // < 2^31
    int row;         // elements
    float epsilon, inverse_row;
};

template <int LANES> __device__ __forceinline__ float row_sum(float v, float* shared) {
    if constexpr (LANES <= 32) {
        return group_sum<LANES>(v);
    } else {
        v = group_sum<32>(v);
        __syncthreads();
        if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
        __syncthreads();
        float total = 0.f;
#pragma unroll
        for (int i = 0; i < LANES / 32; ++i) total += shared[i];
        return total;
    }
}

// Sums of two values over a row's threads; LANES <= 32.
template <int LANES> __device__ __forceinline__ void group_sum2(float& a, float& b) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
        a += __shfl_xor_sync(0xffffffffu, a, step);
        b += __shfl_xor_sync(0xffffffffu, b, step);
    }
}

template <class T, int VEC>
__device__ __forceinline__ Pack<T, VEC> affine(const Pack<T, VEC>& x, float mean, float factor, const Pack<T, VEC>& scale, const Pack<T, VEC>& bias) {
    float v[VEC], w[VEC], b[VEC];
    x.floats(v), scale.floats(w), bias.floats(b);
#pragma unroll
    for (int e = 0; e < VEC; ++e) v[e] = fmaf((v[e] - mean) * factor, w[e], b[e]);
    return Pack<T, VEC>::of(v);
}

// blockDim.x is a multiple of 32 and of LANES; LANES threads a row, one row each.
template <class T, int VEC, int LANES, int VPL, class Source>
__global__ void __launch_bounds__(256, VPL <= 2 ? 4 : VPL <= 5 ? 3 : 2) row_norm_kernel(const __grid_constant__ RowNorm<T> p, const __grid_constant__ Source source) {
    using Raw = typename Pack<T, VEC>::Raw;
    ptx::let_next_start();
    ptx::wait_for_previous();
    __shared__ float shared[LANES > 32 ? LANES / 32 : 1];
    const int lane = threadIdx.x % LANES;
    const uint32_t row = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    const int packs = p.row / VEC;
    const bool live = row < p.rows;
    const auto at = source.locate(live ? row : 0);
    const bool padding = source.padding(at);
    const bool reads = live && !padding;

    Pack<T, VEC> x[VPL];
#pragma unroll
    for (int i = 0; i < VPL; ++i) {
        const int j = i * LANES + lane;
        if (reads && j < packs) x[i] = source.template load<VEC>(at, j);
    }
    // Affine parameters are the same for all rows, so they come from the cache; asking early hides that.
    constexpr bool early = VPL <= 3 && LANES <= 32;
    Pack<T, VEC> scale[early ? VPL : 1], bias[early ? VPL : 1];
    if constexpr (early) {
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            const int j = i * LANES + lane;
            if (j < packs) {
                scale[i].raw = __ldg(reinterpret_cast<const Raw*>(p.scale) + j);
                bias[i].raw = __ldg(reinterpret_cast<const Raw*>(p.bias) + j);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < VPL; ++i) {
        const int j = i * LANES + lane;
        if (reads && j < packs) source.template keep<VEC>(at, j, x[i]);
    }
#pragma unroll
    for (int i = 0; i < VPL; ++i) x[i].forget_floats();
    float mean, variance;
    bool exact = true;
    if constexpr (sizeof(T) == 2 && LANES <= 32) {
        // Both sums in one chain of shuffles, about the row's first element. Where that lies so far from the
        // mean that the difference of squares loses digits, the warp takes the long way.
        float first[VEC];
        x[0].floats(first);
        const float base = __shfl_sync(0xffffffffu, first[0], threadIdx.x % 32 / LANES * LANES);
        float sum = 0.f, square = 0.f;
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            if (i * LANES + lane < packs) {
                float v[VEC];
                x[i].floats(v);
#pragma unroll
                for (int e = 0; e < VEC; ++e) {
                    const float d = v[e] - base;
                    sum += d;
                    square = fmaf(d, d, square);
                }
            }
        }
        group_sum2<LANES>(sum, square);
        const float offset = sum * p.inverse_row;
        mean = base + offset;
        variance = fmaf(-offset, offset, square * p.inverse_row);
        exact = __any_sync(0xffffffffu, offset * offset > 64.f * variance);
    }
#pragma unroll
    for (int i = 0; i < VPL; ++i) x[i].forget_floats();
    if (exact) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            float v[VEC];
            x[i].floats(v);
#pragma unroll
            for (int e = 0; e < VEC; ++e) sum += v[e];
        }
        mean = row_sum<LANES>(sum, shared) * p.inverse_row;
        float square = 0.f;
#pragma unroll
        for (int i = 0; i < VPL; ++i) {
            if (i * LANES + lane < packs) {
                float v[VEC];
                x[i].floats(v);
#pragma unroll
                for (int e = 0; e < VEC; ++e) {
                    const float d = v[e] - mean;
                    square = fmaf(d, d, square);
                }
            }
        }
        variance = row_sum<LANES>(square, shared) * p.inverse_row;
    }
#pragma unroll
    for (int i = 0; i < VPL; ++i) x[i].forget_floats();
    const float factor = rsqrtf(variance + p.epsilon);
    if (!live) return;
    auto* out = reinterpret_cast<Raw*>(p.y + int64_t{row} * p.row);
#pragma unroll
    for (int i = 0; i < VPL; ++i) {
        const int j = i * LANES + lane;
        if (j >= packs) continue;
        Pack<T, VEC> y, w, b;
        if constexpr (early) {
            w = scale[i], b = bias[i];
        } else {
            w.raw = __ldg(reinterpret_cast<const Raw*>(p.scale) + j);
            b.raw = __ldg(reinterpret_cast<const Raw*>(p.bias) + j);
        }
        if (!padding) y = affine(x[i], mean, factor, w, b);
        out[j] = y.raw;
    }
}

// Rows too long for registers: one block a row, the row read three times (cache or memory).
template <class T, int VEC, class Source>
__global__ void __launch_bounds__(256) row_norm_loop_kernel(const RowNorm<T> p, const Source source) {
    ptx::let_next_start();
    ptx::wait_for_previous();
    __shared__ float shared[8];
    const uint32_t row = blockIdx.x;
    const int packs = p.row / VEC;
    const auto at = source.locate(row);
    const bool padding = source.padding(at);
    float mean = 0.f, factor = 0.f;
    if (!padding) {
        float sum = 0.f;
        for (int j = threadIdx.x; j < packs; j += 256) {
            auto x = source.template load<VEC>(at, j);
            source.template keep<VEC>(at, j, x);
            float v[VEC], part = 0.f;
            x.floats(v);
#pragma unroll
            for (int e = 0; e < VEC; ++e) part += v[e];
            sum += part;
        }
        mean = row_sum<256>(sum, shared) * p.inverse_row;
        float square = 0.f;
        for (int j = threadIdx.x; j < packs; j += 256) {
            auto x = source.template load<VEC>(at, j);
            float v[VEC], part = 0.f;
            x.floats(v);
#pragma unroll
            for (int e = 0; e < VEC; ++e) {
                float d = v[e] - mean;
                part = fmaf(d, d, part);
            }
            square += part;
        }
        factor = rsqrtf(row_sum<256>(square, shared) * p.inverse_row + p.epsilon);
    }
    auto* out = reinterpret_cast<typename Pack<T, VEC>::Raw*>(p.y + int64_t{row} * p.row);
    for (int j = threadIdx.x; j < packs; j += 256) {
        Pack<T, VEC> y, w, b;
        if (!padding) {
            auto x = source.template load<VEC>(at, j);
            w.raw = __ldg(reinterpret_cast<const typename Pack<T, VEC>::Raw*>(p.scale) + j);
            b.raw = __ldg(reinterpret_cast<const typename Pack<T, VEC>::Raw*>(p.bias) + j);
            y = affine(x, mean, factor, w, b);
        }
        out[j] = y.raw;
    }
}

template <class T, int VEC, int LANES, int VPL, class Source>
cudaError_t launch_row_norm_as(const RowNorm<T>& p, const Source& source, cudaStream_t stream) {
    int threads = LANES > 32 ? LANES : 128;
    if constexpr (LANES <= 32) {
        // Few rows: smaller blocks reach more multiprocessors.
        while (threads > 32 && int64_t{p.rows} * LANES / threads < multiprocessors()) threads /= 2;
    }
    const uint32_t per_block = threads / LANES;
    return launch_ahead(row_norm_kernel<T, VEC, LANES, VPL, Source>, (p.rows + per_block - 1) / per_block, threads, 0, stream, 1, p, source);
}

// FINE adds the shapes that make rows of 16-byte packs waste no lane.
template <class T, int VEC, bool FINE, class Source>
cudaError_t launch_row_norm(const RowNorm<T>& p, const Source& source, cudaStream_t stream) {
    if (p.rows == 0 || p.row == 0) return cudaSuccess;
    const int packs = p.row / VEC;
    if constexpr (FINE) {
        if (packs <= 2) return launch_row_norm_as<T, VEC, 2, 1>(p, source, stream);
        if (packs <= 4) return launch_row_norm_as<T, VEC, 4, 1>(p, source, stream);
        if (packs <= 8) return launch_row_norm_as<T, VEC, 4, 2>(p, source, stream);
        if (packs <= 12) return launch_row_norm_as<T, VEC, 4, 3>(p, source, stream);
        if (packs <= 16) return launch_row_norm_as<T, VEC, 8, 2>(p, source, stream);
        if (packs <= 24) return launch_row_norm_as<T, VEC, 8, 3>(p, source, stream);
        if (packs <= 32) return launch_row_norm_as<T, VEC, 16, 2>(p, source, stream);
        if (packs <= 48) return launch_row_norm_as<T, VEC, 16, 3>(p, source, stream);
        if (packs <= 64) return launch_row_norm_as<T, VEC, 32, 2>(p, source, stream);
        if (packs <= 96) return launch_row_norm_as<T, VEC, 32, 3>(p, source, stream);
        if (packs <= 160) return launch_row_norm_as<T, VEC, 32, 5>(p, source, stream);
        if (packs <= 192) return launch_row_norm_as<T, VEC, 32, 6>(p, source, stream);
    } else {
        if (packs <= 32) return launch_row_norm_as<T, VEC, 8, 4>(p, source, stream);
        if (packs <= 128) return launch_row_norm_as<T, VEC, 32, 4>(p, source, stream);
    }
    if (packs <= 256) return launch_row_norm_as<T, VEC, 32, 8>(p, source, stream);
    if (packs <= 512) return launch_row_norm_as<T, VEC, 256, 2>(p, source, stream);
    if (packs <= 1024) return launch_row_norm_as<T, VEC, 256, 4>(p, source, stream);
    return launch_ahead(row_norm_loop_kernel<T, VEC, Source>, p.rows, 256, 0, stream, 1, p, source);
}

}  // namespace trt_opt
