// The tensor copy engine (sm_90).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace trt_opt::tensor_copy {

// Boxes of a tensor map to shared memory, which count at `barrier`.
__device__ __forceinline__ void load(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
#endif
}
// The same of weights, with a policy of the second-level cache (ptx::weight_policy).
__device__ __forceinline__ void load(uint32_t to, const CUtensorMap& map, int column, int row, uint32_t barrier, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(&map), "r"(column), "r"(row), "r"(barrier), "l"(policy) : "memory");
#endif
}
// Of five dimensions, from the beginning of all but the first.
__device__ __forceinline__ void load5(uint32_t to, const CUtensorMap& map, int column, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %3, %3, %3}], [%4];" ::"r"(to), "l"(&map), "r"(column), "r"(0), "r"(barrier) : "memory");
#endif
}
// Between what threads write to shared memory and what the tensor cores or the copy engine do there.
__device__ __forceinline__ void fence_shared() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

}  // namespace trt_opt::tensor_copy
