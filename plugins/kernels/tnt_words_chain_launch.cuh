#pragma once

#include <algorithm>

#include "launch.cuh"
#include "tnt_words_chain.cuh"
#include "tnt_words_launch.h"

namespace trt_opt {

// Chooses warps of a block and room for weights, and launches.
template <int STEPS, int HEAD> cudaError_t launch_words_chain_instance(const WordsChainArgs& given, cudaStream_t stream) {
    const auto kernel = tnt_words_chain_kernel<STEPS, HEAD>;
    const auto patches = given.inner.patches;
    WordsChainArgs p = given;
    int warps = 0, blocks = 0;
    // Few patches: four warps share what is fetched, and leave other multiprocessors to the kernel behind. Many: more warps share it, and room is for
    // more blocks, whose work hides what one waits for.
    for (const auto& [of_block, stages] : {std::pair{4, kChainMaxStages}, {kChainMaxWarps, 2}}) {
        warps = of_block, p.stages = std::min(stages, p.layers);
        while (words_chain_bytes(p, p.stages) > device().shared && p.stages > 1) --p.stages;
        cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, words_chain_bytes(p, p.stages));
        if (status == cudaSuccess) status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, 32 * (warps + 1), words_chain_bytes(p, p.stages));
        if (status != cudaSuccess) return cudaGetLastError(), status;
        if (int64_t{blocks} * device().multiprocessors * warps >= patches) break;
    }
    // As many as run at once: each fetches all weights.
    const int64_t most = int64_t{std::max(1, blocks)} * device().multiprocessors;
    return launch_ahead(kernel, static_cast<uint32_t>(std::min(most, (patches + warps - 1) / warps)), 32 * (warps + 1), words_chain_bytes(p, p.stages), stream, 1, p);
}

template <int HEAD> cudaError_t launch_words_chain(const WordsChainArgs& p, cudaStream_t stream) {
    switch ((p.inner.channels + 15) / 16) {
        case 1: return launch_words_chain_instance<1, HEAD>(p, stream);
        case 2: return launch_words_chain_instance<2, HEAD>(p, stream);
        case 3: return launch_words_chain_instance<3, HEAD>(p, stream);
        case 4: return launch_words_chain_instance<4, HEAD>(p, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace trt_opt
