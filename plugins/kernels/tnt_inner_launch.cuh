// Lays out the weights of a block over words in shared memory and launches its kernel.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "launch.cuh"
#include "tnt_inner_block.cuh"

namespace trt_opt {

using TntInnerLauncher = cudaError_t(const InnerArgs&, cudaStream_t);
TntInnerLauncher launch_tnt_inner_8, launch_tnt_inner_16;  // by head size, rounded up

inline bool tnt_inner_valid(const TntInnerBlockProblem& q) {
    auto positive = [](int32_t v) { return v > 0; };
    return q.patches >= 0 && positive(q.tokens) && q.tokens <= (1 << 16) && positive(q.channels) && q.channels <= kMlpMaxChannels && positive(q.hidden) &&
           q.hidden <= kMlpMaxHidden && positive(q.heads) && q.channels % q.heads == 0 && q.channels / q.heads <= 128 && q.patches <= INT64_MAX / 64 / q.tokens / kMlpMaxHidden;
}

// Whether sizes and pointers suit the one kernel, and what it is told. Asks nothing of the device.
inline bool tnt_inner_arguments(const TntInnerBlockProblem& q, InnerArgs& p) {
    const int c = q.channels, d = q.heads > 0 ? c / q.heads : 0, padded = (c + 15) / 16 * 16, head = d <= 8 ? 8 : 16;
    if (q.dtype != DType::kHalf || q.tokens > kInnerMaxTokens || c > kInnerMaxChannels || q.hidden > kInnerMaxHidden || d > kInnerMaxHead || c % 2 != 0 || q.hidden % 2 != 0)
        return false;
    const auto aligned = [&](int bytes) {
        return aligned_to(bytes, q.scale1, q.bias1, q.scale2, q.bias2, q.w_qkv, q.b_qkv, q.w_proj, q.b_proj, q.w1, q.b1, q.w2, q.b2);
    };
    if (!aligned(4) || !aligned_to(4, q.x, q.y)) return false;
    p = InnerArgs{};
    p.x = static_cast<const __half*>(q.x), p.y = static_cast<__half*>(q.y);
    p.patches = q.patches, p.tokens = q.tokens, p.channels = c, p.hidden = (q.hidden + 15) / 16 * 16;
    p.groups = (q.heads * head + 15) / 16;
    p.norm_row = q.whole ? padded : 0;
    p.scale = q.scale * 1.4426950408889634f, p.epsilon1 = q.epsilon1, p.epsilon2 = q.epsilon2;
    p.activation = q.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu;
    p.unit = aligned(16) && c % 8 == 0 && q.hidden % 8 == 0 ? 8 : 2;
    p.head_unit = aligned(16) && d % 8 == 0 ? 8 : d % 2 == 0 ? 2 : 1;
    p.qkv_row = 48 * p.groups + 8, p.proj_row = p.down_row = padded + 8, p.up_row = p.hidden + 8;

    int end = 0;
    const auto place = [&](InnerTensor tensor, const void* from, int unit, int rows, int columns, int segment, int elements) {
        InnerPart& part = p.parts[tensor];
        part.from = static_cast<const __half*>(from);
        part.units = static_cast<uint32_t>(rows * columns / unit);
        part.row = FastDiv(static_cast<uint32_t>(columns / unit)), part.segment = FastDiv(static_cast<uint32_t>(segment / unit));
        part.group = FastDiv(1u << 30);
        part.to = end;
        end += (elements + 7) / 8 * 8;
        return &part;
    };
    const int norms = q.whole ? q.tokens : 1;
    for (const auto& [tensor, from] : {std::pair{kScale1, q.scale1}, {kBias1, q.bias1}, {kScale2, q.scale2}, {kBias2, q.bias2}})
        place(tensor, from, p.unit, norms, c, c, q.whole ? kInnerMaxTokens * padded : padded)->to_row = padded;
    place(kProjBias, q.b_proj, p.unit, 1, c, c, padded);
    place(kUpBias, q.b1, p.unit, 1, q.hidden, q.hidden, p.hidden);
    place(kDownBias, q.b2, p.unit, 1, c, c, padded);
    InnerPart* part = place(kProj, q.w_proj, p.unit, c, c, c, 16 * p.groups * p.proj_row);
    // A head's rows are padded as its columns are.
    part->group = FastDiv(static_cast<uint32_t>(d)), part->to_row = p.proj_row, part->to_group = head * p.proj_row;
    place(kUp, q.w1, p.unit, c, q.hidden, q.hidden, padded * p.up_row)->to_row = p.up_row;
    place(kDown, q.w2, p.unit, q.hidden, c, c, p.hidden * p.down_row)->to_row = p.down_row;
    // Queries, keys and values begin at a group's first column each: queries, keys and values are rows of segments of their own.
    part = place(kQkv, q.w_qkv, p.head_unit, 3 * c, c, d, padded * p.qkv_row);
    part->group = FastDiv(3), part->to_group = p.qkv_row, part->to_row = 16 * p.groups, part->to_segment = head;
    part = place(kQkvBias, q.b_qkv, p.head_unit, 3, c, d, 48 * p.groups);
    part->to_row = 16 * p.groups, part->to_segment = head;
    p.shared = end / 8;
    return true;
}

template <int STEPS, int HEAD> cudaError_t launch_tnt_inner_instance(const InnerArgs& p, cudaStream_t stream) {
    const auto kernel = tnt_inner_kernel<STEPS, HEAD>;
    const int shared = 16 * p.shared;
    cudaError_t status = allow_all_shared(kernel);
    int blocks = 0;
    if (status == cudaSuccess) status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kInnerThreads, shared);
    if (status != cudaSuccess) return cudaGetLastError(), status;
    // As many as run at once: each fetches all weights.
    const int64_t most = int64_t{std::max(1, blocks)} * device().multiprocessors;
    return launch_ahead(kernel, static_cast<uint32_t>(std::min(most, (p.patches + kInnerWarps - 1) / kInnerWarps)), kInnerThreads, shared, stream, 1, p);
}

template <int HEAD> cudaError_t launch_tnt_inner(const InnerArgs& p, cudaStream_t stream) {
    switch ((p.channels + 15) / 16) {
        case 1: return launch_tnt_inner_instance<1, HEAD>(p, stream);
        case 2: return launch_tnt_inner_instance<2, HEAD>(p, stream);
        case 3: return launch_tnt_inner_instance<3, HEAD>(p, stream);
        case 4: return launch_tnt_inner_instance<4, HEAD>(p, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace trt_opt
