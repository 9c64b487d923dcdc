//! Broken files end in an error: no panic, no hang, no more memory than 1 GB.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use trt_opt::onnx::proto::{AttributeProto, AttributeType, GraphProto, ModelProto, NodeProto};
use trt_opt::onnx::{self, Model, SaveOptions};

use common::{Random, in_child, timed};

const MEMORY: u64 = 1 << 30;

/// Loads, and saves what loads. An error is fine, slowness is not.
fn try_it(bytes: Bytes, what: &dyn Fn() -> String) -> Option<Model> {
    let (model, time) = timed(|| {
        let model =
            onnx::from_bytes(bytes, Path::new("broken.onnx")).inspect_err(|e| assert!(!e.to_string().is_empty()));
        let model = model.ok()?;
        let _ = onnx::check_supported(&model);
        if let Ok(saved) = onnx::to_vec(&model) {
            let again = onnx::from_bytes(saved.into(), Path::new("saved.onnx")).unwrap();
            // Not equality of messages, in which a NaN would differ from itself.
            assert!(again.proto.encode_to_vec() == model.proto.encode_to_vec(), "{}", what());
        }
        Some(model)
    });
    assert!(time < Duration::from_secs(1), "{}: {time:?}", what());
    model
}

fn message(bytes: impl Into<Bytes>) -> String {
    onnx::from_bytes(bytes.into(), Path::new("m.onnx")).unwrap_err().to_string()
}

/// The fixtures whose bytes are varied: all kinds, but not all of each kind.
fn some_fixtures() -> Vec<(String, Vec<u8>)> {
    let all = common::fixtures();
    let picked = all.iter().enumerate().filter(|(i, path)| i % 6 == 0 || !path.to_string_lossy().contains("spelling"));
    picked.map(|(_, path)| (path.file_name().unwrap().to_string_lossy().into(), fs::read(path).unwrap())).collect()
}

#[test]
fn truncated() {
    let peak = in_child("truncated", || {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in some_fixtures() {
            let whole = Bytes::from(bytes);
            let short = 1..whole.len().min(65);
            for len in short.chain((1024..whole.len()).step_by(1024)) {
                // Only a cut between two fields after the graph leaves a model, one without its opsets.
                if let Some(model) = try_it(whole.slice(..len), &|| format!("{name} cut to {len}")) {
                    assert!(onnx::check_supported(&model).is_err(), "{name} cut to {len}");
                }
            }
            let path = folder.path().join(&name);
            fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            let error = onnx::load(&path).unwrap_err().to_string();
            let bytes = format!("{} bytes", whole.len() / 2);
            assert!(error.contains("it may be truncated") && error.ends_with(&bytes), "{error}");
        }
    });
    assert!(peak.is_none_or(|peak| peak < MEMORY), "{peak:?}");
}

#[test]
fn flipped() {
    let peak = in_child("flipped", || {
        let mut random = Random(7);
        let mut loaded = 0;
        let fixtures = some_fixtures();
        let rounds = 4000 / fixtures.len() + 1;
        for (name, bytes) in &fixtures {
            for round in 0..rounds {
                let mut broken = bytes.clone();
                for _ in 0..1 + random.below(4) {
                    // Half of the changes near the start, where lengths of whole messages are.
                    let near = if random.below(2) == 0 { 400 } else { broken.len() };
                    let at = random.below(near.min(broken.len()));
                    match random.below(4) {
                        0 => broken[at] = 0xff,
                        1 => broken[at] ^= 1 << random.below(8),
                        2 => broken[at] = random.next() as u8,
                        _ => drop(broken.remove(at)),
                    }
                }
                loaded += usize::from(try_it(broken.into(), &|| format!("{name}, round {round}")).is_some());
            }
        }
        assert!(loaded > 0, "changes of weights still load");
    });
    assert!(peak.is_none_or(|peak| peak < MEMORY), "{peak:?}");
}

#[test]
fn noise() {
    let mut random = Random(11);
    for len in 0..2000 {
        let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        try_it(bytes.into(), &|| format!("{len} random bytes"));
    }
}

#[test]
fn wrong_tensors() {
    let peak = in_child("wrong_tensors", || {
        for (tensor, part) in common::malformed_tensors() {
            let initializer = common::model(vec![common::node("Relu", &["x"], &["y"])], vec![tensor.clone()]);
            let error = message(initializer.encode_to_vec());
            assert!(error.starts_with("m.onnx: tensor 'w': ") && error.contains(part), "{error}\nexpected: {part}");

            let mut constant = common::node("Constant", &[], &["y"]);
            constant.attribute.push(AttributeProto::tensor("value", without_name(tensor)));
            let error = message(common::model(vec![constant], vec![]).encode_to_vec());
            let start = "m.onnx: attribute value of node Constant_y: ";
            assert!(error.starts_with(start) && error.contains(part), "{error}\nexpected: {part}");
        }
    });
    assert!(peak.is_none_or(|peak| peak < MEMORY), "{peak:?}");
}

fn without_name(tensor: onnx::proto::TensorProto) -> onnx::proto::TensorProto {
    onnx::proto::TensorProto { name: None, ..tensor }
}

#[test]
fn a_wrong_tensor_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    for (tensor, _) in common::malformed_tensors() {
        let model = Model::new(common::model(vec![common::node("Relu", &["x"], &["y"])], vec![tensor]), "m.onnx");
        let error = onnx::save(&model, &folder.path().join("out.onnx"), &SaveOptions::default());
        // What is wrong with its location does not matter when it is written.
        if model.proto.graph.as_ref().unwrap().initializer[0].data_location.is_none() {
            assert!(error.is_err());
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        }
    }
}

/// What is wrong with a graph is for others to find; here it must survive.
#[test]
fn wrong_graphs_are_kept() {
    for (what, proto) in common::malformed_graphs() {
        let model = try_it(proto.encode_to_vec().into(), &|| what.to_owned()).expect(what);
        assert!(model.proto == proto, "{what}");
    }
}

#[test]
fn versions() {
    let base = || common::model(vec![common::node("Relu", &["x"], &["y"])], vec![]);
    let with_ir = |ir_version| message(ModelProto { ir_version, ..base() }.encode_to_vec());
    assert!(with_ir(Some(14)).contains("IR version 14 is not supported, versions up to 13 are"));
    assert!(with_ir(Some(i64::MIN)).contains("does not exist"));
    assert!(with_ir(None).contains("no ir_version"));

    let supported = |imports: &[(&str, i64)]| {
        let import = imports.iter().map(|(domain, version)| onnx::proto::OperatorSetIdProto {
            domain: Some(domain.to_string()),
            version: Some(*version),
        });
        let proto = ModelProto { opset_import: import.collect(), ..base() };
        onnx::check_supported(&Model::new(proto, "m.onnx")).map_err(|e| e.to_string())
    };
    assert_eq!(supported(&[("", 11)]), Ok(()));
    assert_eq!(supported(&[("com.microsoft", 1), ("ai.onnx", 23)]), Ok(()));
    assert!(supported(&[("", 10)]).unwrap_err().contains("opset 10 is not supported, opsets 11 to 23 are"));
    assert!(supported(&[("", 24)]).unwrap_err().contains("opset 24"));
    assert!(supported(&[("com.microsoft", 1)]).unwrap_err().contains("imports no opset of the default domain"));
    assert!(supported(&[]).is_err());
}

/// A graph inside an attribute inside a graph, `levels` times.
fn nested(levels: usize) -> ModelProto {
    let mut model = common::model(vec![common::node("Relu", &["x"], &["y"])], vec![]);
    for _ in 0..levels {
        let inner = model.graph.take().unwrap();
        let attribute = AttributeProto {
            name: Some("body".into()),
            r#type: Some(AttributeType::Graph as i32),
            g: Some(Box::new(inner)),
            ..AttributeProto::default()
        };
        let node = NodeProto { attribute: vec![attribute], ..common::node("If", &["c"], &["y"]) };
        model.graph = Some(GraphProto { node: vec![node], ..GraphProto::default() });
    }
    model
}

#[test]
fn deep_nesting_is_refused_not_followed() {
    let model = try_it(nested(30).encode_to_vec().into(), &|| "30 levels".to_owned()).unwrap();
    assert!(model.proto == nested(30));
    for levels in [40, 300] {
        let error = message(nested(levels).encode_to_vec());
        assert!(error.contains("recursion limit"), "{error}");
    }

    // Far deeper than could be made as messages: each level wraps the bytes of the one before.
    let wrap = |field: u8, inner: &[u8]| {
        let mut out = vec![field << 3 | 2];
        prost::encode_length_delimiter(inner.len(), &mut out).unwrap();
        out.extend_from_slice(inner);
        out
    };
    let mut graph = Vec::new();
    for _ in 0..3000 {
        graph = wrap(1, &wrap(5, &wrap(6, &graph)));
    }
    assert!(message(wrap(7, &graph)).contains("recursion limit"));
    // Groups of an unknown field, opened and never closed.
    assert!(!message(vec![0xfb; 1 << 20]).is_empty());
    // A type of a type of a type.
    let mut sequence = Vec::new();
    for _ in 0..3000 {
        sequence = wrap(4, &wrap(1, &sequence));
    }
    assert!(message(wrap(7, &wrap(11, &wrap(2, &sequence)))).contains("recursion limit"));
}

#[test]
fn files_that_are_no_models() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| onnx::load(path).unwrap_err().to_string();
    assert!(error(folder.path()).contains("is a folder; expected an ONNX file"));
    assert!(error(&folder.path().join("none.onnx")).starts_with("cannot read "));
    let file = folder.path().join("file.onnx");
    let says = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        error(&file)
    };
    assert!(says(b"").ends_with("is empty (0 bytes); expected an ONNX model"));
    assert!(says(b"# Model\n\nThis is my model.\n").contains("looks like text that starts with \"# Model"));
    assert!(says(b"PK\x03\x04\x14\0\0\0").contains("zip archive"));
    assert!(says(&[0; 100]).contains("not an ONNX protobuf: invalid"));
    #[cfg(unix)]
    if std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status().is_ok_and(|s| s.success()) {
        assert!(error(&folder.path().join("pipe")).contains("is not a regular file"));
    }
}
