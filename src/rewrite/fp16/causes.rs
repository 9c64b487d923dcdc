//! What keeps a node in float32 on its own: its op, its weights, the values at it, what it adds up.

use std::collections::{BTreeSet, HashSet};

use super::account::{Cause, CauseKind};
use super::limits::{EXACT, HEADROOM, LARGEST, LIMIT, MOST_SUMMED, NOTED_LOSS, SMALLEST_NORMAL};
use super::ops::{self, Ports};
use super::ranges::Range;
use super::survey::{Survey, Wants, is_simple, slot_of};
use super::weights::Stats;
use crate::error::Result;
use crate::ir::{Dim, Node, NodeId, ValueId};
use crate::onnx::DType;
use crate::rewrite::ops::Classifier;
use crate::rewrite::pattern;

impl Survey<'_> {
    /// What ONNX has no float16 form of.
    pub(super) fn types(&mut self) {
        for id in self.order() {
            let node = self.graph.node(id);
            let values = || node.inputs.iter().chain(&node.outputs).flatten().map(|v| self.graph.value(*v));
            let unknown = values().find(|v| v.dtype.is_none() && v.other_type.is_none());
            let reason = match ops::ports(node, self.graph.opset) {
                Ok(ports) => {
                    let ports = self.gives_float(node).unwrap_or(ports);
                    self.ports.insert(id, ports);
                    // ONNX wants one type of operands that change together.
                    let Some(value) = unknown.filter(|_| !ports.reads_any) else { continue };
                    format!("the type of '{}' is not known", value.name)
                }
                Err(why) => format!("{}: {why}", node.qualified_op()),
            };
            if values().any(|v| v.dtype == Some(DType::F32)) {
                let cause = self.cause(CauseKind::Op, id, reason);
                self.stays.insert(id, vec![cause]);
            }
        }
    }

    /// The ports of a classifier whose result the model gives in float32: the op makes it so by itself.
    fn gives_float(&self, node: &Node) -> Option<Ports> {
        let b = Classifier::typed_by(node)?;
        let given = node.output(0).is_some_and(|y| self.graph.is_output(y) && self.graph.uses(y).is_empty());
        (given && !self.interface).then(|| ops::float_result(b))
    }

    /// Sizes, positions and indices that are computed in floats.
    pub(super) fn integers(&mut self) {
        for id in self.order() {
            let node = self.graph.node(id);
            let to = |slot: usize| node.output(slot).and_then(|v| self.graph.dtype(v));
            let counts =
                |t: DType| matches!(t, DType::I64 | DType::I32 | DType::I16 | DType::U16 | DType::U32 | DType::U64);
            let label = self.graph.node_label(id);
            let mut sources: Vec<(ValueId, String)> = vec![];
            if node.is("Cast") && to(0).is_some_and(counts) {
                let reason = format!("it leads to whole numbers by '{label}', and float16 is exact to {EXACT} only");
                sources.extend(node.input(0).map(|v| (v, reason)));
            }
            for slot in self.ports.get(&id).map_or(&[][..], |p| p.fixed_inputs) {
                let reason = format!("it leads to input {slot} of '{label}', which ONNX fixes at float32");
                sources.extend(node.input(*slot).map(|v| (v, reason)));
            }
            let followed = node.outputs.iter().flatten().any(|v| self.graph.value(*v).ints.is_some());
            if followed && self.changes(id) {
                let cause = self.cause(CauseKind::Integer, id, "it computes a size");
                self.stay(id, cause);
            }
            for (value, reason) in sources {
                for back in self.elementwise_before(value) {
                    let cause = self.cause(CauseKind::Integer, back, reason.clone());
                    self.stay(back, cause);
                }
            }
        }
    }

    /// Nodes that compute a value by elementwise ops and moves alone.
    fn elementwise_before(&self, value: ValueId) -> Vec<NodeId> {
        let (mut found, mut stack, mut seen) = (vec![], vec![value], HashSet::new());
        while let Some(value) = stack.pop() {
            let Some((id, node)) = self.graph.producer(value) else { continue };
            let simple = is_simple(node) || (node.is("Cast") && self.changes(id));
            if simple && self.graph.dtype(value) == Some(DType::F32) && seen.insert(id) {
                found.push(id);
                stack.extend(node.inputs.iter().flatten());
            }
        }
        found.sort_unstable();
        found
    }

    /// Weights and constants beyond float16, and batch norms of small variances.
    pub(super) fn constants(&mut self) -> Result<()> {
        let mut noted = BTreeSet::new();
        for id in self.order() {
            let node = self.graph.node(id);
            if !self.changes(id) || self.stays(id) {
                continue;
            }
            let mut causes = vec![];
            for (slot, value) in node.inputs.iter().enumerate() {
                let Some(value) = *value else { continue };
                let Some(tensor) = self.graph.constant(value) else { continue };
                if self.graph.dtype(value) != Some(DType::F32) || self.wants(id, slot) != Wants::Half {
                    continue;
                }
                let stats = match self.weights.get(&value) {
                    Some(stats) => *stats,
                    None => Stats::of(tensor)?,
                };
                self.weights.insert(value, stats);
                causes.extend(self.weight_cause(id, slot, value, &stats));
                let lost = stats.vanish as f64 / (stats.nonzero.max(1)) as f64;
                if lost > NOTED_LOSS && noted.insert(value) {
                    self.notes.push(format!(
                        "weight '{}': {:.1} % of its elements that are not zero become zero in float16",
                        self.name(value),
                        100.0 * lost
                    ));
                }
            }
            if let Some(tensor) = node.tensor("value").filter(|_| node.is("ConstantOfShape")) {
                let stats = Stats::of(tensor)?;
                if stats.overflows > 0 {
                    let reason = format!("it fills with {}, beyond the largest float16, {LARGEST}", stats.max_abs);
                    let cause = self.cause(CauseKind::Weight, id, reason);
                    causes.push(Cause { figure: Some(stats.max_abs.into()), limit: Some(LARGEST), ..cause });
                }
            }
            if node.is("BatchNormalization") {
                causes.extend(self.batch_norm_cause(id));
            }
            for cause in causes {
                self.stay(id, cause);
            }
        }
        Ok(())
    }

    fn weight_cause(&self, id: NodeId, slot: usize, value: ValueId, stats: &Stats) -> Option<Cause> {
        let (node, figure) = (self.graph.node(id), f64::from(stats.max_abs));
        let what = format!("weight '{}'", self.name(value));
        let (reason, limit) = if stats.overflows > 0 && !ops::is_bound(node, slot) {
            let count = stats.overflows;
            (format!("{count} elements of {what} reach {figure:.4e}, beyond the largest float16, {LARGEST}"), LARGEST)
        } else if ops::is_factor(node, slot) && figure > 0.0 && figure < SMALLEST_NORMAL {
            let reason =
                format!("{what} reaches {figure:.4e} only, below the normal numbers of float16, where digits are lost");
            (reason, SMALLEST_NORMAL)
        } else {
            return None;
        };
        let cause = self.cause(CauseKind::Weight, id, reason);
        Some(Cause { value: Some(self.name(value)), figure: Some(figure), limit: Some(limit), ..cause })
    }

    fn batch_norm_cause(&self, id: NodeId) -> Option<Cause> {
        let node = self.graph.node(id);
        let variance = node.input(4)?;
        let Some(stats) = self.weights.get(&variance) else {
            return Some(self.cause(CauseKind::Variance, id, "its variance is computed"));
        };
        let epsilon = node.float("epsilon").unwrap_or(1e-5);
        let figure = f64::from(stats.min) + f64::from(epsilon);
        (figure < SMALLEST_NORMAL).then(|| {
            let reason =
                format!("its smallest variance with epsilon is {figure:.4e}, below the normal numbers of float16");
            let cause = self.cause(CauseKind::Variance, id, reason);
            Cause { value: Some(self.name(variance)), figure: Some(figure), limit: Some(SMALLEST_NORMAL), ..cause }
        })
    }

    /// Values that the calibration saw outside of what float16 holds well: who makes and who reads them stays.
    pub(super) fn values(&mut self) {
        for value in self.graph.value_ids() {
            if !self.is_float(value) {
                continue;
            }
            if self.range(value).is_some_and(|r| r.nan) {
                let name = self.name(value);
                self.notes.push(format!("value '{name}' has NaN in the calibration, before any conversion"));
            }
            let Some(mut cause) = self.unfit(value) else { continue };
            let made_by = self.graph.producer(value).map(|(id, node)| (id, slot_of(&node.outputs, value)));
            if let Some((producer, _)) = made_by.filter(|(id, slot)| self.stays(*id) || self.makes_half(*id, *slot)) {
                cause.node = self.graph.node_label(producer);
                self.stay(producer, cause.clone());
            }
            let accounted = made_by.is_some_and(|(id, _)| self.stays(id));
            for user in self.graph.uses(value).to_vec() {
                let slots = self.graph.node(user).inputs.iter().enumerate().filter(|(_, v)| **v == Some(value));
                if slots.map(|(slot, _)| self.wants(user, slot)).all(|w| w != Wants::Half) {
                    continue;
                }
                if accounted {
                    // The island is joined by the value, whose cause its producer has.
                    self.stays.entry(user).or_default();
                } else {
                    cause.node = self.graph.node_label(user);
                    self.stay(user, cause.clone());
                }
            }
        }
        for id in self.order() {
            let node = self.graph.node(id);
            let Some(out) = node.output(0).filter(|_| node.is("Exp") && !self.stays(id)) else { continue };
            let reach = self.range(out).map(|r| f64::from(r.max_abs));
            if reach.is_none_or(|r| r > 1.0) {
                let seen = reach.map_or("were not calibrated".into(), |r| format!("reach {r:.4e} in the calibration"));
                let reason = format!("its results {seen}; an exponential of inputs over 0 grows past float16 at 11.1");
                let cause = self.cause(CauseKind::Overflow, id, reason);
                self.stay(id, Cause { value: Some(self.name(out)), figure: reach, limit: Some(1.0), ..cause });
            }
        }
    }

    /// Whether a value should not be stored in float16.
    pub fn unfits(&self, value: ValueId) -> bool {
        self.unfit(value).is_some()
    }

    fn range(&self, value: ValueId) -> Option<Range> {
        self.ranges?.get(&self.graph.value(value).name)
    }

    /// Why a value should not be stored in float16. The node of the cause is for the caller to name.
    fn unfit(&self, value: ValueId) -> Option<Cause> {
        let name = self.name(value);
        let Some(range) = self.range(value) else { return self.uncalibrated(value) };
        let figure = f64::from(range.max_abs);
        let (kind, limit, reason) = if figure > LIMIT {
            let reason = format!("|x| reaches {figure:.4e} in the calibration, over {LIMIT} ({LARGEST} / {HEADROOM})");
            (CauseKind::Overflow, LIMIT, reason)
        } else if figure > 0.0 && figure < SMALLEST_NORMAL {
            let reason =
                format!("|x| reaches {figure:.4e} only, below the normal numbers of float16, where digits are lost");
            (CauseKind::Underflow, SMALLEST_NORMAL, reason)
        } else if range.whole && figure > EXACT {
            (CauseKind::Integer, EXACT, format!("whole numbers up to {figure}, and float16 is exact to {EXACT} only"))
        } else {
            return None;
        };
        Some(Cause { kind, node: String::new(), value: Some(name), reason, figure: Some(figure), limit: Some(limit) })
    }

    /// Of values that no run has seen, only whole numbers are known to be unfit.
    fn uncalibrated(&self, value: ValueId) -> Option<Cause> {
        let (_, node) = self.graph.producer(value)?;
        let from = node.input(0).filter(|_| node.is("Cast")).and_then(|v| self.graph.dtype(v))?;
        let large = matches!(from, DType::I64 | DType::I32 | DType::U32 | DType::U64 | DType::I16 | DType::U16);
        large.then(|| Cause {
            kind: CauseKind::Integer,
            node: String::new(),
            value: Some(self.name(value)),
            reason: format!("whole numbers of type {from}, and float16 is exact to {EXACT} only"),
            figure: None,
            limit: Some(EXACT),
        })
    }

    /// Sums of many elements.
    pub(super) fn reductions(&mut self) {
        for id in self.order() {
            let node = self.graph.node(id);
            let squares = matches!(node.op.as_str(), "ReduceSumSquare" | "ReduceL2");
            let adds = squares
                || matches!(
                    node.op.as_str(),
                    "ReduceSum" | "ReduceMean" | "ReduceL1" | "AveragePool" | "GlobalAveragePool"
                );
            if !adds || !node.domain.is_empty() || !self.changes(id) || self.stays(id) {
                continue;
            }
            let Some(x) = node.input(0) else { continue };
            let Some(count) = self.summed(node) else {
                let cause = self.cause(CauseKind::Reduction, id, "it adds up a number of elements that is not known");
                self.stay(id, cause);
                continue;
            };
            let largest = self.range(x).map(|r| f64::from(r.max_abs));
            let term = largest.map(|m| if squares { m * m } else { m });
            let sum = term.map(|t| t * count as f64);
            let (reason, figure, limit) = if count > MOST_SUMMED {
                (format!("it adds up {count} elements, over {MOST_SUMMED}"), count as f64, MOST_SUMMED as f64)
            } else if let (Some(term), Some(sum)) = (term, sum.filter(|s| *s > LIMIT)) {
                let of = if squares { "squares" } else { "elements" };
                (format!("its sum of {count} {of} of up to {term:.4e} can reach {sum:.4e}, over {LIMIT}"), sum, LIMIT)
            } else {
                continue;
            };
            let cause = self.cause(CauseKind::Reduction, id, reason);
            self.stay(id, Cause { figure: Some(figure), limit: Some(limit), ..cause });
        }
    }

    /// Elements in each sum of a reduction or pool.
    fn summed(&self, node: &Node) -> Option<i64> {
        let product =
            |dims: &mut dyn Iterator<Item = &Dim>| dims.map(Dim::int).try_fold(1i64, |n, d| n.checked_mul(d?));
        let shape = self.graph.shape(node.input(0)?)?;
        match node.op.as_str() {
            "AveragePool" => node.ints("kernel_shape")?.iter().try_fold(1i64, |n, d| n.checked_mul(*d)),
            "GlobalAveragePool" => product(&mut shape.get(2..)?.iter()),
            _ if node.int("noop_with_empty_axes") == Some(1)
                && node.ints("axes").is_none()
                && node.input(1).is_none() =>
            {
                Some(1)
            }
            _ => product(&mut pattern::reduce_axes(self.graph, node)?.iter().map(|&a| &shape[a])),
        }
    }
}
