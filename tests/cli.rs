//! The program from outside: help, errors, exit codes, output.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::Value;
use trt_opt::onnx::proto::{ValueInfoProto, tensor_shape_proto, type_proto};

const COMMANDS: &[&str] = &[
    "fuse",
    "inspect",
    "print",
    "diff",
    "verify",
    "build",
    "builder",
    "bench",
    "plugins",
    "report",
    "doctor",
    "completions",
];

fn trt_opt(args: &[&str]) -> Assert {
    command().args(args).assert()
}

fn command() -> Command {
    let mut command = assert_cmd::cargo::cargo_bin_cmd!("trt-opt");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("TRT_OPT_LOG");
    command
}

fn fixture(name: &str) -> String {
    format!("tests/fixtures/{name}")
}

fn stdout(assert: Assert) -> String {
    String::from_utf8(assert.get_output().stdout.clone()).unwrap()
}

fn stderr(assert: Assert) -> String {
    String::from_utf8(assert.get_output().stderr.clone()).unwrap()
}

fn json(assert: Assert) -> Value {
    serde_json::from_str(&stdout(assert)).unwrap()
}

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn copy(&self, name: &str) -> String {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture(name));
        std::fs::copy(source, self.path(name)).unwrap();
        self.text(name)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

// ---- help and usage ----

#[test]
fn every_command_has_help_with_examples() {
    trt_opt(&["--help"]).success().stdout(contains("Exit codes:").and(contains("Examples:")));
    for &command in COMMANDS {
        trt_opt(&[command, "--help"])
            .success()
            .stdout(contains("Examples:").and(contains(format!("trt-opt {command}"))));
        trt_opt(&["--help"]).success().stdout(contains(command));
    }
    trt_opt(&["--version"]).success().stdout(contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_exits_with_2() {
    trt_opt(&[]).code(2).stderr(contains("Usage"));
    trt_opt(&["no-such-command"]).code(2);
    trt_opt(&["fuse"]).code(2).stderr(contains("<MODEL>"));
    let model = fixture("swin_ts17.onnx");
    trt_opt(&["fuse", &model, "--fuse", "layer-norm"]).code(2).stderr(contains("layernorm"));
    trt_opt(&["fuse", &model, "--require", "norms"]).code(2).stderr(contains("patch-merge"));
    trt_opt(&["fuse", &model, "--target", "trt9"]).code(2).stderr(contains("native"));
    trt_opt(&["verify", &model, &model, "--dim", "height"]).code(2).stderr(contains("NAME=SIZE"));
    trt_opt(&["verify", &model, &model, "--rtol", "-1"]).code(2);
    trt_opt(&["fuse", &model, "-q", "-v"]).code(2);
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        trt_opt(&["completions", shell]).success().stdout(contains("trt-opt").and(contains("verify")));
    }
    trt_opt(&["completions", "csh"]).code(2);
}

// ---- inputs that are no models ----

#[test]
fn broken_inputs_are_refused_by_every_command() {
    let scratch = Scratch::new();
    let text = scratch.text("text.onnx");
    std::fs::write(&text, "This is not a model.\n").unwrap();
    let truncated = scratch.text("truncated.onnx");
    let whole = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture("swin_ts17.onnx"))).unwrap();
    std::fs::write(&truncated, &whole[..whole.len() / 2]).unwrap();
    let empty = scratch.text("empty.onnx");
    std::fs::write(&empty, "").unwrap();
    let missing = scratch.text("missing.onnx");

    let before = scratch.files();
    for (path, code) in [(&text, 3), (&truncated, 3), (&empty, 3), (&missing, 5)] {
        for command in ["fuse", "inspect", "print"] {
            let message = stderr(trt_opt(&[command, path]).code(code));
            assert!(message.contains("error:") && message.contains(path.as_str()), "{command}: {message}");
        }
        let other = fixture("swin_ts17.onnx");
        trt_opt(&["diff", path, &other]).code(code).stderr(contains(path.as_str()));
    }
    assert_eq!(scratch.files(), before);
}

// ---- fuse ----

#[test]
fn fuse_writes_beside_the_input_by_default() {
    let scratch = Scratch::new();
    let input = scratch.copy("swin_ts17.onnx");
    let bytes = std::fs::read(&input).unwrap();
    trt_opt(&["fuse", &input]).success().stdout(contains("before").and(contains("swin_ts17.fused.onnx")));
    assert_eq!(scratch.files(), ["swin_ts17.fused.onnx", "swin_ts17.onnx"]);
    assert_eq!(std::fs::read(&input).unwrap(), bytes);
    trt_opt(&["print", &scratch.text("swin_ts17.fused.onnx")]).success();
}

#[test]
fn fuse_never_writes_to_the_input() {
    let scratch = Scratch::new();
    let input = scratch.copy("swin_ts17.onnx");
    let bytes = std::fs::read(&input).unwrap();
    let elsewhere = format!("{}/../{}/swin_ts17.onnx", scratch.0.path().display(), dir_name(&scratch));
    for output in [input.as_str(), &elsewhere] {
        trt_opt(&["fuse", &input, "-o", output]).code(2).stderr(contains("never written to"));
    }
    trt_opt(&["fuse", &input, "--ledger", &input]).code(2).stderr(contains("--ledger"));
    let out = scratch.text("out.onnx");
    trt_opt(&["fuse", &input, "-o", &out, "--reference", &out]).code(2).stderr(contains("--reference and --output"));
    assert_eq!(scratch.files(), ["swin_ts17.onnx"]);
    assert_eq!(std::fs::read(&input).unwrap(), bytes);
}

fn dir_name(scratch: &Scratch) -> String {
    scratch.0.path().file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn fuse_writes_ledger_reference_and_external_data() {
    let scratch = Scratch::new();
    let input = scratch.copy("swin_ts17.onnx");
    let (out, twin, ledger) = (scratch.text("out.onnx"), scratch.text("twin.onnx"), scratch.text("ledger.json"));
    let args =
        ["fuse", &input, "-o", &out, "--reference", &twin, "--ledger", &ledger, "--external-data", "out.weights"];
    trt_opt(&args).success();
    assert!(scratch.files().contains(&"out.weights".to_owned()), "{:?}", scratch.files());
    let ledger: Value = serde_json::from_slice(&std::fs::read(&ledger).unwrap()).unwrap();
    assert_eq!(ledger["version"], 1);
    assert_eq!(ledger["model"], "swin_ts17.onnx");
    assert_eq!(ledger["target"], "trt8");
    for kind in ["layernorm", "attention", "gelu", "window", "patch-merge"] {
        let count = &ledger["summary"][kind];
        let sum = ["fused", "kept", "missed"].iter().map(|k| count[*k].as_u64().unwrap()).sum::<u64>();
        assert_eq!(count["total"].as_u64().unwrap(), sum, "{kind}");
    }
    for path in [&out, &twin] {
        trt_opt(&["print", path]).success();
    }
    trt_opt(&["fuse", &input, "-o", &out, "--external-data", "../x"]).code(2).stderr(contains("without folders"));
}

#[test]
fn fuse_speaks_json_or_nothing() {
    let scratch = Scratch::new();
    let input = scratch.copy("vit_ts17.onnx");
    let value = json(trt_opt(&["fuse", &input, "--json"]).success());
    assert_eq!(value["output"], scratch.text("vit_ts17.fused.onnx"));
    assert!(value["before"]["nodes"].as_u64().unwrap() >= value["after"]["nodes"].as_u64().unwrap());
    assert_eq!(value["ledger"]["version"], 1);
    trt_opt(&["fuse", &input, "-q"]).success().stdout("").stderr("");
}

#[test]
fn required_kinds_must_not_be_left_out() {
    let model = fixture("swin_ts17.onnx");
    let args = ["fuse", &model, "-o", "/nonexistent/x.onnx", "--skip", "gelu", "--require", "gelu"];
    trt_opt(&args).code(2).stderr(contains("--require gelu"));
}

#[test]
fn unwritable_outputs_are_io_errors() {
    let model = fixture("vit_ts17.onnx");
    trt_opt(&["fuse", &model, "-o", "/nonexistent/x.onnx"]).code(5).stderr(contains("/nonexistent"));
}

// ---- inspect, print, diff ----

#[test]
fn inspect_says_what_a_model_is() {
    let model = fixture("swin_ts17.onnx");
    let text = stdout(trt_opt(&["inspect", &model]).success());
    for part in ["producer", "opset", "ai.onnx 17", "input float[1, 3, 16, 16]", "parameters", "MatMul"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let value = json(trt_opt(&["inspect", &model, "--json"]).success());
    assert_eq!(value["inputs"][0]["name"], "input");
    assert_eq!(value["opsets"][0]["version"], 17);
    assert!(
        value["contents"]["ops"]
            .as_array()
            .unwrap()
            .iter()
            .any(|op| op["op"] == "MatMul" && op["flops"].as_u64() > Some(0))
    );
}

#[test]
fn print_is_independent_of_names_and_order() {
    let scratch = Scratch::new();
    let model = trt_opt::onnx::load(Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture("vit_ts17.onnx")).as_path());
    let mut model = model.unwrap();
    let graph = model.proto.graph.as_mut().unwrap();
    let kept: Vec<String> = graph.input.iter().chain(&graph.output).map(|i| i.name().to_owned()).collect();
    let rename = |name: &mut String| {
        if !name.is_empty() && !kept.contains(name) {
            *name = format!("z/{name}");
        }
    };
    for node in &mut graph.node {
        node.name = Some(format!("other_{}", node.name.as_deref().unwrap_or_default()));
        node.input.iter_mut().chain(&mut node.output).for_each(rename);
    }
    graph.initializer.iter_mut().filter_map(|t| t.name.as_mut()).for_each(rename);
    graph.value_info.iter_mut().filter_map(|t| t.name.as_mut()).for_each(rename);
    graph.node.reverse();
    graph.initializer.reverse();
    let renamed = scratch.path("renamed.onnx");
    trt_opt::onnx::save(&model, &renamed, &Default::default()).unwrap();

    let original = stdout(trt_opt(&["print", &fixture("vit_ts17.onnx")]).success());
    assert_eq!(stdout(trt_opt(&["print", renamed.to_str().unwrap()]).success()), original);
    assert!(original.contains("input %0 \"input\": float[1, 3, 16, 16]"), "{original}");
    trt_opt(&["diff", &fixture("vit_ts17.onnx"), renamed.to_str().unwrap()]).success().stdout("");
}

#[test]
fn diff_exits_with_1_on_a_difference() {
    let (a, b) = (fixture("spelling_gelu_ts.onnx"), fixture("spelling_gelu_native.onnx"));
    trt_opt(&["diff", &a, &a]).success().stdout("").stderr("");
    let text = stdout(trt_opt(&["diff", &a, &b]).code(1));
    assert!(text.starts_with("--- ") && text.contains("\n@@ "), "{text}");
    assert!(text.contains("Erf") && text.contains("added 1 Gelu"), "{text}");
    trt_opt(&["diff", &a, &b, "-q"]).code(1).stdout("").stderr("");
    let value = json(trt_opt(&["diff", &a, &b, "--json"]).code(1));
    assert_eq!(value["equal"], false);
    assert_eq!(value["added_ops"]["Gelu"], 1);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let program = command();
    let script = format!("{} print {} | head -n 1", program.get_program().to_str().unwrap(), fixture("swin_ts17.onnx"));
    let script = format!("set -o pipefail; {script}");
    let mut bash = Command::new("bash");
    let assert = bash.current_dir(env!("CARGO_MANIFEST_DIR")).args(["-c", &script]).assert();
    assert.success().stdout(contains("opset 17")).stderr("");
}

#[test]
fn colour_is_for_terminals() {
    let (a, b) = (fixture("spelling_gelu_ts.onnx"), fixture("spelling_gelu_native.onnx"));
    trt_opt(&["diff", &a, &b]).code(1).stdout(contains("\x1b[").not());
    trt_opt(&["diff", &a, &b, "--color", "always"]).code(1).stdout(contains("\x1b[31m"));
}

// ---- verify, doctor ----

#[test]
fn verify_passes_and_fails() {
    let (a, b) = (fixture("swin_ts17.onnx"), fixture("swin_dy18.onnx"));
    trt_opt(&["verify", &a, &b]).success().stdout(contains("equal within the tolerance"));
    trt_opt(&["verify", &a, &b, "-q"]).success().stdout("").stderr("");
    let value = json(trt_opt(&["verify", &a, &b, "--json"]).success());
    assert_eq!(value["passed"], true);
    assert_eq!(value["outputs"][0]["name"], "output");
    // No rounding error is that small.
    let half = (fixture("vit_ts17.onnx"), fixture("vit_ts17_fp16.onnx"));
    let value = json(trt_opt(&["verify", &half.0, &half.1, "--rtol", "1e-9", "--json"]).code(1));
    assert_eq!(value["passed"], false);
    trt_opt(&["verify", &half.0, &half.1, "--rtol", "1e-9"]).code(1).stderr(contains("output 'output'"));
}

/// A ViT of so many images that its attention blocks pay on one GPU alone.
#[test]
fn fuse_takes_the_gpu_that_the_model_is_for() {
    let scratch = Scratch::new();
    let input = scratch.path("vit.onnx");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture("vit_ts17_dyn.onnx"));
    let mut model = trt_opt::onnx::load(&source).unwrap();
    let graph = model.proto.graph.as_mut().unwrap();
    for value in graph.input.iter_mut().chain(&mut graph.output) {
        set_batch(value, 1 << 16);
    }
    trt_opt::onnx::save(&model, &input, &Default::default()).unwrap();
    let input = input.to_str().unwrap();

    let fused = |options: &[&str]| {
        let arguments = [&["fuse", input, "--json", "--also", "attn-block"], options].concat();
        let report = json(trt_opt(&arguments).success());
        let ledger = report["ledger"].clone();
        let missed = ledger["sites"].as_array().unwrap().iter().find(|s| s["status"] == "missed").cloned();
        (ledger["summary"]["attn-block"]["fused"].as_u64().unwrap(), missed)
    };
    let (blocks, missed) = fused(&[]);
    let reason = missed.unwrap()["reason"].as_str().unwrap().to_owned();
    assert_eq!((blocks, reason.contains("--compute-capability 9.0")), (0, true), "{reason}");
    assert_eq!(fused(&["--compute-capability", "8.0"]).0, 0);
    assert_eq!(fused(&["--compute-capability", "9.0"]), (2, None));
    for wrong in ["9", "sm_90", "hopper"] {
        trt_opt(&["fuse", input, "--compute-capability", wrong]).code(2).stderr(contains("MAJOR.MINOR"));
    }
}

fn set_batch(value: &mut ValueInfoProto, batch: i64) {
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().and_then(|t| t.value.as_mut()) else {
        panic!("{value:?} is no tensor");
    };
    tensor.shape.as_mut().unwrap().dim[0].value = Some(tensor_shape_proto::Value::DimValue(batch));
}

#[test]
fn fuse_can_verify_what_it_writes() {
    let scratch = Scratch::new();
    let out = scratch.text("out.onnx");
    let args = ["fuse", &fixture("swin_ts17_dyn.onnx"), "-o", &out, "--verify", "--batch", "3"];
    trt_opt(&args).success().stdout(contains("equal within the tolerance"));
    assert!(Path::new(&out).exists());
}

#[test]
fn fuse_converts_to_fp16_and_accounts_for_it() {
    let scratch = Scratch::new();
    let (out, ledger) = (scratch.text("out.onnx"), scratch.text("ledger.json"));
    let model = fixture("spelling_not_layernorm_rms.onnx");
    let args = ["fuse", &model, "-o", &out, "--target", "native", "--fp16", "--verify", "--ledger", &ledger];
    let text = stdout(trt_opt(&args).success());
    for part in ["precision", "calibrated on random inputs, seed 0", "variance", "1.0e-2", "equal within the tolerance"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let ledger: Value = serde_json::from_slice(&std::fs::read(&ledger).unwrap()).unwrap();
    assert_eq!(ledger["precision"]["converted"], true);
    assert_eq!(ledger["precision"]["islands"][0]["causes"][0]["kind"], "variance");

    // Half the weights, the same interface; with --fp16-io another one.
    let model = fixture("swin_ts17.onnx");
    let value = json(trt_opt(&["fuse", &model, "-o", &out, "--fp16", "--json"]).success());
    let bytes = &value["ledger"]["precision"]["weight_bytes"];
    assert_eq!(bytes["float32"], 0);
    assert!(bytes["float16"].as_u64().unwrap() * 2 < value["before"]["weight_bytes"].as_u64().unwrap());
    let interface = |args: &[&str]| {
        trt_opt(&[&["fuse", &model, "-o", &out, "-q"], args].concat()).success();
        json(trt_opt(&["inspect", &out, "--json"]).success())["inputs"][0]["type"].clone()
    };
    assert_eq!(interface(&["--fp16"]), "float[1, 3, 16, 16]");
    assert_eq!(interface(&["--fp16", "--fp16-io", "--verify"]), "float16[1, 3, 16, 16]");
    trt_opt(&["fuse", &model, "-o", &out, "--fp16-io"]).code(2).stderr(contains("--fp16"));

    let half = fixture("swin_ts17_fp16.onnx");
    trt_opt(&["fuse", &half, "-o", &out, "--fp16"]).success().stdout(contains("in float16 already"));
    let missing = ["fuse", &model, "-o", &out, "--fp16", "--onnxruntime", "/nonexistent"];
    trt_opt(&missing).code(4).stderr(contains("pip install onnxruntime"));
}

#[test]
fn converted_weights_stay_where_they_were() {
    let scratch = Scratch::new();
    let (beside, out) = (scratch.text("beside.onnx"), scratch.text("out.onnx"));
    let args = ["fuse", &fixture("swin_ts17.onnx"), "-o", &beside, "-q", "--external-data", "beside.weights"];
    trt_opt(&args).success();
    let all = std::fs::metadata(scratch.path("beside.weights")).unwrap().len();
    trt_opt(&["fuse", &beside, "-o", &out, "--fp16", "--verify", "-q"]).success();
    // The file of the input is as it was, and the output has one of its own.
    assert_eq!(scratch.files(), ["beside.onnx", "beside.weights", "out.onnx", "out.onnx.data"]);
    assert_eq!(std::fs::metadata(scratch.path("beside.weights")).unwrap().len(), all);
    assert!(std::fs::metadata(scratch.path("out.onnx.data")).unwrap().len() < all);
    trt_opt(&["verify", &beside, &out, "--rtol", "1e-2"]).success();
}

#[test]
fn fuse_takes_inputs_for_its_runs() {
    let scratch = Scratch::new();
    let (out, inputs) = (scratch.text("out.onnx"), scratch.text("images.npy"));
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 16, 16), }";
    let mut bytes = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    bytes.extend(format!("{header:<117}\n").as_bytes());
    bytes.extend((0..3 * 16 * 16).flat_map(|i| (i as f32 / 100.0).to_le_bytes()));
    std::fs::write(&inputs, bytes).unwrap();
    let model = fixture("vit_ts17.onnx");
    let args = ["fuse", &model, "-o", &out, "--fp16", "--inputs", &inputs, "--verify", "--json"];
    let value = json(trt_opt(&args).success());
    assert_eq!(value["ledger"]["precision"]["calibration"], "images.npy");
    assert_eq!(value["verify"]["seed"], Value::Null);
    assert_eq!(value["verify"]["outputs"][0]["tolerance"], 1e-2);
    trt_opt(&["fuse", &model, "-o", &out, "--inputs", &inputs]).code(2).stderr(contains("--inputs"));
    let text = scratch.text("text.npy");
    std::fs::write(&text, "no array").unwrap();
    trt_opt(&["fuse", &model, "-o", &out, "--fp16", "--inputs", &text]).code(3).stderr(contains("text.npy"));
}

#[test]
fn missing_onnx_runtime_exits_with_4_and_says_how_to_get_it() {
    let model = fixture("swin_ts17.onnx");
    for how in ["/nonexistent/libonnxruntime.so", "src"] {
        let args = ["verify", &model, &model, "--onnxruntime", how];
        trt_opt(&args).code(4).stderr(contains("pip install onnxruntime").and(contains(how)));
        let assert = command().args(["verify", &model, &model]).env("ORT_DYLIB_PATH", how).assert();
        assert.code(4).stderr(contains("ORT_DYLIB_PATH"));
    }
    let args = ["verify", &model, &model, "--onnxruntime", "Cargo.toml"];
    trt_opt(&args).code(4).stderr(contains("Cargo.toml").and(contains("cannot be loaded")));
}

/// The program in a folder of its own, where nothing says where ONNX Runtime is.
#[cfg(unix)]
fn alone(folder: &Path) -> Command {
    let mut command = command();
    command.current_dir(folder).env("PATH", "");
    for variable in ["ORT_DYLIB_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"] {
        command.env_remove(variable);
    }
    command
}

#[test]
#[cfg(unix)]
fn onnx_runtime_is_found_in_a_project_environment() {
    let library = trt_opt::verify::runtime(None).unwrap().path.clone();
    let scratch = Scratch::new();
    let model = scratch.copy("vit_ts17.onnx");
    let system =
        Path::new("/usr/lib/libonnxruntime.so").exists() || Path::new("/usr/local/lib/libonnxruntime.so").exists();
    if !system {
        alone(scratch.0.path())
            .args(["verify", &model, &model])
            .assert()
            .code(4)
            .stderr(contains("no library was found"));
    }
    let capi = scratch.path(".env/tools/lib/python3.12/site-packages/onnxruntime/capi");
    std::fs::create_dir_all(&capi).unwrap();
    std::os::unix::fs::symlink(&library, capi.join("libonnxruntime.so.1.99.0")).unwrap();
    let below = scratch.path("deep/down");
    std::fs::create_dir_all(&below).unwrap();
    let report = json(alone(&below).args(["verify", &model, &model, "--json"]).assert().success());
    assert!(report["library"].as_str().unwrap().contains(".env/tools"), "{report}");
}

#[test]
fn doctor_reports_and_requires() {
    trt_opt(&["doctor"]).success().stdout(contains("ONNX Runtime").and(contains("TensorRT")).and(contains("nvcc")));
    let value = json(trt_opt(&["doctor", "--json"]).success());
    let parts: Vec<&str> = value["findings"].as_array().unwrap().iter().map(|f| f["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["onnxruntime", "plugins", "tensorrt", "nvcc", "gpu"]);
    trt_opt(&["doctor", "--require", "onnxruntime"]).success();
    let args = ["doctor", "--onnxruntime", "/nonexistent"];
    trt_opt(&args).success().stdout(contains("missing").and(contains("pip install onnxruntime")));
    trt_opt(&[&args[..], &["--require", "onnxruntime"]].concat()).code(4).stderr(contains("ONNX Runtime"));
}
