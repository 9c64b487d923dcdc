#include "log.h"

#include <atomic>
#include <cstdio>

namespace trt_opt {
namespace {
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};
}

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder.store(finder); }

void log(nvinfer1::ILogger::Severity severity, const std::string& message) noexcept {
    try {
        const std::string text = "trt_opt: " + message;
        nvinfer1::ILoggerFinder* finder = logger_finder.load();
        if (nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr) logger->log(severity, text.c_str());
        else if (severity <= nvinfer1::ILogger::Severity::kERROR) std::fprintf(stderr, "%s\n", text.c_str());
    } catch (...) {
    }
}

}  // namespace trt_opt
