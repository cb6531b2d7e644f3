//! Made-up traces: the patterns that tell eviction policies apart.
//!
//! Everything is drawn from a counter through SplitMix64, so a seed gives the same trace everywhere.
//! The Zipf distribution is drawn from a table of sums of whole numbers, for the same reason.

use super::Trace;
use super::mix::mix;

/// A pattern of requests.
///
/// # Examples
///
/// ```
/// use cache_tiered::simulate::{Capacity, Textbook, Workload, run};
///
/// let trace = Workload::Zipf { keys: 10_000, exponent: 0.9 }.trace(50_000, 1);
/// let outcome = run(&trace, &mut *Textbook::Lru.cache(Capacity::entries(500)));
/// assert!(outcome.hit_ratio() > 0.3);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Workload {
    /// Independent draws; the key of rank `i` is as frequent as `1 / i^exponent`.
    Zipf {
        /// How many keys there are.
        keys: u64,
        /// 0 makes all keys alike; real traffic has 0.6 to 1.1.
        exponent: f64,
    },
    /// A walk over new keys, each read `reads` times within the next `spread` steps, and never again.
    Scan {
        /// How often a key is read.
        reads: u32,
        /// How far apart the first and the last read of a key may be, in keys.
        spread: u64,
    },
    /// The same keys in the same order, again and again.
    Loop {
        /// How many keys there are.
        keys: u64,
    },
    /// Most requests go to a few keys, which are all exchanged from time to time.
    ShiftingHotSet {
        /// How many keys there are.
        keys: u64,
        /// How many of them are hot at a time.
        hot: u64,
        /// The share of requests that go to the hot ones, in percent.
        hot_percent: u8,
        /// Requests until others are hot.
        shift_every: u64,
    },
    /// A Zipf distribution that is interrupted by scans over keys that nobody else asks for.
    Mixed {
        /// How many keys the distribution has.
        keys: u64,
        /// Its exponent.
        exponent: f64,
        /// Requests between two scans.
        scan_every: u64,
        /// Keys in a scan.
        scan_keys: u64,
    },
}

impl Workload {
    /// Names the pattern in one word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Zipf { .. } => "zipf",
            Self::Scan { .. } => "scan",
            Self::Loop { .. } => "loop",
            Self::ShiftingHotSet { .. } => "shifting",
            Self::Mixed { .. } => "mixed",
        }
    }

    /// Makes this many requests of the pattern; the same seed makes the same ones.
    ///
    /// A pattern without keys makes no requests.
    #[must_use]
    pub fn trace(&self, requests: usize, seed: u64) -> Trace {
        let mut random = Random::new(seed);
        let keys: Vec<u64> = match *self {
            Self::Zipf { keys, exponent } => {
                let zipf = Zipf::new(keys, exponent);
                (0..requests).map_while(|_| zipf.draw(&mut random)).collect()
            }
            Self::Scan { reads, spread } => {
                let (reads, spread) = (u64::from(reads), spread.max(1));
                let steps = (0..requests as u64).take_while(|_| reads > 0);
                // Of each `reads` requests one is new; the others go back by fixed shares of the spread.
                let key = |at: u64| {
                    let (newest, read) = (at / reads, at % reads);
                    newest.wrapping_sub(read * spread / reads)
                };
                steps.map(key).collect()
            }
            Self::Loop { keys } => {
                (0..requests as u64).map_while(|at| at.checked_rem(keys)).collect()
            }
            Self::ShiftingHotSet { keys, hot, hot_percent, shift_every } => {
                let hot = hot.min(keys);
                let draw = |at: u64| {
                    let shift = at / shift_every.max(1);
                    if hot > 0 && random.below(100) < u64::from(hot_percent) {
                        Some((shift.wrapping_mul(hot) + random.below(hot)) % keys)
                    } else {
                        (keys > 0).then(|| random.below(keys))
                    }
                };
                (0..requests as u64).map_while(draw).collect()
            }
            Self::Mixed { keys, exponent, scan_every, scan_keys } => {
                let zipf = Zipf::new(keys, exponent);
                let cycle = scan_every.saturating_add(scan_keys).max(1);
                let draw = |at: u64| {
                    let (round, step) = (at / cycle, at % cycle);
                    match step.checked_sub(scan_every) {
                        None => zipf.draw(&mut random),
                        Some(step) => Some(
                            round.wrapping_mul(scan_keys).wrapping_add(keys.wrapping_add(step)),
                        ),
                    }
                };
                (0..requests as u64).map_while(draw).collect()
            }
        };
        // Neighbours in a pattern should not be neighbours in a table.
        let scrambled = keys.into_iter().map(|key| mix(key ^ mix(seed))).collect();
        Trace::new(self.name(), scrambled)
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        // Lemire's multiplication; its bias is below `bound` / 2^64.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// A table of the sums of the frequencies of all ranks.
struct Zipf {
    sums: Vec<u64>,
}

impl Zipf {
    /// The frequency of the first rank. All ranks together stay below 2^64.
    const FIRST: f64 = (1_u64 << 36) as f64;
    /// Ranks that a table may have.
    const KEYS_MAX: u64 = 1 << 27;

    fn new(keys: u64, exponent: f64) -> Self {
        let mut sum = 0;
        let sums = (1..=keys.min(Self::KEYS_MAX)).map(|rank| {
            sum += ((Self::FIRST / (rank as f64).powf(exponent.max(0.0))) as u64).max(1);
            sum
        });
        Self { sums: sums.collect() }
    }

    fn draw(&self, random: &mut Random) -> Option<u64> {
        let at = random.below(*self.sums.last()?);
        Some(self.sums.partition_point(|sum| *sum <= at) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(workload: Workload, requests: usize) -> Vec<u64> {
        workload.trace(requests, 7).keys().to_vec()
    }

    fn distinct(keys: &[u64]) -> usize {
        keys.iter().collect::<std::collections::HashSet<_>>().len()
    }

    const ALL: [Workload; 5] = [
        Workload::Zipf { keys: 100, exponent: 1.0 },
        Workload::Scan { reads: 3, spread: 10 },
        Workload::Loop { keys: 100 },
        Workload::ShiftingHotSet { keys: 1_000, hot: 10, hot_percent: 90, shift_every: 100 },
        Workload::Mixed { keys: 100, exponent: 1.0, scan_every: 50, scan_keys: 20 },
    ];

    #[test]
    fn a_seed_makes_the_same_requests_and_another_seed_makes_others() {
        for workload in ALL {
            let trace = workload.trace(1_000, 1);
            assert_eq!(trace.keys().len(), 1_000, "{workload:?}");
            assert_eq!(trace.keys(), workload.trace(1_000, 1).keys(), "{workload:?}");
            assert_ne!(trace.keys(), workload.trace(1_000, 2).keys(), "{workload:?}");
        }
    }

    #[test]
    fn the_first_ranks_of_a_zipf_distribution_have_their_share() {
        let keys = keys(Workload::Zipf { keys: 1_000, exponent: 1.0 }, 100_000);
        let mut counts: Vec<usize> = keys
            .iter()
            .fold(std::collections::HashMap::new(), |mut counts, key| {
                *counts.entry(*key).or_insert(0) += 1;
                counts
            })
            .into_values()
            .collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // The harmonic number of 1,000 is 7.485.
        for (rank, expected) in [(0, 13_360), (1, 6_680), (3, 3_340)] {
            let found = counts[rank] as f64;
            let expected = f64::from(expected);
            assert!((found - expected).abs() < expected * 0.05, "{rank}: {found}");
        }
    }

    #[test]
    fn an_exponent_of_zero_makes_all_keys_alike() {
        let keys = keys(Workload::Zipf { keys: 10, exponent: 0.0 }, 10_000);
        let first = keys.iter().filter(|key| **key == keys[0]).count();
        assert!((900..1_100).contains(&first), "{first}");
    }

    #[test]
    fn a_scan_reads_each_key_a_few_times_within_its_spread() {
        let keys = keys(Workload::Scan { reads: 3, spread: 10 }, 3_000);
        let middle = keys[1_500];
        let reads: Vec<usize> = (0..keys.len()).filter(|at| keys[*at] == middle).collect();
        assert_eq!(reads.len(), 3);
        assert!(reads[2] - reads[0] <= 3 * 10, "{reads:?}");
    }

    #[test]
    fn a_loop_comes_round() {
        let keys = keys(Workload::Loop { keys: 10 }, 35);
        assert_eq!(distinct(&keys), 10);
        assert_eq!(keys[3], keys[33]);
    }

    #[test]
    fn a_hot_set_is_exchanged() {
        let workload =
            Workload::ShiftingHotSet { keys: 10_000, hot: 10, hot_percent: 100, shift_every: 500 };
        let keys = keys(workload, 1_000);
        assert_eq!(distinct(&keys[..500]), 10);
        assert_eq!(distinct(&keys), 20);
    }

    #[test]
    fn the_scans_of_a_mixed_trace_are_all_new() {
        let workload = Workload::Mixed { keys: 5, exponent: 1.0, scan_every: 50, scan_keys: 20 };
        let keys = keys(workload, 140);
        assert_eq!(distinct(&keys), 5 + 2 * 20);
    }

    #[test]
    fn a_pattern_without_keys_makes_no_requests() {
        for workload in [
            Workload::Zipf { keys: 0, exponent: 1.0 },
            Workload::Scan { reads: 0, spread: 0 },
            Workload::Loop { keys: 0 },
            Workload::ShiftingHotSet { keys: 0, hot: 0, hot_percent: 50, shift_every: 0 },
        ] {
            assert_eq!(workload.trace(10, 1).keys(), &[] as &[u64], "{workload:?}");
        }
    }
}
