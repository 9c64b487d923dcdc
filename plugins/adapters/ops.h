// The ops as TensorRT sees them, apart from the plugin interface of any one version: attributes,
// counts, types, shapes and the launch. docs/ops.md is their contract.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "attributes.h"

namespace trt_opt {

constexpr const char* kNamespace = "trt_opt";
constexpr const char* kVersion = "1";

// Bytes of an element.
inline int64_t element(const nvinfer1::PluginTensorDesc& t) { return t.type == nvinfer1::DataType::kHALF ? 2 : 4; }
// The product of the axes [begin, end).
inline int64_t volume(const nvinfer1::Dims& d, int32_t begin, int32_t end) {
    int64_t v = 1;
    for (int32_t i = begin; i < end; ++i) v *= d.d[i];
    return v;
}
// The tensors at the end of their range.
inline std::vector<nvinfer1::PluginTensorDesc> largest(const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t count) {
    std::vector<nvinfer1::PluginTensorDesc> all;
    for (int32_t i = 0; i < count; ++i) {
        all.push_back(tensors[i].desc);
        if (tensors[i].max.nbDims == all.back().dims.nbDims) all.back().dims = tensors[i].max;
    }
    return all;
}

// Methods that check throw std::invalid_argument with a message for the user.
class Op {
public:
    explicit Op(Attributes attributes) : attributes_(std::move(attributes)) {}
    virtual ~Op() = default;

    virtual std::unique_ptr<Op> clone() const = 0;
    virtual int32_t inputs() const = 0;
    virtual int32_t outputs() const = 0;
    virtual void shapes(const nvinfer1::DimsExprs* in, nvinfer1::DimsExprs* out, nvinfer1::IExprBuilder& build) const = 0;
    // Enqueues the kernels. Dimensions are known; `tactic` is 0 or one of `tactics`; `workspace` has what `workspace()` asks for.
    virtual cudaError_t run(const nvinfer1::PluginTensorDesc* in_desc, const nvinfer1::PluginTensorDesc* out_desc, const void* const* in,
                            void* const* out, void* workspace, int32_t tactic, cudaStream_t stream) const = 0;
    // Bytes of workspace for inputs of these shapes and all smaller ones, under any tactic. An axis may be unknown (negative).
    virtual size_t workspace(const nvinfer1::PluginTensorDesc*) const { return 0; }
    // What an autotuner may try for these shapes, all above 0; empty: nothing to choose from.
    virtual std::vector<int32_t> tactics(const nvinfer1::PluginTensorDesc*) const { return {}; }

    // Whether tensor `pos` (inputs, then outputs) may be what it is, those before it being what they are: linear fp16 or fp32, one type
    // for all.
    virtual bool supports(int32_t pos, const nvinfer1::PluginTensorDesc* tensors) const;
    // The input whose type the outputs have.
    virtual int32_t typed_by() const { return 0; }
    const Attributes& attributes() const { return attributes_; }

protected:
    void expect(bool condition, const char* message) const {
        if (!condition) attributes_.fail(message);
    }

    Attributes attributes_;
};

struct OpDef {
    const char* name;
    std::vector<FieldDef> fields;
    std::unique_ptr<Op> (*make)(Attributes attributes);
};

// All ops of the library.
const std::vector<OpDef>& op_definitions();

// The op that `fields` describe; throws std::invalid_argument.
std::unique_ptr<Op> make_op(const OpDef& def, const nvinfer1::PluginFieldCollection* fields, bool serialized);
std::unique_ptr<Op> make_op(const OpDef& def, const void* data, size_t size);

// Calls f, turning exceptions into a logged error and `failure`.
template <class R, class F> R guarded(const char* what, R failure, F&& f) noexcept;

}  // namespace trt_opt

#include <exception>
#include <string>

#include "log.h"

namespace trt_opt {

template <class R, class F> R guarded(const char* what, R failure, F&& f) noexcept {
    try {
        return f();
    } catch (const std::exception& e) {
        try {
            log_error(std::string(what) + ": " + e.what());
        } catch (...) {
        }
    } catch (...) {
        try {
            log_error(std::string(what) + ": unknown exception");
        } catch (...) {
        }
    }
    return failure;
}

}  // namespace trt_opt
