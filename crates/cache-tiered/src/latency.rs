//! How long reads of a tier take, of late.
//!
//! A histogram whose buckets grow with what they hold: eight of them for each doubling, so a quantile
//! is told within an eighth. After [`MEMORY`] reads all counts are halved, and what was long ago
//! fades.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Reads after which the older half fades.
const MEMORY: u32 = 4_096;
/// What a count stands for is in units of about a microsecond.
const UNIT_BITS: u32 = 10;
/// Buckets for each doubling.
const FINE_BITS: u32 = 3;
const FINE: usize = 1 << FINE_BITS;
/// Doublings: the last bucket begins at about 16 seconds.
const DOUBLINGS: usize = 22;
const BUCKETS: usize = FINE * DOUBLINGS;

/// How long the reads of a tier have taken of late, an eighth too long at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReadLatency {
    /// The reads that the rest is of, newer ones counting for more; zero before the first.
    pub reads: u64,
    /// What half of the reads did not exceed.
    pub p50: Duration,
    /// What 95 of 100 reads did not exceed.
    pub p95: Duration,
    /// What 99 of 100 reads did not exceed.
    pub p99: Duration,
}

#[derive(Debug)]
pub(crate) struct LatencyHistogram {
    counts: [AtomicU32; BUCKETS],
    total: AtomicU32,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU32::new(0)), total: AtomicU32::new(0) }
    }
}

fn bucket(took: Duration) -> usize {
    let units = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) >> UNIT_BITS;
    let Some(power) = units.checked_ilog2().filter(|power| *power >= FINE_BITS) else {
        return units as usize;
    };
    let fine = (units >> (power - FINE_BITS)) as usize & (FINE - 1);
    ((power - FINE_BITS + 1) as usize * FINE + fine).min(BUCKETS - 1)
}

/// Where the bucket ends.
fn end_of(bucket: usize) -> Duration {
    let (doubling, fine) = (bucket / FINE, (bucket % FINE) as u64);
    let units = match doubling {
        0 => fine + 1,
        _ => (FINE as u64 + fine + 1) << (doubling - 1),
    };
    Duration::from_nanos(units << UNIT_BITS)
}

impl LatencyHistogram {
    /// Notes that `reads` reads took so long.
    ///
    /// Relaxed throughout: a count that is lost while all are halved is one of thousands.
    pub(crate) fn record(&self, took: Duration, reads: u32) {
        self.counts[bucket(took)].fetch_add(reads, Ordering::Relaxed);
        let before = self.total.fetch_add(reads, Ordering::Relaxed);
        if before < MEMORY && before.saturating_add(reads) >= MEMORY {
            let mut total = 0;
            for count in &self.counts {
                let gone = count.load(Ordering::Relaxed).div_ceil(2);
                total += count.fetch_sub(gone, Ordering::Relaxed) - gone;
            }
            self.total.store(total, Ordering::Relaxed);
        }
    }

    pub(crate) fn summary(&self) -> ReadLatency {
        let counts = self.counts.each_ref().map(|count| u64::from(count.load(Ordering::Relaxed)));
        let reads: u64 = counts.iter().sum();
        let quantile = |percent: u64| {
            let wanted = (reads * percent).div_ceil(100);
            let mut seen = 0;
            let found = counts.iter().position(|count| {
                seen += count;
                seen >= wanted && seen > 0
            });
            found.map_or(Duration::ZERO, end_of)
        };
        ReadLatency { reads, p50: quantile(50), p95: quantile(95), p99: quantile(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_within_an_eighth_of_what_is_in_it() {
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let bits = rng.u32(1..34);
            let took = Duration::from_nanos(rng.u64(0..1 << bits));
            let end = end_of(bucket(took));
            assert!(end > took, "{took:?} {end:?}");
            assert!(end <= took + took / 8 + Duration::from_nanos(1 << UNIT_BITS), "{took:?}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let mut rng = fastrand::Rng::with_seed(2);
        let histogram = LatencyHistogram::default();
        let mut times: Vec<Duration> =
            (0..MEMORY - 1).map(|_| Duration::from_micros(1 << rng.u32(4..16))).collect();
        times.iter().for_each(|took| histogram.record(*took, 1));
        times.sort_unstable();
        let summary = histogram.summary();
        assert_eq!(summary.reads, times.len() as u64);
        for (percent, told) in [(50, summary.p50), (95, summary.p95), (99, summary.p99)] {
            let exact = times[(times.len() * percent).div_ceil(100) - 1];
            assert!(told > exact && told <= exact + exact / 8 + Duration::from_micros(2));
        }
    }

    #[test]
    fn what_was_long_ago_fades() {
        let histogram = LatencyHistogram::default();
        assert_eq!(histogram.summary(), ReadLatency::default());
        (0..10_000).for_each(|_| histogram.record(Duration::from_secs(1), 1));
        (0..50_000).for_each(|_| histogram.record(Duration::from_millis(1), 1));
        let summary = histogram.summary();
        assert!(summary.p99 < Duration::from_millis(2), "{summary:?}");
        assert!(summary.reads <= u64::from(MEMORY));
        histogram.record(Duration::from_millis(1), 3 * MEMORY);
        assert!(histogram.summary().reads <= 3 * u64::from(MEMORY));
    }
}
