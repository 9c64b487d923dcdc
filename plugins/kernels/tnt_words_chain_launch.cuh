#pragma once

#include <algorithm>

#include "launch.cuh"
#include "tnt_words_chain.cuh"
#include "tnt_words_launch.h"

namespace trt_opt {

struct ChainWay {
    int warps, fetchers, stages;
};
// What a launch takes: shared memory is at most the device's with one stage, or there is no such way. `blocks`: that run at once.
template <int STEPS, int HEAD, int SHARE> cudaError_t plan_words_chain(WordsChainArgs& p, const ChainWay& way, int& threads, int& shared, int64_t& blocks) {
    const auto kernel = tnt_words_chain_kernel<STEPS, HEAD, SHARE>;
    const auto bytes = [&](int stages) { return words_chain_bytes(p, stages) + (SHARE == 1 ? 0 : int64_t{16} * (way.warps / SHARE) * inner::kMeeting<STEPS>); };
    p.warps = way.warps, threads = 32 * (way.warps + way.fetchers), p.stages = std::min(way.stages, p.layers), blocks = 0;
    while (bytes(p.stages) > device().shared && p.stages > 1) --p.stages;
    if (SHARE > 1 && bytes(p.stages) > device().shared) return cudaSuccess;
    shared = static_cast<int>(bytes(p.stages));
    int each = 0;
    cudaError_t status = allow_all_shared(kernel);
    if (status == cudaSuccess) status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared);
    if (status != cudaSuccess) return cudaGetLastError(), status;
    blocks = int64_t{each} * device().multiprocessors;
    return cudaSuccess;
}

// Chooses warps of a block and room for weights, and launches.
template <int STEPS, int HEAD> cudaError_t launch_words_chain_instance(const WordsChainArgs& given, uint32_t& telling, cudaStream_t stream) {
    const int64_t patches = given.inner.patches;
    WordsChainArgs p = given;
    int threads = 0, shared = 0;
    int64_t blocks = 0;
    const auto enough = [&](int share) { return blocks * (p.warps / share) >= patches; };
    const auto launch = [&](auto kernel, int share) {
        // As many as run at once: each fetches all weights.
        const int64_t each = p.warps / share, wanted = (patches + each - 1) / each;
        const auto grid = static_cast<uint32_t>(std::min(std::max<int64_t>(1, blocks), wanted));
        if (share == 1 || grid < wanted || grid > kChainMaxTelling) p.told = nullptr;
        telling = p.told ? grid : 0;
        return launch_ahead(kernel, grid, threads, shared, stream, 1, p);
    };
    // Few patches: four warps with one, or with half of one if that is no more than may be there at once, since a warp only waits for itself; and as
    // many that fetch, for each of a multiprocessor's schedulers one. Many: more warps share what is fetched, and there is room for more
    // blocks, whose work hides what one waits for.
    cudaError_t status = plan_words_chain<STEPS, HEAD, 2>(p, {4, 4, kChainMaxStages}, threads, shared, blocks);
    if (status == cudaSuccess && enough(2)) return launch(tnt_words_chain_kernel<STEPS, HEAD, 2>, 2);
    if (status == cudaSuccess) status = plan_words_chain<STEPS, HEAD, 1>(p, {4, 4, kChainMaxStages}, threads, shared, blocks);
    if (status == cudaSuccess && !enough(1)) status = plan_words_chain<STEPS, HEAD, 1>(p, {8, 1, 2}, threads, shared, blocks);
    return status == cudaSuccess ? launch(tnt_words_chain_kernel<STEPS, HEAD, 1>, 1) : status;
}

template <int HEAD> cudaError_t launch_words_chain(const WordsChainArgs& p, uint32_t& telling, cudaStream_t stream) {
    switch ((p.inner.channels + 15) / 16) {
        case 1: return launch_words_chain_instance<1, HEAD>(p, telling, stream);
        case 2: return launch_words_chain_instance<2, HEAD>(p, telling, stream);
        case 3: return launch_words_chain_instance<3, HEAD>(p, telling, stream);
        case 4: return launch_words_chain_instance<4, HEAD>(p, telling, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace trt_opt
