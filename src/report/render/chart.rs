//! Horizontal bars and dots with intervals, as SVG that follows the page's colours.
//!
//! Text in SVG shrinks with the drawing, so a chart is drawn twice, for wide and for narrow screens, and the page shows
//! the one that fits. Sizes are in CSS pixels.

use maud::{Markup, html};

const WIDE: f64 = 840.0;
const NARROW: f64 = 350.0;
/// Height of a line of labels, and of a bar.
const LINE: f64 = 22.0;
const BAR: f64 = 14.0;
/// Height of a bar where a row has several.
const THIN: f64 = 10.0;
/// Between the bars of a row.
const BETWEEN: f64 = 4.0;
const GAP: f64 = 8.0;
/// Average width of a character of the labels, with room to spare: fonts differ.
const CHAR: f64 = 6.9;

/// What a mark stands for: the name of a CSS class that has its colour. In the order of legends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Series {
    Native,
    Canonical,
    Alone,
    LeftOut,
    All,
    Tuned,
    Torch,
}

impl Series {
    pub fn class(self) -> &'static str {
        match self {
            Self::Native => "s-native",
            Self::Canonical => "s-canonical",
            Self::Alone => "s-alone",
            Self::LeftOut => "s-left-out",
            Self::All => "s-all",
            Self::Tuned => "s-tuned",
            Self::Torch => "s-torch",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// From zero, on a linear scale.
    Bars,
    /// On a logarithmic scale, for values above zero.
    Dots,
}

pub struct Chart {
    /// Unique on the page.
    pub id: String,
    pub title: String,
    /// What is to be seen, in words.
    pub description: String,
    pub shape: Shape,
    /// Below the axis.
    pub axis: String,
    pub tick: fn(f64) -> String,
    pub legend: Vec<(Series, String)>,
    /// What the ticks across rows stand for.
    pub goals: &'static str,
    /// Vertical lines through the whole chart.
    pub lines: Vec<(f64, String)>,
    pub groups: Vec<Group>,
}

pub struct Group {
    /// Empty for none.
    pub heading: String,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub label: String,
    pub marks: Vec<Mark>,
    /// What was asked for: a tick across the row, with its label in the tooltip.
    pub goal: Option<(f64, String)>,
}

pub struct Mark {
    pub series: Series,
    pub value: f64,
    pub interval: Option<[f64; 2]>,
    /// Beside the mark.
    pub text: String,
    /// The tooltip.
    pub tip: String,
}

impl Chart {
    /// The chart with its legend, once for wide and once for narrow screens.
    pub fn html(&self) -> Markup {
        html! {
            figure.chart id=(self.id) {
                figcaption { (self.title) }
                @if !self.legend.is_empty() {
                    ul.legend {
                        @for (series, name) in &self.legend {
                            li { span.swatch .(series.class()) {} (name) }
                        }
                        @if self.groups.iter().flat_map(|g| &g.rows).any(|r| r.goal.is_some()) {
                            li { span.swatch.goal-swatch {} (self.goals) }
                        }
                    }
                }
                div.wide { (self.svg(WIDE, "w")) }
                div.narrow { (self.svg(NARROW, "n")) }
            }
        }
    }

    fn svg(&self, width: f64, suffix: &str) -> Markup {
        let layout = Layout::new(self, width);
        let (left, right, height) = (layout.left, layout.right, layout.height);
        let (title, description) = (format!("{}-{suffix}-t", self.id), format!("{}-{suffix}-d", self.id));
        let top = layout.top;
        html! {
            svg viewBox=(format!("0 0 {width} {height}")) width=(width) height=(height) role="img"
                aria-labelledby=(format!("{title} {description}")) {
                title id=(title) { (self.title) }
                desc id=(description) { (self.description) }
                @for &tick in &layout.ticks {
                    @let x = layout.x(tick);
                    line.grid x1=(n(x)) x2=(n(x)) y1=(n(top)) y2=(n(layout.bottom)) {}
                    text.tick x=(n(x)) y=(n(layout.bottom + 15.0)) text-anchor="middle" { ((self.tick)(tick)) }
                }
                @let middle = layout.centre((left + right) / 2.0, &self.axis);
                text.axis x=(n(middle)) y=(n(layout.bottom + 32.0)) text-anchor="middle" { (self.axis) }
                @for (i, (at, label)) in self.lines.iter().enumerate() {
                    @let x = layout.x(*at);
                    line.mark-line x1=(n(x)) x2=(n(x)) y1=(n(top - 4.0)) y2=(n(layout.bottom)) {}
                    @let y = top - 8.0 - LINE * (self.lines.len() - 1 - i) as f64 * 0.7;
                    text.mark-label x=(n(layout.centre(x, label))) y=(n(y)) text-anchor="middle" { (label) }
                }
                @for placed in &layout.placed { (self.placed(&layout, placed)) }
                @if self.shape == Shape::Bars {
                    line.zero x1=(n(layout.x(0.0))) x2=(n(layout.x(0.0))) y1=(n(top)) y2=(n(layout.bottom)) {}
                }
            }
        }
    }

    fn placed(&self, layout: &Layout, placed: &Placed) -> Markup {
        html! {
            @match placed {
                Placed::Heading(text, y) => {
                    text.heading x="0" y=(n(y + LINE - 7.0)) { (fit(text, layout.width)) }
                }
                Placed::Row(row, y) => {
                    @let height = row_height(row);
                    text.label x=(n(layout.left - 8.0)) y=(n(y + height / 2.0 + 4.0)) text-anchor="end" {
                        (fit(&row.label, layout.left - 8.0))
                    }
                    @for (i, mark) in row.marks.iter().enumerate() {
                        @let thickness = if row.marks.len() > 1 { THIN } else { BAR };
                        @let middle = if row.marks.len() > 1 {
                            y + 4.0 + (thickness + BETWEEN) * i as f64 + thickness / 2.0
                        } else {
                            y + height / 2.0
                        };
                        (self.mark(layout, mark, row.goal.as_ref().map(|g| g.0), middle, thickness))
                    }
                    @if let Some((goal, tip)) = &row.goal {
                        @let x = layout.x(*goal);
                        g.goal {
                            title { (tip) }
                            line x1=(n(x)) x2=(n(x)) y1=(n(*y + 1.0)) y2=(n(y + height - 1.0)) {}
                        }
                    }
                }
            }
        }
    }

    fn mark(&self, layout: &Layout, mark: &Mark, goal: Option<f64>, middle: f64, thickness: f64) -> Markup {
        let x = layout.x(mark.value);
        let (from, to) = match self.shape {
            Shape::Bars => (x.min(layout.x(0.0)), x.max(layout.x(0.0))),
            Shape::Dots => (x, x),
        };
        let ends = mark.interval.map(|ends| ends.map(|end| layout.x(end)));
        // The text stands right of all that is drawn.
        let text = ends.map_or(to, |[_, high]| to.max(high)) + if self.shape == Shape::Dots { 10.0 } else { 6.0 };
        // And clear of the goal.
        let text = match goal.map(|g| layout.x(g)) {
            Some(goal) if goal > text - 6.0 && goal < text + width_of(&mark.text) => goal + 6.0,
            _ => text,
        };
        html! {
            g {
                @if !mark.tip.is_empty() { title { (mark.tip) } }
                @match self.shape {
                    Shape::Bars => {
                        @let width = (to - from).max(1.0);
                        rect .(mark.series.class()) x=(n(from)) y=(n(middle - thickness / 2.0)) width=(n(width))
                            height=(n(thickness)) rx="2" {}
                    }
                    Shape::Dots => { circle .(mark.series.class()) cx=(n(x)) cy=(n(middle)) r="5" {} }
                }
                @if let Some([low, high]) = ends {
                    path.whisker d=(format!(
                        "M{0} {2}V{3}M{0} {4}H{1}M{1} {2}V{3}",
                        n(low), n(high), n(middle - 3.5), n(middle + 3.5), n(middle)
                    )) {}
                }
                text.value x=(n(text)) y=(n(middle + 4.0)) { (mark.text) }
            }
        }
    }
}

enum Placed<'a> {
    Heading(&'a str, f64),
    Row(&'a Row, f64),
}

struct Layout<'a> {
    width: f64,
    /// Of the plot.
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    height: f64,
    shape: Shape,
    domain: [f64; 2],
    ticks: Vec<f64>,
    placed: Vec<Placed<'a>>,
}

impl<'a> Layout<'a> {
    fn new(chart: &'a Chart, width: f64) -> Self {
        let rows = || chart.groups.iter().flat_map(|g| &g.rows);
        let longest = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0) as f64 * CHAR;
        let label = longest(&mut rows().map(|r| r.label.chars().count()));
        let value = longest(&mut rows().flat_map(|r| &r.marks).map(|m| m.text.chars().count()));
        // Bars get at least a third of the width; longer labels are cut.
        let left = (label + 10.0).min(width * 0.42);
        let right = (width - value - 12.0).max(left + width * 0.25);
        let top = if chart.lines.is_empty() { 4.0 } else { 10.0 + LINE * 0.7 * chart.lines.len() as f64 };

        let mut y = top;
        let mut placed = vec![];
        for (i, group) in chart.groups.iter().enumerate() {
            if i > 0 {
                y += GAP;
            }
            if !group.heading.is_empty() {
                placed.push(Placed::Heading(&group.heading, y));
                y += LINE;
            }
            for row in &group.rows {
                placed.push(Placed::Row(row, y));
                y += row_height(row);
            }
        }
        let bottom = y + 4.0;

        let values = rows().flat_map(|r| {
            let marks = r.marks.iter().flat_map(|m| m.interval.into_iter().flatten().chain([m.value]));
            marks.chain(r.goal.iter().map(|g| g.0))
        });
        let values: Vec<f64> = values.chain(chart.lines.iter().map(|l| l.0)).filter(|v| v.is_finite()).collect();
        let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        // Labels of ticks need room.
        let most = ((right - left) / 55.0).clamp(2.0, 8.0) as usize;
        let (domain, ticks) = match chart.shape {
            Shape::Bars => {
                let domain = [low.min(0.0), high.max(0.0)];
                let domain = if domain[0] < domain[1] { domain } else { [0.0, 1.0] };
                (domain, linear_ticks(domain, most))
            }
            Shape::Dots => {
                let (low, high) = if low.is_finite() && low > 0.0 { (low, high) } else { (1e-4, 1e-2) };
                let domain = [low * 0.7, high * 1.4];
                (domain, decades(domain))
            }
        };
        let mut layout =
            Self { width, left, right, top, bottom, height: bottom + 40.0, shape: chart.shape, domain, ticks, placed };
        layout.ticks.retain(|t| (layout.domain[0]..=layout.domain[1]).contains(t));
        layout
    }

    fn x(&self, value: f64) -> f64 {
        let [low, high] = self.domain;
        let share = match self.shape {
            Shape::Bars => (value - low) / (high - low),
            Shape::Dots => (value.max(low) / low).ln() / (high / low).ln(),
        };
        self.left + share.clamp(0.0, 1.0) * (self.right - self.left)
    }

    /// Where text that belongs to `x` is centred, so that it is not cut at the edge.
    fn centre(&self, x: f64, label: &str) -> f64 {
        let half = width_of(label) / 2.0;
        x.min(self.width - half).max(half)
    }
}

fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * CHAR
}

fn row_height(row: &Row) -> f64 {
    match row.marks.len() {
        0 | 1 => LINE,
        more => (THIN + BETWEEN) * more as f64 + 5.0,
    }
}

/// Steps of 1, 2 or 5 times a power of ten, at most `most` of them.
fn linear_ticks([low, high]: [f64; 2], most: usize) -> Vec<f64> {
    let rough = (high - low) / most as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    // Multiples, not sums, so that zero is zero.
    (first..=last).map(|i| i as f64 * step).collect()
}

fn decades([low, high]: [f64; 2]) -> Vec<f64> {
    (low.log10().floor() as i32..=high.log10().ceil() as i32).map(|power| 10f64.powi(power)).collect()
}

/// A coordinate: a tenth of a pixel is enough.
fn n(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// A label cut to a width, with an ellipsis in the middle: both ends of a module path say something.
fn fit(text: &str, width: f64) -> String {
    let most = ((width / CHAR) as usize).max(5);
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= most {
        return text.to_owned();
    }
    let tail = (most - 1) / 2;
    let head = most - 1 - tail;
    chars[..head].iter().chain(&['\u{2026}']).chain(&chars[chars.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_zero() {
        assert_eq!(linear_ticks([0.0, 676.0], 8), [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]);
        assert_eq!(linear_ticks([-30.0, 95.0], 8), [-20.0, 0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(linear_ticks([0.0, 3.46], 8).len(), 7);
        assert_eq!(decades([3e-4, 2e-2]), [1e-4, 1e-3, 1e-2, 1e-1]);
    }

    #[test]
    fn long_labels_are_cut_in_the_middle() {
        assert_eq!(fit("layers.0", 100.0), "layers.0");
        assert_eq!(fit("layers.2/blocks.5/attn", 80.0), "layer…/attn");
    }

    fn chart(values: &[f64]) -> Chart {
        let mark = |v: &f64| Mark {
            series: Series::All,
            value: *v,
            interval: Some([v * 0.9, v * 1.1]),
            text: "value & more".into(),
            tip: "tip".into(),
        };
        Chart {
            id: "c".into(),
            title: "Title <1>".into(),
            description: "Words".into(),
            shape: Shape::Bars,
            axis: "us".into(),
            tick: |v| format!("{v}"),
            legend: vec![(Series::All, "all".into())],
            goals: "",
            lines: vec![(1.0, "one".into())],
            groups: vec![Group {
                heading: "Group".into(),
                rows: vec![Row { label: "label".into(), marks: values.iter().map(mark).collect(), goal: None }],
            }],
        }
    }

    #[test]
    fn charts_name_themselves_and_have_unique_ids() {
        let html = chart(&[3.0, 2.0]).html().into_string();
        assert_eq!(html.matches("<title id=").count(), 2);
        assert_eq!(html.matches("<desc id=").count(), 2);
        assert!(html.contains("aria-labelledby=\"c-w-t c-w-d\"") && html.contains("aria-labelledby=\"c-n-t c-n-d\""));
        assert!(html.contains("Title &lt;1&gt;") && html.contains("value &amp; more"));
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
    }

    #[test]
    fn odd_values_still_draw() {
        for values in [&[][..], &[0.0], &[-5.0, 3.0], &[1e-9], &[1e12]] {
            for shape in [Shape::Bars, Shape::Dots] {
                let html = Chart { shape, lines: vec![], ..chart(values) }.html().into_string();
                assert!(!html.contains("NaN") && !html.contains("inf"), "{values:?}: {html}");
            }
        }
    }
}
