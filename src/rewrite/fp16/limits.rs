//! The figures that decide what stays in float32.

/// The largest finite float16.
pub const LARGEST: f64 = 65504.0;
/// What a value of the calibration run may reach is [`LARGEST`] by this, since other inputs reach further.
pub const HEADROOM: f64 = 8.0;
/// The largest magnitude that a calibrated value may have in float16.
pub const LIMIT: f64 = LARGEST / HEADROOM;
/// The smallest normal float16, 2^-14: numbers below it have fewer digits, and from 2^-25 down none.
pub const SMALLEST_NORMAL: f64 = 1.0 / 16384.0;
/// Numbers up to this, 2^-25, round to zero.
pub(super) const VANISHES: f64 = SMALLEST_NORMAL / 2048.0;
/// Whole numbers up to this, 2^11, are exact.
pub const EXACT: f64 = 2048.0;
/// Elements that are added up in float16. Rounding after each of n additions errs by about sqrt(n) / 2048 of the sum,
/// if the device accumulates in float16, which ONNX leaves open: 0.8 % for 256.
pub const MOST_SUMMED: i64 = 256;
/// A weight of which more than this part of the nonzero elements vanishes is noted.
pub const NOTED_LOSS: f64 = 0.01;
/// Nodes between islands that join them, at most.
pub(super) const MOST_BETWEEN: usize = 16;
