//! Changing a cache while it is in use: what comes in from then on follows, and what is there stays as
//! it came.

use std::convert::Infallible;
use std::time::Duration;

use cache_tiered::{Cache, CacheBuilder, Clock, Engine, LoadingCache, Prefetch, Tuning};

const SECOND: Duration = Duration::from_secs(1);

fn cache(
    more: impl FnOnce(CacheBuilder<u32, u32>) -> CacheBuilder<u32, u32>,
) -> (Cache<u32, u32>, Clock) {
    let clock = Clock::manual();
    let builder = Cache::builder("numbers").entries(1_000).ttl(60 * SECOND).clock(clock.clone());
    (more(builder).build().unwrap(), clock)
}

fn change(cache: &Cache<u32, u32>, change: impl FnOnce(&mut Tuning)) {
    let mut tuning = cache.tuning();
    change(&mut tuning);
    cache.tune(&tuning).unwrap();
    assert_eq!(cache.tuning(), tuning);
}

/// A loader whose values count its calls, from 100 on.
fn counting(cache: &Cache<u32, u32>) -> LoadingCache<u32, u32> {
    let calls = std::sync::atomic::AtomicU32::new(100);
    cache.loading(move |_| {
        let call = calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move { Ok::<_, Infallible>(call) }
    })
}

#[test]
fn entries_keep_the_time_to_live_that_they_came_with() {
    for engine in [Engine::Switchable, Engine::ClockPro] {
        let (cache, clock) = cache(|builder| builder.engine(engine));
        cache.insert(1, 1);
        change(&cache, |it| it.ttl = Some(600 * SECOND));
        cache.insert(2, 2);
        clock.advance(59 * SECOND);
        assert_eq!([1, 2].map(|key| cache.get_in_memory(&key)), [Some(1), Some(2)]);
        clock.advance(2 * SECOND);
        assert_eq!([1, 2].map(|key| cache.get_in_memory(&key)), [None, Some(2)]);
        change(&cache, |it| it.ttl = None);
        cache.insert(3, 3);
        clock.advance(100_000 * SECOND);
        assert_eq!([2, 3].map(|key| cache.get_in_memory(&key)), [None, Some(3)]);
    }
}

#[test]
fn a_jitter_that_is_set_later_shortens_what_comes_later() {
    let (cache, clock) = cache(|builder| builder);
    (0..500).for_each(|key| cache.insert(key, 0));
    change(&cache, |it| it.ttl_jitter = 50);
    (500..1_000).for_each(|key| cache.insert(key, 0));
    clock.advance(45 * SECOND);
    let there = |keys: std::ops::Range<u32>| keys.filter(|key| cache.get_in_memory(key).is_some());
    // Evictions aside: the shards are not all equally full.
    assert!(there(0..500).count() > 400);
    assert!((50..450).contains(&there(500..1_000).count()));
}

#[tokio::test]
async fn windows_hold_for_what_comes_after_they_were_set() {
    for engine in [Engine::Switchable, Engine::ClockPro] {
        let (cache, clock) = cache(|builder| builder.engine(engine));
        let loading = counting(&cache);
        cache.insert(1, 1);
        change(&cache, |it| it.stale_while_revalidate = 30 * SECOND);
        cache.insert(2, 2);
        clock.advance(59 * SECOND);
        assert_eq!([1, 2].map(|key| cache.get_in_memory(&key)), [Some(1), Some(2)]);
        clock.advance(2 * SECOND);
        assert_eq!([1, 2].map(|key| cache.get_in_memory(&key)), [None, None]);
        assert!(loading.get(&1).await.unwrap() >= 100, "it has no window");
        assert_eq!(loading.get(&2).await.unwrap(), 2, "it is served while a newer one is loaded");
        assert_eq!(cache.stats().stale_hits, 1);
    }
}

#[tokio::test]
async fn windows_that_are_taken_away_leave_older_entries_fresh_as_long_as_before() {
    for engine in [Engine::Switchable, Engine::ClockPro] {
        let (cache, clock) = cache(|builder| {
            let builder = builder.engine(engine);
            builder.stale_while_revalidate(30 * SECOND).stale_if_error(100 * SECOND)
        });
        cache.insert(1, 1);
        change(&cache, |it| {
            it.stale_while_revalidate = Duration::ZERO;
            it.stale_if_error = Duration::ZERO;
        });
        cache.insert(2, 2);
        clock.advance(59 * SECOND);
        assert_eq!([1, 2].map(|key| cache.get_in_memory(&key)), [Some(1), Some(2)]);
        clock.advance(2 * SECOND);
        assert_eq!([1, 2].map(|key| cache.get_in_memory(&key)), [None, None]);
        let stale = [1, 2].map(|key| cache.look_up_in_memory(&key).map(|hit| hit.stale));
        assert_eq!(stale, [Some(true), None]);
        let fails = || async { Err::<u32, _>("as told") };
        assert_eq!(cache.get_or_load(&1, fails).await.unwrap(), 1);
        assert!(cache.get_or_load(&2, fails).await.is_err());
    }
}

#[tokio::test]
async fn refreshing_ahead_holds_for_all_entries_at_once() {
    let (cache, clock) = cache(|builder| builder);
    let loading = counting(&cache);
    cache.insert(1, 1);
    clock.advance(50 * SECOND);
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    assert_eq!(cache.stats().in_flight, 0);
    change(&cache, |it| it.refresh_ahead = 20 * SECOND);
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    while cache.stats().refreshes == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(loading.get(&1).await.unwrap(), 100);
    change(&cache, |it| {
        it.refresh_ahead = Duration::ZERO;
        it.early_refresh = 1e12;
    });
    assert_eq!(loading.get(&1).await.unwrap(), 100);
    while cache.stats().refreshes == 1 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn what_means_that_there_is_nothing_has_a_time_of_its_own_that_can_be_changed() {
    let clock = Clock::manual();
    let cache = Cache::<u32, Option<u32>>::builder("users")
        .ttl(60 * SECOND)
        .negative_ttl(5 * SECOND)
        .clock(clock.clone())
        .build()
        .unwrap();
    let alive_after = |seconds: u32| {
        cache.insert(1, None);
        cache.insert(2, Some(2));
        clock.advance(seconds * SECOND);
        [1, 2].map(|key| cache.get_in_memory(&key).is_some())
    };
    assert_eq!([4, 6].map(alive_after), [[true, true], [false, true]]);
    let mut tuning = cache.tuning();
    assert_eq!(tuning.negative_ttl, Some(5 * SECOND));
    tuning.negative_ttl = Some(20 * SECOND);
    cache.tune(&tuning).unwrap();
    assert_eq!([19, 21].map(alive_after), [[true, true], [false, true]]);
    tuning.negative_ttl = Some(Duration::ZERO);
    cache.tune(&tuning).unwrap();
    assert_eq!(alive_after(0), [false, true]);
    tuning.negative_ttl = None;
    cache.tune(&tuning).unwrap();
    assert_eq!([59, 61].map(alive_after), [[true, true], [false, false]]);
}

#[test]
fn what_means_that_there_is_nothing_need_not_be_an_option() {
    let empty = |builder: CacheBuilder<u32, u32>| builder.absent_if(|value| *value == 0);
    let (told, clock) = cache(|builder| empty(builder).absent_ttl(5 * SECOND));
    told.insert(1, 0);
    told.insert(2, 2);
    clock.advance(6 * SECOND);
    assert_eq!([1, 2].map(|key| told.get_in_memory(&key)), [None, Some(2)]);
    // Who was not told keeps everything alike, and says so when that is to change.
    let (untold, clock) = cache(|builder| builder.absent_ttl(5 * SECOND));
    untold.insert(1, 0);
    clock.advance(6 * SECOND);
    assert_eq!(untold.get_in_memory(&1), Some(0));
    let mut tuning = untold.tuning();
    untold.tune(&tuning).unwrap();
    tuning.negative_ttl = None;
    assert_eq!(untold.tune(&tuning).unwrap_err().problems[0].path, "negative_ttl");
}

#[tokio::test]
async fn prefetching_is_turned_on_and_off_and_on_again() {
    let (cache, _) = cache(|builder| builder.entries(10));
    let loading = counting(&cache);
    let round = async || {
        // Every key is missed each time; each is followed by the same.
        for _ in 0..20 {
            for key in 0..40 {
                loading.get(&key).await.unwrap();
            }
        }
        cache.stats().prefetch.issued
    };
    assert_eq!(round().await, 0);
    change(&cache, |it| it.prefetch = Some(Prefetch::default().in_flight(2)));
    let first = round().await;
    assert!(first > 0);
    change(&cache, |it| it.prefetch = None);
    assert_eq!(round().await, first);
    change(&cache, |it| it.prefetch = Some(Prefetch::default().successions(100)));
    assert!(round().await > first);
}

#[cfg(feature = "disk")]
#[tokio::test]
async fn values_are_compressed_from_the_length_on_that_was_set_last() {
    use cache_tiered::{Compression, disk::DiskConfig};

    let directory = tempfile::tempdir().unwrap();
    let open = async |name: &str, compression| {
        let disk = DiskConfig::new(directory.path().join(name)).capacity_bytes(32 << 20);
        let builder = Cache::<u32, String>::builder(name).compression(compression).disk(disk);
        builder.open().await.unwrap()
    };
    let cache = open("zstd", Compression::default()).await;
    let mut tuning = cache.tuning();
    assert_eq!(tuning.compress_above, Some(2_048));
    let mut tried = 0;
    for (floor, expected) in [(Some(2_048), 0), (Some(500), 1), (None, 0), (Some(100), 1)] {
        tuning.compress_above = floor;
        cache.tune(&tuning).unwrap();
        assert_eq!(cache.tuning(), tuning);
        cache.insert(1, "compress me".repeat(100));
        cache.flush().await;
        tried += expected;
        assert_eq!(cache.stats().compression.tried, tried, "{floor:?}");
    }
    cache.close().await;

    let learning = open("learning", Compression::ZstdDictionary).await;
    learning.tune(&learning.tuning()).unwrap();
    assert_eq!(learning.tuning().compress_above, Some(128));
    learning.close().await;

    let none = open("none", Compression::None).await;
    let mut tuning = none.tuning();
    assert_eq!(tuning.compress_above, None);
    tuning.compress_above = Some(100);
    assert!(none.tune(&tuning).is_err());
    none.close().await;
}

#[test]
fn every_problem_is_told_and_nothing_is_changed() {
    let (cache, _) = cache(|builder| builder);
    let before = cache.tuning();
    let mut tuning = before;
    tuning.ttl = Some(Duration::ZERO);
    tuning.ttl_jitter = 101;
    tuning.early_refresh = f64::NAN;
    tuning.negative_ttl = Some(SECOND);
    tuning.compress_above = Some(1);
    tuning.prefetch = Some(Prefetch::default().in_flight(0));
    tuning.refresh_ahead = SECOND;
    let error = cache.tune(&tuning).unwrap_err();
    let paths: Vec<_> = error.problems.iter().map(|problem| problem.path.as_str()).collect();
    let wrong = ["ttl", "ttl_jitter", "early_refresh", "negative_ttl", "compress_above"];
    assert_eq!(paths, [&wrong[..], &["prefetch.in_flight"]].concat());
    assert!(error.to_string().starts_with("cache \"numbers\": 6 problems:\n  ttl = \"0\": must"));
    assert_eq!(cache.tuning(), before);
}

#[test]
fn a_tuning_that_is_given_back_changes_nothing() {
    let (cache, _) = cache(|builder| {
        builder
            .ttl(Duration::MAX)
            .stale_if_error(Duration::from_millis(1_500))
            .early_refresh(0.25)
            .prefetch(Prefetch::default().in_flight(7))
    });
    let tuning = cache.tuning();
    assert_eq!((tuning.ttl, tuning.early_refresh), (Some(Duration::MAX), 0.25));
    assert_eq!(tuning.prefetch, Some(Prefetch::default().in_flight(7)));
    change(&cache, |_| ());
    assert_eq!(cache.managed().tuning(), tuning);
}

#[test]
fn a_cache_is_resized_in_the_unit_that_bounds_it() {
    type Bound = fn(CacheBuilder<u32, u32>) -> CacheBuilder<u32, u32>;
    let bounds: [(Bound, u64); 3] = [
        (|builder| builder.entries(1_000), 1_000),
        (|builder| builder.bytes(100_000, |_, _| 100), 100_000),
        // Beside a bound in bytes, one in entries is a share of the bytes for each.
        (|builder| builder.bytes(100_000, |_, _| 1).entries(1_000), 100_000),
    ];
    for engine in [Engine::Switchable, Engine::ClockPro] {
        for (bound, capacity) in bounds {
            let cache = bound(Cache::builder("numbers").engine(engine)).build().unwrap();
            for (percent, entries) in [(100, 1_000), (20, 200), (300, 3_000), (50, 500)] {
                cache.resize(capacity * percent / 100);
                // quick_cache rounds down to a multiple of its shards.
                let wanted = capacity * percent / 100;
                let told = cache.capacity();
                assert!(told <= wanted && told > wanted * 9 / 10, "{engine}: {told}");
                (0..10_000).for_each(|key| cache.insert(key, key));
                let found = (0..10_000).filter(|key| cache.get_in_memory(key).is_some()).count();
                assert!(found <= entries && found > entries * 8 / 10, "{engine}: {found}");
            }
        }
    }
}
