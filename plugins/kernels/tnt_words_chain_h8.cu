#include "tnt_words_chain_launch.cuh"

namespace trt_opt {
cudaError_t launch_words_chain_8(const WordsChainArgs& p, cudaStream_t stream) { return launch_words_chain<8>(p, stream); }
}  // namespace trt_opt
