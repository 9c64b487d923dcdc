// The bridges of a chain over words on the warpgroup instructions of sm_90a: tnt_words_wide.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels.h"

namespace trt_opt {

// Pointers are aligned to 16 bytes, and so is what bridge j reads, words[j]. Columns a block: 64 or 128. False, too, where the build or the device has no such instructions.
bool words_wide_valid(const TntWordsProblem& q, int columns, const void* const* words);
// `told`: of `telling` blocks of the chain for each layer; or null, and the whole chain is waited for.
cudaError_t words_wide(const TntWordsProblem& q, int columns, const void* const* words, const uint32_t* told, uint32_t telling, cudaStream_t stream);

}  // namespace trt_opt
