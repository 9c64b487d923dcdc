// What the checks of both plugin interfaces share: valid fields of every op, and ways to spoil them.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace check {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

inline int failures = 0, checks = 0;
inline void expect(bool ok, const std::string& what) {
    ++checks;
    if (!ok) ++failures, std::printf("FAIL %s\n", what.c_str());
}

// Gathers what the library logs.
class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kERROR) errors += std::string(message) + "\n";
        all += std::string(message) + "\n";
    }
    void clear() { errors.clear(), all.clear(); }
    std::string errors, all;
};
class Finder final : public nvinfer1::ILoggerFinder {
public:
    explicit Finder(Logger& logger) : logger_(logger) {}
    nvinfer1::ILogger* findLogger() override { return &logger_; }
    ~Finder() = default;

private:
    Logger& logger_;
};

struct Value {
    PluginFieldType type;
    std::vector<int32_t> ints;
    float real = 0;
    std::string text;
    int32_t length = 0;
    const void* data() const { return type == PluginFieldType::kINT32 ? static_cast<const void*>(ints.data()) : type == PluginFieldType::kFLOAT32 ? static_cast<const void*>(&real) : text.data(); }
};
inline Value ints(std::vector<int32_t> v) {
    Value x{PluginFieldType::kINT32, v, 0, "", static_cast<int32_t>(v.size())};
    return x;
}
inline Value real(float v) { return {PluginFieldType::kFLOAT32, {}, v, "", 1}; }
inline Value text(const std::string& v) { return {PluginFieldType::kCHAR, {}, 0, v, static_cast<int32_t>(v.size())}; }

using Fields = std::vector<std::pair<std::string, Value>>;

struct Op {
    const char* name;
    std::vector<Fields> valid;
    // Field, value to give it, what the message must say. A value of length -1 takes the field away.
    struct Spoiled {
        const char* field;
        Value value;
        const char* message;
    };
    std::vector<Spoiled> invalid;
};

inline Value gone() { return {PluginFieldType::kINT32, {}, 0, "", -1}; }
inline Value typed(Value v, PluginFieldType type) { return v.type = type, v; }

inline std::vector<Op> ops() {
    const Fields norm = {{"epsilon", real(1e-5f)}, {"axis", ints({-1})}, {"residual", ints({1})}, {"part_begin", ints({-1})}, {"reverse", ints({1})}, {"grid", ints({56, 56})}, {"window", ints({7, 7})}, {"shift", ints({3, 3})}, {"pad_after_roll", ints({0})}};
    const Fields plain = {{"epsilon", real(1e-6f)}, {"axis", ints({-2})}, {"residual", ints({0})}, {"part_begin", ints({-1})}, {"reverse", ints({0})}, {"grid", ints({0, 0})}, {"window", ints({0, 0})}, {"shift", ints({0, 0})}, {"pad_after_roll", ints({0})}};
    const Fields part = {{"epsilon", real(1e-5f)}, {"axis", ints({-1})}, {"residual", ints({1})}, {"part_begin", ints({1})}, {"reverse", ints({0})}, {"grid", ints({0, 0})}, {"window", ints({0, 0})}, {"shift", ints({0, 0})}, {"pad_after_roll", ints({0})}};
    const Fields attention = {{"num_heads", ints({3})}, {"scale", real(0.1767767f)}, {"layout", text("qkv")}, {"bias", ints({2})}, {"mask", ints({2})}, {"mask_value", real(-100.f)}, {"grid", ints({56, 56})}, {"window", ints({7, 7})}, {"shift", ints({3, 3})}};
    const Fields global = {{"num_heads", ints({6})}, {"scale", real(0.125f)}, {"layout", text("q_k_v")}, {"bias", ints({0})}, {"mask", ints({1})}, {"mask_value", real(0.f)}, {"grid", ints({0, 0})}, {"window", ints({0, 0})}, {"shift", ints({0, 0})}};
    const Fields window = {{"reverse", ints({1})}, {"rank", ints({4})}, {"residual", ints({1})}, {"grid", ints({14, 14})}, {"window", ints({7, 7})}, {"shift", ints({3, 3})}, {"pad_after_roll", ints({1})}};
    const Fields merge = {{"epsilon", real(1e-5f)}, {"residual", ints({1})}, {"grid", ints({14, 14})}, {"order", ints({0, 2, 1, 3})}, {"rank", ints({3})}};
    const Fields merge_block = {{"epsilon", real(1e-6f)}, {"residual", ints({0})}, {"grid", ints({7, 9})}, {"order", ints({0, 1, 2, 3})}, {"rank", ints({4})}};
    const Fields mlp = {{"epsilon", real(1e-5f)}, {"residual", ints({1})}, {"norm", ints({1})}, {"approximate", text("none")}};
    const Fields mlp_tanh = {{"epsilon", real(1e-6f)}, {"residual", ints({0})}, {"norm", ints({1})}, {"approximate", text("tanh")}};
    const Fields mlp_alone = {{"epsilon", real(0.f)}, {"residual", ints({0})}, {"norm", ints({0})}, {"approximate", text("none")}};
    const Fields swin = {{"epsilon", real(1e-5f)}, {"residual", ints({1})}, {"num_heads", ints({3})}, {"scale", real(0.1767767f)}, {"bias", ints({2})}, {"mask", ints({2})}, {"mask_value", real(-100.f)}, {"grid", ints({56, 56})}, {"window", ints({7, 7})}, {"shift", ints({3, 3})}, {"pad_after_roll", ints({0})}};
    const Fields swin_dense = {{"epsilon", real(1e-6f)}, {"residual", ints({0})}, {"num_heads", ints({6})}, {"scale", real(0.125f)}, {"bias", ints({1})}, {"mask", ints({1})}, {"mask_value", real(0.f)}, {"grid", ints({10, 10})}, {"window", ints({4, 4})}, {"shift", ints({0, 0})}, {"pad_after_roll", ints({1})}};
    const Fields block = {{"epsilon", real(1e-6f)}, {"residual", ints({1})}, {"num_heads", ints({6})}, {"scale", real(0.125f)}, {"bias", ints({0})}};
    const Fields block_dense = {{"epsilon", real(1e-5f)}, {"residual", ints({0})}, {"num_heads", ints({4})}, {"scale", real(0.25f)}, {"bias", ints({1})}};
    const Fields pooled = {{"epsilon", real(1e-5f)}, {"pool_epsilon", real(1e-5f)}, {"residual", ints({1})}, {"grid", ints({32, 32})}, {"pool", ints({4, 4})}, {"num_heads", ints({4})}, {"scale", real(0.1767767f)}, {"bias", ints({1})}};
    const Fields pooled_plain = {{"epsilon", real(0.f)}, {"pool_epsilon", real(1e-6f)}, {"residual", ints({0})}, {"grid", ints({6, 10})}, {"pool", ints({3, 1})}, {"num_heads", ints({2})}, {"scale", real(0.25f)}, {"bias", ints({0})}};
    const Fields inner = {{"epsilon1", real(1e-5f)}, {"epsilon2", real(1e-6f)}, {"whole", ints({0})}, {"num_heads", ints({4})}, {"scale", real(0.4082483f)}, {"approximate", text("none")}};
    const Fields inner_whole = {{"epsilon1", real(1e-5f)}, {"epsilon2", real(1e-5f)}, {"whole", ints({1})}, {"num_heads", ints({2})}, {"scale", real(0.5f)}, {"approximate", text("tanh")}};
    const Fields bridge = {{"epsilon1", real(1e-5f)}, {"epsilon2", real(1e-6f)}, {"residual", ints({0})}, {"begin", ints({1})}};
    const Fields bridge_residual = {{"epsilon1", real(1e-6f)}, {"epsilon2", real(1e-5f)}, {"residual", ints({1})}, {"begin", ints({0})}};
    const auto padded = [](std::vector<int32_t> values) { return values.resize(32, -1), ints(values); };
    const auto words_of = [](Fields layer, const Fields& bridges) { return layer.insert(layer.end(), bridges.begin(), bridges.end()), layer; };
    const Fields words = words_of(inner, {{"layers", ints({12})}, {"hidden", ints({96})}, {"width", ints({384})}, {"channels", ints({384})}, {"bridge_epsilon1", real(1e-5f)}, {"bridge_epsilon2", real(1e-6f)}, {"tokens", ints({197})}, {"begin", ints({1})}, {"covered", ints({196})}, {"after", padded({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})}, {"words", ints({0})}, {"stacked", ints({0})}});
    const Fields words_whole = words_of(inner_whole, {{"layers", ints({2})}, {"hidden", ints({64})}, {"width", ints({256})}, {"channels", ints({96})}, {"bridge_epsilon1", real(0.f)}, {"bridge_epsilon2", real(1e-5f)}, {"tokens", ints({16})}, {"begin", ints({0})}, {"covered", ints({16})}, {"after", padded({0, 0, 2})}, {"words", ints({1})}, {"stacked", ints({0})}});
    Fields words_stacked = words;
    words_stacked.back().second = ints({11});
    const Fields pool = {{"epsilon", real(1e-5f)}, {"residual", ints({1})}};
    const Fields pool_plain = {{"epsilon", real(0.f)}, {"residual", ints({0})}};
    const Fields embed = {{"epsilon", real(1e-5f)}, {"bias", ints({1})}, {"norm", ints({1})}, {"rank", ints({4})}, {"grid", ints({0, 0})}};
    const Fields embed_plain = {{"epsilon", real(0.f)}, {"bias", ints({0})}, {"norm", ints({0})}, {"rank", ints({3})}, {"grid", ints({56, 56})}};
    const Fields pixels = {{"kernel", ints({7, 7})}, {"strides", ints({4, 4})}, {"pads", ints({3, 3})}, {"grid", ints({14, 14})}, {"patch", ints({4, 4})}, {"within", ints({1})}};
    const Fields pixels_whole = {{"kernel", ints({3, 5})}, {"strides", ints({2, 1})}, {"pads", ints({0, 2})}, {"grid", ints({1, 6})}, {"patch", ints({2, 3})}, {"within", ints({0})}};
    const Fields depthwise = {{"grid", ints({14, 14})}, {"kernel", ints({3})}, {"bias", ints({1})}, {"residual", ints({1})}}, depthwise_plain = {{"grid", ints({9, 5})}, {"kernel", ints({7})}, {"bias", ints({0})}, {"residual", ints({0})}};
    const Fields classifier = {{"epsilon", real(1e-5f)}, {"norm", ints({1})}, {"residual", ints({1})}, {"token", ints({-1})}}, classifier_token = {{"epsilon", real(0.f)}, {"norm", ints({0})}, {"residual", ints({0})}, {"token", ints({196})}};
    const Fields conv = {{"grid", ints({56, 56})}, {"kernel", ints({5})}}, conv_3 = {{"grid", ints({9, 5})}, {"kernel", ints({3})}};
    const Fields conv_layer = {{"grid", ints({56, 56})}, {"kernel", ints({5})}, {"approximate", text("none")}}, conv_layer_3 = {{"grid", ints({9, 5})}, {"kernel", ints({3})}, {"approximate", text("tanh")}};
    const Fields patch_conv = {{"epsilon", real(1e-5f)}, {"norm", ints({1})}, {"grid", ints({32, 32})}, {"kernel", ints({3, 3})}, {"strides", ints({2, 2})}, {"pads", ints({1, 1, 1, 1})}, {"cell", ints({1, 1})}, {"across", ints({1})}};
    const Fields patch_conv_words = {{"epsilon", real(0.f)}, {"norm", ints({0})}, {"grid", ints({8, 6})}, {"kernel", ints({2, 3})}, {"strides", ints({1, 2})}, {"pads", ints({0, 1, 1, 2})}, {"cell", ints({4, 2})}, {"across", ints({3})}};
    const Fields chain = {{"epsilon", real(1e-5f)}, {"num_heads", ints({3})}, {"head_dim", ints({32})}, {"hidden", ints({384})}, {"scale", real(0.1767767f)}, {"approximate", text("none")}, {"bias", ints({1})}, {"mask_value", real(-100.f)}, {"grid", ints({56, 56})}, {"window", ints({7, 7})}, {"shift", ints({3, 3})}, {"pad_after_roll", ints({0})}, {"shifted", padded({0, 1})}, {"between", ints({0})}, {"merged", ints({96})}, {"merged_grid", ints({112, 111})}, {"order", ints({0, 2, 1, 3})}};
    const Fields chain_plain = {{"epsilon", real(1e-6f)}, {"num_heads", ints({6})}, {"head_dim", ints({64})}, {"hidden", ints({1536})}, {"scale", real(0.125f)}, {"approximate", text("tanh")}, {"bias", ints({0})}, {"mask_value", real(0.f)}, {"grid", ints({0, 0})}, {"window", ints({0, 0})}, {"shift", ints({0, 0})}, {"pad_after_roll", ints({0})}, {"shifted", padded(std::vector<int32_t>(12, 0))}, {"between", ints({1})}, {"merged", ints({0})}, {"merged_grid", ints({0, 0})}, {"order", ints({0, 0, 0, 0})}};
    const Fields stack = {{"channels", ints({16, 32, 64, 128, 0})}, {"strides", ints({2, 2, 2, 1, 0})}, {"word_layer", ints({0})}, {"word_channels", ints({8})}, {"patch", ints({4, 4})}};
    const Fields stack_plain = {{"channels", ints({10, 64, 0, 0, 0})}, {"strides", ints({1, 2, 0, 0, 0})}, {"word_layer", ints({-1})}, {"word_channels", ints({0})}, {"patch", ints({1, 1})}};
    const Fields gelu = {{"bias", ints({1})}, {"approximate", text("none")}};
    const Fields gelu_plain = {{"bias", ints({0})}, {"approximate", text("tanh")}};
    return {
        {"TrtOptLayerNorm",
         {norm, plain, part},
         {{"epsilon", real(-1.f), "'epsilon'"}, {"epsilon", gone(), "'epsilon' is missing"}, {"epsilon", ints({1}), "'epsilon' must be float32"}, {"axis", ints({1}), "'axis'"}, {"axis", ints({-2}), "'axis' must be -1"},
          {"residual", ints({2}), "'residual' must be 0 or 1"}, {"residual", ints({0}), "'reverse' needs windows and a residual"},
          {"part_begin", ints({-2}), "'part_begin' must be a token"}, {"part_begin", ints({1}), "'part_begin' must be -1 where windows are used"}, {"part_begin", gone(), "'part_begin' is missing"},
          {"reverse", ints({2}), "'reverse' must be 0 or 1"}, {"window", ints({7, 0}), "'window'"}, {"window", ints({7}), "'window' must have 2 values, has 1"}, {"window", ints({-7, -7}), "'window'"},
          {"grid", ints({0, 56}), "'grid'"}, {"shift", ints({-1, 0}), "'shift'"}, {"pad_after_roll", ints({3}), "'pad_after_roll'"}, {"grid", typed(ints({56, 56}), PluginFieldType::kINT16), "'grid' must be int32"}}},
        {"TrtOptAttention",
         {attention, global},
         {{"num_heads", ints({0}), "'num_heads'"}, {"layout", text("kqv"), "'layout'"}, {"layout", ints({1}), "'layout' must be char"}, {"bias", ints({3}), "'bias'"}, {"mask", ints({-1}), "'mask'"},
          {"scale", real(__builtin_inff()), "'scale'"}, {"mask_value", real(__builtin_nanf("")), "'mask_value'"}, {"window", ints({0, 0}), "'window' is needed"}, {"grid", ints({56, -1}), "'grid'"}, {"shift", gone(), "'shift' is missing"}}},
        {"TrtOptWindow",
         {window},
         {{"rank", ints({2}), "'rank'"}, {"reverse", ints({0}), "'residual' needs reverse"}, {"window", ints({0, 0}), "'window'"}, {"reverse", ints({1, 1}), "'reverse' must have 1 value"}}},
        {"TrtOptPatchMerge",
         {merge},
         {{"order", ints({0, 1, 2, 4}), "'order'"}, {"order", ints({0, 1, 1, 3}), "'order' must name each quadrant once"}, {"order", ints({0, 1, 2}), "'order' must have 4 values"}, {"residual", ints({2}), "'residual' must be 0 or 1"}, {"rank", ints({5}), "'rank'"}, {"grid", ints({0, 0}), "'grid'"},
          {"epsilon", real(__builtin_nanf("")), "'epsilon'"}}},
        {"TrtOptMlpBlock",
         {mlp, mlp_tanh, mlp_alone},
         {{"epsilon", real(-1.f), "'epsilon'"}, {"residual", ints({2}), "'residual' must be 0 or 1"}, {"norm", ints({0}), "'residual' must be 0 without a norm"}, {"norm", ints({2}), "'norm' must be 0 or 1"},
          {"norm", gone(), "'norm' is missing"}, {"approximate", text("erf"), "'approximate' must be none or tanh"}, {"approximate", ints({0}), "'approximate' must be char"},
          {"approximate", gone(), "'approximate' is missing"}}},
        {"TrtOptSwinAttnBlock",
         {swin, swin_dense},
         {{"epsilon", real(__builtin_nanf("")), "'epsilon'"}, {"residual", ints({-1}), "'residual' must be 0 or 1"}, {"num_heads", ints({0}), "'num_heads'"}, {"scale", real(__builtin_inff()), "'scale'"}, {"bias", ints({3}), "'bias'"}, {"mask", ints({3}), "'mask'"},
          {"mask_value", real(__builtin_nanf("")), "'mask_value'"}, {"window", ints({0, 0}), "'window'"}, {"grid", ints({0, 0}), "'grid'"}, {"shift", ints({0}), "'shift' must have 2 values"}, {"shift", ints({3, -3}), "'shift'"}, {"pad_after_roll", ints({2}), "'pad_after_roll'"},
          {"pad_after_roll", gone(), "'pad_after_roll' is missing"}}},
        {"TrtOptAttnBlock",
         {block, block_dense},
         {{"epsilon", real(-1.f), "'epsilon'"}, {"epsilon", gone(), "'epsilon' is missing"}, {"residual", ints({2}), "'residual' must be 0 or 1"}, {"num_heads", ints({-6}), "'num_heads'"}, {"scale", real(__builtin_nanf("")), "'scale'"},
          {"bias", ints({2}), "'bias' must be 0 or 1"}, {"bias", real(0.f), "'bias' must be int32"}}},
        {"TrtOptPooledAttnBlock",
         {pooled, pooled_plain},
         {{"epsilon", real(-1.f), "'epsilon'"}, {"pool_epsilon", real(__builtin_nanf("")), "'pool_epsilon'"}, {"pool_epsilon", gone(), "'pool_epsilon' is missing"}, {"residual", ints({2}), "'residual' must be 0 or 1"}, {"grid", ints({0, 4}), "'grid' must be two positive sizes"},
          {"grid", ints({1024, 128}), "'grid' is too large"}, {"grid", ints({32}), "'grid' must have 2 values"}, {"pool", ints({0, 1}), "'pool' must be two positive sizes"}, {"pool", ints({1, 7}), "'pool' must be two positive sizes"}, {"pool", gone(), "'pool' is missing"},
          {"num_heads", ints({0}), "'num_heads'"}, {"scale", real(__builtin_inff()), "'scale'"}, {"bias", ints({2}), "'bias' must be 0 or 1"}}},
        {"TrtOptTntInnerBlock",
         {inner, inner_whole},
         {{"epsilon1", real(-1.f), "'epsilon1'"}, {"epsilon2", real(__builtin_nanf("")), "'epsilon2'"}, {"whole", ints({2}), "'whole' must be 0 or 1"}, {"num_heads", ints({0}), "'num_heads'"}, {"scale", real(__builtin_inff()), "'scale'"},
          {"approximate", text("erf"), "'approximate' must be none or tanh"}, {"epsilon2", gone(), "'epsilon2' is missing"}}},
        {"TrtOptTntBridge",
         {bridge, bridge_residual},
         {{"epsilon1", real(__builtin_nanf("")), "'epsilon1'"}, {"epsilon2", real(-1.f), "'epsilon2'"}, {"residual", ints({2}), "'residual' must be 0 or 1"}, {"begin", ints({-1}), "'begin' must not be negative"},
          {"begin", real(1.f), "'begin' must be int32"}, {"begin", gone(), "'begin' is missing"}}},
        {"TrtOptNormPool",
         {pool, pool_plain},
         {{"epsilon", real(-1.f), "'epsilon'"}, {"epsilon", ints({0}), "'epsilon' must be float32"}, {"residual", ints({2}), "'residual' must be 0 or 1"}, {"residual", ints({0, 0}), "'residual' must have 1 value"}, {"residual", gone(), "'residual' is missing"}}},
        {"TrtOptPatchMergeBlock",
         {merge, merge_block},
         {{"order", ints({0, -1, 2, 3}), "'order'"}, {"order", ints({0, 3, 1, 3}), "'order' must name each quadrant once"}, {"order", gone(), "'order' is missing"}, {"residual", ints({-1}), "'residual' must be 0 or 1"}, {"rank", ints({2}), "'rank'"},
          {"grid", ints({32768, 32768}), "'grid'"}, {"grid", ints({14}), "'grid' must have 2 values"}, {"epsilon", real(-1.f), "'epsilon'"}}},
        {"TrtOptPatchEmbed",
         {embed, embed_plain},
         {{"epsilon", real(-1.f), "'epsilon'"}, {"bias", ints({2}), "'bias' must be 0 or 1"}, {"norm", ints({-1}), "'norm' must be 0 or 1"}, {"norm", real(1.f), "'norm' must be int32"}, {"rank", ints({5}), "'rank' must be 3 or 4"},
          {"rank", gone(), "'rank' is missing"}, {"grid", ints({0, 14}), "'grid' must be two positive sizes, or 0 and 0"}, {"grid", ints({-1, -1}), "'grid' must be two positive sizes"}, {"grid", ints({32768, 65536}), "'grid' is too large"},
          {"grid", ints({14}), "'grid' must have 2 values"}, {"grid", gone(), "'grid' is missing"}}},
        {"TrtOptPixelEmbed",
         {pixels, pixels_whole},
         {{"kernel", ints({7, 9}), "'kernel' must be at most 128 x 8"}, {"kernel", ints({0, 7}), "'kernel' must be two positive sizes"}, {"strides", ints({0, 4}), "'strides' must be two positive sizes"}, {"strides", ints({4, 1025}), "'strides' must be at most 1024"},
          {"pads", ints({3, 7}), "'pads' must be less than 'kernel'"}, {"pads", ints({-1, 3}), "'pads' must be two sizes"}, {"grid", ints({14, 0}), "'grid' must be two positive sizes"}, {"grid", ints({14}), "'grid' must have 2 values"},
          {"patch", ints({17, 16}), "'patch' must have at most 256 words"}, {"patch", gone(), "'patch' is missing"}, {"within", ints({2}), "'within' must be 0 or 1"}}},
        {"TrtOptTntWords",
         {words, words_whole, words_stacked},
         {{"epsilon1", real(-1.f), "'epsilon1'"}, {"bridge_epsilon1", real(__builtin_nanf("")), "'bridge_epsilon1'"}, {"bridge_epsilon2", gone(), "'bridge_epsilon2' is missing"}, {"num_heads", ints({0}), "'num_heads'"}, {"whole", ints({2}), "'whole' must be 0 or 1"},
          {"tokens", ints({0}), "'tokens' must be 1 to 65536"}, {"begin", ints({-1}), "'begin' must not be negative"}, {"covered", ints({197}), "'covered' must be at least 1"}, {"covered", ints({0}), "'covered' must be at least 1"},
          {"after", padded({}), "'after' must name a layer"}, {"after", padded({2, 1}), "'after' must be layers"}, {"after", padded({13}), "'after' must be layers from 0 to 12"}, {"after", padded({1, -1, 2}), "'after' must be layers"}, {"after", ints({1, 2}), "'after' must have 32 values"},
          {"layers", ints({33}), "'layers' must be 1 to 32, is 33"}, {"hidden", ints({0}), "'hidden' must be 1 to 16384, is 0"}, {"width", ints({16385}), "'width' must be 1 to 16384"}, {"channels", gone(), "'channels' is missing"},
          {"words", ints({2}), "'words' must be 0 or 1"}, {"stacked", ints({13}), "'stacked' must be 0 to 12, is 13"}, {"stacked", ints({-1}), "'stacked' must be 0 to 12, is -1"}, {"stacked", gone(), "'stacked' is missing"}}},
        {"TrtOptGelu",
         {gelu, gelu_plain},
         {{"bias", ints({2}), "'bias' must be 0 or 1"}, {"bias", gone(), "'bias' is missing"}, {"approximate", text("erf"), "'approximate' must be none or tanh"}, {"approximate", ints({0}), "'approximate' must be char"}}},
        {"TrtOptDepthwiseConv",
         {depthwise, depthwise_plain},
         {{"grid", ints({0, 14}), "'grid' must be two positive sizes"}, {"grid", ints({32768, 65536}), "'grid' is too large"}, {"grid", ints({14}), "'grid' must have 2 values"}, {"kernel", ints({4}), "'kernel' must be 3, 5 or 7"},
          {"kernel", gone(), "'kernel' is missing"}, {"bias", ints({2}), "'bias' must be 0 or 1"}, {"residual", ints({-1}), "'residual' must be 0 or 1"}}},
        {"TrtOptConvBlock",
         {conv, conv_3},
         {{"grid", ints({56, 0}), "'grid' must be two positive sizes"}, {"grid", ints({32768, 65536}), "'grid' is too large"}, {"grid", ints({56}), "'grid' must have 2 values"}, {"kernel", ints({4}), "'kernel' must be 3, 5 or 7"},
          {"kernel", real(5.f), "'kernel' must be int32"}, {"kernel", gone(), "'kernel' is missing"}}},
        {"TrtOptConvLayer",
         {conv_layer, conv_layer_3},
         {{"grid", ints({0, 56}), "'grid' must be two positive sizes"}, {"grid", ints({32768, 65536}), "'grid' is too large"}, {"kernel", ints({9}), "'kernel' must be 3, 5 or 7"}, {"kernel", gone(), "'kernel' is missing"},
          {"approximate", text("erf"), "'approximate' must be none or tanh"}, {"approximate", gone(), "'approximate' is missing"}}},
        {"TrtOptClassifier",
         {classifier, classifier_token},
         {{"epsilon", real(-1.f), "'epsilon'"}, {"norm", ints({2}), "'norm' must be 0 or 1"}, {"residual", ints({-1}), "'residual' must be 0 or 1"}, {"token", ints({-2}), "'token' must be a token or -1"}, {"token", real(0.f), "'token' must be int32"},
          {"token", gone(), "'token' is missing"}}},
        {"TrtOptPatchConv",
         {patch_conv, patch_conv_words},
         {{"epsilon", real(-1.f), "'epsilon'"}, {"norm", ints({2}), "'norm' must be 0 or 1"}, {"grid", ints({32, 0}), "'grid' must be two positive sizes"}, {"grid", ints({32768, 65536}), "'grid' is too large"}, {"grid", ints({32768, 16384}), "'grid' is too large for attribute 'kernel'"}, {"grid", ints({32}), "'grid' must have 2 values"},
          {"kernel", ints({0, 3}), "'kernel' must be two positive sizes"}, {"kernel", ints({129, 128}), "at most 16384 places"}, {"kernel", gone(), "'kernel' is missing"}, {"strides", ints({2, -1}), "'strides' must be two positive sizes"}, {"pads", ints({1, 1, -1, 1}), "'pads' must not be negative"}, {"pads", ints({3, 1, 1, 1}), "smaller than 'kernel'"},
          {"pads", ints({1, 1}), "'pads' must have 4 values"}, {"cell", ints({0, 1}), "'cell' must be two positive sizes"}, {"cell", ints({3, 1}), "'cell' must be two positive sizes that divide 'grid'"}, {"across", ints({0}), "'across' must be a positive number"}}},
        {"TrtOptConvStack",
         {stack, stack_plain},
         {{"channels", ints({16, 0, 0, 0, 0}), "'channels' must be 2 to 5 positive numbers"}, {"channels", ints({16, 32, 0, 64, 0}), "'channels' must be 2 to 5 positive numbers"}, {"channels", ints({16, 65, 64, 128, 0}), "'channels' must be at most 64"}, {"channels", ints({16, 32, 64, 129, 0}), "'channels' must be at most 64, of the last layer at most 128"},
          {"channels", ints({16, 32}), "'channels' must have 5 values"}, {"strides", ints({2, 2, 2, 3, 0}), "'strides' must be 1 or 2"}, {"strides", ints({2, 2, 2, 1, 1}), "'strides' must be 1 or 2"}, {"strides", gone(), "'strides' is missing"}, {"word_layer", ints({3}), "'word_layer' must be a layer before the last"}, {"word_layer", ints({-2}), "'word_layer'"},
          {"word_layer", ints({-1}), "'word_channels' must be 1 to 64, without words 0"}, {"word_channels", ints({65}), "'word_channels'"}, {"word_channels", ints({0}), "'word_channels'"}, {"patch", ints({17, 16}), "'patch' must be two positive sizes, of at most 256 words"}, {"patch", ints({0, 4}), "'patch' must be two positive sizes"}}},
        {"TrtOptBlockChain",
         {chain, chain_plain},
         {{"epsilon", real(-1.f), "'epsilon'"}, {"num_heads", ints({0}), "'num_heads' must be positive"}, {"num_heads", ints({33}), "'num_heads' and 'head_dim' must be at most 1024"}, {"head_dim", ints({64}), "'head_dim' must be 32"}, {"hidden", ints({392}), "'hidden' must be a multiple of 16"},
          {"hidden", ints({4112}), "'hidden' must be a multiple of 16 up to 4096"}, {"hidden", gone(), "'hidden' is missing"}, {"scale", real(__builtin_inff()), "'scale'"}, {"approximate", text("erf"), "'approximate' must be none or tanh"},
          {"bias", ints({2}), "'bias' must be 0 or 1"}, {"mask_value", real(__builtin_nanf("")), "'mask_value'"}, {"grid", ints({0, 56}), "'grid'"}, {"window", ints({0, 0}), "'shifted' must be 0 where there are no windows"}, {"window", ints({8, 9}), "'window' must have at most 64 tokens"},
          {"shift", ints({-1, 0}), "'shift'"}, {"pad_after_roll", ints({2}), "'pad_after_roll'"}, {"shifted", padded({}), "'shifted' must have a value"}, {"shifted", padded({0, 2}), "'shifted' must be 0 or 1"},
          {"shifted", padded({1, -1, 0}), "'shifted' must be 0 or 1"}, {"shifted", ints({0, 1}), "'shifted' must have 32 values"},
          {"between", ints({1}), "'between' must be 0 in windows"}, {"between", ints({2}), "'between' must be 0 or 1"}, {"between", gone(), "'between' is missing"},
          {"merged", ints({-16}), "'merged' must be 0"}, {"merged", ints({1040}), "'merged' must be 0, or in windows at most 1024"}, {"merged", gone(), "'merged' is missing"}, {"merged_grid", ints({0, 112}), "'merged_grid' must be two positive sizes"},
          {"merged_grid", ints({112, 113}), "'merged_grid' must be twice 'grid'"}, {"merged_grid", ints({112}), "'merged_grid' must have 2 values"}, {"order", ints({0, 2, 1, 4}), "'order' must hold quadrants"}, {"order", ints({0, 2, 1, 1}), "'order' must name each quadrant once"},
          {"order", gone(), "'order' is missing"}}},
    };
}

// Fields of `given` as TensorRT passes them, valid while `given` lives.
inline std::vector<PluginField> fields_of(const Fields& given) {
    std::vector<PluginField> out;
    for (const auto& f : given) out.emplace_back(f.first.c_str(), f.second.data(), f.second.type, f.second.length);
    return out;
}

inline std::string show(const PluginField& f) {
    std::string out = std::string(f.name) + ":" + std::to_string(static_cast<int>(f.type)) + ":" + std::to_string(f.length) + "=";
    const int size = f.type == PluginFieldType::kCHAR ? 1 : 4;
    for (int i = 0; i < f.length * size; ++i) {
        char byte[4];
        std::snprintf(byte, sizeof(byte), "%02x", static_cast<const unsigned char*>(f.data)[i]);
        out += byte;
    }
    return out;
}

// `create` makes a plugin from fields (null if refused) and returns whether it did; run over every op.
inline void creation(Logger& logger, const std::function<bool(const char* op, const PluginFieldCollection*)>& create) {
    for (const Op& op : ops()) {
        for (const Fields& valid : op.valid) {
            auto f = fields_of(valid);
            const PluginFieldCollection all{static_cast<int32_t>(f.size()), f.data()};
            logger.clear();
            expect(create(op.name, &all) && logger.all.empty(), std::string(op.name) + " is made from valid fields: " + logger.all);
            // In another order, and with a field that it does not know.
            std::vector<PluginField> reversed(f.rbegin(), f.rend());
            const int32_t stranger = 0;
            reversed.emplace_back("stranger", &stranger, PluginFieldType::kINT32, 1);
            const PluginFieldCollection more{static_cast<int32_t>(reversed.size()), reversed.data()};
            logger.clear();
            expect(create(op.name, &more) && logger.errors.empty() && logger.all.find("stranger") != std::string::npos, std::string(op.name) + " warns of unknown fields");
            // Twice the same field.
            f.push_back(f[0]);
            const PluginFieldCollection twice{static_cast<int32_t>(f.size()), f.data()};
            logger.clear();
            expect(!create(op.name, &twice) && logger.errors.find("given twice") != std::string::npos, std::string(op.name) + " refuses a field given twice");
        }
        for (const auto& spoiled : op.invalid) {
            Fields fields;
            for (const auto& f : op.valid[0])
                if (f.first != spoiled.field) fields.push_back(f);
                else if (spoiled.value.length >= 0) fields.emplace_back(f.first, spoiled.value);
            auto f = fields_of(fields);
            const PluginFieldCollection all{static_cast<int32_t>(f.size()), f.data()};
            logger.clear();
            const bool made = create(op.name, &all);
            expect(!made && logger.errors.find(spoiled.message) != std::string::npos && logger.errors.find(op.name) != std::string::npos,
                   std::string(op.name) + " refuses a bad '" + spoiled.field + "' saying \"" + spoiled.message + "\"; said \"" + logger.errors + "\"");
        }
        PluginFieldCollection none{0, nullptr};
        logger.clear();
        expect(!create(op.name, &none) && !logger.errors.empty(), std::string(op.name) + " refuses no fields");
        expect(!create(op.name, nullptr), std::string(op.name) + " refuses null");
    }
}

// The combinations of types that an op with an image takes; `takes(image, rest)` asks for all of its tensors.
inline void image_types(const std::function<bool(DataType image, DataType rest)>& takes) {
    constexpr DataType kHalf = DataType::kHALF, kFloat = DataType::kFLOAT;
    expect(takes(kHalf, kHalf) && takes(kFloat, kFloat), "an image of the type of all else is taken");
    expect(takes(kFloat, kHalf), "an fp32 image is taken where all else is fp16");
    expect(!takes(kHalf, kFloat), "an fp16 image is refused where all else is fp32");
    expect(!takes(DataType::kINT32, kHalf) && !takes(kFloat, DataType::kINT32), "int32 is refused");
}
// And where it reads tokens.
inline void token_types(const std::function<bool(DataType tokens, DataType rest)>& takes) {
    constexpr DataType kHalf = DataType::kHALF, kFloat = DataType::kFLOAT;
    expect(takes(kHalf, kHalf) && takes(kFloat, kFloat), "tokens of the type of all else are taken");
    expect(!takes(kFloat, kHalf) && !takes(kHalf, kFloat), "tokens of another type than all else are refused");
}

inline Op op_called(const char* name) {
    for (const Op& op : ops())
        if (op.name == std::string(name)) return op;
    std::printf("FAIL no %s\n", name), std::exit(2);
}
// The op with an image, and its fields with all inputs: five of them.
inline Op op_with_image() { return op_called("TrtOptPatchEmbed"); }

// How many outputs the words of TNT have by their attributes; `outputs` makes a plugin and asks it.
inline void outputs_of_words(const std::function<int(const PluginFieldCollection*)>& outputs) {
    const Op words = op_called("TrtOptTntWords");
    const int expected[] = {12, 4, 2};
    for (size_t i = 0; i < 3; ++i) {
        auto f = fields_of(words.valid[i]);
        const PluginFieldCollection all{static_cast<int32_t>(f.size()), f.data()};
        expect(outputs(&all) == expected[i], "words have an output for each bridge, or one for the last of them, and one for the last words if asked for");
    }
}

inline void* open_library(const char* path) {
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) std::printf("FAIL %s\n", dlerror()), std::exit(2);
    return handle;
}
template <class F> F symbol(void* handle, const char* name) {
    void* found = dlsym(handle, name);
    if (!found) std::printf("FAIL no symbol %s\n", name), std::exit(2);
    return reinterpret_cast<F>(found);
}

// Field list of a creator as a JSON object.
inline std::string json(const char* name, const char* version, const char* space, const PluginFieldCollection* fields) {
    std::string out = std::string("  {\"name\": \"") + name + "\", \"version\": \"" + version + "\", \"namespace\": \"" + space + "\", \"fields\": [";
    for (int32_t i = 0; i < fields->nbFields; ++i) {
        const PluginField& f = fields->fields[i];
        const char* type = f.type == PluginFieldType::kFLOAT32 ? "FLOAT" : f.type == PluginFieldType::kCHAR ? "STRING" : f.length > 1 ? "INTS" : "INT";
        out += std::string(i ? ", " : "") + "{\"name\": \"" + f.name + "\", \"type\": \"" + type + "\", \"count\": " + std::to_string(f.length) + "}";
    }
    return out + "]}";
}

inline int finish(const char* what) {
    std::printf("%s: %d checks, %d failed\n", what, checks, failures);
    return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace check
