//! Timing several subjects against each other, and the statistics of it. Knows nothing of GPUs.
//!
//! [`interleave`] takes the samples in rounds, A B C then C A B and so on, so that drift of clocks and temperature falls
//! on all subjects alike; [`Samples`] keeps the rounds apart, since the samples of one round resemble each other; [`stats`]
//! summarizes and compares them with intervals that respect this.
//!
//! ```
//! use trt_opt::measure::{self, Plan, Subject, stats::Bootstrap};
//!
//! struct Sleepless(&'static str, f64);
//! impl Subject for Sleepless {
//!     fn name(&self) -> &str { self.0 }
//!     fn sample(&mut self) -> trt_opt::Result<f64> { Ok(self.1) }
//! }
//!
//! let (mut a, mut b) = (Sleepless("native", 676.0), Sleepless("fused", 466.0));
//! let samples = measure::interleave(&mut [&mut a, &mut b], &Plan::default())?;
//! let comparison = measure::stats::compare(&samples[1], &samples[0], &Bootstrap::default())?;
//! assert!(comparison.is_faster());
//! # Ok::<(), trt_opt::Error>(())
//! ```

pub mod stats;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Fewer rounds say nothing of the noise between rounds.
pub const MIN_ROUNDS: usize = 2;

/// Something that can be timed again and again.
pub trait Subject {
    fn name(&self) -> &str;

    /// Microseconds per inference of one timed sample.
    fn sample(&mut self) -> Result<f64>;
}

/// How the subjects take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Samples of every subject that are thrown away before the first round.
    pub warmup: usize,
    /// Samples that are thrown away at the start of every turn, so that the caches hold the subject's own data and not
    /// those of the subject before it.
    pub settle: usize,
    /// At least [`MIN_ROUNDS`]; intervals are trustworthy from about 20 on.
    pub rounds: usize,
    /// Samples that every subject contributes to a round.
    pub per_round: usize,
    /// Of the order within rounds.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { warmup: 50, settle: 2, rounds: 30, per_round: 20, seed: 0 }
    }
}

impl Plan {
    fn check(&self) -> Result<()> {
        if self.rounds < MIN_ROUNDS || self.per_round == 0 {
            return Err(Error::Usage(format!(
                "a measurement needs {MIN_ROUNDS} rounds or more of 1 sample or more, and was asked for {} rounds of {}",
                self.rounds, self.per_round
            )));
        }
        Ok(())
    }
}

/// The samples of one subject in microseconds, by round: at least [`MIN_ROUNDS`] rounds, none empty, every sample finite
/// and above zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Samples {
    name: String,
    rounds: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Unchecked {
    name: String,
    rounds: Vec<Vec<f64>>,
}

impl TryFrom<Unchecked> for Samples {
    type Error = Error;

    fn try_from(samples: Unchecked) -> Result<Self> {
        Self::new(samples.name, samples.rounds)
    }
}

impl Samples {
    pub fn new(name: impl Into<String>, rounds: Vec<Vec<f64>>) -> Result<Self> {
        let name = name.into();
        let refuse = |what: String| Err(Error::invalid(format!("samples of '{name}'"), what));
        if rounds.len() < MIN_ROUNDS {
            return refuse(format!("{} rounds, expected {MIN_ROUNDS} or more", rounds.len()));
        }
        for (r, round) in rounds.iter().enumerate() {
            if round.is_empty() {
                return refuse(format!("round {r} is empty"));
            }
            for (i, &us) in round.iter().enumerate() {
                if !(us.is_finite() && us > 0.0) {
                    return refuse(format!("sample {i} of round {r} is {us} us, expected a finite time above 0"));
                }
            }
        }
        Ok(Self { name, rounds })
    }

    /// Of the subject.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn rounds(&self) -> &[Vec<f64>] {
        &self.rounds
    }

    /// All samples in the order they were taken.
    pub fn iter(&self) -> impl Iterator<Item = f64> {
        self.rounds.iter().flatten().copied()
    }
}

/// Takes the samples of all subjects, in the order of the subjects.
///
/// In every block of as many rounds as there are subjects each subject comes once at each place of a round, and blocks
/// are shuffled anew: neither the place nor the predecessor of a subject has a systematic effect.
pub fn interleave(subjects: &mut [&mut dyn Subject], plan: &Plan) -> Result<Vec<Samples>> {
    interleave_with(subjects, plan, &mut |_| {})
}

/// [`interleave`], and calls `progress` with the number of rounds done after each.
pub fn interleave_with(
    subjects: &mut [&mut dyn Subject],
    plan: &Plan,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Samples>> {
    plan.check()?;
    for subject in subjects.iter_mut() {
        for _ in 0..plan.warmup {
            subject.sample()?;
        }
    }
    let mut taken: Vec<Vec<Vec<f64>>> = vec![Vec::with_capacity(plan.rounds); subjects.len()];
    for (done, order) in orders(subjects.len(), plan.rounds, plan.seed).into_iter().enumerate() {
        for at in order {
            let subject = &mut subjects[at];
            for _ in 0..plan.settle {
                subject.sample()?;
            }
            taken[at].push((0..plan.per_round).map(|_| subject.sample()).collect::<Result<_>>()?);
        }
        progress(done + 1);
    }
    subjects.iter().zip(taken).map(|(subject, rounds)| Samples::new(subject.name(), rounds)).collect()
}

/// The order of the subjects in every round.
fn orders(subjects: usize, rounds: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut orders = vec![];
    while subjects > 0 && orders.len() < rounds {
        let mut first: Vec<usize> = (0..subjects).collect();
        first.shuffle(&mut random);
        // The rotations of one order, in shuffled order themselves, give every subject every place once.
        let mut rotations: Vec<usize> = (0..subjects).collect();
        rotations.shuffle(&mut random);
        // Backwards as often as forwards, or a subject would keep its predecessor for a whole block.
        orders.extend(rotations.into_iter().map(|by| {
            let mut order = first.clone();
            order.rotate_left(by);
            order
        }));
        if random.random() {
            let start = orders.len() - subjects;
            orders[start..].iter_mut().for_each(|order| order.reverse());
        }
    }
    orders.truncate(rounds);
    orders
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// Tells the log of its every sample, and gives its values in turn.
    struct Scripted {
        name: &'static str,
        values: Box<dyn Iterator<Item = Result<f64>>>,
        log: Rc<RefCell<String>>,
    }

    impl Subject for Scripted {
        fn name(&self) -> &str {
            self.name
        }

        fn sample(&mut self) -> Result<f64> {
            self.log.borrow_mut().push_str(self.name);
            self.values.next().expect("enough values")
        }
    }

    fn counting(name: &'static str, log: &Rc<RefCell<String>>) -> Scripted {
        Scripted { name, values: Box::new((1..).map(|i| Ok(f64::from(i)))), log: log.clone() }
    }

    const PLAN: Plan = Plan { warmup: 2, settle: 1, rounds: 3, per_round: 2, seed: 7 };

    #[test]
    fn rounds_are_interleaved_and_what_is_not_measured_is_dropped() {
        let log = Rc::new(RefCell::new(String::new()));
        let (mut a, mut b, mut c) = (counting("A", &log), counting("B", &log), counting("C", &log));
        let mut done = vec![];
        let samples = interleave_with(&mut [&mut a, &mut b, &mut c], &PLAN, &mut |rounds| done.push(rounds)).unwrap();
        assert_eq!(done, [1, 2, 3]);
        for (samples, name) in samples.iter().zip(["A", "B", "C"]) {
            assert_eq!(samples.name(), name);
            // 1 and 2 warm up; 3, 6 and 9 are the first of a turn.
            assert_eq!(samples.rounds(), [[4.0, 5.0], [7.0, 8.0], [10.0, 11.0]]);
            assert_eq!(samples.iter().count(), 6);
        }
        let log = log.borrow();
        let (warmup, rounds) = log.split_at(6);
        assert_eq!(warmup, "AABBCC");
        for round in rounds.as_bytes().chunks(9) {
            let mut turns: Vec<&[u8]> = round.chunks(3).collect();
            assert!(turns.iter().all(|t| t[0] == t[1] && t[1] == t[2]), "{log}");
            turns.sort();
            assert_eq!(turns.concat(), b"AAABBBCCC", "{log}");
        }
    }

    #[test]
    fn every_subject_has_every_place_equally_often() {
        for subjects in 1..7 {
            let orders = orders(subjects, subjects * 10, 3);
            for place in 0..subjects {
                for subject in 0..subjects {
                    let count = orders.iter().filter(|order| order[place] == subject).count();
                    assert_eq!(count, 10, "subject {subject} at place {place} of {subjects}");
                }
            }
        }
    }

    #[test]
    fn every_subject_follows_every_other() {
        let orders = orders(4, 80, 5);
        for a in 0..4 {
            for b in (0..4).filter(|b| *b != a) {
                let count = orders.iter().flat_map(|o| o.windows(2)).filter(|w| *w == [a, b]).count();
                // 80 rounds have 240 neighbours, 20 for each of the 12 pairs.
                assert!((5..=40).contains(&count), "{b} follows {a} {count} times");
            }
        }
    }

    #[test]
    fn orders_depend_on_the_seed_alone() {
        assert_eq!(orders(5, 17, 1), orders(5, 17, 1));
        assert_ne!(orders(5, 17, 1), orders(5, 17, 2));
        assert_eq!(orders(5, 17, 1).len(), 17);
        assert!(orders(0, 3, 1).is_empty());
    }

    #[test]
    fn times_that_cannot_be_are_refused() {
        for (bad, word) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (0.0, "0 us"), (-1.0, "-1 us")] {
            let log = Rc::default();
            let mut a = counting("A", &log);
            let values = (0..).map(move |i| Ok(if i == 7 { bad } else { 1.0 }));
            let mut b = Scripted { name: "B", values: Box::new(values), log };
            let error = interleave(&mut [&mut a, &mut b], &PLAN).unwrap_err().to_string();
            assert!(error.starts_with("samples of 'B': sample 1 of round 1 is ") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn an_error_of_a_subject_ends_the_measurement() {
        let log = Rc::default();
        let mut a = counting("A", &log);
        let values = [Ok(1.0), Err(Error::Usage("the device is gone".into()))];
        let mut b = Scripted { name: "B", values: Box::new(values.into_iter()), log };
        let error = interleave(&mut [&mut a, &mut b], &PLAN).unwrap_err();
        assert_eq!(error.to_string(), "the device is gone");
    }

    #[test]
    fn plans_without_rounds_or_samples_are_refused() {
        for plan in [Plan { rounds: 1, ..PLAN }, Plan { rounds: 0, ..PLAN }, Plan { per_round: 0, ..PLAN }] {
            let error = interleave(&mut [], &plan).unwrap_err();
            assert!(matches!(&error, Error::Usage(text) if text.contains("2 rounds or more")), "{error}");
        }
        assert!(interleave(&mut [], &PLAN).unwrap().is_empty());
    }

    #[test]
    fn samples_are_checked_when_they_are_read() {
        let samples = Samples::new("a", vec![vec![1.0, 2.5], vec![3.0]]).unwrap();
        let json = serde_json::to_string(&samples).unwrap();
        assert_eq!(json, r#"{"name":"a","rounds":[[1.0,2.5],[3.0]]}"#);
        assert_eq!(serde_json::from_str::<Samples>(&json).unwrap(), samples);
        for (bad, why) in [
            (r#"{"name":"a","rounds":[[1.0]]}"#, "1 rounds, expected 2 or more"),
            (r#"{"name":"a","rounds":[[1.0],[]]}"#, "round 1 is empty"),
            (r#"{"name":"a","rounds":[[1.0],[-2.0]]}"#, "sample 0 of round 1 is -2 us"),
        ] {
            let error = serde_json::from_str::<Samples>(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
