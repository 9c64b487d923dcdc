#include "patch_embed_launch.cuh"

namespace trt_opt {
cudaError_t launch_patch_embed_half(const PatchEmbedArgs<__half>& p, const PatchEmbedLaunch& how, cudaStream_t stream) { return launch_patch_embed(p, how, stream); }
}  // namespace trt_opt
