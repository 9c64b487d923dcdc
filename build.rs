//! With the feature `plugins`: builds `libtrt_opt_plugins.so`; its path is `env!("TRT_OPT_PLUGINS")` while compiling.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "plugins")]
    plugins();
}

#[cfg(feature = "plugins")]
fn plugins() {
    use std::path::PathBuf;
    use trt_opt_plugin_build::{Options, VARIABLES, build, inputs};

    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    for variable in VARIABLES {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    for folder in inputs(&root) {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    let mut options = Options::new(root);
    options.out = Some(out.clone());
    options.objects = Some(out.join("obj"));
    options.jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok());
    match build(&options) {
        Ok(built) => println!("cargo:rustc-env=TRT_OPT_PLUGINS={}", built.library.display()),
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(1);
        }
    }
}
