// What all of the bridge to TensorRT shares: exceptions, the logger, versions.
#pragma once

#include <NvInfer.h>

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

#include "rust/cxx.h"

namespace rust::behavior {

// How cxx turns C++ exceptions into errors: all of them, so that none crosses into Rust.
template <typename Try, typename Fail> static void trycatch(Try&& attempt, Fail&& fail) noexcept try {
    attempt();
} catch (const std::exception& e) {
    fail(e.what());
} catch (...) {
    fail("a C++ exception of unknown type");
}

}  // namespace rust::behavior

namespace trt_opt {

struct Version;

// The version of the headers that this was compiled with.
Version headers_version() noexcept;

// TensorRT keeps one logger for a process; this one hands its lines to Rust.
nvinfer1::ILogger& logger() noexcept;

// A function of a library, by the address that dlsym found.
template <class F> F function(size_t address) {
    if (address == 0) throw std::invalid_argument("a function's address is null");
    return reinterpret_cast<F>(address);
}

// What one of TensorRT's createInfer... functions returned. Where CUDA cannot be used, TensorRT 11 returns a null
// pointer converted to a base class, which is not null: any address in the first page is taken for one.
template <class T> T* created(void* object, const char* what) {
    if (reinterpret_cast<uintptr_t>(object) < 4096) throw std::runtime_error(std::string("TensorRT makes no ") + what);
    return static_cast<T*>(object);
}

inline std::string text(const char* string) { return string ? string : ""; }

}  // namespace trt_opt
