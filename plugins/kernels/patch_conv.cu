// A convolution of tokens as a product: a kernel that normalizes tokens and puts those under the kernel of the convolution side by side, and the product
// of these rows, each launched ahead of the end of the kernel before it.
#include <algorithm>

#include "block_gemm.h"
#include "gemm_plain.cuh"
#include "kernels.h"
#include "row_norm.cuh"
#include "row_pieces.h"

namespace trt_opt {
namespace {

int64_t element(const PatchConvProblem& q) { return q.dtype == DType::kHalf ? 2 : 4; }
int64_t tokens(const PatchConvProblem& q) { return int64_t{q.height} * q.width; }
int64_t taps(const PatchConvProblem& q) { return int64_t{q.kernel[0]} * q.kernel[1]; }
int64_t depth(const PatchConvProblem& q) { return taps(q) * q.channels; }

bool valid(const PatchConvProblem& q) {
    auto fits = [](int64_t size, int64_t most) { return size > 0 && size <= most; };
    if (!fits(q.height, kConvMaxTokens) || !fits(q.width, kConvMaxTokens) || tokens(q) > kConvMaxTokens || !fits(q.channels, kMlpMaxHidden) || !fits(q.columns, kMlpMaxChannels)) return false;
    const int64_t sides[2] = {q.height, q.width};
    for (int i = 0; i < 2; ++i) {
        if (!fits(q.kernel[i], kMlpMaxHidden) || q.strides[i] < 1 || q.cell[i] < 1 || sides[i] % q.cell[i] != 0) return false;
        for (int pad : {q.pads[i], q.pads[i + 2]})
            if (pad < 0 || pad >= q.kernel[i]) return false;
        if (sides[i] + q.pads[i] + q.pads[i + 2] < q.kernel[i]) return false;
    }
    if (depth(q) > kMlpMaxHidden || patch_conv_rows(q) > kConvMaxTokens / taps(q) || !fits(q.across, kConvMaxTokens)) return false;
    return q.images >= 0 && q.images <= INT64_MAX / 64 / kMlpMaxHidden / std::max(tokens(q), patch_conv_rows(q)) && q.images % q.across == 0;
}

// What the first kernel gives of so many images, in bytes.
int64_t between(const PatchConvProblem& q, int64_t images) { return images * patch_conv_rows(q) * depth(q) * element(q); }

// Whole images: as many as a piece may have, and what each has, but for the last.
int64_t most_images(const PatchConvProblem& q) {
    const int64_t launch = kConvMaxTokens / (patch_conv_rows(q) * taps(q));
    return std::clamp<int64_t>(kPieceBytes / between(q, 1), 1, launch);
}
int64_t images_a_piece(const PatchConvProblem& q) {
    const int64_t pieces = (q.images + most_images(q) - 1) / most_images(q);
    return (q.images + pieces - 1) / std::max<int64_t>(1, pieces);
}

bool aligned(const PatchConvProblem& q) { return aligned_to(16, q.w, q.b, q.y); }
bool tiled(const PatchConvProblem& q) { return q.dtype == DType::kHalf && depth(q) % 8 == 0 && q.columns % 8 == 0; }

BlockGemmProblem product(const PatchConvProblem& q, int64_t images) {
    BlockGemmProblem g;
    g.rows = images * patch_conv_rows(q), g.k = static_cast<int32_t>(depth(q)), g.n = q.columns;
    g.a = q.workspace, g.b = q.w, g.bias = q.b, g.out = q.y;
    return g;
}

// The token under one place of the kernel as a row, zeros outside of the map.
template <class T> struct TapSource {
    const T* x;     // of the first row of images that the piece is of
    int first;      // image of that row
    int height, width, channels, top, left, stride_h, stride_w, cells_h, cells_w, cell_w, cell;  // cell: tokens of one
    FastDiv by_taps, by_kernel_w, by_out_w, by_out_h, by_across, by_cell_h, by_cell_w;

    struct Row {
        int64_t offset;  // in elements; < 0: padding
    };
    __device__ __forceinline__ Row locate(uint32_t r) const {
        uint32_t tap, dx, ox, oy, image, v, u;
        const uint32_t line = by_out_w.divmod(by_taps.divmod(r, tap), ox), dy = by_kernel_w.divmod(tap, dx);
        const uint32_t above = by_across.divmod(by_out_h.divmod(line, oy) + first, image);
        const int y = static_cast<int>(oy) * stride_h - top + static_cast<int>(dy), x0 = static_cast<int>(ox) * stride_w - left + static_cast<int>(dx);
        if (y < 0 || y >= height || x0 < 0 || x0 >= width) return {-1};
        const uint32_t down = by_cell_h.divmod(y, v), right = by_cell_w.divmod(x0, u);
        const int64_t place = ((int64_t{above} * cells_h + down) * by_across.divisor + image) * cells_w + right;
        return {(place * cell + v * cell_w + u) * channels};
    }
    __device__ __forceinline__ bool padding(const Row& at) const { return at.offset < 0; }
    template <int VEC> __device__ __forceinline__ Pack<T, VEC> load(const Row& at, int j) const {
        return Pack<T, VEC>(*(reinterpret_cast<const typename Pack<T, VEC>::Raw*>(x + at.offset) + j));
    }
    template <int VEC> __device__ __forceinline__ void keep(const Row&, int, const Pack<T, VEC>&) const {}
};

constexpr int kGatherThreads = 128;

// Without a norm: a thread VEC elements.
template <class T, int VEC> __global__ void __launch_bounds__(kGatherThreads) gather_kernel(T* y, int64_t packs, FastDiv by_row, const __grid_constant__ TapSource<T> source) {
    ptx::let_next_start();
    ptx::wait_for_previous();
    const int64_t i = int64_t{blockIdx.x} * kGatherThreads + threadIdx.x;
    if (i >= packs) return;
    // More packs than a division by multiplication takes: the block's first is divided in full.
    const int64_t begin = int64_t{blockIdx.x} * kGatherThreads, row0 = begin / by_row.divisor;
    uint32_t j;
    const uint32_t row = static_cast<uint32_t>(row0) + by_row.divmod(static_cast<uint32_t>(i - row0 * by_row.divisor), j);
    const auto at = source.locate(row);
    Pack<T, VEC> v;
    if (!source.padding(at)) v = source.template load<VEC>(at, static_cast<int>(j));
    *(reinterpret_cast<typename Pack<T, VEC>::Raw*>(y) + i) = v.raw;
}
template <class T, int VEC> cudaError_t gather(const RowNorm<T>& p, const TapSource<T>& source, cudaStream_t stream) {
    const int64_t packs = int64_t{p.rows} * (p.row / VEC), blocks = (packs + kGatherThreads - 1) / kGatherThreads;
    if (blocks > INT32_MAX) return cudaErrorInvalidValue;
    return launch_ahead(gather_kernel<T, VEC>, static_cast<uint32_t>(blocks), kGatherThreads, 0, stream, 1, p.y, packs, FastDiv(static_cast<uint32_t>(p.row / VEC)), source);
}

// The rows of `images` images from the image `from` on.
template <class T> cudaError_t rows_of(const PatchConvProblem& q, int64_t from, int64_t images, cudaStream_t stream) {
    const auto divide = [](int64_t by) { return FastDiv(static_cast<uint32_t>(by)); };
    const int64_t out_w = patch_conv_side(q, 1), out_h = patch_conv_side(q, 0), whole = from / q.across * q.across;
    TapSource<T> source{};
    source.x = static_cast<const T*>(q.x) + whole * tokens(q) * q.channels, source.first = static_cast<int>(from - whole);
    source.height = q.height, source.width = q.width, source.channels = q.channels, source.top = q.pads[0], source.left = q.pads[1], source.stride_h = q.strides[0], source.stride_w = q.strides[1];
    source.cells_h = q.height / q.cell[0], source.cells_w = q.width / q.cell[1], source.cell_w = q.cell[1], source.cell = q.cell[0] * q.cell[1];
    source.by_taps = divide(taps(q)), source.by_kernel_w = divide(q.kernel[1]), source.by_out_w = divide(out_w), source.by_out_h = divide(out_h);
    source.by_across = divide(q.across), source.by_cell_h = divide(q.cell[0]), source.by_cell_w = divide(q.cell[1]);
    const RowNorm<T> p{static_cast<T*>(q.workspace),          static_cast<const T*>(q.scale), static_cast<const T*>(q.bias), static_cast<uint32_t>(images * out_h * out_w * taps(q)), q.channels, q.epsilon,
                       1.f / static_cast<float>(q.channels)};
    constexpr int kFull = 16 / sizeof(T);
    const bool full = q.channels % kFull == 0 && aligned_to(16, source.x, q.scale, q.bias);
    if (!q.scale) return full ? gather<T, kFull>(p, source, stream) : gather<T, 1>(p, source, stream);
    return full ? launch_row_norm<T, kFull, true>(p, source, stream) : launch_row_norm<T, 1, false>(p, source, stream);
}

// Of a piece. `plan`: null where there are no tensor cores for it.
template <class T> cudaError_t run(const PatchConvProblem& q, int64_t from, int64_t images, const GemmPlan* plan, cudaStream_t stream) {
    if (const cudaError_t status = rows_of<T>(q, from, images, stream); status != cudaSuccess) return status;
    BlockGemmProblem g = product(q, images);
    T* const y = static_cast<T*>(q.y) + from * patch_conv_rows(q) * q.columns;
    g.out = y;
    if (plan) return block_gemm(g, *plan, stream);
    const GemmPlainArgs<T> plain{static_cast<const T*>(q.workspace), static_cast<const T*>(q.w), g.rows, g.k, g.n};
    return gemm_plain<T>(plain, GemmPlainOut<T>{static_cast<const T*>(q.b), y, q.columns}, stream);
}

}  // namespace

int64_t patch_conv_side(const PatchConvProblem& q, int axis) {
    return (int64_t{axis == 0 ? q.height : q.width} + q.pads[axis] + q.pads[axis + 2] - q.kernel[axis]) / q.strides[axis] + 1;
}
int64_t patch_conv_rows(const PatchConvProblem& q) { return patch_conv_side(q, 0) * patch_conv_side(q, 1); }

cudaError_t patch_conv(const PatchConvProblem& q, cudaStream_t stream, int32_t tactic) {
    if (!valid(q) || !q.scale != !q.bias) return cudaErrorInvalidValue;
    if (q.images == 0) return cudaSuccess;
    if (!q.workspace || !aligned_to(16, q.workspace)) return cudaErrorInvalidValue;
    const int64_t step = images_a_piece(q);
    GemmPlan plan;
    if (tiled(q) && aligned(q)) plan = patch_conv_tactic_valid(q, tactic) ? GemmPlan::of(tactic) : block_gemm_best(product(q, step));
    for (int64_t from = 0; from < q.images; from += step) {
        const int64_t images = std::min(step, q.images - from);
        const GemmPlan* const gemm = plan.tile >= 0 ? &plan : nullptr;
        const cudaError_t status = q.dtype == DType::kHalf ? run<__half>(q, from, images, gemm, stream) : run<float>(q, from, images, nullptr, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

std::vector<int32_t> patch_conv_tactics(const PatchConvProblem& q) {
    constexpr size_t kWorthTiming = 10;
    if (!valid(q) || q.images == 0 || !tiled(q)) return {};
    const std::vector<GemmPlan> plans = block_gemm_plans(product(q, images_a_piece(q)));
    std::vector<int32_t> tactics;
    for (size_t i = 0; i < std::min(kWorthTiming, plans.size()); ++i) tactics.push_back(plans[i].id());
    return tactics;
}

bool patch_conv_tactic_valid(const PatchConvProblem& q, int32_t tactic) {
    return tactic > 0 && valid(q) && q.images > 0 && tiled(q) && GemmPlan::of(tactic).id() == tactic && block_gemm_valid(GemmPlan::of(tactic), product(q, images_a_piece(q)));
}

int64_t patch_conv_workspace(const PatchConvProblem& q) { return valid(q) ? between(q, std::min(q.images, most_images(q))) : 0; }

}  // namespace trt_opt
