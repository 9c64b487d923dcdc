//! The engine of rules: rules propose patches, only the engine changes the graph.
//!
//! A [`Patch`] adds nodes and says which values they compute; the nodes it makes superfluous die by themselves.
//! Before a patch is applied the engine checks that replaced and replacing values have the same type and shape, and
//! that every node the rule counted on losing really dies: an interior value that another node still reads, or that is
//! a graph output, makes the patch a [`Miss`]. After it the whole graph is checked.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::error::{Error, Result};
use crate::ir::{self, Dim, Graph, Node, NodeId, Value, ValueId, shape_text};
use crate::onnx::DType;
use crate::onnx::proto::{AttributeProto, TensorProto};
use crate::rewrite::{Kind, Options, Site, Standard, Status, Target};

/// Why a rule did not fire at a place.
#[derive(Clone, Debug, Default)]
pub struct Miss {
    /// What the match broke on, as a node or value name.
    pub at: String,
    pub reason: String,
    pub expected: Option<String>,
    pub found: Option<String>,
}

impl Miss {
    pub fn new(at: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { at: at.into(), reason: reason.into(), ..Self::default() }
    }

    pub fn expected(mut self, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Self {
        self.expected = Some(expected.to_string());
        self.found = Some(found.to_string());
        self
    }

    /// The reason as the site of `node` gives it: with the place, where that is another.
    fn text(&self, node: &str) -> String {
        if self.at.is_empty() || self.at == node {
            self.reason.clone()
        } else {
            format!("{} (at {})", self.reason, self.at)
        }
    }
}

/// Nodes to add, values that they take over, nodes that must die by it.
pub struct Patch {
    pub rule: &'static str,
    first: u32,
    values: Vec<Value>,
    nodes: Vec<Node>,
    replacements: Vec<(ValueId, ValueId)>,
    covers: BTreeSet<NodeId>,
}

impl Patch {
    pub fn new(graph: &Graph, rule: &'static str) -> Self {
        let first = graph.value_ids().len() as u32;
        Self { rule, first, values: vec![], nodes: vec![], replacements: vec![], covers: BTreeSet::new() }
    }

    /// A new value, to be the output of a node of this patch.
    pub fn value(&mut self, name: &str, dtype: Option<DType>, shape: Option<Vec<Dim>>) -> ValueId {
        self.push(Value::new(name, dtype, shape))
    }

    /// A new value of the type and shape of an old one.
    pub fn value_like(&mut self, graph: &Graph, name: &str, like: ValueId) -> ValueId {
        let like = graph.value(like);
        self.value(name, like.dtype, like.shape.clone())
    }

    pub fn constant(&mut self, name: &str, tensor: TensorProto) -> ValueId {
        self.push(Value::of_tensor(name, tensor))
    }

    fn push(&mut self, value: Value) -> ValueId {
        let id = ValueId(self.first + self.values.len() as u32);
        self.values.push(value);
        id
    }

    /// Adds a node with its outputs.
    pub fn node(&mut self, mut node: Node, outputs: impl IntoIterator<Item = ValueId>) {
        node.outputs = outputs.into_iter().map(Some).collect();
        self.nodes.push(node);
    }

    /// Type and shape of a value of the graph or of this patch.
    pub fn describe<'a>(&'a self, graph: &'a Graph, value: ValueId) -> &'a Value {
        match value.0.checked_sub(self.first) {
            Some(i) => &self.values[i as usize],
            None => graph.value(value),
        }
    }

    /// Readers of `old` shall read `new`.
    pub fn replace(&mut self, old: ValueId, new: ValueId) {
        self.replacements.push((old, new));
    }

    /// These nodes shall be superfluous afterwards.
    pub fn cover(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        self.covers.extend(nodes);
    }

    /// Adds a `Reshape` where the shape differs. An axis that is not an integer becomes -1.
    pub fn reshape(&mut self, graph: &Graph, value: ValueId, shape: &[Dim], name: &str) -> Option<ValueId> {
        let from = self.describe(graph, value);
        if from.shape.as_deref() == Some(shape) {
            return Some(value);
        }
        let (dtype, target) = (from.dtype, reshape_target(shape)?);
        let dims = self.constant(&format!("{name}_shape"), TensorProto::from_i64("", &[target.len() as i64], &target));
        let out = self.value(name, dtype, Some(shape.to_vec()));
        let node = Node { name: name.into(), ..Node::new("Reshape", [value, dims]) };
        self.node(node, [out]);
        Some(out)
    }

    /// Adds a `Transpose`.
    pub fn transpose(&mut self, graph: &Graph, value: ValueId, perm: &[usize], name: &str) -> Option<ValueId> {
        let from = self.describe(graph, value);
        let shape = perm.iter().map(|&axis| from.shape.as_ref()?.get(axis).cloned()).collect::<Option<_>>()?;
        let out = self.value(name, from.dtype, Some(shape));
        let node = Node { name: name.into(), ..Node::new("Transpose", [value]) };
        let perm: Vec<i64> = perm.iter().map(|&axis| axis as i64).collect();
        self.node(node.with(AttributeProto::ints("perm", &perm)), [out]);
        Some(out)
    }
}

/// The constant target of a `Reshape` to `shape`; `None` if more than one axis is not an integer.
pub fn reshape_target(shape: &[Dim]) -> Option<Vec<i64>> {
    let target: Vec<i64> = shape.iter().map(|d| d.int().unwrap_or(-1)).collect();
    (target.iter().filter(|&&d| d == -1).count() <= 1).then_some(target)
}

/// A graph under rewriting: applies patches, counts them, and keeps the account of sites.
pub struct Engine<'a> {
    graph: Graph,
    options: &'a Options,
    sites: Vec<Site>,
    patches: BTreeMap<String, usize>,
    made: usize,
    progress: &'a mut dyn FnMut(&str, usize),
}

impl<'a> Engine<'a> {
    pub fn new(graph: Graph, options: &'a Options, progress: &'a mut dyn FnMut(&str, usize)) -> Self {
        Self { graph, options, sites: vec![], patches: BTreeMap::new(), made: 0, progress }
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    pub fn options(&self) -> &Options {
        self.options
    }

    pub fn target(&self) -> Target {
        self.options.target
    }

    /// Whether `--fuse`, `--skip` and `--stop-after` let the rule run.
    pub fn enabled(&self, kind: Kind, rule: &str) -> bool {
        self.options.kinds.contains(&kind) && self.runs(rule)
    }

    /// Whether `--skip` and `--stop-after` let a rule run that is of no kind.
    pub fn runs(&self, rule: &str) -> bool {
        !self.options.skip.contains(rule) && !self.stopped()
    }

    /// Why a site stays with standard ops: `of_target` where the target has no plugins. `None`: it gets a plugin node.
    pub fn standard(&self, kind: Kind, node: &str, of_target: &str) -> Option<String> {
        if !self.target().plugins() {
            return Some(of_target.to_owned());
        }
        let named = |s: &&Standard| s.kind == kind && s.node.as_deref().is_none_or(|n| n == node);
        self.options.standard.iter().find(named).map(|s| s.reason.clone())
    }

    /// Whether `--stop-after` is reached.
    pub fn stopped(&self) -> bool {
        self.options.stop_after.is_some_and(|n| self.made >= n)
    }

    /// The miss to note where [`Engine::enabled`] says no.
    pub fn disabled_miss(&self, kind: Kind, rule: &str) -> Miss {
        let reason = if !self.options.kinds.contains(&kind) {
            format!("--fuse leaves {kind} out")
        } else if self.options.skip.contains(rule) {
            format!("--skip {rule}")
        } else {
            format!("--stop-after {} was reached", self.made)
        };
        Miss::new("", reason)
    }

    pub fn record(&mut self, site: Site) {
        self.sites.push(site);
    }

    pub fn record_miss(&mut self, kind: Kind, node: &str, rule: &str, miss: Miss) {
        let reason = miss.text(node);
        self.record(Site {
            kind,
            status: Status::Missed,
            node: node.into(),
            rule: Some(rule.into()),
            into: None,
            reason: Some(reason),
            expected: miss.expected,
            found: miss.found,
        });
    }

    /// Whether a site of the kind was recorded at the node.
    pub fn has_site(&self, kind: Kind, node: &str) -> bool {
        self.sites.iter().any(|site| site.kind == kind && site.node == node)
    }

    /// The node of the original model by which the ledger knows what one of `parts` computes now.
    pub fn known_as(&self, kind: Kind, parts: &BTreeSet<String>) -> Option<&str> {
        let here = |site: &&Site| site.kind == kind && site.into.as_ref().is_some_and(|into| parts.contains(into));
        self.sites.iter().find(here).map(|site| site.node.as_str())
    }

    /// Says of the sites that the nodes called `parts` stand for that the node `into` computes them now.
    pub fn absorb_sites(&mut self, parts: &BTreeSet<String>, into: &str) {
        for site in &mut self.sites {
            // A block that is kept as its parts is none of what a smaller one of them takes in.
            let kept = site.status == Status::Kept && !site.kind.is_block();
            let stands = site.into.as_ref().or(kept.then_some(&site.node));
            if stands.is_some_and(|node| parts.contains(node)) {
                site.status = Status::Fused;
                site.into = Some(into.into());
                site.reason = None;
            }
        }
    }

    /// Says of the sites that the node `into` computes why it computes no more than it does.
    pub fn note(&mut self, into: &str, miss: &Miss) {
        for site in self.sites.iter_mut().filter(|site| site.into.as_deref() == Some(into)) {
            site.reason = Some(miss.text(&site.node));
            site.expected.clone_from(&miss.expected);
            site.found.clone_from(&miss.found);
        }
    }

    pub fn into_parts(self) -> (Graph, Vec<Site>, BTreeMap<String, usize>) {
        (self.graph, self.sites, self.patches)
    }

    /// Applies a patch that nothing depends on: where a node is needed otherwise all stays as it is. `kept`: what stays.
    pub fn apply_or_keep(&mut self, patch: Patch, kept: &str) -> Result<()> {
        if let Err(miss) = self.apply(patch)? {
            tracing::debug!(at = miss.at, reason = miss.reason, "{kept} kept");
        }
        Ok(())
    }

    /// Applies a patch, or says which node it could not do without. `Err` means that the rule is wrong.
    pub fn apply(&mut self, patch: Patch) -> Result<Result<(), Miss>> {
        let graph = &self.graph;
        for &(old, new) in &patch.replacements {
            self.check_replacement(&patch, old, new)?;
        }
        if let Some(miss) = surviving(graph, &patch) {
            return Ok(Err(miss));
        }
        let wrong = |place: String, what: String| Error::Patch { rule: patch.rule.into(), place, what };
        let place = patch.replacements.first().map(|&(old, _)| graph.value(old).name.clone()).unwrap_or_default();

        let before = patch
            .replacements
            .iter()
            .filter_map(|&(old, _)| graph.value(old).producer)
            .min_by_key(|id| graph.order().iter().position(|n| n == id));
        for value in patch.values {
            self.graph.add_value(value);
        }
        let first_new = self.graph.order().len();
        for node in patch.nodes {
            self.graph.add_node(node);
        }
        for &(old, new) in &patch.replacements {
            self.graph.replace_uses(old, new);
        }
        if let Some(before) = before {
            self.graph.place_new_nodes(first_new, before);
        }
        self.graph.remove_dead();
        if let Err(node) = self.graph.sort() {
            return Err(wrong(self.graph.node_label(node), "it made a cycle".into()));
        }
        ir::check(&self.graph).map_err(|e| wrong(place, e.to_string()))?;
        *self.patches.entry(patch.rule.into()).or_default() += 1;
        self.made += 1;
        (self.progress)(patch.rule, self.made);
        tracing::debug!(rule = patch.rule, patch = self.made, "applied");
        Ok(Ok(()))
    }

    fn check_replacement(&self, patch: &Patch, old: ValueId, new: ValueId) -> Result<()> {
        let (a, b) = (self.graph.value(old), patch.describe(&self.graph, new));
        let text = |v: &Value| {
            let dtype = v.dtype.map_or("unknown type", DType::name);
            format!("{dtype} {}", v.shape.as_deref().map_or("of unknown shape".into(), shape_text))
        };
        if a.dtype.is_none() || a.shape.is_none() || a.dtype != b.dtype || a.shape != b.shape {
            return Err(Error::Patch {
                rule: patch.rule.into(),
                place: format!("value '{}'", a.name),
                what: format!("it would replace {} by {}", text(a), text(b)),
            });
        }
        if a.tensor.is_some() || self.graph.is_input(old) {
            let what = "it would replace a graph input or weight".into();
            return Err(Error::Patch { rule: patch.rule.into(), place: format!("value '{}'", a.name), what });
        }
        Ok(())
    }
}

/// How far a chain of superfluous nodes is followed beyond those that a patch covers.
const DYING_DEPTH: u32 = 16;

/// The first covered node that would live on, as a miss.
fn surviving(graph: &Graph, patch: &Patch) -> Option<Miss> {
    let replaced: HashSet<ValueId> = patch.replacements.iter().map(|&(old, _)| old).collect();
    let kept: HashSet<ValueId> = patch.nodes.iter().flat_map(|n| n.inputs.iter().flatten().copied()).collect();
    let dying = Dying { graph, covers: &patch.covers, replaced: &replaced, kept: &kept };
    for &id in &patch.covers {
        for &out in graph.node(id).outputs.iter().flatten() {
            let at = graph.node_label(id);
            let name = &graph.value(out).name;
            if graph.is_named_elsewhere(out) {
                let reason = format!("value '{name}' is also read by a subgraph or annotation");
                return Some(Miss::new(at, reason).expected("one use", "an outside use"));
            }
            if replaced.contains(&out) {
                continue;
            }
            if graph.is_output(out) {
                let reason = format!("interior value '{name}' is a graph output");
                return Some(Miss::new(at, reason).expected("an interior value", "a graph output"));
            }
            if kept.contains(&out) {
                return Some(Miss::new(at, format!("interior value '{name}' feeds the fused node itself")));
            }
            if let Some(user) = graph.uses(out).iter().find(|u| !dying.node(**u, DYING_DEPTH)) {
                let reason = format!("interior value '{name}' is also used by '{}'", graph.node_label(*user));
                return Some(Miss::new(at, reason).expected("no use outside the pattern", "a use outside it"));
            }
        }
    }
    None
}

/// What dies with a patch: covered nodes, and casts and the like between them that nothing else reads.
struct Dying<'a> {
    graph: &'a Graph,
    covers: &'a BTreeSet<NodeId>,
    replaced: &'a HashSet<ValueId>,
    kept: &'a HashSet<ValueId>,
}

impl Dying<'_> {
    fn node(&self, id: NodeId, depth: u32) -> bool {
        if self.covers.contains(&id) {
            return true;
        }
        depth > 0
            && self.graph.node(id).outputs.iter().flatten().all(|&out| {
                let read = self.graph.is_output(out) || self.kept.contains(&out) || self.graph.is_named_elsewhere(out);
                self.replaced.contains(&out)
                    || (!read && self.graph.uses(out).iter().all(|&user| self.node(user, depth - 1)))
            })
    }
}
