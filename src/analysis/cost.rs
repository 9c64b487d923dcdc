//! An estimate of what a graph costs on a GPU: bytes moved, arithmetic, kernel launches.
//!
//! The model follows what TensorRT is expected to do, coarsely enough to be read off the graph:
//!
//! - **Free**: nodes that only change a shape (Reshape, Squeeze, Unsqueeze, Flatten, Identity, Dropout), that compute
//!   on shapes, or whose inputs are all constant.
//! - **Products** (Conv, Gemm, MatMul, Einsum, Attention): one launch; they read their operands and write their
//!   result.
//! - **Pointwise** ops (arithmetic, activations, casts, comparisons, batch norm): no launch where they can run in the
//!   kernel that makes one of their operands, which is when only pointwise ops read what it makes. What passes inside
//!   a kernel is not moved, so only the other operands are read. Else one launch.
//! - **Reductions, norms, softmax, pools, resizes**: one launch each, so that a norm written as two reductions and
//!   arithmetic costs what its parts do.
//! - **Data movement** (Transpose, Slice, Split, Gather, Pad, ...): one launch, which reads as many bytes as it writes.
//!   A Transpose of the last two axes that only MatMul reads is free, and so is a Concat of what was moved or computed
//!   for it alone, since that can be written in place.
//!
//! Arithmetic counts a multiply-add as 2, a pointwise element as 1, a softmax or norm element as 5 or 8. Sizes are in
//! elements of the declared types; an axis named by a symbol counts as the batch. Values of unknown shape count as
//! nothing.

use std::collections::{BTreeMap, HashSet};
use std::iter::Sum;
use std::ops::{Add, AddAssign};

use crate::ir::{Dim, Graph, Node, NodeId, ValueId};

/// Cost of one run of a node or graph.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Read and written in global memory.
    pub bytes: u64,
    /// Floating-point operations, a multiply-add counted as 2.
    pub flops: u64,
    /// The multiply-adds of matrix products and convolutions, which publications call FLOPs or MACs.
    pub macs: u64,
    /// Kernels launched; a fraction where it depends on what the builder chooses.
    pub launches: f64,
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            flops: self.flops.saturating_add(other.flops),
            macs: self.macs.saturating_add(other.macs),
            launches: self.launches + other.launches,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Self::add)
    }
}

/// Nodes of one op and what they cost together.
#[derive(Clone, Debug, PartialEq)]
pub struct OpCost {
    /// With the domain where it is not the standard one: `trt.opt.TrtOptLayerNorm`.
    pub op: String,
    pub nodes: usize,
    pub cost: Cost,
}

/// The cost of a node outside the standard domain at a batch size; `None` for an op that the rule does not know,
/// which then counts as one launch that reads its inputs and writes its outputs.
pub type CostRule<'a> = &'a dyn Fn(&Graph, &Node, i64) -> Option<Cost>;

/// Costs by op, the most bytes first; the sum over them is the graph's. Shapes must have been inferred.
pub fn table(graph: &Graph, batch: i64, custom: CostRule) -> Vec<OpCost> {
    let mut ops: BTreeMap<String, OpCost> = BTreeMap::new();
    for (id, cost) in costs(graph, batch, custom) {
        let op = graph.node(id).qualified_op();
        let entry = ops.entry(op.clone()).or_insert(OpCost { op, nodes: 0, cost: Cost::default() });
        entry.nodes += 1;
        entry.cost += cost;
    }
    let mut table: Vec<OpCost> = ops.into_values().collect();
    table.sort_by_key(|o| std::cmp::Reverse((o.cost.bytes, o.cost.flops, o.nodes)));
    table
}

/// The cost of the whole graph.
pub fn total(graph: &Graph, batch: i64, custom: CostRule) -> Cost {
    costs(graph, batch, custom).into_iter().map(|(_, cost)| cost).sum()
}

/// The cost of each node, in the graph's order.
pub fn costs(graph: &Graph, batch: i64, custom: CostRule) -> Vec<(NodeId, Cost)> {
    let mut model = Model { graph, batch, constant: HashSet::new(), ends: HashSet::new() };
    graph.order().iter().map(|&id| (id, model.node(id, custom))).collect()
}

/// Elements of a value at a batch size; `None` if its shape is not known that far.
pub fn elements(graph: &Graph, value: ValueId, batch: i64) -> Option<u64> {
    count(graph.shape(value)?, batch)
}

/// Bytes of a value at a batch size; `None` for strings too.
pub fn byte_size(graph: &Graph, value: ValueId, batch: i64) -> Option<u64> {
    let bits = graph.dtype(value)?.bits()? as u64;
    Some(elements(graph, value, batch)?.checked_mul(bits)?.div_ceil(8))
}

fn count(dims: &[Dim], batch: i64) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, d| n.checked_mul(size(d, batch)?))
}

fn size(dim: &Dim, batch: i64) -> Option<u64> {
    u64::try_from(dim.eval(|_| Some(batch))?).ok()
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Free,
    Product,
    Pointwise,
    /// A kernel of its own, with this much arithmetic for each element read.
    Kernel(u64),
    Movement,
}

fn class(op: &str) -> Class {
    match op {
        "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Identity" | "Dropout" | "Shape" | "Size" | "Constant"
        | "ConstantOfShape" | "Range" => Class::Free,
        "Conv" | "ConvTranspose" | "ConvInteger" | "QLinearConv" | "Gemm" | "MatMul" | "MatMulInteger"
        | "QLinearMatMul" | "Einsum" | "Attention" => Class::Product,
        "Transpose" | "Slice" | "Concat" | "Split" | "Gather" | "GatherElements" | "GatherND" | "ScatterND"
        | "ScatterElements" | "Pad" | "Expand" | "Tile" | "DepthToSpace" | "SpaceToDepth" | "Trilu" | "OneHot" => {
            Class::Movement
        }
        "Softmax" | "LogSoftmax" | "Hardmax" => Class::Kernel(5),
        "LayerNormalization"
        | "GroupNormalization"
        | "InstanceNormalization"
        | "RMSNormalization"
        | "LpNormalization"
        | "MeanVarianceNormalization"
        | "LRN" => Class::Kernel(8),
        "MaxPool" | "AveragePool" | "LpPool" | "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" | "Resize"
        | "Upsample" | "GridSample" | "TopK" | "ArgMax" | "ArgMin" | "CumSum" | "NonZero" => Class::Kernel(1),
        op if op.starts_with("Reduce") => Class::Kernel(1),
        _ => Class::Pointwise,
    }
}

struct Model<'a> {
    graph: &'a Graph,
    batch: i64,
    /// Values that are the same in every run.
    constant: HashSet<ValueId>,
    /// Values that a kernel ends in, reshaped or not: pointwise ops can be appended to it.
    ends: HashSet<ValueId>,
}

impl Model<'_> {
    fn bytes(&self, value: ValueId) -> u64 {
        byte_size(self.graph, value, self.batch).unwrap_or(0)
    }

    fn is_constant(&self, value: ValueId) -> bool {
        self.constant.contains(&value) || self.graph.constant(value).is_some()
    }

    fn node(&mut self, id: NodeId, custom: CostRule) -> Cost {
        let graph = self.graph;
        let node = graph.node(id);
        let class = if node.domain.is_empty() { class(&node.op) } else { Class::Kernel(1) };
        let inputs: Vec<ValueId> = node.inputs.iter().flatten().copied().collect();
        let outputs: Vec<ValueId> = node.outputs.iter().flatten().copied().collect();
        // Small integers whose contents are followed are shape arithmetic, which runs on the host or at build time.
        let shapes = || outputs.iter().all(|v| graph.value(*v).ints.is_some());
        if !outputs.is_empty() && (inputs.iter().all(|v| self.is_constant(*v)) && node.captures.is_empty() || shapes())
        {
            self.constant.extend(outputs);
            return Cost::default();
        }
        let written: u64 = outputs.iter().map(|v| self.bytes(*v)).sum();
        let read: u64 = inputs.iter().map(|v| self.bytes(*v)).sum();
        let out_elements = outputs.first().and_then(|v| elements(graph, *v, self.batch)).unwrap_or(0);
        let in_elements = inputs.first().and_then(|v| elements(graph, *v, self.batch)).unwrap_or(0);
        if !node.domain.is_empty() {
            let unknown = Cost { bytes: read.saturating_add(written), flops: out_elements, macs: 0, launches: 1.0 };
            return custom(graph, node, self.batch).unwrap_or(unknown);
        }
        match class {
            Class::Free => {
                // Whether more can be appended is not changed by a new shape.
                if let (Some(input), Some(output)) = (inputs.first(), outputs.first())
                    && self.ends.contains(input)
                    && graph.uses(*input).len() == 1
                {
                    self.ends.insert(*output);
                }
                Cost::default()
            }
            Class::Product => {
                let macs = self.macs(node).unwrap_or(0);
                self.end_kernel(&outputs);
                Cost { bytes: read.saturating_add(written), flops: macs.saturating_mul(2), macs, launches: 1.0 }
            }
            Class::Kernel(flops) => {
                self.end_kernel(&outputs);
                Cost {
                    bytes: read.saturating_add(written),
                    flops: in_elements.saturating_mul(flops),
                    macs: 0,
                    launches: 1.0,
                }
            }
            Class::Pointwise => {
                let pointwise = |n: &Node| n.domain.is_empty() && self::class(&n.op) == Class::Pointwise;
                let inside = |v: &&ValueId| {
                    let v = **v;
                    self.ends.contains(&v)
                        && graph.uses(v).iter().all(|u| pointwise(graph.node(*u)))
                        && !graph.is_output(v)
                };
                let host = inputs.iter().filter(inside).max_by_key(|v| self.bytes(**v)).copied();
                let again: u64 = match host {
                    // A second operand inside the kernel is not moved either.
                    Some(host) => inputs.iter().filter(inside).filter(|v| **v != host).map(|v| self.bytes(*v)).sum(),
                    None => 0,
                };
                let read = read.saturating_sub(again);
                self.end_kernel(&outputs);
                let (bytes, launches) = match host {
                    // Its operand is not written and read back; its result is written in the operand's stead.
                    Some(host) => {
                        let inside = self.bytes(host);
                        (read.saturating_sub(inside).saturating_add(written).saturating_sub(inside), 0.0)
                    }
                    None => (read.saturating_add(written), 1.0),
                };
                Cost { bytes, flops: out_elements, macs: 0, launches }
            }
            Class::Movement => {
                let free = match node.op.as_str() {
                    "Concat" => inputs.iter().all(|v| self.in_place(*v)),
                    "Transpose" => self.operand_layout(node),
                    _ => false,
                };
                for output in &outputs {
                    self.ends.insert(*output);
                }
                if free {
                    return Cost::default();
                }
                Cost { bytes: written.saturating_mul(2), flops: 0, macs: 0, launches: 1.0 }
            }
        }
    }

    fn end_kernel(&mut self, outputs: &[ValueId]) {
        self.ends.extend(outputs.first());
    }

    /// Whether a value can be written into its place in a Concat by what makes it.
    fn in_place(&self, value: ValueId) -> bool {
        let Some((_, producer)) = self.graph.producer(value) else { return false };
        let known = producer.domain.is_empty();
        known
            && matches!(class(&producer.op), Class::Movement | Class::Pointwise | Class::Product)
            && self.graph.uses(value).len() == 1
    }

    /// Whether a Transpose only says how a product reads its operand.
    fn operand_layout(&self, node: &Node) -> bool {
        let swaps = node.ints("perm").is_some_and(|perm| {
            let last = perm.len().wrapping_sub(1) as i64;
            let ends = matches!(perm, [.., a, b] if *a == last && *b == last - 1);
            ends && perm[..perm.len() - 2].iter().copied().eq(0..last - 1)
        });
        let product = |u: &NodeId| self.graph.node(*u).is("MatMul");
        swaps && node.output(0).is_some_and(|o| self.graph.uses(o).iter().all(product) && !self.graph.is_output(o))
    }

    /// Multiply-adds of a product.
    fn macs(&self, node: &Node) -> Option<u64> {
        let graph = self.graph;
        let shape = |i: usize| graph.shape(node.input(i)?);
        let at = |d: &Dim| size(d, self.batch);
        let out = elements(graph, node.output(0)?, self.batch)?;
        match node.op.as_str() {
            "Conv" | "ConvInteger" => out.checked_mul(count(shape(1)?.get(1..)?, self.batch)?),
            "QLinearConv" => out.checked_mul(count(shape(3)?.get(1..)?, self.batch)?),
            "ConvTranspose" => {
                elements(graph, node.input(0)?, self.batch)?.checked_mul(count(shape(1)?.get(1..)?, self.batch)?)
            }
            "MatMul" | "MatMulInteger" | "QLinearMatMul" => out.checked_mul(at(shape(0)?.last()?)?),
            "Gemm" => {
                let a = shape(0)?;
                let inner = if node.int("transA").unwrap_or(0) != 0 { a.first()? } else { a.get(1)? };
                out.checked_mul(at(inner)?)
            }
            "Attention" => {
                let (q, k, v) = (shape(0)?, shape(1)?, shape(2)?);
                let heads = |name: &str| node.int(name).and_then(|h| u64::try_from(h).ok());
                let batch = at(q.first()?)?;
                // The scores and the mix of values each take rows x keys x width.
                let (rows, keys, widths) = match q.len() {
                    4 => {
                        let heads = at(&q[1])?;
                        (heads.checked_mul(at(&q[2])?)?, at(k.get(2)?)?, at(&q[3])?.checked_add(at(v.get(3)?)?)?)
                    }
                    3 => {
                        let (q_heads, kv_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
                        let (dq, dv) = (at(&q[2])?.checked_div(q_heads)?, at(v.get(2)?)?.checked_div(kv_heads)?);
                        (q_heads.checked_mul(at(&q[1])?)?, at(k.get(1)?)?, dq.checked_add(dv)?)
                    }
                    _ => return None,
                };
                batch.checked_mul(rows)?.checked_mul(keys)?.checked_mul(widths)
            }
            "Einsum" => {
                // Every index of the operands runs once.
                let equation: String = node.string("equation")?.chars().filter(|c| !c.is_whitespace()).collect();
                let left = equation.split("->").next()?;
                if left.contains('.') || left.len() > 256 {
                    return None;
                }
                let mut sizes: BTreeMap<char, u64> = BTreeMap::new();
                for (i, term) in left.split(',').enumerate() {
                    for (letter, dim) in term.chars().zip(shape(i)?) {
                        let size = at(dim)?;
                        let known = sizes.entry(letter).or_insert(size);
                        *known = (*known).max(size);
                    }
                }
                sizes.values().try_fold(1u64, |n, d| n.checked_mul(*d))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Value;
    use crate::onnx::DType;
    use crate::onnx::proto::TensorProto;

    fn add(graph: &mut Graph, op: &str, inputs: &[ValueId], shape: &[Dim]) -> ValueId {
        let output = graph.add_value(Value::new(op, Some(DType::F32), Some(shape.to_vec())));
        let mut node = Node::new(op, inputs.iter().copied());
        node.outputs = vec![Some(output)];
        graph.add_node(node);
        output
    }

    #[test]
    fn pointwise_ops_run_in_the_product_before_them() {
        let mut graph = Graph::default();
        graph.opset = 17;
        let b = Dim::symbol("batch");
        let x = graph.add_value(Value::new("x", Some(DType::F32), Some(vec![b.clone(), 8.into(), 16.into()])));
        graph.inputs.push(x);
        let w = graph.add_initializer("w", TensorProto::from_f32("w", &[16, 4], &[0.5; 64]));
        let bias = graph.add_initializer("b", TensorProto::from_f32("b", &[4], &[0.5; 4]));
        let shape = [b, 8.into(), 4.into()];
        let y = add(&mut graph, "MatMul", &[x, w], &shape);
        let y = add(&mut graph, "Add", &[y, bias], &shape);
        let y = add(&mut graph, "Relu", &[y], &shape);
        graph.outputs.push(y);

        let cost = total(&graph, 3, &|_, _, _| None);
        assert_eq!(cost.macs, 3 * 8 * 4 * 16);
        assert_eq!(cost.launches, 1.0);
        assert_eq!(cost.flops, 2 * cost.macs + 2 * 3 * 8 * 4);
        // x, w and the result of the product, then the bias; the rest stays in the kernel.
        assert_eq!(cost.bytes, 4 * (3 * 8 * 16 + 64 + 3 * 8 * 4 + 4));

        let table = table(&graph, 1, &|_, _, _| None);
        assert_eq!(table[0].op, "MatMul");
        assert_eq!(table.iter().map(|o| o.nodes).sum::<usize>(), 3);
    }

    #[test]
    fn a_value_that_is_read_elsewhere_ends_the_kernel() {
        let mut graph = Graph::default();
        graph.opset = 17;
        let shape = [Dim::Int(4), Dim::Int(4)];
        let x = graph.add_value(Value::new("x", Some(DType::F32), Some(shape.to_vec())));
        graph.inputs.push(x);
        let y = add(&mut graph, "MatMul", &[x, x], &shape);
        let relu = add(&mut graph, "Relu", &[y], &shape);
        let soft = add(&mut graph, "Softmax", &[y], &shape);
        graph.outputs.extend([relu, soft]);
        assert_eq!(total(&graph, 1, &|_, _, _| None).launches, 3.0);
    }

    #[test]
    fn unknown_plugins_count_what_they_touch_and_known_ones_what_their_rule_says() {
        let mut graph = Graph::default();
        graph.opset = 17;
        let shape = [Dim::Int(4)];
        let x = graph.add_value(Value::new("x", Some(DType::F16), Some(shape.to_vec())));
        graph.inputs.push(x);
        let y = graph.add_value(Value::new("y", Some(DType::F16), Some(shape.to_vec())));
        let mut node = Node::new("Op", [x]);
        node.domain = "trt.opt".into();
        node.outputs = vec![Some(y)];
        graph.add_node(node);
        graph.outputs.push(y);
        let unknown = total(&graph, 1, &|_, _, _| None);
        assert_eq!((unknown.bytes, unknown.launches), (16, 1.0));
        let known = Cost { bytes: 1, flops: 2, macs: 3, launches: 0.5 };
        assert_eq!(table(&graph, 1, &|_, _, _| Some(known))[0].cost, known);
        assert_eq!(table(&graph, 1, &|_, _, _| None)[0].op, "trt.opt.Op");
    }
}
