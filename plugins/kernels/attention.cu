// Chooses the attention kernel and how the work is cut into blocks.
#include <algorithm>

#include "attention_launch.cuh"

namespace trt_opt {

cudaError_t attention_f32(const AttentionProblem&, cudaStream_t);

namespace {

int padded_head(const AttentionProblem& q) {
    const int size = std::max(q.dim, q.value_dim);
    return size <= 8 ? 8 : size <= 16 ? 16 : size <= 32 ? 32 : size <= 64 ? 64 : 128;
}

// True if rows can be read and written `pack` halves at a time.
bool wide_rows(const AttentionProblem& q, int pack) {
    auto fits = [&](const HeadView& v) {
        return v.batch % pack == 0 && v.token % pack == 0 && v.head % pack == 0 && aligned_to(2 * pack, v.base);
    };
    return q.dim % pack == 0 && q.value_dim % pack == 0 && fits(q.q) && fits(q.k) && fits(q.v) && aligned_to(2 * pack, q.out);
}

int pack_of(int head) { return head == 8 ? 2 : head == 16 ? 4 : 8; }

bool resident_size(const AttentionProblem& q) { return q.keys <= 64 && padded_head(q) <= 32; }

// Whether up to four warps a head would have many queries each, and most multiprocessors none.
bool few_heads(const AttentionProblem& q) { return q.queries > 64 && q.batch * q.heads < multiprocessors(); }

cudaError_t run_resident(const AttentionProblem& problem, const AttentionArgs<__half>& p, int tactic, cudaStream_t stream) {
    const int head = padded_head(problem);
    const int query_tiles = (p.n + 15) / 16;
    const int64_t period = std::min(p.period, p.batch), images = (p.batch + period - 1) / period;
    const int64_t work = p.batch * p.heads;
    const int sm = multiprocessors();

    ResidentLaunch how{};
    how.tiles = (p.m + 7) / 8;
    how.wide = wide_rows(problem, pack_of(head));
    const int most = query_tiles >= 4 ? 4 : query_tiles >= 2 ? 2 : 1;
    if (tactic == kResident1) how.split = 1;
    else if (tactic == kResident2) how.split = 2;
    else if (tactic == kResident4 || tactic == kDirect) how.split = 4;
    else how.split = work >= int64_t{12} * sm ? 1 : work >= int64_t{6} * sm ? 2 : 4;
    how.split = std::min(how.split, most);
    how.warps = 4;
    const int together = how.warps / how.split;  // batch rows of a head a block works on at a time

    AttentionArgs<__half> args = p;
    args.period = period;
    const bool biased = p.bias_kind != AttentionBias::kNone || p.mask_kind != AttentionMask::kNone;
    const size_t shared = size_t{16} * 32 * (how.tiles <= 2 ? 2 : how.tiles <= 4 ? 4 : how.tiles <= 7 ? 7 : 8) * query_tiles;
    const bool direct = tactic == kDirect || (tactic == kAuto && work * how.split <= int64_t{8} * sm);
    how.staged = biased && !direct && images > together && shared <= 48 * 1024;
    int64_t blocks;
    if (how.staged) {
        // The bias is gathered once a block: as many blocks as run at once, each with an equal share.
        const int resident = head == 8 ? resident_blocks<8>(args, how) : head == 16 ? resident_blocks<16>(args, how) : resident_blocks<32>(args, how);
        const int64_t target = int64_t{sm} * resident, each = (images * p.heads * period + target - 1) / target;
        args.per_block = std::min((each + together - 1) / together, (images + together - 1) / together) * together;
        blocks = (images + args.per_block - 1) / args.per_block * period * p.heads;
    } else {
        if (direct) how.warps = how.split;
        blocks = (work * how.split + how.warps - 1) / how.warps;
    }
    if (blocks > (int64_t{1} << 30)) return cudaErrorInvalidValue;
    how.blocks = static_cast<uint32_t>(blocks);
    switch (head) {
        case 8: return launch_resident<8>(args, how, stream);
        case 16: return launch_resident<16>(args, how, stream);
        default: return launch_resident<32>(args, how, stream);
    }
}

cudaError_t run_stream(const AttentionProblem& problem, const AttentionArgs<__half>& p, int tactic, cudaStream_t stream) {
    const int head = padded_head(problem);
    const int64_t query_tiles = (p.n + 15) / 16, work = p.batch * p.heads * query_tiles;
    const int sm = multiprocessors();
    StreamLaunch how{};
    how.wide = wide_rows(problem, pack_of(head));
    how.warps = 4;
    if (tactic == kStream1) how.parts = 1;
    else if (tactic == kStream2) how.parts = 2;
    else if (tactic == kStream4) how.parts = 4;
    else how.parts = p.m <= 64 || work >= int64_t{12} * sm ? 1 : work >= int64_t{6} * sm ? 2 : 4;
    if (how.parts == 1) {
        if (work < int64_t{4} * sm) {
            how.warps = work < sm ? 1 : 2;
        } else {
            // Fewer idle warps where the query tiles do not fill blocks of four.
            how.warps = (query_tiles + 2) / 3 * 3 < (query_tiles + 3) / 4 * 4 ? 3 : 4;
        }
    }
    const int64_t tiles = how.warps / how.parts;
    const int64_t blocks = p.batch * p.heads * ((query_tiles + tiles - 1) / tiles);
    if (blocks > (int64_t{1} << 30)) return cudaErrorInvalidValue;
    how.blocks = static_cast<uint32_t>(blocks);
    switch (head) {
        case 8: return launch_stream<8>(p, how, stream);
        case 16: return launch_stream<16>(p, how, stream);
        case 32: return launch_stream<32>(p, how, stream);
        case 64: return launch_stream<64>(p, how, stream);
        default: return launch_stream<128>(p, how, stream);
    }
}

}  // namespace

bool attention_tactic_valid(const AttentionProblem& q, int32_t tactic) {
    if (tactic == kAuto) return true;
    if (q.dtype != DType::kHalf || tactic < 0 || tactic >= kTacticCount) return false;
    const int query_tiles = (q.queries + 15) / 16;
    switch (tactic) {
        case kResident1: case kDirect: return resident_size(q);
        case kResident2: return resident_size(q) && query_tiles >= 2;
        case kResident4: return resident_size(q) && query_tiles >= 4;
        case kStream1: return true;
        case kStream2: return q.keys > 32;
        default: return q.keys > 96;
    }
}

cudaError_t attention(const AttentionProblem& problem, cudaStream_t stream, int32_t tactic) {
    if (problem.dtype != DType::kHalf) return attention_f32(problem, stream);
    AttentionArgs<__half> whole;
    if (!attention_args(problem, whole)) return cudaErrorInvalidValue;
    if (whole.batch == 0 || whole.n == 0) return cudaSuccess;
    if (!attention_tactic_valid(problem, tactic)) tactic = kAuto;
    const int head = padded_head(problem);
    const bool resident = resident_size(problem) && tactic < kStream1 && !(tactic == kAuto && few_heads(problem)) && (head == 8 || wide_rows(problem, pack_of(head)));
    if (!resident && tactic < kStream1) tactic = kAuto;

    // Blocks of a launch number less than 2^30: very large batches go in pieces of whole periods.
    const int64_t blocks = (int64_t{whole.n} + 15) / 16 * whole.heads;
    int64_t step = (int64_t{1} << 30) / blocks;
    if (step < whole.batch) step = step / whole.period * whole.period;
    if (step <= 0) return cudaErrorInvalidValue;
    AttentionProblem piece = problem;
    for (int64_t first = 0; first < whole.batch; first += step) {
        AttentionArgs<__half> p = whole;
        p.batch = piece.batch = std::min(step, whole.batch - first);
        p.q.base += first * p.q.batch, p.k.base += first * p.k.batch, p.v.base += first * p.v.batch;
        p.out += first * p.n * (int64_t{p.heads} * p.dv);
        const cudaError_t status = resident ? run_resident(piece, p, tactic, stream) : run_stream(piece, p, tactic, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace trt_opt
