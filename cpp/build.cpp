#include "build.h"

#include <NvOnnxParser.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "trt-opt/src/engine/bridge.rs.h"

using namespace nvinfer1;

namespace trt_opt {
namespace {

// Null is TensorRT's way to refuse; why is in its log.
template <class T> std::unique_ptr<T> made(T* object, const char* what) {
    if (!object) throw std::runtime_error(std::string("TensorRT makes no ") + what);
    return std::unique_ptr<T>(object);
}

template <class E> uint32_t bit(E flag) { return 1U << static_cast<uint32_t>(flag); }

Dims dims_of(const rust::Vec<int64_t>& sizes, const std::string& input) {
    Dims d{};
    if (sizes.size() > static_cast<size_t>(Dims::MAX_DIMS)) throw std::invalid_argument("input '" + input + "' is given more axes than TensorRT has");
    d.nbDims = static_cast<int32_t>(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) d.d[i] = static_cast<std::decay_t<decltype(d.d[0])>>(sizes[i]);
    return d;
}

std::string show(const Dims& d) {
    std::string out = "[";
    for (int32_t i = 0; i < d.nbDims; ++i) out += (i ? ", " : "") + (d.d[i] < 0 ? std::string("?") : std::to_string(d.d[i]));
    return out + "]";
}

bool fits(const Dims& open, const Dims& given) {
    bool same = open.nbDims == given.nbDims;
    for (int32_t i = 0; same && i < open.nbDims; ++i) same = open.d[i] < 0 ? given.d[i] >= 0 : open.d[i] == given.d[i];
    return same;
}

#if NV_TENSORRT_MAJOR >= 10
// TensorRT calls it from several threads.
class Progress final : public IProgressMonitor {
public:
    explicit Progress(const Monitor& monitor) : monitor_(monitor) {}
    void phaseStart(char const* phase, char const* parent, int32_t steps) noexcept override { phase_start(monitor_, view(phase), view(parent), steps); }
    bool stepComplete(char const* phase, int32_t step) noexcept override {
        step_complete(monitor_, view(phase), step);
        return true;
    }
    void phaseFinish(char const* phase) noexcept override { phase_finish(monitor_, view(phase)); }

private:
    // As bytes: nothing says that names are UTF-8.
    static rust::Slice<const uint8_t> view(const char* s) {
        const char* known = s ? s : "";
        return {reinterpret_cast<const uint8_t*>(known), std::char_traits<char>::length(known)};
    }
    const Monitor& monitor_;
};
#endif

rust::Vec<ParserError> errors_of(const nvonnxparser::IParser& parser) {
    rust::Vec<ParserError> out;
    for (int32_t i = 0; i < parser.getNbErrors(); ++i) {
        const nvonnxparser::IParserError* e = parser.getError(i);
        if (!e) continue;
        ParserError error{};
        error.node = e->node();
        error.description = text(e->desc());
#if NV_TENSORRT_MAJOR >= 10
        error.name = text(e->nodeName());
        error.op = text(e->nodeOperator());
#endif
        out.push_back(std::move(error));
    }
    return out;
}

// Sizes for the open axes of the inputs: those of the request, else its batch for a first axis.
void give_shapes(IBuilder& builder, INetworkDefinition& network, IBuilderConfig& config, const BuildRequest& request) {
    IOptimizationProfile* profile = nullptr;
    for (const InputShape& s : request.shapes) {
        bool known = false;
        for (int32_t i = 0; i < network.getNbInputs(); ++i) known |= text(network.getInput(i)->getName()) == std::string(s.name);
        if (!known) throw std::invalid_argument("shapes are given for input '" + std::string(s.name) + "', which the model does not have");
    }
    for (int32_t i = 0; i < network.getNbInputs(); ++i) {
        ITensor* const input = network.getInput(i);
        const std::string name = text(input->getName());
        const Dims open = input->getDimensions();
        Dims low = open, best = open, high = open;
        const InputShape* given = nullptr;
        for (const InputShape& s : request.shapes)
            if (std::string(s.name) == name) given = &s;
        if (given) {
            low = dims_of(given->min, name), best = dims_of(given->opt, name), high = dims_of(given->max, name);
            for (const Dims& d : {low, best, high})
                if (!fits(open, d)) throw std::invalid_argument("input '" + name + "' is " + show(open) + " in the model and is given the shape " + show(d));
        } else if (request.batch > 0 && open.nbDims > 0) {
            if (open.d[0] >= 0 && open.d[0] != request.batch) throw std::invalid_argument("input '" + name + "' is " + show(open) + " in the model, so the batch cannot be " + std::to_string(request.batch));
            low.d[0] = static_cast<std::decay_t<decltype(low.d[0])>>(request.batch);
            best = high = low;
        }
        bool closed = true, dynamic = false;
        for (int32_t k = 0; k < open.nbDims; ++k) closed &= best.d[k] >= 0, dynamic |= open.d[k] < 0;
        if (!closed) throw std::invalid_argument("input '" + name + "' is " + show(open) + " in the model: give its open axes sizes, as in --shapes " + name + ":1x3x224x224, or with --batch where only the first is open");
        if (!dynamic) continue;
        if (!profile) profile = builder.createOptimizationProfile();
        if (!profile) throw std::runtime_error("TensorRT makes no optimization profile");
        const bool ok = profile->setDimensions(name.c_str(), OptProfileSelector::kMIN, low) && profile->setDimensions(name.c_str(), OptProfileSelector::kOPT, best) &&
                        profile->setDimensions(name.c_str(), OptProfileSelector::kMAX, high);
        if (!ok) throw std::invalid_argument("input '" + name + "' does not take the shapes " + show(low) + ", " + show(best) + ", " + show(high) + " (smallest, best, largest)");
    }
    if (profile && config.addOptimizationProfile(profile) < 0) throw std::invalid_argument("TensorRT refuses the shapes of the inputs");
}

void set_flags(IBuilderConfig& config, const BuildRequest& request) {
#if NV_TENSORRT_MAJOR < 11
    if (request.fp16) config.setFlag(BuilderFlag::kFP16);
    uint32_t sources = bit(TacticSource::kEDGE_MASK_CONVOLUTIONS) | bit(TacticSource::kJIT_CONVOLUTIONS);
    if (request.cublas) sources |= bit(TacticSource::kCUBLAS);
    if (request.cublas_lt) sources |= bit(TacticSource::kCUBLAS_LT);
    if (request.cudnn) sources |= bit(TacticSource::kCUDNN);
    if (!config.setTacticSources(sources)) throw std::invalid_argument("TensorRT refuses the tactic sources");
#endif
#if NV_TENSORRT_MAJOR == 8
    // As it is from TensorRT 10 on: a second context of an engine may use the same shapes.
    config.setPreviewFeature(PreviewFeature::kPROFILE_SHARING_0806, true);
#endif
    config.setProfilingVerbosity(ProfilingVerbosity::kDETAILED);
    if (request.optimization_level >= 0) config.setBuilderOptimizationLevel(request.optimization_level);
    if (request.workspace > 0) config.setMemoryPoolLimit(MemoryPoolType::kWORKSPACE, request.workspace);
}

#if NV_TENSORRT_MAJOR < 11
bool reads_input_of_network(const ILayer& layer) {
    for (int32_t i = 0; i < layer.getNbInputs(); ++i) {
        const ITensor* const input = layer.getInput(i);
        if (input && input->isNetworkInput()) return true;
    }
    return false;
}

// The op of a plugin's layer; null of any other layer.
const char* plugin_of(ILayer& layer) {
    if (layer.getType() == LayerType::kPLUGIN_V2) return static_cast<IPluginV2Layer&>(layer).getPlugin().getPluginType();
#if NV_TENSORRT_MAJOR >= 10
    if (layer.getType() == LayerType::kPLUGIN_V3) {
        const auto* const core = static_cast<IPluginV3OneCore*>(static_cast<IPluginV3Layer&>(layer).getPlugin().getCapabilityInterface(PluginCapabilityType::kCORE));
        return core ? core->getPluginName() : "";
    }
#endif
    return nullptr;
}

// Whether a plugin gives an output of the network in fp32 though it computes in fp16.
bool gives_float(const ILayer& layer, const char* plugin) {
    const ITensor* const output = std::strcmp(plugin, "TrtOptClassifier") == 0 ? layer.getOutput(0) : nullptr;
    return output && output->isNetworkOutput() && output->getType() == DataType::kFLOAT;
}

// Has plugins compute in fp16 wherever they can. Left to itself the builder times every layer in both types, and a noisy moment
// makes it take fp32 for one of them, with a conversion on either side. Of one that reads an input of the network only the outputs are set: with
// its precision, an image in fp32 that the plugin takes as it is would be converted first. An output of the network that a plugin can give in fp32 is not left
// to a conversion behind it.
void prefer_fp16_plugins(INetworkDefinition& network, IBuilderConfig& config) {
    for (int32_t i = 0; i < network.getNbLayers(); ++i) {
        ILayer* const layer = network.getLayer(i);
        const char* const plugin = plugin_of(*layer);
        if (!plugin) continue;
        if (!reads_input_of_network(*layer)) {
            layer->setPrecision(DataType::kHALF);
            if (gives_float(*layer, plugin)) layer->setOutputType(0, DataType::kFLOAT);
            continue;
        }
        for (int32_t output = 0; output < layer->getNbOutputs(); ++output) layer->setOutputType(output, DataType::kHALF);
    }
    config.setFlag(BuilderFlag::kPREFER_PRECISION_CONSTRAINTS);
}
#endif

void copy(const IHostMemory& memory, rust::Vec<uint8_t>& out) { append(out, {static_cast<const uint8_t*>(memory.data()), memory.size()}); }

}  // namespace

Builder::Builder(size_t create) : builder_(created<IBuilder>(function<void* (*)(void*, int32_t)>(create)(&logger(), NV_TENSORRT_VERSION), "builder")) {}

void Builder::load(const rust::Vec<rust::String>& plugins) {
    // What is in the builder's own registry the runtime of the engine does not know, so it loads them too.
    for (const rust::String& plugin : plugins) {
        std::string path(plugin);
        if (plugins_.count(path)) continue;
        if (!builder_->getPluginRegistry().loadLibrary(path.c_str())) throw std::runtime_error("the builder does not load the plugin library " + path);
        plugins_.insert(std::move(path));
    }
}

// Sets the cache of the builds before this one, else the one that is given, else an empty one. False if the one given
// is refused: it is of another GPU or TensorRT, or one that TensorRT 8.6 wrote and does not read again, after which it
// may take none at all.
bool Builder::use_timings(IBuilderConfig& config, rust::Slice<const uint8_t> given) {
    const auto take = [&](const void* bytes, size_t size) {
        cache_.reset(config.createTimingCache(bytes, size));
        if (cache_ && !config.setTimingCache(*cache_, false)) cache_.reset();
        return cache_ != nullptr;
    };
    if (cache_ && config.setTimingCache(*cache_, false)) return true;
    if (!given.empty() && take(given.data(), given.size())) return true;
    take(nullptr, 0);
    return given.empty();
}

Built Builder::build(size_t create_parser, const BuildRequest& request, const Monitor& monitor) {
    Built out{};
    const auto begin = std::chrono::steady_clock::now();
    load(request.plugins);
#if NV_TENSORRT_MAJOR < 10
    const uint32_t creation = bit(NetworkDefinitionCreationFlag::kEXPLICIT_BATCH);
#elif NV_TENSORRT_MAJOR < 11
    const uint32_t creation = request.strongly_typed ? bit(NetworkDefinitionCreationFlag::kSTRONGLY_TYPED) : 0;
#else
    const uint32_t creation = 0;  // always strongly typed
#endif
    const auto network = made(builder_->createNetworkV2(creation), "network");
    const auto config = made(builder_->createBuilderConfig(), "builder configuration");
    auto* const parser = created<nvonnxparser::IParser>(function<void* (*)(void*, void*, int)>(create_parser)(network.get(), &logger(), NV_ONNX_PARSER_VERSION), "ONNX parser");
#if NV_TENSORRT_MAJOR >= 10
    const std::unique_ptr<nvonnxparser::IParser> owner(parser);
#endif  // Before, it is never deleted: where the destructor stands in its table of virtual functions differs between 8.6.0 and 8.6.1.
    if (!parser->parseFromFile(std::string(request.model).c_str(), static_cast<int32_t>(ILogger::Severity::kWARNING))) {
        out.errors = errors_of(*parser);
        if (out.errors.empty()) throw std::runtime_error("the parser refuses the model and does not say why");
        return out;
    }
    set_flags(*config, request);
#if NV_TENSORRT_MAJOR < 11
    if (request.fp16 && !request.strongly_typed) prefer_fp16_plugins(*network, *config);
#endif
    out.timings_refused = request.timing_cache && !use_timings(*config, {request.timings.data(), request.timings.size()});
    give_shapes(*builder_, *network, *config, request);
#if NV_TENSORRT_MAJOR >= 10
    Progress progress(monitor);
    config->setProgressMonitor(&progress);
#else
    static_cast<void>(monitor);
#endif
    const auto plan = made(builder_->buildSerializedNetwork(*network, *config), "engine");
    copy(*plan, out.plan);
    out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return out;
}

rust::Vec<uint8_t> Builder::timings(rust::Slice<const uint8_t> others) {
    rust::Vec<uint8_t> out;
    if (!cache_) return out;
    if (!others.empty()) {
        const auto config = made(builder_->createBuilderConfig(), "builder configuration");
        const auto more = made(config->createTimingCache(others.data(), others.size()), "timing cache");
        if (!cache_->combine(*more, false)) throw std::invalid_argument("TensorRT does not combine the timing caches");
    }
    copy(*made(cache_->serialize(), "copy of the timing cache"), out);
    return out;
}

std::unique_ptr<Builder> new_builder(size_t create) { return std::make_unique<Builder>(create); }

}  // namespace trt_opt
