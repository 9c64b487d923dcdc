//! What the tests of all kinds of block share.
#![allow(dead_code)] // Each test file uses some of it.

use trt_opt::ir::Graph;
use trt_opt::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto};
use trt_opt::onnx::{self, Model};
use trt_opt::rewrite::{ComputeCapability, Kind, Ledger, Options, Site, Standard, Target};
use trt_opt::{testing, verify};

use super::common;

/// The default kinds and these, and what blocks these are made of.
pub fn with(kinds: &[Kind]) -> Options {
    let mut options = Options::default();
    options.kinds.extend(kinds.iter().flat_map(|kind| kind.made_of()).chain(kinds));
    options
}

/// For a GPU of this compute capability.
pub fn on(options: Options, major: u32, minor: u32) -> Options {
    Options { compute_capability: Some(ComputeCapability { major, minor }), ..options }
}

pub fn nodes<'a>(model: &'a ModelProto, op: &str) -> Vec<&'a NodeProto> {
    model.graph.as_ref().unwrap().node.iter().filter(|n| n.op_type() == op).collect()
}

pub fn int(node: &NodeProto, name: &str) -> i64 {
    node.attribute.iter().find(|a| a.name() == name).unwrap().i.unwrap()
}

/// Weights that their name chooses.
pub fn weight(name: &str, dims: &[i64]) -> TensorProto {
    let count = dims.iter().product::<i64>();
    let mut random = common::Random(name.bytes().map(u64::from).sum());
    let values: Vec<f32> = (0..count).map(|_| (random.below(2000) as f32 - 1000.0) / 2000.0).collect();
    TensorProto::from_f32(name, dims, &values)
}

pub fn ints(name: &str, values: &[i64]) -> TensorProto {
    TensorProto::from_i64(name, &[values.len() as i64], values)
}

/// A layer norm of the last axis.
pub fn norm(x: &str, scale: &str, bias: &str, y: &str, epsilon: f32) -> NodeProto {
    NodeProto {
        attribute: vec![AttributeProto::int("axis", -1), AttributeProto::float("epsilon", epsilon)],
        ..common::node("LayerNormalization", &[x, scale, bias], &[y])
    }
}

/// How a rewritten export is compared with the original.
pub fn comparison(export: &str) -> verify::Options {
    verify::Options {
        batch: export.contains("_dyn").then_some(3),
        threads: Some(1),
        // A block rounds less than its parts do.
        rtol: export.contains("fp16").then_some(1e-2),
        ..verify::Options::default()
    }
}

/// The one attention block is missed for its size, just over the limit, and its parts are fused.
pub fn left_for_its_size(rewrite: &testing::Rewrite, kind: Kind, rows: &str) {
    let ledger = rewrite.ledger();
    let missed: Vec<_> = ledger.missed(kind).collect();
    assert_eq!((missed.len(), ledger.count(kind).total), (1, 1), "{missed:?}");
    assert_eq!(missed[0].reason.as_deref(), Some(TOO_LARGE));
    assert_eq!(missed[0].found, Some(format!("0.351 GFLOP, rows {rows}")));
    assert!(missed[0].expected.as_deref().is_some_and(|e| e.starts_with("at most 0.350 GFLOP")), "{missed:?}");
    assert_eq!([Kind::LayerNorm, Kind::Attention].map(|k| ledger.count(k).fused), [1, 1]);
}

/// The one block is missed for its size, but would not be on the GPU that has products for many rows.
pub fn left_for_its_gpu(ledger: &Ledger, kind: Kind) {
    let missed: Vec<_> = ledger.missed(kind).map(|s| s.reason.as_deref()).collect();
    assert_eq!(missed, [Some(&*format!("{TOO_LARGE}, unless --compute-capability 9.0 is given"))]);
}

/// Attention blocks of at least 1500 rows are made for Hopper alone, up to some sizes: a net of so many images, of so many
/// channels and columns of all heads.
pub fn made_of_many_rows<N: Net>(
    net: impl Fn(i64, [i64; 2]) -> N,
    [fewer, enough]: [i64; 2],
    most: [i64; 2],
    over: &[[i64; 2]],
) {
    let (unknown, hopper) = (with(&[N::KIND]), on(with(&[N::KIND]), 9, 0));
    let made = |images: i64, sizes: [i64; 2], options: &Options| {
        let rewrite = net(images, sizes).rewrite(options);
        (nodes(&rewrite.model().proto, N::OP).len(), rewrite.ledger().clone())
    };
    let (blocks, ledger) = made(enough, most, &hopper);
    assert_eq!((blocks, ledger.count(N::KIND).missed), (1, 0));
    left_for_its_gpu(&made(enough, most, &unknown).1, N::KIND);
    let left = |images: i64, sizes: [i64; 2], options: &Options| {
        let (blocks, ledger) = made(images, sizes, options);
        let missed: Vec<_> = ledger.missed(N::KIND).map(|site| site.reason.as_deref()).collect();
        assert_eq!((blocks, missed), (0, vec![Some(TOO_LARGE)]), "{images} of {sizes:?}");
    };
    left(enough, most, &on(unknown.clone(), 8, 9));
    for options in [&hopper, &unknown] {
        left(fewer, most, options);
        over.iter().for_each(|&sizes| left(enough, sizes, options));
    }
}

const TOO_LARGE: &str = "its products are so large that TensorRT's are faster";

/// The one block is made, or missed for its size with these words.
pub fn made_up_to_its_size<N: Net>(net: &N, made: bool, [expected, found]: [&str; 2]) {
    let rewrite = net.rewrite(&with(&[N::KIND]));
    assert_eq!(nodes(&rewrite.model().proto, N::OP).len(), usize::from(made));
    let missed: Vec<_> = rewrite.ledger().missed(N::KIND).collect();
    assert_eq!(missed.len(), usize::from(!made), "{missed:?}");
    for site in missed {
        assert_eq!(site.reason.as_deref(), Some(TOO_LARGE));
        assert!(site.expected.as_deref().is_some_and(|e| e.starts_with(expected)), "{site:?}");
        assert_eq!(site.found.as_deref(), Some(found));
    }
}

/// A block is estimated to cost less than its parts. The multiply-adds of the parts and of the block.
pub fn costs_less_than_its_parts<N: Net>(net: &N) -> [u64; 2] {
    let estimate = |options: &Options| {
        let rewrite = net.rewrite(options);
        trt_opt::contents::Contents::of(rewrite.model(), 1).unwrap().estimate
    };
    let (parts, block) = (estimate(&Options::default()), estimate(&with(&[N::KIND])));
    assert!(block.launches < parts.launches && block.bytes < parts.bytes, "{block:?} against {parts:?}");
    [parts.macs, block.macs]
}

/// A block whose parts are nodes to spoil.
pub trait Net {
    const KIND: Kind;
    const OP: &'static str;

    fn nodes(&mut self) -> &mut Vec<NodeProto>;
    fn weights(&mut self) -> &mut Vec<TensorProto>;
    fn rewrite(&self, options: &Options) -> testing::Rewrite;

    fn node(&mut self, output: &str) -> &mut NodeProto {
        self.nodes().iter_mut().find(|n| n.output[0] == output).unwrap()
    }

    fn input(&mut self, output: &str, slot: usize, value: &str) {
        self.node(output).input[slot] = value.into();
    }

    fn set(&mut self, tensor: TensorProto) {
        self.weights().retain(|w| w.name != tensor.name);
        self.weights().push(tensor);
    }

    /// Puts nodes in front of the one that makes `output`.
    fn before(&mut self, output: &str, nodes: Vec<NodeProto>) {
        let at = self.nodes().iter().position(|n| n.output[0] == output).unwrap();
        self.nodes().splice(at..at, nodes);
    }

    /// Rewrites it with its kind of block, and proves that it computes the same.
    fn fuse(&self) -> (ModelProto, Ledger) {
        let rewrite = self.rewrite(&with(&[Self::KIND]));
        rewrite.compare(&verify::Options::default()).unwrap().check().unwrap();
        (rewrite.model().proto.clone(), rewrite.ledger().clone())
    }

    /// The one site, which is missed.
    fn missed(&self) -> Site {
        let (model, ledger) = self.fuse();
        assert!(nodes(&model, Self::OP).is_empty());
        let sites: Vec<&Site> = ledger.missed(Self::KIND).collect();
        assert_eq!(sites.len(), 1, "{:?}", ledger.sites);
        sites[0].clone()
    }
}

/// A kind of block, and the op that it becomes.
pub trait Block {
    const KIND: Kind;
    const OP: &'static str;
}

/// A graph that is nothing but the parts of a block.
pub struct Parts<B> {
    pub nodes: Vec<NodeProto>,
    pub weights: Vec<TensorProto>,
    pub inputs: Vec<(&'static str, Vec<i64>)>,
    pub outputs: Vec<(&'static str, Vec<i64>)>,
    pub block: B,
}

impl<B: Block> Net for Parts<B> {
    const KIND: Kind = B::KIND;
    const OP: &'static str = B::OP;

    fn nodes(&mut self) -> &mut Vec<NodeProto> {
        &mut self.nodes
    }

    fn weights(&mut self) -> &mut Vec<TensorProto> {
        &mut self.weights
    }

    fn rewrite(&self, options: &Options) -> testing::Rewrite {
        rewritten_parts(&self.nodes, &self.weights, [&self.inputs, &self.outputs], options)
    }
}

/// Rewrites a graph whose inputs and outputs have these shapes.
pub fn rewritten_parts(
    nodes: &[NodeProto],
    weights: &[TensorProto],
    [inputs, outputs]: [&[(&str, Vec<i64>)]; 2],
    options: &Options,
) -> testing::Rewrite {
    let mut proto = common::model(nodes.to_vec(), weights.to_vec());
    let graph = proto.graph.as_mut().unwrap();
    graph.input = inputs.iter().map(|(name, dims)| common::value(name, dims)).collect();
    graph.output = outputs.iter().map(|(name, dims)| common::value(name, dims)).collect();
    rewritten(proto, options)
}

/// Rewrites a model in memory.
pub fn rewritten(proto: ModelProto, options: &Options) -> testing::Rewrite {
    // Any model file: a path for models in memory.
    let model = Model { proto, ..onnx::load(&common::fixtures().swap_remove(0)).unwrap() };
    testing::rewrite_model(model, options).unwrap()
}

/// Gives the model outputs of these names, of the shapes that inference finds.
pub fn infer_outputs(proto: &mut ModelProto, names: &[String]) {
    proto.graph.as_mut().unwrap().output = vec![];
    let mut inferred = Graph::take(&mut proto.clone()).unwrap();
    trt_opt::analysis::infer::infer(&mut inferred, &|_, _| None).unwrap();
    let shape = |name: &str| {
        let id = inferred.value_ids().find(|&v| inferred.value(v).name == name).unwrap();
        inferred.static_shape(id).unwrap()
    };
    let outputs = names.iter().map(|name| common::value(name, &shape(name))).collect();
    proto.graph.as_mut().unwrap().output = outputs;
}

/// Blocks of this kind are made only where they are asked for, and can be skipped by the name of their rule.
pub fn only_if_asked_for<N: Net>(net: &N, rule: &str) {
    let (kind, with_block) = (N::KIND, with(&[N::KIND]));
    let made = |rewrite: &testing::Rewrite| !nodes(&rewrite.model().proto, N::OP).is_empty();
    let rewrite = net.rewrite(&Options::default());
    assert!(!made(&rewrite));
    assert!(rewrite.ledger().sites.iter().all(|s| s.kind != kind));

    let mut options = with_block.clone();
    options.skip.insert(rule.into());
    let ledger = net.rewrite(&options).ledger().clone();
    let missed: Vec<_> = ledger.missed(kind).map(|s| s.reason.clone().unwrap()).collect();
    assert_eq!(missed, [format!("--skip {rule}")]);

    let native = Options { target: Target::Native, ..with_block.clone() };
    let standard = vec![Standard { kind, node: None, reason: "slower".into() }];
    for options in [native, Options { standard, ..with_block }] {
        assert!(!made(&net.rewrite(&options)));
    }
}
