#include "launch.cuh"
#include "tnt_words_launch.h"

namespace trt_opt {
cudaError_t launch_words_bridges_32x64(const WordsBridgesArgs& p, const WordsBridgesLaunch& how, cudaStream_t stream) {
    return launch_ahead(tnt_words_bridges_kernel<WordsTile32x64>, how.blocks, WordsTile32x64::kThreads, how.shared, stream, how.cluster, p);
}
}  // namespace trt_opt
