// A Swin block whole as one kernel (swin_block.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels.h"

namespace trt_opt {

// In these the problem is valid. True if the device and the sizes suit: fp16, heads of 32 that are as wide as a token together, at most
// 64 tokens that attend to each other, hidden columns in slices of 32, and room for all in shared memory.
bool swin_kernel_fits(const SwinBlockProblem& problem);
// Clusters, one for each group of tokens, and how many of them run at once on the device.
int64_t swin_kernel_clusters(const SwinBlockProblem& problem);
int swin_kernel_at_once(const SwinBlockProblem& problem);
// All pointers are aligned to 16 bytes, but for those of bias and mask.
cudaError_t swin_kernel(const SwinBlockProblem& problem, cudaStream_t stream);

}  // namespace trt_opt
