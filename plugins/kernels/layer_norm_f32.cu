#include "layer_norm.cuh"

namespace trt_opt {
cudaError_t layer_norm_f32(const LayerNormProblem& problem, cudaStream_t stream) {
    return layer_norm_typed<float>(problem, stream);
}
}  // namespace trt_opt
