use super::*;
use crate::ir::Value;
use crate::onnx::proto::AttributeProto;

struct Net {
    graph: Graph,
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
        self.graph.add_initializer("c", TensorProto::from_i64("", &[values.len() as i64], values))
    }

    fn scalar(&mut self, value: i64) -> ValueId {
        self.graph.add_initializer("c", TensorProto::from_i64("", &[], &[value]))
    }

    fn float(&mut self, value: f32) -> ValueId {
        self.graph.add_initializer("c", TensorProto::from_f32("", &[], &[value]))
    }

    fn weight(&mut self, shape: &[i64]) -> ValueId {
        let count = shape.iter().product::<i64>() as usize;
        self.graph.add_initializer("w", TensorProto::from_f32("", shape, &vec![0.5; count]))
    }

    fn op(&mut self, op: &str, inputs: &[ValueId], attributes: &[AttributeProto]) -> ValueId {
        self.ops(op, inputs, attributes, 1)[0]
    }

    fn ops(&mut self, op: &str, inputs: &[ValueId], attributes: &[AttributeProto], count: usize) -> Vec<ValueId> {
        let outputs: Vec<ValueId> =
            (0..count).map(|_| self.graph.add_value(Value::new(&op.to_lowercase(), None, None))).collect();
        let mut node = Node::new(op, inputs.iter().copied());
        node.attributes = attributes.to_vec();
        node.outputs = outputs.iter().copied().map(Some).collect();
        self.graph.add_node(node);
        outputs
    }

    fn infer(&mut self) {
        infer(&mut self.graph, &|_, _| None).unwrap();
    }

    fn text(&self, value: ValueId) -> String {
        self.graph.shape(value).map_or("?".into(), shape_text)
    }

    fn contents(&self, value: ValueId) -> String {
        let ints = self.graph.value(value).ints.as_ref().expect("contents are not known");
        let text = ints.values.iter().map(|v| v.as_ref().map_or("?".to_owned(), Dim::to_string));
        text.collect::<Vec<_>>().join(" ")
    }
}

fn batch() -> Dim {
    Dim::symbol("batch")
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto::int(name, value)
}

/// `int(windows.shape[0] / (H * W / 7 / 7))`, as the original Swin writes it, gives the batch back.
#[test]
fn the_float_detour_of_window_reverse() {
    let mut n = Net::new(17);
    let x = n.input("x", &[batch(), 56.into(), 56.into(), 96.into()]);
    let target = n.ints(&[0, 8, 7, 8, 7, 96]);
    let y = n.op("Reshape", &[x, target], &[]);
    let y = n.op("Transpose", &[y], &[AttributeProto::ints("perm", &[0, 1, 3, 2, 4, 5])]);
    let target = n.ints(&[-1, 49, 96]);
    let windows = n.op("Reshape", &[y, target], &[]);
    let shape = n.op("Shape", &[windows], &[]);
    let zero = n.scalar(0);
    let count = n.op("Gather", &[shape, zero], &[]);
    let count = n.op("Cast", &[count], &[int("to", 1)]);
    let per_image = n.float(64.0);
    let images = n.op("Div", &[count, per_image], &[]);
    let images = n.op("Floor", &[images], &[]);
    let images = n.op("Cast", &[images], &[int("to", 7)]);
    let axis = n.ints(&[0]);
    let images = n.op("Unsqueeze", &[images, axis], &[]);
    let rest = n.ints(&[8, 8, 7, 7, -1]);
    let target = n.op("Concat", &[images, rest], &[int("axis", 0)]);
    let back = n.op("Reshape", &[windows, target], &[]);
    n.infer();
    assert_eq!(n.text(windows), "[64*batch, 49, 96]");
    assert_eq!(n.contents(target), "batch 8 8 7 7 -1");
    assert_eq!(n.text(back), "[batch, 8, 8, 7, 7, 96]");
}

#[test]
fn an_inexact_quotient_is_given_up() {
    let mut n = Net::new(17);
    let x = n.input("x", &[batch(), 10.into()]);
    let shape = n.op("Shape", &[x], &[int("end", 1)]);
    let three = n.ints(&[3]);
    let third = n.op("Div", &[shape, three], &[]);
    let target = n.op("Concat", &[third, three], &[int("axis", 0)]);
    let y = n.op("ConstantOfShape", &[target], &[]);
    let rest = n.op("Mod", &[shape, three], &[]);
    let ten = n.ints(&[10]);
    let tens = n.op("Mul", &[shape, ten], &[]);
    let seven = n.ints(&[7]);
    let more = n.op("Add", &[tens, seven], &[]);
    let five = n.ints(&[5]);
    let two = n.op("Mod", &[more, five], &[]);
    n.infer();
    assert_eq!(n.graph.value(third).ints, None);
    assert_eq!(n.contents(target), "? 3");
    assert_eq!(n.text(y), "[?constantofshape.0, 3]");
    assert_eq!(n.graph.value(rest).ints, None);
    assert_eq!(n.contents(more), "10*batch + 7");
    assert_eq!(n.contents(two), "2");
}

#[test]
fn comparisons_know_that_sizes_are_not_negative() {
    let mut n = Net::new(17);
    let x = n.input("x", &[batch(), 4.into()]);
    let shape = n.op("Shape", &[x], &[]);
    let minus = n.ints(&[-1, -1]);
    let open = n.op("Equal", &[shape, minus], &[]);
    let ones = n.ints(&[1, 1]);
    let target = n.op("Where", &[open, ones, shape], &[]);
    let unknown = n.op("Equal", &[shape, ones], &[]);
    let most = n.op("Max", &[shape, minus], &[]);
    let least = n.op("Min", &[shape, ones], &[]);
    n.infer();
    assert_eq!(n.contents(open), "0 0");
    assert_eq!(n.contents(target), "batch 4");
    assert_eq!(n.contents(unknown), "? 0");
    assert_eq!(n.contents(most), "batch 4");
    // A batch of 0 or 1 would be the least.
    assert_eq!(n.contents(least), "? 1");
}

/// Torch's TorchScript exporter computes pads by ConstantOfShape, Concat, Reshape, Slice backwards, Transpose.
#[test]
fn pads_turned_around_in_two_dimensions() {
    let mut n = Net::new(17);
    let x = n.input("x", &[batch(), 5.into(), 6.into()]);
    let given = n.ints(&[0, 3, 1, 2]);
    let more = n.ints(&[2]);
    let zeros =
        n.op("ConstantOfShape", &[more], &[AttributeProto::tensor("value", TensorProto::from_i64("", &[1], &[0]))]);
    let all = n.op("Concat", &[given, zeros], &[int("axis", 0)]);
    let pairs = n.ints(&[-1, 2]);
    let all = n.op("Reshape", &[all, pairs], &[]);
    let (start, end, axis, step) = (n.ints(&[-1]), n.ints(&[i64::MIN]), n.ints(&[0]), n.ints(&[-1]));
    let all = n.op("Slice", &[all, start, end, axis, step], &[]);
    let all = n.op("Transpose", &[all], &[AttributeProto::ints("perm", &[1, 0])]);
    let flat = n.ints(&[-1]);
    let pads = n.op("Reshape", &[all, flat], &[]);
    let y = n.op("Pad", &[x, pads], &[]);
    n.infer();
    assert_eq!(n.contents(pads), "0 1 0 0 2 3");
    assert_eq!(n.text(y), "[batch, 8, 9]");
}

#[test]
fn reshape_targets() {
    for (target, allow_zero, expected) in [
        (&[0i64, 12, 5][..], 0, "[batch, 12, 5]"),
        (&[-1, 5], 0, "[12*batch, 5]"),
        (&[0, -1], 0, "[batch, 60]"),
        (&[-1], 0, "[60*batch]"),
        (&[2, -1], 0, "[2, 30*batch]"),
        // 7 does not divide 60 batches for sure.
        (&[7, -1], 0, "[7, ?reshape.1]"),
        (&[0, 0, 0, 1], 0, "[batch, 3, 4, 1]"),
        (&[-1, 3, 20], 1, "[batch, 3, 20]"),
    ] {
        let mut n = Net::new(17);
        let x = n.input("x", &[batch(), 3.into(), 4.into(), 5.into()]);
        let target = n.ints(target);
        let y = n.op("Reshape", &[x, target], &[int("allowzero", allow_zero)]);
        n.infer();
        assert_eq!(n.text(y), expected);
    }
}

#[test]
fn slices_of_a_symbolic_axis() {
    for (start, end, step, expected) in [
        (0, i64::MAX, 1, "[4*batch]"),
        (0, -1, 1, "[?slice.0]"),
        (1, i64::MAX, 1, "[?slice.0]"),
        (0, i64::MAX, 2, "[2*batch]"),
        (0, i64::MAX, 3, "[?slice.0]"),
        (-1, i64::MIN, -1, "[4*batch]"),
        (0, 0, 1, "[0]"),
    ] {
        let mut n = Net::new(17);
        let size = batch().mul(&4.into()).unwrap();
        let x = n.input("x", &[size]);
        let (start, end, axis, step) = (n.ints(&[start]), n.ints(&[end]), n.ints(&[0]), n.ints(&[step]));
        let y = n.op("Slice", &[x, start, end, axis, step], &[]);
        n.infer();
        assert_eq!(n.text(y), expected);
    }
}

#[test]
fn ranges_and_slices_count_as_onnx_does() {
    assert_eq!(slice_range(10, 2, 9, 3), Some((2, 3)));
    assert_eq!(slice_range(10, -1, i64::MIN, -1), Some((9, 10)));
    assert_eq!(slice_range(10, 8, 1, -3), Some((8, 3)));
    assert_eq!(slice_range(10, i64::MAX, i64::MIN, i64::MIN), Some((9, 1)));
    assert_eq!(slice_range(0, -1, i64::MIN, -1), Some((-1, 0)));
    assert_eq!(slice_range(5, 3, 3, 1), Some((3, 0)));
    assert_eq!(slice_range(5, 0, 5, 0), None);
    for (bounds, count) in [([0, 7, 2], 4), ([5, -4, -3], 3), ([3, 3, 1], 0), ([4, 1, 1], 0), ([0, -6, -3], 2)] {
        let mut n = Net::new(17);
        let inputs = bounds.map(|b| n.scalar(b));
        let y = n.op("Range", &inputs, &[]);
        n.infer();
        assert_eq!(n.text(y), format!("[{count}]"), "{bounds:?}");
    }
}

#[test]
fn layers_of_a_network() {
    let mut n = Net::new(17);
    let x = n.input("x", &[batch(), 3.into(), 224.into(), 224.into()]);
    let w = n.weight(&[8, 3, 4, 4]);
    let strides = AttributeProto::ints("strides", &[4, 4]);
    let y = n.op("Conv", &[x, w], &[strides]);
    let w = n.weight(&[8, 1, 5, 5]);
    let same = n.op("Conv", &[y, w], &[AttributeProto::ints("pads", &[2; 4]), int("group", 8)]);
    let pooled = n.op("GlobalAveragePool", &[same], &[]);
    let flat = n.op("Flatten", &[pooled], &[]);
    let w = n.weight(&[10, 8]);
    let b = n.weight(&[10]);
    let logits = n.op("Gemm", &[flat, w, b], &[int("transB", 1)]);
    let halved = AttributeProto::ints("strides", &[2, 2]);
    let ceil = n.op("MaxPool", &[y], &[AttributeProto::ints("kernel_shape", &[3, 3]), halved, int("ceil_mode", 1)]);
    n.infer();
    assert_eq!(n.text(y), "[batch, 8, 56, 56]");
    assert_eq!(n.text(same), "[batch, 8, 56, 56]");
    assert_eq!(n.text(pooled), "[batch, 8, 1, 1]");
    assert_eq!(n.text(flat), "[batch, 8]");
    assert_eq!(n.text(logits), "[batch, 10]");
    assert_eq!(n.text(ceil), "[batch, 8, 28, 28]");
    assert_eq!(n.graph.dtype(logits), Some(DType::F32));
}

#[test]
fn products_broadcast() {
    let b = || Dim::symbol("b");
    for (x, y, expected) in [
        (vec![b(), 4.into(), 5.into()], vec![5.into(), 6.into()], "[b, 4, 6]"),
        (vec![5.into()], vec![b(), 5.into(), 6.into()], "[b, 6]"),
        (vec![b(), 1.into(), 4.into(), 5.into()], vec![3.into(), 5.into(), 6.into()], "[b, 3, 4, 6]"),
        (vec![5.into()], vec![5.into()], "[]"),
        (vec![4.into(), 5.into()], vec![7.into(), 6.into()], "?"),
        (
            vec![b(), 4.into(), 5.into()],
            vec![Dim::symbol("c"), 5.into(), 6.into()],
            // Equal or not, the symbols do not say.
            "[?matmul.0, 4, 6]",
        ),
    ] {
        let mut n = Net::new(17);
        let (x, y) = (n.input("x", &x), n.input("y", &y));
        let z = n.op("MatMul", &[x, y], &[]);
        n.infer();
        assert_eq!(n.text(z), expected);
    }
    for (equation, expected) in [
        ("bhid,bhjd->bhij", "[b, 3, 4, 6]"),
        ("b h i d, b h j d -> b h i j", "[b, 3, 4, 6]"),
        ("...id,...jd->...ij", "[b, 3, 4, 6]"),
        ("bhid,bhjd", "[4, 6]"),
        ("bhid,bhjd->bx", "?"),
    ] {
        let mut n = Net::new(17);
        let x = n.input("x", &[b(), 3.into(), 4.into(), 5.into()]);
        let y = n.input("y", &[b(), 3.into(), 6.into(), 5.into()]);
        let z = n.op("Einsum", &[x, y], &[AttributeProto::string("equation", equation)]);
        n.infer();
        assert_eq!(n.text(z), expected, "{equation}");
    }
}

#[test]
fn parts_of_a_split() {
    let mut n = Net::new(18);
    let x = n.input("x", &[batch(), 7.into()]);
    let uneven = n.ops("Split", &[x], &[int("axis", 1), int("num_outputs", 3)], 3);
    let open = n.ops("Split", &[x], &[int("axis", 0)], 2);
    let sizes = n.ints(&[5, 2]);
    let given = n.ops("Split", &[x, sizes], &[int("axis", -1)], 2);
    n.infer();
    assert_eq!(uneven.iter().map(|v| n.text(*v)).collect::<Vec<_>>(), ["[batch, 3]", "[batch, 3]", "[batch, 1]"]);
    assert_eq!(n.text(open[0]), "[?split_4.0, 7]");
    assert_eq!(n.text(given[1]), "[batch, 2]");
}

#[test]
fn declared_shapes_fill_gaps_and_must_not_contradict() {
    let declared = |shape: &[Dim]| {
        let mut n = Net::new(17);
        let x = n.input("x", &[batch(), 6.into()]);
        let target = n.input("target", &[2.into()]);
        n.graph.value_mut(target).dtype = Some(DType::I64);
        let y = n.op("Reshape", &[x, target], &[]);
        let z = n.op("Relu", &[y], &[]);
        n.graph.value_mut(y).shape = Some(shape.to_vec());
        (n, y, z)
    };
    let (mut n, y, z) = declared(&[3.into(), Dim::symbol("rest")]);
    n.infer();
    assert_eq!(n.text(y), "[3, rest]");
    assert_eq!(n.text(z), "[3, rest]");

    let (mut n, ..) = declared(&[3.into()]);
    let error = infer(&mut n.graph, &|_, _| None).unwrap_err().to_string();
    assert!(error.contains("declared as [3]") && error.contains("Reshape"), "{error}");

    let mut n = Net::new(17);
    let x = n.input("x", &[batch(), 6.into()]);
    let y = n.op("Relu", &[x], &[]);
    n.graph.value_mut(y).shape = Some(vec![batch(), 7.into()]);
    let error = infer(&mut n.graph, &|_, _| None).unwrap_err().to_string();
    assert!(error.contains("declared as [batch, 7]") && error.contains("it is [batch, 6]"), "{error}");

    // A named size that a tool wrote down is not better than what follows from the inputs.
    n.graph.value_mut(y).shape = Some(vec![Dim::symbol("unk__1"), 6.into()]);
    n.infer();
    assert_eq!(n.text(y), "[batch, 6]");
}

#[test]
fn plugin_ops_ask_their_rule() {
    let mut n = Net::new(17);
    let x = n.input("x", &[batch(), 6.into()]);
    let y = n.op("Mine", &[x], &[]);
    let id = n.graph.order()[0];
    n.graph.edit_node(id, |node| node.domain = "trt.opt".into());
    n.infer();
    assert_eq!(n.text(y), "?");
    let rule = |graph: &Graph, node: &Node| {
        let input = node.input(0)?;
        Some(vec![Some((graph.dtype(input)?, graph.shape(input)?.to_vec()))])
    };
    infer(&mut n.graph, &rule).unwrap();
    assert_eq!(n.text(y), "[batch, 6]");
}

#[test]
fn absurd_sizes_are_given_up() {
    let huge = i64::MAX / 2;
    let mut n = Net::new(17);
    let x = n.input("x", &[huge.into(), huge.into(), 4.into()]);
    let flat = n.ints(&[-1]);
    let y = n.op("Reshape", &[x, flat], &[]);
    let z = n.op("Concat", &[x, x, x], &[int("axis", 0)]);
    let counts = n.ints(&[huge, 1, 1]);
    let t = n.op("Tile", &[x, counts], &[]);
    let negative = n.ints(&[-5, 3]);
    let c = n.op("ConstantOfShape", &[negative], &[]);
    let pads = n.ints(&[i64::MIN, 0, 0, i64::MIN, 0, 0]);
    let p = n.op("Pad", &[x, pads], &[]);
    let ends = [i64::MIN, i64::MAX, 1].map(|v| n.scalar(v));
    let r = n.op("Range", &ends, &[]);
    n.infer();
    assert_eq!(n.text(y), "[?reshape.0]");
    assert_eq!(n.text(z), format!("[?concat.0, {huge}, 4]"));
    assert_eq!(n.text(t), format!("[?tile.0, {huge}, 4]"));
    assert_eq!(n.text(c), "?");
    assert_eq!(n.text(p), format!("[?pad.0, {huge}, 4]"));
    assert_eq!(n.text(r), "?");
}

#[test]
fn roundings_hold_for_every_batch() {
    let n = batch().mul(&12.into()).unwrap().add(&5.into()).unwrap();
    for by in [1, 2, 3, 4, 6, 12] {
        for (round, divide) in [(floor_div as fn(&Dim, i64) -> Option<Dim>, false), (ceil_div, true)] {
            let quotient = round(&n, by).unwrap();
            for b in 0..5i64 {
                let size = 12 * b + 5;
                let expected = if divide { (size + by - 1) / by } else { size / by };
                assert_eq!(quotient.eval(|_| Some(b)), Some(expected), "{size} by {by}");
            }
        }
    }
    assert_eq!(floor_div(&n, 5), None);
    assert!(always_positive(&n) && never_negative(&n));
    assert!(!never_negative(&Dim::Int(3).sub(&batch()).unwrap()));
    assert!(never_negative(&batch().mul(&Dim::symbol("h")).unwrap()));
}

#[test]
fn a_choice_has_what_both_branches_declare() {
    use crate::onnx::proto::{AttributeType, GraphProto, TensorShapeProto, TypeProto, ValueInfoProto};
    use crate::onnx::proto::{tensor_shape_proto, type_proto};
    let branch = |name: &str, outputs: &[(DType, &[i64])]| {
        let output = |(dtype, sizes): &(DType, &[i64])| {
            let dim = |size: &i64| tensor_shape_proto::Dimension {
                value: Some(tensor_shape_proto::Value::DimValue(*size)),
                denotation: None,
            };
            let shape = TensorShapeProto { dim: sizes.iter().map(dim).collect() };
            let tensor = type_proto::Tensor { elem_type: Some(*dtype as i32), shape: Some(shape) };
            let of_tensor = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
            ValueInfoProto { r#type: Some(of_tensor), ..ValueInfoProto::default() }
        };
        AttributeProto {
            name: Some(name.into()),
            r#type: Some(AttributeType::Graph as i32),
            g: Some(Box::new(GraphProto { output: outputs.iter().map(output).collect(), ..GraphProto::default() })),
            ..AttributeProto::default()
        }
    };
    let mut net = Net::new(17);
    let condition = net.input("c", &[]);
    let one = branch("then_branch", &[(DType::F32, &[2, 3]), (DType::I64, &[2]), (DType::F32, &[4])]);
    let other = branch("else_branch", &[(DType::F32, &[2, 3]), (DType::I64, &[5]), (DType::F64, &[4])]);
    let outs = net.ops("If", &[condition], &[one, other], 3);
    net.infer();
    assert_eq!(
        outs.iter().map(|v| net.graph.dtype(*v)).collect::<Vec<_>>(),
        [Some(DType::F32), Some(DType::I64), None]
    );
    assert_eq!([net.text(outs[0]), net.text(outs[1]), net.text(outs[2])], ["[2, 3]", "?", "[4]"]);
}
