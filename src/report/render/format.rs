//! Numbers for people.

/// Microseconds: `466`, `46.6`, `4.66`.
pub fn us(value: f64) -> String {
    digits(value)
}

/// A time with its interval: `466 (464–469)`.
pub fn us_interval(value: f64, interval: [f64; 2]) -> String {
    format!("{} ({}\u{2013}{})", us(value), us(interval[0]), us(interval[1]))
}

/// `1.43×`.
pub fn times(value: f64) -> String {
    format!("{value:.2}\u{d7}")
}

/// `+12.3 %` of 0.123.
pub fn percent(share: f64) -> String {
    format!("{:+.1} %", 100.0 * share)
}

/// Millions of bytes: `62.7`, `3869`.
pub fn mb(value: f64) -> String {
    digits(value)
}

/// A relative error: `7.3e-4`.
pub fn error(value: f64) -> String {
    if value == 0.0 { "0".into() } else { format!("{value:.1e}") }
}

/// A place on an axis: `0.6`, where the sum of steps would be 0.6000000000000001.
pub fn tick(value: f64) -> String {
    // Adding zero turns -0 into 0.
    format!("{}", (value * 1e6).round() / 1e6 + 0.0)
}

/// What is not there.
pub const NONE: &str = "\u{2013}";

pub fn or_none<T>(value: Option<T>, format: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), format)
}

/// Three significant digits, and all before the point.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 99.95 || v == 0.0 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(
            [us(3773.6), us(465.76), us(99.96), us(46.57), us(4.657), us(0.0)],
            ["3774", "466", "100", "46.6", "4.66", "0"]
        );
        assert_eq!([tick(3.0 * 0.2), tick(-0.0), tick(1500.0)], ["0.6", "0", "1500"]);
        assert_eq!(us_interval(465.76, [464.0, 469.2]), "466 (464–469)");
        assert_eq!(
            (times(1.4287), percent(-0.0123), error(7.3158e-4), error(0.0)),
            ("1.43×".into(), "-1.2 %".into(), "7.3e-4".into(), "0".into())
        );
    }
}
