#pragma once

#include "block_chain_launch.cuh"
#include "block_flow.cuh"

namespace trt_opt {

template <int DIM, int PIECES> cudaError_t launch_flow(const ChainArgs& p, int shared, cudaStream_t stream) { return launch_everywhere(block_flow_kernel<DIM, PIECES>, p, shared, stream); }

}  // namespace trt_opt
