//! A folder of models and their engines, in which no engine is built twice.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::onnx::{self, Model};
use prost::Message as _;

/// Builds an engine, or says why not: may be called from several threads at once.
pub type Builder<'a> = &'a (dyn Fn(&Job) -> Result<()> + Sync);

/// An engine to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub model: PathBuf,
    pub engine: PathBuf,
    pub fp16: bool,
    /// Size of the first axis of inputs that leave it open.
    pub batch: Option<i64>,
    /// Timings of layers, shared by all engines of the store.
    pub timing_cache: PathBuf,
    /// Arguments of `trt-opt build` that only this engine has.
    pub extra: &'static [&'static str],
}

/// Models, engines and timings under one folder.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    /// What besides the model makes an engine: libraries and options of the builder.
    context: u64,
}

impl Store {
    /// `context` is what engines depend on beside the model, precision and batch: versions, options; `files` are
    /// hashed by their contents.
    pub fn open(folder: &Path, context: &str, files: &[PathBuf]) -> Result<Self> {
        for part in ["models", "engines"] {
            let part = folder.join(part);
            std::fs::create_dir_all(&part).map_err(Error::io("make the folder", &part))?;
        }
        let mut hasher = DefaultHasher::new();
        context.hash(&mut hasher);
        for file in files {
            std::fs::read(file).map_err(Error::io("read", file))?.hash(&mut hasher);
        }
        Ok(Self { folder: folder.to_owned(), context: hasher.finish() })
    }

    /// Writes a model under a name.
    pub fn save(&self, name: &str, model: &Model) -> Result<PathBuf> {
        let path = self.folder.join("models").join(format!("{name}.onnx"));
        onnx::save(model, &path, &onnx::SaveOptions::default())?;
        Ok(path)
    }

    /// The engine of a model, which may be there already. Equal models share it, whatever their names.
    pub fn job(&self, model: &Path, fp16: bool, batch: Option<i64>, extra: &'static [&'static str]) -> Result<Job> {
        let mut hasher = DefaultHasher::new();
        (self.context, fp16, batch, extra).hash(&mut hasher);
        fingerprint(model, &mut hasher)?;
        let engine = self.folder.join("engines").join(format!("{:016x}.engine", hasher.finish()));
        let timing_cache = self.folder.join("timing.cache");
        Ok(Job { model: model.to_owned(), engine, fp16, batch, timing_cache, extra })
    }

    /// Builds what is not there yet, `parallel` at a time. For each job, why it has no engine.
    pub fn build(
        &self,
        jobs: &[Job],
        parallel: usize,
        builder: Builder,
        done: &(dyn Fn(&Job, &Result<()>) + Sync),
    ) -> Vec<Result<()>> {
        let mut todo: Vec<&Job> = vec![];
        for job in jobs {
            if !job.engine.exists() && !todo.iter().any(|other| other.engine == job.engine) {
                todo.push(job);
            }
        }
        let next = AtomicUsize::new(0);
        let failures = Mutex::new(vec![]);
        std::thread::scope(|scope| {
            for _ in 0..parallel.clamp(1, todo.len().max(1)) {
                scope.spawn(|| {
                    while let Some(job) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = builder(job);
                        done(job, &outcome);
                        if let Err(error) = outcome {
                            failures.lock().unwrap_or_else(|e| e.into_inner()).push((&job.engine, error.to_string()));
                        }
                    }
                });
            }
        });
        let failures = failures.into_inner().unwrap_or_else(|e| e.into_inner());
        let outcome = |job: &Job| match failures.iter().find(|(engine, _)| *engine == &job.engine) {
            Some((_, why)) => Err(Error::CheckFailed(why.clone())),
            None if job.engine.exists() => Ok(()),
            None => Err(Error::CheckFailed(format!("no engine was written to {}", job.engine.display()))),
        };
        jobs.iter().map(outcome).collect()
    }
}

/// Hashes what a model's files hold. The order of its initializers does not count: two ways to the same graph may differ in it.
fn fingerprint(model: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    let Model { mut proto, external, .. } = onnx::load(model)?;
    let mut initializers = proto.graph.as_mut().map(|graph| std::mem::take(&mut graph.initializer)).unwrap_or_default();
    initializers.sort_by(|a, b| a.name.cmp(&b.name));
    proto.encode_to_vec().hash(hasher);
    for tensor in initializers {
        tensor.encode_to_vec().hash(hasher);
    }
    for file in external {
        file.data.hash(hasher);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(folder: &Path) -> Store {
        Store::open(folder, "TensorRT 8.6.0", &[]).unwrap()
    }

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vit_ts17.onnx")
    }

    #[test]
    fn an_engine_is_known_by_all_that_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let job = store.job(&fixture(), true, None, &[]).unwrap();
        assert_eq!(job, store.job(&fixture(), true, None, &[]).unwrap());
        let copy = dir.path().join("copy.onnx");
        std::fs::copy(fixture(), &copy).unwrap();
        assert_eq!(job.engine, store.job(&copy, true, None, &[]).unwrap().engine, "the name does not matter");
        let mut turned = onnx::load(&fixture()).unwrap();
        turned.proto.graph.as_mut().unwrap().initializer.reverse();
        onnx::save(&turned, &copy, &onnx::SaveOptions::default()).unwrap();
        assert_eq!(job.engine, store.job(&copy, true, None, &[]).unwrap().engine, "nor does the order of initializers");
        let plugin = dir.path().join("plugin.so");
        std::fs::write(&plugin, "one").unwrap();
        let with_plugin = || Store::open(dir.path(), "TensorRT 8.6.0", std::slice::from_ref(&plugin)).unwrap();
        let one = with_plugin().job(&fixture(), true, None, &[]).unwrap();
        std::fs::write(&plugin, "two").unwrap();
        let mut engines = vec![
            job.engine,
            one.engine,
            with_plugin().job(&fixture(), true, None, &[]).unwrap().engine,
            store.job(&fixture(), false, None, &[]).unwrap().engine,
            store.job(&fixture(), true, None, &["--opt-level", "5"]).unwrap().engine,
            store.job(&fixture(), true, Some(32), &[]).unwrap().engine,
            store.job(&fixture().with_file_name("vit_ts13.onnx"), true, None, &[]).unwrap().engine,
            Store::open(dir.path(), "TensorRT 8.6.1", &[]).unwrap().job(&fixture(), true, None, &[]).unwrap().engine,
        ];
        let count = engines.len();
        engines.sort();
        engines.dedup();
        assert_eq!(engines.len(), count);
    }

    #[test]
    fn engines_are_built_once_and_failures_belong_to_their_jobs() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let good = store.job(&fixture(), true, None, &[]).unwrap();
        let bad = store.job(&fixture(), false, None, &[]).unwrap();
        let lazy = store.job(&fixture(), true, Some(2), &[]).unwrap();
        let calls = AtomicUsize::new(0);
        let builder = |job: &Job| {
            calls.fetch_add(1, Ordering::Relaxed);
            match () {
                () if !job.fp16 => Err(Error::CheckFailed("node 7 is not supported".into())),
                () if job.batch.is_some() => Ok(()),
                () => std::fs::write(&job.engine, "engine").map_err(Error::io("write", &job.engine)),
            }
        };
        let jobs = [good.clone(), bad, good.clone(), lazy];
        let outcomes = store.build(&jobs, 3, &builder, &|_, _| {});
        assert_eq!(calls.load(Ordering::Relaxed), 3);
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
        assert!(outcomes[1].as_ref().unwrap_err().to_string().contains("node 7"));
        assert!(outcomes[3].as_ref().unwrap_err().to_string().contains("no engine was written"));
        assert!(store.build(&[good], 1, &builder, &|_, _| {})[0].is_ok());
        assert_eq!(calls.load(Ordering::Relaxed), 3, "what is there is not built again");
    }
}
