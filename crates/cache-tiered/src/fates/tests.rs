//! What became of watched keys, against what a naive model remembers.

use std::collections::HashMap;

use super::*;

const TTL: Millis = 10_000;

/// What the table knows, without bounds and without packing.
#[derive(Default)]
struct Model {
    evictions: u64,
    left: HashMap<u32, (bool, u64)>,
    reloading: HashMap<u32, bool>,
    contents: HashMap<u32, u64>,
    in_vain: HashMap<u32, (Outcome, u64)>,
    stats: AdviceStats,
}

impl Model {
    fn left(&mut self, hash: u32, departure: Departure) {
        match departure {
            Departure::Evicted => {
                self.left.insert(hash, (true, self.evictions));
                self.evictions += 1;
            }
            Departure::Expired(at) => {
                self.left.insert(hash, (false, at));
            }
            Departure::Other => {
                self.left.remove(&hash);
                self.reloading.remove(&hash);
            }
        }
    }

    fn missed(&mut self, hash: u32, now: u64, window: u64) {
        self.stats.misses += 1;
        self.reloading.remove(&hash);
        match self.left.remove(&hash) {
            Some((true, at)) if self.evictions - at <= window => self.stats.misses_evicted += 1,
            Some((false, at)) if now - at < TTL => {
                self.stats.misses_expired += 1;
                self.reloading.insert(hash, true);
            }
            _ => {}
        }
    }

    fn written(&mut self, hash: u32, content: u64) {
        let reloading = self.reloading.remove(&hash).is_some();
        if let Some(before) = self.contents.insert(hash, content) {
            let same = u64::from(before == content);
            self.stats.rewrites += 1;
            self.stats.rewrites_same += same;
            self.stats.reloads += u64::from(reloading);
            self.stats.reloads_same += u64::from(reloading) * same;
        }
    }

    fn loaded(&mut self, hash: u32, outcome: Outcome, now: u64) {
        self.stats.loads += 1;
        let before = self.in_vain.remove(&hash);
        if outcome == Outcome::Found {
            return;
        }
        let again = before.is_some_and(|(what, at)| what == outcome && now - at < IN_VAIN);
        self.in_vain.insert(hash, (outcome, now));
        let stats = &mut self.stats;
        let (all, repeated) = match outcome {
            Outcome::Absent => (&mut stats.loads_absent, &mut stats.loads_absent_again),
            _ => (&mut stats.loads_failed, &mut stats.loads_failed_again),
        };
        *all += 1;
        *repeated += u64::from(again);
    }
}

/// Hashes that are watched, as many as asked for.
fn watched(fates: &Fates, keys: usize) -> Vec<u32> {
    (0_u32..)
        .map(|at| at.wrapping_mul(0x85EB_CA6B))
        .filter(|it| fates.watches(*it))
        .take(keys)
        .collect()
}

#[test]
fn what_is_counted_is_what_a_model_without_bounds_counts() {
    // The window is of 16 watched keys.
    let fates = Fates::new(16 * ONE_OF);
    fates.set_ttl(TTL);
    let keys = watched(&fates, 24);
    let mut model = Model::default();
    let mut rng = fastrand::Rng::with_seed(7);
    // Whole ticks, so that the packed times are exact.
    let mut now = 1_000_000 * TICK;
    for _ in 0..200_000 {
        now += TICK * rng.u64(0..20);
        let key = *rng.choice(&keys).expect("there are keys");
        match rng.u8(0..6) {
            0 => {
                let choices = [Departure::Evicted, Departure::Expired(now), Departure::Other];
                let departure = *rng.choice(choices.iter()).expect("there are three");
                fates.left(key, departure);
                model.left(key, departure);
            }
            1 | 2 => {
                fates.missed(key, None, now);
                model.missed(key, now, 16);
            }
            3 => {
                let content = rng.u64(0..3);
                fates.written(key, content);
                model.written(key, content);
            }
            _ => {
                let choices = [Outcome::Found, Outcome::Absent, Outcome::Failed];
                let outcome = *rng.choice(choices.iter()).expect("there are three");
                fates.loaded(key, outcome, now);
                model.loaded(key, outcome, now);
            }
        }
    }
    let counted = fates.stats();
    assert_eq!(counted, AdviceStats { one_of: ONE_OF, ..model.stats });
    let AdviceStats { misses_evicted, misses_expired, reloads, reloads_same, .. } = counted;
    let AdviceStats { loads_absent_again, loads_failed_again, .. } = counted;
    let all = [misses_evicted, misses_expired, reloads, loads_absent_again, loads_failed_again];
    assert!(!all.contains(&0) && reloads_same < reloads, "{counted:?}");
}

#[test]
fn an_entry_that_is_found_past_its_time_is_an_expiry_without_a_record() {
    let fates = Fates::new(1_000);
    fates.set_ttl(TTL);
    let key = watched(&fates, 1)[0];
    fates.missed(key, Some(100 * TTL), 101 * TTL - 1);
    fates.missed(key, Some(100 * TTL), 101 * TTL);
    let counted = fates.stats();
    assert_eq!((counted.misses, counted.misses_expired), (2, 1));
}

#[test]
fn one_key_of_so_many_is_watched() {
    for entries in [1, 100, 10_000, 1_000_000] {
        let fates = Fates::new(entries);
        let one_of = fates.stats().one_of;
        let mut rng = fastrand::Rng::with_seed(3);
        let draws = 1_000_000;
        let watched = (0..draws).filter(|_| fates.watches(rng.u32(..))).count();
        let expected = draws as f64 / one_of as f64;
        assert!((watched as f64 - expected).abs() < 6.0 * expected.sqrt(), "{entries}: {watched}");
        assert!(entries / one_of <= WATCHED && one_of >= ONE_OF, "{entries}: {one_of}");
    }
}

#[test]
fn the_records_have_a_bound_and_are_made_when_they_are_needed() {
    for entries in [1, 100_000, 1_000_000] {
        let fates = Fates::new(entries);
        assert_eq!(fates.bytes(), 0);
        for key in watched(&fates, 3_000) {
            fates.left(key, Departure::Evicted);
            fates.loaded(key, Outcome::Failed, 0);
        }
        assert!((1..=32 << 10).contains(&fates.bytes()), "{}", fates.bytes());
    }
}

#[test]
fn another_size_that_watches_the_same_keys_forgets_nothing() {
    let fates = Fates::new(1_000);
    let key = watched(&fates, 1)[0];
    fates.left(key, Departure::Evicted);
    fates.resize(1_100);
    fates.missed(key, None, 0);
    assert_eq!(fates.stats().misses_evicted, 1);
    fates.left(key, Departure::Evicted);
    fates.resize(1_000_000);
    fates.missed(key, None, 0);
    assert_eq!(fates.stats().misses_evicted, 1);
}
