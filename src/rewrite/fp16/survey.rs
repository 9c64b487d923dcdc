//! Which nodes stay in float32, and why.
//!
//! Every rule marks nodes and says the reason; a node without a mark becomes float16. What the calibration run saw
//! decides where a value is too large or too small; what no run can show, since ONNX Runtime computes float16 on a CPU
//! in float32 and rounds the results, is decided by the form of the graph: long sums, variances, epsilons, whole numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::account::{Cause, CauseKind, Island};
use super::ops::{self, Ports};
use super::ranges::{Range, Ranges};
use super::weights::Stats;
use crate::error::Result;
use crate::ir::{Dim, Graph, Node, NodeId, ValueId};
use crate::onnx::DType;
use crate::rewrite::pattern;

/// The largest finite float16.
pub const LARGEST: f64 = 65504.0;
/// What a value of the calibration run may reach is [`LARGEST`] by this, since other inputs reach further.
pub const HEADROOM: f64 = 8.0;
/// The largest magnitude that a calibrated value may have in float16.
pub const LIMIT: f64 = LARGEST / HEADROOM;
/// The smallest normal float16, 2^-14: numbers below it have fewer digits, and from 2^-25 down none.
pub const SMALLEST_NORMAL: f64 = 1.0 / 16384.0;
/// Numbers up to this, 2^-25, round to zero.
const VANISHES: f64 = SMALLEST_NORMAL / 2048.0;
/// Whole numbers up to this, 2^11, are exact.
pub const EXACT: f64 = 2048.0;
/// Elements that are added up in float16. Rounding after each of n additions errs by about sqrt(n) / 2048 of the sum,
/// if the device accumulates in float16, which ONNX leaves open: 0.8 % for 256.
pub const MOST_SUMMED: i64 = 256;
/// A weight of which more than this part of the nonzero elements vanishes is noted.
pub const NOTED_LOSS: f64 = 0.01;
/// Nodes between islands that join them, at most.
const MOST_BETWEEN: usize = 16;

/// What stays, and the account of it.
pub struct Survey<'a> {
    graph: &'a Graph,
    ranges: Option<&'a Ranges>,
    /// Nodes with ports that may change type, by which.
    ports: HashMap<NodeId, Ports>,
    stays: BTreeMap<NodeId, Vec<Cause>>,
    weights: HashMap<ValueId, Stats>,
    pub notes: Vec<String>,
}

/// What type a node wants an input in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    Half,
    Float,
    /// Takes it as it is.
    Any,
}

impl<'a> Survey<'a> {
    /// Looks at every node of a graph whose types and shapes are inferred. Without `ranges` only the rules that need
    /// none apply.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a weight that cannot be read.
    pub fn new(graph: &'a Graph, ranges: Option<&'a Ranges>) -> Result<Self> {
        let mut survey = Self {
            graph,
            ranges,
            ports: HashMap::new(),
            stays: BTreeMap::new(),
            weights: HashMap::new(),
            notes: vec![],
        };
        survey.types();
        survey.integers();
        survey.constants()?;
        survey.values();
        survey.reductions();
        survey.variances();
        survey.epsilons();
        survey.between();
        Ok(survey)
    }

    /// Whether the value is float32 and not constant.
    pub fn is_float(&self, value: ValueId) -> bool {
        self.graph.dtype(value) == Some(DType::F32) && self.graph.constant(value).is_none()
    }

    pub fn stays(&self, id: NodeId) -> bool {
        self.stays.contains_key(&id)
    }

    /// Whether the node makes its output `slot` in float16.
    pub fn makes_half(&self, id: NodeId, slot: usize) -> bool {
        let float = |v: ValueId| self.graph.dtype(v) == Some(DType::F32);
        !self.stays(id)
            && self.graph.node(id).output(slot).is_some_and(float)
            && self.ports.get(&id).is_some_and(|p| !p.fixed_outputs.contains(&slot))
    }

    /// In which type the node reads a float32 input.
    pub fn wants(&self, id: NodeId, slot: usize) -> Wants {
        match self.ports.get(&id) {
            Some(ports) if ports.reads_any => Wants::Any,
            Some(ports) if !self.stays(id) && !ports.fixed_inputs.contains(&slot) => Wants::Half,
            _ => Wants::Float,
        }
    }

    /// Islands in the order of their first nodes.
    pub fn islands(&self) -> Vec<Island> {
        let order: Vec<NodeId> = self.graph.order().iter().copied().filter(|id| self.stays(*id)).collect();
        let mut home_of: HashMap<NodeId, usize> = HashMap::new();
        let mut members: Vec<Vec<NodeId>> = vec![];
        for &id in &order {
            let inputs = self.graph.node(id).inputs.iter().flatten().filter(|v| self.is_float(**v));
            let mut joined: BTreeSet<usize> =
                inputs.filter_map(|v| home_of.get(&self.graph.value(*v).producer?).copied()).collect();
            let home = joined.pop_first().unwrap_or_else(|| {
                members.push(vec![]);
                members.len() - 1
            });
            for other in joined {
                let moved = std::mem::take(&mut members[other]);
                moved.iter().for_each(|id| _ = home_of.insert(*id, home));
                members[home].extend(moved);
            }
            members[home].push(id);
            home_of.insert(id, home);
        }
        let place: HashMap<NodeId, usize> = order.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        members.retain(|nodes| !nodes.is_empty());
        members.iter_mut().for_each(|nodes| nodes.sort_by_key(|id| place[id]));
        members.sort_by_key(|nodes| place[&nodes[0]]);
        let island = |nodes: Vec<NodeId>| {
            let mut causes: Vec<Cause> = vec![];
            for cause in nodes.iter().flat_map(|id| &self.stays[id]) {
                let known = |c: &Cause| (c.kind, &c.value, &c.reason) == (cause.kind, &cause.value, &cause.reason);
                if !causes.iter().any(known) {
                    causes.push(cause.clone());
                }
            }
            Island { nodes: nodes.into_iter().map(|id| self.graph.node_label(id)).collect(), causes }
        };
        members.into_iter().map(island).collect()
    }

    // ---- marking ----

    /// Whether the node has a port that changes type if the node does not stay.
    fn changes(&self, id: NodeId) -> bool {
        let Some(ports) = self.ports.get(&id) else { return false };
        let node = self.graph.node(id);
        let float = |v: &Option<ValueId>| v.is_some_and(|v| self.graph.dtype(v) == Some(DType::F32));
        let input = |(i, v): (usize, &Option<ValueId>)| float(v) && !ports.reads_any && !ports.fixed_inputs.contains(&i);
        let output = |(i, v): (usize, &Option<ValueId>)| float(v) && !ports.fixed_outputs.contains(&i);
        node.inputs.iter().enumerate().any(input) || node.outputs.iter().enumerate().any(output)
    }

    /// Marks a node to stay. One that has nothing to change is left alone.
    fn stay(&mut self, id: NodeId, cause: Cause) {
        if !self.changes(id) {
            return;
        }
        self.stays.entry(id).or_default().push(cause);
    }

    fn cause(&self, kind: CauseKind, id: NodeId, reason: impl Into<String>) -> Cause {
        let node = self.graph.node_label(id);
        Cause { kind, node, value: None, reason: reason.into(), figure: None, limit: None }
    }

    fn name(&self, value: ValueId) -> String {
        self.graph.value(value).name.clone()
    }

    /// Node ids in topological order, so that marks can be made on the way.
    fn order(&self) -> Vec<NodeId> {
        self.graph.order().to_vec()
    }

    // ---- rules ----

    /// What ONNX has no float16 form of.
    fn types(&mut self) {
        for id in self.order() {
            let node = self.graph.node(id);
            match ops::ports(node, self.graph.opset) {
                Ok(ports) => _ = self.ports.insert(id, ports),
                Err(why) => {
                    let mut values = node.inputs.iter().chain(&node.outputs).flatten();
                    if values.any(|v| self.graph.dtype(*v) == Some(DType::F32)) {
                        let cause = self.cause(CauseKind::Op, id, format!("{}: {why}", node.qualified_op()));
                        self.stays.insert(id, vec![cause]);
                    }
                }
            }
        }
    }

    /// Sizes, positions and indices that are computed in floats.
    fn integers(&mut self) {
        for id in self.order() {
            let node = self.graph.node(id);
            let to = |slot: usize| node.output(slot).and_then(|v| self.graph.dtype(v));
            let counts = |t: DType| matches!(t, DType::I64 | DType::I32 | DType::I16 | DType::U16 | DType::U32 | DType::U64);
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
    fn constants(&mut self) -> Result<()> {
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
            let reason = format!("{what} reaches {figure:.4e} only, below the normal numbers of float16, where digits are lost");
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
            let reason = format!("its smallest variance with epsilon is {figure:.4e}, below the normal numbers of float16");
            let cause = self.cause(CauseKind::Variance, id, reason);
            Cause { value: Some(self.name(variance)), figure: Some(figure), limit: Some(SMALLEST_NORMAL), ..cause }
        })
    }

    /// Values that the calibration saw outside of what float16 holds well: who makes and who reads them stays.
    fn values(&mut self) {
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
            let reason = format!("|x| reaches {figure:.4e} only, below the normal numbers of float16, where digits are lost");
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
    fn reductions(&mut self) {
        for id in self.order() {
            let node = self.graph.node(id);
            let squares = matches!(node.op.as_str(), "ReduceSumSquare" | "ReduceL2");
            let adds = squares || matches!(node.op.as_str(), "ReduceSum" | "ReduceMean" | "ReduceL1" | "AveragePool" | "GlobalAveragePool");
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
        let product = |dims: &mut dyn Iterator<Item = &Dim>| dims.map(Dim::int).try_fold(1i64, |n, d| n.checked_mul(d?));
        let shape = self.graph.shape(node.input(0)?)?;
        match node.op.as_str() {
            "AveragePool" => node.ints("kernel_shape")?.iter().try_fold(1i64, |n, d| n.checked_mul(*d)),
            "GlobalAveragePool" => product(&mut shape.get(2..)?.iter()),
            _ if node.int("noop_with_empty_axes") == Some(1) && node.ints("axes").is_none() && node.input(1).is_none() => Some(1),
            _ => product(&mut pattern::reduce_axes(self.graph, node)?.iter().map(|&a| &shape[a])),
        }
    }

    /// Norms that are spelled out: from the mean to the division by the deviation all stays.
    fn variances(&mut self) {
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

    /// Epsilons that float16 rounds away, with what they keep from a division by zero.
    fn epsilons(&mut self) {
        for id in self.order() {
            let node = self.graph.node(id);
            if !node.domain.is_empty() || !matches!(node.op.as_str(), "Add" | "Sub" | "Max" | "Clip") || self.stays(id) {
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
            for id in after {
                if self.changes(id) {
                    self.stays.entry(id).or_default();
                }
            }
        }
    }

    /// Simple nodes between those that stay, where that takes fewer casts.
    fn between(&mut self) {
        loop {
            let joined: Vec<Vec<NodeId>> = self.simple_components().into_iter().filter(|c| self.saves_casts(c)).collect();
            if joined.is_empty() {
                return;
            }
            for component in joined {
                for id in component {
                    let reason = "it lies between nodes that stay, and would cost more casts";
                    let cause = self.cause(CauseKind::Between, id, reason);
                    self.stay(id, cause);
                }
            }
        }
    }

    /// Nodes of elementwise ops and moves that become float16, by what they are joined to.
    fn simple_components(&self) -> Vec<Vec<NodeId>> {
        let free = |id: NodeId| is_simple(self.graph.node(id)) && self.changes(id) && !self.stays(id);
        let (mut components, mut seen) = (vec![], HashSet::new());
        for &start in self.graph.order().iter().filter(|id| free(**id)) {
            if !seen.insert(start) {
                continue;
            }
            let (mut component, mut stack) = (vec![], vec![start]);
            while let Some(id) = stack.pop() {
                component.push(id);
                let node = self.graph.node(id);
                let before = node.inputs.iter().flatten().filter(|v| self.is_float(**v));
                let before = before.filter_map(|v| self.graph.value(*v).producer);
                let after = node.outputs.iter().flatten().filter(|v| self.is_float(**v));
                let after = after.flat_map(|v| self.graph.uses(*v).iter().copied());
                for next in before.chain(after).filter(|id| free(*id)) {
                    if seen.insert(next) {
                        stack.push(next);
                    }
                }
            }
            component.sort_unstable();
            components.push(component);
        }
        components
    }

    /// Whether a component in float32 takes fewer casts than in float16. Inputs and outputs of the graph count as
    /// neither: a model of nothing but simple ops is to become float16 all the same.
    fn saves_casts(&self, component: &[NodeId]) -> bool {
        if component.len() > MOST_BETWEEN {
            return false;
        }
        let inside = |id: NodeId| component.binary_search(&id).is_ok();
        let wanted = |value: ValueId, wants: Wants| {
            self.graph.uses(value).iter().filter(|u| !inside(**u)).any(|&user| {
                let inputs = self.graph.node(user).inputs.iter().enumerate();
                inputs.filter(|(_, v)| **v == Some(value)).any(|(slot, _)| self.wants(user, slot) == wants)
            })
        };
        let (mut as_half, mut as_float) = (0, 0);
        let mut entering = BTreeSet::new();
        for &id in component {
            let node = self.graph.node(id);
            for &value in node.inputs.iter().flatten().filter(|v| self.is_float(**v)) {
                let Some((producer, made_by)) = self.graph.producer(value) else { continue };
                if inside(producer) || !entering.insert(value) {
                    continue;
                }
                if self.makes_half(producer, slot_of(&made_by.outputs, value)) {
                    as_float += usize::from(!wanted(value, Wants::Float));
                } else {
                    as_half += usize::from(!wanted(value, Wants::Half));
                }
            }
            for &value in node.outputs.iter().flatten().filter(|v| self.is_float(**v)) {
                as_half += usize::from(wanted(value, Wants::Float));
                as_float += usize::from(wanted(value, Wants::Half));
            }
        }
        as_float < as_half
    }
}

fn slot_of(outputs: &[Option<ValueId>], value: ValueId) -> usize {
    outputs.iter().position(|v| *v == Some(value)).unwrap_or_default()
}

fn is_simple(node: &Node) -> bool {
    node.domain.is_empty() && (ops::is_elementwise(&node.op) || ops::is_movement(&node.op))
}
