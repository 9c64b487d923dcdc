// Checks every kernel against the double-precision reference, without TensorRT.
//
//   kernel_check [--json FILE] [--random N] [--seed S] [--large] [--filter TEXT]
//
// Outputs are poisoned with NaN and fenced; inputs are fresh random numbers. Exit status 0 only if
// every case passed. An error is ||out - ref|| / ||ref||; limits: 2e-3 fp16, 1e-5 fp32.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"
#include "reference.cuh"

using namespace trt_opt;

namespace {

#define CUDA_OK(call)                                                                                    \
    do {                                                                                                 \
        const cudaError_t status_ = (call);                                                              \
        if (status_ != cudaSuccess) {                                                                    \
            std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status_)); \
            std::exit(2);                                                                                \
        }                                                                                                \
    } while (0)

__device__ uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
// Roughly normal: sum of four uniforms, unit variance.
template <class T> __global__ void fill_kernel(T* p, int64_t n, uint64_t seed, float scale, float offset) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
        const uint64_t r = mix(seed * 0x9e3779b97f4a7c15ull + i + 1);
        float sum = 0;
        for (int k = 0; k < 4; ++k) sum += static_cast<float>(r >> (16 * k) & 0xffff) / 65536.f - 0.5f;
        p[i] = static_cast<T>(sum * 1.7320508f * scale + offset);
    }
}
template <class T> __global__ void compare_kernel(const T* out, const double* ref, int64_t n, double* result) {
    double difference = 0, size = 0, bad = 0;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
        const double a = static_cast<double>(static_cast<float>(out[i])), b = ref[i];
        if (!isfinite(a)) bad += 1;
        else difference += (a - b) * (a - b);
        size += b * b;
    }
    for (int step = 16; step; step /= 2) {
        difference += __shfl_down_sync(~0u, difference, step);
        size += __shfl_down_sync(~0u, size, step);
        bad += __shfl_down_sync(~0u, bad, step);
    }
    if (threadIdx.x % 32 == 0) atomicAdd(result, difference), atomicAdd(result + 1, size), atomicAdd(result + 2, bad);
}
__global__ void fence_kernel(const unsigned char* p, int64_t n, double* result) {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x)
        if (p[i] != 0xff) atomicAdd(result, 1.0);
}

size_t size_of(DType t) { return t == DType::kHalf ? 2 : 4; }

// A device tensor, `shift` elements off its allocation's alignment, with a fence of 0xff bytes on both sides.
struct Buffer {
    static constexpr int64_t kFence = 512;
    unsigned char* memory = nullptr;
    int64_t count = 0, bytes = 0, shift = 0;
    DType type{};

    Buffer(DType t, int64_t n, int64_t shift_elements) : count(n), bytes(n * size_of(t)), shift(shift_elements * size_of(t)), type(t) {
        CUDA_OK(cudaMalloc(&memory, bytes + 2 * kFence));
        poison();
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { cudaFree(memory); }
    void poison() { CUDA_OK(cudaMemset(memory, 0xff, bytes + 2 * kFence)); }
    void* data() const { return memory + kFence / 2 + shift; }
    void fill(uint64_t seed, float scale, float offset = 0) {
        if (count == 0) return;
        if (type == DType::kHalf) fill_kernel<<<512, 256>>>(static_cast<__half*>(data()), count, seed, scale, offset);
        else fill_kernel<<<512, 256>>>(static_cast<float*>(data()), count, seed, scale, offset);
        CUDA_OK(cudaGetLastError());
    }
};
using Tensor = std::unique_ptr<Buffer>;
Tensor tensor(DType t, int64_t n, int64_t shift = 0) { return std::make_unique<Buffer>(t, n, shift); }

struct Doubles {
    double* p = nullptr;
    explicit Doubles(int64_t n) {
        CUDA_OK(cudaMalloc(&p, (n + 1) * sizeof(double)));
        CUDA_OK(cudaMemset(p, 0, (n + 1) * sizeof(double)));
    }
    Doubles(const Doubles&) = delete;
    ~Doubles() { cudaFree(p); }
};

struct Checker {
    FILE* json = nullptr;
    std::string filter;
    int cases = 0, failed = 0;
    double worst[2] = {0, 0};  // fp32, fp16
    std::string worst_name[2];
    uint64_t seed = 1;
    bool graph = false;  // run through a captured graph

    uint64_t next_seed() { return seed++; }
    bool wanted(const std::string& name) const { return name.find(filter) != std::string::npos; }

    template <class F> cudaError_t run(F&& launch) {
        cudaStream_t stream;
        CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        CUDA_OK(cudaDeviceSynchronize());
        cudaError_t status;
        if (graph) {
            cudaGraph_t g;
            cudaGraphExec_t exec;
            CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
            status = launch(stream);
            CUDA_OK(cudaStreamEndCapture(stream, &g));
            if (status == cudaSuccess) {
                CUDA_OK(cudaGraphInstantiate(&exec, g, 0));
                CUDA_OK(cudaGraphLaunch(exec, stream));
                CUDA_OK(cudaStreamSynchronize(stream));
                CUDA_OK(cudaGraphExecDestroy(exec));
            }
            CUDA_OK(cudaGraphDestroy(g));
        } else {
            status = launch(stream);
            CUDA_OK(cudaStreamSynchronize(stream));
        }
        CUDA_OK(cudaStreamDestroy(stream));
        return status;
    }
    void report(const std::string& name, DType type, double error, double bad, double fence, const char* note = "") {
        const double limit = type == DType::kHalf ? 2e-3 : 1e-5;
        const bool pass = error <= limit && bad == 0 && fence == 0 && !*note;
        ++cases;
        if (!pass) {
            ++failed;
            std::printf("FAIL %s %s error %.3g unwritten or not finite %.0f fence %.0f %s\n", name.c_str(), type == DType::kHalf ? "fp16" : "fp32", error, bad, fence, note);
        }
        if (!(error <= worst[type == DType::kHalf])) worst[type == DType::kHalf] = error, worst_name[type == DType::kHalf] = name;
        if (json)
            std::fprintf(json, "%s\n{\"case\":\"%s\",\"type\":\"%s\",\"error\":%.4g,\"bad\":%.0f,\"fence\":%.0f,\"pass\":%s}", cases > 1 ? "," : "", name.c_str(),
                         type == DType::kHalf ? "fp16" : "fp32", std::isfinite(error) ? error : 1e30, bad, fence, pass ? "true" : "false");
    }
    // `within`: what each element may be off by besides, whatever its size.
    void compare(const std::string& name, const Buffer& out, const Doubles& ref, double within = 0) {
        Doubles result(4);
        if (out.type == DType::kHalf) compare_kernel<<<1024, 256>>>(static_cast<const __half*>(out.data()), ref.p, out.count, result.p);
        else compare_kernel<<<1024, 256>>>(static_cast<const float*>(out.data()), ref.p, out.count, result.p);
        const auto* begin = static_cast<unsigned char*>(out.data());
        fence_kernel<<<1, 256>>>(out.memory, begin - out.memory, result.p + 3);
        fence_kernel<<<1, 256>>>(begin + out.bytes, out.memory + out.bytes + 2 * Buffer::kFence - begin - out.bytes, result.p + 3);
        CUDA_OK(cudaGetLastError());
        double host[4];
        CUDA_OK(cudaMemcpy(host, result.p, sizeof(host), cudaMemcpyDeviceToHost));
        const double difference = std::max(0., std::sqrt(host[0]) - within * std::sqrt(static_cast<double>(out.count)));
        report(name, out.type, host[1] > 0 ? difference / std::sqrt(host[1]) : difference, host[2], host[3]);
    }
    // Nothing was written beside the workspace.
    void enclosed(const std::string& name, DType type, const Buffer& workspace) {
        Doubles outside(1);
        const auto* begin = static_cast<unsigned char*>(workspace.data());
        fence_kernel<<<1, 256>>>(workspace.memory, begin - workspace.memory, outside.p);
        fence_kernel<<<1, 256>>>(begin + workspace.bytes, workspace.memory + workspace.bytes + 2 * Buffer::kFence - begin - workspace.bytes, outside.p);
        CUDA_OK(cudaGetLastError());
        double fence = 0;
        CUDA_OK(cudaMemcpy(&fence, outside.p, sizeof(fence), cudaMemcpyDeviceToHost));
        report(name + " workspace", type, 0, 0, fence);
    }
};

uint32_t blocks_for(int64_t n) { return static_cast<uint32_t>((n + 127) / 128); }

struct LayerNormCase {
    DType type;
    int64_t images, row;
    bool residual;
    WindowGrid window;   // unused: `images` rows
    int shift = 0;       // misalignment in elements
    float offset = 0;    // of the input
    bool reverse = false;
    int64_t tokens = 1, part_begin = 0, part_tokens = 0;  // of `images` images; 0 part_tokens: no part
};
void check(Checker& c, const std::string& name, const LayerNormCase& a) {
    if (!c.wanted(name)) return;
    LayerNormProblem p;
    p.dtype = a.type;
    p.window = a.window;
    p.reverse = a.reverse;
    p.row = a.row;
    p.rows = a.images * (a.window.used() ? a.window.grid_h * a.window.grid_w : a.tokens);
    const int64_t cut = a.window.used() ? a.images * a.window.windows() * a.window.window_tokens() : p.rows;
    const bool part = a.part_tokens > 0, summed = a.residual || part;
    const int64_t in_rows = a.reverse ? cut : p.rows, out_rows = a.reverse ? p.rows : cut;
    Tensor x = tensor(a.type, in_rows * a.row, a.shift), r = tensor(a.type, a.residual ? p.rows * a.row : 0, a.shift), scale = tensor(a.type, a.row, a.shift),
           bias = tensor(a.type, a.row, a.shift), y = tensor(a.type, out_rows * a.row, a.shift), sum = tensor(a.type, summed ? p.rows * a.row : 0, a.shift),
           extra = tensor(a.type, a.images * a.part_tokens * a.row, a.shift);
    x->fill(c.next_seed(), 1.5f, a.offset), r->fill(c.next_seed(), 1.f), scale->fill(c.next_seed(), 0.5f, 1.f), bias->fill(c.next_seed(), 0.5f);
    p.x = x->data(), p.scale = scale->data(), p.bias = bias->data(), p.y = y->data();
    if (a.residual) p.residual = r->data();
    if (summed) p.sum = sum->data();
    if (part) {
        extra->fill(c.next_seed(), 1.f);
        p.part = extra->data(), p.tokens = a.tokens, p.part_begin = a.part_begin, p.part_tokens = a.part_tokens;
    }
    const cudaError_t status = c.run([&](cudaStream_t s) { return layer_norm(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    Doubles ref(y->count), ref_sum(sum->count);
    if (cut > 0) {
        if (a.type == DType::kHalf) reference::layer_norm<__half><<<blocks_for(cut), 128>>>(p, cut, ref.p, ref_sum.p);
        else reference::layer_norm<float><<<blocks_for(cut), 128>>>(p, cut, ref.p, ref_sum.p);
        CUDA_OK(cudaGetLastError());
    }
    c.compare(name, *y, ref);
    if (summed) c.compare(name + " sum", *sum, ref_sum);
}
// `images` images of `tokens` rows, and an operand for some of them.
void check_part(Checker& c, DType type, int64_t images, int64_t tokens, int64_t begin, int64_t covered, int64_t row, bool residual, int shift = 0, float offset = 0) {
    LayerNormCase a{type, images, row, residual, {}, shift, offset};
    a.tokens = tokens, a.part_begin = begin, a.part_tokens = covered;
    std::string name = "layer_norm part " + std::to_string(images) + "x" + std::to_string(tokens) + " tokens " + std::to_string(begin) + "+" + std::to_string(covered) + " row" + std::to_string(row);
    check(c, name + (residual ? " residual" : "") + (shift ? " shift" + std::to_string(shift) : ""), a);
}

struct WindowCase {
    DType type;
    int64_t images, channels;
    bool reverse, residual;
    WindowGrid window;
    int shift = 0;
};
void check(Checker& c, const std::string& name, const WindowCase& a) {
    if (!c.wanted(name)) return;
    WindowProblem p;
    p.dtype = a.type, p.images = a.images, p.channels = a.channels, p.reverse = a.reverse, p.window = a.window;
    const int64_t tokens = a.images * a.window.grid_h * a.window.grid_w, cut = a.images * a.window.windows() * a.window.window_tokens();
    Tensor x = tensor(a.type, (a.reverse ? cut : tokens) * a.channels, a.shift), y = tensor(a.type, (a.reverse ? tokens : cut) * a.channels, a.shift);
    Tensor r = tensor(a.type, a.residual ? y->count : 0, a.shift);
    x->fill(c.next_seed(), 1.f), r->fill(c.next_seed(), 1.f);
    p.x = x->data(), p.y = y->data(), p.residual = a.residual ? r->data() : nullptr;
    const cudaError_t status = c.run([&](cudaStream_t s) { return window(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    Doubles ref(y->count);
    if (cut > 0) {
        if (a.type == DType::kHalf) reference::window<__half><<<blocks_for(cut), 128>>>(p, cut, ref.p);
        else reference::window<float><<<blocks_for(cut), 128>>>(p, cut, ref.p);
        CUDA_OK(cudaGetLastError());
    }
    c.compare(name, *y, ref);
}

struct MergeCase {
    DType type;
    int64_t images, channels;
    int h, w;
    int order[4];
    int shift = 0;
    bool residual = false;
};
void check(Checker& c, const std::string& what, const MergeCase& a) {
    const std::string name = what + (a.residual ? " residual" : "");
    if (!c.wanted(name)) return;
    PatchMergeProblem p;
    p.dtype = a.type, p.images = a.images, p.channels = a.channels, p.grid_h = a.h, p.grid_w = a.w;
    std::memcpy(p.order, a.order, sizeof(p.order));
    const int64_t rows = a.images * ((a.h + 1) / 2) * ((a.w + 1) / 2), row = 4 * a.channels;
    const int64_t count = a.images * a.h * a.w * a.channels;
    Tensor x = tensor(a.type, count, a.shift), residual = tensor(a.type, a.residual ? count : 0, a.shift), scale = tensor(a.type, row, a.shift), bias = tensor(a.type, row, a.shift),
           y = tensor(a.type, rows * row, a.shift);
    x->fill(c.next_seed(), 1.5f), scale->fill(c.next_seed(), 0.5f, 1.f), bias->fill(c.next_seed(), 0.5f);
    p.x = x->data(), p.scale = scale->data(), p.bias = bias->data(), p.y = y->data();
    if (a.residual) {
        residual->fill(c.next_seed(), 1.f);
        p.residual = residual->data();
    }
    const cudaError_t status = c.run([&](cudaStream_t s) { return patch_merge(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    Doubles ref(y->count);
    if (rows > 0) {
        if (a.type == DType::kHalf) reference::patch_merge<__half><<<blocks_for(rows), 128>>>(p, rows, ref.p);
        else reference::patch_merge<float><<<blocks_for(rows), 128>>>(p, rows, ref.p);
        CUDA_OK(cudaGetLastError());
    }
    c.compare(name, *y, ref);
}

struct PoolCase {
    DType type;
    int64_t images, tokens, row;
    bool residual = false;
    int shift = 0;
    float offset = 0;
};
void check(Checker& c, const PoolCase& a) {
    char text[120];
    std::snprintf(text, sizeof(text), "norm_pool b%lld n%lld c%lld%s off%d+%g%s", static_cast<long long>(a.images), static_cast<long long>(a.tokens), static_cast<long long>(a.row),
                  a.residual ? " add" : "", a.shift, static_cast<double>(a.offset), a.type == DType::kHalf ? " fp16" : " fp32");
    const std::string name = text;
    if (!c.wanted(name)) return;
    NormPoolProblem p;
    p.dtype = a.type, p.images = a.images, p.tokens = a.tokens, p.row = a.row;
    const int64_t count = a.images * a.tokens * a.row;
    Tensor x = tensor(a.type, count, a.shift), residual = tensor(a.type, a.residual ? count : 0, a.shift), scale = tensor(a.type, a.row, a.shift), bias = tensor(a.type, a.row, a.shift),
           y = tensor(a.type, a.images * a.row, a.shift);
    x->fill(c.next_seed(), 1.5f, a.offset), scale->fill(c.next_seed(), 0.5f, 1.f), bias->fill(c.next_seed(), 0.5f);
    p.x = x->data(), p.scale = scale->data(), p.bias = bias->data(), p.y = y->data();
    if (a.residual) {
        residual->fill(c.next_seed(), 1.f);
        p.residual = residual->data();
    }
    const cudaError_t status = c.run([&](cudaStream_t s) { return norm_pool(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    Doubles ref(y->count);
    if (const int64_t rows = a.images * a.tokens; rows > 0) {
        if (a.type == DType::kHalf) reference::norm_pool<__half><<<blocks_for(rows), 128>>>(p, ref.p);
        else reference::norm_pool<float><<<blocks_for(rows), 128>>>(p, ref.p);
        CUDA_OK(cudaGetLastError());
    }
    c.compare(name, *y, ref);
}

struct ClassifierCase {
    DType type;
    int64_t images, tokens;
    int row, classes, token = -1;
    bool norm = true, residual = false;
    DType bias = DType::kFloat, out = DType::kFloat;
    int shift = 0;
    float offset = 0;
};
void check(Checker& c, const ClassifierCase& a) {
    char text[160];
    const auto of = [](DType t) { return t == DType::kHalf ? "fp16" : "fp32"; };
    std::snprintf(text, sizeof(text), "classifier b%lld n%lld c%d k%d t%d%s%s off%d+%g %s + %s to %s", static_cast<long long>(a.images), static_cast<long long>(a.tokens), a.row, a.classes, a.token,
                  a.norm ? "" : " no norm", a.residual ? " add" : "", a.shift, static_cast<double>(a.offset), of(a.type), of(a.bias), of(a.out));
    const std::string name = text;
    if (!c.wanted(name)) return;
    ClassifierProblem p;
    p.dtype = a.type, p.bias = a.bias, p.out = a.out, p.images = a.images, p.tokens = a.tokens, p.token = a.token, p.row = a.row, p.classes = a.classes, p.norm = a.norm;
    const int64_t count = a.images * a.tokens * a.row;
    Tensor x = tensor(a.type, count, a.shift), residual = tensor(a.type, a.residual ? count : 0, a.shift), w = tensor(a.type, int64_t{a.classes} * a.row, a.shift), b = tensor(a.bias, a.classes, a.shift),
           y = tensor(a.out, a.images * a.classes, a.shift);
    x->fill(c.next_seed(), 1.5f, a.offset), w->fill(c.next_seed(), 1.f / std::sqrt(static_cast<float>(a.row))), b->fill(c.next_seed(), 0.5f);
    p.x = x->data(), p.w = w->data(), p.b = b->data(), p.y = y->data();
    if (a.residual) {
        residual->fill(c.next_seed(), 1.f);
        p.residual = residual->data();
    }
    const cudaError_t status = c.run([&](cudaStream_t s) { return classifier(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    Doubles pooled(a.images * a.row), ref(y->count);
    if (const int64_t rows = a.images * a.tokens; rows > 0 && y->count > 0) {
        if (a.type == DType::kHalf) {
            reference::classifier_pool<__half><<<blocks_for(rows), 128>>>(p, pooled.p);
            reference::classifier<__half><<<blocks_for(y->count), 128>>>(p, pooled.p, ref.p);
        } else {
            reference::classifier_pool<float><<<blocks_for(rows), 128>>>(p, pooled.p);
            reference::classifier<float><<<blocks_for(y->count), 128>>>(p, pooled.p, ref.p);
        }
        CUDA_OK(cudaGetLastError());
    }
    c.compare(name, *y, ref);
}

struct GeluCase {
    DType type;
    int64_t rows, row;
    bool bias = true, tanh = false;
    int shift = 0;
    float scale = 1.5f;
    bool in_place = false;
};
void check(Checker& c, const GeluCase& a) {
    char text[120];
    std::snprintf(text, sizeof(text), "gelu r%lld c%lld%s%s off%d *%g%s%s", static_cast<long long>(a.rows), static_cast<long long>(a.row), a.bias ? " bias" : "", a.tanh ? " tanh" : "", a.shift,
                  static_cast<double>(a.scale), a.in_place ? " in place" : "", a.type == DType::kHalf ? " fp16" : " fp32");
    const std::string name = text;
    if (!c.wanted(name)) return;
    GeluProblem p;
    p.dtype = a.type, p.rows = a.rows, p.row = a.row, p.tanh = a.tanh;
    const int64_t count = a.rows * a.row;
    Tensor x = tensor(a.type, count, a.shift), bias = tensor(a.type, a.bias ? a.row : 0, a.shift), y = tensor(a.type, a.in_place ? 0 : count, a.shift);
    x->fill(c.next_seed(), a.scale), bias->fill(c.next_seed(), 0.5f);
    p.x = x->data(), p.bias = a.bias ? bias->data() : nullptr, p.y = a.in_place ? x->data() : y->data();
    Doubles ref(count);
    if (count > 0) {
        if (a.type == DType::kHalf) reference::bias_gelu<__half><<<blocks_for(count), 128>>>(p, ref.p);
        else reference::bias_gelu<float><<<blocks_for(count), 128>>>(p, ref.p);
        CUDA_OK(cudaGetLastError());
    }
    const cudaError_t status = c.run([&](cudaStream_t s) { return gelu(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    // The fit in gelu.cuh, which counts where there are few elements and all of them lie in GELU's tail.
    constexpr double kFit = 4e-6;
    c.compare(name, a.in_place ? *x : *y, ref, a.tanh ? 0 : kFit);
}

// What is not a number stays so, large numbers are themselves or 0, and their neighbours are what they are.
template <class T> void check_gelu_values(Checker& c, DType type, bool tanh) {
    const std::string name = std::string("gelu of large numbers and none") + (tanh ? " tanh" : "");
    if (!c.wanted(name)) return;
    const float none = std::nanf(""), large = type == DType::kHalf ? 65504.f : 3e38f, infinite = std::numeric_limits<float>::infinity();
    const float in[] = {none, 1.f, large, -large, infinite, 0.f, -0.f, 30.f, -30.f, 7.f, -7.f, none, -20.f, 6.f, large, none};
    const float gelu_of_1 = tanh ? 0.84119199f : 0.84134475f;
    const float out[] = {none, gelu_of_1, large, 0.f, infinite, 0.f, 0.f, 30.f, 0.f, 7.f, 0.f, none, 0.f, 6.f, large, none};
    constexpr int kCount = sizeof(in) / sizeof(*in);
    // A row of whole accesses and one that has none.
    for (int row : {16, 5}) {
        T host[kCount];
        for (int i = 0; i < kCount; ++i) host[i] = static_cast<T>(in[i]);
        Tensor x = tensor(type, kCount), y = tensor(type, kCount), bias = tensor(type, row);
        CUDA_OK(cudaMemcpy(x->data(), host, sizeof(host), cudaMemcpyHostToDevice));
        CUDA_OK(cudaMemset(bias->data(), 0, static_cast<size_t>(bias->bytes)));
        GeluProblem p;
        p.dtype = type, p.rows = kCount / row, p.row = row, p.tanh = tanh, p.x = x->data(), p.bias = bias->data(), p.y = y->data();
        const cudaError_t status = c.run([&](cudaStream_t s) { return gelu(p, s); });
        if (status != cudaSuccess) return c.report(name, type, 1e30, 0, 0, cudaGetErrorString(status));
        CUDA_OK(cudaMemcpy(host, y->data(), sizeof(host), cudaMemcpyDeviceToHost));
        int wrong = 0;
        for (int i = 0; i < p.rows * row; ++i) {
            const float found = static_cast<float>(host[i]);
            const bool right = std::isnan(out[i]) ? std::isnan(found) : std::isinf(out[i]) ? found == out[i] : std::abs(found - out[i]) <= 1e-3f * std::max(1.f, std::abs(out[i]) * (type == DType::kHalf ? 1.f : 1e-3f));
            wrong += !right;
        }
        c.report(name + " c" + std::to_string(row), type, 0, wrong, 0);
    }
}

struct MergeBlockCase {
    DType type;
    int64_t images;
    int channels, columns, h, w;
    bool residual = false;
    int shift = 0;
    float offset = 0;
    bool every_tactic = false;  // not only those worth timing
    int order[4] = {0, 2, 1, 3};
};
void check(Checker& c, const MergeBlockCase& a) {
    char text[160];
    std::snprintf(text, sizeof(text), "patch_merge_block b%lld c%d d%d %dx%d order%d%d%d%d%s off%d+%g", static_cast<long long>(a.images), a.channels, a.columns, a.h, a.w, a.order[0], a.order[1],
                  a.order[2], a.order[3], a.residual ? " residual" : "", a.shift, static_cast<double>(a.offset));
    const std::string name = text;
    if (!c.wanted(name)) return;
    const int width = 4 * a.channels;
    const int64_t rows = a.images * ((a.h + 1) / 2) * ((a.w + 1) / 2), size = a.images * a.h * a.w * a.channels;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    PatchMergeBlockProblem p;
    PatchMergeProblem& m = p.merge;
    m.dtype = a.type, m.images = a.images, m.channels = a.channels, m.grid_h = a.h, m.grid_w = a.w, p.columns = a.columns;
    std::memcpy(m.order, a.order, sizeof(m.order));
    m.x = make(size, 1.5f, a.offset), m.residual = a.residual ? make(size, 1.f) : nullptr;
    m.scale = make(width, 0.5f, 1.f), m.bias = make(width, 0.5f);
    p.w = make(int64_t{width} * a.columns, 1.f / std::sqrt(static_cast<float>(width))), p.b = make(a.columns, 0.5f);
    Tensor y = tensor(a.type, rows * a.columns, a.shift), workspace = tensor(DType::kFloat, (patch_merge_block_workspace(p) + 3) / 4);
    p.y = y->data(), p.workspace = workspace->data();

    Doubles normal(rows * width), ref(rows * a.columns);
    auto reference = [&](auto type) {
        using T = decltype(type);
        reference::patch_merge<T><<<blocks_for(rows), 128>>>(m, rows, normal.p);
        reference::product<T><<<blocks_for(rows * a.columns), 128>>>(normal.p, p.w, p.b, rows, width, a.columns, ref.p);
        CUDA_OK(cudaGetLastError());
    };
    if (rows > 0) a.type == DType::kHalf ? reference(__half()) : reference(float());
    std::vector<int32_t> tactics = patch_merge_block_tactics(p);
    tactics.insert(tactics.begin(), 0);
    if (a.every_tactic)
        for (int one : {0, 1})
            for (int cluster = 0; cluster <= 3; ++cluster)
                for (int tile = 1; tile <= 12; ++tile)
                    if (const int32_t tactic = one << 8 | cluster << 4 | tile; patch_merge_block_tactic_valid(p, tactic)) tactics.push_back(tactic);
    for (int32_t tactic : tactics) {
        y->poison(), workspace->poison();
        std::snprintf(text, sizeof(text), " %s tile%d cluster%d", tactic >> 8 & 1 ? "one" : "two", tactic & 15, 1 << (tactic >> 4 & 15));
        const std::string label = tactic ? name + text : name;
        const cudaError_t status = c.run([&](cudaStream_t s) { return patch_merge_block(p, s, tactic); });
        if (status != cudaSuccess) {
            c.report(label, a.type, 1e30, 0, 0, cudaGetErrorString(status));
            continue;
        }
        c.compare(label, *y, ref);
        c.enclosed(label, a.type, *workspace);
    }
}

enum class Layout { kQkv, kQKv, kQkV, kQKV, kBhnd };
const char* const kLayoutNames[] = {"qkv", "q_kv", "qk_v", "q_k_v", "bhnd"};

struct AttentionCase {
    DType type;
    int64_t batch;
    int heads, n, m, d, dv;
    Layout layout;
    AttentionBias bias = AttentionBias::kNone;
    int64_t bias_period = 1;
    bool bias_per_head = true;
    AttentionMask mask = AttentionMask::kNone;
    int64_t mask_period = 1;
    WindowGrid window;
    int shift = 0;
    float mask_value = -100.f;
    bool infinite_mask = false;  // dense mask of 0 and -inf, one row all -inf
};

std::string describe(const AttentionCase& a) {
    char text[256];
    std::snprintf(text, sizeof(text), "attention %s b%lld h%d n%d m%d d%d dv%d bias%d/%lld%s mask%d/%lld grid%dx%d win%dx%d shift%d,%d off%d", kLayoutNames[int(a.layout)],
                  static_cast<long long>(a.batch), a.heads, a.n, a.m, a.d, a.dv, int(a.bias), static_cast<long long>(a.bias_period), a.bias_per_head ? "h" : "", int(a.mask),
                  static_cast<long long>(a.mask_period), a.window.grid_h, a.window.grid_w, a.window.window_h, a.window.window_w, a.window.shift_h, a.window.shift_w, a.shift);
    return text;
}

__global__ void infinite_mask_kernel(void* p, int type, int n, int m, int64_t count) {
    const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int row = i / m % n, key = i % m;
    const float v = row == 1 || (row + key) % 3 == 0 ? -INFINITY : 0.f;
    if (type == int(DType::kHalf)) static_cast<__half*>(p)[i] = __float2half(v);
    else static_cast<float*>(p)[i] = v;
}

void check(Checker& c, AttentionCase a) {
    const std::string name = describe(a);
    if (!c.wanted(name)) return;
    AttentionProblem p;
    p.dtype = a.type, p.batch = a.batch, p.heads = a.heads, p.queries = a.n, p.keys = a.m, p.dim = a.d, p.value_dim = a.dv;
    p.scale = 1.f / std::sqrt(static_cast<float>(a.d));
    const int64_t hd = int64_t{a.heads} * a.d, hv = int64_t{a.heads} * a.dv;
    std::vector<Tensor> in;
    auto make = [&](int64_t count) -> const char* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), 1.3f);
        return static_cast<const char*>(in.back()->data());
    };
    const int64_t e = size_of(a.type);
    auto view = [&](const char* base, int64_t first, int64_t tokens, int64_t row, int size) {
        return HeadView{base + first * e, tokens * row, static_cast<int32_t>(row), size};
    };
    switch (a.layout) {
        case Layout::kQkv: {
            const char* x = make(a.batch * a.n * 3 * hd);
            p.q = view(x, 0, a.n, 3 * hd, a.d), p.k = view(x, hd, a.n, 3 * hd, a.d), p.v = view(x, 2 * hd, a.n, 3 * hd, a.d);
            break;
        }
        case Layout::kQKv: {
            p.q = view(make(a.batch * a.n * hd), 0, a.n, hd, a.d);
            const char* x = make(a.batch * a.m * 2 * hd);
            p.k = view(x, 0, a.m, 2 * hd, a.d), p.v = view(x, hd, a.m, 2 * hd, a.d);
            break;
        }
        case Layout::kQkV: {
            const char* x = make(a.batch * a.n * 2 * hd);
            p.q = view(x, 0, a.n, 2 * hd, a.d), p.k = view(x, hd, a.n, 2 * hd, a.d);
            p.v = view(make(a.batch * a.n * hv), 0, a.n, hv, a.dv);
            break;
        }
        case Layout::kQKV:
            p.q = view(make(a.batch * a.n * hd), 0, a.n, hd, a.d);
            p.k = view(make(a.batch * a.m * hd), 0, a.m, hd, a.d);
            p.v = view(make(a.batch * a.m * hv), 0, a.m, hv, a.dv);
            break;
        case Layout::kBhnd: {
            auto heads_first = [&](int64_t tokens, int size) { return HeadView{make(a.batch * a.heads * tokens * size), a.heads * tokens * size, size, static_cast<int32_t>(tokens * size)}; };
            p.q = heads_first(a.n, a.d), p.k = heads_first(a.m, a.d), p.v = heads_first(a.m, a.dv);
            break;
        }
    }
    p.bias_kind = a.bias, p.bias_period = a.bias_period, p.bias_heads = a.bias_per_head ? a.heads : 1;
    p.mask_kind = a.mask, p.mask_period = a.mask_period, p.mask_value = a.mask_value, p.window = a.window;
    Tensor bias, mask;
    if (a.bias != AttentionBias::kNone) {
        const int64_t count = a.bias == AttentionBias::kDense ? a.bias_period * p.bias_heads * a.n * a.m
                                                               : int64_t{2 * a.window.window_h - 1} * (2 * a.window.window_w - 1) * a.heads;
        bias = tensor(a.type, count, a.shift);
        bias->fill(c.next_seed(), 1.f);
        p.bias = bias->data();
    }
    if (a.mask == AttentionMask::kDense) {
        mask = tensor(a.type, a.mask_period * a.n * a.m, a.shift);
        mask->fill(c.next_seed(), 2.f, -1.f);
        if (a.infinite_mask) infinite_mask_kernel<<<blocks_for(mask->count), 128>>>(mask->data(), int(a.type), a.n, a.m, mask->count);
        CUDA_OK(cudaGetLastError());
        p.mask = mask->data();
    }
    Tensor out = tensor(a.type, a.batch * a.n * hv, a.shift);
    p.out = out->data();
    Doubles ref(out->count);
    const int64_t rows = a.batch * a.heads * a.n;
    if (rows > 0) {
        if (a.type == DType::kHalf) reference::attention<__half><<<blocks_for(rows), 128>>>(p, ref.p);
        else reference::attention<float><<<blocks_for(rows), 128>>>(p, ref.p);
        CUDA_OK(cudaGetLastError());
    }
    for (int tactic = 0; tactic < kTacticCount; ++tactic) {
        if (!attention_tactic_valid(p, tactic)) continue;
        out->poison();
        const std::string label = name + " tactic" + std::to_string(tactic);
        const cudaError_t status = c.run([&](cudaStream_t s) { return attention(p, s, tactic); });
        if (status != cudaSuccess) c.report(label, a.type, 1e30, 0, 0, cudaGetErrorString(status));
        else c.compare(label, *out, ref);
    }
}

// The kernel of clusters: rows of a tile, 32 or 64, hidden columns of a block, and whether sums are sent in fp16 and counted (plugins/kernels/mlp_cluster.h).
constexpr int32_t kRowsTactic = 1 << 26 | 1;
int32_t cluster_tactic(int rows, int slice, bool half_sums, bool counted) { return 1 << 29 | (slice / 32) << 4 | (counted ? 4 : 0) | (half_sums ? 2 : 0) | (rows == 64 ? 1 : 0); }
// Two products: tile and cluster of each (plugins/kernels/mlp_chain.h); attn_heads stands in place of a first one without a tile.
int32_t chain_tactic(int tile, int cluster, int tile2, int cluster2) { return 1 << 30 | (tile2 | cluster2 << 4) << 8 | tile | cluster << 4; }
// A norm and two products of many rows: the tile of each (plugins/kernels/wide_gemm.h).
int32_t wide_tactic(int tile, int tile2) { return 1 << 28 | tile2 << 4 | tile; }
// One kernel for many rows: its tile (plugins/kernels/wide_mlp.h).
int32_t wide_mlp_tactic(int tile) { return 1 << 27 | tile; }
std::string tactic_label(int32_t tactic) {
    char label[96];
    auto cluster = [](int32_t id) { return 1 << (id >> 4 & 15); };
    if ((tactic >> 30 & 1) && !(tactic & 15)) std::snprintf(label, sizeof(label), " heads cluster%d, tile%d cluster%d", cluster(tactic), tactic >> 8 & 15, cluster(tactic >> 8));
    else if (tactic >> 27 == 1) std::snprintf(label, sizeof(label), " wide kernel%d", tactic & 15);
    else if (tactic >> 28 == 1) std::snprintf(label, sizeof(label), " wide%d, wide%d", tactic & 15, tactic >> 4 & 15);
    else if (tactic >> 26 == 1) std::snprintf(label, sizeof(label), " cluster of rows of this size");
    else if (tactic >> 30 & 1) std::snprintf(label, sizeof(label), " tile%d cluster%d, tile%d cluster%d", tactic & 15, cluster(tactic), tactic >> 8 & 15, cluster(tactic >> 8));
    else if (tactic >> 29 & 1) std::snprintf(label, sizeof(label), " cluster of %d rows, slice%d%s%s", 32 << (tactic & 1), (tactic >> 4 & 15) * 32, tactic & 2 ? ", fp16 sums" : "", tactic & 4 ? ", counted" : "");
    else std::snprintf(label, sizeof(label), " tile%d cluster%d groups%d", tactic & 15, cluster(tactic), tactic >> 8);
    return label;
}

struct MlpCase {
    DType type;
    int64_t rows;
    int channels, hidden;
    bool residual = false, tanh_gelu = false;
    int shift = 0;
    bool every_tactic = false;  // not only those worth timing
    float offset = 0;
    bool norm = true;
};
void check(Checker& c, const MlpCase& a) {
    char text[160];
    std::snprintf(text, sizeof(text), "mlp_block m%lld c%d h%d%s%s%s off%d+%g", static_cast<long long>(a.rows), a.channels, a.hidden, a.norm ? "" : " no norm", a.residual ? " residual" : "",
                  a.tanh_gelu ? " tanh" : "", a.shift, static_cast<double>(a.offset));
    const std::string name = text;
    if (!c.wanted(name)) return;
    MlpBlockProblem p;
    p.dtype = a.type, p.rows = a.rows, p.channels = a.channels, p.hidden = a.hidden, p.tanh_gelu = a.tanh_gelu, p.norm = a.norm;
    const int64_t size = a.rows * a.channels, weights = int64_t{a.channels} * a.hidden;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    p.x = make(size, 1.5f, a.offset);
    if (a.residual) p.residual = make(size, 1.f);
    if (a.norm) p.scale = make(a.channels, 0.5f, 1.f), p.bias = make(a.channels, 0.5f);
    // Large enough that the block's part counts beside x.
    p.w1 = make(weights, 1.f / std::sqrt(static_cast<float>(a.channels))), p.b1 = make(a.hidden, 0.5f);
    p.w2 = make(weights, 2.f / std::sqrt(static_cast<float>(a.hidden))), p.b2 = make(a.channels, 0.5f);
    Tensor y = tensor(a.type, size, a.shift), workspace = tensor(DType::kFloat, static_cast<int64_t>(mlp_block_workspace(p) / 4));
    p.y = y->data();
    Doubles normal(size), stream(size), hidden(a.rows * a.hidden), ref(size);
    auto reference = [&](auto type) {
        using T = decltype(type);
        reference::mlp_normal<T><<<blocks_for(a.rows), 128>>>(p, normal.p, stream.p);
        reference::mlp_hidden<T><<<blocks_for(a.rows * a.hidden), 128>>>(p, normal.p, hidden.p);
        reference::mlp_out<T><<<blocks_for(size), 128>>>(p, hidden.p, stream.p, ref.p);
        CUDA_OK(cudaGetLastError());
    };
    if (a.rows > 0) a.type == DType::kHalf ? reference(__half()) : reference(float());
    std::vector<int32_t> tactics = mlp_block_tactics(p);
    tactics.insert(tactics.begin(), 0);
    if (a.every_tactic && a.type == DType::kHalf)
        for (int tile = 1; tile <= 4; ++tile)
            for (auto [cluster, groups] : {std::pair{0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}, {0, 3}, {2, 2}, {3, 4}, {1, 16}})
                if (const int32_t tactic = tile | cluster << 4 | groups << 8; mlp_block_tactic_valid(p, tactic)) tactics.push_back(tactic);
    if (a.every_tactic && a.type == DType::kHalf)
        for (int tile = 1; tile <= 12; ++tile)
            for (auto [cluster, cluster2] : {std::pair{0, 0}, {0, 1}, {1, 2}, {0, 3}, {2, 0}})
                for (int other : {tile, (tile + 3) % 12 + 1})
                    if (const int32_t tactic = chain_tactic(tile, cluster, other, cluster2); mlp_block_tactic_valid(p, tactic)) tactics.push_back(tactic);
    if (a.every_tactic && a.type == DType::kHalf)
        for (int rows : {32, 64})
            for (int slice = 96; slice <= 256; slice += 32)
                for (auto [half_sums, counted] : {std::pair{false, false}, {true, false}, {false, true}, {true, true}})
                    if (const int32_t tactic = cluster_tactic(rows, slice, half_sums, counted); mlp_block_tactic_valid(p, tactic)) tactics.push_back(tactic);
    if (a.every_tactic && mlp_block_tactic_valid(p, kRowsTactic)) tactics.push_back(kRowsTactic);
    if (a.every_tactic && a.type == DType::kHalf)
        for (int tile = 1; tile <= 3; ++tile)
            if (const int32_t tactic = wide_tactic(tile, tile % 3 + 1); mlp_block_tactic_valid(p, tactic)) tactics.push_back(tactic);
    if (a.every_tactic && a.type == DType::kHalf)
        for (int tile = 1; tile <= 8; ++tile)
            if (const int32_t tactic = wide_mlp_tactic(tile); mlp_block_tactic_valid(p, tactic)) tactics.push_back(tactic);
    for (int32_t tactic : tactics) {
        y->poison(), workspace->poison();
        const std::string label = tactic_label(tactic);
        // The one kernel and the one of clusters are made of the norm.
        if (!a.norm && tactic != 0 && !(tactic >> 30 & 1) && tactic >> 28 != 1 && tactic >> 27 != 1) c.report(name + label, a.type, 1e30, 0, 0, "a tactic of a block with a norm");
        const cudaError_t status = c.run([&](cudaStream_t s) { return mlp_block(p, workspace->data(), s, tactic); });
        if (status != cudaSuccess) c.report(name + label, a.type, 1e30, 0, 0, cudaGetErrorString(status));
        else c.compare(name + label, *y, ref);
    }
    c.enclosed(name, a.type, *workspace);
}

struct AttnBlockCase {
    DType type;
    int64_t images;
    int channels, heads, d;
    WindowGrid window;
    AttentionBias bias = AttentionBias::kTable;
    int64_t bias_period = 1;
    AttentionMask mask = AttentionMask::kNone;
    int64_t mask_period = 1;
    bool residual = false;
    int shift = 0;
    float offset = 0;
    int tokens = 0;  // of an image, where there are no windows
};
void check(Checker& c, const AttnBlockCase& a) {
    const WindowGrid& g = a.window;
    char text[256];
    std::snprintf(text, sizeof(text), "attn_block b%lld c%d h%d d%d n%d grid%dx%d win%dx%d shift%d,%d pad%d bias%d/%lld mask%d/%lld%s off%d+%g", static_cast<long long>(a.images), a.channels, a.heads,
                  a.d, a.tokens, g.grid_h, g.grid_w, g.window_h, g.window_w, g.shift_h, g.shift_w, g.pad_after_roll, int(a.bias), static_cast<long long>(a.bias_period), int(a.mask),
                  static_cast<long long>(a.mask_period), a.residual ? " residual" : "", a.shift, static_cast<double>(a.offset));
    const std::string name = text;
    if (!c.wanted(name)) return;
    AttnBlockProblem p;
    p.dtype = a.type, p.images = a.images, p.channels = a.channels, p.tokens = a.tokens;
    AttentionProblem& t = p.attention;
    t.heads = a.heads, t.dim = a.d, t.scale = 1.f / std::sqrt(static_cast<float>(a.d)), t.window = g;
    const int64_t inner = int64_t{a.heads} * a.d, n = p.group_tokens(), groups = a.images * p.groups(), rows = groups * n, size = a.images * p.image_tokens() * a.channels;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    t.bias_kind = a.bias, t.bias_period = a.bias_period, t.bias_heads = a.heads;
    t.mask_kind = a.mask, t.mask_period = a.mask_period;
    p.x = make(size, 1.5f, a.offset);
    if (a.residual) p.residual = make(size, 1.f);
    p.norm_scale = make(a.channels, 0.5f, 1.f), p.norm_bias = make(a.channels, 0.5f);
    p.w_qkv = make(a.channels * 3 * inner, 1.f / std::sqrt(static_cast<float>(a.channels))), p.b_qkv = make(3 * inner, 0.5f);
    if (a.bias != AttentionBias::kNone) t.bias = make(a.bias == AttentionBias::kDense ? a.bias_period * a.heads * n * n : int64_t{2 * g.window_h - 1} * (2 * g.window_w - 1) * a.heads, 1.f);
    if (a.mask == AttentionMask::kDense) t.mask = make(a.mask_period * n * n, 2.f, -1.f);
    // Large enough that the block's part counts beside x.
    p.w_proj = make(inner * a.channels, 3.f / std::sqrt(static_cast<float>(inner))), p.b_proj = make(a.channels, 0.5f);
    Tensor y = tensor(a.type, size, a.shift), workspace = tensor(DType::kFloat, (attn_block_workspace(p) + 3) / 4);
    p.y = y->data(), p.workspace = workspace->data();

    Doubles normal(rows * a.channels), sum(size), qkv(rows * 3 * inner), context(rows * inner), projected(rows * a.channels), ref(size);
    auto reference = [&](auto type) {
        using T = decltype(type);
        LayerNormProblem norm;
        norm.row = a.channels, norm.epsilon = p.epsilon, norm.x = p.x, norm.residual = p.residual, norm.scale = p.norm_scale, norm.bias = p.norm_bias, norm.window = g;
        reference::layer_norm<T><<<blocks_for(rows), 128>>>(norm, rows, normal.p, sum.p);
        reference::product<T><<<blocks_for(rows * 3 * inner), 128>>>(normal.p, p.w_qkv, p.b_qkv, rows, a.channels, static_cast<int>(3 * inner), qkv.p);
        AttentionProblem attend = t;
        attend.batch = groups, attend.queries = attend.keys = static_cast<int32_t>(n), attend.value_dim = a.d;
        auto part = [&](int i) { return HeadView{qkv.p + i * inner, n * 3 * inner, static_cast<int32_t>(3 * inner), a.d}; };
        attend.q = part(0), attend.k = part(1), attend.v = part(2);
        reference::attention<T, double><<<blocks_for(groups * a.heads * n), 128>>>(attend, context.p);
        reference::product<T><<<blocks_for(rows * a.channels), 128>>>(context.p, p.w_proj, p.b_proj, rows, static_cast<int>(inner), a.channels, projected.p);
        reference::attn_block_out<T><<<blocks_for(rows * a.channels), 128>>>(p, projected.p, sum.p, rows, ref.p);
        CUDA_OK(cudaGetLastError());
    };
    if (rows > 0) a.type == DType::kHalf ? reference(__half()) : reference(float());
    std::vector<int32_t> tactics = attn_block_tactics(p);
    tactics.insert(tactics.begin(), 0);
    for (int32_t tactic : tactics) {
        y->poison(), workspace->poison();
        const std::string label = name + tactic_label(tactic);
        const cudaError_t status = c.run([&](cudaStream_t s) { return attn_block(p, s, tactic); });
        if (status != cudaSuccess) {
            c.report(label, a.type, 1e30, 0, 0, cudaGetErrorString(status));
            continue;
        }
        c.compare(label, *y, ref);
        c.enclosed(label, a.type, *workspace);
    }
}

template <class T> __global__ void pack_kernel(const T* from, T* to, int k, int n) {
    const int depth = k % 128 == 0 ? 128 : k % 64 == 0 ? 64 : k % 32 == 0 ? 32 : 16;
    // Element (a, b, c, e, f) of [k / depth, n / 8, depth / 8, 8, 8].
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < int64_t{k} * n; i += int64_t{gridDim.x} * blockDim.x) {
        int64_t rest = i;
        const int f = rest % 8, e = (rest /= 8) % 8, c = (rest /= 8) % (depth / 8), b = (rest /= depth / 8) % (n / 8), a = rest / (n / 8);
        to[i] = from[int64_t{a * depth + c * 8 + f} * n + b * 8 + e];
    }
}
template <class T> __global__ void pad_kernel(const T* from, T* to, int64_t rows, int columns, int padded) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * padded; i += int64_t{gridDim.x} * blockDim.x)
        to[i] = i % padded < columns ? from[i / padded * columns + i % padded] : static_cast<T>(0.f);
}
template <class T> __global__ void round_kernel(const double* from, T* to, int64_t n) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) to[i] = static_cast<T>(static_cast<float>(from[i]));
}
template <class T> __global__ void add_kernel(const T* from, double* to, int64_t n) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) to[i] += static_cast<double>(static_cast<float>(from[i]));
}

struct BlockChainCase {
    DType type;
    int64_t images;
    int tokens, channels, heads, d, hidden, pairs;
    WindowGrid window;
    uint32_t shifted = 0;
    bool bias = true, tanh_gelu = false;
    float offset = 0;
    bool between = false;  // something is added between pairs
    int before = 0;        // channels of the map that a patch merge is of; 0: there is none
    bool odd_h = false, odd_w = false;
    int order[4] = {0, 2, 1, 3};
};
// Of each column of a matrix the sum, as a value of T, and what is left of it.
template <class T> __global__ void column_sums_kernel(const T* w, T* to, int k, int n) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= n) return;
    double sum = 0;
    for (int i = 0; i < k; ++i) sum += static_cast<double>(static_cast<float>(w[int64_t{i} * n + column]));
    to[column] = static_cast<T>(static_cast<float>(sum));
    to[n + column] = static_cast<T>(static_cast<float>(sum - static_cast<double>(static_cast<float>(to[column]))));
}
template <class T> void check_chain(Checker& c, const BlockChainCase& a, const std::string& name) {
    BlockChainProblem p;
    p.dtype = a.type, p.images = a.images, p.tokens = a.tokens, p.channels = a.channels, p.heads = a.heads, p.dim = a.d, p.hidden = a.hidden, p.pairs = a.pairs;
    p.scale = 1.f / std::sqrt(static_cast<float>(a.d)), p.tanh_gelu = a.tanh_gelu, p.bias = a.bias, p.window = a.window, p.shifted = a.shifted;
    const int64_t inner = int64_t{a.heads} * a.d, n = p.group_tokens(), padded = (n + 7) / 8 * 8, groups = a.images * p.groups(), size = a.images * a.tokens * a.channels, tokens = a.images * a.tokens;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> T* {
        in.push_back(tensor(a.type, count));
        in.back()->fill(c.next_seed(), scale, offset);
        return static_cast<T*>(in.back()->data());
    };
    if (a.before > 0) {
        p.quads.channels = a.before, p.quads.grid_h = 2 * a.window.grid_h - a.odd_h, p.quads.grid_w = 2 * a.window.grid_w - a.odd_w;
        std::memcpy(p.quads.order, a.order, sizeof(a.order));
    }
    Tensor weights = tensor(a.type, chain_weights(p)), vectors = tensor(a.type, chain_vectors(p)), y = tensor(a.type, size), workspace = tensor(DType::kFloat, (block_chain_workspace(p) + 3) / 4);
    const T* const x = make(a.before > 0 ? a.images * p.quads.grid_h * p.quads.grid_w * a.before : size, 1.5f, a.offset);
    const T* const between = a.between ? make((a.pairs - 1) * size, 1.f) : nullptr;
    const int width = 4 * a.before, widest = std::max(a.channels, width);
    const T *const ones = make(widest, 0.f, 1.f), *const zeros = make(widest, 0.f);
    Tensor stream = tensor(a.type, size), middle = tensor(a.type, size);
    Doubles normal(std::max(groups * n, tokens) * widest), sum(size), qkv(groups * n * 3 * inner), context(groups * n * inner), projected(groups * n * a.channels), hidden(tokens * a.hidden), ref(size);
    T *packed = static_cast<T*>(weights->data()), *vector = static_cast<T*>(vectors->data());
    const T* from = x;
    auto matrix = [&](int64_t k, int64_t columns, float scale) {
        const T* const w = make(k * columns, scale / std::sqrt(static_cast<float>(k)));
        pack_kernel<T><<<blocks_for(k * columns), 128>>>(w, packed, static_cast<int>(k), static_cast<int>(columns));
        packed += k * columns;
        return w;
    };
    auto offsets = [&](int64_t count) {
        const T* const b = make(count, 0.5f);
        CUDA_OK(cudaMemcpy(vector, b, count * sizeof(T), cudaMemcpyDeviceToDevice));
        vector += count;
        return b;
    };
    if (a.before > 0 && a.images > 0) {
        PatchMergeProblem m;
        m.images = a.images, m.channels = a.before, m.grid_h = p.quads.grid_h, m.grid_w = p.quads.grid_w, m.epsilon = p.epsilon, m.x = x, m.scale = ones, m.bias = zeros;
        std::memcpy(m.order, a.order, sizeof(m.order));
        const T* const w = matrix(width, a.channels, 1.f);
        const T* const b = offsets(a.channels);
        column_sums_kernel<T><<<blocks_for(a.channels), 128>>>(w, vector, width, a.channels);
        vector += 2 * a.channels;
        reference::patch_merge<T><<<blocks_for(tokens), 128>>>(m, tokens, normal.p);
        reference::product<T><<<blocks_for(size), 128>>>(normal.p, w, b, tokens, width, a.channels, ref.p);
        round_kernel<T><<<blocks_for(size), 128>>>(ref.p, static_cast<T*>(stream->data()), size);
        CUDA_OK(cudaGetLastError());
        from = static_cast<const T*>(stream->data());
    }
    for (int pair = 0; pair < a.pairs && a.images > 0; ++pair) {
        AttnBlockProblem attn;
        attn.images = a.images, attn.channels = a.channels, attn.x = from, attn.attention.window = a.window, attn.tokens = a.tokens;
        WindowGrid& g = attn.attention.window;
        const bool shifted = a.shifted >> pair & 1;
        if (!shifted) g.shift_h = g.shift_w = 0;
        LayerNormProblem norm;
        norm.row = a.channels, norm.x = from, norm.scale = ones, norm.bias = zeros, norm.window = g, norm.epsilon = p.epsilon;
        AttentionProblem attend = attn.attention;
        attend.heads = a.heads, attend.dim = attend.value_dim = a.d, attend.scale = p.scale, attend.batch = groups, attend.queries = attend.keys = static_cast<int32_t>(n);
        if (shifted) attend.mask_kind = AttentionMask::kShift, attend.mask_value = p.mask_value;
        const T *const w_qkv = matrix(a.channels, 3 * inner, 1.f), *const w_proj = matrix(inner, a.channels, 1.5f), *const w1 = matrix(a.channels, a.hidden, 1.f), *const w2 = matrix(a.hidden, a.channels, 1.5f);
        const T* const b_qkv = offsets(3 * inner);
        if (a.bias) {
            const T* const bias = make(a.heads * n * n, 1.f);
            pad_kernel<T><<<blocks_for(a.heads * n * padded), 128>>>(bias, vector, a.heads * n, static_cast<int>(n), static_cast<int>(padded));
            vector += a.heads * n * padded;
            attend.bias_kind = AttentionBias::kDense, attend.bias = bias, attend.bias_heads = a.heads;
        }
        const T *const b_proj = offsets(a.channels), *const b1 = offsets(a.hidden), *const b2 = offsets(a.channels);

        reference::layer_norm<T><<<blocks_for(groups * n), 128>>>(norm, groups * n, normal.p, sum.p);
        reference::product<T><<<blocks_for(groups * n * 3 * inner), 128>>>(normal.p, w_qkv, b_qkv, groups * n, a.channels, static_cast<int>(3 * inner), qkv.p);
        auto part = [&](int i) { return HeadView{qkv.p + i * inner, n * 3 * inner, static_cast<int32_t>(3 * inner), a.d}; };
        attend.q = part(0), attend.k = part(1), attend.v = part(2);
        reference::attention<T, double><<<blocks_for(groups * a.heads * n), 128>>>(attend, context.p);
        reference::product<T><<<blocks_for(groups * n * a.channels), 128>>>(context.p, w_proj, b_proj, groups * n, static_cast<int>(inner), a.channels, projected.p);
        reference::attn_block_out<T><<<blocks_for(groups * n * a.channels), 128>>>(attn, projected.p, sum.p, groups * n, ref.p);
        round_kernel<T><<<blocks_for(size), 128>>>(ref.p, static_cast<T*>(middle->data()), size);
        MlpBlockProblem mlp;
        mlp.rows = tokens, mlp.channels = a.channels, mlp.hidden = a.hidden, mlp.tanh_gelu = a.tanh_gelu, mlp.epsilon = p.epsilon;
        mlp.x = middle->data(), mlp.scale = ones, mlp.bias = zeros, mlp.w1 = w1, mlp.b1 = b1, mlp.w2 = w2, mlp.b2 = b2;
        reference::mlp_normal<T><<<blocks_for(tokens), 128>>>(mlp, normal.p, sum.p);
        reference::mlp_hidden<T><<<blocks_for(tokens * a.hidden), 128>>>(mlp, normal.p, hidden.p);
        reference::mlp_out<T><<<blocks_for(size), 128>>>(mlp, hidden.p, sum.p, ref.p);
        if (between && pair + 1 < a.pairs) add_kernel<T><<<blocks_for(size), 128>>>(between + pair * size, ref.p, size);
        round_kernel<T><<<blocks_for(size), 128>>>(ref.p, static_cast<T*>(stream->data()), size);
        CUDA_OK(cudaGetLastError());
        CUDA_OK(cudaDeviceSynchronize());
        from = static_cast<const T*>(stream->data());
    }
    p.x = x, p.weights = weights->data(), p.vectors = vectors->data(), p.between = between, p.y = y->data(), p.workspace = workspace->data();
    std::vector<int32_t> tactics = block_chain_tactics(p);
    tactics.insert(tactics.begin(), 0);
    const int32_t slot = chain_slot();
    for (int32_t tactic : tactics)
        for (int32_t own : {slot, -1}) {
            if (own < 0 && tactic != 0) continue;
            y->poison(), workspace->poison();
            const std::string label = name + " tactic " + std::to_string(tactic) + (own < 0 ? ", no slot" : "");
            const cudaError_t status = c.run([&](cudaStream_t s) { return block_chain(p, s, tactic, own); });
            if (status != cudaSuccess) {
                c.report(label, a.type, 1e30, 0, 0, cudaGetErrorString(status));
                continue;
            }
            c.compare(label, *y, ref);
            c.enclosed(label, a.type, *workspace);
        }
    give_back_chain_slot(slot);
}
void check(Checker& c, const BlockChainCase& a) {
    const WindowGrid& g = a.window;
    char text[320];
    const int used = std::snprintf(text, sizeof(text), "block_chain b%lld n%d c%d h%d d%d hidden%d pairs%d grid%dx%d win%dx%d shift%d,%d pad%d shifted%x%s%s%s+%g", static_cast<long long>(a.images), a.tokens, a.channels, a.heads, a.d,
                  a.hidden, a.pairs, g.grid_h, g.grid_w, g.window_h, g.window_w, g.shift_h, g.shift_w, g.pad_after_roll, a.shifted, a.bias ? " bias" : "", a.tanh_gelu ? " tanh" : "", a.between ? " between" : "", static_cast<double>(a.offset));
    if (a.before > 0) std::snprintf(text + used, sizeof(text) - static_cast<size_t>(used), " merged%d odd%d%d order%d%d%d%d", a.before, a.odd_h, a.odd_w, a.order[0], a.order[1], a.order[2], a.order[3]);
    if (!c.wanted(text)) return;
    a.type == DType::kHalf ? check_chain<__half>(c, a, text) : check_chain<float>(c, a, text);
}

// A block over words, in place.
template <class T> void inner_block_of_doubles(const TntInnerBlockProblem& p, Doubles& words) {
    const int64_t rows = p.patches * p.tokens, size = rows * p.channels, normal_row = p.whole ? int64_t{p.tokens} * p.channels : p.channels;
    const int d = p.channels / p.heads;
    Doubles normal(size), wide(rows * std::max(3 * p.channels, p.hidden)), context(size);
    auto normalize = [&](const void* scale, const void* bias, float epsilon) {
        reference::normalize<T><<<blocks_for(size / normal_row), 128>>>(words.p, scale, bias, size / normal_row, normal_row, static_cast<double>(epsilon), normal.p);
    };
    auto product = [&](const Doubles& x, const void* w, const void* b, int k, int n, Doubles& to) { reference::product<T><<<blocks_for(rows * n), 128>>>(x.p, w, b, rows, k, n, to.p); };
    normalize(p.scale1, p.bias1, p.epsilon1);
    product(normal, p.w_qkv, p.b_qkv, p.channels, 3 * p.channels, wide);
    AttentionProblem attend;
    attend.batch = p.patches, attend.heads = p.heads, attend.queries = attend.keys = p.tokens, attend.dim = attend.value_dim = d, attend.scale = p.scale;
    auto part = [&](int i) { return HeadView{wide.p + i * p.channels, int64_t{p.tokens} * 3 * p.channels, 3 * p.channels, d}; };
    attend.q = part(0), attend.k = part(1), attend.v = part(2);
    reference::attention<T, double><<<blocks_for(rows * p.heads), 128>>>(attend, context.p);
    product(context, p.w_proj, p.b_proj, p.channels, p.channels, normal);
    reference::add<<<blocks_for(size), 128>>>(words.p, normal.p, size);
    normalize(p.scale2, p.bias2, p.epsilon2);
    product(normal, p.w1, p.b1, p.channels, p.hidden, wide);
    reference::gelu<<<blocks_for(rows * p.hidden), 128>>>(wide.p, rows * p.hidden, p.tanh_gelu);
    product(wide, p.w2, p.b2, p.hidden, p.channels, context);
    reference::add<<<blocks_for(size), 128>>>(words.p, context.p, size);
    CUDA_OK(cudaGetLastError());
}
// A bridge from words in double, onto p.x or onto zeros.
template <class T> void bridge_of_doubles(const TntBridgeProblem& p, const Doubles& words, Doubles& y) {
    const int64_t rows = p.images * p.covered, size = p.images * p.tokens * p.channels;
    Doubles normal(rows * p.width), product(rows * p.channels), change(rows * p.channels);
    reference::normalize<T><<<blocks_for(rows), 128>>>(words.p, p.scale1, p.bias1, rows, p.width, static_cast<double>(p.epsilon1), normal.p);
    reference::product<T><<<blocks_for(rows * p.channels), 128>>>(normal.p, p.w, p.b, rows, p.width, p.channels, product.p);
    reference::normalize<T><<<blocks_for(rows), 128>>>(product.p, p.scale2, p.bias2, rows, p.channels, static_cast<double>(p.epsilon2), change.p);
    reference::bridge_out<T><<<blocks_for(size), 128>>>(p, change.p, y.p);
    CUDA_OK(cudaGetLastError());
}

struct InnerCase {
    DType type;
    int64_t patches;
    int tokens, heads, d, hidden;
    bool whole = false, tanh_gelu = false;
    int shift = 0;
    float offset = 0;
};
void check(Checker& c, const InnerCase& a) {
    char text[160];
    std::snprintf(text, sizeof(text), "tnt_inner_block b%lld n%d h%d d%d hidden%d%s%s off%d+%g", static_cast<long long>(a.patches), a.tokens, a.heads, a.d, a.hidden, a.whole ? " whole" : "",
                  a.tanh_gelu ? " tanh" : "", a.shift, static_cast<double>(a.offset));
    const std::string name = text;
    if (!c.wanted(name)) return;
    const int channels = a.heads * a.d;
    const int64_t rows = a.patches * a.tokens, size = rows * channels, normal_row = a.whole ? int64_t{a.tokens} * channels : channels;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    auto root = [](int k) { return 1.f / std::sqrt(static_cast<float>(k)); };
    TntInnerBlockProblem p;
    p.dtype = a.type, p.patches = a.patches, p.tokens = a.tokens, p.channels = channels, p.hidden = a.hidden, p.heads = a.heads;
    p.scale = root(a.d), p.epsilon2 = 1e-3f, p.whole = a.whole, p.tanh_gelu = a.tanh_gelu;
    p.x = make(size, 1.5f, a.offset);
    p.scale1 = make(normal_row, 0.5f, 1.f), p.bias1 = make(normal_row, 0.5f), p.scale2 = make(normal_row, 0.5f, 1.f), p.bias2 = make(normal_row, 0.5f);
    p.w_qkv = make(3 * channels * channels, root(channels)), p.b_qkv = make(3 * channels, 0.5f);
    // Large enough that both halves count beside x.
    p.w_proj = make(channels * channels, 2 * root(channels)), p.b_proj = make(channels, 0.5f);
    p.w1 = make(int64_t{channels} * a.hidden, root(channels)), p.b1 = make(a.hidden, 0.5f);
    p.w2 = make(int64_t{channels} * a.hidden, 2 * root(a.hidden)), p.b2 = make(channels, 0.5f);
    Tensor y = tensor(a.type, size, a.shift), workspace = tensor(DType::kFloat, (tnt_inner_block_workspace(p) + 3) / 4);
    p.y = y->data(), p.workspace = workspace->data();

    Doubles ref(size);
    auto reference = [&](auto type) {
        using T = decltype(type);
        reference::widen<T><<<blocks_for(size), 128>>>(p.x, size, ref.p);
        inner_block_of_doubles<T>(p, ref);
    };
    if (rows > 0) a.type == DType::kHalf ? reference(__half()) : reference(float());
    const cudaError_t status = c.run([&](cudaStream_t s) { return tnt_inner_block(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    c.compare(name, *y, ref);
    c.enclosed(name, a.type, *workspace);
}

struct BridgeCase {
    DType type;
    int64_t images;
    int tokens, begin, covered, width, channels;
    bool residual = false;
    int shift = 0;
    float offset = 0;
};
void check(Checker& c, const BridgeCase& a) {
    char text[160];
    std::snprintf(text, sizeof(text), "tnt_bridge b%lld n%d from%d m%d k%d c%d%s off%d+%g", static_cast<long long>(a.images), a.tokens, a.begin, a.covered, a.width, a.channels, a.residual ? " add" : "",
                  a.shift, static_cast<double>(a.offset));
    const std::string name = text;
    if (!c.wanted(name)) return;
    const int64_t rows = a.images * a.covered, size = a.images * a.tokens * a.channels;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    TntBridgeProblem p;
    p.dtype = a.type, p.images = a.images, p.tokens = a.tokens, p.begin = a.begin, p.covered = a.covered, p.width = a.width, p.channels = a.channels, p.epsilon2 = 1e-3f;
    p.x = make(size, 1.5f, a.offset), p.residual = a.residual ? make(size, 1.f) : nullptr;
    p.words = make(rows * a.width, 1.5f, a.offset);
    p.scale1 = make(a.width, 0.5f, 1.f), p.bias1 = make(a.width, 0.5f), p.scale2 = make(a.channels, 0.5f, 1.f), p.bias2 = make(a.channels, 0.5f);
    p.w = make(int64_t{a.width} * a.channels, 1.f / std::sqrt(static_cast<float>(a.width))), p.b = make(a.channels, 0.5f, a.offset);
    Tensor y = tensor(a.type, size, a.shift), workspace = tensor(DType::kFloat, (tnt_bridge_workspace(p) + 3) / 4);
    p.y = y->data(), p.workspace = workspace->data();

    Doubles words(rows * a.width), ref(size);
    auto reference = [&](auto type) {
        using T = decltype(type);
        reference::widen<T><<<blocks_for(rows * a.width), 128>>>(p.words, rows * a.width, words.p);
        bridge_of_doubles<T>(p, words, ref);
    };
    if (rows > 0) a.type == DType::kHalf ? reference(__half()) : reference(float());
    const cudaError_t status = c.run([&](cudaStream_t s) { return tnt_bridge(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    c.compare(name, *y, ref);
    c.enclosed(name, a.type, *workspace);
}

struct WordsCase {
    DType type;
    int64_t images;
    int tokens, begin, covered, patches, words, heads, d, hidden, layers, channels;  // tokens of an image; patches of a token; words of a patch
    std::vector<int> after;
    bool last = false;  // the last words are asked for
    bool whole = false, tanh_gelu = false;
    int shift = 0;
    float offset = 0;
    int stacked = 0;  // results of so many of the last bridges lie behind each other
    int way = 0;      // of tnt_words
};
void check(Checker& c, const WordsCase& a) {
    char text[200];
    std::snprintf(text, sizeof(text), "tnt_words b%lld n%d from%d m%d x%d of%d h%d d%d hidden%d layers%d c%d%s%s%s off%d+%g after", static_cast<long long>(a.images), a.tokens, a.begin, a.covered, a.patches, a.words,
                  a.heads, a.d, a.hidden, a.layers, a.channels, a.last ? " last" : "", a.whole ? " whole" : "", a.tanh_gelu ? " tanh" : "", a.shift, static_cast<double>(a.offset));
    std::string name = text;
    for (int after : a.after) name += "," + std::to_string(after);
    if (a.stacked) name += " stacked" + std::to_string(a.stacked);
    if (a.way) name += " way" + std::to_string(a.way);
    if (!c.wanted(name)) return;
    TntWordsProblem p;
    TntInnerBlockProblem& i = p.inner;
    const auto bridges = static_cast<int64_t>(a.after.size()), layers = int64_t{a.layers};
    const int64_t channels = int64_t{a.heads} * a.d, patches = a.images * a.covered * a.patches, size = patches * a.words * channels, out_size = a.images * a.tokens * a.channels;
    const int64_t normal_row = a.whole ? a.words * channels : channels, width = a.patches * a.words * channels;
    std::vector<Tensor> in, out;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    auto root = [](int64_t k) { return 1.f / std::sqrt(static_cast<float>(k)); };
    i.dtype = a.type, i.patches = patches, i.tokens = a.words, i.channels = static_cast<int>(channels), i.hidden = a.hidden, i.heads = a.heads;
    i.scale = root(a.d), i.epsilon2 = 1e-3f, i.whole = a.whole, i.tanh_gelu = a.tanh_gelu;
    i.x = make(size, 1.5f, a.offset);
    i.scale1 = make(layers * normal_row, 0.5f, 1.f), i.bias1 = make(layers * normal_row, 0.5f), i.scale2 = make(layers * normal_row, 0.5f, 1.f), i.bias2 = make(layers * normal_row, 0.5f);
    i.w_qkv = make(layers * 3 * channels * channels, root(channels)), i.b_qkv = make(layers * 3 * channels, 0.5f);
    i.w_proj = make(layers * channels * channels, root(channels)), i.b_proj = make(layers * channels, 0.5f);
    i.w1 = make(layers * channels * a.hidden, root(channels)), i.b1 = make(layers * a.hidden, 0.5f);
    i.w2 = make(layers * channels * a.hidden, root(a.hidden)), i.b2 = make(layers * channels, 0.5f);
    p.layers = a.layers, p.bridges = static_cast<int>(bridges), p.images = a.images, p.tokens = a.tokens, p.begin = a.begin, p.covered = a.covered, p.width = static_cast<int>(width), p.channels = a.channels;
    p.epsilon2 = 1e-3f;
    p.scale1 = make(bridges * width, 0.5f, 1.f), p.bias1 = make(bridges * width, 0.5f), p.w = make(bridges * width * a.channels, root(width)), p.b = make(bridges * a.channels, 0.5f);
    p.scale2 = make(bridges * a.channels, 0.5f, 1.f), p.bias2 = make(bridges * a.channels, 0.5f);
    const int64_t alone = bridges - a.stacked, out_bytes = out_size * (a.type == DType::kHalf ? 2 : 4);
    for (int64_t j = 0; j < bridges; ++j) {
        p.after[j] = a.after[j];
        if (j <= alone) out.push_back(tensor(a.type, (j < alone ? 1 : a.stacked) * out_size, a.shift));
        p.out[j] = static_cast<unsigned char*>(out.back()->data()) + (j < alone ? 0 : j - alone) * out_bytes;
    }
    Tensor y = tensor(a.type, size, a.shift), workspace = tensor(DType::kFloat, (tnt_words_workspace(p) + 3) / 4);
    p.y = a.last ? y->data() : nullptr, p.workspace = workspace->data();

    const cudaError_t status = c.run([&](cudaStream_t s) { return tnt_words(p, s, a.way); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    Doubles words(size), ref(out_size), stack(a.stacked * out_size);
    auto compare = [&](auto type) {
        using T = decltype(type);
        auto on = [&](const void* w, int64_t elements) -> const void* { return static_cast<const T*>(w) + elements; };
        if (size > 0) reference::widen<T><<<blocks_for(size), 128>>>(i.x, size, words.p);
        int64_t j = 0;
        for (int layer = 0; layer <= a.layers; ++layer) {
            for (; j < bridges && a.after[j] == layer; ++j) {
                TntBridgeProblem b;
                b.images = a.images, b.tokens = a.tokens, b.begin = a.begin, b.covered = a.covered, b.width = p.width, b.channels = a.channels, b.epsilon1 = p.epsilon1, b.epsilon2 = p.epsilon2;
                b.scale1 = on(p.scale1, j * width), b.bias1 = on(p.bias1, j * width), b.w = on(p.w, j * width * a.channels), b.b = on(p.b, j * a.channels);
                b.scale2 = on(p.scale2, j * a.channels), b.bias2 = on(p.bias2, j * a.channels);
                if (size > 0) bridge_of_doubles<T>(b, words, ref);
                if (j < alone) c.compare(name + " bridge" + std::to_string(j), *out[j], ref);
                else CUDA_OK(cudaMemcpy(stack.p + (j - alone) * out_size, ref.p, out_size * sizeof(double), cudaMemcpyDeviceToDevice));
            }
            if (layer == a.layers) break;
            TntInnerBlockProblem b = i;
            b.scale1 = on(i.scale1, layer * normal_row), b.bias1 = on(i.bias1, layer * normal_row), b.scale2 = on(i.scale2, layer * normal_row), b.bias2 = on(i.bias2, layer * normal_row);
            b.w_qkv = on(i.w_qkv, layer * 3 * channels * channels), b.b_qkv = on(i.b_qkv, layer * 3 * channels), b.w_proj = on(i.w_proj, layer * channels * channels), b.b_proj = on(i.b_proj, layer * channels);
            b.w1 = on(i.w1, layer * channels * a.hidden), b.b1 = on(i.b1, int64_t{layer} * a.hidden), b.w2 = on(i.w2, layer * channels * a.hidden), b.b2 = on(i.b2, layer * channels);
            if (size > 0) inner_block_of_doubles<T>(b, words);
        }
        if (a.stacked) c.compare(name + " stack", *out[alone], stack);
        if (a.last) c.compare(name + " words", *y, words);
    };
    a.type == DType::kHalf ? compare(__half()) : compare(float());
    c.enclosed(name, a.type, *workspace);
}

struct EmbedCase {
    DType image, type;
    int64_t images;
    int channels, height, width, patch_h, patch_w, columns;
    bool offset = true, norm = true;
    int shift = 0;
    float mean = 0;
    bool tokens = false;  // channels innermost, of x as of the weights
};
void check(Checker& c, const EmbedCase& a) {
    char text[160];
    std::snprintf(text, sizeof(text), "patch_embed%s %sb%lld c%d %dx%d patch%dx%d d%d%s%s off%d+%g", a.tokens ? "_tokens" : "", a.image == a.type ? "" : "of_float ", static_cast<long long>(a.images), a.channels, a.height, a.width, a.patch_h,
                  a.patch_w, a.columns, a.offset ? " offset" : "", a.norm ? " norm" : "", a.shift, static_cast<double>(a.mean));
    const std::string name = text;
    if (!c.wanted(name)) return;
    PatchEmbedProblem p;
    p.image = a.image, p.dtype = a.type, p.images = a.images, p.channels = a.channels, p.height = a.height, p.width = a.width, p.patch_h = a.patch_h, p.patch_w = a.patch_w, p.columns = a.columns, p.epsilon = 1e-3f;
    if (a.tokens) p.of_tokens(a.height, a.width, a.channels, a.patch_h, a.patch_w);
    const int64_t rows = a.images * p.tokens(), size = rows * a.columns;
    std::vector<Tensor> in;
    auto make = [&](DType type, int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    p.x = make(a.image, a.images * a.channels * a.height * a.width, 1.5f, a.mean);
    p.w = make(a.type, int64_t{a.columns} * p.patch(), 1.f / std::sqrt(static_cast<float>(p.patch())));
    if (a.offset) p.b = make(a.type, a.columns, 0.5f, a.mean);
    if (a.norm) p.scale = make(a.type, a.columns, 0.5f, 1.f), p.bias = make(a.type, a.columns, 0.5f);
    Tensor y = tensor(a.type, size, a.shift);
    p.y = y->data();

    Doubles product(size), ref(size);
    auto reference = [&](auto image, auto type) {
        using X = decltype(image);
        using T = decltype(type);
        double* const to = a.norm ? product.p : ref.p;
        if (a.tokens) reference::token_patch_product<T><<<blocks_for(size), 128>>>(p.x, p.w, p.b, a.images, a.height, a.width, a.channels, a.patch_h, a.patch_w, a.columns, to);
        else reference::patch_product<X, T><<<blocks_for(size), 128>>>(p, to);
        if (a.norm) reference::normalize<T><<<blocks_for(rows), 128>>>(product.p, p.scale, p.bias, rows, a.columns, static_cast<double>(p.epsilon), ref.p);
        CUDA_OK(cudaGetLastError());
    };
    if (rows > 0) {
        if (a.type == DType::kFloat) reference(float(), float());
        else if (a.image == DType::kFloat) reference(float(), __half());
        else reference(__half(), __half());
    }
    const cudaError_t status = c.run([&](cudaStream_t s) { return patch_embed(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    c.compare(name, *y, ref);
}

struct PatchConvCase {
    DType type;
    int64_t images;
    int height, width, channels, columns;
    bool norm = true;
    int kernel[2] = {3, 3}, strides[2] = {2, 2}, pads[4] = {1, 1, 1, 1}, cell[2] = {1, 1}, across = 1;
    int shift = 0;
    float offset = 0;
    bool every_tactic = false;  // not only those worth timing
};
void check(Checker& c, const PatchConvCase& a) {
    char text[200];
    std::snprintf(text, sizeof(text), "patch_conv b%lld %dx%d c%d d%d k%dx%d s%dx%d pads%d,%d,%d,%d cell%dx%d across%d%s off%d+%g", static_cast<long long>(a.images), a.height, a.width, a.channels, a.columns, a.kernel[0],
                  a.kernel[1], a.strides[0], a.strides[1], a.pads[0], a.pads[1], a.pads[2], a.pads[3], a.cell[0], a.cell[1], a.across, a.norm ? " norm" : "", a.shift, static_cast<double>(a.offset));
    const std::string name = text;
    if (!c.wanted(name)) return;
    PatchConvProblem p;
    p.dtype = a.type, p.images = a.images, p.height = a.height, p.width = a.width, p.channels = a.channels, p.columns = a.columns, p.across = a.across;
    for (int i = 0; i < 2; ++i) p.kernel[i] = a.kernel[i], p.strides[i] = a.strides[i], p.cell[i] = a.cell[i];
    std::copy(a.pads, a.pads + 4, p.pads);
    const int out_h = (a.height + a.pads[0] + a.pads[2] - a.kernel[0]) / a.strides[0] + 1, out_w = (a.width + a.pads[1] + a.pads[3] - a.kernel[1]) / a.strides[1] + 1, depth = a.kernel[0] * a.kernel[1] * a.channels;
    const int64_t tokens = a.images * a.height * a.width, size = tokens * a.channels, rows = a.images * out_h * out_w;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    p.x = make(size, 1.5f, a.offset);
    p.w = make(int64_t{depth} * a.columns, 1.f / std::sqrt(static_cast<float>(depth))), p.b = make(a.columns, 0.5f);
    if (a.norm) p.scale = make(a.channels, 0.5f, 1.f), p.bias = make(a.channels, 0.5f);
    Tensor y = tensor(a.type, rows * a.columns, a.shift), workspace = tensor(DType::kFloat, (patch_conv_workspace(p) + 3) / 4);
    p.y = y->data(), p.workspace = workspace->data();
    Doubles wide(size), normal(a.norm ? size : 0), under(rows * depth), ref(rows * a.columns);
    auto reference = [&](auto type) {
        using T = decltype(type);
        reference::widen<T><<<blocks_for(size), 128>>>(p.x, size, wide.p);
        if (a.norm) reference::normalize<T><<<blocks_for(tokens), 128>>>(wide.p, p.scale, p.bias, tokens, a.channels, static_cast<double>(p.epsilon), normal.p);
        reference::patch_conv_rows<<<blocks_for(rows * depth), 128>>>(p, a.norm ? normal.p : wide.p, out_h, out_w, rows, under.p);
        reference::product<T><<<blocks_for(rows * a.columns), 128>>>(under.p, p.w, p.b, rows, depth, a.columns, ref.p);
        CUDA_OK(cudaGetLastError());
    };
    if (rows > 0) a.type == DType::kHalf ? reference(__half()) : reference(float());
    std::vector<int32_t> tactics = patch_conv_tactics(p);
    tactics.insert(tactics.begin(), 0);
    if (a.every_tactic)
        for (int cluster = 0; cluster <= 3; ++cluster)
            for (int tile = 1; tile <= 12; ++tile)
                if (const int32_t tactic = cluster << 4 | tile; patch_conv_tactic_valid(p, tactic)) tactics.push_back(tactic);
    for (int32_t tactic : tactics) {
        y->poison(), workspace->poison();
        std::snprintf(text, sizeof(text), " tile%d cluster%d", tactic & 15, 1 << (tactic >> 4 & 15));
        const std::string label = tactic ? name + text : name;
        const cudaError_t status = c.run([&](cudaStream_t s) { return patch_conv(p, s, tactic); });
        if (status != cudaSuccess) c.report(label, a.type, 1e30, 0, 0, cudaGetErrorString(status));
        else c.compare(label, *y, ref);
    }
    c.enclosed(name, a.type, *workspace);
}

struct PixelCase {
    DType image, type;
    int64_t images;
    int channels, height, width, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, grid_h, grid_w, words_h, words_w, columns;
    bool within = true;
    int shift = 0;
    float mean = 0;
};
// Of an image of which each side is so many patches of words a stride apart, and `more` pixels.
PixelCase pixels(DType image, DType type, int64_t images, int channels, int kernel, int stride, int pad, std::pair<int, int> grid, std::pair<int, int> words, int columns, bool within = true, int more = 0) {
    return {image, type, images, channels, grid.first * words.first * stride + more, grid.second * words.second * stride + more, kernel, kernel, stride, stride, pad, pad, grid.first, grid.second, words.first, words.second, columns, within};
}
void check(Checker& c, const PixelCase& a) {
    char text[200];
    std::snprintf(text, sizeof(text), "pixel_embed %sb%lld c%d %dx%d kernel%dx%d stride%dx%d pad%dx%d grid%dx%d words%dx%d d%d%s off%d+%g", a.image == a.type ? "" : "of_float ", static_cast<long long>(a.images), a.channels, a.height, a.width,
                  a.kernel_h, a.kernel_w, a.stride_h, a.stride_w, a.pad_h, a.pad_w, a.grid_h, a.grid_w, a.words_h, a.words_w, a.columns, a.within ? " within" : "", a.shift, static_cast<double>(a.mean));
    const std::string name = text;
    if (!c.wanted(name)) return;
    PixelEmbedProblem p;
    p.image = a.image, p.dtype = a.type, p.images = a.images, p.channels = a.channels, p.height = a.height, p.width = a.width, p.kernel_h = a.kernel_h, p.kernel_w = a.kernel_w, p.stride_h = a.stride_h, p.stride_w = a.stride_w;
    p.pad_h = a.pad_h, p.pad_w = a.pad_w, p.grid_h = a.grid_h, p.grid_w = a.grid_w, p.words_h = a.words_h, p.words_w = a.words_w, p.columns = a.columns, p.within = a.within;
    const int64_t size = a.images * p.patches() * p.words() * a.columns, kernel = int64_t{a.channels} * a.kernel_h * a.kernel_w, rows = int64_t{a.columns} * a.channels * a.kernel_h;
    Tensor x = tensor(a.image, a.images * a.channels * a.height * a.width, a.shift), w = tensor(a.type, rows * kPixelSlots, a.shift), offset = tensor(a.type, int64_t{p.words()} * a.columns, a.shift), y = tensor(a.type, size, a.shift);
    x->fill(c.next_seed(), 1.5f, a.mean), w->fill(c.next_seed(), 1.f / std::sqrt(static_cast<float>(kernel))), offset->fill(c.next_seed(), 0.5f, a.mean);
    // A row of the kernel ends with zeros.
    const size_t element = a.type == DType::kHalf ? 2 : 4;
    CUDA_OK(cudaMemset2D(static_cast<char*>(w->data()) + a.kernel_w * element, kPixelSlots * element, 0, (kPixelSlots - a.kernel_w) * element, static_cast<size_t>(rows)));
    p.x = x->data(), p.w = w->data(), p.offset = offset->data(), p.y = y->data();
    Doubles ref(size);
    auto reference = [&](auto image, auto type) {
        reference::pixel_words<decltype(image), decltype(type)><<<blocks_for(size), 128>>>(p, ref.p);
        CUDA_OK(cudaGetLastError());
    };
    if (size > 0) {
        if (a.type == DType::kFloat) reference(float(), float());
        else if (a.image == DType::kFloat) reference(float(), __half());
        else reference(__half(), __half());
    }
    const cudaError_t status = c.run([&](cudaStream_t s) { return pixel_embed(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    c.compare(name, *y, ref);
}

struct StackCase {
    DType image, type;
    int64_t images;
    int channels, height, width;
    std::vector<int> columns, strides;
    int branch = -1, word_columns = 8, words_h = 4, words_w = 4;
    int shift = 0;
};
void check(Checker& c, const StackCase& a) {
    ConvStackProblem p;
    p.image = a.image, p.dtype = a.type, p.images = a.images, p.channels = a.channels, p.height = a.height, p.width = a.width, p.layers = static_cast<int32_t>(a.columns.size());
    std::string name = "conv_stack " + std::string(a.image == a.type ? "" : "of_float ") + "b" + std::to_string(a.images) + " c" + std::to_string(a.channels) + " " + std::to_string(a.height) + "x" + std::to_string(a.width);
    for (int i = 0; i < p.layers; ++i) p.columns[i] = a.columns[i], p.strides[i] = a.strides[i], name += " d" + std::to_string(a.columns[i]) + "s" + std::to_string(a.strides[i]);
    if (a.branch >= 0) {
        p.branch = a.branch, p.word_columns = a.word_columns, p.words_h = a.words_h, p.words_w = a.words_w;
        name += " branch" + std::to_string(a.branch) + " d" + std::to_string(a.word_columns) + " words" + std::to_string(a.words_h) + "x" + std::to_string(a.words_w);
    }
    name += " off" + std::to_string(a.shift);
    if (!c.wanted(name)) return;
    const int last = p.layers - 1, convs = p.layers + (a.branch >= 0 ? 1 : 0);
    auto side = [&](int conv, int axis) { return conv_stack_side(p, conv == p.layers ? p.branch : conv, axis); };
    auto columns = [&](int conv) { return conv == p.layers ? p.word_columns : p.columns[conv]; };
    auto source = [&](int conv) { return conv == p.layers ? p.branch : conv - 1; };
    auto values = [&](int conv) { return a.images * side(conv, 0) * side(conv, 1) * columns(conv); };
    const int64_t tokens = int64_t{side(last, 0)} * side(last, 1) * columns(last), words = a.branch >= 0 ? values(p.layers) : 0, kinds = a.branch >= 0 ? p.words_h * p.words_w * p.word_columns : 0;
    Tensor x = tensor(a.image, a.images * a.channels * a.height * a.width, a.shift), raw = tensor(a.type, conv_stack_weights(p)), w = tensor(a.type, conv_stack_weights(p)), offset = tensor(a.type, tokens, a.shift),
           y = tensor(a.type, a.images * tokens, a.shift), word_offset = tensor(a.type, kinds, a.shift), word = tensor(a.type, words, a.shift), workspace = tensor(a.type, conv_stack_workspace(p) / static_cast<int64_t>(size_of(a.type)));
    x->fill(c.next_seed(), 1.5f), raw->fill(c.next_seed(), 1.f), offset->fill(c.next_seed(), 0.5f), word_offset->fill(c.next_seed(), 0.5f);
    // What is no weight is zero.
    std::vector<unsigned char> random(static_cast<size_t>(w->bytes)), host(static_cast<size_t>(w->bytes), 0);
    CUDA_OK(cudaMemcpy(random.data(), raw->data(), random.size(), cudaMemcpyDeviceToHost));
    auto set = [&](int64_t at, float scale) {
        if (a.type == DType::kFloat) reinterpret_cast<float*>(host.data())[at] = reinterpret_cast<float*>(random.data())[at] * scale;
        else reinterpret_cast<__half*>(host.data())[at] = __float2half(__half2float(reinterpret_cast<__half*>(random.data())[at]) * scale);
    };
    std::vector<std::vector<int64_t>> places(static_cast<size_t>(convs));
    for (int conv = 0; conv < convs; ++conv) {
        const int from = source(conv), channels = from < 0 ? a.channels : p.columns[from];
        auto& at = places[static_cast<size_t>(conv)];
        for (int i = 0; i < columns(conv) * channels * 9; ++i) at.push_back(conv_stack_weight(p, conv, i / 9 / channels, i / 9 % channels, i / 3 % 3, i % 3)), set(at.back(), 1.4f / std::sqrt(9.f * static_cast<float>(channels)));
        for (int i = 0; i < columns(conv); ++i) at.push_back(conv_stack_bias(p, conv, i)), set(at.back(), 0.5f);
    }
    if (w->bytes > 0) CUDA_OK(cudaMemcpy(w->data(), host.data(), host.size(), cudaMemcpyHostToDevice));
    p.x = x->data(), p.w = w->data(), p.offset = offset->data(), p.y = y->data(), p.word_offset = word_offset->data(), p.words = word->data(), p.workspace = workspace->data();
    Doubles ref(a.images * tokens), ref_words(words);
    auto reference = [&](auto image, auto type) {
        using X = decltype(image);
        using T = decltype(type);
        std::vector<std::unique_ptr<Doubles>> maps;
        for (int conv = 0; conv < convs; ++conv) {
            const int from = source(conv), channels = from < 0 ? a.channels : p.columns[from], height = from < 0 ? a.height : side(from, 0), width = from < 0 ? a.width : side(from, 1);
            maps.push_back(std::make_unique<Doubles>(values(conv)));
            const auto& at = places[static_cast<size_t>(conv)];
            int64_t* device = nullptr;
            CUDA_OK(cudaMalloc(&device, at.size() * sizeof(int64_t)));
            CUDA_OK(cudaMemcpy(device, at.data(), at.size() * sizeof(int64_t), cudaMemcpyHostToDevice));
            double* const out = maps.back()->p;
            reference::stack_conv<X, T><<<blocks_for(values(conv)), 128>>>(p, from < 0 ? nullptr : maps[static_cast<size_t>(from)]->p, device, channels, height, width, columns(conv), side(conv, 0), side(conv, 1), conv == p.layers ? 1 : p.strides[conv], out);
            if (conv < last) reference::round_all<T><<<blocks_for(values(conv)), 128>>>(out, values(conv));
            else if (conv == last) reference::stack_words<T><<<blocks_for(values(conv)), 128>>>(out, a.images, side(conv, 0), side(conv, 1), columns(conv), side(conv, 0), side(conv, 1), p.offset, ref.p);
            else reference::stack_words<T><<<blocks_for(values(conv)), 128>>>(out, a.images, side(conv, 0), side(conv, 1), columns(conv), p.words_h, p.words_w, p.word_offset, ref_words.p);
            CUDA_OK(cudaGetLastError());
            CUDA_OK(cudaDeviceSynchronize());
            CUDA_OK(cudaFree(device));
        }
    };
    if (a.images > 0) {
        if (a.type == DType::kFloat) reference(float(), float());
        else if (a.image == DType::kFloat) reference(float(), __half());
        else reference(__half(), __half());
    }
    std::vector<int32_t> tactics = conv_stack_tactics(p);
    tactics.insert(tactics.begin(), 0);
    for (int32_t tactic : tactics) {
        y->poison(), word->poison(), workspace->poison();
        const std::string label = tactic ? name + " cluster" + std::to_string(tactic) : name;
        const cudaError_t status = c.run([&](cudaStream_t s) { return conv_stack(p, s, tactic); });
        if (status != cudaSuccess) {
            c.report(label, a.type, 1e30, 0, 0, cudaGetErrorString(status));
            continue;
        }
        c.compare(label, *y, ref);
        if (a.branch >= 0) c.compare(label + " words", *word, ref_words);
    }
    c.enclosed(name, a.type, *workspace);
}

struct DepthwiseCase {
    DType type;
    int64_t images;
    int height, width, channels, kernel = 3;
    bool residual = true, offset = true;
    int shift = 0;
};
void check(Checker& c, const DepthwiseCase& a) {
    char text[120];
    std::snprintf(text, sizeof(text), "depthwise_conv b%lld %dx%d c%d k%d%s%s off%d%s", static_cast<long long>(a.images), a.height, a.width, a.channels, a.kernel, a.residual ? " residual" : "",
                  a.offset ? " offset" : "", a.shift, a.type == DType::kHalf ? " fp16" : " fp32");
    const std::string name = text;
    if (!c.wanted(name)) return;
    DepthwiseConvProblem p;
    p.dtype = a.type, p.images = a.images, p.height = a.height, p.width = a.width, p.channels = a.channels, p.kernel = a.kernel, p.residual = a.residual;
    const int64_t size = a.images * a.height * a.width * a.channels;
    Tensor x = tensor(a.type, size, a.shift), w = tensor(a.type, int64_t{a.kernel} * a.kernel * a.channels, a.shift), b = tensor(a.type, a.offset ? a.channels : 0, a.shift), y = tensor(a.type, size, a.shift);
    x->fill(c.next_seed(), 1.5f), w->fill(c.next_seed(), 1.f / static_cast<float>(a.kernel));
    p.x = x->data(), p.w = w->data(), p.y = y->data();
    if (a.offset) {
        b->fill(c.next_seed(), 0.5f);
        p.b = b->data();
    }
    const cudaError_t status = c.run([&](cudaStream_t s) { return depthwise_conv(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    Doubles ref(y->count);
    if (size > 0) {
        if (a.type == DType::kHalf) reference::depthwise_conv<__half><<<blocks_for(size), 128>>>(p, ref.p);
        else reference::depthwise_conv<float><<<blocks_for(size), 128>>>(p, ref.p);
        CUDA_OK(cudaGetLastError());
    }
    c.compare(name, *y, ref);
}

struct ConvBlockCase {
    DType type;
    int64_t images;
    int height, width, channels, hidden, kernel = 5;
    int shift = 0;
    bool every_tactic = false;  // not only those worth timing
    float offset = 0;
};
void check(Checker& c, const ConvBlockCase& a) {
    char text[120];
    std::snprintf(text, sizeof(text), "conv_block b%lld %dx%d c%d d%d k%d off%d+%g", static_cast<long long>(a.images), a.height, a.width, a.channels, a.hidden, a.kernel, a.shift, static_cast<double>(a.offset));
    const std::string name = text;
    if (!c.wanted(name)) return;
    ConvBlockProblem p;
    p.dtype = a.type, p.images = a.images, p.height = a.height, p.width = a.width, p.channels = a.channels, p.hidden = a.hidden, p.kernel = a.kernel;
    const int64_t rows = a.images * a.height * a.width, size = rows * a.channels, weights = int64_t{a.channels} * a.hidden;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    p.x = make(size, 1.5f, a.offset);
    // Large enough that the block's part counts beside x.
    p.w1 = make(weights, 1.f / std::sqrt(static_cast<float>(a.channels))), p.b1 = make(a.hidden, 0.5f);
    p.w = make(int64_t{a.kernel} * a.kernel * a.hidden, 1.f / static_cast<float>(a.kernel)), p.b = make(a.hidden, 0.5f);
    p.w2 = make(weights, 1.f / std::sqrt(static_cast<float>(a.hidden))), p.b2 = make(a.channels, 0.5f);
    Tensor y = tensor(a.type, size, a.shift), workspace = tensor(DType::kFloat, (conv_block_workspace(p) + 3) / 4);
    p.y = y->data(), p.workspace = workspace->data();
    Doubles wide(size), up(rows * a.hidden), mixed(rows * a.hidden), ref(size);
    auto reference = [&](auto type) {
        using T = decltype(type);
        reference::widen<T><<<blocks_for(size), 128>>>(p.x, size, wide.p);
        reference::product<T><<<blocks_for(rows * a.hidden), 128>>>(wide.p, p.w1, p.b1, rows, a.channels, a.hidden, up.p);
        DepthwiseConvProblem conv;
        conv.images = a.images, conv.height = a.height, conv.width = a.width, conv.channels = a.hidden, conv.kernel = a.kernel, conv.x = up.p, conv.w = p.w, conv.b = p.b;
        reference::depthwise_conv<T, double><<<blocks_for(rows * a.hidden), 128>>>(conv, mixed.p);
        reference::product<T><<<blocks_for(size), 128>>>(mixed.p, p.w2, p.b2, rows, a.hidden, a.channels, ref.p);
        reference::add<<<blocks_for(size), 128>>>(ref.p, wide.p, size);
        CUDA_OK(cudaGetLastError());
    };
    if (rows > 0) a.type == DType::kHalf ? reference(__half()) : reference(float());
    std::vector<int32_t> tactics = conv_block_tactics(p);
    tactics.insert(tactics.begin(), 0);
    if (a.every_tactic)
        for (int tile = 1; tile <= 12; ++tile)
            for (auto [cluster, cluster2] : {std::pair{0, 0}, {0, 1}, {1, 2}, {3, 0}, {2, 3}})
                for (int other : {tile, (tile + 3) % 12 + 1})
                    if (const int32_t tactic = chain_tactic(tile, cluster, other, cluster2); conv_block_tactic_valid(p, tactic)) tactics.push_back(tactic);
    for (int32_t tactic : tactics) {
        y->poison(), workspace->poison();
        const std::string label = tactic ? name + tactic_label(tactic) : name;
        const cudaError_t status = c.run([&](cudaStream_t s) { return conv_block(p, s, tactic); });
        if (status != cudaSuccess) c.report(label, a.type, 1e30, 0, 0, cudaGetErrorString(status));
        else c.compare(label, *y, ref);
    }
    c.enclosed(name, a.type, *workspace);
}

struct ConvLayerCase {
    DType type;
    int64_t images;
    int height, width, channels, columns, hidden, kernel = 5;  // columns: between the block's products; hidden: between the MLP's
    bool tanh_gelu = false;
    int shift = 0;
    float offset = 0;
    bool one_kernel = false;  // that there is one
};
void check(Checker& c, const ConvLayerCase& a) {
    char text[140];
    std::snprintf(text, sizeof(text), "conv_layer b%lld %dx%d c%d d%d h%d k%d%s off%d+%g", static_cast<long long>(a.images), a.height, a.width, a.channels, a.columns, a.hidden, a.kernel, a.tanh_gelu ? " tanh" : "",
                  a.shift, static_cast<double>(a.offset));
    const std::string name = text;
    if (!c.wanted(name)) return;
    ConvLayerProblem p;
    ConvBlockProblem& b = p.conv;
    b.dtype = a.type, b.images = a.images, b.height = a.height, b.width = a.width, b.channels = a.channels, b.hidden = a.columns, b.kernel = a.kernel;
    p.mlp.hidden = a.hidden, p.mlp.tanh_gelu = a.tanh_gelu;
    const int64_t rows = a.images * a.height * a.width, size = rows * a.channels, weights = int64_t{a.channels} * a.columns, mlp_weights = int64_t{a.channels} * a.hidden;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    auto spread = [](int of) { return 1.f / std::sqrt(static_cast<float>(of)); };
    b.x = make(size, 1.5f, a.offset);
    p.position_w = make(int64_t{kLayerPositionKernel} * kLayerPositionKernel * a.channels, 1.f / kLayerPositionKernel), p.position_b = make(a.channels, 0.5f);
    b.w1 = make(weights, spread(a.channels)), b.b1 = make(a.columns, 0.5f);
    b.w = make(int64_t{a.kernel} * a.kernel * a.columns, 1.f / static_cast<float>(a.kernel)), b.b = make(a.columns, 0.5f);
    b.w2 = make(weights, spread(a.columns)), b.b2 = make(a.channels, 0.5f);
    p.mlp.w1 = make(mlp_weights, spread(a.channels)), p.mlp.b1 = make(a.hidden, 0.5f);
    p.mlp.w2 = make(mlp_weights, 2 * spread(a.hidden)), p.mlp.b2 = make(a.channels, 0.5f);
    Tensor y = tensor(a.type, size, a.shift), workspace = tensor(DType::kFloat, (conv_layer_workspace(p) + 3) / 4);
    p.y = y->data(), p.workspace = workspace->data();
    Doubles encoded(size), up(rows * a.columns), mixed(rows * a.columns), mid(size), hidden(rows * a.hidden), ref(size);
    auto reference = [&](auto type) {
        using T = decltype(type);
        DepthwiseConvProblem conv;
        conv.images = a.images, conv.height = a.height, conv.width = a.width, conv.channels = a.channels, conv.kernel = kLayerPositionKernel, conv.residual = true, conv.x = b.x, conv.w = p.position_w, conv.b = p.position_b;
        reference::depthwise_conv<T><<<blocks_for(size), 128>>>(conv, encoded.p);
        reference::product<T><<<blocks_for(rows * a.columns), 128>>>(encoded.p, b.w1, b.b1, rows, a.channels, a.columns, up.p);
        conv.channels = a.columns, conv.kernel = a.kernel, conv.residual = false, conv.x = up.p, conv.w = b.w, conv.b = b.b;
        reference::depthwise_conv<T, double><<<blocks_for(rows * a.columns), 128>>>(conv, mixed.p);
        reference::product<T><<<blocks_for(size), 128>>>(mixed.p, b.w2, b.b2, rows, a.columns, a.channels, mid.p);
        reference::add<<<blocks_for(size), 128>>>(mid.p, encoded.p, size);
        reference::product<T><<<blocks_for(rows * a.hidden), 128>>>(mid.p, p.mlp.w1, p.mlp.b1, rows, a.channels, a.hidden, hidden.p);
        reference::gelu<<<blocks_for(rows * a.hidden), 128>>>(hidden.p, rows * a.hidden, a.tanh_gelu);
        reference::product<T><<<blocks_for(size), 128>>>(hidden.p, p.mlp.w2, p.mlp.b2, rows, a.hidden, a.channels, ref.p);
        reference::add<<<blocks_for(size), 128>>>(ref.p, mid.p, size);
        CUDA_OK(cudaGetLastError());
    };
    if (rows > 0) a.type == DType::kHalf ? reference(__half()) : reference(float());
    std::vector<int32_t> tactics = conv_layer_tactics(p);
    if (a.one_kernel && tactics.size() != 2) c.report(name, a.type, 1e30, 0, 0, "no kernel of its own, or not an H100's or H200's device");
    tactics.insert(tactics.begin(), 0);
    for (int32_t tactic : tactics) {
        y->poison(), workspace->poison();
        const std::string label = tactic ? name + " tactic " + std::to_string(tactic) : name;
        const cudaError_t status = c.run([&](cudaStream_t s) { return conv_layer(p, s, tactic); });
        if (status != cudaSuccess) c.report(label, a.type, 1e30, 0, 0, cudaGetErrorString(status));
        else c.compare(label, *y, ref);
    }
    c.enclosed(name, a.type, *workspace);
}

struct PooledAttnCase {
    DType type;
    int64_t images;
    int height, width, pool_h, pool_w, channels, heads, d;
    bool residual = false;
    bool bias = true;
    int64_t bias_period = 1;
    int shift = 0;
    float offset = 0;
};
void check(Checker& c, const PooledAttnCase& a) {
    char text[200];
    std::snprintf(text, sizeof(text), "pooled_attn_block b%lld %dx%d pool%dx%d c%d h%d d%d bias%d/%lld%s off%d+%g", static_cast<long long>(a.images), a.height, a.width, a.pool_h, a.pool_w, a.channels, a.heads,
                  a.d, int(a.bias), static_cast<long long>(a.bias_period), a.residual ? " residual" : "", a.shift, static_cast<double>(a.offset));
    const std::string name = text;
    if (!c.wanted(name)) return;
    PooledAttnBlockProblem p;
    p.dtype = a.type, p.images = a.images, p.grid_h = a.height, p.grid_w = a.width, p.pool_h = a.pool_h, p.pool_w = a.pool_w, p.channels = a.channels, p.pool_epsilon = 1e-6f;
    AttentionProblem& t = p.attention;
    t.heads = a.heads, t.dim = a.d, t.scale = 1.f / std::sqrt(static_cast<float>(a.d));
    const int inner = a.heads * a.d;
    const int64_t n = p.tokens(), m = p.pooled(), rows = a.images * n, pooled = a.images * m, size = rows * a.channels;
    std::vector<Tensor> in;
    auto make = [&](int64_t count, float scale, float offset = 0) -> const void* {
        in.push_back(tensor(a.type, count, a.shift));
        in.back()->fill(c.next_seed(), scale, offset);
        return in.back()->data();
    };
    auto matrix = [&](int64_t k, int64_t columns, float scale = 1.f) { return make(k * columns, scale / std::sqrt(static_cast<float>(k))); };
    p.x = make(size, 1.5f, a.offset);
    if (a.residual) p.residual = make(size, 1.f);
    p.norm_scale = make(a.channels, 0.5f, 1.f), p.norm_bias = make(a.channels, 0.5f);
    p.w_q = matrix(a.channels, inner), p.b_q = make(inner, 0.5f);
    // Means of many tokens are small: what is made of them is kept well above the epsilon of its norm.
    p.w_pool = matrix(a.channels, a.channels, 2.f), p.b_pool = make(a.channels, 0.5f), p.pool_scale = make(a.channels, 0.5f, 1.f), p.pool_bias = make(a.channels, 0.5f);
    p.w_kv = matrix(a.channels, 2 * inner), p.b_kv = make(2 * inner, 0.5f);
    if (a.bias) t.bias_kind = AttentionBias::kDense, t.bias_heads = a.heads, t.bias_period = a.bias_period, t.bias = make(a.bias_period * a.heads * n * m, 1.f);
    // Large enough that the block's part counts beside x.
    p.w_proj = matrix(inner, a.channels, 3.f), p.b_proj = make(a.channels, 0.5f);
    Tensor y = tensor(a.type, size, a.shift), workspace = tensor(DType::kFloat, (pooled_attn_block_workspace(p) + 3) / 4);
    p.y = y->data(), p.workspace = workspace->data();

    Doubles normal(size), sum(size), q(rows * inner), means(pooled * a.channels), made(pooled * a.channels), kv(pooled * 2 * inner), context(rows * inner), ref(size);
    auto reference = [&](auto type) {
        using T = decltype(type);
        LayerNormProblem norm;
        norm.row = a.channels, norm.epsilon = p.epsilon, norm.x = p.x, norm.residual = p.residual, norm.scale = p.norm_scale, norm.bias = p.norm_bias;
        reference::layer_norm<T><<<blocks_for(rows), 128>>>(norm, rows, normal.p, sum.p);
        reference::product<T><<<blocks_for(rows * inner), 128>>>(normal.p, p.w_q, p.b_q, rows, a.channels, inner, q.p);
        reference::window_means<<<blocks_for(pooled * a.channels), 128>>>(p, normal.p, means.p);
        reference::product<T><<<blocks_for(pooled * a.channels), 128>>>(means.p, p.w_pool, p.b_pool, pooled, a.channels, a.channels, made.p);
        reference::normalize<T><<<blocks_for(pooled), 128>>>(made.p, p.pool_scale, p.pool_bias, pooled, a.channels, static_cast<double>(p.pool_epsilon), means.p);
        reference::product<T><<<blocks_for(pooled * 2 * inner), 128>>>(means.p, p.w_kv, p.b_kv, pooled, a.channels, 2 * inner, kv.p);
        AttentionProblem attend = t;
        attend.batch = a.images, attend.queries = static_cast<int32_t>(n), attend.keys = static_cast<int32_t>(m), attend.value_dim = a.d;
        attend.q = HeadView{q.p, n * inner, inner, a.d}, attend.k = HeadView{kv.p, m * 2 * inner, 2 * inner, a.d}, attend.v = HeadView{kv.p + inner, m * 2 * inner, 2 * inner, a.d};
        reference::attention<T, double><<<blocks_for(a.images * a.heads * n), 128>>>(attend, context.p);
        reference::product<T><<<blocks_for(size), 128>>>(context.p, p.w_proj, p.b_proj, rows, inner, a.channels, ref.p);
        if (!a.residual) reference::widen<T><<<blocks_for(size), 128>>>(p.x, size, sum.p);
        reference::add<<<blocks_for(size), 128>>>(ref.p, sum.p, size);
        CUDA_OK(cudaGetLastError());
    };
    if (rows > 0) a.type == DType::kHalf ? reference(__half()) : reference(float());
    y->poison(), workspace->poison();
    const cudaError_t status = c.run([&](cudaStream_t s) { return pooled_attn_block(p, s); });
    if (status != cudaSuccess) return c.report(name, a.type, 1e30, 0, 0, cudaGetErrorString(status));
    c.compare(name, *y, ref);
    c.enclosed(name, a.type, *workspace);
}

WindowGrid grid(int h, int w, int wh, int ww, int sh, int sw, int after = 0) { return {h, w, wh, ww, sh, sw, after}; }

void edge_cases(Checker& c) {
    for (DType t : {DType::kHalf, DType::kFloat}) {
        const std::string s = t == DType::kHalf ? " fp16" : " fp32";
        for (int64_t row : {1, 2, 3, 7, 8, 16, 24, 31, 40, 48, 60, 64, 96, 100, 128, 129, 192, 250, 256, 320, 384, 510, 512, 640, 768, 1000, 1024, 1280, 1536, 2048, 2050, 3072, 4096, 6000, 8192, 12288, 20000})
            for (int64_t rows : {1, 13, 300}) check(c, "layer_norm rows" + std::to_string(rows) + " row" + std::to_string(row) + s, LayerNormCase{t, rows, row, row % 3 == 0 || row == 512, {}});
        for (int shift : {1, 2, 4})
            for (int64_t row : {96, 100, 768, 9000}) check(c, "layer_norm misaligned " + std::to_string(shift) + " row" + std::to_string(row) + s, LayerNormCase{t, 77, row, true, {}, shift});
        // All but the class token, all but the last, a middle, one token, all of them; every number of packs a row
        for (bool residual : {false, true}) {
            for (auto [tokens, begin, covered] : {std::tuple{197, 1, 196}, {5, 0, 4}, {9, 3, 4}, {7, 0, 1}, {7, 6, 1}, {6, 0, 6}, {1, 0, 1}}) check_part(c, t, 3, tokens, begin, covered, 384, residual);
            for (int64_t row : {1, 2, 5, 6, 8, 16, 20, 24, 40, 64, 96, 100, 192, 192 + 4, 256, 500, 512, 768, 1000, 1280, 1536, 2000, 3000, 4096, 8192, 9000}) check_part(c, t, 2, 11, 1, 10, row, residual);
            for (int shift : {1, 2, 4}) check_part(c, t, 4, 13, 2, 5, 96, residual, shift), check_part(c, t, 2, 5, 1, 4, 9000, residual, shift);
            check_part(c, t, 1, 197, 1, 196, 384, residual), check_part(c, t, 0, 197, 1, 196, 384, residual);
            check_part(c, t, 5, 50, 1, 49, 96, residual, 0, 20.f);
        }
        check(c, "layer_norm no rows" + s, LayerNormCase{t, 0, 96, true, {}});
        check(c, "layer_norm offset" + s, LayerNormCase{t, 64, 96, false, {}, 0, 20.f});
        int k = 0;
        for (WindowGrid g : {grid(56, 56, 7, 7, 0, 0), grid(56, 56, 7, 7, 3, 3), grid(14, 28, 7, 7, 3, 2), grid(13, 17, 4, 5, 2, 3), grid(13, 17, 4, 5, 2, 3, 1), grid(5, 3, 8, 8, 0, 0), grid(5, 3, 8, 8, 3, 2),
                             grid(5, 3, 8, 8, 3, 2, 1), grid(64, 64, 32, 32, 16, 16), grid(12, 30, 12, 2, 6, 1), grid(8, 8, 1, 1, 0, 0)}) {
            const std::string w = " grid" + std::to_string(k++) + s;
            for (int64_t channels : {96, 30, 5})
                for (int64_t images : {1, 3}) {
                    const std::string z = " c" + std::to_string(channels) + " b" + std::to_string(images) + w;
                    check(c, "layer_norm window" + z, LayerNormCase{t, images, channels, images == 3, g});
                    check(c, "layer_norm reverse" + z, LayerNormCase{t, images, channels, true, g, images == 3 ? 1 : 0, 0, true});
                    check(c, "window partition" + z, WindowCase{t, images, channels, false, false, g});
                    check(c, "window reverse" + z, WindowCase{t, images, channels, true, false, g});
                    check(c, "window reverse add" + z, WindowCase{t, images, channels, true, true, g, images == 3 ? 1 : 0});
                }
        }
        for (int64_t channels : {96, 192, 64, 10, 3})
            for (auto [h, w] : {std::pair{56, 56}, {7, 7}, {1, 1}, {5, 8}, {2, 9}})
                check(c, "patch_merge c" + std::to_string(channels) + " " + std::to_string(h) + "x" + std::to_string(w) + s, MergeCase{t, 2, channels, h, w, {0, 2, 1, 3}, h == 5 ? 1 : 0, w == 7 || w == 8});
        check(c, "patch_merge order" + s, MergeCase{t, 3, 32, 6, 6, {0, 1, 2, 3}});
        check(c, "patch_merge wide" + s, MergeCase{t, 1, 2048, 4, 4, {0, 2, 1, 3}});
        // The merges of Swin-T, then of Swin-B and L, whose rows do not fit the one kernel; odd grids, sizes that fill no tile, and those that no tensor core takes
        for (auto [channels, side] : {std::pair{96, 56}, {192, 28}, {384, 14}})
            for (int64_t images : {1, 4}) check(c, MergeBlockCase{t, images, channels, 2 * channels, side, side, images == 4, 0, 0, images == 1});
        for (int channels : {128, 256, 512, 768}) check(c, MergeBlockCase{t, 1, channels, 2 * channels, 14, 14, channels == 512});
        for (auto [h, w] : {std::pair{1, 1}, {1, 6}, {7, 2}, {5, 8}, {13, 9}}) check(c, MergeBlockCase{t, 3, 56, 104, h, w, w != 8, 0, 0, true, {1, 3, 0, 2}});
        for (int columns : {8, 40, 64, 72, 200, 1032}) check(c, MergeBlockCase{t, 2, 24, columns, 9, 10, columns == 40});
        for (auto [channels, columns] : {std::pair{6, 16}, {8, 12}, {5, 7}, {1, 1}, {100, 200}}) check(c, MergeBlockCase{t, 3, channels, columns, 7, 6, channels != 5});
        for (int shift : {1, 2, 4}) check(c, MergeBlockCase{t, 2, 32, 64, 5, 4, shift == 2, shift});
        check(c, MergeBlockCase{t, 0, 96, 192, 56, 56}), check(c, MergeBlockCase{t, 700, 192, 64, 14, 14, true});
        for (bool residual : {false, true}) check(c, MergeBlockCase{t, 2, 48, 96, 8, 7, residual, 0, 20.f, true});
        for (int64_t channels : {96, 30, 5}) check(c, "patch_merge c" + std::to_string(channels) + " 14x13" + s, MergeCase{t, 3, channels, 14, 13, {0, 2, 1, 3}, channels == 30 ? 1 : 0, true});

        // Swin, PyramidTNT; then clusters of every size and blocks of every kind, rows of every number of accesses, and those that have none
        for (int kernel : {3, 5, 7}) {
            for (int64_t images : {1, 2, 32})
                for (auto [side, channels] : {std::pair{56, 64}, {28, 128}, {14, 320}, {7, 512}}) check(c, DepthwiseCase{t, images, side, side, channels, kernel});
            // Maps smaller than the kernel, rows that fill no strip, and channels that fill no vector.
            for (int height : {1, 2, 3, 6}) for (int width = 1; width <= 9; ++width) check(c, DepthwiseCase{t, 2, height, width, 24, kernel, width % 2 == 0, height % 2 == 0});
            for (int width : {13, 14, 15, 16, 17}) check(c, DepthwiseCase{t, 40, 15, width, 512, kernel, width % 2 == 0, width % 3 == 0});
            for (int channels : {1, 2, 3, 4, 7, 8, 12, 20, 33, 100, 1000}) check(c, DepthwiseCase{t, 2, 5, 6, channels, kernel, channels % 2 == 0, channels % 3 == 0});
            for (int shift : {1, 2, 4}) check(c, DepthwiseCase{t, 2, 14, 14, 64, kernel, true, true, shift});
            check(c, DepthwiseCase{t, 0, 14, 14, 64, kernel}), check(c, DepthwiseCase{t, 300, 7, 7, 512, kernel, false, false});
        }
        // UniFormer's two stages, and in several pieces of whole images, the last with fewer
        for (int64_t images : {1, 4})
            for (auto [side, channels] : {std::pair{56, 64}, {28, 128}}) check(c, ConvBlockCase{t, images, side, side, channels, channels, 5, 0, images == 1});
        check(c, ConvBlockCase{t, 85, 56, 56, 64, 64}), check(c, ConvBlockCase{t, 3, 160, 160, 24, 200, 3}), check(c, ConvBlockCase{t, 2, 360, 300, 8, 160, 7});
        // Every kernel; maps smaller than it; rows of no whole tiles; steps of 16 contracted elements that the warps do not share evenly; columns of no whole tiles
        for (int kernel : {3, 5, 7}) {
            for (auto [h, w] : {std::pair{1, 1}, {1, 9}, {2, 3}, {5, 8}, {7, 7}, {13, 15}}) check(c, ConvBlockCase{t, 2, h, w, 40, 72, kernel, 0, h == 5, w == 7 ? 20.f : 0.f});
            for (auto [channels, hidden] : {std::pair{8, 8}, {16, 8}, {8, 200}, {56, 104}, {104, 264}, {136, 96}, {320, 320}, {776, 88}, {88, 1032}}) check(c, ConvBlockCase{t, 1, 9, 8, channels, hidden, kernel, 0, channels == 56});
            // No multiples of eight, no alignment
            for (auto [channels, hidden] : {std::pair{5, 7}, {1, 1}, {20, 64}, {64, 20}, {100, 33}}) check(c, ConvBlockCase{t, 2, 6, 5, channels, hidden, kernel});
            for (int shift : {1, 2, 4}) check(c, ConvBlockCase{t, 2, 14, 14, 64, 64, kernel, shift});
        }
        check(c, ConvBlockCase{t, 1, 3, 3, 2048, 2048}), check(c, ConvBlockCase{t, 0, 56, 56, 64, 64});
        // UniFormer's two stages; sizes with a kernel of their own: maps smaller than the kernel and than a tile, tiles that do not divide them, MLPs of a part of a group of columns, of whole ones and a part, and
        // of more squares of weights than the ring holds
        int major = 0;
        CUDA_OK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
        const bool own = t == DType::kHalf && major == 9;
        for (int64_t images : {1, 4, 9})
            for (auto [side, channels] : {std::pair{56, 64}, {28, 128}}) check(c, ConvLayerCase{t, images, side, side, channels, channels, 4 * channels, 5, images == 4, 0, 0, own});
        for (int channels : {64, 128})
            for (int kernel : {3, 5}) {
                for (auto [h, w] : {std::pair{1, 1}, {1, 9}, {2, 3}, {5, 8}, {8, 4}, {13, 15}, {31, 18}}) check(c, ConvLayerCase{t, 2, h, w, channels, channels, 4 * channels, kernel, h == 2, 0, h == 5 ? 20.f : 0.f, own});
                for (int hidden : {64, 128, 192, 256, 320, 576, 2048}) check(c, ConvLayerCase{t, 2, 9, 10, channels, channels, hidden, kernel, hidden == 192, 0, 0, own});
            }
        // Those without one: a kernel of 7, other channels, others between the products, columns of no whole squares, no alignment
        for (auto [channels, columns, hidden, kernel] : {std::tuple{64, 64, 256, 7}, {96, 96, 384, 5}, {64, 128, 256, 5}, {128, 64, 512, 3}, {64, 64, 200, 5}, {64, 64, 32, 5}, {40, 72, 168, 3}, {20, 33, 50, 5}, {5, 7, 9, 7}, {320, 320, 1280, 5}})
            check(c, ConvLayerCase{t, 2, 9, 7, channels, columns, hidden, kernel, kernel == 7});
        for (int shift : {1, 2, 4}) check(c, ConvLayerCase{t, 2, 14, 14, 64, 64, 256, 5, false, shift});
        check(c, ConvLayerCase{t, 0, 56, 56, 64, 64, 256});
        // PyramidTNT-S between its stages, patches and words; several images, and several pieces of whole ones, of maps side by side too
        for (int64_t images : {1, 3}) {
            for (auto [side, channels, columns] : {std::array{32, 128, 256}, {16, 256, 512}, {8, 512, 512}}) check(c, PatchConvCase{t, images, side, side, channels, columns, true, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}, 1, 0, 0, images == 1});
            for (auto [across, channels, columns] : {std::array{16, 8, 16}, {8, 16, 32}, {4, 32, 32}}) check(c, PatchConvCase{t, images * across * across, 8, 8, channels, columns, true, {3, 3}, {2, 2}, {1, 1, 1, 1}, {4, 4}, across, 0, 0, images == 1});
        }
        check(c, PatchConvCase{t, 61, 32, 32, 128, 8}), check(c, PatchConvCase{t, 4500, 8, 8, 32, 8, true, {3, 3}, {2, 2}, {1, 1, 1, 1}, {4, 2}, 20}), check(c, PatchConvCase{t, 130, 16, 16, 128, 8, false, {3, 3}, {2, 2}, {1, 1, 1, 1}, {2, 8}, 5});
        // Kernels and steps of all sorts, sides that they do not divide, maps smaller than the kernel; rows of all lengths
        for (bool norm : {false, true}) {
            for (auto [h, w] : {std::pair{1, 1}, {2, 9}, {3, 5}, {7, 8}, {13, 11}}) {
                check(c, PatchConvCase{t, 2, h, w, 40, 72, norm, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}, 1, 0, h == 3 ? 20.f : 0.f, h == 7});
                check(c, PatchConvCase{t, 1, h, w, 16, 24, norm, {2, 3}, {1, 2}, {1, 2, 0, 1}, {1, 1}, 1}), check(c, PatchConvCase{t, 3, h, w, 24, 40, norm, {5, 2}, {3, 1}, {4, 0, 2, 1}, {h, w}, 3});
                check(c, PatchConvCase{t, 2, h, w, 8, 8, norm, {1, 1}, {2, 3}, {0, 0, 0, 0}, {1, w}, 2});
            }
            for (int channels : {8, 16, 24, 48, 64, 96, 120, 136, 192, 384, 520, 776, 1288, 1544}) check(c, PatchConvCase{t, 1, 6, 5, channels, 32, norm, {3, 3}, {2, 2}, {0, 1, 1, 0}, {1, 1}, 1});
            for (auto [kh, kw] : {std::pair{2, 2}, {5, 5}, {3, 1}, {1, 4}, {7, 7}}) check(c, PatchConvCase{t, 2, 12, 10, 64, 104, norm, {kh, kw}, {2, 1}, {kh / 2, 0, kh - 1, kw / 2}, {4, 5}, 2});
            // No multiples of eight, no alignment
            for (auto [channels, columns] : {std::pair{5, 7}, {1, 1}, {20, 64}, {64, 20}, {100, 33}}) check(c, PatchConvCase{t, 2, 6, 4, channels, columns, norm, {3, 2}, {2, 1}, {1, 1, 1, 0}, {3, 2}, 2});
            for (int shift : {1, 2, 4}) check(c, PatchConvCase{t, 2, 8, 8, 64, 64, norm, {3, 3}, {2, 2}, {1, 1, 1, 1}, {1, 1}, 1, shift});
        }
        check(c, PatchConvCase{t, 1, 3, 3, 2048, 512, true, {2, 4}, {2, 2}, {1, 1, 1, 1}}), check(c, PatchConvCase{t, 1, 1, 2, 16384, 16, true, {1, 1}, {1, 1}, {0, 0, 0, 0}}), check(c, PatchConvCase{t, 0, 32, 32, 128, 256});
        for (int64_t images : {1, 2, 5, 17, 32, 40, 70, 140, 300}) check(c, PoolCase{t, images, 49, 768, images != 2});
        for (auto [tokens, row] : {std::pair{64, 512}, {49, 1024}, {144, 1536}, {196, 768}, {3136, 96}}) check(c, PoolCase{t, 1, tokens, row, true}), check(c, PoolCase{t, 3, tokens, row});
        for (int64_t row : {1, 2, 3, 4, 7, 8, 12, 16, 24, 40, 96, 100, 130, 248, 256, 264, 384, 512, 520, 640, 1000, 1024, 1032, 1288, 1360, 1368, 1536, 1544, 2040, 2048, 2056, 3000, 4096, 5001})
            check(c, PoolCase{t, 2, 50, row, row % 16 == 0});
        for (int64_t tokens : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 128, 129, 300}) check(c, PoolCase{t, 1, tokens, 192, tokens % 2 == 0}), check(c, PoolCase{t, 2, tokens, 30, tokens % 2 == 1});
        for (int shift : {1, 2, 4}) check(c, PoolCase{t, 2, 49, 96, shift == 2, shift});
        check(c, PoolCase{t, 0, 49, 768});
        for (float offset : {20.f, 300.f}) check(c, PoolCase{t, 2, 49, 768, false, 0, t == DType::kHalf ? offset : offset / 20}), check(c, PoolCase{t, 1, 50, 99, true, 0, t == DType::kHalf ? offset : offset / 20});

        // Tails: Swin-T, Swin-B, PyramidTNT-S and UniFormer-S, ViT-S and ViT-B, TNT-S; then rows of every number of accesses and of no whole one, numbers of tokens
        // around those of warps and clusters, numbers of classes around those of warps, and many of both.
        const DType half = DType::kHalf, single = DType::kFloat;
        for (int64_t images : {1, 2, 8, 9}) {
            for (auto [tokens, row, token, norm] : {std::tuple<int64_t, int, int, bool>{49, 768, -1, true}, {49, 1024, -1, true}, {64, 512, -1, true}, {49, 512, -1, false}, {197, 384, 0, true}, {197, 768, 0, true}}) {
                check(c, ClassifierCase{t, images, tokens, row, 1000, token, norm});
                if (t == half) check(c, ClassifierCase{t, images, tokens, row, 1000, token, norm, true, half, half});
            }
            check(c, ClassifierCase{t, images, 196, 640, 21841});
        }
        for (int row : {1, 2, 3, 4, 7, 8, 12, 30, 48, 64, 96, 100, 128, 192, 200, 256, 264, 512, 520, 768, 776, 1000, 1024, 1032, 1536, 1544, 2048, 2056, 3000, 8192})
            for (int token : {-1, 3}) check(c, ClassifierCase{t, 2, 11, row, 33, token, row % 3 != 0, row % 16 == 0});
        for (int64_t tokens : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 49, 63, 64, 65, 127, 128, 129, 196, 200}) check(c, ClassifierCase{t, 1, tokens, 192, 100, -1, tokens % 5 != 0, tokens % 2 == 0}), check(c, ClassifierCase{t, 3, tokens, 30, 10, static_cast<int>(tokens) - 1});
        for (int classes : {1, 2, 7, 8, 9, 10, 63, 65, 100, 127, 255, 257, 999, 1000, 1001, 1055, 1057, 2113})
            for (int64_t images : {1, 3}) check(c, ClassifierCase{t, images, 49, 96, classes, classes % 2 ? -1 : 7, true, false, t == half && classes % 3 ? half : single, t == half && classes % 5 ? half : single});
        for (int shift : {1, 2, 4, 8}) check(c, ClassifierCase{t, 2, 49, 96, 100, shift == 2 ? 0 : -1, true, shift == 4, single, single, shift});
        // A mean of 300 is off by more than 1e-5 in float32, so that what is float32 has one of 15.
        for (float offset : {20.f, 300.f})
            for (const DType out : {t, single}) {
                const float mean = out == half ? offset : offset / 20;
                check(c, ClassifierCase{t, 2, 49, 768, 1000, -1, true, false, out, out, 0, mean}), check(c, ClassifierCase{t, 1, 50, 99, 100, 7, true, true, out, out, 0, mean});
            }
        check(c, ClassifierCase{t, 0, 49, 768, 1000}), check(c, ClassifierCase{t, 1, 49, 768, 0}), check(c, ClassifierCase{t, 300, 49, 96, 100});

        // Swin-T, TNT-S; then rows of every remainder, blocks that end inside an access, and the sizes around the change of kernel
        for (int64_t images : {1, 8})
            for (auto [rows, row] : {std::pair<int64_t, int64_t>{3136, 384}, {784, 768}, {196, 1536}, {49, 3072}, {3136, 96}}) check(c, GeluCase{t, images * rows, row}), check(c, GeluCase{t, images * rows, row, images == 1, true});
        for (int64_t row : {1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 30, 96, 100, 1000, 1001, 4096, 50000})
            for (bool bias : {true, false}) check(c, GeluCase{t, 33, row, bias, row % 2 == 0}), check(c, GeluCase{t, 1, row, bias});
        for (int64_t rows : {2111, 2112, 2113, 4224, 4225, 8449}) check(c, GeluCase{t, rows, 1024, rows != 2113});
        for (int shift : {1, 2, 4}) check(c, GeluCase{t, 50, 96, shift != 2, false, shift}), check(c, GeluCase{t, 9000, 96, shift != 2, false, shift});
        for (float scale : {0.01f, 10.f, 1000.f}) check(c, GeluCase{t, 100, 384, true, false, 0, scale}), check(c, GeluCase{t, 100, 384, true, true, 0, scale});
        for (int64_t row : {768, 30}) check(c, GeluCase{t, 100, row, true, false, 0, 1.5f, true});
        check(c, GeluCase{t, 0, 768}), check(c, GeluCase{t, 8, 0});
        for (bool tanh : {false, true}) t == DType::kHalf ? check_gelu_values<__half>(c, t, tanh) : check_gelu_values<float>(c, t, tanh);

        const WindowGrid swin = grid(56, 56, 7, 7, 3, 3), last = grid(7, 7, 7, 7, 0, 0);
        using B = AttentionBias;
        using M = AttentionMask;
        using L = Layout;
        // Swin: all stages, dense bias, table, dense mask, shift mask
        check(c, AttentionCase{t, 128, 3, 49, 49, 32, 32, L::kQkv, B::kDense, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 128, 3, 49, 49, 32, 32, L::kQkv, B::kDense, 1, true, M::kShift, 1, swin});
        check(c, AttentionCase{t, 128, 3, 49, 49, 32, 32, L::kQkv, B::kTable, 1, true, M::kShift, 1, swin});
        check(c, AttentionCase{t, 64, 3, 49, 49, 32, 32, L::kQkv, B::kTable, 1, true, M::kDense, 64, swin});
        check(c, AttentionCase{t, 192, 3, 49, 49, 32, 32, L::kQkv, B::kDense, 64, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 3, 24, 49, 49, 32, 32, L::kQkv, B::kTable, 1, true, M::kNone, 1, last});
        check(c, AttentionCase{t, 512, 3, 49, 49, 32, 32, L::kQkv, B::kDense, 4, false, M::kDense, 16, {}});
        check(c, AttentionCase{t, 520, 12, 49, 49, 32, 32, L::kQkv, B::kTable, 1, true, M::kShift, 1, grid(14, 14, 7, 7, 3, 3)});
        check(c, AttentionCase{t, 2048, 2, 49, 49, 32, 32, L::kQkv, B::kDense, 1, true, M::kShift, 1, swin});
        check(c, AttentionCase{t, 9, 4, 64, 64, 32, 32, L::kQkv, B::kTable, 1, true, M::kShift, 1, grid(22, 20, 8, 8, 4, 4)});
        check(c, AttentionCase{t, 8, 4, 144, 144, 32, 32, L::kQkv, B::kTable, 1, true, M::kShift, 1, grid(24, 48, 12, 12, 6, 6)});
        check(c, AttentionCase{t, 3, 2, 4, 4, 32, 32, L::kQkv, B::kTable, 1, true, M::kShift, 1, grid(4, 6, 2, 2, 1, 1)});
        check(c, AttentionCase{t, 2, 2, 1024, 1024, 32, 32, L::kQkv, B::kTable, 1, true, M::kShift, 1, grid(64, 32, 32, 32, 16, 0)});
        check(c, AttentionCase{t, 6, 2, 15, 15, 16, 16, L::kQkv, B::kTable, 1, true, M::kShift, 1, grid(9, 10, 3, 5, 1, 2)});
        // TNT, PyramidTNT: small heads
        check(c, AttentionCase{t, 196, 4, 16, 16, 6, 6, L::kQkV, B::kNone, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 3000, 4, 16, 16, 6, 6, L::kQkV, B::kNone, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 256, 2, 16, 16, 5, 5, L::kQKv, B::kNone, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 256, 4, 16, 16, 4, 4, L::kQKv, B::kDense, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 5, 3, 17, 9, 5, 7, L::kQKV, B::kDense, 5, false, M::kDense, 5, {}});
        // ViT, TNT outer, UniFormer, spatial reduction
        check(c, AttentionCase{t, 2, 6, 197, 197, 64, 64, L::kQkv, B::kNone, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 2, 6, 197, 197, 64, 64, L::kQkV, B::kNone, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 64, 6, 197, 197, 64, 64, L::kQkv, B::kNone, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 1, 2, 1024, 64, 40, 40, L::kQKv, B::kDense, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 1, 8, 256, 256, 40, 40, L::kQKv, B::kDense, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 1, 2, 7, 1, 32, 32, L::kQKV, B::kNone, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 1, 1, 1, 300, 128, 128, L::kQKV, B::kDense, 1, true, M::kDense, 1, {}});
        check(c, AttentionCase{t, 3, 2, 100, 130, 80, 72, L::kBhnd, B::kDense, 3, true, M::kDense, 1, {}});
        check(c, AttentionCase{t, 3, 2, 33, 70, 96, 33, L::kBhnd, B::kNone, 1, true, M::kDense, 3, {}});
        check(c, AttentionCase{t, 2, 3, 65, 65, 32, 64, L::kBhnd, B::kNone, 1, true, M::kNone, 1, {}});
        check(c, AttentionCase{t, 2, 2, 49, 49, 30, 30, L::kQkv, B::kDense, 1, true, M::kNone, 1, {}});
        for (int shift : {1, 2, 4})
            for (int d : {4, 6, 8, 16, 32, 64, 128}) check(c, AttentionCase{t, 6, 3, 49, 49, d, d, L::kQkv, B::kDense, 2, true, M::kNone, 1, {}, shift});
        AttentionCase infinite{t, 4, 2, 49, 49, 32, 32, L::kQkv, B::kDense, 1, true, M::kDense, 2, {}};
        infinite.infinite_mask = true;
        check(c, infinite);
        infinite.n = infinite.m = 150, infinite.d = infinite.dv = 64;
        check(c, infinite);
        AttentionCase harsh{t, 128, 3, 49, 49, 32, 32, L::kQkv, B::kTable, 1, true, M::kShift, 1, swin};
        harsh.mask_value = -1e30f;
        check(c, harsh);
        check(c, AttentionCase{t, 0, 3, 49, 49, 32, 32, L::kQkv, B::kDense, 1, true, M::kNone, 1, {}});

        // Swin's stages, TNT's words and patches, ViT-S
        for (auto [rows, channels] : {std::pair{3136, 96}, {784, 192}, {196, 384}, {49, 768}, {197, 384}}) check(c, MlpCase{t, rows, channels, 4 * channels, rows == 197, false, 0, true});
        check(c, MlpCase{t, 3136, 24, 96, false, false, 0, true});
        check(c, MlpCase{t, 1000, 320, 1280, true, true, 0, true});
        check(c, MlpCase{t, 100, 40, 72, false, true, 0, true});
        check(c, MlpCase{t, 77, 8, 8, true, false, 0, true});
        // Steps of 16 contracted elements that the warps do not share evenly, columns of no whole tiles, means far from zero
        for (auto [channels, hidden] : {std::pair{16, 8}, {24, 40}, {56, 104}, {104, 264}, {136, 96}, {200, 360}, {264, 72}, {392, 200}, {520, 136}, {776, 88}})
            check(c, MlpCase{t, 70, channels, hidden, channels % 16 == 0, hidden % 16 == 0, 0, true, channels % 3 ? 20.f : 0.f});
        if (t == DType::kHalf) check(c, MlpCase{t, 4 * 3136, 96, 384}), check(c, MlpCase{t, 4 * 784, 192, 768});
        for (int64_t rows : {1, 15, 16, 17, 33, 64, 65, 129, 300}) check(c, MlpCase{t, rows, 96, 384, rows % 2 == 0});
        // Clusters: rows that fill no tile, few tiles of the output and blocks without one, hidden columns that fill no slice, means far from zero.
        for (int64_t rows : {1, 31, 33, 65}) check(c, MlpCase{t, rows, 384, 1536, rows % 4 == 1, rows == 31, 0, true, rows == 33 ? 20.f : 0.f});
        for (auto [channels, hidden] : {std::pair{24, 1000}, {200, 776}, {256, 1024}, {320, 1144}, {512, 520}}) check(c, MlpCase{t, 50, channels, hidden, channels == 200, channels == 320, 0, true, channels == 256 ? 20.f : 0.f});
        check(c, MlpCase{t, 5, 2048, 8192, true});
        // Those that have sizes of their own (mlp_rows.h), and near misses; rows that fill no tile, more clusters than run at once
        for (int64_t rows : {1, 16, 31, 32, 33, 64, 256, 1000, 1024, 3000})
            for (int channels : {128, 256, 512}) check(c, MlpCase{t, rows, channels, 4 * channels, rows % 3 == 1, rows % 5 == 0, 0, rows < 100, rows == 33 ? 20.f : 0.f});
        check(c, MlpCase{t, 40, 128, 1024, true, false, 0, true}), check(c, MlpCase{t, 40, 256, 768, false, true, 0, true}), check(c, MlpCase{t, 40, 64, 256, false, false, 0, true});
        // Many rows: whole tiles and not, contracted elements and columns that fill no stage and no tile, and more rows than one piece has
        for (auto [rows, channels, hidden] : {std::tuple{1536, 128, 384}, {1571, 96, 384}, {1999, 200, 328}, {1601, 40, 72}, {2100, 64, 8}, {3000, 8, 200}, {6304, 384, 1536}})
            check(c, MlpCase{t, rows, channels, hidden, rows % 2 == 1, rows % 3 == 0, 0, rows < 3000, rows == 1571 ? 20.f : 0.f});
        if (t == DType::kHalf) check(c, MlpCase{t, 25088, 192, 768, true});
        check(c, MlpCase{t, 7, 2048, 40}), check(c, MlpCase{t, 7, 16, 16384}), check(c, MlpCase{t, 49, 1536, 6144});
        // No multiples of eight, no alignment
        check(c, MlpCase{t, 50, 20, 80}), check(c, MlpCase{t, 50, 5, 7, true}), check(c, MlpCase{t, 9, 1, 1}), check(c, MlpCase{t, 20, 1412, 30});
        check(c, MlpCase{t, 50, 96, 384, true, false, 1}), check(c, MlpCase{t, 50, 96, 384, true, true, 4});
        check(c, MlpCase{t, 0, 96, 384});
        // Without a norm: UniFormer's stages of convolutions, many rows, slices of the first product that are not even, and no alignment
        auto alone = [&](int64_t rows, int channels, int hidden, bool tanh = false, int shift = 0, bool every = true, float offset = 0) { check(c, MlpCase{t, rows, channels, hidden, false, tanh, shift, every, offset, false}); };
        alone(3136, 64, 256), alone(784, 128, 512, true), alone(49, 768, 3072), alone(0, 64, 256), alone(100, 192, 768, false, 0, false, 20.f);
        for (auto [channels, hidden] : {std::pair{8, 8}, {24, 40}, {136, 96}, {200, 360}, {776, 88}, {2048, 40}, {16, 16384}}) alone(70, channels, hidden, channels % 16 == 0);
        for (int64_t rows : {1, 17, 33, 65, 129}) alone(rows, 96, 384);
        for (auto [rows, channels, hidden] : {std::tuple{1571, 96, 384}, {1999, 200, 328}, {3000, 8, 200}}) alone(rows, channels, hidden, false, 0, rows < 3000);
        if (t == DType::kHalf) alone(32 * 3136, 64, 256, false, 0, false), alone(25088, 128, 512, true, 0, false);
        // The wide kernel: tiles of rows that are not full, channels and hidden columns that fill no tile and no chunk, one chunk, weights that stay and rings, and several rounds of tiles
        for (auto [rows, channels, hidden] : {std::tuple{1500, 96, 384}, {1537, 64, 256}, {1563, 72, 200}, {1600, 16, 64}, {1729, 136, 96}, {1990, 184, 1024}, {2111, 128, 512}, {2500, 104, 1000}, {2600, 32, 8}, {2999, 192, 768}, {3000, 88, 1032}})
            if (t == DType::kHalf) {
                check(c, MlpCase{t, rows, channels, hidden, rows % 2 == 1, rows % 3 == 0, 0, false, rows % 4 == 1 ? 20.f : 0.f});
                alone(rows, channels, hidden, rows % 3 == 1, 0, false);
            }
        for (auto [rows, channels, hidden] : {std::tuple{100352, 96, 384}, {60001, 96, 1000}, {70000, 56, 224}, {40040, 128, 512}, {30000, 192, 768}})
            if (t == DType::kHalf) check(c, MlpCase{t, rows, channels, hidden, rows % 5 == 1});
        alone(50, 20, 80), alone(50, 5, 7, true), alone(20, 1412, 30), alone(50, 96, 384, false, 1), alone(50, 96, 384, true, 4);
        check(c, MlpCase{t, 100, 192, 768, true, false, 0, false, 20.f});

        // The words of TNT-S and TNT-B, of PyramidTNT's stages, and what the one kernel takes at most
        check(c, InnerCase{t, 196, 16, 4, 6, 96}), check(c, InnerCase{t, 196, 16, 4, 10, 160, false, true}), check(c, InnerCase{t, 196, 16, 4, 16, 256});
        for (int heads : {2, 4, 8}) check(c, InnerCase{t, 1024, 16, heads, 4, 16 * heads, true});
        check(c, InnerCase{t, 6272, 16, 4, 6, 96}), check(c, InnerCase{t, 5000, 16, 8, 8, 256, true});
        for (int tokens = 1; tokens <= 16; ++tokens) check(c, InnerCase{t, tokens, tokens, 3, 8, 40, tokens % 2 == 0, tokens % 3 == 0}), check(c, InnerCase{t, 9, tokens, 2, 12, 50, tokens % 2 == 1});
        for (auto [heads, d] : {std::pair{1, 2}, {2, 1}, {2, 2}, {10, 1}, {6, 3}, {2, 5}, {2, 7}, {4, 9}, {2, 11}, {4, 13}, {4, 14}, {4, 15}, {3, 16}}) check(c, InnerCase{t, 11, 16, heads, d, 4 * heads * d});
        // Not for the one kernel: tokens, channels, heads, hidden columns, odd sizes; alignment
        check(c, InnerCase{t, 11, 17, 4, 6, 96}), check(c, InnerCase{t, 5, 64, 4, 6, 96, true}), check(c, InnerCase{t, 11, 16, 5, 16, 320}), check(c, InnerCase{t, 11, 16, 2, 32, 256});
        check(c, InnerCase{t, 11, 16, 4, 6, 300}), check(c, InnerCase{t, 11, 16, 3, 5, 60}), check(c, InnerCase{t, 11, 16, 2, 6, 17});
        for (int shift : {1, 2, 4}) check(c, InnerCase{t, 11, 16, 4, 6, 96, shift == 2, false, shift}), check(c, InnerCase{t, 11, 16, 3, 8, 96, false, false, shift});
        check(c, InnerCase{t, 0, 16, 4, 6, 96});
        // TNT-S and PyramidTNT-S, then clusters of every size, columns and rows that fill no tile, widths of no tile and of a large one
        for (int64_t images : {1, 2, 32}) check(c, BridgeCase{t, images, 197, 1, 196, 384, 384, images == 2});
        for (auto [covered, width, channels] : {std::tuple{1024, 128, 128}, {256, 256, 256}, {64, 512, 512}}) check(c, BridgeCase{t, 1, covered, 0, covered, width, channels, true});
        for (int channels = 8; channels <= 1024; channels += channels < 128 ? 8 : 56) check(c, BridgeCase{t, 2, 40, 3, 33, 96, channels, channels % 16 == 0});
        for (int width : {8, 16, 24, 40, 64, 200, 256, 264, 512, 776, 1024, 1544, 2048, 4096}) check(c, BridgeCase{t, 1, 21, 1, 20, width, 192, width % 16 == 0});
        for (auto [tokens, begin, covered] : {std::tuple{1, 0, 1}, {5, 4, 1}, {5, 0, 1}, {9, 3, 2}, {17, 0, 17}, {40, 0, 33}, {100, 1, 99}}) check(c, BridgeCase{t, 7, tokens, begin, covered, 64, 320});
        for (auto [width, channels] : {std::pair{64, 12}, {60, 16}, {7, 5}, {640, 640}, {96, 2048}}) check(c, BridgeCase{t, 3, 11, 1, 10, width, channels, true});
        for (int shift : {1, 2, 4}) check(c, BridgeCase{t, 2, 11, 1, 10, 96, 96, shift == 2, shift});
        check(c, BridgeCase{t, 0, 197, 1, 196, 384, 384});
        // TNT-S with a bridge before the first layer and behind each; TNT-B, PyramidTNT's stages; without bridges, with several behind one layer
        for (int64_t images : {1, 2, 32}) check(c, WordsCase{t, images, 197, 1, 196, 1, 16, 4, 6, 96, 12, 384, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, images == 2});
        check(c, WordsCase{t, 1, 197, 1, 196, 1, 16, 4, 10, 160, 12, 640, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}});
        // As a chain of blocks over the tokens takes them; all; bridges one by one
        check(c, WordsCase{t, 1, 197, 1, 196, 1, 16, 4, 6, 96, 12, 384, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, false, false, false, 0, 0.f, 11});
        check(c, WordsCase{t, 2, 50, 1, 49, 1, 16, 4, 6, 96, 4, 192, {0, 2, 2, 4}, true, false, false, 0, 0.f, 4}), check(c, WordsCase{t, 2, 20, 1, 19, 1, 16, 3, 5, 60, 3, 65, {0, 2, 3}, true, false, false, 0, 0.f, 2});
        for (auto [covered, words, heads] : {std::tuple{256, 16, 2}, {64, 16, 4}, {16, 16, 8}}) check(c, WordsCase{t, 1, covered, 0, covered, 1, words, heads, 32 / heads, 128, 6, 512, {1, 2, 4, 6}, heads == 4, true});
        check(c, WordsCase{t, 1, 1024, 0, 1024, 1, 16, 2, 4, 32, 2, 128, {1, 2}, false, true}), check(c, WordsCase{t, 3, 100, 0, 100, 1, 16, 4, 6, 96, 5, 384, {}, true});
        check(c, WordsCase{t, 2, 50, 1, 49, 1, 16, 4, 6, 96, 4, 192, {0, 0, 2, 2, 2, 4}, false, false, true}), check(c, WordsCase{t, 2, 50, 1, 49, 1, 16, 4, 6, 96, 4, 192, {0, 0}}), check(c, WordsCase{t, 2, 50, 1, 49, 1, 16, 4, 6, 96, 4, 192, {3}, true});
        for (int d = 4; d <= 16; ++d) check(c, WordsCase{t, 2, 30, d % 2, 27, 1, 16, 2, d, 8 * d, 3, 24 * d, {1, 2, 3}, d % 3 == 0, d % 4 == 1});
        for (int words = 1; words <= 16; ++words) check(c, WordsCase{t, words, 12, 1, 11, 1 + words % 2, words, 2, 8, 40, 1 + words % 5, 8 * words, {1}, words % 2 == 1, words % 3 == 0, words % 4 == 0});
        for (int channels = 8; channels <= 1024; channels += channels < 128 ? 24 : 56) check(c, WordsCase{t, 2, 40, 3, 33, 1, 8, 2, 6, 48, 2, channels, {0, 2}});
        // Weights that leave room for one layer or none, rows of no single kernel, odd sizes, alignment; the largest numbers of layers and bridges
        check(c, WordsCase{t, 2, 20, 1, 19, 1, 16, 4, 16, 256, 3, 384, {1, 2, 3}}), check(c, WordsCase{t, 2, 20, 1, 19, 1, 16, 16, 3, 192, 3, 96, {1, 3}, true}), check(c, WordsCase{t, 2, 20, 1, 19, 1, 17, 4, 6, 96, 3, 384, {1, 2, 3}});
        check(c, WordsCase{t, 2, 20, 1, 19, 3, 16, 4, 6, 96, 3, 384, {1, 3}, true}), check(c, WordsCase{t, 2, 20, 1, 19, 1, 16, 2, 32, 256, 2, 100, {2}, true}), check(c, WordsCase{t, 2, 20, 1, 19, 1, 16, 3, 5, 60, 3, 65, {0, 2}, true});
        check(c, WordsCase{t, 2, 20, 1, 19, 1, 16, 2, 6, 17, 4, 40, {2, 4}}), check(c, WordsCase{t, 1, 20, 1, 19, 1, 16, 4, 6, 96, 2, 1032, {1, 2}});
        // All ways of the bridges
        for (int way = 1; t == DType::kHalf && way <= kWordsWays; ++way) {
            for (int64_t images : {1, 2, 8}) check(c, WordsCase{t, images, 197, 1, 196, 1, 16, 4, 6, 96, 12, 384, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, images == 1, false, false, 0, 0.f, 0, way});
            check(c, WordsCase{t, 1, 197, 1, 196, 1, 16, 4, 6, 96, 12, 384, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, false, false, false, 0, 0.f, 11, way});
            check(c, WordsCase{t, 1, 100, 2, 65, 1, 16, 4, 6, 96, 5, 384, {0, 0, 2, 2, 4}, true, false, false, 0, 0.f, 0, way}), check(c, WordsCase{t, 2, 50, 1, 49, 1, 16, 4, 6, 96, 2, 384, {0, 0}, true, false, false, 0, 20.f, 0, way});
            for (auto [covered, words, heads] : {std::tuple{256, 16, 2}, {64, 16, 4}}) check(c, WordsCase{t, 1, covered, 0, covered, 1, words, heads, 32 / heads, 128, 6, 512, {1, 2, 4, 6}, heads == 4, true, false, 0, 0.f, 0, way});
            for (int channels = 56; channels <= 1024; channels += channels < 128 ? 8 : 56) check(c, WordsCase{t, 2, 40, 3, 33, 1, 16, 4, 6, 96, 3, channels, {0, 1, 3}, false, false, false, 0, 0.f, 0, way});
            for (int shift : {1, 4}) check(c, WordsCase{t, 2, 20, 1, 19, 1, 16, 4, 6, 96, 3, 384, {0, 1, 3}, true, false, false, shift, 0.f, 0, way});
        }
        for (int shift : {1, 2, 4}) check(c, WordsCase{t, 2, 20, 1, 19, 1, 16, 4, 6, 96, 3, 192, {0, 1, 3}, shift == 2, false, false, shift}), check(c, WordsCase{t, 2, 20, 1, 19, 1, 16, 3, 8, 96, 3, 192, {0, 2}, shift == 1, false, false, shift});
        {
            WordsCase most{t, 1, 30, 0, 30, 1, 4, 2, 4, 32, kWordsMaxLayers, 64, {}, true};
            for (int j = 0; j < kWordsMaxBridges; ++j) most.after.push_back(j + 1);
            check(c, most);
        }
        check(c, WordsCase{t, 0, 197, 1, 196, 1, 16, 4, 6, 96, 12, 384, {0, 12}, true});
        // Not behind a block: what rounding such words costs a norm is more than the limit.
        check(c, WordsCase{t, 2, 50, 1, 49, 1, 16, 4, 6, 96, 2, 384, {0, 0}, true, false, false, 0, 20.f});
        check(c, BridgeCase{t, 2, 50, 1, 49, 96, 96, false, 0, 20.f}), check(c, BridgeCase{t, 2, 50, 1, 49, 384, 384, true, 0, 20.f});
        for (DType x : {t, DType::kFloat}) {
            // Swin, UniFormer and ViT; then columns that fill no tile, patches of one step and of several slices, edges that fill no patch
            for (int64_t images : {1, 2, 32}) check(c, EmbedCase{x, t, images, 3, 224, 224, 4, 4, 96});
            check(c, EmbedCase{x, t, 1, 3, 224, 224, 4, 4, 64}), check(c, EmbedCase{x, t, 1, 64, 56, 56, 2, 2, 128}), check(c, EmbedCase{x, t, 1, 128, 28, 28, 2, 2, 320}), check(c, EmbedCase{x, t, 1, 320, 14, 14, 2, 2, 512});
            check(c, EmbedCase{x, t, 1, 3, 224, 224, 16, 16, 384, true, false}), check(c, EmbedCase{x, t, 8, 3, 224, 224, 16, 16, 768, true, false}), check(c, EmbedCase{x, t, 1, 3, 224, 224, 32, 32, 768});
            for (int columns = 4; columns <= 140; columns += 4) check(c, EmbedCase{x, t, 1, 3, 20, 36, 4, 4, columns, columns % 8 == 0, columns % 12 != 0});
            for (int columns = 4; columns <= 1100; columns += columns < 136 ? 12 : 60) check(c, EmbedCase{x, t, 3, 8, 10, 14, 2, 2, columns, columns % 8 == 0, columns % 36 != 0});
            for (auto [channels, patch_h, patch_w] : {std::tuple{1, 1, 4}, {1, 4, 4}, {2, 4, 4}, {4, 4, 4}, {3, 2, 8}, {3, 1, 16}, {5, 2, 4}, {1, 3, 4}, {7, 2, 4}, {24, 8, 8}, {40, 8, 8}, {96, 8, 8}, {3, 4, 2}, {10, 5, 12}, {3, 2, 2}, {2, 3, 3}, {5, 1, 1}})
                for (int columns : {40, 96, 200}) check(c, EmbedCase{x, t, 2, channels, 3 * patch_h + patch_h / 2, 5 * patch_w, patch_h, patch_w, columns, columns == 40});
            for (int width : {16, 17, 18, 19, 20, 22}) check(c, EmbedCase{x, t, 2, 3, 19, width, 4, 4, 96}), check(c, EmbedCase{x, t, 2, 8, 19, width, 2, 2, 72}), check(c, EmbedCase{x, t, 5, 4, 8, width, 8, 8, 12});
            for (int shift : {1, 2, 4}) check(c, EmbedCase{x, t, 2, 3, 16, 16, 4, 4, 96, true, shift != 2, shift}), check(c, EmbedCase{x, t, 2, 16, 8, 8, 2, 2, 96, true, true, shift});
            check(c, EmbedCase{x, t, 0, 3, 16, 16, 4, 4, 96}), check(c, EmbedCase{x, t, 300, 16, 8, 8, 2, 2, 96}), check(c, EmbedCase{x, t, 70, 16, 14, 14, 2, 2, 320});
            check(c, EmbedCase{x, t, 2, 3, 32, 32, 4, 4, 96, true, true, 0, 20.f}), check(c, EmbedCase{x, t, 2, 16, 16, 16, 2, 2, 320, true, true, 0, 20.f});
            for (bool within : {true, false}) {
                // TNT-S and TNT-B, more patches than run at once, every kernel and stride.
                for (int64_t images : {1, 2, 3, 32})
                    for (int columns : {24, 40}) check(c, pixels(x, t, images, 3, 7, 4, 3, {14, 14}, {4, 4}, columns, within));
                for (int kernel = 1; kernel <= 8; ++kernel)
                    for (int stride = 1; stride <= 4; ++stride)
                        for (int pad : {0, kernel / 2}) check(c, pixels(x, t, 2, kernel % 3 + 1, kernel, stride, pad, {2, 3}, {4, 4}, 8 * stride, within));
                for (auto words : {std::pair{1, 1}, {1, 2}, {2, 3}, {3, 3}, {1, 7}, {4, 4}, {3, 7}, {5, 7}, {8, 8}, {16, 16}})
                    for (int stride : {1, 2, 3, 4}) check(c, pixels(x, t, 1, 3, 5, stride, 2, {3, 2}, words, 24, within));
                for (int columns = 8; columns <= 128; columns += 8) check(c, pixels(x, t, 1, 3, 3, 4, 1, {2, 2}, {4, 4}, columns, within)), check(c, pixels(x, t, 3, 1, 7, 4, 3, {2, 2}, {4, 4}, columns - 3, within));
                for (int channels : {1, 2, 4, 5, 8, 16}) check(c, pixels(x, t, 1, channels, 8, 4, 3, {2, 3}, {4, 4}, 128, within)), check(c, pixels(x, t, 2, channels, 3, 2, 1, {5, 1}, {2, 3}, 16, within));
                // No alignment, means far from zero, images that are larger and smaller than the patches, none.
                for (int shift : {1, 2, 4, 8}) {
                    auto a = pixels(x, t, 2, 3, 7, 4, 3, {3, 3}, {4, 4}, 24, within);
                    a.shift = shift, check(c, a), a.shift = 0, a.mean = 20.f, check(c, a);
                }
                for (int more : {-5, -1, 1, 2, 7}) check(c, pixels(x, t, 2, 3, 7, 4, 3, {3, 2}, {4, 4}, 24, within, more));
                check(c, pixels(x, t, 0, 3, 7, 4, 3, {14, 14}, {4, 4}, 24, within));
                check(c, PixelCase{x, t, 2, 3, 24, 40, 7, 3, 4, 2, 3, 1, 3, 5, 2, 4, 24, within}), check(c, PixelCase{x, t, 2, 2, 30, 33, 1, 8, 5, 3, 0, 7, 3, 11, 2, 1, 40, within});
            }
            if (t == DType::kFloat) break;
        }
        // PyramidTNT-S and Ti, and with words of another map; then all numbers of channels, strides, sizes that fill no tile, no words, alignment
        for (DType x : {DType::kFloat, DType::kHalf}) {
            const std::vector<int> small{16, 32, 64, 128}, halving{2, 2, 2, 1};
            for (int64_t images : {1, 2, 9}) check(c, StackCase{x, t, images, 3, 256, 256, small, halving, 0}), check(c, StackCase{x, t, images, 3, 192, 192, {10, 20, 40, 80}, halving, 0, 5});
            for (int branch : {-1, 0, 1, 2}) check(c, StackCase{x, t, 2, 3, 64, 96, small, halving, branch, 24}), check(c, StackCase{x, t, 1, 3, 64, 64, {32, 64, 64, 64}, {2, 2, 1, 1}, branch, 64, 2, 8}), check(c, StackCase{x, t, 1, 4, 40, 24, {8, 16}, {2, 2}, std::min(branch, 0), 8, 4, 4});
            for (auto [h, w] : {std::pair{1, 1}, {2, 3}, {5, 4}, {17, 9}, {33, 70}, {3, 130}}) check(c, StackCase{x, t, 3, 3, h, w, small, halving, 0, 8, 1, 1}), check(c, StackCase{x, t, 2, 1, h, w, {7, 33}, {1, 2}, 0, 3, h, 1}), check(c, StackCase{x, t, 1, 2, h, w, {16, 64, 17}, {2, 1, 1}, 1, 64, 1, 1});
            for (int first : {1, 16, 17, 32})
                for (int second : {4, 16, 20, 32, 33, 64})
                    for (int third : {8, 50, 128}) check(c, StackCase{x, t, 1, first % 4 + 1, 24, 16, {first, second, third}, {2, second % 2 + 1, third % 3 % 2 + 1}, first % 2, 12, 1, 2});
            check(c, StackCase{x, t, 1, 3, 48, 48, {8, 16, 16, 32, 64}, {2, 1, 2, 1, 1}, 2, 16, 3, 4}), check(c, StackCase{x, t, 0, 3, 64, 64, small, halving, 0}), check(c, StackCase{x, t, 1, 3, 64, 64, {64, 64, 64, 64, 64}, {2, 2, 2, 2, 1}});
            for (int shift : {1, 2, 4}) check(c, StackCase{x, t, 2, 3, 64, 32, small, halving, 0, 8, 4, 4, shift});
            if (t == DType::kFloat) break;
        }
        auto of_tokens = [&](EmbedCase e) { e.image = e.type = t, e.tokens = true, check(c, e); };
        // UniFormer; then kernels and channels of any size, grids that fill no patch, means far from zero, alignment
        for (int64_t images : {1, 2, 32}) of_tokens({t, t, images, 64, 56, 56, 2, 2, 128}), of_tokens({t, t, images, 128, 28, 28, 2, 2, 320}), of_tokens({t, t, images, 320, 14, 14, 2, 2, 512});
        for (int channels : {8, 16, 24, 40, 64, 72, 104, 128, 200, 256, 320, 512})
            for (auto [patch_h, patch_w] : {std::pair{2, 2}, {4, 4}, {3, 2}, {1, 3}, {2, 1}})
                for (int columns : {64, 100, 320}) {
                    const int64_t images = channels % 3 + 1;
                    of_tokens({t, t, images, channels, 3 * patch_h + patch_h / 2, 5 * patch_w + patch_w / 2, patch_h, patch_w, columns, columns != 64, columns != 100});
                }
        for (auto [h, w] : {std::pair{2, 2}, {3, 2}, {2, 5}, {7, 7}, {13, 17}, {40, 6}}) of_tokens({t, t, 3, 32, h, w, 2, 2, 96, true, h != 7}), of_tokens({t, t, 1, 512, h, w, 2, 2, 512}), of_tokens({t, t, 2, 16, h, w, 2, 1, 1000, false});
        for (int channels : {1, 2, 3, 4, 5, 12, 20, 100}) of_tokens({t, t, 2, channels, 9, 11, 2, 2, 96}), of_tokens({t, t, 2, channels, 9, 11, 3, 3, 50, true, false});
        for (int shift : {1, 2, 4}) of_tokens({t, t, 2, 64, 8, 8, 2, 2, 96, true, shift != 2, shift});
        for (int channels : {8, 64, 320}) of_tokens({t, t, 2, channels, 14, 14, 2, 2, 320, true, true, 0, 20.f});
        of_tokens({t, t, 0, 64, 8, 8, 2, 2, 96}), of_tokens({t, t, 300, 16, 8, 8, 2, 2, 96}), of_tokens({t, t, 70, 64, 14, 14, 2, 2, 320});
        check(c, InnerCase{t, 50, 16, 4, 6, 96, false, false, 0, 20.f}), check(c, InnerCase{t, 50, 16, 4, 8, 128, true, false, 0, 20.f});

        // Swin's stages, with and without shift; the last stage's map is one window
        for (auto [side, channels] : {std::pair{56, 96}, {28, 192}, {14, 384}, {7, 768}}) {
            check(c, AttnBlockCase{t, 1, channels, channels / 32, 32, grid(side, side, 7, 7, 0, 0)});
            if (side > 7) check(c, AttnBlockCase{t, 2, channels, channels / 32, 32, grid(side, side, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, true});
        }
        check(c, AttnBlockCase{t, 1, 384, 12, 32, grid(24, 24, 12, 12, 6, 6), B::kTable, 1, M::kShift});
        // Padded maps, both ways; dense bias of all windows; dense mask; no bias
        for (int after : {0, 1}) {
            const WindowGrid g = grid(13, 17, 4, 5, 2, 3, after);
            check(c, AttnBlockCase{t, 3, 64, 2, 32, g, B::kTable, 1, M::kShift, 1, after == 1});
            check(c, AttnBlockCase{t, 3, 64, 4, 16, g, B::kDense, g.windows(), M::kNone});
            check(c, AttnBlockCase{t, 2, 64, 4, 16, g, B::kTable, 1, M::kDense, g.windows(), true});
            check(c, AttnBlockCase{t, 2, 64, 4, 16, g, B::kNone, 1, M::kShift});
            check(c, AttnBlockCase{t, 2, 40, 2, 8, grid(5, 3, 8, 8, 3, 2, after), B::kTable, 1, M::kShift});
        }
        // Heads that are wider or narrower than the channels, no multiples of eight, no alignment
        check(c, AttnBlockCase{t, 2, 96, 2, 64, grid(14, 14, 7, 7, 3, 3), B::kTable, 1, M::kShift}), check(c, AttnBlockCase{t, 1, 96, 3, 128, grid(8, 8, 4, 4, 0, 0)});
        check(c, AttnBlockCase{t, 2, 128, 2, 16, grid(8, 8, 4, 4, 2, 2), B::kTable, 1, M::kShift, 1, true});
        check(c, AttnBlockCase{t, 2, 20, 3, 5, grid(6, 9, 2, 3, 1, 1), B::kTable, 1, M::kShift, 1, true}), check(c, AttnBlockCase{t, 1, 1, 1, 1, grid(2, 2, 1, 2, 0, 0)});
        check(c, AttnBlockCase{t, 2, 96, 3, 32, grid(14, 14, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, true, 1}), check(c, AttnBlockCase{t, 2, 96, 3, 32, grid(14, 14, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, true, 4});
        check(c, AttnBlockCase{t, 1, 2048, 16, 128, grid(4, 8, 4, 4, 0, 0)});
        check(c, AttnBlockCase{t, 0, 96, 3, 32, grid(14, 14, 7, 7, 3, 3)});
        check(c, AttnBlockCase{t, 1, 96, 3, 32, grid(14, 14, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, true, 0, 20.f});

        // Heads of 32 and up to 64 tokens, which one kernel takes up to their second product: channels up to what has room there, of no
        // whole steps or parts; tokens of no whole tiles; means far from zero; more blocks than run at once
        for (int channels : {8, 16, 40, 96, 104, 192, 200, 256, 264, 320, 456, 512, 520, 600, 616, 640})
            check(c, AttnBlockCase{t, 1, channels, 1 + channels % 5, 32, grid(12, 9, 7, 7, 2, 3), B::kTable, 1, M::kShift, 1, channels % 16 == 0, 0, channels % 32 ? 0.f : 20.f});
        for (int heads = 1; heads <= 12; ++heads) check(c, AttnBlockCase{t, 1, 96, heads, 32, grid(14, 14, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, heads % 2 == 0});
        for (auto [h, w] : {std::pair{1, 1}, {1, 2}, {3, 5}, {4, 4}, {1, 17}, {4, 8}, {3, 11}, {5, 8}, {6, 8}, {7, 7}, {5, 11}, {7, 8}, {3, 19}, {8, 8}, {1, 64}}) {
            const WindowGrid g = grid(2 * h + 1, 2 * w, h, w, h / 2, w / 2, h % 2);
            check(c, AttnBlockCase{t, 2, 96, 2, 32, g, B::kTable, 1, M::kShift, 1, w % 2 == 0});
            check(c, AttnBlockCase{t, 2, 96, 2, 32, g, B::kDense, g.windows(), M::kDense, g.windows(), w % 2 == 1});
            check(c, AttnBlockCase{t, 2, 72, 2, 32, g, B::kNone, 1, M::kNone, 1, false, 0, 20.f});
            check(c, AttnBlockCase{t, 2, 96, 2, 32, {}, h % 2 ? B::kDense : B::kNone, 1, M::kNone, 1, w % 2 == 0, 0, 0, h * w});
            // Only blocks of a cluster have room for these, and the last of them has less to do.
            check(c, AttnBlockCase{t, 1, 712, 1, 32, g, B::kTable, 1, M::kShift, 1, h % 2 == 0, 0, w % 2 ? 20.f : 0.f});
            check(c, AttnBlockCase{t, 1, 1160, 1, 32, g, B::kDense, g.windows(), M::kDense, g.windows(), w % 2 == 0});
            check(c, AttnBlockCase{t, 2, 648, 2, 32, {}, h % 2 ? B::kDense : B::kNone, 1, M::kNone, 1, w % 2 == 1, 0, h % 2 ? 20.f : 0.f, h * w});
        }
        for (int channels : {616, 640, 768, 776, 1024, 1144, 1152, 1216, 1312, 1536, 1544, 1848, 2048})
            for (bool residual : {false, true}) {
                check(c, AttnBlockCase{t, 1, channels, 2, 32, grid(9, 12, 7, 7, 2, 3, residual), B::kTable, 1, M::kShift, 1, residual});
                check(c, AttnBlockCase{t, 2, channels, 1, 32, {}, residual ? B::kDense : B::kNone, 1, M::kNone, 1, residual, 0, 20.f, 64 - channels / 8 % 3});
            }
        check(c, AttnBlockCase{t, 1, 1536, 48, 32, grid(7, 7, 7, 7, 0, 0), B::kTable}), check(c, AttnBlockCase{t, 3, 768, 24, 32, grid(7, 7, 7, 7, 0, 0), B::kTable, 1, M::kNone, 1, true});
        // Many rows, odd ones, padded windows, heads that share out more or fewer channels than there are
        check(c, AttnBlockCase{t, 32, 384, 12, 32, grid(14, 14, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, true}), check(c, AttnBlockCase{t, 9, 192, 3, 64, {}, B::kNone, 1, M::kNone, 1, true, 0, 0, 197});
        check(c, AttnBlockCase{t, 19, 96, 3, 32, grid(12, 9, 7, 7, 2, 3), B::kTable, 1, M::kShift, 1, true}), check(c, AttnBlockCase{t, 17, 104, 5, 24, grid(9, 12, 5, 5, 2, 2, 1), B::kTable, 1, M::kShift});
        for (int images : {1, 2, 3, 9}) check(c, AttnBlockCase{t, images, 96, 3, 32, grid(56, 56, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, images == 3});
        for (int images : {1, 5}) check(c, AttnBlockCase{t, images, 128, 4, 32, grid(56, 56, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, images == 1, 0, images == 1 ? 20.f : 0.f});
        check(c, AttnBlockCase{t, 3, 96, 3, 32, grid(64, 64, 8, 8, 4, 4), B::kTable, 1, M::kShift});
        // As many rows as one wide kernel takes: as many channels as the heads have and not, rounds that are no whole ones, padding, means far from zero
        if (t == DType::kHalf) {
            for (int channels = 32; channels <= 192; channels += 32)
                for (int heads : {1, 2, 3, 4, 5, 6, 9}) {
                    const bool residual = (channels / 32 + heads) % 2 == 0;
                    check(c, AttnBlockCase{t, 9, channels, heads, 32, grid(14, 14, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, residual, 0, heads == channels / 32 ? 20.f : 0.f});
                    check(c, AttnBlockCase{t, 7, channels, heads, 32, grid(15, 17, 8, 8, 4, 3, heads % 2), residual ? B::kDense : B::kNone, 1, residual ? M::kNone : M::kShift, 1, !residual});
                }
            for (auto [h, w] : {std::pair{1, 1}, {1, 2}, {3, 5}, {5, 3}, {4, 4}, {7, 7}, {7, 8}, {8, 7}, {3, 19}, {8, 8}, {1, 57}, {64, 1}})
                for (int after : {0, 1}) {
                    const WindowGrid g = grid(4 * h + 1, 5 * w - w / 2, h, w, h / 2, w / 2, after);
                    const int images = static_cast<int>(1500 / (g.windows() * g.window_tokens()) + 1);
                    for (auto [channels, heads] : {std::pair{96, 3}, {128, 4}, {64, 3}, {192, 6}}) {
                        check(c, AttnBlockCase{t, images, channels, heads, 32, g, B::kTable, 1, M::kShift, 1, after == 1});
                        check(c, AttnBlockCase{t, images, channels, heads, 32, g, B::kDense, 1, M::kNone, 1, after == 0, 0, 20.f});
                        check(c, AttnBlockCase{t, images, channels, heads, 32, g, B::kNone, 1, after ? M::kShift : M::kNone});
                    }
                }
            for (int tokens : {1, 16, 49, 56, 57, 64})
                for (auto [channels, heads] : {std::pair{96, 3}, {128, 4}, {192, 6}, {160, 4}}) check(c, AttnBlockCase{t, 1500 / tokens + 7, channels, heads, 32, {}, tokens % 2 ? B::kDense : B::kNone, 1, M::kNone, 1, tokens % 2 == 0, 0, 0, tokens});
            check(c, AttnBlockCase{t, 32, 192, 6, 32, grid(28, 28, 7, 7, 3, 3), B::kTable, 1, M::kShift, 1, true}), check(c, AttnBlockCase{t, 9, 128, 4, 32, grid(56, 56, 7, 7, 3, 3), B::kTable, 1, M::kShift});
        }

        // Pooled keys and values: PyramidTNT-S, several images, more than the one kernel takes; windows of one token, of a line, of the map; rows and columns that fill no tiles; other channels; heads of all sizes
        for (bool residual : {false, true}) {
            for (int64_t images : {1, 2, 9}) check(c, PooledAttnCase{t, images, 32, 32, 4, 4, 128, 4, 32, residual}), check(c, PooledAttnCase{t, images, 16, 16, 2, 2, 256, 8, 32, residual});
            for (int channels : {64, 128, 256}) {
                for (auto [h, w, k, l] : {std::array{1, 1, 1, 1}, {4, 6, 1, 1}, {6, 9, 2, 3}, {5, 8, 5, 1}, {7, 12, 1, 4}, {10, 10, 5, 5}, {6, 4, 6, 4}, {33, 2, 1, 2}, {12, 21, 3, 7}})
                    check(c, PooledAttnCase{t, h == 6 ? 3 : 1, h, w, k, l, channels, 2, 32, residual, w != 6, 1, 0, k == 5 ? 20.f : 0.f});
                for (auto [heads, d] : {std::pair{1, 8}, {3, 16}, {5, 24}, {1, 128}, {9, 40}}) check(c, PooledAttnCase{t, 2, 8, 8, 2, 2, channels, heads, d, residual, d != 8, 1 + d % 3});
            }
            for (int channels : {8, 72, 192, 320, 512}) check(c, PooledAttnCase{t, 2, 8, 12, 2, 4, channels, 2, 24, residual});
            for (auto [channels, d] : {std::pair{20, 5}, {128, 5}, {33, 32}, {1, 1}}) check(c, PooledAttnCase{t, 2, 6, 4, 2, 2, channels, 3, d, residual});
            for (int shift : {1, 2, 4}) check(c, PooledAttnCase{t, 2, 8, 8, 2, 2, 128, 4, 32, residual, true, 1, shift});
            // The attention with the last product, and near misses: 2, 4 and 8 heads of 32, multiples of 8 keys up to 64; rows, keys and columns that fill no tiles
            for (int channels : {64, 128, 256})
                for (int heads : {1, 2, 3, 4, 8, 16})
                    for (auto [h, w, k, l] : {std::array{4, 4, 2, 1}, {12, 4, 1, 2}, {9, 8, 3, 1}, {14, 8, 2, 1}, {16, 16, 2, 2}, {12, 12, 1, 2}}) check(c, PooledAttnCase{t, 1 + h % 3, h, w, k, l, channels, heads, 32, residual, h != 9, 1 + h % 2});
        }
        check(c, PooledAttnCase{t, 0, 16, 16, 2, 2, 256, 8, 32}), check(c, PooledAttnCase{t, 1, 16, 16, 2, 2, 2048, 16, 128});

        // Without windows: ViT, sequences and words of TNT, the stages of UniFormer; dense biases; one token; no multiples of eight
        auto sequences = [&](int64_t images, int tokens, int channels, int heads, int d, bool residual, B bias = B::kNone, int64_t period = 1, int shift = 0, float offset = 0) {
            check(c, AttnBlockCase{t, images, channels, heads, d, {}, bias, period, M::kNone, 1, residual, shift, offset, tokens});
        };
        for (bool residual : {false, true}) sequences(1, 197, 384, 6, 64, residual), sequences(2, 197, 768, 12, 64, residual), sequences(3, 196, 320, 5, 64, residual), sequences(196, 16, 24, 4, 6, residual), sequences(1, 49, 512, 8, 64, residual);
        sequences(4, 64, 64, 4, 16, true, B::kDense), sequences(6, 33, 64, 4, 16, false, B::kDense, 3), sequences(2, 50, 96, 3, 128, true, B::kDense, 2);
        sequences(5, 1, 64, 2, 32, true), sequences(1, 1, 1, 1, 1, false), sequences(2, 13, 20, 3, 5, true, B::kDense), sequences(1, 1025, 64, 2, 32, false), sequences(1, 40, 2048, 16, 128, true);
        sequences(2, 50, 96, 3, 32, true, B::kNone, 1, 1), sequences(2, 50, 96, 3, 32, true, B::kNone, 1, 4), sequences(0, 50, 96, 3, 32, true), sequences(2, 50, 96, 3, 32, true, B::kNone, 1, 0, 20.f);
        // Chains of blocks: Swin's stages, ViT and TNT, UniFormer; padded maps, both ways; sizes of few steps; more units than multiprocessors
        for (auto [channels, side, pairs] : {std::tuple{96, 56, 2}, {192, 28, 2}, {384, 14, 3}, {768, 7, 2}}) {
            check(c, BlockChainCase{t, 1, side * side, channels, channels / 32, 32, 4 * channels, pairs, grid(side, side, 7, 7, side > 7 ? 3 : 0, side > 7 ? 3 : 0), side > 7 ? 0x2aaaaaaau : 0u});
            check(c, BlockChainCase{t, 3, side * side, channels, channels / 32, 32, 4 * channels, 1, grid(side, side, 7, 7, 0, 0)});
        }
        check(c, BlockChainCase{t, 1, 196, 512, 16, 32, 2048, 2, grid(14, 14, 7, 7, 3, 3), 2}), check(c, BlockChainCase{t, 1, 49, 1024, 32, 32, 4096, 2, grid(7, 7, 7, 7, 0, 0)});
        check(c, BlockChainCase{t, 1, 197, 384, 6, 64, 1536, 2, {}, 0, false}), check(c, BlockChainCase{t, 4, 197, 384, 6, 64, 1536, 2, {}, 0, true, false, 20.f});
        check(c, BlockChainCase{t, 1, 196, 320, 5, 64, 1280, 2, {}, 0, false}), check(c, BlockChainCase{t, 1, 49, 512, 8, 64, 2048, 2, {}, 0, false}), check(c, BlockChainCase{t, 2, 256, 768, 12, 64, 3072, 1, {}, 0, true, true});
        check(c, BlockChainCase{t, 5, 50, 192, 6, 32, 384, 2, {}, 0, true}), check(c, BlockChainCase{t, 1, 1, 64, 2, 32, 64, 1, {}, 0, true}), check(c, BlockChainCase{t, 1, 130, 128, 2, 64, 256, 1, {}, 0, true});
        // Behind a patch merge: Swin's stages, odd maps, any order, a mean far from zero, no power of two, several images
        auto merged = [&](int64_t images, int side, int channels, int before, int pairs, bool odd_h, bool odd_w, float offset, std::array<int, 4> order = {0, 2, 1, 3}) {
            BlockChainCase a{t, images, side * side, channels, channels / 32, 32, 4 * channels, pairs, grid(side, side, 7, 7, side > 7 ? 3 : 0, side > 7 ? 3 : 0), side > 7 ? 2u : 0u};
            a.before = before, a.odd_h = odd_h, a.odd_w = odd_w, a.offset = offset, std::copy(order.begin(), order.end(), a.order);
            check(c, a);
        };
        for (auto [channels, side] : {std::pair{192, 28}, {384, 14}, {768, 7}, {256, 28}, {512, 14}, {1024, 7}}) merged(1, side, channels, channels / 2, 1, false, false, 0);
        merged(3, 14, 96, 48, 2, true, false, 20.f, {3, 1, 2, 0}), merged(2, 7, 160, 16, 2, false, true, 0), merged(1, 7, 32, 208, 1, true, true, 200.f, {1, 1, 0, 2}), merged(1, 14, 384, 528, 2, false, true, 0), merged(0, 7, 64, 32, 1, false, false, 0);
        // With something added between pairs: TNT-S and TNT-B; many images; heads of 32; one token; all that the plugin takes
        check(c, BlockChainCase{t, 1, 197, 384, 6, 64, 1536, 4, {}, 0, false, false, 0.f, true}), check(c, BlockChainCase{t, 1, 197, 640, 10, 64, 2560, 3, {}, 0, false, false, 0.f, true});
        check(c, BlockChainCase{t, 4, 197, 384, 6, 64, 1536, 2, {}, 0, true, true, 20.f, true}), check(c, BlockChainCase{t, 5, 50, 192, 6, 32, 384, 3, {}, 0, true, false, 0.f, true});
        check(c, BlockChainCase{t, 1, 1, 64, 2, 32, 64, 3, {}, 0, true, false, 0.f, true}), check(c, BlockChainCase{t, 1, 256, 1024, 16, 64, 4096, 2, {}, 0, false, false, 0.f, true});
        check(c, BlockChainCase{t, 0, 197, 384, 6, 64, 1536, 2, {}, 0, false, false, 0.f, true});
        for (int after : {0, 1})
            check(c, BlockChainCase{t, 2, 13 * 17, 96, 3, 32, 192, 3, grid(13, 17, 4, 5, 2, 3, after), 5}), check(c, BlockChainCase{t, 2, 5 * 3, 160, 2, 32, 320, 2, grid(5, 3, 8, 8, 3, 2, after), 2, false, true});
        check(c, BlockChainCase{t, 1, 64, 48, 1, 32, 80, 2, grid(8, 8, 4, 4, 2, 2), 2}), check(c, BlockChainCase{t, 1, 196, 96, 3, 32, 384, 2, grid(14, 14, 7, 7, 3, 3), 2, true, false, 20.f});
        check(c, BlockChainCase{t, 0, 49, 96, 3, 32, 384, 1, grid(7, 7, 7, 7, 0, 0)});
        // A kernel a pair, for windows of as many heads as there are 32 channels: Swin-B's first stage; full windows; fewer units than warpgroups, and so many that a ring's places are used again
        // and again; one token; no bias; means far from zero; more windows than multiprocessors
        check(c, BlockChainCase{t, 1, 56 * 56, 128, 4, 32, 512, 2, grid(56, 56, 7, 7, 3, 3), 2}), check(c, BlockChainCase{t, 1, 256, 96, 3, 32, 384, 3, grid(16, 16, 8, 8, 4, 4), 5});
        check(c, BlockChainCase{t, 2, 35, 96, 3, 32, 64, 2, grid(5, 7, 7, 7, 3, 2), 2, false}), check(c, BlockChainCase{t, 2, 35, 128, 4, 32, 32, 2, grid(5, 7, 7, 7, 3, 2), 1, true, true});
        check(c, BlockChainCase{t, 1, 196, 96, 3, 32, 1152, 2, grid(14, 14, 7, 7, 3, 3), 2, true, true}), check(c, BlockChainCase{t, 1, 196, 128, 4, 32, 1504, 2, grid(14, 14, 7, 7, 3, 3), 2, true, false, 20.f});
        check(c, BlockChainCase{t, 1, 30, 96, 3, 32, 384, 8, grid(5, 6, 1, 1, 0, 0)}), check(c, BlockChainCase{t, 1, 40 * 40, 128, 4, 32, 512, 2, grid(40, 40, 2, 3, 1, 1), 2});
    }
}

void random_cases(Checker& c, int count, uint64_t seed) {
    std::mt19937_64 rng(seed);
    auto pick = [&](int low, int high) { return low + static_cast<int>(rng() % static_cast<uint64_t>(high - low + 1)); };
    auto random_grid = [&](bool pad) {
        WindowGrid g;
        g.window_h = pick(1, 9), g.window_w = pick(1, 9);
        g.grid_h = pad ? pick(1, 30) : g.window_h * pick(1, 4), g.grid_w = pad ? pick(1, 30) : g.window_w * pick(1, 4);
        g.shift_h = pick(0, 1) ? pick(0, g.window_h - 1) : 0, g.shift_w = pick(0, 1) ? pick(0, g.window_w - 1) : 0;
        g.pad_after_roll = pick(0, 1);
        return g;
    };
    for (int i = 0; i < count; ++i) {
        const DType t = pick(0, 2) ? DType::kHalf : DType::kFloat;
        const std::string s = " " + std::to_string(i);
        const int shift = pick(0, 3) ? 0 : pick(1, 7);
        LayerNormCase n{t, pick(1, 200), pick(0, 1) ? pick(1, 3000) : 8 * pick(1, 300), pick(0, 1) == 1, {}, shift};
        check(c, "layer_norm random" + s, n);
        WindowGrid g = random_grid(true);
        {
            const int images = pick(1, 8), tokens = pick(1, 60), begin = pick(0, tokens - 1), covered = pick(1, tokens - begin);
            const int row = pick(0, 1) ? pick(1, 1500) : 8 * pick(1, 150);
            check_part(c, t, images, tokens, begin, covered, row, pick(0, 1) == 1, shift);
        }
        check(c, "layer_norm window random" + s, LayerNormCase{t, pick(1, 5), pick(0, 1) ? pick(1, 200) : 8 * pick(1, 40), pick(0, 1) == 1, g, shift});
        check(c, "layer_norm reverse random" + s, LayerNormCase{t, pick(1, 5), pick(0, 1) ? pick(1, 200) : 8 * pick(1, 40), true, g, shift, 0, true});
        const bool reverse = pick(0, 1);
        check(c, "window random" + s, WindowCase{t, pick(1, 6), pick(0, 1) ? pick(1, 200) : 8 * pick(1, 40), reverse, reverse && pick(0, 1), g, shift});
        MergeCase m{t, pick(1, 4), pick(0, 1) ? pick(1, 300) : 8 * pick(1, 60), pick(1, 20), pick(1, 20), {pick(0, 3), pick(0, 3), pick(0, 3), pick(0, 3)}, shift, pick(0, 1) == 1};
        check(c, "patch_merge random" + s, m);
        check(c, PoolCase{t, pick(1, pick(0, 1) ? 8 : 200), pick(1, pick(0, 1) ? 64 : 300), pick(0, 2) ? 8 * pick(1, 300) : pick(1, 600), pick(0, 1) == 1, shift});
        const int tokens = pick(1, pick(0, 1) ? 64 : 200);
        const auto either = [&] { return t == DType::kHalf && pick(0, 1) ? DType::kHalf : DType::kFloat; };
        check(c, ClassifierCase{t, pick(1, 9), tokens, pick(0, 2) ? 8 * pick(1, 256) : pick(1, 600), pick(1, pick(0, 1) ? 64 : 1000), pick(0, 1) ? pick(0, tokens - 1) : -1, pick(0, 2) > 0, pick(0, 1) == 1, either(), either(), shift, pick(0, 3) ? 0.f : 5.f});
        check(c, GeluCase{t, pick(0, 1) ? pick(1, 50) : pick(1, 3000), pick(0, 2) ? 8 * pick(1, 300) : pick(1, 600), pick(0, 2) > 0, pick(0, 2) == 0, shift, 1.5f, pick(0, 3) == 0});
        check(c, ConvBlockCase{t, pick(1, 4), pick(1, 20), pick(1, 20), pick(0, 3) ? 8 * pick(1, 40) : pick(1, 100), pick(0, 3) ? 8 * pick(1, 40) : pick(1, 100), 3 + 2 * pick(0, 2), shift, false, pick(0, 3) ? 0.f : 20.f});
        const int layer = 64 * pick(1, 2);
        if (pick(0, 3)) check(c, ConvLayerCase{t, pick(1, 4), pick(1, 20), pick(1, 20), layer, layer, 64 * pick(1, 12), 3 + 2 * pick(0, 1), pick(0, 2) == 0, 0, pick(0, 3) ? 0.f : 20.f});
        else check(c, ConvLayerCase{t, pick(1, 3), pick(1, 12), pick(1, 12), pick(0, 1) ? 8 * pick(1, 30) : pick(1, 100), pick(0, 1) ? 8 * pick(1, 30) : pick(1, 100), pick(0, 1) ? 8 * pick(1, 60) : pick(1, 200), 3 + 2 * pick(0, 2), pick(0, 2) == 0, shift});

        PatchConvCase conv{t, 0, 0, 0, pick(0, 3) ? 8 * pick(1, 40) : pick(1, 100), pick(0, 3) ? 8 * pick(1, 40) : pick(1, 100), pick(0, 1) == 1};
        for (int i = 0; i < 2; ++i) {
            conv.kernel[i] = pick(1, 5), conv.strides[i] = pick(1, 3), conv.cell[i] = pick(1, 5);
            conv.pads[i] = pick(0, conv.kernel[i] - 1), conv.pads[i + 2] = pick(0, conv.kernel[i] - 1);
            (i ? conv.width : conv.height) = conv.cell[i] * pick((conv.kernel[i] + conv.cell[i] - 1) / conv.cell[i], 5);
        }
        conv.across = pick(1, 3), conv.images = conv.across * pick(1, 3), conv.shift = shift, conv.offset = pick(0, 3) ? 0.f : 20.f;
        check(c, conv);
        StackCase stack{pick(0, 1) ? DType::kFloat : t, t, pick(1, 3), pick(1, 4), pick(1, 80), pick(1, 80), {}, {}};
        for (int layers = pick(2, 4), i = 0; i < layers; ++i) stack.columns.push_back(i + 1 < layers ? pick(1, 2) * pick(1, 32) : pick(1, 128)), stack.strides.push_back(pick(1, 2));
        if (pick(0, 2)) {
            stack.branch = pick(0, static_cast<int>(stack.columns.size()) - 2), stack.word_columns = pick(1, 64), stack.words_h = stack.words_w = 1;
            ConvStackProblem of;
            of.height = stack.height, of.width = stack.width;
            for (int i = 0; i <= stack.branch; ++i) of.strides[i] = stack.strides[static_cast<size_t>(i)];
            for (int words : {2, 3, 4}) {
                if (conv_stack_side(of, stack.branch, 0) % words == 0) stack.words_h = words;
                if (conv_stack_side(of, stack.branch, 1) % words == 0) stack.words_w = words;
            }
        }
        stack.shift = shift;
        check(c, stack);
        MergeBlockCase merge{t, pick(1, 4), pick(0, 3) ? 8 * pick(1, 60) : pick(1, 200), pick(0, 3) ? 8 * pick(1, 80) : pick(1, 300), pick(1, 20), pick(1, 20), pick(0, 1) == 1, shift, pick(0, 3) ? 0.f : 20.f};
        std::copy(m.order, m.order + 4, merge.order);
        check(c, merge);

        const int channels = pick(0, 3) ? 8 * pick(1, 100) : pick(1, 300), times = pick(1, 4);
        MlpCase mlp{t, pick(0, 1) ? pick(1, 100) : pick(100, 1000), channels, pick(0, 3) ? channels * times : 8 * pick(1, 150), pick(0, 1) == 1, pick(0, 1) == 1, shift};
        check(c, mlp);
        mlp.norm = mlp.residual = false;
        check(c, mlp);

        AttnBlockCase w{t, pick(1, 4), pick(0, 3) ? 8 * pick(1, 40) : pick(1, 200), pick(1, 6), pick(0, 3) ? 8 * pick(1, 8) : pick(1, 40), random_grid(true)};
        w.bias = static_cast<AttentionBias>(pick(0, 2)), w.mask = static_cast<AttentionMask>(pick(0, 2));
        if (w.bias == AttentionBias::kDense) w.bias_period = pick(0, 1) ? 1 : w.window.windows();
        if (w.mask == AttentionMask::kDense) w.mask_period = pick(0, 1) ? 1 : w.window.windows();
        w.residual = pick(0, 1) == 1, w.shift = shift;
        check(c, w);
        AttnBlockCase b = w;
        b.window = {}, b.tokens = pick(1, 260), b.bias = pick(0, 1) ? AttentionBias::kDense : AttentionBias::kNone, b.bias_period = pick(1, 3), b.mask = AttentionMask::kNone;
        if (b.bias == AttentionBias::kNone) b.bias_period = 1;
        check(c, b);
        PooledAttnCase few{t, pick(1, 4), 0, 0, pick(1, 5), pick(1, 5), pick(0, 2) ? 64 << pick(0, 2) : 8 * pick(1, 50), pick(1, 6), pick(0, 3) ? 8 * pick(1, 8) : pick(1, 40), pick(0, 1) == 1, pick(0, 2) > 0};
        few.height = few.pool_h * pick(1, 6), few.width = few.pool_w * pick(1, 6), few.shift = pick(0, 3) ? 0 : shift, few.offset = pick(0, 3) ? 0.f : 20.f;
        check(c, few);
        // What attn_heads takes, or nearly.
        AttnBlockCase head = w;
        head.channels = 8 * pick(1, pick(0, 2) ? 84 : 256), head.d = 32, head.shift = 0, head.offset = pick(0, 2) ? 0.f : 20.f;
        check(c, head);
        // What one wide kernel takes, or nearly.
        AttnBlockCase fused = head;
        fused.channels = 32 * pick(1, 7), fused.images = pick(1, 2000 / static_cast<int>(std::max<int64_t>(1, fused.window.windows() * fused.window.window_tokens())) + 2);
        if (pick(0, 3)) fused.bias_period = 1, fused.mask = fused.mask == AttentionMask::kDense ? AttentionMask::kShift : fused.mask;
        check(c, fused);
        b.channels = 8 * pick(1, pick(0, 2) ? 84 : 256), b.d = 32, b.shift = 0, b.tokens = pick(1, 66);
        check(c, b);

        BlockChainCase blocks{t, pick(1, 3), 0, 16 * pick(1, 24), pick(1, 5), 32, 16 * pick(1, 40), pick(1, 3), {}, 0, pick(0, 2) > 0, pick(0, 2) == 0, pick(0, 3) ? 0.f : 20.f};
        if (pick(0, 2)) {
            WindowGrid& map = blocks.window = random_grid(true);
            map.window_h = std::min(map.window_h, 8), map.window_w = std::min(map.window_w, 8);
            map.shift_h = std::min(map.shift_h, map.window_h - 1), map.shift_w = std::min(map.shift_w, map.window_w - 1);
            blocks.tokens = map.grid_h * map.grid_w, blocks.shifted = static_cast<uint32_t>(pick(0, 7));
            if (pick(0, 1)) blocks.heads = pick(3, 4), blocks.channels = 32 * blocks.heads, blocks.hidden = (blocks.heads == 4 ? 32 : 64) * pick(1, pick(0, 1) ? 4 : 20);
            if (pick(0, 1)) {
                blocks.before = 16 * pick(1, pick(0, 1) ? 12 : 40), blocks.odd_h = pick(0, 1) == 1, blocks.odd_w = pick(0, 1) == 1;
                for (int& quadrant : blocks.order) quadrant = pick(0, 3);
            }
        } else {
            blocks.tokens = pick(1, 256), blocks.d = pick(0, 1) ? 32 : 64, blocks.between = blocks.pairs > 1 && pick(0, 1);
        }
        check(c, blocks);

        const int size = pick(1, 18);
        check(c, InnerCase{t, pick(1, 600), pick(1, pick(0, 3) ? 16 : 40), pick(1, std::max(1, 64 / size)), size, pick(0, 1) ? 8 * pick(1, 32) : pick(1, 280), pick(0, 1) == 1, pick(0, 1) == 1, shift});

        const int covered = pick(1, 60), begin = pick(0, 3);
        check(c, BridgeCase{t, pick(1, 20), begin + covered + pick(0, 2), begin, covered, pick(0, 3) ? 8 * pick(1, 80) : pick(1, 300), pick(0, 3) ? 8 * pick(1, 80) : pick(1, 300), pick(0, 1) == 1, shift});

        WordsCase chain{t, pick(1, 8), begin + covered + pick(0, 2), begin, covered, pick(0, 3) ? 1 : 2, pick(0, 3) ? 16 : pick(1, 20), pick(1, std::max(1, 48 / size)), size, pick(0, 1) ? 8 * pick(1, 24) : pick(1, 200), pick(1, 6),
                        pick(0, 3) ? 8 * pick(1, 80) : pick(1, 300), {}, pick(0, 1) == 1, pick(0, 1) == 1, pick(0, 1) == 1, shift};
        for (int j = 0; j <= chain.layers; ++j)
            for (int n = pick(0, 4) ? pick(0, 1) : 2; n > 0; --n) chain.after.push_back(j);
        chain.stacked = pick(0, static_cast<int>(chain.after.size()));
        check(c, chain);

        const int patch_w = pick(0, 2) ? 2 * pick(1, 8) : pick(1, 9), patch_h = pick(1, 8);
        {
            const int kernel_h = static_cast<int>(pick(1, 8)), kernel_w = static_cast<int>(pick(1, 8)), down = static_cast<int>(pick(1, 5)), across = static_cast<int>(pick(1, 5));
            const int words[] = {static_cast<int>(pick(1, 6)), static_cast<int>(pick(1, 6))}, grid[] = {static_cast<int>(pick(1, 6)), static_cast<int>(pick(1, 6))};
            check(c, PixelCase{pick(0, 1) ? t : DType::kFloat, t, static_cast<int64_t>(pick(1, 5)), static_cast<int>(pick(1, 6)), grid[0] * words[0] * down + static_cast<int>(pick(0, 3)), grid[1] * words[1] * across + static_cast<int>(pick(0, 3)), kernel_h, kernel_w, down, across,
                               static_cast<int>(pick(0, kernel_h - 1)), static_cast<int>(pick(0, kernel_w - 1)), grid[0], grid[1], words[0], words[1], static_cast<int>(pick(0, 3) ? 8 * pick(1, 16) : pick(1, 128)), pick(0, 1) == 1, shift, pick(0, 3) ? 0.f : 20.f});
        }
        check(c, EmbedCase{pick(0, 1) ? t : DType::kFloat, t, pick(1, 12), pick(1, 20), patch_h * pick(1, 8) + pick(0, patch_h - 1), patch_w * pick(1, 8) + (pick(0, 3) ? 0 : pick(0, patch_w - 1)), patch_h, patch_w,
                           pick(0, 3) ? 4 * pick(1, 140) : pick(1, 300), pick(0, 1) == 1, pick(0, 1) == 1, shift});
        const int kernel_h = pick(1, 4), kernel_w = pick(1, 4);
        check(c, EmbedCase{t, t, pick(1, 6), pick(0, 3) ? 8 * pick(1, 40) : pick(1, 60), kernel_h * pick(1, 8) + pick(0, kernel_h - 1), kernel_w * pick(1, 8) + pick(0, kernel_w - 1), kernel_h, kernel_w,
                           pick(0, 3) ? 4 * pick(1, 140) : pick(1, 300), pick(0, 1) == 1, pick(0, 1) == 1, shift, 0, true});

        AttentionCase a{t, pick(1, 40), pick(1, 8), pick(1, 80), pick(1, 80), pick(1, 40), 0, static_cast<Layout>(pick(0, 4))};
        if (pick(0, 3) == 0) a.d = 8 * pick(1, 16);
        if (pick(0, 4) == 0) a.n = pick(80, 400);
        if (pick(0, 4) == 0) a.m = pick(80, 400);
        a.dv = a.layout == Layout::kQkv || a.layout == Layout::kQKv || pick(0, 1) ? a.d : pick(1, 64);
        if (a.layout == Layout::kQkv || a.layout == Layout::kQkV) a.m = a.n;
        a.shift = shift;
        if (pick(0, 2) == 0) {  // window attention
            a.window = random_grid(true);
            a.n = a.m = static_cast<int>(a.window.window_tokens());
            a.bias = pick(0, 1) ? AttentionBias::kTable : AttentionBias::kDense;
            if (pick(0, 1)) a.mask = AttentionMask::kShift;
        } else {
            if (pick(0, 1)) a.bias = AttentionBias::kDense, a.bias_period = pick(0, 1) ? 1 : pick(1, 8), a.bias_per_head = pick(0, 1);
            if (pick(0, 2) == 0) a.mask = AttentionMask::kDense, a.mask_period = pick(1, 5);
        }
        check(c, a);
    }
}

// More than 2^31 elements.
void large_cases(Checker& c) {
    check(c, "layer_norm large", LayerNormCase{DType::kHalf, 22500000, 96, false, {}});
    check_part(c, DType::kHalf, 115000, 197, 1, 196, 96, true);
    check(c, "layer_norm window large", LayerNormCase{DType::kHalf, 7200, 96, true, grid(56, 56, 7, 7, 3, 3)});
    check(c, "layer_norm reverse large", LayerNormCase{DType::kHalf, 7200, 96, true, grid(56, 56, 7, 7, 3, 3), 0, 0, true});
    check(c, "window large", WindowCase{DType::kHalf, 7200, 96, true, true, grid(56, 56, 7, 7, 3, 3)});
    check(c, "window partition large", WindowCase{DType::kHalf, 7200, 96, false, false, grid(56, 56, 7, 7, 3, 3)});
    check(c, PoolCase{DType::kHalf, 60000, 49, 768, true});
    check(c, ClassifierCase{DType::kHalf, 60000, 49, 768, 1000, -1, true, true});
    check(c, GeluCase{DType::kHalf, 2900000, 768});
    check(c, GeluCase{DType::kHalf, 22000000, 99});
    check(c, MergeBlockCase{DType::kHalf, 7200, 96, 192, 56, 56, true});
    check(c, ConvBlockCase{DType::kHalf, 7200, 56, 56, 96, 8});
    check(c, "patch_merge large", MergeCase{DType::kHalf, 7200, 96, 56, 56, {0, 2, 1, 3}, 0, true});
    check(c, AttentionCase{DType::kHalf, 64 * 2400, 3, 49, 49, 32, 32, Layout::kQkv, AttentionBias::kTable, 1, true, AttentionMask::kShift, 1, grid(56, 56, 7, 7, 3, 3)});
    check(c, AttentionCase{DType::kHalf, 6000000, 4, 16, 16, 6, 6, Layout::kQkV});
}

// Wrong problems are refused, not run.
void refusals(Checker& c) {
    auto expect = [&](const std::string& name, cudaError_t status) {
        if (c.wanted(name)) c.report(name, DType::kHalf, 0, 0, 0, status == cudaErrorInvalidValue ? "" : "not refused");
    };
    WindowProblem w;
    w.images = 1, w.channels = 8, w.window = grid(8, 8, 4, 4, 0, 0), w.residual = &w;
    expect("refuse residual on partition", window(w, nullptr));
    w.residual = nullptr, w.window = {};
    expect("refuse window 0", window(w, nullptr));
    AttentionProblem a;
    a.batch = 1, a.heads = 1, a.queries = 4, a.keys = 4, a.dim = 129, a.value_dim = 8;
    expect("refuse head size 129", attention(a, nullptr));
    a.dim = 8, a.bias_kind = AttentionBias::kTable, a.window = grid(4, 4, 3, 3, 0, 0);
    expect("refuse table of another window", attention(a, nullptr));
    a.bias_kind = AttentionBias::kDense, a.bias_heads = 3;
    expect("refuse bias heads", attention(a, nullptr));
    PatchMergeProblem m;
    m.images = 1, m.channels = 8, m.grid_h = m.grid_w = 4, m.order[2] = 4;
    expect("refuse order", patch_merge(m, nullptr));
    NormPoolProblem p;
    p.images = 1, p.row = 8;
    expect("refuse a mean over no tokens", norm_pool(p, nullptr));
    ClassifierProblem k;
    k.images = 1, k.row = 8, k.classes = 8;
    expect("refuse a classifier of no tokens", classifier(k, nullptr));
    k.tokens = 4, k.token = 4;
    expect("refuse a classifier of a token that is not there", classifier(k, nullptr));
    k.token = 0, k.row = kClassifierMaxRow + 8;
    expect("refuse a classifier of too many channels", classifier(k, nullptr));
    k.row = 8, k.classes = kClassifierMaxClasses + 1;
    expect("refuse a classifier of too many classes", classifier(k, nullptr));
    GeluProblem g;
    g.rows = 1, g.row = (int64_t{1} << 30) + 8;
    expect("refuse a GELU of too many channels", gelu(g, nullptr));
    g.rows = -1, g.row = 8;
    expect("refuse a GELU of no number of rows", gelu(g, nullptr));
    DepthwiseConvProblem d;
    d.images = 1, d.height = d.width = 4, d.channels = 8, d.kernel = 4;
    expect("refuse an even kernel", depthwise_conv(d, nullptr));
    d.kernel = 3, d.height = 0;
    expect("refuse a map without rows", depthwise_conv(d, nullptr));
    ConvBlockProblem v;
    v.images = 1, v.height = v.width = 4, v.channels = v.hidden = 8;
    expect("refuse a convolution block without workspace", conv_block(v, nullptr));
    v.workspace = &v, v.kernel = 9;
    expect("refuse a convolution block of no such kernel", conv_block(v, nullptr));
    v.kernel = 5, v.hidden = kMlpMaxChannels + 8;
    expect("refuse a convolution block of too many columns", conv_block(v, nullptr));
    v.hidden = 8, v.channels = kMlpMaxChannels + 8;
    expect("refuse a convolution block of too many channels", conv_block(v, nullptr));
    v.channels = 8, v.height = kConvMaxTokens;
    expect("refuse a convolution block of too many tokens", conv_block(v, nullptr));
    v.height = 0;
    expect("refuse a convolution block over a map without rows", conv_block(v, nullptr));
    ConvLayerProblem l;
    l.conv.images = 1, l.conv.height = l.conv.width = 4, l.conv.channels = l.conv.hidden = 8, l.mlp.hidden = 32;
    expect("refuse a convolution layer without workspace", conv_layer(l, nullptr));
    l.workspace = &l, l.conv.kernel = 9;
    expect("refuse a convolution layer of no such kernel", conv_layer(l, nullptr));
    l.conv.kernel = 5, l.mlp.hidden = kMlpMaxHidden + 8;
    expect("refuse a convolution layer of too many columns", conv_layer(l, nullptr));
    l.mlp.hidden = 0;
    expect("refuse a convolution layer without an MLP", conv_layer(l, nullptr));
    PatchConvProblem strided;
    strided.images = 1, strided.height = strided.width = 4, strided.channels = strided.columns = 8;
    expect("refuse a convolution of tokens without workspace", patch_conv(strided, nullptr));
    strided.workspace = &strided, strided.cell[1] = 3;
    expect("refuse a convolution of cells that do not divide the map", patch_conv(strided, nullptr));
    strided.cell[1] = 1, strided.across = 2;
    expect("refuse a convolution of a part of the maps side by side", patch_conv(strided, nullptr));
    strided.across = 1, strided.pads[2] = 3;
    expect("refuse a convolution with more padding than its kernel", patch_conv(strided, nullptr));
    strided.pads[2] = 1, strided.channels = kMlpMaxHidden / 8;
    expect("refuse a convolution of too many channels", patch_conv(strided, nullptr));
    strided.channels = 8, strided.columns = kMlpMaxChannels + 8;
    expect("refuse a convolution of too many columns", patch_conv(strided, nullptr));
    strided.columns = 8, strided.kernel[0] = 7;
    expect("refuse a convolution whose kernel is larger than the map", patch_conv(strided, nullptr));
    PatchMergeBlockProblem o;
    o.merge.images = 1, o.merge.channels = 5, o.merge.grid_h = o.merge.grid_w = 4, o.columns = 8;
    expect("refuse a merge and product without workspace", patch_merge_block(o, nullptr));
    o.workspace = &o, o.merge.order[2] = 4;
    expect("refuse a merge and product of no order", patch_merge_block(o, nullptr));
    o.merge.order[2] = 1, o.columns = kMlpMaxChannels + 1;
    expect("refuse a merge and product of too many columns", patch_merge_block(o, nullptr));
    o.columns = 8, o.merge.channels = kMlpMaxHidden / 4 + 1;
    expect("refuse a merge and product of too many channels", patch_merge_block(o, nullptr));
    o.merge.channels = 5, o.merge.grid_h = kMergeMaxTokens;
    expect("refuse a merge and product of too many tokens", patch_merge_block(o, nullptr));
    MlpBlockProblem b;
    b.rows = 1, b.channels = kMlpMaxChannels + 8, b.hidden = 8;
    expect("refuse too many channels", mlp_block(b, nullptr, nullptr));
    b.channels = 8, b.hidden = kMlpMaxHidden + 8;
    expect("refuse too many hidden columns", mlp_block(b, nullptr, nullptr));
    b.hidden = 8, b.norm = false, b.residual = &b;
    expect("refuse a residual without a norm", mlp_block(b, nullptr, nullptr));
    AttnBlockProblem s;
    s.images = 1, s.channels = 8, s.attention.heads = 1, s.attention.dim = 8;
    expect("refuse a block without windows and tokens", attn_block(s, nullptr));
    s.tokens = kAttnMaxTokens + 1;
    expect("refuse a block of too many tokens", attn_block(s, nullptr));
    s.tokens = 0, s.attention.window = grid(4, 4, 2, 2, 0, 0);
    expect("refuse a block without workspace", attn_block(s, nullptr));
    s.workspace = &s, s.attention.dim = 129;
    expect("refuse a block of head size 129", attn_block(s, nullptr));
    s.attention.dim = 8, s.channels = kAttnMaxChannels + 8;
    expect("refuse a block of too many channels", attn_block(s, nullptr));
    PooledAttnBlockProblem u;
    u.images = 1, u.grid_h = u.grid_w = 4, u.pool_h = u.pool_w = 2, u.channels = 8, u.attention.heads = 1, u.attention.dim = 8;
    expect("refuse a pooled block without workspace", pooled_attn_block(u, nullptr));
    u.workspace = &u, u.pool_w = 3;
    expect("refuse windows that do not divide the map", pooled_attn_block(u, nullptr));
    u.pool_w = 2, u.attention.dim = 129;
    expect("refuse a pooled block of head size 129", pooled_attn_block(u, nullptr));
    u.attention.dim = 8, u.channels = kAttnMaxChannels + 8;
    expect("refuse a pooled block of too many channels", pooled_attn_block(u, nullptr));
    u.channels = 8, u.grid_h = kAttnMaxTokens;
    expect("refuse a pooled block of too many tokens", pooled_attn_block(u, nullptr));
    u.grid_h = 4, u.attention.mask_kind = AttentionMask::kDense;
    expect("refuse a pooled block with a mask", pooled_attn_block(u, nullptr));
    TntInnerBlockProblem i;
    i.patches = 1, i.tokens = 17, i.channels = 24, i.hidden = 96, i.heads = 4;
    expect("refuse a block over words without workspace", tnt_inner_block(i, nullptr));
    i.heads = 5;
    expect("refuse heads that do not share the channels", tnt_inner_block(i, nullptr));
    i.heads = 4, i.tokens = 0;
    expect("refuse a block over no words", tnt_inner_block(i, nullptr));
    TntBridgeProblem t;
    t.images = 1, t.tokens = 10, t.begin = 1, t.covered = 9, t.width = 7, t.channels = 12;
    expect("refuse a bridge without workspace", tnt_bridge(t, nullptr));
    t.workspace = &t, t.covered = 10;
    expect("refuse a bridge that ends behind the tokens", tnt_bridge(t, nullptr));
    t.covered = 9, t.begin = -1;
    expect("refuse a bridge that begins before the tokens", tnt_bridge(t, nullptr));
    t.begin = 1, t.channels = kMlpMaxChannels + 1;
    expect("refuse a bridge of too many channels", tnt_bridge(t, nullptr));
    TntWordsProblem chain;
    chain.inner.patches = 9, chain.inner.tokens = 16, chain.inner.channels = 24, chain.inner.hidden = 96, chain.inner.heads = 4, chain.layers = 2, chain.bridges = 2, chain.after[0] = 1, chain.after[1] = 2;
    chain.images = 1, chain.tokens = 10, chain.begin = 1, chain.covered = 9, chain.width = 384, chain.channels = 384;
    expect("refuse a chain over words without workspace", tnt_words(chain, nullptr));
    chain.workspace = &chain, chain.layers = 0;
    expect("refuse a chain of no blocks", tnt_words(chain, nullptr));
    chain.layers = kWordsMaxLayers + 1;
    expect("refuse a chain of too many blocks", tnt_words(chain, nullptr));
    chain.layers = 2, chain.after[1] = 3;
    expect("refuse a bridge behind the last block", tnt_words(chain, nullptr));
    chain.after[0] = 2, chain.after[1] = 1;
    expect("refuse bridges out of order", tnt_words(chain, nullptr));
    chain.after[0] = 1, chain.inner.patches = 10;
    expect("refuse words that are not those of the tokens", tnt_words(chain, nullptr));
    BlockChainProblem blocks;
    blocks.images = 1, blocks.tokens = 49, blocks.channels = 32, blocks.heads = 1, blocks.dim = 32, blocks.hidden = 64, blocks.pairs = 1;
    blocks.x = blocks.weights = blocks.vectors = blocks.between = &blocks, blocks.y = blocks.workspace = &blocks;
    expect("refuse what is added between pairs of one pair alone", block_chain(blocks, nullptr));
    blocks.pairs = 2, blocks.window = grid(7, 7, 7, 7, 0, 0);
    expect("refuse what is added between pairs in windows", block_chain(blocks, nullptr));
    blocks.between = nullptr, blocks.quads.channels = 16, blocks.quads.grid_h = 14, blocks.quads.grid_w = 15;
    expect("refuse a patch merge to another map than that of the windows", block_chain(blocks, nullptr));
    blocks.quads.grid_w = 13, blocks.quads.order[3] = 4;
    expect("refuse a patch merge of a fifth quadrant", block_chain(blocks, nullptr));
    blocks.window = {}, blocks.quads.order[3] = 3;
    expect("refuse a patch merge ahead of sequences", block_chain(blocks, nullptr));
    PixelEmbedProblem px;
    px.images = 1, px.channels = 3, px.height = px.width = 32, px.kernel_h = px.kernel_w = 7, px.stride_h = px.stride_w = 4, px.pad_h = px.pad_w = 3, px.grid_h = px.grid_w = 2, px.words_h = px.words_w = 4, px.columns = kPixelMaxColumns + 8;
    expect("refuse words of too many channels", pixel_embed(px, nullptr));
    px.columns = 24, px.kernel_w = kPixelSlots + 1;
    expect("refuse a kernel of too long rows", pixel_embed(px, nullptr));
    px.kernel_w = 7, px.pad_w = 7;
    expect("refuse words that see no pixel", pixel_embed(px, nullptr));
    px.pad_w = 3, px.channels = 19;
    expect("refuse a kernel of too many rows", pixel_embed(px, nullptr));
    px.channels = 3, px.words_h = 65;
    expect("refuse patches of too many words", pixel_embed(px, nullptr));
    px.words_h = 4, px.dtype = DType::kFloat;
    expect("refuse an image of less precision than its words", pixel_embed(px, nullptr));
    ConvStackProblem st;
    st.images = 1, st.channels = 3, st.height = st.width = 16, st.layers = 1, st.columns[0] = st.columns[1] = 16, st.strides[0] = st.strides[1] = 2;
    expect("refuse a stack of one convolution", conv_stack(st, nullptr));
    st.layers = 2, st.columns[0] = kStackMaxInner + 1;
    expect("refuse a stack of too many channels between", conv_stack(st, nullptr));
    st.columns[0] = 16, st.columns[1] = kStackMaxColumns + 1;
    expect("refuse a stack of too many columns", conv_stack(st, nullptr));
    st.columns[1] = 16, st.strides[1] = 3;
    expect("refuse a stack of another stride", conv_stack(st, nullptr));
    st.strides[1] = 2, st.channels = 5;
    expect("refuse a stack of too many channels", conv_stack(st, nullptr));
    st.channels = 3, st.branch = 1, st.word_columns = 8;
    expect("refuse words of the last convolution", conv_stack(st, nullptr));
    st.branch = 0, st.words_h = 3;
    expect("refuse words that do not fill the map", conv_stack(st, nullptr));
    st.words_h = 4, st.dtype = DType::kFloat;
    expect("refuse a stack of an image of less precision", conv_stack(st, nullptr));
    st.image = DType::kFloat;
    expect("refuse a stack in float without workspace", conv_stack(st, nullptr));
    PatchEmbedProblem e;
    e.images = 1, e.channels = 3, e.height = 3, e.width = 8, e.patch_h = e.patch_w = 4, e.columns = 8;
    expect("refuse an image lower than a patch", patch_embed(e, nullptr));
    e.height = 8, e.columns = kMlpMaxChannels + 1;
    expect("refuse an embedding of too many columns", patch_embed(e, nullptr));
    e.columns = 8, e.scale = &e;
    expect("refuse a norm without a bias", patch_embed(e, nullptr));
    e.scale = nullptr, e.dtype = DType::kFloat;
    expect("refuse an image of less precision than the tokens", patch_embed(e, nullptr));
    e.dtype = DType::kHalf, e.height = e.width = 1024, e.patch_h = e.patch_w = 128;
    expect("refuse a patch of too many pixels", patch_embed(e, nullptr));
    LayerNormProblem n;
    n.rows = 10, n.row = 8, n.window = grid(4, 4, 2, 2, 0, 0);
    expect("refuse rows of no whole image", layer_norm(n, nullptr));
    n.window = {}, n.reverse = true;
    expect("refuse reverse without windows", layer_norm(n, nullptr));
    n.reverse = false, n.part = &n, n.tokens = 5, n.part_begin = 1, n.part_tokens = 5;
    expect("refuse a part that ends behind the tokens", layer_norm(n, nullptr));
    n.part_tokens = 4, n.part_begin = -1;
    expect("refuse a part that begins before the tokens", layer_norm(n, nullptr));
    n.part_begin = 1, n.part_tokens = 0;
    expect("refuse a part of no tokens", layer_norm(n, nullptr));
    n.part_tokens = 4, n.tokens = 4;
    expect("refuse a part of no whole image", layer_norm(n, nullptr));
    n.rows = 32, n.tokens = 16, n.window = grid(4, 4, 2, 2, 0, 0);
    expect("refuse a part beside windows", layer_norm(n, nullptr));
}

}  // namespace

int main(int argc, char** argv) {
    Checker c;
    int count = 150;
    uint64_t seed = 1;
    bool large = false, edges = true;
    for (int i = 1; i < argc; ++i) {
        const std::string a = argv[i];
        auto value = [&] { return i + 1 < argc ? argv[++i] : (std::fprintf(stderr, "%s needs a value\n", a.c_str()), std::exit(2), nullptr); };
        if (a == "--json") {
            c.json = std::fopen(value(), "w");
            if (!c.json) return std::perror("--json"), 2;
        } else if (a == "--random") count = std::atoi(value());
        else if (a == "--seed") seed = std::strtoull(value(), nullptr, 10);
        else if (a == "--filter") c.filter = value();
        else if (a == "--large") large = true;
        else if (a == "--no-edges") edges = false;
        else return std::fprintf(stderr, "unknown argument %s\n", a.c_str()), 2;
    }
    cudaDeviceProp device;
    CUDA_OK(cudaGetDeviceProperties(&device, 0));
    c.seed = seed * 1000003;
    if (c.json) std::fprintf(c.json, "{\"device\":\"%s\",\"seed\":%llu,\"cases\":[", device.name, static_cast<unsigned long long>(seed));
    refusals(c);
    if (edges) edge_cases(c);
    random_cases(c, count, seed);
    c.graph = true;
    random_cases(c, count / 10, seed + 1);
    c.graph = false;
    if (large) large_cases(c);
    CUDA_OK(cudaDeviceSynchronize());
    if (c.json) {
        std::fprintf(c.json, "],\n\"count\":%d,\"failed\":%d,\"worst_fp16\":%.4g,\"worst_fp32\":%.4g}\n", c.cases, c.failed, c.worst[1], c.worst[0]);
        std::fclose(c.json);
    }
    std::printf("%s: %d cases, %d failed; worst error fp16 %.3g (%s), fp32 %.3g (%s)\n", device.name, c.cases, c.failed, c.worst[1], c.worst_name[1].c_str(), c.worst[0], c.worst_name[0].c_str());
    return c.failed == 0 && c.cases > 0 ? 0 : 1;
}
