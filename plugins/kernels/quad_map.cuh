// Where the rows of a patch merge come from (docs/ops.md, TrtOptPatchMerge).
#pragma once

#include "common.cuh"

namespace trt_opt {

// A merged row is four blocks of `channels` elements, each a token of a 2 x 2 neighbourhood.
struct QuadMap {
    static constexpr int kMostTokens = 1 << 29;  // of a launch: two bits beside a token's number say more
    static constexpr int kNoRight = 1 << 29, kNoBelow = 1 << 30;

    int grid_h = 0, grid_w = 0, channels = 0;
    int needs[4] = {};  // of each block: the sides on which its token lies
    int step[4] = {};   // elements from the first token's element c to where element c of the merged row is
    FastDiv by_out_h, by_out_w;

    QuadMap() = default;
    QuadMap(int height, int width, const int32_t (&order)[4], int depth)
        : grid_h(height), grid_w(width), channels(depth), by_out_h((height + 1) / 2), by_out_w((width + 1) / 2) {
        for (int i = 0; i < 4; ++i) {
            const int down = order[i] >> 1, right = order[i] & 1;
            needs[i] = (right ? kNoRight : 0) | (down ? kNoBelow : 0);
            step[i] = (down * width + right - i) * depth;
        }
    }

    // The first token of merged row `r` (both counted over all images of the launch), and on which
    // sides of it the grid ends.
    __device__ __forceinline__ int corner(uint32_t r) const {
        uint32_t x, y;
        const uint32_t image = by_out_h.divmod(by_out_w.divmod(r, x), y);
        const int token = (static_cast<int>(image) * grid_h + 2 * static_cast<int>(y)) * grid_w + 2 * static_cast<int>(x);
        return token | (2 * static_cast<int>(x) + 1 == grid_w ? kNoRight : 0) | (2 * static_cast<int>(y) + 1 == grid_h ? kNoBelow : 0);
    }
    __device__ __forceinline__ int block(int c) const { return (c >= channels) + (c >= 2 * channels) + (c >= 3 * channels); }
    // Whether the token of a block is on the grid; else it is zeros.
    __device__ __forceinline__ bool has(int corner, int block) const { return (corner & needs[block]) == 0; }
    // Both by an element of the merged row, with neither a branch nor an index into memory.
    __device__ __forceinline__ bool has_at(int corner, int c) const { return (corner & pick(needs, c)) == 0; }
    __device__ __forceinline__ int step_at(int c) const { return pick(step, c); }
    __device__ __forceinline__ int64_t element(int corner, int block, int c) const { return int64_t{corner & (kMostTokens - 1)} * channels + step[block] + c; }

private:
    __device__ __forceinline__ int pick(const int (&of)[4], int c) const {
        const int low = c >= channels ? of[1] : of[0], high = c >= 3 * channels ? of[3] : of[2];
        return c >= 2 * channels ? high : low;
    }
};

}  // namespace trt_opt
