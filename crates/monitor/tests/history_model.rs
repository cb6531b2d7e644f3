//! The history beside a list of all samples: every aggregate of every window, over restarts and tiers.
//!
//! Ticks come a second apart, now and then after a gap of minutes or hours, so that few of them fill many
//! blocks. The store is one in memory that is opened again in the middle.

mod history;

use history::{Disk, Process, START_MS, Sample, tier};
use monitor::{
    Aggregate, Distribution, History, HistoryOptions, Selector, SeriesId, Source, Window,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// How far before a window a sample may be to count growth from, in the finest tier.
const REACH_MS: i64 = 2_500;

#[derive(Debug, Clone)]
struct Step {
    after_ms: i64,
    gauge: Option<f64>,
    counted: u32,
    reset: bool,
    recorded: Vec<f64>,
    restart: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let after = prop_oneof![
        60 => Just(1_000_i64),
        10 => 1_000_i64..1_015,
        6 => 700_i64..3_000,
        2 => 60_000_i64..400_000,
        1 => 3_600_000_i64..20_000_000,
    ];
    let gauge = proptest::option::weighted(0.9, -50.0..50.0);
    let step = (after, gauge, 0_u32..100, 0_u8..40, vec(0.001..2.0, 0..4), 0_u8..60);
    let step = step.prop_map(|(after_ms, gauge, counted, reset, recorded, restart)| Step {
        after_ms,
        gauge,
        counted,
        reset: reset == 0,
        recorded,
        restart: restart == 0,
    });
    vec(step, 1..160)
}

/// Everything that was taken in, by the moment under which it was kept.
#[derive(Default)]
struct Model {
    gauge: Vec<(i64, f64)>,
    counter: Vec<(i64, f64)>,
    histogram: Vec<(i64, Vec<f64>)>,
}

impl Model {
    fn first_ms(&self) -> i64 {
        self.counter[0].0
    }

    fn last_ms(&self) -> i64 {
        self.counter[self.counter.len() - 1].0
    }

    /// Growth of the counter and the time it took.
    fn growth(&self, Window { from_ms, to_ms }: Window) -> Option<(f64, f64)> {
        let first = self.counter.iter().position(|(at, _)| *at > from_ms)?;
        let inside = self.counter[first..].iter().take_while(|(at, _)| *at <= to_ms).count();
        let near = |before: &usize| self.counter[first].0 - self.counter[*before].0 <= REACH_MS;
        let start = first.checked_sub(1).filter(near).unwrap_or(first);
        let samples = &self.counter[start..first + inside];
        let grown = |pair: &[(i64, f64)]| match pair[1].1 - pair[0].1 {
            fall if fall < 0.0 => pair[1].1,
            rise => rise,
        };
        let millis = samples.last()?.0 - samples.first()?.0;
        let growth = samples.windows(2).map(grown).sum();
        (inside > 0 && millis > 0).then_some((growth, millis as f64 / 1_000.0))
    }

    fn of_gauge(&self, Window { from_ms, to_ms }: Window, aggregate: Aggregate) -> Option<f64> {
        let inside: Vec<(i64, f64)> =
            self.gauge.iter().filter(|(at, _)| *at > from_ms && *at <= to_ms).copied().collect();
        let mut values: Vec<f64> = inside.iter().map(|(_, value)| *value).collect();
        let (first, last) = (inside.first()?, inside.last()?);
        let (count, sum) = (values.len() as f64, values.iter().sum::<f64>());
        values.sort_by(f64::total_cmp);
        let delta = (inside.len() > 1).then_some(last.1 - first.1);
        Some(match aggregate {
            Aggregate::Last => last.1,
            Aggregate::Avg => sum / count,
            Aggregate::Min => values[0],
            Aggregate::Max => values[values.len() - 1],
            Aggregate::Sum => sum,
            Aggregate::Count => count,
            Aggregate::Stddev => {
                let mean = sum / count;
                (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt()
            }
            Aggregate::Delta => delta?,
            Aggregate::Rate => delta? / ((last.0 - first.0) as f64 / 1_000.0),
            Aggregate::Quantile(q) => {
                let rank = q * (count - 1.0);
                let (below, above) = (values[rank.floor() as usize], values[rank.ceil() as usize]);
                below + (above - below) * (rank - rank.floor())
            }
        })
    }

    fn recorded(&self, Window { from_ms, to_ms }: Window) -> Vec<f64> {
        let inside = self.histogram.iter().filter(|(at, _)| *at > from_ms && *at <= to_ms);
        let mut all: Vec<f64> = inside.flat_map(|(_, values)| values.iter().copied()).collect();
        all.sort_by(f64::total_cmp);
        all
    }
}

fn run(steps: &[Step], options: &HistoryOptions) -> (History, Model) {
    let disk = Disk::new();
    let mut model = Model::default();
    let (mut history, mut process) = (disk.open(options.clone()), Process::new());
    let (mut at_ms, mut total) = (START_MS, 0.0);
    let mut all = Distribution::empty(1e-9);
    for step in steps {
        if step.restart {
            drop(history);
            (history, process) = (disk.open(options.clone()), Process::new());
            (total, all) = (0.0, Distribution::empty(1e-9));
        }
        at_ms += step.after_ms;
        total = if step.reset { 0.0 } else { total } + f64::from(step.counted);
        step.recorded.iter().for_each(|value| all.record(*value));
        let mut samples = vec![
            ("c_total", Sample::Counter(total)),
            ("h_seconds", Sample::Histogram(all.clone())),
        ];
        samples.extend(step.gauge.map(|value| ("g", Sample::Gauge(value))));
        let kept = process.tick(&history, at_ms, &samples).expect("ticks are far enough apart");
        if step.after_ms > 3_000 {
            // A block was closed; hours pass in no time here, but the writer needs some.
            history.flush().expect("the writer is there");
        }
        assert!((at_ms - 20..=at_ms).contains(&kept), "{at_ms} is kept as {kept}");
        model.gauge.extend(step.gauge.map(|value| (kept, value)));
        model.counter.push((kept, total));
        model.histogram.push((kept, step.recorded.clone()));
    }
    (history, model)
}

fn id(history: &History, name: &str) -> Vec<SeriesId> {
    history.matching(&Selector::name(name)).iter().map(|matched| matched.id).collect()
}

fn value(history: &History, name: &str, window: Window, aggregate: Aggregate) -> Option<f64> {
    history.aggregate(&id(history, name), window, aggregate).map(|reading| reading.value)
}

#[track_caller]
fn assert_near(found: Option<f64>, expected: Option<f64>, part: f64, what: &str) {
    let near = match (found, expected) {
        (Some(found), Some(expected)) => {
            (found - expected).abs() <= part * expected.abs().max(found.abs()) + 1e-7
        }
        (found, expected) => found == expected,
    };
    assert!(near, "{what}: {found:?}, expected {expected:?}");
}

/// Of all windows those that begin and end at a sample or beside one tell the most.
fn windows(model: &Model, picks: &[(usize, usize, i64, i64)]) -> Vec<Window> {
    let times: Vec<i64> = model.counter.iter().map(|(at, _)| *at).collect();
    let windows = picks.iter().map(|(one, other, shift, wide)| {
        let (one, other) = (times[one % times.len()], times[other % times.len()]);
        Window { from_ms: one.min(other) - shift, to_ms: one.max(other) + wide }
    });
    windows.filter(|window| window.length_ms() > 0).collect()
}

const AGGREGATES: [Aggregate; 10] = [
    Aggregate::Last,
    Aggregate::Avg,
    Aggregate::Min,
    Aggregate::Max,
    Aggregate::Sum,
    Aggregate::Count,
    Aggregate::Stddev,
    Aggregate::Rate,
    Aggregate::Delta,
    Aggregate::Quantile(0.9),
];

fn check_window(history: &History, model: &Model, window: Window) {
    for aggregate in AGGREGATES {
        let found = value(history, "g", window, aggregate);
        assert_near(found, model.of_gauge(window, aggregate), 1e-9, &format!("{aggregate:?}"));
    }
    let growth = model.growth(window);
    let grown = value(history, "c_total", window, Aggregate::Delta);
    assert_near(grown, growth.map(|(growth, _)| growth), 1e-9, "growth");
    let rate = value(history, "c_total", window, Aggregate::Rate);
    assert_near(rate, growth.map(|(growth, seconds)| growth / seconds), 1e-9, "rate");
    check_histogram(history, model, window);
}

fn check_histogram(history: &History, model: &Model, window: Window) {
    let all = model.recorded(window);
    let there = model.histogram.iter().any(|(at, _)| *at > window.from_ms && *at <= window.to_ms);
    let count = there.then_some(all.len() as f64);
    assert_near(value(history, "h_seconds", window, Aggregate::Count), count, 0.0, "count");
    let sum = there.then(|| all.iter().sum::<f64>());
    assert_near(value(history, "h_seconds", window, Aggregate::Sum), sum, 0.002, "sum");
    for q in [0.5, 0.99] {
        let rank = (q * all.len() as f64).ceil() as usize;
        let exact = all.get(rank.saturating_sub(1)).copied();
        let found = value(history, "h_seconds", window, Aggregate::Quantile(q));
        assert_near(found, exact, 0.016, "quantile");
    }
}

fn picks() -> impl Strategy<Value = Vec<(usize, usize, i64, i64)>> {
    let near = || prop_oneof![3 => Just(0_i64), 1 => 0_i64..2_000];
    vec((any::<usize>(), any::<usize>(), near(), near()), 12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_window_of_the_finest_tier_is_right(steps in steps(), picks in picks()) {
        let options = HistoryOptions { tiers: vec![tier(1)], ..HistoryOptions::default() };
        let (history, model) = run(&steps, &options);
        for window in windows(&model, &picks) {
            check_window(&history, &model, window);
        }
        let everything = Window { from_ms: model.first_ms() - 1, to_ms: model.last_ms() };
        check_window(&history, &model, everything);
    }

    #[test]
    fn ranges_are_aggregates_of_their_steps(steps in steps(), picks in picks(), count in 1_i64..50) {
        let options = HistoryOptions { tiers: vec![tier(1)], ..HistoryOptions::default() };
        let (history, model) = run(&steps, &options);
        for window in windows(&model, &picks).into_iter().take(4) {
            let step_ms = (window.length_ms() / count).max(1);
            let aggregates = [Aggregate::Avg, Aggregate::Quantile(0.5), Aggregate::Rate];
            for (name, aggregate) in ["g", "h_seconds", "c_total"].into_iter().zip(aggregates) {
                let points = history.range(&id(&history, name), window, step_ms, aggregate);
                let expected = ((window.length_ms() + step_ms - 1) / step_ms).min(11_000);
                prop_assert_eq!(points.len() as i64, expected);
                for (back, point) in points.iter().rev().enumerate().take(60) {
                    let to_ms = window.to_ms - back as i64 * step_ms;
                    let from_ms = (to_ms - step_ms).max(window.from_ms);
                    let step = value(&history, name, Window { from_ms, to_ms }, aggregate);
                    assert_near(*point, step, 1e-12, name);
                }
            }
        }
    }

    #[test]
    fn rolled_rows_say_the_same_of_whole_rows(steps in steps(), picks in picks()) {
        let tiers = vec![tier(1), tier(60), tier(3_600)];
        let options = HistoryOptions { tiers, ..HistoryOptions::default() };
        let (history, model) = run(&steps, &options);
        for row_ms in [60_000, 3_600_000] {
            for window in windows(&model, &picks) {
                // From twenty hours on, rows of an hour are enough for an aggregate.
                let row_ms = if window.length_ms() >= 19 * 3_600_000 { 3_600_000 } else { row_ms };
                let from_ms = window.from_ms.div_euclid(row_ms) * row_ms;
                let to_ms = (window.to_ms.div_euclid(row_ms) + 1) * row_ms;
                let window = Window { from_ms, to_ms };
                for aggregate in &AGGREGATES[..6] {
                    let found = value(&history, "g", window, *aggregate);
                    let expected = model.of_gauge(window, *aggregate);
                    assert_near(found, expected, 1e-9, &format!("{aggregate:?} by {row_ms}"));
                }
            }
        }
        let everything = Window { from_ms: START_MS, to_ms: model.last_ms() };
        check_histogram(&history, &model, everything);
    }
}
