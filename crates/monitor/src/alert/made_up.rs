//! Samples that somebody made up, for tests of rules: plain vectors, read the simplest way there is.
//!
//! It computes every aggregate straight from its definition, which makes it the oracle for sources that are
//! fast. [`expand`] reads series in the notation of Prometheus' `promtool test rules`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::selector::Selector;
use crate::series::{Kind, Labels, SeriesId, SeriesKey, Unit};
use crate::source::{Aggregate, Matched, Reading, Source, Window};

/// Samples of one line of the notation at most.
const EXPANDED_MAX: usize = 1_000_000;

/// Made-up numbers: gauges and counters, without distributions.
#[derive(Debug, Clone)]
pub struct MadeUp {
    series: Vec<(Matched, Vec<(i64, f64)>)>,
    step_ms: i64,
    generation: u64,
}

impl Default for MadeUp {
    fn default() -> Self {
        Self::new()
    }
}

impl MadeUp {
    /// Makes a source without series, with a sample expected each second.
    #[must_use]
    pub fn new() -> Self {
        Self { series: Vec::new(), step_ms: 1_000, generation: 0 }
    }

    /// Sets how often a sample is expected, in milliseconds, at least one.
    #[must_use]
    pub fn step_ms(mut self, step_ms: i64) -> Self {
        self.step_ms = step_ms.max(1);
        self
    }

    /// Adds samples of a gauge: `(unix_ms, value)`.
    pub fn gauge(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        samples: impl IntoIterator<Item = (i64, f64)>,
    ) -> SeriesId {
        let labels = Labels::new(labels.iter().copied());
        self.add(SeriesKey { name: name.into(), labels }, Kind::Gauge, samples)
    }

    /// Adds samples of a counter: `(unix_ms, total)`.
    pub fn counter(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        samples: impl IntoIterator<Item = (i64, f64)>,
    ) -> SeriesId {
        let labels = Labels::new(labels.iter().copied());
        self.add(SeriesKey { name: name.into(), labels }, Kind::Counter, samples)
    }

    /// Adds samples to a series, which is made if it is not there.
    pub fn add(
        &mut self,
        key: SeriesKey,
        kind: Kind,
        samples: impl IntoIterator<Item = (i64, f64)>,
    ) -> SeriesId {
        let at = self.series.iter().position(|(matched, _)| *matched.key == key);
        let at = at.unwrap_or_else(|| {
            self.generation += 1;
            let id = SeriesId(u32::try_from(self.series.len()).expect("fewer series than that"));
            let matched = Matched { id, key: Arc::new(key), kind, unit: Unit::None };
            self.series.push((matched, Vec::new()));
            self.series.len() - 1
        });
        let (matched, kept) = &mut self.series[at];
        kept.extend(samples);
        kept.sort_by_key(|(at, _)| *at);
        matched.id
    }

    /// Drops the samples of a series, and lists it no more.
    pub fn remove(&mut self, key: &SeriesKey) {
        if let Some((_, samples)) = self.series.iter_mut().find(|(matched, _)| *matched.key == *key)
        {
            samples.clear();
            self.generation += 1;
        }
    }

    fn samples(&self, id: SeriesId, window: Window) -> (Kind, &[(i64, f64)]) {
        let Some((matched, samples)) = self.series.get(id.0 as usize) else {
            return (Kind::Gauge, &[]);
        };
        let from = samples.partition_point(|(at, _)| *at <= window.from_ms);
        let to = samples.partition_point(|(at, _)| *at <= window.to_ms);
        (matched.kind, &samples[from..to.max(from)])
    }
}

impl Source for MadeUp {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn matching(&self, selector: &Selector) -> Vec<Matched> {
        let listed = self.series.iter().filter(|(_, samples)| !samples.is_empty());
        let mut found: Vec<Matched> = listed
            .filter(|(matched, _)| selector.matches(&matched.key))
            .map(|(matched, _)| matched.clone())
            .collect();
        found.sort_by(|left, right| left.key.cmp(&right.key));
        found
    }

    fn aggregate(
        &self,
        series: &[SeriesId],
        window: Window,
        aggregate: Aggregate,
    ) -> Option<Reading> {
        let expected = window.length_ms() / self.step_ms * series.len() as i64;
        let expected = u32::try_from(expected.max(1)).unwrap_or(u32::MAX);
        let parts = series.iter().map(|&id| self.samples(id, window));
        let parts: Vec<_> = parts.filter(|(_, samples)| !samples.is_empty()).collect();
        let samples: usize = parts.iter().map(|(_, samples)| samples.len()).sum();
        let value = value(&parts, aggregate)?;
        Some(Reading { value, samples: samples as u32, expected })
    }

    fn range(
        &self,
        series: &[SeriesId],
        window: Window,
        step_ms: i64,
        aggregate: Aggregate,
    ) -> Vec<Option<f64>> {
        let step_ms = step_ms.max(1);
        let steps = (window.length_ms().max(0) + step_ms - 1) / step_ms;
        let end = |at: i64| window.to_ms - (steps - 1 - at) * step_ms;
        let of = |at: i64| {
            let step = Window::ending(end(at), step_ms);
            let step = Window { from_ms: step.from_ms.max(window.from_ms), ..step };
            self.aggregate(series, step, aggregate).map(|reading| reading.value)
        };
        (0..steps).map(of).collect()
    }
}

/// Computes an aggregate of the samples of several series, none of them empty.
fn value(parts: &[(Kind, &[(i64, f64)])], aggregate: Aggregate) -> Option<f64> {
    let all = || parts.iter().flat_map(|(_, samples)| samples.iter().map(|(_, value)| *value));
    let count = parts.iter().map(|(_, samples)| samples.len()).sum::<usize>() as f64;
    if parts.is_empty() {
        return None;
    }
    let mean = || all().sum::<f64>() / count;
    Some(match aggregate {
        Aggregate::Last => {
            let lasts = parts.iter().filter_map(|(_, samples)| samples.last());
            lasts.map(|(_, value)| value).sum::<f64>() / parts.len() as f64
        }
        Aggregate::Avg => mean(),
        Aggregate::Min => all().fold(f64::INFINITY, f64::min),
        Aggregate::Max => all().fold(f64::NEG_INFINITY, f64::max),
        Aggregate::Sum => all().sum(),
        Aggregate::Count => count,
        Aggregate::Stddev => {
            let mean = mean();
            (all().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt()
        }
        Aggregate::Rate | Aggregate::Delta => {
            let growths = parts.iter().filter_map(|(kind, samples)| growth(*kind, samples));
            let per_second = aggregate == Aggregate::Rate;
            let of = |(growth, seconds)| if per_second { growth / seconds } else { growth };
            growths.map(of).reduce(|sum: f64, growth| sum + growth)?
        }
        Aggregate::Quantile(share) => {
            let mut sorted: Vec<f64> = all().collect();
            sorted.sort_by(f64::total_cmp);
            let rank = share.clamp(0.0, 1.0) * (count - 1.0);
            let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
            low + (high - low) * rank.fract()
        }
    })
}

/// Returns how much a series grew and in how many seconds; it needs two samples.
fn growth(kind: Kind, samples: &[(i64, f64)]) -> Option<(f64, f64)> {
    let (first, last) = (samples.first()?, samples.last()?);
    let seconds = (last.0 - first.0) as f64 / 1e3;
    if seconds <= 0.0 {
        return None;
    }
    let growth = match kind {
        Kind::Gauge => last.1 - first.1,
        Kind::Counter | Kind::Histogram => samples
            .windows(2)
            // A counter that fell began anew at zero.
            .map(|pair| if pair[1].1 < pair[0].1 { pair[1].1 } else { pair[1].1 - pair[0].1 })
            .sum(),
    };
    Some((growth, seconds))
}

/// Expands a series in the notation of promtool: `0x30 1+0.1x60 _x5`.
///
/// `axn` is the value `a` and `n` more of it, `a+bxn` begins at `a` and grows `n` times by `b`, `_` is a
/// missing sample and `_xn` are `n` of them. Source: Prometheus, "Unit testing for rules".
///
/// # Errors
///
/// Which word is wrong, and what would be right.
pub fn expand(text: &str) -> Result<Vec<Option<f64>>, String> {
    let mut samples = Vec::new();
    for word in text.split_whitespace() {
        let wrong = || format!("`{word}`: expected a value such as 5, 0x30, 1+0.1x60, _ or _x5");
        let room = || format!("`{word}`: expected at most {EXPANDED_MAX} samples in all");
        let (start, times) = match word.rsplit_once('x') {
            Some((start, times)) => (start, Some(times.parse::<usize>().map_err(|_| wrong())?)),
            None => (word, None),
        };
        if times.unwrap_or(0) >= EXPANDED_MAX - samples.len().min(EXPANDED_MAX) {
            return Err(room());
        }
        if start == "_" {
            samples.extend(std::iter::repeat_n(None, times.unwrap_or(1)));
            continue;
        }
        // The sign between the two numbers, not one that begins a number or its exponent.
        let sign = start.char_indices().skip(1).find(|&(at, sign)| {
            matches!(sign, '+' | '-') && !start[..at].ends_with(['e', 'E', '+', '-'])
        });
        let number = |text: &str| {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
            number.ok_or_else(wrong)
        };
        let (first, growth) = match sign {
            Some((at, '-')) => (number(&start[..at])?, -number(&start[at + 1..])?),
            Some((at, _)) => (number(&start[..at])?, number(&start[at + 1..])?),
            None => (number(start)?, 0.0),
        };
        if sign.is_some() && times.is_none() {
            return Err(wrong());
        }
        let steps = 0..=times.unwrap_or(0);
        samples.extend(steps.map(|step| Some(first + growth * step as f64)));
    }
    Ok(samples)
}

/// Makes up a source of series in the notation of promtool, each named by its selector.
pub(super) fn source_of(
    series: &BTreeMap<String, Vec<Option<f64>>>,
    step_ms: i64,
) -> Result<MadeUp, String> {
    let mut source = MadeUp::new().step_ms(step_ms);
    for (name, samples) in series {
        let key = key(name)?;
        let kind = match ["_total", "_count", "_sum"].iter().any(|end| key.name.ends_with(end)) {
            true => Kind::Counter,
            false => Kind::Gauge,
        };
        let at = |step: usize| (step as i64).saturating_mul(step_ms);
        let samples = samples.iter().enumerate();
        source.add(key, kind, samples.filter_map(|(step, value)| Some((at(step), (*value)?))));
    }
    Ok(source)
}

/// Reads the name of a series: a selector whose matchers all are `=`.
fn key(text: &str) -> Result<SeriesKey, String> {
    let selector = Selector::parse(text).map_err(|error| error.to_string())?;
    let mut labels = Vec::new();
    for matcher in &selector.matchers {
        if matcher.comparison() != crate::selector::Comparison::Equal {
            return Err(format!("`{matcher}`: a series has labels, expected `=`"));
        }
        labels.push((matcher.label(), matcher.value()));
    }
    Ok(SeriesKey { name: selector.name, labels: Labels::new(labels) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notation_of_promtool_is_understood() {
        let check =
            |text, expected: &[Option<f64>]| assert_eq!(expand(text).as_deref(), Ok(expected));
        check("5", &[Some(5.0)]);
        check("1x2", &[Some(1.0); 3]);
        check("1+0.5x2 _x2 7", &[Some(1.0), Some(1.5), Some(2.0), None, None, Some(7.0)]);
        check("-2-1x1 1e-3", &[Some(-2.0), Some(-3.0), Some(0.001)]);
        for text in ["a", "1+2", "1x", "1xx", "infx3", "x3", "1x99999999", "1+ax2"] {
            assert!(expand(text).is_err(), "{text}");
        }
    }

    #[test]
    fn aggregates_follow_their_definitions() {
        let mut source = MadeUp::new();
        let a = source.gauge("g", &[("i", "a")], [(0, 9.0), (1_000, 1.0), (2_000, 3.0)]);
        let b = source.gauge("g", &[("i", "b")], [(1_000, 5.0), (2_000, 7.0)]);
        let c = source.counter("c_total", &[], [(0, 10.0), (1_000, 14.0), (2_000, 1.0)]);
        let window = Window { from_ms: 0, to_ms: 2_000 };
        let value = |ids: &[SeriesId], aggregate| {
            source.aggregate(ids, window, aggregate).map(|reading| reading.value)
        };
        assert_eq!(value(&[a, b], Aggregate::Last), Some(5.0));
        assert_eq!(value(&[a, b], Aggregate::Avg), Some(4.0));
        assert_eq!(value(&[a, b], Aggregate::Min), Some(1.0));
        assert_eq!(value(&[a, b], Aggregate::Sum), Some(16.0));
        assert_eq!(value(&[a, b], Aggregate::Count), Some(4.0));
        assert_eq!(value(&[a, b], Aggregate::Rate), Some(4.0));
        assert_eq!(value(&[a, b], Aggregate::Quantile(0.5)), Some(4.0));
        assert_eq!(value(&[a], Aggregate::Stddev), Some(1.0));
        assert_eq!(value(&[c], Aggregate::Delta), Some(1.0), "over a reset");
        assert_eq!(value(&[], Aggregate::Last), None);
        let range =
            source.range(&[a], Window { from_ms: -1_000, to_ms: 3_000 }, 1_000, Aggregate::Max);
        assert_eq!(range, [Some(9.0), Some(1.0), Some(3.0), None]);
    }
}
