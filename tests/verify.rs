//! Comparison of models in ONNX Runtime. `.ci/run` sets up the library; without it these tests fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trt_opt::Error;
use trt_opt::onnx::proto::TensorProto;
use trt_opt::onnx::{self, DType, Model, SaveOptions};
use trt_opt::verify::{self, Array, Data, Options, Source};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn compare(a: &Path, b: &Path) -> verify::Report {
    verify::compare(a, b, &Options::default()).unwrap()
}

/// The model with its largest float weight changed by `change`, in a file of its own.
fn perturbed(name: &str, dir: &Path, change: impl Fn(&mut Vec<f32>)) -> PathBuf {
    let mut model = onnx::load(&fixture(name)).unwrap();
    let weights = &mut model.proto.graph.as_mut().unwrap().initializer;
    let floats = weights.iter_mut().filter(|t| t.dtype().unwrap() == DType::F32);
    let tensor = floats.max_by_key(|t| t.len().unwrap()).unwrap();
    let mut values = tensor.to_f32_vec().unwrap();
    change(&mut values);
    *tensor = TensorProto::from_f32(tensor.name(), &tensor.dims.clone(), &values);
    let path = dir.join("perturbed.onnx");
    onnx::save(&model, &path, &SaveOptions::default()).unwrap();
    path
}

#[test]
fn exporters_agree() {
    let report = compare(&fixture("swin_ts17.onnx"), &fixture("swin_dy20.onnx"));
    assert!(report.passed, "{report:?}");
    assert_eq!(report.outputs.len(), 1);
    assert_eq!(report.outputs[0].shape, [1, 10]);
    assert_eq!(report.outputs[0].tolerance, verify::RTOL_FLOAT);
    report.check().unwrap();
}

#[test]
fn one_changed_weight_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let changed = perturbed("vit_ts17.onnx", dir.path(), |values| values[3] += 0.5);
    let report = compare(&fixture("vit_ts17.onnx"), &changed);
    assert!(!report.passed);
    let error = report.check().unwrap_err();
    assert_eq!(error.exit_code(), trt_opt::error::exit::CHECK_FAILED);
    let text = error.to_string();
    assert!(text.contains("output 'output': relative error"), "{text}");
    assert!(text.contains("perturbed.onnx"), "{text}");
    let worst = report.outputs[0].worst.clone().unwrap();
    assert_eq!(worst.index.len(), 2);
    assert_ne!(worst.a, worst.b);

    // A wider tolerance lets it pass.
    let options = Options { rtol: Some(10.0), ..Options::default() };
    assert!(verify::compare(&fixture("vit_ts17.onnx"), &changed, &options).unwrap().passed);
}

#[test]
fn nan_does_not_pass() {
    let dir = tempfile::tempdir().unwrap();
    let broken = perturbed("vit_ts17.onnx", dir.path(), |values| values.fill(f32::NAN));
    let report = verify::compare(&broken, &broken, &Options { rtol: Some(1e30), ..Options::default() }).unwrap();
    assert!(!report.passed);
    assert!(report.outputs[0].nan > 0);
}

#[test]
fn half_has_its_own_tolerance() {
    let report = compare(&fixture("vit_dy20_fp16.onnx"), &fixture("vit_ts17_fp16.onnx"));
    assert!(report.passed, "{report:?}");
    assert_eq!(report.outputs[0].tolerance, verify::RTOL_HALF);
    // A float model and its float16 twin take the same input, and their outputs are compared as numbers.
    let report = compare(&fixture("vit_ts17.onnx"), &fixture("vit_ts17_fp16.onnx"));
    assert!(report.outputs[0].problem.is_none(), "{report:?}");
}

#[test]
fn open_batches_are_filled_in() {
    let a = fixture("swin_ts17_dyn.onnx");
    assert_eq!(compare(&a, &fixture("swin_dy18_dyn.onnx")).inputs[0].shape[0], verify::DEFAULT_BATCH);
    let options = Options { batch: Some(3), ..Options::default() };
    let report = verify::compare(&a, &a, &options).unwrap();
    assert_eq!((report.inputs[0].shape[0], report.outputs[0].shape[0], report.passed), (3, 3, true));
    // The other model's batch decides where it is fixed.
    assert_eq!(compare(&a, &fixture("swin_ts17.onnx")).inputs[0].shape[0], 1);
    let error = verify::compare(&fixture("swin_ts17.onnx"), &a, &options).unwrap_err();
    assert!(error.to_string().contains("--batch 3"), "{error}");
}

#[test]
fn unknown_axes_are_asked_for() {
    let dims = BTreeMap::from([("no_such_axis".to_owned(), 4)]);
    let a = fixture("swin_ts17_dyn.onnx");
    let error = verify::compare(&a, &a, &Options { dims, ..Options::default() }).unwrap_err();
    assert!(error.to_string().contains("--dim no_such_axis"), "{error}");
}

#[test]
fn different_interfaces_are_told_apart() {
    let error = verify::compare(&fixture("swin_ts17.onnx"), &fixture("swin_ts17_b2.onnx"), &Options::default());
    let error = error.unwrap_err();
    assert!(matches!(error, Error::CheckFailed(_)), "{error}");
    assert!(error.to_string().contains("[1, 3, 16, 16]"), "{error}");
}

#[test]
fn inputs_come_from_numpy_files() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..3 * 16 * 16).map(|i| (i as f32 * 0.37).sin()).collect();
    let npy = dir.path().join("x.npy");
    write_npy(&mut std::fs::File::create(&npy).unwrap(), &values, &[1, 3, 16, 16]);
    let npz = dir.path().join("x.npz");
    let mut archive = zip::ZipWriter::new(std::fs::File::create(&npz).unwrap());
    archive.start_file("input.npy", zip::write::SimpleFileOptions::default()).unwrap();
    std::io::Write::write_all(&mut archive, &std::fs::read(&npy).unwrap()).unwrap();
    archive.finish().unwrap();
    let a = fixture("swin_ts17.onnx");
    for file in [&npy, &npz] {
        let options = Options { inputs: Some(file.clone()), ..Options::default() };
        let report = verify::compare(&a, &fixture("swin_dy18.onnx"), &options).unwrap();
        assert!(report.passed && report.seed.is_none(), "{report:?}");
    }
    let arrays = verify::read_numpy(&npz).unwrap();
    assert_eq!(arrays[0].0, "input");
    let expected: Vec<f64> = values.iter().map(|&v| v.into()).collect();
    assert_eq!(arrays[0].1, Array { dtype: DType::F32, shape: vec![1, 3, 16, 16], data: Data::Float(expected) });

    write_npy(&mut std::fs::File::create(&npy).unwrap(), &values, &[3, 16, 16]);
    let options = Options { inputs: Some(npy), ..Options::default() };
    let error = verify::compare(&a, &a, &options).unwrap_err().to_string();
    assert!(error.contains("[3, 16, 16]") && error.contains("[1, 3, 16, 16]"), "{error}");
}

fn write_npy(file: &mut std::fs::File, values: &[f32], shape: &[u64]) {
    use npyz::WriterBuilder;
    let options = npyz::WriteOptions::new().default_dtype().shape(shape);
    let mut writer = options.writer(file).begin_nd().unwrap();
    writer.extend(values.iter().copied()).unwrap();
    writer.finish().unwrap();
}

#[test]
fn models_in_memory_can_be_compared() {
    let model: Model = onnx::load(&fixture("vit_ts17.onnx")).unwrap();
    let path = fixture("vit_ts17.onnx");
    let source = Source::Model { name: "memory", model: &model };
    let report = verify::compare(&path, source, &Options::default()).unwrap();
    assert!(report.passed);
    assert_eq!(report.b, "memory");
}

#[test]
fn what_onnx_runtime_refuses_is_an_error() {
    let mut model = onnx::load(&fixture("vit_ts17.onnx")).unwrap();
    model.proto.graph.as_mut().unwrap().node[0].op_type = Some("NoSuchOp".into());
    let source = Source::Model { name: "odd", model: &model };
    let error = verify::compare(source, source, &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Runtime { .. }), "{error}");
    assert!(error.to_string().contains("loading odd") && error.to_string().contains("NoSuchOp"), "{error}");
}
