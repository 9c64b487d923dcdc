#include "attention_resident_launch.cuh"

namespace trt_opt {
template cudaError_t launch_resident<8>(const AttentionArgs<__half>&, const ResidentLaunch&, cudaStream_t);
template int resident_blocks<8>(const AttentionArgs<__half>&, const ResidentLaunch&);
}  // namespace trt_opt
