//! `cargo xtask lean-runtime`: a real TensorRT for tests, small and without a GPU.

use trt_opt_plugin_build::{Environment, find_headers};

pub fn run() -> Result<(), String> {
    let environment = Environment::new(&crate::root(), true);
    let headers = find_headers(&environment, None)?;
    println!("{}", crate::plugins_test::lean_runtime(&environment, headers.major)?.display());
    Ok(())
}
