//! Which nodes stay in float32, and why.
//!
//! Every rule marks nodes and says the reason; a node without a mark becomes float16. What the calibration run saw
//! decides where a value is too large or too small; what no run can show, since ONNX Runtime computes float16 on a CPU
//! in float32 and rounds the results, is decided by the form of the graph: long sums, variances, epsilons, whole numbers.
//! The rules are in `causes`, `norms` and `between`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::account::{Cause, CauseKind, Island};
use super::ops::{self, Ports};
use super::ranges::Ranges;
use super::weights::Stats;
use crate::error::Result;
use crate::ir::{Graph, Node, NodeId, ValueId};
use crate::onnx::DType;

/// What stays, and the account of it.
pub struct Survey<'a> {
    pub(super) graph: &'a Graph,
    pub(super) ranges: Option<&'a Ranges>,
    /// Whether inputs and outputs of the graph become float16.
    pub(super) interface: bool,
    /// Nodes with ports that may change type, by which.
    pub(super) ports: HashMap<NodeId, Ports>,
    pub(super) stays: BTreeMap<NodeId, Vec<Cause>>,
    /// Of the constants that were looked at.
    pub(super) weights: HashMap<ValueId, Stats>,
    pub notes: Vec<String>,
}

/// What type a node wants an input in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    pub fn new(graph: &'a Graph, ranges: Option<&'a Ranges>, interface: bool) -> Result<Self> {
        let mut survey = Self {
            graph,
            ranges,
            interface,
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
            Some(ports) if !self.stays(id) && ports.any_inputs.contains(&slot) => Wants::Any,
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
    pub(super) fn changes(&self, id: NodeId) -> bool {
        let Some(ports) = self.ports.get(&id) else { return false };
        let node = self.graph.node(id);
        let float = |v: &Option<ValueId>| v.is_some_and(|v| self.graph.dtype(v) == Some(DType::F32));
        let input =
            |(i, v): (usize, &Option<ValueId>)| float(v) && !ports.reads_any && !ports.fixed_inputs.contains(&i);
        let output = |(i, v): (usize, &Option<ValueId>)| float(v) && !ports.fixed_outputs.contains(&i);
        node.inputs.iter().enumerate().any(input) || node.outputs.iter().enumerate().any(output)
    }

    /// Marks a node to stay. One that has nothing to change is left alone.
    pub(super) fn stay(&mut self, id: NodeId, cause: Cause) {
        if !self.changes(id) {
            return;
        }
        self.stays.entry(id).or_default().push(cause);
    }

    pub(super) fn cause(&self, kind: CauseKind, id: NodeId, reason: impl Into<String>) -> Cause {
        let node = self.graph.node_label(id);
        Cause { kind, node, value: None, reason: reason.into(), figure: None, limit: None }
    }

    pub(super) fn name(&self, value: ValueId) -> String {
        self.graph.value(value).name.clone()
    }

    /// Node ids in topological order, so that marks can be made on the way.
    pub(super) fn order(&self) -> Vec<NodeId> {
        self.graph.order().to_vec()
    }
}

pub(super) fn slot_of(outputs: &[Option<ValueId>], value: ValueId) -> usize {
    outputs.iter().position(|v| *v == Some(value)).unwrap_or_default()
}

/// Whether the node computes each element from those at its place, or moves elements.
pub(super) fn is_simple(node: &Node) -> bool {
    node.domain.is_empty() && (ops::is_elementwise(&node.op) || ops::is_movement(&node.op))
}
