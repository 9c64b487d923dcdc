// The product of a transformer's block: the problem, and the ways of cutting it up.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "gelu.cuh"
#include "kernels.h"

namespace trt_opt {

// A token grid whose 2 x 2 neighbourhoods are put on the channel axis, quadrant (2*dy + dx) of each block. `grid_h == 0`: none.
struct QuadGrid {
    int32_t grid_h = 0, grid_w = 0;
    int32_t order[4] = {0, 2, 1, 3};

    bool used() const { return grid_h > 0; }
    int64_t tokens() const { return int64_t{grid_h} * grid_w; }
    int64_t merged() const { return int64_t{(grid_h + 1) / 2} * ((grid_w + 1) / 2); }
};

// out = act(A B + bias), or A B + bias + added + added2, fp16, sums in fp32; all pointers aligned to 16 bytes, k and n multiples
// of 8. B and bias must be constants: they are read before the kernels before this one are done.
struct BlockGemmProblem {
    int64_t rows = 0;  // of A
    int32_t k = 0, n = 0;
    const void* a = nullptr;        // [rows, k]
    const void* b = nullptr;        // [k, n]
    const void* bias = nullptr;     // [n]
    const void* added = nullptr;    // like out, or null; null where there is an activation
    const void* added2 = nullptr;   // added to `added` first, with the rounding of fp16; or null
    void* out = nullptr;            // [rows, n]
    Activation activation = Activation::kNone;

    // A is normalize(a + a2) * scale + shift, and nothing is added.
    bool norm = false;
    const void* a2 = nullptr;       // [rows, k], or null
    const void *scale = nullptr, *shift = nullptr;  // [k]; constants too
    float epsilon = 1e-5f;

    // With windows one side's rows are tokens: those of a where it is normalized (partition, padding becomes zeros), else those
    // of out and what is added (reverse). `rows` counts the windows' rows, less than 2^31.
    WindowGrid window;
    // With quads each of A's rows, which are normalized, is four tokens side by side: a and a2 are maps of tokens of k / 4 channels, a
    // multiple of 8. What an odd grid lacks is zeros. `rows` counts the merged rows, the tokens are 2^29 at most.
    QuadGrid quads;

    const void* next = nullptr;     // weights of the kernel after this one, aligned to 16 bytes
    int64_t next_bytes = 0;         // a multiple of 16, less than 2^32
};

struct GemmPlan {
    int tile = -1, cluster_log2 = 0;
    float cost = 0;  // an estimate, in nanoseconds

    static constexpr int kBits = 8;
    static GemmPlan of(int32_t id) { return {(id & 15) - 1, id >> 4 & 15, 0}; }
    int32_t id() const { return tile + 1 | cluster_log2 << 4; }
};

// Plans of two products, one after the other.
struct GemmPair {
    GemmPlan first, second;
    float cost = 0;  // an estimate, in nanoseconds

    static bool is_id(int32_t id) { return id >> 30 & 1; }
    static GemmPair of(int32_t id) {
        constexpr int32_t mask = (1 << GemmPlan::kBits) - 1;
        return {GemmPlan::of(id & mask), GemmPlan::of(id >> GemmPlan::kBits & mask), 0};
    }
    int32_t id() const { return 1 << 30 | second.id() << GemmPlan::kBits | first.id(); }
};

// The two products of a block.
struct GemmProducts {
    BlockGemmProblem first, second;
};

bool block_gemm_valid(const GemmPlan& plan, const BlockGemmProblem& problem);
// The plans that fit, best guess first; `few_rows`: only those where the time is latency, which the kernel is made for.
std::vector<GemmPlan> block_gemm_plans(const BlockGemmProblem& problem, bool few_rows = true);
// Those worth timing, best guess first. `beside` are the products of the block that takes turns with this one in a network, which has
// the same first and last channels: an attention's with an MLP's. Both take the tiles that are best for the two together, since
// then they run the same machine code, which stays in the instruction cache (plugins/NOTES.md).
std::vector<GemmPair> block_gemm_pairs(const GemmProducts& own, const GemmProducts& beside, bool few_rows = true);
// The first of them for any number of rows, remembered for the sizes that this thread met last. first.tile < 0: none fits.
GemmPair block_gemm_best_pair(const GemmProducts& own, const GemmProducts& beside);
// The best guess for any number of rows, remembered for the sizes that this thread met last. tile < 0: none fits.
GemmPlan block_gemm_best(const BlockGemmProblem& problem);
cudaError_t block_gemm(const BlockGemmProblem& problem, const GemmPlan& plan, cudaStream_t stream);

}  // namespace trt_opt
