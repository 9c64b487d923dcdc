#pragma once

#include "block_chain.cuh"
#include "block_chain.h"
#include "launch.cuh"

namespace trt_opt {

// A block on each multiprocessor: all run at once, since they wait for each other; and ahead of the end of the kernel before, for their first weights.
inline cudaError_t launch_everywhere(void (*kernel)(ChainArgs), const ChainArgs& p, int shared, cudaStream_t stream) {
    if (const cudaError_t status = allow_all_shared(kernel); status != cudaSuccess) return status;
    cudaLaunchAttribute attributes[2]{};
    attributes[0].id = cudaLaunchAttributeCooperative, attributes[0].val.cooperative = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization, attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(device().multiprocessors)), config.blockDim = dim3(kChainThreads), config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = stream, config.attrs = attributes, config.numAttrs = 2;
    const cudaError_t status = cudaLaunchKernelEx(&config, kernel, p);
    return status != cudaSuccess ? (cudaGetLastError(), status) : cudaGetLastError();
}

template <int PIECES> cudaError_t launch_chain(const ChainArgs& p, int shared, cudaStream_t stream) {
    return launch_everywhere(p.quads.channels > 0 ? block_chain_kernel<PIECES, true> : block_chain_kernel<PIECES, false>, p, shared, stream);
}

}  // namespace trt_opt
