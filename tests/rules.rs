//! The rules on every spelling: what they fuse, what they refuse and why, and that what stands inside a pattern and is
//! used elsewhere too is never lost.

mod common;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use trt_opt::ir::{Graph, Node, ValueId};
use trt_opt::onnx::proto::{NodeProto, TypeProto, ValueInfoProto, type_proto};
use trt_opt::onnx::{self, Model};
use trt_opt::rewrite::{Kind, Ledger, Options, Standard, Status, Target};
use trt_opt::{analysis, rewrite, testing, verify};

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

fn spellings() -> impl Iterator<Item = std::path::PathBuf> {
    common::fixtures().into_iter().filter(|p| name(p).starts_with("spelling_"))
}

fn ledger(path: &Path, options: &Options) -> Ledger {
    let mut model = onnx::load(path).unwrap();
    rewrite::fuse(&mut model.proto, &name(path), options, &mut |_, _| {}).unwrap()
}

/// One line a site: what became of it, by which rule, or why not.
fn account(ledger: &Ledger) -> String {
    let mut out = String::new();
    for site in &ledger.sites {
        let rule = site.rule.as_deref().unwrap_or("-");
        write!(out, "  {} {:?} by {rule}", site.kind, site.status).unwrap();
        if let Some(reason) = &site.reason {
            write!(out, ": {reason}").unwrap();
        }
        if let (Some(expected), Some(found)) = (&site.expected, &site.found) {
            write!(out, "; expected {expected}, found {found}").unwrap();
        }
        out.push('\n');
    }
    out
}

#[test]
fn every_spelling_is_accounted_for() {
    let mut out = String::new();
    for path in spellings() {
        let ledger = ledger(&path, &Options::default());
        writeln!(out, "{}\n{}", name(&path), account(&ledger)).unwrap();
    }
    insta::assert_snapshot!("spellings", out);
}

/// Look-alikes that are a site of a more general form, or hold one besides the one that they are named after.
const TAKEN_OTHERWISE: [&str; 5] = [
    // Keys as they are, not transposed, are square: any operands of a product of scores may be given.
    "spelling_not_attention_key_not_transposed",
    // A mask that is not the shift mask is given as a tensor.
    "spelling_not_attention_mask_of_other_windows",
    // The norm ends before the factor that runs over another axis.
    "spelling_not_layernorm_scale_of_other_axis",
    // The norm after the chain that is no merge.
    "spelling_not_merge_channels_interleaved",
    "spelling_not_merge_repeated_quadrant",
];

/// Spellings named `not` look like a pattern and are none; in all others every site is taken.
#[test]
fn look_alikes_are_refused_and_nothing_else_is() {
    let mut wrong = vec![];
    for path in spellings() {
        let ledger = ledger(&path, &Options::default());
        let missed: Vec<_> = ledger.sites.iter().filter(|s| s.status == Status::Missed).collect();
        let look_alike = name(&path).starts_with("spelling_not_");
        if look_alike {
            let fused = ledger.sites.iter().filter(|s| s.status == Status::Fused);
            let fused = fused.filter(|_| !TAKEN_OTHERWISE.contains(&name(&path).as_str()));
            wrong.extend(fused.map(|s| format!("{}: {} was fused at {}", name(&path), s.kind, s.node)));
        } else {
            wrong.extend(missed.iter().map(|s| format!("{}: {} missed: {:?}", name(&path), s.kind, s.reason)));
        }
        for site in missed {
            assert!(site.reason.as_ref().is_some_and(|r| !r.is_empty()), "{}: a miss without a reason", name(&path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The mini exports of all models by all exporters: every site of every kind.
#[test]
fn exports_are_fused_whole() {
    let mut out = String::new();
    for path in common::fixtures().iter().filter(|p| !name(p).starts_with("spelling_")) {
        let ledger = ledger(path, &Options::default());
        let counts: Vec<String> = Kind::ALL
            .iter()
            .map(|&k| (k, ledger.count(k)))
            .filter(|(_, c)| c.total > 0)
            .map(|(k, c)| format!("{k} {}/{}", c.fused + c.kept, c.total))
            .collect();
        writeln!(out, "{}: {}", name(path), counts.join(", ")).unwrap();
        for site in ledger.sites.iter().filter(|s| s.status == Status::Missed) {
            let reason = site.reason.as_deref().unwrap_or("");
            writeln!(out, "  missed {} at {}: {reason}", site.kind, site.node).unwrap();
        }
    }
    insta::assert_snapshot!("exports", out);
}

/// Values of the model that a graph output can be made of: names and protobuf types.
fn interior_values(path: &Path) -> Vec<(String, TypeProto)> {
    let mut model = onnx::load(path).unwrap();
    let mut graph = Graph::take(&mut model.proto).unwrap();
    analysis::infer::infer(&mut graph, &rewrite::ops::shapes).unwrap();
    let mut values = vec![];
    for (_, node) in graph.nodes() {
        for &out in node.outputs.iter().flatten() {
            let value = graph.value(out);
            if graph.is_output(out) || !value.dtype.is_some_and(|d| d.is_float()) || value.shape.is_none() {
                continue;
            }
            let tensor = type_proto::Tensor { elem_type: value.dtype.map(|d| d as i32), shape: None };
            let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
            values.push((value.name.clone(), r#type));
        }
    }
    values
}

fn with_output(path: &Path, name: &str, r#type: &TypeProto, copied: bool) -> Model {
    let mut model = onnx::load(path).unwrap();
    let graph = model.proto.graph.as_mut().unwrap();
    let mut output = name.to_owned();
    if copied {
        output = "second_use".into();
        graph.node.push(NodeProto {
            op_type: Some("Neg".into()),
            input: vec![name.into()],
            output: vec![output.clone()],
            ..NodeProto::default()
        });
    }
    graph.output.push(ValueInfoProto { name: Some(output), r#type: Some(r#type.clone()), ..ValueInfoProto::default() });
    model
}

/// Whatever value inside a pattern is read from outside it (`copied`: by a node, else as a graph output), it is there
/// afterwards and right.
fn interior_uses_survive(kind: &str, copied: bool) {
    let mut wrong = vec![];
    let mut tried = 0;
    for path in spellings().filter(|p| name(p).starts_with(&format!("spelling_{kind}"))) {
        for (value, r#type) in interior_values(&path) {
            let model = with_output(&path, &value, &r#type, copied);
            let case = format!("{}, {value}", name(&path));
            let outcome = testing::rewrite_model(model, &Options::default()).and_then(|rewrite| {
                let outputs = &rewrite.model().proto.graph.as_ref().unwrap().output;
                let wanted = if copied { "second_use" } else { &value };
                assert!(outputs.iter().any(|o| o.name() == wanted), "{case}: the output is gone");
                // The fused op rounds once where the pattern rounds at every step.
                let rtol = name(&path).contains("fp16").then_some(5e-3);
                rewrite.compare(&verify::Options { threads: Some(1), rtol, ..verify::Options::default() })?.check()
            });
            tried += 1;
            if let Err(error) = outcome {
                wrong.push(format!("{case}: {error}"));
            }
        }
    }
    assert!(tried > 20, "only {tried} values of {kind} were tried");
    assert!(wrong.is_empty(), "{} of {tried}\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn interior_outputs_of_norms_survive() {
    interior_uses_survive("layernorm", false);
}

#[test]
fn second_uses_in_norms_survive() {
    interior_uses_survive("layernorm", true);
}

#[test]
fn interior_outputs_of_attentions_survive() {
    interior_uses_survive("attention", false);
}

#[test]
fn second_uses_in_attentions_survive() {
    interior_uses_survive("attention", true);
}

#[test]
fn interior_outputs_of_gelus_survive() {
    interior_uses_survive("gelu", false);
}

#[test]
fn second_uses_in_gelus_survive() {
    interior_uses_survive("gelu", true);
}

#[test]
fn second_uses_in_windows_and_merges_survive() {
    interior_uses_survive("window", true);
    interior_uses_survive("merge", true);
    interior_uses_survive("roll", true);
}

fn swin() -> std::path::PathBuf {
    common::fixtures().into_iter().find(|p| name(p) == "swin_ts17").unwrap()
}

/// Each kind alone: no other kind's sites are touched, and each is by default.
#[test]
fn kinds_are_switched_on_one_by_one() {
    for kind in Kind::DEFAULT {
        let options = Options { kinds: BTreeSet::from([kind]), ..Options::default() };
        let ledger = ledger(&swin(), &options);
        for other in Kind::DEFAULT {
            let count = ledger.count(other);
            assert!(count.total > 0, "{other} has no site");
            if other == kind {
                // A merge is found by its norm, so it needs norms to be fused.
                let needs_norm = kind == Kind::PatchMerge;
                assert!(needs_norm || count.missed == 0, "{kind} alone: {count:?}");
            } else {
                assert_eq!(count.missed, count.total, "{other} was touched with {kind} alone");
                assert!(ledger.missed(other).all(|s| s.reason.as_deref().unwrap().contains("--fuse")));
            }
        }
        assert_eq!(self::ledger(&swin(), &Options::default()).count(kind).missed, 0, "{kind} by default");
    }
}

#[test]
fn rules_are_skipped_by_name() {
    let options = Options { skip: BTreeSet::from(["attention".into()]), ..Options::default() };
    let ledger = ledger(&swin(), &options);
    assert_eq!(ledger.count(Kind::Attention).fused, 0);
    assert!(ledger.missed(Kind::Attention).all(|s| s.reason.as_deref() == Some("--skip attention")));
    assert_eq!(ledger.count(Kind::LayerNorm).missed, 0);
}

/// Every prefix of the patches is a right model: what bisection relies on.
#[test]
fn any_number_of_patches_is_right() {
    let mut last = 0;
    for n in [0, 1, 2, 5, 9, 14, 20, 30, 1000] {
        let options = Options { stop_after: Some(n), ..Options::default() };
        let rewrite = testing::rewrite_with(swin(), &options).unwrap();
        rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
        let fused: usize = Kind::ALL.iter().map(|&k| rewrite.ledger().count(k).fused).sum();
        assert!(fused <= n && fused >= last, "{fused} fused after {n} patches, {last} before");
        last = fused;
    }
    assert!(last > 10);
}

/// The native target writes no plugin op, and every norm and attention is in TensorRT's form or says why not.
#[test]
fn native_models_have_no_plugin() {
    for path in common::fixtures().iter().filter(|p| !name(p).starts_with("spelling_")) {
        let mut model = onnx::load(path).unwrap();
        let options = Options { target: Target::Native, ..Options::default() };
        let ledger = rewrite::fuse(&mut model.proto, "x", &options, &mut |_, _| {}).unwrap();
        let graph = model.proto.graph.as_ref().unwrap();
        assert!(graph.node.iter().all(|n| n.domain() != rewrite::ops::DOMAIN), "{}", name(path));
        assert!(ledger.sites.iter().all(|s| s.status != Status::Fused), "{}", name(path));
        assert_eq!(ledger.count(Kind::LayerNorm).missed, 0, "{}", name(path));
    }
}

/// A partition of many images, written out as exporters do for a fixed batch: no size of batch is too large.
#[test]
fn windows_of_many_images_are_found() {
    for batch in [1, 2, 3, 32, 100] {
        let ints = |name: &str, v: &[i64]| trt_opt::onnx::proto::TensorProto::from_i64(name, &[v.len() as i64], v);
        let mut model = common::model(
            vec![
                common::node("Neg", &["x"], &["a"]),
                common::node("Reshape", &["a", "split"], &["b"]),
                NodeProto {
                    attribute: vec![trt_opt::onnx::proto::AttributeProto::ints("perm", &[0, 1, 3, 2, 4, 5])],
                    ..common::node("Transpose", &["b"], &["c"])
                },
                common::node("Reshape", &["c", "windows"], &["d"]),
                common::node("Neg", &["d"], &["y"]),
            ],
            vec![ints("split", &[batch, 8, 7, 8, 7, 6]), ints("windows", &[-1, 49, 6])],
        );
        let graph = model.graph.as_mut().unwrap();
        graph.input = vec![common::value("x", &[batch, 56, 56, 6])];
        graph.output = vec![common::value("y", &[batch * 64, 49, 6])];
        let ledger = rewrite::fuse(&mut model, "windows", &Options::default(), &mut |_, _| {}).unwrap();
        let count = ledger.count(Kind::Window);
        assert_eq!((count.total, count.fused), (1, 1), "batch {batch}: {}", account(&ledger));
    }
}

fn rewritten(path: &Path) -> Graph {
    let mut model = onnx::load(path).unwrap();
    rewrite::fuse(&mut model.proto, &name(path), &Options::default(), &mut |_, _| {}).unwrap();
    Graph::take(&mut model.proto).unwrap()
}

/// The attributes `name` of all nodes of an op in a rewritten fixture.
fn attributes(fixture: &str, op: &str, name: &str) -> Vec<String> {
    let graph = rewritten(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{fixture}.onnx")));
    let text = |node: &trt_opt::ir::Node| match node.string(name) {
        Some(text) => text.to_owned(),
        None => node.int(name).unwrap().to_string(),
    };
    graph.nodes().filter(|(_, n)| n.op == op).map(|(_, n)| text(n)).collect()
}

#[test]
fn projections_of_one_value_become_one() {
    for (fixture, layout) in [
        ("spelling_attention_q_k_v", "qkv"),
        ("spelling_attention_q_k_v_no_key_bias", "qkv"),
        ("spelling_attention_qk_v", "qkv"),
        // Values of another source, queries of another source, queries that are read elsewhere.
        ("spelling_attention_q_k_v_value_elsewhere", "qk_v"),
        ("spelling_attention_q_k_v_query_elsewhere", "q_kv"),
        ("spelling_attention_q_k_v_query_read_twice", "q_kv"),
        // Heads of another size have no place in the packed layouts; pooled keys are of another value.
        ("spelling_attention_qk_v_wide", "qk_v"),
        ("spelling_attention_q_kv_pooled", "q_kv"),
    ] {
        assert_eq!(attributes(fixture, "TrtOptAttention", "layout"), [layout], "{fixture}");
    }
}

#[test]
fn an_add_to_part_of_the_tokens_moves_into_the_norm() {
    for (fixture, residual, begin) in [
        ("spelling_layernorm_add_to_part", "0", "1"),
        ("spelling_layernorm_add_to_part_middle", "0", "1"),
        // What the part is added to is a sum itself, which may be read elsewhere; then its add stays.
        ("spelling_layernorm_add_to_part_of_sum", "1", "1"),
        ("spelling_layernorm_add_to_part_of_sum_read", "0", "1"),
        // The parts are swapped, of another tensor, or read elsewhere; parts of channels; a norm of more than a token.
        ("spelling_layernorm_add_to_part_swapped", "0", "-1"),
        ("spelling_layernorm_add_to_part_of_other", "0", "-1"),
        ("spelling_layernorm_add_to_part_used", "0", "-1"),
        ("spelling_layernorm_add_to_part_of_channels", "0", "-1"),
        ("spelling_layernorm_add_to_part_two_axes", "0", "-1"),
    ] {
        let found = ["residual", "part_begin"].map(|name| attributes(fixture, "TrtOptLayerNorm", name).concat());
        assert_eq!(found, [residual, begin], "{fixture}");
    }
}

#[test]
fn the_adds_between_blocks_of_tnt_move_into_the_norms() {
    for path in common::fixtures().iter().filter(|path| name(path).starts_with("tnt_")) {
        let graph = rewritten(path);
        let norms = || graph.nodes().filter(|(_, n)| n.op == "TrtOptLayerNorm").map(|(_, n)| n);
        // Before the first block's is the embedding's add of a weight.
        let parts = norms().filter(|n| n.int("part_begin") == Some(1)).map(|n| n.int("residual").unwrap());
        assert_eq!(parts.collect::<Vec<_>>(), [0, 1], "{}", name(path));
        // Of the patches and the class token, whose sums are all normalized next; the last sum of words is not.
        let tokens = |v: ValueId| graph.shape(v).is_some_and(|s| s.ends_with(&[7.into(), 12.into()]));
        let computed = |n: &Node| n.inputs.iter().flatten().all(|&v| graph.constant(v).is_none() && tokens(v));
        let adds = graph.nodes().filter(|(_, n)| n.is("Add") && computed(n));
        let left: Vec<_> = adds.map(|(id, _)| graph.node_label(id)).collect();
        assert!(left.is_empty(), "{}: {left:?}", name(path));
        assert!(!graph.nodes().any(|(_, n)| n.is("Pad")), "{}", name(path));
    }
}

/// A model rewritten with these sites left to TensorRT, as text, and its ledger.
fn with_standard(fixture: &str, standard: Vec<Standard>, target: Target) -> (String, Ledger) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{fixture}.onnx"));
    let mut model = onnx::load(&path).unwrap();
    let options = Options { standard, target, ..Options::default() };
    let ledger = rewrite::fuse(&mut model.proto, fixture, &options, &mut |_, _| {}).unwrap();
    let graph = Graph::take(&mut model.proto).unwrap();
    (trt_opt::ir::print(&graph), ledger)
}

fn standard(kind: Kind, node: Option<&str>) -> Standard {
    Standard { kind, node: node.map(Into::into), reason: "not today".into() }
}

#[test]
fn sites_left_to_tensorrt_are_as_without_plugins() {
    for fixture in ["swin_ts17", "swin_original_ts17", "swin_torchvision_ts17", "vit_ts17", "uniformer_ts17_dyn"] {
        let all = Kind::ALL.iter().map(|&kind| standard(kind, None)).collect();
        let (text, ledger) = with_standard(fixture, all, Target::Trt8);
        assert_eq!(text, with_standard(fixture, vec![], Target::Native).0, "{fixture}");
        assert!(ledger.sites.iter().all(|s| s.status == Status::Kept), "{fixture}");
        let reasons = ledger.sites.iter().filter(|s| s.kind != Kind::Gelu).map(|s| s.reason.as_deref());
        assert!(reasons.clone().count() > 0 && reasons.into_iter().all(|r| r == Some("not today")), "{fixture}");
    }
}

#[test]
fn one_site_can_be_left_to_tensorrt() {
    let (_, whole) = with_standard("swin_ts17", vec![], Target::Trt8);
    for kind in [Kind::LayerNorm, Kind::Attention, Kind::Window, Kind::PatchMerge] {
        let node = &whole.sites.iter().rfind(|s| s.kind == kind).unwrap().node;
        let (_, ledger) = with_standard("swin_ts17", vec![standard(kind, Some(node))], Target::Trt8);
        let kept: Vec<_> =
            ledger.sites.iter().filter(|s| s.reason.as_deref() == Some("not today")).map(|s| &s.node).collect();
        assert_eq!(kept, [node], "{kind}");
        let others = |l: &Ledger| l.sites.iter().filter(|s| s.kind == kind && s.status == Status::Fused).count();
        assert_eq!(others(&ledger) + 1, others(&whole), "{kind}");
    }
}
