//! Reports of measurements: rows, merging, tables, charts and the page.
//!
//! [`Report`] is `report.json`, which `docs/report.md` describes. [`merge()`] puts several runs together, [`view::View`]
//! derives what is shown, and [`write()`] makes the folder with `report.json`, `report.md` and `index.html`. Nothing here
//! measures, and nothing here needs a GPU.

pub mod align;
mod charts;
mod check;
mod lines;
mod markdown;
mod merge;
mod page;
pub mod profile;
pub mod published;
mod render;
mod schema;
pub mod tables;
pub mod view;

use std::path::{Path, PathBuf};

pub use jiff::Timestamp;
pub use merge::{load, merge, save};
pub use render::table::{Cell, Table, Tone};
pub use schema::{
    BeforeAfter, Class, Environment, Estimate, Goal, Layer, Mode, Precision, REFERENCE_MODEL, Report, Row, SCHEMA,
    Setting, Variant,
};

use crate::error::{Error, Result};
use crate::files;

/// Writes `report.json`, `report.md` and `index.html` into a folder, which is made if it is not there. Returns the
/// paths. `warnings` are shown on the page beside those that [`view::View::warnings`] finds.
pub fn write(report: &Report, warnings: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
    report.check()?;
    let view = view::View::new(report);
    let mut warnings = warnings.to_vec();
    warnings.extend(view.warnings());
    std::fs::create_dir_all(folder).map_err(Error::io("make the folder", folder))?;
    let paths = ["report.json", "report.md", "index.html"].map(|name| folder.join(name));
    save(report, &paths[0])?;
    files::write(&paths[1], markdown::render(&view, &warnings).as_bytes())?;
    files::write(&paths[2], page::render(&view, &warnings).into_string().as_bytes())?;
    Ok(paths.into())
}

/// The page alone, as text.
pub fn html(report: &Report, warnings: &[String]) -> Result<String> {
    report.check()?;
    Ok(page::render(&view::View::new(report), warnings).into_string())
}

/// The Markdown summary alone.
pub fn markdown(report: &Report, warnings: &[String]) -> Result<String> {
    report.check()?;
    Ok(markdown::render(&view::View::new(report), warnings))
}
