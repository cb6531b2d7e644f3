//! Hedging: a second call when the first one takes longer than most do.
//!
//! The wait before the second call is a quantile of the latencies measured so far (Dean and Barroso,
//! "The Tail at Scale", CACM 2013: after the 95th percentile, a hedge costs about 5 % more calls), kept
//! between two bounds, and none is made before enough calls were measured. Hedges are paid for by the
//! [`RetryBudget`] that retries are paid from.
//!
//! Latencies are counted in buckets that grow by an eighth, in two halves of a time window: the older
//! half is forgotten when the newer one is full of time. The counters are tagged with their half, so
//! nothing is cleared and nothing locked.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Counter;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::build_error::{BuildError, Problem, Problems};
use crate::nanos::nanos;
use crate::window::TaggedCounter;
use crate::{Extra, RetryBudget};

/// Each power of two is cut into so many buckets, as a power of two itself.
const CUTS_LOG2: u32 = 3;
const CUTS: u64 = 1 << CUTS_LOG2;
/// Latencies from 2^LEAST_LOG2 ns (1 µs) on are told apart, and up to 2^MOST_LOG2 ns (18 minutes).
const LEAST_LOG2: u32 = 10;
const MOST_LOG2: u32 = 40;
const BUCKETS: usize = ((MOST_LOG2 - LEAST_LOG2) as u64 * CUTS) as usize;

/// The distribution of the last latencies.
struct Latencies {
    half: u64,
    buckets: [Box<[TaggedCounter]>; 2],
}

impl Latencies {
    fn new(window_nanos: u64) -> Self {
        let row = || (0..BUCKETS).map(|_| TaggedCounter::default()).collect();
        Self { half: (window_nanos / 2).max(1), buckets: [row(), row()] }
    }

    fn record(&self, latency: u64, now: u64) {
        let half = now / self.half;
        let row = &self.buckets[(half % 2) as usize];
        // Whoever is so late that its half is gone takes the counter back for a moment; the next one
        // takes it again. A few samples of many thousands may be lost by that.
        row[bucket(latency)].add(half as u32, || true);
    }

    /// Returns the quantile's upper bound, if there are at least `least` samples.
    fn quantile(&self, quantile: f64, least: u64, now: u64) -> Option<u64> {
        let half = now / self.half;
        let newer = &self.buckets[(half % 2) as usize];
        let older = &self.buckets[((half + 1) % 2) as usize];
        let count = |index: usize| {
            let older = if half > 0 { older[index].count((half - 1) as u32) } else { 0 };
            u64::from(newer[index].count(half as u32)) + u64::from(older)
        };
        let counts: [u64; BUCKETS] = std::array::from_fn(count);
        let total: u64 = counts.iter().sum();
        if total < least.max(1) {
            return None;
        }
        let rank = ((total as f64 * quantile).ceil() as u64).clamp(1, total);
        let mut seen = 0;
        let index = counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(upper_bound(index))
    }
}

fn bucket(latency: u64) -> usize {
    let latency = latency.clamp(1 << LEAST_LOG2, (1 << MOST_LOG2) - 1);
    let power = latency.ilog2();
    let cut = (latency >> (power - CUTS_LOG2)) & (CUTS - 1);
    (u64::from(power - LEAST_LOG2) * CUTS + cut) as usize
}

/// The least latency that is above all of a bucket's.
fn upper_bound(bucket: usize) -> u64 {
    let (power, cut) = (bucket as u64 / CUTS, bucket as u64 % CUTS);
    (CUTS + cut + 1) << (power + u64::from(LEAST_LOG2 - CUTS_LOG2))
}

/// Decides when a second call is worth its price. Clones share the measurements.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use resilience::Hedge;
///
/// let now = Instant::now();
/// let hedge = Hedge::builder("search").percentile(0.95).minimum_calls(100).build_at(now)?;
/// for millis in 1..=100 {
///     hedge.record_at(Duration::from_millis(millis), now);
/// }
/// let delay = hedge.delay_at(now).expect("enough calls were measured");
/// assert!(delay >= Duration::from_millis(95) && delay <= Duration::from_millis(107));
/// # Ok::<_, resilience::BuildError>(())
/// ```
#[derive(Clone)]
pub struct Hedge {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    epoch: Instant,
    percentile: f64,
    least: Duration,
    most: Duration,
    minimum_calls: u64,
    latencies: Latencies,
    budget: RetryBudget,
    hedged: Counter,
    won: Counter,
}

impl Hedge {
    /// Starts the settings of hedging.
    pub fn builder(name: impl Into<String>) -> HedgeBuilder {
        HedgeBuilder {
            name: name.into(),
            percentile: 0.95,
            least: Duration::from_millis(1),
            most: Duration::from_secs(10),
            minimum_calls: 100,
            window: Duration::from_secs(60),
            budget: None,
        }
    }

    /// Measures a call that got an answer.
    ///
    /// # Cost
    ///
    /// One uncontended compare-exchange.
    pub fn record_at(&self, latency: Duration, now: Instant) {
        self.shared.latencies.record(nanos(latency), self.nanos(now));
    }

    /// Returns how long to wait for the first call, if enough were measured to tell.
    ///
    /// # Cost
    ///
    /// Reads 480 counters, about 0.2 µs.
    pub fn delay_at(&self, now: Instant) -> Option<Duration> {
        let shared = &*self.shared;
        let delay =
            shared.latencies.quantile(shared.percentile, shared.minimum_calls, self.nanos(now))?;
        Some(Duration::from_nanos(delay).clamp(shared.least, shared.most))
    }

    /// Asks for the price of a second call at `now`.
    pub fn try_spend_at(&self, now: Instant) -> bool {
        let given = self.shared.budget.try_spend_at(Extra::Hedge, now);
        if given {
            self.shared.hedged.fetch_add(1, Ordering::Relaxed);
        }
        given
    }

    /// Returns the budget that pays for the hedges.
    pub fn budget(&self) -> &RetryBudget {
        &self.shared.budget
    }

    /// Reads the counts.
    pub fn stats(&self) -> HedgeStats {
        HedgeStats {
            hedged: self.shared.hedged.load(Ordering::Relaxed),
            won: self.shared.won.load(Ordering::Relaxed),
        }
    }

    /// Makes a call, and once more if it takes long; the first success is the answer.
    ///
    /// Only for calls that may be made twice. The call counts towards the budget; `good` says which
    /// results are answers worth having and go into the measurements. If both fail, the answer is that
    /// of the one that failed last.
    ///
    /// # Cancel safety
    ///
    /// That of the call: whichever of the two has not ended is dropped.
    #[cfg(feature = "tokio")]
    pub async fn call<R, F, Fut, G>(&self, make: F, good: G) -> R
    where
        F: Fn() -> Fut,
        Fut: Future<Output = R>,
        G: Fn(&R) -> bool,
    {
        self.budget().call_at(crate::deadline::now());
        self.race(make, good).await
    }

    #[cfg(feature = "tokio")]
    pub(crate) async fn race<R, F, Fut, G>(&self, make: F, good: G) -> R
    where
        F: Fn() -> Fut,
        Fut: Future<Output = R>,
        G: Fn(&R) -> bool,
    {
        use crate::deadline::now;

        let timed = || {
            let start = now();
            let call = make();
            async move {
                let result = call.await;
                let end = now();
                (result, end - start, end)
            }
        };
        let done = |(result, latency, end): (R, Duration, Instant)| {
            if good(&result) {
                self.record_at(latency, end);
            }
            result
        };
        let mut first = std::pin::pin!(timed());
        let Some(delay) = self.delay_at(now()) else { return done(first.await) };
        if let Ok(ended) = tokio::time::timeout(delay, first.as_mut()).await {
            return done(ended);
        }
        if !self.try_spend_at(now()) {
            return done(first.await);
        }
        let mut second = std::pin::pin!(timed());
        tokio::select! {
            biased;
            ended = first.as_mut() => {
                if good(&ended.0) { done(ended) } else { done(second.await) }
            }
            ended = second.as_mut() => {
                if good(&ended.0) {
                    self.shared.won.fetch_add(1, Ordering::Relaxed);
                    done(ended)
                } else {
                    done(first.await)
                }
            }
        }
    }

    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.shared.epoch))
    }
}

impl fmt::Debug for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// Collects the settings of a [`Hedge`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct HedgeBuilder {
    name: String,
    percentile: f64,
    least: Duration,
    most: Duration,
    minimum_calls: u64,
    window: Duration,
    budget: Option<RetryBudget>,
}

impl HedgeBuilder {
    /// Sets which share of the calls has to be faster than the wait: 0.5 to 0.999; 0.95 unless told.
    pub fn percentile(mut self, percentile: f64) -> Self {
        self.percentile = percentile;
        self
    }

    /// Sets the shortest and the longest wait: up to 1 hour; 1 ms and 10 s unless told.
    pub fn delay(mut self, least: Duration, most: Duration) -> Self {
        self.least = least;
        self.most = most;
        self
    }

    /// Sets how many calls must have been measured before one is hedged: at least 1; 100 unless told.
    pub fn minimum_calls(mut self, calls: u64) -> Self {
        self.minimum_calls = calls;
        self
    }

    /// Sets how far back the measurements reach, at most: 1 s to 24 hours; 60 s unless told.
    ///
    /// They are forgotten half by half, so they reach back at least half as far.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets the budget that pays for the hedges; one of its own with the defaults unless told.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings.
    pub fn build(self) -> Result<Hedge, BuildError> {
        self.build_at(Instant::now())
    }

    /// Checks the settings; measurements begin at `now`.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_at(self, now: Instant) -> Result<Hedge, BuildError> {
        BuildError::unless_none("hedge", &self.name, self.problems())?;
        let budget = match self.budget {
            Some(budget) => budget,
            None => RetryBudget::builder(self.name.clone()).build_at(now)?,
        };
        let shared = Shared {
            name: self.name,
            epoch: now,
            percentile: self.percentile,
            least: self.least,
            most: self.most,
            minimum_calls: self.minimum_calls,
            latencies: Latencies::new(nanos(self.window)),
            budget,
            hedged: Counter::new(0),
            won: Counter::new(0),
        };
        Ok(Hedge { shared: Arc::new(shared) })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        problems.check(!self.name.is_empty(), "name", &self.name, "must not be empty");
        problems.check(
            (0.5..=0.999).contains(&self.percentile),
            "percentile",
            &self.percentile,
            "must be from 0.5 to 0.999",
        );
        problems.check(
            self.least <= self.most,
            "delay.least",
            &self.least,
            "must be at most delay.most",
        );
        problems.check(
            self.most <= Duration::from_hours(1),
            "delay.most",
            &self.most,
            "must be at most 1 hour",
        );
        problems.check(
            self.minimum_calls > 0,
            "minimum_calls",
            &self.minimum_calls,
            "must be at least 1",
        );
        problems.check(
            (Duration::from_secs(1)..=Duration::from_hours(24)).contains(&self.window),
            "window",
            &self.window,
            "must be from 1 s to 24 hours",
        );
        problems.found
    }
}

/// What hedging has done since it was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HedgeStats {
    /// Second calls that were paid for.
    pub hedged: u64,
    /// Second calls that were the answer.
    pub won: u64,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hedge(settings: impl FnOnce(HedgeBuilder) -> HedgeBuilder, now: Instant) -> Hedge {
        let builder = settings(Hedge::builder("test").minimum_calls(10));
        builder.build_at(now).expect("the test's settings are valid")
    }

    #[test]
    fn nothing_is_hedged_before_enough_calls_were_measured() {
        let now = Instant::now();
        let hedge = hedge(|b| b, now);
        for _ in 0..9 {
            hedge.record_at(Duration::from_millis(5), now);
            assert_eq!(hedge.delay_at(now), None);
        }
        hedge.record_at(Duration::from_millis(5), now);
        assert!(hedge.delay_at(now).is_some());
    }

    #[test]
    fn measurements_are_forgotten_after_the_window() {
        let start = Instant::now();
        let hedge = hedge(|b| b.window(Duration::from_secs(20)), start);
        (0..20).for_each(|_| hedge.record_at(Duration::from_millis(5), start));
        let seconds = |seconds| start + Duration::from_secs(seconds);
        assert!(hedge.delay_at(seconds(19)).is_some());
        assert_eq!(hedge.delay_at(seconds(20)), None);
        (0..20).for_each(|_| hedge.record_at(Duration::from_millis(500), seconds(20)));
        assert!(hedge.delay_at(seconds(20)) > Some(Duration::from_millis(499)));
    }

    #[test]
    fn the_wait_stays_between_its_bounds() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let hedge = hedge(|b| b.delay(ms(10), ms(20)), now);
        (0..20).for_each(|_| hedge.record_at(ms(1), now));
        assert_eq!(hedge.delay_at(now), Some(ms(10)));
        (0..2_000).for_each(|_| hedge.record_at(ms(1_000), now));
        assert_eq!(hedge.delay_at(now), Some(ms(20)));
    }

    #[test]
    fn settings_that_cannot_be_used_are_problems() {
        let error = Hedge::builder("h")
            .percentile(1.0)
            .delay(Duration::from_secs(2), Duration::from_secs(1))
            .minimum_calls(0)
            .window(Duration::ZERO)
            .build()
            .expect_err("four settings cannot be used");
        assert_eq!(
            error.to_string(),
            "invalid hedge \"h\", 4 problems:\n  \
             percentile = 1.0: must be from 0.5 to 0.999\n  \
             delay.least = 2s: must be at most delay.most\n  \
             minimum_calls = 0: must be at least 1\n  \
             window = 0ns: must be from 1 s to 24 hours"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 256 }))]

        #[test]
        fn a_latency_lies_just_below_the_bound_of_its_bucket(latency in 1_u64 << 10..1 << 40) {
            let bound = upper_bound(bucket(latency));
            prop_assert!(latency < bound && bound <= latency + latency / CUTS + 1);
        }

        /// Against a sorted list of what was measured.
        #[test]
        fn a_quantile_is_that_of_a_sorted_list_within_an_eighth(
            mut latencies in prop::collection::vec(1_u64 << 10..1 << 36, 1..200),
            quantile in 0.5_f64..=0.999,
        ) {
            let ours = Latencies::new(1_000_000_000);
            latencies.iter().for_each(|latency| ours.record(*latency, 7));
            latencies.sort_unstable();
            let rank = (latencies.len() as f64 * quantile).ceil() as usize;
            let exact = latencies[rank - 1];
            let found = ours.quantile(quantile, 1, 7).expect("there are samples");
            prop_assert!(exact < found && found <= exact + exact / CUTS + 1);
        }
    }
}
