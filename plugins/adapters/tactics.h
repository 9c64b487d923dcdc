// Choosing among an op's tactics by measurement, for plugin interfaces that leave it to the plugin.
#pragma once

#include <cstdint>
#include <vector>

#include "ops.h"

namespace trt_opt {

// A tactic, and the tensors that it was chosen for.
struct TacticChoice {
    int32_t tactic = 0;
    uint64_t tensors = 0;

    // What `run` is to be given for these inputs: 0, the estimate's choice, for all but those that were measured.
    int32_t of(const Op& op, const nvinfer1::PluginTensorDesc* in) const;

    static constexpr size_t kBytes = 16;
    void write(uint8_t* to) const;
    // False if the bytes are damaged.
    bool read(const uint8_t* from);
};

// The fastest tactic for these shapes, timed on the current device over buffers of its own; an earlier outcome for the same op and
// shapes is taken again. 0, where that is as good as any, or the device has too little memory for a second set of the tensors.
// Must not be called where allocation or synchronization is not allowed.
TacticChoice fastest_tactic(const Op& op, const std::vector<nvinfer1::PluginTensorDesc>& in, const std::vector<nvinfer1::PluginTensorDesc>& out);

}  // namespace trt_opt
