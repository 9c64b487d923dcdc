// What PTX has and CUDA C++ has no word for: asynchronous copies, matrix loads, clusters, launches ahead of time.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace trt_opt::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// 16 bytes to shared memory, past the first-level cache; zeros where `exists` is false.
__device__ __forceinline__ void copy16(void* to, const void* from, bool exists) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(exists ? 16 : 0) : "memory");
#else
    *static_cast<uint4*>(to) = exists ? *static_cast<const uint4*>(from) : uint4{};
#endif
}
// What the second-level cache is to do with what is read through this, a word for the copies and loads that take one. Weights of a network are read once an
// inference and then are of no use until the next; kept like all else, tens of megabytes of them drive out the rows between kernels and the kernels' machine
// code. `once`: all blocks read them at about the same time, after which they go first; otherwise later blocks read them again, and they stay as they would.
__device__ __forceinline__ uint64_t weight_policy(bool once) {
    uint64_t first = 0, normal = 0;
#if __CUDA_ARCH__ >= 800
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(normal));
#endif
    return once ? first : normal;
}
// copy16 with such a policy.
__device__ __forceinline__ void copy16(void* to, const void* from, bool exists, [[maybe_unused]] uint64_t policy) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(shared_address(to)), "l"(from), "r"(exists ? 16 : 0), "l"(policy) : "memory");
#else
    copy16(to, from, exists);
#endif
}
// 16 bytes of constants, past the first-level cache.
__device__ __forceinline__ uint4 load16(const void* from, [[maybe_unused]] uint64_t policy) {
#if __CUDA_ARCH__ >= 800
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from), "l"(policy));
    return v;
#else
    return __ldg(static_cast<const uint4*>(from));
#endif
}
// BYTES (4, 8 or 16) bytes to shared memory.
template <int BYTES> __device__ __forceinline__ void copy(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES) : "memory");
#else
    memcpy(to, from, BYTES);
#endif
}
// Closes a group of this thread's copies.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until no more than the N latest groups are under way.
template <int N> __device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Four 8 x 8 matrices of halves; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices4(uint32_t (&r)[4], const __half* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(p)) : "memory");
}
__device__ __forceinline__ void load_transposed4(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, const __half* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d) : "r"(shared_address(p)) : "memory");
}

// The inverse of load_transposed4.
__device__ __forceinline__ void store_transposed4(__half* p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(p)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
#endif
}

// An 8 x 8 matrix of halves, a row's pair a lane, transposed.
__device__ __forceinline__ uint32_t transposed(uint32_t pair) {
    uint32_t r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(pair));
    return r;
}

// Barrier `id` (1 to 15; 0 is that of __syncthreads) of so many threads of a block, whole warps: one that waits, and one that only says that
// it is there. What was written before either is seen behind one that waited.
__device__ __forceinline__ void barrier_wait(int id, int threads) {
    __syncwarp();
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    __syncwarp();
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The two halves of a barrier of all threads of a cluster. What was written before the arrival is seen after the wait.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
// The same for blocks that only have read what others will write to: nothing is waited for.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// Blocks of the cluster, and which of them this is.
__device__ __forceinline__ uint32_t cluster_blocks() {
    uint32_t blocks = 1;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
#endif
    return blocks;
}
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}
// Where block `rank` of the cluster has what this block has at `address` of its shared memory.
__device__ __forceinline__ uint32_t remote(uint32_t address, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
#endif
    return address;
}
__device__ __forceinline__ void store_remote(uint32_t address, float x, float y) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x), "f"(y) : "memory");
#else
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x), "f"(y) : "memory");
#endif
}
__device__ __forceinline__ void store_remote(uint32_t address, uint4 v) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#else
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}
// 16 bytes to a block of the cluster, which count at its barrier (expect_bytes); both addresses are of that block.
__device__ __forceinline__ void store_counted(uint32_t address, uint4 v, uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier) : "memory");
#endif
}
// Makes a barrier of 8 bytes of this block's shared memory that opens once, when so many bytes have come. By one thread, before a barrier of the cluster
// that is before the first of them.
__device__ __forceinline__ void expect_bytes(void* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    const uint32_t at = shared_address(barrier);
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("{.reg .b64 state;\n\tmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;}" ::"r"(at), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void wait_bytes(const void* barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{.reg .pred p;\n\tWAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], 0;\n\t@!p bra WAIT;}" ::"r"(shared_address(barrier)) : "memory");
#endif
}
// The same of a barrier that opens again and again (mbarrier::expect), until the phase of this parity is over.
__device__ __forceinline__ void wait_bytes(const void* barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{.reg .pred p;\n\tWAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n\t@!p bra WAIT;}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
#endif
}
__device__ __forceinline__ uint4 load_remote(uint32_t address) {
    uint4 v;
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
#else
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
#endif
    return v;
}

// Of a whole warp, one thread: unlike a comparison of lanes it tells the compiler that there is no other, so that copies behind it need no loop over lanes.
__device__ __forceinline__ bool elect() {
    uint32_t chosen = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("{.reg .pred p;\n\telect.sync _|p, 0xffffffff;\n\tselp.u32 %0, 1, 0, p;}" : "=r"(chosen));
#endif
    return chosen != 0;
}
// Until the kernels before this one are done and what they wrote is seen, where this one was launched ahead of that.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may be launched as soon as every block has said so, if it was allowed to; its own wait is for all of this one.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// In one access, which compilers make four of where the words come from selections.
__device__ __forceinline__ void store(void* to, uint4 v) { asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory"); }
// What all of a block wrote before a barrier is seen by who finds this value behind it, on the whole device.
__device__ __forceinline__ void store_release(uint32_t* p, uint32_t v) {
#if __CUDA_ARCH__ >= 700
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
#endif
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* p) {
    uint32_t v = 0;
#if __CUDA_ARCH__ >= 700
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
#endif
    return v;
}
// Asks for a line of a kernel's arguments, a line a warp, so that all come at once and are not waited for line by line. `to`: four bytes of shared memory for each line, which nobody reads.
template <class Args> __device__ __forceinline__ void ask_for_arguments(const Args& p, uint32_t to, int warp) {
    constexpr int kLine = 64, kLines = (sizeof(Args) + kLine - 1) / kLine;
    if (warp < kLines) asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + warp * 4), "r"(reinterpret_cast<const uint32_t*>(&p)[warp * (kLine / 4)]) : "memory");
}
__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// Asks for so many bytes of weights (a multiple of 16, as the address is) in the second-level cache, with a policy (weight_policy), which a prefetch line by line has
// none for. By so many warps, which share them out; this is number `warp` of them.
__device__ __forceinline__ void prefetch_weights(const void* from, uint32_t bytes, uint32_t warp, uint32_t warps, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    constexpr uint32_t kPiece = 2048;
    if (threadIdx.x % 32 != 0) return;
#pragma unroll 1
    for (uint32_t at = warp * kPiece; at < bytes; at += warps * kPiece)
        asm volatile("cp.async.bulk.prefetch.L2.global.L2::cache_hint [%0], %1, %2;" ::"l"(static_cast<const unsigned char*>(from) + at), "r"(min(kPiece, bytes - at)), "l"(policy) : "memory");
#endif
}

}  // namespace trt_opt::ptx
