// TrtOptPatchMerge: the row of an output token is gathered from four input tokens, or sums of two, then normalized.
#include <algorithm>

#include "kernels.h"
#include "row_norm.cuh"

namespace trt_opt {
namespace {

template <class T, bool RESIDUAL> struct QuadSource {
    const T* x;
    const T* residual;
    int channels, grid_h, grid_w;
    int order[4];
    FastDiv by_out_w, by_out_h;

    struct Row {
        int64_t block[4];  // first element of each channel block; < 0: zeros
    };
    __device__ __forceinline__ Row locate(uint32_t r) const {
        uint32_t ox, oy;
        const uint32_t b = by_out_h.divmod(by_out_w.divmod(r, ox), oy);
        Row at;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int y = 2 * oy + (order[i] >> 1), x0 = 2 * ox + (order[i] & 1);
            at.block[i] = y < grid_h && x0 < grid_w ? ((int64_t{b} * grid_h + y) * grid_w + x0) * channels : -1;
        }
        return at;
    }
    __device__ __forceinline__ bool padding(const Row&) const { return false; }
    template <int VEC> __device__ __forceinline__ Pack<T, VEC> load(const Row& at, int j) const {
        const int packs = channels / VEC;
        int64_t block = at.block[0];
        int begin = 0;
#pragma unroll
        for (int i = 1; i < 4; ++i)
            if (j >= i * packs) block = at.block[i], begin = i * packs;
        using Raw = typename Pack<T, VEC>::Raw;
        Pack<T, VEC> v;
        if (block >= 0) {
            v.raw = *(reinterpret_cast<const Raw*>(x + block) + (j - begin));
            if constexpr (RESIDUAL) {
                Pack<T, VEC> r;
                r.raw = *(reinterpret_cast<const Raw*>(residual + block) + (j - begin));
                add_packs<T, VEC>(v, r);
            }
        }
        return v;
    }
    template <int VEC> __device__ __forceinline__ void keep(const Row&, int, const Pack<T, VEC>&) const {}
};

template <class T, bool RESIDUAL> cudaError_t patch_merge_typed(const PatchMergeProblem& q, cudaStream_t stream) {
    const int64_t in = int64_t{q.grid_h} * q.grid_w * q.channels;
    const int out_h = (q.grid_h + 1) / 2, out_w = (q.grid_w + 1) / 2;
    const int64_t rows = int64_t{out_h} * out_w, step = (int64_t{1} << 30) / rows;
    if (step == 0) return cudaErrorInvalidValue;
    QuadSource<T, RESIDUAL> source{nullptr, nullptr, static_cast<int>(q.channels), q.grid_h, q.grid_w,
                                   {q.order[0], q.order[1], q.order[2], q.order[3]}, FastDiv(out_w), FastDiv(out_h)};
    for (int64_t first = 0; first < q.images; first += step) {
        source.x = static_cast<const T*>(q.x) + first * in;
        if constexpr (RESIDUAL) source.residual = static_cast<const T*>(q.residual) + first * in;
        const int row = 4 * source.channels;
        RowNorm<T> p{static_cast<T*>(q.y) + first * rows * row, static_cast<const T*>(q.scale), static_cast<const T*>(q.bias),
                     static_cast<uint32_t>(std::min(step, q.images - first) * rows), row, q.epsilon, 1.f / static_cast<float>(row)};
        auto fits = [&](int vec) { return q.channels % vec == 0 && aligned_to(vec * sizeof(T), source.x, source.residual, p.y, p.scale, p.bias); };
        constexpr int kFull = 16 / sizeof(T);
        cudaError_t status = fits(kFull) ? launch_row_norm<T, kFull, true>(p, source, stream)
                           : fits(2)     ? launch_row_norm<T, 2, false>(p, source, stream)
                                         : launch_row_norm<T, 1, false>(p, source, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace

cudaError_t patch_merge(const PatchMergeProblem& q, cudaStream_t stream) {
    if (q.images < 0 || q.channels < 0 || q.channels > INT32_MAX / 4 || q.grid_h <= 0 || q.grid_w <= 0) return cudaErrorInvalidValue;
    for (int quadrant : q.order)
        if (quadrant < 0 || quadrant > 3) return cudaErrorInvalidValue;
    if (q.images == 0 || q.channels == 0) return cudaSuccess;
    if (q.dtype == DType::kHalf) return q.residual ? patch_merge_typed<__half, true>(q, stream) : patch_merge_typed<__half, false>(q, stream);
    return q.residual ? patch_merge_typed<float, true>(q, stream) : patch_merge_typed<float, false>(q, stream);
}

}  // namespace trt_opt
