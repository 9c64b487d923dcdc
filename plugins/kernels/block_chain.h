// The kernels of a chain of blocks, in windows (block_chain.cuh) and of sequences (block_flow.cuh), an instance a file.
#pragma once

#include <cuda_runtime_api.h>

namespace trt_opt {

struct ChainArgs;

// Launches on as many multiprocessors as the device has.
template <int PIECES> cudaError_t launch_chain(const ChainArgs& p, int shared, cudaStream_t stream);
template <int DIM, int PIECES> cudaError_t launch_flow(const ChainArgs& p, int shared, cudaStream_t stream);

#define TRT_OPT_CHAINS_IN_WINDOWS(each) each(3) each(6) each(12) each(16)
#define TRT_OPT_CHAINS_OF_SEQUENCES(each) each(32, 3) each(32, 6) each(32, 12) each(64, 6) each(64, 12) each(64, 16)

}  // namespace trt_opt
