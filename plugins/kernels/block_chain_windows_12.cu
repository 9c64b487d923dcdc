#include "block_chain_launch.cuh"

namespace trt_opt {

template cudaError_t launch_chain<12>(const ChainArgs&, int, cudaStream_t);

}  // namespace trt_opt
