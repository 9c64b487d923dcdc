// Launching a kernel ahead of the end of the one before it.
#pragma once

#include <algorithm>
#include <atomic>

#include "common.cuh"

namespace trt_opt {

// What launches depend on, of the current device, as this thread found it the last time that the device changed.
struct Device {
    int id = -1, multiprocessors = 1, major = 0, shared = 48 * 1024;  // shared: bytes a block may have
};
inline const Device& device() {
    thread_local Device known;
    int id = 0;
    if (cudaGetDevice(&id) != cudaSuccess) id = -1;
    if (id != known.id || id < 0) {
        known = Device{};
        known.id = id, known.multiprocessors = multiprocessors();
        cudaDeviceGetAttribute(&known.major, cudaDevAttrComputeCapabilityMajor, id);
        cudaDeviceGetAttribute(&known.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
        cudaGetLastError();
    }
    return known;
}

// Lets launches of `kernel`, which declares no shared memory of its own, have all that a block can have on the device. Not just what the next launch
// needs: another thread may launch the same kernel with more at the same time.
template <class Kernel> cudaError_t allow_all_shared(Kernel kernel) {
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device().shared);
    return status != cudaSuccess ? (cudaGetLastError(), status) : status;
}

// Clusters of `cluster` blocks that run at once: 0 where the device has no room for one. More than 8 blocks need leave, which this gives, and a part of
// the device with so many multiprocessors.
template <class Kernel> int active_clusters(Kernel kernel, int cluster, int threads, int shared) {
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess) return cudaGetLastError(), 0;
    if (allow_all_shared(kernel) != cudaSuccess) return 0;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(cluster)), config.blockDim = dim3(static_cast<unsigned>(threads)), config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.attrs = &attribute, config.numAttrs = 1;
    int clusters = 0;
    return cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess ? clusters : (cudaGetLastError(), 0);
}

// Whether so many blocks of so many threads and bytes of shared memory run at once, or nearly, so that all that they read of the weights is read at about the
// same time (ptx::weight_policy). Registers are a guess, 64 a thread.
inline bool one_wave(int64_t blocks, int threads, size_t shared) {
    constexpr int kReserved = 1024, kThreads = 65536 / 64;  // bytes of shared memory that go with each block; threads of a multiprocessor
    const int together = std::max(1, std::min((device().shared + kReserved) / (static_cast<int>(shared) + kReserved), kThreads / threads));
    return blocks <= int64_t{together} * device().multiprocessors;
}

// Launches `kernel`, on sm_90 and later as soon as the kernel before it lets it (programmatic dependent launch). Such a kernel
// must call ptx::wait_for_previous before it reads what another kernel may have written, and before it writes at all.
// `cluster`: blocks a cluster.
template <class... Parameters, class... Arguments>
cudaError_t launch_ahead(void (*kernel)(Parameters...), uint32_t blocks, int threads, size_t shared, cudaStream_t stream, int cluster, Arguments&&... arguments) {
    if (constexpr size_t kUsual = 48 * 1024; shared > kUsual) {
        if (const cudaError_t status = allow_all_shared(kernel); status != cudaSuccess) return status;
    }
    cudaLaunchAttribute attributes[3]{};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks), config.blockDim = dim3(threads), config.dynamicSmemBytes = shared;
    config.stream = stream, config.attrs = attributes;
    if (cluster > 1) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    }
    if (device().major >= 9) {
        attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
#if CUDART_VERSION >= 13000
    // Kernels that divide first-level memory otherwise cannot share a multiprocessor, so small ones all ask for the same division.
    // Large ones live off their cache.
    if (constexpr uint32_t kSmall = 4; device().major >= 9 && blocks <= kSmall * static_cast<uint32_t>(device().multiprocessors)) {
        attributes[config.numAttrs].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
        attributes[config.numAttrs++].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
    }
#endif
    const cudaError_t status = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
    return status != cudaSuccess ? (cudaGetLastError(), status) : cudaGetLastError();
}

}  // namespace trt_opt
