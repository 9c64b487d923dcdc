//! Percentiles, bootstrap intervals and comparisons of [`Samples`].
//!
//! Percentiles are type 7 of Hyndman and Fan, "Sample Quantiles in Statistical Packages", The American Statistician 50
//! (1996): linear interpolation at `1 + (n - 1) p`, the default of R and NumPy.
//!
//! Intervals are percentile intervals of a block bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap",
//! 1993, chapters 8 and 13): whole rounds are drawn with replacement, since the samples of a round share its clock and
//! its temperature and are no independent witnesses. Drawing single samples would make the intervals too narrow.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use super::Samples;
use crate::error::{Error, Result};

/// Finite values in ascending order, at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Sorted(Vec<f64>);

impl Sorted {
    /// Nothing if there is no value, or one that is not finite.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
            return None;
        }
        values.sort_unstable_by(f64::total_cmp);
        Some(Self(values))
    }

    fn of(samples: &Samples) -> Self {
        Self::new(samples.iter()).expect("samples are finite and there are some")
    }

    /// The percentile `p`, from 0 (the minimum) to 100 (the maximum); beyond these, the nearer one; NaN for NaN.
    pub fn percentile(&self, p: f64) -> f64 {
        let last = self.0.len() - 1;
        let place = last as f64 * (p / 100.0).clamp(0.0, 1.0);
        let below = (place as usize).min(last);
        let (low, high) = (self.0[below], self.0[(below + 1).min(last)]);
        // Rounding must not carry the result out of [low, high], or percentiles would not be monotone.
        (low + (place - below as f64) * (high - low)).clamp(low, high)
    }

    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    pub fn values(&self) -> &[f64] {
        &self.0
    }
}

/// How intervals are formed. The same parameters and samples give the same interval on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    pub resamples: usize,
    /// Share of intervals that hold the true value, between 0 and 1.
    pub confidence: f64,
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { resamples: 2000, confidence: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    fn check(&self) -> Result<()> {
        if self.resamples == 0 || !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(Error::Usage(format!(
                "a bootstrap needs 1 resample or more and a confidence between 0 and 1, and was given {} and {}",
                self.resamples, self.confidence
            )));
        }
        Ok(())
    }

    /// The interval of a statistic of `rounds` rounds, given the numbers of the rounds that were drawn. It always holds
    /// `estimate`, the statistic of the rounds as they are: where the resamples all lie on one side, it is widened.
    fn interval(&self, rounds: usize, estimate: f64, mut statistic: impl FnMut(&[usize]) -> f64) -> Result<[f64; 2]> {
        self.check()?;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(self.seed);
        let mut drawn = vec![0; rounds];
        let values = (0..self.resamples).map(|_| {
            drawn.iter_mut().for_each(|round| *round = random.random_range(0..rounds));
            statistic(&drawn)
        });
        let values =
            Sorted::new(values).ok_or_else(|| Error::invalid("bootstrap", "a resampled statistic is not finite"))?;
        let tail = 50.0 * (1.0 - self.confidence);
        Ok([values.percentile(tail).min(estimate), values.percentile(100.0 - tail).max(estimate)])
    }
}

/// What a report says of the samples of one subject. Times in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of samples.
    pub n: usize,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of the median.
    pub interval_us: [f64; 2],
    pub min_us: f64,
    pub mean_us: f64,
}

impl Summary {
    pub fn of(samples: &Samples, bootstrap: &Bootstrap) -> Result<Self> {
        let sorted = Sorted::of(samples);
        let values = sorted.values();
        Ok(Self {
            n: values.len(),
            p50_us: sorted.median(),
            p99_us: sorted.percentile(99.0),
            interval_us: median_interval(samples, bootstrap)?,
            min_us: values[0],
            mean_us: values.iter().sum::<f64>() / values.len() as f64,
        })
    }
}

/// The interval of the median.
pub fn median_interval(samples: &Samples, bootstrap: &Bootstrap) -> Result<[f64; 2]> {
    let estimate = Sorted::of(samples).median();
    let mut buffer = vec![];
    bootstrap.interval(samples.rounds().len(), estimate, |drawn| median_of(samples, drawn, &mut buffer))
}

/// How two subjects of one interleaved run compare.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The median of the first over that of the second.
    pub ratio: f64,
    pub interval: [f64; 2],
}

impl Comparison {
    /// Whether the first is slower than the second beyond the noise: the whole interval is above 1.
    pub fn is_slower(&self) -> bool {
        self.interval[0] > 1.0
    }

    /// Whether the first is faster than the second beyond the noise: the whole interval is below 1.
    pub fn is_faster(&self) -> bool {
        self.interval[1] < 1.0
    }
}

/// The ratio of the medians of `a` and `b`, with an interval paired by round: each resample draws the same rounds of
/// both, so what slows a whole round down cancels.
///
/// Both must come from one [`super::interleave`]; different numbers of rounds are refused.
pub fn compare(a: &Samples, b: &Samples, bootstrap: &Bootstrap) -> Result<Comparison> {
    let rounds = a.rounds().len();
    if rounds != b.rounds().len() {
        return Err(Error::invalid(
            format!("'{}' against '{}'", a.name(), b.name()),
            format!("{rounds} rounds against {}; only samples of one interleaved run are compared", b.rounds().len()),
        ));
    }
    let ratio = Sorted::of(a).median() / Sorted::of(b).median();
    let mut buffer = vec![];
    let interval = bootstrap.interval(rounds, ratio, |drawn| {
        let a = median_of(a, drawn, &mut buffer);
        a / median_of(b, drawn, &mut buffer)
    })?;
    Ok(Comparison { ratio, interval })
}

/// The median of the rounds drawn, by selection: much faster than sorting.
fn median_of(samples: &Samples, drawn: &[usize], buffer: &mut Vec<f64>) -> f64 {
    buffer.clear();
    drawn.iter().for_each(|&round| buffer.extend_from_slice(&samples.rounds()[round]));
    let n = buffer.len();
    let (below, middle, _) = buffer.select_nth_unstable_by(n / 2, f64::total_cmp);
    let middle = *middle;
    match n % 2 {
        1 => middle,
        _ => {
            let low = below.iter().copied().max_by(f64::total_cmp).expect("an even number of samples is 2 or more");
            low + 0.5 * (middle - low)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples(rounds: &[&[f64]]) -> Samples {
        Samples::new("s", rounds.iter().map(|r| r.to_vec()).collect()).unwrap()
    }

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 400, confidence: 0.95, seed: 1 };

    #[test]
    fn percentiles_interpolate_as_type_7() {
        let sorted = Sorted::new([40.0, 10.0, 30.0, 20.0]).unwrap();
        // Places 0, 0.75, 1.5, 2.97 and 3 between the four values.
        for (p, expected) in [(0.0, 10.0), (25.0, 17.5), (50.0, 25.0), (99.0, 39.7), (100.0, 40.0)] {
            assert!((sorted.percentile(p) - expected).abs() < 1e-12, "{p}: {}", sorted.percentile(p));
        }
        assert_eq!(sorted.percentile(-5.0), 10.0);
        assert_eq!(sorted.percentile(200.0), 40.0);
        assert!(sorted.percentile(f64::NAN).is_nan());
        assert_eq!(Sorted::new([7.0]).unwrap().percentile(99.0), 7.0);
        assert_eq!(Sorted::new([3.0, 1.0, 2.0]).unwrap().median(), 2.0);
    }

    #[test]
    fn values_without_an_order_are_no_sorted_values() {
        assert_eq!(Sorted::new([]), None);
        assert_eq!(Sorted::new([1.0, f64::NAN]), None);
        assert_eq!(Sorted::new([f64::INFINITY]), None);
    }

    #[test]
    fn a_summary_by_hand() {
        let summary = Summary::of(&samples(&[&[10.0, 20.0], &[30.0, 40.0]]), &BOOTSTRAP).unwrap();
        assert_eq!((summary.n, summary.p50_us, summary.min_us, summary.mean_us), (4, 25.0, 10.0, 25.0));
        assert!((summary.p99_us - 39.7).abs() < 1e-12);
        // The resamples are rounds (0, 0), (0, 1), (1, 0) and (1, 1) with medians 15, 25, 25 and 35.
        assert_eq!(summary.interval_us, [15.0, 35.0]);
    }

    #[test]
    fn rounds_are_drawn_whole() {
        // Each round is constant: single draws could give 1.5 of two rounds of two; whole rounds give 1, 1.5 and 2.
        let one = samples(&[&[1.0, 1.0, 1.0], &[2.0, 2.0, 2.0]]);
        let mut buffer = vec![];
        assert_eq!(median_of(&one, &[0, 0], &mut buffer), 1.0);
        assert_eq!(median_of(&one, &[0, 1], &mut buffer), 1.5);
        assert_eq!(median_of(&one, &[1, 1], &mut buffer), 2.0);
        assert_eq!(median_interval(&one, &BOOTSTRAP).unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn a_ratio_cancels_what_a_whole_round_suffers() {
        // Rounds differ by a factor of two, the subjects by exactly 1.25 in each.
        let b = samples(&[&[4.0], &[8.0], &[4.0], &[8.0], &[6.0]]);
        let a = samples(&[&[5.0], &[10.0], &[5.0], &[10.0], &[7.5]]);
        let comparison = compare(&a, &b, &BOOTSTRAP).unwrap();
        assert_eq!(comparison, Comparison { ratio: 1.25, interval: [1.25, 1.25] });
        assert!(comparison.is_slower() && !comparison.is_faster());
        let comparison = compare(&b, &a, &BOOTSTRAP).unwrap();
        assert!(comparison.is_faster() && !comparison.is_slower());
        // Their own intervals overlap widely.
        assert!(median_interval(&a, &BOOTSTRAP).unwrap()[0] < median_interval(&b, &BOOTSTRAP).unwrap()[1]);
    }

    #[test]
    fn what_is_within_the_noise_is_neither_slower_nor_faster() {
        let a = samples(&[&[10.0], &[11.0], &[10.0], &[11.0]]);
        let b = samples(&[&[11.0], &[10.0], &[11.0], &[10.0]]);
        for comparison in [compare(&a, &b, &BOOTSTRAP).unwrap(), compare(&a, &a, &BOOTSTRAP).unwrap()] {
            assert_eq!(comparison.ratio, 1.0);
            assert!(!comparison.is_slower() && !comparison.is_faster());
        }
    }

    #[test]
    fn only_runs_of_equal_rounds_compare() {
        let a = samples(&[&[1.0], &[1.0]]);
        let b = samples(&[&[1.0], &[1.0], &[1.0]]);
        let error = compare(&a, &b, &BOOTSTRAP).unwrap_err().to_string();
        assert!(error.contains("2 rounds against 3"), "{error}");
    }

    #[test]
    fn senseless_parameters_are_refused() {
        let a = samples(&[&[1.0], &[1.0]]);
        for bootstrap in [
            Bootstrap { resamples: 0, ..BOOTSTRAP },
            Bootstrap { confidence: 1.0, ..BOOTSTRAP },
            Bootstrap { confidence: f64::NAN, ..BOOTSTRAP },
        ] {
            assert!(matches!(median_interval(&a, &bootstrap), Err(Error::Usage(_))));
            assert!(matches!(compare(&a, &a, &bootstrap), Err(Error::Usage(_))));
        }
    }

    /// Rounds with a shift of their own and noise within, as a GPU gives; the true median is 100.
    fn synthetic(random: &mut Xoshiro256PlusPlus, rounds: usize) -> Samples {
        let mut uniform = || random.random_range(-1.0..1.0);
        let rounds = (0..rounds).map(|_| {
            let shift = 3.0 * uniform();
            (0..10).map(|_| 100.0 + shift + uniform()).collect()
        });
        Samples::new("synthetic", rounds.collect()).unwrap()
    }

    #[test]
    fn intervals_cover_the_truth_about_as_often_as_they_say() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(11);
        let trials = 200;
        let covered = (0..trials).filter(|_| {
            let [low, high] = median_interval(&synthetic(&mut random, 30), &BOOTSTRAP).unwrap();
            (low..=high).contains(&100.0)
        });
        let covered = covered.count() as f64 / f64::from(trials);
        assert!((0.88..=0.99).contains(&covered), "{covered}");
    }

    #[test]
    fn drawing_single_samples_would_cover_far_less() {
        // The same data with every sample a round of its own: this is why rounds are drawn whole.
        let mut random = Xoshiro256PlusPlus::seed_from_u64(11);
        let trials = 100;
        let covered = (0..trials).filter(|_| {
            let split: Vec<Vec<f64>> = synthetic(&mut random, 30).iter().map(|us| vec![us]).collect();
            let [low, high] = median_interval(&Samples::new("split", split).unwrap(), &BOOTSTRAP).unwrap();
            (low..=high).contains(&100.0)
        });
        let covered = covered.count() as f64 / f64::from(trials);
        assert!(covered < 0.75, "{covered}");
    }

    #[test]
    fn equal_subjects_are_seldom_called_slower() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
        let slower = (0..200).filter(|_| {
            let (a, b) = (synthetic(&mut random, 30), synthetic(&mut random, 30));
            compare(&a, &b, &BOOTSTRAP).unwrap().is_slower()
        });
        // 2.5 % of 200 are expected.
        assert!(slower.count() <= 16);
    }

    prop_compose! {
        fn any_samples()(rounds in proptest::collection::vec(
            proptest::collection::vec(1e-3..1e6f64, 1..8), 2..12)) -> Samples {
            Samples::new("any", rounds).unwrap()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn percentiles_are_monotone_and_within_the_data(
            values in proptest::collection::vec(-1e9..1e9f64, 1..50), p in 0.0..100.0f64, q in 0.0..100.0f64,
        ) {
            let sorted = Sorted::new(values).unwrap();
            let (p, q) = (p.min(q), p.max(q));
            prop_assert!(sorted.percentile(p) <= sorted.percentile(q));
            prop_assert!(sorted.percentile(0.0) == sorted.values()[0]);
            prop_assert!(sorted.percentile(100.0) == *sorted.values().last().unwrap());
        }

        #[test]
        fn summaries_are_in_order(samples in any_samples()) {
            let s = Summary::of(&samples, &BOOTSTRAP).unwrap();
            prop_assert!(s.min_us <= s.p50_us && s.p50_us <= s.p99_us);
            prop_assert!(s.interval_us[0] <= s.p50_us && s.p50_us <= s.interval_us[1]);
            let max = samples.iter().fold(0.0, f64::max);
            prop_assert!(s.min_us <= s.interval_us[0] && s.interval_us[1] <= max);
            prop_assert!(s.min_us <= s.mean_us * (1.0 + 1e-12) && s.mean_us <= max * (1.0 + 1e-12));
            prop_assert_eq!(s, Summary::of(&samples, &BOOTSTRAP).unwrap());
        }

        #[test]
        fn the_median_of_all_rounds_is_the_median(samples in any_samples()) {
            let all: Vec<usize> = (0..samples.rounds().len()).rev().collect();
            prop_assert_eq!(median_of(&samples, &all, &mut vec![]), Sorted::of(&samples).median());
        }

        #[test]
        fn comparisons_turn_round(samples in any_samples(), factor in 0.1..10.0f64) {
            let scaled = samples.rounds().iter().map(|r| r.iter().map(|us| us * factor).collect());
            let scaled = Samples::new("scaled", scaled.collect()).unwrap();
            let there = compare(&scaled, &samples, &BOOTSTRAP).unwrap();
            // What slows every sample of both by the same factor leaves no noise in the ratio.
            prop_assert!((there.ratio / factor - 1.0).abs() < 1e-9);
            prop_assert!(there.interval.iter().all(|x| (x / factor - 1.0).abs() < 1e-9));
            let back = compare(&samples, &scaled, &BOOTSTRAP).unwrap();
            prop_assert!((back.ratio * there.ratio - 1.0).abs() < 1e-9);
        }

        #[test]
        fn a_wider_confidence_gives_a_wider_interval(samples in any_samples()) {
            let [a, b] = median_interval(&samples, &BOOTSTRAP).unwrap();
            let [c, d] = median_interval(&samples, &Bootstrap { confidence: 0.5, ..BOOTSTRAP }).unwrap();
            prop_assert!(a <= c && d <= b);
        }
    }
}
