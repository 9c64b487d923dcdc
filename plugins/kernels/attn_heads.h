// Norm, partition, the product for queries, keys and values, and the attention of a block's heads, as one kernel.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels.h"

namespace trt_opt {

// In these the problem is valid. True if the device and the sizes suit: fp16, heads of 32, at most 64 tokens that attend to each other.
bool attn_heads_fits(const AttnBlockProblem& problem);
// True if it fits and there are so few heads that the time is latency, which the kernel is made for.
bool attn_heads_pays(const AttnBlockProblem& problem);
// `out`: [images * groups * group tokens, heads * 32]; it and all other pointers are aligned to 16 bytes. What a problem has
// behind the attention is not looked at, but for the weights, which the next kernel is taken to read.
cudaError_t attn_heads(const AttnBlockProblem& problem, void* out, cudaStream_t stream);

}  // namespace trt_opt
