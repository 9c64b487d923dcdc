#include "plugins.h"

#include <memory>
#include <vector>

#include "trt-opt/src/engine/bridge.rs.h"

using namespace nvinfer1;

namespace trt_opt {
namespace {

#if NV_TENSORRT_MAJOR >= 10
using AnyCreator = IPluginCreatorInterface;
#else
using AnyCreator = IPluginCreator;
#endif

FieldType type_of(PluginFieldType type) {
    switch (type) {
        case PluginFieldType::kINT32: return FieldType::Int32;
        case PluginFieldType::kFLOAT32: return FieldType::Float32;
        case PluginFieldType::kCHAR: return FieldType::Char;
        default: return FieldType::Other;
    }
}
PluginFieldType type_of(FieldType type) {
    switch (type) {
        case FieldType::Int32: return PluginFieldType::kINT32;
        case FieldType::Float32: return PluginFieldType::kFLOAT32;
        case FieldType::Char: return PluginFieldType::kCHAR;
        default: return PluginFieldType::kUNKNOWN;
    }
}

template <class C> void describe(C& creator, Creator& out) {
    out.name = text(creator.getPluginName());
    out.version = text(creator.getPluginVersion());
    out.space = text(creator.getPluginNamespace());
    const PluginFieldCollection* fields = creator.getFieldNames();
    if (!fields) throw std::runtime_error("the creator of " + std::string(out.name) + " has no list of fields");
    for (int32_t i = 0; i < fields->nbFields; ++i) {
        const PluginField& f = fields->fields[i];
        out.fields.push_back({text(f.name), type_of(f.type), f.length});
    }
}

#if NV_TENSORRT_MAJOR >= 10
IPluginCreatorV3One* as_v3(AnyCreator& creator) {
    return text(creator.getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE" ? static_cast<IPluginCreatorV3One*>(&creator) : nullptr;
}
#endif

Creator described(AnyCreator* creator) {
    if (!creator) throw std::runtime_error("one of the creators is null");
    Creator out{};
    out.address = reinterpret_cast<size_t>(creator);
#if NV_TENSORRT_MAJOR >= 10
    // Other interfaces are named and left alone: their functions are not those of V3.
    out.kind = text(creator->getInterfaceInfo().kind);
    if (IPluginCreatorV3One* v3 = as_v3(*creator)) describe(*v3, out);
#else
    out.kind = "PLUGIN CREATOR_V2";
    describe(*creator, out);
#endif
    return out;
}

// A logger for plugins that look for one.
class Finder final : public ILoggerFinder {
public:
    ILogger* findLogger() override { return &logger(); }
    ~Finder() = default;
};

[[noreturn]] void differs(const char* what, const std::string& found, const std::string& expected) {
    throw std::runtime_error(std::string("the plugin's ") + what + " is '" + found + "', its creator's '" + expected + "'");
}

IPluginRegistry& registry(size_t entry) {
    IPluginRegistry* found = function<IPluginRegistry* (*)()>(entry)();
    if (!found) throw std::runtime_error("TensorRT has no plugin registry");
    return *found;
}

}  // namespace

rust::Vec<Creator> creators(size_t entry) {
    int32_t count = 0;
    AnyCreator* const* list = function<AnyCreator* const* (*)(int32_t&)>(entry)(count);
    if (count < 0 || (count > 0 && !list)) throw std::runtime_error("the list of creators is broken");
    rust::Vec<Creator> out;
    for (int32_t i = 0; i < count; ++i) out.push_back(described(list[i]));
    return out;
}

void give_logger(size_t entry) {
    static Finder* const finder = new Finder;
    function<void (*)(ILoggerFinder*)>(entry)(finder);
}

void make_plugin(size_t address, rust::Slice<const FieldValue> values) {
    auto* const any = function<AnyCreator*>(address);
    std::vector<std::string> names;
    names.reserve(values.size());
    std::vector<PluginField> fields;
    for (const FieldValue& v : values) {
        names.emplace_back(v.name.data(), v.name.size());
        fields.emplace_back(names.back().c_str(), v.bytes.data(), type_of(v.kind), v.length);
    }
    const PluginFieldCollection all{static_cast<int32_t>(fields.size()), fields.data()};
#if NV_TENSORRT_MAJOR >= 10
    IPluginCreatorV3One* const creator = as_v3(*any);
    if (!creator) throw std::runtime_error("its interface is " + text(any->getInterfaceInfo().kind) + ", not V3");
    const std::unique_ptr<IPluginV3> plugin(creator->createPlugin("check", &all, TensorRTPhase::kBUILD));
    if (!plugin) throw std::runtime_error("no plugin was made");
    for (PluginCapabilityType type : {PluginCapabilityType::kCORE, PluginCapabilityType::kBUILD, PluginCapabilityType::kRUNTIME})
        if (!plugin->getCapabilityInterface(type)) throw std::runtime_error("the plugin lacks capability " + std::to_string(static_cast<int32_t>(type)));
    const auto& core = *static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    const std::string name = text(core.getPluginName());
    const std::string version = text(core.getPluginVersion());
#else
    struct Destroy {
        void operator()(IPluginV2* p) const { p->destroy(); }
    };
    IPluginCreator* const creator = any;
    const std::unique_ptr<IPluginV2, Destroy> plugin(creator->createPlugin("check", &all));
    if (!plugin) throw std::runtime_error("no plugin was made");
    const IPluginV2& core = *plugin;
    const std::string name = text(core.getPluginType());
    const std::string version = text(core.getPluginVersion());
#endif
    if (name != text(creator->getPluginName())) differs("name", name, text(creator->getPluginName()));
    if (version != text(creator->getPluginVersion())) differs("version", version, text(creator->getPluginVersion()));
    if (text(core.getPluginNamespace()) != text(creator->getPluginNamespace())) differs("namespace", text(core.getPluginNamespace()), text(creator->getPluginNamespace()));
}

size_t registry_load(size_t entry, const rust::String& path) {
    const std::string copy(path);
    const auto handle = registry(entry).loadLibrary(copy.c_str());
    if (!handle) throw std::runtime_error("the registry refuses it");
    return reinterpret_cast<size_t>(handle);
}

void registry_unload(size_t entry, size_t library) { registry(entry).deregisterLibrary(function<IPluginRegistry::PluginLibraryHandle>(library)); }

rust::Vec<Creator> registry_find(size_t entry, const rust::String& name, const rust::String& version, const rust::String& space) {
    const std::string n(name), v(version), s(space);
#if NV_TENSORRT_MAJOR >= 10
    AnyCreator* const found = registry(entry).getCreator(n.c_str(), v.c_str(), s.c_str());
#else
    AnyCreator* const found = registry(entry).getPluginCreator(n.c_str(), v.c_str(), s.c_str());
#endif
    rust::Vec<Creator> out;
    if (found) out.push_back(described(found));
    return out;
}

}  // namespace trt_opt
