// Launchers of the fp16 attention kernels, one translation unit for a few instances each.
#pragma once

#include "attention_common.cuh"

namespace trt_opt {

struct ResidentLaunch {
    int tiles;       // of 8 keys: at least ceil(M / 8)
    bool wide;
    bool staged;
    int split;       // warps a (batch row, head)
    int warps;       // a block, a multiple of split
    uint32_t blocks;
};
struct StreamLaunch {
    bool wide;
    int parts;       // warps a query tile
    int warps;       // a block, a multiple of parts
    uint32_t blocks;
};

// D: head size padded, one of 8, 16, 32. `wide` must be true unless D is 8.
// Blocks of `how` (but for `blocks`) that a multiprocessor holds at once.
template <int D> int resident_blocks(const AttentionArgs<__half>& p, const ResidentLaunch& how);
template <int D> cudaError_t launch_resident(const AttentionArgs<__half>& p, const ResidentLaunch& how, cudaStream_t stream);
// D: one of 8, 16, 32, 64, 128.
template <int D> cudaError_t launch_stream(const AttentionArgs<__half>& p, const StreamLaunch& how, cudaStream_t stream);

}  // namespace trt_opt
