//! Average pools of tokens as means: those of every export of PyramidTNT need no transposition, nor does the mean over all tokens of UniFormer's
//! classifier; all computes the same, and what is near one stays as it is.
//!
//! Tolerances are those of `verify`: a mean adds up in another order.

#[path = "common/block.rs"]
mod block;
mod common;

use block::{comparison, ints, rewritten};
use common::{ops, reshape, transpose};
use trt_opt::onnx::proto::{AttributeProto, NodeProto};
use trt_opt::rewrite::{Kind, Options, Target};
use trt_opt::{testing, verify};

const BATCH: i64 = 2;
const CHANNELS: i64 = 8;
const SIDES: [i64; 2] = [4, 6];
const WINDOW: [i64; 2] = [2, 3];

/// Two layers of each export have pooled keys.
#[test]
fn exports_pool_their_tokens_where_they_are_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("ptnt") {
            continue;
        }
        seen += 1;
        // Of the newest opsets too, where axes are an input.
        for target in [Target::Native, Target::Trt8, Target::Trt10] {
            let options = Options { target, ..Options::default() };
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            let skipped = Options { skip: ["token-pool".into()].into(), ..options };
            let kept = testing::rewrite_with(&path, &skipped).unwrap();
            let count = |of: &testing::Rewrite, op: &str| ops(&of.model().proto).iter().filter(|o| *o == op).count();
            let found = ["AveragePool", "Transpose"].map(|op| [count(&kept, op), count(&rewrite, op)]);
            let made = rewrite.ledger().patches.get("token-pool");
            if found[0] != [2, 0] || found[1][0] != found[1][1] + 4 || made != Some(&2) {
                wrong.push(format!("{name}: pools and transpositions {found:?}, {made:?} patches"));
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 10);
}

/// The mean is no part of an attention block, nor does it keep one from being made.
#[test]
fn blocks_are_made_as_without_it() {
    let path = common::fixtures().into_iter().find(|p| p.ends_with("ptnt_ts17.onnx")).unwrap();
    let counts = |skip: &[&str]| {
        let skip = skip.iter().map(|&name| name.into()).collect();
        let rewrite = testing::rewrite_with(&path, &Options { skip, ..block::with(&Kind::ALL) }).unwrap();
        Kind::ALL.map(|kind| rewrite.ledger().count(kind).fused)
    };
    assert_eq!(counts(&[]), counts(&["token-pool"]));
}

/// Tokens made a map, pooled and made tokens again, to spoil.
struct Parts {
    nodes: Vec<NodeProto>,
    /// Of the map, and of the pooled one.
    sides: [[i64; 2]; 2],
    outputs: Vec<(&'static str, Vec<i64>)>,
    open: bool,
}

impl Parts {
    /// `t` are tokens, `m` their map, `p` the pooled one and `u` its tokens.
    fn new(sides: [i64; 2], window: [i64; 2]) -> Self {
        let pool = common::node("AveragePool", &["m"], &["p"]);
        let pooled = [sides[0] / window[0], sides[1] / window[1]];
        let net = Self {
            nodes: vec![
                common::node("Exp", &["x"], &["t"]),
                transpose("t", &[0, 2, 1], "l"),
                reshape("l", "map", "m"),
                pool,
                reshape("p", "line", "r"),
                transpose("r", &[0, 2, 1], "u"),
                common::node("Tanh", &["u"], &["y"]),
            ],
            sides: [sides, pooled],
            outputs: vec![],
            open: false,
        };
        let mut net =
            net.set(AttributeProto::ints("kernel_shape", &window)).set(AttributeProto::ints("strides", &window));
        net.outputs.push(("y", net.tokens(1)));
        net
    }

    fn usual() -> Self {
        Self::new(SIDES, WINDOW)
    }

    fn tokens(&self, of: usize) -> Vec<i64> {
        vec![BATCH, self.sides[of].iter().product(), CHANNELS]
    }

    fn map(&self, of: usize) -> Vec<i64> {
        [vec![BATCH, CHANNELS], self.sides[of].to_vec()].concat()
    }

    fn node(&mut self, output: &str) -> &mut NodeProto {
        self.nodes.iter_mut().find(|n| n.output[0] == output).unwrap()
    }

    fn set(mut self, attribute: AttributeProto) -> Self {
        let pool = self.node("p");
        pool.attribute.retain(|a| a.name != attribute.name);
        pool.attribute.push(attribute);
        self
    }

    fn unset(mut self, name: &str) -> Self {
        self.node("p").attribute.retain(|a| a.name() != name);
        self
    }

    /// With a pooled map of these sides.
    fn pooled(mut self, sides: [i64; 2]) -> Self {
        self.sides[1] = sides;
        self.outputs[0].1 = self.tokens(1);
        self
    }

    /// What is left of it on any target, which computes the same.
    fn left(&self) -> Vec<String> {
        let left = |target: Target| {
            let mut proto = common::model(
                self.nodes.clone(),
                vec![ints("map", &[-1, CHANNELS, self.sides[0][0], self.sides[0][1]]), ints("line", &[0, 0, -1])],
            );
            let graph = proto.graph.as_mut().unwrap();
            let value = |name: &str, dims: &[i64]| match self.open {
                true => common::open_value(name, "batch", &dims[1..]),
                false => common::value(name, dims),
            };
            graph.input = vec![value("x", &self.tokens(0))];
            graph.output = self.outputs.iter().map(|(name, dims)| value(name, dims)).collect();
            let rewrite = rewritten(proto, &Options { target, ..Options::default() });
            let batch = self.open.then_some(3);
            rewrite.compare(&verify::Options { batch, ..verify::Options::default() }).unwrap().check().unwrap();
            ops(&rewrite.model().proto)
        };
        let native = left(Target::Native);
        assert_eq!(left(Target::Trt8), native);
        native
    }

    fn kept(&self, what: &str) {
        assert!(self.left().contains(&"AveragePool".into()), "{what}");
    }
}

const MEAN: [&str; 5] = ["Exp", "Reshape", "ReduceMean", "Reshape", "Tanh"];

#[test]
fn pooled_tokens_are_means() {
    assert_eq!(Parts::usual().left(), MEAN);
    // In one direction; of all tokens; of a line; with an open batch.
    for (sides, window) in [(SIDES, [1, 3]), (SIDES, [4, 1]), (SIDES, SIDES), ([1, 6], [1, 2]), ([8, 8], [4, 4])] {
        assert_eq!(Parts::new(sides, window).left(), MEAN, "{sides:?} {window:?}");
    }
    assert_eq!(Parts { open: true, ..Parts::usual() }.left(), MEAN);
}

/// Windows that divide the map have no padding, whatever is said of it.
#[test]
fn padding_and_rounding_that_change_nothing_do_not_matter() {
    for attribute in [
        AttributeProto::int("ceil_mode", 1),
        AttributeProto::int("count_include_pad", 1),
        AttributeProto::ints("pads", &[0; 4]),
        AttributeProto::string("auto_pad", "NOTSET"),
        AttributeProto::string("auto_pad", "VALID"),
        AttributeProto::string("auto_pad", "SAME_UPPER"),
    ] {
        let name = attribute.name().to_owned();
        assert_eq!(Parts::usual().set(attribute).left(), MEAN, "{name}");
    }
}

#[test]
fn tokens_are_found_however_they_are_moved() {
    // A map of rows, transposed as a whole.
    let mut net = Parts::usual();
    let [h, w] = SIDES;
    net.nodes.splice(1..3, [reshape("t", "grid", "l"), transpose("l", &[0, 3, 1, 2], "m")]);
    let grid = common::node("Constant", &[], &["grid"]);
    let sizes = AttributeProto::tensor("value", ints("", &[-1, h, w, CHANNELS]));
    net.nodes.insert(0, NodeProto { attribute: vec![sizes], ..grid });
    assert_eq!(net.left(), MEAN);
    // Pooled tokens left as rows.
    let mut net = Parts::usual();
    net.nodes.splice(4..6, [transpose("p", &[0, 2, 3, 1], "u")]);
    net.outputs[0].1 = vec![BATCH, 2, 2, CHANNELS];
    assert_eq!(net.left(), ["Exp", "Reshape", "ReduceMean", "Tanh"]);
}

/// One transposition is left of two where the pooled map is read as such.
#[test]
fn a_pooled_map_that_is_read_too_is_transposed_once() {
    let mut net = Parts::usual();
    net.nodes.push(common::node("Sin", &["p"], &["s"]));
    net.outputs.push(("s", net.map(1)));
    let left = net.left();
    let count = |op: &str| left.iter().filter(|o| *o == op).count();
    assert_eq!((count("AveragePool"), count("ReduceMean"), count("Transpose")), (0, 1, 1), "{left:?}");
}

/// The map stays for its other reader; the pooled tokens need none.
#[test]
fn a_map_that_is_read_too_stays_one() {
    for between in ["m", "l"] {
        let mut net = Parts::usual();
        net.nodes.push(common::node("Sin", &[between], &["s"]));
        let dims = if between == "m" { net.map(0) } else { vec![BATCH, CHANNELS, SIDES[0] * SIDES[1]] };
        net.outputs.push(("s", dims));
        let left = net.left();
        let count = |op: &str| left.iter().filter(|o| *o == op).count();
        assert_eq!((count("AveragePool"), count("ReduceMean"), count("Transpose")), (0, 1, 1), "{left:?}");
        // Both read as maps: nothing to save.
        let mut net = net;
        net.nodes.retain(|n| !["r", "u"].contains(&n.output[0].as_str()));
        net.node("y").input[0] = "p".into();
        net.outputs[0].1 = net.map(1);
        net.kept("both maps");
    }
}

#[test]
fn what_would_move_as_much_stays() {
    // Tokens of which only a pooled map is made.
    let mut net = Parts::usual();
    net.nodes.drain(4..6);
    net.node("y").input[0] = "p".into();
    net.outputs[0].1 = net.map(1);
    net.kept("a pooled map");
    // A map of which only tokens are made.
    let mut net = Parts::usual();
    net.nodes.insert(3, common::node("Sin", &["m"], &["n"]));
    net.node("p").input[0] = "n".into();
    net.kept("a computed map");
}

#[test]
fn other_windows_stay() {
    let strides = |strides: &[i64]| Parts::usual().set(AttributeProto::ints("strides", strides));
    strides(&[1, 3]).pooled([3, 2]).kept("overlapping rows");
    strides(&[2, 2]).pooled([2, 2]).kept("overlapping columns");
    strides(&[2, 4]).pooled([2, 1]).kept("columns left out");
    Parts::usual().unset("strides").pooled([3, 4]).kept("strides of 1 by default");
    let pads = |pads: &[i64]| Parts::usual().set(AttributeProto::ints("pads", pads));
    pads(&[0, 0, 1, 0]).kept("a row behind the map, which no window reaches");
    pads(&[1, 0, 1, 0]).pooled([3, 2]).set(AttributeProto::int("count_include_pad", 1)).kept("padding that counts");
    // Sizes that do not divide: rows left out, or windows of fewer.
    Parts::new([5, 6], WINDOW).kept("rows left out");
    Parts::new([5, 6], WINDOW).pooled([3, 2]).set(AttributeProto::int("ceil_mode", 1)).kept("windows of fewer rows");
    Parts::new([5, 6], WINDOW)
        .pooled([3, 2])
        .set(AttributeProto::string("auto_pad", "SAME_UPPER"))
        .kept("windows of fewer rows by auto_pad");
}

#[test]
fn tokens_in_another_order_stay() {
    // Rows and columns exchanged on one side.
    let mut net = Parts::new([4, 4], [2, 2]);
    net.nodes[1] = reshape("t", "grid", "l");
    net.nodes[2] = transpose("l", &[0, 3, 2, 1], "m");
    let sizes = AttributeProto::tensor("value", ints("", &[-1, 4, 4, CHANNELS]));
    net.nodes.insert(0, NodeProto { attribute: vec![sizes], ..common::node("Constant", &[], &["grid"]) });
    net.kept("columns first");
    // Channels first: no tokens at all.
    let mut net = Parts::new([4, 4], [2, 2]);
    net.nodes.splice(1..3, [reshape("t", "map", "m")]);
    net.kept("a map without a transposition");
    // Maximums are no means.
    let mut net = Parts::usual();
    net.node("p").op_type = Some("MaxPool".into());
    assert!(net.left().contains(&"MaxPool".into()));
}

#[test]
fn a_pool_is_left_by_name() {
    let path = common::fixtures().into_iter().find(|p| p.ends_with("ptnt_ts13.onnx")).unwrap();
    let options = Options { skip: ["token-pool".into()].into(), ..Options::default() };
    let rewrite = testing::rewrite_with(&path, &options).unwrap();
    assert_eq!(rewrite.ledger().patches.get("token-pool"), None);
}

/// The mean before the head of each export of UniFormer, on any target.
#[test]
fn exports_take_their_means_of_tokens_and_compute_the_same() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("uniformer") {
            continue;
        }
        seen += 1;
        for options in
            [Target::Native, Target::Trt8, Target::Trt10].map(|target| Options { target, ..Options::default() })
        {
            // Behind encodings on tokens, what goes in are tokens. A classifier takes the mean in itself.
            let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|&kind| kind != Kind::Classifier).collect();
            for options in [options.clone(), Options { target: options.target, ..block::with(&kinds) }] {
                let rewrite = testing::rewrite_with(&path, &options).unwrap();
                let skipped = Options { skip: ["token-mean".into()].into(), ..options.clone() };
                let kept = testing::rewrite_with(&path, &skipped).unwrap();
                let count = |of: &testing::Rewrite| ops(&of.model().proto).iter().filter(|o| *o == "Transpose").count();
                let made = rewrite.ledger().patches.get("token-mean").copied().unwrap_or(0);
                let encodings = options.target != Target::Native && options.kinds.contains(&Kind::DepthwiseConv);
                let expected = usize::from(encodings || made == 1);
                if made != expected || count(&rewrite) + made != count(&kept) {
                    wrong.push(format!("{name} {}: {made} means, {} transpositions", options.target, count(&rewrite)));
                }
                if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                    wrong.push(format!("{name}: {error}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 10);
}

/// Tokens made a map, the mean of which is taken: by this node, as such a result. With nodes before it and outputs besides.
fn mean_left(
    mean: NodeProto,
    sizes: &[i64],
    spoil: &dyn Fn(&mut Vec<NodeProto>),
    more: &[(&str, &[i64])],
) -> Vec<String> {
    let left = |target: Target, open: bool| {
        let mut nodes = vec![
            common::node("Exp", &["x"], &["t"]),
            transpose("t", &[0, 2, 1], "l"),
            reshape("l", "map", "m"),
            mean.clone(),
            common::node("Tanh", &["p"], &["y"]),
        ];
        spoil(&mut nodes);
        let weights =
            vec![ints("map", &[-1, CHANNELS, SIDES[0], SIDES[1]]), ints("grid", &[-1, SIDES[0], SIDES[1], CHANNELS])];
        let mut proto = common::model(nodes, weights);
        let graph = proto.graph.as_mut().unwrap();
        let value = |name: &str, dims: &[i64]| match open {
            true => common::open_value(name, "batch", &dims[1..]),
            false => common::value(name, dims),
        };
        graph.input = vec![value("x", &[BATCH, SIDES[0] * SIDES[1], CHANNELS])];
        graph.output = [("y", sizes)].iter().chain(more).map(|(name, dims)| value(name, dims)).collect();
        let rewrite = rewritten(proto, &Options { target, ..Options::default() });
        let batch = open.then_some(3);
        rewrite.compare(&verify::Options { batch, ..verify::Options::default() }).unwrap().check().unwrap();
        ops(&rewrite.model().proto)
    };
    let native = left(Target::Native, false);
    assert_eq!(left(Target::Trt8, false), native);
    assert_eq!(left(Target::Native, true), native);
    native
}

fn reduce(x: &str, axes: &[i64], keep: bool) -> NodeProto {
    let attribute = vec![AttributeProto::ints("axes", axes), AttributeProto::int("keepdims", keep.into())];
    NodeProto { attribute, ..common::node("ReduceMean", &[x], &["p"]) }
}

#[test]
fn means_of_maps_are_of_their_tokens() {
    let (flat, kept) = ([BATCH, CHANNELS], [BATCH, CHANNELS, 1, 1]);
    let as_is = |_: &mut Vec<NodeProto>| {};
    let mean = ["Exp", "ReduceMean", "Tanh"];
    assert_eq!(mean_left(reduce("m", &[2, 3], false), &flat, &as_is, &[]), mean);
    assert_eq!(mean_left(reduce("m", &[-1, -2], false), &flat, &as_is, &[]), mean);
    assert_eq!(mean_left(reduce("l", &[-1], false), &flat, &as_is, &[]), mean);
    let shaped = ["Exp", "ReduceMean", "Reshape", "Tanh"];
    assert_eq!(mean_left(reduce("m", &[2, 3], true), &kept, &as_is, &[]), shaped);
    assert_eq!(mean_left(common::node("GlobalAveragePool", &["m"], &["p"]), &kept, &as_is, &[]), shaped);
    // A map of rows, transposed as a whole.
    let whole = |nodes: &mut Vec<NodeProto>| {
        nodes.splice(1..3, [reshape("t", "grid", "l"), transpose("l", &[0, 3, 1, 2], "m")]);
    };
    assert_eq!(mean_left(reduce("m", &[2, 3], false), &flat, &whole, &[]), mean);
}

#[test]
fn other_means_stay() {
    let flat = [BATCH, CHANNELS];
    let stays = |left: Vec<String>| assert!(left.contains(&"Transpose".into()), "{left:?}");
    let as_is = |_: &mut Vec<NodeProto>| {};
    // Of rows, of channels, of a computed map.
    stays(mean_left(reduce("m", &[3], false), &[BATCH, CHANNELS, SIDES[0]], &as_is, &[]));
    stays(mean_left(reduce("m", &[1], false), &[BATCH, SIDES[0], SIDES[1]], &as_is, &[]));
    let computed = |nodes: &mut Vec<NodeProto>| {
        nodes.insert(3, common::node("Sin", &["m"], &["n"]));
        nodes[4].input[0] = "n".into();
    };
    stays(mean_left(reduce("m", &[2, 3], false), &flat, &computed, &[]));
    // The map is read otherwise too.
    let read = |nodes: &mut Vec<NodeProto>| nodes.push(common::node("Sin", &["m"], &["s"]));
    let more: [(&str, &[i64]); 1] = [("s", &[BATCH, CHANNELS, SIDES[0], SIDES[1]])];
    stays(mean_left(reduce("m", &[2, 3], false), &flat, &read, &more));
    // Maximums are no means.
    let mut most = reduce("m", &[2, 3], false);
    most.op_type = Some("ReduceMax".into());
    stays(mean_left(most, &flat, &as_is, &[]));
}
