//! Tables for people.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::RangeBounds;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use trt_opt::contents::Contents;
use trt_opt::rewrite::fp16::Precision;
use trt_opt::rewrite::{Kind, Ledger, Site, Status};

use super::out::{BOLD, DIM, GREEN, RED, RESET, YELLOW};

/// A table with a header; the first column is text, the others are numbers.
pub fn new<T: ToString>(header: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::new('-', '-', '-', '-')));
    table.set_header(header.into_iter().map(|h| h.to_string()));
    table
}

pub fn align_numbers(table: &mut Table) {
    align(table, 1..);
}

/// Puts the numbers of some columns under each other.
pub fn align(table: &mut Table, columns: impl RangeBounds<usize>) {
    for (i, column) in table.column_iter_mut().enumerate() {
        if columns.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

pub fn text(table: &Table) -> String {
    let lines = table.lines().map(|line| line.trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// Counts and estimates before and after: the ops whose number changed, and the others together.
pub fn before_after(before: &Contents, after: &Contents) -> String {
    let mut table = new(["", "before", "after"]);
    table.add_row(["nodes".to_owned(), before.nodes.to_string(), after.nodes.to_string()]);
    let names: BTreeSet<&str> = before.ops.iter().chain(&after.ops).map(|o| o.op.as_str()).collect();
    let mut rows: Vec<(&str, usize, usize)> =
        names.into_iter().map(|op| (op, before.count(op), after.count(op))).collect();
    let same: usize = rows.iter().filter(|r| r.1 == r.2).map(|r| r.1).sum();
    rows.retain(|r| r.1 != r.2);
    // What is there after comes first: that is what was made of the model.
    rows.sort_by_key(|r| (Reverse(r.2), Reverse(r.1), r.0));
    for (op, old, new) in rows {
        table.add_row([format!("  {op}"), old.to_string(), new.to_string()]);
    }
    if same > 0 {
        table.add_row(["  unchanged ops".to_owned(), same.to_string(), same.to_string()]);
    }
    table.add_row(["weights".to_owned(), bytes(before.weight_bytes as f64), bytes(after.weight_bytes as f64)]);
    let (old, new) = (&before.estimate, &after.estimate);
    table.add_row(["bytes moved (estimate)".to_owned(), bytes(old.bytes as f64), bytes(new.bytes as f64)]);
    table.add_row(["launches (estimate)".to_owned(), format!("{:.0}", old.launches), format!("{:.0}", new.launches)]);
    align_numbers(&mut table);
    text(&table)
}

/// Sites by kind, and every miss with its reason (the first ones only, unless all are asked for).
pub fn ledger(ledger: &Ledger, all: bool) -> String {
    let mut table = new(["site", "total", "fused", "kept", "missed"]);
    for kind in Kind::ALL {
        let count = ledger.count(kind);
        if count.total > 0 {
            table.add_row([
                kind.name().to_owned(),
                count.total.to_string(),
                count.fused.to_string(),
                count.kept.to_string(),
                count.missed.to_string(),
            ]);
        }
    }
    if ledger.sites.is_empty() {
        return format!("{DIM}no norm, attention, GELU, window or patch merge was found{RESET}\n");
    }
    align_numbers(&mut table);
    let mut text = text(&table);
    text.push('\n');
    const SHOWN: usize = 10;
    let missed: Vec<&Site> = ledger.sites.iter().filter(|s| s.status == Status::Missed).collect();
    let shown = if all { missed.len() } else { missed.len().min(SHOWN) };
    for site in &missed[..shown] {
        text += &format!("{YELLOW}missed{RESET} {}\n", miss(site));
    }
    if shown < missed.len() {
        text += &format!("... and {} more (--verbose shows all)\n", missed.len() - shown);
    }
    text
}

/// What became float16, and every island of float32 with its reasons (the first ones only, unless all are asked for).
pub fn precision(account: &Precision, all: bool) -> String {
    let mut table = new(["precision", "float16", "float32"]);
    let (nodes, weights) = (account.nodes, account.weight_bytes);
    table.add_row(["nodes".to_owned(), nodes.float16.to_string(), nodes.float32.to_string()]);
    table.add_row(["weights".to_owned(), bytes(weights.float16 as f64), bytes(weights.float32 as f64)]);
    align_numbers(&mut table);
    let mut text = text(&table);
    text.push('\n');
    if account.converted {
        let calibration =
            account.calibration.as_deref().map_or("not calibrated".into(), |c| format!("calibrated on {c}"));
        text += &format!("{} casts added; {calibration}\n", account.casts);
    }
    let shown = |count: usize, most: usize| if all { count } else { count.min(most) };
    let islands = shown(account.islands.len(), 10);
    for island in &account.islands[..islands] {
        let (first, last) = (island.nodes.first(), island.nodes.last());
        let (first, last) = (first.map_or("", String::as_str), last.map_or("", String::as_str));
        text += &match island.nodes.len() {
            1 => format!("{YELLOW}float32{RESET} {BOLD}{first}{RESET}\n"),
            n => format!("{YELLOW}float32{RESET} {n} nodes from {BOLD}{first}{RESET} to {BOLD}{last}{RESET}\n"),
        };
        let causes = shown(island.causes.len(), 3);
        for cause in &island.causes[..causes] {
            let at = if island.nodes.len() == 1 { String::new() } else { format!(" (at {})", cause.node) };
            text += &format!("    {}: {}{at}\n", cause.kind.name(), cause.reason);
        }
        if causes < island.causes.len() {
            text += &format!("    ... and {} more reasons\n", island.causes.len() - causes);
        }
    }
    if islands < account.islands.len() {
        text += &format!("... and {} more islands (--verbose shows all)\n", account.islands.len() - islands);
    }
    for note in &account.notes {
        text += &format!("{DIM}note: {note}{RESET}\n");
    }
    text
}

/// A miss in one line, or a few.
pub fn miss(site: &Site) -> String {
    let mut text = format!("{BOLD}{}{RESET} at {}", site.kind, site.node);
    if let Some(rule) = &site.rule {
        text += &format!(" ({rule})");
    }
    if let Some(reason) = &site.reason {
        text += &format!(": {reason}");
    }
    if let Some(expected) = &site.expected {
        text += &format!("\n    {GREEN}expected{RESET} {expected}");
    }
    if let Some(found) = &site.found {
        text += &format!("\n    {RED}found{RESET}    {found}");
    }
    text
}

/// `1.5 MB`, in powers of ten as the sizes of files are.
pub fn bytes(count: f64) -> String {
    scaled(count, &["B", "kB", "MB", "GB", "TB"])
}

/// `4.5 G`.
pub fn quantity(count: f64) -> String {
    scaled(count, &["", "k", "M", "G", "T"]).trim_end().to_owned()
}

/// `12 %`; nothing where there is nothing.
pub fn percent(part: f64, whole: f64) -> String {
    if part <= 0.0 || whole <= 0.0 { String::new() } else { format!("{:.1} %", 100.0 * part / whole) }
}

fn scaled(mut count: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while count >= 999.5 && unit + 1 < units.len() {
        count /= 1000.0;
        unit += 1;
    }
    match count {
        _ if unit == 0 => format!("{count:.0} {}", units[0]),
        c if c >= 99.95 => format!("{c:.0} {}", units[unit]),
        c if c >= 9.995 => format!("{c:.1} {}", units[unit]),
        c => format!("{c:.2} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(999.0), "999 B");
        assert_eq!(bytes(1000.0), "1.00 kB");
        assert_eq!(bytes(113_456_789.0), "113 MB");
        assert_eq!(quantity(4.49e9), "4.49 G");
        assert_eq!(quantity(7.0), "7");
    }
}
