// Problems that the kernels solve, and the functions that launch them. No TensorRT here.
//
// Every function enqueues on `stream` and returns the first error of its launches. None allocates
// or synchronizes, so all are safe under CUDA graph capture. All pointers are device pointers of
// the problem's element type, aligned to one element at least; wider alignment makes them faster.
// Tensors are dense and row major. Element counts may exceed 2^31; the rows of one image, window
// or sequence may not.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace trt_opt {

enum class DType : int32_t { kFloat = 0, kHalf = 1 };

// A token grid cut into windows, both (vertical, horizontal) and in tokens, with a cyclic shift.
// `window_h == 0`: no windows. See docs/ops.md, "The window map".
struct WindowGrid {
    int32_t grid_h = 0, grid_w = 0;
    int32_t window_h = 0, window_w = 0;
    int32_t shift_h = 0, shift_w = 0;
    int32_t pad_after_roll = 0;

    bool used() const { return window_h > 0; }
    int64_t windows() const {
        return int64_t{(grid_h + window_h - 1) / window_h} * ((grid_w + window_w - 1) / window_w);
    }
    int64_t window_tokens() const { return int64_t{window_h} * window_w; }
};

// y = normalize(s) * scale + bias over rows of `row` elements; s = x + residual, written to `sum`, each add rounded.
// With a window grid the rows are tokens `[images, grid_h * grid_w, row]` and `y` is
// `[images * windows, window_h * window_w, row]`; `rows` then counts tokens (images * grid_h * grid_w).
// Without windows `part` may be added, too: to `part_tokens` of each image's `tokens` rows, from `part_begin` on.
struct LayerNormProblem {
    DType dtype = DType::kHalf;
    int64_t rows = 0;
    int64_t row = 0;                 // elements normalized together
    float epsilon = 1e-5f;
    const void* x = nullptr;         // [rows, row]
    const void* residual = nullptr;  // [rows, row], or null: no residual
    const void* scale = nullptr;     // [row]
    const void* bias = nullptr;      // [row]
    void* y = nullptr;               // [rows, row], or partitioned
    void* sum = nullptr;             // [rows, row]; written when residual or part is not null
    WindowGrid window;
    bool reverse = false;            // x is partitioned, and y is not; rows are those of y
    const void* part = nullptr;      // [rows / tokens, part_tokens, row], or null
    int64_t tokens = 0, part_begin = 0, part_tokens = 0;
};
cudaError_t layer_norm(const LayerNormProblem& problem, cudaStream_t stream);

// Window partition (reverse = false): x [images, grid_h * grid_w, channels] ->
// y [images * windows, window_h * window_w, channels]; or its reverse, plus `residual` if not null.
struct WindowProblem {
    DType dtype = DType::kHalf;
    int64_t images = 0;
    int64_t channels = 0;
    bool reverse = false;
    const void* x = nullptr;
    const void* residual = nullptr;  // shape of y; reverse only
    void* y = nullptr;
    WindowGrid window;
};
cudaError_t window(const WindowProblem& problem, cudaStream_t stream);

// 2 x 2 neighbourhoods of s = x + residual on the channel axis, then layer norm over the 4 * channels:
// x [images, grid_h * grid_w, channels] -> y [images, ceil(grid_h/2) * ceil(grid_w/2), 4 * channels].
struct PatchMergeProblem {
    DType dtype = DType::kHalf;
    int64_t images = 0;
    int64_t channels = 0;
    int32_t grid_h = 0, grid_w = 0;
    int32_t order[4] = {0, 2, 1, 3};  // quadrant (2*dy + dx) of each channel block
    float epsilon = 1e-5f;
    const void* x = nullptr;
    const void* residual = nullptr;  // as x, or null: no residual
    const void* scale = nullptr;  // [4 * channels]
    const void* bias = nullptr;   // [4 * channels]
    void* y = nullptr;
};
cudaError_t patch_merge(const PatchMergeProblem& problem, cudaStream_t stream);

// The mean over the tokens of each image of normalize(s) * scale + bias; s = x + residual, rounded.
struct NormPoolProblem {
    DType dtype = DType::kHalf;
    int64_t images = 0;
    int64_t tokens = 0;              // of an image, at least 1
    int64_t row = 0;                 // elements of a token
    float epsilon = 1e-5f;
    const void* x = nullptr;         // [images, tokens, row]
    const void* residual = nullptr;  // as x, or null: no residual
    const void* scale = nullptr;     // [row]
    const void* bias = nullptr;      // [row]
    void* y = nullptr;               // [images, row]
};
cudaError_t norm_pool(const NormPoolProblem& problem, cudaStream_t stream);

// y = w pool(s) + b of each image, where pool is the mean over its tokens, or one of them; s = x + residual, rounded, and normalized if `norm`. Sums are float,
// and nothing in between is rounded. w and b must be constants, as those of MlpBlockProblem.
struct ClassifierProblem {
    DType dtype = DType::kHalf;      // of x, residual and w
    DType bias = DType::kFloat;      // of b
    DType out = DType::kFloat;       // of y
    int64_t images = 0;
    int64_t tokens = 0;              // of an image, at least 1
    int32_t token = -1;              // the one that counts; -1: the mean over all
    int32_t row = 0;                 // elements of a token, up to kClassifierMaxRow
    int32_t classes = 0;             // up to kClassifierMaxClasses
    bool norm = true;
    float epsilon = 1e-5f;
    const void* x = nullptr;         // [images, tokens, row]
    const void* residual = nullptr;  // as x, or null: no residual
    const void* w = nullptr;         // [classes, row]
    const void* b = nullptr;         // [classes]
    void* y = nullptr;               // [images, classes]
};
constexpr int32_t kClassifierMaxRow = 8192, kClassifierMaxClasses = 1 << 20;
cudaError_t classifier(const ClassifierProblem& problem, cudaStream_t stream);

// y = gelu(x + bias) over rows of `row` elements.
struct GeluProblem {
    DType dtype = DType::kHalf;
    int64_t rows = 0;
    int64_t row = 0;             // up to 2^30
    bool tanh = false;           // the tanh form instead of erf
    const void* x = nullptr;     // [rows, row]
    const void* bias = nullptr;  // [row], or null: no bias
    void* y = nullptr;           // [rows, row]; may be x
};
cudaError_t gelu(const GeluProblem& problem, cudaStream_t stream);

// Where element (batch, token, head, i) of q, k or v is: base + batch*b + token*t + head*h + i, in elements.
struct HeadView {
    const void* base = nullptr;
    int64_t batch = 0;
    int32_t token = 0, head = 0;
};

enum class AttentionBias : int32_t { kNone = 0, kDense = 1, kTable = 2 };
enum class AttentionMask : int32_t { kNone = 0, kDense = 1, kShift = 2 };

// How attention is cut up; `kAuto` decides by the sizes. The others are what an autotuner may try.
// A tactic that does not fit the sizes falls back to one that does.
enum AttentionTactic : int32_t {
    kAuto = 0,
    kResident1 = 1,  // keys and values in registers; one warp a (batch row, head)
    kResident2 = 2,  // the same, query tiles shared by 2 warps
    kResident4 = 3,  // the same, by 4 warps
    kDirect = 4,     // as kResident4, bias read in place: one block a (batch row, head)
    kStream1 = 5,    // keys streamed; a warp goes over all keys
    kStream2 = 6,    // keys cut in 2 parts, merged in shared memory
    kStream4 = 7,    // keys cut in 4 parts
    kTacticCount = 8,
};

// out = softmax(Q K^T * scale + bias + mask) V for each head. A row whose scores are all -inf gives 0.
struct AttentionProblem {
    DType dtype = DType::kHalf;
    int64_t batch = 0;
    int32_t heads = 0;
    int32_t queries = 0, keys = 0;  // tokens: N and M
    int32_t dim = 0, value_dim = 0; // head sizes d and dv, 1 to 128
    float scale = 1.f;
    HeadView q, k, v;
    void* out = nullptr;            // [batch, queries, heads * value_dim]

    AttentionBias bias_kind = AttentionBias::kNone;
    const void* bias = nullptr;     // dense [bias_period, bias_heads, N, M]; table [(2wh-1)(2ww-1), heads]
    int64_t bias_period = 1;
    int32_t bias_heads = 1;         // heads or 1
    AttentionMask mask_kind = AttentionMask::kNone;
    const void* mask = nullptr;     // dense [mask_period, N, M]
    int64_t mask_period = 1;
    float mask_value = -100.f;      // shift mask
    WindowGrid window;              // window for the table, all of it for the shift mask
};
cudaError_t attention(const AttentionProblem& problem, cudaStream_t stream, int32_t tactic = kAuto);

// True if `tactic` fits the problem's sizes (pointers are not looked at).
bool attention_tactic_valid(const AttentionProblem& problem, int32_t tactic);

// y = s + gelu(normalize(s) * W1 + b1) * W2 + b2 over rows of `channels` elements, s = x + residual. Without a norm normalize(s) is s.
// All but x and residual must be constants: they may be read while the kernels before are still running.
struct MlpBlockProblem {
    DType dtype = DType::kHalf;
    int64_t rows = 0;
    int32_t channels = 0, hidden = 0;  // channels up to kMlpMaxChannels, hidden up to kMlpMaxHidden
    float epsilon = 1e-5f;
    bool tanh_gelu = false;            // the tanh form instead of erf
    bool norm = true;                  // else there are neither scale and bias nor a residual
    const void* x = nullptr;           // [rows, channels]
    const void* residual = nullptr;    // [rows, channels], or null: no residual
    const void* scale = nullptr;       // [channels]
    const void* bias = nullptr;        // [channels]
    const void* w1 = nullptr;          // [channels, hidden]
    const void* b1 = nullptr;          // [hidden]
    const void* w2 = nullptr;          // [hidden, channels]
    const void* b2 = nullptr;          // [channels]
    void* y = nullptr;                 // [rows, channels]; none of the inputs
};
constexpr int32_t kMlpMaxChannels = 2048, kMlpMaxHidden = 16384;

// `workspace`: mlp_block_workspace bytes, aligned to 16; nothing in it is kept from one call to the next. `tactic`: 0 or
// one of mlp_block_tactics; one that does not fit the problem or the device falls back to what 0 would choose.
cudaError_t mlp_block(const MlpBlockProblem& problem, void* workspace, cudaStream_t stream, int32_t tactic = 0);

// Enough for this problem and for all with fewer rows, under any tactic.
size_t mlp_block_workspace(const MlpBlockProblem& problem);

// Ways of cutting up the problem on the current device that are worth timing, best guess first. Pointers are not looked at.
std::vector<int32_t> mlp_block_tactics(const MlpBlockProblem& problem);

// True if the current device can run the problem's sizes under `tactic` (above 0).
bool mlp_block_tactic_valid(const MlpBlockProblem& problem, int32_t tactic);

// y = s + reverse(attention(partition(normalize(s)) * Wqkv + bqkv) * Wproj + bproj) over the tokens of `images` maps, where
// s = x + residual. Without windows nothing is partitioned, and all tokens of an image attend to each other. Padded tokens of windows are zeros behind the norm. The norm's and the products' weights must be constants, as
// those of MlpBlockProblem.
struct AttnBlockProblem {
    DType dtype = DType::kHalf;
    int64_t images = 0;
    int32_t channels = 0;              // up to kAttnMaxChannels, and so is heads * dim
    float epsilon = 1e-5f;
    int32_t tokens = 0;                // of an image, up to kAttnMaxTokens, where there are no windows
    // heads, dim, scale, bias and mask; `window` is the map, if there are windows. All else is the function's to fill in.
    AttentionProblem attention;
    const void* x = nullptr;           // [images, grid_h * grid_w or tokens, channels]
    const void* residual = nullptr;    // shape of x, or null: no residual
    const void* norm_scale = nullptr;  // [channels]
    const void* norm_bias = nullptr;   // [channels]
    const void* w_qkv = nullptr;       // [channels, 3 * heads * dim]
    const void* b_qkv = nullptr;       // [3 * heads * dim]
    const void* w_proj = nullptr;      // [heads * dim, channels]
    const void* b_proj = nullptr;      // [channels]
    void* y = nullptr;                 // shape of x; none of the inputs
    void* workspace = nullptr;         // attn_block_workspace bytes, aligned to 16; nothing in it is kept between calls

    // Of an image: its tokens, the groups of them that attend to each other, and the tokens of a group, padding included.
    int64_t image_tokens() const { return attention.window.used() ? int64_t{attention.window.grid_h} * attention.window.grid_w : tokens; }
    int64_t groups() const { return attention.window.used() ? attention.window.windows() : 1; }
    int64_t group_tokens() const { return attention.window.used() ? attention.window.window_tokens() : tokens; }
};
constexpr int32_t kAttnMaxChannels = 2048, kAttnMaxTokens = 1 << 16;

// `tactic`: 0 or one of attn_block_tactics; one that does not fit falls back to what 0 would choose.
cudaError_t attn_block(const AttnBlockProblem& problem, cudaStream_t stream, int32_t tactic = 0);

// Ways of cutting up the problem on the current device that are worth timing, best guess first. Pointers are not looked at.
std::vector<int32_t> attn_block_tactics(const AttnBlockProblem& problem);

// Enough for this problem and for all with fewer images; 0 if it is not valid. Pointers are not looked at.
int64_t attn_block_workspace(const AttnBlockProblem& problem);

// y = s + attention(q, kv) * Wproj + bproj over the tokens of `images` maps, where s = x + residual, n = normalize(s), q = n * Wq + bq and kv =
// normalize'(mean(n) * Wpool + bpool) * Wkv + bkv of the means of the windows of pool_h x pool_w tokens that the map is cut into. All but x, residual and the
// bias of the scores must be constants, as those of MlpBlockProblem.
struct PooledAttnBlockProblem {
    DType dtype = DType::kHalf;
    int64_t images = 0;
    int32_t grid_h = 0, grid_w = 0;    // the map; up to kAttnMaxTokens tokens
    int32_t pool_h = 1, pool_w = 1;    // divide it
    int32_t channels = 0;              // up to kAttnMaxChannels, and so is heads * dim
    float epsilon = 1e-5f, pool_epsilon = 1e-5f;
    AttentionProblem attention;        // heads, dim, scale and bias. All else is the function's to fill in.
    const void* x = nullptr;           // [images, grid_h * grid_w, channels]
    const void* residual = nullptr;    // shape of x, or null: no residual
    const void *norm_scale = nullptr, *norm_bias = nullptr;  // [channels]
    const void *w_q = nullptr, *b_q = nullptr;               // [channels, heads * dim], [heads * dim]
    const void *w_pool = nullptr, *b_pool = nullptr;         // [channels, channels], [channels]
    const void *pool_scale = nullptr, *pool_bias = nullptr;  // [channels]
    const void *w_kv = nullptr, *b_kv = nullptr;             // [channels, 2 * heads * dim], [2 * heads * dim]
    const void *w_proj = nullptr, *b_proj = nullptr;         // [heads * dim, channels], [channels]
    void* y = nullptr;                 // shape of x; none of the inputs
    void* workspace = nullptr;         // pooled_attn_block_workspace bytes, aligned to 16; nothing in it is kept between calls

    // Of an image.
    int64_t tokens() const { return int64_t{grid_h} * grid_w; }
    int64_t pooled() const { return int64_t{grid_h / pool_h} * (grid_w / pool_w); }
};
cudaError_t pooled_attn_block(const PooledAttnBlockProblem& problem, cudaStream_t stream);

// Enough for this problem and for all with fewer images; 0 if it is not valid. Pointers are not looked at.
int64_t pooled_attn_block_workspace(const PooledAttnBlockProblem& problem);

// y = s + gelu(norm2(s) * W1 + b1) * W2 + b2, s = x + attention(norm1(x) * Wqkv + bqkv) * Wproj + bproj, over the tokens of each
// patch. All but x must be constants, as those of MlpBlockProblem.
struct TntInnerBlockProblem {
    DType dtype = DType::kHalf;
    int64_t patches = 0;
    int32_t tokens = 0, channels = 0, hidden = 0;  // of a patch; up to kMlpMaxChannels and kMlpMaxHidden
    int32_t heads = 0;                             // which share the channels
    float scale = 1.f;                             // of the scores
    float epsilon1 = 1e-5f, epsilon2 = 1e-5f;
    bool whole = false;                            // the norms are over all tokens of a patch together
    bool tanh_gelu = false;
    const void* x = nullptr;                       // [patches, tokens, channels]
    const void *scale1 = nullptr, *bias1 = nullptr;  // [channels], or if whole [tokens, channels]
    const void *w_qkv = nullptr, *b_qkv = nullptr;   // [channels, 3 * channels], [3 * channels]
    const void *w_proj = nullptr, *b_proj = nullptr; // [channels, channels], [channels]
    const void *scale2 = nullptr, *bias2 = nullptr;  // as scale1
    const void *w1 = nullptr, *b1 = nullptr;         // [channels, hidden], [hidden]
    const void *w2 = nullptr, *b2 = nullptr;         // [hidden, channels], [channels]
    void* y = nullptr;                             // [patches, tokens, channels]; none of the inputs
    void* workspace = nullptr;                     // tnt_inner_block_workspace bytes, aligned to 16; nothing in it is kept
};
// What the one kernel takes, where the device has tensor cores for it; other sizes are put together of several.
constexpr int32_t kInnerMaxTokens = 16, kInnerMaxChannels = 64, kInnerMaxHidden = 256, kInnerMaxHead = 16;

cudaError_t tnt_inner_block(const TntInnerBlockProblem& problem, cudaStream_t stream);

// Enough for this problem and for all with fewer patches; 0 if it is not valid. Pointers are not
// looked at.
int64_t tnt_inner_block_workspace(const TntInnerBlockProblem& problem);

// y = s + normalize2(normalize1(words) * W + b) in `covered` tokens of each image from `begin` on, y = s in the others; s = x + residual.
// The norms' and the product's weights must be constants, as those of MlpBlockProblem.
struct TntBridgeProblem {
    DType dtype = DType::kHalf;
    int64_t images = 0;
    int32_t tokens = 0, begin = 0, covered = 0;     // begin + covered <= tokens, up to kAttnMaxTokens
    int32_t width = 0, channels = 0;                // of a row of words, up to kMlpMaxHidden; of a token, up to kMlpMaxChannels
    float epsilon1 = 1e-5f, epsilon2 = 1e-5f;
    const void* x = nullptr;                        // [images, tokens, channels]
    const void* residual = nullptr;                 // shape of x, or null: no residual
    const void* words = nullptr;                    // [images, covered, width]
    const void *scale1 = nullptr, *bias1 = nullptr; // [width]
    const void *w = nullptr, *b = nullptr;          // [width, channels], [channels]
    const void *scale2 = nullptr, *bias2 = nullptr; // [channels]
    void* y = nullptr;                              // shape of x; x itself, or none of the inputs
    void* workspace = nullptr;                      // tnt_bridge_workspace bytes, aligned to 16; nothing in it is kept
};
cudaError_t tnt_bridge(const TntBridgeProblem& problem, cudaStream_t stream);

// Enough for this problem and for all with fewer images; 0 if it is not valid. Pointers are not looked at.
int64_t tnt_bridge_workspace(const TntBridgeProblem& problem);

constexpr int32_t kWordsMaxLayers = 32, kWordsMaxBridges = 32;
// What the one kernel of all bridges takes, in fp16 on sm_90 and later, in multiples of 8; that of the blocks takes what theirs does (kInner...).
constexpr int32_t kWordsMaxWidth = 704, kWordsMaxChannels = 1024;
// The blocks of a chain over words, and the bridges that read them. words(0) = inner.x; words(i + 1) = tnt_inner_block of layer i over words(i).
// out[j] = normalize2(normalize1(words(after[j])) * W_j + b_j) in `covered` tokens of each image from `begin` on, 0 in the others.
struct TntWordsProblem {
    TntInnerBlockProblem inner;  // weights are those of all layers, one behind the other: [layers, ...]; y and workspace are the function's to fill in
    int32_t layers = 0;          // 1 to kWordsMaxLayers
    int32_t bridges = 0;         // 0 to kWordsMaxBridges
    int32_t after[kWordsMaxBridges] = {};           // 0 to layers, ascending
    int64_t images = 0;                             // inner.patches = images * covered * (width / (inner.tokens * inner.channels))
    int32_t tokens = 0, begin = 0, covered = 0, width = 0, channels = 0;   // as TntBridgeProblem
    float epsilon1 = 1e-5f, epsilon2 = 1e-5f;       // of the bridges
    const void *scale1 = nullptr, *bias1 = nullptr; // [bridges, width]
    const void *w = nullptr, *b = nullptr;          // [bridges, width, channels], [bridges, channels]
    const void *scale2 = nullptr, *bias2 = nullptr; // [bridges, channels]
    void* out[kWordsMaxBridges] = {};               // [images, tokens, channels] each
    void* y = nullptr;                              // words(layers), or null where nobody reads them
    void* workspace = nullptr;                      // tnt_words_workspace bytes, aligned to 16; nothing in it is kept
};
// All but inner.x must be constants, as those of MlpBlockProblem. `out` and `y` are none of the inputs, nor each other.
// `way`: 0, or how the bridges are done (tnt_words.cu); one that does not fit falls back to what always does.
cudaError_t tnt_words(const TntWordsProblem& problem, cudaStream_t stream, int32_t way = 0);
constexpr int32_t kWordsWays = 3;

// Enough for this problem and for all with fewer patches; 0 if it is not valid, or if none is needed. Pointers are not looked at.
int64_t tnt_words_workspace(const TntWordsProblem& problem);

// y = normalize(merged) * W + b, where the merged and normalized rows are those of a patch merge. The norm's and the product's weights
// must be constants, as those of MlpBlockProblem.
struct PatchMergeBlockProblem {
    PatchMergeProblem merge;    // up to kMlpMaxHidden / 4 channels and kMergeMaxTokens tokens of an image; its y is the function's to fill in
    int32_t columns = 0;        // up to kMlpMaxChannels
    const void* w = nullptr;    // [4 * merge.channels, columns]
    const void* b = nullptr;    // [columns]
    void* y = nullptr;          // [images, ceil(grid_h/2) * ceil(grid_w/2), columns]; none of the inputs
    void* workspace = nullptr;  // patch_merge_block_workspace bytes, aligned to 16; nothing in it is kept
};
constexpr int32_t kMergeMaxTokens = 1 << 29;

// `tactic`: 0 or one of patch_merge_block_tactics; one that does not fit falls back to what 0 would choose.
cudaError_t patch_merge_block(const PatchMergeBlockProblem& problem, cudaStream_t stream, int32_t tactic = 0);

// Ways of cutting up the problem on the current device that are worth timing, best guess first. Pointers are not looked at.
std::vector<int32_t> patch_merge_block_tactics(const PatchMergeBlockProblem& problem);

// True if the current device can run the problem's sizes under `tactic` (above 0).
bool patch_merge_block_tactic_valid(const PatchMergeBlockProblem& problem, int32_t tactic);

// Enough for this problem and for all with fewer images, under any tactic; 0 if it is not valid. Pointers are not looked at.
int64_t patch_merge_block_workspace(const PatchMergeBlockProblem& problem);
// y = normalize(W * patch + b) for each of the patches, patch_h x patch_w pixels of all channels, that `x` falls into; rows and columns of
// pixels that fill no patch are left out. Without `scale` nothing is normalized. All but x must be constants, as those of MlpBlockProblem.
struct PatchEmbedProblem {
    DType dtype = DType::kHalf;        // of all but x
    DType image = DType::kHalf;        // of x: kFloat, whose pixels are rounded to dtype, or dtype
    int64_t images = 0;
    int32_t channels = 0, height = 0, width = 0;  // of x
    int32_t patch_h = 0, patch_w = 0;             // channels * patch_h * patch_w up to kEmbedMaxPatch
    int32_t columns = 0;                          // up to kMlpMaxChannels
    float epsilon = 1e-5f;
    const void* x = nullptr;           // [images, channels, height, width]
    const void* w = nullptr;           // [columns, channels, patch_h, patch_w]
    const void* b = nullptr;           // [columns], or null: no offset
    const void *scale = nullptr, *bias = nullptr;  // [columns] both, or null: no norm
    void* y = nullptr;                 // [images, tokens(), columns]

    int32_t tokens() const { return height / patch_h * (width / patch_w); }
    int32_t patch() const { return channels * patch_h * patch_w; }
    // x are tokens [images, grid_h * grid_w, depth], w [columns, kernel_h, kernel_w, depth]: to the kernels an image of one channel with the elements of
    // tokens as pixels.
    void of_tokens(int32_t grid_h, int32_t grid_w, int32_t depth, int32_t kernel_h, int32_t kernel_w) {
        channels = 1, height = grid_h, width = grid_w * depth, patch_h = kernel_h, patch_w = kernel_w * depth;
    }
};
constexpr int32_t kEmbedMaxPatch = 16384;

cudaError_t patch_embed(const PatchEmbedProblem& problem, cudaStream_t stream);

// The words of an image's patches: word (i, j) of patch (a, b) is what a convolution gives at place (words_h a + i, words_w b + j), plus the word's offset. Pixels
// outside of the image are zeros, with `within` those outside of the patch, too, which has words_h * stride_h x words_w * stride_w pixels. Sums are fp32 and rounded
// once. All but x must be constants, as those of MlpBlockProblem.
struct PixelEmbedProblem {
    DType dtype = DType::kHalf;        // of all but x
    DType image = DType::kHalf;        // of x: kFloat, whose pixels are rounded to dtype, or dtype
    int64_t images = 0;
    int32_t channels = 0, height = 0, width = 0;  // of x
    int32_t kernel_h = 0, kernel_w = 0;           // channels * kernel_h up to kPixelMaxRows, kernel_w up to kPixelSlots
    int32_t stride_h = 1, stride_w = 1;
    int32_t pad_h = 0, pad_w = 0;                 // zeros above the image, or the patch, and left of it: less than the kernel
    int32_t grid_h = 0, grid_w = 0;               // patches
    int32_t words_h = 0, words_w = 0;             // of a patch, up to kPixelMaxWords
    int32_t columns = 0;                          // up to kPixelMaxColumns
    bool within = false;
    const void* x = nullptr;           // [images, channels, height, width]
    const void* w = nullptr;           // [columns, channels, kernel_h, kPixelSlots], zeros from kernel_w on
    const void* offset = nullptr;      // [words(), columns]
    void* y = nullptr;                 // [images * patches(), words(), columns]

    int32_t patches() const { return grid_h * grid_w; }
    int32_t words() const { return words_h * words_w; }
};
constexpr int32_t kPixelMaxRows = 128, kPixelSlots = 8, kPixelMaxWords = 256, kPixelMaxColumns = 128;

cudaError_t pixel_embed(const PixelEmbedProblem& problem, cudaStream_t stream);

// Convolutions of an image one behind another, each 3 x 3 with a row of zeros around what it is of, an offset a channel and ReLU. y are the places of the last
// as tokens, plus `offset`; with `branch` there is one more convolution, of stride 1, of what layer `branch` gives, whose places are the words of patches, plus
// `word_offset`. What a layer gives is rounded to dtype, sums are fp32. All but x must be constants, as those of MlpBlockProblem.
//
// The weights are those of the layers, then of the branch, each followed by its offsets: for 16 channels of output at a time, filled up with zeros, and 16 contracted
// elements (those of a place of the kernel, filled up with zeros to 16, 32 or 64; of the image a row of the kernel, four places of four channels each) what each of
// 32 lanes of the tensor cores holds. conv_stack_weight says where an element is.
constexpr int32_t kStackMaxPixels = 1 << 28, kStackMaxLayers = 5, kStackMaxInner = 64, kStackMaxColumns = 128, kStackMaxPatchWords = 256;
struct ConvStackProblem {
    DType dtype = DType::kHalf;        // of all but x
    DType image = DType::kHalf;        // of x: kFloat, whose pixels are rounded to dtype, or dtype
    int64_t images = 0;
    int32_t channels = 0, height = 0, width = 0;  // of x, up to 4 channels
    int32_t layers = 0;                           // 2 up to kStackMaxLayers
    int32_t columns[kStackMaxLayers] = {};        // up to kStackMaxInner, of the last up to kStackMaxColumns
    int32_t strides[kStackMaxLayers] = {};        // 1 or 2
    int32_t branch = -1;                          // of all layers but the last, or -1
    int32_t word_columns = 0;                     // up to kStackMaxInner
    int32_t words_h = 1, words_w = 1;             // of a patch
    const void* x = nullptr;            // [images, channels, height, width]
    const void* w = nullptr;            // conv_stack_weights
    const void* offset = nullptr;       // [places of the last layer, its columns]
    const void* word_offset = nullptr;  // [words_h * words_w, word_columns]
    void* y = nullptr;                  // as offset, of each image
    void* words = nullptr;              // [patches of all images, words_h * words_w, word_columns]
    void* workspace = nullptr;          // conv_stack_workspace bytes, aligned to 16; nothing in it is kept
};

// Rows or columns of what layer `layer` gives (-1: of x).
int32_t conv_stack_side(const ConvStackProblem& problem, int32_t layer, int axis);
// Elements of the weights and offsets of the layers before `layer`, up to layers + 1 where there is a branch: all.
int64_t conv_stack_begin(const ConvStackProblem& problem, int32_t layer);
int64_t conv_stack_weights(const ConvStackProblem& problem);
// Where in the weights is what leads to `column` from `channel` at place (dy, dx) of the kernel; layer `layers` is the branch.
int64_t conv_stack_weight(const ConvStackProblem& problem, int32_t layer, int32_t column, int32_t channel, int32_t dy, int32_t dx);
int64_t conv_stack_bias(const ConvStackProblem& problem, int32_t layer, int32_t column);
// With tensor cores there is none; without, what lies between layers of some of the images.
int64_t conv_stack_workspace(const ConvStackProblem& problem);
// `tactic`: 0, or blocks that share the copy of their weights: 1, 2 or 4; one that does not fit falls back to what 0 would choose.
cudaError_t conv_stack(const ConvStackProblem& problem, cudaStream_t stream, int32_t tactic = 0);
std::vector<int32_t> conv_stack_tactics(const ConvStackProblem& problem);
bool conv_stack_tactic_valid(const ConvStackProblem& problem, int32_t tactic);

// y = [x +] b + the convolution of each channel of a map of tokens by itself, with zeros around the map. Sums are fp32 and rounded once. The weights must be
// constants, as those of MlpBlockProblem.
struct DepthwiseConvProblem {
    DType dtype = DType::kHalf;
    int64_t images = 0;
    int32_t height = 0, width = 0, channels = 0;
    int32_t kernel = 3;       // height and width: 3, 5 or 7
    bool residual = false;
    const void* x = nullptr;  // [images, height * width, channels]
    const void* w = nullptr;  // [kernel * kernel, channels]
    const void* b = nullptr;  // [channels], or null: no offset
    void* y = nullptr;        // as x
};
cudaError_t depthwise_conv(const DepthwiseConvProblem& problem, cudaStream_t stream);

// y = x + W2 conv(W1 x + b1) + b2 over the tokens of `images` maps, where conv is a depthwise convolution with offset b, as DepthwiseConvProblem has it.
// What is between the three is rounded to dtype. All but x must be constants, as those of MlpBlockProblem.
struct ConvBlockProblem {
    DType dtype = DType::kHalf;
    int64_t images = 0;
    int32_t height = 0, width = 0;      // of a map, up to kConvMaxTokens together
    int32_t channels = 0, hidden = 0;   // outside of the products and between them, each up to kMlpMaxChannels
    int32_t kernel = 3;                 // height and width: 3, 5 or 7
    const void* x = nullptr;            // [images, height * width, channels]
    const void* w1 = nullptr;           // [channels, hidden]
    const void* b1 = nullptr;           // [hidden]
    const void* w = nullptr;            // [kernel * kernel, hidden]
    const void* b = nullptr;            // [hidden]
    const void* w2 = nullptr;           // [hidden, channels]
    const void* b2 = nullptr;           // [channels]
    void* y = nullptr;                  // as x; none of the inputs
    void* workspace = nullptr;          // conv_block_workspace bytes, aligned to 16; nothing in it is kept
};
constexpr int32_t kConvMaxTokens = 1 << 30;

// `tactic`: 0 or one of conv_block_tactics; one that does not fit falls back to what 0 would choose.
cudaError_t conv_block(const ConvBlockProblem& problem, cudaStream_t stream, int32_t tactic = 0);

// Ways of cutting up the problem on the current device that are worth timing, best guess first. Pointers are not looked at.
std::vector<int32_t> conv_block_tactics(const ConvBlockProblem& problem);

// True if the current device can run the problem's sizes under `tactic` (above 0).
bool conv_block_tactic_valid(const ConvBlockProblem& problem, int32_t tactic);

// Enough for this problem and for all with fewer images, under any tactic; 0 if it is not valid. Pointers are not looked at.
int64_t conv_block_workspace(const ConvBlockProblem& problem);

// A whole layer of convolution over tokens: the position encoding e = x + conv3(x), a depthwise convolution of kLayerPositionKernel x kLayerPositionKernel as DepthwiseConvProblem has it,
// the block of `conv` on that, and `mlp` without a norm on what it gives. Each of the three rounds what it gives to dtype. All but x must be constants, as those of MlpBlockProblem.
struct ConvLayerProblem {
    ConvBlockProblem conv;             // of the layer's x; its y and workspace are the function's to fill in
    const void* position_w = nullptr;  // [kLayerPositionKernel^2, channels]
    const void* position_b = nullptr;  // [channels]
    MlpBlockProblem mlp;               // hidden, tanh_gelu and its weights; the rest is the function's to fill in
    void* y = nullptr;                 // as conv.x, and not it
    void* workspace = nullptr;         // conv_layer_workspace bytes, aligned to 16; nothing in it is kept
};
constexpr int32_t kLayerPositionKernel = 3;

// `tactic`: 0 or one of conv_layer_tactics; one that does not fit falls back to what 0 would choose.
cudaError_t conv_layer(const ConvLayerProblem& problem, cudaStream_t stream, int32_t tactic = 0);

// Ways to go about it on the current device that are worth timing, best guess first: as one kernel, and as the three ops one by one. Pointers are not looked at.
std::vector<int32_t> conv_layer_tactics(const ConvLayerProblem& problem);

// True if the current device can run the problem's sizes under `tactic` (above 0).
bool conv_layer_tactic_valid(const ConvLayerProblem& problem, int32_t tactic);

// Enough for this problem and for all with fewer images, under any tactic; 0 if it is not valid. Pointers are not looked at.
int64_t conv_layer_workspace(const ConvLayerProblem& problem);

// y = W conv_rows(norm(x)) + b: a convolution over the tokens of `images` maps, which makes tokens, norm over the channels before it where there is a scale; outside of a map are
// zeros, behind the norm. What the norm gives is rounded to dtype. A map is height / cell[0] x width / cell[1] cells of cell[0] x cell[1] tokens each, and `across` maps lie side by side: the tokens lie as
// [images / across, height / cell[0], across, width / cell[1], cell[0], cell[1]]. All but x must be constants, as those of MlpBlockProblem.
struct PatchConvProblem {
    DType dtype = DType::kHalf;
    int64_t images = 0;                 // a multiple of `across`
    int32_t height = 0, width = 0;      // of a map, up to kConvMaxTokens together, and as many rows of the product of an image times places of the kernel
    int32_t channels = 0, columns = 0;  // up to kMlpMaxHidden times places of the kernel; up to kMlpMaxChannels
    int32_t kernel[2] = {3, 3}, strides[2] = {2, 2}, pads[4] = {1, 1, 1, 1};  // pads: top, left, bottom, right; less than the kernel
    int32_t cell[2] = {1, 1}, across = 1;
    float epsilon = 1e-5f;
    const void* x = nullptr;            // [images, height * width, channels], in the order above
    const void* w = nullptr;            // [kernel[0] * kernel[1] * channels, columns]
    const void* b = nullptr;            // [columns]
    const void *scale = nullptr, *bias = nullptr;  // [channels], or null: no norm
    void* y = nullptr;                  // [images, patch_conv_rows, columns]; none of the inputs
    void* workspace = nullptr;          // patch_conv_workspace bytes, aligned to 16; nothing in it is kept
};
// Height (0) or width (1) of the map that a valid problem makes, and tokens of it.
int64_t patch_conv_side(const PatchConvProblem& problem, int axis);
int64_t patch_conv_rows(const PatchConvProblem& problem);

// `tactic`: 0 or one of patch_conv_tactics; one that does not fit falls back to what 0 would choose.
cudaError_t patch_conv(const PatchConvProblem& problem, cudaStream_t stream, int32_t tactic = 0);

// Ways of cutting up the product on the current device that are worth timing, best guess first. Pointers are not looked at.
std::vector<int32_t> patch_conv_tactics(const PatchConvProblem& problem);

// True if the current device can run the problem's sizes under `tactic` (above 0).
bool patch_conv_tactic_valid(const PatchConvProblem& problem, int32_t tactic);

// Enough for this problem and for all with fewer images, under any tactic; 0 if it is not valid. Pointers are not looked at.
int64_t patch_conv_workspace(const PatchConvProblem& problem);

// Transformer blocks in sequence: `pairs` times an attention block and an MLP block. Weights are packed as docs/ops.md says; the norms are folded into them.
// All but x must be constants, as those of MlpBlockProblem.
struct BlockChainProblem {
    // A patch merge and its product ahead of the first pair (PatchMergeProblem has the fields' meaning). Its norm's scale is in its weights, what the norm's bias gives in its offset.
    struct Quads {
        int32_t channels = 0;          // before the merge, a multiple of 16 up to kMlpMaxHidden / 4; 0: there is none
        int32_t grid_h = 0, grid_w = 0;
        int32_t order[4] = {0, 2, 1, 3};
    };

    DType dtype = DType::kHalf;
    int64_t images = 0;
    int32_t tokens = 0;                // of an image
    int32_t channels = 0, heads = 0, dim = 0, hidden = 0;
    int32_t pairs = 0;                 // up to kChainMaxPairs
    float epsilon = 1e-5f, scale = 1.f, mask_value = -100.f;
    bool tanh_gelu = false;
    bool bias = false;                 // of the scores, dense [heads, T, ceil8(T)] a pair, T the tokens that attend to each other
    WindowGrid window;                 // shift is that of the shifted pairs; not used(): all tokens of an image attend to each other
    uint32_t shifted = 0;              // bit i: pair i is in shifted windows
    Quads quads;                       // in windows only
    const void* x = nullptr;           // [images, tokens, channels]; with quads [images, quads.grid_h * quads.grid_w, quads.channels]
    const void* weights = nullptr;     // [chain_weights(*this)]
    const void* vectors = nullptr;     // [chain_vectors(*this)]
    const void* between = nullptr;     // [pairs - 1, images, tokens, channels], added to what each pair but the last gives; null: nothing is, as in windows
    void* y = nullptr;                 // [images, tokens, channels]; none of the inputs
    void* workspace = nullptr;         // block_chain_workspace bytes, aligned to 128; nothing in it is kept

    int64_t group_tokens() const { return window.used() ? window.window_tokens() : tokens; }
    int64_t groups() const { return window.used() ? window.windows() : 1; }
};
constexpr int32_t kChainMaxPairs = 32, kChainMaxChannels = 1024, kChainMaxHidden = 4096, kChainMaxTokens = 256, kChainMaxWindow = 64;
// Elements of the packed weights and vectors, of quads first, then of all pairs. Vectors of quads are the offset and each column's sum of its weights as they are rounded, as a value of the
// type and what is left of it.
int64_t chain_weights(const BlockChainProblem& problem);
int64_t chain_vectors(const BlockChainProblem& problem);

// `slot`: of chain_slot, for launches that do not run at the same time; -1 takes none and initializes its barrier in the workspace with a kernel of its own.
cudaError_t block_chain(const BlockChainProblem& problem, cudaStream_t stream, int32_t tactic = 0, int32_t slot = -1);
// Ways of cutting up the problem on the current device that are worth timing, best guess first. Pointers are not looked at.
std::vector<int32_t> block_chain_tactics(const BlockChainProblem& problem);
// Enough for this problem and for all with fewer images, under any tactic; 0 if it is not valid. Pointers are not looked at.
int64_t block_chain_workspace(const BlockChainProblem& problem);
// A barrier for the launches of one plugin, which is the caller's until it is given back; -1: all are taken.
int32_t chain_slot();
void give_back_chain_slot(int32_t slot);

}  // namespace trt_opt
