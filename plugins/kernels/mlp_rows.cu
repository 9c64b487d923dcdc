#include "mlp_rows.h"

#include <type_traits>

#include "launch.cuh"
#include "mlp_rows.cuh"

namespace trt_opt {
namespace {

bool size_of(int32_t channels) { return channels == 128 || channels == 256 || channels == 512; }
// Calls f(shape, kernel) with the instance for so many channels, which size_of accepts.
template <class F> auto with_shape(int32_t channels, F&& f) {
    return channels == 128 ? f(MlpRowsShape<128>{}, mlp_rows_kernel<128>) : channels == 256 ? f(MlpRowsShape<256>{}, mlp_rows_kernel<256>) : f(MlpRowsShape<512>{}, mlp_rows_kernel<512>);
}

bool sizes_fit(const MlpBlockProblem& q) {
    return device().major >= 9 && q.dtype == DType::kHalf && q.norm && q.rows > 0 && size_of(q.channels) && q.hidden == 4 * q.channels && q.rows <= INT32_MAX / 4 / q.channels &&
           with_shape(q.channels, [](auto shape, auto) { return shape.kBytes; }) <= device().shared;
}

// Clusters that run at once, for problems whose sizes fit; remembered for the device that this thread met last.
int clusters_at_once(const MlpBlockProblem& q) {
    struct Entry {
        int device = -1, clusters = 0;
    };
    thread_local Entry entries[3];
    Entry& e = entries[q.channels == 128 ? 0 : q.channels == 256 ? 1 : 2];
    const int id = device().id;
    if (e.device != id || id < 0) e.clusters = with_shape(q.channels, [](auto shape, auto kernel) { return active_clusters(kernel, shape.kCluster, kMlpRowsThreads, shape.kBytes); }), e.device = id;
    return e.clusters;
}

int64_t tiles_of(const MlpBlockProblem& q) {
    return with_shape(q.channels, [&](auto shape, auto) { return (q.rows + shape.kRows - 1) / shape.kRows; });
}

// Nanoseconds, as measured at 1024 x 128 and 256 x 256 (plugins/NOTES.md).
constexpr float kCost = 6100;

}  // namespace

bool mlp_rows_valid(const MlpBlockProblem& q) { return sizes_fit(q) && clusters_at_once(q) > 0; }

std::vector<MlpRowsPlan> mlp_rows_plans(const MlpBlockProblem& q) {
    if (!sizes_fit(q) || tiles_of(q) > clusters_at_once(q)) return {};
    return {MlpRowsPlan{kCost}};
}

cudaError_t mlp_rows(const MlpBlockProblem& q, cudaStream_t stream) {
    if (!sizes_fit(q)) return cudaErrorInvalidValue;
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    MlpRowsArgs p;
    p.x = in(q.x), p.residual = in(q.residual), p.scale = in(q.scale), p.shift = in(q.bias), p.w1 = in(q.w1), p.b1 = in(q.b1), p.w2 = in(q.w2), p.b2 = in(q.b2), p.y = static_cast<__half*>(q.y);
    p.rows = static_cast<int>(q.rows), p.epsilon = q.epsilon, p.activation = q.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu;
    return with_shape(q.channels, [&](auto shape, auto kernel) {
        if constexpr (shape.kCluster > 8) {
            if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1); status != cudaSuccess) return cudaGetLastError(), status;
        }
        p.once = one_wave(tiles_of(q) * shape.kCluster, kMlpRowsThreads, shape.kBytes);
        return launch_ahead(kernel, static_cast<uint32_t>(tiles_of(q) * shape.kCluster), kMlpRowsThreads, shape.kBytes, stream, shape.kCluster, p);
    });
}

}  // namespace trt_opt
