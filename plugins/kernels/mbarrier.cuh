// Barriers in shared memory that count arrivals and bytes (sm_90).
#pragma once

#include <cstdint>

namespace trt_opt::mbarrier {

__device__ __forceinline__ void init(uint32_t at, uint32_t arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory"); }
// What was initialized is seen by the copy engine and by the other blocks of a cluster.
__device__ __forceinline__ void publish() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// Arrives, and lets the barrier wait for so many bytes besides.
__device__ __forceinline__ void expect(uint32_t at, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void arrive(uint32_t at) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
#endif
}
// Until the phase of this parity is over. The phase before the first counts as over, and has parity 1.
__device__ __forceinline__ void wait(uint32_t at, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{.reg .pred p;\n\tWAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n\t@!p bra WAIT;}" ::"r"(at), "r"(parity) : "memory");
#endif
}
// `bytes` (a multiple of 16, as both addresses are) from memory to shared memory, which count at `barrier`.
__device__ __forceinline__ void copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
#endif
}
// The same with a policy of the second-level cache (ptx::weight_policy).
__device__ __forceinline__ void copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "l"(policy) : "memory");
#endif
}
// The same to that place of the shared memory of each block of the cluster that `mask` has a bit of; counts at that barrier of each.
__device__ __forceinline__ void copy_to_all(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint32_t mask) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"(static_cast<uint16_t>(mask)) : "memory");
#endif
}

}  // namespace trt_opt::mbarrier
