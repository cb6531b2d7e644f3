//! Sizes and durations as people write them: `64MiB`, `1.5GB`, `250ms`, `1h30m`.
//!
//! Numbers are read as fixed-point integers, never as floats, so what is printed reads back as the
//! same value.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Serialize, Serializer};

/// Longest duration that is accepted: a clock can be moved on by it without overflow.
pub(super) const LONGEST: Duration = Duration::from_secs(36_500 * DAY);

const DAY: u64 = 24 * 60 * 60;

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Largest first, which is also the order in which a duration must name them.
const TIME_UNITS: [(&str, u128); 7] = [
    ("d", DAY as u128 * 1_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Counts bytes; reads and prints `64MiB`, `1GB`, `512B`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// Makes a size of `bytes`.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Makes a size of `n` KiB.
    #[must_use]
    pub const fn kib(n: u32) -> Self {
        Self((n as u64) << 10)
    }

    /// Makes a size of `n` MiB.
    #[must_use]
    pub const fn mib(n: u32) -> Self {
        Self((n as u64) << 20)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the number of bytes, or the largest `usize` where it does not fit.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = SIZE_UNITS
            .into_iter()
            .find(|(_, scale)| self.0 != 0 && self.0.is_multiple_of(*scale))
            .unwrap_or(("B", 1));
        f.pad(&format!("{}{unit}", self.0 / scale))
    }
}

impl FromStr for ByteSize {
    type Err = ParseQuantityError;

    /// Reads a number with an optional unit; without one it counts bytes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = ParseQuantityError::Size;
        let (number, unit) = Number::scan(text.trim()).ok_or(malformed)?;
        let unit = unit.trim_start();
        let scale = match unit {
            "" => 1,
            _ => SIZE_UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, scale)| *scale)
                .ok_or(malformed)?,
        };
        let bytes = number.times(u128::from(scale)).ok_or(ParseQuantityError::SizeRange)?;
        u64::try_from(bytes).map(Self).map_err(|_| ParseQuantityError::SizeRange)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads a duration such as `30s`, `1h30m`, `1.5s` or `250ms`.
///
/// The units are `d`, `h`, `m`, `s`, `ms`, `us` and `ns`, each at most once and from the largest to
/// the smallest. A number needs its unit; only `0` may stand alone.
///
/// # Errors
///
/// When the text has another form, or means more than 36,500 days.
pub fn parse_duration(text: &str) -> Result<Duration, ParseQuantityError> {
    let malformed = ParseQuantityError::Duration;
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut units = TIME_UNITS.as_slice();
    let mut nanos = 0_u128;
    loop {
        let (number, after) = Number::scan(rest).ok_or(malformed)?;
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let at = units.iter().position(|(name, _)| *name == &after[..end]).ok_or(malformed)?;
        nanos = number
            .times(units[at].1)
            .and_then(|part| nanos.checked_add(part))
            .filter(|total| *total <= LONGEST.as_nanos())
            .ok_or(ParseQuantityError::DurationRange)?;
        units = &units[at + 1..];
        rest = after[end..].trim_start();
        if rest.is_empty() {
            let seconds = u64::try_from(nanos / 1_000_000_000).expect("LONGEST fits");
            let subsecond = u32::try_from(nanos % 1_000_000_000).expect("a remainder of 10^9");
            return Ok(Duration::new(seconds, subsecond));
        }
    }
}

/// Prints a duration in the form that [`parse_duration`] reads.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    if duration.is_zero() {
        return "0s".to_owned();
    }
    let mut text = String::new();
    let mut rest = duration.as_nanos();
    for (name, scale) in TIME_UNITS {
        if rest >= scale {
            text.push_str(&(rest / scale).to_string());
            text.push_str(name);
            rest %= scale;
        }
    }
    text
}

/// Says why a text is no size or no duration, in the words of what would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseQuantityError {
    /// The text has not the form of a size.
    #[error("must be a size such as \"64MiB\" or \"1GB\"")]
    Size,
    /// The size needs more than 64 bits.
    #[error("must be a size of less than 16777216TiB")]
    SizeRange,
    /// The text has not the form of a duration.
    #[error("must be a duration with a unit, such as \"30s\", \"250ms\" or \"1h30m\"")]
    Duration,
    /// The duration is longer than any use.
    #[error("must be a duration of at most 36500d")]
    DurationRange,
}

/// `mantissa / 10^decimals`.
struct Number {
    mantissa: u128,
    decimals: u32,
}

impl Number {
    /// Takes a decimal number off the front of `text`; 18 digits before and 9 after the point.
    fn scan(text: &str) -> Option<(Self, &str)> {
        let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (whole, rest) = text.split_at(digits(text));
        let (fraction, rest) = match rest.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", rest),
        };
        let point_without_digits = text[whole.len()..].starts_with('.') && fraction.is_empty();
        if whole.is_empty() || point_without_digits || whole.len() > 20 || fraction.len() > 9 {
            return None;
        }
        let mantissa = format!("{whole}{fraction}").parse().ok()?;
        Some((Self { mantissa, decimals: u32::try_from(fraction.len()).ok()? }, rest))
    }

    fn times(&self, scale: u128) -> Option<u128> {
        Some(self.mantissa.checked_mul(scale)? / 10_u128.pow(self.decimals))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        for (text, bytes) in [
            ("512", 512),
            ("512B", 512),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("1GB", 1_000_000_000),
            ("1.5GiB", 3 << 29),
            ("0", 0),
            ("16777215TiB", 16_777_215 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize::new(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_so() {
        for text in ["", "MiB", "-1", "64M", "1.MiB", ".5MiB", "1 2", "1e3", "64MiBs", "६"] {
            assert_eq!(text.parse::<ByteSize>(), Err(ParseQuantityError::Size), "{text}");
        }
        for text in ["16777216TiB", "18446744073709551616"] {
            assert_eq!(text.parse::<ByteSize>(), Err(ParseQuantityError::SizeRange), "{text}");
        }
    }

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("250ms", 250),
            ("5m", 300_000),
            ("1.5s", 1_500),
            ("2d", 172_800_000),
            ("36500d", 36_500 * 86_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_says_so() {
        for text in ["", "30", "s", "1m1h", "5m5m", "-1s", "1y", "30 seconds", "1h30", "∞"] {
            assert_eq!(parse_duration(text), Err(ParseQuantityError::Duration), "{text}");
        }
        for text in ["36501d", "36500d1ns", "99999999999999999999d"] {
            assert_eq!(parse_duration(text), Err(ParseQuantityError::DurationRange), "{text}");
        }
    }

    #[test]
    fn the_largest_fitting_unit_is_printed() {
        for (bytes, text) in [(0, "0B"), (1 << 20, "1MiB"), (1500, "1500B"), (3_000_000, "3MB")] {
            assert_eq!(ByteSize::new(bytes).to_string(), text);
        }
        assert_eq!(format_duration(Duration::from_millis(5_400_250)), "1h30m250ms");
        assert_eq!(format_duration(Duration::ZERO), "0s");
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back(bytes in any::<u64>(), shift in 0_u32..50, tens in 0_u32..13) {
            for bytes in [bytes, bytes >> shift << shift, (bytes >> 44) * 10_u64.pow(tens.min(12))] {
                let size = ByteSize::new(bytes);
                prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
            }
        }

        #[test]
        fn a_printed_duration_reads_back(seconds in 0_u64..36_500 * DAY, nanos in 0_u32..1_000_000_000) {
            for duration in [Duration::new(seconds, nanos), Duration::from_secs(seconds)] {
                prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*|[0-9.]{0,30}[a-zA-Z ]{0,4}") {
            let _ = text.parse::<ByteSize>();
            let _ = parse_duration(&text);
        }
    }
}
