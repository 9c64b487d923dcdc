// TrtOptDepthwiseConv: depthwise convolution over tokens, channels last, and the residual add.
//
// A thread has a few channels of a tile of tokens. What takes long with few tokens is each way to the second-level cache and back, so there is one: the
// weights, which do not depend on the kernel before, are on their way to registers before the wait for it, and all of the tile's tokens are read before
// the first is needed. 3 x 3 on many tokens and channels that fill no register go over the kernel's rows one by one.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"

namespace trt_opt {
namespace {

template <class T> struct DepthwiseConv {
    const T* x;  // [images, height * width, channels]
    const T* w;  // [kernel * kernel, channels]
    const T* b;  // [channels], or null
    T* y;
    int height, width, channels;
    bool residual;
    uint32_t count;  // threads with work
    FastDiv by_packs, by_strips, by_height;  // tiles: heights of tiles
};

constexpr int kThreads = 256;

// A register of channels of ROWS x STRIP tokens a thread, channels first, then tiles below each other, as those share the most tokens in the first-level
// cache, then tiles beside each other, images.
template <class T, int K, int ROWS> struct TileShape {
    static constexpr int VEC = 4 / sizeof(T);
    static constexpr int kStrip = K == 3 ? 2 : 4;
    static constexpr int kThreads = ROWS == 1 ? 256 : 128;  // a block has no more: registers
};
template <class T, int K, int ROWS> __global__ void __launch_bounds__(TileShape<T, K, ROWS>::kThreads) depthwise_conv_tile_kernel(const __grid_constant__ DepthwiseConv<T> p) {
    constexpr int VEC = TileShape<T, K, ROWS>::VEC, STRIP = TileShape<T, K, ROWS>::kStrip, R = K / 2, kHigh = ROWS + K - 1, kWide = STRIP + K - 1;
    using Vector = Pack<T, VEC>;
    using Raw = typename Vector::Raw;
    ptx::let_next_start();
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    uint32_t pack, strip, tile;
    const uint32_t image = p.by_strips.divmod(p.by_height.divmod(p.by_packs.divmod(i, pack), tile), strip);
    const int x = static_cast<int>(strip) * STRIP, y = static_cast<int>(tile) * ROWS, c = static_cast<int>(pack) * VEC;
    // An address that the compiler does not take apart to make each of its neighbours' from the start again.
    auto fixed = [](const T* from) {
        asm("" : "+l"(from));
        __builtin_assume(__isGlobal(from));
        return reinterpret_cast<const char*>(from);
    };
    auto at = [&](const char* from, int tokens) { return reinterpret_cast<const Raw*>(from + int64_t{p.channels} * static_cast<int>(tokens * sizeof(T))); };
    Vector w[K][K], offset;
    const char* const weights = fixed(p.w + c);
#pragma unroll
    for (int dy = 0; dy < K; ++dy)
#pragma unroll
        for (int dx = 0; dx < K; ++dx) w[dy][dx] = Vector(*at(weights, dy * K + dx));
    if (p.b) offset = Vector(*reinterpret_cast<const Raw*>(p.b + c));
    static_assert(STRIP >= R);  // of the columns before a strip all are there, or none
    bool inside[kWide];
#pragma unroll
    for (int j = 0; j < kWide; ++j) inside[j] = j < R ? x > 0 : j == R || x + j - R < p.width;
    const int64_t line = int64_t{p.width} * p.channels, first = int64_t{image} * p.height + y;
    ptx::wait_for_previous();

    Vector v[kHigh][kWide];
    const T* const corner = p.x + (first - R) * line + int64_t{x - R} * p.channels + c;
#pragma unroll
    for (int r = 0; r < kHigh; ++r)
        if (y + r - R >= 0 && y + r - R < p.height) {
            const char* const row = fixed(corner + r * line);
#pragma unroll
            for (int j = 0; j < kWide; ++j)
                if (inside[j]) v[r][j] = Vector(*at(row, j));
        }
    // The assembler takes loads down to where they are needed, to spare registers, and so waits for one after the other; not past this.
    __syncwarp();

    float acc[ROWS][STRIP][VEC], start[VEC];
    offset.floats(start);
#pragma unroll
    for (int t = 0; t < ROWS; ++t)
#pragma unroll
        for (int s = 0; s < STRIP; ++s)
#pragma unroll
            for (int e = 0; e < VEC; ++e) acc[t][s][e] = start[e];
#pragma unroll
    for (int r = 0; r < kHigh; ++r) {
        float in[kWide][VEC];
#pragma unroll
        for (int j = 0; j < kWide; ++j) v[r][j].floats(in[j]);
#pragma unroll
        for (int t = 0; t < ROWS; ++t) {
            const int dy = r - t;
            if (dy < 0 || dy >= K) continue;
#pragma unroll
            for (int dx = 0; dx < K; ++dx) {
                float f[VEC];
                w[dy][dx].floats(f);
#pragma unroll
                for (int s = 0; s < STRIP; ++s)
#pragma unroll
                    for (int e = 0; e < VEC; ++e) acc[t][s][e] = fmaf(in[s + dx][e], f[e], acc[t][s][e]);
            }
            if (dy == R && p.residual) {
#pragma unroll
                for (int s = 0; s < STRIP; ++s)
#pragma unroll
                    for (int e = 0; e < VEC; ++e) acc[t][s][e] += in[s + R][e];
            }
        }
    }
    T* const to = p.y + first * line + int64_t{x} * p.channels + c;
#pragma unroll
    for (int t = 0; t < ROWS; ++t)
        if (y + t < p.height) {
            const char* const row = fixed(to + t * line);
#pragma unroll
            for (int s = 0; s < STRIP; ++s)
                if (inside[s + R]) *const_cast<Raw*>(at(row, s)) = Vector::of(acc[t][s]).raw;
        }
}

// VEC channels of STRIP tokens a thread, channels first, then strips of a row, rows, images.
template <class T, int VEC, int K, int STRIP> __global__ void __launch_bounds__(kThreads) depthwise_conv_kernel(const __grid_constant__ DepthwiseConv<T> p) {
    using Vector = Pack<T, VEC>;
    using Raw = typename Vector::Raw;
    constexpr int R = K / 2;
    constexpr bool kHeld = K == 3;  // weights in registers
    ptx::let_next_start();
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    uint32_t pack, strip, row;
    const uint32_t image = p.by_height.divmod(p.by_strips.divmod(p.by_packs.divmod(i, pack), strip), row);
    const int first = static_cast<int>(strip) * STRIP, y = static_cast<int>(row), c = static_cast<int>(pack) * VEC;
    auto weight = [&](int place) { return Vector(*reinterpret_cast<const Raw*>(p.w + int64_t{place} * p.channels + c)); };
    Vector held[kHeld ? K * K : 1];
    if constexpr (kHeld) {
#pragma unroll
        for (int j = 0; j < K * K; ++j) held[j] = weight(j);
    } else {
        ptx::prefetch_l2(p.w + int64_t{threadIdx.x % (K * K)} * p.channels + c);
    }
    float acc[STRIP][VEC];
    {
        float offset[VEC] = {};
        if (p.b) Vector(*reinterpret_cast<const Raw*>(p.b + c)).floats(offset);
#pragma unroll
        for (int s = 0; s < STRIP; ++s)
#pragma unroll
            for (int e = 0; e < VEC; ++e) acc[s][e] = offset[e];
    }
    ptx::wait_for_previous();

    const T* const x = p.x + int64_t{image} * p.height * p.width * p.channels + c;
    // One row of the kernel over the strip and its neighbours.
    auto go_over = [&](int dy, const Vector* w) {
        const int from = y + dy - R;
        if (from < 0 || from >= p.height) return;
        const T* const line = x + int64_t{from} * p.width * p.channels;
        Vector v[STRIP + K - 1];
#pragma unroll
        for (int j = 0; j < STRIP + K - 1; ++j)
            if (const int at = first + j - R; at >= 0 && at < p.width) v[j] = Vector(*reinterpret_cast<const Raw*>(line + int64_t{at} * p.channels));
#pragma unroll
        for (int dx = 0; dx < K; ++dx) {
            float f[VEC];
            w[dx].floats(f);
#pragma unroll
            for (int s = 0; s < STRIP; ++s) {
                float in[VEC];
                v[s + dx].floats(in);
#pragma unroll
                for (int e = 0; e < VEC; ++e) acc[s][e] = fmaf(in[e], f[e], acc[s][e]);
            }
        }
        if (dy == R && p.residual) {
#pragma unroll
            for (int s = 0; s < STRIP; ++s) {
                float in[VEC];
                v[s + R].floats(in);
#pragma unroll
                for (int e = 0; e < VEC; ++e) acc[s][e] += in[e];
            }
        }
    };
    if constexpr (kHeld) {
#pragma unroll
        for (int dy = 0; dy < K; ++dy) go_over(dy, held + dy * K);
    } else {
#pragma unroll 1
        for (int dy = 0; dy < K; ++dy) {
            Vector w[K];
#pragma unroll
            for (int dx = 0; dx < K; ++dx) w[dx] = weight(dy * K + dx);
            go_over(dy, w);
        }
    }
    T* const to = p.y + (int64_t{image} * p.height + y) * p.width * p.channels + c;
#pragma unroll
    for (int s = 0; s < STRIP; ++s)
        if (first + s < p.width) *reinterpret_cast<Raw*>(to + int64_t{first + s} * p.channels) = Vector::of(acc[s]).raw;
}

template <class T, int VEC, int K, int STRIP> cudaError_t launch_strips(DepthwiseConv<T> p, int64_t images, cudaStream_t stream) {
    const int64_t packs = p.channels / VEC, strips = (p.width + STRIP - 1) / STRIP, each = packs * strips * p.height, image = int64_t{p.height} * p.width * p.channels;
    constexpr int64_t kMost = int64_t{1} << 30;  // threads of a launch
    if (each > kMost) return cudaErrorInvalidValue;
    p.by_packs = FastDiv(static_cast<uint32_t>(packs)), p.by_strips = FastDiv(static_cast<uint32_t>(strips)), p.by_height = FastDiv(static_cast<uint32_t>(p.height));
    while (images > 0) {
        const int64_t now = std::min(images, kMost / each);
        p.count = static_cast<uint32_t>(now * each);
        // Few tokens are spread over all multiprocessors.
        int threads = kThreads;
        while (threads > 32 && (p.count + threads - 1) / threads < static_cast<uint32_t>(device().multiprocessors)) threads /= 2;
        const cudaError_t status = launch_ahead(depthwise_conv_kernel<T, VEC, K, STRIP>, (p.count + threads - 1) / threads, threads, 0, stream, 1, p);
        if (status != cudaSuccess) return status;
        images -= now, p.x += now * image, p.y += now * image;
    }
    return cudaSuccess;
}

template <class T, int K, int ROWS> int64_t tiles_of(const DepthwiseConv<T>& p) {
    using Shape = TileShape<T, K, ROWS>;
    return int64_t{p.channels / Shape::VEC} * ((p.width + Shape::kStrip - 1) / Shape::kStrip) * ((p.height + ROWS - 1) / ROWS);
}
template <class T, int K, int ROWS> cudaError_t launch_tiles(DepthwiseConv<T> p, int64_t images, cudaStream_t stream) {
    using Shape = TileShape<T, K, ROWS>;
    const int64_t each = tiles_of<T, K, ROWS>(p), image = int64_t{p.height} * p.width * p.channels;
    constexpr int64_t kMost = int64_t{1} << 30;  // threads of a launch
    if (each > kMost) return cudaErrorInvalidValue;
    p.by_packs = FastDiv(static_cast<uint32_t>(p.channels / Shape::VEC)), p.by_strips = FastDiv(static_cast<uint32_t>((p.width + Shape::kStrip - 1) / Shape::kStrip));
    p.by_height = FastDiv(static_cast<uint32_t>((p.height + ROWS - 1) / ROWS));
    while (images > 0) {
        const int64_t now = std::min(images, kMost / each);
        p.count = static_cast<uint32_t>(now * each);
        // As many warps on each multiprocessor, in as few blocks as can be: few tokens take a block a multiprocessor.
        const int64_t share = (p.count + device().multiprocessors - 1) / device().multiprocessors, blocks = (share + Shape::kThreads - 1) / Shape::kThreads;
        const int threads = static_cast<int>((share + blocks * 32 - 1) / (blocks * 32) * 32);
        const cudaError_t status = launch_ahead(depthwise_conv_tile_kernel<T, K, ROWS>, (p.count + threads - 1) / threads, threads, 0, stream, 1, p);
        if (status != cudaSuccess) return status;
        images -= now, p.x += now * image, p.y += now * image;
    }
    return cudaSuccess;
}

template <class T, int K> cudaError_t launch_kernel(const DepthwiseConv<T>& p, int64_t images, cudaStream_t stream) {
    constexpr int VEC = 16 / sizeof(T), kStrip = 4;
    constexpr int kMostChannels = 1 << 24;  // bytes of a token are an int
    const bool tiles = p.channels % TileShape<T, K, 1>::VEC == 0 && p.channels <= kMostChannels && aligned_to(4, p.x, p.w, p.b, p.y);
    if constexpr (K == 3) {
        // Neighbours are read once where there are enough strips to fill the device.
        constexpr int64_t kBusy = 512;  // threads a multiprocessor
        const int64_t strips = images * p.height * ((p.width + kStrip - 1) / kStrip) * (p.channels / VEC);
        if (p.channels % VEC == 0 && aligned_to(16, p.x, p.w, p.b, p.y) && strips >= kBusy * device().multiprocessors) return launch_strips<T, VEC, K, kStrip>(p, images, stream);
    } else if (tiles) {
        // Rows share tokens and conversions where tiles still fill the device.
        constexpr int kRows = K == 5 ? 4 : 2;
        constexpr int64_t kBusy = 256;  // threads a multiprocessor
        if (images * tiles_of<T, K, kRows>(p) >= kBusy * device().multiprocessors) return launch_tiles<T, K, kRows>(p, images, stream);
    }
    return tiles ? launch_tiles<T, K, 1>(p, images, stream) : launch_strips<T, 1, K, 1>(p, images, stream);
}

template <class T> cudaError_t depthwise_conv_typed(const DepthwiseConvProblem& q, cudaStream_t stream) {
    const DepthwiseConv<T> p{static_cast<const T*>(q.x), static_cast<const T*>(q.w), static_cast<const T*>(q.b), static_cast<T*>(q.y), q.height, q.width, q.channels, q.residual, 0, {}, {}, {}};
    switch (q.kernel) {
        case 3: return launch_kernel<T, 3>(p, q.images, stream);
        case 5: return launch_kernel<T, 5>(p, q.images, stream);
        case 7: return launch_kernel<T, 7>(p, q.images, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace

cudaError_t depthwise_conv(const DepthwiseConvProblem& q, cudaStream_t stream) {
    if (q.images < 0 || q.height < 1 || q.width < 1 || q.channels < 0) return cudaErrorInvalidValue;
    if (q.kernel != 3 && q.kernel != 5 && q.kernel != 7) return cudaErrorInvalidValue;
    if (q.images == 0 || q.channels == 0) return cudaSuccess;
    return q.dtype == DType::kHalf ? depthwise_conv_typed<__half>(q, stream) : depthwise_conv_typed<float>(q, stream);
}

}  // namespace trt_opt
