//! Loading and saving: nothing is lost, external data, large models.

use std::fs;
use std::path::{Path, PathBuf};

use onnx_protobuf::Message as _;
use trt_opt::onnx::{self, SaveOptions};

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    assert!(!files.is_empty());
    files
}

/// What an independent reader sees in a file, fields that it does not know included.
fn independent(bytes: &[u8]) -> onnx_protobuf::ModelProto {
    onnx_protobuf::ModelProto::parse_from_bytes(bytes).unwrap()
}

#[test]
fn fixtures_survive() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    for path in fixtures() {
        let model = onnx::load(&path).unwrap();
        onnx::check_supported(&model).unwrap();
        let stats = onnx::save(&model, &out, &SaveOptions::default()).unwrap();
        let (before, after) = (fs::read(&path).unwrap(), fs::read(&out).unwrap());
        assert_eq!(stats.model_bytes, after.len() as u64);
        assert!(independent(&before) == independent(&after), "{}", path.display());
        assert_eq!(onnx::to_vec(&model).unwrap(), after);
        // Exporters write fields in the order of their numbers, as this crate does.
        assert!(before == after, "{}: other bytes for the same content", path.display());
    }
}
