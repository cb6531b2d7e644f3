//! Where a cache reads the time: a monotonic clock for what lives in memory, the wall clock for what
//! is written down.
//!
//! Memory entries expire by the monotonic clock, so setting the machine's clock neither empties nor
//! freezes a cache. Redis and the disk outlive the process, so there an expiry is a Unix time; it is
//! converted once, when an entry moves between the two worlds. Tests use [`Clock::manual`] and never
//! sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds of the monotonic clock; only differences mean something.
pub(crate) type Millis = u64;

/// An expiry that never comes.
pub(crate) const NEVER: Millis = u64::MAX;

/// Tells a cache the time: the machine's, or one that a test moves by hand.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use cache_tiered::{Cache, Clock};
///
/// let clock = Clock::manual();
/// let cache = Cache::<u32, &str>::builder("greetings")
///     .entries(10)
///     .ttl(Duration::from_secs(60))
///     .clock(clock.clone())
///     .build()?;
/// cache.insert(1, "hello");
/// clock.advance(Duration::from_secs(61));
/// assert_eq!(cache.get_in_memory(&1), None);
/// # Ok::<_, cache_tiered::BuildError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Clock(Source);

#[derive(Debug, Clone, Default)]
enum Source {
    #[default]
    Machine,
    Manual(Arc<AtomicU64>),
}

/// Where manual clocks start: far enough from zero that an age can be subtracted.
const MANUAL_START: Millis = 1_000_000_000_000;

impl Clock {
    /// Makes a clock that stands still until [`advance`](Self::advance) moves it.
    #[must_use]
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(MANUAL_START))))
    }

    /// Moves a manual clock, and all its clones, forward; the machine's clock is not moved.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.0 {
            now.fetch_add(millis(by), Ordering::Relaxed);
        }
    }

    /// Monotonic milliseconds, a few of them coarse: the kernel's tick, without a hardware read.
    #[inline]
    pub(crate) fn now(&self) -> Millis {
        match &self.0 {
            Source::Machine => machine_now(),
            Source::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn unix_now(&self) -> u64 {
        match &self.0 {
            Source::Machine => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
            Source::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// The monotonic deadline of a Unix expiry; zero is the lower tiers' word for never.
    #[cfg(any(feature = "__lower", test))]
    pub(crate) fn deadline_of(&self, expires_unix_ms: u64) -> Millis {
        if expires_unix_ms == 0 {
            return NEVER;
        }
        self.now().saturating_add(expires_unix_ms.saturating_sub(self.unix_now()))
    }

    /// The Unix expiry of a monotonic deadline, zero for never.
    pub(crate) fn unix_expiry_of(&self, deadline: Millis) -> u64 {
        if deadline == NEVER {
            return 0;
        }
        self.unix_now().saturating_add(deadline.saturating_sub(self.now())).max(1)
    }
}

/// Whole milliseconds of a duration, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(target_os = "linux")]
fn machine_now() -> Millis {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

#[cfg(not(target_os = "linux"))]
fn machine_now() -> Millis {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    millis(START.get_or_init(Instant::now).elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_survives_the_way_down_and_up() {
        let clock = Clock::manual();
        let deadline = clock.now() + 5_000;
        assert_eq!(clock.deadline_of(clock.unix_expiry_of(deadline)), deadline);
        assert_eq!(clock.deadline_of(clock.unix_expiry_of(NEVER)), NEVER);
    }

    #[test]
    fn a_deadline_in_the_past_is_now_and_not_never() {
        let clock = Clock::manual();
        assert_eq!(clock.deadline_of(1), clock.now());
        assert_ne!(clock.unix_expiry_of(0), 0);
    }

    #[test]
    fn the_machines_clock_does_not_run_backwards() {
        let clock = Clock::default();
        let before = clock.now();
        assert!(clock.now() >= before);
    }
}
