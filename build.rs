//! With the feature `engine`: compiles `cpp/` against the TensorRT headers that are found.
//! With the feature `plugins`: builds `libtrt_opt_plugins.so`; its path is `env!("TRT_OPT_PLUGINS")` while compiling.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(any(feature = "engine", feature = "plugins"))]
    for variable in trt_opt_plugin_build::VARIABLES {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    #[cfg(feature = "engine")]
    engine();
    #[cfg(feature = "plugins")]
    plugins();
}

#[cfg(any(feature = "engine", feature = "plugins"))]
fn root() -> std::path::PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it").into()
}

#[cfg(any(feature = "engine", feature = "plugins"))]
fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1);
}

#[cfg(feature = "engine")]
fn engine() {
    use trt_opt_plugin_build::{Environment, find_headers};

    const HINT: &str = "\n\nThe feature `engine` needs a C++17 compiler (CXX names it) and TensorRT headers: set \
                        TENSORRT_INCLUDE_DIR to the folder of NvInfer.h, of TensorRT 8.6, 10 or 11. \
                        To do without TensorRT: cargo build --no-default-features --features testing";
    let system = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if system != "linux" {
        fail(&format!("TensorRT is loaded on Linux only, and the target is {system}.{HINT}"));
    }
    let root = root();
    let headers = match find_headers(&Environment::new(&root, true), None) {
        Ok(headers) => headers,
        Err(message) => fail(&format!("{message}{HINT}")),
    };
    let cpp = root.join("cpp");
    println!("cargo:rerun-if-changed={}", cpp.display());
    let mut build = cxx_build::bridge("src/engine/bridge.rs");
    // Their headers are not ours to mend, so no warnings of them.
    for include in [cpp.join("cuda"), headers.include] {
        build.flag("-isystem").flag(include);
    }
    for name in ["build.cpp", "common.cpp", "plugins.cpp", "runtime.cpp"] {
        build.file(cpp.join(name));
    }
    build.std("c++17").flag("-Wno-deprecated-declarations");
    if let Err(error) = build.try_compile("trt_opt_engine") {
        fail(&format!("{error}{HINT}"));
    }
}

#[cfg(feature = "plugins")]
fn plugins() {
    use std::path::PathBuf;
    use trt_opt_plugin_build::{Options, build, inputs};

    let root = root();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    for folder in inputs(&root) {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    let mut options = Options::new(root);
    options.out = Some(out.clone());
    options.objects = Some(out.join("obj"));
    options.jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok());
    match build(&options) {
        Ok(built) => println!("cargo:rustc-env=TRT_OPT_PLUGINS={}", built.library.display()),
        Err(message) => fail(&message),
    }
}
