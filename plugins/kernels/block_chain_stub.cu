// Stands in for the kernel of chains of blocks, which is not here yet: sizes are right, launches are refused.
#include "kernels.h"

namespace trt_opt {

int64_t chain_weights(const BlockChainProblem& p) {
    const int64_t inner = int64_t{p.heads} * p.dim;
    return p.pairs * p.channels * (4 * inner + 2 * int64_t{p.hidden});
}
int64_t chain_vectors(const BlockChainProblem& p) {
    const int64_t inner = int64_t{p.heads} * p.dim, tokens = p.group_tokens();
    return p.pairs * (3 * inner + 2 * int64_t{p.channels} + p.hidden + (p.bias ? p.heads * tokens * ((tokens + 7) / 8 * 8) : 0));
}
cudaError_t block_chain(const BlockChainProblem&, cudaStream_t, int32_t, int32_t) { return cudaErrorNotSupported; }
std::vector<int32_t> block_chain_tactics(const BlockChainProblem&) { return {}; }
int64_t block_chain_workspace(const BlockChainProblem&) { return 0; }
int32_t chain_slot() { return -1; }
void give_back_chain_slot(int32_t) {}

}  // namespace trt_opt
