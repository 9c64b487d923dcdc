#include "attention_stream_launch.cuh"

namespace trt_opt {
template cudaError_t launch_stream<16>(const AttentionArgs<__half>&, const StreamLaunch&, cudaStream_t);
}  // namespace trt_opt
