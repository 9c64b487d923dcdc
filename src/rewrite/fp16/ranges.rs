//! What a calibration run saw.

use std::collections::HashMap;

/// The elements of one value, over a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    /// The largest finite magnitude.
    pub max_abs: f32,
    /// Every element is a whole number.
    pub whole: bool,
    pub nan: bool,
}

impl Range {
    pub fn of(values: &[f32]) -> Self {
        let mut range = Self { max_abs: 0.0, whole: true, nan: false };
        for value in values {
            let magnitude = value.abs();
            if magnitude.is_finite() {
                range.max_abs = range.max_abs.max(magnitude);
                range.whole &= magnitude.fract() == 0.0;
            } else {
                range.nan |= magnitude.is_nan();
            }
        }
        range
    }
}

/// Ranges of the float32 values of a model by name, from a run of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranges {
    /// What it was run on, for the ledger: `random inputs, seed 0`, or a file's name.
    pub source: String,
    values: HashMap<String, Range>,
}

impl Ranges {
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), values: HashMap::new() }
    }

    pub fn insert(&mut self, value: &str, range: Range) {
        self.values.insert(value.to_owned(), range);
    }

    pub fn get(&self, value: &str) -> Option<Range> {
        self.values.get(value).copied()
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_do_not_count_and_nan_is_told() {
        let range = Range::of(&[1.0, -3.0, f32::NEG_INFINITY]);
        assert_eq!(range, Range { max_abs: 3.0, whole: true, nan: false });
        assert_eq!(Range::of(&[0.5, f32::NAN]), Range { max_abs: 0.5, whole: false, nan: true });
        assert_eq!(Range::of(&[]).max_abs, 0.0);
    }
}
