// The attention block on the tensor cores: norm, partition (if any) and the first product as one kernel, attention, the second product
// with the reverse and the add as another, each of the two launched ahead of the end of the kernel before it.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels.h"

namespace trt_opt {

// True if the device, the sizes and the pointers' alignment suit. The problem is valid.
bool attn_chain_fits(const AttnBlockProblem& problem);

// The attention's result begins the workspace; queries, keys and values are `qkv` elements on.
cudaError_t attn_chain(const AttnBlockProblem& problem, int64_t qkv, cudaStream_t stream);

}  // namespace trt_opt
