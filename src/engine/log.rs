//! TensorRT's log.
//!
//! Lines go to `tracing` under the target `trt_opt::tensorrt`. While a [`Scope`] is open, errors are kept instead: they
//! become part of the error if what was tried fails, and are warnings if it does not.

use std::sync::{Mutex, MutexGuard, PoisonError};

const TARGET: &str = "trt_opt::tensorrt";
/// Errors kept in a scope; those that come first say what is wrong.
const KEPT: usize = 100;

struct State {
    scopes: usize,
    errors: Vec<String>,
}

fn state() -> MutexGuard<'static, State> {
    static STATE: Mutex<State> = Mutex::new(State { scopes: 0, errors: vec![] });
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
        3 => tracing::debug!(target: TARGET, "{line}"),
        _ => tracing::trace!(target: TARGET, "{line}"),
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
