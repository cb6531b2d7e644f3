//! The two clocks: one that never steps, for durations, and one that people and stores are told.
//!
//! A duration is counted by the monotonic clock alone, so a step of the wall clock neither fires nor ends
//! an alert. Samples are stored under the wall clock, because they outlive the process.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment by both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Since some start that stays the same for the life of the process.
    pub monotonic: Duration,
    /// Milliseconds since 1970 by the wall clock.
    pub unix_ms: i64,
}

impl Moment {
    /// Returns this moment and `later` added to both clocks.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Self {
            monotonic: self.monotonic + later,
            unix_ms: self.unix_ms.saturating_add(millis(later)),
        }
    }

    /// Returns how long ago `earlier` was by the monotonic clock, zero if it is yet to come.
    #[must_use]
    pub fn since(self, earlier: Duration) -> Duration {
        self.monotonic.saturating_sub(earlier)
    }
}

/// Where moments come from; tests bring a clock of their own.
pub trait Clock: Send + Sync + 'static {
    /// Returns this moment.
    fn now(&self) -> Moment;
}

/// The clocks of the system.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Starts to count now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        let unix_ms = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => millis(since),
            Err(before) => -millis(before.duration()),
        };
        Moment { monotonic: self.start.elapsed(), unix_ms }
    }
}

/// Returns a duration in milliseconds, at most what fits.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
