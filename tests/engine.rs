//! TensorRT's libraries and plugin libraries, as far as they go without a GPU.
//!
//! A real TensorRT is the lean runtime that `TRT_OPT_LEAN_RUNTIME` names; `cargo xtask lean-runtime` fetches it.
#![cfg(feature = "engine")]

use std::path::{Path, PathBuf};

use assert_cmd::assert::Assert;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;
use trt_opt::engine::{self, BuildOptions, Engine, Error, Gpu, Library, PluginLibrary, TacticSources};

fn trt_opt(args: &[&str]) -> Assert {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("trt-opt");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("TRT_OPT_LOG").env_remove("TENSORRT_LIB_DIR");
    command.args(args).assert()
}

fn stdout(assert: Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn text(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A shared library of this C source.
    fn library(&self, name: &str, source: &str) -> PathBuf {
        let (c, path) = (self.text(&format!("{name}.c"), source), self.path().join(name));
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let status =
            std::process::Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(&path).arg(c).status().unwrap();
        assert!(status.success());
        path
    }
}

fn major() -> u32 {
    engine::compiled_for().major
}

/// The entry points of the plugin interface that this program calls and of the one that it does not.
fn entries() -> [&'static str; 2] {
    if major() >= 10 { ["getCreators", "getPluginCreators"] } else { ["getPluginCreators", "getCreators"] }
}

/// A library that calls itself TensorRT of a version number.
fn impostor(folder: &Folder, name: &str, number: u32) -> PathBuf {
    folder.library(
        name,
        &format!(
            "int getInferLibVersion(void) {{ return {number}; }}\nvoid* getPluginRegistry(void) {{ return 0; }}\n"
        ),
    )
}

/// A version number as TensorRT's libraries give it.
fn number(major: u32) -> u32 {
    if major >= 10 { major * 10_000 } else { major * 1000 }
}

fn lean() -> Option<PathBuf> {
    let path = std::env::var_os("TRT_OPT_LEAN_RUNTIME").map(PathBuf::from);
    match &path {
        Some(path) => assert!(path.is_file(), "TRT_OPT_LEAN_RUNTIME is {}", path.display()),
        None => eprintln!("SKIPPED: TRT_OPT_LEAN_RUNTIME is not set; see `cargo xtask lean-runtime`"),
    }
    path
}

// ---- TensorRT's library ----

#[test]
fn a_folder_without_tensorrt_is_named() {
    let folder = Folder::new();
    let error = Library::load(Some(folder.path())).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&folder.path().display().to_string()), "{text}");
    assert!(text.contains(&format!("libnvinfer.so.{}", major())) && text.contains("TENSORRT_LIB_DIR"), "{text}");
    let error = Library::load(Some(&folder.path().join("none"))).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }) && error.to_string().contains("does not exist"), "{error}");
}

#[test]
fn a_text_file_is_not_a_library() {
    let folder = Folder::new();
    let path = folder.text(&format!("libnvinfer.so.{}", major()), "INPUT(libnvinfer)\n");
    for load in [path.as_path(), folder.path()] {
        let error = Library::load(Some(load)).unwrap_err();
        assert!(matches!(error, Error::NotALibrary { .. }), "{error:?}");
        assert!(error.to_string().contains("INPU"), "{error}");
    }
    std::fs::write(&path, "").unwrap();
    assert!(matches!(Library::load(Some(&path)), Err(Error::NotALibrary { .. })));
    // The right four bytes are not enough.
    std::fs::write(&path, b"\x7fELF and no more").unwrap();
    assert!(matches!(Library::load(Some(&path)), Err(Error::NotLoaded { .. })));
}

#[test]
fn another_major_version_is_refused_by_name_and_by_what_it_says() {
    let folder = Folder::new();
    let other = major() + 1;
    // By its name it is not even loaded.
    folder.text(&format!("libnvinfer.so.{other}.2.0"), "");
    let error = Library::load(Some(folder.path())).unwrap_err();
    assert!(matches!(&error, Error::WrongMajor { found, .. } if *found == format!("{other}.2.0")), "{error:?}");
    assert!(error.to_string().contains(&format!("compiled for TensorRT {}", major())), "{error}");
    // A name may be wrong.
    let path = impostor(&folder, "renamed.so", number(other));
    let error = Library::load(Some(&path)).unwrap_err();
    assert!(matches!(&error, Error::WrongMajor { found, .. } if *found == format!("{other}.0.0")), "{error:?}");
}

#[test]
fn missing_symbols_are_named() {
    let folder = Folder::new();
    let path = folder.library("libnvinfer.so", "int other(void) { return 1; }\n");
    let error = Library::load(Some(&path)).unwrap_err();
    assert!(matches!(&error, Error::MissingSymbol { symbol, .. } if symbol == "getInferLibVersion"), "{error:?}");
    let source = format!("int getInferLibVersion(void) {{ return {}; }}\n", number(major()));
    let path = folder.library("half.so", &source);
    let error = Library::load(Some(&path)).unwrap_err();
    assert!(matches!(&error, Error::MissingSymbol { symbol, .. } if symbol == "getPluginRegistry"), "{error:?}");
}

#[test]
fn an_impostor_without_a_registry_is_an_error_and_no_crash() {
    let folder = Folder::new();
    let library = Library::load(Some(&impostor(&folder, "impostor.so", number(major())))).unwrap();
    let error = library.register(&folder.text("p.so", "")).unwrap_err();
    assert!(error.to_string().contains("no plugin registry"), "{error}");
}

#[test]
fn a_real_tensorrt_is_loaded_and_refuses_what_is_no_plugin_library() {
    let Some(path) = lean() else { return };
    let library = Library::load(Some(&path)).unwrap();
    assert_eq!(library.version.major, major());
    // From its folder too.
    assert_eq!(Library::load(path.parent()).unwrap().version, library.version);
    let folder = Folder::new();
    for path in [folder.text("text.so", "text"), folder.path().join("none.so")] {
        let error = library.register(&path).unwrap_err();
        assert!(matches!(&error, Error::Refused { .. }) && error.to_string().contains("does not load"), "{error}");
    }
    assert!(library.creator("TrtOptLayerNorm", "1", "trt_opt").unwrap().is_none());
}

/// On a machine without a GPU the error for that, else that TensorRT's own words are in the error.
#[track_caller]
fn refused_or_no_gpu(result: engine::Result<()>, words: &str) {
    let error = result.unwrap_err();
    match Gpu::first() {
        Err(Error::NoGpu { .. }) => assert!(matches!(error, Error::NoGpu { .. }), "{error:?}"),
        Err(other) => panic!("{other}"),
        Ok(_) => assert!(error.to_string().contains(words), "{error}"),
    }
}

#[test]
fn a_corrupt_engine_is_refused() {
    let Some(path) = lean() else { return };
    let library = Library::load(Some(&path)).unwrap();
    for plan in [&b"ftrt and no more"[..], &[0; 4096], b""] {
        refused_or_no_gpu(Engine::deserialize(&library, plan, &[]).map(drop), "deserializing the engine");
    }
}

#[test]
fn a_lean_runtime_builds_nothing() {
    let Some(path) = lean() else { return };
    let library = Library::load(Some(&path)).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/swin_ts17.onnx");
    let built = engine::build(&library, &model, &BuildOptions::default(), None).map(drop);
    refused_or_no_gpu(built, "a lean runtime runs engines and builds none");
}

#[test]
fn requests_that_this_tensorrt_cannot_meet_are_refused_first() {
    let folder = Folder::new();
    let library = Library::load(Some(&impostor(&folder, "impostor.so", number(major())))).unwrap();
    let build = |model: &str, options: BuildOptions| {
        let model = folder.path().join(model);
        engine::build(&library, &model, &options, None).map(drop).unwrap_err()
    };
    folder.text("model.onnx", "");
    let error = build("none.onnx", BuildOptions::default());
    assert!(matches!(error, Error::File { .. }) && error.to_string().contains("none.onnx"), "{error}");
    let tactic_sources = TacticSources { cublas: true, ..TacticSources::default() };
    let typed = BuildOptions { strongly_typed: true, ..BuildOptions::default() };
    let both = BuildOptions { fp16: true, ..typed.clone() };
    let asked = match major() {
        ..10 => (typed, "strong typing"),
        10 => (both, "fp16"),
        _ => (BuildOptions { tactic_sources, ..BuildOptions::default() }, "tactic sources"),
    };
    let error = build("model.onnx", asked.0);
    assert!(matches!(error, Error::Option { .. }) && error.to_string().starts_with(asked.1), "{error}");
    // A folder cannot be a timing cache.
    let error =
        build("model.onnx", BuildOptions { timing_cache: Some(folder.path().into()), ..BuildOptions::default() });
    assert!(matches!(error, Error::File { .. }), "{error}");
}

// ---- plugin libraries ----

#[test]
fn ops_are_listed() {
    insta::assert_snapshot!("plugins_list", stdout(trt_opt(&["plugins", "list"]).success()));
    let markdown = stdout(trt_opt(&["plugins", "list", "--markdown"]).success());
    assert_eq!(markdown, trt_opt::rewrite::ops::markdown_table());
    let ops: Value = serde_json::from_str(&stdout(trt_opt(&["plugins", "list", "--json"]).success())).unwrap();
    let names: Vec<&str> = ops.as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap()).collect();
    assert_eq!(names, trt_opt::rewrite::ops::OPS.iter().map(|o| o.name).collect::<Vec<_>>());
    assert_eq!(ops[0]["types"], serde_json::json!(["float", "float16"]));
    trt_opt(&["plugins", "list", "--json", "--markdown"]).code(2);
}

fn check(library: &Path) -> Assert {
    trt_opt(&["plugins", "check", library.to_str().unwrap()])
}

#[test]
fn what_is_no_plugin_library_is_refused_with_the_reason() {
    let folder = Folder::new();
    check(&folder.path().join("none.so")).code(5).stderr(contains("cannot read").and(contains("none.so")));
    check(&folder.text("text.so", "hello")).code(1).stderr(contains("not a shared library"));
    check(folder.path()).code(1).stderr(contains("cannot be loaded"));
    let other = folder.library("other.so", "int other(void) { return 1; }\n");
    check(&other).code(1).stderr(contains("no symbol").and(contains("getCreators")));
    let open = folder.library("open.so", "int nowhere(void);\nint other(void) { return nowhere(); }\n");
    check(&open).code(1).stderr(contains("undefined symbol: nowhere"));
}

#[test]
fn a_library_of_the_other_interface_is_not_called() {
    let folder = Folder::new();
    // It would abort.
    let source = format!("#include <stdlib.h>\nvoid* {}(int* n) {{ abort(); }}\n", entries()[1]);
    let path = folder.library("other.so", &source);
    assert!(PluginLibrary::open(&path).unwrap().creators().is_none());
    check(&path).code(1).stderr(contains("1 fault").and(contains(format!("compiled for TensorRT {}", major()))));
}

#[test]
fn a_library_without_creators_lacks_every_op() {
    let folder = Folder::new();
    let path = folder.library("empty.so", &format!("void* {}(int* n) {{ *n = 0; return 0; }}\n", entries()[0]));
    let mut out = check(&path).code(1);
    for op in trt_opt::rewrite::ops::OPS {
        out = out.stderr(contains(format!("it has no {}", op.name)));
    }
    let report = trt_opt(&["plugins", "check", path.to_str().unwrap(), "--json"]).code(1);
    let report: Value = serde_json::from_str(&stdout(report)).unwrap();
    assert_eq!(report["problems"].as_array().unwrap().len(), trt_opt::rewrite::ops::OPS.len());
    let broken = folder.library("broken.so", &format!("void* {}(int* n) {{ *n = 3; return 0; }}\n", entries()[0]));
    check(&broken).code(1).stderr(contains("list of creators is broken"));
}

#[test]
fn a_tensorrt_that_cannot_be_loaded_is_an_error_of_its_own() {
    let folder = Folder::new();
    let plugins = folder.text("p.so", "");
    let text = folder.text(&format!("libnvinfer.so.{}", major()), "hello");
    let check = |tensorrt: &Path| {
        trt_opt(&["plugins", "check", plugins.to_str().unwrap(), "--tensorrt", tensorrt.to_str().unwrap()])
    };
    check(&text).code(4).stderr(contains("not a shared library"));
    check(&folder.path().join("none")).code(4).stderr(contains("was not found").and(contains("TENSORRT_LIB_DIR")));
}

// ---- build, bench ----

const MODEL: &str = "tests/fixtures/swin_ts17.onnx";

#[test]
fn arguments_are_checked_before_anything_is_looked_for() {
    for command in ["build", "bench"] {
        trt_opt(&[command]).code(2);
        trt_opt(&[command, "none.onnx"]).code(5).stderr(contains("none.onnx"));
        trt_opt(&[command, MODEL, "--shapes", "x:1x3x"]).code(2).stderr(contains("NAME:SIZES"));
        trt_opt(&[command, MODEL, "--opt-level", "6"]).code(2).stderr(contains("0..=5"));
        trt_opt(&[command, MODEL, "--workspace", "lots"]).code(2).stderr(contains("512M"));
        trt_opt(&[command, MODEL, "--tactics", "cutlass"]).code(2).stderr(contains("cublas-lt"));
        trt_opt(&[command, MODEL, "--batch", "0"]).code(2);
        let twice = ["--shapes", "x:1x3", "--shapes", "x:2x3", "--tensorrt", "/nonexistent"];
        trt_opt(&[&[command, MODEL], &twice[..]].concat()).code(2).stderr(contains("'x' twice"));
    }
    trt_opt(&["build", MODEL, "-o", MODEL]).code(2).stderr(contains("never written to"));
    trt_opt(&["bench", MODEL, "--input", "x"]).code(2).stderr(contains("NAME=FILE.npy"));
    trt_opt(&["bench", MODEL, "--input", "x=none.npy"]).code(5).stderr(contains("none.npy"));
    trt_opt(&["bench", MODEL, "--input", &format!("x={MODEL}")]).code(3).stderr(contains("not a NumPy file"));
    trt_opt(&["bench", MODEL, "--baseline", "none.onnx"]).code(5).stderr(contains("none.onnx"));
}

#[test]
fn a_missing_tensorrt_or_gpu_is_said_to_be_missing() {
    let folder = Folder::new();
    let empty = folder.path().to_str().unwrap().to_owned();
    for command in ["build", "bench"] {
        trt_opt(&[command, MODEL, "--tensorrt", &empty]).code(4).stderr(contains("was not found"));
    }
    if Gpu::first().is_ok() {
        return;
    }
    let library = impostor(&folder, "impostor.so", number(major()));
    let engine = folder.path().join("out.engine");
    for command in ["build", "bench"] {
        let out = trt_opt(&[command, MODEL, "--tensorrt", library.to_str().unwrap()]);
        out.code(4).stderr(contains("no GPU can be used"));
    }
    let args = ["build", MODEL, "--tensorrt", library.to_str().unwrap(), "-o", engine.to_str().unwrap()];
    trt_opt(&args).code(4);
    assert!(!engine.exists() && !Path::new(MODEL).with_extension("engine").exists());
}

#[test]
fn a_builder_answers_every_line() {
    let folder = Folder::new();
    let library = impostor(&folder, "impostor.so", number(major()));
    let engine = folder.path().join("out.engine");
    let lines = [
        r#"{"model": "swin.onnx"}"#.to_owned(),
        r#"["none.onnx"]"#.to_owned(),
        format!(r#"["{MODEL}", "--opt-level", "6"]"#),
        format!(r#"["{MODEL}", "--tensorrt", "elsewhere"]"#),
        String::new(),
        format!(r#"["{MODEL}", "-o", "{}"]"#, engine.display()),
    ];
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("trt-opt");
    let command = command.args(["builder", "--tensorrt", library.to_str().unwrap()]).write_stdin(lines.join("\n"));
    let answers = stdout(command.assert().success());
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |i: usize| answers[i]["error"].as_str().unwrap();
    assert_eq!(answers.len(), 5, "{answers:?}");
    assert_eq!(answers.iter().map(|a| a["code"].as_u64().unwrap()).collect::<Vec<_>>()[..4], [2, 5, 2, 2]);
    assert!(said(0).contains("array of strings"), "{}", said(0));
    assert!(said(1).contains("none.onnx"), "{}", said(1));
    assert!(said(2).contains("0..=5"), "{}", said(2));
    assert!(said(3).contains("one TensorRT for all lines"), "{}", said(3));
    if Gpu::first().is_err() {
        assert_eq!(answers[4]["code"], 4);
        assert!(said(4).contains("no GPU can be used"), "{}", said(4));
    }
    trt_opt(&["builder", "--tensorrt", folder.path().to_str().unwrap()]).code(4).stderr(contains("was not found"));
}

// ---- versions ----

#[test]
fn the_program_says_what_it_was_compiled_for() {
    let version = engine::compiled_for();
    let line = format!("compiled for TensorRT {version}");
    trt_opt(&["--version"]).success().stdout(contains(&line));
    trt_opt(&["doctor"]).success().stdout(contains(&line));
    let doctor: Value = serde_json::from_str(&stdout(trt_opt(&["doctor", "--json"]).success())).unwrap();
    assert_eq!(doctor["compiled_for_tensorrt"], version.to_string());
}

#[test]
fn engines_only_is_of_a_measurement_and_nothing_else() {
    let vit = "vit=tests/fixtures/vit_ts17.onnx";
    let run = |args: &[&str]| trt_opt(&[&["report", "--engines-only"], args].concat());
    run(&[]).code(2).stderr(contains("--models"));
    for other in [&["--merge", "tests/report/synthetic_a.json"][..], &["--profile"], &["--ask", "vit@1=1.5"]] {
        let refused = predicate::str::contains("cannot be used with").and(contains(other[0]));
        run(&[&["--models", vit], other].concat()).code(2).stderr(refused);
    }
    // Models are looked for before a GPU is.
    run(&["--models", "vit=absent.onnx"]).code(5).stderr(contains("absent.onnx"));
}
