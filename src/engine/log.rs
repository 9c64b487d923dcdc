//! TensorRT's log.
//!
//! Lines go to `tracing` under the target `trt_opt::tensorrt`. While a [`Scope`] is open, errors are kept instead: they
//! become part of the error if what was tried fails, and are warnings if it does not.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::progress::Progress;

const TARGET: &str = "trt_opt::tensorrt";
/// Errors kept in a scope; those that come first say what is wrong.
const KEPT: usize = 100;

struct State {
    scopes: usize,
    errors: Vec<String>,
    watch: Option<Progress>,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: Mutex<State> = Mutex::new(State { scopes: 0, errors: vec![], watch: None });
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Called by TensorRT, from any thread.
pub(super) fn log_line(severity: i32, line: &[u8]) {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end();
    match severity {
        // Internal error, error.
        ..=1 => {
            let mut state = state();
            if state.scopes == 0 {
                drop(state);
                tracing::error!(target: TARGET, "{line}");
                return;
            }
            if state.errors.len() < KEPT {
                state.errors.push(line.to_owned());
            }
            drop(state);
            tracing::debug!(target: TARGET, "error: {line}");
        }
        2 => tracing::warn!(target: TARGET, "{line}"),
        3 => {
            tracing::debug!(target: TARGET, "{line}");
            tell(line);
        }
        _ => {
            tracing::trace!(target: TARGET, "{line}");
            // The one verbose line that says where a build is.
            if let Some((_, layer)) = line.split_once("Computing costs for ") {
                tell(&format!("timing {layer}"));
            }
        }
    }
}

fn tell(line: &str) {
    let watch = state().watch.clone();
    if let Some(watch) = watch {
        watch(line);
    }
}

/// Something that TensorRT is asked to do. Scopes of several threads see each other's errors.
pub(super) struct Scope {
    start: usize,
}

impl Scope {
    pub fn open() -> Self {
        let mut state = state();
        state.scopes += 1;
        Self { start: state.errors.len() }
    }

    /// The errors since the scope was opened, as one text, which then are done with.
    pub fn take(&self) -> String {
        let mut state = state();
        let start = self.start.min(state.errors.len());
        let mut lines = state.errors.split_off(start);
        lines.dedup();
        lines.join("; ")
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let left = self.take();
        state().scopes -= 1;
        if !left.is_empty() {
            tracing::warn!(target: TARGET, "{left}");
        }
    }
}

/// Shows someone the lines that tell what TensorRT is at, until it is dropped. The last one watches.
pub(super) struct Watch;

impl Watch {
    pub fn new(progress: Progress) -> Self {
        state().watch = Some(progress);
        Self
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        state().watch = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test, since the state is one for the process.
    #[test]
    fn errors_are_kept_in_scopes_and_watchers_are_told() {
        let scope = Scope::open();
        log_line(1, b"outer\n");
        {
            let inner = Scope::open();
            log_line(0, b"first ");
            log_line(0, b"first");
            log_line(1, b"second");
            log_line(2, b"a warning");
            assert_eq!(inner.take(), "first; second");
            assert_eq!(inner.take(), "");
        }
        assert_eq!(scope.take(), "outer");

        let told: std::sync::Arc<Mutex<Vec<String>>> = Default::default();
        let keep = told.clone();
        let watch = Watch::new(std::sync::Arc::new(move |line: &str| keep.lock().unwrap().push(line.to_owned())));
        log_line(3, b"[GraphReduction] done");
        log_line(4, b"=============== Computing costs for /layers.0/MatMul");
        log_line(4, b"other");
        drop(watch);
        log_line(3, b"nobody listens");
        assert_eq!(*told.lock().unwrap(), ["[GraphReduction] done", "timing /layers.0/MatMul"]);
    }
}
