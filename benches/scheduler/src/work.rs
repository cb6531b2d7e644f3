//! Work that takes a known time of the CPU, and a count of what is still to be done.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Threads of every engine, whatever the machine has: the experiment is one of two workers.
pub(crate) const WORKERS: usize = 2;

/// Computes for about `time` on a core that nobody else wants.
///
/// It counts rounds instead of watching a clock, so a thread that is preempted meanwhile does as much work
/// as one that is not.
pub(crate) fn compute(time: Duration) {
    let rounds = (time.as_nanos() as f64 * rounds_per_nano()) as u64;
    turn(rounds);
}

/// Some rounds of arithmetic that the compiler cannot leave out (xorshift64, Marsaglia 2003).
fn turn(rounds: u64) {
    let mut state = black_box(0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..rounds {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    black_box(state);
}

/// The fastest of many short trials: what disturbs one only makes it slower.
fn rounds_per_nano() -> f64 {
    static RATE: OnceLock<f64> = OnceLock::new();
    *RATE.get_or_init(|| {
        let trial = |_| {
            let rounds = 100_000_u64;
            let start = Instant::now();
            turn(rounds);
            rounds as f64 / start.elapsed().as_nanos().max(1) as f64
        };
        (0..200).map(trial).fold(0.0, f64::max)
    })
}

/// Counts tasks down and wakes the thread that made it.
pub(crate) struct Countdown {
    left: AtomicUsize,
    owner: Thread,
}

impl Countdown {
    pub(crate) fn new(tasks: usize) -> Self {
        Self { left: AtomicUsize::new(tasks), owner: thread::current() }
    }

    pub(crate) fn done(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.owner.unpark();
        }
    }

    /// Waits in the thread that made it.
    pub(crate) fn wait(&self) {
        while self.left.load(Ordering::Acquire) > 0 {
            thread::park_timeout(Duration::from_millis(100));
        }
    }
}

/// Returns the value below which a share of the sorted `values` lies; zero without values.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        for (share, expected) in [(0.0, 0.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            assert_eq!(quantile(&values, share), expected);
        }
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
