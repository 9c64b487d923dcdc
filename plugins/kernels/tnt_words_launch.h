// The two kernels of a chain over words: the chain's, by head size, and that of its bridges, by tile shape, one source file each.
#pragma once

#include "block_gemm_tiles.h"
#include "tnt_words_bridges.cuh"
#include "tnt_words_chain.cuh"

namespace trt_opt {

// Of shared memory: weights, and the list of what to fetch; more for patches of two warps.
inline int64_t words_chain_bytes(const WordsChainArgs& p, int stages) { return int64_t{16} * stages * p.inner.shared + int64_t{p.copies} * static_cast<int64_t>(sizeof(inner::Copy)); }
// `telling`: the blocks that tell of their words; 0 if they do not, as where patches are many.
using WordsChainLauncher = cudaError_t(const WordsChainArgs&, uint32_t& telling, cudaStream_t);
WordsChainLauncher launch_words_chain_8, launch_words_chain_16;  // by head size, rounded up

// A warp has all of the contracted index: sums of its own only.
using WordsTile64x128 = GemmTile64x128;
using WordsTile32x128 = GemmTile32x128;
using WordsTile32x64 = GemmTile<32, 64, 2, 2, 1>;
using WordsTile16x128 = GemmTile<16, 128, 1, 4, 1>;

struct WordsBridgesLaunch {
    uint32_t blocks = 0;
    int shared = 0;   // bytes
    int cluster = 1;  // blocks
};
using WordsBridgesLauncher = cudaError_t(const WordsBridgesArgs&, const WordsBridgesLaunch&, cudaStream_t);
WordsBridgesLauncher launch_words_bridges_64x128, launch_words_bridges_32x128, launch_words_bridges_32x64, launch_words_bridges_16x128;

}  // namespace trt_opt
