// The kernels behind plain C functions, for the Python benchmark.
#include <cmath>

#include "kernels.h"
#include "wide_gemm.h"

using namespace trt_opt;

extern "C" {

// window: grid_h, grid_w, window_h, window_w, shift_h, shift_w, pad_after_roll; or null. Returns the CUDA error.
static WindowGrid grid(const int32_t* w) {
    WindowGrid g;
    if (w) g = {w[0], w[1], w[2], w[3], w[4], w[5], w[6]};
    return g;
}

int trt_opt_layer_norm(int dtype, int64_t rows, int64_t row, float epsilon, const void* x, const void* residual, const void* scale, const void* bias, void* y, void* sum,
                       const int32_t* window, int reverse, const void* part, int64_t tokens, int64_t part_begin, int64_t part_tokens, void* stream) {
    LayerNormProblem p;
    p.dtype = static_cast<DType>(dtype), p.rows = rows, p.row = row, p.epsilon = epsilon;
    p.x = x, p.residual = residual, p.scale = scale, p.bias = bias, p.y = y, p.sum = sum, p.window = grid(window), p.reverse = reverse != 0;
    p.part = part, p.tokens = tokens, p.part_begin = part_begin, p.part_tokens = part_tokens;
    return layer_norm(p, static_cast<cudaStream_t>(stream));
}

int trt_opt_window(int dtype, int64_t images, int64_t channels, int reverse, const void* x, const void* residual, void* y, const int32_t* window_, void* stream) {
    WindowProblem p;
    p.dtype = static_cast<DType>(dtype), p.images = images, p.channels = channels, p.reverse = reverse != 0;
    p.x = x, p.residual = residual, p.y = y, p.window = grid(window_);
    return window(p, static_cast<cudaStream_t>(stream));
}

int trt_opt_patch_merge(int dtype, int64_t images, int64_t channels, int h, int w, float epsilon, const void* x, const void* scale, const void* bias, void* y, void* stream) {
    PatchMergeProblem p;
    p.dtype = static_cast<DType>(dtype), p.images = images, p.channels = channels, p.grid_h = h, p.grid_w = w, p.epsilon = epsilon;
    p.x = x, p.scale = scale, p.bias = bias, p.y = y;
    return patch_merge(p, static_cast<cudaStream_t>(stream));
}

int trt_opt_norm_pool(int dtype, int64_t images, int64_t tokens, int64_t row, float epsilon, const void* x, const void* residual, const void* scale, const void* bias, void* y, void* stream) {
    NormPoolProblem p;
    p.dtype = static_cast<DType>(dtype), p.images = images, p.tokens = tokens, p.row = row, p.epsilon = epsilon;
    p.x = x, p.residual = residual, p.scale = scale, p.bias = bias, p.y = y;
    return norm_pool(p, static_cast<cudaStream_t>(stream));
}

int trt_opt_gelu(int dtype, int64_t rows, int64_t row, int tanh, const void* x, const void* bias, void* y, void* stream) {
    GeluProblem p;
    p.dtype = static_cast<DType>(dtype), p.rows = rows, p.row = row, p.tanh = tanh != 0;
    p.x = x, p.bias = bias, p.y = y;
    return gelu(p, static_cast<cudaStream_t>(stream));
}

static PatchMergeBlockProblem patch_merge_block_problem(int dtype, int64_t images, int channels, int h, int w, int columns) {
    PatchMergeBlockProblem p;
    p.merge.dtype = static_cast<DType>(dtype), p.merge.images = images, p.merge.channels = channels, p.merge.grid_h = h, p.merge.grid_w = w, p.columns = columns;
    return p;
}

// Returns -1 if `workspace_bytes` are too few or `tactic` does not fit.
int trt_opt_patch_merge_block(int dtype, int64_t images, int channels, int h, int w, int columns, float epsilon, const void* x, const void* scale, const void* bias, const void* weight, const void* b,
                              void* y, void* workspace, int64_t workspace_bytes, int tactic, void* stream) {
    PatchMergeBlockProblem p = patch_merge_block_problem(dtype, images, channels, h, w, columns);
    p.merge.epsilon = epsilon, p.merge.x = x, p.merge.scale = scale, p.merge.bias = bias, p.w = weight, p.b = b, p.y = y, p.workspace = workspace;
    if (patch_merge_block_workspace(p) > workspace_bytes || (tactic != 0 && !patch_merge_block_tactic_valid(p, tactic))) return -1;
    return patch_merge_block(p, static_cast<cudaStream_t>(stream), tactic);
}
// Up to `most` tactics; returns how many there are.
int trt_opt_patch_merge_block_tactics(int dtype, int64_t images, int channels, int h, int w, int columns, int32_t* tactics, int most) {
    const std::vector<int32_t> found = patch_merge_block_tactics(patch_merge_block_problem(dtype, images, channels, h, w, columns));
    for (int i = 0; i < most && i < static_cast<int>(found.size()); ++i) tactics[i] = found[i];
    return static_cast<int>(found.size());
}

// q, k, v: packed [batch, tokens, 3, heads, dim].
int trt_opt_attention_qkv(int dtype, int64_t batch, int heads, int tokens, int dim, float scale, const void* qkv, void* out, int bias_kind, const void* bias,
                          int64_t bias_period, int mask_kind, const void* mask, int64_t mask_period, float mask_value, const int32_t* window, int tactic, void* stream) {
    AttentionProblem p;
    p.dtype = static_cast<DType>(dtype), p.batch = batch, p.heads = heads, p.queries = p.keys = tokens, p.dim = p.value_dim = dim, p.scale = scale;
    const int32_t row = 3 * heads * dim;
    const int64_t element = dtype == static_cast<int>(DType::kHalf) ? 2 : 4;
    auto at = [&](int i) { return HeadView{static_cast<const char*>(qkv) + i * heads * dim * element, int64_t{tokens} * row, row, dim}; };
    p.q = at(0), p.k = at(1), p.v = at(2), p.out = out;
    p.bias_kind = static_cast<AttentionBias>(bias_kind), p.bias = bias, p.bias_period = bias_period, p.bias_heads = heads;
    p.mask_kind = static_cast<AttentionMask>(mask_kind), p.mask = mask, p.mask_period = mask_period, p.mask_value = mask_value, p.window = grid(window);
    if (tactic != kAuto && !attention_tactic_valid(p, tactic)) return -1;
    return attention(p, static_cast<cudaStream_t>(stream), tactic);
}

// Without a norm where `scale` is null.
int trt_opt_mlp_block(int dtype, int64_t rows, int channels, int hidden, float epsilon, int tanh_gelu, const void* x, const void* residual, const void* scale, const void* bias, const void* w1,
                      const void* b1, const void* w2, const void* b2, void* y, void* workspace, int tactic, void* stream) {
    MlpBlockProblem p;
    p.dtype = static_cast<DType>(dtype), p.rows = rows, p.channels = channels, p.hidden = hidden, p.epsilon = epsilon, p.tanh_gelu = tanh_gelu != 0, p.norm = scale != nullptr;
    p.x = x, p.residual = residual, p.scale = scale, p.bias = bias, p.w1 = w1, p.b1 = b1, p.w2 = w2, p.b2 = b2, p.y = y;
    if (tactic != 0 && !mlp_block_tactic_valid(p, tactic)) return -1;
    return mlp_block(p, workspace, static_cast<cudaStream_t>(stream), tactic);
}
// Up to `most` tactics; returns how many there are.
int trt_opt_mlp_block_tactics(int dtype, int64_t rows, int channels, int hidden, int norm, int32_t* tactics, int most) {
    MlpBlockProblem p;
    p.dtype = static_cast<DType>(dtype), p.rows = rows, p.channels = channels, p.hidden = hidden, p.norm = norm != 0;
    const std::vector<int32_t> found = mlp_block_tactics(p);
    for (int i = 0; i < most && i < static_cast<int>(found.size()); ++i) tactics[i] = found[i];
    return static_cast<int>(found.size());
}
int trt_opt_mlp_block_tactic_valid(int dtype, int64_t rows, int channels, int hidden, int norm, int tactic) {
    MlpBlockProblem p;
    p.dtype = static_cast<DType>(dtype), p.rows = rows, p.channels = channels, p.hidden = hidden, p.norm = norm != 0;
    return mlp_block_tactic_valid(p, tactic);
}

// out = gelu(a b + bias), or a b + bias + added if that is not null. Returns -1 if the tile does not fit, or the build has none.
int trt_opt_wide_gemm(int64_t rows, int k, int n, const void* a, const void* b, const void* bias, const void* added, void* out, int gelu, int tile, void* stream) {
    BlockGemmProblem p;
    p.rows = rows, p.k = k, p.n = n, p.a = a, p.b = b, p.bias = bias, p.added = added, p.out = out;
    p.activation = gelu ? Activation::kGelu : Activation::kNone;
    return wide_gemm_valid({tile}, p) ? wide_gemm(p, {tile}, static_cast<cudaStream_t>(stream)) : -1;
}

// Of a square map, cut into windows of pool x pool tokens; `vectors`: those of the op's input of this name; `bias`: [1, heads, side^2, (side/pool)^2]. Returns -1 if `workspace_bytes` are too few.
int trt_opt_pooled_attn_block(int64_t images, int side, int pool, int channels, int heads, const void* x, const void* residual, const void* w_q, const void* w_pool, const void* w_kv, const void* w_proj, const void* vectors,
                              const void* bias, void* y, void* workspace, int64_t workspace_bytes, void* stream) {
    PooledAttnBlockProblem p;
    p.images = images, p.grid_h = p.grid_w = side, p.pool_h = p.pool_w = pool, p.channels = channels;
    AttentionProblem& a = p.attention;
    a.heads = heads, a.dim = channels / heads, a.scale = 1.f / sqrtf(static_cast<float>(a.dim)), a.bias_kind = AttentionBias::kDense, a.bias = bias, a.bias_heads = heads;
    auto part = [&](int begin) { return static_cast<const unsigned char*>(vectors) + int64_t{begin} * channels * 2; };
    p.x = x, p.residual = residual, p.norm_scale = part(0), p.norm_bias = part(1), p.b_q = part(2), p.b_pool = part(3), p.pool_scale = part(4), p.pool_bias = part(5), p.b_kv = part(6), p.b_proj = part(8);
    p.w_q = w_q, p.w_pool = w_pool, p.w_kv = w_kv, p.w_proj = w_proj, p.y = y, p.workspace = workspace;
    return pooled_attn_block_workspace(p) > workspace_bytes ? -1 : pooled_attn_block(p, static_cast<cudaStream_t>(stream));
}

static AttnBlockProblem attn_block_problem(int dtype, int64_t images, int tokens, int channels, int heads, const void* table, const int32_t* window) {
    AttnBlockProblem p;
    p.dtype = static_cast<DType>(dtype), p.images = images, p.tokens = tokens, p.channels = channels;
    AttentionProblem& a = p.attention;
    a.heads = heads, a.dim = a.value_dim = channels / heads, a.scale = 1.f / sqrtf(static_cast<float>(a.dim)), a.window = grid(window);
    if (table) a.bias_kind = AttentionBias::kTable, a.bias = table, a.bias_heads = heads;
    if (a.window.shift_h > 0 || a.window.shift_w > 0) a.mask_kind = AttentionMask::kShift;
    return p;
}
// window: as above; or null, and then `tokens` of each image attend to each other. With windows a relative-position table, and
// the mask of the shift. Returns the CUDA error.
int trt_opt_attn_block(int dtype, int64_t images, int tokens, int channels, int heads, float epsilon, const void* x, const void* residual, const void* norm_scale, const void* norm_bias, const void* w_qkv,
                       const void* b_qkv, const void* w_proj, const void* b_proj, const void* table, const int32_t* window, void* y, void* workspace, int tactic, void* stream) {
    AttnBlockProblem p = attn_block_problem(dtype, images, tokens, channels, heads, table, window);
    p.epsilon = epsilon;
    p.x = x, p.residual = residual, p.norm_scale = norm_scale, p.norm_bias = norm_bias, p.w_qkv = w_qkv, p.b_qkv = b_qkv, p.w_proj = w_proj, p.b_proj = b_proj, p.y = y, p.workspace = workspace;
    return attn_block(p, static_cast<cudaStream_t>(stream), tactic);
}
// Up to `most` tactics; returns how many there are.
int trt_opt_attn_block_tactics(int dtype, int64_t images, int tokens, int channels, int heads, const int32_t* window, int32_t* tactics, int most) {
    const std::vector<int32_t> found = attn_block_tactics(attn_block_problem(dtype, images, tokens, channels, heads, nullptr, window));
    for (int i = 0; i < most && i < static_cast<int>(found.size()); ++i) tactics[i] = found[i];
    return static_cast<int>(found.size());
}

int trt_opt_tnt_inner_block(int dtype, int64_t patches, int tokens, int channels, int hidden, int heads, float epsilon, const void* x, const void* const* weights, void* y, void* workspace,
                            void* stream) {
    TntInnerBlockProblem p;
    p.dtype = static_cast<DType>(dtype), p.patches = patches, p.tokens = tokens, p.channels = channels, p.hidden = hidden, p.heads = heads;
    p.scale = 1.f / sqrtf(static_cast<float>(channels / heads)), p.epsilon1 = p.epsilon2 = epsilon;
    p.x = x, p.y = y, p.workspace = workspace;
    const void** const to[] = {&p.scale1, &p.bias1, &p.w_qkv, &p.b_qkv, &p.w_proj, &p.b_proj, &p.scale2, &p.bias2, &p.w1, &p.b1, &p.w2, &p.b2};
    for (const void** w : to) *w = *weights++;
    return tnt_inner_block(p, static_cast<cudaStream_t>(stream));
}

// To the last `covered` of each image's tokens. Returns -1 if `workspace_bytes` are too few.
int trt_opt_tnt_bridge(int dtype, int64_t images, int tokens, int covered, int width, int channels, float epsilon, const void* x, const void* words, const void* scale1, const void* bias1,
                       const void* w, const void* b, const void* scale2, const void* bias2, void* y, void* workspace, int64_t workspace_bytes, void* stream) {
    TntBridgeProblem p;
    p.dtype = static_cast<DType>(dtype), p.images = images, p.tokens = tokens, p.begin = tokens - covered, p.covered = covered, p.width = width, p.channels = channels;
    p.epsilon1 = p.epsilon2 = epsilon, p.x = x, p.words = words, p.scale1 = scale1, p.bias1 = bias1, p.w = w, p.b = b, p.scale2 = scale2, p.bias2 = bias2, p.y = y, p.workspace = workspace;
    if (tnt_bridge_workspace(p) > workspace_bytes) return -1;
    return tnt_bridge(p, static_cast<cudaStream_t>(stream));
}

// Bridges behind the layers `after`, to the last `covered` of each image's tokens. `weights`: those of tnt_inner_block, each of all layers, then those of tnt_bridge, each
// of all bridges. y null: nobody reads the last words. `way`: of tnt_words. Returns -1 if `workspace_bytes` are too few.
int trt_opt_tnt_words(int dtype, int64_t images, int tokens, int covered, int words, int word_channels, int hidden, int heads, int layers, int channels, int bridges, const int32_t* after, float epsilon,
                      const void* x, const void* const* weights, void* const* out, void* y, void* workspace, int64_t workspace_bytes, int way, void* stream) {
    TntWordsProblem p;
    TntInnerBlockProblem& i = p.inner;
    i.dtype = static_cast<DType>(dtype), i.patches = images * covered, i.tokens = words, i.channels = word_channels, i.hidden = hidden, i.heads = heads;
    i.scale = 1.f / sqrtf(static_cast<float>(word_channels / heads)), i.epsilon1 = i.epsilon2 = p.epsilon1 = p.epsilon2 = epsilon, i.x = x;
    p.layers = layers, p.bridges = bridges, p.images = images, p.tokens = tokens, p.begin = tokens - covered, p.covered = covered, p.width = words * word_channels, p.channels = channels;
    for (int j = 0; j < bridges && j < kWordsMaxBridges; ++j) p.after[j] = after[j], p.out[j] = out[j];
    p.y = y, p.workspace = workspace;
    const void** const to[] = {&i.scale1, &i.bias1, &i.w_qkv, &i.b_qkv, &i.w_proj, &i.b_proj, &i.scale2, &i.bias2, &i.w1, &i.b1, &i.w2, &i.b2, &p.scale1, &p.bias1, &p.w, &p.b, &p.scale2, &p.bias2};
    for (const void** w : to) *w = *weights++;
    if (tnt_words_workspace(p) > workspace_bytes) return -1;
    return tnt_words(p, static_cast<cudaStream_t>(stream), way);
}

// `image`: type of x. tokens: x and w have the channels innermost. scale and bias null: no norm.
int trt_opt_patch_embed(int image, int dtype, int64_t images, int channels, int height, int width, int patch_h, int patch_w, int columns, int tokens, float epsilon, const void* x, const void* w, const void* b,
                        const void* scale, const void* bias, void* y, void* stream) {
    PatchEmbedProblem p;
    p.image = static_cast<DType>(image), p.dtype = static_cast<DType>(dtype), p.images = images, p.channels = channels, p.height = height, p.width = width, p.patch_h = patch_h, p.patch_w = patch_w;
    p.columns = columns, p.epsilon = epsilon, p.x = x, p.w = w, p.b = b, p.scale = scale, p.bias = bias, p.y = y;
    if (tokens) p.of_tokens(height, width, channels, patch_h, patch_w);
    return patch_embed(p, static_cast<cudaStream_t>(stream));
}

// `sizes`: of the kernel, strides, pads, patches, and words of a patch, each down and across.
int trt_opt_pixel_embed(int image, int dtype, int64_t images, int channels, int height, int width, const int32_t* sizes, int within, int columns, const void* x, const void* w, const void* offset, void* y, void* stream) {
    PixelEmbedProblem p;
    p.image = static_cast<DType>(image), p.dtype = static_cast<DType>(dtype), p.images = images, p.channels = channels, p.height = height, p.width = width, p.within = within != 0, p.columns = columns;
    int32_t* const to[] = {&p.kernel_h, &p.kernel_w, &p.stride_h, &p.stride_w, &p.pad_h, &p.pad_w, &p.grid_h, &p.grid_w, &p.words_h, &p.words_w};
    for (int32_t* size : to) *size = *sizes++;
    p.x = x, p.w = w, p.offset = offset, p.y = y;
    return pixel_embed(p, static_cast<cudaStream_t>(stream));
}

static ConvStackProblem stack_problem(int image, int64_t images, int channels, int height, int width, int layers, const int32_t* columns, const int32_t* strides, int branch, const int32_t* words) {
    ConvStackProblem p;
    p.image = static_cast<DType>(image), p.images = images, p.channels = channels, p.height = height, p.width = width, p.layers = layers, p.branch = branch;
    for (int i = 0; i < layers; ++i) p.columns[i] = columns[i], p.strides[i] = strides[i];
    if (branch >= 0) p.word_columns = words[0], p.words_h = words[1], p.words_w = words[2];
    return p;
}
// In float16. `words`: columns, and words of a patch down and across. `places`: for each convolution [columns, channels, 3, 3] and then the offsets, where they are
// among the weights. Returns how many weights there are.
int64_t trt_opt_conv_stack_places(int image, int64_t images, int channels, int height, int width, int layers, const int32_t* columns, const int32_t* strides, int branch, const int32_t* words, int64_t* places) {
    const ConvStackProblem p = stack_problem(image, images, channels, height, width, layers, columns, strides, branch, words);
    for (int conv = 0; conv < layers + (branch >= 0 ? 1 : 0); ++conv) {
        const int from = conv == layers ? branch : conv - 1, depth = from < 0 ? channels : columns[from], count = conv == layers ? words[0] : columns[conv];
        for (int i = 0; i < count * depth * 9; ++i) *places++ = conv_stack_weight(p, conv, i / 9 / depth, i / 9 % depth, i / 3 % 3, i % 3);
        for (int i = 0; i < count; ++i) *places++ = conv_stack_bias(p, conv, i);
    }
    return conv_stack_weights(p);
}
// Returns -1 if `tactic` does not fit.
int trt_opt_conv_stack(int image, int64_t images, int channels, int height, int width, int layers, const int32_t* columns, const int32_t* strides, int branch, const int32_t* words, const void* x, const void* w,
                       const void* offset, const void* word_offset, void* y, void* word, int tactic, void* stream) {
    ConvStackProblem p = stack_problem(image, images, channels, height, width, layers, columns, strides, branch, words);
    p.x = x, p.w = w, p.offset = offset, p.word_offset = word_offset, p.y = y, p.words = word;
    if (tactic != 0 && !conv_stack_tactic_valid(p, tactic)) return -1;
    return conv_stack(p, static_cast<cudaStream_t>(stream), tactic);
}

int trt_opt_depthwise_conv(int dtype, int64_t images, int height, int width, int channels, int kernel, int residual, const void* x, const void* w, const void* b, void* y, void* stream) {
    DepthwiseConvProblem p;
    p.dtype = static_cast<DType>(dtype), p.images = images, p.height = height, p.width = width, p.channels = channels, p.kernel = kernel, p.residual = residual != 0;
    p.x = x, p.w = w, p.b = b, p.y = y;
    return depthwise_conv(p, static_cast<cudaStream_t>(stream));
}

// `float_out`: of b and y.
int trt_opt_classifier(int dtype, int float_out, int64_t images, int64_t tokens, int token, int row, int classes, int norm, float epsilon, const void* x, const void* residual, const void* w, const void* b,
                       void* y, void* stream) {
    ClassifierProblem p;
    p.dtype = static_cast<DType>(dtype), p.bias = p.out = float_out != 0 ? DType::kFloat : p.dtype;
    p.images = images, p.tokens = tokens, p.token = token, p.row = row, p.classes = classes, p.norm = norm != 0, p.epsilon = epsilon;
    p.x = x, p.residual = residual, p.w = w, p.b = b, p.y = y;
    return classifier(p, static_cast<cudaStream_t>(stream));
}

static ConvBlockProblem conv_block_problem(int dtype, int64_t images, int height, int width, int channels, int hidden, int kernel) {
    ConvBlockProblem p;
    p.dtype = static_cast<DType>(dtype), p.images = images, p.height = height, p.width = width, p.channels = channels, p.hidden = hidden, p.kernel = kernel;
    return p;
}
// Returns -1 if `workspace_bytes` are too few or `tactic` does not fit.
int trt_opt_conv_block(int dtype, int64_t images, int height, int width, int channels, int hidden, int kernel, const void* x, const void* w1, const void* b1, const void* w, const void* b, const void* w2,
                       const void* b2, void* y, void* workspace, int64_t workspace_bytes, int tactic, void* stream) {
    ConvBlockProblem p = conv_block_problem(dtype, images, height, width, channels, hidden, kernel);
    p.x = x, p.w1 = w1, p.b1 = b1, p.w = w, p.b = b, p.w2 = w2, p.b2 = b2, p.y = y, p.workspace = workspace;
    if (conv_block_workspace(p) > workspace_bytes || (tactic != 0 && !conv_block_tactic_valid(p, tactic))) return -1;
    return conv_block(p, static_cast<cudaStream_t>(stream), tactic);
}
// Up to `most` tactics; returns how many there are.
int trt_opt_conv_block_tactics(int dtype, int64_t images, int height, int width, int channels, int hidden, int kernel, int32_t* tactics, int most) {
    const std::vector<int32_t> found = conv_block_tactics(conv_block_problem(dtype, images, height, width, channels, hidden, kernel));
    for (int i = 0; i < most && i < static_cast<int>(found.size()); ++i) tactics[i] = found[i];
    return static_cast<int>(found.size());
}

// In float16, of square maps, with as many columns between the block's products as channels. `weights`: of the position encoding and its offset, then as those of trt_opt_conv_block and of trt_opt_mlp_block.
static ConvLayerProblem conv_layer_problem(int64_t images, int side, int channels, int hidden, int kernel) {
    ConvLayerProblem p;
    p.conv = conv_block_problem(static_cast<int>(DType::kHalf), images, side, side, channels, channels, kernel);
    p.mlp.hidden = hidden;
    return p;
}
// Returns -1 if `workspace_bytes` are too few or `tactic` does not fit.
int trt_opt_conv_layer(int64_t images, int side, int channels, int hidden, int kernel, const void* x, const void* const* weights, void* y, void* workspace, int64_t workspace_bytes, int tactic, void* stream) {
    ConvLayerProblem p = conv_layer_problem(images, side, channels, hidden, kernel);
    const void** const to[] = {&p.position_w, &p.position_b, &p.conv.w1, &p.conv.b1, &p.conv.w, &p.conv.b, &p.conv.w2, &p.conv.b2, &p.mlp.w1, &p.mlp.b1, &p.mlp.w2, &p.mlp.b2};
    for (const void** at : to) *at = *weights++;
    p.conv.x = x, p.y = y, p.workspace = workspace;
    if (conv_layer_workspace(p) > workspace_bytes || (tactic != 0 && !conv_layer_tactic_valid(p, tactic))) return -1;
    return conv_layer(p, static_cast<cudaStream_t>(stream), tactic);
}
int trt_opt_conv_layer_tactics(int64_t images, int side, int channels, int hidden, int kernel, int32_t* tactics, int most) {
    const std::vector<int32_t> found = conv_layer_tactics(conv_layer_problem(images, side, channels, hidden, kernel));
    for (int i = 0; i < most && i < static_cast<int>(found.size()); ++i) tactics[i] = found[i];
    return static_cast<int>(found.size());
}

// In float16, of square maps, kernels and cells.
static PatchConvProblem patch_conv_problem(int64_t images, int side, int channels, int columns, int kernel, int stride, int pad, int cell, int across) {
    PatchConvProblem p;
    p.images = images, p.height = p.width = side, p.channels = channels, p.columns = columns, p.across = across;
    for (int i = 0; i < 2; ++i) p.kernel[i] = kernel, p.strides[i] = stride, p.pads[i] = p.pads[i + 2] = pad, p.cell[i] = cell;
    return p;
}
// `scale`, `bias`: null without a norm. Returns -1 if `workspace_bytes` are too few or `tactic` does not fit.
int trt_opt_patch_conv(int64_t images, int side, int channels, int columns, int kernel, int stride, int pad, int cell, int across, float epsilon, const void* x, const void* w, const void* b, const void* scale,
                       const void* bias, void* y, void* workspace, int64_t workspace_bytes, int tactic, void* stream) {
    PatchConvProblem p = patch_conv_problem(images, side, channels, columns, kernel, stride, pad, cell, across);
    p.epsilon = epsilon, p.x = x, p.w = w, p.b = b, p.scale = scale, p.bias = bias, p.y = y, p.workspace = workspace;
    if (patch_conv_workspace(p) > workspace_bytes || (tactic != 0 && !patch_conv_tactic_valid(p, tactic))) return -1;
    return patch_conv(p, static_cast<cudaStream_t>(stream), tactic);
}
// Up to `most` tactics; returns how many there are.
int trt_opt_patch_conv_tactics(int64_t images, int side, int channels, int columns, int kernel, int stride, int pad, int cell, int across, int32_t* tactics, int most) {
    const std::vector<int32_t> found = patch_conv_tactics(patch_conv_problem(images, side, channels, columns, kernel, stride, pad, cell, across));
    for (int i = 0; i < most && i < static_cast<int>(found.size()); ++i) tactics[i] = found[i];
    return static_cast<int>(found.size());
}

// `before`: channels of twice the map, which a patch merge makes `channels` of ahead; 0: there is none.
static BlockChainProblem chain_problem(int64_t images, int tokens, int channels, int heads, int dim, int hidden, int pairs, int bias, const int32_t* window, int shifted, int before) {
    BlockChainProblem p;
    p.images = images, p.tokens = tokens, p.channels = channels, p.heads = heads, p.dim = dim, p.hidden = hidden, p.pairs = pairs, p.bias = bias != 0, p.window = grid(window);
    p.shifted = static_cast<uint32_t>(shifted), p.scale = 1.f / sqrtf(static_cast<float>(dim));
    if (before > 0) p.quads.channels = before, p.quads.grid_h = 2 * p.window.grid_h, p.quads.grid_w = 2 * p.window.grid_w;
    return p;
}
// In float16. sizes: elements of weights and vectors, bytes of workspace.
void trt_opt_block_chain_sizes(int64_t images, int tokens, int channels, int heads, int dim, int hidden, int pairs, int bias, const int32_t* window, int shifted, int before, int64_t* sizes) {
    const BlockChainProblem p = chain_problem(images, tokens, channels, heads, dim, hidden, pairs, bias, window, shifted, before);
    sizes[0] = chain_weights(p), sizes[1] = chain_vectors(p), sizes[2] = block_chain_workspace(p);
}
// between null: nothing is added between pairs.
int trt_opt_block_chain(int64_t images, int tokens, int channels, int heads, int dim, int hidden, int pairs, int bias, const int32_t* window, int shifted, int before, const void* x, const void* weights,
                        const void* vectors, const void* between, void* y, void* workspace, int tactic, int slot, void* stream) {
    BlockChainProblem p = chain_problem(images, tokens, channels, heads, dim, hidden, pairs, bias, window, shifted, before);
    p.x = x, p.weights = weights, p.vectors = vectors, p.between = between, p.y = y, p.workspace = workspace;
    return block_chain(p, static_cast<cudaStream_t>(stream), tactic, slot);
}
// Up to `most` tactics; returns how many there are.
int trt_opt_block_chain_tactics(int64_t images, int tokens, int channels, int heads, int dim, int hidden, int pairs, int bias, const int32_t* window, int shifted, int before, int32_t* tactics, int most) {
    const std::vector<int32_t> found = block_chain_tactics(chain_problem(images, tokens, channels, heads, dim, hidden, pairs, bias, window, shifted, before));
    for (int i = 0; i < most && i < static_cast<int>(found.size()); ++i) tactics[i] = found[i];
    return static_cast<int>(found.size());
}
int trt_opt_chain_slot() { return chain_slot(); }
}
