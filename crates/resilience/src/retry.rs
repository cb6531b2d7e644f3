//! Retries: which outcomes deserve one, after how long, and when to stop.
//!
//! The wait before the n-th retry is drawn between zero and `min(max, base x 2^n)`: full jitter, which
//! spreads clients that failed at the same moment best of the known ways (Brooker, "Exponential Backoff
//! And Jitter", AWS Architecture Blog, 2015). A retry hint of the dependency makes it longer; a hint
//! beyond the maximum is a request to stay away, and honoured as one. Every retry is paid for from a
//! [`RetryBudget`].
//!
//! [`RetryPolicy::plan_at`] decides; it reads no clock and never waits. Whether a call may be repeated
//! at all is not for it to know: only the caller can tell that a request is idempotent.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::build_error::{BuildError, Problem, Problems};
use crate::nanos::{jitter, nanos};
use crate::{Deadline, Extra, Outcome, RetryBudget};

/// Decides about retries. Clones share the settings, the budget and the counts.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use resilience::{GiveUp, Outcome, RetryPolicy};
///
/// let retry = RetryPolicy::builder("search").attempts(3).build()?;
/// let now = Instant::now();
/// let wait = retry.plan_at(1, Outcome::Failure, None, now)?;
/// assert!(wait <= Duration::from_millis(25));
/// assert_eq!(retry.plan_at(3, Outcome::Failure, None, now), Err(GiveUp::Attempts));
/// assert_eq!(retry.plan_at(1, Outcome::Ignored, None, now), Err(GiveUp::NotRetryable));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RetryPolicy {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    attempts: u32,
    base: u64,
    max: u64,
    seed: u64,
    drawn: AtomicU64,
    budget: RetryBudget,
}

impl RetryPolicy {
    /// Starts the settings of a policy.
    pub fn builder(name: impl Into<String>) -> RetryPolicyBuilder {
        RetryPolicyBuilder {
            name: name.into(),
            attempts: 3,
            base: Duration::from_millis(25),
            max: Duration::from_secs(1),
            seed: None,
            budget: None,
        }
    }

    /// Decides what follows the `attempt`-th attempt (from 1 on): a retry after a wait, or the end.
    ///
    /// A wait that is returned has been paid for.
    ///
    /// # Errors
    ///
    /// [`GiveUp`] with the reason why there is no retry.
    pub fn plan_at(
        &self,
        attempt: u32,
        outcome: Outcome,
        deadline: Option<Deadline>,
        now: Instant,
    ) -> Result<Duration, GiveUp> {
        let shared = &*self.shared;
        let hint = match outcome {
            Outcome::Failure => 0,
            Outcome::Overload { retry_after } => retry_after.map_or(0, nanos),
            Outcome::Success | Outcome::Ignored | Outcome::Cancelled => {
                return Err(GiveUp::NotRetryable);
            }
        };
        if attempt >= shared.attempts {
            return Err(GiveUp::Attempts);
        }
        if hint > shared.max {
            return Err(GiveUp::AskedToStayAway);
        }
        let doublings = attempt.saturating_sub(1).min(40);
        let ceiling = shared.base.saturating_mul(1 << doublings).min(shared.max);
        // Relaxed: the count only picks the next number.
        let drawn = jitter(shared.seed, shared.drawn.fetch_add(1, Ordering::Relaxed));
        let wait = Duration::from_nanos(((ceiling as f64 * drawn) as u64).max(hint));
        if deadline.is_some_and(|deadline| deadline.remaining_at(now) <= wait) {
            return Err(GiveUp::Deadline);
        }
        if !shared.budget.try_spend_at(Extra::Retry, now) {
            return Err(GiveUp::Budget);
        }
        Ok(wait)
    }

    /// Returns the budget that pays for the retries.
    pub fn budget(&self) -> &RetryBudget {
        &self.shared.budget
    }

    /// Makes a call and repeats it while the policy says so; only for calls that may be repeated.
    ///
    /// `judge` says what a result means. The call counts towards the budget. Waits end before the
    /// [current deadline](Deadline::current), if there is one.
    ///
    /// # Errors
    ///
    /// The last attempt's.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; a retry that was paid for and not made stays paid for.
    #[cfg(feature = "tokio")]
    pub async fn call<T, E, F, Fut, J>(&self, make: F, judge: J) -> Result<T, E>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        J: Fn(Result<&T, &E>) -> Outcome,
    {
        self.budget().call_at(crate::deadline::now());
        for attempt in 1_u32.. {
            let result = make().await;
            let outcome = judge(result.as_ref());
            let now = crate::deadline::now();
            match self.plan_at(attempt, outcome, Deadline::current(), now) {
                Ok(wait) => tokio::time::sleep(wait).await,
                Err(_) => return result,
            }
        }
        unreachable!("the attempts are bounded")
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// Why there is no retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum GiveUp {
    /// The outcome is none that another attempt could make better.
    #[error("the outcome is not worth a retry")]
    NotRetryable,
    /// All attempts are made.
    #[error("all attempts were made")]
    Attempts,
    /// The dependency asked to be left alone for longer than the longest wait.
    #[error("the dependency asks to wait longer than the longest wait")]
    AskedToStayAway,
    /// The deadline is over before the retry could begin.
    #[error("the deadline is over before a retry could begin")]
    Deadline,
    /// The budget has nothing left.
    #[error("the retry budget is spent")]
    Budget,
}

/// Collects the settings of a [`RetryPolicy`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct RetryPolicyBuilder {
    name: String,
    attempts: u32,
    base: Duration,
    max: Duration,
    seed: Option<u64>,
    budget: Option<RetryBudget>,
}

impl RetryPolicyBuilder {
    /// Sets how often a call may be made in all, the first time included: 1 to 100; 3 unless told.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets the longest wait before the first retry, which doubles with every retry, and the longest
    /// of all: 1 ms to 1 hour; 25 ms and 1 s unless told.
    pub fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.base = base;
        self.max = max;
        self
    }

    /// Sets the budget that pays for the retries; one of its own with the defaults unless told.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Sets the seed of the waits; drawn at random unless told.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Checks the settings and makes a policy.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings.
    pub fn build(self) -> Result<RetryPolicy, BuildError> {
        BuildError::unless_none("retry policy", &self.name, self.problems())?;
        let budget = match self.budget {
            Some(budget) => budget,
            None => RetryBudget::builder(self.name.clone()).build()?,
        };
        let shared = Shared {
            name: self.name,
            attempts: self.attempts,
            base: nanos(self.base),
            max: nanos(self.max),
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..)),
            drawn: AtomicU64::new(0),
            budget,
        };
        Ok(RetryPolicy { shared: Arc::new(shared) })
    }

    fn problems(&self) -> Vec<Problem> {
        let times = Duration::from_millis(1)..=Duration::from_hours(1);
        let mut problems = Problems::default();
        problems.check(!self.name.is_empty(), "name", &self.name, "must not be empty");
        problems.check(
            (1..=100).contains(&self.attempts),
            "attempts",
            &self.attempts,
            "must be from 1 to 100",
        );
        let expected = "must be from 1 ms to 1 hour";
        problems.check(times.contains(&self.base), "backoff.base", &self.base, expected);
        problems.check(times.contains(&self.max), "backoff.max", &self.max, expected);
        problems.check(
            self.base <= self.max,
            "backoff.base",
            &self.base,
            "must be at most backoff.max",
        );
        problems.found
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn retry(settings: impl FnOnce(RetryPolicyBuilder) -> RetryPolicyBuilder) -> RetryPolicy {
        let budget = RetryBudget::builder("test").per_second(1e6).build().expect("valid");
        let builder = RetryPolicy::builder("test").seed(5).budget(budget);
        settings(builder).build().expect("the test's settings are valid")
    }

    #[test]
    fn waits_are_drawn_from_zero_to_a_ceiling_that_doubles() {
        let retry = retry(|b| b.attempts(100).backoff(ms(10), ms(80)));
        let now = Instant::now();
        for (attempt, ceiling) in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 80), (99, 80)] {
            let waits: Vec<Duration> = (0..1_000)
                .map(|_| retry.plan_at(attempt, Outcome::Failure, None, now).expect("a retry"))
                .collect();
            let (least, most) = (waits.iter().min(), waits.iter().max());
            assert!(least < Some(&(ms(ceiling) / 50)), "{attempt}: {least:?}");
            assert!(most <= Some(&ms(ceiling)), "{attempt}: {most:?}");
            assert!(most > Some(&(ms(ceiling) * 49 / 50)), "{attempt}: {most:?}");
        }
    }

    #[test]
    fn equal_seeds_draw_equal_waits() {
        let now = Instant::now();
        let waits = |seed| {
            let retry = retry(|b| b.seed(seed));
            [(); 5].map(|()| retry.plan_at(1, Outcome::Failure, None, now))
        };
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }

    #[test]
    fn every_reason_to_stop_is_told() {
        let now = Instant::now();
        let overload = |millis| Outcome::Overload { retry_after: Some(ms(millis)) };
        let deadline = |millis| Some(Deadline::at(now + ms(millis)));
        for (attempt, outcome, deadline, expected) in [
            (1, Outcome::Success, None, GiveUp::NotRetryable),
            (1, Outcome::Ignored, None, GiveUp::NotRetryable),
            (1, Outcome::Cancelled, None, GiveUp::NotRetryable),
            (3, Outcome::Failure, None, GiveUp::Attempts),
            (1, overload(1_001), None, GiveUp::AskedToStayAway),
            (1, overload(500), deadline(500), GiveUp::Deadline),
            (1, Outcome::Failure, deadline(0), GiveUp::Deadline),
        ] {
            let plan = retry(|b| b).plan_at(attempt, outcome, deadline, now);
            assert_eq!(plan, Err(expected), "{attempt} {outcome:?}");
        }
        let broke = RetryBudget::builder("broke").per_second(0.0).build().expect("valid");
        let plan = retry(|b| b.budget(broke)).plan_at(1, Outcome::Failure, None, now);
        assert_eq!(plan, Err(GiveUp::Budget));
    }

    #[test]
    fn a_hint_makes_the_wait_longer() {
        let plan = retry(|b| b).plan_at(
            1,
            Outcome::Overload { retry_after: Some(ms(900)) },
            Some(Deadline::at(Instant::now() + ms(100_000))),
            Instant::now(),
        );
        assert_eq!(plan, Ok(ms(900)));
    }

    #[test]
    fn settings_that_cannot_be_used_are_problems() {
        let error = RetryPolicy::builder("search")
            .attempts(0)
            .backoff(ms(2_000), ms(0))
            .build()
            .expect_err("three settings cannot be used");
        assert_eq!(
            error.to_string(),
            "invalid retry policy \"search\", 3 problems:\n  \
             attempts = 0: must be from 1 to 100\n  \
             backoff.max = 0ns: must be from 1 ms to 1 hour\n  \
             backoff.base = 2s: must be at most backoff.max"
        );
    }
}
