// Maps of tensors for the tensor copy engine.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace trt_opt {

using EncodeTiled = CUresult(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                             CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's function, so that nothing is linked against the driver. Null: it has none.
inline EncodeTiled* encode_tiled() {
    static EncodeTiled* const found = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
        const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#elif CUDART_VERSION >= 12000
        const cudaError_t status = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
        if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) cudaGetLastError(), function = nullptr;
        return reinterpret_cast<EncodeTiled*>(function);
    }();
    return found;
}

}  // namespace trt_opt
