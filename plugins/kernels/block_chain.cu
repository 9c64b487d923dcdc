// Chooses how a chain of blocks is cut up, and runs it: in float16 where the device has warpgroups (TRT_OPT_SM90A: this file is compiled for sm_90a) as one kernel, or in windows as one a
// pair; else block by block, with weights that are laid out anew before each.
#include "block_chain.h"

#include <algorithm>
#include <mutex>

#include "block_chain.cuh"
#include "block_chain_pair.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace trt_opt {
namespace {

constexpr int kSlots = 256, kSlotTickets = 32, kSlotWords = kSlotTickets + kChainQuadTickets;  // a barrier has a line of the cache to itself; then come tickets of quads
__device__ uint32_t slot_barriers[kSlots * kSlotWords];

int64_t parts(int64_t v, int64_t of) { return (v + of - 1) / of; }
int64_t ceil8(int64_t v) { return parts(v, 8) * 8; }
int64_t inner_of(const BlockChainProblem& q) { return int64_t{q.heads} * q.dim; }
// Contracted elements that lie together in the packed weights.
int depth_of(int64_t k) { return k % 128 == 0 ? 128 : k % 64 == 0 ? 64 : k % 32 == 0 ? 32 : 16; }

// Where a pair's weights are, and how many elements they have.
struct PairWeights {
    int64_t qkv = 0, proj, up, down, all;
    explicit PairWeights(const BlockChainProblem& q) : proj(3 * q.channels * inner_of(q)), up(proj + q.channels * inner_of(q)), down(up + int64_t{q.channels} * q.hidden), all(down + int64_t{q.channels} * q.hidden) {}
};
int64_t pair_weights(const BlockChainProblem& q) { return PairWeights(q).all; }
int64_t quad_columns(const BlockChainProblem& q) { return int64_t{4} * q.quads.channels; }
int64_t quad_weights(const BlockChainProblem& q) { return quad_columns(q) * q.channels; }
int64_t quad_vectors(const BlockChainProblem& q) { return q.quads.channels > 0 ? int64_t{3} * q.channels : 0; }
int64_t bias_elements(const BlockChainProblem& q) { return q.bias ? q.heads * q.group_tokens() * ceil8(q.group_tokens()) : 0; }
// Where a pair's vectors are, and how many elements they have.
struct PairVectors {
    int64_t qkv = 0, bias, proj, up, down, all;
    explicit PairVectors(const BlockChainProblem& q) : bias(3 * inner_of(q)), proj(bias + bias_elements(q)), up(proj + q.channels), down(up + q.hidden), all(down + q.channels) {}
};
int64_t pair_vectors(const BlockChainProblem& q) { return PairVectors(q).all; }

bool valid(const BlockChainProblem& q) {
    if (q.images < 0 || q.tokens < 1 || q.channels < 16 || q.channels > kChainMaxChannels || q.hidden < 16 || q.hidden > kChainMaxHidden || q.heads < 1 || q.dim < 1) return false;
    if (q.pairs < 1 || q.pairs > kChainMaxPairs || q.channels % 16 != 0 || q.hidden % 16 != 0 || inner_of(q) % 16 != 0 || inner_of(q) > kChainMaxChannels) return false;
    const WindowGrid& w = q.window;
    if (const auto& m = q.quads; m.channels != 0) {
        if (!w.used() || m.channels < 16 || m.channels % 16 != 0 || m.channels > kMlpMaxHidden / 4 || m.grid_h < 1 || m.grid_w < 1) return false;
        if ((m.grid_h - 1) / 2 + 1 != w.grid_h || (m.grid_w - 1) / 2 + 1 != w.grid_w || q.images * m.grid_h * m.grid_w > std::min(QuadMap::kMostTokens, INT32_MAX / m.channels)) return false;
        if (!std::all_of(m.order, m.order + 4, [](int quadrant) { return quadrant >= 0 && quadrant <= 3; })) return false;
    }
    if (w.used()) {
        if (q.dim != 32 || w.window_w < 1 || w.grid_h < 1 || w.grid_w < 1 || w.shift_h < 0 || w.shift_w < 0 || w.window_tokens() > kChainMaxWindow) return false;
        if (int64_t{w.grid_h} * w.grid_w != q.tokens) return false;
    } else if ((q.dim != 32 && q.dim != 64) || q.tokens > kChainMaxTokens || q.shifted != 0) {
        return false;
    }
    return q.images * q.tokens <= INT32_MAX / kChainMaxHidden;
}

// What the phases' units are.
struct Plan {
    int heads = 0, merge = 0, up = 0, down = 0, split = 0, quads = 0, split_quads = 0;  // tiles by number; split: a power of two
    float cost = 0;
};
int32_t tactic_of(const Plan& p) { return 1 + (p.heads | p.merge << 3 | p.up << 6 | p.down << 9 | p.split << 12 | p.quads << 15 | p.split_quads << 18); }
Plan plan_of(int32_t tactic) {
    const int32_t t = tactic - 1;
    return {t & 7, t >> 3 & 7, t >> 6 & 7, t >> 9 & 7, t >> 12 & 7, t >> 15 & 7, t >> 18};
}

// Rows of a problem as the kernel cuts them.
struct Cut {
    int groups, group_tokens, group_tiles, tile_rows, row_tiles, rows;
};
// `rows` tokens in as few tiles as they fit in, all but the last of one size.
void cut_rows(int64_t rows, int& tiles, int& size) {
    tiles = static_cast<int>(std::max<int64_t>(parts(rows, kChainRows), 1));
    size = static_cast<int>(std::max<int64_t>(ceil8(parts(rows, tiles)), 8));
    tiles = static_cast<int>(std::max<int64_t>(parts(rows, size), 1));
}
Cut cut(const BlockChainProblem& q) {
    Cut c{};
    c.groups = static_cast<int>(q.images * q.groups()), c.group_tokens = static_cast<int>(q.group_tokens());
    cut_rows(q.group_tokens(), c.group_tiles, c.tile_rows);
    cut_rows(q.images * q.tokens, c.row_tiles, c.rows);
    return c;
}

int pieces_of(const BlockChainProblem& q) {
    for (const int pieces : {3, 6, 12, 16})
        if (q.channels <= 64 * pieces && (q.window.used() || pieces > 3 || q.dim == 32)) return pieces;
    return 16;
}

constexpr int kSharers[kChainTiles] = {4, 4, 2, 2, 2, 1};
// Contracted elements of a stage of the ring: those that lie together, or a part of them.
int stage_of(int width, int depth) {
    while (depth > 16 && width * depth * 2 > kChainStage) depth /= 2;
    return depth;
}
bool fits_tile(int tile, int most, int64_t columns, int depth) {
    if (tile < 0 || tile > most || columns % kChainWidths[tile] != 0) return false;
    const int stage = stage_of(kChainWidths[tile], depth);
    return kChainWidths[tile] * stage * 2 <= kChainStage && stage / 16 % kSharers[tile] == 0;
}

constexpr int kMostSplit = 3;
constexpr int kHeadWidth = 96;  // queries, keys and values of a head in windows

// Shared memory of a plan; too few stages where it has no room for them.
struct Shared {
    int rows = 0, stages = 0, all = 0;
};
Shared shared_of(const BlockChainProblem& q, const Plan& plan) {
    const Cut c = cut(q);
    const int beyond = kChainRows * 16;  // what the tensor cores read of rows that a tile does not have
    Shared s;
    s.rows = std::max({q.channels / 8 * chain::kNormalStep, chain::kExchange + chain::kPacked, static_cast<int>(inner_of(q)) * c.tile_rows * 2 + beyond, (q.hidden >> plan.split) * c.rows * 2 + beyond});
    if (q.quads.channels > 0) s.rows = std::max(s.rows, static_cast<int>(std::min<int64_t>(quad_columns(q) >> plan.split_quads, kChainQuads)) / 8 * chain::kNormalStep);
    if (!q.window.used()) s.rows = std::max({s.rows, (2 * c.group_tiles + 1) * c.tile_rows * q.dim * 2 + beyond, q.dim * kChainRows * 4 * 3});
    s.rows = (s.rows + 127) / 128 * 128;
    s.stages = std::min(kChainStages, (device().shared - s.rows - chain::kFixedBytes) / kChainStage);
    s.all = s.rows + s.stages * kChainStage + chain::kFixedBytes;
    return s;
}

// Parts of a workspace, one behind the other.
struct Parts {
    int64_t bytes = 0;
    int64_t take(int64_t size) {
        const int64_t at = bytes;
        bytes += (size + 255) / 256 * 256;
        return at;
    }
};

constexpr int kFlowCopies = 3;
constexpr int64_t kMostPartial = int64_t{16} << 20;
int64_t partial_of(const BlockChainProblem& q, int64_t row_tiles, int split) { return split > 1 ? row_tiles * q.channels * split * 256 : 0; }
// One copy of what pairs of sequences hand on (block_flow.cuh). MOST: as much as a problem of fewer images may take, too.
struct FlowParts {
    Parts parts;
    int64_t stream, middle, heads_out, hidden, qkv, partial;
    FlowParts(const BlockChainProblem& q, bool most, int split) {
        const Cut c = cut(q);
        const int64_t tokens = q.images * q.tokens, size = tokens * q.channels * 2, queries = int64_t{c.groups} * c.group_tiles * c.tile_rows;
        const int64_t row_tiles = most ? ::trt_opt::parts(tokens, kChainRows) : c.row_tiles, rows = most ? row_tiles * kChainRows : row_tiles * c.rows;
        stream = parts.take(q.pairs > 1 ? size : 0), middle = parts.take(size), heads_out = parts.take(queries * inner_of(q) * 2);
        hidden = parts.take(rows * q.hidden * 2), qkv = parts.take(queries * 3 * inner_of(q) * 2);
        partial = parts.take(most ? std::min(partial_of(q, row_tiles, 8), kMostPartial) : partial_of(q, row_tiles, split));
    }
};

bool fits_quads(const BlockChainProblem& q, int tile, int split) {
    const int depth = depth_of(quad_columns(q));
    if (!fits_tile(tile, kChainQuadTiles - 1, q.channels, depth) || split < 0 || split > kMostSplit || quad_columns(q) / stage_of(kChainWidths[tile], depth) % (1 << split) != 0) return false;
    return split == 0 || int64_t{cut(q).row_tiles} * (q.channels / kChainWidths[tile]) <= kChainQuadTickets;
}
bool fits(const BlockChainProblem& q, const Plan& p) {
    if (!q.window.used() && (partial_of(q, cut(q).row_tiles, 1 << p.split) > kMostPartial || FlowParts(q, false, 1 << p.split).parts.bytes > INT32_MAX)) return false;
    constexpr int kFewest = 3;
    const int64_t inner = inner_of(q);
    const int dc = depth_of(q.channels), di = depth_of(inner), dh = depth_of(q.hidden);
    if (q.quads.channels == 0 ? p.quads != 0 || p.split_quads != 0 : !fits_quads(q, p.quads, p.split_quads)) return false;
    const bool heads = q.window.used() ? p.heads == 0 && stage_of(kHeadWidth, dc) / 16 % 2 == 0 : fits_tile(p.heads, 4, 3 * inner, dc);
    return heads && fits_tile(p.merge, 3, q.channels, di) && fits_tile(p.up, 5, q.hidden, dc) && fits_tile(p.down, 3, q.channels, dh) && p.split <= kMostSplit &&
           q.hidden / stage_of(kChainWidths[p.down], dh) % (1 << p.split) == 0 && shared_of(q, p).stages >= kFewest;
}

bool has_kernel(const BlockChainProblem& q) {
#ifdef TRT_OPT_SM90A
    return q.dtype == DType::kHalf && device().major == 9 && !(q.dim == 32 && !q.window.used() && q.channels > 768);
#else
    return false;
#endif
}

// Clocks, roughly: what a unit takes beside its products, with a norm and without, and to share out the contracted index, and each sharer.
constexpr float kNormalUnit = 1500, kUnit = 1000, kShareOut = 1600;
// Bytes a clock that a multiprocessor gets of the second-level cache, and a sharer, where rows come through registers and by the copy engine.
struct Rates {
    float bytes, sharer;
};
constexpr Rates kByRegisters{40, 100}, kByCopies{64, 400};
float unit_cost(int tile, int64_t k, int rows, bool normal, int64_t waves_weights, const Rates& rates) {
    const auto width = static_cast<float>(kChainWidths[tile]);
    const float groups = 4.f / static_cast<float>(kSharers[tile]);
    const float product = static_cast<float>(k) / 16 * std::max(width / 2, 16 * groups + width / 4);
    const float bytes = static_cast<float>(k) * 2 * ((normal ? 0.f : static_cast<float>(rows)) + (waves_weights > 1 ? width : width / 2));
    return (normal ? kNormalUnit : kUnit) + std::max(product, bytes / rates.bytes);
}
struct Choice {
    int tile, split;
    float cost;
};
std::vector<Choice> choices(int most, int64_t tiles, int64_t columns, int64_t k, int rows, bool normal, bool may_split, const Rates& rates) {
    std::vector<Choice> all;
    const int depth = depth_of(k);
    for (int tile = 0; tile <= most; ++tile) {
        if (!fits_tile(tile, most, columns, depth)) continue;
        for (int split = 0; split <= (may_split ? kMostSplit : 0); ++split) {
            if (k / stage_of(kChainWidths[tile], depth) % (1 << split) != 0) break;
            const int64_t units = tiles * (columns / kChainWidths[tile]) << split, waves = parts(units, device().multiprocessors);
            const float share_out = split > 0 ? kShareOut + rates.sharer * static_cast<float>(1 << split) : 0.f;
            all.push_back({tile, split, static_cast<float>(waves) * (unit_cost(tile, k >> split, rows, normal, waves, rates) + share_out)});
        }
    }
    std::sort(all.begin(), all.end(), [](const Choice& a, const Choice& b) { return a.cost < b.cost; });
    return all;
}

// Of quads, whose rows are read like those without a norm, and whose sums are so many clocks for each contracted element; each time that so many are read, their way and a barrier are waited for.
constexpr float kQuadElement = 2, kQuadRead = 900;
std::vector<Choice> quad_choices(const BlockChainProblem& q) {
    if (q.quads.channels == 0) return {{0, 0, 0}};
    const Cut c = cut(q);
    std::vector<Choice> all = choices(kChainQuadTiles - 1, c.row_tiles, q.channels, quad_columns(q), c.rows, false, true, kByRegisters);
    all.erase(std::remove_if(all.begin(), all.end(), [&](const Choice& choice) { return !fits_quads(q, choice.tile, choice.split); }), all.end());
    for (Choice& choice : all) {
        const int64_t waves = parts((int64_t{c.row_tiles} * (q.channels / kChainWidths[choice.tile])) << choice.split, device().multiprocessors), k = quad_columns(q) >> choice.split;
        choice.cost += static_cast<float>(waves) * (kQuadElement * static_cast<float>(k) + kQuadRead * static_cast<float>(parts(k, kChainQuads)));
    }
    std::sort(all.begin(), all.end(), [](const Choice& a, const Choice& b) { return a.cost < b.cost; });
    return all;
}

// Of second products, whose rows leave the ring so many stages: weights are to be on their way over the barriers, for each stage that is not there so many clocks more.
constexpr int kDeep = 8;
constexpr float kShallow = 400;
std::vector<Choice> down_choices(const BlockChainProblem& q, const Cut& c, const Rates& rates) {
    std::vector<Choice> all = choices(3, c.row_tiles, q.channels, q.hidden, c.rows, false, true, rates);
    for (Choice& choice : all) {
        Plan plan;
        plan.split = choice.split;
        choice.cost += kShallow * static_cast<float>(std::max(kDeep - shared_of(q, plan).stages, 0));
    }
    std::sort(all.begin(), all.end(), [](const Choice& a, const Choice& b) { return a.cost < b.cost; });
    return all;
}

// The best guess first, then those that differ from it in one phase.
std::vector<Plan> plans(const BlockChainProblem& q) {
    if (!valid(q) || q.images < 1 || !has_kernel(q)) return {};
    const Cut c = cut(q);
    const int64_t inner = inner_of(q);
    const int64_t queries = int64_t{c.groups} * c.group_tiles;
    const bool windows = q.window.used();
    const Rates rates = windows ? kByCopies : kByRegisters;
    const auto heads = windows ? std::vector<Choice>{{0, 0, 0}} : choices(4, queries, 3 * inner, q.channels, c.tile_rows, true, false, rates);
    const auto merge = choices(3, queries, q.channels, inner, c.tile_rows, false, false, rates), up = choices(5, c.row_tiles, q.hidden, q.channels, c.rows, true, false, rates), down = down_choices(q, c, rates),
               quads = quad_choices(q);
    std::vector<Plan> all;
    const auto add = [&](size_t h, size_t m, size_t u, size_t d, size_t n) {
        if (h >= heads.size() || m >= merge.size() || u >= up.size() || d >= down.size() || n >= quads.size()) return;
        const Plan p{heads[h].tile, merge[m].tile, up[u].tile, down[d].tile, down[d].split, quads[n].tile, quads[n].split, heads[h].cost + merge[m].cost + up[u].cost + down[d].cost + quads[n].cost};
        if (fits(q, p)) all.push_back(p);
    };
    add(0, 0, 0, 0, 0);
    for (size_t i = 1; i <= 2; ++i) add(0, 0, 0, i, 0), add(0, i, 0, 0, 0), add(0, 0, i, 0, 0), add(i, 0, 0, 0, 0);
    for (size_t i = 1; i <= 3; ++i) add(0, 0, 0, 0, i);
    std::stable_sort(all.begin(), all.end(), [](const Plan& a, const Plan& b) { return a.cost < b.cost; });
    return all;
}

// The phases of a plan.
void set_work(const BlockChainProblem& q, const Plan& plan, chain::Work (&work)[chain::kPhases + 1]) {
    const Cut c = cut(q);
    const int64_t inner = inner_of(q), queries = int64_t{c.groups} * c.group_tiles;
    // `at_once`: a unit's columns, of those of the weights.
    const auto set = [&](chain::Phase phase, int64_t tiles, int64_t k, int64_t columns, int at_once, int split, int64_t weights) {
        chain::Work& w = work[phase];
        const int of_tile = static_cast<int>(columns) / at_once;
        w.width = at_once, w.columns = static_cast<int>(columns), w.depth = depth_of(k), w.stage = stage_of(at_once, w.depth);
        w.chunks = static_cast<int>(k) / w.stage >> split, w.weights = static_cast<uint32_t>(weights), w.column_step = at_once;
        w.by_columns = FastDiv(static_cast<uint32_t>(of_tile)), w.by_split = FastDiv(1u << split), w.units = static_cast<int>(tiles) * of_tile << split;
    };
    const PairWeights at(q);
    if (q.window.used()) {
        set(chain::kHeads, queries, q.channels, 3 * inner, kHeadWidth, 0, at.qkv);
        work[chain::kHeads].column_step = 1;
    } else {
        set(chain::kHeads, queries, q.channels, 3 * inner, kChainWidths[plan.heads], 0, at.qkv);
        chain::Work& attend = work[chain::kAttend];
        attend.units = static_cast<int>(queries) * q.heads, attend.by_columns = FastDiv(static_cast<uint32_t>(q.heads));
    }
    set(chain::kMerge, queries, inner, q.channels, kChainWidths[plan.merge], 0, at.proj);
    set(chain::kUp, c.row_tiles, q.channels, q.hidden, kChainWidths[plan.up], 0, at.up);
    set(chain::kDown, c.row_tiles, q.hidden, q.channels, kChainWidths[plan.down], plan.split, at.down);
    if (q.quads.channels > 0) set(chain::kQuads, c.row_tiles, quad_columns(q), q.channels, kChainWidths[plan.quads], plan.split_quads, 0);
}

// What the kernel of windows hands on.
struct WindowParts {
    Parts parts;
    int64_t middle, heads_out, hidden, partial, quad_partial, quad_sums, barrier;
    explicit WindowParts(const BlockChainProblem& q) {
        const Cut c = cut(q);
        const int64_t tokens = q.images * q.tokens, queries = int64_t{c.groups} * c.group_tiles * kChainRows, rows = (parts_of(tokens) + 1) * kChainRows;
        middle = parts.take(tokens * q.channels * 2), heads_out = parts.take(queries * inner_of(q) * 2), hidden = parts.take(rows * q.hidden * 2);
        partial = parts.take((parts_of(tokens) + 1) * q.channels * 8 * 256);
        const bool quads = q.quads.channels > 0;
        quad_partial = parts.take(quads ? std::min((parts_of(tokens) + 1) * q.channels, int64_t{kChainQuadTickets} * kChainWidths[kChainQuadTiles - 1]) << kMostSplit << 8 : 0);
        quad_sums = parts.take(quads ? int64_t{kChainQuadTickets} << kMostSplit << 9 : 0), barrier = parts.take(kSlotWords * 4);
    }
    static int64_t parts_of(int64_t tokens) { return ::trt_opt::parts(tokens, kChainRows); }
};

cudaError_t run_kernel(const BlockChainProblem& q, const Plan& plan, int32_t slot, cudaStream_t stream) {
    const Cut c = cut(q);
    const Shared s = shared_of(q, plan);
    auto* const workspace = static_cast<unsigned char*>(q.workspace);
    const auto half = [&](int64_t at) { return reinterpret_cast<__half*>(workspace + at); };
    const int64_t inner = inner_of(q);
    ChainArgs p{};
    p.x = static_cast<const __half*>(q.x), p.weights = static_cast<const __half*>(q.weights), p.vectors = static_cast<const __half*>(q.vectors), p.y = static_cast<__half*>(q.y);
    p.between = static_cast<const __half*>(q.between);
    if (q.window.used()) {
        const WindowParts w(q);
        p.middle = half(w.middle), p.heads_out = half(w.heads_out), p.hidden = half(w.hidden);
        p.partial = reinterpret_cast<float2*>(workspace + w.partial), p.barrier = reinterpret_cast<uint32_t*>(workspace + w.barrier);
        p.quad_partial = reinterpret_cast<float2*>(workspace + w.quad_partial), p.quad_sums = reinterpret_cast<float2*>(workspace + w.quad_sums);
        p.unset = static_cast<int>(partial_of(q, c.row_tiles, 1 << plan.split) / 16);
    } else {
        const FlowParts copy(q, false, 1 << plan.split);
        p.copies = workspace, p.stream = half(copy.stream), p.middle = half(copy.middle), p.heads_out = half(copy.heads_out), p.hidden = half(copy.hidden);
        p.qkv = half(copy.qkv), p.partial = reinterpret_cast<float2*>(workspace + copy.partial), p.barrier = reinterpret_cast<uint32_t*>(workspace + kFlowCopies * copy.parts.bytes);
        p.copy_bytes = static_cast<uint32_t>(copy.parts.bytes), p.unset = static_cast<int>(copy.parts.bytes / 16), p.unset_share = static_cast<int>(parts(p.unset, device().multiprocessors));
    }
    if (slot >= 0) {
        void* all = nullptr;
        if (const cudaError_t status = cudaGetSymbolAddress(&all, slot_barriers); status != cudaSuccess) return cudaGetLastError(), status;
        p.barrier = static_cast<uint32_t*>(all) + slot * kSlotWords;
    } else if (const cudaError_t status = cudaMemsetAsync(p.barrier, 0, q.window.used() ? kSlotWords * 4 : 4, stream); status != cudaSuccess) {
        return cudaGetLastError(), status;
    }
    if (const auto& m = q.quads; m.channels > 0) {
        p.quads = QuadMap(m.grid_h, m.grid_w, m.order, m.channels), p.quad_x = p.x, p.quad_weights = p.weights, p.quad_vectors = p.vectors, p.quad_tickets = p.barrier + kSlotTickets;
        p.x = p.y, p.weights += quad_weights(q), p.vectors += quad_vectors(q);
        p.quad_each = 1.f / static_cast<float>(quad_columns(q)), p.tile_quads = plan.quads, p.split_quads = 1 << plan.split_quads;
        p.quad_reads = kChainQuads / stage_of(kChainWidths[plan.quads], depth_of(quad_columns(q)));
    }
    p.tokens = static_cast<int>(q.images * q.tokens), p.channels = q.channels, p.heads = q.heads, p.inner = static_cast<int>(inner), p.hidden_columns = q.hidden, p.pairs = q.pairs;
    p.each = 1.f / static_cast<float>(q.channels), p.epsilon = q.epsilon, p.scale = q.scale * chain::kLog2, p.mask_value = q.mask_value * chain::kLog2;
    p.power = ActivationPower(q.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu);
    p.shifted = q.shifted, p.bias = q.bias;
    p.groups = c.groups, p.group_tokens = c.group_tokens, p.group_tiles = c.group_tiles, p.tile_rows = c.tile_rows, p.bias_row = static_cast<int>(ceil8(c.group_tokens));
    p.row_tiles = c.row_tiles, p.rows = c.rows;
    p.tile_heads = plan.heads, p.tile_merge = plan.merge, p.tile_up = plan.up, p.tile_down = plan.down, p.split = 1 << plan.split;
    p.stages = s.stages, p.rows_bytes = s.rows;
    p.by_group_tiles = FastDiv(static_cast<uint32_t>(c.group_tiles));
    set_work(q, plan, p.work);
    p.one_wave = std::all_of(std::begin(p.work), std::end(p.work), [](const chain::Work& w) { return w.units <= device().multiprocessors; });
    if (const WindowGrid& g = q.window; g.used()) {
        WindowGrid plain = g;
        plain.shift_h = plain.shift_w = 0;
        p.plain = WindowMap(plain), p.rolled = WindowMap(g);
        const WindowRegions r(g);
        p.edge_y = r.edge_y, p.cut_y = r.cut_y, p.edge_x = r.edge_x, p.cut_x = r.cut_x, p.by_windows = r.by_windows, p.by_windows_x = r.by_windows_x, p.by_window_w = r.by_window_w;
    }
    const int pieces = pieces_of(q);
#define TRT_OPT_CASE(pieces_) \
    if (q.window.used() && pieces == pieces_) return launch_chain<pieces_>(p, s.all, stream);
    TRT_OPT_CHAINS_IN_WINDOWS(TRT_OPT_CASE)
#undef TRT_OPT_CASE
#define TRT_OPT_CASE(dim_, pieces_) \
    if (!q.window.used() && q.dim == dim_ && pieces == pieces_) return launch_flow<dim_, pieces_>(p, s.all, stream);
    TRT_OPT_CHAINS_OF_SEQUENCES(TRT_OPT_CASE)
#undef TRT_OPT_CASE
    return cudaErrorInvalidValue;
}

// A kernel a pair, in windows.

constexpr int32_t kPairTactic = 1 << 16;  // above those of plans
struct PairPlan {
    const ChainPairShape* shape = nullptr;  // null: no instance has room
    int own = 0, slots = 0, shared = 0;
};
PairPlan pair_plan(const BlockChainProblem& q) {
    if (!valid(q) || q.images < 1 || !has_kernel(q) || !q.window.used() || q.quads.channels > 0 || q.channels != inner_of(q)) return {};
    const int tokens = static_cast<int>(q.group_tokens());
    for (const ChainPairShape* sizes : {kChainPair3, kChainPair4})
        for (int i = 0; i < 2; ++i) {
            const ChainPairShape& s = sizes[i];
            if (s.groups != q.heads || tokens > s.keys || q.hidden % s.columns != 0) continue;
            const int fixed = s.fixed(tokens, q.hidden), place = s.groups * s.piece, left = device().shared - fixed;
            const int pieces = 2 * static_cast<int>(parts(q.hidden / s.columns, s.groups)), own = left < 0 ? 0 : std::min({left / place, pieces, kChainPairMaxSlots});
            const int places = own + s.shared_places;
            constexpr int kFewest = 3;  // a second product has its piece while the one before and the next first one have theirs
            if (left >= 0 && places >= std::min(kFewest, pieces)) return {&s, own, std::min({places, pieces, kChainPairMaxSlots}), fixed + own * place};
        }
    return {};
}

// More windows take several rounds, each of which fetches all weights anew.
bool prefers_pairs(const BlockChainProblem& q) { return q.images * q.groups() <= device().multiprocessors; }

cudaError_t run_pairs(const BlockChainProblem& q, const PairPlan& plan, cudaStream_t stream) {
    const PairWeights of(q);
    const PairVectors at(q);
    __half *const y = static_cast<__half*>(q.y), *const middle = reinterpret_cast<__half*>(static_cast<unsigned char*>(q.workspace) + WindowParts(q).middle);
    const __half *weights = static_cast<const __half*>(q.weights), *vectors = static_cast<const __half*>(q.vectors), *x = static_cast<const __half*>(q.x);
    for (int pair = 0; pair < q.pairs; ++pair, weights += of.all, vectors += at.all) {
        ChainPairArgs p{};
        // Windows of a shifted pair read what those of the one before wrote elsewhere, so pairs write to two places by turns.
        p.x = x, p.y = (q.pairs - pair) % 2 == 1 ? y : middle, x = p.y;
        p.w_qkv = weights + of.qkv, p.w_proj = weights + of.proj, p.w1 = weights + of.up, p.w2 = weights + of.down;
        p.b_qkv = vectors + at.qkv, p.scores_bias = q.bias ? vectors + at.bias : nullptr, p.b_proj = vectors + at.proj, p.b1 = vectors + at.up, p.b2 = vectors + at.down;
        p.windows = static_cast<uint32_t>(q.images * q.groups()), p.tokens = static_cast<int>(q.group_tokens()), p.bias_row = static_cast<int>(ceil8(p.tokens));
        p.hidden = q.hidden, p.hidden_depth = depth_of(q.hidden);
        p.own = plan.own, p.slots = plan.slots;
        plan.shape->set_places(p);
        p.epsilon = q.epsilon, p.scale = q.scale, p.mask_value = q.mask_value, p.power = ActivationPower(q.tanh_gelu ? Activation::kGeluTanh : Activation::kGelu);
        WindowGrid g = q.window;
        p.shifted = q.shifted >> pair & 1;
        if (!p.shifted) g.shift_h = g.shift_w = 0;
        p.map = WindowMap(g), p.regions = WindowRegions(g);
        const auto blocks = static_cast<uint32_t>(std::min<int64_t>(device().multiprocessors, p.windows));
        if (const cudaError_t status = plan.shape->launch(p, plan.shared, blocks, stream); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

// Block by block.

template <class T> __global__ void unpack_kernel(const T* from, T* to, int k, int n, int depth) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < int64_t{k} * n; i += int64_t{gridDim.x} * blockDim.x) {
        const int row = static_cast<int>(i / n), column = static_cast<int>(i % n), inside = row % depth;
        to[i] = from[int64_t{row / depth} * depth * n + ((column / 8 * (depth / 8) + inside / 8) * 8 + column % 8) * 8 + inside % 8];
    }
}
template <class T> __global__ void unpad_kernel(const T* from, T* to, int64_t rows, int columns, int padded) {
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * columns; i += int64_t{gridDim.x} * blockDim.x) to[i] = from[i / columns * padded + i % columns];
}
template <class T> __global__ void fill_kernel(T* to, int count, float value) {
    if (const int i = blockIdx.x * blockDim.x + threadIdx.x; i < count) to[i] = from_float<T>(value);
}

size_t size_of(DType t) { return t == DType::kHalf ? 2 : 4; }

AttnBlockProblem attn_of(const BlockChainProblem& q, bool shifted) {
    AttnBlockProblem a;
    a.dtype = q.dtype, a.images = q.images, a.channels = q.channels, a.epsilon = q.epsilon, a.tokens = q.tokens;
    a.attention.heads = q.heads, a.attention.dim = q.dim, a.attention.scale = q.scale, a.attention.window = q.window;
    if (!shifted) a.attention.window.shift_h = a.attention.window.shift_w = 0;
    if (q.bias) a.attention.bias_kind = AttentionBias::kDense, a.attention.bias_heads = q.heads;
    if (shifted) a.attention.mask_kind = AttentionMask::kShift, a.attention.mask_value = q.mask_value;
    return a;
}
MlpBlockProblem mlp_of(const BlockChainProblem& q) {
    MlpBlockProblem m;
    m.dtype = q.dtype, m.rows = q.images * q.tokens, m.channels = q.channels, m.hidden = q.hidden, m.epsilon = q.epsilon, m.tanh_gelu = q.tanh_gelu;
    return m;
}
PatchMergeBlockProblem merge_of(const BlockChainProblem& q) {
    PatchMergeBlockProblem m;
    m.merge.dtype = q.dtype, m.merge.images = q.images, m.merge.channels = q.quads.channels, m.merge.grid_h = q.quads.grid_h, m.merge.grid_w = q.quads.grid_w, m.merge.epsilon = q.epsilon;
    std::copy(q.quads.order, q.quads.order + 4, m.merge.order);
    m.columns = q.channels;
    return m;
}
struct BlockParts {
    Parts parts;
    int64_t middle, matrices, bias, ones, zeros, block;
    explicit BlockParts(const BlockChainProblem& q) {
        const auto element = static_cast<int64_t>(size_of(q.dtype));
        middle = parts.take(q.images * q.tokens * q.channels * element);
        const int64_t normal = std::max<int64_t>(q.channels, quad_columns(q));
        matrices = parts.take(std::max(pair_weights(q), quad_weights(q)) * element), bias = parts.take(bias_elements(q) * element);
        ones = parts.take(normal * element), zeros = parts.take(normal * element);
        block = parts.take(std::max({attn_block_workspace(attn_of(q, false)), attn_block_workspace(attn_of(q, true)), static_cast<int64_t>(mlp_block_workspace(mlp_of(q))), patch_merge_block_workspace(merge_of(q))}));
    }
};

template <class T> cudaError_t run_blocks(const BlockChainProblem& q, cudaStream_t stream) {
    constexpr int kBlocks = 528, kThreads = 256;
    const BlockParts w(q);
    auto* const workspace = static_cast<unsigned char*>(q.workspace);
    const auto at = [&](int64_t offset) { return reinterpret_cast<T*>(workspace + offset); };
    const int64_t inner = inner_of(q);
    const int normal = static_cast<int>(std::max<int64_t>(q.channels, quad_columns(q))), columns = static_cast<int>(parts(normal, kThreads));
    fill_kernel<T><<<columns, kThreads, 0, stream>>>(at(w.ones), normal, 1.f);
    fill_kernel<T><<<columns, kThreads, 0, stream>>>(at(w.zeros), normal, 0.f);
    const T *weights = static_cast<const T*>(q.weights), *vectors = static_cast<const T*>(q.vectors);
    const void* x = q.x;
    if (q.quads.channels > 0) {
        const int k = static_cast<int>(quad_columns(q));
        PatchMergeBlockProblem m = merge_of(q);
        unpack_kernel<T><<<kBlocks, kThreads, 0, stream>>>(weights, at(w.matrices), k, q.channels, depth_of(k));
        if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
        m.merge.x = q.x, m.merge.scale = at(w.ones), m.merge.bias = at(w.zeros), m.w = at(w.matrices), m.b = vectors, m.y = q.y, m.workspace = at(w.block);
        if (const cudaError_t status = patch_merge_block(m, stream); status != cudaSuccess) return status;
        weights += quad_weights(q), vectors += quad_vectors(q), x = q.y;
    }
    for (int pair = 0; pair < q.pairs; ++pair) {
        T* matrix = at(w.matrices);
        T* unpacked[4];
        const int sizes[4][2] = {{q.channels, static_cast<int>(3 * inner)}, {static_cast<int>(inner), q.channels}, {q.channels, q.hidden}, {q.hidden, q.channels}};
        for (int i = 0; i < 4; ++i) {
            const auto [k, n] = sizes[i];
            unpack_kernel<T><<<kBlocks, kThreads, 0, stream>>>(weights, matrix, k, n, depth_of(k));
            unpacked[i] = matrix, matrix += int64_t{k} * n, weights += int64_t{k} * n;
        }
        AttnBlockProblem a = attn_of(q, q.shifted >> pair & 1);
        MlpBlockProblem m = mlp_of(q);
        a.b_qkv = vectors, vectors += 3 * inner;
        if (q.bias) {
            unpad_kernel<T><<<kBlocks, kThreads, 0, stream>>>(vectors, at(w.bias), q.heads * q.group_tokens(), static_cast<int>(q.group_tokens()), static_cast<int>(ceil8(q.group_tokens())));
            a.attention.bias = at(w.bias), vectors += bias_elements(q);
        }
        a.b_proj = vectors, vectors += q.channels, m.b1 = vectors, vectors += q.hidden, m.b2 = vectors, vectors += q.channels;
        if (const cudaError_t status = cudaGetLastError(); status != cudaSuccess) return status;
        a.norm_scale = m.scale = at(w.ones), a.norm_bias = m.bias = at(w.zeros);
        a.w_qkv = unpacked[0], a.w_proj = unpacked[1], m.w1 = unpacked[2], m.w2 = unpacked[3];
        a.x = pair == 0 ? x : q.y, a.y = at(w.middle), m.x = a.y, m.y = q.y;
        if (q.between && pair > 0) a.residual = static_cast<const T*>(q.between) + int64_t{pair - 1} * q.images * q.tokens * q.channels;
        a.workspace = at(w.block);
        if (const cudaError_t status = attn_block(a, stream); status != cudaSuccess) return status;
        if (const cudaError_t status = mlp_block(m, at(w.block), stream); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

std::mutex slot_mutex;
bool slot_taken[kSlots];

}  // namespace

int64_t chain_weights(const BlockChainProblem& q) { return quad_weights(q) + q.pairs * pair_weights(q); }
int64_t chain_vectors(const BlockChainProblem& q) { return quad_vectors(q) + q.pairs * pair_vectors(q); }

int64_t block_chain_workspace(const BlockChainProblem& q) {
    if (!valid(q)) return 0;
    return std::max(q.window.used() ? WindowParts(q).parts.bytes : kFlowCopies * FlowParts(q, true, 1).parts.bytes + 128, BlockParts(q).parts.bytes);
}

std::vector<int32_t> block_chain_tactics(const BlockChainProblem& q) {
    std::vector<int32_t> tactics;
    for (const Plan& plan : plans(q)) tactics.push_back(tactic_of(plan));
    if (pair_plan(q).shape) tactics.insert(prefers_pairs(q) ? tactics.begin() : tactics.end(), kPairTactic);
    return tactics;
}

cudaError_t block_chain(const BlockChainProblem& q, cudaStream_t stream, int32_t tactic, int32_t slot) {
    if (!valid(q) || slot >= kSlots) return cudaErrorInvalidValue;
    if (q.images == 0) return cudaSuccess;
    if (!q.x || !q.weights || !q.vectors || !q.y || !q.workspace || (q.between && (q.window.used() || q.pairs < 2))) return cudaErrorInvalidValue;
    const bool aligned = aligned_to(16, q.x, q.weights, q.vectors, q.between, q.y) && aligned_to(128, q.workspace);
    if (aligned && has_kernel(q)) {
        if (tactic <= 0 ? prefers_pairs(q) : tactic == kPairTactic) {
            if (const PairPlan plan = pair_plan(q); plan.shape) return run_pairs(q, plan, stream);
        }
        if (tactic > 0 && fits(q, plan_of(tactic))) return run_kernel(q, plan_of(tactic), slot, stream);
        if (const std::vector<Plan> all = plans(q); !all.empty()) return run_kernel(q, all.front(), slot, stream);
    }
    // What the parts take.
    return q.dtype == DType::kHalf ? run_blocks<__half>(q, stream) : run_blocks<float>(q, stream);
}

int32_t chain_slot() {
    const std::lock_guard<std::mutex> lock(slot_mutex);
    for (int32_t i = 0; i < kSlots; ++i)
        if (!slot_taken[i]) return slot_taken[i] = true, i;
    return -1;
}
void give_back_chain_slot(int32_t slot) {
    const std::lock_guard<std::mutex> lock(slot_mutex);
    if (slot >= 0 && slot < kSlots) slot_taken[slot] = false;
}

}  // namespace trt_opt
