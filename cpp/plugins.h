// Creators of plugins: those that a plugin library exports, and those that TensorRT's registry knows.
//
// Addresses come from dlsym (functions) or from here (creators); a null one throws, a wrong one is undefined.
#pragma once

#include "common.h"

namespace trt_opt {

struct Creator;
struct FieldValue;

// What `entry` lists: getCreators of a V3 library where the headers are of TensorRT 10 or later, getPluginCreators
// of a V2 library where they are of an earlier one.
rust::Vec<Creator> creators(size_t entry);
// Gives the library our logger; `entry` is its setLoggerFinder.
void give_logger(size_t entry);
// Makes a plugin from the values, looks whether it is what its creator says, and destroys it.
void make_plugin(size_t creator, rust::Slice<const FieldValue> values);

// Registries are those that `entry`, TensorRT's getPluginRegistry, returns.
size_t registry_load(size_t entry, const rust::String& path);
void registry_unload(size_t entry, size_t library);
// No creators where there is none of that name.
rust::Vec<Creator> registry_find(size_t entry, const rust::String& name, const rust::String& version, const rust::String& space);

}  // namespace trt_opt
