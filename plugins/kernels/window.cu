// TrtOptWindow: rows of channels moved by the window map, 16 bytes a thread where the shapes allow.
#include <algorithm>

#include "launch.cuh"
#include "ptx.cuh"
#include "window_map.cuh"

namespace trt_opt {
namespace {

// One pack a thread. `packs` packs a row; `total` = rows of y * packs, < 2^31.
template <class T, int VEC>
__global__ void __launch_bounds__(256) window_kernel(const T* __restrict__ x, const T* __restrict__ residual, T* __restrict__ y,
                                                     WindowMap map, FastDiv by_packs, uint32_t total, int reverse) {
    using Raw = typename Pack<T, VEC>::Raw;
    ptx::let_next_start();
    ptx::wait_for_previous();
    const uint32_t i = blockIdx.x * 256 + threadIdx.x;
    if (i >= total) return;
    uint32_t j;
    const uint32_t row = by_packs.divmod(i, j);
    const int64_t from = reverse ? map.target(row) : map.source(row);
    Pack<T, VEC> v;
    if (from >= 0) v.raw = *(reinterpret_cast<const Raw*>(x) + from * by_packs.divisor + j);
    if (residual) {
        Pack<T, VEC> r;
        r.raw = *(reinterpret_cast<const Raw*>(residual) + i);
        add_packs<T, VEC>(v, r);
    }
    *(reinterpret_cast<Raw*>(y) + i) = v.raw;
}

template <class T> cudaError_t window_typed(const WindowProblem& q, cudaStream_t stream) {
    const int64_t tokens = int64_t{q.window.grid_h} * q.window.grid_w;
    const int64_t cut = q.window.windows() * q.window.window_tokens();
    const int64_t from = (q.reverse ? cut : tokens) * q.channels, to = (q.reverse ? tokens : cut) * q.channels;  // an image
    if (tokens <= 0 || std::max(from, to) > (int64_t{1} << 30)) return cudaErrorInvalidValue;
    const WindowMap map(q.window);
    const int64_t step = (int64_t{1} << 30) / std::max(from, to);
    for (int64_t first = 0; first < q.images; first += step) {
        const T* x = static_cast<const T*>(q.x) + first * from;
        const T* residual = q.residual ? static_cast<const T*>(q.residual) + first * to : nullptr;
        T* y = static_cast<T*>(q.y) + first * to;
        const int64_t elements = std::min(step, q.images - first) * to;
        auto launch = [&](auto vec) {
            constexpr int kVec = decltype(vec)::value;
            const uint32_t total = static_cast<uint32_t>(elements / kVec);
            return launch_ahead(window_kernel<T, kVec>, (total + 255) / 256, 256, 0, stream, 1, x, residual, y, map,
                                FastDiv(static_cast<uint32_t>(q.channels / kVec)), total, q.reverse);
        };
        auto fits = [&](int vec) { return q.channels % vec == 0 && aligned_to(vec * sizeof(T), x, residual, y); };
        constexpr int kFull = 16 / sizeof(T);
        cudaError_t status;
        if (fits(kFull)) status = launch(std::integral_constant<int, kFull>{});
        else if (fits(2)) status = launch(std::integral_constant<int, 2>{});
        else status = launch(std::integral_constant<int, 1>{});
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace

cudaError_t window(const WindowProblem& q, cudaStream_t stream) {
    if (!q.window.used() || q.images < 0 || q.channels < 0 || (q.residual && !q.reverse)) return cudaErrorInvalidValue;
    if (q.images == 0 || q.channels == 0) return cudaSuccess;
    return q.dtype == DType::kHalf ? window_typed<__half>(q, stream) : window_typed<float>(q, stream);
}

}  // namespace trt_opt
