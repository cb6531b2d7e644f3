//! How a metric usually is, and whether it is worse now.
//!
//! A baseline is made of the median and the median absolute deviation, which single spikes do not move.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Evidence, MAD_TO_DEVIATION, ids, quantile};
use crate::clock::millis;
use crate::selector::Selector;
use crate::series::SeriesId;
use crate::source::{Aggregate, Source, Window};

/// The step of a baseline over an hour.
const HOUR_STEP_MS: i64 = 30_000;
/// The step of a baseline over a week.
const WEEK_STEP_MS: i64 = 600_000;
const HOUR: Duration = Duration::from_secs(3_600);
const WEEK: Duration = Duration::from_secs(7 * 86_400);
/// Values that a baseline needs.
const VALUES_MIN: usize = 20;

/// Which direction of a metric is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Worse {
    /// More is worse, as for times and errors.
    Higher,
    /// Less is worse, as for throughput and hit ratios.
    Lower,
}

/// A metric that is worth a baseline, or that tells whether a change helped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricSpec {
    /// What it is called in results.
    pub name: String,
    /// Its series.
    pub selector: Selector,
    /// Series of which it is told as a part, such as hits and misses of which hits are a part; usually none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<Selector>,
    /// What to make of the samples.
    pub aggregate: Aggregate,
    /// Which direction is bad.
    pub worse: Worse,
}

impl MetricSpec {
    /// Names a metric.
    #[must_use]
    pub fn new(name: &str, selector: Selector, aggregate: Aggregate, worse: Worse) -> Self {
        Self { name: name.to_owned(), selector, of: Vec::new(), aggregate, worse }
    }

    /// Names the growth of a counter as a part of the growth of some counters together.
    #[must_use]
    pub fn ratio(
        name: &str,
        part: Selector,
        of: impl IntoIterator<Item = Selector>,
        worse: Worse,
    ) -> Self {
        let of = of.into_iter().collect();
        Self { of, ..Self::new(name, part, Aggregate::Delta, worse) }
    }

    /// Returns the value over a window; nothing without samples, or of a ratio while nothing grew.
    #[must_use]
    pub fn read(&self, source: &dyn Source, window: Window) -> Option<f64> {
        let part = source.aggregate(&ids(source, &self.selector), window, self.aggregate)?.value;
        if self.of.is_empty() {
            return Some(part);
        }
        let whole = source.aggregate(&self.whole(source), window, self.aggregate)?.value;
        (whole > 0.0).then(|| part / whole)
    }

    /// Returns the value of each step of a window, as [`Source::range`] cuts it.
    pub(super) fn range(
        &self,
        source: &dyn Source,
        window: Window,
        step_ms: i64,
    ) -> Vec<Option<f64>> {
        let range = |series: &[SeriesId]| source.range(series, window, step_ms, self.aggregate);
        let parts = range(&ids(source, &self.selector));
        if self.of.is_empty() {
            return parts;
        }
        let wholes = range(&self.whole(source));
        let ratio = |(part, whole): (Option<f64>, Option<f64>)| {
            part.zip(whole).filter(|(_, whole)| *whole > 0.0).map(|(part, whole)| part / whole)
        };
        parts.into_iter().zip(wholes).map(ratio).collect()
    }

    fn whole(&self, source: &dyn Source) -> Vec<SeriesId> {
        self.of.iter().flat_map(|selector| ids(source, selector)).collect()
    }

    /// Returns processor use, memory, response time and throughput by their conventional names.
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        let spec = |name, metric, aggregate, worse| {
            Self::new(name, Selector::name(metric), aggregate, worse)
        };
        vec![
            spec("cpu", "system_cpu_usage_ratio", Aggregate::Avg, Worse::Higher),
            spec("memory", "process_resident_memory_bytes", Aggregate::Avg, Worse::Higher),
            spec(
                "response_time",
                "http_request_duration_seconds",
                Aggregate::Quantile(0.95),
                Worse::Higher,
            ),
            spec("throughput", "http_requests_total", Aggregate::Rate, Worse::Lower),
        ]
    }
}

/// How a metric usually is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Baseline {
    /// The median of the steps.
    pub median: f64,
    /// The 95th percentile of the steps.
    pub p95: f64,
    /// The median of the distances from the median.
    pub mad: f64,
    /// Below this is unusual: the median less three deviations (1.4826 times `mad`), and never less than
    /// what was seen.
    pub low: f64,
    /// Above this is unusual, as `low`.
    pub high: f64,
    /// Steps that had a value.
    pub samples: usize,
    /// Where it comes from.
    pub evidence: Evidence,
}

/// The baselines of one metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricBaseline {
    /// What the metric is called.
    pub name: String,
    /// Over the last hour, in steps of 30 seconds.
    pub hour: Option<Baseline>,
    /// Over the last week, in steps of ten minutes.
    pub week: Option<Baseline>,
}

/// Returns how a metric was over a window, in steps of `step_ms`.
///
/// `None` if fewer than 20 steps have a value.
#[must_use]
pub fn baseline(
    source: &dyn Source,
    selector: &Selector,
    aggregate: Aggregate,
    window: Window,
    step_ms: i64,
) -> Option<Baseline> {
    usual(source, &MetricSpec::new("", selector.clone(), aggregate, Worse::Higher), window, step_ms)
}

fn usual(source: &dyn Source, spec: &MetricSpec, window: Window, step_ms: i64) -> Option<Baseline> {
    let steps = spec.range(source, window, step_ms.max(1));
    let mut values: Vec<f64> =
        steps.into_iter().flatten().filter(|value| value.is_finite()).collect();
    let samples = values.len();
    if samples < VALUES_MIN {
        return None;
    }
    let median = quantile(&mut values, 0.5)?;
    let p95 = quantile(&mut values, 0.95)?;
    let (least, most) = (quantile(&mut values, 0.0)?, quantile(&mut values, 1.0)?);
    for value in &mut values {
        *value = (*value - median).abs();
    }
    let mad = quantile(&mut values, 0.5)?;
    let reach = 3.0 * MAD_TO_DEVIATION * mad;
    let mut evidence = Evidence::of(source, spec, window);
    evidence.samples = samples;
    Some(Baseline {
        median,
        p95,
        mad,
        low: (median - reach).max(least),
        high: (median + reach).min(most),
        samples,
        evidence,
    })
}

/// Returns the baselines of metrics over the last hour and the last week.
///
/// # Cost
///
/// Two ranges of 120 and 1,008 steps for each metric.
#[must_use]
pub fn baselines(source: &dyn Source, specs: &[MetricSpec], at_ms: i64) -> Vec<MetricBaseline> {
    let over = |spec: &MetricSpec, length, step_ms| {
        let window = Window::ending(at_ms, millis(length));
        usual(source, spec, window, step_ms)
    };
    let specs = specs.iter().map(|spec| MetricBaseline {
        name: spec.name.clone(),
        hour: over(spec, HOUR, HOUR_STEP_MS),
        week: over(spec, WEEK, WEEK_STEP_MS),
    });
    specs.collect()
}

/// When a metric counts as worse than usual.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DegradationOptions {
    /// The window that is compared; five minutes by default.
    pub now: Duration,
    /// Deviations from the median; 3 by default.
    pub z: f64,
    /// The least change as a part of the median; 0.2 by default.
    pub change_min: f64,
    /// The least deviation that is assumed, as a part of the median, so that a metric that never moved is
    /// not judged by its last digit; 0.05 by default.
    pub deviation_min: f64,
}

impl Default for DegradationOptions {
    fn default() -> Self {
        Self { now: Duration::from_secs(300), z: 3.0, change_min: 0.2, deviation_min: 0.05 }
    }
}

/// A metric now, beside how it usually is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Degradation {
    /// What the metric is called.
    pub name: String,
    /// Which direction is bad.
    pub worse: Worse,
    /// Whether it is worse than usual.
    pub degraded: bool,
    /// Its value over the last minutes.
    pub now: f64,
    /// The change as a part of the usual median; positive if it went up.
    pub change: f64,
    /// The change in deviations; positive if it went up.
    pub z: f64,
    /// How it usually is: over the week before, or the hour before if the week has too few values.
    pub usual: Baseline,
    /// Where the value of now comes from.
    pub evidence: Evidence,
}

/// Compares the last minutes of metrics with how they usually are.
///
/// The window that is compared is not part of the baseline. Metrics without enough values are left out.
#[must_use]
pub fn degradations(
    source: &dyn Source,
    specs: &[MetricSpec],
    at_ms: i64,
    options: &DegradationOptions,
) -> Vec<Degradation> {
    let window = Window::ending(at_ms, millis(options.now));
    let compare = |spec: &MetricSpec| {
        let usual = [(WEEK, WEEK_STEP_MS), (HOUR, HOUR_STEP_MS)].into_iter().find_map(
            |(length, step)| {
                let before = Window::ending(window.from_ms, millis(length));
                // A week of which only hours are stored is no week.
                let usual = usual(source, spec, before, step)?;
                (usual.samples as i64 * step * 2 >= before.length_ms()).then_some(usual)
            },
        )?;
        let evidence = Evidence::of(source, spec, window);
        let now = evidence.value?;
        let floor = usual.median.abs() * options.deviation_min;
        let deviation = (MAD_TO_DEVIATION * usual.mad).max(floor).max(f64::MIN_POSITIVE);
        let difference = now - usual.median;
        // From nothing to something has no ratio; z alone decides.
        let change = match usual.median {
            0.0 => difference.signum() * f64::from(difference != 0.0),
            median => difference / median.abs(),
        };
        let z = difference / deviation;
        let sign = if spec.worse == Worse::Higher { 1.0 } else { -1.0 };
        Some(Degradation {
            name: spec.name.clone(),
            worse: spec.worse,
            degraded: z * sign > options.z && change * sign >= options.change_min,
            now,
            change,
            z,
            usual,
            evidence,
        })
    };
    specs.iter().filter_map(compare).collect()
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    #[track_caller]
    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} and {b}");
    }

    #[test]
    fn a_baseline_is_the_middle_and_the_reach_of_the_usual() {
        let mut fake = Fake::default();
        // 120 steps of 30 s: 10, 11, 12, 13, 14 over and over, and one spike.
        fake.gauge(
            "cpu",
            &[],
            0,
            30_000,
            (0..120).map(|at| if at == 50 { 900.0 } else { f64::from(10 + at % 5) }),
        );
        let spec = MetricSpec::new("cpu", Selector::name("cpu"), Aggregate::Avg, Worse::Higher);
        let found = baselines(&fake, &[spec], 119 * 30_000);
        let hour = found[0].hour.as_ref().expect("120 values");
        close(hour.median, 12.0);
        close(hour.mad, 1.0);
        close(hour.low, 10.0);
        close(hour.high, 12.0 + 3.0 * 1.4826);
        close(hour.p95, 14.0);
        assert_eq!(hour.samples, 120);
        assert_eq!(hour.evidence.aggregate, "avg");
        assert_eq!(found[0].week, None, "an hour has six steps of ten minutes");
    }

    #[test]
    fn a_metric_is_degraded_if_it_is_far_beyond_the_usual_in_the_bad_direction() {
        for (after, worse, degraded) in [
            (0.20, Worse::Higher, false),
            (0.30, Worse::Higher, true),
            (0.30, Worse::Lower, false),
            (0.05, Worse::Lower, true),
            (0.22, Worse::Higher, false),
        ] {
            let mut fake = Fake::default();
            let before = (0..720).map(|at| 0.195 + 0.01 * f64::from(at % 2));
            fake.gauge("p95", &[], 5_000, 5_000, before.chain([after; 60]));
            let spec = MetricSpec::new("p95", Selector::name("p95"), Aggregate::Avg, worse);
            let at_ms = HOUR_MS + 300_000;
            let options = DegradationOptions::default();
            let found = degradations(&fake, &[spec], at_ms, &options);
            assert_eq!(found[0].degraded, degraded, "{after} and {worse:?}: {:?}", found[0].z);
            close(found[0].now, after);
            close(found[0].change, (after - 0.2) / 0.2);
        }
    }

    #[test]
    fn too_few_values_give_no_verdict() {
        let mut fake = Fake::default();
        fake.gauge("cpu", &[], 0, 30_000, [1.0; 19]);
        let specs = MetricSpec::defaults();
        let spec = MetricSpec::new("cpu", Selector::name("cpu"), Aggregate::Avg, Worse::Higher);
        let options = DegradationOptions::default();
        assert!(degradations(&fake, &[spec], 600_000, &options).is_empty());
        assert!(baselines(&fake, &specs, 0).iter().all(|found| found.hour.is_none()));
    }
}
