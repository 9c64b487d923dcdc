//! What differs between two graphs.
//!
//! The lines of the two texts (see [`crate::ir::print()`]) are aligned without their numbers, so that a node more or
//! less does not change every line after it. Then values are matched along the aligned lines: a line whose operands
//! are the matching values is the same, whatever their numbers, and a line that reads something else is a difference.
//! A value that was replaced as a whole, by nodes that stand in its place, is matched where it is first read.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use similar::{Algorithm, DiffOp, capture_diff_slices_deadline};

use super::print::{Line, Listing, Options, counts_text};
use crate::ir::{Graph, ValueId};

/// The differences of two graphs.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    lines: Vec<(Tag, String)>,
    /// Ops of `b` that `a` has fewer of, and by how many.
    pub added: BTreeMap<String, usize>,
    /// Ops of `a` that `b` has fewer of, and by how many.
    pub removed: BTreeMap<String, usize>,
}

/// Which graph a line is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    Both,
    Removed,
    Added,
}

/// Compares two graphs. Names of nodes and inner values, and the order of nodes in the file, do not count.
pub fn diff(a: &Graph, b: &Graph, options: &Options) -> Diff {
    let (left, right) = (Listing::new(a, options), Listing::new(b, options));
    let keys = |l: &Listing| l.lines.iter().map(Line::key).collect::<Vec<_>>();
    let (keys_a, keys_b) = (keys(&left), keys(&right));
    let mut matching =
        Matching { left: &left, to_right: HashMap::new(), to_left: HashMap::new(), added: HashMap::new() };
    let mut lines = vec![];
    // The shortest difference of large and unlike graphs takes long; past the deadline a longer one will do.
    let deadline = Some(Instant::now() + Duration::from_secs(10));
    for op in capture_diff_slices_deadline(Algorithm::Patience, &keys_a, &keys_b, deadline) {
        if let DiffOp::Equal { old_index, new_index, len } = op {
            for i in 0..len {
                let (one, other) = (&left.lines[old_index + i], &right.lines[new_index + i]);
                if matching.same(one, other) {
                    matching.define(one, other);
                    lines.push((Tag::Both, matching.left_text(one)));
                } else {
                    lines.push((Tag::Removed, matching.left_text(one)));
                    // The results go together even so, or every later line would differ too.
                    matching.define(one, other);
                    lines.push((Tag::Added, matching.right_text(other)));
                }
            }
        } else {
            lines.extend(op.old_range().map(|i| (Tag::Removed, matching.left_text(&left.lines[i]))));
            for i in op.new_range() {
                lines.push((Tag::Added, matching.right_text(&right.lines[i])));
            }
        }
    }
    let (ops_a, ops_b) = (counts(&left), counts(&right));
    Diff { lines, added: surplus(&ops_b, &ops_a), removed: surplus(&ops_a, &ops_b) }
}

fn counts(listing: &Listing) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for op in listing.lines.iter().filter_map(|l| l.op.clone()) {
        *counts.entry(op).or_insert(0) += 1;
    }
    counts
}

fn surplus(of: &BTreeMap<String, usize>, over: &BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    let extra = |(op, n): (&String, &usize)| {
        let extra = n.saturating_sub(over.get(op).copied().unwrap_or(0));
        (extra > 0).then(|| (op.clone(), extra))
    };
    of.iter().filter_map(extra).collect()
}

/// Which value of one graph is which of the other.
struct Matching<'a> {
    left: &'a Listing,
    to_right: HashMap<ValueId, ValueId>,
    to_left: HashMap<ValueId, ValueId>,
    /// Numbers of values that only the right graph has.
    added: HashMap<ValueId, usize>,
}

impl Matching<'_> {
    /// Whether two lines of the same key read matching values. Values that neither side has matched yet were replaced
    /// by each other, and match from here on.
    fn same(&mut self, a: &Line, b: &Line) -> bool {
        let mut new: Vec<(ValueId, ValueId)> = vec![];
        for (x, y) in a.reads().zip(b.reads()) {
            let (known_x, known_y) = (self.to_right.get(&x), self.to_left.get(&y));
            let fresh = |pair: &(ValueId, ValueId)| pair.0 == x || pair.1 == y;
            match (known_x, known_y) {
                (Some(other), Some(_)) if *other == y => {}
                (None, None) => match new.iter().find(|p| fresh(p)) {
                    Some(&pair) if pair == (x, y) => {}
                    Some(_) => return false,
                    None => new.push((x, y)),
                },
                _ => return false,
            }
        }
        new.into_iter().for_each(|(x, y)| self.bind(x, y));
        true
    }

    fn define(&mut self, a: &Line, b: &Line) {
        for (&x, &y) in a.defines.iter().zip(&b.defines) {
            self.bind(x, y);
        }
    }

    fn bind(&mut self, x: ValueId, y: ValueId) {
        if !self.to_right.contains_key(&x) && !self.to_left.contains_key(&y) {
            self.to_right.insert(x, y);
            self.to_left.insert(y, x);
        }
    }

    fn left_text(&self, line: &Line) -> String {
        line.text(&mut |v| self.left.number(v))
    }

    /// In the left graph's numbers, and `%+0`, `%+1`, ... for what is only in the right one.
    fn right_text(&mut self, line: &Line) -> String {
        let (to_left, left) = (&self.to_left, self.left);
        let added = &mut self.added;
        line.text(&mut |v| match (added.get(&v), to_left.get(&v)) {
            (Some(n), _) => format!("%+{n}"),
            (None, Some(x)) => left.number(*x),
            (None, None) => {
                let n = added.len();
                added.insert(v, n);
                format!("%+{n}")
            }
        })
    }
}

impl Diff {
    pub fn is_empty(&self) -> bool {
        self.lines.iter().all(|(tag, _)| *tag == Tag::Both)
    }

    /// All lines of both graphs, in order.
    pub fn lines(&self) -> impl Iterator<Item = (Tag, &str)> {
        self.lines.iter().map(|(tag, text)| (*tag, text.as_str()))
    }

    /// The differences in unified form, with `context` lines around them. Numbers are those of `a`; values that only
    /// `b` has are `%+0`, `%+1`, ...
    pub fn unified(&self, name_a: &str, name_b: &str, context: usize) -> String {
        let mut shown = vec![false; self.lines.len()];
        for (i, (tag, _)) in self.lines.iter().enumerate() {
            if *tag != Tag::Both {
                let from = i.saturating_sub(context);
                let to = (i + context + 1).min(shown.len());
                shown[from..to].fill(true);
            }
        }
        let mut text = String::new();
        if self.is_empty() {
            return text;
        }
        let _ = writeln!(text, "--- {name_a}\n+++ {name_b}");
        let (mut line_a, mut line_b) = (1, 1);
        let mut i = 0;
        while i < self.lines.len() {
            let end = (i..self.lines.len()).find(|&j| !shown[j]).unwrap_or(self.lines.len());
            if end > i {
                let hunk = &self.lines[i..end];
                let count = |other: Tag| hunk.iter().filter(|(t, _)| *t != other).count();
                let (in_a, in_b) = (count(Tag::Added), count(Tag::Removed));
                let _ = writeln!(text, "@@ -{line_a},{in_a} +{line_b},{in_b} @@");
                for (tag, line) in hunk {
                    let sign = match tag {
                        Tag::Both => ' ',
                        Tag::Removed => '-',
                        Tag::Added => '+',
                    };
                    for part in line.split('\n') {
                        let _ = writeln!(text, "{sign}{part}");
                    }
                }
                (line_a, line_b) = (line_a + in_a, line_b + in_b);
                i = end;
            } else {
                (line_a, line_b) = (line_a + 1, line_b + 1);
                i += 1;
            }
        }
        text
    }

    /// The ops added and removed, in one line; empty where none are.
    pub fn summary(&self) -> String {
        let mut parts = vec![];
        if !self.removed.is_empty() {
            parts.push(format!("removed {}", counts_text(&self.removed)));
        }
        if !self.added.is_empty() {
            parts.push(format!("added {}", counts_text(&self.added)));
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Node, Value};
    use crate::onnx::DType;
    use crate::onnx::proto::TensorProto;

    /// `x -> first -> Mul by 2 -> ... -> y`, the named ops in a row.
    fn chain(ops: &[&str]) -> Graph {
        let mut graph = Graph::default();
        graph.opset = 17;
        let value =
            |graph: &mut Graph, name: &str| graph.add_value(Value::new(name, Some(DType::F32), Some(vec![4.into()])));
        let mut at = value(&mut graph, "x");
        graph.inputs.push(at);
        for (i, op) in ops.iter().enumerate() {
            let out = value(&mut graph, &format!("v{i}"));
            let mut node = Node::new(op, [at]);
            node.outputs = vec![Some(out)];
            graph.add_node(node);
            at = out;
        }
        graph.outputs.push(at);
        graph
    }

    fn changed(a: &Graph, b: &Graph) -> Vec<String> {
        let sign = |tag| match tag {
            Tag::Both => ' ',
            Tag::Removed => '-',
            Tag::Added => '+',
        };
        let diff = diff(a, b, &Options::default());
        diff.lines().filter(|(t, _)| *t != Tag::Both).map(|(t, line)| format!("{}{line}", sign(t))).collect()
    }

    #[test]
    fn a_replaced_node_is_one_difference() {
        let (a, b) = (chain(&["Relu", "Exp", "Tanh", "Neg", "Abs"]), chain(&["Relu", "Sigmoid", "Tanh", "Neg", "Abs"]));
        // The output's name differs in neither, and the nodes after it are the same.
        assert_eq!(changed(&a, &b), ["-%2 = Exp(%1): float[4]", "+%+0 = Sigmoid(%1): float[4]"]);
        assert!(changed(&a, &a).is_empty());
    }

    #[test]
    fn a_removed_node_leaves_its_reader_changed_once() {
        let mut b = chain(&["Relu", "Tanh", "Neg"]);
        let name = b.outputs[0];
        b.value_mut(name).name = "v3".into();
        let lines = changed(&chain(&["Relu", "Exp", "Tanh", "Neg"]), &b);
        assert_eq!(lines, ["-%2 = Exp(%1): float[4]", "-%3 = Tanh(%2): float[4]", "+%3 = Tanh(%1): float[4]"]);
    }

    #[test]
    fn rewired_operands_are_found() {
        let swap = |swapped: bool| {
            let mut graph = chain(&["Relu", "Exp"]);
            let (x, y) = (graph.by_name("v0").unwrap(), graph.by_name("v1").unwrap());
            let out = graph.add_value(Value::new("out", Some(DType::F32), None));
            let mut node = Node::new("Sub", if swapped { [y, x] } else { [x, y] });
            node.outputs = vec![Some(out)];
            graph.add_node(node);
            graph.outputs = vec![out];
            graph
        };
        assert!(changed(&swap(false), &swap(false)).is_empty());
        // The walk order differs too, so both the node and its surroundings may move.
        assert!(changed(&swap(false), &swap(true)).iter().any(|l| l.starts_with('+') && l.contains("Sub(")));
    }

    #[test]
    fn changed_weights_are_found() {
        let with = |element: f32| {
            let mut graph = chain(&["Relu"]);
            let mut values = vec![1.0; 100];
            values[50] = element;
            let weight = graph.add_initializer("w", TensorProto::from_f32("w", &[100], &values));
            let (x, out) = (graph.by_name("v0").unwrap(), graph.add_value(Value::new("out", None, None)));
            let mut node = Node::new("Mul", [x, weight]);
            node.outputs = vec![Some(out)];
            graph.add_node(node);
            graph.outputs = vec![out];
            graph
        };
        let lines = changed(&with(2.0), &with(3.0));
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("const float[100] #"), "{lines:?}");
    }

    #[test]
    fn hunks_are_counted() {
        let ops = ["Relu", "Exp", "Tanh", "Neg", "Abs", "Ceil", "Floor", "Sin", "Cos"];
        let mut other = ops;
        (other[1], other[7]) = ("Log", "Tan");
        let diff = diff(&chain(&ops), &chain(&other), &Options::default());
        let text = diff.unified("a", "b", 1);
        assert!(text.starts_with("--- a\n+++ b\n@@ -3,3 +3,3 @@\n"), "{text}");
        assert!(text.contains("@@ -9,3 +9,3 @@"), "{text}");
        assert_eq!(diff.summary(), "removed 1 Exp, 1 Sin; added 1 Log, 1 Tan");
        assert_eq!(Diff::default().unified("a", "b", 3), "");
    }
}
