//! The charts of a report.

use super::align::{self, Group as LayerGroup};
use super::profile;
use super::published;
use super::render::chart::{Chart, Group, Mark, Row as Line, Series, Shape};
use super::render::format::{error, mb, percent, tick, times, us, us_interval};
use super::schema::{Class, Mode, Precision, Row, Setting};
use super::view::{ERROR_LIMIT, View};

/// Groups of layers that a chart shows at most.
pub const MOST_GROUPS: usize = 28;

fn series(class: Class) -> Series {
    match class {
        Class::Native => Series::Native,
        Class::Canonical => Series::Canonical,
        Class::Alone => Series::Alone,
        Class::Without => Series::LeftOut,
        Class::All => Series::All,
        Class::Tuned => Series::Tuned,
        Class::Torch => Series::Torch,
    }
}

fn meaning(series: Series) -> &'static str {
    match series {
        Series::Native => "native: as exported",
        Series::Canonical => "canonical: cleaned up, no plugin",
        Series::Alone => "one fusion alone",
        Series::LeftOut => "one fusion left out",
        Series::All => "all fusions",
        Series::Tuned => "tuned: fusions chosen by measurement",
        Series::Torch => "torch.compile",
    }
}

fn legend(groups: &[Group]) -> Vec<(Series, String)> {
    let mut found: Vec<Series> = vec![];
    for mark in groups.iter().flat_map(|g| &g.rows).flat_map(|r| &r.marks) {
        if !found.contains(&mark.series) {
            found.push(mark.series);
        }
    }
    found.sort();
    found.into_iter().map(|s| (s, meaning(s).to_owned())).collect()
}

/// A part of an id.
fn slug(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

fn setting_slug(setting: Setting) -> String {
    format!("{}-b{}-{}", setting.precision, setting.batch, setting.mode)
}

/// The settings that charts are drawn of: fp16, and CUDA graphs where any were measured.
pub fn settings(view: &View) -> Vec<Setting> {
    let half: Vec<Setting> = view.settings().into_iter().filter(|s| s.precision == Precision::Fp16).collect();
    let graphs: Vec<Setting> = half.iter().copied().filter(|s| s.mode == Mode::Graph).collect();
    if graphs.is_empty() { half } else { graphs }
}

/// Every model as a multiple of ResNet-50.
pub fn ratio(view: &View, setting: Setting) -> Option<Chart> {
    let mut groups = vec![];
    for model in view.models().into_iter().filter(|m| *m != super::REFERENCE_MODEL) {
        let goal = view.goal(model, setting);
        let line = |row: &Row| {
            let x = row.x_resnet50?;
            let class = row.variant.class();
            let goal = goal.filter(|_| matches!(class, Class::All | Class::Tuned));
            Some(Line {
                label: row.variant.to_string(),
                marks: vec![Mark {
                    series: series(class),
                    value: x,
                    interval: row.x_resnet50_interval,
                    text: times(x),
                    tip: format!("{}: {} us, {} ResNet-50", row.place(), us(row.p50_us), times(x)),
                }],
                goal: goal.map(|g| (g.x_resnet50, format!("asked for: at most {}", times(g.x_resnet50)))),
            })
        };
        // Of native engines the baseline alone; the others are in the audit.
        let whole = |r: &&Row| match r.variant.class() {
            Class::Native => view.baseline(r).is_some_and(|b| b.variant == r.variant),
            class => !matches!(class, Class::Alone | Class::Without),
        };
        let rows: Vec<Line> = view.panel(model, setting).filter(whole).filter_map(line).collect();
        if !rows.is_empty() {
            groups.push(Group { heading: published::name(model).into(), rows });
        }
    }
    let least = groups.iter().filter_map(|g| {
        let value = |l: &Line| l.marks[0].value;
        let (first, best) = (value(g.rows.first()?), g.rows.iter().map(value).fold(f64::INFINITY, f64::min));
        Some(format!("{} from {} to {}", g.heading, times(first), times(best)))
    });
    let description = least.collect::<Vec<_>>().join("; ");
    (!groups.is_empty()).then(|| Chart {
        id: format!("ratio-{}", setting_slug(setting)),
        title: format!("Latency as a multiple of ResNet-50's: {setting}"),
        description: format!("Shorter is better; 1 is native ResNet-50. {description}."),
        shape: Shape::Bars,
        axis: "\u{d7} native ResNet-50 fp16 in the same run".into(),
        tick,
        legend: legend(&groups),
        goals: "asked for",
        lines: vec![(1.0, "ResNet-50".into())],
        groups,
    })
}

/// From native to tuned, for one model.
pub fn ladder(view: &View, model: &str, setting: Setting) -> Option<Chart> {
    let mut rows: Vec<&Row> = view.panel(model, setting).filter(|r| r.variant.class() != Class::Without).collect();
    // A ladder goes down: of engines of a kind the slowest first.
    rows.sort_by(|a, b| a.variant.class().cmp(&b.variant.class()).then(b.p50_us.total_cmp(&a.p50_us)));
    if rows.len() < 2 {
        return None;
    }
    // Times of different runs do not compare; multiples of the baseline of the own run do.
    let one_run = rows.iter().all(|r| r.run == rows[0].run);
    let scale = |row: &Row| match one_run {
        true => Some(1.0),
        false => view.baseline(row).map(|b| 1.0 / b.p50_us),
    };
    let line = |row: &Row| {
        let scale = scale(row)?;
        let text = match view.speedup(row) {
            Some(speedup) => format!("{} us, {}", us(row.p50_us), times(speedup)),
            None => format!("{} us", us(row.p50_us)),
        };
        Some(Line {
            label: row.variant.to_string(),
            marks: vec![Mark {
                series: series(row.variant.class()),
                value: row.p50_us * scale,
                interval: Some(row.interval_us.map(|us| us * scale)),
                text,
                tip: format!(
                    "{}: p50 {} us, p99 {} us",
                    row.place(),
                    us_interval(row.p50_us, row.interval_us),
                    us(row.p99_us)
                ),
            }],
            goal: None,
        })
    };
    let mut groups: Vec<Group> = vec![];
    for (run, _) in view.runs() {
        let lines: Vec<Line> = rows.iter().filter(|r| r.run == run).filter_map(|r| line(r)).collect();
        if !lines.is_empty() {
            let heading = if one_run { String::new() } else { format!("run {run}") };
            groups.push(Group { heading, rows: lines });
        }
    }
    // One bar compares nothing.
    if groups.iter().map(|group| group.rows.len()).sum::<usize>() < 2 {
        return None;
    }
    let description: Vec<String> = rows.iter().map(|r| format!("{} {} us", r.variant, us(r.p50_us))).collect();
    Some(Chart {
        id: format!("ladder-{}-{}", slug(model), setting_slug(setting)),
        title: format!("{}: {setting}", published::name(model)),
        description: format!("Median latency, shorter is better: {}.", description.join(", ")),
        shape: Shape::Bars,
        axis: if one_run {
            "median latency, us (beside it, the speed-up)"
        } else {
            "median latency, \u{d7} the baseline of the same run"
        }
        .into(),
        tick,
        legend: legend(&groups),
        goals: "",
        lines: vec![],
        groups,
    })
}

/// What each fusion saves, alone and on top of all others.
pub fn worth(view: &View, model: &str, setting: Setting) -> Option<Chart> {
    let mut lines = vec![];
    let mut words = vec![];
    for worth in view.worth(model, setting) {
        let mark = |(series, d): (Series, super::view::Difference)| Mark {
            series,
            value: d.us,
            interval: Some(d.interval),
            text: format!("{} us, {}", us(d.us), percent(d.share()).trim_start_matches('+')),
            tip: format!("{} against {}", d.row.place(), d.base.place()),
        };
        let both = [(Series::Alone, worth.alone), (Series::LeftOut, worth.left_out)];
        let marks: Vec<Mark> = both.into_iter().filter_map(|(s, d)| d.map(|d| (s, d))).map(mark).collect();
        words.push(format!(
            "{} {}",
            worth.fusion,
            marks.iter().map(|m| m.text.clone()).collect::<Vec<_>>().join(" and ")
        ));
        lines.push(Line { label: worth.fusion.into(), marks, goal: None });
    }
    let groups = vec![Group { heading: String::new(), rows: lines }];
    (!words.is_empty()).then(|| Chart {
        id: format!("worth-{}-{}", slug(model), setting_slug(setting)),
        title: format!("What each fusion saves: {} ({setting})", published::name(model)),
        description: format!("Longer is better. {}.", words.join("; ")),
        shape: Shape::Bars,
        axis: "us saved".into(),
        tick,
        legend: vec![
            (Series::Alone, "alone, over the engine without plugins".into()),
            (Series::LeftOut, "lost when it alone is left out of all".into()),
        ],
        goals: "",
        lines: vec![],
        groups,
    })
}

/// Kernels of the native and of the best engine.
pub fn kernels(view: &View, setting: Setting) -> Option<Chart> {
    pairs(view, setting, "kernels", "Kernels in the captured CUDA graph", "kernels", |native, best| {
        let (before, after) = (f64::from(native?.kernels?), f64::from(best.kernels?));
        Some([(before, format!("{before}")), (after, format!("{after}"))])
    })
}

/// Bytes moved, as the cost model expects them.
pub fn bytes(view: &View, setting: Setting) -> Option<Chart> {
    pairs(view, setting, "bytes", "GPU memory read and written, by the cost model", "MB", |_, best| {
        let estimate = best.estimate?;
        let figure = |bytes: u64| (bytes as f64 / 1e6, format!("{} MB", mb(bytes as f64 / 1e6)));
        Some([figure(estimate.before.bytes), figure(estimate.after.bytes)])
    })
}

fn pairs(
    view: &View,
    setting: Setting,
    id: &str,
    title: &str,
    axis: &str,
    figures: impl Fn(Option<&Row>, &Row) -> Option<[(f64, String); 2]>,
) -> Option<Chart> {
    let mut rows = vec![];
    let mut words = vec![];
    for model in view.models() {
        let Some(best) = view.best(model, setting) else { continue };
        let Some(both) = figures(view.baseline(best), best) else { continue };
        words.push(format!("{} {} before, {} after", published::name(model), both[0].1, both[1].1));
        let series = [Series::Native, series(best.variant.class())];
        let marks = both.into_iter().zip(series).map(|((value, text), series)| Mark {
            series,
            value,
            interval: None,
            text,
            tip: best.place(),
        });
        rows.push(Line { label: published::name(model).into(), marks: marks.collect(), goal: None });
    }
    let groups = vec![Group { heading: String::new(), rows }];
    (!words.is_empty()).then(|| Chart {
        id: format!("{id}-{}", setting_slug(setting)),
        title: format!("{title}: {setting}"),
        description: format!("Shorter is better. {}.", words.join("; ")),
        shape: Shape::Bars,
        axis: axis.into(),
        tick,
        legend: legend(&groups),
        goals: "",
        lines: vec![],
        groups,
    })
}

/// How much faster fp16 is than fp32.
pub fn precisions(view: &View) -> Option<Chart> {
    let mut groups: Vec<Group> = vec![];
    let mut pairs = view.precisions();
    pairs.sort_by_key(|(fp32, _)| (fp32.batch, fp32.mode));
    let words: Vec<String> = pairs
        .iter()
        .map(|(a, b)| format!("{} {} {}", published::name(&a.model), a.variant, times(a.p50_us / b.p50_us)))
        .collect();
    for (fp32, fp16) in pairs {
        let heading = format!("batch {}, {}", fp32.batch, fp32.mode);
        let speedup = fp32.p50_us / fp16.p50_us;
        let line = Line {
            label: format!("{}, {}", published::name(&fp32.model), fp32.variant),
            marks: vec![Mark {
                series: series(fp32.variant.class()),
                value: speedup,
                interval: None,
                text: times(speedup),
                tip: format!("fp32 {} us, fp16 {} us, run {}", us(fp32.p50_us), us(fp16.p50_us), fp32.run),
            }],
            goal: None,
        };
        match groups.last_mut().filter(|g| g.heading == heading) {
            Some(group) => group.rows.push(line),
            None => groups.push(Group { heading, rows: vec![line] }),
        }
    }
    (!groups.is_empty()).then(|| Chart {
        id: "chart-precision".into(),
        title: "How many times as fast fp16 is as fp32".into(),
        description: format!("Longer is better. {}.", words.join("; ")),
        shape: Shape::Bars,
        axis: "p50 of fp32 over p50 of fp16".into(),
        tick,
        legend: legend(&groups),
        goals: "",
        lines: vec![(1.0, "equal".into())],
        groups,
    })
}

/// Error of every fp16 engine, with what it may be.
pub fn errors(view: &View) -> Option<Chart> {
    let mut groups = vec![];
    let mut words = vec![];
    for setting in settings(view) {
        for model in view.models() {
            let line = |row: &Row| {
                let value = row.rel_err.filter(|e| *e > 0.0)?;
                let limit = view.error_limit(row);
                let part = matches!(row.variant.class(), Class::Alone | Class::Without);
                // Of engines that are steps on the way, those that are wrong; the table has all.
                if part && value <= limit.limit {
                    return None;
                }
                let goal = limit.native.map(|_| (limit.limit, format!("at most {}", error(limit.limit))));
                Some(Line {
                    label: row.variant.to_string(),
                    marks: vec![Mark {
                        series: series(row.variant.class()),
                        value,
                        interval: None,
                        text: error(value),
                        tip: row.place(),
                    }],
                    goal,
                })
            };
            let rows: Vec<Line> = view.panel(model, setting).filter_map(line).collect();
            if !rows.is_empty() {
                let heading = format!("{}, batch {}", published::name(model), setting.batch);
                let worst = rows.iter().map(|r| r.marks[0].value).fold(0.0, f64::max);
                words.push(format!("{heading}: at most {}", error(worst)));
                groups.push(Group { heading, rows });
            }
        }
    }
    (!groups.is_empty()).then(|| Chart {
        id: "chart-errors".into(),
        title: "Relative error of fp16 engines against fp32".into(),
        description: format!("Left is better. {}.", words.join("; ")),
        shape: Shape::Dots,
        axis: "\u{2016}out \u{2212} ref\u{2016} / \u{2016}ref\u{2016}, logarithmic".into(),
        tick: |v| format!("{v:.0e}"),
        legend: legend(&groups),
        goals: "1.5 \u{d7} native's own",
        lines: vec![(ERROR_LIMIT, error(ERROR_LIMIT))],
        groups,
    })
}

/// A native and a fused engine of one run with their profiles, where both were profiled.
pub fn profiled<'a>(view: &View<'a>, model: &str, setting: Setting) -> Option<(&'a Row, &'a Row)> {
    let fused = view.best(model, setting).filter(|r| !r.layers.is_empty())?;
    let native = view.baseline(fused).filter(|r| !r.layers.is_empty())?;
    Some((native, fused))
}

/// The time of two engines by the kind of their layers.
pub fn kinds(native: &Row, fused: &Row) -> Chart {
    let shares = [&native.layers, &fused.layers].map(|layers| profile::shares(layers));
    let mut kinds: Vec<&str> = vec![];
    for share in shares.iter().flatten() {
        if !kinds.contains(&share.kind.as_str()) {
            kinds.push(&share.kind);
        }
    }
    let time = |side: usize, kind: &str| shares[side].iter().find(|s| s.kind == kind).map_or(0.0, |s| s.us);
    let rows = kinds.iter().map(|kind| ((*kind).to_owned(), [time(0, kind), time(1, kind)])).collect();
    two_engines(native, fused, "kinds", "time by kind of layer", rows)
}

/// The time of two engines by the part of the network.
pub fn aligned(native: &Row, fused: &Row, groups: &[LayerGroup]) -> Chart {
    let rows = align::summarize(groups, MOST_GROUPS).iter().map(|g| (g.label(), g.us)).collect();
    two_engines(native, fused, "aligned", "time by part of the network, in the order of the network", rows)
}

/// The time of one engine by the kind of its layers, and by the part of the network.
pub fn one_engine(row: &Row) -> [Chart; 2] {
    let kinds = profile::shares(&row.layers).into_iter().map(|s| (s.kind, s.us)).collect();
    let parts = align::parts_of(&row.layers, MOST_GROUPS).iter().map(|g| (g.label(), g.us[0])).collect();
    [
        bars_of(row, "time-kinds", "time by kind of layer", kinds),
        bars_of(row, "time-parts", "time by part of the network", parts),
    ]
}

fn bars_of(row: &Row, id: &str, what: &str, rows: Vec<(String, f64)>) -> Chart {
    let total: f64 = rows.iter().map(|r| r.1).sum();
    let text = |time: f64| match total > 0.0 {
        true => format!("{} us, {:.0} %", us(time), 100.0 * time / total),
        false => format!("{} us", us(time)),
    };
    let words: Vec<String> = rows.iter().map(|(label, time)| format!("{label} {}", text(*time))).collect();
    let line = |(label, time): (String, f64)| Line {
        marks: vec![Mark {
            series: series(row.variant.class()),
            value: time,
            interval: None,
            text: text(time),
            tip: format!("{label}: {}", text(time)),
        }],
        goal: None,
        label,
    };
    Chart {
        id: format!("{id}-{}-{}", slug(&row.model), setting_slug(row.setting())),
        title: format!("{} {}: {what} ({})", published::name(&row.model), row.variant, row.setting()),
        description: format!("{}.", words.join("; ")),
        shape: Shape::Bars,
        axis: "us, as profiled".into(),
        tick,
        legend: vec![],
        goals: "",
        lines: vec![],
        groups: vec![Group { heading: String::new(), rows: rows.into_iter().map(line).collect() }],
    }
}

fn two_engines(native: &Row, fused: &Row, id: &str, what: &str, rows: Vec<(String, [f64; 2])>) -> Chart {
    let both = [series(native.variant.class()), series(fused.variant.class())];
    let names = [&native.variant, &fused.variant];
    let words: Vec<String> =
        rows.iter().map(|(label, t)| format!("{label} {} and {} us", us(t[0]), us(t[1]))).collect();
    let line = |(label, times): (String, [f64; 2])| Line {
        marks: (0..2)
            .map(|side| Mark {
                series: both[side],
                value: times[side],
                interval: None,
                text: us(times[side]),
                tip: format!("{label}: {} us in {}", us(times[side]), names[side]),
            })
            .collect(),
        goal: None,
        label,
    };
    Chart {
        id: format!("{id}-{}-{}", slug(&fused.model), setting_slug(fused.setting())),
        title: format!("{}: {what} ({})", published::name(&fused.model), fused.setting()),
        description: format!("Shorter is better. {} and {}: {}.", names[0], names[1], words.join("; ")),
        shape: Shape::Bars,
        axis: "us, as profiled".into(),
        tick,
        legend: (0..2).map(|side| (both[side], names[side].to_string())).collect(),
        goals: "",
        lines: vec![],
        groups: vec![Group { heading: String::new(), rows: rows.into_iter().map(line).collect() }],
    }
}
