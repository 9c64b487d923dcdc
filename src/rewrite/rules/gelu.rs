//! GELUs: brought into one spelling, which TensorRT fuses into the layer before.
//!
//! ```text
//! erf:  x -> Div sqrt 2 | Mul 0.7071 -> Erf -> Add 1 = e ;  y = 0.5 * x * e      in any association
//! tanh: p = sqrt(2/pi) * (x + 0.044715 x^3), however it is factored -> Tanh -> Add 1 = e ;  y = 0.5 * x * e
//! ```

use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::rewrite::engine::{Engine, Miss, Patch};
use crate::rewrite::pattern::{
    float_tensor, follow_casts, fused_name, is_close, is_scalar, only_user, product, scalar, strip_casts, with_scalar,
};
use crate::rewrite::{Kind, Site, Status};

const RULE: &str = "gelu";
const REASON: &str = "TensorRT fuses this form into the layer before it";

pub fn run(engine: &mut Engine) -> Result<()> {
    let graph = engine.graph();
    let anchors: Vec<NodeId> = graph.order().iter().copied().filter(|&id| is_anchor(graph, id)).collect();
    for id in anchors {
        let label = engine.graph().node_label(id);
        if !engine.enabled(Kind::Gelu, RULE) {
            let miss = engine.disabled_miss(Kind::Gelu, RULE);
            engine.record_miss(Kind::Gelu, &label, RULE, miss);
            continue;
        }
        let graph = engine.graph();
        let kept = Site::new(Kind::Gelu, Status::Kept, &label, RULE).because(REASON);
        if graph.node(id).is("Gelu") {
            engine.record(kept);
            continue;
        }
        let outcome = match match_gelu(graph, id) {
            Err(miss) => Err(miss),
            Ok(gelu) => match gelu.patch(graph, &label) {
                None => Ok(kept),
                Some((patch, name)) => engine.apply(patch)?.map(|()| kept.into_node(&name)),
            },
        };
        match outcome {
            Ok(site) => engine.record(site),
            Err(miss) => engine.record_miss(Kind::Gelu, &label, RULE, miss),
        }
    }
    Ok(())
}

pub(super) fn is_anchor(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    if node.is("Tanh") {
        // A tanh is that of a GELU only if a cubic of something goes in.
        return node.input(0).is_some_and(|p| cubic_variable(graph, p).is_some());
    }
    node.is("Erf") || node.is("Gelu")
}

pub(super) struct Gelu {
    pub(super) x: ValueId,
    pub(super) out: ValueId,
    pub(super) covers: Vec<NodeId>,
    /// The tanh form instead of erf.
    pub(super) tanh: bool,
    /// Whether it is to be spelled anew: it is an erf form, without casts, and not yet in the canonical order.
    respell: bool,
}

pub(super) fn match_gelu(graph: &Graph, id: NodeId) -> Result<Gelu, Miss> {
    let node = graph.node(id);
    let label = graph.node_label(id);
    let input = node.input(0).ok_or_else(|| Miss::new(&label, "it has no input"))?;
    let result = node.output(0).ok_or_else(|| Miss::new(&label, "it has no output"))?;
    if node.is("Gelu") {
        let tanh = node.string("approximate") == Some("tanh");
        return Ok(Gelu { x: input, out: result, covers: vec![id], tanh, respell: false });
    }
    let mut covers = vec![id];
    let x = if node.is("Erf") {
        let (x, scale) = erf_variable(graph, input, &label)?;
        covers.push(scale);
        x
    } else {
        cubic_variable(graph, input)
            .ok_or_else(|| Miss::new(&label, "its argument is not the cubic of the tanh form"))?
    };

    let after = only_user(graph, follow_casts(graph, result));
    let adds_one = |n: &Node| n.is("Add") && n.inputs.iter().flatten().any(|&v| is_scalar(graph, v, 1.0));
    let Some(add) = after.filter(|&a| adds_one(graph.node(a))) else {
        let found = after.map_or(format!("{} uses", graph.uses(result).len()), |a| graph.node(a).op.clone());
        return Err(Miss::new(&label, "one is not added to it").expected("Add 1", found));
    };
    covers.push(add);
    let sum = graph.node(add).output(0).ok_or_else(|| Miss::new(&label, "it has no output"))?;
    let source = strip_casts(graph, x);
    let atom = |v: ValueId| {
        if v == sum { Some((0, 1)) } else { (strip_casts(graph, v) == source).then_some((1, 1)) }
    };
    let mut current = sum;
    loop {
        let user = only_user(graph, current).ok_or_else(|| {
            let found = if graph.is_output(current) {
                "a graph output".into()
            } else {
                format!("{} uses", graph.uses(current).len())
            };
            Miss::new(&label, "an interior value is used otherwise too").expected("1 use", found)
        })?;
        let wrong = |found: &str| {
            let reason = "it is not multiplied by x and 0.5";
            Miss::new(graph.node_label(user), reason).expected("0.5 * x", found)
        };
        let out = graph.node(user).output(0).ok_or_else(|| wrong("no output"))?;
        let parts = product(graph, out, &atom, 6).ok_or_else(|| wrong(&graph.node(user).op))?;
        let constant = parts.scalar(graph).ok_or_else(|| wrong("a tensor factor"))?;
        let halved = match parts.constants.as_slice() {
            [] => false,
            [(v, _)] if is_close(graph, *v, constant, 0.5) => true,
            _ => return Err(wrong(&format!("a factor of {constant}"))),
        };
        if parts.powers[0] != 1 || parts.powers[1] > 1 {
            return Err(wrong("another power of x"));
        }
        if parts.powers == [1, 1] && halved {
            let uniform = graph.dtype(x) == graph.dtype(out) && strip_casts(graph, input) == input;
            let last_is_half = graph.producer(out).is_some_and(|(_, n)| with_scalar(graph, n).is_some());
            let div = covers.get(1).is_some_and(|&n| graph.node(n).is("Div"));
            covers.extend(parts.nodes);
            covers.retain(|&n| !graph.node(n).is("Cast"));
            let tanh = node.is("Tanh");
            return Ok(Gelu { x, out, covers, tanh, respell: node.is("Erf") && uniform && !(div && last_is_half) });
        }
        current = out;
    }
}

/// `x` of an argument `x / sqrt(2)`, and the node that scales it.
fn erf_variable(graph: &Graph, argument: ValueId, label: &str) -> Result<(ValueId, NodeId), Miss> {
    let root = std::f64::consts::SQRT_2;
    let (id, node) = graph.producer(strip_casts(graph, argument)).ok_or_else(|| {
        Miss::new(label, "its argument is not x / sqrt(2)").expected("Div or Mul by a constant", "a graph input")
    })?;
    let miss = || Miss::new(graph.node_label(id), "the argument of Erf is not x / sqrt(2)");
    let scaled = (node.is("Div") || node.is("Mul")).then(|| with_scalar(graph, node)).flatten();
    let (x, constant) = scaled.ok_or_else(|| miss().expected("Div or Mul by a constant", &node.op))?;
    let wanted = match node.op.as_str() {
        "Mul" => 1.0 / root,
        _ if node.input(0) == Some(x) => root,
        _ => return Err(miss().expected("x / sqrt(2)", "a constant divided by x")),
    };
    if !is_close(graph, x, constant, wanted) {
        return Err(miss().expected(wanted, constant));
    }
    Ok((x, id))
}

impl Gelu {
    /// x -> Div sqrt 2 -> Erf -> Add 1 -> Mul x -> Mul 0.5; `None` where nothing is to be changed.
    fn patch(&self, graph: &Graph, label: &str) -> Option<(Patch, String)> {
        if !self.respell {
            return None;
        }
        let name = fused_name(graph, label, "Gelu");
        let dtype = graph.dtype(self.x)?;
        let constants = [std::f64::consts::SQRT_2, 1.0, 0.5].map(|c| float_tensor(dtype, &[], &[c]));
        let [Some(root), Some(one), Some(half)] = constants else { return None };
        let mut patch = Patch::new(graph, RULE);
        let root = patch.constant(&format!("{name}/sqrt_2"), root);
        let one = patch.constant(&format!("{name}/one"), one);
        let half = patch.constant(&format!("{name}/half"), half);
        let mut step = |op: &str, suffix: &str, inputs: &[ValueId]| {
            let out = patch.value_like(graph, &format!("{name}/{suffix}"), self.x);
            patch.node(Node { name: format!("{name}/{suffix}"), ..Node::new(op, inputs.iter().copied()) }, [out]);
            out
        };
        let scaled = step("Div", "div", &[self.x, root]);
        let erf = step("Erf", "erf", &[scaled]);
        let sum = step("Add", "add", &[erf, one]);
        let product = step("Mul", "mul", &[self.x, sum]);
        let out = step("Mul", "y", &[product, half]);
        patch.replace(self.out, out);
        patch.cover(self.covers.iter().copied());
        Some((patch, format!("{name}/y")))
    }
}

/// The value `x` for which the expression is sqrt(2/pi) * (x + 0.044715 x^3).
fn cubic_variable(graph: &Graph, argument: ValueId) -> Option<ValueId> {
    let scale = (2.0 / std::f64::consts::PI).sqrt();
    let wanted = [0.0, scale, 0.0, scale * 0.044_715];
    let mut candidates = vec![];
    operands(graph, argument, 6, &mut candidates);
    candidates.into_iter().find(|&x| {
        // Two rounded constants are multiplied: twice the tolerance of one.
        let close = |found: f64, wanted: f64| {
            is_close(graph, x, found, wanted) || is_close(graph, x, (found + wanted) / 2.0, wanted)
        };
        polynomial(graph, argument, x, 7).is_some_and(|found| found.iter().zip(wanted).all(|(&f, w)| close(f, w)))
    })
}

/// Values that the expression is made of, the expression itself left out.
fn operands(graph: &Graph, value: ValueId, depth: u32, out: &mut Vec<ValueId>) {
    let Some((_, node)) = graph.producer(value) else { return };
    if depth == 0 || !["Mul", "Add", "Pow", "Cast"].iter().any(|op| node.is(op)) {
        return;
    }
    for &input in node.inputs.iter().flatten() {
        if graph.constant(input).is_none() && !out.contains(&input) {
            out.push(input);
            operands(graph, input, depth - 1, out);
        }
    }
}

/// The expression as a polynomial in `x` of degree 3 at most: its coefficients.
fn polynomial(graph: &Graph, value: ValueId, x: ValueId, depth: u32) -> Option<[f64; 4]> {
    if value == x {
        return Some([0.0, 1.0, 0.0, 0.0]);
    }
    if let Some(c) = scalar(graph, value) {
        return Some([c, 0.0, 0.0, 0.0]);
    }
    let (_, node) = graph.producer(value).filter(|_| depth > 0)?;
    let part = |i: usize| polynomial(graph, node.input(i)?, x, depth - 1);
    match node.op.as_str() {
        "Add" => {
            let (a, b) = (part(0)?, part(1)?);
            Some(std::array::from_fn(|i| a[i] + b[i]))
        }
        "Mul" => times(part(0)?, part(1)?),
        "Cast" => part(0),
        "Pow" => {
            let (base, exponent) = (part(0)?, scalar(graph, strip_casts(graph, node.input(1)?))?);
            match exponent {
                2.0 => times(base, base),
                3.0 => times(times(base, base)?, base),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Product of two polynomials; `None` if its degree is over 3.
fn times(a: [f64; 4], b: [f64; 4]) -> Option<[f64; 4]> {
    let mut product = [0.0; 4];
    for (i, p) in a.iter().enumerate() {
        for (j, q) in b.iter().enumerate() {
            match product.get_mut(i + j) {
                Some(slot) => *slot += p * q,
                None if p * q == 0.0 => {}
                None => return None,
            }
        }
    }
    Some(product)
}
