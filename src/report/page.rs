//! `index.html`: one page with everything in it, which needs no script and asks for nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::render::format::{times, us};
use super::render::table::Table;
use super::schema::{Row, Setting};
use super::view::View;
use super::{align, charts, markdown, profile, published, tables};

const STYLE: &str = include_str!("page.css");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

pub const TITLE: &str = "Vision transformers on TensorRT: what each fusion is worth";

pub const WORTH: &str = "\u{201c}Alone\u{201d} is what a fusion saves over the engine without plugins; \u{201c}left out\u{201d} is what \
    is lost when it is the one fusion missing from all. The two differ where fusions open the way for each other, or do \
    the same work twice. Intervals are the widest that the two medians allow.";

/// How the figures come about. `docs/report.md` says the same at length.
pub const METHOD: [&str; 7] = [
    "All engines of a run are timed in one process on one GPU, interleaved in rounds. In every block of as many rounds \
     as there are engines, each is timed once at each place of a round, and the order is drawn anew for each block. \
     Warm-up and the first samples of a turn are discarded.",
    "A sample is the time of one inference of the whole batch: a replay of the captured CUDA graph (graph), or one call \
     of enqueue (enqueue). Data transfer is not in it.",
    "p50 and p99 are percentiles over all samples (Hyndman and Fan, type 7). The interval is a 95 % bootstrap interval of \
     the median that draws whole rounds, since the samples of a round resemble each other.",
    "Ratios to ResNet-50 and speed-ups are formed inside one run only. ResNet-50 is native, fp16, of the same batch and \
     mode. Where several runs measured the same engine, the latest is shown.",
    "The baseline of a speed-up is the fastest native engine of the model in the same run. \u{201c}Canonical\u{201d} is \
     the model after clean-up and without any plugin, so that plugins are not credited with what clean-up gave.",
    "Errors are ||out - ref|| / ||ref|| of the outputs against fp32 in ONNX Runtime.",
    "Profiles are taken layer by layer, which adds time between layers: they show where time goes, and add up to more \
     than the latency. Bytes and launches are estimates of the cost model, kernels are counted in the captured graph.",
];

/// A model that misses what was asked for.
pub struct Missed<'a> {
    /// What says where its time goes.
    pub profile: &'a Row,
    pub sentence: String,
}

pub fn missed<'a>(view: &View<'a>) -> Vec<Missed<'a>> {
    let outcomes = view.outcomes().into_iter().filter(|o| o.met() == Some(false));
    outcomes
        .filter_map(|outcome| {
            let best = outcome.best?;
            let reference = best.p50_us / best.x_resnet50?;
            let budget = outcome.goal.x_resnet50 * reference;
            let mut sentence = format!(
                "{} ({}): {} takes {} us, and {} \u{d7} ResNet-50 are {} us: {} us too much.",
                published::name(&best.model),
                best.setting(),
                best.variant,
                us(best.p50_us),
                outcome.goal.x_resnet50,
                us(budget),
                us(best.p50_us - budget)
            );
            let profile = view.profile_of(best);
            let total = tables::total(&profile.layers);
            if total > 0.0 {
                let shares = profile::shares(&profile.layers);
                let most = shares
                    .iter()
                    .take(3)
                    .map(|s| format!("{} {:.0} % in {} layers", s.kind, 100.0 * s.us / total, s.layers));
                let whose = match () {
                    () if std::ptr::eq(profile, best) => String::new(),
                    () if profile.same_subject(best) => format!(" in run {}", profile.run),
                    () => format!(" of {} in run {}", profile.variant, profile.run),
                };
                sentence += &format!(" Of the profiled time{whose}, {}.", most.collect::<Vec<_>>().join(", "));
            } else {
                sentence += " It was not profiled.";
            }
            if let Some(kernels) = best.kernels {
                sentence +=
                    &format!(" It has {kernels} kernels, {} us each on average.", us(best.p50_us / f64::from(kernels)));
            }
            Some(Missed { profile, sentence })
        })
        .collect()
}

/// Pairs of profiled engines, native and best, of all models and settings that charts are drawn of.
pub fn profiled<'a>(view: &View<'a>) -> Vec<(&'a Row, &'a Row)> {
    let settings = charts::settings(view);
    let models = view.models();
    settings.iter().flat_map(|s| models.iter().filter_map(|m| charts::profiled(view, m, *s))).collect()
}

/// What the report is of and what came out, in one paragraph.
pub fn summary(view: &View) -> String {
    let mut text = match view.runs().next() {
        None => "No run.".to_owned(),
        Some((_, latest)) => {
            let runs = view.runs().count();
            format!(
                "{}, TensorRT {}, {} engines measured in {} {}, the latest of {}.",
                latest.gpu,
                latest.tensorrt,
                view.engines(),
                runs,
                if runs == 1 { "run" } else { "runs" },
                latest.date.strftime("%-d %B %Y")
            )
        }
    };
    for setting in charts::settings(view) {
        let models = view.models();
        let parts: Vec<String> = models.iter().filter_map(|m| markdown::half_sentence(view, m, setting)).collect();
        if !parts.is_empty() {
            text += &format!(" From native to the best engine with fusions, {setting}: {}.", parts.join(", "));
        }
    }
    let outcomes = view.outcomes();
    if !outcomes.is_empty() {
        let met = outcomes.iter().filter(|o| o.met() == Some(true)).count();
        text += &format!(" Of {} goals, {met} are met.", outcomes.len());
    }
    text
}

/// A section of the page: its id, its name in the navigation and its heading.
struct Section {
    id: &'static str,
    name: &'static str,
    heading: &'static str,
    body: Markup,
}

pub fn render(view: &View, warnings: &[String]) -> Markup {
    let sections = sections(view);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                // A browser asks for nothing elsewhere, whatever the names in the figures hold.
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="color-scheme" content="light dark";
                // Browsers ask the server for an icon unless the page has one.
                link rel="icon" href="data:,";
                title { (TITLE) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (TITLE) }
                    (headline(view))
                    @if !warnings.is_empty() {
                        aside.warnings aria-label="Warnings" {
                            strong { "Caveats" }
                            ul { @for warning in warnings { li { (warning) } } }
                        }
                    }
                }
                nav aria-label="Sections" {
                    ul { @for s in &sections { li { a href={ "#" (s.id) } { (s.name) } } } }
                }
                main {
                    @for s in &sections {
                        section id=(s.id) aria-labelledby={ (s.id) "-h" } {
                            h2 id={ (s.id) "-h" } { (s.heading) }
                            (s.body)
                        }
                    }
                }
                footer {
                    p { "Made by trt-opt " (env!("CARGO_PKG_VERSION")) ". All figures are in report.json beside this page." }
                }
            }
        }
    }
}

/// Where it was measured, and the best of each model, large.
fn headline(view: &View) -> Markup {
    let latest = view.runs().next().map(|(_, e)| e);
    let runs = view.runs().count();
    html! {
        @if let Some(e) = latest {
            p.where {
                (e.gpu) " \u{b7} TensorRT " (e.tensorrt) " \u{b7} " (view.engines()) " engines in " (runs)
                @if runs == 1 { " run" } @else { " runs" } " \u{b7} " (e.date.strftime("%-d %B %Y").to_string())
            }
        }
        @for setting in charts::settings(view) {
            @let tiles: Vec<Markup> = view.models().iter().filter_map(|m| tile(view, m, setting)).collect();
            @if !tiles.is_empty() {
                h2.tiles-heading { "From native to the best with fusions: " (setting) }
                ul.tiles { @for tile in &tiles { (tile) } }
            }
        }
    }
}

fn tile(view: &View, model: &str, setting: Setting) -> Option<Markup> {
    let best = view.best(model, setting)?;
    let native = view.baseline(best)?;
    let outcome = view.goal(model, setting).and_then(|g| Some((g, best.x_resnet50? <= g.x_resnet50)));
    Some(html! {
        li.tile {
            span.tile-name { (published::name(model)) }
            span.tile-figure { (times(native.p50_us / best.p50_us)) }
            span.tile-detail { (us(native.p50_us)) " \u{2192} " (us(best.p50_us)) " us" }
            @if let (Some(a), Some(b)) = (native.x_resnet50, best.x_resnet50) {
                span.tile-detail { (times(a)) " \u{2192} " (times(b)) " ResNet-50" }
            }
            @if let Some((goal, met)) = outcome {
                span.tile-goal.good[met].bad[!met] {
                    "\u{2264} " (times(goal.x_resnet50)) " asked for: " @if met { "met" } @else { "missed" }
                }
            }
        }
    })
}

fn sections(view: &View) -> Vec<Section> {
    let settings = charts::settings(view);
    let models = view.models();
    let mut sections = vec![];
    let mut push = |id, name, heading, body| sections.push(Section { id, name, heading, body });

    let goals = tables::goals(view);
    let ratios: Vec<_> = settings.iter().filter_map(|s| charts::ratio(view, *s)).collect();
    if goals.is_some() || !ratios.is_empty() {
        push(
            "resnet",
            "ResNet-50",
            "Against ResNet-50",
            html! {
                p {
                    "One ResNet-50 is the median latency of native ResNet-50 in fp16, of the same batch and mode and in the \
                     same run."
                }
                @for chart in &ratios { (chart.html()) }
                @if let Some(table) = &goals { (table.html()) }
            },
        );
    }

    let mut ladders = vec![];
    for setting in &settings {
        ladders.extend(models.iter().filter_map(|m| charts::ladder(view, m, *setting)));
    }
    if !ladders.is_empty() {
        push(
            "ladder",
            "Ladder",
            "Latency, fusion by fusion",
            html! {
                p {
                    "Each bar is the median latency of one engine with its 95 % interval: the model as exported, cleaned up without \
                     plugins, with each fusion alone, with all, and with the choice that tuning made."
                }
                @for chart in &ladders { (chart.html()) }
            },
        );
    }

    let mut worth = vec![];
    for setting in &settings {
        for model in &models {
            worth.extend(charts::worth(view, model, *setting).zip(tables::worth(view, model, *setting)));
        }
    }
    if !worth.is_empty() {
        push(
            "worth",
            "Fusions",
            "What each fusion is worth",
            html! {
                p { (WORTH) }
                @for (chart, table) in &worth { (chart.html()) (details("As a table", table)) }
            },
        );
    }

    if let (Some(chart), Some(table)) = (charts::precisions(view), tables::precisions(view)) {
        push(
            "precision",
            "fp16",
            "What fp16 is worth",
            html! {
                p { "Engines that one run measured in both precisions: the p50 of fp32 over that of fp16." }
                (chart.html())
                (details("As a table", &table))
            },
        );
    }

    let work: Vec<_> =
        settings.iter().flat_map(|s| [charts::kernels(view, *s), charts::bytes(view, *s)]).flatten().collect();
    if !work.is_empty() {
        push(
            "work",
            "Kernels",
            "Kernels and bytes, before and after",
            html! {
                p {
                    "Kernels are counted in the captured graph. Bytes are what the cost model expects of the model as \
                     exported, and of the one that was built."
                }
                @for chart in &work { (chart.html()) }
                @if let Some(table) = tables::work(view) { (details("As a table", &table)) }
            },
        );
    }

    let profiled = profiled(view);
    if !profiled.is_empty() {
        push(
            "layers",
            "Layers",
            "Two engines, layer by layer",
            html! {
                p {
                    "Layers are lined up by the modules that their nodes belong to. Where TensorRT runs a part of the network as one \
                     layer, all that the other engine does there stands beside it."
                }
                @for (native, fused) in &profiled {
                    @let groups = align::align(&native.layers, &fused.layers);
                    (charts::kinds(native, fused).html())
                    (charts::aligned(native, fused, &groups).html())
                    (details("All groups of layers", &tables::aligned(native, fused, &groups)))
                    (details("By kind of layer", &tables::kinds(native, fused)))
                }
            },
        );
    }

    let missed = missed(view);
    if !missed.is_empty() {
        push(
            "time",
            "Time",
            "Where the time goes",
            html! {
                @for m in &missed {
                    p { (m.sentence) }
                    @if !m.profile.layers.is_empty() {
                        @for chart in charts::one_engine(m.profile) { (chart.html()) }
                        (details("The longest layers", &tables::longest(m.profile, 15)))
                    }
                }
            },
        );
    }

    let memory = tables::memory_and_error(view);
    if memory.is_some() {
        push(
            "error",
            "Error",
            "Numeric error and memory",
            html! {
                p { (tables::error_summary(view)) }
                @if let Some(chart) = charts::errors(view) { (chart.html()) }
                @if let Some(table) = &memory { (details("Memory and error of every engine", table)) }
            },
        );
    }

    push(
        "article",
        "Accuracy",
        "Accuracy, latency and memory",
        html! {
            @for table in tables::article(view) { (table.html()) }
            @let sources = tables::accuracy_sources(view);
            @if !sources.is_empty() {
                p.note {
                    "Top-1 on ImageNet-1k as published, not measured here: "
                    @for (i, (source, models)) in sources.iter().enumerate() {
                        @if i > 0 { "; " } (models.join(", ")) " " (source)
                    }
                    "."
                }
            }
        },
    );

    push(
        "all",
        "All figures",
        "All latencies",
        html! {
            @for setting in view.settings() { (details(&setting.to_string(), &tables::latency(view, setting))) }
        },
    );

    push(
        "method",
        "Method",
        "How it was measured",
        html! {
            ul { @for m in METHOD { li { (m) } } }
            @if let Some(table) = tables::audit(view) { (table.html()) }
            @if let Some(table) = tables::repeated(view) { (table.html()) }
            (tables::environments(view).html())
            dl.commands {
                @for (id, e) in view.runs() {
                    dt { "Run " (id) }
                    dd { code { (e.command) } @if let Some(note) = &e.note { " " (note) } }
                }
            }
            @let notes: Vec<&Row> = view.rows.iter().copied().filter(|r| r.note.is_some()).collect();
            @if !notes.is_empty() {
                h3 { "Notes of builds" }
                ul { @for row in notes { li { (row.place()) ": " (row.note.as_deref().unwrap_or_default()) } } }
            }
        },
    );
    sections
}

fn details(summary: &str, table: &Table) -> Markup {
    html! { details { summary { (summary) } (table.html()) } }
}
