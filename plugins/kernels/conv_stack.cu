// TrtOptConvStack: the convolutions of few channels that make tokens of an image, and words of one of the maps between, as one kernel.
//
// At batch 1 each of these convolutions is a launch and hardly any work. Here a block has eight tokens, two rows of four, and computes all that they depend on,
// layer by layer in shared memory: what blocks beside each other need both is computed twice, which costs less than a way to memory and back and a launch.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "mbarrier.cuh"
#include "mma.cuh"
#include "ptx.cuh"
#include "row_pieces.h"

namespace trt_opt {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32, kTileH = 2, kTileW = 4, kTile = kTileH * kTileW;
constexpr int kImageInner = 4, kMaxConvs = kStackMaxLayers + 1;
constexpr int kBarriers = 64, kScratch = 2 * kThreads;  // halves

// Channels that a place of what a convolution reads is filled up to.
__host__ __device__ constexpr int inner_of(int channels) { return channels <= 16 ? 16 : channels <= 32 ? 32 : 64; }
__host__ __device__ constexpr int steps_of(int inner) { return inner == kImageInner ? 3 : 9 * inner / 16; }  // of 16 contracted elements

// Where the first of some places is in a map, and how many there are: `scale` times the tile's number, plus `shift`.
struct Span {
    int scale = 0, shift = 0, count = 0;
};

struct StackConv {
    const __half *w, *bias;
    int inner, tiles;            // of 16 columns
    int stride;
    int in, in_pitch, in_width;  // of the places that it reads, in halves; in_width: places a row
    int out, out_pitch;
    Span rows, columns;          // places that it computes
    int height, width;           // of the map that they are of
    FastDiv by_columns;
    int staged;                  // halves in shared memory where the weights come, or -1
};

struct StackArgs {
    const void* x;
    const __half *offset, *word_offset;
    __half *y, *words;
    int channels, height, width;
    Span rows, columns;  // pixels that a tile sees
    FastDiv by_pixels_w;
    int layers, branch, y_columns, word_columns;
    FastDiv tiles_w, tiles_h, words_h, words_w;
    int grid_h, grid_w;       // patches
    int partials;             // floats, at the start of shared memory
    int barriers;             // halves
    StackConv convs[kMaxConvs];  // the branch is the one behind the layers
};

__device__ __forceinline__ float relu(float v) { return fmaxf(v, 0.f); }

// The product of a warp's 16 columns and the places of every so many tiles of eight, with SPLIT a part of the contracted elements; `finish` gets the sums. A lane has of
// 16 columns 4 (g / 2) + g % 2 and the second behind it, so that four columns that follow each other meet in a lane where results are transposed.
template <int INNER, bool SPLIT, class Finish> __device__ __forceinline__ void convolve(const StackConv& l, __half* shared, uint32_t barrier, bool meet, Finish&& finish) {
    constexpr bool kWide = INNER >= 32;
    constexpr int kParts = SPLIT && INNER == 64 ? 2 : 1, kSteps = steps_of(INNER) / kParts, kLoads = kWide ? kSteps / 2 : kSteps;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const int units = l.tiles * kParts, group = warp / units, groups = kWarps / units, unit = warp - group * units, part = unit / l.tiles, tile = unit - part * l.tiles;
    const bool busy = group < groups;
    const uint4* const w = reinterpret_cast<const uint4*>(l.staged >= 0 ? shared + l.staged : l.w) + (tile * kSteps * kParts + 2 * part) * 32 + lane;
    uint4 a[kWide ? 1 : kSteps];  // few enough to stay in registers, and to be on their way before the barrier
    if (busy) {
        if (l.staged >= 0) mbarrier::wait(barrier, 0);  // before sm_90 nothing: those copies were before a barrier of all
        if constexpr (!kWide) {
#pragma unroll
            for (int i = 0; i < kSteps; ++i) a[i] = w[32 * i];
        }
    }
    float low = 0, high = 0;
    if (const int column = 16 * tile + g / 2 * 4 + g % 2; busy && part == 0) low = __half2float(l.bias[column]), high = __half2float(l.bias[column + 2]);
    if (meet) __syncthreads();
    if (!busy) return;
    const int count = l.rows.count * l.columns.count;
#pragma unroll 1
    for (int first = group * 8; first < count; first += groups * 8) {
        // Places past the last are copies of it.
        uint32_t x;
        const int y = static_cast<int>(l.by_columns.divmod(static_cast<uint32_t>(min(first + g, count - 1)), x));
        const __half* const b = shared + l.in + (y * l.stride * l.in_width + static_cast<int>(x) * l.stride) * l.in_pitch + (kWide ? 8 : 4) * t + 32 * part;
        const int pitch = l.in_pitch, row = l.in_width * l.in_pitch;
        // Of a place of the kernel, and of a place's 64 channels the second half; parts are one of these halves each.
        auto at = [&](int i) {
            if constexpr (INNER == kImageInner) return i * row;
            constexpr int kHalves = INNER == 64 && kParts == 1 ? 2 : 1;
            return i / kHalves / 3 * row + i / kHalves % 3 * pitch + i % kHalves * 32;
        };
        float acc[2][4] = {{low, low, high, high}, {}};  // of every second step, to wait for fewer
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
            if constexpr (kWide) {
                const uint4 v = *reinterpret_cast<const uint4*>(b + at(i));
                const uint4 p = w[64 * kParts * i], q = w[64 * kParts * i + 32];
                multiply(acc[0], {p.x, p.z, p.y, p.w}, {v.x, v.y});
                multiply(acc[1], {q.x, q.z, q.y, q.w}, {v.z, v.w});
            } else {
                const uint2 v = *reinterpret_cast<const uint2*>(b + at(i));
                multiply(acc[i % 2], {a[i].x, a[i].z, a[i].y, a[i].w}, {v.x, v.y});
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[0][i] += acc[1][i];
        finish(acc[0], first, y, static_cast<int>(x), tile, part);
    }
}

template <bool SPLIT, class Finish> __device__ __forceinline__ void convolve(const StackConv& l, __half* shared, uint32_t barrier, bool meet, Finish&& finish) {
    if (l.inner == 16) convolve<16, SPLIT>(l, shared, barrier, meet, finish);
    else if (l.inner == 32) convolve<32, SPLIT>(l, shared, barrier, meet, finish);
    else convolve<64, SPLIT>(l, shared, barrier, meet, finish);
}

__device__ __forceinline__ void store4(__half* to, uint2 v, int exist) {
    if (exist >= 4 && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
        *reinterpret_cast<uint2*>(to) = v;
        return;
    }
    const uint32_t r[2] = {v.x, v.y};
    store_halves<4, false>(to, exist, r);
}

// Brings so many bytes into the first-level cache, by the threads from `first` on, and counts these. A load would need a register, and the next one to it the end of the one
// before. A thread copies once in all, since copies to one place have no order.
__device__ __forceinline__ void touch(const __half* p, int bytes, __half* scratch, int& first) {
    constexpr int kSector = 32;
    const int at = (static_cast<int>(threadIdx.x) - first) * kSector;
    if (at >= 0 && at < bytes) {
        const auto address = reinterpret_cast<uintptr_t>(p) + at;
        ptx::copy<4>(scratch + 2 * threadIdx.x, reinterpret_cast<const void*>(address & ~uintptr_t{3}));
    }
    first += (bytes + kSector - 1) / kSector;
}

template <class X> __global__ void __launch_bounds__(kThreads, 1) conv_stack_kernel(const __grid_constant__ StackArgs p) {
#if __CUDA_ARCH__ >= 800
    using namespace ptx;
    let_next_start();
    extern __shared__ __align__(128) unsigned char memory[];
    auto* const shared = reinterpret_cast<__half*>(memory);
    const int tid = threadIdx.x, lane = tid % 32, g = lane / 4, t = lane % 4;
    const uint32_t barriers = shared_address(shared + p.barriers);
    const int convs = p.layers + (p.branch >= 0 ? 1 : 0);
    auto bytes_of = [&](const StackConv& l) { return l.tiles * steps_of(l.inner) * 512; };
#if __CUDA_ARCH__ >= 900
    const uint32_t blocks = cluster_blocks(), rank = cluster_rank();
    if (tid == 0) {
#pragma unroll 1
        for (int i = 0; i < convs; ++i) {
            if (p.convs[i].staged < 0) continue;
            mbarrier::init(barriers + 8 * i, 1);
            mbarrier::publish();
            mbarrier::expect(barriers + 8 * i, bytes_of(p.convs[i]));
        }
    }
    // Another block's copy counts at a barrier that is there.
    if (blocks > 1) cluster_arrive_relaxed(), cluster_wait();
    else __syncthreads();
    auto fetch = [&](int i) {
        const StackConv& l = p.convs[i];
        if (tid != 0 || l.staged < 0) return;
        const uint32_t bytes = bytes_of(l) / blocks, to = shared_address(shared + l.staged) + rank * bytes;
        const char* const from = reinterpret_cast<const char*>(l.w) + rank * bytes;
        if (blocks > 1) mbarrier::copy_to_all(to, from, bytes, barriers + 8 * i, (1u << blocks) - 1);
        else mbarrier::copy(to, from, bytes, barriers + 8 * i);
    };
#pragma unroll 1
    for (int i = 1; i + 1 < p.layers; ++i) fetch(i);
#else
    for (int i = 0; i < convs; ++i) {
        const StackConv& l = p.convs[i];
        if (l.staged < 0) continue;
        for (int j = tid; j < bytes_of(l) / 16; j += kThreads) copy16(shared + l.staged + 8 * j, l.w + 8 * j, true);
    }
#endif
    // Small constants are in the first-level cache when they are needed, each time behind a barrier.
    __half* const scratch = shared + p.barriers + kBarriers;
    int touching = 0;
#pragma unroll 1
    for (int i = 0; i < convs; ++i) {
        const StackConv& l = p.convs[i];
        touch(l.staged < 0 ? l.w : l.bias, (l.staged < 0 ? bytes_of(l) : 0) + 32 * l.tiles, scratch, touching);
    }
    if (p.branch >= 0) touch(p.word_offset, 2 * static_cast<int>(p.words_h.divisor * p.words_w.divisor) * p.word_columns, scratch, touching);
    commit_copies();
    uint32_t tile_x, tile_y;
    const uint32_t image = p.tiles_h.divmod(p.tiles_w.divmod(blockIdx.x, tile_x), tile_y);
    auto place = [](const Span& s, uint32_t tile) { return s.scale * static_cast<int>(tile) + s.shift; };
    wait_for_previous();

    // Pixels of four channels, zeros outside of the image, and one more behind the last, which a weight of zero meets.
    {
        const int64_t plane = int64_t{p.height} * p.width;
        const X* const from = static_cast<const X*>(p.x) + int64_t{image} * p.channels * plane;
        const int y0 = place(p.rows, tile_y), x0 = place(p.columns, tile_x), pixels = p.rows.count * p.columns.count;
        constexpr int kBatch = 5;
#pragma unroll 1
        for (int first = tid; first <= pixels; first += kBatch * kThreads) {
            X v[kBatch][kImageInner];
#pragma unroll
            for (int i = 0; i < kBatch; ++i) {
                uint32_t across;
                const int at = first + i * kThreads, y = y0 + static_cast<int>(p.by_pixels_w.divmod(static_cast<uint32_t>(at), across)), x = x0 + static_cast<int>(across);
                const bool exists = at < pixels && y >= 0 && y < p.height && x >= 0 && x < p.width;
                const X* const pixel = from + int64_t{y} * p.width + x;
#pragma unroll
                for (int c = 0; c < kImageInner; ++c) v[i][c] = exists && c < p.channels ? __ldcg(pixel + c * plane) : X(0.f);  // past the cache that has the constants
            }
#if __CUDA_ARCH__ >= 900
            // The most, behind the pixels that are asked for.
            if (first == tid) fetch(p.layers - 1);
#endif
#pragma unroll
            for (int i = 0; i < kBatch; ++i)
                if (const int at = first + i * kThreads; at <= pixels)
                    *reinterpret_cast<uint2*>(shared + p.convs[0].in + kImageInner * at) = make_uint2(pack_halves(to_float(v[i][0]), to_float(v[i][1])), pack_halves(to_float(v[i][2]), to_float(v[i][3])));
        }
    }

    wait_copies<0>();
    bool meet = true;
#pragma unroll 1
    for (int i = 0; i + 1 < p.layers; ++i) {
        const StackConv& l = p.convs[i];
        const int top = place(l.rows, tile_y), left = place(l.columns, tile_x), count = l.rows.count * l.columns.count;
        auto store = [&](float (&acc)[4], int first, int y, int x, int tile, int) {
            uint2 v = make_uint2(transposed(pack_halves(relu(acc[0]), relu(acc[1]))), transposed(pack_halves(relu(acc[2]), relu(acc[3]))));
            const bool inside = top + y >= 0 && top + y < l.height && left + x >= 0 && left + x < l.width;
            if (!inside) v = make_uint2(0, 0);
            if (first + g < count) *reinterpret_cast<uint2*>(shared + l.out + (first + g) * l.out_pitch + 16 * tile + 4 * t) = v;
        };
        if (i == 0) convolve<kImageInner, false>(l, shared, barriers, meet, store);
        else convolve<false>(l, shared, barriers + 8 * i, meet, store);
        meet = true;
        if (i != p.branch) continue;
        const StackConv& b = p.convs[p.layers];
        const int word_top = place(b.rows, tile_y), word_left = place(b.columns, tile_x), words = b.rows.count * b.columns.count;
        const int patch_words = static_cast<int>(p.words_h.divisor * p.words_w.divisor);
        convolve<false>(b, shared, barriers + 8 * p.layers, true, [&](float (&acc)[4], int first, int y, int x, int tile, int) {
            // Of the lane's place: its word, and the row of the output; < 0 where there is none.
            int word = -1;
            int64_t row = 0;
            if (first + g < words && word_top + y < b.height && word_left + x < b.width) {
                uint32_t dy, dx;
                const uint32_t down = p.words_h.divmod(static_cast<uint32_t>(word_top + y), dy), across = p.words_w.divmod(static_cast<uint32_t>(word_left + x), dx);
                word = static_cast<int>(dy * p.words_w.divisor + dx);
                row = ((int64_t{image} * p.grid_h + down) * p.grid_w + across) * patch_words + word;
            }
            float sum[4];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int other = __shfl_sync(0xffffffffu, word, (2 * t + j) * 4), column = 16 * tile + g / 2 * 4 + g % 2;
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    sum[2 * h + j] = relu(acc[2 * h + j]) + (other >= 0 && column + 2 * h < p.word_columns ? __half2float(p.word_offset[other * p.word_columns + column + 2 * h]) : 0.f);
            }
            const uint2 v = make_uint2(transposed(pack_halves(sum[0], sum[1])), transposed(pack_halves(sum[2], sum[3])));
            if (const int column = 16 * tile + 4 * t; word >= 0 && column < p.word_columns) store4(p.words + row * p.word_columns + column, v, p.word_columns - column);
        });
        meet = false;
    }

    const StackConv& l = p.convs[p.layers - 1];
    float* const partials = reinterpret_cast<float*>(memory) + p.partials;
    const int fours = 4 * l.tiles, pitch = 16 * l.tiles + 4, parts = l.inner == 64 ? 2 : 1;
    // A thread four columns of a token; what is added to them is asked for ahead.
    const int token = tid / fours, column = 4 * (tid - token * fours), token_y = place(l.rows, tile_y) + token / kTileW, token_x = place(l.columns, tile_x) + token % kTileW;
    const bool mine = token < kTile && column < p.y_columns && token_y < l.height && token_x < l.width;
    const int64_t at = (int64_t{token_y} * l.width + token_x) * p.y_columns + column;
    __half offset[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) offset[i] = mine && column + i < p.y_columns ? p.offset[at + i] : __half(0.f);
    convolve<true>(l, shared, barriers + 8 * (p.layers - 1), meet, [&](float (&acc)[4], int, int, int, int tile, int part) {
#pragma unroll
        for (int i = 0; i < 4; ++i) partials[(part * kTile + 2 * t + i % 2) * pitch + 16 * tile + g / 2 * 4 + g % 2 + i / 2 * 2] = acc[i];
    });
    __syncthreads();
    if (!mine) return;
    float4 sum = *reinterpret_cast<const float4*>(partials + token * pitch + column);
    if (parts > 1) {
        const float4 more = *reinterpret_cast<const float4*>(partials + (kTile + token) * pitch + column);
        sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
    }
    const float v[4] = {sum.x, sum.y, sum.z, sum.w};
    float r[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) r[i] = relu(v[i]) + __half2float(offset[i]);
    store4(p.y + int64_t{image} * l.height * l.width * p.y_columns + at, make_uint2(pack_halves(r[0], r[1]), pack_halves(r[2], r[3])), p.y_columns - column);
#endif
}

// Without tensor cores: a thread a value, a launch a layer.
template <class X, class T> struct PlainConv {
    const X* x;  // [images, height, width, channels], or the image
    bool image;
    const T *w, *bias;
    T* y;
    const T* offset;  // of a place of y or, with words, of a word; null: none
    int channels, height, width, columns, out_h, out_w, stride, inner, words_h, words_w;  // words_h: 0 where places stay in order
    int64_t values;
};
__host__ __device__ inline int64_t weight_at(int inner, int column, int channel, int dy, int dx) {
    const int contracted = inner == kImageInner ? 16 * dy + kImageInner * dx + channel : (3 * dy + dx) * inner + channel;
    // Of 16 or 32 contracted elements a lane of four has four or eight that follow each other.
    const int step = inner >= 32 ? contracted / 32 * 2 + contracted / 4 % 2 : contracted / 16, t = inner >= 32 ? contracted / 8 % 4 : contracted / 4 % 4;
    const int g = column % 16 / 4 * 2 + column % 2, half = column / 2 % 2;
    return ((int64_t{column / 16} * steps_of(inner) + step) * 32 + 4 * g + t) * 8 + 4 * half + contracted % 4;
}

template <class X, class T> __global__ void __launch_bounds__(128) conv_plain_kernel(const __grid_constant__ PlainConv<X, T> p) {
    for (int64_t i = int64_t{blockIdx.x} * 128 + threadIdx.x; i < p.values; i += int64_t{gridDim.x} * 128) {
        const int column = static_cast<int>(i % p.columns), across = static_cast<int>(i / p.columns % p.out_w), down = static_cast<int>(i / p.columns / p.out_w % p.out_h);
        const int64_t image = i / p.columns / p.out_w / p.out_h;
        float sum = to_float(p.bias[column]);
        for (int dy = 0; dy < 3; ++dy)
            for (int dx = 0; dx < 3; ++dx) {
                const int y = down * p.stride + dy - 1, x = across * p.stride + dx - 1;
                if (y < 0 || y >= p.height || x < 0 || x >= p.width) continue;
                for (int c = 0; c < p.channels; ++c) {
                    const int64_t at = p.image ? ((image * p.channels + c) * p.height + y) * p.width + x : ((image * p.height + y) * p.width + x) * p.channels + c;
                    // Rounded as the operand of a product of T.
                    sum = fmaf(to_float(from_float<T>(to_float(p.x[at]))), to_float(p.w[weight_at(p.inner, column, c, dy, dx)]), sum);
                }
            }
        sum = fmaxf(sum, 0.f);
        int64_t to = i;
        if (p.words_h > 0) {
            const int word = down % p.words_h * p.words_w + across % p.words_w;
            const int64_t patch = (image * (p.out_h / p.words_h) + down / p.words_h) * (p.out_w / p.words_w) + across / p.words_w;
            sum += to_float(p.offset[int64_t{word} * p.columns + column]);
            to = (patch * p.words_h * p.words_w + word) * p.columns + column;
        } else if (p.offset) {
            sum += to_float(p.offset[(int64_t{down} * p.out_w + across) * p.columns + column]);
        }
        p.y[to] = from_float<T>(sum);
    }
}

bool branched(const ConvStackProblem& q) { return q.branch >= 0; }
int convs_of(const ConvStackProblem& q) { return q.layers + (branched(q) ? 1 : 0); }
int columns_of(const ConvStackProblem& q, int conv) { return conv == q.layers ? q.word_columns : q.columns[conv]; }
// The layer whose map a convolution reads; -1: the image.
int source_of(const ConvStackProblem& q, int conv) { return conv == q.layers ? q.branch : conv - 1; }
int inner_of(const ConvStackProblem& q, int conv) { return source_of(q, conv) < 0 ? kImageInner : inner_of(q.columns[source_of(q, conv)]); }
// Columns of its weights: those between layers are as many as the next convolution contracts.
int padded_columns(const ConvStackProblem& q, int conv) { return conv < q.layers - 1 ? inner_of(q.columns[conv]) : (columns_of(q, conv) + 15) / 16 * 16; }
int64_t element(const ConvStackProblem& q) { return q.dtype == DType::kHalf ? 2 : 4; }

bool valid(const ConvStackProblem& q) {
    auto within = [](int64_t v, int64_t most) { return v > 0 && v <= most; };
    if (!(q.image == q.dtype || (q.image == DType::kFloat && q.dtype == DType::kHalf))) return false;
    if (q.layers < 2 || q.layers > kStackMaxLayers || !within(q.channels, kImageInner) || !within(q.height, kStackMaxPixels) || !within(q.width, kStackMaxPixels / q.height) || q.images < 0 || q.images > kStackMaxPixels / (int64_t{q.height} * q.width)) return false;
    for (int i = 0; i < q.layers; ++i)
        if (!within(q.columns[i], i + 1 < q.layers ? kStackMaxInner : kStackMaxColumns) || !within(q.strides[i], 2)) return false;
    if (!branched(q)) return q.branch == -1;
    if (q.branch > q.layers - 2 || !within(q.word_columns, kStackMaxInner) || !within(q.words_h, kStackMaxPatchWords) || !within(q.words_w, kStackMaxPatchWords / q.words_h)) return false;
    return conv_stack_side(q, q.branch, 0) % q.words_h == 0 && conv_stack_side(q, q.branch, 1) % q.words_w == 0;
}

// What a tile of `tile` places of the last layer needs of each map, the image last.
void spans(const ConvStackProblem& q, int tile, Span (&of)[kMaxConvs], Span& branch) {
    Span at{tile, 0, tile};
    for (int i = q.layers - 1; i >= 0; --i) {
        if (i == q.branch) {
            branch = {at.scale, 0, at.scale};
            const int end = std::max(at.shift + at.count, at.scale + 1);
            at.shift = std::min(at.shift, -1), at.count = end - at.shift;
        }
        of[i] = at;
        at = {at.scale * q.strides[i], at.shift * q.strides[i] - 1, (at.count - 1) * q.strides[i] + 3};
    }
    of[kMaxConvs - 1] = at;
}

// The arguments and the shared memory, in bytes; 0: it does not fit.
size_t plan(const ConvStackProblem& q, StackArgs& p) {
    if (q.dtype != DType::kHalf || device().major < 8 || !aligned_to(16, q.w)) return 0;
    Span rows[kMaxConvs], columns[kMaxConvs], branch_rows, branch_columns;
    spans(q, kTileH, rows, branch_rows), spans(q, kTileW, columns, branch_columns);
    // Buffers are used again once all that read them are behind a barrier. One is in use from the layer that writes it to the one that reads it.
    struct Use {
        int64_t begin, end;  // halves
        int from, to;
    };
    Use uses[kMaxConvs + 2];
    int count = 0;
    auto place = [&](int64_t halves, int from, int to) {
        halves = (halves + 63) / 64 * 64;
        int64_t begin = 0;
        for (bool moved = true; moved;) {
            moved = false;
            for (int i = 0; i < count; ++i)
                if (uses[i].from <= to && from <= uses[i].to && begin < uses[i].end && uses[i].begin < begin + halves) begin = uses[i].end, moved = true;
        }
        uses[count++] = {begin, begin + halves, from, to};
        return begin;
    };
    const int last = q.layers - 1, convs = convs_of(q);
    const Span &pixel_rows = rows[kMaxConvs - 1], &pixel_columns = columns[kMaxConvs - 1];
    int64_t in = place(kImageInner * (int64_t{pixel_rows.count} * pixel_columns.count + 1), -1, 0), pitch = kImageInner, width = pixel_columns.count;
    for (int i = 0; i < q.layers; ++i) {
        StackConv& l = p.convs[i];
        l.rows = rows[i], l.columns = columns[i];
        l.in = static_cast<int>(in), l.in_pitch = static_cast<int>(pitch), l.in_width = static_cast<int>(width);
        if (i == last) break;
        // Loads of 8 or 16 bytes a lane, of places so many apart, meet no bank twice.
        const int inner = inner_of(q.columns[i]), stride = q.strides[i + 1];
        pitch = inner;
        while (inner == 16 ? pitch * stride % 32 != 16 : pitch * stride % 64 != 32) pitch += 8;
        width = columns[i].count;
        in = place(pitch * rows[i].count * width, i, i + 1);
        l.out = static_cast<int>(in), l.out_pitch = static_cast<int>(pitch);
    }
    p.partials = static_cast<int>(place(int64_t{2} * kTile * (padded_columns(q, last) + 4) * 2, last, q.layers) / 2);
    if (branched(q)) {
        StackConv& b = p.convs[q.layers];
        const StackConv& from = p.convs[q.branch];
        b.rows = branch_rows, b.columns = branch_columns;
        b.in_pitch = from.out_pitch, b.in_width = from.columns.count;
        b.in = from.out + ((-1 - from.rows.shift) * b.in_width + (-1 - from.columns.shift)) * b.in_pitch;
    }
    int64_t used = 0;
    for (int i = 0; i < count; ++i) used = std::max(used, uses[i].end);
    p.barriers = static_cast<int>(used), used += kBarriers + kScratch;
    if (2 * used > device().shared) return 0;
    const auto* const w = static_cast<const __half*>(q.w);
    for (int i = convs - 1; i >= 0; --i) {
        StackConv& l = p.convs[i];
        const int layer = source_of(q, i) + 1;
        l.inner = inner_of(q, i), l.tiles = padded_columns(q, i) / 16, l.stride = i == q.layers ? 1 : q.strides[i];
        if (l.tiles * (i == last && l.inner == 64 ? 2 : 1) > kWarps) return 0;
        l.w = w + conv_stack_begin(q, i), l.bias = l.w + int64_t{l.tiles} * steps_of(l.inner) * 256;
        l.height = conv_stack_side(q, i == q.layers ? q.branch : layer, 0), l.width = conv_stack_side(q, i == q.layers ? q.branch : layer, 1);
        l.by_columns = FastDiv(static_cast<uint32_t>(l.columns.count));
    }
    // Weights that are on their way from the start, the largest first: of the last layer; the first has no time for that.
    for (int i = last; i > 0; --i) {
        StackConv& l = p.convs[i];
        const int64_t halves = int64_t{l.tiles} * steps_of(l.inner) * 256;
        l.staged = 2 * (used + halves) <= device().shared ? static_cast<int>(used) : -1;
        if (l.staged >= 0) used += halves;
    }
    p.convs[0].staged = p.convs[q.layers].staged = -1;
    p.x = q.x, p.offset = static_cast<const __half*>(q.offset), p.word_offset = static_cast<const __half*>(q.word_offset), p.y = static_cast<__half*>(q.y), p.words = static_cast<__half*>(q.words);
    p.channels = q.channels, p.height = q.height, p.width = q.width, p.rows = pixel_rows, p.columns = pixel_columns;
    p.by_pixels_w = FastDiv(static_cast<uint32_t>(pixel_columns.count));
    p.layers = q.layers, p.branch = q.branch, p.y_columns = q.columns[last], p.word_columns = q.word_columns;
    p.tiles_h = FastDiv(static_cast<uint32_t>((conv_stack_side(q, last, 0) + kTileH - 1) / kTileH)), p.tiles_w = FastDiv(static_cast<uint32_t>((conv_stack_side(q, last, 1) + kTileW - 1) / kTileW));
    p.words_h = FastDiv(static_cast<uint32_t>(q.words_h)), p.words_w = FastDiv(static_cast<uint32_t>(q.words_w));
    if (branched(q)) p.grid_h = conv_stack_side(q, q.branch, 0) / q.words_h, p.grid_w = conv_stack_side(q, q.branch, 1) / q.words_w;
    return static_cast<size_t>(2 * used);
}

int64_t blocks_of(const ConvStackProblem& q, const StackArgs& p) { return q.images * p.tiles_h.divisor * p.tiles_w.divisor; }

// Blocks in clusters of so many that run at once, as this thread found it the last time that the device or the shared memory changed.
int64_t blocks_at_once(size_t shared, int cluster) {
    struct Known {
        int device = -1;
        size_t shared = 0;
        int clusters = 0;
    };
    thread_local Known known[5];
    Known& k = known[cluster];
    if (const int id = device().id; k.device != id || k.shared != shared || id < 0) k = {id, shared, active_clusters(conv_stack_kernel<float>, cluster, kThreads, static_cast<int>(shared))};
    return int64_t{k.clusters} * cluster;
}

template <class X> cudaError_t launch(const ConvStackProblem& q, const StackArgs& p, size_t shared, int cluster, cudaStream_t stream) {
    return launch_ahead(conv_stack_kernel<X>, static_cast<uint32_t>(blocks_of(q, p)), kThreads, shared, stream, cluster, p);
}

template <class X, class T> cudaError_t run_plain(const ConvStackProblem& q, const void* x, int conv, T* y, const void* offset, cudaStream_t stream) {
    PlainConv<X, T> p{};
    const int source = source_of(q, conv), layer = conv == q.layers ? q.branch : conv;
    p.x = static_cast<const X*>(x), p.image = source < 0, p.w = static_cast<const T*>(q.w) + conv_stack_begin(q, conv), p.bias = static_cast<const T*>(q.w) + conv_stack_bias(q, conv, 0), p.y = y, p.offset = static_cast<const T*>(offset);
    p.channels = source < 0 ? q.channels : q.columns[source], p.height = conv_stack_side(q, source, 0), p.width = conv_stack_side(q, source, 1);
    p.columns = columns_of(q, conv), p.out_h = conv_stack_side(q, layer, 0), p.out_w = conv_stack_side(q, layer, 1), p.stride = conv == q.layers ? 1 : q.strides[conv], p.inner = inner_of(q, conv);
    if (conv == q.layers) p.words_h = q.words_h, p.words_w = q.words_w;
    p.values = q.images * p.out_h * p.out_w * p.columns;
    const auto blocks = static_cast<uint32_t>(std::min<int64_t>((p.values + 127) / 128, 1 << 20));
    conv_plain_kernel<X, T><<<blocks, 128, 0, stream>>>(p);
    return cudaGetLastError();
}

// Between layers, an image, in bytes.
int64_t between(const ConvStackProblem& q) {
    int64_t values = 0;
    for (int i = 0; i + 1 < q.layers; ++i) values += int64_t{conv_stack_side(q, i, 0)} * conv_stack_side(q, i, 1) * q.columns[i];
    return values * element(q);
}
int64_t images_a_piece(const ConvStackProblem& q) { return std::min(q.images, std::max<int64_t>(1, kPieceBytes / between(q))); }

template <class X, class T> cudaError_t run_piece(const ConvStackProblem& q, cudaStream_t stream) {
    auto* space = static_cast<T*>(q.workspace);
    const T* map = nullptr;
    for (int i = 0; i < q.layers; ++i) {
        const bool last = i == q.layers - 1;
        T* const y = last ? static_cast<T*>(q.y) : space;
        const void* const offset = last ? q.offset : nullptr;
        const cudaError_t status = i == 0 ? run_plain<X, T>(q, q.x, i, y, offset, stream) : run_plain<T, T>(q, map, i, y, offset, stream);
        if (status != cudaSuccess) return status;
        map = y;
        if (!last) space += q.images * conv_stack_side(q, i, 0) * conv_stack_side(q, i, 1) * q.columns[i];
        if (i != q.branch) continue;
        if (const cudaError_t branch = run_plain<T, T>(q, map, q.layers, static_cast<T*>(q.words), q.word_offset, stream); branch != cudaSuccess) return branch;
    }
    return cudaSuccess;
}

template <class X, class T> cudaError_t run_plain(const ConvStackProblem& q, cudaStream_t stream) {
    const auto values = [&](int layer, int columns) { return int64_t{conv_stack_side(q, layer, 0)} * conv_stack_side(q, layer, 1) * columns; };
    const int64_t step = images_a_piece(q);
    for (int64_t from = 0; from < q.images; from += step) {
        ConvStackProblem p = q;
        p.images = std::min(step, q.images - from);
        p.x = static_cast<const X*>(q.x) + from * values(-1, q.channels), p.y = static_cast<T*>(q.y) + from * values(q.layers - 1, q.columns[q.layers - 1]);
        if (branched(q)) p.words = static_cast<T*>(q.words) + from * values(q.branch, q.word_columns);
        if (const cudaError_t status = run_piece<X, T>(p, stream); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace

int32_t conv_stack_side(const ConvStackProblem& q, int32_t layer, int axis) {
    int32_t side = axis == 0 ? q.height : q.width;
    for (int i = 0; i <= layer; ++i) side = (side - 1) / q.strides[i] + 1;
    return side;
}

int64_t conv_stack_begin(const ConvStackProblem& q, int32_t layer) {
    int64_t at = 0;
    for (int i = 0; i < layer; ++i) at += int64_t{padded_columns(q, i)} * (16 * steps_of(inner_of(q, i)) + 1);
    return at;
}
int64_t conv_stack_weights(const ConvStackProblem& q) { return conv_stack_begin(q, convs_of(q)); }
int64_t conv_stack_weight(const ConvStackProblem& q, int32_t layer, int32_t column, int32_t channel, int32_t dy, int32_t dx) { return conv_stack_begin(q, layer) + weight_at(inner_of(q, layer), column, channel, dy, dx); }
int64_t conv_stack_bias(const ConvStackProblem& q, int32_t layer, int32_t column) { return conv_stack_begin(q, layer) + int64_t{padded_columns(q, layer)} * 16 * steps_of(inner_of(q, layer)) + column; }

int64_t conv_stack_workspace(const ConvStackProblem& q) {
    StackArgs p{};
    return valid(q) && plan(q, p) == 0 ? images_a_piece(q) * between(q) : 0;
}

bool conv_stack_tactic_valid(const ConvStackProblem& q, int32_t tactic) {
    StackArgs p{};
    if (!valid(q) || q.images == 0 || plan(q, p) == 0) return false;
    return tactic == 1 || ((tactic == 2 || tactic == 4) && device().major >= 9 && blocks_of(q, p) % tactic == 0);
}
std::vector<int32_t> conv_stack_tactics(const ConvStackProblem& q) {
    StackArgs p{};
    const size_t shared = valid(q) && q.images > 0 ? plan(q, p) : 0;
    if (shared == 0) return {};
    std::vector<int32_t> tactics;
    for (int32_t tactic : {4, 2, 1})
        if (conv_stack_tactic_valid(q, tactic)) tactics.push_back(tactic);
    if (tactics.size() == 1) return tactics;
    // First those with the fewest blocks one after another, then those that share most.
    const auto rounds = [&](int32_t tactic) {
        const int64_t at_once = blocks_at_once(shared, tactic);
        return at_once > 0 ? (blocks_of(q, p) + at_once - 1) / at_once : INT64_MAX;
    };
    std::stable_sort(tactics.begin(), tactics.end(), [&](int32_t a, int32_t b) { return rounds(a) < rounds(b); });
    return tactics;
}

cudaError_t conv_stack(const ConvStackProblem& q, cudaStream_t stream, int32_t tactic) {
    if (!valid(q)) return cudaErrorInvalidValue;
    if (q.images == 0) return cudaSuccess;
    StackArgs p{};
    if (const size_t shared = plan(q, p); shared > 0) {
        if (!conv_stack_tactic_valid(q, tactic)) tactic = conv_stack_tactics(q).front();
        return q.image == DType::kFloat ? launch<float>(q, p, shared, tactic, stream) : launch<__half>(q, p, shared, tactic, stream);
    }
    if (!q.workspace) return cudaErrorInvalidValue;
    if (q.dtype == DType::kFloat) return run_plain<float, float>(q, stream);
    return q.image == DType::kFloat ? run_plain<float, __half>(q, stream) : run_plain<__half, __half>(q, stream);
}

}  // namespace trt_opt
