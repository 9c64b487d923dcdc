// Which kernels a program runs, when each starts and ends and with what grid: for engines, whose plugins choose tactics and whose
// kernels may overlap. CUDA loads this library into any program that CUDA_INJECTION64_PATH names it for.
//
//   g++ -std=c++17 -O2 -shared -fPIC kernel_trace.cpp -o libkernel_trace.so -I CUPTI/include -I CUDA/include -L CUPTI/lib -lcupti
//   KERNEL_TRACE=trace.tsv CUDA_INJECTION64_PATH=$PWD/libkernel_trace.so trt-opt bench swin.engine --graph --rounds 1
//   kernel_trace.py trace.tsv
//
// Columns: start and end in nanoseconds, blocks, threads, shared memory of a block in bytes (static and dynamic), registers,
// stream, graph (0: not in one), name. Kernels of a graph are recorded one by one.
#include <cupti.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace {

constexpr size_t kBuffer = 8 << 20;

std::mutex mutex;
FILE* file = nullptr;

[[noreturn]] void fail(const char* what, CUptiResult status) {
    const char* text = nullptr;
    cuptiGetResultString(status, &text);
    std::fprintf(stderr, "kernel_trace: %s: %s\n", what, text ? text : "unknown error");
    std::exit(3);
}

#define TRY(call)                                                        \
    do {                                                                 \
        const CUptiResult status_ = (call);                              \
        if (status_ != CUPTI_SUCCESS) fail(#call, status_);              \
    } while (false)

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* records) {
    *buffer = static_cast<uint8_t*>(std::aligned_alloc(8, kBuffer));
    *size = *buffer ? kBuffer : 0;
    *records = 0;
}

void CUPTIAPI take_buffer(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
    const std::lock_guard<std::mutex> lock(mutex);
    CUpti_Activity* record = nullptr;
    while (valid && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
        if (record->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) continue;
        const auto* k = reinterpret_cast<const CUpti_ActivityKernel10*>(record);
        std::fprintf(file, "%llu\t%llu\t%d\t%d\t%d\t%u\t%u\t%u\t%s\n", static_cast<unsigned long long>(k->start), static_cast<unsigned long long>(k->end), k->gridX * k->gridY * k->gridZ,
                     k->blockX * k->blockY * k->blockZ, k->staticSharedMemory + k->dynamicSharedMemory, static_cast<unsigned>(k->registersPerThread), k->streamId, k->graphId, k->name);
    }
    std::free(buffer);
}

void end() {
    cuptiActivityFlushAll(1);
    const std::lock_guard<std::mutex> lock(mutex);
    std::fclose(file);
}

}  // namespace

extern "C" int InitializeInjection() {
    const char* path = std::getenv("KERNEL_TRACE");
    file = std::fopen(path ? path : "kernel_trace.tsv", "w");
    if (!file) {
        std::perror(path);
        std::exit(3);
    }
    TRY(cuptiActivityRegisterCallbacks(give_buffer, take_buffer));
    TRY(cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL));
    std::atexit(end);
    return 1;
}
