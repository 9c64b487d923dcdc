// Builds an engine from ONNX with a plugin library and runs it, in TensorRT 8.6 (also compiles against 10).
//
//   trt_runner --lib DIR [--onnx FILE --save FILE | --engine FILE] [--plugin LIB] [--fp16]
//              [--input NAME=FILE.npy]... [--timing-cache FILE] [--dump DIR] [--layers FILE]
//              [--iterations N] [--json FILE] [--build-only]
//
// DIR holds libnvinfer.so.8 and libnvonnxparser.so.8. Dynamic dimensions take those of the inputs given; inputs
// not given are random. Timing: one CUDA graph of the whole inference, replayed N times, each between two events.
// Outputs go to DIR/<name>.npy as float32, the engine's layers to FILE as TensorRT's JSON. Tactics of cuBLAS,
// cuBLASLt and cuDNN are off, so those libraries are not needed.
#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

[[noreturn]] void fail(const std::string& message) {
    std::fprintf(stderr, "trt_runner: %s\n", message.c_str());
    std::exit(1);
}
void cuda(cudaError_t status, const char* what) {
    if (status != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(status));
}
#define CUDA(call) cuda(call, #call)

std::string library_folder;

void* tensorrt(const char* file) {
    static std::map<std::string, void*> open;
    void*& handle = open[file];
    if (!handle) {
        handle = dlopen((library_folder + "/" + file).c_str(), RTLD_LAZY | RTLD_GLOBAL);
        if (!handle) fail(dlerror());
    }
    return handle;
}
template <class F> F symbol(const char* file, const char* name) {
    void* found = dlsym(tensorrt(file), name);
    if (!found) fail(std::string(file) + " has no " + name);
    return reinterpret_cast<F>(found);
}
#define NV_STRING_(x) #x
#define NV_STRING(x) NV_STRING_(x)
constexpr const char* kInfer = "libnvinfer.so." NV_STRING(NV_TENSORRT_MAJOR);
constexpr const char* kParser = "libnvonnxparser.so." NV_STRING(NV_TENSORRT_MAJOR);

class Logger final : public ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "[%s] %s\n", severity <= Severity::kERROR ? "E" : "W", message);
    }
} logger;

std::vector<char> read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    if (!in) fail("cannot read " + path);
    return std::vector<char>(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
}
void write_file(const std::string& path, const void* data, size_t size) {
    std::ofstream out(path, std::ios::binary);
    if (!out.write(static_cast<const char*>(data), static_cast<std::streamsize>(size))) fail("cannot write " + path);
}

struct Array {
    std::vector<int64_t> shape;
    std::vector<float> data;
};
Array read_npy(const std::string& path) {
    const std::vector<char> file = read_file(path);
    if (file.size() < 10 || std::memcmp(file.data(), "\x93NUMPY", 6) != 0 || file[6] != 1) fail(path + " is not a version 1 .npy file");
    const size_t header = static_cast<unsigned char>(file[8]) | static_cast<unsigned char>(file[9]) << 8;
    const std::string text(file.data() + 10, header);
    if (text.find("'<f4'") == std::string::npos || text.find("'fortran_order': False") == std::string::npos) fail(path + " is not a C-order float32 array");
    Array a;
    const size_t open = text.find('('), close = text.find(')');
    std::stringstream dims(text.substr(open + 1, close - open - 1));
    int64_t count = 1;
    for (std::string item; std::getline(dims, item, ',');)
        if (item.find_first_not_of(' ') != std::string::npos) a.shape.push_back(std::stoll(item)), count *= a.shape.back();
    if (file.size() < 10 + header + static_cast<size_t>(count) * 4) fail(path + " is cut short");
    a.data.resize(static_cast<size_t>(count));
    std::memcpy(a.data.data(), file.data() + 10 + header, a.data.size() * 4);
    return a;
}
void write_npy(const std::string& path, const Array& a) {
    std::string text = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
    for (int64_t d : a.shape) text += std::to_string(d) + ", ";
    text += "), }";
    while ((10 + text.size() + 1) % 64) text += ' ';
    text += '\n';
    std::string file("\x93NUMPY\x01\x00", 8);
    file += static_cast<char>(text.size() & 255);
    file += static_cast<char>(text.size() >> 8);
    file += text;
    file.append(reinterpret_cast<const char*>(a.data.data()), a.data.size() * 4);
    write_file(path, file.data(), file.size());
}

Dims dims_of(const Array& a) {
    Dims d{};
    d.nbDims = static_cast<int32_t>(a.shape.size());
    for (size_t i = 0; i < a.shape.size(); ++i) d.d[i] = static_cast<int32_t>(a.shape[i]);
    return d;
}
int64_t volume(const Dims& d) {
    int64_t v = 1;
    for (int32_t i = 0; i < d.nbDims; ++i) v *= d.d[i];
    return v;
}
size_t element(DataType t) {
    switch (t) {
        case DataType::kHALF: return 2;
        case DataType::kFLOAT: case DataType::kINT32: return 4;
        case DataType::kBOOL: case DataType::kINT8: return 1;
        default: fail("an input or output has a type that is not supported here");
    }
}

struct Settings {
    std::string onnx, save, engine, plugin, timing_cache, dump, layers, json;
    std::map<std::string, Array> inputs;
    bool fp16 = false, build_only = false;
    int iterations = 200;
};

using Bytes = std::vector<char>;

Bytes build(const Settings& s, double& seconds) {
    const auto begin = std::chrono::steady_clock::now();
    std::unique_ptr<IBuilder> builder(createInferBuilder(logger));
    if (!builder) fail("no builder");
    if (!s.plugin.empty() && !builder->getPluginRegistry().loadLibrary(s.plugin.c_str())) fail("the builder's registry refuses " + s.plugin);
    std::unique_ptr<INetworkDefinition> network(builder->createNetworkV2(1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kEXPLICIT_BATCH)));
    // Never deleted: where the destructor stands in the parser's table of virtual functions differs between 8.6.0 and 8.6.1.
    nvonnxparser::IParser* const parser = nvonnxparser::createParser(*network, logger);
    if (!parser) fail("no parser");
    if (!parser->parseFromFile(s.onnx.c_str(), static_cast<int32_t>(ILogger::Severity::kWARNING))) {
        for (int32_t i = 0; i < parser->getNbErrors(); ++i) std::fprintf(stderr, "%s\n", parser->getError(i)->desc());
        fail("cannot parse " + s.onnx);
    }
    std::unique_ptr<IBuilderConfig> config(builder->createBuilderConfig());
    const uint32_t sources = 1U << static_cast<uint32_t>(TacticSource::kEDGE_MASK_CONVOLUTIONS) | 1U << static_cast<uint32_t>(TacticSource::kJIT_CONVOLUTIONS);
    config->setTacticSources(sources);
    config->setProfilingVerbosity(ProfilingVerbosity::kDETAILED);
    if (s.fp16) config->setFlag(BuilderFlag::kFP16);
    Bytes cached;
    if (!s.timing_cache.empty() && std::ifstream(s.timing_cache).good()) cached = read_file(s.timing_cache);
    std::unique_ptr<ITimingCache> cache(config->createTimingCache(cached.data(), cached.size()));
    if (cache) config->setTimingCache(*cache, true);

    IOptimizationProfile* profile = builder->createOptimizationProfile();
    bool dynamic = false;
    for (int32_t i = 0; i < network->getNbInputs(); ++i) {
        ITensor* input = network->getInput(i);
        Dims d = input->getDimensions();
        bool open = false;
        for (int32_t k = 0; k < d.nbDims; ++k) open |= d.d[k] < 0;
        if (!open) continue;
        dynamic = true;
        const auto given = s.inputs.find(input->getName());
        if (given == s.inputs.end()) fail(std::string("input ") + input->getName() + " has dynamic dimensions: give it by --input");
        d = dims_of(given->second);
        for (OptProfileSelector which : {OptProfileSelector::kMIN, OptProfileSelector::kOPT, OptProfileSelector::kMAX}) profile->setDimensions(input->getName(), which, d);
    }
    if (dynamic) config->addOptimizationProfile(profile);
    std::unique_ptr<IHostMemory> plan(builder->buildSerializedNetwork(*network, *config));
    if (!plan) fail("the engine of " + s.onnx + " was not built");
    if (cache && !s.timing_cache.empty()) {
        std::unique_ptr<IHostMemory> bytes(config->getTimingCache()->serialize());
        write_file(s.timing_cache, bytes->data(), bytes->size());
    }
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    const char* p = static_cast<const char*>(plan->data());
    return Bytes(p, p + plan->size());
}

struct Stats {
    double p50 = 0, p99 = 0, minimum = 0;
};
Stats statistics(std::vector<float> times) {
    std::sort(times.begin(), times.end());
    const auto at = [&](double q) { return static_cast<double>(times[static_cast<size_t>(q * static_cast<double>(times.size() - 1))]); };
    return {at(0.5), at(0.99), at(0.)};
}

}  // namespace

// What the headers' inline functions call, found in the libraries at run time.
extern "C" {
void* createInferBuilder_INTERNAL(void* l, int32_t version) noexcept { return symbol<void* (*)(void*, int32_t)>(kInfer, "createInferBuilder_INTERNAL")(l, version); }
void* createInferRuntime_INTERNAL(void* l, int32_t version) noexcept { return symbol<void* (*)(void*, int32_t)>(kInfer, "createInferRuntime_INTERNAL")(l, version); }
void* createNvOnnxParser_INTERNAL(void* network, void* l, int version) noexcept { return symbol<void* (*)(void*, void*, int)>(kParser, "createNvOnnxParser_INTERNAL")(network, l, version); }
}

int main(int argc, char** argv) {
    Settings s;
    for (int i = 1; i < argc; ++i) {
        const std::string a = argv[i];
        const auto value = [&] { return i + 1 < argc ? std::string(argv[++i]) : (fail(a + " needs a value"), std::string()); };
        if (a == "--lib") library_folder = value();
        else if (a == "--onnx") s.onnx = value();
        else if (a == "--save") s.save = value();
        else if (a == "--engine") s.engine = value();
        else if (a == "--plugin") s.plugin = value();
        else if (a == "--timing-cache") s.timing_cache = value();
        else if (a == "--dump") s.dump = value();
        else if (a == "--layers") s.layers = value();
        else if (a == "--json") s.json = value();
        else if (a == "--iterations") s.iterations = std::atoi(value().c_str());
        else if (a == "--fp16") s.fp16 = true;
        else if (a == "--build-only") s.build_only = true;
        else if (a == "--input") {
            const std::string v = value();
            const size_t equals = v.find('=');
            if (equals == std::string::npos) fail("--input takes NAME=FILE.npy");
            s.inputs[v.substr(0, equals)] = read_npy(v.substr(equals + 1));
        } else fail("unknown argument " + a);
    }
    if (library_folder.empty() || s.onnx.empty() == s.engine.empty()) fail("--lib and one of --onnx, --engine are needed");
    double seconds = 0;
    const Bytes plan = s.engine.empty() ? build(s, seconds) : read_file(s.engine);
    if (!s.save.empty()) write_file(s.save, plan.data(), plan.size());
    if (s.build_only) return 0;

    std::unique_ptr<IRuntime> runtime(createInferRuntime(logger));
    if (!s.plugin.empty() && !runtime->getPluginRegistry().loadLibrary(s.plugin.c_str())) fail("the runtime's registry refuses " + s.plugin);
    std::unique_ptr<ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) fail("the engine is refused");
    std::unique_ptr<IExecutionContext> context(engine->createExecutionContext());
    if (!context) fail("no context");
    int32_t layers = engine->getNbLayers();
    if (!s.layers.empty()) {
        std::unique_ptr<IEngineInspector> inspector(engine->createEngineInspector());
        const std::string text = inspector->getEngineInformation(LayerInformationFormat::kJSON);
        write_file(s.layers, text.data(), text.size());
    }

    cudaStream_t stream;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    std::map<std::string, void*> memory;
    std::mt19937 rng(1);
    for (int32_t i = 0; i < engine->getNbIOTensors(); ++i) {
        const char* name = engine->getIOTensorName(i);
        if (engine->getTensorIOMode(name) != TensorIOMode::kINPUT) continue;
        Dims d = engine->getTensorShape(name);
        const DataType type = engine->getTensorDataType(name);
        const auto given = s.inputs.find(name);
        if (given != s.inputs.end()) d = dims_of(given->second);
        if (!context->setInputShape(name, d)) fail(std::string("input ") + name + " does not take its shape");
        const auto count = static_cast<size_t>(volume(d));
        std::vector<float> values(count);
        if (given != s.inputs.end()) values = given->second.data;
        else
            for (float& v : values) v = std::normal_distribution<float>()(rng);
        std::vector<char> raw(count * element(type));
        for (size_t k = 0; k < count; ++k) {
            if (type == DataType::kFLOAT) std::memcpy(raw.data() + 4 * k, &values[k], 4);
            else if (type == DataType::kHALF) {
                const __half h = __float2half(values[k]);
                std::memcpy(raw.data() + 2 * k, &h, 2);
            } else fail(std::string("input ") + name + " is neither float nor half");
        }
        CUDA(cudaMalloc(&memory[name], std::max<size_t>(raw.size(), 1)));
        CUDA(cudaMemcpy(memory[name], raw.data(), raw.size(), cudaMemcpyHostToDevice));
        context->setTensorAddress(name, memory[name]);
    }
    for (int32_t i = 0; i < engine->getNbIOTensors(); ++i) {
        const char* name = engine->getIOTensorName(i);
        if (engine->getTensorIOMode(name) != TensorIOMode::kOUTPUT) continue;
        const size_t bytes = static_cast<size_t>(volume(context->getTensorShape(name))) * element(engine->getTensorDataType(name));
        CUDA(cudaMalloc(&memory[name], std::max<size_t>(bytes, 1)));
        CUDA(cudaMemset(memory[name], 0xff, bytes));
        context->setTensorAddress(name, memory[name]);
    }
    for (int i = 0; i < 3; ++i)
        if (!context->enqueueV3(stream)) fail("enqueue failed");
    CUDA(cudaStreamSynchronize(stream));

    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const bool captured = context->enqueueV3(stream);
    CUDA(cudaStreamEndCapture(stream, &graph));
    if (!captured) fail("enqueue failed under capture");
    size_t nodes = 0;
    CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (const auto& m : memory)
        if (engine->getTensorIOMode(m.first.c_str()) == TensorIOMode::kOUTPUT)
            CUDA(cudaMemset(m.second, 0xff, static_cast<size_t>(volume(context->getTensorShape(m.first.c_str()))) * element(engine->getTensorDataType(m.first.c_str()))));
    CUDA(cudaDeviceSynchronize());
    cudaEvent_t begin, end;
    CUDA(cudaEventCreate(&begin));
    CUDA(cudaEventCreate(&end));
    const auto measure = [&](auto&& launch) {
        std::vector<float> times;
        for (int i = 0; i < s.iterations + 20; ++i) {
            CUDA(cudaEventRecord(begin, stream));
            launch();
            CUDA(cudaEventRecord(end, stream));
            CUDA(cudaEventSynchronize(end));
            float ms = 0;
            CUDA(cudaEventElapsedTime(&ms, begin, end));
            if (i >= 20) times.push_back(ms * 1000.f);
        }
        return statistics(times);
    };
    const Stats by_graph = measure([&] { CUDA(cudaGraphLaunch(exec, stream)); });
    // Outputs are those of graph replays.
    double bad = 0;
    for (const auto& m : memory) {
        const char* name = m.first.c_str();
        if (engine->getTensorIOMode(name) != TensorIOMode::kOUTPUT) continue;
        const Dims d = context->getTensorShape(name);
        const DataType type = engine->getTensorDataType(name);
        Array a;
        a.data.resize(static_cast<size_t>(volume(d)));
        for (int32_t k = 0; k < d.nbDims; ++k) a.shape.push_back(d.d[k]);
        std::vector<char> raw(a.data.size() * element(type));
        CUDA(cudaMemcpy(raw.data(), m.second, raw.size(), cudaMemcpyDeviceToHost));
        for (size_t k = 0; k < a.data.size(); ++k) {
            if (type == DataType::kFLOAT) std::memcpy(&a.data[k], raw.data() + 4 * k, 4);
            else if (type == DataType::kHALF) {
                __half h;
                std::memcpy(&h, raw.data() + 2 * k, 2);
                a.data[k] = __half2float(h);
            } else fail(std::string("output ") + name + " is neither float nor half");
            if (!(a.data[k] - a.data[k] == 0.f)) ++bad;
        }
        if (!s.dump.empty()) write_npy(s.dump + "/" + m.first + ".npy", a);
    }
    const Stats plain = measure([&] {
        if (!context->enqueueV3(stream)) fail("enqueue failed");
    });
    char text[512];
    std::snprintf(text, sizeof(text),
                  "{\"graph_p50_us\":%.2f,\"graph_p99_us\":%.2f,\"graph_min_us\":%.2f,\"enqueue_p50_us\":%.2f,\"graph_nodes\":%zu,\"layers\":%d,\"build_s\":%.1f,\"engine_mb\":%.1f,\"not_finite\":%.0f}\n",
                  by_graph.p50, by_graph.p99, by_graph.minimum, plain.p50, nodes, layers, seconds, static_cast<double>(plan.size()) / 1e6, bad);
    std::printf("%s", text);
    if (!s.json.empty()) write_file(s.json, text, std::strlen(text));
    return bad == 0 ? 0 : 1;
}
