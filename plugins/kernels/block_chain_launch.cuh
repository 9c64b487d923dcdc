#pragma once

#include "block_chain.cuh"
#include "block_chain.h"
#include "launch.cuh"

namespace trt_opt {

// A block on each multiprocessor, for their first weights ahead of the end of the kernel before.
inline cudaError_t launch_everywhere(void (*kernel)(ChainArgs), const ChainArgs& p, int shared, cudaStream_t stream) {
    return launch_together(kernel, static_cast<uint32_t>(device().multiprocessors), kChainThreads, shared, stream, p);
}

template <int PIECES> cudaError_t launch_chain(const ChainArgs& p, int shared, cudaStream_t stream) { return launch_everywhere(block_chain_kernel<PIECES>, p, shared, stream); }

}  // namespace trt_opt
