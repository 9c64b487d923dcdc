#include "patch_embed_launch.cuh"

namespace trt_opt {
cudaError_t launch_patch_embed_float(const PatchEmbedArgs<float>& p, const PatchEmbedLaunch& how, cudaStream_t stream) { return launch_patch_embed(p, how, stream); }
}  // namespace trt_opt
