// A chain of blocks over words and its bridges to the tokens: a kernel each, or what is not for them block by block and bridge by bridge.
#include <algorithm>

#include "kernels.h"
#include "launch.cuh"
#include "tnt_bridge_launch.h"
#include "tnt_inner_launch.cuh"
#include "tnt_words_launch.h"
#include "tnt_words_wide.h"

namespace trt_opt {
namespace {

int64_t bytes_of(DType type) { return type == DType::kHalf ? 2 : 4; }
const void* on(const void* p, int64_t bytes) { return p ? static_cast<const unsigned char*>(p) + bytes : nullptr; }

// Bridge `j`, but for what it reads and writes.
TntBridgeProblem bridge_of(const TntWordsProblem& q, int j) {
    const int64_t bytes = bytes_of(q.inner.dtype), width = q.width, channels = q.channels;
    TntBridgeProblem one;
    one.dtype = q.inner.dtype, one.images = q.images, one.tokens = q.tokens, one.begin = q.begin, one.covered = q.covered, one.width = q.width, one.channels = q.channels;
    one.epsilon1 = q.epsilon1, one.epsilon2 = q.epsilon2;
    one.scale1 = on(q.scale1, j * width * bytes), one.bias1 = on(q.bias1, j * width * bytes), one.w = on(q.w, j * width * channels * bytes), one.b = on(q.b, j * channels * bytes);
    one.scale2 = on(q.scale2, j * channels * bytes), one.bias2 = on(q.bias2, j * channels * bytes);
    return one;
}

// Block `layer`, but for what it reads and writes.
TntInnerBlockProblem block_of(const TntWordsProblem& q, int layer) {
    TntInnerBlockProblem one = q.inner;
    const int64_t bytes = bytes_of(q.inner.dtype), c = q.inner.channels, hidden = q.inner.hidden, norm = q.inner.whole ? q.inner.tokens * c : c;
    auto advance = [&](const void*& p, int64_t elements) { p = on(p, layer * elements * bytes); };
    advance(one.scale1, norm), advance(one.bias1, norm), advance(one.scale2, norm), advance(one.bias2, norm);
    advance(one.w_qkv, 3 * c * c), advance(one.b_qkv, 3 * c), advance(one.w_proj, c * c), advance(one.b_proj, c);
    advance(one.w1, c * hidden), advance(one.b1, hidden), advance(one.w2, hidden * c), advance(one.b2, c);
    one.y = nullptr, one.workspace = nullptr;
    return one;
}

bool valid(const TntWordsProblem& q) {
    if (!tnt_inner_valid(q.inner) || q.layers < 1 || q.layers > kWordsMaxLayers || q.bridges < 0 || q.bridges > kWordsMaxBridges) return false;
    if (q.bridges == 0) return true;
    const int64_t patch = int64_t{q.inner.tokens} * q.inner.channels;
    if (!tnt_bridge_valid(bridge_of(q, 0)) || q.width % patch != 0 || q.inner.patches != q.images * q.covered * (q.width / patch)) return false;
    for (int j = 0; j < q.bridges; ++j)
        if (q.after[j] < (j > 0 ? q.after[j - 1] : 0) || q.after[j] > q.layers) return false;
    return true;
}

// Where words are: of each layer that a bridge reads in a place of its own in the workspace, of others by turns in two more; then what a block or a
// bridge of the separate ones needs. The last words are in `y` where that is given.
struct Rooms {
    int64_t words = 0, total = 0;  // bytes: of a place; of all
    int64_t spare = 0;             // where the two begin
    int64_t steps = 0;             // where the workspace of separate kernels begins
    int64_t told = 0;              // where the chain tells of its words
    int place[kWordsMaxLayers + 1];  // of words(i); -1: a spare one

    explicit Rooms(const TntWordsProblem& q) {
        auto room = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
        words = room(q.inner.patches * q.inner.tokens * q.inner.channels * bytes_of(q.inner.dtype));
        int places = 0;
        std::fill_n(place, kWordsMaxLayers + 1, -1);
        for (int j = 0; j < q.bridges; ++j)
            if (const int i = q.after[j]; i > 0 && place[i] < 0) place[i] = places++;
        spare = places * words;
        steps = spare + (places < q.layers - (place[q.layers] < 0) ? 2 * words : 0);
        told = room(steps + std::max(tnt_inner_block_workspace(q.inner), q.bridges > 0 ? tnt_bridge_workspace(bridge_of(q, 0)) : 0));
        total = told + (q.bridges > 0 ? q.layers * std::min<int64_t>(q.inner.patches, kChainMaxTelling) * 4 : 0);
    }
};

struct Words {
    const TntWordsProblem& q;
    Rooms rooms;

    explicit Words(const TntWordsProblem& q) : q(q), rooms(q) {}
    const void* read(int i) const { return i == 0 ? q.inner.x : write(i); }
    void* write(int i) const {
        if (i == q.layers && q.y) return q.y;
        const int64_t at = rooms.place[i] >= 0 ? rooms.place[i] * rooms.words : rooms.spare + i % 2 * rooms.words;
        return static_cast<unsigned char*>(q.workspace) + at;
    }
    void* steps() const { return static_cast<unsigned char*>(q.workspace) + rooms.steps; }
    uint32_t* told() const { return reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(q.workspace) + rooms.told); }
    bool wanted(int i) const { return rooms.place[i] >= 0 || (i == q.layers && q.y); }
    // Layers whose words somebody reads.
    int layers() const { return q.y ? q.layers : q.bridges > 0 ? q.after[q.bridges - 1] : 0; }
};

bool chain_arguments(const Words& words, WordsChainArgs& p) {
    TntInnerBlockProblem first = words.q.inner;
    first.y = words.q.y;
    if (device().major < 8 || !tnt_inner_arguments(first, p.inner)) return false;
    p.layers = words.layers();
    for (int i = 0; i < kInnerTensors; ++i) {
        const auto units = static_cast<int>(p.inner.parts[i].units);
        p.copies += units, p.head_copies += i < kQkv ? 0 : units;
    }
    for (int i = 0; i < kWordsMaxLayers; ++i) p.words[i] = i < p.layers && words.wanted(i + 1) ? static_cast<__half*>(words.write(i + 1)) : nullptr;
    return words_chain_bytes(p, 1) <= device().shared;
}

struct Shape {
    int rows, columns;
    int (*shared)(int width);
    WordsBridgesLauncher* launch;
};
template <class Tile> constexpr Shape shape(WordsBridgesLauncher* launch) {
    return {Tile::kRows, Tile::kColumns, Tile::bridge_bytes, launch};
}
const Shape kShapes[] = {shape<WordsTile64x128>(launch_words_bridges_64x128), shape<WordsTile32x128>(launch_words_bridges_32x128), shape<WordsTile16x128>(launch_words_bridges_16x128)};

static_assert(128 * kBridgeMaxCluster >= kWordsMaxChannels);
// While the chain goes on: one tile a block, small enough for two a multiprocessor, or one beside a block of the chain, and no more of them than
// so many rounds can take while the layers go by. The last layer's are all that is behind the chain then.
const Shape kSmallShape = shape<WordsTile32x64>(launch_words_bridges_32x64);
constexpr int kSmallRounds = 6;

// The largest tile that fits; null: none.
const Shape* bridges_shape(const Words& words) {
    const TntWordsProblem& q = words.q;
    if (q.inner.dtype != DType::kHalf || device().major < 9 || q.width > kWordsMaxWidth || q.channels > kWordsMaxChannels || q.width % 8 != 0 || q.channels % 8 != 0) return nullptr;
    if (!aligned_to(16, q.scale1, q.bias1, q.w, q.b, q.scale2, q.bias2)) return nullptr;
    for (int j = 0; j < q.bridges; ++j)
        if (!aligned_to(16, words.read(q.after[j]), q.out[j])) return nullptr;
    for (const Shape& s : kShapes)
        if (s.shared(q.width) <= device().shared) return &s;
    return nullptr;
}

bool small_tiles(const TntWordsProblem& q) {
    const int64_t tiles = (q.images * q.covered + kSmallShape.rows - 1) / kSmallShape.rows, cluster = (q.channels + kSmallShape.columns - 1) / kSmallShape.columns;
    return cluster <= kBridgeMaxCluster && kSmallShape.shared(q.width) <= device().shared / 2 && q.bridges * tiles * cluster <= int64_t{kSmallRounds} * device().multiprocessors;
}

// `telling`: of the chain's blocks.
cudaError_t bridges_in_one(const Words& words, const Shape& usual, uint32_t telling, cudaStream_t stream) {
    const TntWordsProblem& q = words.q;
    const bool small = telling > 0 && small_tiles(q);
    const Shape& s = small ? kSmallShape : usual;
    auto in = [](const void* p) { return static_cast<const __half*>(p); };
    WordsBridgesArgs p{};
    p.b = in(q.w), p.bias = in(q.b), p.scale = in(q.scale1), p.shift = in(q.bias1), p.epsilon = q.epsilon1, p.k = q.width, p.n = q.channels;
    p.end.scale = in(q.scale2), p.end.shift = in(q.bias2), p.end.n = q.channels, p.end.epsilon = q.epsilon2;
    if (telling > 0) p.told = words.told(), p.telling = telling;
    std::copy_n(q.after, q.bridges, p.after), p.last = static_cast<uint32_t>(q.bridges - 1);
    WordsBridgesLaunch how;
    how.cluster = (q.channels + s.columns - 1) / s.columns, how.shared = s.shared(q.width);
    p.by_columns = FastDiv(static_cast<uint32_t>(how.cluster));
    const int64_t step = tnt_bridge_images(bridge_of(q, 0));
    for (int64_t from = 0; from < q.images; from += step) {
        const int64_t images = std::min(step, q.images - from), clusters = device().multiprocessors / how.cluster;
        p.rows = images * q.covered;
        for (int j = 0; j < q.bridges; ++j) {
            p.a[j] = in(words.read(q.after[j])) + from * q.covered * q.width;
            p.out[j] = static_cast<__half*>(q.out[j]) + from * q.tokens * q.channels;
        }
        p.end.at = BridgeTokens(static_cast<uint32_t>(images), static_cast<uint32_t>(q.tokens), static_cast<uint32_t>(q.begin), static_cast<uint32_t>(q.covered));
        // No more clusters than run at once, and no more than these tiles' number for each needs.
        const int64_t tiles = (p.rows + s.rows - 1) / s.rows, most = small ? tiles : std::clamp<int64_t>(clusters / q.bridges, 1, tiles), each = (tiles + most - 1) / most, groups = (tiles + each - 1) / each;
        p.tiles = static_cast<uint32_t>(tiles), p.by_groups = FastDiv(static_cast<uint32_t>(groups));
        p.once = groups * how.cluster <= device().multiprocessors;
        how.blocks = static_cast<uint32_t>(q.bridges * groups * how.cluster);
        if (const cudaError_t status = s.launch(p, how, stream); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

// Ways of all bridges at once (`way`): tiles of mma.sync (1), or warpgroups of 64 or 128 columns a block (2, 3). The most columns that there are enough of were the fastest throughout.
constexpr int32_t kTiles = 1, kWide64 = 2, kWide128 = 3;
constexpr int wide_columns(int32_t way) { return way == kWide64 ? 64 : 128; }

int32_t way_of(const TntWordsProblem& q, int32_t way, const void* const* read) {
    for (const int32_t wide : {kWide128, kWide64})
        if ((way == 0 || way == wide) && words_wide_valid(q, wide_columns(wide), read)) return wide;
    return kTiles;
}

template <class T> __global__ void zero_kernel(T* y, int64_t count) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) y[i] = from_float<T>(0.f);
}

// Onto zeros, in place.
cudaError_t bridge_alone(const Words& words, int j, cudaStream_t stream) {
    const TntWordsProblem& q = words.q;
    const int64_t count = q.images * q.tokens * q.channels;
    constexpr int kThreads = 256;
    const auto blocks = static_cast<uint32_t>(std::min<int64_t>((count + kThreads - 1) / kThreads, int64_t{16} * device().multiprocessors));
    if (q.inner.dtype == DType::kHalf) zero_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<__half*>(q.out[j]), count);
    else zero_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<float*>(q.out[j]), count);
    if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
    TntBridgeProblem one = bridge_of(q, j);
    one.words = words.read(q.after[j]), one.x = one.y = q.out[j], one.workspace = words.steps();
    return tnt_bridge(one, stream);
}

}  // namespace

cudaError_t tnt_words(const TntWordsProblem& q, cudaStream_t stream, int32_t way) {
    if (!valid(q)) return cudaErrorInvalidValue;
    if (q.inner.patches == 0) return cudaSuccess;
    const Words words(q);
    if (words.rooms.total > 0 && (!q.workspace || !aligned_to(16, q.workspace))) return cudaErrorInvalidValue;
    WordsChainArgs chain{};
    const Shape* const shape = q.bridges > 0 ? bridges_shape(words) : nullptr;
    const void* read[kWordsMaxBridges] = {};
    for (int j = 0; j < q.bridges; ++j) read[j] = words.read(q.after[j]);
    way = shape ? way_of(q, way, read) : kTiles;
    uint32_t telling = 0;
    if (words.layers() > 0 && chain_arguments(words, chain)) {
        const bool narrow = q.inner.channels / q.inner.heads <= 8;
        // Only one kernel behind the chain may look while it goes on.
        if (shape && tnt_bridge_images(bridge_of(q, 0)) >= q.images) chain.told = words.told();
        if (const cudaError_t status = narrow ? launch_words_chain_8(chain, telling, stream) : launch_words_chain_16(chain, telling, stream); status != cudaSuccess) return status;
    } else {
        for (int i = 0; i < words.layers(); ++i) {
            TntInnerBlockProblem one = block_of(q, i);
            one.x = words.read(i), one.y = words.write(i + 1), one.workspace = words.steps();
            if (const cudaError_t status = tnt_inner_block(one, stream); status != cudaSuccess) return status;
        }
    }
    if (q.bridges == 0) return cudaSuccess;
    if (way != kTiles) return words_wide(q, wide_columns(way), read, telling > 0 ? words.told() : nullptr, telling, stream);
    if (shape) return bridges_in_one(words, *shape, telling, stream);
    for (int j = 0; j < q.bridges; ++j)
        if (const cudaError_t status = bridge_alone(words, j, stream); status != cudaSuccess) return status;
    return cudaSuccess;
}

// What the device and the pointers say is not looked at, so room is kept for the case that they do not suit the two kernels.
int64_t tnt_words_workspace(const TntWordsProblem& q) { return valid(q) ? Rooms(q).total : 0; }

}  // namespace trt_opt
