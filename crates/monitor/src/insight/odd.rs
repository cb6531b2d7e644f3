//! Whether a metric behaves oddly now, from what is stored.
//!
//! The [detector](crate::anomaly) is the one of the alert rules. It is taught the week before in steps of a
//! minute, and then watches the last two hours in its own steps.

use std::time::Duration;

use serde::Serialize;

use super::{Evidence, ids};
use crate::anomaly::{AnomalyOptions, Detector};
use crate::clock::millis;
use crate::selector::Selector;
use crate::source::{Aggregate, Source, Window};

/// The steps in which the week is taught, in milliseconds.
const TAUGHT_STEP_MS: i64 = 60_000;
/// How far back the week begins: eight days, so that the quarter of an hour a week ago is there.
const TAUGHT: Duration = Duration::from_secs(8 * 86_400);
/// How long the detector watches at least.
const WATCHED: Duration = Duration::from_secs(2 * 3_600);

/// What the detector makes of a metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Anomaly {
    /// Whether it behaves oddly now.
    pub odd: bool,
    /// Whether less than a week is known, so that the last hour judges alone.
    pub learning: bool,
    /// Since when, in milliseconds since 1970; within the last two hours.
    pub since_ms: Option<i64>,
    /// The last value.
    pub value: f64,
    /// The median of the last hour.
    pub expected: Option<f64>,
    /// How far a value may be from it.
    pub tolerance: f64,
    /// The median of this quarter of an hour one week ago.
    pub expected_weekly: Option<f64>,
    /// The last two hours.
    pub evidence: Evidence,
}

/// Returns whether what a selector means behaves oddly at `at_ms`.
///
/// `None` if there is no value in the last two hours.
///
/// # Cost
///
/// A range of 11,520 steps for the week and of 720 for the last hours.
#[must_use]
pub fn anomaly(
    source: &dyn Source,
    selector: &Selector,
    aggregate: Aggregate,
    options: AnomalyOptions,
    at_ms: i64,
) -> Option<Anomaly> {
    let ids = ids(source, selector);
    let mut detector = Detector::new(options);
    let watched_for = millis(WATCHED.max(options.short * 2));
    let watched = Window::ending(at_ms, watched_for);
    let steps = |window: Window, step_ms: i64| {
        let values = source.range(&ids, window, step_ms, aggregate);
        let first = window.to_ms.saturating_sub(step_ms.saturating_mul(values.len() as i64));
        let at = move |at: usize| first.saturating_add(step_ms.saturating_mul(at as i64 + 1));
        values.into_iter().enumerate().filter_map(move |(step, value)| Some((at(step), value?)))
    };
    if options.weekly {
        let before = Window::ending(watched.from_ms, millis(TAUGHT) - watched_for);
        for (at, value) in steps(before, TAUGHT_STEP_MS) {
            detector.learn(at, value);
        }
    }
    let (mut since_ms, mut last) = (None, None);
    for (at, value) in steps(watched, millis(options.step).max(1)) {
        match detector.observe(at, value).odd {
            true => since_ms = since_ms.or(Some(at)),
            false => since_ms = None,
        }
        last = Some(value);
    }
    let judgement = detector.judgement();
    Some(Anomaly {
        odd: judgement.odd,
        learning: judgement.learning,
        since_ms,
        value: last?,
        expected: judgement.expected,
        tolerance: judgement.tolerance,
        expected_weekly: judgement.expected_weekly,
        evidence: Evidence::read(source, selector, watched, aggregate),
    })
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    /// Three hours of a sample each ten seconds, judged by the last hour alone.
    fn found(value: impl Fn(i64) -> f64) -> Option<Anomaly> {
        let mut fake = Fake::default();
        fake.gauge("m", &[], 0, 10_000, (0..=1_080).map(|step| value(step * 10_000)));
        let options = AnomalyOptions { weekly: false, ..AnomalyOptions::default() };
        anomaly(&fake, &Selector::name("m"), Aggregate::Avg, options, 3 * HOUR_MS)
    }

    #[test]
    fn a_shift_is_odd_since_it_began() {
        let began = 3 * HOUR_MS - 300_000;
        let found = found(|at| if at > began { 15.0 } else { 10.0 }).expect("values");
        assert!(found.odd, "{found:?}");
        let since = found.since_ms.expect("it is odd");
        assert!(since > began && since <= began + 120_000);
        assert_eq!((found.value, found.expected), (15.0, Some(10.0)));
        assert_eq!(found.evidence.values.len(), 120);
    }

    #[test]
    fn a_usual_metric_is_not_odd_and_nothing_is_nothing() {
        let found = found(|at| 10.0 + (at / 10_000 % 3) as f64 * 0.1).expect("values");
        assert_eq!((found.odd, found.since_ms), (false, None));
        let fake = Fake::default();
        let options = AnomalyOptions::default();
        assert_eq!(anomaly(&fake, &Selector::name("m"), Aggregate::Avg, options, 0), None);
    }
}
