// Regions of shifted windows: tokens of a window attend to each other where they are of one.
#pragma once

#include "common.cuh"
#include "kernels.h"

namespace trt_opt {

struct WindowRegions {
    int window_h = 1, window_w = 1, edge_y = 0, cut_y = 0, edge_x = 0, cut_x = 0;
    FastDiv by_windows, by_windows_x, by_window_w;

    WindowRegions() = default;
    explicit WindowRegions(const WindowGrid& g) : window_h(g.window_h), window_w(g.window_w) {
        const int windows_y = (g.grid_h + window_h - 1) / window_h, windows_x = (g.grid_w + window_w - 1) / window_w;
        const int padded_h = windows_y * window_h, padded_w = windows_x * window_w;
        // Unshifted axis: one region, so the edges lie beyond the grid.
        edge_y = g.shift_h ? padded_h - window_h : padded_h, cut_y = padded_h - g.shift_h;
        edge_x = g.shift_w ? padded_w - window_w : padded_w, cut_x = padded_w - g.shift_w;
        by_windows = FastDiv(static_cast<uint32_t>(g.windows())), by_windows_x = FastDiv(static_cast<uint32_t>(windows_x)), by_window_w = FastDiv(static_cast<uint32_t>(window_w));
    }

    // Which keys of the window are in other regions than its rows `row` and `row` + 8, of up to 64: keys 8 j + 2 t + e at 8 j + e, t being lane % 4. By whole warps.
    __device__ __forceinline__ void find_others(uint32_t window, int row, int lane, uint32_t (&others)[2][2]) const {
        others[0][0] = others[0][1] = others[1][0] = others[1][1] = 0;
        uint32_t number, wx;
        by_windows.divmod(window, number);
        const int first_y = static_cast<int>(by_windows_x.divmod(number, wx)) * window_h, first_x = static_cast<int>(wx) * window_w;
        const auto region_y = [&](int y) { return (y >= edge_y) + (y >= cut_y); };
        const auto region_x = [&](int x) { return (x >= edge_x) + (x >= cut_x); };
        // They grow with the position, so all are the same where those of the ends are.
        if (region_y(first_y) == region_y(first_y + window_h - 1) && region_x(first_x) == region_x(first_x + window_w - 1)) return;
        const auto find = [&](int key, int& y, int& x) {
            uint32_t ix;
            const int iy = static_cast<int>(by_window_w.divmod(static_cast<uint32_t>(key), ix));
            y = region_y(first_y + iy), x = region_x(first_x + static_cast<int>(ix));
        };
        int own_y[2], own_x[2];
        find(row, own_y[0], own_x[0]), find(row + 8, own_y[1], own_x[1]);
        uint32_t same[2][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int y, x;
            find(lane + 32 * half, y, x);
            uint32_t in_y[3], in_x[3];
#pragma unroll
            for (int r = 0; r < 3; ++r) in_y[r] = __ballot_sync(0xffffffffu, y == r), in_x[r] = __ballot_sync(0xffffffffu, x == r);
#pragma unroll
            for (int h = 0; h < 2; ++h)
                same[h][half] = (own_y[h] == 0 ? in_y[0] : own_y[h] == 1 ? in_y[1] : in_y[2]) & (own_x[h] == 0 ? in_x[0] : own_x[h] == 1 ? in_x[1] : in_x[2]);
        }
        const int t = lane % 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) others[h][0] = ~__funnelshift_r(same[h][0], same[h][1], 2 * t), others[h][1] = ~(same[h][1] >> 2 * t);
    }
};

}  // namespace trt_opt
