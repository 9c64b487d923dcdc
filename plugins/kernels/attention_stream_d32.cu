#include "attention_stream_launch.cuh"

namespace trt_opt {
template cudaError_t launch_stream<32>(const AttentionArgs<__half>&, const StreamLaunch&, cudaStream_t);
}  // namespace trt_opt
