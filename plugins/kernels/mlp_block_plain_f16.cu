#include "mlp_block_plain.cuh"

namespace trt_opt {
cudaError_t mlp_plain_f16(const MlpBlockProblem& problem, cudaStream_t stream) { return mlp_plain<__half>(problem, stream); }
}  // namespace trt_opt
