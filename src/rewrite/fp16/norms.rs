//! Norms that are spelled out, and other divisions by what may be small.

use std::collections::{BTreeSet, HashSet};

use super::account::{Cause, CauseKind};
use super::limits::{SMALLEST_NORMAL, VANISHES};
use super::ops;
use super::survey::Survey;
use crate::ir::{Node, NodeId, ValueId};
use crate::rewrite::pattern;

impl Survey<'_> {
    /// Norms that are spelled out: from the mean to the division by the deviation all stays.
    pub(super) fn variances(&mut self) {
        for id in self.order() {
            let node = self.graph.node(id);
            let Some(x) = node.input(0).filter(|_| node.domain.is_empty()) else { continue };
            let (square, of) = match node.op.as_str() {
                "ReduceMean" | "ReduceSum" | "GlobalAveragePool" => match self.square(x) {
                    Some((square, of)) => (Some(square), of),
                    None => continue,
                },
                "ReduceSumSquare" | "ReduceL2" => (None, x),
                _ => continue,
            };
            let Some(out) = node.output(0).filter(|v| self.is_float(*v)) else { continue };
            let Some(mut nodes) = self.statistic_after(out) else { continue };
            nodes.insert(id);
            nodes.extend(square);
            nodes.extend(self.centring(of));
            let reason = "it computes a variance or norm and divides by it, where float16 loses small deviations";
            let cause = self.cause(CauseKind::Variance, id, reason);
            self.stay(id, cause);
            for id in nodes {
                if self.changes(id) {
                    self.stays.entry(id).or_default();
                }
            }
        }
    }

    /// The node that squares, and what.
    fn square(&self, value: ValueId) -> Option<(NodeId, ValueId)> {
        let (id, node) = self.graph.producer(value)?;
        let (a, b) = (node.input(0)?, node.input(1)?);
        let square = (node.is("Mul") && a == b) || (node.is("Pow") && pattern::scalar(self.graph, b) == Some(2.0));
        square.then_some((id, a))
    }

    /// The subtraction of a mean that made the value, with the mean.
    fn centring(&self, value: ValueId) -> Vec<NodeId> {
        let Some((sub, node)) = self.graph.producer(value).filter(|(_, n)| n.is("Sub")) else { return vec![] };
        let (mut nodes, mut mean) = (vec![sub], node.input(1));
        while let Some((id, node)) = mean.and_then(|v| self.graph.producer(v)) {
            nodes.push(id);
            match node.op.as_str() {
                "ReduceMean" | "GlobalAveragePool" => return nodes,
                op if ops::is_movement(op) => mean = node.input(0),
                _ => break,
            }
        }
        vec![]
    }

    /// The nodes from a statistic to the root, logarithm or division that it ends in; none if it ends otherwise.
    fn statistic_after(&self, value: ValueId) -> Option<BTreeSet<NodeId>> {
        let (mut nodes, mut statistics, mut stack) = (BTreeSet::new(), HashSet::from([value]), vec![value]);
        let mut ends = false;
        while let Some(value) = stack.pop() {
            for &user in self.graph.uses(value) {
                let node = self.graph.node(user);
                let Some(out) = node.output(0).filter(|_| node.domain.is_empty()) else { continue };
                let divides = node.is("Div") && node.input(1) == Some(value);
                let goes_on = match node.op.as_str() {
                    "Sqrt" | "Reciprocal" | "Log" => {
                        ends = true;
                        true
                    }
                    "Pow" => {
                        let exponent = node.input(1).and_then(|e| pattern::scalar(self.graph, e));
                        ends |= exponent.is_some_and(|e| e < 0.0 || e.fract() != 0.0);
                        node.input(0) == Some(value)
                    }
                    "Reshape" | "Unsqueeze" | "Squeeze" | "Expand" | "Identity" => true,
                    "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Clip" => {
                        let known = |v: &ValueId| self.graph.constant(*v).is_some() || statistics.contains(v);
                        let alone = node.inputs.iter().flatten().all(known);
                        let small = self.graph.shape(out).is_some() && self.graph.shape(out) == self.graph.shape(value);
                        if !alone && !small && !matches!(node.op.as_str(), "Mul" | "Div") {
                            continue;
                        }
                        ends |= divides;
                        alone || small
                    }
                    _ => continue,
                };
                if nodes.insert(user) && goes_on && statistics.insert(out) {
                    stack.push(out);
                }
            }
        }
        ends.then_some(nodes)
    }

    /// The reduction whose result a node reads, with what is done to each element before it, as far as that has one
    /// source: a small mean of small numbers is lost before any epsilon is added.
    fn statistic_before(&self, id: NodeId) -> Vec<NodeId> {
        let source = |node: &Node| {
            let mut inputs: Vec<ValueId> =
                node.inputs.iter().flatten().copied().filter(|v| self.is_float(*v)).collect();
            inputs.dedup();
            if let [one] = inputs.as_slice() { Some(*one) } else { None }
        };
        let reduces = |node: &Node| node.op.starts_with("Reduce") || node.is("GlobalAveragePool");
        let (mut nodes, mut value) = (vec![], source(self.graph.node(id)));
        while let Some((id, node)) = value.and_then(|v| self.graph.producer(v)) {
            let first = nodes.is_empty();
            if !node.domain.is_empty() || (first && !reduces(node)) || (!first && !ops::is_elementwise(&node.op)) {
                break;
            }
            value = source(node);
            if value.is_none() {
                break;
            }
            nodes.push(id);
        }
        nodes
    }

    /// Epsilons that float16 rounds away, with what they keep from a division by zero.
    pub(super) fn epsilons(&mut self) {
        for id in self.order() {
            let node = self.graph.node(id);
            if !node.domain.is_empty() || !matches!(node.op.as_str(), "Add" | "Sub" | "Max" | "Clip") || self.stays(id)
            {
                continue;
            }
            let tiny = |v: &ValueId| {
                let epsilon = f64::from(self.weights.get(v)?.uniform?.abs());
                (epsilon > 0.0 && epsilon < SMALLEST_NORMAL).then_some((*v, epsilon))
            };
            let Some((value, epsilon)) = node.inputs.iter().flatten().find_map(tiny) else { continue };
            let Some(after) = node.output(0).and_then(|out| self.statistic_after(out)) else { continue };
            let lost = if epsilon <= VANISHES { "rounds it to 0" } else { "holds it with few digits" };
            let reason = format!("its epsilon {epsilon:.4e} keeps a division from zero, and float16 {lost}");
            let cause = self.cause(CauseKind::Epsilon, id, reason);
            let name = self.name(value);
            self.stay(id, Cause { value: Some(name), figure: Some(epsilon), limit: Some(SMALLEST_NORMAL), ..cause });
            for id in after.into_iter().chain(self.statistic_before(id)) {
                if self.changes(id) {
                    self.stays.entry(id).or_default();
                }
            }
        }
    }
}
