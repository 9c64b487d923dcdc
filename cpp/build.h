// Building: an ONNX file in, a serialized engine out.
#pragma once

#include <memory>
#include <set>
#include <string>

#include "common.h"

namespace trt_opt {

struct BuildRequest;
struct Built;
struct Monitor;

// Starting one takes seconds; what it has learnt of the times of layers serves all engines that it builds.
class Builder {
public:
    // `create` is createInferBuilder_INTERNAL.
    explicit Builder(size_t create);

    // `parser` is createNvOnnxParser_INTERNAL. Throws where TensorRT says no; a model that the parser refuses is not
    // that: then `Built` has its errors and no plan.
    Built build(size_t parser, const BuildRequest& request, const Monitor& monitor);

    // The timing cache of all builds, with that of `others`, if any, added; empty if there is none.
    rust::Vec<uint8_t> timings(rust::Slice<const uint8_t> others);

private:
    void load(const rust::Vec<rust::String>& plugins);
    bool use_timings(nvinfer1::IBuilderConfig& config, rust::Slice<const uint8_t> given);

    std::unique_ptr<nvinfer1::IBuilder> builder_;  // outlives what it makes
    std::unique_ptr<nvinfer1::ITimingCache> cache_;
    std::set<std::string> plugins_;
};

std::unique_ptr<Builder> new_builder(size_t create);

}  // namespace trt_opt
