//! `report.md`: the tables, for reading in a repository.

use super::charts::{self, settings};
use super::published;
use super::render::format::{times, us};
use super::render::table::{Table, escape};
use super::tables;
use super::view::View;
use super::{align, page};

const ERRORS: &str = "Memory and error";

pub fn render(view: &View, warnings: &[String]) -> String {
    let mut text = format!("# {}\n\n", page::TITLE);
    text += &format!("{}\n", escape(&page::summary(view)));
    if !warnings.is_empty() {
        section(&mut text, "Caveats");
        warnings.iter().for_each(|w| text += &format!("- {}\n", escape(w)));
    }
    if let Some(goals) = tables::goals(view) {
        section(&mut text, "Asked for and measured");
        text += &goals.markdown();
        for missed in page::missed(view) {
            text += &format!("\n{}\n", escape(&missed.sentence));
        }
    }
    section(&mut text, "Accuracy, latency and memory");
    push_all(&mut text, tables::article(view));
    for (source, models) in tables::accuracy_sources(view) {
        text += &format!("- top-1 of {}: {}\n", models.join(", "), escape(source));
    }

    section(&mut text, "Latency");
    push_all(&mut text, view.settings().into_iter().map(|s| tables::latency(view, s)));
    let worth = settings(view)
        .into_iter()
        .flat_map(|s| view.models().into_iter().filter_map(move |m| tables::worth(view, m, s)));
    let worth: Vec<Table> = worth.collect();
    if !worth.is_empty() {
        section(&mut text, "What each fusion is worth");
        text += page::WORTH;
        text += "\n\n";
        push_all(&mut text, worth);
    }
    for (heading, table) in [
        ("What fp16 is worth", tables::precisions(view)),
        ("Kernels and bytes", tables::work(view)),
        (ERRORS, tables::memory_and_error(view)),
        ("Baselines", tables::audit(view)),
        ("Repeated measurements", tables::repeated(view)),
    ] {
        if let Some(table) = table {
            section(&mut text, heading);
            if heading == ERRORS {
                text += &format!("{}\n\n", escape(&tables::error_summary(view)));
            }
            text += &table.markdown();
        }
    }
    let profiled = page::profiled(view);
    if !profiled.is_empty() {
        section(&mut text, "Where the time goes");
        for (native, fused) in profiled {
            text += &tables::kinds(native, fused).markdown();
            let groups = align::summarize(&align::align(&native.layers, &fused.layers), charts::MOST_GROUPS);
            text += &format!("\n{}\n", tables::aligned(native, fused, &groups).markdown());
        }
    }
    section(&mut text, "How it was measured");
    page::METHOD.iter().for_each(|m| text += &format!("- {m}\n"));
    text += &format!("\n{}", tables::environments(view).markdown());
    for (id, environment) in view.runs() {
        text += &format!("\n- {}: `{}`", escape(id), environment.command.replace('`', "'"));
        if let Some(note) = &environment.note {
            text += &format!(". {}", escape(note));
        }
    }
    text.push('\n');
    text
}

fn section(text: &mut String, heading: &str) {
    *text += &format!("\n## {heading}\n\n");
}

fn push_all(text: &mut String, tables: impl IntoIterator<Item = Table>) {
    for table in tables {
        *text += &table.markdown();
        text.push('\n');
    }
}

/// The best engine of a model in half a sentence.
pub(super) fn half_sentence(view: &View, model: &str, setting: super::Setting) -> Option<String> {
    let best = view.best(model, setting)?;
    let native = view.baseline(best)?;
    let speedup = times(native.p50_us / best.p50_us);
    Some(format!("{} {} to {} us ({speedup})", published::name(model), us(native.p50_us), us(best.p50_us)))
}
