// Running: engines and their execution contexts.
#pragma once

#include <memory>
#include <vector>

#include "common.h"

namespace trt_opt {

struct TensorInfo;
struct LayerTime;

// An engine with the runtime that it came from.
class Engine {
public:
    Engine(std::unique_ptr<nvinfer1::IRuntime> runtime, std::unique_ptr<nvinfer1::ICudaEngine> engine) : runtime_(std::move(runtime)), engine_(std::move(engine)) {}
    rust::Vec<TensorInfo> tensors() const;
    // Of the layers, JSON in TensorRT's own form.
    rust::Vec<uint8_t> information() const;
    // Bytes that a context needs beside weights, inputs and outputs.
    uint64_t device_memory() const;
    nvinfer1::ICudaEngine& get() const { return *engine_; }

private:
    std::unique_ptr<nvinfer1::IRuntime> runtime_;  // outlives the engine
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
};

class Context {
public:
    explicit Context(std::shared_ptr<Engine> engine);
    void set_input_shape(const rust::String& name, rust::Slice<const int64_t> dims);
    // Once all inputs have theirs; throws if the shape depends on values.
    rust::Vec<int64_t> shape(const rust::String& name) const;
    void set_address(const rust::String& name, size_t address);
    void enqueue(size_t stream);
    // Another context of the engine with the same shapes and addresses.
    std::unique_ptr<Context> twin() const;
    // Runs once with a profiler and waits; times of the layers in milliseconds, in order. The context keeps the
    // profiler, as TensorRT 8.6 takes none back, and so is slow from then on.
    rust::Vec<LayerTime> profile(size_t stream);

private:
    std::shared_ptr<Engine> engine_;
    std::unique_ptr<nvinfer1::IProfiler> profiler_;  // outlives the context
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
};

// `runtime` is createInferRuntime_INTERNAL.
std::shared_ptr<Engine> deserialize(size_t runtime, rust::Slice<const uint8_t> plan, const rust::Vec<rust::String>& plugins);
std::unique_ptr<Context> new_context(std::shared_ptr<Engine> engine);

}  // namespace trt_opt
