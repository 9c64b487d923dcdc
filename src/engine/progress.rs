//! What a build is doing, for whoever waits for it.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use super::log;

/// Told, in a few words, what is being done, from any thread.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// A phase of the builder that is under way.
struct Phase {
    name: String,
    steps: i32,
    done: i32,
}

/// Listens to TensorRT's progress monitor, and where there is none, before TensorRT 10, to its log.
pub(super) struct Monitor {
    progress: Option<Progress>,
    phases: Mutex<Vec<Phase>>,
    _watch: Option<log::Watch>,
}

impl Monitor {
    pub fn new(progress: Option<Progress>) -> Self {
        let has_monitor = super::compiled_for().major >= 10;
        let watch = progress.clone().filter(|_| !has_monitor).map(log::Watch::new);
        Self { progress, phases: Mutex::new(vec![]), _watch: watch }
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Phase>)) {
        let Some(progress) = &self.progress else { return };
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut phases);
        // The innermost phase says most; the outermost how far it all is.
        let shown = |p: &Phase| match p.steps {
            0 | 1 => p.name.clone(),
            n => format!("{} {}/{n}", p.name, p.done),
        };
        let text = match phases.as_slice() {
            [] => String::new(),
            [only] => shown(only),
            [first, .., last] => format!("{}: {}", shown(first), shown(last)),
        };
        drop(phases);
        progress(&text);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn phase_start(monitor: &Monitor, phase: &[u8], _parent: &[u8], steps: i32) {
    monitor.change(|phases| phases.push(Phase { name: text(phase), steps, done: 0 }));
}

pub(super) fn step_complete(monitor: &Monitor, phase: &[u8], step: i32) {
    let name = text(phase);
    monitor.change(|phases| {
        if let Some(phase) = phases.iter_mut().rev().find(|p| p.name == name) {
            phase.done = step + 1;
        }
    });
}

pub(super) fn phase_finish(monitor: &Monitor, phase: &[u8]) {
    let name = text(phase);
    monitor.change(|phases| {
        if let Some(at) = phases.iter().rposition(|p| p.name == name) {
            phases.remove(at);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_told_from_the_outermost_to_the_innermost() {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let keep = told.clone();
        let monitor = Monitor::new(Some(Arc::new(move |text: &str| keep.lock().unwrap().push(text.to_owned()))));
        phase_start(&monitor, b"Building", b"", 3);
        step_complete(&monitor, b"Building", 0);
        phase_start(&monitor, b"Timing", b"Building", 20);
        step_complete(&monitor, b"Timing", 4);
        phase_finish(&monitor, b"Timing");
        phase_finish(&monitor, b"Unknown");
        phase_finish(&monitor, b"Building");
        assert_eq!(
            *told.lock().unwrap(),
            [
                "Building 0/3",
                "Building 1/3",
                "Building 1/3: Timing 0/20",
                "Building 1/3: Timing 5/20",
                "Building 1/3",
                "Building 1/3",
                ""
            ]
        );
    }
}
