//! A rule made ready for evaluation: which series it reads, and what their samples say.
//!
//! All selectors of a rule stand in one list. The first one makes the instances: its series are grouped by
//! the labels of `by`. Of every other selector an instance takes the series that agree with its labels where
//! they carry them.

use std::time::Duration;

use crate::anomaly::Detector;
use crate::clock::millis;
use crate::insight::{Side, theil_sen, time_to_limit};
use crate::selector::Selector;
use crate::series::{Labels, SeriesId};
use crate::source::{Aggregate, Matched, Source, Window};

use super::event::Severity;
use super::expression::{Condition, Operand, Query, Relation};
use super::instance::{Judged, Verdict};
use super::rule::{BurnPair, Rule, Signal};

/// Points that a forecast is computed from.
const FORECAST_POINTS: i64 = 120;

/// Shortest window in which another metric that is a threshold must have a sample.
const OPERAND_WINDOW_MS: i64 = 60_000;

/// Step and length of what an anomaly rule learns from the past.
const LEARN_STEP_MS: i64 = 60_000;
const LEARN_LENGTH_MS: i64 = 8 * 86_400_000;

/// The series that an instance reads, for each selector of the plan.
pub(super) type Inputs = Box<[Box<[SeriesId]>]>;

/// A number or an input with a factor.
#[derive(Debug, Clone, Copy)]
enum Bound {
    Number(f64),
    Input(usize, f64),
}

#[derive(Debug, Clone, Copy)]
struct Test {
    relation: Relation,
    bound: Bound,
}

#[derive(Debug, Clone, Copy)]
struct LevelPlan {
    severity: Severity,
    hold: Duration,
    raise: Option<Test>,
    clear: Option<Test>,
}

/// A rule made ready.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) selectors: Vec<Selector>,
    levels: Vec<LevelPlan>,
    gate: Option<usize>,
    limit: Option<Bound>,
}

/// What an evaluation of one instance came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Found {
    /// Too few samples.
    Missing,
    /// There is a value that does not count, for want of traffic.
    Idle(f64),
    /// A value that is compared with the conditions of the levels.
    Value(f64),
    /// The signal is met or not by itself; `learning` makes it count as an information only.
    Met { value: f64, threshold: f64, met: bool, learning: bool },
}

/// Where an instance reads, and until when.
#[derive(Clone, Copy)]
pub(super) struct Reads<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) now_ms: i64,
}

impl Reads<'_> {
    /// Returns an aggregate, if at least half of the samples of its window are there.
    fn half(&self, series: &[SeriesId], window: Duration, aggregate: Aggregate) -> Option<f64> {
        let window = Window::ending(self.now_ms, millis(window));
        let reading = self.source.aggregate(series, window, aggregate)?;
        let enough = u64::from(reading.samples) * 2 >= u64::from(reading.expected);
        (enough && reading.value.is_finite()).then_some(reading.value)
    }

    /// Returns an aggregate of whatever samples there are.
    fn any(&self, series: &[SeriesId], window: Duration, aggregate: Aggregate) -> Option<f64> {
        let window = Window::ending(self.now_ms, millis(window));
        let reading = self.source.aggregate(series, window, aggregate)?;
        Some(reading.value).filter(|value| value.is_finite())
    }

    fn query(&self, series: &[SeriesId], query: &Query) -> Option<f64> {
        self.half(series, query.window, query.aggregate)
    }

    fn bound(&self, inputs: &Inputs, bound: Bound, window: Duration) -> Option<f64> {
        match bound {
            Bound::Number(number) => Some(number),
            Bound::Input(at, factor) => {
                let window = window.max(Duration::from_millis(OPERAND_WINDOW_MS as u64));
                self.any(&inputs[at], window, Aggregate::Last).map(|value| value * factor)
            }
        }
    }
}

impl Plan {
    pub(super) fn new(rule: &Rule) -> Self {
        let mut selectors = match &rule.signal {
            Signal::Metric(query)
            | Signal::Anomaly { query, .. }
            | Signal::Forecast { query, .. } => {
                vec![query.selector.clone()]
            }
            Signal::Ratio { num, den, .. } => vec![den.selector.clone(), num.selector.clone()],
            Signal::Burn { bad, total, .. } => vec![total.clone(), bad.clone()],
        };
        let mut bound = |operand: &Operand| match operand {
            Operand::Number(number) => Bound::Number(*number),
            Operand::Metric { selector, factor } => {
                selectors.push(selector.clone());
                Bound::Input(selectors.len() - 1, *factor)
            }
        };
        let mut test = |condition: &Condition| Test {
            relation: condition.relation,
            bound: bound(&condition.operand),
        };
        let levels = rule.levels.iter().map(|level| LevelPlan {
            severity: level.severity,
            hold: level.hold,
            raise: level.raise.as_ref().map(&mut test),
            clear: level.clear.as_ref().map(&mut test),
        });
        let levels = levels.collect();
        let limit = match &rule.signal {
            Signal::Forecast { limit, .. } => Some(bound(limit)),
            _ => None,
        };
        let gate = rule.only_if.as_ref().map(|gate| {
            selectors.push(gate.query.selector.clone());
            selectors.len() - 1
        });
        Self { selectors, levels, gate, limit }
    }

    /// Returns the series that an instance reads: those of its group, and of the others what goes with it.
    pub(super) fn inputs(group: Vec<SeriesId>, others: &[Vec<Matched>], labels: &Labels) -> Inputs {
        let agrees = |series: &Matched| {
            let series = &series.key.labels;
            labels.iter().all(|(name, value)| series.get(name).is_none_or(|other| other == value))
        };
        let of = |matched: &Vec<Matched>| {
            matched.iter().filter(|series| agrees(series)).map(|series| series.id).collect()
        };
        [group.into_boxed_slice()].into_iter().chain(others.iter().map(of)).collect()
    }

    /// Computes the signal of an instance.
    pub(super) fn find(
        &self,
        rule: &Rule,
        inputs: &Inputs,
        detector: Option<&mut Detector>,
        reads: Reads<'_>,
    ) -> Found {
        let found = match &rule.signal {
            Signal::Metric(query) => match reads.query(&inputs[0], query) {
                Some(value) => Found::Value(value),
                None => Found::Missing,
            },
            Signal::Ratio { num, den, min_den } => match reads.query(&inputs[0], den) {
                Some(den) if den <= 0.0 || den < *min_den => Found::Idle(0.0),
                Some(den) => {
                    let num = reads.any(&inputs[1], num.window, num.aggregate).unwrap_or(0.0);
                    Found::Value(num / den)
                }
                None => Found::Missing,
            },
            Signal::Burn { slo, pairs, min_total, .. } => {
                burn(*slo, pairs, *min_total, inputs, reads)
            }
            Signal::Anomaly { query, .. } => {
                let value = reads.query(&inputs[0], query);
                let Some(detector) = detector else { return Found::Missing };
                let judgement = detector.observe(reads.now_ms, value.unwrap_or(f64::NAN));
                match value {
                    None => Found::Missing,
                    Some(value) => {
                        let expected = judgement.expected.unwrap_or(value);
                        let side = if value < expected { -1.0 } else { 1.0 };
                        let threshold = expected + side * judgement.tolerance;
                        let (met, learning) = (judgement.odd, judgement.learning);
                        Found::Met { value, threshold, met, learning }
                    }
                }
            }
            Signal::Forecast { query, falling, within, .. } => {
                self.forecast(query, *falling, *within, inputs, reads)
            }
        };
        match (found, &rule.only_if, self.gate) {
            (Found::Value(value) | Found::Met { value, .. }, Some(gate), Some(at)) => {
                let open = reads
                    .query(&inputs[at], &gate.query)
                    .is_some_and(|number| gate.relation.holds(number, gate.number));
                if open { found } else { Found::Idle(value) }
            }
            _ => found,
        }
    }

    fn forecast(
        &self,
        query: &Query,
        falling: bool,
        within: Duration,
        inputs: &Inputs,
        reads: Reads<'_>,
    ) -> Found {
        let window = Window::ending(reads.now_ms, millis(query.window));
        let step = (window.length_ms() / FORECAST_POINTS).max(1_000);
        let values = reads.source.range(&inputs[0], window, step, query.aggregate);
        let points: Vec<(f64, f64)> = values
            .iter()
            .enumerate()
            .filter_map(|(at, value)| Some((at as f64 * step as f64 / 1e3, (*value)?)))
            .filter(|(_, value)| value.is_finite())
            .collect();
        let limit = self.limit.and_then(|limit| reads.bound(inputs, limit, Duration::ZERO));
        let (Some(limit), true) = (limit, points.len() * 2 >= values.len()) else {
            return Found::Missing;
        };
        let Some(trend) = theil_sen(&points) else { return Found::Missing };
        let side = if falling { Side::Below } else { Side::Above };
        let seconds = time_to_limit(&trend, limit, side)
            .map_or(f64::INFINITY, |forecast| forecast.expected_seconds);
        let threshold = within.as_secs_f64();
        Found::Met { value: seconds, threshold, met: seconds <= threshold, learning: false }
    }

    /// Says what a finding means for each level; returns the thresholds of the levels too.
    pub(super) fn judge(
        &self,
        found: Found,
        rule: &Rule,
        inputs: &Inputs,
        reads: Reads<'_>,
    ) -> ([Judged; 4], usize, [f64; 4]) {
        let mut judged =
            [Judged { severity: Severity::Info, verdict: Verdict::Cleared, hold: Duration::ZERO };
                4];
        let mut thresholds = [f64::NAN; 4];
        for (level, slot) in self.levels.iter().zip(&mut judged) {
            let threshold = &mut thresholds[level.severity as usize];
            let verdict = match found {
                Found::Missing => Verdict::Unknown,
                Found::Idle(_) => Verdict::Cleared,
                Found::Value(value) => {
                    let met = |test: &Test, threshold: &mut f64| {
                        let bound = reads.bound(inputs, test.bound, rule.signal.window())?;
                        *threshold = bound;
                        Some(test.relation.holds(value, bound))
                    };
                    let raise = level.raise.as_ref().and_then(|test| met(test, threshold));
                    match (raise, &level.clear) {
                        (None, _) => Verdict::Unknown,
                        (Some(true), _) => Verdict::Raised,
                        (Some(false), None) => Verdict::Cleared,
                        (Some(false), Some(clear)) => match met(clear, &mut 0.0) {
                            None => Verdict::Unknown,
                            Some(true) => Verdict::Cleared,
                            Some(false) => Verdict::Between,
                        },
                    }
                }
                Found::Met { met, threshold: bound, .. } => {
                    *threshold = bound;
                    if met { Verdict::Raised } else { Verdict::Cleared }
                }
            };
            *slot = Judged { severity: level.severity, verdict, hold: level.hold };
        }
        let count = self.levels.len();
        // A baseline that is not complete may say something, but not raise its voice.
        if let Found::Met { learning: true, threshold, .. } = found
            && count == 1
            && judged[0].severity > Severity::Info
        {
            thresholds[Severity::Info as usize] = threshold;
            let quiet = Judged { verdict: Verdict::Cleared, ..judged[0] };
            judged[0].severity = Severity::Info;
            judged[1] = quiet;
            return (judged, 2, thresholds);
        }
        // And one that was learning once no longer is.
        if let (Signal::Anomaly { .. }, Found::Met { .. }, 1) = (&rule.signal, found, count)
            && judged[0].severity > Severity::Info
        {
            judged[1] = judged[0];
            judged[0].severity = Severity::Info;
            judged[0].verdict = Verdict::Cleared;
            return (judged, 2, thresholds);
        }
        (judged, count, thresholds)
    }

    /// Teaches a detector what the last week was like.
    pub(super) fn teach(rule: &Rule, inputs: &Inputs, detector: &mut Detector, reads: Reads<'_>) {
        let Signal::Anomaly { query, options } = &rule.signal else { return };
        let step = millis(options.step).max(LEARN_STEP_MS);
        let length = if options.weekly { LEARN_LENGTH_MS } else { millis(options.short) };
        let window = Window::ending(reads.now_ms.saturating_sub(millis(options.step)), length);
        let values = reads.source.range(&inputs[0], window, step, query.aggregate);
        let first = window.to_ms.saturating_sub(step.saturating_mul(values.len() as i64));
        for (at, value) in values.into_iter().enumerate() {
            if let Some(value) = value {
                detector.learn(first.saturating_add(step * (at as i64 + 1)), value);
            }
        }
    }

    /// Says what it means for each level that samples are missing, if that means anything.
    pub(super) fn judge_missing(&self, alert: bool) -> ([Judged; 4], usize) {
        let mut judged =
            [Judged { severity: Severity::Info, verdict: Verdict::Cleared, hold: Duration::ZERO };
                4];
        for (at, (level, slot)) in self.levels.iter().zip(&mut judged).enumerate() {
            let verdict = match (alert, at) {
                (false, _) => Verdict::Cleared,
                (true, 0) => Verdict::Raised,
                (true, _) => Verdict::Unknown,
            };
            *slot = Judged { severity: level.severity, verdict, hold: level.hold };
        }
        (judged, self.levels.len())
    }
}

fn burn(slo: f64, pairs: &[BurnPair], min_total: f64, inputs: &Inputs, reads: Reads<'_>) -> Found {
    let budget = (1.0 - slo).max(f64::EPSILON);
    let rate = |total: f64, window: Duration| {
        let bad = reads.any(&inputs[1], window, Aggregate::Rate).unwrap_or(0.0);
        if total > 0.0 { bad / total / budget } else { 0.0 }
    };
    let (mut worst, mut value, mut threshold) = (f64::NEG_INFINITY, 0.0, f64::NAN);
    let mut idle = true;
    for pair in pairs {
        let Some(short_total) = reads.half(&inputs[0], pair.short, Aggregate::Rate) else {
            return Found::Missing;
        };
        let long_total = reads.any(&inputs[0], pair.long, Aggregate::Rate).unwrap_or(0.0);
        if short_total < min_total || short_total <= 0.0 {
            continue;
        }
        idle = false;
        let burnt = rate(short_total, pair.short).min(rate(long_total, pair.long));
        if burnt / pair.factor > worst {
            (worst, value, threshold) = (burnt / pair.factor, burnt, pair.factor);
        }
    }
    match idle {
        true => Found::Idle(0.0),
        false => Found::Met { value, threshold, met: worst > 1.0, learning: false },
    }
}
