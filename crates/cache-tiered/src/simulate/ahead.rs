//! What fetching ahead would have brought.
//!
//! The real cache and the real prefetcher, without a loader: what is predicted comes into the cache
//! some requests later, at once if that is 0. A request for a key that is still on its way is a miss
//! that joins its load: it makes no load of its own and, in life, waits for the rest of that one.

use std::collections::VecDeque;

use super::mix::{BuildMix, mix};
use super::{Capacity, Simulated};
use crate::prefetch::Prefetcher;
use crate::{Cache, Policy, Prefetch, PrefetchStats};

/// A cache that fetches ahead, as a simulation drives it; it counts entries, not weights.
pub struct Ahead {
    cache: Cache<u64, u32, BuildMix>,
    prefetcher: Prefetcher<u64>,
    lag: u64,
    requests: u64,
    joined: u64,
    coming: VecDeque<(u64, u64)>,
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ahead").field("prefetcher", &self.prefetcher).finish_non_exhaustive()
    }
}

impl Ahead {
    /// Makes an empty cache; a fetch takes as long as `lag` requests.
    ///
    /// # Panics
    ///
    /// When the capacity is 0.
    #[must_use]
    pub fn new(policy: Policy, capacity: Capacity, prefetch: Prefetch, lag: u64) -> Self {
        let builder = Cache::builder("simulation").policy(policy).hasher(BuildMix);
        let cache = builder.entries(capacity.expected_entries()).build();
        Self {
            cache: cache.expect("the name and the bound are good, and threads can be made"),
            prefetcher: Prefetcher::new(prefetch, None),
            lag,
            requests: 0,
            joined: 0,
            coming: VecDeque::new(),
        }
    }

    /// What fetching ahead has done until now.
    #[must_use]
    pub fn stats(&self) -> PrefetchStats {
        self.prefetcher.stats()
    }

    /// Misses whose value was on its way already.
    #[must_use]
    pub fn joined(&self) -> u64 {
        self.joined
    }

    fn land(&mut self) {
        while let Some((_, key)) = self.coming.pop_front_if(|(due, _)| *due <= self.requests) {
            // Somebody may have missed it meanwhile, and have loaded it.
            if !self.holds(key) {
                self.cache.insert(key, 1);
            }
            self.prefetcher.landed(mix(key), true);
        }
    }

    fn holds(&self, key: u64) -> bool {
        self.cache.inner().memory.contains(&key)
    }
}

impl Simulated for Ahead {
    fn request(&mut self, key: u64, weight: u32) -> bool {
        self.requests += 1;
        self.land();
        let hash = mix(key);
        let hit = self.cache.get_in_memory(&key).is_some();
        if hit && !(self.prefetcher.watches() && self.prefetcher.hit(hash)) {
            return true;
        }
        if !hit {
            self.joined += u64::from(self.prefetcher.missed(hash));
            self.cache.insert(key, weight);
        }
        for expected in self.prefetcher.expected_after(hash, &key) {
            let holds = |key: &u64| self.holds(*key);
            if !self.holds(expected) && self.prefetcher.begin(mix(expected), expected, holds) {
                self.coming.push_back((self.requests + self.lag, expected));
            }
        }
        self.land();
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Workload, run};

    fn ahead(lag: u64) -> Ahead {
        Ahead::new(Policy::Lru, Capacity::entries(100), Prefetch::default(), lag)
    }

    #[test]
    fn a_loop_that_does_not_fit_is_hit_once_it_was_learned() {
        let trace = Workload::Loop { keys: 1_000 }.trace(20_000, 1);
        let mut soon = ahead(0);
        let hits = run(&trace, &mut soon).hits;
        assert!(hits > 15_000, "{hits}");
        let PrefetchStats { issued, used, .. } = soon.stats();
        assert!(used * 10 > issued * 9, "{used} of {issued}");
        let mut late = ahead(10);
        let hits = run(&trace, &mut late).hits;
        assert!(hits < 2_000 && late.joined() > 15_000, "what comes too late is a shorter wait");
    }

    #[test]
    fn what_cannot_be_predicted_costs_few_loads() {
        let trace = Workload::Zipf { keys: 100_000, exponent: 0.5 }.trace(60_000, 1);
        let mut cache = ahead(0);
        run(&trace, &mut cache);
        let issued = cache.stats().issued;
        assert!(issued < 1_000, "{issued} loads for 60,000 requests");
    }
}
