//! Loading and saving: nothing is lost, external data, large models.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use onnx_protobuf::Message as _;
use prost::Message as _;
use trt_opt::onnx::proto::*;
use trt_opt::onnx::{self, DType, Model, SaveOptions};

use common::{external, in_child, node, timed};

/// What an independent reader sees in a file, fields that it does not know included.
fn independent(bytes: &[u8]) -> onnx_protobuf::ModelProto {
    onnx_protobuf::ModelProto::parse_from_bytes(bytes).unwrap()
}

/// Runs `tests/py/check_roundtrip.py`, if `TRT_OPT_PYTHON` names a Python that has the onnx package.
fn python(args: &[&dyn AsRef<std::ffi::OsStr>]) -> bool {
    let Some(python) = std::env::var_os("TRT_OPT_PYTHON") else {
        eprintln!("TRT_OPT_PYTHON is not set: not checked with the onnx package");
        return false;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/py/check_roundtrip.py");
    let output = Command::new(python).arg(script).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

fn entries(n: usize) -> Vec<StringStringEntryProto> {
    let entry = |i| StringStringEntryProto { key: Some(format!("k{i}")), value: Some(format!("välue {i}")) };
    // A key without a value, and one that is empty.
    let odd = [
        StringStringEntryProto { key: Some("only".into()), value: None },
        StringStringEntryProto { key: Some(String::new()), value: Some(String::new()) },
    ];
    (0..n).map(entry).chain(odd).collect()
}

/// Tensors that together set every field of `TensorProto`.
fn every_tensor() -> Vec<TensorProto> {
    let base = |dtype: DType, n: i64| TensorProto {
        dims: vec![n],
        data_type: Some(dtype as i32),
        segment: None,
        float_data: vec![],
        int32_data: vec![],
        string_data: vec![],
        int64_data: vec![],
        name: Some(format!("t_{dtype}")),
        raw_data: None,
        double_data: vec![],
        uint64_data: vec![],
        doc_string: Some("doc".into()),
        external_data: vec![],
        data_location: None,
        metadata_props: entries(1),
    };
    vec![
        TensorProto { float_data: vec![0.0, -1.5], ..base(DType::F32, 2) },
        TensorProto { int32_data: vec![0, -1], ..base(DType::I32, 2) },
        TensorProto { int32_data: vec![0x3c00], ..base(DType::F16, 1) },
        TensorProto { string_data: vec![Bytes::from_static(b"\xff\0"), Bytes::new()], ..base(DType::String, 2) },
        TensorProto { int64_data: vec![i64::MIN, 0], ..base(DType::I64, 2) },
        TensorProto { double_data: vec![1e300], ..base(DType::F64, 1) },
        TensorProto { uint64_data: vec![u64::MAX, 0], ..base(DType::U64, 2) },
        TensorProto { raw_data: Some(Bytes::from(vec![7; 3])), ..base(DType::U8, 3) },
        TensorProto { raw_data: Some(Bytes::new()), dims: vec![0, 3], ..base(DType::F32, 0) },
        TensorProto { raw_data: Some(Bytes::from(vec![7; 3])), dims: vec![6], ..base(DType::I4, 0) },
        // A scalar without a name; a part of a larger tensor; entries that say nothing since the data is here.
        TensorProto { raw_data: Some(Bytes::from(vec![7; 2])), dims: vec![], name: None, ..base(DType::BF16, 0) },
        TensorProto {
            raw_data: Some(Bytes::from(vec![7; 4])),
            segment: Some(TensorSegment { begin: Some(1), end: Some(2) }),
            data_location: Some(DataLocation::Default as i32),
            external_data: entries(2),
            ..base(DType::F32, 5)
        },
    ]
}

fn sparse() -> SparseTensorProto {
    SparseTensorProto {
        values: Some(TensorProto::from_f32("sparse", &[2], &[1.0, 2.0])),
        indices: Some(TensorProto::from_i64("", &[2], &[3, 5])),
        dims: vec![8],
    }
}

/// Types of every kind.
fn every_type() -> Vec<TypeProto> {
    use tensor_shape_proto::{Dimension, Value as Dim};
    use type_proto::Value;
    let shape = TensorShapeProto {
        dim: vec![
            Dimension { value: Some(Dim::DimValue(0)), denotation: Some("DATA_BATCH".into()) },
            Dimension { value: Some(Dim::DimParam("N".into())), denotation: None },
            Dimension { value: None, denotation: None },
        ],
    };
    let tensor = TypeProto {
        value: Some(Value::TensorType(type_proto::Tensor { elem_type: Some(1), shape: Some(shape.clone()) })),
        denotation: Some("IMAGE".into()),
    };
    let of = |value| TypeProto { value: Some(value), denotation: None };
    vec![
        tensor.clone(),
        of(Value::SparseTensorType(type_proto::SparseTensor { elem_type: Some(10), shape: Some(shape) })),
        of(Value::SequenceType(Box::new(type_proto::Sequence { elem_type: Some(Box::new(tensor.clone())) }))),
        of(Value::MapType(Box::new(type_proto::Map { key_type: Some(8), value_type: Some(Box::new(tensor.clone())) }))),
        of(Value::OptionalType(Box::new(type_proto::Optional { elem_type: Some(Box::new(tensor)) }))),
        of(Value::OpaqueType(type_proto::Opaque { domain: Some("d".into()), name: Some("n".into()) })),
        // A scalar and a tensor of unknown rank differ by the presence of the shape alone.
        of(Value::TensorType(type_proto::Tensor { elem_type: Some(1), shape: Some(TensorShapeProto { dim: vec![] }) })),
        of(Value::TensorType(type_proto::Tensor { elem_type: None, shape: None })),
        TypeProto { value: None, denotation: Some(String::new()) },
    ]
}

/// One attribute of every type, each with every field that may stand beside it.
fn every_attribute() -> Vec<AttributeProto> {
    let base = |kind: AttributeType| AttributeProto {
        name: Some(format!("{kind:?}")),
        f: None,
        i: None,
        s: None,
        t: None,
        g: None,
        floats: vec![],
        ints: vec![],
        strings: vec![],
        tensors: vec![],
        graphs: vec![],
        doc_string: Some("doc".into()),
        tp: None,
        type_protos: vec![],
        r#type: Some(kind as i32),
        ref_attr_name: None,
        sparse_tensor: None,
        sparse_tensors: vec![],
    };
    use AttributeType as Kind;
    let graph = GraphProto {
        node: vec![node("Relu", &["x"], &["y"])],
        initializer: every_tensor(),
        sparse_initializer: vec![sparse()],
        ..GraphProto::default()
    };
    vec![
        AttributeProto { f: Some(0.0), ..base(Kind::Float) },
        AttributeProto { i: Some(0), ..base(Kind::Int) },
        AttributeProto { s: Some(Bytes::from_static(b"\xfe")), ..base(Kind::String) },
        AttributeProto { t: Some(Box::new(every_tensor().swap_remove(0))), ..base(Kind::Tensor) },
        AttributeProto { g: Some(Box::new(graph.clone())), ..base(Kind::Graph) },
        AttributeProto { floats: vec![0.0, -0.0, f32::MAX], ..base(Kind::Floats) },
        AttributeProto { ints: vec![0, -1, i64::MAX], ..base(Kind::Ints) },
        AttributeProto { strings: vec![Bytes::new(), Bytes::from_static(b"a")], ..base(Kind::Strings) },
        AttributeProto { tensors: every_tensor(), ..base(Kind::Tensors) },
        AttributeProto { graphs: vec![graph, GraphProto::default()], ..base(Kind::Graphs) },
        AttributeProto { sparse_tensor: Some(sparse()), ..base(Kind::SparseTensor) },
        AttributeProto { sparse_tensors: vec![sparse(), sparse()], ..base(Kind::SparseTensors) },
        AttributeProto { tp: Some(every_type().swap_remove(2)), ..base(Kind::TypeProto) },
        AttributeProto { type_protos: every_type(), ..base(Kind::TypeProtos) },
        AttributeProto { ref_attr_name: Some("alpha".into()), ..base(Kind::Float) },
        AttributeProto { name: Some("empty".into()), ..AttributeProto::default() },
    ]
}

fn every_sharding() -> NodeDeviceConfigurationProto {
    let simple = |dim| SimpleShardedDimProto { dim, num_shards: Some(2) };
    NodeDeviceConfigurationProto {
        configuration_id: Some("c".into()),
        sharding_spec: vec![ShardingSpecProto {
            tensor_name: Some("x".into()),
            device: vec![0, -1],
            index_to_device_group_map: vec![IntIntListEntryProto { key: Some(0), value: vec![1, 2] }],
            sharded_dim: vec![ShardedDimProto {
                axis: Some(-1),
                simple_sharding: vec![
                    simple(Some(simple_sharded_dim_proto::Dim::DimValue(0))),
                    simple(Some(simple_sharded_dim_proto::Dim::DimParam("N".into()))),
                    simple(None),
                ],
            }],
        }],
        pipeline_stage: Some(0),
    }
}

/// A model in which every field of every message is set. Messages are written out in full, so that one with a
/// new field does not compile until it is here.
fn every_field() -> ModelProto {
    let values = || {
        let of_type = |(i, t)| ValueInfoProto {
            name: Some(format!("v{i}")),
            r#type: Some(t),
            doc_string: Some("doc".into()),
            metadata_props: entries(1),
        };
        every_type().into_iter().enumerate().map(of_type).chain([ValueInfoProto::default()]).collect::<Vec<_>>()
    };
    let full_node = || NodeProto {
        input: vec!["x".into(), String::new(), "w".into()],
        output: vec!["y".into(), String::new()],
        name: Some("node".into()),
        op_type: Some("Op".into()),
        attribute: every_attribute(),
        doc_string: Some("doc".into()),
        domain: Some("domain".into()),
        overload: Some("overload".into()),
        metadata_props: entries(1),
        device_configurations: vec![every_sharding(), NodeDeviceConfigurationProto::default()],
    };
    let graph = || GraphProto {
        node: vec![full_node(), NodeProto::default()],
        name: Some("graph".into()),
        initializer: every_tensor(),
        doc_string: Some("doc".into()),
        input: values(),
        output: values(),
        value_info: values(),
        quantization_annotation: vec![
            TensorAnnotation { tensor_name: Some("x".into()), quant_parameter_tensor_names: entries(2) },
            TensorAnnotation::default(),
        ],
        sparse_initializer: vec![sparse()],
        metadata_props: entries(2),
    };
    let opsets = || {
        vec![
            OperatorSetIdProto { domain: Some(String::new()), version: Some(23) },
            OperatorSetIdProto { domain: Some("com.example".into()), version: Some(1) },
        ]
    };
    ModelProto {
        ir_version: Some(onnx::MAX_IR_VERSION),
        producer_name: Some("producer".into()),
        producer_version: Some("1.0".into()),
        domain: Some("domain".into()),
        model_version: Some(-1),
        doc_string: Some("doc".into()),
        graph: Some(graph()),
        opset_import: opsets(),
        metadata_props: entries(3),
        training_info: vec![
            TrainingInfoProto {
                initialization: Some(graph()),
                algorithm: Some(graph()),
                initialization_binding: entries(1),
                update_binding: entries(1),
            },
            TrainingInfoProto::default(),
        ],
        functions: vec![
            FunctionProto {
                name: Some("f".into()),
                input: vec!["a".into()],
                output: vec!["b".into()],
                attribute: vec!["alpha".into()],
                node: vec![full_node()],
                doc_string: Some("doc".into()),
                opset_import: opsets(),
                domain: Some("com.example".into()),
                attribute_proto: every_attribute(),
                value_info: values(),
                overload: Some("o".into()),
                metadata_props: entries(1),
            },
            FunctionProto::default(),
        ],
        configuration: vec![DeviceConfigurationProto {
            name: Some("c".into()),
            num_devices: Some(0),
            device: vec!["gpu0".into(), String::new()],
        }],
    }
}

#[test]
fn every_field_survives() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.onnx"), folder.path().join("b.onnx"));
    let proto = every_field();
    fs::write(&a, proto.encode_to_vec()).unwrap();
    let model = onnx::load(&a).unwrap();
    assert!(model.proto == proto);
    onnx::save(&model, &b, &SaveOptions::default()).unwrap();
    assert!(onnx::load(&b).unwrap().proto == proto);
    assert!(independent(&fs::read(&a).unwrap()) == independent(&fs::read(&b).unwrap()));
    python(&[&"same", &a, &b, &"--full"]);
}

/// The other way round: the onnx package makes the model, from its own idea of the schema.
#[test]
fn every_field_of_another_writer_survives() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.onnx"), folder.path().join("b.onnx"));
    if python(&[&"fill", &a]) {
        onnx::save(&onnx::load(&a).unwrap(), &b, &SaveOptions::default()).unwrap();
        python(&[&"same", &a, &b, &"--full"]);
        assert!(independent(&fs::read(&a).unwrap()) == independent(&fs::read(&b).unwrap()));
    }
}

#[test]
fn what_is_not_set_stays_so() {
    let proto = ModelProto { ir_version: Some(10), graph: Some(GraphProto::default()), ..ModelProto::default() };
    let bytes = onnx::to_vec(&Model::new(proto.clone(), "m.onnx")).unwrap();
    assert_eq!(bytes, [0x08, 10, 0x3a, 0]);
    assert_eq!(onnx::from_bytes(bytes.into(), Path::new("m.onnx")).unwrap().proto, proto);
}

#[test]
fn fixtures_survive() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    for path in common::fixtures() {
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

#[test]
fn weights_are_not_copied() {
    let weight = TensorProto::from_f32("w", &[1000], &[1.0; 1000]);
    let bytes = Bytes::from(common::model(vec![], vec![weight]).encode_to_vec());
    let model = onnx::from_bytes(bytes.clone(), Path::new("m.onnx")).unwrap();
    let data = model.proto.graph.unwrap().initializer[0].data().unwrap();
    assert!(bytes.as_ptr_range().contains(&data.as_ptr()));
}

// External data

/// A folder with `m.onnx`, whose weights `a` (f32[4], 1 to 4) and `b` (f16[2], in a nested graph) and the attribute
/// `value` (i64[1]) are in `sub/w.bin` and `w2.bin`.
fn external_model(folder: &Path) -> std::path::PathBuf {
    fs::create_dir_all(folder.join("sub")).unwrap();
    let mut bytes = vec![0xaa; 8];
    bytes.extend([1f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()));
    bytes.extend([0x00, 0x3c, 0x00, 0xc0]);
    fs::write(folder.join("sub/w.bin"), bytes).unwrap();
    fs::write(folder.join("w2.bin"), 42i64.to_le_bytes()).unwrap();
    let a = external("a", 1, &[4], &[("location", "sub/w.bin"), ("offset", "8"), ("length", "16")]);
    let b =
        external("b", 10, &[2], &[("location", "./sub/w.bin"), ("offset", "24"), ("checksum", "0"), ("other", "x")]);
    let c = external("", 7, &[1], &[("location", "w2.bin")]);
    let mut branch = node("If", &["x"], &["y"]);
    branch.attribute.push(AttributeProto {
        name: Some("then_branch".into()),
        g: Some(Box::new(GraphProto { initializer: vec![b], ..GraphProto::default() })),
        r#type: Some(AttributeType::Graph as i32),
        ..AttributeProto::default()
    });
    let mut constant = node("Constant", &[], &["c"]);
    constant.attribute.push(AttributeProto::tensor("value", c));
    let path = folder.join("m.onnx");
    fs::write(&path, common::model(vec![constant, branch], vec![a]).encode_to_vec()).unwrap();
    path
}

/// The values of `a`, `b` and `c`, and whether each is external.
fn contents(model: &Model) -> ([Vec<f64>; 3], [bool; 3]) {
    let graph = model.proto.graph.as_ref().unwrap();
    let (a, c) = (&graph.initializer[0], graph.node[0].attribute[0].t.as_ref().unwrap());
    let b = &graph.node[1].attribute[0].g.as_ref().unwrap().initializer[0];
    let all = [a, b, c];
    (all.map(|t| t.to_f64_vec().unwrap()), all.map(|t| t.is_external()))
}

fn want() -> [Vec<f64>; 3] {
    [vec![1.0, 2.0, 3.0, 4.0], vec![1.0, -2.0], vec![42.0]]
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn external_data_is_mapped_wherever_it_is_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let model = onnx::load(&external_model(folder.path())).unwrap();
    assert_eq!(contents(&model), (want(), [true; 3]));
    assert_eq!(model.external.len(), 2);

    let out = folder.path().join("out.onnx");
    let stats = onnx::save(&model, &out, &SaveOptions::default()).unwrap();
    assert_eq!((stats.kept_tensors, stats.external_tensors, stats.external_file), (3, 0, None));
    assert_eq!(files(folder.path()), ["m.onnx", "out.onnx", "sub", "w2.bin"]);
    assert!(fs::read(&out).unwrap() == fs::read(&model.path).unwrap(), "entries and all");
}

#[test]
fn external_data_is_packed_for_another_folder() {
    let folder = tempfile::tempdir().unwrap();
    let model = onnx::load(&external_model(folder.path())).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let out = elsewhere.path().join("out.onnx");
    let stats = onnx::save(&model, &out, &SaveOptions::default()).unwrap();
    assert_eq!((stats.kept_tensors, stats.external_tensors, stats.external_bytes), (0, 3, 144));
    assert_eq!(stats.external_file, Some(elsewhere.path().join("out.onnx.data")));
    assert_eq!(files(elsewhere.path()), ["out.onnx", "out.onnx.data"]);
    let again = onnx::load(&out).unwrap();
    assert_eq!(contents(&again), (want(), [true; 3]));
    assert_eq!(again.external.len(), 1);
}

#[test]
fn a_changed_external_tensor_packs_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = onnx::load(&external_model(folder.path())).unwrap();
    // As a rule that forgets the entries would.
    model.proto.graph.as_mut().unwrap().initializer[0].raw_data = Some(Bytes::from(vec![0; 16]));
    let out = folder.path().join("out.onnx");
    let stats = onnx::save(&model, &out, &SaveOptions::default()).unwrap();
    assert_eq!((stats.kept_tensors, stats.external_tensors), (0, 3));
    let [a, b, c] = contents(&onnx::load(&out).unwrap()).0;
    assert_eq!((a, b, c), (vec![0.0; 4], want()[1].clone(), want()[2].clone()));
    assert_eq!(contents(&onnx::load(&folder.path().join("m.onnx")).unwrap()).0, want(), "the input is untouched");
}

#[test]
fn everything_inside_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let model = onnx::load(&external_model(folder.path())).unwrap();
    let bytes = onnx::to_vec(&model).unwrap();
    let inside = onnx::from_bytes(bytes.into(), Path::new("/nowhere/m.onnx")).unwrap();
    assert_eq!(contents(&inside), (want(), [false; 3]));
    let options = SaveOptions { external_data: Some("out.data".into()), ..SaveOptions::default() };
    let out = folder.path().join("out.onnx");
    onnx::save(&model, &out, &options).unwrap();
    assert_eq!(contents(&onnx::load(&out).unwrap()), (want(), [false; 3]), "all are below the threshold");
    assert!(!files(folder.path()).contains(&"out.data".to_owned()));
}

#[test]
fn weights_go_out_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let typed = TensorProto {
        float_data: vec![2.0; 300],
        dims: vec![300],
        data_type: Some(1),
        name: Some("typed".into()),
        doc_string: Some("doc".into()),
        ..TensorProto::default()
    };
    let large = vec![3.0f32; 300_000];
    let tied = TensorProto::from_f32("tied", &[500], &[4.0; 500]);
    let mut constant = node("Constant", &[], &["c"]);
    constant.attribute.push(AttributeProto::tensor("value", TensorProto::from_f32("", &[400], &[5.0; 400])));
    let proto = common::model(
        vec![constant],
        vec![
            TensorProto::from_f32("small", &[2], &[1.0; 2]),
            typed,
            TensorProto::from_f32("large", &[300_000], &large),
            tied.clone(),
            TensorProto { name: Some("tied2".into()), ..tied },
            TensorProto { string_data: vec![Bytes::from(vec![b'a'; 5000])], ..external("s", 8, &[1], &[]) },
        ],
    );
    let mut proto = proto;
    proto.graph.as_mut().unwrap().initializer[5].data_location = None;
    let model = Model::new(proto, "made.onnx");
    let inside = folder.path().join("inside.onnx");
    onnx::save(&model, &inside, &SaveOptions::default()).unwrap();

    let out = folder.path().join("out.onnx");
    let options = SaveOptions { external_data: Some("weights.bin".into()), ..SaveOptions::default() };
    let stats = onnx::save(&model, &out, &options).unwrap();
    assert_eq!(stats.external_tensors, 4);
    assert!(stats.model_bytes < 8000, "{stats:?}");
    // 1200 bytes, then 1.2 MB from a page on, then the tied weights once.
    assert_eq!(stats.external_bytes, 4096 + 1_200_000 + 2000);
    let again = onnx::load(&out).unwrap();
    for (before, after) in std::iter::zip(
        &model.proto.graph.as_ref().unwrap().initializer,
        &again.proto.graph.as_ref().unwrap().initializer,
    ) {
        let moved = ["typed", "large", "tied", "tied2"].contains(&before.name());
        assert_eq!(after.is_external(), moved, "{}", before.name());
        assert_eq!((after.name(), &after.dims, after.data_type), (before.name(), &before.dims, before.data_type));
        assert_eq!(after.doc_string, before.doc_string);
        if before.name() != "s" {
            assert_eq!(after.data().unwrap(), before.data().unwrap());
            assert_eq!(after.data().unwrap().as_ptr() as usize % if moved { 64 } else { 1 }, 0);
        }
    }
    python(&[&"external", &inside, &out]);
    // Saving what was loaded keeps the file; the same name again would overwrite what the input needs.
    assert_eq!(onnx::save(&again, &folder.path().join("3.onnx"), &SaveOptions::default()).unwrap().kept_tensors, 4);
    let error = onnx::save(&again, &folder.path().join("4.onnx"), &options).unwrap_err().to_string();
    assert!(error.contains("weights.bin: is external data of the input"), "{error}");
    assert_eq!(files(folder.path()), ["3.onnx", "inside.onnx", "out.onnx", "weights.bin"]);
}

fn refused(folder: &Path, tensor: TensorProto) -> String {
    let path = folder.join("m.onnx");
    fs::write(&path, common::model(vec![], vec![tensor]).encode_to_vec()).unwrap();
    onnx::load(&path).unwrap_err().to_string()
}

#[test]
fn locations_outside_of_the_folder_are_refused() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("model");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(outer.path().join("secret"), [0; 16]).unwrap();
    fs::write(folder.join("inside"), [0; 16]).unwrap();
    let at = |location: &str| refused(&folder, external("w", 1, &[4], &[("location", location)]));

    let absolute = outer.path().join("secret");
    assert!(at(absolute.to_str().unwrap()).contains("is not a relative path"));
    let inside = folder.join("inside").canonicalize().unwrap();
    assert!(at(inside.to_str().unwrap()).contains("is not a relative path"));
    let error = at("../secret");
    assert_eq!(error, "tensor 'w': external data \"../secret\": leaves the model's folder, which is not allowed");
    assert!(at("sub/../inside").contains("leaves the model's folder"));
    assert!(at("sub/../../secret").contains("leaves the model's folder"));
    assert!(at("..").contains("leaves the model's folder"));
    assert!(at("..\\secret").contains("is not a relative path"));
    assert!(at("C:secret").contains("is not a relative path"));
    assert!(at("").contains("no location is given"));
    assert!(at("nul\0").contains("cannot open"));
    assert!(at(".").contains("is not a regular file"));
    assert!(at("sub").contains("is not a regular file"));
    assert!(at("nothing").contains("there is no such file in"));
    assert!(at("inside/x").contains("cannot open"));
    assert!(at(&"a".repeat(10_000)).contains("cannot open"));

    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink("../secret", folder.join("link")).unwrap();
        symlink("..", folder.join("up")).unwrap();
        symlink("/dev/zero", folder.join("zero")).unwrap();
        symlink("loop", folder.join("loop")).unwrap();
        assert!(at("link").contains("leaves the model's folder through a symbolic link"));
        assert!(at("up/secret").contains("leaves the model's folder through a symbolic link"));
        assert!(at("sub/./../up/secret").contains("leaves the model's folder"));
        assert!(at("zero").contains("leaves the model's folder through a symbolic link"));
        assert!(at("loop").contains("cannot open"));
        if Command::new("mkfifo").arg(folder.join("pipe")).status().is_ok_and(|s| s.success()) {
            assert!(at("pipe").contains("is not a regular file"));
        }
        // A folder whose name begins with that of the model's folder is not inside it.
        fs::create_dir(outer.path().join("model2")).unwrap();
        fs::write(outer.path().join("model2/w"), [0; 16]).unwrap();
        symlink("../model2/w", folder.join("neighbour")).unwrap();
        assert!(at("neighbour").contains("leaves the model's folder through a symbolic link"));
        // A link that stays inside is fine, and so is a link to the folder itself.
        symlink("../inside", folder.join("sub/back")).unwrap();
        let tensor = external("w", 1, &[4], &[("location", "sub/back")]);
        fs::write(folder.join("m.onnx"), common::model(vec![], vec![tensor]).encode_to_vec()).unwrap();
        symlink(&folder, outer.path().join("alias")).unwrap();
        assert_eq!(onnx::load(&outer.path().join("alias/m.onnx")).unwrap().external.len(), 1);
    }
}

#[test]
fn wrong_ranges_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("w"), [0; 100]).unwrap();
    fs::write(folder.path().join("empty"), []).unwrap();
    let with = |dims: &[i64], more: &[(&str, &str)]| {
        let entries: Vec<_> = [("location", "w")].iter().chain(more).copied().collect();
        refused(folder.path(), external("w", 1, dims, &entries))
    };
    assert!(
        with(&[4], &[("offset", "85")])
            .ends_with("16 bytes from offset 85 reach past the end of the file, which has 100 bytes")
    );
    assert!(with(&[4], &[("offset", "18446744073709551615")]).contains("reach past the end"));
    assert!(with(&[4], &[("offset", "18446744073709551616")]).contains("is not a non-negative 64-bit integer"));
    assert!(with(&[4], &[("offset", "-1")]).contains("offset \"-1\" is not a non-negative"));
    assert!(with(&[4], &[("offset", "1.0")]).contains("offset \"1.0\" is not"));
    assert!(with(&[4], &[("length", "abc")]).contains("length \"abc\" is not"));
    assert!(with(&[4], &[("length", "12")]).contains("length is 12 bytes, but dims and element type need 16"));
    assert!(with(&[4], &[("offset", "0"), ("offset", "4")]).contains("'offset' is given twice"));
    assert!(with(&[26], &[]).contains("reach past the end"));
    assert!(with(&[1 << 56], &[]).contains("reach past the end"));
    assert!(with(&[1 << 62], &[]).contains("are too large"));
    assert!(with(&[-4], &[]).contains("negative axis"));
    assert!(refused(folder.path(), external("w", 8, &[1], &[("location", "w")])).contains("strings cannot be"));
    assert!(refused(folder.path(), external("w", 77, &[1], &[("location", "w")])).contains("unknown element type 77"));
    assert!(refused(folder.path(), external("w", 1, &[1], &[("location", "empty")])).contains("which has 0 bytes"));
    assert!(refused(folder.path(), external("w", 1, &[1], &[])).contains("no location is given"));

    let none = external("w", 1, &[0], &[("location", "empty"), ("length", "0")]);
    let path = folder.path().join("m.onnx");
    fs::write(&path, common::model(vec![], vec![none]).encode_to_vec()).unwrap();
    let model = onnx::load(&path).unwrap();
    assert_eq!(onnx::save(&model, &folder.path().join("o.onnx"), &SaveOptions::default()).unwrap().kept_tensors, 1);
}

// Writing

#[test]
fn the_input_is_not_replaced_without_leave() {
    let folder = tempfile::tempdir().unwrap();
    let path = external_model(folder.path());
    let model = onnx::load(&path).unwrap();
    let save = |path: &Path, options: &SaveOptions| onnx::save(&model, path, options).map_err(|e| e.to_string());
    let plain = SaveOptions::default();
    assert!(save(&path, &plain).unwrap_err().contains("is the input"));
    assert!(save(&folder.path().join("sub/../m.onnx"), &plain).unwrap_err().contains("is the input"));
    assert!(save(&folder.path().join("w2.bin"), &plain).unwrap_err().contains("is external data of the input"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("m.onnx", folder.path().join("link.onnx")).unwrap();
        assert!(save(&folder.path().join("link.onnx"), &plain).unwrap_err().contains("is the input"));
        fs::hard_link(&path, folder.path().join("hard.onnx")).unwrap();
        assert!(save(&folder.path().join("hard.onnx"), &plain).unwrap_err().contains("is the input"));
        fs::remove_file(folder.path().join("link.onnx")).unwrap();
        fs::remove_file(folder.path().join("hard.onnx")).unwrap();
    }
    assert_eq!(files(folder.path()), ["m.onnx", "sub", "w2.bin"]);

    // With leave, what is mapped stays valid, since files are replaced as a whole.
    let leave = SaveOptions { external_data: Some("w2.bin".into()), external_threshold: 0, replace_input: true };
    assert!(save(&folder.path().join("w2.bin"), &leave).unwrap_err().contains("is external data of the input"));
    save(&path, &leave).unwrap();
    assert_eq!(contents(&model).0, want());
    let again = onnx::load(&path).unwrap();
    assert_eq!(contents(&again), (want(), [true; 3]));
    assert_eq!(files(folder.path()), ["m.onnx", "sub", "w2.bin"]);
}

#[test]
fn a_failure_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let weight = TensorProto::from_f32("w", &[1000], &[1.0; 1000]);
    let model = Model::new(common::model(vec![], vec![weight]), "made.onnx");
    let to = |external: &str| SaveOptions { external_data: Some(external.into()), ..SaveOptions::default() };
    let fails = |name: &str, options: &SaveOptions| {
        let error = onnx::save(&model, &folder.path().join(name), options).unwrap_err().to_string();
        assert_eq!(files(folder.path()), ["folder"], "{error}");
        error
    };
    fs::create_dir(folder.path().join("folder")).unwrap();
    assert!(fails("folder", &SaveOptions::default()).contains("is a folder"));
    assert!(fails("o.onnx", &to("folder")).contains("is a folder"));
    assert!(fails("no/o.onnx", &to("w")).contains("cannot write"));
    for name in ["", ".", "..", "a/b", "/a", "a/", "a\\b", "a\0"] {
        assert!(fails("o.onnx", &to(name)).contains("give a file name without a folder"), "{name}");
    }
    assert!(fails("o.onnx", &to("o.onnx")).contains("need different names"));
    assert!(fails("..", &SaveOptions::default()).contains("is not a file name"));
    #[cfg(unix)]
    {
        let error = onnx::save(&model, Path::new("/dev/null"), &SaveOptions::default()).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn new_files_have_normal_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let weight = TensorProto::from_f32("w", &[1000], &[1.0; 1000]);
    let model = Model::new(common::model(vec![], vec![weight]), "made.onnx");
    fs::write(folder.path().join("normal"), "").unwrap();
    let options = SaveOptions { external_data: Some("o.data".into()), ..SaveOptions::default() };
    onnx::save(&model, &folder.path().join("o.onnx"), &options).unwrap();
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
    assert_eq!([mode("o.onnx"), mode("o.data")], [mode("normal"); 2]);
}

// Size

/// 2.2 GB of zeros that take no space, used as one external weight.
#[test]
fn over_2_gb_is_neither_read_nor_copied() {
    let name = "over_2_gb_is_neither_read_nor_copied";
    let folder = tempfile::tempdir().unwrap();
    let peak = in_child(name, || {
        let size = 2_200_000_000u64;
        fs::File::create(folder.path().join("w.bin")).unwrap().set_len(size).unwrap();
        let tensor = external("w", 10, &[1100, 1_000_000], &[("location", "w.bin")]);
        let (m, out) = (folder.path().join("m.onnx"), folder.path().join("out.onnx"));
        fs::write(&m, common::model(vec![], vec![tensor]).encode_to_vec()).unwrap();
        let (stats, time) = timed(|| onnx::save(&onnx::load(&m).unwrap(), &out, &SaveOptions::default()).unwrap());
        assert_eq!(stats.kept_tensors, 1);
        assert!(time < Duration::from_millis(500), "{time:?}");
        let model = onnx::load(&out).unwrap();
        assert_eq!(model.proto.graph.as_ref().unwrap().initializer[0].data().unwrap().len() as u64, size);

        // Not inside a protobuf, and the message says what to do.
        let error = onnx::to_vec(&model).unwrap_err().to_string();
        assert!(error.contains("protobuf allows 2147483647") && error.contains("--external-data FILE"), "{error}");
        let all_inside =
            SaveOptions { external_data: Some("x".into()), external_threshold: usize::MAX, ..SaveOptions::default() };
        let error = onnx::save(&model, &folder.path().join("inside.onnx"), &all_inside).unwrap_err().to_string();
        assert!(error.contains("protobuf allows"), "{error}");
        assert_eq!(files(folder.path()), ["m.onnx", "out.onnx", "w.bin"]);
    });
    assert!(peak.is_none_or(|peak| peak < 100 << 20), "{peak:?}");
}

/// Memory does not grow beyond the mapped input. `TRT_OPT_TEST_MODEL` names a model to measure with instead.
#[test]
fn weights_are_streamed() {
    let folder = tempfile::tempdir().unwrap();
    let given = std::env::var_os("TRT_OPT_TEST_MODEL").map(std::path::PathBuf::from);
    let path = given.unwrap_or_else(|| folder.path().join("m.onnx"));
    if std::env::var_os("TRT_OPT_TEST_MODEL").is_none() {
        let zeros = Bytes::from(vec![0; 8 << 20]);
        let weight = |i| TensorProto::from_raw(format!("w{i}"), DType::F32, &[2 << 20], zeros.clone());
        let model = Model::new(common::model(vec![], (0..12).map(weight).collect()), "made.onnx");
        onnx::save(&model, &path, &SaveOptions::default()).unwrap();
    }
    let size = fs::metadata(&path).unwrap().len();
    let peak = in_child("weights_are_streamed", || {
        let size = fs::metadata(&path).unwrap().len();
        let (model, load) = timed(|| onnx::load(&path).unwrap());
        let out = folder.path().join("out.onnx");
        let (stats, save) = timed(|| onnx::save(&model, &out, &SaveOptions::default()).unwrap());
        println!(
            "{size} bytes: load {load:?}, save {save:?}, {} of the file in memory",
            common::peak_memory() as f64 / size as f64
        );
        assert_eq!(stats.model_bytes, size);
    });
    // The child makes its own small model, which the limit covers.
    assert!(peak.is_none_or(|peak| peak < size + size / 4 + (16 << 20)), "{peak:?} for {size}");
}
