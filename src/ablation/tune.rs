//! The search for the fastest form of a model, by measured latency.
//!
//! Sites that are alike (of one kind and, unless told otherwise, of one shape, which is one stage of a network) make a
//! [`Group`]. Starting with everything fused, [`search`] leaves out one group at a time, builds and times the engine with
//! and without it in the same interleaved rounds, and leaves the group to TensorRT if that is faster beyond noise. The
//! outcome is last timed against the model without plugins, which wins if it is faster.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::ir::{Dim, Graph, shape_text};
use crate::measure::Samples;
use crate::measure::stats::{Bootstrap, Comparison, Summary, compare};
use crate::rewrite::{Kind, Ledger, Standard, Status};
use serde::Serialize;

/// A gain below this part of the model's time is not worth a choice: two builds of one model differ by more.
const MARGIN: f64 = 0.005;

/// Which sites are chosen together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// All of a kind.
    Kind,
    /// Those of a kind whose plugin nodes give tensors of one shape: the stages of a network.
    Stage,
}

/// Sites that are fused together or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    pub kind: Kind,
    /// Shape of what their nodes give, if it is one.
    pub shape: Option<String>,
    /// As the ledger names them.
    pub nodes: Vec<String>,
}

impl Group {
    /// What leaves its sites to TensorRT.
    pub fn standard(&self, reason: String) -> impl Iterator<Item = Standard> + '_ {
        self.nodes.iter().map(move |node| Standard {
            kind: self.kind,
            node: Some(node.clone()),
            reason: reason.clone(),
        })
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.shape {
            Some(shape) => write!(f, "{} {shape}", self.kind),
            None => write!(f, "{}", self.kind),
        }
    }
}

/// The groups of a rewritten model, those of most sites first: `graph` is what [`crate::rewrite::fuse`] made with `ledger`.
pub fn groups(ledger: &Ledger, graph: &Graph, by: By) -> Vec<Group> {
    let shapes: BTreeMap<&str, String> = graph
        .nodes()
        .filter_map(|(_, node)| {
            let shape: &[Dim] = graph.shape(node.output(0)?)?;
            Some((node.name.as_str(), shape_text(shape)))
        })
        .collect();
    let mut groups: Vec<Group> = vec![];
    for site in ledger.sites.iter().filter(|s| s.status == Status::Fused) {
        let shape = site.into.as_deref().and_then(|node| shapes.get(node)).filter(|_| by == By::Stage).cloned();
        match groups.iter_mut().find(|g| g.kind == site.kind && g.shape == shape) {
            Some(group) => group.nodes.push(site.node.clone()),
            None => groups.push(Group { kind: site.kind, shape, nodes: vec![site.node.clone()] }),
        }
    }
    groups.sort_by_key(|g| std::cmp::Reverse(g.nodes.len()));
    groups
}

/// A form of the model that is timed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// As it was exported.
    Native,
    /// Without plugins, in the form that TensorRT's own fusions recognise.
    Canonical,
    /// With plugins, but for the groups of these numbers.
    Without(BTreeSet<usize>),
}

/// What times candidates against each other.
pub trait Lab {
    /// The samples of each, taken in the same interleaved rounds.
    fn measure(&mut self, candidates: &[Candidate]) -> Result<Vec<Samples>>;
}

/// What was found of a group.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    pub group: Group,
    pub fused_us: f64,
    pub left_us: f64,
    /// Of the time without the group's fusion to that with it.
    pub ratio: Comparison,
    /// Whether it is left to TensorRT.
    pub left: bool,
}

impl Decision {
    /// Both figures, for the ledger.
    pub fn reason(&self) -> String {
        format!(
            "left to TensorRT: the model takes {:.1} us so and {:.1} us with {} fused",
            self.left_us, self.fused_us, self.group
        )
    }
}

/// What [`search`] found.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub choice: Candidate,
    pub decisions: Vec<Decision>,
    /// From the last measurement: native, canonical, and the best with plugins.
    pub native: Summary,
    pub canonical: Summary,
    pub fused: Summary,
}

impl Outcome {
    /// The sites that the rewrite leaves to TensorRT.
    pub fn standard(&self) -> Vec<Standard> {
        let left = self.decisions.iter().filter(|d| d.left);
        left.flat_map(|decision| decision.group.standard(decision.reason())).collect()
    }

    /// Of the choice.
    pub fn tuned(&self) -> &Summary {
        match self.choice {
            Candidate::Native => &self.native,
            Candidate::Canonical => &self.canonical,
            Candidate::Without(_) => &self.fused,
        }
    }
}

/// Looks for the fastest choice of groups. `progress` is told each decision.
pub fn search(
    groups: &[Group],
    lab: &mut dyn Lab,
    bootstrap: &Bootstrap,
    progress: &mut dyn FnMut(&Decision),
) -> Result<Outcome> {
    let mut left = BTreeSet::new();
    let mut decisions = vec![];
    for (number, group) in groups.iter().enumerate() {
        let mut more = left.clone();
        more.insert(number);
        let (fused, without) =
            two(lab.measure(&[Candidate::Without(left.clone()), Candidate::Without(more.clone())])?)?;
        let ratio = compare(&without, &fused, bootstrap)?;
        let decision = Decision {
            group: group.clone(),
            fused_us: Summary::of(&fused, bootstrap)?.p50_us,
            left_us: Summary::of(&without, bootstrap)?.p50_us,
            left: ratio.is_faster() && ratio.ratio <= 1.0 - MARGIN,
            ratio,
        };
        progress(&decision);
        if decision.left {
            left = more;
        }
        decisions.push(decision);
    }
    let best = Candidate::Without(left.clone());
    let [native, canonical, fused]: [Samples; 3] = lab
        .measure(&[Candidate::Native, Candidate::Canonical, best.clone()])?
        .try_into()
        .map_err(|_| wrong_count(3))?;
    let faster = |a: &Samples, b: &Samples| Ok::<_, Error>(compare(a, b, bootstrap)?.is_faster());
    // Of what cannot be told apart, the form with fewer changes to it is taken only if it has fewer plugins.
    let choice = match (faster(&native, &fused)?, faster(&canonical, &fused)?) {
        (true, true) if faster(&canonical, &native)? => Candidate::Canonical,
        (true, _) => Candidate::Native,
        (false, true) => Candidate::Canonical,
        (false, false) if left.len() == groups.len() => match faster(&canonical, &native)? {
            true => Candidate::Canonical,
            false => Candidate::Native,
        },
        (false, false) => best,
    };
    Ok(Outcome {
        choice,
        decisions,
        native: Summary::of(&native, bootstrap)?,
        canonical: Summary::of(&canonical, bootstrap)?,
        fused: Summary::of(&fused, bootstrap)?,
    })
}

fn two(samples: Vec<Samples>) -> Result<(Samples, Samples)> {
    let [a, b]: [Samples; 2] = samples.try_into().map_err(|_| wrong_count(2))?;
    Ok((a, b))
}

fn wrong_count(expected: usize) -> Error {
    Error::CheckFailed(format!("the measurement did not give the samples of {expected} candidates"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::{self, Options};
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    use std::path::Path;

    /// A GPU that takes a given time for each group, fused and not.
    struct Simulated {
        native: f64,
        canonical: f64,
        base: f64,
        groups: Vec<(f64, f64)>,
        noise: f64,
        random: StdRng,
        asked: Vec<Candidate>,
    }

    impl Lab for Simulated {
        fn measure(&mut self, candidates: &[Candidate]) -> Result<Vec<Samples>> {
            self.asked.extend_from_slice(candidates);
            candidates
                .iter()
                .map(|candidate| {
                    let us = match candidate {
                        Candidate::Native => self.native,
                        Candidate::Canonical => self.canonical,
                        Candidate::Without(left) => {
                            let of = |(i, g): (usize, &(f64, f64))| if left.contains(&i) { g.1 } else { g.0 };
                            self.base + self.groups.iter().enumerate().map(of).sum::<f64>()
                        }
                    };
                    let mut sample = || us * (1.0 + self.noise * (self.random.random::<f64>() - 0.5));
                    let rounds = (0..20).map(|_| (0..10).map(|_| sample()).collect()).collect();
                    Samples::new("simulated", rounds)
                })
                .collect()
        }
    }

    fn simulated(native: f64, canonical: f64, groups: &[(f64, f64)]) -> Simulated {
        let random = StdRng::seed_from_u64(5);
        Simulated { native, canonical, base: 100.0, groups: groups.to_vec(), noise: 0.02, random, asked: vec![] }
    }

    fn group(kind: Kind, number: usize) -> Group {
        Group { kind, shape: Some(format!("[1, {number}]")), nodes: vec![format!("node_{number}")] }
    }

    fn run(lab: &mut Simulated) -> Outcome {
        let groups: Vec<Group> = (0..lab.groups.len()).map(|i| group(Kind::Attention, i)).collect();
        search(&groups, lab, &Bootstrap::default(), &mut |_| {}).unwrap()
    }

    #[test]
    fn what_loses_is_left_out_with_both_figures() {
        let mut lab = simulated(300.0, 280.0, &[(20.0, 50.0), (60.0, 30.0), (40.0, 45.0)]);
        let outcome = run(&mut lab);
        assert_eq!(outcome.choice, Candidate::Without([1].into()));
        assert_eq!(outcome.decisions.iter().map(|d| d.left).collect::<Vec<_>>(), [false, true, false]);
        let standard = outcome.standard();
        assert_eq!(standard.len(), 1);
        assert_eq!((standard[0].kind, standard[0].node.as_deref()), (Kind::Attention, Some("node_1")));
        let figures: Vec<f64> = standard[0].reason.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        assert!((figures[0] - 190.0).abs() < 3.0 && (figures[1] - 220.0).abs() < 3.0, "{}", standard[0].reason);
        assert!((outcome.tuned().p50_us - 190.0).abs() < 3.0);
        // Each group is judged against what was chosen before it.
        assert_eq!(lab.asked[4..6], [Candidate::Without([1].into()), Candidate::Without([1, 2].into())]);
    }

    #[test]
    fn within_noise_nothing_is_left_out() {
        let outcome = run(&mut simulated(300.0, 300.0, &[(20.0, 20.0), (20.0, 20.0)]));
        assert_eq!(outcome.choice, Candidate::Without(BTreeSet::new()));
    }

    #[test]
    fn a_model_without_plugins_wins_if_it_is_faster() {
        let groups = [(20.0, 25.0), (20.0, 25.0)];
        assert_eq!(run(&mut simulated(120.0, 130.0, &groups)).choice, Candidate::Native);
        assert_eq!(run(&mut simulated(130.0, 120.0, &groups)).choice, Candidate::Canonical);
        assert_eq!(run(&mut simulated(150.0, 120.0, &groups)).choice, Candidate::Canonical);
        assert_eq!(run(&mut simulated(150.0, 150.0, &groups)).choice, Candidate::Without(BTreeSet::new()));
        let outcome = run(&mut simulated(120.0, 130.0, &groups));
        assert!((outcome.tuned().p50_us - 120.0).abs() < 2.0);
    }

    #[test]
    fn nothing_left_to_fuse_is_a_model_without_plugins() {
        let groups = [(25.0, 20.0), (25.0, 20.0)];
        assert_eq!(run(&mut simulated(140.0, 140.0, &groups)).choice, Candidate::Native);
        assert_eq!(run(&mut simulated(145.0, 140.0, &groups)).choice, Candidate::Canonical);
    }

    #[test]
    fn stages_are_groups() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/swin_ts17.onnx");
        let mut model = crate::onnx::load(&path).unwrap();
        let ledger = rewrite::fuse(&mut model.proto, "swin", &Options::default(), &mut |_, _| {}).unwrap();
        let graph = Graph::take(&mut model.proto).unwrap();
        let by_kind = groups(&ledger, &graph, By::Kind);
        assert_eq!(by_kind.len(), 4);
        assert!(by_kind.iter().all(|g| g.shape.is_none()));
        assert_eq!(by_kind[0].kind, Kind::LayerNorm);
        let by_stage = groups(&ledger, &graph, By::Stage);
        assert!(by_stage.len() > by_kind.len());
        let sites = |groups: &[Group]| groups.iter().map(|g| g.nodes.len()).sum::<usize>();
        assert_eq!(sites(&by_kind), ledger.sites.iter().filter(|s| s.status == Status::Fused).count());
        assert_eq!(sites(&by_kind), sites(&by_stage));
    }
}
