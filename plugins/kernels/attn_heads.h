// Norm, partition, the product for queries, keys and values, and the attention of a block's heads, as one kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels.h"

namespace trt_opt {

constexpr int kAttnHeadsMaxClusterLog2 = 2;

// In these the problem is valid; clusters of 1 << cluster_log2 blocks share a head. True if the device and the sizes suit: fp16, heads
// of 32, at most 64 tokens that attend to each other, no more channels than the blocks have room for and a slice of them for each.
bool attn_heads_fits(const AttnBlockProblem& problem, int cluster_log2);
// True if it fits and there are so few blocks that the time is latency, which the kernel is made for.
bool attn_heads_pays(const AttnBlockProblem& problem, int cluster_log2);
// The smallest cluster that fits and pays, as the logarithm: an estimate, clusters have not been timed. < 0: none.
int attn_heads_best(const AttnBlockProblem& problem);
// The clusters worth timing, best guess first. More than one block a head where the heads leave multiprocessors idle or one does not fit.
std::vector<int> attn_heads_clusters(const AttnBlockProblem& problem);
// `out`: [images * groups * group tokens, heads * 32]; it and all other pointers are aligned to 16 bytes. What a problem has
// behind the attention is not looked at, but for the weights, which the next kernel is taken to read.
cudaError_t attn_heads(const AttnBlockProblem& problem, int cluster_log2, void* out, cudaStream_t stream);

}  // namespace trt_opt
