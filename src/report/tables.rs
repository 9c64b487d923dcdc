//! The tables of a report.

use super::align::Group;
use super::profile;
use super::published;
use super::render::format::{NONE, error, mb, or_none, percent, times, us, us_interval};
use super::render::table::{Cell, Table};
use super::schema::{Class, Layer, Mode, Precision, Row, Setting};
use super::view::{Difference, ERROR_FACTOR, ERROR_LIMIT, View};

/// What was asked for, and what was measured.
pub fn goals(view: &View) -> Option<Table> {
    let outcomes = view.outcomes();
    if outcomes.is_empty() {
        return None;
    }
    let header = ["model", "setting", "engine", "native", "asked for", "measured", "verdict"];
    let mut table = Table::new("Latency as a multiple of ResNet-50 fp16: asked for and measured", 3, header);
    for outcome in outcomes {
        let ratio = |row: Option<&Row>| or_none(row.and_then(|r| r.x_resnet50), times);
        let verdict = match (outcome.met(), outcome.best.and_then(|b| b.x_resnet50)) {
            (Some(true), _) => Cell::good("met"),
            (_, Some(x)) => Cell::bad(format!("missed by {:.1} %", 100.0 * (x / outcome.goal.x_resnet50 - 1.0))),
            _ => Cell::bad("not measured"),
        };
        table.row([
            published::name(&outcome.goal.model).into(),
            outcome.goal.setting().to_string().into(),
            outcome.best.map_or(NONE, |b| b.variant.as_str()).into(),
            ratio(outcome.native).into(),
            format!("\u{2264} {}", times(outcome.goal.x_resnet50)).into(),
            ratio(outcome.best).into(),
            verdict,
        ]);
    }
    Some(table)
}

/// Accuracy, latency as a multiple of ResNet-50 fp16, and memory, for every model: one table for each batch size, for
/// CUDA graphs where they were measured.
pub fn article(view: &View) -> Vec<Table> {
    let settings = view.settings();
    let mut batches: Vec<u32> = settings.iter().map(|s| s.batch).collect();
    batches.sort_unstable();
    batches.dedup();
    batches
        .into_iter()
        .filter_map(|batch| {
            let mode = settings.iter().filter(|s| s.batch == batch).map(|s| s.mode).min()?;
            Some(article_table(view, batch, mode))
        })
        .collect()
}

fn article_table(view: &View, batch: u32, mode: Mode) -> Table {
    let header = [
        "model",
        "engine",
        "top-1, %",
        "fp32, \u{d7} ResNet-50 fp16",
        "fp16, \u{d7} ResNet-50 fp16",
        "memory fp32, MB",
        "memory fp16, MB",
    ];
    let caption = format!(
        "Accuracy, latency and memory at batch {batch} ({mode}). Memory is that of the engine and, after the plus sign, of its \
         activations"
    );
    let mut table = Table::new(caption, 2, header);
    for model in view.models() {
        let top1 = published::find(model).map(|m| format!("{:.1}", m.top1));
        let setting = |precision| Setting { precision, batch, mode };
        let native = |precision| view.native(model, setting(precision));
        let best = view.best(model, setting(Precision::Fp16));
        let best_fp32 = best.and_then(|b| view.panel(model, setting(Precision::Fp32)).find(|r| r.variant == b.variant));
        let mut pair = |engine: &str, fp32: Option<&Row>, fp16: Option<&Row>| {
            if fp32.is_none() && fp16.is_none() {
                return;
            }
            let ratio = |row: Option<&Row>| or_none(row.and_then(|r| r.x_resnet50), times);
            table.row([
                published::name(model).into(),
                engine.into(),
                or_none(top1.clone(), |t| t).into(),
                ratio(fp32).into(),
                ratio(fp16).into(),
                or_none(fp32, memory).into(),
                or_none(fp16, memory).into(),
            ]);
        };
        let (fp32, fp16) = (native(Precision::Fp32), native(Precision::Fp16));
        let name = fp16.or(fp32).map_or("native", |r| r.variant.as_str());
        pair(name, fp32, fp16);
        if let Some(best) = best {
            pair(best.variant.as_str(), best_fp32, Some(best));
        }
    }
    table
}

fn memory(row: &Row) -> String {
    match (row.engine_mb, row.device_mb) {
        (Some(engine), Some(device)) => format!("{} + {}", mb(engine), mb(device)),
        (Some(one), None) => mb(one),
        (None, Some(one)) => format!("? + {}", mb(one)),
        (None, None) => NONE.into(),
    }
}

/// Where the accuracies come from: who, and for which models.
pub fn accuracy_sources(view: &View) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut sources: Vec<(&str, Vec<&str>)> = vec![];
    for model in view.models().into_iter().filter_map(published::find) {
        match sources.iter_mut().find(|(source, _)| *source == model.source) {
            Some((_, names)) => names.push(model.name),
            None => sources.push((model.source, vec![model.name])),
        }
    }
    sources
}

/// All engines of one setting.
pub fn latency(view: &View, setting: Setting) -> Table {
    let header = [
        "model",
        "engine",
        "p50, us (interval)",
        "p99, us",
        "kernels",
        "\u{d7} as fast as baseline",
        "\u{d7} as fast as canonical",
        "\u{d7} ResNet-50",
        "run",
    ];
    let mut table = Table::new(format!("Latency: {setting}"), 2, header);
    for row in view.rows.iter().copied().filter(|r| r.setting() == setting) {
        let baseline = view.baseline(row);
        let is_baseline = baseline.is_some_and(|b| b.variant == row.variant);
        let name = if is_baseline { format!("{} (baseline)", row.variant) } else { row.variant.to_string() };
        let canonical = view.canonical(row).filter(|_| row.variant.class() > Class::Canonical);
        table.row([
            published::name(&row.model).into(),
            name.into(),
            us_interval(row.p50_us, row.interval_us).into(),
            us(row.p99_us).into(),
            or_none(row.kernels, |k| k.to_string()).into(),
            or_none(view.speedup(row), times).into(),
            or_none(canonical.map(|c| c.p50_us / row.p50_us), times).into(),
            or_none(row.x_resnet50, times).into(),
            row.run.as_str().into(),
        ]);
    }
    table.without_empty()
}

/// What each fusion is worth for one model.
pub fn worth(view: &View, model: &str, setting: Setting) -> Option<Table> {
    let worth = view.worth(model, setting);
    if worth.is_empty() {
        return None;
    }
    let caption = format!("What each fusion saves: {} ({setting})", published::name(model));
    let header = ["fusion", "alone, us", "alone", "over", "left out, us", "left out", "kernels saved alone"];
    let mut table = Table::new(caption, 1, header);
    let saved = |d: Option<Difference>| {
        or_none(d, |d| format!("{} ({} to {})", us(d.us), us(d.interval[0]), us(d.interval[1])))
    };
    let share = |d: Option<Difference>| or_none(d, |d| percent(d.share()));
    for fusion in worth {
        let kernels = fusion.alone.and_then(|d| Some(i64::from(d.base.kernels?) - i64::from(d.row.kernels?)));
        table.row([
            fusion.fusion.into(),
            saved(fusion.alone).into(),
            share(fusion.alone).into(),
            fusion.alone.map_or(NONE, |d| d.base.variant.as_str()).into(),
            saved(fusion.left_out).into(),
            share(fusion.left_out).into(),
            or_none(kernels, |k| k.to_string()).into(),
        ]);
    }
    Some(table.without_empty())
}

/// How much faster fp16 is than fp32.
pub fn precisions(view: &View) -> Option<Table> {
    let pairs = view.precisions();
    if pairs.is_empty() {
        return None;
    }
    let header = ["model", "engine", "setting", "fp32, us", "fp16, us", "speed-up"];
    let mut table = Table::new("What fp16 is worth: engines measured in both precisions in one run", 3, header);
    for (fp32, fp16) in pairs {
        table.row([
            published::name(&fp32.model).into(),
            fp32.variant.as_str().into(),
            format!("batch {}, {}", fp32.batch, fp32.mode).into(),
            us(fp32.p50_us).into(),
            us(fp16.p50_us).into(),
            times(fp32.p50_us / fp16.p50_us).into(),
        ]);
    }
    Some(table)
}

/// Kernels and bytes, native and fused.
pub fn work(view: &View) -> Option<Table> {
    let header = [
        "model",
        "setting",
        "engine",
        "kernels, native",
        "kernels, fused",
        "launches estimated before",
        "after",
        "MB moved, estimated before",
        "after",
    ];
    let mut table = Table::new("Kernels in the captured graph, and what the cost model expects", 3, header);
    for model in view.models() {
        for setting in view.settings() {
            let Some(best) = view.best(model, setting) else { continue };
            let native = view.baseline(best).and_then(|n| n.kernels);
            let estimate = best.estimate;
            if best.kernels.is_none() && estimate.is_none() {
                continue;
            }
            let launches = |e: f64| format!("{e:.0}");
            table.row([
                published::name(model).into(),
                setting.to_string().into(),
                best.variant.as_str().into(),
                or_none(native, |k| k.to_string()).into(),
                or_none(best.kernels, |k| k.to_string()).into(),
                or_none(estimate, |e| launches(e.before.launches)).into(),
                or_none(estimate, |e| launches(e.after.launches)).into(),
                or_none(estimate, |e| mb(e.before.bytes as f64 / 1e6)).into(),
                or_none(estimate, |e| mb(e.after.bytes as f64 / 1e6)).into(),
            ]);
        }
    }
    (!table.rows.is_empty()).then(|| table.without_empty())
}

/// An engine, in whatever modes it was measured.
struct Engine<'a> {
    row: &'a Row,
    engine_mb: Option<f64>,
    device_mb: Option<f64>,
    /// The worst of all modes.
    error: Option<f64>,
}

/// The engines of the rows shown of which memory or error are known.
fn engines<'a>(view: &View<'a>) -> Vec<Engine<'a>> {
    let mut engines: Vec<Engine> = vec![];
    for row in view.rows.iter().copied() {
        if row.engine_mb.is_none() && row.device_mb.is_none() && row.rel_err.is_none() {
            continue;
        }
        let key = |r: &'a Row| (&r.model, &r.variant, r.precision, r.batch);
        match engines.iter_mut().find(|e| key(e.row) == key(row)) {
            Some(engine) => {
                engine.engine_mb = engine.engine_mb.or(row.engine_mb);
                engine.device_mb = engine.device_mb.or(row.device_mb);
                engine.error = engine.error.into_iter().chain(row.rel_err).reduce(f64::max);
            }
            None => {
                let (engine_mb, device_mb, error) = (row.engine_mb, row.device_mb, row.rel_err);
                engines.push(Engine { row, engine_mb, device_mb, error });
            }
        }
    }
    engines
}

/// How many engines were compared with fp32, and which are further from it than they may be.
pub fn error_summary(view: &View) -> String {
    let engines = engines(view);
    let compared = engines.iter().filter(|e| e.error.is_some()).count();
    let exceeds = |e: &&Engine| e.error.is_some_and(|error| error > view.error_limit(e.row).limit);
    let wrong: Vec<String> = engines.iter().filter(exceeds).map(|e| e.row.place()).collect();
    match (compared, wrong.len()) {
        (0, _) => "No engine was compared with fp32.".into(),
        (n, 0) => format!("All {n} engines that were compared with fp32 hold their limit."),
        (n, wrong_ones) => {
            let exceed = if wrong_ones == 1 { "exceeds its limit" } else { "exceed their limits" };
            format!("Of {n} engines that were compared with fp32, {wrong_ones} {exceed}: {}.", wrong.join(", "))
        }
    }
}

/// Memory and error of every engine, each once for the modes it was measured in.
pub fn memory_and_error(view: &View) -> Option<Table> {
    let caption = format!(
        "Memory, and error against fp32, \u{2016}out \u{2212} ref\u{2016} / \u{2016}ref\u{2016}. Allowed: {ERROR_LIMIT}, and of fp16 engines with \
         fusions {ERROR_FACTOR} times native fp16's own"
    );
    let header = ["model", "engine", "setting", "engine, MB", "activations, MB", "error", "allowed", "verdict"];
    let mut table = Table::new(caption, 3, header);
    for engine in engines(view) {
        let (row, worst) = (engine.row, engine.error);
        let limit = view.error_limit(row);
        let verdict = match worst {
            None => NONE.into(),
            Some(e) if e <= limit.limit => Cell::good("held"),
            Some(e) => Cell::bad(format!("exceeded, {}", times(e / limit.limit))),
        };
        table.row([
            published::name(&row.model).into(),
            row.variant.as_str().into(),
            format!("{}, batch {}", row.precision, row.batch).into(),
            or_none(engine.engine_mb, mb).into(),
            or_none(engine.device_mb, mb).into(),
            or_none(worst, error).into(),
            or_none(worst, |_| error(limit.limit)).into(),
            verdict,
        ]);
    }
    (!table.rows.is_empty()).then(|| table.without_empty())
}

/// Native engines built in several ways.
pub fn audit(view: &View) -> Option<Table> {
    let audits = view.audits();
    if audits.is_empty() {
        return None;
    }
    let caption = "Baseline audit: native engines built in several ways. The fastest is what speed-ups are over";
    let header = ["model", "setting", "engine", "p50, us (interval)", "\u{d7} native", "run"];
    let mut table = Table::new(caption, 3, header);
    for audit in audits {
        let native = audit.iter().find(|r| r.variant.as_str() == "native");
        for (i, row) in audit.iter().enumerate() {
            let name = if i == 0 { format!("{} (baseline)", row.variant) } else { row.variant.to_string() };
            table.row([
                published::name(&row.model).into(),
                row.setting().to_string().into(),
                name.into(),
                us_interval(row.p50_us, row.interval_us).into(),
                or_none(native, |n| times(row.p50_us / n.p50_us)).into(),
                row.run.as_str().into(),
            ]);
        }
    }
    Some(table)
}

/// Engines that several runs measured.
pub fn repeated(view: &View) -> Option<Table> {
    let repeated = view.repeated();
    if repeated.is_empty() {
        return None;
    }
    let caption = "Engines that several runs measured. Tables show the latest run";
    let header = ["model", "engine", "setting", "runs", "p50, us", "spread", "\u{d7} ResNet-50", "spread"];
    let mut table = Table::new(caption, 3, header);
    let range = |values: &[f64], format: fn(f64) -> String| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match values.is_empty() {
            true => (NONE.to_owned(), NONE.to_owned()),
            false => (format!("{} to {}", format(low), format(high)), percent(high / low - 1.0)),
        }
    };
    for rows in repeated {
        let latest = rows[0];
        let ratios: Vec<f64> = rows.iter().filter_map(|r| r.x_resnet50).collect();
        let (times_range, times_spread) = range(&rows.iter().map(|r| r.p50_us).collect::<Vec<_>>(), us);
        let (ratio_range, ratio_spread) = range(&ratios, times);
        table.row([
            published::name(&latest.model).into(),
            latest.variant.as_str().into(),
            latest.setting().to_string().into(),
            rows.len().to_string().into(),
            times_range.into(),
            times_spread.into(),
            ratio_range.into(),
            ratio_spread.into(),
        ]);
    }
    Some(table)
}

/// Where and how every run was measured.
pub fn environments(view: &View) -> Table {
    let header = [
        "run",
        "date (UTC)",
        "GPU",
        "driver",
        "CUDA",
        "TensorRT",
        "headers",
        "commit",
        "clocks",
        "rounds \u{d7} samples",
    ];
    let mut table = Table::new("Runs, the latest first", 10, header);
    for (id, e) in view.runs() {
        let plan = or_none(e.plan, |p| format!("{} \u{d7} {}", p.rounds, p.per_round));
        table.row([
            id.into(),
            e.date.strftime("%Y-%m-%d %H:%M").to_string().into(),
            e.gpu.as_str().into(),
            e.driver.as_str().into(),
            e.cuda.as_str().into(),
            e.tensorrt.as_str().into(),
            e.headers.as_str().into(),
            e.commit.chars().take(12).collect::<String>().into(),
            e.clocks.as_deref().unwrap_or(NONE).into(),
            plan.into(),
        ]);
    }
    table
}

/// The kinds of layer of two profiled engines.
pub fn kinds(native: &Row, fused: &Row) -> Table {
    let header = ["kind of layer", "layers before", "us before", "share", "layers after", "us after", "share"];
    let caption = format!(
        "Time by kind of layer: {} ({}), before: {}, after: {}",
        published::name(&fused.model),
        fused.setting(),
        native.variant,
        fused.variant
    );
    let mut table = Table::new(caption, 1, header);
    let sides = [&native.layers, &fused.layers].map(|layers| (profile::shares(layers), total(layers)));
    let mut kinds: Vec<&str> = vec![];
    for (shares, _) in &sides {
        for share in shares {
            if !kinds.contains(&share.kind.as_str()) {
                kinds.push(&share.kind);
            }
        }
    }
    for kind in kinds {
        let mut cells: Vec<Cell> = vec![kind.into()];
        for (shares, total) in &sides {
            let found = shares.iter().find(|s| s.kind == kind);
            cells.push(or_none(found, |s| s.layers.to_string()).into());
            cells.push(or_none(found, |s| us(s.us)).into());
            cells.push(or_none(found, |s| part(s.us, *total)).into());
        }
        table.row(cells);
    }
    let mut cells: Vec<Cell> = vec!["all".into()];
    for (layers, (_, total)) in [&native.layers, &fused.layers].into_iter().zip(&sides) {
        cells.extend([layers.len().to_string().into(), us(*total).into(), part(*total, *total).into()]);
    }
    table.row(cells);
    table
}

/// Groups of layers that do the same work in two engines.
pub fn aligned(native: &Row, fused: &Row, groups: &[Group]) -> Table {
    let caption = format!(
        "Layer by layer: {} ({}), {} against {}",
        published::name(&fused.model),
        fused.setting(),
        native.variant,
        fused.variant
    );
    let header = ["modules", "layers before", "us before", "layers after", "us after", "saved, us"];
    let mut table = Table::new(caption, 1, header);
    for group in groups {
        table.row([
            group.label().into(),
            group.layers[0].to_string().into(),
            us(group.us[0]).into(),
            group.layers[1].to_string().into(),
            us(group.us[1]).into(),
            us(group.us[0] - group.us[1]).into(),
        ]);
    }
    table
}

/// The layers that take longest.
pub fn longest(row: &Row, most: usize) -> Table {
    let caption = format!("The longest layers: {} {} ({})", published::name(&row.model), row.variant, row.setting());
    let mut table = Table::new(caption, 2, ["layer", "kind", "us", "share"]);
    let all = total(&row.layers);
    let mut layers: Vec<&Layer> = row.layers.iter().collect();
    layers.sort_by(|a, b| b.us.total_cmp(&a.us));
    for layer in layers.into_iter().take(most) {
        table.row([
            shorten(&layer.name).into(),
            profile::kind(layer).into(),
            us(layer.us).into(),
            part(layer.us, all).into(),
        ]);
    }
    table
}

/// Names of layers that run many nodes fill a page.
fn shorten(name: &str) -> String {
    const MOST: usize = 90;
    let chars: Vec<char> = name.chars().collect();
    if chars.len() <= MOST {
        return name.to_owned();
    }
    let half = MOST / 2 - 1;
    chars[..half].iter().chain(&['\u{2026}']).chain(&chars[chars.len() - half..]).collect()
}

/// Microseconds of all layers.
pub fn total(layers: &[Layer]) -> f64 {
    layers.iter().map(|l| l.us).sum()
}

fn part(us: f64, total: f64) -> String {
    if total > 0.0 { format!("{:.1} %", 100.0 * us / total) } else { NONE.into() }
}
