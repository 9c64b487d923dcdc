// TrtOptLayerNorm for one element type.
#pragma once

#include <algorithm>
#include <type_traits>

#include "row_norm.cuh"
#include "window_map.cuh"

namespace trt_opt {

// kPartition: rows are those of the partitioned output, gathered by the window map. kReverse: rows are tokens of the
// map, and those of x are gathered from its windows.
enum class Windows { kNone, kPartition, kReverse };

// Tokens of an image to which something is added that has rows for these only.
struct PartMap {
    FastDiv tokens;        // of an image
    uint32_t begin, size;  // those that it covers

    // Row of the operand that is added to row r, or -1.
    __device__ __forceinline__ int64_t source(uint32_t r) const {
        uint32_t token;
        const uint32_t image = tokens.divmod(r, token);
        // Tokens before the first wrap around to large numbers.
        return token - begin < size ? int64_t{image} * size + (token - begin) : -1;
    }
};

// PART: with an operand for some of the tokens; not beside windows.
template <class T, Windows WINDOWS, bool PART> struct TokenSource {
    static_assert(!PART || WINDOWS == Windows::kNone);
    const T* x;
    const T* residual;
    T* sum;
    int row;
    std::conditional_t<WINDOWS == Windows::kNone, char, WindowMap> map;
    std::conditional_t<PART, const T*, char> part;
    std::conditional_t<PART, PartMap, char> part_map;

    struct Row {
        int64_t offset;  // in elements, of residual and sum; < 0: padding
        int64_t of_x;
        int64_t of_part;  // < 0: none
    };
    __device__ __forceinline__ Row locate(uint32_t r) const {
        const int64_t offset = (WINDOWS == Windows::kPartition ? map_source(r) : int64_t{r}) * row;
        if constexpr (WINDOWS == Windows::kReverse) return {offset, map.target(r) * row, -1};
        else if constexpr (PART) return {offset, offset, part_map.source(r) * row};
        else return {offset, offset, -1};
    }
    __device__ __forceinline__ int64_t map_source(uint32_t r) const {
        if constexpr (WINDOWS == Windows::kPartition) return map.source(r);
        else return r;
    }
    __device__ __forceinline__ bool padding(const Row& at) const { return WINDOWS == Windows::kPartition && at.offset < 0; }
    template <int VEC> __device__ __forceinline__ Pack<T, VEC> load(const Row& at, int j) const {
        using Raw = typename Pack<T, VEC>::Raw;
        Pack<T, VEC> v;
        v.raw = *(reinterpret_cast<const Raw*>(x + at.of_x) + j);
        if (residual) {
            Pack<T, VEC> r;
            r.raw = *(reinterpret_cast<const Raw*>(residual + at.offset) + j);
            add_packs<T, VEC>(v, r);
        }
        if constexpr (PART) {
            // Zeros where it has no row: a load that may be left out, and no branch around the add.
            Pack<T, VEC> extra;
            if (at.of_part >= 0) extra.raw = *(reinterpret_cast<const Raw*>(part + at.of_part) + j);
            add_packs<T, VEC>(v, extra);
        }
        return v;
    }
    template <int VEC> __device__ __forceinline__ void keep(const Row& at, int j, const Pack<T, VEC>& v) const {
        if (PART || residual) *(reinterpret_cast<typename Pack<T, VEC>::Raw*>(sum + at.offset) + j) = v.raw;
    }
};

template <class T, Windows WINDOWS, bool PART = false> cudaError_t layer_norm_rows(const LayerNormProblem& q, cudaStream_t stream) {
    constexpr int kFull = 16 / sizeof(T);
    constexpr bool windowed = WINDOWS != Windows::kNone;
    const int64_t image = windowed ? int64_t{q.window.grid_h} * q.window.grid_w : PART ? q.tokens : 1;  // tokens
    const int64_t partitioned = windowed ? q.window.windows() * q.window.window_tokens() : 1;
    if (image <= 0 || q.rows % image != 0) return cudaErrorInvalidValue;
    const int64_t images = q.rows / image;
    const int64_t step = (int64_t{1} << 30) / std::max(image, partitioned);  // images a launch
    if (step == 0) return cudaErrorInvalidValue;
    const int64_t image_x = WINDOWS == Windows::kReverse ? partitioned : image;
    const int64_t image_y = WINDOWS == Windows::kPartition ? partitioned : image;

    TokenSource<T, WINDOWS, PART> source{};
    source.row = static_cast<int>(q.row);
    if constexpr (windowed) source.map = WindowMap(q.window);
    if constexpr (PART) source.part_map = {FastDiv(static_cast<uint32_t>(image)), static_cast<uint32_t>(q.part_begin), static_cast<uint32_t>(q.part_tokens)};
    for (int64_t first = 0; first < images; first += step) {
        source.x = static_cast<const T*>(q.x) + first * image_x * q.row;
        source.residual = q.residual ? static_cast<const T*>(q.residual) + first * image * q.row : nullptr;
        source.sum = PART || q.residual ? static_cast<T*>(q.sum) + first * image * q.row : nullptr;
        if constexpr (PART) source.part = static_cast<const T*>(q.part) + first * q.part_tokens * q.row;
        RowNorm<T> p{static_cast<T*>(q.y) + first * image_y * q.row, static_cast<const T*>(q.scale), static_cast<const T*>(q.bias),
                     static_cast<uint32_t>(std::min(step, images - first) * image_y), source.row,
                     q.epsilon, 1.f / static_cast<float>(q.row)};
        auto fits = [&](int vec) {
            bool aligned = aligned_to(vec * sizeof(T), source.x, source.residual, source.sum, p.y, p.scale, p.bias);
            if constexpr (PART) aligned = aligned && aligned_to(vec * sizeof(T), source.part);
            return q.row % vec == 0 && aligned;
        };
        cudaError_t status;
        if (fits(kFull)) status = launch_row_norm<T, kFull, true>(p, source, stream);
        else if (!PART && fits(2)) status = launch_row_norm<T, PART ? 1 : 2, false>(p, source, stream);
        else status = launch_row_norm<T, 1, false>(p, source, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

template <class T> cudaError_t layer_norm_typed(const LayerNormProblem& q, cudaStream_t stream) {
    if (q.rows < 0 || q.row < 0 || q.row > INT32_MAX) return cudaErrorInvalidValue;
    if (q.part) {
        if (q.window.used() || q.reverse || q.tokens < 1 || q.rows % q.tokens != 0) return cudaErrorInvalidValue;
        if (q.part_begin < 0 || q.part_tokens < 1 || q.part_tokens > q.tokens - q.part_begin) return cudaErrorInvalidValue;
    }
    if (q.rows == 0 || q.row == 0) return cudaSuccess;
    if (q.part) return layer_norm_rows<T, Windows::kNone, true>(q, stream);
    if (!q.window.used()) return q.reverse ? cudaErrorInvalidValue : layer_norm_rows<T, Windows::kNone>(q, stream);
    return q.reverse ? layer_norm_rows<T, Windows::kReverse>(q, stream) : layer_norm_rows<T, Windows::kPartition>(q, stream);
}

}  // namespace trt_opt
