#include "layer_norm.cuh"

namespace trt_opt {
cudaError_t layer_norm_f32(const LayerNormProblem&, cudaStream_t);

cudaError_t layer_norm(const LayerNormProblem& problem, cudaStream_t stream) {
    return problem.dtype == DType::kHalf ? layer_norm_typed<__half>(problem, stream) : layer_norm_f32(problem, stream);
}
}  // namespace trt_opt
