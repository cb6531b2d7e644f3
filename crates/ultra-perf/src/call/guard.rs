//! Breakers and retries around a call.

use std::future::Future;
use std::time::Duration;

use resilience::{CircuitBreaker, GiveUp, Outcome, Permit, RetryPolicy};
use tokio::time::Instant;

use super::kind::{Fallible, Fault};
use super::{Call, TaskError, TaskErrorKind};
use crate::UltraPerf;

/// Takes the name of a breaker in whatever form it is given.
pub fn name_of<T: AsRef<str> + ?Sized>(name: &T) -> &str {
    name.as_ref()
}

fn admit(perf: &UltraPerf, name: &str) -> Result<(CircuitBreaker, Permit), TaskError> {
    let breaker = perf.breaker(name);
    match breaker.try_acquire() {
        Ok(permit) => Ok((breaker, permit)),
        Err(source) => Err(TaskErrorKind::BreakerOpen { breaker: name.to_owned(), source }.into()),
    }
}

fn judge<R: Fallible>(outcome: &Result<R, TaskError>) -> Outcome {
    use TaskErrorKind::{Panicked, TimedOut};
    match outcome.as_ref().map_err(TaskError::kind) {
        Ok(returned) if returned.error().is_none() => Outcome::Success,
        Ok(_) | Err(TimedOut { .. } | Panicked { .. }) => Outcome::Failure,
        // The dependency was not asked.
        Err(_) => Outcome::Ignored,
    }
}

/// The permit of a call that may be ended by a time limit, which is dropped with it.
struct Limited {
    permit: Option<Permit>,
    ends: Option<Instant>,
}

impl Limited {
    fn complete(mut self, outcome: Outcome) {
        if let Some(permit) = self.permit.take() {
            permit.complete(outcome);
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        // It did not answer in time. Before that, it was its caller who lost interest.
        if self.ends.is_some_and(|ends| Instant::now() >= ends) {
            permit.complete(Outcome::Failure);
        }
    }
}

/// Runs a call through a breaker.
///
/// # Errors
///
/// [`TaskErrorKind::BreakerOpen`], and what the call itself ends with.
///
/// # Cancel safety
///
/// A call that is dropped counts as cancelled, and as failed if its time limit, or that of a call around it, is
/// over by then.
pub async fn guarded<R, F>(perf: &UltraPerf, name: &str, run: F) -> Result<R, TaskError>
where
    R: Fallible,
    F: Future<Output = Result<R, TaskError>>,
{
    let (_breaker, permit) = admit(perf, name)?;
    let permit = Limited { permit: Some(permit), ends: super::time::ends() };
    let outcome = run.await;
    permit.complete(judge(&outcome));
    outcome
}

/// Runs a call through a breaker.
///
/// # Errors
///
/// As [`guarded`].
pub fn guarded_sync<R, F>(perf: &UltraPerf, name: &str, run: F) -> Result<R, TaskError>
where
    R: Fallible,
    F: FnOnce() -> Result<R, TaskError>,
{
    let (_breaker, permit) = admit(perf, name)?;
    let outcome = run();
    permit.complete(judge(&outcome));
    outcome
}

/// Waits before the first retry, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));

/// Makes a call again that failed, up to `times` times, as far as the handle's budget of retries goes.
///
/// What ended a call from outside is final: an open breaker or a full lane gets no better by haste.
///
/// # Errors
///
/// The last attempt's.
///
/// # Cancel safety
///
/// May be dropped at any time.
pub async fn retried<R, X, F, Fut, J>(
    perf: &UltraPerf,
    call: Call,
    times: u32,
    judge: J,
    make: F,
) -> Result<R, X>
where
    R: Fallible,
    X: Fault<R>,
    F: Fn() -> Fut,
    Fut: Future<Output = Result<R, X>>,
    J: Fn(&R::Error) -> bool,
{
    let budget = perf.retry_budget();
    budget.call_at(std::time::Instant::now());
    let policy = RetryPolicy::builder(call.label())
        .attempts(times.saturating_add(1))
        .backoff(BACKOFF.0, BACKOFF.1)
        .budget(budget.clone())
        .build();
    let Ok(policy) = policy else { return make().await };
    for attempt in 1_u32.. {
        let outcome = make().await;
        let again = match &outcome {
            Ok(returned) => returned.error().is_some_and(&judge),
            Err(fault) => !fault.is_final(),
        };
        if !again {
            return outcome;
        }
        let now = std::time::Instant::now();
        let plan: Result<Duration, GiveUp> =
            policy.plan_at(attempt, Outcome::Failure, resilience::Deadline::current(), now);
        match plan {
            Ok(wait) => tokio::time::sleep(wait).await,
            Err(_) => return outcome,
        }
    }
    unreachable!("the attempts are bounded")
}
