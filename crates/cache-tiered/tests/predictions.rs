//! What a cache says of other sizes of itself, beside caches of those sizes.

use std::hash::{BuildHasherDefault, DefaultHasher};

use cache_tiered::{Cache, Policy};

/// The same in each run, so that the same keys are sampled.
type Fixed = BuildHasherDefault<DefaultHasher>;

const ENTRIES: u64 = 1_000;
const KEYS: f64 = 30_000.0;
const REQUESTS: usize = 60_000;
/// How far off a prediction may be, as a share of the requests.
const OFF: f64 = 0.03;

fn cache(entries: u64, policy: Policy) -> Cache<u64, (), Fixed> {
    let builder = Cache::builder("predictions").hasher(Fixed::default());
    builder.entries(entries).policy(policy).miss_ratio_curve(true).build().unwrap()
}

/// Requests for that many keys, as skewed as a Zipf distribution of exponent one.
fn requests(seed: u64, keys: f64) -> Vec<u64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..REQUESTS).map(|_| keys.powf(rng.f64()) as u64).collect()
}

/// Reads the keys through, and tells the share of hits.
fn run(cache: &Cache<u64, (), Fixed>, keys: &[u64]) -> f64 {
    let mut hits = 0;
    for key in keys {
        match cache.get_in_memory(key) {
            Some(()) => hits += 1,
            None => cache.insert(*key, ()),
        }
    }
    f64::from(hits) / keys.len() as f64
}

#[test]
fn a_prediction_is_within_three_points_of_what_a_cache_of_that_size_reaches() {
    let keys = requests(1, KEYS);
    for policy in [Policy::Lru, Policy::S3Fifo, Policy::Adaptive] {
        let asked = cache(ENTRIES, policy);
        run(&asked, &keys);
        for capacity in [ENTRIES / 2, 3 * ENTRIES / 2, 2 * ENTRIES, 4 * ENTRIES] {
            let predicted = asked.hit_ratio_at(capacity).unwrap().hit_ratio;
            let reached = run(&cache(capacity, policy), &keys);
            assert!(
                (predicted - reached).abs() < OFF,
                "{policy}, {capacity}: {predicted} {reached}"
            );
        }
    }
}

#[test]
fn a_cache_that_is_resized_reaches_what_it_predicted() {
    // A prediction is of the requests so far. So that those to come are like them, there are few keys, and
    // hardly a request is the first of its key.
    const FEW: u64 = 300;
    let requests = |seed| requests(seed, 3_000.0);
    for policy in [Policy::Lru, Policy::S3Fifo, Policy::Adaptive] {
        for capacity in [FEW / 2, 3 * FEW] {
            let asked = cache(FEW, policy);
            let before = run(&asked, &[requests(2), requests(3)].concat());
            let predicted = asked.hit_ratio_at(capacity).unwrap().hit_ratio;
            asked.resize(capacity);
            // The first requests fill what is new.
            run(&asked, &requests(4)[..REQUESTS / 2]);
            let reached = run(&asked, &requests(5));
            assert!((reached - before).abs() > OFF, "{policy}, {capacity}: {before} {reached}");
            assert!(
                (predicted - reached).abs() < OFF,
                "{policy}, {capacity}: {predicted} {reached}"
            );
        }
    }
}
