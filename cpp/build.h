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

}  // namespace trt_opt
