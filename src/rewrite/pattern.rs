//! What rules match with: constants, casts, products in any association.

use crate::ir::{Dim, Graph, Node, NodeId, ValueId};
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;

/// The value of a constant with exactly one element, of whatever rank.
pub fn scalar(graph: &Graph, value: ValueId) -> Option<f64> {
    let tensor = graph.constant(value)?;
    if tensor.len().ok()? != 1 {
        return None;
    }
    tensor.to_f64_vec().ok()?.first().copied()
}

/// Whether `found` is `wanted` as far as a constant of the value's type can tell: fp16's square root of 2 is 1.4140625.
pub fn is_close(graph: &Graph, value: ValueId, found: f64, wanted: f64) -> bool {
    let relative = match graph.dtype(value) {
        Some(DType::F16) => 1.0 / 1024.0,
        Some(DType::BF16) => 1.0 / 128.0,
        // Exporters write 0.7071 as well as 0.70710678.
        _ => 2e-5,
    };
    (found - wanted).abs() <= relative * wanted.abs()
}

/// Whether the value is a one-element constant close to `wanted`.
pub fn is_scalar(graph: &Graph, value: ValueId, wanted: f64) -> bool {
    scalar(graph, value).is_some_and(|found| is_close(graph, value, found, wanted))
}

/// Of a node with two inputs, one a one-element constant: the other input and the constant.
pub fn with_scalar(graph: &Graph, node: &Node) -> Option<(ValueId, f64)> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    match (scalar(graph, a), scalar(graph, b)) {
        (None, Some(c)) => Some((a, c)),
        (Some(c), None) => Some((b, c)),
        _ => None,
    }
}

pub fn is_float_cast(graph: &Graph, node: &Node) -> bool {
    let float = |v: Option<ValueId>| v.and_then(|v| graph.dtype(v)).is_some_and(DType::is_float);
    node.is("Cast") && float(node.input(0)) && float(node.output(0))
}

/// The value before any casts between floating types.
pub fn strip_casts(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some((_, node)) = graph.producer(value) {
        match node.input(0) {
            Some(input) if is_float_cast(graph, node) => value = input,
            _ => break,
        }
    }
    value
}

/// The only reader of a value that is not a graph output.
pub fn only_user(graph: &Graph, value: ValueId) -> Option<NodeId> {
    match graph.uses(value) {
        [user] if !graph.is_output(value) => Some(*user),
        _ => None,
    }
}

/// The value after casts between floating types that alone read it, with the nodes.
pub fn follow_casts(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some(user) = only_user(graph, value) {
        match graph.node(user).output(0) {
            Some(out) if is_float_cast(graph, graph.node(user)) => value = out,
            _ => break,
        }
    }
    value
}

/// Axes of a `Reduce*` node in either form, as non-negative numbers; `None` if they are not constant or out of range.
pub fn reduce_axes(graph: &Graph, node: &Node) -> Option<Vec<usize>> {
    let rank = graph.rank(node.input(0)?)?;
    let axes = match (node.ints("axes"), node.input(1)) {
        (Some(axes), _) => axes.to_vec(),
        (None, Some(value)) => graph.constant(value)?.to_i64_vec().ok()?,
        (None, None) => vec![],
    };
    if axes.is_empty() {
        return (node.int("noop_with_empty_axes").unwrap_or(0) == 0).then(|| (0..rank).collect());
    }
    let mut axes: Vec<usize> = axes.into_iter().map(|a| normalize_axis(a, rank)).collect::<Option<_>>()?;
    axes.sort_unstable();
    axes.dedup();
    Some(axes)
}

pub fn normalize_axis(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// A product of up to two atoms and constants, in whatever association, with casts between.
#[derive(Clone, Debug, Default)]
pub struct Product {
    /// Exponents of the atoms.
    pub powers: [i32; 2],
    /// Constant factors; `true` for a divisor.
    pub constants: Vec<(ValueId, bool)>,
    pub nodes: Vec<NodeId>,
}

impl Product {
    fn times(mut self, other: Self, invert: bool) -> Self {
        for (p, q) in self.powers.iter_mut().zip(other.powers) {
            *p += if invert { -q } else { q };
        }
        self.constants.extend(other.constants.into_iter().map(|(v, inverse)| (v, inverse != invert)));
        self.nodes.extend(other.nodes);
        self
    }

    /// The value of all constant factors where each has one element.
    pub fn scalar(&self, graph: &Graph) -> Option<f64> {
        self.constants.iter().try_fold(1.0, |product, &(value, inverse)| {
            let c = scalar(graph, value)?;
            Some(if inverse { product / c } else { product * c })
        })
    }
}

/// `value` as a product; `atom` says which values are which atom (0 or 1), with its exponent.
///
/// Follows Mul, Div, Reciprocal, Cast and reshapes that only insert axes of size one.
pub fn product(
    graph: &Graph,
    value: ValueId,
    atom: &dyn Fn(ValueId) -> Option<(usize, i32)>,
    depth: u32,
) -> Option<Product> {
    if let Some((which, power)) = atom(value) {
        let mut product = Product::default();
        product.powers[which] = power;
        return Some(product);
    }
    if graph.constant(value).is_some() {
        return Some(Product { constants: vec![(value, false)], ..Product::default() });
    }
    if depth == 0 {
        return None;
    }
    let (id, node) = graph.producer(value)?;
    let part = |i: usize| product(graph, node.input(i)?, atom, depth - 1);
    let mut result = if node.is("Mul") {
        part(0)?.times(part(1)?, false)
    } else if node.is("Div") {
        part(0)?.times(part(1)?, true)
    } else if node.is("Reciprocal") {
        Product::default().times(part(0)?, true)
    } else if is_float_cast(graph, node) || inserts_unit_axes(graph, node) {
        part(0)?
    } else {
        return None;
    };
    result.nodes.push(id);
    Some(result)
}

/// Whether the node is a reshape that adds or drops axes of size one and does nothing else.
pub fn inserts_unit_axes(graph: &Graph, node: &Node) -> bool {
    if !(node.is("Reshape") || node.is("Unsqueeze") || node.is("Squeeze")) {
        return false;
    }
    let wide = |v: Option<ValueId>| -> Option<Vec<Dim>> {
        Some(graph.shape(v?)?.iter().filter(|d| **d != Dim::Int(1)).cloned().collect())
    };
    matches!((wide(node.input(0)), wide(node.output(0))), (Some(a), Some(b)) if a == b)
}

/// The value before casts and reshapes that only insert axes of size one.
pub fn strip_unit_axes(graph: &Graph, mut value: ValueId) -> ValueId {
    while let Some((_, node)) = graph.producer(value) {
        match node.input(0) {
            Some(input) if is_float_cast(graph, node) || inserts_unit_axes(graph, node) => value = input,
            _ => break,
        }
    }
    value
}

/// A name for the node that replaces the pattern around the node called `label`: in its scope, ending in the op, and
/// not yet that of a node.
pub fn fused_name(graph: &Graph, label: &str, op: &str) -> String {
    let name = match label.rsplit_once('/') {
        Some((scope, _)) => format!("{scope}/{op}"),
        None => format!("{label}/{op}"),
    };
    let taken = |name: &str| graph.nodes().any(|(_, node)| node.name == name);
    if !taken(&name) {
        return name;
    }
    (2u64..).map(|i| format!("{name}_{i}")).find(|n| !taken(n)).expect("u64 names suffice")
}

/// A floating tensor of the type; fails for other types than float16 and float32.
pub fn float_tensor(dtype: DType, dims: &[i64], values: &[f64]) -> Option<TensorProto> {
    match dtype {
        DType::F32 => Some(TensorProto::from_f32("", dims, &values.iter().map(|&v| v as f32).collect::<Vec<_>>())),
        DType::F16 => {
            Some(TensorProto::from_f16("", dims, &values.iter().map(|&v| half::f16::from_f64(v)).collect::<Vec<_>>()))
        }
        _ => None,
    }
}
