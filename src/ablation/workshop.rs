//! Engines built and timed on the GPU of this machine.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::store::{Builder, Job, Store};
use super::variants::Variant;
use crate::bench;
use crate::engine::{BuildOptions, Gpu, Library};
use crate::error::Result;
use crate::onnx::Model;
use crate::rewrite::{self, Ledger, Target};
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

/// A variant of a model, and the file that holds it.
#[derive(Debug)]
pub struct Saved {
    pub model: Model,
    /// What became of its sites; `None`: the model as exported.
    pub ledger: Option<Ledger>,
    pub path: PathBuf,
}

impl Workshop<'_> {
    /// What a model is rewritten with for engines on this GPU: the products that it alone has are of float16.
    pub fn rewriting(&self, target: Target, fp16: bool) -> rewrite::Options {
        let compute_capability = fp16.then_some(self.gpu.description.compute_capability);
        rewrite::Options { target, compute_capability, ..Default::default() }
    }

    /// Writes a variant of a model into the store. A model as exported stays where it is.
    pub fn save(&self, name: &str, model: &Model, variant: &Variant) -> Result<Saved> {
        if variant.rewrite.is_none() {
            return Ok(Saved { model: model.clone(), ledger: None, path: model.path.clone() });
        }
        let (proto, ledger) = variant.apply(model, name)?;
        let model = Model { proto, ..model.clone() };
        let path = self.store.save(&format!("{name}-{}", variant.name), &model)?;
        Ok(Saved { model, ledger, path })
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
