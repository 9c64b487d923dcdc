#include "attention_resident_launch.cuh"

namespace trt_opt {
template cudaError_t launch_resident<32>(const AttentionArgs<__half>&, const ResidentLaunch&, cudaStream_t);
template int resident_blocks<32>(const AttentionArgs<__half>&, const ResidentLaunch&);
}  // namespace trt_opt
