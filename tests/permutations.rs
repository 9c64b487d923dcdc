//! Cuts and joins that are one transposition of their source: those of every export of PyramidTNT, in any spelling; what only looks like one
//! stays, and the other networks keep their sites.
//!
//! Nothing is computed, so all is equal but for what sums add up in another order.

#[path = "common/block.rs"]
mod block;
mod common;
#[path = "common/net.rs"]
mod net;

use std::collections::BTreeSet;

use block::{comparison, rewritten};
use common::ops;
use net::{Net, batch, dims};
use trt_opt::ir::{Dim, Node, ValueId};
use trt_opt::onnx::proto::{AttributeProto, ModelProto};
use trt_opt::rewrite::{Kind, Options, Target};
use trt_opt::{testing, verify};

const RULE: &str = "permutation";
const TARGETS: [Target; 3] = [Target::Native, Target::Trt8, Target::Trt10];
const CHANNELS: i64 = 3;

fn without(mut options: Options) -> Options {
    options.skip.insert(RULE.into());
    options
}

fn count(model: &ModelProto, counted: &[&str]) -> usize {
    ops(model).iter().filter(|op| counted.contains(&op.as_str())).count()
}

fn patches(rewrite: &testing::Rewrite) -> usize {
    rewrite.ledger().patches.get(RULE).copied().unwrap_or(0)
}

const CUTS_AND_JOINS: [&str; 4] = ["Slice", "Split", "Gather", "Concat"];
const MOVES: [&str; 5] = ["Slice", "Split", "Gather", "Concat", "Transpose"];

// ---- exports ----

/// Two stages each, so one merge of words, and the unfolding of the first words by two Gathers.
#[test]
fn exports_of_pyramid_tnt_merge_words_by_one_transposition() {
    let (mut wrong, mut seen) = (vec![], 0);
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("ptnt") {
            continue;
        }
        seen += 1;
        for options in TARGETS.map(|target| Options { target, ..Options::default() }).into_iter().chain([all()]) {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            // A stack of convolutions takes the unfolding as it is.
            let (permutations, less) = if options.kinds.contains(&Kind::ConvStack) { (1, 0) } else { (2, 2) };
            let kept = testing::rewrite_with(&path, &without(options)).unwrap();
            let found = MOVES.map(|op| [&kept, &rewrite].map(|r| count(&r.model().proto, &[op])));
            let [slices, splits, gathers, joins, transposes] = found;
            let fewer = [gathers, transposes].map(|[before, after]| before - after);
            if [slices, splits, joins] != [[6, 0], [0, 0], [3, 0]]
                || fewer != [less; 2]
                || patches(&rewrite) != permutations
            {
                wrong.push(format!("{name}: {found:?}, {} patches", patches(&rewrite)));
            }
            if let Err(error) = rewrite.compare(&comparison(&name)).and_then(|report| report.check()) {
                wrong.push(format!("{name}: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen, 10);
}

/// With every kind of block.
fn all() -> Options {
    block::with(&Kind::ALL)
}

/// Sites are found as without the rule; what it changes moves less and computes the same.
#[test]
fn other_networks_keep_their_sites() {
    let mut changed = BTreeSet::new();
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !["swin", "vit", "tnt", "uniformer", "spelling"].iter().any(|family| name.starts_with(family)) {
            continue;
        }
        for options in [Options { target: Target::Native, ..Options::default() }, Options::default(), all()] {
            let rewrite = testing::rewrite_with(&path, &options).unwrap();
            let kept = testing::rewrite_with(&path, &without(options)).unwrap();
            assert_eq!(rewrite.sites(), kept.sites(), "{name}");
            if patches(&rewrite) == 0 {
                assert_eq!(rewrite.after(), kept.after(), "{name}");
                continue;
            }
            let [before, after] = [&kept, &rewrite].map(|r| count(&r.model().proto, &MOVES));
            assert!(after < before, "{name}: {before} became {after}");
            rewrite.compare(&comparison(&name)).unwrap().check().unwrap();
            let family = ["swin", "tnt", "spelling_merge_", "spelling_tnt_unfold", "spelling_window_partition_slices"];
            let family = family.into_iter().find(|family| name.starts_with(family));
            changed.insert((rewrite.ledger().target.clone(), family.unwrap_or(&name).to_owned()));
        }
    }
    // Merges and partitions by slices that no plugin takes, and the unfolding of TNT's words.
    let expected = [
        ("native", "spelling_merge_"),
        ("native", "spelling_tnt_unfold"),
        ("native", "spelling_window_partition_slices"),
        ("native", "swin"),
        ("native", "tnt"),
        ("trt8", "spelling_tnt_unfold"),
        ("trt8", "tnt"),
    ];
    let found: Vec<(&str, &str)> = changed.iter().map(|(target, family)| (target.as_str(), family.as_str())).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_second_rewrite_finds_nothing() {
    for path in common::fixtures() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !["ptnt_ts17", "ptnt_dy20_dyn", "swin_original_ts17", "tnt_ts13"].iter().any(|known| name == *known) {
            continue;
        }
        for options in [Options { target: Target::Native, ..Options::default() }, Options::default()] {
            let first = testing::rewrite_with(&path, &options).unwrap();
            let second = rewritten(first.model().proto.clone(), &options);
            assert_eq!(patches(&second), 0, "{name}");
            assert_eq!(ops(&second.model().proto), ops(&first.model().proto), "{name}");
        }
    }
}

// ---- by hand ----

/// A network whose outputs come of what `build` makes of a computed value of this shape.
fn built(shape: &[Dim], build: impl Fn(&mut Net, ValueId) -> Vec<ValueId>) -> ModelProto {
    let mut net = Net::new(17);
    let x = net.input("x", shape);
    let x = net.unary("Tanh", x);
    let outputs = build(&mut net, x);
    net.model(&outputs)
}

/// What is left of it on any target, which computes the same, and how often the rule was at work.
fn left(proto: &ModelProto) -> (Vec<String>, usize) {
    let left = |target: Target| {
        let rewrite = rewritten(proto.clone(), &Options { target, ..Options::default() });
        let open = rewrite.before().contains("batch");
        for batch in if open { vec![Some(1), Some(3)] } else { vec![None] } {
            let options = verify::Options { batch, ..verify::Options::default() };
            rewrite.compare(&options).unwrap().check().unwrap();
        }
        let second = rewritten(rewrite.model().proto.clone(), &Options { target, ..Options::default() });
        assert_eq!(patches(&second), 0);
        (ops(&rewrite.model().proto), patches(&rewrite))
    };
    let native = left(Target::Native);
    assert_eq!(left(Target::Trt8), native);
    native
}

/// What `build` makes is read by one node more.
fn of(shape: &[Dim], build: impl Fn(&mut Net, ValueId) -> ValueId) -> (Vec<String>, usize) {
    left(&built(shape, |net, x| {
        let y = build(net, x);
        vec![net.unary("Sin", y)]
    }))
}

fn moved_once(shape: &[Dim], build: impl Fn(&mut Net, ValueId) -> ValueId, what: &str) {
    let (ops, patches) = of(shape, build);
    assert_eq!(ops.iter().filter(|op| MOVES.contains(&op.as_str())).collect::<Vec<_>>(), ["Transpose"], "{what}");
    assert_eq!(patches, 1, "{what}");
}

fn kept(shape: &[Dim], build: impl Fn(&mut Net, ValueId) -> ValueId, what: &str) {
    let (ops, patches) = of(shape, build);
    assert!(ops.iter().any(|op| CUTS_AND_JOINS.contains(&op.as_str())), "{what}: {ops:?}");
    assert_eq!(patches, 0, "{what}");
}

/// Every other of an axis.
fn every_other(net: &mut Net, x: ValueId, axis: usize, start: i64) -> ValueId {
    let mut shape = net.shape(x);
    shape[axis] = Dim::Int((shape[axis].int().unwrap() - start + 1) / 2);
    let inputs = [vec![start], vec![i64::MAX], vec![axis as i64], vec![2]].map(|list| net.ints(&list));
    net.push(Node::new("Slice", [vec![x], inputs.to_vec()].concat()), &shape)
}

fn patches_of_words(images: &Dim) -> Vec<Dim> {
    [vec![images.clone()], dims(&[4, 6, 4, 4, CHANNELS])].concat()
}

/// The words of 2x2 patches as an image of 8x8 each. `seen` is given the columns, which are joined last.
fn merged_words(net: &mut Net, x: ValueId, seen: &mut dyn FnMut(&mut Net, ValueId)) -> ValueId {
    let columns = [0, 1].map(|column| {
        let rows = [0, 1].map(|row| {
            let rows = every_other(net, x, 1, row);
            every_other(net, rows, 2, column)
        });
        let joined = net.concat(&rows, 3);
        seen(net, joined);
        joined
    });
    let y = net.concat(&columns, 4);
    let merged = net.shape(x)[0].mul(&6.into()).unwrap();
    let y = net.reshape(y, &[merged, 8.into(), 8.into(), CHANNELS.into()]);
    net.transpose(y, &[0, 3, 1, 2])
}

#[test]
fn merged_words_are_one_transposition() {
    let merged = |net: &mut Net, x| merged_words(net, x, &mut |_, _| {});
    for images in [1.into(), 2.into(), batch()] {
        let (ops, patches) = of(&patches_of_words(&images), merged);
        assert_eq!((ops, patches), (["Tanh", "Reshape", "Transpose", "Reshape", "Sin"].map(String::from).into(), 1));
    }
    // Words that come as rows of all patches, so that images are no axis.
    let rows = [batch().mul(&24.into()).unwrap(), 16.into(), CHANNELS.into()];
    moved_once(
        &patches_of_words(&batch()),
        |net, x| {
            let x = net.reshape(x, &rows);
            let x = net.reshape(x, &patches_of_words(&batch()));
            merged_words(net, x, &mut |_, _| {})
        },
        "rows",
    );
    let proto = built(&patches_of_words(&batch()), |net, x| vec![merged_words(net, x, &mut |_, _| {})]);
    let (ops, patches) = left(&proto);
    assert_eq!((ops, patches), (["Tanh", "Reshape", "Transpose", "Reshape"].map(String::from).into(), 1));
}

#[test]
fn any_spelling_of_a_transposition_is_one() {
    let map = [batch(), 4.into(), 6.into(), CHANNELS.into()];
    let split = |net: &mut Net, x: ValueId, axis: i64, shape: &[Dim]| {
        net.outputs(Node::new("Split", [x]).with(AttributeProto::int("axis", axis)), &[shape, shape])
    };
    moved_once(
        &map,
        |net, x| {
            let halves = split(net, x, 2, &[batch(), 4.into(), 3.into(), CHANNELS.into()]);
            net.concat(&halves, 3)
        },
        "halves on the channels",
    );
    moved_once(
        &map,
        |net, x| {
            let rows = net.gather(x, 1, &[2, 2], &[0, 2, 1, 3]);
            let columns = net.gather(rows, 3, &[3, 2], &[0, 3, 1, 4, 2, 5]);
            net.transpose(columns, &[0, 5, 2, 1, 3, 4])
        },
        "gathers",
    );
    // Of four rows, the middle two exchanged: the order of 2 x 2 transposed.
    moved_once(
        &map,
        |net, x| {
            let rows = [0, 2, 1, 3].map(|row| net.slice(x, 1, row, row + 1, 1));
            net.concat(&rows, 1)
        },
        "single rows",
    );
    // Pieces that are transposed, of a transposed source.
    moved_once(
        &map,
        |net, x| {
            let x = net.transpose(x, &[0, 3, 1, 2]);
            let pieces = [0, 1].map(|i| {
                let piece = every_other(net, x, 2, i);
                net.transpose(piece, &[0, 2, 3, 1])
            });
            net.concat(&pieces, 3)
        },
        "transposed pieces",
    );
}

/// That is straightened.
#[test]
fn what_comes_back_as_it_was_is_no_transposition() {
    let map = [batch(), 4.into(), 6.into(), CHANNELS.into()];
    let (ops, patches) = of(&map, |net, x| {
        let halves = [net.slice(x, 1, 0, 2, 2), net.slice(x, 1, 2, 4, 2)];
        net.concat(&halves, 1)
    });
    assert_eq!((ops, patches), (["Tanh", "Sin"].map(String::from).into(), 0));
}

/// What others read stays, and counts as no saving.
#[test]
fn values_read_elsewhere_stay() {
    let shape = patches_of_words(&batch());
    for as_output in [true, false] {
        // The first columns: four of the slices and a join are left, the others go.
        let proto = built(&shape, |net, x| {
            let mut columns = vec![];
            let y = merged_words(net, x, &mut |_, joined| columns.push(joined));
            let seen = if as_output { columns[0] } else { net.unary("Exp", columns[0]) };
            vec![net.unary("Sin", y), seen]
        });
        let (ops, patches) = left(&proto);
        let count = |op: &str| ops.iter().filter(|o| *o == op).count();
        let found = ["Slice", "Concat", "Transpose"].map(count);
        assert_eq!((found, patches), ([4, 1, 1], 1), "{ops:?}");

        // Both columns: a join for a transposition.
        let proto = built(&shape, |net, x| {
            let mut columns = vec![];
            let y = merged_words(net, x, &mut |_, joined| columns.push(joined));
            // Behind the last join, not behind the transposition after it.
            let mut node = y;
            while !net.graph.producer(node).unwrap().1.is("Concat") {
                node = net.graph.producer(node).unwrap().1.input(0).unwrap();
            }
            let all = net.unary("Sin", node);
            let seen = columns.iter().map(|&c| if as_output { c } else { net.unary("Exp", c) });
            [vec![all], seen.collect()].concat()
        });
        let (ops, patches) = left(&proto);
        assert_eq!((ops.iter().filter(|op| *op == "Concat").count(), patches), (3, 0), "{ops:?}");
    }
    // The end itself may be an output and be read.
    let proto = built(&shape, |net, x| {
        let y = merged_words(net, x, &mut |_, _| {});
        vec![y, net.unary("Sin", y)]
    });
    let (ops, patches) = left(&proto);
    assert_eq!((ops, patches), (["Tanh", "Reshape", "Transpose", "Reshape", "Sin"].map(String::from).into(), 1));
}

/// Only shapes of one value differ.
#[test]
fn two_shapes_of_one_movement_are_moved_once() {
    let map = [batch(), 4.into(), 6.into(), CHANNELS.into()];
    let proto = built(&map, |net, x| {
        let pieces = [0, 1].map(|i| every_other(net, x, 1, i));
        let y = net.concat(&pieces, 3);
        let shapes = [[2, 36], [12, 6]].map(|[a, b]| {
            let y = net.reshape(y, &[batch(), a.into(), b.into()]);
            net.unary("Sin", y)
        });
        shapes.to_vec()
    });
    let (ops, patches) = left(&proto);
    let moves: Vec<_> = ops.iter().map(String::as_str).filter(|op| MOVES.contains(op)).collect();
    assert_eq!((moves, patches), (vec!["Transpose"], 1));
}

#[test]
fn what_is_no_permutation_of_axes_stays() {
    let map = [batch(), 6.into(), 6.into(), CHANNELS.into()];
    let rows = |order: &'static [i64]| {
        move |net: &mut Net, x: ValueId| {
            let rows: Vec<ValueId> = order.iter().map(|&row| net.slice(x, 1, row, row + 1, 1)).collect();
            net.concat(&rows, 1)
        }
    };
    kept(&map, rows(&[0, 2, 1, 3, 4, 5]), "two rows exchanged");
    kept(&map, rows(&[3, 4, 5, 0, 1, 2]), "halves exchanged");
    kept(&map, rows(&[5, 4, 3, 2, 1, 0]), "backwards");
    kept(&map, rows(&[0, 2, 4, 1, 3, 3]), "a row twice and one not at all");
    kept(&map, rows(&[0, 2, 1, 3]), "the first rows alone");
    kept(&map, rows(&[0, 2, 4, 0, 2, 4]), "every other row twice");
    kept(&map, rows(&[0, 2, 4, 1, 3, 5, 0]), "a row more");
    kept(&map, |net, x| net.roll(x, 1, 2), "a roll");
    kept(
        &map,
        |net, x| {
            let y = net.roll(x, 1, 3);
            net.roll(y, 2, 3)
        },
        "a roll by half",
    );
    // The same pieces in another order in the second half.
    kept(
        &map,
        |net, x| {
            let pieces = [0, 1].map(|i| every_other(net, x, 2, i));
            let halves = [[0, 1], [1, 0]].map(|order| {
                let joined = net.concat(&order.map(|i| pieces[i]), 2);
                net.slice(joined, 1, 3 * order[0] as i64, 3 * order[0] as i64 + 3, 3)
            });
            net.concat(&halves, 1)
        },
        "another order in the second half",
    );
    // Of zeros too.
    kept(
        &map,
        |net, x| {
            let pieces = [0, 1].map(|i| every_other(net, x, 1, i));
            let joined = net.concat(&pieces, 3);
            let pads = net.ints(&[0, 0, 0, 0, 0, 1, 0, 0]);
            net.push(Node::new("Pad", [joined, pads]), &[batch(), 4.into(), 6.into(), (2 * CHANNELS).into()])
        },
        "padded",
    );
}

#[test]
fn two_sources_stay() {
    let map = [batch(), 4.into(), 6.into(), CHANNELS.into()];
    kept(
        &map,
        |net, x| {
            let z = net.unary("Exp", x);
            let pieces = [every_other(net, x, 1, 0), every_other(net, z, 1, 1)];
            net.concat(&pieces, 3)
        },
        "two sources",
    );
}

/// Another order of an open number of images depends on how many there are.
#[test]
fn an_open_axis_inside_stays() {
    let build = |net: &mut Net, x: ValueId| {
        let pieces = [0, 1].map(|i| every_other(net, x, 0, i));
        net.concat(&pieces, 0)
    };
    moved_once(&[4.into(), 5.into(), CHANNELS.into()], build, "a known size");
    let shape = [batch(), 4.into(), CHANNELS.into()];
    kept(
        &shape,
        |net, x| {
            let x = net.transpose(x, &[1, 0, 2]);
            let x = net.unary("Exp", x);
            build(net, x)
        },
        "images inside",
    );
}

#[test]
fn transpositions_alone_stay() {
    let map = [batch(), 4.into(), 6.into(), CHANNELS.into()];
    let (ops, patches) = of(&map, |net, x| {
        let y = net.transpose(x, &[0, 2, 3, 1]);
        let y = net.reshape(y, &[batch(), 2.into(), 9.into(), 4.into()]);
        net.transpose(y, &[0, 3, 2, 1])
    });
    assert_eq!((ops.iter().filter(|op| *op == "Transpose").count(), patches), (2, 0));
}

/// TensorRT has at most eight.
#[test]
fn nine_axes_stay() {
    for axes in [8, 9] {
        let build = |net: &mut Net, x: ValueId| {
            let x = net.reshape(x, &dims(&vec![2; axes]));
            let x = net.transpose(x, &(0..axes as i64).rev().collect::<Vec<_>>());
            let halves = [net.slice(x, 0, 0, 1, 1), net.slice(x, 0, 1, 2, 1)];
            let y = net.concat(&halves, 0);
            net.reshape(y, &[Dim::Int(1 << axes)])
        };
        let shape = dims(&[1 << axes]);
        if axes == 8 {
            moved_once(&shape, build, "eight axes");
        } else {
            kept(&shape, build, "nine axes");
        }
    }
}

#[test]
fn a_permutation_is_left_by_name() {
    let path = common::fixtures().into_iter().find(|p| p.ends_with("ptnt_ts17.onnx")).unwrap();
    let rewrite = testing::rewrite_with(&path, &without(Options::default())).unwrap();
    assert_eq!((count(&rewrite.model().proto, &["Slice", "Concat"]), patches(&rewrite)), (9, 0));
}
