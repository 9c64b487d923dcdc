//! What has to hold of a report.

use std::collections::HashMap;

use super::schema::{Environment, Report, Row, SCHEMA};
use crate::error::{Error, Result};

/// How far a recorded ratio may be from the one formed anew: what writing and reading decimals costs.
const RATIO_TOLERANCE: f64 = 1e-9;

impl Report {
    /// Refuses figures that cannot be, runs that are not described, rows that are there twice, and runs that do not
    /// belong into one report.
    pub fn check(&self) -> Result<()> {
        if self.schema != SCHEMA {
            return Err(wrong("schema", format!("{} is not known, expected {SCHEMA}", self.schema)));
        }
        for (id, environment) in &self.environment {
            check_environment(id, environment)?;
        }
        self.check_one_machine()?;
        let mut seen: HashMap<String, usize> = HashMap::new();
        for (i, row) in self.rows.iter().enumerate() {
            self.check_row(row).map_err(|what| wrong(format!("row {i}, {}", row.place()), what))?;
            if let Some(first) = seen.insert(row.place(), i) {
                return Err(wrong(
                    format!("row {i}, {}", row.place()),
                    format!("row {first} measured the same in the same run"),
                ));
            }
        }
        for (i, goal) in self.goals.iter().enumerate() {
            let place = || format!("goal {i}, {} ({})", goal.model, goal.setting());
            if !(goal.x_resnet50.is_finite() && goal.x_resnet50 > 0.0) {
                return Err(wrong(place(), format!("x_resnet50 is {}, expected a number above 0", goal.x_resnet50)));
            }
            let same = |g: &&super::Goal| g.model == goal.model && g.setting() == goal.setting();
            if self.goals[..i].iter().any(|g| same(&g)) {
                return Err(wrong(place(), "there is another goal for the same"));
            }
        }
        Ok(())
    }

    /// All runs are of one kind of GPU and one version of TensorRT.
    fn check_one_machine(&self) -> Result<()> {
        let mut runs = self.environment.iter();
        let Some((first, a)) = runs.next() else { return Ok(()) };
        for (id, b) in runs {
            for (what, a, b) in [("gpu", &a.gpu, &b.gpu), ("tensorrt", &a.tensorrt, &b.tensorrt)] {
                if a != b {
                    return Err(wrong(
                        format!("environment, {what}"),
                        format!(
                            "run {first} has {a:?} and run {id} has {b:?}; one report is of one kind of GPU and one version of \
                             TensorRT: make a report of each"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_row(&self, row: &Row) -> Result<(), String> {
        if row.model.is_empty() || row.model.chars().any(char::is_whitespace) {
            return Err(format!("model is {:?}, expected a name without spaces", row.model));
        }
        if !self.environment.contains_key(&row.run) {
            let known: Vec<&str> = self.environment.keys().map(String::as_str).collect();
            return Err(format!("environment has no run {:?} (it has: {})", row.run, known.join(", ")));
        }
        if row.batch == 0 {
            return Err("batch is 0, expected 1 or more".into());
        }
        let time = |name: &str, us: f64| match us.is_finite() && us > 0.0 {
            true => Ok(()),
            false => Err(format!("{name} is {us}, expected a finite time above 0")),
        };
        time("p50_us", row.p50_us)?;
        time("p99_us", row.p99_us)?;
        if row.p99_us < row.p50_us {
            return Err(format!("p99_us {} is below p50_us {}", row.p99_us, row.p50_us));
        }
        interval("interval_us", row.interval_us, "p50_us", row.p50_us)?;
        let sizes = [("engine_mb", row.engine_mb), ("device_mb", row.device_mb), ("rel_err", row.rel_err)];
        for (name, value) in sizes {
            if let Some(value) = value.filter(|v| !(v.is_finite() && *v >= 0.0)) {
                return Err(format!("{name} is {value}, expected a finite number of 0 or more, or null"));
            }
        }
        if row.kernels == Some(0) {
            return Err("kernels is 0, expected 1 or more, or null".into());
        }
        self.check_ratio(row)?;
        for estimate in row.estimate.iter().flat_map(|e| [e.before, e.after]) {
            if !(estimate.launches.is_finite() && estimate.launches >= 0.0) {
                return Err(format!("estimated launches are {}, expected a number of 0 or more", estimate.launches));
            }
        }
        for (i, layer) in row.layers.iter().enumerate() {
            if layer.name.is_empty() {
                return Err(format!("layer {i} has no name"));
            }
            if !(layer.us.is_finite() && layer.us >= 0.0) {
                return Err(format!("layer '{}' took {} us, expected a finite time", layer.name, layer.us));
            }
        }
        Ok(())
    }

    fn check_ratio(&self, row: &Row) -> Result<(), String> {
        let reference = self.reference(&row.run, row.batch, row.mode);
        match (row.x_resnet50, reference) {
            (None, _) if row.x_resnet50_interval.is_some() => {
                Err("x_resnet50_interval is there without x_resnet50".into())
            }
            (None, _) => Ok(()),
            (Some(ratio), None) => Err(format!(
                "x_resnet50 is {ratio}, and its run has no native resnet50 (fp16, batch {}, {}) to form it with",
                row.batch, row.mode
            )),
            (Some(ratio), Some(reference)) => {
                let formed = row.p50_us / reference.p50_us;
                // A NaN does not compare.
                let agrees = (ratio / formed - 1.0).abs() <= RATIO_TOLERANCE;
                if !agrees {
                    return Err(format!("x_resnet50 is {ratio}, and the times of its run give {formed}"));
                }
                row.x_resnet50_interval
                    .map_or(Ok(()), |ends| interval("x_resnet50_interval", ends, "x_resnet50", ratio))
            }
        }
    }
}

fn check_environment(id: &str, environment: &Environment) -> Result<()> {
    let place = |field: &str| format!("environment of run {id:?}, {field}");
    if id.is_empty() || id.chars().any(char::is_whitespace) {
        return Err(wrong(place("id"), "expected a name without spaces"));
    }
    for (field, text) in
        [("gpu", &environment.gpu), ("tensorrt", &environment.tensorrt), ("commit", &environment.commit)]
    {
        if text.trim().is_empty() {
            return Err(wrong(place(field), "is empty"));
        }
    }
    Ok(())
}

fn interval(name: &str, [low, high]: [f64; 2], of: &str, value: f64) -> Result<(), String> {
    // The value may have been rounded otherwise than the ends.
    let slack = 1e-9 * value.abs();
    if low.is_finite() && high.is_finite() && low - slack <= value && value <= high + slack {
        return Ok(());
    }
    Err(format!("{name} is [{low}, {high}], which does not hold {of} {value}"))
}

fn wrong(place: impl Into<String>, what: impl Into<String>) -> Error {
    Error::invalid(place, what)
}
