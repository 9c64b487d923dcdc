// The map between tokens of an image and rows of its windows (docs/ops.md, "The window map").
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace trt_opt {

struct WindowMap {
    int grid_h = 0, grid_w = 0, window_h = 1, window_w = 1, shift_h = 0, shift_w = 0;
    int wrap_h = 0, wrap_w = 0;  // where the shift wraps: the padded grid, or the grid if padded after the roll
    int pad_after_roll = 0;
    FastDiv by_window_h, by_window_w, by_windows_x, by_windows_y, by_grid_h, by_grid_w;

    WindowMap() = default;
    explicit WindowMap(const WindowGrid& g)
        : grid_h(g.grid_h), grid_w(g.grid_w), window_h(g.window_h), window_w(g.window_w), pad_after_roll(g.pad_after_roll) {
        int windows_y = (grid_h + window_h - 1) / window_h, windows_x = (grid_w + window_w - 1) / window_w;
        wrap_h = pad_after_roll ? grid_h : windows_y * window_h;
        wrap_w = pad_after_roll ? grid_w : windows_x * window_w;
        shift_h = ((g.shift_h % wrap_h) + wrap_h) % wrap_h;
        shift_w = ((g.shift_w % wrap_w) + wrap_w) % wrap_w;
        by_window_h = FastDiv(window_h), by_window_w = FastDiv(window_w);
        by_windows_x = FastDiv(windows_x), by_windows_y = FastDiv(windows_y);
        by_grid_h = FastDiv(grid_h), by_grid_w = FastDiv(grid_w);
    }

    // Token row of partitioned row `r` (both counted over all images of the launch), or -1 for padding.
    __device__ __forceinline__ int64_t source(uint32_t r) const {
        uint32_t ix, iy, wx, wy;
        uint32_t b = by_windows_y.divmod(by_windows_x.divmod(by_window_h.divmod(by_window_w.divmod(r, ix), iy), wx), wy);
        int py = wy * window_h + iy, px = wx * window_w + ix;
        int y = py + shift_h, x = px + shift_w;
        if (y >= wrap_h) y -= wrap_h;
        if (x >= wrap_w) x -= wrap_w;
        bool inside = pad_after_roll ? (py < grid_h && px < grid_w) : (y < grid_h && x < grid_w);
        return inside ? (int64_t{b} * grid_h + y) * grid_w + x : -1;
    }

    // Partitioned row of token row `t`.
    __device__ __forceinline__ int64_t target(uint32_t t) const {
        uint32_t x, y;
        uint32_t b = by_grid_h.divmod(by_grid_w.divmod(t, x), y);
        int py = static_cast<int>(y) - shift_h, px = static_cast<int>(x) - shift_w;
        if (py < 0) py += wrap_h;
        if (px < 0) px += wrap_w;
        uint32_t iy, ix;
        uint32_t wy = by_window_h.divmod(py, iy), wx = by_window_w.divmod(px, ix);
        return ((int64_t{b} * by_windows_y.divisor + wy) * by_windows_x.divisor + wx) * (window_h * window_w) +
               iy * window_w + ix;
    }
};

}  // namespace trt_opt
