#include "runtime.h"

#include <algorithm>

#include "trt-opt/src/engine/bridge.rs.h"

using namespace nvinfer1;

namespace trt_opt {
namespace {

class Profiler final : public IProfiler {
public:
    void reportLayerTime(char const* name, float ms) noexcept override {
        // Out of memory is the only way to fail, and ends the program.
        times.push_back({text(name), ms});
    }
    rust::Vec<LayerTime> times;
};

rust::Vec<int64_t> sizes_of(const Dims& d) {
    rust::Vec<int64_t> out;
    for (int32_t i = 0; i < d.nbDims; ++i) out.push_back(d.d[i]);
    return out;
}

ElementType type_of(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return ElementType::Float32;
        case DataType::kHALF: return ElementType::Float16;
        case DataType::kINT8: return ElementType::Int8;
        case DataType::kINT32: return ElementType::Int32;
        case DataType::kBOOL: return ElementType::Bool;
        case DataType::kUINT8: return ElementType::UInt8;
#if NV_TENSORRT_MAJOR >= 10
        case DataType::kBF16: return ElementType::BFloat16;
        case DataType::kINT64: return ElementType::Int64;
#endif
        default: return ElementType::Other;
    }
}

}  // namespace

rust::Vec<TensorInfo> Engine::tensors() const {
    rust::Vec<TensorInfo> out;
    const bool profiled = engine_->getNbOptimizationProfiles() > 0;
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
        const char* const name = engine_->getIOTensorName(i);
        TensorInfo info{};
        info.name = text(name);
        info.input = engine_->getTensorIOMode(name) == TensorIOMode::kINPUT;
        info.kind = type_of(engine_->getTensorDataType(name));
        info.on_device = engine_->getTensorLocation(name) == TensorLocation::kDEVICE;
        info.shape = sizes_of(engine_->getTensorShape(name));
        const bool open = std::find(info.shape.begin(), info.shape.end(), -1) != info.shape.end();
        if (info.input && open && profiled && info.on_device) {
            info.min = sizes_of(engine_->getProfileShape(name, 0, OptProfileSelector::kMIN));
            info.opt = sizes_of(engine_->getProfileShape(name, 0, OptProfileSelector::kOPT));
            info.max = sizes_of(engine_->getProfileShape(name, 0, OptProfileSelector::kMAX));
        }
        out.push_back(std::move(info));
    }
    return out;
}

rust::Vec<uint8_t> Engine::information() const {
    const std::unique_ptr<IEngineInspector> inspector(engine_->createEngineInspector());
    if (!inspector) throw std::runtime_error("TensorRT makes no engine inspector");
    const char* const json = inspector->getEngineInformation(LayerInformationFormat::kJSON);
    if (!json) throw std::runtime_error("TensorRT's inspector says nothing of the engine");
    rust::Vec<uint8_t> out;
    append(out, {reinterpret_cast<const uint8_t*>(json), std::char_traits<char>::length(json)});
    return out;
}

uint64_t Engine::device_memory() const {
#if NV_TENSORRT_MAJOR >= 11
    return static_cast<uint64_t>(engine_->getDeviceMemorySizeV2());
#else
    return engine_->getDeviceMemorySize();
#endif
}

Context::Context(std::shared_ptr<Engine> engine) : engine_(std::move(engine)), context_(engine_->get().createExecutionContext()) {
    if (!context_) throw std::runtime_error("TensorRT makes no execution context");
}

void Context::set_input_shape(const rust::String& name, rust::Slice<const int64_t> dims) {
    const std::string n(name);
    Dims d{};
    if (dims.size() > static_cast<size_t>(Dims::MAX_DIMS)) throw std::invalid_argument("input '" + n + "' is given more axes than TensorRT has");
    d.nbDims = static_cast<int32_t>(dims.size());
    for (size_t i = 0; i < dims.size(); ++i) d.d[i] = static_cast<std::decay_t<decltype(d.d[0])>>(dims[i]);
    if (!context_->setInputShape(n.c_str(), d)) throw std::invalid_argument("input '" + n + "' does not take this shape");
}

rust::Vec<int64_t> Context::shape(const rust::String& name) const {
    const std::string n(name);
    const Dims d = context_->getTensorShape(n.c_str());
    if (d.nbDims < 0) throw std::runtime_error("the shape of '" + n + "' is not known");
    for (int32_t i = 0; i < d.nbDims; ++i)
        if (d.d[i] < 0) throw std::runtime_error("the shape of '" + n + "' depends on values or on a shape that was not given");
    return sizes_of(d);
}

void Context::set_address(const rust::String& name, size_t address) {
    const std::string n(name);
    if (!context_->setTensorAddress(n.c_str(), reinterpret_cast<void*>(address))) throw std::runtime_error("'" + n + "' does not take its address");
}

void Context::enqueue(size_t stream) {
    if (!context_->enqueueV3(reinterpret_cast<cudaStream_t>(stream))) throw std::runtime_error("the inference was not enqueued");
}

std::unique_ptr<Context> Context::twin() const {
    auto other = std::make_unique<Context>(engine_);
    const ICudaEngine& engine = engine_->get();
    for (int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
        const char* const name = engine.getIOTensorName(i);
        const bool input = engine.getTensorIOMode(name) == TensorIOMode::kINPUT;
        bool taken = !input || other->context_->setInputShape(name, context_->getTensorShape(name));
        taken = taken && other->context_->setTensorAddress(name, const_cast<void*>(context_->getTensorAddress(name)));
        if (!taken) throw std::runtime_error("a second execution context does not take '" + text(name) + "' of the first");
    }
    return other;
}

rust::Vec<LayerTime> Context::profile(size_t stream) {
    auto* profiler = static_cast<Profiler*>(profiler_.get());
    if (!profiler) {
        profiler = new Profiler;
        profiler_.reset(profiler);
        context_->setProfiler(profiler);
    }
    profiler->times.clear();
    // With a profiler, enqueuing waits for the GPU and reports.
    enqueue(stream);
    return std::move(profiler->times);
}

std::shared_ptr<Engine> deserialize(size_t create, rust::Slice<const uint8_t> plan, const rust::Vec<rust::String>& plugins) {
    std::unique_ptr<IRuntime> runtime(created<IRuntime>(function<void* (*)(void*, int32_t)>(create)(&logger(), NV_TENSORRT_VERSION), "runtime"));
    for (const rust::String& plugin : plugins)
        if (!runtime->getPluginRegistry().loadLibrary(std::string(plugin).c_str())) throw std::runtime_error("the runtime does not load the plugin library " + std::string(plugin));
    std::unique_ptr<ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) throw std::runtime_error("the engine is refused");
    return std::make_shared<Engine>(std::move(runtime), std::move(engine));
}

std::unique_ptr<Context> new_context(std::shared_ptr<Engine> engine) { return std::make_unique<Context>(std::move(engine)); }

}  // namespace trt_opt
