#pragma once

#include "attention_launch.cuh"
#include "attention_resident.cuh"
#include "launch.cuh"

namespace trt_opt {

// Calls f(kernel, shared bytes) with the instance that `how` asks for.
template <int D, class F> auto with_resident_kernel(const AttentionArgs<__half>& p, const ResidentLaunch& how, F&& f) {
    auto pick = [&](auto wide, auto staged) {
        constexpr bool kWide = decltype(wide)::value, kStaged = decltype(staged)::value;
        auto use = [&](auto tiles) {
            constexpr int kTiles = decltype(tiles)::value;
            return f(attention_resident_kernel<D, kTiles, kWide, kStaged>, kStaged ? sizeof(float4) * 32 * kTiles * ((p.n + 15) / 16) : size_t{0});
        };
        if (how.tiles <= 2) return use(std::integral_constant<int, 2>{});
        if (how.tiles <= 4) return use(std::integral_constant<int, 4>{});
        if (how.tiles <= 7) return use(std::integral_constant<int, 7>{});
        return use(std::integral_constant<int, 8>{});
    };
    auto pick_wide = [&](auto wide) { return how.staged ? pick(wide, std::true_type{}) : pick(wide, std::false_type{}); };
    if constexpr (D == 8) {
        if (!how.wide) return pick_wide(std::false_type{});
    }
    return pick_wide(std::true_type{});
}

template <int D> cudaError_t launch_resident(const AttentionArgs<__half>& p, const ResidentLaunch& how, cudaStream_t stream) {
    const FastDiv by_heads(p.heads), by_period(static_cast<uint32_t>(p.period));
    return with_resident_kernel<D>(p, how, [&](auto kernel, size_t shared) {
        return launch_ahead(kernel, how.blocks, how.warps * 32, shared, stream, 1, p, how.split, by_heads, by_period);
    });
}

template <int D> int resident_blocks(const AttentionArgs<__half>& p, const ResidentLaunch& how) {
    return with_resident_kernel<D>(p, how, [&](auto kernel, size_t shared) {
        int blocks = 0;
        if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, how.warps * 32, shared) != cudaSuccess) blocks = 0;
        return blocks > 0 ? blocks : 1;
    });
}

}  // namespace trt_opt
