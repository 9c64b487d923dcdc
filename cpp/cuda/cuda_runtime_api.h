// The types of CUDA's runtime that TensorRT's headers mention, all of them opaque handles: stands in for
// CUDA's own header, so that no CUDA toolkit is needed to compile this project.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
