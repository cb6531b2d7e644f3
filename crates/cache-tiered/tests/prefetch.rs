//! Values that are loaded before they are asked for, and what becomes of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_tiered::{BuildError, Cache, CacheBuilder, Clock, LoadingCache, Prefetch, PrefetchStats};
use tokio::sync::Semaphore;

/// Counts how often each key was loaded.
#[derive(Debug, Clone, Default)]
struct Backend(Arc<Mutex<BTreeMap<u64, u64>>>);

impl Backend {
    fn loads(&self) -> Vec<u64> {
        self.0.lock().unwrap().keys().copied().collect()
    }

    fn total(&self) -> u64 {
        self.0.lock().unwrap().values().sum()
    }

    fn over(&self, builder: CacheBuilder<u64, u64>) -> LoadingCache<u64, u64> {
        let backend = self.clone();
        builder.build().unwrap().loading(move |key: u64| {
            *backend.0.lock().unwrap().entry(key).or_default() += 1;
            async move { Ok::<_, std::io::Error>(key * 10) }
        })
    }
}

fn builder() -> CacheBuilder<u64, u64> {
    Cache::builder("test").entries(1_000)
}

fn next_one() -> CacheBuilder<u64, u64> {
    builder().related(|key| [key + 1])
}

/// Lets everything that was spawned come to its end; this runtime has one thread.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

fn prefetched(cache: &LoadingCache<u64, u64>) -> PrefetchStats {
    cache.cache().stats().prefetch
}

#[tokio::test]
async fn what_belongs_to_a_key_is_there_when_it_is_asked_for_and_leads_on() {
    let backend = Backend::default();
    let cache = backend.over(next_one());
    assert_eq!(cache.get(&1).await.unwrap(), 10);
    settle().await;
    assert_eq!(backend.loads(), [1, 2]);
    assert_eq!(cache.cache().get_in_memory(&2), Some(20));
    let stats = prefetched(&cache);
    assert_eq!((stats.issued, stats.used, stats.outstanding), (1, 0, 1));

    // The first hit leads on to the next, the second does not.
    for _ in 0..2 {
        assert_eq!(cache.get(&2).await.unwrap(), 20);
        settle().await;
    }
    assert_eq!(backend.loads(), [1, 2, 3]);
    let stats = prefetched(&cache);
    assert_eq!((stats.issued, stats.used, stats.wasted, stats.outstanding), (2, 1, 0, 1));
}

#[tokio::test]
async fn an_order_that_repeats_is_learned_and_loaded_ahead() {
    let backend = Backend::default();
    let small = Cache::builder("test").entries(64).policy(cache_tiered::Policy::Lru);
    let cache = backend.over(small.prefetch(Prefetch::default()));
    let mut waited = Vec::new();
    for _ in 0..6 {
        let before = cache.cache().stats().memory.misses;
        for key in 0..500 {
            assert_eq!(cache.get(&key).await.unwrap(), key * 10);
            settle().await;
        }
        waited.push(cache.cache().stats().memory.misses - before);
    }
    assert_eq!(waited[..2], [500, 500], "nothing has repeated yet");
    assert!(waited[4] < 50 && waited[5] < 50, "{waited:?}");
    let stats = prefetched(&cache);
    assert!(stats.used > 1_000 && stats.accuracy() > 0.9, "{stats:?}");
    assert!(backend.total() <= 3_050, "hardly anything is loaded in vain");
}

#[tokio::test]
async fn nothing_is_fetched_ahead_unless_it_was_asked_for() {
    let backend = Backend::default();
    let cache = backend.over(builder());
    for _ in 0..4 {
        for key in 0..50 {
            cache.get(&key).await.unwrap();
        }
        cache.cache().clear(None).await;
    }
    settle().await;
    assert_eq!((backend.total(), prefetched(&cache)), (200, PrefetchStats::default()));
}

#[tokio::test]
async fn so_many_fetches_are_under_way_and_no_more() {
    let gate = Arc::new(Semaphore::new(0));
    let started = Arc::new(AtomicU64::new(0));
    let cache = {
        let (gate, started) = (Arc::clone(&gate), Arc::clone(&started));
        let builder = builder().prefetch(Prefetch::default().in_flight(3));
        let builder = builder.related(|key| (key * 100)..(key * 100 + 50));
        builder.build().unwrap().loading(move |key: u64| {
            let (gate, started) = (Arc::clone(&gate), Arc::clone(&started));
            async move {
                started.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await?.forget();
                Ok::<_, tokio::sync::AcquireError>(key)
            }
        })
    };
    let asked = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&1).await }
    });
    settle().await;
    assert_eq!(started.load(Ordering::Relaxed), 4, "what was asked for, and three ahead");
    let stats = prefetched(&cache);
    assert_eq!((stats.issued, stats.skipped), (3, 13), "of the first sixteen");

    // One that is on its way is not loaded a second time; it was of use all the same.
    let late = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get(&100).await }
    });
    settle().await;
    assert_eq!(prefetched(&cache).used, 1);
    gate.add_permits(100);
    assert_eq!((asked.await.unwrap().unwrap(), late.await.unwrap().unwrap()), (1, 100));
}

#[tokio::test]
async fn what_is_overwritten_removed_or_expires_was_fetched_in_vain() {
    let clock = Clock::manual();
    let backend = Backend::default();
    let builder = builder().ttl(Duration::from_secs(10)).clock(clock.clone());
    let cache = backend.over(builder.related(|key| [key + 1, key + 2, key + 3]));
    cache.get(&1).await.unwrap();
    settle().await;
    cache.cache().insert(2, 7);
    cache.cache().remove(&3).await;
    assert_eq!(prefetched(&cache).wasted, 2);
    assert_eq!(cache.get(&2).await.unwrap(), 7, "no hit of what was fetched");
    clock.advance(Duration::from_secs(11));
    cache.get(&4).await.unwrap();
    let PrefetchStats { used, wasted, .. } = prefetched(&cache);
    assert_eq!((used, wasted), (0, 3));
}

#[tokio::test]
async fn a_write_overtakes_what_is_being_fetched() {
    let gate = Arc::new(Semaphore::new(1));
    let cache = {
        let gate = Arc::clone(&gate);
        next_one().build().unwrap().loading(move |key: u64| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await?.forget();
                Ok::<_, tokio::sync::AcquireError>(key)
            }
        })
    };
    cache.get(&1).await.unwrap();
    settle().await;
    cache.cache().insert(2, 77);
    gate.add_permits(10);
    settle().await;
    assert_eq!(cache.cache().get_in_memory(&2), Some(77));
    let stats = prefetched(&cache);
    assert_eq!((stats.wasted, stats.outstanding), (1, 0));
}

#[tokio::test]
async fn fetches_that_fail_or_panic_are_in_vain_and_nobody_hears_of_them() {
    let cache = next_one().prefetch(Prefetch::default().successions(0).in_flight(1));
    let cache = cache.build().unwrap().loading(|key: u64| async move {
        match key {
            2 => Err(std::io::Error::other("as told")),
            12 => panic!("as told"),
            _ => Ok(key),
        }
    });
    for key in [1, 11, 21] {
        assert_eq!(cache.get(&key).await.unwrap(), key);
        settle().await;
    }
    let stats = prefetched(&cache);
    assert_eq!((stats.issued, stats.wasted, stats.outstanding, stats.skipped), (3, 2, 1, 0));
    assert_eq!(cache.cache().get_in_memory(&22), Some(22));
}

#[tokio::test]
async fn what_turns_out_to_be_of_no_use_is_fetched_seldom() {
    let backend = Backend::default();
    let small = Cache::builder("test").entries(64).policy(cache_tiered::Policy::Lru);
    let cache = backend.over(small.related(|key| [key + 1_000_000]));
    for key in 0..10_000 {
        cache.get(&key).await.unwrap();
        settle().await;
    }
    let stats = prefetched(&cache);
    assert!(stats.one_of == 64 && stats.issued < 1_500 && stats.used == 0, "{stats:?}");
    assert_eq!(stats.issued, stats.wasted + stats.outstanding);
}

#[tokio::test]
async fn settings_out_of_bounds_are_told() {
    let wrong = builder().prefetch(Prefetch::default().in_flight(0)).build();
    let Err(BuildError::Invalid { problems, .. }) = wrong else { panic!("none in flight") };
    assert_eq!(problems[0].path, "prefetch.in_flight");
}

#[test]
fn without_a_runtime_nothing_is_fetched_ahead() {
    let backend = Backend::default();
    let cache = backend.over(next_one());
    let mut get = std::pin::pin!(cache.get(&1));
    let waker = std::task::Waker::noop();
    let mut context = std::task::Context::from_waker(waker);
    assert!(Future::poll(get.as_mut(), &mut context).is_ready());
    assert_eq!(backend.loads(), [1]);
}

#[cfg(feature = "disk")]
#[tokio::test]
async fn what_a_tier_below_has_is_brought_up_and_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::default();
    let disk = cache_tiered::disk::DiskConfig::new(directory.path()).capacity_bytes(2 << 20);
    let cache = next_one().disk(disk).open().await.unwrap();
    (1..=2).for_each(|key| cache.insert(key, key * 10));
    cache.flush().await;
    cache.clear(cache_tiered::Tier::Memory).await;
    let loading = {
        let backend = backend.clone();
        cache.loading(move |key: u64| {
            *backend.0.lock().unwrap().entry(key).or_default() += 1;
            async move { Ok::<_, std::io::Error>(key) }
        })
    };
    assert_eq!(loading.get(&1).await.unwrap(), 10);
    let start = std::time::Instant::now();
    while cache.get_in_memory(&2).is_none() {
        assert!(start.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(backend.loads().is_empty());
    assert_eq!(loading.get(&2).await.unwrap(), 20);
    cache.close().await;
}

/// What a hit costs: without fetching ahead, with it, and while something waits for its first hit.
///
/// `cargo test --release -p cache-tiered --test prefetch -- --ignored --nocapture measure_a_hit`
#[tokio::test]
#[ignore = "measures"]
async fn measure_a_hit() {
    const KEYS: u64 = 1_000;
    const ROUNDS: u32 = 400;
    let backend = Backend::default();
    let builder = || Cache::builder("test").entries(10_000);
    let waiting = builder().related(|key| [key + 1_000_000]);
    let caches = [
        ("without", backend.over(builder())),
        ("with it, nothing waits", backend.over(builder().prefetch(Prefetch::default()))),
        ("with it, some wait", backend.over(waiting)),
    ];
    for (_, cache) in &caches {
        for key in 0..KEYS {
            cache.get(&key).await.unwrap();
            settle().await;
        }
    }
    assert!(prefetched(&caches[2].1).outstanding > 500);
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..31 {
        for (times, (_, cache)) in times.iter_mut().zip(&caches) {
            let start = std::time::Instant::now();
            for _ in 0..ROUNDS {
                for key in 0..KEYS {
                    std::hint::black_box(cache.get(&key).await.is_ok());
                }
            }
            times.push(start.elapsed() / (ROUNDS * KEYS as u32));
        }
    }
    for (times, (name, _)) in times.iter_mut().zip(&caches) {
        times.sort_unstable();
        println!("{name}: {:?} a hit, median of {}", times[times.len() / 2], times.len());
    }
}
