//! The two clocks of a measurement: CPU time of the process, and the wall.
//!
//! A [`Stopwatch`] is for closures that have to keep their set-up out of the number: they start it late,
//! read it early and report the reading.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Names what a duration is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// CPU time of all threads of this process, user and system.
    Cpu,
    /// Time on the wall, for work that waits for a device or for another process.
    Wall,
}

impl Clock {
    /// Reads the clock; only differences of two readings mean something.
    ///
    /// # Cost
    ///
    /// One system call for [`Clock::Cpu`], around 200 ns; measure batches, not single operations.
    pub fn now(self) -> Duration {
        match self {
            Self::Cpu => {
                let time = clock_gettime(ClockId::ProcessCPUTime);
                let seconds = u64::try_from(time.tv_sec).expect("CPU time is not negative");
                let nanos = u32::try_from(time.tv_nsec).expect("less than a second");
                Duration::new(seconds, nanos)
            }
            Self::Wall => {
                static START: OnceLock<Instant> = OnceLock::new();
                START.get_or_init(Instant::now).elapsed()
            }
        }
    }
}

/// Measures a part of a closure by a [`Clock`].
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    clock: Clock,
    started: Duration,
}

impl Stopwatch {
    /// Starts a stopwatch on `clock`.
    pub fn start(clock: Clock) -> Self {
        Self { clock, started: clock.now() }
    }

    /// Returns the time since the start, at least a nanosecond so that rates stay finite.
    pub fn elapsed(&self) -> Duration {
        self.clock.now().saturating_sub(self.started).max(Duration::from_nanos(1))
    }

    /// Returns nanoseconds per operation after `operations` of them.
    pub fn nanos_per(&self, operations: u64) -> f64 {
        nanos_per(self.elapsed(), operations)
    }

    /// Returns operations per second after `operations` of them.
    pub fn per_second(&self, operations: u64) -> f64 {
        per_second(self.elapsed(), operations)
    }
}

pub(crate) fn nanos_per(elapsed: Duration, operations: u64) -> f64 {
    elapsed.as_nanos() as f64 / operations.max(1) as f64
}

pub(crate) fn per_second(elapsed: Duration, operations: u64) -> f64 {
    operations as f64 / elapsed.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;
    use std::thread;

    #[test]
    fn cpu_time_passes_while_computing_and_hardly_while_sleeping() {
        let sleeping = Stopwatch::start(Clock::Cpu);
        let wall = Stopwatch::start(Clock::Wall);
        thread::sleep(Duration::from_millis(50));
        assert!(wall.elapsed() >= Duration::from_millis(50));
        let asleep = sleeping.elapsed();

        let busy = Stopwatch::start(Clock::Cpu);
        let mut x = 1_u64;
        while busy.elapsed() < Duration::from_millis(20) {
            x = black_box(x.wrapping_mul(3));
        }
        assert!(busy.elapsed() >= Duration::from_millis(20));
        // Other tests of this process may compute meanwhile, so only the order of size is claimed.
        assert!(asleep < Duration::from_secs(1), "{asleep:?}");
    }

    #[test]
    fn time_and_rate_are_two_views_of_one_reading() {
        let elapsed = Duration::from_millis(2);
        assert!((nanos_per(elapsed, 1_000) - 2_000.0).abs() < 1e-9);
        assert!((per_second(elapsed, 1_000) - 500_000.0).abs() < 1e-6);
    }
}
