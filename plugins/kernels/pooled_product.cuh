// The product that ends the kernels of the block with pooled keys and values: a tile of a warp, operands in shared memory.
#pragma once

#include "mma.cuh"
#include "ptx.cuh"

namespace trt_opt {

// 16 rows by 8 columns of a slice; `depth` contracted elements, a multiple of 32.
__device__ __forceinline__ void pooled_product(const __half* rows, int stride, const __half* slice, int slice_stride, int depth, int lane, float (&sum)[4]) {
    float other[4] = {};
#pragma unroll
    for (int k = 0; k < depth; k += 32) {
        uint32_t a[4], a2[4], b[2], b2[2];
        const __half* const from = rows + lane % 16 * stride + lane / 16 * 8 + k;
        ptx::load_matrices4(a, from), ptx::load_matrices4(a2, from + 16);
        ptx::load_transposed4(b[0], b[1], b2[0], b2[1], slice + (k + lane) * slice_stride);
        multiply(sum, a, b), multiply(other, a2, b2);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += other[i];
}

}  // namespace trt_opt
