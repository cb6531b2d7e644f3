//! The circuit breaker: the handle, the permit of one call, and what they tell.
//!
//! The handle turns the clock into nanoseconds since the breaker was built and leaves every
//! decision to the state machine in `machine`; `builder` checks the settings.

mod builder;
mod machine;

#[cfg(all(test, not(loom)))]
mod tests;

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::builder::CircuitBreakerBuilder;
use self::machine::{Machine, Ticket};
use crate::correlator::{Member, Probing};
use crate::nanos::nanos;

/// Stops calls to a dependency that fails, and lets probes find out when it is back.
///
/// Clones share one breaker. See the [crate's page](crate) for the idea and
/// [`CircuitBreakerBuilder`] for the settings.
///
/// The breaker opens when a call that failed or was slow completes the
/// [`consecutive_failures`](CircuitBreakerBuilder::consecutive_failures), or the
/// [`failure_rate`](CircuitBreakerBuilder::failure_rate) or
/// [`slow_call_rate`](CircuitBreakerBuilder::slow_call_rate) of at least
/// [`minimum_calls`](CircuitBreakerBuilder::minimum_calls) in the window. Calls that are in flight
/// past the slow limit count as slow before they end, so it also opens when a dependency hangs. A
/// call that ends after the state has changed since it began is too late to change it again.
///
/// # Cost
///
/// A call through a closed breaker reads the clock once and does one uncontended compare-exchange;
/// where slow calls count it reads the clock twice and does three of them. A refused call reads the clock once. Nothing
/// locks, and nothing is allocated.
#[derive(Clone)]
pub struct CircuitBreaker {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    epoch: Instant,
    machine: Machine,
    member: Option<Member>,
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
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit, Open> {
        self.acquire(None)
    }

    /// Asks to make a call that begins at `now`.
    ///
    /// # Errors
    ///
    /// As [`try_acquire`](Self::try_acquire).
    #[inline]
    pub fn try_acquire_at(&self, now: Instant) -> Result<Permit, Open> {
        self.acquire(Some(now))
    }

    #[inline]
    fn acquire(&self, now: Option<Instant>) -> Result<Permit, Open> {
        let (ticket, probing) = self.shared.admit(now)?;
        let shared = Arc::clone(&self.shared);
        Ok(Permit(Guard { shared, ticket: Some(ticket), _probing: probing }))
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
    /// A call that is dropped, or panics, ends as [`Outcome::Cancelled`].
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
        self.call_judged(make, Outcome::of_result).await
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
        let (ticket, probing) = shared.admit(None)?;
        let mut guard = Guard { shared, ticket: Some(ticket), _probing: probing };
        let result = make().await;
        guard.complete(judge(&result), None);
        result.map_err(CallError::Failed)
    }

    /// Makes a call through the breaker, and a value of its own if there is none.
    ///
    /// `fallback` gets the reason and may look at it: a stale value for an open breaker, a default
    /// for a failed call.
    ///
    /// # Cancel safety
    ///
    /// As [`call`](Self::call).
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let breaker = resilience::CircuitBreaker::builder("prices").build()?;
    /// let price = breaker.call_or_else(|| async { "n/a".parse::<u32>() }, |_error| 0).await;
    /// assert_eq!(price, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn call_or_else<T, E, F, Fut, G>(&self, make: F, fallback: G) -> T
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
        G: FnOnce(CallError<E>) -> T,
    {
        self.call(make).await.unwrap_or_else(fallback)
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
    /// About 70 loads. The numbers are read one after the other while calls go on.
    pub fn stats(&self) -> CircuitBreakerStats {
        self.stats_at(Instant::now())
    }

    /// Reads the state and the counts at `now`.
    pub fn stats_at(&self, now: Instant) -> CircuitBreakerStats {
        self.shared.machine.stats(self.shared.nanos(now))
    }

    /// Closes the breaker and forgets its window, its retry hints and how often it has opened.
    ///
    /// Calls in flight count neither way when they complete. The totals in the stats stay. Ends
    /// [`force_open`](Self::force_open) and [`force_closed`](Self::force_closed).
    pub fn reset(&self) {
        self.reset_at(Instant::now());
    }

    /// Resets the breaker at `now`.
    pub fn reset_at(&self, now: Instant) {
        self.shared.machine.reset(self.shared.nanos(now));
    }

    /// Opens the breaker until [`reset`](Self::reset) or [`force_closed`](Self::force_closed): no
    /// call passes and nothing probes.
    ///
    /// Refusals hint at the maximum of [`open_time`](CircuitBreakerBuilder::open_time).
    pub fn force_open(&self) {
        self.force_open_at(Instant::now());
    }

    /// Opens the breaker at `now` until it is told otherwise.
    pub fn force_open_at(&self, now: Instant) {
        self.shared.machine.force(true, self.shared.nanos(now));
    }

    /// Keeps the breaker closed until [`reset`](Self::reset) or [`force_open`](Self::force_open):
    /// calls are counted, but do not open it.
    pub fn force_closed(&self) {
        self.force_closed_at(Instant::now());
    }

    /// Closes the breaker at `now` until it is told otherwise.
    pub fn force_closed_at(&self, now: Instant) {
        self.shared.machine.force(false, self.shared.nanos(now));
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
    #[inline]
    fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }

    #[inline]
    fn admit(&self, now: Option<Instant>) -> Result<(Ticket, Turn), Open> {
        match self.machine.acquire_untimed() {
            Some(ticket) => Ok((ticket, None)),
            None => self.admit_timed(now),
        }
    }

    fn admit_timed(&self, now: Option<Instant>) -> Result<(Ticket, Turn), Open> {
        let now = now.unwrap_or_else(Instant::now);
        let nanos = self.nanos(now);
        let probing = match &self.member {
            // In an incident, the group's breakers take turns at probing.
            Some(member) if self.machine.probes(nanos) => {
                let timeout = Duration::from_nanos(self.machine.probe_timeout());
                match member.try_probe(now, timeout) {
                    Ok(probing) => probing.map(Box::new),
                    Err(_) => return Err(self.machine.refuse()),
                }
            }
            _ => None,
        };
        self.machine.acquire(nanos).map(|ticket| (ticket, probing))
    }

    /// Takes the outcome of a call, and tells a failure to the group of the dependency.
    #[inline]
    fn complete(&self, ticket: Ticket, outcome: Outcome, now: Instant) {
        self.machine.complete(ticket, outcome, self.nanos(now));
        if outcome.is_failure()
            && let Some(member) = &self.member
        {
            member.failed_at(now);
        }
    }
}

/// The leave to make one call, which takes the call's outcome.
///
/// Dropped without one, the call was [cancelled](Outcome::Cancelled), and a probe gives its place
/// back. A permit that is kept for ever in a half-open breaker is taken for lost after the
/// [`probe_timeout`](CircuitBreakerBuilder::probe_timeout).
#[must_use = "a permit that is dropped counts as a cancelled call"]
pub struct Permit(Guard<Arc<Shared>>);

impl Permit {
    /// Reports how the call ended.
    #[inline]
    pub fn complete(mut self, outcome: Outcome) {
        self.0.complete(outcome, None);
    }

    /// Reports how the call ended at `now`.
    #[inline]
    pub fn complete_at(mut self, outcome: Outcome, now: Instant) {
        self.0.complete(outcome, Some(now));
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("breaker", &self.0.shared.name).finish_non_exhaustive()
    }
}

/// The turn at probing of a probe in an incident; in a box, since it is rare and a permit is moved.
type Turn = Option<Box<Probing>>;

/// Gives a ticket back exactly once: with an outcome, or by drop.
struct Guard<S: Deref<Target = Shared>> {
    shared: S,
    ticket: Option<Ticket>,
    _probing: Turn,
}

impl<S: Deref<Target = Shared>> Guard<S> {
    #[inline]
    fn complete(&mut self, outcome: Outcome, now: Option<Instant>) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.complete(ticket, outcome, now.unwrap_or_else(Instant::now));
        }
    }
}

impl<S: Deref<Target = Shared>> Drop for Guard<S> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        if self.shared.machine.times_calls() {
            self.shared.complete(ticket, Outcome::Cancelled, Instant::now());
        } else {
            self.shared.machine.release(ticket);
        }
    }
}

/// How a call ended, as far as the dependency's health goes.
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
    /// The caller gave up before the end, as when a permit is dropped.
    ///
    /// Counts neither way, unless the call was past the slow limit by then: that it was slow is
    /// known, so it counts as a slow call that neither succeeded nor failed.
    Cancelled,
}

impl Outcome {
    /// Takes `Ok` for a success and `Err` for a failure.
    pub fn of_result<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Success } else { Self::Failure }
    }

    /// Says what the status code of an HTTP response means; `retry_after` is its hint, if any.
    ///
    /// 429 and 503 are overload (RFC 6585, section 4; RFC 9110, section 15.6.4). 408 and the other
    /// codes from 500 on are failures, but for 501 and 505, which say that the request asks for what
    /// the server does not do; like the other codes from 400 on, they are ignored. Everything else
    /// is a success.
    pub fn of_status(status: u16, retry_after: Option<Duration>) -> Self {
        match status {
            429 | 503 => Self::Overload { retry_after },
            501 | 505 => Self::Ignored,
            408 | 500.. => Self::Failure,
            400.. => Self::Ignored,
            _ => Self::Success,
        }
    }

    /// Whether the dependency did not do what it was asked.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Failure | Self::Overload { .. })
    }
}

/// A change of a breaker's state, as the listener gets it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StateChange<'a> {
    /// The breaker's name.
    pub breaker: &'a str,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// What led to it.
    pub reason: Reason,
    /// When it happened, by the clock of the caller that caused it.
    pub at: Instant,
}

/// Why a breaker has changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// So many failures came in a row.
    ConsecutiveFailures {
        /// The failures in the row.
        failures: u32,
    },
    /// The share of failed calls in the window reached its limit.
    FailureRate {
        /// Calls that failed.
        failures: u64,
        /// All calls that count.
        calls: u64,
    },
    /// The share of slow calls in the window reached its limit.
    SlowCallRate {
        /// Calls that were or are too slow.
        slow: u64,
        /// Those of them that were still in flight.
        overdue: u64,
        /// All calls that count.
        calls: u64,
    },
    /// The open time was over and somebody called: the first probe.
    OpenTimeOver,
    /// A probe failed or was slow.
    ProbeFailed,
    /// No probe came back within the probe timeout.
    ProbesLost,
    /// All probes succeeded.
    ProbesSucceeded,
    /// All probes succeeded, and so did enough calls of the ramp until its end.
    RampOver,
    /// Somebody forced the state.
    Forced,
    /// Somebody reset the breaker.
    Reset,
}

/// What a breaker does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass and are counted.
    Closed,
    /// Calls are turned away until the open time is over.
    Open,
    /// A few calls pass, as probes or as the growing share of a
    /// [`ramp`](CircuitBreakerBuilder::ramp); the others are turned away.
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
    /// Calls in the window that succeeded, failed, or were cancelled after the slow-call limit, since
    /// the breaker last closed.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Those of them that took longer than the slow-call limit, whether they failed or not.
    pub slow: u64,
    /// Calls in flight that are past the slow-call limit; not among `calls` yet.
    pub overdue: u64,
    /// The share of calls that pass, in percent: 100 when closed, the stage's share in a ramp, 0
    /// otherwise (probes are counted, not shared out).
    pub admitted_percent: u8,
    /// Whether somebody has forced the state.
    pub forced: bool,
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
