//! A limit of calls in flight that finds its own value.
//!
//! Too many calls in flight only queue up in the dependency: throughput stays, latency grows. Two known
//! algorithms find the number above which that begins:
//!
//! - *Gradient2* (Netflix concurrency-limits, `Gradient2Limit`) compares the latency of now with its
//!   long-term mean. As long as it is within `tolerance` of that, the limit grows by `queue`; beyond,
//!   it shrinks by the ratio, at most to a half, smoothed. The long-term mean forgets faster when it is
//!   twice the latency of now, so it comes down again after an overload.
//! - *AIMD* (additive increase, multiplicative decrease; Chiu and Jain, 1989) adds one while calls are
//!   answered within a latency limit, and takes a tenth when they are not.
//!
//! Calls are summed up in rounds of at least a time and a number of calls; each round moves the limit
//! once. Netflix's Gradient2 ignores refusals; here a round with an overload or a time-out takes a tenth
//! whatever the latency says, in both algorithms, since a dependency that says that it has too much
//! should be believed. A round that used less than half of the limit does not make it grow.
//! Failures that are not overload are often fast and say nothing about capacity: they are no sample.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::build_error::{BuildError, Problem, Problems};

/// What a round with an overload leaves of the limit.
const BACKOFF: f64 = 0.9;
/// How many rounds the long-term mean stands for.
const LONG_ROUNDS: f64 = 600.0;
/// For how many rounds the long-term mean is a plain mean.
const WARM_UP_ROUNDS: f64 = 10.0;

/// How a limit is found.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum LimitAlgorithm {
    /// By the ratio of the latency to its long-term mean.
    Gradient2 {
        /// How many times the long-term mean the latency may be: 1 to 10; 1.5 is usual.
        tolerance: f64,
        /// By how much the limit grows in a round: 1 to 1,000; 4 is usual. It is also about how many
        /// calls may wait in the dependency.
        queue: f64,
        /// Which share of the way to its new value the limit goes in a round: above 0, at most 1;
        /// 0.2 is usual.
        smoothing: f64,
    },
    /// By adding one, and taking a tenth when the mean latency is above the limit.
    Aimd {
        /// The latency that is too much.
        latency: Duration,
    },
}

impl LimitAlgorithm {
    /// Gradient2 with its usual numbers.
    pub const GRADIENT2: Self = Self::Gradient2 { tolerance: 1.5, queue: 4.0, smoothing: 0.2 };
}

/// Bounds the calls in flight by a number that follows the dependency. Clones share it.
///
/// # Cost
///
/// Two atomic operations to begin a call, one and a short lock to end it.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use resilience::{AdaptiveLimit, LimitAlgorithm, Outcome};
///
/// let now = Instant::now();
/// let limit = AdaptiveLimit::builder("search")
///     .algorithm(LimitAlgorithm::Aimd { latency: Duration::from_millis(50) })
///     .limits(1, 100)
///     .initial(2)
///     .build_at(now)?;
///
/// let first = limit.try_acquire_at(now)?;
/// let second = limit.try_acquire_at(now)?;
/// assert!(limit.try_acquire_at(now).is_err());
/// first.complete_at(Outcome::Success, now + Duration::from_millis(10));
/// assert_eq!(limit.stats().in_flight, 1);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct AdaptiveLimit {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    settings: Settings,
    limit: AtomicU32,
    in_flight: AtomicU32,
    rejected: AtomicU64,
    estimate: Mutex<Estimate>,
}

#[derive(Clone, Copy, Debug)]
struct Settings {
    algorithm: LimitAlgorithm,
    least: u32,
    most: u32,
    round: Duration,
    round_calls: u32,
}

/// What is known, and the round that is being summed up.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    limit: f64,
    /// The long-term mean latency in nanoseconds, and how many rounds are in it.
    long: f64,
    rounds: f64,
    round_since: Instant,
    calls: u32,
    latency_sum: f64,
    most_in_flight: u32,
    overloaded: bool,
}

impl Estimate {
    /// Takes a call that ended, and moves the limit if that ends a round.
    fn record(&mut self, sample: Sample, settings: &Settings, now: Instant) {
        match sample {
            Sample::Latency(latency) => {
                self.calls += 1;
                self.latency_sum += latency.as_nanos() as f64;
            }
            Sample::Overload => self.overloaded = true,
        }
        let over = now.saturating_duration_since(self.round_since) >= settings.round;
        if !over || (self.calls < settings.round_calls && !self.overloaded) {
            return;
        }
        let mean = (self.calls > 0).then(|| self.latency_sum / f64::from(self.calls));
        // The long-term mean learns from every round that has latencies.
        let long = mean.map(|mean| self.long_with(mean));
        self.limit = if self.overloaded {
            self.limit * BACKOFF
        } else {
            match (settings.algorithm, mean.zip(long)) {
                (LimitAlgorithm::Gradient2 { tolerance, queue, smoothing }, Some((mean, long))) => {
                    if self.is_idle() {
                        self.limit
                    } else {
                        let gradient = (tolerance * long / mean.max(1.0)).clamp(0.5, 1.0);
                        let target = self.limit * gradient + queue;
                        self.limit + (target - self.limit) * smoothing
                    }
                }
                (LimitAlgorithm::Aimd { latency }, Some((mean, _))) => {
                    if mean > latency.as_nanos() as f64 {
                        self.limit * BACKOFF
                    } else if self.is_idle() {
                        self.limit
                    } else {
                        self.limit + 1.0
                    }
                }
                (_, None) => self.limit,
            }
        }
        .clamp(f64::from(settings.least), f64::from(settings.most));
        *self = Self {
            round_since: now,
            calls: 0,
            latency_sum: 0.0,
            most_in_flight: 0,
            overloaded: false,
            ..*self
        };
    }

    fn is_idle(&self) -> bool {
        f64::from(self.most_in_flight) < self.limit / 2.0
    }

    /// Takes a round's mean into the long-term mean and returns it.
    fn long_with(&mut self, mean: f64) -> f64 {
        self.rounds = (self.rounds + 1.0).min(LONG_ROUNDS);
        let share = if self.rounds <= WARM_UP_ROUNDS {
            1.0 / self.rounds
        } else {
            2.0 / (LONG_ROUNDS + 1.0)
        };
        self.long += (mean - self.long) * share;
        if self.long > 2.0 * mean {
            self.long *= 0.95;
        }
        self.long
    }
}

/// What a call says about the limit.
enum Sample {
    Latency(Duration),
    Overload,
}

impl AdaptiveLimit {
    /// Starts the settings of a limit.
    pub fn builder(name: impl Into<String>) -> AdaptiveLimitBuilder {
        AdaptiveLimitBuilder {
            name: name.into(),
            algorithm: LimitAlgorithm::GRADIENT2,
            least: 1,
            most: 1_000,
            initial: 20,
            round: Duration::from_millis(100),
            round_calls: 10,
        }
    }

    /// Asks to make a call.
    ///
    /// # Errors
    ///
    /// [`LimitReached`] if as many calls are in flight as the limit allows.
    pub fn try_acquire(&self) -> Result<LimitPermit, LimitReached> {
        self.try_acquire_at(Instant::now())
    }

    /// Asks to make a call that begins at `now`.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_at(&self, now: Instant) -> Result<LimitPermit, LimitReached> {
        let shared = &self.shared;
        let limit = shared.limit.load(Ordering::Relaxed);
        // Relaxed: the number guards nothing but itself.
        let taken = shared.in_flight.try_update(Ordering::Relaxed, Ordering::Relaxed, |calls| {
            (calls < limit).then_some(calls + 1)
        });
        match taken {
            Ok(before) => {
                Ok(LimitPermit { shared: Arc::clone(shared), started: now, in_flight: before + 1 })
            }
            Err(_) => {
                shared.rejected.fetch_add(1, Ordering::Relaxed);
                Err(LimitReached { limit })
            }
        }
    }

    /// Reads the limit and the counts.
    pub fn stats(&self) -> AdaptiveLimitStats {
        AdaptiveLimitStats {
            limit: self.shared.limit.load(Ordering::Relaxed),
            in_flight: self.shared.in_flight.load(Ordering::Relaxed),
            rejected: self.shared.rejected.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for AdaptiveLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdaptiveLimit")
            .field("name", &self.shared.name)
            .field("limit", &self.stats().limit)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn estimate(&self) -> MutexGuard<'_, Estimate> {
        // Plain numbers, written at the end: a panic elsewhere leaves nothing half done.
        self.estimate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call in flight; dropped, it gives its place back and was no sample.
#[must_use = "a permit that is dropped gives its place back at once"]
pub struct LimitPermit {
    shared: Arc<Shared>,
    started: Instant,
    in_flight: u32,
}

impl LimitPermit {
    /// Reports how the call ended.
    pub fn complete(self, outcome: Outcome) {
        self.complete_at(outcome, Instant::now());
    }

    /// Reports how the call ended at `now`.
    pub fn complete_at(self, outcome: Outcome, now: Instant) {
        let latency = now.saturating_duration_since(self.started);
        match outcome {
            Outcome::Success => self.record(Sample::Latency(latency), now),
            Outcome::Overload { .. } => self.record(Sample::Overload, now),
            Outcome::Failure | Outcome::Ignored | Outcome::Cancelled => {}
        }
    }

    /// Reports that the call did not end in time, which counts as overload.
    pub fn timed_out_at(self, now: Instant) {
        self.record(Sample::Overload, now);
    }

    fn record(&self, sample: Sample, now: Instant) {
        let mut estimate = self.shared.estimate();
        estimate.most_in_flight = estimate.most_in_flight.max(self.in_flight);
        estimate.record(sample, &self.shared.settings, now);
        self.shared.limit.store(estimate.limit as u32, Ordering::Relaxed);
    }
}

impl Drop for LimitPermit {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for LimitPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitPermit").field("limit", &self.shared.name).finish_non_exhaustive()
    }
}

/// As many calls are in flight as may be; this one was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} calls are in flight, which is the limit for now")]
#[non_exhaustive]
pub struct LimitReached {
    /// The limit at that moment.
    pub limit: u32,
}

/// A snapshot of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdaptiveLimitStats {
    /// How many calls may be in flight.
    pub limit: u32,
    /// How many are.
    pub in_flight: u32,
    /// Calls turned away since the limit was built.
    pub rejected: u64,
}

/// Collects the settings of an [`AdaptiveLimit`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct AdaptiveLimitBuilder {
    name: String,
    algorithm: LimitAlgorithm,
    least: u32,
    most: u32,
    initial: u32,
    round: Duration,
    round_calls: u32,
}

impl AdaptiveLimitBuilder {
    /// Sets how the limit is found; [`LimitAlgorithm::GRADIENT2`] unless told.
    pub fn algorithm(mut self, algorithm: LimitAlgorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Sets the least and the largest limit: at least 1; 1 and 1,000 unless told.
    pub fn limits(mut self, least: u32, most: u32) -> Self {
        self.least = least;
        self.most = most;
        self
    }

    /// Sets the limit to begin with; 20 unless told.
    pub fn initial(mut self, limit: u32) -> Self {
        self.initial = limit;
        self
    }

    /// Sets how much a round sums up at least: a time up to 1 hour, and some answered calls; 100 ms and
    /// 10 calls unless told.
    pub fn round(mut self, time: Duration, calls: u32) -> Self {
        self.round = time;
        self.round_calls = calls;
        self
    }

    /// Checks the settings and makes a limit.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings.
    pub fn build(self) -> Result<AdaptiveLimit, BuildError> {
        self.build_at(Instant::now())
    }

    /// Checks the settings and makes a limit whose first round begins at `now`.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_at(self, now: Instant) -> Result<AdaptiveLimit, BuildError> {
        BuildError::unless_none("adaptive limit", &self.name, self.problems())?;
        let settings = Settings {
            algorithm: self.algorithm,
            least: self.least,
            most: self.most,
            round: self.round,
            round_calls: self.round_calls,
        };
        let estimate = Estimate {
            limit: f64::from(self.initial),
            long: 0.0,
            rounds: 0.0,
            round_since: now,
            calls: 0,
            latency_sum: 0.0,
            most_in_flight: 0,
            overloaded: false,
        };
        let shared = Shared {
            name: self.name,
            settings,
            limit: AtomicU32::new(self.initial),
            in_flight: AtomicU32::new(0),
            rejected: AtomicU64::new(0),
            estimate: Mutex::new(estimate),
        };
        Ok(AdaptiveLimit { shared: Arc::new(shared) })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        let mut check = |holds, setting, value: &dyn fmt::Debug, expected| {
            problems.check(holds, setting, value, expected);
        };
        check(!self.name.is_empty(), "name", &self.name, "must not be empty");
        match self.algorithm {
            LimitAlgorithm::Gradient2 { tolerance, queue, smoothing } => {
                check(
                    (1.0..=10.0).contains(&tolerance),
                    "algorithm.tolerance",
                    &tolerance,
                    "must be from 1 to 10",
                );
                check(
                    (1.0..=1_000.0).contains(&queue),
                    "algorithm.queue",
                    &queue,
                    "must be from 1 to 1000",
                );
                check(
                    smoothing > 0.0 && smoothing <= 1.0,
                    "algorithm.smoothing",
                    &smoothing,
                    "must be above 0 and at most 1",
                );
            }
            LimitAlgorithm::Aimd { latency } => {
                check(!latency.is_zero(), "algorithm.latency", &latency, "must be above 0");
            }
        }
        check(self.least >= 1, "limits.least", &self.least, "must be at least 1");
        check(self.least <= self.most, "limits.least", &self.least, "must be at most limits.most");
        check(
            (self.least..=self.most).contains(&self.initial),
            "initial",
            &self.initial,
            "must be within limits",
        );
        check(
            self.round <= Duration::from_hours(1),
            "round.time",
            &self.round,
            "must be at most 1 hour",
        );
        check(self.round_calls >= 1, "round.calls", &self.round_calls, "must be at least 1");
        problems.found
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
