//! Durations and sizes as the configuration writes them: a whole number and its unit, `50ms` or `256MiB`.

use crate::ConfigError;
use std::ops::RangeInclusive;
use std::time::Duration;

const DURATIONS: [(&str, u64); 3] = [("us", 1), ("ms", 1_000), ("s", 1_000_000)];
const SIZES: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A quantity that the configuration writes with a unit: [`Duration`] in `us`, `ms` or `s`; `u64` bytes in `KiB`, `MiB`
/// or `GiB`.
pub trait Quantity: Sized + Copy + PartialOrd {
    /// What it is, with its article.
    const WHAT: &'static str;
    /// An example of it.
    const EXAMPLE: &'static str;

    /// `None` when the text is none or does not fit.
    fn parse(text: &str) -> Option<Self>;

    /// The text that [`Quantity::parse`] reads back.
    fn show(self) -> String;

    /// Reads a plugin's key: `text` is the value found at `path`, and must be within `range`.
    fn parse_key(path: &[&str], text: &str, range: &RangeInclusive<Self>) -> Result<Self, ConfigError> {
        let value = Self::parse(text).ok_or_else(|| {
            let help = format!("write a whole number and its unit, for example \"{}\"", Self::EXAMPLE);
            ConfigError::bad_value(path, format!("{text:?} is not {}", Self::WHAT), Some(&help))
        })?;
        if !range.contains(&value) {
            let help = format!("it can be from {} to {}", range.start().show(), range.end().show());
            return Err(ConfigError::bad_value(path, format!("{text:?} is out of range"), Some(&help)));
        }
        Ok(value)
    }
}

impl Quantity for Duration {
    const WHAT: &'static str = "a duration";
    const EXAMPLE: &'static str = "50ms";

    fn parse(text: &str) -> Option<Duration> {
        scaled(text, &DURATIONS).map(Duration::from_micros)
    }

    fn show(self) -> String {
        shown(u64::try_from(self.as_micros()).unwrap_or(u64::MAX), &DURATIONS)
    }
}

impl Quantity for u64 {
    const WHAT: &'static str = "a size";
    const EXAMPLE: &'static str = "256MiB";

    fn parse(text: &str) -> Option<u64> {
        scaled(text, &SIZES)
    }

    fn show(self) -> String {
        shown(self, &SIZES)
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start_matches(' '))?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

/// In the largest unit that leaves a whole number.
fn shown(value: u64, units: &[(&str, u64)]) -> String {
    let fits = |scale: u64| value != 0 && value % scale == 0;
    let (unit, scale) = units.iter().rev().find(|(_, s)| fits(*s)).unwrap_or(&units[0]);
    format!("{}{unit}", value / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConfigProblem;

    #[test]
    fn quantities_are_read_and_shown() {
        for (text, micros) in [("50ms", 50_000), ("2s", 2_000_000), ("700us", 700), ("25 ms", 25_000)] {
            assert_eq!(Duration::parse(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for (text, bytes) in [("16MiB", 16 << 20), ("64GiB", 64 << 30), ("4KiB", 4096)] {
            assert_eq!(u64::parse(text), Some(bytes), "{text}");
            assert_eq!(bytes.show(), text);
        }
        assert_eq!(Duration::from_millis(1500).show(), "1500ms");
        assert_eq!(Duration::ZERO.show(), "0us");
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "ms",
            "5",
            "-5ms",
            "1.5s",
            "5MS",
            "5 m s",
            "99999999999999999999s",
            "18446744073709551615s",
            "５ms",
        ] {
            assert_eq!(Duration::parse(text), None, "{text:?}");
        }
        for text in ["256MB", "256", "256mib", "MiB", "18446744073709551615GiB"] {
            assert_eq!(u64::parse(text), None, "{text:?}");
        }
    }
    #[test]
    fn a_key_says_what_is_wrong_and_what_would_fit() {
        let range = 1 << 20..=64 << 30;
        assert_eq!(u64::parse_key(&["limit"], "1MiB", &range), Ok(1 << 20));
        assert_eq!(u64::parse_key(&["limit"], "64GiB", &range), Ok(64 << 30));
        for (text, says, helps) in [
            ("1023KiB", "\"1023KiB\" is out of range", "it can be from 1MiB to 64GiB"),
            ("65GiB", "\"65GiB\" is out of range", "it can be from 1MiB to 64GiB"),
            ("10", "\"10\" is not a size", "write a whole number and its unit, for example \"256MiB\""),
        ] {
            let error = u64::parse_key(&["a", "limit"], text, &range).unwrap_err();
            assert_eq!(error.path, ["a", "limit"]);
            let problem = ConfigProblem::BadValue { message: says.into(), help: Some(helps.into()) };
            assert_eq!(error.problem, problem);
        }
    }
}
