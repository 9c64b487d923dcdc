// The tile shapes that are compiled, one source file each.
#pragma once

#include "block_gemm.cuh"

namespace trt_opt {

// Rows, columns; warps along rows, columns and the contracted index.
using GemmTile16x64 = GemmTile<16, 64, 1, 2, 4>;
using GemmTile32x32 = GemmTile<32, 32, 2, 1, 4>;
using GemmTile32x64 = GemmTile<32, 64, 2, 2, 2>;
using GemmTile32x96 = GemmTile<32, 96, 2, 3, 2>;
using GemmTile32x128 = GemmTile<32, 128, 2, 4, 1>;
using GemmTile64x32 = GemmTile<64, 32, 4, 1, 2>;
using GemmTile64x64 = GemmTile<64, 64, 4, 2, 1>;
using GemmTile64x64w16 = GemmTile<64, 64, 4, 2, 2>;
using GemmTile64x96 = GemmTile<64, 96, 4, 3, 1>;
using GemmTile64x128 = GemmTile<64, 128, 2, 4, 1>;
using GemmTile128x64 = GemmTile<128, 64, 4, 2, 1>;
using GemmTile128x128 = GemmTile<128, 128, 4, 4, 1>;

struct GemmLaunch {
    bool norm = false;
    uint32_t blocks = 0;
    int shared = 0;  // bytes
};
using GemmLauncher = cudaError_t(const BlockGemmArgs&, const GemmLaunch&, cudaStream_t);
GemmLauncher launch_gemm_16x64, launch_gemm_32x32, launch_gemm_32x64, launch_gemm_32x96, launch_gemm_32x128, launch_gemm_64x32, launch_gemm_64x64, launch_gemm_64x64w16, launch_gemm_64x96,
    launch_gemm_64x128, launch_gemm_128x64, launch_gemm_128x128;
// Those that merge patches.
using MergeGemmLauncher = cudaError_t(const MergeGemmArgs&, const GemmLaunch&, cudaStream_t);
MergeGemmLauncher launch_merge_gemm_16x64, launch_merge_gemm_32x32, launch_merge_gemm_32x64, launch_merge_gemm_64x32, launch_merge_gemm_64x64;

}  // namespace trt_opt
