//! The bridge to `cpp/`. Safe wrappers are in the modules beside this one; nothing else calls it.

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

    extern "Rust" {
        fn log_line(severity: i32, line: &[u8]);
    }

    unsafe extern "C++" {
        include!("trt-opt/cpp/common.h");
        include!("trt-opt/cpp/plugins.h");

        fn headers_version() -> Version;

        unsafe fn creators(entry: usize) -> Result<Vec<Creator>>;
        unsafe fn give_logger(entry: usize) -> Result<()>;
        unsafe fn make_plugin(creator: usize, values: &[FieldValue]) -> Result<()>;
        unsafe fn registry_load(entry: usize, path: &String) -> Result<usize>;
        unsafe fn registry_unload(entry: usize, library: usize) -> Result<()>;
        unsafe fn registry_find(entry: usize, name: &String, version: &String, space: &String) -> Result<Vec<Creator>>;
    }
}

use super::log::log_line;
