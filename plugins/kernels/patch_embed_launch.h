// The kernels of a patch embedding by what the image is of: one source file each.
#pragma once

#include "patch_embed.cuh"

namespace trt_opt {

struct PatchEmbedLaunch {
    int tiles = 0;        // of 8 columns, where the weights stay in registers: 8, 12 or 16. 0: tiles in shared memory
    int vec = 0, rows = 0;  // of these: pixels of an access, 2, 4 or 8, and tokens of a block, 16, 32 or 64
    uint32_t blocks = 0;
    int threads = 0, shared = 0;  // shared: bytes
    int cluster = 1;      // blocks
};
template <class X> using PatchEmbedLauncher = cudaError_t(const PatchEmbedArgs<X>&, const PatchEmbedLaunch&, cudaStream_t);
PatchEmbedLauncher<float> launch_patch_embed_float;
PatchEmbedLauncher<__half> launch_patch_embed_half;

}  // namespace trt_opt
