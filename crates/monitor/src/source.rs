//! Where rules, insight and pages read samples from: the history, or what a test makes up.

use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::selector::Selector;
use crate::series::{Kind, SeriesId, SeriesKey, Unit};

/// A stretch of time by the wall clock: after `from_ms`, up to and with `to_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Milliseconds since 1970; a sample at this very moment is outside.
    pub from_ms: i64,
    /// Milliseconds since 1970; a sample at this very moment is inside.
    pub to_ms: i64,
}

impl Window {
    /// Returns the window of so many milliseconds that ends at `to_ms`.
    #[must_use]
    pub fn ending(to_ms: i64, length_ms: i64) -> Self {
        Self { from_ms: to_ms.saturating_sub(length_ms), to_ms }
    }

    /// Returns how many milliseconds long it is.
    #[must_use]
    pub fn length_ms(self) -> i64 {
        self.to_ms.saturating_sub(self.from_ms)
    }
}

/// What to make of the samples of a window.
///
/// Samples of several series are pooled: the least of all, the mean of all. `Rate`, `Delta`, `Sum` and
/// `Count` of several series add up, `Last` is the mean of the last samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aggregate {
    /// The last sample; of a histogram the number of values up to then.
    Last,
    /// The mean; of a histogram the mean of the values that were recorded in the window.
    Avg,
    /// The least.
    Min,
    /// The greatest.
    Max,
    /// The sum; of a histogram that of the values recorded in the window.
    Sum,
    /// How many samples; of a histogram how many values were recorded in the window.
    Count,
    /// The standard deviation of the samples.
    Stddev,
    /// Growth in a second: of a counter over its resets, of a histogram that of its count, of a gauge the
    /// difference of last and first by their distance.
    Rate,
    /// Growth over the window, as `Rate` counts it.
    Delta,
    /// The quantile from 0 to 1 of the samples, or of the values that a histogram recorded in the window.
    Quantile(f64),
}

impl Aggregate {
    /// Returns its word, as rules and queries have it: `avg`, `p95`, `p999`.
    #[must_use]
    pub fn word(self) -> String {
        let word = match self {
            Self::Last => "last",
            Self::Avg => "avg",
            Self::Min => "min",
            Self::Max => "max",
            Self::Sum => "sum",
            Self::Count => "count",
            Self::Stddev => "stddev",
            Self::Rate => "rate",
            Self::Delta => "delta",
            Self::Quantile(share) => {
                let digits = format!("{share:.4}");
                if digits.starts_with('1') {
                    return "p100".to_owned();
                }
                let digits = digits.trim_start_matches("0.").trim_end_matches('0');
                return format!("p{digits:0<2}");
            }
        };
        word.to_owned()
    }
}

/// A word that names no aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected last, avg, min, max, sum, count, stddev, rate, delta or a percentile such as p95"
)]
pub struct UnknownAggregate;

impl FromStr for Aggregate {
    type Err = UnknownAggregate;

    fn from_str(word: &str) -> Result<Self, UnknownAggregate> {
        Ok(match word {
            "last" => Self::Last,
            "avg" => Self::Avg,
            "min" => Self::Min,
            "max" => Self::Max,
            "sum" => Self::Sum,
            "count" => Self::Count,
            "stddev" => Self::Stddev,
            "rate" => Self::Rate,
            "delta" => Self::Delta,
            "p100" => Self::Quantile(1.0),
            other => {
                let digits = other.strip_prefix('p').ok_or(UnknownAggregate)?;
                let is_share = (2..=4).contains(&digits.len())
                    && digits.bytes().all(|digit| digit.is_ascii_digit());
                let share = is_share.then(|| format!("0.{digits}").parse().ok()).flatten();
                Self::Quantile(share.ok_or(UnknownAggregate)?)
            }
        })
    }
}

/// As its word.
impl Serialize for Aggregate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.word())
    }
}

impl<'de> Deserialize<'de> for Aggregate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What an aggregate came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// The value, in the unit of the metric (a second less for `Rate`).
    pub value: f64,
    /// Samples that were there.
    pub samples: u32,
    /// Samples that would be there if none were missing.
    pub expected: u32,
}

/// A series that a selector found.
#[derive(Debug, Clone)]
pub struct Matched {
    /// Its number.
    pub id: SeriesId,
    /// Its name and labels.
    pub key: Arc<SeriesKey>,
    /// What its values mean.
    pub kind: Kind,
    /// The unit of its values.
    pub unit: Unit,
}

/// Samples of many series.
pub trait Source: Send + Sync {
    /// Changes whenever a series comes or goes, so that callers may keep what [`matching`](Self::matching) found.
    fn generation(&self) -> u64;

    /// Returns the series that a selector matches, in the order of their keys.
    fn matching(&self, selector: &Selector) -> Vec<Matched>;

    /// Returns what the samples of some series in a window come to, nothing if there are none.
    ///
    /// A rate needs two samples of a series. Series that are not known are passed over.
    fn aggregate(
        &self,
        series: &[SeriesId],
        window: Window,
        aggregate: Aggregate,
    ) -> Option<Reading>;

    /// Returns an aggregate for each step of a window; the last step ends at `to_ms`.
    ///
    /// A step without samples is `None`. The window is cut into `length / step` steps, rounded up.
    fn range(
        &self,
        series: &[SeriesId],
        window: Window,
        step_ms: i64,
        aggregate: Aggregate,
    ) -> Vec<Option<f64>>;
}
