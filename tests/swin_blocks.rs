//! Window attention blocks: every Swin export has all of its own, they compute the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use std::path::{Path, PathBuf};

use block::{
    Net, comparison, costs_less_than_its_parts, infer_outputs, int, left_for_its_size, made_of_many_rows, nodes,
    rewritten, weight, with,
};
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use trt_opt::rewrite::ops::{WindowMap, region, table_index};
use trt_opt::rewrite::{Kind, Options, Standard, Status, Target};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptSwinAttnBlock";

fn with_block() -> Options {
    with(&[Kind::SwinAttnBlock])
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.onnx"))
}

fn count(model: &ModelProto, op: &str) -> usize {
    nodes(model, op).len()
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> &'a AttributeProto {
    node.attribute.iter().find(|a| a.name() == name).unwrap()
}

/// The first stage of torchvision's miniature has 4 channels.
const FOUR_CHANNELS: &str = "the tensor cores take no such sizes";
/// Exports with the batch in their shapes have no windows that are the same for every image.
const BAKED: &str = "no fused norm of the last axis goes into the first product";

/// All exports, with the block alone and with that of MLPs beside it: the latter leaves two nodes of each Swin block.
#[test]
fn exports_have_all_their_blocks_and_compute_the_same() {
    let mut wrong = vec![];
    let mut blocks = 0;
    let stem = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    for path in common::fixtures().iter().filter(|p| stem(p).starts_with("swin")) {
        let name = stem(path);
        for options in [with_block(), with(&[Kind::SwinAttnBlock, Kind::MlpBlock])] {
            let rewrite = testing::rewrite_with(path, &options).unwrap();
            let (ledger, model) = (rewrite.ledger(), &rewrite.model().proto);
            let total = if name.starts_with("swin_wide") { 4 } else { 3 };
            let expected_misses = match &name {
                n if n.contains("torchvision") => Some(FOUR_CHANNELS),
                n if n.contains("baked") => Some(BAKED),
                _ => None,
            };
            let found = ledger.count(Kind::SwinAttnBlock);
            let fused = if expected_misses.is_some() { 1 } else { total };
            if (found.total, found.fused, count(model, OP)) != (total, fused, fused) {
                wrong.push(format!("{name}: {found:?}"));
            }
            for site in ledger.missed(Kind::SwinAttnBlock) {
                if !expected_misses.is_some_and(|reason| site.reason.as_ref().unwrap().starts_with(reason)) {
                    wrong.push(format!("{name}: {site:?}"));
                }
            }
            if expected_misses.is_none() && options.kinds.contains(&Kind::MlpBlock) {
                let parts = ["TrtOptAttention", "TrtOptWindow", "Erf", "Softmax"].map(|op| count(model, op));
                // The norm of the patches, and the last one with the mean behind it.
                let norms = ["TrtOptLayerNorm", "TrtOptNormPool"].map(|op| count(model, op));
                if (parts, norms, count(model, "TrtOptMlpBlock")) != ([0; 4], [1; 2], total) {
                    wrong.push(format!("{name}: {norms:?} norms, {parts:?}"));
                }
            }
            blocks += found.fused;
            let options = comparison(&name);
            if let Err(error) = rewrite.compare(&options).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(blocks > 200, "only {blocks} blocks");
}

/// Where MLPs stay as they are, their residual adds go into the blocks after them.
#[test]
fn the_add_before_a_block_goes_into_it() {
    for (name, residuals) in [("swin_ts17", [0, 1, 0]), ("swin_wide_dy18", [0, 1, 0])] {
        let rewrite = testing::rewrite_with(fixture(name), &with_block()).unwrap();
        let found: Vec<i64> = nodes(&rewrite.model().proto, OP).iter().map(|n| int(n, "residual")).collect();
        assert_eq!(found[..3], residuals, "{name}");
    }
}

/// Maps that are padded after and before the shift, dense biases that hold the mask, and a map that is one window.
#[test]
fn attributes_are_those_of_the_windows() {
    let blocks = |name: &str| {
        let rewrite = testing::rewrite_with(fixture(name), &with_block()).unwrap();
        nodes(&rewrite.model().proto, OP).into_iter().cloned().collect::<Vec<_>>()
    };
    let maps = |name: &str| -> Vec<([Vec<i64>; 3], i64)> {
        let ints = |n: &NodeProto, name: &str| attribute(n, name).ints.clone();
        let map = |n: &NodeProto| (["grid", "window", "shift"].map(|name| ints(n, name)), int(n, "pad_after_roll"));
        blocks(name).iter().map(map).collect()
    };
    let map = |grid: i64, window: i64, shift: i64, after: i64| ([grid, window, shift].map(|size| vec![size; 2]), after);
    assert_eq!(maps("swin_ts17"), [map(8, 4, 0, 0), map(8, 4, 2, 0), map(4, 4, 0, 0)]);
    assert_eq!(maps("swin_pad_ts17"), [map(10, 4, 0, 0), map(10, 4, 2, 1), map(5, 4, 0, 0)]);
    let kinds = |name: &str| blocks(name).iter().map(|n| (int(n, "bias"), int(n, "mask"))).collect::<Vec<_>>();
    assert_eq!(kinds("swin_ts17"), [(2, 0), (2, 2), (2, 0)]);
    assert_eq!(kinds("swin_sdpa_dy18"), [(2, 0), (1, 0), (2, 0)]);
}

/// Other models have no such sites.
#[test]
fn attentions_without_windows_are_no_sites() {
    for name in ["vit_ts17", "tnt_ts17", "ptnt_dy18", "uniformer_ts17", "spelling_window_round_trip_residual"] {
        let rewrite = testing::rewrite_with(fixture(name), &with_block()).unwrap();
        assert_eq!(rewrite.ledger().count(Kind::SwinAttnBlock).total, 0, "{name}");
    }
}

// ---- a block by hand, to spoil ----

const IMAGES: i64 = 2;
const SIDE: i64 = 8;
const WINDOW: i64 = 4;
const TOKENS: i64 = WINDOW * WINDOW;
const WINDOWS: i64 = 4;
const HEADS: i64 = 2;

/// What the block is made with.
#[derive(Clone)]
struct Form {
    images: i64,
    channels: i64,
    head: i64,
    /// By how much the map is rolled, rolled back, and by what shift its mask is; `None`: no mask.
    shift: i64,
    back: i64,
    mask: Option<i64>,
    perms: [[i64; 6]; 2],
    /// Whether `s` is the sum of two inputs.
    sum: bool,
}

impl Default for Form {
    fn default() -> Self {
        let perms = [[0, 1, 3, 2, 4, 5]; 2];
        Self { images: IMAGES, channels: 16, head: 8, shift: 2, back: 2, mask: Some(2), perms, sum: true }
    }
}

/// Nodes and weights of the block; `s` is the stream, `y` the result.
struct Parts {
    form: Form,
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    outputs: Vec<String>,
}

impl Net for Parts {
    const KIND: Kind = Kind::SwinAttnBlock;
    const OP: &'static str = OP;

    fn nodes(&mut self) -> &mut Vec<NodeProto> {
        &mut self.nodes
    }

    fn weights(&mut self) -> &mut Vec<TensorProto> {
        &mut self.weights
    }

    fn rewrite(&self, options: &Options) -> testing::Rewrite {
        let mut proto = common::model(self.nodes.clone(), self.weights.clone());
        let graph = proto.graph.as_mut().unwrap();
        let map = [self.form.images, SIDE, SIDE, self.form.channels];
        graph.input = ["x", "r"].map(|name| common::value(name, &map)).into();
        infer_outputs(&mut proto, &self.outputs);
        rewritten(proto, options)
    }
}

impl Parts {
    fn new(form: Form) -> Self {
        let mut net = Self { form: form.clone(), nodes: vec![], weights: vec![], outputs: vec!["y".into()] };
        let (c, d) = (form.channels, form.head);
        let inner = HEADS * d;
        if form.sum {
            net.add("Add", &["x", "r"], "s");
        } else {
            net.add("Identity", &["x"], "s");
        }
        net.weights = vec![
            weight("scale", &[c]),
            weight("bias", &[c]),
            weight("w_qkv", &[c, 3 * inner]),
            weight("b_qkv", &[3 * inner]),
            weight("position", &[1, HEADS, TOKENS, TOKENS]),
            weight("w_proj", &[inner, c]),
            weight("b_proj", &[c]),
            TensorProto::from_f32("root", &[], &[0.35]),
        ];
        net.add("LayerNormalization", &["s", "scale", "bias"], "n").attribute =
            vec![AttributeProto::int("axis", -1), AttributeProto::float("epsilon", 1e-5)];
        net.roll("n", form.shift, "rolled");
        let across = SIDE / WINDOW;
        net.reshape("rolled", &[form.images, across, WINDOW, across, WINDOW, c], "grid");
        net.transpose("grid", &form.perms[0], "cut");
        net.reshape("cut", &[form.images * WINDOWS, TOKENS, c], "windows");
        net.add("MatMul", &["windows", "w_qkv"], "product");
        net.add("Add", &["product", "b_qkv"], "qkv");
        net.reshape("qkv", &[form.images * WINDOWS, TOKENS, 3, HEADS, d], "split");
        net.transpose("split", &[2, 0, 3, 1, 4], "parts");
        for (i, part) in ["q", "k", "v"].into_iter().enumerate() {
            net.weights.push(TensorProto::from_i64(format!("index_{part}"), &[], &[i as i64]));
            net.add("Gather", &["parts", &format!("index_{part}")], part).attribute =
                vec![AttributeProto::int("axis", 0)];
        }
        net.add("Mul", &["q", "root"], "q_scaled");
        net.transpose("k", &[0, 1, 3, 2], "k_t");
        net.add("MatMul", &["q_scaled", "k_t"], "raw");
        net.add("Add", &["raw", "position"], "scores");
        let mut scores = "scores";
        if let Some(shift) = form.mask {
            net.weights.push(mask(shift));
            net.reshape("scores", &[form.images, WINDOWS, HEADS, TOKENS, TOKENS], "grouped");
            net.add("Add", &["grouped", "mask"], "grouped_masked");
            net.reshape("grouped_masked", &[form.images * WINDOWS, HEADS, TOKENS, TOKENS], "masked");
            scores = "masked";
        }
        net.add("Softmax", &[scores], "p").attribute = vec![AttributeProto::int("axis", -1)];
        net.add("MatMul", &["p", "v"], "mixed");
        net.transpose("mixed", &[0, 2, 1, 3], "merged");
        net.reshape("merged", &[form.images * WINDOWS, TOKENS, inner], "context");
        net.add("MatMul", &["context", "w_proj"], "out_product");
        net.add("Add", &["out_product", "b_proj"], "projected");
        net.reshape("projected", &[form.images, across, across, WINDOW, WINDOW, c], "tiles");
        net.transpose("tiles", &form.perms[1], "joined");
        net.reshape("joined", &[form.images, SIDE, SIDE, c], "map");
        net.roll("map", (SIDE - form.back) % SIDE, "back");
        net.add("Add", &["s", "back"], "y");
        net
    }

    fn add(&mut self, op: &str, inputs: &[&str], output: &str) -> &mut NodeProto {
        self.nodes.push(common::node(op, inputs, &[output]));
        self.nodes.last_mut().unwrap()
    }

    fn reshape(&mut self, x: &str, shape: &[i64], output: &str) {
        let name = format!("{output}_shape");
        self.weights.push(TensorProto::from_i64(&name, &[shape.len() as i64], shape));
        self.add("Reshape", &[x, &name], output);
    }

    fn transpose(&mut self, x: &str, perm: &[i64], output: &str) {
        self.add("Transpose", &[x], output).attribute = vec![AttributeProto::ints("perm", perm)];
    }

    /// Rolls both axes of the map, so that what is at `by` comes first.
    fn roll(&mut self, x: &str, by: i64, output: &str) {
        let mut from = x.to_owned();
        for axis in [1, 2] {
            let name = |what: &str| format!("{output}_{what}{axis}");
            for (what, value) in [("by", by), ("end", i64::MAX), ("zero", 0), ("axis", axis)] {
                self.weights.push(TensorProto::from_i64(name(what), &[1], &[value]));
            }
            let to = if axis == 2 { output.to_owned() } else { name("half") };
            self.add("Slice", &[&from, &name("by"), &name("end"), &name("axis")], &name("head"));
            self.add("Slice", &[&from, &name("zero"), &name("by"), &name("axis")], &name("tail"));
            self.add("Concat", &[&name("head"), &name("tail")], &to).attribute =
                vec![AttributeProto::int("axis", axis)];
            from = to;
        }
    }

    fn fused(&self) -> NodeProto {
        let (model, ledger) = self.fuse();
        assert_eq!(ledger.count(Kind::SwinAttnBlock).fused, 1, "{:?}", ledger.sites);
        nodes(&model, OP)[0].clone()
    }

    fn missed_because(&self, reason: &str) {
        let site = self.missed();
        let text = site.reason.clone().unwrap();
        assert!(text.contains(reason), "expected a miss because {reason}, found {site:?}");
        assert!(site.expected.is_some() && site.found.is_some(), "{site:?}");
    }
}

/// The shift mask of all windows, `[1, windows, 1, tokens, tokens]`.
fn mask(shift: i64) -> TensorProto {
    let map = WindowMap { grid: [SIDE; 2], window: [WINDOW; 2], shift: [shift; 2], pad_after_roll: false };
    let mut values = vec![];
    for window in 0..WINDOWS {
        let (top, left) = (window / 2 * WINDOW, window % 2 * WINDOW);
        let place = |t: i64| region(&map, top + t / WINDOW, left + t % WINDOW);
        let pairs = (0..TOKENS).flat_map(|q| (0..TOKENS).map(move |k| (q, k)));
        values.extend(pairs.map(|(q, k)| if place(q) == place(k) { 0.0 } else { -100.0 }));
    }
    TensorProto::from_f32("mask", &[1, WINDOWS, 1, TOKENS, TOKENS], &values)
}

#[test]
fn the_block_itself_is_one_node_with_the_add_before_it() {
    let (model, ledger) = Parts::new(Form::default()).fuse();
    let all = &model.graph.as_ref().unwrap().node;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((all[0].op_type(), all[0].input.len(), int(&all[0], "mask")), (OP, 9, 2));
    // The sites of its parts say where they are now.
    let kinds: Vec<Kind> = ledger.sites.iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [Kind::LayerNorm, Kind::Attention, Kind::Window, Kind::SwinAttnBlock]);
    for site in &ledger.sites {
        assert_eq!((site.status, site.into.as_deref()), (Status::Fused, all[0].name.as_deref()), "{site:?}");
    }
    assert_eq!(ledger.sites[3].node, "Softmax_p");
}

#[test]
fn blocks_are_not_fused_unless_asked_for() {
    let rewrite = Parts::new(Form::default()).rewrite(&Options::default());
    assert_eq!(count(&rewrite.model().proto, OP), 0);
    assert!(rewrite.ledger().sites.iter().all(|s| s.kind != Kind::SwinAttnBlock));
}

#[test]
fn blocks_can_be_skipped_or_left_to_the_target() {
    let net = Parts::new(Form::default());
    let mut options = with_block();
    options.skip.insert("swin-attn-block".into());
    let ledger = net.rewrite(&options).ledger().clone();
    let missed: Vec<_> = ledger.missed(Kind::SwinAttnBlock).map(|s| s.reason.as_deref()).collect();
    assert_eq!(missed, [Some("--skip swin-attn-block")]);

    let native = Options { target: Target::Native, ..with_block() };
    let standard = |node: Option<&str>| Options {
        standard: vec![Standard { kind: Kind::SwinAttnBlock, node: node.map(Into::into), reason: "slower".into() }],
        ..with_block()
    };
    for options in [native, standard(None), standard(Some("Softmax_p"))] {
        let rewrite = net.rewrite(&options);
        rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
        assert_eq!(rewrite.ledger().count(Kind::SwinAttnBlock).kept, 1, "{:?}", rewrite.ledger().sites);
        assert_eq!(count(&rewrite.model().proto, OP), 0);
    }
    // The add stays where it is, by name.
    let mut options = with_block();
    options.skip.insert("swin-attn-block-residual".into());
    let rewrite = net.rewrite(&options);
    assert_eq!((count(&rewrite.model().proto, OP), count(&rewrite.model().proto, "Add")), (1, 1));
}

#[test]
fn other_forms_are_the_same_block() {
    // Without a shift, and with a dense mask instead of one: neither is a mask by indices.
    let plain = Form { shift: 0, back: 0, mask: None, ..Form::default() };
    let node = Parts::new(plain.clone()).fused();
    assert_eq!((int(&node, "mask"), attribute(&node, "shift").ints.clone()), (0, vec![0, 0]));
    let mut net = Parts::new(Form::default());
    net.set(weight("mask", &[1, WINDOWS, 1, TOKENS, TOKENS]));
    assert_ne!(int(&net.fused(), "mask"), 2);
    // Heads narrower and wider than the channels.
    for head in [4, 16] {
        Parts::new(Form { head, ..Form::default() }).fused();
    }
    // No offsets.
    let mut net = Parts::new(Form::default());
    net.nodes.retain(|n| n.output[0] != "qkv" && n.output[0] != "projected");
    net.input("split", 0, "product");
    net.input("tiles", 0, "out_product");
    net.fused();
    // The residual add the other way round; another value for masked scores.
    let mut net = Parts::new(Form::default());
    net.node("y").input.reverse();
    let large = net.weights.iter().find(|w| w.name() == "mask").unwrap().to_f64_vec().unwrap();
    let large: Vec<f32> = large.iter().map(|v| *v as f32 * 10.0).collect();
    net.set(TensorProto::from_f32("mask", &[1, WINDOWS, 1, TOKENS, TOKENS], &large));
    assert_eq!(attribute(&net.fused(), "mask_value").f, Some(-1000.0));
    // No position bias.
    let mut net = Parts::new(plain);
    net.nodes.retain(|n| n.output[0] != "scores");
    net.input("p", 0, "raw");
    assert_eq!(int(&net.fused(), "bias"), 0);
}

/// Windows as wide as the map: no element moves, and the bias table alone tells of them.
#[test]
fn windows_of_whole_rows_are_windows() {
    let mut net = Parts::new(Form { shift: 0, back: 0, mask: None, ..Form::default() });
    let (count, tokens, channels) = (IMAGES * SIDE / WINDOW, WINDOW * SIDE, net.form.channels);
    let table = weight("table", &[(2 * WINDOW - 1) * (2 * SIDE - 1), HEADS]).to_f64_vec().unwrap();
    let rows = table_index([WINDOW, SIDE]);
    let bias = (0..HEADS as usize).flat_map(|h| rows.iter().map(move |&row| (h, row as usize)));
    let bias: Vec<f32> = bias.map(|(h, row)| table[row * HEADS as usize + h] as f32).collect();
    net.set(TensorProto::from_f32("position", &[1, HEADS, tokens, tokens], &bias));
    net.input("windows", 0, "n");
    net.input("map", 0, "projected");
    for (name, shape) in [
        ("windows_shape", vec![count, tokens, channels]),
        ("split_shape", vec![count, tokens, 3, HEADS, net.form.head]),
        ("context_shape", vec![count, tokens, HEADS * net.form.head]),
    ] {
        net.set(TensorProto::from_i64(name, &[shape.len() as i64], &shape));
    }
    let node = net.fused();
    assert_eq!((int(&node, "bias"), attribute(&node, "grid").ints.clone()), (2, vec![SIDE; 2]));
    assert_eq!(attribute(&node, "window").ints, [WINDOW, SIDE]);
}

#[test]
fn a_sum_read_elsewhere_stays_outside() {
    let mut net = Parts::new(Form::default());
    net.outputs.push("s".into());
    let (model, _) = net.fuse();
    assert_eq!((count(&model, OP), count(&model, "Add")), (1, 1));
    assert_eq!(int(nodes(&model, OP)[0], "residual"), 0);
}

#[test]
fn interior_values_used_elsewhere_keep_their_parts() {
    let interior = ["n", "windows", "product", "qkv", "context", "out_product", "projected", "back"];
    for value in interior {
        let mut net = Parts::new(Form::default());
        net.outputs.push(value.into());
        net.missed();
        let mut net = Parts::new(Form::default());
        net.add("Neg", &[value], "z");
        net.outputs.push("z".into());
        net.missed();
    }
}

#[test]
fn windows_that_do_not_belong_together_are_refused() {
    // Another order of axes on either side, another shift on the way back: no windows are fused then.
    for at in [0, 1] {
        let mut form = Form::default();
        form.perms[at] = [0, 1, 3, 4, 2, 5];
        Parts::new(form).missed_because("no fused norm");
    }
    Parts::new(Form { back: 1, ..Form::default() }).missed_because("no fused norm");
    // The mask of another shift than the map's.
    Parts::new(Form { mask: Some(1), ..Form::default() }).missed_because("the mask is of other windows");
}

#[test]
fn what_only_looks_like_a_block_is_left_alone() {
    // Another residual than what is normalized, and none.
    let mut net = Parts::new(Form::default());
    net.input("y", 0, "x");
    net.missed_because("is not what the norm reads");
    let mut net = Parts::new(Form::default());
    net.node("y").op_type = Some("Mul".into());
    net.missed_because("another op follows");
    // Something between the attention and the second product, and between the first product and the attention.
    let mut net = Parts::new(Form::default());
    net.before("out_product", vec![common::node("Tanh", &["context"], &["bent"])]);
    net.input("out_product", 0, "bent");
    net.missed_because("another op follows");
    let mut net = Parts::new(Form::default());
    net.before("split", vec![common::node("Tanh", &["qkv"], &["bent"])]);
    net.input("split", 0, "bent");
    net.missed_because("it is no product with a weight");
    // One offset for all columns; a weight for each window.
    let mut net = Parts::new(Form::default());
    net.set(weight("b_qkv", &[1]));
    net.missed_because("the offset is not one value a column");
    let mut net = Parts::new(Form::default());
    net.set(weight("w_proj", &[IMAGES * WINDOWS, 16, 16]));
    net.missed_because("the weight is no matrix");
    // A bias of scores that have an axis more than heads: the attention itself is not fused.
    let mut net = Parts::new(Form { mask: None, ..Form::default() });
    net.set(weight("position", &[1, 1, HEADS, TOKENS, TOKENS]));
    net.node("merged").attribute = vec![AttributeProto::ints("perm", &[0, 1, 3, 2, 4])];
    net.missed_because("its attention is not fused");
}

#[test]
fn sizes_that_the_tensor_cores_do_not_take_are_refused() {
    Parts::new(Form { channels: 12, ..Form::default() }).missed_because("the tensor cores take no such sizes");
    Parts::new(Form { head: 2, ..Form::default() }).missed_because("the tensor cores take no such sizes");
    Parts::new(Form { channels: 2056, ..Form::default() }).missed_because("the block is too large");
}

/// 8 * 128 * 256 * channels are 0.35 GFLOP at 1335 channels.
#[test]
fn blocks_above_the_size_where_they_pay_are_left_to_their_parts() {
    let rewrite = |channels: i64| Parts::new(Form { channels, head: 128, ..Form::default() }).rewrite(&with_block());
    let taken = rewrite(1328);
    assert_eq!((taken.ledger().count(Kind::SwinAttnBlock).fused, count(&taken.model().proto, OP)), (1, 1));
    let left = rewrite(1336);
    left_for_its_size(&left, Kind::SwinAttnBlock, &format!("[{}, {TOKENS}]", IMAGES * WINDOWS));
    assert_eq!(count(&left.model().proto, OP), 0);
}

/// Images of 64 tokens: 24 are 1536 rows, 23 are 1472.
#[test]
fn blocks_of_many_rows_are_made_for_the_gpu_that_has_products_for_them() {
    let net = |images, [channels, inner]: [i64; 2]| {
        Parts::new(Form { images, channels, head: inner / HEADS, ..Form::default() })
    };
    made_of_many_rows(net, [23, 24], [512, 256], &[[520, 256]]);
}

/// Swin V2: the norm comes after the attention, and scores are cosines with a scale for each head.
#[test]
fn cosine_attention_and_late_norms_are_refused() {
    // The norm after the second product alone.
    let mut net = Parts::new(Form::default());
    let norm = net.nodes.iter().position(|n| n.output[0] == "n").unwrap();
    let mut norm = net.nodes.remove(norm);
    for node in &mut net.nodes {
        node.input.iter_mut().filter(|i| *i == "n").for_each(|i| *i = "s".into());
    }
    norm.input[0] = "back".into();
    net.before("y", vec![norm]);
    net.input("y", 1, "n");
    net.missed_because("no fused norm of the last axis goes into the first product");

    // Cosines.
    net.weights.push(TensorProto::from_i64("last", &[1], &[-1]));
    net.weights.push(TensorProto::from_f32("scale_of_head", &[HEADS, 1, 1], &[10.0, 7.0]));
    for (part, user) in [("q", "q_scaled"), ("k", "k_t")] {
        let name = |what: &str| format!("{part}_{what}");
        let nodes = vec![
            common::node("Mul", &[part, part], &[&name("square")]),
            common::node("ReduceSum", &[&name("square"), "last"], &[&name("sum")]),
            common::node("Sqrt", &[&name("sum")], &[&name("length")]),
            common::node("Div", &[part, &name("length")], &[&name("unit")]),
        ];
        net.before(user, nodes);
        net.input(user, 0, &name("unit"));
    }
    net.before("scores", vec![common::node("Mul", &["raw", "scale_of_head"], &["cosine"])]);
    net.input("scores", 0, "cosine");
    net.missed_because("its attention is not fused");
}

#[test]
fn the_cost_of_a_block_is_less_than_that_of_its_parts() {
    let [_, block] = costs_less_than_its_parts(&Parts::new(Form::default()));
    let (rows, channels) = (IMAGES * SIDE * SIDE, 16);
    assert_eq!(block, (rows * channels * 4 * channels + rows * TOKENS * 2 * channels) as u64);
}
