// Messages to TensorRT's logger, as the entry point setLoggerFinder handed it over.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace trt_opt {

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;
// Errors go to stderr where no logger is known. Never throws.
void log(nvinfer1::ILogger::Severity severity, const std::string& message) noexcept;
inline void log_error(const std::string& message) noexcept { log(nvinfer1::ILogger::Severity::kERROR, message); }

}  // namespace trt_opt
