//! The bridge to `cpp/`. Safe wrappers are in the modules beside this one; nothing else calls it.

use super::log::log_line;
use super::progress::{Monitor, phase_finish, phase_start, step_complete};

/// What C++ has no fast way to do.
fn append(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(bytes);
}

#[cxx::bridge(namespace = "trt_opt")]
pub(super) mod ffi {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Version {
        major: u32,
        minor: u32,
        patch: u32,
    }

    #[derive(Clone, Copy, Debug)]
    enum FieldType {
        Int32,
        Float32,
        Char,
        Other,
    }

    /// A field that a creator lists.
    #[derive(Clone, Debug)]
    struct Field {
        name: String,
        kind: FieldType,
        /// Elements.
        length: i32,
    }

    #[derive(Clone, Debug)]
    struct Creator {
        address: usize,
        /// The interface, in TensorRT's words.
        kind: String,
        name: String,
        version: String,
        space: String,
        fields: Vec<Field>,
    }

    /// A field as it is given to a creator.
    #[derive(Clone, Debug)]
    struct FieldValue {
        name: String,
        kind: FieldType,
        /// Elements in the machine's byte order.
        bytes: Vec<u8>,
        /// Elements.
        length: i32,
    }

    /// Sizes of an input's axes: the smallest, those to optimize for, the largest.
    #[derive(Clone, Debug)]
    struct InputShape {
        name: String,
        min: Vec<i64>,
        opt: Vec<i64>,
        max: Vec<i64>,
    }

    struct BuildRequest {
        model: String,
        plugins: Vec<String>,
        shapes: Vec<InputShape>,
        /// Size of the first axis of inputs without a shape; 0 if there is none.
        batch: i64,
        fp16: bool,
        strongly_typed: bool,
        cublas: bool,
        cublas_lt: bool,
        cudnn: bool,
        /// -1 for TensorRT's default.
        optimization_level: i32,
        /// Bytes; 0 for TensorRT's default.
        workspace: usize,
        timing_cache: bool,
        timings: Vec<u8>,
    }

    struct ParserError {
        node: i32,
        name: String,
        op: String,
        description: String,
    }

    struct Built {
        /// Empty if the parser refused the model.
        plan: Vec<u8>,
        errors: Vec<ParserError>,
        /// The timings given are not used.
        timings_refused: bool,
        seconds: f64,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum ElementType {
        Float32,
        Float16,
        BFloat16,
        Int8,
        UInt8,
        Int32,
        Int64,
        Bool,
        Other,
    }

    /// An input or output.
    #[derive(Clone, Debug)]
    struct TensorInfo {
        name: String,
        input: bool,
        kind: ElementType,
        on_device: bool,
        /// -1 for open axes.
        shape: Vec<i64>,
        /// Of inputs: the sizes that the engine was built for.
        min: Vec<i64>,
        opt: Vec<i64>,
        max: Vec<i64>,
    }

    #[derive(Clone, Debug)]
    struct LayerTime {
        name: String,
        ms: f32,
    }

    extern "Rust" {
        type Monitor;

        fn append(to: &mut Vec<u8>, bytes: &[u8]);
        fn log_line(severity: i32, line: &[u8]);
        fn phase_start(monitor: &Monitor, phase: &[u8], parent: &[u8], steps: i32);
        fn step_complete(monitor: &Monitor, phase: &[u8], step: i32);
        fn phase_finish(monitor: &Monitor, phase: &[u8]);
    }

    unsafe extern "C++" {
        include!("trt-opt/cpp/common.h");
        include!("trt-opt/cpp/plugins.h");
        include!("trt-opt/cpp/build.h");
        include!("trt-opt/cpp/runtime.h");

        fn headers_version() -> Version;

        unsafe fn creators(entry: usize) -> Result<Vec<Creator>>;
        unsafe fn give_logger(entry: usize) -> Result<()>;
        unsafe fn make_plugin(creator: usize, values: &[FieldValue]) -> Result<()>;
        unsafe fn registry_load(entry: usize, path: &String) -> Result<usize>;
        unsafe fn registry_unload(entry: usize, library: usize) -> Result<()>;
        unsafe fn registry_find(entry: usize, name: &String, version: &String, space: &String) -> Result<Vec<Creator>>;

        type Builder;
        unsafe fn new_builder(create: usize) -> Result<UniquePtr<Builder>>;
        unsafe fn build(
            self: Pin<&mut Builder>,
            parser: usize,
            request: &BuildRequest,
            monitor: &Monitor,
        ) -> Result<Built>;
        fn timings(self: Pin<&mut Builder>, others: &[u8]) -> Result<Vec<u8>>;

        type Engine;
        type Context;
        unsafe fn deserialize(runtime: usize, plan: &[u8], plugins: &Vec<String>) -> Result<SharedPtr<Engine>>;
        fn tensors(self: &Engine) -> Result<Vec<TensorInfo>>;
        fn information(self: &Engine) -> Result<Vec<u8>>;
        fn device_memory(self: &Engine) -> u64;
        fn new_context(engine: SharedPtr<Engine>) -> Result<UniquePtr<Context>>;
        fn set_input_shape(self: Pin<&mut Context>, name: &String, dims: &[i64]) -> Result<()>;
        fn shape(self: &Context, name: &String) -> Result<Vec<i64>>;
        unsafe fn set_address(self: Pin<&mut Context>, name: &String, address: usize) -> Result<()>;
        unsafe fn enqueue(self: Pin<&mut Context>, stream: usize) -> Result<()>;
        fn twin(self: &Context) -> Result<UniquePtr<Context>>;
        unsafe fn profile(self: Pin<&mut Context>, stream: usize) -> Result<Vec<LayerTime>>;
    }
}
