#pragma once

#include "attn_fused_wide.cuh"
#include "launch.cuh"

namespace trt_opt {

template <class Tile> cudaError_t launch_attn_fused(const AttnFusedArgs& args, int shared, uint32_t blocks, cudaStream_t stream) {
    return launch_ahead(attn_fused_kernel<Tile>, blocks, Tile::kThreads, static_cast<size_t>(shared), stream, 1, args);
}
template <class Tile> constexpr AttnFusedShape attn_fused_shape() {
    return {Tile::kSplit ? AttnFusedForm::kSplit : Tile::kHeads > 0 ? AttnFusedForm::kStraight : AttnFusedForm::kLoop, Tile::kChannels, Tile::kKeys, Tile::kGroups, Tile::kHeads, Tile::kStage, Tile::kThreads, Tile::kBiasRow, Tile::fixed, launch_attn_fused<Tile>};
}
// For windows of up to 56 tokens and for those of up to 64.
#define TRT_OPT_ATTN_FUSED(name, ...) \
    const AttnFusedShape name[2] = {attn_fused_shape<AttnFusedTile<TRT_OPT_KEYS(56, __VA_ARGS__)>>(), attn_fused_shape<AttnFusedTile<TRT_OPT_KEYS(64, __VA_ARGS__)>>()}
#define TRT_OPT_KEYS(keys, chunks, ...) chunks, keys, __VA_ARGS__

}  // namespace trt_opt
