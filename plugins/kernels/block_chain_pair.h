// A pair of blocks in windows as one kernel (block_chain_pair.cuh), on sm_90a: a block of threads has a window from the attention block's rows to what the MLP block gives.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace trt_opt {

struct ChainPairArgs;

// Instances, a file each.
struct ChainPairShape {
    int groups, keys;           // warpgroups, as many as heads; the most tokens of a window
    int columns, piece;         // hidden columns of a unit; bytes of its weights in one of the MLP's products
    int shared_places;          // places of pieces where other things were before
    int threads;
    int (*fixed)(int tokens, int hidden);  // bytes of shared memory without places of their own for pieces
    void (*set_places)(ChainPairArgs& args);
    cudaError_t (*launch)(const ChainPairArgs& args, int shared, uint32_t blocks, cudaStream_t stream);
};
extern const ChainPairShape kChainPair3[2], kChainPair4[2];

constexpr int kChainPairMaxSlots = 8;  // pieces that a warpgroup has at once

}  // namespace trt_opt
