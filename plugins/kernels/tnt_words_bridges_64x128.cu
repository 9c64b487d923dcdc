#include "launch.cuh"
#include "tnt_words_launch.h"

namespace trt_opt {
cudaError_t launch_words_bridges_64x128(const WordsBridgesArgs& p, const WordsBridgesLaunch& how, cudaStream_t stream) {
    return launch_ahead(tnt_words_bridges_kernel<WordsTile64x128>, how.blocks, WordsTile64x128::kThreads, how.shared, stream, how.cluster, p);
}
}  // namespace trt_opt
