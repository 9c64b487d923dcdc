//! Chains of blocks over the tokens of TNT, with what the words add between their pairs: they are one node, the words give what it takes as one
//! tensor, both compute the same, and every near miss says why.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{Block, Net, costs_less_than_its_parts, int, nodes, only_if_asked_for, rewritten, weight, with};
use common::ops;
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto};
use trt_opt::rewrite::{Kind, Ledger, Options, Status};
use trt_opt::{testing, verify};

const OP: &str = "TrtOptBlockChain";
const WORDS: &str = "TrtOptTntWords";
const ATTENTION: &str = "TrtOptAttnBlock";
const MLP: &str = "TrtOptMlpBlock";

/// What a network is made with: words of 4 x 8 for each of 4 patches, tokens of 64 channels in two heads.
#[derive(Clone, Copy)]
struct Form {
    /// The first token that words are of.
    begin: i64,
    /// Tokens behind the last that words are of.
    behind: i64,
}

const TNT: Form = Form { begin: 1, behind: 0 };
const IMAGES: i64 = 2;
const PATCHES: i64 = 4;
const INNER: i64 = 8;
const WIDTH: i64 = 4 * INNER;
const CHANNELS: i64 = 64;
const HIDDEN: i64 = 128;

impl Block for Form {
    const KIND: Kind = Kind::TokenChain;
    const OP: &'static str = OP;
}

/// The parts as nodes to spoil. Layer `i` makes words `w{i}` of `w{i - 1}`; its tokens are `s{i}` with the bridge's, `a{i}` behind the attention and
/// `v{i}` behind the MLP.
type Parts = block::Parts<Form>;

impl Form {
    fn tokens(&self) -> Vec<i64> {
        vec![IMAGES, self.begin + PATCHES + self.behind, CHANNELS]
    }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto::int(name, value)
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto::float(name, value)
}

impl Parts {
    fn new(form: Form, layers: usize) -> Self {
        let mut net = Self {
            nodes: vec![],
            weights: vec![block::ints("rows", &[IMAGES, PATCHES, WIDTH])],
            inputs: vec![("w0", vec![IMAGES * PATCHES, WIDTH / INNER, INNER]), ("v0", form.tokens())],
            // Leaked, since outputs have static names: a handful of bytes a test.
            outputs: vec![(String::leak(format!("v{layers}")), form.tokens())],
            block: form,
        };
        for i in 1..=layers {
            net.words(i);
            net.bridge(i, &format!("w{i}"), &format!("v{}", i - 1), &format!("s{i}"));
            net.attention(i);
            net.mlp(i);
        }
        net
    }

    fn plugin(&mut self, op: &str, x: &[&str], weights: &[(&str, &[i64])], output: &str, of: Vec<AttributeProto>) {
        let names: Vec<String> = weights.iter().map(|(name, _)| format!("{output}_{name}")).collect();
        self.weights.extend(names.iter().zip(weights).map(|(name, (_, dims))| weight(name, dims)));
        let inputs: Vec<&str> = x.iter().copied().chain(names.iter().map(String::as_str)).collect();
        let node = common::node(op, &inputs, &[output]);
        self.nodes.push(NodeProto { domain: Some("trt.opt".into()), attribute: of, ..node });
    }

    fn words(&mut self, i: usize) {
        let c = INNER;
        let weights: [(&str, &[i64]); 12] = [
            ("scale1", &[c]),
            ("bias1", &[c]),
            ("w_qkv", &[c, 3 * c]),
            ("b_qkv", &[3 * c]),
            ("w_proj", &[c, c]),
            ("b_proj", &[c]),
            ("scale2", &[c]),
            ("bias2", &[c]),
            ("w1", &[c, 2 * c]),
            ("b1", &[2 * c]),
            ("w2", &[2 * c, c]),
            ("b2", &[c]),
        ];
        let of = vec![
            float("epsilon1", 1e-5),
            float("epsilon2", 1e-3),
            integer("whole", 0),
            integer("num_heads", 2),
            float("scale", 0.5),
            AttributeProto::string("approximate", "none"),
        ];
        self.plugin("TrtOptTntInnerBlock", &[&format!("w{}", i - 1)], &weights, &format!("w{i}"), of);
    }

    fn bridge(&mut self, i: usize, words: &str, from: &str, to: &str) {
        let (k, c) = (WIDTH, CHANNELS);
        let weights: [(&str, &[i64]); 6] =
            [("scale1", &[k]), ("bias1", &[k]), ("w", &[k, c]), ("b", &[c]), ("scale2", &[c]), ("bias2", &[c])];
        let rows = format!("rows{i}");
        self.nodes.push(common::node("Reshape", &[words, "rows"], &[&rows]));
        let begin = integer("begin", self.block.begin);
        let of = vec![float("epsilon1", 1e-5), float("epsilon2", 1e-3), integer("residual", 0), begin];
        self.plugin("TrtOptTntBridge", &[from, &rows], &weights, to, of);
    }

    fn attention(&mut self, i: usize) {
        let c = CHANNELS;
        let weights: [(&str, &[i64]); 6] = [
            ("scale", &[c]),
            ("bias", &[c]),
            ("w_qkv", &[c, 3 * c]),
            ("b_qkv", &[3 * c]),
            ("w_proj", &[c, c]),
            ("b_proj", &[c]),
        ];
        let of = vec![
            float("epsilon", 1e-5),
            integer("residual", 0),
            integer("num_heads", 2),
            float("scale", 0.2),
            integer("bias", 0),
        ];
        self.plugin(ATTENTION, &[&format!("s{i}")], &weights, &format!("a{i}"), of);
    }

    fn mlp(&mut self, i: usize) {
        let (c, h) = (CHANNELS, HIDDEN);
        let weights: [(&str, &[i64]); 6] =
            [("scale", &[c]), ("bias", &[c]), ("w1", &[c, h]), ("b1", &[h]), ("w2", &[h, c]), ("b2", &[c])];
        let of = vec![
            float("epsilon", 1e-5),
            integer("residual", 0),
            integer("norm", 1),
            AttributeProto::string("approximate", "none"),
        ];
        self.plugin(MLP, &[&format!("a{i}")], &weights, &format!("v{i}"), of);
    }

    /// With the words as one node, and all blocks as they are.
    fn with_words(&self) -> ModelProto {
        self.rewrite(&with(&[Kind::TntWords])).model().proto.clone()
    }
}

fn pairs(node: &NodeProto) -> usize {
    let shifted = &node.attribute.iter().find(|a| a.name() == "shifted").unwrap().ints;
    shifted.iter().filter(|&&pair| pair >= 0).count()
}

/// Pairs of each chain, and whether something is added between them.
fn chains(model: &ModelProto) -> Vec<(usize, i64)> {
    nodes(model, OP).into_iter().map(|node| (pairs(node), int(node, "between"))).collect()
}

/// Rewrites the model, proves that it computes the same, and gives it with its ledger.
fn chained(model: ModelProto) -> (ModelProto, Ledger) {
    let rewrite = rewritten(model, &with(&[Kind::TokenChain]));
    rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
    (rewrite.model().proto.clone(), rewrite.ledger().clone())
}

fn missed(ledger: &Ledger) -> Vec<[&str; 3]> {
    let sites = ledger.missed(Kind::TokenChain);
    sites.map(|s| [&s.reason, &s.expected, &s.found].map(|t| t.as_deref().unwrap_or_default())).collect()
}

#[test]
fn all_tokens_are_one_node_and_the_words_give_what_it_takes() {
    let (model, ledger) = Parts::new(TNT, 4).fuse();
    assert_eq!(ops(&model), [WORDS, "Add", OP]);
    let (words, chain) = (nodes(&model, WORDS)[0], nodes(&model, OP)[0]);
    assert_eq!((int(words, "stacked"), words.output.len(), chains(&model)), (3, 2, vec![(4, 1)]));
    assert_eq!((chain.input.len(), &chain.input[3]), (4, &words.output[1]));
    // The words are where they were, and the blocks are in the chain.
    let of = |kind: Kind| -> Vec<_> { ledger.sites.iter().filter(move |s| s.kind == kind).collect() };
    let site = of(Kind::TokenChain);
    assert_eq!((site.len(), site[0].status, site[0].node.as_str()), (1, Status::Fused, "TrtOptAttnBlock_a1"));
    assert_eq!((site[0].rule.as_deref(), site[0].into.as_deref()), (Some("token-chain"), chain.name.as_deref()));
    assert_eq!(of(Kind::TntWords)[0].into.as_deref(), words.name.as_deref());
    // One more is added between two pairs than the fewest.
    let (model, _) = Parts::new(TNT, 2).fuse();
    assert_eq!((int(nodes(&model, WORDS)[0], "stacked"), chains(&model)), (1, vec![(2, 1)]));
}

/// The class token too, or some tokens behind the last patch.
#[test]
fn words_may_be_of_any_tokens() {
    for form in [Form { begin: 0, behind: 0 }, Form { begin: 2, behind: 3 }] {
        assert_eq!(chains(&Parts::new(form, 3).fuse().0), [(3, 1)]);
    }
}

#[test]
fn the_node_is_as_in_its_snapshot() {
    let rewrite = Parts::new(TNT, 3).rewrite(&with(&[Kind::TokenChain]));
    insta::with_settings!({ description => "after, sites", omit_expression => true }, {
        insta::assert_snapshot!("token_chain", format!("{}\n{}", rewrite.after(), rewrite.sites()));
    });
}

/// As chains without windows where chains of tokens are not asked for; where both are, as these.
#[test]
fn chains_without_windows_have_them_too() {
    let net = Parts::new(TNT, 3);
    let made = |kinds: &[Kind]| {
        let rewrite = net.rewrite(&with(kinds));
        let fused = [Kind::TokenChain, Kind::SequenceChain].map(|kind| rewrite.ledger().count(kind).fused);
        (chains(&rewrite.model().proto), fused, rewrite.ledger().count(Kind::SequenceChain).missed)
    };
    let whole = vec![(3, 1)];
    assert_eq!(made(&[Kind::TntWords, Kind::SequenceChain]), (whole.clone(), [0, 1], 0));
    assert_eq!(made(&[Kind::TokenChain, Kind::SequenceChain]), (whole.clone(), [1, 0], 0));
    assert_eq!(made(&Kind::ALL), (whole, [1, 0], 0));
    // Without the words each pair is alone.
    assert_eq!(made(&[Kind::SequenceChain]), (vec![], [0, 0], 3));
    assert_eq!(made(&[Kind::TntBridge, Kind::SequenceChain]), (vec![], [0, 0], 3));
    // Chains that are left are no chains of the other kind.
    let standard = vec![trt_opt::rewrite::Standard { kind: Kind::TokenChain, node: None, reason: "slower".into() }];
    let options = Options { standard, ..with(&Kind::ALL) };
    let model = net.rewrite(&options).model().proto.clone();
    assert_eq!((chains(&model), int(nodes(&model, WORDS)[0], "stacked")), (vec![], 0));
    assert!(nodes(&model, ATTENTION).iter().all(|node| int(node, "residual") == 1));
    // Nothing is added to some: those are of the other kind alone.
    let mut net = Parts::new(TNT, 3);
    net.nodes.retain(|n| !["rows2", "s2", "rows3", "s3"].contains(&n.output[0].as_str()));
    net.input("a2", 0, "v1");
    net.input("a3", 0, "v2");
    let rewrite = net.rewrite(&with(&[Kind::TokenChain, Kind::SequenceChain]));
    assert_eq!(chains(&rewrite.model().proto), [(3, 0)]);
    assert_eq!(rewrite.ledger().count(Kind::TokenChain).total, 0);
}

/// Blocks for Hopper have the words, and all tokens in one chain.
#[test]
fn blocks_come_with_a_chain_of_all_tokens() {
    use trt_opt::ablation::variants;
    let plain = Options { kinds: [].into(), ..Options::default() };
    let model = Parts::new(TNT, 3).rewrite(&plain).model().clone();
    let made = |name: &str, options: &Options| {
        let variant = variants::of_blocks(name, &model, "tnt", options).unwrap()?;
        Some(chains(&variant.apply(&model, "tnt").unwrap().0))
    };
    let hopper = block::on(Options::default(), 9, 0);
    assert_eq!(made("blocks-with-token-chain", &hopper), Some(vec![(3, 1)]));
    assert_eq!(made("blocks-with-token-chain", &Options::default()), None);
    // All chains are of the other kind.
    assert_eq!(made("blocks-with-sequence-chain", &hopper), None);
    for name in ["blocks-without-tnt-words", "blocks-without-token-chain"] {
        assert_eq!(made(name, &hopper), Some(vec![]), "{name}");
    }
    let ladder = variants::ladder(&model, "tnt", &hopper).unwrap();
    let blocks = ladder.iter().find(|variant| variant.name == variants::BLOCKS).unwrap();
    assert_eq!(chains(&blocks.apply(&model, "tnt").unwrap().0), [(3, 1)]);
}

#[test]
fn chains_in_float16_compute_the_same() {
    let options = verify::Options { rtol: Some(1e-2), ..verify::Options::default() };
    let rewrite = Parts::new(TNT, 3).rewrite(&with(&[Kind::TokenChain])).to_fp16(&options).unwrap();
    rewrite.compare(&options).unwrap().check().unwrap();
    assert_eq!(chains(&rewrite.model().proto), [(3, 1)]);
}

const NOT_THE_LAST: &str = "what is added between its pairs is not the last that their words give";

/// Tokens that are read otherwise end a chain. What is added in the first of two is not the last that the words give, so that it stays.
#[test]
fn tokens_read_otherwise_end_a_chain() {
    let mut net = Parts::new(TNT, 5);
    net.outputs.push(("v3", TNT.tokens()));
    let (model, ledger) = net.fuse();
    assert_eq!((chains(&model), int(nodes(&model, WORDS)[0], "stacked")), (vec![(2, 1)], 1));
    let name = nodes(&model, WORDS)[0].name.clone().unwrap();
    assert_eq!(missed(&ledger), [[NOT_THE_LAST, &format!("results 2 to 5 of {name}"), "2 to 3"]]);
    // Behind the add.
    let mut net = Parts::new(TNT, 4);
    net.outputs.push(("s3", TNT.tokens()));
    let (model, ledger) = net.fuse();
    assert_eq!((chains(&model), missed(&ledger).len()), (vec![(2, 1)], 1));
}

/// Changes the words' node and what it gives.
fn spoiled(layers: usize, spoil: &dyn Fn(&mut ModelProto, &[String])) -> (ModelProto, Ledger) {
    let mut model = Parts::new(TNT, layers).with_words();
    let outputs = nodes(&model, WORDS)[0].output.clone();
    spoil(&mut model, &outputs);
    chained(model)
}

/// Readers of what the words give read other results.
fn exchange(model: &mut ModelProto, exchanged: &[(&String, &String)]) {
    for node in model.graph.as_mut().unwrap().node.iter_mut().filter(|n| n.op_type() == "Add") {
        for input in &mut node.input {
            if let Some((_, to)) = exchanged.iter().find(|(from, _)| *from == input) {
                input.clone_from(to);
            }
        }
    }
}

#[test]
fn what_words_give_is_added_in_its_order_and_by_nothing_else() {
    // As it is.
    let (model, _) = spoiled(4, &|_, _| {});
    assert_eq!(chains(&model), [(4, 1)]);
    // In another order.
    let (model, ledger) = spoiled(4, &|model, out| exchange(model, &[(&out[1], &out[2]), (&out[2], &out[1])]));
    assert_eq!((chains(&model), missed(&ledger).len()), (vec![(2, 1)], 1));
    assert_eq!(missed(&ledger)[0][0], NOT_THE_LAST);
    // Read otherwise, too: that is a chain's end.
    let read = |result: usize| {
        spoiled(4, &|model, out| {
            let graph = model.graph.as_mut().unwrap();
            graph.node.push(common::node("Neg", &[&out[result]], &["z"]));
            graph.output.push(common::value("z", &TNT.tokens()));
        })
    };
    let (model, ledger) = read(2);
    assert_eq!((chains(&model), missed(&ledger).len()), (vec![(2, 1)], 1));
    // The one before the chain is its own.
    let (model, ledger) = read(0);
    assert_eq!((chains(&model), missed(&ledger).len()), (vec![(4, 1)], 0));
    let (model, ledger) = read(3);
    assert_eq!((chains(&model), missed(&ledger).len()), (vec![], 1));
    // More is added than of the words.
    let (model, ledger) = spoiled(4, &|model, out| {
        let graph = model.graph.as_mut().unwrap();
        let at = graph.node.iter().position(|n| n.input.contains(&out[2])).unwrap();
        let sum = std::mem::replace(&mut graph.node[at].output[0], "more".into());
        graph.node.insert(at + 1, common::node("Add", &["more", "v0"], &[&sum]));
    });
    assert_eq!((chains(&model), missed(&ledger).len()), (vec![(2, 1)], 1));
}

/// Bridges that are missing, or more than one to a layer.
#[test]
fn bridges_of_another_number_than_layers_are_of_several_chains() {
    let mut net = Parts::new(TNT, 4);
    net.nodes.retain(|n| !["rows3", "s3"].contains(&n.output[0].as_str()));
    net.input("a3", 0, "v2");
    let (model, ledger) = net.fuse();
    assert_eq!((chains(&model), missed(&ledger).len()), (vec![(2, 1)], 1));
    // Behind the last layer.
    let mut net = Parts::new(TNT, 3);
    net.bridge(4, "w3", "v3", "s4");
    net.outputs[0].0 = "s4";
    let (model, ledger) = net.fuse();
    assert_eq!((chains(&model), missed(&ledger)[0][0]), (vec![], NOT_THE_LAST));
    // The words behind the last layer are theirs all the same.
    let mut net = Parts::new(TNT, 3);
    net.outputs.push(("w3", vec![IMAGES * PATCHES, WIDTH / INNER, INNER]));
    let (model, _) = net.fuse();
    let words = nodes(&model, WORDS)[0];
    assert_eq!((chains(&model), words.output.len(), int(words, "stacked")), (vec![(3, 1)], 3, 2));
}

/// Words of two nodes are added in two chains.
#[test]
fn words_of_another_node_begin_another_chain() {
    let mut net = Parts::new(TNT, 5);
    for words in ["w3", "w4", "w5"] {
        net.node(words).attribute.retain(|a| a.name() != "num_heads");
        net.node(words).attribute.push(integer("num_heads", 4));
    }
    let (model, ledger) = net.fuse();
    assert_eq!((chains(&model), missed(&ledger).len()), (vec![(2, 1), (3, 1)], 0));
    assert_eq!(nodes(&model, WORDS).iter().map(|n| int(n, "stacked")).collect::<Vec<_>>(), [1, 2]);
    // What the words of the second give to the pair between them is added alone.
    assert_eq!(ops(&model).iter().filter(|op| *op == "Add").count(), 2);
}

#[test]
fn sizes_that_the_plugin_does_not_take_are_missed_with_their_words() {
    let mut net = Parts::new(TNT, 3);
    for i in 1..=3 {
        let of = net.node(&format!("a{i}"));
        of.attribute.retain(|a| a.name() != "num_heads");
        of.attribute.push(integer("num_heads", 4));
    }
    let (model, ledger) = net.fuse();
    assert_eq!((chains(&model), int(nodes(&model, WORDS)[0], "stacked")), (vec![], 0));
    let expected = "heads of 32 or 64 and at most 256 tokens of a sequence";
    assert_eq!(missed(&ledger), [["the plugin takes no such attention", expected, "heads of 16 and 5 tokens"]]);
}

/// A node whose inputs do not fit its attributes has no body, and its result no shape.
#[test]
fn other_sizes_and_attributes_are_refused() {
    let (model, _) = Parts::new(TNT, 3).fuse();
    let bodies = |op: &str, name: &str, value: i64| {
        let mut model = model.clone();
        let node = model.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op_type() == op).unwrap();
        node.attribute.iter_mut().find(|a| a.name() == name).unwrap().i = Some(value);
        trt_opt::rewrite::ops::add_reference_bodies(&mut model)
    };
    bodies(OP, "between", 1).unwrap();
    for (op, name, value) in [(OP, "between", 2), (WORDS, "stacked", 4), (WORDS, "stacked", -1)] {
        let error = bodies(op, name, value).unwrap_err().to_string();
        assert!(error.contains("its inputs do not fit its attributes"), "{name} = {value}: {error}");
    }
}

#[test]
fn chains_are_not_fused_unless_asked_for_and_can_be_left() {
    only_if_asked_for(&Parts::new(TNT, 3), "token-chain");
}

#[test]
fn the_cost_of_a_chain_is_less_than_that_of_its_blocks() {
    let [parts, chain] = costs_less_than_its_parts(&Parts::new(TNT, 3));
    assert_eq!(parts, chain);
}

/// Groups of `tune`: the chain comes beside the words, and neither has the other as a part.
#[test]
fn chains_are_a_group_beside_the_words() {
    use trt_opt::ablation::tune::{self, By};
    let net = Parts::new(TNT, 3);
    let graph = |of: &testing::Rewrite| trt_opt::ir::Graph::take(&mut of.model().proto.clone()).unwrap();
    let all = net.rewrite(&with(&Kind::ALL));
    let wholes = tune::wholes(all.ledger(), &graph(&all), By::Kind);
    let mut kinds: Vec<_> = wholes.iter().map(|g| g.kind).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [Kind::TntWords, Kind::TokenChain]);
    let number = |kind: Kind| wholes.iter().position(|g| g.kind == kind).unwrap();
    let made = |left: &[usize]| {
        let standard = tune::standard(&wholes, &left.iter().copied().collect());
        let proto = net.rewrite(&Options { standard, ..with(&Kind::ALL) }).model().proto.clone();
        [OP, WORDS, ATTENTION, MLP].map(|op| nodes(&proto, op).len())
    };
    let (words, chain) = (number(Kind::TntWords), number(Kind::TokenChain));
    assert_eq!(made(&[]), [1, 1, 0, 0]);
    assert_eq!(made(&[chain]), [0, 1, 3, 3]);
    // Without the words there is no chain.
    assert_eq!(made(&[words]), [0, 0, 3, 3]);
    assert_eq!(made(&[words, chain]), [0, 0, 3, 3]);
}
