//! The claims about memory: operations per second, and hit ratios.

use std::convert::Infallible;
use std::hint::black_box;

use cache_tiered::Cache;
use fastrand::Rng;
use tokio::runtime::Runtime;
use ultra_perf_bench::{Clock, Suite};

/// Operations of a round.
const OPERATIONS: u64 = 200_000;
/// Entries that the claims speak of.
const ITEMS: u64 = 1_000;
/// Bytes of a value.
const VALUE_BYTES: usize = 256;

/// Measures the claims about the memory tier.
pub(crate) fn measure(suite: &mut Suite) {
    operations(suite);
    hit_ratios(suite);
}

fn operations(suite: &mut Suite) {
    let runtime = Runtime::new().expect("threads can be started");
    // With room for twice the items no shard is too full for its share.
    let cache = cache(2 * ITEMS);
    let key = |i: u64| format!("item:{}", i % ITEMS);
    let value = vec![b'x'; VALUE_BYTES];
    let set_all = || (0..OPERATIONS).for_each(|i| cache.insert(key(i), value.clone()));
    set_all();
    let keys: Vec<String> = (0..ITEMS).map(key).collect();

    let case = "\"61,286 sets/s\": 1,000 items of 256 B in memory, one thread";
    suite.rate(case, Clock::Wall, OPERATIONS).at_least(61_286.0).measure(set_all);

    let get = async |i: u64| {
        let found = cache.get(&keys[(i % ITEMS) as usize]).await;
        black_box(found.expect("was inserted and fits"))
    };
    let case = "\"248,964 gets/s\": 1,000 items of 256 B in memory, one thread";
    suite.rate(case, Clock::Wall, OPERATIONS).at_least(248_964.0).measure(|| {
        runtime.block_on(async {
            for i in 0..OPERATIONS {
                get(i).await;
            }
        });
    });

    let case = "\"50,000 cache operations/s\": nine gets and a set in turn, one thread";
    suite.rate(case, Clock::Wall, OPERATIONS).at_least(50_000.0).measure(|| {
        runtime.block_on(async {
            for i in 0..OPERATIONS {
                match i % 10 {
                    0 => cache.insert(key(i), value.clone()),
                    _ => drop(get(i).await),
                }
            }
        });
    });
}

fn hit_ratios(suite: &mut Suite) {
    const READS: usize = 500_000;
    const REPEATS: usize = 20;

    let case = "\"hit ratio > 80 %\": Zipf 0.99 over 50,000 keys, room for 10,000, from cold";
    if suite.wants(case) {
        let reads = zipf(50_000, 0.99, READS, &mut Rng::with_seed(1));
        suite.reported(case, "%").at_least(80.0).observed(hit_percent(10_000, &reads));
    }
    let case = "\"90 % on repeats\": 1,000 keys, each 20 times in random order, from cold";
    if suite.wants(case) {
        let mut reads: Vec<u64> = std::iter::repeat_n(0..ITEMS, REPEATS).flatten().collect();
        Rng::with_seed(2).shuffle(&mut reads);
        suite.reported(case, "%").at_least(90.0).observed(hit_percent(2 * ITEMS, &reads));
    }
}

/// Asks an empty cache for some keys, loading what it does not have; the share that it had.
fn hit_percent(entries: u64, reads: &[u64]) -> f64 {
    let runtime = Runtime::new().expect("threads can be started");
    let cache = cache(entries);
    runtime.block_on(async {
        for read in reads {
            let load = async || Ok::<_, Infallible>(read.to_le_bytes().to_vec());
            let value = cache.get_or_load(&read.to_string(), load).await;
            assert_eq!(value.expect("the loader cannot fail"), read.to_le_bytes());
        }
    });
    let loads = cache.stats().loads;
    (reads.len() as u64 - loads) as f64 / reads.len() as f64 * 100.0
}

fn cache(entries: u64) -> Cache<String, Vec<u8>> {
    Cache::builder("claims").entries(entries).build().expect("a valid configuration")
}

/// Draws keys by the Zipf distribution; a key is its rank.
fn zipf(keys: u64, exponent: f64, reads: usize, rng: &mut Rng) -> Vec<u64> {
    let mut sum = 0.0;
    let weights: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        })
        .collect();
    let mut draw = || {
        let point = rng.f64() * sum;
        (weights.partition_point(|weight| *weight <= point) as u64).min(keys - 1)
    };
    (0..reads).map(|_| draw()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zipf_load_asks_for_ranks_by_their_weight() {
        let reads = zipf(1_000, 0.99, 200_000, &mut Rng::with_seed(3));
        let all: f64 = (1..=1_000).map(|rank| f64::from(rank).powf(-0.99)).sum();
        for rank in [0_u64, 1, 9] {
            let seen = reads.iter().filter(|read| **read == rank).count() as f64;
            let expected = 200_000.0 * ((rank + 1) as f64).powf(-0.99) / all;
            assert!((seen / expected - 1.0).abs() < 0.05, "rank {rank}: {seen}, not {expected}");
        }
        assert!(reads.iter().all(|read| *read < 1_000));
    }

    #[test]
    fn a_key_asked_for_twice_is_a_hit_the_second_time() {
        assert!((hit_percent(10, &[1, 1, 2, 2]) - 50.0).abs() < f64::EPSILON);
        assert!(hit_percent(10, &[1, 2, 3]).abs() < f64::EPSILON);
    }
}
