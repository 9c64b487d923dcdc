//! Chains of attention blocks and MLP blocks: they are one node and compute the same, its weights are those of the blocks in the order that
//! docs/ops.md gives, and every near miss says why. In windows and without they are of two kinds.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{Block, Net, costs_less_than_its_parts, int, ints, nodes, only_if_asked_for, rewritten, weight, with};
use common::ops;
use half::f16;
use trt_opt::onnx::DType;
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, type_proto};
use trt_opt::rewrite::ops::table_index;
use trt_opt::rewrite::{Kind, Options, Status};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptBlockChain";
const IN_WINDOWS: &str = "TrtOptSwinAttnBlock";
const OF_SEQUENCES: &str = "TrtOptAttnBlock";
const MLP: &str = "TrtOptMlpBlock";

fn attribute<'a>(node: &'a NodeProto, name: &str) -> &'a AttributeProto {
    node.attribute.iter().find(|a| a.name() == name).unwrap()
}

/// Of each pair of a node, whether it is shifted.
fn shifted(node: &NodeProto) -> Vec<i64> {
    let shifted = &attribute(node, "shifted").ints;
    assert_eq!(shifted.len(), 32);
    shifted.iter().copied().filter(|&pair| pair >= 0).collect()
}

/// What is added to the scores of a pair.
#[derive(Clone, Copy, PartialEq)]
enum Bias {
    None,
    Table,
    /// For each head, or for all; of so many windows or sequences.
    Dense {
        heads: bool,
        period: i64,
    },
}

/// What a chain in windows, or without, is made with.
#[derive(Clone, Copy)]
struct Form<const WINDOWS: bool> {
    images: i64,
    channels: i64,
    heads: i64,
    head: i64,
    hidden: i64,
    /// Of the map, and of a window; without windows `grid` is `[1, tokens]`.
    grid: [i64; 2],
    window: Option<[i64; 2]>,
    shift: [i64; 2],
    after: i64,
    bias: Bias,
    tanh: bool,
}

/// Sizes of which each has another depth of packing: 16, 64, 128.
const SWIN: Form<true> = Form {
    images: 2,
    channels: 48,
    heads: 2,
    head: 32,
    hidden: 128,
    grid: [8, 8],
    window: Some([4, 4]),
    shift: [2, 1],
    after: 0,
    bias: Bias::Table,
    tanh: false,
};
const VIT: Form<false> = Form {
    images: 3,
    channels: 96,
    heads: 1,
    head: 64,
    hidden: 128,
    grid: [1, 5],
    window: None,
    shift: [0, 0],
    after: 0,
    bias: Bias::None,
    tanh: true,
};

impl<const WINDOWS: bool> Form<WINDOWS> {
    /// That attend to each other.
    fn tokens(&self) -> i64 {
        self.window.unwrap_or(self.grid).iter().product()
    }

    fn map(&self) -> Vec<i64> {
        vec![self.images, self.grid.iter().product(), self.channels]
    }
}

impl<const WINDOWS: bool> Block for Form<WINDOWS> {
    const KIND: Kind = if WINDOWS { Kind::BlockChain } else { Kind::SequenceChain };
    const OP: &'static str = OP;
}

/// Blocks as nodes to spoil: what their rules make of a model. Values are `v0`, `a1` behind the first attention, `v1` behind its MLP, `a2`, ...
type Parts<const WINDOWS: bool> = block::Parts<Form<WINDOWS>>;

fn halves(tensor: &TensorProto) -> Vec<f16> {
    tensor.to_f64_vec().unwrap().into_iter().map(f16::from_f64).collect()
}

impl<const WINDOWS: bool> Parts<WINDOWS> {
    /// As many pairs as there are values, each shifted or not.
    fn new(form: Form<WINDOWS>, pairs: &[bool]) -> Self {
        let mut net = Self {
            nodes: vec![],
            weights: vec![],
            inputs: vec![("v0", form.map())],
            // Leaked, since outputs have static names: a handful of bytes a test.
            outputs: vec![(String::leak(format!("v{}", pairs.len())), form.map())],
            block: form,
        };
        for (i, &shifted) in pairs.iter().enumerate() {
            net.attention(i + 1, shifted);
            net.mlp(i + 1);
        }
        net
    }

    /// The model in float16.
    fn half(&self) -> ModelProto {
        let in_half = |tensor: &TensorProto| match tensor.dtype().unwrap() {
            DType::F32 => TensorProto::from_f16(tensor.name(), &tensor.dims, &halves(tensor)),
            _ => tensor.clone(),
        };
        let mut proto = common::model(self.nodes.clone(), self.weights.iter().map(in_half).collect());
        let graph = proto.graph.as_mut().unwrap();
        let values = |of: &[(&str, Vec<i64>)]| of.iter().map(|(name, dims)| common::value(name, dims)).collect();
        (graph.input, graph.output) = (values(&self.inputs), values(&self.outputs));
        for value in graph.input.iter_mut().chain(&mut graph.output) {
            if let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_mut().unwrap().value.as_mut() {
                tensor.elem_type = Some(DType::F16 as i32);
            }
        }
        proto
    }

    fn plugin(&mut self, op: &str, x: &str, weights: Vec<(&str, Vec<i64>)>, output: &str, of: Vec<AttributeProto>) {
        let mut inputs = vec![x.to_owned()];
        for (name, dims) in weights {
            inputs.push(format!("{output}_{name}"));
            self.weights.push(weight(inputs.last().unwrap(), &dims));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let node = common::node(op, &inputs, &[output]);
        self.nodes.push(NodeProto { domain: Some("trt.opt".into()), attribute: of, ..node });
    }

    fn attention(&mut self, i: usize, shifted: bool) {
        let Form { channels: c, heads, head, grid, window, shift, after, bias, .. } = self.block;
        let (inner, t) = (heads * head, self.block.tokens());
        let mut weights =
            vec![("scale", vec![c]), ("bias", vec![c]), ("w_qkv", vec![c, 3 * inner]), ("b_qkv", vec![3 * inner])];
        let kind = match bias {
            Bias::None => 0,
            Bias::Dense { heads: each, period } => {
                weights.push(("position", vec![period, if each { heads } else { 1 }, t, t]));
                1
            }
            Bias::Table => {
                let [wh, ww] = window.unwrap();
                weights.push(("position", vec![(2 * wh - 1) * (2 * ww - 1), heads]));
                2
            }
        };
        weights.extend([("w_proj", vec![inner, c]), ("b_proj", vec![c])]);
        let mut attributes = vec![
            AttributeProto::float("epsilon", 1e-5),
            AttributeProto::int("residual", 0),
            AttributeProto::int("num_heads", heads),
            AttributeProto::float("scale", 0.2),
            AttributeProto::int("bias", kind),
        ];
        if let Some(window) = window {
            attributes.extend([
                AttributeProto::int("mask", if shifted { 2 } else { 0 }),
                AttributeProto::float("mask_value", if shifted { -100.0 } else { 0.0 }),
                AttributeProto::ints("grid", &grid),
                AttributeProto::ints("window", &window),
                AttributeProto::ints("shift", if shifted { &shift } else { &[0, 0] }),
                AttributeProto::int("pad_after_roll", after),
            ]);
        }
        let op = if window.is_some() { IN_WINDOWS } else { OF_SEQUENCES };
        self.plugin(op, &format!("v{}", i - 1), weights, &format!("a{i}"), attributes);
    }

    fn mlp(&mut self, i: usize) {
        let Form { channels: c, hidden: h, tanh, .. } = self.block;
        let weights = [
            ("scale", vec![c]),
            ("bias", vec![c]),
            ("w1", vec![c, h]),
            ("b1", vec![h]),
            ("w2", vec![h, c]),
            ("b2", vec![c]),
        ];
        let attributes = vec![
            AttributeProto::float("epsilon", 1e-5),
            AttributeProto::int("residual", 0),
            AttributeProto::int("norm", 1),
            AttributeProto::string("approximate", if tanh { "tanh" } else { "none" }),
        ];
        self.plugin(MLP, &format!("a{i}"), weights.into(), &format!("v{i}"), attributes);
    }

    fn attribute(&mut self, output: &str, attribute: AttributeProto) {
        let node = self.node(output);
        node.attribute.retain(|a| a.name() != attribute.name());
        node.attribute.push(attribute);
    }

    /// Another shape behind the node that makes `value`, for what reads it.
    fn reshaped(&mut self, value: &str, dims: &[i64]) {
        let (name, shape) = (format!("{value}_map"), format!("{value}_shape"));
        for node in &mut self.nodes {
            node.input.iter_mut().filter(|input| *input == value).for_each(|input| input.clone_from(&name));
        }
        let at = self.nodes.iter().position(|n| n.output[0] == value).unwrap();
        self.nodes.insert(at + 1, common::node("Reshape", &[value, &shape], &[&name]));
        self.weights.push(ints(&shape, dims));
    }

    /// The chains, where all sites are fused: of each, which pairs are shifted.
    fn chains(&self) -> Vec<Vec<i64>> {
        let (model, ledger) = self.fuse();
        let count = ledger.count(Self::KIND);
        assert_eq!((count.fused, count.total), (nodes(&model, OP).len(), count.fused), "{:?}", ledger.sites);
        nodes(&model, OP).into_iter().map(shifted).collect()
    }

    fn missed_because(&self, reason: &str, [expected, found]: [&str; 2]) {
        let site = self.missed();
        assert_eq!(site.reason.as_deref(), Some(reason), "{site:?}");
        assert_eq!([site.expected.as_deref(), site.found.as_deref()], [expected, found].map(Some));
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.weights.iter().find(|w| w.name() == name).unwrap().to_f64_vec().unwrap()
    }
}

/// What is left, by op.
#[test]
fn a_stage_of_swin_is_one_node() {
    let net = Parts::new(SWIN, &[false, true, false, true]);
    let (model, ledger) = net.fuse();
    assert_eq!(ops(&model), [OP]);
    let node = nodes(&model, OP)[0];
    assert_eq!((shifted(node), node.input.len()), (vec![0, 1, 0, 1], 3));
    let names = ["num_heads", "head_dim", "hidden", "bias", "pad_after_roll"];
    assert_eq!(names.map(|name| int(node, name)), [2, 32, 128, 1, 0]);
    assert_eq!(["grid", "window", "shift"].map(|name| &attribute(node, name).ints[..]), [[8, 8], [4, 4], [2, 1]]);
    let floats = ["epsilon", "scale", "mask_value"].map(|name| attribute(node, name).f.unwrap());
    assert_eq!(floats, [1e-5, 0.2, -100.0]);
    assert_eq!(ledger.sites.len(), 1);
    let site = &ledger.sites[0];
    assert_eq!((site.status, site.node.as_str()), (Status::Fused, "TrtOptSwinAttnBlock_a1"));
    assert_eq!((site.rule.as_deref(), site.into.as_deref()), (Some("block-chain"), node.name.as_deref()));
}

/// Of one pair, of pairs that are all shifted or none, of windows of other sizes.
#[test]
fn other_forms_are_chains() {
    assert_eq!(Parts::new(SWIN, &[false]).chains(), [[0]]);
    assert_eq!(Parts::new(SWIN, &[true, true]).chains(), [[1, 1]]);
    let plain = Parts::new(SWIN, &[false, false]).fuse().0;
    assert_eq!(attribute(nodes(&plain, OP)[0], "shift").ints, [0, 0]);
    let form =
        Form { grid: [4, 6], window: Some([4, 3]), shift: [0, 1], after: 1, bias: Bias::None, tanh: true, ..SWIN };
    assert_eq!(Parts::new(form, &[true, false]).chains(), [[1, 0]]);
    // Windows of an odd number of tokens, whose bias is padded.
    let form = Form { grid: [7, 14], window: Some([7, 7]), shift: [3, 3], ..SWIN };
    assert_eq!(Parts::new(form, &[false, true]).chains(), [[0, 1]]);
}

#[test]
fn a_network_without_windows_is_one_node() {
    let (model, _) = Parts::new(VIT, &[false; 3]).fuse();
    let node = nodes(&model, OP)[0];
    assert_eq!((ops(&model).len(), shifted(node)), (1, vec![0; 3]));
    assert_eq!(["grid", "window", "shift"].map(|name| &attribute(node, name).ints[..]), [[0, 0]; 3]);
    assert_eq!(attribute(node, "approximate").s.as_deref(), Some(&b"tanh"[..]));
    for heads in [true, false] {
        let form = Form { heads: 2, head: 32, bias: Bias::Dense { heads, period: 1 }, ..VIT };
        assert_eq!(Parts::new(form, &[false; 2]).chains(), [[0, 0]]);
    }
}

#[test]
fn chains_in_float16_compute_the_same() {
    fn compute_the_same<const WINDOWS: bool>(net: &Parts<WINDOWS>) {
        let rewrite = rewritten(net.half(), &with(&[Parts::<WINDOWS>::KIND]));
        assert_eq!(ops(&rewrite.model().proto), [OP]);
        // Norms are folded into weights, which are rounded once more.
        let options = verify::Options { rtol: Some(1e-2), ..verify::Options::default() };
        rewrite.compare(&options).unwrap().check().unwrap();
    }
    compute_the_same(&Parts::new(SWIN, &[false, true]));
    compute_the_same(&Parts::new(VIT, &[false; 2]));
}

/// Maps as `[B, H*W, C]` and as `[B, H, W, C]` within one chain, and at its end.
#[test]
fn values_that_are_only_regrouped_are_of_the_chain() {
    let map = [SWIN.images, SWIN.grid[0], SWIN.grid[1], SWIN.channels];
    let mut net = Parts::new(SWIN, &[false, true]);
    net.reshaped("a1", &map);
    net.reshaped("v1", &SWIN.map());
    net.reshaped("a2", &map);
    net.outputs[0].1 = map.to_vec();
    let (model, _) = net.fuse();
    assert_eq!(ops(&model), [OP, "Reshape"]);
    let mut net = Parts::new(SWIN, &[false, true]);
    net.reshaped("v1", &map);
    net.outputs[0].1 = map.to_vec();
    assert_eq!(net.chains(), [[0, 1]]);
    net.inputs[0].1 = map.to_vec();
    assert_eq!(net.fuse().0.graph.unwrap().node.len(), 1);
    // Other sequences of the same values are another chain.
    let mut net = Parts::new(Form { grid: [1, 6], ..VIT }, &[false, false]);
    net.reshaped("v1", &[VIT.images * 2, 3, VIT.channels]);
    net.outputs[0].1 = vec![VIT.images * 2, 3, VIT.channels];
    assert_eq!(net.fuse().1.missed(Kind::SequenceChain).count(), 2);
}

/// What is added before a chain stays outside of it.
#[test]
fn an_add_before_a_chain_stays() {
    let mut net = Parts::new(SWIN, &[false, true]);
    net.inputs[0].0 = "x";
    net.inputs.push(("r", SWIN.map()));
    net.nodes.insert(0, common::node("Add", &["x", "r"], &["v0"]));
    let (model, _) = net.fuse();
    assert_eq!(ops(&model), ["Add", OP]);
    // An attention block that has taken one is in no chain.
    let mut net = Parts::new(SWIN, &[false, true]);
    net.inputs.push(("r", SWIN.map()));
    net.attribute("a1", AttributeProto::int("residual", 1));
    net.node("a1").input.insert(1, "r".into());
    let (model, _) = net.fuse();
    assert_eq!(ops(&model), [IN_WINDOWS, MLP, OP]);
}

#[test]
fn values_read_otherwise_end_a_chain() {
    for read in [false, true] {
        let spoiled = |value: &'static str| {
            let mut net = Parts::new(SWIN, &[false, true, false]);
            if read {
                net.nodes.push(common::node("Neg", &[value], &["z"]));
            }
            net.outputs.push((if read { "z" } else { value }, SWIN.map()));
            net
        };
        assert_eq!(spoiled("v1").chains(), [vec![0], vec![1, 0]]);
        // Between the halves of a pair: these stay blocks.
        let net = spoiled("a2");
        assert_eq!(net.chains(), [[0], [0]]);
        assert_eq!(ops(&net.fuse().0).iter().filter(|op| [IN_WINDOWS, MLP].contains(&op.as_str())).count(), 2);
    }
}

#[test]
fn blocks_that_differ_are_of_different_chains() {
    let cut = |what: &str, spoil: &dyn Fn(&mut Parts<true>)| {
        let mut net = Parts::new(SWIN, &[false, true, false, true]);
        spoil(&mut net);
        assert_eq!(net.chains(), [[0, 1], [0, 1]], "{what}");
    };
    let of_both = |net: &mut Parts<true>, values: [&str; 2], attribute: &AttributeProto| {
        values.iter().for_each(|value| net.attribute(value, attribute.clone()));
    };
    cut("epsilon", &|net| {
        let epsilon = AttributeProto::float("epsilon", 1e-3);
        of_both(net, ["a3", "v3"], &epsilon);
        of_both(net, ["a4", "v4"], &epsilon);
    });
    cut("scale", &|net| of_both(net, ["a3", "a4"], &AttributeProto::float("scale", 0.3)));
    cut("approximate", &|net| of_both(net, ["v3", "v4"], &AttributeProto::string("approximate", "tanh")));
    cut("window", &|net| {
        net.attribute("a4", AttributeProto::ints("shift", &[0, 1]));
        for value in ["a3", "a4"] {
            net.attribute(value, AttributeProto::ints("window", &[2, 8]));
            net.set(weight(&format!("{value}_position"), &[3 * 15, SWIN.heads]));
        }
    });
    cut("hidden columns", &|net| {
        for value in ["v3", "v4"] {
            for (name, dims) in [("w1", vec![48, 64]), ("b1", vec![64]), ("w2", vec![64, 48])] {
                net.set(weight(&format!("{value}_{name}"), &dims));
            }
        }
    });
    cut("bias", &|net| {
        for value in ["a3", "a4"] {
            net.attribute(value, AttributeProto::int("bias", 0));
            net.node(value).input.remove(5);
        }
    });
    // Another value between regions, and another shift.
    for other in [AttributeProto::float("mask_value", -10.0), AttributeProto::ints("shift", &[1, 1])] {
        let mut net = Parts::new(SWIN, &[true, false, true]);
        net.attribute("a3", other);
        assert_eq!(net.chains(), [vec![1, 0], vec![1]]);
    }
}

/// Each kind leaves the other's blocks as they are.
#[test]
fn chains_in_windows_and_without_are_of_two_kinds() {
    let mut net = Parts::new(Form { bias: Bias::None, ..SWIN }, &[false]);
    net.block.window = None;
    for i in [2, 3] {
        net.attention(i, false);
        net.mlp(i);
    }
    net.outputs[0].0 = "v3";
    let made = |kinds: &[Kind]| ops(&net.rewrite(&with(kinds)).model().proto);
    assert_eq!(made(&[Kind::BlockChain]), [OP, OF_SEQUENCES, MLP, OF_SEQUENCES, MLP]);
    assert_eq!(made(&[Kind::SequenceChain]), [IN_WINDOWS, MLP, OP]);
    let both = [Kind::BlockChain, Kind::SequenceChain];
    assert_eq!(made(&both), [OP, OP]);
    let ledger = net.rewrite(&with(&both)).ledger().clone();
    let rules: Vec<_> = ledger.sites.iter().map(|site| (site.kind, site.rule.as_deref())).collect();
    assert_eq!(rules, both.map(|kind| (kind, Some(kind.name()))));
    assert_eq!(both.map(|kind| ledger.patches[kind.name()]), [1, 1]);
}

/// A pair that the op cannot be is missed, and the others are chains.
#[test]
fn pairs_with_other_masks_and_biases_are_missed() {
    let missed = |net: &Parts<true>, reason: &str, found: &str| {
        let (model, ledger) = net.fuse();
        let site = ledger.missed(Kind::BlockChain).next().unwrap();
        assert_eq!([site.reason.as_deref(), site.found.as_deref()], [Some(reason), Some(found)], "{:?}", ledger.sites);
        assert_eq!((site.node.as_str(), ledger.count(Kind::BlockChain).total), ("TrtOptSwinAttnBlock_a2", 3));
        assert_eq!(ops(&model), [OP, IN_WINDOWS, MLP, OP]);
        assert!(site.expected.is_some(), "{site:?}");
    };
    let net = || Parts::new(SWIN, &[false, true, false]);
    let mask = "its scores have no such mask as the plugin makes";
    let mut dense = net();
    dense.attribute("a2", AttributeProto::int("mask", 1));
    dense.node("a2").input.insert(6, "mask".into());
    dense.weights.push(weight("mask", &[4, 16, 16]));
    missed(&dense, mask, "a dense mask");
    let mut none = net();
    none.attribute("a2", AttributeProto::int("mask", 0));
    missed(&none, mask, "shifted windows without a mask");
    let mut still = net();
    still.attribute("a2", AttributeProto::ints("shift", &[0, 0]));
    missed(&still, mask, "that of shifted windows without a shift");
    let mut bias = net();
    bias.attribute("a2", AttributeProto::int("bias", 1));
    bias.set(weight("a2_position", &[4, 2, 16, 16]));
    missed(&bias, "the bias of its scores is not the same for all windows or sequences", "[4, 2, 16, 16]");
    let mut epsilon = net();
    epsilon.attribute("v2", AttributeProto::float("epsilon", 1e-3));
    missed(&epsilon, "its norms add different epsilons to the variance", "0.001 in the MLP");
    let mut bare = net();
    bare.attribute("v2", AttributeProto::int("norm", 0));
    bare.node("v2").input.drain(1..3);
    missed(&bare, "its MLP has no norm", "none");
}

#[test]
fn sizes_that_the_plugin_does_not_take_are_missed() {
    let swin = |form: Form<true>| Parts::new(Form { bias: Bias::None, ..form }, &[false, true]);
    let vit = |form: Form<false>| Parts::new(form, &[false; 2]);
    let odd = "the tensor cores take no such sizes";
    swin(Form { hidden: 120, ..SWIN })
        .missed_because(odd, ["multiples of 16", "48 channels, 64 of all heads, 120 hidden columns"]);
    swin(Form { channels: 40, ..SWIN })
        .missed_because(odd, ["multiples of 16", "40 channels, 64 of all heads, 128 hidden columns"]);
    let attention = "the plugin takes no such attention";
    let [in_window, of_sequence] =
        ["heads of 32 and at most 64 tokens of a window", "heads of 32 or 64 and at most 256 tokens of a sequence"];
    swin(Form { head: 64, heads: 1, ..SWIN }).missed_because(attention, [in_window, "heads of 64 and 16 tokens"]);
    let wide = Form { grid: [10, 14], window: Some([10, 7]), ..SWIN };
    swin(wide).missed_because(attention, [in_window, "heads of 32 and 70 tokens"]);
    let padded = "its windows are padded, and the norms' biases are folded into the products";
    swin(Form { grid: [7, 8], ..SWIN }).missed_because(padded, ["a map of whole windows of 4x4", "a map of 7x8"]);
    vit(Form { head: 16, heads: 2, ..VIT }).missed_because(attention, [of_sequence, "heads of 16 and 5 tokens"]);
    let long = Form { grid: [1, 257], images: 1, ..VIT };
    vit(long).missed_because(attention, [of_sequence, "heads of 64 and 257 tokens"]);
    vit(Form { grid: [1, 256], images: 1, ..VIT }).chains();
    let large = ("the blocks are too large", "at most 1024 channels, and of all heads, and 4096 hidden columns");
    vit(Form { channels: 1040, ..VIT }).missed_because(large.0, [large.1, "1040, 64 and 128"]);
    vit(Form { hidden: 4112, ..VIT }).missed_because(large.0, [large.1, "96, 64 and 4112"]);
    vit(Form { heads: 17, ..VIT }).missed_because(large.0, [large.1, "96, 1088 and 128"]);
    let many = |images| swin(Form { images, ..SWIN });
    many(23).chains();
    let faster = "its blocks are a kernel each, which are faster by themselves";
    let fewer =
        "fewer than 1500 rows, more than 128 channels, or up to 128 windows and sizes of a kernel of both blocks";
    let too_many = |form: Form<true>, found| swin(form).missed_because(faster, [fewer, found]);
    too_many(
        Form { images: 24, ..SWIN },
        "1536 rows of 48 channels in 96 windows of 16 tokens, 2 heads, 128 hidden columns",
    );
    // A kernel of a pair
    let three = Form { channels: 96, heads: 3, hidden: 64, images: 32, ..SWIN };
    swin(three).chains();
    too_many(
        Form { images: 33, ..three },
        "2112 rows of 96 channels in 132 windows of 16 tokens, 3 heads, 64 hidden columns",
    );
    too_many(
        Form { hidden: 96, ..three },
        "2048 rows of 96 channels in 128 windows of 16 tokens, 3 heads, 96 hidden columns",
    );
    too_many(
        Form { heads: 2, ..three },
        "2048 rows of 96 channels in 128 windows of 16 tokens, 2 heads, 64 hidden columns",
    );
    too_many(
        Form { channels: 80, ..three },
        "2048 rows of 80 channels in 128 windows of 16 tokens, 3 heads, 64 hidden columns",
    );
    let four = Form { channels: 128, heads: 4, hidden: 32, ..three };
    swin(four).chains();
    too_many(
        Form { hidden: 48, ..four },
        "2048 rows of 128 channels in 128 windows of 16 tokens, 4 heads, 48 hidden columns",
    );
    let full = |form| Form { grid: [8, 16], window: Some([8, 8]), images: 16, ..form };
    swin(full(three)).chains();
    too_many(full(four), "2048 rows of 128 channels in 32 windows of 64 tokens, 4 heads, 32 hidden columns");
    let more = |images| swin(Form { images, channels: 144, ..SWIN });
    more(127).chains();
    let rows = "its blocks have more rows than the plugin's kernel is made for";
    let limit = "at most 0.600 GFLOP in both products of an MLP, an open batch counted as 1";
    more(128).missed_because(rows, [limit, "0.604 GFLOP"]);
    let short = Form { channels: 16, hidden: 16, head: 32, grid: [1, 2], images: 1, ..VIT };
    assert_eq!(Parts::new(short, &[false; 32]).chains(), [[0; 32]]);
    let more = ["at most 32 of attention", "33"];
    Parts::new(short, &[false; 33]).missed_because("it has more blocks than the plugin takes", more);
    let alone = "one pair of blocks without windows takes more time as a chain";
    Parts::new(short, &[false]).missed_because(alone, ["at least 2 of attention", "1"]);
}

#[test]
fn computed_weights_are_missed() {
    for name in ["a1_scale", "a2_w_qkv", "a1_position", "a2_b_proj", "v1_bias", "v2_w2"] {
        let mut net = Parts::new(SWIN, &[false, true]);
        let dims = net.weights.iter().find(|w| w.name() == name).unwrap().dims.clone();
        net.weights.retain(|w| w.name() != name);
        net.inputs.push((name, dims));
        let reason = format!("a weight that has to be known is computed (at {name})");
        net.missed_because(&reason, ["a constant", "a computed value"]);
    }
}

#[test]
fn chains_are_not_fused_unless_asked_for_and_can_be_left() {
    only_if_asked_for(&Parts::new(SWIN, &[false, true]), "block-chain");
    only_if_asked_for(&Parts::new(VIT, &[false, false]), "sequence-chain");
}

#[test]
fn the_cost_of_a_chain_is_less_than_that_of_its_blocks() {
    let swin = costs_less_than_its_parts(&Parts::new(SWIN, &[false, true]));
    let vit = costs_less_than_its_parts(&Parts::new(VIT, &[false; 3]));
    for [parts, chain] in [swin, vit] {
        assert_eq!(parts, chain);
    }
}

// ---- the order of the weights ----

/// Element by element as docs/ops.md has it.
struct Expected<'a, const WINDOWS: bool> {
    net: &'a Parts<WINDOWS>,
    weights: Vec<f64>,
    vectors: Vec<f64>,
}

impl<const WINDOWS: bool> Expected<'_, WINDOWS> {
    /// A matrix and its offset, and of the norm before it scale and bias.
    fn product(&mut self, of: &str, [w, b]: [&str; 2], [rows, columns]: [i64; 2], normal: bool, between: &[f64]) {
        let value = |name: &str| self.net.values(&format!("{of}_{name}"));
        let (matrix, mut offset) = (value(w), value(b));
        let (scale, bias) = match normal {
            true => (value("scale"), value("bias")),
            false => (vec![1.0; rows as usize], vec![0.0; rows as usize]),
        };
        let [rows, columns] = [rows, columns].map(|n| n as usize);
        assert_eq!((matrix.len(), offset.len()), (rows * columns, columns));
        for (column, offset) in offset.iter_mut().enumerate() {
            *offset += (0..rows).map(|row| bias[row] * matrix[row * columns + column]).sum::<f64>();
        }
        let depth = [128, 64, 32, 16].into_iter().find(|depth| rows % depth == 0).unwrap();
        let at = self.weights.len();
        self.weights.resize(at + matrix.len(), f64::NAN);
        let axes = [rows / depth, columns / 8, depth / 8, 8, 8];
        for a in 0..axes[0] {
            for b in 0..axes[1] {
                for c in 0..axes[2] {
                    for e in 0..8 {
                        for f in 0..8 {
                            let (row, column) = (a * depth + c * 8 + f, b * 8 + e);
                            let place = (((a * axes[1] + b) * axes[2] + c) * 8 + e) * 8 + f;
                            self.weights[at + place] = matrix[row * columns + column] * scale[row];
                        }
                    }
                }
            }
        }
        self.vectors.extend(offset);
        self.vectors.extend(between);
    }
}

/// The bias of a pair's scores, dense, with rows of whole eights.
fn dense_bias<const WINDOWS: bool>(net: &Parts<WINDOWS>, of: &str) -> Vec<f64> {
    let (heads, tokens) = (net.block.heads as usize, net.block.tokens() as usize);
    let row = tokens.next_multiple_of(8);
    let mut dense = vec![0.0; heads * tokens * row];
    let position = if net.block.bias == Bias::None { vec![] } else { net.values(&format!("{of}_position")) };
    for (i, value) in dense.iter_mut().enumerate() {
        let (head, query, key) = (i / row / tokens, i / row % tokens, i % row);
        if key < tokens {
            *value = match net.block.bias {
                Bias::None => continue,
                Bias::Table => {
                    let place = table_index(net.block.window.unwrap())[query * tokens + key] as usize;
                    position[place * heads + head]
                }
                Bias::Dense { heads: true, .. } => position[(head * tokens + query) * tokens + key],
                Bias::Dense { heads: false, .. } => position[query * tokens + key],
            };
        }
    }
    if net.block.bias == Bias::None { vec![] } else { dense }
}

#[test]
fn weights_are_packed_and_hold_the_norms() {
    let odd = Form { grid: [3, 6], window: Some([3, 3]), shift: [1, 1], ..SWIN };
    let dense = |heads: bool| Form { heads: 2, head: 32, bias: Bias::Dense { heads, period: 1 }, ..VIT };
    hold_weights_as_documented([(SWIN, false), (odd, false), (SWIN, true)]);
    hold_weights_as_documented([VIT, dense(true), dense(false)].map(|form| (form, false)));
}

/// Of each form in float32 or float16.
fn hold_weights_as_documented<const WINDOWS: bool>(forms: [(Form<WINDOWS>, bool); 3]) {
    for (form, half) in forms {
        let mut net = Parts::new(form, &[false, WINDOWS]);
        let options = with(&[Parts::<WINDOWS>::KIND]);
        let rewrite = if half { rewritten(net.half(), &options) } else { net.rewrite(&options) };
        let model = &rewrite.model().proto;
        if half {
            for tensor in &mut net.weights {
                let values: Vec<f32> = halves(tensor).into_iter().map(f16::to_f32).collect();
                *tensor = TensorProto::from_f32(tensor.name(), &tensor.dims, &values);
            }
        }
        let mut expected = Expected { net: &net, weights: vec![], vectors: vec![] };
        let (c, inner, hidden) = (form.channels, form.heads * form.head, form.hidden);
        for i in 1..=2 {
            let (a, v) = (format!("a{i}"), format!("v{i}"));
            expected.product(&a, ["w_qkv", "b_qkv"], [c, 3 * inner], true, &dense_bias(&net, &a));
            expected.product(&a, ["w_proj", "b_proj"], [inner, c], false, &[]);
            expected.product(&v, ["w1", "b1"], [c, hidden], true, &[]);
            expected.product(&v, ["w2", "b2"], [hidden, c], false, &[]);
        }
        let node = nodes(model, OP)[0];
        let graph = model.graph.as_ref().unwrap();
        for (slot, expected) in [(1, expected.weights), (2, expected.vectors)] {
            let tensor = graph.initializer.iter().find(|t| t.name() == node.input[slot]).unwrap();
            assert_eq!(tensor.dims, [expected.len() as i64]);
            // Rounded once.
            let rounded = |v: f64| if half { f16::from_f64(v).to_f64() } else { f64::from(v as f32) };
            let found = tensor.to_f64_vec().unwrap();
            let wrong = found.iter().zip(&expected).position(|(&found, &expected)| {
                let step = if half { 1e-3 } else { 1e-7 };
                // A sum in another order may be rounded to the next number.
                found != rounded(expected) && (found - expected).abs() > step * expected.abs()
            });
            assert_eq!(wrong, None, "input {slot}");
        }
    }
}

// ---- with the patch merge ahead ----

const MERGE: &str = "TrtOptPatchMergeBlock";

/// The map that a patch merge ahead of [`SWIN`] is of: of so many channels, and of odd height.
const BEFORE: i64 = 32;
const FINE: [i64; 2] = [15, 16];

/// Two pairs of blocks behind a patch merge, which gives `v0`.
fn merged() -> Parts<true> {
    merged_of(SWIN)
}

fn merged_of(form: Form<true>) -> Parts<true> {
    let mut net = Parts::new(form, &[false, true]);
    let (wide, c) = (4 * BEFORE, form.channels);
    let weights = [("scale", vec![wide]), ("bias", vec![wide]), ("w", vec![wide, c]), ("b", vec![c])];
    let attributes = vec![
        AttributeProto::float("epsilon", 1e-5),
        AttributeProto::int("residual", 0),
        AttributeProto::ints("grid", &FINE),
        AttributeProto::ints("order", &[0, 2, 1, 3]),
        AttributeProto::int("rank", 3),
    ];
    net.plugin(MERGE, "x", weights.into(), "v0", attributes);
    net.nodes.rotate_right(1);
    net.inputs = vec![("x", vec![form.images, FINE[0] * FINE[1], BEFORE])];
    net
}

fn merged_options() -> Options {
    with(&[Kind::MergedChain])
}

/// The rewritten model, which computes the same.
fn merge(net: &Parts<true>) -> testing::Rewrite {
    let rewrite = net.rewrite(&merged_options());
    rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
    rewrite
}

#[test]
fn a_patch_merge_and_the_chain_behind_it_are_one_node() {
    let rewrite = merge(&merged());
    let model = &rewrite.model().proto;
    assert_eq!(ops(model), [OP]);
    let node = nodes(model, OP)[0];
    assert_eq!((shifted(node), node.input.len(), int(node, "merged")), (vec![0, 1], 3, SWIN.channels));
    assert_eq!(["merged_grid", "order"].map(|name| &attribute(node, name).ints[..]), [&FINE[..], &[0, 2, 1, 3]]);
    let ledger = rewrite.ledger();
    assert_eq!([Kind::BlockChain, Kind::MergedChain].map(|kind| ledger.count(kind).fused), [1, 1]);
    assert!(ledger.sites.iter().all(|site| site.into.as_deref() == node.name.as_deref()), "{:?}", ledger.sites);
    let site = ledger.sites.iter().find(|site| site.kind == Kind::MergedChain).unwrap();
    assert_eq!((site.node.as_str(), site.rule.as_deref()), ("TrtOptPatchMergeBlock_v0", Some("merged-chain")));
    // A chain that nothing is ahead of says so.
    let alone = Parts::new(SWIN, &[false, true]).fuse().0;
    let node = nodes(&alone, OP)[0];
    assert_eq!((int(node, "merged"), &attribute(node, "merged_grid").ints[..], &attribute(node, "order").ints[..]), {
        (0, &[0, 0][..], &[0; 4][..])
    });
}

/// Maps of either rank on either side, and any order of the four tokens.
#[test]
fn merged_chains_of_other_forms() {
    let (fine, map) = (vec![SWIN.images, FINE[0], FINE[1], BEFORE], vec![SWIN.images, 8, 8, SWIN.channels]);
    let mut net = merged();
    net.attribute("v0", AttributeProto::ints("order", &[3, 0, 1, 2]));
    net.inputs[0].1.clone_from(&fine);
    let rewrite = merge(&net);
    assert_eq!(ops(&rewrite.model().proto), [OP, "Reshape"]);
    net.attribute("v0", AttributeProto::int("rank", 4));
    net.outputs[0].1.clone_from(&map);
    assert_eq!(ops(&merge(&net).model().proto), [OP]);
    let mut net = merged();
    net.reshaped("v0", &map);
    net.outputs[0].1 = map;
    assert_eq!(ops(&merge(&net).model().proto), [OP, "Reshape"]);
}

#[test]
fn merged_chains_in_float16_compute_the_same() {
    let options = verify::Options { rtol: Some(1e-2), ..verify::Options::default() };
    let rewrite = rewritten(merged().half(), &merged_options());
    assert_eq!(ops(&rewrite.model().proto), [OP]);
    rewrite.compare(&options).unwrap().check().unwrap();
    // Converted after the rewrite, as `fuse --fp16` does it.
    let rewrite = merged().rewrite(&merged_options()).to_fp16(&options).unwrap();
    assert_eq!(ops(&rewrite.model().proto), ["Cast", OP, "Cast"]);
    rewrite.compare(&options).unwrap().check().unwrap();
}

/// The merge's weights are ahead of the chain's, and hold its norm; then come sums of what float16 makes of them.
#[test]
fn weights_of_a_merge_are_ahead_of_the_chains() {
    let net = merged();
    let tensors = |rewrite: &testing::Rewrite| {
        let graph = rewrite.model().proto.graph.as_ref().unwrap();
        let node = nodes(&rewrite.model().proto, OP)[0];
        [1, 2]
            .map(|slot| graph.initializer.iter().find(|t| t.name() == node.input[slot]).unwrap().to_f64_vec().unwrap())
    };
    let chain = tensors(&net.rewrite(&with(&[Kind::BlockChain])));
    let (wide, c) = (4 * BEFORE as usize, SWIN.channels as usize);
    let options = verify::Options { rtol: Some(1e-2), ..verify::Options::default() };
    let single = net.rewrite(&merged_options());
    let half = net.rewrite(&merged_options()).to_fp16(&options).unwrap();
    let [weights, vectors] = tensors(&single);
    let mut expected = Expected { net: &net, weights: vec![], vectors: vec![] };
    expected.product("v0", ["w", "b"], [wide as i64, c as i64], true, &[]);
    let near = |found: &[f64], expected: &[f64]| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near(&weights[..wide * c], &expected.weights) && near(&vectors[..c], &expected.vectors));
    assert_eq!([&weights[wide * c..], &vectors[3 * c..]], [&chain[0][..], &chain[1][..]]);
    let [weights, of_half] = tensors(&half);
    for column in 0..c {
        // 128 contracted elements lie together, eight columns behind each other.
        let of_column = (0..wide).map(|row| weights[((column / 8 * 16 + row / 8) * 8 + column % 8) * 8 + row % 8]);
        let sum: f64 = of_column.sum();
        let (first, rest) = (of_half[c + column], of_half[2 * c + column]);
        assert!((first + rest - sum).abs() <= 1e-6 * (1.0 + sum.abs()), "{first} + {rest} for {sum}");
        assert_eq!([first, rest], [vectors[c + column], vectors[2 * c + column]]);
    }
}

#[test]
fn merges_without_a_chain_that_takes_them_are_missed() {
    let missed = |net: &Parts<true>, reason: &str, [expected, found]: [&str; 2]| {
        let rewrite = merge(net);
        let sites: Vec<_> = rewrite.ledger().missed(Kind::MergedChain).collect();
        assert_eq!((sites.len(), rewrite.ledger().count(Kind::MergedChain).total), (1, 1), "{sites:?}");
        assert_eq!([&sites[0].reason, &sites[0].expected, &sites[0].found].map(|s| s.as_deref()), {
            [reason, expected, found].map(Some)
        });
        assert!(nodes(&rewrite.model().proto, OP).iter().all(|node| int(node, "merged") == 0));
        assert_eq!(nodes(&rewrite.model().proto, MERGE).len(), 1);
    };
    let behind = "no chain of blocks in windows is behind it";
    let chain = "TrtOptBlockChain in windows";
    let mut net = merged();
    net.attribute("v0", AttributeProto::float("epsilon", 1e-3));
    let reason = "its norms add different epsilons to the variance";
    missed(&net, reason, ["0.00001 as in the chain", "0.001 in the merge"]);
    let mut net = merged();
    net.attribute("v0", AttributeProto::int("residual", 1));
    net.node("v0").input.insert(1, "r".into());
    net.inputs.push(("r", net.inputs[0].1.clone()));
    missed(&net, "a residual add is in its patch merge", ["residual = 0", "residual = 1"]);
    let mut net = merged();
    net.inputs[0].1[2] = 24;
    for (name, dims) in [("v0_scale", vec![96]), ("v0_bias", vec![96]), ("v0_w", vec![96, SWIN.channels])] {
        net.set(weight(name, &dims));
    }
    let reason = "the tensor cores take no such sizes";
    missed(&net, reason, ["a multiple of 16 channels before the merge", "24"]);
    // As many tokens, but another map.
    let mut net = merged();
    net.attribute("v0", AttributeProto::ints("grid", &[7, 32]));
    net.inputs[0].1[1] = 7 * 32;
    missed(&net, "the chain is of another map than it makes", ["a map of 8x8", "a map of 4x16"]);
    // A kernel of a pair takes no merge.
    let three = Form { channels: 96, heads: 3, hidden: 64, ..SWIN };
    let reason = "the chain behind it may be a kernel for each pair of blocks";
    missed(&merged_of(three), reason, ["sizes that have none", "3 heads in 96 channels"]);
    assert_eq!(ops(&merge(&merged_of(Form { hidden: 96, ..three })).model().proto), [OP]);
    // Blocks that are no chain, and what is read otherwise.
    let mut net = merged();
    net.attribute("v1", AttributeProto::float("epsilon", 1e-3));
    net.attribute("v2", AttributeProto::float("epsilon", 1e-3));
    missed(&net, behind, [chain, "trt.opt.TrtOptSwinAttnBlock"]);
    let mut net = merged();
    net.outputs.push(("v0", SWIN.map()));
    missed(&net, "an interior value is used otherwise too (at v0)", ["1 use", "a graph output"]);
    let mut net = merged();
    net.before("a1", vec![common::node("Neg", &["v0"], &["n"])]);
    net.input("a1", 0, "n");
    missed(&net, behind, [chain, "Neg"]);
    // Sequences.
    let mut net = merged();
    net.nodes.truncate(1);
    net.weights.retain(|tensor| tensor.name().starts_with("v0"));
    net.block = Form { window: None, bias: Bias::None, ..SWIN };
    for i in [1, 2] {
        net.attention(i, false);
        net.mlp(i);
    }
    let rewrite = net.rewrite(&with(&[Kind::MergedChain, Kind::SequenceChain]));
    let site = rewrite.ledger().missed(Kind::MergedChain).next().unwrap();
    assert_eq!([&site.reason, &site.found].map(|s| s.as_deref()), [behind, "TrtOptBlockChain of sequences"].map(Some));
    assert_eq!(ops(&rewrite.model().proto), [MERGE, OP]);
}

#[test]
fn merged_chains_are_not_fused_unless_asked_for_and_can_be_left() {
    let made = |options: &Options| ops(&merged().rewrite(options).model().proto);
    assert_eq!(made(&with(&[Kind::BlockChain, Kind::PatchMergeBlock])), [MERGE, OP]);
    let mut options = merged_options();
    options.skip.insert("merged-chain".into());
    assert_eq!(made(&options), [MERGE, OP]);
    let standard = vec![trt_opt::rewrite::Standard { kind: Kind::MergedChain, node: None, reason: "slower".into() }];
    assert_eq!(made(&Options { standard, ..merged_options() }), [MERGE, OP]);
    // Its cost is that of both.
    let estimate =
        |options: &Options| trt_opt::contents::Contents::of(merged().rewrite(options).model(), 1).unwrap().estimate;
    let [parts, whole] = [with(&[Kind::BlockChain]), merged_options()].map(|options| estimate(&options));
    assert_eq!((parts.macs, parts.launches), (whole.macs, whole.launches + 1.0));
    assert!(whole.bytes < parts.bytes);
}

// ---- whole layers of standard ops ----

/// Layers of a vision transformer: two blocks each, of heads of 32.
struct Layers;

impl Block for Layers {
    const KIND: Kind = Kind::SequenceChain;
    const OP: &'static str = OP;
}

const IMAGES: i64 = 2;
const TOKENS: i64 = 5;
const HEADS: i64 = 2;
const CHANNELS: i64 = 64;
const HIDDEN: i64 = 128;

fn layers(count: usize) -> block::Parts<Layers> {
    let c = CHANNELS;
    let mut net = block::Parts {
        nodes: vec![common::node("Add", &["x", "r"], &["v0"])],
        weights: vec![
            TensorProto::from_f32("root", &[], &[0.2]),
            TensorProto::from_f32("one", &[], &[1.0]),
            TensorProto::from_f32("half", &[], &[0.5]),
            TensorProto::from_f32("sqrt2", &[], &[std::f32::consts::SQRT_2]),
            ints("heads", &[IMAGES, TOKENS, 3, HEADS, c / HEADS]),
            ints("rows", &[IMAGES, TOKENS, c]),
        ],
        inputs: ["x", "r"].map(|name| (name, vec![IMAGES, TOKENS, c])).into(),
        // Leaked, since outputs have static names: a handful of bytes a test.
        outputs: vec![(String::leak(format!("v{count}")), vec![IMAGES, TOKENS, c])],
        block: Layers,
    };
    for (i, part) in ["q", "k", "v"].into_iter().enumerate() {
        net.weights.push(TensorProto::from_i64(format!("index_{part}"), &[], &[i as i64]));
    }
    for i in 1..=count {
        let name = |what: &str| format!("{what}{i}");
        for (what, dims) in [
            ("g", vec![c]),
            ("b", vec![c]),
            ("w_qkv", vec![c, 3 * c]),
            ("b_qkv", vec![3 * c]),
            ("w_proj", vec![c, c]),
            ("b_proj", vec![c]),
            ("h", vec![c]),
            ("d", vec![c]),
            ("w1_", vec![c, HIDDEN]),
            ("b1_", vec![HIDDEN]),
            ("w2_", vec![HIDDEN, c]),
            ("b2_", vec![c]),
        ] {
            net.weights.push(weight(&name(what), &dims));
        }
        let stream = format!("v{}", i - 1);
        let mut add = |op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>| {
            let own = |input: &&str| match *input {
                "s" => stream.clone(),
                shared if ["root", "one", "half", "sqrt2", "heads", "rows"].contains(&shared) => shared.into(),
                index if index.starts_with("index") => index.into(),
                other => name(other),
            };
            let inputs: Vec<String> = inputs.iter().map(own).collect();
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let node = common::node(op, &inputs, &[&name(output)]);
            net.nodes.push(NodeProto { attribute: attributes, ..node });
        };
        let axis = |axis: i64| vec![AttributeProto::int("axis", axis)];
        let norm = || vec![AttributeProto::int("axis", -1), AttributeProto::float("epsilon", 1e-5)];
        let perm = |perm: &[i64]| vec![AttributeProto::ints("perm", perm)];
        add("LayerNormalization", &["s", "g", "b"], "n", norm());
        add("MatMul", &["n", "w_qkv"], "qkv_product", vec![]);
        add("Add", &["qkv_product", "b_qkv"], "qkv", vec![]);
        add("Reshape", &["qkv", "heads"], "split", vec![]);
        add("Transpose", &["split"], "parts", perm(&[2, 0, 3, 1, 4]));
        for part in ["q", "k", "v"] {
            add("Gather", &["parts", &format!("index_{part}")], &format!("{part}_"), axis(0));
        }
        add("Mul", &["q_", "root"], "q_scaled", vec![]);
        add("Transpose", &["k_"], "k_t", perm(&[0, 1, 3, 2]));
        add("MatMul", &["q_scaled", "k_t"], "scores", vec![]);
        add("Softmax", &["scores"], "p", axis(-1));
        add("MatMul", &["p", "v_"], "mixed", vec![]);
        add("Transpose", &["mixed"], "merged", perm(&[0, 2, 1, 3]));
        add("Reshape", &["merged", "rows"], "context", vec![]);
        add("MatMul", &["context", "w_proj"], "projected", vec![]);
        add("Add", &["projected", "b_proj"], "branch", vec![]);
        add("Add", &["s", "branch"], "a", vec![]);
        add("LayerNormalization", &["a", "h", "d"], "m", norm());
        add("MatMul", &["m", "w1_"], "up_product", vec![]);
        add("Add", &["up_product", "b1_"], "up", vec![]);
        add("Div", &["up", "sqrt2"], "scaled", vec![]);
        add("Erf", &["scaled"], "bent", vec![]);
        add("Add", &["bent", "one"], "shifted", vec![]);
        add("Mul", &["up", "shifted"], "twice", vec![]);
        add("Mul", &["twice", "half"], "active", vec![]);
        add("MatMul", &["active", "w2_"], "down_product", vec![]);
        add("Add", &["down_product", "b2_"], "down", vec![]);
        add("Add", &["a", "down"], "v", vec![]);
    }
    net
}

/// The blocks become a chain as soon as they are there; all sites in it say where they are.
#[test]
fn layers_become_blocks_and_these_a_chain() {
    let (model, ledger) = layers(3).fuse();
    assert_eq!(ops(&model), ["Add", OP]);
    let count = |kind| ledger.count(kind).fused;
    let kinds = [Kind::LayerNorm, Kind::Attention, Kind::Gelu, Kind::AttnBlock, Kind::MlpBlock, Kind::SequenceChain];
    assert_eq!(kinds.map(count), [6, 3, 3, 3, 3, 1]);
    let node = nodes(&model, OP)[0];
    let fused = ledger.sites.iter().filter(|s| s.status == Status::Fused);
    assert!(fused.into_iter().all(|s| s.into.as_deref() == node.name.as_deref()), "{:?}", ledger.sites);
    // Known by the attention of the first block.
    let site = ledger.sites.iter().find(|s| s.kind == Kind::SequenceChain).unwrap();
    assert_eq!(site.node, "Softmax_p1");
    // Where the blocks are not asked for there is no site.
    let mut options = Options::default();
    options.kinds.insert(Kind::SequenceChain);
    let ledger = layers(2).rewrite(&options).ledger().clone();
    assert!(ledger.sites.iter().all(|s| !s.kind.is_block()), "{:?}", ledger.sites);
    let mut options = with(&[Kind::SequenceChain]);
    options.skip.insert("attn-block".into());
    assert_eq!(layers(2).rewrite(&options).ledger().count(Kind::SequenceChain).total, 0);
}

/// Converted after the rewrite, as `fuse --fp16` does it.
#[test]
fn chains_are_converted_to_float16() {
    let options = verify::Options { rtol: Some(1e-2), ..verify::Options::default() };
    let rewrite = layers(2).rewrite(&with(&[Kind::SequenceChain])).to_fp16(&options).unwrap();
    rewrite.compare(&options).unwrap().check().unwrap();
    let graph = rewrite.model().proto.graph.as_ref().unwrap();
    let node = nodes(&rewrite.model().proto, OP)[0];
    let weights = graph.initializer.iter().filter(|t| node.input[1..].contains(&t.name().to_owned()));
    assert_eq!(weights.map(|t| t.dtype().unwrap()).collect::<Vec<_>>(), [DType::F16; 2]);
}

/// Groups of `tune`: chains come behind their blocks, and have these and all in them as their parts.
#[test]
fn chains_are_a_group_made_of_their_blocks() {
    use trt_opt::ablation::tune::{self, By};
    let net = layers(2);
    let graph = |of: &testing::Rewrite| trt_opt::ir::Graph::take(&mut of.model().proto.clone()).unwrap();
    let parts = net.rewrite(&Options { kinds: tune::kinds_without_wholes(), ..Options::default() });
    let all = net.rewrite(&with(&Kind::ALL));
    let blocks = tune::blocks(parts.ledger(), &graph(&parts), By::Kind);
    let wholes = tune::wholes(all.ledger(), &graph(&all), By::Kind);
    assert_eq!(wholes.iter().map(|g| g.kind).collect::<Vec<_>>(), [Kind::SequenceChain]);
    let of = |kind: Kind| wholes[0].parts.iter().filter(|(part, _)| *part == kind).count();
    assert_eq!([Kind::AttnBlock, Kind::MlpBlock, Kind::Attention, Kind::LayerNorm].map(of), [2, 2, 2, 4]);
    let number = |kind: Kind| blocks.iter().position(|g| g.kind == kind).unwrap();
    let (attention, mlp, chain) = (number(Kind::AttnBlock), number(Kind::MlpBlock), blocks.len());
    let groups = [blocks.clone(), wholes.clone()].concat();
    let made = |left: &[usize]| {
        let standard = tune::standard(&groups, &left.iter().copied().collect());
        let proto = net.rewrite(&Options { standard, ..with(&Kind::ALL) }).model().proto.clone();
        [OP, OF_SEQUENCES, MLP].map(|op| nodes(&proto, op).len())
    };
    // With both of its parts left out and the chain taken, it is made of them all the same.
    assert_eq!(made(&[]), [1, 0, 0]);
    assert_eq!(made(&[attention, mlp]), [1, 0, 0]);
    assert_eq!(made(&[chain]), [0, 2, 2]);
    assert_eq!(made(&[attention, chain]), [0, 0, 2]);
    assert_eq!(made(&[attention, mlp, chain]), [0; 3]);
}

/// The exports' heads are of other sizes than the plugin takes: their chains are sites, known by the node of the first attention.
#[test]
fn exports_have_their_chains_as_sites() {
    let (heads, channels) = ("the plugin takes no such attention", "the tensor cores take no such sizes");
    let [windows, sequences] = [Kind::BlockChain, Kind::SequenceChain];
    for (name, [kind, other], reasons) in
        [("vit_ts17", [sequences, windows], vec![heads]), ("swin_ts17", [windows, sequences], vec![channels, heads])]
    {
        let path = common::fixtures().into_iter().find(|p| p.ends_with(format!("{name}.onnx"))).unwrap();
        let rewrite = testing::rewrite_with(&path, &with(&Kind::ALL)).unwrap();
        let missed: Vec<_> = rewrite.ledger().missed(kind).collect();
        assert_eq!([kind, other].map(|kind| rewrite.ledger().count(kind).total), [missed.len(), 0]);
        let found: Vec<_> = missed.iter().map(|site| site.reason.as_deref().unwrap()).collect();
        assert_eq!(found, reasons, "{name}");
        assert!(missed.iter().all(|site| site.node.to_lowercase().ends_with("softmax")), "{missed:?}");
    }
}
