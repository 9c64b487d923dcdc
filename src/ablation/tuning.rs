//! The fastest form of a model on the GPU of this machine.

use std::path::PathBuf;

use super::store::Job;
use super::tune::{self, By, Candidate, Decision, Outcome};
use super::variants::{self, Variant};
use super::workshop::{EngineLab, Workshop};
use crate::error::{Error, Result};
use crate::ir::Graph;
use crate::measure::Plan;
use crate::measure::stats::Bootstrap;
use crate::onnx::Model;
use crate::onnx::proto::ModelProto;
use crate::rewrite::{self, Ledger, Target};

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
    pub proto: ModelProto,
    /// Of the rewrite that made it; sites that were left out say why, with both figures. `None`: the model as exported.
    pub ledger: Option<Ledger>,
    /// The same model in the store.
    pub path: PathBuf,
}

impl Tuning<'_> {
    /// Builds and times the candidates. `built` is told of every engine, `decided` of every group.
    pub fn run(&self, built: &(dyn Fn(&Job, &Result<()>) + Sync), decided: &mut dyn FnMut(&Decision)) -> Result<Tuned> {
        let all = rewrite::Options { target: self.target, ..Default::default() };
        let (mut fused, ledger) = Variant { name: "all".into(), rewrite: Some(all) }.apply(self.model, self.name)?;
        let ledger = ledger.ok_or_else(|| Error::CheckFailed("a rewrite gave no ledger".into()))?;
        let groups = tune::groups(&ledger, &Graph::take(&mut fused)?, self.by);
        if groups.is_empty() {
            return Err(Error::CheckFailed(format!(
                "{}: nothing of it is fused for {}, so there is nothing to choose; trt-opt inspect says why",
                self.name, self.target
            )));
        }
        let mut lab = EngineLab {
            workshop: self.workshop,
            model: self.model,
            name: self.name,
            target: self.target,
            groups: &groups,
            fp16: self.fp16,
            batch: self.batch,
            plan: self.plan,
            built,
        };
        let outcome = tune::search(&groups, &mut lab, &self.bootstrap, decided)?;
        let variant = self.variant(&outcome);
        let (proto, ledger) = variant.apply(self.model, self.name)?;
        let (path, _) = self.workshop.save(self.name, self.model, &variant)?;
        Ok(Tuned { outcome, proto, ledger, path })
    }

    /// The rewrite that the search chose, with its reasons.
    fn variant(&self, outcome: &Outcome) -> Variant {
        let [native, canonical] = variants::without_plugins();
        match outcome.choice {
            Candidate::Native => native,
            Candidate::Canonical => canonical,
            Candidate::Without(_) => {
                let options =
                    rewrite::Options { target: self.target, standard: outcome.standard(), ..Default::default() };
                Variant { name: "tuned".into(), rewrite: Some(options) }
            }
        }
    }
}
