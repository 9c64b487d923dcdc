// Attention in fp32 without tensor cores: exact enough to check everything else against.
#include <algorithm>

#include "attention_common.cuh"

namespace trt_opt {
namespace {

constexpr int kWarps = 4, kRows = 4, kKeys = 32;  // rows a warp, keys a step

// Grid: heads * ceil(N / 16) * batch rows. D: head size padded to a multiple of 32.
template <int D>
__global__ void __launch_bounds__(kWarps * 32) attention_f32_kernel(const __grid_constant__ AttentionArgs<float> p, FastDiv by_heads, FastDiv by_tiles) {
    __shared__ float keys[kKeys][D + 1];
    __shared__ float values[kKeys][D];
    __shared__ float queries[kWarps * kRows][D];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t h, tile;
    const int64_t b = by_tiles.divmod(by_heads.divmod(blockIdx.x, h), tile);
    const float* q = p.q.rows(b, h);
    const float* k = p.k.rows(b, h);
    const float* v = p.v.rows(b, h);
    const int row0 = (tile * kWarps + warp) * kRows;
    const ScoreBias<float> bias(p, static_cast<uint32_t>(b), h);
    const bool biased = bias.any();

    for (int i = threadIdx.x; i < kWarps * kRows * D; i += kWarps * 32) {
        const int r = tile * kWarps * kRows + i / D, e = i % D;
        queries[i / D][e] = r < p.n && e < p.d ? q[int64_t{r} * p.q.token + e] : 0.f;
    }
    float o[kRows][D / 32] = {}, top[kRows], sum[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) top[r] = -CUDART_INF_F;
    for (int first = 0; first < p.m; first += kKeys) {
        __syncthreads();
        for (int i = threadIdx.x; i < kKeys * D; i += kWarps * 32) {
            const int key = first + i / D, e = i % D;
            keys[i / D][e] = key < p.m && e < p.d ? k[int64_t{key} * p.k.token + e] : 0.f;
            values[i / D][e] = key < p.m && e < p.dv ? v[int64_t{key} * p.v.token + e] : 0.f;
        }
        __syncthreads();
        float s[kRows] = {};
#pragma unroll 8
        for (int e = 0; e < D; ++e) {
            const float key = keys[lane][e];
#pragma unroll
            for (int r = 0; r < kRows; ++r) s[r] = fmaf(queries[warp * kRows + r][e], key, s[r]);
        }
        const int key = first + lane;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            float score = s[r] * p.scale;
            if (biased) score += bias.at(min(row0 + r, p.n - 1), min(key, p.m - 1));
            if (key >= p.m) score = -CUDART_INF_F;
            float highest = score;
#pragma unroll
            for (int step = 16; step > 0; step /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, step));
            highest = fmaxf(highest, top[r]);
            const float base = highest == -CUDART_INF_F ? 0.f : highest;
            const float weight = expf(score - base), fade = expf(top[r] - base);
            top[r] = highest;
            sum[r] = sum[r] * fade + group_sum<32>(weight);
#pragma unroll
            for (int c = 0; c < D / 32; ++c) o[r][c] *= fade;
#pragma unroll 8
            for (int j = 0; j < kKeys; ++j) {
                const float w = __shfl_sync(0xffffffffu, weight, j);
#pragma unroll
                for (int c = 0; c < D / 32; ++c) o[r][c] = fmaf(w, values[j][c * 32 + lane], o[r][c]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        if (row0 + r >= p.n) continue;
        float* out = p.out_row(b, h, row0 + r);
#pragma unroll
        for (int c = 0; c < D / 32; ++c)
            if (c * 32 + lane < p.dv) out[c * 32 + lane] = sum[r] > 0.f ? o[r][c] / sum[r] : 0.f;
    }
}

}  // namespace

cudaError_t attention_f32(const AttentionProblem& problem, cudaStream_t stream) {
    AttentionArgs<float> p;
    if (!attention_args(problem, p)) return cudaErrorInvalidValue;
    if (p.batch == 0 || p.n == 0) return cudaSuccess;
    const int64_t tiles = (p.n + kWarps * kRows - 1) / (kWarps * kRows);
    const int64_t blocks = tiles * p.heads;
    if (blocks > (int64_t{1} << 30)) return cudaErrorInvalidValue;
    // A launch covers a whole number of periods, so that batch rows keep their bias and mask.
    int64_t step = (int64_t{1} << 30) / blocks;
    if (step < p.batch) step = step / p.period * p.period;
    if (step == 0) return cudaErrorInvalidValue;
    const AttentionArgs<float> whole = p;
    for (int64_t first = 0; first < whole.batch; first += step) {
        p.batch = std::min(step, whole.batch - first);
        p.q.base = whole.q.base + first * p.q.batch, p.k.base = whole.k.base + first * p.k.batch, p.v.base = whole.v.base + first * p.v.batch;
        p.out = whole.out + first * p.n * p.heads * p.dv;
        const auto grid = static_cast<uint32_t>(blocks * p.batch);
        const FastDiv by_heads(p.heads), by_tiles(static_cast<uint32_t>(tiles));
        const int size = std::max(p.d, p.dv);
        if (size <= 32) attention_f32_kernel<32><<<grid, kWarps * 32, 0, stream>>>(p, by_heads, by_tiles);
        else if (size <= 64) attention_f32_kernel<64><<<grid, kWarps * 32, 0, stream>>>(p, by_heads, by_tiles);
        else attention_f32_kernel<128><<<grid, kWarps * 32, 0, stream>>>(p, by_heads, by_tiles);
        if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace trt_opt
