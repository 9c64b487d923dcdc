//! Index maps of data movement: head splits, rolls, windows by hand, and random chains against ONNX Runtime.

use trt_opt::analysis::movement::{self, HOLE, Map};
use trt_opt::ir::{Dim, Graph, Node, Value, ValueId};
use trt_opt::onnx::DType;
use trt_opt::onnx::proto::{AttributeProto, TensorProto};

/// A graph under construction.
struct Net {
    graph: Graph,
}

fn dims(sizes: &[i64]) -> Vec<Dim> {
    sizes.iter().map(|&d| Dim::Int(d)).collect()
}

fn batch() -> Dim {
    Dim::symbol("batch")
}

impl Net {
    fn new(opset: i64) -> Self {
        let mut graph = Graph::default();
        graph.opset = opset;
        Self { graph }
    }

    fn input(&mut self, name: &str, shape: &[Dim]) -> ValueId {
        let id = self.graph.add_value(Value::new(name, Some(DType::F32), Some(shape.to_vec())));
        self.graph.inputs.push(id);
        id
    }

    fn ints(&mut self, values: &[i64]) -> ValueId {
        self.graph.add_initializer("ints", TensorProto::from_i64("ints", &[values.len() as i64], values))
    }

    fn index(&mut self, shape: &[i64], values: &[i64]) -> ValueId {
        self.graph.add_initializer("index", TensorProto::from_i64("index", shape, values))
    }

    fn push(&mut self, node: Node, shape: &[Dim]) -> ValueId {
        self.outputs(node, &[shape])[0]
    }

    fn outputs(&mut self, mut node: Node, shapes: &[&[Dim]]) -> Vec<ValueId> {
        let add = |shape: &&[Dim]| self.graph.add_value(Value::new("y", Some(DType::F32), Some(shape.to_vec())));
        let outputs: Vec<ValueId> = shapes.iter().map(add).collect();
        node.outputs = outputs.iter().copied().map(Some).collect();
        self.graph.add_node(node);
        outputs
    }

    fn reshape(&mut self, x: ValueId, shape: &[Dim]) -> ValueId {
        let target: Vec<i64> = shape.iter().map(|d| d.int().unwrap_or(-1)).collect();
        let target = self.ints(&target);
        self.push(Node::new("Reshape", [x, target]), shape)
    }

    fn transpose(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        let shape = self.shape(x);
        let shape: Vec<Dim> = perm.iter().map(|&p| shape[p as usize].clone()).collect();
        self.push(Node::new("Transpose", [x]).with(AttributeProto::ints("perm", perm)), &shape)
    }

    fn gather(&mut self, x: ValueId, axis: usize, index_shape: &[i64], values: &[i64]) -> ValueId {
        let mut shape = self.shape(x);
        shape.splice(axis..=axis, dims(index_shape));
        let index = self.index(index_shape, values);
        self.push(Node::new("Gather", [x, index]).with(AttributeProto::int("axis", axis as i64)), &shape)
    }

    fn slice(&mut self, x: ValueId, axis: usize, start: i64, end: i64, count: i64) -> ValueId {
        let mut shape = self.shape(x);
        shape[axis] = Dim::Int(count);
        let inputs = [x, self.ints(&[start]), self.ints(&[end]), self.ints(&[axis as i64])];
        self.push(Node::new("Slice", inputs), &shape)
    }

    fn concat(&mut self, parts: &[ValueId], axis: usize) -> ValueId {
        let mut shape = self.shape(parts[0]);
        for part in &parts[1..] {
            shape[axis] = shape[axis].add(&self.shape(*part)[axis]).unwrap();
        }
        let node = Node::new("Concat", parts.iter().copied()).with(AttributeProto::int("axis", axis as i64));
        self.push(node, &shape)
    }

    fn roll(&mut self, x: ValueId, axis: usize, shift: i64) -> ValueId {
        let size = self.shape(x)[axis].int().unwrap();
        let tail = self.slice(x, axis, shift, i64::MAX, size - shift);
        let head = self.slice(x, axis, 0, shift, shift);
        self.concat(&[tail, head], axis)
    }

    fn shape(&self, x: ValueId) -> Vec<Dim> {
        self.graph.shape(x).unwrap().to_vec()
    }

    fn trace(&self, x: ValueId) -> Option<Map> {
        movement::trace(&self.graph, x, &|_| None, &|_| false)
    }
}

fn no_stop(_: ValueId) -> bool {
    false
}

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
            let found = movement::strided(&net.graph, q, &sizes, &no_stop).unwrap();
            assert_eq!((found.source, found.offset), (qkv, part * h * d));
            assert!(found.has(&[n * 3 * h * d, d, 3 * h * d, 1]), "{found:?}");

            // scaled_dot_product_attention transposes K through three axes.
            let rows = leading.mul(&h.into()).unwrap();
            let k = net.reshape(q, &[rows.clone(), n.into(), d.into()]);
            let k = net.transpose(k, &[0, 2, 1]);
            let sizes = [leading.clone(), h.into(), d.into(), n.into()];
            let found = movement::strided(&net.graph, k, &sizes, &no_stop).unwrap();
            assert!(found.has(&[n * 3 * h * d, d, 1, 3 * h * d]), "{found:?}");

            // Merged to one axis, images and heads have no common stride unless there is one image.
            let sizes = [rows, d.into(), n.into()];
            let found = movement::strided(&net.graph, k, &sizes, &no_stop);
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
    let found = movement::strided(&net.graph, x, &sizes, &no_stop).unwrap();
    assert_eq!((found.source, found.offset), (heads, 0));
    assert!(found.has(&[320, 8, 80, 1]));
    // Stopping half way makes that value the source.
    let region = movement::region(&net.graph, x, &|v| v != heads).unwrap();
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
        let map = movement::per_image(&net.graph, y, &b, c, &no_stop).unwrap();
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

#[test]
fn rolling_across_images_is_not_per_image() {
    let mut net = Net::new(17);
    let x = net.input("x", &dims(&[2, 4, 4, 3]));
    let y = net.roll(x, 0, 1);
    assert!(movement::per_image(&net.graph, y, &2.into(), 3, &no_stop).is_none());
    let y = net.roll(x, 1, 1);
    assert!(movement::per_image(&net.graph, y, &2.into(), 3, &no_stop).is_some());
}

#[test]
fn an_open_batch_may_not_be_cut() {
    let mut net = Net::new(17);
    let x = net.input("x", &[batch(), 4.into()]);
    let inputs = [x, net.ints(&[0]), net.ints(&[3]), net.ints(&[0])];
    let y = net.push(Node::new("Slice", inputs), &[batch(), 4.into()]);
    let region = movement::region(&net.graph, y, &no_stop).unwrap();
    assert_eq!(region.sources, [y]);
    let inputs = [x, net.ints(&[0]), net.ints(&[i64::MAX]), net.ints(&[0])];
    let y = net.push(Node::new("Slice", inputs), &[batch(), 4.into()]);
    let region = movement::region(&net.graph, y, &no_stop).unwrap();
    assert_eq!(region.sources, [x]);
}

#[test]
fn padding_is_holes() {
    let mut net = Net::new(17);
    let x = net.input("x", &dims(&[1, 2, 2]));
    let inputs = [x, net.ints(&[0, 0, 1, 0, 1, 0])];
    let y = net.push(Node::new("Pad", inputs), &dims(&[1, 3, 3]));
    let map = movement::per_image(&net.graph, y, &1.into(), 1, &no_stop).unwrap();
    assert_eq!(map.starts, [HOLE, 0, 1, HOLE, 2, 3, HOLE, HOLE, HOLE]);
}
