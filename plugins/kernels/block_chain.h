// The kernel of a chain of blocks (block_chain.cuh), an instance a file.
#pragma once

#include <cuda_runtime_api.h>

namespace trt_opt {

struct ChainArgs;

// Launches on as many multiprocessors as the device has.
template <bool WINDOWS, int DIM, int PIECES> cudaError_t launch_chain(const ChainArgs& p, int shared, cudaStream_t stream);
template <bool WINDOWS, int DIM, int PIECES> cudaError_t launch_flow(const ChainArgs& p, int shared, cudaStream_t stream);

#define TRT_OPT_CHAINS(each)                                                              \
    each(true, 32, 3) each(true, 32, 6) each(true, 32, 12) each(true, 32, 16)             \
    each(false, 32, 3) each(false, 32, 6) each(false, 32, 12)                             \
    each(false, 64, 6) each(false, 64, 12) each(false, 64, 16)

}  // namespace trt_opt
