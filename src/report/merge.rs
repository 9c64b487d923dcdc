//! Reading report files, and putting several together.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lines::Lines;
use super::schema::{Layer, Report, Row, SCHEMA};
use super::view::View;
use crate::error::{Error, Result};
use crate::files;

/// Reads a report file and checks it.
pub fn load(path: &Path) -> Result<Report> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    parse(&text).map_err(|what| Error::malformed(path, what))
}

fn parse(text: &[u8]) -> Result<Report, String> {
    /// The one field that every version has: a newer file is refused by its version, not by a field of it.
    #[derive(Deserialize)]
    struct Head {
        schema: u32,
    }
    let not = |e: serde_json::Error| format!("is no report of trt-opt: {e}");
    let head: Head = serde_json::from_slice(text).map_err(not)?;
    if head.schema != SCHEMA {
        return Err(format!("has schema {}, and this trt-opt reads schema {SCHEMA}", head.schema));
    }
    let report: Report = serde_json::from_slice(text).map_err(not)?;
    report.check().map_err(|e| e.to_string())?;
    Ok(report)
}

/// Checks a report and writes it, in one step.
pub fn save(report: &Report, path: &Path) -> Result<()> {
    report.check()?;
    let mut json = vec![];
    report
        .serialize(&mut serde_json::Serializer::with_formatter(&mut json, Lines::default()))
        .map_err(|e| Error::invalid(path.display().to_string(), format!("the report cannot be written: {e}")))?;
    json.push(b'\n');
    files::write(path, &json)
}

/// Puts reports of the same kind of GPU and the same version of TensorRT together, and forms all ratios anew, each
/// inside its run. Returns warnings too.
///
/// A run that is in several files has to be described alike in each; rows that are there twice and equal are kept once.
/// The same engine measured in several runs is kept once for each run, with its layers where these are still shown.
pub fn merge(reports: Vec<(PathBuf, Report)>) -> Result<(Report, Vec<String>)> {
    let mut merged = Report::default();
    let mut warnings = vec![];
    for (path, report) in reports {
        let refuse = |what: String| Err(Error::malformed(&path, what));
        if let (Some((old, a)), Some((new, b))) =
            (merged.environment.first_key_value(), report.environment.first_key_value())
        {
            for (what, a, b) in [("GPU", &a.gpu, &b.gpu), ("version of TensorRT", &a.tensorrt, &b.tensorrt)] {
                if a != b {
                    return refuse(format!(
                        "run {new} has the {what} {b:?}, and run {old} of the other files {a:?}; figures of different ones are \
                         not put together: make a report of each"
                    ));
                }
            }
            for (what, a, b) in [("driver", &a.driver, &b.driver), ("CUDA version", &a.cuda, &b.cuda)] {
                if a != b {
                    warnings.push(format!("runs {old} and {new} differ in the {what}: {a} and {b}"));
                }
            }
        }
        for (id, environment) in report.environment {
            match merged.environment.get(&id) {
                Some(known) if *known != environment => {
                    return refuse(format!(
                        "run {id} is described otherwise in another file; give one of them another id"
                    ));
                }
                Some(_) => {}
                None => drop(merged.environment.insert(id, environment)),
            }
        }
        for mut row in report.rows {
            row.layers.retain(Layer::runs);
            let twin = merged.rows.iter_mut().find(|r| r.run == row.run && r.same_subject(&row));
            match twin {
                Some(twin) if !same_figures(twin, &row) => {
                    return refuse(format!("{} has other figures in another file", row.place()));
                }
                Some(twin) if twin.layers.is_empty() => twin.layers = row.layers,
                Some(_) => {}
                None => merged.rows.push(row),
            }
        }
        for goal in report.goals {
            let twin = merged.goals.iter().find(|g| g.model == goal.model && g.setting() == goal.setting());
            match twin {
                Some(twin) if twin.x_resnet50 != goal.x_resnet50 => {
                    return refuse(format!(
                        "asks {} x ResNet-50 of {} ({}), and another file {}",
                        goal.x_resnet50,
                        goal.model,
                        goal.setting(),
                        twin.x_resnet50
                    ));
                }
                Some(_) => {}
                None => merged.goals.push(goal),
            }
        }
    }
    drop_superseded_layers(&mut merged);
    warnings.extend(merged.form_ratios());
    merged.check()?;
    Ok((merged, warnings))
}

/// Drops the layers, most of a report, of rows that a later run has measured anew; but for those of native engines that a row which is
/// shown is compared with, and those that say where the time goes of one which was not profiled.
fn drop_superseded_layers(report: &mut Report) {
    let view = View::new(report);
    let compared = view.rows.iter().filter_map(|row| view.baseline(row));
    let profiles = view.rows.iter().map(|row| view.profile_of(row));
    let needed: HashSet<String> = view.rows.iter().copied().chain(compared).chain(profiles).map(Row::place).collect();
    report.rows.iter_mut().filter(|row| !needed.contains(&row.place())).for_each(|row| row.layers.clear());
}

/// Ratios are formed anew, and a file that has a part of a run may lack its ResNet-50. A merged one may lack layers.
fn same_figures(a: &Row, b: &Row) -> bool {
    let layers = |row: &Row, other: &Row| if other.layers.is_empty() { vec![] } else { row.layers.clone() };
    let plain = |row: &Row, layers| Row { x_resnet50: None, x_resnet50_interval: None, layers, ..row.clone() };
    plain(a, layers(a, b)) == plain(b, layers(b, a))
}
