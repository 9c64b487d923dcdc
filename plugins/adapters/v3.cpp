// The ops as IPluginV3, for TensorRT 10 and 11, and the library's entry points.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ops.h"

namespace trt_opt {
namespace {

using namespace nvinfer1;

class PluginV3 final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    explicit PluginV3(std::unique_ptr<Op> op) : op_(std::move(op)), id_(op_->attributes().text() + ";format=" + std::to_string(kFormatVersion)) {}

    // IPluginV3
    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override {
        return guarded<IPluginV3*>(name(), nullptr, [&] {
            auto copy = std::make_unique<PluginV3>(op_->clone());
            copy->tactic_ = tactic_, copy->tactics_ = tactics_;
            return copy.release();
        });
    }

    // IPluginV3OneCore
    AsciiChar const* getPluginName() const noexcept override { return name(); }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    // IPluginV3OneBuild
    int32_t getNbOutputs() const noexcept override { return op_->outputs(); }
    int32_t getOutputDataTypes(DataType* out, int32_t outputs, DataType const* in, int32_t inputs) const noexcept override {
        if (!counts(inputs, outputs)) return -1;
        for (int32_t i = 0; i < outputs; ++i) out[i] = in[op_->typed_by()];
        return 0;
    }
    int32_t getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*, int32_t, DimsExprs* out, int32_t outputs, IExprBuilder& build) noexcept override {
        if (!counts(inputs, outputs)) return -1;
        return guarded<int32_t>(name(), -1, [&] { return op_->shapes(in, out, build), 0; });
    }
    bool supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* tensors, int32_t inputs, int32_t outputs) noexcept override {
        if (!counts(inputs, outputs)) return false;
        return guarded<bool>(name(), false, [&] {
            std::vector<PluginTensorDesc> known;
            for (int32_t i = 0; i <= pos; ++i) known.push_back(tensors[i].desc);
            return op_->supports(pos, known.data());
        });
    }
    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const*, int32_t outputs) noexcept override {
        if (!counts(inputs, outputs)) return -1;
        return guarded<int32_t>(name(), -1, [&] {
            std::vector<PluginTensorDesc> usual;
            for (int32_t i = 0; i < inputs; ++i) {
                usual.push_back(in[i].desc);
                usual.back().dims = in[i].opt;
                if (usual.back().dims.nbDims != in[i].desc.dims.nbDims) usual.back().dims = in[i].desc.dims;
            }
            for (const PluginTensorDesc& t : usual)
                for (int32_t k = 0; k < t.dims.nbDims; ++k)
                    if (t.dims.d[k] < 0) return 0;  // shapes are not known yet
            tactics_ = op_->tactics(usual.data());
            return 0;
        });
    }
    size_t getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const*, int32_t outputs) const noexcept override {
        if (!counts(inputs, outputs)) return 0;
        return guarded<size_t>(name(), 0, [&] {
            return op_->workspace(largest(in, inputs).data());
        });
    }
    int32_t getNbTactics() noexcept override { return static_cast<int32_t>(tactics_.size()); }
    int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override {
        if (count != static_cast<int32_t>(tactics_.size())) return -1;
        if (count) std::memcpy(tactics, tactics_.data(), sizeof(int32_t) * tactics_.size());
        return 0;
    }
    char const* getTimingCacheID() noexcept override { return id_.c_str(); }
    char const* getMetadataString() noexcept override { return id_.c_str(); }

    // IPluginV3OneRuntime
    int32_t setTactic(int32_t tactic) noexcept override {
        tactic_ = tactic;
        return 0;
    }
    int32_t onShapeChange(PluginTensorDesc const*, int32_t inputs, PluginTensorDesc const*, int32_t outputs) noexcept override { return counts(inputs, outputs) ? 0 : -1; }
    int32_t enqueue(PluginTensorDesc const* in_desc, PluginTensorDesc const* out_desc, void const* const* in, void* const* out, void* workspace, cudaStream_t stream) noexcept override {
        return guarded<int32_t>(name(), -1, [&] {
            const cudaError_t status = op_->run(in_desc, out_desc, in, out, workspace, tactic_, stream);
            if (status != cudaSuccess) log_error(std::string(name()) + ": " + cudaGetErrorString(status));
            return static_cast<int32_t>(status);
        });
    }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        return guarded<PluginFieldCollection const*>(name(), nullptr, [&] {
            fields_ = op_->attributes().serialized(&kFormatVersion);
            collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
            return &collection_;
        });
    }

private:
    const char* name() const noexcept { return op_->attributes().op(); }
    bool counts(int32_t inputs, int32_t outputs) const noexcept {
        if (inputs == op_->inputs() && outputs == op_->outputs()) return true;
        return guarded<bool>(name(), false, [&]() -> bool {
            op_->attributes().fail("has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, its attributes say " + std::to_string(op_->inputs()) + " and " +
                                   std::to_string(op_->outputs()));
        });
    }

    std::unique_ptr<Op> op_;
    std::string id_;
    int32_t tactic_ = 0;
    std::vector<int32_t> tactics_;
    std::vector<PluginField> fields_;
    PluginFieldCollection collection_{};
};

class CreatorV3 final : public IPluginCreatorV3One {
public:
    explicit CreatorV3(const OpDef& def) : def_(def) {
        for (const FieldDef& f : def.fields) fields_.emplace_back(f.name, nullptr, field_type(f.kind), f.count);
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* fields, TensorRTPhase phase) noexcept override {
        return guarded<IPluginV3*>("createPlugin", nullptr, [&] { return new PluginV3(make_op(def_, fields, phase == TensorRTPhase::kRUNTIME)); });
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    AsciiChar const* getPluginName() const noexcept override { return def_.name; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

private:
    const OpDef& def_;
    std::vector<PluginField> fields_;
    PluginFieldCollection collection_{};
};

struct Creators {
    std::vector<std::unique_ptr<CreatorV3>> owned;
    std::vector<IPluginCreatorInterface*> list;
    Creators() {
        for (const OpDef& def : op_definitions()) {
            owned.push_back(std::make_unique<CreatorV3>(def));
            list.push_back(owned.back().get());
        }
    }
};

}  // namespace
}  // namespace trt_opt

#define TRT_OPT_EXPORT extern "C" __attribute__((visibility("default")))

TRT_OPT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    count = 0;
    return trt_opt::guarded<nvinfer1::IPluginCreatorInterface* const*>("getCreators", nullptr, [&] {
        static const trt_opt::Creators creators;
        count = static_cast<int32_t>(creators.list.size());
        return creators.list.data();
    });
}
TRT_OPT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { trt_opt::set_logger_finder(finder); }
