//! A mini cache against a naive clock, its index against its entries, and what each policy is good at.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// CLOCK as a list of ids with marks, the oldest first.
struct NaiveClock {
    capacity: u64,
    entries: VecDeque<(u64, u32, u8)>,
}

impl NaiveClock {
    fn request(&mut self, id: u64, weight: u32) -> bool {
        if let Some((_, _, mark)) = self.entries.iter_mut().find(|(other, ..)| *other == id) {
            *mark = 1;
            return true;
        }
        if u64::from(weight) > self.capacity {
            return false;
        }
        while self.entries.iter().map(|&(_, weight, _)| u64::from(weight)).sum::<u64>()
            + u64::from(weight)
            > self.capacity
        {
            let (id, weight, mark) = self.entries.pop_front().expect("it weighs something");
            if mark != 0 {
                self.entries.push_back((id, weight, 0));
            }
        }
        self.entries.push_back((id, weight, 0));
        false
    }
}

fn spread(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

fn hit_ratio(kind: Kind, capacity: u64, requests: impl Iterator<Item = u64>) -> f64 {
    let mut mini = MiniCache::bounded(kind, capacity, 16_384);
    let (mut hits, mut count) = (0_u32, 0_u32);
    for number in requests {
        hits += u32::from(mini.request(spread(number), 1));
        count += 1;
    }
    f64::from(hits) / f64::from(count)
}

proptest! {
    #[test]
    fn an_lru_hits_and_misses_as_a_naive_clock_does(
        capacity in 0_u64..30,
        requests in prop::collection::vec((0_u64..40, 1_u32..4), 0..400),
    ) {
        let mut mini = MiniCache::bounded(Kind::Lru, capacity, 100);
        let mut naive = NaiveClock { capacity, entries: VecDeque::new() };
        for (id, weight) in requests {
            prop_assert_eq!(mini.request(spread(id), weight), naive.request(spread(id), weight));
            prop_assert_eq!(mini.len(), naive.entries.len());
        }
    }

    #[test]
    fn what_is_resident_is_found_and_nothing_else(
        requests in prop::collection::vec((0_u64..300, 1_u32..50, 0_usize..200), 0..600),
    ) {
        let mut mini = MiniCache::bounded(Kind::S3Fifo, 1_000, 64);
        for (id, weight, change) in requests {
            match change {
                0..6 => mini.switch(Kind::ALL[change]),
                6..10 => mini.resize(change as u64 * 150),
                _ => {
                    let id = spread(id);
                    let resident = mini.find(id).is_some();
                    prop_assert_eq!(mini.request(id, weight), resident);
                    prop_assert!(
                        mini.find(id).is_some() || u64::from(weight) > mini.queues.capacity()
                    );
                }
            }
            prop_assert!(mini.queues.weight() <= mini.queues.capacity());
            prop_assert!(mini.len() <= 64);
            let indexed = mini.index.iter().filter(|&&node| node != NIL).count();
            prop_assert_eq!(indexed, mini.len());
        }
    }
}

#[test]
fn a_mini_of_no_capacity_never_hits() {
    for kind in Kind::ALL {
        assert_eq!(hit_ratio(kind, 0, [1, 1, 1].into_iter()), 0.0, "{kind:?}");
    }
}

#[test]
fn a_mini_of_one_entry_hits_a_key_asked_for_twice() {
    for kind in Kind::ALL {
        assert_eq!(hit_ratio(kind, 1, [1, 1, 2, 2].into_iter()), 0.5, "{kind:?}");
    }
}

#[test]
fn everything_that_fits_is_kept() {
    for kind in Kind::ALL {
        let ratio = hit_ratio(kind, 100, (0..1_000).map(|n| n % 100));
        assert_eq!(ratio, 0.9, "{kind:?}");
    }
}

#[test]
fn a_loop_longer_than_the_cache_defeats_lru_and_not_lfu() {
    let around = || (0..40_000).map(|n| n % 400);
    assert_eq!(hit_ratio(Kind::Lru, 200, around()), 0.0);
    for (kind, least) in [(Kind::Lfu, 0.4), (Kind::LfuNarrow, 0.4), (Kind::LfuWide, 0.25)] {
        let ratio = hit_ratio(kind, 200, around());
        assert!(ratio > least, "{kind:?}: {ratio}");
    }
}

/// Keys asked for three times within a short while and never again.
#[test]
fn pure_recency_suits_all_but_the_narrow_window() {
    let recent = || (0..30_000).map(|n| n / 150 * 50 + n % 50);
    for kind in Kind::ALL {
        let ratio = hit_ratio(kind, 1_000, recent());
        if kind == Kind::LfuNarrow {
            assert!(ratio < 0.6, "{kind:?}: {ratio}");
        } else {
            assert!(ratio > 0.66, "{kind:?}: {ratio}");
        }
    }
}

/// A hot set that fits, asked for between the keys of an endless scan.
#[test]
fn a_scan_leaves_the_hot_set_to_all_but_lru() {
    let scanned = || (0..60_000_u64).map(|n| if n % 4 == 0 { spread(n) % 80 } else { 1_000 + n });
    for kind in Kind::ALL {
        let ratio = hit_ratio(kind, 100, scanned());
        if kind == Kind::Lru {
            assert!(ratio < 0.2, "{kind:?}: {ratio}");
        } else {
            assert!(ratio > 0.2, "{kind:?}: {ratio}");
        }
    }
}
