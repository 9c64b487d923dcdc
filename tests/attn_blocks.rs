//! Attention blocks without windows: every export of ViT and UniFormer has all of its own, they compute the same, and
//! every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use std::path::{Path, PathBuf};

use block::{
    Net, comparison, costs_less_than_its_parts, infer_outputs, int, left_for_its_size, made_of_many_rows, nodes,
    rewritten, weight, with,
};
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use trt_opt::rewrite::{Kind, Options, Standard, Status, Target};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptAttnBlock";

fn with_block() -> Options {
    with(&[Kind::AttnBlock])
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.onnx"))
}

fn count(model: &ModelProto, op: &str) -> usize {
    nodes(model, op).len()
}

/// The miniature of TNT has 12 channels, and words of 4.
const FEW_CHANNELS: &str = "the tensor cores take no such sizes";
/// PyramidTNT pools keys and values, which makes another op, normalizes whole patches of words and, in its last stage, does neither.
const POOLED: &str = "TrtOptPooledAttnBlock";
const PATCHES: &str = "the attention is not over the tokens of each sequence";

/// All exports, with the block alone and with that of MLPs beside it: the latter leaves two nodes of each ViT block.
#[test]
fn exports_have_all_their_blocks_and_compute_the_same() {
    let mut wrong = vec![];
    let mut blocks = 0;
    // How many attentions there are, and the reasons of those that are missed.
    let models: [(&str, usize, &[&str]); 4] =
        [("vit", 2, &[]), ("uniformer", 2, &[]), ("tnt", 4, &[FEW_CHANNELS; 4]), ("ptnt", 5, &[PATCHES, PATCHES])];
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let Some((model, total, reasons)) = models.iter().find(|(m, ..)| name.split('_').next() == Some(m)) else {
            continue;
        };
        for options in [with_block(), with(&[Kind::AttnBlock, Kind::MlpBlock])] {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            let (ledger, proto) = (rewrite.ledger(), &rewrite.model().proto);
            let found = ledger.count(Kind::AttnBlock);
            let fused = total - reasons.len();
            if (found.total, found.fused, count(proto, OP) + count(proto, POOLED)) != (*total, fused, fused) {
                wrong.push(format!("{name}: {found:?}"));
            }
            let mut missed: Vec<&str> = ledger.missed(Kind::AttnBlock).map(|s| s.reason.as_deref().unwrap()).collect();
            missed.sort_unstable_by_key(|reason| reasons.iter().position(|r| reason.starts_with(r)));
            if missed.len() != reasons.len() || !missed.iter().zip(*reasons).all(|(found, r)| found.starts_with(r)) {
                wrong.push(format!("{name}: {missed:?}"));
            }
            if *model == "vit" && options.kinds.contains(&Kind::MlpBlock) {
                // Each block is two nodes; the last norm is no part of any.
                let kept = ["TrtOptAttention", "TrtOptLayerNorm", "Softmax", "Erf"].map(|op| count(proto, op));
                let expected = ([0, 1, 0, 0], 2);
                if (kept, count(proto, "TrtOptMlpBlock")) != expected {
                    wrong.push(format!("{name}: {kept:?}"));
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
    assert!(blocks > 100, "only {blocks} blocks");
}

/// The first block of ViT follows a sum with a constant, the second the MLP before it; in UniFormer a convolution.
#[test]
fn the_add_before_a_block_goes_into_it() {
    for (name, residuals) in [("vit_ts17", [0, 1]), ("vit_dy18", [0, 1]), ("uniformer_ts17", [0, 0])] {
        let rewrite = testing::rewrite_with(fixture(name), &with_block()).unwrap();
        let found: Vec<i64> = nodes(&rewrite.model().proto, OP).iter().map(|n| int(n, "residual")).collect();
        assert_eq!(found, residuals, "{name}");
    }
}

/// Attentions in windows are those of the other kind.
#[test]
fn attentions_in_windows_are_no_sites() {
    for name in ["swin_ts17", "swin_pad_dy18", "swin_original_baked_ts17_dyn", "swin_sdpa_dy23"] {
        let both = with(&[Kind::SwinAttnBlock, Kind::AttnBlock]);
        let rewrite = testing::rewrite_with(fixture(name), &both).unwrap();
        let totals = [Kind::SwinAttnBlock, Kind::AttnBlock].map(|kind| rewrite.ledger().count(kind).total);
        assert_eq!(totals, [3, 0], "{name}");
    }
    let both = with(&[Kind::SwinAttnBlock, Kind::AttnBlock]);
    let vit = testing::rewrite_with(fixture("vit_ts17"), &both).unwrap();
    assert_eq!([Kind::SwinAttnBlock, Kind::AttnBlock].map(|kind| vit.ledger().count(kind).total), [0, 2]);
}

// ---- a block by hand, to spoil ----

const IMAGES: i64 = 3;
const TOKENS: i64 = 5;

/// How queries, keys and values are made.
#[derive(Clone, Copy, PartialEq)]
enum Products {
    /// One product.
    Packed,
    /// One product of queries and keys, one of values; as TNT has them.
    QkV,
    /// Three products.
    Separate,
}

#[derive(Clone, Copy)]
struct Form {
    images: i64,
    channels: i64,
    heads: i64,
    head: i64,
    products: Products,
}

impl Default for Form {
    fn default() -> Self {
        Self { images: IMAGES, channels: 16, heads: 2, head: 8, products: Products::Packed }
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
    const KIND: Kind = Kind::AttnBlock;
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
        let tokens = [self.form.images, TOKENS, self.form.channels];
        graph.input = ["x", "r"].map(|name| common::value(name, &tokens)).into();
        infer_outputs(&mut proto, &self.outputs);
        rewritten(proto, options)
    }
}

impl Parts {
    fn new(form: Form) -> Self {
        let mut net = Self { form, nodes: vec![], weights: vec![], outputs: vec!["y".into()] };
        let (c, d, h) = (form.channels, form.head, form.heads);
        let inner = h * d;
        net.weights = vec![
            weight("scale", &[c]),
            weight("bias", &[c]),
            weight("w_proj", &[inner, c]),
            weight("b_proj", &[c]),
            TensorProto::from_f32("root", &[], &[0.35]),
        ];
        net.add("Add", &["x", "r"], "s");
        net.add("LayerNormalization", &["s", "scale", "bias"], "n").attribute =
            vec![AttributeProto::int("axis", -1), AttributeProto::float("epsilon", 1e-5)];
        let groups: &[&[&str]] = match form.products {
            Products::Packed => &[&["q", "k", "v"]],
            Products::QkV => &[&["q", "k"], &["v"]],
            Products::Separate => &[&["q"], &["k"], &["v"]],
        };
        for parts in groups {
            let name = parts.concat();
            let count = parts.len() as i64;
            net.weights.push(weight(&format!("w_{name}"), &[c, count * inner]));
            net.weights.push(weight(&format!("b_{name}"), &[count * inner]));
            net.add("MatMul", &["n", &format!("w_{name}")], &format!("{name}_product"));
            net.add("Add", &[&format!("{name}_product"), &format!("b_{name}")], &format!("{name}_all"));
            net.reshape(&format!("{name}_all"), &[form.images, TOKENS, count, h, d], &format!("{name}_split"));
            net.transpose(&format!("{name}_split"), &[2, 0, 3, 1, 4], &format!("{name}_parts"));
            for (i, part) in parts.iter().enumerate() {
                net.weights.push(TensorProto::from_i64(format!("index_{part}"), &[], &[i as i64]));
                net.add("Gather", &[&format!("{name}_parts"), &format!("index_{part}")], part).attribute =
                    vec![AttributeProto::int("axis", 0)];
            }
        }
        net.add("Mul", &["q", "root"], "q_scaled");
        net.transpose("k", &[0, 1, 3, 2], "k_t");
        net.add("MatMul", &["q_scaled", "k_t"], "scores");
        net.add("Softmax", &["scores"], "p").attribute = vec![AttributeProto::int("axis", -1)];
        net.add("MatMul", &["p", "v"], "mixed");
        net.transpose("mixed", &[0, 2, 1, 3], "merged");
        net.reshape("merged", &[form.images, TOKENS, inner], "context");
        net.add("MatMul", &["context", "w_proj"], "out_product");
        net.add("Add", &["out_product", "b_proj"], "projected");
        net.add("Add", &["s", "projected"], "y");
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

    /// Puts a node in front of the one that makes `output`, which reads what it makes as its first input.
    fn before(&mut self, output: &str, node: NodeProto) {
        let at = self.nodes.iter().position(|n| n.output[0] == output).unwrap();
        self.nodes[at].input[0].clone_from(&node.output[0]);
        self.nodes.insert(at, node);
    }

    /// Adds `term` of these sizes to the scores.
    fn scores_plus(&mut self, term: &str, dims: &[i64]) {
        self.set(weight(term, dims));
        self.before("p", common::node("Add", &["scores", term], &["sum"]));
    }

    fn fused(&self) -> NodeProto {
        let (model, ledger) = self.fuse();
        assert_eq!(ledger.count(Kind::AttnBlock).fused, 1, "{:?}", ledger.sites);
        nodes(&model, OP)[0].clone()
    }

    fn missed_because(&self, reason: &str) {
        let site = self.missed();
        let text = site.reason.clone().unwrap();
        assert!(text.contains(reason), "expected a miss because {reason}, found {site:?}");
        assert!(site.expected.is_some() && site.found.is_some(), "{site:?}");
    }
}

#[test]
fn the_block_itself_is_one_node_with_the_add_before_it() {
    let (model, ledger) = Parts::new(Form::default()).fuse();
    let all = &model.graph.as_ref().unwrap().node;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((all[0].op_type(), all[0].input.len(), int(&all[0], "residual")), (OP, 8, 1));
    let mut names: Vec<&str> = all[0]
        .attribute
        .iter()
        .map(AttributeProto::name)
        .filter(|n| *n != "plugin_version" && *n != "plugin_namespace")
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["bias", "epsilon", "num_heads", "residual", "scale"]);
    // The sites of its parts say where they are now.
    let kinds: Vec<Kind> = ledger.sites.iter().map(|s| s.kind).collect();
    assert_eq!(kinds, [Kind::LayerNorm, Kind::Attention, Kind::AttnBlock]);
    for site in &ledger.sites {
        assert_eq!((site.status, site.into.as_deref()), (Status::Fused, all[0].name.as_deref()), "{site:?}");
    }
    assert_eq!(ledger.sites[2].node, "Softmax_p");
}

#[test]
fn blocks_are_not_fused_unless_asked_for() {
    for options in [Options::default(), with(&[Kind::SwinAttnBlock])] {
        let rewrite = Parts::new(Form::default()).rewrite(&options);
        assert_eq!(count(&rewrite.model().proto, OP), 0);
        assert!(rewrite.ledger().sites.iter().all(|s| !s.kind.is_block()));
    }
}

#[test]
fn blocks_can_be_skipped_or_left_to_the_target() {
    let net = Parts::new(Form::default());
    let mut options = with_block();
    options.skip.insert("attn-block".into());
    let ledger = net.rewrite(&options).ledger().clone();
    let missed: Vec<_> = ledger.missed(Kind::AttnBlock).map(|s| s.reason.as_deref()).collect();
    assert_eq!(missed, [Some("--skip attn-block")]);

    let native = Options { target: Target::Native, ..with_block() };
    let standard = |node: Option<&str>| Options {
        standard: vec![Standard { kind: Kind::AttnBlock, node: node.map(Into::into), reason: "slower".into() }],
        ..with_block()
    };
    for options in [native, standard(None), standard(Some("Softmax_p"))] {
        let rewrite = net.rewrite(&options);
        rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
        assert_eq!(rewrite.ledger().count(Kind::AttnBlock).kept, 1, "{:?}", rewrite.ledger().sites);
        assert_eq!(count(&rewrite.model().proto, OP), 0);
    }
    // The add stays where it is, by name.
    let mut options = with_block();
    options.skip.insert("attn-block-residual".into());
    let rewrite = net.rewrite(&options);
    assert_eq!((count(&rewrite.model().proto, OP), count(&rewrite.model().proto, "Add")), (1, 1));
}

#[test]
fn other_forms_are_the_same_block() {
    // Separate products of one norm, which become one; heads of six as those of TNT's words.
    for products in [Products::QkV, Products::Separate] {
        Parts::new(Form { products, ..Form::default() }).fused();
    }
    let words = Form { channels: 24, heads: 4, head: 6, products: Products::QkV, ..Form::default() };
    assert_eq!(int(&Parts::new(words).fused(), "num_heads"), 4);
    // Heads narrower and wider than the channels.
    for head in [4, 16] {
        Parts::new(Form { head, ..Form::default() }).fused();
    }
    // No offsets.
    let mut net = Parts::new(Form::default());
    net.nodes.retain(|n| n.output[0] != "qkv_all" && n.output[0] != "projected");
    net.input("qkv_split", 0, "qkv_product");
    net.input("y", 1, "out_product");
    net.fused();
    // The residual add the other way round.
    let mut net = Parts::new(Form::default());
    net.node("y").input.reverse();
    net.fused();
    // Dense biases: of all images, of all heads, of each image.
    for dims in [vec![1, 2, TOKENS, TOKENS], vec![1, 1, TOKENS, TOKENS], vec![IMAGES, 2, TOKENS, TOKENS]] {
        let mut net = Parts::new(Form::default());
        net.scores_plus("position", &dims);
        let node = net.fused();
        assert_eq!((int(&node, "bias"), node.input.len()), (1, 9), "{dims:?}");
    }
}

/// What the norm reads is the stream, however it was made: TNT's class token is put before a sum, for one.
#[test]
fn a_stream_that_is_no_sum_stays_outside() {
    let mut net = Parts::new(Form::default());
    net.node("s").op_type = Some("Mul".into());
    let (model, _) = net.fuse();
    assert_eq!((count(&model, OP), count(&model, "Mul")), (1, 1));
    assert_eq!(int(nodes(&model, OP)[0], "residual"), 0);
    // Only the tokens behind the first get something added.
    let mut net = Parts::new(Form::default());
    for (name, at) in [("zero", 0), ("one", 1), ("all", TOKENS), ("axis", 1)] {
        net.weights.push(TensorProto::from_i64(name, &[1], &[at]));
    }
    *net.node("s") = common::node("Concat", &["first", "later"], &["s"]);
    net.node("s").attribute = vec![AttributeProto::int("axis", 1)];
    let nodes_before = [
        common::node("Slice", &["x", "zero", "one", "axis"], &["first"]),
        common::node("Slice", &["x", "one", "all", "axis"], &["others"]),
        common::node("Slice", &["r", "one", "all", "axis"], &["part"]),
        common::node("Add", &["others", "part"], &["later"]),
    ];
    net.nodes.splice(0..0, nodes_before);
    let (model, _) = net.fuse();
    assert_eq!((count(&model, OP), count(&model, "Add"), count(&model, "TrtOptLayerNorm")), (1, 1, 0));
    assert_eq!(int(nodes(&model, OP)[0], "residual"), 0);
    // The sum is an output too.
    let mut net = Parts::new(Form::default());
    net.outputs.push("s".into());
    let (model, _) = net.fuse();
    assert_eq!((count(&model, OP), count(&model, "Add")), (1, 1));
    assert_eq!(int(nodes(&model, OP)[0], "residual"), 0);
}

#[test]
fn interior_values_used_elsewhere_keep_their_parts() {
    for value in ["n", "qkv_product", "qkv_all", "context", "out_product", "projected"] {
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
fn keys_and_values_of_other_tokens_are_refused() {
    // Keys and values of what is not normalized; of pooled tokens.
    let mut net = Parts::new(Form { products: Products::Separate, ..Form::default() });
    net.input("k_product", 0, "r");
    net.input("v_product", 0, "r");
    net.missed_because("keys and values come of other tokens than queries");
    let mut net = Parts::new(Form { products: Products::Separate, ..Form::default() });
    net.weights.push(weight("pool", &[2, TOKENS]));
    for part in ["k", "v"] {
        net.set(TensorProto::from_i64(format!("{part}_split_shape"), &[5], &[IMAGES, 2, 1, 2, 8]));
        let pooled = format!("pooled_{part}");
        net.before(&format!("{part}_product"), common::node("MatMul", &["pool", "n"], &[&pooled]));
    }
    net.missed_because("keys and values come of other tokens than queries");
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
    net.before("out_product", common::node("Tanh", &["context"], &["bent"]));
    net.missed_because("another op follows");
    let mut net = Parts::new(Form::default());
    net.before("qkv_split", common::node("Tanh", &["qkv_all"], &["bent"]));
    net.missed_because("it is no product with a weight");
    // No norm, and a norm of something else than the tokens' channels.
    let mut net = Parts::new(Form::default());
    *net.node("n") = common::node("Relu", &["s"], &["n"]);
    net.missed_because("no fused norm of the last axis goes into the first product");
    let mut net = Parts::new(Form::default());
    net.node("n").attribute = vec![AttributeProto::int("axis", 1), AttributeProto::float("epsilon", 1e-5)];
    net.set(weight("scale", &[TOKENS, 16]));
    net.set(weight("bias", &[TOKENS, 16]));
    net.missed_because("no fused norm of the last axis goes into the first product");
    // One offset for all columns.
    let mut net = Parts::new(Form::default());
    net.set(weight("b_qkv", &[1]));
    net.missed_because("the offset is not one value a column");
    // Cosines: the attention itself is not fused.
    let mut net = Parts::new(Form::default());
    net.weights.push(weight("of_heads", &[2, 1, 1]));
    net.before("p", common::node("Mul", &["scores", "of_heads"], &["scaled"]));
    net.missed_because("its attention is not fused");
    // Scores that have a mask besides a bias.
    let mut net = Parts::new(Form::default());
    net.scores_plus("position", &[1, 2, TOKENS, TOKENS]);
    net.weights.push(weight("mask", &[IMAGES, 1, TOKENS, TOKENS]));
    net.before("p", common::node("Add", &["sum", "mask"], &["masked"]));
    net.missed_because("the plugin takes no mask");
}

#[test]
fn sizes_that_the_tensor_cores_do_not_take_are_refused() {
    Parts::new(Form { channels: 12, ..Form::default() }).missed_because("the tensor cores take no such sizes");
    Parts::new(Form { head: 2, ..Form::default() }).missed_because("the tensor cores take no such sizes");
    Parts::new(Form { channels: 2056, ..Form::default() }).missed_because("the block is too large");
}

/// 8 * 15 * 1600 * channels are 0.35 GFLOP at 1823 channels.
#[test]
fn blocks_above_the_size_where_they_pay_are_left_to_their_parts() {
    let rewrite =
        |channels: i64| Parts::new(Form { channels, heads: 20, head: 80, ..Form::default() }).rewrite(&with_block());
    let taken = rewrite(1816);
    assert_eq!((taken.ledger().count(Kind::AttnBlock).fused, count(&taken.model().proto, OP)), (1, 1));
    let left = rewrite(1824);
    left_for_its_size(&left, Kind::AttnBlock, &format!("[{IMAGES}, {TOKENS}]"));
    assert_eq!(count(&left.model().proto, OP), 0);
}

/// 300 sequences of five tokens are 1500 rows.
#[test]
fn blocks_of_many_rows_are_made_for_the_gpu_that_has_products_for_them() {
    let net = |images, [channels, inner]: [i64; 2]| {
        Parts::new(Form { images, channels, heads: 8, head: inner / 8, ..Form::default() })
    };
    made_of_many_rows(net, [299, 300], [512; 2], &[[520, 512], [512, 520]]);
}

#[test]
fn a_softmax_that_is_no_attention_is_no_site() {
    let mut net = Parts::new(Form::default());
    net.add("Softmax", &["y"], "classes");
    net.outputs = vec!["classes".into()];
    let (_, ledger) = net.fuse();
    assert_eq!((ledger.count(Kind::AttnBlock).total, ledger.count(Kind::AttnBlock).fused), (1, 1));
}

#[test]
fn the_cost_of_a_block_is_less_than_that_of_its_parts() {
    let [_, block] = costs_less_than_its_parts(&Parts::new(Form::default()));
    let (rows, channels) = (IMAGES * TOKENS, 16);
    assert_eq!(block, (rows * channels * 4 * channels + rows * TOKENS * 2 * channels) as u64);
}
