// Checks a library of IPluginV2DynamicExt creators without a GPU: check_v2 LIBRARY
#include <memory>

#include "check.h"

using namespace nvinfer1;
using namespace check;

namespace {

struct Destroy {
    void operator()(IPluginV2* p) const { p->destroy(); }
};
using Plugin = std::unique_ptr<IPluginV2, Destroy>;

std::string bytes_of(const IPluginV2& plugin) {
    std::string bytes(plugin.getSerializationSize(), '\0');
    plugin.serialize(&bytes[0]);
    return bytes;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return std::fprintf(stderr, "usage: check_v2 LIBRARY\n"), 2;
    void* handle = open_library(argv[1]);
    int32_t count = 0;
    IPluginCreator* const* list = symbol<IPluginCreator* const* (*)(int32_t&)>(handle, "getPluginCreators")(count);
    std::map<std::string, IPluginCreator*> creators;
    for (int32_t i = 0; i < count; ++i) creators[list[i]->getPluginName()] = list[i];
    expect(creators.size() == ops().size(), "one creator for each op");
    for (const Op& op : ops())
        if (!creators.count(op.name)) return std::printf("FAIL no creator of %s\n", op.name), 1;
    static Logger logger;
    static Finder finder(logger);
    symbol<void (*)(ILoggerFinder*)>(handle, "setLoggerFinder")(&finder);
    creation(logger, [&](const char* op, const PluginFieldCollection* fields) { return Plugin(creators.at(op)->createPlugin("p", fields)) != nullptr; });

    for (const Op& op : ops()) {
        IPluginCreator* creator = creators.at(op.name);
        for (const Fields& valid : op.valid) {
            auto f = fields_of(valid);
            const PluginFieldCollection all{static_cast<int32_t>(f.size()), f.data()};
            const Plugin plugin(creator->createPlugin("p", &all));
            if (!plugin) continue;
            const std::string bytes = bytes_of(*plugin);
            const Plugin again(creator->deserializePlugin("p", bytes.data(), bytes.size()));
            expect(again && bytes_of(*again) == bytes, std::string(op.name) + " round-trips its bytes");
            const Plugin copy(plugin->clone());
            expect(copy && bytes_of(*copy) == bytes && std::string(copy->getPluginNamespace()) == "trt_opt" && std::string(copy->getPluginType()) == op.name, std::string(op.name) + " clones");
            // Any byte changed, and any length cut, is refused with a message.
            for (size_t i = 0; i < bytes.size(); ++i) {
                std::string bad = bytes;
                bad[i] = static_cast<char>(bad[i] ^ 0x5a);
                logger.clear();
                expect(!Plugin(creator->deserializePlugin("p", bad.data(), bad.size())) && !logger.errors.empty(), std::string(op.name) + " refuses a changed byte " + std::to_string(i));
                const std::string cut(bytes.data(), i);
                logger.clear();
                expect(!Plugin(creator->deserializePlugin("p", cut.data(), cut.size())) && !logger.errors.empty(), std::string(op.name) + " refuses " + std::to_string(i) + " bytes");
            }
            expect(!Plugin(creator->deserializePlugin("p", nullptr, 0)), std::string(op.name) + " refuses no bytes");
        }
    }
    const Op embed = op_with_image();
    auto f = fields_of(embed.valid[0]), of_tokens = fields_of(embed.valid[1]);
    const PluginFieldCollection all{static_cast<int32_t>(f.size()), f.data()}, plain{static_cast<int32_t>(of_tokens.size()), of_tokens.data()};
    const Plugin plugin(creators.at(embed.name)->createPlugin("p", &all)), tokens(creators.at(embed.name)->createPlugin("p", &plain));
    auto* dynamic = static_cast<IPluginV2DynamicExt*>(plugin.get());
    auto takes = [](IPluginV2DynamicExt* of, int32_t inputs) {
        return [=](DataType first, DataType rest) {
            PluginTensorDesc tensors[6]{};
            for (auto& t : tensors) t.type = rest, t.format = TensorFormat::kLINEAR;
            tensors[0].type = first;
            for (int32_t i = 0; i <= inputs; ++i)
                if (!of->supportsFormatCombination(i, tensors, inputs, 1)) return false;
            return true;
        };
    };
    image_types(takes(dynamic, 5));
    token_types(takes(static_cast<IPluginV2DynamicExt*>(tokens.get()), 2));
    const DataType in[5] = {DataType::kFLOAT, DataType::kHALF, DataType::kHALF, DataType::kHALF, DataType::kHALF};
    expect(dynamic->getOutputDataType(0, in, 5) == DataType::kHALF, "an embedding's tokens are of the type of its weights");
    outputs_of_words([&](const PluginFieldCollection* fields) {
        const Plugin made(creators.at("TrtOptTntWords")->createPlugin("p", fields));
        return made ? made->getNbOutputs() : -1;
    });
    return finish("creators");
}
