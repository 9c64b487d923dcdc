#include "ops.h"

#include <array>
#include <cmath>
#include <stdexcept>

#include "kernels.h"

namespace trt_opt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::IDimensionExpr;
using nvinfer1::IExprBuilder;
using nvinfer1::PluginTensorDesc;

DType dtype(const PluginTensorDesc& t) { return t.type == DataType::kHALF ? DType::kHalf : DType::kFloat; }
bool linear_float(const PluginTensorDesc& t) { return t.format == nvinfer1::TensorFormat::kLINEAR && (t.type == DataType::kHALF || t.type == DataType::kFLOAT); }

const IDimensionExpr* times(const IDimensionExpr* a, int64_t b, IExprBuilder& build) {
    if (b == 1) return a;
    return build.operation(DimensionOperation::kPROD, *a, *build.constant(static_cast<int32_t>(b)));
}
const IDimensionExpr* divided(const IDimensionExpr* a, int64_t b, IExprBuilder& build) {
    if (a->isConstant()) return build.constant(static_cast<int32_t>(a->getConstantValue() / b));
    return build.operation(DimensionOperation::kFLOOR_DIV, *a, *build.constant(static_cast<int32_t>(b)));
}
// The product of both.
const IDimensionExpr* times(const IDimensionExpr* a, const IDimensionExpr* b, IExprBuilder& build) {
    if (a->isConstant() && b->isConstant()) return build.constant(static_cast<int32_t>(a->getConstantValue() * b->getConstantValue()));
    return build.operation(DimensionOperation::kPROD, *a, *b);
}
// False if the dimension is known and is not `value`.
bool may_be(const IDimensionExpr* a, int64_t value) { return !a->isConstant() || a->getConstantValue() == value; }

WindowGrid window_grid(const Attributes& a, bool shift_and_grid, bool pad) {
    WindowGrid g;
    const auto& window = a.integers("window");
    g.window_h = window[0], g.window_w = window[1];
    if (g.window_h < 0 || g.window_w < 0 || (g.window_h == 0) != (g.window_w == 0)) a.fail("attribute 'window' must be two positive sizes or [0, 0]");
    const auto &grid = a.integers("grid"), &shift = a.integers("shift");
    g.grid_h = grid[0], g.grid_w = grid[1], g.shift_h = shift[0], g.shift_w = shift[1];
    if (pad) {
        g.pad_after_roll = a.integer("pad_after_roll");
        if (g.pad_after_roll != 0 && g.pad_after_roll != 1) a.fail("attribute 'pad_after_roll' must be 0 or 1");
    }
    if (g.used() && shift_and_grid) {
        if (g.grid_h < 1 || g.grid_w < 1) a.fail("attribute 'grid' must be two positive sizes where windows are used");
        if (g.shift_h < 0 || g.shift_w < 0 || g.shift_h >= g.grid_h + g.window_h || g.shift_w >= g.grid_w + g.window_w)
            a.fail("attribute 'shift' must lie between 0 and the grid");
        if (int64_t{g.grid_h} * g.grid_w > (int64_t{1} << 30)) a.fail("attribute 'grid' is too large");
    }
    return g;
}
bool flag(const Attributes& a, const char* name) {
    const int32_t v = a.integer(name);
    if (v != 0 && v != 1) a.fail(std::string("attribute '") + name + "' must be 0 or 1, is " + std::to_string(v));
    return v != 0;
}
float epsilon(const Attributes& a, const char* name = "epsilon") {
    const float e = a.real(name);
    if (!(e >= 0.f) || !std::isfinite(e)) a.fail(std::string("attribute '") + name + "' must be a number of at least 0");
    return e;
}
// Whether GELU is by its tanh form.
bool tanh_gelu(const Attributes& a) {
    const std::string& approximate = a.string("approximate");
    if (approximate != "none" && approximate != "tanh") a.fail("attribute 'approximate' must be none or tanh, is '" + approximate + "'");
    return approximate == "tanh";
}

// Images of a token tensor `[B, H*W, C]` or `[B, H, W, C]`; throws if it is not of this grid.
int64_t images_of(const Attributes& a, const Dims& d, const WindowGrid& g) {
    const bool fits = d.nbDims == 3   ? d.d[1] == int64_t{g.grid_h} * g.grid_w
                      : d.nbDims == 4 ? d.d[1] == g.grid_h && d.d[2] == g.grid_w
                                      : false;
    if (!fits) a.fail("the map does not have the tokens of attribute 'grid'");
    return d.d[0];
}
// Images of a partitioned tensor `[B*nW, wh*ww, C]`; throws if it is not of these windows.
int64_t images_of_windows(const Attributes& a, const Dims& d, const WindowGrid& g) {
    if (d.nbDims != 3 || d.d[1] != g.window_tokens() || d.d[0] % g.windows() != 0) a.fail("input x must be [B*nW, wh*ww, C]");
    return d.d[0] / g.windows();
}
void check_tokens(const Attributes& a, const DimsExprs& d, const WindowGrid& g) {
    const bool fits = d.nbDims == 3   ? may_be(d.d[1], int64_t{g.grid_h} * g.grid_w)
                      : d.nbDims == 4 ? may_be(d.d[1], g.grid_h) && may_be(d.d[2], g.grid_w)
                                      : false;
    if (!fits) a.fail("the map must be [B, H*W, C] or [B, H, W, C] with H, W of attribute 'grid'");
}

class LayerNorm final : public Op {
public:
    explicit LayerNorm(Attributes given) : Op(std::move(given)) {
        epsilon_ = epsilon(attributes_);
        axis_ = attributes_.integer("axis");
        expect(axis_ < 0 && axis_ >= -Dims::MAX_DIMS, "attribute 'axis' must be negative: the first normalized axis, counted from the end");
        residual_ = flag(attributes_, "residual");
        part_begin_ = attributes_.integer("part_begin");
        expect(part_begin_ >= -1, "attribute 'part_begin' must be a token, or -1 where there is no input part");
        reverse_ = flag(attributes_, "reverse");
        window_ = window_grid(attributes_, true, true);
        expect(!part() || (axis_ == -1 && !window_.used()), "attribute 'part_begin' must be -1 where windows are used or more than the last axis is normalized");
        expect(!window_.used() || axis_ == -1, "attribute 'axis' must be -1 where windows are used");
        expect(!reverse_ || (window_.used() && residual_), "attribute 'reverse' needs windows and a residual");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<LayerNorm>(*this); }
    int32_t inputs() const override { return parameters() + 2; }
    int32_t outputs() const override { return residual_ || part() ? 2 : 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        expect(in[0].nbDims >= -axis_, "input x has fewer axes than are normalized");
        if (part()) check_part(in[0], in[parameters() - 1]);
        if (reverse_) {
            expect(in[0].nbDims == 3 && may_be(in[0].d[1], window_.window_tokens()), "input x must be [B*nW, wh*ww, C]");
            check_tokens(attributes_, in[1], window_);
            out[0] = out[1] = in[1];
            return;
        }
        out[0] = in[0];
        if (outputs() == 2) out[1] = in[0];
        if (window_.used()) {
            check_tokens(attributes_, in[0], window_);
            out[0].nbDims = 3;
            out[0].d[2] = in[0].d[in[0].nbDims - 1];
            out[0].d[0] = times(in[0].d[0], window_.windows(), build);
            out[0].d[1] = build.constant(static_cast<int32_t>(window_.window_tokens()));
        }
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void*, int32_t,
                    cudaStream_t stream) const override {
        // The map, where x comes in windows of it.
        const Dims& x = in_desc[reverse_ ? 1 : 0].dims;
        expect(x.nbDims >= -axis_, "input x has fewer axes than are normalized");
        LayerNormProblem p;
        p.dtype = dtype(in_desc[0]);
        p.row = volume(x, x.nbDims + axis_, x.nbDims);
        p.rows = volume(x, 0, x.nbDims + axis_);
        const int32_t scale = parameters(), bias = scale + 1;
        for (int32_t i : {scale, bias})
            expect(volume(in_desc[i].dims, 0, in_desc[i].dims.nbDims) == p.row, "inputs scale and bias must have the normalized axes");
        if (part()) {
            const Dims& d = in_desc[scale - 1].dims;
            expect(x.nbDims == 3 && d.nbDims == 3 && d.d[0] == x.d[0] && d.d[2] == x.d[2], "inputs x and part must be [B, N, C] and [B, M, C]");
            expect(d.d[1] >= 1 && part_begin_ + int64_t{d.d[1]} <= x.d[1], "input part must be of tokens that x has");
            p.part = in[scale - 1];
            p.tokens = x.d[1], p.part_begin = part_begin_, p.part_tokens = d.d[1];
        }
        if (window_.used()) images_of(attributes_, x, window_);
        if (reverse_) {
            expect(images_of_windows(attributes_, in_desc[0].dims, window_) == x.d[0], "inputs x and residual must be of as many images");
            expect(in_desc[0].dims.d[2] == x.d[x.nbDims - 1], "inputs x and residual must have as many channels");
        }
        p.epsilon = epsilon_;
        p.window = window_;
        p.reverse = reverse_;
        p.x = in[0];
        if (residual_) p.residual = in[1];
        if (outputs() == 2) p.sum = out[1];
        p.scale = in[scale], p.bias = in[bias];
        p.y = out[0];
        return layer_norm(p, stream);
    }

private:
    bool part() const { return part_begin_ >= 0; }
    // Where scale and bias begin; the part is right before them.
    int32_t parameters() const { return 1 + (residual_ ? 1 : 0) + (part() ? 1 : 0); }
    void check_part(const DimsExprs& x, const DimsExprs& d) const {
        expect(x.nbDims == 3 && d.nbDims == 3, "inputs x and part must be [B, N, C] and [B, M, C]");
        if (x.d[2]->isConstant()) expect(may_be(d.d[2], x.d[2]->getConstantValue()), "inputs x and part must have as many channels");
        if (x.d[1]->isConstant() && d.d[1]->isConstant())
            expect(part_begin_ + int64_t{d.d[1]->getConstantValue()} <= x.d[1]->getConstantValue(), "input part must be of tokens that x has");
    }

    float epsilon_;
    int32_t axis_, part_begin_;
    bool residual_, reverse_;
    WindowGrid window_;
};

class Window final : public Op {
public:
    explicit Window(Attributes given) : Op(std::move(given)) {
        reverse_ = flag(attributes_, "reverse");
        residual_ = flag(attributes_, "residual");
        rank_ = attributes_.integer("rank");
        window_ = window_grid(attributes_, true, true);
        expect(window_.used(), "attribute 'window' must be two positive sizes");
        expect(!residual_ || reverse_, "attribute 'residual' needs reverse = 1");
        expect(rank_ == 3 || (rank_ == 4 && reverse_), "attribute 'rank' must be 3, or 4 on reverse");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<Window>(*this); }
    int32_t inputs() const override { return residual_ ? 2 : 1; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        const DimsExprs& x = in[0];
        DimsExprs& y = out[0];
        y.nbDims = rank_;
        y.d[rank_ - 1] = x.d[x.nbDims - 1];
        if (reverse_) {
            expect(x.nbDims == 3 && may_be(x.d[1], window_.window_tokens()), "input x must be [B*nW, wh*ww, C]");
            y.d[0] = divided(x.d[0], window_.windows(), build);
            if (rank_ == 4) y.d[1] = build.constant(window_.grid_h), y.d[2] = build.constant(window_.grid_w);
            else y.d[1] = build.constant(window_.grid_h * window_.grid_w);
        } else {
            check_tokens(attributes_, x, window_);
            y.d[0] = times(x.d[0], window_.windows(), build);
            y.d[1] = build.constant(static_cast<int32_t>(window_.window_tokens()));
        }
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void*, int32_t,
                    cudaStream_t stream) const override {
        const Dims& x = in_desc[0].dims;
        WindowProblem p;
        p.dtype = dtype(in_desc[0]);
        if (reverse_) {
            p.images = images_of_windows(attributes_, x, window_);
        } else {
            p.images = images_of(attributes_, x, window_);
        }
        p.channels = x.d[x.nbDims - 1];
        p.reverse = reverse_;
        p.window = window_;
        p.x = in[0];
        if (residual_) p.residual = in[1];
        p.y = out[0];
        return window(p, stream);
    }

private:
    bool reverse_, residual_;
    int32_t rank_;
    WindowGrid window_;
};

// The grid of a patch merge, and its order.
WindowGrid merge_grid(const Attributes& a, const char* name, int32_t (&order)[4]) {
    WindowGrid grid;
    grid.grid_h = a.integers(name)[0], grid.grid_w = a.integers(name)[1];
    if (grid.grid_h <= 0 || grid.grid_w <= 0 || int64_t{grid.grid_h} * grid.grid_w > kMergeMaxTokens) a.fail(std::string("attribute '") + name + "' must be two positive sizes, of at most 2^29 tokens");
    const auto& quadrants = a.integers("order");
    int seen = 0;
    for (int i = 0; i < 4; ++i) {
        if (quadrants[i] < 0 || quadrants[i] > 3) a.fail("attribute 'order' must hold quadrants 0 to 3");
        order[i] = quadrants[i];
        seen |= 1 << quadrants[i];
    }
    if (seen != 15) a.fail("attribute 'order' must name each quadrant once");
    return grid;
}

// What a patch merge has, alone or with a product behind it.
struct Merging {
    float norm_epsilon;
    bool residual;
    WindowGrid grid;
    int32_t order[4];
    int32_t rank;

    explicit Merging(const Attributes& a) {
        norm_epsilon = epsilon(a);
        residual = flag(a, "residual");
        grid = merge_grid(a, "grid", order);
        rank = a.integer("rank");
        if (rank != 3 && rank != 4) a.fail("attribute 'rank' must be 3 or 4");
    }
    // Where scale and bias begin.
    int32_t parameters() const { return residual ? 2 : 1; }
    // All axes but the last.
    void shape(const Attributes& a, const DimsExprs* in, DimsExprs& out, IExprBuilder& build) const {
        check_tokens(a, in[0], grid);
        const int32_t h = (grid.grid_h + 1) / 2, w = (grid.grid_w + 1) / 2;
        out.nbDims = rank;
        out.d[0] = in[0].d[0];
        if (rank == 4) out.d[1] = build.constant(h), out.d[2] = build.constant(w);
        else out.d[1] = build.constant(h * w);
    }
    // Everything but the images and the pointers.
    PatchMergeProblem problem(const Attributes& a, const PluginTensorDesc* in) const {
        const Dims& x = in[0].dims;
        if (x.nbDims != 3 && x.nbDims != 4) a.fail("input x must be [B, H*W, C] or [B, H, W, C]");
        PatchMergeProblem p;
        p.dtype = dtype(in[0]);
        p.channels = x.d[x.nbDims - 1];
        const int32_t first = parameters();
        for (int32_t i = first; i < first + 2; ++i)
            if (volume(in[i].dims, 0, in[i].dims.nbDims) != 4 * p.channels) a.fail("the norm's scale and bias must have 4C elements");
        if (residual && volume(in[1].dims, 0, in[1].dims.nbDims) != volume(x, 0, x.nbDims)) a.fail("input residual must have the shape of x");
        p.grid_h = grid.grid_h, p.grid_w = grid.grid_w;
        for (int i = 0; i < 4; ++i) p.order[i] = order[i];
        p.epsilon = norm_epsilon;
        return p;
    }
    void point(const void* const* in, PatchMergeProblem& p) const {
        p.x = in[0];
        if (residual) p.residual = in[1];
        p.scale = in[parameters()], p.bias = in[parameters() + 1];
    }
};

class PatchMerge final : public Op {
public:
    explicit PatchMerge(Attributes given) : Op(std::move(given)), merging_(attributes_) {}
    std::unique_ptr<Op> clone() const override { return std::make_unique<PatchMerge>(*this); }
    int32_t inputs() const override { return merging_.parameters() + 2; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        merging_.shape(attributes_, in, out[0], build);
        out[0].d[out[0].nbDims - 1] = times(in[0].d[in[0].nbDims - 1], 4, build);
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void*, int32_t,
                    cudaStream_t stream) const override {
        PatchMergeProblem p = merging_.problem(attributes_, in_desc);
        p.images = images_of(attributes_, in_desc[0].dims, merging_.grid);
        merging_.point(in, p);
        p.y = out[0];
        return patch_merge(p, stream);
    }

private:
    Merging merging_;
};

class PatchMergeBlock final : public Op {
public:
    explicit PatchMergeBlock(Attributes given) : Op(std::move(given)), merging_(attributes_) {}
    std::unique_ptr<Op> clone() const override { return std::make_unique<PatchMergeBlock>(*this); }
    int32_t inputs() const override { return weights() + 2; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        expect(in[weights()].nbDims == 2, "input w must be a matrix");
        merging_.shape(attributes_, in, out[0], build);
        out[0].d[out[0].nbDims - 1] = in[weights()].d[1];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t tactic,
                    cudaStream_t stream) const override {
        PatchMergeBlockProblem p = sized_problem(in_desc);
        merging_.point(in, p.merge);
        p.w = in[weights()], p.b = in[weights() + 1];
        p.y = out[0];
        p.workspace = workspace;
        return patch_merge_block(p, stream, tactic);
    }
    std::vector<int32_t> tactics(const PluginTensorDesc* in_desc) const override { return patch_merge_block_tactics(sized_problem(in_desc)); }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        PatchMergeBlockProblem p = problem(in_desc);
        const int64_t images = in_desc[0].dims.d[0];
        // As many as a launch takes, where their number is not known.
        p.merge.images = images >= 0 ? images : kMergeMaxTokens / (int64_t{p.merge.grid_h} * p.merge.grid_w);
        return static_cast<size_t>(patch_merge_block_workspace(p));
    }

private:
    // Where the product's weights begin.
    int32_t weights() const { return merging_.parameters() + 2; }
    // Everything but the pointers.
    PatchMergeBlockProblem sized_problem(const PluginTensorDesc* in) const {
        PatchMergeBlockProblem p = problem(in);
        p.merge.images = images_of(attributes_, in[0].dims, merging_.grid);
        return p;
    }
    // Everything but the images and the pointers.
    PatchMergeBlockProblem problem(const PluginTensorDesc* in) const {
        PatchMergeBlockProblem p;
        p.merge = merging_.problem(attributes_, in);
        const PluginTensorDesc* w = in + weights();
        const int64_t width = 4 * p.merge.channels, columns = w[0].dims.nbDims == 2 ? int64_t{w[0].dims.d[1]} : 0;
        expect(p.merge.channels >= 1 && width <= kMlpMaxHidden && columns >= 1 && columns <= kMlpMaxChannels, "at most 4096 channels before the merge and 2048 behind the product are possible");
        expect(w[0].dims.d[0] == width, "input w must be [4C, D], where C is the last axis of x");
        expect(volume(w[1].dims, 0, w[1].dims.nbDims) == columns, "input b must have D elements");
        p.columns = static_cast<int32_t>(columns);
        return p;
    }

    Merging merging_;
};

// How scores are made of queries and keys: attributes, and the inputs for bias and mask, which come in this order.
struct Scores {
    int32_t heads, bias, mask = 0;
    float scale, mask_value = 0.f;

    // `masks_and_tables`: whether the op has them.
    explicit Scores(const Attributes& a, bool masks_and_tables = true) {
        heads = a.integer("num_heads");
        if (heads <= 0) a.fail("attribute 'num_heads' must be positive");
        scale = a.real("scale");
        if (!std::isfinite(scale)) a.fail("attribute 'scale' must be finite");
        bias = a.integer("bias");
        if (!masks_and_tables) {
            if (bias < 0 || bias > 1) a.fail("attribute 'bias' must be 0 or 1");
            return;
        }
        mask = a.integer("mask");
        if (bias < 0 || bias > 2) a.fail("attribute 'bias' must be 0, 1 or 2");
        if (mask < 0 || mask > 2) a.fail("attribute 'mask' must be 0, 1 or 2");
        mask_value = a.real("mask_value");
        if (std::isnan(mask_value)) a.fail("attribute 'mask_value' must be a number");
    }
    int32_t inputs() const { return (bias ? 1 : 0) + (mask == 1 ? 1 : 0); }
    // All of it but the pointers, for queries and keys of these numbers and the window of `p`.
    void describe(const Attributes& a, const PluginTensorDesc* in, int64_t n, int64_t m, AttentionProblem& p) const {
        const auto expect = [&](bool condition, const char* message) {
            if (!condition) a.fail(message);
        };
        const WindowGrid& window = p.window;
        p.heads = heads;
        p.scale = scale;
        if (bias == 1) {
            const Dims& b = in->dims;
            expect(b.nbDims == 4 && (b.d[1] == heads || b.d[1] == 1) && b.d[2] == n && b.d[3] == m && b.d[0] > 0, "input bias must be [P, h or 1, N, M]");
            p.bias_kind = AttentionBias::kDense;
            p.bias_period = b.d[0], p.bias_heads = static_cast<int32_t>(b.d[1]);
        } else if (bias == 2) {
            const Dims& b = in->dims;
            expect(n == window.window_tokens() && m == n, "a bias table needs N = M = wh*ww");
            expect(b.nbDims == 2 && b.d[0] == int64_t{2 * window.window_h - 1} * (2 * window.window_w - 1) && b.d[1] == heads, "input bias must be [(2wh-1)*(2ww-1), h]");
            p.bias_kind = AttentionBias::kTable;
        }
        if (mask == 1) {
            const Dims& d = in[bias ? 1 : 0].dims;
            expect(d.nbDims == 3 && d.d[0] > 0 && d.d[1] == n && d.d[2] == m, "input mask must be [P, N, M]");
            p.mask_kind = AttentionMask::kDense;
            p.mask_period = d.d[0];
        } else if (mask == 2) {
            expect(n == window.window_tokens() && m == n, "the shift mask needs N = M = wh*ww");
            p.mask_kind = AttentionMask::kShift;
            p.mask_value = mask_value;
        }
    }
    void point(const void* const* in, AttentionProblem& p) const {
        if (bias) p.bias = *in++;
        if (mask == 1) p.mask = *in;
    }
};

class Attention final : public Op {
public:
    enum class Layout { kQkv, kQKv, kQkV, kQKV, kBhnd };

    explicit Attention(Attributes given) : Op(std::move(given)), scores_(attributes_) {
        const std::string& layout = attributes_.string("layout");
        const char* const names[] = {"qkv", "q_kv", "qk_v", "q_k_v", "bhnd"};
        int found = -1;
        for (int i = 0; i < 5; ++i)
            if (layout == names[i]) found = i;
        if (found < 0) attributes_.fail("attribute 'layout' must be qkv, q_kv, qk_v, q_k_v or bhnd, is '" + layout + "'");
        layout_ = static_cast<Layout>(found);
        window_ = window_grid(attributes_, scores_.mask == 2, false);
        expect((scores_.bias != 2 && scores_.mask != 2) || window_.used(), "attribute 'window' is needed for a bias table and for the shift mask");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<Attention>(*this); }
    int32_t tensors() const { return layout_ == Layout::kQkv ? 1 : layout_ == Layout::kQKv || layout_ == Layout::kQkV ? 2 : 3; }
    int32_t inputs() const override { return tensors() + scores_.inputs(); }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        const int32_t rank = layout_ == Layout::kBhnd ? 4 : 3;
        for (int32_t i = 0; i < tensors(); ++i) expect(in[i].nbDims == rank, rank == 4 ? "inputs q, k, v must be [B, h, N, d]" : "inputs q, k, v must have three axes");
        out[0].nbDims = 3;
        out[0].d[0] = in[0].d[0];
        out[0].d[1] = in[0].d[1];
        switch (layout_) {
            case Layout::kQkv: out[0].d[2] = divided(in[0].d[2], 3, build); break;
            case Layout::kQKv: out[0].d[2] = divided(in[1].d[2], 2, build); break;
            case Layout::kQkV: out[0].d[2] = in[1].d[2]; break;
            case Layout::kQKV: out[0].d[2] = in[2].d[2]; break;
            case Layout::kBhnd:
                expect(may_be(in[0].d[1], scores_.heads), "input q does not have num_heads heads");
                out[0].d[1] = in[0].d[2];
                out[0].d[2] = times(in[2].d[3], scores_.heads, build);
        }
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void*, int32_t tactic,
                    cudaStream_t stream) const override {
        AttentionProblem p = problem(in_desc);
        const int64_t e = element(in_desc[0]);
        const auto at = [&](const void* base, int64_t elements) { return static_cast<const char*>(base) + elements * e; };
        const int64_t hd = int64_t{scores_.heads} * p.dim;
        switch (layout_) {
            case Layout::kQkv: p.q.base = in[0], p.k.base = at(in[0], hd), p.v.base = at(in[0], 2 * hd); break;
            case Layout::kQKv: p.q.base = in[0], p.k.base = in[1], p.v.base = at(in[1], hd); break;
            case Layout::kQkV: p.q.base = in[0], p.k.base = at(in[0], hd), p.v.base = in[1]; break;
            default: p.q.base = in[0], p.k.base = in[1], p.v.base = in[2];
        }
        scores_.point(in + tensors(), p);
        p.out = out[0];
        return attention(p, stream, tactic);
    }
    std::vector<int32_t> tactics(const PluginTensorDesc* in_desc) const override {
        const AttentionProblem p = problem(in_desc);
        std::vector<int32_t> valid;
        for (int32_t t = 1; t < kTacticCount; ++t)
            if (attention_tactic_valid(p, t)) valid.push_back(t);
        return valid;
    }

private:
    // Everything but the pointers.
    AttentionProblem problem(const PluginTensorDesc* in) const {
        AttentionProblem p;
        p.dtype = dtype(in[0]);
        const int32_t heads = scores_.heads;
        const int32_t rank = layout_ == Layout::kBhnd ? 4 : 3;
        for (int32_t i = 0; i < tensors(); ++i) {
            expect(in[i].dims.nbDims == rank, rank == 4 ? "inputs q, k, v must be [B, h, N, d]" : "inputs q, k, v must have three axes");
            expect(in[i].dims.d[0] == in[0].dims.d[0], "inputs q, k, v must have the same batch");
        }
        const auto dim = [&](int32_t input, int32_t axis) { return int64_t{in[input].dims.d[axis]}; };
        const auto per_head = [&](int64_t row, int64_t parts) {
            expect(row % (parts * heads) == 0, "the width of q, k or v is not a multiple of num_heads");
            return static_cast<int32_t>(row / parts / heads);
        };
        // Rows of `row` elements, heads of `size` side by side.
        const auto packed = [](int64_t tokens, int64_t row, int32_t size) {
            HeadView v;
            v.batch = tokens * row, v.token = static_cast<int32_t>(row), v.head = size;
            return v;
        };
        p.batch = dim(0, 0);
        int64_t n = dim(0, 1), m = n;
        switch (layout_) {
            case Layout::kQkv:
                p.dim = p.value_dim = per_head(dim(0, 2), 3);
                p.q = p.k = p.v = packed(n, dim(0, 2), p.dim);
                break;
            case Layout::kQKv:
                m = dim(1, 1);
                p.dim = p.value_dim = per_head(dim(0, 2), 1);
                expect(dim(1, 2) == 2 * dim(0, 2), "input kv must be twice as wide as q");
                p.q = packed(n, dim(0, 2), p.dim), p.k = p.v = packed(m, dim(1, 2), p.dim);
                break;
            case Layout::kQkV:
                p.dim = per_head(dim(0, 2), 2), p.value_dim = per_head(dim(1, 2), 1);
                expect(dim(1, 1) == n, "inputs qk and v must have the same tokens");
                p.q = p.k = packed(n, dim(0, 2), p.dim), p.v = packed(n, dim(1, 2), p.value_dim);
                break;
            case Layout::kQKV:
                m = dim(1, 1);
                p.dim = per_head(dim(0, 2), 1), p.value_dim = per_head(dim(2, 2), 1);
                expect(dim(2, 1) == m && dim(1, 2) == dim(0, 2), "inputs k and v must have the same tokens, q and k the same width");
                p.q = packed(n, dim(0, 2), p.dim), p.k = packed(m, dim(1, 2), p.dim), p.v = packed(m, dim(2, 2), p.value_dim);
                break;
            case Layout::kBhnd: {
                n = dim(0, 2), m = dim(1, 2);
                p.dim = static_cast<int32_t>(dim(0, 3)), p.value_dim = static_cast<int32_t>(dim(2, 3));
                expect(dim(2, 2) == m && dim(1, 3) == p.dim, "inputs k and v must have the same tokens, q and k the same head size");
                for (int32_t i = 0; i < 3; ++i) expect(dim(i, 1) == heads, "inputs q, k, v must have num_heads heads");
                const auto heads_first = [&](int64_t tokens, int32_t size) {
                    HeadView v;
                    v.batch = heads * tokens * size, v.token = size, v.head = static_cast<int32_t>(tokens * size);
                    return v;
                };
                p.q = heads_first(n, p.dim), p.k = heads_first(m, p.dim), p.v = heads_first(m, p.value_dim);
            }
        }
        p.queries = static_cast<int32_t>(n), p.keys = static_cast<int32_t>(m);
        expect(p.dim >= 1 && p.dim <= 128 && p.value_dim >= 1 && p.value_dim <= 128, "the head size must be 1 to 128");
        p.window = window_;
        scores_.describe(attributes_, in + tensors(), n, m, p);
        return p;
    }

    Scores scores_;
    Layout layout_;
    WindowGrid window_;
};

class MlpBlock final : public Op {
public:
    explicit MlpBlock(Attributes given) : Op(std::move(given)) {
        epsilon_ = epsilon(attributes_);
        residual_ = flag(attributes_, "residual");
        norm_ = flag(attributes_, "norm");
        expect(norm_ || !residual_, "attribute 'residual' must be 0 without a norm");
        tanh_ = tanh_gelu(attributes_);
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<MlpBlock>(*this); }
    int32_t inputs() const override { return products() + 4; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        expect(in[0].nbDims >= 1, "input x must have an axis of channels");
        const DimsExprs &w1 = in[products()], &w2 = in[products() + 2];
        expect(w1.nbDims == 2 && w2.nbDims == 2, "inputs w1 and w2 must be matrices");
        out[0] = in[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t tactic,
                    cudaStream_t stream) const override {
        MlpBlockProblem p = problem(in_desc);
        p.x = in[0];
        if (residual_) p.residual = in[1];
        if (norm_) p.scale = in[weights()], p.bias = in[weights() + 1];
        const void* const* w = in + products();
        p.w1 = w[0], p.b1 = w[1], p.w2 = w[2], p.b2 = w[3];
        p.y = out[0];
        return mlp_block(p, workspace, stream, tactic);
    }
    std::vector<int32_t> tactics(const PluginTensorDesc* in_desc) const override { return mlp_block_tactics(problem(in_desc)); }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        const Dims& x = in_desc[0].dims;
        MlpBlockProblem p = problem(in_desc);
        // Any number of rows, where it is not known.
        for (int32_t k = 0; k + 1 < x.nbDims; ++k)
            if (x.d[k] < 0) p.rows = int64_t{1} << 30;
        return mlp_block_workspace(p);
    }

private:
    int32_t weights() const { return residual_ ? 2 : 1; }
    int32_t products() const { return weights() + (norm_ ? 2 : 0); }
    // Everything but the pointers.
    MlpBlockProblem problem(const PluginTensorDesc* in) const {
        const Dims& x = in[0].dims;
        expect(x.nbDims >= 1, "input x must have an axis of channels");
        MlpBlockProblem p;
        p.dtype = dtype(in[0]);
        p.rows = volume(x, 0, x.nbDims - 1);
        const PluginTensorDesc* w = in + products();
        const Dims &w1 = w[0].dims, &w2 = w[2].dims;
        expect(w1.nbDims == 2 && w2.nbDims == 2 && w1.d[0] == x.d[x.nbDims - 1] && w2.d[0] == w1.d[1] && w2.d[1] == w1.d[0], "inputs w1 and w2 must be [C, H] and [H, C], where C is the last axis of x");
        const auto elements = [](const PluginTensorDesc& t) { return volume(t.dims, 0, t.dims.nbDims); };
        for (int32_t i = weights(); i < products(); ++i) expect(elements(in[i]) == w1.d[0], "inputs scale and bias must have C elements");
        expect(elements(w[3]) == w1.d[0], "input b2 must have C elements");
        expect(elements(w[1]) == w1.d[1], "input b1 must have H elements");
        expect(w1.d[0] <= kMlpMaxChannels && w1.d[1] <= kMlpMaxHidden, "at most 2048 channels and 16384 hidden columns are possible");
        p.channels = static_cast<int32_t>(w1.d[0]), p.hidden = static_cast<int32_t>(w1.d[1]);
        p.epsilon = epsilon_;
        p.tanh_gelu = tanh_, p.norm = norm_;
        return p;
    }

    float epsilon_;
    bool residual_, norm_, tanh_;
};

template <bool kWindows> class AttnBlock final : public Op {
public:
    explicit AttnBlock(Attributes given) : Op(std::move(given)), scores_(attributes_, kWindows) {
        epsilon_ = epsilon(attributes_);
        residual_ = flag(attributes_, "residual");
        if (!kWindows) return;
        window_ = window_grid(attributes_, true, true);
        expect(window_.used(), "attribute 'window' must be two positive sizes");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<AttnBlock>(*this); }
    int32_t inputs() const override { return after_scores() + 2; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        if (kWindows) check_tokens(attributes_, in[0], window_);
        else expect(in[0].nbDims == 3, "input x must be [B, N, C]");
        expect(in[weights() + 2].nbDims == 2 && in[after_scores()].nbDims == 2, "inputs w_qkv and w_proj must be matrices");
        out[0] = in[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t tactic,
                    cudaStream_t stream) const override {
        AttnBlockProblem p = sized_problem(in_desc);
        p.x = in[0];
        if (residual_) p.residual = in[1];
        const void* const* w = in + weights();
        p.norm_scale = w[0], p.norm_bias = w[1], p.w_qkv = w[2], p.b_qkv = w[3];
        scores_.point(w + 4, p.attention);
        p.w_proj = in[after_scores()], p.b_proj = in[after_scores() + 1];
        p.y = out[0];
        p.workspace = workspace;
        return attn_block(p, stream, tactic);
    }
    std::vector<int32_t> tactics(const PluginTensorDesc* in_desc) const override { return attn_block_tactics(sized_problem(in_desc)); }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        AttnBlockProblem p = problem(in_desc);
        p.images = in_desc[0].dims.d[0];
        expect(p.images >= 0, "the workspace has a part for each image, and how many there are is not known");
        return static_cast<size_t>(attn_block_workspace(p));
    }

private:
    int32_t weights() const { return residual_ ? 2 : 1; }
    int32_t after_scores() const { return weights() + 4 + scores_.inputs(); }
    // Everything but the pointers.
    AttnBlockProblem sized_problem(const PluginTensorDesc* in) const {
        AttnBlockProblem p = problem(in);
        p.images = kWindows ? images_of(attributes_, in[0].dims, window_) : in[0].dims.d[0];
        return p;
    }
    // Everything but the images and the pointers.
    AttnBlockProblem problem(const PluginTensorDesc* in) const {
        const Dims& x = in[0].dims;
        if (kWindows) expect(x.nbDims == 3 || x.nbDims == 4, "input x must be [B, H*W, C] or [B, H, W, C]");
        else expect(x.nbDims == 3 && x.d[1] >= 1 && x.d[1] <= kAttnMaxTokens, "input x must be [B, N, C] with N from 1 to 65536");
        const PluginTensorDesc *w = in + weights(), *proj = in + after_scores();
        const Dims &w_qkv = w[2].dims, &w_proj = proj[0].dims;
        const int64_t channels = x.d[x.nbDims - 1];
        expect(w_qkv.nbDims == 2 && w_proj.nbDims == 2 && w_qkv.d[0] == channels && w_proj.d[1] == channels && w_qkv.d[1] == 3 * int64_t{w_proj.d[0]},
               "inputs w_qkv and w_proj must be [C, 3*h*d] and [h*d, C], where C is the last axis of x");
        const int64_t inner = w_proj.d[0];
        const auto elements = [](const PluginTensorDesc& t) { return volume(t.dims, 0, t.dims.nbDims); };
        expect(elements(w[0]) == channels && elements(w[1]) == channels && elements(proj[1]) == channels, "inputs norm_scale, norm_bias and b_proj must have C elements");
        expect(elements(w[3]) == 3 * inner, "input b_qkv must have 3*h*d elements");
        expect(channels <= kAttnMaxChannels && inner <= kAttnMaxChannels, "at most 2048 channels, and as many of all heads, are possible");
        expect(inner % scores_.heads == 0, "the rows of w_proj are not a multiple of num_heads");
        const int64_t d = inner / scores_.heads;
        expect(d >= 1 && d <= 128, "the head size must be 1 to 128");
        AttnBlockProblem p;
        p.dtype = dtype(in[0]);
        p.channels = static_cast<int32_t>(channels);
        p.epsilon = epsilon_;
        p.attention.window = window_;
        p.attention.dim = static_cast<int32_t>(d);
        if (!kWindows) p.tokens = static_cast<int32_t>(x.d[1]);
        scores_.describe(attributes_, w + 4, p.group_tokens(), p.group_tokens(), p.attention);
        return p;
    }

    Scores scores_;
    float epsilon_;
    bool residual_;
    WindowGrid window_;
};

class PooledAttnBlock final : public Op {
public:
    explicit PooledAttnBlock(Attributes given) : Op(std::move(given)), scores_(attributes_, false) {
        epsilon_ = epsilon(attributes_), pool_epsilon_ = epsilon(attributes_, "pool_epsilon");
        residual_ = flag(attributes_, "residual");
        grid_ = attributes_.integers("grid"), pool_ = attributes_.integers("pool");
        expect(grid_[0] >= 1 && grid_[1] >= 1, "attribute 'grid' must be two positive sizes");
        expect(tokens() <= kAttnMaxTokens, "attribute 'grid' is too large");
        expect(pool_[0] >= 1 && pool_[1] >= 1 && grid_[0] % pool_[0] == 0 && grid_[1] % pool_[1] == 0, "attribute 'pool' must be two positive sizes that divide those of 'grid'");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<PooledAttnBlock>(*this); }
    int32_t inputs() const override { return weights() + 5 + scores_.inputs(); }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        expect(in[0].nbDims == 3 && may_be(in[0].d[1], tokens()), "input x must be [B, H*W, C] with H, W of attribute 'grid'");
        for (int i = 0; i < 4; ++i) expect(in[weights() + i].nbDims == 2, "inputs w_q, w_pool, w_kv and w_proj must be matrices");
        out[0] = in[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t, cudaStream_t stream) const override {
        PooledAttnBlockProblem p = problem(in_desc);
        p.images = in_desc[0].dims.d[0];
        p.x = in[0];
        if (residual_) p.residual = in[1];
        const void* const* w = in + weights();
        p.w_q = w[0], p.w_pool = w[1], p.w_kv = w[2], p.w_proj = w[3];
        const auto* vector = static_cast<const unsigned char*>(w[4]);
        auto next = [&](int64_t count) -> const void* {
            const void* const begin = vector;
            vector += count * element(in_desc[0]);
            return begin;
        };
        const int64_t channels = p.channels, inner = int64_t{p.attention.heads} * p.attention.dim;
        p.norm_scale = next(channels), p.norm_bias = next(channels), p.b_q = next(inner), p.b_pool = next(channels);
        p.pool_scale = next(channels), p.pool_bias = next(channels), p.b_kv = next(2 * inner), p.b_proj = next(channels);
        scores_.point(w + 5, p.attention);
        p.y = out[0];
        p.workspace = workspace;
        return pooled_attn_block(p, stream);
    }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        PooledAttnBlockProblem p = problem(in_desc);
        p.images = in_desc[0].dims.d[0];
        expect(p.images >= 0, "the workspace has a part for each image, and how many there are is not known");
        return static_cast<size_t>(pooled_attn_block_workspace(p));
    }

private:
    int64_t tokens() const { return int64_t{grid_[0]} * grid_[1]; }
    int32_t weights() const { return residual_ ? 2 : 1; }
    // Everything but the images and the pointers.
    PooledAttnBlockProblem problem(const PluginTensorDesc* in) const {
        const Dims& x = in[0].dims;
        expect(x.nbDims == 3 && x.d[1] == tokens(), "input x must be [B, H*W, C] with H, W of attribute 'grid'");
        const PluginTensorDesc* const w = in + weights();
        const int64_t channels = x.d[2], inner = w[0].dims.nbDims == 2 ? int64_t{w[0].dims.d[1]} : 0;
        const auto matrix = [&](int i, int64_t rows, int64_t columns) { return w[i].dims.nbDims == 2 && w[i].dims.d[0] == rows && w[i].dims.d[1] == columns; };
        expect(matrix(0, channels, inner) && matrix(1, channels, channels) && matrix(2, channels, 2 * inner) && matrix(3, inner, channels),
               "inputs w_q, w_pool, w_kv and w_proj must be [C, h*d], [C, C], [C, 2*h*d] and [h*d, C], where C is the last axis of x");
        expect(volume(w[4].dims, 0, w[4].dims.nbDims) == 6 * channels + 3 * inner, "input vectors must have 6*C + 3*h*d elements");
        expect(channels >= 1 && channels <= kAttnMaxChannels && inner >= 1 && inner <= kAttnMaxChannels, "at most 2048 channels, and as many of all heads, are possible");
        expect(inner % scores_.heads == 0, "the columns of w_q are not a multiple of num_heads");
        const int64_t d = inner / scores_.heads;
        expect(d <= 128, "the head size must be 1 to 128");
        PooledAttnBlockProblem p;
        p.dtype = dtype(in[0]);
        p.grid_h = grid_[0], p.grid_w = grid_[1], p.pool_h = pool_[0], p.pool_w = pool_[1];
        p.channels = static_cast<int32_t>(channels);
        p.epsilon = epsilon_, p.pool_epsilon = pool_epsilon_;
        p.attention.dim = static_cast<int32_t>(d);
        scores_.describe(attributes_, w + 5, p.tokens(), p.pooled(), p.attention);
        return p;
    }

    Scores scores_;
    float epsilon_, pool_epsilon_;
    bool residual_;
    std::vector<int32_t> grid_, pool_;
};

// Attributes of a block over words, alone or as a layer of many.
struct Layer {
    int32_t heads;
    float epsilon1, epsilon2, scale;
    bool whole, tanh;

    explicit Layer(const Attributes& a) {
        epsilon1 = epsilon(a, "epsilon1"), epsilon2 = epsilon(a, "epsilon2");
        whole = flag(a, "whole");
        heads = a.integer("num_heads");
        if (heads <= 0) a.fail("attribute 'num_heads' must be positive");
        scale = a.real("scale");
        if (!std::isfinite(scale)) a.fail("attribute 'scale' must be finite");
        tanh = tanh_gelu(a);
    }
    // Everything but the pointers, for words of this shape and so many hidden columns.
    TntInnerBlockProblem problem(const Attributes& a, const PluginTensorDesc& words, int64_t hidden) const {
        const Dims& x = words.dims;
        const int64_t tokens = x.d[1], channels = x.d[2];
        if (tokens < 1 || tokens > (1 << 16)) a.fail("1 to 65536 tokens are possible");
        if (channels < 1 || channels > kMlpMaxChannels || hidden < 1 || hidden > kMlpMaxHidden) a.fail("at most 2048 channels and 16384 hidden columns are possible");
        if (channels % heads != 0 || channels / heads > 128) a.fail("the channels must be heads of 1 to 128 each");
        TntInnerBlockProblem p;
        p.dtype = dtype(words);
        p.patches = x.d[0], p.tokens = static_cast<int32_t>(tokens), p.channels = static_cast<int32_t>(channels), p.hidden = static_cast<int32_t>(hidden);
        p.heads = heads, p.scale = scale, p.epsilon1 = epsilon1, p.epsilon2 = epsilon2, p.whole = whole, p.tanh_gelu = tanh;
        return p;
    }
    // Inputs 1 to 12 of an op.
    static void point(const void* const* in, TntInnerBlockProblem& p) {
        p.x = in[0], p.scale1 = in[1], p.bias1 = in[2], p.w_qkv = in[3], p.b_qkv = in[4], p.w_proj = in[5], p.b_proj = in[6];
        p.scale2 = in[7], p.bias2 = in[8], p.w1 = in[9], p.b1 = in[10], p.w2 = in[11], p.b2 = in[12];
    }
};

class TntInnerBlock final : public Op {
public:
    explicit TntInnerBlock(Attributes given) : Op(std::move(given)), layer_(attributes_) {}
    std::unique_ptr<Op> clone() const override { return std::make_unique<TntInnerBlock>(*this); }
    int32_t inputs() const override { return 13; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        expect(in[0].nbDims == 3, "input x must be [B, N, C]");
        for (int i : {3, 5, 9, 11}) expect(in[i].nbDims == 2, "inputs w_qkv, w_proj, w1 and w2 must be matrices");
        out[0] = in[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t,
                    cudaStream_t stream) const override {
        TntInnerBlockProblem p = problem(in_desc);
        Layer::point(in, p);
        p.y = out[0];
        p.workspace = workspace;
        return tnt_inner_block(p, stream);
    }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        const TntInnerBlockProblem p = problem(in_desc);
        expect(p.patches >= 0, "the workspace has a part for each patch, and how many there are is not known");
        return static_cast<size_t>(tnt_inner_block_workspace(p));
    }

private:
    // Everything but the pointers.
    TntInnerBlockProblem problem(const PluginTensorDesc* in) const {
        const Dims& x = in[0].dims;
        expect(x.nbDims == 3, "input x must be [B, N, C]");
        const int64_t tokens = x.d[1], channels = x.d[2];
        const auto matrix = [&](int i, int64_t rows, int64_t columns) { return in[i].dims.nbDims == 2 && in[i].dims.d[0] == rows && in[i].dims.d[1] == columns; };
        const int64_t hidden = in[9].dims.nbDims == 2 ? int64_t{in[9].dims.d[1]} : 0;
        const TntInnerBlockProblem p = layer_.problem(attributes_, in[0], hidden);
        expect(matrix(3, channels, 3 * channels) && matrix(5, channels, channels), "inputs w_qkv and w_proj must be [C, 3*C] and [C, C], where C is the last axis of x");
        expect(matrix(9, channels, hidden) && matrix(11, hidden, channels), "inputs w1 and w2 must be [C, H] and [H, C], where C is the last axis of x");
        const auto elements = [&](int i) { return volume(in[i].dims, 0, in[i].dims.nbDims); };
        for (int i : {1, 2, 7, 8}) expect(elements(i) == (layer_.whole ? tokens * channels : channels), "the norms' scales and biases must have C elements, with whole = 1 N*C");
        expect(elements(4) == 3 * channels && elements(6) == channels && elements(10) == hidden && elements(12) == channels, "inputs b_qkv, b_proj, b1 and b2 must have 3*C, C, H and C elements");
        return p;
    }

    Layer layer_;
};

class TntBridge final : public Op {
public:
    explicit TntBridge(Attributes given) : Op(std::move(given)) {
        epsilon1_ = epsilon(attributes_, "epsilon1"), epsilon2_ = epsilon(attributes_, "epsilon2");
        residual_ = flag(attributes_, "residual");
        begin_ = attributes_.integer("begin");
        if (begin_ < 0) attributes_.fail("attribute 'begin' must not be negative");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<TntBridge>(*this); }
    int32_t inputs() const override { return words() + 7; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        expect(in[0].nbDims == 3 && in[words()].nbDims == 3, "inputs x and words must be [B, N, C] and [B, M, K]");
        expect(in[words() + 3].nbDims == 2, "input w must be a matrix");
        out[0] = in[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t,
                    cudaStream_t stream) const override {
        TntBridgeProblem p = problem(in_desc);
        p.x = in[0];
        if (residual_) p.residual = in[1];
        const void* const* w = in + words();
        p.words = w[0], p.scale1 = w[1], p.bias1 = w[2], p.w = w[3], p.b = w[4], p.scale2 = w[5], p.bias2 = w[6];
        p.y = out[0];
        p.workspace = workspace;
        return tnt_bridge(p, stream);
    }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        const TntBridgeProblem p = problem(in_desc);
        expect(p.images >= 0, "the workspace has a part for each image, and how many there are is not known");
        return static_cast<size_t>(tnt_bridge_workspace(p));
    }

private:
    int32_t words() const { return residual_ ? 2 : 1; }
    // Everything but the pointers.
    TntBridgeProblem problem(const PluginTensorDesc* in) const {
        const PluginTensorDesc* w = in + words();
        const Dims &x = in[0].dims, &rows = w[0].dims;
        expect(x.nbDims == 3 && rows.nbDims == 3, "inputs x and words must be [B, N, C] and [B, M, K]");
        const int64_t tokens = x.d[1], channels = x.d[2], covered = rows.d[1], width = rows.d[2];
        expect(!residual_ || (in[1].dims.nbDims == 3 && in[1].dims.d[0] == x.d[0] && in[1].dims.d[1] == tokens && in[1].dims.d[2] == channels), "input residual must have the shape of x");
        expect(rows.d[0] == x.d[0], "inputs x and words must have as many images");
        expect(tokens >= 1 && tokens <= kAttnMaxTokens, "1 to 65536 tokens are possible");
        expect(covered >= 1 && begin_ + covered <= tokens, "the rows of words are more than the tokens from attribute 'begin' on");
        expect(channels >= 1 && channels <= kMlpMaxChannels && width >= 1 && width <= kMlpMaxHidden, "at most 2048 channels and 16384 values a row of words are possible");
        expect(w[3].dims.nbDims == 2 && w[3].dims.d[0] == width && w[3].dims.d[1] == channels, "input w must be [K, C], where K and C are the last axes of words and x");
        const auto elements = [&](int i) { return volume(w[i].dims, 0, w[i].dims.nbDims); };
        expect(elements(1) == width && elements(2) == width, "inputs scale1 and bias1 must have K elements");
        for (int i : {4, 5, 6}) expect(elements(i) == channels, "inputs b, scale2 and bias2 must have C elements");
        TntBridgeProblem p;
        p.dtype = dtype(in[0]);
        p.images = x.d[0], p.tokens = static_cast<int32_t>(tokens), p.begin = begin_, p.covered = static_cast<int32_t>(covered);
        p.width = static_cast<int32_t>(width), p.channels = static_cast<int32_t>(channels), p.epsilon1 = epsilon1_, p.epsilon2 = epsilon2_;
        return p;
    }

    float epsilon1_, epsilon2_;
    int32_t begin_;
    bool residual_;
};

class TntWords final : public Op {
public:
    explicit TntWords(Attributes given) : Op(std::move(given)), layer_(attributes_) {
        epsilon1_ = epsilon(attributes_, "bridge_epsilon1"), epsilon2_ = epsilon(attributes_, "bridge_epsilon2");
        tokens_ = attributes_.integer("tokens"), begin_ = attributes_.integer("begin"), covered_ = attributes_.integer("covered");
        if (tokens_ < 1 || tokens_ > kAttnMaxTokens) attributes_.fail("attribute 'tokens' must be 1 to 65536");
        if (begin_ < 0) attributes_.fail("attribute 'begin' must not be negative");
        if (covered_ < 1 || int64_t{begin_} + covered_ > tokens_) attributes_.fail("attribute 'covered' must be at least 1, and 'begin' and 'covered' together at most 'tokens'");
        words_ = flag(attributes_, "words"), stacked_ = attributes_.integer("stacked");
        layers_ = size("layers", kWordsMaxLayers), hidden_ = size("hidden", kMlpMaxHidden), width_ = size("width", kMlpMaxHidden), channels_ = size("channels", kMlpMaxChannels);
        const auto& after = attributes_.integers("after");
        static_assert(kWordsMaxBridges == 32 && kWordsMaxLayers == 32, "attribute 'after' has 32 values");
        while (bridges_ < kWordsMaxBridges && after[bridges_] >= 0) ++bridges_;
        if (bridges_ == 0) attributes_.fail("attribute 'after' must name a layer");
        for (int32_t j = 0; j < kWordsMaxBridges; ++j) {
            if (j < bridges_ ? after[j] > layers_ || (j > 0 && after[j] < after[j - 1]) : after[j] != -1)
                attributes_.fail("attribute 'after' must be layers from 0 to " + std::to_string(layers_) + ", ascending, and then -1");
        }
        if (stacked_ < 0 || stacked_ > bridges_) attributes_.fail("attribute 'stacked' must be 0 to " + std::to_string(bridges_) + ", is " + std::to_string(stacked_));
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<TntWords>(*this); }
    int32_t inputs() const override { return 2; }
    int32_t outputs() const override { return alone() + (stacked_ > 0 ? 1 : 0) + (words_ ? 1 : 0); }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        expect(in[0].nbDims == 3, "input x must be [P, N, C]");
        expect(in[1].nbDims == 1, "input weights must have one axis");
        const IDimensionExpr *n = in[0].d[1], *c = in[0].d[2], *weights = in[1].d[0];
        expect(n->isConstant() && c->isConstant(), "the words and channels of a patch of x must be known");
        const int64_t words = n->getConstantValue(), channels = c->getConstantValue();
        if (weights->isConstant()) check_weights(words, channels, weights->getConstantValue());
        DimsExprs one{};
        one.nbDims = 3;
        one.d[0] = divided(in[0].d[0], rows_of_image(words, channels), build);
        one.d[1] = build.constant(tokens_);
        one.d[2] = build.constant(channels_);
        for (int32_t j = 0; j < alone(); ++j) out[j] = one;
        if (stacked_ > 0) {
            DimsExprs& stack = out[alone()];
            stack.nbDims = 4;
            stack.d[0] = build.constant(stacked_);
            for (int32_t i = 0; i < 3; ++i) stack.d[1 + i] = one.d[i];
        }
        if (words_) out[outputs() - 1] = in[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t,
                    cudaStream_t stream) const override {
        TntWordsProblem p = problem(in_desc);
        // As the inputs of TrtOptTntInnerBlock, and the bridges' weights behind them.
        const std::vector<int64_t> begin = parts(p.inner.tokens, p.inner.channels);
        const void* w[1 + kParts] = {in[0]};
        for (int32_t i = 0; i < kParts; ++i) w[1 + i] = static_cast<const unsigned char*>(in[1]) + begin[i] * element(in_desc[1]);
        Layer::point(w, p.inner);
        const void* const* bridge = w + 1 + kLayerParts;
        p.scale1 = bridge[0], p.bias1 = bridge[1], p.w = bridge[2], p.b = bridge[3], p.scale2 = bridge[4], p.bias2 = bridge[5];
        const int64_t result = p.images * tokens_ * channels_ * element(in_desc[0]);
        for (int32_t j = 0; j < bridges_; ++j) p.out[j] = j < alone() ? out[j] : static_cast<unsigned char*>(out[alone()]) + (j - alone()) * result;
        if (words_) p.y = out[outputs() - 1];
        p.workspace = workspace;
        return tnt_words(p, stream);
    }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        expect(in_desc[0].dims.nbDims != 3 || in_desc[0].dims.d[0] >= 0, "the workspace has a part for each patch, and how many there are is not known");
        return static_cast<size_t>(tnt_words_workspace(problem(in_desc)));
    }

private:
    static constexpr int32_t kLayerParts = 12, kParts = kLayerParts + 6;

    // Bridges with an output of their own; the others have one together.
    int32_t alone() const { return bridges_ - stacked_; }
    int32_t size(const char* name, int32_t most) const {
        const int32_t v = attributes_.integer(name);
        if (v < 1 || v > most) attributes_.fail(std::string("attribute '") + name + "' must be 1 to " + std::to_string(most) + ", is " + std::to_string(v));
        return v;
    }
    // Patches of an image, where each has so many words of so many channels.
    int64_t rows_of_image(int64_t words, int64_t channels) const {
        const int64_t patch = words * channels;
        if (patch < 1 || width_ % patch != 0) attributes_.fail("attribute 'width' must be a multiple of the values of a patch, " + std::to_string(patch) + ", is " + std::to_string(width_));
        return covered_ * (width_ / patch);
    }
    // Where the parts of the packed weights begin, and where the last one ends. Each begins at 16 bytes, as the kernels read them.
    std::vector<int64_t> parts(int64_t words, int64_t channels) const {
        expect(words >= 1 && words <= kAttnMaxTokens && channels >= 1 && channels <= kMlpMaxChannels, "a patch of x must be 1 to 65536 words of 1 to 2048 channels");
        const int64_t l = layers_, c = channels, norm = layer_.whole ? words * c : c, j = bridges_;
        const int64_t elements[kParts] = {l * norm, l * norm, l * c * 3 * c, l * 3 * c, l * c * c, l * c, l * norm, l * norm, l * c * hidden_, l * hidden_, l * hidden_ * c, l * c,
                                          j * width_, j * width_, j * width_ * channels_, j * channels_, j * channels_, j * channels_};
        std::vector<int64_t> begin = {0};
        for (int64_t n : elements) begin.push_back(begin.back() + (n + 7) / 8 * 8);
        return begin;
    }
    void check_weights(int64_t words, int64_t channels, int64_t found) const {
        const int64_t expected = parts(words, channels).back();
        if (found != expected)
            attributes_.fail("input weights must have " + std::to_string(expected) + " elements for these attributes and patches of " + std::to_string(words) + " x " + std::to_string(channels) + ", has " + std::to_string(found));
    }
    // Everything but the pointers.
    TntWordsProblem problem(const PluginTensorDesc* in) const {
        const Dims &x = in[0].dims, &weights = in[1].dims;
        expect(x.nbDims == 3 && weights.nbDims == 1, "inputs x and weights must be [P, N, C] and [S]");
        TntWordsProblem p;
        p.inner = layer_.problem(attributes_, in[0], hidden_);
        check_weights(x.d[1], x.d[2], weights.d[0]);
        const int64_t rows = rows_of_image(x.d[1], x.d[2]);
        expect(x.d[0] % rows == 0, "the patches of x must be those of whole images");
        p.layers = layers_, p.bridges = bridges_;
        for (int32_t j = 0; j < bridges_; ++j) p.after[j] = attributes_.integers("after")[static_cast<size_t>(j)];
        p.images = x.d[0] / rows;
        p.tokens = tokens_, p.begin = begin_, p.covered = covered_, p.width = width_, p.channels = channels_;
        p.epsilon1 = epsilon1_, p.epsilon2 = epsilon2_;
        return p;
    }

    Layer layer_;
    float epsilon1_, epsilon2_;
    int32_t tokens_, begin_, covered_, layers_, hidden_, width_, channels_, bridges_ = 0, stacked_;
    bool words_;
};

class NormPool final : public Op {
public:
    explicit NormPool(Attributes given) : Op(std::move(given)) {
        epsilon_ = epsilon(attributes_);
        residual_ = flag(attributes_, "residual");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<NormPool>(*this); }
    int32_t inputs() const override { return residual_ ? 4 : 3; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        expect(in[0].nbDims >= 3, "input x must be [B, ..., C] with one axis or more of tokens");
        out[0].nbDims = 2;
        out[0].d[0] = in[0].d[0], out[0].d[1] = in[0].d[in[0].nbDims - 1];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void*, int32_t,
                    cudaStream_t stream) const override {
        const Dims& x = in_desc[0].dims;
        expect(x.nbDims >= 3, "input x must be [B, ..., C] with one axis or more of tokens");
        NormPoolProblem p;
        p.dtype = dtype(in_desc[0]);
        p.images = x.d[0], p.tokens = volume(x, 1, x.nbDims - 1), p.row = x.d[x.nbDims - 1];
        expect(p.tokens >= 1, "the mean over no tokens is not defined");
        const int first = inputs() - 2;
        for (int i = first; i < first + 2; ++i)
            expect(volume(in_desc[i].dims, 0, in_desc[i].dims.nbDims) == p.row, "inputs scale and bias must have C elements");
        if (residual_) {
            expect(volume(in_desc[1].dims, 0, in_desc[1].dims.nbDims) == volume(x, 0, x.nbDims), "input residual must have the shape of x");
            p.residual = in[1];
        }
        p.epsilon = epsilon_;
        p.x = in[0], p.scale = in[first], p.bias = in[first + 1], p.y = out[0];
        return norm_pool(p, stream);
    }

private:
    float epsilon_;
    bool residual_;
};

class Gelu final : public Op {
public:
    explicit Gelu(Attributes given) : Op(std::move(given)) {
        bias_ = flag(attributes_, "bias");
        tanh_ = tanh_gelu(attributes_);
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<Gelu>(*this); }
    int32_t inputs() const override { return bias_ ? 2 : 1; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        expect(in[0].nbDims >= 1, "input x must have an axis of channels");
        out[0] = in[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void*, int32_t,
                    cudaStream_t stream) const override {
        const Dims& x = in_desc[0].dims;
        expect(x.nbDims >= 1, "input x must have an axis of channels");
        GeluProblem p;
        p.dtype = dtype(in_desc[0]);
        p.rows = volume(x, 0, x.nbDims - 1), p.row = x.d[x.nbDims - 1];
        p.tanh = tanh_;
        p.x = in[0], p.y = out[0];
        if (bias_) {
            expect(volume(in_desc[1].dims, 0, in_desc[1].dims.nbDims) == p.row, "input bias must have C elements");
            p.bias = in[1];
        }
        return gelu(p, stream);
    }

private:
    bool bias_, tanh_;
};

class PatchEmbed final : public Op {
public:
    explicit PatchEmbed(Attributes given) : Op(std::move(given)) {
        epsilon_ = epsilon(attributes_);
        offset_ = flag(attributes_, "bias"), norm_ = flag(attributes_, "norm");
        rank_ = attributes_.integer("rank");
        expect(rank_ == 3 || rank_ == 4, "attribute 'rank' must be 3 or 4");
        grid_ = attributes_.integers("grid");
        tokens_ = grid_[0] != 0 || grid_[1] != 0;
        expect(!tokens_ || (grid_[0] >= 1 && grid_[1] >= 1), "attribute 'grid' must be two positive sizes, or 0 and 0");
        expect(int64_t{grid_[0]} * grid_[1] <= (int64_t{1} << 30), "attribute 'grid' is too large");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<PatchEmbed>(*this); }
    int32_t inputs() const override { return 2 + (offset_ ? 1 : 0) + (norm_ ? 2 : 0); }
    int32_t outputs() const override { return 1; }
    // The image may be fp32 where all else is fp16; tokens are of the type of all else.
    bool supports(int32_t pos, const PluginTensorDesc* tensors) const override {
        if (!linear_float(tensors[pos])) return false;
        if (pos == 1) return tensors[1].type == tensors[0].type || (!tokens_ && tensors[0].type == DataType::kFLOAT);
        return pos == 0 || tensors[pos].type == tensors[1].type;
    }
    int32_t typed_by() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        const DimsExprs &x = in[0], &w = in[1];
        const int channels = tokens_ ? 3 : 1, patch = tokens_ ? 1 : 2;  // axes of w
        expect(x.nbDims == (tokens_ ? 3 : 4) && w.nbDims == 4, kInputs[tokens_]);
        for (int i = 0; i < 4; ++i) expect(w.d[i]->isConstant() && w.d[i]->getConstantValue() > 0, "the axes of input w must be known");
        expect(may_be(x.d[tokens_ ? 2 : 1], w.d[channels]->getConstantValue()), "inputs x and w must have as many channels");
        expect(!tokens_ || may_be(x.d[1], int64_t{grid_[0]} * grid_[1]), "input x must have H*W tokens with H, W of attribute 'grid'");
        const IDimensionExpr *down = tokens_ ? build.constant(grid_[0]) : x.d[2], *right = tokens_ ? build.constant(grid_[1]) : x.d[3];
        const IDimensionExpr *h = divided(down, w.d[patch]->getConstantValue(), build), *across = divided(right, w.d[patch + 1]->getConstantValue(), build);
        out[0].nbDims = rank_;
        out[0].d[0] = x.d[0];
        if (rank_ == 4) out[0].d[1] = h, out[0].d[2] = across;
        else out[0].d[1] = times(h, across, build);
        out[0].d[rank_ - 1] = w.d[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void*, int32_t, cudaStream_t stream) const override {
        const Dims &x = in_desc[0].dims, &w = in_desc[1].dims;
        const int channels = tokens_ ? 3 : 1, patch = tokens_ ? 1 : 2;
        expect(x.nbDims == (tokens_ ? 3 : 4) && w.nbDims == 4 && x.d[tokens_ ? 2 : 1] == w.d[channels], kInputs[tokens_]);
        expect(!tokens_ || x.d[1] == int64_t{grid_[0]} * grid_[1], "input x must have H*W tokens with H, W of attribute 'grid'");
        const int64_t height = tokens_ ? grid_[0] : x.d[2], width = tokens_ ? grid_[1] : x.d[3];
        expect(height >= w.d[patch] && width >= w.d[patch + 1], "input x must not be smaller than a patch");
        expect(height * width <= INT32_MAX / w.d[channels], "an image of input x is too large");
        expect(w.d[0] <= kMlpMaxChannels && volume(w, 1, 4) <= kEmbedMaxPatch, "at most 2048 columns and patches of 16384 values are possible");
        for (int32_t i = 2; i < inputs(); ++i) expect(volume(in_desc[i].dims, 0, in_desc[i].dims.nbDims) == w.d[0], "inputs b, norm_scale and norm_bias must have D elements");
        PatchEmbedProblem p;
        p.dtype = dtype(in_desc[1]), p.image = dtype(in_desc[0]);
        auto at = [](int64_t size) { return static_cast<int32_t>(size); };
        p.images = x.d[0], p.columns = at(w.d[0]);
        if (tokens_) p.of_tokens(grid_[0], grid_[1], at(w.d[3]), at(w.d[1]), at(w.d[2]));
        else p.channels = at(x.d[1]), p.height = at(height), p.width = at(width), p.patch_h = at(w.d[2]), p.patch_w = at(w.d[3]);
        p.epsilon = epsilon_;
        p.x = in[0], p.w = in[1];
        if (offset_) p.b = in[2];
        if (norm_) p.scale = in[inputs() - 2], p.bias = in[inputs() - 1];
        p.y = out[0];
        return patch_embed(p, stream);
    }

private:
    static constexpr const char* kInputs[] = {"inputs x and w must be [B, C, H, W] and [D, C, ph, pw]", "inputs x and w must be [B, H*W, C] and [D, ph, pw, C]"};

    std::vector<int32_t> grid_;
    float epsilon_;
    bool offset_, norm_, tokens_;  // tokens_: x is these, not a map
    int32_t rank_;
};

// Of an image, which may be fp32 where all else is fp16.
class OfImage : public Op {
public:
    using Op::Op;
    bool supports(int32_t pos, const PluginTensorDesc* tensors) const override {
        if (!linear_float(tensors[pos])) return false;
        if (pos == 1) return tensors[1].type == DataType::kHALF || tensors[0].type == DataType::kFLOAT;
        return pos == 0 || tensors[pos].type == tensors[1].type;
    }
    int32_t typed_by() const override { return 1; }
};

class PixelEmbed final : public OfImage {
public:
    explicit PixelEmbed(Attributes given) : OfImage(std::move(given)) {
        auto pair = [&](const char* name, int32_t least, const char* error) {
            const auto& values = attributes_.integers(name);
            for (int i = 0; i < 2; ++i) expect(values[i] >= least && values[i] <= 32768, error);
            return std::array<int32_t, 2>{values[0], values[1]};
        };
        kernel_ = pair("kernel", 1, "attribute 'kernel' must be two positive sizes"), strides_ = pair("strides", 1, "attribute 'strides' must be two positive sizes");
        pads_ = pair("pads", 0, "attribute 'pads' must be two sizes"), grid_ = pair("grid", 1, "attribute 'grid' must be two positive sizes");
        patch_ = pair("patch", 1, "attribute 'patch' must be two positive sizes");
        within_ = flag(attributes_, "within");
        expect(kernel_[0] <= kPixelMaxRows && kernel_[1] <= kPixelSlots, "attribute 'kernel' must be at most 128 x 8");
        expect(pads_[0] < kernel_[0] && pads_[1] < kernel_[1], "attribute 'pads' must be less than 'kernel'");
        expect(strides_[0] <= 1024 && strides_[1] <= 1024, "attribute 'strides' must be at most 1024");
        expect(int64_t{patch_[0]} * patch_[1] <= kPixelMaxWords, "attribute 'patch' must have at most 256 words");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<PixelEmbed>(*this); }
    int32_t inputs() const override { return 3; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        const DimsExprs &x = in[0], &w = in[1];
        expect(x.nbDims == 4 && w.nbDims == 4, "inputs x and w must be [B, C, H, W] and [D, C, kh, 8]");
        for (int i = 0; i < 4; ++i) expect(w.d[i]->isConstant() && w.d[i]->getConstantValue() > 0, "the axes of input w must be known");
        expect(may_be(x.d[1], w.d[1]->getConstantValue()), "inputs x and w must have as many channels");
        out[0].nbDims = 3;
        out[0].d[0] = times(x.d[0], int64_t{grid_[0]} * grid_[1], build), out[0].d[1] = build.constant(patch_[0] * patch_[1]), out[0].d[2] = w.d[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void*, int32_t, cudaStream_t stream) const override {
        const Dims &x = in_desc[0].dims, &w = in_desc[1].dims;
        expect(x.nbDims == 4 && w.nbDims == 4 && x.d[1] == w.d[1], "inputs x and w must be [B, C, H, W] and [D, C, kh, 8]");
        expect(w.d[2] == kernel_[0] && w.d[3] == kPixelSlots, "input w must be [D, C, kh, 8]");
        expect(w.d[0] <= kPixelMaxColumns && w.d[1] * w.d[2] <= kPixelMaxRows, "at most 128 columns and 128 rows of the kernel in all channels are possible");
        PixelEmbedProblem p;
        p.dtype = dtype(in_desc[1]), p.image = dtype(in_desc[0]);
        p.images = x.d[0], p.channels = static_cast<int32_t>(x.d[1]), p.height = static_cast<int32_t>(x.d[2]), p.width = static_cast<int32_t>(x.d[3]);
        p.kernel_h = kernel_[0], p.kernel_w = kernel_[1], p.stride_h = strides_[0], p.stride_w = strides_[1], p.pad_h = pads_[0], p.pad_w = pads_[1];
        p.grid_h = grid_[0], p.grid_w = grid_[1], p.words_h = patch_[0], p.words_w = patch_[1], p.columns = static_cast<int32_t>(w.d[0]), p.within = within_;
        expect(volume(in_desc[2].dims, 0, in_desc[2].dims.nbDims) == int64_t{p.words()} * p.columns, "input offset must be [ph*pw, D]");
        p.x = in[0], p.w = in[1], p.offset = in[2], p.y = out[0];
        return pixel_embed(p, stream);
    }

private:
    std::array<int32_t, 2> kernel_, strides_, pads_, grid_, patch_;
    bool within_;
};

class DepthwiseConv final : public Op {
public:
    explicit DepthwiseConv(Attributes given) : Op(std::move(given)) {
        grid_ = attributes_.integers("grid");
        kernel_ = attributes_.integer("kernel");
        offset_ = flag(attributes_, "bias"), residual_ = flag(attributes_, "residual");
        expect(grid_[0] >= 1 && grid_[1] >= 1, "attribute 'grid' must be two positive sizes");
        expect(int64_t{grid_[0]} * grid_[1] <= (int64_t{1} << 30), "attribute 'grid' is too large");
        expect(kernel_ == 3 || kernel_ == 5 || kernel_ == 7, "attribute 'kernel' must be 3, 5 or 7");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<DepthwiseConv>(*this); }
    int32_t inputs() const override { return 2 + (offset_ ? 1 : 0); }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        expect(in[0].nbDims == 3 && may_be(in[0].d[1], tokens()), "input x must be [B, H*W, C] with H, W of attribute 'grid'");
        out[0] = in[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void*, int32_t, cudaStream_t stream) const override {
        const Dims &x = in_desc[0].dims, &w = in_desc[1].dims;
        expect(x.nbDims == 3 && x.d[1] == tokens(), "input x must be [B, H*W, C] with H, W of attribute 'grid'");
        expect(w.nbDims == 2 && w.d[0] == int64_t{kernel_} * kernel_ && w.d[1] == x.d[2], "input w must be [k*k, C]");
        expect(!offset_ || volume(in_desc[2].dims, 0, in_desc[2].dims.nbDims) == x.d[2], "input b must have C elements");
        DepthwiseConvProblem p;
        p.dtype = dtype(in_desc[0]);
        p.images = x.d[0], p.height = grid_[0], p.width = grid_[1], p.channels = static_cast<int32_t>(x.d[2]), p.kernel = kernel_, p.residual = residual_;
        p.x = in[0], p.w = in[1], p.b = offset_ ? in[2] : nullptr, p.y = out[0];
        return depthwise_conv(p, stream);
    }

private:
    int64_t tokens() const { return int64_t{grid_[0]} * grid_[1]; }

    std::vector<int32_t> grid_;
    int32_t kernel_;
    bool offset_, residual_;
};

// What has a convolution block over a map of tokens in it.
class OfConvBlock : public Op {
public:
    explicit OfConvBlock(Attributes given) : Op(std::move(given)) {
        grid_ = attributes_.integers("grid");
        kernel_ = attributes_.integer("kernel");
        expect(grid_[0] >= 1 && grid_[1] >= 1, "attribute 'grid' must be two positive sizes");
        expect(tokens() <= kConvMaxTokens, "attribute 'grid' is too large");
        expect(kernel_ == 3 || kernel_ == 5 || kernel_ == 7, "attribute 'kernel' must be 3, 5 or 7");
    }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        expect(in[0].nbDims == 3 && may_be(in[0].d[1], tokens()), "input x must be [B, H*W, C] with H, W of attribute 'grid'");
        for (int i : {0, 2, 4}) expect(in[first_weight() + i].nbDims == 2, "inputs w1, w and w2 must be matrices");
        out[0] = in[0];
    }

protected:
    // The input that is the block's w1; the others are behind it.
    virtual int first_weight() const = 0;
    int64_t tokens() const { return int64_t{grid_[0]} * grid_[1]; }
    // More than a piece has, where their number is not known.
    int64_t most_images(const PluginTensorDesc* in) const {
        const int64_t images = in[0].dims.d[0];
        return images >= 0 ? images : kConvMaxTokens / tokens();
    }
    static bool matrix(const PluginTensorDesc& in, int64_t rows, int64_t columns) { return in.dims.nbDims == 2 && in.dims.d[0] == rows && in.dims.d[1] == columns; }
    static int64_t elements(const PluginTensorDesc& in) { return volume(in.dims, 0, in.dims.nbDims); }
    // Everything but the images and the pointers.
    ConvBlockProblem block_problem(const PluginTensorDesc* in) const {
        const Dims& x = in[0].dims;
        expect(x.nbDims == 3 && x.d[1] == tokens(), "input x must be [B, H*W, C] with H, W of attribute 'grid'");
        const PluginTensorDesc* const w = in + first_weight();
        const int64_t channels = x.d[2], hidden = w[0].dims.nbDims == 2 ? int64_t{w[0].dims.d[1]} : 0;
        expect(matrix(w[0], channels, hidden) && matrix(w[4], hidden, channels), "inputs w1 and w2 must be [C, D] and [D, C], where C is the last axis of x");
        expect(matrix(w[2], int64_t{kernel_} * kernel_, hidden), "input w must be [k*k, D]");
        expect(elements(w[1]) == hidden && elements(w[3]) == hidden && elements(w[5]) == channels, "inputs b1, b and b2 must have D, D and C elements");
        expect(channels >= 1 && channels <= kMlpMaxChannels && hidden >= 1 && hidden <= kMlpMaxChannels, "at most 2048 channels, and as many between the products, are possible");
        ConvBlockProblem p;
        p.dtype = dtype(in[0]);
        p.height = grid_[0], p.width = grid_[1], p.channels = static_cast<int32_t>(channels), p.hidden = static_cast<int32_t>(hidden), p.kernel = kernel_;
        return p;
    }
    void set_block(ConvBlockProblem& p, const void* const* in) const {
        const void* const* const w = in + first_weight();
        p.x = in[0], p.w1 = w[0], p.b1 = w[1], p.w = w[2], p.b = w[3], p.w2 = w[4], p.b2 = w[5];
    }

private:
    std::vector<int32_t> grid_;
    int32_t kernel_;
};

class ConvBlock final : public OfConvBlock {
public:
    using OfConvBlock::OfConvBlock;
    std::unique_ptr<Op> clone() const override { return std::make_unique<ConvBlock>(*this); }
    int32_t inputs() const override { return 7; }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t tactic,
                    cudaStream_t stream) const override {
        ConvBlockProblem p = sized_problem(in_desc);
        set_block(p, in);
        p.y = out[0];
        p.workspace = workspace;
        return conv_block(p, stream, tactic);
    }
    std::vector<int32_t> tactics(const PluginTensorDesc* in_desc) const override { return conv_block_tactics(sized_problem(in_desc)); }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        ConvBlockProblem p = block_problem(in_desc);
        p.images = most_images(in_desc);
        return static_cast<size_t>(conv_block_workspace(p));
    }

private:
    int first_weight() const override { return 1; }
    // Everything but the pointers.
    ConvBlockProblem sized_problem(const PluginTensorDesc* in) const {
        ConvBlockProblem p = block_problem(in);
        p.images = in[0].dims.d[0];
        return p;
    }
};

class ConvLayer final : public OfConvBlock {
public:
    explicit ConvLayer(Attributes given) : OfConvBlock(std::move(given)) { tanh_ = tanh_gelu(attributes_); }
    std::unique_ptr<Op> clone() const override { return std::make_unique<ConvLayer>(*this); }
    int32_t inputs() const override { return 13; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& builder) const override {
        OfConvBlock::shapes(in, out, builder);
        expect(in[1].nbDims == 2 && in[kUp].nbDims == 2 && in[kUp + 2].nbDims == 2, "inputs position_w, up and down must be matrices");
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t tactic,
                    cudaStream_t stream) const override {
        ConvLayerProblem p = problem(in_desc, in_desc[0].dims.d[0]);
        set_block(p.conv, in);
        p.position_w = in[1], p.position_b = in[2];
        const void* const* const w = in + kUp;
        p.mlp.w1 = w[0], p.mlp.b1 = w[1], p.mlp.w2 = w[2], p.mlp.b2 = w[3];
        p.y = out[0];
        p.workspace = workspace;
        return conv_layer(p, stream, tactic);
    }
    std::vector<int32_t> tactics(const PluginTensorDesc* in_desc) const override { return conv_layer_tactics(problem(in_desc, in_desc[0].dims.d[0])); }
    size_t workspace(const PluginTensorDesc* in_desc) const override { return static_cast<size_t>(conv_layer_workspace(problem(in_desc, most_images(in_desc)))); }

private:
    static constexpr int kUp = 9;
    int first_weight() const override { return 3; }
    // Everything but the pointers.
    ConvLayerProblem problem(const PluginTensorDesc* in, int64_t images) const {
        ConvLayerProblem p;
        p.conv = block_problem(in);
        p.conv.images = images;
        const int64_t channels = p.conv.channels, hidden = in[kUp].dims.nbDims == 2 ? int64_t{in[kUp].dims.d[1]} : 0;
        expect(matrix(in[1], kLayerPositionKernel * kLayerPositionKernel, channels) && elements(in[2]) == channels, "inputs position_w and position_b must be [9, C] and have C elements");
        expect(matrix(in[kUp], channels, hidden) && matrix(in[kUp + 2], hidden, channels), "inputs up and down must be [C, H] and [H, C]");
        expect(elements(in[kUp + 1]) == hidden && elements(in[kUp + 3]) == channels, "inputs up_b and down_b must have H and C elements");
        expect(hidden >= 1 && hidden <= kMlpMaxHidden, "at most 16384 hidden columns are possible");
        p.mlp.hidden = static_cast<int32_t>(hidden), p.mlp.tanh_gelu = tanh_;
        return p;
    }

    bool tanh_;
};

class Classifier final : public Op {
public:
    explicit Classifier(Attributes given) : Op(std::move(given)) {
        epsilon_ = epsilon(attributes_);
        norm_ = flag(attributes_, "norm"), residual_ = flag(attributes_, "residual");
        token_ = attributes_.integer("token");
        expect(token_ >= -1, "attribute 'token' must be a token or -1");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<Classifier>(*this); }
    int32_t inputs() const override { return residual_ ? 4 : 3; }
    int32_t outputs() const override { return 1; }
    // The offset and what it gives may be fp32 where all else is fp16, each by itself: of an engine that chooses types, the output of the network is.
    bool supports(int32_t pos, const PluginTensorDesc* tensors) const override {
        if (!linear_float(tensors[pos])) return false;
        return tensors[pos].type == tensors[0].type || (pos >= typed_by() && tensors[pos].type == DataType::kFLOAT);
    }
    int32_t typed_by() const override { return inputs() - 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder&) const override {
        expect(in[0].nbDims >= 3, "input x must be [B, ..., C] with one axis or more of tokens");
        expect(in[inputs() - 2].nbDims == 2, "input w must be [N, C]");
        out[0].nbDims = 2;
        out[0].d[0] = in[0].d[0], out[0].d[1] = in[inputs() - 2].d[0];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc* out_desc, const void* const* in, void* const* out, void*, int32_t,
                    cudaStream_t stream) const override {
        const int32_t weights = inputs() - 2;
        const Dims &x = in_desc[0].dims, &w = in_desc[weights].dims;
        expect(x.nbDims >= 3, "input x must be [B, ..., C] with one axis or more of tokens");
        expect(w.nbDims == 2 && w.d[1] == x.d[x.nbDims - 1], "input w must be [N, C], where C is the last axis of x");
        expect(volume(in_desc[weights + 1].dims, 0, in_desc[weights + 1].dims.nbDims) == w.d[0], "input b must have N elements");
        expect(w.d[1] >= 1 && w.d[1] <= kClassifierMaxRow && w.d[0] <= kClassifierMaxClasses, "at most 8192 channels and 2^20 classes are possible");
        ClassifierProblem p;
        p.dtype = dtype(in_desc[0]), p.bias = dtype(in_desc[weights + 1]), p.out = dtype(out_desc[0]);
        p.images = x.d[0], p.tokens = volume(x, 1, x.nbDims - 1);
        expect(p.tokens >= 1 && token_ < p.tokens, "input x must have a token, and that of attribute 'token'");
        p.token = token_, p.row = static_cast<int32_t>(w.d[1]), p.classes = static_cast<int32_t>(w.d[0]);
        p.norm = norm_, p.epsilon = epsilon_;
        if (residual_) {
            expect(volume(in_desc[1].dims, 0, in_desc[1].dims.nbDims) == volume(x, 0, x.nbDims), "input residual must have the shape of x");
            p.residual = in[1];
        }
        p.x = in[0], p.w = in[weights], p.b = in[weights + 1], p.y = out[0];
        return classifier(p, stream);
    }

private:
    float epsilon_;
    bool norm_, residual_;
    int32_t token_;
};

class PatchConv final : public Op {
public:
    explicit PatchConv(Attributes given) : Op(std::move(given)) {
        sized_.epsilon = epsilon(attributes_);
        norm_ = flag(attributes_, "norm");
        const auto &grid = attributes_.integers("grid"), &kernel = attributes_.integers("kernel"), &strides = attributes_.integers("strides"), &pads = attributes_.integers("pads"), &cell = attributes_.integers("cell");
        sized_.across = attributes_.integer("across");
        const auto positive = [](const std::vector<int32_t>& sizes) { return sizes[0] >= 1 && sizes[1] >= 1; };
        expect(positive(grid), "attribute 'grid' must be two positive sizes");
        expect(int64_t{grid[0]} * grid[1] <= kConvMaxTokens, "attribute 'grid' is too large");
        expect(positive(kernel) && int64_t{kernel[0]} * kernel[1] <= kMlpMaxHidden, "attribute 'kernel' must be two positive sizes, at most 16384 places");
        expect(positive(strides), "attribute 'strides' must be two positive sizes");
        expect(positive(cell) && grid[0] % cell[0] == 0 && grid[1] % cell[1] == 0, "attribute 'cell' must be two positive sizes that divide 'grid'");
        for (int i = 0; i < 4; ++i) expect(pads[i] >= 0 && pads[i] < kernel[i % 2], "attribute 'pads' must not be negative, and smaller than 'kernel'");
        for (int i = 0; i < 2; ++i) expect(int64_t{grid[i]} + pads[i] + pads[i + 2] >= kernel[i], "attribute 'kernel' must not be larger than the padded map");
        expect(sized_.across >= 1 && sized_.across <= kConvMaxTokens, "attribute 'across' must be a positive number of maps");
        sized_.height = grid[0], sized_.width = grid[1];
        for (int i = 0; i < 2; ++i) sized_.kernel[i] = kernel[i], sized_.strides[i] = strides[i], sized_.cell[i] = cell[i];
        std::copy(pads.begin(), pads.end(), sized_.pads);
        expect(patch_conv_rows(sized_) <= kConvMaxTokens / (int64_t{kernel[0]} * kernel[1]), "attribute 'grid' is too large for attribute 'kernel'");
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<PatchConv>(*this); }
    int32_t inputs() const override { return norm_ ? 5 : 3; }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        expect(in[0].nbDims == 3 && may_be(in[0].d[1], tokens()), "input x must be [B, H*W, C] with H, W of attribute 'grid'");
        expect(in[1].nbDims == 2, "input w must be a matrix");
        out[0].nbDims = 3;
        out[0].d[0] = in[0].d[0], out[0].d[1] = build.constant(static_cast<int32_t>(patch_conv_rows(sized_))), out[0].d[2] = in[1].d[1];
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t tactic,
                    cudaStream_t stream) const override {
        PatchConvProblem p = sized_problem(in_desc);
        p.x = in[0], p.w = in[1], p.b = in[2];
        if (norm_) p.scale = in[3], p.bias = in[4];
        p.y = out[0];
        p.workspace = workspace;
        return patch_conv(p, stream, tactic);
    }
    std::vector<int32_t> tactics(const PluginTensorDesc* in_desc) const override { return patch_conv_tactics(sized_problem(in_desc)); }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        PatchConvProblem p = problem(in_desc);
        const int64_t images = in_desc[0].dims.d[0];
        // More than a piece has, where their number is not known.
        p.images = images >= 0 ? images : int64_t{kConvMaxTokens} * p.across;
        return static_cast<size_t>(patch_conv_workspace(p));
    }

private:
    int64_t tokens() const { return int64_t{sized_.height} * sized_.width; }
    // Everything but the pointers.
    PatchConvProblem sized_problem(const PluginTensorDesc* in) const {
        PatchConvProblem p = problem(in);
        p.images = in[0].dims.d[0];
        expect(p.images % p.across == 0, "input x must be of whole rows of maps, of attribute 'across' each");
        return p;
    }
    // Everything but the images and the pointers.
    PatchConvProblem problem(const PluginTensorDesc* in) const {
        const Dims &x = in[0].dims, &w = in[1].dims;
        expect(x.nbDims == 3 && x.d[1] == tokens(), "input x must be [B, H*W, C] with H, W of attribute 'grid'");
        const int64_t channels = x.d[2], depth = channels * sized_.kernel[0] * sized_.kernel[1], columns = w.nbDims == 2 ? int64_t{w.d[1]} : 0;
        expect(channels >= 1 && depth <= kMlpMaxHidden && columns >= 1 && columns <= kMlpMaxChannels, "at most 16384 values under the kernel and 2048 columns are possible");
        expect(w.d[0] == depth, "input w must be [kh*kw*C, D], where C is the last axis of x");
        const auto elements = [&](int i) { return volume(in[i].dims, 0, in[i].dims.nbDims); };
        expect(elements(2) == columns, "input b must have D elements");
        for (int32_t i = 3; i < inputs(); ++i) expect(elements(i) == channels, "inputs norm_scale and norm_bias must have C elements");
        PatchConvProblem p = sized_;
        p.dtype = dtype(in[0]);
        p.channels = static_cast<int32_t>(channels), p.columns = static_cast<int32_t>(columns);
        return p;
    }

    PatchConvProblem sized_;  // what the attributes say
    bool norm_;
};

class ConvStack final : public OfImage {
public:
    explicit ConvStack(Attributes given) : OfImage(std::move(given)) {
        const auto &channels = attributes_.integers("channels"), &strides = attributes_.integers("strides"), &patch = attributes_.integers("patch");
        while (sized_.layers < kStackMaxLayers && channels[sized_.layers] > 0) ++sized_.layers;
        expect(sized_.layers >= 2, "attribute 'channels' must be 2 to 5 positive numbers, then 0");
        for (int i = 0; i < kStackMaxLayers; ++i) {
            expect(i < sized_.layers || channels[i] == 0, "attribute 'channels' must be 2 to 5 positive numbers, then 0");
            expect(channels[i] <= (i + 1 < sized_.layers ? kStackMaxInner : kStackMaxColumns), "attribute 'channels' must be at most 64, of the last layer at most 128");
        }
        for (int i = 0; i < kStackMaxLayers; ++i) {
            expect(i < sized_.layers ? strides[i] == 1 || strides[i] == 2 : strides[i] == 0, "attribute 'strides' must be 1 or 2 for each layer, then 0");
            sized_.columns[i] = channels[i], sized_.strides[i] = strides[i];
        }
        sized_.branch = attributes_.integer("word_layer"), sized_.word_columns = attributes_.integer("word_channels");
        expect(sized_.branch >= -1 && sized_.branch <= sized_.layers - 2, "attribute 'word_layer' must be a layer before the last, or -1");
        expect(words() ? sized_.word_columns >= 1 && sized_.word_columns <= kStackMaxInner : sized_.word_columns == 0, "attribute 'word_channels' must be 1 to 64, without words 0");
        expect(patch[0] >= 1 && patch[1] >= 1 && int64_t{patch[0]} * patch[1] <= kStackMaxPatchWords, "attribute 'patch' must be two positive sizes, of at most 256 words");
        expect(words() || (patch[0] == 1 && patch[1] == 1), "attribute 'patch' must be 1, 1 without words");
        sized_.words_h = patch[0], sized_.words_w = patch[1];
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<ConvStack>(*this); }
    int32_t inputs() const override { return words() ? 4 : 3; }
    int32_t outputs() const override { return words() ? 2 : 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        const DimsExprs& x = in[0];
        expect(x.nbDims == 4, "input x must be [B, C, H, W]");
        int32_t sizes[3];
        for (int i = 0; i < 3; ++i) {
            expect(x.d[i + 1]->isConstant() && x.d[i + 1]->getConstantValue() > 0, "the channels and sides of input x must be known");
            sizes[i] = static_cast<int32_t>(x.d[i + 1]->getConstantValue());
        }
        const ConvStackProblem p = of_image(sizes);
        const int32_t last = p.layers - 1;
        auto constant = [&](int64_t v) { return build.constant(static_cast<int32_t>(v)); };
        out[0].nbDims = 3;
        out[0].d[0] = x.d[0], out[0].d[1] = constant(int64_t{conv_stack_side(p, last, 0)} * conv_stack_side(p, last, 1)), out[0].d[2] = constant(p.columns[last]);
        if (!words()) return;
        out[1].nbDims = 3;
        out[1].d[0] = times(x.d[0], patches(p), build), out[1].d[1] = constant(int64_t{p.words_h} * p.words_w), out[1].d[2] = constant(p.word_columns);
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t tactic, cudaStream_t stream) const override {
        ConvStackProblem p = problem(in_desc);
        p.x = in[0], p.w = in[1], p.offset = in[2], p.y = out[0];
        if (words()) p.word_offset = in[3], p.words = out[1];
        p.workspace = workspace;
        return conv_stack(p, stream, tactic);
    }
    std::vector<int32_t> tactics(const PluginTensorDesc* in_desc) const override { return conv_stack_tactics(problem(in_desc)); }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        ConvStackProblem p = problem(in_desc);
        // As many as a piece has, where their number is not known.
        if (p.images < 0) p.images = kStackMaxPixels / (int64_t{p.height} * p.width);
        return static_cast<size_t>(conv_stack_workspace(p));
    }

private:
    bool words() const { return sized_.branch >= 0; }
    static int64_t patches(const ConvStackProblem& p) { return int64_t{conv_stack_side(p, p.branch, 0) / p.words_h} * (conv_stack_side(p, p.branch, 1) / p.words_w); }
    ConvStackProblem of_image(const int32_t* sizes) const {
        ConvStackProblem p = sized_;
        p.channels = sizes[0], p.height = sizes[1], p.width = sizes[2];
        expect(p.channels >= 1 && p.channels <= 4 && p.height >= 1 && p.width >= 1 && int64_t{p.height} * p.width <= kStackMaxPixels, "input x must have 1 to 4 channels, and at most 2^28 pixels");
        expect(!words() || (conv_stack_side(p, p.branch, 0) % p.words_h == 0 && conv_stack_side(p, p.branch, 1) % p.words_w == 0), "attribute 'patch' must divide the map of 'word_layer'");
        return p;
    }
    // Everything but the pointers.
    ConvStackProblem problem(const PluginTensorDesc* in) const {
        const Dims& x = in[0].dims;
        expect(x.nbDims == 4, "input x must be [B, C, H, W]");
        const int32_t sizes[3] = {static_cast<int32_t>(x.d[1]), static_cast<int32_t>(x.d[2]), static_cast<int32_t>(x.d[3])};
        ConvStackProblem p = of_image(sizes);
        p.image = dtype(in[0]), p.dtype = dtype(in[1]), p.images = x.d[0];
        const auto elements = [&](int i) { return volume(in[i].dims, 0, in[i].dims.nbDims); };
        expect(elements(1) == conv_stack_weights(p), "input weights must have those of all layers and of the words");
        expect(elements(2) == int64_t{conv_stack_side(p, p.layers - 1, 0)} * conv_stack_side(p, p.layers - 1, 1) * p.columns[p.layers - 1], "input offset must be [h*w, D]");
        if (words()) expect(elements(3) == int64_t{p.words_h} * p.words_w * p.word_columns, "input word_offset must be [ph*pw, E]");
        return p;
    }

    ConvStackProblem sized_;  // what the attributes say
};

// A barrier of the chains' kernel. Copies have one of their own, so that no two launches share it: TensorRT clones a plugin for each execution context.
class ChainSlot {
public:
    ChainSlot() = default;
    ChainSlot(const ChainSlot&) {}
    ChainSlot& operator=(const ChainSlot&) = delete;
    ~ChainSlot() {
        if (slot_ >= 0) give_back_chain_slot(slot_);
    }
    int32_t get() const { return slot_; }

private:
    int32_t slot_ = chain_slot();
};

class BlockChain final : public Op {
public:
    explicit BlockChain(Attributes given) : Op(std::move(given)) {
        epsilon_ = epsilon(attributes_);
        heads_ = attributes_.integer("num_heads"), dim_ = attributes_.integer("head_dim"), hidden_ = attributes_.integer("hidden");
        expect(heads_ > 0, "attribute 'num_heads' must be positive");
        scale_ = attributes_.real("scale"), mask_value_ = attributes_.real("mask_value");
        expect(std::isfinite(scale_), "attribute 'scale' must be finite");
        expect(std::isfinite(mask_value_), "attribute 'mask_value' must be finite");
        tanh_ = tanh_gelu(attributes_);
        bias_ = flag(attributes_, "bias"), between_ = flag(attributes_, "between");
        window_ = window_grid(attributes_, true, true);
        expect(dim_ == 32 || (dim_ == 64 && !window_.used()), "attribute 'head_dim' must be 32, or without windows 32 or 64");
        expect(int64_t{heads_} * dim_ <= kChainMaxChannels, "attributes 'num_heads' and 'head_dim' must be at most 1024 together");
        expect(hidden_ > 0 && hidden_ <= kChainMaxHidden && hidden_ % 16 == 0, "attribute 'hidden' must be a multiple of 16 up to 4096");
        expect(!window_.used() || window_.window_tokens() <= kChainMaxWindow, "attribute 'window' must have at most 64 tokens");
        const auto& shifted = attributes_.integers("shifted");
        static_assert(kChainMaxPairs == 32, "attribute 'shifted' has 32 values");
        while (pairs_ < kChainMaxPairs && shifted[pairs_] >= 0) ++pairs_;
        expect(pairs_ > 0, "attribute 'shifted' must have a value for each pair of blocks");
        for (int32_t i = 0; i < kChainMaxPairs; ++i) {
            expect(shifted[i] <= 1 && (i < pairs_ || shifted[i] == -1), "attribute 'shifted' must be 0 or 1 for each pair of blocks, and then -1");
            if (shifted[i] == 1) shifted_ |= uint32_t{1} << i;
        }
        expect(shifted_ == 0 || window_.used(), "attribute 'shifted' must be 0 where there are no windows");
        expect(!between_ || (pairs_ > 1 && !window_.used()), "attribute 'between' must be 0 in windows and for one pair of blocks");
        merged_ = attributes_.integer("merged");
        expect(merged_ == 0 || (window_.used() && merged_ > 0 && merged_ <= kChainMaxChannels), "attribute 'merged' must be 0, or in windows at most 1024");
        if (merged_ > 0) {
            before_ = merge_grid(attributes_, "merged_grid", quads_.order);
            quads_.grid_h = before_.grid_h, quads_.grid_w = before_.grid_w;
            expect((before_.grid_h + 1) / 2 == window_.grid_h && (before_.grid_w + 1) / 2 == window_.grid_w, "attribute 'merged_grid' must be twice 'grid', or one less");
        } else {
            before_ = window_;
        }
    }
    std::unique_ptr<Op> clone() const override { return std::make_unique<BlockChain>(*this); }
    int32_t inputs() const override { return 3 + (between_ ? 1 : 0); }
    int32_t outputs() const override { return 1; }
    void shapes(const DimsExprs* in, DimsExprs* out, IExprBuilder& build) const override {
        if (window_.used()) check_tokens(attributes_, in[0], before_);
        else expect(in[0].nbDims == 3, "input x must be [B, N, C]");
        expect(in[1].nbDims == 1 && in[2].nbDims == 1, "inputs weights and vectors must have one axis");
        expect(!between_ || in[3].nbDims == 4, "input between must be [L-1, B, N, C]");
        out[0] = in[0];
        if (merged_ == 0) return;
        const bool map = out[0].nbDims == 4;
        out[0].d[1] = build.constant(map ? window_.grid_h : window_.grid_h * window_.grid_w);
        if (map) out[0].d[2] = build.constant(window_.grid_w);
        out[0].d[out[0].nbDims - 1] = build.constant(merged_);
    }
    cudaError_t run(const PluginTensorDesc* in_desc, const PluginTensorDesc*, const void* const* in, void* const* out, void* workspace, int32_t tactic,
                    cudaStream_t stream) const override {
        BlockChainProblem p = sized_problem(in_desc);
        p.x = in[0], p.weights = in[1], p.vectors = in[2], p.between = between_ ? in[3] : nullptr;
        p.y = out[0];
        p.workspace = workspace;
        return block_chain(p, stream, tactic, slot_.get());
    }
    std::vector<int32_t> tactics(const PluginTensorDesc* in_desc) const override { return block_chain_tactics(sized_problem(in_desc)); }
    size_t workspace(const PluginTensorDesc* in_desc) const override {
        BlockChainProblem p = problem(in_desc);
        p.images = in_desc[0].dims.d[0];
        expect(p.images >= 0, "the workspace has a part for each image, and how many there are is not known");
        return static_cast<size_t>(block_chain_workspace(p));
    }

private:
    // Everything but the pointers.
    BlockChainProblem sized_problem(const PluginTensorDesc* in) const {
        BlockChainProblem p = problem(in);
        p.images = window_.used() ? images_of(attributes_, in[0].dims, before_) : in[0].dims.d[0];
        return p;
    }
    // Everything but the images and the pointers.
    BlockChainProblem problem(const PluginTensorDesc* in) const {
        const Dims& x = in[0].dims;
        if (window_.used()) expect(x.nbDims == 3 || x.nbDims == 4, "input x must be [B, H*W, C] or [B, H, W, C]");
        else expect(x.nbDims == 3 && x.d[1] >= 1 && x.d[1] <= kChainMaxTokens, "input x must be [B, N, C] with N from 1 to 256");
        const int64_t before = x.d[x.nbDims - 1], channels = merged_ > 0 ? merged_ : before;
        expect(channels >= 1 && channels <= kChainMaxChannels && channels % 16 == 0, "the channels must be a multiple of 16 up to 1024");
        BlockChainProblem p;
        if (merged_ > 0) {
            expect(before >= 1 && before <= kMlpMaxHidden / 4 && before % 16 == 0, "the channels before the merge must be a multiple of 16 up to 4096");
            p.quads = quads_, p.quads.channels = static_cast<int32_t>(before);
        }
        p.dtype = dtype(in[0]);
        p.tokens = static_cast<int32_t>(window_.used() ? int64_t{window_.grid_h} * window_.grid_w : int64_t{x.d[1]});
        p.channels = static_cast<int32_t>(channels), p.heads = heads_, p.dim = dim_, p.hidden = hidden_, p.pairs = pairs_;
        p.epsilon = epsilon_, p.scale = scale_, p.mask_value = mask_value_;
        p.tanh_gelu = tanh_, p.bias = bias_;
        p.window = window_, p.shifted = shifted_;
        const auto elements = [&](int i, int64_t count) { return in[i].dims.nbDims == 1 && in[i].dims.d[0] == count; };
        expect(elements(1, chain_weights(p)) && elements(2, chain_vectors(p)), "inputs weights and vectors must have the elements of all pairs, and of a patch merge ahead");
        if (between_) {
            const Dims& between = in[3].dims;
            expect(between.nbDims == 4 && between.d[0] == pairs_ - 1 && between.d[1] == x.d[0] && between.d[2] == x.d[1] && between.d[3] == x.d[2], "input between must have the shape of x for each pair but the last");
        }
        return p;
    }

    float epsilon_, scale_, mask_value_;
    int32_t heads_, dim_, hidden_, merged_, pairs_ = 0;
    bool tanh_, bias_, between_;
    WindowGrid window_, before_;  // before_: the map of x
    BlockChainProblem::Quads quads_;
    uint32_t shifted_ = 0;
    ChainSlot slot_;
};

template <class T> std::unique_ptr<Op> make(Attributes attributes) { return std::make_unique<T>(std::move(attributes)); }

}  // namespace

bool Op::supports(int32_t pos, const PluginTensorDesc* tensors) const {
    return linear_float(tensors[pos]) && tensors[pos].type == tensors[0].type;
}

const std::vector<OpDef>& op_definitions() {
    constexpr auto kInt = FieldKind::kInt, kInts = FieldKind::kInts, kFloat = FieldKind::kFloat, kText = FieldKind::kText;
    static const std::vector<OpDef> ops = {
        {"TrtOptLayerNorm",
         {{"epsilon", kFloat, 1}, {"axis", kInt, 1}, {"residual", kInt, 1}, {"part_begin", kInt, 1}, {"reverse", kInt, 1}, {"grid", kInts, 2}, {"window", kInts, 2}, {"shift", kInts, 2}, {"pad_after_roll", kInt, 1}},
         make<LayerNorm>},
        {"TrtOptAttention",
         {{"num_heads", kInt, 1}, {"scale", kFloat, 1}, {"layout", kText, 1}, {"bias", kInt, 1}, {"mask", kInt, 1}, {"mask_value", kFloat, 1}, {"grid", kInts, 2}, {"window", kInts, 2}, {"shift", kInts, 2}},
         make<Attention>},
        {"TrtOptWindow",
         {{"reverse", kInt, 1}, {"rank", kInt, 1}, {"residual", kInt, 1}, {"grid", kInts, 2}, {"window", kInts, 2}, {"shift", kInts, 2}, {"pad_after_roll", kInt, 1}},
         make<Window>},
        {"TrtOptPatchMerge", {{"epsilon", kFloat, 1}, {"residual", kInt, 1}, {"grid", kInts, 2}, {"order", kInts, 4}, {"rank", kInt, 1}}, make<PatchMerge>},
        {"TrtOptMlpBlock", {{"epsilon", kFloat, 1}, {"residual", kInt, 1}, {"norm", kInt, 1}, {"approximate", kText, 1}}, make<MlpBlock>},
        {"TrtOptSwinAttnBlock",
         {{"epsilon", kFloat, 1}, {"residual", kInt, 1}, {"num_heads", kInt, 1}, {"scale", kFloat, 1}, {"bias", kInt, 1}, {"mask", kInt, 1}, {"mask_value", kFloat, 1}, {"grid", kInts, 2}, {"window", kInts, 2}, {"shift", kInts, 2}, {"pad_after_roll", kInt, 1}},
         make<AttnBlock<true>>},
        {"TrtOptAttnBlock", {{"epsilon", kFloat, 1}, {"residual", kInt, 1}, {"num_heads", kInt, 1}, {"scale", kFloat, 1}, {"bias", kInt, 1}}, make<AttnBlock<false>>},
        {"TrtOptPooledAttnBlock",
         {{"epsilon", kFloat, 1}, {"pool_epsilon", kFloat, 1}, {"residual", kInt, 1}, {"grid", kInts, 2}, {"pool", kInts, 2}, {"num_heads", kInt, 1}, {"scale", kFloat, 1}, {"bias", kInt, 1}},
         make<PooledAttnBlock>},
        {"TrtOptTntInnerBlock", {{"epsilon1", kFloat, 1}, {"epsilon2", kFloat, 1}, {"whole", kInt, 1}, {"num_heads", kInt, 1}, {"scale", kFloat, 1}, {"approximate", kText, 1}}, make<TntInnerBlock>},
        {"TrtOptTntBridge", {{"epsilon1", kFloat, 1}, {"epsilon2", kFloat, 1}, {"residual", kInt, 1}, {"begin", kInt, 1}}, make<TntBridge>},
        {"TrtOptNormPool", {{"epsilon", kFloat, 1}, {"residual", kInt, 1}}, make<NormPool>},
        {"TrtOptPatchMergeBlock", {{"epsilon", kFloat, 1}, {"residual", kInt, 1}, {"grid", kInts, 2}, {"order", kInts, 4}, {"rank", kInt, 1}}, make<PatchMergeBlock>},
        {"TrtOptPatchEmbed", {{"epsilon", kFloat, 1}, {"bias", kInt, 1}, {"norm", kInt, 1}, {"rank", kInt, 1}, {"grid", kInts, 2}}, make<PatchEmbed>},
        {"TrtOptPixelEmbed", {{"kernel", kInts, 2}, {"strides", kInts, 2}, {"pads", kInts, 2}, {"grid", kInts, 2}, {"patch", kInts, 2}, {"within", kInt, 1}}, make<PixelEmbed>},
        {"TrtOptTntWords",
         {{"epsilon1", kFloat, 1}, {"epsilon2", kFloat, 1}, {"whole", kInt, 1}, {"num_heads", kInt, 1}, {"scale", kFloat, 1}, {"approximate", kText, 1}, {"layers", kInt, 1}, {"hidden", kInt, 1}, {"width", kInt, 1}, {"channels", kInt, 1}, {"bridge_epsilon1", kFloat, 1}, {"bridge_epsilon2", kFloat, 1}, {"tokens", kInt, 1}, {"begin", kInt, 1}, {"covered", kInt, 1}, {"after", kInts, 32}, {"words", kInt, 1}, {"stacked", kInt, 1}},
         make<TntWords>},
        {"TrtOptGelu", {{"bias", kInt, 1}, {"approximate", kText, 1}}, make<Gelu>},
        {"TrtOptDepthwiseConv", {{"grid", kInts, 2}, {"kernel", kInt, 1}, {"bias", kInt, 1}, {"residual", kInt, 1}}, make<DepthwiseConv>},
        {"TrtOptConvBlock", {{"grid", kInts, 2}, {"kernel", kInt, 1}}, make<ConvBlock>},
        {"TrtOptConvLayer", {{"grid", kInts, 2}, {"kernel", kInt, 1}, {"approximate", kText, 1}}, make<ConvLayer>},
        {"TrtOptClassifier", {{"epsilon", kFloat, 1}, {"norm", kInt, 1}, {"residual", kInt, 1}, {"token", kInt, 1}}, make<Classifier>},
        {"TrtOptPatchConv", {{"epsilon", kFloat, 1}, {"norm", kInt, 1}, {"grid", kInts, 2}, {"kernel", kInts, 2}, {"strides", kInts, 2}, {"pads", kInts, 4}, {"cell", kInts, 2}, {"across", kInt, 1}}, make<PatchConv>},
        {"TrtOptConvStack", {{"channels", kInts, kStackMaxLayers}, {"strides", kInts, kStackMaxLayers}, {"word_layer", kInt, 1}, {"word_channels", kInt, 1}, {"patch", kInts, 2}}, make<ConvStack>},
        {"TrtOptBlockChain",
         {{"epsilon", kFloat, 1}, {"num_heads", kInt, 1}, {"head_dim", kInt, 1}, {"hidden", kInt, 1}, {"scale", kFloat, 1}, {"approximate", kText, 1}, {"bias", kInt, 1}, {"mask_value", kFloat, 1}, {"grid", kInts, 2}, {"window", kInts, 2}, {"shift", kInts, 2}, {"pad_after_roll", kInt, 1}, {"shifted", kInts, 32}, {"between", kInt, 1}, {"merged", kInt, 1}, {"merged_grid", kInts, 2}, {"order", kInts, 4}},
         make<BlockChain>},
    };
    return ops;
}

std::unique_ptr<Op> make_op(const OpDef& def, const nvinfer1::PluginFieldCollection* fields, bool serialized) {
    Attributes attributes(def.name, def.fields);
    attributes.parse(fields, serialized);
    return def.make(std::move(attributes));
}
std::unique_ptr<Op> make_op(const OpDef& def, const void* data, size_t size) {
    Attributes attributes(def.name, def.fields);
    attributes.parse_bytes(data, size);
    return def.make(std::move(attributes));
}

}  // namespace trt_opt
