//! A line on standard error that says what is being done and for how long.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use trt_opt::engine::Progress;

use super::Global;

/// Shown on a terminal only, and not where log lines would break it up.
pub struct Spinner(Option<ProgressBar>);

impl Spinner {
    pub fn new(global: &Global) -> Self {
        if global.quiet || global.verbose > 1 || !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {prefix} {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(Some(bar))
    }

    /// What is being done; the words of before are gone.
    pub fn start(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message("");
            bar.set_prefix(what.to_owned());
        }
    }

    pub fn show(&self, message: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(message.to_owned());
        }
    }

    /// For a build to tell what it is at.
    pub fn progress(&self) -> Option<Progress> {
        let bar = self.0.clone()?;
        Some(Arc::new(move |message: &str| bar.set_message(message.to_owned())))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
