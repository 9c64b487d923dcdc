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
    int threads = 0, shared = 0, blocks = 0;
    struct Way {
        int warps, fetchers, stages;
    };
    // Few patches: four warps with one, and as many that fetch, for each of a multiprocessor's schedulers one; all other multiprocessors are the
    // next kernel's. Many: more warps share what is fetched, and there is room for more blocks, whose work hides what one waits for.
    for (const Way& way : {Way{4, 4, kChainMaxStages}, Way{8, 1, 2}}) {
        p.warps = way.warps, threads = 32 * (way.warps + way.fetchers), p.stages = std::min(way.stages, p.layers);
        while (words_chain_bytes(p, p.stages) > device().shared && p.stages > 1) --p.stages;
        shared = static_cast<int>(words_chain_bytes(p, p.stages));
        cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
        if (status == cudaSuccess) status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared);
        if (status != cudaSuccess) return cudaGetLastError(), status;
        if (int64_t{blocks} * device().multiprocessors * p.warps >= patches) break;
    }
    // As many as run at once: each fetches all weights.
    const int64_t most = int64_t{std::max(1, blocks)} * device().multiprocessors;
    return launch_ahead(kernel, static_cast<uint32_t>(std::min(most, (patches + p.warps - 1) / p.warps)), threads, shared, stream, 1, p);
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
