//! Rate limits: so many calls per time, through the `governor` crate.
//!
//! governor does the arithmetic, the generic cell rate algorithm (ITU-T I.371), lock-free. It asks a
//! clock for the time; here the caller passes the time in, so the clock that it asks hands over what the
//! thread has just been told.

use std::cell::Cell;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::build_error::{BuildError, Problem, Problems};
use crate::nanos::nanos;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
}

/// The time that this thread has just been told.
struct Told;

impl Clock for Told {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        NOW.get().into()
    }
}

/// Bounds the calls per time. Clones are one limit.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use resilience::RateLimit;
///
/// let now = Instant::now();
/// let limit = RateLimit::builder("mail").calls(10, Duration::from_secs(1)).burst(2).build_at(now)?;
/// assert!(limit.try_acquire_at(now).is_ok());
/// assert!(limit.try_acquire_at(now).is_ok());
/// let refused = limit.try_acquire_at(now).unwrap_err();
/// assert_eq!(refused.retry_after, Duration::from_millis(100));
/// assert!(limit.try_acquire_at(now + refused.retry_after).is_ok());
/// # Ok::<_, resilience::BuildError>(())
/// ```
#[derive(Clone)]
pub struct RateLimit {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    epoch: Instant,
    limiter: RateLimiter<NotKeyed, InMemoryState, Told, NoOpMiddleware<Nanos>>,
    rejected: AtomicU64,
}

impl RateLimit {
    /// Starts the settings of a rate limit.
    pub fn builder(name: impl Into<String>) -> RateLimitBuilder {
        RateLimitBuilder { name: name.into(), calls: 100, per: Duration::from_secs(1), burst: None }
    }

    /// Asks to make a call.
    ///
    /// # Errors
    ///
    /// [`RateLimited`] if there were too many already.
    pub fn try_acquire(&self) -> Result<(), RateLimited> {
        self.try_acquire_at(Instant::now())
    }

    /// Asks to make a call at `now`.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_at(&self, now: Instant) -> Result<(), RateLimited> {
        let now = nanos(now.saturating_duration_since(self.shared.epoch));
        NOW.set(now);
        self.shared.limiter.check().map_err(|refused| {
            self.shared.rejected.fetch_add(1, Ordering::Relaxed);
            RateLimited { retry_after: refused.wait_time_from(now.into()) }
        })
    }

    /// Returns how many calls were turned away since the limit was built.
    pub fn rejected(&self) -> u64 {
        self.shared.rejected.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// There were too many calls; this one was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many calls, retry in {retry_after:?}")]
#[non_exhaustive]
pub struct RateLimited {
    /// When the next call may pass, if nobody else comes first.
    pub retry_after: Duration,
}

/// Collects the settings of a [`RateLimit`]; every one has a default.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct RateLimitBuilder {
    name: String,
    calls: u32,
    per: Duration,
    burst: Option<u32>,
}

impl RateLimitBuilder {
    /// Sets how many calls there may be in a time: at least 1, and 1 ms to 24 hours; 100 per second
    /// unless told.
    pub fn calls(mut self, calls: u32, per: Duration) -> Self {
        (self.calls, self.per) = (calls, per);
        self
    }

    /// Sets how many calls may come at once after a pause: at least 1; as many as in the time unless
    /// told.
    pub fn burst(mut self, calls: u32) -> Self {
        self.burst = Some(calls);
        self
    }

    /// Checks the settings and makes a limit.
    ///
    /// # Errors
    ///
    /// [`BuildError`] with every problem in the settings.
    pub fn build(self) -> Result<RateLimit, BuildError> {
        self.build_at(Instant::now())
    }

    /// Checks the settings and makes a limit whose time begins at `now`.
    ///
    /// # Errors
    ///
    /// As [`build`](Self::build).
    pub fn build_at(self, now: Instant) -> Result<RateLimit, BuildError> {
        let mut problems = self.problems();
        let burst = NonZeroU32::new(self.burst.unwrap_or(self.calls));
        let between = self.per.checked_div(self.calls);
        let quota = between.filter(|it| !it.is_zero()).and_then(Quota::with_period).zip(burst);
        let Some((quota, burst)) = quota.filter(|_| problems.is_empty()) else {
            if problems.is_empty() {
                let mut all = Problems::default();
                all.check(false, "calls", &self.calls, "must be at most one per nanosecond");
                problems = all.found;
            }
            return Err(BuildError::Invalid { what: "rate limit", name: self.name, problems });
        };
        NOW.set(0);
        let limiter = RateLimiter::direct_with_clock(quota.allow_burst(burst), Told);
        let shared = Shared { name: self.name, epoch: now, limiter, rejected: AtomicU64::new(0) };
        Ok(RateLimit { shared: Arc::new(shared) })
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Problems::default();
        problems.check(!self.name.is_empty(), "name", &self.name, "must not be empty");
        problems.check(self.calls >= 1, "calls", &self.calls, "must be at least 1");
        problems.check(
            (Duration::from_millis(1)..=Duration::from_hours(24)).contains(&self.per),
            "calls.per",
            &self.per,
            "must be from 1 ms to 24 hours",
        );
        problems.check(self.burst != Some(0), "burst", &0, "must be at least 1");
        problems.found
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(calls: u32, per: Duration, burst: u32, now: Instant) -> RateLimit {
        let builder = RateLimit::builder("test").calls(calls, per).burst(burst);
        builder.build_at(now).expect("the test's settings are valid")
    }

    #[test]
    fn settings_that_cannot_be_used_are_problems() {
        let error = RateLimit::builder("")
            .calls(0, Duration::ZERO)
            .burst(0)
            .build()
            .expect_err("four settings cannot be used");
        assert_eq!(
            error.to_string(),
            "invalid rate limit \"\", 4 problems:\n  \
             name = \"\": must not be empty\n  \
             calls = 0: must be at least 1\n  \
             calls.per = 0ns: must be from 1 ms to 24 hours\n  \
             burst = 0: must be at least 1"
        );
        let error = RateLimit::builder("x").calls(u32::MAX, Duration::from_millis(1)).build();
        assert!(error.expect_err("too fast").to_string().contains("one per nanosecond"));
    }

    #[test]
    fn limits_do_not_see_each_others_time() {
        let start = Instant::now();
        let late = limit(1, Duration::from_secs(1), 1, start);
        let other = limit(1, Duration::from_secs(1), 1, start);
        assert!(late.try_acquire_at(start + Duration::from_secs(100)).is_ok());
        assert!(other.try_acquire_at(start).is_ok());
        assert!(other.try_acquire_at(start).is_err());
    }

    proptest! {
        /// Against a bucket of tokens that fills with time.
        #[test]
        fn the_limit_is_a_bucket_of_tokens(
            burst in 1_u32..20,
            steps in prop::collection::vec(0_u64..30, 1..200),
        ) {
            let start = Instant::now();
            let limit = limit(100, Duration::from_secs(1), burst, start);
            // One token in 10 ms; counted in milliseconds so that nothing is rounded.
            let (mut tokens, mut millis) = (u64::from(burst) * 10, 0);
            for pass in steps {
                millis += pass;
                tokens = (tokens + pass).min(u64::from(burst) * 10);
                let given = limit.try_acquire_at(start + Duration::from_millis(millis));
                if tokens >= 10 {
                    tokens -= 10;
                    prop_assert_eq!(given, Ok(()));
                } else {
                    let retry_after = Duration::from_millis(10 - tokens);
                    prop_assert_eq!(given, Err(RateLimited { retry_after }));
                }
            }
        }
    }
}
