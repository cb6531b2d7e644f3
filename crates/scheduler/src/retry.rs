//! Retries: when a failed attempt is made again, and when it had better not be.
//!
//! Three questions, each with an answer of its own. *May it?* A predicate over the error, so that a
//! mistake of the caller is not repeated. *When?* Exponential back-off with full jitter: the wait is
//! drawn evenly from zero to `base` x 2^n, at most `max`; of the usual ways this one spreads the load of
//! many clients best (Brooker, "Exponential Backoff And Jitter", AWS 2015). *May everybody?* A
//! [`RetryBudget`] shared by many tasks: each first attempt pays in a part of a retry, each retry takes a
//! whole one out, so an outage multiplies the load by at most `1 + ratio` (as in Finagle).
//!
//! [`Retry`] is plain data and [`Backoff`] the state of one task. Both take the time and the seed from
//! outside and wait for nobody.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use parking_lot::Mutex;

/// The most retries one task can be given.
pub const RETRIES_MAX: u32 = 100;

/// How the attempts of a task follow each other; every setting has a default.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use scheduler::Retry;
///
/// let retry = Retry::exponential(3)
///     .delays(Duration::from_millis(20), Duration::from_secs(1))
///     .when(|error: &std::io::Error| error.kind() == std::io::ErrorKind::TimedOut);
/// assert_eq!(retry.retries(), 3);
/// ```
#[derive(Clone)]
pub struct Retry<P = Always> {
    retries: u32,
    base: Duration,
    max: Duration,
    budget: Option<RetryBudget>,
    seed: Option<u64>,
    judge: P,
}

/// Retries after every error.
#[derive(Clone, Copy, Debug, Default)]
pub struct Always;

/// Retries after the errors for which a function says so.
#[derive(Clone, Copy)]
pub struct When<F>(F);

/// Says after which errors a task may be tried again; [`Always`] and [`When`] do.
pub trait RetryIf<E> {
    /// Tells whether the error may go away by itself.
    fn may_retry(&self, error: &E) -> bool;
}

impl<E> RetryIf<E> for Always {
    fn may_retry(&self, _: &E) -> bool {
        true
    }
}

impl<E, F: Fn(&E) -> bool> RetryIf<E> for When<F> {
    fn may_retry(&self, error: &E) -> bool {
        (self.0)(error)
    }
}

impl Retry {
    /// Tries again up to `retries` times after the first attempt, and at most [`RETRIES_MAX`] times.
    ///
    /// The first wait is at most 50 ms, the longest at most 5 s; there is no budget.
    pub fn exponential(retries: u32) -> Self {
        Self {
            retries: retries.min(RETRIES_MAX),
            base: Duration::from_millis(50),
            max: Duration::from_secs(5),
            budget: None,
            seed: None,
            judge: Always,
        }
    }
}

impl<P> Retry<P> {
    /// Sets the longest first wait and the longest of all; a `max` below `base` counts as `base`.
    pub fn delays(mut self, base: Duration, max: Duration) -> Self {
        self.base = base;
        self.max = max.max(base);
        self
    }

    /// Takes every retry out of a budget shared with other tasks.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Sets the seed of the jitter; drawn at random for each task unless told.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Retries only after errors for which `judge` returns true.
    pub fn when<E, F: Fn(&E) -> bool>(self, judge: F) -> Retry<When<F>> {
        let Self { retries, base, max, budget, seed, judge: _ } = self;
        Retry { retries, base, max, budget, seed, judge: When(judge) }
    }

    /// Returns how many attempts may follow the first.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    /// Begins a task at `now`: pays its share into the budget and returns the state of its attempts.
    pub fn start(self, now: Instant) -> Backoff<P> {
        if let Some(budget) = &self.budget {
            budget.deposit(now);
        }
        let rng = Rng::with_seed(self.seed.unwrap_or_else(|| fastrand::u64(..)));
        Backoff { made: 0, rng, retry: self }
    }
}

impl<P> fmt::Debug for Retry<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("retries", &self.retries)
            .field("base", &self.base)
            .field("max", &self.max)
            .field("budget", &self.budget)
            .finish_non_exhaustive()
    }
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// Make another attempt after this wait.
    RetryIn(Duration),
    /// Return the error, for this reason.
    GiveUp(GiveUp),
}

/// Why a failed attempt is the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GiveUp {
    /// All the retries are used.
    Exhausted,
    /// The predicate says that the error stays.
    Permanent,
    /// The budget shared with other tasks is empty.
    NoBudget,
}

/// The attempts of one task.
#[derive(Debug)]
pub struct Backoff<P = Always> {
    retry: Retry<P>,
    made: u32,
    rng: Rng,
}

impl<P> Backoff<P> {
    /// Decides what follows an attempt that failed with `error` at `now`.
    ///
    /// # Cost
    ///
    /// No allocation. A budget is one short lock.
    pub fn failed<E>(&mut self, error: &E, now: Instant) -> AfterFailure
    where
        P: RetryIf<E>,
    {
        if !self.retry.judge.may_retry(error) {
            return AfterFailure::GiveUp(GiveUp::Permanent);
        }
        if self.made >= self.retry.retries {
            return AfterFailure::GiveUp(GiveUp::Exhausted);
        }
        // Asked last: a retry that is not made must not cost anybody else one.
        if self.retry.budget.as_ref().is_some_and(|budget| !budget.withdraw(now)) {
            return AfterFailure::GiveUp(GiveUp::NoBudget);
        }
        let ceiling = ceiling(self.retry.base, self.retry.max, self.made);
        self.made += 1;
        AfterFailure::RetryIn(ceiling.mul_f64(self.rng.f64()))
    }

    /// Returns how many retries were decided so far.
    pub fn retries_made(&self) -> u32 {
        self.made
    }
}

/// The longest wait before the retry after `made` others.
fn ceiling(base: Duration, max: Duration, made: u32) -> Duration {
    let factor = 1_u32.checked_shl(made).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(max)
}

/// A store of retries shared by tasks: first attempts fill it a little, retries empty it.
///
/// Clones share one store. It holds at most `capacity` retries and starts full, so a burst of failures
/// after a quiet time is not turned away.
#[derive(Clone)]
pub struct RetryBudget {
    ratio: f64,
    per_second: f64,
    capacity: f64,
    store: Arc<Mutex<Store>>,
}

struct Store {
    retries: f64,
    filled: Option<Instant>,
    refused: u64,
}

impl RetryBudget {
    /// Makes a budget: every first attempt adds `ratio` retries, every second `per_second`.
    ///
    /// It holds at most `capacity` retries. Numbers that are negative or not finite count as zero.
    pub fn new(ratio: f64, per_second: f64, capacity: u32) -> Self {
        let usable = |number: f64| if number.is_finite() { number.max(0.0) } else { 0.0 };
        let capacity = f64::from(capacity);
        let store = Store { retries: capacity, filled: None, refused: 0 };
        let store = Arc::new(Mutex::new(store));
        Self { ratio: usable(ratio), per_second: usable(per_second), capacity, store }
    }

    /// Returns how many retries could be made at `now`.
    pub fn available(&self, now: Instant) -> u32 {
        let mut store = self.store.lock();
        self.fill(&mut store, now);
        store.retries as u32
    }

    /// Returns how many retries were not made for want of budget.
    pub fn refused(&self) -> u64 {
        self.store.lock().refused
    }

    fn deposit(&self, now: Instant) {
        let mut store = self.store.lock();
        self.fill(&mut store, now);
        store.retries = (store.retries + self.ratio).min(self.capacity);
    }

    fn withdraw(&self, now: Instant) -> bool {
        let mut store = self.store.lock();
        self.fill(&mut store, now);
        // Ten deposits of a tenth are a retry, although they do not sum up to 1.0 exactly.
        let enough = store.retries >= 1.0 - 1e-9;
        if enough {
            store.retries = (store.retries - 1.0).max(0.0);
        } else {
            store.refused += 1;
        }
        enough
    }

    fn fill(&self, store: &mut Store, now: Instant) {
        let filled = store.filled.get_or_insert(now);
        let passed = now.saturating_duration_since(*filled).as_secs_f64();
        *filled = now.max(*filled);
        store.retries = (store.retries + passed * self.per_second).min(self.capacity);
    }
}

impl Default for RetryBudget {
    /// A fifth of a retry for each first attempt, ten a second, at most a hundred.
    fn default() -> Self {
        Self::new(0.2, 10.0, 100)
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget")
            .field("ratio", &self.ratio)
            .field("per_second", &self.per_second)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// The waits of a task whose attempts all fail.
    fn waits(retry: Retry, now: Instant) -> Vec<Duration> {
        let mut backoff = retry.start(now);
        std::iter::from_fn(|| match backoff.failed(&(), now) {
            AfterFailure::RetryIn(wait) => Some(wait),
            AfterFailure::GiveUp(_) => None,
        })
        .collect()
    }

    #[test]
    fn each_wait_is_drawn_from_the_whole_range_and_the_range_doubles() {
        let now = Instant::now();
        let mut longest = [Duration::ZERO; 6];
        let mut shortest = [Duration::MAX; 6];
        for seed in 0..2_000 {
            let retry =
                Retry::exponential(6).delays(10 * MILLISECOND, 100 * MILLISECOND).seed(seed);
            for (index, wait) in waits(retry, now).into_iter().enumerate() {
                longest[index] = longest[index].max(wait);
                shortest[index] = shortest[index].min(wait);
            }
        }
        for (index, ceiling) in [10, 20, 40, 80, 100, 100].into_iter().enumerate() {
            let ceiling = ceiling * MILLISECOND;
            assert!(longest[index] <= ceiling && longest[index] > ceiling * 98 / 100, "{index}");
            assert!(shortest[index] < ceiling / 50, "{index}: {:?}", shortest[index]);
        }
    }

    #[test]
    fn a_seed_replays_the_waits() {
        let now = Instant::now();
        let of = |seed| waits(Retry::exponential(5).seed(seed), now);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn retries_end_after_the_number_asked_for() {
        let now = Instant::now();
        for (asked, made) in [(0, 0), (1, 1), (5, 5), (u32::MAX, RETRIES_MAX as usize)] {
            assert_eq!(waits(Retry::exponential(asked).seed(1), now).len(), made);
        }
        let mut backoff = Retry::exponential(0).start(now);
        assert_eq!(backoff.failed(&(), now), AfterFailure::GiveUp(GiveUp::Exhausted));
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        assert_eq!(ceiling(Duration::MAX, Duration::MAX, 99), Duration::MAX);
        assert_eq!(ceiling(MILLISECOND, Duration::from_secs(9), 99), Duration::from_secs(9));
        assert_eq!(ceiling(Duration::ZERO, Duration::MAX, 31), Duration::ZERO);
    }

    #[test]
    fn an_error_that_stays_is_not_tried_again_and_costs_no_budget() {
        let now = Instant::now();
        let budget = RetryBudget::new(0.0, 0.0, 1);
        let retry =
            Retry::exponential(3).budget(budget.clone()).when(|transient: &bool| *transient);
        let mut backoff = retry.start(now);
        assert_eq!(backoff.failed(&false, now), AfterFailure::GiveUp(GiveUp::Permanent));
        assert_eq!(budget.available(now), 1);
        assert!(matches!(backoff.failed(&true, now), AfterFailure::RetryIn(_)));
        assert_eq!(backoff.failed(&true, now), AfterFailure::GiveUp(GiveUp::NoBudget));
        assert_eq!((backoff.retries_made(), budget.refused()), (1, 1));
    }

    #[test]
    fn an_outage_multiplies_the_load_by_no_more_than_the_ratio_allows() {
        let now = Instant::now();
        let budget = RetryBudget::new(0.1, 0.0, 20);
        let tasks = 10_000;
        let attempts: usize = (0..tasks)
            .map(|_| 1 + waits(Retry::exponential(5).budget(budget.clone()), now).len())
            .sum();
        // The store was full: its twenty, and a tenth of a retry for each task.
        assert!(attempts <= tasks + 20 + tasks / 10, "{attempts}");
        assert!(attempts >= tasks + tasks / 10 - 1, "{attempts}");
    }

    #[test]
    fn the_store_fills_with_time_up_to_its_capacity() {
        let now = Instant::now();
        let budget = RetryBudget::new(0.0, 10.0, 5);
        while budget.withdraw(now) {}
        assert_eq!(budget.available(now + 99 * MILLISECOND), 0);
        assert_eq!(budget.available(now + 100 * MILLISECOND), 1);
        assert_eq!(budget.available(now + Duration::from_secs(60)), 5);
        // A clock that is behind another thread's takes nothing away.
        assert_eq!(budget.available(now), 5);
    }

    #[test]
    fn numbers_that_make_no_sense_count_as_zero() {
        let now = Instant::now();
        let budget = RetryBudget::new(f64::NAN, f64::NEG_INFINITY, 1);
        assert!(budget.withdraw(now));
        budget.deposit(now + Duration::from_secs(3_600));
        assert!(!budget.withdraw(now + Duration::from_secs(3_600)));
    }
}
