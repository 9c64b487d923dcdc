// Checks a library of IPluginV3 creators without a GPU.
//
//   check_v3 LIBRARY                    creators made, refused and round-tripped
//   check_v3 LIBRARY --tensorrt LIB     loaded by the registry of a real TensorRT of the headers' major version
//   check_v3 LIBRARY --dump             field lists as JSON
#include <memory>

#include "check.h"

using namespace nvinfer1;
using namespace check;

namespace {

using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
using SetLoggerFinder = void (*)(ILoggerFinder*);

IPluginCreatorV3One* as_v3(IPluginCreatorInterface* creator) {
    return std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0 ? static_cast<IPluginCreatorV3One*>(creator) : nullptr;
}

std::string serialized(IPluginV3* plugin, std::vector<PluginField>* out = nullptr) {
    auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    const PluginFieldCollection* fields = runtime->getFieldsToSerialize();
    if (!fields) return "nothing";
    std::string text;
    for (int32_t i = 0; i < fields->nbFields; ++i) {
        text += show(fields->fields[i]) + "\n";
        if (out) out->push_back(fields->fields[i]);
    }
    return text;
}

void round_trips(Logger& logger, const std::map<std::string, IPluginCreatorV3One*>& creators) {
    for (const Op& op : ops()) {
        IPluginCreatorV3One* creator = creators.at(op.name);
        for (const Fields& valid : op.valid) {
            auto f = fields_of(valid);
            const PluginFieldCollection all{static_cast<int32_t>(f.size()), f.data()};
            std::unique_ptr<IPluginV3> plugin(creator->createPlugin("p", &all, TensorRTPhase::kBUILD));
            if (!plugin) continue;  // reported by `creation`
            std::vector<PluginField> kept;
            const std::string first = serialized(plugin.get(), &kept);
            const PluginFieldCollection stored{static_cast<int32_t>(kept.size()), kept.data()};
            std::unique_ptr<IPluginV3> again(creator->createPlugin("p", &stored, TensorRTPhase::kRUNTIME));
            expect(again && serialized(again.get()) == first, std::string(op.name) + " round-trips its fields");
            std::unique_ptr<IPluginV3> copy(plugin->clone());
            expect(copy && serialized(copy.get()) == first, std::string(op.name) + " clones");
            auto* core = static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
            expect(std::string(core->getPluginName()) == op.name && std::string(core->getPluginVersion()) == "1" && std::string(core->getPluginNamespace()) == "trt_opt", std::string(op.name) + " has its name, version and namespace");
            auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
            expect(build->getTimingCacheID() && std::string(build->getTimingCacheID()).find(op.name) == 0, std::string(op.name) + " has a timing cache id");
            // Spoiled stores are refused: another version, no version, each field missing.
            int32_t other = 99;
            std::vector<PluginField> newer = kept;
            newer[0].data = &other;
            PluginFieldCollection bad{static_cast<int32_t>(newer.size()), newer.data()};
            logger.clear();
            expect(!creator->createPlugin("p", &bad, TensorRTPhase::kRUNTIME) && logger.errors.find("format 99") != std::string::npos, std::string(op.name) + " refuses another version");
            for (size_t i = 0; i < kept.size(); ++i) {
                std::vector<PluginField> fewer = kept;
                fewer.erase(fewer.begin() + static_cast<long>(i));
                bad = {static_cast<int32_t>(fewer.size()), fewer.data()};
                logger.clear();
                expect(!creator->createPlugin("p", &bad, TensorRTPhase::kRUNTIME) && logger.errors.find("missing") != std::string::npos, std::string(op.name) + " refuses a store without '" + kept[i].name + "'");
            }
            std::vector<PluginField> hollow = kept;
            for (auto& field : hollow) field.data = nullptr;
            bad = {static_cast<int32_t>(hollow.size()), hollow.data()};
            expect(!creator->createPlugin("p", &bad, TensorRTPhase::kRUNTIME), std::string(op.name) + " refuses a store without data");
        }
    }
}

// Formats, types and counts that a plugin says it takes.
void formats(const std::map<std::string, IPluginCreatorV3One*>& creators) {
    const Op op = ops()[0];
    auto f = fields_of(op.valid[0]);  // layer norm with residual: 4 inputs, 2 outputs
    const PluginFieldCollection all{static_cast<int32_t>(f.size()), f.data()};
    std::unique_ptr<IPluginV3> plugin(creators.at(op.name)->createPlugin("p", &all, TensorRTPhase::kBUILD));
    auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    expect(build->getNbOutputs() == 2, "a layer norm with residual has two outputs");
    DynamicPluginTensorDesc tensors[7]{};
    const auto fits = [&](DataType first, DataType second, TensorFormat format) {
        for (auto& t : tensors) t.desc.type = first, t.desc.format = TensorFormat::kLINEAR;
        tensors[1].desc.type = second, tensors[1].desc.format = format;
        return build->supportsFormatCombination(0, tensors, 4, 2) && build->supportsFormatCombination(1, tensors, 4, 2);
    };
    expect(fits(DataType::kHALF, DataType::kHALF, TensorFormat::kLINEAR), "fp16 is taken");
    expect(fits(DataType::kFLOAT, DataType::kFLOAT, TensorFormat::kLINEAR), "fp32 is taken");
    expect(!fits(DataType::kHALF, DataType::kFLOAT, TensorFormat::kLINEAR), "mixed types are refused");
    expect(!fits(DataType::kINT32, DataType::kINT32, TensorFormat::kLINEAR), "int32 is refused");
    expect(!fits(DataType::kHALF, DataType::kHALF, TensorFormat::kCHW32), "other formats are refused");
    expect(!build->supportsFormatCombination(0, tensors, 3, 2), "a wrong number of inputs is refused");

    f = fields_of(op.valid[2]);  // with a residual and a part
    const PluginFieldCollection part{static_cast<int32_t>(f.size()), f.data()};
    plugin.reset(creators.at(op.name)->createPlugin("p", &part, TensorRTPhase::kBUILD));
    build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    for (auto& t : tensors) t.desc.type = DataType::kHALF, t.desc.format = TensorFormat::kLINEAR;
    expect(build->getNbOutputs() == 2 && build->supportsFormatCombination(0, tensors, 5, 2), "a residual and a part make five inputs and two outputs");
    expect(!build->supportsFormatCombination(0, tensors, 4, 2), "four inputs are refused where there is a part");

    const Op embed = op_with_image();
    f = fields_of(embed.valid[0]);
    const PluginFieldCollection image{static_cast<int32_t>(f.size()), f.data()};
    plugin.reset(creators.at(embed.name)->createPlugin("p", &image, TensorRTPhase::kBUILD));
    build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    auto takes = [&](IPluginV3OneBuild* of, int32_t inputs) {
        return [&tensors, of, inputs](DataType first, DataType rest) {
            for (auto& t : tensors) t.desc.type = rest, t.desc.format = TensorFormat::kLINEAR;
            tensors[0].desc.type = first;
            for (int32_t i = 0; i <= inputs; ++i)
                if (!of->supportsFormatCombination(i, tensors, inputs, 1)) return false;
            return true;
        };
    };
    image_types(takes(build, 5));
    auto plain = fields_of(embed.valid[1]);
    const PluginFieldCollection of_tokens{static_cast<int32_t>(plain.size()), plain.data()};
    std::unique_ptr<IPluginV3> tokens(creators.at(embed.name)->createPlugin("p", &of_tokens, TensorRTPhase::kBUILD));
    token_types(takes(static_cast<IPluginV3OneBuild*>(tokens->getCapabilityInterface(PluginCapabilityType::kBUILD)), 2));
    const DataType in[5] = {DataType::kFLOAT, DataType::kHALF, DataType::kHALF, DataType::kHALF, DataType::kHALF};
    DataType out = DataType::kINT32;
    expect(build->getOutputDataTypes(&out, 1, in, 5) == 0 && out == DataType::kHALF, "an embedding's tokens are of the type of its weights");

    outputs_of_words([&](const PluginFieldCollection* fields) {
        std::unique_ptr<IPluginV3> made(creators.at("TrtOptTntWords")->createPlugin("p", fields, TensorRTPhase::kBUILD));
        return made ? static_cast<IPluginV3OneBuild*>(made->getCapabilityInterface(PluginCapabilityType::kBUILD))->getNbOutputs() : -1;
    });
}

int through_registry(const char* library, const char* tensorrt) {
    // The library expects the plugins' process to hold TensorRT globally, as trtexec and the Python package do.
    void* handle = dlopen(tensorrt, RTLD_NOW | RTLD_GLOBAL);
    if (!handle) return std::printf("FAIL %s\n", dlerror()), 2;
    IPluginRegistry* registry = symbol<IPluginRegistry* (*)()>(handle, "getPluginRegistry")();
    const int32_t version = symbol<int32_t (*)()>(handle, "getInferLibVersion")();
    expect(version / 10000 == NV_TENSORRT_MAJOR || version / 1000 == NV_TENSORRT_MAJOR, "headers and library have the same major version");
    const IPluginRegistry::PluginLibraryHandle loaded = registry->loadLibrary(library);
    expect(loaded != nullptr, "the registry loads the library");
    for (const Op& op : ops()) {
        IPluginCreatorInterface* found = registry->getCreator(op.name, "1", "trt_opt");
        expect(found != nullptr, std::string("the registry knows ") + op.name);
        IPluginCreatorV3One* creator = found ? as_v3(found) : nullptr;
        expect(creator != nullptr, std::string(op.name) + " is a V3 creator");
        if (!creator) continue;
        auto f = fields_of(op.valid[0]);
        const PluginFieldCollection all{static_cast<int32_t>(f.size()), f.data()};
        std::unique_ptr<IPluginV3> plugin(creator->createPlugin("p", &all, TensorRTPhase::kBUILD));
        expect(plugin && !serialized(plugin.get()).empty(), std::string(op.name) + " is made through the registry");
    }
    if (loaded) registry->deregisterLibrary(loaded);
    expect(!registry->getCreator("TrtOptLayerNorm", "1", "trt_opt"), "the registry lets go of the library");
    std::printf("TensorRT %d: ", version);
    return finish("registry");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 4 && std::string(argv[2]) == "--tensorrt") return through_registry(argv[1], argv[3]);
    const bool dump = argc == 3 && std::string(argv[2]) == "--dump";
    if (argc != 2 && !dump) return std::fprintf(stderr, "usage: check_v3 LIBRARY [--tensorrt LIB | --dump]\n"), 2;
    void* handle = open_library(argv[1]);
    int32_t count = 0;
    IPluginCreatorInterface* const* list = symbol<GetCreators>(handle, "getCreators")(count);
    std::map<std::string, IPluginCreatorV3One*> creators;
    for (int32_t i = 0; i < count; ++i)
        if (IPluginCreatorV3One* creator = as_v3(list[i])) creators[creator->getPluginName()] = creator;
    if (dump) {
        std::printf("[\n");
        for (int32_t i = 0; i < count; ++i) {
            IPluginCreatorV3One* c = as_v3(list[i]);
            std::printf("%s%s\n", json(c->getPluginName(), c->getPluginVersion(), c->getPluginNamespace(), c->getFieldNames()).c_str(), i + 1 < count ? "," : "");
        }
        std::printf("]\n");
        return 0;
    }
    expect(creators.size() == ops().size() && count == static_cast<int32_t>(ops().size()), "one creator for each op");
    for (const Op& op : ops())
        if (!creators.count(op.name)) return std::printf("FAIL no creator of %s\n", op.name), 1;
    static Logger logger;
    static Finder finder(logger);
    symbol<SetLoggerFinder>(handle, "setLoggerFinder")(&finder);
    creation(logger, [&](const char* op, const PluginFieldCollection* fields) {
        std::unique_ptr<IPluginV3> plugin(creators.at(op)->createPlugin("p", fields, TensorRTPhase::kBUILD));
        return plugin != nullptr;
    });
    round_trips(logger, creators);
    formats(creators);
    return finish("creators");
}
