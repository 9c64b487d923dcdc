//! Element types, shapes and the contents of small integer tensors, with symbolic sizes.
//!
//! A size is an integer or a polynomial over the symbols of the graph's inputs (`batch`), and shape arithmetic is
//! followed on such polynomials exactly or given up: nothing is guessed. A size that depends on data, or that no
//! polynomial describes, gets a symbol of its own, `?VALUE.AXIS`. Symbols stand for sizes, so they are taken to be
//! at least 0.

mod control;
mod elementwise;
mod movement;
mod nn;
mod shape_math;
#[cfg(test)]
mod tests;

pub(crate) use movement::slice_range;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ir::{Dim, Graph, Ints, Node, NodeId, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::TensorProto;

/// Element type and shape of each output of a node outside the standard domain; `None` where the rule does not know
/// the op, or the output.
pub type ShapeRule<'a> = &'a dyn Fn(&Graph, &Node) -> Option<Vec<Option<(DType, Vec<Dim>)>>>;

/// Tensors of at most this many elements have their contents followed.
pub const CONTENTS_LIMIT: usize = 128;

/// What is known of one output. `None` is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inferred {
    pub dtype: Option<DType>,
    pub shape: Option<Vec<Dim>>,
    /// Elements of a small tensor of integers or booleans (0 and 1), or of floats computed from integers, as long as
    /// they are whole numbers: `int(n / 4.0)` is followed through its casts.
    pub ints: Option<Ints>,
}

impl Inferred {
    fn new(dtype: Option<DType>, shape: Option<Vec<Dim>>) -> Self {
        Self { dtype, shape, ints: None }
    }

    fn one(dtype: Option<DType>, shape: Vec<Dim>) -> Option<Vec<Self>> {
        Some(vec![Self::new(dtype, Some(shape))])
    }

    fn with_ints(mut self, ints: Option<Ints>) -> Self {
        self.ints = ints.filter(|i| i.values.len() <= CONTENTS_LIMIT && i.values.iter().any(Option::is_some));
        self
    }
}

/// Fills in `dtype`, `shape` and `ints` of every value.
///
/// What the file declares for a value is kept where inference knows less: an unknown op, or an axis that inference
/// could not determine. Fails with [`Error::Invalid`] where a declared element type, rank or integer size
/// contradicts the inferred one.
pub fn infer(graph: &mut Graph, custom: ShapeRule) -> Result<()> {
    for id in graph.value_ids() {
        if graph.value(id).producer.is_none() {
            let ints = graph.constant(id).filter(|t| !is_float_tensor(t)).and_then(tensor_ints);
            graph.value_mut(id).ints = ints.map(Arc::new);
        }
    }
    for id in graph.order().to_vec() {
        infer_into(graph, id, custom)?;
    }
    Ok(())
}

/// Infers one node and notes the result at its outputs, as [`infer`] does for all; call it in topological order.
pub fn infer_into(graph: &mut Graph, id: NodeId, custom: ShapeRule) -> Result<()> {
    let node = graph.node(id);
    let inferred = infer_node(graph, node, custom);
    let outputs = node.outputs.clone();
    for (output, inferred) in outputs.into_iter().zip(inferred) {
        let Some(output) = output else { continue };
        merge(graph, id, output, inferred)?;
    }
    Ok(())
}

/// What follows for the outputs of one node from what is noted at its inputs: one entry for each output slot.
/// Declared shapes are not looked at.
pub fn infer_node(graph: &Graph, node: &Node, custom: ShapeRule) -> Vec<Inferred> {
    let count = node.outputs.len();
    let mut inferred = if node.domain.is_empty() {
        let cx = Cx { graph, node, opset: graph.opset };
        cx.standard().unwrap_or_default()
    } else {
        let of_rule = |o: Option<(DType, Vec<Dim>)>| match o {
            Some((dtype, shape)) => Inferred::new(Some(dtype), Some(shape)),
            None => Inferred::default(),
        };
        custom(graph, node).unwrap_or_default().into_iter().map(of_rule).collect()
    };
    inferred.resize(count, Inferred::default());
    for one in &mut inferred {
        if one.shape.as_ref().is_some_and(|s| s.iter().any(negative)) {
            one.shape = None;
            one.ints = None;
        }
        // Contents without a matching shape are of no use to anyone.
        let fits = |ints: &Ints| {
            let shape = one.shape.as_deref()?;
            (shape.len() == ints.shape.len()
                && shape.iter().zip(&ints.shape).all(|(d, n)| d.int() == i64::try_from(*n).ok()))
            .then_some(())
        };
        if one.ints.as_ref().is_some_and(|ints| fits(ints).is_none()) {
            one.ints = None;
        }
    }
    inferred
}

fn negative(dim: &Dim) -> bool {
    matches!(dim, Dim::Int(i) if *i < 0)
}

fn is_unknown(dim: &Dim) -> bool {
    matches!(dim, Dim::Poly(_)) && dim.symbols().iter().any(|s| s.starts_with('?'))
}

fn merge(graph: &mut Graph, node: NodeId, output: ValueId, new: Inferred) -> Result<()> {
    let old = graph.value(output);
    let contradiction = |inferred: String, declared: String| {
        Err(Error::invalid(
            format!("node '{}' ({})", graph.node_label(node), graph.node(node).op),
            format!(
                "output '{}' is declared as {declared}, but from the node's inputs it follows that it is {inferred}",
                old.name
            ),
        ))
    };
    let dtype = match (new.dtype, old.dtype) {
        (Some(new), Some(old)) if new != old => return contradiction(new.to_string(), old.to_string()),
        (new, old) => new.or(old),
    };
    let shape = match (new.shape, &old.shape) {
        (None, old) => old.clone(),
        (new, None) => new,
        (Some(mut new), Some(declared)) => {
            let clash = |(a, b): (&Dim, &Dim)| matches!((a, b), (Dim::Int(a), Dim::Int(b)) if a != b);
            if new.len() != declared.len() || new.iter().zip(declared).any(clash) {
                return contradiction(shape_text(&new), shape_text(declared));
            }
            for (axis, (new, declared)) in new.iter_mut().zip(declared).enumerate() {
                let take = match (&*new, declared) {
                    (Dim::Int(_), _) => false,
                    (_, Dim::Int(_)) => is_unknown(new),
                    _ => *new == unknown(&old.name, axis),
                };
                if take {
                    *new = declared.clone();
                }
            }
            Some(new)
        }
    };
    let value = graph.value_mut(output);
    value.dtype = dtype;
    value.shape = shape;
    value.ints = new.ints.map(Arc::new);
    Ok(())
}

fn unknown(value: &str, axis: usize) -> Dim {
    Dim::symbol(&format!("?{value}.{axis}"))
}

fn is_float_tensor(tensor: &TensorProto) -> bool {
    tensor.data_type.and_then(DType::from_code).is_some_and(DType::is_float)
}

/// The contents of a small constant; elements of a float tensor that are no whole numbers are unknown.
pub fn tensor_ints(tensor: &TensorProto) -> Option<Ints> {
    let mut count = 1usize;
    let mut shape = Vec::with_capacity(tensor.dims.len().min(8));
    for dim in &tensor.dims {
        let dim = usize::try_from(*dim).ok()?;
        count = count.checked_mul(dim)?;
        shape.push(dim);
    }
    if count > CONTENTS_LIMIT {
        return None;
    }
    let values: Vec<Option<Dim>> = if is_float_tensor(tensor) {
        let whole = |v: f64| (v.trunc() == v && v.abs() < 9e15).then_some(Dim::Int(v as i64));
        tensor.to_f64_vec().ok()?.into_iter().map(whole).collect()
    } else {
        tensor.to_i64_vec().ok()?.into_iter().map(|v| Some(Dim::Int(v))).collect()
    };
    (values.len() == count).then_some(Ints { shape, values })
}

/// A node to infer, with shorthands for what its rules ask.
struct Cx<'a> {
    graph: &'a Graph,
    node: &'a Node,
    opset: i64,
}

impl<'a> Cx<'a> {
    fn standard(&self) -> Option<Vec<Inferred>> {
        self.elementwise()
            .or_else(|| self.movement())
            .or_else(|| self.shape_math())
            .or_else(|| self.nn())
            .or_else(|| self.control())?
    }

    /// The shape of input `i`, if it is given and known.
    fn shape(&self, i: usize) -> Option<&'a [Dim]> {
        self.graph.shape(self.node.input(i)?).filter(|s| !s.iter().any(negative))
    }

    fn dtype(&self, i: usize) -> Option<DType> {
        self.graph.dtype(self.node.input(i)?)
    }

    fn given(&self, i: usize) -> bool {
        self.node.input(i).is_some()
    }

    /// The contents of input `i`, computed or constant.
    fn contents(&self, i: usize) -> Option<Ints> {
        let id = self.node.input(i)?;
        if let Some(ints) = &self.graph.value(id).ints {
            return Some((**ints).clone());
        }
        tensor_ints(self.graph.constant(id)?)
    }

    /// Whether the contents of an input have been computed, so that those of the output are worth following.
    fn has_contents(&self, i: usize) -> bool {
        self.node.input(i).is_some_and(|id| self.graph.value(id).ints.is_some())
    }

    /// Contents that are known integers.
    fn known(&self, i: usize) -> Option<Vec<i64>> {
        self.contents(i)?.known()
    }

    /// Contents of a scalar, or of a tensor of one element.
    fn scalar(&self, i: usize) -> Option<Dim> {
        match self.contents(i)?.values.as_slice() {
            [Some(value)] => Some(value.clone()),
            _ => None,
        }
    }

    fn int_or(&self, name: &str, default: i64) -> i64 {
        self.node.int(name).unwrap_or(default)
    }

    /// A list that is attribute `name` or, since some opset, input `slot`. `Some(None)`: not given;
    /// `None`: given and not known.
    #[allow(clippy::option_option)]
    fn list(&self, name: &str, slot: usize) -> Option<Option<Vec<i64>>> {
        if let Some(list) = self.node.ints(name) {
            return Some(Some(list.to_vec()));
        }
        if self.given(slot) { self.known(slot).map(Some) } else { Some(None) }
    }

    /// A symbol for an axis that cannot be determined.
    fn unknown(&self, output: usize, axis: usize) -> Dim {
        let name = self.node.output(output).map_or("", |id| self.graph.value(id).name.as_str());
        unknown(name, axis)
    }

    /// One output of the type and shape of input `i`.
    fn like(&self, i: usize) -> Option<Vec<Inferred>> {
        Some(vec![Inferred::new(self.dtype(i), self.shape(i).map(<[Dim]>::to_vec))])
    }
}

/// An axis counted from the front; `None` if it is out of range.
pub(crate) fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let rank_i = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank_i)? } else { axis };
    (0..rank_i).contains(&axis).then_some(axis as usize)
}

/// `dim / by`, rounded down for every value of the symbols; `None` where that is no polynomial.
fn floor_div(dim: &Dim, by: i64) -> Option<Dim> {
    if by <= 0 {
        return None;
    }
    let constant = dim.eval(|_| Some(0))?;
    let varying = dim.sub(&Dim::Int(constant))?.div_exact(&Dim::Int(by))?;
    varying.add(&Dim::Int(constant.div_euclid(by)))
}

/// `dim / by`, rounded up.
fn ceil_div(dim: &Dim, by: i64) -> Option<Dim> {
    floor_div(&dim.add(&Dim::Int(by.checked_sub(1)?))?, by)
}

/// Whether `dim >= 0` for all sizes that the symbols can stand for.
fn never_negative(dim: &Dim) -> bool {
    let check = || {
        if let Dim::Int(i) = dim {
            return Some(*i >= 0);
        }
        // Linear forms suffice for shapes; of others only a product of sizes is understood.
        let constant = dim.eval(|_| Some(0))?;
        let mut rebuilt = Dim::Int(constant);
        let mut good = constant >= 0;
        let symbols = dim.symbols();
        for symbol in &symbols {
            let at_one = dim.eval(|s| Some(i64::from(s == &**symbol)))?;
            let coefficient = at_one.checked_sub(constant)?;
            good &= coefficient >= 0;
            rebuilt = rebuilt.add(&Dim::symbol(symbol).mul(&Dim::Int(coefficient))?)?;
        }
        if rebuilt == *dim {
            return Some(good);
        }
        let at_ones = dim.eval(|_| Some(1))?;
        let product = symbols.iter().try_fold(Dim::Int(at_ones), |p, s| p.mul(&Dim::symbol(s)))?;
        Some(product == *dim && at_ones >= 0)
    };
    check().unwrap_or(false)
}

/// Whether `dim >= 1` always.
fn always_positive(dim: &Dim) -> bool {
    dim.sub(&Dim::Int(1)).is_some_and(|d| never_negative(&d))
}
