//! Engines built and timed on the GPU of this machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::store::{Builder, Job, Store};
use super::tune::{Candidate, Group, Lab};
use super::variants::{self, Variant};
use crate::bench;
use crate::engine::{BuildOptions, Gpu, Library};
use crate::error::Result;
use crate::measure::{Plan, Samples};
use crate::onnx::Model;
use crate::rewrite::{self, Standard, Target};
use crate::verify::Array;

/// What engines are built and timed with.
pub struct Workshop<'a> {
    pub library: &'a Library,
    pub gpu: &'a Gpu,
    pub store: &'a Store,
    pub builder: Builder<'a>,
    /// Engines that are built at a time.
    pub parallel: usize,
    pub plugins: Vec<PathBuf>,
    /// Of inputs that are not given.
    pub seed: u64,
}

impl Workshop<'_> {
    /// Writes a variant of a model into the store. A model as exported stays where it is.
    pub fn save(&self, name: &str, model: &Model, variant: &Variant) -> Result<(PathBuf, Option<rewrite::Ledger>)> {
        if variant.rewrite.is_none() {
            return Ok((model.path.clone(), None));
        }
        let (proto, ledger) = variant.apply(model, name)?;
        let rewritten = Model { proto, ..model.clone() };
        Ok((self.store.save(&format!("{name}-{}", variant.name), &rewritten)?, ledger))
    }

    /// Builds what is missing. For each job, why it has no engine.
    pub fn build(&self, jobs: &[Job], done: &(dyn Fn(&Job, &Result<()>) + Sync)) -> Vec<Result<()>> {
        self.store.build(jobs, self.parallel, self.builder, done)
    }

    /// A built engine, ready to be timed.
    pub fn subject(&self, name: &str, job: &Job, given: &BTreeMap<String, Array>) -> Result<bench::Subject> {
        let options = BuildOptions { plugins: self.plugins.clone(), batch: job.batch, ..Default::default() };
        let (library, gpu) = (self.library, self.gpu);
        bench::Loader { library, gpu, options: &options, inputs: given, seed: self.seed }.load(name, &job.engine, None)
    }
}

/// Candidates of one model, timed by CUDA graphs.
pub struct EngineLab<'a> {
    pub workshop: &'a Workshop<'a>,
    pub model: &'a Model,
    /// What files of the store are called after.
    pub name: &'a str,
    pub target: Target,
    pub groups: &'a [Group],
    pub fp16: bool,
    pub batch: Option<i64>,
    pub plan: Plan,
    /// Told of every engine that was built.
    pub built: &'a (dyn Fn(&Job, &Result<()>) + Sync),
}

impl EngineLab<'_> {
    /// How a candidate is made of the model.
    pub fn variant(&self, candidate: &Candidate) -> Variant {
        let [native, canonical] = variants::without_plugins();
        match candidate {
            Candidate::Native => native,
            Candidate::Canonical => canonical,
            Candidate::Without(left) => {
                let of = |number: &usize| {
                    let group = &self.groups[*number];
                    group.nodes.iter().map(move |node| Standard {
                        kind: group.kind,
                        node: Some(node.clone()),
                        reason: format!("{group} is left to TensorRT"),
                    })
                };
                let standard = left.iter().flat_map(of).collect();
                let numbers: Vec<String> = left.iter().map(ToString::to_string).collect();
                let name = if numbers.is_empty() { "all".into() } else { format!("left-{}", numbers.join("-")) };
                let options = rewrite::Options { target: self.target, standard, ..Default::default() };
                Variant { name, rewrite: Some(options) }
            }
        }
    }

    fn job(&self, candidate: &Candidate) -> Result<Job> {
        let (path, _) = self.workshop.save(self.name, self.model, &self.variant(candidate))?;
        self.workshop.store.job(Path::new(&path), self.fp16, self.batch)
    }
}

impl Lab for EngineLab<'_> {
    fn measure(&mut self, candidates: &[Candidate]) -> Result<Vec<Samples>> {
        let jobs: Vec<Job> = candidates.iter().map(|c| self.job(c)).collect::<Result<_>>()?;
        self.workshop.build(&jobs, self.built).into_iter().collect::<Result<Vec<()>>>()?;
        let mut subjects = vec![];
        for (candidate, job) in candidates.iter().zip(&jobs) {
            let name = self.variant(candidate).name;
            let subject = self.workshop.subject(&name, job, &BTreeMap::new())?;
            if let Err(why) = &subject.graph {
                return Err(crate::Error::CheckFailed(format!("{name}: its CUDA graph cannot be captured: {why}")));
            }
            subjects.push(subject);
        }
        bench::measure(&mut subjects, bench::Mode::Graph, &self.plan, &mut |_| {})
    }
}
