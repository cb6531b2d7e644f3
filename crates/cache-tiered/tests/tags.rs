//! Invalidation by tag, event, namespace and predicate, and what single entries have of their own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cache_tiered::{
    Cache, CacheBuilder, Clock, Engine, EvictionCause, InsertOptions, Loaded, LoadingCache, Tag,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

const ENGINES: [Engine; 2] = [Engine::Switchable, Engine::ClockPro];

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn builder(engine: Engine) -> CacheBuilder<u32, u32> {
    Cache::builder("test").engine(engine)
}

fn tagged<const N: usize>(tags: [&str; N]) -> InsertOptions {
    InsertOptions::default().tags(tags)
}

/// Lets what was spawned come to its end.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_tag_takes_its_entries_along_and_no_others() {
    for engine in ENGINES {
        let cache = builder(engine).build().unwrap();
        cache.insert_with(1, 10, tagged(["odd", "small"]));
        cache.insert_with(2, 20, tagged(["even", "small"]));
        cache.insert(3, 30);
        cache.invalidate_tag("odd").await;
        assert_eq!([1, 2, 3].map(|key| cache.get_in_memory(&key)), [None, Some(20), Some(30)]);
        cache.insert_with(1, 11, tagged(["odd"]));
        assert_eq!(cache.get(&1).await, Some(11));
        cache.invalidate_tags([Tag::new("even"), Tag::new("odd")]).await;
        assert_eq!(cache.get_many(&[1, 2, 3]).await, [None, None, Some(30)]);
        cache.invalidate_tags::<Tag>([]).await;
        assert_eq!(cache.iter().collect::<Vec<_>>(), [(3, 30)]);
        assert_eq!(cache.stats().memory.evictions.removed, 3);
    }
}

#[tokio::test]
async fn many_entries_and_many_tags() {
    for engine in ENGINES {
        let cache = builder(engine).entries(20_000).build().unwrap();
        for key in 0..5_000_u32 {
            let tags = [format!("mod 7 {}", key % 7), format!("mod 1000 {}", key % 1_000)];
            cache.insert_with(key, key, InsertOptions::default().tags(tags).tag("all"));
        }
        cache.invalidate_tag("mod 7 3").await;
        cache.invalidate_tag("mod 1000 42").await;
        for key in 0..5_000 {
            let gone = key % 7 == 3 || key % 1_000 == 42;
            assert_eq!(cache.get_in_memory(&key), (!gone).then_some(key), "{engine} {key}");
        }
        cache.invalidate_tag("all").await;
        assert_eq!((0..5_000).filter(|key| cache.get_in_memory(key).is_some()).count(), 0);
    }
}

#[tokio::test]
async fn values_say_which_tags_they_have() {
    let cache = builder(Engine::default())
        .tags_by(|key: &u32, value: &u32| [format!("key {key}"), format!("value {value}")])
        .build()
        .unwrap();
    cache.insert(1, 7);
    cache.insert(2, 7);
    cache.insert(3, 8);
    assert_eq!(cache.warm([(4, 8)]), 1);
    cache.invalidate_tag("value 8").await;
    cache.invalidate_tag("key 2").await;
    assert_eq!([1, 2, 3, 4].map(|key| cache.get_in_memory(&key)), [Some(7), None, None, None]);
}

#[tokio::test]
async fn what_is_invalid_is_swept_and_the_listener_hears_of_it() {
    let clock = Clock::manual();
    for engine in ENGINES {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        let cache = builder(engine)
            .clock(clock.clone())
            .on_eviction(move |key, value, cause| hears.lock().push((*key, *value, cause)))
            .build()
            .unwrap();
        cache.insert_with(1, 10, tagged(["a"]));
        cache.insert_with(2, 20, tagged(["b"]));
        cache.invalidate_tag("a").await;
        assert_eq!(cache.remove_expired().await, 1);
        assert_eq!(*heard.lock(), [(1, 10, EvictionCause::Invalidated)]);
        assert_eq!(cache.stats().memory.entries, 1);
        assert_eq!(cache.remove_expired().await, 0);
    }
}

#[tokio::test]
async fn an_entry_with_too_many_tags_is_not_kept() {
    let cache = builder(Engine::default()).build().unwrap();
    let tags = |count: u32| InsertOptions::default().tags((0..count).map(|tag| tag.to_string()));
    cache.insert_with(1, 10, tags(1_024));
    assert_eq!(cache.get_in_memory(&1), Some(10));
    cache.insert_with(1, 11, tags(1_025));
    assert_eq!(cache.get_in_memory(&1), None);
}

/// What happens in a script of two calls and one invalidation.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    Start(usize),
    /// Lets the loader that a call may run come to its end.
    Finish(usize),
    Invalidate,
}

fn orders(events: &[Event]) -> Vec<Vec<Event>> {
    if events.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (at, event) in events.iter().enumerate() {
        let mut rest = events.to_vec();
        rest.remove(at);
        let first = |mut order: Vec<Event>| {
            order.insert(0, *event);
            order
        };
        all.extend(orders(&rest).into_iter().map(first));
    }
    all
}

/// In every order of two calls, the ends of their loaders and two invalidations: who asks after an
/// invalidation gets what was loaded after it, and nothing older is kept.
#[tokio::test]
async fn no_order_of_loads_and_invalidations_serves_or_keeps_an_old_value() {
    use Event::{Finish, Invalidate, Start};
    let events = [Start(0), Finish(0), Start(1), Finish(1), Invalidate, Invalidate];
    let mut orders = orders(&events);
    let place = |order: &[Event], event| order.iter().position(|it| *it == event).unwrap();
    orders.retain(|order| {
        [0, 1].iter().all(|it| place(order, Start(*it)) < place(order, Finish(*it)))
    });
    assert_eq!(orders.len(), 180);
    for order in orders {
        let cache = builder(Engine::default()).build().unwrap();
        let source = Arc::new(AtomicU32::new(0));
        let gates = [0, 1].map(|_| Arc::new(Semaphore::new(0)));
        let mut calls = Vec::new();
        for event in &order {
            match event {
                Start(at) => {
                    let (cache, source) = (cache.clone(), Arc::clone(&source));
                    let (gate, asked) = (Arc::clone(&gates[*at]), source.load(Ordering::Relaxed));
                    calls.push(tokio::spawn(async move {
                        let load = || async move {
                            let value = source.load(Ordering::Relaxed);
                            gate.acquire().await.unwrap().forget();
                            let options = tagged(["tag"]);
                            Ok::<_, io::Error>(Loaded::with_options(value, options))
                        };
                        let got = cache.get_or_load(&1, load).await.unwrap();
                        assert!(got >= asked, "asked at {asked}, got {got}");
                    }));
                }
                Finish(at) => gates[*at].add_permits(1),
                Invalidate => {
                    source.fetch_add(1, Ordering::Relaxed);
                    cache.invalidate_tag("tag").await;
                }
            }
            settle().await;
            let kept = cache.get_in_memory(&1);
            assert!(kept.is_none_or(|it| it == source.load(Ordering::Relaxed)), "{order:?}");
        }
        for call in calls {
            call.await.unwrap_or_else(|error| panic!("{order:?}: {error}"));
        }
    }
}

#[tokio::test]
async fn a_reservation_from_before_an_invalidation_keeps_nothing() {
    let cache = builder(Engine::default()).build().unwrap();
    let before = cache.reserve(&1);
    cache.invalidate_tag("a").await;
    assert!(!before.insert(1, tagged(["a"])));
    assert_eq!(cache.stats().superseded, 1);
    assert!(before.insert(1, tagged(["b"])), "another tag is another matter");
    assert!(cache.reserve(&1).insert(2, tagged(["a"])));
    assert_eq!(cache.get_in_memory(&1), Some(2));
}

struct Renamed(u32);
struct Deleted(u32);

#[tokio::test]
async fn events_invalidate_what_they_were_said_to() {
    let cache = builder(Engine::default()).build().unwrap();
    cache.on_event(|event: &Renamed| [format!("name {}", event.0)]);
    cache.on_event(|event: &Deleted| vec![format!("name {}", event.0)]);
    cache.on_event(|event: &Deleted| Some(format!("rights {}", event.0)));
    let fill = || {
        cache.insert_with(1, 1, tagged(["name 7"]));
        cache.insert_with(2, 2, tagged(["rights 7"]));
    };
    let there = || [1, 2].map(|key| cache.get_in_memory(&key).is_some());
    fill();
    cache.emit(&Renamed(8)).await;
    cache.emit(&"nobody knows this one").await;
    assert_eq!(there(), [true, true]);
    cache.emit(&Renamed(7)).await;
    assert_eq!(there(), [false, true]);
    fill();
    cache.emit(&Deleted(7)).await;
    assert_eq!(there(), [false, false]);
}

#[tokio::test]
async fn a_namespace_is_cleared_at_once() {
    let cache = builder(Engine::default()).build().unwrap();
    let (one, other) = (cache.namespace("one"), cache.namespace("other"));
    one.insert(1, 1);
    other.insert_with(2, 2, tagged(["tag"]));
    cache.insert_with(3, 3, tagged(["one"]));
    let load = || async { Ok::<_, io::Error>(4) };
    assert_eq!(one.get_or_load(&4, load).await.unwrap(), 4);
    one.clear().await;
    let there = || [1, 2, 3, 4].map(|key| one.cache().get_in_memory(&key).is_some());
    assert_eq!(there(), [false, true, true, false]);
    cache.invalidate_tag("tag").await;
    assert_eq!(there(), [false, false, true, false]);
}

#[tokio::test]
async fn a_predicate_picks_entries_out() {
    for engine in ENGINES {
        let cache = builder(engine).build().unwrap();
        cache.warm((0..100).map(|key| (key, key % 10)));
        let reserved = cache.reserve(&3);
        assert_eq!(cache.invalidate_if(|_, value| *value == 3).await, 10);
        assert_eq!(cache.stats().memory.entries, 90);
        assert!(!reserved.insert(3, InsertOptions::default()), "its fetch began before");
    }
}

/// A source whose values count up, and that can be made to fail.
fn counting(
    cache: &Cache<u32, u32>,
    options: InsertOptions,
) -> (LoadingCache<u32, u32>, Arc<AtomicU32>) {
    let count = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&count);
    let loading = cache.loading(move |_| {
        let (value, options) = (counts.fetch_add(1, Ordering::Relaxed) + 1, options.clone());
        async move {
            if value >= 100 {
                return Err(io::Error::other("down"));
            }
            Ok(Loaded::with_options(value, options))
        }
    });
    (loading, count)
}

#[tokio::test]
async fn a_softened_entry_is_served_while_a_newer_one_is_loaded() {
    for engine in ENGINES {
        let cache = builder(engine).stale_while_revalidate(seconds(60)).build().unwrap();
        let (loading, _) = counting(&cache, tagged(["a"]));
        assert_eq!(loading.get(&1).await.unwrap(), 1);
        cache.soften_tags(["a"]).await;
        assert_eq!(cache.get_in_memory(&1), None, "a plain look-up wants what is fresh");
        assert_eq!(loading.get(&1).await.unwrap(), 1);
        settle().await;
        assert_eq!(loading.get(&1).await.unwrap(), 2);
        assert_eq!(cache.get_in_memory(&1), Some(2));
        let stats = cache.stats();
        assert_eq!((stats.stale_hits, stats.refreshes), (1, 1));
    }
}

#[tokio::test]
async fn a_softened_entry_serves_where_the_loader_fails_and_an_invalid_one_does_not() {
    let cache = builder(Engine::default()).stale_if_error(seconds(60)).build().unwrap();
    let (loading, count) = counting(&cache, tagged(["a"]));
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    count.store(100, Ordering::Relaxed);
    cache.soften_tags(["a"]).await;
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    cache.invalidate_tag("a").await;
    assert!(loading.get(&1).await.is_err());
}

#[tokio::test]
async fn without_windows_a_softened_entry_is_gone() {
    let cache = builder(Engine::default()).build().unwrap();
    let (loading, _) = counting(&cache, tagged(["a"]));
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    cache.soften_tags(["a"]).await;
    assert_eq!(loading.get(&1).await.unwrap(), 2);
}

#[tokio::test]
async fn an_entry_has_windows_of_its_own() {
    for engine in ENGINES {
        let clock = Clock::manual();
        let cache = builder(engine).ttl(seconds(10)).clock(clock.clone()).build().unwrap();
        let own = InsertOptions::default().stale_while_revalidate(seconds(30));
        let (loading, _) = counting(&cache, own);
        assert_eq!(loading.get(&1).await.unwrap(), 1);
        clock.advance(seconds(11));
        assert_eq!(cache.get_in_memory(&1), None, "it is not fresh");
        assert_eq!(loading.get(&1).await.unwrap(), 1, "but good enough for now");
        settle().await;
        assert_eq!(loading.get(&1).await.unwrap(), 2);
        clock.advance(seconds(41));
        assert_eq!(loading.get(&1).await.unwrap(), 3, "the window has an end");

        // Some of its own where the cache has none.
        let cache = builder(engine).ttl(seconds(10)).clock(clock.clone()).build().unwrap();
        let own = InsertOptions::default().stale_if_error(seconds(30));
        let (loading, count) = counting(&cache, own);
        assert_eq!(loading.get(&1).await.unwrap(), 1);
        clock.advance(seconds(11));
        count.store(100, Ordering::Relaxed);
        assert_eq!(loading.get(&1).await.unwrap(), 1);

        // None of its own where the cache has some.
        let cache = builder(engine)
            .ttl(seconds(10))
            .stale_if_error(seconds(100))
            .clock(clock.clone())
            .build()
            .unwrap();
        let (loading, count) =
            counting(&cache, InsertOptions::default().stale_if_error(Duration::ZERO));
        assert_eq!(loading.get(&1).await.unwrap(), 1);
        clock.advance(seconds(11));
        count.store(100, Ordering::Relaxed);
        assert!(loading.get(&1).await.is_err());
    }
}

#[tokio::test]
async fn an_entry_is_refreshed_ahead_by_its_own_time() {
    let clock = Clock::manual();
    let cache = builder(Engine::default()).ttl(seconds(10)).clock(clock.clone()).build().unwrap();
    let (loading, _) = counting(&cache, InsertOptions::default().refresh_ahead(seconds(3)));
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    clock.advance(seconds(8));
    assert_eq!(loading.get(&1).await.unwrap(), 1);
    settle().await;
    assert_eq!(loading.get(&1).await.unwrap(), 2);
}

#[cfg(feature = "disk")]
mod disk {
    use cache_tiered::WritePolicy;
    use cache_tiered::disk::DiskConfig;

    use super::*;

    async fn open(path: &std::path::Path, policy: WritePolicy) -> Cache<u32, u32> {
        let disk = DiskConfig::new(path).capacity_bytes(32 << 20);
        builder(Engine::default())
            .entries(if policy == WritePolicy::OnEviction { 32 } else { 1_000 })
            .write_policy(policy)
            .disk(disk)
            .open()
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn the_disk_does_not_bring_back_what_was_invalidated() {
        for policy in [WritePolicy::Through, WritePolicy::OnEviction] {
            let directory = tempfile::tempdir().unwrap();
            let cache = open(directory.path(), policy).await;
            for key in 0..200 {
                let own = if key % 2 == 0 { "even" } else { "odd" };
                cache.insert_with(key, key, tagged([own, "all"]));
            }
            cache.flush().await;
            cache.invalidate_tag("even").await;
            let check = async |cache: &Cache<u32, u32>| {
                for key in 0..200 {
                    let found = cache.get(&key).await;
                    assert_eq!(found, (key % 2 == 1).then_some(key), "{policy:?} {key}");
                }
            };
            check(&cache).await;
            cache.close().await;
            // The next process knows, and so does the one after it.
            for _ in 0..2 {
                let cache = open(directory.path(), policy).await;
                check(&cache).await;
                cache.insert_with(0, 0, tagged(["even"]));
                assert_eq!(cache.get(&0).await, Some(0));
                cache.invalidate_tag("even").await;
                cache.close().await;
            }
            let cache = open(directory.path(), policy).await;
            cache.invalidate_tag("all").await;
            cache.close().await;
            let cache = open(directory.path(), policy).await;
            for key in 0..200 {
                assert_eq!(cache.get(&key).await, None);
            }
            cache.close().await;
        }
    }

    #[tokio::test]
    async fn without_its_record_the_disk_trusts_no_tagged_entry() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path(), WritePolicy::Through).await;
        cache.insert_with(1, 1, tagged(["a"]));
        cache.insert(2, 2);
        cache.close().await;
        std::fs::remove_file(directory.path().join("tags")).unwrap();
        let cache = open(directory.path(), WritePolicy::Through).await;
        assert_eq!(cache.get_many(&[1, 2]).await, [None, Some(2)]);
        cache.close().await;
    }

    #[tokio::test]
    async fn softness_and_windows_go_down_and_come_back() {
        let clock = Clock::manual();
        let directory = tempfile::tempdir().unwrap();
        let open = async || {
            builder(Engine::default())
                .ttl(seconds(10))
                .clock(clock.clone())
                .disk(DiskConfig::new(directory.path()).capacity_bytes(32 << 20))
                .open()
                .await
                .unwrap()
        };
        let cache = open().await;
        let own = tagged(["a"]).stale_while_revalidate(seconds(30));
        cache.insert_with(1, 10, own.clone());
        cache.insert_with(2, 20, own.clone());
        cache.soften_tags(["a"]).await;
        cache.insert_with(3, 30, own.clone());
        cache.close().await;

        let cache = open().await;
        let (loading, _) = counting(&cache, own);
        assert_eq!(cache.get(&1).await, None, "stale");
        assert_eq!(cache.get(&3).await, Some(30), "written after");
        // The look-up has brought it up, and now it is served while a newer one is loaded.
        assert_eq!(loading.get(&1).await.unwrap(), 10);
        settle().await;
        assert_eq!(loading.get(&1).await.unwrap(), 1);
        clock.advance(seconds(11));
        assert_eq!(loading.get(&3).await.unwrap(), 30);
        cache.close().await;
    }

    #[tokio::test]
    async fn a_snapshot_leaves_out_what_it_cannot_vouch_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snapshot");
        let cache = builder(Engine::default()).build().unwrap();
        cache.insert_with(1, 1, tagged(["a"]));
        cache.insert(2, 2);
        cache.save(&path, |_| {}).await.unwrap();
        let other = builder(Engine::default()).build().unwrap();
        other.load(&path, |_| {}).await.unwrap();
        assert_eq!(other.iter().collect::<Vec<_>>(), [(2, 2)]);
    }
}
