//! With the feature `engine`: compiles `cpp/` against the TensorRT headers that are found.
//! With the feature `plugins`: builds `libtrt_opt_plugins.so`; its path is `env!("TRT_OPT_PLUGINS")` while compiling.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "engine")]
    commit();
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

/// TRT_OPT_COMMIT, which reports name: as it is set, else the commit checked out. Measurements are made with release
/// builds; others do without, so that a commit does not rebuild them.
#[cfg(feature = "engine")]
fn commit() {
    println!("cargo:rerun-if-env-changed=TRT_OPT_COMMIT");
    if std::env::var_os("TRT_OPT_COMMIT").is_some() || std::env::var("PROFILE").as_deref() != Ok("release") {
        return;
    }
    let root = root();
    let git = |arguments: &[&str]| {
        let run = std::process::Command::new("git").arg("-C").arg(&root).args(arguments).output().ok()?;
        run.status.success().then(|| String::from_utf8_lossy(&run.stdout).trim().to_owned())
    };
    // A folder inside the checkout of something else is not that commit.
    let own = git(&["rev-parse", "--show-prefix"]).is_some_and(|prefix| prefix.is_empty());
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]).filter(|_| own) {
        println!("cargo:rustc-env=TRT_OPT_COMMIT={commit}");
    }
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--path-format=absolute", "--git-path", name]);
        if let Some(path) = path.filter(|path| std::path::Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
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
