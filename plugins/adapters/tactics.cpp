#include "tactics.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "log.h"

namespace trt_opt {
namespace {

using nvinfer1::PluginTensorDesc;

constexpr int kLaunches = 10, kMostLaunches = 32;  // in a graph: one launch is too short to be timed
constexpr int kRounds = 20;                        // of which the fastest counts: whatever else runs on the device only adds
constexpr float kWorthIt = 0.98f;                  // of the time of tactic 0

uint64_t hash(uint64_t h, uint64_t v) {  // FNV-1a over 8-byte words
    return (h ^ v) * 1099511628211ull;
}
uint64_t hash_tensors(const PluginTensorDesc* tensors, int32_t count) {
    uint64_t h = 14695981039346656037ull;
    for (int32_t i = 0; i < count; ++i) {
        h = hash(h, static_cast<uint64_t>(tensors[i].type));
        h = hash(h, static_cast<uint64_t>(tensors[i].dims.nbDims));
        for (int32_t k = 0; k < tensors[i].dims.nbDims; ++k) h = hash(h, static_cast<uint64_t>(tensors[i].dims.d[k]));
    }
    return h;
}

size_t bytes_of(const PluginTensorDesc& t) { return static_cast<size_t>(volume(t.dims, 0, t.dims.nbDims) * element(t)); }

// What a measurement holds; given back in any case.
struct Bench {
    cudaStream_t stream = nullptr;
    cudaEvent_t begin = nullptr, end = nullptr;
    void* memory = nullptr;
    std::vector<cudaGraphExec_t> graphs;

    Bench() = default;
    Bench(const Bench&) = delete;
    Bench& operator=(const Bench&) = delete;
    ~Bench() {
        for (cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
        if (begin) cudaEventDestroy(begin);
        if (end) cudaEventDestroy(end);
        if (stream) cudaStreamDestroy(stream);
        cudaFree(memory);
        cudaGetLastError();
    }
};

// The sets of an op's further inputs, its weights above all, that launches take by turns: as many as are twice the second-level
// cache, since in a network other layers' weights have replaced them there by the next inference.
int input_sets(const std::vector<PluginTensorDesc>& in) {
    int device = 0, cache = 0;
    if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device) != cudaSuccess) return cudaGetLastError(), 1;
    size_t bytes = 0;
    for (size_t i = 1; i < in.size(); ++i) bytes += bytes_of(in[i]);
    return static_cast<int>(std::clamp<size_t>(2 * static_cast<size_t>(cache) / std::max<size_t>(bytes, 1), 1, kMostLaunches));
}

// Microseconds of a launch under each tactic, as in a network: behind another launch whose output is the first input, where
// shapes allow it, and with weights that are not in the cache. `tactics` loses those that cannot be launched.
cudaError_t measure(const Op& op, const std::vector<PluginTensorDesc>& in, const std::vector<PluginTensorDesc>& out, std::vector<int32_t>& tactics, std::vector<float>& best) {
#define TRT_OPT_TRY(call)                                             \
    do {                                                              \
        const cudaError_t status_ = (call);                           \
        if (status_ != cudaSuccess) return cudaGetLastError(), status_; \
    } while (false)
    const int sets = input_sets(in), launches = std::max(sets, kLaunches);
    const bool chains = hash_tensors(&in[0], 1) == hash_tensors(&out[0], 1);
    size_t total = 0;
    auto place = [&](size_t bytes) {
        const size_t offset = total;
        total += (bytes + 255) / 256 * 256;
        return offset;
    };
    std::vector<std::vector<size_t>> input_at(sets);
    std::vector<size_t> output_at;
    for (auto& at : input_at)
        for (size_t i = 0; i < in.size(); ++i) at.push_back(i == 0 && &at != &input_at[0] ? input_at[0][0] : place(bytes_of(in[i])));
    for (const PluginTensorDesc& t : out) output_at.push_back(place(bytes_of(t)));
    const size_t workspace_at = place(op.workspace(in.data()));
    size_t free = 0, all = 0;
    TRT_OPT_TRY(cudaMemGetInfo(&free, &all));
    if (total > free / 2) return cudaErrorMemoryAllocation;

    Bench bench;
    TRT_OPT_TRY(cudaMalloc(&bench.memory, std::max<size_t>(total, 256)));
    TRT_OPT_TRY(cudaStreamCreateWithFlags(&bench.stream, cudaStreamNonBlocking));
    TRT_OPT_TRY(cudaEventCreate(&bench.begin));
    TRT_OPT_TRY(cudaEventCreate(&bench.end));
    TRT_OPT_TRY(cudaMemsetAsync(bench.memory, 0, total, bench.stream));
    TRT_OPT_TRY(cudaStreamSynchronize(bench.stream));
    auto at = [&](size_t offset) -> void* { return static_cast<unsigned char*>(bench.memory) + offset; };

    std::vector<int32_t> launched;
    for (int32_t tactic : tactics) {
        auto run = [&](int launch) {
            std::vector<const void*> inputs;
            std::vector<void*> outputs;
            for (size_t offset : input_at[launch % sets]) inputs.push_back(at(offset));
            for (size_t offset : output_at) outputs.push_back(at(offset));
            if (chains && launch % 2) {
                void* const first = outputs[0];
                outputs[0] = const_cast<void*>(inputs[0]), inputs[0] = first;
            }
            return op.run(in.data(), out.data(), inputs.data(), outputs.data(), at(workspace_at), tactic, bench.stream);
        };
        // Once outside of the graph: functions are loaded by their first launch.
        if (run(0) != cudaSuccess) {
            cudaGetLastError();
            continue;
        }
        TRT_OPT_TRY(cudaStreamBeginCapture(bench.stream, cudaStreamCaptureModeThreadLocal));
        cudaError_t status = cudaSuccess;
        for (int i = 0; i < launches && status == cudaSuccess; ++i) status = run(i);
        cudaGraph_t graph = nullptr;
        const cudaError_t ended = cudaStreamEndCapture(bench.stream, &graph);
        cudaGraphExec_t exec = nullptr;
        if (status == cudaSuccess) status = ended;
        if (status == cudaSuccess) status = cudaGraphInstantiate(&exec, graph, 0);
        if (graph) cudaGraphDestroy(graph);
        TRT_OPT_TRY(status);
        bench.graphs.push_back(exec), launched.push_back(tactic);
    }
    tactics = launched;
    best.assign(tactics.size(), 1e30f);
    for (int round = 0; round < kRounds; ++round)
        for (size_t i = 0; i < bench.graphs.size(); ++i) {
            float ms = 0;
            TRT_OPT_TRY(cudaEventRecord(bench.begin, bench.stream));
            TRT_OPT_TRY(cudaGraphLaunch(bench.graphs[i], bench.stream));
            TRT_OPT_TRY(cudaEventRecord(bench.end, bench.stream));
            TRT_OPT_TRY(cudaEventSynchronize(bench.end));
            TRT_OPT_TRY(cudaEventElapsedTime(&ms, bench.begin, bench.end));
            best[i] = std::min(best[i], 1000 * ms / static_cast<float>(launches));
        }
    return cudaSuccess;
#undef TRT_OPT_TRY
}

int32_t search(const Op& op, const std::vector<PluginTensorDesc>& in, const std::vector<PluginTensorDesc>& out) {
    std::vector<int32_t> tactics = op.tactics(in.data());
    if (tactics.size() < 2) return 0;
    tactics.insert(tactics.begin(), 0);
    std::vector<float> us;
    const std::string name = op.attributes().op();
    if (const cudaError_t status = measure(op, in, out, tactics, us); status != cudaSuccess) {
        log(nvinfer1::ILogger::Severity::kINFO, name + ": its tactics cannot be timed (" + cudaGetErrorString(status) + "); the estimate's choice is taken");
        return 0;
    }
    if (tactics.empty() || tactics[0] != 0) return 0;
    const auto least = static_cast<size_t>(std::min_element(us.begin(), us.end()) - us.begin());
    const size_t chosen = us[least] < kWorthIt * us[0] ? least : 0;
    log(nvinfer1::ILogger::Severity::kVERBOSE, name + ": tactic " + std::to_string(tactics[chosen]) + " of " + std::to_string(tactics.size()) + ", " + std::to_string(us[chosen]) + " us; tactic 0 takes " +
                                                   std::to_string(us[0]) + " us");
    return tactics[chosen];
}

uint32_t checksum(uint32_t tactic, uint64_t tensors) {
    const uint64_t h = hash(hash(14695981039346656037ull, tactic), tensors);
    return static_cast<uint32_t>(h ^ h >> 32);
}

}  // namespace

int32_t TacticChoice::of(const Op& op, const PluginTensorDesc* in) const { return tactic != 0 && hash_tensors(in, op.inputs()) == tensors ? tactic : 0; }

void TacticChoice::write(uint8_t* to) const {
    const uint32_t sum = checksum(static_cast<uint32_t>(tactic), tensors);
    std::memcpy(to, &tactic, 4), std::memcpy(to + 4, &tensors, 8), std::memcpy(to + 12, &sum, 4);
}

bool TacticChoice::read(const uint8_t* from) {
    uint32_t sum = 0;
    std::memcpy(&tactic, from, 4), std::memcpy(&tensors, from + 4, 8), std::memcpy(&sum, from + 12, 4);
    return sum == checksum(static_cast<uint32_t>(tactic), tensors);
}

TacticChoice fastest_tactic(const Op& op, const std::vector<PluginTensorDesc>& in, const std::vector<PluginTensorDesc>& out) {
    static std::mutex mutex;
    static std::map<std::string, int32_t> known;
    TacticChoice choice;
    choice.tensors = hash_tensors(in.data(), static_cast<int32_t>(in.size()));
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return cudaGetLastError(), choice;
    const std::string key = op.attributes().text() + ";" + std::to_string(choice.tensors) + ";" + std::to_string(device);
    // Two threads must not time at once.
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(key);
    choice.tactic = found != known.end() ? found->second : known[key] = search(op, in, out);
    return choice;
}

}  // namespace trt_opt
