//! Windows and patch merges: every Swin export has all of its sites fused, what is not one is left alone and said why.

mod common;
#[path = "common/net.rs"]
mod net;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use net::{Net, batch};
use trt_opt::ir::{Dim, Node, ValueId};
use trt_opt::onnx::proto::{AttributeProto, ModelProto, TensorProto};
use trt_opt::onnx::{self, Model};
use trt_opt::rewrite::{self, Kind, Ledger, Options, Site, Status, Target};
use trt_opt::verify;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.onnx"))
}

fn fuse(model: &mut ModelProto, options: &Options) -> Ledger {
    rewrite::fuse(model, "m.onnx", options, &mut |_, _| {}).unwrap()
}

fn only(kinds: &[Kind]) -> Options {
    Options { kinds: kinds.iter().copied().collect(), ..Options::default() }
}

fn fuse_file(path: &Path, options: &Options) -> (Model, Ledger) {
    let mut model = onnx::load(path).unwrap();
    let ledger = fuse(&mut model.proto, options);
    (model, ledger)
}

fn same(before: &Model, after: &Model, name: &str) {
    let source = |model| verify::Source::Model { name, model };
    let options = verify::Options::default();
    let report = verify::compare(source(before), source(after), &options).unwrap_or_else(|e| panic!("{name}: {e}"));
    report.check().unwrap_or_else(|e| panic!("{name}: {e}"));
}

fn nodes<'a>(model: &'a ModelProto, op: &str) -> Vec<&'a trt_opt::onnx::proto::NodeProto> {
    model.graph.as_ref().unwrap().node.iter().filter(|n| n.op_type() == op).collect()
}

fn int(node: &trt_opt::onnx::proto::NodeProto, name: &str) -> i64 {
    node.attribute.iter().find(|a| a.name() == name).unwrap().i.unwrap()
}

/// Blocks of the fixture with more than one window or padding.
fn blocks(name: &str) -> usize {
    match name {
        n if n.starts_with("swin_wide") => 4,
        n if n.starts_with("swin_pad") || n.starts_with("swin_torchvision_pad") => 3,
        _ => 2,
    }
}

#[test]
fn every_swin_export_has_all_its_windows_and_merges() {
    let (mut seen, mut wrong) = (0, vec![]);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with("swin") || name.contains("baked") {
            continue;
        }
        seen += 1;
        let original = onnx::load(&path).unwrap();
        let (model, ledger) = fuse_file(&path, &only(&[Kind::LayerNorm, Kind::Window, Kind::PatchMerge]));
        let (windows, merges) = (ledger.count(Kind::Window), ledger.count(Kind::PatchMerge));
        if (windows.total, windows.fused) != (blocks(&name), blocks(&name)) || (merges.total, merges.fused) != (1, 1) {
            let missed: Vec<_> = [Kind::Window, Kind::PatchMerge].iter().flat_map(|k| ledger.missed(*k)).collect();
            wrong.push(format!("{name}: {windows:?} {merges:?} {missed:?}"));
        }
        // Every partition is in the norm before it, every reverse with its residual add in the norm after it.
        assert_eq!(nodes(&model.proto, "TrtOptWindow").len(), 0, "{name}");
        let norms = nodes(&model.proto, "TrtOptLayerNorm").into_iter();
        let reverses: Vec<_> = norms.filter(|norm| int(norm, "reverse") == 1).collect();
        assert_eq!(reverses.len(), blocks(&name), "{name}");
        for reverse in reverses {
            assert_eq!(int(reverse, "residual"), 1, "{name}");
        }
        // The merge adds what the last MLP of its stage gives.
        for merge in nodes(&model.proto, "TrtOptPatchMerge") {
            assert_eq!((int(merge, "residual"), merge.input.len()), (1, 4), "{name}");
        }
        same(&original, &model, &name);
        // Where norms take in nothing, every residual add is in the reverse.
        let mut apart = only(&[Kind::LayerNorm, Kind::Window, Kind::PatchMerge]);
        apart.skip.insert("layernorm-residual".into());
        let (model, _) = fuse_file(&path, &apart);
        let reverses = nodes(&model.proto, "TrtOptWindow");
        assert_eq!(reverses.len(), blocks(&name), "{name}");
        for reverse in reverses {
            assert_eq!((int(reverse, "reverse"), int(reverse, "residual")), (1, 1), "{name}");
        }
        same(&original, &model, &name);
    }
    assert!(seen >= 40, "only {seen} fixtures");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn without_fused_norms_a_window_op_partitions() {
    for name in ["swin_ts17_dyn", "swin_dy20", "swin_pad_ts17", "swin_torchvision_pad_dy18", "swin_original_ts13"] {
        let original = onnx::load(&fixture(name)).unwrap();
        let (model, ledger) = fuse_file(&fixture(name), &only(&[Kind::Window]));
        assert_eq!(ledger.count(Kind::Window).fused, blocks(name), "{name}");
        assert_eq!(nodes(&model.proto, "TrtOptWindow").len(), 2 * blocks(name), "{name}");
        assert_eq!(ledger.count(Kind::PatchMerge).missed, 1, "{name}");
        same(&original, &model, name);
    }
}

#[test]
fn a_baked_batch_is_refused() {
    for name in ["swin_original_baked_ts17_dyn", "swin_original_baked_dy18_dyn"] {
        let (_, ledger) = fuse_file(&fixture(name), &Options::default());
        let count = ledger.count(Kind::Window);
        assert_eq!((count.total, count.missed), (2, 2), "{name}");
        for site in ledger.missed(Kind::Window) {
            assert!(site.expected.as_ref().unwrap().contains("the same for every image"), "{site:?}");
        }
    }
}

#[test]
fn hand_made_spellings() {
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let kind = match name.trim_start_matches("spelling_") {
            n if n.starts_with("window_") => Kind::Window,
            n if n.starts_with("merge_") => Kind::PatchMerge,
            _ => continue,
        };
        let original = onnx::load(&path).unwrap();
        let (model, ledger) = fuse_file(&path, &only(&[Kind::LayerNorm, kind]));
        let count = ledger.count(kind);
        assert_eq!((count.total, count.fused), (1, 1), "{name}: {:?}", ledger.sites);
        same(&original, &model, &name);
    }
}

#[test]
fn what_only_looks_like_it_is_left_alone() {
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let Some(what) = name.strip_prefix("spelling_not_") else { continue };
        let (model, ledger) = fuse_file(&path, &only(&[Kind::LayerNorm, Kind::Window, Kind::PatchMerge]));
        assert_eq!(ledger.count(Kind::Window).fused + ledger.count(Kind::PatchMerge).fused, 0, "{name}");
        for op in ["TrtOptWindow", "TrtOptPatchMerge"] {
            assert!(nodes(&model.proto, op).is_empty(), "{name}");
        }
        if what.starts_with("window") {
            let site: Vec<&Site> = ledger.missed(Kind::Window).collect();
            assert!(site.len() == 1 && site[0].expected.is_some() && site[0].found.is_some(), "{name}: {site:?}");
        }
        if what.starts_with("merge") {
            let site: Vec<&Site> = ledger.missed(Kind::PatchMerge).collect();
            assert!(site.len() == 1 && site[0].expected.is_some() && site[0].found.is_some(), "{name}: {site:?}");
        }
    }
}

// ---- near misses ----

const GRID: i64 = 8;
const CHANNELS: i64 = 4;

/// A block: roll, partition, something computed, reverse, roll back, residual add.
struct Block {
    batch: Dim,
    /// Axis and amount of each roll before the partition, and of those that take it back.
    rolls: Vec<(usize, i64)>,
    rolls_back: Vec<(usize, i64)>,
    /// Permutations of partition and reverse.
    perms: [[i64; 6]; 2],
}

impl Default for Block {
    fn default() -> Self {
        let (rolls, back) = ([(1, 2), (2, 2)], [(1, GRID - 2), (2, GRID - 2)]);
        Self { batch: batch(), rolls: rolls.into(), rolls_back: back.into(), perms: [[0, 1, 3, 2, 4, 5]; 2] }
    }
}

/// The values of a block that a test may want to use elsewhere.
struct Parts {
    x: ValueId,
    rolled: ValueId,
    windows: ValueId,
    tokens: ValueId,
    out: ValueId,
}

impl Block {
    fn build(&self) -> (Net, Parts) {
        let mut net = Net::new(17);
        let map = [self.batch.clone(), GRID.into(), GRID.into(), CHANNELS.into()];
        let count = self.batch.mul(&4.into()).unwrap();
        let x = net.input("x", &map);
        let rolled = self.rolls.iter().fold(x, |y, &(axis, shift)| net.roll(y, axis, shift));
        let y = net.reshape(rolled, &[self.batch.clone(), 2.into(), 4.into(), 2.into(), 4.into(), CHANNELS.into()]);
        let y = net.transpose(y, &self.perms[0]);
        let windows = net.reshape(y, &[count, 16.into(), CHANNELS.into()]);
        let y = net.unary("Tanh", windows);
        let y = net.reshape(y, &[self.batch.clone(), 2.into(), 2.into(), 4.into(), 4.into(), CHANNELS.into()]);
        let y = net.transpose(y, &self.perms[1]);
        let y = net.reshape(y, &map);
        let tokens = self.rolls_back.iter().fold(y, |y, &(axis, shift)| net.roll(y, axis, shift));
        let out = net.add(x, tokens);
        (net, Parts { x, rolled, windows, tokens, out })
    }

    /// Fuses the block, checks that it still computes the same, and gives model and ledger.
    fn fuse(&self, outputs: impl FnOnce(&mut Net, &Parts) -> Vec<ValueId>) -> (ModelProto, Ledger) {
        let (mut net, parts) = self.build();
        let outputs = outputs(&mut net, &parts);
        let before = Model::new(net.model(&outputs), "before.onnx");
        let mut after = before.clone();
        let ledger = fuse(&mut after.proto, &Options::default());
        same(&before, &after, "block");
        (after.proto, ledger)
    }

    fn missed(&self, outputs: impl FnOnce(&mut Net, &Parts) -> Vec<ValueId>) -> Site {
        let (model, ledger) = self.fuse(outputs);
        assert!(nodes(&model, "TrtOptWindow").is_empty(), "{:?}", ledger.sites);
        let sites: Vec<&Site> = ledger.sites.iter().filter(|s| s.kind == Kind::Window).collect();
        let [site] = sites[..] else { panic!("{sites:?}") };
        assert_eq!(site.status, Status::Missed);
        site.clone()
    }
}

fn out(_: &mut Net, parts: &Parts) -> Vec<ValueId> {
    vec![parts.out]
}

#[test]
fn the_block_itself_is_fused() {
    for batch in [batch(), 1.into(), 3.into()] {
        let (model, ledger) = Block { batch, ..Block::default() }.fuse(out);
        assert_eq!(ledger.count(Kind::Window).fused, 1);
        let fused = nodes(&model, "TrtOptWindow");
        assert_eq!(fused.iter().map(|n| int(n, "residual")).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(model.graph.as_ref().unwrap().node.len(), 3);
    }
}

#[test]
fn an_interior_value_used_elsewhere_is_kept() {
    let site = Block::default().missed(|net, parts| {
        let other = net.unary("Tanh", parts.rolled);
        vec![parts.out, other]
    });
    let reason = site.reason.unwrap();
    assert!(reason.contains("interior value"), "{reason}");
    let site = Block::default().missed(|_, parts| vec![parts.out, parts.rolled]);
    let reason = site.reason.unwrap();
    assert!(reason.contains("is a graph output"), "{reason}");
}

#[test]
fn the_ends_of_the_chains_may_be_used_elsewhere() {
    // Windows that something else reads, tokens that are an output: the residual add then stays.
    let (model, ledger) = Block::default().fuse(|net, parts| {
        let other = net.unary("Tanh", parts.windows);
        vec![parts.out, other, parts.tokens]
    });
    assert_eq!(ledger.count(Kind::Window).fused, 1);
    assert!(nodes(&model, "TrtOptWindow").iter().all(|n| int(n, "residual") == 0));
    assert_eq!(nodes(&model, "Add").len(), 1);
    // The tokens added to themselves are no residual.
    let (model, _) = Block::default().fuse(|net, parts| vec![net.add(parts.tokens, parts.tokens)]);
    assert!(nodes(&model, "TrtOptWindow").iter().all(|n| int(n, "residual") == 0));
}

#[test]
fn wrong_permutations_are_refused() {
    for (at, perm) in [[0, 3, 1, 2, 4, 5], [0, 1, 3, 4, 2, 5], [0, 2, 4, 1, 3, 5]].into_iter().enumerate() {
        let mut block = Block::default();
        block.perms[at % 2] = perm;
        let site = block.missed(out);
        assert!(site.reason.as_ref().unwrap().starts_with("the chain is no"), "{site:?}");
        assert!(site.expected.is_some() && site.found.is_some(), "{site:?}");
    }
}

#[test]
fn a_reverse_that_is_not_the_partitions_is_refused() {
    // Not rolled back; rolled back by less; one axis rolled the wrong way.
    let wrong = [vec![], vec![(1, GRID - 2), (2, GRID - 1)], vec![(1, GRID - 2), (2, 2)]];
    for rolls_back in wrong {
        let site = Block { rolls_back, ..Block::default() }.missed(out);
        let texts = [&site.expected, &site.found].map(|t| t.clone().unwrap());
        assert!(site.reason.as_ref().unwrap().starts_with("the reverse is not that of the partition"), "{site:?}");
        assert!(texts[0].contains("shifted by 2,2") && texts[0] != texts[1], "{texts:?}");
    }
}

#[test]
fn a_shift_of_one_axis_is_that() {
    let block = Block { rolls: vec![(2, 1)], rolls_back: vec![(2, GRID - 1)], ..Block::default() };
    let (model, ledger) = block.fuse(out);
    assert_eq!(ledger.count(Kind::Window).fused, 1);
    for node in nodes(&model, "TrtOptWindow") {
        let shift = node.attribute.iter().find(|a| a.name() == "shift").unwrap();
        assert_eq!(shift.ints, [0, 1]);
    }
}

#[test]
fn a_shift_by_more_than_a_window_is_refused() {
    let block = Block { rolls: vec![(2, 5)], rolls_back: vec![(2, GRID - 5)], ..Block::default() };
    let site = block.missed(out);
    assert_eq!(site.expected.as_deref(), Some("a shift by less than a window"));
}

#[test]
fn images_must_not_mix() {
    let block = Block { batch: 2.into(), rolls: vec![(0, 1), (2, 2)], ..Block::default() };
    let site = block.missed(out);
    assert!(site.expected.as_ref().unwrap().contains("the same for every image"), "{site:?}");
}

#[test]
fn a_half_alone_is_a_site() {
    let (model, ledger) = Block::default().fuse(|_, parts| vec![parts.windows]);
    assert_eq!((ledger.count(Kind::Window).fused, nodes(&model, "TrtOptWindow").len()), (1, 1));
}

#[test]
fn a_roll_alone_is_no_site() {
    let (_, ledger) = Block::default().fuse(|net, parts| vec![net.unary("Tanh", parts.rolled)]);
    assert_eq!(ledger.count(Kind::Window).total, 0);
    let (_, ledger) = Block::default().fuse(|net, parts| vec![net.unary("Tanh", parts.x)]);
    assert_eq!(ledger.count(Kind::Window).total, 0);
}

#[test]
fn switches() {
    let off = |options: Options| {
        let (net, parts) = Block::default().build();
        let mut model = net.model(&[parts.out]);
        let ledger = fuse(&mut model, &options);
        assert!(nodes(&model, "TrtOptWindow").is_empty());
        ledger.sites.into_iter().find(|s| s.kind == Kind::Window).unwrap()
    };
    assert_eq!(off(Options { skip: BTreeSet::from(["window".into()]), ..Options::default() }).status, Status::Missed);
    assert_eq!(off(only(&[Kind::Gelu])).status, Status::Missed);
    assert_eq!(off(Options { stop_after: Some(0), ..Options::default() }).status, Status::Missed);
    assert_eq!(off(Options { target: Target::Native, ..Options::default() }).status, Status::Kept);

    let options = |skip: &str| Options { skip: BTreeSet::from([skip.into()]), ..Options::default() };
    let (model, ledger) = fuse_file(&fixture("swin_dy20"), &options("patch-merge"));
    assert!(nodes(&model.proto, "TrtOptPatchMerge").is_empty());
    assert_eq!(ledger.count(Kind::PatchMerge).missed, 1);
    let (_, ledger) = fuse_file(&fixture("swin_dy20"), &Options { target: Target::Native, ..Options::default() });
    assert_eq!((ledger.count(Kind::PatchMerge).kept, ledger.count(Kind::Window).kept), (1, 2));
}

#[test]
fn a_merge_without_its_norm_is_missed() {
    let mut net = Net::new(17);
    let x = net.input("x", &[batch(), 4.into(), 4.into(), 3.into()]);
    let y = net.reshape(x, &[batch(), 2.into(), 2.into(), 2.into(), 2.into(), 3.into()]);
    let y = net.transpose(y, &[0, 1, 3, 4, 2, 5]);
    let y = net.reshape(y, &[batch(), 4.into(), 12.into()]);
    let out = net.unary("Tanh", y);
    let mut model = net.model(&[out]);
    let ledger = fuse(&mut model, &Options::default());
    let site: Vec<&Site> = ledger.missed(Kind::PatchMerge).collect();
    assert_eq!(site.len(), 1);
    assert_eq!(site[0].reason.as_deref(), Some("no norm over the merged channels follows"));
    assert_eq!(site[0].found.as_deref(), Some("Tanh"));
}

fn floats(net: &mut Net, values: &[f32]) -> ValueId {
    net.graph.add_initializer("floats", TensorProto::from_f32("floats", &[values.len() as i64], values))
}

/// A merge of `a + b`, or of what `change` makes of them; the model and what it reads beside `a` and `b`.
fn merge_of_a_sum(change: impl FnOnce(&mut Net, [ValueId; 3]) -> (ValueId, Vec<ValueId>)) -> ModelProto {
    let mut net = Net::new(17);
    let shape = [batch(), 4.into(), 4.into(), 3.into()];
    let (a, b) = (net.input("a", &shape), net.input("b", &shape));
    let sum = net.add(a, b);
    let (x, mut outputs) = change(&mut net, [a, b, sum]);
    let y = net.reshape(x, &[batch(), 2.into(), 2.into(), 2.into(), 2.into(), 3.into()]);
    let y = net.transpose(y, &[0, 1, 3, 4, 2, 5]);
    let y = net.reshape(y, &[batch(), 4.into(), 12.into()]);
    let [scale, bias] = [1.5, -0.25].map(|v| floats(&mut net, &[v; 12]));
    let norm = Node::new("LayerNormalization", [y, scale, bias]).with(AttributeProto::float("epsilon", 1e-5));
    outputs.push(net.push(norm, &[batch(), 4.into(), 12.into()]));
    net.model(&outputs)
}

#[test]
fn a_merge_takes_the_add_before_it_if_nothing_else_reads_the_sum() {
    let residual = |mut model: ModelProto, options: &Options| {
        let original = Model::new(model.clone(), "m.onnx");
        let ledger = fuse(&mut model, options);
        assert_eq!(ledger.count(Kind::PatchMerge).fused, 1);
        same(&original, &Model::new(model.clone(), "m.onnx"), "a merge of a sum");
        let merge = nodes(&model, "TrtOptPatchMerge")[0].clone();
        let adds = nodes(&model, "Add").len();
        assert_eq!(merge.input.len() as i64, 3 + int(&merge, "residual"));
        (int(&merge, "residual"), adds)
    };
    let all = Options::default();
    assert_eq!(residual(merge_of_a_sum(|_, [_, _, sum]| (sum, vec![])), &all), (1, 0));
    let flat = |net: &mut Net, [_, _, sum]: [ValueId; 3]| (net.reshape(sum, &[batch(), 16.into(), 3.into()]), vec![]);
    assert_eq!(residual(merge_of_a_sum(flat), &all), (1, 0));
    // Read otherwise, an output, or an add of a constant: the sum stays.
    let read = |net: &mut Net, [_, _, sum]: [ValueId; 3]| (sum, vec![net.unary("Tanh", sum)]);
    assert_eq!(residual(merge_of_a_sum(read), &all), (0, 1));
    assert_eq!(residual(merge_of_a_sum(|_, [_, _, sum]| (sum, vec![sum])), &all), (0, 1));
    let offset = |net: &mut Net, [_, _, sum]: [ValueId; 3]| {
        let offset = floats(net, &[0.5, -1.0, 2.0]);
        (net.add(sum, offset), vec![])
    };
    assert_eq!(residual(merge_of_a_sum(offset), &all).0, 0);
    let skip = Options { skip: BTreeSet::from(["patch-merge-residual".into()]), ..Options::default() };
    assert_eq!(residual(merge_of_a_sum(|_, [_, _, sum]| (sum, vec![])), &skip), (0, 1));
}

#[test]
fn a_merge_read_twice_is_missed() {
    let mut model = onnx::load(&fixture("spelling_merge_reshape")).unwrap();
    let graph = model.proto.graph.as_mut().unwrap();
    let merged = graph.node.iter().find(|n| n.op_type() == "LayerNormalization").unwrap().input[0].clone();
    graph.node.push(common::node("Tanh", &[&merged], &["again"]));
    graph.output.push(trt_opt::onnx::proto::ValueInfoProto { name: Some("again".into()), ..Default::default() });
    let ledger = fuse(&mut model.proto, &Options::default());
    assert_eq!(ledger.count(Kind::PatchMerge).missed, 1);
    assert_eq!(ledger.missed(Kind::PatchMerge).next().unwrap().found.as_deref(), Some("2 readers"));
}

#[test]
fn chains_by_which_nothing_moves_go() {
    // The last stage is one window: partition and reverse are the identity, and no site.
    for target in [Target::Trt8, Target::Native] {
        for name in ["swin_ts17", "swin_dy20_dyn", "swin_torchvision_dy18", "swin_original_ts17_dyn"] {
            let original = onnx::load(&fixture(name)).unwrap();
            let (model, _) = fuse_file(&fixture(name), &Options { target, ..Options::default() });
            same(&original, &model, name);
            let graph = model.proto.graph.as_ref().unwrap();
            let makes = |value: &String| graph.node.iter().find(|n| n.output.contains(value));
            for node in nodes(&model.proto, "Reshape") {
                let before = makes(&node.input[0]);
                let alone = graph.node.iter().flat_map(|n| &n.input).filter(|i| **i == node.input[0]).count() == 1;
                assert!(!(alone && before.is_some_and(|n| n.op_type() == "Reshape")), "{name}: {node:?}");
            }
            let six = |n: &&trt_opt::onnx::proto::NodeProto| n.attribute.iter().any(|a| a.ints.len() == 6);
            let left = nodes(&model.proto, "Transpose").iter().filter(|n| six(n)).count();
            // Native: partition and reverse of two blocks, and timm's merge.
            let native = if name.contains("torchvision") || name.contains("original") { 4 } else { 5 };
            assert_eq!(left, if target == Target::Native { native } else { 0 }, "{name} {target}");
        }
    }
}
