#include "attributes.h"

#include <cstring>
#include <stdexcept>

#include "log.h"

namespace trt_opt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr uint32_t kMagic = 0x54504f54;  // "TOPT"
constexpr int32_t kMostText = 1 << 10;   // bytes of a text attribute

const char* type_name(PluginFieldType type) {
    switch (type) {
        case PluginFieldType::kINT32: return "int32";
        case PluginFieldType::kFLOAT32: return "float32";
        case PluginFieldType::kCHAR: return "char";
        default: return "another type";
    }
}

uint32_t checksum(const uint8_t* data, size_t size) {  // FNV-1a
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 16777619u;
    return hash;
}

void put(std::vector<uint8_t>& out, const void* data, size_t size) {
    const auto* p = static_cast<const uint8_t*>(data);
    out.insert(out.end(), p, p + size);
}

}  // namespace

PluginFieldType field_type(FieldKind kind) {
    switch (kind) {
        case FieldKind::kFloat: return PluginFieldType::kFLOAT32;
        case FieldKind::kText: return PluginFieldType::kCHAR;
        default: return PluginFieldType::kINT32;
    }
}

void Attributes::fail(const std::string& message) const { throw std::invalid_argument(std::string(op_) + ": " + message); }

void Attributes::parse(const nvinfer1::PluginFieldCollection* given, bool serialized) {
    if (!given || given->nbFields < 0 || (given->nbFields > 0 && !given->fields)) fail("no fields");
    bool version = !serialized;
    for (int32_t i = 0; i < given->nbFields; ++i) {
        const PluginField& f = given->fields[i];
        if (!f.name) fail("a field without a name");
        if (serialized && std::strcmp(f.name, kFormatField) == 0) {
            int32_t found = 0;
            if (f.type != PluginFieldType::kINT32 || f.length != 1 || !f.data) fail("the serialized version is malformed");
            std::memcpy(&found, f.data, sizeof(found));
            if (found != kFormatVersion) fail("serialized by another version of the plugins: format " + std::to_string(found) + ", this library reads " + std::to_string(kFormatVersion));
            version = true;
            continue;
        }
        size_t at = 0;
        while (at < fields_->size() && std::strcmp((*fields_)[at].name, f.name) != 0) ++at;
        if (at == fields_->size()) {
            log(nvinfer1::ILogger::Severity::kWARNING, std::string(op_) + ": attribute '" + f.name + "' is unknown and ignored");
            continue;
        }
        const FieldDef& def = (*fields_)[at];
        Value& value = values_[at];
        const std::string name = std::string("attribute '") + def.name + "'";
        if (value.set) fail(name + " is given twice");
        if (f.type != field_type(def.kind)) fail(name + " must be " + type_name(field_type(def.kind)) + ", is " + type_name(f.type));
        if (f.length < 0 || (f.length > 0 && !f.data)) fail(name + " has no data");
        switch (def.kind) {
            case FieldKind::kText: {
                if (f.length > kMostText) fail(name + " is too long");
                value.text.assign(static_cast<const char*>(f.data), static_cast<size_t>(f.length));
                value.text.resize(std::strlen(value.text.c_str()));  // lengths with and without the final zero are both seen
                break;
            }
            case FieldKind::kFloat:
                if (f.length != 1) fail(name + " must be one value, has " + std::to_string(f.length));
                std::memcpy(&value.real, f.data, sizeof(float));
                break;
            default:
                if (f.length != def.count) fail(name + " must have " + std::to_string(def.count) + (def.count == 1 ? " value" : " values") + ", has " + std::to_string(f.length));
                value.integers.resize(static_cast<size_t>(f.length));
                std::memcpy(value.integers.data(), f.data, sizeof(int32_t) * static_cast<size_t>(f.length));
        }
        value.set = true;
    }
    if (!version) fail("the serialized version is missing");
    for (size_t i = 0; i < fields_->size(); ++i)
        if (!values_[i].set) fail(std::string("attribute '") + (*fields_)[i].name + "' is missing");
}

std::vector<uint8_t> Attributes::bytes() const {
    std::vector<uint8_t> body;
    for (size_t i = 0; i < fields_->size(); ++i) {
        const Value& value = values_[i];
        switch ((*fields_)[i].kind) {
            case FieldKind::kText: {
                const auto size = static_cast<uint32_t>(value.text.size());
                put(body, &size, sizeof(size));
                put(body, value.text.data(), size);
                break;
            }
            case FieldKind::kFloat: put(body, &value.real, sizeof(float)); break;
            default: put(body, value.integers.data(), sizeof(int32_t) * value.integers.size());
        }
    }
    const uint32_t head[4] = {kMagic, static_cast<uint32_t>(kFormatVersion), static_cast<uint32_t>(body.size()), checksum(body.data(), body.size())};
    std::vector<uint8_t> out;
    put(out, head, sizeof(head));
    put(out, body.data(), body.size());
    return out;
}

void Attributes::parse_bytes(const void* data, size_t size) {
    uint32_t head[4];
    if (!data || size < sizeof(head)) fail("serialized data is cut short");
    std::memcpy(head, data, sizeof(head));
    if (head[0] != kMagic) fail("serialized data is not of this plugin library");
    if (head[1] != static_cast<uint32_t>(kFormatVersion)) fail("serialized by another version of the plugins: format " + std::to_string(head[1]) + ", this library reads " + std::to_string(kFormatVersion));
    const auto* p = static_cast<const uint8_t*>(data) + sizeof(head);
    size_t left = size - sizeof(head);
    if (head[2] != left || checksum(p, left) != head[3]) fail("serialized data is damaged");
    auto take = [&](void* to, size_t bytes) {
        if (bytes > left) fail("serialized data is cut short");
        if (bytes) std::memcpy(to, p, bytes);
        p += bytes, left -= bytes;
    };
    for (size_t i = 0; i < fields_->size(); ++i) {
        Value& value = values_[i];
        switch ((*fields_)[i].kind) {
            case FieldKind::kText: {
                uint32_t length = 0;
                take(&length, sizeof(length));
                if (length > static_cast<uint32_t>(kMostText)) fail("serialized data is damaged");
                value.text.resize(length);
                take(&value.text[0], length);
                break;
            }
            case FieldKind::kFloat: take(&value.real, sizeof(float)); break;
            default:
                value.integers.resize(static_cast<size_t>((*fields_)[i].count));
                take(value.integers.data(), sizeof(int32_t) * value.integers.size());
        }
        value.set = true;
    }
    if (left) fail("serialized data is too long");
}

std::vector<PluginField> Attributes::serialized(const int32_t* format) const {
    std::vector<PluginField> out;
    out.emplace_back(kFormatField, format, PluginFieldType::kINT32, 1);
    for (size_t i = 0; i < fields_->size(); ++i) {
        const FieldDef& def = (*fields_)[i];
        const Value& value = values_[i];
        switch (def.kind) {
            case FieldKind::kText: out.emplace_back(def.name, value.text.c_str(), PluginFieldType::kCHAR, static_cast<int32_t>(value.text.size()) + 1); break;
            case FieldKind::kFloat: out.emplace_back(def.name, &value.real, PluginFieldType::kFLOAT32, 1); break;
            default: out.emplace_back(def.name, value.integers.data(), PluginFieldType::kINT32, def.count);
        }
    }
    return out;
}

std::string Attributes::text() const {
    std::string out = op_;
    for (size_t i = 0; i < fields_->size(); ++i) {
        const Value& value = values_[i];
        out += std::string(";") + (*fields_)[i].name + "=";
        switch ((*fields_)[i].kind) {
            case FieldKind::kText: out += value.text; break;
            case FieldKind::kFloat: {
                uint32_t bits;
                std::memcpy(&bits, &value.real, sizeof(bits));
                out += std::to_string(bits);
                break;
            }
            default:
                for (int32_t v : value.integers) out += std::to_string(v) + ",";
        }
    }
    return out;
}

size_t Attributes::find(const char* name, FieldKind kind) const {
    for (size_t i = 0; i < fields_->size(); ++i)
        if (std::strcmp((*fields_)[i].name, name) == 0 && (*fields_)[i].kind == kind && values_[i].set) return i;
    fail(std::string("attribute '") + name + "' is missing");
}
int32_t Attributes::integer(const char* name) const { return values_[find(name, FieldKind::kInt)].integers[0]; }
float Attributes::real(const char* name) const { return values_[find(name, FieldKind::kFloat)].real; }
const std::vector<int32_t>& Attributes::integers(const char* name) const { return values_[find(name, FieldKind::kInts)].integers; }
const std::string& Attributes::string(const char* name) const { return values_[find(name, FieldKind::kText)].text; }

}  // namespace trt_opt
