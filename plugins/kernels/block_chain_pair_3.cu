#include "block_chain_pair_launch.cuh"

namespace trt_opt {
TRT_OPT_CHAIN_PAIR(kChainPair3, 3);
}  // namespace trt_opt
