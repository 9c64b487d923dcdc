// What the attention kernels share: sizes, strides, and the bias of a score.
#pragma once

#include <math_constants.h>

#include <algorithm>

#include "common.cuh"
#include "kernels.h"

namespace trt_opt {

constexpr float kLog2e = 1.4426950408889634f;

template <class T> struct AttentionView {
    const T* base;
    int64_t batch;
    int32_t token, head;

    __device__ __forceinline__ const T* rows(int64_t b, int h) const { return base + b * batch + int64_t{h} * head; }
};

template <class T> struct AttentionArgs {
    AttentionView<T> q, k, v;
    T* out;  // [batch, N, heads * dv]
    int64_t batch;
    int32_t heads, n, m, d, dv;
    float scale;

    AttentionBias bias_kind;
    AttentionMask mask_kind;
    const T* bias;
    const T* mask;
    int64_t bias_period, mask_period;
    int32_t bias_heads;
    float mask_value;
    int32_t window_h, window_w;
    int32_t edge_y, cut_y, edge_x, cut_x;  // padded positions where the regions of the shift mask begin
    FastDiv by_window_w, by_windows_x, by_windows, by_bias_period, by_mask_period;

    // Batch rows whose bias and mask are the same: b, b + period, b + 2 * period, ...
    int64_t period;
    int64_t per_block;  // of them a block takes (resident kernel)

    __device__ __forceinline__ T* out_row(int64_t b, int h, int row) const {
        return out + (b * n + row) * (int64_t{heads} * dv) + int64_t{h} * dv;
    }
};

// Bias + mask of scores, for one (batch row, head). `b` < 2^31.
template <class T> struct ScoreBias {
    const AttentionArgs<T>& p;
    const T* bias;  // dense: [N, M]; table: first entry of the head
    const T* mask;  // dense: [N, M]
    int window_y = 0, window_x = 0;

    __device__ __forceinline__ ScoreBias(const AttentionArgs<T>& args, uint32_t b, int h) : p(args), bias(nullptr), mask(nullptr) {
        const int64_t size = int64_t{p.n} * p.m;
        uint32_t row;
        if (p.bias_kind == AttentionBias::kDense) {
            p.by_bias_period.divmod(b, row);
            bias = p.bias + (int64_t{row} * p.bias_heads + (p.bias_heads == 1 ? 0 : h)) * size;
        } else if (p.bias_kind == AttentionBias::kTable) {
            bias = p.bias + h;
        }
        if (p.mask_kind == AttentionMask::kDense) {
            p.by_mask_period.divmod(b, row);
            mask = p.mask + row * size;
        } else if (p.mask_kind == AttentionMask::kShift) {
            uint32_t x;
            p.by_windows.divmod(b, row);
            window_y = p.by_windows_x.divmod(row, x);
            window_x = x;
        }
    }
    __device__ __forceinline__ bool any() const {
        return p.bias_kind != AttentionBias::kNone || p.mask_kind != AttentionMask::kNone;
    }
    // Region of a token of the window for the shift mask.
    __device__ __forceinline__ int region(int token) const {
        uint32_t x;
        const int y = p.by_window_w.divmod(token, x);
        const int py = window_y * p.window_h + y, px = window_x * p.window_w + static_cast<int>(x);
        return (py >= p.edge_y) + (py >= p.cut_y) + 4 * ((px >= p.edge_x) + (px >= p.cut_x));
    }
    // The table's row for query (y1, x1) and key (y2, x2) is query_row - key_row.
    __device__ __forceinline__ int key_row(int token) const {
        return token + static_cast<int>(p.by_window_w.div(token)) * (p.window_w - 1);
    }
    __device__ __forceinline__ int query_row(int token) const {
        return key_row(token) + (p.window_h - 1) * (2 * p.window_w - 1) + p.window_w - 1;
    }

    // One score. Both tokens inside N and M.
    __device__ __forceinline__ float at(int query, int key) const {
        float value = 0.f;
        if (p.bias_kind == AttentionBias::kDense) value = to_float(bias[query * p.m + key]);
        else if (p.bias_kind == AttentionBias::kTable) value = to_float(bias[(query_row(query) - key_row(key)) * p.heads]);
        if (p.mask_kind == AttentionMask::kDense) value += to_float(mask[query * p.m + key]);
        else if (p.mask_kind == AttentionMask::kShift && region(query) != region(key)) value += p.mask_value;
        return value;
    }

    // Fragments of TILES tiles of 8 keys: f[n] = scores of queries (r0, r0, r1, r1), keys (k, k + 1, k, k + 1) with
    // k = first + 8 n, in log2 units; -inf beyond the last key. Queries and keys may lie outside: the loads are
    // clamped, not skipped, so that all are in flight together.
    template <int TILES> __device__ __forceinline__ void fragments(int r0, int r1, int first, float (&f)[TILES][4]) const {
        r0 = min(r0, p.n - 1), r1 = min(r1, p.n - 1);
        const int last = p.m - 1;
        auto dense = [&](const T* from, bool add) {
            const T* a = from + r0 * p.m;
            const T* c = from + r1 * p.m;
            T raw[TILES][4];
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                const int k0 = min(first + 8 * n, last), k1 = min(first + 8 * n + 1, last);
                raw[n][0] = a[k0], raw[n][1] = a[k1], raw[n][2] = c[k0], raw[n][3] = c[k1];
            }
#pragma unroll
            for (int n = 0; n < TILES; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) f[n][e] = add ? fmaf(to_float(raw[n][e]), kLog2e, f[n][e]) : to_float(raw[n][e]) * kLog2e;
        };
        if (p.bias_kind == AttentionBias::kDense) {
            dense(bias, false);
        } else if (p.bias_kind == AttentionBias::kTable) {
            const int a = query_row(r0), c = query_row(r1);
            T raw[TILES][4];
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                const int k0 = key_row(min(first + 8 * n, last)), k1 = key_row(min(first + 8 * n + 1, last));
                raw[n][0] = bias[(a - k0) * p.heads], raw[n][1] = bias[(a - k1) * p.heads];
                raw[n][2] = bias[(c - k0) * p.heads], raw[n][3] = bias[(c - k1) * p.heads];
            }
#pragma unroll
            for (int n = 0; n < TILES; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) f[n][e] = to_float(raw[n][e]) * kLog2e;
        } else {
#pragma unroll
            for (int n = 0; n < TILES; ++n) f[n][0] = f[n][1] = f[n][2] = f[n][3] = 0.f;
        }
        if (p.mask_kind == AttentionMask::kDense) {
            dense(mask, true);
        } else if (p.mask_kind == AttentionMask::kShift) {
            const int a = region(r0), c = region(r1);
            const float masked = p.mask_value * kLog2e;
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                const int k0 = region(min(first + 8 * n, last)), k1 = region(min(first + 8 * n + 1, last));
                f[n][0] += a != k0 ? masked : 0.f, f[n][1] += a != k1 ? masked : 0.f;
                f[n][2] += c != k0 ? masked : 0.f, f[n][3] += c != k1 ? masked : 0.f;
            }
        }
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            if (first + 8 * n > last) f[n][0] = f[n][2] = -CUDART_INF_F;
            if (first + 8 * n + 1 > last) f[n][1] = f[n][3] = -CUDART_INF_F;
        }
    }
};

// Fills all but the tactic's choices; false if the problem is not one the kernels solve.
template <class T> bool attention_args(const AttentionProblem& q, AttentionArgs<T>& p) {
    constexpr int32_t kMax = 1 << 30;
    if (q.batch < 0 || q.heads < 1 || q.queries < 0 || q.keys < 1 || q.dim < 1 || q.dim > 128 || q.value_dim < 1 || q.value_dim > 128)
        return false;
    if (int64_t{q.queries} * q.keys > kMax && (q.bias_kind == AttentionBias::kDense || q.mask_kind == AttentionMask::kDense)) return false;
    auto view = [](const HeadView& v) { return AttentionView<T>{static_cast<const T*>(v.base), v.batch, v.token, v.head}; };
    p = {};
    p.q = view(q.q), p.k = view(q.k), p.v = view(q.v);
    p.out = static_cast<T*>(q.out);
    p.batch = q.batch;
    p.heads = q.heads, p.n = q.queries, p.m = q.keys, p.d = q.dim, p.dv = q.value_dim;
    p.scale = q.scale;
    p.bias_kind = q.bias_kind, p.mask_kind = q.mask_kind;
    p.bias = static_cast<const T*>(q.bias), p.mask = static_cast<const T*>(q.mask);
    p.bias_period = q.bias_period, p.mask_period = q.mask_period;
    p.bias_heads = q.bias_heads;
    p.mask_value = q.mask_value;
    p.period = 1;
    auto combine = [&](int64_t period) {  // least common multiple, bounded by the batch
        int64_t a = p.period, b = period;
        while (b) { const int64_t r = a % b; a = b, b = r; }
        if (p.period < p.batch) p.period = p.period / a * period;
    };
    if (q.bias_kind == AttentionBias::kDense) {
        if (q.bias_period < 1 || (q.bias_heads != 1 && q.bias_heads != q.heads)) return false;
        p.by_bias_period = FastDiv(static_cast<uint32_t>(std::min<int64_t>(q.bias_period, INT32_MAX)));
        combine(q.bias_period);
    }
    if (q.mask_kind == AttentionMask::kDense) {
        if (q.mask_period < 1) return false;
        p.by_mask_period = FastDiv(static_cast<uint32_t>(std::min<int64_t>(q.mask_period, INT32_MAX)));
        combine(q.mask_period);
    }
    const WindowGrid& g = q.window;
    if (q.bias_kind == AttentionBias::kTable || q.mask_kind == AttentionMask::kShift) {
        if (g.window_h < 1 || g.window_w < 1 || q.queries != g.window_tokens() || q.keys != q.queries) return false;
        p.window_h = g.window_h, p.window_w = g.window_w;
        p.by_window_w = FastDiv(g.window_w);
    }
    if (q.mask_kind == AttentionMask::kShift) {
        if (g.grid_h < 1 || g.grid_w < 1 || g.windows() > INT32_MAX || g.shift_h < 0 || g.shift_w < 0) return false;
        const int windows_y = (g.grid_h + g.window_h - 1) / g.window_h, windows_x = (g.grid_w + g.window_w - 1) / g.window_w;
        const int padded_h = windows_y * g.window_h, padded_w = windows_x * g.window_w;
        // Unshifted axis: one region, so the edges lie beyond the grid.
        p.edge_y = g.shift_h ? padded_h - g.window_h : padded_h, p.cut_y = padded_h - g.shift_h;
        p.edge_x = g.shift_w ? padded_w - g.window_w : padded_w, p.cut_x = padded_w - g.shift_w;
        p.by_windows_x = FastDiv(windows_x), p.by_windows = FastDiv(static_cast<uint32_t>(g.windows()));
        combine(g.windows());
    }
    return true;
}

}  // namespace trt_opt
