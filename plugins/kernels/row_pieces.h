// The rows of an MLP block in pieces, so that what lies in the workspace between its products stays in the second-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

namespace trt_opt {

constexpr int64_t kPieceBytes = int64_t{32} << 20;  // of the workspace
constexpr int64_t kPieceUnit = 128;                 // rows

// As many as a piece may have, of `row_bytes` each.
inline int64_t most_piece_rows(int64_t row_bytes) { return std::max(kPieceUnit, kPieceBytes / row_bytes / kPieceUnit * kPieceUnit); }
// What each piece has, but for the last, which may have fewer.
inline int64_t rows_a_piece(int64_t rows, int64_t row_bytes) {
    const int64_t most = most_piece_rows(row_bytes);
    if (rows <= most) return rows;
    const int64_t pieces = (rows + most - 1) / most, even = (rows + pieces - 1) / pieces;
    return std::min(most, (even + kPieceUnit - 1) / kPieceUnit * kPieceUnit);
}

}  // namespace trt_opt
