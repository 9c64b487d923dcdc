//! A line on standard error that says what is being done and for how long.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::Global;

/// The one that is shown, for whoever writes lines meanwhile.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn set_shown(bar: Option<ProgressBar>) {
    *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// Shown on a terminal only, and not where log lines would break it up all the time.
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
        set_shown(Some(bar.clone()));
        Self(Some(bar))
    }

    /// One that shows nothing.
    pub fn hidden() -> Self {
        Self(None)
    }

    /// What is being done; the words of before are gone.
    #[cfg(feature = "engine")]
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
    #[cfg(feature = "engine")]
    pub fn progress(&self) -> Option<trt_opt::engine::Progress> {
        let bar = self.0.clone()?;
        Some(std::sync::Arc::new(move |message: &str| bar.set_message(message.to_owned())))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            set_shown(None);
            bar.finish_and_clear();
        }
    }
}

/// Standard error for lines of the log, which go above the spinner.
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let bar = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bar {
            Some(bar) => bar.suspend(|| std::io::stderr().write(bytes)),
            None => std::io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
