//! How long a backend takes: a moving average that jumps up at once and comes down slowly.
//!
//! This is the peak EWMA of Finagle. A sample above the average replaces it, since a backend that
//! has become slow must lose its traffic within one answer; a sample below it counts by the time
//! since the last one. Without samples the average goes to the fleet's median, not to zero: a
//! backend nobody asked for a while is taken for an ordinary one, where the original takes it for
//! the fastest of all and floods it until its first answer.
//!
//! A backend that has leases and does not answer is taken to be at least as slow as it has been silent,
//! so one that hangs loses its traffic before the first call to it has timed out.
//!
//! Value and stamp are two words that are read and written without any order between them. A reader
//! may see one old and one new, and two writers may lose one of two samples; both cost one sample.

use crate::sync::{AtomicU64, Relaxed};

/// Nanoseconds since the balancer was built.
pub(crate) type Nanos = u64;

/// The moving average of one backend; zero means that nothing is known.
#[derive(Debug)]
pub(crate) struct Latency {
    value: AtomicU64,
    stamp: AtomicU64,
}

/// What the averages of all backends have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Averaging {
    /// One through the decay time in nanoseconds.
    per_nano: f64,
}

impl Averaging {
    pub(crate) fn new(decay: std::time::Duration) -> Self {
        Self { per_nano: 1.0 / (decay.as_nanos() as f64).max(1.0) }
    }

    /// The share of the old average that is left after `age`: e^-x, by the first terms of e^x.
    fn kept(self, age: Nanos) -> f64 {
        let x = age as f64 * self.per_nano;
        1.0 / (1.0 + x + 0.5 * x * x)
    }
}

impl Latency {
    pub(crate) fn unknown() -> Self {
        Self { value: AtomicU64::new(0), stamp: AtomicU64::new(0) }
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.value.store(0, Relaxed);
    }

    /// The last average in nanoseconds, as it was; `None` while nothing is known.
    pub(crate) fn last(&self) -> Option<f64> {
        let value = f64::from_bits(self.value.load(Relaxed));
        (value > 0.0).then_some(value)
    }

    /// The average at `now`, in nanoseconds; `usual` is the fleet's.
    pub(crate) fn estimate(&self, now: Nanos, averaging: Averaging, usual: f64) -> f64 {
        let value = f64::from_bits(self.value.load(Relaxed));
        if value <= 0.0 {
            return usual;
        }
        let age = now.saturating_sub(self.stamp.load(Relaxed));
        usual + (value - usual) * averaging.kept(age)
    }

    /// How long a backend has not answered that has had leases since `busy_since`, in nanoseconds.
    ///
    /// A lease that is out tells by its age that calls take at least so long, before it is back.
    pub(crate) fn silence(&self, busy_since: Nanos, now: Nanos) -> f64 {
        match busy_since {
            0 => 0.0,
            since => now.saturating_sub(since.max(self.stamp.load(Relaxed))) as f64,
        }
    }

    /// Takes a sample.
    pub(crate) fn record(&self, sample: f64, now: Nanos, averaging: Averaging, usual: f64) {
        let value = match self.last() {
            None => sample,
            Some(_) => {
                let before = self.estimate(now, averaging, usual);
                if sample >= before {
                    sample
                } else {
                    let age = now.saturating_sub(self.stamp.load(Relaxed));
                    let kept = averaging.kept(age);
                    before * kept + sample * (1.0 - kept)
                }
            }
        };
        self.value.store(value.max(1.0).to_bits(), Relaxed);
        self.stamp.store(now, Relaxed);
    }

    /// Takes a sample that tells no more than that it took at least so long.
    pub(crate) fn record_at_least(&self, least: f64, now: Nanos, averaging: Averaging, usual: f64) {
        if self.last().is_some() && least > self.estimate(now, averaging, usual) {
            self.record(least, now, averaging, usual);
        }
    }
}

/// The median of the latencies of the whole fleet, followed in steps.
///
/// A sample above it raises it by 2 %, one below lowers it by as much, so it settles where half of
/// the samples lie on either side, whatever the slowest of them take.
#[derive(Debug)]
pub(crate) struct Median(AtomicU64);

const STEP: f64 = 1.02;

impl Median {
    pub(crate) fn unknown() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The median in nanoseconds; `None` before the first sample.
    pub(crate) fn get(&self) -> Option<f64> {
        let value = f64::from_bits(self.0.load(Relaxed));
        (value > 0.0).then_some(value)
    }

    pub(crate) fn record(&self, sample: f64) {
        let next = match self.get() {
            None => sample.max(1.0),
            Some(value) if sample > value => value * STEP,
            Some(value) => (value / STEP).max(1.0),
        };
        self.0.store(next.to_bits(), Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: f64 = 1e6;
    const SECOND: Nanos = 1_000_000_000;

    fn averaging() -> Averaging {
        Averaging::new(Duration::from_secs(1))
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_a_fast_one_by_its_time() {
        let latency = Latency::unknown();
        assert_eq!(latency.estimate(0, averaging(), 7.0 * MS), 7.0 * MS);
        latency.record(10.0 * MS, 0, averaging(), 10.0 * MS);
        latency.record(100.0 * MS, SECOND / 100, averaging(), 10.0 * MS);
        assert_eq!(latency.last(), Some(100.0 * MS));
        latency.record(10.0 * MS, SECOND / 50, averaging(), 10.0 * MS);
        let after = latency.last().expect("known");
        assert!((97.0 * MS..99.5 * MS).contains(&after), "{after}");
    }

    #[test]
    fn without_samples_it_goes_to_the_usual_from_above_and_from_below() {
        for start in [1.0 * MS, 900.0 * MS] {
            let latency = Latency::unknown();
            latency.record(start, 0, averaging(), 20.0 * MS);
            let mut distance = f64::INFINITY;
            for seconds in 0..60 {
                let estimate = latency.estimate(seconds * SECOND, averaging(), 20.0 * MS);
                let next = (estimate - 20.0 * MS).abs();
                assert!(next < distance, "{start}: {estimate} after {seconds} s");
                distance = next;
            }
            assert!(distance < MS, "{distance}");
        }
    }

    #[test]
    fn a_clock_that_goes_back_ages_nothing() {
        let latency = Latency::unknown();
        latency.record(30.0 * MS, 10 * SECOND, averaging(), 1.0 * MS);
        assert_eq!(latency.estimate(3 * SECOND, averaging(), 1.0 * MS), 30.0 * MS);
        latency.record(5.0 * MS, 3 * SECOND, averaging(), 1.0 * MS);
        assert_eq!(latency.last(), Some(30.0 * MS), "a fast sample without time changes nothing");
    }

    #[test]
    fn silence_counts_from_the_first_lease_or_the_last_answer() {
        let latency = Latency::unknown();
        assert_eq!(latency.silence(0, 9 * SECOND), 0.0, "nobody has read the clock");
        assert_eq!(latency.silence(2 * SECOND, 9 * SECOND), 7e9);
        latency.record(MS, 5 * SECOND, averaging(), MS);
        assert_eq!(latency.silence(2 * SECOND, 9 * SECOND), 4e9);
        assert_eq!(latency.silence(8 * SECOND, 9 * SECOND), 1e9);
        assert_eq!(latency.silence(8 * SECOND, 3 * SECOND), 0.0, "a clock that went back");
    }

    #[test]
    fn a_cancelled_call_only_ever_makes_it_slower() {
        let latency = Latency::unknown();
        latency.record_at_least(5.0 * MS, 0, averaging(), MS);
        assert_eq!(latency.last(), None, "it tells nothing about a backend that never answered");
        latency.record(10.0 * MS, 0, averaging(), MS);
        latency.record_at_least(5.0 * MS, 0, averaging(), MS);
        assert_eq!(latency.last(), Some(10.0 * MS));
        latency.record_at_least(50.0 * MS, 0, averaging(), MS);
        assert_eq!(latency.last(), Some(50.0 * MS));
    }

    #[test]
    fn the_median_settles_between_the_halves() {
        let median = Median::unknown();
        for round in 0..2_000_u32 {
            // A third of the samples is a hundred times slower.
            median.record(if round % 3 == 0 { 1_000.0 * MS } else { 10.0 * MS });
        }
        let settled = median.get().expect("known");
        assert!((9.0 * MS..12.0 * MS).contains(&settled), "{settled}");
    }
}
