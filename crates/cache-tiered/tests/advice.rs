//! The figures that advice rests on, against models that see everything.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cache_tiered::{AdviceStats, Cache, CacheBuilder, Clock, Engine, EvictionCause, Policy};
use parking_lot::Mutex;

const TTL: Duration = Duration::from_secs(60);

/// Keys that are asked for with the frequency of a Zipf distribution of exponent one, about.
fn skewed(rng: &mut fastrand::Rng, keys: u64) -> u64 {
    ((keys as f64).powf(rng.f64()) as u64).min(keys - 1)
}

/// What a future resolves to at once.
fn done<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).expect("nothing is waited for")
}

/// Every departure, in order, and for each key its last.
#[derive(Default)]
struct Departures {
    evictions: u64,
    evicted: HashMap<u64, u64>,
}

/// Reads through a cache of `entries`, and compares the share of the misses that had been evicted not
/// long ago with that of all keys.
fn check_ghosts(entries: u64, keys: u64, policy: Policy) {
    let departures = Arc::new(Mutex::new(Departures::default()));
    let heard = Arc::clone(&departures);
    let cache = Cache::<u64, u64>::builder("numbers")
        .entries(entries)
        .policy(policy)
        .on_eviction(move |key, _, cause| {
            if cause == EvictionCause::Capacity {
                let mut heard = heard.lock();
                let number = heard.evictions;
                heard.evictions += 1;
                heard.evicted.insert(*key, number);
            }
        })
        .build()
        .unwrap();
    let mut rng = fastrand::Rng::with_seed(11);
    let (mut misses, mut ghosts) = (0, 0);
    for _ in 0..150_000 {
        let key = skewed(&mut rng, keys);
        if cache.get_in_memory(&key).is_some() {
            continue;
        }
        let mut departures = departures.lock();
        misses += 1;
        if let Some(number) = departures.evicted.remove(&key) {
            ghosts += u64::from(departures.evictions - number <= entries);
        }
        drop(departures);
        cache.insert(key, key);
    }
    let counted = cache.advice_stats();
    let expected = ghosts as f64 / misses as f64;
    let share = counted.evicted_share();
    assert!((share - expected).abs() < 0.03, "{policy}, {entries}: {share} {expected}");
    let scaled = counted.misses * counted.one_of;
    let off = scaled.abs_diff(misses) as f64 / misses as f64;
    assert!(off < 0.15, "{policy}, {entries}: {scaled} of {misses}");
}

#[test]
fn ghost_hits_are_the_misses_that_were_evicted_within_a_capacity_of_evictions() {
    for policy in [Policy::Lru, Policy::Lfu, Policy::S3Fifo] {
        check_ghosts(2_000, 20_000, policy);
    }
    check_ghosts(20_000, 100_000, Policy::Arc);
}

fn timed(
    more: impl FnOnce(CacheBuilder<u64, u64>) -> CacheBuilder<u64, u64>,
) -> (Cache<u64, u64>, Clock) {
    let clock = Clock::manual();
    let builder = Cache::builder("numbers").entries(4_000).ttl(TTL).clock(clock.clone());
    (more(builder).build().unwrap(), clock)
}

#[test]
fn a_miss_counts_as_expired_within_one_time_to_live_of_the_end_however_it_is_found() {
    // With a listener a look-up does not take out what it finds dead; the window keeps what is not
    // fresh; a sweep takes out what is dead before it is looked up.
    let listened = |builder: CacheBuilder<u64, u64>| builder.on_eviction(|_, _, _| ());
    let windowed = |builder: CacheBuilder<u64, u64>| builder.stale_if_error(TTL / 2);
    let (plain, listened, windowed) = (timed(|it| it), timed(listened), timed(windowed));
    for (at, (cache, clock)) in [plain, listened, windowed].into_iter().enumerate() {
        let times = [(TTL + TTL / 4, true), (2 * TTL - TTL / 60, true), (3 * TTL, false)];
        let cases = times.into_iter().flat_map(|case| [(case, false), (case, true)]);
        for ((after, expired), swept) in cases {
            let before = cache.advice_stats();
            (0..500).for_each(|key| cache.insert(key, key));
            clock.advance(after);
            if swept {
                done(cache.remove_expired());
            }
            (0..500).for_each(|key| assert_eq!(cache.get_in_memory(&key), None));
            let counted = cache.advice_stats();
            let misses = counted.misses - before.misses;
            let found = counted.misses_expired - before.misses_expired;
            assert!(misses > 20, "{misses}");
            let expected = if expired { misses } else { 0 };
            assert_eq!(found, expected, "cache {at}, {after:?} later, swept: {swept}");
            done(cache.clear(None));
        }
    }
}

#[test]
fn what_is_idle_or_removed_or_never_was_is_no_expiry() {
    let (cache, clock) = timed(|builder| builder.time_to_idle(TTL / 4));
    (0..1_000).for_each(|key| cache.insert(key, key));
    clock.advance(TTL / 2);
    (0..1_000).for_each(|key| assert_eq!(cache.get_in_memory(&key), None));
    (1_000..2_000).for_each(|key| assert_eq!(cache.get_in_memory(&key), None));
    (0..1_000).for_each(|key| cache.insert(key, key));
    for key in 0..1_000 {
        done(cache.remove(&key));
        assert_eq!(cache.get_in_memory(&key), None);
    }
    let counted = cache.advice_stats();
    assert!(counted.misses > 200);
    assert_eq!((counted.misses_expired, counted.misses_evicted), (0, 0));
}

/// Loads 400 keys again and again; each content changes every third time. The loads are counted that
/// a model sees, and the share of same contents among those after an expiry.
async fn check_reloads(cache: &Cache<u64, u64>, clock: &Clock) -> AdviceStats {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut contents: HashMap<u64, u64> = HashMap::new();
    let (mut reloads, mut same) = (0_u64, 0_u64);
    for _ in 0..20 {
        for key in 0..400 {
            let content =
                if rng.u8(0..3) == 0 { rng.u64(..) } else { *contents.get(&key).unwrap_or(&0) };
            let load = || async { Ok::<_, Infallible>(content) };
            assert_eq!(cache.get_or_load(&key, load).await.unwrap(), content);
            if let Some(before) = contents.insert(key, content) {
                reloads += 1;
                same += u64::from(before == content);
            }
        }
        clock.advance(TTL + TTL / 10);
    }
    let counted = cache.advice_stats();
    assert!(counted.reloads > 400, "{counted:?}");
    let (share, expected) = (counted.reloads_same_share().unwrap(), same as f64 / reloads as f64);
    assert!((share - expected).abs() < 0.06, "{share} {expected}");
    assert_eq!((counted.rewrites, counted.rewrites_same), (counted.reloads, counted.reloads_same));
    counted
}

#[tokio::test]
async fn reloads_after_an_expiry_are_compared_by_the_hash_that_was_given() {
    let (cache, clock) = timed(|builder| builder.content_hash(|value| value.wrapping_mul(7)));
    check_reloads(&cache, &clock).await;
    let (cache, clock) = timed(|builder| builder);
    for _ in 0..3 {
        for key in 0..400 {
            cache.get_or_load(&key, || async { Ok::<_, Infallible>(7) }).await.unwrap();
        }
        clock.advance(TTL + TTL / 10);
    }
    let counted = cache.advice_stats();
    assert!(counted.misses_expired > 0);
    assert_eq!(counted.reloads_same_share(), None, "nobody knows of contents");
}

#[cfg(feature = "disk")]
#[tokio::test]
async fn with_a_tier_below_contents_are_compared_by_what_is_written() {
    use cache_tiered::disk::DiskConfig;

    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::manual();
    let cache = Cache::<u64, u64>::builder("numbers")
        .entries(4_000)
        .ttl(TTL)
        .clock(clock.clone())
        .disk(DiskConfig::new(directory.path()).capacity_bytes(8 << 20))
        .open()
        .await
        .unwrap();
    check_reloads(&cache, &clock).await;
    let read = cache.stats().disk.unwrap().read_latency;
    assert!(read.reads > 0 && read.p50 > Duration::ZERO, "{read:?}");
    assert!(read.p50 <= read.p95 && read.p95 <= read.p99);
    cache.close().await;
}

#[tokio::test]
async fn loads_in_vain_are_counted_and_their_repetitions_within_a_minute() {
    let (cache, clock) = timed(|builder| builder.absent_if(|value| *value == 0));
    // Of 800 keys, one in four is absent, one in four fails and the others are found. What is absent is
    // kept for its time to live, a minute, and failures are not kept.
    let round = async || {
        let before = cache.advice_stats();
        for key in 0..800_u64 {
            let load = || async move {
                match key % 4 {
                    0 => Ok(0),
                    1 => Err("as told"),
                    _ => Ok(key),
                }
            };
            let _ = cache.get_or_load(&key, load).await;
        }
        let now = cache.advice_stats();
        let of = |count: fn(&AdviceStats) -> u64| count(&now) - count(&before);
        [
            of(|it| it.loads),
            of(|it| it.loads_absent),
            of(|it| it.loads_absent_again),
            of(|it| it.loads_failed),
            of(|it| it.loads_failed_again),
        ]
    };
    let [loads, absent, again, failed, failed_again] = round().await;
    assert!(loads > 50 && absent > 8 && failed > 8, "{loads} {absent} {failed}");
    assert_eq!((again, failed_again), (0, 0));
    assert_eq!(round().await, [failed, 0, 0, failed, failed], "only failures are not kept");
    clock.advance(TTL - Duration::from_secs(1));
    assert_eq!(round().await, [failed, 0, 0, failed, failed]);
    clock.advance(Duration::from_secs(1));
    assert_eq!(round().await, [loads, absent, 0, failed, failed], "a minute is over");
    done(cache.clear(None));
    assert_eq!(round().await, [loads, absent, absent, failed, failed]);
}

#[tokio::test]
async fn a_fetch_counts_as_a_duplicate_if_the_key_is_being_fetched_by_another_call() {
    let (cache, _) = timed(|builder| builder);
    let loads = AtomicU64::new(0);
    let slow = || async {
        loads.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(7)
    };
    let (_, _) = tokio::join!(cache.get_or_load(&1, slow), cache.get_or_load(&1, slow));
    assert_eq!(cache.stats().coalesced, 1);
    assert_eq!(cache.advice_stats().duplicate_fetches, 0);
    let first = cache.reserve(&2);
    let other = cache.reserve(&3);
    assert_eq!(cache.advice_stats().duplicate_fetches, 0);
    let second = cache.reserve(&2);
    assert_eq!(cache.advice_stats().duplicate_fetches, 1);
    drop((first, second, other));
    drop(cache.reserve(&2));
    assert_eq!(cache.advice_stats().duplicate_fetches, 1);
}

#[test]
fn quick_cache_watches_no_key() {
    let (cache, _) = timed(|builder| builder.engine(Engine::ClockPro));
    (0..100).for_each(|key| assert_eq!(cache.get_in_memory(&key), None));
    assert_eq!(cache.advice_stats(), AdviceStats::default());
}
