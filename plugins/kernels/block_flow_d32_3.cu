#include "block_flow_launch.cuh"

namespace trt_opt {

template cudaError_t launch_flow<32, 3>(const ChainArgs&, int, cudaStream_t);

}  // namespace trt_opt
