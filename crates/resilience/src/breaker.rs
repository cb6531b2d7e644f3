//! The circuit breaker: the handle, the permit of one call, and what they tell.
//!
//! The handle turns the clock into nanoseconds since the breaker was built and leaves every
//! decision to the state machine in `machine`; `window` counts, `builder` checks the settings.

mod builder;
mod machine;
mod window;

#[cfg(all(test, not(loom)))]
mod tests;

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::builder::{BuildError, CircuitBreakerBuilder, Problem};
use self::machine::{Machine, Ticket};

/// Stops calls to a dependency that fails, and lets probes find out when it is back.
///
/// Clones share one breaker. See the [crate's page](crate) for the idea and
/// [`CircuitBreakerBuilder`] for the settings.
///
/// The breaker opens when a call that failed or was slow completes the
/// [`consecutive_failures`](CircuitBreakerBuilder::consecutive_failures), or the
/// [`failure_rate`](CircuitBreakerBuilder::failure_rate) or
/// [`slow_call_rate`](CircuitBreakerBuilder::slow_call_rate) of at least
/// [`minimum_calls`](CircuitBreakerBuilder::minimum_calls) in the window. A call that ends after
/// the state has changed since it began is too late to change it again.
///
/// # Cost
///
/// A call through a closed breaker reads the clock once and does one uncontended compare-exchange;
/// it reads the clock twice where slow calls count. A refused call reads the clock once. Nothing
/// locks, and nothing is allocated.
#[derive(Clone)]
pub struct CircuitBreaker {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    epoch: Instant,
    machine: Machine,
}

impl CircuitBreaker {
    /// Starts the settings of a breaker; the name appears in errors and in `Debug`.
    pub fn builder(name: impl Into<String>) -> CircuitBreakerBuilder {
        CircuitBreakerBuilder::new(name.into())
    }

    /// Returns the name given to the builder.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Asks to make a call; the permit takes its outcome.
    ///
    /// # Errors
    ///
    /// [`Open`] while calls are turned away: the breaker is open, or half-open with all its probes
    /// in flight.
    pub fn try_acquire(&self) -> Result<Permit, Open> {
        self.acquire(None)
    }

    /// Asks to make a call that begins at `now`.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    pub fn try_acquire_at(&self, now: Instant) -> Result<Permit, Open> {
        self.acquire(Some(now))
    }

    fn acquire(&self, now: Option<Instant>) -> Result<Permit, Open> {
        let ticket = self.shared.admit(now)?;
        Ok(Permit(Guard { shared: Arc::clone(&self.shared), ticket: Some(ticket) }))
    }

    /// Makes a call through the breaker: `Ok` is a success, `Err` a failure.
    ///
    /// While the breaker turns calls away, `make` is not run and no future is built.
    ///
    /// # Errors
    ///
    /// [`CallError::Open`] if the call was turned away, [`CallError::Failed`] with the call's error.
    ///
    /// # Cancel safety
    ///
    /// A call that is dropped, or panics, counts neither way; a probe gives its place back.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let breaker = resilience::CircuitBreaker::builder("prices").build()?;
    /// let price = breaker.call(|| async { Ok::<_, std::io::Error>(42) }).await?;
    /// assert_eq!(price, 42);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call<T, E, F, Fut>(&self, make: F) -> Result<T, CallError<E>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.call_judged(make, |result| match result {
            Ok(_) => Outcome::Success,
            Err(_) => Outcome::Failure,
        })
        .await
    }

    /// Makes a call through the breaker; `judge` says what its result means.
    ///
    /// For results that are not the dependency's fault (`Ignored`), refusals with a retry hint
    /// (`Overload`), or an `Ok` that stands for a failure.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    ///
    /// # Cancel safety
    ///
    /// As [`call`](Self::call).
    pub async fn call_judged<T, E, F, Fut, J>(&self, make: F, judge: J) -> Result<T, CallError<E>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        J: FnOnce(&Result<T, E>) -> Outcome,
    {
        let shared = &*self.shared;
        let mut guard = Guard { shared, ticket: Some(shared.admit(None)?) };
        let result = make().await;
        guard.complete(judge(&result), None);
        result.map_err(CallError::Failed)
    }

    /// Returns the state at this moment.
    pub fn state(&self) -> State {
        self.state_at(Instant::now())
    }

    /// Returns the state at `now`; an open breaker whose time is over reads as half-open.
    pub fn state_at(&self, now: Instant) -> State {
        self.shared.machine.state(self.shared.nanos(now))
    }

    /// Reads the state and the counts at this moment.
    ///
    /// # Cost
    ///
    /// About 35 loads. The numbers are read one after the other while calls go on.
    pub fn stats(&self) -> CircuitBreakerStats {
        self.stats_at(Instant::now())
    }

    /// Reads the state and the counts at `now`.
    pub fn stats_at(&self, now: Instant) -> CircuitBreakerStats {
        self.shared.machine.stats(self.shared.nanos(now))
    }

    /// Closes the breaker and forgets its window, its retry hints and how often it has opened.
    ///
    /// Calls in flight count neither way when they complete. The totals in the stats stay.
    pub fn reset(&self) {
        self.shared.machine.reset();
    }
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("name", &self.shared.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn nanos(&self, now: Instant) -> u64 {
        machine::nanos(now.saturating_duration_since(self.epoch))
    }

    fn admit(&self, now: Option<Instant>) -> Result<Ticket, Open> {
        match self.machine.acquire_untimed() {
            Some(ticket) => Ok(ticket),
            None => self.machine.acquire(self.nanos(now.unwrap_or_else(Instant::now))),
        }
    }
}

/// The leave to make one call, which takes the call's outcome.
///
/// Dropped without one, the call was cancelled: it counts neither way, and a probe gives its place
/// back. A permit that is kept for ever in a half-open breaker is taken for lost after the
/// [`probe_timeout`](CircuitBreakerBuilder::probe_timeout).
#[must_use = "a permit that is dropped counts as a cancelled call"]
pub struct Permit(Guard<Arc<Shared>>);

impl Permit {
    /// Reports how the call ended.
    pub fn complete(mut self, outcome: Outcome) {
        self.0.complete(outcome, None);
    }

    /// Reports how the call ended at `now`.
    pub fn complete_at(mut self, outcome: Outcome, now: Instant) {
        self.0.complete(outcome, Some(now));
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("breaker", &self.0.shared.name).finish_non_exhaustive()
    }
}

/// Gives a ticket back exactly once: with an outcome, or by drop.
struct Guard<S: Deref<Target = Shared>> {
    shared: S,
    ticket: Option<Ticket>,
}

impl<S: Deref<Target = Shared>> Guard<S> {
    fn complete(&mut self, outcome: Outcome, now: Option<Instant>) {
        if let Some(ticket) = self.ticket.take() {
            let now = self.shared.nanos(now.unwrap_or_else(Instant::now));
            self.shared.machine.complete(ticket, outcome, now);
        }
    }
}

impl<S: Deref<Target = Shared>> Drop for Guard<S> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.machine.release(ticket);
        }
    }
}

/// How a call ended, as far as the dependency's health goes.
///
/// A cancelled call has no outcome: its permit is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The dependency did what it was asked.
    Success,
    /// It failed, or did not answer in time.
    Failure,
    /// It refused because it has too much to do (429, 503): a failure that may carry a retry hint.
    ///
    /// When the breaker opens before the hint's time, it stays open until then, but never longer
    /// than the maximum of [`open_time`](CircuitBreakerBuilder::open_time).
    Overload {
        /// How long it asked to be left alone, as in `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Says nothing about the dependency (the caller's own mistake): counts neither way.
    Ignored,
}

/// What a breaker does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass and are counted.
    Closed,
    /// Calls are turned away until the open time is over.
    Open,
    /// A few calls pass as probes; the others are turned away.
    HalfOpen,
}

/// The call was turned away; it was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("circuit breaker is open, retry in {retry_after:?}")]
#[non_exhaustive]
pub struct Open {
    /// When to try again: the rest of the open time, or a quarter of the base open time while
    /// probes are in flight. Never zero.
    pub retry_after: Duration,
}

/// Why a call through a breaker gave no value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError<E> {
    /// The breaker turned the call away.
    #[error(transparent)]
    Open(#[from] Open),
    /// The call was made and returned an error.
    #[error("call failed")]
    Failed(#[source] E),
}

/// A snapshot of a breaker's state and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitBreakerStats {
    /// The state.
    pub state: State,
    /// Calls in the window that succeeded or failed, since the breaker last closed.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Those of them that took longer than the slow-call limit, whether they failed or not.
    pub slow: u64,
    /// Failures in a row since the last success.
    pub consecutive_failures: u32,
    /// Probes in flight.
    pub probes_in_flight: u32,
    /// The rest of the open time; zero in the other states.
    pub retry_after: Duration,
    /// How often the breaker has opened since it was built.
    pub opened: u64,
    /// Calls turned away since it was built.
    pub rejected: u64,
    /// Outcomes that came after the state had changed, and so did not count.
    pub late: u64,
}
