//! trt-opt
