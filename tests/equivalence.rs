//! Every fixture, rewritten for every target that differs, computes what it computed: in ONNX Runtime, plugin nodes by
//! their reference bodies. `.ci/run` sets up the library; without it these tests fail.

use std::path::{Path, PathBuf};

use trt_opt::rewrite::{Options, Target};
use trt_opt::{testing, verify};

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut models: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    models.sort();
    assert!(models.len() > 200, "only {} fixtures", models.len());
    models
}

fn all_compute_the_same(target: Target) {
    let options = Options { target, ..Options::default() };
    let mut wrong = vec![];
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let outcome = testing::rewrite_with(&path, &options).and_then(|rewrite| {
            // Another batch than 2 where the batch is open, so that nothing relies on it.
            let options = verify::Options { batch: batch(&name), threads: Some(1), ..verify::Options::default() };
            rewrite
                .compare(&options)?
                .check()
                .or_else(|error| as_exact_as_before(&path, &rewrite, &options).ok_or(error))
        });
        if let Err(error) = outcome {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{target}: {} fixtures differ\n{}", wrong.len(), wrong.join("\n"));
}

/// Rounding alone moves some half-precision miniatures, with their few channels, by more than the tolerance. Then the
/// rewritten model must be about as close to the same model in float as the original is.
fn as_exact_as_before(path: &Path, rewrite: &testing::Rewrite, options: &verify::Options) -> Option<()> {
    let float = PathBuf::from(path.to_str()?.strip_suffix("_fp16.onnx")?.to_owned() + ".onnx");
    let options = verify::Options { rtol: Some(1e-2), ..options.clone() };
    let before = verify::compare(&float, path, &options).ok()?;
    let rewritten = verify::Source::Model { name: "rewritten", model: rewrite.model() };
    let after = verify::compare(&float, rewritten, &options).ok()?;
    let error = |report: &verify::Report| report.outputs.iter().map(|o| o.relative).fold(0.0, f64::max);
    (before.passed && after.passed && error(&after) <= 2.0 * error(&before)).then_some(())
}

fn batch(name: &str) -> Option<i64> {
    name.contains("_dyn").then_some(3)
}

#[test]
fn with_plugins() {
    all_compute_the_same(Target::Trt8);
}

#[test]
fn with_plugins_of_new_opsets() {
    all_compute_the_same(Target::Trt11);
}

#[test]
fn without_plugins() {
    all_compute_the_same(Target::Native);
}
