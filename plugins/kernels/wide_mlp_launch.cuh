// The MLP block of many rows, for up to so many channels. TRT_OPT_SM90A: files that include this are compiled for sm_90a.
#pragma once

#include "launch.cuh"
#include "wide_mlp.cuh"

namespace trt_opt {

cudaError_t launch_wide_mlp_64(const WideMlpArgs& p, bool tanh_gelu, uint32_t blocks, cudaStream_t stream);
cudaError_t launch_wide_mlp_96(const WideMlpArgs& p, bool tanh_gelu, uint32_t blocks, cudaStream_t stream);
cudaError_t launch_wide_mlp_128(const WideMlpArgs& p, bool tanh_gelu, uint32_t blocks, cudaStream_t stream);
cudaError_t launch_wide_mlp_192(const WideMlpArgs& p, bool tanh_gelu, uint32_t blocks, cudaStream_t stream);

template <int C> cudaError_t launch_wide_mlp(const WideMlpArgs& p, bool tanh_gelu, uint32_t blocks, cudaStream_t stream) {
    using Tile = WideMlpTile<C>;
    const auto kernel = tanh_gelu ? wide_mlp_kernel<C, true> : wide_mlp_kernel<C, false>;
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
    if (status != cudaSuccess) return cudaGetLastError(), status;
    return launch_ahead(kernel, blocks, Tile::kThreads, static_cast<size_t>(Tile::shared_bytes(p.slots)), stream, 1, p);
}

}  // namespace trt_opt
