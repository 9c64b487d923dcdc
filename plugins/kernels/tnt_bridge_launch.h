// The one kernel of a bridge from words to tokens: its tile shapes, one source file each.
#pragma once

#include <algorithm>

#include "block_gemm_tiles.h"
#include "kernels.h"

namespace trt_opt {

inline bool tnt_bridge_valid(const TntBridgeProblem& q) {
    auto within = [](int32_t v, int32_t most) { return v > 0 && v <= most; };
    return q.images >= 0 && within(q.tokens, kAttnMaxTokens) && within(q.covered, q.tokens) && q.begin >= 0 && q.begin <= q.tokens - q.covered && within(q.width, kMlpMaxHidden) &&
           within(q.channels, kMlpMaxChannels) && q.images <= INT64_MAX / 64 / q.tokens / kMlpMaxHidden;
}
// Of a launch, where positions are 32-bit.
inline int64_t tnt_bridge_images(const TntBridgeProblem& q) { return std::min(q.images, (int64_t{1} << 30) / q.tokens); }

struct BridgeLaunch {
    uint32_t blocks = 0;
    int shared = 0;   // bytes
    int cluster = 1;  // blocks
};
using BridgeLauncher = cudaError_t(const BridgeGemmArgs&, const BridgeLaunch&, cudaStream_t);
BridgeLauncher launch_bridge_16x64, launch_bridge_32x64, launch_bridge_32x128, launch_bridge_64x128;

}  // namespace trt_opt
