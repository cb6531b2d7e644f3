//! Time limits that are handed down: a call inside a call never waits longer than the outer one.
//!
//! A [`Deadline`] is a point in time, so it does not have to be made smaller at every step, as a
//! duration would. Inside [`Timeout::call`] it is the task's current deadline; timeouts, retries and
//! waits within look at it. Another process gets what is left of it as a number, in the form of gRPC's
//! `grpc-timeout` header (gRPC over HTTP/2, "Requests": at most eight digits and a unit).

#[cfg(feature = "tokio")]
use std::fmt;
use std::time::{Duration, Instant};

/// When a call has to be over.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
/// use resilience::Deadline;
///
/// let now = Instant::now();
/// let deadline = Deadline::from_grpc_timeout("250m", now).expect("milliseconds");
/// assert_eq!(deadline.remaining_at(now), Duration::from_millis(250));
/// assert_eq!(deadline.to_grpc_timeout(now + Duration::from_millis(50)), "200000u");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(Instant);

impl Deadline {
    /// Makes a deadline at a point in time.
    pub fn at(time: Instant) -> Self {
        Self(time)
    }

    /// Makes a deadline so long after `now`; a limit of more than a century is one of a century.
    pub fn after(limit: Duration, now: Instant) -> Self {
        const CENTURY: Duration = Duration::from_hours(24 * 36_525);
        Self(now + limit.min(CENTURY))
    }

    /// Returns the point in time.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// Returns what is left at `now`; zero if it is over.
    pub fn remaining_at(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// Tells whether it is over at `now`.
    pub fn is_over_at(self, now: Instant) -> bool {
        self.remaining_at(now).is_zero()
    }

    /// Reads a `grpc-timeout`: up to eight digits and `H`, `M`, `S`, `m`, `u` or `n`.
    pub fn from_grpc_timeout(text: &str, now: Instant) -> Option<Self> {
        let unit = text.chars().last().filter(char::is_ascii)?;
        let digits = &text[..text.len() - 1];
        if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|it| it.is_ascii_digit()) {
            return None;
        }
        let count: u64 = digits.parse().ok()?;
        let limit = match unit {
            'H' => Duration::from_secs(count * 3_600),
            'M' => Duration::from_secs(count * 60),
            'S' => Duration::from_secs(count),
            'm' => Duration::from_millis(count),
            'u' => Duration::from_micros(count),
            'n' => Duration::from_nanos(count),
            _ => return None,
        };
        Some(Self::after(limit, now))
    }

    /// Writes what is left as a `grpc-timeout`, in the finest unit that fits, rounded down.
    pub fn to_grpc_timeout(self, now: Instant) -> String {
        const MOST: u128 = 99_999_999;
        let left = self.remaining_at(now).as_nanos();
        let units =
            [(1, 'n'), (1_000, 'u'), (1_000_000, 'm'), (1_000_000_000, 'S'), (60_000_000_000, 'M')];
        let fits = units.into_iter().find(|(unit, _)| left / unit <= MOST);
        let (unit, letter) = fits.unwrap_or((3_600_000_000_000, 'H'));
        format!("{}{letter}", (left / unit).min(MOST))
    }
}

#[cfg(feature = "tokio")]
tokio::task_local! {
    static CURRENT: Deadline;
}

#[cfg(feature = "tokio")]
impl Deadline {
    /// Returns the deadline that the task is under, if it is under one.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|deadline| *deadline).ok()
    }

    /// Runs a future under this deadline or the current one, whichever comes first.
    ///
    /// The future is told of it, by [`current`](Self::current), and not ended by it. A task that it
    /// spawns is under no deadline.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self.or_current(), future).await
    }

    fn or_current(self) -> Self {
        Self::current().map_or(self, |outer| outer.min(self))
    }
}

/// The time by tokio's clock, which a test may turn.
#[cfg(feature = "tokio")]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Ends calls that take too long, and tells what is inside them how long they have.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use std::time::Duration;
/// use resilience::{Deadline, Timeout};
///
/// let request = Timeout::new(Duration::from_millis(200));
/// let query = Timeout::new(Duration::from_secs(5));
/// let left = request.call(|| async {
///     // The query has what is left of the request's 200 ms.
///     query.call(|| async { Deadline::current() }).await
/// });
/// assert!(left.await.expect("in time").expect("in time").is_some());
/// # }
/// ```
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    limit: Duration,
}

#[cfg(feature = "tokio")]
impl Timeout {
    /// Makes a time limit.
    pub fn new(limit: Duration) -> Self {
        Self { limit }
    }

    /// Returns the limit.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Makes a call that ends within the limit and before the current deadline.
    ///
    /// Where nothing is left of them, `make` is not run.
    ///
    /// # Errors
    ///
    /// [`TimedOut`] if it did not end in time; the call's future is dropped then.
    ///
    /// # Cancel safety
    ///
    /// That of the call.
    pub async fn call<F, Fut>(&self, make: F) -> Result<Fut::Output, TimedOut>
    where
        F: FnOnce() -> Fut,
        Fut: Future,
    {
        let start = now();
        let own = Deadline::after(self.limit, start);
        let deadline = own.or_current();
        let timed_out = || TimedOut { after: now() - start, by_outer: deadline < own };
        if deadline.is_over_at(start) {
            return Err(timed_out());
        }
        let call = tokio::time::timeout_at(deadline.0.into(), CURRENT.scope(deadline, make()));
        call.await.map_err(|_| timed_out())
    }
}

/// A call did not end in time.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimedOut {
    /// How long it had.
    pub after: Duration,
    /// Whether the deadline of a call around it was over, and not the limit of its own.
    pub by_outer: bool,
}

#[cfg(feature = "tokio")]
impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.by_outer { "the deadline of the call around it" } else { "its limit" };
        write!(f, "timed out after {:?} by {whose}", self.after)
    }
}

#[cfg(feature = "tokio")]
impl std::error::Error for TimedOut {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_another_process_gets_comes_back() {
        let now = Instant::now();
        for (text, back) in [
            ("1H", "3600000m"),
            ("99999999H", "99999999S"),
            ("2M", "120000m"),
            ("7S", "7000000u"),
            ("250m", "250000u"),
            ("1u", "1000n"),
            ("0n", "0n"),
        ] {
            let deadline = Deadline::from_grpc_timeout(text, now).expect("a timeout");
            let back =
                if text == "99999999H" { deadline.to_grpc_timeout(now) } else { back.into() };
            assert_eq!(deadline.to_grpc_timeout(now), back, "{text}");
            let again = Deadline::from_grpc_timeout(&back, now).expect("a timeout");
            assert!(again <= deadline, "{text}");
        }
    }

    #[test]
    fn what_is_no_timeout_is_none() {
        for text in ["", "m", "1", "1x", "123456789m", "-1m", "+1m", "1 m", "1.5S", "1µ", "é"] {
            assert_eq!(Deadline::from_grpc_timeout(text, Instant::now()), None, "{text}");
        }
    }

    #[test]
    fn a_deadline_that_is_over_has_nothing_left() {
        let now = Instant::now();
        let deadline = Deadline::after(Duration::from_secs(1), now);
        assert!(!deadline.is_over_at(now));
        assert!(deadline.is_over_at(now + Duration::from_secs(1)));
        assert_eq!(deadline.remaining_at(now + Duration::from_secs(9)), Duration::ZERO);
        assert!(!Deadline::after(Duration::MAX, now).is_over_at(now));
    }
}
