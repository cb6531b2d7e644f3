//! Values past their time: served meanwhile, loaded anew, once, and what plain look-ups see of it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use cache_tiered::{Cache, CacheBuilder, Clock, Engine, LoadError, Loaded, LoadingCache, NotKept};
use tokio::sync::Semaphore;

/// A source whose values count up, that can be made to fail and to wait.
#[derive(Clone)]
struct Source {
    loads: Arc<AtomicU32>,
    fails: Arc<AtomicBool>,
    gate: Arc<Semaphore>,
}

impl Source {
    fn new() -> Self {
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { loads: Arc::default(), fails: Arc::default(), gate }
    }

    fn of(&self, cache: &Cache<u32, u32>) -> LoadingCache<u32, u32> {
        let source = self.clone();
        cache.loading(move |_| {
            let source = source.clone();
            async move {
                let _permit = source.gate.acquire().await;
                let count = source.loads.fetch_add(1, Ordering::Relaxed) + 1;
                if source.fails.load(Ordering::Relaxed) {
                    Err(io::Error::other("down"))
                } else {
                    Ok(count)
                }
            }
        })
    }

    fn loads(&self) -> u32 {
        self.loads.load(Ordering::Relaxed)
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Fresh for 10 seconds.
fn builder(clock: &Clock) -> CacheBuilder<u32, u32> {
    Cache::builder("test").ttl(seconds(10)).clock(clock.clone())
}

/// Lets what was spawned come to its end.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stale_value_is_served_while_one_load_replaces_it() {
    for engine in [Engine::Switchable, Engine::ClockPro] {
        let (clock, source) = (Clock::manual(), Source::new());
        let cache =
            builder(&clock).engine(engine).stale_while_revalidate(seconds(30)).build().unwrap();
        let loading = source.of(&cache);
        assert_eq!(loading.get(&1).await.unwrap(), 1);
        clock.advance(seconds(10));
        for _ in 0..5 {
            assert_eq!(loading.get(&1).await.unwrap(), 1, "{engine}: the old value, at once");
        }
        settle().await;
        assert_eq!((loading.get(&1).await.unwrap(), source.loads()), (2, 2), "{engine}");
        let stats = cache.stats();
        assert_eq!((stats.stale_hits, stats.refreshes), (5, 1), "{engine}");

        clock.advance(seconds(40));
        assert_eq!(loading.get(&1).await.unwrap(), 3, "{engine}: too old to be served");
    }
}

#[tokio::test]
async fn plain_look_ups_find_only_what_is_fresh() {
    for engine in [Engine::Switchable, Engine::ClockPro] {
        let clock = Clock::manual();
        let cache =
            builder(&clock).engine(engine).stale_while_revalidate(seconds(30)).build().unwrap();
        cache.insert(1, 1);
        assert_eq!(cache.get_in_memory(&1), Some(1), "{engine}");
        clock.advance(seconds(10));
        assert_eq!((cache.get_in_memory(&1), cache.get(&1).await), (None, None), "{engine}");
        assert_eq!(cache.get_many(&[1, 2]).await, [None, None], "{engine}");
        assert_eq!(cache.get_or_load(&1, || async { Ok::<_, io::Error>(2) }).await.unwrap(), 2);
        let memory = cache.stats().memory;
        assert_eq!((memory.hits, memory.misses, memory.entries), (1, 5, 1), "{engine}");
    }
}

#[tokio::test]
async fn a_failing_loader_brings_out_an_older_value_for_so_long() {
    let (clock, source) = (Clock::manual(), Source::new());
    let cache = builder(&clock).stale_if_error(seconds(100)).build().unwrap();
    let loading = source.of(&cache);
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    source.fail(true);
    clock.advance(seconds(109));
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    let own = cache.get_or_load(&1, || async { Err::<u32, _>(io::Error::other("down")) });
    assert_eq!(own.await.unwrap(), 1, "with a loader of its own, too");
    assert_eq!((source.loads(), cache.stats().stale_on_error), (2, 2));
    clock.advance(seconds(1));
    assert!(loading.get(&1).await.is_err());
    source.fail(false);
    assert_eq!(loading.get(&1).await.unwrap(), 4);
}

#[tokio::test]
async fn what_is_kept_for_errors_alone_is_no_value_to_serve_meanwhile() {
    for engine in [Engine::Switchable, Engine::ClockPro] {
        let clock = Clock::manual();
        let builder = builder(&clock).engine(engine).stale_while_revalidate(seconds(30));
        let cache = builder.stale_if_error(seconds(3_600)).build().unwrap();
        cache.insert(1, 1);
        let look = || cache.look_up_servable(&1).map(|hit| (hit.value, hit.stale));
        assert_eq!(look(), Some((1, false)), "{engine}");
        clock.advance(seconds(39));
        assert_eq!(look(), Some((1, true)), "{engine}");
        clock.advance(seconds(1));
        assert_eq!(look(), None, "{engine}");
        assert_eq!(cache.look_up_in_memory(&1).map(|hit| hit.value), Some(1), "{engine}");
        let memory = cache.stats().memory;
        assert_eq!((memory.hits, memory.misses), (3, 1), "{engine}");
    }
}

#[tokio::test]
async fn the_answer_that_there_is_nothing_is_no_error_and_removes_the_older_value() {
    let clock = Clock::manual();
    let cache = builder(&clock).stale_if_error(seconds(3_600)).build().unwrap();
    let nothing = || async {
        tokio::task::yield_now().await;
        Err::<u32, _>(NotKept::new("gone"))
    };
    cache.insert(1, 1);
    clock.advance(seconds(10));
    let (leads, waits) =
        tokio::join!(cache.get_or_load(&1, nothing), cache.get_or_load(&1, nothing));
    for ended in [leads, waits] {
        let Err(LoadError::NotKept(reason)) = ended else { panic!("{ended:?}") };
        assert_eq!(reason.to_string(), "gone");
    }
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.load_failures, stats.coalesced), (1, 0, 1));
    let failed = cache.get_or_load(&1, || async { Err::<u32, _>(io::Error::other("down")) }).await;
    assert!(matches!(failed, Err(LoadError::Loader(_))), "{failed:?}");
    assert_eq!(cache.stats().memory.entries, 0);
}

#[tokio::test]
async fn a_value_that_is_not_kept_takes_the_older_one_with_it() {
    let clock = Clock::manual();
    let cache = builder(&clock).stale_if_error(seconds(3_600)).build().unwrap();
    cache.insert(1, 1);
    clock.advance(seconds(10));
    let unkept = || async { Ok::<_, io::Error>(Loaded::with_ttl(2, Duration::ZERO)) };
    assert_eq!(cache.get_or_load(&1, unkept).await.unwrap(), 2);
    let failed = cache.get_or_load(&1, || async { Err::<u32, _>(io::Error::other("down")) }).await;
    assert!(failed.is_err());
}

#[tokio::test]
async fn what_was_written_meanwhile_is_not_removed_by_the_answer_that_there_is_nothing() {
    let clock = Clock::manual();
    let cache = builder(&clock).stale_if_error(seconds(3_600)).build().unwrap();
    cache.insert(1, 1);
    clock.advance(seconds(10));
    let ended = cache
        .get_or_load(&1, || async {
            cache.insert(1, 2);
            Err::<u32, _>(NotKept::new("gone"))
        })
        .await;
    assert!(matches!(ended, Err(LoadError::NotKept(_))));
    assert_eq!(cache.get_in_memory(&1), Some(2));
}

#[tokio::test]
async fn a_failed_refresh_leaves_the_value_and_is_tried_again() {
    let (clock, source) = (Clock::manual(), Source::new());
    let cache = builder(&clock).stale_while_revalidate(seconds(30)).build().unwrap();
    let loading = source.of(&cache);
    loading.get(&1).await.unwrap();
    clock.advance(seconds(10));
    source.fail(true);
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    settle().await;
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    settle().await;
    source.fail(false);
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    settle().await;
    assert_eq!((loading.get(&1).await.unwrap(), cache.stats().load_failures), (4, 2));
}

#[tokio::test]
async fn a_value_with_little_time_left_is_loaded_ahead() {
    let (clock, source) = (Clock::manual(), Source::new());
    let cache = builder(&clock).refresh_ahead(seconds(3)).build().unwrap();
    let loading = source.of(&cache);
    loading.get(&1).await.unwrap();
    clock.advance(Duration::from_millis(6_999));
    loading.get(&1).await.unwrap();
    settle().await;
    assert_eq!(source.loads(), 1);
    clock.advance(Duration::from_millis(1));
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    settle().await;
    assert_eq!((loading.get(&1).await.unwrap(), source.loads()), (2, 2));
}

#[tokio::test]
async fn a_write_overtakes_a_refresh_that_began_before() {
    let (clock, mut source) = (Clock::manual(), Source::new());
    source.gate = Arc::new(Semaphore::new(1));
    let cache = builder(&clock).stale_while_revalidate(seconds(30)).build().unwrap();
    let loading = source.of(&cache);
    loading.get(&1).await.unwrap();
    clock.advance(seconds(10));
    let shut = source.gate.acquire().await.unwrap();
    loading.get(&1).await.unwrap();
    settle().await;
    cache.insert(1, 100);
    drop(shut);
    settle().await;
    assert_eq!((loading.get(&1).await.unwrap(), cache.stats().superseded), (100, 1));
}

#[tokio::test]
async fn so_many_refreshes_are_under_way_and_no_more() {
    let (clock, mut source) = (Clock::manual(), Source::new());
    source.gate = Arc::new(Semaphore::new(0));
    let cache = builder(&clock).stale_while_revalidate(seconds(30)).build().unwrap();
    (0..100).for_each(|key| cache.insert(key, key));
    let loading = source.of(&cache);
    let on_their_way = (0..100).filter(|key| loading.refresh(key)).count();
    assert_eq!((on_their_way, cache.stats().in_flight), (64, 64));
    source.gate.add_permits(100);
    settle().await;
    assert_eq!((cache.stats().in_flight, cache.stats().refreshes), (0, 64));
    assert!(loading.refresh(&99), "their places are free again");
}

#[test]
fn without_a_runtime_a_call_loads_itself() {
    let (clock, source) = (Clock::manual(), Source::new());
    let cache = builder(&clock).stale_while_revalidate(seconds(30)).build().unwrap();
    let loading = source.of(&cache);
    let get =
        || futures_util::FutureExt::now_or_never(loading.get(&1)).expect("nothing to wait for");
    assert_eq!(get().unwrap(), 1);
    clock.advance(seconds(10));
    assert_eq!((loading.refresh(&1), get().unwrap()), (false, 2));
}

#[test]
fn windows_that_are_none_are_refused() {
    let clock = Clock::manual();
    for beta in [-1.0, f64::NAN, f64::INFINITY] {
        let error = builder(&clock).early_refresh(beta).build().unwrap_err().to_string();
        assert!(error.contains("early_refresh") && error.contains("from 0 on"), "{error}");
    }
}
