#include "common.h"

#include <cstring>

#include "trt-opt/src/engine/bridge.rs.h"

namespace trt_opt {
namespace {

class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, char const* message) noexcept override {
        const char* line = message ? message : "";
        log_line(static_cast<int32_t>(severity), {reinterpret_cast<const uint8_t*>(line), std::strlen(line)});
    }
};

}  // namespace

Version headers_version() noexcept { return {NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH}; }

nvinfer1::ILogger& logger() noexcept {
    // Never destroyed: libraries may log while the process ends.
    static Logger* const one = new Logger;
    return *one;
}

}  // namespace trt_opt
