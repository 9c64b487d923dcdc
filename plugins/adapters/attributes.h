// The attributes of an op: what they are, and how they come from TensorRT's fields and from bytes.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace trt_opt {

enum class FieldKind { kInt, kFloat, kInts, kText };

struct FieldDef {
    const char* name;
    FieldKind kind;
    int32_t count;  // values, for kInts; 1 otherwise
};

// Version of the serialized form; readers refuse any other.
constexpr int32_t kFormatVersion = 3;
// The field that carries it in an IPluginV3's serialized fields.
constexpr const char* kFormatField = "trt_opt_format";

// Values of an op's fields, in the order of its definition. Reading throws std::invalid_argument
// with a message for the user; so do the functions that fill it.
class Attributes {
public:
    Attributes(const char* op, const std::vector<FieldDef>& fields) : op_(op), fields_(&fields), values_(fields.size()) {}

    // From a creator's fields. `serialized`: they come from getFieldsToSerialize and carry the version.
    void parse(const nvinfer1::PluginFieldCollection* fields, bool serialized);
    // From and to bytes, with a version and a checksum.
    std::vector<uint8_t> bytes() const;
    void parse_bytes(const void* data, size_t size);
    // Fields for TensorRT to serialize; they point into this object and `format`.
    std::vector<nvinfer1::PluginField> serialized(const int32_t* format) const;
    // One line that tells ops of different attributes apart.
    std::string text() const;

    int32_t integer(const char* name) const;
    float real(const char* name) const;
    const std::vector<int32_t>& integers(const char* name) const;
    const std::string& string(const char* name) const;

    // The op's name and `message`, as an exception to throw.
    [[noreturn]] void fail(const std::string& message) const;
    const char* op() const { return op_; }
    const std::vector<FieldDef>& fields() const { return *fields_; }

private:
    struct Value {
        bool set = false;
        std::vector<int32_t> integers;
        float real = 0;
        std::string text;
    };
    size_t find(const char* name, FieldKind kind) const;

    const char* op_;
    const std::vector<FieldDef>* fields_;
    std::vector<Value> values_;
};

nvinfer1::PluginFieldType field_type(FieldKind kind);

}  // namespace trt_opt
