//! The textbook policies against naive models, known sequences and the optimum.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::simulate::{Future, Trace, Workload, run};

/// Asks for `keys`, letters with spaces, and tells which were hits, as `x`, and misses, as `.`.
fn hits(policy: Textbook, capacity: u64, keys: &str) -> String {
    let mut cache = policy.cache(Capacity::entries(capacity));
    let letters = keys.split(' ').map(|key| u64::from(key.as_bytes()[0]));
    letters.map(|key| if cache.request(key, 1) { 'x' } else { '.' }).collect()
}

fn check(policy: Textbook, capacity: u64, keys: &str, expected: &str) {
    assert_eq!(hits(policy, capacity, keys), expected, "{policy} of {capacity}: {keys}");
}

#[test]
fn lru_evicts_the_key_untouched_longest() {
    check(Textbook::Lru, 2, "a b a c a b", "..x.x.");
}

#[test]
fn lfu_evicts_the_key_used_least_and_of_equals_the_one_used_longest_ago() {
    check(Textbook::Lfu, 2, "a a b c b a", ".x...x");
    check(Textbook::Lfu, 2, "a b a b c b a", "..xx.x.");
}

#[test]
fn lfu_keeps_what_was_popular_once() {
    check(Textbook::Lfu, 2, "a a a b c d e f g b c a", ".xx........x");
}

#[test]
fn sieve_spares_the_visited_and_its_hand_goes_on() {
    // `a` is spared once; the hand then stands before `c`, and `d` pushes that out.
    check(Textbook::Sieve, 3, "a b c a d b a", "...x..x");
    check(Textbook::Sieve, 3, "a b c a d e a d", "...x..xx");
}

#[test]
fn arc_keeps_what_came_twice_through_a_scan() {
    check(Textbook::Arc, 4, "a b a b c d e f g h a b", "..xx......xx");
    check(Textbook::Lru, 4, "a b a b c d e f g h a b", "..xx........");
}

#[test]
fn arc_takes_a_ghost_back_as_frequent() {
    // `c` comes back out of B1, as a miss, and survives the scan after it.
    check(Textbook::Arc, 3, "a b a c d e c f g h c", "..x.......x");
    check(Textbook::Lru, 3, "a b a c d e c f g h c", "..x...x....");
}

#[test]
fn s3_fifo_lets_a_ghost_into_the_main_queue() {
    // `a` leaves the small queue unused, comes back while it is a ghost, and stays through a scan.
    check(Textbook::S3Fifo, 10, "a b c d e f g h i j k a l m n o p q r s t u v a", {
        ".......................x"
    });
}

#[test]
fn w_tinylfu_holds_a_loop_that_lru_cannot() {
    let trace = Workload::Loop { keys: 150 }.trace(15_000, 1);
    let share =
        |policy: Textbook| run(&trace, &mut *policy.cache(Capacity::entries(100))).hit_ratio();
    assert_eq!(share(Textbook::Lru), 0.0);
    assert!(share(Textbook::WTinyLfu) > 0.5, "{}", share(Textbook::WTinyLfu));
}

#[test]
fn what_is_heavier_than_the_cache_is_a_miss_and_pushes_nothing_out() {
    for policy in Textbook::ALL {
        let mut cache = policy.cache(Capacity::weight(100, 100));
        assert!(!cache.request(1, 1), "{policy}");
        assert!(!cache.request(2, 101) && !cache.request(2, 101), "{policy}");
        assert!(cache.request(1, 1), "{policy}");
    }
}

#[test]
fn a_cache_without_room_never_hits() {
    for policy in Textbook::ALL {
        let mut cache = policy.cache(Capacity::entries(0));
        assert!((0..10).all(|_| !cache.request(1, 1)), "{policy}");
    }
}

#[test]
fn names_are_unique() {
    let names: HashSet<_> = Textbook::ALL.into_iter().map(Textbook::as_str).collect();
    assert_eq!(names.len(), Textbook::ALL.len());
}

/// A policy as a list that is searched from end to end.
trait Naive {
    fn hit(&mut self, at: usize);
    fn residents(&mut self) -> &mut Vec<(u64, u32)>;
    fn victim(&mut self) -> usize;
    fn enter(&mut self, key: u64, weight: u32);

    fn ask(&mut self, capacity: u64, key: u64, weight: u32) -> bool {
        if let Some(at) = self.residents().iter().position(|(resident, _)| *resident == key) {
            self.hit(at);
            return true;
        }
        if u64::from(weight) > capacity {
            return false;
        }
        let total = |residents: &[(u64, u32)]| -> u64 {
            residents.iter().map(|(_, weight)| u64::from(*weight)).sum()
        };
        while total(self.residents()) + u64::from(weight) > capacity {
            let victim = self.victim();
            self.residents().remove(victim);
        }
        self.enter(key, weight);
        false
    }
}

/// Oldest first.
#[derive(Default)]
struct NaiveLru(Vec<(u64, u32)>);

impl Naive for NaiveLru {
    fn hit(&mut self, at: usize) {
        let entry = self.0.remove(at);
        self.0.push(entry);
    }

    fn residents(&mut self) -> &mut Vec<(u64, u32)> {
        &mut self.0
    }

    fn victim(&mut self) -> usize {
        0
    }

    fn enter(&mut self, key: u64, weight: u32) {
        self.0.push((key, weight));
    }
}

/// With the count and the time of the last use of each resident.
#[derive(Default)]
struct NaiveLfu {
    entries: Vec<(u64, u32)>,
    uses: std::collections::HashMap<u64, (u64, u64)>,
    now: u64,
}

impl Naive for NaiveLfu {
    fn hit(&mut self, at: usize) {
        self.now += 1;
        let uses = self.uses.get_mut(&self.entries[at].0).unwrap();
        *uses = (uses.0 + 1, self.now);
    }

    fn residents(&mut self) -> &mut Vec<(u64, u32)> {
        &mut self.entries
    }

    fn victim(&mut self) -> usize {
        let least = self.entries.iter().enumerate().min_by_key(|(_, entry)| self.uses[&entry.0]);
        least.unwrap().0
    }

    fn enter(&mut self, key: u64, weight: u32) {
        self.now += 1;
        self.entries.push((key, weight));
        self.uses.insert(key, (1, self.now));
    }
}

/// Oldest first; the hand is the key that is looked at next.
#[derive(Default)]
struct NaiveSieve {
    entries: Vec<(u64, u32)>,
    visited: HashSet<u64>,
    hand: Option<u64>,
}

impl Naive for NaiveSieve {
    fn hit(&mut self, at: usize) {
        self.visited.insert(self.entries[at].0);
    }

    fn residents(&mut self) -> &mut Vec<(u64, u32)> {
        &mut self.entries
    }

    fn victim(&mut self) -> usize {
        let hand = self.hand.and_then(|hand| self.entries.iter().position(|(key, _)| *key == hand));
        let mut at = hand.unwrap_or(0);
        while self.visited.remove(&self.entries[at].0) {
            at = (at + 1) % self.entries.len();
        }
        self.hand = self.entries.get(at + 1).map(|(key, _)| *key);
        at
    }

    fn enter(&mut self, key: u64, weight: u32) {
        self.entries.push((key, weight));
    }
}

fn agree(
    policy: Textbook,
    capacity: u64,
    mut naive: impl Naive,
    requests: &[(u64, u32)],
) -> Result<(), TestCaseError> {
    let mut cache = policy.cache(Capacity::weight(capacity, capacity));
    let mut weights = std::collections::HashMap::new();
    for (at, (key, weight)) in requests.iter().enumerate() {
        let weight = *weights.entry(*key).or_insert(*weight);
        let expected = naive.ask(capacity, *key, weight);
        prop_assert_eq!(cache.request(*key, weight), expected, "request {} of {}", at, policy);
    }
    Ok(())
}

proptest! {
    #[test]
    fn lru_lfu_and_sieve_are_their_naive_models(
        capacity in 1_u64..20,
        requests in prop::collection::vec((0_u64..30, 1_u32..5), 0..300),
    ) {
        agree(Textbook::Lru, capacity, NaiveLru::default(), &requests)?;
        agree(Textbook::Lfu, capacity, NaiveLfu::default(), &requests)?;
        agree(Textbook::Sieve, capacity, NaiveSieve::default(), &requests)?;
    }

    /// Whoever held more than the capacity would pass the optimum.
    #[test]
    fn no_policy_passes_the_optimum(
        capacity in 0_u64..20,
        keys in prop::collection::vec(0_u64..40, 0..400),
    ) {
        let trace = Trace::new("t", keys);
        let optimum = Future::of(&trace).optimum(capacity, &mut |_| ());
        for policy in Textbook::ALL {
            let outcome = run(&trace, &mut *policy.cache(Capacity::entries(capacity)));
            prop_assert!(outcome.hits <= optimum.hits, "{} {:?} {:?}", policy, outcome, optimum);
        }
    }

    /// A cache for which everything fits, whatever it weighs, misses each key once.
    #[test]
    fn what_fits_stays(requests in prop::collection::vec((0_u64..20, 0_u32..100), 0..200)) {
        let weight: u64 = requests.iter().map(|(_, weight)| u64::from(*weight) + 1).sum();
        let distinct = requests.iter().map(|(key, _)| key).collect::<HashSet<_>>().len();
        for policy in Textbook::ALL {
            let mut cache = policy.cache(Capacity::weight(weight.max(1), 20));
            let misses = requests.iter().filter(|(key, weight)| !cache.request(*key, *weight)).count();
            prop_assert_eq!(misses, distinct, "{}", policy);
        }
    }
}
