// Bridges of a chain over words on the warpgroup instructions: chooses the instance and launches it. TRT_OPT_SM90A: this file is compiled for sm_90a.
#include "tnt_words_wide.h"

#include <algorithm>

#include "launch.cuh"
#include "tensor_map.h"
#include "tnt_words_wide.cuh"

namespace trt_opt {
namespace {

struct Shape {
    int width, columns;
    int (*shared)(int n);
    cudaError_t (*launch)(const WideBridgesArgs&, uint32_t blocks, int cluster, cudaStream_t);
};
template <int CHUNKS, int COLUMNS> cudaError_t launch(const WideBridgesArgs& p, uint32_t blocks, int cluster, cudaStream_t stream) {
    using Tile = WideBridgesTile<CHUNKS, COLUMNS>;
    return launch_ahead(tnt_words_wide_kernel<Tile>, blocks, Tile::kThreads, Tile::shared(p.end.n), stream, cluster, p);
}
template <int CHUNKS, int COLUMNS> constexpr Shape shape() {
    using Tile = WideBridgesTile<CHUNKS, COLUMNS>;
    return {Tile::kWidth, COLUMNS, Tile::shared, launch<CHUNKS, COLUMNS>};
}
// TNT-S's patches, PyramidTNT's.
const Shape kShapes[] = {shape<6, 64>(), shape<6, 128>(), shape<8, 64>(), shape<8, 128>()};
constexpr int kRows = 64;

const Shape* shape_of(const TntWordsProblem& q, int columns) {
    for (const Shape& s : kShapes)
        if (s.width == q.width && s.columns == columns) return &s;
    return nullptr;
}
int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }

int at_once(const Shape& s, int channels) {
    constexpr int kReserved = 1024;  // of shared memory, by each block
    return device().multiprocessors * (2 * (s.shared(channels) + kReserved) <= device().shared + kReserved ? 2 : 1);
}

}  // namespace

bool words_wide_valid(const TntWordsProblem& q, int columns, const void* const* words) {
#ifdef TRT_OPT_SM90A
    if (device().major != 9 || !encode_tiled() || q.inner.dtype != DType::kHalf || q.bridges < 1 || q.images <= 0 || q.channels % 8 != 0 || q.channels < 64) return false;
    const Shape* const s = shape_of(q, columns);
    // A store that is counted where it goes is an illegal instruction outside of a cluster.
    const int64_t cluster = parts(q.channels, columns);
    if (!s || s->shared(q.channels) > device().shared || cluster < 2 || cluster > kBridgeMaxCluster || q.bridges * parts(q.images * q.covered, kRows) * cluster > INT32_MAX) return false;
    if (!aligned_to(16, q.scale1, q.bias1, q.w)) return false;
    for (int j = 0; j < q.bridges; ++j)
        if (!aligned_to(16, words[j], q.out[j])) return false;
    // Positions are 32-bit.
    return q.images * q.covered < INT32_MAX - kRows && q.images * q.tokens < INT32_MAX;
#else
    return false;
#endif
}

cudaError_t words_wide(const TntWordsProblem& q, int columns, const void* const* words, const uint32_t* told, uint32_t telling, cudaStream_t stream) {
    if (!words_wide_valid(q, columns, words)) return cudaErrorInvalidValue;
    const Shape& s = *shape_of(q, columns);
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    WideBridgesArgs p{};
    if (!encode(p.b, q.w, int64_t{q.bridges} * q.width, q.channels, 64)) return cudaErrorInvalidValue;
    for (int j = 0; j < q.bridges; ++j) p.a[j] = in(words[j]), p.out[j] = static_cast<__half*>(q.out[j]), p.after[j] = q.after[j];
    p.bias = in(q.b), p.scale = in(q.scale1), p.shift = in(q.bias1), p.epsilon = q.epsilon1;
    p.end.scale = in(q.scale2), p.end.shift = in(q.bias2), p.end.n = q.channels, p.end.epsilon = q.epsilon2;
    p.end.at = BridgeTokens(static_cast<uint32_t>(q.images), static_cast<uint32_t>(q.tokens), static_cast<uint32_t>(q.begin), static_cast<uint32_t>(q.covered));
    p.each = 1.f / static_cast<float>(q.channels), p.last_each = 1.f / static_cast<float>((q.channels + 63) % 64 + 1);
    p.rows = q.images * q.covered, p.last = static_cast<uint32_t>(q.bridges - 1), p.told = told, p.telling = telling;
    const int64_t cluster = parts(q.channels, columns), tiles = parts(p.rows, kRows);
    // A tile a block where they go while the chain does; else no more clusters than run at once, and no more than these tiles' number for each needs.
    const int64_t most = told ? tiles : std::clamp<int64_t>(at_once(s, q.channels) / cluster / q.bridges, 1, tiles), each = parts(tiles, most), groups = parts(tiles, each);
    p.by_columns = FastDiv(static_cast<uint32_t>(cluster)), p.by_groups = FastDiv(static_cast<uint32_t>(groups)), p.tiles = static_cast<uint32_t>(tiles);
    p.once = groups * cluster <= device().multiprocessors;
    return s.launch(p, static_cast<uint32_t>(q.bridges * groups * cluster), static_cast<int>(cluster), stream);
}

}  // namespace trt_opt
