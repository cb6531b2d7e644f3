//! One loader for each key, however many ask, and nobody left behind when a leader goes.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cache_tiered::{Cache, Clock, LoadError, Loaded};
use tokio::sync::{Notify, Semaphore};

fn cache() -> Cache<u32, u32> {
    Cache::builder("test").entries(100).build().unwrap()
}

#[derive(Debug, thiserror::Error)]
#[error("backend {0} is down")]
struct Down(u32);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_calls_for_one_key_run_one_loader() {
    let cache = cache();
    let (loads, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let calls: Vec<_> = (0..1_000)
        .map(|_| {
            let (cache, loads, gate) = (cache.clone(), Arc::clone(&loads), Arc::clone(&gate));
            tokio::spawn(async move {
                cache
                    .get_or_load(&1, || async move {
                        loads.fetch_add(1, Ordering::SeqCst);
                        let _ = gate.acquire().await;
                        Ok::<_, Infallible>(42)
                    })
                    .await
            })
        })
        .collect();
    // Every call has looked into memory once before the loader may end.
    while cache.stats().memory.misses < 1_000 {
        tokio::task::yield_now().await;
    }
    gate.close();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 42);
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(cache.stats().loads, 1);
}

#[tokio::test]
async fn an_error_reaches_every_waiter_and_is_not_kept() {
    let cache = cache();
    let load = || async {
        tokio::task::yield_now().await;
        Err::<u32, _>(Down(7))
    };
    let (first, second) = tokio::join!(cache.get_or_load(&1, load), cache.get_or_load(&1, load));
    for result in [first, second] {
        let error: LoadError = result.unwrap_err();
        assert_eq!(error.downcast_ref::<Down>().unwrap().0, 7);
    }
    let stats = cache.stats();
    assert_eq!((stats.load_failures, stats.coalesced), (1, 1));
    let again = cache.get_or_load(&1, || async { Ok::<_, Down>(1) }).await;
    assert_eq!(again.unwrap(), 1);
}

#[tokio::test]
async fn when_the_leader_is_dropped_a_waiter_loads_itself() {
    let cache = cache();
    let leading = Arc::new(Notify::new());
    let leader = tokio::spawn({
        let (cache, leading) = (cache.clone(), Arc::clone(&leading));
        async move {
            cache
                .get_or_load(&1, || async move {
                    leading.notify_one();
                    std::future::pending::<Result<u32, Infallible>>().await
                })
                .await
        }
    });
    leading.notified().await;
    let waiters: Vec<_> = (0..10)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move {
                cache.get_or_load(&1, || async { Ok::<_, Infallible>(2) }).await.unwrap()
            })
        })
        .collect();
    while cache.stats().memory.misses < 11 {
        tokio::task::yield_now().await;
    }
    leader.abort();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), 2);
    }
    assert_eq!(cache.stats().loads, 1);
}

#[tokio::test]
async fn a_loader_that_panics_takes_nobody_along() {
    let cache = cache();
    let leader = tokio::spawn({
        let cache = cache.clone();
        async move {
            cache
                .get_or_load(&1, || async {
                    tokio::task::yield_now().await;
                    panic!("a bug in the loader") as Result<u32, Infallible>
                })
                .await
        }
    });
    tokio::task::yield_now().await;
    assert_eq!(cache.get_or_load(&1, || async { Ok::<_, Infallible>(3) }).await.unwrap(), 3);
    assert!(leader.await.unwrap_err().is_panic());
}

/// Starts a load of key 1, does `meanwhile`, lets the load end, and tells what memory holds then.
async fn after_a_load_with(meanwhile: impl AsyncFnOnce(&Cache<u32, u32>)) -> Option<u32> {
    let cache = cache();
    let (started, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let load = tokio::spawn({
        let (cache, started, finish) = (cache.clone(), Arc::clone(&started), Arc::clone(&finish));
        async move {
            cache
                .get_or_load(&1, || async move {
                    started.notify_one();
                    finish.notified().await;
                    Ok::<_, Infallible>(10)
                })
                .await
        }
    });
    started.notified().await;
    meanwhile(&cache).await;
    finish.notify_one();
    assert_eq!(load.await.unwrap().unwrap(), 10, "the caller gets what it loaded");
    cache.get_in_memory(&1)
}

#[tokio::test]
async fn a_load_loses_against_every_write_that_began_after_it() {
    assert_eq!(after_a_load_with(async |_| {}).await, Some(10));
    assert_eq!(after_a_load_with(async |cache| cache.insert(1, 11)).await, Some(11));
    assert_eq!(after_a_load_with(async |cache| cache.remove(&1).await).await, None);
    assert_eq!(after_a_load_with(async |cache| cache.clear(None).await).await, None);
    assert_eq!(after_a_load_with(async |cache| cache.remove(&2).await).await, Some(10));
}

#[tokio::test]
async fn who_asks_after_a_remove_does_not_join_the_load_from_before() {
    let cache = cache();
    let (started, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let old = tokio::spawn({
        let (cache, started, finish) = (cache.clone(), Arc::clone(&started), Arc::clone(&finish));
        async move {
            cache
                .get_or_load(&1, || async move {
                    started.notify_one();
                    finish.notified().await;
                    Ok::<_, Infallible>(1)
                })
                .await
        }
    });
    started.notified().await;
    cache.remove(&1).await;
    assert_eq!(cache.get_or_load(&1, || async { Ok::<_, Infallible>(2) }).await.unwrap(), 2);
    finish.notify_one();
    assert_eq!(old.await.unwrap().unwrap(), 1);
    assert_eq!(cache.get_in_memory(&1), Some(2));
}

#[tokio::test]
async fn a_loader_can_say_how_long_its_value_lives() {
    let clock = Clock::manual();
    let cache =
        Cache::<u32, u32>::builder("test").entries(10).clock(clock.clone()).build().unwrap();
    let load = || async { Ok::<_, Infallible>(Loaded::with_ttl(5, Duration::from_secs(2))) };
    cache.get_or_load(&1, load).await.unwrap();
    clock.advance(Duration::from_secs(1));
    assert_eq!(cache.get_in_memory(&1), Some(5));
    clock.advance(Duration::from_secs(1));
    assert_eq!(cache.get_in_memory(&1), None);
    cache
        .get_or_load(&2, || async { Ok::<_, Infallible>(Loaded::with_ttl(5, Duration::ZERO)) })
        .await
        .unwrap();
    assert_eq!(cache.get_in_memory(&2), None);
}
