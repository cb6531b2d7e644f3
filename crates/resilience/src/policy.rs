//! One call through all of it: which part stands around which, and why.
//!
//! ```text
//!   deadline of the whole call
//!     rate limit                 what is too often is turned away before it costs anything
//!       bulkhead                 a place for the call and all its attempts
//!         retry                  each attempt asks everything below again
//!           circuit breaker      an attempt and its hedge are one call for it
//!             hedge              each of the two asks everything below
//!               adaptive limit   counts what really is in flight
//!                 time limit of an attempt
//!                   the call
//! ```
//!
//! Every part is optional. The breaker stands inside the retries, so that they stop when it opens, and
//! around the limit, whose refusals are not the dependency's failures: it ignores them. What is turned
//! away by a part is not retried; only what the dependency did wrong is, and attempts that took too long.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::deadline::now;
use crate::{
    AdaptiveLimit, Bulkhead, BulkheadFull, CircuitBreaker, Deadline, Hedge, LimitReached, Open,
    Outcome, RetryPolicy, TimedOut, Timeout,
};
#[cfg(feature = "rate-limit")]
use crate::{RateLimit, RateLimited};

/// Whether a call may be made more than once: only if that is the same as making it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Repeat {
    /// The call may change something each time: no retries and no hedges.
    Never,
    /// The call is idempotent (RFC 9110, section 9.2.2).
    Idempotent,
}

/// The parts that a call goes through, in the order of the [crate's table](crate#a-policy). Clones
/// share the parts.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use resilience::{CircuitBreaker, Policy, Repeat, RetryPolicy};
///
/// let search = Policy::builder()
///     .timeout(Duration::from_secs(2))
///     .retry(RetryPolicy::builder("search").build()?)
///     .breaker(CircuitBreaker::builder("search").build()?)
///     .attempt_timeout(Duration::from_millis(500))
///     .build();
///
/// let found = search.call(Repeat::Idempotent, || async { "42".parse::<u32>() }).await?;
/// assert_eq!(found, 42);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Policy {
    parts: Arc<PolicyBuilder>,
}

impl Policy {
    /// Starts a policy without any part.
    pub fn builder() -> PolicyBuilder {
        PolicyBuilder::default()
    }

    /// Makes a call through all parts: `Ok` is a success, `Err` a failure.
    ///
    /// `make` is run for each attempt, once every part has let it pass.
    ///
    /// # Errors
    ///
    /// [`PolicyError`]: which part turned the call away, or the last attempt's error.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time: places are given back, and for the breaker the attempt was
    /// [cancelled](Outcome::Cancelled).
    pub async fn call<T, E, F, Fut>(&self, repeat: Repeat, make: F) -> Result<T, PolicyError<E>>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.call_judged(repeat, make, |result| Outcome::of_result(&result)).await
    }

    /// Makes a call through all parts; `judge` says what an attempt's result means.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    ///
    /// # Cancel safety
    ///
    /// As [`call`](Self::call).
    pub async fn call_judged<T, E, F, Fut, J>(
        &self,
        repeat: Repeat,
        make: F,
        judge: J,
    ) -> Result<T, PolicyError<E>>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        J: Fn(Result<&T, &E>) -> Outcome,
    {
        let whole = self.attempts(repeat, &make, &judge);
        match self.parts.timeout {
            Some(limit) => Timeout::new(limit).call(|| whole).await?,
            None => whole.await,
        }
    }

    async fn attempts<T, E, F, Fut, J>(
        &self,
        repeat: Repeat,
        make: &F,
        judge: &J,
    ) -> Result<T, PolicyError<E>>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        J: Fn(Result<&T, &E>) -> Outcome,
    {
        let parts = &*self.parts;
        #[cfg(feature = "rate-limit")]
        if let Some(limit) = &parts.rate_limit {
            limit.try_acquire_at(now())?;
        }
        let _place = match &parts.bulkhead {
            Some(bulkhead) => Some(bulkhead.acquire().await?),
            None => None,
        };
        parts.count_call();
        for attempt in 1_u32.. {
            let (result, outcome) = self.attempt(repeat, make, judge).await;
            let plan = match (&parts.retry, outcome) {
                (Some(retry), Some(outcome)) if repeat == Repeat::Idempotent => {
                    retry.plan_at(attempt, outcome, Deadline::current(), now()).ok()
                }
                _ => None,
            };
            match plan {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return result,
            }
        }
        unreachable!("the attempts are bounded")
    }

    /// Makes one attempt, and tells what it means if the dependency was asked.
    async fn attempt<T, E, F, Fut, J>(
        &self,
        repeat: Repeat,
        make: &F,
        judge: &J,
    ) -> (Result<T, PolicyError<E>>, Option<Outcome>)
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        J: Fn(Result<&T, &E>) -> Outcome,
    {
        let parts = &*self.parts;
        let permit = match parts.breaker.as_ref().map(|breaker| breaker.try_acquire_at(now())) {
            Some(Err(open)) => return (Err(open.into()), None),
            Some(Ok(permit)) => Some(permit),
            None => None,
        };
        let one = || self.one(make, judge);
        let (result, outcome) = match &parts.hedge {
            Some(hedge) if repeat == Repeat::Idempotent => {
                hedge.race(one, |(_, outcome)| *outcome == Some(Outcome::Success)).await
            }
            _ => one().await,
        };
        if let Some(permit) = permit {
            permit.complete_at(outcome.unwrap_or(Outcome::Ignored), now());
        }
        (result, outcome)
    }

    async fn one<T, E, F, Fut, J>(
        &self,
        make: &F,
        judge: &J,
    ) -> (Result<T, PolicyError<E>>, Option<Outcome>)
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        J: Fn(Result<&T, &E>) -> Outcome,
    {
        let parts = &*self.parts;
        let permit = match parts.limit.as_ref().map(|limit| limit.try_acquire_at(now())) {
            Some(Err(reached)) => return (Err(reached.into()), None),
            Some(Ok(permit)) => Some(permit),
            None => None,
        };
        let ended = match parts.attempt_timeout {
            Some(limit) => Timeout::new(limit).call(make).await,
            None => Ok(make().await),
        };
        let (result, outcome) = match ended {
            Ok(result) => {
                let outcome = judge(result.as_ref());
                (result.map_err(PolicyError::Failed), outcome)
            }
            Err(timed_out) => (Err(timed_out.into()), Outcome::Failure),
        };
        match (permit, &result) {
            (Some(permit), Err(PolicyError::TimedOut(_))) => permit.timed_out_at(now()),
            (Some(permit), _) => permit.complete_at(outcome, now()),
            (None, _) => {}
        }
        (result, Some(outcome))
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.parts, f)
    }
}

/// Collects the parts of a [`Policy`]; each is left out unless told.
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct PolicyBuilder {
    timeout: Option<Duration>,
    #[cfg(feature = "rate-limit")]
    rate_limit: Option<RateLimit>,
    bulkhead: Option<Bulkhead>,
    retry: Option<RetryPolicy>,
    breaker: Option<CircuitBreaker>,
    hedge: Option<Hedge>,
    limit: Option<AdaptiveLimit>,
    attempt_timeout: Option<Duration>,
}

impl PolicyBuilder {
    /// Sets how long a call may take with all its waits and attempts.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Turns calls away that come too often.
    #[cfg(feature = "rate-limit")]
    pub fn rate_limit(mut self, limit: RateLimit) -> Self {
        self.rate_limit = Some(limit);
        self
    }

    /// Bounds the calls at a time; an attempt that waits for its retry keeps its place.
    pub fn bulkhead(mut self, bulkhead: Bulkhead) -> Self {
        self.bulkhead = Some(bulkhead);
        self
    }

    /// Repeats what failed, where a call may be repeated.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Stops calls to a dependency that fails.
    pub fn breaker(mut self, breaker: CircuitBreaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// Makes a second call when the first takes long, where a call may be repeated. It should have the
    /// budget of the retries.
    pub fn hedge(mut self, hedge: Hedge) -> Self {
        self.hedge = Some(hedge);
        self
    }

    /// Bounds the calls in flight by what the dependency can take.
    pub fn adaptive_limit(mut self, limit: AdaptiveLimit) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Sets how long one attempt may take.
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = Some(limit);
        self
    }

    /// Makes the policy; the parts were checked when they were built.
    pub fn build(self) -> Policy {
        Policy { parts: Arc::new(self) }
    }

    /// Counts a call in the budgets, once in each.
    fn count_call(&self) {
        let retry = self.retry.as_ref().map(RetryPolicy::budget);
        let hedge = self.hedge.as_ref().map(Hedge::budget);
        let hedge = hedge.filter(|hedge| !retry.is_some_and(|retry| retry.is(hedge)));
        for budget in [retry, hedge].into_iter().flatten() {
            budget.call_at(now());
        }
    }
}

impl From<CircuitBreaker> for Policy {
    fn from(breaker: CircuitBreaker) -> Self {
        Self::builder().breaker(breaker).build()
    }
}

impl From<Bulkhead> for Policy {
    fn from(bulkhead: Bulkhead) -> Self {
        Self::builder().bulkhead(bulkhead).build()
    }
}

impl From<RetryPolicy> for Policy {
    fn from(retry: RetryPolicy) -> Self {
        Self::builder().retry(retry).build()
    }
}

impl From<Hedge> for Policy {
    fn from(hedge: Hedge) -> Self {
        Self::builder().hedge(hedge).build()
    }
}

impl From<AdaptiveLimit> for Policy {
    fn from(limit: AdaptiveLimit) -> Self {
        Self::builder().adaptive_limit(limit).build()
    }
}

impl From<Timeout> for Policy {
    fn from(timeout: Timeout) -> Self {
        Self::builder().timeout(timeout.limit()).build()
    }
}

#[cfg(feature = "rate-limit")]
impl From<RateLimit> for Policy {
    fn from(limit: RateLimit) -> Self {
        Self::builder().rate_limit(limit).build()
    }
}

/// Why a call through a policy gave no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError<E> {
    /// The rate limit turned the call away.
    #[cfg(feature = "rate-limit")]
    #[error(transparent)]
    RateLimited(#[from] RateLimited),
    /// The bulkhead turned the call away.
    #[error(transparent)]
    BulkheadFull(#[from] BulkheadFull),
    /// The breaker turned the attempt away.
    #[error(transparent)]
    Open(#[from] Open),
    /// The adaptive limit turned the attempt away.
    #[error(transparent)]
    LimitReached(#[from] LimitReached),
    /// The call or its last attempt took too long.
    #[error(transparent)]
    TimedOut(#[from] TimedOut),
    /// The last attempt returned an error.
    #[error("call failed")]
    Failed(#[source] E),
}

impl<E> PolicyError<E> {
    /// Returns when to come back, where a part knows.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            #[cfg(feature = "rate-limit")]
            Self::RateLimited(limited) => Some(limited.retry_after),
            Self::Open(open) => Some(open.retry_after),
            _ => None,
        }
    }
}
