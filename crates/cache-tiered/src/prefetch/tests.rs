//! Marks and counts against a model, and the bounds.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn prefetcher(options: Prefetch) -> Prefetcher<u64> {
    Prefetcher::new(options, None)
}

/// A hash that mixes, as those of the memory tier do.
fn hash(key: u64) -> u64 {
    let mut z = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 27)
}

#[test]
fn what_is_fetched_ahead_is_used_once_or_wasted_once() {
    let it = prefetcher(Prefetch::default());
    let begin = |key| it.begin(hash(key), key, |_| true);
    assert!(!it.watches() && (1..=6).all(begin) && it.watches());
    assert!(!begin(1), "it is on its way already");
    (1..=4).for_each(|key| it.landed(hash(key), true));
    it.landed(hash(5), false);
    assert!(it.hit(hash(1)) && !it.hit(hash(1)));
    it.displaced(hash(2));
    it.missed(hash(3));
    it.displaced(hash(6));
    it.missed(hash(6));
    assert!(!it.hit(hash(7)));
    let PrefetchStats { issued, used, wasted, outstanding, skipped, .. } = it.stats();
    assert_eq!((issued, used, wasted, outstanding, skipped), (6, 2, 3, 1, 1));
}

#[test]
fn what_has_left_memory_is_found_out_when_others_come() {
    let it = prefetcher(Prefetch::default());
    for key in 0..100 {
        assert!(it.begin(hash(key), key, |old| *old >= 50));
        it.landed(hash(key), true);
    }
    assert_eq!((it.stats().wasted, it.stats().outstanding), (50, 50));
    assert!((0..100).all(|key| it.hit(hash(key)) == (key >= 50)));
}

#[test]
fn the_oldest_give_way_when_there_are_too_many() {
    let it = prefetcher(Prefetch::default());
    for key in 0..10_000 {
        it.begin(hash(key), key, |_| true);
        it.landed(hash(key), true);
    }
    let stats = it.stats();
    assert!(stats.outstanding <= OUTSTANDING_MAX as u64 && stats.outstanding > 900, "{stats:?}");
    assert_eq!(it.queue.lock().len(), OUTSTANDING_MAX);
    assert_eq!(stats.issued, stats.wasted + stats.outstanding);
    assert!(stats.skipped < 500, "{stats:?}");
}

#[test]
fn what_a_user_knows_is_bounded_and_comes_beside_what_was_learned() {
    let endless = related(|key: &u64| (*key * 100)..);
    let it = Prefetcher::new(Prefetch::default(), Some(endless.clone()));
    assert_eq!(it.expected_after(hash(3), &3), (300..316).collect::<Vec<_>>());
    let told = Prefetcher::new(Prefetch::default().successions(0), Some(endless));
    let learned = prefetcher(Prefetch::default());
    for _ in 0..3 {
        (1..=5).for_each(|key| drop(told.expected_after(hash(key), &key)));
        (1..=5).for_each(|key| drop(learned.expected_after(hash(key), &key)));
    }
    assert_eq!(told.expected_after(hash(1), &1).len(), RELATED_MAX);
    assert_eq!(learned.expected_after(hash(1), &1), [2, 3]);
}

#[test]
fn options_out_of_bounds_are_told_together() {
    let wrong = Prefetch::default().successions(1 << 25).in_flight(0).problems();
    let paths: Vec<_> = wrong.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["prefetch.successions", "prefetch.in_flight"]);
    assert!(Prefetch::default().problems().is_empty());
}

#[test]
fn of_threads_that_meet_every_fetch_is_decided_once() {
    const THREADS: u64 = 4;
    let it = prefetcher(Prefetch::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let it = &it;
            scope.spawn(move || {
                // A key has one fetch at a time; hits and writes come from everywhere.
                let mut rng = fastrand::Rng::with_seed(thread);
                for _ in 0..5_000 {
                    let own = rng.u64(..50) * THREADS + thread;
                    if it.begin(hash(own), own, |_| true) {
                        it.landed(hash(own), !own.is_multiple_of(7));
                    }
                    let any = rng.u64(..50 * THREADS);
                    match any % 3 {
                        0 => _ = it.hit(hash(any)),
                        1 => _ = it.missed(hash(any)),
                        _ => it.displaced(hash(any)),
                    }
                }
            });
        }
    });
    let stats = it.stats();
    assert_eq!(stats.issued, stats.used + stats.wasted + stats.outstanding, "{stats:?}");
    (0..50 * THREADS).for_each(|key| _ = it.hit(hash(key)));
    assert!(!it.watches());
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Begin(u64),
    Land(u64, bool),
    Hit(u64),
    Miss(u64),
    Displace(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..5, 0..30_u64, any::<bool>()).prop_map(|(what, key, kept)| match what {
        0 => Step::Begin(key),
        1 => Step::Land(key, kept),
        2 => Step::Hit(key),
        3 => Step::Miss(key),
        _ => Step::Displace(key),
    });
    prop::collection::vec(step, 0..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn marks_and_counts_are_those_of_a_map(steps in steps()) {
        let it = prefetcher(Prefetch::default());
        let mut marks: HashMap<u64, Mark> = HashMap::new();
        let (mut issued, mut used, mut wasted) = (0, 0, 0);
        for step in steps {
            match step {
                Step::Begin(key) => {
                    let begun = it.begin(hash(key), key, |_| true);
                    // All slots taken by others: the model has no such thing.
                    prop_assert!(begun != marks.contains_key(&key) || !begun);
                    if begun {
                        marks.insert(key, Mark::Coming);
                        issued += 1;
                    }
                }
                Step::Land(key, true) => {
                    it.landed(hash(key), true);
                    marks.entry(key).and_modify(|mark| *mark = Mark::There);
                }
                Step::Land(key, false) => {
                    it.landed(hash(key), false);
                    wasted += u64::from(marks.remove(&key).is_some());
                }
                Step::Hit(key) => {
                    let first = marks.remove(&key).is_some();
                    prop_assert_eq!(it.hit(hash(key)), first);
                    used += u64::from(first);
                }
                Step::Miss(key) => {
                    it.missed(hash(key));
                    match marks.remove(&key) {
                        Some(Mark::Coming) => used += 1,
                        Some(Mark::There) => wasted += 1,
                        None => {}
                    }
                }
                Step::Displace(key) => {
                    it.displaced(hash(key));
                    if marks.get(&key) == Some(&Mark::There) {
                        marks.remove(&key);
                        wasted += 1;
                    }
                }
            }
            let stats = it.stats();
            prop_assert_eq!((stats.issued, stats.used, stats.wasted), (issued, used, wasted));
            prop_assert_eq!(stats.outstanding as usize, marks.len());
        }
    }
}
