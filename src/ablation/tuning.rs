//! The fastest form of a model on the GPU of this machine.

use std::collections::{BTreeMap, BTreeSet};

use super::store::Job;
use super::tune::{self, By, Candidate, Decision, Group, Lab, Outcome};
use super::variants::{self, Variant};
use super::workshop::{Saved, Workshop};
use crate::bench;
use crate::error::{Error, Result};
use crate::ir::Graph;
use crate::measure::stats::Bootstrap;
use crate::measure::{Plan, Samples};
use crate::onnx::Model;
use crate::report::Mode;
use crate::rewrite::{self, Kind, Ledger, Standard, Target};
use crate::verify::{self, Array};

/// How far an engine may be from native, which has an error of its own: each of them may be off by 1e-2.
const MOST_DIFFERENCE: f64 = 2e-2;

/// Told of every engine that was built.
pub type Built<'a> = &'a (dyn Fn(&Job, &Result<()>) + Sync);

/// What to tune, and how.
pub struct Tuning<'a> {
    pub workshop: &'a Workshop<'a>,
    pub model: &'a Model,
    /// What files of the store are called after.
    pub name: &'a str,
    pub target: Target,
    pub by: By,
    pub fp16: bool,
    pub batch: Option<i64>,
    pub plan: Plan,
    pub bootstrap: Bootstrap,
}

/// The tuned model.
#[derive(Debug)]
pub struct Tuned {
    pub outcome: Outcome,
    /// In its ledger, sites that were left out say why, with both figures.
    pub saved: Saved,
}

/// A candidate's engine.
#[derive(Debug)]
pub struct Prepared {
    /// `native`, `canonical`, or what groups are left out.
    pub name: String,
    pub job: Job,
    /// Why it is not there.
    pub outcome: Result<()>,
}

impl Tuning<'_> {
    /// Builds and times the candidates. `decided` is told of every group.
    pub fn run(&self, built: Built, decided: &mut dyn FnMut(&Decision)) -> Result<Tuned> {
        let groups = self.groups()?;
        let mut lab = EngineLab { tuning: self, groups: &groups, built, jobs: vec![] };
        // A search asks for two engines at a time: what it is likely to ask for is built side by side first.
        for Prepared { name, outcome, .. } in lab.build_expected()? {
            if let Err(why) = outcome {
                // Not fatal here: the search may not need it, and else meets the reason again.
                tracing::info!("{}, {name}: no engine yet: {why}", self.name);
            }
        }
        let outcome = tune::search(&groups, &mut lab, &self.bootstrap, decided)?;
        let variant = self.form(&outcome.choice, |_| self.fused("tuned", outcome.standard()));
        let saved = self.workshop.save(self.name, self.model, &variant)?;
        Ok(Tuned { outcome, saved })
    }

    /// Builds, as many at a time as the workshop does, what [`Tuning::run`] asks for if every group pays; times nothing.
    pub fn build(&self, built: Built) -> Result<Vec<Prepared>> {
        EngineLab { tuning: self, groups: &self.groups()?, built, jobs: vec![] }.build_expected()
    }

    /// What there is to choose among, blocks first, those made of other blocks behind these. GELUs with offsets are blocks, too.
    fn groups(&self) -> Result<Vec<Group>> {
        let default = self.workshop.rewriting(self.target, self.fp16);
        let blocks = rewrite::Options { kinds: tune::kinds_without_wholes(), ..default.clone() };
        let (ledger, graph) = self.rewritten(blocks)?;
        let mut groups = tune::blocks(&ledger, &graph, self.by);
        // What the blocks have taken in of these is theirs where they are fused.
        let bias_gelu = rewrite::Options { kinds: tune::kinds_with_bias_gelu(), ..default.clone() };
        let (ledger, graph) = self.rewritten(bias_gelu)?;
        groups.extend(tune::bias_gelus(&ledger, &graph, self.by));
        let all = rewrite::Options { kinds: Kind::ALL.into(), ..default.clone() };
        let (ledger, graph) = self.rewritten(all)?;
        groups.extend(tune::wholes(&ledger, &graph, self.by));
        let (ledger, graph) = self.rewritten(default)?;
        groups.extend(tune::groups(&ledger, &graph, self.by));
        if groups.is_empty() {
            return Err(Error::CheckFailed(format!(
                "{}: nothing of it is fused for {}, so there is nothing to choose; trt-opt inspect says why",
                self.name, self.target
            )));
        }
        Ok(groups)
    }

    fn rewritten(&self, options: rewrite::Options) -> Result<(Ledger, Graph)> {
        let variant = Variant { name: "groups".into(), rewrite: Some(options) };
        let (mut proto, ledger) = variant.apply(self.model, self.name)?;
        let ledger = ledger.ok_or_else(|| Error::CheckFailed("a rewrite gave no ledger".into()))?;
        Ok((ledger, Graph::take(&mut proto)?))
    }

    /// With plugins, blocks included, but for these sites.
    fn fused(&self, name: impl Into<String>, standard: Vec<Standard>) -> Variant {
        let default = self.workshop.rewriting(self.target, self.fp16);
        let options = rewrite::Options { kinds: Kind::ALL.into(), standard, ..default };
        Variant { name: name.into(), rewrite: Some(options) }
    }

    /// How a candidate is made of the model; `fused` says it of one with plugins.
    fn form(&self, candidate: &Candidate, fused: impl FnOnce(&BTreeSet<usize>) -> Variant) -> Variant {
        let [native, canonical] = variants::without_plugins();
        match candidate {
            Candidate::Native => native,
            Candidate::Canonical => canonical,
            Candidate::Without(left) => fused(left),
        }
    }
}

/// Candidates of one model, timed by CUDA graphs.
struct EngineLab<'a> {
    tuning: &'a Tuning<'a>,
    groups: &'a [Group],
    built: Built<'a>,
    /// Of candidates that came up before: every search compares its choice so far with the next.
    jobs: Vec<(Candidate, Job)>,
}

impl EngineLab<'_> {
    fn variant(&self, candidate: &Candidate) -> Variant {
        self.tuning.form(candidate, |left| {
            let standard = tune::standard(self.groups, left);
            let numbers: Vec<String> = left.iter().map(ToString::to_string).collect();
            let name = if numbers.is_empty() { "left-none".into() } else { format!("left-{}", numbers.join("-")) };
            self.tuning.fused(name, standard)
        })
    }

    fn job(&mut self, candidate: &Candidate) -> Result<Job> {
        if let Some((_, job)) = self.jobs.iter().find(|(known, _)| known == candidate) {
            return Ok(job.clone());
        }
        let Tuning { workshop, model, name, fp16, batch, .. } = *self.tuning;
        let saved = workshop.save(name, model, &self.variant(candidate))?;
        let job = workshop.store.job(&saved.path, fp16, batch, &[])?;
        self.jobs.push((candidate.clone(), job.clone()));
        Ok(job)
    }

    /// Builds what the search is expected to ask for.
    fn build_expected(&mut self) -> Result<Vec<Prepared>> {
        let candidates = tune::expected(self.groups)?;
        let jobs: Vec<Job> = candidates.iter().map(|c| self.job(c)).collect::<Result<_>>()?;
        let outcomes = self.tuning.workshop.build(&jobs, self.built);
        let prepared = candidates.iter().zip(jobs).zip(outcomes).map(|((candidate, job), outcome)| Prepared {
            name: self.variant(candidate).name,
            job,
            outcome,
        });
        Ok(prepared.collect())
    }
}

impl Lab for EngineLab<'_> {
    fn prepare(&mut self, candidates: &[Candidate]) -> Result<Vec<Result<()>>> {
        let jobs: Vec<Job> = candidates.iter().map(|c| self.job(c)).collect::<Result<_>>()?;
        Ok(self.tuning.workshop.build(&jobs, self.built))
    }

    fn measure(&mut self, candidates: &[Candidate]) -> Result<Vec<Samples>> {
        let jobs: Vec<Job> = candidates.iter().map(|c| self.job(c)).collect::<Result<_>>()?;
        let workshop = self.tuning.workshop;
        let mut subjects = vec![];
        for (candidate, job) in candidates.iter().zip(&jobs) {
            let name = self.variant(candidate).name;
            let subject = workshop.subject(&name, job, &BTreeMap::new())?;
            if let Err(why) = &subject.graph {
                return Err(Error::CheckFailed(format!("{name}: its CUDA graph cannot be captured: {why}")));
            }
            subjects.push(subject);
        }
        // The first and the last measurement are against native: what is chosen has to compute the same.
        if let Some(native) = candidates.iter().position(|c| *c == Candidate::Native) {
            let expected = subjects[native].outputs(Mode::Graph)?;
            for subject in &mut subjects {
                let found = subject.outputs(Mode::Graph)?;
                agree(&subject.name, &expected, &found)?;
            }
        }
        bench::measure(&mut subjects, Mode::Graph, &self.tuning.plan, &mut |_| {})
    }
}

/// Whether an engine computes what the one of the model as exported does.
fn agree(name: &str, native: &[(String, Array)], found: &[(String, Array)]) -> Result<()> {
    let error = verify::relative_error(native, found)?;
    // A NaN does not compare.
    let same = error <= MOST_DIFFERENCE;
    match same {
        true => Ok(()),
        false => Err(Error::CheckFailed(format!(
            "{name}: its engine and that of the model as exported differ by {error:.2e}, expected at most {MOST_DIFFERENCE:.0e} \
             (||a - b|| / ||a||); trt-opt verify says whether the rewritten model is at fault"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DType;
    use crate::verify::Data;

    #[test]
    fn engines_that_compute_something_else_are_refused() {
        let output = |values: &[f64]| {
            let array =
                Array { dtype: DType::F32, shape: vec![values.len() as i64], data: Data::Float(values.to_vec()) };
            vec![("y".to_owned(), array)]
        };
        let native = output(&[1.0, 2.0, 2.0]);
        agree("all", &native, &output(&[1.0, 2.03, 2.0])).unwrap();
        for wrong in [[1.0, 2.1, 2.0], [1.0, f64::NAN, 2.0], [0.0, 0.0, 0.0]] {
            let why = agree("all", &native, &output(&wrong)).unwrap_err().to_string();
            assert!(why.starts_with("all: its engine") && why.contains("2e-2"), "{why}");
        }
        assert!(agree("all", &native, &output(&[1.0, 2.0])).is_err());
    }
}
