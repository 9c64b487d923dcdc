// Building: an ONNX file in, a serialized engine out.
#pragma once

#include "common.h"

namespace trt_opt {

struct BuildRequest;
struct Built;
struct Monitor;

// `builder` and `parser` are createInferBuilder_INTERNAL and createNvOnnxParser_INTERNAL. Throws where TensorRT says
// no; a model that the parser refuses is not that: then `Built` has its errors and no plan.
Built build(size_t builder, size_t parser, const BuildRequest& request, const Monitor& monitor);

// What either of two timing caches of this GPU and TensorRT knows; of what both know, what the first says.
rust::Vec<uint8_t> combine_timings(size_t builder, rust::Slice<const uint8_t> ours, rust::Slice<const uint8_t> others);

}  // namespace trt_opt
