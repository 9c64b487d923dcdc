//! Conversion to float16: every fixture, in ONNX Runtime against its float original. `.ci/run` sets up the library;
//! without it these tests fail.

mod common;

use trt_opt::rewrite::{Options, Target};
use trt_opt::{testing, verify};

fn run_options(name: &str) -> verify::Options {
    verify::Options { batch: name.contains("_dyn").then_some(3), threads: Some(1), ..verify::Options::default() }
}

fn all_fixtures(target: Target) {
    let options = Options { target, ..Options::default() };
    let mut wrong = vec![];
    for path in common::fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let run = run_options(&name);
        let outcome = testing::rewrite_with(&path, &options).and_then(|r| r.to_fp16(&run)).and_then(|rewrite| {
            let p = rewrite.ledger().precision.as_ref().unwrap();
            let report = rewrite.compare(&run)?;
            let worst = report.outputs.iter().map(|o| o.relative).fold(0.0, f64::max);
            println!("{name}: {worst:.1e} {} {} {} islands {} casts {}", p.converted, p.nodes.float16, p.nodes.float32, p.islands.len(), p.casts);
            if !p.islands.is_empty() { print!("{}", rewrite.precision()); }
            report.check()
        });
        if let Err(error) = outcome {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{target}: {} fixtures differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn with_plugins() {
    all_fixtures(Target::Trt8);
}

#[test]
fn with_plugins_of_new_opsets() {
    all_fixtures(Target::Trt11);
}

#[test]
fn without_plugins() {
    all_fixtures(Target::Native);
}
