// TrtOptPixelEmbed: the words of the patches of an image, a convolution of it in the order of patches with an offset a word.
//
// One kernel does what takes a convolution between transpositions and an add otherwise. With few images all of it is the way to memory and back, so there
// is one: weights and offsets are on their way to shared memory before the wait for the kernel ahead, and all pixels that a patch sees are asked for at once.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "mma.cuh"
#include "ptx.cuh"

namespace trt_opt {
namespace {

constexpr int kThreads = 128, kSlots = kPixelSlots;

// Where the pixels of a patch are.
struct PixelMap {
    FastDiv by_grid_w, by_grid_h;  // patches to places
    FastDiv by_words_w;            // words to places in a patch
    int height, width;             // of the image
    int stride_h, stride_w, pad_h, pad_w;
    int step_h, step_w;            // pixels from a patch to the next
    bool within;                   // pixels of other patches are zeros, too
    int64_t image;                 // pixels of an image, all channels

    // The image's first pixel and, within it, the patch's.
    __device__ __forceinline__ int64_t of_patch(uint32_t patch, int& y, int& x) const {
        uint32_t down, across;
        const uint32_t index = by_grid_h.divmod(by_grid_w.divmod(patch, across), down);
        y = static_cast<int>(down) * step_h, x = static_cast<int>(across) * step_w;
        return index * image;
    }
    // Whether pixel (y + dy, x + dx) is seen from the patch that starts at (y, x).
    __device__ __forceinline__ bool sees(int y, int dy, int x, int dx) const {
        const bool in_patch = !within || (dy >= 0 && dy < step_h && dx >= 0 && dx < step_w);
        return in_patch && y + dy >= 0 && y + dy < height && x + dx >= 0 && x + dx < width;
    }
};

template <class X, class T> struct PixelArgs {
    const X* x;
    const T* w;       // [columns, rows, kSlots]
    const T* offset;  // [words, columns]
    T* y;             // [patches, words, columns]
    uint32_t patches;
    int words, columns;
    int rows;                  // of the kernel, in all channels
    int kernel_h, kernel_w, channels;
    PixelMap map;
    // What only tensor cores use.
    FastDiv by_pitch, by_region_h;  // places of the pixels that a patch sees
    FastDiv by_rows, by_tiles;      // pieces of the weights; tiles of eight columns
    int pixels;                     // that a patch sees, in rows of whole fours, all channels
    int w_row;                      // a column's weights in shared memory
};

template <int VEC> __device__ __forceinline__ uint2 four_halves(const __half* p) {
    if constexpr (VEC == 4) {
        return *reinterpret_cast<const uint2*>(p);
    } else if constexpr (VEC == 2) {
        return make_uint2(*reinterpret_cast<const uint32_t*>(p), *reinterpret_cast<const uint32_t*>(p + 2));
    } else {
        auto pair = [&](int i) {
            const __half2 v = __halves2half2(p[i], p[i + 1]);
            return *reinterpret_cast<const uint32_t*>(&v);
        };
        return make_uint2(pair(0), pair(2));
    }
}

// A block has a patch at a time, and the weights for all of them. A warp has 16 words and 8 columns. Rows of the kernel are filled up with zeros to eight
// weights, so that 16 contracted elements are two rows, and lane t of four takes [4t, 4t + 4) of them, of A as of B: which they are does not matter if both
// agree, and with strides of whole fours each is one access. The zeros do meet pixels, of which none may be infinite.
template <class X, int VEC> __global__ void __launch_bounds__(kThreads) pixel_embed_kernel(const __grid_constant__ PixelArgs<X, __half> p) {
#if __CUDA_ARCH__ >= 800
    using namespace ptx;
    let_next_start();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    auto* const weights = reinterpret_cast<__half*>(shared);
    __half* const offsets = weights + p.columns * p.w_row;
    __half* const seen = offsets + p.words * p.columns;
    for (int i = tid; i < p.columns * static_cast<int>(p.by_rows.divisor); i += kThreads) {
        uint32_t row;
        const int column = static_cast<int>(p.by_rows.divmod(static_cast<uint32_t>(i), row));
        const bool exists = static_cast<int>(row) < p.rows;
        copy16(weights + column * p.w_row + row * kSlots, exists ? p.w + (column * p.rows + static_cast<int>(row)) * kSlots : p.w, exists);
    }
    for (int i = tid; i < p.words * p.columns / 8; i += kThreads) copy16(offsets + 8 * i, p.offset + 8 * i, true);
    commit_copies();
    wait_for_previous();

    const int pitch = static_cast<int>(p.by_pitch.divisor), region_h = static_cast<int>(p.by_region_h.divisor), steps = static_cast<int>(p.by_rows.divisor) / 2;
    const int plane = region_h * pitch, tiles = (p.words + 15) / 16 * static_cast<int>(p.by_tiles.divisor);
#pragma unroll 1
    for (uint32_t patch = blockIdx.x; patch < p.patches; patch += gridDim.x) {
        {
            int y, x;
            const X* const from = p.x + p.map.of_patch(patch, y, x);
            constexpr int kBatch = 9;  // 3 channels, a kernel of 7, and 4 x 4 words at strides of 4 in one round
#pragma unroll 1
            for (int first = tid; first < p.pixels; first += kBatch * kThreads) {
                X v[kBatch];
#pragma unroll
                for (int i = 0; i < kBatch; ++i) {
                    const int at = first + i * kThreads;
                    uint32_t across, down;
                    const int channel = static_cast<int>(p.by_region_h.divmod(p.by_pitch.divmod(static_cast<uint32_t>(at), across), down));
                    const int dy = static_cast<int>(down) - p.map.pad_h, dx = static_cast<int>(across) - p.map.pad_w;
                    v[i] = at < p.pixels && p.map.sees(y, dy, x, dx) ? from[(channel * p.map.height + y + dy) * p.map.width + x + dx] : X(0.f);
                }
#pragma unroll
                for (int i = 0; i < kBatch; ++i)
                    if (first + i * kThreads < p.pixels) seen[first + i * kThreads] = from_float<__half>(to_float(v[i]));
            }
        }
        wait_copies<0>();
        __syncthreads();
#pragma unroll 1
        for (int tile = warp; tile < tiles; tile += kThreads / 32) {
            uint32_t column_tile;
            const int word0 = static_cast<int>(p.by_tiles.divmod(static_cast<uint32_t>(tile), column_tile)) * 16 + g, column = static_cast<int>(column_tile) * 8;
            float acc[2][4] = {};  // of every second step, to wait for fewer
            const __half* a[2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                // Words past the last are copies of it.
                const int word = min(word0 + 8 * h, p.words - 1);
                uint32_t j;
                const int i = static_cast<int>(p.map.by_words_w.divmod(static_cast<uint32_t>(word), j));
                a[h] = seen + i * p.map.stride_h * pitch + static_cast<int>(j) * p.map.stride_w + 4 * (t % 2);
                const float2 offset = __half22float2(*reinterpret_cast<const __half2*>(offsets + word * p.columns + column + 2 * t));
                acc[0][2 * h] = offset.x, acc[0][2 * h + 1] = offset.y;
            }
            const __half* const b = weights + (column + g) * p.w_row + 4 * t;
            int row = t / 2, ky = row, at = row * pitch;
            auto enter = [&] {  // the next channel
                if (ky >= p.kernel_h) ky -= p.kernel_h, at += plane - p.kernel_h * pitch;
            };
            enter();
            auto step = [&](float (&sum)[4], int s) {
                uint32_t x[4], y[2];
                const int from = row < p.rows ? at : 0;  // weights past the last are zeros
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const uint2 v = four_halves<VEC>(a[h] + from);
                    x[h] = v.x, x[2 + h] = v.y;
                }
                const uint2 v = *reinterpret_cast<const uint2*>(b + 16 * s);
                y[0] = v.x, y[1] = v.y;
                multiply(sum, x, y);
                row += 2, ky += 2, at += 2 * pitch;
                enter(), enter();
            };
#pragma unroll 2
            for (int s = 0; s < steps; s += 2) {
                step(acc[0], s);
                if (s + 1 < steps) step(acc[1], s + 1);
            }
#pragma unroll
            for (int h = 0; h < 2; ++h)
                if (const int word = word0 + 8 * h; word < p.words)
                    *reinterpret_cast<uint32_t*>(p.y + (int64_t{patch} * p.words + word) * p.columns + column + 2 * t) =
                        pack_halves(acc[0][2 * h] + acc[1][2 * h], acc[0][2 * h + 1] + acc[1][2 * h + 1]);
        }
        __syncthreads();
    }
#endif
}

// A thread a value.
template <class X, class T> __global__ void __launch_bounds__(kThreads) pixel_embed_plain_kernel(const __grid_constant__ PixelArgs<X, T> p, FastDiv by_columns) {
    const int64_t each = int64_t{p.words} * p.columns;
    const uint32_t i = blockIdx.x * kThreads + threadIdx.x, patch = blockIdx.y * gridDim.z + blockIdx.z;
    if (patch >= p.patches || i >= each) return;
    uint32_t column, j;
    const uint32_t word = by_columns.divmod(i, column);
    const auto down = static_cast<int>(p.map.by_words_w.divmod(word, j));
    int y, x;
    const X* const from = p.x + p.map.of_patch(patch, y, x);
    const int dy0 = down * p.map.stride_h - p.map.pad_h, dx0 = static_cast<int>(j) * p.map.stride_w - p.map.pad_w;
    const T* w = p.w + int64_t{column} * p.rows * kSlots;
    float sum = to_float(p.offset[int64_t{word} * p.columns + column]);
    for (int c = 0; c < p.channels; ++c)
        for (int ky = 0; ky < p.kernel_h; ++ky, w += kSlots)
            for (int kx = 0; kx < p.kernel_w; ++kx)
                // Rounded as the operand of a product of T.
                if (const int dy = dy0 + ky, dx = dx0 + kx; p.map.sees(y, dy, x, dx))
                    sum = fmaf(to_float(from_float<T>(to_float(from[(c * p.map.height + y + dy) * p.map.width + x + dx]))), to_float(w[kx]), sum);
    p.y[patch * each + i] = from_float<T>(sum);
}

bool valid(const PixelEmbedProblem& q) {
    auto within = [](int64_t v, int64_t most) { return v > 0 && v <= most; };
    const bool types = q.image == q.dtype || (q.image == DType::kFloat && q.dtype == DType::kHalf);
    const bool kernel = within(q.kernel_h, kPixelMaxRows) && within(q.kernel_w, kSlots) && within(q.channels, kPixelMaxRows / q.kernel_h) && q.pad_h >= 0 && q.pad_h < q.kernel_h && q.pad_w >= 0 && q.pad_w < q.kernel_w;
    const bool strides = within(q.stride_h, 1024) && within(q.stride_w, 1024) && within(q.words_h, kPixelMaxWords) && within(q.words_w, kPixelMaxWords / q.words_h);
    return types && kernel && strides && q.images >= 0 && within(q.height, INT32_MAX) && within(q.width, INT32_MAX / q.height / q.channels) && within(q.columns, kPixelMaxColumns) && within(q.grid_h, 1 << 15) &&
           within(q.grid_w, 1 << 15) && q.images <= INT32_MAX / q.patches();
}

PixelMap map_of(const PixelEmbedProblem& q) {
    PixelMap m;
    m.by_grid_w = FastDiv(static_cast<uint32_t>(q.grid_w)), m.by_grid_h = FastDiv(static_cast<uint32_t>(q.grid_h)), m.by_words_w = FastDiv(static_cast<uint32_t>(q.words_w));
    m.height = q.height, m.width = q.width, m.stride_h = q.stride_h, m.stride_w = q.stride_w, m.pad_h = q.pad_h, m.pad_w = q.pad_w;
    m.step_h = q.words_h * q.stride_h, m.step_w = q.words_w * q.stride_w, m.within = q.within, m.image = int64_t{q.channels} * q.height * q.width;
    return m;
}

template <class X, class T> PixelArgs<X, T> arguments(const PixelEmbedProblem& q) {
    PixelArgs<X, T> p{};
    p.x = static_cast<const X*>(q.x), p.w = static_cast<const T*>(q.w), p.offset = static_cast<const T*>(q.offset), p.y = static_cast<T*>(q.y);
    p.patches = static_cast<uint32_t>(q.images * q.patches()), p.words = q.words(), p.columns = q.columns, p.rows = q.channels * q.kernel_h;
    p.kernel_h = q.kernel_h, p.kernel_w = q.kernel_w, p.channels = q.channels, p.map = map_of(q);
    return p;
}

template <class X, class T> cudaError_t launch_plain(const PixelEmbedProblem& q, cudaStream_t stream) {
    const auto p = arguments<X, T>(q);
    constexpr uint32_t kMost = 65535;  // blocks along the second and the third axis
    const uint32_t deep = (p.patches + kMost - 1) / kMost;
    const dim3 grid(static_cast<uint32_t>((int64_t{p.words} * p.columns + kThreads - 1) / kThreads), (p.patches + deep - 1) / deep, deep);
    pixel_embed_plain_kernel<X, T><<<grid, kThreads, 0, stream>>>(p, FastDiv(static_cast<uint32_t>(q.columns)));
    return cudaGetLastError();
}

// How the tensor cores do it; no `shared`: they do not.
template <class X> size_t cut(const PixelEmbedProblem& q, PixelArgs<X, __half>& p) {
    if (device().major < 8 || q.columns % 8 != 0 || !aligned_to(16, q.w, q.offset) || !aligned_to(4, q.y)) return 0;
    const int rows = (p.rows + 1) / 2 * 2, pitch = ((q.words_w - 1) * q.stride_w + kSlots + 3) / 4 * 4, region_h = (q.words_h - 1) * q.stride_h + q.kernel_h;
    const int64_t pixels = int64_t{q.channels} * region_h * pitch;
    // Odd numbers of 32 bytes a column, so that no bank is met twice.
    p.w_row = rows * kSlots + (rows / 2 % 2 == 0 ? 16 : 0);
    const int64_t shared = 2 * (int64_t{q.columns} * (p.w_row + p.words) + pixels);
    if (shared > device().shared) return 0;
    p.pixels = static_cast<int>(pixels);
    p.by_pitch = FastDiv(static_cast<uint32_t>(pitch)), p.by_region_h = FastDiv(static_cast<uint32_t>(region_h)), p.by_rows = FastDiv(static_cast<uint32_t>(rows));
    p.by_tiles = FastDiv(static_cast<uint32_t>(q.columns / 8));
    return static_cast<size_t>(shared);
}

template <class X> cudaError_t launch_half(const PixelEmbedProblem& q, cudaStream_t stream) {
    auto p = arguments<X, __half>(q);
    const size_t shared = cut(q, p);
    if (shared == 0) return launch_plain<X, __half>(q, stream);
    // With more patches than run at once a block has several, for one set of weights.
    constexpr uint32_t kBlocks = 8;  // a multiprocessor
    const uint32_t blocks = std::min(p.patches, kBlocks * static_cast<uint32_t>(device().multiprocessors));
    auto launch = [&](auto kernel) { return launch_ahead(kernel, blocks, kThreads, shared, stream, 1, p); };
    if (q.stride_w % 4 == 0) return launch(pixel_embed_kernel<X, 4>);
    return q.stride_w % 2 == 0 ? launch(pixel_embed_kernel<X, 2>) : launch(pixel_embed_kernel<X, 1>);
}

}  // namespace

cudaError_t pixel_embed(const PixelEmbedProblem& q, cudaStream_t stream) {
    if (!valid(q)) return cudaErrorInvalidValue;
    if (q.images == 0) return cudaSuccess;
    if (q.dtype == DType::kFloat) return launch_plain<float, float>(q, stream);
    return q.image == DType::kFloat ? launch_half<float>(q, stream) : launch_half<__half>(q, stream);
}

}  // namespace trt_opt
