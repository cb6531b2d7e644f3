//! Timing of operations: a guard that records when it goes, for blocks, closures and futures.
//!
//! Two readings of a clock cost several times what the record costs, so an operation of less than a
//! microsecond should be timed by sampling: [`Timer::sampled`] counts every operation in a counter of its own
//! and times one in `2^k`, at random, so that no rhythm of the program hides a kind of operation. The rate is
//! a gauge beside it. What is read from the histogram is then the distribution, and from the counter how many.
//!
//! Times are taken by tokio's clock, which is that of the system unless a test has paused it.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::exemplar::current_trace_id;
use crate::histogram::Histogram;
use crate::registry::{Counter, Registry};
use crate::series::{Kind, Unit};

/// The metric of stages, by label `operation`.
const OPERATIONS: &str = "operation_duration_seconds";
/// The most that [`Timer::sampled`] takes.
const SAMPLED_MAX: u32 = 20;

impl Registry {
    /// Returns a timer of a stage, such as `db.query`: `operation_duration_seconds{operation="db.query"}`.
    ///
    /// # Cost
    ///
    /// A lock and a lookup: keep the timer.
    ///
    /// # Examples
    ///
    /// ```
    /// let registry = monitor::Registry::default();
    /// let query = registry.stage("db.query");
    /// let rows = query.time(|| 3);
    /// # assert_eq!(rows, 3);
    /// ```
    #[must_use]
    pub fn stage(&self, operation: &str) -> Timer {
        self.timer(OPERATIONS, &[("operation", operation)])
    }

    /// Times a stage from now until the guard goes, in one line.
    ///
    /// # Cost
    ///
    /// That of [`stage`](Self::stage), and two readings of the clock.
    ///
    /// # Examples
    ///
    /// ```
    /// let registry = monitor::Registry::default();
    /// {
    ///     let _time = registry.time("render");
    ///     // what takes time
    /// }
    /// ```
    #[must_use = "the time ends when the guard goes"]
    pub fn time(&self, operation: &str) -> TimerGuard {
        self.stage(operation).start()
    }

    /// Returns a timer that records into a histogram of seconds.
    ///
    /// # Cost
    ///
    /// A lock and a lookup: keep the timer.
    #[must_use]
    pub fn timer(&self, name: &str, labels: &[(&str, &str)]) -> Timer {
        let is_known = self.is_described(name);
        if !is_known {
            let help = if name == OPERATIONS { "Time that operations took." } else { "" };
            self.describe(name, Kind::Histogram, Unit::Seconds, help);
        }
        let labels: Arc<[(String, String)]> =
            labels.iter().map(|&(label, value)| (label.to_owned(), value.to_owned())).collect();
        Timer {
            histogram: self.histogram(name, &borrowed(&labels)),
            sample: None,
            origin: Arc::new(Origin { registry: self.clone(), name: name.to_owned(), labels }),
        }
    }
}

fn borrowed(labels: &[(String, String)]) -> Vec<(&str, &str)> {
    labels.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect()
}

/// Where a timer comes from, for those that are derived of it.
struct Origin {
    registry: Registry,
    name: String,
    labels: Arc<[(String, String)]>,
}

/// Times operations into a histogram; clones record into the same series.
#[derive(Clone)]
pub struct Timer {
    histogram: Histogram,
    sample: Option<Sample>,
    origin: Arc<Origin>,
}

#[derive(Clone)]
struct Sample {
    /// Counts every operation.
    count: Counter,
    /// An operation is timed if these bits of a random number are zero.
    mask: u32,
}

impl Timer {
    /// Returns a timer that counts everything and times one in `2^power`.
    ///
    /// The count is in `<stem>_total`, where the stem is the name of the histogram without
    /// `_duration_seconds` or `_seconds`, and the rate in the gauge `<stem>_sampling_ratio`: for stages
    /// `operation_total` and `operation_sampling_ratio`. A `power` of more than 20 counts as 20.
    ///
    /// # Cost
    ///
    /// An operation that is not timed costs one relaxed addition and a random number.
    #[must_use]
    pub fn sampled(&self, power: u32) -> Self {
        let Origin { registry, name, labels } = &*self.origin;
        let stem = name.strip_suffix("_seconds").unwrap_or(name);
        let stem = stem.strip_suffix("_duration").unwrap_or(stem);
        let (total, ratio) = (format!("{stem}_total"), format!("{stem}_sampling_ratio"));
        for (name, kind, unit, help) in [
            (&total, Kind::Counter, Unit::None, "All operations, timed or not."),
            (&ratio, Kind::Gauge, Unit::Ratio, "The part of all operations that is timed."),
        ] {
            if !registry.is_described(name) {
                registry.describe(name, kind, unit, help);
            }
        }
        let labels = borrowed(labels);
        let mask = (1 << power.min(SAMPLED_MAX)) - 1;
        registry.gauge(&ratio, &labels).set(1.0 / f64::from(mask + 1));
        let count = registry.counter(&total, &labels);
        Self { sample: Some(Sample { count, mask }), ..self.clone() }
    }

    /// Begins to time an operation, which ends when the guard goes.
    ///
    /// # Cost
    ///
    /// A reading of the clock now and one at the end; none if the operation is not in the sample.
    #[must_use = "the time ends when the guard goes"]
    pub fn start(&self) -> TimerGuard {
        if let Some(sample) = &self.sample {
            sample.count.increment(1);
            if fastrand::u32(..) & sample.mask != 0 {
                return TimerGuard { running: None };
            }
        }
        let running = Running { histogram: self.histogram.clone(), since: Instant::now() };
        TimerGuard { running: Some(running) }
    }

    /// Times a closure.
    pub fn time<R>(&self, operation: impl FnOnce() -> R) -> R {
        let _guard = self.start();
        operation()
    }

    /// Times a future from its first poll to its end.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped before its end is recorded with the time up to then.
    pub async fn time_future<F: Future>(&self, operation: F) -> F::Output {
        let _guard = self.start();
        operation.await
    }

    /// Records how long an operation took that somebody else has timed.
    pub fn record(&self, took: Duration) {
        if let Some(sample) = &self.sample {
            sample.count.increment(1);
        }
        record(&self.histogram, took);
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_in = self.sample.as_ref().map_or(1, |sample| sample.mask + 1);
        f.debug_struct("Timer")
            .field("name", &self.origin.name)
            .field("labels", &self.origin.labels)
            .field("one_in", &one_in)
            .finish_non_exhaustive()
    }
}

/// An operation that is being timed; it is recorded when this goes.
#[derive(Debug)]
#[must_use = "the time ends when the guard goes"]
pub struct TimerGuard {
    /// Nothing if the operation is not in the sample.
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    histogram: Histogram,
    since: Instant,
}

impl TimerGuard {
    /// Ends the time and returns it; nothing if this operation is not in the sample.
    pub fn stop(mut self) -> Option<Duration> {
        self.running.take().map(Running::stop)
    }

    /// Ends without recording, such as for an operation that turned out to be another one.
    pub fn discard(mut self) {
        self.running = None;
    }
}

impl Running {
    fn stop(self) -> Duration {
        let took = self.since.elapsed();
        record(&self.histogram, took);
        took
    }
}

impl Drop for TimerGuard {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

/// Records a duration, with the trace that is active on this thread as its exemplar.
fn record(histogram: &Histogram, took: Duration) {
    histogram.record_duration(took);
    if let Some(trace_id) = current_trace_id() {
        histogram.offer_exemplar(took.as_secs_f64(), trace_id, crate::exemplar::unix_ms());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::registry::{Snapshot, Value};

    fn read(registry: &Registry) -> Snapshot {
        registry.read(Moment { monotonic: Duration::ZERO, unix_ms: 0 })
    }

    /// How many times of a stage there are, and their sum in seconds.
    fn times(registry: &Registry, operation: &str) -> (u64, f64) {
        match read(registry).get(OPERATIONS, &[("operation", operation)]) {
            Some(Value::Distribution(times)) => (times.count(), times.sum()),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn check(times: (u64, f64), count: u64, seconds: f64) {
        assert_eq!(times.0, count);
        assert!((times.1 - seconds).abs() <= seconds / 500.0, "{times:?} for {seconds} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_ends_with_its_guard_or_its_future() {
        let registry = Registry::default();
        let timer = registry.stage("db.query");
        let guard = timer.start();
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(guard.stop(), Some(Duration::from_millis(250)));
        {
            let _time = registry.time("db.query");
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        timer.time_future(tokio::time::sleep(Duration::from_millis(100))).await;
        timer.start().discard();
        timer.record(Duration::from_millis(150));
        check(times(&registry, "db.query"), 4, 1.0);
        assert!(timer.time(|| true));
        check(times(&registry, "db.query"), 5, 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_future_is_recorded_up_to_then() {
        let registry = Registry::default();
        let timer = registry.stage("slow");
        let slow = timer.time_future(tokio::time::sleep(Duration::from_secs(60)));
        let cut = tokio::time::timeout(Duration::from_secs(2), slow).await;
        assert!(cut.is_err());
        check(times(&registry, "slow"), 1, 2.0);
    }

    #[test]
    fn a_sampled_timer_counts_everything_and_says_its_rate() {
        fastrand::seed(7);
        let registry = Registry::default();
        let timer = registry.stage("l1.get").sampled(3);
        for _ in 0..8_000 {
            timer.time(|| ());
        }
        let read = read(&registry);
        let labels = [("operation", "l1.get")];
        assert_eq!(read.number("operation_total", &labels), Some(8_000.0));
        assert_eq!(read.number("operation_sampling_ratio", &labels), Some(0.125));
        let (timed, _) = times(&registry, "l1.get");
        assert!((900..1_100).contains(&timed), "{timed} of 8,000");
    }

    #[test]
    fn a_timer_of_another_name_derives_its_names_from_it() {
        let registry = Registry::default();
        let timer = registry.timer("cache_get_seconds", &[]).sampled(40);
        timer.record(Duration::from_secs(1));
        let read = read(&registry);
        assert_eq!(read.number("cache_get_total", &[]), Some(1.0));
        assert_eq!(read.number("cache_get_sampling_ratio", &[]), Some(0.5_f64.powi(20)));
        assert!(matches!(read.get("cache_get_seconds", &[]), Some(Value::Distribution(_))));
    }
}
