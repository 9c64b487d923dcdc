#pragma once

#include "block_chain_pair.cuh"
#include "block_chain_pair.h"
#include "launch.cuh"

namespace trt_opt {

template <class Tile> cudaError_t launch_chain_pair(const ChainPairArgs& args, int shared, uint32_t blocks, cudaStream_t stream) {
    return launch_ahead(chain_pair_kernel<Tile>, blocks, Tile::kThreads, static_cast<size_t>(shared), stream, 1, args);
}
template <class Tile> constexpr ChainPairShape chain_pair_shape() {
    return {Tile::kGroups, Tile::kKeys, Tile::kColumns, Tile::kPiece, Tile::kInHead + Tile::kInProj + Tile::kInResults, Tile::kThreads, Tile::fixed, Tile::set_places, launch_chain_pair<Tile>};
}
// For windows of up to 56 tokens and for those of up to 64.
#define TRT_OPT_CHAIN_PAIR(name, groups) const ChainPairShape name[2] = {chain_pair_shape<ChainPairTile<groups, 56>>(), chain_pair_shape<ChainPairTile<groups, 64>>()}

}  // namespace trt_opt
