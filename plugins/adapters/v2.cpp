// The ops as IPluginV2DynamicExt, for TensorRT 8, and the library's entry points.
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops.h"
#include "tactics.h"

namespace trt_opt {
namespace {

using namespace nvinfer1;

class PluginV2 final : public IPluginV2DynamicExt {
public:
    explicit PluginV2(std::unique_ptr<Op> op) : op_(std::move(op)) {}
    // From what serialize() wrote.
    PluginV2(const OpDef& def, const void* data, size_t size) : built_(true) {
        if (!data || size < TacticChoice::kBytes) throw std::invalid_argument(std::string(def.name) + ": serialized data is cut short");
        op_ = make_op(def, data, size - TacticChoice::kBytes);
        if (!choice_.read(static_cast<const uint8_t*>(data) + size - TacticChoice::kBytes)) op_->attributes().fail("serialized data is damaged");
    }

    // IPluginV2DynamicExt
    IPluginV2DynamicExt* clone() const noexcept override {
        return guarded<IPluginV2DynamicExt*>(getPluginType(), nullptr, [&] {
            auto copy = std::make_unique<PluginV2>(op_->clone());
            copy->namespace_ = namespace_, copy->choice_ = choice_, copy->built_ = built_;
            return copy.release();
        });
    }
    DimsExprs getOutputDimensions(int32_t output, DimsExprs const* in, int32_t inputs, IExprBuilder& build) noexcept override {
        DimsExprs none{};
        none.nbDims = -1;
        return guarded<DimsExprs>(getPluginType(), none, [&] {
            check_counts(inputs, op_->outputs());
            if (output < 0 || output >= op_->outputs()) op_->attributes().fail("has no output " + std::to_string(output));
            std::vector<DimsExprs> out(static_cast<size_t>(op_->outputs()));
            op_->shapes(in, out.data(), build);
            return out[static_cast<size_t>(output)];
        });
    }
    bool supportsFormatCombination(int32_t pos, PluginTensorDesc const* tensors, int32_t inputs, int32_t outputs) noexcept override {
        return inputs == op_->inputs() && outputs == op_->outputs() && op_->supports(pos, tensors);
    }
    void configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const* out, int32_t outputs) noexcept override {
        guarded<int>(getPluginType(), 0, [&] {
            check_counts(inputs, outputs);
            // Of an engine that is built, what was measured then stands.
            if (!built_) choose(largest(in, inputs), largest(out, outputs));
            return 0;
        });
    }
    size_t getWorkspaceSize(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const*, int32_t outputs) const noexcept override {
        return guarded<size_t>(getPluginType(), 0, [&] { return check_counts(inputs, outputs), op_->workspace(in); });
    }
    int32_t enqueue(PluginTensorDesc const* in_desc, PluginTensorDesc const* out_desc, void const* const* in, void* const* out, void* workspace, cudaStream_t stream) noexcept override {
        return guarded<int32_t>(getPluginType(), -1, [&] {
            const cudaError_t status = op_->run(in_desc, out_desc, in, out, workspace, choice_.of(*op_, in_desc), stream);
            if (status != cudaSuccess) log_error(std::string(getPluginType()) + ": " + cudaGetErrorString(status));
            return static_cast<int32_t>(status);
        });
    }

    // IPluginV2Ext
    DataType getOutputDataType(int32_t, DataType const* in, int32_t) const noexcept override { return in[op_->typed_by()]; }
    void attachToContext(cudnnContext*, cublasContext*, IGpuAllocator*) noexcept override {}
    void detachFromContext() noexcept override {}

    // IPluginV2
    AsciiChar const* getPluginType() const noexcept override { return op_->attributes().op(); }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    int32_t getNbOutputs() const noexcept override { return op_->outputs(); }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    size_t getSerializationSize() const noexcept override {
        return guarded<size_t>(getPluginType(), 0, [&] { return op_->attributes().bytes().size() + TacticChoice::kBytes; });
    }
    void serialize(void* buffer) const noexcept override {
        guarded<int>(getPluginType(), 0, [&] {
            const auto bytes = op_->attributes().bytes();
            std::memcpy(buffer, bytes.data(), bytes.size());
            choice_.write(static_cast<uint8_t*>(buffer) + bytes.size());
            return 0;
        });
    }
    void destroy() noexcept override { delete this; }
    void setPluginNamespace(AsciiChar const* name) noexcept override {
        guarded<int>(getPluginType(), 0, [&] { return namespace_ = name ? name : "", 0; });
    }
    AsciiChar const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

private:
    void check_counts(int32_t inputs, int32_t outputs) const {
        if (inputs != op_->inputs() || outputs != op_->outputs())
            op_->attributes().fail("has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) + " outputs, its attributes say " + std::to_string(op_->inputs()) + " and " +
                                   std::to_string(op_->outputs()));
    }

    void choose(const std::vector<PluginTensorDesc>& in, const std::vector<PluginTensorDesc>& out) {
        for (const auto* tensors : {&in, &out})
            for (const PluginTensorDesc& t : *tensors)
                for (int32_t k = 0; k < t.dims.nbDims; ++k)
                    if (t.dims.d[k] <= 0) return;  // not known yet, or nothing to time
        choice_ = fastest_tactic(*op_, in, out);
    }

    std::unique_ptr<Op> op_;
    TacticChoice choice_;
    bool built_ = false;  // comes from an engine
    std::string namespace_ = kNamespace;
};

class CreatorV2 final : public IPluginCreator {
public:
    explicit CreatorV2(const OpDef& def) : def_(def) {
        for (const FieldDef& f : def.fields) fields_.emplace_back(f.name, nullptr, field_type(f.kind), f.count);
        collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
    }
    AsciiChar const* getPluginName() const noexcept override { return def_.name; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    IPluginV2* createPlugin(AsciiChar const*, PluginFieldCollection const* fields) noexcept override {
        return guarded<IPluginV2*>("createPlugin", nullptr, [&] { return named(std::make_unique<PluginV2>(make_op(def_, fields, false))); });
    }
    IPluginV2* deserializePlugin(AsciiChar const*, void const* data, size_t size) noexcept override {
        return guarded<IPluginV2*>("deserializePlugin", nullptr, [&] { return named(std::make_unique<PluginV2>(def_, data, size)); });
    }
    void setPluginNamespace(AsciiChar const* name) noexcept override {
        guarded<int>(def_.name, 0, [&] { return namespace_ = name ? name : "", 0; });
    }
    AsciiChar const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

private:
    IPluginV2* named(std::unique_ptr<PluginV2> plugin) const {
        plugin->setPluginNamespace(namespace_.c_str());
        return plugin.release();
    }

    const OpDef& def_;
    std::vector<PluginField> fields_;
    PluginFieldCollection collection_{};
    std::string namespace_ = kNamespace;
};

struct Creators {
    std::vector<std::unique_ptr<CreatorV2>> owned;
    std::vector<IPluginCreator*> list;
    Creators() {
        for (const OpDef& def : op_definitions()) {
            owned.push_back(std::make_unique<CreatorV2>(def));
            list.push_back(owned.back().get());
        }
    }
};

}  // namespace
}  // namespace trt_opt

#define TRT_OPT_EXPORT extern "C" __attribute__((visibility("default")))

TRT_OPT_EXPORT nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) {
    count = 0;
    return trt_opt::guarded<nvinfer1::IPluginCreator* const*>("getPluginCreators", nullptr, [&] {
        static const trt_opt::Creators creators;
        count = static_cast<int32_t>(creators.list.size());
        return creators.list.data();
    });
}
TRT_OPT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { trt_opt::set_logger_finder(finder); }
