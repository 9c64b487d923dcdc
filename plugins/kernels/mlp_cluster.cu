#include "mlp_cluster.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "launch.cuh"
#include "mlp_cluster.cuh"

namespace trt_opt {
namespace {

constexpr int kThreads = 384, kMaxCluster = 16;
constexpr size_t kMostOffered = 4;  // row tiles and slices
// In an engine it was faster than two products at 192 channels, slower at 96, and in a network slower at 384 (plugins/NOTES.md).
constexpr int kLeastChannels = 128, kMostChannels = 256;

struct MlpClusterArgs {
    const __half *x, *residual;  // [rows, k]; residual may be null
    const __half *scale, *shift, *w1, *b1, *w2, *b2;
    __half* y;
    int64_t rows;
    int k, hidden, slice, cluster;
    bool late;                   // W2 is fetched after the first product
    bool once;                   // all clusters run at once: how the second-level cache keeps the weights
    float each, epsilon;         // 1 / k
    Activation activation;
    FastDiv by_cluster, by_own;  // own_tiles
    FastDiv by_first, by_second; // 16-byte pieces of a row of the slices of W1 and W2
};

// What a block has in shared memory: rows, the first weights, the second, bias, sums of columns and of rows. Before the rows come the fold has their place,
// after the first product what is hidden and the sums that blocks exchange have that of the first weights. Where there is no room for both weights
// the second ones are late: they come into the place of the first, and what is hidden and the sums have a place of their own instead.
template <class Tile> struct MlpClusterShared {
    __host__ __device__ static int rows_bytes(int k) { return max(2 * Tile::kRows * Tile::rows_row(k), Tile::fold_bytes(k)); }
    __host__ __device__ static int second_bytes(int k, int slice) { return 2 * slice * Tile::second_row(k); }
    __host__ __device__ static int first_bytes(int k, int slice, int cluster, bool late) {
        return max(2 * Tile::padded(k) * Tile::first_row(slice), late ? second_bytes(k, slice) : exchanged_bytes(k, slice, cluster));
    }
    static int bytes(int k, int slice, int cluster, bool late) {
        return rows_bytes(k) + first_bytes(k, slice, cluster, late) + (late ? exchanged_bytes(k, slice, cluster) : second_bytes(k, slice)) + 2 * Tile::padded_columns(k) + 4 * (2 * slice + Tile::kRowFloats);
    }
    __host__ __device__ static int exchanged_bytes(int k, int slice, int cluster) { return Tile::hidden_bytes(slice) + Tile::received_bytes(k, slice, cluster); }

private:
    __host__ __device__ static int max(int a, int b) { return a > b ? a : b; }
};

// Grid: tiles of rows times blocks of a cluster.
template <class Tile> __global__ void __launch_bounds__(Tile::kThreads, 1) mlp_cluster_kernel(const __grid_constant__ MlpClusterArgs p) {
#if __CUDA_ARCH__ >= 900
    using namespace ptx;
    using Shared = MlpClusterShared<Tile>;
    constexpr int BM = Tile::kRows, kWarps = Tile::kWarps, kParts = 4, kPart = 8 * 32;

    let_next_start();
    extern __shared__ __align__(16) unsigned char shared[];
    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    uint32_t rank;
    const int64_t row0 = int64_t{p.by_cluster.divmod(blockIdx.x, rank)} * BM;
    const int rows = static_cast<int>(min(int64_t{BM}, p.rows - row0)), hidden0 = static_cast<int>(rank) * p.slice, padded = Tile::padded(p.k);

    __half* const a = reinterpret_cast<__half*>(shared);
    __half *const scale = a, *const shift = scale + padded;
    float* const shares = reinterpret_cast<float*>(shift + padded);
    // Of the weights and what is exchanged two share a place.
    unsigned char *const place = shared + Shared::rows_bytes(p.k), *const place2 = place + Shared::first_bytes(p.k, p.slice, p.cluster, p.late);
    __half *const first = reinterpret_cast<__half*>(place), *const second = reinterpret_cast<__half*>(p.late ? place : place2);
    unsigned char* const exchanged = p.late ? place2 : place;
    __half* const bias2 = reinterpret_cast<__half*>(place2 + (p.late ? Shared::exchanged_bytes(p.k, p.slice, p.cluster) : Shared::second_bytes(p.k, p.slice)));
    float *const column_sums = reinterpret_cast<float*>(bias2 + Tile::padded_columns(p.k)), *const offsets = column_sums + p.slice;

    // Before the kernel before this one is done: weights. What is past the end is zeros.
    const uint64_t policy = weight_policy(p.once);
    {
        uint32_t piece;
        const int row_first = static_cast<int>(p.by_first.divmod(static_cast<uint32_t>(tid), piece)), step = Tile::kThreads / static_cast<int>(p.by_first.divisor), column = 8 * static_cast<int>(piece);
        const bool exists = hidden0 + column < p.hidden;
        const __half* from = p.w1 + (exists ? hidden0 + column : 0);
        if (row_first < step) {
#pragma unroll 4
            for (int row = row_first; row < padded; row += step) {
                const bool there = exists && row < p.k;
                copy16(first + row * Tile::first_row(p.slice) + column, there ? from + int64_t{row} * p.hidden : p.w1, there, policy);
            }
        }
        for (int c = 8 * tid; c < padded; c += 8 * Tile::kThreads) copy16(scale + c, c < p.k ? p.scale + c : p.scale, c < p.k), copy16(shift + c, c < p.k ? p.shift + c : p.shift, c < p.k);
    }
    commit_copies();
    auto fetch_second = [&] {
        uint32_t piece;
        const int row_first = static_cast<int>(p.by_second.divmod(static_cast<uint32_t>(tid), piece)), step = Tile::kThreads / static_cast<int>(p.by_second.divisor), column = 8 * static_cast<int>(piece);
        const bool exists = column < p.k;
        if (row_first < step) {
#pragma unroll 4
            for (int row = row_first; row < p.slice; row += step) {
                const bool there = exists && hidden0 + row < p.hidden;
                copy16(second + row * Tile::second_row(p.k) + column, there ? p.w2 + int64_t{hidden0 + row} * p.k + column : p.w2, there, policy);
            }
        }
    };
    if (!p.late) {
        fetch_second();
    } else {
        prefetch_weights(p.w2 + int64_t{hidden0} * p.k, static_cast<uint32_t>(min(p.slice, p.hidden - hidden0) * p.k * 2), static_cast<uint32_t>(warp), Tile::kWarps, policy);
    }
    for (int c = 8 * tid; c < p.k; c += 8 * Tile::kThreads) copy16(bias2 + c, p.b2 + c, true);
    commit_copies();
    const float bias = tid < p.slice && hidden0 + tid < p.hidden ? __half2float(p.b1[hidden0 + tid]) : 0.f;
    wait_copies<1>();
    __syncthreads();
    fold_cluster_mlp<Tile>(first, scale, shift, p.k, p.slice, shares, bias, column_sums, offsets);

    // A warp copies whole rows, in parts of as many pieces as lanes; from the fourth part on they are one.
    wait_for_previous();
#pragma unroll 1
    for (int part = 0; part < kParts; ++part) {
        const int begin = part * kPart, end = part + 1 < kParts ? min(begin + kPart, padded) : padded;
#pragma unroll 1
        for (int c = begin + 8 * lane; c < end; c += kPart) {
#pragma unroll 3
            for (int row = warp; row < BM; row += kWarps) {
                const bool exists = c < p.k && row < rows;
                const int64_t at = exists ? (row0 + row) * p.k + c : 0;
                __half* const to = a + row * Tile::rows_row(p.k) + c;
                if (p.residual) {
                    Pack<__half, 8> s;
                    if (exists) s.raw = *reinterpret_cast<const uint4*>(p.x + at), add_packs<__half, 8>(s, Pack<__half, 8>(*reinterpret_cast<const uint4*>(p.residual + at)));
                    *reinterpret_cast<uint4*>(to) = s.raw;
                } else {
                    copy16(to, p.x + at, exists);
                }
            }
        }
        commit_copies();
    }

    ClusterMlp m;
    m.k = p.k, m.slice = p.slice, m.cluster = p.cluster, m.rank = static_cast<int>(rank), m.by_own = p.by_own;
    m.each = p.each, m.epsilon = p.epsilon, m.activation = p.activation;
    m.rows = a, m.first = first, m.column_sums = column_sums, m.offsets = offsets, m.second = second, m.bias2 = bias2;
    m.row_floats = offsets + p.slice;
    m.hidden = reinterpret_cast<__half*>(exchanged), m.received = exchanged + Tile::hidden_bytes(p.slice);
    auto arrived = [&](int part) {
        // The second weights were asked for before the rows, if they are not late.
        if (part == 0) wait_copies<3>();
        else if (part == 1) wait_copies<2>();
        else if (part == 2) wait_copies<1>();
        else wait_copies<0>();
        __syncthreads();
        return part + 1 < kParts ? min(padded, (part + 1) * kPart) : padded;
    };
    auto first_done = [&] {
        if (p.late) fetch_second(), commit_copies();
    };
    cluster_mlp<Tile>(m, arrived, first_done, [&] { wait_copies<0>(); }, [&](int row) { return row < rows ? p.y + (row0 + row) * p.k : nullptr; });
#endif
}

// Calls f(tile, kernel) with the plan's instance.
template <class F> auto with_tile(const MlpClusterPlan& plan, F&& f) {
    auto use = [&](auto tile) { return f(tile, mlp_cluster_kernel<decltype(tile)>); };
    auto rows_of = [&](auto rows) {
        constexpr int kRows = decltype(rows)::value;
        if (plan.counted) return plan.half_sums ? use(ClusterMlpTile<kRows, kThreads, true, true>{}) : use(ClusterMlpTile<kRows, kThreads, false, true>{});
        return plan.half_sums ? use(ClusterMlpTile<kRows, kThreads, true>{}) : use(ClusterMlpTile<kRows, kThreads, false>{});
    };
    return plan.rows == 64 ? rows_of(std::integral_constant<int, 64>{}) : rows_of(std::integral_constant<int, 32>{});
}

int cluster_of(const MlpClusterPlan& plan, const MlpBlockProblem& q) { return (q.hidden + plan.slice - 1) / plan.slice; }
int64_t tiles_of(const MlpClusterPlan& plan, const MlpBlockProblem& q) { return (q.rows + plan.rows - 1) / plan.rows; }
int shared_of(const MlpClusterPlan& plan, const MlpBlockProblem& q, bool late) {
    return with_tile(plan, [&](auto tile, auto) { return MlpClusterShared<decltype(tile)>::bytes(q.channels, plan.slice, cluster_of(plan, q), late); });
}
bool late(const MlpClusterPlan& plan, const MlpBlockProblem& q) { return shared_of(plan, q, false) > device().shared; }
int shared_of(const MlpClusterPlan& plan, const MlpBlockProblem& q) { return shared_of(plan, q, late(plan, q)); }

// Whether the device can run the plan, as far as sizes tell.
bool sizes_fit(const MlpClusterPlan& plan, const MlpBlockProblem& q) {
    if (plan.rows != 32 && plan.rows != 64) return false;
    if (device().major < 9 || q.dtype != DType::kHalf || q.rows <= 0 || !q.norm) return false;
    // A row of either slice is copied by at most as many threads as there are.
    if (q.channels % 8 != 0 || q.hidden % 8 != 0 || q.channels > 8 * kThreads) return false;
    if (!with_tile(plan, [&](auto tile, auto) { return decltype(tile)::slice_valid(plan.slice); })) return false;
    const int cluster = cluster_of(plan, q);
    // A block by itself has nothing to count, and its store with a count would be an illegal instruction.
    if (plan.counted && cluster == 1) return false;
    return cluster <= kMaxCluster && shared_of(plan, q) <= device().shared && tiles_of(plan, q) * cluster <= INT32_MAX;
}

// Clusters that run at once, for plans whose sizes fit; remembered for what this thread met last.
int clusters_at_once(const MlpClusterPlan& plan, const MlpBlockProblem& q) {
    struct Entry {
        int device = -1, cluster = 0, shared = 0, clusters = 0;
        int32_t plan = 0;
    };
    thread_local Entry entries[32];
    const int cluster = cluster_of(plan, q), shared = shared_of(plan, q), id = device().id;
    Entry& e = entries[static_cast<uint32_t>(plan.id() % 256 * 7 + cluster * 3 + shared / 16) % 32];
    if (e.device == id && e.plan == plan.id() && e.cluster == cluster && e.shared == shared) return e.clusters;
    const int clusters = with_tile(plan, [&](auto, auto kernel) { return active_clusters(kernel, cluster, kThreads, shared); });
    e.device = id, e.plan = plan.id(), e.cluster = cluster, e.shared = shared, e.clusters = clusters;
    return clusters;
}

// The estimate's constants, not measured: clocks a nanosecond; what is before the rows are there and after the sums are; clocks of shared memory for 16 contracted
// elements of a warp's tile, four accesses; of GELU for a row of a thread's columns; bytes a clock through distributed shared memory; of each block more
// to wait for; bytes of weights a clock into a multiprocessor, and a nanosecond into all of them; clocks before the first of what is fetched late.
constexpr float kClock = 1.75f, kAround = 3000, kStep = 16, kSums = 1.2f, kActivate = 12, kExchanged = 15, kBlock = 30, kFetched = 40, kCacheBytes = 4000, kLate = 1000;

// Clusters read the weights once each, and those of large blocks seldom begin before the kernel ahead has ended, so that the fetch counts in full.
float cost(const MlpClusterPlan& plan, const MlpBlockProblem& q) {
    const auto groups = static_cast<float>(plan.rows / 32 * (plan.slice / 32)), channels = static_cast<float>(q.channels), rows = static_cast<float>(plan.rows);
    const auto cluster = static_cast<float>(cluster_of(plan, q)), slice = static_cast<float>(plan.slice);
    const float first = groups * channels / 16 * kStep * kSums, second = rows / 32 * channels / 32 * slice / 16 * kStep;
    const float activate = rows * slice * kActivate / 128;
    const float exchange = rows * channels * (plan.half_sums ? 2 : 4) * (cluster - 1) / cluster / kExchanged;
    const float weights = 4 * channels * slice;  // bytes, of a block
    const float fetch = std::max(weights / kFetched / kClock, weights * cluster * static_cast<float>(tiles_of(plan, q)) / kCacheBytes);
    return kAround + (first + second + activate + exchange + (late(plan, q) ? kLate : 0)) / kClock + kBlock * cluster + fetch;
}

}  // namespace

bool mlp_cluster_valid(const MlpClusterPlan& plan, const MlpBlockProblem& q) { return sizes_fit(plan, q) && clusters_at_once(plan, q) > 0; }

std::vector<MlpClusterPlan> mlp_cluster_plans(const MlpBlockProblem& q) {
    std::vector<MlpClusterPlan> plans;
    auto add = [&](MlpClusterPlan plan) {
        if (!sizes_fit(plan, q) || tiles_of(plan, q) > clusters_at_once(plan, q)) return;
        plan.cost = cost(plan, q);
        plans.push_back(plan);
    };
    if (q.channels < kLeastChannels || q.channels > kMostChannels) return plans;
    for (int rows : {32, 64}) {
        if (rows == 64 && q.rows <= 32) continue;
        for (int slice = 32; slice <= 256; slice += 32) {
            const bool counted = slice < q.hidden;
            const MlpClusterPlan plan{rows, slice, true, counted}, narrower{rows, slice - 32, true, counted};
            if (narrower.slice == 0 || !sizes_fit(narrower, q) || cluster_of(narrower, q) != cluster_of(plan, q)) add(plan);  // else wider for nothing
        }
    }
    std::sort(plans.begin(), plans.end(), [](const MlpClusterPlan& a, const MlpClusterPlan& b) { return a.cost < b.cost; });
    if (plans.size() > kMostOffered) plans.resize(kMostOffered);
    // Counting was worth 0.4 us at the sizes that were timed; the best is offered without it, and with sums in fp32, too.
    if (!plans.empty()) {
        const MlpClusterPlan best = plans.front();
        add({best.rows, best.slice, false, best.counted});
        if (best.counted) add({best.rows, best.slice, true, false});
    }
    return plans;
}

cudaError_t mlp_cluster(const MlpBlockProblem& q, const MlpClusterPlan& plan, cudaStream_t stream) {
    if (!sizes_fit(plan, q)) return cudaErrorInvalidValue;
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    const int cluster = cluster_of(plan, q), shared = shared_of(plan, q);
    MlpClusterArgs p{};
    p.x = in(q.x), p.residual = in(q.residual), p.scale = in(q.scale), p.shift = in(q.bias), p.w1 = in(q.w1), p.b1 = in(q.b1), p.w2 = in(q.w2), p.b2 = in(q.b2);
    p.y = static_cast<__half*>(q.y), p.rows = q.rows, p.k = q.channels, p.hidden = q.hidden, p.slice = plan.slice, p.cluster = cluster, p.late = late(plan, q);
    p.each = 1.f / static_cast<float>(q.channels), p.epsilon = q.epsilon, p.activation = q.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu;
    p.by_cluster = FastDiv(static_cast<uint32_t>(cluster)), p.by_first = FastDiv(static_cast<uint32_t>(plan.slice / 8));
    p.once = one_wave(tiles_of(plan, q) * cluster, kThreads, static_cast<size_t>(shared));
    return with_tile(plan, [&](auto tile, auto kernel) {
        using Tile = decltype(tile);
        p.by_own = FastDiv(static_cast<uint32_t>(Tile::own_tiles(q.channels, cluster))), p.by_second = FastDiv(static_cast<uint32_t>(Tile::padded_columns(q.channels) / 8));
        if (cluster > 8) {
            if (const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1); status != cudaSuccess) return cudaGetLastError(), status;
        }
        return launch_ahead(kernel, static_cast<uint32_t>(tiles_of(plan, q) * cluster), kThreads, static_cast<size_t>(shared), stream, cluster, p);
    });
}

}  // namespace trt_opt
