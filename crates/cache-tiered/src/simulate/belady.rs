//! The most hits that any policy could have: Belady's MIN with bypass, which knows the future.
//!
//! Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 1966:
//! evict what is asked for again last. With bypass, a newcomer that is asked for again later than every
//! resident is not let in, as a cache may do that is not the memory of a machine. It is exact for entries
//! of one size; with sizes the problem is NP-hard (Chrobak, Woeginger, Makino and Xu, 2012), so there it
//! counts entries.
//!
//! A resident is named by the position of its next request. Then a request is a hit if its own position
//! is resident, and the victim is the highest resident position: one bit for each request and a heap of
//! positions. What the heap holds is resident or has been served; served positions are the lowest, so
//! none of them is ever the highest while something is resident.

use std::collections::BinaryHeap;

use hashbrown::HashMap;

use super::mix::BuildMix;
use super::{Outcome, Trace};

/// No further request.
const NEVER: u32 = u32::MAX;

/// When each request's key is asked for again.
///
/// One of it serves every capacity.
#[derive(Debug, Clone)]
pub struct Future {
    next: Vec<u32>,
}

impl Future {
    /// Reads the future of a trace.
    ///
    /// # Cost
    ///
    /// One pass; 4 bytes for a request, and meanwhile about 20 for a key.
    #[must_use]
    pub fn of(trace: &Trace) -> Self {
        let keys = trace.keys();
        let mut next = vec![NEVER; keys.len()];
        let mut last: HashMap<u64, u32, BuildMix> = HashMap::default();
        for (position, key) in keys.iter().enumerate() {
            let position = u32::try_from(position).expect("a trace has a limit below that");
            if let Some(before) = last.insert(*key, position) {
                next[before as usize] = position;
            }
        }
        Self { next }
    }

    /// Counts the hits of the best possible cache of this many entries; `progress` hears of requests
    /// done since it was last called.
    #[must_use]
    pub fn optimum(&self, entries: u64, progress: &mut dyn FnMut(u64)) -> Outcome {
        let mut resident = vec![0_u64; self.next.len().div_ceil(64)];
        let mut heap = BinaryHeap::new();
        let (mut hits, mut occupied, mut told) = (0, 0, 0);
        for (position, &next) in self.next.iter().enumerate() {
            if position - told == super::STRIDE {
                progress(super::STRIDE as u64);
                told = position;
            }
            if resident[position / 64] >> (position % 64) & 1 == 1 {
                hits += 1;
                occupied -= 1;
            }
            if next == NEVER {
                continue;
            }
            if occupied >= entries {
                match heap.peek() {
                    Some(&farthest) if farthest > next => {
                        heap.pop();
                        let farthest = farthest as usize;
                        resident[farthest / 64] &= !(1 << (farthest % 64));
                        occupied -= 1;
                    }
                    _ => continue,
                }
            }
            heap.push(next);
            resident[next as usize / 64] |= 1 << (next % 64);
            occupied += 1;
        }
        progress((self.next.len() - told) as u64);
        let requests = self.next.len() as u64;
        Outcome { requests, hits, weight: requests, hit_weight: hits }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn optimum(entries: u64, keys: &[u64]) -> u64 {
        Future::of(&Trace::new("t", keys.to_vec())).optimum(entries, &mut |_| ()).hits
    }

    /// Tries every choice: the most hits for each set of residents, a bit for each key.
    fn exhaustive(entries: u32, keys: &[u64]) -> u64 {
        let mut best = HashMap::from([(0_u64, 0_u64)]);
        for key in keys {
            let mut after = HashMap::new();
            for (residents, hits) in best {
                let mut reach = |residents: u64, hits: u64| {
                    let known = after.entry(residents).or_default();
                    *known = hits.max(*known);
                };
                let bit = 1 << key;
                if residents & bit != 0 {
                    reach(residents, hits + 1);
                    continue;
                }
                reach(residents, hits);
                if residents.count_ones() < entries {
                    reach(residents | bit, hits);
                }
                for victim in (0..64).filter(|victim| entries > 0 && residents >> victim & 1 == 1) {
                    reach(residents & !(1 << victim) | bit, hits);
                }
            }
            best = after;
        }
        best.into_values().max().unwrap_or(0)
    }

    #[test]
    fn a_newcomer_that_comes_back_last_is_not_let_in() {
        // Without bypass `c` would have to push `a` or `b` out.
        assert_eq!(optimum(2, &[1, 2, 3, 1, 2, 3]), 2);
        assert_eq!(optimum(1, &[1, 2, 1, 3, 1]), 2);
    }

    #[test]
    fn a_loop_is_hit_as_far_as_it_fits() {
        let keys: Vec<u64> = (0..1_000).map(|at| at % 10).collect();
        assert_eq!(optimum(4, &keys), 99 * 4);
        assert_eq!(optimum(10, &keys), 990);
        assert_eq!(optimum(0, &keys), 0);
    }

    #[test]
    fn progress_adds_up_to_the_requests() {
        let keys: Vec<u64> = (0..200_000).map(|at| at % 7).collect();
        let mut done = 0;
        let outcome = Future::of(&Trace::new("t", keys)).optimum(7, &mut |more| done += more);
        assert_eq!((done, outcome.requests, outcome.hits), (200_000, 200_000, 199_993));
    }

    proptest! {
        #[test]
        fn no_choice_has_more_hits(
            entries in 0_u32..4,
            keys in prop::collection::vec(0_u64..7, 0..40),
        ) {
            prop_assert_eq!(optimum(u64::from(entries), &keys), exhaustive(entries, &keys));
        }
    }
}
