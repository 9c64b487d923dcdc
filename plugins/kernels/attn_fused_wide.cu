// Chooses the instance of the attention block as one wide kernel, and launches it. TRT_OPT_SM90A: this file is compiled for sm_90a.
#include "attn_fused_wide.h"

#include <algorithm>

#include "attn_chain.h"
#include "attn_fused_wide.cuh"
#include "launch.cuh"
#include "tensor_map.h"

namespace trt_opt {
namespace {

constexpr int64_t kManyRows = 1500;

const AttnFusedShape* const kShapes[] = {kAttnFused96, kAttnFused128, kAttnFusedRing32, kAttnFusedRing64, kAttnFusedRing96, kAttnFusedRing128, kAttnFusedRing160, kAttnFusedRing192, kAttnFusedSplit96, kAttnFusedSplit128};

int planes(const AttentionProblem& a) { return a.bias_kind == AttentionBias::kTable || (a.bias_kind == AttentionBias::kDense && a.bias_heads > 1) ? a.heads : 1; }

int stages(const AttnFusedShape& s, const AttnBlockProblem& q) {
    const int left = device().shared - s.fixed(q.attention.heads, static_cast<int>(q.group_tokens()), planes(q.attention));
    return left < 0 ? 0 : std::min(q.attention.heads, left / (s.stage + 32));
}

// Null: none has room.
const AttnFusedShape* shape(const AttnFusedPlan& plan, const AttnBlockProblem& q) {
    const int heads = q.attention.heads, tokens = static_cast<int>(q.group_tokens());
    for (const AttnFusedShape* sizes : kShapes)
        for (int i = 0; i < 2; ++i)
            if (const AttnFusedShape& s = sizes[i]; s.form == plan.form && s.channels == q.channels && tokens <= s.keys && (s.heads == 0 || s.heads == heads))
                if (const int count = stages(s, q); s.heads > 0 ? count == heads : count >= std::min(heads, 2)) return &s;
    return nullptr;
}

int64_t windows(const AttnBlockProblem& q) { return q.images * q.groups(); }
int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }

cuuint64_t bytes(int64_t elements) { return static_cast<cuuint64_t>(elements) * 2; }

bool encode(CUtensorMap& map, int dimensions, const void* matrix, const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box) {
    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    return encode_tiled()(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, static_cast<cuuint32_t>(dimensions), const_cast<void*>(matrix), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                          CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
// Row 32 i + 8 t + 2 p + e of Wqkv as (e, t, p, i), the first the fastest: what lane t has in pair p of its 8 channels is contracted as elements 2 t + e of the eight p.
bool encode_qkv(CUtensorMap& map, const AttnBlockProblem& q) {
    const int64_t columns = 3 * head_columns(q);
    const auto chunks = static_cast<cuuint32_t>(q.channels / 32);
    const cuuint64_t sizes[5] = {static_cast<cuuint64_t>(columns), 2, 4, 4, chunks}, strides[4] = {bytes(columns), bytes(8 * columns), bytes(2 * columns), bytes(32 * columns)};
    const cuuint32_t box[5] = {32, 2, 4, 4, chunks};
    return encode(map, 5, q.w_qkv, sizes, strides, box);
}
bool encode_proj(CUtensorMap& map, const AttnBlockProblem& q) {
    const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(q.channels), static_cast<cuuint64_t>(head_columns(q))}, strides[1] = {bytes(q.channels)};
    const cuuint32_t box[2] = {32, 32};
    return encode(map, 2, q.w_proj, sizes, strides, box);
}

}  // namespace

bool attn_fused_valid(const AttnFusedPlan& plan, const AttnBlockProblem& q) {
#ifdef TRT_OPT_SM90A
    if (device().major != 9 || !encode_tiled()) return false;
    const AttentionProblem& a = q.attention;
    if (q.dtype != DType::kHalf || a.dim != 32 || q.channels % 32 != 0 || q.group_tokens() > 64 || q.images <= 0) return false;
    if (a.mask_kind == AttentionMask::kDense || (a.mask_kind == AttentionMask::kShift && !a.window.used()) || (a.bias_kind == AttentionBias::kTable && !a.window.used())) return false;
    if (a.bias_kind == AttentionBias::kDense && (a.bias_period != 1 || (a.bias_heads != 1 && a.bias_heads != a.heads))) return false;
    // What is added to a window's number beyond the last must not pass the end of its type.
    return product_rows(q) < (int64_t{1} << 30) && q.images * q.image_tokens() < (int64_t{1} << 30) && shape(plan, q);
#else
    return false;
#endif
}

std::vector<AttnFusedPlan> attn_fused_plans(const AttnBlockProblem& q) {
    std::vector<AttnFusedPlan> plans;
    if (product_rows(q) < kManyRows) return plans;
    for (const AttnFusedForm form : {AttnFusedForm::kStraight, AttnFusedForm::kLoop, AttnFusedForm::kSplit})
        if (const AttnFusedPlan plan{form}; attn_fused_valid(plan, q)) plans.push_back(plan);
    std::stable_sort(plans.begin(), plans.end(), [&](const AttnFusedPlan& a, const AttnFusedPlan& b) { return attn_fused_cost(a, q) < attn_fused_cost(b, q); });
    return plans;
}

// Nanoseconds, roughly: a launch and the first weights; the rounds of the warpgroups, in which a window has its norm and its end, and each head its share, by channels. Warpgroups of a
// multiprocessor share its instructions.
float attn_fused_cost(const AttnFusedPlan& plan, const AttnBlockProblem& q) {
    const AttnFusedShape& s = *shape(plan, q);
    constexpr float kLaunch = 6000, kWindow = 700, kChannel = 8, kHead = 500, kHeadChannel = 4;
    const auto channels = static_cast<float>(q.channels), heads = static_cast<float>(q.attention.heads);
    const bool split = plan.form == AttnFusedForm::kSplit;
    const float window = kWindow + kChannel * channels + (split ? 1.f : heads) * (kHead + kHeadChannel * channels);
    const auto rounds = static_cast<float>(parts(windows(q), int64_t{device().multiprocessors} * (split ? 1 : s.groups)));
    return kLaunch + rounds * window * static_cast<float>(std::max(s.groups, 2)) / 2.f;
}

cudaError_t attn_fused(const AttnBlockProblem& q, const AttnFusedPlan& plan, cudaStream_t stream) {
    if (!attn_fused_valid(plan, q)) return cudaErrorInvalidValue;
    const AttnFusedShape& s = *shape(plan, q);
    const AttentionProblem& a = q.attention;
    const WindowGrid& g = a.window;
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    AttnFusedArgs p{};
    if (!encode_qkv(p.qkv, q) || !encode_proj(p.proj, q)) return cudaErrorInvalidValue;
    p.x = in(q.x), p.residual = in(q.residual), p.norm_scale = in(q.norm_scale), p.norm_bias = in(q.norm_bias), p.b_qkv = in(q.b_qkv), p.b_proj = in(q.b_proj), p.bias = in(a.bias);
    p.y = static_cast<__half*>(q.y);
    p.windows = static_cast<uint32_t>(windows(q)), p.tokens = static_cast<int>(q.group_tokens()), p.heads = a.heads, p.stages = stages(s, q);
    p.planes = planes(a), p.dense = a.bias_kind == AttentionBias::kDense, p.table = a.bias_kind == AttentionBias::kTable;
    p.epsilon = q.epsilon, p.each = 1.f / static_cast<float>(q.channels), p.scale = a.scale, p.mask_value = a.mask_value;
    p.by_tokens = FastDiv(static_cast<uint32_t>(p.tokens));
    if (g.used()) {
        p.mapped = true, p.map = WindowMap(g);
        p.shifted = a.mask_kind == AttentionMask::kShift, p.regions = WindowRegions(g);
    }
    const int64_t blocks = std::min<int64_t>(device().multiprocessors, p.windows);
    return s.launch(p, s.fixed(a.heads, p.tokens, p.planes) + p.stages * (s.stage + 32), static_cast<uint32_t>(blocks), stream);
}

}  // namespace trt_opt
