#include "tnt_words_chain_launch.cuh"

namespace trt_opt {
cudaError_t launch_words_chain_16(const WordsChainArgs& p, uint32_t& telling, cudaStream_t stream) { return launch_words_chain<16>(p, telling, stream); }
}  // namespace trt_opt
