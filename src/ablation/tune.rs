//! The search for the fastest form of a model, by measured latency.
//!
//! Sites that are alike (of one kind and, unless told otherwise, of one shape, which is one stage of a network) make a
//! [`Group`]. [`search`] starts with everything fused, with or without blocks (but those made of others), whichever is faster. It then takes one group of
//! blocks after the other, times the engine with and without it in the same interleaved rounds, and keeps the blocks if that
//! is faster beyond noise. Blocks that are made of other blocks come behind those, so that each has to be faster than the
//! best of its parts. Then it leaves out one group of other sites at a time, and leaves it to TensorRT if that is faster; what
//! is part of a block is not asked for again. The outcome is last timed against the model without plugins, which wins if it is
//! faster. A group whose engines cannot be had (a build that fails, or the end of the time for building) stays as it is,
//! so that a search that is cut short still ends with the best that it has timed.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::ir::{Dim, Graph, shape_text};
use crate::measure::Samples;
use crate::measure::stats::{Bootstrap, Comparison, Summary, compare};
use crate::rewrite::{Kind, Ledger, Site, Standard, Status};
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
    /// Of blocks: the sites of other kinds that they are made of, which may be blocks.
    #[serde(skip)]
    pub parts: BTreeSet<(Kind, String)>,
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
            None => {
                groups.push(Group { kind: site.kind, shape, nodes: vec![site.node.clone()], parts: BTreeSet::new() });
            }
        }
    }
    groups.sort_by_key(|g| std::cmp::Reverse(g.nodes.len()));
    groups
}

/// The kinds that are made of no blocks of other kinds: what a model is rewritten with for [`blocks`].
pub fn kinds_without_wholes() -> BTreeSet<Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.made_of().is_empty()).collect()
}

/// The groups of blocks alone, and what they are made of; of a model that was rewritten with blocks, but none that are made of
/// others: those take the place of their parts in the ledger. [`Kind::BiasGelu`] has [`bias_gelus`].
pub fn blocks(ledger: &Ledger, graph: &Graph, by: By) -> Vec<Group> {
    with_parts(ledger, graph, by, |kind| kind.is_block() && kind.made_of().is_empty() && kind != Kind::BiasGelu)
}

/// The kinds of a model that is rewritten for [`bias_gelus`].
pub fn kinds_with_bias_gelu() -> BTreeSet<Kind> {
    Kind::DEFAULT.into_iter().chain([Kind::BiasGelu]).collect()
}

/// The groups of [`Kind::BiasGelu`], of a model that was rewritten with no other block: other blocks take such sites in without
/// the ledger's having them, and where those are left out these are open to choice.
pub fn bias_gelus(ledger: &Ledger, graph: &Graph, by: By) -> Vec<Group> {
    with_parts(ledger, graph, by, |kind| kind == Kind::BiasGelu)
}

/// The groups of blocks that are made of other blocks, and these and what they are made of; of a model that was rewritten with all kinds.
pub fn wholes(ledger: &Ledger, graph: &Graph, by: By) -> Vec<Group> {
    with_parts(ledger, graph, by, |kind| !kind.made_of().is_empty())
}

fn with_parts(ledger: &Ledger, graph: &Graph, by: By, of: impl Fn(Kind) -> bool) -> Vec<Group> {
    let mut blocks = groups(ledger, graph, by);
    blocks.retain(|group| of(group.kind));
    for group in &mut blocks {
        let into = |site: &&Site| site.kind == group.kind && group.nodes.contains(&site.node);
        let nodes: BTreeSet<&str> = ledger.sites.iter().filter(into).filter_map(|s| s.into.as_deref()).collect();
        let inside = |site: &&Site| site.kind != group.kind && site.into.as_deref().is_some_and(|n| nodes.contains(n));
        let inside = ledger.sites.iter().filter(inside);
        // Both kinds of site know a GELU by the same node.
        let kinds = |kind| [kind].into_iter().chain((kind == Kind::Gelu).then_some(Kind::BiasGelu));
        let parts = inside.flat_map(|s| kinds(s.kind).map(|kind| (kind, s.node.clone())));
        group.parts = parts.filter(|(kind, _)| *kind != group.kind).collect();
    }
    blocks
}

/// The group without the sites that are parts of blocks that are not `left`.
fn free(groups: &[Group], left: &BTreeSet<usize>, number: usize) -> Group {
    let blocks = groups.iter().enumerate().filter(|(i, g)| g.kind.is_block() && !left.contains(i));
    without(&groups[number], &blocks.flat_map(|(_, block)| &block.parts).collect())
}

/// The group without these sites.
fn without(group: &Group, taken: &BTreeSet<&(Kind, String)>) -> Group {
    let mut group = group.clone();
    group.nodes.retain(|node| !taken.contains(&(group.kind, node.clone())));
    group
}

/// What leaves the groups of these numbers to TensorRT, or blocks as their parts.
pub fn standard(groups: &[Group], left: &BTreeSet<usize>) -> Vec<Standard> {
    let of = |&number: &usize| {
        let group = free(groups, left, number);
        group.standard(format!("{group} is left out")).collect::<Vec<_>>()
    };
    left.iter().flat_map(of).collect()
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
    /// Makes the candidates ready to be timed. For each, why it is not.
    fn prepare(&mut self, candidates: &[Candidate]) -> Result<Vec<Result<()>>>;
    /// The samples of each, taken in the same interleaved rounds.
    fn measure(&mut self, candidates: &[Candidate]) -> Result<Vec<Samples>>;
}

/// What was found of a group.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    pub group: Group,
    /// What was timed, if it was.
    #[serde(flatten)]
    pub trial: Option<Trial>,
    /// Why it was not: then the group is as it was at the start of the search.
    pub untried: Option<String>,
    /// Whether it is left to TensorRT; blocks: as their parts.
    pub left: bool,
}

/// The model with a group's fusion and without it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Trial {
    pub fused_us: f64,
    pub left_us: f64,
    /// Of the time without the fusion to that with it.
    pub ratio: Comparison,
}

impl Decision {
    /// Both figures, for the ledger.
    pub fn reason(&self) -> String {
        let verdict = self.verdict();
        match (&self.trial, &self.untried) {
            (Some(Trial { fused_us, left_us, .. }), _) => {
                format!("{verdict}: the model takes {left_us:.1} us so and {fused_us:.1} us with {} fused", self.group)
            }
            (None, why) => format!("{verdict}: not timed{}", why.iter().map(|w| format!(", {w}")).collect::<String>()),
        }
    }

    /// What becomes of the group, in words.
    pub fn verdict(&self) -> &'static str {
        match (self.left, self.group.kind.is_block()) {
            (false, _) => "fused",
            (true, false) => "left to TensorRT",
            (true, true) => "left as its parts",
        }
    }
}

/// What [`search`] found.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub choice: Candidate,
    pub decisions: Vec<Decision>,
    /// From the last measurement: native, canonical (if its engine could be had), and the best with plugins.
    pub native: Summary,
    pub canonical: Option<Summary>,
    pub fused: Summary,
}

impl Outcome {
    /// The sites that the rewrite leaves to TensorRT.
    pub fn standard(&self) -> Vec<Standard> {
        let left = self.decisions.iter().filter(|d| d.left);
        left.flat_map(|d| self.apart(&d.group).standard(d.reason()).collect::<Vec<_>>()).collect()
    }

    /// The group without the sites that are parts of blocks that were taken, which may have been decided after it.
    fn apart(&self, group: &Group) -> Group {
        let blocks = self.decisions.iter().filter(|d| !d.left && d.group.kind.is_block());
        without(group, &blocks.flat_map(|d| &d.group.parts).collect())
    }

    /// What the choice is, in words.
    pub fn describe(&self) -> String {
        let list = |left: bool, block: bool| {
            let these = self.decisions.iter().filter(|d| d.left == left && d.group.kind.is_block() == block);
            let these = these.filter(|d| !self.apart(&d.group).nodes.is_empty());
            these.map(|d| d.group.to_string()).collect::<Vec<_>>().join(", ")
        };
        let (left, blocks) = (list(true, false), list(false, true));
        match self.choice {
            Candidate::Native => "as exported: no choice of fusions was faster".to_owned(),
            Candidate::Canonical => "without plugins: no choice of fusions was faster".to_owned(),
            Candidate::Without(_) => {
                let left =
                    if left.is_empty() { "everything fused".to_owned() } else { format!("left to TensorRT: {left}") };
                if blocks.is_empty() { left } else { format!("{left}; blocks: {blocks}") }
            }
        }
    }

    /// Of the choice.
    pub fn tuned(&self) -> &Summary {
        match self.choice {
            Candidate::Native => &self.native,
            // Only what was timed is chosen.
            Candidate::Canonical => self.canonical.as_ref().unwrap_or(&self.native),
            Candidate::Without(_) => &self.fused,
        }
    }
}

/// How many of the groups, which come first, are blocks.
fn count_blocks(groups: &[Group]) -> usize {
    groups.iter().take_while(|g| g.kind.is_block()).count()
}

/// The numbers of blocks that are made of other blocks.
fn numbers_of_wholes(groups: &[Group]) -> BTreeSet<usize> {
    (0..groups.len()).filter(|&i| !groups[i].kind.made_of().is_empty()).collect()
}

/// What a search times first: without plugins, with everything fused but blocks that are made of others, and without blocks, if
/// there are any.
fn first(groups: &[Group]) -> Vec<Candidate> {
    let mut candidates = vec![Candidate::Native, Candidate::Canonical, Candidate::Without(numbers_of_wholes(groups))];
    match count_blocks(groups) {
        0 => {}
        blocks => candidates.push(Candidate::Without((0..blocks).collect())),
    }
    candidates
}

/// Is given a group, the candidates that have it and leave it out, and whether it is left out so far; says whether it is.
type Leave<'a> = dyn FnMut(Group, &[Candidate; 2], bool) -> Result<bool> + 'a;

/// Goes through the groups as a search does, from where those of the numbers `left` are left out, and asks `leave` of each that is open to
/// choice. The numbers of those that are left out.
fn walk(groups: &[Group], mut left: BTreeSet<usize>, leave: &mut Leave) -> Result<BTreeSet<usize>> {
    for number in 0..groups.len() {
        let group = free(groups, &left, number);
        if group.nodes.is_empty() {
            continue;
        }
        let so_far = left.contains(&number);
        let (mut with, mut out) = (left.clone(), left);
        with.remove(&number);
        out.insert(number);
        let pair = [Candidate::Without(with.clone()), Candidate::Without(out.clone())];
        left = if leave(group, &pair, so_far)? { out } else { with };
    }
    Ok(left)
}

/// The candidates that [`search`] asks for if every group pays, blocks too, in the order of asking.
pub fn expected(groups: &[Group]) -> Result<Vec<Candidate>> {
    let mut candidates = first(groups);
    walk(groups, numbers_of_wholes(groups), &mut |_, pair, _| {
        candidates.extend(pair.iter().filter(|c| !candidates.contains(c)).cloned().collect::<Vec<_>>());
        Ok(false)
    })?;
    Ok(candidates)
}

/// Looks for the fastest choice of groups, of which those of blocks come first. `progress` is told each decision.
pub fn search(
    groups: &[Group],
    lab: &mut dyn Lab,
    bootstrap: &Bootstrap,
    progress: &mut dyn FnMut(&Decision),
) -> Result<Outcome> {
    let mut left = start(groups, lab, bootstrap)?;
    let mut decisions = vec![];
    left = walk(groups, left, &mut |group, pair, so_far| {
        let block = group.kind.is_block();
        let decision = match try_both(lab, pair, bootstrap)? {
            // Whatever is not the default has to be worth it.
            Ok(trial) => {
                let left = match block {
                    true => !(trial.ratio.is_slower() && trial.ratio.ratio >= 1.0 + MARGIN),
                    false => trial.ratio.is_faster() && trial.ratio.ratio <= 1.0 - MARGIN,
                };
                Decision { group, trial: Some(trial), untried: None, left }
            }
            Err(why) => Decision { group, trial: None, untried: Some(why), left: so_far },
        };
        progress(&decision);
        let left = decision.left;
        decisions.push(decision);
        Ok(left)
    })?;

    let best = Candidate::Without(left.clone());
    let last: Vec<Candidate> = ready(lab, &[Candidate::Native, Candidate::Canonical])?.chain([best.clone()]).collect();
    let samples = lab.measure(&last)?;
    let of = |candidate: &Candidate| last.iter().position(|c| c == candidate).and_then(|i| samples.get(i));
    let (Some(native), Some(fused)) = (of(&Candidate::Native), of(&best)) else { return Err(wrong_count(last.len())) };
    let canonical = of(&Candidate::Canonical);
    let faster = |a: &Samples, b: &Samples| Ok::<_, Error>(compare(a, b, bootstrap)?.is_faster());
    let plain = match canonical {
        Some(canonical) if faster(canonical, native)? => Candidate::Canonical,
        _ => Candidate::Native,
    };
    // Of what cannot be told apart, the form with fewer changes to it is taken only if it has fewer plugins.
    let native_wins = faster(native, fused)?;
    let canonical_wins = canonical.map(|c| faster(c, fused)).transpose()?.unwrap_or(false);
    let choice = match (native_wins, canonical_wins) {
        (true, true) => plain,
        (true, false) => Candidate::Native,
        (false, true) => Candidate::Canonical,
        (false, false) if left.len() == groups.len() => plain,
        (false, false) => best,
    };
    let summary = |samples| Summary::of(samples, bootstrap);
    Ok(Outcome {
        choice,
        decisions,
        native: summary(native)?,
        canonical: canonical.map(summary).transpose()?,
        fused: summary(fused)?,
    })
}

/// The numbers of the groups that are left out at the start of a search: the blocks made of others or all blocks, whichever is faster.
fn start(groups: &[Group], lab: &mut dyn Lab, bootstrap: &Bootstrap) -> Result<BTreeSet<usize>> {
    let candidates = first(groups);
    let outcomes = lab.prepare(&candidates)?;
    let (mut there, mut missing) = (vec![], vec![]);
    for (candidate, outcome) in candidates.iter().zip(outcomes) {
        match outcome {
            Ok(()) => there.push(candidate.clone()),
            Err(why) if *candidate == Candidate::Native => return Err(why),
            Err(why) => missing.push((candidate, why)),
        }
    }
    let samples = lab.measure(&there)?;
    if samples.len() != there.len() {
        return Err(wrong_count(there.len()));
    }
    let mut forms = there.iter().zip(&samples).filter_map(|(candidate, samples)| match candidate {
        Candidate::Without(left) => Some((left, samples)),
        _ => None,
    });
    match (forms.next(), forms.next()) {
        (Some((everything, fused)), Some((no_blocks, left))) => {
            let ratio = compare(left, fused, bootstrap)?;
            Ok(if ratio.is_slower() && ratio.ratio >= 1.0 + MARGIN { everything } else { no_blocks }.clone())
        }
        (Some((only, _)), None) => Ok(only.clone()),
        (None, _) => Err(missing
            .into_iter()
            .find_map(|(candidate, why)| matches!(candidate, Candidate::Without(_)).then_some(why))
            .unwrap_or_else(|| wrong_count(candidates.len()))),
    }
}

/// Those of the candidates that can be timed.
fn ready<'a>(lab: &mut dyn Lab, candidates: &'a [Candidate]) -> Result<impl Iterator<Item = Candidate> + 'a> {
    let outcomes = lab.prepare(candidates)?;
    Ok(candidates.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|(candidate, _)| candidate.clone()))
}

/// Times the candidates that have a group's fusion and leave it out, or says why not.
fn try_both(
    lab: &mut dyn Lab,
    pair: &[Candidate; 2],
    bootstrap: &Bootstrap,
) -> Result<std::result::Result<Trial, String>> {
    if let Some(why) = lab.prepare(pair)?.into_iter().find_map(Result::err) {
        return Ok(Err(why.to_string()));
    }
    let (fused, without) = two(lab.measure(pair)?)?;
    Ok(Ok(Trial {
        fused_us: Summary::of(&fused, bootstrap)?.p50_us,
        left_us: Summary::of(&without, bootstrap)?.p50_us,
        ratio: compare(&without, &fused, bootstrap)?,
    }))
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
        /// Has no engine.
        broken: Vec<Candidate>,
    }

    impl Lab for Simulated {
        fn prepare(&mut self, candidates: &[Candidate]) -> Result<Vec<Result<()>>> {
            let outcome = |candidate| match self.broken.contains(candidate) {
                true => Err(Error::CheckFailed("the build failed".into())),
                false => Ok(()),
            };
            Ok(candidates.iter().map(outcome).collect())
        }

        fn measure(&mut self, candidates: &[Candidate]) -> Result<Vec<Samples>> {
            assert!(candidates.iter().all(|c| !self.broken.contains(c)));
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
        Simulated {
            native,
            canonical,
            base: 100.0,
            groups: groups.to_vec(),
            noise: 0.02,
            random,
            asked: vec![],
            broken: vec![],
        }
    }

    fn group(kind: Kind, number: usize) -> Group {
        let nodes = vec![format!("node_{number}")];
        Group { kind, shape: Some(format!("[1, {number}]")), nodes, parts: BTreeSet::new() }
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
        assert_eq!(lab.asked[7..9], [Candidate::Without([1].into()), Candidate::Without([1, 2].into())]);
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

    /// A block of the attentions `parts`.
    fn block(number: usize, parts: &[usize]) -> Group {
        let parts = parts.iter().map(|i| (Kind::Attention, format!("node_{i}"))).collect();
        Group { parts, ..group(Kind::SwinAttnBlock, number) }
    }

    #[test]
    fn blocks_are_taken_where_they_pay_and_their_parts_left_alone() {
        // Of two blocks the first pays. Its part is not asked for any more; the other attentions are.
        let mut groups = vec![block(0, &[2]), block(1, &[3])];
        groups.extend((2..5).map(|i| group(Kind::Attention, i)));
        let times = [(20.0, 30.0), (20.0, 20.0), (50.0, 10.0), (20.0, 25.0), (25.0, 20.0)];
        let mut lab = simulated(400.0, 400.0, &times);
        let outcome = search(&groups, &mut lab, &Bootstrap::default(), &mut |_| {}).unwrap();
        // With all blocks it is faster than with none.
        let without = |left: &[usize]| Candidate::Without(left.iter().copied().collect());
        assert_eq!(lab.asked[..4], [Candidate::Native, Candidate::Canonical, without(&[]), without(&[0, 1])]);
        assert_eq!(lab.asked[4..8], [without(&[]), without(&[0]), without(&[]), without(&[1])]);
        assert_eq!(outcome.choice, Candidate::Without([1, 4].into()));
        let names: Vec<String> = outcome.decisions.iter().map(|d| format!("{} {}", d.group, d.verdict())).collect();
        assert_eq!(
            names,
            [
                "swin-attn-block [1, 0] fused",
                "swin-attn-block [1, 1] left as its parts",
                "attention [1, 3] fused",
                "attention [1, 4] left to TensorRT",
            ]
        );
        assert_eq!(outcome.describe(), "left to TensorRT: attention [1, 4]; blocks: swin-attn-block [1, 0]");
        let left: Vec<_> = outcome.standard().into_iter().map(|s| (s.kind, s.node.unwrap())).collect();
        assert_eq!(left, [(Kind::SwinAttnBlock, "node_1".into()), (Kind::Attention, "node_4".into())]);
        assert!(outcome.standard()[0].reason.starts_with("left as its parts: the model takes "));
    }

    /// A block made of blocks is tried against the best of them, and then its parts are what it is made of, whatever was found of them.
    #[test]
    fn blocks_of_blocks_take_their_parts_from_those_that_were_left() {
        let mut inner = block(0, &[3]);
        inner.kind = Kind::TntInnerBlock;
        let mut whole = group(Kind::TntWords, 2);
        whole.parts = [(Kind::TntInnerBlock, 0), (Kind::TntBridge, 1), (Kind::Attention, 3)]
            .map(|(kind, i)| (kind, format!("node_{i}")))
            .into();
        let mut bridges = group(Kind::TntBridge, 1);
        // Of another chain: stays left out.
        bridges.nodes.push("node_9".into());
        let groups = [inner, bridges, whole, group(Kind::Attention, 3), group(Kind::Attention, 4)];
        let times = [(20.0, 40.0), (20.0, 20.0), (20.0, 40.0), (20.0, 40.0), (20.0, 40.0)];
        let mut lab = simulated(400.0, 400.0, &times);
        let outcome = search(&groups, &mut lab, &Bootstrap::default(), &mut |_| {}).unwrap();
        let without = |left: &[usize]| Candidate::Without(left.iter().copied().collect());
        assert!(lab.asked.contains(&without(&[1, 2])));
        assert_eq!(outcome.choice, without(&[1]));
        let left =
            |standard: Vec<Standard>| standard.into_iter().map(|s| (s.kind, s.node.unwrap())).collect::<Vec<_>>();
        assert_eq!(left(outcome.standard()), [(Kind::TntBridge, "node_9".into())]);
        assert_eq!(left(standard(&groups, &[1].into())), [(Kind::TntBridge, "node_9".into())]);
        assert_eq!(left(standard(&groups, &[1, 2].into())).len(), 3);
        assert_eq!(outcome.describe(), "everything fused; blocks: tnt-words [1, 2]");
    }

    /// Where every group pays, the search asks for nothing but what was expected; in that order, and for all of it.
    #[test]
    fn a_search_of_groups_that_pay_is_foreseen() {
        // The second block takes in all of one group, and the first a part of another.
        let mut partly = group(Kind::Attention, 2);
        partly.nodes.push("node_6".into());
        let groups = [block(0, &[2]), block(1, &[3]), partly, group(Kind::Attention, 3), group(Kind::Gelu, 4)];
        let expected = expected(&groups).unwrap();
        let without = |left: &[usize]| Candidate::Without(left.iter().copied().collect());
        let plain = [Candidate::Native, Candidate::Canonical];
        let asked = [[].as_slice(), &[0, 1], &[0], &[1], &[2], &[4]].map(without);
        let asked: Vec<Candidate> = plain.into_iter().chain(asked).collect();
        assert_eq!(expected, asked);

        let search_of = |times: &[(f64, f64)]| {
            let mut lab = simulated(400.0, 400.0, times);
            search(&groups, &mut lab, &Bootstrap::default(), &mut |_| {}).unwrap();
            let mut asked: Vec<Candidate> = vec![];
            for candidate in lab.asked {
                if !asked.contains(&candidate) {
                    asked.push(candidate);
                }
            }
            asked
        };
        assert_eq!(search_of(&[(20.0, 40.0); 5]), expected);
        // One that does not pay leads the search elsewhere.
        let other = search_of(&[(20.0, 40.0), (40.0, 20.0), (20.0, 40.0), (20.0, 40.0), (20.0, 40.0)]);
        assert!(other.contains(&without(&[1, 3])) && !expected.contains(&without(&[1, 3])), "{other:?}");
    }

    /// What cannot be built is not tried, and what was timed is the outcome.
    #[test]
    fn a_search_ends_without_the_engines_that_are_missing() {
        let without = |left: &[usize]| Candidate::Without(left.iter().copied().collect());
        let groups = [block(0, &[2]), block(1, &[3]), group(Kind::Attention, 2), group(Kind::Attention, 3)];
        let search_with = |broken: &[Candidate], times: &[(f64, f64)]| {
            let mut lab = simulated(400.0, 380.0, times);
            lab.broken = broken.to_vec();
            search(&groups, &mut lab, &Bootstrap::default(), &mut |_| {})
        };
        let pays = [(20.0, 60.0), (40.0, 20.0), (20.0, 40.0), (20.0, 40.0)];

        let outcome = search_with(&[without(&[1]), Candidate::Canonical], &pays).unwrap();
        assert_eq!(outcome.choice, without(&[]));
        assert!(outcome.canonical.is_none());
        let untried: Vec<bool> = outcome.decisions.iter().map(|d| d.untried.is_some() && d.trial.is_none()).collect();
        assert_eq!(untried, [false, true]);
        assert!(!outcome.decisions[1].left && outcome.decisions[1].reason().contains("the build failed"));

        // Without the form with all blocks the search starts with none, and takes those that it can try.
        let outcome = search_with(&[without(&[]), without(&[0])], &pays).unwrap();
        assert_eq!(outcome.choice, without(&[1]));
        let outcome = search_with(&[without(&[]), without(&[0]), without(&[1])], &pays).unwrap();
        assert_eq!(outcome.choice, without(&[0, 1]));
        assert!(outcome.standard()[0].reason.starts_with("left as its parts: not timed, "));

        let error = search_with(&[without(&[]), without(&[0, 1])], &pays).unwrap_err().to_string();
        assert!(error.contains("the build failed"), "{error}");
        assert!(search_with(&[Candidate::Native], &pays).is_err());
    }

    #[test]
    fn groups_keep_the_sites_that_no_block_has_taken() {
        let mut all = group(Kind::Attention, 2);
        all.nodes.push("node_3".into());
        let groups = [block(0, &[2]), all];
        let left = |numbers: &[usize]| {
            let standard = standard(&groups, &numbers.iter().copied().collect());
            standard.into_iter().map(|s| s.node.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(left(&[1]), ["node_3"]);
        assert_eq!(left(&[0, 1]), ["node_0", "node_2", "node_3"]);
        assert!(left(&[]).is_empty());
    }

    #[test]
    fn blocks_are_groups_with_their_parts() {
        let with_blocks = Options { kinds: kinds_without_wholes(), ..Options::default() };
        let (ledger, graph) = fused("swin_ts17", &with_blocks);
        let by_kind = blocks(&ledger, &graph, By::Kind);
        let kinds = [Kind::SwinAttnBlock, Kind::MlpBlock, Kind::PatchEmbed, Kind::PatchMergeBlock, Kind::Classifier];
        assert_eq!(by_kind.iter().map(|g| g.kind).collect::<Vec<_>>(), kinds);
        let count = |kind: Kind, of: &Group| of.parts.iter().filter(|(k, _)| *k == kind).count();
        let parts = |of: &Group| [Kind::LayerNorm, Kind::Attention, Kind::Gelu, Kind::Window].map(|k| count(k, of));
        assert_eq!(
            by_kind.iter().map(parts).collect::<Vec<_>>(),
            [[3, 3, 0, 2], [3, 0, 3, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
        );
        assert!(blocks(&ledger, &graph, By::Stage).len() > 2);
        let (ledger, graph) = fused("swin_ts17", &Options::default());
        assert!(blocks(&ledger, &graph, By::Kind).is_empty());
    }

    /// A GELU with its offset is open to choice where the block that has it is left out, and only there.
    #[test]
    fn gelus_with_offsets_are_groups_that_blocks_may_take_in() {
        let (ledger, graph) = fused("swin_ts17", &Options { kinds: kinds_without_wholes(), ..Options::default() });
        let mut groups = blocks(&ledger, &graph, By::Kind);
        assert!(groups.iter().all(|g| g.kind != Kind::BiasGelu));
        let mlp = groups.iter().position(|g| g.kind == Kind::MlpBlock).unwrap();
        let (ledger, graph) = fused("swin_ts17", &Options { kinds: kinds_with_bias_gelu(), ..Options::default() });
        let gelus = groups.len();
        groups.extend(bias_gelus(&ledger, &graph, By::Kind));
        assert_eq!((groups.len(), groups[gelus].kind, groups[gelus].nodes.len()), (gelus + 1, Kind::BiasGelu, 3));
        assert!(free(&groups, &BTreeSet::new(), gelus).nodes.is_empty());
        assert_eq!(free(&groups, &[mlp].into(), gelus), groups[gelus]);
        let model = |left: &[usize]| {
            let standard = standard(&groups, &left.iter().copied().collect());
            let ledger = fused("swin_ts17", &Options { kinds: Kind::ALL.into(), standard, ..Options::default() }).0;
            [Kind::MlpBlock, Kind::BiasGelu].map(|kind| ledger.count(kind).fused)
        };
        assert_eq!(model(&[]), [3, 0]);
        assert_eq!(model(&[mlp]), [0, 3]);
        assert_eq!(model(&[gelus]), [3, 0]);
        assert_eq!(model(&[mlp, gelus]), [0, 0]);
    }

    /// Leaving all blocks out is the model without them, node for node.
    #[test]
    fn without_blocks_the_model_is_the_default_one() {
        for name in ["swin_ts17", "swin_pad_dy18", "swin_original_ts13", "vit_ts17", "tnt_ts17", "ptnt_dy18"] {
            let default = fused(name, &Options::default());
            let all = Options { kinds: Kind::ALL.into(), ..Options::default() };
            let (ledger, graph) = fused(name, &Options { kinds: kinds_without_wholes(), ..all.clone() });
            let mut blocks = blocks(&ledger, &graph, By::Stage);
            assert!(!blocks.is_empty());
            let (ledger, graph) = fused(name, &Options { kinds: kinds_with_bias_gelu(), ..all.clone() });
            blocks.extend(bias_gelus(&ledger, &graph, By::Stage));
            let (ledger, graph) = fused(name, &all);
            blocks.extend(wholes(&ledger, &graph, By::Stage));
            let left = (0..blocks.len()).collect();
            let without = fused(name, &Options { standard: standard(&blocks, &left), ..all });
            let text = |graph: &Graph| crate::ir::print(graph);
            assert_eq!(text(&default.1), text(&without.1), "{name}");
            assert!(without.0.sites.iter().all(|s| !s.kind.is_block() || s.status != Status::Fused));
        }
    }

    /// Whichever of the two kinds has the encoding of a convolution block, the block can be left as it is.
    #[test]
    fn convolution_blocks_are_a_group_with_or_without_their_encodings() {
        let kinds: BTreeSet<Kind> = Kind::DEFAULT.into_iter().chain([Kind::DepthwiseConv, Kind::TokenConv]).collect();
        let options = Options { kinds, ..Options::default() };
        let (ledger, graph) = fused("uniformer_ts17", &options);
        let groups = blocks(&ledger, &graph, By::Kind);
        let number = |kind| groups.iter().position(|g| g.kind == kind).unwrap();
        let [encodings, convolutions] = [Kind::DepthwiseConv, Kind::TokenConv].map(number);
        for (left, expected) in [
            (vec![], [3, 1]),
            (vec![encodings], [0, 1]),
            (vec![convolutions], [3, 0]),
            (vec![encodings, convolutions], [0, 0]),
        ] {
            let standard = standard(&groups, &left.into_iter().collect());
            let (ledger, graph) = fused("uniformer_ts17", &Options { standard, ..options.clone() });
            assert_eq!([Kind::DepthwiseConv, Kind::TokenConv].map(|kind| ledger.count(kind).fused), expected);
            if expected == [0, 0] {
                let default = fused("uniformer_ts17", &Options::default()).1;
                assert_eq!(crate::ir::print(&default), crate::ir::print(&graph));
            }
        }
    }

    /// A convolution block as one node can be left as its products and convolution, and these be taken with it alone.
    #[test]
    fn convolution_blocks_as_nodes_are_groups_behind_their_parts() {
        let options = Options { kinds: Kind::ALL.into(), ..Options::default() };
        let (ledger, graph) = fused("uniformer_ts17", &Options { kinds: kinds_without_wholes(), ..Options::default() });
        let mut groups = blocks(&ledger, &graph, By::Stage);
        let (ledger, graph) = fused("uniformer_ts17", &options);
        groups.extend(wholes(&ledger, &graph, By::Stage));
        let number = |kind| groups.iter().position(|g| g.kind == kind).unwrap();
        let [parts, whole] = [Kind::TokenConv, Kind::ConvBlock].map(number);
        let of = |number: usize, kind| groups[number].nodes.iter().map(move |node| (kind, node.clone()));
        assert!(of(parts, Kind::TokenConv).eq(groups[whole].parts.iter().cloned()), "{groups:?}");
        for (left, expected) in
            [(vec![], [1, 1]), (vec![whole], [1, 0]), (vec![parts], [1, 1]), (vec![parts, whole], [0, 0])]
        {
            let standard = standard(&groups, &left.into_iter().collect());
            let (ledger, _) = fused("uniformer_ts17", &Options { standard, ..options.clone() });
            assert_eq!([Kind::TokenConv, Kind::ConvBlock].map(|kind| ledger.count(kind).fused), expected);
        }
    }

    fn fused(name: &str, options: &Options) -> (Ledger, Graph) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/{name}.onnx"));
        let mut model = crate::onnx::load(&path).unwrap();
        let ledger = rewrite::fuse(&mut model.proto, name, options, &mut |_, _| {}).unwrap();
        (ledger, Graph::take(&mut model.proto).unwrap())
    }

    #[test]
    fn stages_are_groups() {
        let (ledger, graph) = fused("swin_ts17", &Options::default());
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
