//! A source of samples that a test makes up, computed in the plainest way.

use std::sync::Arc;

use crate::histogram::Distribution;
use crate::selector::Selector;
use crate::series::{Kind, Labels, SeriesId, SeriesKey, Unit};
use crate::source::{Aggregate, Matched, Reading, Source, Window};

/// Samples by series; a histogram's are the values that came at each moment.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    series: Vec<Series>,
}

/// A series and its samples, each with its moment.
type Series = (Arc<SeriesKey>, Kind, Vec<(i64, Sample)>);

#[derive(Debug, Clone)]
enum Sample {
    Number(f64),
    Values(Distribution),
}

impl Fake {
    fn push(&mut self, name: &str, labels: &[(&str, &str)], kind: Kind, more: Vec<(i64, Sample)>) {
        let labels = Labels::new(labels.iter().copied());
        let key = SeriesKey { name: name.into(), labels };
        match self.series.iter_mut().find(|(other, _, _)| **other == key) {
            Some((_, _, samples)) => samples.extend(more),
            None => self.series.push((Arc::new(key), kind, more)),
        }
    }

    /// Adds samples of a gauge, the first at `from_ms`.
    pub(crate) fn gauge(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        from_ms: i64,
        step_ms: i64,
        values: impl IntoIterator<Item = f64>,
    ) {
        let samples = (0..).zip(values).map(|(at, v)| (from_ms + at * step_ms, Sample::Number(v)));
        self.push(name, labels, Kind::Gauge, samples.collect());
    }

    /// Adds samples of a counter.
    pub(crate) fn counter(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        from_ms: i64,
        step_ms: i64,
        totals: impl IntoIterator<Item = f64>,
    ) {
        let samples = (0..).zip(totals).map(|(at, v)| (from_ms + at * step_ms, Sample::Number(v)));
        self.push(name, labels, Kind::Counter, samples.collect());
    }

    /// Adds values in seconds that a histogram took at one moment.
    pub(crate) fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        at_ms: i64,
        values: &[f64],
    ) {
        let mut distribution = Distribution::empty(1e-9);
        values.iter().for_each(|value| distribution.record(*value));
        self.push(name, labels, Kind::Histogram, vec![(at_ms, Sample::Values(distribution))]);
    }
}

impl Source for Fake {
    fn generation(&self) -> u64 {
        self.series.len() as u64
    }

    fn matching(&self, selector: &Selector) -> Vec<Matched> {
        let mut found: Vec<Matched> = (0..)
            .zip(&self.series)
            .filter(|(_, (key, _, _))| selector.matches(key))
            .map(|(id, (key, kind, _))| Matched {
                id: SeriesId(id),
                key: Arc::clone(key),
                kind: *kind,
                unit: Unit::None,
            })
            .collect();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        found
    }

    fn aggregate(
        &self,
        series: &[SeriesId],
        window: Window,
        aggregate: Aggregate,
    ) -> Option<Reading> {
        let inside = |at: i64| at > window.from_ms && at <= window.to_ms;
        let (mut numbers, mut last, mut growth) = (Vec::new(), Vec::new(), 0.0);
        let mut distribution: Option<Distribution> = None;
        let (mut grew, mut seconds, mut samples) = (false, 0.0, 0);
        for (_, _, of_series) in series.iter().filter_map(|id| self.series.get(id.0 as usize)) {
            let mut before: Option<(i64, f64)> = None;
            for (at, sample) in of_series.iter().filter(|(at, _)| inside(*at)) {
                samples += 1;
                match sample {
                    Sample::Number(value) => {
                        numbers.push(*value);
                        if let Some((start, earlier)) = before {
                            growth += if *value >= earlier { value - earlier } else { *value };
                            seconds += (at - start) as f64 / 1_000.0;
                            grew = true;
                        }
                        before = Some((*at, *value));
                    }
                    Sample::Values(values) => match &mut distribution {
                        Some(all) => all.merge(values),
                        None => distribution = Some(values.clone()),
                    },
                }
            }
            last.extend(before.map(|(_, value)| value));
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let value = if let Some(all) = distribution {
            let count = all.count() as f64;
            match aggregate {
                Aggregate::Count | Aggregate::Delta | Aggregate::Last => count,
                Aggregate::Sum => all.sum(),
                Aggregate::Avg => all.sum() / count,
                Aggregate::Quantile(q) => all.quantile(q)?,
                Aggregate::Rate => count * 1_000.0 / window.length_ms() as f64,
                Aggregate::Min | Aggregate::Max | Aggregate::Stddev => return None,
            }
        } else if numbers.is_empty() {
            return None;
        } else {
            match aggregate {
                Aggregate::Last => mean(&last),
                Aggregate::Avg => mean(&numbers),
                Aggregate::Min => numbers.iter().copied().fold(f64::INFINITY, f64::min),
                Aggregate::Max => numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                Aggregate::Sum => numbers.iter().sum(),
                Aggregate::Count => numbers.len() as f64,
                Aggregate::Quantile(q) => super::quantile(&mut numbers, q)?,
                Aggregate::Delta => grew.then_some(growth)?,
                Aggregate::Rate => grew.then_some(growth / (seconds / last.len() as f64))?,
                Aggregate::Stddev => return None,
            }
        };
        Some(Reading { value, samples, expected: samples })
    }

    fn range(
        &self,
        series: &[SeriesId],
        window: Window,
        step_ms: i64,
        aggregate: Aggregate,
    ) -> Vec<Option<f64>> {
        let steps = (window.length_ms() + step_ms - 1) / step_ms;
        let ends = (0..steps).rev().map(|back| window.to_ms - back * step_ms);
        let values = ends.map(|end| {
            let step = Window { from_ms: (end - step_ms).max(window.from_ms), to_ms: end };
            self.aggregate(series, step, aggregate).map(|read| read.value)
        });
        values.collect()
    }
}
