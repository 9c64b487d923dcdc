//! What follows from the rows: which of them are shown, what they are compared with, and whether they hold what they
//! should. Tables and charts get every derived figure from here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::published;
use super::render::format::us;
use super::schema::{Class, Environment, Goal, Mode, Precision, Report, Row, Setting};

/// The largest allowed error of any engine against fp32.
pub const ERROR_LIMIT: f64 = 1e-2;
/// The largest allowed error of an fp16 engine, as a multiple of native fp16's own.
pub const ERROR_FACTOR: f64 = 1.5;

/// A report, indexed.
pub struct View<'a> {
    pub report: &'a Report,
    /// Run ids, the latest first.
    runs: Vec<&'a str>,
    /// Of every engine measured, the row of the latest run, in the order of tables.
    pub rows: Vec<&'a Row>,
}

/// What an error is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ErrorLimit {
    pub limit: f64,
    /// Native fp16's own error, where the limit comes from it.
    pub native: Option<f64>,
}

/// How a goal was met.
pub struct Outcome<'a> {
    pub goal: &'a Goal,
    /// The native engine in the run of `best`, or else the latest.
    pub native: Option<&'a Row>,
    /// The fastest engine with fusions, by its ratio.
    pub best: Option<&'a Row>,
}

/// What one fusion is worth for a model, in microseconds. Ends of intervals are those of the two intervals that are
/// furthest apart, since the samples are not at hand.
pub struct Worth<'a> {
    pub fusion: &'a str,
    pub alone: Option<Difference<'a>>,
    pub left_out: Option<Difference<'a>>,
}

#[derive(Clone, Copy)]
pub struct Difference<'a> {
    pub row: &'a Row,
    /// What it is held against: without any plugin, or with all.
    pub base: &'a Row,
    /// Microseconds that the fusion saves.
    pub us: f64,
    pub interval: [f64; 2],
}

impl<'a> Difference<'a> {
    /// `slow` and `fast` as they should be if the fusion is worth something.
    fn new(row: &'a Row, base: &'a Row, slow: &Row, fast: &Row) -> Self {
        let ([a, b], [c, d]) = (slow.interval_us, fast.interval_us);
        Self { row, base, us: slow.p50_us - fast.p50_us, interval: [a - d, b - c] }
    }

    /// In parts of the time without the fusion.
    pub fn share(&self) -> f64 {
        self.us / self.row.p50_us.max(self.base.p50_us)
    }
}

impl<'a> View<'a> {
    pub fn new(report: &'a Report) -> Self {
        let mut runs: Vec<(&str, &Environment)> = report.environment.iter().map(|(id, e)| (id.as_str(), e)).collect();
        runs.sort_by_key(|(id, e)| Reverse((e.date, *id)));
        let runs: Vec<&str> = runs.into_iter().map(|(id, _)| id).collect();
        let mut view = Self { report, runs, rows: vec![] };
        let mut rows: Vec<&Row> = report.rows.iter().collect();
        rows.sort_by(|a, b| {
            let key = |row: &'a Row| (published::order(&row.model), row.setting(), row.variant.class());
            key(a).cmp(&key(b)).then_with(|| view.by_variant(a, b)).then_with(|| view.age(a).cmp(&view.age(b)))
        });
        rows.dedup_by(|next, kept| next.same_subject(kept));
        view.rows = rows;
        view
    }

    /// `native` before `native-...`, and the fusions in alphabetical order.
    fn by_variant(&self, a: &Row, b: &Row) -> std::cmp::Ordering {
        a.variant.cmp(&b.variant)
    }

    /// 0 for rows of the latest run, 1 for those of the run before it.
    fn age(&self, row: &Row) -> usize {
        self.runs.iter().position(|r| *r == row.run).unwrap_or(usize::MAX)
    }

    /// The runs, the latest first.
    pub fn runs(&self) -> impl Iterator<Item = (&'a str, &'a Environment)> {
        let environment = &self.report.environment;
        self.runs.iter().filter_map(|id| environment.get_key_value(*id)).map(|(id, e)| (id.as_str(), e))
    }

    /// How many engines were measured, in whatever mode.
    pub fn engines(&self) -> usize {
        let engine = |r: &'a Row| (&r.run, &r.model, r.variant.as_str(), r.precision, r.batch);
        self.report.rows.iter().map(engine).collect::<BTreeSet<_>>().len()
    }

    /// The models, in the order of tables.
    pub fn models(&self) -> Vec<&'a str> {
        let mut models: Vec<&str> = self.rows.iter().map(|r| r.model.as_str()).collect();
        models.dedup();
        models
    }

    /// The settings that rows were measured in.
    pub fn settings(&self) -> BTreeSet<Setting> {
        self.rows.iter().map(|r| r.setting()).collect()
    }

    /// The rows shown of one model in one setting.
    pub fn panel(&self, model: &str, setting: Setting) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().copied().filter(move |r| r.model == model && r.setting() == setting)
    }

    /// All rows of a run, model and setting.
    fn siblings(&self, row: &Row) -> impl Iterator<Item = &'a Row> {
        self.report.rows.iter().filter(|r| r.run == row.run && r.model == row.model && r.setting() == row.setting())
    }

    /// What a row is compared with: the fastest native engine of its model, setting and run.
    pub fn baseline(&self, row: &Row) -> Option<&'a Row> {
        let native = self.siblings(row).filter(|r| r.variant.class() == Class::Native);
        native.min_by(|a, b| a.p50_us.total_cmp(&b.p50_us))
    }

    /// The same model without any plugin, in the same setting and run.
    pub fn canonical(&self, row: &Row) -> Option<&'a Row> {
        self.siblings(row).find(|r| r.variant.class() == Class::Canonical)
    }

    /// How many times as fast as its baseline a row is.
    pub fn speedup(&self, row: &Row) -> Option<f64> {
        self.baseline(row).map(|b| b.p50_us / row.p50_us)
    }

    /// The row that says where the time of a row goes: itself, the same engine in an earlier run, or else the fastest of the model in this
    /// setting that was profiled. A row without layers if none was.
    pub fn profile_of(&self, row: &'a Row) -> &'a Row {
        let rows = self.report.rows.iter().filter(|r| {
            r.model == row.model && r.setting() == row.setting() && r.variant.class() == row.variant.class()
        });
        let key = |r: &&Row| (!std::ptr::eq(*r, row), !r.same_subject(row));
        let faster = |a: &&Row, b: &&Row| match a.same_subject(row) {
            true => self.age(a).cmp(&self.age(b)),
            false => a.p50_us.total_cmp(&b.p50_us),
        };
        let profiled = rows.filter(|r| !r.layers.is_empty());
        profiled.min_by(|a, b| key(a).cmp(&key(b)).then_with(|| faster(a, b))).unwrap_or(row)
    }

    /// The fastest engine with fusions among the rows shown: by ratio to ResNet-50, so that runs can be compared, or else
    /// by time.
    pub fn best(&self, model: &str, setting: Setting) -> Option<&'a Row> {
        let fused = |r: &&Row| matches!(r.variant.class(), Class::All | Class::Tuned);
        let cost = |r: &Row| (r.x_resnet50.is_none(), r.x_resnet50.unwrap_or(r.p50_us));
        let by_cost = |a: &&Row, b: &&Row| {
            let (a, b) = (cost(a), cost(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        };
        self.panel(model, setting).filter(fused).min_by(by_cost)
    }

    /// The native engine that stands for a model: that of the run of its best engine, or else the latest.
    pub fn native(&self, model: &str, setting: Setting) -> Option<&'a Row> {
        if let Some(native) = self.best(model, setting).and_then(|best| self.baseline(best)) {
            return Some(native);
        }
        let newest = self.panel(model, setting).find(|r| r.variant.class() == Class::Native)?;
        self.baseline(newest)
    }

    pub fn outcomes(&self) -> Vec<Outcome<'a>> {
        let mut goals: Vec<&Goal> = self.report.goals.iter().collect();
        goals.sort_by_key(|g| (g.setting(), published::order(&g.model)));
        let outcome = |goal: &'a Goal| {
            let (model, setting) = (goal.model.as_str(), goal.setting());
            Outcome { goal, native: self.native(model, setting), best: self.best(model, setting) }
        };
        goals.into_iter().map(outcome).collect()
    }

    /// The goal for a model in a setting.
    pub fn goal(&self, model: &str, setting: Setting) -> Option<&'a Goal> {
        self.report.goals.iter().find(|g| g.model == model && g.setting() == setting)
    }

    /// Every fusion that was measured alone or left out.
    pub fn worth(&self, model: &str, setting: Setting) -> Vec<Worth<'a>> {
        let mut found: BTreeMap<&str, Worth> = BTreeMap::new();
        for row in self.panel(model, setting) {
            let (fusion, alone, left_out) = match row.variant.class() {
                Class::Alone => {
                    let base = self.canonical(row).or_else(|| self.baseline(row));
                    (row.variant.as_str(), base.map(|base| Difference::new(row, base, base, row)), None)
                }
                Class::Without => {
                    let base = self.siblings(row).find(|r| r.variant.as_str() == "all");
                    let fusion = row.variant.left_out().unwrap_or_default();
                    (fusion, None, base.map(|base| Difference::new(row, base, row, base)))
                }
                _ => continue,
            };
            let worth = found.entry(fusion).or_insert(Worth { fusion, alone: None, left_out: None });
            worth.alone = worth.alone.or(alone);
            worth.left_out = worth.left_out.or(left_out);
        }
        let mut worth: Vec<Worth> = found.into_values().filter(|w| w.alone.is_some() || w.left_out.is_some()).collect();
        let value = |w: &Worth| w.left_out.or(w.alone).map_or(0.0, |d| d.us);
        worth.sort_by(|a, b| value(b).total_cmp(&value(a)));
        worth
    }

    /// What the error of a row may be. Nothing is asked of ones without an error.
    pub fn error_limit(&self, row: &Row) -> ErrorLimit {
        let fused = row.precision == Precision::Fp16 && row.variant.class() != Class::Native;
        let native = if fused { self.native_error(row) } else { None };
        match native {
            Some(native) if ERROR_FACTOR * native < ERROR_LIMIT => {
                ErrorLimit { limit: ERROR_FACTOR * native, native: Some(native) }
            }
            _ => ErrorLimit { limit: ERROR_LIMIT, native: None },
        }
    }

    /// Native fp16's own error for the model and batch of a row: of the same run if it has one, and else of the latest
    /// that has. The error does not depend on the mode or the clock.
    fn native_error(&self, row: &Row) -> Option<f64> {
        let native = |r: &&Row| {
            let same = r.model == row.model && r.batch == row.batch && r.precision == Precision::Fp16;
            same && r.variant.as_str() == "native" && r.rel_err.is_some()
        };
        let candidates = self.report.rows.iter().filter(native);
        candidates.min_by_key(|r| (r.run != row.run, self.age(r), r.mode))?.rel_err
    }

    /// Pairs of the same engine in fp32 and fp16 that one run measured, the fp32 one first.
    pub fn precisions(&self) -> Vec<(&'a Row, &'a Row)> {
        let other = |fp32: &'a Row| {
            let same = |r: &&Row| {
                let setting = Setting { precision: Precision::Fp16, ..fp32.setting() };
                r.run == fp32.run && r.model == fp32.model && r.variant == fp32.variant && r.setting() == setting
            };
            self.report.rows.iter().find(same).map(|fp16| (fp32, fp16))
        };
        self.rows.iter().copied().filter(|r| r.precision == Precision::Fp32).filter_map(other).collect()
    }

    /// Runs that measured several native engines of a model in one setting: these, the fastest first.
    pub fn audits(&self) -> Vec<Vec<&'a Row>> {
        let mut audits = vec![];
        for (run, _) in self.runs() {
            for model in self.models() {
                for setting in self.settings() {
                    let native = self.report.rows.iter().filter(|r| {
                        r.run == run && r.model == model && r.setting() == setting && r.variant.class() == Class::Native
                    });
                    let mut native: Vec<&Row> = native.collect();
                    native.sort_by(|a, b| a.p50_us.total_cmp(&b.p50_us));
                    if native.len() > 1 {
                        audits.push(native);
                    }
                }
            }
        }
        audits
    }

    /// Engines that several runs measured: all rows of each, the latest first.
    pub fn repeated(&self) -> Vec<Vec<&'a Row>> {
        let all = |shown: &&'a Row| {
            let mut rows: Vec<&Row> = self.report.rows.iter().filter(|r| r.same_subject(shown)).collect();
            rows.sort_by_key(|r| self.age(r));
            rows
        };
        self.rows.iter().map(all).filter(|rows| rows.len() > 1).collect()
    }

    /// Once for a model and run, that rows of these have nothing to be compared with.
    fn without_baselines(&self) -> Vec<String> {
        let mut lacking: Vec<(&Row, BTreeSet<Setting>)> = vec![];
        let lone = |row: &&&Row| self.baseline(row).is_none() && row.variant.class() != Class::Torch;
        for row in self.rows.iter().filter(lone) {
            match lacking.iter_mut().find(|(first, _)| (&first.model, &first.run) == (&row.model, &row.run)) {
                Some((_, settings)) => _ = settings.insert(row.setting()),
                None => lacking.push((row, [row.setting()].into())),
            }
        }
        let sentence = |(row, settings): (&Row, BTreeSet<Setting>)| {
            let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
            format!(
                "{} (run {}; {}): its run has no native engine of the model, so there is no speed-up",
                row.model,
                row.run,
                settings.join("; ")
            )
        };
        lacking.into_iter().map(sentence).collect()
    }

    /// Once for a batch size and mode in which ResNet-50, which ratios are over, takes longer in one run that is shown than in another.
    fn unsteady_references(&self) -> Vec<String> {
        const STEADY: f64 = 1.03;
        let sentence = |(batch, mode): (u32, Mode)| {
            let runs: BTreeSet<&str> = self
                .rows
                .iter()
                .filter(|r| {
                    (r.batch, r.mode) == (batch, mode) && r.model != super::REFERENCE_MODEL && r.x_resnet50.is_some()
                })
                .map(|r| r.run.as_str())
                .collect();
            let mut references: Vec<&Row> =
                runs.into_iter().filter_map(|run| self.report.reference(run, batch, mode)).collect();
            references.sort_by(|a, b| a.p50_us.total_cmp(&b.p50_us));
            let (least, most) = (references.first()?, references.last()?);
            let spread = most.p50_us / least.p50_us;
            (spread > STEADY).then(|| {
                format!(
                    "ResNet-50 (fp16, batch {batch}, {mode}) takes {} us in run {} and {} us in run {}: ratios to it are formed inside a run, so those of different runs are up to {:.1} % apart by that alone",
                    us(least.p50_us),
                    least.run,
                    us(most.p50_us),
                    most.run,
                    100.0 * (spread - 1.0)
                )
            })
        };
        let settings: BTreeSet<(u32, Mode)> = self.rows.iter().map(|r| (r.batch, r.mode)).collect();
        settings.into_iter().filter_map(sentence).collect()
    }

    /// What a reader has to know before believing the figures.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.without_baselines();
        warnings.extend(self.unsteady_references());
        for row in &self.rows {
            if let Some(error) = row.rel_err
                && error > self.error_limit(row).limit
            {
                let limit = self.error_limit(row).limit;
                warnings
                    .push(format!("{}: the error against fp32 is {error:.1e}, allowed are {limit:.1e}", row.place()));
            }
            if row.variant.class() == Class::Tuned
                && let Some(native) = self.baseline(row)
                && row.interval_us[0] > native.interval_us[1]
            {
                warnings.push(format!("{}: slower than {} beyond the noise", row.place(), native.variant));
            }
        }
        for audit in self.audits() {
            let fastest = audit[0];
            let others = self.panel(&fastest.model, fastest.setting()).filter(|r| r.run != fastest.run);
            let lacking = others.filter(|r| r.variant.class() != Class::Native).find(|r| {
                self.baseline(r).is_some_and(|used| {
                    let there = audit.iter().find(|a| a.variant == used.variant);
                    there.is_some_and(|there| there.interval_us[0] > fastest.interval_us[1])
                })
            });
            if let Some(row) = lacking {
                warnings.push(format!(
                    "{} ({}): run {} compares with {}, and run {} found {} to be faster",
                    published::name(&row.model),
                    row.setting(),
                    row.run,
                    self.baseline(row).map_or("nothing", |b| b.variant.as_str()),
                    fastest.run,
                    fastest.variant
                ));
            }
        }
        warnings.dedup();
        warnings
    }
}

impl Outcome<'_> {
    /// Nothing where it was not measured.
    pub fn met(&self) -> Option<bool> {
        Some(self.best?.x_resnet50? <= self.goal.x_resnet50)
    }
}
