//! Index maps of data movement: head splits, rolls, windows by hand, and random chains against ONNX Runtime.

#[path = "common/net.rs"]
mod net;

use net::{Net, batch, dims};
use trt_opt::analysis::movement::{self, HOLE, Walk};
use trt_opt::ir::{Dim, Graph, Node, ValueId};
use trt_opt::onnx::proto::AttributeProto;

#[test]
fn head_split_is_strided_for_every_batch() {
    let (n, h, d) = (49, 3, 32);
    for leading in [batch(), batch().mul(&64.into()).unwrap(), Dim::Int(1), Dim::Int(32)] {
        let mut net = Net::new(17);
        let qkv = net.input("qkv", &[leading.clone(), n.into(), (3 * h * d).into()]);
        let x = net.reshape(qkv, &[leading.clone(), n.into(), 3.into(), h.into(), d.into()]);
        let x = net.transpose(x, &[2, 0, 3, 1, 4]);
        for part in 0..3 {
            let q = net.gather(x, 0, &[], &[part]);
            let sizes = [leading.clone(), h.into(), n.into(), d.into()];
            let found = movement::strided(&net.graph, q, &sizes, &Walk::default()).unwrap();
            assert_eq!((found.source, found.offset), (qkv, part * h * d));
            assert!(found.has(&[n * 3 * h * d, d, 3 * h * d, 1]), "{found:?}");

            // scaled_dot_product_attention transposes K through three axes.
            let rows = leading.mul(&h.into()).unwrap();
            let k = net.reshape(q, &[rows.clone(), n.into(), d.into()]);
            let k = net.transpose(k, &[0, 2, 1]);
            let sizes = [leading.clone(), h.into(), d.into(), n.into()];
            let found = movement::strided(&net.graph, k, &sizes, &Walk::default()).unwrap();
            assert!(found.has(&[n * 3 * h * d, d, 1, 3 * h * d]), "{found:?}");

            // Merged to one axis, images and heads have no common stride unless there is one image.
            let sizes = [rows, d.into(), n.into()];
            let found = movement::strided(&net.graph, k, &sizes, &Walk::default());
            assert_eq!(found.is_some(), leading == Dim::Int(1));
        }
    }
}

#[test]
fn head_merge_is_strided() {
    let mut net = Net::new(17);
    let heads = net.input("x", &[batch(), 4.into(), 10.into(), 8.into()]);
    let x = net.transpose(heads, &[0, 2, 1, 3]);
    let x = net.reshape(x, &[batch(), 10.into(), 32.into()]);
    let sizes = [batch(), 10.into(), 4.into(), 8.into()];
    let found = movement::strided(&net.graph, x, &sizes, &Walk::default()).unwrap();
    assert_eq!((found.source, found.offset), (heads, 0));
    assert!(found.has(&[320, 8, 80, 1]));
    // Stopping half way makes that value the source.
    let region = movement::region(&net.graph, x, &Walk { stop: &|v| v != heads, ..Walk::default() }).unwrap();
    assert_eq!((region.nodes.len(), region.sources.len()), (1, 1));
}

#[test]
fn a_shifted_partition_is_known_by_its_map() {
    let (h, w, c) = (8, 12, 6);
    for b in [batch(), Dim::Int(5), Dim::Int(1)] {
        let mut net = Net::new(17);
        let x = net.input("x", &[b.clone(), h.into(), w.into(), c.into()]);
        let y = net.roll(x, 1, 2);
        let y = net.roll(y, 2, 1);
        let windows = b.mul(&6.into()).unwrap();
        let y = net.reshape(y, &[b.clone(), 2.into(), 4.into(), 3.into(), 4.into(), c.into()]);
        let y = net.transpose(y, &[0, 1, 3, 2, 4, 5]);
        let y = net.reshape(y, &[windows, 16.into(), c.into()]);
        let map = movement::per_image(&net.graph, y, &b, c, &Walk::default()).unwrap();
        assert_eq!((map.source, map.image), (x, h * w * c));
        let mut expected = vec![];
        for (wy, wx) in (0..2).flat_map(|wy| (0..3).map(move |wx| (wy, wx))) {
            for (iy, ix) in (0..4).flat_map(|iy| (0..4).map(move |ix| (iy, ix))) {
                let (y, x) = ((wy * 4 + iy + 2) % h, (wx * 4 + ix + 1) % w);
                expected.push((y * w + x) * c);
            }
        }
        assert_eq!(map.starts, expected);
    }
}

#[test]
fn images_and_channels_cost_nothing() {
    // 1.6 billion elements: only what is cut and joined may be written down.
    let b = Dim::Int(4096);
    let mut net = Net::new(17);
    let x = net.input("x", &[b.clone(), 56.into(), 56.into(), 128.into()]);
    let y = net.roll(x, 1, 3);
    let y = net.roll(y, 2, 3);
    let y = net.reshape(y, &[b.clone(), 8.into(), 7.into(), 8.into(), 7.into(), 128.into()]);
    let y = net.transpose(y, &[0, 1, 3, 2, 4, 5]);
    let y = net.reshape(y, &[(64 * 4096).into(), 49.into(), 128.into()]);
    let map = movement::per_image(&net.graph, y, &b, 128, &Walk::default()).unwrap();
    assert_eq!(map.starts.len(), 56 * 56);

    // Backwards: a row of a window and its channels are one run, of which only the row is to be joined with those beside it.
    let c = 1 << 20;
    let mut net = Net::new(17);
    let x = net.input("x", &dims(&[16, 12, 12, c]));
    let y = net.reshape(x, &dims(&[1, 4, 4, 12, 12, c]));
    let y = net.transpose(y, &[0, 1, 3, 2, 4, 5]);
    let y = net.reshape(y, &dims(&[1, 48, 48, c]));
    let y = net.roll(y, 1, 42);
    let y = net.roll(y, 2, 42);
    let map = movement::per_image(&net.graph, y, &1.into(), c, &Walk::default()).unwrap();
    let expected = (0..48 * 48).map(|at| {
        let [y, x] = [at / 48, at % 48].map(|i| (i + 42) % 48);
        c * ((y / 12 * 4 + x / 12) * 144 + y % 12 * 12 + x % 12)
    });
    assert_eq!((map.source, map.starts), (x, expected.collect::<Vec<_>>()));
}

#[test]
fn absurd_operands_are_no_movement() {
    let mut net = Net::new(17);
    let huge = i64::MAX / 2;
    let x = net.input("x", &dims(&[2, huge]));
    let y = net.unary("Identity", x);
    assert!(net.trace(y).is_none());
    let z = net.input("z", &dims(&[1, 4, 0, 2]));
    let slice = [z, net.ints(&[-1]), net.ints(&[i64::MIN]), net.ints(&[2]), net.ints(&[-1])];
    let y = net.push(Node::new("Slice", slice), &dims(&[1, 4, 0, 2]));
    assert!(net.trace(y).is_none());
    let x = net.input("w", &dims(&[1, 4, 2, 2]));
    let node = Node::new("DepthToSpace", [x]).with(AttributeProto::int("blocksize", i64::MAX));
    let y = net.push(node, &dims(&[1, 4, 2, 2]));
    assert!(net.trace(y).is_none());
    let pads = [x, net.ints(&[0, i64::MAX, i64::MIN, 0, 0, i64::MAX, 0, i64::MIN])];
    let y = net.push(Node::new("Pad", pads), &dims(&[1, 4, 2, 2]));
    assert!(net.trace(y).is_none());
    let node = Node::new("Split", [x]).with(AttributeProto::ints("split", &[i64::MIN, i64::MAX]));
    let y = net.outputs(node.with(AttributeProto::int("axis", 1)), &[&dims(&[1, 2, 2, 2]), &dims(&[1, 2, 2, 2])]);
    assert!(y.iter().all(|y| net.trace(*y).is_none()));
}

#[test]
fn cutting_and_joining_in_the_old_order_is_affine_again() {
    let mut net = Net::new(17);
    let x = net.input("x", &dims(&[2, 8, 8, 3]));
    let a = net.slice(x, 1, 0, 3, 3);
    let b = net.slice(x, 1, 3, 8, 5);
    let y = net.concat(&[a, b], 1);
    let affine = net.trace(y).unwrap().affine().unwrap();
    assert!(affine.is(&[384], &[1]));
    let y = net.concat(&[b, a], 1);
    assert!(net.trace(y).unwrap().affine().is_none());
}

/// What [`movement::permutation`] says, but for the source.
fn permutation(net: &Net, value: ValueId) -> Option<(Vec<Dim>, Vec<usize>)> {
    movement::permutation(&net.graph, value, &Walk::default()).map(|found| (found.sizes, found.perm))
}

#[test]
fn pieces_joined_on_other_axes_are_a_permutation_for_every_batch() {
    for b in [batch(), batch().mul(&7.into()).unwrap(), Dim::Int(1), Dim::Int(5), Dim::Int(1 << 30)] {
        let mut net = Net::new(17);
        let x = net.input("x", &[b.clone(), 6.into(), 8.into()]);
        let pieces = [0, 2, 4].map(|start| net.slice(x, 1, start, start + 2, 2));
        let y = net.concat(&pieces, 2);
        let first = b.mul(&3.into()).unwrap();
        let (sizes, perm) = match b.int() {
            // Of one image the outermost are the pieces.
            Some(1) => (dims(&[3, 2, 8]), vec![1, 0, 2]),
            _ => (vec![b, 3.into(), 2.into(), 8.into()], vec![0, 2, 1, 3]),
        };
        assert_eq!(permutation(&net, y), Some((sizes, perm)));
        // Images and pieces are one axis where nothing comes between them.
        let y = net.transpose(y, &[0, 2, 1]);
        let y = net.reshape(y, &[first.clone(), 8.into(), 2.into()]);
        assert_eq!(permutation(&net, y), Some((vec![first, 2.into(), 8.into()], vec![0, 2, 1])));
        // No piece may be missing or come twice or backwards.
        for pieces in [vec![pieces[0], pieces[1]], vec![pieces[0], pieces[1], pieces[1]]] {
            let y = net.concat(&pieces, 2);
            assert_eq!(permutation(&net, y), None);
        }
        let backwards = net.gather(x, 1, &[6], &[5, 4, 3, 2, 1, 0]);
        assert_eq!(permutation(&net, backwards), None);
    }
}

#[test]
fn rolling_across_images_is_not_per_image() {
    let mut net = Net::new(17);
    let x = net.input("x", &dims(&[2, 4, 4, 3]));
    let y = net.roll(x, 0, 1);
    assert!(movement::per_image(&net.graph, y, &2.into(), 3, &Walk::default()).is_none());
    let y = net.roll(x, 1, 1);
    assert!(movement::per_image(&net.graph, y, &2.into(), 3, &Walk::default()).is_some());
}

#[test]
fn an_open_batch_may_not_be_cut() {
    let mut net = Net::new(17);
    let x = net.input("x", &[batch(), 4.into()]);
    let inputs = [x, net.ints(&[0]), net.ints(&[3]), net.ints(&[0])];
    let y = net.push(Node::new("Slice", inputs), &[batch(), 4.into()]);
    let region = movement::region(&net.graph, y, &Walk::default()).unwrap();
    assert_eq!(region.sources, [y]);
    let inputs = [x, net.ints(&[0]), net.ints(&[i64::MAX]), net.ints(&[0])];
    let y = net.push(Node::new("Slice", inputs), &[batch(), 4.into()]);
    let region = movement::region(&net.graph, y, &Walk::default()).unwrap();
    assert_eq!(region.sources, [x]);
}

#[test]
fn padding_is_holes() {
    let mut net = Net::new(17);
    let x = net.input("x", &dims(&[1, 2, 2]));
    let inputs = [x, net.ints(&[0, 0, 1, 0, 1, 0])];
    let y = net.push(Node::new("Pad", inputs), &dims(&[1, 3, 3]));
    let map = movement::per_image(&net.graph, y, &1.into(), 1, &Walk::default()).unwrap();
    assert_eq!(map.starts, [HOLE, 0, 1, HOLE, 2, 3, HOLE, HOLE, HOLE]);
}

/// Random chains, evaluated by the map and by ONNX Runtime.
mod random {
    use std::sync::OnceLock;

    use ort::environment::Environment;
    use ort::session::Session;
    use ort::value::Tensor;
    use proptest::prelude::*;
    use prost::Message;
    use trt_opt::onnx::proto::{ModelProto, OperatorSetIdProto};

    use super::*;

    /// ONNX Runtime, loaded; these tests check nothing without it, so they fail where it is missing.
    fn runtime() -> &'static Environment {
        static LOADED: OnceLock<Environment> = OnceLock::new();
        LOADED.get_or_init(|| {
            let path = std::env::var_os("ORT_DYLIB_PATH").expect(
                "these tests need ONNX Runtime: set ORT_DYLIB_PATH to libonnxruntime.so \
                 (it is in the package that 'pip install onnxruntime' installs, in onnxruntime/capi)",
            );
            let at = path.display();
            let builder = ort::init_from(&path).unwrap_or_else(|e| panic!("cannot load ONNX Runtime from {at}: {e}"));
            let environment = builder.with_name("movement").build().unwrap_or_else(|e| panic!("ONNX Runtime: {e}"));
            environment.set_log_level(ort::logging::LogLevel::Error);
            environment
        })
    }

    /// The first output of the graph for these inputs.
    fn run(graph: &Graph, inputs: &[(Vec<i64>, Vec<f32>)]) -> (Vec<i64>, Vec<f32>) {
        let mut model = ModelProto { ir_version: Some(8), ..Default::default() };
        model.opset_import.push(OperatorSetIdProto { domain: None, version: Some(graph.opset) });
        graph.restore(&mut model);
        // ONNX Runtime looks at names only.
        model.graph.as_mut().unwrap().name = Some("chain".into());
        let mut builder = Session::builder(runtime()).unwrap();
        builder = builder.with_optimization_level(ort::session::builder::GraphOptimizationLevel::Disable).unwrap();
        let mut session = builder.with_intra_threads(1).unwrap().commit_from_memory(&model.encode_to_vec()).unwrap();
        let names: Vec<String> = graph.inputs.iter().map(|v| graph.value(*v).name.clone()).collect();
        let tensors = names.into_iter().zip(inputs).map(|(name, (shape, data))| {
            let tensor = Tensor::from_array((shape.clone(), data.clone())).unwrap();
            (name, ort::session::SessionInputValue::from(tensor))
        });
        let outputs = session.run(tensors.collect::<Vec<_>>()).unwrap();
        let (shape, data) = outputs[0].try_extract_tensor::<f32>().unwrap();
        (shape.to_vec(), data.to_vec())
    }

    /// Dice for one step; the same step always rolls the same.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, below: i64) -> i64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % below.max(1) as u64) as i64
        }
        fn axis(&mut self, from: usize, rank: usize) -> usize {
            from + self.roll((rank - from) as i64) as usize
        }
        fn shuffled(&mut self, from: i64, to: i64) -> Vec<i64> {
            let mut out: Vec<i64> = (from..to).collect();
            for i in (1..out.len()).rev() {
                out.swap(i, self.roll(i as i64 + 1) as usize);
            }
            out
        }
    }

    const MOST: i64 = 4096;

    /// `step` chooses the operator and rolls its operands. With `free` the axes from 1 on may be used, and
    /// a `Reshape` keeps images together, so that any leading axis will do.
    fn step(net: &mut Net, x: ValueId, (op, seed): (u8, u64), free: usize) -> ValueId {
        let mut dice = Dice(seed);
        let opset = net.graph.opset;
        let shape = net.shape(x);
        let rank = shape.len();
        let size = |axis: usize| shape[axis].int().unwrap();
        let known: i64 = shape.iter().filter_map(Dim::int).product();
        let sign =
            |dice: &mut Dice, axis: usize| if dice.roll(2) == 0 { axis as i64 } else { axis as i64 - rank as i64 };
        if rank <= free || known > MOST {
            return x;
        }
        match op {
            0 => {
                let mut perm: Vec<i64> = (0..free as i64).collect();
                perm.extend(dice.shuffled(free as i64, rank as i64));
                net.transpose(x, &perm)
            }
            1 | 2 => {
                let mut rest: i64 = shape[free..].iter().map(|d| d.int().unwrap()).product();
                let mut new = shape[..free].to_vec();
                for _ in 0..dice.roll(4) {
                    let divisors: Vec<i64> = (1..=rest).filter(|d| rest % d == 0).collect();
                    let d = divisors[dice.roll(divisors.len() as i64) as usize];
                    // The leading axis grows to a multiple of the batch, as windows make it.
                    if free == 1 && new.len() == 1 && dice.roll(3) == 0 {
                        new[0] = new[0].mul(&d.into()).unwrap();
                    } else {
                        new.push(d.into());
                    }
                    rest /= d;
                }
                new.push(rest.into());
                net.reshape(x, &new)
            }
            3 => {
                let (mut starts, mut ends, mut axes, mut steps) = (vec![], vec![], vec![], vec![]);
                let mut new = shape.clone();
                for axis in dice.shuffled(free as i64, rank as i64).into_iter().take(2) {
                    let axis = axis as usize;
                    let n = size(axis);
                    let (a, b) = (dice.roll(n), dice.roll(n));
                    let step: i64 = if opset < 10 { 1 } else { [1, 1, 2, 3, -1, -2][dice.roll(6) as usize] };
                    let (first, last) = if (a <= b) == (step > 0) { (a, b) } else { (b, a) };
                    let mut end = if step > 0 { last + 1 } else { last - 1 };
                    if end == n && dice.roll(2) == 0 {
                        end = i64::MAX;
                    } else if end < 0 {
                        end = i64::MIN + 1;
                    } else if end < n && dice.roll(2) == 0 {
                        end -= n;
                    }
                    starts.push(if dice.roll(2) == 0 { first } else { first - n });
                    ends.push(end);
                    axes.push(sign(&mut dice, axis));
                    steps.push(step);
                    new[axis] = Dim::Int((last - first).abs() / step.abs() + 1);
                }
                if opset < 10 {
                    let axes: Vec<i64> = axes.iter().map(|a| a.rem_euclid(rank as i64)).collect();
                    let attributes = [("starts", &starts), ("ends", &ends), ("axes", &axes)];
                    let node = attributes
                        .iter()
                        .fold(Node::new("Slice", [x]), |n, (name, v)| n.with(AttributeProto::ints(name, v)));
                    return net.push(node, &new);
                }
                let mut inputs = vec![x, net.ints(&starts), net.ints(&ends), net.ints(&axes)];
                if steps.iter().any(|s| *s != 1) || dice.roll(2) == 0 {
                    inputs.push(net.ints(&steps));
                }
                net.push(Node::new("Slice", inputs), &new)
            }
            4 => {
                let axis = dice.axis(free, rank);
                if size(axis) < 2 || opset < 10 {
                    return x;
                }
                let shift = 1 + dice.roll(size(axis) - 1);
                net.roll(x, axis, shift)
            }
            5 => {
                // Joined with itself, with a permutation of itself, or with another input.
                let axis = dice.axis(free, rank);
                let other = match dice.roll(3) {
                    0 => x,
                    1 => {
                        let list: Vec<i64> = dice.shuffled(0, size(axis));
                        net.gather(x, axis, &[list.len() as i64], &list)
                    }
                    _ if free == 0 => {
                        let mut other = shape.clone();
                        other[axis] = (1 + dice.roll(3)).into();
                        let name = net.graph.fresh_name("z");
                        net.input(&name, &other)
                    }
                    _ => x,
                };
                let parts = if dice.roll(2) == 0 { [x, other] } else { [other, x] };
                net.concat(&parts, axis)
            }
            6 => {
                let widths: Vec<(i64, i64)> =
                    (0..rank)
                        .map(|axis| {
                            if axis < free { (0, 0) } else { (dice.roll(3), dice.roll(4) - i64::from(size(axis) > 1)) }
                        })
                        .collect();
                let mut new = shape.clone();
                for axis in free..rank {
                    new[axis] = Dim::Int(size(axis) + widths[axis].0 + widths[axis].1);
                }
                let list = |w: &[(i64, i64)]| {
                    [w.iter().map(|w| w.0).collect::<Vec<_>>(), w.iter().map(|w| w.1).collect()].concat()
                };
                if opset < 11 {
                    return net.push(Node::new("Pad", [x]).with(AttributeProto::ints("pads", &list(&widths))), &new);
                }
                if opset >= 18 && dice.roll(2) == 0 {
                    let axes = dice.shuffled(free as i64, rank as i64);
                    let widths: Vec<(i64, i64)> = axes.iter().map(|a| widths[*a as usize]).collect();
                    let (pads, axes) = (net.ints(&list(&widths)), net.ints(&axes));
                    let mut node = Node::new("Pad", [x, pads]);
                    node.inputs.extend([None, Some(axes)]);
                    return net.push(node, &new);
                }
                let pads = net.ints(&list(&widths));
                net.push(Node::new("Pad", [x, pads]), &new)
            }
            7 => {
                let axis = dice.axis(free, rank);
                let index_shape =
                    [vec![], vec![1 + dice.roll(4)], vec![2, 1 + dice.roll(3)]][dice.roll(3) as usize].clone();
                let count: i64 = index_shape.iter().product();
                let n = size(axis);
                // Negative indices came with opset 11.
                let low = if opset < 11 { 0 } else { -n };
                let values: Vec<i64> = (0..count).map(|_| low + dice.roll(n - low)).collect();
                net.gather(x, axis, &index_shape, &values)
            }
            8 => {
                let axis = dice.axis(free, rank);
                let n = size(axis);
                if n < 2 {
                    return x;
                }
                let at = 1 + dice.roll(n - 1);
                let mut sizes = vec![at, n - at];
                let mut node = Node::new("Split", [x]).with(AttributeProto::int("axis", sign(&mut dice, axis)));
                if opset >= 18 && dice.roll(2) == 0 {
                    sizes = vec![(n + 1) / 2, n / 2];
                    node.set(AttributeProto::int("num_outputs", 2));
                } else if opset >= 13 {
                    let split = net.ints(&sizes);
                    node.inputs.push(Some(split));
                } else {
                    node.set(AttributeProto::ints("split", &sizes));
                }
                let with = |n: i64| {
                    let mut s = shape.clone();
                    s[axis] = n.into();
                    s
                };
                let outputs = net.outputs(node, &[&with(sizes[0]), &with(sizes[1])]);
                outputs[dice.roll(2) as usize]
            }
            9 => {
                let ones: Vec<i64> = (free..rank).filter(|a| size(*a) == 1).map(|a| a as i64).collect();
                if ones.is_empty() {
                    return x;
                }
                let axes = &ones[..1 + dice.roll(ones.len() as i64) as usize];
                let keep = (0..rank).filter(|a| !axes.contains(&(*a as i64)));
                let new: Vec<Dim> = keep.map(|a| shape[a].clone()).collect();
                with_axes(net, "Squeeze", x, axes, &new)
            }
            10 => {
                if rank >= 6 {
                    return x;
                }
                let at = free + dice.roll((rank - free) as i64 + 1) as usize;
                let mut new = shape.clone();
                new.insert(at, 1.into());
                with_axes(net, "Unsqueeze", x, &[at as i64], &new)
            }
            11 => {
                let mut new = shape.clone();
                for d in new.iter_mut().skip(free).filter(|d| d.int() == Some(1)) {
                    *d = (1 + dice.roll(3)).into();
                }
                if free == 0 && dice.roll(2) == 0 {
                    new.insert(0, 2.into());
                }
                // 1 keeps an axis, so the leading one may be of any size.
                let target: Vec<i64> = new.iter().map(|d| d.int().unwrap_or(1)).collect();
                let target = net.ints(&target);
                net.push(Node::new("Expand", [x, target]), &new)
            }
            12 => {
                let repeats: Vec<i64> =
                    (0..rank).map(|axis| if axis < free { 1 } else { 1 + i64::from(dice.roll(4) == 0) }).collect();
                let new: Vec<Dim> = shape.iter().zip(&repeats).map(|(d, r)| d.mul(&(*r).into()).unwrap()).collect();
                let repeats = net.ints(&repeats);
                net.push(Node::new("Tile", [x, repeats]), &new)
            }
            13 if free == 0 => {
                let axis = dice.axis(0, rank + 1);
                let new = [Dim::product(&shape[..axis]).unwrap(), Dim::product(&shape[axis..]).unwrap()];
                net.push(Node::new("Flatten", [x]).with(AttributeProto::int("axis", axis as i64)), &new)
            }
            14 if rank == 4 => {
                let [c, h, w] = [1, 2, 3].map(size);
                let node = |op, mode: &str| {
                    let node = Node::new(op, [x]).with(AttributeProto::int("blocksize", 2));
                    if mode.is_empty() { node } else { node.with(AttributeProto::string("mode", mode)) }
                };
                if c % 4 == 0 && dice.roll(2) == 0 {
                    let mode = if opset < 11 { "" } else { ["", "DCR", "CRD"][dice.roll(3) as usize] };
                    let new = [shape[0].clone(), (c / 4).into(), (2 * h).into(), (2 * w).into()];
                    net.push(node("DepthToSpace", mode), &new)
                } else if h % 2 == 0 && w % 2 == 0 && opset >= 13 {
                    let new = [shape[0].clone(), (4 * c).into(), (h / 2).into(), (w / 2).into()];
                    net.push(node("SpaceToDepth", ""), &new)
                } else {
                    x
                }
            }
            15 if free == 0 && opset >= 11 => {
                let depth = 1 + dice.roll(rank.min(2) as i64) as usize;
                let count = 1 + dice.roll(4);
                let values: Vec<i64> = (0..count)
                    .flat_map(|_| (0..depth).map(|a| dice.roll(2 * size(a)) - size(a)).collect::<Vec<_>>())
                    .collect();
                let index = net.index(&[count, depth as i64], &values);
                let new = [&[Dim::Int(count)], &shape[depth..]].concat();
                net.push(Node::new("GatherND", [x, index]), &new)
            }
            16 if free == 0 && opset >= 11 => {
                let rows: Vec<i64> = dice.shuffled(0, size(0));
                let count = 1 + dice.roll(size(0));
                let index = net.index(&[count, 1], &rows[..count as usize]);
                let name = net.graph.fresh_name("u");
                let updates = net.input(&name, &[&[Dim::Int(count)], &shape[1..]].concat());
                net.push(Node::new("ScatterND", [x, index, updates]), &shape)
            }
            _ => net.push(Node::new("Identity", [x]), &shape),
        }
    }

    fn with_axes(net: &mut Net, op: &str, x: ValueId, axes: &[i64], shape: &[Dim]) -> ValueId {
        if net.graph.opset < 13 {
            return net.push(Node::new(op, [x]).with(AttributeProto::ints("axes", axes)), shape);
        }
        let axes = net.ints(axes);
        net.push(Node::new(op, [x, axes]), shape)
    }

    /// Inputs whose elements are 1, 2, 3, ... through all of them.
    fn numbered(graph: &Graph, order: &[ValueId], batch: i64) -> Vec<(Vec<i64>, Vec<f32>)> {
        let shape = |v: &ValueId| -> Vec<i64> {
            graph.shape(*v).unwrap().iter().map(|d| d.eval(|_| Some(batch)).unwrap()).collect()
        };
        let mut first = 1;
        let mut data = std::collections::HashMap::new();
        for v in order {
            let shape = shape(v);
            let count: i64 = shape.iter().product();
            data.insert(*v, (shape, (first..first + count).map(|i| i as f32).collect::<Vec<_>>()));
            first += count;
        }
        let unread = |v: &ValueId| {
            let shape = shape(v);
            let count: i64 = shape.iter().product();
            (shape, vec![-1.0; count as usize])
        };
        graph.inputs.iter().map(|v| data.get(v).cloned().unwrap_or_else(|| unread(v))).collect()
    }

    /// The places of a tensor of these sizes in the order of its transposition.
    fn transposed(sizes: &[i64], perm: &[usize]) -> Vec<i64> {
        let step = |axis: usize| sizes[axis + 1..].iter().product::<i64>();
        perm.iter().fold(vec![0], |places, &axis| {
            places.iter().flat_map(|place| (0..sizes[axis]).map(move |i| place + i * step(axis))).collect()
        })
    }

    fn opset() -> impl Strategy<Value = i64> {
        prop::sample::select(vec![9, 11, 13, 17, 18, 20])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_map_is_what_onnx_runtime_computes(
            opset in opset(),
            shape in prop::collection::vec(1i64..9, 1..5),
            steps in prop::collection::vec((0u8..17, any::<u64>()), 1..9),
        ) {
            let mut net = Net::new(opset);
            let mut x = net.input("x", &dims(&shape));
            for s in steps {
                x = step(&mut net, x, s, 0);
            }
            let x = net.push(Node::new("Identity", [x]), &net.shape(x));
            net.graph.outputs = vec![x];
            let map = net.trace(x).expect("small static chains have a map");
            let order: Vec<ValueId> = map.sources().iter().map(|s| s.value).collect();
            prop_assert!(order.iter().all(|v| net.graph.is_input(*v)), "a movement was not recognised");
            let (shape, data) = run(&net.graph, &numbered(&net.graph, &order, 1));
            prop_assert_eq!(&shape, &map.shape());
            let found = map.addresses().unwrap();
            let expected: Vec<i64> = data.iter().map(|v| if *v == 0.0 { HOLE } else { *v as i64 - 1 }).collect();
            prop_assert_eq!(&found, &expected);

            // The strided view, where there is one, says the same.
            if let Some(affine) = map.affine() {
                let base = map.sources().iter().find(|s| s.value == affine.source).unwrap().base;
                let strides = affine.strides(&[expected.len() as i64]);
                if let Some(strides) = strides {
                    let view: Vec<i64> = (0..expected.len() as i64).map(|i| base + affine.offset + i * strides[0]).collect();
                    prop_assert_eq!(&view, &expected);
                }
                if let Some((sizes, perm)) = affine.permutation() {
                    let all: Vec<i64> = transposed(&sizes, &perm).iter().map(|at| base + at).collect();
                    prop_assert_eq!(&all, &expected);
                }
            } else {
                let linear = expected.windows(2).all(|w| w[0] != HOLE && w[1] == w[0] + 1);
                prop_assert!(!linear || expected[0] == HOLE, "a run was not found to be affine");
            }
        }

        #[test]
        fn the_map_of_one_image_holds_for_other_batches(
            opset in opset(),
            shape in prop::collection::vec(1i64..9, 1..4),
            steps in prop::collection::vec((0u8..15, any::<u64>()), 1..9),
        ) {
            let mut net = Net::new(opset);
            let input = net.input("x", &[vec![batch()], dims(&shape)].concat());
            let mut x = input;
            for s in steps {
                x = step(&mut net, x, s, 1);
            }
            let x = net.push(Node::new("Identity", [x]), &net.shape(x));
            net.graph.outputs = vec![x];
            let map = movement::per_image(&net.graph, x, &batch(), 1, &Walk::default());
            let (_, data) = run(&net.graph, &numbered(&net.graph, &[input], 5));
            let Some(map) = map else {
                // Nothing but holes has no source to be a map of.
                prop_assert!(data.iter().all(|v| *v == 0.0), "not seen to act per image");
                return Ok(());
            };
            let one = |image: i64| map.starts.iter().map(move |&s| if s == HOLE { 0 } else { image * map.image + s + 1 });
            let expected: Vec<i64> = (0..5).flat_map(one).collect();
            let found: Vec<i64> = data.iter().map(|v| *v as i64).collect();
            prop_assert_eq!(&found, &expected);

            if let Some(found) = movement::permutation(&net.graph, x, &Walk::default()) {
                let sizes: Vec<i64> = found.sizes.iter().map(|d| d.eval(|_| Some(5)).unwrap()).collect();
                let all: Vec<i64> = transposed(&sizes, &found.perm).iter().map(|at| at + 1).collect();
                prop_assert_eq!(all, expected);
            }
        }
    }
}

/// Hand-made fixtures, by the class of what their output moves.
mod spellings {
    use trt_opt::analysis::infer::infer;
    use trt_opt::analysis::movement::classify::classify;
    use trt_opt::analysis::movement::{Class, Windows};
    use trt_opt::onnx;

    use super::*;

    fn graph(name: &str) -> Graph {
        let path = format!("{}/tests/fixtures/spelling_{name}.onnx", env!("CARGO_MANIFEST_DIR"));
        let mut model = onnx::load(path.as_ref()).unwrap();
        let mut graph = Graph::take(&mut model.proto).unwrap();
        infer(&mut graph, &|_, _| None).unwrap();
        graph
    }

    fn class_of(name: &str) -> Option<Class> {
        let graph = graph(name);
        classify(&graph, graph.outputs[0]).map(|(source, class)| {
            assert_eq!(source, graph.inputs[0]);
            class
        })
    }

    fn windows(grid: [i64; 2], shift: [i64; 2], pad_after_roll: bool) -> Windows {
        Windows { grid, window: [4, 4], shift, pad_after_roll }
    }

    #[test]
    fn rolls() {
        let rolls = [
            ("roll_ts", [2, 2]),
            ("roll_ts_back", [6, 6]),
            ("roll_dy", [2, 2]),
            ("roll_dy_back", [6, 6]),
            ("roll_between_no_ops", [2, 2]),
            ("roll_gather", [2, 2]),
            ("roll_split", [2, 2]),
            ("roll_uneven", [3, 1]),
        ];
        for (name, shift) in rolls {
            assert_eq!(class_of(name), Some(Class::CyclicShift { grid: [8, 8], shift }), "{name}");
        }
        assert_eq!(class_of("not_roll_repeated_rows"), None);
        assert_eq!(class_of("not_roll_across_images"), None);
    }

    #[test]
    fn partitions_and_reverses() {
        use Class::{WindowPartition, WindowReverse};
        let (square, tall) = ([8, 8], [4, 12]);
        for (name, class) in [
            ("window_partition_ts", WindowPartition(windows(square, [0, 0], false))),
            ("window_partition_dy", WindowPartition(windows(square, [0, 0], false))),
            ("window_partition_tokens", WindowPartition(windows(square, [0, 0], false))),
            ("window_partition_slices", WindowPartition(windows(square, [0, 0], false))),
            ("window_shift_partition", WindowPartition(windows(square, [2, 2], false))),
            ("window_shift_partition_wide", WindowPartition(windows(tall, [0, 2], false))),
            ("window_pad_then_roll", WindowPartition(windows([6, 6], [2, 2], false))),
            ("window_roll_then_pad", WindowPartition(windows([6, 6], [2, 2], true))),
            ("window_reverse", WindowReverse(windows(square, [0, 0], false))),
            ("window_reverse_unshift", WindowReverse(windows(square, [2, 2], false))),
            ("window_reverse_crop", WindowReverse(windows([6, 6], [0, 0], false))),
        ] {
            assert_eq!(class_of(name), Some(class), "{name}");
        }
        for name in ["columns_first", "transposed_tokens", "dilated"] {
            let class = class_of(&format!("not_window_{name}"));
            assert!(!matches!(class, Some(WindowPartition(_) | WindowReverse(_))), "{name}: {class:?}");
        }
    }

    #[test]
    fn merges() {
        // The norm after the merge is not movement: look at what goes into it.
        let class_of = |name: &str| {
            let graph = graph(name);
            let (_, norm) = graph.nodes().find(|(_, n)| n.is("LayerNormalization")).unwrap();
            classify(&graph, norm.input(0).unwrap()).map(|(_, class)| class)
        };
        let swin = Class::PatchMerge { grid: [8, 8], order: [0, 2, 1, 3] };
        for name in ["merge_slices", "merge_slices_both_axes", "merge_slices_tokens", "merge_reshape"] {
            assert_eq!(class_of(name).as_ref(), Some(&swin), "{name}");
        }
        let rows = Class::PatchMerge { grid: [8, 8], order: [0, 1, 2, 3] };
        assert_eq!(class_of("merge_row_order"), Some(rows));
        for name in ["repeated_quadrant", "channels_interleaved"] {
            let class = class_of(&format!("not_merge_{name}"));
            assert!(!matches!(class, Some(Class::PatchMerge { .. })), "{name}: {class:?}");
        }
    }

    #[test]
    fn unfolds() {
        for name in ["tnt_unfold_gather", "tnt_unfold_reshape"] {
            assert_eq!(class_of(name), Some(Class::Unfold { kernel: [4, 4] }), "{name}");
        }
    }

    #[test]
    fn what_comes_back_as_it_was_is_the_identity() {
        let graph = graph("not_roll_identity");
        let (_, tanh) = graph.nodes().find(|(_, n)| n.is("Tanh")).unwrap();
        let class = classify(&graph, tanh.input(0).unwrap()).map(|(_, class)| class);
        assert_eq!(class, Some(Class::Identity));
    }
}
