// The operators of docs/ops.md in double precision, one thread an output row, written for
// plainness: the kernels are held against these.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels.h"

namespace reference {

using trt_opt::AttentionBias;
using trt_opt::AttentionMask;
using trt_opt::AttentionProblem;
using trt_opt::GeluProblem;
using trt_opt::LayerNormProblem;
using trt_opt::MlpBlockProblem;
using trt_opt::NormPoolProblem;
using trt_opt::PatchMergeProblem;
using trt_opt::AttnBlockProblem;
using trt_opt::PooledAttnBlockProblem;
using trt_opt::ClassifierProblem;
using trt_opt::DepthwiseConvProblem;
using trt_opt::PatchConvProblem;
using trt_opt::PatchEmbedProblem;
using trt_opt::ConvStackProblem;
using trt_opt::PixelEmbedProblem;
using trt_opt::TntBridgeProblem;
using trt_opt::WindowGrid;
using trt_opt::WindowProblem;

template <class T> __device__ double get(const void* p, int64_t i) {
    if constexpr (std::is_same_v<T, double>) return static_cast<const double*>(p)[i];
    else return static_cast<double>(static_cast<float>(static_cast<const T*>(p)[i]));
}
template <class T> __device__ double rounded(double v) { return static_cast<double>(static_cast<float>(static_cast<T>(static_cast<float>(v)))); }

// Source token of element (iy, ix) of window (wy, wx): row in the image, or -1.
__device__ inline int64_t window_source(const WindowGrid& g, int wy, int wx, int iy, int ix) {
    const int py = wy * g.window_h + iy, px = wx * g.window_w + ix;
    if (g.pad_after_roll) {
        if (py >= g.grid_h || px >= g.grid_w) return -1;
        return int64_t{(py + g.shift_h) % g.grid_h} * g.grid_w + (px + g.shift_w) % g.grid_w;
    }
    const int hp = (g.grid_h + g.window_h - 1) / g.window_h * g.window_h, wp = (g.grid_w + g.window_w - 1) / g.window_w * g.window_w;
    const int y = (py + g.shift_h) % hp, x = (px + g.shift_w) % wp;
    return y < g.grid_h && x < g.grid_w ? int64_t{y} * g.grid_w + x : -1;
}
// Token row (over all images) of partitioned row r, or -1.
__device__ inline int64_t partition_source(const WindowGrid& g, int64_t r) {
    const int nx = (g.grid_w + g.window_w - 1) / g.window_w, ny = (g.grid_h + g.window_h - 1) / g.window_h;
    const int ix = r % g.window_w;
    r /= g.window_w;
    const int iy = r % g.window_h;
    r /= g.window_h;
    const int wx = r % nx;
    r /= nx;
    const int wy = r % ny;
    r /= ny;
    const int64_t at = window_source(g, wy, wx, iy, ix);
    return at < 0 ? -1 : r * g.grid_h * g.grid_w + at;
}

// y and sum as doubles; rows of the partitioned side, where there are windows.
template <class T> __global__ void layer_norm(LayerNormProblem p, int64_t rows, double* y, double* sum) {
    const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const int64_t from = p.window.window_h > 0 ? partition_source(p.window, r) : r;
    if (from < 0) {
        if (!p.reverse)
            for (int64_t i = 0; i < p.row; ++i) y[r * p.row + i] = 0;
        return;
    }
    const int64_t at_x = p.reverse ? r : from, at_y = p.reverse ? from : r;
    auto value = [&](int64_t i) {
        double s = get<T>(p.x, at_x * p.row + i);
        if (p.residual) s = rounded<T>(s + get<T>(p.residual, from * p.row + i));
        if (p.part) {
            const int64_t token = r % p.tokens - p.part_begin;
            if (token >= 0 && token < p.part_tokens) s = rounded<T>(s + get<T>(p.part, (r / p.tokens * p.part_tokens + token) * p.row + i));
        }
        return s;
    };
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < p.row; ++i) mean += value(i);
    mean /= p.row;
    for (int64_t i = 0; i < p.row; ++i) variance += (value(i) - mean) * (value(i) - mean);
    variance /= p.row;
    const double factor = 1 / sqrt(variance + static_cast<double>(p.epsilon));
    for (int64_t i = 0; i < p.row; ++i) {
        y[at_y * p.row + i] = (value(i) - mean) * factor * get<T>(p.scale, i) + get<T>(p.bias, i);
        if (p.residual || p.part) sum[from * p.row + i] = value(i);
    }
}

// rows: of the partitioned side. y must be zeroed for a partition.
template <class T> __global__ void window(WindowProblem p, int64_t rows, double* y) {
    const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const int64_t token = partition_source(p.window, r);
    for (int64_t c = 0; c < p.channels; ++c) {
        if (!p.reverse) y[r * p.channels + c] = token < 0 ? 0 : get<T>(p.x, token * p.channels + c);
        else if (token >= 0)
            y[token * p.channels + c] = get<T>(p.x, r * p.channels + c) + (p.residual ? get<T>(p.residual, token * p.channels + c) : 0);
    }
}

template <class T> __global__ void patch_merge(PatchMergeProblem p, int64_t rows, double* y) {
    const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const int ow = (p.grid_w + 1) / 2, oh = (p.grid_h + 1) / 2;
    const int x = r % ow, yy = r / ow % oh;
    const int64_t image = r / ow / oh, c4 = 4 * p.channels;
    auto value = [&](int64_t i) {
        const int quadrant = p.order[i / p.channels];
        const int iy = 2 * yy + quadrant / 2, ix = 2 * x + quadrant % 2;
        if (iy >= p.grid_h || ix >= p.grid_w) return 0.0;
        const int64_t at = ((image * p.grid_h + iy) * p.grid_w + ix) * p.channels + i % p.channels;
        return p.residual ? rounded<T>(get<T>(p.x, at) + get<T>(p.residual, at)) : get<T>(p.x, at);
    };
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < c4; ++i) mean += value(i);
    mean /= c4;
    for (int64_t i = 0; i < c4; ++i) variance += (value(i) - mean) * (value(i) - mean);
    variance /= c4;
    for (int64_t i = 0; i < c4; ++i)
        y[r * c4 + i] = (value(i) - mean) / sqrt(variance + static_cast<double>(p.epsilon)) * get<T>(p.scale, i) + get<T>(p.bias, i);
}

// A thread a token, and p the tokens' mean [images, row], zeroed; then a thread an element of y.
template <class T> __global__ void classifier_pool(ClassifierProblem p, double* pooled) {
    const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (r >= p.images * p.tokens || (p.token >= 0 && r % p.tokens != p.token)) return;
    auto value = [&](int64_t i) {
        const double s = get<T>(p.x, r * p.row + i);
        return p.residual ? rounded<T>(s + get<T>(p.residual, r * p.row + i)) : s;
    };
    double mean = 0, variance = 0;
    for (int64_t i = 0; p.norm && i < p.row; ++i) mean += value(i) / p.row;
    for (int64_t i = 0; p.norm && i < p.row; ++i) variance += (value(i) - mean) * (value(i) - mean) / p.row;
    const double factor = p.norm ? 1 / sqrt(variance + static_cast<double>(p.epsilon)) : 1;
    for (int64_t i = 0; i < p.row; ++i) atomicAdd(pooled + r / p.tokens * p.row + i, (value(i) - mean) * factor / (p.token >= 0 ? 1 : p.tokens));
}
template <class T> __global__ void classifier(ClassifierProblem p, const double* pooled, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= p.images * p.classes) return;
    const int64_t image = i / p.classes, k = i % p.classes;
    double sum = p.bias == trt_opt::DType::kHalf ? get<__half>(p.b, k) : get<float>(p.b, k);
    for (int64_t c = 0; c < p.row; ++c) sum += get<T>(p.w, k * p.row + c) * pooled[image * p.row + c];
    y[i] = sum;
}

// A thread a token. y must be zeroed.
template <class T> __global__ void norm_pool(NormPoolProblem p, double* y) {
    const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (r >= p.images * p.tokens) return;
    auto value = [&](int64_t i) {
        const double s = get<T>(p.x, r * p.row + i);
        return p.residual ? rounded<T>(s + get<T>(p.residual, r * p.row + i)) : s;
    };
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < p.row; ++i) mean += value(i);
    mean /= p.row;
    for (int64_t i = 0; i < p.row; ++i) variance += (value(i) - mean) * (value(i) - mean);
    const double factor = 1 / sqrt(variance / p.row + static_cast<double>(p.epsilon));
    for (int64_t i = 0; i < p.row; ++i)
        atomicAdd(y + r / p.tokens * p.row + i, ((value(i) - mean) * factor * get<T>(p.scale, i) + get<T>(p.bias, i)) / p.tokens);
}

// A thread an element of y. The tokens may be of another type than the weights.
template <class T, class X = T> __global__ void depthwise_conv(DepthwiseConvProblem p, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= p.images * p.height * p.width * p.channels) return;
    const int64_t c = i % p.channels, token = i / p.channels;
    const int tx = token % p.width, ty = token / p.width % p.height;
    double sum = p.b ? get<T>(p.b, c) : 0;
    if (p.residual) sum += get<X>(p.x, i);
    for (int ky = 0; ky < p.kernel; ++ky)
        for (int kx = 0; kx < p.kernel; ++kx) {
            const int dy = ky - p.kernel / 2, dx = kx - p.kernel / 2;
            if (ty + dy < 0 || ty + dy >= p.height || tx + dx < 0 || tx + dx >= p.width) continue;
            sum += get<T>(p.w, (int64_t{ky} * p.kernel + kx) * p.channels + c) * get<X>(p.x, i + (int64_t{dy} * p.width + dx) * p.channels);
        }
    y[i] = sum;
}

__device__ inline int region(int i, int length, int window, int shift) {
    return shift == 0 ? 0 : i < length - window ? 0 : i < length - shift ? 1 : 2;
}

// Queries, keys and values may be of another type than the bias and the mask.
template <class T, class Q = T> __global__ void attention(AttentionProblem p, double* out) {
    const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (r >= p.batch * p.heads * p.queries) return;
    const int n = r % p.queries, h = r / p.queries % p.heads;
    const int64_t b = r / p.queries / p.heads;
    const int64_t q0 = b * p.q.batch + int64_t{n} * p.q.token + int64_t{h} * p.q.head;
    const WindowGrid& g = p.window;
    auto score = [&](int m) {
        const int64_t k0 = b * p.k.batch + int64_t{m} * p.k.token + int64_t{h} * p.k.head;
        double s = 0;
        for (int i = 0; i < p.dim; ++i) s += get<Q>(p.q.base, q0 + i) * get<Q>(p.k.base, k0 + i);
        s *= static_cast<double>(p.scale);
        if (p.bias_kind == AttentionBias::kDense) {
            const int head = p.bias_heads == 1 ? 0 : h;
            s += get<T>(p.bias, ((b % p.bias_period * p.bias_heads + head) * p.queries + n) * p.keys + m);
        } else if (p.bias_kind == AttentionBias::kTable) {
            const int y1 = n / g.window_w, x1 = n % g.window_w, y2 = m / g.window_w, x2 = m % g.window_w;
            s += get<T>(p.bias, int64_t{(y1 - y2 + g.window_h - 1) * (2 * g.window_w - 1) + x1 - x2 + g.window_w - 1} * p.heads + h);
        }
        if (p.mask_kind == AttentionMask::kDense) {
            s += get<T>(p.mask, (b % p.mask_period * p.queries + n) * p.keys + m);
        } else if (p.mask_kind == AttentionMask::kShift) {
            const int ny = (g.grid_h + g.window_h - 1) / g.window_h, nx = (g.grid_w + g.window_w - 1) / g.window_w;
            const int w = b % (int64_t{ny} * nx), wy = w / nx, wx = w % nx;
            auto place = [&](int t) {
                return region(wy * g.window_h + t / g.window_w, ny * g.window_h, g.window_h, g.shift_h) * 3 +
                       region(wx * g.window_w + t % g.window_w, nx * g.window_w, g.window_w, g.shift_w);
            };
            if (place(n) != place(m)) s += static_cast<double>(p.mask_value);
        }
        return s;
    };
    double top = -INFINITY, sum = 0;
    for (int m = 0; m < p.keys; ++m) top = fmax(top, score(m));
    double o[128];
    for (int i = 0; i < p.value_dim; ++i) o[i] = 0;
    if (top > -INFINITY) {
        for (int m = 0; m < p.keys; ++m) {
            const double w = exp(score(m) - top);
            sum += w;
            const int64_t v0 = b * p.v.batch + int64_t{m} * p.v.token + int64_t{h} * p.v.head;
            if (w > 0)
                for (int i = 0; i < p.value_dim; ++i) o[i] += w * get<Q>(p.v.base, v0 + i);
        }
    }
    for (int i = 0; i < p.value_dim; ++i) out[((b * p.queries + n) * p.heads + h) * p.value_dim + i] = sum > 0 ? o[i] / sum : 0;
}

// The MLP block in three steps, one thread an element (the first: a row), all in double.
template <class T> __global__ void mlp_normal(MlpBlockProblem p, double* normal, double* stream) {
    const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (r >= p.rows) return;
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < p.channels; ++i) {
        double s = get<T>(p.x, r * p.channels + i);
        if (p.residual) s = rounded<T>(s + get<T>(p.residual, r * p.channels + i));
        stream[r * p.channels + i] = s;
        if (!p.norm) normal[r * p.channels + i] = s;
        mean += s;
    }
    if (!p.norm) return;
    mean /= p.channels;
    for (int64_t i = 0; i < p.channels; ++i) variance += (stream[r * p.channels + i] - mean) * (stream[r * p.channels + i] - mean);
    const double factor = 1 / sqrt(variance / p.channels + static_cast<double>(p.epsilon));
    for (int64_t i = 0; i < p.channels; ++i) normal[r * p.channels + i] = (stream[r * p.channels + i] - mean) * factor * get<T>(p.scale, i) + get<T>(p.bias, i);
}
template <class T> __global__ void mlp_hidden(MlpBlockProblem p, const double* normal, double* hidden) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= p.rows * p.hidden) return;
    const int64_t r = i / p.hidden, j = i % p.hidden;
    double v = get<T>(p.b1, j);
    for (int64_t c = 0; c < p.channels; ++c) v += normal[r * p.channels + c] * get<T>(p.w1, c * p.hidden + j);
    hidden[i] = p.tanh_gelu ? v / 2 * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (v + 0.044715 * v * v * v))) : v / 2 * (1 + erf(v / sqrt(2.0)));
}
template <class T> __global__ void mlp_out(MlpBlockProblem p, const double* hidden, const double* stream, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= p.rows * p.channels) return;
    const int64_t r = i / p.channels, c = i % p.channels;
    double v = get<T>(p.b2, c);
    for (int64_t j = 0; j < p.hidden; ++j) v += hidden[r * p.hidden + j] * get<T>(p.w2, j * p.channels + c);
    y[i] = stream[i] + v;
}

// The window attention block is `layer_norm`, `product`, `attention`, `product` and this, all in double.
template <class T> __global__ void product(const double* a, const void* w, const void* bias, int64_t rows, int k, int n, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= rows * n) return;
    const int64_t r = i / n, column = i % n;
    double v = get<T>(bias, column);
    for (int64_t j = 0; j < k; ++j) v += a[r * k + j] * get<T>(w, j * n + column);
    y[i] = v;
}
// rows: of all windows, or of all tokens. `sum`: that of x and residual, if there is one.
template <class T> __global__ void attn_block_out(AttnBlockProblem p, const double* projected, const double* sum, int64_t rows, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= rows * p.channels) return;
    const int64_t token = p.attention.window.window_h > 0 ? partition_source(p.attention.window, i / p.channels) : i / p.channels;
    if (token < 0) return;
    const int64_t at = token * p.channels + i % p.channels;
    y[at] = (p.residual ? sum[at] : get<T>(p.x, at)) + projected[i];
}

// The means of a pooled block's windows, one thread an element.
static __global__ void window_means(PooledAttnBlockProblem p, const double* normal, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, row = i / p.channels, across = p.grid_w / p.pool_w, pooled = p.grid_h / p.pool_h * across;
    if (row >= p.images * pooled) return;
    const int64_t within = row % pooled;
    double sum = 0;
    for (int dy = 0; dy < p.pool_h; ++dy)
        for (int dx = 0; dx < p.pool_w; ++dx) {
            const int64_t token = (within / across * p.pool_h + dy) * p.grid_w + within % across * p.pool_w + dx;
            sum += normal[(row / pooled * p.grid_h * p.grid_w + token) * p.channels + i % p.channels];
        }
    y[i] = sum / (p.pool_h * p.pool_w);
}

// What the block over words needs besides `product` and `attention`: a norm of doubles, one thread a row, and GELU and an add.
template <class T> __global__ void normalize(const double* x, const void* scale, const void* bias, int64_t rows, int64_t row, double epsilon, double* y) {
    const int64_t r = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    x += r * row, y += r * row;
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < row; ++i) mean += x[i];
    mean /= row;
    for (int64_t i = 0; i < row; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const double factor = 1 / sqrt(variance / row + epsilon);
    for (int64_t i = 0; i < row; ++i) y[i] = (x[i] - mean) * factor * get<T>(scale, i) + get<T>(bias, i);
}
template <class T> __global__ void widen(const void* x, int64_t count, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) y[i] = get<T>(x, i);
}
// What is added to some of the tokens of a bridge. p.x null: to zeros.
template <class T> __global__ void bridge_out(TntBridgeProblem p, const double* change, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, n = p.channels;
    if (i >= p.images * p.tokens * n) return;
    y[i] = p.x ? get<T>(p.x, i) : 0;
    if (p.residual) y[i] = rounded<T>(y[i] + get<T>(p.residual, i));
    const int64_t row = i / n % p.tokens - p.begin;
    if (row >= 0 && row < p.covered) y[i] += change[(i / n / p.tokens * p.covered + row) * n + i % n];
}

// Patches times weights, with the offset. X: of the image, T: of all else.
template <class X, class T> __global__ void patch_product(PatchEmbedProblem p, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, n = p.columns, across = p.width / p.patch_w, tokens = p.height / p.patch_h * across;
    if (i >= p.images * tokens * n) return;
    const int64_t patch = int64_t{p.channels} * p.patch_h * p.patch_w, column = i % n, token = i / n % tokens, image = i / n / tokens;
    double sum = p.b ? get<T>(p.b, column) : 0;
    for (int64_t c = 0, k = 0; c < p.channels; ++c)
        for (int64_t dy = 0; dy < p.patch_h; ++dy)
            for (int64_t dx = 0; dx < p.patch_w; ++dx, ++k) {
                const int64_t row = token / across * p.patch_h + dy, pixel = token % across * p.patch_w + dx;
                sum += rounded<T>(get<X>(p.x, ((image * p.channels + c) * p.height + row) * p.width + pixel)) * get<T>(p.w, column * patch + k);
            }
    y[i] = sum;
}

// The same of tokens [images, height * width, depth] and weights [n, kernel_h, kernel_w, depth].
template <class T> __global__ void token_patch_product(const void* x, const void* w, const void* b, int64_t images, int64_t height, int64_t width, int64_t depth, int64_t kernel_h, int64_t kernel_w, int64_t n, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, across = width / kernel_w, tokens = height / kernel_h * across;
    if (i >= images * tokens * n) return;
    const int64_t column = i % n, token = i / n % tokens, image = i / n / tokens;
    double sum = b ? get<T>(b, column) : 0;
    for (int64_t dy = 0; dy < kernel_h; ++dy)
        for (int64_t dx = 0; dx < kernel_w; ++dx)
            for (int64_t c = 0; c < depth; ++c) {
                const int64_t from = (image * height + token / across * kernel_h + dy) * width + token % across * kernel_w + dx;
                sum += get<T>(x, from * depth + c) * get<T>(w, ((column * kernel_h + dy) * kernel_w + dx) * depth + c);
            }
    y[i] = sum;
}

// A convolution at the places of a patch's words, with what is added to them. X: of the image, T: of all else.
template <class X, class T> __global__ void pixel_words(PixelEmbedProblem p, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, n = p.columns, words = p.words_h * p.words_w, patches = p.grid_h * p.grid_w;
    if (i >= p.images * patches * words * n) return;
    const int64_t column = i % n, word = i / n % words, patch = i / n / words % patches, image = i / n / words / patches;
    const int64_t step_h = p.words_h * p.stride_h, step_w = p.words_w * p.stride_w, top = patch / p.grid_w * step_h, left = patch % p.grid_w * step_w;
    double sum = get<T>(p.offset, word * n + column);
    for (int64_t c = 0; c < p.channels; ++c)
        for (int64_t ky = 0; ky < p.kernel_h; ++ky)
            for (int64_t kx = 0; kx < p.kernel_w; ++kx) {
                const int64_t row = top + word / p.words_w * p.stride_h + ky - p.pad_h, pixel = left + word % p.words_w * p.stride_w + kx - p.pad_w;
                if (row < 0 || row >= p.height || pixel < 0 || pixel >= p.width) continue;
                if (p.within && (row < top || row >= top + step_h || pixel < left || pixel >= left + step_w)) continue;
                sum += rounded<T>(get<X>(p.x, ((image * p.channels + c) * p.height + row) * p.width + pixel)) * get<T>(p.w, ((column * p.channels + c) * p.kernel_h + ky) * 8 + kx);
            }
    y[i] = sum;
}

// Convolution `conv` of a stack, a thread a value [images, out_h, out_w, columns], before anything is added: `map` has the values that it reads, channels last, or
// is null for the image, whose pixels are X. `weights`: that of each [columns, channels, 3, 3] and then the offsets, by where they are in the problem's.
template <class X, class T> __global__ void stack_conv(ConvStackProblem p, const double* map, const int64_t* weights, int channels, int height, int width, int columns, int out_h, int out_w, int stride, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= p.images * out_h * out_w * columns) return;
    const int64_t column = i % columns, across = i / columns % out_w, down = i / columns / out_w % out_h, image = i / columns / out_w / out_h;
    double sum = get<T>(p.w, weights[int64_t{columns} * channels * 9 + column]);
    for (int64_t c = 0; c < channels; ++c)
        for (int64_t ky = 0; ky < 3; ++ky)
            for (int64_t kx = 0; kx < 3; ++kx) {
                const int64_t row = down * stride + ky - 1, place = across * stride + kx - 1;
                if (row < 0 || row >= height || place < 0 || place >= width) continue;
                const double v = map ? map[((image * height + row) * width + place) * channels + c] : rounded<T>(get<X>(p.x, ((image * channels + c) * height + row) * width + place));
                sum += v * get<T>(p.w, weights[((column * channels + c) * 3 + ky) * 3 + kx]);
            }
    y[i] = sum > 0 ? sum : 0;
}
// What a layer gives as the next reads it.
template <class T> __global__ void round_all(double* x, int64_t count) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) x[i] = rounded<T>(x[i]);
}
// The places of a map in the order of the words of patches, plus what is added to each word; with one patch of one word an image's places stay in order and `offset` is of a place.
template <class T> __global__ void stack_words(const double* map, int64_t images, int height, int width, int columns, int words_h, int words_w, const void* offset, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= images * height * width * columns) return;
    const int64_t column = i % columns, across = i / columns % width, down = i / columns / width % height, image = i / columns / width / height;
    const int64_t word = down % words_h * words_w + across % words_w, patch = (image * (height / words_h) + down / words_h) * (width / words_w) + across / words_w;
    y[(patch * words_h * words_w + word) * columns + column] = map[i] + get<T>(offset, word * columns + column);
}

__device__ inline double gelu_of(double v, bool tanh_form) {
    return tanh_form ? v / 2 * (1 + tanh(sqrt(2 / 3.14159265358979323846) * (v + 0.044715 * v * v * v))) : v / 2 * (1 + erf(v / sqrt(2.0)));
}
static __global__ void gelu(double* x, int64_t count, bool tanh_form) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) x[i] = gelu_of(x[i], tanh_form);
}
// TrtOptGelu, a thread an element.
template <class T> __global__ void bias_gelu(GeluProblem p, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < p.rows * p.row) y[i] = gelu_of(get<T>(p.x, i) + (p.bias ? get<T>(p.bias, i % p.row) : 0.0), p.tanh);
}
// What is under the kernel of a convolution of tokens, a thread an element; `tokens`: in the order of x, normalized where they are to be.
static __global__ void patch_conv_rows(PatchConvProblem p, const double* tokens, int out_h, int out_w, int64_t rows, double* y) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, depth = int64_t{p.kernel[0]} * p.kernel[1] * p.channels;
    if (i >= rows * depth) return;
    const int64_t row = i / depth, tap = i % depth / p.channels, image = row / out_w / out_h;
    const int64_t down = row / out_w % out_h * p.strides[0] + tap / p.kernel[1] - p.pads[0], right = row % out_w * p.strides[1] + tap % p.kernel[1] - p.pads[1];
    if (down < 0 || down >= p.height || right < 0 || right >= p.width) {
        y[i] = 0;
        return;
    }
    const int64_t sizes[6] = {p.images / p.across, p.height / p.cell[0], p.across, p.width / p.cell[1], p.cell[0], p.cell[1]};
    const int64_t places[6] = {image / p.across, down / p.cell[0], image % p.across, right / p.cell[1], down % p.cell[0], right % p.cell[1]};
    int64_t token = 0;
    for (int axis = 0; axis < 6; ++axis) token = token * sizes[axis] + places[axis];
    y[i] = tokens[token * p.channels + i % p.channels];
}
static __global__ void add(double* x, const double* y, int64_t count) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i < count) x[i] += y[i];
}

}  // namespace reference
